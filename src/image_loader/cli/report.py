"""The report: one page to look at after a run, with its figures, its failures and its images."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

from image_loader.cli.summary import Tally
from image_loader.errors import LoaderError, MissingPackagesError, OptionError, ResultsFileError
from image_loader.formats import IMAGE_EXTENSIONS
from image_loader.model import Change, Outcome, Reason, Status
from image_loader.url import LONGEST_SHOWN, parse, printable, redacted, shortened

_LOG = logging.getLogger(__name__)

_PICTURES = 3000  # shown, of those saved and of those fresh; some 500 bytes each, as are the failures
_GROUPS = 500  # pairs of host and reason that are told apart
_EXAMPLES = 10  # failures shown of each group
_TARGETS = 10_000  # redirect targets that are counted, some 200 bytes each
_LONGEST_TARGET = 500  # characters; longer ones are not counted
_TARGETS_SHOWN = 50  # of those that several images came from
_BINS_PER_DECADE = 10
_COLUMN_HEIGHT = 48  # pixels of the highest column of a plot
_EXTENSIONS = (".html", ".htm")
# Opened by itself, an SVG may run a script, and a file without a known extension may be a web page.
_LINKED_EXTENSIONS = tuple(IMAGE_EXTENSIONS - {".svg"})


def require_page(path: Path) -> None:
    """Raise ``OptionError`` if the extension is not a web page's."""
    if path.suffix.lower() not in _EXTENSIONS:
        raise OptionError(f"{path}: the file's extension must be .html", "report")


def require_report() -> None:
    """Raise ``MissingPackagesError`` if what the report needs is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise MissingPackagesError("report", "Jinja2", error) from error


class Report:
    """One HTML page about a run, written when the run has ended, however it ended; memory stays flat meanwhile."""

    def __init__(self, path: Path, directory: Path, tally: Tally) -> None:
        """Have ``path`` written about the images in ``directory``; ``tally`` has counted what is written here.

        ``OptionError`` for an unknown extension or a missing extra, ``ResultsFileError`` where nothing can be written.
        """
        require_page(path)
        require_report()
        # The page replaces the file: a FIFO or a device would be lost.
        if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
            raise ResultsFileError(f"{path}: cannot be written: it is no regular file; name another file")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ResultsFileError(f"{path}: cannot be written there; name a file in a directory that you can write to")
        self._path = path
        self._summary = _Summary(Path(os.path.realpath(directory)).name or str(directory), tally)
        self._pictures = {status: deque[_Picture](maxlen=_PICTURES) for status in (Status.SAVED, Status.FRESH)}
        self._failures = _Failures()
        self._targets = _Targets()
        self._prefix = os.path.relpath(os.path.realpath(directory), os.path.realpath(path.parent))
        self._started = time.monotonic()

    def write(self, outcome: Outcome) -> None:
        """Take one outcome into the report."""
        if not outcome.is_of_line:
            return
        self._summary.add(outcome)
        if outcome.final_url is not None:
            self._targets.add(outcome.final_url)
        if outcome.status is Status.FAILED:
            self._failures.add(outcome)
        elif outcome.file is not None and outcome.status in self._pictures:
            self._pictures[outcome.status].append(_picture(outcome, self._prefix))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None and not self._summary.tally.statuses:
            return  # The run never began.
        if isinstance(error, LoaderError):
            self._summary.fault = printable(str(error))
        try:
            self._replace(self._page())
        except ResultsFileError as failure:
            if error is None:
                raise
            _LOG.error("%s", failure)  # What ended the run counts.

    def _page(self) -> Iterable[str]:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("image_loader.cli"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["number"] = "{:,}".format
        return environment.get_template("report.html").generate(
            nonce=secrets.token_urlsafe(),
            ended=datetime.now().astimezone(),
            seconds=time.monotonic() - self._started,
            summary=self._summary,
            failures=self._failures,
            targets=self._targets.shared(),
            pictures=self._newest(),
        )

    def _newest(self) -> list[_Picture]:
        """Return those of this run before those that were there, the later ones first."""
        newest = itertools.chain(*(reversed(self._pictures[status]) for status in (Status.SAVED, Status.FRESH)))
        return list(itertools.islice(newest, _PICTURES))

    def _replace(self, page: Iterable[str]) -> None:
        partial = self._path.with_name(f".report-{secrets.token_hex(8)}")
        try:
            try:
                with partial.open("x", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(page)
                partial.replace(self._path)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise ResultsFileError(f"{self._path}: cannot be written: {error.strerror}; name another file") from error


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a plot: its place from the left, its height in pixels, and what it counts."""

    x: int
    height: int
    count: int


class Histogram:
    """Counts of values by size, ten bins to a decade: fixed in memory whatever is counted.

    >>> histogram = Histogram(least=0.01, decades=3)
    >>> for value in (0, 0.2, 0.2, 5, 1e9):
    ...     histogram.add(value)
    >>> [(column.x, column.count) for column in histogram.columns()]
    [(0, 1), (13, 2), (26, 1), (29, 1)]
    >>> histogram.median, histogram.largest
    (0.22, 1000000000.0)
    """

    def __init__(self, least: float, decades: int) -> None:
        """Begin with the value ``least``; what is smaller or larger is counted at the ends."""
        self.labels = [least * 10**decade for decade in range(decades + 1)]
        self.largest = 0.0
        self._least = least
        self._counts = [0] * (decades * _BINS_PER_DECADE)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    @property
    def median(self) -> float:
        """The middle value, as near as a bin tells: two digits."""
        middle = next(i for i, below in enumerate(itertools.accumulate(self._counts)) if 2 * below >= self.total)
        return min(float(f"{self._least * 10 ** ((middle + 0.5) / _BINS_PER_DECADE):.2g}"), self.largest)

    def add(self, value: float) -> None:
        """Count one value."""
        place = math.floor(math.log10(value / self._least) * _BINS_PER_DECADE) if value > 0 else 0
        self._counts[min(max(place, 0), len(self._counts) - 1)] += 1
        self.largest = max(self.largest, value)

    def columns(self) -> list[Column]:
        """Return a column for each bin that is not empty."""
        scale = _COLUMN_HEIGHT / max(self._counts)
        return [Column(place, max(1, round(n * scale)), n) for place, n in enumerate(self._counts) if n]


@dataclass(slots=True)
class _Summary:
    """The figures of a run; ``fault`` is what ended it before the list had ended."""

    directory: str
    tally: Tally
    fault: str = ""
    changes: Counter[Change] = field(default_factory=Counter)
    interrupted: bool = False
    sizes: Histogram = field(default_factory=lambda: Histogram(least=100, decades=7))  # bytes
    times: Histogram = field(default_factory=lambda: Histogram(least=0.01, decades=5))  # seconds

    def add(self, outcome: Outcome) -> None:
        if outcome.change is not None:
            self.changes[outcome.change] += 1
        self.interrupted |= outcome.reason is Reason.INTERRUPTED
        if outcome.bytes is not None:
            self.sizes.add(outcome.bytes)
        if outcome.status is Status.SAVED:
            self.times.add(outcome.seconds)


@dataclass(frozen=True, slots=True)
class _Picture:
    """One image of the grid."""

    name: str
    address: str
    url: str
    bytes: int | None
    change: str

    @property
    def linked(self) -> bool:
        """Whether it can do no harm when opened as a page of its own."""
        return self.name.lower().endswith(_LINKED_EXTENSIONS)


@dataclass(frozen=True, slots=True)
class _Failure:
    """One line that failed; ``address`` is empty where a link would tell a secret or lead elsewhere."""

    text: str
    address: str
    detail: str


@dataclass(slots=True)
class _Group:
    """The failures of one host for one reason, or with one HTTP status."""

    host: str
    reason: str
    count: int = 0
    examples: list[_Failure] = field(default_factory=list)


class _Failures:
    """What failed, by host and reason, in memory that does not grow with the list."""

    def __init__(self) -> None:
        self.total = 0
        self._groups: dict[tuple[str, str], _Group] = {}

    @property
    def groups(self) -> Sequence[_Group]:
        """The groups that are told apart: the host with most failures first, and each host's largest first."""
        totals: Counter[str] = Counter()
        for group in self._groups.values():
            totals[group.host] += group.count
        return sorted(self._groups.values(), key=lambda group: (-totals[group.host], group.host, -group.count))

    @property
    def others(self) -> int:
        """How many failures are in none of the groups."""
        return self.total - sum(group.count for group in self._groups.values())

    def add(self, outcome: Outcome) -> None:
        self.total += 1
        host, address = _host_and_address(outcome.url)
        reason = outcome.reason or ""
        if outcome.reason is Reason.HTTP_STATUS:
            reason = f"HTTP status {outcome.http_status}"
        key = (host, reason)
        if key not in self._groups and len(self._groups) == _GROUPS:
            return
        group = self._groups.setdefault(key, _Group(*key))
        group.count += 1
        if len(group.examples) < _EXAMPLES:
            text = f"line {outcome.line}: {shortened(redacted(outcome.url))}"
            group.examples.append(_Failure(text, address, shortened(printable(outcome.detail or ""))))


class _Target(NamedTuple):
    """A URL that redirects of several images led to; ``address`` is as in ``_Failure``."""

    text: str
    address: str
    images: int


class _Targets:
    """Counts where redirects led, in memory that does not grow with the list.

    One target of many images is likely a placeholder. Where there are too many of them, those of one image are
    forgotten.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, url: str) -> None:
        if len(url) > _LONGEST_TARGET:
            return
        if len(self._counts) >= _TARGETS and url not in self._counts:
            self._counts = Counter({each: count for each, count in self._counts.items() if count > 1})
            if len(self._counts) >= _TARGETS:
                return
        self._counts[url] += 1

    def shared(self) -> list[_Target]:
        """Return those of several images, the most frequent first."""
        frequent = [(url, count) for url, count in self._counts.most_common(_TARGETS_SHOWN) if count > 1]
        return [_Target(shortened(redacted(url)), _host_and_address(url)[1], count) for url, count in frequent]


def _picture(outcome: Outcome, prefix: str) -> _Picture:
    file, url = outcome.file or "", shortened(redacted(outcome.url))
    address = quote(os.fsencode(f"{prefix}/") + file.encode())
    return _Picture(printable(file), address, url, outcome.bytes, _change_shown(outcome))


def _change_shown(outcome: Outcome) -> str:
    """Return how an image of this run is marked: one with the bytes that it had before is not."""
    return outcome.change.value if outcome.change in (Change.NEW, Change.CHANGED) else ""


def _host_and_address(text: str) -> tuple[str, str]:
    """Return the host to group by, and the address to link to, if any."""
    try:
        url = parse(text)
    except ValueError:
        return "", ""
    hidden = url.userinfo or "?" in url.path or len(url.canonical) > LONGEST_SHOWN
    return shortened(printable(url.authority)), "" if hidden else url.canonical

"""How a run is reported: the log line of each outcome, and the summary."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from image_loader.model import Outcome, Reason, Status
from image_loader.url import printable, redacted, shortened

_FAILURES_LOGGED = 10  # as warnings; a cron mail stays short, and the summary counts the rest
_EXAMPLES_LOGGED = 3  # of each reason
_COUNTED_HOSTS = 10_000  # pairs of reason and host, some 250 bytes each; hosts beyond are counted together
_HOSTS_SHOWN = 3  # for each reason in the summary
_FILE_COLUMN = 24
# How the log begins what a dry run tells.
_DRY: Mapping[Reason | None, str] = {Reason.WOULD_ASK: "ask", Reason.WOULD_DELETE: "delete"}
_LINE_STATUSES = (Status.SAVED, Status.FRESH, Status.SKIPPED, Status.FAILED)
_DELETED = "deleted"
_NOT_DELETED = "could not be deleted"
_AUTHORITY = r"[^:/]*://(?:[^/?#]*@)?([^/?#]*)"  # compiled with the first failure


def size_text(size: float) -> str:
    """Return a number of bytes for people, in decimal units.

    >>> [size_text(size) for size in (0, 999, 20_100, 999_960, 96_200_000, 1_230_000_000)]
    ['0 B', '999 B', '20.1 kB', '1.0 MB', '96.2 MB', '1.2 GB']
    """
    if size < 999.5:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def urls_text(count: int) -> str:
    """Return a number of URLs for people."""
    return "1 URL" if count == 1 else f"{count} URLs"


def describe(outcome: Outcome) -> str:
    """Return the outcome's log line, free of secrets and of what a terminal would obey.

    >>> describe(Outcome(1, "http://host/a.jpg?key=1", "a.jpg", Status.SAVED, bytes=20_100, attempts=1, seconds=0.05))
    'saved    a.jpg                      20.1 kB    0.05 s  http://host/a.jpg?…'
    >>> describe(Outcome(17, "a.jpg", None, Status.FAILED, Reason.BAD_URL, "no scheme"))
    'failed   line 17                   bad-url: no scheme  a.jpg'
    """
    status = _DRY.get(outcome.reason, outcome.status)
    cells = [f"{status:<7}", f"{printable(outcome.file or f'line {outcome.line}'):<{_FILE_COLUMN}}"]
    if outcome.bytes is not None:
        cells.append(f"{size_text(outcome.bytes):>8}")
    if outcome.attempts:
        cells.append(f"{outcome.seconds:6.2f} s")
    if outcome.attempts > 1:
        cells.append(f"{outcome.attempts} attempts")
    if explanation := ": ".join(filter(None, (None if outcome.reason in _DRY else outcome.reason, outcome.detail))):
        cells.append(shortened(printable(explanation)))
    return "  ".join([*cells, shortened(redacted(outcome.url))] if outcome.url else cells)


class Tally:
    """Counts of a run's outcomes, in memory that does not grow with the list."""

    def __init__(self) -> None:
        self.bytes_saved = 0
        self.statuses: Counter[Status] = Counter()
        self._reasons: Counter[Reason] = Counter()
        self._hosts: defaultdict[Reason, Counter[str]] = defaultdict(Counter)
        self._pairs = 0
        # Images that are no longer in the list, by what became of them; and the bytes of those deleted.
        self._deletions: Counter[str] = Counter()
        self._bytes_deleted = 0
        self._asks = 0

    @property
    def done(self) -> int:
        """How many lines have ended, in whatever way."""
        return self.statuses.total()

    @property
    def images(self) -> int:
        """How many lines ended with a current image in the directory."""
        return self.statuses[Status.SAVED] + self.statuses[Status.FRESH]

    @property
    def deleted(self) -> int:
        """How many images were deleted, since they were no longer in the list."""
        return self._deletions[_DELETED]

    @property
    def failed(self) -> int:
        """How many lines failed: none means success."""
        return self.statuses[Status.FAILED] + self._deletions[_NOT_DELETED]

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.line <= 0 and not outcome.is_of_line:
            self._add_deletion(outcome)
            return
        self.statuses[outcome.status] += 1
        if outcome.status is Status.SAVED:
            self.bytes_saved += outcome.bytes or 0
        elif outcome.reason is not None:
            if outcome.reason is Reason.WOULD_ASK:
                self._asks += 1
            elif outcome.status is Status.FAILED:
                self._reasons[outcome.reason] += 1
                self._add_host(outcome.reason, outcome.url)

    def summary(self, seconds: float) -> list[str]:
        """Return the lines that end a run of so many seconds: its counts, then its failures by reason and host."""
        saved, fresh, skipped, failed = map(self.statuses.__getitem__, _LINE_STATUSES)
        lines = [
            f"{urls_text(self.done)}: {saved} saved ({size_text(self.bytes_saved)}), "
            f"{fresh} fresh, {skipped} skipped, {failed} failed in {seconds:.1f} s"
        ]
        for reason, count in self._reasons.most_common():
            lines.append(f"{count:>8} {reason}")
            lines += self._host_lines(reason, count)
        if self._asks:
            lines.append(f"{self._asks:>8} would be asked for")
        for what, count in self._deletions.items():
            size = f" ({size_text(self._bytes_deleted)})" if what != _NOT_DELETED else ""
            lines.append(f"{count:>8} {what}{size}")
        return lines

    def _add_deletion(self, outcome: Outcome) -> None:
        """Count what became of an image that is no longer in the list."""
        if outcome.status is Status.FAILED:
            self._deletions[_NOT_DELETED] += 1
            return
        self._deletions[_DELETED if outcome.status is Status.DELETED else "would be deleted"] += 1
        self._bytes_deleted += outcome.bytes or 0

    def _add_host(self, reason: Reason, url: str) -> None:
        authority = re.match(_AUTHORITY, url)
        if authority is None or reason is Reason.BAD_URL:
            return
        hosts = self._hosts[reason]
        host = authority[1].lower()
        if host in hosts:
            hosts[host] += 1
        elif self._pairs < _COUNTED_HOSTS:
            hosts[host] = 1
            self._pairs += 1

    def _host_lines(self, reason: Reason, count: int) -> list[str]:
        if reason not in self._hosts:
            return []
        shown = self._hosts[reason].most_common(_HOSTS_SHOWN)
        rest = count - sum(failures for _, failures in shown)
        lines = [f"{failures:>12} {printable(host)}" for host, failures in shown]
        return [*lines, f"{rest:>12} on other hosts"] if rest else lines


class OutcomeLog:
    """The log of a run's outcomes: all of them at INFO, but the first few failures of each kind as warnings.

    ``left_out`` counts the failures that nobody was shown.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.left_out = 0
        self._logger = logger
        self._shows_all = logger.isEnabledFor(logging.INFO)
        self._warnings: Counter[Reason] = Counter()

    def write(self, outcome: Outcome) -> None:
        """Log one outcome; its line is made only where someone wants to see it."""
        if outcome.status is not Status.FAILED and not self._shows_all:
            return
        level = self._level(outcome)
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", describe(outcome))
        elif outcome.status is Status.FAILED and self._logger.isEnabledFor(logging.WARNING):
            self.left_out += outcome.reason is not Reason.INTERRUPTED

    def _level(self, outcome: Outcome) -> int:
        # Who interrupts a run knows why its images failed.
        if outcome.status is not Status.FAILED or outcome.reason in (None, Reason.INTERRUPTED):
            return logging.INFO
        if self._warnings[outcome.reason] == _EXAMPLES_LOGGED or self._warnings.total() == _FAILURES_LOGGED:
            return logging.INFO
        self._warnings[outcome.reason] += 1
        return logging.WARNING

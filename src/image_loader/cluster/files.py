"""The files by which a driver and its tasks hand things over, in a folder of the directory that all of them see.

The lines go to the tasks and the rows come back this way, not through the scheduler: there may be 10**8 of them, and
URLs may hold secrets. These files can be read by their owner alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from image_loader.errors import DirectoryError
from image_loader.model import Change, Line, Outcome, Reason, Status
from image_loader.settings import Settings, options, settings_from
from image_loader.store import partitions
from image_loader.store.root import directory_error
from image_loader.url import parse

_PRIVATE = 0o600


class Folder:
    """The places of the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings"
        self.heartbeat = path / "heartbeat"

    def lines(self, partition: int) -> Path:
        """Return the place of the lines of a part."""
        return self.path / f"lines-{partitions.name(partition)}"

    def rows(self, partition: int, attempt: str) -> Path:
        """Return the place of the rows that one attempt at a part has written."""
        return self.path / f"rows-{partitions.name(partition)}-{attempt}"


class Rows:
    """The outcomes of one attempt; ``told`` is how many there are."""

    def __init__(self, path: Path) -> None:
        """Make the file; raises ``DirectoryError``, as the other methods."""
        self.told = 0
        with translating():
            self._file = open(path, "x", encoding="ascii", opener=opener)  # noqa: SIM115 (Path's has no opener)

    def add(self, outcome: Outcome) -> None:
        """Add an outcome."""
        with translating():
            self._file.write(json.dumps(outcome) + "\n")
        self.told += 1

    def close(self) -> None:
        """Write what is left."""
        with translating():
            self._file.close()


def read_rows(path: Path, partition: int) -> Iterator[Outcome]:
    """Yield the outcomes that an attempt has written; raises ``DirectoryError``."""
    folder = partitions.name(partition)
    with _reading(path) as rows:
        for row in rows:
            if not row.endswith("\n"):
                return  # The disk was full.
            yield _outcome(json.loads(row), folder)


def read_lines(path: Path, batch: int, skipped: int = 0) -> Iterator[list[Line]]:
    """Yield the lines of a part in groups, without the first ones; raises ``DirectoryError``."""
    with _reading(path) as records:
        left = islice(records, skipped, None)
        while group := list(map(read_line, islice(left, batch))):
            yield group


def line_record(line: Line) -> str:
    """Return what is written of a line."""
    return json.dumps((line.number, line.text, line.name)) + "\n"


def write(path: Path, text: str) -> None:
    """Add text to a file, all of it or nothing; raises ``DirectoryError``."""
    left = text.encode("ascii")
    with translating(), open(path, "ab", buffering=0, opener=opener) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise


def dumped(settings: Settings) -> str:
    """Return the settings as JSON; a pickle could run code of whoever can write to the directory."""
    return json.dumps(settings._asdict(), default=_plain)


def read_settings(path: Path) -> Settings:
    """Return the settings of a run; raises ``DirectoryError``, and ``OptionError`` where they do not suit here."""
    with translating():
        given: dict[str, Any] = json.loads(path.read_text("ascii"))
    entries = options(Settings).items()
    return settings_from({option.keyword: given.pop(field) for field, option in entries}, given)


def opener(path: str | Path, flags: int) -> int:
    """Open or make a file that nobody else may read."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE)


@contextmanager
def translating() -> Iterator[None]:
    """Raise what goes wrong with a file as ``DirectoryError``."""
    try:
        yield
    except OSError as error:
        raise _failure(error) from error


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    with translating(), path.open(encoding="ascii") as file:
        yield file


def _failure(error: OSError) -> DirectoryError:
    return directory_error(os.fsdecode(error.filename or "the files of the run"), error)


def _plain(value: object) -> Any:
    return sorted(value) if isinstance(value, frozenset) else str(value)


def read_line(record: str) -> Line:
    """Return the line of a record."""
    number, text, name = json.loads(record)
    return Line(number, text, parse(text), "", name)


def _outcome(row: list[Any], folder: str) -> Outcome:
    outcome = Outcome(*row)
    return outcome._replace(
        file=None if outcome.file is None else f"{folder}/{outcome.file}",
        status=Status(outcome.status),
        reason=None if outcome.reason is None else Reason(outcome.reason),
        change=None if outcome.change is None else Change(outcome.change),
    )

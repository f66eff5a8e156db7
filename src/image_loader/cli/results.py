"""What programs see of a run: one row for each outcome, and the URLs that failed."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import operator
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from image_loader.errors import OptionError, ResultsFileError
from image_loader.model import Outcome, Reason, Status
from image_loader.url import parse, printable

COLUMNS = (
    "url", "file", "status", "reason", "detail", "http_status", "media_type", "bytes", "sha256", "attempts", "seconds",
    "final_url", "change", "width", "height",
)  # fmt: skip
_cells = operator.attrgetter(*COLUMNS)
STANDARD_OUTPUT = "-"
"""What names standard output as the results file."""
_STANDARD_OUTPUT = 1
# In ASCII and full-width: spreadsheets take both.
_FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_WAIT = 0.1  # seconds that a pipe is waited for before the run is asked whether it is to end
_PIPE_BUFFER = 4096  # bytes that a pipe that is ready takes without blocking (POSIX PIPE_BUF, on Linux)


def _never() -> bool:
    return False


def json_row(outcome: Outcome) -> str:
    r"""Return the outcome as one line of JSON, in ASCII: safe to show on a terminal, too.

    >>> json_row(Outcome(1, "http://h/é.jpg", None, Status.SKIPPED, Reason.DUPLICATE))[:44]
    '{"url": "http://h/\\u00e9.jpg", "file": null,'
    """
    return json.dumps(_row(outcome)) + "\n"


def csv_row(outcome: Outcome) -> str:
    r"""Return the outcome as one CSV record (RFC 4180, but lines end in LF); None is an empty cell.

    >>> csv_row(Outcome(1, "=1+1,a", None, Status.FAILED, Reason.BAD_URL, "no scheme"))
    '"\'=1+1,a",,failed,bad-url,no scheme,,,,,0,0.0,,,,\n'
    """
    return _csv_record([_neutralised(cell) for cell in _row(outcome).values()])


class ResultsFile:
    """One row per outcome, in the format that the extension names; the file is whole after each row.

    On standard output, which ``-`` names, the rows are lines of JSON.

    An earlier file is emptied with the first outcome, or at the end of a run that had none: one that cannot start
    leaves it.
    """

    def __init__(self, name: str | Path, is_ending: Callable[[], bool] = _never) -> None:
        """Open or make the file; ``OptionError`` for an unknown extension, ``ResultsFileError`` if that fails.

        A pipe that nobody reads is waited for until ``is_ending`` says so.
        """
        self._to_row = row_format(name)
        path = None if name == STANDARD_OUTPUT else Path(name)
        self._file = _LineFile(path, _csv_record(COLUMNS) if self._to_row is csv_row else "", is_ending)

    def write(self, outcome: Outcome) -> None:
        """Append the outcome's row; ``ResultsFileError`` if the file does not take it."""
        self._file.append(self._to_row(outcome))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._file.close(begin=error is None)


class FailedFile:
    """The URLs that failed, as they were given, one a line: itself a list for the next run.

    An earlier file is emptied with the first outcome, whatever it is, or at the end of a run that had none.
    """

    def __init__(self, path: Path, is_ending: Callable[[], bool] = _never) -> None:
        """Open or make the file; ``ResultsFileError`` if that fails.

        A pipe that nobody reads is waited for until ``is_ending`` says so.
        """
        self._file = _LineFile(path, "", is_ending)

    def write(self, outcome: Outcome) -> None:
        """Append the outcome's URL if it failed; ``ResultsFileError`` if the file does not take it."""
        self._file.begin()
        if outcome.status is Status.FAILED and outcome.is_of_line:
            # Only a part of an overlong or undecodable line is known. If that part happens to be a URL, it is the wrong
            # one.
            self._file.append(f"{'# ' if _is_remnant(outcome) else ''}{outcome.url}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._file.close(begin=error is None)


class _LineFile:
    """A file that only its owner may read, and that ends with a whole line at any moment; or standard output.

    What is in the file stays until it is begun; from then on, ``heading`` stands before the lines. Of a pipe that is
    full when the run is to end, the rest is dropped.
    """

    def __init__(self, path: Path | None, heading: str, is_ending: Callable[[], bool]) -> None:
        """``path`` is None for standard output."""
        self._path = path
        self._heading = heading
        self._is_ending = is_ending
        self._begun = False
        self._given_up = False
        self._size = 0
        while (descriptor := self._standard_output() if path is None else self._opened(path)) is None:
            time.sleep(_WAIT)
        self._descriptor = descriptor
        self._is_regular = path is not None and stat.S_ISREG(os.fstat(descriptor).st_mode)

    def _opened(self, path: Path) -> int | None:
        """Open or make the file; None for a FIFO that nobody reads yet."""
        # O_NONBLOCK: what blocks goes on blocking after a signal was handled (PEP 475).
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno == errno.ENXIO and path.is_fifo() and not self._is_ending():
                return None
            raise self._error(error) from error

    def _standard_output(self) -> int:
        try:
            if sys.stdout is None:  # It was closed when the process was started.
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return os.dup(_STANDARD_OUTPUT)
        except OSError as error:
            raise self._error(error) from error

    def begin(self) -> None:
        """Make the file private and empty, and write its heading, if that is not done."""
        if self._begun:
            return
        self._begun = True
        if self._is_regular:
            try:
                os.fchmod(self._descriptor, 0o600)
                os.ftruncate(self._descriptor, 0)
            except OSError as error:
                raise self._error(error) from error
        self._write(self._heading)

    def append(self, line: str) -> None:
        self.begin()
        self._write(line)

    def close(self, *, begin: bool) -> None:
        try:
            if begin:
                self.begin()
        finally:
            self._close()

    def _write(self, line: str) -> None:
        content = line.encode(errors="backslashreplace")
        try:
            written = 0
            while written < len(content) and not self._given_up:
                # Standard output is not ours to make non-blocking: others may have it as well.
                if self._path is None and not self._is_writable():
                    self._given_up = True
                    break
                try:
                    written += os.write(self._descriptor, content[written : written + _PIPE_BUFFER])
                except BlockingIOError:
                    self._given_up = not self._is_writable()
        except OSError as error:
            self._drop_torn_line()
            raise self._error(error) from error
        self._size += len(content)

    def _is_writable(self) -> bool:
        """Wait until a pipe takes more; False if it does not, and the run is to end."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while not poll.poll(_WAIT * 1000):
            if self._is_ending():
                return False
        return True

    def _close(self) -> None:
        try:
            os.close(self._descriptor)
        except OSError as error:
            raise self._error(error) from error

    def _drop_torn_line(self) -> None:
        if not self._is_regular:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)

    def _error(self, error: OSError) -> ResultsFileError:
        if self._path is None:
            return ResultsFileError(f"standard output: cannot be written: {error.strerror}")
        return ResultsFileError(f"{self._path}: cannot be written: {error.strerror}; name another file")


def row_format(name: str | Path) -> Callable[[Outcome], str]:
    """Return what makes a row of an outcome, by the file's extension; ``OptionError`` for an unknown one."""
    extension = ".jsonl" if name == STANDARD_OUTPUT else Path(name).suffix.lower()
    if row := {".jsonl": json_row, ".csv": csv_row}.get(extension):
        return row
    raise OptionError(f"{name}: the file's extension must be .jsonl or .csv", "results")


def _row(outcome: Outcome) -> dict[str, Any]:
    row = dict(zip(COLUMNS, _cells(outcome), strict=True))
    row["seconds"] = round(outcome.seconds, 3)
    return row


def _neutralised(cell: Any) -> Any:
    r"""Return a cell that no spreadsheet takes for a formula, without control characters.

    >>> _neutralised(" =1+1"), _neutralised("a\tb"), _neutralised(5)
    ("' =1+1", 'a\\tb', 5)
    """
    if not isinstance(cell, str):
        return cell
    cell = printable(cell)
    return "'" + cell if cell.lstrip().startswith(_FORMULA_STARTS) else cell


def _csv_record(cells: Iterable[Any]) -> str:
    record = io.StringIO()
    csv.writer(record, lineterminator="\n").writerow(cells)
    return record.getvalue()


def _is_remnant(outcome: Outcome) -> bool:
    if outcome.reason is not Reason.BAD_URL:
        return False
    try:
        parse(outcome.url)
    except ValueError:
        return False
    return True

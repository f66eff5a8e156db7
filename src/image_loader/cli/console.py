"""The standard streams: log lines above a status line on standard error, and what to do where one is closed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import threading
import time
from typing import TextIO

from image_loader.url import printable

_WRITE_PATIENCE = 1.0  # seconds that a full pipe or a stopped terminal may hold up the run, once
_PIPE_BUFFER = 4096  # bytes that a pipe that is ready takes without blocking (POSIX PIPE_BUF, on Linux)
# How closed descriptors are opened: standard input for writing, the others for reading, so that using them still fails.
_CLOSED = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_RDONLY}
_USUAL_WIDTH = 80  # columns, if the terminal does not say


class Console:
    """Standard error, with a status line below the log where it is a terminal.

    Nothing here raises or blocks for long: what a closed, full or stopped standard error does not take is dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """``stream`` is None where the process was started without a standard error."""
        self._stream = stream
        # Reentrant: a signal handler may log while its own thread is writing.
        self._lock = threading.RLock()
        self._status = ""
        self._stuck = False

    @property
    def is_terminal(self) -> bool:
        """Whether a person may be watching."""
        descriptor = self._descriptor()
        return descriptor is not None and os.isatty(descriptor)

    @property
    def redraws(self) -> bool:
        """Whether a line can be drawn anew in place."""
        return self.is_terminal and os.environ.get("TERM", "dumb") != "dumb"

    @property
    def width(self) -> int:
        """Columns of the terminal, as it is now."""
        with contextlib.suppress(OSError):
            if (descriptor := self._descriptor()) is not None:
                return os.get_terminal_size(descriptor).columns or _USUAL_WIDTH
        return _USUAL_WIDTH

    @property
    def is_unicode(self) -> bool:
        """Whether block characters can be shown."""
        return self._encoding().lower().replace("-", "") == "utf8"

    def write(self, text: str) -> None:
        """Write lines above the status line."""
        with self._lock:
            self._send(f"{self._erasure()}{text}\n{self._status}")

    def show(self, status: str) -> None:
        """Replace the status line; where nothing can be redrawn, it is a line like any other."""
        if not self.redraws:
            self.write(status)
            return
        with self._lock:
            self._send(f"\r\x1b[K{status}")
            self._status = status

    def leave(self) -> None:
        """End the status line where it stands."""
        with self._lock:
            if self._status:
                self._send("\n")
            self._status = ""

    def _erasure(self) -> str:
        return "\r\x1b[K" if self._status else ""

    def _descriptor(self) -> int | None:
        # Asked each time: the number of a stream that was closed may be another file's by now.
        with contextlib.suppress(OSError, ValueError):
            return self._stream.fileno() if self._stream is not None else None
        return None

    def _encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _send(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if (descriptor := self._descriptor()) is not None:
                self._write(descriptor, text.encode(self._encoding(), "backslashreplace"))
            elif self._stream is not None:
                self._stream.write(text)

    def _write(self, descriptor: int, content: bytes) -> None:
        # Not through the stream's buffer: what is left in it is written again at exit, and if that fails, the exit
        # status is 120.
        while content and self._ready(descriptor):
            content = content[os.write(descriptor, content[:_PIPE_BUFFER]) :]

    def _ready(self, descriptor: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        self._stuck = not poll.poll(0 if self._stuck else _WRITE_PATIENCE * 1000)
        return not self._stuck


class LogHandler(logging.Handler):
    """Log records onto the console, above the progress bar, with nothing in them that a terminal would obey."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; a traceback keeps its lines."""
        self._console.write("\n".join(map(printable, self.format(record).split("\n"))))


class LineFormatter(logging.Formatter):
    """Log lines, with their time and their level where these are wanted."""

    def __init__(self, *, times: bool, levels: bool) -> None:
        super().__init__(f"{'%(asctime)s ' if times else ''}{'%(levelname)s: ' if levels else ''}%(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 (logging's)
        """Return the local time to the second, with its offset (ISO 8601)."""
        text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
        return f"{text[:-2]}:{text[-2:]}"


def open_closed_streams() -> frozenset[int]:
    """Open ``/dev/null`` on those of the descriptors 0 to 2 that are closed; return which these are.

    Otherwise a file that is opened later would get such a number, and what a library prints would be written into it.
    Reading and writing there still fail, and ``sys.stdin`` and the like stay None.
    """
    closed = set()
    for descriptor, mode in _CLOSED.items():
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(descriptor)
            with contextlib.suppress(OSError):  # There is no such device.
                # It gets the lowest number that is free, which is this one.
                os.set_inheritable(os.open(os.devnull, mode), True)  # noqa: FBT003
    return frozenset(closed)


def stream_of(name: str | os.PathLike[str]) -> int | None:
    """Return the descriptor among 0 to 2 that a file name stands for.

    >>> stream_of("/dev/stdin"), stream_of("/dev/fd/2"), stream_of("list")
    (0, 2, None)
    """
    match = re.fullmatch(r"/dev/(?:std(in|out|err)|fd/([012]))|/proc/self/fd/([012])", os.fspath(name))
    if match is None:
        return None
    return ("in", "out", "err").index(match[1]) if match[1] else int(match[2] or match[3])

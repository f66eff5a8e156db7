"""What people see of a run: its log lines, its summary and its progress bar."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self, TextIO

from image_loader.model import Outcome, Reason, Status
from image_loader.url import printable, redacted, shortened

_FAILURES_LOGGED = 10  # as warnings; a cron mail stays short, and the summary tells the rest
_EXAMPLES_LOGGED = 3  # of each reason
_COUNTED_HOSTS = 10_000  # pairs of reason and host, some 250 bytes each; hosts beyond are counted together
_HOSTS_SHOWN = 3  # for each reason in the summary
_FILE_COLUMN = 24
_WRITE_PATIENCE = 1.0  # seconds that a full pipe or a stopped terminal may hold up the run, once
_PIPE_BUFFER = 4096  # bytes that a pipe that is ready takes without blocking (POSIX PIPE_BUF, on Linux)
_REDRAW_INTERVAL = 0.1  # seconds
_PLAIN_INTERVAL = 10.0  # seconds, where a bar cannot be redrawn in place
_SPEED_SAMPLES = 100  # one at each redraw: speeds are those of the last ten seconds
_NARROWEST_GRAPH = 10  # columns; with less room the bar is words alone
_USUAL_WIDTH = 80  # columns, of a terminal that does not tell
_AUTHORITY = re.compile(r"[^:/]*://(?:[^/?#]*@)?([^/?#]*)")


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


def describe(outcome: Outcome) -> str:
    """Return the outcome's log line, free of secrets and of what a terminal would obey.

    >>> describe(Outcome(1, "http://host/a.jpg?key=1", "a.jpg", Status.SAVED, bytes=20_100, attempts=1, seconds=0.05))
    'saved    a.jpg                      20.1 kB    0.05 s  http://host/a.jpg?…'
    >>> describe(Outcome(17, "a.jpg", None, Status.FAILED, Reason.BAD_URL, "no scheme"))
    'failed   line 17                   bad-url: no scheme  a.jpg'
    """
    cells = [f"{outcome.status:<7}", f"{printable(outcome.file or f'line {outcome.line}'):<{_FILE_COLUMN}}"]
    if outcome.bytes is not None:
        cells.append(f"{size_text(outcome.bytes):>8}")
    if outcome.attempts:
        cells.append(f"{outcome.seconds:6.2f} s")
    if outcome.attempts > 1:
        cells.append(f"{outcome.attempts} attempts")
    if explanation := ": ".join(filter(None, (outcome.reason, outcome.detail))):
        cells.append(shortened(printable(explanation)))
    return "  ".join([*cells, shortened(redacted(outcome.url))])


class Tally:
    """Counts of a run's outcomes, in memory that does not grow with the list."""

    def __init__(self) -> None:
        self.bytes_saved = 0
        self._statuses: Counter[Status] = Counter()
        self._reasons: Counter[Reason] = Counter()
        self._hosts: defaultdict[Reason, Counter[str]] = defaultdict(Counter)
        self._pairs = 0

    @property
    def done(self) -> int:
        """How many lines have ended, in whatever way."""
        return self._statuses.total()

    @property
    def images(self) -> int:
        """How many lines ended with a current image in the directory."""
        return self._statuses[Status.SAVED] + self._statuses[Status.FRESH]

    @property
    def failed(self) -> int:
        """How many lines failed: none means success."""
        return self._statuses[Status.FAILED]

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self._statuses[outcome.status] += 1
        if outcome.status is Status.SAVED:
            self.bytes_saved += outcome.bytes or 0
        elif outcome.status is Status.FAILED and outcome.reason is not None:
            self._reasons[outcome.reason] += 1
            self._add_host(outcome.reason, outcome.url)

    def summary(self, seconds: float) -> list[str]:
        """Return the lines that end a run of so many seconds: its counts, then its failures by reason and host."""
        saved, fresh, skipped, failed = (self._statuses[status] for status in Status)
        lines = [
            f"{_urls(self.done)}: {saved} saved ({size_text(self.bytes_saved)}), "
            f"{fresh} fresh, {skipped} skipped, {failed} failed in {seconds:.1f} s"
        ]
        for reason, count in self._reasons.most_common():
            lines.append(f"{count:>8} {reason}")
            lines += self._host_lines(reason, count)
        return lines

    def _add_host(self, reason: Reason, url: str) -> None:
        authority = _AUTHORITY.match(url)
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
        self._warnings: Counter[Reason] = Counter()

    def write(self, outcome: Outcome) -> None:
        """Log one outcome; its line is made only where someone wants to see it."""
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
        # Past the stream's buffer: what it could not write it would try again at exit, and end the process with 120.
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


class _Speed(NamedTuple):
    """How many lines, images and bytes a second took; a line that failed is no image."""

    lines: float
    images: float
    bytes: float


class _Sample(NamedTuple):
    """How far the run was at one time, in seconds of the bar's clock."""

    time: float
    done: int
    images: int
    bytes_saved: int

    def per_second(self, since: _Sample) -> _Speed:
        """Return the speed from an earlier sample to this one.

        >>> _Sample(12.0, 150, 140, 1_000_000).per_second(_Sample(10.0, 100, 100, 0))
        _Speed(lines=25.0, images=20.0, bytes=500000.0)
        """
        seconds = self.time - since.time
        if seconds <= 0:
            return _Speed(0.0, 0.0, 0.0)
        return _Speed(
            (self.done - since.done) / seconds,
            (self.images - since.images) / seconds,
            (self.bytes_saved - since.bytes_saved) / seconds,
        )


class Bar:
    """The progress bar: how far the run is, how fast, and how long it will take.

    tqdm draws it and the console shows it: tqdm's own printing (4.70) raises from a broken standard error with its lock
    held, starts a thread, and its speed stands still while a run waits.
    """

    def __init__(
        self, console: Console, tally: Tally, total: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``total`` is the number of lines of the list; it may be set later, or stay unknown."""
        # Its own settings, of which none matters here: it would not be imported with one that is no number.
        for name in [name for name in os.environ if name.startswith("TQDM_")]:
            del os.environ[name]
        from tqdm import tqdm

        self._tqdm = tqdm
        self.total = total
        self._console = console
        self._tally = tally
        self._clock = clock
        self._interval = _REDRAW_INTERVAL if console.redraws else _PLAIN_INTERVAL
        self._start = self._sample()
        self._samples = deque([self._start], maxlen=_SPEED_SAMPLES)
        self._due = self._start.time + self._interval

    def tick(self, waits: float = 0.0) -> None:
        """Draw the bar anew if it is time; cheap enough to be called for each outcome, and while nothing comes.

        ``waits`` is for how many seconds nothing can come, since all that is left has to wait.
        """
        if self._clock() < self._due:
            return
        now = self._sample()
        self._console.show(self._line(self._samples[0], now, waits))
        self._samples.append(now)
        self._due = now.time + self._interval

    def close(self) -> None:
        """Leave the bar as it is at the end, with the speeds of the whole run."""
        self._console.show(self._line(self._start, self._sample(), final=True))
        self._console.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sample(self) -> _Sample:
        return _Sample(self._clock(), self._tally.done, self._tally.images, self._tally.bytes_saved)

    def _line(self, since: _Sample, now: _Sample, waits: float = 0.0, *, final: bool = False) -> str:
        # A list that grew while it was read has no known end any more.
        total = self.total if self.total is not None and now.done <= self.total else None
        speed = now.per_second(since)
        words = [
            _urls(now.done) if total is None else f"{now.done}/{total}",
            f"{speed.images:.{0 if speed.images >= 10 else 1}f} images/s",
            f"{size_text(speed.bytes)}/s",
            f"{self._tally.failed} failed",
            self._elapsed(now) if final or total is None else self._left(total - now.done, speed.lines),
        ]
        if waits >= 1:
            words[-1] = f"waits {self._tqdm.format_interval(waits)}"
        return self._drawn(now.done, total, words) if self._console.redraws else ", ".join(words)

    def _elapsed(self, now: _Sample) -> str:
        return f"in {self._tqdm.format_interval(now.time - self._start.time)}"

    def _left(self, lines: int, lines_per_second: float) -> str:
        return f"{self._tqdm.format_interval(lines / lines_per_second) if lines_per_second else '?'} left"

    def _drawn(self, done: int, total: int | None, words: Sequence[str]) -> str:
        # A line that fills the terminal would wrap on some; and "^C" is echoed behind it.
        width = max(self._console.width - 3, 1)
        text = _fitted(words, width)
        if total is None or len("100%|| ") + _NARROWEST_GRAPH + len(text) > width:
            return text[:width]
        return self._tqdm.format_meter(
            done,
            total,
            elapsed=0,
            ncols=width,
            ascii=not self._console.is_unicode,
            prefix=text,
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
        )


def _fitted(words: Sequence[str], width: int) -> str:
    """Join the words that have room: bytes per second are the first to go, then images per second.

    >>> words = ["2250/5000", "410 images/s", "8.1 MB/s", "3 failed", "00:07 left"]
    >>> for width in (60, 50, 40):
    ...     print(_fitted(words, width))
    2250/5000, 410 images/s, 8.1 MB/s, 3 failed, 00:07 left
    2250/5000, 410 images/s, 3 failed, 00:07 left
    2250/5000, 3 failed, 00:07 left
    """
    for expendable in (2, 1):
        if len(", ".join(words)) > width:
            words = [*words[:expendable], *words[expendable + 1 :]]
    return ", ".join(words)


def _urls(count: int) -> str:
    return "1 URL" if count == 1 else f"{count} URLs"

"""The progress bar: how far the run is, how fast, and how long it will take."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from image_loader.cli.console import Console
from image_loader.cli.summary import Tally, size_text, urls_text

_REDRAW_INTERVAL = 0.1  # seconds
_PLAIN_INTERVAL = 10.0  # seconds, where a bar cannot be redrawn in place
_SPEED_SAMPLES = 100  # one at each redraw: speeds are those of the last ten seconds
_NARROWEST_GRAPH = 10  # columns; with less room the bar is words alone


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
        # Settings of tqdm. None matters here, but its import fails if one is not a number.
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
        # The list grew while it was read: its length is not known any more.
        total = self.total if self.total is not None and now.done <= self.total else None
        speed = now.per_second(since)
        words = [
            urls_text(now.done) if total is None else f"{now.done}/{total}",
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

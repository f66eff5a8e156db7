"""A run in several processes: lines go to children by their hosts, and outcomes come back."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from queue import Empty

from image_loader import batch, outcome, processors
from image_loader.errors import LoaderError
from image_loader.inbox import Inbox
from image_loader.model import Line, Outcome, Reason
from image_loader.planner import beginning
from image_loader.processes.messages import End, LogRecord, Order, Part, Report, ToParent
from image_loader.processes.process import Child, Told
from image_loader.settings import Settings
from image_loader.url import part

_LOG = logging.getLogger("image_loader")
_WAIT = 0.1
"""How soon an interruption is noticed, in seconds."""
_GRACE = 1.8
"""Seconds for the children to end when the run is to; then they are killed."""
_LAST_GRACE = 1.0
"""Seconds to be gone for those that are killed; one that waits for a disk may take longer."""
_OLD = 0.5
"""Seconds between two looks at how many files can be made."""


def run(
    lines: Iterable[Sequence[Line] | None],
    settings: Settings,
    stop: threading.Event,
    tick: Callable[[float], None],
) -> Generator[Outcome, None, None]:
    """Yield the outcome of every line; see ``batch.run``."""
    with ExitStack() as stack:
        store = batch.opened(settings, stop, stack)
        yield from _Run(settings, store, tick).outcomes(lines, stop)


class _Run:
    """One run, in the main thread of the parent: it reads, sends lines to children, and takes outcomes."""

    def __init__(self, settings: Settings, store: batch.Store, tick: Callable[[float], None]) -> None:
        self._settings = settings
        self._directory, self._index = store
        self._tick = tick
        self._found = beginning(*store)
        self._known = self._index.known() if settings.delete else None
        # More of them than threads would have nothing to download with.
        self._count = min(settings.processes, settings.threads)
        self._inbox: Inbox[Told] = Inbox()
        self._children = [Child(self._inbox) for _ in range(self._count)]
        self._error: LoaderError | None = None
        self._is_ending = False
        self._pending = 0
        self._size = 0
        self._inodes = self._next_inodes = self._directory.available_inodes()
        self._looked = time.monotonic()

    def outcomes(self, lines: Iterable[Sequence[Line] | None], stop: threading.Event) -> Iterator[Outcome]:
        """Yield the outcomes; whatever ends the run, every line that was read is accounted for."""
        try:
            yield from self._downloaded(lines, stop)
        except Exception:
            yield from self._cut_off()
            raise
        finally:
            # Where nobody takes outcomes any more, there is nothing left to yield.
            self._cut_off()

    def _downloaded(self, lines: Iterable[Sequence[Line] | None], stop: threading.Event) -> Iterator[Outcome]:
        reading = batch.Reading(lines, stop)
        for group in reading:
            yield from self._hand_out(group or ())
            yield from self._advance(stop, lambda: self._has_room)
        for child in self._children:
            child.send(Order.FINISH)
        yield from self._advance(stop, lambda: not any(child.is_running for child in self._children))
        if stop.is_set():
            yield from self._cut_off()
        elif reading.is_whole:
            yield from self._delete(stop)
        reading.close()

    def _hand_out(self, group: Sequence[Line]) -> Iterator[Outcome]:
        """Send the lines of a group to their children; yield the outcomes of those that need none."""
        bad = [outcome.failed(line, Reason.BAD_URL, line.fault) for line in group if line.url is None]
        parts: defaultdict[int, list[Line]] = defaultdict(list)
        for line in group:
            if line.url is not None:
                parts[part(line.url.host, self._count)].append(line)
        for number, lines in parts.items():
            self._children[number].outstanding.update((line.number, line) for line in lines)
            self._pending += len(lines)
            self._size += sum(len(line.text) for line in lines)
        yield from bad
        for number, lines in parts.items():
            yield from self._send(number, lines)

    def _send(self, number: int, lines: Sequence[Line]) -> Iterator[Outcome]:
        child = self._children[number]
        if child.is_lost:
            yield from self._lost(child)
            return
        if not child.is_running:
            child.start(self._part(number))
        child.send(lines)

    def _part(self, number: int) -> Part:
        """Return the part of a child: what is limited is divided, so that all together take what one would take."""
        settings, count = self._settings, self._count
        share = settings._replace(
            threads=settings.threads // count + (number < settings.threads % count),
            connects=max(1, settings.connects // count),
            pool_hosts=max(1, settings.pool_hosts // count),
            processes=count,
            index_file=settings.index_file and self._index.path,
            delete=False,
        )
        own = processors.share(number, count) if settings.one_processor else frozenset()
        return Part(
            *(share, self._directory.held(), self._found, own),
            *(_LOG.getEffectiveLevel(), gc.get_threshold()[0], os.getpid()),
        )

    @property
    def _has_room(self) -> bool:
        """Whether the next lines may be read: no more are held, in all children together, than one process holds."""
        room = self._settings.window - self._settings.batch
        return self._pending <= room and (self._size <= self._settings.window_size or not self._pending)

    def _advance(self, stop: threading.Event, is_enough: Callable[[], bool]) -> Iterator[Outcome]:
        """Let downloads go on until it is enough."""
        while True:
            yield from self._received(0.0 if is_enough() else _WAIT)
            if self._error is not None:
                raise self._error
            self._check_inodes()
            self._tick(self._waits())
            if stop.is_set() or is_enough():
                return

    def _received(self, timeout: float) -> list[Outcome]:
        """Take in what children tell, wait at most ``timeout`` seconds for it; return the outcomes."""
        outcomes: list[Outcome] = []
        try:
            child, message = self._inbox.get(timeout=timeout)
            while True:
                outcomes += self._taken(child, message)
                child, message = self._inbox.get_nowait()
        except Empty:
            return outcomes

    def _taken(self, child: Child, message: ToParent | None) -> Sequence[Outcome]:
        if isinstance(message, Report):
            for record in message.records:
                _log(record)
            child.waits_until, child.wanted = message.waits_until, message.wanted
            self._note(child, (each.line for each in message.outcomes))
            return message.outcomes
        if isinstance(message, End):
            child.has_ended = True
            self._error = self._error or message.error
            self._index.seen.merge(message.seen)
            return ()
        child.clean_up()
        return self._lost(child) if child.is_lost and not self._is_ending else ()

    def _note(self, child: Child, numbers: Iterable[int]) -> list[Line]:
        """Take note that lines are told, and return them; without those that were told as interrupted before."""
        lines = [child.outstanding.pop(number) for number in numbers if number in child.outstanding]
        self._pending -= len(lines)
        self._size -= sum(len(line.text) for line in lines)
        return lines

    def _lost(self, child: Child) -> list[Outcome]:
        """Return the outcomes of the lines of a child that has died."""
        detail = f"the process that downloads from this host has died ({child.exit_text})"
        lines = self._note(child, list(child.outstanding))
        return [outcome.failed(line, Reason.INTERRUPTED, detail) for line in lines]

    def _waits(self) -> float:
        """Return for how many seconds nothing can begin or end in any child."""
        times = [child.waits_until for child in self._children if child.outstanding]
        return max(0.0, min(times, default=0.0) - time.monotonic())

    def _check_inodes(self) -> None:
        """Raise ``OutOfInodesError`` if there are not enough for what all children are going to make.

        What they tell is some moments old, and they make files meanwhile: it is compared with an older look.
        """
        wanted = sum(child.wanted for child in self._children)
        if self._inodes is not None and wanted > self._inodes:
            self._directory.check_inodes(wanted)
        if time.monotonic() - self._looked > _OLD:
            self._inodes, self._next_inodes = self._next_inodes, self._directory.available_inodes()
            self._looked = time.monotonic()

    def _delete(self, stop: threading.Event) -> Iterator[Outcome]:
        """Delete what is no longer in the list, which was read to its end."""
        if self._known is None:
            return
        if any(child.is_lost for child in self._children):
            _LOG.warning("--delete: a process has died; nothing was deleted")
            return
        from image_loader import removal

        yield from removal.delete(self._settings, self._directory, self._index, self._known, stop)

    def _cut_off(self) -> list[Outcome]:
        """End the children, and return the outcomes of all lines that were read and not told."""
        self._is_ending = True
        running = [child for child in self._children if child.is_running]
        for child in running:
            child.send(Order.STOP)
        outcomes, limit = [], time.monotonic() + _GRACE
        while (left := [child for child in running if child.is_running]) and time.monotonic() < limit + _LAST_GRACE:
            outcomes += self._received(_WAIT)
            if time.monotonic() > limit:
                for child in left:
                    child.kill()
        for child in self._children:
            outcomes += map(outcome.interrupted, self._note(child, list(child.outstanding)))
        return outcomes


def _log(record: LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.level):
        told = {"name": record.name, "levelno": record.level, "levelname": logging.getLevelName(record.level)}
        logger.handle(logging.makeLogRecord({**told, "msg": record.text, "created": record.created}))

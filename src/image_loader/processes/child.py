"""What runs in a child: its part of a run, lines come and reports go over a connection."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from queue import Empty
from typing import NoReturn

from image_loader import batch, processors
from image_loader.errors import LoaderError
from image_loader.inbox import Inbox
from image_loader.model import Line, Outcome
from image_loader.processes.messages import End, LogRecord, Order, Part, Report, ToChild

_LOG = logging.getLogger("image_loader")
_INTERVAL = 0.02
"""Seconds between two reports."""
_MOST = 200
"""Outcomes in one report."""
_IDLE = 0.1
"""Seconds to wait for lines where there is nothing else to do."""
_WATCH = 0.5
"""Seconds between two looks whether the parent lives: a fork of it may keep the connection open."""
_GRACE = 1.0
"""Seconds to clean up after the parent has died."""


def serve(descriptor: int) -> NoReturn:
    """Do the part of a run that comes over a connection, and end the process."""
    connection = Connection(descriptor)
    part: Part = connection.recv()
    gc.set_threshold(part.garbage)
    gc.enable()  # It was disabled for the start.
    allowed = processors.stay_on_one(part.processors) if part.settings.one_processor else frozenset()
    feed = _Feed(connection, part)
    reporter = _Reporter(connection)
    _LOG.setLevel(part.level)
    _LOG.addHandler(reporter)
    threading.Thread(target=feed.receive, daemon=True).start()
    status = 1
    try:
        reporter.end(_work(part, feed, reporter, allowed))
        status = 0
    except Exception:
        _LOG.exception("unexpected, please report: the end of a process that downloads")
        reporter.report()
        raise
    finally:
        # As the command ends: not waiting for threads that are blocked in a name look-up.
        os._exit(status)


def _work(part: Part, feed: _Feed, reporter: _Reporter, allowed: frozenset[int]) -> End:
    """Download; return how it ended."""
    try:
        with ExitStack() as stack:
            store = batch.opened(part.settings, feed.stop, stack, part.held)
            run = reporter.run = batch.Run(part.settings, store, part.found, stack, reporter.tick, processors=allowed)
            for outcome in run.outcomes(feed.groups(reporter), feed.stop):
                reporter.add(outcome)
            seen = store[1].seen.parts()
    except LoaderError as error:
        return End(error, {})
    return End(None, seen)


class _Feed:
    """The lines that come."""

    def __init__(self, connection: Connection, part: Part) -> None:
        self._connection = connection
        self._parent = part.parent
        self._batch = part.settings.batch
        self._come: Inbox[ToChild] = Inbox()
        self.stop = threading.Event()

    def receive(self) -> None:
        """Receive lines until the run is to end; where the parent is gone, end the process."""
        with suppress(EOFError, OSError):
            while self._parent_lives():
                message: ToChild = self._connection.recv()
                if message is Order.STOP:
                    self.stop.set()
                self._come.put(message)
        self.stop.set()
        time.sleep(_GRACE)
        os._exit(1)

    def groups(self, reporter: _Reporter) -> Iterator[list[Line] | None]:
        """Yield the lines, in groups; None while there are none."""
        held: list[Line] = []
        count, more = 0, True
        while more or held:
            # Where downloads are under way, the run waits for them; else for lines.
            wait = _IDLE if reporter.count == count and not held else 0.0
            while more and len(held) < self._batch:
                try:
                    message = self._come.get(timeout=wait)
                except Empty:
                    break
                wait = 0.0
                if isinstance(message, Order):
                    more = False
                else:
                    held += message
            group, held = held[: self._batch], held[self._batch :]
            count += len(group)
            yield group or None

    def _parent_lives(self) -> bool:
        """Wait for a message; False where none can come any more."""
        while not self._connection.poll(_WATCH):
            if os.getppid() != self._parent:
                return False
        return True


class _Reporter(logging.Handler):
    """Gathers outcomes and log records, and reports them; any thread may log."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.run: batch.Run | None = None
        self.count = 0
        self._connection = connection
        self._records: deque[LogRecord] = deque()
        self._outcomes: list[Outcome] = []
        self._state = (0.0, 0)
        self._reported = (0.0, 0)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Gather a record of the log."""
        self._records.append(LogRecord(record.name, record.levelno, self.format(record), record.created))

    def add(self, outcome: Outcome) -> None:
        """Gather an outcome."""
        self.count += 1
        self._outcomes.append(outcome)
        if len(self._outcomes) >= _MOST:
            self.report()

    def tick(self, waits: float) -> None:
        """Report, if there is something new and the last report is not of this moment."""
        now = time.monotonic()
        if now < self._next:
            return
        # To a tenth of a second, so that it does not seem to change.
        self._state = (round(now + waits, 1) if waits else 0.0, self.run.wanted if self.run else 0)
        if self._outcomes or self._records or self._state != self._reported:
            self.report()
            self._next = now + _INTERVAL

    def end(self, end: End) -> None:
        """Report the rest, and the end."""
        self.report()
        self._connection.send(end)

    def report(self) -> None:
        """Report what was gathered."""
        records = [self._records.popleft() for _ in range(len(self._records))]
        outcomes, self._outcomes = self._outcomes, []
        self._reported = self._state
        self._connection.send(Report(records, outcomes, *self._state))

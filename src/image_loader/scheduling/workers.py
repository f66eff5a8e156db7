"""The workers and their turns: several jobs of one host, done one after the other on one connection."""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from image_loader.errors import OutOfThreadsError, PythonEndsError
from image_loader.model import Failure, Job, Result
from image_loader.scheduling.host import Host, Task
from image_loader.transport import Connection

_LOG = logging.getLogger(__name__)

Attempt = Callable[[Job, Connection], Result | Job]
"""Makes one attempt at a job, or the next part of one, on a connection that stands."""
Clock = Callable[[], float]


Ended = tuple[Task, Result | Job, float, float]
"""How an attempt, or a part of one, ended: when it was started, and the seconds that it took, by one clock."""


class TurnOver:
    """A worker is done with its turn; ``error`` is what ended it early, and is no failure of a job."""

    __match_args__ = ("turn", "error")

    def __init__(self, turn: Turn, error: BaseException | None) -> None:
        self.turn = turn
        self.error = error


class TurnNearlyOver:
    """A worker begins with the last job of its turn, and could be given more."""

    __match_args__ = ("turn",)

    def __init__(self, turn: Turn) -> None:
        self.turn = turn


class Tools:
    """What all turns use."""

    def __init__(
        self, attempt: Attempt, clock: Clock, ended: deque[Ended], tell: Callable[[TurnOver | TurnNearlyOver], None]
    ) -> None:
        self.attempt = attempt
        """Makes one attempt."""
        self.clock = clock
        """The scheduler's clock."""
        self.ended = ended
        """Takes the attempts that have ended; adding one wakes no thread."""
        self.tell = tell
        """Tells the scheduling thread, and wakes it."""


class Turn:
    """Jobs of one host for one worker; those that it has not begun can be recalled at any time.

    They stand in a deque: two threads can take from its ends without a lock. ``begun`` and ``current`` are written by
    the worker, and read by the scheduling thread.
    """

    __slots__ = ("_is_dropped", "_tools", "_waiting", "begun", "connection", "current", "host")

    def __init__(self, host: Host, connection: Connection, tasks: Iterable[Task], tools: Tools) -> None:
        self.host = host
        self.connection = connection
        self.begun = math.inf
        """When the current attempt was begun; infinity before the first one."""
        self.current: Task | None = None
        """The task whose attempt is under way."""
        self._waiting = deque(tasks)
        self._tools = tools
        self._is_dropped = False

    def __repr__(self) -> str:
        """Return its host, and how many jobs it has left."""
        return f"<Turn at {self.host.origin}: {len(self._waiting)} wait>"

    def work(self) -> None:
        """Make an attempt at each job, until one fails or the connection is spent; the worker's part.

        An exception is reported with the end of the turn.
        """
        ended, tell = self._tools.ended, self._tools.tell
        try:
            for each in self._attempts():
                ended.append(each)  # At once, and not when the turn is over: other threads take it from there.
        finally:
            tell(TurnOver(self, sys.exception()))
            if self._is_dropped:
                self.connection.close()

    def _attempts(self) -> Iterator[Ended]:
        attempt, clock = self._tools.attempt, self._tools.clock
        while (task := self._next()) is not None:
            self.begun = clock()
            if not self._waiting and self.host.waiting:
                self._tools.tell(TurnNearlyOver(self))
            result = attempt(task.job, self.connection)
            yield task, result, self.begun, clock() - self.begun
            self.current = None
            if isinstance(result, (Failure, Job)) or not self.connection.usable:
                return

    def extend(self, tasks: Iterable[Task]) -> None:
        """Add jobs; should the worker have left meanwhile, they can be recalled."""
        self._waiting.extend(tasks)

    def recalled(self) -> Iterator[Task]:
        """Yield the jobs that no attempt was begun at, the last one first; they are the turn's no more."""
        while self._waiting:
            with suppress(IndexError):
                yield self._waiting.pop()

    def drop(self) -> None:
        """Have its connection closed when its worker is done, or now if none has begun: nobody waits for it."""
        self._is_dropped = True
        if self.begun == math.inf:
            self.connection.close()

    def _next(self) -> Task | None:
        try:
            # Twice: a job that is waiting no more is the current one already, for who looks from another thread.
            self.current = self._waiting[0]
            self.current = self._waiting.popleft()
        except IndexError:
            self.current = None
        return self.current


class Workers:
    """A pool of up to ``most`` threads. If no more can be started, those that run do all the work."""

    def __init__(self, most: int) -> None:
        self._executor = ThreadPoolExecutor(most, "image_loader")
        self._begun = False
        self._short = False

    def submit(self, work: Callable[[], None]) -> None:
        """Have a thread do some work; ``OutOfThreadsError`` where there is not even one, ``PythonEndsError``."""
        try:
            self._executor.submit(work)
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise PythonEndsError from error
            # The work is queued before a thread for it is started (CPython 3.11 to 3.14): any thread will do it.
            if not self._begun:
                raise OutOfThreadsError from error
            if not self._short:
                _LOG.info("out of threads (ulimit -u, ulimit -v): fewer downloads at once")
            self._short = True
        self._begun = True

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

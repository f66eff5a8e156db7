"""Which job runs when: the loop that starts what can start, waits, and takes in what has ended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from queue import Empty

from image_loader.errors import DownloadError, LoaderError
from image_loader.model import INTERRUPTED, Failure, Job
from image_loader.scheduling.dispatch import Connected, Dispatch, Inbox, Message
from image_loader.scheduling.health import Policy
from image_loader.scheduling.jobs import Jobs
from image_loader.scheduling.judge import Judge
from image_loader.scheduling.host import Task
from image_loader.scheduling.workers import Clock, Turn, TurnNearlyOver, TurnOver
from image_loader.settings import Settings


class Scheduler:
    """Takes jobs and hands their last results back; used by one thread alone."""

    def __init__(
        self,
        dispatch: Dispatch,
        inbox: Inbox,
        settings: Settings,
        *,
        clock: Clock = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``inbox`` has the messages of other threads; ``chance`` is the jitter of retries, from 0 to 1."""
        self._clock = clock
        self._inbox = inbox
        self._dispatch = dispatch
        self._jobs = Jobs(_policy(settings), self._dispatch)
        self._judge = Judge(settings, self._jobs, self._dispatch, chance)
        self.error: LoaderError | None = None

    @property
    def pending(self) -> int:
        """How many jobs have not ended."""
        return self._jobs.pending

    @property
    def hosts_ahead(self) -> int:
        """How many hosts wait for a connection, and have not failed yet."""
        return self._dispatch.hosts_ahead

    def add(self, jobs: Sequence[Job]) -> None:
        """Take jobs; each runs as soon as the limits let it."""
        self._jobs.add(jobs, self._clock())

    def down_failure(self, origin: str) -> Failure | None:
        """Return what becomes of the jobs of a host that is down; None for any other, and once it is to be asked."""
        return self._jobs.hosts.down_failure(origin, self._clock())

    def advance(self, timeout: float) -> list[Task]:
        """Start what can start, wait at most ``timeout`` seconds for something to end, and return what has ended.

        A ``LoaderError`` becomes the ``error``; from then on nothing is started. Raises what else a worker has raised.
        """
        now = self._clock()
        for turn in self._dispatch.slow_turns(now):
            self._jobs.put_back(turn, now)
        if self.error is None:
            self._dispatch.start(now, self._clock)
        self._collect(0.0 if self._jobs.finished or not self.pending else self._pause(timeout))
        now = self._clock()
        self._jobs.fire(now)
        if self.error is None:
            self._dispatch.start(now, self._clock)
        return self._taken()

    def abandon(self) -> list[Task]:
        """Give up every job that is not running; return those. From here on nothing is started."""
        now = self._clock()
        self._jobs.end(now)
        for host in list(self._jobs.hosts):
            for task in host.take_all():
                self._jobs.finish(task, INTERRUPTED, now)
            self._dispatch.release(host)
        self._dispatch.clear()
        return self._taken()

    def drop_running(self) -> list[Task]:
        """Wait no longer for the jobs that run; return them as given up. The other connections are given back."""
        self._collect(0.0)
        now = self._clock()
        for turn in self._dispatch.turns:
            self._jobs.put_back(turn, now)
            self._give_up_current(turn, now)
            turn.drop()
        self._dispatch.turns.clear()
        for host in self._jobs.hosts:
            self._dispatch.release(host)
        return self._taken()

    def settle(self, timeout: float) -> list[Task]:
        """Wait at most ``timeout`` seconds for a turn to be over; return what has ended."""
        self._collect(timeout)
        return self._taken()

    def waits(self) -> float:
        """Return for how many seconds nothing can begin or end: every job waits for its host or its next attempt."""
        if not self._dispatch.is_waiting:
            return 0.0
        at = self._dispatch.timers.next_at()
        return 0.0 if at is None else max(0.0, at - self._clock())

    @property
    def is_about_to_start(self) -> bool:
        """Whether a connection is being made that is likely to stand in a moment."""
        return self._dispatch.is_about_to_start(self._clock())

    @property
    def running(self) -> int:
        """How many attempts are under way, or over but not taken in."""
        return len(self._dispatch.turns) + len(self._dispatch.ended)

    def _taken(self) -> list[Task]:
        finished, self._jobs.finished = self._jobs.finished, []
        return finished

    # Waiting and collecting.

    def _pause(self, timeout: float) -> float:
        """Return the seconds to wait: less than ``timeout`` where something is due before."""
        now = self._clock()
        times = [at for at in (self._dispatch.timers.next_at(), self._dispatch.next_at()) if at is not None]
        return max(0.0, min([timeout, *(at - now for at in times)]))

    def _collect(self, timeout: float) -> None:
        """Take in all that has ended; wait for the first message."""
        try:
            message = self._inbox.get(timeout=timeout) if timeout else self._inbox.get_nowait()
            while True:
                self._handle(message)
                message = self._inbox.get_nowait()
        except Empty:
            self._take_in(self._clock())

    def _handle(self, message: Message) -> None:
        now = self._clock()
        self._take_in(now)
        match message:
            case TurnNearlyOver(turn):
                if self.error is None:
                    self._dispatch.extend(turn, now)
            case TurnOver(turn, error):
                self._end(turn, error, now)
            case Connected():
                self._connected(message, now)

    def _take_in(self, now: float) -> None:
        ended = self._dispatch.ended
        while ended:
            self._judge.conclude(ended.popleft(), now)

    def _end(self, turn: Turn, error: BaseException | None, now: float) -> None:
        if not self._dispatch.end(turn):
            return
        if error is not None:
            self._fail_turn(turn, error, now)
        self._jobs.put_back(turn, now)
        self._jobs.settle_host(turn.host, now)

    def _connected(self, connected: Connected, now: float) -> None:
        host = self._jobs.hosts.get(connected.origin, now)
        result = connected.result
        self._dispatch.connected(host, None if isinstance(result, Exception) else result)
        if isinstance(result, LoaderError):
            self._fail_run(result, now)
        elif isinstance(result, DownloadError) and host.waiting and not self._jobs.is_ending:
            # The job that has waited longest is charged with it.
            task = host.waiting.pop(0)
            task.attempts += 1
            task.seconds += now - connected.started
            self._judge.judge(task, result.failure, connected.started, now, connecting=True)
        self._jobs.settle_host(host, now)

    def _fail_turn(self, turn: Turn, error: BaseException, now: float) -> None:
        """Have the run end with what ended a turn; raise what should not have happened."""
        self._give_up_current(turn, now)
        if not isinstance(error, LoaderError):
            self._jobs.put_back(turn, now)
            raise error
        self._fail_run(error, now)

    def _fail_run(self, error: LoaderError, now: float) -> None:
        """Have the run end with an error, the first one; from here on nothing is started and nothing tried again."""
        self.error = self.error or error
        self._jobs.end(now)

    def _give_up_current(self, turn: Turn, now: float) -> None:
        if turn.current is not None:
            self._jobs.finish(turn.current, INTERRUPTED, now)


def _policy(settings: Settings) -> Policy:
    return Policy(
        settings.per_host,
        settings.host_failures,
        settings.host_patience,
        settings.retry_after_cap,
        settings.delay,
    )

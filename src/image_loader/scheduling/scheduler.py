"""Which job runs when: the loop that starts what can start, waits, and takes in what has ended."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from queue import Empty

from image_loader.errors import DownloadError, LoaderError
from image_loader.model import Failure, Job
from image_loader.scheduling.dispatch import Connected, Dispatch, Message
from image_loader.scheduling.health import Policy
from image_loader.scheduling.host import Task
from image_loader.scheduling.jobs import Jobs
from image_loader.scheduling.judge import Judge
from image_loader.scheduling.workers import Turn, TurnNearlyOver, TurnOver
from image_loader.settings import Settings

_LOG = logging.getLogger(__name__)


class Scheduler:
    """Takes jobs and hands their last results back; used by one thread alone."""

    def __init__(
        self,
        dispatch: Dispatch,
        settings: Settings,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``chance`` is the jitter of retries, from 0 to 1."""
        self._clock = dispatch.clock
        self._inbox = dispatch.inbox
        self._dispatch = dispatch
        self._ended = dispatch.ended
        self._jobs = Jobs(_policy(settings), self._dispatch)
        self._judge = Judge(settings, self._jobs, self._dispatch, chance)
        self.error: BaseException | None = None
        """What is to end the run, once there is something."""

    @property
    def pending(self) -> int:
        """How many jobs have not ended."""
        return self._jobs.pending

    @property
    def hosts_ahead(self) -> int:
        """How many hosts wait for a connection, and have not failed yet."""
        return self._dispatch.hosts_ahead

    def add(self, jobs: Sequence[Job]) -> None:
        """Take jobs; each runs as soon as the limits let it. Raises nothing."""
        self._jobs.add(jobs, self._clock())

    def down_failure(self, origin: str) -> Failure | None:
        """Return the failure for the jobs of a host that is down.

        None if it is not down, or if it is time to ask it again.
        """
        return self._jobs.hosts.down_failure(origin, self._clock())

    def advance(self, timeout: float) -> list[Task]:
        """Start what can start, wait at most ``timeout`` seconds for something to end, and return what has ended.

        What should not have happened, and any ``LoaderError``, becomes the ``error``; from then on nothing is started.
        """
        now = self._clock()
        for turn in self._dispatch.slow_turns(now):
            self._jobs.recall(turn, now)
            self._dispatch.line_up(turn.host, now)
        if self.error is None:
            self._dispatch.start(now)
        self._collect(0.0 if self._jobs.finished or not self.pending else self._pause(timeout))
        now = self._clock()
        self._jobs.fire(now)
        if self.error is None:
            self._dispatch.start(now)
        return self._jobs.take_finished()

    def abandon(self) -> list[Task]:
        """Give up every job that is not running; return those. From here on nothing is started."""
        self._jobs.abandon(self._clock())
        return self._jobs.take_finished()

    def drop_running(self) -> list[Task]:
        """Wait no longer for the jobs that run, after ``abandon``; return them as given up."""
        self._collect(0.0)
        self._jobs.drop_running(self._clock())
        return self._jobs.take_finished()

    def settle(self, timeout: float) -> list[Task]:
        """Wait at most ``timeout`` seconds for a turn to be over; return what has ended."""
        self._collect(timeout)
        return self._jobs.take_finished()

    def waits(self) -> float:
        """Return the seconds until the next timer, if every job waits for one; else 0."""
        at = self._dispatch.next_at() if self._dispatch.is_waiting else None
        return 0.0 if at is None else max(0.0, at - self._clock())

    @property
    def is_about_to_start(self) -> bool:
        """Whether a connection is being made that is likely to stand in a moment."""
        return self._dispatch.is_about_to_start(self._clock())

    @property
    def running(self) -> int:
        """How many attempts are under way, or over but not taken in."""
        return len(self._dispatch.turns) + len(self._ended)

    # Waiting and collecting -------------------------------------------------------------------------------------------

    def _pause(self, timeout: float) -> float:
        """Return the seconds to wait: less than ``timeout`` where something is due before."""
        at = self._dispatch.next_at()
        return timeout if at is None else max(0.0, min(timeout, at - self._clock()))

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
                self._end_turn(turn, error, now)
            case Connected():
                self._end_connect(message, now)

    def _take_in(self, now: float) -> None:
        ended = self._ended
        while ended:
            self._judge.conclude(ended.popleft(), now)

    def _end_turn(self, turn: Turn, error: BaseException | None, now: float) -> None:
        if not self._dispatch.end_turn(turn):
            return
        if error is not None:
            self._jobs.interrupt(turn, now)
            self._fail_run(error, now)
        self._jobs.recall(turn, now)
        self._jobs.settle_host(turn.host, now)

    def _end_connect(self, connected: Connected, now: float) -> None:
        host = self._jobs.hosts.get(connected.origin, now)
        result = connected.result
        self._dispatch.end_connect(host, None if isinstance(result, Exception) else result)
        if isinstance(result, LoaderError):
            self._fail_run(result, now)
        elif isinstance(result, DownloadError) and host.waiting and not self._jobs.is_ending:
            # The job at the front is charged.
            task = host.take_first()
            task.attempts += 1
            task.seconds += now - connected.started
            self._judge.judge(task, result.failure, connected.started, now, connecting=True)
        self._jobs.settle_host(host, now)

    def _fail_run(self, error: BaseException, now: float) -> None:
        """Have the run end with an error, the first one; from here on nothing is started and nothing tried again."""
        if self._jobs.is_ending and not isinstance(error, LoaderError):
            _LOG.error("unexpected, please report", exc_info=error)  # Nobody else tells it.
        self.error = self.error or error
        self._jobs.end(now)


def _policy(settings: Settings) -> Policy:
    return Policy(
        settings.per_host,
        settings.host_failures,
        settings.host_patience,
        settings.retry_after_cap,
        settings.delay,
    )

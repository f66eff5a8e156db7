"""Which job runs when: what becomes of each job, and what each end of an attempt says of its host."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from queue import Empty

from image_loader.errors import DownloadError, LoaderError
from image_loader.model import Blame, Failure, Job, Reason, Result, Settings, Unfinished
from image_loader.scheduling import retry
from image_loader.scheduling.dispatch import Connected, Connections, Dispatch, Inbox
from image_loader.scheduling.health import Health, Policy, State
from image_loader.scheduling.hosts import Hosts, host_down
from image_loader.scheduling.queue import Host, Task
from image_loader.scheduling.slots import connects_at_most
from image_loader.scheduling.timers import Timers
from image_loader.scheduling.workers import Attempt, Clock, Ended, Turn, TurnNearlyOver, TurnOver, Workers

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0


class Scheduler:
    """Takes jobs and hands their last results back; used by one thread alone."""

    def __init__(
        self,
        workers: Workers,
        attempt: Attempt,
        connections: Connections,
        inbox: Inbox,
        settings: Settings,
        *,
        clock: Clock = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Other threads tell what they did in ``inbox``; ``chance`` is the jitter of retries, from 0 to 1."""
        policy = Policy(settings.per_host, settings.host_failures, settings.host_patience, settings.retry_after_cap)
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._inbox = inbox
        self._hosts = Hosts(policy)
        self._timers = Timers()
        self._dispatch = Dispatch(
            workers, attempt, connections, inbox, threads=settings.threads, connects=connects_at_most(settings)
        )
        self._finished: list[Task] = []
        self._ending = False
        self.pending = 0
        self.error: LoaderError | None = None

    def add(self, jobs: Sequence[Job]) -> None:
        """Take jobs; each runs as soon as the limits let it."""
        now = self._clock()
        for job in jobs:
            self.pending += 1
            host = self._hosts.get(job.url.origin, now)
            task = Task(job, host)
            if self._is_refused(task, host, now):
                continue
            host.waiting.append(task)
            self._dispatch.line_up(host, now)

    def down_failure(self, origin: str) -> Failure | None:
        """Return what becomes of the jobs of a host that is down; None for any other, and once it is to be asked."""
        return self._hosts.down_failure(origin, self._clock())

    def advance(self, timeout: float) -> list[Task]:
        """Start what can start, wait at most ``timeout`` seconds for something to end, and return what has ended."""
        now = self._clock()
        for turn in self._dispatch.slow_turns(now):
            self._put_back(turn, now)
        self._dispatch.start(now, self._clock)
        self._collect(0.0 if self._finished or not self.pending else self._pause(timeout))
        now = self._clock()
        self._fire(now)
        self._dispatch.start(now, self._clock)
        return self._taken()

    def abandon(self) -> list[Task]:
        """Give up every job that is not running; return those. From here on nothing is started."""
        self._ending = True
        now = self._clock()
        for turn in self._dispatch.turns:
            self._put_back(turn, now)
        for host in list(self._hosts):
            for task in host.take_all():
                self._finish(task, _interrupted())
        self._timers.clear()
        return self._taken()

    def drop_running(self) -> list[Task]:
        """Wait no longer for the jobs that run; return them as given up."""
        now = self._clock()
        self._take_in(now)
        for turn in self._dispatch.turns:
            self._put_back(turn, now)
            self._give_up_current(turn)
        self._dispatch.turns.clear()
        return self._taken()

    def settle(self, timeout: float) -> list[Task]:
        """Wait at most ``timeout`` seconds for a turn to be over; return what has ended."""
        self._collect(timeout)
        return self._taken()

    def waits(self) -> float:
        """Return for how many seconds nothing can begin or end: every job waits for its host or its next attempt."""
        if not self._dispatch.is_waiting:
            return 0.0
        at = self._timers.next_at()
        return 0.0 if at is None else max(0.0, at - self._clock())

    @property
    def known_hosts(self) -> int:
        """How many hosts something is known of."""
        return len(self._hosts)

    @property
    def running(self) -> int:
        """How many attempts are under way, or over but not taken in."""
        return len(self._dispatch.turns) + len(self._dispatch.ended)

    def _taken(self) -> list[Task]:
        finished, self._finished = self._finished, []
        return finished

    def _is_refused(self, task: Task, host: Host, now: float) -> bool:
        """Finish a task whose host is down; let one through where the host is to be asked again."""
        if host.health.ask_at is None:
            return False
        failure = self._hosts.down_failure(host.origin, now)
        if failure is None:
            host.health = host.health.asked(now)
            return False
        self._finish(task, failure)
        return True

    # Waiting and collecting.

    def _pause(self, timeout: float) -> float:
        """Return the seconds to wait: less than ``timeout`` where something is due before."""
        now = self._clock()
        times = [at for at in (self._timers.next_at(), self._dispatch.next_at()) if at is not None]
        return max(0.0, min([timeout, *(at - now for at in times)]))

    def _collect(self, timeout: float) -> None:
        """Take in all that has ended; wait for the first message."""
        try:
            message = self._inbox.get(timeout=timeout) if timeout else self._inbox.get_nowait()
            while True:
                self._heed(message)
                message = self._inbox.get_nowait()
        except Empty:
            self._take_in(self._clock())

    def _heed(self, message: Connected | TurnOver | TurnNearlyOver) -> None:
        now = self._clock()
        self._take_in(now)
        match message:
            case TurnNearlyOver(turn):
                self._dispatch.extend(turn, now)
            case TurnOver(turn, error):
                self._end(turn, error, now)
            case Connected():
                self._connected(message, now)

    def _take_in(self, now: float) -> None:
        ended = self._dispatch.ended
        while ended:
            self._conclude(ended.popleft(), now)

    def _end(self, turn: Turn, error: BaseException | None, now: float) -> None:
        if not self._dispatch.end(turn):
            return
        if isinstance(error, LoaderError):
            self.error = self.error or error
            self._give_up_current(turn)
        elif error is not None:
            raise error
        self._put_back(turn, now)
        self._settle_host(turn.host, now)

    def _connected(self, connected: Connected, now: float) -> None:
        host = self._hosts.get(connected.origin, now)
        result = connected.result
        self._dispatch.connected(host, None if isinstance(result, Exception) else result)
        if isinstance(result, LoaderError):
            self.error = self.error or result
        elif isinstance(result, DownloadError) and host.waiting and not self._ending:
            # The job that has waited longest is charged with it.
            task = host.waiting.popleft()
            task.attempts += 1
            task.seconds += now - connected.started
            self._judge(task, result.failure, connected.started, now, connecting=True)
        self._settle_host(host, now)

    def _settle_host(self, host: Host, now: float) -> None:
        """Have a host go on with what it has, or be forgotten."""
        self._dispatch.line_up(host, now)
        if host.connections and not host.waits_for_worker:
            self._dispatch.release(host)
        self._hosts.forget_if_idle(host, now)

    def _put_back(self, turn: Turn, now: float) -> None:
        """Have the jobs that a turn did not come to wait again, in front."""
        host = turn.host
        for task in turn.recalled():
            if self._ending or self.error is not None:
                self._finish(task, _interrupted())
            elif host.health.ask_at is not None:
                self._finish(task, host_down())
            else:
                host.waiting.appendleft(task)
        self._dispatch.line_up(host, now)

    def _give_up_current(self, turn: Turn) -> None:
        if turn.current is not None:
            self._finish(turn.current, _interrupted())

    # Judging.

    def _conclude(self, ended: Ended, now: float) -> None:
        """Decide what becomes of a task whose attempt, or part of one, has ended."""
        task, result = ended.task, ended.result
        task.seconds += ended.seconds
        if task.finished:
            return
        if isinstance(result, Unfinished):
            self._go_on(task, result.job, now)
            return
        task.attempts += 1
        if isinstance(result, Failure):
            self._judge(task, result, ended.started, now)
            return
        task.host.keep_pace(ended.seconds)
        self._answered(task.host, ended.started, now)
        self._finish(task, result)
        self._dispatch.grow()

    def _go_on(self, task: Task, job: Job, now: float) -> None:
        """Have an attempt go on at the host that it asks next."""
        task.job = job
        if job.hop is not None and job.hop.url.origin != task.host.origin:
            self._answered(task.host, now, now)
            self._move(task, self._hosts.get(job.hop.url.origin, now), now)
        if self._ending:
            self._finish(task, _interrupted())
        elif not self._is_refused(task, task.host, now):
            task.host.waiting.appendleft(task)
            self._dispatch.line_up(task.host, now)

    def _move(self, task: Task, host: Host, now: float) -> None:
        """Have another host be asked next; while that one answers, the place at the one of the list stays taken."""
        former, home = task.host, self._hosts.get(task.job.url.origin, now)
        self._leave(task, now)
        task.host = host
        if host is not home and host.successes:
            task.guest_of = home
            home.away += 1
        if former is not host:
            self._settle_host(former, now)

    def _leave(self, task: Task, now: float) -> None:
        """Give up the place that a task keeps at the host of the list."""
        if task.guest_of is not None:
            home, task.guest_of = task.guest_of, None
            home.away -= 1
            self._settle_host(home, now)

    def _judge(self, task: Task, failure: Failure, started: float, now: float, *, connecting: bool = False) -> None:
        """Decide whether a task that failed is tried again, and what that says of its host."""
        task.result = failure
        if failure.blame is Blame.PROCESS and not self._ending and not self._dispatch.is_alone(task):
            self._dispatch.shrink(started, now, connecting=connecting)
            task.attempts -= 1
            self._retry(task, _FIRST_PAUSE * self._chance(), now)
        elif retry.is_refusal(failure):
            self._refused(task, failure, started, now)
        elif failure.blame is Blame.HOST:
            self._missed(task, failure, started, now)
        else:
            if failure.blame is Blame.IMAGE:
                self._note_failure(task.host, failure, started, now)
            self._fail(task, failure, now)

    def _fail(self, task: Task, failure: Failure, now: float) -> None:
        """Have a task that failed be tried again, or be done."""
        task.failures += 1
        spent = task.failures > self._settings.retries or task.host.health.ask_at is not None or self._ending
        if not failure.retryable or spent:
            self._finish(task, failure)
            return
        delay = retry.delay(task.failures, self._settings.backoff_cap, self._chance())
        _LOG.debug("line %d: %s, again in %.1f s: %s", task.job.line, failure.reason, delay, failure.detail)
        self._retry(task, delay, now)

    def _retry(self, task: Task, delay: float, now: float) -> None:
        """Have a task begin anew after so many seconds; meanwhile it holds no worker."""
        failure = task.result
        resume = failure.resume if isinstance(failure, Failure) else None
        task.job = task.job.anew(resume)
        home = self._hosts.get(task.job.url.origin, now)
        home.retrying.add(task)
        self._move(task, home, now)
        self._timers.set_task(task, now + delay)

    def _finish(self, task: Task, result: Result) -> None:
        if task.finished:
            return
        task.finished = True
        task.result = result
        self.pending -= 1
        self._finished.append(task)
        now = self._clock()
        self._leave(task, now)
        self._hosts.forget_if_idle(task.host, now)

    # Hosts.

    def _answered(self, host: Host, started: float, now: float) -> None:
        """Note that a host let a request through."""
        host.successes += 1
        if not host.health.is_settled:
            self._change(host, host.health.answered(now, started, host.successes), now)

    def _note_failure(self, host: Host, failure: Failure, started: float, now: float) -> None:
        """Note that a host answered, though not with an image."""
        if failure.retryable:
            self._change(host, host.health.reached(), now)
        else:
            self._answered(host, started, now)

    def _refused(self, task: Task, failure: Failure, started: float, now: float) -> None:
        """Have a task that a busy host refused wait for its turn again, behind those that were not asked for yet."""
        host = task.host
        if host.successes > task.seen:
            task.refusals, task.seen = task.refusals + 1, host.successes
        self._change(host, host.health.refused(now, started, failure.retry_after, host.successes), now)
        if self._ending or host.health.ask_at is not None or task.refusals > retry.REFUSALS:
            self._finish(task, failure)
        elif host.origin == task.job.url.origin:
            task.job = task.job.anew(failure.resume)
            host.waiting.append(task)
            self._settle_host(host, now)
        else:
            self._retry(task, max(_FIRST_PAUSE, host.health.opens_at - now), now)
        self._give_up_if_over(host, now)

    def _missed(self, task: Task, failure: Failure, started: float, now: float) -> None:
        """Note that a host did not answer."""
        host = task.host
        self._change(host, host.health.missed(now, started), now)
        self._fail(task, failure, now)
        self._give_up_if_over(host, now)

    def _change(self, host: Host, health: Health, now: float) -> None:
        """Take over what is known of a host now."""
        former, host.health = host.health, health
        if health.state is not former.state:
            _LOG.debug("%s: %s, for %.1f s", host.origin, health.state.value, max(0.0, health.opens_at - now))
        if health.opens_at > max(former.opens_at, now):
            for turn in self._dispatch.turns:
                if turn.host is host:
                    self._put_back(turn, now)
        self._wake(host, now)

    def _wake(self, host: Host, now: float) -> None:
        if (at := host.health.wakes_at(now)) is not None:
            self._timers.set_host(host, at)

    def _fire(self, now: float) -> None:
        for which in self._timers.due(now):
            if isinstance(which, Task):
                host = which.host
                host.retrying.discard(which)
                host.waiting.appendleft(which)
            else:
                host = which
            self._give_up_if_over(host, now)
            self._wake(host, now)
            self._settle_host(host, now)

    def _give_up_if_over(self, host: Host, now: float) -> None:
        if host.health.ask_at is None and host.health.is_over(now):
            self._give_up(host, now)

    def _give_up(self, host: Host, now: float) -> None:
        """Fail all jobs of a host that neither answers nor lets anything through."""
        for turn in self._dispatch.turns:
            if turn.host is host:
                self._put_back(turn, now)
        tasks = list(host.take_all())
        is_busy = host.health.state is State.PAUSED
        if is_busy and all(task.seen >= 0 for task in tasks):
            host.health = host.health.spared()
        else:
            host.health = host.health.given_up(now)
            _LOG.debug("%s: given up", host.origin)
        for task in tasks:
            self._finish(task, task.result if is_busy and task.seen >= 0 else host_down())


def _interrupted() -> Failure:
    return Failure(Reason.INTERRUPTED, "the run was ended")

"""What becomes of each job when an attempt at it has ended, and what that says of its host."""

from __future__ import annotations

import logging
from collections.abc import Callable

from image_loader.model import Blame, Failure, Job, Reason, Result, Unfinished
from image_loader.scheduling import retry
from image_loader.scheduling.dispatch import Dispatch
from image_loader.scheduling.health import Health, Policy, State
from image_loader.scheduling.hosts import Hosts, host_down
from image_loader.scheduling.queue import Host, Task
from image_loader.scheduling.workers import Ended, Turn
from image_loader.settings import Settings

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
"""Seconds before the next attempt of a job for which there was no descriptor left."""
INTERRUPTED = Failure(Reason.INTERRUPTED, "the run was ended")


class Judge:
    """Decides by the retry policy and the health of the hosts; used by the thread that schedules alone.

    ``finished`` are the tasks whose results are final and not yet handed back, ``pending`` is the number of the others.
    Once it ``is_ending``, nothing is tried again. All times are those of the scheduler's clock, in seconds.
    """

    def __init__(self, settings: Settings, dispatch: Dispatch, chance: Callable[[], float]) -> None:
        """``chance`` is the jitter of retries, from 0 to 1."""
        policy = Policy(settings.per_host, settings.host_failures, settings.host_patience, settings.retry_after_cap)
        self._settings = settings
        self._dispatch = dispatch
        self._chance = chance
        self.hosts = Hosts(policy)
        self.finished: list[Task] = []
        self.pending = 0
        self.is_ending = False

    def add(self, job: Job, now: float) -> None:
        """Take a job; it fails at once where its host is down."""
        self.pending += 1
        host = self.hosts.get(job.url.origin, now)
        task = Task(job, host)
        if self.is_refused(task, host, now):
            self.hosts.forget_if_idle(host, now)
        else:
            host.waiting.append(task)
            self._dispatch.line_up(host, now)

    def is_refused(self, task: Task, host: Host, now: float) -> bool:
        """Finish a task whose host is down; let one through where the host is to be asked again."""
        if host.health.ask_at is None:
            return False
        failure = self.hosts.down_failure(host.origin, now)
        if failure is None:
            host.health = host.health.asked(now)
            return False
        self.finish(task, failure, now)
        return True

    def conclude(self, ended: Ended, now: float) -> None:
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
            self.judge(task, result, ended.started, now)
            return
        task.host.keep_pace(ended.seconds)
        self._answered(task.host, ended.started, now)
        self.finish(task, result, now)
        self._dispatch.grow()

    def judge(self, task: Task, failure: Failure, started: float, now: float, *, connecting: bool = False) -> None:
        """Decide whether a task that failed is tried again, and what that says of its host."""
        task.result = failure
        if failure.blame is Blame.PROCESS and not self.is_ending and not self._dispatch.is_alone(task):
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

    def finish(self, task: Task, result: Result, now: float) -> None:
        """Say how a task ended, once."""
        if task.finished:
            return
        task.finished = True
        task.result = result
        self.pending -= 1
        self.finished.append(task)
        home, task.guest_of = task.guest_of, None
        if home is not None:
            home.away -= 1
            self.settle_host(home, now)

    def put_back(self, turn: Turn, now: float) -> None:
        """Have the jobs that a turn did not come to wait again, in front."""
        host = turn.host
        for task in turn.recalled():
            if self.is_ending:
                self.finish(task, INTERRUPTED, now)
            elif host.health.ask_at is not None:
                self.finish(task, host_down(), now)
            else:
                host.waiting.appendleft(task)
        self._dispatch.line_up(host, now)

    def settle_host(self, host: Host, now: float) -> None:
        """Have a host go on with what it has, or be forgotten."""
        self._dispatch.line_up(host, now)
        self._dispatch.release_unneeded(host)
        self.hosts.forget_if_idle(host, now)

    def fire(self, now: float) -> None:
        """Look at the jobs and hosts whose time has come."""
        for which in self._dispatch.timers.due(now):
            if isinstance(which, Task):
                host = which.host
                host.retrying.discard(which)
                if not self.is_refused(which, host, now):
                    host.waiting.appendleft(which)
            else:
                host = which
            self._give_up_if_over(host, now)
            self._wake(host, now)
            self.settle_host(host, now)

    def _go_on(self, task: Task, job: Job, now: float) -> None:
        """Have an attempt go on at the host that it asks next."""
        task.job = job
        origin = (job.url if job.hop is None else job.hop.url).origin
        if origin != task.host.origin:
            self._answered(task.host, now, now)
            self._move(task, self.hosts.get(origin, now), now)
        if self.is_ending:
            self.finish(task, INTERRUPTED, now)
        elif self.is_refused(task, task.host, now):
            self.hosts.forget_if_idle(task.host, now)
        else:
            task.host.waiting.appendleft(task)
            self._dispatch.line_up(task.host, now)

    def _move(self, task: Task, host: Host, now: float) -> None:
        """Have another host be asked next; while that one answers, the place at the one of the list stays taken."""
        task.host = host
        former_home, task.guest_of = task.guest_of, None
        if host.origin != task.job.url.origin and host.successes:
            task.guest_of = self.hosts.get(task.job.url.origin, now)
            task.guest_of.away += 1
        if former_home is not None:
            former_home.away -= 1
            if former_home is host:
                # It may have nothing to do until the task waits for it: it must not be forgotten now.
                self._dispatch.line_up(host, now)
            else:
                self.settle_host(former_home, now)

    def _fail(self, task: Task, failure: Failure, now: float) -> None:
        """Have a task that failed be tried again, or be done."""
        task.failures += 1
        spent = task.failures > self._settings.retries or task.host.health.ask_at is not None or self.is_ending
        if not failure.retryable or spent:
            self.finish(task, failure, now)
            return
        asked = min(failure.retry_after or 0.0, self._settings.retry_after_cap)
        delay = max(asked, retry.delay(task.failures, self._settings.backoff_cap, self._chance()))
        _LOG.debug("line %d: %s, again in %.1f s: %s", task.job.line, failure.reason, delay, failure.detail)
        self._retry(task, delay, now)

    def _retry(self, task: Task, delay: float, now: float) -> None:
        """Have a task begin anew after so many seconds; meanwhile it holds no worker."""
        failure = task.result
        resume = failure.resume if isinstance(failure, Failure) else None
        task.job = task.job.anew(resume)
        home = self.hosts.get(task.job.url.origin, now)
        home.retrying.add(task)
        self._move(task, home, now)
        self._dispatch.timers.set_task(task, now + delay)

    def _answered(self, host: Host, started: float, now: float) -> None:
        """Note that a host let a request through."""
        host.successes += 1
        if not host.is_settled:
            self._change(host, host.health.answered(now, started, host.successes), now)
            host.is_settled = host.health.is_settled

    def _note_failure(self, host: Host, failure: Failure, started: float, now: float) -> None:
        """Note that a host answered, though not with an image."""
        if failure.retryable:
            self._change(host, host.health.reached(), now)
        else:
            self._answered(host, started, now)

    def _refused(self, task: Task, failure: Failure, started: float, now: float) -> None:
        """Slow down a host that is busy, and have the task wait for its turn again, behind some others."""
        host = task.host
        if host.successes > task.seen:
            task.refusals, task.seen = task.refusals + 1, host.successes
        if task.refusals > retry.REFUSALS and not host.health.refusals:
            # The host lets all others through.
            self._change(host, host.health.reached(), now)
            self._fail(task, failure, now)
            return
        self._change(host, host.health.refused(now, started, failure.retry_after, host.successes), now)
        if self.is_ending or host.health.ask_at is not None:
            self.finish(task, failure, now)
        elif host.origin == task.job.url.origin:
            task.job = task.job.anew(failure.resume)
            # After a pause that the server asked for, the next one is likely let through, and be it this one.
            first = failure.retry_after is not None and task.refusals == 1
            host.waiting.insert(0 if first else retry.LATER, task)
            if host.health.refusals > 1:
                # Neighbours in the list are often refused alike: ask for another part of it.
                host.waiting.rotate(int(self._chance() * len(host.waiting)))
            self.settle_host(host, now)
        elif host.health.is_over(now):
            self.finish(task, failure, now)
        else:
            self._retry(task, max(_FIRST_PAUSE, host.health.opens_at - now), now)
        self._give_up_if_over(host, now)

    def _missed(self, task: Task, failure: Failure, started: float, now: float) -> None:
        """Note that a host did not answer."""
        host = task.host
        self._change(host, host.health.missed(now, started), now)
        self._fail(task, failure, now)
        if not failure.retryable:
            self._give_up(host, failure, now)  # Such as a name that does not exist.
        else:
            self._give_up_if_over(host, now)

    def _change(self, host: Host, health: Health, now: float) -> None:
        """Take over what is known of a host now."""
        former, host.health = host.health, health
        host.is_settled = False
        if health.state is not former.state:
            _LOG.debug("%s: %s, for %.1f s", host.origin, health.state.value, max(0.0, health.opens_at - now))
        if health.opens_at > max(former.opens_at, now):
            for turn in self._dispatch.turns:
                if turn.host is host:
                    self.put_back(turn, now)
        self._wake(host, now)

    def _wake(self, host: Host, now: float) -> None:
        if (at := host.health.wakes_at(now)) is not None:
            self._dispatch.timers.set_host(host, at)

    def _give_up_if_over(self, host: Host, now: float) -> None:
        if host.health.ask_at is None and host.health.is_over(now):
            self._give_up(host, host_down(), now)

    def _give_up(self, host: Host, failure: Failure, now: float) -> None:
        """Fail all jobs of a host that neither answers nor lets anything through."""
        for turn in self._dispatch.turns:
            if turn.host is host:
                self.put_back(turn, now)
        tasks = list(host.take_all())
        is_busy = host.health.state is State.PAUSED
        if is_busy and tasks and all(task.seen >= 0 for task in tasks):
            host.health, host.is_settled = host.health.spared(), False
        else:
            host.health, host.is_settled = host.health.given_up(now), False
            _LOG.debug("%s: given up", host.origin)
        for task in tasks:
            self.finish(task, task.result if is_busy and task.seen >= 0 else failure, now)

"""The jobs of a run: which of them wait where, which come back when, and which are done."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from image_loader.model import INTERRUPTED, Failure, Job, Result
from image_loader.scheduling.dispatch import Dispatch
from image_loader.scheduling.health import Health, Policy, State
from image_loader.scheduling.hosts import Hosts, host_down
from image_loader.scheduling.host import Host, Task
from image_loader.scheduling.workers import Turn

_LOG = logging.getLogger(__name__)


class Jobs:
    """The jobs, by their hosts; used by the thread that schedules alone.

    ``finished`` are the tasks whose results are final and not yet handed back, ``pending`` is the number of the others.
    Once it ``is_ending``, nothing is tried again. All times are those of the scheduler's clock, in seconds.
    """

    def __init__(self, policy: Policy, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self.hosts = Hosts(policy)
        self.finished: list[Task] = []
        self.pending = 0
        self.is_ending = False

    def add(self, jobs: Iterable[Job], now: float) -> None:
        """Take jobs; those whose host is down fail at once."""
        hosts = {self._add(job, now): None for job in jobs}
        for host in hosts:
            self._dispatch.line_up(host, now)
            self.hosts.forget_if_idle(host, now)

    def _add(self, job: Job, now: float) -> Host:
        self.pending += 1
        host = self.hosts.get(job.url.origin, now)
        task = Task(job, host)
        if host.health.ask_at is None or not self.is_refused(task, host, now):
            host.waiting.append(task)
        return host

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

    def end(self, now: float) -> None:
        """Try nothing again from here on; workers do no more than they have begun."""
        self.is_ending = True
        for turn in self._dispatch.turns:
            self.put_back(turn, now)

    def put_back(self, turn: Turn, now: float) -> None:
        """Have the jobs that a turn did not come to wait again, in front."""
        host = turn.host
        for task in turn.recalled():
            if self.is_ending:
                self.finish(task, INTERRUPTED, now)
            elif host.health.ask_at is not None:
                self.finish(task, host_down(), now)
            else:
                host.waiting.insert(0, task)
        self._dispatch.line_up(host, now)

    def settle_host(self, host: Host, now: float) -> None:
        """Have a host go on with what it has, or be forgotten."""
        self._dispatch.line_up(host, now)
        self._dispatch.release_unneeded(host)
        self.hosts.forget_if_idle(host, now)

    def fire(self, now: float) -> None:
        """Handle the jobs and hosts whose timers have run out."""
        for which in self._dispatch.timers.due(now):
            if isinstance(which, Task):
                host = which.host
                host.retrying.pop(which, None)
                if not self.is_refused(which, host, now):
                    host.waiting.insert(0, which)
            else:
                host = which
            self.give_up_if_over(host, now)
            self._wake(host, now)
            self.settle_host(host, now)

    def move(self, task: Task, host: Host, now: float) -> None:
        """Move a task to the host that is asked next. While that one answers, the host of the list counts it, too."""
        task.host = host
        former_home, task.guest_of = task.guest_of, None
        if host.origin != task.job.url.origin and host.successes:
            task.guest_of = self.hosts.get(task.job.url.origin, now)
            task.guest_of.away += 1
        if former_home is not None:
            former_home.away -= 1
            if former_home is host:
                # The host may have no other job: it must not be forgotten before the task waits for it.
                self._dispatch.line_up(host, now)
            else:
                self.settle_host(former_home, now)

    def retry_later(self, task: Task, delay: float, now: float) -> None:
        """Have a task begin anew after so many seconds; meanwhile it holds no worker."""
        failure = task.result
        resume = failure.resume if isinstance(failure, Failure) else None
        task.job = task.job.anew(resume)
        home = self.hosts.get(task.job.url.origin, now)
        home.retrying[task] = None
        self.move(task, home, now)
        self._dispatch.timers.set_task(task, now + delay)

    def change(self, host: Host, health: Health, now: float) -> None:
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

    def give_up_if_over(self, host: Host, now: float) -> None:
        """Give up a host if the patience with it is over."""
        if host.health.ask_at is None and host.health.is_over(now):
            self.give_up(host, host_down(), now)

    def give_up(self, host: Host, failure: Failure, now: float) -> None:
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

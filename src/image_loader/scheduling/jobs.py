"""The jobs of a run: which of them wait where, which come back when, and which are done."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from image_loader.model import INTERRUPTED, Failure, Job, Result
from image_loader.scheduling.dispatch import Dispatch
from image_loader.scheduling.health import Health, Policy, State
from image_loader.scheduling.host import Host, Task
from image_loader.scheduling.hosts import Hosts, host_down
from image_loader.scheduling.workers import Turn

_LOG = logging.getLogger(__name__)


class Jobs:
    """The jobs, by their hosts; used by the thread that schedules alone. Times are seconds of the scheduler's clock."""

    def __init__(self, policy: Policy, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self.hosts = Hosts(policy)
        self.finished: list[Task] = []
        """Tasks whose results are final and not handed back yet."""
        self.pending = 0
        """How many tasks have no final result."""
        self.is_ending = False
        """Whether the run is to end: then nothing is tried again."""

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
        if host.health.ask_at is None or not self.refuse_if_down(task, host, now):
            host.own.append(task)
        return host

    def refuse_if_down(self, task: Task, host: Host, now: float) -> bool:
        """Finish a task whose host is down, and return True; let one through where the host is to be asked again."""
        if host.health.ask_at is None or host.is_asked_again_by(task):
            return False
        failure = self.hosts.down_failure(host.origin, now)
        if failure is None:
            host.note(host.health.asked(now))
            task.asks_again = (host.origin, host.health.given_up_at)
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
        if task.guest_of is not None:
            home, task.guest_of = task.guest_of, None
            home.away -= 1
            self.settle_host(home, now)

    def take_finished(self) -> list[Task]:
        """Take the tasks whose results are final."""
        finished, self.finished = self.finished, []
        return finished

    def end(self, now: float) -> None:
        """Try nothing again from here on; workers do no more than they have begun."""
        self.is_ending = True
        for turn in self._dispatch.turns:
            self.recall(turn, now)

    def abandon(self, now: float) -> None:
        """Finish every job that no worker has begun, and have nothing wait any more."""
        self.end(now)
        for host in list(self.hosts):
            for task in host.take_all():
                self.finish(task, INTERRUPTED, now)
            self._dispatch.release(host)
        self._dispatch.clear()

    def drop_running(self, now: float) -> None:
        """Wait for no worker any more: finish what each has begun."""
        for turn in self._dispatch.take_turns():
            self.recall(turn, now)
            self.interrupt(turn, now)
            turn.drop()

    def interrupt(self, turn: Turn, now: float) -> None:
        """Finish the job that a turn has begun."""
        if turn.current is not None:
            self.finish(turn.current, INTERRUPTED, now)

    def recall(self, turn: Turn, now: float) -> None:
        """Have the jobs that a turn did not come to wait again, in front; the host is to be lined up after that."""
        host = turn.host
        for task in turn.recalled():
            if self.is_ending:
                self.finish(task, INTERRUPTED, now)
            elif host.health.ask_at is not None:
                self.finish(task, host_down(), now)
            else:
                host.put_first(task)

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
                if not self.refuse_if_down(which, host, now):
                    host.put_first(which)
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
        former, opened_at = host.health, host.opens_at
        host.note(health)
        if health.state is not former.state:
            _LOG.debug("%s: %s, for %.1f s", host.origin, health.state.value, max(0.0, host.opens_at - now))
        if host.opens_at > opened_at and host.opens_at > now:
            self._recall_all(host, now)
        self._wake(host, now)

    def _recall_all(self, host: Host, now: float) -> None:
        for turn in self._dispatch.turns:
            if turn.host is host:
                self.recall(turn, now)

    def _wake(self, host: Host, now: float) -> None:
        if (at := host.health.wakes_at(now)) is not None:
            self._dispatch.timers.set_host(host, at)

    def give_up_if_over(self, host: Host, now: float) -> None:
        """Give up a host if the patience with it is over."""
        if host.health.ask_at is None and host.health.is_over(now):
            self.give_up(host, host_down(), now)

    def give_up(self, host: Host, failure: Failure, now: float) -> None:
        """Fail all jobs of a host that neither answers nor lets anything through."""
        self._recall_all(host, now)
        tasks = list(host.take_all())
        is_busy = host.health.state is State.PAUSED
        if is_busy and tasks and all(host.origin in task.refused_by for task in tasks):
            host.note(host.health.spared())
        else:
            host.note(host.health.given_up(now))
            _LOG.debug("%s: given up", host.origin)
        for task in tasks:
            self.finish(task, task.result if is_busy and host.origin in task.refused_by else failure, now)

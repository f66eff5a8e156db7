"""What becomes of a job when an attempt at it has ended, and what that says of its host."""

from __future__ import annotations

import logging
from collections.abc import Callable

from image_loader.model import INTERRUPTED, SAVED_BEFORE, Blame, Failure, Job, Reason
from image_loader.scheduling import retry
from image_loader.scheduling.dispatch import Dispatch
from image_loader.scheduling.host import Host, Task
from image_loader.scheduling.jobs import Jobs
from image_loader.scheduling.workers import Ended
from image_loader.settings import Settings

_LOG = logging.getLogger(__name__)
_SHORT_WAIT = 1.0
"""Seconds before the next attempt of a job that lacked a descriptor, at most; or that redirects led to a busy host, at
least."""


class Judge:
    """Decides by the retry policy and the health of the hosts; used by the thread that schedules alone."""

    def __init__(self, settings: Settings, jobs: Jobs, dispatch: Dispatch, chance: Callable[[], float]) -> None:
        """``chance`` is the jitter of retries, from 0 to 1."""
        self._settings = settings
        self._jobs = jobs
        self._dispatch = dispatch
        self._threads = dispatch.threads
        self._chance = chance

    def conclude(self, ended: Ended, now: float) -> None:
        """Decide what becomes of a task whose attempt, or part of one, has ended."""
        task, result, started, seconds = ended
        task.seconds += seconds
        if task.finished:
            return
        if isinstance(result, Job):
            self._go_on(task, result, started, now)
            return
        task.attempts += 1
        if isinstance(result, Failure):
            self.judge(task, result, started, now)
            return
        if result is not SAVED_BEFORE:
            task.host.keep_pace(seconds)
            self._answered(task.host, started, now)
        elif task.host.health.ask_at is not None and task.host.is_asked_again_by(task):
            task.host.note(task.host.health.not_asked(now))
        self._jobs.finish(task, result, now)
        self._threads.note_end()

    def judge(self, task: Task, failure: Failure, started: float, now: float, *, connecting: bool = False) -> None:
        """Decide whether a task that failed is tried again, and what that says of its host."""
        task.result = failure
        if failure.stopped and not task.stopped and not self._jobs.is_ending:
            # Once: a machine that is too busy to notice deadlines must not keep it going for ever.
            task.stopped = True
            self._jobs.retry_later(task, 0.0, now)
        elif failure.blame is Blame.PROCESS and self._makes_room(task, started, now, connecting=connecting):
            task.attempts -= 1
            self._jobs.retry_later(task, _SHORT_WAIT * self._chance(), now)
        elif retry.is_refusal(failure):
            self._refused(task, failure, started, now)
        elif failure.blame is Blame.HOST:
            self._missed(task, failure, started, now)
        else:
            if failure.blame is Blame.IMAGE:
                self._note_failure(task.host, failure, started, now)
            self._fail(task, failure, now)

    def _makes_room(self, task: Task, started: float, now: float, *, connecting: bool) -> bool:
        """Have fewer descriptors used; False where a task will find no more of them when it is tried again."""
        if self._jobs.is_ending:
            return False
        if connecting and self._dispatch.drop_idle():
            return True
        if self._dispatch.is_alone(task):
            return False
        self._dispatch.shrink(started, now, connecting=connecting)
        return True

    def _go_on(self, task: Task, job: Job, started: float, now: float) -> None:
        """Have an attempt go on at the host that it asks next."""
        task.job = job
        origin = (job.url if job.hop is None else job.hop.url).origin
        if origin != task.host.origin:
            self._answered(task.host, started, now)
            self._jobs.move(task, self._jobs.hosts.get(origin, now), now)
        if self._jobs.is_ending:
            self._jobs.finish(task, INTERRUPTED, now)
        elif self._jobs.refuse_if_down(task, task.host, now):
            self._jobs.hosts.forget_if_idle(task.host, now)
        else:
            task.host.put_going_on(task)
            self._dispatch.line_up(task.host, now)

    def _fail(self, task: Task, failure: Failure, now: float) -> None:
        """Have a task that failed be tried again, or be done."""
        task.failures += 1
        spent = task.failures > self._settings.retries or task.host.health.ask_at is not None or self._jobs.is_ending
        if not failure.retryable or spent:
            self._jobs.finish(task, failure, now)
            return
        asked = min(failure.retry_after or 0.0, self._settings.retry_after_cap)
        delay = max(asked, retry.delay(task.failures, self._settings.backoff_cap, self._chance()))
        _LOG.debug("line %d: %s, again in %.1f s: %s", task.job.line, failure.reason, delay, failure.detail)
        self._jobs.retry_later(task, delay, now)

    def _answered(self, host: Host, started: float, now: float) -> None:
        """Note that a host let a request through."""
        host.successes += 1
        if not host.is_settled:
            self._jobs.change(host, host.health.answered(now, started, host.successes), now)

    def _note_failure(self, host: Host, failure: Failure, started: float, now: float) -> None:
        """Note that a host answered, though not with an image."""
        if failure.retryable:
            self._jobs.change(host, host.health.reached(), now)
        else:
            self._answered(host, started, now)

    def _refused(self, task: Task, failure: Failure, started: float, now: float) -> None:
        """Slow down a host that is busy, and have the task wait for its turn again, behind some others."""
        host = task.host
        task.refusals += _counts(task, now)
        if host.origin != task.job.url.origin:
            task.refused_elsewhere = min(task.refused_elsewhere, now)
        task.refused_by = {**task.refused_by, host.origin: (host, host.successes)}
        if task.refusals > retry.REFUSALS and not host.health.refusals:
            # The host lets all others through: this image is the problem.
            self._jobs.change(host, host.health.reached(), now)
            self._fail(task, failure, now)
            return
        self._jobs.change(host, host.health.refused(now, started, failure.retry_after, host.successes), now)
        if self._jobs.is_ending:
            self._jobs.finish(task, failure, now)
        elif host.origin == task.job.url.origin:
            task.job = task.job.anew(failure.resume)
            # After a pause that the server asked for, the next request is likely to be let through: let it be this one.
            # If it is not, another image must have its turn: this one may be the problem.
            again = host.health.refusals > 1
            first = failure.retry_after is not None and task.refusals == 1 and not again
            host.put_behind(task, 0 if first else retry.LATER)
            if again:
                # Neighbours in the list are often refused for the same reason: go on with another part of it.
                host.go_on_elsewhere(self._chance())
            self._jobs.settle_host(host, now)
        elif host.health.is_over(now):
            self._jobs.finish(task, failure, now)
        else:
            self._jobs.retry_later(task, max(_SHORT_WAIT, host.opens_at - now), now)
        self._jobs.give_up_if_over(host, now)

    def _missed(self, task: Task, failure: Failure, started: float, now: float) -> None:
        """Note that a host did not answer."""
        host = task.host
        self._jobs.change(host, host.health.missed(now, started), now)
        self._fail(task, failure, now)
        if failure.retryable or failure.reason is Reason.DEADLINE:
            self._jobs.give_up_if_over(host, now)
        else:
            self._jobs.give_up(host, failure, now)  # Such as a name that does not exist.


def _counts(task: Task, now: float) -> bool:
    """Whether a refusal counts against the image.

    The first one does. A later one does if the host has let another image through since it refused this one last, or if
    ever new hosts refuse this one.
    """
    host = task.host
    if not task.refused_by:
        return True
    if host.origin not in task.refused_by:
        is_over = now - task.refused_elsewhere >= host.health.patience
        return host.successes > 0 or (is_over and len(task.refused_by) > host.health.policy.failures)
    refused_by, seen = task.refused_by[host.origin]
    if refused_by is host:
        return host.successes > seen
    # It was forgotten since, and counts its successes anew; its refusals in a row are remembered.
    return host.successes > 0 or not host.health.refusals

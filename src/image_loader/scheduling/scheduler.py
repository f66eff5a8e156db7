"""Which job runs when: threads, limits and pauses for each host, retries, hosts that are down."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue

from image_loader.errors import LoaderError, OutOfThreadsError
from image_loader.model import Blame, Failure, Job, Reason, Result
from image_loader.settings import Settings

_LOG = logging.getLogger(__name__)
# A host gets few attempts at once until it has answered, then many more with each answer: one that hangs holds this
# many threads, not a third of them.
_SLOW_START = 3
_GROWTH = 4
# A thread is given several jobs of a host at once, as long as they are a matter of milliseconds: handing each one over
# costs about as much as fetching a small image from a near server.
_LONGEST_SHARE = 16
_SHARE_TIME = 0.02
# How many of the threads' next turns are handed over while all of them are busy: none waits to be told what is next.
_AHEAD = 1 / 4
# How much of a host's pace its last answer makes.
_PACE_WEIGHT = 1 / 4
# Out of descriptors, this part of the threads goes on; after so many images that each of them ended well, one more.
_SHRINKS_TO = 3 / 4
_GROWS_AFTER = 20
_FIRST_PAUSE = 1.0
_LONGEST_PROBE_PAUSE = 8.0
# Remembered hosts that do nothing at the moment (failed ones, and those given up): bounded, whatever the list.
_HOSTS_REMEMBERED = 10_000


class Task:
    """A job on its way through the scheduler: its ``attempts`` so far, which took ``seconds`` together.

    ``result`` is the last one, once the job is ``finished``. Only the scheduler's own thread writes here.
    """

    __slots__ = ("attempts", "finished", "host", "job", "result", "seconds")

    result: Result

    def __init__(self, job: Job, host: _Host) -> None:
        self.job = job
        self.host = host
        self.attempts = 0
        self.seconds = 0.0
        self.finished = False


_Attempt = tuple[Task, Result, float, float]
"""How one attempt ended, when it was started, and how many seconds it took, by the scheduler's clock."""


class _Turn:
    """Jobs of one host that one thread takes one after the other; those that wait can be recalled at any time.

    They stand in a deque: two threads can take from its ends without a lock.
    """

    __slots__ = ("_waiting", "begun", "current", "host")

    def __init__(self, host: _Host, tasks: Iterable[Task]) -> None:
        self.host = host
        self.begun = math.inf
        self.current: Task | None = None
        self._waiting = deque(tasks)

    def take(
        self,
        attempt: Callable[[Job], Result],
        clock: Callable[[], float],
        ended: deque[_Attempt],
        tell_last: Callable[[_Turn], None],
    ) -> None:
        """Make an attempt at each job, until one fails; the thread's part of the work.

        ``tell_last`` is called before the last one, so that there are more when it is done.
        """
        while (task := self._next()) is not None:
            self.current, self.begun = task, clock()
            if not self._waiting:
                tell_last(self)
            result = attempt(task.job)
            ended.append((task, result, self.begun, clock() - self.begun))
            if isinstance(result, Failure):
                return

    def extend(self, tasks: Iterable[Task]) -> None:
        """Add jobs; should the thread have left meanwhile, they can be recalled."""
        self._waiting.extend(tasks)

    def recalled(self) -> Iterator[Task]:
        """Yield those that no attempt was begun at, the last one first; they are the turn's no more."""
        while self._waiting:
            with suppress(IndexError):
                yield self._waiting.pop()

    def _next(self) -> Task | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None


class _Host:
    """What is known of one origin in this run."""

    __slots__ = ("asked_until", "failing_since", "failures", "given_up_at", "limit", "origin", "pace", "pauses",
                 "probe_at", "probe_pause", "queued", "retrying", "running", "waiting")  # fmt: skip

    def __init__(self, origin: str, limit: int) -> None:
        self.origin = origin
        self.limit = limit
        self.waiting: deque[Task] = deque()
        self.running = 0
        self.pace: float | None = None
        self.retrying = 0
        self.queued = False
        # The end of the pause that the server asked for, and of ours before a dead host is asked by one job again.
        self.asked_until = 0.0
        self.probe_at = 0.0
        # The pauses that it asked for in a row: with no attempt between them that came to an end.
        self.pauses = 0
        self.given_up_at = -math.inf
        self.failures = 0
        self.failing_since = 0.0
        self.probe_pause = _FIRST_PAUSE

    @property
    def paused_until(self) -> float:
        return self.asked_until if self.asked_until > self.probe_at else self.probe_at

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self.retrying)

    def share(self, slots: int) -> list[Task]:
        """Take the jobs that one thread is to do next, where so many ``slots`` share what waits."""
        size = 1 if self.pace is None else int(_SHARE_TIME / max(self.pace, _SHARE_TIME / _LONGEST_SHARE))
        fair = -(-len(self.waiting) // slots)
        return [self.waiting.popleft() for _ in range(min(max(1, size), fair))]

    def forget_failures(self) -> None:
        """Count anew; a pause that the server asked for goes on."""
        self.failures = 0
        self.probe_at = 0.0
        self.probe_pause = _FIRST_PAUSE

    def keep_pace(self, seconds: float) -> None:
        """Note how long an answer took."""
        self.pace = seconds if self.pace is None else self.pace + _PACE_WEIGHT * (seconds - self.pace)


class Threads(ThreadPoolExecutor):
    """Threads, at most ``most`` of them, and fewer where the system gives no more: they do the work of all.

    Raises ``OutOfThreadsError`` where there is not even one.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most, "image_loader")
        self._short = False

    def _adjust_thread_count(self) -> None:
        # No public way: ``submit`` raises when the work is queued already (CPython 3.11 to 3.14), and whoever submitted
        # it again would have it done twice.
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                raise OutOfThreadsError from error
            if not self._short:
                _LOG.info("out of threads (ulimit -u, ulimit -v): %d at once", len(self._threads))
            self._short = True


class Scheduler:
    """Hands jobs to an executor and their last results back; used by one thread alone."""

    def __init__(
        self,
        executor: Executor,
        attempt: Callable[[Job], Result],
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._executor = executor
        self._attempt = attempt
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._threads = settings.threads
        self._shrunk_at = -math.inf
        self._ended_well = 0
        self._hosts: dict[str, _Host] = {}
        # When each host that was given up is asked by one job again.
        self._down: dict[str, float] = {}
        self._ready: deque[_Host] = deque()
        self._timers: list[tuple[float, int, _Host, Task | None]] = []
        self._numbers = itertools.count()
        # What has ended is told without waking anyone; a turn that is over (then with its future), or about to be,
        # wakes the thread that waits here.
        self._ended: deque[_Attempt] = deque()
        self._told: SimpleQueue[tuple[_Turn, Future[None] | None]] = SimpleQueue()
        self._finished: list[Task] = []
        self._turns: set[_Turn] = set()
        self._ending = False
        self.pending = 0
        self.error: LoaderError | None = None

    def add(self, jobs: Sequence[Job]) -> None:
        """Take jobs; each runs as soon as the limits let it."""
        for job in jobs:
            self.pending += 1
            task = Task(job, self._host(job.url.origin))
            if task.host.origin in self._down:
                if (down := self.verdict(task.host.origin)) is not None:
                    self._finish(task, down)
                    continue
                self._ask_later(task.host.origin)
            task.host.waiting.append(task)
            self._make_ready(task.host)

    def _host(self, origin: str) -> _Host:
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _Host(origin, min(_SLOW_START, self._settings.per_host))
        return host

    def verdict(self, origin: str) -> Failure | None:
        """Return what becomes of the jobs of a host that was given up; None for any other, and once it is to be asked.

        It is asked by one job at a time: where attempts take longer than the pause, they would pile up.
        """
        ask_at = self._down.get(origin)
        if ask_at is None:
            return None
        due = ask_at <= self._clock() and (origin not in self._hosts or self._hosts[origin].idle)
        return None if due else _host_down()

    def advance(self, timeout: float) -> list[Task]:
        """Start what can start, wait at most ``timeout`` seconds for something to end, and return what has ended."""
        self._recall()
        self._start()
        self._collect(0.0 if self._finished or not self.pending else self._pause(timeout))
        self._fire()
        self._start()
        return self._taken()

    def abandon(self) -> list[Task]:
        """Give up every job that is not running; return those. From here on nothing is started."""
        self._ending = True
        for turn in self._turns:
            self._put_back(turn)
        waiting = [task for host in self._hosts.values() for task in host.waiting]
        waiting += [task for *_, task in self._timers if task is not None]
        for host in self._hosts.values():
            host.waiting.clear()
            host.retrying = 0
        self._timers.clear()
        for task in waiting:
            self._finish(task, _interrupted())
        return self._taken()

    def forsake(self) -> list[Task]:
        """Wait no longer for those that run; return them as given up."""
        self._take_in()
        for turn in self._turns:
            self._put_back(turn)
            self._give_up(turn)
        self._turns.clear()
        return self._taken()

    def settle(self, timeout: float) -> list[Task]:
        """Wait at most ``timeout`` seconds for a turn to be over; return what has ended."""
        self._collect(timeout)
        return self._taken()

    def waits(self) -> float:
        """Return for how many seconds nothing can begin or end: every job waits for its host or its next attempt."""
        return self._timers[0][0] - self._clock() if self._timers and not self._turns and not self._ready else 0.0

    @property
    def running(self) -> int:
        """How many attempts are under way, or over but not taken in."""
        return len(self._turns) + len(self._ended)

    def _taken(self) -> list[Task]:
        finished, self._finished = self._finished, []
        return finished

    # Starting.

    def _start(self) -> None:
        # Those ahead wait in the executor; with fewer threads than it has, they would not.
        ahead = int(self._threads * _AHEAD) if self._threads == self._settings.threads else 0
        while self._ready and len(self._turns) < self._threads + ahead:
            host = self._ready.popleft()
            host.queued = False
            if self._may_start(host):
                self._submit(host)
                self._make_ready(host)

    def _may_start(self, host: _Host) -> bool:
        return bool(host.waiting) and host.running < host.limit and host.paused_until <= self._clock()

    def _make_ready(self, host: _Host) -> None:
        if not host.queued and self._may_start(host):
            host.queued = True
            self._ready.append(host)

    def _submit(self, host: _Host) -> None:
        turn = _Turn(host, host.share(host.limit - host.running))
        self._turns.add(turn)
        host.running += 1
        try:
            future = self._executor.submit(turn.take, self._attempt, self._clock, self._ended, self._tell_last)
        except LoaderError as error:
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda future: self._told.put((turn, future)))

    def _tell_last(self, turn: _Turn) -> None:
        self._told.put((turn, None))

    def _extend(self, turn: _Turn) -> None:
        """Have a thread go on with its host after its last job, unless another host waits for a thread."""
        self._take_in()
        host = turn.host
        self._make_ready(host)
        wanted = self._ready or len(self._turns) > self._threads
        full = host.running == host.limit and host.pace is not None and host.paused_until <= self._clock()
        if full and host.waiting and not wanted:
            turn.extend(host.share(host.limit))

    def _recall(self) -> None:
        """Have the jobs that wait behind a slow one wait for any thread."""
        now = self._clock()
        for turn in self._turns:
            host = turn.host
            usual = host.pace if host.pace is not None and host.running == host.limit else 0.0
            if now - turn.begun > 2 * max(_SHARE_TIME, usual):
                self._put_back(turn)

    # Waiting and collecting.

    def _pause(self, timeout: float) -> float:
        if self._timers:
            timeout = min(timeout, self._timers[0][0] - self._clock())
        return max(0.0, timeout)

    def _collect(self, timeout: float) -> None:
        """Take in all that has ended; wait for the first turn that is over, or about to be."""
        try:
            turn, future = self._told.get(timeout=timeout) if timeout else self._told.get_nowait()
            while True:
                if future is None:
                    self._extend(turn)
                else:
                    self._end(turn, future)
                turn, future = self._told.get_nowait()
        except Empty:
            self._take_in()

    def _take_in(self) -> None:
        while self._ended:
            task, result, started, seconds = self._ended.popleft()
            task.attempts += 1
            task.seconds += seconds
            if isinstance(result, Failure):
                self._judge(task, result, started)
            else:
                self._succeed(task, result, seconds)

    def _end(self, turn: _Turn, future: Future[None]) -> None:
        if turn not in self._turns:
            return  # Forsaken.
        self._turns.discard(turn)
        host = turn.host
        host.running -= 1
        self._take_in()
        error = future.exception()
        if isinstance(error, LoaderError):
            self.error = self.error or error
            self._give_up(turn)
        elif error is not None:
            raise error
        self._put_back(turn)
        self._forget_if_idle(host)

    def _put_back(self, turn: _Turn) -> None:
        """Have the jobs that a turn did not come to wait again, in front."""
        for task in turn.recalled():
            if self._ending or self.error is not None:
                self._finish(task, _interrupted())
            elif task.host.origin in self._down:
                self._finish(task, _host_down())
            else:
                task.host.waiting.appendleft(task)
        self._make_ready(turn.host)

    def _give_up(self, turn: _Turn) -> None:
        if turn.current is not None:
            self._finish(turn.current, _interrupted())

    def _succeed(self, task: Task, result: Result, seconds: float) -> None:
        task.host.keep_pace(seconds)
        self._answered(task.host, grow=True)
        self._finish(task, result)
        if self._threads < self._settings.threads:
            self._grow()

    def _judge(self, task: Task, result: Failure, started: float) -> None:
        host = task.host
        # With nothing else to wait for, it is an attempt like any other: else there would be no end.
        others = self._threads > 1 or any(turn.current is not task for turn in self._turns)
        if result.blame is Blame.PROCESS and others and not self._ending:
            self._shrink(task, started)
            return
        pause = None if result.blame is Blame.OTHER_HOST else result.retry_after
        if result.blame is Blame.HOST:
            self._missed(host, started)
        # Those that were already under way when the host was given up tell nothing new.
        elif pause is None or started > host.given_up_at:
            self._answered(host, grow=not result.retryable)
            if pause is not None:
                self._pause_as_asked(host, min(pause, self._settings.retry_after_cap))
        spent = task.attempts > self._settings.retries or host.origin in self._down or self._ending
        if result.retryable and not spent:
            self._retry(task, result)
        else:
            self._finish(task, result)

    def _finish(self, task: Task, result: Result) -> None:
        if task.finished:
            return
        task.finished = True
        task.result = result
        self.pending -= 1
        self._finished.append(task)
        self._forget_if_idle(task.host)

    def _forget_if_idle(self, host: _Host) -> None:
        # A timer may outlive its host: the one that bears its name by now stays.
        if host.idle and self._hosts.get(host.origin) is host:
            of_use = host.failures or host.paused_until > self._clock()
            if not of_use or len(self._hosts) > _HOSTS_REMEMBERED:
                del self._hosts[host.origin]

    # Retries.

    def _retry(self, task: Task, failure: Failure) -> None:
        """Have the task run again after 1, 2, 4 … seconds, with full jitter; meanwhile it holds no thread."""
        task.job = task.job._replace(resume=failure.resume)
        longest = min(self._settings.backoff_cap, 2.0 ** min(task.attempts - 1, 60))
        delay = longest * self._jitter()
        if failure.blame is Blame.OTHER_HOST and failure.retry_after is not None:
            delay = max(delay, min(failure.retry_after, self._settings.retry_after_cap))
        _LOG.debug("line %d: %s, again in %.1f s: %s", task.job.line, failure.reason, delay, failure.detail)
        task.host.retrying += 1
        self._set_timer(delay, task.host, task)

    def _shrink(self, task: Task, started: float) -> None:
        """Out of descriptors: the attempt does not count, and fewer run at once for the time being."""
        threads = max(1, int(_SHRINKS_TO * min(self._threads, len(self._turns))))
        # Those that were already under way tell nothing new.
        if threads < self._threads and started > self._shrunk_at:
            _LOG.info("out of file descriptors (ulimit -n): %d at once for the time being", threads)
            self._threads, self._shrunk_at, self._ended_well = threads, self._clock(), 0
        task.attempts -= 1
        task.host.retrying += 1
        self._set_timer(_FIRST_PAUSE * self._jitter(), task.host, task)

    def _grow(self) -> None:
        """Try one more at once every now and then: whoever had the descriptors may have given them back."""
        self._ended_well += 1
        if self._ended_well >= _GROWS_AFTER * self._threads:
            self._threads, self._ended_well = self._threads + 1, 0

    def _set_timer(self, delay: float, host: _Host, task: Task | None) -> None:
        heapq.heappush(self._timers, (self._clock() + delay, next(self._numbers), host, task))

    def _fire(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            _, _, host, task = heapq.heappop(self._timers)
            if task is not None:
                host.retrying -= 1
                host.waiting.appendleft(task)
            self._give_up_if_down(host)
            self._make_ready(host)
            self._forget_if_idle(host)

    # Hosts that ask for a pause, and hosts that do not answer.

    def _pause_as_asked(self, host: _Host, seconds: float) -> None:
        """Keep a pause that the server asked for: nothing but its time ends it. With too many in a row, give it up."""
        now = self._clock()
        if now >= host.asked_until:
            host.pauses += 1
        if host.pauses > self._settings.host_failures:
            self._give_up_on(host, "since it asks for one pause after the other")
        elif now + seconds > host.asked_until:
            host.asked_until = now + seconds
            self._pause_host(host, seconds, "as it asked")

    def _pause_host(self, host: _Host, seconds: float, why: str) -> None:
        _LOG.debug("%s: paused for %.1f s, %s", host.origin, seconds, why)
        self._set_timer(seconds, host, None)
        self._recall_from(host)

    def _recall_from(self, host: _Host) -> None:
        for turn in self._turns:
            if turn.host is host:
                self._put_back(turn)

    def _answered(self, host: _Host, *, grow: bool) -> None:
        if self._down:
            self._down.pop(host.origin, None)
        if host.failures:
            host.forget_failures()
        if grow:
            host.pauses = 0
        if grow and host.limit < self._settings.per_host:
            host.limit = min(self._settings.per_host, _GROWTH * host.limit)

    def _missed(self, host: _Host, started: float) -> None:
        """Count a failure to connect; a host with several in a row is asked by one job at a time, ever more rarely."""
        if host.origin in self._down:
            return
        if not host.failures:
            # Nobody asks during a pause that the server asked for: it does not count against the server.
            host.failing_since = max(started, host.asked_until)
            self._set_timer(host.failing_since + self._settings.host_patience - self._clock(), host, None)
        host.failures += 1
        # Those that were already under way when the host was paused tell nothing new.
        if host.failures >= self._settings.host_failures and host.paused_until <= self._clock():
            host.limit = 1
            host.probe_at = self._clock() + host.probe_pause
            self._pause_host(host, host.probe_pause, f"{host.failures} failures in a row")
            host.probe_pause = min(_LONGEST_PROBE_PAUSE, 2 * host.probe_pause)

    def _give_up_if_down(self, host: _Host) -> None:
        patience = self._settings.host_patience
        if host.failures < self._settings.host_failures or self._clock() - host.failing_since < patience:
            return
        self._give_up_on(host, f"after {patience:.0f} s without an answer")

    def _give_up_on(self, host: _Host, why: str) -> None:
        _LOG.debug("%s: given up %s", host.origin, why)
        self._ask_later(host.origin)
        host.forget_failures()
        host.given_up_at, host.pauses = self._clock(), 0
        self._recall_from(host)
        retrying = [task for *_, other, task in self._timers if task is not None and other is host]
        self._timers = [timer for timer in self._timers if timer[2] is not host]
        heapq.heapify(self._timers)
        host.retrying = 0
        waiting, host.waiting = [*host.waiting, *retrying], deque()
        for task in waiting:
            self._finish(task, _host_down())

    def _ask_later(self, origin: str) -> None:
        """Remember a host as down until an answer comes; it is asked no more often than one that is probed."""
        self._down[origin] = self._clock() + max(self._settings.host_patience, _LONGEST_PROBE_PAUSE)
        if len(self._down) > _HOSTS_REMEMBERED:
            del self._down[next(iter(self._down))]


def _host_down() -> Failure:
    return Failure(Reason.HOST_DOWN, "the host does not answer, or asks for one pause after the other")


def _interrupted() -> Failure:
    return Failure(Reason.INTERRUPTED, "the run was ended")

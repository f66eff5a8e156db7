"""The jobs of one host, and what runs of them: counts and connections, beside what is known of the host."""

from __future__ import annotations

from collections.abc import Iterator

from image_loader.model import Job, Result
from image_loader.scheduling.health import Health
from image_loader.transport import Connection

# A worker is given several jobs of a host at once, as long as they are a matter of milliseconds: handing each one over
# costs about as much as fetching a small image from a near server.
_LONGEST_SHARE = 16
SHARE_TIME = 0.02
"""Seconds that the jobs which a worker is given at once take together."""
_PACE_WEIGHT = 1 / 4
"""Weight of the last answer in a host's average pace."""


class Task:
    """A job on its way through the scheduler: its ``attempts`` so far, which took ``seconds`` together.

    ``host`` is the one that is asked next. If redirects led there, ``guest_of`` is the host of the list, where the task
    keeps its place. ``failures`` counts the attempts that use up its retries, ``refusals`` those that a busy host
    refused while it let other jobs through. ``stopped`` says that it was tried again since this process was stopped.
    ``result`` is that of the last attempt. Only the scheduler's own thread writes here.
    """

    __slots__ = ("attempts", "due", "failures", "finished", "guest_of", "host", "job", "refusals", "result", "seconds",
                 "seen", "stopped")  # fmt: skip

    result: Result

    def __init__(self, job: Job, host: Host) -> None:
        self.job = job
        self.host = host
        self.attempts = 0
        self.seconds = 0.0
        self.failures = 0
        self.refusals = 0
        self.stopped = False
        # The successes of its host when it was refused last, and when its next attempt is due.
        self.seen = -1
        self.due = 0.0
        self.guest_of: Host | None = None
        self.finished = False


class Host:
    """One origin: its jobs that wait, the number of those that run, and its connections.

    ``connections`` stand and wait for a worker; ``connecting`` has the slots of those that are being made.
    """

    __slots__ = ("away", "connecting", "connections", "health", "is_settled", "origin", "pace", "retrying", "running",
                 "successes", "waiting", "waits_for_connection", "waits_for_worker", "wakes_at")  # fmt: skip

    def __init__(self, origin: str, health: Health) -> None:
        self.origin = origin
        self.health = health
        # Whether another success changes nothing of its health: asked for each image.
        self.is_settled = False
        # Lists and a dict: in a list of ten thousand hosts, an empty deque for each would take 0.7 kB, a set 0.2 kB.
        self.waiting: list[Task] = []
        self.retrying: dict[Task, None] = {}
        self.connections: list[Connection] = []
        self.connecting: list[int] = []
        self.running = 0
        # Jobs that redirects have led to hosts which answer: they keep their places here.
        self.away = 0
        self.successes = 0
        self.pace: float | None = None
        self.waits_for_connection = False
        self.waits_for_worker = False
        self.wakes_at: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do, and nothing under way."""
        return not (self.waiting or self.running or self.retrying or self.connecting or self.away)

    @property
    def free(self) -> int:
        """How many attempts may start beside those that run."""
        return self.health.at_once - self.running - self.away

    @property
    def connected(self) -> int:
        """How many connections it has, those that are being made among them."""
        return self.running + len(self.connections) + len(self.connecting)

    @property
    def lacks(self) -> int:
        """How many connections more than there are can be used by jobs that wait."""
        most = 1 if self.health.policy.delay else self.free
        return min(len(self.waiting), self.free, most) - len(self.connecting) - len(self.connections)

    def may_start(self, now: float) -> bool:
        """Tell whether one of its jobs may start."""
        return bool(self.waiting) and self.free > 0 and self.health.opens_at <= now

    def share(self, slots: int) -> list[Task]:
        """Take the jobs that one worker is to do next, where so many ``slots`` share what waits."""
        if self.health.interval:
            return [self.waiting.pop(0)]
        size = 1 if self.pace is None else int(SHARE_TIME / max(self.pace, SHARE_TIME / _LONGEST_SHARE))
        fair = -(-len(self.waiting) // slots)
        size = min(max(1, size), fair)
        shared = self.waiting[:size]
        del self.waiting[:size]
        return shared

    @property
    def usual_time(self) -> float:
        """The seconds that an answer takes where all that may run does; 0 where more may start beside it."""
        return self.pace if self.pace is not None and self.free <= 0 else 0.0

    def connection(self) -> Connection:
        """Take the connection that was used last. Its worker checks whether it still stands."""
        return self.connections.pop()

    def keep_pace(self, seconds: float) -> None:
        """Note how long an answer took."""
        self.pace = seconds if self.pace is None else self.pace + _PACE_WEIGHT * (seconds - self.pace)

    def take_all(self) -> Iterator[Task]:
        """Yield all jobs that wait, here or for their next attempt; they are the host's no more."""
        waiting, retrying = self.waiting, self.retrying
        self.waiting, self.retrying = [], {}
        yield from waiting
        yield from retrying

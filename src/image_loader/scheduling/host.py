"""One host and its jobs: what waits, what runs, the connections, beside what is known of the host."""

from __future__ import annotations

import math
from collections.abc import Iterator

from image_loader.model import Job, Result
from image_loader.scheduling.health import Health
from image_loader.transport import Connection

# A worker is given several jobs of a host at once, as long as they are a matter of milliseconds: handing each one over
# costs about as much as fetching a small image from a near server.
_LONGEST_SHARE = 32
"""Jobs; no worker is given more at once."""
SHARE_TIME = 0.04
"""Seconds that the jobs which a worker is given at once take together."""
_PACE_WEIGHT = 1 / 4
"""Weight of the last answer in a host's average pace."""


_NEVER: dict[str, tuple[Host, int]] = {}


class Task:
    """A job on its way through the scheduler; only the scheduler's own thread writes here."""

    __slots__ = ("asks_again", "attempts", "due", "failures", "finished", "guest_of", "host", "job", "refusals",
                 "refused_by", "refused_elsewhere", "result", "seconds", "stopped")  # fmt: skip

    result: Result
    """That of the last attempt."""

    def __init__(self, job: Job, host: Host) -> None:
        self.job = job
        """What is to be asked for next."""
        self.host = host
        """The host that is asked next."""
        self.guest_of: Host | None = None
        """The host of the list, if redirects led to another one: the task keeps its place there."""
        self.attempts = 0
        """Attempts that have ended."""
        self.seconds = 0.0
        """Seconds that the attempts took together."""
        self.failures = 0
        """Attempts that use up its retries."""
        self.refusals = 0
        """Attempts that a busy host refused and that count against the image: see ``judge``."""
        self.refused_by: dict[str, tuple[Host, int]] = _NEVER
        """The hosts that refused it, by origin, and the successes that each one had when it did so last."""
        self.refused_elsewhere = math.inf
        """When a host that redirects have led to refused it first."""
        self.asks_again: tuple[str, float] | None = None
        """The origin of a host that is down, and when it was given up: this job was let through to it."""
        self.stopped = False
        """Whether it was tried again since this process was stopped."""
        self.due = 0.0
        """When its next attempt is due, by the scheduler's clock."""
        self.finished = False
        """Whether its result is final."""

    def __repr__(self) -> str:
        """Return its line, and how far it is."""
        state = "finished" if self.finished else f"{self.attempts} attempts"
        return f"<Task of line {self.job.line}, at {self.host.origin}: {state}>"


class Host:
    """One origin: its jobs that wait, the number of those that run, and its connections.

    The scheduling thread alone writes here; a worker looks whether jobs wait. ``Dispatch`` keeps the connections, what
    runs and where the host stands in queues, ``Jobs`` what is away or waits for its next attempt, ``Judge`` the
    successes and the pace, ``Timers`` when it wakes.
    """

    __slots__ = ("at_once", "away", "connecting", "connections", "guests", "health", "is_settled", "opens_at", "origin",
                 "own", "pace", "retrying", "running", "successes", "waits_for_connection", "waits_for_worker",
                 "wakes_at")  # fmt: skip

    health: Health
    """What is known of it."""
    at_once: int
    """How many attempts may run at once. This and the next two are those of its health, asked for more often than it
    changes."""
    opens_at: float
    """When the next attempt may start."""
    is_settled: bool
    """Whether another success changes nothing of its health."""

    def __init__(self, origin: str, health: Health) -> None:
        self.origin = origin
        """Scheme, host name and port."""
        # Lists and a dict: in a list of ten thousand hosts, an empty deque for each would take 0.7 kB, a set 0.2 kB.
        self.own: list[Task] = []
        """Its own jobs that may start, in their order."""
        self.guests: list[Task] = []
        """Jobs that redirects have led here and that may start, in their order. They come first, and start however many
        of its own jobs are away: otherwise, hosts that redirect to each other would wait for ever."""
        self.retrying: dict[Task, None] = {}
        """Jobs that wait for the time of their next attempt."""
        self.connections: list[Connection] = []
        """Connections that stand and wait for a worker; the last one was used last."""
        self.connecting: list[int] = []
        """The slots of the connections that are being made."""
        self.running = 0
        """Turns that workers have, each with one connection."""
        self.away = 0
        """Jobs that redirects have led to hosts which answer: they keep their places here."""
        self.successes = 0
        """Requests that it let through."""
        self.pace: float | None = None
        """Average seconds that an answer takes; None before the first one."""
        self.waits_for_connection = False
        """Whether it stands in a queue for a connection."""
        self.waits_for_worker = False
        """Whether it stands in the queue for a worker."""
        self.wakes_at: float | None = None
        """When its timer runs out; None if none is set."""
        self.note(health)

    def __repr__(self) -> str:
        """Return its origin, its state, and how many jobs it has."""
        return f"<Host {self.origin}: {self.health.state.value}, {self.waiting} wait, {self.running} run>"

    def note(self, health: Health) -> None:
        """Take over what is known of it now."""
        self.health = health
        self.at_once, self.opens_at, self.is_settled = health.at_once, health.opens_at, health.is_settled

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do, and nothing under way."""
        return not (self.waiting or self.running or self.retrying or self.connecting or self.away)

    @property
    def waiting(self) -> int:
        """How many jobs may start as far as they are concerned."""
        return len(self.own) + len(self.guests)

    @property
    def free(self) -> int:
        """How many attempts may start beside those that run."""
        room = self.at_once - self.running
        return min(room, max(room - self.away, 0) + len(self.guests)) if self.away else room

    @property
    def startable(self) -> int:
        """How many of the waiting jobs may start at once, as soon as the host opens."""
        free = self.free
        if free > 1 and self.health.policy.delay:
            free = 1
        return min(self.waiting, free)

    @property
    def spare_connections(self) -> int:
        """How many connections wait for a worker, or are being made."""
        return len(self.connections) + len(self.connecting)

    @property
    def connection_count(self) -> int:
        """How many connections it has: in use, waiting for a worker, or being made."""
        return self.running + self.spare_connections

    def may_start(self, now: float) -> bool:
        """Tell whether one of its jobs may start."""
        return self.opens_at <= now and self.startable > 0

    @property
    def usual_time(self) -> float:
        """Average seconds an answer takes if the host is full; 0 if it is not."""
        return self.pace if self.pace is not None and self.free <= 0 else 0.0

    def keep_pace(self, seconds: float) -> None:
        """Note how long an answer took."""
        self.pace = seconds if self.pace is None else self.pace + _PACE_WEIGHT * (seconds - self.pace)

    def is_asked_again_by(self, task: Task) -> bool:
        """Tell whether this is the job that was let through to it since it was given up."""
        return task.asks_again == (self.origin, self.health.given_up_at)

    # The jobs that wait -----------------------------------------------------------------------------------------------

    def put_first(self, task: Task) -> None:
        """Have a job wait in front of all others of its kind."""
        (self.guests if self._is_guest(task) else self.own).insert(0, task)

    def put_going_on(self, task: Task) -> None:
        """Have a job whose attempt goes on here wait in front of those that have not begun."""
        if self._is_guest(task):
            self.guests.append(task)
        else:
            self.own.insert(0, task)

    def put_behind(self, task: Task, count: int) -> None:
        """Have a job of its own wait behind so many others."""
        self.own.insert(count, task)

    def go_on_elsewhere(self, chance: float) -> None:
        """Begin with another part of its own jobs; ``chance``, from 0 to 1, says which."""
        at = len(self.own) - int(chance * len(self.own))
        self.own[:] = self.own[at:] + self.own[:at]

    def take_first(self) -> Task:
        """Take the job that waits in front."""
        return (self.guests or self.own).pop(0)

    def take_share(self, slots: int) -> list[Task]:
        """Take the jobs that one worker is to do next, where so many ``slots`` share what waits."""
        if self.health.interval:
            return [self.take_first()]
        queue = self.guests or self.own
        size = 1 if self.pace is None else int(SHARE_TIME / max(self.pace, SHARE_TIME / _LONGEST_SHARE))
        fair = -(-len(queue) // slots)
        size = min(max(1, size), fair)
        shared = queue[:size]
        del queue[:size]
        return shared

    def take_all(self) -> Iterator[Task]:
        """Yield all jobs that wait, here or for their next attempt; they are the host's no more."""
        guests, own, retrying = self.guests, self.own, self.retrying
        self.guests, self.own, self.retrying = [], [], {}
        yield from guests
        yield from own
        yield from retrying

    def _is_guest(self, task: Task) -> bool:
        return task.job.hop is not None and task.job.url.origin != self.origin

"""What is known of one host, as a pure value: whether it may be asked, how many at once, and when next."""

# No annotation is a string here: see ``model``.
import math
from enum import Enum
from typing import NamedTuple, Self

_SLOW_START = 3
"""Attempts at once at a host that has not answered yet: one that hangs holds no more."""
_GROWTH = 4
"""Factor of the attempts at once with each answer, until the limit is reached."""

# A host that is busy, and refuses requests, without a word about when to come back is slowed down: fewer at once, and a
# longer interval; while it refuses all, one at a time after pauses of 1, 2, 4 … s. Each success gives a little of that
# back. The tests simulate it with fixed and sliding windows, token buckets and outages, at 1 and 50 ms: at most twice
# the time that the limit allows, and 1.3 requests an image on average.
_FIRST_INTERVAL = 0.03
"""Seconds between two requests after the first refusal."""
_SHORTEST_INTERVAL = 0.004
"""Seconds; a shorter interval counts as none."""
_GROWS_TO = 1.3
"""Factor of the interval after a refusal, and after a second one in a row; the next ones are pauses that grow."""
_NARROWS_TO = 0.7
"""Factor of the attempts at once after a refusal."""
_LONGEST_INTERVAL = 2.0
"""Seconds; longest interval. A host that allows fewer requests is paused instead."""
_SHRINKS_TO = 0.93
"""Factor of the interval after a success: where a server refuses a fifth of all requests at random, it stays short."""
_WIDENS_BY = 0.5
"""Attempts at once, divided by the limit, that each success adds to the limit."""
_OPTIMISM = 0.5
"""Fraction of the average interval between two refusals at which a host is asked after the second one."""
_LONGEST_ESTIMATE = 0.5
"""Seconds; longest interval that is taken from such an average."""
_FIRST_PAUSE = 1.0
"""Seconds; first pause after a refusal or before a probe, and the shortest that a server can ask for."""
_LONGEST_PAUSE = 32.0
"""Seconds; longest pause that no server asked for."""
_LONGEST_PROBE_PAUSE = 8.0
"""Seconds between two probes of a host that does not answer, at most."""
_KNOWN_PATIENCE = 2
"""Factor of the patience with a host that has let images through: many limits are those of a minute."""


# What leads from one state to another. "Refused" is a busy status, "missed" is no connection or no answer, "answered"
# is everything else. The caller gives a host up (``is_over``) or spares it.
#
# ========  ===================  ========================  ===========================  ==============================
# State     answered             refused                   missed                       later
# ========  ===================  ========================  ===========================  ==============================
# READY     READY                PAUSED                    PROBING after ``failures``
# SLOWED    READY at full speed  PAUSED                    PROBING after ``failures``
# PAUSED    SLOWED               PAUSED for longer; DOWN   PROBING after ``failures``   asked once, after each pause
#                                after the patience, or
#                                SLOWED if spared
# PROBING   as without misses    PAUSED                    PROBING, more seldom         DOWN after the patience
# DOWN      SLOWED or READY      PAUSED                    DOWN                         asked once, after each rest
# ========  ===================  ========================  ===========================  ==============================
#
# What comes of an attempt that is older than the last refusal ends PROBING and DOWN, and the pause that it asks for
# counts. Otherwise it changes nothing: the host was slowed down since.


class State(Enum):
    """What may be done with a host."""

    READY = "ready"
    """It is asked as fast as the limit lets it."""
    SLOWED = "slowed"
    """It has refused requests: fewer at once, with an interval between them."""
    PAUSED = "paused"
    """It refuses requests: after a pause it is asked by one at a time."""
    PROBING = "probing"
    """It does not answer: it is asked by one at a time, at growing intervals."""
    DOWN = "down"
    """It is given up, except for one request now and then."""


class Policy(NamedTuple):
    """What holds for all hosts of a run."""

    per_host: int
    """Attempts at once at one host, at most."""
    failures: int
    """Attempts in a row without an answer after which a host is probed; more refusals in a row may have it given up."""
    patience: float
    """Seconds without a success after which a host is given up."""
    longest_pause: float
    """Seconds; longest pause that a server can ask for."""
    delay: float = 0.0
    """Seconds between the starts of two attempts at one host, at least, whatever it allows."""


class Health(NamedTuple):
    """What is known of a host; each event makes another value. Times are those of one monotonic clock, in seconds.

    Nothing starts before ``next_at``, ``paused_until`` and ``probe_at``.
    """

    policy: Policy
    """What holds for all hosts."""
    limit: float
    """Attempts at once; a fraction counts once it has grown to a whole one."""
    interval: float
    """Seconds between the starts of two attempts."""
    next_at: float = 0.0
    """When the interval after the last start is over."""
    paused_until: float = 0.0
    """When the pause after a refusal is over."""
    slowed_at: float = -math.inf
    """When it was last refused and slowed down: refusals of, and answers to, older attempts do not count."""
    refusals: int = 0
    """Refusals in a row."""
    refused_since: float = 0.0
    """When the first of them came."""
    resumed_at: float = 0.0
    """When it last began to let requests through."""
    successes: int = 0
    """Requests that it had let through by then."""
    patience: float = 0.0
    """Seconds without a success after which it is given up: more if it has let requests through before."""
    misses: int = 0
    """Attempts in a row without a connection or an answer."""
    missing_since: float = 0.0
    """When the first of them was started, or the pause before it ended."""
    probe_at: float = 0.0
    """When a host that does not answer is asked next."""
    probe_pause: float = _FIRST_PAUSE
    """Seconds to the probe after that one."""
    ask_at: float | None = None
    """When a host that is down is asked again; None if it is not down."""
    given_up_at: float = -math.inf
    """When it was given up: refusals of older attempts do not count."""

    @classmethod
    def unknown(cls, policy: Policy, now: float) -> Self:
        """Return what is known of a host that was never asked.

        >>> Health.unknown(Policy(per_host=10, failures=5, patience=30.0, longest_pause=120.0), now=0.0).limit
        3
        """
        limit = min(_SLOW_START, policy.per_host)
        return cls(policy, limit, policy.delay, resumed_at=now, patience=policy.patience)

    @property
    def state(self) -> State:
        """The state that all of it amounts to."""
        if self.ask_at is not None:
            return State.DOWN
        if self._is_probed:
            return State.PROBING
        if self.refusals:
            return State.PAUSED
        return State.SLOWED if self._was_slowed and not self.is_settled else State.READY

    @property
    def is_settled(self) -> bool:
        """Whether another success changes nothing."""
        slow = self.interval > self.policy.delay or self.refusals or self.misses
        return self._is_wide and not slow and self.ask_at is None

    @property
    def opens_at(self) -> float:
        """When the next attempt may start."""
        pause_ends = self._pause_ends
        return self.next_at if self.next_at > pause_ends else pause_ends

    @property
    def at_once(self) -> int:
        """How many attempts may run at once."""
        if self.refusals or self._is_probed or self.ask_at is not None:
            return 1
        return int(self.limit)

    @property
    def _pause_ends(self) -> float:
        return self.paused_until if self.paused_until > self.probe_at else self.probe_at

    @property
    def _was_slowed(self) -> bool:
        return self.slowed_at > -math.inf

    @property
    def _is_wide(self) -> bool:
        return self.limit >= self.policy.per_host

    @property
    def _is_probed(self) -> bool:
        return self.misses >= self.policy.failures

    def wakes_at(self, now: float) -> float | None:
        """Return when it has to be looked at next, though nothing happened: a pause is over, or the patience."""
        times = [self.opens_at]
        if self._is_probed:
            times.append(self.missing_since + self.policy.patience)
        return min((at for at in times if at > now), default=None)

    def is_over(self, now: float) -> bool:
        """Tell whether the patience with it is over: it neither answers nor lets anything through."""
        if self._is_probed and now - self.missing_since >= self.policy.patience:
            return True
        # Up to the last refusal, not up to now: the pause after it may have been long enough.
        return self.refusals > self.policy.failures and self.slowed_at - self.refused_since >= self.patience

    def met_again(self, now: float) -> Self:
        """Return what is known of a host that gets jobs again: what it lets through is counted from here on."""
        return self._replace(resumed_at=now, successes=0)

    def started(self, now: float) -> Self:
        """Note that an attempt starts."""
        return self._replace(next_at=now + self.interval) if self.interval else self

    def answered(self, now: float, started: float, successes: int) -> Self:
        """Note an answer, to an attempt that was ``started`` then, that is no refusal; ``successes`` with this one."""
        health = self.reached()
        if started <= health.slowed_at:
            return health
        if health.refusals:
            health = health._resumed(now, started, successes)
        return health._sped_up()

    def refused(self, now: float, started: float, pause: float | None, successes: int) -> Self:
        """Note that the host is busy, and the ``pause`` that it asked for, if it did."""
        health = self.reached()
        asked = None if pause is None else min(max(pause, _FIRST_PAUSE), self.policy.longest_pause)
        if started <= max(health.slowed_at, health.given_up_at):
            return health if asked is None else health._paused(now + asked)
        if health.refusals:
            own_pause = min(_FIRST_PAUSE * 2.0 ** (health.refusals - 1), _LONGEST_PAUSE)
            health = health._slowed(_GROWS_TO if health.refusals == 1 else 1.0)._replace(limit=1.0)
        else:
            health = health._slowed(_GROWS_TO)._replace(refused_since=now, patience=health._patience(successes))
            own_pause = health.interval
        health = health._replace(refusals=health.refusals + 1, slowed_at=now)
        return health._paused(now + (max(own_pause, health.interval) if asked is None else asked))

    def missed(self, now: float, started: float) -> Self:
        """Note that no connection or no answer came of an attempt."""
        if self.ask_at is not None:
            return self
        since = self.missing_since if self.misses else max(started, self.paused_until)
        health = self._replace(misses=self.misses + 1, missing_since=since)
        # Attempts that were already under way when the host was paused do not count.
        if not health._is_probed or health._pause_ends > now:
            return health
        longer = min(_LONGEST_PROBE_PAUSE, 2 * health.probe_pause)
        return health._replace(probe_at=now + health.probe_pause, probe_pause=longer)

    def given_up(self, now: float) -> Self:
        """Return what is known of a host that was given up now."""
        health = self.reached()
        return health._replace(limit=1.0, refusals=0, ask_at=now + health._rest, given_up_at=now)

    def spared(self) -> Self:
        """Return what is known of a host that is kept, since it refused only the images that failed."""
        return self._replace(refusals=0)

    def asked(self, now: float) -> Self:
        """Note that a host which is down is asked again by one job."""
        return self._replace(ask_at=now + self._rest)

    def not_asked(self, now: float) -> Self:
        """Note that the one job which was to ask it, although it is down, did not: the next one may."""
        return self._replace(ask_at=now)

    def reached(self) -> Self:
        """Note that it answers, whatever the answer is; a pause that it asked for goes on."""
        if not self.misses and self.ask_at is None:
            return self
        return self._replace(misses=0, probe_at=0.0, probe_pause=_FIRST_PAUSE, ask_at=None)

    @property
    def _rest(self) -> float:
        """Seconds for which a host that is down is left alone: no less than one that is probed."""
        return max(self.policy.patience, _LONGEST_PROBE_PAUSE)

    def _slowed(self, factor: float) -> Self:
        """Return it with so many times the interval, and fewer attempts at once."""
        interval = max(min(max(_FIRST_INTERVAL, factor * self.interval), _LONGEST_INTERVAL), self.policy.delay)
        return self._replace(limit=max(1.0, _NARROWS_TO * self.limit), interval=interval)

    def _patience(self, successes: int) -> float:
        return self.policy.patience * (_KNOWN_PATIENCE if successes else 1)

    def _paused(self, until: float) -> Self:
        return self._replace(paused_until=until) if until > self.paused_until else self

    def _resumed(self, now: float, started: float, successes: int) -> Self:
        """Return it as a host that lets requests through again, about as often as it did in the cycle that ends."""
        if self.refusals == 1:
            return self._replace(refusals=0)
        let_through, interval = successes - 1 - self.successes, self.interval
        if let_through:
            average = (now - self.resumed_at) / let_through
            interval = max(interval, min(_OPTIMISM * average, _LONGEST_ESTIMATE))
        health = self._replace(refusals=0, interval=interval, resumed_at=now, successes=successes - 1)
        return health._paused(started + interval)

    def _sped_up(self) -> Self:
        interval = self.interval * _SHRINKS_TO
        growth = _WIDENS_BY / self.limit if self._was_slowed else self.limit * (_GROWTH - 1)
        limit = min(float(self.policy.per_host), self.limit + growth)
        interval = interval if interval >= _SHORTEST_INTERVAL else 0.0
        return self._replace(limit=limit, interval=max(interval, self.policy.delay))

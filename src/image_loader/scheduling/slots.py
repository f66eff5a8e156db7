"""Limits the connections being made: enough to get past dead hosts, no more than workers will soon use."""

from __future__ import annotations

import resource

from image_loader.settings import Settings

_YOUNG = 0.25
"""Seconds; a connection that takes longer to make is no longer counted among those that will soon stand."""
_CONNECTIONS_AHEAD = 2
"""Connections for each thread that may stand or be expected: so a worker that is done finds its next one."""
_RETRY_SHARE = 1 / 2
"""Fraction of the slots that hosts which did not answer get."""
_PER_THREAD = 2
"""Descriptors that a worker needs, for its connection and for its file."""
_PER_CONNECT = 2
"""Descriptors that a connect may take, for two addresses of one host."""
_CONNECTS_TO_GROW = 2
"""Connects for each slot that must end after descriptors ran out, before there is one slot more."""
_OTHERS = 32
"""Descriptors for the index, the list, the terminal and the like."""


def connects_at_most(settings: Settings) -> int:
    """Return how many connections may be made at once: as many as the settings say, or the descriptors allow.

    Where the workers would take most of the descriptors, they have to share them: dead hosts hold connects for long.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return settings.connects
    spare = limit - _OTHERS
    share = max(spare - _PER_THREAD * settings.threads, spare // 2)
    return max(1, min(settings.connects, share // _PER_CONNECT))


class Allowance:
    """How many may be under way at once: fewer once descriptors have run out, then one more every now and then."""

    def __init__(self, most: int, ends_to_grow: int) -> None:
        """``ends_to_grow`` ends for each one that is allowed now, and one more is allowed."""
        self.most = most
        """How many are allowed if there are descriptors for all."""
        self.current = most
        """How many are allowed now."""
        self._ends_to_grow = ends_to_grow
        self._ended = 0
        """Ends since the number changed last."""
        self._shrunk_at = float("-inf")

    def shrink(self, to: int, started: float, now: float) -> bool:
        """Allow ``to`` from now on, but at least one; tell whether these are fewer.

        What was ``started`` before the last time does not count: those run out of descriptors together.
        """
        if started <= self._shrunk_at:
            return False
        before, self.current = self.current, max(1, min(to, self.current))
        self._shrunk_at, self._ended = now, 0
        return self.current < before

    def note_end(self) -> None:
        """Note that one has ended. Now and then, allow one more: there may be descriptors again."""
        if self.current == self.most:
            return
        self._ended += 1
        if self._ended >= self._ends_to_grow * self.current:
            self.current, self._ended = self.current + 1, 0


class Slots:
    """Counts the connections that are being made, for the scheduling thread; times are seconds of its clock."""

    def __init__(self, most: int, threads: int) -> None:
        """``most`` are made at once."""
        self._allowed = Allowance(most, _CONNECTS_TO_GROW)
        self._expected = _CONNECTIONS_AHEAD * threads
        """Connections that may stand or be expected."""
        self._young: dict[int, float] = {}
        """When each of those that will soon stand was begun, by its number."""
        self._old: set[int] = set()
        """Those that take longer."""
        self._retries: set[int] = set()
        """Those to hosts that did not answer before."""
        self._number = 0

    @property
    def in_use(self) -> int:
        """How many are being made."""
        return len(self._young) + len(self._old)

    def has_room(self, now: float, standing: int, *, retry: bool = False) -> bool:
        """Tell whether one more may be begun while so many connections are ``standing`` that wait for a worker."""
        self._grow_old(now)
        if retry and len(self._retries) >= max(1, int(_RETRY_SHARE * self._allowed.current)):
            return False
        return self.in_use < self._allowed.current and len(self._young) + standing < self._expected

    def expects(self, now: float) -> bool:
        """Tell whether one that is being made is likely to stand in a moment."""
        self._grow_old(now)
        return bool(self._young)

    def begin(self, now: float, *, retry: bool = False) -> int:
        """Take a slot; return its number."""
        self._number += 1
        self._young[self._number] = now
        if retry:
            self._retries.add(self._number)
        return self._number

    def end(self, number: int) -> None:
        """Give a slot back."""
        self._allowed.note_end()
        self._young.pop(number, None)
        self._old.discard(number)
        self._retries.discard(number)

    def next_at(self) -> float | None:
        """Return when the next one takes too long to be expected, which makes room for another."""
        return next(iter(self._young.values())) + _YOUNG if self._young else None

    def shrink(self, started: float, now: float) -> bool:
        """Make fewer at once, since one that was ``started`` then lacked descriptors; False if it was the only one."""
        several = self._allowed.current > 1
        self._allowed.shrink(min(self._allowed.current, self.in_use) // 2, started, now)
        return several

    def _grow_old(self, now: float) -> None:
        while self._young:
            number, begun = next(iter(self._young.items()))
            if now - begun < _YOUNG:
                return
            del self._young[number]
            self._old.add(number)

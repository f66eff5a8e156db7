"""How many connections are made at once: many, where hosts are dead, but none that no worker is going to use soon."""

from __future__ import annotations

import resource

from image_loader.settings import Settings

_YOUNG = 0.25
"""Seconds; a connection that takes longer to make is no longer counted among those that will soon stand."""
_AHEAD = 2
"""Connections that may stand or be expected, for each thread: so a worker that is done finds its next one."""
_RETRY_SHARE = 2
"""The part of the slots that hosts which did not answer get: one half."""
_PER_THREAD = 2
"""Descriptors that a worker needs, for its connection and for its file."""
_PER_CONNECT = 2
"""Descriptors that a connect may take, for two addresses of one host."""
_GROWS_AFTER = 2
"""After descriptors ran out: connects for each slot that must end before there is one slot more."""
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


class Slots:
    """Counts the connections that are being made; times are seconds of the scheduler's clock."""

    def __init__(self, most: int, threads: int) -> None:
        """``most`` are made at once."""
        self._most = self._all = most
        self._shrunk_at = float("-inf")
        self._ended = 0
        self._expected = _AHEAD * threads
        self._young: dict[int, float] = {}
        self._old: set[int] = set()
        self._retries: set[int] = set()
        self._number = 0

    @property
    def in_use(self) -> int:
        """How many are being made."""
        return len(self._young) + len(self._old)

    @property
    def most(self) -> int:
        """How many may be made at once."""
        return self._most

    def has_room(self, now: float, standing: int, *, retry: bool = False) -> bool:
        """Tell whether one more may be begun while so many connections are ``standing`` that wait for a worker."""
        self._grow_old(now)
        if retry and len(self._retries) >= max(1, self._most // _RETRY_SHARE):
            return False
        return self.in_use < self._most and len(self._young) + standing < self._expected

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
        """Give a slot back. Now and then, allow one more: there may be descriptors again."""
        self._ended += 1
        if self._most < self._all and self._ended >= _GROWS_AFTER * self._most:
            self._most, self._ended = self._most + 1, 0
        self._young.pop(number, None)
        self._old.discard(number)
        self._retries.discard(number)

    def next_at(self) -> float | None:
        """Return when the next one takes too long to be expected, which makes room for another."""
        return next(iter(self._young.values())) + _YOUNG if self._young else None

    def shrink(self, started: float, now: float) -> bool:
        """Make fewer at once, since descriptors have run out; False if it is one already.

        Connections that were ``started`` before the last time do not count.
        """
        least = self._most <= 1
        if started > self._shrunk_at:
            self._most = max(1, min(self._most, self.in_use) // 2)
            self._shrunk_at, self._ended = now, 0
        return not least

    def _grow_old(self, now: float) -> None:
        while self._young:
            number, begun = next(iter(self._young.items()))
            if now - begun < _YOUNG:
                return
            del self._young[number]
            self._old.add(number)

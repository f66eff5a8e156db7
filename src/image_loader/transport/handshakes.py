"""How many TLS handshakes are made at once: each takes 40 kB, and a connection that waits for its turn hardly any."""

from __future__ import annotations

from collections import OrderedDict

MOST = 256
"""Handshakes at once: more than the hosts that are likely to accept connections and never shake hands."""


class Handshakes:
    """Turns for connections that stand, by their numbers, ``most`` at once; used by the connector's thread alone."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._under_way: set[int] = set()
        self._waiting: OrderedDict[int, None] = OrderedDict()

    def enter(self, number: int) -> bool:
        """Take a turn, or stand in line for one."""
        if len(self._under_way) >= self._most:
            self._waiting[number] = None
            return False
        self._under_way.add(number)
        return True

    def leave(self, number: int) -> int | None:
        """Give up a turn, or the place in the line; return who has the turn now, if anyone has."""
        self._waiting.pop(number, None)
        if number not in self._under_way:
            return None
        self._under_way.discard(number)
        if not self._waiting:
            return None
        following, _ = self._waiting.popitem(last=False)
        self._under_way.add(following)
        return following

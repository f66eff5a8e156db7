"""How many connections take a step at once: the others stand in line."""

from __future__ import annotations

from collections import OrderedDict


class Admission:
    """Admits ``most`` at a time, by their numbers, in their order; used by the connector's thread alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._admitted: set[int] = set()
        self._waiting: OrderedDict[int, None] = OrderedDict()

    def enter(self, number: int) -> bool:
        """Be admitted, or stand in line."""
        if len(self._admitted) >= self._most:
            self._waiting[number] = None
            return False
        self._admitted.add(number)
        return True

    def leave(self, number: int) -> int | None:
        """Give up the place, inside or in the line; return who is admitted for it, if anyone is."""
        self._waiting.pop(number, None)
        if number not in self._admitted:
            return None
        self._admitted.discard(number)
        if not self._waiting:
            return None
        following, _ = self._waiting.popitem(last=False)
        self._admitted.add(following)
        return following

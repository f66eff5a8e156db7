"""Which rows of the index this run has seen: one bit of memory for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

_BYTES = 4096
"""Bytes of one part: bits for eight times as many rows."""


class SeenRows:
    """A set of rows, which are numbers from 1.

    >>> seen = SeenRows()
    >>> seen.add(7), seen.add(7), 7 in seen, 8 in seen
    (True, False, True, False)
    """

    def __init__(self) -> None:
        # In parts, since other programs may have left gaps.
        self._parts: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(_BYTES))

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __contains__(self, row: int) -> bool:
        byte = row >> 3
        part = self._parts.get(byte // _BYTES)
        return part is not None and bool(part[byte % _BYTES] & 1 << (row & 7))

    def add(self, row: int) -> bool:
        """Add a row; return whether it was not there before."""
        byte, bit = row >> 3, 1 << (row & 7)
        part, place = self._parts[byte // _BYTES], byte % _BYTES
        if part[place] & bit:
            return False
        part[place] |= bit
        return True

    def parts(self) -> dict[int, bytes]:
        """Return all of it, for ``merge`` in another process of this run."""
        return {number: bytes(part) for number, part in self._parts.items()}

    def merge(self, parts: Mapping[int, bytes]) -> None:
        """Add what another process of this run has seen."""
        for number, part in parts.items():
            mine = int.from_bytes(self._parts[number])
            self._parts[number][:] = (mine | int.from_bytes(part)).to_bytes(_BYTES)

"""Unpacking gzip and deflate: member by member, a bounded number of bytes at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

GZIP = zlib.MAX_WBITS | 16
"""zlib's number for gzip (RFC 1952)."""
DEFLATE = zlib.MAX_WBITS
"""zlib's number for what HTTP calls deflate (RFC 1950); negative, it is the same without header and checksum."""
# Bytes fed at once. When a member ends, zlib copies all behind it: of 256 kB of empty members, each would cost a copy
# of 128 kB on average (seven times the time in all).
_FED = 8192


class Unpacker:
    r"""Unpacks members that stand one after the other (RFC 1952, 2.2), at most ``limit`` bytes at a time.

    Bytes in ``padding`` that stand behind a member are passed over.

    >>> import gzip
    >>> unpacker = Unpacker(GZIP, limit=3, padding=b"\0")
    >>> list(unpacker.unpack(gzip.compress(b"abcd") + gzip.compress(b"e") + bytes(9))), unpacker.is_at_end
    ([b'abc', b'd', b'e'], True)
    """

    def __init__(self, wbits: int, limit: int, padding: bytes = b"") -> None:
        self._wbits = wbits
        self._limit = limit
        self._padding = padding
        self._member = zlib.decompressobj(wbits)

    @property
    def is_at_end(self) -> bool:
        """Whether what was fed so far ends where a member does."""
        return self._member.eof

    def unpack(self, piece: bytes) -> Iterator[bytes]:
        """Yield what a piece holds; raise ``zlib.error`` where it is no such thing."""
        waiting, content = piece.lstrip(self._padding) if self._member.eof else piece, b""
        # What does not fit may be left in the member when all that was fed has gone into it.
        while waiting or len(content) == self._limit:
            if self._member.eof and waiting:
                self._member = zlib.decompressobj(self._wbits)
            if content := self._member.decompress(waiting, self._limit):
                yield content
            # At the end of a member, zlib may leave what stands behind it in both places.
            ended = self._member.eof
            waiting = self._member.unused_data.lstrip(self._padding) if ended else self._member.unconsumed_tail


def pieces(chunk: bytes) -> Iterator[bytes]:
    """Yield a chunk in pieces that are small enough to be fed at once."""
    return (chunk[start : start + _FED] for start in range(0, len(chunk), _FED))

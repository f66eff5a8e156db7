"""Content codings: what a server compressed unasked is unpacked, whole or not at all (RFC 9110, 8.4.1)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from image_loader.errors import DownloadError
from image_loader.model import Reason

_GZIP = zlib.MAX_WBITS | 16
_PLAIN = frozenset({"", "identity"})
# Bytes unpacked at once. When a member ends, zlib copies all behind it: of 256 kB of empty members, each would cost a
# copy of 128 kB on average (seven times the time in all).
_FED = 8192


def decoded(chunks: Iterable[bytes], coding: str, limit: int) -> Iterator[bytes]:
    """Yield the content of ``chunks``, at most ``limit`` bytes at a time, so that a small bomb stays small in memory.

    Raises ``DownloadError`` for a coding that is not known, and for one that ends before its content does.
    """
    coding = coding.strip().lower()
    if coding in _PLAIN:
        return iter(chunks)
    if coding in ("gzip", "x-gzip"):
        return _inflated(chunks, _GZIP, limit)
    if coding == "deflate":
        return _inflated(chunks, zlib.MAX_WBITS, limit)
    raise DownloadError(Reason.PROTOCOL, "a content coding that was not asked for")


def is_plain(coding: str) -> bool:
    """Whether the bytes on the wire are the content itself."""
    return coding.strip().lower() in _PLAIN


def _inflated(chunks: Iterable[bytes], wbits: int, limit: int) -> Iterator[bytes]:
    unpacker = None
    for piece in _pieces(chunks):
        if unpacker is None:
            unpacker = zlib.decompressobj(_window(piece, wbits))
        waiting, content = piece, b""
        # What does not fit into one piece may be left in the unpacker when all that was fed has gone into it.
        while waiting or len(content) == limit:
            # A gzip file may have several members, one after the other (RFC 1952, 2.2).
            if unpacker.eof and waiting:
                unpacker = zlib.decompressobj(wbits)
            try:
                content = unpacker.decompress(waiting, limit)
            except zlib.error as error:
                raise DownloadError(Reason.DAMAGED, "the compressed body cannot be unpacked") from error
            if content:
                yield content
            waiting = unpacker.unconsumed_tail or unpacker.unused_data
    if unpacker is None or not unpacker.eof:
        raise DownloadError(Reason.TRUNCATED, "the compressed body ends too early", retryable=True)


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    return (chunk[start : start + _FED] for chunk in chunks for start in range(0, len(chunk), _FED))


def _window(chunk: bytes, wbits: int) -> int:
    # Some servers send deflate without its zlib header, whose low four bits are an 8 (RFC 1950, 2.2).
    return -wbits if wbits == zlib.MAX_WBITS and chunk[0] & 0x0F != 8 else wbits

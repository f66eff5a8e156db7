"""Content codings: what a server compressed unasked is unpacked, whole or not at all (RFC 9110, 8.4.1)."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator

from image_loader.errors import DownloadError
from image_loader.model import Reason
from image_loader.unpacking import DEFLATE, GZIP, Unpacker, pieces

_WINDOWS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": DEFLATE}
# The rest of IANA's registry of content codings. What is in neither table is no coding, but some server's mistake.
_UNDECODABLE = frozenset({"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"})
_MOST_CODINGS = 2
"""Codings one on top of the other: two happen, where both an application and its server compress."""


def decoded(
    chunks: Iterable[bytes], coding: str, limit: int, check: Callable[[], None] = lambda: None
) -> Iterator[bytes]:
    """Yield the content of ``chunks``, at most ``limit`` bytes at a time, so that a small bomb stays small in memory.

    ``check`` is called now and then while chunks are worked on; it raises when there is no time left. Raises
    ``DownloadError`` for a coding that cannot be decoded, and for one that ends before its content does.
    """
    content = iter(chunks)
    if not coding:
        return content
    codings = _codings(coding)
    for name in codings:
        if name in _UNDECODABLE:
            raise DownloadError(Reason.PROTOCOL, f"Content-Encoding is {name}, which cannot be decoded")
    if len(codings) > _MOST_CODINGS:
        raise DownloadError(Reason.PROTOCOL, f"Content-Encoding names {len(codings)} codings, one upon the other")
    for name in reversed(codings):
        content = _inflated(content, _WINDOWS[name], limit, check)
    return content


def is_plain(coding: str) -> bool:
    """Whether the bytes on the wire are the content itself.

    >>> is_plain("utf-8, identity"), is_plain("none, gzip")
    (True, False)
    """
    return not coding or not _codings(coding)


@functools.lru_cache(64)
def _codings(coding: str) -> tuple[str, ...]:
    """Return the codings in a Content-Encoding, in the order of their use; what names none is passed over."""
    # A parameter is no part of the grammar; with it, the body is compressed all the same.
    names = (member.partition(";")[0].strip(" \t\"'").lower() for member in coding.split(","))
    return tuple(name for name in names if name in _WINDOWS or name in _UNDECODABLE)


def _inflated(chunks: Iterable[bytes], wbits: int, limit: int, check: Callable[[], None]) -> Iterator[bytes]:
    unpacker = None
    for piece in itertools.chain.from_iterable(map(pieces, chunks)):
        check()
        unpacker = unpacker or Unpacker(_window(piece, wbits), limit)
        try:
            yield from unpacker.unpack(piece)
        except zlib.error as error:
            raise DownloadError(Reason.DAMAGED, "the compressed body cannot be unpacked") from error
    if unpacker is None or not unpacker.is_at_end:
        raise DownloadError(Reason.TRUNCATED, "the compressed body ends too early", retryable=True)


def _window(chunk: bytes, wbits: int) -> int:
    # Some servers send deflate without its zlib header, whose low four bits are an 8 (RFC 1950, 2.2).
    return -wbits if wbits == DEFLATE and chunk[0] & 0x0F != 8 else wbits

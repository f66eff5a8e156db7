"""Content codings: what a server compressed unasked is unpacked, whole or not at all (RFC 9110, 8.4.1)."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator

from image_loader.errors import DownloadError
from image_loader.model import Reason

_GZIP = zlib.MAX_WBITS | 16
_WINDOWS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}
# The rest of IANA's registry of content codings. What is in neither table is no coding, but some server's mistake.
_UNDECODABLE = frozenset({"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"})
# Twice happens, where both an application and its server compress.
_MOST_CODINGS = 2
# Bytes unpacked at once. When a member ends, zlib copies all behind it: of 256 kB of empty members, each would cost a
# copy of 128 kB on average (seven times the time in all).
_FED = 8192


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
    for piece in _pieces(chunks):
        check()
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

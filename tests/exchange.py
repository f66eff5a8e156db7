"""A request as it arrived, an image to answer it with, and what a well-behaved server says."""

from __future__ import annotations

import hashlib
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from server import Server

PNG = "Content-Type: image/png"


class End(Enum):
    """How a connection ends."""

    CLOSE = auto()
    CLOSE_NOTIFY = auto()
    RESET = auto()
    STALL = auto()


Step = bytes | float | threading.Event | End
"""Bytes to send, seconds to wait, an event to wait for, or the end of the connection."""
Steps = Iterator[Step]


@dataclass(frozen=True)
class Request:
    """One request as it arrived; header names are in lower case, ``number`` counts those for the same target from 1."""

    server: Server
    target: str
    headers: Mapping[str, str]
    number: int
    connection: int
    time: float

    @property
    def path(self) -> str:
        """The path alone."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query."""
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def body(self) -> bytes:
        """The image that stands at this target."""
        return self.server.image(self.target)


@lru_cache(maxsize=20_000)
def png(seed: str, size: int) -> bytes:
    """Return a true PNG of about ``size`` bytes, distinct for each seed; a private chunk fills it up."""
    digest = hashlib.shake_256(seed.encode())
    rows = b"".join(b"\0" + digest.digest(24) for _ in range(8))
    head_and_pixels = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(rows)),
    ]
    filling = size - 8 - sum(map(len, head_and_pixels)) - 12 - 12
    chunks = [*head_and_pixels, _chunk(b"teSt", digest.digest(max(filling, 0))), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def head(*lines: str, status: str = "200 OK", version: str = "HTTP/1.1") -> bytes:
    """Return a response's head."""
    return "\r\n".join((f"{version} {status}", *lines, "", "")).encode("latin-1")


def length(body: bytes) -> str:
    """Return the header of a body's length."""
    return f"Content-Length: {len(body)}"


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """Return a whole image response."""
    return head(PNG, length(body), *lines, status=status) + body


def chunked(body: bytes, size: int = 1024) -> bytes:
    """Return the body in the chunked transfer coding, up to and without the last chunk."""
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def etag(body: bytes) -> str:
    """Return a strong entity tag."""
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def metadata(request: Request) -> dict[str, str]:
    """Return the headers that a well-behaved server tells of an image; ``server.headers`` adds, alters or removes."""
    body = request.body
    modified = 1_600_000_000 + 86_400 * request.server.versions[request.target]
    told = {
        "Date": formatdate(usegmt=True),
        "Content-Type": "image/png",
        "ETag": etag(body),
        "Last-Modified": formatdate(modified, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    altered = {**told, **request.server.headers.get(request.target, {})}
    return {name: value for name, value in altered.items() if value is not None}


def respond(request: Request) -> Steps:
    """Answer as RFC 9110 has it: conditions, ranges, an image."""
    told = metadata(request)
    if _unchanged(request, told):
        del told["Content-Type"]
        yield head(*_lines(told), status="304 Not Modified")
    elif start := _range_start(request, told):
        rest = request.body[start:]
        place = f"Content-Range: bytes {start}-{len(request.body) - 1}/{len(request.body)}"
        yield head(*_lines(told), length(rest), place, status="206 Partial Content") + rest
    else:
        yield head(*_lines(told), length(request.body)) + request.body


def _lines(headers: Mapping[str, str]) -> Iterator[str]:
    return (f"{name}: {value}" for name, value in headers.items())


def _unchanged(request: Request, told: Mapping[str, str]) -> bool:
    """RFC 9110, 13.2.2: If-Modified-Since counts only where there is no If-None-Match."""
    if (known := request.headers.get("if-none-match")) is not None:
        return known.removeprefix("W/") == told.get("ETag", "").removeprefix("W/")
    try:
        since, modified = request.headers["if-modified-since"], told["Last-Modified"]
        return parsedate_to_datetime(modified) <= parsedate_to_datetime(since)
    except (KeyError, ValueError, TypeError, OverflowError):
        return False


def _range_start(request: Request, told: Mapping[str, str]) -> int:
    wanted = request.headers.get("range", "")
    if not wanted.startswith("bytes=") or request.headers.get("if-range", "") not in ("", told.get("ETag")):
        return 0
    return int(wanted.removeprefix("bytes=").partition("-")[0])

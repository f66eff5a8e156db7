"""A list becomes URLs, line by line: a file, plain or gzip, a pipe, or an iterable of strings."""

from __future__ import annotations

import errno
import itertools
import os
import re
import select
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from image_loader.errors import UrlFileError
from image_loader.model import Line
from image_loader.url import parse, redacted

STANDARD_INPUT = "-"
"""What names standard input as the list."""
LIMIT = 65536
"""Longest line, in bytes."""
POLL = 0.01
"""Longest wait for a pipe, in seconds: meanwhile the caller cannot look after its downloads."""

_CHUNK = 65536
_SHOWN_OF_LONG_LINE = 200
# Bytes decompressed at once. When a member ends, zlib copies all behind it: a flood of empty ones would cost several
# times as much.
_FED = 8192
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_SURROGATE = "[\ud800-\udfff]"  # compiled with the first bad line


def read(path: str | os.PathLike[str], batch: int) -> Iterator[list[Line] | None]:
    """Yield the lines of a list, at most ``batch`` at once; ``-`` is standard input.

    So that the caller can get on with other things, None stands for a pipe that has nothing to read yet, and an empty
    list for a part of the list in which no line to be told ends: a long line, comments. What cannot be opened or read,
    or is cut off, raises ``UrlFileError`` after the lines before it.
    """
    number = 1
    for raw_lines in _raw_lines(path):
        if raw_lines is None:
            yield None
            continue
        lines = [line for number, raw in enumerate(raw_lines, number) if (line := _line(number, raw))]
        number += len(raw_lines)
        for start in range(0, len(lines) or 1, batch):
            yield lines[start : start + batch]


def check(path: str | os.PathLike[str]) -> None:
    """Raise ``UrlFileError`` if the list cannot be opened; a pipe is left alone, since its writer would notice."""
    if os.fspath(path) == STANDARD_INPUT:
        return
    with _told(path):
        if not Path(path).is_fifo():
            with _opened(path):
                pass


def from_strings(urls: Iterable[str], batch: int) -> Iterator[list[Line]]:
    """Yield the same for strings as ``read`` does for the lines of a file.

    A group is yielded with the first string that comes more than ``POLL`` seconds after the last group: strings that
    come slowly one by one, and those before a pause with the one that ends it, since an iterable cannot be polled.
    """
    group: list[Line] = []
    begun = time.monotonic()
    for number, text in enumerate(urls, 1):
        if line := _line(number, text.encode("utf-8", "surrogatepass")):
            group.append(line)
        if len(group) >= batch or time.monotonic() - begun > POLL:
            yield group
            group, begun = [], time.monotonic()
    if group:
        yield group


def count(path: str | os.PathLike[str]) -> int | None:
    """Return how many lines ``read`` would yield, or None where that cannot be known ahead."""
    if os.fspath(path) == STANDARD_INPUT or not os.path.isfile(path):  # noqa: PTH113 (Path's raises)
        return None
    try:
        return sum(_is_entry(_text(raw)) for raw_lines in _raw_lines(path) for raw in raw_lines or ())
    except UrlFileError:
        return None


def _line(number: int, raw: bytes) -> Line | None:
    text = _text(raw)
    if not _is_entry(text):
        return None
    if len(raw) > LIMIT:
        return Line(number, re.sub(_SURROGATE, "\ufffd", text), None, "line longer than 64 KiB")
    try:
        return Line(number, text, parse(text))
    except ValueError as error:
        return Line(number, re.sub(_SURROGATE, "\ufffd", text), None, str(error))


def _is_entry(text: str) -> bool:
    return bool(text) and text[0] != "#"


def _text(raw: bytes) -> str:
    """Decode one line; undecodable bytes become surrogates, which no URL may have."""
    if len(raw) > LIMIT:
        raw = raw[:_SHOWN_OF_LONG_LINE]
    # A byte order mark may stand before any line: lists are joined with cat.
    return raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()


def _raw_lines(path: str | os.PathLike[str]) -> Iterator[list[bytes] | None]:
    with _told(path), _opened(path) as descriptor:
        yield from _split(_plain(_chunks(descriptor)))


@contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise what goes wrong with the list as ``UrlFileError``."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        name = os.fspath(path)
        if "://" in name:
            text = "a URL, where a file of URLs is wanted; pipe it in: echo URL | loader - DIRECTORY"
            raise UrlFileError(f"{redacted(name)}: {text}") from error
        reason = error.strerror if isinstance(error, OSError) else f"gzip data damaged or cut off ({error})"
        raise UrlFileError(
            f"{'standard input' if name == STANDARD_INPUT else name}: cannot be read: {reason}"
        ) from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    if os.fspath(path) == STANDARD_INPUT:
        if sys.stdin is None:  # Closed, as by the shell's "<&-"; descriptor 0 may be any other file by now.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        yield sys.stdin.buffer.fileno()
        return
    # O_NONBLOCK: opening a FIFO would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _chunks(descriptor: int) -> Iterator[bytes | None]:
    """Yield what can be read; None stands for "nothing yet"."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        if not poll.poll(POLL * 1000):
            yield None
        elif chunk := os.read(descriptor, _CHUNK):
            yield chunk
        else:
            return


def _plain(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    """Yield the chunks, decompressed if their first bytes say gzip."""
    head = b""
    for chunk in chunks:
        head += chunk or b""
        if len(head) >= len(_GZIP_MAGIC):
            break
        if chunk is None:
            yield None
    whole = itertools.chain([head], chunks)
    yield from _decompressed(whole) if head.startswith(_GZIP_MAGIC) else whole


def _decompressed(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    """Decompress gzip, with as many members as there are (RFC 1952, 2.2), into chunks of bounded size.

    Zeros behind a member, such as those that fill the last block of a tape, are passed over, as ``zcat`` does.
    """
    decoder = zlib.decompressobj(_GZIP_WINDOW)
    for piece in _pieces(chunks):
        if piece is None:
            yield None
            continue
        rest, plain = piece.lstrip(b"\0") if decoder.eof else piece, b""
        while rest or len(plain) == _CHUNK:
            if decoder.eof and rest:
                decoder = zlib.decompressobj(_GZIP_WINDOW)
            if plain := decoder.decompress(rest, _CHUNK):
                yield plain
            rest = decoder.unconsumed_tail or decoder.unused_data.lstrip(b"\0")
        if not plain:
            yield b""
    if not decoder.eof:
        raise EOFError("unexpected end")


def _pieces(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    for chunk in chunks:
        if chunk is None:
            yield None
        else:
            yield from (chunk[start : start + _FED] for start in range(0, len(chunk), _FED))


def _split(chunks: Iterator[bytes | None]) -> Iterator[list[bytes] | None]:
    """Split into lines without their ends; of one longer than ``LIMIT`` just enough is kept to tell."""
    rest = b""
    for chunk in chunks:
        if chunk is None:
            yield None
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[: LIMIT + 1]
        yield lines
    yield [rest]

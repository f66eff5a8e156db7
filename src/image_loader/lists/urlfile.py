"""A list becomes URLs, line by line: a file, plain or gzip, a pipe, or an iterable of strings."""

from __future__ import annotations

import codecs
import errno
import itertools
import os
import re
import select
import sys
import time
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from image_loader.errors import UrlFileError
from image_loader.lists import forms
from image_loader.model import Columns, Line
from image_loader.url import parse, redacted

if TYPE_CHECKING:
    from image_loader.lists.table import Row

STANDARD_INPUT = "-"
"""What names standard input as the list."""
LIMIT = 65536
"""Longest line, in bytes."""
POLL = 0.01
"""Longest wait for a pipe, in seconds: meanwhile the caller cannot look after its downloads."""

_CHUNK = 65536
_SHOWN_OF_LONG_LINE = 200
_HELD = 1000  # lines that may stand between the two that tell a list from a table
_GZIP_MAGIC = b"\x1f\x8b"
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE = "[\ud800-\udfff]"  # compiled with the first bad line


def read(path: str | os.PathLike[str], batch: int, columns: Columns | None = None) -> Iterator[list[Line] | None]:
    """Yield the lines of a list, at most ``batch`` at once; ``-`` is standard input.

    With ``columns``, the list is a table, and its rows are the lines. None and empty lists let the caller do other
    things: None says that a pipe has nothing to read yet, an empty list that a part without a URL was read.

    Raises ``UrlFileError``: before any line if the file is not a list or has no such column, after the lines before the
    fault if it cannot be read to its end.
    """
    for lines in _lines(path) if columns is None else _rows(path, columns):
        if lines is None:
            yield None
            continue
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


def from_strings(urls: Iterable[object], batch: int) -> Iterator[list[Line]]:
    """Yield groups of lines, as ``read`` does, from strings; an element that is not a string is a fault.

    A group is yielded when it is full, and with the first string that comes more than ``POLL`` seconds after the last
    group. An iterable cannot be polled: strings before a pause wait for the string that ends it. An exception of the
    iterable is raised after the lines before it.
    """
    group: list[Line] = []
    begun = time.monotonic()
    try:
        for number, element in enumerate(urls, 1):
            if line := _element(number, element):
                group.append(line)
            if len(group) >= batch or time.monotonic() - begun > POLL:
                yield group
                group, begun = [], time.monotonic()
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def count(path: str | os.PathLike[str], columns: Columns | None = None) -> int | None:
    """Return how many lines ``read`` would yield, or None where that cannot be known ahead."""
    if os.fspath(path) == STANDARD_INPUT or not os.path.isfile(path):  # noqa: PTH113 (Path's raises)
        return None
    with suppress(UrlFileError), _told(path):
        if columns is not None:
            return sum(len(rows or ()) for rows in _table(path, columns))
        return sum(_is_entry(_text(raw)) for raw_lines in _raw_lines(path, LIMIT) for raw in raw_lines or ())
    return None


def _lines(path: str | os.PathLike[str]) -> Iterator[list[Line] | None]:
    number = 1
    with _told(path):
        for raw_lines in _checked(_raw_lines(path, LIMIT)):
            if raw_lines is None:
                yield None
                continue
            yield [line for number, raw in enumerate(raw_lines, number) if (line := _line(number, raw))]
            number += len(raw_lines)


def _rows(path: str | os.PathLike[str], columns: Columns) -> Iterator[list[Line] | None]:
    with _told(path):
        for rows in _table(path, columns):
            yield None if rows is None else [_row_line(row) for row in rows]


def _table(path: str | os.PathLike[str], columns: Columns) -> Iterator[list[Row] | None]:
    from image_loader.lists import table

    return table.rows(_raw_lines(path, table.LIMIT), columns)


def _row_line(row: Row) -> Line:
    if row.fault or len(row.url) > LIMIT:
        return _bad(row.number, row.url[:_SHOWN_OF_LONG_LINE], row.fault or "URL longer than 64 KiB")
    return _parsed(row.number, row.url, row.name)


def _element(number: int, element: object) -> Line | None:
    if isinstance(element, str):
        return _line(number, element.encode("utf-8", "surrogatepass"))
    import reprlib

    return _bad(number, reprlib.repr(element), f"a URL is a str; this is: {type(element).__name__}")


def _line(number: int, raw: bytes) -> Line | None:
    text = _text(raw)
    if not _is_entry(text):
        return None
    return _parsed(number, text) if len(raw) <= LIMIT else _bad(number, text, "line longer than 64 KiB")


def _parsed(number: int, text: str, name: str | None = None) -> Line:
    try:
        return Line(number, text, parse(text), "", name)
    except ValueError as error:
        return _bad(number, text, "; ".join(filter(None, (str(error), forms.hint(text)))))


def _bad(number: int, text: str, fault: str) -> Line:
    return Line(number, re.sub(_SURROGATE, "\ufffd", text), None, fault)


def _is_entry(text: str) -> bool:
    return bool(text) and text[0] != "#"


def _text(raw: bytes) -> str:
    """Decode one line; undecodable bytes become surrogates, which no URL may have."""
    if len(raw) > LIMIT:
        raw = raw[:_SHOWN_OF_LONG_LINE]
    # A byte order mark may stand before any line: lists are joined with cat.
    return raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()


def _raw_lines(path: str | os.PathLike[str], limit: int) -> Iterator[list[bytes] | None]:
    with _opened(path) as descriptor:
        yield from _split(_utf_8(_plain(_chunks(descriptor))), limit)


def _checked(groups: Iterator[list[bytes] | None]) -> Iterator[list[bytes] | None]:
    """Yield the lines, once the first two entries show that this is no table or other document."""
    first: str | None = None
    held: list[bytes] = []
    for group in groups:
        held += group or ()
        entries = itertools.islice(filter(_is_entry, map(_text, held)), 2)
        first, second = next(entries, None), next(entries, None)
        if first is not None and (second is not None or forms.is_url(first) or len(held) > _HELD):
            forms.check_lines(first, second)
            yield held
            break
        if first is None:
            yield held if group is not None else None
            held = []
        else:
            yield [] if group is not None else None
    else:
        if first is not None:
            forms.check_lines(first, None)
        yield held
    yield from groups


@contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise what goes wrong with the list as ``UrlFileError``."""
    try:
        yield
    except UrlFileError as error:
        raise UrlFileError(f"{_shown(path)}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        if "://" in os.fspath(path):
            text = "a URL, where a file of URLs is wanted; pipe it in: echo URL | loader - DIRECTORY (in Python: [URL])"
            raise UrlFileError(f"{_shown(path)}: {text}") from error
        reason = error.strerror if isinstance(error, OSError) else f"gzip data damaged or cut off ({error})"
        raise UrlFileError(f"{_shown(path)}: cannot be read: {reason}") from error


def _shown(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    return "standard input" if name == STANDARD_INPUT else redacted(name) if "://" in name else name


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


def _head(chunks: Iterator[bytes | None], size: int) -> Generator[bytes | None, None, bytes]:
    """Return the first bytes, at least ``size`` if there are as many. Until then, yield None or empty chunks."""
    head = b""
    for chunk in chunks:
        head += chunk or b""
        if len(head) >= size:
            break
        yield None if chunk is None else b""
    return head


def _plain(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    """Yield the chunks, decompressed if their first bytes say gzip."""
    head = yield from _head(chunks, len(_GZIP_MAGIC))
    whole = itertools.chain([head], chunks)
    yield from _decompressed(whole) if head.startswith(_GZIP_MAGIC) else whole


def _utf_8(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    """Yield the chunks, from UTF-16 if their first bytes are its mark; what is no text raises ``UrlFileError``."""
    head = yield from _head(chunks, forms.HEAD)
    forms.check_head(head)
    whole = itertools.chain([head], chunks)
    yield from _from_utf_16(whole) if head.startswith(_UTF_16_MARKS) else whole


def _from_utf_16(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
    for chunk in chunks:
        yield None if chunk is None else decoder.decode(chunk).encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"  # Half a character: no URL has it.


def _decompressed(chunks: Iterator[bytes | None]) -> Iterator[bytes | None]:
    """Decompress gzip, with as many members as there are (RFC 1952, 2.2), into chunks of bounded size.

    Zeros behind a member, such as those that fill the last block of a tape, are passed over, as ``zcat`` does.
    """
    from image_loader.unpacking import GZIP, Unpacker, pieces

    unpacker = Unpacker(GZIP, _CHUNK, padding=b"\0")
    for chunk in chunks:
        if chunk is None:
            yield None
            continue
        for piece in pieces(chunk):
            yield b""  # Progress, also where a piece holds nothing.
            yield from unpacker.unpack(piece)
    if not unpacker.is_at_end:
        raise EOFError("unexpected end")


def _split(chunks: Iterator[bytes | None], limit: int) -> Iterator[list[bytes] | None]:
    """Split at LF, CRLF and CR, without these; of a line longer than ``limit`` just enough is kept to tell."""
    rest = b""
    for chunk in chunks:
        if chunk is None:
            yield None
            continue
        rest += chunk
        lines = rest.splitlines()
        if rest.endswith(b"\n"):
            rest = b""
        elif lines:
            # An LF may follow a CR.
            end = b"\r" if rest.endswith(b"\r") else b""
            rest = lines.pop()[: limit + 1] + end
        yield lines
    yield [rest.removesuffix(b"\r")]

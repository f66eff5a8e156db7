"""SVG: read as a stream by Expat, without a tree, within limits."""

from __future__ import annotations

import re
from typing import BinaryIO
from xml.parsers import expat
from xml.parsers.expat import errors

from image_loader.decoding.verdict import Decoded, Limits, MoreMemory, Refused

_DEPTH = 5000
"""Levels of elements; Chrome draws no more either."""
_TOKEN = 16_000_000
"""Bytes of one tag or comment, which Expat holds in memory as a whole: an embedded photo is one attribute."""
_MEMORY = 112 << 20
"""Bytes of memory that the longest tag takes; what takes more has millions of names."""
_CHUNK = 1 << 16
_LARGEST_CHUNK = 1 << 20
_FIRST_TAG = re.compile(rb"<(?:[\w.-]+:)?svg\b")


def decode(file: BinaryIO, limits: Limits) -> Decoded | None:
    """Read a well-formed SVG to its end; return None if it is not SVG.

    Internal entities are read, and Expat limits what they grow to. Raises ``Refused``, or ``MoreMemory`` where more
    than ``limits.memory`` is needed and may be had.
    """
    document = _Document()
    try:
        document.read(file)
    except MemoryError:
        _run_short(limits)
    except (expat.ExpatError, ValueError, LookupError) as error:
        kind = errors.messages.get(error.code) if isinstance(error, expat.ExpatError) else None
        if kind == errors.XML_ERROR_NO_MEMORY:
            _run_short(limits)
        if kind == errors.XML_ERROR_AMPLIFICATION_LIMIT_BREACH:
            raise Refused("too-large", "entities that stand for too much text") from error
        if document.root == "svg" or (not document.root and _begins_as_svg(file)):
            raise Refused("damaged", str(error)) from error
    return Decoded("image/svg+xml") if document.root == "svg" else None


def _begins_as_svg(file: BinaryIO) -> bool:
    """Whether what ends or breaks off within its first tag would have been SVG."""
    file.seek(0)
    return _FIRST_TAG.search(file.read(_CHUNK)) is not None


def _run_short(limits: Limits) -> None:
    most = min(_MEMORY, limits.most)
    if limits.memory < most:
        raise MoreMemory(most)
    raise Refused("too-large", f"needs more than {limits.memory // 10**6} MB of memory to read")


class _Document:
    """An XML document while it is read: ``root`` is the name of its first element, without its prefix."""

    def __init__(self) -> None:
        self.root = ""
        self._depth = 0
        self._parser = expat.ParserCreate(namespace_separator="}", intern=None)
        self._parser.ordered_attributes = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        # Without it, Expat would pass over an external entity.
        self._parser.ExternalEntityRefHandler = self._refuse_external

    def read(self, file: BinaryIO) -> None:
        """Read to the end."""
        file.seek(0)
        read = 0
        # Expat up to 2.5 reads an unfinished token from its start again with each chunk: these grow with it.
        while chunk := file.read(max(_CHUNK, min(read, _LARGEST_CHUNK))):
            read += len(chunk)
            self._parser.Parse(chunk, False)  # noqa: FBT003 (it takes no keywords)
            if read - self._parser.CurrentByteIndex > _TOKEN:
                raise Refused("too-large", f"a tag or comment of more than {_TOKEN // 10**6} MB")
        self._parser.Parse(b"", True)  # noqa: FBT003

    def _start(self, name: str, _attributes: list[str]) -> None:
        self.root = self.root or name.rpartition("}")[2]
        self._depth += 1
        if self._depth > _DEPTH:
            raise Refused("too-large", f"elements nested more than {_DEPTH} deep")

    def _end(self, _name: str) -> None:
        self._depth -= 1

    def _refuse_external(self, *_: str | None) -> int:
        raise Refused("damaged", "refers to an external entity, which is never read")

"""Whether a file holds the end of its image, for those formats that tell where it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from image_loader.sniffing import image_type

# Steps in one file, which take a second or two: those of a GIF of 128 MB.
_MOST_STEPS = 1_000_000
# Bytes that a search looks at again when more have come; no pattern here is longer.
_OVERLAP = 128
# More of it than this is not looked at.
_META_MAX = 1 << 20

# Stuffed zeros and restart markers are part of the image data; so are the bytes that no standard gives a meaning.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_END_OF_IMAGE = 0xD9
_GIF_IMAGE, _GIF_EXTENSION = b",", b"!"
_SVG_MARKUP = re.compile(rb"<!--|<!\[CDATA\[|</?(?:[\w.-]{1,64}:)?svg(?=[\s/>])", re.IGNORECASE)
_SVG_END = {b"<!--": re.compile(rb"-->"), b"<![CDATA[": re.compile(rb"\]\]>")}
_TAG_END = re.compile(rb"/?>")
# One box of each set must be there. The contents of an image may be inside "meta", as "idat".
_IMAGE_BOXES = {
    "image/avif": ({b"meta", b"moov"}, {b"mdat", b"idat"}),
    "image/heic": ({b"meta", b"moov"}, {b"mdat", b"idat"}),
    "image/heif": ({b"meta", b"moov"}, {b"mdat", b"idat"}),
    "image/jp2": ({b"jp2c"},),
    "image/jxl": ({b"jxlc", b"jxlp"},),
}
# Boxes of other types that come behind these are not part of the image.
_BOXES = frozenset({b"free", b"jxlc", b"jxlp", b"mdat", b"meta", b"moof", b"moov", b"mpvd", b"skip", b"uuid"})


class _CutError(Exception):
    """The file ends before its image does."""


class _UntoldError(Exception):
    """The file does not tell where its image ends, or takes too long to."""


class _Source:
    """A file, read from its beginning to its end and a chunk at a time."""

    def __init__(self, first: bytes, chunks: Iterable[bytes], size: int) -> None:
        self.left = size
        self._buffer, self._chunks = first, iter(chunks)
        self._at = 0
        self._steps = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self._step(count)
        while len(self._buffer) - self._at < count:
            self._more(len(self._buffer) - self._at)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def number(self, count: int) -> int:
        """Return the next bytes as a number, the greatest first."""
        return int.from_bytes(self.take(count), "big")

    def skip(self, count: int) -> None:
        """Pass over the next bytes."""
        self._step(count)
        while len(self._buffer) - self._at < count:
            count -= len(self._buffer) - self._at
            self._more(0)
        self._at += count

    def find(self, pattern: re.Pattern[bytes]) -> bytes:
        """Pass over everything up to the end of the next match, and return that."""
        self._step(0)
        while not (match := pattern.search(self._buffer, self._at)):
            kept = min(_OVERLAP, len(self._buffer) - self._at)
            self.left -= len(self._buffer) - self._at - kept
            self._more(kept)
        self.left -= match.end() - self._at
        self._at = match.end()
        return match[0]

    def _step(self, count: int) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _UntoldError
        self.left -= count
        if self.left < 0:
            raise _CutError

    def _more(self, kept: int) -> None:
        chunk = next(self._chunks, b"")
        if not chunk:
            raise _CutError
        self._buffer, self._at = self._buffer[len(self._buffer) - kept :] + chunk, 0


def is_whole(chunks: Iterable[bytes], size: int) -> bool:
    """Whether a file of ``size`` bytes holds the end of its image. True if its format does not tell.

    What follows behind the end does no harm.
    """
    chunks = iter(chunks)
    first = next(chunks, b"")
    media_type = image_type(first)
    read = _READERS.get(media_type or "")
    if b"\0" in first[:4] and media_type == "image/svg+xml":
        return True  # UTF-16.
    if read is None and media_type not in _IMAGE_BOXES:
        return True
    source = _Source(first, chunks, size)
    try:
        if read is not None:
            read(source)
        elif first[4:8] in (b"ftyp", b"JXL ", b"jP  "):
            _read_boxes(source, *_IMAGE_BOXES[str(media_type)])
    except _CutError:
        return False
    except _UntoldError:
        pass
    return True


def _read_jpeg(source: _Source) -> None:
    """ISO/IEC 10918-1, B.1: a thumbnail's end stands within a segment, which is passed over."""
    source.skip(2)
    while (marker := source.find(_JPEG_MARKER)[1]) != _END_OF_IMAGE:
        if marker != 0xD8:
            source.skip(max(source.number(2) - 2, 0))


def _read_png(source: _Source) -> None:
    """PNG, third edition, 5.3."""
    source.skip(8)
    kind = b""
    while kind != b"IEND":
        length, kind = source.number(4), source.take(4)
        source.skip(length + 4)


def _read_gif(source: _Source) -> None:
    """GIF89a, 17 to 27; what is no block ends the file, as for browsers."""
    source.skip(6)
    source.skip(_color_table(source.take(7)[4]))
    while (block := source.take(1)) in (_GIF_IMAGE, _GIF_EXTENSION):
        if block == _GIF_IMAGE:
            source.skip(_color_table(source.take(9)[8]))
        source.skip(1)
        while length := source.take(1)[0]:
            source.skip(length)


def _color_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_webp(source: _Source) -> None:
    """RFC 9649, 2.4."""
    header = source.take(8)
    source.skip(int.from_bytes(header[4:], "little"))


def _read_bmp(source: _Source) -> None:
    # The size in the file header is often wrong. Without compression, the size of the pixel lines is more reliable.
    header = source.take(34)
    told, start = (int.from_bytes(header[at : at + 4], "little") for at in (2, 10))
    if header[14] == 12:  # OS/2's.
        width, height, _, depth = (int.from_bytes(header[at : at + 2], "little") for at in (18, 20, 22, 24))
        compression = 0
    else:
        width, height = (int.from_bytes(header[at : at + 4], "little", signed=True) for at in (18, 22))
        depth, compression = header[28], header[30]
    end = start + (width * depth + 31) // 32 * 4 * abs(height) if compression in (0, 3, 6) else told
    source.skip(max(end - len(header), 0))


def _read_icon(source: _Source) -> None:
    count = int.from_bytes(source.take(6)[4:], "little")
    entries = [source.take(16) for _ in range(count)]
    ends = (int.from_bytes(entry[8:12], "little") + int.from_bytes(entry[12:], "little") for entry in entries)
    source.skip(max(max(ends, default=0) - 6 - 16 * count, 0))


def _read_svg(source: _Source) -> None:
    """Up to the end of the outermost element."""
    depth = 0
    while True:
        markup = source.find(_SVG_MARKUP)
        if markup in _SVG_END:
            source.find(_SVG_END[markup])
            continue
        is_empty = source.find(_TAG_END) == b"/>"
        if markup.startswith(b"</"):
            depth -= 1
        elif not is_empty:
            depth += 1
        if depth <= 0:
            return


def _read_boxes(source: _Source, *wanted: set[bytes]) -> None:
    """ISO/IEC 14496-12, 4.2: one box of each set in ``wanted`` must be there, and every box must be whole."""
    seen: set[bytes] = set()
    while source.left or not _have(seen, wanted):
        if source.left < 8 and _have(seen, wanted):
            return
        size, kind = source.number(4), source.take(4)
        if _have(seen, wanted) and kind not in _BOXES:
            return
        if size == 0:
            raise _UntoldError
        rest = source.number(8) - 16 if size == 1 else size - 8
        if rest < 0:
            raise _CutError
        seen.add(kind)
        if kind == b"meta" and rest <= _META_MAX and b"idat" in source.take(rest):
            seen.add(b"idat")
        elif kind != b"meta" or rest > _META_MAX:
            source.skip(rest)


def _have(seen: set[bytes], wanted: Iterable[set[bytes]]) -> bool:
    return not any(seen.isdisjoint(kinds) for kinds in wanted)


_READERS: dict[str, Callable[[_Source], None]] = {
    "image/bmp": _read_bmp,
    "image/gif": _read_gif,
    "image/jpeg": _read_jpeg,
    "image/png": _read_png,
    "image/svg+xml": _read_svg,
    "image/vnd.microsoft.icon": _read_icon,
    "image/webp": _read_webp,
}

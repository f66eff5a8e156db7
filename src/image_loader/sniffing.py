"""What the first bytes of a body are: an image of a known format, or a page of text (WHATWG MIME Sniffing)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

ENOUGH = 1445
"""First bytes that are looked at where a body has as many (WHATWG MIME Sniffing, 5.2), white space not counted."""

_MOST = 16384
"""Bytes that are waited for where all of them are white space."""

_LOOKED_AT = 65536
"""Bytes in which the root element of a document is looked for, where as many have come at once."""

_BLANK = "\t\n\f\r "

# The table of section 6.1, then what browsers or cameras have brought since.
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x00\x00\x01\x00", "image/vnd.microsoft.icon"),
    (b"\x00\x00\x02\x00", "image/vnd.microsoft.icon"),  # A cursor.
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),  # BigTIFF.
    (b"MM\x00+", "image/tiff"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image/jp2"),
    (b"\xff\x4f\xff\x51", "image/jp2"),  # Without the boxes around it.
    (b"8BPS", "image/vnd.adobe.photoshop"),
)
# Brands of ISO base media files; a more special one comes first (AV1 Image File Format, 6; ISO/IEC 23008-12, annex B).
_BRANDS = (
    (frozenset({b"avif", b"avis"}), "image/avif"),
    (frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}), "image/heic"),
    (frozenset({b"mif1", b"mif2", b"msf1"}), "image/heif"),  # Whatever its images are coded in.
)
_BINARY = rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]"

# How text may begin, as far as it is told apart here. No image but SVG does so.
_TEXT = (b"\t", b"\n", b"\x0c", b"\r", b" ", b"<", b"{", b"[", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00<")
# Compiled with the first text, which few runs meet.
_BEFORE_ROOT = r"""(?isx)[\t\n\f\r\x20]+|<!--.*?-->|<\?.*?\?>
    |<!DOCTYPE[^\[>]*(?:\[(?:<!--.*?(?:-->|\Z)|"[^"]*"|'[^']*'|[^]"'])*+\][\t\n\f\r\x20]*)?>"""
_ROOT = r"<(?:[A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)(?=[\t\n\f\r />])"
_MARKUP = r"(?i)<(?:[A-Za-z_?]|!--|!DOCTYPE)"
# Atomic: however many comments stand before it, each is read once.
_DOCTYPE_HTML = r"(?is)(?:(?>[\t\n\f\r ]+|<!--.*?-->|<\?.*?\?>))*+<!DOCTYPE[\t\n\f\r ]+HTML[\t\n\f\r >]"
# Those of section 7.1, and some more that fragments of pages and error messages begin with.
_HTML_ELEMENTS = frozenset(
    {"a", "article", "b", "base", "body", "br", "center", "div", "em", "font", "form", "h1", "h2", "h3", "h4", "head"}
    | {"header", "hr", "html", "i", "iframe", "img", "link", "main", "meta", "noscript", "p", "pre", "script"}
    | {"section", "span", "strong", "style", "table", "title", "ul"}
)
_JSON = r'\{[\t\n\r ]*["}]|\[[\t\n\r ]*["{\[\]]'
_HEX_DIGITS = b"0123456789ABCDEFabcdef"
_CHUNK = rb"[0-9A-Fa-f]{1,8}[ \t]*(?:;[^\r\n]*)?\r\n"


def beginning(pieces: Iterable[bytes]) -> bytes:
    """Return enough of the first bytes to tell what they are, however small the pieces are that they come in."""
    taken, size, counted = [], 0, 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        counted += len(piece if counted else piece.lstrip())
        if counted >= ENOUGH or size >= _MOST:
            break
    return taken[0] if len(taken) == 1 else b"".join(taken)


def image_type(first: bytes) -> str | None:
    """Return the media type of the image that begins with these bytes; None where no format is recognised.

    >>> image_type(b"GIF89a..."), image_type(b'<?xml version="1.0"?><svg>'), image_type(b"<html>")
    ('image/gif', 'image/svg+xml', None)
    """
    for signature, media_type in _SIGNATURES:
        if first.startswith(signature):
            return media_type
    if first[:4] == b"RIFF" and first[8:14] == b"WEBPVP":
        return "image/webp"
    if first[:2] == b"BM" and re.search(_BINARY, first[2:54]):  # Two letters alone could be text.
        return "image/bmp"
    if first[4:8] == b"ftyp":
        return _type_of_brands(first)
    return "image/svg+xml" if first.startswith(_TEXT) and _root(_text(first)) == "svg" else None


def text_kind(first: bytes, *, svg: bool) -> str | None:
    """Return what kind of text these bytes begin, which no browser shows as an image; None for all else.

    ``svg`` says that they were announced as SVG. Then this is believed if their root element is still to come: if there
    are as many bytes as ``beginning`` returns, and it is not among them.

    >>> text_kind(b"<!DOCTYPE html>", svg=False), text_kind(b"<Error><Code>", svg=True), text_kind(b"<svg>", svg=False)
    ('HTML', 'XML', None)
    """
    if not first.startswith(_TEXT):
        return None
    text = _text(first).lstrip(_BLANK)
    if not re.match(_MARKUP, text):
        return "JSON" if re.match(_JSON, text) else None
    root = _root(text)
    if root == "svg":
        return None
    if root in _HTML_ELEMENTS or re.match(_DOCTYPE_HTML, text):
        return "HTML"
    if svg and not root and len(first) >= ENOUGH:
        return None
    return "HTML" if text.startswith("<!--") else "XML"


def is_chunked(first: bytes) -> bool:
    """Whether these bytes begin with the size of a chunk, and the image only after it (RFC 9112, 7.1)."""
    # The first byte is compared before: re.match looks its pattern up each time, which takes longer than all the rest.
    chunk = re.match(_CHUNK, first) if first[:1] in _HEX_DIGITS else None
    return chunk is not None and image_type(first[chunk.end() :]) is not None


def _type_of_brands(first: bytes) -> str | None:
    size = int.from_bytes(first[:4], "big")
    brands = [first[8:12], *(first[at : at + 4] for at in range(16, min(size, ENOUGH), 4))]
    for kinds, found in ((_BRANDS[:-1], brands[:1]), (_BRANDS, brands)):
        for known, media_type in kinds:
            if not known.isdisjoint(found):
                return media_type
    return None


def _text(first: bytes) -> str:
    """Return the beginning of a text whose letters of interest are ASCII's."""
    first = first[:_LOOKED_AT]
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return first.decode("utf-16", "replace")
    if first.startswith((b"<\x00", b"\x00<")):
        return first.decode("utf-16-le" if first[0] else "utf-16-be", "replace")
    return first.removeprefix(codecs.BOM_UTF8).decode("latin-1")


def _root(text: str) -> str:
    """Return the name of the root element in lower case, without its prefix; nothing where it is not reached."""
    at = 0
    before_root = re.compile(_BEFORE_ROOT)
    while before := before_root.match(text, at):
        at = before.end()
    root = re.compile(_ROOT).match(text, at)
    return root[1].lower() if root else ""

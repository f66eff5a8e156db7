"""Media types: what a Content-Type says, and the extension of an image type."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from image_loader.formats import EXTENSIONS, UNKNOWN_EXTENSION

_NAME = r"[!#$%&'*+.^_`|~0-9a-z-]+"
_ESSENCE = rf"(?ais)({_NAME}/{_NAME})[\t\r\n ]*(?:;.*)?"
# Up to the next comma that stands in no quoted string; one that is never closed takes the rest (Fetch, 2.2.2).
_MEMBER = r'(?s)(?:[^",]|"(?:[^"\\]|\\.)*(?:"|\\?$))*'
_WHITE_SPACE = "\t\r\n "
# RFC 6838, 4.2: no name of a subtype is longer. The type is stored for each image.
_LONGEST = len("image/") + 127
_GENERIC = frozenset(
    {
        # WHATWG MIME Sniffing, section 7: these say that the type is not known.
        "application/unknown",
        "unknown/unknown",
        # What object stores, web servers and download scripts send where they know nothing better.
        "application/binary",
        "application/download",
        "application/force-download",
        "application/octet",
        "application/octet-stream",
        "application/octetstream",
        "application/save",
        "application/x-binary",
        "application/x-download",
        "application/x-force-download",
        "application/x-octet-stream",
        "application/x-octetstream",
        "application/x-unknown",
        "application/x-unknown-content-type",
        "application/x-www-form-urlencoded",  # curl's default, in object stores that images were uploaded to with it.
        "binary/octet-stream",  # S3's default.
        "content/unknown",
        "text/plain",  # The default of nginx, and of Apache before 2.4.
        "www/unknown",
    }
)


@functools.lru_cache(256)
def essence(content_type: str | None) -> str | None:
    """Return the type that a Content-Type states, in lower case and without its parameters; None where it states none.

    Of several, joined by commas, it is the last that is one and not ``*/*`` (Fetch, "extract a MIME type").

    >>> essence("Image/JPEG; charset=binary"), essence("text/html, image/png, */*"), essence("image/")
    ('image/jpeg', 'image/png', None)
    """
    if content_type in EXTENSIONS:  # The usual case, without the price of patterns.
        return content_type
    found = None
    for member in _members(content_type or ""):
        match = re.fullmatch(_ESSENCE, member)
        if match and match[1] != "*/*" and len(match[1]) <= _LONGEST:
            found = match[1].lower()
    return found


def is_image(essence: str | None) -> bool:
    """Whether a type is an image's."""
    return essence is not None and essence.startswith("image/")


def is_generic(essence: str | None) -> bool:
    """Whether a type says nothing about the body, such as ``application/octet-stream``, or is missing.

    >>> is_generic(None), is_generic("binary/octet-stream"), is_generic("text/html")
    (True, True, False)
    """
    return essence is None or essence in _GENERIC


def extension(media_type: str) -> str:
    """Return the extension of an image type; nothing in it comes from the wire.

    >>> extension("image/jpeg"), extension("image/php")
    ('.jpg', '.img')
    """
    return EXTENSIONS.get(media_type, UNKNOWN_EXTENSION)


def _members(value: str) -> Iterator[str]:
    start, member = 0, re.compile(_MEMBER)
    while start <= len(value):
        match = member.match(value, start)
        end = match.end() if match else len(value)
        yield value[start:end].strip(_WHITE_SPACE)
        start = end + 1

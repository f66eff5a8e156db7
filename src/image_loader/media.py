"""Media types: which are an image's, and their extensions."""

from __future__ import annotations

import re

from image_loader.formats import EXTENSIONS, UNKNOWN_EXTENSION

# RFC 6838, 4.2: no name is longer. It is stored for each image.
_IMAGE_TYPE = re.compile(r"[ \t]*(image/[!#$%&'*+.^_`|~0-9a-z-]{1,127})[ \t]*(?:;.*)?", re.IGNORECASE | re.ASCII)


def media_type(content_type: str | None) -> str | None:
    """Return the image type that a ``Content-Type`` names, or None if it names none (RFC 9110, 8.3.1).

    >>> media_type("Image/JPEG; charset=binary"), media_type("text/html"), media_type("image/")
    ('image/jpeg', None, None)
    """
    match = _IMAGE_TYPE.fullmatch(content_type or "")
    return match[1].lower() if match else None


def extension(media_type: str) -> str:
    """Return the extension of an image type; nothing in it comes from the wire.

    >>> extension("image/jpeg"), extension("image/php")
    ('.jpg', '.img')
    """
    return EXTENSIONS.get(media_type, UNKNOWN_EXTENSION)

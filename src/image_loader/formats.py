"""The image formats that the field knows: media types and their extensions (IANA, and what servers really send)."""

from __future__ import annotations

from typing import Final

EXTENSIONS: Final = {
    "image/apng": ".apng",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/heic": ".heic",
    "image/heif": ".heif",
    "image/jp2": ".jp2",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/jxl": ".jxl",
    "image/pjpeg": ".jpg",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/tiff": ".tif",
    "image/vnd.adobe.photoshop": ".psd",
    "image/vnd.microsoft.icon": ".ico",
    "image/webp": ".webp",
    "image/x-icon": ".ico",
    "image/x-ms-bmp": ".bmp",
    "image/x-png": ".png",
}
"""Media type, in lower case, to the extension of its files."""

UNKNOWN_EXTENSION: Final = ".img"
"""For an image type that is not in the table: what the wire calls itself never becomes an extension."""

IMAGE_EXTENSIONS: Final = frozenset(EXTENSIONS.values()) | {".cur", ".dib", ".jfif", ".jpe", ".jpeg", ".tiff"}
"""Extensions that mark a file as an image, in lower case."""

LONGEST_EXTENSION: Final = max(map(len, IMAGE_EXTENSIONS))
"""In bytes: all of them are ASCII."""

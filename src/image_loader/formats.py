"""The image formats that are known: their media types and extensions."""

from __future__ import annotations

from typing import Final

# The registered type of each format comes first (IANA, "Media Types"; "image/apng" and "image/bmp" as browsers have
# them), then the names that were used before it or beside it: the aliases of freedesktop.org's shared-mime-info, the
# table of Firefox (nsMimeTypes.h) and of Chromium (blink/common/mime_util), Apache's mime.types, and what Windows,
# Citrix and hand-written scripts send.
_TYPES: Final = {
    ".apng": ("image/apng", "image/vnd.mozilla.apng", "image/x-apng"),
    ".avif": ("image/avif", "image/avif-sequence", "image/avis"),
    ".bmp": (
        "image/bmp",
        "image/dib",
        "image/ms-bmp",
        "image/vnd.wap.bmp",
        "image/x-bitmap",
        "image/x-bmp",
        "image/x-dib",
        "image/x-ms-bmp",
        "image/x-ms-clipboard-bmp",
        "image/x-win-bitmap",
        "image/x-windows-bmp",
    ),
    ".gif": ("image/gif", "image/x-gif"),
    ".heic": ("image/heic", "image/heic-sequence"),
    ".heif": ("image/heif", "image/heif-sequence"),
    ".ico": (
        "image/vnd.microsoft.icon",
        "image/ico",
        "image/icon",
        "image/vnd.microsoft.ico",
        "image/x-ico",
        "image/x-icon",
        "image/x-win-icon",
    ),
    ".jp2": ("image/jp2", "image/jpeg2000", "image/jpeg2000-image", "image/x-jp2", "image/x-jpeg2000-image"),
    ".jpg": (
        "image/jpeg",
        "image/jfif",
        "image/jpe",
        "image/jpg",
        "image/pipeg",
        "image/pjpeg",
        "image/pjpg",
        "image/x-citrix-jpeg",
        "image/x-citrix-pjpeg",
        "image/x-jpeg",
        "image/x-jpg",
        "image/x-pjpeg",
    ),
    ".jxl": ("image/jxl", "image/x-jxl"),
    ".png": ("image/png", "image/x-citrix-png", "image/x-png"),
    ".psd": (
        "image/vnd.adobe.photoshop",
        "image/photoshop",
        "image/psd",
        "image/x-photoshop",
        "image/x-psd",
    ),
    ".svg": ("image/svg+xml", "image/svg", "image/svg-xml", "image/x-svg", "image/x-svg+xml"),
    ".tif": ("image/tiff", "image/tif", "image/x-tif", "image/x-tiff"),
    ".webp": ("image/webp", "image/x-webp"),
}

EXTENSIONS: Final = {media_type: extension for extension, types in _TYPES.items() for media_type in types}
"""Media type, in lower case, to the extension of its files."""

UNKNOWN_EXTENSION: Final = ".img"
"""For an image type that is not in the table: no text from a server becomes an extension."""

IMAGE_EXTENSIONS: Final = frozenset(EXTENSIONS.values()) | {".cur", ".dib", ".jfif", ".jpe", ".jpeg", ".tiff"}
"""Extensions that mark a file as an image, in lower case."""

LONGEST_EXTENSION: Final = max(map(len, IMAGE_EXTENSIONS))
"""In bytes: all of them are ASCII."""

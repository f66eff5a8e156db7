"""Whether a file is the whole image that it claims to be: it is decoded."""

from __future__ import annotations

import importlib
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from image_loader.errors import DownloadError, MissingPackagesError, is_out_of_descriptors
from image_loader.formats import EXTENSIONS
from image_loader.media_types import extension
from image_loader.model import Blame, Reason

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_SVG = "image/svg+xml"
# Not all that Pillow knows: it would hand an EPS from a hostile server to Ghostscript. README names what is left out.
_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "ICO": "image/vnd.microsoft.icon",
    "JPEG2000": "image/jp2",
}
# Twice Pillow's MAX_IMAGE_PIXELS, where Image.open() itself draws the line; later frames can be larger than the first.
_MAX_FRAME_PIXELS = 2 * 89_478_485
# All frames together: some ten seconds of decoding.
_MAX_PIXELS = 1 << 31
# What opening a frame costs, however small it is, in pixels decoded meanwhile.
_FRAME_COST = 1 << 12
_CHUNK = 1 << 16
# What Pillow's decoders raise on hostile bytes; it has no exception of its own for that.
_DECODING_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
# More pictures decoded at once than there are cores would cost memory and gain nothing. Large ones take turns: the
# largest takes 700 MB, as an animated WebP four times that.
_LARGE_PIXELS = 1 << 24
_decoders = threading.BoundedSemaphore(os.cpu_count() or 1)
_large_decoder = threading.Lock()


def require_verify() -> None:
    """Raise ``MissingPackagesError`` if what ``verify`` needs is not installed."""
    try:
        for module in ("PIL.Image", "defusedxml.ElementTree"):
            importlib.import_module(module)
    except ImportError as error:
        raise MissingPackagesError("verify", "Pillow defusedxml", error) from error


def load_decoders() -> None:
    """Import all that ``verify`` will need: a thread that ran out of descriptors could not."""
    from PIL import Image

    # Large or odd pictures are warned of on standard error, which nobody asked for.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.init()


def verify(path: str, media_type: str) -> str | None:
    """Decode a file completely, and return its true media type where that is not the one it was sent as.

    ``DownloadError`` says ``damaged`` of a broken image or a decompression bomb, ``not-an-image`` of anything that is
    neither SVG nor a format that Pillow decodes.
    """
    try:
        with Path(path).open("rb") as file:
            found = _raster_type(file) or _svg_type(file)
    except OSError as error:
        lacking = is_out_of_descriptors(error)
        detail = f"cannot be read back: {error.strerror}"
        blame = Blame.PROCESS if lacking else Blame.IMAGE
        raise DownloadError(Reason.WRITE, detail, retryable=lacking, blame=blame) from error
    return None if EXTENSIONS[found] == extension(media_type) else found


def _raster_type(file: BinaryIO) -> str | None:
    """Return the media type of an image that Pillow knows and could decode."""
    from PIL import Image, UnidentifiedImageError

    load_decoders()
    # Not every Pillow has AVIF, and an MPO is opened as the JPEG that it begins with.
    formats = [name for name in _MEDIA_TYPES if name in Image.OPEN]
    try:
        with Image.open(file, formats=formats) as image:
            image.verify()  # The checksums of a PNG, up to its end; afterwards the image has to be opened again.
        with Image.open(file, formats=formats) as image:
            _decode(image)
            return _MEDIA_TYPES[str(image.format)]
    except UnidentifiedImageError:
        return None
    except (Image.DecompressionBombError, *_DECODING_ERRORS) as error:
        _refuse(error)


def _decode(image: ImageFile) -> None:
    """Decode every frame, when it is this image's turn."""
    from PIL import ImageSequence

    # Editors cut off an MPO's second picture and leave its index: what is shown is the first, an ordinary JPEG.
    frames = [image] if image.format == "MPO" else ImageSequence.Iterator(image)
    total = 0
    with _large_decoder if image.width * image.height > _LARGE_PIXELS else _decoders:
        for frame in frames:
            pixels = frame.width * frame.height
            total += max(pixels, _FRAME_COST)
            if pixels > _MAX_FRAME_PIXELS or total > _MAX_PIXELS:
                raise ValueError("too many pixels, could be a decompression bomb")
            frame.load()


class _RootElement:
    """Target of an XML parser that remembers the name of the first element, and builds no tree."""

    def __init__(self) -> None:
        self.name = ""

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        self.name = self.name or tag.rpartition("}")[2]


def _svg_type(file: BinaryIO) -> str:
    """Return the media type of SVG, if the file is well-formed SVG."""
    import defusedxml.ElementTree

    root = _RootElement()
    parser = defusedxml.ElementTree.XMLParser(target=root)
    try:
        file.seek(0)
        while chunk := file.read(_CHUNK):
            parser.feed(chunk)
        parser.close()
    except defusedxml.EntitiesForbidden as error:
        raise DownloadError(Reason.DAMAGED, "XML entities are refused") from error
    except (SyntaxError, ValueError, LookupError) as error:
        if root.name == "svg":
            _refuse(error)
    if root.name != "svg":
        raise DownloadError(Reason.NOT_AN_IMAGE, "neither SVG nor an image format that can be decoded")
    return _SVG


def _refuse(error: Exception) -> NoReturn:
    raise DownloadError(Reason.DAMAGED, str(error) or type(error).__name__) from error

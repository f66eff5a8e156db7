"""Raster images: every frame decoded by Pillow, within limits."""

from __future__ import annotations

import importlib
import os
import re
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image, ImageSequence

from image_loader.decoding import png
from image_loader.decoding.verdict import Decoded, Limits, MoreMemory, Refused

# Not all that Pillow knows: it would hand an EPS from a hostile server to Ghostscript.
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
_PLUGINS = ("Jpeg", "Mpo", "Png", "Gif", "WebP", "Avif", "Bmp", "Tiff", "Ico", "Jpeg2K")
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
# Bytes of memory for anything but pixels, and for each pixel, measured: 4 where there is only the picture; as much as
# 19 for JPEG 2000, 16 for WebP, 7 to 10 for a progressive JPEG, 9 for AVIF.
_BASE = 32 << 20
_USUAL = 8
_DEMANDING = {"WEBP": 20, "AVIF": 20, "JPEG2000": 24}
_WORST = 32
_PREFIX = 64
# How Pillow says that it does not know a kind of file, which may well be whole.
_UNSUPPORTED = re.compile(r"(?i)\bunsupported|\bunknown|\bnot supported")
_AVIF = (b"avif", b"avis")


def load_plugins() -> None:
    """Import what decodes, and keep Pillow from looking for more: it has some fifty modules."""
    for name in _PLUGINS:
        with suppress(ImportError):  # Not every Pillow has AVIF.
            module: Any = importlib.import_module(f"PIL.{name}ImagePlugin")
            # One thread for each process: there is a process for each processor already.
            module.DEFAULT_MAX_THREADS = 1
    # The limit is ours: Pillow's own is for opening only.
    Image.MAX_IMAGE_PIXELS = None


def decode(file: BinaryIO, limits: Limits) -> Decoded | None:
    """Decode every frame; None for what is no format that is decoded here.

    Raises ``Refused``, or ``MoreMemory`` where more than ``limits.memory`` is needed and may be had.
    """
    name = _format(file)
    if name is None:
        return None
    base, pixels = _BASE + 2 * os.fstat(file.fileno()).st_size, 0
    try:
        if name == "WEBP":
            # It makes room for the pixels as soon as it is opened.
            pixels = _checked(*webp_size(file.read(_PREFIX)), limits)
            _require(base + _DEMANDING["WEBP"] * pixels, limits)
        file.seek(0)
        content = png.pixel_chunks(file) if name == "PNG" else file
        # Image.open() would hide why a file cannot be opened.
        with Image.OPEN[name][0](content, "") as image:
            for frame in _frames(image):
                pixels = max(pixels, _checked(*frame.size, limits))
                _require(base + _pixel_memory(image) * pixels, limits)
                frame.load()
                # Only now is known how large the image in an ICO really is.
                pixels = max(pixels, _checked(*frame.size, limits))
            return Decoded(_MEDIA_TYPES[str(image.format)], image.width, image.height)
    except _DECODING_ERRORS as error:
        raise _judged(error, base + _WORST * pixels, limits) from error


def _format(file: BinaryIO) -> str | None:
    """Return Pillow's name of the format that the file begins like."""
    file.seek(0)
    prefix = file.read(_PREFIX)
    file.seek(0)
    # Pillow takes any HEIF for an AVIF.
    heif = prefix[4:8] == b"ftyp" and not any(brand in prefix for brand in _AVIF)
    candidates = [(name, Image.OPEN[name][1]) for name in _MEDIA_TYPES if name in Image.OPEN and not heif]
    return next((name for name, accepts in candidates if accepts is not None and accepts(prefix) is True), None)


def _frames(image: Image.Image) -> Iterable[Image.Image]:
    # Editors cut off an MPO's second picture and leave its index: what is shown is the first, an ordinary JPEG.
    return [image] if image.format == "MPO" else ImageSequence.Iterator(image)


def _checked(width: int, height: int, limits: Limits) -> int:
    """Return the number of pixels of a frame; raise ``Refused`` where they are too many."""
    pixels = width * height
    if pixels > limits.pixels:
        raise Refused("too-large", f"{width}x{height} = {pixels} pixels, more than the limit of {limits.pixels}")
    return pixels


def _pixel_memory(image: Image.Image) -> int:
    """Return how many bytes of memory a pixel usually takes."""
    return 2 * _USUAL if "progressive" in image.info else _DEMANDING.get(str(image.format), _USUAL)


def _require(memory: int, limits: Limits) -> None:
    """Raise ``MoreMemory`` where there is less, and more may be had."""
    if limits.memory < min(memory, limits.most):
        raise MoreMemory(min(memory, limits.most))


def _judged(error: Exception, worst: int, limits: Limits) -> Refused:
    """Return whether the image is damaged, or there was too little memory: few libraries tell these apart.

    ``worst`` is what it may have needed.
    """
    short = isinstance(error, MemoryError)
    _require(limits.most if short else worst, limits)
    why = str(error) or type(error).__name__
    if short or (worst > limits.memory and "truncated" not in why):
        return Refused("too-large", f"needs more than {limits.memory // 10**6} MB of memory to decode")
    if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(why):
        return Refused("not-an-image", f"--verify cannot decode it: {why}")
    return Refused("damaged", why)


def webp_size(prefix: bytes) -> tuple[int, int]:
    r"""Return width and height by the first bytes of a WebP file (RFC 9649, 2.5 to 2.7); (0, 0) where they tell none.

    >>> webp_size(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\x3f\0\0\x1f\0\0")
    (64, 32)
    """
    kind, number = prefix[12:16], int.from_bytes
    if kind == b"VP8X":
        return 1 + number(prefix[24:27], "little"), 1 + number(prefix[27:30], "little")
    if kind == b"VP8L":
        bits = number(prefix[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return number(prefix[26:28], "little") & 0x3FFF, number(prefix[28:30], "little") & 0x3FFF
    return 0, 0

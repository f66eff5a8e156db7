"""Ends of images: a file that is cut anywhere is told apart from a whole one, by its own format."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_loader.endings import is_whole
from image_loader.sniffing import image_type


def pillow(name: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert(mode).save(file, name, **options)
    return file.getvalue()


def box(kind: bytes, content: bytes = b"") -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def with_thumbnail(jpeg: bytes) -> bytes:
    thumbnail = b"Exif\0\0" + jpeg
    return jpeg[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + jpeg[2:]


def frames(name: str) -> bytes:
    file = io.BytesIO()
    first, *more = [Image.effect_noise((40, 30), sigma) for sigma in (20, 50, 80)]
    first.save(file, name, save_all=True, append_images=more)
    return file.getvalue()


HEIC = box(b"ftyp", b"heic\0\0\0\0mif1heic")
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'>%s</svg>"
JPEG = pillow("JPEG")
WHOLE = {
    "JPEG": JPEG,
    "progressive JPEG": pillow("JPEG", progressive=True),
    "JPEG with restart markers": pillow("JPEG", restart_marker_blocks=1),
    "JPEG with a thumbnail": with_thumbnail(JPEG),
    "JPEG with filling": JPEG[:2] + b"\xff\xff" + JPEG[2:],
    "PNG": pillow("PNG"),
    "animated PNG": frames("PNG"),
    "GIF": pillow("GIF", "P"),
    "animated GIF": frames("GIF"),
    "WebP": pillow("WEBP"),
    "lossless WebP": pillow("WEBP", lossless=True),
    "AVIF": pillow("AVIF"),
    "BMP": pillow("BMP"),
    "BMP with a palette": pillow("BMP", "P"),
    "one-bit BMP": pillow("BMP", "1"),
    "BMP that tells no size": pillow("BMP")[:2] + bytes(4) + pillow("BMP")[6:],
    "icon": pillow("ICO"),
    "JPEG 2000": pillow("JPEG2000"),
    "HEIC": HEIC + box(b"meta", b"iloc") + box(b"mdat", bytes(100)),
    "HEIC, contents first": HEIC + box(b"mdat", bytes(100)) + box(b"free") + box(b"meta", b"iloc"),
    "HEIC, contents within": HEIC + box(b"meta", b"iloc" + box(b"idat", bytes(100))),
    "HEIC with a long size": HEIC + box(b"meta") + b"\0\0\0\1mdat" + (116).to_bytes(8, "big") + bytes(100),
    "JPEG XL": box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl ") + box(b"jxlc", bytes(100)),
    "SVG": SVG % b"<rect width='1'/>",
    "nested SVG": SVG % (SVG % b"" + b"<svg/>" + SVG % b"" + b"<g/>"),
    "SVG with prefixes": b"<a:svg xmlns:a='x'><a:svg></a:svg></a:svg >",
    "SVG with words about it": b"<!-- </svg> --><svg><![CDATA[</svg>]]><!-- </svg> --><svg-x/></svg>",
    "empty SVG": b"<?xml version='1.0'?>\n<!DOCTYPE svg>\n<svg xmlns='x'/>",
}


def chunks(content: bytes, size: int = 65536) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_image_is_whole_and_stays_so_with_bytes_behind_it(name: str) -> None:
    content = WHOLE[name]
    for size in (*range(100, 140), 65536):
        assert is_whole(chunks(content, size), len(content))
    for more in (b"\0", b"\r\n", bytes(20), b"\xff\xd8\xff behind", b"<!-- cached -->", b"trailing words"):
        assert is_whole(chunks(content + more), len(content + more)), more


@pytest.mark.parametrize("name", WHOLE)
def test_an_image_that_is_cut_anywhere_is_not_whole(name: str) -> None:
    content = WHOLE[name]
    kind = image_type(content)
    recognised = [cut for cut in range(len(content)) if image_type(content[:cut]) == kind]
    assert len(recognised) > len(content) - 120
    for cut in [*recognised[:400], *recognised[400:-400:13], *recognised[-400:]]:
        assert not is_whole(chunks(content[:cut]), cut), cut
        assert not is_whole(chunks(content[:cut], 100), cut), cut


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"unknown",
        pillow("TIFF")[:-10],
        b"8BPS",
        b"\xff\x0a\x00",
        b"\xff\x4f\xff\x51",
        "<svg>".encode("utf-16"),
        "<svg>".encode("utf-16-le"),
        HEIC + box(b"meta") + b"\0\0\0\0mdat" + bytes(10),
        b"<html>",
    ],
)
def test_a_format_that_tells_no_end_is_taken_as_it_is(content: bytes) -> None:
    assert is_whole(chunks(content), len(content))


@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 60), st.binary(max_size=300))
def test_any_bytes_are_whole_or_not(name: str, start: int, more: bytes) -> None:
    content = WHOLE[name][:start] + more
    assert is_whole(chunks(content, 50), len(content)) in (True, False)


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0abcd\0\0\0\0"),
        (b"GIF89a" + bytes(7), b"!\0\1\0\0"),
        (b"GIF89a" + bytes(7) + b"!\0", b"\1\0"),
        (b"<svg>", b"<svg>"),
        (b"<svg>", b"<!---->"),
        (b"\xff\xd8", b"\xff\xd8"),
        (HEIC, box(b"free")),
    ],
)
def test_no_file_takes_long_to_look_at(start: bytes, unit: bytes) -> None:
    """The smallest units without end: after a number of steps, nothing more is read."""
    chunk = unit * (65536 // len(unit))
    source = chain((start + chunk,), repeat(chunk, 1600))
    assert is_whole(source, len(start) + 1601 * len(chunk))
    assert next(source)

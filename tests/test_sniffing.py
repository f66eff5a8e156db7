"""First bytes: which image they begin, and which text is none."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asking import seconds
from image_loader import sniffing
from image_loader.formats import EXTENSIONS
from image_loader.sniffing import ENOUGH, beginning, image_type, is_chunked, text_kind

SVG = "<svg xmlns='http://www.w3.org/2000/svg'/>"
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
ILLUSTRATOR = (
    f'{XML}<!-- Generator: <html> -->\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "a" [\n<!ENTITY n "]>">\n]>\n'
)


def ftyp(*brands: bytes) -> bytes:
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(content) + 4).to_bytes(4, "big") + content


def pillow(name: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((24, 24), 80).save(file, name)
    return file.getvalue()


IMAGES = {
    **{f"{name} of Pillow": (pillow(name), media_type) for name, media_type in (
        ("JPEG", "image/jpeg"), ("PNG", "image/png"), ("GIF", "image/gif"), ("WEBP", "image/webp"),
        ("AVIF", "image/avif"), ("BMP", "image/bmp"), ("ICO", "image/vnd.microsoft.icon"), ("TIFF", "image/tiff"),
        ("JPEG2000", "image/jp2"),
    )},
    "GIF87a": (b"GIF87a", "image/gif"),
    "cursor": (b"\0\0\2\0\1\0", "image/vnd.microsoft.icon"),
    "big-endian TIFF": (b"MM\0*\0\0\0\x08", "image/tiff"),
    "BigTIFF": (b"II+\0\x08\0\0\0", "image/tiff"),
    "AVIF sequence": (ftyp(b"avis", b"msf1"), "image/avif"),
    "AVIF by a compatible brand": (ftyp(b"mif1", b"miaf", b"avif"), "image/avif"),
    "HEIC": (ftyp(b"heic", b"mif1", b"heic"), "image/heic"),
    "HEIC with a brand of another format": (ftyp(b"heic", b"avif"), "image/heic"),
    "HEIC by a compatible brand": (ftyp(b"mif1", b"mif1", b"heic"), "image/heic"),
    "HEIF": (ftyp(b"mif1", b"miaf"), "image/heif"),
    "JPEG XL": (b"\xff\x0a\xfa\x7f", "image/jxl"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "image/jxl"),
    "JPEG 2000 without boxes": (b"\xff\x4f\xff\x51\x00", "image/jp2"),
    "Photoshop": (b"8BPS\0\1", "image/vnd.adobe.photoshop"),
    **{f"SVG {number}": (text.encode(), "image/svg+xml") for number, text in enumerate((
        SVG, XML + SVG, "\ufeff" + SVG, "\n  " + SVG, ILLUSTRATOR + SVG, "<!-- a > b -->" + SVG, "<svg:svg>", "<SVG>",
        "<?xml-stylesheet href='a.css'?>" + SVG, "<!doctype svg>" + SVG, XML + "<!--" + "x" * 5000 + "-->" + SVG,
    ))},
    "SVG in UTF-16": (SVG.encode("utf-16"), "image/svg+xml"),
    "SVG in UTF-16, big-endian": (("\ufeff" + XML + SVG).encode("utf-16-be"), "image/svg+xml"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_recognised_by_its_first_bytes(name: str) -> None:
    first, media_type = IMAGES[name]
    assert image_type(first) == media_type
    assert media_type in EXTENSIONS
    assert text_kind(first, svg=False) is None
    assert not is_chunked(first)
    assert is_chunked(b"1f4;name=value\r\n" + first)


@pytest.mark.parametrize(
    "first",
    [
        b"", b"\0", b"\xff\xd8", b"\x89PNG", b"GIF88a", b"RIFF\0\0\0\0WAVEfmt ", b"BMW drives",
        b"%PDF-1.7", b"\x1f\x8b\x08",
        ftyp(b"isom", b"mp42"), ftyp(b"crx ", b"isom"), b"\0\0\0\x14ftyp", b"PK\3\4", b"Not Found", b"{}", b"<svgs>",
        b"<!-- <svg> -->", b"<html><svg></svg></html>", b"<?xml version='1.0'?><!DOCTYPE html><html>", b"svg",
    ],
)  # fmt: skip
def test_what_is_no_image_is_not_taken_for_one(first: bytes) -> None:
    assert image_type(first) is None


PAGES = [
    "<!DOCTYPE html>", "<!doctype HTML PUBLIC \"a\">", "<HTML>", "<html lang='de'>", "<head>", "<ScRiPt src='a'>",
    "<iframe >", "<h1>Not Found</h1>", "<div class='a'>", "<font >", "<table>", "<a href='b'>", "<style>", "<title>",
    "<b>Warning</b>: Undefined", "<body>", "<br />\n<b>Notice</b>", "<p>", "<!-- a page -->\n<html>", "<!-- a -->text",
    "<!DOCTYPE html\n>", "<html\n>", "<center>", "<meta charset='utf-8'>",
    XML + '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "b">\n<html xmlns="http://www.w3.org/1999/xhtml">',
    XML + "<html>", XML + "<x:html>", "<!doctype html><svg-icon>", "<!-- <svg> --><html>",
]  # fmt: skip
SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "marked": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "indented": lambda text: b"\r\n\t\x0c " * 100 + text.encode(),
    "UTF-16": lambda text: ("\ufeff" + text).encode("utf-16-le"),
    "UTF-16, big-endian": lambda text: ("\ufeff\n" + text).encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_recognised_however_it_begins(page: str, spelling: str) -> None:
    assert text_kind(SPELLINGS[spelling](page), svg=False) == "HTML"


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ("<html>", "HTML"),
        ("<!-- a --><p>", "HTML"),
        ("<!DOCTYPE html>\n<!-- " + "x" * 5000, "HTML"),
        (XML + "<Error><Code>AccessDenied</Code></Error>", "XML"),
        ("<!-- a -->\n<!-- b --><!DOCTYPE html>\n<!-- " + "x" * 5000, "HTML"),
        (XML + "<!DOCTYPE html SYSTEM 'x'><!-- " + "x" * 5000, "HTML"),
        (XML + "<!-- not yet at its end" + "x" * 5000, None),
        ("<!-- not yet at its end" + "x" * 5000, None),
        ("<!DOCTYPE svg [<!ENTITY a 'b'>" + " " * 5000, None),
        ("<!-- all there is -->", "HTML"),
        ("<?php echo 1; ?>", "XML"),
        (XML, "XML"),
        (SVG, None),
        ("<!DOCTYPE html>" + SVG, None),
    ],
)  # fmt: skip
def test_what_was_announced_as_svg_is_refused_only_for_its_root_element(first: str, kind: str | None) -> None:
    assert text_kind(first.encode(), svg=True) == kind


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ("<!-- not yet at its end", "HTML"),
        (XML, "XML"),
        ("<?php echo 1;", "XML"),
        ("<Error><Code>AccessDenied</Code></Error>", "XML"),
        ('{"error": "not found"}', "JSON"),
        ("{}", "JSON"),
        (' [\n{"a": 1}]', "JSON"),
        ("[]", "JSON"),
    ],
)
def test_other_text_that_no_image_begins_with_is_recognised(first: str, kind: str) -> None:
    assert text_kind(first.encode(), svg=False) == kind


@pytest.mark.parametrize(
    "first",
    [
        b"", b"Not Found", b"<", b"< html>", b"<\x00\x02\x00", b"{rtf", b"[0x", b"/* XPM */", b"#define a_width 1",
        b"P3 1 1",
        b"%!PS-Adobe", b"\xff\xfe\x00\x00", b"\xfe\xff", b"\xef\xbb\xbf", b" \n", bytes(2000), b"BM",
    ],
)  # fmt: skip
def test_other_bytes_are_not_judged(first: bytes) -> None:
    assert text_kind(first, svg=False) is None


@given(st.binary(max_size=40))
def test_any_bytes_can_be_looked_at(first: bytes) -> None:
    assert image_type(first) in (*EXTENSIONS, None)
    assert text_kind(first, svg=True) in (None, "HTML", "XML", "JSON")
    is_chunked(first)


def test_enough_is_read_however_small_the_pieces_are() -> None:
    pieces = [b" "] * 3000 + [b"x"] * 3000
    source = iter(pieces)
    assert beginning(source) == b"".join(pieces[: 3000 + ENOUGH])
    assert next(source) == b"x"
    assert beginning(iter([b"ab", b"c"])) == b"abc"
    assert beginning(iter([])) == b""


def test_blanks_without_end_are_not_read_without_end() -> None:
    assert len(beginning(iter([b" "] * 100_000))) == sniffing._MOST


@pytest.mark.parametrize("unit", ["<", "<!--", "<!DOCTYPE a [", "] ", "]>", "<?", "<a ", " ", "<!DOCTYPE ", "0", "\n"])
def test_no_text_takes_long_to_look_at(unit: str) -> None:
    first = (unit * 300_000)[: 1 << 18].encode()
    for text in (first, b"<!DOCTYPE a [" + first, b"<!--" + first):
        assert seconds(partial(image_type, text)) + seconds(partial(text_kind, text, svg=True)) < 0.2

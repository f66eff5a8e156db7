"""Decoding: which files really are whole images; each is judged by a child process, as in a run."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import ENVIRONMENT, SETTINGS
from image_loader.decoding.pool import Decoders
from image_loader.decoding.verdict import Decoded
from image_loader.errors import DownloadError
from image_loader.formats import EXTENSIONS
from image_loader.model import Failure, Reason

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>'
# What has to be found; written out, since the program's own table would agree with itself.
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "ICO": "image/vnd.microsoft.icon",
    "JPEG2000": "image/jp2",
}
SECONDS = 60.0

Judge = Callable[[bytes], Decoded]


def encoded(format_name: str, size: tuple[int, int] = (48, 32), **options: Any) -> bytes:
    """Return a picture that does not compress to nothing, so that it can be cut in its middle."""
    picture = Image.effect_noise(size, 80).convert("RGB")
    file = io.BytesIO()
    picture.save(file, format_name, **options)
    return file.getvalue()


def flat(mode: str, size: tuple[int, int], format_name: str = "PNG", **options: Any) -> bytes:
    """Return a large picture of one colour, which takes next to no bytes."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, format_name, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """Return a chunk of a PNG file, with a right checksum unless another is given."""
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(added: bytes, *, at_end: bool = False) -> bytes:
    """Return a PNG file with a chunk more, behind its header or before its end."""
    content = encoded("PNG")
    place = len(content) - 12 if at_end else 33
    return content[:place] + added + content[place:]


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with closing(Decoders(SETTINGS, Path())) as made:
        yield made


@pytest.fixture
def judge(decoders: Decoders, tmp_path: Path) -> Judge:
    """What decodes a content, or raises its ``DownloadError``."""

    def decode(content: bytes) -> Decoded:
        file = tmp_path / "picture"
        file.write_bytes(content)
        return decoders.decode(str(file), time.monotonic() + SECONDS)

    return decode


@pytest.fixture
def failure(judge: Judge) -> Callable[[bytes], Failure]:
    """What returns why a content is refused."""

    def refuse(content: bytes) -> Failure:
        with pytest.raises(DownloadError) as caught:
            judge(content)
        assert not caught.value.failure.retryable
        assert caught.value.failure.detail
        return caught.value.failure

    return refuse


Refuse = Callable[[bytes], Failure]


# Raster images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format_name", "media_type"), FORMATS.items())
def test_a_whole_image_passes_and_tells_its_type_and_size(judge: Judge, format_name: str, media_type: str) -> None:
    options: dict[str, Any] = {"sizes": [(48, 32)]} if format_name == "ICO" else {}
    found = judge(encoded(format_name, **options))
    assert EXTENSIONS[found.media_type] == EXTENSIONS[media_type]
    assert (found.width, found.height) == (48, 32)


@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_an_image_cut_in_its_middle_is_damaged(failure: Refuse, format_name: str) -> None:
    whole = encoded(format_name)
    assert failure(whole[: len(whole) * 2 // 3]).reason is Reason.DAMAGED


@pytest.mark.parametrize("format_name", sorted(FORMATS.keys() - {"BMP"}))
def test_an_image_cut_in_its_header_is_damaged_not_something_else(failure: Refuse, format_name: str) -> None:
    assert failure(encoded(format_name)[:24]).reason is Reason.DAMAGED


def test_a_jpeg_without_its_end_marker_is_damaged(failure: Refuse) -> None:
    assert failure(encoded("JPEG", (200, 200))[:-2]).reason is Reason.DAMAGED


def test_a_progressive_jpeg_cut_between_its_scans_is_damaged(failure: Refuse) -> None:
    whole = encoded("JPEG", (200, 200), progressive=True)
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    assert failure(whole[: scans[-1]]).reason is Reason.DAMAGED


@pytest.mark.parametrize("missing", [5, 12, 20])
def test_a_png_without_its_end_is_damaged(failure: Refuse, missing: int) -> None:
    assert failure(encoded("PNG")[:-missing]).reason is Reason.DAMAGED


def test_a_png_with_one_wrong_bit_is_damaged(failure: Refuse) -> None:
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 1
    assert "IDAT" in failure(bytes(content)).detail


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"pHYs", bytes(9), crc=1),
        chunk(b"pHYs", bytes(2)),
        chunk(b"gAMA", b""),
        chunk(b"tEXt", b"\xff" * 5, crc=1),
        chunk(b"iCCP", b"profile\0\0nothing that inflates"),
        chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(80_000_000), 9)),
        chunk(b"eXIf", b"II*\0no such thing"),
        chunk(b"tIME", b"", crc=0),
        chunk(b"abCd", b"of somebody's own", crc=0),
    ],
)
@pytest.mark.parametrize("at_end", [False, True])
def test_a_fault_in_a_png_chunk_that_no_pixel_depends_on_is_none(judge: Judge, broken: bytes, *, at_end: bool) -> None:
    assert judge(with_chunk(broken, at_end=at_end)) == Decoded("image/png", 48, 32)


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"PLTE", bytes(3), crc=1),
        chunk(b"fcTL", bytes(26), crc=1),
        chunk(b"p\0Ys", bytes(9)),
        struct.pack(">I", 0xFFFFFFF0) + b"tEXt",
        struct.pack(">I", 2000) + b"tEXt",
    ],
)
def test_a_fault_in_a_png_chunk_that_pixels_depend_on_is_damage(failure: Refuse, broken: bytes) -> None:
    assert failure(with_chunk(broken)).reason is Reason.DAMAGED


def test_what_stands_behind_the_end_of_a_png_is_no_fault(judge: Judge) -> None:
    assert judge(encoded("PNG") + b"and more").media_type == "image/png"


@pytest.mark.parametrize("format_name", ["GIF", "PNG"])
def test_every_frame_is_decoded(judge: Judge, failure: Refuse, format_name: str) -> None:
    frames = [Image.effect_noise((64, 64), 80) for _ in range(3)]
    animation = io.BytesIO()
    frames[0].save(animation, format_name, save_all=True, append_images=frames[1:])
    content = bytearray(animation.getvalue())
    assert judge(bytes(content)).width == 64
    content[-1000:-800] = bytes(200)
    assert failure(bytes(content)).reason is Reason.DAMAGED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 1000,
        b"<!DOCTYPE html><html><body>Not found</body></html>",
        b"plain",
        b"<html/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
)
def test_what_is_no_image_at_all_is_not_an_image(failure: Refuse, content: bytes) -> None:
    assert failure(content).reason is Reason.NOT_AN_IMAGE


PSD = b"8BPS\0\1" + b"\0" * 6 + b"\0\3" + b"\0\0\0\1" * 2 + b"\0\x08\0\3" + b"\0" * 14 + b"\1\2\3"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\xff\x0a\xfa\x1f\x01", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (PSD, "PSD"),
    ],
)
def test_a_format_that_is_not_decoded_is_named(failure: Refuse, content: bytes, name: str) -> None:
    found = failure(content)
    assert found.reason is Reason.NOT_AN_IMAGE
    assert found.detail == f"looks like {name}, which --verify cannot decode"


def test_a_kind_of_image_that_pillow_does_not_know_is_not_called_damaged(failure: Refuse) -> None:
    content = bytearray(encoded("BMP"))
    content[30] = 6  # BI_ALPHABITFIELDS
    found = failure(bytes(content))
    assert found.reason is Reason.NOT_AN_IMAGE
    assert found.detail.startswith("--verify cannot decode it: Unsupported BMP")


def test_every_format_that_the_field_knows_is_decoded_or_named_as_one_that_is_not() -> None:
    named = {"image/heic", "image/heif", "image/jxl", "image/vnd.adobe.photoshop"}
    decoded = {EXTENSIONS[sent_as] for sent_as in FORMATS.values()} | {".svg", ".apng"}
    suffixes = {EXTENSIONS[sent_as] for sent_as in named}
    assert set(EXTENSIONS.values()) - decoded == suffixes


# Limits -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Refuse]:
    """What returns why a content is refused where few pixels are allowed."""
    with closing(Decoders(SETTINGS._replace(max_pixels=5000), Path())) as made:

        def refuse(content: bytes) -> Failure:
            (tmp_path / "picture").write_bytes(content)
            with pytest.raises(DownloadError) as caught:
                made.decode(str(tmp_path / "picture"), time.monotonic() + SECONDS)
            return caught.value.failure

        yield refuse


def test_an_image_of_more_pixels_than_the_limit_is_too_large_with_both_numbers(strict: Refuse) -> None:
    found = strict(flat("RGB", (101, 51)))
    assert (found.reason, found.detail) == (Reason.TOO_LARGE, "101x51 = 5151 pixels, more than the limit of 5000")


def test_too_many_pixels_in_a_later_frame_are_too_large(strict: Refuse) -> None:
    content = flat("1", (1, 1), "TIFF", save_all=True, append_images=[Image.new("1", (100, 100))])
    assert strict(content).reason is Reason.TOO_LARGE


@pytest.mark.slow
def test_200_megapixels_pass(judge: Judge) -> None:
    assert judge(flat("1", (20_000, 10_000))) == Decoded("image/png", 20_000, 10_000)


def ico(side: int, content: bytes) -> bytes:
    """Return an icon whose directory names another size than the image in it has."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(content), 22) + content


def test_the_true_size_of_an_icon_counts_not_that_of_its_directory(judge: Judge, strict: Refuse) -> None:
    assert judge(ico(16, encoded("PNG"))) == Decoded("image/vnd.microsoft.icon", 48, 32)
    assert strict(ico(16, flat("1", (100, 100)))).reason is Reason.TOO_LARGE


# SVG --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        SVG,
        b"\xef\xbb\xbf" + SVG,
        b"<svg/>",
        b'<s:svg xmlns:s="http://www.w3.org/2000/svg"/>',
        SVG.decode().replace("1.0", '1.0" encoding="utf-16', 1).encode("utf-16"),
        SVG.replace(
            b"?>",
            b'?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">',
        ),
        b'<!DOCTYPE svg [<!ENTITY n "http://ns.adobe.com/"><!ENTITY m "&n;x">]><svg xmlns:x="&n;" x:a="&m;">&m;</svg>',
        b'<!DOCTYPE svg [<!ENTITY unused SYSTEM "file:///etc/passwd">]><svg/>',
        b"<svg>" + b"<a>" * 4000 + b"</a>" * 4000 + b"</svg>",
        b'<svg a="' + b"x" * 10_000_000 + b'"/>',
    ],
)
def test_well_formed_svg_passes(judge: Judge, content: bytes) -> None:
    assert judge(content) == Decoded("image/svg+xml")


@pytest.mark.parametrize(
    "content", [SVG[:-3], SVG[:40], SVG.replace(b"<rect", b"<rect <"), SVG + SVG, SVG.replace(b"<rect", b"<x:rect")]
)
def test_svg_that_is_not_well_formed_is_damaged(failure: Refuse, content: bytes) -> None:
    assert failure(content).reason is Reason.DAMAGED


@pytest.mark.parametrize(
    "declaration",
    [
        b'<!ENTITY x SYSTEM "file:///etc/passwd">',
        b'<!ENTITY x PUBLIC "a" "http://127.0.0.1:1/">',
        b'<!ENTITY x "&x;">',
        b'<!ENTITY other "a">',
    ],
)
def test_svg_that_refers_to_what_it_does_not_hold_is_damaged(failure: Refuse, declaration: bytes) -> None:
    assert failure(b"<!DOCTYPE svg [" + declaration + b"]><svg>&x;</svg>").reason is Reason.DAMAGED


def laughs(levels: int, width: int) -> bytes:
    """Return an SVG whose entities stand for ``width`` to the power of ``levels`` letters."""
    entities = [b'<!ENTITY e0 "xxxxxxxxxx">']
    entities += [b'<!ENTITY e%d "%b">' % (level, b"&e%d;" % (level - 1) * width) for level in range(1, levels)]
    return b"<!DOCTYPE svg [" + b"".join(entities) + b"]><svg>&e%d;</svg>" % (levels - 1)


def quadratic() -> bytes:
    """Return an SVG with one long entity, used often."""
    return b'<!DOCTYPE svg [<!ENTITY e "' + b"x" * 100_000 + b'">]><svg>' + b"&e;" * 100_000 + b"</svg>"


def in_attribute() -> bytes:
    """Return an SVG with one long entity, used often within one attribute."""
    return b'<!DOCTYPE svg [<!ENTITY e "' + b"x" * 100_000 + b'">]><svg a="' + b"&e;" * 100_000 + b'"/>'


@pytest.mark.parametrize("content", [laughs(12, 12), laughs(400, 2), quadratic(), in_attribute()])
def test_entities_that_grow_without_bounds_are_too_large(failure: Refuse, content: bytes) -> None:
    assert failure(content).reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "content",
    [
        b"<svg>" + b"<a>" * 100_000,
        b'<svg a="' + b"x" * 40_000_000 + b'"/>',
        b"<svg><!--" + b"x" * 40_000_000 + b"--></svg>",
        b"<svg><?" + b"x" * 40_000_000 + b"?></svg>",
    ],
)
def test_svg_beyond_the_limits_is_too_large(failure: Refuse, content: bytes) -> None:
    assert failure(content).reason is Reason.TOO_LARGE


def test_compressed_svg_is_not_an_image(failure: Refuse) -> None:
    assert failure(gzip.compress(SVG)).reason is Reason.NOT_AN_IMAGE


# What it needs ----------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_back_fails_as_write(decoders: Decoders, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        decoders.decode(str(tmp_path / "none"), time.monotonic() + SECONDS)
    assert caught.value.failure.reason is Reason.WRITE


def test_a_missing_extra_is_told_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]\n"
    code += "from image_loader.decoding.pool import require_verify\nrequire_verify()"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert "MissingPackagesError" in finished.stderr
    assert "pip install Pillow" in finished.stderr


def test_a_run_without_verify_imports_nothing_of_it() -> None:
    code = "import sys, image_loader.attempt, image_loader.batch\n"
    code += "sys.exit(any(name.startswith(('PIL', 'image_loader.decoding')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0

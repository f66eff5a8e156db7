"""Media: which answers are images, which extension they get, and which files really are whole images."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from image_loader.errors import DownloadError
from image_loader.formats import EXTENSIONS
from image_loader.media import require_verify, verify
from image_loader.model import Reason

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>'
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "ICO": "image/x-icon",
    "JPEG2000": "image/jp2",
}


def encoded(format_name: str, size: tuple[int, int] = (48, 32), **options: Any) -> bytes:
    """Return a picture that does not compress to nothing, so that it can be cut in its middle."""
    picture = Image.effect_noise(size, 80).convert("RGB")
    file = io.BytesIO()
    picture.save(file, format_name, **options)
    return file.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "picture"


def failure(file: Path, content: bytes, sent_as: str) -> Reason:
    """Return the reason for which the content is refused."""
    file.write_bytes(content)
    with pytest.raises(DownloadError) as caught:
        verify(str(file), sent_as)
    assert not caught.value.failure.retryable
    assert caught.value.failure.detail
    return caught.value.failure.reason


@pytest.mark.parametrize(("format_name", "sent_as"), FORMATS.items())
def test_a_whole_image_passes(file: Path, format_name: str, sent_as: str) -> None:
    file.write_bytes(encoded(format_name))
    assert verify(str(file), sent_as) is None


@pytest.mark.parametrize("sent_as", ["image/jpg", "image/pjpeg"])
def test_another_word_for_the_same_type_is_no_mismatch(file: Path, sent_as: str) -> None:
    file.write_bytes(encoded("JPEG"))
    assert verify(str(file), sent_as) is None


@pytest.mark.parametrize("sent_as", ["image/jpeg", "image/svg+xml", "image/unheard-of"])
def test_an_image_sent_as_another_type_passes_and_its_true_type_is_told(file: Path, sent_as: str) -> None:
    file.write_bytes(encoded("PNG"))
    assert verify(str(file), sent_as) == "image/png"


@pytest.mark.parametrize("format_name", sorted(FORMATS.keys() - {"AVIF"}))
def test_an_image_cut_in_its_middle_is_damaged(file: Path, format_name: str) -> None:
    whole = encoded(format_name)
    assert failure(file, whole[: len(whole) * 2 // 3], FORMATS[format_name]) is Reason.DAMAGED


def test_an_avif_cut_in_its_middle_cannot_even_be_opened(file: Path) -> None:
    whole = encoded("AVIF")
    assert failure(file, whole[: len(whole) * 2 // 3], "image/avif") is Reason.NOT_AN_IMAGE


def test_a_progressive_jpeg_cut_between_its_scans_is_damaged(file: Path) -> None:
    whole = encoded("JPEG", (200, 200), progressive=True)
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    assert failure(file, whole[: scans[-1]], "image/jpeg") is Reason.DAMAGED


@pytest.mark.parametrize("missing", [5, 12, 20])
def test_a_png_without_its_end_is_damaged(file: Path, missing: int) -> None:
    assert failure(file, encoded("PNG")[:-missing], "image/png") is Reason.DAMAGED


def test_a_png_with_one_wrong_bit_is_damaged(file: Path) -> None:
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 1
    assert failure(file, bytes(content), "image/png") is Reason.DAMAGED


def test_every_frame_of_an_animation_is_decoded(file: Path) -> None:
    frames = [Image.effect_noise((64, 64), 80) for _ in range(3)]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    content = animation.getvalue()
    file.write_bytes(content)
    assert verify(str(file), "image/gif") is None
    assert failure(file, content[: len(content) * 5 // 6], "image/gif") is Reason.DAMAGED


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
def test_what_is_no_image_at_all_is_not_an_image(file: Path, content: bytes) -> None:
    assert failure(file, content, "image/jpeg") is Reason.NOT_AN_IMAGE


PSD = b"8BPS\0\1" + b"\0" * 6 + b"\0\3" + b"\0\0\0\1" * 2 + b"\0\x08\0\3" + b"\0" * 14 + b"\1\2\3"


@pytest.mark.parametrize(
    ("content", "sent_as"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heif"),
        (b"\xff\x0a\xfa\x1f\x01", "image/jxl"),
        (PSD, "image/vnd.adobe.photoshop"),
    ],
)
def test_what_is_not_decoded_is_not_an_image(file: Path, content: bytes, sent_as: str) -> None:
    assert failure(file, content, sent_as) is Reason.NOT_AN_IMAGE


def test_every_format_that_the_field_knows_is_decoded_or_named_as_one_that_is_not() -> None:
    named = {".heic", ".heif", ".jxl", ".psd"}
    decoded = {EXTENSIONS[sent_as] for sent_as in FORMATS.values()} | {".svg", ".apng"}
    assert set(EXTENSIONS.values()) - decoded == named


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
    ],
)
def test_well_formed_svg_passes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert verify(str(file), "image/svg+xml") is None


def test_svg_sent_as_another_type_passes_and_its_true_type_is_told(file: Path) -> None:
    file.write_bytes(SVG)
    assert verify(str(file), "image/png") == "image/svg+xml"


@pytest.mark.parametrize(
    "content", [SVG[:-3], SVG.replace(b"<rect", b"<rect <"), SVG + SVG, SVG.replace(b"1.0", b"1.0\xff")]
)
def test_svg_that_is_not_well_formed_is_refused(file: Path, content: bytes) -> None:
    assert failure(file, content, "image/svg+xml") in {Reason.DAMAGED, Reason.NOT_AN_IMAGE}


@pytest.mark.parametrize(
    "declaration",
    [
        b'<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">',
        b'<!ENTITY x SYSTEM "file:///etc/passwd">',
        b'<!ENTITY % x SYSTEM "http://127.0.0.1:1/">',
    ],
)
def test_svg_with_entities_is_refused(file: Path, declaration: bytes) -> None:
    content = b"<!DOCTYPE svg [" + declaration + b"]>" + b"<svg>&b;&x;</svg>"
    assert failure(file, content, "image/svg+xml") is Reason.DAMAGED


def test_a_decompression_bomb_is_damaged(file: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert failure(file, bomb.getvalue(), "image/png") is Reason.DAMAGED


def test_a_bomb_in_a_later_frame_is_damaged(file: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (1, 1)).save(
        bomb, "TIFF", save_all=True, append_images=[Image.new("1", (20_000, 20_000))], compression="group4"
    )
    assert failure(file, bomb.getvalue(), "image/tiff") is Reason.DAMAGED


def test_a_large_picture_passes_without_a_word(file: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    assert verify(str(file), "image/png") is None
    assert not recwarn.list


def test_a_file_that_cannot_be_read_back_fails_as_write(file: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        verify(str(file), "image/png")
    assert caught.value.failure.reason is Reason.WRITE


def test_what_verify_needs_is_here() -> None:
    require_verify()


def test_a_missing_extra_is_told_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]\n"
    code += "from image_loader.media import require_verify\nrequire_verify()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingPackagesError: verify: " in finished.stderr
    assert f"{sys.executable} -m pip install Pillow defusedxml (" in finished.stderr


def test_media_types_cost_no_import_of_what_decodes() -> None:
    code = "import sys, image_loader.media; sys.exit(bool({'PIL', 'defusedxml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

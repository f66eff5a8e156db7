"""Media types: what a Content-Type says, and which extension an image type gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_loader.formats import _TYPES, EXTENSIONS, IMAGE_EXTENSIONS
from image_loader.media_types import essence, extension, is_generic, is_image


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        ("image/jpeg", "image/jpeg"),
        ("IMAGE/JPEG", "image/jpeg"),
        (" image/png ; charset=binary", "image/png"),
        ("image/svg+xml;charset=utf-8", "image/svg+xml"),
        ("image/vnd.microsoft.icon", "image/vnd.microsoft.icon"),
        ("image/jpeg;", "image/jpeg"),
        ("image/*", "image/*"),
        ("text/html; image/jpeg", "text/html"),
        ("ximage/png", "ximage/png"),
        ("image/" + "x" * 127, "image/" + "x" * 127),
        # Several: the last that is one.
        ("image/jpeg, image/jpeg", "image/jpeg"),
        ("application/octet-stream, image/png", "image/png"),
        ("image/jpeg, text/html", "text/html"),
        ("text/html, image/png", "image/png"),
        ("image/png, */*", "image/png"),
        ("image/png,", "image/png"),
        (", image/png", "image/png"),
        ("image/png, nonsense", "image/png"),
        ("image/gif;a=\", text/html\"", "image/gif"),
        ("image/gif;a=\", text/html", "image/gif"),
        ("image/gif;a=\"\\\", text/html\"", "image/gif"),
        ("image/gif;a=b, text/html;c=\"d", "text/html"),
        # None at all.
        (None, None),
        ("", None),
        (",", None),
        ("*/*", None),
        ("image", None),
        ("image/", None),
        ("/png", None),
        ("image/ jpeg", None),
        ("image /jpeg", None),
        ("image/jpeg text/html", None),
        ("image/jpeg/png", None),
        ("image/" + "x" * 128, None),
        ("\u0131mage/png", None),
        ("image/p\u0131g", None),
        ("image/\u212aodak", None),
    ],
)  # fmt: skip
def test_the_last_well_formed_type_counts(content_type: str | None, found: str | None) -> None:
    assert essence(content_type) == found


@given(st.text(alphabet='ab/,;="\\ *\t\xe4', max_size=60))
def test_any_content_type_is_read_or_not(content_type: str) -> None:
    found = essence(content_type)
    assert found is None or found in content_type


@pytest.mark.parametrize(
    ("content_type", "image", "generic"),
    [
        ("image/png", True, False),
        ("image/x-unheard-of", True, False),
        (None, False, True),
        ("application/octet-stream", False, True),
        ("binary/octet-stream", False, True),
        ("unknown/unknown", False, True),
        ("text/plain", False, True),
        ("text/html", False, False),
        ("application/json", False, False),
        ("video/mp4", False, False),
        ("multipart/x-mixed-replace", False, False),
    ],
)
def test_a_type_is_an_image_s_or_generic_or_neither(content_type: str | None, *, image: bool, generic: bool) -> None:
    assert (is_image(content_type), is_generic(content_type)) == (image, generic)


@pytest.mark.parametrize(
    ("image_type", "expected"),
    [
        ("image/jpeg", ".jpg"),
        ("image/png", ".png"),
        ("image/svg+xml", ".svg"),
        *[(f"image/{name}", ".jpg") for name in ("jpg", "jpe", "pjpeg", "pjpg", "x-jpg", "x-citrix-jpeg")],
        *[(f"image/{name}", ".png") for name in ("x-png", "x-citrix-png")],
        *[(f"image/{name}", ".ico") for name in ("ico", "icon", "x-icon", "x-ico", "vnd.microsoft.icon")],
        *[(f"image/{name}", ".tif") for name in ("tif", "tiff", "x-tiff", "x-tif")],
        *[(f"image/{name}", ".bmp") for name in ("bmp", "x-bmp", "x-ms-bmp", "x-windows-bmp")],
        *[(f"image/{name}", ".svg") for name in ("svg", "svg+xml", "svg-xml", "x-svg")],
        *[(f"image/{name}", ".webp") for name in ("webp", "x-webp")],
        ("image/php", ".img"),
        ("image/../x", ".img"),
    ],
)
def test_the_extension_comes_from_a_table_never_from_the_wire(image_type: str, expected: str) -> None:
    assert extension(image_type) == expected


def test_every_type_has_an_extension_that_names_an_image() -> None:
    assert set(EXTENSIONS.values()) <= IMAGE_EXTENSIONS
    assert {essence(image_type) for image_type in EXTENSIONS} == set(EXTENSIONS)


def test_no_type_is_named_for_two_extensions() -> None:
    assert len(EXTENSIONS) == sum(map(len, _TYPES.values()))

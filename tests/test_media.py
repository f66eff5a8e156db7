"""Media types: which answers are images, and which extension they get."""

from __future__ import annotations

import pytest

from image_loader.formats import EXTENSIONS, IMAGE_EXTENSIONS
from image_loader.media import extension, media_type


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        ("image/jpeg", "image/jpeg"),
        ("IMAGE/JPEG", "image/jpeg"),
        (" image/png ; charset=binary", "image/png"),
        ("image/svg+xml;charset=utf-8", "image/svg+xml"),
        ("image/vnd.microsoft.icon", "image/vnd.microsoft.icon"),
        ("image/jpeg;", "image/jpeg"),
        (None, None),
        ("", None),
        ("image", None),
        ("image/", None),
        ("image/ jpeg", None),
        ("image/jpeg text/html", None),
        ("image/jpeg, text/html", None),
        ("text/html; image/jpeg", None),
        ("application/octet-stream", None),
        ("ximage/png", None),
        ("image/" + "x" * 127, "image/" + "x" * 127),
        ("image/" + "x" * 128, None),
        ("\u0131mage/png", None),
        ("image/p\u0131g", None),
    ],
)
def test_only_a_well_formed_image_type_counts(content_type: str | None, found: str | None) -> None:
    assert media_type(content_type) == found


@pytest.mark.parametrize(
    ("image_type", "expected"),
    [
        ("image/jpeg", ".jpg"),
        ("image/png", ".png"),
        ("image/svg+xml", ".svg"),
        ("image/php", ".img"),
        ("image/../x", ".img"),
    ],
)
def test_the_extension_comes_from_a_table_never_from_the_wire(image_type: str, expected: str) -> None:
    assert extension(image_type) == expected


def test_every_type_has_an_extension_that_names_an_image() -> None:
    assert set(EXTENSIONS.values()) <= IMAGE_EXTENSIONS
    assert {media_type(image_type) for image_type in EXTENSIONS} == set(EXTENSIONS)

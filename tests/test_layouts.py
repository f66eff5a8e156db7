"""Promises of a layout that is not the one before: it is said once, and images that are there keep their places."""

from __future__ import annotations

import pytest

from conftest import Loader, urls_of
from server import Server

SAID = "--layout is hash, and was flat before"


def test_another_layout_is_said_once(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 2)
    first = loader.run(urls[:1])
    assert first.stderr == ""
    other = loader.run(urls, "--layout", "hash")
    assert other.stderr.count(SAID) == 1
    assert other.row(urls[0])["file"] == first.row(urls[0])["file"]
    assert other.row(urls[1])["file"].count("/") == 2
    assert loader.run(urls, "--layout", "hash").stderr == ""
    assert "--layout is flat, and was hash before" in loader.run(urls).stderr


def test_a_directory_without_such_a_note_says_nothing(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 1)
    loader.run(urls)
    (loader.directory / ".image_loader" / "layout").unlink()
    assert loader.run(urls, "--layout", "hash").stderr == ""


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"another\n", b"fla"])
def test_a_note_that_makes_no_sense_says_nothing(server: Server, loader: Loader, content: bytes) -> None:
    loader.run(urls_of(server, 1))
    (loader.directory / ".image_loader" / "layout").write_bytes(content)
    assert loader.run(urls_of(server, 1), "--layout", "hash").stderr == ""


def test_a_note_that_cannot_be_written_does_no_harm(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / ".image_loader").mkdir()
    (loader.directory / ".image_loader" / "layout").symlink_to("elsewhere")
    assert loader.run(urls_of(server, 1)).status == 0
    assert not (loader.directory / ".image_loader" / "elsewhere").exists()

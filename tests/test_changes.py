"""Promises of the results about an image: whether it is new, where it came from, and how large it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from conftest import Loader, urls_of
from image_loader import load
from image_loader.model import Change
from server import Server


def changes(run: Any) -> set[str | None]:
    """Return what the rows of a run say."""
    return {row["change"] for row in run.rows}


def test_an_image_is_new_then_the_same_or_changed(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 3)
    assert changes(loader.run(urls)) == {"new"}
    assert changes(loader.run(urls)) == {None}, "it was not saved"
    assert changes(loader.run(urls, "--force")) == {"same"}
    server.versions["/image/0000.png"] += 1
    run = loader.run(urls, "--force")
    assert [run.row(url)["change"] for url in urls] == ["changed", "same", "same"]


@pytest.mark.parametrize("version", [0, 1])
def test_an_image_that_was_lost_is_compared_with_what_it_was(server: Server, loader: Loader, version: int) -> None:
    url = server.url("/a.png")
    loader.run([url])
    (loader.directory / "a.png").unlink()
    server.versions["/a.png"] = version
    assert changes(loader.run([url])) == {("same", "changed")[version]}


@pytest.mark.parametrize(("same", "expected"), [(True, "same"), (False, "changed")])
def test_a_file_of_another_program_that_is_replaced_is_what_it_is_compared_with(
    server: Server, loader: Loader, same: bool, expected: str
) -> None:
    loader.directory.mkdir()
    content = server.image("/a.png") if same else server.image("/other.png")
    (loader.directory / "a.png").write_bytes(content)
    os.utime(loader.directory / "a.png", (1_000_000_000, 1_000_000_000))
    run = loader.run([server.url("/a.png")], "--force")
    assert (run.rows[0]["file"], run.rows[0]["change"]) == ("a.png", expected)


def test_an_image_beside_a_file_of_another_program_is_new(server: Server, loader: Loader) -> None:
    loader.run([server.url("/first.png")])
    (loader.directory / "a.png").write_bytes(server.image("/other.png"))
    run = loader.run([server.url("/a.png")])
    assert run.rows[0]["file"] != "a.png"
    assert changes(run) == {"new"}


def test_where_redirects_led_is_told_without_secrets_of_the_list(server: Server, loader: Loader) -> None:
    url = server.url("/redirect/a.png").replace("://", "://me:secret@")
    run = loader.run([url, server.url("/b.png")])
    final = run.row(url)["final_url"]
    assert final.startswith(server.origin)
    assert "redirect" not in final
    assert "secret" not in final
    assert run.row(server.url("/b.png"))["final_url"] is None
    assert loader.run([url]).row(url)["final_url"] == final, "also where a 304 came from there"


def test_the_size_in_pixels_is_told_where_the_image_was_decoded(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 2)
    row = loader.run(urls[:1]).rows[0]
    assert (row["width"], row["height"]) == (None, None)
    row = loader.run(urls[1:], "--verify").rows[0]
    assert (row["width"], row["height"]) == (8, 8)


def test_load_tells_it_too(server: Server, tmp_path: Path) -> None:
    (outcome,) = load([server.url("/redirect/a.png")], tmp_path)
    assert outcome.change is Change.NEW
    assert outcome.final_url is not None

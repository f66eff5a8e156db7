"""Promises of names that change in the list: the file is renamed, not downloaded again, and no other is touched."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from conftest import Loader, Run
from exchange import png
from server import Server

HOUR = "max-age=3600"


class Shop:
    """A table of names and images, which are fresh for an hour."""

    def __init__(self, server: Server, loader: Loader) -> None:
        self.server = server
        self.loader = loader
        self.directory = loader.directory

    def url(self, number: int) -> str:
        self.server.headers[f"/image/{number}.png"] = {"Cache-Control": HOUR}
        return self.server.url(f"/image/{number}.png")

    def run(self, names: Mapping[str, int], *options: str) -> Run:
        """Run over the images, by the names that they are to have."""
        rows = "".join(f"{name},{self.url(number)}\n" for name, number in names.items())
        run = self.loader.run(f"id,image\n{rows}".encode(), "--url-column", "image", "--name-column", "id", *options)
        assert run.status == 0, run.stderr
        for number in names.values():
            assert run.content(self.url(number)) == self.server.image(f"/image/{number}.png")
        return run

    def sql(self, *statement: str) -> None:
        with closing(sqlite3.connect(self.directory / ".image_loader" / "index.sqlite3")) as index, index:
            assert index.execute(*statement).rowcount == 1


@pytest.fixture
def shop(server: Server, loader: Loader) -> Shop:
    return Shop(server, loader)


def test_a_file_gets_the_new_name_and_is_not_asked_for(shop: Shop) -> None:
    shop.run({"a": 1, "b.png": 2, "folder/c": 3, "same": 4})
    asked = len(shop.server.requests)
    run = shop.run({"x": 1, "y.png": 2, "other/deep/c": 3, "same": 4}, "-v")
    assert run.counts == (0, 4, 0, 0)
    assert run.files == {"x.png", "y.png", "other/deep/c.png", "same.png"}
    assert len(shop.server.requests) == asked
    assert not (shop.directory / "folder").exists()
    assert "renamed  a.png: x.png" in run.stderr
    assert shop.run({"x": 1, "y.png": 2, "other/deep/c": 3, "same": 4}, "-v").stderr.count("renamed") == 0


def test_names_that_are_exchanged_or_move_on_by_one_end_where_they_belong(shop: Shop) -> None:
    shop.run({"a": 1, "b": 2, "c": 3, "1": 4, "2": 5, "3": 6})
    run = shop.run({"b": 1, "a": 2, "c": 3, "2": 4, "3": 5, "4": 6})
    assert run.counts == (0, 6, 0, 0)
    assert {row["url"]: row["file"] for row in run.rows} == {
        shop.url(1): "b.png",
        shop.url(2): "a.png",
        shop.url(3): "c.png",
        shop.url(4): "2.png",
        shop.url(5): "3.png",
        shop.url(6): "4.png",
    }


def test_a_name_that_another_image_keeps_is_not_taken(shop: Shop) -> None:
    shop.run({"a": 1, "b": 2})
    rows = f"id,image\nb,{shop.url(1)}\nb,{shop.url(2)}\n".encode()
    for _ in range(2):
        run = shop.loader.run(rows, "--url-column", "image", "--name-column", "id")
        assert run.counts == (0, 2, 0, 0)
        assert run.row(shop.url(2))["file"] == "b.png"
        assert run.row(shop.url(1))["file"].startswith("b-")
    assert shop.run({"b": 1, "c": 2}).files == {"b.png", "c.png"}, "and once it is free, it is"


@pytest.mark.parametrize("name", ["x", "x.png"])
def test_a_file_of_another_program_stays(shop: Shop, name: str) -> None:
    shop.run({"a": 1})
    (shop.directory / "x.png").write_bytes(png("mine", 500))
    run = shop.run({name: 1})
    assert (shop.directory / "x.png").read_bytes() == png("mine", 500)
    assert run.counts == (0, 1, 0, 0)
    assert run.rows[0]["file"].startswith("x-")


def test_a_file_that_was_edited_stays_under_its_old_name(shop: Shop) -> None:
    shop.run({"a": 1})
    (shop.directory / "a.png").write_bytes(b"mine")
    run = shop.run({"x": 1})
    assert run.counts == (1, 0, 0, 0)
    assert run.files == {"a.png", "x.png"}
    assert (shop.directory / "a.png").read_bytes() == b"mine"


def test_an_image_that_was_lost_is_downloaded_under_the_new_name(shop: Shop) -> None:
    shop.run({"a": 1})
    (shop.directory / "a.png").unlink()
    run = shop.run({"x": 1})
    assert run.files == {"x.png"}
    assert run.counts == (1, 0, 0, 0)


def test_a_url_that_failed_before_gets_the_new_name(server: Server, loader: Loader) -> None:
    url = server.url("/status-404/a.png")
    for name, healthy in (("a", False), ("x", True)):
        server.healthy = healthy
        run = loader.run(f"id,image\n{name},{url}\n".encode(), "--url-column", "image", "--name-column", "id")
    assert run.files == {"x.png"}


def test_a_url_that_failed_keeps_the_name_of_the_table_in_the_list_of_failures(server: Server, loader: Loader) -> None:
    failed = loader.home / "failed.txt"
    table = f"id,image\n1001,{server.url('/status-404/a.png')}\n".encode()
    loader.run(table, "--url-column", "image", "--name-column", "id", "--failed", str(failed))
    server.healthy = True
    assert loader.run(failed).files == {"1001.png"}


@pytest.mark.parametrize("moved", [False, True], ids=["name reserved", "file renamed"])
def test_after_a_kill_in_between_the_next_run_goes_on_with_it(shop: Shop, moved: bool) -> None:
    shop.run({"a": 1})
    shop.sql("UPDATE image SET key = 'x.*'")
    if moved:
        (shop.directory / "a.png").rename(shop.directory / "x.png")
    asked = len(shop.server.requests)
    run = shop.run({"x": 1})
    assert run.counts == (0, 1, 0, 0)
    assert run.files == {"x.png"}
    assert len(shop.server.requests) == asked


def test_what_was_renamed_is_deleted_when_it_leaves_the_list(shop: Shop) -> None:
    shop.run({"a": 1, "b": 2, "c": 3})
    shop.run({"x": 1, "b": 2, "c": 3})
    assert shop.run({"b": 2, "c": 3}, "--delete").files == {"b.png", "c.png"}


def test_a_dry_run_renames_nothing(shop: Shop) -> None:
    shop.run({"a": 1})
    shop.loader.run(f"id,image\nx,{shop.url(1)}\n".encode(), "--url-column=image", "--name-column=id", "--dry-run")
    assert [path.name for path in Path(shop.directory).glob("*.png")] == ["a.png"]


def test_a_url_that_stands_twice_in_the_list_has_the_first_name(shop: Shop) -> None:
    lines = [f"{name},{shop.url(1)}" for name in ("a", "b")]
    filling = [f"f{number},no URL" for number in range(250)]
    table = "\n".join(["id,image", lines[0], *filling, lines[1], ""]).encode()
    for _ in range(2):
        run = shop.loader.run(table, "--url-column", "image", "--name-column", "id")
        assert run.files == {"a.png"}

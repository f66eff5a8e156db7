"""Promises of --skip-existing and --ignore-status: what is there is not asked about, dead links do not fail."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from conftest import Loader, Row, Run, urls_of
from exchange import png
from image_loader import load
from image_loader.errors import OptionError
from image_loader.model import Reason, Status
from server import Server

BODY = png("of another program", 700)


def told(run: Run) -> list[tuple[str, str | None]]:
    """Return the status and reason of each row."""
    return [(row["status"], row["reason"]) for row in run.rows]


# --skip-existing ---------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_asked_about_whatever_its_headers_say(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 3)
    first = loader.run(urls)
    again = loader.run(urls, "--skip-existing")
    assert told(again) == [("skipped", "exists")] * 3
    assert len(server.requests) == 3
    for url in urls:
        same: list[Row] = [{name: run.row(url)[name] for name in ("file", "bytes", "sha256")} for run in (first, again)]
        assert same[0] == same[1]
    assert (again.status, again.stderr) == (0, "")


def test_what_is_damaged_or_gone_is_downloaded_again(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 4)
    loader.run(urls)
    (loader.directory / "0000.png").unlink()
    os.truncate(loader.directory / "0001.png", 100)
    with (loader.directory / "0002.png").open("r+b") as file:
        file.write(b"x")
    again = loader.run(urls, "--skip-existing")
    assert sorted(told(again)) == [("saved", None)] * 3 + [("skipped", "exists")]
    for url in urls:
        assert (loader.directory / again.row(url)["file"]).read_bytes() == server.image(url[len(server.origin) :])


@pytest.mark.parametrize("known", [False, True], ids=["first run", "later"])
def test_an_image_of_another_program_is_not_asked_about_and_stays(server: Server, loader: Loader, known: bool) -> None:
    if known:
        loader.run([server.url("/other.png")])
    loader.directory.mkdir(exist_ok=True)
    (loader.directory / "a.png").write_bytes(BODY)
    for _ in range(2):
        run = loader.run([server.url("/a.png")], "--skip-existing")
        assert told(run) == [("skipped", "exists")]
        assert (run.rows[0]["file"], run.rows[0]["bytes"]) == ("a.png", len(BODY))
    assert (loader.directory / "a.png").read_bytes() == BODY
    assert server.asked("/a.png") == []


def test_without_the_option_that_image_still_stays(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "a.png").write_bytes(BODY)
    loader.run([server.url("/a.png")], "--skip-existing")
    run = loader.run([server.url("/a.png")])
    assert told(run) == [("saved", None)]
    assert run.rows[0]["file"] != "a.png"
    assert (loader.directory / "a.png").read_bytes() == BODY


@pytest.mark.parametrize("content", [b"", b"<html>no image</html>"], ids=["empty", "a page"])
def test_a_file_of_another_program_that_is_no_image_is_no_reason_to_skip(
    server: Server, loader: Loader, content: bytes
) -> None:
    loader.directory.mkdir()
    (loader.directory / "a.png").write_bytes(content)
    run = loader.run([server.url("/a.png")], "--skip-existing")
    assert told(run) == [("saved", None)]
    assert (loader.directory / "a.png").read_bytes() == content
    assert run.content(server.url("/a.png")) == server.image("/a.png")


def test_one_file_is_never_taken_for_the_image_of_two_urls(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "a.png").write_bytes(BODY)
    run = loader.run([server.url("/1/a.png"), server.url("/2/a.png")], "--skip-existing")
    assert sorted(told(run)) == [("saved", None), ("skipped", "exists")]
    assert len({row["file"] for row in run.rows}) == 2


def test_a_name_of_the_list_without_an_extension_finds_its_file(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "1234.png").write_bytes(BODY)
    table = f"id,image\n1234,{server.url('/a.php')}\n1235,{server.url('/b.png')}\n".encode()
    run = loader.run(table, "--skip-existing", "--url-column", "image", "--name-column", "id")
    assert run.row(server.url("/a.php"))["file"] == "1234.png"
    assert run.row(server.url("/a.php"))["reason"] == "exists"
    assert run.row(server.url("/b.png"))["file"] == "1235.png"


def test_where_the_index_was_lost_the_images_exist_nevertheless(server: Server, loader: Loader) -> None:
    urls = [server.url("/a.png"), server.url("/image/photo?id=1")]
    loader.run(urls)
    for path in (loader.directory / ".image_loader").glob("index*"):
        path.unlink()
    run = loader.run(urls, "--skip-existing")
    assert told(run) == [("skipped", "exists")] * 2
    with closing(sqlite3.connect(loader.directory / ".image_loader" / "index.sqlite3")) as index:
        assert index.execute("SELECT count(*) FROM image").fetchone() == (2,)


@pytest.mark.parametrize("other", ["force", "revalidate"])
def test_it_contradicts_what_asks_for_more(tmp_path: Path, other: str) -> None:
    with pytest.raises(OptionError, match=r"^skip_existing: contradicts --force"):
        load([], tmp_path, skip_existing=True, **{other: True})  # type: ignore[arg-type]


def test_load_says_the_same(server: Server, tmp_path: Path) -> None:
    urls = urls_of(server, 2)
    list(load(urls, tmp_path))
    outcomes = list(load(urls, tmp_path, skip_existing=True))
    assert [(each.status, each.reason) for each in outcomes] == [(Status.SKIPPED, Reason.EXISTS)] * 2

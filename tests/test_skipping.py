"""Promises of --skip-existing and --ignore-status: what is there is not asked about, dead links do not fail."""

from __future__ import annotations

import os
import re
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
def test_it_cannot_be_used_with_what_asks_for_more(tmp_path: Path, other: str) -> None:
    with pytest.raises(OptionError, match=r"^skip_existing: cannot be used with --force"):
        load([], tmp_path, skip_existing=True, **{other: True})  # type: ignore[arg-type]


def test_load_says_the_same(server: Server, tmp_path: Path) -> None:
    urls = urls_of(server, 2)
    list(load(urls, tmp_path))
    outcomes = list(load(urls, tmp_path, skip_existing=True))
    assert [(each.status, each.reason) for each in outcomes] == [(Status.SKIPPED, Reason.EXISTS)] * 2


# --ignore-status ---------------------------------------------------------------------------------------------------


def test_an_ignored_status_is_no_failure(server: Server, loader: Loader) -> None:
    urls = [server.url(f"/status-{status}/a.png") for status in (404, 410, 403)]
    run = loader.run(urls, "--ignore-status", "404,410")
    for url, status in zip(urls, (404, 410), strict=False):
        row = run.row(url)
        assert (row["status"], row["reason"], row["http_status"]) == ("skipped", "ignored-status", status)
    assert (run.row(urls[2])["status"], run.row(urls[2])["reason"]) == ("failed", "http-status")
    assert run.status == 1
    assert not re.search(r"\b404\b", run.stderr)
    assert loader.run(urls[:2], "--ignore-status", "404,410").stderr == ""


def test_the_old_image_stays(server: Server, loader: Loader) -> None:
    url = server.url("/status-404/a.png")
    server.healthy = True
    loader.run([url])
    server.healthy = False
    run = loader.run([url], "--ignore-status", "404")
    assert (run.status, run.counts) == (0, (0, 0, 1, 0)), run.stderr
    assert run.content(url) == server.image("/status-404/a.png")


def test_it_is_not_written_to_the_failed_urls(server: Server, loader: Loader, tmp_path: Path) -> None:
    urls = [server.url("/status-404/a.png"), server.url("/status-410/a.png")]
    loader.run(urls, "--ignore-status", "404", "--failed", str(tmp_path / "failed"))
    assert (tmp_path / "failed").read_text() == urls[1] + "\n"


def test_a_transient_status_is_retried_before_it_is_ignored(server: Server, loader: Loader) -> None:
    url = server.url("/status-500/a.png")
    run = loader.run([url], "--ignore-status", "500", "--retries", "1")
    assert (run.counts, run.rows[0]["attempts"]) == ((0, 0, 1, 0), 2)


def test_what_is_no_answer_with_a_status_fails_nevertheless(server: Server, loader: Loader) -> None:
    statuses = ",".join(map(str, range(400, 600)))
    run = loader.run([server.url("/page-jpeg/a.png"), "no URL"], "--ignore-status", statuses)
    assert run.counts == (0, 0, 0, 2)


@pytest.mark.parametrize(
    "value", ["", "404,", "200", "304", "399", "600", "4xx", "404;410", "-404", "1404", "\u0664\u0660\u0664"]
)
def test_no_other_status_can_be_ignored(loader: Loader, value: str) -> None:
    run = loader.run([], f"--ignore-status={value}")
    assert run.status == 2
    assert run.stderr.startswith("loader: --ignore-status: ")


@pytest.mark.parametrize("value", ["404", 404, None, [200], ["404"], [404.0], [True]])
def test_load_refuses_them_too(tmp_path: Path, value: object) -> None:
    with pytest.raises(OptionError, match=r"^ignore_status: "):
        load([], tmp_path, ignore_status=value)  # type: ignore[arg-type]

"""Further runs of the command, after another one or beside it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from conftest import Loader, Run, being_written, leftovers, urls_of
from exchange import png
from server import Server

# Further runs -----------------------------------------------------------------------------------------------------

HOUR = "max-age=3600"
NEITHER: dict[str, str | None] = {"ETag": None, "Last-Modified": None}
FRESH: dict[str, dict[str, str | None]] = {
    "max-age": {"Cache-Control": HOUR},
    "max-age among others": {"Cache-Control": 'public, MAX-AGE=3600, immutable, x="a, no-store"'},
    "max-age over Expires": {"Cache-Control": HOUR, "Expires": "0"},
    "Expires": {"Expires": formatdate(time.time() + 3600, usegmt=True)},
    "max-age without validators": {"Cache-Control": HOUR, **NEITHER},
    "a small Age": {"Cache-Control": HOUR, "Age": "100"},
}
STALE: dict[str, dict[str, str | None]] = {
    "no lifetime": {},
    "no-cache": {"Cache-Control": "max-age=3600, no-cache"},
    "no-store": {"Cache-Control": "no-store, max-age=3600"},
    "max-age=0": {"Cache-Control": "max-age=0"},
    "a great Age": {"Cache-Control": HOUR, "Age": "3700"},
    "Expires in the past": {"Expires": formatdate(time.time() - 3600, usegmt=True)},
    "Expires that is no date": {"Expires": "0"},
    "an old Last-Modified alone": {"Last-Modified": formatdate(1e9, usegmt=True), "ETag": None},
    "s-maxage alone": {"Cache-Control": "s-maxage=3600"},
    "max-age that is no number": {"Cache-Control": "max-age=an hour"},
    "two tags alike to the eye": {"ETag": '"a", "b"'},
    "Vary: *": {"Cache-Control": HOUR, "Vary": "*"},
}


TAGS = ['"plain"', 'W/"weak"', '"with,comma"', '""', '"caf\xe9"']
DATE = "Sunday, 06-Nov-94 08:49:37 GMT"
KINDS: dict[str, dict[str, str | None]] = {
    **FRESH,
    **STALE,
    **{tag: {"ETag": tag, "Last-Modified": DATE} for tag in TAGS},
}


@dataclass(frozen=True)
class Twice:
    """Two runs over one image of each kind."""

    server: Server
    second: Run
    before: dict[str, os.stat_result]

    @staticmethod
    def target(kind: str) -> str:
        """Return the target of a kind's image."""
        return f"/{list(KINDS).index(kind)}.png"


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twice]:
    """Run twice over an image of each kind."""
    with closing(Loader(tmp_path_factory.mktemp("twice"))) as loader, Server() as server:
        server.headers = {Twice.target(kind): headers for kind, headers in KINDS.items()}
        urls = [server.url(Twice.target(kind)) for kind in KINDS]
        assert loader.run(urls).counts == (len(urls), 0, 0, 0)
        before = {kind: (loader.directory / Twice.target(kind)[1:]).stat() for kind in KINDS}
        yield Twice(server, loader.run(urls), before)


@pytest.mark.parametrize("kind", FRESH)
def test_what_is_fresh_by_its_headers_is_not_asked_for(twice: Twice, kind: str) -> None:
    target = twice.target(kind)
    assert twice.second.row(twice.server.url(target))["status"] == "fresh"
    assert len(twice.server.asked(target)) == 1


@pytest.mark.parametrize("kind", STALE)
def test_what_is_not_fresh_is_asked_for_conditionally(twice: Twice, kind: str) -> None:
    first, second = twice.server.asked(twice.target(kind))
    assert not {"if-none-match", "if-modified-since"} & first.headers.keys()
    assert {"if-none-match", "if-modified-since"} & second.headers.keys()


@pytest.mark.parametrize("kind", STALE)
def test_a_304_changes_nothing_on_disk(twice: Twice, kind: str) -> None:
    before, after = twice.before[kind], (twice.second.directory / twice.target(kind)[1:]).stat()
    assert twice.second.row(twice.server.url(twice.target(kind)))["http_status"] == 304
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("tag", TAGS)
def test_validators_go_back_byte_for_byte(twice: Twice, tag: str) -> None:
    headers = twice.server.asked(twice.target(tag))[1].headers
    assert (headers["if-none-match"], headers["if-modified-since"]) == (tag, DATE)


def test_without_validators_it_is_downloaded_again(server: Server, loader: Loader) -> None:
    server.headers["/a.png"] = NEITHER
    runs = [loader.run([server.url("/a.png")]) for _ in range(2)]
    assert [run.counts for run in runs] == [(1, 0, 0, 0)] * 2
    assert "if-none-match" not in server.requests[1].headers


def test_a_304_renews_what_is_known(server: Server, loader: Loader) -> None:
    url = server.url("/a.png")
    loader.run([url])
    server.headers["/a.png"] = {"Cache-Control": HOUR}
    loader.run([url])
    loader.run([url])
    assert len(server.requests) == 2


def test_a_changed_tag_is_a_change_whatever_the_date_says(server: Server, loader: Loader) -> None:
    url = server.url("/a.png")
    loader.run([url])
    server.versions["/a.png"] = -1
    run = loader.run([url])
    assert run.content(url) == server.image("/a.png")
    assert (loader.directory / "a.png").stat().st_mtime == 1_600_000_000 - 86_400


def test_a_changed_image_replaces_the_old_one(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 20)
    loader.run(urls)
    server.versions["/image/0007.png"] = 1
    run = loader.run(urls)
    assert run.counts == (1, 19, 0, 0)
    assert run.content(urls[7]) == server.image("/image/0007.png")


def _delete(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _shorten(path: Path) -> None:
    os.truncate(path, 100)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def _edit(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _shorten_in_secret(path: Path) -> None:
    before = path.stat()
    os.truncate(path, 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


HARMS = [_delete, _empty, _shorten, _lengthen, _edit, _shorten_in_secret]


def test_exactly_what_was_harmed_on_disk_comes_again(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 2 * len(HARMS))
    server.headers = {url.removeprefix(server.origin): {"Cache-Control": HOUR} for url in urls}
    loader.run(urls)
    for number, harm in enumerate(HARMS):
        harm(loader.directory / f"{number:04}.png")
    run = loader.run(urls)
    assert [run.row(url)["status"] for url in urls] == ["saved"] * len(HARMS) + ["fresh"] * len(HARMS)
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)
    assert all("if-none-match" not in request.headers for request in server.requests)


def test_force_downloads_everything_unconditionally(server: Server, loader: Loader) -> None:
    server.headers["/a.png"] = {"Cache-Control": HOUR}
    loader.run([server.url("/a.png")])
    assert loader.run([server.url("/a.png")], "-f").counts == (1, 0, 0, 0)
    assert not {"if-none-match", "if-modified-since"} & server.requests[1].headers.keys()


def test_revalidate_asks_about_everything_conditionally(server: Server, loader: Loader) -> None:
    server.headers["/a.png"] = {"Cache-Control": HOUR}
    loader.run([server.url("/a.png")])
    assert loader.run([server.url("/a.png")], "--revalidate").counts == (0, 1, 0, 0)
    assert "if-none-match" in server.requests[1].headers


def test_a_file_that_another_program_made_is_asked_for_by_its_time(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "a.png").write_bytes(png("another program", 500))
    os.utime(loader.directory / "a.png", (1_600_000_000, 1_600_000_000))
    assert loader.run([server.url("/a.png")]).counts == (0, 1, 0, 0)
    assert server.requests[0].headers["if-modified-since"] == formatdate(1_600_000_000, usegmt=True)
    assert (loader.directory / "a.png").read_bytes() == png("another program", 500)


def test_the_index_may_stand_elsewhere(server: Server, loader: Loader) -> None:
    index = loader.home / "elsewhere.sqlite3"
    for counts in ((3, 0, 0, 0), (0, 3, 0, 0)):
        assert loader.run(urls_of(server, 3), "--index", str(index)).counts == counts
    assert index.exists()
    assert not (loader.directory / ".image_loader" / "index.sqlite3").exists()


# Other runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_loader(loader: Loader, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """Run the command once more, on the same directory."""
    with closing(Loader(tmp_path_factory.mktemp("other"))) as other:
        other.directory = loader.directory
        yield other


def test_what_another_run_is_at_is_skipped(server: Server, loader: Loader, other_loader: Loader) -> None:
    urls = urls_of(server, 3, "gated")
    first = loader.start(urls)
    server.wait_for(lambda: len(being_written(loader.directory)) == 3)
    second = other_loader.run(urls, "-v")
    assert (second.status, second.counts) == (0, (0, 0, 3, 0))
    assert {row["reason"] for row in second.rows} == {"locked"}
    server.gate.set()
    assert first.finish().counts == (3, 0, 0, 0)
    assert all((loader.directory / f"000{number}.png").read_bytes() for number in range(3))
    assert leftovers(loader.directory) == []


def test_two_runs_on_one_list_leave_every_image_whole(server: Server, loader: Loader, other_loader: Loader) -> None:
    urls = urls_of(server, 300)
    runs = [running.finish() for running in (loader.start(urls), other_loader.start(urls))]
    assert [run.status for run in runs] == [0, 0]
    assert [sum(run.counts) for run in runs] == [300, 300]
    assert runs[0].files == {f"{number:04}.png" for number in range(300)}
    assert all(
        (loader.directory / f"{number:04}.png").read_bytes() == server.image(f"/image/{number:04}.png")
        for number in range(300)
    )
    assert leftovers(loader.directory) == []


def test_two_runs_share_the_work_and_agree_about_it(server: Server, loader: Loader, other_loader: Loader) -> None:
    # Their names get the extension from the answer, and their files a time of their own.
    urls = [server.url(f"/gated/{number:04}") for number in range(300)]
    runs = [loader.start(urls), other_loader.start(urls)]
    # One alone begins with three of them: both are at work.
    server.wait_for(lambda: len(being_written(loader.directory)) > 3)
    server.gate.set()
    ended = [running.finish() for running in runs]
    assert [(run.status, sum(run.counts), run.counts[3]) for run in ended] == [(0, 300, 0)] * 2
    assert sum(run.counts[0] for run in ended) == len(ended[0].files) == 300
    server.healthy = True
    assert loader.run(urls).counts == (0, 300, 0, 0)


def test_after_a_kill_in_mid_write_the_next_run_cleans_up_and_completes(server: Server, loader: Loader) -> None:
    urls = [*urls_of(server, 20), *urls_of(server, 5, "gated/more")]
    running = loader.start(urls)
    # The folder of the partial files, and the images that are whole.
    server.wait_for(
        lambda: len(being_written(loader.directory)) == 5 and len(list(loader.directory.iterdir())) == 1 + 20
    )
    running.end()
    assert len(leftovers(loader.directory)) == 5
    server.gate.set()
    run = loader.run(urls)
    assert run.status == 0
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)
    assert leftovers(loader.directory) == []


# One image under several URLs --------------------------------------------------------------------------------------


def test_a_url_that_is_signed_anew_is_asked_for_conditionally_and_keeps_its_file(
    server: Server, loader: Loader
) -> None:
    signed = "/show?id=7&X-Amz-Date={0}&X-Amz-Expires=60&X-Amz-Signature={0}"
    first, second = signed.format(1126), signed.format(1127)
    server.headers = {target: {"ETag": '"7"'} for target in (first, second)}
    runs = [loader.run([server.url(target)]) for target in (first, second)]
    assert [run.counts for run in runs] == [(1, 0, 0, 0), (0, 1, 0, 0)]
    assert runs[0].files == runs[1].files
    assert len(runs[1].files) == 1
    assert [request.headers.get("if-none-match") for request in server.asked(second)] == ['"7"']


def test_spellings_of_one_url_are_one_image(server: Server, loader: Loader) -> None:
    spellings = ["/clean/b.png", "/clean/a/../b.png", "/clean/./b.png", "/clean\\%2e\\b.png", "/%2E%2e/clean/b.png"]
    run = loader.run([server.url(target) for target in spellings])
    assert run.counts == (1, 0, 4, 0)
    assert [request.target for request in server.requests] == ["/clean/b.png"]
    assert run.files == {"b.png"}


def test_an_image_that_was_recorded_under_another_spelling_is_downloaded_once_more(
    server: Server, loader: Loader
) -> None:
    """The index of an earlier version holds a row, and a name, for what it took for another URL."""
    url = server.url("/a/../b.png")
    loader.run([server.url("/b.png")])
    with closing(sqlite3.connect(loader.directory / ".image_loader" / "index.sqlite3")) as index, index:
        index.execute("UPDATE image SET digest = ?", (hashlib.sha256(url.encode()).digest()[:16],))
    runs = [loader.run([url]) for _ in range(2)]
    assert [run.counts for run in runs] == [(1, 0, 0, 0), (0, 1, 0, 0)]
    assert runs[0].files == runs[1].files == {"b.png", runs[0].row(url)["file"]}


def test_layout_path_lets_a_folder_and_a_file_of_one_name_get_along(server: Server, loader: Loader) -> None:
    urls = [server.url(target) for target in ("/a.jpg/b.jpg", "/a.jpg", "/a.jpg/b.jpg/c.jpg", "/a.jpg/")]
    run = loader.run(urls, "--layout", "path")
    assert run.counts == (4, 0, 0, 0)
    host = f"127.0.0.1_{server.port}"
    hashed = run.row(urls[3])["file"]
    assert run.files == {f"{host}/a.jpg", f"{host}/a.jpg_/b.jpg", f"{host}/a.jpg_/b.jpg_/c.jpg", hashed}
    assert hashed.startswith(f"{host}/a.jpg_/image-")
    assert loader.run(urls, "--layout", "path").counts == (0, 4, 0, 0)

"""Promises of --dry-run: nothing is asked, nothing is written, and what a run would do is told."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from conftest import Loader, Run, open_files, urls_of
from exchange import png
from image_loader import load
from image_loader.errors import DirectoryError
from image_loader.model import Reason, Status
from server import Server

State = tuple[int, int, int, int, bytes]


def tree(directory: Path) -> dict[str, State]:
    """Return all that can be seen of a directory: names, kinds, times, contents."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (state.st_mode, state.st_ino, state.st_size, state.st_mtime_ns, content)
    return found


def told(run: Run) -> list[tuple[str, str | None]]:
    return sorted((row["status"], row["reason"]) for row in run.rows)


@pytest.fixture
def urls(server: Server, loader: Loader) -> list[str]:
    """Six URLs: of the first four the images are there, of which two are fresh."""
    urls = urls_of(server, 6)
    for url in urls[:2]:
        server.headers[url.removeprefix(server.origin)] = {"Cache-Control": "max-age=3600"}
    assert loader.run(urls[:4]).counts == (4, 0, 0, 0)
    return urls


def test_what_would_be_asked_for_and_what_is_fresh_is_told_and_nothing_else_happens(
    server: Server, loader: Loader, urls: list[str]
) -> None:
    before, asked = tree(loader.directory), len(server.requests)
    run = loader.run([*urls, urls[0], "no URL"], "--dry-run")
    assert tree(loader.directory) == before
    assert len(server.requests) == asked
    assert server.connections <= asked
    assert told(run) == [
        ("failed", "bad-url"),
        *[("fresh", None)] * 2,
        ("skipped", "duplicate"),
        *[("skipped", "would-ask")] * 4,
    ]
    assert run.status == 1, "since a line is no URL"
    for row in run.rows:
        if row["reason"] == "would-ask":
            assert row["detail"] == ("to see whether it changed" if row["url"] in urls[:4] else "to download it")


def test_it_is_printed_without_v_and_not_with_q(loader: Loader, urls: list[str]) -> None:
    run = loader.run(urls, "--dry-run")
    assert "ask      0004.png" in run.stderr
    assert "fresh    0000.png" in run.stderr
    assert "       4 would be asked for" in run.stderr
    assert loader.run(urls, "--dry-run", "-q").stderr == ""


@pytest.mark.parametrize("options", [(), ("--delete",), ("--skip-existing",), ("--layout", "hash")])
def test_no_directory_is_made(loader: Loader, server: Server, options: tuple[str, ...]) -> None:
    run = loader.run(urls_of(server, 2), "--dry-run", *options)
    assert told(run) == [("skipped", "would-ask")] * 2
    assert run.status == 0
    assert not loader.directory.exists()
    assert server.connections == 0


def test_a_directory_that_was_never_used_stays_as_it_is(loader: Loader, server: Server) -> None:
    loader.directory.mkdir()
    (loader.directory / "0000.png").write_bytes(png("other", 500))
    before = tree(loader.directory)
    assert told(loader.run(urls_of(server, 2, "image"), "--dry-run", "--skip-existing")) == [
        ("skipped", "exists"),
        ("skipped", "would-ask"),
    ]
    assert tree(loader.directory) == before


def test_what_would_be_deleted_is_told_and_stays(loader: Loader, urls: list[str]) -> None:
    before = tree(loader.directory)
    run = loader.run(urls[1:], "--dry-run", "--delete")
    assert tree(loader.directory) == before
    (row,) = [row for row in run.rows if row["reason"] == "would-delete"]
    assert (row["status"], row["file"], row["url"]) == ("skipped", "0000.png", "")
    assert "delete   0000.png" in run.stderr
    assert "       1 would be deleted (4.0 kB)" in run.stderr
    assert run.status == 0


def test_what_would_be_refused_is_refused_after_it_was_shown(loader: Loader, urls: list[str]) -> None:
    run = loader.run(urls[3:], "--dry-run", "--delete")
    assert run.status == 2
    assert run.stderr.count("delete   ") == 3
    assert "3 of 4 images are no longer in the list" in run.stderr


def test_what_a_killed_run_left_counts_and_stays_as_it_is(server: Server, loader: Loader, urls: list[str]) -> None:
    """Its log has not been taken over into the index."""
    new = urls_of(server, 3, "image", "?new")
    for url in new:
        server.headers[url.removeprefix(server.origin)] = {"Cache-Control": "max-age=3600"}
    running = loader.start([*new, server.url("/held/x.png")], results=False)
    index = loader.directory / ".image_loader" / "index.sqlite3"

    def is_recorded() -> bool:
        with closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT count(size) FROM image").fetchone() == (7,))

    server.wait_for(is_recorded)
    running.send(signal.SIGKILL)
    running.process.wait()
    assert index.with_name("index.sqlite3-wal").stat().st_size > 0
    before = tree(loader.directory)
    run = loader.run([*urls, *new], "--dry-run")
    assert tree(loader.directory) == before
    assert [run.row(url)["status"] for url in new] == ["fresh"] * 3
    index.with_name("index.sqlite3-shm").unlink()
    before = tree(loader.directory)
    assert loader.run([*urls, *new], "--dry-run").status == 0
    assert tree(loader.directory) == before


def test_a_run_that_is_under_way_is_not_disturbed(server: Server, loader: Loader, urls: list[str]) -> None:
    running = loader.start([server.url("/held/x.png")], results=False)
    server.wait_for(lambda: server.at_work == 1)
    before = tree(loader.directory)
    run = loader.run(urls, "--dry-run")
    after = tree(loader.directory)
    assert before.keys() == after.keys()
    assert run.counts == (0, 2, 4, 0)
    server.gate.set()
    assert running.finish().status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_another_program_keeps_the_index_locked(
    server: Server, loader: Loader, urls: list[str], number: signal.Signals
) -> None:
    index = loader.directory / ".image_loader" / "index.sqlite3"
    with closing(sqlite3.connect(index, isolation_level=None)) as connection:
        connection.execute("SELECT count(*) FROM image").fetchone()
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("UPDATE image SET complete = complete")
        running = loader.start(urls, "--dry-run", results=False)
        server.wait_for(lambda: str(index.resolve()) in open_files(running.process.pid))
        running.send(number)
        run = running.finish()
    assert run.status == 128 + number


def test_an_index_of_an_earlier_version_is_read_and_stays_as_it_is(loader: Loader, urls: list[str]) -> None:
    index = loader.directory / ".image_loader" / "index.sqlite3"
    with closing(sqlite3.connect(index)) as connection:
        for name in ("ctime_ns", "lifetime"):
            connection.execute(f"ALTER TABLE image DROP COLUMN {name}")
        connection.execute("ALTER TABLE image ADD COLUMN fresh_until REAL")
        connection.execute("PRAGMA user_version = 2")
    before = tree(loader.directory)
    run = loader.run(urls, "--dry-run")
    assert tree(loader.directory) == before
    assert run.counts == (0, 0, 6, 0)


def test_a_damaged_index_is_told_and_stays_as_it_is(loader: Loader, urls: list[str]) -> None:
    index = loader.directory / ".image_loader" / "index.sqlite3"
    index.write_bytes(b"no database" * 1000)
    before = tree(loader.directory)
    run = loader.run(urls, "--dry-run")
    assert tree(loader.directory) == before
    assert run.status == 2
    assert "index is damaged" in run.stderr


@pytest.mark.parametrize("option", ["--failed", "--report"])
def test_files_that_would_be_replaced_with_less_are_refused(loader: Loader, option: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.html"
    path.write_text("what the last run said")
    run = loader.run([], "--dry-run", option, str(path))
    assert run.status == 2
    assert f"{option}: is not written by --dry-run" in run.stderr
    assert path.read_text() == "what the last run said"


def test_a_file_in_the_place_of_the_directory_is_told(loader: Loader) -> None:
    loader.directory.write_text("no directory")
    assert loader.run([], "--dry-run").status == 2


def test_load_says_the_same(server: Server, tmp_path: Path) -> None:
    (outcome,) = load(urls_of(server, 1), tmp_path / "images", dry_run=True)
    assert (outcome.status, outcome.reason) == (Status.SKIPPED, Reason.WOULD_ASK)
    assert not (tmp_path / "images").exists()
    with pytest.raises(DirectoryError):
        list(load([], Path(os.devnull), dry_run=True))


def test_a_directory_that_may_not_be_written_to_can_be_looked_at(
    loader: Loader, urls: list[str], ordinary: tuple[str, ...], new_server: Callable[..., Server]
) -> None:
    folders = [loader.directory, loader.directory / ".image_loader"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert loader.run(urls, "--dry-run", command=ordinary).counts == (0, 2, 4, 0)
    finally:
        for folder in folders:
            folder.chmod(0o755)

"""Directories that were moved, restored, shared, or left behind by a kill: what is read, what is downloaded."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, MODULE, Loader, Run, urls_of
from exchange import Request, Steps, png, whole
from image_loader import freshness
from image_loader.lists import naming
from image_loader.model import Layout
from image_loader.store.index_file import unpack
from image_loader.url import parse
from server import Scripted, Server

DAY = {"Cache-Control": "max-age=86400"}
COUNT = 40


def lasting(server: Server, urls: Sequence[str]) -> Sequence[str]:
    """Have a server call its images fresh for a day."""
    for url in urls:
        server.headers[url.removeprefix(server.origin)] = {**DAY}
    return urls


# Moved and restored


COPIES = {
    "cp -a": "cp -a {0} {1}",
    "cp -r": "cp -r {0} {1}",
    "rsync": "rsync -r {0}/ {1}",
    "rsync -t": "rsync -rt {0}/ {1}",
    "tar": "mkdir {1} && tar -C {0} -c . | tar -C {1} -x",
    "mv": "mv {0} {1}",
}


def copy(how: str, source: Path, target: Path) -> None:
    """Copy or move a directory."""
    if shutil.which(how.split(maxsplit=1)[0]) is None:
        pytest.skip(f"takes `{how.split(maxsplit=1)[0]}`")
    subprocess.run(["sh", "-c", COPIES[how].format(source, target)], check=True)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("fresh", [True, False])
def test_a_directory_that_was_moved_is_read_and_not_downloaded(
    server: Server, loader: Loader, how: str, fresh: bool
) -> None:
    urls = urls_of(server, COUNT)
    if fresh:
        lasting(server, urls)
    loader.run(urls)
    copy(how, loader.directory, loader.home / "moved")
    loader.directory = loader.home / "moved"
    for _ in range(2):
        before = len(server.requests)
        assert loader.run(urls).counts == (0, COUNT, 0, 0)
        asked = server.requests[before:]
        assert len(asked) == (0 if fresh else COUNT)
        assert all("if-none-match" in request.headers for request in asked)


def test_images_restored_over_a_newer_index_are_downloaded_where_their_bytes_differ(
    server: Server, loader: Loader
) -> None:
    urls = lasting(server, urls_of(server, COUNT))
    loader.run(urls)
    backup = loader.home / "backup"
    copy("cp -a", loader.directory, backup)
    changed = urls[::4]
    for url in changed:
        server.versions[url.removeprefix(server.origin)] += 1
    assert loader.run(urls, "--revalidate").counts == (len(changed), COUNT - len(changed), 0, 0)
    for path in backup.glob("*.png"):
        shutil.copy2(path, loader.directory)
    assert_downloads(server, loader, urls, changed)


def test_images_under_an_older_index_are_downloaded_where_their_bytes_differ(server: Server, loader: Loader) -> None:
    urls = lasting(server, urls_of(server, COUNT))
    loader.run(urls)
    hidden, backup = loader.directory / ".image_loader", loader.home / "backup"
    copy("cp -a", hidden, backup)
    changed = urls[::4]
    for url in changed:
        server.versions[url.removeprefix(server.origin)] += 1
    loader.run(urls, "--revalidate")
    shutil.rmtree(hidden)
    copy("cp -a", backup, hidden)
    assert_downloads(server, loader, urls, changed)


def assert_downloads(server: Server, loader: Loader, urls: Sequence[str], changed: Sequence[str]) -> None:
    """Only these are downloaded, unconditionally; afterwards all is as the server has it."""
    before = len(server.requests)
    run = loader.run(urls)
    assert run.counts == (len(changed), len(urls) - len(changed), 0, 0)
    assert sorted(server.url(request.target) for request in server.requests[before:]) == sorted(changed)
    assert_current(server, run, urls)


def assert_current(server: Server, run: Run, urls: Sequence[str]) -> None:
    """Each image is the server's."""
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_changed_byte_is_healed(server: Server, loader: Loader, keep_time: bool) -> None:
    urls = lasting(server, urls_of(server, 3))
    path = loader.directory / str(loader.run(urls).row(urls[1])["file"])
    before, body = path.stat(), bytearray(path.read_bytes())
    body[100] ^= 1
    path.write_bytes(body)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_downloads(server, loader, urls, urls[1:2])


OLD_SCHEMA = """CREATE TABLE image (
    digest BLOB NOT NULL UNIQUE, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, complete INTEGER NOT NULL,
    size INTEGER, mtime_ns INTEGER, media_type TEXT, sha256 BLOB, etag TEXT, last_modified TEXT,
    fresh_until REAL, saved REAL, checked REAL, target BLOB)"""


def make_older(index: Path) -> None:
    """Make an index what version 1.0 had made of it."""
    with closing(sqlite3.connect(index)) as database:
        rows = database.execute(
            "SELECT digest, key, name, complete, size, mtime_ns, media_type, sha256, etag, last_modified,"
            " lifetime, saved, checked, target FROM image ORDER BY rowid"
        ).fetchall()
    index.unlink()
    with closing(sqlite3.connect(index)) as database, database:
        database.execute(OLD_SCHEMA)
        database.execute(f"PRAGMA application_id = {0x696D6C64}")
        database.execute("PRAGMA user_version = 2")
        for *answer, lifetime, saved, checked, target in rows:
            row = (*answer, freshness.end(unpack(lifetime), checked), saved, checked, target)
            database.execute(f"INSERT INTO image VALUES ({','.join('?' * 14)})", row)


def test_a_directory_of_version_1_is_fresh_as_a_whole(server: Server, loader: Loader) -> None:
    urls = lasting(server, urls_of(server, COUNT))
    loader.run(urls)
    make_older(loader.directory / ".image_loader" / "index.sqlite3")
    for _ in range(2):
        assert loader.run(urls).counts == (0, COUNT, 0, 0)
    assert len(server.requests) == COUNT
    # By now, the index knows them by their ctime: a changed byte is found.
    test_a_changed_byte_is_healed(server, loader, keep_time=True)


# What is another's


def test_where_there_is_an_index_a_strangers_file_is_left_alone(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 2)
    loader.run(urls[:1])
    stranger = loader.directory / "0001.png"
    stranger.write_bytes(png("stranger", 700))
    os.utime(stranger, (1e9, 1e9))
    for counts in ((1, 1, 0, 0), (0, 2, 0, 0)):
        run = loader.run(urls)
        assert run.counts == counts
        assert run.row(urls[1])["file"] == f"0001-{parse(urls[1]).sha256[:8]}.png"
        assert stranger.read_bytes() == png("stranger", 700)
    assert_current(server, run, urls)


def test_a_file_that_appears_under_the_name_of_an_image_that_failed_is_left_alone(
    server: Server, loader: Loader
) -> None:
    (url,) = urls_of(server, 1, "status-404")
    assert loader.run([url]).counts == (0, 0, 0, 1)
    server.healthy = True
    stranger = loader.directory / "0000.png"
    stranger.write_bytes(png("stranger", 700))
    for counts in ((1, 0, 0, 0), (0, 1, 0, 0)):
        run = loader.run([url])
        assert run.counts == counts
        assert run.row(url)["file"] == next(naming.spares(parse(url), Layout.FLAT, ".png"))
        assert stranger.read_bytes() == png("stranger", 700)
    assert_current(server, run, [url])


@pytest.mark.parametrize("body", [b"My diary", b""])
@pytest.mark.parametrize("first", [True, False])
def test_a_file_that_is_no_image_is_left_alone_even_without_an_index(
    server: Server, loader: Loader, body: bytes, first: bool
) -> None:
    (url,) = urls_of(server, 1)
    (loader.directory / ("." if first else ".image_loader")).mkdir(parents=True)
    stranger = loader.directory / "0000.png"
    stranger.write_bytes(body)
    os.utime(stranger, (1e9, 1e9))
    run = loader.run([url])
    assert (run.counts, stranger.read_bytes()) == ((1, 0, 0, 0), body)
    assert "if-modified-since" not in server.requests[0].headers
    assert_current(server, run, [url])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("dated", [True, False])
def test_where_the_index_was_lost_urls_of_one_name_are_not_taken_for_each_other(
    new_server: Callable[..., Server], loader: Loader, order: int, dated: bool
) -> None:
    """The file is that of one server; the other calls unchanged what is older than the date it is asked with."""
    ours, other = (new_server(name=name) for name in ("ours", "other"))
    if not dated:
        other.headers["/image/a.png"] = {"Last-Modified": "Sat, 12 Sep 2020 12:26:40 GMT"}
    urls = [server.url("/image/a.png") for server in (ours, other)]
    loader.run(urls[:1])
    for path in (loader.directory / ".image_loader").glob("index*"):
        path.unlink()
    ours.versions["/image/a.png"] += dated  # Where both have one date, only the content tells.
    run = loader.run(urls[::order])
    assert run.counts[3] == 0
    if not dated:
        assert run.content(urls[0]) == ours.image("/image/a.png")
        assert run.content(urls[1]) == other.image("/image/a.png")


def test_where_the_index_was_lost_images_that_bear_their_date_are_not_downloaded(
    server: Server, loader: Loader
) -> None:
    urls = urls_of(server, COUNT)
    names = loader.run(urls).files
    for path in (loader.directory / ".image_loader").glob("index*"):
        path.unlink()
    run = loader.run(urls)
    assert (run.counts, run.files) == ((0, COUNT, 0, 0), names)
    assert all(row["sha256"] for row in run.rows)


def test_where_the_index_was_lost_images_without_a_date_are_downloaded_and_stay_where_they_are(
    server: Server, loader: Loader
) -> None:
    urls = urls_of(server, 3)
    for url in urls:
        server.headers[url.removeprefix(server.origin)] = {"Last-Modified": None}
    names = loader.run(urls).files
    for path in (loader.directory / ".image_loader").glob("index*"):
        path.unlink()
    run = loader.run(urls)
    assert (run.counts, run.files) == ((3, 0, 0, 0), names)


# A kill, and a server that goes back


class Swinging(Server):
    """A server whose one image goes back and forth between two versions of equal size and date."""

    def steps(self, request: Request) -> Steps:
        """Answer; a condition is met where the date is the image's, whatever the version."""
        told = ("Last-Modified: Sun, 13 Sep 2020 12:26:40 GMT", "Cache-Control: no-cache")
        if "if-modified-since" in request.headers:
            yield b"HTTP/1.1 304 Not Modified\r\n" + "".join(f"{line}\r\n" for line in told).encode() + b"\r\n"
        else:
            yield whole(self.image(request.target), *told)

    def image(self, target: str) -> bytes:
        """Return one version or the other."""
        return png(f"{target} {self.versions['all'] % 2}", 900)


def recorded(directory: Path) -> dict[str, bytes]:
    """Return the SHA-256 of each image, as the index has it."""
    with closing(sqlite3.connect(directory / ".image_loader" / "index.sqlite3")) as database:
        return dict(database.execute("SELECT name, sha256 FROM image"))


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_after_a_kill_no_304_calls_the_wrong_version_current(loader: Loader, kills: int) -> None:
    """What a killed run put in place, and could not record, is known by its content alone."""
    chance = random.Random(kills)
    with Swinging() as server:
        urls = urls_of(server, 30)
        loader.run(urls)
        for _ in range(kills):
            old = {url: server.image(url.removeprefix(server.origin)) for url in urls}
            server.versions["all"] += 1
            wanted = len(server.requests) + chance.randrange(1, len(urls))
            running = loader.start(urls, "--force")
            server.wait_for(lambda: len(server.requests) >= wanted, 60)  # noqa: B023 (called at once)
            time.sleep(chance.random() * 0.01)
            running.end()
            known = recorded(loader.directory)
            server.versions["all"] += 1
            run = loader.run(urls)
            assert run.counts[3] == 0
            # What was recorded is the server's own fault: it calls another version unchanged.
            bodies = {row["file"]: (run.content(row["url"]), old[row["url"]]) for row in run.rows}
            newer = {file: hashlib.sha256(body).digest() for file, (body, right) in bodies.items() if body != right}
            assert newer.items() <= known.items()
            assert run.files == frozenset(f"{number:04}.png" for number in range(30))


# Shared by a group


GROUP = 54_321


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that a group shares; not below ``tmp_path``, which another user may not search."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("takes root and `setpriv` to be two users")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 0, GROUP)
        Path(folder).chmod(0o2775)
        yield Path(folder)


def test_two_users_of_one_group_share_a_directory(server: Server, shared: Path) -> None:
    urls = urls_of(server, 6)
    (shared / "urls.txt").write_text("\n".join(urls))

    def run_as(user: int, *options: str) -> str:
        # Both may read whatever there is, such as this Python, but write only what they are allowed to.
        reading = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
        identity = ("--reuid", str(user), "--regid", str(user), "--groups", str(GROUP), *reading)
        command = ("setpriv", *identity, "sh", "-c", 'umask 002; exec "$@"', "sh", *MODULE)
        arguments = (str(shared / "urls.txt"), str(shared / "images"), "-v", *options)
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "6 saved" in run_as(4001)
    assert "6 fresh" in run_as(4002)
    for url in urls:
        server.versions[url.removeprefix(server.origin)] += 1
    assert "6 saved" in run_as(4002)
    assert "6 fresh" in run_as(4001)
    assert "6 saved" in run_as(4001, "--force")
    hidden = shared / "images" / ".image_loader"
    assert {path.stat().st_gid for path in (hidden, hidden / "partial", hidden / "index.sqlite3")} == {GROUP}
    assert stat.S_IMODE((hidden / "index.sqlite3").stat().st_mode) == 0o664


def test_what_a_killed_run_of_another_user_left_is_written_over(shared: Path) -> None:
    """Only its owner may set its time, which does not matter."""
    left = shared / "images" / ".image_loader" / "partial" / hashlib.sha256(b"0000.png").hexdigest()[:32]
    body = png("left", 900)

    def leave(_: Request) -> Steps:
        """Leave a partial file behind while the image is asked for, after the run has begun."""
        left.write_bytes(b"half")
        os.chown(left, 4001, GROUP)
        left.chmod(0o664)
        yield whole(body, "Last-Modified: Sun, 13 Sep 2020 12:26:40 GMT")

    bound = ("setpriv", "--reuid", "4002", "--regid", "4002", "--groups", str(GROUP))
    reading = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    with Scripted(leave) as server, closing(Loader(shared)) as loader:
        url = server.url("/0000.png")
        loader.results = shared / "images" / "rows.jsonl"
        (shared / "images").mkdir()
        for path in (shared, shared / "images"):
            os.chown(path, 0, GROUP)
            path.chmod(0o2775)
        run = loader.run([url], command=("env", "-C", "/", *bound, *reading, *MODULE))
    assert (run.counts, run.content(url)) == ((1, 0, 0, 0), body)

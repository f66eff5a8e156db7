"""The story of a run, from the library call: names, adoption, duplicates, early ends, and every line accounted for."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import pytest

from conftest import SETTINGS, SOURCES, in_another_process, leftovers, urls_of
from exchange import End, png, whole
from image_loader import batch, load, planner
from image_loader.attempt import Downloader
from image_loader.errors import (
    DirectoryError,
    IndexFileError,
    LoaderError,
    OptionError,
    OutOfInodesError,
    OutOfThreadsError,
    UrlFileError,
)
from image_loader.model import Job, Line, Outcome, Reason, Result, Status
from image_loader.scheduling.host import Task
from image_loader.scheduling.scheduler import Scheduler
from image_loader.settings import Settings
from image_loader.store.directory import Directory, Partial
from image_loader.transport import Connection
from image_loader.url import parse
from server import ALL_ADDRESSES, SIZE, Scripted, Server, connections_to, plays, refusing_port, silent_port

SCHEDULER = "image_loader.scheduling.scheduler.Scheduler"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "images"


def lines_of(urls: Sequence[str], start: int = 1) -> list[Line]:
    return [Line(number, url, parse(url)) for number, url in enumerate(urls, start)]


def settings_for(directory: Path, **changes: Any) -> Settings:
    return SETTINGS._replace(directory=directory, **changes)


def run(directory: Path, urls: Sequence[str], **options: Any) -> dict[int, Outcome]:
    """Run over the URLs; return their outcomes by line, of which each has one."""
    outcomes = list(load(urls, directory, **options))
    by_line = {outcome.line: outcome for outcome in outcomes}
    assert len(by_line) == len(outcomes) == len(urls)
    return by_line


def statuses(outcomes: dict[int, Outcome]) -> list[Status]:
    return [outcomes[line].status for line in sorted(outcomes)]


def test_lines_that_are_left_for_later_since_much_has_to_be_read_are_told(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.headers = {f"/image/{number:04}.png": {"Cache-Control": "max-age=3600"} for number in range(30)}
    urls = urls_of(server, 30)
    run(directory, urls)
    for path in directory.glob("*.png"):
        os.utime(path)
    monkeypatch.setattr(planner, "_READ_MAX", 10_000)
    assert statuses(run(directory, urls)) == [Status.FRESH] * 30


# Names -------------------------------------------------------------------------------------------------------------


def test_a_name_stays_with_its_url_in_whatever_order_the_next_list_is(server: Server, directory: Path) -> None:
    urls = [server.url(f"/image/{folder}/photo.png") for folder in range(5)]
    first = run(directory, urls)
    server.versions.update({url.removeprefix(server.origin): 1 for url in urls})
    second = run(directory, urls[::-1], force=True)
    names = {outcome.url: outcome.file for outcome in first.values()}
    assert len(set(names.values())) == 5
    assert {outcome.url: outcome.file for outcome in second.values()} == names
    for url, name in names.items():
        assert (directory / str(name)).read_bytes() == server.image(url.removeprefix(server.origin))


def test_one_url_in_different_spellings_is_downloaded_once(server: Server, directory: Path) -> None:
    url = server.url("/image/a.png")
    urls = [url, url + "#part", url.replace("http", "HTTP", 1), server.url("/image/b.png"), url]
    outcomes = run(directory, urls)
    assert statuses(outcomes) == [Status.SAVED, Status.SKIPPED, Status.SKIPPED, Status.SAVED, Status.SKIPPED]
    assert [outcomes[line].reason for line in (2, 3, 5)] == [Reason.DUPLICATE] * 3
    assert len(server.requests) == 2


def test_a_duplicate_is_known_across_groups(server: Server, directory: Path) -> None:
    url = server.url("/image/a.png")
    groups = [lines_of([url]), None, lines_of([url], 2), [], lines_of([url, url], 3)]
    outcomes = list(batch.run(groups, settings_for(directory), threading.Event()))
    assert sorted(outcome.status for outcome in outcomes) == [Status.SAVED, *[Status.SKIPPED] * 3]


def test_bad_lines_fail_alone(server: Server, directory: Path) -> None:
    outcomes = run(directory, ["nonsense", server.url("/image/a.png"), "ftp://host/a.png", "http://h:0/a.png"])
    assert [outcomes[line].reason for line in range(1, 5)] == [Reason.BAD_URL, None, Reason.BAD_URL, Reason.BAD_URL]


# Files that no row tells of ----------------------------------------------------------------------------------------


def _lose_index(directory: Path) -> None:
    for path in (directory / ".image_loader").glob("index*"):
        path.unlink()


def test_a_file_without_a_row_is_asked_for_by_its_time_and_remembered(server: Server, directory: Path) -> None:
    url = server.url("/image/a.png")
    run(directory, [url])
    _lose_index(directory)
    assert statuses(run(directory, [url])) == [Status.FRESH]
    assert server.requests[1].headers["if-modified-since"] == "Sun, 13 Sep 2020 12:26:40 GMT"
    assert "if-none-match" not in server.requests[1].headers
    assert statuses(run(directory, [url])) == [Status.FRESH]
    assert "if-none-match" in server.requests[2].headers


def test_an_older_file_without_a_row_is_replaced(server: Server, directory: Path) -> None:
    directory.mkdir()
    (directory / "a.png").write_bytes(png("older", 500))
    os.utime(directory / "a.png", (1e9, 1e9))
    assert statuses(run(directory, [server.url("/image/a.png")])) == [Status.SAVED]
    assert (directory / "a.png").read_bytes() == server.image("/image/a.png")


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:99]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["emptied", "cut", "a directory"],
)
def test_what_is_no_image_in_its_place_is_not_adopted(
    server: Server, directory: Path, harm: Callable[[Path], Any]
) -> None:
    run(directory, [server.url("/image/a.png")])
    _lose_index(directory)
    harm(directory / "a.png")
    run(directory, [server.url("/image/a.png")])
    assert "if-modified-since" not in server.requests[1].headers


def test_files_of_two_urls_of_one_name_find_their_own_again(
    server: Server, new_server: Callable[..., Server], directory: Path
) -> None:
    other = new_server(name="other")
    urls = [server.url("/image/a.png"), other.url("/image/a.png")]
    names = {outcome.url: outcome.file for outcome in run(directory, urls).values()}
    _lose_index(directory)
    # The one with the hash in its name is now the first to claim.
    again = run(directory, urls[::-1])
    assert {outcome.url: outcome.file for outcome in again.values()} == names
    assert (directory / str(names[urls[0]])).read_bytes() == server.image("/image/a.png")
    assert (directory / str(names[urls[1]])).read_bytes() == other.image("/image/a.png")


# Ends before the end -----------------------------------------------------------------------------------------------


def _open_descriptors() -> set[str]:
    """Return the descriptors of this process, each with what it stands for."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(f"{path.name} {path.readlink()}")
    return found


def _our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("image_loader")]


def assert_nothing_left(before: set[str], seconds: float = 3.0) -> None:
    """No thread and no descriptor of a run is left, without the help of the garbage collector."""
    for thread in _our_threads():
        thread.join(seconds)
    assert _our_threads() == []
    new = {name for name in _open_descriptors() - before if "socket" not in name}
    assert new == set()


def test_a_run_that_has_ended_leaves_no_thread_file_or_connection(server: Server, directory: Path) -> None:
    before = _open_descriptors()
    gc.collect()
    gc.disable()
    try:
        run(
            directory,
            [*urls_of(server, 20), *urls_of(server, 3, "status-404"), *urls_of(server, 3, "garbage")],
            retries=0,
        )
        server.wait_for(lambda: server.at_work == 0)
        assert connections_to(server.port) == 0
        assert_nothing_left(before)
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [ZeroDivisionError, LoaderError])
def test_a_run_that_a_worker_ends_leaves_nothing_either(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def raises(*_: object) -> NoReturn:
        raise error("it ends")

    monkeypatch.setattr(Downloader, "attempt", raises)
    before = _open_descriptors()
    gc.collect()
    gc.disable()
    try:
        with suppress(error):
            run(directory, urls_of(server, 1))
        server.wait_for(lambda: server.at_work == 0)
        assert_nothing_left(before)
    finally:
        gc.enable()


def test_an_iterator_that_is_closed_early_leaves_nothing_and_remembers_what_was_saved(
    server: Server, directory: Path
) -> None:
    before = _open_descriptors()
    urls = [*urls_of(server, 5), *urls_of(server, 5, "gated", "?size=500000"), *urls_of(server, 5, "resumable-closed")]
    with closing(load(urls, directory, threads=20, per_host=20)) as outcomes:
        saved = [next(outcome for outcome in outcomes if outcome.status is Status.SAVED) for _ in range(3)]
    assert leftovers(directory) == []
    assert_nothing_left(before)
    with closing(sqlite3.connect(directory / ".image_loader" / "index.sqlite3")) as index:
        names = {name for (name,) in index.execute("SELECT name FROM image WHERE size IS NOT NULL")}
    assert {outcome.file for outcome in saved} <= names
    assert names == {path.name for path in directory.glob("*.png")}


def test_an_iterator_that_is_dropped_leaves_nothing_either(server: Server, directory: Path) -> None:
    before = _open_descriptors()
    outcomes = load([*urls_of(server, 3), *urls_of(server, 3, "gated", "?size=500000")], directory)
    next(outcomes)
    del outcomes
    assert leftovers(directory) == []
    assert_nothing_left(before)


def test_an_iterator_that_was_never_begun_does_nothing(server: Server, directory: Path) -> None:
    load(urls_of(server, 3), directory)
    assert not directory.exists()


def interrupted_run(directory: Path, url: str, begun: threading.Event) -> Outcome:
    """Interrupt a run over one URL once an event has come; return the outcome."""
    stop = threading.Event()

    def lines() -> Iterator[list[Line] | None]:
        yield lines_of([url])
        while not begun.is_set():
            yield None
        stop.set()

    (outcome,) = batch.run(lines(), settings_for(directory), stop)
    return outcome


def test_an_attempt_that_nobody_waits_for_any_more_puts_no_image_in_place(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, dropped, over = (threading.Event() for _ in range(3))
    commit, drop = Partial.commit, Scheduler.drop_running

    def late_commit(self: Partial, mtime: float | None, files: Iterable[str] | None) -> os.stat_result:
        begun.set()
        assert dropped.wait(60)
        try:
            return commit(self, mtime, files)
        finally:
            over.set()

    def drop_and_wait(self: Scheduler) -> list[Task]:
        tasks = drop(self)
        dropped.set()
        assert over.wait(60)
        return tasks

    monkeypatch.setattr(batch, "_GRACE", 0.0)
    monkeypatch.setattr(Partial, "commit", late_commit)
    monkeypatch.setattr(Scheduler, "drop_running", drop_and_wait)
    outcome = interrupted_run(directory, server.url("/image/a.png"), begun)
    assert outcome.reason is Reason.INTERRUPTED
    assert not (directory / "a.png").exists()
    assert leftovers(directory) == []


def test_an_image_that_is_put_in_place_in_the_last_moment_is_known_to_the_next_run(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, given_up = threading.Event(), threading.Event()
    commit, give_up = Partial.commit, Directory.give_up_partials

    def commit_and_wait(self: Partial, mtime: float | None, files: Iterable[str] | None) -> os.stat_result:
        state = commit(self, mtime, files)
        begun.set()
        assert given_up.wait(60)
        return state

    def told(self: Directory) -> None:
        give_up(self)
        given_up.set()

    with monkeypatch.context() as patched:
        patched.setattr(batch, "_GRACE", 0.0)
        patched.setattr(batch, "_LAST_GRACE", 60.0)
        patched.setattr(Partial, "commit", commit_and_wait)
        patched.setattr(Directory, "give_up_partials", told)
        url = server.url("/image/a.png")
        assert interrupted_run(directory, url, begun).status is Status.SAVED
    assert statuses(run(directory, [url])) == [Status.FRESH]
    assert "if-none-match" in server.requests[1].headers


def test_an_event_ends_the_run_and_every_line_that_was_read_is_told(server: Server, directory: Path) -> None:
    stop = threading.Event()
    told: list[Outcome] = []
    groups = [lines_of(urls_of(server, 3)), lines_of(urls_of(server, 5, "held"), 4), lines_of(["http://h/x.png"], 9)]

    def watched() -> Iterator[list[Line] | None]:
        yield groups[0]
        yield groups[1]
        while not any(request.path.startswith("/held") for request in server.requests):
            yield None
        stop.set()
        yield groups[2]

    told.extend(batch.run(watched(), settings_for(directory, window=100), stop))
    assert sorted(outcome.line for outcome in told) == list(range(1, 10))
    assert {outcome.reason for outcome in told} <= {None, Reason.INTERRUPTED}
    assert leftovers(directory) == []


@pytest.fixture
def restored(server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """URLs whose images were saved and have other times since; after three of them, the others wait to be read."""
    urls = urls_of(server, 20)
    run(directory, urls)
    for path in directory.glob("*.png"):
        os.utime(path)
    monkeypatch.setattr(planner, "_READ_MAX", 3 * SIZE - 1)
    return urls


@pytest.mark.parametrize("surprises", [1, 2, 3])
def test_whatever_workers_raise_every_line_that_was_read_is_told(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch, surprises: int
) -> None:
    attempt, at_once, told = Downloader.attempt, threading.Barrier(surprises), list[Outcome]()

    def raises(self: Downloader, job: Job, connection: Connection) -> Result | Job:
        if job.line <= surprises:
            at_once.wait(60)
            raise ZeroDivisionError(f"line {job.line}")
        return attempt(self, job, connection)

    monkeypatch.setattr(Downloader, "attempt", raises)
    with pytest.raises(ZeroDivisionError):
        told.extend(batch.run([lines_of(urls_of(server, 100))], settings_for(directory), threading.Event()))
    assert sorted(each.line for each in told) == list(range(1, 101))


THREAD = """
import json, sys, threading
from image_loader import load
urls, directory, wait = json.load(sys.stdin)
told = []
def given():
    if wait:
        threading.main_thread().join()
    yield from urls
def run():
    try:
        for outcome in load(given(), directory, threads=2):
            told.append(outcome.line)
    except Exception as error:
        print(sorted(told) == list(range(1, len(told) + 1)), error)
threading.Thread(target=run).start()
while not told and not wait:
    pass
"""


@pytest.mark.parametrize("wait", [False, True])
def test_a_run_in_a_thread_that_the_main_thread_does_not_wait_for_ends(
    server: Server, directory: Path, wait: bool
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", THREAD],
        input=json.dumps([urls_of(server, 2000), str(directory), wait]),
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0
    assert ended.stdout.startswith("True Python is ending"), "every line that was read is told"


def test_files_that_have_to_be_read_in_several_parts_are_all_told(
    server: Server, directory: Path, restored: Sequence[str]
) -> None:
    assert set(statuses(run(directory, restored))) == {Status.FRESH}


def test_lines_that_wait_for_files_to_be_read_are_told_where_the_run_is_stopped(
    server: Server, directory: Path, restored: Sequence[str]
) -> None:
    stop = threading.Event()
    told = []
    for outcome in batch.run([lines_of(restored)], settings_for(directory), stop):
        told.append(outcome)
        stop.set()
    assert sorted(outcome.line for outcome in told) == list(range(1, len(restored) + 1))
    assert {outcome.reason for outcome in told} == {None, Reason.INTERRUPTED}


def test_lines_that_wait_for_files_to_be_read_are_told_where_an_error_ends_the_run(
    server: Server, directory: Path, restored: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Directory, "check_inodes", _no_inodes_left)
    told, error = _told_until_error([lines_of(restored)], settings_for(directory))
    assert isinstance(error, OutOfInodesError)
    assert sorted(outcome.line for outcome in told) == list(range(1, len(restored) + 1))


def _no_inodes_left(directory: Directory, needed: int) -> None:
    raise OutOfInodesError(directory.path, needed, 0)


@pytest.mark.parametrize(("window_size", "ahead"), [(10_000, 2), (10**6, 8)])
def test_very_long_urls_are_not_looked_at_far_ahead(
    server: Server, directory: Path, window_size: int, ahead: int
) -> None:
    read = []

    def lines() -> Iterator[list[Line] | None]:
        for number in range(8):
            read.append(number)
            yield lines_of(urls_of(server, 1, f"gated/{number}", "?" + "x" * 9000), number + 1)

    def waiting() -> Iterator[Outcome]:
        yield from batch.run(lines(), settings_for(directory, window_size=window_size), threading.Event())

    run = threading.Thread(target=lambda: told.extend(waiting()))
    told: list[Outcome] = []
    run.start()
    server.wait_for(lambda: len(read) == ahead and server.at_work >= min(ahead, 3))
    assert len(read) == ahead
    server.gate.set()
    run.join()
    assert [outcome.status for outcome in told] == [Status.SAVED] * 8


@pytest.mark.parametrize(("window_hosts", "ahead"), [(2, 4), (100, 8)])
def test_a_list_is_not_read_on_while_many_hosts_wait_for_their_first_connection(
    server: Server, directory: Path, window_hosts: int, ahead: int
) -> None:
    """One that is being connected to does not count: it may be dead, and must not hold up the others."""
    read = []

    def lines() -> Iterator[list[Line] | None]:
        for number in range(8):
            read.append(number)
            yield lines_of([f"https://127.0.1.{number + 1}:{port}/a.jpg"], number + 1)

    def waiting() -> Iterator[Outcome]:
        yield from batch.run(lines(), settings_for(directory, connects=1, window_hosts=window_hosts), stop)

    stop = threading.Event()
    told: list[Outcome] = []
    with silent_port(ALL_ADDRESSES) as port:
        run = threading.Thread(target=lambda: told.extend(waiting()))
        run.start()
        server.wait_for(lambda: len(read) == ahead)
        stop.set()
        run.join()
    assert len(read) == ahead
    assert [outcome.reason for outcome in told] == [Reason.INTERRUPTED] * ahead


def test_images_that_are_done_need_no_inode_any_more(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []
    monkeypatch.setattr(Directory, "check_inodes", lambda _, number: wanted.append(number))
    groups = [lines_of([url], number) for number, url in enumerate(urls_of(server, 8), 1)]
    settings = settings_for(directory, window=1, batch=1)
    assert len(list(batch.run(groups, settings, threading.Event()))) == 8
    assert max(wanted) == 1


def test_long_urls_that_are_done_leave_room_for_others(server: Server, directory: Path) -> None:
    read = []

    def lines() -> Iterator[list[Line] | None]:
        yield lines_of(urls_of(server, 3, "image", "?" + "x" * 9000))
        for number in range(8):
            read.append(number)
            yield lines_of(urls_of(server, 1, f"gated/{number}"), number + 4)

    def waiting() -> Iterator[Outcome]:
        yield from batch.run(lines(), settings_for(directory, window_size=10_000), threading.Event())

    run = threading.Thread(target=lambda: told.extend(waiting()))
    told: list[Outcome] = []
    run.start()
    server.wait_for(lambda: len(read) == 8)
    server.gate.set()
    run.join()
    assert [outcome.status for outcome in told] == [Status.SAVED] * 11


@pytest.mark.parametrize("filler", [b"#" * 65535 + b"\n", b"x" * 65536])
def test_what_has_no_urls_is_read_without_waiting_for_downloads(
    server: Server, directory: Path, tmp_path: Path, filler: bytes
) -> None:
    held, good = server.url("/held/a.png"), server.url("/image/b.png")
    path = tmp_path / "urls.txt"
    path.write_bytes(f"{held}\n".encode() + filler * 500 + f"\n{good}\n".encode())
    # With a tenth of a second for each chunk, it would take 50 s: the other image had failed by then.
    with closing(load(path, directory, timeout=15.0, retries=0)) as outcomes:
        assert good in {outcome.url for outcome in islice(outcomes, 1 + filler.startswith(b"x"))}


def test_a_host_that_was_given_up_costs_its_further_lines_no_name(server: Server, directory: Path) -> None:
    told: list[Outcome] = []

    def lines(port: int) -> Iterator[list[Line] | None]:
        yield lines_of([f"http://127.0.0.1:{port}/{number}.png" for number in range(3)])
        while len(told) < 3:
            yield None
        yield lines_of([f"http://127.0.0.1:{port}/{number}.png" for number in (3, 4, 4)] + urls_of(server, 1), 4)

    with refusing_port() as port:
        settings = settings_for(directory, host_failures=1, host_patience=0.0)
        told.extend(batch.run(lines(port), settings, threading.Event()))
    last = sorted(told)[3:]
    assert [outcome.reason for outcome in last] == [Reason.HOST_DOWN, Reason.HOST_DOWN, Reason.DUPLICATE, None]
    with closing(sqlite3.connect(directory / ".image_loader/index.sqlite3")) as index:
        names = {name for (name,) in index.execute("SELECT name FROM image")}
    assert names == {"0.png", "1.png", "2.png", last[-1].file}


def _broken_list(groups: Sequence[list[Line]], error: Exception) -> Iterator[list[Line] | None]:
    yield from groups
    raise error


def test_a_list_that_cannot_be_read_on_is_worked_off_first(server: Server, directory: Path) -> None:
    broken = _broken_list([lines_of(urls_of(server, 5))], UrlFileError("gone"))
    told, error = _told_until_error(broken, settings_for(directory))
    assert isinstance(error, UrlFileError)
    assert sorted(outcome.line for outcome in told) == [1, 2, 3, 4, 5]


def test_an_error_of_the_list_itself_reaches_the_caller_and_leaves_nothing(server: Server, directory: Path) -> None:
    before = _open_descriptors()

    def urls() -> Iterator[str]:
        yield from urls_of(server, 600)
        raise RuntimeError("of the caller")

    told: list[Outcome] = []
    with pytest.raises(RuntimeError, match="of the caller"):
        told.extend(load(urls(), directory))
    assert [outcome.status for outcome in told] == ["saved"] * 600
    assert leftovers(directory) == []
    assert_nothing_left(before)


# What ends the run -------------------------------------------------------------------------------------------------


def _told_until_error(groups: Iterable[list[Line] | None], settings: Settings) -> tuple[list[Outcome], LoaderError]:
    told: list[Outcome] = []
    with pytest.raises(LoaderError) as caught:
        for outcome in batch.run(groups, settings, threading.Event()):
            told.append(outcome)  # noqa: PERF402 (what was told before the error counts)
    return told, caught.value


def _without_table(index: Path) -> None:
    with closing(sqlite3.connect(index, timeout=10)) as connection:
        connection.execute("DROP TABLE image")


def _planned_lines(server: Server) -> list[Line]:
    """Return a bad line, two that ask for images, and a duplicate."""
    bad = Line(1, "nonsense", None, "no URL")
    return [bad, *lines_of([*urls_of(server, 2), *urls_of(server, 1)], 2)]


def _assert_told_once(told: Sequence[Outcome]) -> None:
    """See that each of these lines is told once, and those that ask for nothing as what they are."""
    reasons = {outcome.line: outcome.reason for outcome in told}
    assert len(told) == len(reasons)
    assert reasons == {1: Reason.BAD_URL, 2: Reason.INTERRUPTED, 3: Reason.INTERRUPTED, 4: Reason.DUPLICATE}


def test_an_error_of_the_first_look_at_an_origin_ends_the_run_and_every_line_that_was_read_is_told(
    server: Server, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_bytes(b"machine 127.0.0.1 login \xff password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    told, error = _told_until_error([_planned_lines(server)], settings_for(directory))
    assert isinstance(error, OptionError)
    _assert_told_once(told)


def _fail(*_: object) -> NoReturn:
    raise OutOfThreadsError


@pytest.mark.parametrize("where", ["image_loader.transport.Transport.__init__", SCHEDULER + ".__init__"])
def test_an_error_before_jobs_are_taken_ends_the_run_and_every_line_that_was_read_is_told(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(where, _fail)
    told, error = _told_until_error([_planned_lines(server)], settings_for(directory))
    assert isinstance(error, OutOfThreadsError)
    _assert_told_once(told)


@pytest.mark.parametrize("where", [SCHEDULER + ".advance", "image_loader.transport.Transport.take"])
def test_a_fault_of_the_program_loses_no_line_either(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(where, fail)
    told: list[Outcome] = []
    with pytest.raises(ZeroDivisionError):
        told.extend(batch.run([_planned_lines(server)], settings_for(directory), threading.Event()))
    _assert_told_once(told)


@pytest.mark.parametrize("waiting", ["image", "held"])
def test_an_index_that_fails_in_mid_run_ends_it_and_every_line_that_was_read_is_told(
    server: Server, directory: Path, waiting: str
) -> None:
    def groups() -> Iterator[list[Line] | None]:
        yield lines_of(urls_of(server, 3, waiting))
        server.wait_for(lambda: len(server.requests) == 3)
        _without_table(directory / ".image_loader" / "index.sqlite3")
        yield lines_of(["http://h/x.png", "http://h/y.png"], 4)

    told, error = _told_until_error(groups(), settings_for(directory))
    assert isinstance(error, IndexFileError)
    assert sorted(outcome.line for outcome in told) == [1, 2, 3, 4, 5]
    assert leftovers(directory) == []


def test_a_directory_that_goes_in_mid_run_ends_it_and_every_line_that_was_read_is_told(
    server: Server, directory: Path, tmp_path: Path
) -> None:
    settings = settings_for(directory, index_file=tmp_path / "index.sqlite3")

    def groups() -> Iterator[list[Line] | None]:
        yield lines_of(urls_of(server, 3))
        server.wait_for(lambda: len(server.requests) == 3)
        directory.rename(tmp_path / "moved")
        yield lines_of(urls_of(server, 6, "slow"), 4)

    told, error = _told_until_error(groups(), settings)
    assert isinstance(error, DirectoryError)
    assert sorted(outcome.line for outcome in told) == list(range(1, 10))


def test_options_that_prove_wrong_only_when_they_are_used_end_the_run_with_every_line_told(
    directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    settings = settings_for(directory, ca_bundle=str(tmp_path / "none.pem"))
    told, error = _told_until_error(iter([lines_of(["https://h/a.png", "https://h/b.png"])]), settings)
    assert isinstance(error, OptionError)
    assert sorted(outcome.line for outcome in told) == [1, 2]


# Twice at once, and in threads -------------------------------------------------------------------------------------


def test_two_runs_in_two_threads_on_one_directory_agree(server: Server, directory: Path) -> None:
    urls = urls_of(server, 30)
    found: list[dict[int, Outcome]] = []
    threads = [threading.Thread(target=lambda: found.append(run(directory, urls))) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert len(found) == 2
    for outcomes in found:
        assert set(statuses(outcomes)) <= {Status.SAVED, Status.FRESH, Status.SKIPPED}
    assert sorted(path.name for path in directory.glob("*.png")) == sorted(url.rpartition("/")[2] for url in urls)
    assert leftovers(directory) == []


def test_two_runs_that_take_turns_in_one_thread_do_not_wait_for_each_other(server: Server, directory: Path) -> None:
    first, second = load(urls_of(server, 10), directory), load(urls_of(server, 10, "in-chunks"), directory)
    pairs = list(zip(first, second, strict=True))
    assert {outcome.status for pair in pairs for outcome in pair} == {Status.SAVED}
    # The names of both lists are the same, their URLs are not.
    assert len(list(directory.glob("*.png"))) == 20


def test_an_iterator_may_be_handed_from_thread_to_thread(server: Server, directory: Path) -> None:
    outcomes = load(urls_of(server, 9), directory)
    taken: list[Outcome] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: taken.extend(islice(outcomes, 3)))
        thread.start()
        thread.join(10)
    assert list(outcomes) == []
    assert [outcome.status for outcome in taken] == [Status.SAVED] * 9


# Options that make no sense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["timeout", "max_time"])
@pytest.mark.parametrize("value", [float("inf"), 1e300, float("nan"), 0.0, -1.0])
def test_a_time_that_cannot_be_waited_for_is_refused_or_kept(
    server: Server, directory: Path, option: str, value: float, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        outcomes = run(directory, [server.url("/image/a.png")], **{option: value})
    except OptionError:
        assert not directory.exists()
    else:
        assert statuses(outcomes) == [Status.SAVED]
    assert capfd.readouterr().err == ""


# Out of descriptors ------------------------------------------------------------------------------------------------

_STARVED = """
import resource, sys
from conftest import limited
from image_loader import load
outcomes = load(sys.argv[2:], sys.argv[1], retries=1, threads=2)
print(next(outcomes).status, flush=True)
with limited(resource.RLIMIT_NOFILE, 3):
    for outcome in outcomes:
        print(outcome.status, outcome.reason, flush=True)
"""


def test_a_process_that_gets_no_descriptor_at_all_comes_to_an_end(server: Server, directory: Path) -> None:
    urls = [server.url("/image/a.png"), *urls_of(server, 3, "failing-once")]
    ended = in_another_process(_STARVED, str(directory), *urls, seconds=15)
    assert ended.stdout.splitlines() == ["saved", *["failed write"] * 3]
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_beginning_goes_with_the_image_that_was_saved_instead(tmp_path: Path) -> None:
    beginning = whole(bytes(5000), 'ETag: "1"', "Accept-Ranges: bytes")[:-1000].replace(b"image/png", b"image/gif")
    with Scripted(plays(beginning, End.CLOSE), plays(whole(png("a", 3000), 'ETag: "2"'))) as server:
        outcomes = load([server.url("/photo")], tmp_path)
        assert next(outcomes).status is Status.SAVED
        assert leftovers(tmp_path) == []
        outcomes.close()

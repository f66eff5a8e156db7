"""Promises of the files between a driver and its tasks, and of what a task does on a worker."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conftest import SETTINGS, Loader
from image_loader import __version__
from image_loader.cluster import files, task
from image_loader.cluster.files import Rows
from image_loader.cluster.heartbeat import Heartbeat, Watch
from image_loader.cluster.spools import Spools
from image_loader.cluster.task import Ended, Task
from image_loader.errors import DirectoryError
from image_loader.model import Change, Layout, Line, Outcome, Reason, Status
from image_loader.settings import Settings
from image_loader.store.partitions import Partitions, runs
from image_loader.url import parse
from server import Server

OWN = SETTINGS._replace(
    headers={"Authorization": "secret é"}, layout=Layout.HASH, ignore_status=frozenset({404, 410}), max_time=1.5
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Partitions]:
    """A directory, and its driver's lock."""
    made = Partitions(tmp_path / "images", 256)
    yield made
    made.close()


@pytest.fixture
def spools(directory: Partitions) -> Iterator[Spools]:
    """The files of a run there."""
    made = Spools(runs(directory.path), "run", OWN._replace(directory=directory.path))
    yield made
    made.close()


def _line(number: int, text: str = "http://h/é.jpg", name: str | None = None) -> Line:
    return Line(number, text, parse(text), "", name)


def _task(directory: Partitions, partition: int = 63) -> Task:
    return Task(directory.path, "run", partition, __version__, 60.0)


# The files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [False, True], ids=["held", "written"])
def test_lines_come_back_as_they_were(spools: Spools, read: bool) -> None:
    lines = [_line(1), _line(2, "http://h/a b?q#f", "a\nb\ud800.png"), _line(3, "HTTP://u:p@h/" + "x" * 40_000)]
    for line in lines:
        spools.add(3, line)
    if read:
        spools.flush()
        assert list(files.read_lines(spools.folder.lines(3), 2)) == [lines[:2], lines[2:]]
    for told in range(4):
        assert list(spools.rest(3, told)) == lines[told:]
    assert spools.counts == {3: 3}


def test_outcomes_come_back_with_the_folder_of_their_part(spools: Spools) -> None:
    image = Outcome(1, "http://h/é", "ü.png", Status.SAVED, bytes=7, seconds=0.5, change=Change.NEW, width=2)
    failure = Outcome(2, "http://h/b", None, Status.FAILED, Reason.DNS, "no such\nhost")
    rows = Rows(spools.folder.rows(63, "x"))
    for outcome in (image, failure):
        rows.add(outcome)
    rows.close()
    assert rows.told == 2
    found = list(spools.rows(63, "x"))
    assert found == [image._replace(file="3f/ü.png"), failure]
    assert [type(each.status) for each in found] == [Status, Status]
    assert (type(found[0].change), type(found[1].reason)) == (Change, Reason)


def test_a_row_that_was_cut_is_left_out(spools: Spools) -> None:
    rows = Rows(spools.folder.rows(63, "x"))
    rows.add(Outcome(1, "http://h/a", None, Status.FAILED))
    rows.add(Outcome(2, "http://h/b", None, Status.FAILED))
    rows.close()
    path = spools.folder.rows(63, "x")
    os.truncate(path, path.stat().st_size - 3)
    assert [outcome.line for outcome in spools.rows(63, "x")] == [1]


def test_settings_come_back_as_they_were(spools: Spools, directory: Partitions) -> None:
    assert files.read_settings(spools.folder.settings) == OWN._replace(directory=directory.path)


def test_nobody_else_can_read_them_and_nothing_is_left(spools: Spools, directory: Partitions) -> None:
    spools.add(1, _line(1))
    spools.flush()
    Rows(spools.folder.rows(1, "x")).close()
    heartbeat = Heartbeat(spools.folder.heartbeat)
    heartbeat.close()
    assert stat.S_IMODE(spools.folder.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spools.folder.path.iterdir()} == {0o600}
    assert len(list(spools.folder.path.iterdir())) == 4
    spools.close()
    assert list(runs(directory.path).iterdir()) == []


def test_the_files_of_a_run_that_was_killed_are_removed(spools: Spools, directory: Partitions) -> None:
    spools.add(1, _line(1))
    spools.flush()
    second = Spools(runs(directory.path), "second", OWN)
    assert [path.name for path in runs(directory.path).iterdir()] == ["second"]
    second.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="takes /dev/full")
def test_a_full_disk_loses_no_line(spools: Spools) -> None:
    spools.add(1, _line(1))
    spools.folder.lines(2).symlink_to("/dev/full")  # A link is not followed.
    spools.add(2, _line(2))
    with pytest.raises(DirectoryError):
        spools.flush()
    assert [line.number for part in (1, 2) for line in spools.rest(part, 0)] == [1, 2]


def test_the_settings_show_no_header() -> None:
    for shown in (repr(OWN), str(OWN), f"{OWN}", repr([OWN])):
        assert "secret" not in shown
        assert "Authorization" not in shown


def test_a_task_shows_its_part_alone(directory: Partitions) -> None:
    assert repr(_task(directory)) == "<part 3f>"


# Signs of life ----------------------------------------------------------------------------------------------------


def _looked(watch: Watch) -> bool:
    watch._next_look = 0.0
    watch.look()
    return not watch.stop.is_set()


def test_a_task_goes_on_while_its_driver_lives_and_ends_when_it_says_so(spools: Spools) -> None:
    heartbeat = Heartbeat(spools.folder.heartbeat)
    watch = Watch(spools.folder.heartbeat, 0.0)
    heartbeat._beat()
    assert _looked(watch)
    heartbeat.end_tasks()
    assert not _looked(watch)
    assert watch.fault == ""
    heartbeat.close()


def test_a_task_ends_when_the_driver_gives_no_sign_of_life_whatever_the_time_of_the_file(spools: Spools) -> None:
    heartbeat = Heartbeat(spools.folder.heartbeat)
    heartbeat.close()
    os.utime(spools.folder.heartbeat, (2**31, 2**31))
    assert _looked(Watch(spools.folder.heartbeat, 60.0))
    watch = Watch(spools.folder.heartbeat, 0.0)
    assert not _looked(watch)
    assert watch.fault.startswith("no sign of life of the driver")


def test_a_task_ends_when_the_files_of_its_run_are_gone(spools: Spools) -> None:
    heartbeat = Heartbeat(spools.folder.heartbeat)
    watch = Watch(spools.folder.heartbeat, 60.0)
    heartbeat.close()
    spools.close()
    assert not _looked(watch)
    assert watch.fault == "the files of the run are gone"


# A task -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def driven(spools: Spools) -> Iterator[Spools]:
    """The files of a run whose driver lives."""
    heartbeat = Heartbeat(spools.folder.heartbeat)
    yield spools
    heartbeat.close()


def test_a_task_tells_the_lines_of_its_part_and_writes_to_its_folder(
    driven: Spools, directory: Partitions, server: Server
) -> None:
    for number in range(3):
        driven.add(63, _line(number, server.url(f"/image/{number}.png")))
    driven.flush()
    ended = task.run(_task(directory))
    assert (ended.told, ended.fault) == (3, "")
    rows = list(driven.rows(63, ended.attempt))
    assert [row.status for row in rows] == [Status.SAVED] * 3
    assert all((directory.path / str(row.file)).is_file() for row in rows)
    again = task.run(_task(directory))
    assert again.attempt != ended.attempt
    assert [row.status for row in driven.rows(63, again.attempt)] == [Status.FRESH] * 3


def test_nobody_else_uses_the_index_while_a_task_does(
    driven: Spools, directory: Partitions, server: Server, loader: Loader
) -> None:
    driven.add(63, _line(1, server.url("/held/a.png")))
    driven.flush()
    running = threading.Thread(target=task.run, args=(_task(directory),))
    running.start()
    server.wait_for(lambda: server.at_work == 1)
    index = directory.path / "3f" / ".image_loader" / "index.sqlite3"
    assert not index.with_name("index.sqlite3-shm").exists()
    with (
        closing(sqlite3.connect(index, timeout=0)) as database,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        database.execute("SELECT count(*) FROM image")
    server.gate.set()
    running.join()
    with closing(sqlite3.connect(index, timeout=0)) as database:
        assert database.execute("SELECT count(size) FROM image").fetchone() == (1,)


def test_a_task_is_refused_where_it_cannot_be_done(driven: Spools, directory: Partitions) -> None:
    good = _task(directory)
    assert task.fault(good) == ""
    other = Task(directory.path, "run", 63, "0.9", 60.0)
    assert task.fault(other) == f"it has version {__version__} of image_loader, and the driver 0.9"
    assert task.run(other) == Ended(fault=task.fault(other))
    elsewhere = Task(directory.path, "another run", 63, __version__, 60.0)
    assert "not the directory that the driver has" in task.fault(elsewhere)
    files.write(driven.folder.path / "new", files.dumped(OWN._replace(ca_bundle="/nowhere/to/be.pem")))
    (driven.folder.path / "new").replace(driven.folder.settings)
    assert task.fault(good) == "ca_bundle: /nowhere/to/be.pem: no such file or directory"


def test_a_link_in_the_place_of_a_parts_folder_is_not_followed(
    driven: Spools, directory: Partitions, server: Server, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (directory.path / "3f").symlink_to(outside)
    driven.add(63, _line(1, server.url("/image/a.png")))
    driven.flush()
    assert task.run(_task(directory)).fault == f"{directory.path}/3f: a link, which is not followed; move it away"
    assert list(outside.iterdir()) == []


def test_a_directory_whose_locks_do_not_reach_a_worker_is_refused(tmp_path: Path) -> None:
    directory = Partitions(tmp_path, 256)
    spools = Spools(runs(tmp_path), "run", OWN)
    heartbeat = Heartbeat(spools.folder.heartbeat)
    assert task.fault(_task(directory)) == ""
    directory.close()  # Now it looks as if the driver had locked nothing.
    assert "does not pass locks on" in task.fault(_task(directory))
    heartbeat.close()


def test_the_settings_of_a_task_are_those_of_the_run_for_its_folder(driven: Spools, directory: Partitions) -> None:
    settings = task._check(_task(directory))
    own = {"directory": directory.path / "3f", "exclusive": True, "one_processor": False, "cluster": None}
    assert isinstance(settings, Settings)
    assert settings == OWN._replace(**own)  # type: ignore[arg-type]

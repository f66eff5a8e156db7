"""Promises of --processes: all is as with one process, and nobody is left behind."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from conftest import MODULE, SOURCES, Loader, Row, Run, Running, being_written, leftovers, targets, urls_of
from image_loader import load
from image_loader.errors import (
    LoaderError,
    MissingPackagesError,
    OptionError,
    OutOfInodesError,
    OutOfThreadsError,
    TooManyDeletionsError,
)
from image_loader.model import Outcome
from image_loader.url import part
from server import Server

HOUR = "max-age=3600"
TWO = ("--processes", "2")
PROMPT = 3.0
"""Seconds within which an end has to be complete: two are promised, and the machine may be busy."""
NOISE = {"seconds", "attempts"}


@pytest.fixture
def servers() -> Iterator[Sequence[Server]]:
    """Four servers; of two processes, the first two belong to one, the others to the other."""
    with ExitStack() as stack:
        addresses = (f"127.0.0.{number}" for number in count(1))
        chosen: list[list[str]] = [[], []]
        while min(map(len, chosen)) < 2:
            address = next(addresses)
            chosen[part(address, 2)].append(address)
        yield [stack.enter_context(Server(name=each, address=each)) for part in chosen for each in part[:2]]


def lists_of(servers: Sequence[Server], images: int, behaviour: str = "image", query: str = "") -> list[str]:
    """Return the URLs of that many images of each server, each with a name of its own, mixed."""
    urls = [
        server.url(f"/{behaviour}/{place}-{number:04}.png{query}")
        for place, server in enumerate(servers)
        for number in range(images)
    ]
    return random.Random(1).sample(urls, len(urls))


def keep_fresh(servers: Sequence[Server], urls: Sequence[str]) -> None:
    """Have these images be fresh for an hour."""
    for server in servers:
        server.headers |= {url.removeprefix(server.origin): {"Cache-Control": HOUR} for url in urls}


def requests(servers: Sequence[Server]) -> int:
    """Return how many requests have come."""
    return sum(len(server.requests) for server in servers)


def descendants(process: int) -> dict[int, int]:
    """Return the processes that a process has started, and those that these have, with their parents."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            number = int(entry.name)
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[number] = int(parent)
    found: dict[int, int] = {}
    fresh = {process}
    while fresh:
        fresh = {number for number, parent in parents.items() if parent in fresh}
        found |= {number: parents[number] for number in fresh}
    return found


def children(running: Running) -> list[int]:
    """Return the processes that a run downloads in, the first one first."""
    process = running.process.pid
    return sorted(number for number, parent in descendants(process).items() if parent == process)


def wait_until_gone(processes: Mapping[int, int]) -> None:
    """Wait until none of these processes is left."""
    give_up = time.monotonic() + PROMPT
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < give_up, "a process is left"
        time.sleep(0.01)


# Like one process -------------------------------------------------------------------------------------------------


def _comparable(row: Row) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in NOISE}, sort_keys=True)


def _mixed(servers: Sequence[Server]) -> list[str]:
    """Return a list with all that may become of a line, over all servers."""
    urls = lists_of(servers, 30)
    more = [
        server.url(f"/{behaviour}/{place}.png")
        for place, server in enumerate(servers)
        for behaviour in ("status-404", "page-jpeg", "closing-at-once", "empty-closed", "redirect")
    ]
    return [*urls, *more, "nonsense", "ftp://host/a.png", *urls[:25], *more[:3], servers[0].url("//image/0-0001.png")]


def test_the_outcomes_are_those_of_one_process(servers: Sequence[Server], loader: Loader) -> None:
    for place, server in enumerate(servers):
        server.headers[f"/redirect/{place}.png"] = {}
    urls = _mixed(servers)
    runs = []
    for processes in ("1", "2", "3"):
        loader.directory = loader.home / processes
        runs.append(loader.run(urls, "--processes", processes, "--retries", "0"))
    one, two, three = (Counter(map(_comparable, run.rows)) for run in runs)
    assert one == two == three
    assert len(runs[0].rows) == len(urls)
    assert {run.status for run in runs} == {1}
    assert runs[0].files == runs[1].files == runs[2].files
    for file in runs[0].files:
        contents = {(loader.home / processes / file).read_bytes() for processes in ("1", "2", "3")}
        assert len(contents) == 1


def test_a_run_with_another_number_of_processes_finds_everything_fresh(
    servers: Sequence[Server], loader: Loader
) -> None:
    urls = lists_of(servers, 40)
    keep_fresh(servers, urls)
    assert loader.run(urls, "--processes", "3").counts == (160, 0, 0, 0)
    asked = requests(servers)
    for processes in ("2", "1", "4"):
        run = loader.run(urls, "--processes", processes)
        assert (run.status, run.counts) == (0, (0, 160, 0, 0))
    assert requests(servers) == asked == 160


def test_hosts_that_share_names_share_the_directory(servers: Sequence[Server], loader: Loader) -> None:
    urls = [server.url(target) for target in targets(50) for server in servers]
    run = loader.run(urls, "--processes", "4")
    assert run.counts == (200, 0, 0, 0)
    assert len({row["file"] for row in run.rows}) == len(run.files) == 200
    by_origin = {server.origin: server for server in servers}
    for url in urls:
        origin = url[: url.index("/", 8)]
        assert run.content(url) == by_origin[origin].image(url.removeprefix(origin))


def test_a_list_of_one_starts_one_process(servers: Sequence[Server], loader: Loader) -> None:
    running = loader.start([servers[0].url("/held/a.png")], "--processes", "8")
    servers[0].wait_for(lambda: servers[0].at_work == 1)
    assert len(children(running)) == 1
    servers[0].gate.set()
    assert running.finish().counts == (1, 0, 0, 0)


def test_one_process_starts_none(servers: Sequence[Server], loader: Loader) -> None:
    running = loader.start([servers[0].url("/held/a.png")])
    servers[0].wait_for(lambda: servers[0].at_work == 1)
    assert children(running) == []
    servers[0].gate.set()
    running.finish()


def test_lines_of_a_pipe_are_downloaded_as_they_come(servers: Sequence[Server], loader: Loader) -> None:
    reading, writing = os.pipe()
    running = loader.start(b"", *TWO, stdin=reading)
    os.close(reading)
    for place, server in enumerate(servers):
        os.write(writing, server.url(f"/{place}.png").encode() + b"\n")
        server.wait_for((loader.directory / f"{place}.png").exists)
    os.close(writing)
    assert running.finish().counts == (4, 0, 0, 0)


def test_no_host_is_asked_for_more_at_once_than_allowed(servers: Sequence[Server], loader: Loader) -> None:
    urls = lists_of(servers, 20, "slow")
    assert loader.run(urls, "--processes", "4", "--per-host", "3").counts == (80, 0, 0, 0)
    assert max(server.peak for server in servers) == 3


def test_the_threads_are_those_of_all_processes_together(servers: Sequence[Server], loader: Loader) -> None:
    running = loader.start(lists_of(servers, 20, "held"), *TWO, "--threads", "5", "--per-host", "5")
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 5)
    for server in servers:
        server.gate.set()
    assert running.finish().counts == (80, 0, 0, 0)
    assert sum(server.peak for server in servers[:2]) <= 3 + 2


def test_results_failed_and_report_tell_all_lines(servers: Sequence[Server], loader: Loader) -> None:
    bad = [server.url("/status-404/a.png") for server in servers]
    urls = [*lists_of(servers, 10), *bad, "nonsense"]
    failed, report = loader.home / "failed.txt", loader.home / "report.html"
    run = loader.run(urls, *TWO, "--failed", str(failed), "--report", str(report))
    assert run.counts == (40, 0, 0, 5)
    assert sorted(line for line in failed.read_text().splitlines() if line[0] != "#") == sorted([*bad, "nonsense"])
    assert "<dd>40</dd>" in report.read_text()


def test_results_on_standard_output(servers: Sequence[Server], loader: Loader) -> None:
    path = loader.home / "urls.txt"
    path.write_text("\n".join(lists_of(servers, 10)))
    ended = subprocess.run(
        [*MODULE, *TWO, "--results", "-", path, loader.directory],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        check=True,
    )
    assert len([json.loads(line) for line in ended.stdout.splitlines()]) == 40
    assert ended.stderr == b""


def test_the_log_of_the_processes_is_that_of_the_run(servers: Sequence[Server], loader: Loader) -> None:
    run = loader.run(lists_of(servers, 3), *TWO, "-vv", "--retries", "0")
    assert run.stderr.count("asked for, since it is not there") == 12
    assert "asked for" not in loader.run(lists_of(servers, 3), *TWO, "-v", "--force").stderr


def test_load_logs_what_its_logger_is_set_to(
    servers: Sequence[Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "image_loader")
    list(load(lists_of(servers, 2), tmp_path, processes=2))
    decisions = [record for record in caplog.records if record.name == "image_loader.planner"]
    assert len(decisions) == 8
    assert {record.levelname for record in decisions} == {"DEBUG"}


def test_partial_files_are_resumed_while_other_processes_end(servers: Sequence[Server], loader: Loader) -> None:
    cut = [server.url("/resumable-closed/cut.png?size=500000") for server in servers]
    run = loader.run([*cut, *lists_of(servers, 5)], *TWO)
    assert run.counts == (24, 0, 0, 0)
    for server in servers:
        assert [request.headers.get("range") for request in server.asked("/resumable-closed/cut.png?size=500000")] == [
            None,
            "bytes=250000-",
        ]
    assert leftovers(loader.directory) == []


def test_one_process_does_not_sweep_what_another_keeps(servers: Sequence[Server], loader: Loader) -> None:
    """The first server's images wait for their next attempt, while the process of the others starts and ends."""
    reading, writing = os.pipe()
    running = loader.start(b"", *TWO, stdin=reading)
    os.close(reading)
    target = "/resumable-closed/cut.png?size=500000"
    for server in (servers[0], servers[1]):
        os.write(writing, server.url(target).encode() + b"\n")
    servers[0].wait_for(lambda: len(being_written(loader.directory)) == 2)
    os.write(writing, servers[2].url("/a.png").encode() + b"\n")
    os.close(writing)
    assert running.finish().counts == (3, 0, 0, 0)
    for server in (servers[0], servers[1]):
        assert [request.headers.get("range") for request in server.asked(target)] == [None, "bytes=250000-"]


def test_files_of_another_program_are_found_by_all_processes(servers: Sequence[Server], loader: Loader) -> None:
    """Whether this is the first run on a directory is decided before any process has begun."""
    loader.directory.mkdir()
    reading, writing = os.pipe()
    for server, name in ((servers[0], "a.png"), (servers[2], "b.png")):
        (loader.directory / name).write_bytes(server.image(f"/{name}"))
        os.utime(loader.directory / name, (1_600_000_000, 1_600_000_000))
    running = loader.start(b"", *TWO, stdin=reading)
    os.close(reading)
    for server, name in ((servers[0], "a.png"), (servers[2], "b.png")):
        os.write(writing, server.url(f"/{name}").encode() + b"\n")
        server.wait_for(lambda server=server: bool(server.requests))  # type: ignore[misc]
    os.close(writing)
    assert running.finish().counts == (0, 2, 0, 0)
    assert [len(server.requests) for server in servers] == [1, 0, 1, 0]


def test_names_of_a_table_are_given_by_all_processes(servers: Sequence[Server], loader: Loader) -> None:
    table = loader.home / "table.csv"
    urls = lists_of(servers, 10)
    options = (*TWO, "--url-column", "url", "--name-column", "name")
    for names in (range(40), range(39, -1, -1)):
        rows = [f"{url},{name:02}.png" for url, name in zip(urls, names, strict=True)]
        table.write_text("\n".join(["url,name", *rows]))
        keep_fresh(servers, urls)
        run = loader.run(table, *options)
        assert run.status == 0
        assert len(run.files) == 40
    # What exchanges its name with an image of another process may need one more run.
    run = loader.run(table, *options)
    by_origin = {server.origin: server for server in servers}
    for url, name in zip(urls, range(39, -1, -1), strict=True):
        origin = url[: url.index("/", 8)]
        assert (loader.directory / f"{name:02}.png").read_bytes() == by_origin[origin].image(url.removeprefix(origin))
    assert requests(servers) == 40


def test_a_dry_run_takes_one_process(servers: Sequence[Server], loader: Loader) -> None:
    run = loader.run(lists_of(servers, 5), *TWO, "--dry-run")
    assert {row["reason"] for row in run.rows} == {"would-ask"}
    assert requests(servers) == 0
    assert not loader.directory.exists()


def test_the_index_may_stand_elsewhere(servers: Sequence[Server], loader: Loader) -> None:
    urls = lists_of(servers, 5)
    keep_fresh(servers, urls)
    for counts in ((20, 0, 0, 0), (0, 20, 0, 0)):
        assert loader.run(urls, *TWO, "--index", "elsewhere.sqlite3").counts == counts
    assert not (loader.directory / ".image_loader" / "index.sqlite3").exists()


def test_an_exception_of_the_callers_list_comes_after_the_outcomes(servers: Sequence[Server], tmp_path: Path) -> None:
    def urls() -> Iterator[str]:
        yield from lists_of(servers, 5)
        raise RuntimeError("of the caller")

    told: list[Outcome] = []
    with pytest.raises(RuntimeError, match="of the caller"):
        told.extend(load(urls(), tmp_path, processes=2))


# --delete ---------------------------------------------------------------------------------------------------------


def test_what_left_the_list_is_deleted_whichever_process_had_it(servers: Sequence[Server], loader: Loader) -> None:
    urls = lists_of(servers, 10)
    keep_fresh(servers, urls)
    loader.run(urls, *TWO)
    run = loader.run(urls[10:], "--processes", "3", "--delete")
    assert (run.status, run.counts) == (0, (0, 30, 0, 0))
    assert run.files == {url.rpartition("/")[2] for url in urls[10:]}
    assert len([row for row in run.rows if row["status"] == "deleted"]) == 10


def test_where_a_process_has_died_nothing_is_deleted(servers: Sequence[Server], loader: Loader) -> None:
    urls = lists_of(servers, 10)
    keep_fresh(servers, urls)
    loader.run(urls, *TWO)
    held = servers[0].url("/held/a.png")
    running = loader.start([held, *urls[3:]], *TWO, "--delete")
    servers[0].wait_for(lambda: servers[0].at_work == 1)
    os.kill(children(running)[0], signal.SIGKILL)
    run = running.finish()
    assert run.status == 1
    assert {url.rpartition("/")[2] for url in urls} <= run.files
    assert "nothing was deleted" in run.stderr


# What ends a process ----------------------------------------------------------------------------------------------


def test_the_lines_of_a_process_that_is_killed_are_told_and_the_others_go_on(
    servers: Sequence[Server], loader: Loader
) -> None:
    reading, writing = os.pipe()
    running = loader.start(b"", *TWO, stdin=reading)
    os.close(reading)
    first = urls_of(servers[0], 3, "held")
    os.write(writing, "".join(f"{url}\n" for url in first).encode())
    servers[0].wait_for(lambda: servers[0].at_work == 3)
    os.kill(children(running)[0], signal.SIGKILL)
    later = [servers[1].url("/later.png"), *lists_of(servers[2:], 20)]
    os.write(writing, "".join(f"{url}\n" for url in later).encode())
    os.close(writing)
    run = running.finish()
    assert (run.status, run.counts) == (1, (40, 0, 0, 4))
    lost = [row for row in run.rows if row["status"] == "failed"]
    assert {row["url"] for row in lost} == {*first, later[0]}
    assert {(row["reason"], row["detail"]) for row in lost} == {
        ("interrupted", "the process that downloads from this host has died (SIGKILL)")
    }
    assert leftovers(loader.directory) == []
    servers[0].gate.set()
    keep_fresh(servers, later)
    again = loader.run([*first, *later], *TWO)
    assert (again.status, sum(again.counts[:2])) == (0, 44)


def test_nothing_is_left_of_a_run_that_is_killed(servers: Sequence[Server], loader: Loader) -> None:
    urls = [server.url(f"/large/{place}.png") for place, server in enumerate(servers)]
    held = [server.url(f"/held/{place}.png") for place, server in enumerate(servers)]
    running = loader.start([*urls, *held], *TWO, "--verify")
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 4)
    # Those that decode as well.
    servers[0].wait_for(lambda: len(descendants(running.process.pid)) > 2)
    left = descendants(running.process.pid)
    running.end()
    wait_until_gone(left)
    for server in servers:
        server.gate.set()
    assert sum(loader.run([*urls, *held], *TWO).counts[:2]) == 8
    assert leftovers(loader.directory) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
@pytest.mark.parametrize("behaviour", ["held", "gated", "drip-body"])
def test_a_signal_to_all_ends_the_run_and_all_processes(
    servers: Sequence[Server], loader: Loader, number: signal.Signals, status: int, behaviour: str
) -> None:
    urls = [*lists_of(servers, 10), *lists_of(servers, 40, f"{behaviour}/more")]
    running = loader.start(urls, *TWO, start_new_session=True)
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 32)
    left = descendants(running.process.pid)
    os.killpg(running.process.pid, number)
    run = running.finish(PROMPT)
    wait_until_gone(left)
    assert run.status == status
    assert len({row["url"] for row in run.rows}) == len(run.rows)
    assert run.files == {row["file"] for row in run.rows if row["status"] == "saved"}
    assert {(row["reason"], row["detail"]) for row in run.rows} <= {
        (None, None),
        ("interrupted", "the run was ended"),
    }
    assert run.summary == (len(run.rows), *run.counts)
    assert leftovers(loader.directory) == []


def test_a_signal_ends_the_run_while_a_process_is_stopped(servers: Sequence[Server], loader: Loader) -> None:
    # More lines than a pipe holds: some cannot even be sent.
    urls = [url + "?" + 1000 * "x" for url in (*lists_of(servers, 20, "held"), *lists_of(servers, 500))]
    running = loader.start(urls, *TWO, "--threads", "2")
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 2)
    left = descendants(running.process.pid)
    os.kill(children(running)[0], signal.SIGSTOP)
    running.send(signal.SIGINT)
    run = running.finish(PROMPT)
    wait_until_gone(left)
    assert run.status == 130
    assert len({row["url"] for row in run.rows}) == len(run.rows)


def test_an_iterator_that_is_closed_early_ends_the_processes(servers: Sequence[Server], tmp_path: Path) -> None:
    outcomes = load([*lists_of(servers, 5), *lists_of(servers, 5, "held")], tmp_path, processes=2)
    next(outcomes)
    left = descendants(os.getpid())
    assert left
    outcomes.close()
    assert not any(Path(f"/proc/{process}").exists() for process in left)
    assert leftovers(tmp_path) == []


FORKING = """
import os, sys, time
from image_loader import load

def urls():
    yield from sys.argv[2:]
    time.sleep(0.1)  # so that these are taken without the next one
    yield sys.argv[2]
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(60)

list(load(urls(), sys.argv[1], processes=2))
"""


def test_nothing_is_left_of_a_killed_caller_of_which_there_is_a_fork(servers: Sequence[Server], loader: Loader) -> None:
    """It has all the connections of the one that was killed."""
    urls = [server.url("/held/a.png") for server in servers]
    code = [sys.executable, "-c", FORKING, str(loader.directory), *urls]
    with subprocess.Popen(code, env={**os.environ, "PYTHONPATH": str(SOURCES)}) as caller:
        servers[0].wait_for(lambda: len(descendants(caller.pid)) == 3)
        servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 4)
        started = descendants(caller.pid)
        (fork,) = [number for number in started if b"processes.child" not in _command_line(number)]
        caller.kill()
    try:
        wait_until_gone({number: parent for number, parent in started.items() if number != fork})
        assert Path(f"/proc/{fork}").exists()
    finally:
        os.kill(fork, signal.SIGKILL)


def _command_line(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


BROKEN = """
import sys
if "image_loader.processes.child" in sys.orig_argv[-1]:
    import image_loader.batch
    image_loader.batch.opened = None
"""


def test_an_error_in_the_program_is_logged_and_fails_the_lines_of_its_process(
    servers: Sequence[Server], loader: Loader
) -> None:
    (loader.home / "urls.txt").write_text("\n".join(lists_of(servers, 5)))
    (loader.home / "sitecustomize.py").write_text(BROKEN)
    run = subprocess.run(
        [*MODULE, *TWO, "urls.txt", "images"],
        env={**os.environ, "PYTHONPATH": f"{loader.home}:{SOURCES}"},
        cwd=loader.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "TypeError: 'NoneType' object is not callable" in run.stderr
    assert "20 failed" in run.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two processors")
def test_each_process_has_processors_of_its_own(servers: Sequence[Server], loader: Loader) -> None:
    running = loader.start([server.url("/held/a.png") for server in servers], *TWO)
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 4)
    first, second = (os.sched_getaffinity(process) for process in children(running))
    assert len(first) == len(second) == 1
    assert first != second
    for server in servers:
        server.gate.set()
    running.finish()


def test_what_decodes_has_the_processors_of_all(servers: Sequence[Server], loader: Loader) -> None:
    urls = [server.url(path) for server in servers for path in ("/image/a.png", "/held/b.png")]
    running = loader.start(urls, *TWO, "--verify")

    def processors_of_decoders() -> list[set[int]]:
        found = descendants(running.process.pid)
        return [os.sched_getaffinity(process) for process, parent in found.items() if parent in found]

    allowed = os.sched_getaffinity(0)
    servers[0].wait_for(lambda: (found := processors_of_decoders()).count(allowed) == len(found) >= 2)
    for server in servers:
        server.gate.set()
    assert running.finish().counts == (8, 0, 0, 0)


def test_a_directory_that_is_moved_away_ends_the_run(servers: Sequence[Server], loader: Loader) -> None:
    reading, writing = os.pipe()
    running = loader.start(b"", *TWO, stdin=reading)
    os.close(reading)
    held = [server.url("/held/a.png") for server in servers]
    os.write(writing, "".join(f"{url}\n" for url in held).encode())
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 4)
    loader.directory.rename(loader.home / "elsewhere")
    os.write(writing, "".join(f"{url}\n" for url in lists_of(servers, 10)).encode())
    run = running.finish()
    os.close(writing)
    assert run.status == 2
    assert f"{loader.directory}: No such file or directory; put the directory back" in run.stderr
    assert not loader.directory.exists()
    assert {row["reason"] for row in run.rows} == {"interrupted"}
    assert len(run.rows) >= 4


def test_where_no_process_can_be_started_the_run_ends(servers: Sequence[Server], loader: Loader) -> None:
    code = "import sys; from image_loader import loader; sys.executable = '/nowhere'; loader.main()"
    run = loader.run(lists_of(servers, 5), *TWO, command=(sys.executable, "-c", code))
    assert run.status == 2
    assert "no process can be started: No such file or directory; use --processes 1" in run.stderr
    assert run.counts == (0, 0, 0, 20)
    assert {row["reason"] for row in run.rows} == {"interrupted"}


def test_where_no_connection_to_a_process_can_be_made_the_run_ends(servers: Sequence[Server], loader: Loader) -> None:
    code = (
        "from image_loader import loader\nfrom image_loader.processes import process\n"
        "def fail():\n    raise OSError(24, 'Too many open files')\n"
        "process.Pipe = fail\nloader.main()"
    )
    run = loader.run(lists_of(servers, 5), *TWO, command=(sys.executable, "-c", code))
    assert run.status == 2
    assert "no process can be started: Too many open files; use --processes 1" in run.stderr
    assert run.counts == (0, 0, 0, 20)


AT_THE_END = """
import gc, os
def told(status, end=os._exit):
    with open({path!r}, "a") as file:
        file.write(f"{{gc.isenabled()}}\\n")
    end(status)
os._exit = told
"""


def test_each_process_looks_for_garbage(servers: Sequence[Server], loader: Loader) -> None:
    told = loader.home / "told"
    (loader.home / "sitecustomize.py").write_text(AT_THE_END.format(path=str(told)))
    run = loader.run(lists_of(servers, 5), *TWO, environment={"PYTHONPATH": f"{loader.home}:{SOURCES}"})
    assert run.counts == (20, 0, 0, 0)
    assert told.read_text().split() == ["True"] * 3


ERRORS = [
    LoaderError("text"),
    OptionError("fault", "option"),
    MissingPackagesError("verify", "Pillow"),
    OutOfInodesError(Path("images"), 5, 3),
    OutOfThreadsError(),
    TooManyDeletionsError(6, 10, None),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_from_another_process_as_it_was(error: LoaderError) -> None:
    came = pickle.loads(pickle.dumps(error))
    assert (type(came), str(came), vars(came)) == (type(error), str(error), vars(error))


# Who calls --------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from image_loader import load
print("once")
outcomes = list(load(sys.argv[1], sys.argv[2], processes=2))
print(sum(outcome.status == "saved" for outcome in outcomes))
"""


@pytest.mark.parametrize("how", ["file", "code", "standard input"])
def test_a_script_needs_no_guard_and_runs_once(servers: Sequence[Server], loader: Loader, how: str) -> None:
    urls, script = loader.home / "urls.txt", loader.home / "script.py"
    urls.write_text("\n".join(lists_of(servers, 5)))
    script.write_text(SCRIPT)
    arguments = {"file": [str(script)], "code": ["-c", SCRIPT], "standard input": ["-"]}[how]
    ended = subprocess.run(
        [sys.executable, *arguments, str(urls), str(loader.directory)],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        input=SCRIPT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("once\n20\n", "")


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, str(SOURCES / "image_loader" / "loader.py")),
        (sys.executable, "-c", "from image_loader.__main__ import main; main()"),
    ],
    ids=["file", "script"],
)
def test_the_command_may_be_called_in_each_way(
    servers: Sequence[Server], loader: Loader, command: Sequence[str]
) -> None:
    assert loader.run(lists_of(servers, 5), *TWO, command=command).counts == (20, 0, 0, 0)


def test_no_secret_stands_on_a_command_line(servers: Sequence[Server], loader: Loader) -> None:
    urls = [url.replace("://", "://user:hunter2@") + "?hunter2" for url in lists_of(servers, 1, "held")]
    running = loader.start(urls, *TWO, "-H", f"@{_header(loader)}")
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 4)
    lines = [_command_line(process) for process in children(running)]
    assert len(lines) == 2
    assert not any(b"hunter2" in line for line in lines)
    assert all(server.requests[0].headers["x-key"] == "hunter2" for server in servers)
    for server in servers:
        server.gate.set()
    running.finish()


def _header(loader: Loader) -> Path:
    path = loader.home / "headers.txt"
    path.write_text("X-Key: hunter2\n")
    return path


# For a while ------------------------------------------------------------------------------------------------------

SECONDS = 6.0


@pytest.mark.slow
def test_a_run_of_which_processes_are_killed_now_and_then_leaves_every_image_whole(
    servers: Sequence[Server], loader: Loader
) -> None:
    chance = random.Random(1)
    urls = [*lists_of(servers, 100), *lists_of(servers, 20, "slow"), *lists_of(servers, 5, "large", "?size=3000000")]
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        options = ["--force"] if chance.random() < 0.7 else []
        running = loader.start(chance.sample(urls, len(urls)), "--processes", "4", *options)
        _kill_some(running, chance)
        run = running.finish()
        assert run.status in (0, 1)
        assert sorted(row["url"] for row in run.rows) == sorted(urls)
    last = loader.run(urls, "--processes", "4")
    assert last.status == 0
    _assert_whole(last, servers, urls)


def _kill_some(running: Running, chance: random.Random) -> None:
    """Kill a process of a run, at some time."""
    at = time.monotonic() + chance.uniform(0.1, 0.8)
    while time.monotonic() < at:
        time.sleep(0.01)
    for process in children(running)[:1]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _assert_whole(run: Run, servers: Sequence[Server], urls: Sequence[str]) -> None:
    by_origin = {server.origin: server for server in servers}
    for url in urls:
        origin = url[: url.index("/", 8)]
        assert run.content(url) == by_origin[origin].image(url.removeprefix(origin)), url
    assert leftovers(run.directory) == []
    assert len(run.files) == len(urls)


@pytest.mark.slow
def test_runs_give_everything_back(servers: Sequence[Server], tmp_path: Path) -> None:
    import gc
    import threading

    urls = lists_of(servers, 10)

    def held() -> tuple[int, int, dict[int, int]]:
        gc.collect()
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), descendants(os.getpid())

    list(load(urls, tmp_path, processes=2))
    before = held()
    for _ in range(3):
        list(load(urls, tmp_path, processes=4, force=True))
    assert held() == before

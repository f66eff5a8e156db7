"""Many faults at once, for a while: what holds in each single case holds in all of them together."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from behaviours import BEHAVIOURS
from conftest import SOURCES, Loader, Running, impatient, leftovers, urls_of
from image_loader.model import Reason
from server import Server, refusing_port, silent_port

pytestmark = pytest.mark.slow

PROCESSES = 8
SECONDS = 6
LINES = 2000
REASONS = {str(reason) for reason in Reason}


@pytest.fixture
def loaders(tmp_path: Path) -> Iterator[list[Loader]]:
    """Commands with homes of their own, and one directory for all."""
    made = [Loader(tmp_path / str(number)) for number in range(PROCESSES)]
    for each in made:
        each.home.mkdir()
        each.directory = tmp_path / "images"
    yield made
    for each in made:
        each.close()


def test_eight_processes_of_which_some_are_killed_leave_every_image_whole(
    server: Server, loaders: list[Loader]
) -> None:
    chance = random.Random(1)
    urls = [*urls_of(server, 300), *urls_of(server, 50, "slow/more"), *urls_of(server, 20, "large", "?size=3000000")]
    running = [_start(loader, urls, chance) for loader in loaders]
    for turn in _turns():
        if turn % 3 == 0:
            running[turn % PROCESSES].send(signal.SIGKILL)
        _end(running[turn % PROCESSES])
        running[turn % PROCESSES] = _start(loaders[turn % PROCESSES], urls, chance)
    for each in running:
        _end(each)
    last = loaders[0].run(urls)
    assert last.status == 0
    assert all(last.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)
    assert last.files == {row["file"] for row in last.rows}
    assert len(last.files) == len(urls)
    _assert_sound(last.directory, len(urls))


def _start(loader: Loader, urls: list[str], chance: random.Random) -> Running:
    """Start over the list in another order; now and then everything comes anew."""
    return loader.start(chance.sample(urls, len(urls)), *(["--force"] if chance.random() < 0.7 else []))


def _turns() -> Iterator[int]:
    """Count for as long as the test shall last."""
    give_up, turn = time.monotonic() + SECONDS, 0
    while time.monotonic() < give_up:
        yield turn
        turn += 1


def _end(running: Running) -> None:
    assert running.finish().status in (0, -signal.SIGKILL), running.told


def _assert_sound(directory: Path, images: int) -> None:
    assert leftovers(directory) == []
    with closing(sqlite3.connect(directory / ".image_loader" / "index.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert images in [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]


# What a run does not give back is seen when it is over: so the library makes two of them in one process.
TWICE = """
import json, os, sys, threading
from image_loader import load, loader
loader.HOST_FAILURES, loader.HOST_PATIENCE = 2, 2.0
urls, directory, rows = sys.argv[1:]
held = []
for run in range(3):
    if run:
        outcomes = list(load(urls, directory, threads=64, timeout=0.4, max_time=1, retries=1, max_size=1000000))
    for thread in threading.enumerate()[1:]:
        thread.join(5)
    held.append([threading.active_count(), len(os.listdir("/proc/self/fd"))])
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
with open(rows, "w") as file:
    json.dump({"held": held, "peak": peak, "rows": [[o.url, o.status, o.reason, o.file] for o in outcomes]}, file)
"""


def test_a_run_over_everything_that_can_go_wrong_ends_and_tells_every_line(tmp_path: Path) -> None:
    chance = random.Random(2)
    left_out = ("gated", "held", "retry-after-huge", "retry-after-date", "damaged")
    names = sorted(set(BEHAVIOURS) - set(left_out))
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(name=str(number))) for number in range(40)]
        urls = [chance.choice(servers).url(f"/{chance.choice(names)}/{number}.png") for number in range(LINES)]
        told = _run_twice(urls, tmp_path)
        assert Counter(url for url, *_ in told["rows"]) == Counter(urls)
        assert all((reason is None) == (status in ("saved", "fresh")) for _, status, reason, _ in told["rows"])
        assert {reason for _, _, reason, _ in told["rows"]} <= {None, *REASONS}
        _assert_whole(told["rows"], servers, tmp_path / "images")
    before, *after = told["held"]
    assert after == [before, before], "threads and descriptors held"
    assert told["peak"] < 100 * 1024
    assert leftovers(tmp_path / "images") == []


def _run_twice(urls: list[str], home: Path) -> dict[str, Any]:
    (home / "urls.txt").write_text("\n".join(urls))
    arguments = [home / "urls.txt", home / "images", home / "rows.json"]
    ended = subprocess.run(
        [sys.executable, "-c", TWICE, *arguments],
        check=False,
        env={"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    told: dict[str, Any] = json.loads((home / "rows.json").read_text())
    return told


def _assert_whole(rows: list[list[str]], servers: list[Server], directory: Path) -> None:
    by_origin = {server.origin: server for server in servers}
    for url, status, _, file in rows:
        target = url[url.index("/", 8) :]
        if status in ("saved", "fresh") and not target.startswith("/redirect"):
            assert (directory / file).read_bytes() == by_origin[url[: -len(target)]].image(target), url


PATIENCE = 4.0


def test_a_dead_host_in_front_is_given_up_and_hinders_nobody(new_server: Callable[..., Server], loader: Loader) -> None:
    servers = [new_server(name=str(number)) for number in range(20)]
    good = [url for server in servers for url in urls_of(server, 50)]
    with refusing_port() as refusing, silent_port() as silent:
        dead = [f"http://127.0.0.1:{port}/{number}.png" for port in (refusing, silent) for number in range(2000)]
        run = loader.run([*dead, *good], "--timeout", "1", command=impatient(PATIENCE))
    assert run.counts == (1000, 0, 0, 4000)
    assert Counter(row["reason"] for row in run.rows)["host-down"] > 3900

"""``image_loader.load``: the same from Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import ENVIRONMENT, Loader, leftovers, urls_of
from image_loader import errors, load
from server import Server


def test_the_library_yields_outcomes(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = list(load(urls_of(server, 3), tmp_path / "images"))
    assert [(outcome.status, outcome.reason) for outcome in outcomes] == [("saved", None)] * 3
    assert {outcome.file for outcome in outcomes} == {"0000.png", "0001.png", "0002.png"}
    assert [outcome.status for outcome in load(urls_of(server, 3), str(tmp_path / "images"))] == ["fresh"] * 3
    assert capfd.readouterr() == ("", "")


def test_the_library_prints_no_warning_and_its_caller_can_log_it(tmp_path: Path) -> None:
    code = "import logging, sys; from image_loader import load\n"
    code += "if sys.argv[2:]: logging.basicConfig()\n"
    code += "list(load(['nonsense'], sys.argv[1]))"
    index = tmp_path / ".image_loader" / "index.sqlite3"
    index.parent.mkdir()
    printed = []
    for arguments in ([], ["logged"]):
        index.write_bytes(b"damaged" * 1000)
        command = [sys.executable, "-c", code, str(tmp_path), *arguments]
        printed.append(subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT))
    assert (printed[0].stdout, printed[0].stderr) == ("", "")
    assert "the index is damaged; moved aside" in printed[1].stderr


def test_the_library_takes_every_option_of_the_command(server: Server, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "threads": 2,
        "per_host": 2,
        "timeout": 5,
        "max_time": 20,
        "retries": 0,
        "max_size": 10_000,
    }
    options |= {"headers": {"X-Mine": "1"}, "user_agent": "mine", "layout": "host", "force": True, "revalidate": True}
    (outcome,) = load([server.url("/a.png")], tmp_path / "images", index=tmp_path / "index.sqlite3", **options)
    assert outcome.file == f"127.0.0.1_{server.port}/a.png"
    assert (server.requests[0].headers["x-mine"], server.requests[0].headers["user-agent"]) == ("1", "mine")


def test_the_library_cleans_up_when_its_caller_stops_early(server: Server, tmp_path: Path) -> None:
    before = threading.active_count()
    outcomes = load([server.url("/a.png"), *urls_of(server, 20, "gated")], tmp_path / "images")
    assert next(iter(outcomes)).file == "a.png"
    outcomes.close()
    assert leftovers(tmp_path / "images") == []
    # Threads that have nothing left to do end by themselves, some moments later.
    server.wait_for(lambda: threading.active_count() <= before + server.at_work + 1)


def test_the_library_works_twice_at_once(server: Server, tmp_path: Path) -> None:
    first, second = load(urls_of(server, 20), tmp_path / "a"), load(urls_of(server, 20), tmp_path / "b")
    pairs = list(zip(first, second, strict=True))
    assert len(pairs) == 20
    assert all(outcome.status == "saved" for pair in pairs for outcome in pair)


def test_the_library_raises_what_ends_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.DirectoryError):
        list(load(["http://127.0.0.1/a.png"], tmp_path / "file"))
    with pytest.raises(errors.OptionError):
        list(load(["http://127.0.0.1/a.png"], tmp_path / "images", threads=0))
    with pytest.raises(errors.OptionError):
        load(["http://127.0.0.1/a.png"], tmp_path / "images", headers={"X-A": "1", "x-a": "2"})
    with pytest.raises(errors.UrlFileError):
        list(load(tmp_path / "missing.txt", tmp_path / "images"))


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 2.5},
        {"per_host": 2.5},
        {"retries": 2.5},
        {"max_size": 2.5},
        {"headers": {"X": 5}},
        {"headers": {5: "X"}},
        {"user_agent": None},
        {"ca_bundle": "a\0b"},
        {"index": "a\0b"},
        {"index": Path("http://u:secret@h/x")},
        {"directory": "a\0b"},
        {"urls": "a\0b"},
    ],
    ids=repr,
)
def test_the_library_refuses_what_makes_no_sense(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(errors.OptionError) as raised:
        load(**{"urls": [], "directory": tmp_path, **options})
    assert "secret" not in str(raised.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its processors")
def test_the_command_stays_on_one_processor_while_it_downloads(loader: Loader, server: Server) -> None:
    running = loader.start(urls_of(server, 1, "held"))
    server.wait_for(lambda: server.at_work == 1)
    threads = [int(task.name) for task in Path(f"/proc/{running.process.pid}/task").iterdir()]
    bound = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
    server.gate.set()
    assert running.finish().status == 0
    assert [len(processors) for processors in bound] == [1]

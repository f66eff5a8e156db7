"""Signals to the command: the end comes soon, and leaves all in order."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import sys
import termios
import time
from contextlib import closing
from pathlib import Path

import pytest

from asking import BODY
from conftest import MODULE, Loader, leftovers, open_files, sockets_of, urls_of
from exchange import PNG, End, head, length, whole
from server import Scripted, Server, plays, silent_port

BLOCKED = ("--threads", "100", "--per-host", "100")
PROMPT = 3.0
"""Seconds within which a signal has to end the run: two are promised, and the machine may be busy."""


@pytest.mark.parametrize(
    ("number", "status", "behaviour"),
    [
        (signal.SIGINT, 130, "held"),
        (signal.SIGINT, 130, "drip-body"),
        (signal.SIGINT, 130, "drip-headers"),
        (signal.SIGINT, 130, "gated"),
        (signal.SIGTERM, 143, "gated"),
        (signal.SIGHUP, 143, "gated"),
    ],
)
def test_a_signal_ends_the_run_within_two_seconds(
    server: Server, loader: Loader, number: signal.Signals, status: int, behaviour: str
) -> None:
    good = urls_of(server, 100)
    running = loader.start([*good, *urls_of(server, 300, f"{behaviour}/more")], *BLOCKED)
    server.wait_for(lambda: server.at_work == 100 and sum("/more/" in each.target for each in server.requests) == 100)
    running.send(number)
    run = running.finish(PROMPT)
    assert run.status == status
    assert run.files == {row["file"] for row in run.rows if row["status"] == "saved"}
    assert leftovers(loader.directory) == []
    assert {row["reason"] for row in run.rows} <= {None, "interrupted"}
    assert run.summary == (len(run.rows), *run.counts)
    with closing(sqlite3.connect(loader.directory / ".image_loader" / "index.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    server.gate.set()
    assert loader.run(good).counts == (100 - len(run.files), len(run.files), 0, 0)


def test_a_signal_ends_a_run_that_connects(server: Server, loader: Loader) -> None:
    with silent_port() as port:
        running = loader.start([f"https://127.0.0.1:{port}/{number}.png" for number in range(200)], *BLOCKED)
        server.wait_for(lambda: sockets_of(running.process.pid) > 0)
        running.send(signal.SIGTERM)
        assert running.finish(PROMPT).status == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_waits_for_one_that_deletes(
    server: Server, loader: Loader, number: signal.Signals
) -> None:
    loader.run([])
    runs = loader.directory / ".image_loader" / "runs"
    with runs.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        running = loader.start(urls_of(server, 1))
        server.wait_for(lambda: str(runs.resolve()) in open_files(running.process.pid))
        running.send(number)
        run = running.finish(PROMPT)
    assert run.status == 128 + number
    assert "another run deletes images there; wait until it is done, or end it" in run.stderr


def test_a_signal_ends_a_run_that_waits_to_try_again(server: Server, loader: Loader) -> None:
    server.headers.clear()
    running = loader.start(urls_of(server, 20, "status-500"), "--retries", "10")
    server.wait_for(lambda: len(server.requests) >= 20 and not server.at_work)
    running.send(signal.SIGINT)
    assert running.finish(PROMPT).status == 130


def test_a_pipe_that_brings_nothing_does_not_hold_up_an_interrupt(server: Server, loader: Loader) -> None:
    reading, writing = os.pipe()
    running = loader.start(b"", stdin=reading)
    os.close(reading)
    os.write(writing, server.url("/a.png").encode() + b"\n")
    server.wait_for((loader.directory / "a.png").exists)
    running.send(signal.SIGINT)
    run = running.finish(PROMPT)
    os.close(writing)
    assert (run.status, run.counts) == (130, (1, 0, 0, 0))


@pytest.mark.parametrize("option", ["--results", "--failed"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_waits_for_a_reader(
    loader: Loader, option: str, number: signal.Signals, status: int
) -> None:
    fifo = loader.home / "fifo.jsonl"
    os.mkfifo(fifo)
    running = loader.start(["nonsense"], option, str(fifo), results=False)
    _wait_until_asleep(running.process.pid)
    running.send(number)
    assert running.finish(PROMPT).status == status


@pytest.mark.parametrize("option", ["--results", "--failed"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_whose_results_nobody_takes(
    loader: Loader, option: str, number: signal.Signals, status: int
) -> None:
    fifo = loader.home / "fifo.jsonl"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    running = loader.start(["nonsense"] * 20_000, option, str(fifo), results=False)
    while _unread(reading) < 60_000:
        assert running.process.poll() is None
    running.send(number)
    run = running.finish(PROMPT)
    os.close(reading)
    assert run.status == status
    assert run.summary


def _unread(descriptor: int) -> int:
    """Return how many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def _wait_until_asleep(process: int) -> None:
    """Wait until a process has set its handlers and does nothing."""
    status, asleep = Path(f"/proc/{process}/status"), 0
    while asleep < 20:
        told = status.read_text()
        caught = int(told.partition("SigCgt:")[2].split()[0], 16)
        ready = caught >> (signal.SIGTERM - 1) & 1 and "State:\tS" in told
        asleep = asleep + 1 if ready else 0
        time.sleep(0.01)


def test_a_second_signal_ends_at_once(server: Server, loader: Loader) -> None:
    running = loader.start([*urls_of(server, 100), *urls_of(server, 200, "held")], *BLOCKED)
    server.wait_for(lambda: server.at_work == 100)
    running.send(signal.SIGINT)
    running.send(signal.SIGINT)
    assert running.finish(PROMPT).status == 130


def test_an_image_whose_time_ended_while_the_run_was_stopped_is_tried_once_more(loader: Loader) -> None:
    cut = plays(head(PNG, length(BODY)) + BODY[:100], End.STALL)
    with Scripted(cut, plays(whole(BODY))) as server:
        running = loader.start([server.url("/a.png")], "--max-time", "1", "--retries", "0")
        server.wait_for(lambda: server.at_work == 1)
        running.send(signal.SIGSTOP)
        time.sleep(2)
        running.send(signal.SIGCONT)
        run = running.finish()
    assert (run.counts, run.rows[0]["attempts"]) == ((1, 0, 0, 0), 2)
    assert run.content(server.url("/a.png")) == BODY


def test_a_signal_that_is_ignored_stays_ignored(server: Server, loader: Loader) -> None:
    running = loader.start(urls_of(server, 3, "held"), command=("nohup", *MODULE))
    server.wait_for(lambda: server.at_work == 3)
    running.send(signal.SIGHUP)
    server.gate.set()
    run = running.finish()
    assert (run.status, run.counts) == (0, (3, 0, 0, 0))

"""Promises of the console: whole lines, and no harm from a broken standard error."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import time
from pathlib import Path
from typing import TextIO

import pytest

from image_loader.cli.bar import Bar
from image_loader.cli.console import Console, LogHandler
from image_loader.cli.summary import Tally
from terminal import Terminal, in_a_process, written


def test_a_log_record_is_escaped_and_a_traceback_keeps_its_lines(
    logger: logging.Logger, pipe: tuple[int, TextIO]
) -> None:
    read, stream = pipe
    logger.addHandler(LogHandler(Console(stream)))
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception("job \u202efailed")
    lines = written(read).splitlines()
    assert lines[0] == "job \\u202efailed"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: \\x1b[2J"


def test_no_standard_error_at_all_is_survived() -> None:
    console = Console(None)
    console.write("line")
    with Bar(console, Tally(), 1):
        assert not console.is_terminal


def test_a_stream_that_is_no_file_is_written_to() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.write("line")
    assert stream.getvalue() == "line\n"
    assert (console.is_terminal, console.width) == (False, 80)


def test_a_closed_stream_is_survived_and_no_other_file_is_written_to(tmp_path: Path) -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "w", encoding="utf-8")
    console = Console(stream)
    stream.close()
    image = tmp_path / "image"
    descriptor = os.open(image, os.O_WRONLY | os.O_CREAT)  # gets the number of the stream that was closed
    console.write("line")
    os.close(descriptor)
    os.close(read)
    assert descriptor == write
    assert image.read_bytes() == b""


@pytest.mark.parametrize("fault", ["a full disk", "a reader that went away"])
def test_a_standard_error_that_fails_is_survived_and_does_not_change_the_exit_status(fault: str) -> None:
    program = """
import sys
from image_loader.cli.bar import Bar
from image_loader.cli.console import Console
from image_loader.cli.summary import Tally
console = Console(sys.stderr)
with Bar(console, Tally(), 1):
    console.write("line")
sys.exit(3)
"""
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("w") as full, os.fdopen(write, "w") as unread:
        sink = full if fault == "a full disk" else unread
        assert in_a_process(program, stderr=sink).returncode == 3


@pytest.mark.parametrize("stop", ["full pipe", "stopped terminal"])
def test_a_standard_error_that_takes_nothing_holds_up_the_run_once_and_briefly(
    stop: str, pipe: tuple[int, TextIO], terminal: Terminal
) -> None:
    read, stream = pipe
    if stop == "full pipe":
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, 4096)
        os.write(stream.fileno(), b"x" * 4096)
    else:
        stream = terminal.stream
        terminal.stop()
    console = Console(stream)
    start = time.monotonic()
    for _ in range(1000):
        console.write("line")
    assert time.monotonic() - start < 100, "each would take a second of its own"
    if stop == "full pipe":
        os.read(read, 4096)
        console.write("again")
        assert written(read) == "again\n"
    else:
        terminal.go_on()
        console.write("again")
        assert terminal.received().endswith("again\n")


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole(pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    line = "é" * 10_000
    Console(stream).write(line)
    assert written(read) == line + "\n"


def test_a_character_that_the_encoding_lacks_is_escaped(pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    stream.reconfigure(encoding="ascii")  # type: ignore[attr-defined]
    Console(stream).write("http://host/a?…")
    assert written(read) == "http://host/a?\\u2026\n"


def test_a_signal_handler_may_log_in_the_midst_of_a_redraw() -> None:
    program = """
import signal, sys
from image_loader.cli.bar import Bar
from image_loader.cli.console import Console
from image_loader.cli.summary import Tally
console = Console(sys.stderr)
handled = 0
def handle(*_):
    global handled
    handled += 1
    console.write("signal")
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
bar = Bar(console, Tally(), 1)
while handled < 200:
    console.write("line")
    bar._due = 0
    bar.tick()
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    read, write = os.pipe()
    with os.fdopen(write, "w") as sink:
        os.close(read)
        assert in_a_process(program, stderr=sink).returncode == 0

"""Promises of the progress bar: it fits, it tells true times, and it stays whole."""

from __future__ import annotations

import logging
import re
import threading
from typing import TextIO

import pytest

from image_loader.cli.bar import Bar
from image_loader.cli.console import Console, LogHandler
from image_loader.cli.summary import Tally
from terminal import Clock, Terminal, failed, in_a_process, saved, written


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (20, "2250/5000, 12 fai"),
        (40, "2250/5000, 12 failed, 00:02 left"),
        (60, "2250/5000, 1119 images/s, 1.1 MB/s, 12 failed, 00:02 left"),
        (80, " 45%|█████▊       | 2250/5000, 1119 images/s, 1.1 MB/s, 12 failed, 00:02 left"),
    ],
)
def test_the_bar_fits_the_terminal(terminal: Terminal, clock: Clock, columns: int, text: str) -> None:
    terminal.resize(columns)
    tally = Tally()
    bar = Bar(Console(terminal.stream), tally, 5000, clock)
    for number in range(2250):
        tally.add(failed(number) if number < 12 else saved(number))
    clock.now += 2
    bar.tick()
    assert terminal.screen() == [text]
    assert len(text) + len("^C") < columns


def test_the_bar_says_for_how_long_all_that_is_left_has_to_wait(terminal: Terminal, clock: Clock) -> None:
    bar = Bar(Console(terminal.stream), Tally(), 5000, clock)
    clock.now += 2
    bar.tick(25.0)
    assert terminal.screen()[-1].endswith("0 failed, waits 00:25")
    clock.now += 2
    bar.tick()
    assert terminal.screen()[-1].endswith("? left")


def test_the_bar_fits_a_terminal_that_is_resized(terminal: Terminal, clock: Clock) -> None:
    bar = Bar(Console(terminal.stream), Tally(), 5000, clock)
    widths = []
    for columns in (200, 30, 120):
        terminal.resize(columns)
        clock.now += 1
        bar.tick()
        widths.append(len(terminal.screen()[-1]))
    assert widths == [197, 24, 117]


def test_log_lines_stand_whole_above_the_bar(terminal: Terminal, logger: logging.Logger, clock: Clock) -> None:
    console = Console(terminal.stream)
    logger.addHandler(LogHandler(console))
    tally = Tally()
    lines = []
    with Bar(console, tally, 100, clock) as bar:
        for number in range(100):
            clock.now += 0.05
            tally.add(saved(number))
            bar.tick()
            lines.append("line " * (number % 30))
            logger.warning("%s", lines[-1])
            terminal.received()
    *above, last, end = terminal.screen()
    assert above == lines
    assert re.fullmatch(r"100%\|█+\| 100/100, 20 images/s, 20.0 kB/s, 0 failed, in 00:04", last)
    assert end == ""


def test_log_lines_from_many_threads_stand_whole_above_the_bar(terminal: Terminal, logger: logging.Logger) -> None:
    console = Console(terminal.stream)
    logger.addHandler(LogHandler(console))

    def log() -> None:
        for _ in range(50):
            logger.warning("x" * 20)
            terminal.received()

    with Bar(console, Tally(), 100) as bar:
        threads = [threading.Thread(target=log) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            bar.tick()
        for thread in threads:
            thread.join()
    assert terminal.screen()[:-2] == ["x" * 20] * 200


def test_the_bar_is_drawn_ten_times_a_second_at_most(terminal: Terminal, clock: Clock) -> None:
    tally = Tally()
    bar = Bar(Console(terminal.stream), tally, 10_000, clock)
    for number in range(10_000):
        clock.now += 0.0001
        tally.add(saved(number))
        bar.tick()
    assert 9 <= terminal.received().count("\r") <= 10


def test_time_left_is_not_told_while_nothing_comes(terminal: Terminal, clock: Clock) -> None:
    tally = Tally()
    bar = Bar(Console(terminal.stream), tally, 100, clock)
    tally.add(saved())
    clock.now += 1
    bar.tick()
    assert terminal.screen()[-1].endswith("1.0 images/s, 1.0 kB/s, 0 failed, 01:39 left")
    for _ in range(200):
        clock.now += 0.11
        bar.tick()
    assert terminal.screen()[-1].endswith("0.0 images/s, 0 B/s, 0 failed, ? left")


def test_a_dead_hosts_lines_are_no_images_per_second(terminal: Terminal, clock: Clock) -> None:
    tally = Tally()
    bar = Bar(Console(terminal.stream), tally, 2000, clock)
    for number in range(1000):
        tally.add(failed(number))
    clock.now += 1
    bar.tick()
    assert "| 1000/2000, 0.0 images/s, 0 B/s, 1000 failed, 00:01 left" in terminal.screen()[-1]


def test_the_total_may_be_unknown_come_later_and_prove_too_small(terminal: Terminal, clock: Clock) -> None:
    tally = Tally()
    bar = Bar(Console(terminal.stream), tally, None, clock)
    shown = []
    for total in (None, 4, 1):
        tally.add(saved())
        bar.total = total
        clock.now += 1
        bar.tick()
        shown.append(terminal.screen()[-1])
    assert shown[0] == "1 URL, 1.0 images/s, 1.0 kB/s, 0 failed, in 00:01"
    assert shown[1].endswith("2/4, 1.0 images/s, 1.0 kB/s, 0 failed, 00:02 left")
    assert shown[2] == "3 URLs, 1.0 images/s, 1.0 kB/s, 0 failed, in 00:03"


def test_an_empty_list_has_a_bar_too(terminal: Terminal, clock: Clock) -> None:
    Bar(Console(terminal.stream), Tally(), 0, clock).close()
    assert terminal.screen()[0].endswith("0/0, 0.0 images/s, 0 B/s, 0 failed, in 00:00")


@pytest.mark.parametrize("name", ["dumb", None])
def test_a_dumb_terminal_gets_no_control_sequences(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.delenv("TERM") if name is None else monkeypatch.setenv("TERM", name)
    console = Console(terminal.stream)
    with Bar(console, Tally(), 10, clock) as bar:
        console.write("line")
        clock.now += 10
        bar.tick()
    assert terminal.received() == (
        "line\n"
        "0/10, 0.0 images/s, 0 B/s, 0 failed, ? left\n"
        "0/10, 0.0 images/s, 0 B/s, 0 failed, in 00:10\n"
    )  # fmt: skip


def test_no_colour_is_ever_used(terminal: Terminal, clock: Clock) -> None:
    console = Console(terminal.stream)
    with Bar(console, Tally(), 10, clock) as bar:
        console.write("line")
        clock.now += 1
        bar.tick()
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.received())


def test_a_bar_in_a_file_is_a_plain_line_each_ten_seconds(clock: Clock, pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    tally = Tally()
    with Bar(Console(stream), tally, 30, clock) as bar:
        for number in range(30):
            clock.now += 1
            tally.add(saved(number))
            bar.tick()
    lines = written(read).split("\n")
    assert [line.partition(",")[0] for line in lines] == ["10/30", "20/30", "30/30", "30/30", ""]


def test_the_bar_is_ascii_where_the_encoding_has_no_blocks(terminal: Terminal, clock: Clock) -> None:
    terminal.stream.reconfigure(encoding="ascii")  # type: ignore[attr-defined]
    bar = Bar(Console(terminal.stream), Tally(), 10, clock)
    bar.close()
    assert terminal.received().isascii()
    assert "\\u" not in terminal.received()


def test_tqdm_is_imported_only_for_a_bar_and_starts_no_thread() -> None:
    program = """
import sys, threading
from image_loader.cli.bar import Bar
from image_loader.cli.console import Console
from image_loader.cli.summary import Tally
assert "tqdm" not in sys.modules
Bar(Console(sys.stderr), Tally(), 1).close()
assert "tqdm" in sys.modules
assert threading.active_count() == 1
"""
    assert in_a_process(program).returncode == 0

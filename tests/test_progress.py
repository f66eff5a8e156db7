"""Promises of what people see: true counts, short logs, a bar that stays whole, and no harm from a broken terminal."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from image_loader.cli.bar import Bar
from image_loader.cli.console import Console, LogHandler
from image_loader.cli.summary import OutcomeLog, Tally, describe, size_text
from image_loader.model import Outcome, Reason, Status
from image_loader.url import LONGEST_SHOWN

ROWS = 24


def saved(number: int = 1, size: int = 1000) -> Outcome:
    return Outcome(number, f"http://host/{number}.jpg", f"{number}.jpg", Status.SAVED, bytes=size, attempts=1)


def failed(number: int = 1, reason: Reason = Reason.TIMEOUT, host: str = "host") -> Outcome:
    return Outcome(number, f"http://{host}/{number}.jpg?key=1", None, Status.FAILED, reason, "no answer", attempts=4)


def tallied(outcomes: list[Outcome]) -> Tally:
    tally = Tally()
    for outcome in outcomes:
        tally.add(outcome)
    return tally


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(line: str) -> str:
    """Return what stands in a line of a terminal after its carriage returns and erasures."""
    standing = ""
    for part in line.split("\r"):
        text = part.removeprefix("\x1b[K")
        standing = text if text != part else text + standing[len(text) :]
    return standing


class Terminal:
    """A real pseudo-terminal, and what it was sent."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST  # bytes arrive as they were written
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        os.set_blocking(self._master, False)
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.resize(columns)
        self._received = b""
        self._lock = threading.Lock()

    def resize(self, columns: int) -> None:
        termios.tcsetwinsize(self._master, (ROWS, columns))

    def received(self) -> str:
        with self._lock, suppress(BlockingIOError):
            while chunk := os.read(self._master, 65536):
                self._received += chunk
        return self._received.decode()

    def screen(self) -> list[str]:
        """Return the lines as a person sees them."""
        return [shown(line) for line in self.received().split("\n")]

    def stop(self) -> None:
        """Do as Ctrl-S does."""
        termios.tcflow(self.stream.fileno(), termios.TCOOFF)

    def go_on(self) -> None:
        termios.tcflow(self.stream.fileno(), termios.TCOON)

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal(80)
    yield terminal
    terminal.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def in_a_process(program: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", program], env=environment, text=True, check=False, timeout=60, **options
    )


# Sizes, log lines


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999.4, "999 B"), (999.6, "1.0 kB"), (999_949, "999.9 kB"), (10**15, "1000.0 TB"), (10**9, "1.0 GB")],
)
def test_sizes_are_decimal_and_never_a_thousand_of_a_unit_that_has_a_larger_one(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (
            Outcome(1, "http://host/a.jpg", "a.jpg", Status.FRESH, bytes=512),
            "fresh    a.jpg                        512 B  http://host/a.jpg",
        ),
        (
            Outcome(1, "http://host/a.jpg", None, Status.SKIPPED, Reason.DUPLICATE),
            "skipped  line 1                    duplicate  http://host/a.jpg",
        ),
        (
            Outcome(1, "http://h/a", "a.jpg", Status.FAILED, Reason.HTTP_STATUS, "404 Not Found", 404, attempts=4),
            "failed   a.jpg                       0.00 s  4 attempts  http-status: 404 Not Found  http://h/a",
        ),
        (
            Outcome(1, "http://h/a", "a.jpg", Status.SAVED, None, "sent as image/jpeg, but is image/png", bytes=1),
            "saved    a.jpg                          1 B  sent as image/jpeg, but is image/png  http://h/a",
        ),
    ],
)
def test_a_log_line_tells_file_size_time_and_reason(outcome: Outcome, line: str) -> None:
    assert describe(outcome) == line


def test_a_bad_line_is_told_by_its_number() -> None:
    assert "line 17 " in describe(Outcome(17, "a b", None, Status.FAILED, Reason.BAD_URL, "no scheme"))


def test_secrets_stay_out_of_a_log_line() -> None:
    line = describe(Outcome(1, "http://user:pw@host/a.jpg?key=1", "a.jpg", Status.SAVED))
    assert line.endswith("http://host/a.jpg?…")
    assert "pw" not in line


def test_hostile_text_is_escaped_and_short_in_a_log_line() -> None:
    hostile = "\x1b[2J\u202e\n\x00" * 1000
    line = describe(Outcome(1, "http://h/" + hostile, "a\x1b.jpg", Status.FAILED, Reason.PROTOCOL, hostile))
    assert not re.search("[\x00-\x1f\u202e]", line)
    assert len(line) < 2 * LONGEST_SHOWN + 100


# The summary


def test_the_summary_has_the_form_that_scripts_read() -> None:
    outcomes = [saved(n, 20_084) for n in range(4790)] + [failed(n) for n in range(50)]
    outcomes += [Outcome(1, "http://h/a", "a", Status.FRESH, bytes=10**9)] * 150
    outcomes += [Outcome(1, "http://h/a", None, Status.SKIPPED, Reason.DUPLICATE)] * 10
    tally = tallied(outcomes)
    assert tally.summary(12.345)[0] == "5000 URLs: 4790 saved (96.2 MB), 150 fresh, 10 skipped, 50 failed in 12.3 s"
    assert (tally.done, tally.failed) == (5000, 50)


def test_the_summary_of_one_url_and_of_none_is_one_line() -> None:
    assert tallied([saved(1, 999)]).summary(0.04) == ["1 URL: 1 saved (999 B), 0 fresh, 0 skipped, 0 failed in 0.0 s"]
    assert Tally().summary(0) == ["0 URLs: 0 saved (0 B), 0 fresh, 0 skipped, 0 failed in 0.0 s"]


def test_the_summary_groups_failures_by_reason_and_a_few_hosts() -> None:
    hosts = ["a"] * 30 + ["B"] * 20 + ["c:8080"] * 10 + ["d", "user:pw@e", "f"]
    outcomes = [failed(number, host=host) for number, host in enumerate(hosts)]
    outcomes += [Outcome(9, "http://h:pw", None, Status.FAILED, Reason.BAD_URL, "bad port")]
    assert tallied(outcomes).summary(1)[1:] == [
        "      63 timeout",
        "          30 a",
        "          20 b",
        "          10 c:8080",
        "           3 on other hosts",
        "       1 bad-url",
    ]


def test_hosts_without_number_cost_no_memory_and_lose_no_count() -> None:
    outcomes = [failed(number, host=f"host{number}") for number in range(30_000)]
    tally = tallied(outcomes)
    assert sum(map(len, tally._hosts.values())) == 10_000
    lines = tally.summary(1)
    assert lines[1].strip() == "30000 timeout"
    assert lines[-1].strip() == "29997 on other hosts"


def test_a_hostile_host_name_is_escaped_in_the_summary() -> None:
    assert "\x1b" not in "".join(tallied([failed(host="a\x1b[2J")]).summary(1))


# The log


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("test_progress")
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def written(read: int) -> str:
    """Return what stands in a pipe."""
    os.set_blocking(read, False)
    return os.read(read, 1 << 20).decode()


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="utf-8") as stream:
        yield read, stream
    os.close(read)


def log_failures(logger: logging.Logger, stream: TextIO, level: int, *reasons: Reason) -> OutcomeLog:
    """Log 500 outcomes, half of them failures of each reason in turn."""
    logger.setLevel(level)
    logger.addHandler(LogHandler(Console(stream)))
    log = OutcomeLog(logger)
    for number in range(500):
        log.write(saved(number) if number % 2 else failed(number, reasons[number // 2 % len(reasons)]))
    return log


def test_a_cron_mail_holds_the_first_failures_of_each_kind(logger: logging.Logger, pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    log = log_failures(logger, stream, logging.WARNING, Reason.TIMEOUT, Reason.DNS)
    lines = written(read).splitlines()
    assert all(line.startswith("failed ") for line in lines)
    assert [sum(reason in line for line in lines) for reason in ("timeout", "dns")] == [3, 3]
    assert log.left_out == 250 - 6


def test_a_cron_mail_holds_ten_failures_at_most(logger: logging.Logger, pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    log = log_failures(logger, stream, logging.WARNING, *(reason for reason in Reason if reason != "interrupted"))
    assert len(written(read).splitlines()) == 10
    assert log.left_out == 240


def test_a_verbose_log_holds_each_outcome(logger: logging.Logger, pipe: tuple[int, TextIO]) -> None:
    read, stream = pipe
    log = log_failures(logger, stream, logging.INFO, Reason.TIMEOUT)
    assert len(written(read).splitlines()) == 500
    assert log.left_out == 0


def test_an_interrupted_run_does_not_warn_of_what_it_left_undone(
    logger: logging.Logger, pipe: tuple[int, TextIO]
) -> None:
    read, stream = pipe
    log_failures(logger, stream, logging.WARNING, Reason.INTERRUPTED)
    stream.write("end")
    stream.flush()
    assert written(read) == "end"


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


# A standard error that is broken


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


def test_a_reader_that_went_away_is_survived() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as stream, Bar(Console(stream), Tally(), 1):
        Console(stream).write("line")


def test_a_full_disk_is_survived_and_does_not_change_the_exit_status() -> None:
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
    with Path("/dev/full").open("w") as full:
        assert in_a_process(program, stderr=full).returncode == 3


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
    assert time.monotonic() - start < 5
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


# The bar


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

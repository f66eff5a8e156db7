"""Promises of the command: exit status, silence, rows, streams, and no secret."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import ssl
import stat
import subprocess
import sys
import termios
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import ENVIRONMENT, MODULE, SUMMARY, Loader, leftovers, urls_of
from exchange import etag
from server import Server, refusing_port

BIDI = "\u202e"

# Exit status and silence ------------------------------------------------------------------------------------------


def test_nothing_is_printed_when_all_is_well(server: Server, loader: Loader) -> None:
    first, second = (loader.run(urls_of(server, 5)) for _ in range(2))
    assert [first.status, first.stderr, second.status, second.stderr] == [0, "", 0, ""]


def test_a_failure_ends_with_status_1_and_a_summary_by_reasons(server: Server, loader: Loader) -> None:
    run = loader.run([*urls_of(server, 3), server.url("/status-404/a.png"), "nonsense"])
    assert (run.status, run.summary) == (1, (5, 3, 0, 0, 2))
    assert "http-status" in run.stderr
    assert "bad-url" in run.stderr


def test_quiet_tells_of_no_failure(server: Server, loader: Loader) -> None:
    run = loader.run([server.url("/status-404/a.png")], "-q")
    assert (run.status, run.stderr) == (1, "")


def test_quiet_tells_what_ends_the_run(loader: Loader) -> None:
    run = loader.run(loader.home / "missing.txt", "-q")
    assert run.status == 2
    assert "missing.txt" in run.stderr


def test_many_failures_are_told_in_few_lines(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 1000, "status-404"))
    assert run.summary == (1000, 0, 0, 0, 1000)
    assert len(run.stderr.splitlines()) < 40


def test_verbose_tells_of_each_image_and_ends_with_the_summary(server: Server, loader: Loader) -> None:
    run = loader.run([*urls_of(server, 3), server.url("/status-404/a.png")], "-v")
    lines = run.stderr.splitlines()
    assert sum("saved" in line and ".png" in line for line in lines) == 3
    assert any("failed" in line and "a.png" in line and "http-status" in line for line in lines)
    assert run.summary == (4, 3, 0, 0, 1)
    again = loader.run(urls_of(server, 3), "-v")
    assert sum("fresh" in line and ".png" in line for line in again.stderr.splitlines()) == 3
    assert SUMMARY.search(again.stderr.splitlines()[-1])


def test_more_verbose_tells_what_was_decided_and_why(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 1)
    assert "since it is not there" in loader.run(urls, "-vv").stderr
    assert etag(server.image("/image/0000.png")) in loader.run(urls, "-vv").stderr
    assert "by force" in loader.run(urls, "-vv", "--force").stderr
    (loader.directory / "0000.png").write_bytes(b"edited")
    assert "not as it was saved" in loader.run(urls, "-vv").stderr
    server.headers["/image/0000.png"] = {"Cache-Control": "max-age=3600"}
    loader.run(urls, "--revalidate")
    assert re.search("fresh for another 3[0-9]{3} s", loader.run(urls, "-vv").stderr)


def test_failures_that_are_not_shown_are_counted(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 8, "status-404"))
    assert sum(line.startswith("failed ") for line in run.stderr.splitlines()) == 3
    assert "not shown: 5 more that failed; -v shows them, --failed FILE keeps them\n" in run.stderr
    assert "not shown" not in loader.run(urls_of(server, 8, "status-404"), "-v").stderr


def test_a_directory_that_is_a_file_ends_the_run(server: Server, loader: Loader) -> None:
    loader.directory.write_text("a file")
    run = loader.run(urls_of(server, 1))
    assert run.status == 2
    assert str(loader.directory) in run.stderr


# Results ----------------------------------------------------------------------------------------------------------

KEYS = [
    "url",
    "file",
    "status",
    "reason",
    "detail",
    "http_status",
    "media_type",
    "bytes",
    "sha256",
    "attempts",
    "seconds",
    "final_url",
    "change",
    "width",
    "height",
]


def test_a_row_tells_everything_of_its_url(server: Server, loader: Loader) -> None:
    good, bad = server.url("/a.png?sig=1"), server.url("/status-404/b.png")
    run = loader.run([good, bad])
    assert all(list(row) == KEYS for row in run.rows)
    saved, failed = run.row(good), run.row(bad)
    assert (saved["file"], saved["status"], saved["reason"], saved["http_status"]) == ("a.png", "saved", None, 200)
    assert (saved["media_type"], saved["bytes"], saved["attempts"]) == ("image/png", 4000, 1)
    assert saved["sha256"] == hashlib.sha256(server.image("/a.png?sig=1")).hexdigest()
    assert (failed["status"], failed["reason"], failed["http_status"]) == ("failed", "http-status", 404)
    assert stat.S_IMODE(loader.results.stat().st_mode) == 0o600


def test_rows_can_be_a_table_in_which_no_cell_is_a_formula(server: Server, loader: Loader) -> None:
    path = loader.home / "rows.csv"
    loader.run(
        [server.url("/a.png"), "=cmd|'/c calc'!A1", "+1", "-1", "@SUM(A1)"], "--results", str(path), results=False
    )
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0]) == KEYS
    assert len(rows) == 5
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t"))]


def test_what_failed_is_a_list_to_go_on_with(server: Server, loader: Loader) -> None:
    path = loader.home / "failed.txt"
    urls = urls_of(server, 3, "closing-at-once", "?sig=secret")
    run = loader.run([*urls, *urls_of(server, 3)], "--failed", str(path), "--retries", "0")
    assert sorted(path.read_text().splitlines()) == urls
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.healthy = True
    assert (run.status, loader.run(path).counts) == (1, (3, 0, 0, 0))


# Secrets and hostile text -----------------------------------------------------------------------------------------


def _with_secrets(url: str) -> str:
    return url.replace("://", "://user:hush@") + "?signature=hush"


def test_no_secret_is_told_whatever_happens(server: Server, loader: Loader) -> None:
    behaviours = [
        "image",
        "status-404",
        "closing-at-once",
        "stalling-at-once",
        "wrong-type-html",
        "redirect-loop",
        "garbage",
    ]
    urls = [_with_secrets(server.url(f"/{name}/{name}.png")) for name in behaviours]
    location = _with_secrets(server.url("/status-404/c.png"))
    urls.append(_with_secrets(server.url("/redirect/c.png")) + f"&to={location.replace('?', '%3f')}")
    urls += [
        _with_secrets("ftp://images.test/a.png"),
        _with_secrets("http://images.test:99999/a.png"),
        "user:hush@x?hush",
    ]
    with refusing_port() as port:
        urls.append(_with_secrets(f"http://127.0.0.1:{port}/a.png"))
        run = loader.run(urls, "-vv", "--timeout", "0.5", "--retries", "1", "--progress")
    assert "hush" not in run.stderr
    assert {row["url"] for row in run.rows} == set(urls)
    assert all("hush" not in str(row["detail"]) for row in run.rows)
    hidden = (loader.directory / ".image_loader").rglob("*")
    assert all(b"hush" not in path.read_bytes() for path in hidden if path.is_file())


@pytest.mark.parametrize("proxy", ["http_proxy", "all_proxy"])
def test_the_password_of_a_proxy_is_not_told(loader: Loader, proxy: str) -> None:
    with refusing_port() as port:
        environment = {proxy: f"http://user:hush@127.0.0.1:{port}"}
        run = loader.run(["http://images.test/a.png"], "-vv", "--retries", "0", environment=environment)
    assert run.status == 1
    assert "hush" not in run.stderr


def test_no_hostile_text_reaches_the_terminal(server: Server, loader: Loader) -> None:
    hostile = f"\x1b]0;owned\x07{BIDI}".encode().decode("latin-1")
    server.headers["/a.png"] = {"Content-Type": f"text/{hostile}", "ETag": f'"{hostile}"'}
    server.headers["/b.png"] = {"Transfer-Encoding": hostile}
    urls = [server.url(target) for target in ("/a.png", "/b.png", "/hostile-reason/c.png", "/hostile-redirect/d.png")]
    run = loader.run([*urls, f"nonsense{BIDI}"], "-vv", "--retries", "0")
    assert run.counts[3] == 5
    assert run.stderr.replace("\n", "").isprintable()


# Streams ----------------------------------------------------------------------------------------------------------


def _shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script, "sh", *MODULE)


@pytest.mark.parametrize(
    "script",
    ['exec "$@" 2>/dev/full', 'exec "$@" 2>&-', 'exec "$@" >&-', 'exec "$@" <&- >&- 2>&-', 'exec "$@" >/dev/full 2>&1'],
)
@pytest.mark.parametrize("options", [(), ("-vv", "--progress")], ids=["silent", "loud"])
def test_closed_or_full_streams_stop_no_download(
    server: Server, loader: Loader, script: str, options: tuple[str, ...]
) -> None:
    urls = [*urls_of(server, 20), server.url("/status-404/a.png")]
    run = loader.run(urls, *options, command=_shell(script))
    assert (run.status, run.counts) == (1, (20, 0, 0, 1))
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls[:20])


def test_a_reader_of_the_log_that_goes_away_stops_no_download(server: Server, loader: Loader) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = loader.run(urls_of(server, 20), "-vv", stderr=writing)
    os.close(writing)
    assert (run.status, run.counts) == (0, (20, 0, 0, 0))


def test_a_reader_of_the_log_that_sleeps_stops_no_download(server: Server, loader: Loader) -> None:
    reading, writing = os.pipe()
    run = loader.run(urls_of(server, 2000), "-vv", stderr=writing)
    os.close(reading)
    os.close(writing)
    assert (run.status, run.counts) == (0, (2000, 0, 0, 0))


def _at_a_terminal(loader: Loader, urls: list[str], *options: str, **settings: Any) -> str:
    """Run with standard error at a terminal, and return what it showed."""
    master, slave = pty.openpty()
    loader.run(urls, *options, stderr=slave, **settings)
    return _shown(master, slave)


def _shown(master: int, slave: int) -> str:
    os.close(slave)
    shown = b""
    with suppress(OSError):
        while read := os.read(master, 65536):
            shown += read
    os.close(master)
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_shows_progress_unless_told_not_to(server: Server, loader: Loader) -> None:
    assert "/20" in _at_a_terminal(loader, urls_of(server, 20, "slow"))
    assert "/20" not in _at_a_terminal(loader, urls_of(server, 20, "slow"), "--no-progress")
    assert _at_a_terminal(loader, urls_of(server, 20, "slow"), "-q") == ""


@pytest.mark.parametrize("options", [(), ("--no-progress",), ("-v",), ("-vv",)], ids=repr)
def test_at_a_terminal_the_summary_ends_every_run(server: Server, loader: Loader, options: tuple[str, ...]) -> None:
    for summary in ("3 URLs: 3 saved (12.0 kB), 0 fresh", "3 URLs: 0 saved (0 B), 3 fresh"):
        last = _at_a_terminal(loader, urls_of(server, 3), *options).splitlines()[-1]
        assert re.fullmatch(rf"(INFO: )?{re.escape(summary)}, 0 skipped, 0 failed in [0-9.]+ s", last)
    assert "0 URLs: " in _at_a_terminal(loader, [], *options)


def test_a_run_that_cannot_start_has_no_summary(loader: Loader) -> None:
    master, slave = pty.openpty()
    assert loader.bare("missing", "images", stderr=slave).status == 2
    assert not SUMMARY.search(_shown(master, slave))


TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[+-][0-9]{2}:[0-9]{2} "


@pytest.mark.parametrize("options", [("-v",), ("-vv",)], ids=repr)
def test_verbose_lines_that_go_to_a_file_carry_the_time(
    server: Server, loader: Loader, options: tuple[str, ...]
) -> None:
    urls = [*urls_of(server, 3), server.url("/status-404/a.png")]
    before = datetime.now().astimezone().replace(microsecond=0)
    lines = loader.run(urls, *options, environment={"TZ": "NPT-05:45"}).stderr.splitlines()
    assert len(lines) >= 5
    assert all(re.match(TIME, line) for line in lines)
    told = datetime.fromisoformat(lines[-1].partition(" ")[0])
    assert before <= told <= datetime.now().astimezone()
    assert told.utcoffset() == timedelta(hours=5, minutes=45)


def test_no_other_line_carries_the_time(server: Server, loader: Loader) -> None:
    urls = [*urls_of(server, 3), server.url("/status-404/a.png")]
    assert not re.search(TIME, loader.run(urls).stderr)
    assert not re.search(TIME, _at_a_terminal(loader, urls, "-vv"))


def test_a_file_shows_progress_only_when_told_to(server: Server, loader: Loader) -> None:
    assert loader.run(urls_of(server, 5)).stderr == ""
    # The settings of another program, one of them no number.
    for environment in ({}, {"TQDM_MININTERVAL": "often", "TQDM_DISABLE": "1"}):
        assert "5/5" in loader.run(urls_of(server, 5), "--progress", environment=environment).stderr


# Rows on standard output -----------------------------------------------------------------------------------------


def test_rows_on_standard_output_are_alone_there(server: Server, loader: Loader) -> None:
    urls = [*urls_of(server, 3), server.url("/status-404/a.png?secret"), "nonsense"]
    with (loader.home / "rows").open("wb") as output:
        run = loader.run(urls, "-vv", "--progress", "--results", "-", results=False, stdout=output)
    rows = [json.loads(line) for line in (loader.home / "rows").read_text().splitlines()]
    assert run.summary == (5, 3, 0, 0, 2)
    assert sorted(row["url"] for row in rows) == sorted(urls)
    assert all(list(row) == KEYS for row in rows)


@pytest.mark.parametrize("command", ["| head -n 1", "| true", ">&-", ">/dev/full"])
def test_a_standard_output_that_takes_no_rows_ends_the_run_in_plain_words(
    server: Server, loader: Loader, command: str
) -> None:
    urls = urls_of(server, 300)
    script = f'{{ "$@"; echo "$?" >status; }} {command} >/dev/null' if "|" in command else f'exec "$@" {command}'
    run = loader.run(urls, "--results", "-", results=False, command=_shell(script))
    assert int((loader.home / "status").read_text()) == 2 if "|" in command else run.status == 2
    assert re.search("^loader: standard output: cannot be written: [A-Z]", run.stderr, re.MULTILINE)
    assert leftovers(loader.directory) == []


def test_a_reader_of_rows_that_sleeps_holds_up_no_signal(server: Server, loader: Loader) -> None:
    reading, writing = os.pipe()
    running = loader.start(["nonsense"] * 20_000, "--results", "-", results=False, stdout=writing)
    os.close(writing)
    while len(os.read(reading, 1)) and _unread(reading) < 40_000:
        assert running.process.poll() is None
    running.send(signal.SIGINT)
    assert running.finish().status == 130
    os.close(reading)


def _unread(descriptor: int) -> int:
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_rows_at_a_terminal_have_no_bar_between_them(server: Server, loader: Loader) -> None:
    master, slave = pty.openpty()
    loader.run(urls_of(server, 5), "--results", "-", results=False, stdout=slave, stderr=slave)
    *rows, summary = _shown(master, slave).splitlines()
    assert [json.loads(row)["status"] for row in rows] == ["saved"] * 5
    assert SUMMARY.match(summary)


def test_a_list_is_not_written_over_by_rows_on_standard_output(loader: Loader) -> None:
    (loader.home / "list").write_text("http://127.0.0.1:1/a.jpg\n")
    with (loader.home / "list").open("a") as output:
        run = loader.bare("list", "images", "--results", "-", stdout=output)
    assert run.status == 2
    assert "--results: /dev/stdout would be overwritten while it is in use" in run.stderr
    assert (loader.home / "list").read_text() == "http://127.0.0.1:1/a.jpg\n"


# Descriptors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2), (1, 2)], ids=repr)
def test_no_file_gets_the_number_of_a_standard_stream_that_is_closed(
    server: Server, loader: Loader, closed: tuple[int, ...]
) -> None:
    script = 'exec "$@" ' + " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    running = loader.start(urls_of(server, 1, "held"), command=_shell(script))
    server.wait_for(lambda: server.at_work == 1)
    opened = {number: str(Path(f"/proc/{running.process.pid}/fd/{number}").readlink()) for number in closed}
    server.gate.set()
    assert running.finish().status == 0
    assert set(opened.values()) == {"/dev/null"}


def test_a_list_on_a_standard_input_that_is_closed_is_an_error(loader: Loader) -> None:
    script = (*_shell('exec "$@" <&-'), "-", "images")
    run = subprocess.run(script, capture_output=True, text=True, check=False, cwd=loader.home, env=ENVIRONMENT)
    assert (run.returncode, run.stderr) == (2, "loader: standard input: cannot be read: Bad file descriptor\n")
    assert not loader.directory.exists()


@pytest.mark.parametrize(
    ("closed", "arguments", "told"),
    [
        ("<&-", ["/dev/stdin", "images"], "URLFILE: /dev/stdin: it is closed"),
        ("<&-", ["/dev/fd/0", "images"], "URLFILE: /dev/fd/0: it is closed"),
        (">&-", ["list", "images", "--failed", "/dev/stdout"], "--failed: /dev/stdout: it is closed"),
        (">&-", ["list", "images", "--results", "-"], "standard output: cannot be written: Bad file descriptor"),
    ],
    ids=repr,
)
def test_a_standard_stream_that_is_closed_is_not_taken_for_an_empty_file(
    loader: Loader, closed: str, arguments: list[str], told: str
) -> None:
    (loader.home / "list").touch()
    script = (*_shell(f'exec "$@" {closed}'), *arguments)
    run = subprocess.run(
        script,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=loader.home,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 2
    assert told in run.stderr


def test_the_library_leaves_its_callers_streams_closed(server: Server, tmp_path: Path) -> None:
    program = f"""
import os
from image_loader import load
outcomes = load([{server.url("/a.png")!r}], {str(tmp_path / "images")!r})
taken = os.dup(1) # No number of a standard stream is left for a file.
assert [outcome.status for outcome in outcomes] == ["saved"]
os.close(taken)
try:
    os.fstat(2)
except OSError:
    print("closed")
"""
    command = ("sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program)
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert run.stdout == "closed\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its processors")
@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="without a lock, there is no reason to")
def test_the_command_stays_on_one_processor_while_it_downloads(loader: Loader, server: Server) -> None:
    running = loader.start(urls_of(server, 1, "held"))
    server.wait_for(lambda: server.at_work == 1)
    threads = [int(task.name) for task in Path(f"/proc/{running.process.pid}/task").iterdir()]
    bound = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
    server.gate.set()
    assert running.finish().status == 0
    assert [len(processors) for processors in bound] == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its processors")
@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="without a lock, there is no reason to")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is but one processor")
def test_the_thread_that_shakes_hands_has_all_processors(loader: Loader, tls: ssl.SSLContext, bundle: str) -> None:
    allowed = os.sched_getaffinity(0)
    with Server(tls=tls) as server:
        running = loader.start(urls_of(server, 1, "held"), "--ca-bundle", bundle)
        server.wait_for(lambda: server.at_work == 1)
        threads = [int(task.name) for task in Path(f"/proc/{running.process.pid}/task").iterdir()]
        counts = sorted(len(os.sched_getaffinity(thread)) for thread in threads)
        server.gate.set()
        assert running.finish().status == 0
    assert counts == [1] * (len(threads) - 1) + [len(allowed)]

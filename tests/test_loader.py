"""The command, from end to end: what a user, a cron job or a script can rely on."""

from __future__ import annotations

import csv
import fcntl
import gzip
import hashlib
import os
import pty
import random
import re
import signal
import sqlite3
import ssl
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

import image_loader
from conftest import MODULE, SOURCES, SUMMARY, Loader, Run, leftovers, urls_of
from exchange import etag
from image_loader import errors, load
from server import Server, refusing_port, silent_port

SCRIPT = (sys.executable, str(SOURCES / "image_loader" / "loader.py"))
INSTALLED = Path(sys.executable).with_name("loader")
BLOCKED = ("--threads", "100", "--per-host", "100")
PROMPT = 3.0
"""Seconds within which a signal has to end the run: two are promised, and the machine may be busy."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCES)}
BIDI = "\u202e"


def test_the_module_starts_from_anywhere(server: Server, loader: Loader) -> None:
    assert loader.run(urls_of(server, 3), cwd="/").counts == (3, 0, 0, 0)


@pytest.mark.skipif(not SOURCES.is_dir(), reason="there is no checkout here, only the installed package")
def test_the_file_of_a_checkout_starts_from_anywhere_without_being_installed(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 3), command=SCRIPT, cwd="/", environment={"PYTHONPATH": ""})
    assert run.counts == (3, 0, 0, 0)


@pytest.mark.skipif(not INSTALLED.exists(), reason="the package is not installed, so that there is no console script")
def test_the_console_script_starts_from_anywhere(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 3), command=(str(INSTALLED),), cwd="/", environment={"PYTHONPATH": ""})
    assert run.counts == (3, 0, 0, 0)


def test_relative_names_are_relative_to_where_one_stands(server: Server, loader: Loader) -> None:
    (loader.home / "list.txt").write_text(server.url("/a.png"))
    assert loader.bare("list.txt", "here/and/there").status == 0
    assert (loader.home / "here" / "and" / "there" / "a.png").read_bytes() == server.image("/a.png")


def _printed(*arguments: str) -> str:
    return subprocess.run([*MODULE, *arguments], check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout


def test_the_version_is_told() -> None:
    assert image_loader.__version__ in _printed("--version")


def test_the_help_names_every_option() -> None:
    told = _printed("--help")
    options = (
        "--force --revalidate --quiet --progress --no-progress --threads --per-host --timeout --max-time --retries "
        "--max-size --header --user-agent --ca-bundle --insecure --public-only --layout --verify --results --failed "
        "--index --version"
    )
    assert [option for option in options.split() if option not in told] == []
    assert "URLFILE" in told
    assert "DIRECTORY" in told


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


WRONG_USE = [
    ["-t", "0"],
    ["-t", "many"],
    ["--per-host", "-1"],
    ["--timeout", "0"],
    ["--timeout", "nan"],
    ["--max-time", "-5"],
    ["--retries", "-1"],
    ["--max-size", "large"],
    ["--max-size", "-1"],
    ["--max-size", "9" * 400],
    ["-H", "no colon"],
    ["-H", "Bad Name: x"],
    ["-H", "Name: a\nInjected: b"],
    ["-A", "a\r\nInjected: b"],
    ["--layout", "round"],
    ["--results", "rows.txt"],
    ["--results", "missing/rows.csv"],
    ["--failed", "missing/failed.txt"],
    ["--ca-bundle", "missing.pem"],
    ["--index", "missing/folder/index.sqlite3"],
    ["--nonsense"],
]


@pytest.mark.parametrize("options", WRONG_USE, ids=repr)
def test_wrong_use_ends_before_anything_is_asked(server: Server, loader: Loader, options: list[str]) -> None:
    run = loader.run(urls_of(server, 2), *options, results=False)
    assert run.status == 2
    assert run.stderr.strip()
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--forse", "list", "images"], "did you mean --force?"),
        (["--layout", "round", "list", "images"], "'flat', 'host', 'hash'"),
        (["--threads", "many", "list", "images"], "'many' is no whole number"),
        (["--threads", "0", "list", "images"], "--threads: 0 will not do; it takes a whole number, at least 1"),
        (["--timeout", "soon", "list", "images"], "no number of seconds"),
        (["list", ""], "an empty name"),
        (["", "images"], "an empty name"),
        (["http://user:secret@host/a.jpg?secret=1", "images"], "http://host/a.jpg?…: a URL, where a file of URLs"),
        (["images", "list"], "the list comes first"),
        (["missing", "list"], "the list comes first"),
        (["list", "images", "--index", "list"], "--index: list would be overwritten"),
        (["list", "images", "--results", "a.jsonl", "--index", "a.jsonl"], "--results: a.jsonl would be overwritten"),
        (["list", "http://host/a.jpg"], "DIRECTORY is a URL"),
        (["-H", "Authorization secret", "list", "images"], "no colon after 'Authorization'"),
        (["-H", "X-A: secret", "-H", "X-A: 2", "list", "images"], "'X-A' stands twice; join its values with a comma"),
        (["-H", "X-A: secret", "-H", "x-a: 2", "list", "images"], "'x-a' stands twice; join its values with a comma"),
        (["-A", "\u2603", "list", "images"], "--user-agent"),
        (["list", "images", "http://u:secret@h/x?sig=secret"], "unrecognized arguments: http://h/x?…"),
        (["-H", "Cookie sid=secret; t=12:30", "list", "images"], "what stands before the colon is no header's name"),
        (["-H", "secrettoken", "list", "images"], "no colon; write it like"),
        (["list", "ftp://u:secret@h/r"], "DIRECTORY is a URL"),
        *(
            (["list", "images", option, "http://u:secret@h/x"], f"{option}: http://h/x is a URL")
            for option in ("--results", "--failed", "--report", "--index", "--ca-bundle")
        ),
    ],
    ids=repr,
)
def test_wrong_use_is_told_with_what_to_type_instead(loader: Loader, arguments: list[str], hint: str) -> None:
    (loader.home / "list").write_text("http://127.0.0.1:1/a.jpg\n")
    (loader.home / "images").mkdir()
    run = loader.bare(*arguments)
    assert run.status == 2
    assert hint in run.stderr
    assert "loader: " in run.stderr
    assert "secret" not in run.stderr
    assert [path.name for path in (loader.home / "images").iterdir()] in ([], [".image_loader"])
    assert (loader.home / "list").read_text() == "http://127.0.0.1:1/a.jpg\n"
    assert sorted(path.name for path in loader.home.iterdir()) == ["images", "list"]


@pytest.mark.parametrize("option", ["--failed", "--results"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.txt", "images"],
        ["list", "file"],
        ["list", "images", "--index", "file"],
        ["list", "images", "--ca-bundle", "file"],
    ],
    ids=["list", "directory", "index", "CA bundle"],
)
def test_a_run_that_cannot_start_empties_no_file(loader: Loader, option: str, arguments: list[str]) -> None:
    (loader.home / "kept.csv").write_text("kept")
    (loader.home / "list").write_text("http://127.0.0.1:1/a.jpg\n")
    (loader.home / "file").write_text("neither a directory nor an index nor a certificate\n")
    run = loader.bare(option, "kept.csv", *arguments)
    assert (run.status, len(run.stderr.splitlines())) == (2, 1)
    assert (loader.home / "kept.csv").read_text() == "kept"


@pytest.mark.parametrize("option", ["--failed", "--results", "--report", "--index"])
def test_a_list_on_standard_input_is_not_written_over(loader: Loader, option: str) -> None:
    name = {"--results": "list.csv", "--report": "list.html"}.get(option, "list.txt")
    (loader.home / name).write_text("http://127.0.0.1:1/a.jpg\n")
    with (loader.home / name).open() as urls:
        run = loader.bare("-", "images", option, name, stdin=urls)
    assert run.status == 2
    assert f"{option}: {name} would be overwritten" in run.stderr
    assert (loader.home / name).read_text() == "http://127.0.0.1:1/a.jpg\n"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("--results", "new.jsonl"), ("--failed", "{home}/new.jsonl")),
        (("--results", "new.jsonl"), ("--failed", "images/../new.jsonl")),
        (("--results", "link.jsonl"), ("--failed", "new.jsonl")),
        (("--report", "new.html"), ("--failed", "{home}/new.html")),
        (("--index", "new.sqlite3"), ("--failed", "{home}/new.sqlite3")),
    ],
    ids=repr,
)
def test_a_file_that_is_yet_to_be_made_is_not_written_twice_over(
    loader: Loader, first: tuple[str, str], second: tuple[str, str]
) -> None:
    (loader.home / "link.jsonl").symlink_to("new.jsonl")
    (loader.home / "images").mkdir()
    run = loader.bare("-", "images", *first, second[0], second[1].format(home=loader.home))
    assert run.status == 2
    assert "would be overwritten while it is in use" in run.stderr
    assert not list(loader.home.glob("new.*"))


@pytest.mark.parametrize("option", ["--results", "--failed", "--report"])
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_no_index_is_written_over(loader: Loader, option: str, suffix: str) -> None:
    extension = {"--results": ".csv", "--report": ".html"}.get(option, "")
    (loader.home / "images" / ".image_loader").mkdir(parents=True)
    (loader.home / "images" / ".image_loader" / "index.sqlite3").symlink_to(loader.home / "own")
    for index in ([], ["--index", "own"]):
        for name in ("own", "images/.image_loader/index.sqlite3", "images/.image_loader/other"):
            link = loader.home / f"link{extension}"
            link.unlink(missing_ok=True)
            link.symlink_to(f"{name}{suffix}")
            run = loader.bare("-", "images", *index, option, link.name)
            assert run.status == 2
            assert f"{option}: {link.name} would be overwritten" in run.stderr


def test_results_and_failures_may_go_to_one_pipe(loader: Loader) -> None:
    reading, writing = os.pipe()
    (loader.home / "pipe.jsonl").symlink_to(f"/dev/fd/{writing}")
    options = ("--results", "pipe.jsonl", "--failed", f"/dev/fd/{writing}")
    (loader.home / "list").write_text("nonsense\n")
    run = loader.bare("list", "images", *options, pass_fds=[writing])
    os.close(writing)
    assert run.status == 1
    assert os.read(reading, 4096).endswith(b"}\nnonsense\n")
    os.close(reading)


def test_a_terminal_may_give_the_list_and_show_what_failed(loader: Loader) -> None:
    master, slave = pty.openpty()
    os.write(master, b"nonsense\n\x04")
    run = loader.bare("-", "images", "--failed", os.ttyname(slave), stdin=slave)
    os.close(slave)
    assert run.status == 1
    assert os.read(master, 4096).count(b"nonsense") == 2
    os.close(master)


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["shut/list", "images"],
        ["shut/list", "images", "--failed", "failed.txt"],
        ["shut/list", "images", "--progress"],
        [LONG, "images"],
        [LONG, "images", "--failed", "failed.txt"],
        [LONG, "images", "--progress"],
        ["missing", "shut/images"],
        ["missing", LONG],
        ["list", "shut/images"],
        ["list", LONG],
        ["list", "loop", "--report", "report.html"],
        ["list", "images", "--report", "shut/report.html"],
        ["list", "images", "--ca-bundle", "shut/ca.pem"],
        ["list", "images", "--ca-bundle", LONG],
        ["list", "images", "--index", LONG],
        ["list", "images", "--results", f"{LONG}.csv"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "long"),
)
def test_a_name_that_cannot_be_looked_at_ends_the_run_in_plain_words(
    loader: Loader, ordinary: tuple[str, ...], arguments: list[str]
) -> None:
    (loader.home / "list").write_text("http://127.0.0.1:1/a.jpg\n")
    (loader.home / "loop").symlink_to("loop")
    (loader.home / "shut").mkdir(0o000)
    command = [*ordinary, *arguments]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=loader.home, env=ENVIRONMENT)
    assert run.returncode == 2
    assert "loader: " in run.stderr
    assert "Traceback" not in run.stderr


def test_failures_that_are_not_shown_are_counted(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 8, "status-404"))
    assert sum(line.startswith("failed ") for line in run.stderr.splitlines()) == 3
    assert "5 more that failed are not shown" in run.stderr
    assert "not shown" not in loader.run(urls_of(server, 8, "status-404"), "-v").stderr


@pytest.mark.parametrize("arguments", [[], ["only-one"], ["one", "two", "three"]])
def test_a_wrong_number_of_arguments_shows_the_usage(loader: Loader, arguments: list[str]) -> None:
    run = loader.bare(*arguments)
    assert run.status == 2
    assert "usage" in run.stderr


def test_a_directory_that_is_a_file_ends_the_run(server: Server, loader: Loader) -> None:
    loader.directory.write_text("a file")
    run = loader.run(urls_of(server, 1))
    assert run.status == 2
    assert str(loader.directory) in run.stderr


# The list ---------------------------------------------------------------------------------------------------------


def _lines(server: Server) -> bytes:
    return "".join(url + "\n" for url in urls_of(server, 3)).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines,
        lambda lines: lines[:-1],
        lambda lines: b"\xef\xbb\xbf" + lines,
        lambda lines: lines.replace(b"\n", b"\r\n"),
        lambda lines: b"# comment\n\n   \n" + lines.replace(b"http", b"  http").replace(b"\n", b" \t\n\n"),
        gzip.compress,
        lambda lines: gzip.compress(lines[:50]) + gzip.compress(lines[50:]),
    ],
    ids=["plain", "no last newline", "byte order mark", "carriage returns", "comments", "gzip", "two gzip members"],
)
@pytest.mark.parametrize("kind", ["file", "input", "fifo"])
def test_a_list_is_read_as_it_is(server: Server, loader: Loader, change: Callable[[bytes], bytes], kind: str) -> None:
    content = change(_lines(server))
    path = loader.home / "list"
    if kind == "fifo":
        os.mkfifo(path)
        running = loader.start(path)
        path.write_bytes(content)
        run = running.finish()
    else:
        path.write_bytes(content)
        run = loader.run(content if kind == "input" else path)
    assert (run.status, run.counts) == (0, (3, 0, 0, 0))


BAD_LINES = {
    "no scheme": b"images.test/a.png",
    "other scheme": b"ftp://images.test/a.png",
    "local file": b"file:///etc/passwd",
    "no host": b"http:///a.png",
    "bad port": b"http://images.test:99999/a.png",
    "latin-1": "http://images.test/\xe9.png".encode("latin-1"),
    "nul": b"http://images.test/a\0.png",
    "escape": b"http://images.test/\x1b[31m.png",
    "long": b"http://images.test/" + b"a" * 70_000,
    "ten megabytes": b"http://images.test/" + b"a" * 10_000_000,
}


@pytest.fixture(scope="module")
def bad_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run over a list in which a good line follows each of the bad ones."""
    with closing(Loader(tmp_path_factory.mktemp("lines"))) as loader, Server() as server:
        good = [url.encode() for url in urls_of(server, len(BAD_LINES))]
        lines = [line for pair in zip(BAD_LINES.values(), good, strict=True) for line in pair]
        (loader.home / "list").write_bytes(b"\n".join(lines))
        yield loader.run(loader.home / "list", "-v")


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_told_with_its_number(bad_lines: Run, kind: str) -> None:
    number = 1 + 2 * list(BAD_LINES).index(kind)
    assert re.search(rf"line {number}\b.*bad-url", bad_lines.stderr)


def test_bad_lines_fail_alone(bad_lines: Run) -> None:
    assert (bad_lines.status, bad_lines.counts) == (1, (len(BAD_LINES), 0, 0, len(BAD_LINES)))
    assert {row["reason"] for row in bad_lines.rows} == {None, "bad-url"}


def test_bad_lines_flood_neither_the_log_nor_the_memory(bad_lines: Run) -> None:
    assert "\x1b" not in bad_lines.stderr
    assert len(bad_lines.stderr) < 10_000
    assert bad_lines.peak < 50 * 2**20


@pytest.mark.parametrize(
    "content", [b"", b"\n\n# nothing\n", gzip.compress(b"")], ids=["empty", "comments", "empty gzip"]
)
def test_a_list_of_nothing_is_no_fault(loader: Loader, content: bytes) -> None:
    run = loader.run(content)
    assert (run.status, run.rows) == (0, ())


def test_a_list_that_is_missing_or_a_directory_ends_the_run(loader: Loader) -> None:
    for path in (loader.home / "missing.txt", loader.home):
        run = loader.run(path)
        assert run.status == 2
        assert str(path) in run.stderr


def test_a_list_that_may_not_be_read_ends_the_run(loader: Loader, ordinary: tuple[str, ...]) -> None:
    (loader.home / "list").touch(0o000)
    run = loader.run(loader.home / "list", command=ordinary)
    assert run.status == 2
    assert str(loader.home / "list") in run.stderr


def test_a_gzip_that_was_cut_ends_the_run_after_what_could_be_read(server: Server, loader: Loader) -> None:
    lines = "".join(url + "\n" for url in urls_of(server, 2000)).encode()
    (loader.home / "list.gz").write_bytes(gzip.compress(lines)[:-2000])
    run = loader.run(loader.home / "list.gz")
    assert run.status == 2
    assert "list.gz" in run.stderr
    assert run.counts[0] > 100


def test_a_pipe_is_worked_on_as_it_comes(server: Server, loader: Loader) -> None:
    reading, writing = os.pipe()
    running = loader.start(b"", stdin=reading)
    os.close(reading)
    for url in urls_of(server, 3):
        os.write(writing, url.encode() + b"\n")
        server.wait_for(partial(_is_asked, server, url))
    os.close(writing)
    assert running.finish().counts == (3, 0, 0, 0)


def _is_asked(server: Server, url: str) -> bool:
    return bool(server.asked(url.removeprefix(server.origin)))


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


def test_a_url_that_came_before_counts_as_a_duplicate(server: Server, loader: Loader) -> None:
    url = server.url("/a.png")
    run = loader.run([url, url, url.replace("http", "HTTP") + "#part"])
    assert (run.status, run.counts, len(server.requests)) == (0, (1, 0, 2, 0), 1)
    assert {row["reason"] for row in run.rows if row["status"] == "skipped"} == {"duplicate"}


# Requests ---------------------------------------------------------------------------------------------------------


def test_a_request_says_who_asks_and_for_what(server: Server, loader: Loader) -> None:
    loader.run([server.url("/a.png?b=1#part")])
    (request,) = server.requests
    assert request.target == "/a.png?b=1"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["user-agent"].startswith("image_loader/")
    assert request.headers["accept-encoding"] == "identity"


def test_headers_and_user_agent_are_sent_as_told(server: Server, loader: Loader) -> None:
    loader.run([server.url("/a.png")], "-H", "X-One: 1", "--header", "X-Two:  two words", "-A", "mine/1.0")
    headers = server.requests[0].headers
    assert (headers["x-one"], headers["x-two"], headers["user-agent"]) == ("1", "two words", "mine/1.0")


def test_user_and_password_of_a_url_are_sent_as_such(server: Server, loader: Loader) -> None:
    url = server.url("/a.png").replace("://", "://user:p%40ss@")
    assert loader.run([url]).counts == (1, 0, 0, 0)
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwQHNz"


def test_netrc_is_heeded(server: Server, loader: Loader) -> None:
    (loader.home / ".netrc").write_text("machine 127.0.0.1 login user password p@ss\n")
    (loader.home / ".netrc").chmod(0o600)
    loader.run([server.url("/a.png")])
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwQHNz"


def test_a_proxy_is_heeded(server: Server, loader: Loader) -> None:
    run = loader.run(["http://images.test/a.png"], environment={"http_proxy": server.origin})
    assert run.counts == (1, 0, 0, 0)
    assert server.requests[0].target == "http://images.test/a.png"


def test_https_goes_through_a_proxy_as_a_tunnel(server: Server, loader: Loader, authority: trustme.CA) -> None:
    with Server(tls=_trusted(authority)) as secure:
        run = loader.run([secure.url("/a.png")], "--insecure", environment={"https_proxy": server.origin})
        assert run.content(secure.url("/a.png")) == secure.image("/a.png")
    assert [request.target for request in server.requests] == [f"CONNECT {secure.port}"]


@pytest.mark.parametrize("options", [(), ("--failed", "failed.txt", "--index", "index.sqlite3")], ids=["bare", "files"])
def test_a_ca_bundle_may_be_a_pipe(loader: Loader, authority: trustme.CA, options: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.write(writing, authority.cert_pem.bytes())
    os.close(writing)
    with Server(tls=_trusted(authority)) as secure:
        bundle = ("--ca-bundle", f"/dev/fd/{reading}")
        run = loader.run([secure.url("/a.png")], *bundle, *options, results=False, pass_fds=[reading])
    os.close(reading)
    assert run.status == 0
    assert run.files == {"a.png"}


def test_a_host_may_be_kept_from_the_proxy(server: Server, loader: Loader) -> None:
    environment = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    assert loader.run([server.url("/a.png")], environment=environment).counts == (1, 0, 0, 0)


def _trusted(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_connections_are_used_again(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 50), "--threads", "1")
    assert server.connections == 1


def test_nobody_asks_for_robots(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 3))
    assert {request.path for request in server.requests} == {f"/image/000{number}.png" for number in range(3)}


def test_no_more_downloads_run_at_once_than_threads(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 30, "slow"), "--threads", "4", "--per-host", "20")
    assert server.peak == 4


def test_no_more_downloads_run_at_one_host_than_told(server: Server, loader: Loader) -> None:
    with Server(name="other") as other:
        loader.run([*urls_of(server, 30, "slow"), *urls_of(other, 30, "slow")], "--threads", "20", "--per-host", "3")
        assert (server.peak, other.peak) == (3, 3)


def test_by_default_32_downloads_run_at_once(new_server: Callable[..., Server], loader: Loader) -> None:
    servers = [new_server(name=str(number)) for number in range(4)]
    urls = [url for server in servers for url in urls_of(server, 11)]
    held = [url for server in servers for url in urls_of(server, 11, "held/more")]
    running = loader.start([*urls, *held])
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 32)
    for server in servers:
        server.gate.set()
    assert running.finish().counts == (88, 0, 0, 0)


def test_by_default_10_downloads_run_at_once_at_one_host(server: Server, loader: Loader) -> None:
    running = loader.start([*urls_of(server, 20), *urls_of(server, 20, "held/more")])
    server.wait_for(lambda: server.at_work == 10)
    server.gate.set()
    assert running.finish().counts == (40, 0, 0, 0)
    assert server.peak == 10


def test_retries_are_as_many_as_told(server: Server, loader: Loader) -> None:
    for retries in (0, 2):
        loader.run([server.url(f"/status-503/{retries}.png")], "--retries", str(retries))
    assert [len(server.asked(f"/status-503/{retries}.png")) for retries in (0, 2)] == [1, 3]


@pytest.mark.parametrize(("size", "status"), [("3999", "failed"), ("4k", "saved"), ("4K", "saved"), ("1M", "saved")])
def test_a_size_over_the_limit_is_refused(server: Server, loader: Loader, size: str, status: str) -> None:
    run = loader.run([server.url("/a.png")], "--max-size", size)
    assert run.rows[0]["status"] == status
    assert run.rows[0]["reason"] == (None if status == "saved" else "too-large")


@pytest.mark.parametrize(
    ("option", "most", "more"),
    [
        ("--threads", "100000", "100001"),
        ("--per-host", "100000", "100001"),
        ("--timeout", "1e6", "1000001"),
        ("--max-time", "1e9", "1e10"),
        ("--retries", "1000000000", "1000000001"),
        ("--max-size", "1000G", "1001G"),
    ],
)
def test_the_greatest_value_accepted_works_and_more_is_refused(
    server: Server, loader: Loader, option: str, most: str, more: str
) -> None:
    run = loader.run([server.url("/a.png"), server.url("/slow/b.png")], option, most)
    assert (run.status, run.counts, run.stderr) == (0, (2, 0, 0, 0), "")
    run = loader.run([server.url("/c.png")], option, more)
    assert run.status == 2
    assert "at most 1000" in run.stderr


# What is saved ----------------------------------------------------------------------------------------------------


def test_a_saved_file_has_the_time_of_its_last_modified(server: Server, loader: Loader) -> None:
    loader.run([server.url("/a.png")])
    assert (loader.directory / "a.png").stat().st_mtime == 1_600_000_000


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_the_mode_of_a_file_follows_the_umask(server: Server, loader: Loader, umask: int, mode: int) -> None:
    loader.run([server.url("/a.png")], umask=umask)
    assert stat.S_IMODE((loader.directory / "a.png").stat().st_mode) == mode


def test_what_others_keep_in_the_directory_stays(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "notes.txt").write_text("mine")
    loader.run([server.url("/a.png")])
    assert loader.run([server.url("/a.png")]).files == {"a.png", "notes.txt"}


def test_nothing_but_the_images_and_the_hidden_folder_is_left(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 5))
    assert {path.name for path in loader.directory.iterdir()} == {".image_loader", *run.files}
    assert leftovers(loader.directory) == []


def test_the_extension_is_that_of_the_type(server: Server, loader: Loader) -> None:
    targets = ["/photo.php", "/photo.php?id=2", "/noname/", "/", "/thumb", "/image.svgz.exe"]
    run = loader.run([server.url(target) for target in targets])
    assert run.counts == (6, 0, 0, 0)
    assert all(name.endswith(".png") for name in run.files)


@pytest.mark.parametrize("layout", ["flat", "host", "hash"])
def test_a_layout_gives_each_image_its_place(server: Server, loader: Loader, layout: str) -> None:
    place = {"flat": "", "host": rf"127\.0\.0\.1_{server.port}/", "hash": "[0-9a-f]{2}/[0-9a-f]{2}/"}[layout]
    for counts in ((5, 0, 0, 0), (0, 5, 0, 0)):
        run = loader.run(urls_of(server, 5), "--layout", layout)
        assert run.counts == counts
        assert all(re.fullmatch(place + r"000\d\.png", file) for file in run.files), run.files


def test_verify_refuses_what_is_no_whole_image(server: Server, loader: Loader) -> None:
    pytest.importorskip("PIL", reason="takes the extra `verify`")
    server.headers["/odd.png"] = {"Content-Type": "image/jpeg"}
    good, odd, short = server.url("/a.png"), server.url("/odd.png"), server.url("/short-unframed/b.png")
    run = loader.run([good, odd, short], "--verify")
    assert [run.row(url)["reason"] for url in (good, odd, short)] == [None, None, "damaged"]


def test_verify_keeps_the_old_image_from_a_damaged_one(server: Server, loader: Loader) -> None:
    pytest.importorskip("PIL", reason="takes the extra `verify`")
    url = server.url("/damaged/a.png")
    server.healthy = True
    loader.run([url], "--verify")
    server.healthy, server.versions["/damaged/a.png"] = False, 1
    run = loader.run([url], "--verify")
    assert run.row(url)["reason"] in ("damaged", "not-an-image")
    server.versions["/damaged/a.png"] = 0
    assert (loader.directory / "a.png").read_bytes() == server.image("/damaged/a.png")
    assert leftovers(loader.directory) == []


# Further runs -----------------------------------------------------------------------------------------------------

HOUR = "max-age=3600"
NEITHER: dict[str, str | None] = {"ETag": None, "Last-Modified": None}
FRESH: dict[str, dict[str, str | None]] = {
    "max-age": {"Cache-Control": HOUR},
    "max-age among others": {"Cache-Control": 'public, MAX-AGE=3600, immutable, x="a, no-store"'},
    "max-age over Expires": {"Cache-Control": HOUR, "Expires": "0"},
    "Expires": {"Expires": formatdate(time.time() + 3600, usegmt=True)},
    "max-age without validators": {"Cache-Control": HOUR, **NEITHER},
    "a small Age": {"Cache-Control": HOUR, "Age": "100"},
}
STALE: dict[str, dict[str, str | None]] = {
    "no lifetime": {},
    "no-cache": {"Cache-Control": "max-age=3600, no-cache"},
    "no-store": {"Cache-Control": "no-store, max-age=3600"},
    "max-age=0": {"Cache-Control": "max-age=0"},
    "a great Age": {"Cache-Control": HOUR, "Age": "3700"},
    "Expires in the past": {"Expires": formatdate(time.time() - 3600, usegmt=True)},
    "Expires that is no date": {"Expires": "0"},
    "an old Last-Modified alone": {"Last-Modified": formatdate(1e9, usegmt=True), "ETag": None},
    "s-maxage alone": {"Cache-Control": "s-maxage=3600"},
    "max-age that is no number": {"Cache-Control": "max-age=an hour"},
    "two tags alike to the eye": {"ETag": '"a", "b"'},
    "Vary: *": {"Cache-Control": HOUR, "Vary": "*"},
}


TAGS = ['"plain"', 'W/"weak"', '"with,comma"', '""', '"caf\xe9"']
DATE = "Sunday, 06-Nov-94 08:49:37 GMT"
KINDS: dict[str, dict[str, str | None]] = {
    **FRESH,
    **STALE,
    **{tag: {"ETag": tag, "Last-Modified": DATE} for tag in TAGS},
}


@dataclass(frozen=True)
class Twice:
    """Two runs over one image of each kind."""

    server: Server
    second: Run
    before: dict[str, os.stat_result]

    @staticmethod
    def target(kind: str) -> str:
        """Return the target of a kind's image."""
        return f"/{list(KINDS).index(kind)}.png"


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twice]:
    """Run twice over an image of each kind."""
    with closing(Loader(tmp_path_factory.mktemp("twice"))) as loader, Server() as server:
        server.headers = {Twice.target(kind): headers for kind, headers in KINDS.items()}
        urls = [server.url(Twice.target(kind)) for kind in KINDS]
        assert loader.run(urls).counts == (len(urls), 0, 0, 0)
        before = {kind: (loader.directory / Twice.target(kind)[1:]).stat() for kind in KINDS}
        yield Twice(server, loader.run(urls), before)


@pytest.mark.parametrize("kind", FRESH)
def test_what_is_fresh_by_its_headers_is_not_asked_for(twice: Twice, kind: str) -> None:
    target = twice.target(kind)
    assert twice.second.row(twice.server.url(target))["status"] == "fresh"
    assert len(twice.server.asked(target)) == 1


@pytest.mark.parametrize("kind", STALE)
def test_what_is_not_fresh_is_asked_for_conditionally(twice: Twice, kind: str) -> None:
    first, second = twice.server.asked(twice.target(kind))
    assert not {"if-none-match", "if-modified-since"} & first.headers.keys()
    assert {"if-none-match", "if-modified-since"} & second.headers.keys()


@pytest.mark.parametrize("kind", STALE)
def test_a_304_changes_nothing_on_disk(twice: Twice, kind: str) -> None:
    before, after = twice.before[kind], (twice.second.directory / twice.target(kind)[1:]).stat()
    assert twice.second.row(twice.server.url(twice.target(kind)))["http_status"] == 304
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("tag", TAGS)
def test_validators_go_back_byte_for_byte(twice: Twice, tag: str) -> None:
    headers = twice.server.asked(twice.target(tag))[1].headers
    assert (headers["if-none-match"], headers["if-modified-since"]) == (tag, DATE)


def test_without_validators_it_is_downloaded_again(server: Server, loader: Loader) -> None:
    server.headers["/a.png"] = NEITHER
    runs = [loader.run([server.url("/a.png")]) for _ in range(2)]
    assert [run.counts for run in runs] == [(1, 0, 0, 0)] * 2
    assert "if-none-match" not in server.requests[1].headers


def test_a_304_renews_what_is_known(server: Server, loader: Loader) -> None:
    url = server.url("/a.png")
    loader.run([url])
    server.headers["/a.png"] = {"Cache-Control": HOUR}
    loader.run([url])
    loader.run([url])
    assert len(server.requests) == 2


def test_a_changed_tag_is_a_change_whatever_the_date_says(server: Server, loader: Loader) -> None:
    url = server.url("/a.png")
    loader.run([url])
    server.versions["/a.png"] = -1
    run = loader.run([url])
    assert run.content(url) == server.image("/a.png")
    assert (loader.directory / "a.png").stat().st_mtime == 1_600_000_000 - 86_400


def test_a_changed_image_replaces_the_old_one(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 20)
    loader.run(urls)
    server.versions["/image/0007.png"] = 1
    run = loader.run(urls)
    assert run.counts == (1, 19, 0, 0)
    assert run.content(urls[7]) == server.image("/image/0007.png")


def _delete(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _shorten(path: Path) -> None:
    os.truncate(path, 100)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def _edit(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _shorten_in_secret(path: Path) -> None:
    before = path.stat()
    os.truncate(path, 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


HARMS = [_delete, _empty, _shorten, _lengthen, _edit, _shorten_in_secret]


def test_exactly_what_was_harmed_on_disk_comes_again(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 2 * len(HARMS))
    server.headers = {url.removeprefix(server.origin): {"Cache-Control": HOUR} for url in urls}
    loader.run(urls)
    for number, harm in enumerate(HARMS):
        harm(loader.directory / f"{number:04}.png")
    run = loader.run(urls)
    assert [run.row(url)["status"] for url in urls] == ["saved"] * len(HARMS) + ["fresh"] * len(HARMS)
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)
    assert all("if-none-match" not in request.headers for request in server.requests)


def test_force_downloads_everything_unconditionally(server: Server, loader: Loader) -> None:
    server.headers["/a.png"] = {"Cache-Control": HOUR}
    loader.run([server.url("/a.png")])
    assert loader.run([server.url("/a.png")], "-f").counts == (1, 0, 0, 0)
    assert not {"if-none-match", "if-modified-since"} & server.requests[1].headers.keys()


def test_revalidate_asks_about_everything_conditionally(server: Server, loader: Loader) -> None:
    server.headers["/a.png"] = {"Cache-Control": HOUR}
    loader.run([server.url("/a.png")])
    assert loader.run([server.url("/a.png")], "--revalidate").counts == (0, 1, 0, 0)
    assert "if-none-match" in server.requests[1].headers


def test_a_file_that_another_program_made_is_asked_for_by_its_time(server: Server, loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "a.png").write_bytes(b"made by another program")
    os.utime(loader.directory / "a.png", (1_600_000_000, 1_600_000_000))
    assert loader.run([server.url("/a.png")]).counts == (0, 1, 0, 0)
    assert server.requests[0].headers["if-modified-since"] == formatdate(1_600_000_000, usegmt=True)
    assert (loader.directory / "a.png").read_bytes() == b"made by another program"


def test_the_index_may_stand_elsewhere(server: Server, loader: Loader) -> None:
    index = loader.home / "elsewhere.sqlite3"
    for counts in ((3, 0, 0, 0), (0, 3, 0, 0)):
        assert loader.run(urls_of(server, 3), "--index", str(index)).counts == counts
    assert stat.S_IMODE(index.stat().st_mode) == 0o600
    assert not (loader.directory / ".image_loader" / "index.sqlite3").exists()


# Names ------------------------------------------------------------------------------------------------------------


def test_the_same_name_from_many_hosts_gives_as_many_files(new_server: Callable[..., Server], loader: Loader) -> None:
    servers = [new_server(name=str(number)) for number in range(10)]
    urls = [server.url(f"/{folder}/photo.png") for server in servers for folder in range(10)]
    first = loader.run(urls)
    assert (first.counts, len(first.files)) == ((100, 0, 0, 0), 100)
    random.Random(1).shuffle(urls)
    second = loader.run(urls)
    assert second.counts == (0, 100, 0, 0)
    for server in servers:
        for folder in range(10):
            assert second.content(server.url(f"/{folder}/photo.png")) == server.image(f"/{folder}/photo.png")


def test_names_that_a_file_system_may_take_for_one_give_two_files(server: Server, loader: Loader) -> None:
    names = [
        "a.png",
        "A.png",
        "a.PNG",
        "caf%C3%A9.png",
        "cafe%CC%81.png",
        "x.png?1",
        "x.png?2",
        "stra%C3%9Fe.png",
        "STRASSE.png",
    ]
    run = loader.run([server.url(f"/{name}") for name in names])
    assert run.counts == (len(names), 0, 0, 0)
    assert len({name.casefold() for name in run.files}) == len(names)
    assert all(run.content(server.url(f"/{name}")) == server.image(f"/{name}") for name in names)


HOSTILE = [
    "../a.png",
    "..%2fa.png",
    "%2e%2e%2fa.png",
    "%252e%252e%252fa.png",
    "..%5ca.png",
    "a%00.png",
    "%1b%5b31m.png",
    "%e2%80%aegnp.exe.png",
    "x" * 300 + ".png",
    "%e2%82%ac" * 85 + ".png",
    "%ff%fe.png",
    ".",
    "..",
    "%2e",
    "-rf.png",
    ".hidden.png",
    ".image_loader",
    ".image_loader%2findex.sqlite3",
    "index.sqlite3",
    "a%0ab.png",
    "%20.png",
    "con.png",
    "a.png/",
    "%2fetc%2fpasswd.png",
    "a:b.png",
    "a*b%3f.png",
    "%7f.png",
    "a%e2%80%a8b.png",
]


@pytest.mark.parametrize("layout", ["flat", "hash"])
def test_a_hostile_name_gives_a_safe_visible_file_inside_the_directory(
    server: Server, loader: Loader, layout: str
) -> None:
    urls = [server.url(f"/{number}/{name}") for number, name in enumerate(HOSTILE)]
    run = loader.run(urls, "--layout", layout, "-vv")
    assert run.counts == (len(urls), 0, 0, 0)
    assert len(run.files) == len(urls)
    for file in run.files:
        name = file.rpartition("/")[2]
        assert name.isprintable(), file
        assert name[0] not in ".- "
        assert len(name.encode()) <= 255
        assert "\\" not in name
    assert {path.name for path in loader.home.iterdir()} == {"images", "rows.jsonl", "urls-1.txt"}
    assert "\x1b" not in run.stderr
    assert BIDI not in run.stderr


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


@pytest.mark.parametrize(
    ("option", "left"), [("--failed", ""), ("--results", ",".join(KEYS) + "\n")], ids=["failed", "results"]
)
def test_a_run_that_has_nothing_to_do_empties_its_files(loader: Loader, option: str, left: str) -> None:
    (loader.home / "old.csv").write_text("old")
    assert loader.bare(option, "old.csv", "-", "images").status == 0
    assert (loader.home / "old.csv").read_text() == left


@pytest.mark.parametrize("option", ["--results", "--failed"])
def test_a_results_file_that_cannot_be_written_ends_the_run_in_plain_words(
    server: Server, loader: Loader, option: str
) -> None:
    full = loader.home / "full.jsonl"
    full.symlink_to("/dev/full")
    run = loader.run([server.url("/a.png"), server.url("/status-404/b.png")], option, str(full), results=False)
    assert run.status == 2
    assert "full.jsonl" in run.stderr


def test_a_report_replaces_no_fifo(loader: Loader) -> None:
    fifo = loader.home / "report.html"
    os.mkfifo(fifo)
    run = loader.bare("-", "images", "--report", fifo.name)
    assert run.status == 2
    assert "report.html: cannot be written: it is no regular file" in run.stderr
    assert fifo.is_fifo()


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
    server.headers["/b.png"] = {"Content-Encoding": hostile}
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


@pytest.mark.parametrize("script", ['exec "$@" 2>/dev/full', 'exec "$@" 2>&-', 'exec "$@" >&- 2>&-'])
@pytest.mark.parametrize("arguments", [[], ["--nonsense"]], ids=repr)
def test_wrong_use_is_2_whatever_standard_error_is(script: str, arguments: list[str]) -> None:
    run = subprocess.run([*_shell(script), *arguments], check=False, capture_output=True, env=ENVIRONMENT)
    assert (run.returncode, run.stdout) == (2, b"")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_ends_in_plain_words(option: str) -> None:
    run = subprocess.run(
        [*_shell('exec "$@" >/dev/full'), option], check=False, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert run.returncode == 2
    assert run.stderr == "loader: standard output: cannot be written: No space left on device\n"


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
    os.close(slave)
    shown = b""
    with suppress(OSError):
        while read := os.read(master, 65536):
            shown += read
    os.close(master)
    return shown.decode()


def test_a_terminal_shows_progress_unless_told_not_to(server: Server, loader: Loader) -> None:
    assert "/20" in _at_a_terminal(loader, urls_of(server, 20, "slow"))
    assert _at_a_terminal(loader, urls_of(server, 20, "slow"), "--no-progress") == ""
    assert _at_a_terminal(loader, urls_of(server, 20, "slow"), "-q") == ""


def test_a_file_shows_progress_only_when_told_to(server: Server, loader: Loader) -> None:
    assert loader.run(urls_of(server, 5)).stderr == ""
    assert "5/5" in loader.run(urls_of(server, 5), "--progress").stderr


# Other runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_loader(loader: Loader, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """Run the command once more, on the same directory."""
    with closing(Loader(tmp_path_factory.mktemp("other"))) as other:
        other.directory = loader.directory
        yield other


def test_what_another_run_is_at_is_skipped(server: Server, loader: Loader, other_loader: Loader) -> None:
    urls = urls_of(server, 3, "gated")
    first = loader.start(urls)
    server.wait_for(lambda: len(leftovers(loader.directory)) == 3)
    second = other_loader.run(urls, "-v")
    assert (second.status, second.counts) == (0, (0, 0, 3, 0))
    assert {row["reason"] for row in second.rows} == {"locked"}
    server.gate.set()
    assert first.finish().counts == (3, 0, 0, 0)
    assert all((loader.directory / f"000{number}.png").read_bytes() for number in range(3))
    assert leftovers(loader.directory) == []


def test_two_runs_on_one_list_leave_every_image_whole(server: Server, loader: Loader, other_loader: Loader) -> None:
    urls = urls_of(server, 300)
    runs = [running.finish() for running in (loader.start(urls), other_loader.start(urls))]
    assert [run.status for run in runs] == [0, 0]
    assert [sum(run.counts) for run in runs] == [300, 300]
    assert runs[0].files == {f"{number:04}.png" for number in range(300)}
    assert all(
        (loader.directory / f"{number:04}.png").read_bytes() == server.image(f"/image/{number:04}.png")
        for number in range(300)
    )
    assert leftovers(loader.directory) == []


def test_two_runs_share_the_work_and_agree_about_it(server: Server, loader: Loader, other_loader: Loader) -> None:
    # Their names get the extension from the answer, and their files a time of their own.
    urls = [server.url(f"/gated/{number:04}") for number in range(300)]
    runs = [loader.start(urls), other_loader.start(urls)]
    # One alone begins with three of them: both are at work.
    server.wait_for(lambda: len(leftovers(loader.directory)) > 3)
    server.gate.set()
    ended = [running.finish() for running in runs]
    assert [(run.status, sum(run.counts), run.counts[3]) for run in ended] == [(0, 300, 0)] * 2
    assert sum(run.counts[0] for run in ended) == len(ended[0].files) == 300
    server.healthy = True
    assert loader.run(urls).counts == (0, 300, 0, 0)


def test_after_a_kill_in_mid_write_the_next_run_cleans_up_and_completes(server: Server, loader: Loader) -> None:
    urls = [*urls_of(server, 20), *urls_of(server, 5, "gated/more")]
    running = loader.start(urls)
    server.wait_for(lambda: len(leftovers(loader.directory)) == 5 and len(server.requests) == 25)
    running.end()
    assert len(leftovers(loader.directory)) == 5
    server.gate.set()
    run = loader.run(urls)
    assert run.status == 0
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)
    assert leftovers(loader.directory) == []


# Signals ----------------------------------------------------------------------------------------------------------


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
        server.wait_for(lambda: _sockets(running.process.pid) > 0)
        running.send(signal.SIGTERM)
        assert running.finish(PROMPT).status == 143


def _sockets(process: int) -> int:
    count = 0
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            count += descriptor.readlink().name.startswith("socket:")
    return count


def test_a_signal_ends_a_run_that_waits_to_try_again(server: Server, loader: Loader) -> None:
    server.headers.clear()
    running = loader.start(urls_of(server, 20, "status-503"), "--retries", "10")
    server.wait_for(lambda: len(server.requests) >= 20 and not server.at_work)
    running.send(signal.SIGINT)
    assert running.finish(PROMPT).status == 130


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


def test_a_signal_that_is_ignored_stays_ignored(server: Server, loader: Loader) -> None:
    running = loader.start(urls_of(server, 3, "held"), command=("nohup", *MODULE))
    server.wait_for(lambda: server.at_work == 3)
    running.send(signal.SIGHUP)
    server.gate.set()
    run = running.finish()
    assert (run.status, run.counts) == (0, (3, 0, 0, 0))


# The library ------------------------------------------------------------------------------------------------------


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

"""The command and the library call: how they start, and what they take for a list."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import ENVIRONMENT, SOURCES, Loader, Run, leftovers, urls_of
from image_loader import errors, load
from server import Server

SCRIPT = (sys.executable, str(SOURCES / "image_loader" / "loader.py"))
INSTALLED = Path(sys.executable).with_name("loader")


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
    "no host": b"http:///",
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


def test_a_url_that_came_before_counts_as_a_duplicate(server: Server, loader: Loader) -> None:
    url = server.url("/a.png")
    run = loader.run([url, url, url.replace("http", "HTTP") + "#part"])
    assert (run.status, run.counts, len(server.requests)) == (0, (1, 0, 2, 0), 1)
    assert {row["reason"] for row in run.rows if row["status"] == "skipped"} == {"duplicate"}

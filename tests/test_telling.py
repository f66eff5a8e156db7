"""What the command tells: rows, streams, and no secret."""

from __future__ import annotations

import csv
import hashlib
import os
import pty
import stat
import subprocess
from contextlib import suppress
from typing import Any

import pytest

from conftest import ENVIRONMENT, MODULE, Loader, urls_of
from server import Server, refusing_port

BIDI = "\u202e"


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
    # The settings of another program, one of them no number.
    for environment in ({}, {"TQDM_MININTERVAL": "often", "TQDM_DISABLE": "1"}):
        assert "5/5" in loader.run(urls_of(server, 5), "--progress", environment=environment).stderr

"""Promises of the files that a run writes: none is overwritten while it is in use."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from conftest import ENVIRONMENT, MODULE, Loader
from image_loader.cli.results import COLUMNS
from server import Server


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


@pytest.mark.parametrize(
    "arguments",
    [["images"], ["{home}/images", "--failed", "failed.txt"], ["{home}/images", "--index", "index.sqlite3"]],
)
def test_a_current_directory_that_is_gone_ends_the_run(loader: Loader, arguments: list[str]) -> None:
    (loader.home / "gone").mkdir()
    (loader.home / "urls.txt").touch()
    script = ("sh", "-c", 'rmdir ../gone; exec "$@"', "sh", *MODULE, str(loader.home / "urls.txt"))
    command = [*script, *(argument.format(home=loader.home) for argument in arguments)]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=loader.home / "gone", env=ENVIRONMENT
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "No such file or directory" in ended.stderr


@pytest.mark.parametrize(
    ("option", "left"), [("--failed", ""), ("--results", ",".join(COLUMNS) + "\n")], ids=["failed", "results"]
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


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--results", "images/rows.jsonl"),
        ("--failed", "images/failed.txt"),
        ("--report", "images/report.html"),
        ("--results", "images/logs/today/rows.csv"),
        ("--failed", "link/failed.txt"),
    ],
)
def test_a_file_below_a_directory_that_is_not_there_yet_is_made_with_it(
    server: Server, loader: Loader, option: str, name: str
) -> None:
    (loader.home / "link").symlink_to("images")
    run = loader.run([server.url("/a.png")], option, name, results=False)
    assert (run.status, run.stderr) == (0, "")
    assert (loader.home / name).exists()
    assert (loader.directory / "a.png").exists()


@pytest.mark.parametrize("options", [("--results", "images/rows.txt"), ("--report", "images/report.txt"), ()], ids=repr)
def test_a_run_that_cannot_start_makes_no_directory(loader: Loader, options: tuple[str, ...]) -> None:
    (loader.home / "list").write_text("http://127.0.0.1:1/a.jpg\n")
    name = "list" if options else "missing"
    run = loader.bare(name, "images", *options, "--failed", "images/failed.txt")
    assert run.status == 2
    assert not loader.directory.exists()


def test_a_folder_outside_the_directory_is_not_made(loader: Loader) -> None:
    run = loader.bare("-", "images", "--failed", "images/../other/failed.txt")
    assert run.status == 2
    assert "other/failed.txt: cannot be written: No such file or directory" in run.stderr
    assert not (loader.home / "other").exists()


def test_a_folder_that_cannot_be_made_is_named_with_the_reason(loader: Loader) -> None:
    loader.directory.mkdir()
    (loader.directory / "file").touch()
    run = loader.bare("-", "images", "--failed", "images/file/logs/failed.txt")
    assert run.status == 2
    assert "images/file/logs: cannot be created: Not a directory" in run.stderr

"""The command: how it starts, how it tells of wrong use, and what it takes for a list."""

from __future__ import annotations

import gzip
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

import image_loader
from conftest import ENVIRONMENT, MODULE, SOURCES, SUMMARY, Loader, Run, urls_of
from exchange import etag
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
        (["--layout", "round", "list", "images"], "--layout: must be 'flat', 'host' or 'hash', not 'round'"),
        (["--threads", "many", "list", "images"], "--threads: must be a whole number, not 'many'"),
        (["--threads", "0", "list", "images"], "--threads: must be between 1 and 100000, not 0"),
        (["--timeout", "soon", "list", "images"], "--timeout: must be a number of seconds, not 'soon'"),
        (["list", ""], "an empty name"),
        (["", "images"], "an empty name"),
        (
            ["http://user:secret@host/a.jpg?secret=1", "images"],
            "URLFILE: must be a path, not a URL: http://host/a.jpg?…; pipe it in",
        ),
        (["images", "list"], "the list comes first"),
        (["missing", "list"], "the list comes first"),
        (["list", "images", "--index", "list"], "--index: list would be overwritten"),
        (["list", "images", "--results", "a.jsonl", "--index", "a.jsonl"], "--results: a.jsonl would be overwritten"),
        (
            ["list", "http://host/a.jpg"],
            "DIRECTORY: must be a path, not a URL: http://host/a.jpg; the list comes first",
        ),
        (["-H", "Authorization secret", "list", "images"], "no colon after 'Authorization'"),
        (
            ["-H", "X-A: secret", "-H", "X-A: 2", "list", "images"],
            "--header: 'X-A' is given twice; join the values with a comma",
        ),
        (
            ["-H", "X-A: secret", "-H", "x-a: 2", "list", "images"],
            "--header: 'x-a' is given twice; join the values with a comma",
        ),
        (["-A", "\u2603", "list", "images"], "--user-agent"),
        (["list", "images", "http://u:secret@h/x?sig=secret"], "unrecognized arguments: http://h/x?…"),
        (["-H", "Cookie sid=secret; t=12:30", "list", "images"], "--header: malformed header name before the colon"),
        (["-H", "secrettoken", "list", "images"], "--header: no colon; write it as"),
        (["list", "ftp://u:secret@h/r"], "DIRECTORY: must be a path, not a URL: …"),
        *(
            (["list", "images", option, "http://u:secret@h/x"], f"{option}: must be a path, not a URL: http://h/x")
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


def test_a_url_that_came_before_counts_as_a_duplicate(server: Server, loader: Loader) -> None:
    url = server.url("/a.png")
    run = loader.run([url, url, url.replace("http", "HTTP") + "#part"])
    assert (run.status, run.counts, len(server.requests)) == (0, (1, 0, 2, 0), 1)
    assert {row["reason"] for row in run.rows if row["status"] == "skipped"} == {"duplicate"}

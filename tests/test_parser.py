"""Promises of the command line: what is wrong is told before anything is done, with what to type instead."""

from __future__ import annotations

import subprocess

import pytest

import image_loader
from conftest import ENVIRONMENT, MODULE, Loader, urls_of
from server import Server


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


def _shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script, "sh", *MODULE)


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


@pytest.mark.parametrize("arguments", [[], ["only-one"], ["one", "two", "three"]])
def test_a_wrong_number_of_arguments_shows_the_usage(loader: Loader, arguments: list[str]) -> None:
    run = loader.bare(*arguments)
    assert run.status == 2
    assert "usage" in run.stderr


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

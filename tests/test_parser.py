"""Promises of the command line: what is wrong is told before anything is done, with what to type instead."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

import image_loader
from conftest import ENVIRONMENT, MODULE, Loader, urls_of
from image_loader.cli.habits import HABITS
from image_loader.cli.parser import HEADERS_VARIABLE, flag, parse
from image_loader.errors import OptionError
from image_loader.loader import DEFAULTS
from image_loader.settings import all_options
from server import Server


def _printed(*arguments: str) -> str:
    return subprocess.run([*MODULE, *arguments], check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout


def test_the_version_is_told() -> None:
    assert image_loader.__version__ in _printed("--version")


def test_the_help_names_every_option_with_its_metavar_and_its_default() -> None:
    told = " ".join(_printed("--help").split())
    for option in all_options():
        default = DEFAULTS.get(option.keyword)
        shown = option.kind.shown(default) if default is not None else ""
        assert option.help in told
        assert (
            option.flags[-1] + (f" {option.kind.metavar}" if option.flags[0][0] == "-" and option.kind.metavar else "")
            in told
        )
        assert f"{option.help} (default: {shown})" in told or not shown
    assert "--no-progress" in told


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
        (["--layout", "round", "list", "images"], "--layout: must be 'flat', 'host', 'hash' or 'path', not 'round'"),
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
        (["list", "images", "http://u:secret@h/x?sig=secret"], "too many arguments (1)"),
        (
            ["list", "images", "-H", "Authorization:", "Bearer", "secret"],
            "too many arguments (2); quote those that have spaces",
        ),
        (["--results", "a.csv", "--results", "b.csv", "list", "images"], "--results: is given twice"),
        (["-t", "1", "--threads=2", "list", "images"], "--threads: is given twice"),
        (["--quiet=secret", "list", "images"], "--quiet: takes no value"),
        (["list", "images", "--threads"], "--threads: expected one argument"),
        (["--max-size", "10X", "list", "images"], "--max-size: must be a size such as 200M, not '10X'"),
        (["--max-size", "0", "list", "images"], "--max-size: must be between 1 and 1000000000000, not 0"),
        (["--max-size", "2000G", "list", "images"], "--max-size: must be between 1 and 1000000000000"),
        (["--timeout", "1e7", "list", "images"], "--timeout: must be between 0.001 and 1000000, not 10000000.0"),
        (["--retries", "9" * 5000, "list", "images"], "--retries: must be between 0 and 1000000000"),
        (["-H", "@", "list", "images"], "--header: @: cannot be read: No such file or directory"),
        (["-H", "@missing", "list", "images"], "--header: @missing: cannot be read: No such file or directory"),
        (["-H", "@/dev/zero", "list", "images"], "--header: @/dev/zero: longer than 65536 characters"),
        (["-H", "@/bin/sh", "list", "images"], "--header: @/bin/sh: cannot be read: it must be text in UTF-8"),
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


UNKNOWN = {
    "--user me:secret": "use ~/.netrc",
    "--user=me:secret": "use ~/.netrc",
    "-u me:secret": "use ~/.netrc",
    "-ume:secret": "use ~/.netrc",
    "--pass secret": "use ~/.netrc",
    "--pass:secret": "use ~/.netrc",
    "--oauth2-bearer secret": "use ~/.netrc",
    "--proxy http://me:secret@proxy": "set HTTPS_PROXY",
    "-x me:secret@proxy": "set HTTPS_PROXY",
    "--log secret": "log lines go to standard error",
    "--res secret": "did you mean --results?",
    "--output-document=secret": "give the directory as the last argument",
    "-O secret": "give the directory as the last argument",
    "-Osecret": "give the directory as the last argument",
    "-P secret": "give the directory as the last argument",
    "--directory-prefix secret": "give the directory as the last argument",
    "-i secret": "give the list as the first argument",
    "--input-file secret": "give the list as the first argument",
    "-N": "only images that are new or have changed",
    "-nc": "use --skip-existing",
    "-c": "resumed",
    "-k": "use --insecure",
    "--no-check-certificate": "use --insecure",
    "-L": "redirects are followed",
    "-vL": "redirects are followed",
    "-t5vL": "must be a whole number, not '5vL'",
    "-e secret": "use -H 'Name: value'",
    "--limit-rate 1M": "--threads and --per-host",
    "-j 5": "use --threads N",
    "--max-connection-per-server=5": "use --per-host N",
    "--max-connection-per-sever=5": "use --per-host N",
    "--tries 3": "use --retries N",
    "--wait 1": "use --delay SECONDS",
    "--exclude secret": "leave the URLs out of the list",
    "--archive": "gets the time that its server gives",
    "--forse": "did you mean --force?",
    "-force": "did you mean --force?",
    "-threads 5": "did you mean --threads?",
    "--no-verify": "use --insecure",
    "--no-force": "lists all options",
    "--no-progres": "did you mean --no-progress?",
    "--xyzzy secret": "lists all options",
    "--=secret": "lists all options",
    "-5": "lists all options",
}


@pytest.mark.parametrize("typed", UNKNOWN)
def test_an_unknown_option_is_answered_with_what_was_probably_meant(typed: str) -> None:
    with pytest.raises(OptionError) as raised:
        parse([*typed.split(" "), "list", "images"], DEFAULTS, {})
    told = f"{flag(raised.value.option)}: {raised.value.fault}" if raised.value.option else str(raised.value)
    assert told.startswith("-")
    assert UNKNOWN[typed] in told
    assert "secret" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "typed", ["--user me:secret", "--user=me:secret", "--pass secret", "--log secret", "--res secret", "--max-size 10X"]
)
def test_an_option_is_never_abbreviated(server: Server, loader: Loader, typed: str) -> None:
    run = loader.run(urls_of(server, 2), *typed.split(" "), results=False)
    assert run.status == 2
    assert run.stderr.startswith(f"loader: {typed.split('=', maxsplit=1)[0].split(' ', maxsplit=1)[0]}: ")
    assert run.stderr.count("\n") == 1
    assert "secret" not in run.stderr
    assert server.requests == []
    assert not loader.directory.exists()


def test_no_advice_is_given_about_an_option_that_exists() -> None:
    flags = {each for option in all_options() for each in option.flags}
    assert not HABITS.keys() & (flags | {"-h", "--help", "--version", "--no-progress"})


@pytest.mark.parametrize("name", HABITS)
def test_every_habit_gets_its_own_sentence(name: str) -> None:
    with pytest.raises(OptionError) as raised:
        parse([name, "list", "images"], DEFAULTS, {})
    assert str(raised.value) == f"{name}: unknown option; {HABITS[name]}"


def test_what_follows_two_dashes_is_no_option() -> None:
    assert parse(["--", "--user", "-N"], DEFAULTS, {}).urls == "--user"


def test_a_value_that_looks_like_an_option_is_one_where_it_is_joined() -> None:
    command = parse(["--failed=--user", "--results", "-", "-t5", "-vv", "list", "images"], DEFAULTS, {})
    assert (command.failed, command.results, command.verbose) == (Path("--user"), "-", 2)
    assert command.settings["threads"] == 5


# Headers ----------------------------------------------------------------------------------------------------------


def _sent(server: Server) -> Mapping[str, str]:
    (request,) = server.requests
    return request.headers


def test_headers_come_from_a_file_and_from_the_environment(server: Server, loader: Loader) -> None:
    (loader.home / "headers").write_bytes(b"\xef\xbb\xbfAuthorization: Bearer secret\r\n\n  X-Own:  a b  \n")
    environment = {HEADERS_VARIABLE: "X-Env: 1\nx-own: replaced\n\nX-Line: replaced\n"}
    run = loader.run([server.url("/a.png")], "-H", "@headers", "-H", "X-Line: 2", environment=environment)
    assert run.status == 0
    sent = _sent(server)
    assert sent["authorization"] == "Bearer secret"
    assert (sent["x-own"], sent["x-env"], sent["x-line"]) == ("a b", "1", "2")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("X-A: 1\n\nsecret\n", "line 3: no colon; write it as 'Name: value'"),
        ("X-A: 1\nAuthorization secret\n", "line 2: no colon after 'Authorization'; write it as 'Name: value'"),
        ("se cret: 1\n", "malformed header name"),
        ("X-A: secret\nx-a: secret\n", "'x-a' is given twice"),
        ("X-A: secret\x07\n", "the value of 'X-A' must be text in Latin-1, without control characters"),
        ("X-A: secret\rX-B: 2\n", "the value of 'X-A' must be text in Latin-1, without control characters"),
        ("X-A: \u2603secret\n", "the value of 'X-A' must be text in Latin-1, without control characters"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_malformed_header_is_refused_without_being_repeated(
    server: Server, loader: Loader, lines: str, fault: str, source: str
) -> None:
    (loader.home / "headers").write_bytes(lines.encode())
    options = ["-H", "@headers"] if source == "file" else []
    environment = {HEADERS_VARIABLE: lines} if source == "environment" else {}
    run = loader.run([server.url("/a.png")], *options, environment=environment, results=False)
    assert run.status == 2
    assert run.stderr.startswith("loader: --header: " if source == "file" else f"loader: {HEADERS_VARIABLE}")
    assert fault in run.stderr
    assert "secret" not in run.stderr
    assert server.requests == []

"""Promises of the manual page and the shells' completions: they are the parser's, and the shells take them."""

from __future__ import annotations

import argparse
import os
import pty
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path

import pytest

from image_loader.cli.parser import build
from image_loader.loader import DEFAULTS

CHECKOUT = Path(__file__).parents[1]
SHARE = CHECKOUT / "share"
PAGE = SHARE / "man" / "man1" / "loader.1"
COMPLETIONS = {
    "bash": SHARE / "bash-completion" / "completions" / "loader",
    "zsh": SHARE / "zsh" / "site-functions" / "_loader",
    "fish": SHARE / "fish" / "vendor_completions.d" / "loader.fish",
}
BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$(complete -p loader | sed 's/.*-F \\([^ ]*\\) .*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source $argv[1]; complete -C (string join ' ' -- $argv[2..])"
ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1:h \$fpath); autoload -Uz compinit; compinit -u -D"
zpty -w shell "zstyle ':completion:*' format %d; print -r REA''DY"
zpty -r shell output '*READY*'
shift
zpty -w -n shell "$*"$'\t\t'
zpty -r shell output "*$EXPECTED*"
print -r -- $output
"""

pytestmark = pytest.mark.skipif(not SHARE.is_dir(), reason="there is no checkout here, only the installed package")


def options() -> list[argparse.Action]:
    return [action for action in build(DEFAULTS).actions.values() if action.option_strings]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    finished = subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **environment}, capture_output=True,
        text=True, check=True, timeout=60,
    )  # fmt: skip
    assert finished.stderr == ""
    return finished.stdout


def completed(shell: str, *words: str, cwd: Path) -> set[str]:
    """Return what a shell offers for the last of the words."""
    command = {"bash": ("bash", "--norc", "-c", BASH, "bash"), "fish": ("fish", "--no-config", "-c", FISH, "--")}[shell]
    lines = run(*command, str(COMPLETIONS[shell]), "loader", *words, cwd=cwd, HOME=str(cwd)).splitlines()
    return {line.partition("\t")[0].rstrip("/") for line in lines}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "urls.txt").touch()
    (tmp_path / "images").mkdir()
    return tmp_path


def test_what_is_committed_is_what_the_parser_gives(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SHARE / "generate.py", tmp_path], check=True)
    for path in (PAGE, *COMPLETIONS.values()):
        assert path.read_text() == (tmp_path / path.relative_to(SHARE)).read_text(), "run share/generate.py"


def test_each_is_installed_where_it_is_looked_for() -> None:
    configuration = ConfigParser()
    configuration.read(CHECKOUT / "setup.cfg")
    paths = [path.relative_to(CHECKOUT) for path in (PAGE, *COMPLETIONS.values())]
    assert dict(configuration["options.data_files"]) == {str(path.parent): str(path) for path in paths}


@needs("man")
def test_the_manual_page_has_every_option_and_nothing_that_groff_warns_of() -> None:
    text = run("man", "--warnings", "--local-file", str(PAGE), MANWIDTH="120")
    assert re.search(r"loader [-‐] turn a list", text)
    for title in (
        "SYNOPSIS",
        "OPTIONS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "NAMES",
        "FRESHNESS",
        "REASONS",
        "EXAMPLES",
        "SEE ALSO",
    ):
        assert text.count(f"\n{title}\n") == 1
    for option in options():
        assert ", ".join(option.option_strings) in re.sub(r" [A-Z]+(?=,)", "", text)


@pytest.mark.parametrize("shell", [pytest.param(shell, marks=needs(shell)) for shell in ("bash", "fish")])
def test_a_shell_completes_options_choices_files_and_directories(shell: str, home: Path) -> None:
    names = {name for option in options() for name in option.option_strings if name.startswith("--")}
    assert completed(shell, "--", cwd=home) >= names
    assert completed(shell, "--layout", "", cwd=home) == {"flat", "host", "hash", "path"}
    assert completed(shell, "--failed", "", cwd=home) == {"urls.txt", "images"}
    assert completed(shell, "", cwd=home) >= {"urls.txt", "images"}
    assert completed(shell, "urls.txt", "", cwd=home) == {"images"}


@needs("bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("urls.txt im", "urls.txt images/"),
        ("-vv urls.txt im", "-vv urls.txt images/"),
        ("--layout=hash urls.txt im", "--layout=hash urls.txt images/"),
        ("--failed=url", "--failed=urls.txt"),
    ],
)
def test_bash_completes_names_whatever_stands_before_them(words: str, expected: str, home: Path) -> None:
    """It is Readline that completes names, so this takes a terminal."""
    ours, theirs = pty.openpty()
    command = ("bash", "--norc", "--noprofile", "-i")
    typed = f'. {COMPLETIONS["bash"]}; loader() {{ echo "<$*>"; exit; }}\nloader {words}\t\n'
    with subprocess.Popen(command, cwd=home, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True):
        os.close(theirs)
        os.write(ours, typed.encode())
        with os.fdopen(ours, "rb", buffering=0) as screen, suppress(OSError):  # EIO: the shell has ended.
            shown = bytearray()
            while chunk := screen.read(1024):
                shown += chunk
    assert f"<{expected}>" in shown.decode()


@needs("zsh")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--re"], "--report*--results*--retries*--revalidate"),
        (["--layout", ""], "flat*hash*host"),
        (["--failed", ""], "images*urls.txt"),
        (["u"], "urls.txt"),
        (["urls.txt", ""], "urls.txt images"),
        (["--header", ""], "HEADER"),
    ],
)
def test_zsh_completes_options_choices_files_and_directories(words: list[str], expected: str, home: Path) -> None:
    command = ("zsh", "-f", "-c", ZSH, "zsh", str(COMPLETIONS["zsh"]), "loader", *words)
    output = run(*command, cwd=home, HOME=str(home), EXPECTED=expected)
    assert "not found" not in output
    assert "unmatched" not in output

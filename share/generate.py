"""Write the manual page and the completions of ``loader`` from its parser: ``share/generate.py [FOLDER]``."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

from image_loader import __version__
from image_loader.cli.parser import build
from image_loader.loader import DEFAULTS

_COMPLETIONS = {
    "bash": "bash-completion/completions/loader",
    "zsh": "zsh/site-functions/_loader",
    "fish": "fish/vendor_completions.d/loader.fish",
}
# argparse-manpage leaves this one out.
_VERSION_ENTRY = ".TP\n\\fB\\-\\-version\\fR\n"
_HELP_ENTRY = ".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nshow the options and exit\n\n"
# Bash completes file names itself where shtab's script knows nothing: after -vv, and after --option=.
_BASH_FALLBACK = "complete -o bashdefault ", "complete -o bashdefault -o default "
_COMPLETED = {"FILE": shtab.FILE, "URLFILE": shtab.FILE, "DIRECTORY": shtab.DIRECTORY}


def completion(shell: str) -> str:
    """Return the completion script for one shell."""
    parser = build(DEFAULTS)
    for action in parser.actions.values():
        if not action.option_strings:
            action.help = str(action.metavar)  # zsh shows shtab's escapes of anything longer
        if action.metavar in _COMPLETED:
            action.complete = _COMPLETED[action.metavar]  # type: ignore[attr-defined]
    script = shtab.complete(parser, shell, root_prefix="loader")
    return script.replace(*_BASH_FALLBACK) if shell == "bash" else script


def manual() -> str:
    """Return the manual page, the parser's epilog as sections of their own."""
    command = build(DEFAULTS)
    epilog, command.epilog = command.epilog or "", None
    page = Manpage(command, {"project_name": "image_loader", "version": __version__, "manual_title": "User Commands"})
    page.date = ""  # a page that is generated anew is the same
    page.description = "turn a list of image URLs into a directory of whole, current images"
    text = str(page).replace(_VERSION_ENTRY, _HELP_ENTRY + _VERSION_ENTRY)
    return text + "".join(map(_section, epilog.strip().split("\n\n")))


def _section(paragraph: str) -> str:
    title, _, text = paragraph.partition(":")
    text = textwrap.dedent(text).strip().replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    body = f".nf\n{text}\n.fi" if "\n" in text else text
    return f".SH {title.upper()}\n{body}\n"


def main() -> None:
    """Write all of them below the folder, which is this one if none is named."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    folder = arguments.parse_args().folder
    texts = {path: completion(shell) for shell, path in _COMPLETIONS.items()}
    for path, text in {"man/man1/loader.1": manual(), **texts}.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

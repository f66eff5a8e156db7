"""Write the manual page, the completions and the README's table of options: ``share/generate.py [FOLDER]``.

They are made from the parser and from the reference pages of the documentation.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path

import docutils.core
import docutils.writers.manpage
import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]
from docutils import nodes
from docutils.parsers.rst import roles

from image_loader import __version__
from image_loader.cli.parser import build
from image_loader.loader import DEFAULTS
from image_loader.option import Option, Switch
from image_loader.settings import FILES, IMAGES, LIMITS, OUTPUT, REQUESTS, all_options

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
_README = Path(__file__).parents[1] / "README.rst"
_TABLE_BEGIN = ".. options: written by share/generate.py"
_TABLE_END = ".. end of options"
_REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
_PAGES = ("environment", "names", "freshness", "reasons")
_SEE_ALSO = """\
.SH SEE ALSO
\\fBcurl\\fR(1), \\fBwget\\fR(1), \\fBjq\\fR(1), \\fBcrontab\\fR(5), \\fBsystemd.timer\\fR(5), \\fBnetrc\\fR(5)
"""
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
    """Return the manual page: the parser's options, then the pages of the reference."""
    command = build(DEFAULTS)
    epilog, command.epilog = command.epilog or "", None
    page = Manpage(command, {"project_name": "image_loader", "version": __version__, "manual_title": "User Commands"})
    page.date = ""  # a page that is generated anew is the same
    page.description = "turn a list of image URLs into a directory of whole, current images"
    text = str(page).replace(_VERSION_ENTRY, _HELP_ENTRY + _VERSION_ENTRY)
    sections = dict(map(_section, epilog.strip().split("\n\n")))
    for title in ("ENVIRONMENT", "REASONS"):
        del sections[title]  # The reference has more of it.
    examples = sections.pop("EXAMPLES")
    heading, _, options = text.partition(".SH NAME\n")
    macros, reference = _reference()
    return f"{heading}{macros}.SH NAME\n{_grouped(options)}{''.join(sections.values())}{reference}{examples}{_SEE_ALSO}"


def options_table() -> str:
    """Return the README's table of options."""
    rows = [(_names(option), _told(option)) for option in all_options() if option.flags[0].startswith("-")]
    rows += [("``-h``, ``--help``", "show all options and exit"), ("``--version``", "show the version and exit")]
    border = " ".join("=" * max(map(len, column)) for column in zip(*rows, strict=True))
    width = border.index(" ")
    return "\n".join([border, *(f"{names:{width}} {told}" for names, told in rows), border])


def readme(text: str) -> str:
    """Return the README with its table of options anew."""
    return re.sub(f"(?s)({_TABLE_BEGIN}\n\n).*?(\n*{_TABLE_END})", rf"\g<1>{options_table()}\n\n{_TABLE_END}", text)


def _names(option: Option) -> str:
    value = f" {option.kind.metavar or option.keyword.upper()}" if option.takes_value else ""
    flags = [*option.flags[:-1], option.flags[-1] + value]
    if isinstance(option.kind, Switch):
        flags.append(f"--no-{option.keyword}")
    return ", ".join(f"``{flag}``" for flag in flags)


def _told(option: Option) -> str:
    shown = option.shown(DEFAULTS.get(option.keyword))
    return f"{option.help} (default: ``{shown}``)" if shown else option.help


def _grouped(text: str) -> str:
    """Put the groups of options into one section: one of them is called like another section, FILES."""
    for group in (IMAGES, LIMITS, REQUESTS, FILES, OUTPUT):
        before = ".SH OPTIONS\n" if group == IMAGES else ""
        text = text.replace(f".SH {group.upper()}\n", f"{before}.SS {group.capitalize()}\n")
    return text


def _section(paragraph: str) -> tuple[str, str]:
    title, _, text = paragraph.partition(":")
    text = textwrap.dedent(text).strip().replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    body = f".nf\n{text}\n.fi" if "\n" in text else text
    return title.upper(), f".SH {title.upper()}\n{body}\n"


def _reference() -> tuple[str, str]:
    """Return the macros that docutils uses, and the pages of the reference as sections."""
    for role in ("doc", "option", "ref"):
        roles.register_local_role(role, _text_of_link)  # type: ignore[arg-type]  # The stubs want links alone.
    source = "\n".join(["loader\n######\n", *map(_page, _PAGES)])
    page = docutils.core.publish_string(
        source, writer=docutils.writers.manpage.Writer(), settings_overrides={"output_encoding": "unicode"}
    )
    macros, _, text = page[page.index(".nr rst2man") :].partition(".TH ")
    text = text[text.index(".SH", text.index(".SH Name") + 1) : text.rindex('.\\"')]
    return macros, re.sub(r"(?m)^\.SH .*$", lambda match: match[0].upper(), text)


def _page(name: str) -> str:
    text = re.sub(r"(?m)^\.\. _.*:\n\n", "", (_REFERENCE / f"{name}.rst").read_text(encoding="utf-8"))
    if name != "environment":
        return text
    # Its parts are sections of their own.
    return re.sub(r"(?m)^-{3,}$", lambda match: "=" * len(match[0]), text.partition("\n\n")[2])


def _text_of_link(_: str, raw: str, text: str, *__: object) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    return [nodes.literal(raw, re.sub(r"\s*<[^>]*>$", "", text))], []


def main() -> None:
    """Write all of them below the folder, which is this one if none is named; and the README, if it is."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    folder = arguments.parse_args().folder
    texts = {path: completion(shell) for shell, path in _COMPLETIONS.items()}
    for path, text in {"man/man1/loader.1": manual(), **texts}.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    if folder == Path(__file__).parent:
        _README.write_text(readme(_README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

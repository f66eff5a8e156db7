"""A Sphinx extension: the options, the parameters of ``load``, and the options of other programs, from the source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import StrEnum
from textwrap import dedent

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from image_loader.cli.habits import HABITS
from image_loader.loader import DEFAULTS, load
from image_loader.option import Choice, Flag, Option, Seconds, Size, Switch, Whole
from image_loader.settings import all_options


class _Generated(SphinxDirective):
    """A directive whose lines of reStructuredText are generated."""

    def run(self) -> list[nodes.Node]:
        container = nodes.Element()
        lines = StringList(list(self.lines()), self.get_source_info()[0])
        self.state.nested_parse(lines, self.content_offset, container)
        return container.children

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        yield from ()


class Options(_Generated):
    """The options of one group of ``--help``.

    The content adds details: the name of an option on a line of its own, and indented paragraphs below it.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        group = [option for option in all_options() if option.group == self.arguments[0]]
        details = dict(_details("\n".join(self.content)))
        if not group or (unknown := details.keys() - {option.flags[-1] for option in group}):
            raise self.error(f"no such group of options, or no such option: {unknown if group else self.arguments[0]}")
        for option in sorted(group, key=lambda option: option.keyword != "urls"):
            yield from (f".. option:: {_signature(option)}", "", f"   {_sentence(option.help)}", "")
            yield from (f"   {line}" for line in details.get(option.flags[-1], "").splitlines())
            yield from ("", f"   {_sentence('; '.join(_facts(option)))}", "")


class Parameters(_Generated):
    """The parameters of ``load``; the content says what is different in Python, in the form of ``Options``."""

    has_content = True

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        by_keyword = {option.keyword: option for option in all_options()}
        details = dict(_details("\n".join(self.content)))
        yield from (".. program:: loader", "")
        for parameter in inspect.signature(load).parameters.values():
            option = by_keyword[parameter.name]
            kind = str(parameter.annotation).replace("os.PathLike", "PathLike")
            default = "" if parameter.default is parameter.empty else f", default ``{_default(parameter.default)}``"
            told = details.get(parameter.name) or _sentence(option.help)
            yield from (f"``{parameter.name}``: ``{kind}``{default}", "", *(f"   {line}" for line in told.splitlines()))
            yield from (f"   On the command line: :option:`{option.flags[-1]}`.", "")


class Habits(_Generated):
    """What to use instead of the options of other programs."""

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        names: dict[str, list[str]] = {}
        for name, instead in HABITS.items():
            names.setdefault(instead, []).append(f"``{name}``")
        yield from (".. list-table::", "   :header-rows: 1", "   :widths: 45 55", "", "   * - here", "     - there")
        for instead, found in names.items():
            yield from (f"   * - {_literal(_sentence(instead))}", f"     - {' '.join(found)}")


def _details(content: str) -> Iterator[tuple[str, str]]:
    for name, body in re.findall(r"^(\S+)\n((?:[ \t]+[^\n]*\n?|\n)*)", content, re.MULTILINE):
        yield name, dedent(body)


def _signature(option: Option) -> str:
    value = f" {option.kind.metavar}" if option.takes_value and option.kind.metavar else ""
    if isinstance(option.kind, Choice):
        value = f" {{{','.join(choice.value for choice in option.kind.choices)}}}"
    if not option.flags[0].startswith("-"):
        return option.flags[0]
    flags = [*option.flags, *([f"--no-{option.flags[-1][2:]}"] if isinstance(option.kind, Switch) else [])]
    return ", ".join(f"{flag}{value}" for flag in flags)


def _facts(option: Option) -> Iterator[str]:
    kind = option.kind
    if shown := option.shown(DEFAULTS.get(option.keyword)):
        yield f"Default: ``{shown}``"
    if isinstance(kind, Size):
        yield "in bytes, or with K, M or G for thousands, millions or thousands of millions"
    if isinstance(kind, Whole | Seconds):
        yield f"from {kind.least} to {kind.most}"
    if option.keyword in DEFAULTS or option.keyword in {"urls", "directory"}:
        yield f"in Python: ``{option.keyword}``" + (" (True or False)" if isinstance(kind, Flag) else "")
    else:
        yield "for the command alone"


def _default(value: object) -> str:
    return repr(str(value)) if isinstance(value, StrEnum) else repr(value)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _literal(text: str) -> str:
    """Return the text with options and names of variables as literals."""
    return re.sub(
        r"(?<![\w'`])(--?[A-Za-z][\w-]*(?: [A-Z]+\b)?|[A-Z]+_[A-Z]+|~/\.netrc|'[^']*'|2> FILE|@FILE)", r"``\1``", text
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("loader-options", Options)
    app.add_directive("loader-parameters", Parameters)
    app.add_directive("loader-habits", Habits)
    return {"parallel_read_safe": True}

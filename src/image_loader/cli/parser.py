"""The command line: words become values, made from the entries of the options in ``settings``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from image_loader import __version__
from image_loader.cli.console import Console
from image_loader.errors import OptionError
from image_loader.option import Choice, Count, Flag, Headers, Option, Switch, header_lines, named_once
from image_loader.settings import (
    ARGUMENTS,
    FILES,
    IMAGES,
    LIMITS,
    OUTPUT,
    REQUESTS,
    Command,
    Settings,
    all_options,
    options,
)

HEADERS_VARIABLE = "IMAGE_LOADER_HEADERS"
"""Environment variable with headers to send, one on each line."""
_GROUPS = (ARGUMENTS, IMAGES, LIMITS, REQUESTS, FILES, OUTPUT)
_USAGE = "usage: loader [options] URLFILE DIRECTORY"
_EPILOG = f"""\
examples:
  loader urls.txt images                    download; later runs download what is new or has changed
  zcat feed.gz | loader - images -v         read the list from a pipe, log each image
  loader urls.txt images --failed failed.txt; loader failed.txt images
  loader urls.txt images --layout hash      millions of images: spread them over folders
  loader feed.csv images --url-column "image link" --name-column id
  loader urls.txt images --delete --dry-run show what would be deleted, since it left the list

environment:
  {HEADERS_VARIABLE}                      headers to send, one a line; -H replaces those of the same name
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY         proxies to use
  REQUESTS_CA_BUNDLE                        CA certificates, unless --ca-bundle is given

reasons:
  man loader                                what each reason of a failure means, and what to do

exit status: 0 all saved, fresh or skipped; 1 some failed; 2 could not start or continue; 130, 143 interrupted
"""
_HELP = ("-h", "--help")
_VERSION = ("--version",)
# Of an unknown option no more is repeated than can be a name: the rest may be a secret.
_NAME = r"--[A-Za-z0-9][A-Za-z0-9.-]*"
# What argparse puts before a message about an option.
_FLAGS = r"^argument (?:-\w/)?(--[\w-]+)(?:, --[\w-]+)?: "
_SEE_HELP = "'loader --help' lists all options"


def parse(words: Sequence[str], defaults: Mapping[str, Any], environment: Mapping[str, str]) -> Command:
    """Read a command line; ``defaults`` are those of ``load``'s keywords. Raise ``OptionError`` for wrong use."""
    _check_names(words)
    dashed = [word for word in words if word.startswith("-")]
    parser = build(defaults, lambda option: _may_be_given(option, dashed))
    namespace, more = parser.parse_known_args(words)
    if more:
        # They are not repeated: a header without quotes ends in a secret.
        raise OptionError(
            f"too many arguments ({len(more)}); quote those that have spaces, as in -H 'Name: value'\n{_USAGE}"
        )
    given = vars(namespace)
    given["headers"] = _headers(given.get("headers", []), environment)
    own: dict[str, Any] = {}
    for field, option in options(Command).items():
        value = given.get(option.keyword, option.default)
        own[field] = option.checked(value) if option.takes_value else value
    keywords = [option.keyword for option in options(Settings).values()]
    return Command(**own, settings={name: given.get(name, defaults.get(name)) for name in keywords})


def build(defaults: Mapping[str, Any], is_wanted: Callable[[Option], bool] = lambda _: True) -> Parser:
    """Return the parser; the manual page and the shells' completions are made from it, too.

    To add all options takes as long as a hundred fresh images; only those that are wanted are added.
    """
    parser = Parser(
        "loader",
        usage=_USAGE.removeprefix("usage: "),
        description="Download the images of a list of URLs into a directory, and keep them current on each run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    # All of them in groups: for one that is in none, argparse (3.11) looks how wide the terminal is, by an import that
    # takes as long as a hundred fresh images.
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    entries = sorted(filter(is_wanted, all_options()), key=lambda option: option.keyword != "urls")
    parser.actions = {option.keyword: _add(groups[option.group], option, defaults) for option in entries}
    output = groups[OUTPUT]
    for flags, text, told in (
        (_HELP, parser.format_help, "show this text and exit"),
        (_VERSION, lambda: f"image_loader {__version__}\n", "show the version and exit"),
    ):
        parser.actions[flags[-1][2:]] = output.add_argument(*flags, action=_Show, text=text, help=told)
    return parser


def flag(keyword: str) -> str:
    """Return what the option of a keyword is called on the command line."""
    return next((option.flags[-1] for option in all_options() if option.keyword == keyword), keyword)


def _may_be_given(option: Option, dashed: Sequence[str]) -> bool:
    """Whether an option may be among the words that begin with a dash; the help ("h") shows all of them."""
    names = ["h", *(flag.lstrip("-") for flag in option.flags)]
    return not option.flags[0].startswith("-") or any(name in word for name in names for word in dashed)


def _add(group: argparse._ArgumentGroup, option: Option, defaults: Mapping[str, Any]) -> argparse.Action:
    kind = option.kind
    # A Choice shows its choices where others have a metavar.
    named: dict[str, Any] = {"help": _help(option, defaults.get(option.keyword)), "metavar": kind.metavar}
    if option.flags[0].startswith("-"):
        named["dest"] = option.keyword
    else:
        return group.add_argument(option.keyword, type=option.read, **named)
    if isinstance(kind, Flag):
        del named["metavar"]
        action: Any = {Switch: argparse.BooleanOptionalAction, Count: "count"}.get(type(kind), "store_true")
        return group.add_argument(*option.flags, action=action, **named)
    if isinstance(kind, Choice):
        named["choices"] = [choice.value for choice in kind.choices]
    action = "extend" if isinstance(kind, Headers) else _Once
    return group.add_argument(*option.flags, action=action, type=option.read, **named)


def _help(option: Option, default: Any) -> str:
    shown = option.shown(default)
    return (f"{option.help} (default: {shown})" if shown else option.help).replace("%", "%%")


def _headers(given: Sequence[tuple[str, str]], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of the command line and of the environment; the former replace the latter."""
    named = _named(given, "--header")
    others = _named(header_lines(environment.get(HEADERS_VARIABLE, ""), HEADERS_VARIABLE), HEADERS_VARIABLE)
    names = {name.lower() for name in named}
    return {name: value for name, value in others.items() if name.lower() not in names} | named


def _named(headers: Sequence[tuple[str, str]], place: str) -> dict[str, str]:
    try:
        return named_once(headers)
    except OptionError as error:
        raise OptionError(f"{place}: {error.fault}") from None


def _check_names(words: Sequence[str]) -> None:
    """Raise ``OptionError`` for an unknown option: argparse would first name the arguments that are missing."""
    flags = _flags()
    left = iter(words)
    for word in left:
        if word == "--":
            return
        if word.startswith("--"):
            name, separator, _ = word.partition("=")
            if name not in flags:
                raise _unknown(name, flags)
            if separator and not flags[name]:
                raise OptionError(f"{name}: takes no value")
            needs_word = flags[name] and not separator
        else:
            needs_word = word[:1] == "-" and word != "-" and _check_letters(word, flags)
        if needs_word:
            next(left, None)


def _check_letters(word: str, flags: Mapping[str, bool]) -> bool:
    """Do the same for a word of short options, such as ``-vt5``; return whether the next word is a value."""
    if f"-{word}" in flags:
        raise _unknown(word, flags)
    for place, letter in enumerate(word[1:], 2):
        if f"-{letter}" not in flags:
            raise _unknown(word, flags, f"-{letter}")
        if flags[f"-{letter}"]:
            return place == len(word)
    return False


def _flags() -> dict[str, bool]:
    """Return what each option is called, and whether it takes a value."""
    flags = {flag: option.takes_value for option in all_options() for flag in option.flags if flag.startswith("-")}
    switches = (option for option in all_options() if isinstance(option.kind, Switch))
    negative = {f"--no-{option.flags[-1][2:]}": False for option in switches}
    return flags | negative | dict.fromkeys((*_HELP, *_VERSION), False)


def _unknown(word: str, flags: Mapping[str, bool], letter: str = "") -> OptionError:
    """Return the error of an unknown option. Of its word no more is repeated than is a name: it may hold a secret."""
    from image_loader.cli.habits import HABITS, advice

    name = letter if letter and word not in HABITS else word
    if name.startswith("--"):
        name = match[0] if (match := re.match(_NAME, name)) else "--"
    return OptionError(f"{name}: unknown option; {advice(name, flags) or _SEE_HELP}")


class _Once(argparse.Action):
    """Store the value of an option that may be given only once."""

    def __call__(self, _: object, namespace: argparse.Namespace, values: Any, __: object = None) -> None:
        """Store the value."""
        if hasattr(namespace, self.dest):
            raise OptionError("is given twice", self.dest)
        setattr(namespace, self.dest, values)


class _Show(argparse.Action):
    """Print a text, and end."""

    def __init__(self, *, text: Callable[[], str], **settings: Any) -> None:
        super().__init__(nargs=0, **settings)
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the text."""
        if sys.stdout is None:  # It is closed.
            Console(sys.stderr).write(self._text().removesuffix("\n"))
            parser.exit()
        try:
            sys.stdout.write(self._text())
            sys.stdout.flush()
        except OSError as error:
            Console(sys.stderr).write(f"loader: standard output: cannot be written: {error.strerror}")
            os._exit(2)  # Python's own way out would try again, and print a traceback.
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions; ``actions`` are those of the options, by their keywords."""

    actions: dict[str, argparse.Action]

    def error(self, message: str) -> NoReturn:
        """Raise ``OptionError``."""
        message = re.sub(_FLAGS, r"\1: ", message)
        raise OptionError(f"{message}; {_SEE_HELP}\n{_USAGE}")

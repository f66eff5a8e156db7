"""Promises of the options: each has one home, and everything that tells of it agrees with that."""

from __future__ import annotations

import configparser
import inspect
import re
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from types import GeneratorType
from typing import Any, get_type_hints

import pytest
from packaging.requirements import Requirement

from image_loader import load, loader
from image_loader.cli.parser import parse
from image_loader.errors import OptionError
from image_loader.loader import DEFAULTS, settings_of
from image_loader.model import Layout
from image_loader.option import Choice, Flag, Name, Option, Seconds, Whole
from image_loader.settings import Command, Settings, all_options, options

CHECKOUT = Path(__file__).parents[1]
OTHER = {
    "url_column": (2, "2"),
    "name_column": ("id", "id"),
    "directory": ("images", Path("images")),
    "ignore_status": ([404, 410], frozenset({404, 410})),
    "max_delete": (5, 5),
    "max_size": (1234, 1234),
    "processes": (3, 3),
    "threads": (7, 7),
    "per_host": (6, 6),
    "delay": (2.5, 2.5),
    "timeout": (5, 5),
    "max_time": (0.5, 0.5),
    "retries": (9, 9),
    "headers": (UserDict({"X-A": "1"}), {"X-A": "1"}),
    "user_agent": ("mine", "mine"),
    "ca_bundle": (Path(__file__), __file__),
    "layout": ("hash", Layout.HASH),
    "index": ("own.sqlite3", Path("own.sqlite3")),
    "cluster": ("tcp://127.0.0.1:8786", "tcp://127.0.0.1:8786"),
}

"""For each option that is no flag a value other than its default, and what it is in the settings."""
NEEDED: dict[str, dict[str, Any]] = {"name_column": {"url_column": 2}, "max_delete": {"delete": True}}
"""What an option has to come with."""


def _settings(*arguments: Any, **options: Any) -> Settings:
    """Return the settings that ``load`` starts a run with."""
    run = load(*arguments, **options)
    assert isinstance(run, GeneratorType)
    assert run.gi_frame is not None
    settings = run.gi_frame.f_locals["settings"]
    assert isinstance(settings, Settings)
    return settings


def test_every_option_of_a_run_is_a_keyword_of_load_and_nothing_else_is() -> None:
    parameters = inspect.signature(load).parameters.values()
    keywords = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    assert sorted(["directory", *keywords]) == sorted(option.keyword for option in options(Settings).values())
    assert [each.name for each in parameters if each.name not in keywords] == ["urls", "directory"]


def test_every_parameter_of_load_has_a_type() -> None:
    hints = get_type_hints(load)
    assert hints.keys() - {"return"} == inspect.signature(load).parameters.keys()
    assert Any not in hints.values()


@pytest.mark.parametrize("field", options(Settings))
def test_load_hands_every_option_over(field: str) -> None:
    option = options(Settings)[field]
    value, stored = (True, True) if isinstance(option.kind, Flag) else OTHER[option.keyword]
    others = {"directory": "x"} | NEEDED.get(field, {})
    settings = _settings("list", **{**others, option.keyword: value})
    assert getattr(settings, field) == stored
    assert type(getattr(settings, field)) is type(stored)
    assert getattr(_settings([], "x") if field != "directory" else _settings([], "y"), field) != stored


def test_the_constants_at_the_top_are_the_defaults_and_the_rest_of_the_settings() -> None:
    settings = _settings([], "x")
    fields = settings._asdict()
    for name in ("threads", "per_host", "timeout", "max_time", "retries", "max_size", "user_agent", "layout"):
        assert fields[name] == getattr(loader, name.upper())
    for name in fields.keys() - options(Settings).keys() - {"one_processor", "exclusive", "window"}:
        assert fields[name] == getattr(loader, name.upper())
    assert settings.window == max(loader.WINDOW, loader.BATCH)
    assert settings.one_processor is False


def test_every_constant_at_the_top_is_explained() -> None:
    text = Path(loader.__file__).read_text().split("\n# ----", 2)[1]
    names = re.findall(r"^([A-Z_]+) = ", text, re.MULTILINE)
    assert len(names) >= 20
    assert re.findall(r'^([A-Z_]+) = [^\n]*\n"""', text, re.MULTILINE) == names


def test_a_default_is_a_value_that_the_option_takes() -> None:
    assert isinstance(settings_of({**DEFAULTS, "directory": "x"}), Settings)


def test_every_option_has_an_entry_of_its_own() -> None:
    keywords = [option.keyword for option in all_options()]
    flags = [flag for option in all_options() for flag in option.flags]
    assert len(set(keywords)) == len(keywords)
    assert len(set(flags)) == len(flags)
    assert set(Command._fields) - options(Command).keys() == {"settings"}
    constants = {field for field in Settings._fields if hasattr(loader, field.upper())}
    assert set(Settings._fields) - options(Settings).keys() - constants == {"exclusive"}


def test_what_is_not_given_has_its_default() -> None:
    command = parse(["urls.txt", "images"], DEFAULTS, {})
    _, urls, *others = command
    assert urls == "urls.txt"
    assert not any(others)
    assert not [value for value in (*command, *settings_of(command.settings)) if isinstance(value, Option)]


# The README -------------------------------------------------------------------------------------------------------


def _rows() -> dict[str, str]:
    """Return the rows of the README's table of options: what each of them says, by its long flag."""
    table = (CHECKOUT / "README.rst").read_text().partition("\n.. options:")[2].partition("\n.. end of options")[0]
    rows = re.findall(r"^(``-.*?``)  *([^`\s].*)$", table, re.MULTILINE)
    return {flag: text for names, text in rows for flag in re.findall(r"``(--[a-z-]+)", names)}


@pytest.mark.skipif(not (CHECKOUT / "README.rst").exists(), reason="there is no checkout here")
def test_the_readme_has_every_option_with_its_default_and_no_other() -> None:
    rows = _rows()
    flags = {option.flags[-1] for option in all_options() if option.flags[0].startswith("-")}
    assert rows.keys() - flags == {"--no-progress", "--version", "--help"}
    assert flags - rows.keys() == set(), "run share/generate.py"
    for option in all_options():
        if option.flags[-1] in rows:
            assert rows[option.flags[-1]].startswith(option.help), "run share/generate.py"
    for option in options(Settings).values():
        if isinstance(option.kind, Whole | Seconds | Choice):
            shown = option.kind.shown(DEFAULTS[option.keyword])
            assert rows[option.flags[-1]].endswith(f" (default: ``{shown}``)"), "run share/generate.py"


# What is refused --------------------------------------------------------------------------------------------------


def _outside() -> Iterator[tuple[Option, Any]]:
    for option in options(Settings).values():
        if isinstance(option.kind, Whole | Seconds):
            yield option, option.kind.least - 1
            yield option, option.kind.most + 1
            yield option, float("nan") if isinstance(option.kind, Seconds) else -(10**5000)
            yield option, float("inf") if isinstance(option.kind, Seconds) else 10**5000


@pytest.mark.parametrize(("option", "value"), list(_outside()), ids=lambda value: getattr(value, "keyword", ""))
def test_a_number_outside_its_range_is_refused_with_the_range(option: Option, value: Any) -> None:
    assert isinstance(option.kind, Whole | Seconds)
    with pytest.raises(OptionError) as raised:
        load([], "x", **{option.keyword: value})
    assert str(raised.value).startswith(f"{option.keyword}: must be between {option.kind.least} and {option.kind.most}")
    for limit in (option.kind.least, option.kind.most):
        assert option.checked(limit) == limit


WRONG = [
    ({"threads": "8"}, "threads: must be a whole number, not '8'"),
    ({"threads": True}, "threads: must be a whole number, not True"),
    ({"threads": None}, "threads: must be a whole number, not None"),
    ({"threads": 2.5}, "threads: must be a whole number, not 2.5"),
    ({"per_host": [1]}, "per_host: must be a whole number, not list"),
    ({"retries": 2.5}, "retries: must be a whole number, not 2.5"),
    ({"max_size": "200M"}, "max_size: must be a whole number, not '200M'"),
    ({"timeout": "10"}, "timeout: must be a number of seconds, not '10'"),
    ({"timeout": float("nan")}, "timeout: must be between 0.001 and 1000000, not nan"),
    ({"max_time": None}, "max_time: must be a number of seconds, not None"),
    ({"force": "no"}, "force: must be True or False, not 'no'"),
    ({"verify": 1}, "verify: must be True or False, not 1"),
    ({"layout": 3}, "layout: must be 'flat', 'host', 'hash' or 'path', not 3"),
    ({"layout": None}, "layout: must be 'flat', 'host', 'hash' or 'path', not None"),
    ({"layout": []}, "layout: must be 'flat', 'host', 'hash' or 'path', not list"),
    ({"headers": ["X-A: secret"]}, "headers: must be a mapping of names to values, not list"),
    ({"headers": "X-A: secret"}, "headers: must be a mapping of names to values, not str"),
    ({"headers": {"X": 5}}, "headers: the value of 'X' must be text in Latin-1, without control characters"),
    ({"headers": {5: "X"}}, "headers: malformed header name"),
    ({"headers": {"X-A": "1", "x-a": "secret"}}, "headers: 'x-a' is given twice"),
    ({"headers": {"Accept-Encoding": "br"}}, "headers: Accept-Encoding: br cannot be decoded; leave it out (gzip and"),
    ({"headers": {"accept-encoding": "gzip, br;q=0.5"}}, "headers: Accept-Encoding: br cannot be decoded"),
    ({"headers": {"Accept-Encoding": "gzip;q=1.0,\tZSTD , *;q=0"}}, "headers: Accept-Encoding: zstd cannot be decoded"),
    ({"headers": {"Accept-Encoding": "compress"}}, "headers: Accept-Encoding: compress cannot be decoded"),
    ({"user_agent": None}, "user_agent: must be text in Latin-1, without control characters"),
    ({"user_agent": b"mine"}, "user_agent: must be text in Latin-1, without control characters"),
    ({"ca_bundle": 5}, "ca_bundle: must be a path, not 5"),
    ({"ca_bundle": ""}, "ca_bundle: an empty name"),
    ({"ca_bundle": "a\0b"}, "ca_bundle: the name holds a character that no file name can have"),
    ({"ca_bundle": "missing.pem"}, "ca_bundle: missing.pem: no such file or directory"),
    ({"cluster": "http://h:1"}, "cluster: must be tcp://HOST:PORT, tls://HOST:PORT, or a scheduler file"),
    ({"cluster": "tcp://u:secret@h:1"}, "cluster: must be tcp://HOST:PORT, tls://HOST:PORT, or a scheduler file"),
    ({"cluster": "tcp://h"}, "cluster: must be tcp://HOST:PORT, tls://HOST:PORT, or a scheduler file"),
    ({"cluster": 5}, "cluster: must be a path, not 5"),
    ({"cluster": ""}, "cluster: an empty name"),
    ({"index": "a\0b"}, "index: the name holds a character that no file name can have"),
    ({"index": b"own"}, "index: must be a path, not bytes"),
    ({"index": Path("http://u:secret@h/x")}, "index: must be a path, not a URL: http://h/x"),
    ({"directory": "a\0b"}, "directory: the name holds a character that no file name can have"),
    ({"directory": "\ud800"}, "directory: the name holds a character that no file name can have"),
    ({"directory": None}, "directory: must be a path, not None"),
    ({"directory": 5}, "directory: must be a path, not 5"),
    ({"directory": ""}, "directory: an empty name"),
    ({"directory": "https://u:secret@h/x?secret"}, "directory: must be a path, not a URL: https://h/x?…"),
    ({"urls": "https://u:secret@h/x.png"}, "urls: must be a path or an iterable of URLs, not one URL: https://h/x.png"),
    (
        {"urls": Path("https://u:secret@h/x.png")},
        "urls: must be a path or an iterable of URLs, not one URL: https://h/x.png",
    ),
    ({"urls": 5}, "urls: must be a path or an iterable of URLs, not int"),
    ({"urls": None}, "urls: must be a path or an iterable of URLs, not NoneType"),
    ({"urls": b"list.txt"}, "urls: must be a path or an iterable of URLs, not bytes"),
    ({"urls": "a\0b"}, "urls: the name holds a character that no file name can have"),
    ({"urls": ""}, "urls: an empty name"),
]


@pytest.mark.parametrize(("given", "told"), WRONG, ids=repr)
def test_what_makes_no_sense_is_refused_in_the_words_of_python(
    tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(OptionError) as raised:
        load(**{"urls": [], "directory": tmp_path / "images", **given})
    assert str(raised.value).startswith(told)
    assert "secret" not in str(raised.value)
    assert "--" not in str(raised.value)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    "value", ["gzip", "x-gzip, deflate;q=0.5", "identity", "*", "*;q=0.1", "", "gzip, br;q=0", "GZIP;q=1", "gzip,,"]
)
def test_a_coding_that_can_be_decoded_or_is_ruled_out_is_accepted(value: str) -> None:
    assert _settings([], "images", headers={"Accept-Encoding": value}).headers == {"Accept-Encoding": value}


def test_a_name_may_be_any_path(tmp_path: Path) -> None:
    for name in ("c:", "a:b", "http", "-", "\udcff"):
        assert Name().checked(name) == Path(name)


# Versions of other packages ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not (CHECKOUT / "setup.cfg").exists(), reason="there is no checkout here")
def test_the_versions_that_were_tested_are_those_that_are_allowed() -> None:
    text = (CHECKOUT / "setup.cfg").read_text().partition("install_requires =\n")[2].partition("\n\n")[0]
    wanted = {each.name: each.specifier for each in map(Requirement, text.splitlines())}
    lines = (CHECKOUT / "requirements.txt").read_text().splitlines()
    tested = {each.name: each.specifier for each in map(Requirement, (line for line in lines if line[0] != "#"))}
    assert tested.keys() == wanted.keys()
    for name, specifier in tested.items():
        (pin,) = specifier
        assert pin.operator == "=="
        assert wanted[name].contains(pin.version)
    for name in ("requests", "urllib3", "filelock"):
        assert "<" in {each.operator for each in wanted[name]}


@pytest.mark.skipif(not (CHECKOUT / "setup.cfg").exists(), reason="there is no checkout here")
def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    """Those of what is needed to run the tests, but for descriptions of types, whose versions say little."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    texts = [config["options"]["install_requires"]]
    texts += [
        config["options.extras_require"][extra] for extra in ("verify", "report", "completion", "cluster", "testing")
    ]
    needed = [
        Requirement(line) for text in texts for line in text.split("\n") if line and not line.startswith("types-")
    ]
    floors = {each.name: one.version for each in needed for one in each.specifier if one.operator in (">=", "==")}
    assert {each.name for each in needed} == {*floors, "image_loader"}
    pins = [
        Requirement(line)
        for line in (CHECKOUT / "tests" / "oldest.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert {pin.name: str(pin.specifier) for pin in pins} == {name: f"=={floor}" for name, floor in floors.items()}

"""What an option is: its names, what values it takes, its help; and the kinds of values there are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, ParamSpec

from image_loader.errors import OptionError
from image_loader.url import redacted

_P = ParamSpec("_P")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
# As a Path, a URL has one slash left; a directory may well be named like "c:".
_URL_START = r"(?i)\s*(?:https?:/|[a-z][a-z0-9+.-]*://)"
_ADDRESS = r"(?:tcp|tls)://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):[0-9]{1,5}"
# Compiled where they are needed: most runs send no header but the default ones.
_HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER_VALUE = r"[\t\x20-\x7e\xa0-\xff]*"
_RULED_OUT = r"q=0(?:\.0*)?"  # a weight (RFC 9110, 12.4.2)
_DECODABLE = frozenset({"gzip", "x-gzip", "deflate", "identity", "*"})
# The name is not repeated, since it may be a secret.
_MALFORMED_NAME = "malformed header name before the colon; write it as 'Name: value'"
_LONGEST_QUOTED = 50  # characters of a value that a message repeats
_LONGEST_HEADER_FILE = 65536  # characters
_LEAST_STATUS, _MOST_STATUS = 400, 599  # those of failures (RFC 9110, 15)
_MOST_DIGITS = 20  # of a whole number; with more, it is out of any range


# The kinds of values. Each reads a word of the command line (``read``), checks a value and returns it as it is stored
# (``checked``), and shows a default in the help (``shown``). The first two raise ``OptionError``. It says what the
# value must be; the name of the option is added by ``Option``.


class Flag:
    """True or false; on the command line, an option without a value."""

    metavar: str | None = None

    def checked(self, value: object) -> bool:
        """Return the value."""
        if not isinstance(value, bool):
            raise OptionError(f"must be True or False{_instead(value)}")
        return value

    def shown(self, _: object) -> str:
        """Show no default: it is always off."""
        return ""


class Switch(Flag):
    """True, false, or neither: ``--name`` and ``--no-name``."""


class Count(Flag):
    """How often an option without a value is given."""


class Whole:
    """A whole number within a range."""

    metavar: str | None = "N"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def read(self, word: str) -> int:
        """Return the number."""
        try:
            return int(word[:_MOST_DIGITS])
        except ValueError:
            raise OptionError(f"must be a whole number{_instead(word)}") from None

    def checked(self, value: object) -> int:
        """Return the number, if it is in the range."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise OptionError(f"must be a whole number{_instead(value)}")
        if not self.least <= value <= self.most:
            raise OptionError(f"must be between {self.least} and {self.most}{_instead(value)}")
        return value

    def shown(self, value: int) -> str:
        """Show a default."""
        return str(value)


class Limit(Whole):
    """A whole number within a range, or None: a limit that the program sets itself, which ``told`` describes."""

    def __init__(self, least: int, most: int, told: str) -> None:
        super().__init__(least, most)
        self._told = told

    def checked(self, value: object) -> int | None:  # type: ignore[override]
        """Return the number or None."""
        return None if value is None else super().checked(value)

    def shown(self, _: object) -> str:
        """Describe what holds by default."""
        return self._told


class Size(Whole):
    """A number of bytes."""

    metavar = "SIZE"

    def read(self, word: str) -> int:
        """Return the number of bytes.

        >>> Size(1, 10**12).read("200M"), Size(1, 10**12).read("1.5g")
        (200000000, 1500000000)
        """
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMG]?)B?", word.strip().upper())
        if match is None:
            raise OptionError(f"must be a size such as 200M{_instead(word)}")
        return int(min(float(match[1]) * _UNITS[match[2]], 10.0**_MOST_DIGITS))

    def shown(self, value: int) -> str:
        """Show a default in its largest unit.

        >>> Size(1, 10**12).shown(500_000_000), Size(1, 10**12).shown(1234)
        ('500M', '1234')
        """
        unit = max((unit for unit in _UNITS if value % _UNITS[unit] == 0), key=_UNITS.__getitem__)
        return f"{value // _UNITS[unit]}{unit}"


class Seconds:
    """A number of seconds within a range."""

    metavar: str | None = "SECONDS"

    def __init__(self, least: float, most: int) -> None:
        self.least = least
        self.most = most

    def read(self, word: str) -> float:
        """Return the number."""
        try:
            return float(word)
        except ValueError:
            raise OptionError(f"must be a number of seconds{_instead(word)}") from None

    def checked(self, value: object) -> float:
        """Return the number, if it is in the range."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise OptionError(f"must be a number of seconds{_instead(value)}")
        if not self.least <= value <= self.most:
            raise OptionError(f"must be between {self.least} and {self.most}{_instead(value)}")
        return value

    def shown(self, value: float) -> str:
        """Show a default."""
        return f"{value:g}"


class Statuses:
    """HTTP statuses of failures: on the command line, numbers with commas between them."""

    metavar: str | None = "LIST"

    def read(self, word: str) -> frozenset[int]:
        """Return the statuses.

        >>> sorted(Statuses().read("404, 410"))
        [404, 410]
        """
        numbers = [part.strip() for part in word.split(",")]
        if not all(number.isascii() and number.isdigit() and len(number) == 3 for number in numbers):
            raise OptionError(f"must be HTTP statuses with commas between them, such as 404,410{_instead(word)}")
        return self.checked(map(int, numbers))

    def checked(self, value: object) -> frozenset[int]:
        """Return the statuses, if all of them are failures."""
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise OptionError(f"must be HTTP statuses, such as [404, 410]{_instead(value)}")
        statuses = list(value)
        for each in statuses:
            if not isinstance(each, int) or not _LEAST_STATUS <= each <= _MOST_STATUS:
                raise OptionError(f"HTTP statuses must be between {_LEAST_STATUS} and {_MOST_STATUS}{_instead(each)}")
        return frozenset(statuses)

    def shown(self, _: object) -> str:
        """Show no default: there are none."""
        return ""


class HeaderText:
    """The value of a header field."""

    metavar: str | None = "TEXT"

    def read(self, word: str) -> str:
        """Return the text."""
        return word

    def checked(self, value: object) -> str:
        """Return the text, if a header can hold it."""
        if not _fits_header(value):
            raise OptionError("must be text in Latin-1, without control characters")
        return str(value)

    def shown(self, value: str) -> str:
        """Show a default."""
        return value


class Headers:
    """Header fields by their names; on the command line, one of them at a time."""

    metavar: str | None = "HEADER"

    def read(self, word: str) -> list[tuple[str, str]]:
        """Return the header of a line ``Name: value``, or those of ``@FILE``."""
        return _headers_of_file(word[1:]) if word.startswith("@") else [_header(word)]

    def checked(self, value: object) -> Mapping[str, str]:
        """Return the headers, if all of them can be sent, no name is there twice, and what they ask for can be read."""
        if not isinstance(value, Mapping | None):
            # It is not repeated, since it may be a secret.
            raise OptionError(f"must be a mapping of names to values, not {type(value).__name__}")
        headers = named_once((value or {}).items())
        _check_codings(headers)
        return headers

    def shown(self, _: object) -> str:
        """Show no default: there are none."""
        return ""


class Choice:
    """One of a few words."""

    metavar: str | None = None

    def __init__(self, choices: type[StrEnum]) -> None:
        self.choices = choices

    def read(self, word: str) -> str:
        """Return the word's member."""
        return self.checked(word)

    def checked(self, value: object) -> StrEnum:
        """Return the member of that value."""
        if not isinstance(value, str) or value not in list(self.choices):
            *names, last = [repr(choice.value) for choice in self.choices]
            raise OptionError(f"must be {', '.join(names)} or {last}{_instead(value)}")
        return self.choices(value)

    def shown(self, value: str) -> str:
        """Show a default."""
        return str(value)


class Column:
    """A column of a table, by its heading or its number from 1, or None."""

    metavar: str | None = "COLUMN"

    def read(self, word: str) -> str:
        """Return the heading or number."""
        return word

    def checked(self, value: object) -> str | None:
        """Return the heading or number as text."""
        if value is None:
            return None
        is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not is_number and not (isinstance(value, str) and value.strip()):
            raise OptionError(f"must be a heading or a number from 1{_instead(value)}")
        return str(value)

    def shown(self, _: object) -> str:
        """Show no default: there is none."""
        return ""


class Name:
    """The name of a file or directory, or None where there is none by default."""

    def __init__(
        self, metavar: str = "FILE", stored: type[Path] | type[str] = Path, *, required: bool = False, advice: str = ""
    ) -> None:
        """``advice`` is for those who give a URL."""
        self.metavar: str | None = metavar
        self._stored = stored
        self._required = required
        self._advice = advice

    def read(self, word: str) -> str:
        """Return the name."""
        return word

    def checked(self, value: object) -> Path | str | None:
        """Return the name, if a file can have it and it is no URL."""
        if value is None and not self._required:
            return None
        name = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(name, str):
            raise OptionError(f"must be a path{_instead(value)}")
        if not name:
            raise OptionError("an empty name; is a variable not set? ('.' is the current directory)")
        if is_url(name):
            raise OptionError(f"must be a path, not a URL: {redacted(name)}{self._advice}")
        _check_encoding(name)
        return self._stored(name)

    def shown(self, _: object) -> str:
        """Show no default: there is none."""
        return ""


class Address(Name):
    """The address of a Dask scheduler, or the file that a scheduler wrote its address to."""

    def __init__(self) -> None:
        super().__init__("ADDRESS", str)

    def checked(self, value: object) -> str | None:
        """Return the address or the name.

        >>> Address().checked("tcp://10.0.0.1:8786"), Address().checked("scheduler.json")
        ('tcp://10.0.0.1:8786', 'scheduler.json')
        """
        if isinstance(value, str) and re.match(_URL_START, value):
            if re.fullmatch(_ADDRESS, value):
                return value
            raise OptionError("must be tcp://HOST:PORT, tls://HOST:PORT, or a scheduler file")
        return super().checked(value)  # type: ignore[return-value]


Kind = Flag | Whole | Seconds | Statuses | HeaderText | Headers | Choice | Column | Name


class Option:
    """One option or argument: its values, the heading that it has in the help, and its line there."""

    def __init__(
        self,
        names: str,
        kind: Kind,
        group: str,
        help: str,  # noqa: A002
        keyword: str = "",
        *,
        default: object = None,
    ) -> None:
        self.flags = names.split()
        """Its names on the command line, the long one last."""
        self.kind = kind
        self.group = group
        self.help = help
        self.keyword = keyword or self.flags[-1].lstrip("-").replace("-", "_").lower()
        """Its name in Python, like the last one on the command line unless it is given."""
        self.default = default
        """Its value where it is not given, for those of the command alone; the others' are in ``loader.py``."""

    @property
    def takes_value(self) -> bool:
        """Whether a word follows the option on the command line."""
        return not isinstance(self.kind, Flag)

    def shown(self, default: Any) -> str:
        """Return its default as the help shows it; nothing where there is none."""
        return self.kind.shown(default) if default is not None or isinstance(self.kind, Limit) else ""

    def read(self, word: str) -> Any:
        """Return the value of a word of the command line; raise ``OptionError`` that names this option."""
        if isinstance(self.kind, Flag):
            raise OptionError("takes no value", self.keyword)
        try:
            return self.kind.read(word)
        except OptionError as error:
            raise OptionError(error.fault, self.keyword) from None

    def checked(self, value: object) -> Any:
        """Return a value as it is stored; raise ``OptionError`` that names this option."""
        try:
            return self.kind.checked(value)
        except OptionError as error:
            raise OptionError(error.fault, self.keyword) from None


def _as_default(make: Callable[_P, object]) -> Callable[_P, Any]:
    """Return a function as it is, for which a type checker takes the result for a value of any type."""
    return make


entry = _as_default(Option)
"""Makes an option, which stands where its field has its default."""


def is_url(name: str) -> bool:
    """Whether what should be the name of a file is a URL."""
    return ":/" in name and re.match(_URL_START, name) is not None


def named_once(headers: Iterable[tuple[object, object]]) -> dict[str, str]:
    """Return headers by their names; raise ``OptionError`` for what cannot be sent, and for a name that comes twice.

    Names that differ in case are one name (RFC 9110, 5.1).
    """
    named: dict[str, tuple[str, str]] = {}
    for name, value in headers:
        if not isinstance(name, str) or not re.fullmatch(_HEADER_NAME, name):
            raise OptionError(_MALFORMED_NAME)
        if name.lower() in named:
            raise OptionError(f"{name!r} is given twice; join the values with a comma (cookies: with a semicolon)")
        if not _fits_header(value):
            raise OptionError(f"the value of {name!r} must be text in Latin-1, without control characters")
        named[name.lower()] = name, str(value)
    return dict(named.values())


def _check_codings(headers: Mapping[str, str]) -> None:
    """Raise ``OptionError`` for an ``Accept-Encoding`` whose answers could not be decoded."""
    accepted = next((value for name, value in headers.items() if name.lower() == "accept-encoding"), "")
    for token in accepted.split(","):
        coding, _, weight = token.lower().replace(" ", "").replace("\t", "").partition(";")
        if coding and coding not in _DECODABLE and not re.fullmatch(_RULED_OUT, weight):
            detail = f"Accept-Encoding: {coding[:_LONGEST_QUOTED]} cannot be decoded"
            raise OptionError(f"{detail}; leave it out (gzip and deflate can be decoded)")


def header_lines(text: str, place: str) -> list[tuple[str, str]]:
    """Return the headers of a text with one on each line; ``OptionError`` names the place of a malformed one."""
    headers = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                headers.append(_header(line))
            except OptionError as error:
                raise OptionError(f"{place}, line {number}: {error.fault}") from None
    return headers


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        # The rest may be a secret, and so may a single word.
        word, space, _ = line.partition(" ")
        place = f" after {word!r}" if space and re.fullmatch(_HEADER_NAME, word) else ""
        raise OptionError(f"no colon{place}; write it as 'Name: value'")
    return name.strip(), value.strip()


def _headers_of_file(name: str) -> list[tuple[str, str]]:
    try:
        # A Path would take an empty name for the current directory.
        with open(name, encoding="utf-8-sig", newline="\n") as file:  # noqa: PTH123
            text = file.read(_LONGEST_HEADER_FILE + 1)
    except OSError as error:
        raise OptionError(f"@{name}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise OptionError(f"@{name}: cannot be read: it must be text in UTF-8") from None
    if len(text) > _LONGEST_HEADER_FILE:
        raise OptionError(f"@{name}: longer than {_LONGEST_HEADER_FILE} characters")
    return header_lines(text, f"@{name}")


def _fits_header(value: object) -> bool:
    """Whether a header can hold this value (RFC 9110, 5.5, without obsolete line folding)."""
    if not isinstance(value, str):
        return False
    return (value.isascii() and value.isprintable()) or re.fullmatch(_HEADER_VALUE, value) is not None


def _check_encoding(name: str) -> None:
    try:
        encoded = os.fsencode(name)
    except UnicodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise OptionError("the name holds a character that no file name can have")


def _instead(value: object) -> str:
    """Say which value was given, if it is short.

    >>> _instead(0), _instead("many"), _instead([1]), _instead("9" * 1000)
    (', not 0', ", not 'many'", ', not list', '')
    """
    if not isinstance(value, str | int | float | None) or isinstance(value, StrEnum):
        return f", not {type(value).__name__}"
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return ""
    shown = repr(value)
    return f", not {shown}" if len(shown) <= _LONGEST_QUOTED else ""

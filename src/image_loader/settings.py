"""All that a run can be told: one entry for each option, and the settings that they and the constants make.

An option is one field here, with its entry. The parser, its help, the manual page, the completions and the checks are
made from the entries; the keywords of ``load`` and the README are held against them by tests. The defaults stand at the
top of ``loader.py``.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from image_loader.errors import OptionError
from image_loader.model import Layout
from image_loader.url import redacted

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
# As a Path, a URL has one slash left; a directory may well be named like "c:".
_URL_START = r"(?i)\s*(?:https?:/|[a-z][a-z0-9+.-]*://)"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_LONGEST_QUOTED = 50  # characters of a value that a message repeats
_MOST_DIGITS = 20  # of a whole number; with more, it is out of any range


class Group(StrEnum):
    """The headings of ``--help``, in their order."""

    ARGUMENTS = "arguments"
    IMAGES = "which images"
    LIMITS = "limits"
    REQUESTS = "requests"
    FILES = "files"
    OUTPUT = "output"


# The kinds of values. Each reads a word of the command line (``read``), checks a value and returns it as it is stored
# (``checked``), and shows a default in the help (``shown``). The first two raise ``OptionError`` that says what the
# value must be, and not yet of which option.


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
    """True, false, or decided by the circumstances: ``--name`` and ``--no-name``."""


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


class HeaderText:
    """The value of a header field."""

    metavar: str | None = "TEXT"

    def read(self, word: str) -> str:
        """Return the text."""
        return word

    def checked(self, value: object) -> str:
        """Return the text, if a header can hold it (RFC 9110, 5.5)."""
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise OptionError("must be text in Latin-1, without control characters")
        return value

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
        """Return the headers, if all of them can be sent and no name is there twice."""
        if not isinstance(value, Mapping | None):
            raise OptionError(f"must be a mapping of names to values{_instead(value)}")
        return named_once((value or {}).items())

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
        if value not in list(self.choices):
            *names, last = [repr(choice.value) for choice in self.choices]
            raise OptionError(f"must be {', '.join(names)} or {last}{_instead(value)}")
        return self.choices(str(value))

    def shown(self, value: str) -> str:
        """Show a default."""
        return str(value)


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


Kind = Flag | Whole | Seconds | HeaderText | Headers | Choice | Name


class Option(NamedTuple):
    """One option or argument.

    ``flags`` are what it is called on the command line, the long one last; ``keyword`` is what it is called in Python.
    """

    flags: tuple[str, ...]
    kind: Kind
    group: Group
    help: str
    name: str | None = None

    @property
    def keyword(self) -> str:
        """What the option is called in Python."""
        return self.name or self.flags[-1].lstrip("-").replace("-", "_").lower()

    @property
    def takes_value(self) -> bool:
        """Whether a word follows the option on the command line."""
        return not isinstance(self.kind, Flag)

    def read(self, word: str) -> Any:
        """Return the value of a word of the command line; raise ``OptionError`` for one that has none."""
        if isinstance(self.kind, Flag):
            raise OptionError("takes no value", self.keyword)
        try:
            return self.kind.read(word)
        except OptionError as error:
            raise OptionError(error.fault, self.keyword) from None

    def checked(self, value: object) -> Any:
        """Return a value as it is stored; raise ``OptionError`` for one that makes no sense."""
        try:
            return self.kind.checked(value)
        except OptionError as error:
            raise OptionError(error.fault, self.keyword) from None


class Settings(NamedTuple):
    """Everything a run can be told: the options, then the constants, which have the same names in ``loader.py``.

    Times are in seconds, sizes in bytes.
    """

    # A pool makes room for all its connections at once. A socket's timeout that does not fit into 31 bits of
    # milliseconds is cut to any other (CPython 3.11), and a thread can be told to wait for 292 years at most.
    directory: Annotated[
        Path,
        Option(
            ("DIRECTORY",),
            Name("DIRECTORY", required=True, advice="; the list comes first, then the directory"),
            Group.ARGUMENTS,
            "where to put the images; created if missing",
        ),
    ]
    force: Annotated[
        bool, Option(("-f", "--force"), Flag(), Group.IMAGES, "download every image, whether it has changed or not")
    ]
    revalidate: Annotated[
        bool,
        Option(
            ("--revalidate",),
            Flag(),
            Group.IMAGES,
            "ask the server about every image, even if its headers say that it is still fresh",
        ),
    ]
    verify: Annotated[
        bool,
        Option(
            ("--verify",),
            Flag(),
            Group.IMAGES,
            "decode each image and refuse damaged ones (needs the extra 'verify')",
        ),
    ]
    max_size: Annotated[int, Option(("--max-size",), Size(1, 10**12), Group.IMAGES, "largest image to accept")]
    threads: Annotated[int, Option(("-t", "--threads"), Whole(1, 10**5), Group.LIMITS, "downloads at once")]
    per_host: Annotated[int, Option(("--per-host",), Whole(1, 10**5), Group.LIMITS, "downloads at once from one host")]
    timeout: Annotated[
        float,
        Option(("--timeout",), Seconds(0.001, 10**6), Group.LIMITS, "time limit to connect, and between two bytes"),
    ]
    max_time: Annotated[
        float, Option(("--max-time",), Seconds(0.001, 10**9), Group.LIMITS, "time limit for one attempt at one image")
    ]
    retries: Annotated[
        int, Option(("--retries",), Whole(0, 10**9), Group.LIMITS, "retries of an image after a transient failure")
    ]
    headers: Annotated[
        Mapping[str, str],
        Option(
            ("-H", "--header"),
            Headers(),
            Group.REQUESTS,
            "header to send with each request, as 'Name: value', or @FILE with one header a line; may be repeated",
            "headers",
        ),
    ]
    user_agent: Annotated[
        str, Option(("-A", "--user-agent"), HeaderText(), Group.REQUESTS, "User-Agent header to send")
    ]
    ca_bundle: Annotated[
        str | None,
        Option(
            ("--ca-bundle",),
            Name("FILE", str),
            Group.REQUESTS,
            "CA certificates for HTTPS (file or directory)",
        ),
    ]
    insecure: Annotated[bool, Option(("--insecure",), Flag(), Group.REQUESTS, "do not check TLS certificates")]
    public_only: Annotated[
        bool, Option(("--public-only",), Flag(), Group.REQUESTS, "refuse private, loopback and link-local addresses")
    ]
    layout: Annotated[
        Layout,
        Option(
            ("--layout",),
            Choice(Layout),
            Group.FILES,
            "path of an image below DIRECTORY: name, host/name, or ab/cd/name from a hash of the URL",
        ),
    ]
    index_file: Annotated[
        Path | None,
        Option(
            ("--index",),
            Name(),
            Group.FILES,
            "where to store what is known of each image (default: DIRECTORY/.image_loader/index.sqlite3)",
        ),
    ]
    window: int
    window_size: int
    batch: int
    chunk: int
    pool_hosts: int
    connects: int
    host_failures: int
    host_patience: float
    backoff_cap: float
    retry_after_cap: float
    redirects: int
    flush_interval: float
    one_processor: bool = False


class Command(NamedTuple):
    """What the command alone can be told."""

    urls: Annotated[
        str,
        Option(
            ("URLFILE",),
            Name("URLFILE", str, required=True, advice="; pipe it in: echo URL | loader - DIRECTORY"),
            Group.ARGUMENTS,
            "list of image URLs, one a line, plain or gzip; '-' is standard input",
            "urls",
        ),
    ]
    results: Annotated[
        Path | None,
        Option(
            ("--results",),
            Name(),
            Group.FILES,
            "write one row per URL to a .jsonl or .csv file; '-' is JSON lines on standard output",
        ),
    ] = None
    failed: Annotated[
        Path | None,
        Option(("--failed",), Name(), Group.FILES, "write the URLs that failed: a list for the next run"),
    ] = None
    report: Annotated[
        Path | None,
        Option(
            ("--report",),
            Name(),
            Group.FILES,
            "write a web page about the run to an .html file (needs the extra 'report')",
        ),
    ] = None
    verbose: Annotated[
        int, Option(("-v", "--verbose"), Count(), Group.OUTPUT, "log each image; -vv: log each decision, too")
    ] = 0
    quiet: Annotated[bool, Option(("-q", "--quiet"), Flag(), Group.OUTPUT, "log only errors that end the run")] = False
    progress: Annotated[
        bool | None, Option(("--progress",), Switch(), Group.OUTPUT, "show a progress bar (default: at a terminal)")
    ] = None


def options(owner: type[Settings] | type[Command]) -> dict[str, Option]:
    """Return the entries of the options by their fields."""
    # The annotations are no strings here, so that nothing has to be evaluated: that would take a millisecond.
    marked = ((field, getattr(hint, "__metadata__", ())) for field, hint in owner.__annotations__.items())
    return {field: metadata[0] for field, metadata in marked if metadata}


def settings_from(values: Mapping[str, Any], constants: Mapping[str, Any]) -> Settings:
    """Put checked options, given by their keywords, and constants together; raise ``OptionError``."""
    checked = {field: option.checked(values[option.keyword]) for field, option in options(Settings).items()}
    settings = Settings(**checked, **constants)
    if settings.ca_bundle is not None and not os.path.exists(settings.ca_bundle):  # noqa: PTH110 (Path's raises)
        raise OptionError(f"{settings.ca_bundle}: no such file or directory", "ca_bundle")
    return settings


def is_url(name: str) -> bool:
    """Whether what should be the name of a file is a URL."""
    return re.match(_URL_START, name) is not None


def named_once(headers: Iterable[tuple[object, object]]) -> dict[str, str]:
    """Return headers by their names; raise ``OptionError`` for what cannot be sent, and for a name that comes twice.

    Names that differ in case are one name (RFC 9110, 5.1).
    """
    named: dict[str, tuple[str, str]] = {}
    for name, value in headers:
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise OptionError(
                "malformed header name before the colon; write it as 'Name: value'"
            )  # It may be a secret.
        if name.lower() in named:
            raise OptionError(f"{name!r} is given twice; join the values with a comma (cookies: with a semicolon)")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise OptionError(f"the value of {name!r} must be text in Latin-1, without control characters")
        named[name.lower()] = name, value
    return dict(named.values())


def header_lines(text: str, place: str) -> list[tuple[str, str]]:
    """Return the headers of a text with one on each line; ``OptionError`` names the place of a malformed one."""
    headers = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                headers.append(_header(line))
            except OptionError as error:
                raise OptionError(f"{place}, line {number}: {error}") from None
    return headers


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        # The rest may be a secret, and so may a single word.
        word, space, _ = line.partition(" ")
        place = f" after {word!r}" if space and _HEADER_NAME.fullmatch(word) else ""
        raise OptionError(f"no colon{place}; write it as 'Name: value'")
    return name.strip(), value.strip()


def _headers_of_file(name: str) -> list[tuple[str, str]]:
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OptionError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise OptionError(f"{name}: cannot be read: it must be text in UTF-8") from None
    return header_lines(text, name)


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
    (', not 0', ", not 'many'", ', not a list', '')
    """
    if not isinstance(value, str | int | float | None) or isinstance(value, StrEnum):
        return f", not a {type(value).__name__}"
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return ""
    shown = repr(value)
    return f", not {shown}" if len(shown) <= _LONGEST_QUOTED else ""


def all_options() -> Sequence[Option]:
    """Return the entries of all options, those of a run first."""
    return [*options(Settings).values(), *options(Command).values()]

"""The command ``loader`` and the library call ``load``: defaults, options, logging, signals, exit status."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run as a file, from a checkout: the package is found one folder up, and no module of ours hides another.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # As in __main__: no traceback while the modules are imported.

import argparse
import gc
import logging
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from image_loader import __version__, batch
from image_loader.cli.bar import Bar
from image_loader.cli.console import Console, LogHandler
from image_loader.cli.summary import OutcomeLog, Tally
from image_loader.errors import LoaderError, OptionError, UrlFileError
from image_loader.lists import urlfile
from image_loader.model import Layout, Outcome, Settings
from image_loader.store.directory import HIDDEN
from image_loader.store.index import FILE
from image_loader.url import redacted

# ---------------------------------------------------------------------------------------------------------------------
# What shapes memory, sockets, threads and time. Edit here: the command and the library call both take it from here.

THREADS = 32
"""Downloads at once; each takes a thread (some 100 kB), a socket and an open file."""
PER_HOST = 10
"""Downloads at once from one host, and idle connections kept for it."""
POOL_HOSTS = 256
"""Hosts whose connections are kept; with more at once, connections are thrown away instead of reused."""
TIMEOUT = 10.0
"""Seconds to connect, and between two bytes."""
MAX_TIME = 300.0
"""Seconds for one attempt at one image, from request to last byte, redirects included."""
RETRIES = 3
"""Further attempts after a failure that may pass."""
MAX_SIZE = 500_000_000
"""Bytes of the largest image accepted, decoded."""
MAX_PIXELS = 300_000_000
"""Pixels of the largest image that --verify decodes; 4 bytes of memory each, or more."""
DECODING_MEMORY = 1_500_000_000
"""Bytes of memory that all the images that --verify decodes at once may take together, beside 70 MB per processor."""
DECODING_TIME = 30
"""Seconds of processor time that --verify spends on one image; four times as many by the clock."""
CHUNK = 262_144
"""Bytes of a body that one thread holds in memory at once."""
WINDOW = 10_000
"""Lines of the list looked at ahead of the slowest download; some 1 kB each."""
WINDOW_SIZE = 4_000_000
"""Characters of the URLs that are looked at ahead; where they are very long, fewer lines are."""
BATCH = 100
"""Lines read, looked up in the index and decided upon together."""
FLUSH_INTERVAL = 1.0
"""Seconds between two commits of the index: what a crash forgets, and the next run asks for again."""
BACKOFF_CAP = 60.0
"""Seconds that a retry waits at most; before that 1, 2, 4 …, each with full jitter."""
RETRY_AFTER_CAP = 120.0
"""Seconds that a host is paused at most when it asks for it."""
HOST_FAILURES = 5
"""Connection-level failures in a row after which a host is only probed; pauses that it may ask for in a row."""
HOST_PATIENCE = 30.0
"""Seconds without any success after which such a host's images fail at once."""
ONE_PROCESSOR = True
"""Whether the command stays on one processor once it downloads, but for large bodies. Only one thread runs Python at a
time, and handing that right from one processor to another costs more than the other one brings; set it to False where
that processor may be busy."""
GARBAGE_INTERVAL = 100_000
"""Objects made between two searches for cyclic garbage, of which a run makes little: with Python's own 700, the command
would spend a twentieth of its time there."""
REDIRECTS = 10
"""Redirects followed for one image."""
USER_AGENT = f"image_loader/{__version__}"
"""What servers are told that we are."""
LAYOUT = Layout.FLAT
"""Where an image stands below the directory: flat, host or hash."""
# ---------------------------------------------------------------------------------------------------------------------

_LOG = logging.getLogger("image_loader")
# Without any handler, logging prints warnings on standard error: those of ``load`` are for whom its caller says.
_LOG.addHandler(logging.NullHandler())
_SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# As a Path, a URL has one slash left; a directory may well be named like "c:".
_URL_START = r"(?i)\s*(?:https?:/|[a-z][a-z0-9+.-]*://)"
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
# Least and most. A pool makes room for all its connections at once. A socket's timeout that does not fit into 31 bits
# of milliseconds is cut to any other (CPython 3.11), and a thread can be told to wait for 292 years at most.
_RANGES: dict[str, tuple[float, int]] = {
    "threads": (1, 10**5),
    "per_host": (1, 10**5),
    "timeout": (0.001, 10**6),
    "max_time": (0.001, 10**9),
    "retries": (0, 10**9),
    "max_size": (1, 10**12),
}
_EPILOG = """\
examples:
  loader urls.txt images                    download; run it again, and only what changed comes
  zcat feed.gz | loader - images -v         from a pipe, a line for each image
  loader urls.txt images --failed failed.txt; loader failed.txt images
  loader urls.txt images --layout hash      millions of images: a tree of folders

exit status: 0 all saved, fresh or skipped; 1 some failed; 2 could not start or go on; 130, 143 interrupted
"""


def load(
    urls: str | os.PathLike[str] | Iterable[str],
    directory: str | os.PathLike[str],
    *,
    force: bool = False,
    revalidate: bool = False,
    threads: int = THREADS,
    per_host: int = PER_HOST,
    timeout: float = TIMEOUT,
    max_time: float = MAX_TIME,
    retries: int = RETRIES,
    max_size: int = MAX_SIZE,
    headers: Mapping[str, str] | None = None,
    user_agent: str = USER_AGENT,
    ca_bundle: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    public_only: bool = False,
    layout: Layout | str = LAYOUT,
    verify: bool = False,
    index: str | os.PathLike[str] | None = None,
) -> Generator[Outcome, None, None]:
    """Download images into ``directory`` and yield the outcome of each line as it ends.

    ``urls`` is the path of a list, or the URLs themselves. Times are in seconds, sizes in bytes. The options are those
    of the command. Nothing is printed, no signal handler set; closing the iterator early ends the downloads that run.

    Raises ``OptionError`` for an option that makes no sense; when the first outcome is asked for or later, another
    ``LoaderError`` (those in ``image_loader.errors``) if the run cannot start or cannot go on.
    """
    if isinstance(urls, str | os.PathLike):
        _check_nul("URLFILE", urls)
    settings = _settings(
        directory,
        force=force,
        revalidate=revalidate,
        threads=threads,
        per_host=per_host,
        timeout=timeout,
        max_time=max_time,
        retries=retries,
        max_size=max_size,
        headers=headers,
        user_agent=user_agent,
        ca_bundle=ca_bundle,
        insecure=insecure,
        public_only=public_only,
        layout=layout,
        verify=verify,
        index=index,
    )
    lines = urlfile.read(urls, BATCH) if isinstance(urls, str | os.PathLike) else urlfile.from_strings(urls, BATCH)
    return batch.run(lines, settings, threading.Event())


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command, and end the process with its exit status."""
    arguments = parser().parse_args(argv)
    console, stop = Console(sys.stderr), _Stop()
    _log_to(console, logging.ERROR if arguments.quiet else max(logging.DEBUG, logging.WARNING - 10 * arguments.verbose))
    try:
        with stop.listening():
            failed = _run(arguments, console, stop).failed
        status = stop.status or (1 if failed else 0)
    except LoaderError as error:
        _LOG.error("loader: %s%s", error, _order_hint(error, arguments))
        status = stop.status or 2
    logging.shutdown()
    # Python's own way out would wait for threads that are blocked in a name look-up, which nothing can cut short; and
    # it takes a tenth of a run that has nothing to do.
    os._exit(status)


def _order_hint(error: LoaderError, arguments: argparse.Namespace) -> str:
    # Unlike Path's methods (3.11), these raise nothing where a name cannot be looked at, or is too long to be one.
    swapped = os.path.isfile(arguments.directory) or os.path.isdir(arguments.urls)  # noqa: PTH112, PTH113
    return "; the list comes first: loader URLFILE DIRECTORY" if isinstance(error, UrlFileError) and swapped else ""


def _run(arguments: argparse.Namespace, console: Console, stop: _Stop) -> Tally:
    """Make one run, and tell of it to the people and programs that want to know; return its counts."""
    settings = _settings(arguments.directory, **{name: getattr(arguments, name) for name in load.__kwdefaults__ or ()})
    settings = settings._replace(one_processor=ONE_PROCESSOR)
    _take_descriptors()
    gc.set_threshold(GARBAGE_INTERVAL)
    gc.enable()
    started, tally, log = time.monotonic(), Tally(), OutcomeLog(_LOG)
    with ExitStack() as stack:
        stack.callback(lambda: _summarize(tally, log, time.monotonic() - started))
        records = [tally.add, log.write, *_files(arguments, stack, stop)]
        tick = _bar(arguments, console, tally, stack)
        lines = urlfile.read(arguments.urls, settings.batch)
        for outcome in stack.enter_context(closing(batch.run(lines, settings, stop.event, tick))):
            for record in records:
                record(outcome)
    return tally


def _take_descriptors() -> None:
    """Take as many file descriptors as the system grants: the lower limit is for programs that use ``select(2)``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _files(arguments: argparse.Namespace, stack: ExitStack, stop: _Stop) -> list[Callable[[Outcome], None]]:
    """Open the files that were asked for; return what writes an outcome to each.

    Most runs want none, and are over before what these would import is.
    """
    names = ("results", "failed", "report", "index")
    given = {name: getattr(arguments, name) for name in names}
    if not any(given.values()):
        return []
    for name, file in given.items():
        if file is not None:
            _check_name(f"--{name}", file)
    files = {name: None if file is None else Path(file) for name, file in given.items()}
    try:
        _check_distinct(arguments.urls, Path(arguments.directory), files)
    except OSError as error:
        raise OptionError(f"the current directory: {error.strerror}; go to another one") from error
    # Before a file is made. A bundle without certificates shows with the first request: by then, lines have failed.
    urlfile.check(arguments.urls)
    _check_bundle(arguments.ca_bundle)
    writers: list[Callable[[Outcome], None]] = []
    if arguments.report is not None:
        from image_loader.cli.report import Report

        writers.append(stack.enter_context(Report(Path(arguments.report), Path(arguments.directory))).write)
    if arguments.results is not None:
        from image_loader.cli.results import ResultsFile

        writers.append(stack.enter_context(ResultsFile(Path(arguments.results), stop.event.is_set)).write)
    if arguments.failed is not None:
        from image_loader.cli.results import FailedFile

        writers.append(stack.enter_context(FailedFile(Path(arguments.failed), stop.event.is_set)).write)
    return writers


def _check_bundle(path: str | None) -> None:
    """Raise ``OptionError`` where no certificates can be read from a file or directory.

    A pipe is left alone: it can be read only once.
    """
    # Unlike Path's methods (3.11), these raise nothing where a name cannot be looked at.
    if path is None or not (os.path.isfile(path) or os.path.isdir(path)):  # noqa: PTH112, PTH113
        return
    import ssl

    try:
        place = "capath" if os.path.isdir(path) else "cafile"  # noqa: PTH112
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(**{place: path})
    except OSError as error:
        raise OptionError(f"--ca-bundle: {path}: no certificates can be read from it; name another") from error


def _check_distinct(urls: str, directory: Path, files: Mapping[str, Path | None]) -> None:
    """Raise ``OptionError`` for a file that would be emptied while it is read, or written twice over."""
    used: list[Path | int] = [Path(urls), 0] if urls == urlfile.STANDARD_INPUT else [Path(urls)]
    hidden = Path(os.path.realpath(directory / HIDDEN))
    index = Path(os.path.realpath(files["index"] or hidden / FILE))
    # The index comes first: with it, two files are in use that SQLite makes beside it.
    for name in ("index", *(name for name in files if name != "index")):
        path = files[name]
        if path is not None:
            is_hidden = name != "index" and Path(os.path.realpath(path)).is_relative_to(hidden)
            if is_hidden or any(_same(path, other) for other in used):
                raise OptionError(f"--{name}: {path} would be overwritten while it is in use; name another file")
            used.append(path)
        if name == "index":
            used += [index, *(index.with_name(index.name + suffix) for suffix in ("-wal", "-shm"))]


def _same(path: Path, other: Path | int) -> bool:
    """Whether both are or will be one file; ``other`` may be a descriptor. A terminal or a pipe is never emptied."""
    with suppress(OSError):
        if os.path.exists(path):  # noqa: PTH110 (Path's raises)
            return path == other or (path.is_file() and os.path.samefile(path, other))  # noqa: PTH121 (a descriptor)
        return not isinstance(other, int) and os.path.realpath(path) == os.path.realpath(other)
    return False


def _bar(arguments: argparse.Namespace, console: Console, tally: Tally, stack: ExitStack) -> Callable[[float], None]:
    """Set up the progress bar, if there is one; return what draws it when it is due."""
    wanted = console.redraws and not arguments.quiet if arguments.progress is None else arguments.progress
    if not wanted:
        return lambda _: None
    bar = stack.enter_context(Bar(console, tally))

    def count() -> None:
        bar.total = urlfile.count(arguments.urls)

    with suppress(RuntimeError):  # No thread can be had: the bar goes without a total.
        threading.Thread(target=count, daemon=True).start()
    return bar.tick


def _summarize(tally: Tally, log: OutcomeLog, seconds: float) -> None:
    if not tally.done and sys.exc_info()[0] is not None:
        return  # The run never began.
    for line in tally.summary(seconds):
        _LOG.log(logging.WARNING if tally.failed else logging.INFO, "%s", line)
    if log.left_out:
        _LOG.warning("%d more that failed are not shown; -v shows them, --failed FILE keeps them", log.left_out)


class _Stop:
    """The first signal asks the run to end, a second one ends the process."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.status: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for as long as the block runs; one that is ignored (``nohup``) stays so."""
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        former = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.status is not None:
            os._exit(_SIGNALS[signal.Signals(number)])
        self.status = _SIGNALS[signal.Signals(number)]
        self.event.set()


def _settings(
    directory: str | os.PathLike[str],
    *,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None,
    ca_bundle: str | os.PathLike[str] | None,
    index: str | os.PathLike[str] | None,
    layout: str,
    **options: Any,
) -> Settings:
    """Put the options and the constants together; raise ``OptionError`` for values that make no sense."""
    if not os.fspath(directory):
        raise OptionError("DIRECTORY is empty; write '.' for the one you are in")
    if re.match(_URL_START, os.fspath(directory)):
        raise OptionError(
            f"DIRECTORY is a URL, {redacted(os.fspath(directory))}; the order is: loader URLFILE DIRECTORY"
        )
    _check_nul("DIRECTORY", directory)
    for option, name in (("--ca-bundle", ca_bundle), ("--index", index)):
        if name is not None:
            _check_name(option, name)
            _check_nul(option, name)
    if layout not in set(Layout):
        raise OptionError(f"--layout: {layout!r} is none of {', '.join(Layout)}")
    settings = Settings(
        directory=Path(directory),
        headers=_named_once(headers or ()),
        ca_bundle=None if ca_bundle is None else os.fspath(ca_bundle),
        index_file=None if index is None else Path(index),
        layout=Layout(layout),
        max_pixels=MAX_PIXELS,
        decoding_memory=DECODING_MEMORY,
        decoding_time=DECODING_TIME,
        window=max(WINDOW, BATCH),
        window_size=WINDOW_SIZE,
        batch=BATCH,
        chunk=CHUNK,
        pool_hosts=POOL_HOSTS,
        host_failures=HOST_FAILURES,
        host_patience=HOST_PATIENCE,
        backoff_cap=BACKOFF_CAP,
        retry_after_cap=RETRY_AFTER_CAP,
        redirects=REDIRECTS,
        flush_interval=FLUSH_INTERVAL,
        **options,
    )
    _check(settings)
    return settings


def _check_nul(option: str, name: str | os.PathLike[str]) -> None:
    """Raise ``OptionError`` for a name that no file can have."""
    if "\0" in os.fspath(name):
        raise OptionError(f"{option}: a NUL can be in no name")


def _check_name(option: str, name: str | os.PathLike[str]) -> None:
    """Raise ``OptionError`` for the name of a file that is a URL."""
    if re.match(_URL_START, os.fspath(name)):
        raise OptionError(f"{option}: {redacted(os.fspath(name))} is a URL, where a file is wanted; name a file")


def _named_once(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return headers by their names; raise ``OptionError`` for two that differ in case at most (RFC 9110, 5.1)."""
    named: dict[str, tuple[str, str]] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            # What is no name may be a secret.
            raise OptionError("--header: what stands before the colon is no header's name; write it like 'Name: value'")
        if name.lower() in named:
            raise OptionError(f"--header: {name!r} stands twice; join its values with a comma (cookies: a semicolon)")
        named[name.lower()] = name, value
    return dict(named.values())


def _check(settings: Settings) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(settings, name)
        kind, number = (int, "a whole number") if isinstance(least, int) else (int | float, "a number")
        if not isinstance(value, kind) or not least <= value <= most:
            limit = f"at most {most}" if isinstance(value, int | float) and value > most else f"at least {least:g}"
            raise OptionError(f"--{name.replace('_', '-')}: {value!r} will not do; it takes {number}, {limit}")
    for name, value in settings.headers.items():
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise OptionError(f"--header: the value of {name!r} is none that can be sent")
    if not isinstance(settings.user_agent, str) or not _HEADER_VALUE.fullmatch(settings.user_agent):
        raise OptionError("--user-agent: it is no text, or holds characters that no header can have")
    if settings.ca_bundle is not None and not os.path.exists(settings.ca_bundle):  # noqa: PTH110
        raise OptionError(f"--ca-bundle: {settings.ca_bundle}: no such file or directory")
    if settings.verify:
        from image_loader.decoding.pool import require_verify

        require_verify()


def _log_to(console: Console, level: int) -> None:
    handler = LogHandler(console)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s" if level == logging.DEBUG else "%(message)s"))
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(level)
    _LOG.propagate = False


class _Parser(argparse.ArgumentParser):
    """A parser that says of a mistyped option which one may be meant, and that minds no closed or full stream."""

    def error(self, message: str) -> NoReturn:
        from difflib import get_close_matches

        message = " ".join(redacted(word) if "://" in word else word for word in message.split(" "))
        known = [option for option in self._option_string_actions if option.startswith("--")]
        typed = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        meant = [match for word in typed if word not in known for match in get_close_matches(word, known, 1)]
        hint = f"did you mean {' '.join(meant)}? " if meant else ""
        self.exit(2, f"{self.format_usage()}loader: {message}\n{hint}'loader --help' shows all options\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is None or file is sys.stderr:
            Console(sys.stderr).write(message.removesuffix("\n"))
            return
        try:
            file.write(message)
            file.flush()
        except OSError as error:
            Console(sys.stderr).write(f"loader: standard output: cannot be written: {error.strerror}")
            os._exit(2)  # Python's own way out would try again, and tell of it.


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the man page and the shells' completions are made from it, too."""
    command = _Parser(
        "loader",
        usage="loader [options] URLFILE DIRECTORY",
        description="Download the images of a list of URLs into a directory, and keep them current on each run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    # All of them in groups: for one that is in none, argparse (3.11) looks how wide the terminal is, by an import that
    # takes as long as a hundred fresh images.
    _add_positional(command.add_argument_group("positional arguments"))
    _add_freshness(command.add_argument_group("which images"))
    _add_limits(command.add_argument_group("how many, how long"))
    _add_requests(command.add_argument_group("requests"))
    _add_files(command.add_argument_group("files"))
    _add_output(command.add_argument_group("output"))
    return command


def _add_positional(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "urls", metavar="URLFILE", type=_name, help="one URL a line, plain or gzip; '-' is standard input"
    )
    group.add_argument(
        "directory", metavar="DIRECTORY", type=_name, help="where the images go; made if it is not there"
    )


def _add_freshness(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-f", "--force", action="store_true", help="download every image, fresh or not")
    group.add_argument(
        "--revalidate", action="store_true", help="ask about every image, also where its headers call it fresh"
    )
    group.add_argument(
        "--verify", action="store_true", help="decode each image; refuse a damaged one (needs the extra 'verify')"
    )
    group.add_argument(
        "--max-size",
        type=_size,
        default=MAX_SIZE,
        metavar="SIZE",
        help=f"largest image accepted, such as 200M (default: {MAX_SIZE // 10**6}M)",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-t", "--threads", type=_whole, default=THREADS, metavar="N", help="downloads at once (default: %(default)s)"
    )
    group.add_argument(
        "--per-host",
        type=_whole,
        default=PER_HOST,
        metavar="N",
        help="downloads at once from one host (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="to connect, and between two bytes (default: %(default)g)",
    )
    group.add_argument(
        "--max-time",
        type=_seconds,
        default=MAX_TIME,
        metavar="SECONDS",
        help="for one attempt at one image (default: %(default)g)",
    )
    group.add_argument(
        "--retries",
        type=_whole,
        default=RETRIES,
        metavar="N",
        help="retries after a transient failure (default: %(default)s)",
    )


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-H",
        "--header",
        dest="headers",
        action="append",
        type=_header,
        default=[],
        metavar="HEADER",
        help="a line 'Name: value', sent with each request; may repeat, each name once",
    )
    group.add_argument(
        "-A",
        "--user-agent",
        default=USER_AGENT,
        metavar="TEXT",
        help="who servers are told we are (default: %(default)s)",
    )
    group.add_argument("--ca-bundle", type=_name, metavar="FILE", help="whom to trust for HTTPS")
    group.add_argument("--insecure", action="store_true", help="trust any certificate")
    group.add_argument("--public-only", action="store_true", help="refuse addresses that are not public")


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        default=LAYOUT.value,
        help="name; host/name; ab/cd/name (default: %(default)s)",
    )
    group.add_argument("--results", type=_name, metavar="FILE", help="write one row per URL, as .jsonl or .csv")
    group.add_argument(
        "--failed", type=_name, metavar="FILE", help="write the URLs that failed: a list for the next run"
    )
    group.add_argument(
        "--report", type=_name, metavar="FILE", help="write a web page, .html, to look at (needs the extra 'report')"
    )
    group.add_argument(
        "--index",
        type=_name,
        metavar="FILE",
        help="where to remember what is known of each image (default: DIRECTORY/.image_loader/index.sqlite3)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-v", "--verbose", action="count", default=0, help="log each image; -vv: everything")
    group.add_argument("-q", "--quiet", action="store_true", help="log only errors that end the run")
    group.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="the progress bar (default: on at a terminal)"
    )
    group.add_argument("-h", "--help", action="help", help="show this text and exit")
    group.add_argument("--version", action="version", version=f"image_loader {__version__}", help="show it and exit")


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty name; is a variable not set? ('.' is the directory that you are in)")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; write it like 8") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; write it like 10 or 0.5") from None


def _size(text: str) -> int:
    """Return a number of bytes.

    >>> _size("200M"), _size("1.5g")
    (200000000, 1500000000)
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)([KMG]?)B?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 200M")
    return int(float(match[1]) * _UNITS[match[2]])


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        # The rest may be a secret, and so may a single word.
        word, space, _ = text.partition(" ")
        place = f" after {word!r}" if space and _HEADER_NAME.fullmatch(word) else ""
        raise argparse.ArgumentTypeError(f"no colon{place}; write it like 'Name: value'")
    return name.strip(), value.strip()


if __name__ == "__main__":
    main()

"""The command ``loader`` and the library call ``load``: their defaults, and how they start."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run as a file, from a checkout: the package is found one folder up, and no module of ours hides another.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import runpy  # It takes a millisecond, and only this way needs it.

    runpy.run_module("image_loader", run_name="__main__")

import gc
import logging
import os
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from image_loader import __version__, engine
from image_loader.errors import OptionError
from image_loader.lists import urlfile
from image_loader.model import Layout, Line, Outcome
from image_loader.option import is_url
from image_loader.settings import Command, Settings, options, settings_from
from image_loader.url import redacted

# ---------------------------------------------------------------------------------------------------------------------
# What shapes memory, sockets, threads and time. Edit here: the command and the library call both take it from here.

PROCESSES = 1
"""Processes to download in; each takes 30 MB. All images of a host come from one of them."""
THREADS = 32
"""Downloads at once, in all processes together; each takes a thread (some 100 kB), a socket and an open file."""
PER_HOST = 10
"""Downloads at once from one host, and idle connections kept for it."""
DELAY = 0.0
"""Seconds between the starts of two requests to one host; 0: none."""
POOL_HOSTS = 64
"""Hosts whose idle connections are kept; with more hosts, the oldest are closed."""
CONNECTS = 512
"""Connections that are made at once, those to dead hosts included; each takes a socket, and no thread."""
TIMEOUT = 10.0
"""Seconds to connect, and between two bytes."""
MAX_TIME = 300.0
"""Seconds for one attempt at one image, from request to last byte, redirects included."""
RETRIES = 3
"""Retries of an image after a transient failure."""
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
WINDOW_HOSTS = 1000
"""Hosts that wait for their first connection while the list is read on; some 2 kB each."""
BATCH = 100
"""Lines read, looked up in the index and decided upon together."""
FLUSH_INTERVAL = 1.0
"""Seconds between two commits of the index: what a crash forgets, and the next run asks for again."""
BACKOFF_CAP = 60.0
"""Seconds that a retry waits at most: 1, 2, 4 …, of which half is random."""
RETRY_AFTER_CAP = 120.0
"""Seconds of the longest pause that a host can ask for (``Retry-After``)."""
HOST_FAILURES = 5
"""Requests in a row without an answer after which a host is only probed. It may also refuse so many in a row."""
HOST_PATIENCE = 30.0
"""Seconds without a success after which the images of such a host fail at once."""
ONE_PROCESSOR = True
"""Whether the command stays on one processor once it downloads, except for large bodies and TLS handshakes. Only one
thread runs Python at a time, and passing the interpreter lock between processors costs more than a second one brings.
Set it to False where that processor may be busy. A free-threaded Python has no such lock, and is never bound to one."""
GARBAGE_INTERVAL = 100_000
"""Objects made between two searches for cyclic garbage, of which a run makes little: with Python's own 700, the command
would spend a twentieth of its time there."""
PARTITIONS = 256
"""Parts that --cluster divides the hosts into, each with a folder and an index of its own; a directory keeps the number
that it was made with."""
REDIRECTS = 20
"""Redirects followed for one image."""
USER_AGENT = f"image_loader/{__version__}"
"""The User-Agent header."""
LAYOUT = Layout.FLAT
"""The path of an image below the directory: flat, host, hash or path."""
# ---------------------------------------------------------------------------------------------------------------------

_CONSTANTS = Settings.__annotations__.keys() - options(Settings).keys() - {"one_processor", "exclusive"}
# Without a handler, logging prints warnings on standard error; where they go is for the caller of ``load`` to say.
logging.getLogger("image_loader").addHandler(logging.NullHandler())


def load(
    urls: str | os.PathLike[str] | Iterable[str],
    directory: str | os.PathLike[str],
    *,
    url_column: str | int | None = None,
    name_column: str | int | None = None,
    force: bool = False,
    revalidate: bool = False,
    skip_existing: bool = False,
    ignore_status: Iterable[int] = (),
    delete: bool = False,
    max_delete: int | None = None,
    dry_run: bool = False,
    processes: int = PROCESSES,
    cluster: str | os.PathLike[str] | None = None,
    threads: int = THREADS,
    per_host: int = PER_HOST,
    delay: float = DELAY,
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
    sniff: bool = False,
    verify: bool = False,
    index: str | os.PathLike[str] | None = None,
) -> Generator[Outcome, None, None]:
    """Download images into ``directory`` and yield the outcome of each line as it ends.

    ``urls`` is the path of a list, or the URLs themselves. Times are in seconds, sizes in bytes. The options are those
    of the command. Nothing is printed, no signal handler set; closing the iterator early ends the downloads that run.

    Raises ``OptionError`` at once for a value that makes no sense. Raises another ``LoaderError`` (see
    ``image_loader.errors``) when the first outcome is asked for, or later, if the run cannot start or go on.
    """
    given = locals()  # Each option is a keyword of this function and an entry in ``settings``, and nothing else.
    urls = given.pop("urls")
    settings = settings_of(given)
    return engine.run(_lines(urls, settings), settings, threading.Event())


DEFAULTS: Mapping[str, Any] = load.__kwdefaults__ or {}
"""The defaults of the options, by their keywords."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command, and end the process with its exit status."""
    from image_loader.cli import command

    gc.set_threshold(GARBAGE_INTERVAL)
    command.main(argv, DEFAULTS, lambda given: settings_of(given)._replace(one_processor=ONE_PROCESSOR))


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Return the settings of a run: options by their keywords, and the constants of this module."""
    constants = {name: globals()[name.upper()] for name in _CONSTANTS}
    settings = settings_from(given, {**constants, "window": max(WINDOW, BATCH)})
    # The processes that are started are our own.
    settings = settings._replace(one_processor=ONE_PROCESSOR and settings.processes > 1)
    if settings.verify:
        from image_loader.decoding.pool import require_verify

        require_verify()
    if settings.cluster is not None:
        from image_loader.cluster.dask import require_cluster

        require_cluster()
    return settings


def _lines(urls: Any, settings: Settings) -> Iterable[Sequence[Line] | None]:
    """Return the lines of a list; raise ``OptionError`` for a value that is no list."""
    if isinstance(urls, str | os.PathLike):
        if is_url(name := os.fsdecode(urls)):
            raise OptionError(f"must be a path or an iterable of URLs, not one URL: {redacted(name)}", "urls")
        return urlfile.read(options(Command)["urls"].checked(urls), settings.batch, settings.columns)
    if isinstance(urls, bytes | bytearray) or not isinstance(urls, Iterable):
        raise OptionError(f"must be a path or an iterable of URLs, not {type(urls).__name__}", "urls")
    if settings.columns is not None:
        raise OptionError("is for the path of a table, not for an iterable of URLs", "url_column")
    return urlfile.from_strings(urls, settings.batch)

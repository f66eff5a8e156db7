"""The command: a run with its log, its progress bar, its files and its exit status."""

from __future__ import annotations

import gc
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, NoReturn

from image_loader import engine
from image_loader.cli import parser
from image_loader.cli.console import Console, LineFormatter, LogHandler, open_closed_streams, stream_of
from image_loader.cli.signals import Stop
from image_loader.cli.summary import OutcomeLog, Tally
from image_loader.errors import LoaderError, OptionError, UrlFileError
from image_loader.lists import urlfile
from image_loader.model import Outcome
from image_loader.settings import Command, Settings

_LOG = logging.getLogger("image_loader")


def main(
    argv: Sequence[str] | None, defaults: Mapping[str, Any], settings_from: Callable[[Mapping[str, Any]], Settings]
) -> NoReturn:
    """Run the command, and end the process with its exit status.

    ``defaults`` are those of the options by their keywords; ``settings_from`` makes a run's settings of such values.
    """
    closed = open_closed_streams()
    console, stop, hint = Console(sys.stderr), Stop(), ""
    _log_to(console, logging.ERROR)
    try:
        command = parser.parse(sys.argv[1:] if argv is None else argv, defaults, os.environ)
        _log_to(console, _level(command))
        hint = _order_hint(command)
        _check_streams(command, closed)
        with stop.listening():
            failed = _run(command, settings_from(command.settings), console, stop).failed
        status = stop.status or (1 if failed else 0)
    except LoaderError as error:
        _LOG.error("loader: %s%s", _spelled(error), hint if isinstance(error, UrlFileError) else "")
        status = stop.status or 2
    logging.shutdown()
    # Python's own way out would wait for threads that are blocked in a name look-up, which nothing can cut short; and
    # it takes a tenth of a run that has nothing to do.
    os._exit(status)


def _spelled(error: LoaderError) -> str:
    """Return the error's text, with the option as it is written on the command line."""
    if isinstance(error, OptionError) and error.option:
        return f"{parser.flag(error.option)}: {error.fault}"
    return str(error)


def _check_streams(command: Command, closed: Collection[int]) -> None:
    """Raise ``OptionError`` for the name of a standard stream that is closed: it would be read or written in vain."""
    for keyword in ("urls", "results", "failed") if closed else ():
        name = getattr(command, keyword)
        if name is not None and stream_of(name) in closed:
            raise OptionError(f"{name}: it is closed; name another file", keyword)


def _order_hint(command: Command) -> str:
    # Unlike Path's methods (3.11), these raise nothing where a name cannot be looked at, or is too long to be one.
    swapped = os.path.isfile(command.settings["directory"]) or os.path.isdir(command.urls)  # noqa: PTH112, PTH113
    return "; the list comes first: loader URLFILE DIRECTORY" if swapped else ""


def _run(command: Command, settings: Settings, console: Console, stop: Stop) -> Tally:
    """Make one run, and tell of it to the people and programs that want to know; return its counts."""
    _take_descriptors()
    gc.enable()
    started, tally, log = time.monotonic(), Tally(), OutcomeLog(_LOG)
    with ExitStack() as stack:
        stack.callback(lambda: _summarize(tally, log, time.monotonic() - started, console))
        records = [tally.add, log.write, *_files(command, settings, stack, stop, tally)]
        tick = _bar(command, settings, console, tally, stack)
        lines = urlfile.read(command.urls, settings.batch, settings.columns)
        for outcome in stack.enter_context(closing(engine.run(lines, settings, stop.event, tick))):
            for record in records:
                record(outcome)
    return tally


def _take_descriptors() -> None:
    """Take as many file descriptors as the system grants: the lower limit is for programs that use ``select(2)``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _files(
    command: Command, settings: Settings, stack: ExitStack, stop: Stop, tally: Tally
) -> Sequence[Callable[[Outcome], None]]:
    """Open the files that were asked for; return what writes an outcome to each. Most runs want none."""
    if not (command.results or command.failed or command.report or settings.index_file):
        return ()
    from image_loader.cli import files

    return files.opened(command, settings, stack, stop.event.is_set, tally)


def _bar(
    command: Command, settings: Settings, console: Console, tally: Tally, stack: ExitStack
) -> Callable[[float], None]:
    """Set up the progress bar, if there is one; return what draws it when it is due."""
    wanted = command.progress
    if wanted is None:
        # Rows and a bar would overwrite each other.
        wanted = console.redraws and not command.quiet and not (command.results == "-" and os.isatty(1))
    if not wanted:
        return lambda _: None
    from image_loader.cli.bar import Bar

    bar = stack.enter_context(Bar(console, tally))

    def count() -> None:
        bar.total = urlfile.count(command.urls, settings.columns)

    with suppress(RuntimeError):  # No thread can be had: the bar goes without a total.
        threading.Thread(target=count, daemon=True).start()
    return bar.tick


def _summarize(tally: Tally, log: OutcomeLog, seconds: float, console: Console) -> None:
    if not tally.done and sys.exc_info()[0] is not None:
        return  # The run never began.
    is_wanted = tally.failed or (console.is_terminal and not _LOG.isEnabledFor(logging.INFO))
    level = logging.WARNING if is_wanted else logging.INFO
    for line in tally.summary(seconds):
        _LOG.log(level, "%s", line)
    if log.left_out:
        _LOG.warning("not shown: %d more that failed; -v shows them, --failed FILE keeps them", log.left_out)


def _level(command: Command) -> int:
    verbose = max(command.verbose, 1) if command.settings["dry_run"] else command.verbose
    return logging.ERROR if command.quiet else max(logging.DEBUG, logging.WARNING - 10 * verbose)


def _log_to(console: Console, level: int) -> None:
    handler = LogHandler(console)
    handler.setFormatter(
        LineFormatter(times=level < logging.WARNING and not console.is_terminal, levels=level < logging.INFO)
    )
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(level)
    _LOG.propagate = False

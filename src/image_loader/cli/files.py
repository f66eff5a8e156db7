"""The files that a run writes besides its images: none is overwritten while it is in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from image_loader.cli.summary import Tally
from image_loader.errors import OptionError, ResultsFileError
from image_loader.lists import urlfile
from image_loader.model import Outcome
from image_loader.settings import Command, Settings
from image_loader.store.index import FILE
from image_loader.store.root import HIDDEN

_STANDARD_OUTPUT = "/dev/stdout"


def opened(
    command: Command, settings: Settings, stack: ExitStack, is_ending: Callable[[], bool], tally: Tally
) -> list[Callable[[Outcome], None]]:
    """Open the files that were asked for; return what writes an outcome, once ``tally`` has counted it, to each."""
    if settings.dry_run:
        _check_dry(command)
    results = _STANDARD_OUTPUT if command.results == "-" else command.results
    files = {
        "results": None if results is None else Path(results),
        "failed": command.failed,
        "report": command.report,
        "index": settings.index_file,
    }
    try:
        _check_distinct(command.urls, settings.directory, files)
    except OSError as error:
        raise OptionError(f"the current directory: {error.strerror}; go to another one") from error
    # These checks come before any file is made. Otherwise a bundle without certificates would show after lines have
    # failed.
    urlfile.check(command.urls)
    _check_bundle(settings.ca_bundle)
    _check_extensions(command)
    if not settings.dry_run:
        _make_folders(settings.directory, (file for name, file in files.items() if name != "index"))
    writers: list[Callable[[Outcome], None]] = []
    if command.report is not None:
        from image_loader.cli.report import Report

        writers.append(stack.enter_context(Report(command.report, settings.directory, tally)).write)
    if command.results is not None:
        from image_loader.cli.results import ResultsFile

        writers.append(stack.enter_context(ResultsFile(command.results, is_ending)).write)
    if command.failed is not None:
        from image_loader.cli.results import FailedFile

        writers.append(stack.enter_context(FailedFile(command.failed, is_ending)).write)
    return writers


def _check_dry(command: Command) -> None:
    """Raise ``OptionError`` for files that a dry run does not write."""
    for keyword in ("failed", "report"):
        if getattr(command, keyword) is not None:
            raise OptionError("is not written by --dry-run; use --results", keyword)


def _check_extensions(command: Command) -> None:
    """Raise ``OptionError`` for a file whose extension is not supported."""
    if command.results is not None:
        from image_loader.cli.results import row_format

        row_format(command.results)
    if command.report is not None:
        from image_loader.cli.report import require_page

        require_page(command.report)


def _make_folders(directory: Path, files: Iterable[Path | None]) -> None:
    """Make the folders of files that are to be written below an output directory that may not be there yet."""
    root = os.path.realpath(directory)
    for file in files:
        folder = None if file is None else Path(os.path.realpath(file.parent))
        if folder is not None and folder.is_relative_to(root):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResultsFileError(f"{folder}: cannot be created: {error.strerror}") from error


def _check_bundle(path: str | None) -> None:
    """Raise ``LoaderError`` where no certificates can be read from a file or directory.

    A pipe is left alone: it can be read only once.
    """
    # Unlike Path's methods (3.11), these raise nothing where a name cannot be looked at.
    if path is None or not (os.path.isfile(path) or os.path.isdir(path)):  # noqa: PTH112, PTH113
        return
    from image_loader.transport import tls

    tls.context_of(path)


def _check_distinct(urls: str, directory: Path, files: Mapping[str, Path | None]) -> None:
    """Raise ``OptionError`` for a file that would be emptied while it is read, or written twice over."""
    used: list[Path | int] = [Path(urls), 0] if urls == urlfile.STANDARD_INPUT else [Path(urls)]
    hidden = Path(os.path.realpath(directory / HIDDEN))
    index = Path(os.path.realpath(files["index"] or hidden / FILE))
    # The index comes first: SQLite makes two files beside it, which are in use as well.
    for name in ("index", *(name for name in files if name != "index")):
        path = files[name]
        if path is not None:
            is_hidden = name != "index" and Path(os.path.realpath(path)).is_relative_to(hidden)
            if is_hidden or any(_same(path, other) for other in used):
                raise OptionError(f"{path} would be overwritten while it is in use; name another file", name)
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

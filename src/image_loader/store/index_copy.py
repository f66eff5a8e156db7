"""A copy of the index, for a run that writes nothing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from image_loader.errors import IndexFileError
from image_loader.model import Image, NotModified
from image_loader.store import index_file
from image_loader.store.index import Index
from image_loader.store.index_file import EndedError, Patience

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

_PAGES = 1000
"""Pages to copy at a time: in between, the end of the run takes effect."""
_SIZE = 1 << 22
"""Bytes to copy at a time."""


class IndexCopy(Index):
    """A copy of the index, empty where there is none; the file stays as it is. What a run finds out is not recorded.

    Not for a process that has the index open ``exclusive``: closing the file would drop its locks (``fcntl(2)``).
    """

    def __init__(self, path: Path, is_ending: Callable[[], bool] = lambda: False, *, named: bool = False) -> None:
        """Copy the index, as it is opened by an ``Index``."""
        self._begin(path, 0.0, is_ending, named=named)
        self._connection = _copied(self.path, self._patience, named=named)

    def record(self, row: int, image: Image, key: str | None = None) -> None:
        """Do nothing."""

    def touch(self, row: int, image: Image) -> None:
        """Do nothing."""

    def renew(self, row: int, renewed: NotModified) -> None:
        """Do nothing."""

    def _abandon(self, error: sqlite3.Error) -> NoReturn:
        self._connection.close()
        raise _damaged(self.path) from error


def _copied(path: Path, patience: Patience, *, named: bool) -> sqlite3.Connection:
    """Return a copy of the index that goes when it is closed; empty where there is none, or the run is told to end.

    Nothing is written to the index, nor beside it; SQLite keeps a large copy in a temporary file. Raises
    ``IndexFileError``, also where the index is damaged.
    """
    try:
        connection = patience.out(lambda: _copy(path, patience))
        try:
            index_file.prepare(connection, path, patience)
        except BaseException:
            connection.close()
            raise
    except FileNotFoundError as error:
        raise IndexFileError(f"{path}: the index cannot be copied: it changes all the time; run again") from error
    except OSError as error:
        raise _uncopied(path, error) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.Error) and not index_file.is_unusable(error):
            raise index_file.failure(path, error, patience) from error
        index_file.require_database(path, error, named=named)
        raise _damaged(path) from error
    return connection


def _copy(path: Path, patience: Patience) -> sqlite3.Connection:
    target = index_file.opened("", patience)
    try:
        _copy_to(target, path, patience)
    except EndedError:
        target.close()
        return index_file.opened("", patience)
    except BaseException:
        target.close()
        raise
    return target


def _copy_to(target: sqlite3.Connection, path: Path, patience: Patience) -> None:
    # What is in the log of a run that was killed, or is under way, counts. Without a log, or where it cannot be read
    # with a file beside it being written, the index is read as it stands.
    try:
        index_file.require_safe(path)
    except FileNotFoundError:
        return
    log, memory, journal = (Path(f"{path}{suffix}") for suffix in index_file.COMPANIONS)
    if log.exists() and memory.exists():
        try:
            _copy_with(path, "mode=ro&readonly_shm=1", target, patience)
        except sqlite3.OperationalError as error:
            if index_file.code(error) != sqlite3.SQLITE_CANTOPEN:
                raise
        else:
            return
    with _unchanged(path, log, journal):
        left = [file for file in (log, journal) if file.exists() and file.stat().st_size]
        if not left:
            _copy_with(path, "mode=ro&immutable=1", target, patience)
            return
        # SQLite has to write to read an index with a log, but without ``-shm``, or with a journal.
        with _temporary_folder(path) as folder:
            for file in (path, *left):
                _copy_file(file, Path(folder, file.name), patience)
            _copy_with(Path(folder, path.name), "mode=rw", target, patience)


def _temporary_folder(path: Path) -> TemporaryDirectory[str]:
    from tempfile import TemporaryDirectory

    try:
        return TemporaryDirectory()
    except FileNotFoundError as error:
        raise _uncopied(path, error) from error


def _uncopied(path: Path, error: OSError) -> IndexFileError:
    advice = "check its permissions, and the place for temporary files (TMPDIR)"
    return IndexFileError(f"{path}: the index cannot be copied: {error.strerror}; {advice}")


def _copy_file(file: Path, target: Path, patience: Patience) -> None:
    with file.open("rb") as source, target.open("wb") as copy:
        while chunk := source.read(_SIZE):
            copy.write(chunk)
            patience.check()


@contextmanager
def _unchanged(*files: Path) -> Iterator[None]:
    """Raise ``FileNotFoundError`` where a file was changed meanwhile: what was read is not there any more."""
    before = [_state(file) for file in files]
    try:
        yield
    except sqlite3.Error as error:
        if [_state(file) for file in files] != before:
            raise FileNotFoundError from error
        raise
    if [_state(file) for file in files] != before:
        raise FileNotFoundError


def _state(file: Path) -> tuple[int, int, int] | None:
    with suppress(FileNotFoundError):
        state = file.stat()
        return state.st_ino, state.st_size, state.st_mtime_ns
    return None


def _copy_with(path: Path, parameters: str, target: sqlite3.Connection, patience: Patience) -> None:
    with closing(index_file.opened(f"file:{quote(os.fsencode(path))}?{parameters}", patience)) as source:
        source.execute("BEGIN")  # Of what others write from now on, nothing is copied, so that it is all of one time.
        source.execute("SELECT 1 FROM sqlite_master").fetchone()
        source.backup(target, pages=_PAGES, progress=lambda *_: patience.check())


def _damaged(path: Path) -> IndexFileError:
    return IndexFileError(f"{path}: the index is damaged; a run moves it aside and begins anew")

"""The index: what is known of each image between runs, and which name belongs to which URL, in one SQLite file."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from image_loader.errors import IndexFileError
from image_loader.model import Image, Name, Record, Validators

_logger = logging.getLogger(__name__)

_APPLICATION_ID = 0x696D6C64
_VERSION = 1
_LOCK_PATIENCE = 60.0
"""Seconds to wait for another program's write; a run of ours holds the lock for some milliseconds."""
_PENDING_MAX = 5000
"""Images recorded but not yet written, whatever the flush interval: bounds the memory."""
_VARIABLES = 500
"""Digests in one query; SQLite before 3.32 takes no more than 999."""

_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA cache_size = -4000",
    "PRAGMA temp_store = FILE",
    # What this run has seen dies with it: a rollback journal costs two thirds of the speed, and protects nothing.
    "PRAGMA temp.journal_mode = OFF",
    "PRAGMA temp.cache_size = -8000",
    "CREATE TEMP TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID",
)
# With row ids, rows stand in the order of the list: one flush touches a few pages. Without, rows stood by digest, and
# each would dirty a page of its own (measured: a third of the speed).
_SCHEMA = (
    """CREATE TABLE image (
        digest BLOB NOT NULL UNIQUE,
        key TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        complete INTEGER NOT NULL,
        size INTEGER, mtime_ns INTEGER, media_type TEXT, sha256 BLOB, etag TEXT, last_modified TEXT,
        fresh_until REAL, saved REAL, checked REAL)""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
_LOOK_UP = """SELECT digest, name, complete, size, mtime_ns, media_type, sha256, etag, last_modified,
    fresh_until, saved, checked FROM image WHERE digest IN """
_CLAIM = """INSERT INTO image (digest, key, name, complete) SELECT ?, ?, ?, ?
    WHERE NOT EXISTS (SELECT 1 FROM image WHERE key BETWEEN ? AND ?) ON CONFLICT DO NOTHING"""
_RECORD = """UPDATE image SET name = ?, complete = 1, size = ?, mtime_ns = ?, media_type = ?, sha256 = ?, etag = ?,
    last_modified = ?, fresh_until = ?, saved = ?, checked = ? WHERE digest = ?"""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WAYS_OUT = {
    sqlite3.SQLITE_BUSY: f"another program has kept it locked for {_LOCK_PATIENCE:.0f} s; end that, or use --index",
    sqlite3.SQLITE_FULL: "no space left, on its disk or on that of temporary files (SQLITE_TMPDIR names another)",
    sqlite3.SQLITE_IOERR: "it cannot be read or written; its disk, or that of temporary files, may be full or failing",
    sqlite3.SQLITE_READONLY: "it is read-only now; check its permissions and its disk, or use --index",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the permissions of the file and its directory, or use --index",
}


class Index:
    """The open index; one thread at a time uses it.

    Every method raises ``IndexFileError`` once the file cannot be used. One that proves damaged in use is moved aside
    first, so that the next run begins anew.
    """

    def __init__(self, path: Path, flush_interval: float) -> None:
        """Open the index, or make it (mode 0600); ``flush_interval`` is in seconds.

        A damaged one is moved aside with a warning, and a new one begun; the images are not touched.
        """
        # SQLite gives a meaning to relative names such as ":memory:" and "file:…".
        self._path = path.absolute()
        self._flush_interval = flush_interval
        self._flushed = time.monotonic()
        self._pending: dict[bytes, Image] = {}
        self._connection = _open(self._path)
        self._inode = _inode(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def first_seen(self, digests: Sequence[bytes]) -> set[bytes]:
        """Return those of ``digests`` that this run had not seen before, and remember them all, on disk."""
        new = set(digests)
        with self._transaction("BEGIN"):
            for part in _parts(digests):
                rows = self._connection.execute(f"SELECT digest FROM seen WHERE digest IN {_marks(part)}", part)  # noqa: S608
                new.difference_update(digest for (digest,) in rows)
            self._connection.executemany("INSERT INTO seen VALUES (?)", [(digest,) for digest in new])
        return new

    def look_up(self, digests: Sequence[bytes]) -> dict[bytes, Record]:
        """Return what is known of these URLs, as of the last flush; a URL never seen is missing from the answer."""
        with self._transaction("BEGIN"):
            return self._select(digests)

    def claim(self, wanted: Sequence[tuple[bytes, Iterable[Name]]], key: Callable[[str], str]) -> dict[bytes, Record]:
        """Give each URL the first of its names that no other URL holds, in this process or another, for good.

        ``key`` maps the paths that some file system takes for one to one key. A URL that has a name by now keeps it.
        One all of whose names are taken is missing from the answer.
        """
        with self._transaction("BEGIN IMMEDIATE"):
            records = self._select([digest for digest, _ in wanted])
            for digest, names in wanted:
                if digest not in records:
                    free = (name for name in names if self._insert(digest, name, key(name.path)))
                    records.update((digest, Record(name, None)) for name in _first(free))
        return records

    def record(self, digest: bytes, image: Image) -> None:
        """Remember the image of a URL that has a name; it is written with the next flush."""
        self._pending[digest] = image
        if len(self._pending) >= _PENDING_MAX:
            self.flush()

    def tick(self) -> None:
        """Flush, where the flush interval has passed."""
        if time.monotonic() - self._flushed >= self._flush_interval:
            self.flush()

    def flush(self) -> None:
        """Write what was recorded, in one transaction."""
        # Forgotten first: what could not be written once would only make close() fail as well.
        pending, self._pending = self._pending, {}
        if pending:
            with self._transaction("BEGIN IMMEDIATE"):
                self._connection.executemany(_RECORD, [_values(digest, image) for digest, image in pending.items()])
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._connection.close()

    def _select(self, digests: Sequence[bytes]) -> dict[bytes, Record]:
        rows = (row for part in _parts(digests) for row in self._connection.execute(_LOOK_UP + _marks(part), part))
        return {row[0]: _record(*row[1:]) for row in rows}

    def _insert(self, digest: bytes, name: Name, key: str) -> bool:
        own, first, last = _reservation(key, complete=name.complete)
        row = (digest, own, name.path, name.complete, first, last)
        return self._connection.execute(_CLAIM, row).rowcount == 1

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        try:
            with self._connection:
                self._connection.execute(begin)
                yield
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise _failure(self._path, error) from error
            self._abandon(error)

    def _abandon(self, error: sqlite3.Error) -> None:
        self._pending.clear()
        self._connection.close()
        with _alone(self._path.parent):
            # Another process may have found the same damage, and begun anew.
            if _inode(self._path) == self._inode:
                _move_aside(self._path)
        raise IndexFileError(f"{self._path}: the index is damaged and was moved aside; run again to begin anew") from error


def _open(path: Path) -> sqlite3.Connection:
    with _alone(path.parent):
        _make(path)
        try:
            return _connect(path)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise _failure(path, error) from error
            aside = _move_aside(path)
        _logger.warning("%s: the index was damaged; moved aside to %s, and begun anew", path, aside.name)
        return _open_new(path)

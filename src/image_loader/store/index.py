"""The index: what is known of each image between runs, and which name belongs to which URL, in one SQLite file."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import sqlite3
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from image_loader.errors import IndexFileError
from image_loader.model import Image, Name, NotModified, Record, Validators

T = TypeVar("T")

_logger = logging.getLogger(__name__)

FILE = "index.sqlite3"
"""What the index is called where the user names none."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = 0x696D6C64
_VERSION = 2
_LOCK_PATIENCE = 60.0
"""Seconds to wait for another program's write; a run of ours holds the lock for some milliseconds."""
_LAST_PATIENCE = 1.0
"""Seconds to wait for it when the run was told to end."""
_BUSY_TIMEOUT = 0.5
"""Seconds of that patience which are SQLite's own: as long as it waits, no signal is heard."""
_LOCK_POLL = 0.02
"""Seconds between two tries."""
_PENDING_MAX = 5000
"""Images recorded but not yet written, whatever the flush interval: bounds the memory."""
_VARIABLES = 500
"""Digests in one query; SQLite before 3.32 takes no more than 999."""
_SEEN_BYTES = 4096
"""A part of what was seen in this run: bits for eight times as many rows."""
_INTEGER_MAX = 2**63 - 1

_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA cache_size = -4000",
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
        fresh_until REAL, saved REAL, checked REAL, target BLOB)""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
_FROM_VERSION_1 = (
    "ALTER TABLE image ADD COLUMN target BLOB",
    f"PRAGMA user_version = {_VERSION}",
)
_LOOK_UP = """SELECT digest, rowid, name, complete, size, mtime_ns, media_type, sha256, etag, last_modified, target,
    fresh_until, saved, checked FROM image WHERE """
_OF_DIGESTS = "rowid IN (SELECT rowid FROM image WHERE digest IN {})"
_CLAIM = """INSERT INTO image (digest, key, name, complete) SELECT ?, ?, ?, ?
    WHERE NOT EXISTS (SELECT 1 FROM image WHERE key BETWEEN ? AND ?) ON CONFLICT DO NOTHING"""
# A file that another program saved is recorded without type and hash; another run may know them by now. Or it has saved
# a later file, and flushed before. A time to come is from before the clock was set back.
_RECORD = """UPDATE image SET name = ?1, complete = 1, size = ?2, mtime_ns = ?3, media_type = coalesce(?4, media_type),
    sha256 = coalesce(?5, sha256), etag = ?6, last_modified = ?7, target = ?8, fresh_until = ?9, saved = ?10,
    checked = ?11 WHERE rowid = ?12 AND (saved IS NULL OR saved <= ?10 OR saved > ?13)"""
# Another run may have recorded a newer file by now, which this says nothing about.
_RENEW = """UPDATE image SET etag = ?, last_modified = ?, target = ?, fresh_until = ?, checked = ?
    WHERE rowid = ? AND size = ? AND mtime_ns = ?"""

_TEXT, _BYTES, _NUMBER = (str, type(None)), (bytes, type(None)), (float, type(None))
# The types in a row from its name on, where there is no image yet, and where there is one.
_SOUND_TYPES = frozenset({(str, int, *[type(None)] * 10)}) | frozenset(
    itertools.product(*[(str,), (int,)], *[(int,)] * 2, _TEXT, _BYTES, *[_TEXT] * 2, _BYTES, _NUMBER, *[(float,)] * 2)
)

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WAYS_OUT = {
    sqlite3.SQLITE_BUSY: "another program keeps it locked; end that, or use --index",
    sqlite3.SQLITE_FULL: "no space left, on its disk or on that of temporary files (SQLITE_TMPDIR names another)",
    sqlite3.SQLITE_IOERR: "it cannot be read or written; its disk, or that of temporary files, may be full or failing",
    sqlite3.SQLITE_READONLY: "it is read-only now; check its permissions and its disk, or use --index",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the permissions of the file and its directory, or use --index",
}


class Index:
    """The open index; one thread at a time uses it.

    Every method raises ``IndexFileError`` where the file cannot be used. One that proves damaged in use is moved aside
    before, so that the next run begins anew.
    """

    def __init__(
        self, path: Path, flush_interval: float, is_ending: Callable[[], bool] = lambda: False, *, named: bool = False
    ) -> None:
        """Open the index, or make it with mode 0600; ``flush_interval`` is in seconds.

        A damaged one is moved aside with a warning, and a new one begun; the images are not touched. Where the user has
        ``named`` it, a file that never was a database is left alone. ``is_ending`` says that there is no time left to
        wait for other programs.
        """
        # Absolute: SQLite gives a meaning of their own to names such as ":memory:" and "file:a?b".
        self._path = Path(os.path.realpath(path))
        self._flush_interval = flush_interval
        self._flushed = time.monotonic()
        self._pending: dict[int, Image] = {}
        self._renewed: dict[int, NotModified] = {}
        # A bit for each row, in parts, since other programs may have left gaps.
        self._seen: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(_SEEN_BYTES))
        # The row that comes next, should the list be in the order in which the rows were made; None where it is not.
        self._next_row: int | None = None
        self._wait = _Patience(is_ending)
        self._abandoned = False
        self._connection = _open(self._path, self._wait, named=named)
        self._inode = _inode(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close()

    def is_empty(self) -> bool:
        """Whether nothing is known of any URL: it was begun just now, or all that it knew is lost."""
        with self._transaction("BEGIN"):
            return self._connection.execute("SELECT 1 FROM image LIMIT 1").fetchone() is None

    def first_seen(self, record: Record) -> bool:
        """Tell whether this run sees the record for the first time, and remember it, by one bit of memory."""
        byte, bit = record.row >> 3, 1 << (record.row & 7)
        part, place = self._seen[byte // _SEEN_BYTES], byte % _SEEN_BYTES
        if part[place] & bit:
            return False
        part[place] |= bit
        return True

    def look_up(self, digests: Sequence[bytes]) -> dict[bytes, Record]:
        """Return what is known of these URLs, as of the last flush; one that has no name yet is missing from it."""
        with self._transaction("BEGIN"):
            found = self._following(digests)
            if len(found) < len(digests):
                found |= self._select([digest for digest in digests if digest not in found])
        rows = [record.row for record in found.values()]
        in_order = bool(rows) and max(rows) - min(rows) < 2 * len(rows)
        self._next_row = max(rows) + 1 if in_order else None
        return found

    def claim(self, wanted: Sequence[tuple[bytes, Iterable[Name]]], key: Callable[[str], str]) -> dict[bytes, Record]:
        """Give each URL, for good, the first of its names that no other URL holds, from whatever process.

        ``key`` maps paths that some file system takes for one to one key. A URL that has a name by now keeps that; one
        all of whose names are taken is missing from the answer.
        """
        with self._transaction("BEGIN IMMEDIATE"):
            records = self._select([digest for digest, _ in wanted])
            for digest, names in wanted:
                if digest not in records:
                    rows = (self._insert(digest, name, key(name.path)) for name in names)
                    records.update((digest, row) for row in itertools.islice(filter(None, rows), 1))
        return records

    def record(self, row: int, image: Image) -> None:
        """Remember the image of a URL, which has a ``row`` since it has a name; it is written with the next flush."""
        self._pending[row] = image

    def renew(self, row: int, renewed: NotModified) -> None:
        """Remember what a 304 said of the image of a URL."""
        if renewed.image.sha256 is None:  # Nothing may be recorded yet of what another program saved.
            self.record(row, renewed.image)
        self._renewed[row] = renewed

    def tick(self) -> None:
        """Flush, where the flush interval has passed since the last time, or much has come since."""
        much = len(self._pending) + len(self._renewed) >= _PENDING_MAX
        if much or time.monotonic() - self._flushed >= self._flush_interval:
            self.flush()

    def flush(self) -> None:
        """Write what was recorded, in one transaction."""
        # Taken out first: what could not be written would only make close() fail once more.
        pending, self._pending = self._pending, {}
        renewed, self._renewed = self._renewed, {}
        if (pending or renewed) and not self._abandoned:
            with self._transaction("BEGIN IMMEDIATE"):
                now = time.time()
                self._connection.executemany(_RECORD, [_values(row, image, now) for row, image in pending.items()])
                self._connection.executemany(_RENEW, [_renewal(row, answer) for row, answer in renewed.items()])
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._connection.close()

    def _following(self, digests: Sequence[bytes]) -> dict[bytes, Record]:
        """Select those that stand where they are to be expected: rows in a row are found at half the price."""
        if self._next_row is None:
            return {}
        where = "rowid >= ? ORDER BY rowid LIMIT ?"
        rows = {row[0]: row for row in self._connection.execute(_LOOK_UP + where, (self._next_row, len(digests)))}
        return {digest: _record(rows[digest]) for digest in digests if digest in rows}

    def _select(self, digests: Sequence[bytes]) -> dict[bytes, Record]:
        found: dict[bytes, Record] = {}
        for part in _parts(digests):
            # Not by digest alone: SQLite would tell that of its own index, not that of the row which it leads to.
            query = _LOOK_UP + _OF_DIGESTS.format(_marks(part))
            rows = {row[0]: row for row in self._connection.execute(query, part)}
            if not rows.keys() <= set(part):
                raise sqlite3.OperationalError("a row that was not asked for")
            found.update((digest, _record(row)) for digest, row in rows.items())
        return found

    def _insert(self, digest: bytes, name: Name, key: str) -> Record | None:
        own, first, last = _reserved(key, complete=name.complete)
        done = self._connection.execute(_CLAIM, (digest, own, name.path, name.complete, first, last))
        inserted = done.lastrowid if done.rowcount == 1 else None
        return None if inserted is None else Record(inserted, name, None)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        try:
            with self._connection:
                self._wait.out(lambda: self._connection.execute(begin))
                yield
        except sqlite3.Error as error:
            if _is_damage(error):
                self._abandon(error)
            raise _failure(self._path, error) from error

    def _abandon(self, error: sqlite3.Error) -> NoReturn:
        self._abandoned = True
        self._connection.close()
        with _alone(self._path.parent):
            # Another process may have found the damage before us, and begun anew under the same name.
            if _inode(self._path) == self._inode:
                _move_aside(self._path)
        raise IndexFileError(
            f"{self._path}: the index is damaged and was moved aside; run again, and a new one is begun (images stay)"
        ) from error


class _Patience:
    """Waits for what another program has locked."""

    def __init__(self, is_ending: Callable[[], bool]) -> None:
        self._is_ending = is_ending

    def out(self, attempt: Callable[[], T]) -> T:
        """Return what ``attempt`` returns, once SQLite finds nothing locked any more; raise its error at the end."""
        begun = time.monotonic()
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                patience = _LAST_PATIENCE if self._is_ending() else _LOCK_PATIENCE
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() - begun > patience:
                    raise
            time.sleep(_LOCK_POLL)


def _open(path: Path, wait: _Patience, *, named: bool) -> sqlite3.Connection:
    try:
        with _alone(path.parent):
            return wait.out(lambda: _connect_or_begin_anew(path, named=named))
    except sqlite3.Error as error:
        raise _failure(path, error) from error


def _connect_or_begin_anew(path: Path, *, named: bool) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.Error as error:
        if not _is_damage(error) and _code(error) != sqlite3.SQLITE_ERROR:
            raise
        if named and not _was_database(path):
            raise IndexFileError(f"{path}: no index, but another file; name another one with --index") from error
        aside = _move_aside(path)
    _logger.warning("%s: the index is damaged; moved aside to %s, and begun anew", path, aside.name)
    return _connect(path)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other processes from opening an index here meanwhile.

    Without it, two that find the same damage move aside each other's new index; and the switch to WAL fails at once
    where another makes it, since SQLite's busy timeout does not cover it (3.40). Some network file systems lock no
    directory: there, this is a hope. It is one as well where a program that is none of ours keeps the lock, such as
    ``flock(1)``.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            give_up = time.monotonic() + _LAST_PATIENCE
            while not _locks(descriptor) and time.monotonic() < give_up:
                time.sleep(_LOCK_POLL)
        yield


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _connect(path: Path) -> sqlite3.Connection:
    _require_file(path)
    # An iterator that loads images may be handed from thread to thread.
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path)
    except UnicodeDecodeError as error:
        connection.close()
        raise sqlite3.OperationalError("text that is not UTF-8") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _require_file(path: Path) -> None:
    """Make the file if it is not there, and tell in plain words why it cannot serve, before SQLite touches it.

    It is never opened here once it is there: closing it would drop the locks that another connection of this process
    holds on it (POSIX advisory locks belong to process and inode).
    """
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise IndexFileError(
            f"{path}: the index cannot be made here ({error.strerror}); name another place with --index"
        ) from error
    if not regular:
        raise IndexFileError(f"{path}: not a regular file, so no index")
    # SQLite opens what it may not write read-only, and in WAL mode fails only at the first row.
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise IndexFileError(
            f"{path}: the index, or its directory, is not writable; change its permissions, or use --index"
        )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    schema, version = _pragma(connection, "schema_version"), _pragma(connection, "user_version")
    if schema and _pragma(connection, "application_id") != _APPLICATION_ID:
        raise IndexFileError(f"{path}: a database of another program, not an index; name another file with --index")
    if version > _VERSION:
        raise IndexFileError(
            f"{path}: the index is of a later version of this program; upgrade, or use another --index"
        )
    for statement in _SETTINGS:
        connection.execute(statement)
    if not schema or version < _VERSION:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            # Another run may have done it meanwhile.
            schema, version = _pragma(connection, "schema_version"), _pragma(connection, "user_version")
            for statement in _SCHEMA if not schema else _FROM_VERSION_1 if version < _VERSION else ():
                connection.execute(statement)
    connection.execute(f"{_LOOK_UP} FALSE").fetchone()  # Fails where the schema is damaged.


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    try:
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    except OSError as error:
        raise IndexFileError(
            f"{path}: the index is damaged, and cannot be moved aside ({error.strerror}); remove it"
        ) from error
    return aside


def _was_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _inode(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_ino
    return None


def _code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary result code; the module's own complaint about text that is not UTF-8 bears none."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    code = _code(error)
    return isinstance(error, sqlite3.OperationalError) if code is None else code in _DAMAGE


def _failure(path: Path, error: sqlite3.Error) -> IndexFileError:
    way_out = _WAYS_OUT.get(_code(error) or sqlite3.SQLITE_ERROR, "an error of SQLite")
    return IndexFileError(f"{path}: the index cannot be used: {way_out} ({error})")


def _reserved(key: str, *, complete: bool) -> tuple[str, str, str]:
    """Return a name's own key, and the first and last of the keys that must not be another's.

    A name without extension holds all extensions, by a key that no path has.

    >>> _reserved("a.jpg", complete=True), _reserved("a-0f", complete=False)
    (('a.jpg', 'a.*', 'a.*'), ('a-0f.*', 'a-0f.', 'a-0f/'))
    """
    if complete:
        every = key.rpartition(".")[0] + ".*"
        return key, every, every
    # "/" follows "." in ASCII, and SQLite compares bytes: between them is whatever begins with the name and a dot.
    return key + ".*", key + ".", key + "/"


def _record(row: tuple[Any, ...]) -> Record:
    """Return what a row tells; one that this program never wrote, since bits have changed, counts as damage."""
    path = f"/{row[2]}/"
    # A name stays below the directory, and is neither hidden nor of a hidden folder.
    if tuple(map(type, row[2:])) not in _SOUND_TYPES or "/." in path or "//" in path or "\0" in path:
        raise sqlite3.OperationalError("a row that makes no sense")
    (_, number, name, complete, size, mtime_ns, media_type, sha256, etag, last_modified, target,
     fresh_until, saved, checked) = row  # fmt: skip
    image = None
    if size is not None:
        validators = Validators(etag, last_modified, target)
        sha256 = sha256 and sha256.hex()
        image = Image(name, size, mtime_ns, media_type, sha256, validators, fresh_until, saved, checked)
    return Record(number, Name(name, complete == 1), image)


def _values(row: int, image: Image, now: float) -> tuple[str | int | float | bytes | None, ...]:
    sha256 = None if image.sha256 is None else bytes.fromhex(image.sha256)
    return (
        *(image.file, image.size, _integer(image.mtime_ns), image.media_type, sha256, *image.validators),
        *(image.fresh_until, image.saved, image.checked, row, now),
    )


def _renewal(row: int, renewed: NotModified) -> tuple[str | int | float | bytes | None, ...]:
    image, validators, fresh_until, checked, _ = renewed
    return (*validators, fresh_until, checked, row, image.size, _integer(image.mtime_ns))


def _integer(mtime_ns: int) -> int:
    # A file's time may be of any year; SQLite's integers end in 2262. Cut off, it is never the file's: fetched anew.
    return mtime_ns if abs(mtime_ns) <= _INTEGER_MAX else _INTEGER_MAX


def _parts(digests: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (digests[start : start + _VARIABLES] for start in range(0, len(digests), _VARIABLES))


def _marks(digests: Sequence[bytes]) -> str:
    return f"({','.join('?' * len(digests))})"

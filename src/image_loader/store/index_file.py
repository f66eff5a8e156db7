"""The file of the index: opened or made, taken over from earlier versions, and moved aside when it is damaged."""

from __future__ import annotations

import itertools
import logging
import math
import os
import sqlite3
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from image_loader.errors import IndexFileError, is_out_of_descriptors
from image_loader.flock import ALONE, wait
from image_loader.model import Lifetime

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_MAGIC = b"SQLite format 3\0"
COMPANIONS = ("-wal", "-shm", "-journal")
"""What the names of the files end with that SQLite keeps beside a database."""
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
_APPLICATION_ID = 0x696D6C64
_VERSION = 3
_MODE = 0o666
_LOCK_PATIENCE = 60.0
"""Seconds to wait for another program's write; a run of ours holds the lock for some milliseconds."""
_LAST_PATIENCE = 1.0
"""Seconds to wait for it, and for what is read, when the run was told to end; always for the lock of the directory."""
_BUSY_TIMEOUT = 0.5
"""Seconds of that patience which are SQLite's own: as long as it waits, no signal takes effect."""
_LOCK_POLL = 0.02
"""Seconds between two tries."""
_STEPS = 100_000
"""Steps of SQLite's virtual machine, some milliseconds: in between, signals take effect, and the end of the run."""
_FIRST_STEPS = 1000
"""The same, until the schema was looked at: a step may call a function."""

_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA cache_size = -4000",
    "PRAGMA trusted_schema = OFF",
)
_LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: 2000, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 0}
"""What an expression may do before the schema is looked at: SQLite evaluates those of the table of its statistics."""
_UNLIMITED = 2**31 - 1
"""As far as SQLite was built for it."""
_NONE = type(None)
COLUMNS: dict[str, tuple[type, ...]] = {
    "digest": (bytes,),
    "rowid": (int,),
    "name": (str,),
    "complete": (int,),
    "size": (int,),
    "mtime_ns": (int,),
    "ctime_ns": (int, _NONE),
    "media_type": (str, _NONE),
    "sha256": (bytes, _NONE),
    "etag": (str, _NONE),
    "last_modified": (str, _NONE),
    "target": (bytes, _NONE),
    "lifetime": (bytes,),
    "saved": (float,),
    "checked": (float,),
}
"""What is asked for of a row, and the types that this program writes there once the row has an image."""
SELECT = f"SELECT {', '.join(COLUMNS)} FROM image WHERE "  # noqa: S608 (they are those above)
# With row ids, rows stand in the order of the list: one flush touches a few pages. Without, rows stood by digest, and
# each would dirty a page of its own (measured: a third of the speed).
_SCHEMA = (
    """CREATE TABLE image (
        digest BLOB NOT NULL UNIQUE,
        key TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        complete INTEGER NOT NULL,
        size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, media_type TEXT, sha256 BLOB,
        etag TEXT, last_modified TEXT, target BLOB, lifetime BLOB,
        saved REAL, checked REAL)""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
)
# How each version is made of the one before.
_MIGRATIONS = {
    1: ("ALTER TABLE image ADD COLUMN target BLOB",),
    # The column of the end stays: SQLite before 3.35 cannot drop it.
    2: (
        "ALTER TABLE image ADD COLUMN ctime_ns INTEGER",
        "ALTER TABLE image ADD COLUMN lifetime BLOB",
        "UPDATE image SET lifetime = lifetime_to(fresh_until, checked) WHERE size IS NOT NULL",
    ),
}

# A lifetime is one value: each column more takes a sixth of a microsecond to read (the sqlite3 module of CPython 3.11).
_LIFETIME = struct.Struct("<6d")

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_HINTS = {
    sqlite3.SQLITE_TOOBIG: "something in it is larger than this program makes it; drop that, or move the index away",
    sqlite3.SQLITE_BUSY: "another program keeps it locked; end that, or use --index",
    sqlite3.SQLITE_FULL: "no space left, on its disk or on that of temporary files (SQLITE_TMPDIR names another)",
    sqlite3.SQLITE_IOERR: "it cannot be read or written; its disk, or that of temporary files, may be full or failing",
    sqlite3.SQLITE_READONLY: "it is read-only now; check its permissions and its disk, or use --index",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the permissions of the file and its directory, and ulimit -n, "
    "or use --index",
}


def pack(lifetime: Lifetime) -> bytearray:
    """Return a lifetime as it is stored: its fields as six doubles, NaN for None."""
    max_age, expires, varies, date, age, redirects_end = lifetime
    return bytearray(
        _LIFETIME.pack(
            math.nan if max_age is None else max_age,
            math.nan if expires is None else expires,
            varies,
            date,
            age,
            math.nan if redirects_end is None else redirects_end,
        )
    )


def unpack(stored: bytes) -> Lifetime:
    """Return a lifetime that was stored; raise ``struct.error`` for what is none.

    >>> unpack(pack(Lifetime(60.0, date=1.7e9, age=5.0)))
    Lifetime(max_age=60.0, expires=None, varies=False, date=1700000000.0, age=5.0, redirects_end=None)
    """
    max_age, expires, varies, date, age, redirects_end = _LIFETIME.unpack(stored)
    return Lifetime(
        None if math.isnan(max_age) else max_age,
        None if math.isnan(expires) else expires,
        varies == 1.0,
        date,
        age,
        None if math.isnan(redirects_end) else redirects_end,
    )


def _lifetime_to(end: float | None, checked: float) -> bytearray:
    """Return the lifetime of an image of which an earlier version knew no more than its end.

    It becomes a max-age, as of the last check. A negative end told of a Vary: *, and none of what may have been a
    no-cache.
    """
    varies = end is not None and end < 0
    max_age = -1.0 if end is None or varies else max(end - checked, 0.0)
    return pack(Lifetime(max_age, None, varies, checked))


class EndedError(IndexFileError):
    """The run was told to end while the index was read."""


class Patience:
    """Waits for what another program has locked, and for SQLite."""

    def __init__(self, is_ending: Callable[[], bool]) -> None:
        self._is_ending = is_ending
        self.reading_since = time.monotonic()
        """When the transaction began, or the opening, if it may be broken off; otherwise ``math.inf``."""

    def out(self, attempt: Callable[[], T]) -> T:
        """Return what ``attempt`` returns, once nothing is locked or removed meanwhile; raise its error at the end."""
        begun = time.monotonic()
        while True:
            try:
                return attempt()
            except (sqlite3.OperationalError, FileNotFoundError) as error:
                passes = isinstance(error, FileNotFoundError) or code(error) == sqlite3.SQLITE_BUSY
                if not passes or self._is_over(begun):
                    raise
            time.sleep(_LOCK_POLL)

    def check(self) -> None:
        """Raise ``EndedError`` when the run is told to end."""
        if self._is_ending():
            raise EndedError("")

    def require_end(self, error: sqlite3.Error) -> None:
        """Raise ``KeyboardInterrupt`` if it was not the end of the run that has broken off what SQLite did.

        It was a signal's handler, then. The sqlite3 module drops what that raised, which may have been something else.
        """
        if not self._is_ending():
            raise KeyboardInterrupt from error

    def breaks_off(self) -> bool:
        """Whether what SQLite reads takes too long for a run that was told to end."""
        return time.monotonic() - self.reading_since > _LAST_PATIENCE and self._is_ending()

    def _is_over(self, begun: float) -> bool:
        return time.monotonic() - begun > (_LAST_PATIENCE if self._is_ending() else _LOCK_PATIENCE)


class Place:
    """Where the file of an index is: its folder, with which it may be moved, and its inode."""

    def __init__(self, path: Path) -> None:
        """Open the folder; raises ``OSError``."""
        self._name = path.name
        self._folder: int | None = None
        self._folder = os.open(path.parent, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        self._inode = self._found()

    def __del__(self) -> None:
        self.close()

    def holds(self) -> bool:
        """Whether the file is there, and no other one in its place."""
        return self._inode is not None and self._found() == self._inode

    def is_at(self, path: Path) -> bool:
        """Whether the file is the one that has this path."""
        with suppress(OSError):
            return path.stat().st_ino == self._inode
        return False

    def close(self) -> None:
        """Close the folder."""
        folder, self._folder = self._folder, None
        if folder is not None:
            os.close(folder)

    def _found(self) -> int | None:
        with suppress(OSError):
            return os.stat(self._name, dir_fd=self._folder).st_ino
        return None


def opened(database: str | Path, patience: Patience) -> sqlite3.Connection:
    """Open a database, of which little can take memory or time until ``prepare`` has looked at its schema."""
    # An iterator that loads images may be handed from thread to thread.
    connection = sqlite3.connect(
        database, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, uri=isinstance(database, str)
    )
    for limit, most in _LIMITS.items():
        connection.setlimit(limit, most)
    connection.set_progress_handler(patience.breaks_off, _FIRST_STEPS)
    return connection


def connect(path: Path, patience: Patience, *, named: bool, exclusive: bool) -> tuple[sqlite3.Connection, Place]:
    """Open the index, or make it; see ``Index``. Return its place as well. Raises ``IndexFileError``."""
    try:
        with alone(path.parent):
            connection = patience.out(lambda: _connect_or_begin_anew(path, patience, named=named, exclusive=exclusive))
            try:
                return connection, Place(path)
            except OSError as error:
                connection.close()
                raise _unusable(path, error) from error
    except sqlite3.Error as error:
        raise failure(path, error, patience) from error


def _connect_or_begin_anew(path: Path, patience: Patience, *, named: bool, exclusive: bool) -> sqlite3.Connection:
    try:
        return _connect(path, patience, exclusive=exclusive)
    except sqlite3.Error as error:
        if not is_unusable(error):
            raise
        require_database(path, error, named=named)
        aside = move_aside(path)
    _LOG.warning("%s: the index is damaged; moved aside to %s, and begun anew", path, aside.name)
    return _connect(path, patience, exclusive=exclusive)


def require_database(path: Path, error: Exception, *, named: bool) -> None:
    """Raise ``IndexFileError`` where the user has named a file that never was a database."""
    if named and not _was_database(path):
        raise IndexFileError(f"{path}: no index, but another file; name another one with --index") from error


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other processes from opening an index here meanwhile.

    Without it, two that find the same damage move aside each other's new index; and the switch to WAL fails at once
    where another makes it, since SQLite's busy timeout does not cover it (3.40). Nothing is kept away where a network
    file system locks no directory, or where another program, such as ``flock(1)``, keeps the lock.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            wait(descriptor, ALONE, _LAST_PATIENCE)
        yield


def _connect(path: Path, patience: Patience, *, exclusive: bool) -> sqlite3.Connection:
    _require_file(path)
    connection = opened(path, patience)
    try:
        if exclusive:
            # Before the first access: so the log's index is in this process's memory. Otherwise it would be in memory
            # that is shared, which on a network file system is not (SQLite, "Write-Ahead Logging", section 8).
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        prepare(connection, path, patience)
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
        try:
            require_safe(path)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _MODE))
    except OSError as error:
        raise _unusable(path, error) from error
    # SQLite opens what it may not write read-only, and in WAL mode fails only at the first row.
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise IndexFileError(
            f"{path}: the index, or its directory, is not writable; change its permissions, or use --index"
        )


def _unusable(path: Path, error: OSError) -> IndexFileError:
    advice = "see ulimit -n" if is_out_of_descriptors(error) else "name another place with --index"
    return IndexFileError(f"{path}: the index cannot be made here ({error.strerror}); {advice}")


def require_safe(path: Path) -> None:
    """Refuse what SQLite would follow, wait for, change elsewhere or delete, in the place of the index or beside it."""
    for suffix in COMPANIONS:
        with suppress(FileNotFoundError):
            companion = f"{path}{suffix}"
            _require_own(companion, os.lstat(companion), "a link, or no regular file; remove it")
    with suppress(FileNotFoundError), open(f"{path}-journal", "rb") as journal:  # noqa: PTH123
        journal.seek(max(0, journal.seek(0, os.SEEK_END) - len(_SUPER_JOURNAL)))
        # It ends like this where it names a journal of several databases, which is deleted after a rollback.
        if journal.read() == _SUPER_JOURNAL:
            raise IndexFileError(f"{path}-journal: names another file, which SQLite would delete; remove it")
    _require_own(str(path), path.stat(), "not a regular file, so no index")


def _require_own(path: str, state: os.stat_result, otherwise: str) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise IndexFileError(f"{path}: {otherwise}")
    if state.st_nlink > 1:
        raise IndexFileError(
            f"{path}: has another hard link, and a run would change both; put a copy of it in its place"
        )


def prepare(connection: sqlite3.Connection, path: Path, patience: Patience) -> None:
    """Make what was opened an index of this version, ready for use. Raises ``IndexFileError``, ``sqlite3.Error``."""
    _require_index(connection, path)
    for limit in _LIMITS:
        connection.setlimit(limit, _UNLIMITED)
    connection.set_progress_handler(patience.breaks_off, _STEPS)
    for statement in _SETTINGS:
        connection.execute(statement)
    if _is_empty(connection) or _pragma(connection, "user_version") < _VERSION:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            _require_index(connection, path)  # Another run, of another version maybe, may have done it meanwhile.
            connection.create_function("lifetime_to", 2, _lifetime_to)
            version = _pragma(connection, "user_version")
            for statement in _SCHEMA if _is_empty(connection) else _missing(version):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute(SELECT + "FALSE").fetchone()  # Fails where the schema is damaged.


def _require_index(connection: sqlite3.Connection, path: Path) -> None:
    """Raise ``IndexFileError`` for a database that this program has not made, or a later version of it."""
    is_empty = _is_empty(connection)
    if _pragma(connection, "application_id") not in ((0, _APPLICATION_ID) if is_empty else (_APPLICATION_ID,)):
        raise IndexFileError(f"{path}: a database of another program, not an index; name another file with --index")
    if not is_empty and _pragma(connection, "user_version") > _VERSION:
        raise IndexFileError(
            f"{path}: the index is of a later version of this program; upgrade, or use another --index"
        )
    for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
        if not _is_plain_table(sql):
            advice = "" if name == "image" else "drop that, or "
            raise IndexFileError(f"{path}: {name!r} in it is not as this program makes it; {advice}move the index away")


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def _is_plain_table(sql: object) -> bool:
    """Whether that is a table without expressions, each of which would need parentheses of its own.

    Triggers, views, virtual tables and expressions run code of whoever made them.
    """
    return isinstance(sql, str) and sql.startswith("CREATE TABLE ") and sql.count("(") == 1


def _missing(version: int) -> Iterator[str]:
    """Yield the statements that make an index of ``version`` one of this program's."""
    for earlier in range(max(version, 1), _VERSION):
        yield from _MIGRATIONS[earlier]


def is_unusable(error: sqlite3.Error) -> bool:
    """Whether an error at the opening means that the file is damaged, or lacks what an index has."""
    return is_damage(error) or code(error) == sqlite3.SQLITE_ERROR


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def move_aside(path: Path) -> Path:
    """Rename a damaged index, and the two files that SQLite keeps beside it; return its new path.

    Raises ``IndexFileError``. No other process may do the same meanwhile: see ``alone``.
    """
    first = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    names = itertools.chain([first], (Path(f"{first}-{number}") for number in itertools.count(2)))
    aside = next(name for name in names if not os.path.lexists(name))
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
    with suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
    return True


def code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary result code; None for the Python module's own error, about text that is not UTF-8."""
    extended = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is damaged."""
    found = code(error)
    return isinstance(error, sqlite3.OperationalError) if found is None else found in _DAMAGE


def failure(path: Path, error: sqlite3.Error, patience: Patience) -> IndexFileError:
    """Return an error that says what to do. May raise ``KeyboardInterrupt``: see ``require_end``."""
    if code(error) == sqlite3.SQLITE_INTERRUPT:
        patience.require_end(error)
        return EndedError(f"{path}: the run was ended before the index was read; run again")
    hint = _HINTS.get(code(error) or sqlite3.SQLITE_ERROR, "an error of SQLite")
    return IndexFileError(f"{path}: the index cannot be used: {hint} ({error})")

"""The index: what is known of each image between runs, and which name belongs to which URL."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

from image_loader.errors import IndexFileError
from image_loader.model import Image, Lifetime, Name, NotModified, Record, Validators
from image_loader.store import index_file
from image_loader.store.root import is_image_path
from image_loader.store.seen import SeenRows

FILE = "index.sqlite3"
"""What the index is called where the user names none."""

_PENDING_MAX = 5000
"""Images recorded but not yet written, whatever the flush interval: bounds the memory."""
_VARIABLES = 500
"""Digests in one query; SQLite before 3.32 takes no more than 999."""
_WRITING = "BEGIN IMMEDIATE"
_INTEGER_MAX = 2**63 - 1
"""The largest integer of SQLite."""

# sqlite3 looks for an adapter of each parameter that is None, bytes or bool, which takes a microsecond (CPython 3.11).
# So statements that run for each image get "" in place of None, bytearray in place of bytes, and int in place of bool.
_OF_DIGESTS = "rowid IN (SELECT rowid FROM image WHERE digest IN {})"
_CLAIM = """INSERT INTO image (digest, key, name, complete) SELECT ?, ?, ?, ?
    WHERE NOT EXISTS (SELECT 1 FROM image WHERE key BETWEEN ? AND ?) ON CONFLICT DO NOTHING"""
_RESERVE = """UPDATE OR IGNORE image SET key = ? WHERE rowid = ?
    AND NOT EXISTS (SELECT 1 FROM image WHERE key BETWEEN ? AND ? AND rowid <> ?)"""
_RENAME = "UPDATE image SET name = ?, complete = ?, mtime_ns = ?, ctime_ns = ? WHERE rowid = ?"
# Another run may have written to the row meanwhile. Its media type is kept if we have none (a file of another program),
# and its image if that was saved later than ours. A time in the future is from before the clock was set back. If the
# key belongs to another URL by now, the row stays as it is: without an image, or with one that does not match the file.
_RECORD = """UPDATE OR IGNORE image SET name = ?, key = coalesce(nullif(?, ''), key), complete = 1,
    size = ?, mtime_ns = ?, ctime_ns = nullif(?, ''),
    media_type = coalesce(nullif(?, ''), media_type), sha256 = coalesce(nullif(?, ''), sha256),
    etag = nullif(?, ''), last_modified = nullif(?, ''), target = nullif(?, ''), lifetime = ?,
    saved = ?, checked = ? WHERE rowid = ? AND (saved IS NULL OR saved <= ? OR saved > ?)"""
# Another run may have recorded a newer file by now. These statements are not about that one.
_TOUCH = "UPDATE image SET mtime_ns = ?, ctime_ns = ? WHERE rowid = ? AND size = ? AND sha256 IS ? AND saved = ?"
_RENEW = """UPDATE image SET etag = nullif(?, ''), last_modified = nullif(?, ''), target = nullif(?, ''),
    lifetime = ?, checked = ? WHERE rowid = ? AND size = ? AND mtime_ns = ?"""

_WITH_IMAGE = tuple(index_file.COLUMNS.values())
_WITHOUT_IMAGE = (bytes, int, str, int, *[type(None)] * (len(_WITH_IMAGE) - 4))


class Known:
    """What an index had at some time."""

    def __init__(self, images: int, last_row: int, since: float) -> None:
        self.images = images
        """How many there were."""
        self.last_row = last_row
        """The number of the last row; 0 without rows."""
        self.since = since
        """Seconds since the epoch: that time."""


class Index:
    """The open index; one thread at a time uses it. ``seen`` are the rows that this run has come to.

    To open it and to use it raises ``IndexFileError`` where the file cannot be used. One that proves damaged in use is
    moved aside before, so that the next run begins anew.
    """

    _place: index_file.Place | None = None
    """That of the file; None for a copy."""

    def __init__(
        self,
        path: Path,
        flush_interval: float,
        is_ending: Callable[[], bool] = lambda: False,
        *,
        named: bool = False,
        exclusive: bool = False,
    ) -> None:
        """Open the index, or make it; ``flush_interval`` is in seconds.

        A damaged one is moved aside with a warning, and a new one begun; the images are not touched. Where the user has
        ``named`` it, a file that never was a database is left alone. ``is_ending`` says that there is no time left to
        wait for other programs. While it is open ``exclusive``, no other program can read or write it.
        """
        self._begin(path, flush_interval, is_ending, named=named)
        self._connection, self._place = index_file.connect(self.path, self._patience, named=named, exclusive=exclusive)

    def _begin(self, path: Path, flush_interval: float, is_ending: Callable[[], bool], *, named: bool) -> None:
        if not named and os.path.islink(path):  # noqa: PTH114 (Path's raises)
            raise IndexFileError(f"{path}: a link, which is not followed; name the file that it leads to with --index")
        # Absolute: SQLite gives a meaning of their own to names such as ":memory:" and "file:a?b".
        self.path = Path(os.path.realpath(path))
        self.seen = SeenRows()
        self._flush_interval = flush_interval
        self._flushed = time.monotonic()
        self._pending: dict[int, tuple[Image, str | None]] = {}
        self._touched: dict[int, Image] = {}
        self._renewed: dict[int, NotModified] = {}
        # The row that comes next, should the list be in the order in which the rows were made; None where it is not.
        self._next_row: int | None = None
        self._patience = index_file.Patience(is_ending)
        self._abandoned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close()

    def is_empty(self) -> bool:
        """Whether nothing is known of any URL: it was begun just now, or all that it knew is lost."""
        with self._transaction("BEGIN"):
            return self._connection.execute("SELECT 1 FROM image LIMIT 1").fetchone() is None

    def known(self) -> Known:
        """Return what is known now; nothing if the run is ended meanwhile. ``unseen`` leaves out what comes after."""
        images, last = 0, None
        with suppress(index_file.EndedError), self._transaction("BEGIN"):
            images, last = self._connection.execute("SELECT count(size), max(rowid) FROM image").fetchone()
        return Known(images, last or 0, time.time())

    def unseen(self, known: Known, after: int, most: int) -> tuple[list[Record], int]:
        """Look at the next ``most`` rows behind the one ``after``; return the records that this run has not seen.

        Only those that are among the ``known`` ones, and whose images no run has saved or checked since. Also return
        the last row that was looked at, 0 if there are no more.
        """
        where = "rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?"
        with self._transaction("BEGIN"):
            rows = self._connection.execute(index_file.SELECT + where, (after, known.last_row, most)).fetchall()
        records = [record for record in map(_record, rows) if record.row not in self.seen]
        return [record for record in records if _is_from_before(record, known)], rows[-1][1] if rows else 0

    def forget(self, rows: Sequence[int]) -> None:
        """Delete these rows; their names are free then. No other run may be under way: it may hold their numbers."""
        with self._transaction(_WRITING):
            self._connection.executemany("DELETE FROM image WHERE rowid = ?", [(row,) for row in rows])

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
        """Give each URL, for good, the first of its names that no other URL has, those of other processes included.

        ``key`` returns the same for paths that some file system takes for one. A URL that already has a name keeps it.
        A URL whose names are all taken is missing from the result.
        """
        records: dict[bytes, Record] = {}
        waiting = {digest: iter(names) for digest, names in wanted}
        while waiting:
            # Before the lock is taken: other processes wait for it.
            tries = [
                (digest, name, key(name.path))
                for digest, names in waiting.items()
                for name in itertools.islice(names, 1)
            ]
            if not tries:
                break
            records |= self._insert(tries)
            waiting = {digest: waiting[digest] for digest, *_ in tries if digest not in records}
        return records

    def reserve(self, wanted: Sequence[tuple[int, Name, str]]) -> set[int]:
        """Reserve another name for each of some rows, by its key; return the rows whose names no other URL has."""
        reserved = set()
        with self._transaction(_WRITING):
            for row, name, key in wanted:
                own, first, last = _reserved(key, complete=name.complete)
                if self._connection.execute(_RESERVE, (own, row, first, last, row)).rowcount == 1:
                    reserved.add(row)
        return reserved

    def rename(self, renamed: Sequence[tuple[int, Name, Image | None]]) -> None:
        """Give rows the names that were reserved for them, which their images, if any, have by now."""
        with self._transaction(_WRITING):
            for row, name, image in renamed:
                times = (None, None) if image is None else _times(image)
                self._connection.execute(_RENAME, (name.path, name.complete, *times, row))

    def record(self, row: int, image: Image, key: str | None = None) -> None:
        """Remember the image of a URL, which has a ``row`` since it has a name; it is written with the next flush.

        ``key`` is that of the image's file, where it has another name than the row.
        """
        self._pending[row] = (image, key)

    def touch(self, row: int, image: Image) -> None:
        """Remember the times of a file that is the image of a URL, since its content is."""
        self._touched[row] = image

    def renew(self, row: int, renewed: NotModified) -> None:
        """Remember what a 304 said of the image of a URL."""
        if renewed.image.media_type is None:  # Nothing may be recorded yet of what another program saved.
            self.record(row, renewed.image)
        self._renewed[row] = renewed

    def tick(self) -> None:
        """Flush, where the flush interval has passed since the last time, or much has come since."""
        much = len(self._pending) + len(self._renewed) + len(self._touched) >= _PENDING_MAX
        if much or time.monotonic() - self._flushed >= self._flush_interval:
            self.flush()

    def flush(self) -> None:
        """Write what was recorded, in one transaction."""
        # Taken out first: what could not be written would only make close() fail once more.
        pending, self._pending = self._pending, {}
        touched, self._touched = self._touched, {}
        renewed, self._renewed = self._renewed, {}
        if (pending or touched or renewed) and not self._abandoned:
            with self._transaction(_WRITING):
                now, many = time.time(), self._connection.executemany
                many(_TOUCH, [_touch(row, image) for row, image in touched.items()])
                many(_RECORD, [_values(row, image, key, now) for row, (image, key) in pending.items()])
                many(_RENEW, [_renewal(row, answer) for row, answer in renewed.items()])
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._connection.close()
            place, self._place = self._place, None
            if place is not None:
                place.close()

    def _following(self, digests: Sequence[bytes]) -> dict[bytes, Record]:
        """Select those that come next in the order of the rows: consecutive rows cost half as much."""
        if self._next_row is None:
            return {}
        where = "rowid >= ? ORDER BY rowid LIMIT ?"
        rows = {
            row[0]: row for row in self._connection.execute(index_file.SELECT + where, (self._next_row, len(digests)))
        }
        return {digest: _record(rows[digest]) for digest in digests if digest in rows}

    def _select(self, digests: Sequence[bytes]) -> dict[bytes, Record]:
        found: dict[bytes, Record] = {}
        for part in _parts(digests):
            # Not by digest alone: SQLite would tell that of its own index, not that of the row which it leads to.
            query = index_file.SELECT + _OF_DIGESTS.format(_marks(part))
            rows = {row[0]: row for row in self._connection.execute(query, [*map(bytearray, part)])}
            if not rows.keys() <= set(part):
                raise sqlite3.OperationalError("a row that was not asked for")
            found.update((digest, _record(row)) for digest, row in rows.items())
        return found

    def _insert(self, tries: Sequence[tuple[bytes, Name, str]]) -> dict[bytes, Record]:
        """Give each URL its name if that is free, or the one that it has by now; the others are missing."""
        records = {}
        with self._transaction(_WRITING):
            for digest, name, key in tries:
                own, first, last = _reserved(key, complete=name.complete)
                done = self._connection.execute(
                    _CLAIM, (bytearray(digest), own, name.path, int(name.complete), first, last)
                )
                if done.rowcount == 1 and done.lastrowid is not None:
                    records[digest] = Record(done.lastrowid, name, None)
            if len(records) < len(tries):
                records |= self._select([digest for digest, *_ in tries if digest not in records])
        return records

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        try:
            self._patience.reading_since = math.inf if begin == _WRITING else time.monotonic()
            with self._connection:
                self._patience.out(lambda: self._connection.execute(begin))
                if begin == _WRITING and self._place is not None and not self._place.holds():
                    self._abandoned = True
                    raise IndexFileError(
                        f"{self.path}: the index was moved away or deleted during the run; run again (images stay)"
                    )
                yield
        except sqlite3.Error as error:
            if index_file.is_damage(error):
                self._abandon(error)
            raise index_file.failure(self.path, error, self._patience) from error

    def _abandon(self, error: sqlite3.Error) -> NoReturn:
        self._abandoned = True
        self._connection.close()
        with index_file.alone(self.path.parent):
            # Another process may have found the damage before us, and begun anew under the same name.
            if self._place is not None and self._place.is_at(self.path):
                index_file.move_aside(self.path)
        raise IndexFileError(
            f"{self.path}: the index is damaged and was moved aside; run again, and a new one is begun (images stay)"
        ) from error


def _is_from_before(record: Record, known: Known) -> bool:
    image = record.image
    return image is None or max(image.saved, image.checked) < known.since


def _reserved(key: str, *, complete: bool) -> tuple[str, str, str]:
    """Return a name's own key, and the first and last of the keys that must not be another's.

    A name without extension reserves all extensions, by a key that no path has.

    >>> _reserved("a.jpg", complete=True), _reserved("a-0f", complete=False)
    (('a.jpg', 'a.*', 'a.*'), ('a-0f.*', 'a-0f.', 'a-0f/'))
    """
    if complete:
        every = key.rpartition(".")[0] + ".*"
        return key, every, every
    # "/" follows "." in ASCII, and SQLite compares bytes: between them is whatever begins with the name and a dot.
    return key + ".*", key + ".", key + "/"


def _record(row: tuple[Any, ...]) -> Record:
    """Return the record in a row. A row with values that this program never writes counts as damage."""
    if not _are_sound(tuple(map(type, row))) or not is_image_path(row[2]):
        raise sqlite3.OperationalError("a row that makes no sense")
    (_, number, name, complete, size, mtime_ns, ctime_ns, media_type, sha256, etag, last_modified, target,
     lifetime, saved, checked) = row  # fmt: skip
    image = None
    if size is not None:
        validators = Validators(etag, last_modified, target)
        try:
            lifetime = index_file.unpack(lifetime)
        except struct.error as error:
            raise sqlite3.OperationalError("a lifetime that makes no sense") from error
        sha256 = sha256 and sha256.hex()
        image = Image(name, size, mtime_ns, ctime_ns, media_type, sha256, validators, lifetime, saved, checked)
    return Record(number, Name(name, complete == 1), image)


@functools.cache
def _are_sound(types: tuple[type, ...]) -> bool:
    """Whether the columns of a row have types that this program writes."""
    return types == _WITHOUT_IMAGE or all(map(operator.contains, _WITH_IMAGE, types))


_Values = tuple[str | int | float | bytes | bytearray | None, ...]


def _values(row: int, image: Image, key: str | None, now: float) -> _Values:
    return (
        image.file,
        key or "",
        image.size,
        *_times(image),
        image.media_type or "",
        "" if image.sha256 is None else bytearray.fromhex(image.sha256),
        *_answered(image.validators, image.lifetime),
        image.saved,
        image.checked,
        row,
        image.saved,
        now,
    )


def _touch(row: int, image: Image) -> _Values:
    sha256 = None if image.sha256 is None else bytes.fromhex(image.sha256)
    return (*_times(image), row, image.size, sha256, image.saved)


def _times(image: Image) -> tuple[int | None, int | None]:
    return _integer(image.mtime_ns), _integer(image.ctime_ns)


def _renewal(row: int, renewed: NotModified) -> _Values:
    image, validators, lifetime, checked, *_ = renewed
    return (*_answered(validators, lifetime), checked, row, image.size, _integer(image.mtime_ns))


def _answered(validators: Validators, lifetime: Lifetime) -> _Values:
    """Return what the server answered, in the order of the columns."""
    etag, last_modified, target = validators
    return (etag or "", last_modified or "", bytearray(target) if target else "", index_file.pack(lifetime))


def _integer(time_ns: int | None) -> int | None:
    # A file's time may be of any year; in SQLite's integers, nanoseconds end in 2262. Cut off, it is never the file's.
    return time_ns if time_ns is None or abs(time_ns) <= _INTEGER_MAX else _INTEGER_MAX


def _parts(digests: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (digests[start : start + _VARIABLES] for start in range(0, len(digests), _VARIABLES))


def _marks(digests: Sequence[bytes]) -> str:
    return f"({','.join('?' * len(digests))})"

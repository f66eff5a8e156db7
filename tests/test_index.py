"""What is known of each image between runs, and which name belongs to which URL."""

from __future__ import annotations

import errno
import fcntl
import functools
import gc
import hashlib
import json
import logging
import os
import random
import resource
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from conftest import ENVIRONMENT, limited, open_files
from image_loader import freshness
from image_loader.errors import IndexFileError
from image_loader.model import Image, Lifetime, Name, NotModified, Record, Validators
from image_loader.store import index as index_module
from image_loader.store import index_copy, index_file
from image_loader.store.index import Index, Known
from image_loader.store.index_copy import IndexCopy
from test_directory import unprivileged

NEVER = 3600.0
PRELUDE = """
import hashlib, os, sys
from pathlib import Path
from image_loader.errors import IndexFileError
from image_loader.store.index import Index
from image_loader.model import Image, Lifetime, Name, Validators

def digest(text):
    return hashlib.sha256(text.encode()).digest()[:16]

def say(text):
    print(text, flush=True)
"""
IMAGE = Image(
    file="a.jpg",
    size=20_000,
    mtime_ns=1_700_000_000_123_456_789,
    ctime_ns=1_700_000_002_123_456_789,
    media_type="image/jpeg",
    sha256="0f" * 32,
    validators=Validators('W/"caf\xe9"', "Tue, 14 Nov 2023 22:13:20 GMT", b"0123456789abcdef"),
    lifetime=Lifetime(60.0, 1_700_000_060.0, True, 1_700_000_001.0, 0.5, 1_700_000_030.25),
    saved=1_700_000_000.5,
    checked=1_700_000_001.75,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite3"


@pytest.fixture
def index(path: Path) -> Iterator[Index]:
    with Index(path, NEVER) as opened:
        yield opened


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def claim(index: Index, url: str, *names: str) -> Name | None:
    """Claim the first free one of these names; one that ends in a dash lacks its extension."""
    candidates = [Name(name.removesuffix("-?"), complete=not name.endswith("-?")) for name in names]
    record = index.claim([(digest(url), candidates)], str.casefold).get(digest(url))
    return None if record is None else record.name


def claimed_path(index: Index, url: str, *names: str) -> str | None:
    name = claim(index, url, *names)
    return None if name is None else name.path


def record(index: Index, url: str, image: Image) -> None:
    """Record the image of a URL that has a name."""
    key = digest(url)
    index.record(index.look_up([key])[key].row, image)


def renew(index: Index, url: str, renewed: NotModified) -> None:
    """Remember a 304 for a URL that has a name."""
    key = digest(url)
    index.renew(index.look_up([key])[key].row, renewed)


def known_image(index: Index, url: str) -> Image | None:
    """Return what the index holds of the image of a URL, all of it written."""
    index.flush()
    key = digest(url)
    return index.look_up([key])[key].image


def fill(path: Path, count: int) -> list[bytes]:
    """Make an index of so many images; return their URLs' digests."""
    digests = [digest(str(number)) for number in range(count)]
    with Index(path, NEVER) as index:
        records = index.claim([(key, [Name(f"{key.hex()}.jpg", complete=True)]) for key in digests], str.casefold)
        for record in records.values():
            index.record(record.row, IMAGE._replace(file=record.name.path))
    return digests


def open_index(path: Path) -> Index:
    """Open an index that is not flushed in between."""
    return Index(path, NEVER)


OPENED = [open_index, IndexCopy]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process of its own that has this index module at hand."""
    command = [sys.executable, "-c", PRELUDE + script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)


def said(process: subprocess.Popen[str], given: str = "") -> str:
    """Return what the process still says until it ends, which it must do well."""
    output, errors = process.communicate(given, timeout=120)
    assert process.returncode == 0, errors
    return output


def is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


# What is remembered.


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        IMAGE._replace(media_type=None, sha256=None, validators=Validators(), lifetime=Lifetime(), size=0, mtime_ns=0),
        IMAGE._replace(ctime_ns=None),
        IMAGE._replace(validators=Validators('"' + "\xff" * 1000 + '"', " odd  spaces "), mtime_ns=-1, size=2**62),
    ],
)
def test_an_image_comes_back_as_it_was_recorded(path: Path, image: Image) -> None:
    with Index(path, NEVER) as index:
        claim(index, "u", "a.jpg")
        record(index, "u", image)
    with Index(path, NEVER) as index:
        assert index.look_up([digest("u")]) == {digest("u"): Record(1, Name("a.jpg", complete=True), image)}


@pytest.mark.parametrize("mtime_ns", [2**63 - 1, 2**62 + 5, 0, -(2**62) - 5])
def test_a_file_time_of_any_year_that_sqlite_counts_comes_back(index: Index, mtime_ns: int) -> None:
    claim(index, "u", "a.jpg")
    record(index, "u", IMAGE._replace(mtime_ns=mtime_ns, ctime_ns=mtime_ns))
    image = known_image(index, "u")
    assert image is not None
    assert (image.mtime_ns, image.ctime_ns) == (mtime_ns, mtime_ns)


@pytest.mark.parametrize("mtime_ns", [2**70, -(2**70)])
def test_a_file_time_beyond_what_sqlite_counts_is_never_taken_for_the_files(path: Path, mtime_ns: int) -> None:
    with Index(path, NEVER) as index:
        claim(index, "u", "a.jpg")
        record(index, "u", IMAGE._replace(mtime_ns=mtime_ns))
        index.flush()
        image = index.look_up([digest("u")])[digest("u")].image
    assert image is not None
    assert image.mtime_ns != mtime_ns


def test_a_url_never_seen_is_missing_from_the_answer(index: Index) -> None:
    assert index.look_up([digest("u")]) == {}


def test_more_urls_than_fit_one_query_are_looked_up(path: Path) -> None:
    digests = fill(path, 1203)
    with Index(path, NEVER) as index:
        assert set(index.look_up(digests)) == set(digests)


@pytest.mark.parametrize("order", ["as made", "backwards", "shuffled", "every second", "with others between"])
def test_urls_are_looked_up_in_whatever_order(path: Path, order: str) -> None:
    made = fill(path, 300)
    digests = {
        "as made": made,
        "backwards": made[::-1],
        "shuffled": random.Random(1).sample(made, 300),
        "every second": made[::2],
        "with others between": [key for number, each in enumerate(made) for key in (each, digest(f"new {number}"))],
    }[order]
    with Index(path, NEVER) as index:
        for start in range(0, len(digests), 50):
            wanted = digests[start : start + 50]
            found = index.look_up(wanted)
            expected = {key: f"{key.hex()}.jpg" for key in wanted if key in made}
            assert {key: record.name.path for key, record in found.items()} == expected


def test_the_last_record_of_a_url_counts(index: Index) -> None:
    claim(index, "u", "a.jpg")
    for size in (1, 2):
        record(index, "u", IMAGE._replace(size=size))
    index.flush()
    image = index.look_up([digest("u")])[digest("u")].image
    assert image is not None
    assert image.size == 2


@pytest.mark.parametrize(("seconds", "theirs"), [(100.0, True), (-100.0, False), (1e9, False)])
def test_of_two_runs_that_saved_an_image_the_later_one_counts_whoever_flushes_last(
    path: Path, seconds: float, *, theirs: bool
) -> None:
    saved = time.time() - 1000
    with Index(path, NEVER) as ours, Index(path, NEVER) as others:
        claim(ours, "u", "a.jpg")
        record(others, "u", IMAGE._replace(size=1, saved=saved + seconds))
        others.flush()
        record(ours, "u", IMAGE._replace(size=2, saved=saved))
        image = known_image(ours, "u")
    assert image is not None
    # What was saved in a time to come was so before the clock was set back.
    assert image.size == (1 if theirs else 2)


def test_a_304_renews_its_validators_its_lifetime_and_when_it_was_checked_and_nothing_else(index: Index) -> None:
    claim(index, "u", "a.jpg")
    record(index, "u", IMAGE)
    assert known_image(index, "u") == IMAGE
    renew(index, "u", NotModified(IMAGE, Validators('"new"', None), Lifetime(7.0), 8.0))
    expected = IMAGE._replace(validators=Validators('"new"', None), lifetime=Lifetime(7.0), checked=8.0)
    assert known_image(index, "u") == expected


@pytest.mark.parametrize("newer", [IMAGE._replace(size=1), IMAGE._replace(mtime_ns=1)])
def test_a_304_about_an_image_that_another_run_has_replaced_meanwhile_changes_nothing(
    path: Path, index: Index, newer: Image
) -> None:
    claim(index, "u", "a.jpg")
    record(index, "u", IMAGE)
    index.flush()
    with Index(path, NEVER) as other:
        record(other, "u", newer)
    renew(index, "u", NotModified(IMAGE, Validators('"old"', None), Lifetime(7.0), 8.0))
    assert known_image(index, "u") == newer


def test_a_304_about_a_file_that_another_program_had_saved_records_it(index: Index) -> None:
    claim(index, "u", "a.jpg")
    adopted = IMAGE._replace(media_type=None, sha256=None, validators=Validators(None, "then"), lifetime=Lifetime())
    renew(index, "u", NotModified(adopted, Validators('"new"', "then"), Lifetime(7.0), 8.0))
    expected = adopted._replace(validators=Validators('"new"', "then"), lifetime=Lifetime(7.0), checked=8.0)
    assert known_image(index, "u") == expected


def test_nothing_is_written_before_the_flush_interval_has_passed(path: Path, index: Index) -> None:
    claim(index, "u", "a.jpg")
    record(index, "u", IMAGE)
    index.tick()
    with Index(path, NEVER) as other:
        assert other.look_up([digest("u")])[digest("u")].image is None


def test_what_was_recorded_is_written_once_the_flush_interval_has_passed(path: Path) -> None:
    with Index(path, 0) as index, Index(path, NEVER) as other:
        claim(index, "u", "a.jpg")
        record(index, "u", IMAGE)
        index.tick()
        assert other.look_up([digest("u")])[digest("u")].image == IMAGE


@pytest.mark.parametrize("kinds", ["record record record", "record touch renew", "renew touch renew touch"])
@pytest.mark.parametrize("most", [1, 3])
def test_what_waits_to_be_written_is_bounded(
    path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, kinds: str, most: int
) -> None:
    digests = fill(path, 4)
    rows = [record.row for record in index.look_up(digests).values()]
    monkeypatch.setattr(index_module, "_PENDING_MAX", most)
    for row, kind in zip(rows, kinds.split(), strict=False):
        image = IMAGE._replace(file=f"{digests[row - 1].hex()}.jpg", mtime_ns=7)
        match kind:
            case "record":
                index.record(row, image)
            case "touch":
                index.touch(row, image)
            case _:
                index.renew(row, NotModified(IMAGE, Validators('"new"'), IMAGE.lifetime, 7.0))
    index.tick()
    with Index(path, NEVER) as other:
        images = [record.image for record in other.look_up(digests).values()]
    changed = [image is not None and (image.mtime_ns == 7 or image.validators.etag == '"new"') for image in images]
    assert changed == [position < len(kinds.split()) for position in range(4)]


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_an_index_follows_the_umask_and_leaves_one_file_when_it_is_closed(path: Path, umask: int) -> None:
    mask = os.umask(umask)
    try:
        with Index(path, NEVER) as index:
            claim(index, "u", "a.jpg")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(["index.sqlite3", "index.sqlite3-wal", "index.sqlite3-shm"], 0o666 & ~umask)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", [":memory:", "file:a?mode=memory", "\udcff.sqlite3"])
def test_any_file_name_is_just_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with Index(Path(name), NEVER):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_index_that_is_named_by_a_symbolic_link_is_made_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with Index(tmp_path / "link", NEVER, named=True) as index:
        claim(index, "u", "a.jpg")
    assert (tmp_path / "target").is_file()
    with IndexCopy(tmp_path / "link", named=True) as copy:
        assert digest("u") in copy.look_up([digest("u")])


@pytest.mark.parametrize("content", [None, b"", b"victim", b"SQLite format 3\0" + bytes(1000)])
@pytest.mark.parametrize("opened", OPENED)
def test_a_link_in_the_place_of_the_index_is_not_followed(
    tmp_path: Path, content: bytes | None, opened: Callable[[Path], Index]
) -> None:
    thesis = tmp_path / "thesis"
    if content is not None:
        thesis.write_bytes(content)
    (tmp_path / "link").symlink_to("thesis")
    with pytest.raises(IndexFileError, match="a link, which is not followed; name the file that it leads to"):
        opened(tmp_path / "link")
    assert {path.name for path in tmp_path.iterdir()} == {"link", *([] if content is None else ["thesis"])}
    assert content is None or thesis.read_bytes() == content


def test_an_index_that_lacks_a_descriptor_is_told_with_the_way_out(path: Path) -> None:
    spare = [os.open("/", os.O_RDONLY) for _ in range(3)]
    with limited(resource.RLIMIT_NOFILE, max(spare) + 1), pytest.raises(IndexFileError, match="ulimit -n"):
        Index(path, NEVER)
    for each in spare:
        os.close(each)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder"])
@pytest.mark.parametrize("opened", OPENED)
def test_what_is_no_file_beside_the_index_is_neither_followed_nor_waited_for(
    path: Path, suffix: str, kind: str, opened: Callable[[Path], Index]
) -> None:
    fill(path, 1)
    victim, place = path.with_name("victim"), Path(f"{path}{suffix}")
    victim.write_bytes(b"victim")
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "hard link":
        place.hardlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    told = "has another hard link, " if kind == "hard link" else "a link, or no regular file; remove it"
    with pytest.raises(IndexFileError, match=f"index.sqlite3{suffix}: {told}"):
        opened(path)
    assert victim.read_bytes() == b"victim"


@pytest.mark.parametrize("opened", OPENED)
def test_an_index_that_is_a_fifo_is_not_waited_for(path: Path, opened: Callable[[Path], Index]) -> None:
    os.mkfifo(path)
    with pytest.raises(IndexFileError, match="not a regular file"):
        opened(path)


@pytest.mark.parametrize("opened", OPENED)
def test_an_index_with_another_hard_link_is_refused(path: Path, opened: Callable[[Path], Index]) -> None:
    """Such as that of a snapshot, whose index it would be as well."""
    digests = fill(path, 3)
    other = path.with_name("snapshot.sqlite3")
    other.hardlink_to(path)
    before = other.read_bytes()
    with pytest.raises(IndexFileError, match=r"has another hard link, .*; put a copy of it in its place"):
        opened(path)
    assert other.read_bytes() == before
    path.unlink()
    path.write_bytes(before)
    with opened(path) as index:
        assert len(index.look_up(digests)) == 3


@pytest.mark.parametrize("victim_name", ["victim", "victim-of-all."])
def test_a_journal_that_names_another_file_deletes_nothing(path: Path, victim_name: str) -> None:
    """It is what SQLite leaves where a transaction over several databases was cut off."""
    fill(path, 1)
    victim, name = path.with_name(victim_name), os.fsencode(path.with_name(victim_name))
    victim.write_bytes(b"victim")
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">5I", 0, 0, 0, 512, 4096)
    trailer = struct.pack(">I", 0x40000000 // 4096 + 1) + name
    trailer += struct.pack(">II", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7")
    Path(f"{path}-journal").write_bytes(header.ljust(512, b"\0") + trailer)
    with pytest.raises(IndexFileError, match="-journal: names another file, which SQLite would delete"):
        Index(path, NEVER)
    assert victim.read_bytes() == b"victim"


@pytest.mark.parametrize("journal", [bytes(600), b"\xff" * 600, bytes.fromhex("d9d505f920a163d7") + b"\xff", b"short"])
def test_a_journal_that_a_killed_program_has_left_is_no_hindrance(path: Path, journal: bytes) -> None:
    digests = fill(path, 3)
    Path(f"{path}-journal").write_bytes(journal)
    with Index(path, NEVER) as index:
        assert len(index.look_up(digests)) == 3


HIDDEN = """PRAGMA writable_schema = ON;
CREATE TRIGGER slow BEFORE INSERT ON image BEGIN SELECT count(*) FROM image; END;
UPDATE sqlite_master SET type = 'Trigger' WHERE type = 'trigger'"""


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TRIGGER slow BEFORE INSERT ON image BEGIN SELECT count(*) FROM image; END",
        "CREATE VIEW slow AS SELECT 1",
        "CREATE VIRTUAL TABLE slow USING fts5(text)",
        "CREATE INDEX slow ON image (length(name))",
        "CREATE UNIQUE INDEX slow ON image (name) WHERE name LIKE '%a%'",
        "CREATE INDEX slow ON image (name)",
        "CREATE TABLE slow (a CHECK (a > 0))",
        "CREATE TABLE slow (a AS (b), b)",
        HIDDEN,
    ],
)
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("opened", OPENED)
def test_a_schema_that_may_run_code_is_refused_before_anything_is_done(
    path: Path, script: str, version: int, opened: Callable[[Path], Index]
) -> None:
    fill(path, 3)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    with pytest.raises(IndexFileError, match=r"'slow.*' in it is not as this program makes it; drop that"):
        opened(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM image").fetchone() == (3,)


def add_to_table(path: Path, more: str) -> None:
    """Make the table of an empty index anew, with more in it."""
    with closing(sqlite3.connect(path)) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'image'").fetchone()
        connection.execute("DROP TABLE image")
        connection.execute(f"{sql.removesuffix(')')}{more})")


@pytest.mark.parametrize(
    "more",
    [
        ", CHECK (instr(name, 'a'))",
        ", more INTEGER CHECK (more > 0)",
        ", more INTEGER DEFAULT (random())",
        ", more INTEGER AS (length(name))",
        ", FOREIGN KEY (name) REFERENCES image (name)",
    ],
)
@pytest.mark.parametrize("opened", OPENED)
def test_a_table_that_may_run_code_is_refused_before_anything_is_done(
    path: Path, more: str, opened: Callable[[Path], Index]
) -> None:
    fill(path, 0)
    add_to_table(path, more)
    with pytest.raises(IndexFileError, match="'image' in it is not as this program makes it; move the index away"):
        opened(path)


@pytest.mark.parametrize(
    "more", [", note", ", note VARCHAR", ', "note" TEXT DEFAULT 1', ", note TEXT UNIQUE COLLATE NOCASE"]
)
def test_columns_and_tables_of_the_user_are_no_hindrance(path: Path, more: str) -> None:
    fill(path, 0)
    add_to_table(path, more)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE notes (a); ALTER TABLE image RENAME TO b; ALTER TABLE b RENAME TO image")
    with Index(path, NEVER) as index:
        claim(index, "u", "a.jpg")
    for opened in OPENED:
        with opened(path) as index:
            assert digest("u") in index.look_up([digest("u")])


@pytest.mark.parametrize("sql", ["CAST(x'ff' AS TEXT)", "5", "replace(sql, 'image', 'other')"])
def test_a_schema_that_makes_no_sense_counts_as_damage(path: Path, sql: str) -> None:
    fill(path, 1)
    change_schema(path, sql, "image")
    with pytest.raises(IndexFileError, match="is damaged; a run moves it aside"):
        IndexCopy(path)
    with Index(path, NEVER) as index:
        assert index.is_empty()


def change_schema(path: Path, sql: str, table: str) -> None:
    """Change the text that a table was made by."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(f"UPDATE sqlite_master SET sql = {sql} WHERE name = ?", (table,))
        connection.commit()


@pytest.mark.parametrize("opened", OPENED)
def test_a_schema_that_is_not_text_is_refused(path: Path, opened: Callable[[Path], Index]) -> None:
    fill(path, 1)
    change_schema(path, "CAST(sql AS BLOB)", "image")
    with pytest.raises(IndexFileError, match="'image' in it is not as this program makes it"):
        opened(path)


@pytest.mark.parametrize(
    "expression", ["length(hex(zeroblob(20000)))", "instr(hex(zeroblob(4e6)), hex(zeroblob(2e6)) || '1')", "1 LIKE '%'"]
)
def test_statistics_that_take_for_ever_are_refused_before_they_do(path: Path, expression: str) -> None:
    fill(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ANALYZE")
        connection.execute("INSERT INTO sqlite_stat1 VALUES ('image', NULL, '1')")
        connection.commit()
    quoted = expression.replace("'", "''")
    change_schema(path, f"'CREATE TABLE sqlite_stat1(tbl,idx,stat AS ({quoted}))'", "sqlite_stat1")
    for opened in OPENED:
        with pytest.raises(IndexFileError, match="'sqlite_stat1' in it is not as this program makes it"):
            opened(path)


def inner_page(size: int, child: int) -> bytes:
    """Return a page of a table's tree, of so many bytes, that leads 300 times to the same page below."""
    cells = (struct.pack(">I", child) + b"\1") * 300
    pointers = b"".join((size - len(cells) + 5 * number).to_bytes(2, "big") for number in range(300))
    header = struct.pack(">BHHHBI", 5, 0, 300, size - len(cells), 0, child) + pointers
    return header.ljust(size - len(cells), b"\0") + cells


def make_endless(path: Path, levels: int) -> None:
    """Make an index whose table has 300 to the power of ``levels`` rows, all of them the same."""
    Index(path, NEVER).close()
    content = path.read_bytes()
    size = int.from_bytes(content[16:18], "big")
    first = len(content) // size + 1
    leaf = struct.pack(">BHHHBH", 13, 0, 1, size - 6, 0, size - 6).ljust(size - 6, b"\0") + bytes([2, 1, 2, 0, 0, 0])
    inner = [inner_page(size, first + level) for level in range(levels)]
    path.write_bytes(b"".join([content[:size], inner[0], content[2 * size :], *inner[1:], leaf]))
    with path.open("r+b") as file:
        file.seek(28)
        file.write((path.stat().st_size // size).to_bytes(4, "big"))


@pytest.mark.parametrize("is_copy", [True, False])
def test_what_takes_too_long_to_count_is_left_when_the_run_is_told_to_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, is_copy: bool
) -> None:
    make_endless(path, 3)
    monkeypatch.setattr(index_file, "_LAST_PATIENCE", 0.05)
    ends = threading.Event()
    with IndexCopy(path, ends.is_set) if is_copy else Index(path, NEVER, ends.is_set) as index:
        ends.set()
        known = index.known()
        assert (known.images, known.last_row) == (0, 0)
        with pytest.raises(IndexFileError, match="the run was ended before the index was read; run again"):
            index.unseen(Known(1, 2**62, time.time()), 0, 2**40)


def test_what_is_counted_in_time_is_not_left_though_the_run_is_told_to_end(path: Path) -> None:
    make_endless(path, 2)
    with Index(path, NEVER, lambda: True) as index:
        assert index.known().last_row == 1


def test_an_interrupt_is_raised_though_it_comes_while_sqlite_reads(path: Path) -> None:
    make_endless(path, 4)
    with start("index = Index(Path(sys.argv[1]), 1.0); say('open'); index.known()", path) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        reader.send_signal(signal.SIGINT)
        assert reader.communicate(timeout=60)[1].endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("opened", OPENED)
def test_a_schema_that_is_too_large_is_told_with_the_way_out(path: Path, opened: Callable[[Path], Index]) -> None:
    fill(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE notes ({', '.join(f'column_{number}' for number in range(300))})")
    with pytest.raises(IndexFileError, match="is larger than this program makes it; drop that, or move the index away"):
        opened(path)


def test_the_statistics_of_sqlite_are_no_hindrance(path: Path) -> None:
    digests = fill(path, 3)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ANALYZE")
    for opened in OPENED:
        with opened(path) as index:
            assert len(index.look_up(digests)) == 3


def test_the_place_of_an_index_is_not_that_of_another(path: Path) -> None:
    paths = [path, path.with_name("other")]
    for each in paths:
        each.touch()
    places = [index_file.Place(each) for each in paths]
    assert [[place.is_at(each) for each in paths] for place in places] == [[True, False], [False, True]]


def test_the_place_of_an_index_that_was_gone_at_once_holds_nothing(path: Path) -> None:
    assert not index_file.Place(path).holds()


def test_an_index_that_a_later_version_takes_over_meanwhile_is_left_as_it_is(path: Path) -> None:
    fill(path, 3)
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("PRAGMA user_version = 2")
        other.execute("ALTER TABLE image DROP COLUMN lifetime")
        other.execute("BEGIN IMMEDIATE")
        opening = pool.submit(Index, path, NEVER)
        while not opening.running():
            time.sleep(0.01)
        time.sleep(0.3)
        other.execute("PRAGMA user_version = 4")
        other.execute("COMMIT")
        with pytest.raises(IndexFileError, match="the index is of a later version of this program; upgrade"):
            opening.result(60)
        assert other.execute("PRAGMA user_version").fetchone() == (4,)


def test_an_error_that_does_not_pass_is_raised_at_once() -> None:
    errors = [sqlite3.OperationalError("no such table"), sqlite3.OperationalError("locked")]
    errors[0].sqlite_errorcode, errors[1].sqlite_errorcode = sqlite3.SQLITE_ERROR, sqlite3.SQLITE_BUSY_SNAPSHOT
    tries = iter(reversed(errors))

    def fails() -> None:
        raise next(tries)

    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        index_file.Patience(lambda: False).out(fails)


def test_an_extended_code_of_sqlite_is_told_as_its_primary_one(path: Path) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    assert "cannot be read or written" in str(index_file.failure(path, error, index_file.Patience(lambda: False)))


@pytest.mark.skipif(sys.platform != "linux", reason="takes /proc")
def test_the_place_of_an_index_that_is_dropped_is_not_left_open(path: Path) -> None:
    for _ in range(5):
        index_file.Place(path)
    gc.collect()
    assert str(path.parent) not in open_files(os.getpid())


def test_another_index_at_the_old_place_of_a_damaged_one_is_left_alone(path: Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir()
    index = Index(folder / "index", NEVER)
    claim(index, "u", "a.jpg")
    index.close()
    index = Index(folder / "index", NEVER)
    folder.rename(path.parent / "moved")
    folder.mkdir()
    fill(folder / "index", 1)
    with pytest.raises(IndexFileError, match="is damaged"):
        index._abandon(sqlite3.DatabaseError("damaged"))
    assert [each.name for each in folder.iterdir()] == ["index"]
    index.close()


def test_an_index_goes_along_where_its_folder_is_moved(path: Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir()
    index = Index(folder / "index", NEVER)
    claim(index, "u", "a.jpg")
    folder.rename(path.parent / "moved")
    claim(index, "v", "b.jpg")
    record(index, "u", IMAGE)
    index.close()
    with Index(path.parent / "moved" / "index", NEVER) as moved:
        assert known_image(moved, "u") == IMAGE
        assert claimed_path(moved, "v", "c.jpg") == "b.jpg"


@pytest.mark.parametrize("instead", ["another", "nothing"])
@pytest.mark.parametrize("writing", ["claim", "flush", "close"])
def test_an_index_that_is_moved_away_during_the_run_is_an_error(path: Path, instead: str, writing: str) -> None:
    index = Index(path, NEVER)
    claim(index, "u", "a.jpg")
    index_file.move_aside(path)
    if instead == "another":
        fill(path, 1)
    with pytest.raises(
        IndexFileError, match=r"index.sqlite3: the index was moved away or deleted during the run; run again"
    ):
        if writing == "claim":
            claim(index, "v", "b.jpg")
        else:
            record(index, "u", IMAGE)
            index.flush() if writing == "flush" else index.close()
    index.close()
    assert path.exists() is (instead == "another")


# What was seen in this run.


def test_a_url_is_seen_for_the_first_time_once_in_a_run(path: Path) -> None:
    digests = fill(path, 1203)
    with Index(path, NEVER) as index:
        records = index.look_up(digests).values()
        assert all(index.seen.add(record.row) for record in records)
        assert not any(index.seen.add(record.row) for record in index.look_up(digests).values())


def test_a_new_url_is_the_one_that_is_found_later(index: Index) -> None:
    for url in "abc":
        wanted = [(digest(url), [Name(f"{url}.jpg", complete=True)])]
        assert index.seen.add(index.claim(wanted, str.casefold)[digest(url)].row)
        assert not index.seen.add(index.look_up([digest(url)])[digest(url)].row)


def test_another_run_has_seen_nothing(path: Path) -> None:
    digests = fill(path, 1)
    with Index(path, NEVER) as index, Index(path, NEVER) as other:
        assert [run.seen.add(run.look_up(digests)[digests[0]].row) for run in (index, other)] == [True, True]


def test_no_url_asked_for_is_no_query(index: Index) -> None:
    assert (index.look_up([]), index.claim([], str.casefold)) == ({}, {})


def test_an_index_without_urls_is_empty(index: Index) -> None:
    assert index.is_empty()
    claim(index, "u", "a.jpg")
    assert not index.is_empty()


def left(index: Index, known: Known, most: int = 2) -> tuple[list[int], list[int]]:
    """Return the rows that this run has not seen, and the last ones of each look."""
    unseen, ends, after = [], [], 0
    while True:
        records, after = index.unseen(known, after, most)
        unseen += [record.row for record in records]
        ends.append(after)
        if not after:
            return unseen, ends


def test_the_images_that_a_run_has_not_seen_are_found_part_by_part(path: Path) -> None:
    digests = fill(path, 5)
    with Index(path, NEVER) as index:
        known = index.known()
        assert (known.images, known.last_row) == (5, 5)
        assert left(index, known) == ([1, 2, 3, 4, 5], [2, 4, 5, 0])
        for record in index.look_up(digests[1:3]).values():
            index.seen.add(record.row)
        assert left(index, known) == ([1, 4, 5], [2, 4, 5, 0])


def test_nothing_is_known_of_an_empty_index(index: Index) -> None:
    known = index.known()
    assert (known.images, known.last_row) == (0, 0)
    assert left(index, known) == ([], [0])


def test_what_any_run_has_saved_or_checked_or_named_since_is_not_among_the_known(path: Path) -> None:
    digests = fill(path, 4)
    with Index(path, NEVER) as index:
        known = index.known()
        claim(index, "later", "later.jpg")
        rows = [record.row for record in index.look_up(digests).values()]
        index.record(rows[0], IMAGE._replace(file="0.jpg", saved=known.since))
        index.record(rows[1], IMAGE._replace(file="1.jpg", checked=known.since + 1))
        index.record(rows[2], IMAGE._replace(file="2.jpg", checked=known.since - 1))
        index.flush()
        assert left(index, known)[0] == [3, 4]


def test_a_url_that_has_a_name_but_no_image_is_among_the_known(index: Index) -> None:
    claim(index, "u", "a.jpg")
    known = index.known()
    assert (known.images, known.last_row) == (0, 1)
    assert left(index, known)[0] == [1]


def test_what_is_forgotten_is_gone_and_its_names_are_free(path: Path) -> None:
    digests = fill(path, 3)
    with Index(path, NEVER) as index:
        index.forget([1, 3])
        assert [record.row for record in index.look_up(digests).values()] == [2]
        assert claimed_path(index, "u", f"{digests[0].hex()}.jpg") == f"{digests[0].hex()}.jpg"
        assert claimed_path(index, "v", f"{digests[1].hex()}.jpg") is None


# Names.


def test_the_first_free_name_is_given(index: Index) -> None:
    assert claimed_path(index, "u", "a.jpg", "a-1.jpg") == "a.jpg"
    assert claimed_path(index, "v", "a.jpg", "a-2.jpg") == "a-2.jpg"


def test_names_are_compared_by_their_key(index: Index) -> None:
    claim(index, "u", "STRASSE.jpg")
    assert claimed_path(index, "v", "stra\xdfe.JPG", "b.jpg") == "b.jpg"


def test_once_given_a_name_stays(path: Path) -> None:
    with Index(path, NEVER) as index:
        claim(index, "u", "a.jpg")
    with Index(path, NEVER) as index:
        assert claimed_path(index, "u", "b.jpg") == "a.jpg"


def test_two_urls_of_one_batch_never_share_a_name(index: Index) -> None:
    names = [Name("a.jpg", complete=True), Name("b.jpg", complete=True)]
    records = index.claim([(digest("u"), names), (digest("v"), names), (digest("u"), names)], str.casefold)
    assert [records[digest(url)].name.path for url in "uv"] == ["a.jpg", "b.jpg"]


def test_a_url_whose_names_are_all_taken_gets_none(index: Index) -> None:
    claim(index, "u", "a.jpg")
    assert claim(index, "v", "a.jpg") is None
    assert index.look_up([digest("v")]) == {}


def test_the_same_stem_with_another_extension_is_another_name(index: Index) -> None:
    assert [claimed_path(index, name, name, "taken.jpg") for name in ("a.jpg", "a.png", "a.jpg.png")] == [
        "a.jpg",
        "a.png",
        "a.jpg.png",
    ]


@pytest.mark.parametrize("taken", ["a-0f.jpg", "A-0F.PNG", "a-0f-?"])
def test_a_name_without_extension_avoids_whatever_it_may_become(index: Index, taken: str) -> None:
    claim(index, "u", taken)
    assert claimed_path(index, "v", "a-0f-?", "a-0f22-?") == "a-0f22"


@pytest.mark.parametrize("wanted", ["a-0f.jpg", "A-0F.PNG", "a-0f-?"])
def test_a_name_without_extension_holds_all_extensions(index: Index, wanted: str) -> None:
    claim(index, "u", "a-0f-?")
    assert claimed_path(index, "v", wanted, "b.jpg") == "b.jpg"


def test_a_name_without_extension_leaves_longer_names_alone(index: Index) -> None:
    claim(index, "u", "a-0f-?")
    assert claimed_path(index, "v", "a-0f0.jpg") == "a-0f0.jpg"
    assert claimed_path(index, "w", "a-0-?") == "a-0"


def test_a_name_is_complete_once_its_image_is_recorded_and_still_holds_all_extensions(index: Index) -> None:
    assert claim(index, "u", "a-0f-?") == Name("a-0f", complete=False)
    record(index, "u", IMAGE._replace(file="a-0f.png"))
    index.flush()
    assert index.look_up([digest("u")])[digest("u")].name == Name("a-0f.png", complete=True)
    assert claimed_path(index, "v", "a-0f.png", "a-0f.jpg", "b.jpg") == "b.jpg"


def test_names_asked_for_lazily_are_asked_for_no_further_than_needed(index: Index) -> None:
    def names() -> Iterator[Name]:
        yield Name("a.jpg", complete=True)
        pytest.fail("a second name was asked for")

    assert index.claim([(digest("u"), names())], str.casefold)[digest("u")].name.path == "a.jpg"


def test_names_are_thought_of_while_other_processes_may_write(path: Path, index: Index) -> None:
    """A name may take a look into the directory, and others wait meanwhile."""
    with Index(path, NEVER) as other:

        def names(url: str) -> Iterator[Name]:
            for number in range(3):
                assert claimed_path(other, f"{url}{number}", f"{number}.jpg") is not None
                yield Name(f"{number}.jpg", complete=True)
            yield Name(f"{url}.jpg", complete=True)

        records = index.claim([(digest(url), names(url)) for url in "u"], str.casefold)
    assert records[digest("u")].name.path == "u.jpg"


def test_only_those_that_lost_their_name_are_tried_again(index: Index) -> None:
    claim(index, "u", "a.jpg")
    asked: list[str] = []

    def names(url: str) -> Iterator[Name]:
        for path in ("a.jpg", f"{url}.jpg") if url == "v" else (f"{url}.jpg", "never.jpg"):
            asked.append(path)
            yield Name(path, complete=True)

    records = index.claim([(digest(url), names(url)) for url in "uvw"], str.casefold)
    assert [records[digest(url)].name.path for url in "uvw"] == ["a.jpg", "v.jpg", "w.jpg"]
    assert asked == ["u.jpg", "a.jpg", "w.jpg", "v.jpg"]


def test_an_image_that_got_another_name_takes_that_names_key_and_frees_its_own(index: Index) -> None:
    claim(index, "u", "a.jpg")
    key = digest("u")
    index.record(index.look_up([key])[key].row, IMAGE._replace(file="a-0f.jpg"), "a-0f.jpg")
    index.flush()
    assert index.look_up([key])[key].name == Name("a-0f.jpg", complete=True)
    assert claimed_path(index, "v", "a-0f.jpg", "a.jpg") == "a.jpg"


def test_an_image_whose_other_name_is_taken_by_now_is_not_recorded(index: Index) -> None:
    claim(index, "u", "a.jpg")
    claim(index, "v", "a-0f.jpg")
    key = digest("u")
    index.record(index.look_up([key])[key].row, IMAGE._replace(file="a-0f.jpg"), "a-0f.jpg")
    assert known_image(index, "u") is None
    assert index.look_up([key])[key].name == Name("a.jpg", complete=True)


def test_names_that_are_free_are_reserved_for_rows_and_then_given(path: Path, index: Index) -> None:
    for url in ("u", "v", "w"):
        claim(index, url, f"{url}.jpg")
    record(index, "u", IMAGE._replace(file="u.jpg"))
    index.flush()
    free, taken, incomplete = Name("new.jpg", complete=True), Name("v.jpg", complete=True), Name("x", complete=False)
    assert index.reserve([(1, free, "new.jpg"), (3, taken, "v.jpg")]) == {1}
    assert claimed_path(index, "late", "new.jpg") is None
    assert index.reserve([(3, incomplete, "x")]) == {3}
    moved = IMAGE._replace(file="new.jpg", mtime_ns=5, ctime_ns=6)
    index.rename([(1, free, moved), (3, incomplete, None)])
    assert known_image(index, "u") == moved
    names = {url: index.look_up([digest(url)])[digest(url)].name for url in ("u", "v", "w")}
    assert names == {"u": free, "v": taken, "w": incomplete}
    assert claimed_path(index, "other", "u.jpg") == "u.jpg", "its former name is free"


@pytest.mark.parametrize("newer", [IMAGE._replace(size=1), IMAGE._replace(sha256="00" * 32), IMAGE._replace(saved=2e9)])
def test_the_times_of_a_file_are_brought_up_to_date_unless_another_run_has_replaced_it(
    path: Path, index: Index, newer: Image
) -> None:
    claim(index, "u", "a.jpg")
    record(index, "u", IMAGE)
    index.flush()
    moved = IMAGE._replace(mtime_ns=5, ctime_ns=6)
    index.touch(1, moved)
    assert known_image(index, "u") == moved
    with Index(path, NEVER) as other:
        record(other, "u", newer)
    index.touch(1, IMAGE)
    assert known_image(index, "u") == newer


def test_a_304_about_a_file_whose_times_were_brought_up_to_date_counts(index: Index) -> None:
    claim(index, "u", "a.jpg")
    record(index, "u", IMAGE)
    index.flush()
    moved = IMAGE._replace(mtime_ns=5, ctime_ns=6)
    index.touch(1, moved)
    renew(index, "u", NotModified(moved, IMAGE.validators, Lifetime(7.0), 8.0))
    assert known_image(index, "u") == moved._replace(lifetime=Lifetime(7.0), checked=8.0)


CLAIM = """
path, process = Path(sys.argv[1]), sys.argv[2]
with Index(path, 0.0) as index:
    say("open")
    sys.stdin.readline()
    for number in range(300):
        wanted = []
        for url in (f"shared {number}", f"{process} {number}"):
            plain = Name(f"photo{number}.jpg", complete=True)
            stem = Name(f"photo{number}", complete=False)
            hashed = (Name(f"photo{number}-{digest(url).hex()}.jpg", complete=True), )
            wanted.append((digest(url), (stem, plain, *hashed) if process > "1" else (plain, *hashed)))
        for given, record in index.claim(wanted, str.casefold).items():
            say(f"{given.hex()} {record.name.path} {record.name.complete}")
            file = record.name.file(".jpg")
            index.record(record.row, Image(file, 1, 1, 1, None, None, Validators(), Lifetime(), 0.0, 0.0))
        index.tick()
"""


def test_processes_that_claim_the_same_names_at_once_never_share_one(path: Path) -> None:
    processes = [start(CLAIM, path, number) for number in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    files: dict[str, set[str]] = {}
    for process in processes:
        for line in said(process).splitlines():
            url, name, complete = line.split()
            files.setdefault(url, set()).add(name if complete == "True" or name.endswith(".jpg") else name + ".jpg")
    assert len(files) == 300 * 4
    assert all(len(names) == 1 for names in files.values()), "a URL has two names"
    assert len(set.union(*files.values())) == len(files), "two URLs share a name"
    assert is_sound(path)


OPEN = """
sys.stdin.readline()
with Index(Path(sys.argv[1]), 0.0) as index:
    index.claim([(digest(sys.argv[2]), [Name(sys.argv[2] + ".jpg", complete=True)])], str.casefold)
"""


@pytest.mark.parametrize("content", [None, b"no database at all " * 100])
def test_processes_that_open_a_new_or_damaged_index_at_once_share_one(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    processes = [start(OPEN, path, number) for number in range(6)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said(process)
    with Index(path, NEVER) as index:
        assert len(index.look_up([digest(str(number)) for number in range(6)])) == 6
    assert len(list(path.parent.iterdir())) == (1 if content is None else 2)


# Damage.


def damaged(path: Path, kind: str) -> bytes:
    """Damage an index of 2,000 images; return what is in the file now."""
    fill(path, 2000)
    content = bytearray(path.read_bytes())
    if kind == "header":
        content[:16] = b"not SQLite at al"
    elif kind == "schema":
        content[100:4096] = os.urandom(3996)
    elif kind == "text":
        content[:] = b"https://example.com/a.jpg\n" * 1000
    else:
        del content[int(kind) :]
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("kind", ["header", "schema", "text", "16", "100", "511", "4096", "5000", "200000"])
def test_a_damaged_index_is_moved_aside_with_a_warning_and_begun_anew(
    path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    content = damaged(path, kind)
    with caplog.at_level(logging.WARNING), Index(path, NEVER) as index:
        assert claimed_path(index, "u", "a.jpg") == "a.jpg"
    (aside,) = path.parent.glob("index.sqlite3.damaged-*")
    assert aside.read_bytes() == content
    assert str(path) in caplog.text
    assert aside.name in caplog.text
    assert is_sound(path)


def test_the_log_of_a_run_that_still_uses_a_damaged_index_goes_aside_with_it(path: Path) -> None:
    content = damaged(path, "header")
    path.unlink()
    fill(path, 2000)
    with start("with Index(Path(sys.argv[1]), 0.0): say('open'); sys.stdin.readline()", path) as other:
        assert other.stdout is not None
        other.stdout.readline()
        path.write_bytes(content)
        with Index(path, NEVER) as index:
            claim(index, "u", "a.jpg")
            (aside,) = path.parent.glob("index.sqlite3.damaged-*[0-9]")
            assert Path(f"{aside}-wal").exists()
            assert Path(f"{aside}-shm").exists()
        said(other, "go\n")
    with Index(path, NEVER) as index:
        assert digest("u") in index.look_up([digest("u")])
    assert is_sound(path)


@pytest.mark.parametrize("content", [b"", b"S"])
def test_an_emptied_index_is_begun_anew(path: Path, content: bytes) -> None:
    fill(path, 10)
    path.write_bytes(content)
    with Index(path, NEVER) as index:
        assert index.look_up([digest("1")]) == {}
    assert is_sound(path)


def test_a_log_left_behind_by_a_removed_index_spoils_nothing(path: Path) -> None:
    process = start("index = Index(Path(sys.argv[1]), 0.0); say('open'); sys.stdin.readline()", path)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert Path(f"{path}-wal").exists()
    path.unlink()
    with Index(path, NEVER) as index:
        assert claimed_path(index, "u", "a.jpg") == "a.jpg"
    assert is_sound(path)


def spoil(path: Path) -> None:
    """Damage what stands behind the pages that opening reads."""
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[8192:half] = os.urandom(half - 8192)
    path.write_bytes(content)


@pytest.mark.parametrize("at", ["look-up", "claim", "flush"])
def test_damage_found_in_mid_run_ends_the_run_and_the_next_one_begins_anew(path: Path, at: str) -> None:
    digests = fill(path, 5000)
    spoil(path)
    index = Index(path, NEVER)
    with pytest.raises(IndexFileError, match="run again"):
        if at == "look-up":
            index.look_up(digests)
        elif at == "claim":
            index.claim([(key, [Name("x.jpg", complete=True)]) for key in digests], str.casefold)
        else:
            for row in range(1, len(digests) + 1):
                index.record(row, IMAGE)
            index.flush()
    index.close()
    with Index(path, NEVER) as anew:
        assert claimed_path(anew, "u", "a.jpg") == "a.jpg"
    assert len(list(path.parent.glob("index.sqlite3.damaged-*"))) == 1
    assert is_sound(path)


def test_text_that_is_not_utf_8_counts_as_damage(path: Path) -> None:
    digests = fill(path, 3)
    path.write_bytes(path.read_bytes().replace(b"image/jpeg", b"image/\xff\xff\xff\xff"))
    index = Index(path, NEVER)
    with pytest.raises(IndexFileError, match="damaged"):
        index.look_up(digests)
    index.close()
    with Index(path, NEVER) as anew:
        assert anew.look_up(digests) == {}


@pytest.mark.parametrize(
    "change",
    [
        "name = 'a' || char(0) || '.jpg'",
        "name = '../a.jpg'",
        "name = 'host/../../a.jpg'",
        "name = '/tmp/a.jpg'",
        "name = '.image_loader/index.sqlite3'",
        "name = ''",
        "name = x'ff'",
        "size = 'large'",
        "size = NULL",
        "mtime_ns = x'00'",
        "media_type = x'00'",
        "sha256 = 'text'",
        "etag = x'00'",
        "target = 'text'",
        "ctime_ns = x'00'",
        "lifetime = 'text'",
        "lifetime = x'00'",
        "lifetime = NULL",
        "saved = NULL",
        "checked = NULL",
    ],
)
def test_a_row_that_makes_no_sense_counts_as_damage(path: Path, change: str) -> None:
    digests = fill(path, 3)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE image SET {change} WHERE rowid = 2")
    index = Index(path, NEVER)
    with pytest.raises(IndexFileError, match="damaged and was moved aside; run again"):
        index.look_up(digests)
    # What ends until the run has ended finds nothing to be written to.
    index.record(1, IMAGE)
    index.close()
    with Index(path, NEVER) as anew:
        assert anew.look_up(digests) == {}


def test_a_digest_that_leads_to_the_row_of_another_counts_as_damage(path: Path) -> None:
    digests = fill(path, 3)
    content = bytearray(path.read_bytes())
    content[content.index(digests[2] + bytes([3])) + len(digests[2])] = 2  # In the index of digests: its row.
    path.write_bytes(content)
    with Index(path, NEVER) as index, pytest.raises(IndexFileError, match="damaged and was moved aside"):
        index.look_up(digests[2:])


@pytest.mark.parametrize("opened", OPENED)
def test_a_damaged_schema_of_which_sqlite_cannot_tell_is_damage(path: Path, opened: Callable[[Path], Index]) -> None:
    """SQLite's message has bytes of it that are not UTF-8, so that the sqlite3 module cannot decode it."""
    digests = fill(path, 3)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""PRAGMA writable_schema = ON;
            INSERT INTO sqlite_master (type, name, sql) VALUES ('table', CAST(x'ff41' AS TEXT), 'CREATE TABLE A (')""")
    if opened is IndexCopy:
        with pytest.raises(IndexFileError, match="the index is damaged; a run moves it aside and begins anew"):
            opened(path)
    else:
        with opened(path) as anew:
            assert anew.look_up(digests) == {}
        assert len(list(path.parent.glob("index.sqlite3.damaged-*"))) == 1


@pytest.mark.parametrize("byte", [b"1", b"\xff"])
def test_a_schema_that_is_damaged_is_begun_anew(path: Path, byte: bytes) -> None:
    digests = fill(path, 3)
    path.write_bytes(path.read_bytes().replace(b"lifetime BLOB", b"lifetim" + byte + b" BLOB"))
    with Index(path, NEVER) as anew:
        assert anew.look_up(digests) == {}
    assert len(list(path.parent.glob("index.sqlite3.damaged-*"))) == 1


def test_who_finds_damage_late_leaves_the_new_index_of_another_run_alone(path: Path) -> None:
    digests = fill(path, 5000)
    spoil(path)
    with ExitStack() as stack:
        first, second = (stack.enter_context(Index(path, NEVER)) for _ in range(2))
        with pytest.raises(IndexFileError):
            first.look_up(digests)
        with Index(path, NEVER) as anew:
            claim(anew, "u", "a.jpg")
        with pytest.raises(IndexFileError):
            second.look_up(digests)
    with Index(path, NEVER) as index:
        assert digest("u") in index.look_up([digest("u")])


# Whatever else is wrong.


OLD_SCHEMA = """CREATE TABLE image (
    digest BLOB NOT NULL UNIQUE, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, complete INTEGER NOT NULL,
    size INTEGER, mtime_ns INTEGER, media_type TEXT, sha256 BLOB, etag TEXT, last_modified TEXT,
    fresh_until REAL, saved REAL, checked REAL{})"""


def fill_old(path: Path, version: int, ends: Sequence[float | None]) -> list[bytes]:
    """Make an index as an earlier version did, of images with these ends of lifetimes; return their URLs' digests."""
    digests = [digest(str(number)) for number in range(len(ends))]
    target = (IMAGE.validators.target,) if version > 1 else ()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(OLD_SCHEMA.format(", target BLOB" if version > 1 else ""))
        connection.execute(f"PRAGMA application_id = {0x696D6C64}")
        connection.execute(f"PRAGMA user_version = {version}")
        for key, end in zip(digests, ends, strict=True):
            name = f"{key.hex()}.jpg"
            sha256 = bytes.fromhex(IMAGE.sha256 or "")
            file = (IMAGE.size, IMAGE.mtime_ns, IMAGE.media_type, sha256)
            row = (key, name, name, 1, *file, *IMAGE.validators[:2], end, IMAGE.saved, IMAGE.checked, *target)
            connection.execute(f"INSERT INTO image VALUES ({','.join('?' * len(row))})", row)
        connection.execute(
            "INSERT INTO image (digest, key, name, complete) VALUES (?, 'claimed.*', 'claimed', 0)",
            (digest("claimed"),),
        )
    return digests


@pytest.mark.parametrize("version", [-(2**31), 0, 1, 2])
def test_an_index_of_an_earlier_version_is_taken_over(path: Path, version: int) -> None:
    now = IMAGE.checked
    digests = fill_old(path, version, [now + 60.5, now - 5, None, -1.0, 0.0])
    with Index(path, NEVER) as index, Index(path, NEVER) as other:
        for each in (index, other):
            found = each.look_up([*digests, digest("claimed")])
            assert found.pop(digest("claimed")).name == Name("claimed", complete=False)
            images = [record.image for record in found.values() if record.image is not None]
            target = IMAGE.validators.target if version > 1 else None
            old = IMAGE._replace(ctime_ns=None, validators=IMAGE.validators._replace(target=target))
            assert [image._replace(file="a.jpg", lifetime=IMAGE.lifetime) for image in images] == [old] * 5
            assert [round(freshness.end(image.lifetime, now) - now, 6) for image in images] == [
                60.5,
                0.0,
                -1.0,
                -1.0,
                0.0,
            ]
            assert [image.lifetime.varies for image in images] == [False, False, False, True, False]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_two_runs_that_make_an_index_or_take_it_over_at_once_share_it(path: Path, version: int) -> None:
    """Also where nothing keeps them from opening it at once, as on some network file systems."""
    digests = fill_old(path, version, [None] * 3) if version else []
    path.touch()
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        running = [start("Index(Path(sys.argv[1]), 0.0).close(); say('sound')", path) for _ in range(3)]
        time.sleep(2.5)  # By now, each of them waits for the lock of the database.
        other.execute("COMMIT")
        assert [process.communicate()[0] for process in running] == ["sound\n"] * 3
    os.close(folder)
    assert list(path.parent.glob("*.damaged-*")) == []
    with Index(path, NEVER) as index:
        assert len(index.look_up(digests)) == len(digests)


def test_an_index_of_a_later_version_is_refused_and_left_as_it_is(path: Path) -> None:
    fill(path, 10)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 4")
    content = path.read_bytes()
    with pytest.raises(IndexFileError, match=r"later version.*upgrade"):
        Index(path, NEVER)
    assert (path.read_bytes(), list(path.parent.iterdir())) == (content, [path])


@pytest.mark.parametrize("application_id", [0, 1, 2**31 - 1, -1])
def test_the_database_of_another_program_is_refused_and_left_as_it_is(path: Path, application_id: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE places (url)")
        connection.execute(f"PRAGMA application_id = {application_id}")
    content = path.read_bytes()
    with pytest.raises(IndexFileError, match="another program"):
        Index(path, NEVER)
    assert (path.read_bytes(), list(path.parent.iterdir())) == (content, [path])


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder", "/dev/null"):
        with pytest.raises(IndexFileError, match="not a regular file"):
            Index(tmp_path / name, NEVER)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match=r"missing/i\.sqlite3.*No such file.*--index"):
        Index(tmp_path / "missing" / "i.sqlite3", NEVER)


UNPRIVILEGED = """
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Index(Path(sys.argv[1]), 0.0)
except IndexFileError as error:
    say(error)
"""


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o555, 0o666), (0o777, 0o444), (0o777, 0o000), (0o555, None)])
def test_a_read_only_index_is_a_clear_error(folder_mode: int, file_mode: int | None) -> None:
    # Not below tmp_path, which another user may not search.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index.sqlite3")
        if file_mode is not None:
            fill(path, 10)
            path.chmod(file_mode)
        path.parent.chmod(folder_mode)
        message = said(start(UNPRIVILEGED, path))
        path.parent.chmod(0o755)
        left = [file.name for file in path.parent.iterdir()]
    assert str(path) in message
    assert "--index" in message
    assert "writable" in message or "Permission denied" in message
    assert left == ([] if file_mode is None else [path.name])


@pytest.mark.parametrize(
    "content", ["http://example.com/a.jpg\n", "HTTP://EXAMPLE.COM/A.JPG\n", "SQLite format 2\0", "~~"]
)
def test_a_file_that_the_user_named_and_that_is_no_database_is_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    for opened in (functools.partial(Index, path, NEVER), functools.partial(IndexCopy, path)):
        with pytest.raises(IndexFileError, match="no index, but another file; name another one with --index"):
            opened(named=True)
    assert [file.read_text() for file in path.parent.iterdir()] == [content]


def test_a_damaged_index_that_the_user_named_is_moved_aside_like_any_other(path: Path) -> None:
    fill(path, 10)
    path.write_bytes(path.read_bytes()[:16] + bytes(5000))
    Index(path, NEVER, named=True).close()
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_each_damaged_index_is_moved_to_a_name_of_its_own(path: Path) -> None:
    for content in ("first", "second", "third"):
        path.write_text(content)
        Path(f"{path}-wal").write_text(f"log of the {content}")
        index_file.move_aside(path)
    asides = path.parent.glob("*.damaged-*")
    assert sorted(each.read_text() for each in asides if not each.name.endswith("-wal")) == ["first", "second", "third"]
    assert len(list(path.parent.iterdir())) == 6


HOLD = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
say("locked")
sys.stdin.readline()
connection.execute("COMMIT")
"""
HOLD_ALONE = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("SELECT count(*) FROM image").fetchone()  # Makes the two files beside it.
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("UPDATE image SET complete = complete")
say("locked")
sys.stdin.readline()
connection.close()
"""
WAIT = """
index = Index(Path(sys.argv[1]), 0.0)
say("open")
index.claim([(digest("u"), [Name("a.jpg", complete=True)])], str.casefold)
index.close()
"""


def test_a_lock_of_another_program_is_waited_for(path: Path) -> None:
    fill(path, 10)
    with start(HOLD, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with start(WAIT, path) as waiter:
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == "open\n"
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(0.3)
            said(holder, "go\n")
            said(waiter)
    with Index(path, NEVER) as index:
        assert digest("u") in index.look_up([digest("u")])


def test_a_lock_that_is_never_released_is_a_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "_LOCK_PATIENCE", 0.05)
    fill(path, 10)
    with start(HOLD, path) as holder, Index(path, NEVER) as index:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(IndexFileError, match="another program keeps it locked"):
            claim(index, "u", "a.jpg")
        said(holder, "go\n")


@pytest.mark.parametrize("is_ending", [True, False])
def test_a_copy_of_an_index_that_is_never_unlocked_is_a_clear_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, is_ending: bool
) -> None:
    monkeypatch.setattr(index_file, "_LAST_PATIENCE" if is_ending else "_LOCK_PATIENCE", 0.05)
    fill(path, 10)
    with start(HOLD_ALONE, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(IndexFileError, match="another program keeps it locked"):
            IndexCopy(path, is_ending=lambda: is_ending)
        said(holder, "go\n")


def test_a_copy_of_an_index_that_is_locked_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = fill(path, 10)
    waits = threading.Event()
    monkeypatch.setattr(index_file.Patience, "_is_over", lambda *_: waits.set())
    with start(HOLD_ALONE, path) as holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        copying = pool.submit(IndexCopy, path)
        assert waits.wait(60)
        said(holder, "go\n")
        with copying.result(60) as copy:
            assert len(copy.look_up(digests)) == 10


@pytest.mark.parametrize("kind", ["header", "schema", "text", "100", "511"])
def test_a_copy_of_a_damaged_index_is_a_clear_error_and_the_index_stays(path: Path, kind: str) -> None:
    content = damaged(path, kind)
    path.write_bytes(content)
    with pytest.raises(IndexFileError, match="is damaged; a run moves it aside"):
        IndexCopy(path)
    assert (path.read_bytes(), list(path.parent.iterdir())) == (content, [path])


def test_a_copy_of_an_index_that_lacks_a_column_is_a_clear_error(path: Path) -> None:
    fill(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE image RENAME COLUMN lifetime TO other")
    with pytest.raises(IndexFileError, match="is damaged; a run moves it aside"):
        IndexCopy(path)


def test_a_copy_of_an_index_in_a_directory_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/im\xff?#%20"))
    folder.mkdir()
    digests = fill(folder / "index", 3)
    with IndexCopy(folder / "index") as copy:
        assert len(copy.look_up(digests)) == 3


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_copy_has_what_is_in_the_log_of_a_run_that_was_killed(path: Path, exclusive: bool) -> None:
    process = os.fork()
    if not process:
        index = Index(path, NEVER, exclusive=exclusive)
        for number in range(200):
            claim(index, str(number), f"{number}.jpg")
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    Path(f"{path}-shm").unlink(missing_ok=True)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    assert before[f"{path.name}-wal"]
    with IndexCopy(path) as copy:
        assert len(copy.look_up([digest(str(number)) for number in range(200)])) == 200
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


def test_a_copy_has_what_is_in_the_log_though_the_file_beside_it_cannot_be_read(path: Path) -> None:
    process = os.fork()
    if not process:
        index = Index(path, NEVER)
        claim(index, "u", "a.jpg")
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    Path(f"{path}-shm").chmod(0)
    with unprivileged(lambda: IndexCopy(path)) as copy:
        assert digest("u") in copy.look_up([digest("u")])
    Path(f"{path}-wal").chmod(0)
    with pytest.raises(IndexFileError, match="cannot be copied: Permission denied"):
        unprivileged(lambda: IndexCopy(path))


def test_a_copy_of_an_index_in_a_folder_that_cannot_be_searched_is_a_clear_error(path: Path) -> None:
    fill(path, 1)
    path.parent.chmod(0)
    with pytest.raises(IndexFileError, match="cannot be copied: Permission denied"):
        unprivileged(lambda: IndexCopy(path))


@pytest.mark.parametrize("damaging", [False, True])
def test_a_copy_is_made_anew_where_a_run_began_and_ended_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, damaging: bool
) -> None:
    copy, runs = index_copy._copy_with, [1, 2, 3]

    def copy_meanwhile(source: Path, *arguments: Any) -> None:
        copy(source, *arguments)
        if runs:
            with Index(path, NEVER) as index:
                claim(index, f"later {runs.pop()}", f"{len(runs)}.jpg")
            if damaging:
                raise sqlite3.DatabaseError("torn")

    fill(path, 3)
    monkeypatch.setattr(index_copy, "_copy_with", copy_meanwhile)
    wanted = [digest(f"later {number}") for number in (1, 2, 3)]
    with IndexCopy(path) as found:
        assert len(found.look_up(wanted)) == 3


def test_a_copy_of_an_index_that_changes_all_the_time_is_a_clear_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, 3)
    monkeypatch.setattr(index_file, "_LOCK_PATIENCE", 0.05)
    monkeypatch.setattr(index_copy, "_copy_with", lambda *_: os.utime(path))
    with pytest.raises(IndexFileError, match="cannot be copied: it changes all the time; run again"):
        IndexCopy(path)


@pytest.mark.parametrize("log", [b"", bytes(100)])
def test_a_copy_ends_with_the_run_however_large_the_index_is(
    path: Path, log: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    digests = fill(path, 30_000)
    Path(f"{path}-wal").write_bytes(log)
    ends = iter([False])
    with IndexCopy(path, lambda: next(ends, True)) as copy:
        assert copy.look_up(digests) == {}
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_copy_ends_with_the_run_before_the_files_are_copied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, used = fill(path, 1000), []
    Path(f"{path}-wal").write_bytes(bytes(100))
    monkeypatch.setattr(index_copy, "_copy_with", lambda *_: used.append(1))
    with IndexCopy(path, lambda: True) as copy:
        assert copy.look_up(digests) == {}
    assert used == []


def test_a_copy_is_all_of_one_time_though_the_index_grows_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_copy, "_PAGES", 1)
    fill(path, 100)
    with Index(path, NEVER) as other:

        def claims_one() -> bool:
            claims.append(claim(other, f"later {len(claims)}", f"later-{len(claims)}.jpg"))
            return False

        claims: list[object] = []
        with IndexCopy(path, claims_one) as copy:
            assert len(claims) > 10
            assert not copy.look_up([digest(f"later {number}") for number in range(len(claims))])


@pytest.mark.parametrize("change", ["inode", "size"])
def test_a_copy_is_made_anew_where_the_file_changed_in_any_way(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    digests, copy, changes = fill(path, 3), index_copy._copy_with, iter([change])

    def copy_meanwhile(source: Path, *arguments: Any) -> None:
        copies.append(1)
        copy(source, *arguments)
        state = path.stat()
        if next(changes, None) is not None:
            content = path.read_bytes()
            if change == "inode":
                path.rename(path.with_name("former"))
            path.write_bytes(content + bytes(1 if change == "size" else 0))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    copies: list[int] = []
    monkeypatch.setattr(index_copy, "_copy_with", copy_meanwhile)
    with IndexCopy(path) as found:
        assert len(found.look_up(digests)) == 3
    assert len(copies) == 2


@pytest.mark.parametrize("ends", [True, False])
def test_a_copy_that_may_be_torn_is_not_used(path: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool) -> None:
    digests, copy = fill(path, 3), index_copy._copy_with

    def copy_meanwhile(source: Path, *arguments: Any) -> None:
        copy(source, *arguments)
        if ends:
            os.utime(path)
            raise index_file.EndedError("")
        path.unlink()

    monkeypatch.setattr(index_copy, "_copy_with", copy_meanwhile)
    with IndexCopy(path) as found:
        assert found.look_up(digests) == {}


def test_a_copy_has_nothing_of_what_was_not_written_to_the_end(path: Path) -> None:
    digests = fill(path, 3000)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    process = os.fork()
    if not process:
        connection = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA cache_size = 10", "BEGIN", "UPDATE image SET size = 1, etag = hex(zeroblob(100))"):
            connection.execute(statement)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    assert Path(f"{path}-journal").stat().st_size
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    with IndexCopy(path) as copy:
        assert {found.image and found.image.size for found in copy.look_up(digests).values()} == {IMAGE.size}
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


@pytest.mark.parametrize(
    "script",
    ["", "PRAGMA journal_mode = WAL", "CREATE TABLE a (b); DROP TABLE a", "PRAGMA user_version = 7"],
)
def test_an_empty_database_is_an_empty_index(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    path.touch()
    for opened in (IndexCopy, open_index, IndexCopy):
        with opened(path) as index:
            assert index.is_empty()


@pytest.mark.parametrize(
    "script",
    ["CREATE TABLE precious (a); PRAGMA schema_version = 0; PRAGMA user_version = 2", "PRAGMA application_id = 99"],
)
@pytest.mark.parametrize("opened", OPENED)
def test_a_database_of_another_program_is_left_alone(path: Path, opened: Callable[[Path], Index], script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    before = path.read_bytes()
    with pytest.raises(IndexFileError, match="a database of another program, not an index"):
        opened(path)
    assert path.read_bytes() == before


def test_a_copy_that_has_no_place_for_temporary_files_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    fill(path, 1)
    Path(f"{path}-wal").write_bytes(bytes(100))
    monkeypatch.setattr(tempfile, "gettempdir", cannot)
    with pytest.raises(IndexFileError, match=r"cannot be copied: No usable temporary .*\(TMPDIR\)"):
        IndexCopy(path)


def test_a_copy_of_what_cannot_be_opened_is_a_clear_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(IndexFileError, match="not a regular file, so no index"):
        IndexCopy(path)


def test_a_copy_records_nothing(path: Path) -> None:
    (key,) = fill(path, 1)
    with IndexCopy(path) as copy:
        before = copy.look_up([key])
        row, image = before[key].row, before[key].image or IMAGE
        copy.touch(row, image._replace(mtime_ns=1))
        copy.record(row, image._replace(size=1))
        copy.renew(row, NotModified(image, Validators("new"), Lifetime(), 0.0))
        copy.flush()
        assert copy.look_up([key]) == before


def test_a_run_that_ends_does_not_wait_for_a_lock(path: Path) -> None:
    fill(path, 10)
    with start(HOLD, path) as holder, Index(path, NEVER, is_ending=lambda: True) as index:
        assert holder.stdout is not None
        holder.stdout.readline()
        # A run that goes on waits for a minute, and would get the lock.
        release = threading.Timer(30, said, (holder, "go\n"))
        release.start()
        with pytest.raises(IndexFileError, match="locked"):
            claim(index, "u", "a.jpg")
        release.cancel()
        said(holder, "go\n")


def test_a_directory_that_another_program_has_locked_is_used_all_the_same(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        fill(path, 1)
    finally:
        os.close(directory)
    assert is_sound(path)


def test_a_file_adopted_while_another_run_saved_it_keeps_its_type_and_hash(index: Index) -> None:
    claim(index, "u", "a.jpg")
    record(index, "u", IMAGE)
    index.flush()
    record(index, "u", IMAGE._replace(media_type=None, sha256=None, checked=3.0))
    index.flush()
    assert index.look_up([digest("u")])[digest("u")].image == IMAGE._replace(checked=3.0)


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = Index(Path(sys.argv[1]), 0.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    index.claim([(digest(str(n)), [Name("x" * 200 + f"{n}.jpg", complete=True)]) for n in range(3000)], str.casefold)
except IndexFileError as error:
    say(error)
"""


def test_a_write_that_fails_is_a_clear_error_and_the_index_stays_sound(path: Path) -> None:
    digests = fill(path, 100)
    message = said(start(FULL, path))
    assert str(path) in message
    assert "may be full" in message
    with Index(path, NEVER) as index:
        assert len(index.look_up(digests)) == 100
    assert is_sound(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "image_loader", str(place)]
    if (run := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no tmpfs can be mounted here: {run.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_a_clear_error_and_what_was_recorded_stays(small_disk: Path) -> None:
    path = small_disk / "index.sqlite3"
    digests = fill(path, 100)
    index = Index(path, NEVER)
    with pytest.raises(IndexFileError, match="no space left"):
        index.claim(
            [(digest(f"{n}u"), [Name("x" * 200 + f"{n}.jpg", complete=True)]) for n in range(9000)], str.casefold
        )
    index.close()
    with Index(path, NEVER) as index:
        assert len(index.look_up(digests)) == 100
    assert is_sound(path)


FLUSH = """
index = Index(Path(sys.argv[1]), 3600.0)
names = [f"{number:05}" for number in range(4000)]
records = index.claim([(digest(name), [Name(name + ".jpg", complete=True)]) for name in names], str.casefold)
for size in range(1000):
    for record in records.values():
        index.record(record.row, Image(record.name.path, size, 1, 1, None, None, Validators(), Lifetime(), 0.0, 0.0))
    say(size)
    index.flush()
"""


@pytest.mark.parametrize("flushes", [1, 4, 9])
def test_a_process_killed_in_mid_flush_leaves_a_sound_index_of_whole_flushes(path: Path, flushes: int) -> None:
    with start(FLUSH, path) as process:
        assert process.stdout is not None
        for _ in range(flushes):
            size = int(process.stdout.readline())
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert Path(f"{path}-wal").exists()
    with Index(path, NEVER) as index:
        records = index.look_up([digest(f"{number:05}") for number in range(4000)])
    sizes = {None if record.image is None else record.image.size for record in records.values()}
    assert len(records) == 4000
    assert len(sizes) == 1, "half a flush was kept"
    assert sizes <= {size - 1 if size else None, size, size + 1}
    assert is_sound(path)


COST = """
import json
def peak():
    # Not ru_maxrss: that begins with the memory of the process that forked this one.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
path, lines = Path(sys.argv[1]), int(sys.argv[2])
peaks = []
with Index(path, 0.5) as index:
    for start in range(0, lines, 500):
        urls = {digest(str(n)): f"photo{n}.jpg" for n in range(start, start + 500)}
        index.look_up(list(urls))
        wanted = [(url, [Name(name, complete=True)]) for url, name in urls.items()]
        for record in index.claim(wanted, str.casefold).values():
            index.seen.add(record.row)
            validators = Validators('"1"' * 9)
            image = Image(record.name.path, 1, 1, 1, "image/jpeg", "00" * 32, validators, Lifetime(1.0), 0.0, 0.0)
            index.record(record.row, image)
        index.tick()
        peaks.append(peak())
say(json.dumps([peaks[len(peaks) // 3], peaks[-1]]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(path: Path) -> None:
    third, whole = json.loads(said(start(COST, path, 90_000)))
    assert whole < 64 * 1024
    assert whole - third < 4 * 1024


def test_an_iterator_over_images_may_be_handed_to_another_thread(path: Path) -> None:
    with Index(path, NEVER) as index, ThreadPoolExecutor(1) as pool:
        assert list(pool.map(index.look_up, [[digest("u")]])) == [{}]

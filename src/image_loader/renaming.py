"""Files are renamed where the list gives their URLs another name than before, instead of downloaded again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from image_loader.errors import DownloadError, LockedError
from image_loader.formats import EXTENSIONS, IMAGE_EXTENSIONS, UNKNOWN_EXTENSION
from image_loader.lists import naming
from image_loader.model import Line, Name, Record
from image_loader.settings import Settings
from image_loader.store.directory import Directory, is_as_recorded
from image_loader.store.index import Index
from image_loader.url import Url

_LOG = logging.getLogger(__name__)
_ROUNDS = 2
"""Where images exchange names, the first round gives them names with a hash. So the names are free in the second."""

Lines = Mapping[bytes, tuple[Line, Url]]


class _Move(NamedTuple):
    """A row that is to get another name: the first of ``names`` that is free."""

    digest: bytes
    record: Record
    names: Iterator[Name]


class Renamer:
    """Gives rows the names that the list has for them now; used by the main thread alone.

    The new name is reserved first (the row's key), then the file is renamed, then the row gets the name. After a kill
    in between, the next run goes on with it.
    """

    def __init__(self, settings: Settings, directory: Directory, index: Index) -> None:
        self._settings = settings
        self._directory = directory
        self._index = index

    def renamed(self, lines: Lines, records: Mapping[bytes, Record]) -> dict[bytes, Record]:
        """Return the records, with the names that they have now."""
        known = dict(records)
        for _ in range(_ROUNDS):
            moves = list(self._moves(lines, known))
            if not moves:
                break
            known |= self._move(moves)
        return known

    def _moves(self, lines: Lines, records: Mapping[bytes, Record]) -> Iterator[_Move]:
        limits = (self._directory.max_name_bytes, self._directory.refused_characters)
        for digest, (line, url) in lines.items():
            record = records.get(digest)
            if record is None or line.name is None or _is_called(record.name, _as_written(line.name)):
                continue  # Nearly all rows; what follows takes longer than all else about a fresh image.
            if record.row in self._index.seen:
                continue
            names = naming.candidates(url, self._settings.layout, *limits, wanted=line.name)
            preferred = next(names)
            if not _is_called(record.name, preferred):
                others = list(names)
                is_hashed = any(_is_called(record.name, other) for other in others)
                # It has the right name with a hash: its file gets the plain name as soon as that is free.
                if not is_hashed or record.image is not None:
                    yield _Move(digest, record, iter([preferred, *([] if is_hashed else others)]))

    def _move(self, moves: list[_Move]) -> dict[bytes, Record]:
        moved: dict[bytes, Record] = {}
        while moves:
            tries = [(move, name) for move in moves if (name := next(move.names, None)) is not None]
            free = [(move, name) for move, name in tries if self._is_free(move.record, name)]
            taken = self._index.reserve([(move.record.row, name, naming.key(name.path)) for move, name in free])
            for move, name in free:
                if move.record.row in taken:
                    moved[move.digest] = self._rename(move.record, name)
            moves = [move for move, _ in tries if move.digest not in moved]
        self._index.rename([(record.row, record.name, record.image) for record in moved.values()])
        return moved

    def _is_free(self, record: Record, name: Name) -> bool:
        """Whether no file has a name, except for the image itself, which a killed run may have renamed already."""
        new = _new_file(record, name)
        if new is None:
            extensions = () if name.complete else {*EXTENSIONS.values(), UNKNOWN_EXTENSION}
            return not any(self._directory.stat(file) for file in map(name.file, extensions or ("",)))
        return self._directory.stat(new) is None or self._is_moved(record, new)

    def _is_moved(self, record: Record, new: str) -> bool:
        image = record.image
        if image is None or image.sha256 is None or self._directory.stat(image.file) is not None:
            return False
        read = self._directory.digest(new)
        return read is not None and read[0] == image.sha256

    def _rename(self, record: Record, name: Name) -> Record:
        """Rename the file, if it is as it was recorded; return the record with its new name."""
        image, new = record.image, _new_file(record, name)
        if image is None or new is None:
            return record._replace(name=name)
        state = self._directory.stat(image.file)
        try:
            if state is not None and is_as_recorded(state, image):
                with self._directory.partial(image.file, naming.key(image.file)):
                    state = self._directory.rename(image.file, new)
                _LOG.info("renamed  %s: %s", image.file, new)
            elif self._is_moved(record, new):
                state = self._directory.stat(new)
            else:
                state = None
        except (DownloadError, LockedError):
            return record
        if state is not None:
            image = image._replace(mtime_ns=state.st_mtime_ns, ctime_ns=state.st_ctime_ns)
        return Record(record.row, Name(new, complete=True), image._replace(file=new))


def _as_written(name: str) -> Name:
    """Return a name of the list as it stands there, which is right if it needs no change to be safe."""
    return Name(name, complete="." + name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS)


def _is_called(name: Name, wanted: Name) -> bool:
    """Whether a name is the one that is wanted, with whatever extension where that has none.

    >>> _is_called(Name("a.png", True), Name("a", False)), _is_called(Name("a.png", True), Name("a.png", True))
    (True, True)
    """
    path = name.path
    if name.complete and not wanted.complete:
        path = path.rpartition(".")[0]
    return path == wanted.path


def _new_file(record: Record, name: Name) -> str | None:
    """Return the file of an image under another name; None where there is no image."""
    return None if record.image is None else name.file("." + record.image.file.rpartition(".")[2])

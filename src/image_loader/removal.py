"""What is no longer in the list: its images and rows are deleted, after a run that read all of it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from image_loader import outcome
from image_loader.errors import DownloadError, LoaderError, TooManyDeletionsError
from image_loader.model import Image, Outcome, Record
from image_loader.settings import Settings
from image_loader.store.directory import Directory, View, is_as_recorded
from image_loader.store.index import Index, Known

_LOG = logging.getLogger(__name__)
_ROWS = 100
"""Rows that are handled together. Meanwhile, other runs wait with their start."""


class _Look(NamedTuple):
    """What was ``seen`` of the file of an ``image``, if it is as it was saved; nothing if it is not."""

    image: Image | None
    seen: tuple[int, ...]


def delete(
    settings: Settings, directory: Directory, index: Index, known: Known, stop: threading.Event
) -> Iterator[Outcome]:
    """Delete the images that were ``known`` when the run began and that it has not seen; yield what became of each.

    A file is deleted before its row: a kill in between leaves a row without a file, which the next run forgets. The
    other way round, it would leave a file without a row, which is taken for another program's and stays for ever.
    Raises ``TooManyDeletionsError`` before anything is deleted.
    """
    if error := _refusal(settings, index, known):
        raise error
    row, more = 0, bool(index.seen)
    while more and not stop.is_set():
        looks = {record.row: _look_at(directory, record.image) for record in index.unseen(known, row, _ROWS)[0]}
        with directory.alone() as is_alone:
            if not is_alone:
                _LOG.warning("--delete: another run is under way in %s; the next run deletes the rest", directory.path)
                return
            records, row = index.unseen(known, row, _ROWS)
            more = row > 0
            ended, fault = _delete(directory, index, records, looks)
        yield from ended
        if fault is not None:
            raise fault


def preview(
    settings: Settings, directory: View, index: Index, known: Known, stop: threading.Event
) -> Iterator[Outcome]:
    """Yield what ``delete`` would delete, and raise what it would raise."""
    row, more = 0, bool(index.seen)
    while more and not stop.is_set():
        records, row = index.unseen(known, row, _ROWS)
        more = row > 0
        yield from (outcome.would_delete(image) for image in _images(records) if _look_at(directory, image).seen)
    if error := _refusal(settings, index, known):
        raise error


def _refusal(settings: Settings, index: Index, known: Known) -> TooManyDeletionsError | None:
    """Return the error if more would be deleted than is allowed. An empty list deletes nothing."""
    if not index.seen:
        if known.images:
            _LOG.warning("--delete: no URL in the list; nothing was deleted")
        return None
    count, row, more = 0, 0, True
    while more:
        records, row = index.unseen(known, row, _ROWS)
        count += sum(1 for _ in _images(records))
        more = row > 0
    most = known.images // 2 if settings.max_delete is None else settings.max_delete
    return TooManyDeletionsError(count, known.images, settings.max_delete) if count > most else None


def _delete(
    directory: Directory, index: Index, records: Iterable[Record], looks: Mapping[int, _Look]
) -> tuple[list[Outcome], LoaderError | None]:
    """Delete some images and their rows; return the outcomes, and what ends the run."""
    ended, gone, fault = [], [], None
    for record in records:
        image, look = record.image, looks.get(record.row)
        seen = () if image is None else _seen_of(directory, image.file)
        if look is None or look.image != image or (look.seen and look.seen != seen):
            continue  # Another program has changed it meanwhile: the next run decides.
        try:
            if image is not None and look.seen:
                directory.remove(image.file)
                ended.append(outcome.deleted(image))
            elif image is not None:
                _forget(directory, image)
            gone.append(record.row)
        except DownloadError as error:
            if image is not None:
                ended.append(outcome.not_deleted(image, error.failure.detail))
        except LoaderError as error:
            fault = error
            break
    index.forget(gone)
    return ended, fault


def _forget(directory: Directory, image: Image) -> None:
    if directory.stat(image.file) is None:
        directory.remove_folders(image.file)  # A kill may have left them.
    else:
        _LOG.info("kept     %s: it is no longer in the list, but has changed since it was saved", image.file)


def _images(records: Iterable[Record]) -> Iterator[Image]:
    return (record.image for record in records if record.image is not None)


def _look_at(directory: View, image: Image | None) -> _Look:
    """Look whether a file is the image as it was saved. Unlike elsewhere, an unknown ctime is not trusted.

    Large files may have to be read, so other runs may start meanwhile.
    """
    state = None if image is None else directory.stat(image.file)
    if image is None or state is None or state.st_size != image.size:
        return _Look(image, ())
    if image.ctime_ns is not None and is_as_recorded(state, image):
        return _Look(image, _seen(state))
    read = directory.digest(image.file) if image.sha256 is not None else None
    return _Look(image, _seen(read[1]) if read is not None and read[0] == image.sha256 else ())


def _seen_of(directory: View, file: str) -> tuple[int, ...]:
    state = directory.stat(file)
    return () if state is None else _seen(state)


def _seen(state: os.stat_result) -> tuple[int, ...]:
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns

"""A directory that a cluster fills: a folder for each part of the hosts, one driver at a time."""

from __future__ import annotations

import os
from pathlib import Path

from image_loader.errors import DirectoryError
from image_loader.flock import ALONE, takes, wait
from image_loader.store.root import GUARDED, HIDDEN, PARTIALS, PARTITIONS_NOTE, Root, directory_error

_DRIVER = f"{HIDDEN}/driver"
"""The file whose lock the driver holds."""
_RUNS = f"{HIDDEN}/cluster"
"""The folder that has one folder for each run."""
_LOCKS = f"{HIDDEN}/locks"
"""The folder that has one file for each part; who works on the part holds its lock."""
_NOTE_SIZE = 64
"""Bytes to read of ``PARTITIONS_NOTE``; no number is longer."""
_PATIENCE = 2.0
"""Seconds to wait for the lock of the driver: a worker that tries it holds it for a moment."""
_OPEN_LOCK = os.O_RDWR | GUARDED
_MAKE_LOCK = _OPEN_LOCK | os.O_CREAT


def name(partition: int) -> str:
    """Return the name of a part's folder.

    >>> name(0), name(63), name(4095)
    ('00', '3f', 'fff')
    """
    return f"{partition:02x}"


def runs(directory: Path) -> Path:
    """Return the folder that has one folder for each run that is under way."""
    return directory / _RUNS


class Partitions:
    """The directory, as its driver holds it: no other driver can have it meanwhile."""

    def __init__(self, path: Path, count: int) -> None:
        """Make the directory, or check that it was made for ``count`` parts; raises ``DirectoryError``."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            root = Root(path)
            if os.path.lexists(root.place(PARTIALS)) and not os.path.lexists(root.place(PARTITIONS_NOTE)):
                raise DirectoryError(
                    f"{path}: was filled without --cluster; leave --cluster out, or name another directory"
                )
            for folder in (HIDDEN, _RUNS, _LOCKS):
                root.make_folder(folder)
            # Not resolved: a link on the way may lead elsewhere on another machine.
            self.path = Path(os.path.abspath(path))  # noqa: PTH100 (``Path.absolute`` keeps "..")
            self._driver: int | None = _locked(root)
        except OSError as error:
            raise directory_error(str(path / (error.filename or "")), error) from error
        try:
            _check_count(path, Path(root.place(PARTITIONS_NOTE)), count)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other drivers have it."""
        descriptor, self._driver = self._driver, None
        if descriptor is not None:
            os.close(descriptor)


def _check_count(path: Path, note: Path, count: int) -> None:
    """Write down how many parts there are, or compare it with what was written down; raises ``DirectoryError``."""
    try:
        with open(note, "a+", encoding="ascii", errors="replace", opener=_guarded) as file:
            file.seek(0)
            former = file.read(_NOTE_SIZE).strip()
            if not former:
                if os.fstat(file.fileno()).st_nlink > 1:
                    raise DirectoryError(f"{note}: has another hard link; remove it")
                file.write(f"{count}\n")
    except OSError as error:
        raise directory_error(str(note), error) from error
    if former not in ("", str(count)):
        raise DirectoryError(
            f"{path}: is divided into {former} parts, not {count}; set PARTITIONS in loader.py to {former}, "
            f"or name another directory"
        )


def _guarded(path: str, flags: int) -> int:
    return os.open(path, flags | GUARDED, 0o666)


def _locked(root: Root) -> int:
    """Return the descriptor of the driver's lock; raises ``DirectoryError``, ``OSError``."""
    descriptor = os.open(root.place(_DRIVER), _MAKE_LOCK, 0o666)
    try:
        if not wait(descriptor, ALONE, _PATIENCE):
            raise DirectoryError(f"{root.path}: another run with --cluster is under way there; wait for its end")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def has_driver(path: Path) -> bool:
    """Whether a driver holds the directory, as seen from this machine; raises ``OSError``."""
    descriptor = os.open(path / _DRIVER, _OPEN_LOCK)
    try:
        return not takes(descriptor)
    finally:
        os.close(descriptor)


def open_lock(path: Path, partition: int) -> int:
    """Open the file whose lock a task holds while it works on a part; raises ``OSError``."""
    return os.open(path / _LOCKS / name(partition), _MAKE_LOCK, 0o666)

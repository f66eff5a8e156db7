"""Locks on files, as ``filelock`` takes them, and whether the file system provides them."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from image_loader.errors import LockedError
from image_loader.flock import SHARED, takes, wait
from image_loader.store.root import GUARDED

_IMPORTING = threading.Lock()
_PATIENCE = 30.0
"""Seconds to wait for a run that deletes images: it lets others start after some milliseconds."""


def lock(descriptor: int, path: str, folder: int) -> os.stat_result:
    """Lock an open file of ``folder`` (a descriptor) and return its state.

    Raises ``LockedError`` if another holds the lock, or has moved the file away meanwhile; ``OSError``.
    """
    if not _lock_descriptor()(descriptor, blocking=False):
        raise LockedError(path)
    state = os.fstat(descriptor)
    try:
        in_place = os.lstat(path, dir_fd=folder)
    except FileNotFoundError:
        raise LockedError(path) from None
    if not os.path.samestat(in_place, state):
        raise LockedError(path)
    return state


class Presence:
    """A lock that all runs on a directory share, and that one can have alone when no other is under way."""

    def __init__(self, path: str, folder: int, is_ending: Callable[[], bool]) -> None:
        """Share the lock of a file of ``folder`` (a descriptor).

        Raises ``LockedError`` after a while, or when the run ``is_ending``, and ``OSError``. Where the file cannot be
        opened, this run is never alone.
        """
        self._path = path
        self._folder = folder
        # Open for writing, it would keep the file system from being made read-only.
        self._descriptor = _opened(path, folder, os.O_RDONLY | os.O_CREAT)
        try:
            if self._descriptor is not None and not wait(self._descriptor, SHARED, _PATIENCE, is_ending):
                raise LockedError(path)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep other runs from starting meanwhile; False where one is under way.

        The lock is shared again afterwards, unless another run was under way.
        """
        shared = self._descriptor is not None
        self.close()
        # Network file systems lock alone only what is open for writing.
        self._descriptor = _opened(self._path, self._folder, os.O_RDWR) if shared else None
        is_alone = False
        with suppress(OSError):
            is_alone = self._descriptor is not None and takes(self._descriptor)
        try:
            yield is_alone
        finally:
            if is_alone and self._descriptor is not None:
                with suppress(OSError):
                    takes(self._descriptor, SHARED)

    def close(self) -> None:
        """Give the lock up."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _opened(path: str, folder: int, access: int) -> int | None:
    with suppress(OSError):
        return os.open(path, access | GUARDED, 0o666, dir_fd=folder)
    return None


def probe(path: str, folder: int, flags: int, mode: int) -> OSError | None:
    """Make, lock and remove a file; return the error where the file system provides no locks.

    Raises ``OSError`` where the file cannot be made or removed.

    It is locked in the way filelock does on Unix, without the price of its import. It is a file, because a directory is
    locked locally even where a network file system provides no locks.
    """
    descriptor = os.open(path, flags, mode, dir_fd=folder)
    try:
        takes(descriptor)  # If not, another run is probing: locks do work.
    except OSError as error:
        return error
    finally:
        os.close(descriptor)
        with suppress(FileNotFoundError):
            os.unlink(path, dir_fd=folder)
    return None


@functools.cache
def _lock_descriptor() -> Callable[..., bool]:
    """Return filelock's function: a run that saves nothing locks nothing, and is spared the time of the import."""
    # One thread at a time: an import that fails, for want of a descriptor, leaves others with half of the package.
    with _IMPORTING:
        try:
            from filelock import lock_descriptor
        except ImportError as error:
            # That is how the system's loader of libraries tells of a lack of descriptors.
            lacks = [code for code in (errno.EMFILE, errno.ENFILE) if os.strerror(code) in str(error)]
            if lacks:
                raise OSError(lacks[0], os.strerror(lacks[0])) from error
            raise
        return lock_descriptor

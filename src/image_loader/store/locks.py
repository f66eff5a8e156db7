"""Locks on files, as ``filelock`` takes them, and whether the file system provides them."""
# A Path costs more than the system call it is made for, and this runs once per image.

from __future__ import annotations

import errno
import fcntl
import functools
import os
from collections.abc import Callable
from contextlib import suppress

from image_loader.errors import LockedError


def lock(descriptor: int, path: str, folder: int) -> os.stat_result:
    """Lock an open file of ``folder`` (a descriptor) and return its state.

    Raises ``LockedError`` if another holds the lock, or has moved the file away meanwhile.
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


def probe(path: str, folder: int, flags: int, mode: int) -> OSError | None:
    """Make, lock and remove a file; return the error where the file system provides no locks.

    It is locked in the way filelock does on Unix, without the price of its import. It is a file, because a directory is
    locked locally even where a network file system provides no locks.
    """
    descriptor = os.open(path, flags, mode, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        pass  # Another run is probing: locks do work.
    except OSError as error:
        return error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path, dir_fd=folder)
        os.close(descriptor)
    return None


@functools.cache
def _lock_descriptor() -> Callable[..., bool]:
    """Return filelock's function: a run that saves nothing locks nothing, and is spared the time of the import."""
    try:
        from filelock import lock_descriptor
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        # For want of a file descriptor, some part of it was not to be had: another attempt imports the rest.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
    return lock_descriptor

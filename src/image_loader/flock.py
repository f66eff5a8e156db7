"""Locks of whole files, which other processes respect if they ask for them (``flock(2)``)."""

from __future__ import annotations

import fcntl

ALONE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH


def takes(descriptor: int, how: int = ALONE) -> bool:
    """Lock an open file without waiting; return whether that could be done.

    Raises ``OSError`` where the file system has no locks. Some tell of a lock that is held by EACCES (``fcntl(2)``).
    """
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True

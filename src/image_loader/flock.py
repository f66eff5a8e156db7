"""Locks of whole files, which other processes respect if they ask for them (``flock(2)``)."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable

ALONE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
_POLL = 0.01
"""Seconds between two tries; a call that waits by itself would go on waiting after a signal."""


def takes(descriptor: int, how: int = ALONE) -> bool:
    """Lock an open file without waiting; return whether that could be done.

    Raises ``OSError`` where the file system has no locks. Some tell of a lock that is held by EACCES (``fcntl(2)``).
    """
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def wait(descriptor: int, how: int, seconds: float, is_ending: Callable[[], bool] = lambda: False) -> bool:
    """Lock an open file, if need be after a wait of so many seconds, or until the run ``is_ending``; see ``takes``."""
    give_up = time.monotonic() + seconds
    while not takes(descriptor, how):
        if time.monotonic() > give_up or is_ending():
            return False
        time.sleep(_POLL)
    return True

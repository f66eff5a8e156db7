"""What other threads send to one thread, which waits for it."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Messages of any threads to the one that reads them, which they wake.

    ``SimpleQueue.get`` of CPython 3.11 may wait without end: after a signal was handled, it does not look whether its
    time is over. A lock does. (So does ``queue.Queue``, which takes a third longer for each message.)
    """

    def __init__(self) -> None:
        self._messages: SimpleQueue[T] = SimpleQueue()
        self._wakes = threading.Lock()

    def put(self, message: T) -> None:
        """Add a message."""
        self._messages.put(message)
        with suppress(RuntimeError):  # It is free already, so that the next wait ends at once.
            self._wakes.release()

    def get_nowait(self) -> T:
        """Return the next message, or raise ``Empty``."""
        return self._messages.get_nowait()

    def get(self, timeout: float) -> T:
        """Return the next message; raise ``Empty`` if none has come within ``timeout`` seconds, or earlier."""
        with suppress(Empty):
            return self._messages.get_nowait()
        self._wakes.acquire(timeout=timeout)
        return self._messages.get_nowait()

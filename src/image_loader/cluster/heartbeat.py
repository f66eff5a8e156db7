"""The signs of life of a driver, which its tasks look at."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from image_loader.cluster.files import opener, translating

_BEAT = 1.0
"""Seconds between two signs of life."""
_LOOK = 0.5
"""Seconds between two looks of a task."""
_GOING_ON, _ENDING = b"+", b"-"


class Heartbeat:
    """Tells the tasks that their driver lives, and when they are to end."""

    def __init__(self, path: Path) -> None:
        """Begin; raises ``DirectoryError``."""
        self._path = path
        self._lock = threading.Lock()
        self._beats = 0
        self._state = _GOING_ON
        self._over = threading.Event()
        with translating():
            self._beat()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def end_tasks(self) -> None:
        """Ask all tasks to end."""
        self._state = _ENDING
        with suppress(OSError):  # Tasks end all the same, when the files of the run are removed.
            self._beat()

    def close(self) -> None:
        """Give no more signs of life."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_BEAT):
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        """Write over the file, at a fixed length: so it is never empty, and always the same file.

        It is opened each time, since NFS shows what was written before a close to whoever opens the file after that.
        """
        with self._lock:
            self._beats += 1
            descriptor = opener(self._path, os.O_WRONLY | os.O_CREAT)
            try:
                os.pwrite(descriptor, b"%s%020d\n" % (self._state, self._beats), 0)
            finally:
                os.close(descriptor)


class Watch:
    """Whether a task is to go on; ``stop`` is set when it is not.

    That is when its driver says so, has removed its files, or has given no sign of life for ``patience`` seconds.
    ``fault`` tells of the last two. The clocks of two machines are not compared.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self.stop = threading.Event()
        self.fault = ""
        self._path = path
        self._patience = patience
        self._content = b""
        self._changed = self._next_look = time.monotonic()
        self.look()

    def look(self, _: float = 0.0) -> None:
        """Look at the file, if it is time."""
        now = time.monotonic()
        if now < self._next_look or self.stop.is_set():
            return
        self._next_look = now + _LOOK
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            self._end("the files of the run are gone")
            return
        except OSError:
            content = self._content  # A file server that is away for a moment.
        if content != self._content:
            self._content, self._changed = content, now
        if content.startswith(_ENDING):
            self._end("")
        elif now - self._changed > self._patience:
            self._end(f"no sign of life of the driver for {self._patience:.0f} s; check the file system")

    def _end(self, fault: str) -> None:
        self.fault = fault
        self.stop.set()

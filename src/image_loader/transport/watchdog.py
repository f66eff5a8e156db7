"""Deadlines kept from outside: a connection whose time is over is shut down under the reader that it blocks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from image_loader.errors import DownloadError, OutOfThreadsError
from image_loader.model import Reason

_INTERRUPT_INTERVAL = 0.05  # seconds


class Watch:
    """One attempt under watch: the socket that it blocks on, and why it was ended, if it was.

    ``timeout`` is the longest that it may wait for its peer at once, in seconds.
    """

    __slots__ = ("_watchdog", "deadline", "ended", "socket", "timeout")

    def __init__(self, watchdog: Watchdog, timeout: float, deadline: float) -> None:
        self._watchdog = watchdog
        self.timeout = timeout
        self.deadline = deadline
        self.socket: socket.socket | None = None
        self.ended: Reason | None = None

    def close(self) -> None:
        """Watch no longer."""
        self._watchdog.remove(self)
        self.let_go()

    def guard(self, connection: socket.socket) -> None:
        """Watch over ``connection`` from here on."""
        self.socket = connection
        self.check()

    def let_go(self) -> None:
        """Watch over no connection any more: from here on, another attempt may use it."""
        if self.socket is not None:
            with self._watchdog.lock:
                self.socket = None

    def check(self) -> None:
        """Raise ``DownloadError`` if the attempt was ended, or its time is over."""
        if self.ended is None and time.monotonic() >= self.deadline:
            self.ended = Reason.DEADLINE
        if self.ended is Reason.INTERRUPTED:
            raise DownloadError(Reason.INTERRUPTED, "the run was ended")
        if self.ended is not None:
            raise DownloadError(Reason.DEADLINE, "not done within the time for one attempt")

    def remaining(self) -> float:
        """Return the timeout, or what is left until the deadline where that is less, in seconds."""
        return max(0.001, min(self.timeout, self.deadline - time.monotonic()))

    def end(self, reason: Reason) -> None:
        """End the attempt: whatever it waits for on its socket returns at once."""
        self.ended = self.ended or reason
        with self._watchdog.lock, contextlib.suppress(OSError):
            if self.socket is not None:
                # The base class's shutdown: SSLSocket's own would drop the TLS state under the reader's feet.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Watchdog:
    """One daemon thread for all attempts of a run; each has the same ``timeout`` and ``max_time`` (seconds).

    Raises ``OutOfThreadsError`` where no thread can be had: nothing else would keep the deadlines.
    """

    def __init__(self, timeout: float, max_time: float) -> None:
        self._timeout = timeout
        self._max_time = max_time
        self.lock = threading.Lock()
        self._watches: dict[int, Watch] = {}
        self._over = threading.Event()
        self._interrupted = False
        self._closed = False
        try:
            threading.Thread(target=self._run, name="image_loader-watchdog", daemon=True).start()
        except RuntimeError as error:
            raise OutOfThreadsError from error

    def watch(self) -> Watch:
        """Return a watch whose time runs from now; it is to be closed."""
        watch = Watch(self, self._timeout, time.monotonic() + self._max_time)
        self._watches[id(watch)] = watch
        if self._interrupted:
            watch.ended = Reason.INTERRUPTED
        return watch

    def remove(self, watch: Watch) -> None:
        """Forget a watch that is closed."""
        self._watches.pop(id(watch), None)

    def interrupt(self) -> None:
        """End every attempt now, and every later one as it begins."""
        self._interrupted = True
        self._end(list(self._watches.values()), Reason.INTERRUPTED)
        self._over.set()

    def close(self) -> None:
        """Stop the thread."""
        self._closed = True
        self._over.set()

    def _run(self) -> None:
        # Every attempt has the same time, so none that begins during a pause can be due before it is over.
        pause = self._max_time
        while not self._over.wait(pause):
            now = time.monotonic()
            watches = list(self._watches.values())
            self._end([watch for watch in watches if watch.deadline <= now], Reason.DEADLINE)
            pause = min((watch.deadline - now for watch in watches if watch.deadline > now), default=self._max_time)
        while not self._closed:
            # Again and again: it is lost on a socket that has not begun to connect.
            self._end(list(self._watches.values()), Reason.INTERRUPTED)
            time.sleep(_INTERRUPT_INTERVAL)

    @staticmethod
    def _end(watches: list[Watch], reason: Reason) -> None:
        for watch in watches:
            watch.end(reason)

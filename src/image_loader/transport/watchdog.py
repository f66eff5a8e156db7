"""Deadlines kept from outside: a connection whose time is over is shut down under the reader that it blocks."""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import suppress

from image_loader.errors import DownloadError, OutOfThreadsError, interrupted, too_late, was_stopped
from image_loader.model import Blame, Reason


class Watch:
    """One attempt under watch.

    Its time is over at ``deadline`` (monotonic). ``socket`` is the one that it may wait for. ``ended`` is why it was
    ended, None if it was not. ``stopped`` says that this process did not run when the time was over.
    """

    __slots__ = ("_watchdog", "deadline", "ended", "socket", "stopped")

    def __init__(self, watchdog: Watchdog, deadline: float) -> None:
        self._watchdog = watchdog
        self.deadline = deadline
        self.socket: socket.socket | None = None
        self.ended: Reason | None = None
        self.stopped = False

    @property
    def left(self) -> float:
        """Seconds that the attempt may still take."""
        return max(0.0, self.deadline - time.monotonic())

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
            self._note(Reason.DEADLINE)
        if self.ended is not None:
            raise end_error(self.ended, stopped=self.stopped)

    def end(self, reason: Reason) -> None:
        """End the attempt: whatever it waits for on its socket returns at once."""
        if self.ended is None:
            self._note(reason)
        with self._watchdog.lock:
            if self.socket is not None:
                shut_down(self.socket)

    def _note(self, reason: Reason) -> None:
        self.stopped = was_stopped(self.deadline)
        self.ended = reason


class Watchdog:
    """One daemon thread for all attempts of a run; each has ``max_time`` seconds, unless it is told how many are left.

    Raises ``OutOfThreadsError`` where no thread can be started: nothing else would keep the deadlines.
    """

    def __init__(self, max_time: float) -> None:
        self._max_time = max_time
        self.lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._look = threading.Event()
        self._next_look = -math.inf
        self._interrupted = False
        self._closed = False
        try:
            threading.Thread(target=self._run, name="image_loader-watchdog", daemon=True).start()
        except RuntimeError as error:
            raise OutOfThreadsError from error

    def watch(self, left: float | None = None) -> Watch:
        """Return a watch, which is to be closed; its time runs from now, for all of it or what is ``left``."""
        watch = Watch(self, time.monotonic() + (self._max_time if left is None else left))
        self._watches.add(watch)
        if watch.deadline < self._next_look:
            self._look.set()
        if self._interrupted:
            watch.ended = Reason.INTERRUPTED
        return watch

    def remove(self, watch: Watch) -> None:
        """Forget a watch that is closed."""
        self._watches.discard(watch)

    def interrupt(self) -> None:
        """End every attempt now, and every later one as it begins; no deadline is kept any more."""
        # In this order, none is missed: an attempt is added to the others before it looks whether it is interrupted.
        self._interrupted = True
        self._end(list(self._watches), Reason.INTERRUPTED)
        self._look.set()

    def close(self) -> None:
        """Stop the thread."""
        self._closed = True
        self._look.set()

    def _run(self) -> None:
        while not (self._closed or self._interrupted):
            self._look.wait(self._pause())

    def _pause(self) -> float:
        """End the attempts whose time is over; return the seconds until the next one's is."""
        self._look.clear()
        if self._closed or self._interrupted:
            return 0.0  # What was cleared may have told of this.
        # Until the next look is known, each watch that begins asks for one.
        self._next_look = math.inf
        now = time.monotonic()
        watches = list(self._watches)
        self._end([watch for watch in watches if watch.deadline <= now], Reason.DEADLINE)
        # A watch that begins during the pause, with all of its time, cannot be due before the pause is over.
        next_look = min((each.deadline for each in watches if each.deadline > now), default=now + self._max_time)
        self._next_look = next_look
        return next_look - now

    @staticmethod
    def _end(watches: list[Watch], reason: Reason) -> None:
        for watch in watches:
            watch.end(reason)


def shut_down(connection: socket.socket) -> None:
    """Have whatever waits for something on a socket return at once; the socket stays open."""
    with suppress(OSError):
        # The base class's shutdown: SSLSocket's own would drop the TLS state while another thread reads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def end_error(reason: Reason, *, stopped: bool = False) -> DownloadError:
    """Return the error of an attempt that was ended: its time was over (``too_late``), or the run."""
    if reason is Reason.INTERRUPTED:
        return interrupted()
    return too_late("not done within the time for one attempt", stopped=stopped)


def blame_host_if_late(error: DownloadError) -> None:
    """Blame the host for an attempt that ended before the host had answered, if its time was over."""
    if error.failure.reason is Reason.DEADLINE and not error.failure.stopped:
        error.failure = error.failure._replace(blame=Blame.HOST)

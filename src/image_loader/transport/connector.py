"""Connecting: one daemon thread that makes the connections of a run, some hundreds at once."""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from image_loader.errors import DownloadError, LoaderError, OutOfThreadsError
from image_loader.model import Reason
from image_loader.transport import daemons
from image_loader.transport.connection import Connection
from image_loader.transport.dial import Dial, Means
from image_loader.transport.handshakes import Handshakes
from image_loader.transport.names import Names
from image_loader.transport.routes import Route
from image_loader.transport.watchdog import end_error

Delivery = Callable[[str, Connection | DownloadError | LoaderError, float], None]
"""Takes an origin, what came of connecting to it, and when that was begun; called from other threads, and quick."""

_MOST_TUNNELS = 64  # threads in which urllib3 has proxies build tunnels
_JOIN_TIME = 2.0  # seconds


class Connector:
    """Makes connections for a run; what comes of each is handed to ``deliver``, once.

    Each step (look-up, TCP connect, TLS handshake) may take ``timeout`` seconds, all of them ``max_time``. With
    ``public_only``, a name is refused if one of its addresses is not public. Raises ``OutOfThreadsError``.
    """

    def __init__(self, timeout: float, max_time: float, deliver: Delivery, *, public_only: bool) -> None:
        self._max_time = max_time
        self._timeout = timeout
        self._deliver = deliver
        self._names = Names()
        self._tunnels = daemons.Daemons("image_loader-tunnels", _MOST_TUNNELS)
        self._numbers = itertools.count()
        self._dials: dict[int, Dial] = {}
        # Numbers, not dials: the timers of connections that stand by now must keep nothing alive.
        self._timers: list[tuple[float, int]] = []
        self._done: deque[tuple[str, Connection | DownloadError | LoaderError, float]] = deque()
        self._inbox: deque[Callable[[], None]] = deque()
        self._asleep = self._closed = self._interrupted = self._over = False
        self._selector, self._woken, self._wake = _waiting_room()
        self._handshakes = Handshakes()
        self._means = Means(
            *(self._selector, self._names, self._tunnels, self._handshakes, timeout, public_only),
            *(self._tell, self._schedule, self._finish),
        )
        self._thread = threading.Thread(target=self._run, name="image_loader-connector", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._clear_away()
            raise OutOfThreadsError from error

    def connect(self, route: Route, context: ssl.SSLContext | None) -> None:
        """Begin to connect; ``context`` is that of TLS, where the route needs it."""
        now = time.monotonic()
        dial = Dial(next(self._numbers), route, context, now, now + self._max_time)
        self._post(lambda: self._begin(dial))

    def interrupt(self) -> None:
        """End what is under way, and all that comes later."""
        self._interrupted = True
        self._post(self._end_all)

    def close(self) -> None:
        """End what is under way, and the thread."""
        self._closed = True
        self.interrupt()
        self._names.close()
        self._tunnels.close()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_TIME)

    # How other threads reach this one --------------------------------------------------------------------------------

    def _post(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        if self._over:
            self._take_in()
            self._hand_over()
        elif self._asleep:
            self._asleep = False
            with suppress(OSError):  # Full: it is awake anyway.
                self._wake.send(b"\0")

    def _tell(self, number: int, step: Callable[..., None], result: Any = None) -> None:
        """Have a dial take a step, with a result if there is one; that of a dial which is done by then is closed."""
        self._post(lambda: self._take_step(number, step, result))

    def _take_step(self, number: int, step: Callable[..., None], result: Any) -> None:
        dial = self._dials.get(number)
        if dial is None:
            if hasattr(result, "close"):
                result.close()
        elif result is None:
            step(dial)
        else:
            step(dial, result)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                self._take_in()
                self._look_at_timers()
                self._hand_over()
                self._wait()
        finally:
            self._interrupted = self._over = True
            self._take_in()
            self._end_all()
            self._hand_over()
            self._clear_away()

    def _take_in(self) -> None:
        while True:
            try:
                call = self._inbox.popleft()
            except IndexError:
                return
            call()

    def _wait(self) -> None:
        self._asleep = True
        # Whoever posts or closes does that first, and looks for a sleeper then.
        events = self._selector.select(0 if self._inbox or self._closed else self._pause())
        self._asleep = False
        for key, _ in events:
            if isinstance(key.data, Dial):
                key.data.go_on(key.fd)
            else:
                with suppress(OSError):
                    self._woken.recv(4096)

    def _pause(self) -> float | None:
        pause = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        if self._names.is_waiting or self._tunnels.is_waiting:
            return daemons.WAIT if pause is None else min(pause, daemons.WAIT)
        return pause

    def _look_at_timers(self) -> None:
        for each in (self._names, self._tunnels):
            if each.is_waiting:
                each.relieve()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            dial = self._dials.get(heapq.heappop(self._timers)[1])
            if dial is None:
                continue
            if dial.due > now:
                self._schedule(dial)
            else:
                dial.look(now)

    def _schedule(self, dial: Dial) -> None:
        heapq.heappush(self._timers, (dial.due, dial.number))
        if len(self._timers) > 100 + 4 * len(self._dials):
            self._timers = [(each.due, each.number) for each in self._dials.values()]
            heapq.heapify(self._timers)

    def _begin(self, dial: Dial) -> None:
        self._dials[dial.number] = dial
        if self._interrupted:
            self._finish(dial, end_error(Reason.INTERRUPTED))
        else:
            dial.begin(self._means)

    def _finish(self, dial: Dial, result: Any) -> None:
        """Have it delivered what came of a dial: an error, or a connection that stands."""
        del self._dials[dial.number]
        if (following := self._handshakes.leave(dial.number)) is not None:
            self._tell(following, Dial.begin_handshake)
        origin = dial.route.origin
        if not isinstance(result, (DownloadError, LoaderError)):
            result = Connection(origin, dial.route.way, result, self._timeout)
            result.seconds = time.monotonic() - dial.begun
        self._done.append((origin, result, dial.begun))

    def _hand_over(self) -> None:
        """Deliver what is done, all at once: whoever waits for it is woken once, and not for each."""
        while True:
            try:
                done = self._done.popleft()
            except IndexError:
                return
            self._deliver(*done)

    def _end_all(self) -> None:
        for dial in list(self._dials.values()):
            dial.end(end_error(Reason.INTERRUPTED))

    def _clear_away(self) -> None:
        self._selector.close()
        self._woken.close()
        self._wake.close()


def _waiting_room() -> tuple[selectors.BaseSelector, socket.socket, socket.socket]:
    """Return what the thread waits with, and the two ends that others wake it by."""
    try:
        selector = selectors.DefaultSelector()
        woken, wake = socket.socketpair()
    except OSError as error:
        raise LoaderError(f"connections cannot be made: {error.strerror}; see ulimit -n") from error
    for each in (woken, wake):
        each.settimeout(0)
    selector.register(woken, selectors.EVENT_READ, None)
    return selector, woken, wake

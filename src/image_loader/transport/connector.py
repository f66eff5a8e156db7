"""Connecting: one daemon thread that makes the connections of a run, some hundreds at once."""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from image_loader.errors import DownloadError, LoaderError, OutOfThreadsError
from image_loader.model import Reason
from image_loader.transport import daemons
from image_loader.transport.admission import Admission
from image_loader.transport.connection import Connection
from image_loader.transport.dial import Dial, Tools
from image_loader.transport.failures import connect_error
from image_loader.transport.handshakes import Handshakes, Step
from image_loader.transport.names import LookUp, Names
from image_loader.transport.routes import Route
from image_loader.transport.watchdog import end_error

if TYPE_CHECKING:
    from image_loader.transport.response import Stream
    from image_loader.transport.tunnels import Tunnel

    Result = LookUp | Step | Tunnel

_LOG = logging.getLogger(__name__)

Delivery = Callable[[str, Connection | DownloadError | LoaderError, float], None]
"""Takes an origin, what came of connecting to it, and when that was begun; quick. Any thread may call it, that of
``connect`` too."""

_MOST_HANDSHAKES = 256
"""TLS handshakes at once: more than the hosts that are likely to accept connections and never shake hands. Each takes
40 kB, and a connection that waits for its turn hardly any."""
_MOST_TUNNELS = 64
"""Threads in which proxies are asked for tunnels."""
_JOIN_TIME = 2.0
"""Seconds that ``close`` waits for the thread to end."""


class Connector:
    """Makes connections for a run; what comes of each is handed to ``deliver``, once.

    Each step (look-up, TCP connect, CONNECT to a proxy, each TLS handshake) may take ``timeout`` seconds, all of them
    ``max_time``. With ``public_only``, a name is refused if one of its addresses is not public. ``most_handshakes`` are
    made at once, besides those within tunnels through TLS; their threads may run on any of ``processors``, or where
    this one does. Raises ``OutOfThreadsError``, and ``LoaderError`` where there are no descriptors for its own use.
    """

    def __init__(
        self,
        timeout: float,
        max_time: float,
        deliver: Delivery,
        *,
        public_only: bool,
        most_handshakes: int = _MOST_HANDSHAKES,
        processors: frozenset[int] = frozenset(),
    ) -> None:
        self._timeout = timeout
        self._deliver = deliver
        self._names = Names()
        self._tunnels = daemons.Daemons("image_loader-tunnels", _MOST_TUNNELS)
        self._handshakes = Handshakes(processors)
        self._numbers = itertools.count()
        self._dials: dict[int, Dial] = {}
        # Numbers, not dials: the timers of connections that stand by now must keep nothing alive.
        self._timers: list[tuple[float, int]] = []
        self._done: deque[tuple[str, Connection | DownloadError | LoaderError, float]] = deque()
        self._inbox: deque[Callable[[], None]] = deque()
        self._asleep = self._closed = self._interrupted = self._over = False
        # What broke the thread, which then makes no connection any more.
        self._fault = ""
        self._logs = _LOG.isEnabledFor(logging.DEBUG)
        self._selector, self._woken, self._wake = _waiting_room()
        self._tools = Tools(
            selector=self._selector,
            names=self._names,
            tunnels=self._tunnels,
            handshakes=self._handshakes,
            shaking=Admission(most_handshakes),
            proxies=Admission(_MOST_TUNNELS),
            timeout=timeout,
            max_time=max_time,
            public_only=public_only,
            tell=self._tell,
            schedule=self._schedule,
            finish=self._finish,
        )
        self._thread = threading.Thread(target=self._run, name="image_loader-connector", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._clear_away()
            raise OutOfThreadsError from error

    def connect(self, route: Route, context: ssl.SSLContext | None) -> None:
        """Begin to connect; ``context`` is that of TLS, where the route needs it."""
        dial = Dial(self._tools, next(self._numbers), route, context)
        self._post(lambda: self._begin(dial))

    def interrupt(self) -> None:
        """End what is under way, and all that comes later."""
        self._interrupted = True
        self._post(self._end_all)

    def close(self) -> None:
        """End what is under way, and the thread."""
        self._closed = True
        self.interrupt()
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

    def _tell(self, number: int, step: Callable[..., None], result: Result | None = None) -> None:
        """Have a dial take a step, with a result if there is one. If the dial is done by then, the result is closed."""
        self._post(lambda: self._take_step(number, step, result))

    def _take_step(self, number: int, step: Callable[..., None], result: Result | None) -> None:
        dial = self._dials.get(number)
        if dial is None:
            if result is not None and hasattr(result, "close"):
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
        except Exception as error:  # noqa: BLE001 (no thread but this one makes connections)
            # Nobody would notice that a thread has ended: the run ends with what is delivered from here on.
            _LOG.exception("unexpected, please report")
            self._fault = f"connections can no longer be made: unexpected {type(error).__name__}"
        finally:
            self._interrupted = True
            try:
                self._end_all()
            finally:
                # From here on, others take in themselves what they post. No dial is left that they could touch.
                self._over = True
                self._take_in()
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
            self._finish(dial, self._end_error())
        else:
            dial.begin()

    def _finish(self, dial: Dial, result: Stream | DownloadError | LoaderError) -> None:
        """Queue the result of a dial for delivery."""
        origin = dial.route.origin
        if isinstance(result, (DownloadError, LoaderError)):
            made: Connection | DownloadError | LoaderError = result
        else:
            try:
                made = Connection(origin, dial.route.way, result, self._timeout)
            except OSError as error:  # Some systems refuse options of a socket that the peer has reset.
                result.close()
                made = connect_error(error)
            except BaseException:
                result.close()
                raise  # The dial is not forgotten yet: it is told of with the others.
        del self._dials[dial.number]
        if self._logs:
            _log(origin, made, time.monotonic() - dial.begun)
        self._done.append((origin, made, dial.begun))

    def _hand_over(self) -> None:
        """Deliver what is done, all at once: whoever waits for it is woken once, and not for each."""
        while True:
            try:
                done = self._done.popleft()
            except IndexError:
                return
            self._deliver(*done)

    def _end_all(self) -> None:
        # One that cannot be ended in order must not keep the others from it.
        with ExitStack() as stack:
            for dial in list(self._dials.values()):
                stack.callback(dial.end, self._end_error())

    def _end_error(self) -> DownloadError | LoaderError:
        """Return what comes of a dial that is not done when the thread ends, or is begun later."""
        return LoaderError(self._fault) if self._fault else end_error(Reason.INTERRUPTED)

    def _clear_away(self) -> None:
        # Not before all dials are ended: each one learns from them whether its own call has begun.
        self._names.close()
        self._tunnels.close()
        self._handshakes.close()
        self._selector.close()
        self._woken.close()
        self._wake.close()


def _log(origin: str, made: Connection | DownloadError | LoaderError, seconds: float) -> None:
    if isinstance(made, Connection):
        _LOG.debug("%s: connected to %s in %.3f s", origin, made.address, seconds)
    else:
        _LOG.debug("%s: not connected after %.3f s: %s", origin, seconds, made)


def _waiting_room() -> tuple[selectors.BaseSelector, socket.socket, socket.socket]:
    """Return what the thread waits with, and the two ends that others wake it by."""
    with ExitStack() as stack:
        try:
            selector = stack.enter_context(selectors.DefaultSelector())
            woken, wake = map(stack.enter_context, socket.socketpair())
            selector.register(woken, selectors.EVENT_READ, None)
        except OSError as error:
            raise LoaderError(f"connections cannot be made: {error.strerror}; see ulimit -n") from error
        for each in (woken, wake):
            each.settimeout(0)
        stack.pop_all()
        return selector, woken, wake

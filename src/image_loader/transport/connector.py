"""Connecting: one daemon thread that makes the connections of a run, some hundreds at once."""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from image_loader.errors import DownloadError, LoaderError, OutOfThreadsError, is_out_of_descriptors
from image_loader.model import Blame, Reason
from image_loader.transport import daemons
from image_loader.transport.addresses import Address, interleaved, is_public
from image_loader.transport.connection import Connection
from image_loader.transport.failures import at_proxy, connect_error, copied, handshake_error
from image_loader.transport.names import Answer, Names
from image_loader.transport.routes import Route
from image_loader.transport.tunnels import Tunnel
from image_loader.transport.watchdog import ended

Delivery = Callable[[str, Connection | DownloadError | LoaderError, float], None]
"""Takes an origin, what came of connecting to it, and when that was begun; called from other threads, and quick."""

# RFC 8305, 5: how long an address has before the next one is tried beside it.
_ATTEMPT_DELAY = 0.25
# A host with very many addresses: all are tried in this part of the timeout, so many of them at once.
_PART_FOR_ATTEMPTS = 0.8
_MOST_AT_ONCE = 8
_MOST_TUNNELS = 64  # threads in which urllib3 has proxies build tunnels
_JOIN_TIME = 2.0  # seconds
_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK})


class _Dial:
    """One connection under way: what it leads to, the sockets that it tries, and its times (monotonic).

    It has until ``phase_end`` for its current step, and until ``deadline`` for all of them; at ``due`` it is looked at.
    """

    __slots__ = (
        "addresses", "begun", "context", "deadline", "delay", "due", "failure", "number", "phase_end", "route",
        "shaking", "sockets", "tunnel",
    )  # fmt: skip

    def __init__(self, number: int, route: Route, context: ssl.SSLContext | None, deadline: float) -> None:
        self.number = number
        self.route = route
        self.context = context
        self.begun = time.monotonic()
        self.deadline = self.due = self.phase_end = deadline
        self.addresses: list[Address] | None = None
        self.delay = 0.0
        self.sockets: dict[int, socket.socket] = {}
        self.failure: DownloadError | None = None
        self.shaking: ssl.SSLSocket | None = None
        self.tunnel: Tunnel | None = None


class Connector:
    """Makes connections for a run; what comes of each is handed to ``deliver``, once.

    Each step (look-up, TCP connect, TLS handshake) may take ``timeout`` seconds, all of them ``max_time``. With
    ``public_only``, a name is refused if one of its addresses is not public. Raises ``OutOfThreadsError``.
    """

    def __init__(self, timeout: float, max_time: float, deliver: Delivery, *, public_only: bool) -> None:
        self._timeout = timeout
        self._max_time = max_time
        self._public_only = public_only
        self._deliver = deliver
        self._names = Names()
        self._tunnels = daemons.Daemons("image_loader-tunnels", _MOST_TUNNELS)
        self._numbers = itertools.count()
        self._dials: dict[int, _Dial] = {}
        # Entries of numbers alone: those of connections that stand by now must not keep anything alive.
        self._timers: list[tuple[float, int]] = []
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._asleep = self._closed = self._interrupted = self._over = False
        self._selector, self._woken, self._wake = _waiting_room()
        self._thread = threading.Thread(target=self._run, name="image_loader-connector", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._clear_away()
            raise OutOfThreadsError from error

    def connect(self, route: Route, context: ssl.SSLContext | None) -> None:
        """Begin to connect; ``context`` is that of TLS, where the route needs it."""
        dial = _Dial(next(self._numbers), route, context, time.monotonic() + self._max_time)
        self._post(self._begin, dial)

    def interrupt(self) -> None:
        """End what is under way, and all that comes later."""
        self._interrupted = True
        self._post(self._end_all)

    def close(self) -> None:
        """End what is under way, and the thread."""
        self._closed = True
        self._post(self._end_all)
        self._names.close()
        self._tunnels.close()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_TIME)

    # The thread's own part, and how others reach it ------------------------------------------------------------------

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        self._inbox.append((call, args))
        if self._over:
            self._take_in()
        elif self._asleep:
            self._asleep = False
            # Full or closed: the thread is awake anyway, or over.
            with suppress(OSError):
                self._wake.send(b"\0")

    def _take_in(self) -> None:
        while self._inbox:
            try:
                call, args = self._inbox.popleft()
            except IndexError:
                return
            call(*args)

    def _run(self) -> None:
        try:
            while not self._closed:
                self._take_in()
                self._look_at_timers()
                self._wait()
        finally:
            self._interrupted = self._over = True
            self._take_in()
            self._end_all()
            self._clear_away()

    def _wait(self) -> None:
        self._asleep = True
        # Whoever posts appends first and looks for a sleeper then.
        pause = 0.0 if self._inbox else self._pause()
        events = self._selector.select(pause)
        self._asleep = False
        for key, _ in events:
            if key.data is None:
                with suppress(OSError):
                    self._woken.recv(4096)
            else:
                self._go_on(key.data, key.fd)

    def _pause(self) -> float | None:
        pause = None if not self._timers else max(0.0, self._timers[0][0] - time.monotonic())
        if self._names.is_waiting or self._tunnels.is_waiting:
            return daemons.WAIT if pause is None else min(pause, daemons.WAIT)
        return pause

    def _look_at_timers(self) -> None:
        for each in (self._names, self._tunnels):
            if each.is_waiting:
                each.relieve()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number = heapq.heappop(self._timers)
            dial = self._dials.get(number)
            if dial is None:
                continue
            if dial.due > now:
                heapq.heappush(self._timers, (dial.due, number))
            elif dial.phase_end <= now:
                self._give_up(dial, now)
            else:
                self._try_next_address(dial)

    def _set_due(self, dial: _Dial, due: float) -> None:
        dial.due = min(due, dial.phase_end)
        heapq.heappush(self._timers, (dial.due, dial.number))
        if len(self._timers) > 100 + 4 * len(self._dials):
            self._timers = [(each.due, each.number) for each in self._dials.values()]
            heapq.heapify(self._timers)

    def _begin_phase(self, dial: _Dial, seconds: float) -> None:
        dial.phase_end = min(time.monotonic() + seconds, dial.deadline)
        self._set_due(dial, dial.phase_end)

    def _end_all(self) -> None:
        for dial in list(self._dials.values()):
            self._fail(dial, ended(Reason.INTERRUPTED))

    def _clear_away(self) -> None:
        self._selector.close()
        self._woken.close()
        self._wake.close()

    # One connection, step by step ------------------------------------------------------------------------------------

    def _begin(self, dial: _Dial) -> None:
        self._dials[dial.number] = dial
        if self._interrupted:
            self._fail(dial, ended(Reason.INTERRUPTED))
        elif dial.route.tunnel is not None and dial.context is not None:
            # Its time runs from when a thread takes it on.
            self._begin_phase(dial, self._max_time)
            dial.tunnel = Tunnel(dial.route.tunnel, dial.route.target, dial.context, self._timeout)
            self._build_tunnel(dial, dial.tunnel)
        else:
            self._begin_phase(dial, self._timeout)
            found = self._names.look_up(dial.route.host, dial.number, partial(self._post, self._found))
            if found is not None:
                self._found(dial.number, found)

    def _found(self, number: int, answer: Answer) -> None:
        dial = self._dials.get(number)
        if dial is None:
            return
        if isinstance(answer, LoaderError):
            self._fail(dial, answer)
        elif isinstance(answer, DownloadError):
            self._fail_to_connect(dial, copied(answer))
        elif self._public_only and not all(is_public(each.ip) for each in answer):
            # A name that leads to both may be meant to pass the check by the one, and to be asked at the other.
            host = dial.route.host
            self._fail(dial, DownloadError(Reason.PRIVATE_ADDRESS, f"{host} has an address that is not public"))
        else:
            dial.addresses = interleaved(answer)[::-1]
            dial.delay = min(_ATTEMPT_DELAY, _PART_FOR_ATTEMPTS * self._timeout / max(1, len(answer)))
            self._begin_phase(dial, self._timeout)
            self._try_next_address(dial)

    def _try_next_address(self, dial: _Dial) -> None:
        while dial.addresses:
            address = dial.addresses.pop()
            if len(dial.sockets) >= _MOST_AT_ONCE:
                self._drop(dial, next(iter(dial.sockets)))
            code = self._try_address(dial, address)
            if code in _UNDER_WAY:
                return
            if code == 0:
                self._connected(dial, next(reversed(dial.sockets)))
                return
            dial.failure = connect_error(OSError(code, os.strerror(code)))
            if is_out_of_descriptors(OSError(code, "")):
                dial.addresses.clear()
        if dial.sockets:
            self._set_due(dial, dial.phase_end)
        else:
            self._fail_to_connect(dial, dial.failure or connect_error(None))

    def _try_address(self, dial: _Dial, address: Address) -> int:
        """Begin to connect to an address; return what ``connect`` says."""
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:
            return error.errno or errno.EIO
        try:
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address.at(dial.route.port))
        except OSError as error:
            code = error.errno or errno.EIO
        if code == 0 or code in _UNDER_WAY:
            dial.sockets[sock.fileno()] = sock
            self._selector.register(sock.fileno(), selectors.EVENT_WRITE, dial)
            self._set_due(dial, time.monotonic() + dial.delay if dial.addresses else dial.phase_end)
        else:
            sock.close()
        return code

    def _go_on(self, dial: _Dial, descriptor: int) -> None:
        """Go on where a socket has become ready; it may have been closed by what went before."""
        if dial.shaking is not None:
            self._shake_hands(dial)
            return
        sock = dial.sockets.get(descriptor)
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            self._connected(dial, descriptor)
            return
        self._drop(dial, descriptor)
        dial.failure = connect_error(OSError(code, os.strerror(code)))
        self._try_next_address(dial)

    def _connected(self, dial: _Dial, descriptor: int) -> None:
        for other in [each for each in dial.sockets if each != descriptor]:
            self._drop(dial, other)
        dial.addresses = None
        if dial.context is None:
            self._selector.unregister(descriptor)
            self._stand(dial, dial.sockets.pop(descriptor))
        else:
            self._begin_handshake(dial, dial.context, descriptor)

    def _begin_handshake(self, dial: _Dial, context: ssl.SSLContext, descriptor: int) -> None:
        self._begin_phase(dial, self._timeout)
        try:
            # The descriptor stays the same, so that it need not be registered anew.
            dial.shaking = context.wrap_socket(
                dial.sockets[descriptor],
                server_hostname=dial.route.server_hostname,
                do_handshake_on_connect=False,
                # A body that ends with the connection is whole only if the peer says so (RFC 9112, 9.8).
                suppress_ragged_eofs=False,
            )
        except OSError as error:
            self._fail_to_shake_hands(dial, handshake_error(error))
        except ValueError:
            self._fail(dial, DownloadError(Reason.BAD_URL, "bad host name"))
        else:
            dial.sockets[descriptor] = dial.shaking
            self._shake_hands(dial)

    def _shake_hands(self, dial: _Dial) -> None:
        shaking = dial.shaking
        if shaking is None or shaking.fileno() < 0:
            return
        try:
            shaking.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(shaking.fileno(), selectors.EVENT_READ, dial)
        except ssl.SSLWantWriteError:
            self._selector.modify(shaking.fileno(), selectors.EVENT_WRITE, dial)
        except OSError as error:
            self._fail_to_shake_hands(dial, handshake_error(error))
        else:
            self._selector.unregister(shaking.fileno())
            dial.sockets.clear()
            dial.shaking = None
            self._stand(dial, shaking)

    def _stand(self, dial: _Dial, connected: Any) -> None:
        """Deliver a connection that stands."""
        del self._dials[dial.number]
        route = dial.route
        connection = Connection(route.origin, route.way, connected, self._timeout)
        connection.seconds = time.monotonic() - dial.begun
        self._deliver(route.origin, connection, dial.begun)

    # Tunnels ---------------------------------------------------------------------------------------------------------

    def _build_tunnel(self, dial: _Dial, tunnel: Tunnel) -> None:
        try:
            self._tunnels.submit(dial.number, partial(self._run_tunnel, dial.number, tunnel))
        except LoaderError as error:
            self._fail(dial, error)

    def _run_tunnel(self, number: int, tunnel: Tunnel) -> None:
        self._post(self._tunnel_begun, number)
        self._post(self._tunnel_built, number, tunnel.build())

    def _tunnel_begun(self, number: int) -> None:
        if number in self._dials:
            # Connecting to the proxy, its answer and the handshake behind a TLS proxy take their time one by one.
            self._begin_phase(self._dials[number], (2 + self._dials[number].route.within_tls) * self._timeout)

    def _tunnel_built(self, number: int, built: Any) -> None:
        dial = self._dials.get(number)
        if dial is None:
            if not isinstance(built, DownloadError):
                built.close()
            return
        dial.tunnel = None
        if isinstance(built, DownloadError):
            self._fail(dial, built)
        elif isinstance(built, socket.socket) and dial.context is not None:
            built.settimeout(0)
            dial.sockets[built.fileno()] = built
            self._selector.register(built.fileno(), selectors.EVENT_WRITE, dial)
            self._begin_handshake(dial, dial.context, built.fileno())
        else:
            self._stand(dial, built)

    # Failures --------------------------------------------------------------------------------------------------------

    def _give_up(self, dial: _Dial, now: float) -> None:
        """End a connection whose step, or whose whole time, is over."""
        if now >= dial.deadline:
            self._fail(dial, ended(Reason.DEADLINE))
        elif dial.shaking is not None:
            detail = "no TLS handshake within the timeout"
            self._fail_to_shake_hands(dial, DownloadError(Reason.TIMEOUT, detail, retryable=True, blame=Blame.HOST))
        elif dial.addresses is None and dial.tunnel is None:
            detail = "the name was not looked up within the timeout"
            self._fail_to_connect(dial, DownloadError(Reason.DNS, detail, retryable=True, blame=Blame.HOST))
        else:
            self._fail_to_connect(dial, connect_error(TimeoutError()))

    def _fail_to_connect(self, dial: _Dial, error: DownloadError) -> None:
        self._fail(dial, at_proxy(dial.route.proxy, error))

    def _fail_to_shake_hands(self, dial: _Dial, error: DownloadError) -> None:
        self._fail(dial, error if dial.route.tunnel is not None else at_proxy(dial.route.proxy, error))

    def _fail(self, dial: _Dial, error: DownloadError | LoaderError) -> None:
        del self._dials[dial.number]
        if dial.tunnel is not None:
            self._tunnels.withdraw(dial.number)
            dial.tunnel.abort()
        elif dial.addresses is None and not dial.sockets:
            self._names.forget(dial.route.host, dial.number)
        for descriptor in list(dial.sockets):
            self._drop(dial, descriptor)
        self._deliver(dial.route.origin, error, dial.begun)

    def _drop(self, dial: _Dial, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        sock = dial.shaking if dial.shaking is not None else dial.sockets[descriptor]
        del dial.sockets[descriptor]
        sock.close()


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

"""One connection under way, step by step: look-up, TCP connect to one of the addresses, TLS handshake; or a tunnel."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from image_loader.errors import DownloadError, LoaderError, is_out_of_descriptors, was_stopped
from image_loader.model import Blame, Reason
from image_loader.transport.addresses import Address, interleaved, is_public
from image_loader.transport.daemons import Daemons
from image_loader.transport.failures import at_proxy, connect_error, copied, handshake_error
from image_loader.transport.names import Answer, Names
from image_loader.transport.routes import Route
from image_loader.transport.watchdog import ended

if TYPE_CHECKING:
    from image_loader.transport.tunnels import Tunnel

# RFC 8305, 5: how long an address has before the next one is tried beside it.
_ATTEMPT_DELAY = 0.25
# If a host has very many addresses, all are begun within this part of the timeout, at most so many at once.
_PART_FOR_ATTEMPTS = 0.8
_MOST_AT_ONCE = 8
_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK})


class Means(NamedTuple):
    """What all connections of a run are made with; ``timeout`` is that of each step, in seconds.

    ``post`` has a call made in the connector's thread. ``schedule`` is told that a dial is due earlier than before,
    ``finish`` that it is done, with what came of it.
    """

    selector: selectors.BaseSelector
    names: Names
    tunnels: Daemons
    timeout: float
    public_only: bool
    post: Callable[..., None]
    schedule: Callable[[Dial], None]
    finish: Callable[[Dial, Any], None]


class Dial:
    """One connection under way; only the connector's thread uses it.

    Its step has time until ``phase_end``, all of them have until ``deadline``; at ``due`` it is to be looked at
    (monotonic). When it is done, nothing of it is left but a connection that stands, if one does.
    """

    __slots__ = (
        "_addresses", "_context", "_deadline", "_delay", "_failure", "_means", "_next_at", "_phase_end", "_sockets",
        "_tls", "_tunnel", "begun", "due", "number", "route",
    )  # fmt: skip

    def __init__(
        self, number: int, route: Route, context: ssl.SSLContext | None, begun: float, deadline: float
    ) -> None:
        """Prepare for a route; ``context`` is that of TLS, where the route needs it."""
        self.number = number
        self.route = route
        self.begun = begun
        self.due = self._phase_end = self._deadline = deadline
        self._context = context
        # Those that are still to be tried, the next one last; None while they are not known, and once one is connected.
        self._addresses: list[Address] | None = None
        self._delay = 0.0
        self._sockets: dict[int, socket.socket] = {}
        self._failure: DownloadError | None = None
        self._tls: ssl.SSLSocket | None = None
        self._tunnel: Tunnel | None = None

    def begin(self, means: Means) -> None:
        """Take the first step."""
        self._means = means
        if self.route.tunnel is not None and self._context is not None:
            from image_loader.transport.tunnels import Tunnel

            self._begin_tunnel(Tunnel(self.route.tunnel, self.route.target, self._context, means.timeout))
            return
        self._begin_phase(means.timeout)
        post = means.post
        found = means.names.look_up(
            self.route.host, self.number, lambda number, answer: post(number, Dial.found, answer)
        )
        if found is not None:
            self.found(found)

    def go_on(self, descriptor: int) -> None:
        """Go on where a socket has become ready; it may have been closed by what went before."""
        sock = self._sockets.get(descriptor)
        if sock is None:
            return
        if self._tls is not None:
            self._shake_hands(self._tls)
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            self._connected(descriptor)
            return
        self._drop(descriptor)
        self._failure = connect_error(OSError(code, os.strerror(code)))
        self._try_next_address()

    def look(self, now: float) -> None:
        """Do what is due."""
        if now < self._phase_end:
            self._try_next_address()
        elif now >= self._deadline:
            self.end(ended(Reason.DEADLINE, stopped=was_stopped(self._deadline)))
        elif self._tls is not None:
            detail = "no TLS handshake within the timeout"
            self._end_handshake(DownloadError(Reason.TIMEOUT, detail, retryable=True, blame=Blame.HOST))
        elif self._addresses is None and self._tunnel is None:
            detail = "the name was not looked up within the timeout"
            self._end_connect(DownloadError(Reason.DNS, detail, retryable=True, blame=Blame.HOST))
        else:
            self._end_connect(connect_error(TimeoutError()))

    def end(self, error: DownloadError | LoaderError) -> None:
        """Give up, with an error."""
        if self._tunnel is not None:
            self._means.tunnels.withdraw(self.number)
            self._tunnel.abort()
        elif self._addresses is None and not self._sockets:
            self._means.names.forget(self.route.host, self.number)
        for descriptor in list(self._sockets):
            self._drop(descriptor)
        self._means.finish(self, error)

    # Addresses and TCP -----------------------------------------------------------------------------------------------

    def found(self, answer: Answer) -> None:
        """Take what came of the look-up."""
        if isinstance(answer, LoaderError):
            self.end(answer)
        elif isinstance(answer, DownloadError):
            self._end_connect(copied(answer))
        elif self._means.public_only and not all(is_public(each.ip) for each in answer):
            # A name that leads to both may be meant to pass the check by the one, and to be asked at the other.
            host = self.route.host
            self.end(DownloadError(Reason.PRIVATE_ADDRESS, f"{host} has an address that is not public"))
        else:
            self._addresses = interleaved(answer)[::-1]
            self._next_at = time.monotonic()
            self._delay = min(_ATTEMPT_DELAY, _PART_FOR_ATTEMPTS * self._means.timeout / max(1, len(answer)))
            self._begin_phase(self._means.timeout)
            self._try_next_address()

    def _try_next_address(self) -> None:
        """Begin to connect to the next address that does not fail at once."""
        while self._addresses:
            address = self._addresses.pop()
            if len(self._sockets) >= _MOST_AT_ONCE:
                self._drop(next(iter(self._sockets)))
            code = self._try_address(address)
            if code in _UNDER_WAY:
                # If this thread is late, the next address is still begun at its time.
                self._next_at = min(self._next_at, time.monotonic()) + self._delay
                self._set_due(self._next_at if self._addresses else self._phase_end)
                return
            if code == 0:
                self._connected(next(reversed(self._sockets)))
                return
            error = OSError(code, os.strerror(code))
            self._failure = connect_error(error)
            if is_out_of_descriptors(error):
                self._addresses.clear()
        if self._sockets:
            self._set_due(self._phase_end)
        else:
            self._end_connect(self._failure or connect_error(None))

    def _try_address(self, address: Address) -> int:
        """Begin to connect to an address; return what ``connect`` says."""
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:
            return error.errno or errno.EIO
        try:
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address.at(self.route.port))
        except OSError as error:
            code = error.errno or errno.EIO
        if code == 0 or code in _UNDER_WAY:
            self._watch(sock)
        else:
            sock.close()
        return code

    def _connected(self, descriptor: int) -> None:
        for other in [each for each in self._sockets if each != descriptor]:
            self._drop(other)
        self._addresses = None
        if self._context is None:
            self._means.selector.unregister(descriptor)
            self._means.finish(self, self._sockets.pop(descriptor))
        else:
            self._begin_handshake(self._context, descriptor)

    # TLS -------------------------------------------------------------------------------------------------------------

    def _begin_handshake(self, context: ssl.SSLContext, descriptor: int) -> None:
        self._begin_phase(self._means.timeout)
        try:
            # The descriptor stays the same, so that it need not be registered anew.
            tls = context.wrap_socket(
                self._sockets[descriptor],
                server_hostname=self.route.server_hostname,
                do_handshake_on_connect=False,
                # A body that ends with the connection is whole only if the peer says so (RFC 9112, 9.8).
                suppress_ragged_eofs=False,
            )
        except OSError as error:
            self._end_handshake(handshake_error(error))
        except ValueError:
            self.end(DownloadError(Reason.BAD_URL, "bad host name"))
        else:
            self._sockets[descriptor] = self._tls = tls
            self._shake_hands(tls)

    def _shake_hands(self, tls: ssl.SSLSocket) -> None:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._means.selector.modify(tls.fileno(), selectors.EVENT_READ, self)
        except ssl.SSLWantWriteError:
            self._means.selector.modify(tls.fileno(), selectors.EVENT_WRITE, self)
        except OSError as error:
            self._end_handshake(handshake_error(error))
        else:
            self._means.selector.unregister(tls.fileno())
            self._sockets.clear()
            self._means.finish(self, tls)

    # Tunnels ---------------------------------------------------------------------------------------------------------

    def _begin_tunnel(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        # The time of this step runs from when a thread takes it on.
        self._begin_phase(self._deadline - self.begun)
        post, number = self._means.post, self.number

        def build() -> None:
            post(number, Dial.tunnel_begun)
            post(number, Dial.tunnel_built, tunnel.build())

        try:
            self._means.tunnels.submit(number, build)
        except LoaderError as error:
            self.end(error)

    def tunnel_begun(self) -> None:
        """Note that a thread has taken it on."""
        # Connecting to the proxy, its answer, and the handshakes through one of TLS take their time one by one.
        self._begin_phase((4 if self.route.within_tls else 2) * self._means.timeout)

    def tunnel_built(self, built: Any) -> None:
        """Take what came of the tunnel: a socket, one that TLS within TLS goes over, or an error."""
        self._tunnel = None
        if isinstance(built, DownloadError):
            self.end(built)
        elif isinstance(built, socket.socket) and self._context is not None:
            built.settimeout(0)
            self._watch(built)
            self._begin_handshake(self._context, built.fileno())
        else:
            self._means.finish(self, built)

    # What several steps need -----------------------------------------------------------------------------------------

    def _begin_phase(self, seconds: float) -> None:
        self._phase_end = min(time.monotonic() + seconds, self._deadline)
        self._set_due(self._phase_end)

    def _set_due(self, due: float) -> None:
        self.due = min(due, self._phase_end)
        self._means.schedule(self)

    def _end_connect(self, error: DownloadError) -> None:
        self.end(at_proxy(self.route.proxy, error))

    def _end_handshake(self, error: DownloadError) -> None:
        self.end(error if self.route.tunnel is not None else at_proxy(self.route.proxy, error))

    def _watch(self, sock: socket.socket) -> None:
        self._sockets[sock.fileno()] = sock
        self._means.selector.register(sock.fileno(), selectors.EVENT_WRITE, self)

    def _drop(self, descriptor: int) -> None:
        self._means.selector.unregister(descriptor)
        self._sockets.pop(descriptor).close()

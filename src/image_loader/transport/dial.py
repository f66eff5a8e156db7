"""One connection under way, step by step: look-up, TCP connect to one of the addresses, TLS handshake; or a tunnel."""

# No annotation is a string here: see ``model``.
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from image_loader.errors import DownloadError, LoaderError, was_stopped
from image_loader.model import Blame, Reason
from image_loader.transport.addresses import is_public
from image_loader.transport.daemons import Daemons
from image_loader.transport.failures import at_proxy, connect_error, copied, handshake_error
from image_loader.transport.handshakes import Handshakes
from image_loader.transport.names import LookUp, Names
from image_loader.transport.race import Race, Raced
from image_loader.transport.routes import Route
from image_loader.transport.tls import SUPPRESS_RAGGED_EOFS
from image_loader.transport.watchdog import end_error

if TYPE_CHECKING:
    from image_loader.transport.tunnels import Tunnel


class Means(NamedTuple):
    """What all connections of a run are made with; ``timeout`` is that of each step, in seconds.

    ``post`` has a call made in the connector's thread. ``schedule`` is told that a dial is due earlier than before,
    ``finish`` that it is done, with what came of it.
    """

    selector: selectors.BaseSelector
    names: Names
    tunnels: Daemons
    handshakes: Handshakes
    timeout: float
    public_only: bool
    post: Callable[..., None]
    schedule: Callable[["Dial"], None]
    finish: Callable[["Dial", Any], None]


class Dial:
    """One connection under way; only the connector's thread uses it.

    Its step has time until ``phase_end``, all of them have until ``deadline``; at ``due`` it is to be looked at
    (monotonic). When it is done, nothing of it is left but a connection that stands, if one does.
    """

    __slots__ = (
        "_context", "_deadline", "_descriptor", "_means", "_phase_end", "_race", "_socket", "_tls", "_tunnel", "begun",
        "due", "number", "route",
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
        self._race: Race | None = None
        # The connection that stands and is to shake hands, its descriptor, and what wraps it once it does.
        self._socket: socket.socket | None = None
        self._descriptor = -1
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
        if self._race is not None:
            self._raced(self._race, self._race.go_on(descriptor, time.monotonic()))
        elif descriptor != self._descriptor:
            return
        elif self._tls is not None:
            self._shake_hands(self._tls)
        else:
            self.begin_handshake()  # The peer has closed it, most likely.

    def look(self, now: float) -> None:
        """Do what is due."""
        if now < self._phase_end:
            if self._race is not None:
                self._raced(self._race, self._race.try_next(now))
        elif now >= self._deadline:
            self.end(end_error(Reason.DEADLINE, stopped=was_stopped(self._deadline)))
        elif self._tls is not None:
            detail = "no TLS handshake within the timeout"
            self._end_handshake(DownloadError(Reason.TIMEOUT, detail, retryable=True, blame=Blame.HOST))
        elif self._race is None and self._tunnel is None:
            detail = "the name was not looked up within the timeout"
            self._end_connect(DownloadError(Reason.DNS, detail, retryable=True, blame=Blame.HOST))
        else:
            self._end_connect(connect_error(TimeoutError()))

    def end(self, error: DownloadError | LoaderError) -> None:
        """Give up, with an error."""
        if self._tunnel is not None:
            self._means.tunnels.withdraw(self.number)
            self._tunnel.abort()
        elif self._race is not None:
            self._race.close()
            self._race = None  # It refers to this dial.
        elif self._socket is not None:
            self._means.selector.unregister(self._descriptor)
            self._socket.close()
        else:
            self._means.names.forget(self.route.host, self.number)
        self._means.finish(self, error)

    # TCP and TLS -----------------------------------------------------------------------------------------------------

    def found(self, answer: LookUp) -> None:
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
            means = self._means
            self._race = Race(answer, self.route.port, means.timeout, means.selector, self)
            self._begin_phase(means.timeout)
            self._raced(self._race, self._race.try_next(time.monotonic()))

    def _raced(self, race: Race, result: Raced) -> None:
        """Take what has come of connecting so far."""
        if result is None:
            self._set_due(self._phase_end if race.next_at is None else race.next_at)
            return
        self._race = None
        if isinstance(result, DownloadError):
            self._end_connect(result)
        elif self._context is None:
            self._means.selector.unregister(result.fileno())
            self._means.finish(self, result)
        else:
            self._stand(result)

    def _stand(self, sock: socket.socket) -> None:
        """Begin the TLS handshake if it is this one's turn; until then, only a close by the server is noticed."""
        self._socket, self._descriptor = sock, sock.fileno()
        if self._means.handshakes.enter(self.number):
            self.begin_handshake()
        else:
            self._means.selector.modify(self._descriptor, selectors.EVENT_READ, self)
            self._begin_phase(self._deadline - self.begun)

    def begin_handshake(self) -> None:
        """Begin to shake hands on the connection that stands, unless that is done already."""
        if self._socket is None or self._context is None or self._tls is not None:
            return
        self._begin_phase(self._means.timeout)
        try:
            # The descriptor stays the same, so that it need not be registered anew.
            self._socket = self._tls = self._context.wrap_socket(
                self._socket,
                server_hostname=self.route.server_hostname,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=SUPPRESS_RAGGED_EOFS,
            )
        except OSError as error:
            self._end_handshake(handshake_error(error))
        except ValueError:
            self.end(DownloadError(Reason.BAD_URL, "bad host name"))
        else:
            self._shake_hands(self._tls)

    def _shake_hands(self, tls: ssl.SSLSocket) -> None:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._means.selector.modify(self._descriptor, selectors.EVENT_READ, self)
        except ssl.SSLWantWriteError:
            self._means.selector.modify(self._descriptor, selectors.EVENT_WRITE, self)
        except OSError as error:
            self._end_handshake(handshake_error(error))
        else:
            self._means.selector.unregister(self._descriptor)
            self._socket = None
            self._means.finish(self, tls)

    # Tunnels ---------------------------------------------------------------------------------------------------------

    def _begin_tunnel(self, tunnel: "Tunnel") -> None:
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
            self._means.selector.register(built.fileno(), selectors.EVENT_WRITE, self)
            self._stand(built)
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

"""One connection under way, step by step: look-up, TCP connect to one of the addresses, tunnel, TLS handshake."""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from image_loader.errors import DownloadError, LoaderError, was_stopped
from image_loader.model import Blame, Reason
from image_loader.transport.addresses import Address, is_public
from image_loader.transport.admission import Admission
from image_loader.transport.daemons import Daemons
from image_loader.transport.failures import at_proxy, connect_error, copied, handshake_error
from image_loader.transport.handshakes import Handshakes, Step
from image_loader.transport.names import LookUp, Names
from image_loader.transport.race import Race, Raced
from image_loader.transport.routes import Route
from image_loader.transport.tls import SUPPRESS_RAGGED_EOFS
from image_loader.transport.watchdog import blame_host_if_late, end_error

if TYPE_CHECKING:
    from image_loader.transport.response import Stream
    from image_loader.transport.tunnels import Tunnel


class Phase(Enum):
    """The step that a dial is at."""

    LOOK_UP = "looking the name up"
    WAITING = "waiting to ask a proxy"
    CONNECT = "connecting"
    QUEUED = "waiting to shake hands"
    """The connection stands, and only a close by the server is noticed."""
    HANDSHAKE = "shaking hands"
    """The peer has the next word."""
    COMPUTING = "computing for the handshake"
    """A thread has the next word. The selector knows nothing of the connection meanwhile."""
    TUNNEL = "having a tunnel built"
    DONE = "done"
    """The connection is handed over."""


class Tools:
    """What all connections of a run are made with."""

    def __init__(
        self,
        *,
        selector: selectors.BaseSelector,
        names: Names,
        tunnels: Daemons,
        handshakes: Handshakes,
        shaking: Admission,
        proxies: Admission,
        timeout: float,
        max_time: float,
        public_only: bool,
        tell: Callable[..., None],
        schedule: Callable[[Dial], None],
        finish: Callable[[Dial, Stream | DownloadError | LoaderError], None],
    ) -> None:
        self.selector = selector
        self.names = names
        self.tunnels = tunnels
        self.handshakes = handshakes
        self.shaking = shaking
        """Those that shake hands."""
        self.proxies = proxies
        """Those that connect to a proxy, and ask it for a tunnel."""
        self.timeout = timeout
        """Seconds that each step may take."""
        self.max_time = max_time
        """Seconds that all of them may take."""
        self.public_only = public_only
        """Whether a name is refused if one of its addresses is not public."""
        self.tell = tell
        """Has the dial of a number take a step in the connector's thread; any thread may call it."""
        self.schedule = schedule
        """Is told that a dial is due earlier than before."""
        self.finish = finish
        """Is told that a dial is done, and what came of it."""


class Dial:
    """One connection under way; only the connector's thread uses it.

    ``number`` is what others know it by. ``begun`` is when it was asked for, ``due`` when it is to be looked at
    (monotonic). When it is done, nothing of it is left but a connection that stands, if one does.
    """

    __slots__ = (
        "_addresses", "_context", "_deadline", "_descriptor", "_phase", "_phase_end", "_race", "_socket", "_step",
        "_tls", "_tools", "_tunnel", "begun", "due", "number", "route",
    )  # fmt: skip

    # What each phase works with; only while it lasts.
    _addresses: Sequence[Address]  # WAITING
    _race: Race  # CONNECT
    _socket: socket.socket  # QUEUED, HANDSHAKE, COMPUTING
    _descriptor: int  # QUEUED, HANDSHAKE, COMPUTING
    _tls: ssl.SSLSocket  # HANDSHAKE, COMPUTING
    _step: Step  # COMPUTING
    _tunnel: Tunnel  # TUNNEL

    def __init__(self, tools: Tools, number: int, route: Route, context: ssl.SSLContext | None) -> None:
        """Prepare for a route, from now on; ``context`` is that of TLS, where the route needs it."""
        self.number = number
        self.route = route
        self.begun = time.monotonic()
        self.due = self._phase_end = self._deadline = self.begun + tools.max_time
        self._tools = tools
        self._context = context
        self._phase = Phase.LOOK_UP

    def __repr__(self) -> str:
        """Return where it leads, and its step."""
        return f"<Dial {self.number} to {self.route.origin}: {self._phase.value}>"

    def begin(self) -> None:
        """Take the first step."""
        self._begin_phase(Phase.LOOK_UP, self._tools.timeout)
        tell = self._tools.tell
        found = self._tools.names.look_up(
            self.route.host, self.number, lambda number, answer: tell(number, Dial.found, answer)
        )
        if found is not None:
            self.found(found)

    def go_on(self, descriptor: int) -> None:
        """Go on where a socket has become ready; it may have been closed by what went before."""
        match self._phase:
            case Phase.CONNECT:
                self._raced(self._race.go_on(descriptor, time.monotonic()))
            case Phase.HANDSHAKE if descriptor == self._descriptor:
                self._compute()
            case Phase.QUEUED if descriptor == self._descriptor:
                self.begin_handshake()  # The peer has closed it, most likely.

    def look(self, now: float) -> None:
        """Do what is due."""
        if now < self._phase_end:
            if self._phase is Phase.CONNECT:
                self._raced(self._race.try_next(now))
        elif self._phase is Phase.WAITING and not was_stopped(self._deadline):
            self._end_connect(connect_error(TimeoutError()))
        elif now >= self._deadline:
            error = end_error(Reason.DEADLINE, stopped=was_stopped(self._deadline))
            blame_host_if_late(error)
            self.end(error)
        else:
            self._time_out()

    def end(self, error: DownloadError | LoaderError) -> None:
        """Give up, with an error."""
        try:
            self._let_go()
        finally:
            self._tools.finish(self, error)

    def _time_out(self) -> None:
        match self._phase:
            case Phase.LOOK_UP:
                detail = "the name was not looked up within the timeout"
                self._end_connect(DownloadError(Reason.DNS, detail, retryable=True, blame=Blame.HOST))
            case Phase.HANDSHAKE | Phase.COMPUTING:
                self._end_handshake(handshake_error(TimeoutError()))
            case Phase.TUNNEL:
                self.end(self._tunnel.failure(TimeoutError()))
            case _:
                self._end_connect(connect_error(TimeoutError()))

    def _let_go(self) -> None:
        """Free what the phase works with."""
        self._leave(self._tools.proxies, Dial.begin_connect)
        match self._phase:
            case Phase.LOOK_UP:
                self._tools.names.forget(self.route.host, self.number)
            case Phase.CONNECT:
                self._race.close()
                del self._race  # It refers to this dial.
            case Phase.QUEUED | Phase.HANDSHAKE:
                self._tools.selector.unregister(self._descriptor)
                self._socket.close()
                self._leave(self._tools.shaking, Dial.begin_handshake)
            case Phase.COMPUTING:
                self._step.drop()
                self._leave(self._tools.shaking, Dial.begin_handshake)
            case Phase.TUNNEL if self._tools.tunnels.withdraw(self.number):
                self._tunnel.close()
            case Phase.TUNNEL:
                self._tunnel.abort()  # It is closed when its thread is through with it.

    # TCP and TLS -----------------------------------------------------------------------------------------------------

    def found(self, answer: LookUp) -> None:
        """Take what came of the look-up."""
        if isinstance(answer, LoaderError):
            self.end(answer)
        elif isinstance(answer, DownloadError):
            self._end_connect(copied(answer))
        elif self._tools.public_only and not all(is_public(each.ip) for each in answer):
            # A name that leads to both may be meant to pass the check by the one, and to be asked at the other.
            host = self.route.host
            self.end(DownloadError(Reason.PRIVATE_ADDRESS, f"{host} has an address that is not public"))
        else:
            self._addresses = answer
            if not self.route.tunnels or self._tools.proxies.enter(self.number):
                self.begin_connect()
            else:
                self._begin_phase(Phase.WAITING, self._tools.max_time)

    def begin_connect(self) -> None:
        """Begin to connect; to a proxy, once there is a thread to ask it: it waits for a request for some seconds."""
        tools = self._tools
        self._race = Race(self._addresses, self.route.port, tools.timeout, tools.selector, self)
        del self._addresses
        self._begin_phase(Phase.CONNECT, tools.timeout)
        self._raced(self._race.try_next(time.monotonic()))

    def _raced(self, result: Raced) -> None:
        """Take what has come of connecting so far."""
        if result is None:
            next_at = self._race.next_at
            self._set_due(self._phase_end if next_at is None else next_at)
        elif isinstance(result, DownloadError):
            self._end_connect(result)
        else:
            del self._race  # It refers to this dial.
            self._connected(result)

    def _connected(self, sock: socket.socket) -> None:
        """Go on with a connection that stands, and is registered with the selector."""
        if self._context is not None and (self.route.within_tls or not self.route.tunnels):
            self._queue(sock)
            return
        self._tools.selector.unregister(sock.fileno())
        if self.route.tunnels:
            self._begin_tunnel(sock)
        else:
            self._done(sock)

    def _queue(self, sock: socket.socket) -> None:
        """Shake hands, now or later, on a connection that stands, and is registered with the selector."""
        self._socket, self._descriptor = sock, sock.fileno()
        self._phase = Phase.QUEUED
        if self._tools.shaking.enter(self.number):
            self.begin_handshake()
        else:
            self._tools.selector.modify(self._descriptor, selectors.EVENT_READ, self)
            self._begin_phase(Phase.QUEUED, self._tools.max_time)

    def begin_handshake(self) -> None:
        """Begin to shake hands on the connection that stands, unless that is done already."""
        if self._phase is not Phase.QUEUED or self._context is None:
            return
        try:
            # The descriptor stays the same, so that it need not be registered anew.
            self._socket = self._tls = self._context.wrap_socket(
                self._socket,
                server_hostname=self.route.server_hostname,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=SUPPRESS_RAGGED_EOFS,
            )
        except (OSError, ValueError) as error:
            self._end_handshake(handshake_error(error))
        else:
            self._begin_phase(Phase.HANDSHAKE, self._tools.timeout)
            self._begin_step().take()
            self.step_taken(self._step)

    def _compute(self) -> None:
        """Have a thread take the next step: to check certificates takes long."""
        step, tell, number = self._begin_step(), self._tools.tell, self.number
        self._tools.handshakes.submit(step, lambda: tell(number, Dial.step_taken, step))

    def _begin_step(self) -> Step:
        self._tools.selector.unregister(self._descriptor)
        self._phase = Phase.COMPUTING
        self._step = Step(self._tls)
        return self._step

    def step_taken(self, step: Step) -> None:
        """Take what came of a step: the peer has the next word, the handshake has failed, or it is done."""
        match step.error:
            case ssl.SSLWantReadError():
                self._await_peer(selectors.EVENT_READ)
            case ssl.SSLWantWriteError():
                self._await_peer(selectors.EVENT_WRITE)
            case None if not step.is_taken:
                step.close()
                raise RuntimeError("a handshake broke off")  # Its thread tells why.
            case None:
                self._leave(self._tools.shaking, Dial.begin_handshake)
                if self.route.within_tls:
                    self._begin_tunnel(self._tls)
                else:
                    self._done(self._tls)
            case error:
                self._end_handshake(handshake_error(error))

    def _await_peer(self, events: int) -> None:
        self._phase = Phase.HANDSHAKE
        self._tools.selector.register(self._descriptor, events, self)

    # Tunnels ---------------------------------------------------------------------------------------------------------

    def _begin_tunnel(self, sock: socket.socket) -> None:
        """Have the proxy asked, on a connection that stands, and that the selector no longer knows."""
        from image_loader.transport.tunnels import Tunnel

        sock.settimeout(self._tools.timeout)
        tunnel = self._tunnel = Tunnel(sock, self.route, self._context if self.route.within_tls else None)
        # The time of a step runs from when a thread takes it on.
        self._begin_phase(Phase.TUNNEL, self._tools.max_time)
        tell, number = self._tools.tell, self.number

        def build() -> None:
            tunnel.build(lambda: tell(number, Dial.tunnel_step_begun))
            tell(number, Dial.tunnel_built, tunnel)

        try:
            self._tools.tunnels.submit(number, build)
        except LoaderError as error:
            tunnel.close()
            self.end(error)

    def tunnel_step_begun(self) -> None:
        """Note that the thread has begun a step: CONNECT, or the handshake within TLS."""
        self._begin_phase(Phase.TUNNEL, self._tools.timeout)

    def tunnel_built(self, tunnel: Tunnel) -> None:
        """Take what came of the tunnel: a plain socket to shake hands on, TLS within TLS, or an error."""
        self._leave(self._tools.proxies, Dial.begin_connect)
        stream = tunnel.stream
        if tunnel.error is not None:
            tunnel.close()
            self.end(tunnel.error)
        elif isinstance(stream, socket.socket):
            stream.settimeout(0)
            self._tools.selector.register(stream.fileno(), selectors.EVENT_WRITE, self)
            self._queue(stream)
        else:
            self._done(stream)

    # What several steps need -----------------------------------------------------------------------------------------

    def _leave(self, admission: Admission, step: Callable[[Dial], None]) -> None:
        """Make room for another dial, which then takes its step."""
        if (following := admission.leave(self.number)) is not None:
            self._tools.tell(following, step)

    def _begin_phase(self, phase: Phase, seconds: float) -> None:
        self._phase = phase
        self._phase_end = min(time.monotonic() + seconds, self._deadline)
        self._set_due(self._phase_end)

    def _set_due(self, due: float) -> None:
        self.due = min(due, self._phase_end)
        self._tools.schedule(self)

    def _end_connect(self, error: DownloadError) -> None:
        self.end(at_proxy(self.route.proxy, error))

    def _end_handshake(self, error: DownloadError) -> None:
        with_origin = self.route.tunnels and not self.route.within_tls
        self.end(error if with_origin else at_proxy(self.route.proxy, error))

    def _done(self, stream: Stream) -> None:
        self._phase = Phase.DONE
        self._tools.finish(self, stream)

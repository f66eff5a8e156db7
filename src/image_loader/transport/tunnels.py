"""Tunnels through proxies (RFC 9110, 9.3.6): a thread asks the proxy for one, and waits for its answer."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from urllib3.util.ssltransport import SSLTransport

from image_loader.errors import DownloadError
from image_loader.model import Blame, Reason
from image_loader.transport.failures import PROXY_LOGIN, at_proxy, exchange_error, handshake_error, lost
from image_loader.transport.response import ClosedEarlyError, ConnectResponse, send
from image_loader.transport.routes import Route, header_lines
from image_loader.transport.tls import SUPPRESS_RAGGED_EOFS, server_hostname
from image_loader.transport.watchdog import shut_down

if TYPE_CHECKING:
    from image_loader.transport.response import Stream

# What another attempt does not change: the proxy forbids it, or wants another user and password.
_FINAL = frozenset({403, 407})
_SHOWN = 80
"""Characters of what the proxy says that a message shows."""


class Tunnel:
    """A tunnel to the origin of a route, on a connection to its proxy that stands.

    When it is built, ``stream`` leads to the origin, or ``error`` says why nothing does. While one thread builds it,
    another may abort that, but must not close it: that thread would go on with whatever gets its descriptor next.
    """

    def __init__(self, connected: socket.socket, route: Route, context: ssl.SSLContext | None) -> None:
        """Take a socket with a timeout; ``context`` is that of TLS within TLS, None through a plain proxy."""
        self.stream: Stream = connected
        self.error: DownloadError | None = None
        self._socket = connected
        self._route = route
        self._context = context
        self._answered = False

    def build(self, begin_step: Callable[[], None]) -> None:
        """Ask the proxy; within TLS, shake hands with the origin, too. ``begin_step`` is told that a step begins."""
        try:
            begin_step()
            self._ask()
            self._answered = True
            if self._context is not None:
                begin_step()
                self._shake_hands(self._context)
        except (OSError, ValueError, ClosedEarlyError, DownloadError) as error:
            self.error = self.failure(error)

    def abort(self) -> None:
        """End the building: whatever it waits for on its socket returns at once."""
        shut_down(self._socket)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def failure(self, error: Exception) -> DownloadError:
        """Say what an error means in the step that is under way."""
        if self._answered and isinstance(error, (OSError, ValueError)):
            return handshake_error(error)
        if isinstance(error, ClosedEarlyError):
            error = lost("it closed the connection without an answer")
        elif not isinstance(error, DownloadError):
            error = exchange_error(error, answered=False)
        return at_proxy(self._route.proxy, error)

    def _ask(self) -> None:
        host, port = self._route.target
        fields = {"Host": f"{host}:{port}", **(self._route.proxy.headers if self._route.proxy is not None else {})}
        send(self._socket, f"CONNECT {host}:{port} HTTP/1.1\r\n{header_lines(fields)}\r\n".encode("latin-1"))
        answer = ConnectResponse(self._socket)
        answer.read_head()
        if not 200 <= answer.status < 300:
            raise _refused(answer.status, answer.phrase)
        if answer.overrun:
            # They would be taken for the origin's, which has been asked nothing yet.
            raise DownloadError(Reason.PROTOCOL, f"there are bytes behind the head of its {answer.status} to CONNECT")

    def _shake_hands(self, context: ssl.SSLContext) -> None:
        name = server_hostname(self._route.target[0])
        made = SSLTransport(self._socket, context, name, suppress_ragged_eofs=SUPPRESS_RAGGED_EOFS)
        self.stream = cast("Stream", made)


def _refused(status: int, phrase: str) -> DownloadError:
    final = status in _FINAL
    detail = f"no tunnel, {status} {phrase[:_SHOWN]}".rstrip()
    if status == 407:
        detail += PROXY_LOGIN
    return DownloadError(
        Reason.CONNECT, detail, http_status=status, retryable=not final, blame=Blame.IMAGE if final else Blame.HOST
    )

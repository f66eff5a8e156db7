"""One connection to one origin: a GET at a time, each response read strictly, under the watch of its attempt."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from image_loader.errors import DownloadError
from image_loader.transport.failures import exchange_error, lost
from image_loader.transport.response import ClosedEarlyError, NoStatusLineError, Response, send
from image_loader.transport.watchdog import Watch

if TYPE_CHECKING:
    from image_loader.transport.response import Stream

_SOON = 1.0
"""Seconds within which no server closes an idle connection."""
_CLOSED = getattr(select, "POLLRDHUP", 0)
_MOST_CLOSED = 3
"""New connections in a row that a host may close unused."""
_MOST_REMEMBERED = 1000
"""Hosts for which this is counted."""


class StaleConnectionError(Exception):
    """A connection that stood, or was used before, turned out to be closed by the server before it answered."""


class Connection:
    """A connection that stands.

    ``origin`` is the one that it leads to. ``way`` is what connections are shared by: a proxy for plain HTTP, else the
    origin. ``used`` says whether there was an answer on it. One thread at a time uses it.
    """

    __slots__ = (
        "_asking",
        "_pending",
        "_poll",
        "_response",
        "_socket",
        "_stands_since",
        "_stream",
        "origin",
        "used",
        "way",
    )

    def __init__(self, origin: str, way: str, stream: Stream, timeout: float) -> None:
        """Take over a socket, plain or of TLS, or TLS within TLS; the peer may be silent for ``timeout`` seconds."""
        self.origin = origin
        self.way = way
        self._stream = stream
        self._socket = stream if isinstance(stream, socket.socket) else stream.socket
        self._pending = _pending(stream)
        self._response: Response | None = None
        self._asking = False
        self._stands_since = time.monotonic()
        self.used = False
        _set_timeout(self._socket, timeout, is_plain=self._pending is None)
        # A poll object that is kept: to make one for each look takes longer than the look.
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN | _CLOSED)

    def __repr__(self) -> str:
        """Return where it leads, and its state."""
        state = "closed" if self._socket.fileno() < 0 else "asking" if self._asking else "used" if self.used else "new"
        return f"<Connection to {self.origin} at {self.address}: {state}>"

    @property
    def address(self) -> str:
        """The address and port that it was made to, for the log; those of a proxy where one is asked."""
        try:
            host, port = self._socket.getpeername()[:2]
        except OSError:
            return "an unknown address"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def alive(self) -> bool:
        """Whether the peer stays, and has said nothing unasked."""
        events = self._poll.poll(0)
        # After the handshake of TLS 1.3, session tickets wait to be read with the first response.
        tickets = not self.used and self._pending is not None
        return not events or (tickets and events[0][1] == select.POLLIN)

    @property
    def usable(self) -> bool:
        """Whether the connection can carry another request: its last response is through, and nothing follows it."""
        return self._is_through and (self._pending is None or not self._pending()) and self._socket.fileno() >= 0

    @property
    def _is_through(self) -> bool:
        """Whether the last response, if there was one, was read to its end."""
        return not self._asking and (self._response is None or self._response.reusable)

    def ask(self, request: bytes, watch: Watch) -> Response:
        """Send a request, read the head of its response and return it; the body is left to its reader.

        Raises ``DownloadError``; ``StaleConnectionError`` where the request may well go over another connection, also
        since the rest of the last response would be taken for this one.
        """
        if not self._is_through:
            raise StaleConnectionError
        # A used one may have been closed, or have brought something unasked, which would be taken for the answer.
        waited = self.used or time.monotonic() - self._stands_since > _SOON
        if waited and not self.alive:
            raise StaleConnectionError
        watch.guard(self._socket)
        self._asking = True
        self._response = response = Response(self._stream)
        try:
            send(self._stream, request)
            response.read_head()
        except ClosedEarlyError as error:
            watch.check()
            if self.used:
                raise StaleConnectionError from error
            raise lost() from error
        except DownloadError as error:
            watch.check()
            # What is no response may be what was left of the last one.
            if self.used and isinstance(error, NoStatusLineError):
                raise StaleConnectionError from error
            raise
        except (OSError, ValueError) as error:
            watch.check()
            # SO_RCVTIMEO and SO_SNDTIMEO say that it would block.
            late = isinstance(error, BlockingIOError)
            raise exchange_error(TimeoutError() if late else error, answered=False) from error
        self._asking, self.used = False, True
        return response

    def rest(self) -> None:
        """Drop the last response until the next request."""
        self._response = None

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


class ClosedUnused:
    """Counts the new connections in a row that each host closed before it was asked; any thread may tell."""

    def __init__(self, most_remembered: int = _MOST_REMEMBERED) -> None:
        self._most_remembered = most_remembered
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def note(self, origin: str) -> None:
        """Count one; raise ``DownloadError`` where the host has closed so many that it is at fault."""
        with self._lock:
            count = self._counts.pop(origin, 0) + 1
            if count <= _MOST_CLOSED:
                self._counts[origin] = count
                if len(self._counts) > self._most_remembered:
                    del self._counts[next(iter(self._counts))]
                return
        raise lost("the server closes its connections before anything is asked")

    def forget(self, origin: str) -> None:
        """Begin anew with a host, which has answered on a new connection."""
        if self._counts:
            with self._lock:
                self._counts.pop(origin, None)


def _pending(stream: Stream) -> Callable[[], int] | None:
    """Return what tells how much TLS has decrypted already; None for plain text."""
    if isinstance(stream, ssl.SSLSocket):
        return stream.pending
    # TLS within TLS does not tell: there may always be something.
    return None if isinstance(stream, socket.socket) else lambda: 1


def _set_timeout(connected: socket.socket, timeout: float, *, is_plain: bool) -> None:
    if not is_plain:
        # On a socket that blocks, the ssl module would try again for ever.
        connected.settimeout(timeout)
        return
    # Have the kernel keep the timeout: Python would call ``poll`` first each time, and hand its lock on twice.
    connected.settimeout(None)
    whole, fraction = divmod(timeout, 1)
    packed = struct.pack("@ll", int(whole), int(fraction * 1e6))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)

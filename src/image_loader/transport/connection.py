"""One connection to one origin: a GET at a time, each response read strictly, under the watch of its attempt."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from typing import Any

from image_loader.errors import DownloadError
from image_loader.transport.failures import exchange_error, lost
from image_loader.transport.response import ClosedEarlyError, NoStatusLineError, Response
from image_loader.transport.watchdog import Watch

# No server closes an idle connection as soon as this.
_SOON = 1.0  # seconds
_CLOSED = getattr(select, "POLLRDHUP", 0)


class StaleConnectionError(Exception):
    """A connection that stood, or was used before, turned out to be closed by the server before it answered."""


class Connection:
    """A connection that stands.

    ``origin`` is the one that it leads to, ``seconds`` the time that connecting took. ``way`` is what connections are
    shared by: a proxy for plain HTTP, else the origin. ``used`` says whether there was an answer on it. One thread at a
    time uses it.
    """

    __slots__ = ("_asking", "_poll", "_response", "_socket", "_stands_since", "origin", "seconds", "used", "way")

    def __init__(self, origin: str, way: str, connected: Any, timeout: float) -> None:
        """Take over a socket, plain or of TLS, or TLS within TLS; the peer may be silent for ``timeout`` seconds."""
        self.origin = origin
        self.way = way
        self.seconds = 0.0
        self._socket = connected
        self._response: Response | None = None
        self._asking = False
        self._stands_since = time.monotonic()
        self.used = False
        _set_timeout(connected, timeout)
        # A poll object that is kept: to make one for each look takes longer than the look.
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN | _CLOSED)

    @property
    def alive(self) -> bool:
        """Whether the peer stays, and has said nothing unasked."""
        events = self._poll.poll(0)
        # After the handshake of TLS 1.3, session tickets wait to be read with the first response.
        tickets = not self.used and isinstance(self._socket, ssl.SSLSocket)
        return not events or (tickets and events[0][1] == select.POLLIN)

    @property
    def usable(self) -> bool:
        """Whether the connection can carry another request: its last response is through, and nothing follows it."""
        if self._asking or not (self._response is None or self._response.reusable):
            return False
        # TLS within TLS does not tell what it has decrypted already.
        clear = (
            not self._socket.pending()
            if isinstance(self._socket, ssl.SSLSocket)
            else isinstance(self._socket, socket.socket)
        )
        return clear and self._socket.fileno() >= 0

    def ask(self, request: bytes, watch: Watch) -> Response:
        """Send a request, read the head of its response and return it; the body is left to its reader.

        Raises ``DownloadError``; ``StaleConnectionError`` where the request may well go over another connection.
        """
        # A used one may have been closed, or have brought something unasked, which would be taken for the answer.
        waited = self.used or time.monotonic() - self._stands_since > _SOON
        if waited and not self.alive:
            raise StaleConnectionError
        # For TLS within TLS, this is a wrapper, and not a socket.
        watch.guard(getattr(self._socket, "socket", self._socket))
        self._asking = True
        self._response = response = Response(self._socket)
        try:
            self._socket.sendall(request)
            response.read_head()
        except (ClosedEarlyError, ConnectionError) as error:
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
        self._socket.close()


def _set_timeout(connected: Any, timeout: float) -> None:
    if isinstance(connected, ssl.SSLSocket) or not isinstance(connected, socket.socket):
        # On a socket that blocks, the ssl module would try again for ever.
        getattr(connected, "socket", connected).settimeout(timeout)
        return
    # Have the kernel keep the timeout: Python would call ``poll`` first each time, and hand its lock on twice.
    connected.settimeout(None)
    whole, fraction = divmod(timeout, 1)
    packed = struct.pack("@ll", int(whole), int(fraction * 1e6))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)

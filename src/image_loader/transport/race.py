"""TCP connects to the addresses of one host, one after the other, each with some time before the next (RFC 8305)."""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Sequence

from image_loader.errors import DownloadError, is_out_of_descriptors
from image_loader.transport.addresses import Address, interleaved
from image_loader.transport.failures import connect_error, no_address

_ATTEMPT_DELAY = 0.25
"""Seconds that an address has before the next one is tried beside it (RFC 8305, 5)."""
_PART_FOR_ATTEMPTS = 0.8
"""The part of the timeout within which all addresses are begun, if a host has very many."""
_MOST_AT_ONCE = 8
"""Connects of one host at once."""
_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK})

Raced = socket.socket | DownloadError | None
"""What came of it: a socket that stands, the failure of the last address, or nothing yet."""


class Race:
    """The connects of one host; the first that stands ends the others.

    Its sockets are registered with the selector, for ``owner``, and the one that stands stays so. ``next_at`` is when
    the next address is to be tried (monotonic), None where none is left.
    """

    __slots__ = ("_addresses", "_delay", "_failure", "_owner", "_port", "_selector", "_sockets", "next_at")

    def __init__(
        self, addresses: Sequence[Address], port: int, timeout: float, selector: selectors.BaseSelector, owner: object
    ) -> None:
        """``timeout`` is that of all connects together, in seconds."""
        # The next one is the last.
        self._addresses = interleaved(addresses)[::-1]
        self._delay = min(_ATTEMPT_DELAY, _PART_FOR_ATTEMPTS * timeout / max(1, len(addresses)))
        self._port = port
        self._selector = selector
        self._owner = owner
        self._sockets: dict[int, socket.socket] = {}
        self._failure: DownloadError | None = None
        self.next_at: float | None = None

    def try_next(self, now: float) -> Raced:
        """Begin to connect to the next address that does not fail at once."""
        while self._addresses:
            address = self._addresses.pop()
            if len(self._sockets) >= _MOST_AT_ONCE:
                self._drop(next(iter(self._sockets)))
            code = self._try(address)
            if code in _UNDER_WAY:
                # If this thread is late, the next address is still begun at its time.
                due = min(now if self.next_at is None else self.next_at, now) + self._delay
                self.next_at = due if self._addresses else None
                return None
            if code == 0:
                return self._stands(next(reversed(self._sockets)))
            error = OSError(code, os.strerror(code))
            self._failure = connect_error(error)
            if is_out_of_descriptors(error):
                self._addresses.clear()
        self.next_at = None
        return None if self._sockets else self._failure or no_address()

    def go_on(self, descriptor: int, now: float) -> Raced:
        """Go on where a socket has become ready; it may have been closed by what went before."""
        sock = self._sockets.get(descriptor)
        if sock is None:
            return None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            return self._stands(descriptor)
        self._drop(descriptor)
        self._failure = connect_error(OSError(code, os.strerror(code)))
        return self.try_next(now)

    def close(self) -> None:
        """End all connects."""
        for descriptor in list(self._sockets):
            self._drop(descriptor)

    def _try(self, address: Address) -> int:
        """Begin to connect to an address; return what ``connect`` says."""
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:
            return error.errno or errno.EIO
        try:
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address.at(self._port))
            if code == 0 or code in _UNDER_WAY:
                self._selector.register(sock.fileno(), selectors.EVENT_WRITE, self._owner)
                self._sockets[sock.fileno()] = sock
                return code
        except OSError as error:
            code = error.errno or errno.EIO
        sock.close()
        return code

    def _stands(self, descriptor: int) -> socket.socket:
        sock = self._sockets.pop(descriptor)
        self.close()
        return sock

    def _drop(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        self._sockets.pop(descriptor).close()

"""The connections of urllib3's pools, with every blocking step under watch and every peer's address checked."""

from __future__ import annotations

import ipaddress
import os
import queue
import select
import socket
import ssl
import struct
import time
from typing import Any, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from image_loader.errors import DownloadError, is_out_of_descriptors
from image_loader.model import Blame, Reason
from image_loader.transport.response import ClosedEarlyError, NoStatusLineError, Response, is_torn
from image_loader.transport.watchdog import Watch

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What IANA has given out so far, less what Python 3.11 does not yet know to be reserved (RFC 9637).
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")


class StaleConnectionError(Exception):
    """A connection from the pool turned out to be closed by the server before it answered."""


class WatchedConnection(HTTPConnection):
    """A connection that sends one GET at a time and reads its response strictly, under the watch of its attempt."""

    watch: Watch
    response: Response
    public_only = False
    _used = False
    _poll: select.poll

    @property
    def is_connected(self) -> bool:
        """Whether the peer stays, and has said nothing unasked; urllib3 makes a poll object for each such look."""
        return self.sock is not None and not self._poll.poll(0)

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: its last response is through, and nothing follows it."""
        # TLS within TLS does not tell what it has decrypted already.
        clear = (
            not self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else isinstance(self.sock, socket.socket)
        )
        return self.response.reusable and clear

    def connect(self) -> None:
        """Connect, through a proxy where the pool says so."""
        self._used = False
        super().connect()
        self._guard()
        self._set_timeout()
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)

    def ask(self, request: bytes) -> None:
        """Send a request and read the head of its response; the body is left to the reader of ``response``."""
        if self.sock is None:
            self.connect()
        self._guard()
        self.response = Response(self.sock)
        try:
            self.sock.sendall(request)
            self.response.read_head()
        except (ClosedEarlyError, ConnectionError) as error:
            raise self._lost() from error
        except NoStatusLineError as error:
            if self._used:
                raise StaleConnectionError from error
            raise
        except BlockingIOError as error:
            raise TimeoutError from error
        self._used = True

    def _set_timeout(self) -> None:
        """Have the kernel keep the timeout: Python would call ``poll`` first each time, and hand its lock on twice."""
        self.sock.settimeout(None)
        whole, fraction = divmod(self.watch.timeout, 1)
        timeout = struct.pack("@ll", int(whole), int(fraction * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def _guard(self) -> None:
        # TLS within TLS, to a proxy, wraps its socket in an object that is none.
        self.watch.guard(getattr(self.sock, "socket", self.sock))

    def _new_conn(self) -> socket.socket:
        try:
            return _connected(self._dns_host, self.port, self)
        except DownloadError as error:
            if self.proxy is not None and error.failure.blame is Blame.HOST:
                error.happened_at(f"the proxy {self._dns_host}:{self.port}")
            raise

    def _lost(self) -> Exception:
        """Return the error to raise for a connection that ended before its answer."""
        self.watch.check()
        if self._used:
            return StaleConnectionError()
        return DownloadError(
            Reason.CONNECT, "the server closed the connection without an answer", retryable=True, blame=Blame.HOST
        )


class WatchedTlsConnection(WatchedConnection, HTTPSConnection):
    """The same under TLS."""

    _twin: socket.socket | None = None

    def connect(self) -> None:
        """Connect and shake hands; what TLS objects to is final, a connection lost on the way is not."""
        try:
            super().connect()
            # A body that ends with the connection is whole only if the peer says so (RFC 9112, 9.8).
            cast(Any, self.sock).suppress_ragged_eofs = False
        except (ssl.SSLZeroReturnError, ConnectionError) as error:
            raise self._lost() from error
        except ssl.SSLError as error:
            if is_torn(error):
                raise self._lost() from error
            self.watch.check()
            raise DownloadError(Reason.TLS, _tls_detail(error)) from error
        finally:
            if self._twin is not None:
                self._twin.close()

    def _set_timeout(self) -> None:
        # On a socket that blocks, the ssl module would try again for ever.
        self.sock.settimeout(self.watch.timeout)

    def _new_conn(self) -> socket.socket:
        plain = super()._new_conn()
        # The TLS socket takes the descriptor over; only a duplicate reaches the connection during the handshake.
        try:
            self._twin = plain.dup()
            self.watch.guard(self._twin)
        except BaseException:
            plain.close()
            raise
        return plain


class _IdleConnections(queue.LifoQueue[Any]):
    """The connections of a pool that never blocks, without the queue's locks: they cost as much as reading a head."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        if len(self.queue) >= self.maxsize:
            raise queue.Full
        self.queue.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ARG002, FBT001, FBT002
        try:
            return self.queue.pop()
        except IndexError:
            raise queue.Empty from None


class WatchedPool(HTTPConnectionPool):
    """A pool of watched connections.

    ``ask`` stands in for ``urlopen``, which does for each request what needs doing once for each host, and costs as
    much as the exchange itself.
    """

    ConnectionCls = WatchedConnection
    QueueCls = _IdleConnections

    def ask(self, request: bytes, watch: Watch, *, tunnel: bool, public_only: bool) -> WatchedConnection:
        """Send ``request`` on a connection of the pool and return it, with the head of its response read."""
        connection = cast(WatchedConnection, self._get_conn())
        connection.watch, connection.timeout, connection.public_only = watch, watch.timeout, public_only
        try:
            if tunnel and connection.is_closed:
                self._prepare_proxy(connection)
            connection.ask(request)
        except BaseException:
            self.give_back(connection, reusable=False)
            raise
        return connection

    def give_back(self, connection: WatchedConnection, *, reusable: bool) -> None:
        """Put a connection back; it is connected anew where it cannot be used as it is."""
        connection.watch.let_go()
        if not reusable:
            connection.close()
        # An idle connection keeps nothing of what it carried.
        del connection.watch
        connection.__dict__.pop("response", None)
        self._put_conn(connection)


class WatchedTlsPool(WatchedPool, HTTPSConnectionPool):
    """A pool of watched TLS connections."""

    ConnectionCls = WatchedTlsConnection


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, whatever its spelling.

    >>> [is_public(text) for text in ("8.8.8.8", "10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "fe80::1%eth0")]
    [True, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    if inner is not None:
        return is_public(str(inner))
    return ip in _GLOBAL_UNICAST and ip not in _DOCUMENTATION and ip.is_global


def _connected(host: str, port: int, connection: WatchedConnection) -> socket.socket:
    """Return a socket connected to the first address of ``host`` that answers, all of them within the timeout."""
    failure: OSError | None = None
    addresses = _addresses(host, port)
    give_up = time.monotonic() + connection.watch.remaining()
    try:
        for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            if connection.public_only and not is_public(str(address[0])):
                raise DownloadError(Reason.PRIVATE_ADDRESS, f"{host} is at an address that is not public")
            try:
                share = max(0.001, (give_up - time.monotonic()) / left)
                return _connect(socket.socket(family, kind, protocol), address, connection, share)
            except OSError as error:
                failure = error
                connection.watch.check()
        raise connect_error(failure) from failure
    finally:
        # It knows this frame by its traceback: such a circle would keep the pool, with its open connections.
        del failure


def _addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    try:
        return socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise DownloadError(Reason.BAD_URL, "bad host name") from error
    except OSError as error:
        # The resolver does not tell a descriptor that it lacks from a server that it misses.
        if (lack := _lack_of_descriptors()) is not None:
            raise connect_error(lack) from error
        if isinstance(error, socket.gaierror):
            detail = error.strerror or "unknown name"
            raise DownloadError(Reason.DNS, detail, retryable=True, blame=Blame.HOST) from error
        raise connect_error(error) from error


def _connect(sock: socket.socket, address: Any, connection: WatchedConnection, timeout: float) -> socket.socket:
    """Connect within ``timeout`` seconds; what follows, such as the handshake, has the whole of the watch's timeout."""
    try:
        for option in connection.socket_options or ():
            sock.setsockopt(*option)
        connection.watch.guard(sock)
        sock.settimeout(timeout)
        sock.connect(address)
        sock.settimeout(connection.watch.remaining())
    except BaseException:
        sock.close()
        raise
    return sock


def _lack_of_descriptors() -> OSError | None:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if is_out_of_descriptors(error) else None
    return None


def connect_error(error: OSError | None) -> DownloadError:
    """Say why there is no connection."""
    if isinstance(error, TimeoutError):
        return DownloadError(Reason.TIMEOUT, "no connection within the timeout", retryable=True, blame=Blame.HOST)
    blame = Blame.PROCESS if is_out_of_descriptors(error) else Blame.HOST
    detail = "the name has no address" if error is None else error.strerror or str(error)
    return DownloadError(Reason.CONNECT, detail, retryable=True, blame=blame)


def _tls_detail(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}"
    return (error.reason or "TLS handshake failed").lower().replace("_", " ")

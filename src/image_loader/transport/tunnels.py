"""Tunnels through proxies (RFC 9110, 9.3.6), built by urllib3's connections, which block."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from image_loader.errors import DownloadError
from image_loader.model import Blame, Reason
from image_loader.transport.failures import at_proxy, connect_error, exchange_error, handshake_error, unknown_name
from image_loader.transport.proxies import Proxy
from image_loader.transport.tls import SUPPRESS_RAGGED_EOFS
from image_loader.transport.watchdog import shut_down

if TYPE_CHECKING:
    from image_loader.transport.response import Stream

_REFUSAL = re.compile(r"Tunnel connection failed: ([0-9]{3}) ?(.*)", re.DOTALL)
# What another attempt does not change: the proxy forbids it, or wants another user and password.
_FINAL = frozenset({403, 407})
_SHOWN = 80
"""Characters of what it says that a message shows."""


class Tunnel:
    """A tunnel through ``proxy`` to a host and port; another thread may end its building."""

    def __init__(self, proxy: Proxy, target: tuple[str, int], context: ssl.SSLContext, timeout: float) -> None:
        self._proxy = proxy
        self._target = target
        self._aborted = False
        if proxy.scheme == "https":
            manager = urllib3.ProxyManager(proxy.url, proxy_ssl_context=context)
            self._connection: HTTPConnection = HTTPSConnection(
                proxy.host,
                proxy.port,
                timeout=timeout,
                ssl_context=context,
                proxy=manager.proxy,
                proxy_config=manager.proxy_config,
            )
        else:
            self._connection = HTTPConnection(proxy.host, proxy.port, timeout=timeout)

    def build(self) -> Stream | DownloadError:
        """Return a socket that leads to the host, or the ``DownloadError`` that says why there is none.

        Through a plain proxy, the TLS handshake with the host is still to be made; through a proxy of TLS, it is done.
        """
        proxy, connection = self._proxy, self._connection
        host, port = self._target
        try:
            connection.set_tunnel(host.strip("[]"), port, proxy.headers, proxy.scheme)
            if self._aborted:
                raise TimeoutError
            connection.connect()
        except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
            failure = self._failure(error)
            connection.close()
            return failure
        built: Any = connection.sock
        connection.sock = None
        if proxy.scheme == "https":
            built.suppress_ragged_eofs = SUPPRESS_RAGGED_EOFS
        return cast("Stream", built)

    def abort(self) -> None:
        """End the building: whatever it waits for on its socket returns soon."""
        self._aborted = True
        sock = self._connection.sock
        if isinstance(sock, socket.socket):
            shut_down(sock)

    def _failure(self, error: Exception) -> DownloadError:
        if refusal := _REFUSAL.fullmatch(str(error)):
            return at_proxy(self._proxy, _refused(int(refusal[1]), refusal[2]))
        reached = self._connection.has_connected_to_proxy
        if isinstance(error, ssl.SSLError):
            failure = handshake_error(error)
            return failure if reached else at_proxy(self._proxy, failure)
        return at_proxy(self._proxy, _reason(error))


def _reason(error: Exception) -> DownloadError:
    """Say why a proxy could not be reached, or did not answer."""
    cause = error.__cause__
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return unknown_name(cause)
    if isinstance(error, urllib3.exceptions.HTTPError) and isinstance(cause, OSError):
        return connect_error(cause)
    return exchange_error(error, answered=False)


def _refused(status: int, reason: str) -> DownloadError:
    final = status in _FINAL
    detail = f"no tunnel, {status} {reason[:_SHOWN]}".rstrip()
    if status == 407:
        detail += "; put user and password into the proxy's URL (http://user:password@host:port)"
    return DownloadError(
        Reason.CONNECT, detail, http_status=status, retryable=not final, blame=Blame.IMAGE if final else Blame.HOST
    )

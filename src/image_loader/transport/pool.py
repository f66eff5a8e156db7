"""The pool: idle connections, owned by an adapter that is mounted on the one session of a run."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict

from requests.adapters import HTTPAdapter

from image_loader.transport.connection import Connection

_LOG = logging.getLogger(__name__)


class PoolAdapter(HTTPAdapter):
    """Keeps idle connections to ``hosts`` origins or proxies, ``per_host`` to each; the oldest go first.

    Any thread may ask.
    """

    def __init__(self, hosts: int, per_host: int) -> None:
        super().__init__()
        self._hosts = hosts
        self._per_host = per_host
        self._lock = threading.Lock()
        self._idle: OrderedDict[str, list[Connection]] = OrderedDict()

    def take(self, way: str) -> Connection | None:
        """Return an idle connection that goes this way and is still alive; those that are not are closed."""
        while (connection := self._pop(way)) is not None:
            if connection.alive:
                return connection
            _LOG.debug("%s: an idle connection was closed by the server", way)
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for its next request, or close it if it cannot carry one."""
        if not connection.usable:
            connection.close()
            return
        connection.rest()
        for each in self._push(connection):
            each.close()

    def drop_idle(self) -> bool:
        """Close all idle connections; tell whether there were any."""
        with self._lock:
            idle, self._idle = self._idle, OrderedDict()
        if idle:
            _LOG.debug("the idle connections to %d hosts are closed", len(idle))
        for each in (connection for connections in idle.values() for connection in connections):
            each.close()
        return bool(idle)

    def close(self) -> None:
        """Close the idle connections; the session calls it when it is closed itself."""
        self.drop_idle()
        super().close()

    def _pop(self, way: str) -> Connection | None:
        with self._lock:
            connections = self._idle.get(way)
            if connections is None:
                return None
            # The newest: the server has had the least time to close it.
            connection = connections.pop()
            if not connections:
                del self._idle[way]
            return connection

    def _push(self, connection: Connection) -> list[Connection]:
        """Keep a connection; return those that there is no room for any more."""
        dropped = list[Connection]()
        with self._lock:
            connections = self._idle.setdefault(connection.way, [])
            self._idle.move_to_end(connection.way)
            connections.append(connection)
            if len(connections) > self._per_host:
                dropped.append(connections.pop(0))
            if len(self._idle) > self._hosts:
                dropped.extend(self._idle.popitem(last=False)[1])
        return dropped


class LoggingPool(PoolAdapter):
    """Says what becomes of each connection. A class of its own, so that others pay nothing for it."""

    def take(self, way: str) -> Connection | None:
        """Return an idle connection; log it."""
        connection = super().take(way)
        if connection is not None:
            _LOG.debug("%s: the connection to %s is used again", way, connection.address)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep or close a connection; log that it is closed."""
        if not connection.usable:
            _LOG.debug("%s: a connection is closed, since it can carry no other request", connection.origin)
        super().give_back(connection)

"""From a request to its response: connections, redirects and deadlines."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

import requests

from image_loader.errors import DownloadError, LoaderError
from image_loader.model import Hop, Reason, Redirect
from image_loader.settings import Settings
from image_loader.transport import coding, tls
from image_loader.transport.connection import ClosedUnused, Connection, StaleConnectionError
from image_loader.transport.connector import Connector, Delivery
from image_loader.transport.failures import connect_error, exchange_error
from image_loader.transport.pool import LoggingPool, PoolAdapter
from image_loader.transport.response import Response
from image_loader.transport.routes import Routes, header_lines
from image_loader.transport.watchdog import Watch, Watchdog, blame_host_if_late
from image_loader.url import Url

__all__ = ["Answer", "Connection", "Delivery", "Request", "StaleConnectionError", "Transport"]

_LOG = logging.getLogger(__name__)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NONE: Mapping[str, str] = {}


class Request:
    """What one attempt asks for: ``url``, with header ``fields`` that go with each of its requests.

    ``condition`` goes only with that for the resource which it is about: the one whose ``digest`` is ``target``, else
    ``url`` itself. Both are kept as header lines.
    """

    __slots__ = ("_target", "condition", "fields", "url")

    def __init__(
        self, url: Url, fields: Mapping[str, str], condition: Mapping[str, str] = _NONE, target: bytes | None = None
    ) -> None:
        self.url = url
        self.fields = header_lines(fields) if fields else ""
        self.condition = header_lines(condition) if condition else ""
        self._target = target

    def is_target(self, url: Url) -> bool:
        """Whether the condition is about the resource that has this URL."""
        return url is self.url if self._target is None else url.digest == self._target


class Answer:
    """A response as its reader sees it: ``status``, header ``fields`` by lower-case name, and the body in chunks.

    ``length`` is the number of body bytes announced on the wire, None where none is.
    ``requested`` and ``received`` are the times of the request and of the response's head, in seconds since the epoch.
    ``url`` is the one that answered, ``redirects`` are what is kept of the answers that led to it, in their order;
    ``conditional`` says whether that request bore the condition. It is read in a ``with`` block, which leaves the
    connection to whoever passed it in.
    """

    def __init__(
        self, response: Response, watch: Watch, url: Url, requested: float, hop: Hop | None, *, conditional: bool
    ) -> None:
        """``hop`` is where redirects have led to, None without any."""
        self._watch = watch
        self._response = response
        self.status = self._response.status
        self.fields = self._response.fields
        self.length = self._response.length
        self.url = url
        self.redirects: tuple[Redirect, ...] = () if hop is None else hop.redirects
        self.conditional = conditional
        self.requested = requested
        self.received = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.skip()
        self._watch.close()

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the body, decoded, in pieces of at most ``size`` bytes; raise ``DownloadError`` where it breaks off."""
        return coding.decoded(self._wire(size), self.fields.get("content-encoding", ""), size, self._watch.check)

    @property
    def plain(self) -> bool:
        """Whether the body is sent as it is, so that ``length`` is the image's."""
        return coding.is_plain(self.fields.get("content-encoding", ""))

    @property
    def deadline(self) -> float:
        """When the time for this attempt is over (``time.monotonic()``)."""
        return self._watch.deadline

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self._watch.left

    def skip(self) -> None:
        """Pass over a body that is there already, so that the connection can be used again."""
        self._response.skip_buffered()

    def _wire(self, size: int) -> Iterator[bytes]:
        try:
            while data := self._response.read(size):
                yield data
                # Without this look, data that has already come could be worked on long after the deadline.
                self._watch.check()
        except DownloadError:
            self._watch.check()
            raise
        except OSError as error:
            self._watch.check()
            raise exchange_error(error, answered=True) from error
        # A connection that was shut down from outside looks like one that ended well.
        self._watch.check()


class Transport:
    """Connects to servers and asks them for images, for many threads at once.

    ``deliver`` is called, from any thread, that of ``connect`` too, with what comes of each ``connect``: the origin, a
    connection or an error, and when that was begun (``time.monotonic``).

    Raises ``LoaderError``: ``OptionError`` where the CA bundle cannot be read, ``OutOfThreadsError``, and itself where
    there are no descriptors.
    """

    def __init__(self, settings: Settings, deliver: Delivery, processors: frozenset[int] = frozenset()) -> None:
        """``processors``: where work without the interpreter lock may run; if empty, it stays where its thread is."""
        self._process = os.getpid()
        self._settings = settings
        self._deliver = deliver
        self._session = requests.Session()
        pool = LoggingPool if _LOG.isEnabledFor(logging.DEBUG) else PoolAdapter
        self._pool = pool(settings.pool_hosts, settings.per_host)
        _prepare(self._session, self._pool, settings)
        self._routes = Routes(settings, self._session)
        self._context_lock = threading.Lock()
        # A CA bundle that cannot be read is an error at once, before anything else happens.
        bundled = tls.context_of(settings.ca_bundle) if settings.ca_bundle is not None else None
        self._context = None if settings.insecure else bundled
        self._chains = _Chains(self._routes, settings.redirects, settings.delay)
        self._closed_unused = ClosedUnused()
        self._watchdog = Watchdog(settings.max_time)
        try:
            self._connector = Connector(
                settings.timeout, settings.max_time, deliver, public_only=settings.public_only, processors=processors
            )
        except BaseException:
            self._watchdog.close()
            raise

    def connect(self, origin: str) -> None:
        """Begin one connection to an origin ("https://host:port"); what comes of it is delivered, whatever it is."""
        try:
            route = self._routes.route(origin)
            self._routes.header_lines(origin, "", own=True)  # A fault in .netrc is an error before anything is sent.
            context = self._tls_context() if route.server_hostname is not None else None
        except (DownloadError, LoaderError) as error:
            self._deliver(origin, error, time.monotonic())
        else:
            self._connector.connect(route, context)

    def take(self, origin: str) -> Connection | None:
        """Return an idle connection to an origin that is still alive, if there is one."""
        try:
            way = self._routes.route(origin).way
        except (DownloadError, LoaderError):
            return None  # Connecting tells why.
        connection = self._pool.take(way)
        if connection is not None:
            connection.origin = origin
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for its next request, or close it if it cannot carry one."""
        self._pool.give_back(connection)

    def exchange(self, request: Request, connection: Connection, hop: Hop | None = None) -> Answer | Hop:
        """Ask for what is requested, or for where redirects have led to (``hop``), on a connection that leads there.

        Return the final answer; or a ``Hop`` where a redirect leads to another origin, this connection is spent, or
        each request has to wait for its turn. Raises ``DownloadError`` where there is no answer,
        ``StaleConnectionError`` where the connection was closed before it, so that another one may bring it, and
        ``LoaderError`` for what ends the run.
        """
        watch = self._watchdog.watch(hop.left if hop is not None else None)
        new = not connection.used
        try:
            found = self._chains.follow(request, hop, connection, watch)
        except BaseException as error:
            watch.close()
            # Those that redirected here may have taken nearly all of the time.
            if isinstance(error, DownloadError) and (hop is None or hop.left >= self._settings.timeout):
                blame_host_if_late(error)
            if isinstance(error, StaleConnectionError):
                _LOG.debug("%s: the server closed a connection before it answered", connection.origin)
                connection.close()
                if new:
                    self._closed_unused.note(connection.origin)
            elif not connection.usable:
                connection.close()
            raise
        if isinstance(found, Hop):
            watch.close()
        if new and connection.used:
            self._closed_unused.forget(connection.origin)
        elif new:  # Closed before it answered; only where redirects have led here is that no error.
            self._closed_unused.note(connection.origin)
        if isinstance(found, Hop):
            return Hop(found.url, found.redirects, found.cookies, watch.left)
        return found

    def drop_idle(self) -> bool:
        """Close the connections that wait for their next request, to free their descriptors; tell if there were any."""
        return self._pool.drop_idle()

    def interrupt(self) -> None:
        """End all exchanges and all connecting, within moments."""
        if self._is_ours():
            self._watchdog.interrupt()
            self._connector.interrupt()

    def close(self) -> None:
        """Close the session with its connections, and end the threads."""
        if self._is_ours():
            self._watchdog.close()
            self._connector.close()
            self._session.close()

    def _is_ours(self) -> bool:
        # A process that was forked has none of the threads, and shares the sockets with its parent.
        return os.getpid() == self._process

    def _tls_context(self) -> ssl.SSLContext:
        with self._context_lock:
            if self._context is None:
                self._context = tls.context(self._routes.verify)
            return self._context


class _Chains:
    """Sends requests, and follows redirects: at most ``limit`` in all; with a ``delay``, each waits for its turn."""

    def __init__(self, routes: Routes, limit: int, delay: float) -> None:
        self._routes = routes
        self._limit = limit
        self._delay = delay

    def follow(self, request: Request, hop: Hop | None, connection: Connection, watch: Watch) -> Answer | Hop:
        """Ask, and follow redirects as long as this connection leads there."""
        while True:
            try:
                answer = self._ask(request, hop, connection, watch)
            except StaleConnectionError:
                if hop is None or not hop.redirects:
                    raise
                connection.close()
                watch.check()
                return hop
            if answer.status not in _REDIRECTS:
                return answer
            try:
                from image_loader.transport import redirects
            except OSError as error:
                raise connect_error(error) from error  # The import takes a descriptor.
            answer.skip()
            hop = hop or Hop(request.url, ())
            if len(hop.redirects) >= self._limit:
                raise DownloadError(Reason.REDIRECTS, f"more than {self._limit} redirects")
            hop = redirects.follow(request.url, hop, answer.fields, answer.requested, answer.received)
            self._check(hop)
            if self._delay or hop.url.origin != connection.origin or not connection.usable:
                return hop

    def _ask(self, request: Request, hop: Hop | None, connection: Connection, watch: Watch) -> Answer:
        url = request.url if hop is None else hop.url
        conditional = bool(request.condition) and request.is_target(url)
        cookie = "" if hop is None or hop.cookies is None else _cookie(hop)
        own = url.origin == request.url.origin
        head = self._routes.header_lines(url.origin, url.userinfo, own=own, cookie=cookie)
        last = request.condition if conditional else ""
        prefix = self._routes.route(url.origin).prefix
        text = f"GET {prefix}{url.path} HTTP/1.1\r\n{head}{request.fields}{last}\r\n"
        requested = time.time()
        response = connection.ask(text.encode("latin-1"), watch)
        return Answer(response, watch, url, requested, hop, conditional=conditional)

    def _check(self, hop: Hop) -> None:
        try:
            self._routes.route(hop.url.origin)
        except DownloadError as error:
            if error.failure.reason is Reason.BAD_URL:
                raise DownloadError(Reason.REDIRECTS, f"redirected to a {error.failure.detail}") from error


def _cookie(hop: Hop) -> str:
    from image_loader.transport import redirects

    return redirects.cookie(hop)


def _prepare(session: requests.Session, adapter: PoolAdapter, settings: Settings) -> None:
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers.clear()
    session.headers.update({"User-Agent": settings.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"})
    session.headers["Connection"] = "keep-alive"

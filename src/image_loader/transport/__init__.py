"""Request to response: one pooled session, redirects by hand, deadlines, every failure a ``DownloadError``."""

from __future__ import annotations

import functools
import http.client
import netrc  # noqa: F401 (requests would, once descriptors may have run out)
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote_to_bytes, urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import create_urllib3_context
from urllib3.util.proxy import connection_requires_http_tunnel

from image_loader.errors import DownloadError, OptionError, is_out_of_descriptors
from image_loader.model import Blame, Reason, Settings
from image_loader.transport import coding, connection
from image_loader.transport.connection import StaleConnectionError
from image_loader.transport.targets import Targets
from image_loader.transport.watchdog import Watch, Watchdog
from image_loader.url import Url, parse

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_NONE: Mapping[str, str] = {}
_POOL_CLASSES = {"http": connection.WatchedPool, "https": connection.WatchedTlsPool}


class _Route(NamedTuple):
    """What all requests to one origin have in common, looked up once: that costs as much as an exchange.

    ``prefix`` stands before the path in a request to a proxy, which wants the whole URL (RFC 9112, 3.2.2). ``fields``
    are header lines as they go over the wire.
    """

    pool: connection.WatchedPool
    prefix: str
    fields: str
    tunnel: bool


class Answer:
    """A response as its reader sees it: ``status``, header ``fields`` by lower-case name, and the body in chunks.

    ``requested`` and ``received`` are the times of the request and of the response's head, in seconds since the epoch.
    ``url`` is the one that answered, ``redirects`` are the answers that led to it, in their order; ``conditional`` says
    whether that request bore the condition. It is read in a ``with`` block; when that ends, the attempt is over.
    """

    url: Url
    conditional: bool

    def __init__(
        self, pool: connection.WatchedPool, link: connection.WatchedConnection, watch: Watch, requested: float
    ) -> None:
        self._pool = pool
        self._link = link
        self._watch = watch
        self._response = link.response
        self.status = self._response.status
        self.fields = self._response.fields
        self.length = self._response.length
        self.requested = requested
        self.received = time.time()
        self.redirects: list[Answer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        finally:
            self._watch.close()

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the body, decoded, in pieces of at most ``size`` bytes; raise ``DownloadError`` where it breaks off."""
        return coding.decoded(self._wire(size), self.fields.get("content-encoding", ""), size)

    @property
    def plain(self) -> bool:
        """Whether the body is sent as it is, so that ``length`` is the image's."""
        return coding.is_plain(self.fields.get("content-encoding", ""))

    @property
    def deadline(self) -> float:
        """When the time for this attempt is over (``time.monotonic()``)."""
        return self._watch.deadline

    def release(self) -> None:
        """Give the connection back to its pool; it is closed where a body is left on it."""
        self._response.skip_buffered()
        self._pool.give_back(self._link, reusable=self._link.reusable)

    def _wire(self, size: int) -> Iterator[bytes]:
        try:
            while data := self._response.read(size):
                yield data
                # What has come already could be worked on for long after the time is over.
                self._watch.check()
        except DownloadError:
            self._watch.check()
            raise
        except OSError as error:
            self._watch.check()
            raise _translated(error, answered=True) from error
        # A connection that was shut down from outside looks like one that ended well.
        self._watch.check()


class Transport:
    """Asks servers for images, from many threads at once; one session with its pools serves them all."""

    def __init__(self, settings: Settings) -> None:
        if settings.ca_bundle is not None:
            _tls_context(settings.ca_bundle)
        self._settings = settings
        self._adapter = _Adapter(settings.pool_hosts, settings.per_host)
        self._session = _session(settings, self._adapter)
        self._watchdog = Watchdog(settings.timeout, settings.max_time)
        self._targets = Targets(settings.host_failures, settings.host_patience)
        self._route = functools.lru_cache(settings.pool_hosts)(self._new_route)

    def exchange(
        self, url: Url, fields: Mapping[str, str], condition: Mapping[str, str] = _NONE, target: bytes | None = None
    ) -> Answer:
        """Ask for ``url`` and return its final answer, redirects followed; ``DownloadError`` where there is none.

        ``fields`` go with each request. ``condition`` goes only with that for the resource which it is about: the one
        whose ``resource`` is ``target``, else ``url`` itself.
        """
        watch = self._watchdog.watch()
        try:
            return self._follow(url, fields, condition, target, watch)
        except BaseException:
            watch.close()
            raise

    def interrupt(self) -> None:
        """End all attempts, running ones within moments."""
        self._watchdog.interrupt()

    def drop_idle(self) -> None:
        """Close the connections that wait for their next request, to free their descriptors."""
        # A pool closes its connections once nothing refers to it any more.
        self._route.cache_clear()
        self._adapter.close()

    def close(self) -> None:
        """Close the session and stop the watchdog."""
        self._watchdog.close()
        self.drop_idle()

    def _follow(
        self, url: Url, fields: Mapping[str, str], condition: Mapping[str, str], target: bytes | None, watch: Watch
    ) -> Answer:
        hop, redirects = url, list[Answer]()
        lines = _lines(fields) if fields else ""
        for _ in range(self._settings.redirects + 1):
            conditional = bool(condition) and (hop is url if target is None else hop.resource == target)
            sent = lines + _lines(condition) if conditional else lines
            if hop.origin == url.origin:
                answer = self._get(hop, sent, watch, own=True)
            else:
                answer = self._get_elsewhere(hop, sent, watch)
            if answer.status not in _REDIRECTS:
                answer.url, answer.redirects, answer.conditional = hop, redirects, conditional
                return answer
            redirects.append(answer)
            location = answer.fields.get("location")
            answer.release()
            hop = _target(hop, location, url)
        raise DownloadError(Reason.REDIRECTS, f"more than {self._settings.redirects} redirects")

    def _get_elsewhere(self, url: Url, fields: str, watch: Watch) -> Answer:
        """Ask another host than the one that the list names."""
        self._targets.check(url.origin)
        started = time.monotonic()
        try:
            answer = self._get(url, fields, watch, own=False)
        except DownloadError as error:
            if error.failure.reason is Reason.BAD_URL:
                raise DownloadError(Reason.REDIRECTS, f"redirected to a {error.failure.detail}") from error
            if error.failure.blame is Blame.HOST:
                self._targets.missed(url.origin, started)
            error.happened_elsewhere()
            raise
        self._targets.answered(url.origin)
        return answer

    def _get(self, url: Url, fields: str, watch: Watch, *, own: bool) -> Answer:
        requested = time.time()
        while True:
            route = self._route(url.origin, url.userinfo, own)
            request = f"GET {route.prefix}{url.path} HTTP/1.1\r\n{route.fields}{fields}\r\n".encode("latin-1")
            try:
                link = route.pool.ask(request, watch, tunnel=route.tunnel, public_only=self._settings.public_only)
            except StaleConnectionError:
                # It costs no attempt: each such connection is gone for good, and a new one is never stale.
                continue
            except DownloadError:
                watch.check()
                raise
            except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError) as error:
                watch.check()
                raise _translated(error, answered=False) from error
            return Answer(route.pool, link, watch, requested)

    def _new_route(self, origin: str, userinfo: str, own: bool) -> _Route:  # noqa: FBT001 (a key of the cache)
        """Ask the session, as it would ask itself for each request: proxies, ``.netrc``, CA files, headers, pool."""
        user, _, password = userinfo.partition(":")
        # As bytes, since requests would encode text in Latin-1; RFC 7617 has UTF-8.
        auth: Any = (unquote_to_bytes(user), unquote_to_bytes(password)) if userinfo else None
        headers = self._settings.headers if own else {}
        if auth is None and any(name.lower() == "authorization" for name in headers):
            auth = _as_it_is  # Else a line in .netrc would go before what the user asked for.
        try:
            request = self._session.prepare_request(requests.Request("GET", origin + "/", headers=headers, auth=auth))
        except UnicodeDecodeError as error:
            raise OptionError("the .netrc file cannot be read: its text is not in the locale's encoding") from error
        except UnicodeEncodeError as error:
            raise OptionError("a user or password in .netrc has letters that requests cannot send (Latin-1)") from error
        except (requests.RequestException, UnicodeError) as error:
            raise DownloadError(Reason.BAD_URL, "bad host name") from error
        base = str(request.url).removesuffix("/")
        # Said for each request: of a session's own setting, REQUESTS_CA_BUNDLE would take precedence.
        verify = False if self._settings.insecure else self._settings.ca_bundle
        found: dict[str, Any] = dict(self._session.merge_environment_settings(base, {}, None, verify, None))
        found.pop("stream")
        proxy = requests.utils.select_proxy(base, found["proxies"])
        if proxy and proxy.lower().startswith("socks"):
            raise DownloadError(
                Reason.CONNECT, "SOCKS proxies are not spoken to; name an HTTP proxy, or unset ALL_PROXY"
            )
        if proxy and self._settings.public_only:
            raise DownloadError(Reason.PRIVATE_ADDRESS, "through a proxy the server's address cannot be checked")
        try:
            pool: Any = self._adapter.get_connection_with_tls_context(request, **found)
        except (OSError, urllib3.exceptions.HTTPError, ValueError, TypeError) as error:
            # What requests and urllib3 raise for the URL of a proxy that is none; the URL may hold a password.
            raise DownloadError(
                Reason.CONNECT, "the proxy's URL cannot be used; write it like http://host:3128"
            ) from error
        tunnel = connection_requires_http_tunnel(pool.proxy, pool.proxy_config, base.partition(":")[0])
        fields = {"Host": base.partition("://")[2]} if "Host" not in request.headers else {}
        fields.update(request.headers)
        if proxy and not tunnel:
            return _Route(pool, base, _lines({**fields, **pool.proxy_headers}), tunnel)
        return _Route(pool, "", _lines(fields), tunnel)


class _Adapter(HTTPAdapter):
    """The adapter of requests with pools of watched connections, and one TLS context where requests makes one each."""

    def __init__(self, hosts: int, per_host: int) -> None:
        super().__init__(pool_connections=hosts, pool_maxsize=per_host)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOL_CLASSES

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOL_CLASSES
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": _tls_context(verify)} if host["scheme"] == "https" else {}


def _session(settings: Settings, adapter: _Adapter) -> requests.Session:
    session = requests.Session()
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers.clear()
    session.headers.update({"User-Agent": settings.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"})
    session.headers["Connection"] = "keep-alive"
    return session


@functools.cache
def _tls_context(verify: bool | str | None) -> ssl.SSLContext:  # noqa: FBT001 (what requests calls it)
    """Return the context for what requests calls ``verify``; loading its certificates takes some 20 ms."""
    try:
        context = create_urllib3_context()
    except OSError as error:
        if is_out_of_descriptors(error):
            raise connection.connect_error(error) from error
        why = error.strerror or str(error)
        raise OptionError(f"TLS cannot be set up: {why}; SSLKEYLOGFILE, if set, must name a writable file") from error
    # Python up to 3.11.2 sets it: a connection that somebody cuts would look like one that ended well.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    path = verify if isinstance(verify, str) else requests.utils.DEFAULT_CA_BUNDLE_PATH
    try:
        context.load_verify_locations(**{"capath" if Path(path).is_dir() else "cafile": path})
    except OSError as error:
        if is_out_of_descriptors(error):
            raise connection.connect_error(error) from error
        raise OptionError(f"{path}: no certificates can be read from it; name another with --ca-bundle") from error
    return context


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _lines(fields: Mapping[str, str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in fields.items()])


def _target(base: Url, location: str | None, first: Url) -> Url:
    """Return where a redirect leads (RFC 9110, 10.2.2); user and password of the ``first`` URL stay with its origin."""
    if location is None:
        raise DownloadError(Reason.REDIRECTS, "a redirect without a Location")
    # Servers send raw UTF-8 here; header fields were read as Latin-1.
    reference = location.encode("latin-1").decode("utf-8", "replace")
    try:
        target = parse(reference if _SCHEME.match(reference) else urljoin(base.canonical, reference))
    except ValueError as error:
        raise DownloadError(Reason.REDIRECTS, f"redirected to a bad URL: {error}") from error
    if target.origin == first.origin and not target.userinfo:
        return target._replace(userinfo=first.userinfo)
    return target


def _translated(error: Exception, *, answered: bool) -> DownloadError:
    """Name a failure of urllib3, http.client, ssl or socket in our terms; ``answered`` once a response has begun."""
    if isinstance(error, TimeoutError):
        detail = "nothing more came within the timeout" if answered else "no answer within the timeout"
        return DownloadError(Reason.TIMEOUT, detail, retryable=True, blame=Blame.IMAGE if answered else Blame.HOST)
    if isinstance(error, ssl.SSLError):
        return DownloadError(Reason.TLS, (error.reason or "TLS failure").lower().replace("_", " "))
    if isinstance(error, OSError) and answered:
        return DownloadError(Reason.TRUNCATED, error.strerror or str(error), retryable=True)
    if isinstance(error, OSError):
        return connection.connect_error(error)
    return DownloadError(Reason.PROTOCOL, f"not understood: {type(error).__name__}")

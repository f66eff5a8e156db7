"""Routes: how an origin is reached and what it is sent; what all of them have in common is looked up once a run."""

# No annotation of a named tuple is a string here, but where its module is imported late: see ``model``.
import functools
import importlib
import os
import re
import threading
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes
from urllib.request import getproxies

import requests

from image_loader.errors import DownloadError, OptionError, is_out_of_descriptors
from image_loader.model import Reason
from image_loader.settings import Settings
from image_loader.transport.failures import connect_error
from image_loader.transport.tls import server_hostname

if TYPE_CHECKING:
    from netrc import netrc

    from image_loader.transport.proxies import Proxy

# Own header fields that another origin than the list's gets, too: they hold no secret, and some servers want them.
_HARMLESS = frozenset({"user-agent", "referer", "accept", "accept-language"})
# Hosts whose URLs requests and urllib3 leave as they are.
_USUAL_HOST = r"[a-z0-9_][a-z0-9._-]*|\[[0-9a-f:.]+\]"
_NETRC_FILES = ("~/.netrc", "~/_netrc")
"""Where requests looks."""
_MOST_KEPT = 1024
"""Origins of which routes and header lines are kept."""
_ANYWHERE = "https://host.invalid/"


class Route(NamedTuple):
    """How one origin is reached.

    ``host`` and ``port`` are what is connected to: the origin's, or those of its ``proxy``. ``tunnels`` says whether
    the proxy is to build a tunnel. ``server_hostname`` is the name in the certificate of the first TLS handshake: that
    of a proxy that is spoken to by TLS, else the origin's; None for plain text. ``prefix`` stands before the path in a
    request to a proxy, which wants the whole URL (RFC 9112, 3.2.2); ``authority`` is the value of ``Host``.
    """

    origin: str
    host: str
    port: int
    server_hostname: str | None
    authority: str
    proxy: "Proxy | None" = None
    tunnels: bool = False
    prefix: str = ""

    @property
    def way(self) -> str:
        """What connections are shared by: a proxy carries requests to all plain origins."""
        return self.origin if self.proxy is None or self.tunnels else self.proxy.url

    @property
    def target(self) -> tuple[str, int]:
        """Host and port of the origin itself."""
        return _host_and_port(self.origin.partition("://")[0], self.authority)

    @property
    def within_tls(self) -> bool:
        """Whether a tunnel is built through TLS."""
        return self.tunnels and self.proxy is not None and self.proxy.scheme == "https"


class _Common:
    """What all routes have in common, as ``requests`` would find it for each of them."""

    def __init__(self, settings: Settings, session: requests.Session) -> None:
        # Given for each request, since REQUESTS_CA_BUNDLE takes precedence over a setting of the session.
        verify = False if settings.insecure else settings.ca_bundle
        found = session.merge_environment_settings(_ANYWHERE, {}, None, verify, None)
        self.verify: bool | str | None = found["verify"]
        self.own = _fields(session, settings.headers)
        harmless = {name: value for name, value in settings.headers.items() if name.lower() in _HARMLESS}
        self.elsewhere = _fields(session, harmless) if harmless != settings.headers else self.own
        self._proxies: dict[str, str] = getproxies()
        self._netrc = _netrc()
        self._parsed = functools.lru_cache(16)(_proxy)

    def proxy(self, base: str) -> "Proxy | None":
        """Return the proxy for an origin; None where it is asked directly."""
        # Without any proxy, whether it would be bypassed need not be found out; that takes longer than all the rest.
        if not self._proxies or requests.utils.should_bypass_proxies(base, no_proxy=None):
            return None
        text = requests.utils.select_proxy(base, self._proxies)
        return self._parsed(text) if text else None

    def netrc_credentials(self, host: str) -> bytes | None:
        """Return user and password of a host in ``.netrc``, as requests chooses them."""
        found = self._netrc.authenticators(host.strip("[]")) if self._netrc is not None else None
        if not found or not any(found):
            return None
        login, account, password = found
        try:
            return f"{login or account or ''}:{password or ''}".encode("latin-1")
        except UnicodeEncodeError as error:
            raise OptionError("a user or password in .netrc has letters that cannot be sent (Latin-1)") from error


class _Environment:
    """Finds routes and header lines out; keeps nothing of them."""

    def __init__(self, settings: Settings, session: requests.Session) -> None:
        self._settings = settings
        self._session = session
        self._lock = threading.Lock()
        self._common: _Common | None = None

    @property
    def common(self) -> _Common:
        """What all routes have in common; looked up with the first of them."""
        with self._lock:
            if self._common is None:
                self._common = _Common(self._settings, self._session)
            return self._common

    def route(self, origin: str) -> Route:
        """Return the route to an origin; raise ``DownloadError`` where there is none, and ``LoaderError``."""
        try:
            return self._route(origin)
        except OSError as error:
            # What is imported for some routes only takes a descriptor, for as long as that lasts.
            if is_out_of_descriptors(error):
                raise connect_error(error) from error
            raise

    def _route(self, origin: str) -> Route:
        scheme, _, authority = _canonical(origin).partition("://")
        host, port = _host_and_port(scheme, authority)
        proxy = self.common.proxy(f"{scheme}://{authority}")
        if proxy is None:
            name = server_hostname(host) if scheme == "https" else None
            return Route(origin, host, port, name, authority)
        if self._settings.public_only:
            raise DownloadError(Reason.PRIVATE_ADDRESS, "through a proxy the server's address cannot be checked")
        if scheme == "https":
            # Here, a lack of descriptors fails one attempt. In the connector's thread, it would end the run.
            importlib.import_module("image_loader.transport.tunnels")
            name = server_hostname(proxy.host if proxy.scheme == "https" else host)
            return Route(origin, proxy.host, proxy.port, name, authority, proxy, tunnels=True)
        name = server_hostname(proxy.host) if proxy.scheme == "https" else None
        return Route(origin, proxy.host, proxy.port, name, authority, proxy, prefix=f"{scheme}://{authority}")

    def header_lines(self, origin: str, userinfo: str, own: bool, cookie: str = "") -> str:  # noqa: FBT001 (a cache's key)
        """Return the header lines of requests to an origin, as ``Routes.header_lines`` does."""
        route = self.route(origin)
        fields = dict(self.common.own if own else self.common.elsewhere)
        if "host" not in map(str.lower, fields):
            fields = {"Host": route.authority, **fields}
        if (credentials := self._credentials(origin, userinfo, fields)) is not None:
            _put(fields, "Authorization", f"Basic {b64encode(credentials).decode()}")
        if cookie:
            _put(fields, "Cookie", "; ".join(filter(None, (_value(fields, "cookie"), cookie))))
        if route.proxy is not None and not route.tunnels:
            fields.update(route.proxy.headers)
        return header_lines(fields)

    def _credentials(self, origin: str, userinfo: str, fields: Mapping[str, str]) -> bytes | None:
        if userinfo:
            user, _, password = userinfo.partition(":")
            # RFC 7617 has UTF-8.
            return unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
        if _value(fields, "authorization"):
            return None  # What the user asks for goes before a line in .netrc.
        return self.common.netrc_credentials(_host_and_port(*origin.split("://"))[0])


class Routes:
    """The routes of one run. The environment is looked at once, with the first of them; any thread may ask.

    ``route`` returns the route to an origin. It raises ``DownloadError`` where there is none, and ``LoaderError`` for
    what ends the run.
    """

    def __init__(self, settings: Settings, session: requests.Session) -> None:
        # The caches belong to this object, and what they call does not refer to it: no reference cycle is left.
        self._environment = _Environment(settings, session)
        self.route = functools.lru_cache(_MOST_KEPT)(self._environment.route)
        self._usual_lines = functools.lru_cache(_MOST_KEPT)(self._environment.header_lines)

    @property
    def verify(self) -> bool | str | None:
        """Which certificates are trusted, as requests says it: True, False, or a file or directory."""
        return self._environment.common.verify

    def header_lines(self, origin: str, userinfo: str, *, own: bool, cookie: str = "") -> str:
        """Return the header lines of all requests to an origin with these credentials; raise as ``route`` does.

        ``own`` says whether it is an origin of the list, which gets all of the user's headers. ``cookie`` has the
        cookies that redirects have set.
        """
        if cookie:
            # They are not kept: they may be long.
            return self._environment.header_lines(origin, userinfo, own, cookie)
        return self._usual_lines(origin, userinfo, own)


def _proxy(text: str) -> "Proxy":
    from image_loader.transport import proxies

    return proxies.parse(text)


def header_lines(fields: Mapping[str, str]) -> str:
    """Return header fields as they go over the wire."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields.items()])


def _fields(session: requests.Session, headers: Mapping[str, str]) -> dict[str, str]:
    request = requests.Request("GET", _ANYWHERE, headers=dict(headers), auth=_unchanged)
    return {name: str(value) for name, value in session.prepare_request(request).headers.items()}


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _value(fields: Mapping[str, str], name: str) -> str:
    return next((value for key, value in fields.items() if key.lower() == name), "")


def _put(fields: dict[str, str], name: str, value: str) -> None:
    for key in [each for each in fields if each.lower() == name.lower()]:
        del fields[key]
    fields[name] = value


def _canonical(origin: str) -> str:
    """Return an origin with its host as it goes over the wire."""
    if re.fullmatch(_USUAL_HOST, origin.partition("://")[2].rpartition(":")[0] or origin.partition("://")[2]):
        return origin
    try:
        return str(requests.Request("GET", origin + "/").prepare().url).removesuffix("/")
    except (requests.RequestException, UnicodeError) as error:
        raise DownloadError(Reason.BAD_URL, "bad host name") from error


def _host_and_port(scheme: str, authority: str) -> tuple[str, int]:
    host, colon, port = authority.rpartition(":")
    if not colon or "]" in port:
        return authority, 443 if scheme == "https" else 80
    return host, int(port)


def _netrc() -> "netrc | None":
    """Read the ``.netrc`` that requests would read; one that is malformed, or cannot be read, does no harm there."""
    named = os.environ.get("NETRC")
    candidates = (named,) if named is not None else _NETRC_FILES
    # Path's method raises where a folder cannot be searched (3.11).
    path = next(filter(os.path.exists, map(os.path.expanduser, candidates)), None)
    if path is None:
        return None
    try:
        return _read_netrc(path)
    except UnicodeDecodeError as error:
        raise OptionError("the .netrc file cannot be read: its text is not in the locale's encoding") from error
    except OSError as error:
        if is_out_of_descriptors(error):
            raise connect_error(error) from error
        return None


def _read_netrc(path: str) -> "netrc | None":
    # The import takes a descriptor as well.
    from netrc import NetrcParseError, netrc

    with suppress(NetrcParseError):
        return netrc(path)
    return None

"""Redirects: where they lead, what is kept of them, and the cookies that are set on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.message import Message
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import requests
from requests.cookies import MockRequest, MockResponse, get_cookie_header

from image_loader.errors import DownloadError
from image_loader.model import Hop, Reason, Redirect
from image_loader.url import Url, resolve

_KEPT = ("age", "cache-control", "date", "expires", "vary")
"""Fields that the lifetime of a redirect follows from."""
# Fields of a name that comes several times are joined by commas; a date has one as well.
_NEXT_COOKIE = re.compile(r",[ \t]*(?=[!#$%&'*+.^_`|~0-9A-Za-z-]+=)")
_LONG_AGE = r"(?i)(;[ \t]*max-age[ \t]*=[ \t]*[0-9]{10})[0-9]+"
# These limits are those of browsers (RFC 6265, 6.1).
_MOST_COOKIES = 50
"""Cookies that one answer may set."""
_LONGEST_COOKIE = 4096
"""Characters of a cookie with its attributes."""


def follow(url: Url, hop: Hop, fields: Mapping[str, str], requested: float, received: float) -> Hop:
    """Return where an answer to ``hop`` that is a redirect leads; ``DownloadError`` where that is nowhere.

    ``url`` is the one that the list names.
    """
    target = _target(hop.url, fields.get("location"), url)
    kept = Redirect({name: fields[name] for name in _KEPT if name in fields}, requested, received)
    cookies = _with_cookies(hop.cookies, hop.url, fields["set-cookie"]) if "set-cookie" in fields else hop.cookies
    return Hop(target, (*hop.redirects, kept), cookies)


def cookie(hop: Hop) -> str:
    """Return the value of ``Cookie`` for the next request of a chain; nothing where there is none."""
    if hop.cookies is None:
        return ""
    return get_cookie_header(hop.cookies, _request(hop.url)) or ""  # type: ignore[no-untyped-call]


def _with_cookies(former: CookieJar | None, url: Url, values: str) -> CookieJar:
    """Return a jar with the cookies of ``former``, and those that an answer sets."""
    jar = CookieJar(DefaultCookiePolicy(strict_domain=True))
    for known in former or ():
        jar.set_cookie(known)
    message = Message()
    for each in _NEXT_COOKIE.split(values)[:_MOST_COOKIES]:
        if len(each) <= _LONGEST_COOKIE:
            # With hundreds of digits, ``http.cookiejar`` drops all cookies of an answer, with a traceback on stderr.
            message["Set-Cookie"] = re.sub(_LONG_AGE, r"\1", each)
    response: Any = MockResponse(message)
    request: Any = MockRequest(_request(url))
    jar.extract_cookies(response, request)
    return jar


def _request(url: Url) -> requests.PreparedRequest:
    return requests.Request("GET", url.origin + url.path).prepare()


def _target(base: Url, location: str | None, first: Url) -> Url:
    """Return where a redirect leads (RFC 9110, 10.2.2); user and password of the ``first`` URL stay with its origin."""
    if location is None:
        raise DownloadError(Reason.REDIRECTS, f"redirect of {base.authority} without a Location")
    try:
        target = resolve(base, location.encode("latin-1"))
    except ValueError as error:
        raise DownloadError(Reason.REDIRECTS, f"redirected to a bad URL: {error}") from error
    if target.origin == first.origin and not target.userinfo:
        return target._replace(userinfo=first.userinfo)
    return target

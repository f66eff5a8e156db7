"""What HTTP lets a client conclude from response headers: fresh or not, what to ask with, when to come back."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from image_loader.model import Image, NotModified, Validators

Headers = Mapping[str, str]
"""Names in lower case; the lines of a repeated field joined with a comma and a space (RFC 9110, 5.3)."""

NEVER = -1.0
"""When a lifetime ends that no later 304 can renew: what varies with anything (RFC 9111, 4.1) is always asked for."""

_DELTA_CAP = 2**31
"""Seconds; RFC 9111, 1.2.2: what is larger counts as this."""

_VALIDATOR_MAX = 1024
"""Characters. Longer validators are legal, but a million of them would be neither small nor quick to look up."""

_DAY = 86400.0
_STRONG = 60.0
"""Seconds by which Last-Modified has to be older than Date, to tell two versions apart for certain."""

_LAST_SECOND = 253402300799.0
"""9999-12-31 23:59:59, the last that HTTP's format can tell."""

_ENTITY_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_FIELD_TEXT = re.compile(r"[\x20-\x7e\x80-\xff]+")
_DELTA_SECONDS = re.compile(r"[0-9]+")
_DIRECTIVE = re.compile(r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?(?:[\s,]+|$)""")

_CLOCK = r"(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9])"
# Compiled when the first date comes, like all that only answers of servers need: many runs ask for nothing.
_DATES = (
    rf"[A-Z][a-z]+, (?P<day>[0-9]{{1,2}}) (?P<month>[A-Z][a-z]+) (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
    rf"[A-Z][a-z]+, (?P<day>[0-9]{{2}})-(?P<month>[A-Z][a-z]+)-(?P<year>[0-9]{{2}}) {_CLOCK} GMT",
    rf"[A-Z][a-z]+ (?P<month>[A-Z][a-z]+) (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def is_fresh(image: Image, now: float) -> bool:
    """Tell whether the image needs no request (RFC 9111, 4.2); with our clock set back, nothing is fresh."""
    return image.fresh_until is not None and image.checked <= now < image.fresh_until


def fresh_until(headers: Headers, requested: float, received: float) -> float | None:
    """Return when the response's explicit lifetime ends, by our clock (RFC 9111, 4.2.1 to 4.2.3).

    ``requested`` and ``received`` are our clock's times, in seconds, before the request and after the headers. None: no
    explicit lifetime, one that must not be used, or one that is malformed; there is no heuristic (4.2.2). With ``Vary:
    *``, it is ``NEVER``.

    >>> fresh_until({"cache-control": "max-age=60", "age": "10"}, requested=999.0, received=1000.0)
    1049.0
    >>> fresh_until({"cache-control": "max-age=60, no-cache"}, requested=999.0, received=1000.0)
    """
    if "*" in _members(headers.get("vary", "")):
        return NEVER
    lifetime = _lifetime(headers, received)
    if lifetime is None:
        return None
    age = _age(headers, requested, received)
    return None if age is None else received + lifetime - age


def validators(headers: Headers) -> Validators:
    """Return the response's validators byte for byte, less what may not be sent back (RFC 9110, 8.8).

    >>> validators({"etag": 'W/"1a"', "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT"})[:2]
    ('W/"1a"', 'Sun, 06 Nov 1994 08:49:37 GMT')
    >>> validators({"etag": "no-quotes"})[:2]
    (None, None)
    """
    return Validators(_sound(headers.get("etag"), _ENTITY_TAG), _sound(headers.get("last-modified"), _FIELD_TEXT))


def condition(validators: Validators) -> dict[str, str]:
    """Return the header fields that make a request conditional (RFC 9110, 13.1.2 and 13.1.3).

    >>> condition(Validators(etag='"1a"'))
    {'If-None-Match': '"1a"'}
    """
    fields = {}
    if validators.etag is not None:
        fields["If-None-Match"] = validators.etag
    if validators.last_modified is not None:
        fields["If-Modified-Since"] = validators.last_modified
    return fields


def modified_time(last_modified: str | None, now: float) -> float | None:
    """Return Last-Modified in seconds since the epoch, where it is a time that a file may bear (RFC 9110, 8.8.2).

    Clocks at zero and servers that answer with a far future are passed over, like everything that is no date.

    >>> modified_time("Sun, 06 Nov 1994 08:49:37 GMT", now=1e9)
    784111777.0
    >>> modified_time("Thu, 01 Jan 1970 00:00:00 GMT", now=1e9)
    """
    time = _epoch(last_modified or "")
    return time if time is not None and _DAY < time <= now + _DAY else None


def http_date(timestamp: float) -> str:
    """Return seconds since the epoch as an IMF-fixdate (RFC 9110, 5.6.7), held within 1970 and 9999.

    >>> http_date(784111777)
    'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    # Its import takes longer than looking up a thousand fresh images, which need no date.
    from email.utils import formatdate

    return formatdate(min(max(timestamp, 0.0), _LAST_SECOND), usegmt=True)


def renewed(image: Image, headers: Headers, requested: float, received: float) -> NotModified | None:
    """Return what a 304 makes of what is stored with an image (RFC 9111, 4.3.4).

    Fields that came replace the stored ones; those that did not come stay. None: the 304 speaks of another version than
    ours (its ETag does not match by the weak comparison of RFC 9110, 8.8.3.2, or is none that we know, or without one
    its Last-Modified: it may have gone back), so it tells nothing about our file.
    """
    ours = image.validators
    usual = ours.etag == headers.get("etag") and ours.last_modified == headers.get("last-modified")
    merged = ours if usual else _merged(image, validators(headers))
    if merged is None:
        return None
    return NotModified(image, merged, _renewed_lifetime(image.fresh_until, headers, requested, received), received)


def retry_after(headers: Headers, received: float) -> float | None:
    """Return for how many seconds a server asks to be left alone (RFC 9110, 10.2.3); None for nonsense.

    A date is taken by the server's own clock, where the response tells it. Less than a second, or a time that is over,
    counts as a second: it was said by a server that is busy.

    >>> retry_after({"retry-after": "120"}, received=0.0), retry_after({"retry-after": "0"}, received=0.0)
    (120.0, 1.0)
    >>> retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, received=10.0)
    50.0
    >>> retry_after({"retry-after": "soon"}, received=0.0)
    """
    value = headers.get("retry-after", "").strip()
    seconds = _delta_seconds(value)
    if seconds is None:
        date = _epoch(value)
        if date is None:
            return None
        seconds = date - _date(headers, received)
    return max(1.0, seconds)


def is_resumable(headers: Headers) -> bool:
    """Whether a cut-off body may be continued: by a strong ETag, or without any by a strong date.

    RFC 9110, 13.1.5 and 14.3; a date is strong where it is a minute older than the response (8.8.2.2), by which a file
    that is written twice within a second has come to rest.

    >>> [is_resumable({"accept-ranges": "bytes", "etag": etag}) for etag in ('"1a"', 'W/"1a"')]
    [True, False]
    """
    if "bytes" not in _members(headers.get("accept-ranges", "")) and "content-range" not in headers:
        return False
    ours = validators(headers)
    return ours.etag.startswith('"') if ours.etag is not None else _has_strong_date(headers)


def _merged(image: Image, theirs: Validators) -> Validators | None:
    ours = image.validators
    if ours.etag and theirs.etag:
        same = ours.etag.removeprefix("W/") == theirs.etag.removeprefix("W/")
    elif theirs.etag and not theirs.last_modified and image.sha256 is None:
        return ours  # All that is known of what another program saved is its time; nor does that program know more.
    elif theirs.etag:
        # It may be that of an older version, which has not been modified since ours either.
        same = theirs.last_modified is not None and theirs.last_modified == ours.last_modified
    else:
        same = ours.last_modified is None or theirs.last_modified in (None, ours.last_modified)
    if not same:
        return None
    return ours._replace(etag=theirs.etag or ours.etag, last_modified=theirs.last_modified or ours.last_modified)


def _renewed_lifetime(end: float | None, headers: Headers, requested: float, received: float) -> float | None:
    """Return when the lifetime ends after a 304: what forbade one before still does, if no field takes its place."""
    if not ("cache-control" in headers or "expires" in headers or "vary" in headers):
        return end
    renewed = fresh_until(headers, requested, received)
    if renewed == NEVER or (end == NEVER and "vary" not in headers):
        return NEVER
    known = None if end == NEVER else end
    return renewed if "cache-control" in headers or ("expires" in headers and known is not None) else known


def _lifetime(headers: Headers, received: float) -> float | None:
    """``max-age``, else Expires less Date (RFC 9111, 4.2.1); ``s-maxage`` is for shared caches alone."""
    directives = _directives(headers.get("cache-control", ""))
    if directives is None or "no-cache" in directives or "no-store" in directives:
        return None
    if "max-age" not in directives:
        expires = _epoch(headers.get("expires", ""))
        return None if expires is None else min(expires - _date(headers, received), float(_DELTA_CAP))
    return _delta_seconds(directives["max-age"])


def _age(headers: Headers, requested: float, received: float) -> float | None:
    """``corrected_initial_age`` of RFC 9111, 4.2.3, in seconds; None for an Age that makes no sense."""
    told = _delta_seconds(headers.get("age", "0"))
    if told is None:
        return None
    apparent = max(0.0, received - _date(headers, received))
    return max(apparent, told + max(0.0, received - requested))


def _has_strong_date(headers: Headers) -> bool:
    modified, date = _epoch(headers.get("last-modified", "")), _epoch(headers.get("date", ""))
    return "etag" not in headers and modified is not None and date is not None and date - modified >= _STRONG


def _date(headers: Headers, received: float) -> float:
    """When the response was made; RFC 9110, 6.6.1: without a valid Date, when it came."""
    date = _epoch(headers.get("date", ""))
    return received if date is None else date


def _directives(value: str) -> dict[str, str] | None:
    """Parse Cache-Control (RFC 9111, 5.2); None where it is malformed or gives one directive two values.

    >>> _directives('Public, max-age="60"')
    {'public': '', 'max-age': '60'}
    >>> _directives("max-age=60, max-age=90")
    """
    directives: dict[str, str] = {}
    value = value.strip(" \t,")
    position = 0
    while position < len(value):
        match = _DIRECTIVE.match(value, position)
        if match is None:
            return None
        argument = match[2] or match[3] or ""
        if directives.setdefault(match[1].lower(), argument) != argument:
            return None
        position = match.end()
    return directives


def _delta_seconds(text: str) -> float | None:
    """Parse RFC 9111's delta-seconds, of any length (``int`` refuses to read more than 4,300 digits)."""
    text = text.strip()
    if not _DELTA_SECONDS.fullmatch(text):
        return None
    digits = text.lstrip("0") or "0"
    return float(_DELTA_CAP if len(digits) > 10 else min(int(digits), _DELTA_CAP))


@functools.lru_cache(256)
def _epoch(text: str) -> float | None:
    """Parse one of the three forms of HTTP-date (RFC 9110, 5.6.7) into seconds since the epoch.

    Not ``email.utils``, which reads two dates as one, a 31st of February, and 25:61 o'clock.
    """
    from datetime import UTC, datetime

    match = next(filter(None, (re.fullmatch(form, text.strip()) for form in _DATES)), None)
    if match is None or match["month"] not in _MONTHS:
        return None
    year, month = int(match["year"]), _MONTHS.index(match["month"]) + 1
    if len(match["year"]) == 2:
        year += 1900 if year > 68 else 2000
    try:
        day = datetime(year, month, int(match["day"]), tzinfo=UTC).timestamp()
    except ValueError:
        return None
    return day + int(match["hour"]) * 3600 + int(match["minute"]) * 60 + int(match["second"])


def _members(value: str) -> set[str]:
    return {member.strip().lower() for member in value.split(",")}


def _sound(value: str | None, form: re.Pattern[str]) -> str | None:
    return value if value is not None and len(value) <= _VALIDATOR_MAX and form.fullmatch(value) else None

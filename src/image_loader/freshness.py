"""What response headers say by the rules of HTTP: whether an image is fresh, what to ask with, when to retry."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from image_loader.model import Image, Lifetime, NotModified, Validators

Headers = Mapping[str, str]
"""Names in lower case; the lines of a repeated field joined with a comma and a space (RFC 9110, 5.3)."""

_NONE = -1.0
"""Seconds: a lifetime that is over before it begins."""

_NOTHING_STORED = Lifetime()

_DELTA_CAP = 2**31
"""Seconds; RFC 9111, 1.2.2: what is larger counts as this."""

_VALIDATOR_MAX = 1024
"""Characters. Longer validators are legal, but a million of them would be neither small nor quick to look up."""

_DAY = 86400.0
_STRONG = 60.0
"""Seconds by which Last-Modified has to be older than Date, to tell two versions apart for certain."""

_LAST_SECOND = 253402300799.0
"""9999-12-31 23:59:59, the last that HTTP's format can tell."""

# Compiled when they are first used, like all that only answers of servers need: many runs ask for nothing.
_STRONG_TAG = r'"[\x21\x23-\x7e\x80-\xff]*"'
_QUOTED = r'"[^"]*"'
_FIELD_TEXT = re.compile(r"[\t\x20-\x7e\x80-\xff]+")
_DIRECTIVE = r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?(?:[\s,]+|$)"""

_CLOCK = r"(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9])"
_DATES = (
    rf"[A-Z][a-z]+, (?P<day>[0-9]{{1,2}}) (?P<month>[A-Z][a-z]+) (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
    rf"[A-Z][a-z]+, (?P<day>[0-9]{{2}})-(?P<month>[A-Z][a-z]+)-(?P<year>[0-9]{{2}}) {_CLOCK} GMT",
    rf"[A-Z][a-z]+ (?P<month>[A-Z][a-z]+) (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def is_fresh(image: Image, now: float) -> bool:
    """Tell whether the image needs no request (RFC 9111, 4.2); with our clock set back, nothing is fresh."""
    return image.checked <= now < end(image.lifetime, image.checked)


def end(lifetime: Lifetime, checked: float) -> float:
    """Return when a lifetime ends, by our clock (RFC 9111, 4.2.1); where there is none, that is before ``checked``.

    ``checked`` is when the server's last answer came. There is no heuristic (4.2.2).
    """
    seconds, expires, varies, date, age, redirects_end = lifetime
    if seconds is None:
        seconds = _NONE if expires is None else min(expires - date, float(_DELTA_CAP))
    own = checked + (_NONE if varies else seconds) - age
    return own if redirects_end is None else min(own, redirects_end)


def lifetime(
    headers: Headers,
    requested: float,
    received: float,
    redirects_end: float | None = None,
    stored: Lifetime = _NOTHING_STORED,
) -> Lifetime:
    """Return what a response says about how long it is fresh.

    ``requested`` and ``received`` are our clock's times, in seconds, before the request and after the headers. A 304
    renews the ``stored`` lifetime (RFC 9111, 4.3.4): fields that it does not have stay, its date and age count anew.

    >>> found = lifetime({"cache-control": "max-age=60", "age": "10"}, requested=999.0, received=1000.0)
    >>> end(found, 1000.0)
    1049.0
    """
    date = _date(headers, received)
    max_age = _max_age(headers["cache-control"]) if "cache-control" in headers else stored.max_age
    expires = _epoch(headers["expires"]) if "expires" in headers else stored.expires
    varies = "*" in _members(headers["vary"]) if "vary" in headers else stored.varies
    # corrected_initial_age of RFC 9111, 4.2.3.
    age = max(0.0, received - date, _age_value(headers) + max(0.0, received - requested))
    return Lifetime(max_age, expires, varies, date, age, redirects_end)


def redirects_end(redirects: Iterable[tuple[Headers, float, float]]) -> float | None:
    """Return when the first of these redirects expires: then it may lead elsewhere. None without redirects.

    Each is given by its headers and the times of ``lifetime``.
    """
    ends = (end(lifetime(headers, requested, received), received) for headers, requested, received in redirects)
    return min(ends, default=None)


def validators(headers: Headers) -> Validators:
    """Return the response's validators byte for byte, without those that may not be sent back (RFC 9110, 8.8).

    One that came twice is sent back once.

    >>> validators({"etag": 'W/"1a"', "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT"})[:2]
    ('W/"1a"', 'Sun, 06 Nov 1994 08:49:37 GMT')
    >>> validators({"etag": "no-quotes"})[:2], validators({"etag": '"twice", "twice"'})[:2]
    (('no-quotes', None), ('"twice"', None))
    """
    etag = _once(headers.get("etag"))
    if etag is not None and _is_ambiguous(etag):
        etag = None
    last_modified = _once(headers.get("last-modified"))
    return Validators(etag, None if last_modified == "*" else last_modified)


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
    """Return Last-Modified in seconds since the epoch, if a file can have this time (RFC 9110, 8.8.2).

    Times near the epoch and far in the future are ignored, like everything that is not a date.

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


def renewed(
    image: Image, headers: Headers, requested: float, received: float, redirects_end: float | None = None
) -> NotModified | None:
    """Return what a 304 makes of what is stored with an image (RFC 9111, 4.3.4).

    Fields that came replace the stored ones; those that did not come stay. None if the 304 is about another version, so
    that it says nothing about our file: its ETag differs from ours (by the weak comparison of RFC 9110, 8.8.3.2). If we
    or the 304 have none, Last-Modified decides. Of a file that another program saved, any ETag will do.
    """
    ours = image.validators
    usual = ours.etag == headers.get("etag") and ours.last_modified == headers.get("last-modified")
    merged = ours if usual else _merged(image, validators(headers))
    if merged is None:
        return None
    return NotModified(image, merged, lifetime(headers, requested, received, redirects_end, image.lifetime), received)


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

    RFC 9110, 13.1.5 and 14.3; a date is strong if it is a minute older than the response (8.8.2.2), since a file may be
    written twice within one second.

    >>> [is_resumable({"accept-ranges": "bytes", "etag": etag}) for etag in ('"1a"', 'W/"1a"')]
    [True, False]
    """
    if "bytes" not in _members(headers.get("accept-ranges", "")) and "content-range" not in headers:
        return False
    etag = _once(headers.get("etag"))
    return _has_strong_date(headers) if etag is None else re.fullmatch(_STRONG_TAG, etag) is not None


def _merged(image: Image, theirs: Validators) -> Validators | None:
    ours = image.validators
    if ours.etag and theirs.etag:
        same = _opaque(ours.etag) == _opaque(theirs.etag)
    elif theirs.etag and not theirs.last_modified and image.media_type is None:
        return ours  # Of a file that another program saved, only the time is known.
    elif theirs.etag:
        # The 304 may be about an older version, which has not been modified since ours either.
        same = theirs.last_modified is not None and theirs.last_modified == ours.last_modified
    else:
        same = ours.last_modified is None or theirs.last_modified in (None, ours.last_modified)
    if not same:
        return None
    return ours._replace(etag=theirs.etag or ours.etag, last_modified=theirs.last_modified or ours.last_modified)


@functools.lru_cache(256)
def _max_age(cache_control: str) -> float | None:
    """``max-age``, negative where no lifetime may be used (RFC 9111, 5.2.2); ``s-maxage`` is for shared caches."""
    if not cache_control:
        return None
    directives = _directives(cache_control)
    if directives is None or "no-cache" in directives or "no-store" in directives:
        return _NONE
    if "max-age" not in directives:
        return None
    seconds = _delta_seconds(directives["max-age"])
    return _NONE if seconds is None else seconds


def _has_strong_date(headers: Headers) -> bool:
    modified, date = _epoch(headers.get("last-modified", "")), _epoch(headers.get("date", ""))
    return "etag" not in headers and modified is not None and date is not None and date - modified >= _STRONG


def _date(headers: Headers, received: float) -> float:
    """When the response was made; RFC 9110, 6.6.1: without a valid Date, when it came."""
    date = _epoch(headers.get("date", ""))
    return received if date is None else date


def _age_value(headers: Headers) -> float:
    """``Age``; of several, the first counts, and one that makes no sense is ignored (RFC 9111, 5.1)."""
    if "age" not in headers:
        return 0.0
    return _delta_seconds(headers["age"].partition(",")[0]) or 0.0


def _directives(value: str) -> dict[str, str] | None:
    """Parse Cache-Control (RFC 9111, 5.2); None where it is malformed or gives one directive two values.

    >>> _directives('Public, max-age="60"')
    {'public': '', 'max-age': '60'}
    >>> _directives("max-age=60, max-age=90")
    """
    directives: dict[str, str] = {}
    value = value.strip(" \t,")
    position, directive = 0, re.compile(_DIRECTIVE)
    while position < len(value):
        match = directive.match(value, position)
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
    if not (text.isascii() and text.isdigit()):
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


def _once(value: str | None) -> str | None:
    """Return a validator as it can be sent back: it came once or repeatedly, and fits into a header line."""
    if value is None or len(value) > 2 * _VALIDATOR_MAX + 2:
        return None
    if ", " in value:
        # In two copies of a text, it is found again after its first part if it is that part several times over; else it
        # is found where the second copy begins.
        parted = value + ", "
        again = (parted + parted).find(parted, 3)
        value = parted[: again - 2]
    return value if len(value) <= _VALIDATOR_MAX and _FIELD_TEXT.fullmatch(value) else None


def _is_ambiguous(etag: str) -> bool:
    """Whether an ETag, as a condition, would be a list of several, or hold for any version (RFC 9110, 13.1.2)."""
    if "," not in etag:
        return etag.strip() == "*"
    return "*" in _members(etag) or ('"' in etag and "," in re.sub(_QUOTED, "", etag))


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')

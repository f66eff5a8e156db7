"""One URL: parsed strictly, in one canonical spelling, and shown without its secrets (RFC 3986, RFC 9110 section 4)."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import NamedTuple

LONGEST_SHOWN = 300
"""Characters of a URL, a host or a detail that people are shown."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?:(?P<userinfo>[^/?#]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]]+)(?::(?P<port>[0-9]*))?(?P<path>[/?][^#]*)?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_HOST = 253  # characters; what IDNA makes of a name is hardly ever shorter
_HOST = re.compile(r"(?:[0-9a-z_~!$&'()*+,;=-]{1,63}\.)*[0-9a-z_~!$&'()*+,;=-]{1,63}\.?")
_TO_ENCODE = re.compile(r"[^!$%&'()*+,\-./0-9:;=?@A-Z_a-z~\[\]|]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DIGEST_SIZE = 16
# Those of Amazon S3 and CloudFront, Google Cloud Storage and Azure. Compiled with the first redirect.
_SIGNATURE = r"(?:[^&]*&)*(?:(?:X-Amz-|X-Goog-)?Signature|sig)=.*"
_PART_OF_SIGNATURE = (
    r"(?:X-Amz|X-Goog)-[^=]*=.*|(?:AWSAccessKeyId|GoogleAccessId|Key-Pair-Id|Policy|Signature|Expires)=.*"
    r"|(?:sig|se|st|ske|skt)=.*"
)
# Few texts have any of these, so they are compiled when the first one does; it takes as long as fifty URLs.
_CONTROL = r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_SHOWN_AS_ESCAPE = (
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    r"\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class Url(NamedTuple):
    """One http or https URL.

    ``text`` is the line as given. ``origin`` is its scheme, host and port, in lower case, without a default port: what
    connections, limits and secrets belong to (RFC 9110, 4.3.1). ``path`` is the request target in origin form (path and
    query), percent-encoded to ASCII.

    >>> parse("HTTP://user:pw@Example.com:80/a b.jpg?q#f")[1:]
    ('http://example.com', 'user:pw', '/a%20b.jpg?q')
    """

    text: str
    origin: str
    userinfo: str
    path: str

    @property
    def authority(self) -> str:
        """``host`` or ``host:port``."""
        return self.origin.partition("://")[2]

    @property
    def canonical(self) -> str:
        """The spelling by which URLs are compared; that of an ordinary URL is its text.

        >>> parse("HTTP://user:pw@Example.com:80/a b.jpg?q#f").canonical
        'http://user:pw@example.com/a%20b.jpg?q'
        """
        if not self.userinfo:
            return self.origin + self.path
        return self.origin.replace("://", f"://{self.userinfo}@", 1) + self.path

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical spelling, in hex."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def resource(self) -> bytes:
        """The same of the URL without a signature, which is another one each time that a redirect leads there.

        >>> signed = "https://cdn.example/a.jpg?id=1&X-Amz-Date=20261125T000000Z&X-Amz-Signature={}"
        >>> parse(signed.format(1)).resource == parse(signed.format(2)).resource == parse(signed[:30]).digest
        True
        """
        path, _, query = self.path.partition("?")
        if not re.fullmatch(_SIGNATURE, query):
            return self.digest
        kept = "&".join(field for field in query.split("&") if not re.fullmatch(_PART_OF_SIGNATURE, field))
        return self._replace(path=f"{path}?{kept}" if kept else path).digest

    @property
    def digest(self) -> bytes:
        """The first 16 bytes of that SHA-256: the URL's key in the index."""
        return hashlib.sha256(self.canonical.encode()).digest()[:_DIGEST_SIZE]


def parse(text: str) -> Url:
    """Parse an absolute http or https URL; ``ValueError`` says what is wrong with it, in words free of secrets."""
    if not text.isprintable() and re.search(_CONTROL, text):
        raise ValueError("control character or undecodable byte in the URL")
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(_fault(text))
    scheme, userinfo, host, port, path = match.groups("")
    if path[:1] != "/":
        path = "/" + path
    if not path.isascii() or _TO_ENCODE.search(path):
        path = _TO_ENCODE.sub(_percent_encoded, path)
    return Url(text, _origin(scheme, host, port), userinfo, path)


def redacted(text: str) -> str:
    """Return a URL fit for a log: no user, password, query or fragment, and nothing that a terminal would obey.

    >>> redacted("https://user:pw@host/a.jpg?signature=1")
    'https://host/a.jpg?…'
    """
    match = _URL.fullmatch(text)
    if match is None:
        # Where the secrets of what is no URL begin and end, nobody can tell.
        return "…" if "@" in text else printable(re.split(r"[?#]", text)[0]) + ("?…" if "?" in text else "")
    scheme, _, host, port, path = match.groups()
    path, query, _ = (path or "").partition("?")
    return printable(f"{scheme}://{host}{':' + port if port else ''}{path}") + ("?…" if query else "")


def printable(text: str) -> str:
    r"""Escape control and bidirectional characters, so that no hostile text reaches the terminal as such.

    >>> printable("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    if text.isprintable():
        return text
    return re.sub(_SHOWN_AS_ESCAPE, lambda match: match[0].encode("unicode_escape").decode(), text)


def shortened(text: str) -> str:
    """Return the beginning of a text that is longer than ``LONGEST_SHOWN``, and any other whole.

    >>> shortened("a.jpg"), len(shortened(1000 * "a")), shortened(1000 * "a")[-3:]
    ('a.jpg', 300, 'aa…')
    """
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


@functools.lru_cache(1024)
def _origin(scheme: str, host: str, port: str) -> str:
    scheme, host = scheme.lower(), host.lower()
    if len(host) > _LONGEST_HOST or (host.isascii() and host[0] != "[" and not _HOST.fullmatch(host)):
        raise ValueError("bad host name")
    if not port:
        return f"{scheme}://{host}"
    number = int(port) if len(port) <= 5 else 0
    if not 0 < number < 65536:
        raise ValueError("bad port")
    return f"{scheme}://{host}" if number == _DEFAULT_PORTS[scheme] else f"{scheme}://{host}:{number}"


def _fault(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "no scheme: a URL starts with http:// or https://"
    if scheme.lower() not in _DEFAULT_PORTS:
        return "scheme other than http and https"
    _, colon, port = rest.partition("/")[0].rpartition("@")[2].rpartition(":")
    return "bad port" if colon and "]" not in port else "bad host name"

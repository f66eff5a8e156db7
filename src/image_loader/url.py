"""One URL: read as browsers read it, in one canonical spelling, and shown without its secrets (WHATWG URL)."""

# No annotation is a string here: see ``model``.
import functools
import hashlib
import re
from typing import NamedTuple

LONGEST_SHOWN = 300
"""Characters of a URL, a host or a detail that people are shown."""

# Most URLs are in their canonical spelling. One that matches this is, apart from host, port and dot segments.
_ORDINARY = re.compile(
    r"(https?)://([0-9A-Za-z.-]+)(?::([0-9]*))?(/[!$-;=@-\[\]_a-z|~]*(?:\?[!$-&(-;=?-~]*)?)?(?:\#[!-~]*)?"
)
# What is percent-encoded in paths and queries alike, and mostly all that a URL needs. To compile it takes 2 ms, and
# many lists have no such URL.
_TO_ENCODE = '[ "<>\xa0-\ud7ff\ue000-\U0010ffff]+'
_URL = r"(?is)(https?):[/\\]*([^/\\?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?"
_AUTHORITY = r"(?s)(?:(.*)@)?(\[[^\[\]@]*\]|[^:\[\]@]*)(?::([0-9]*))?"
_SHOWABLE = (
    r"(?is)(https?):[/\\]*(?:[^/\\?#]*@)?(\[[0-9a-f:.]+\]|[^/\\?#@:\[\]]+)(:[0-9]*)?"
    r"([/\\][^?#]*)?(\?[^#]*)?(?:#.*)?"
)
_C0_AND_SPACE = "".join(map(chr, range(33)))
# The percent-encode sets of the WHATWG for the parts of an http URL, each by the characters that are left alone.
_TO_ENCODE_IN_USERINFO = r"[^!$%&'()*+,\-.0-9A-Z_a-z~]"
_TO_ENCODE_IN_PATH = r"[^!$-;=@-\[\]_a-z|~]"
_TO_ENCODE_IN_QUERY = r"[^!$-&(-;=?-~]"
_LONGEST_HOST = 253  # characters (RFC 1035, 2.3.4)
_HOST = re.compile(r"(?:[0-9a-z_~!$&'()*+,;=-]{1,63}\.)*[0-9a-z_~!$&'()*+,;=-]{1,63}\.?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DIGEST_SIZE = 16
# What marks a query as signed, and what then belongs to the signature: Amazon S3 and Google Cloud Storage (version 4,
# version 2), Amazon CloudFront, Google's CDN, Alibaba OSS, Azure. No other field does.
_SIGNATURES = (
    (("X-Amz-Signature",), r"X-Amz-(?:Algorithm|Credential|Date|Expires|Security-Token|Signature|SignedHeaders)"),
    (("X-Goog-Signature",), r"X-Goog-(?:Algorithm|Credential|Date|Expires|Signature|SignedHeaders)"),
    (("Signature", "AWSAccessKeyId", "Expires"), r"Signature|AWSAccessKeyId|Expires|x-amz-security-token"),
    (("Signature", "GoogleAccessId", "Expires"), r"Signature|GoogleAccessId|Expires"),
    (("Signature", "Key-Pair-Id"), r"Signature|Key-Pair-Id|Expires|Policy|Hash-Algorithm"),
    (("Signature", "KeyName", "Expires"), r"Signature|KeyName|Expires"),
    (("Signature", "OSSAccessKeyId", "Expires"), r"Signature|OSSAccessKeyId|Expires|security-token"),
    (("sig", "sv", "se"), r"sig|se|st|ske|skt"),
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
    def host(self) -> str:
        """The host alone, in lower case; an IPv6 address in its brackets.

        >>> parse("http://Example.com:8080/a.jpg").host, parse("http://[::1]/a.jpg").host
        ('example.com', '[::1]')
        """
        host, colon, port = self.authority.rpartition(":")
        return host if colon and "]" not in port else self.authority

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
    def identity(self) -> str:
        """The canonical spelling without its signature, which differs each time: this identifies an image.

        >>> signed = "https://cdn.example/a.jpg?id=1&X-Amz-Date=20261125T000000Z&X-Amz-Signature={}"
        >>> parse(signed.format(1)).identity == parse(signed.format(2)).identity
        True
        >>> parse(signed.format(1)).identity
        'https://cdn.example/a.jpg?id=1'
        """
        if "ignature=" not in self.path and "sig=" not in self.path:
            return self.canonical
        return self._replace(path=_without_signature(self.path)).canonical

    @property
    def sha256(self) -> str:
        """SHA-256 of the identity, in hex."""
        return hashlib.sha256(self.identity.encode()).hexdigest()

    @property
    def digest(self) -> bytes:
        """The first 16 bytes of that SHA-256: the URL's key in the index."""
        return hashlib.sha256(self.identity.encode()).digest()[:_DIGEST_SIZE]


@functools.lru_cache(maxsize=4096)
def part(host: str, count: int) -> int:
    """Return to which of ``count`` parts the URLs of a host belong: the same on every machine, in every version.

    >>> part("example.com", 256), part("example.com", 1)
    (71, 0)
    """
    return int.from_bytes(hashlib.sha256(host.encode()).digest()) % count


def parse(text: str) -> Url:
    """Parse an absolute http or https URL; ``ValueError`` says what is wrong with it, in words free of secrets.

    Differences from the WHATWG: control characters within a URL are refused, and so are hosts that no name look-up
    takes and port 0. A host's label that begins with ``xn--`` is kept as it is.
    """
    match = _ORDINARY.fullmatch(text) or _ORDINARY.fullmatch(
        re.sub(_TO_ENCODE, _percent_encoded, text.strip(_C0_AND_SPACE))
    )
    if match is None or "/." in text or "/%2" in text:
        return _parse_unusual(text)
    scheme, host, port, path = match.groups("")
    return Url(text.strip(_C0_AND_SPACE), _origin(scheme, host, port), "", path or "/")


def resolve(base: Url, reference: bytes) -> Url:
    r"""Return the URL that a reference found at ``base`` leads to; ``ValueError`` as from ``parse``.

    Bytes beyond ASCII are percent-encoded as they are, whatever their encoding. A reference that names no user has that
    of ``base`` as long as it names no host either.

    >>> base = parse("http://h/way/2015/http://e.com/a.png?q")
    >>> resolve(base, b"b.png").canonical, resolve(base, b"//e.com/jos\xe9.png").canonical
    ('http://h/way/2015/http://e.com/b.png', 'http://e.com/jos%E9.png')
    """
    text = re.sub(r"[\x80-\xff]", lambda byte: f"%{ord(byte[0]):02X}", reference.decode("latin-1")).strip(_C0_AND_SPACE)
    scheme = base.origin.partition(":")[0]
    if match := re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):
        # Browsers take "http:b.png" for relative where the base is http, too.
        if match[0].lower() != scheme + ":":
            return parse(text)
        text = text[match.end() :]
    if re.match(r"[/\\]{2}", text):
        return parse(f"{scheme}:{text}")
    path, mark, query = base.path.partition("?")
    if text[:1] in ("", "#"):
        path += mark + query
    elif text[0] in "/\\":
        path = ""
    elif text[0] != "?":
        path = path[: path.rindex("/") + 1]
    return parse(base._replace(path=path).canonical + text)


def redacted(text: str) -> str:
    """Return a URL fit for a log: no user, password, query or fragment, and nothing that a terminal would obey.

    >>> redacted("https://user:pw@host/a.jpg?signature=1")
    'https://host/a.jpg?…'
    """
    match = re.fullmatch(_SHOWABLE, text)
    if match is None:
        # It is not a URL: nobody can tell where its secrets begin and end.
        return "…" if "@" in text else printable(re.split(r"[?#]", text)[0]) + ("?…" if "?" in text else "")
    scheme, host, port, path, query = match.groups("")
    return printable(f"{scheme}://{host}{port if port != ':' else ''}{path}") + ("?…" if query[1:] else "")


def printable(text: str) -> str:
    r"""Escape control and bidirectional characters, so that no hostile text reaches the terminal as such.

    >>> printable("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    if text.isprintable():
        return text
    return re.sub(_SHOWN_AS_ESCAPE, lambda match: match[0].encode("unicode_escape").decode(), text)


def shortened(text: str) -> str:
    """Return the text, or its beginning if it is longer than ``LONGEST_SHOWN``.

    >>> shortened("a.jpg"), len(shortened(1000 * "a")), shortened(1000 * "a")[-3:]
    ('a.jpg', 300, 'aa…')
    """
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def _parse_unusual(text: str) -> Url:
    text = text.strip(_C0_AND_SPACE)
    if not text.isprintable() and re.search(_CONTROL, text):
        raise ValueError("control character or undecodable byte in the URL")
    match = re.fullmatch(_URL, text)
    if match is None:
        raise ValueError(_fault(text))
    scheme, authority, path, query = match.groups("")
    parts = re.fullmatch(_AUTHORITY, authority)
    if parts is None:
        raise ValueError(_fault_of_authority(authority))
    userinfo, host, port = parts.groups("")
    path = _encoded(_TO_ENCODE_IN_PATH, _without_dots(path)) + _encoded(_TO_ENCODE_IN_QUERY, query)
    return Url(text, _origin(scheme, host, port), _userinfo(userinfo), path)


def _without_signature(path: str) -> str:
    path, _, query = path.partition("?")
    fields = query.split("&")
    names = {field.partition("=")[0] for field in fields}
    for marks, parts in _SIGNATURES:
        if names.issuperset(marks):
            fields = [field for field in fields if not re.fullmatch(parts, field.partition("=")[0])]
    return path + "?" * bool(fields) + "&".join(fields)


def _encoded(to_encode: str, text: str) -> str:
    return re.sub(to_encode, _percent_encoded, text)


def _percent_encoded(match: re.Match[str]) -> str:
    return "%" + match[0].encode().hex("%").upper()


def _userinfo(text: str) -> str:
    """Encode user and password; an empty password is dropped with its colon."""
    user, _, password = text.partition(":")
    user, password = _encoded(_TO_ENCODE_IN_USERINFO, user), _encoded(_TO_ENCODE_IN_USERINFO, password)
    return f"{user}:{password}" if password else user


def _without_dots(path: str) -> str:
    r"""Return an absolute path with slashes alone and no dot segments.

    >>> _without_dots(r"/a/./b\..\%2E%2e/c/.."), _without_dots("/../a//b")
    ('/', '/a//b')
    """
    path = path.replace("\\", "/") or "/"
    if "/." not in path and "/%2" not in path:
        return path
    kept: list[str] = []
    for segment in path[1:].split("/"):
        dots = re.sub("(?i)%2e", ".", segment)
        if dots == "..":
            del kept[-1:]
        elif dots != ".":
            kept.append(segment)
    if dots in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


@functools.lru_cache(1024)
def _origin(scheme: str, host: str, port: str) -> str:
    scheme, host = scheme.lower(), _host(host)
    digits = port.lstrip("0")
    if not port or digits == str(_DEFAULT_PORTS[scheme]):
        return f"{scheme}://{host}"
    if not digits or len(digits) > 5 or int(digits) > 65535:
        raise ValueError("bad port")
    return f"{scheme}://{host}:{digits}"


def _host(text: str) -> str:
    """Return a host in its one spelling (WHATWG, host parser); ``ValueError`` if no look-up takes it."""
    if text[:1] == "[":
        return _ipv6(text[1:-1])
    host = text.lower() if text.isascii() and "%" not in text else _domain_to_ascii(text)
    if len(host) > _LONGEST_HOST or not _HOST.fullmatch(host):
        raise ValueError("bad host name")
    return _ipv4(host) if ends_in_number(host) else host


def ends_in_number(host: str) -> bool:
    """Whether a host is no name, but an IPv4 address in some spelling, or nothing at all (WHATWG, host parser).

    >>> ends_in_number("0x7f.1"), ends_in_number("10.0.0.1."), ends_in_number("a.0x"), ends_in_number("1.example")
    (True, True, True, False)
    """
    last = host.removesuffix(".").rpartition(".")[2]
    return last[:1].isdigit() and (last.isdigit() or re.fullmatch("0x[0-9a-f]*", last) is not None)


def _domain_to_ascii(text: str) -> str:
    """Apply UTS 46 as browsers do: not transitional, with emoji, which IDNA 2008 (``idna.encode``) would refuse."""
    from urllib.parse import unquote_to_bytes

    import idna

    try:
        name = idna.uts46_remap(unquote_to_bytes(text).decode(), std3_rules=False)
        return ".".join(label if label.isascii() else _a_label(label) for label in name.split("."))
    except UnicodeError as error:  # idna's own errors among them
        raise ValueError("bad host name") from error


def _a_label(label: str) -> str:
    """Encode a label that is mapped already, if it is valid (UTS 46, 4.1)."""
    import idna

    idna.check_initial_combiner(label)
    idna.check_bidi(label)
    joiners = (place for place, character in enumerate(label) if character in "\u200c\u200d")
    if label.startswith("xn--") or not all(idna.valid_contextj(label, place) for place in joiners):
        raise ValueError("bad host name")
    return "xn--" + label.encode("punycode").decode()


def _ipv4(host: str) -> str:
    """Return an IPv4 address in dotted decimal (WHATWG, IPv4 parser).

    >>> _ipv4("0x7f.1"), _ipv4("017700000001"), _ipv4("10.0.0.1.")
    ('127.0.0.1', '127.0.0.1', '10.0.0.1')
    """
    *first, last = map(_ipv4_number, host.removesuffix(".").split("."))
    if len(first) > 3 or any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        raise ValueError("bad IPv4 address")
    return ".".join(map(str, bytes(first) + last.to_bytes(4 - len(first))))


def _ipv4_number(text: str) -> int:
    match = re.fullmatch(r"0x([0-9a-f]*)|0([0-7]*)|([1-9][0-9]*)", text)
    if match is None:
        raise ValueError("bad IPv4 address")
    return int(match[match.lastindex or 0] or "0", (16, 8, 10)[(match.lastindex or 1) - 1])


def _ipv6(text: str) -> str:
    """Return an IPv6 address in brackets, as RFC 5952 has it, but for dots.

    >>> _ipv6("2001:DB8:0:0:1:0:0:1"), _ipv6("::ffff:1.2.3.4")
    ('[2001:db8::1:0:0:1]', '[::ffff:102:304]')
    """
    import ipaddress

    try:
        packed = ipaddress.IPv6Address(text if "%" not in text else "").packed
    except ValueError:
        raise ValueError("bad IPv6 address") from None
    # Not str() of it: that of an address that holds an IPv4 address differs from Python to Python.
    pieces = [f"{high << 8 | low:x}" for high, low in zip(packed[::2], packed[1::2], strict=True)]
    zeros = max(re.finditer(r"(?<![^:])0(?::0)+(?![^:])", ":".join(pieces)), key=lambda run: len(run[0]), default=None)
    if zeros is None:
        return f"[{':'.join(pieces)}]"
    whole = zeros.string
    return f"[{whole[: zeros.start()].removesuffix(':')}::{whole[zeros.end() :].removeprefix(':')}]"


def _fault(text: str) -> str:
    if "://" in text or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(?![0-9]|/)", text):
        return "scheme other than http and https"
    return "no scheme: a URL starts with http:// or https://"


def _fault_of_authority(authority: str) -> str:
    _, colon, port = authority.rpartition("@")[2].rpartition(":")
    return "bad port" if colon and "]" not in port else "bad host name"

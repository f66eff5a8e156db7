"""URLs: parsed strictly, one canonical spelling each, and no secret in what is shown."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import ada_url
import idna
import idna.idnadata
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_loader.url import Url, parse, printable, redacted, resolve

UNICODE = int(idna.idnadata.__version__.partition(".")[0])
PIECES = st.lists(
    st.sampled_from(
        [
            *"@:/?#[]%\\ .-'\"{|}^`<~,&=_\0\u202e\u2603\u3002\uff0e\ufb00\u0301\u200d\u05d0\uff21éß",
            *("..", "%2e", ".%2E", "http://", "HTTPS:", "http:\\", "user", "host", "a.b", "xn--"),
            *("[::1]", "::1", "1:2", "80", "99999", "127", "0177", "0x7f", "256", "%2F", "%41", "%C3%BC"),
        ]
    ),
    max_size=12,
).map("".join)
HOSTS = st.one_of(
    PIECES,
    st.text(),
    st.text(alphabet=st.characters(min_codepoint=0xA0, max_codepoint=0x3100)),
    st.text(alphabet="0123456789abcdefx.", max_size=12),
    st.text(alphabet="0123456789abcdef:.", max_size=24).map("[{}]".format),
)
TEXTS = st.one_of(st.text(), PIECES, PIECES.map("http://".__add__), st.text().map("http://h/".__add__))


def parsed(text: str) -> Url | None:
    try:
        return parse(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("http://h/a.jpg", "http://h/a.jpg"),
        ("HTTPS://Example.COM/A.jpg", "https://example.com/A.jpg"),
        ("http://h", "http://h/"),
        ("http://h?q=1", "http://h/?q=1"),
        ("http://h/a#fragment", "http://h/a"),
        ("http://h#fragment", "http://h/"),
        ("http://h:80/a", "http://h/a"),
        ("http://h:/a", "http://h/a"),
        ("http://h:00080/a", "http://h/a"),
        ("https://h:443/a", "https://h/a"),
        ("https://h:80/a", "https://h:80/a"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("http://u:p@h/a", "http://u:p@h/a"),
        ("http://h/a b.jpg", "http://h/a%20b.jpg"),
        ("http://h/ä.jpg", "http://h/%C3%A4.jpg"),
        ("http://h/%c3%A4.jpg", "http://h/%c3%A4.jpg"),
        ("http://h/a,b'c\"d", "http://h/a,b'c%22d"),
        ("http://h/a?u=http://x/?y", "http://h/a?u=http://x/?y"),
    ],
)
def test_a_url_has_one_canonical_spelling(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical
    assert parse(text).text == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        # Slashes.
        ("http:/h/x", "http://h/x"),
        ("http:h/x", "http://h/x"),
        ("http:///h/x", "http://h/x"),
        (r"http:\\h\x", "http://h/x"),
        (r"https:/\h/x\a?b\c#d\e", r"https://h/x/a?b\c"),
        ("  http://h/x\x1a\0", "http://h/x"),
        # Dot segments.
        ("http://h/clean/a/../b.png", "http://h/clean/b.png"),
        ("http://h/a/%2e%2e/b.png", "http://h/b.png"),
        ("http://h/a/.%2E/./%2e/b.png", "http://h/b.png"),
        ("http://h/../../b.png", "http://h/b.png"),
        ("http://h/a/b/..", "http://h/a/"),
        ("http://h/a/b/.", "http://h/a/b/"),
        ("http://h/a//../b", "http://h/a/b"),
        ("http://h//a/...", "http://h//a/..."),
        (r"http://h/a\..\b", "http://h/b"),
        ("http://h/a?/../b", "http://h/a?/../b"),
        ("http://h/%2ea/..b/%252e", "http://h/%2ea/..b/%252e"),
        # Percent-encoding.
        ("http://h/a'^`{|}[]?a'^`{|}[]\"<>", "http://h/a'%5E%60%7B|%7D[]?a%27^`{|}[]%22%3C%3E"),
        ("http://h/%zz%?%", "http://h/%zz%?%"),
        ("http://h/a?", "http://h/a?"),
        # User and password.
        ("http://a@b@h/", "http://a%40b@h/"),
        ("http://u:p:q@h/", "http://u:p%3Aq@h/"),
        ("http://u:@h/", "http://u@h/"),
        ("http://:@h/", "http://h/"),
        ("http://@h/", "http://h/"),
        ("http://\xfc:/@h/", "http://xn--tda/@h/"),
        ("http://\xfc:%@h/", "http://%C3%BC:%@h/"),
        # Hosts.
        ("http://\u2603.net/c.png", "http://xn--n3h.net/c.png"),
        ("http://B\xfcCHER.example/", "http://xn--bcher-kva.example/"),
        ("http://fa\xdf.example/", "http://xn--fa-hia.example/"),
        ("http://\u03a3\u03a3.gr/", "http://xn--4xaa.gr/"),
        ("http://\uff25\uff38\u3002o\uff52g/", "http://ex.org/"),
        ("http://example\uff0ecom\uff61/", "http://example.com./"),
        ("http://ex%61mple.%C3%BC/", "http://example.xn--tda/"),
        ("http://a\xadb.net/", "http://ab.net/"),
        ("http://XN--N3H.net/", "http://xn--n3h.net/"),
        ("http://a_b.net./", "http://a_b.net./"),
        # Addresses.
        ("http://127.1/", "http://127.0.0.1/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://0X7F000001/", "http://127.0.0.1/"),
        ("http://017700000001/", "http://127.0.0.1/"),
        ("http://2130706433./", "http://127.0.0.1/"),
        ("http://0x.0x.0/", "http://0.0.0.0/"),
        ("http://\uff11\uff12\uff17.1/", "http://127.0.0.1/"),
        ("http://1.2.3.4.a/", "http://1.2.3.4.a/"),
        ("http://[2001:DB8:0:0:1:0:0:1]/", "http://[2001:db8::1:0:0:1]/"),
        ("http://[1:0:2:0:3:0:4:0]/", "http://[1:0:2:0:3:0:4:0]/"),
        ("http://[0:0:0:0:0:0:0:0]/", "http://[::]/"),
        ("http://[1:0:0::]/", "http://[1::]/"),
        ("http://[::ffff:1.2.3.4]/", "http://[::ffff:102:304]/"),
        # Ports.
        ("http://h:000008080/", "http://h:8080/"),
        ("http://h:65535/", "http://h:65535/"),
    ],
)
def test_a_url_is_read_as_browsers_read_it(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical == browsers(text)


def browsers(text: str, base: str | None = None) -> str | None:
    """Return what a WHATWG parser makes of a URL, without the fragment, which is not sent."""
    try:
        url = ada_url.URL(text, base)
    except ValueError:
        return None
    url.hash = ""
    return url.href if url.protocol in ("http:", "https:") else None


def is_meant(text: str, browsers: str | None) -> bool:
    """Whether there is a reason why we do not read a text as browsers do."""
    if any(unicodedata.ucd_3_2_0.category(character) == "Cn" for character in text):
        # Each parser knows the characters of some version of Unicode.
        return True
    url = parsed(text)
    if url is not None:
        # Whether Punycode follows "xn--" is left to the look-up, which finds no such name.
        return browsers is None and "xn--" in url.origin
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        # Browsers drop tabs and line ends; in a list, they separate one thing from another. The rest names no image.
        return True
    if UNICODE < 16 and not all(map(is_allowed, text)):
        return True  # UTS 46 of Unicode 16 allows what it did not allow before, such as capitals of Georgian.
    theirs = ada_url.URL(browsers or "http://h")
    if theirs.port == "0":
        return True  # Nothing can connect to it.
    # No look-up takes an empty label or a long one; quotes, braces and backticks are the markup around a URL.
    return not re.fullmatch(r"([\w~!$&'()*+,;=-]{1,63}(\.|$))+", theirs.hostname)


def is_allowed(character: str) -> bool:
    """Whether the tables of ``idna`` allow a character in a host."""
    try:
        idna.uts46_remap(character, std3_rules=False)
    except idna.IDNAError:
        return False
    return True


@given(TEXTS)
@settings(max_examples=1000, deadline=None)
def test_any_text_is_read_as_browsers_read_it_or_otherwise_for_a_reason(text: str) -> None:
    url, theirs = parsed(text), browsers(text)
    assert (url.canonical if url else None) == theirs or is_meant(text, theirs)


@given(HOSTS)
@settings(max_examples=1000, deadline=None)
def test_any_host_is_read_as_browsers_read_it_or_otherwise_for_a_reason(host: str) -> None:
    url, theirs = parsed(f"http://{host}/"), browsers(f"http://{host}/")
    assert (url.canonical if url else None) == theirs or is_meant(f"http://{host}/", theirs)


BASE = "http://u:p@h:81/way/2015/http://e.com/a.png?x=/y"


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        (b"b.png", "http://u:p@h:81/way/2015/http://e.com/b.png"),
        (b"../b.png", "http://u:p@h:81/way/2015/http://b.png"),
        (b"../../../b.png", "http://u:p@h:81/way/2015/b.png"),
        (b"/b//c.png", "http://u:p@h:81/b//c.png"),
        (b"?q", "http://u:p@h:81/way/2015/http://e.com/a.png?q"),
        (b"#f", "http://u:p@h:81/way/2015/http://e.com/a.png?x=/y"),
        (b"", "http://u:p@h:81/way/2015/http://e.com/a.png?x=/y"),
        (b" \tb.png ", "http://u:p@h:81/way/2015/http://e.com/b.png"),
        (b"//e.com/b.png", "http://e.com/b.png"),
        (b"\\\\e.com\\b.png", "http://e.com/b.png"),
        (b"\\b.png", "http://u:p@h:81/b.png"),
        (b"https://e.com/b.png", "https://e.com/b.png"),
        (b"https:/e.com/b.png", "https://e.com/b.png"),
        (b"HTTP:/b.png", "http://u:p@h:81/b.png"),
        (b"http:b.png", "http://u:p@h:81/way/2015/http://e.com/b.png"),
        (b"http:///e.com/b.png", "http://e.com/b.png"),
        (b"12:30.png", "http://u:p@h:81/way/2015/http://e.com/12:30.png"),
    ],
)
def test_a_reference_is_resolved_as_browsers_resolve_it(reference: bytes, target: str) -> None:
    assert resolve(parse(BASE), reference).canonical == target == browsers(reference.decode(), BASE)


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        (b"/x/jos\xe9.png", "http://h/x/jos%E9.png"),
        (b"/x/jos\xc3\xa9.png?\xe9", "http://h/x/jos%C3%A9.png?%E9"),
        (b"/x/\x85\xa0.png", "http://h/x/%85%A0.png"),
        (b"//b\xc3\xbccher.example/", "http://xn--bcher-kva.example/"),
    ],
)
def test_bytes_beyond_ascii_are_encoded_as_they_are(reference: bytes, target: str) -> None:
    assert resolve(parse("http://h/a"), reference).canonical == target


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        (b"file:///etc/passwd", "scheme other than"),
        (b"a:b.png", "scheme other than"),
        (b"//", "bad host"),
        (b"//b\xfccher/", "bad host"),
        (b"/a\r\nb", "control character"),
    ],
)
def test_a_reference_to_what_is_no_http_url_is_refused(reference: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        resolve(parse("http://h/a"), reference)


@given(st.sampled_from([BASE, "https://h", "http://h/a/?q"]), st.one_of(PIECES, st.text(), st.text().map("/".__add__)))
@settings(max_examples=1000, deadline=None)
def test_any_reference_is_resolved_as_browsers_resolve_it(base: str, reference: str) -> None:
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in reference):
        return
    theirs = browsers(reference, base)
    try:
        ours = resolve(parse(base), reference.encode()).canonical
    except ValueError:
        # What is joined here has a host of its own, and so the reasons of any other URL.
        assert theirs is None or is_meant(theirs, theirs)
    else:
        assert ours == theirs or (theirs is None and "xn--" in ours)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no scheme"),
        ("photo.jpg", "no scheme"),
        ("//h/a.jpg", "no scheme"),
        ("ftp://h/a.jpg", "scheme other than"),
        ("file:///etc/passwd", "scheme other than"),
        ("javascript://h/", "scheme other than"),
        ("http://", "bad host"),
        ("data:image/png;base64,AAAA", "scheme other than"),
        ("localhost:8080/a.jpg", "no scheme"),
        ("http:", "bad host"),
        ("http://user@/a.jpg", "bad host"),
        ("http://a b/c.jpg", "bad host"),
        ("http://a..b/c.jpg", "bad host"),
        ("http://a%2Fb/c.jpg", "bad host"),
        ("http://a%00b/c.jpg", "bad host"),
        ("http://%FF/c.jpg", "bad host"),
        ("http://xn--\xe9.net/", "bad host"),
        ("http://\xad/", "bad host"),
        ("http://\u200b.test/", "bad host"),
        ("http://" + "\u20ac" * 70 + ".test/", "bad host"),
        ("http://a\u3002\u3002b/", "bad host"),
        ("http://\u0301a/", "bad host"),
        ("http://a\u05d0/", "bad host"),
        ("http://a\u200d/", "bad host"),
        ("http://1.2.3.4.5/", "bad IPv4"),
        ("http://256.1.1.1/", "bad IPv4"),
        ("http://1.1.1.256/", "bad IPv4"),
        ("http://1.1.65536/", "bad IPv4"),
        ("http://0x100000000/", "bad IPv4"),
        ("http://09.1/", "bad IPv4"),
        ("http://0o7.1/", "bad IPv4"),
        ("http://0x0x1.1/", "bad IPv4"),
        ("http://a.0x/", "bad IPv4"),
        ("http://[1::2::3]/", "bad IPv6"),
        ("http://[fe80::1%25eth0]/", "bad IPv6"),
        ("http://[]/", "bad IPv6"),
        ("http://" + "a" * 64 + "/", "bad host"),
        ("http://" + "a." * 150 + "/", "bad host"),
        ("http://" + "\xe9" * 254 + "/", "bad host"),
        ("http://h:0/", "bad port"),
        ("http://h:65536/", "bad port"),
        ("http://h:-1/", "bad port"),
        ("http://h:8x/", "bad port"),
        ("http://h:" + "9" * 5000 + "/", "bad port"),
        ("http://h/\x00.jpg", "control character"),
        ("http://h/a\r\nHost: x", "control character"),
        ("http://h/\x1b[31m", "control character"),
        ("http://h/\x85", "control character"),
        ("http://h/\udcff", "undecodable"),
    ],
)
def test_what_is_no_http_url_is_refused_with_its_fault(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse(text)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://h/a", "http://h"),
        ("HTTP://u:p@H:80/a", "http://h"),
        ("https://h:8443/a", "https://h:8443"),
        ("http://[::1]/a", "http://[::1]"),
    ],
)
def test_the_origin_is_scheme_host_and_port(text: str, origin: str) -> None:
    assert parse(text).origin == origin


def test_the_hashes_are_those_of_the_canonical_spelling() -> None:
    url = parse("HTTP://h:80/a b.jpg")
    assert url.sha256 == hashlib.sha256(b"http://h/a%20b.jpg").hexdigest()
    assert url.digest == bytes.fromhex(url.sha256)[:16]


SIGNED = {
    "Amazon, version 4": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F2026{0}%2Feu-west-1%2Fs3"
    "&X-Amz-Date=2026{0}T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Security-Token=t{0}"
    "&X-Amz-Signature={0}",
    "Amazon, version 2": "AWSAccessKeyId=AKIA&Expires=17{0}&Signature=ab%2F{0}%3D",
    "CloudFront, canned": "Expires=17{0}&Signature=ab~{0}_&Key-Pair-Id=K1",
    "CloudFront, custom": "Policy=eyJ{0}&Signature=ab~{0}_&Key-Pair-Id=K1",
    "Google, version 4": "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=a%40b%2F2026{0}"
    "&X-Goog-Date=2026{0}T000000Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host&X-Goog-Signature={0}",
    "Google, version 2": "GoogleAccessId=a%40b&Expires=17{0}&Signature=ab%2B{0}",
    "Google, CDN": "Expires=17{0}&KeyName=k&Signature=ab{0}",
    "Alibaba": "Expires=17{0}&OSSAccessKeyId=k&Signature=ab{0}",
    "Azure": "sv=2024-11-04&st=2026{0}&se=2026{0}&sr=b&sp=r&skoid=1&skt=2026{0}&ske=2026{0}&sig=ab%2F{0}",
}


@pytest.mark.parametrize("kind", SIGNED)
def test_a_new_signature_is_no_new_image(kind: str) -> None:
    first, second = (parse(f"https://h/a.jpg?id=7&{SIGNED[kind].format(day)}&w=1") for day in (1126, 1127))
    assert first.canonical != second.canonical
    assert (first.digest, first.sha256) == (second.digest, second.sha256)
    assert first.digest != parse(f"https://h/a.jpg?id=8&{SIGNED[kind].format(1126)}&w=1").digest
    assert first.digest != parse(f"https://h/b.jpg?id=7&{SIGNED[kind].format(1126)}&w=1").digest


def fields(*names: str) -> st.SearchStrategy[str]:
    """Generate queries of fields with these names."""
    field = st.tuples(st.sampled_from(names), st.sampled_from(["1", "2", ""])).map("=".join)
    return st.lists(field, min_size=1, max_size=5).map("&".join)


NEARLY_SIGNED = fields(
    "sv", "sig", "st", "Signature", "Expires", "Policy", "Sig", "signature", "X-Amz-Date", "aSignature"
)
BESIDE_A_SIGNATURE = fields("id", "w", "Sig", "signature", "x-amz-signature", "X-Amz-Meta", "versionId", "aSignature")


@given(NEARLY_SIGNED, NEARLY_SIGNED)
@settings(max_examples=500, deadline=None)
def test_without_a_whole_signature_every_field_tells_images_apart(one: str, other: str) -> None:
    assert (parse("https://h/a?" + one).digest == parse("https://h/a?" + other).digest) == (one == other)


@given(st.sampled_from(sorted(SIGNED)), BESIDE_A_SIGNATURE, BESIDE_A_SIGNATURE)
@settings(max_examples=500, deadline=None)
def test_every_field_beside_a_signature_tells_images_apart(kind: str, one: str, other: str) -> None:
    first = parse(f"https://h/a?{one}&{SIGNED[kind].format(1126)}")
    second = parse(f"https://h/a?{other}&{SIGNED[kind].format(1127)}")
    assert (first.digest == second.digest) == (one == other)


@pytest.mark.parametrize(
    "query",
    [
        "sig={}&se=2026", "sv=1&sig={}", "se={}&sv=1", "Signature={}", "Signature={}&Expires=1", "Expires={}&Policy=1",
        "signature={}&AWSAccessKeyId=1&Expires=1", "X-Amz-Date={}", "X-Amz-Signature=1&X-Amz-Meta={}",
        "X-Amz-Signature=1&Expires={}", "X-Amz-Signature=1&versionId={}", "X-Amz-Signature=1&sig={}",
        "Signature=1&Key-Pair-Id=1&KeyName={}", "sig=1&sv={}&se=1", "aSignature={}&AWSAccessKeyId=1&Expires=1",
    ],
)  # fmt: skip
def test_what_is_not_known_to_be_a_signature_tells_images_apart(query: str) -> None:
    assert parse("https://h/a?" + query.format(1)).digest != parse("https://h/a?" + query.format(2)).digest


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h/a.jpg", "http://h/a.jpg"),
        ("https://user:secret@h:81/a.jpg?key=secret#secret", "https://h:81/a.jpg?…"),
        ("https://user:sec/ret@h/a.jpg", "…"),
        ("ftp://user:secret@h/a.jpg?secret", "…"),
        ("http://h/\x1b[31m\u202e", "http://h/\\x1b[31m\\u202e"),
        ("user:secret@h", "…"),
    ],
)
def test_a_redacted_url_shows_no_secret(text: str, shown: str) -> None:
    assert redacted(text) == shown


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_any_text_is_refused_or_has_a_target_that_is_safe_in_a_request_line(text: str) -> None:
    url = parsed(text)
    if url is not None:
        assert url.path.startswith("/")
        assert url.path.isascii()
        assert url.path.isprintable()
        assert not set(url.path) & set(" #")
        assert url.origin.startswith(("http://", "https://"))


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_the_canonical_spelling_is_its_own_canonical_spelling(text: str) -> None:
    url = parsed(text)
    if url is not None:
        again = parse(url.canonical)
        assert (again.canonical, again.origin, again.path) == (url.canonical, url.origin, url.path)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_nothing_that_is_shown_controls_a_terminal(text: str) -> None:
    for shown in (redacted(text), printable(text)):
        assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
        assert not {unicodedata.bidirectional(character) for character in shown} & {"RLO", "LRO", "RLE", "LRE", "PDF"}


@given(st.sampled_from(["http", "ftp", "x"]), st.text(alphabet="ab:/?#[] é", max_size=8))
@settings(max_examples=200, deadline=None)
def test_no_password_and_no_query_is_ever_shown(scheme: str, filler: str) -> None:
    assert "SECRET" not in redacted(f"{scheme}://user:SECRET@host/{filler}?{filler}SECRET")
    assert "SECRET" not in redacted(f"{scheme}://host/a.jpg?{filler}SECRET@{filler}SECRET")

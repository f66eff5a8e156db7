"""URLs: parsed strictly, one canonical spelling each, and no secret in what is shown."""

from __future__ import annotations

import hashlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_loader.url import Url, parse, printable, redacted

PIECES = st.lists(
    st.sampled_from(
        [*"@:/?#[]%\\ .-", "http://", "HTTPS://", "user", "host", "::1", "80", "99999", "%2F", "é", "\0", "\u202e"]
    ),
).map("".join)
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
    ("text", "fault"),
    [
        ("", "no scheme"),
        ("photo.jpg", "no scheme"),
        ("//h/a.jpg", "no scheme"),
        ("http:/h/a.jpg", "no scheme"),
        ("ftp://h/a.jpg", "scheme other than"),
        ("file:///etc/passwd", "scheme other than"),
        ("javascript://h/", "scheme other than"),
        ("http://", "bad host"),
        ("http:///a.jpg", "bad host"),
        ("http://a b/c.jpg", "bad host"),
        ("http://a..b/c.jpg", "bad host"),
        ("http://%41/c.jpg", "bad host"),
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

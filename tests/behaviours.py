"""Unusual ways for a server to behave, and many to misbehave, each under the name that a path asks for it by."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache, partial

from exchange import PNG, End, Request, Steps, chunked, etag, head, length, respond, whole

Behaviour = Callable[[Request], Steps]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(play: Behaviour) -> Behaviour:
    """Register a behaviour under its function's name, with dashes."""
    BEHAVIOURS[play.__name__.replace("_", "-")] = play
    return play


def family(**variants: str) -> Callable[[Callable[[Request, str], Steps]], Callable[[Request, str], Steps]]:
    """Register a behaviour once for each variant, as ``name-variant``."""

    def register(play: Callable[[Request, str], Steps]) -> Callable[[Request, str], Steps]:
        for key, value in variants.items():
            BEHAVIOURS[f"{play.__name__}-{key}".replace("_", "-")] = partial(play, variant=value)  # type: ignore[call-arg]
        return play

    return register


# Unusual, but right -----------------------------------------------------------------------------------------------


@behaviour
def in_chunks(request: Request) -> Steps:
    """Send the chunked coding with all that it allows: an extension, leading zeros, upper case, a trailer."""
    body = request.body
    yield head(PNG, "transfer-encoding:Chunked")
    yield b"000A;name=value\r\n" + body[:10] + b"\r\n" + chunked(body[10:])
    yield b"0\r\nX-Checksum: 1\r\n\r\n"


@behaviour
def in_small_pieces(request: Request) -> Steps:
    """Send a response that comes in segments of a few bytes, cut anywhere."""
    response = whole(request.body)
    for start in range(0, 300, 7):
        yield response[start : start + 7]
        yield 0.001
    yield response[301:]


@behaviour
def unframed(request: Request) -> Steps:
    """Let the end of the connection end the body: no length, no chunks."""
    yield head(PNG, "Connection: close") + request.body
    yield End.CLOSE


@behaviour
def staying_open(request: Request) -> Steps:
    """Announce the end of the connection, and don't end it."""
    yield whole(request.body, "Connection: close")
    yield End.STALL


@behaviour
def bare_newlines(request: Request) -> Steps:
    """End the lines of the head with newlines alone (RFC 9112, 2.2)."""
    yield head(PNG, length(request.body)).replace(b"\r\n", b"\n") + request.body


@behaviour
def named_otherwise(request: Request) -> Steps:
    """Suggest another name, in another place."""
    yield whole(
        request.body, 'Content-Disposition: attachment; filename="../../other.png"', "Content-Location: /other.png"
    )


@behaviour
def old_version(request: Request) -> Steps:
    """Speak HTTP/1.0."""
    yield head(PNG, length(request.body), version="HTTP/1.0") + request.body
    yield End.CLOSE


@behaviour
def strange_spelling(request: Request) -> Steps:
    """Send names and types in any case, odd white space, an empty reason phrase, parameters."""
    yield head("CONTENT-TYPE:\t IMAGE/PNG ; charset=utf-8", f"content-length:{len(request.body)}  ", status="200 ")
    yield request.body


@family(continues="100 Continue", processing="102 Processing", hints="103 Early Hints")
def interim(request: Request, variant: str) -> Steps:
    """Send some 1xx responses first, with headers that are none of the image's."""
    for _ in range(3):
        yield head("Link: </a.css>", "Content-Length: 5", status=variant)
    yield whole(request.body)


@family(
    gzip="gzip",
    x_gzip="X-GZip",
    deflate="deflate",
    raw="deflate",
    members="gzip",
    twice="gzip, gzip",
    identity="Identity",
    empty="",
)
def encoded(request: Request, variant: str) -> Steps:
    """Send a content coding that nobody asked for, correctly done."""
    kind = request.path.split("/")[1].removeprefix("encoded-")
    body = _ENCODERS[kind](request.body)
    yield whole(body, f"Content-Encoding: {variant}")


def _raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw": _raw_deflate,
    "identity": bytes,
    "empty": bytes,
    "members": lambda body: gzip.compress(body[:100]) + gzip.compress(body[100:]),
    "twice": lambda body: gzip.compress(gzip.compress(body)),
}


@behaviour
def slow(request: Request) -> Steps:
    """Wait a tenth of a second before the answer."""
    yield 0.1
    yield from respond(request)


@behaviour
def gated(request: Request) -> Steps:
    """Send half of the image; the rest when the test opens the gate."""
    response = whole(request.body, f"ETag: {etag(request.body)}")
    yield response[: len(response) - len(request.body) // 2]
    yield request.server.gate
    yield response[len(response) - len(request.body) // 2 :]


@behaviour
def held(request: Request) -> Steps:
    """Send nothing before the test opens the gate."""
    yield request.server.gate
    yield from respond(request)


@behaviour
def closing_unannounced(request: Request) -> Steps:
    """Close a connection that would stay open by its headers."""
    yield whole(request.body)
    yield End.CLOSE


@behaviour
def resetting_half(request: Request) -> Steps:
    """Reset every other request for an image; with which it begins is the path's matter."""
    if (request.number + hashlib.sha256(request.target.encode()).digest()[0]) % 2:
        yield End.RESET
    yield from respond(request)


@behaviour
def failing_once(request: Request) -> Steps:
    """Send 503 with a Retry-After of a second, then the image."""
    if request.number == 1:
        yield head("Retry-After: 1", "Content-Length: 0", status="503 Service Unavailable")
    else:
        yield from respond(request)


@family(date=formatdate(4e9, usegmt=True), word="soon", negative="-5", fraction="1.5", huge="9" * 400, empty="")
def retry_after(request: Request, variant: str) -> Steps:
    """Send 503 for good, with a Retry-After of any kind."""
    yield head(f"Retry-After: {variant}", "Content-Length: 0", status="503 Service Unavailable")


@behaviour
def setting_cookies(request: Request) -> Steps:
    """Send an image and a cookie."""
    yield whole(request.body, "Set-Cookie: session=secret; Path=/")


# Sloppy, as browsers take it ----------------------------------------------------------------------------------------


@family(
    charset="UTF-8",
    none="none",
    chunked="aws-chunked",
    binary="binary",
    listed="utf-8, identity",
    spaced=" ",
    comma=",",
)
def untrue_coding(request: Request, variant: str) -> Steps:
    """Name a content coding that is none, over an image as it is."""
    yield whole(request.body, f"Content-Encoding: {variant}")


@family(
    spaced="Access-Control-Allow-Credentials : true",
    warning="PHP Warning:  Undefined variable $a in /var/www/a.php on line 3",
    name="X-Foo(bar): 1",
    no_colon="no colon",
    no_name=": 4000",
    folded="no colon\r\n\tits continuation",
    foreign="\xc4: b",
)
def sloppy_header(request: Request, variant: str) -> Steps:
    """Send a malformed header line that does not matter."""
    yield head(variant, PNG, variant, length(request.body), variant) + request.body


@family(
    twice="image/png\r\nContent-Type: image/png",
    better="application/octet-stream\r\nContent-Type: image/png",
    listed="text/html, image/png",
    wildcard="image/png, */*",
    alias="image/x-png",
)
def sloppy_type(request: Request, variant: str) -> Steps:
    """Send an image's type in an unusual way."""
    yield head(f"Content-Type: {variant}", length(request.body)) + request.body


@behaviour
def old_chunks(request: Request) -> Steps:
    """Send chunks in HTTP/1.0, which has none."""
    fields = PNG, "Transfer-Encoding: chunked", "Connection: keep-alive"
    yield head(*fields, version="HTTP/1.0") + chunked(request.body) + b"0\r\n\r\n"


@family(length="Content-Length: 4000", none="Connection: close")
def identity_framing(request: Request, variant: str) -> Steps:
    """Send the transfer coding that was none, and is no more."""
    yield head(PNG, "Transfer-Encoding: identity", variant) + request.body
    yield End.CLOSE


@behaviour
def unframed_and_more(request: Request) -> Steps:
    """Let the end of the connection end the body, the framing of which stands in its way twice over."""
    yield head(PNG, "Content-Encoding: gzip") + gzip.compress(request.body)
    yield End.CLOSE


# Bodies that end early --------------------------------------------------------------------------------------------


@behaviour
def short_body(request: Request) -> Steps:
    """Send half of the length that was told, and a clean end."""
    yield whole(request.body)[: -len(request.body) // 2]
    yield End.CLOSE


@behaviour
def one_byte_short(request: Request) -> Steps:
    """Send all but the last byte."""
    yield whole(request.body)[:-1]
    yield End.CLOSE


@behaviour
def no_body(request: Request) -> Steps:
    """Send a length, and no byte of it."""
    yield head(PNG, length(request.body))
    yield End.CLOSE


@behaviour
def reset_body(request: Request) -> Steps:
    """Reset the connection in mid-body."""
    yield whole(request.body)[: -len(request.body) // 2]
    yield 0.05
    yield End.RESET


@behaviour
def reset_unframed(request: Request) -> Steps:
    """Reset the connection where its end would have ended the body."""
    yield head(PNG) + request.body[: len(request.body) // 2]
    yield 0.05
    yield End.RESET


@behaviour
def cut_chunk(request: Request) -> Steps:
    """End in the middle of a chunk."""
    yield head(PNG, "Transfer-Encoding: chunked") + chunked(request.body)[:-100]
    yield End.CLOSE


@behaviour
def no_last_chunk(request: Request) -> Steps:
    """Send all chunks but the last one, of size zero."""
    yield head(PNG, "Transfer-Encoding: chunked") + chunked(request.body)
    yield End.CLOSE


@behaviour
def chunk_size_cut(request: Request) -> Steps:
    """End in the middle of a chunk's size."""
    yield head(PNG, "Transfer-Encoding: chunked") + chunked(request.body) + b"4"
    yield End.CLOSE


@behaviour
def closing_at_once(request: Request) -> Steps:
    """End without an answer."""
    yield End.CLOSE


@behaviour
def interim_and_nothing(request: Request) -> Steps:
    """Send a 1xx response, and then the end."""
    yield head(status="100 Continue")
    yield End.CLOSE


@behaviour
def resetting_at_once(request: Request) -> Steps:
    """Reset without an answer."""
    yield End.RESET


# Framing that can't be trusted ------------------------------------------------------------------------------------


@family(
    signed="+4000",
    negative="-4000",
    underscore="4_000",
    hexadecimal="0xfa0",
    fraction="4000.0",
    word="many",
    empty="",
    spaced="4 000",
    twice="4000, 5000",
    huge="9" * 30,
    foreign="\xb2\xb9",
)
def bad_length(request: Request, variant: str) -> Steps:
    """Send a length that is no plain number."""
    yield head(PNG, f"Content-Length: {variant}") + request.body
    yield End.CLOSE


@behaviour
def two_lengths(request: Request) -> Steps:
    """Send two lengths that differ."""
    yield head(PNG, length(request.body), "Content-Length: 100") + request.body
    yield End.CLOSE


@behaviour
def same_length_twice(request: Request) -> Steps:
    """Send two lengths alike: RFC 9112, 6.3 leaves it to the reader."""
    yield head(PNG, length(request.body), length(request.body)) + request.body


@behaviour
def length_and_chunks(request: Request) -> Steps:
    """Send a length that contradicts the chunks, which count (RFC 9112, 6.3)."""
    yield head(PNG, "Content-Length: 100", "Transfer-Encoding: chunked") + chunked(request.body) + b"0\r\n\r\n"
    yield End.CLOSE


@family(
    compressed="gzip, chunked",
    identity="identity",
    twice="chunked, chunked",
    unknown="xchunked",
    not_last="chunked, identity",
    hidden="\x0bchunked",
    quoted='"chunked"',
    empty="",
)
def bad_transfer_coding(request: Request, variant: str) -> Steps:
    """Send a transfer coding other than plain ``chunked``, over a body in chunks."""
    yield head(PNG, f"Transfer-Encoding: {variant}") + chunked(request.body) + b"0\r\n\r\n"
    yield End.CLOSE


@family(
    word="zz",
    negative="-fa0",
    signed="+fa0",
    prefixed="0xfa0",
    underscore="f_a0",
    huge="f" * 20,
    empty="",
    nothing_but_extension=";a=b",
    nul="fa0\0",
)
def bad_chunk_size(request: Request, variant: str) -> Steps:
    """Send a chunk size that is no plain hexadecimal number."""
    yield head(PNG, "Transfer-Encoding: chunked") + variant.encode() + b"\r\n" + request.body + b"\r\n0\r\n\r\n"
    yield End.CLOSE


@behaviour
def chunk_overrun(request: Request) -> Steps:
    """Send a chunk longer than its size."""
    yield head(PNG, "Transfer-Encoding: chunked") + b"f00\r\n" + request.body + b"\r\n0\r\n\r\n"
    yield End.CLOSE


@behaviour
def endless_chunk_extension(request: Request) -> Steps:
    """Send a chunk whose size line never ends."""
    yield head(PNG, "Transfer-Encoding: chunked") + b"fa0;"
    while True:
        yield b"x" * 4096
        yield 0.01


@behaviour
def endless_trailers(request: Request) -> Steps:
    """Send trailers without end after a whole body."""
    yield head(PNG, "Transfer-Encoding: chunked") + chunked(request.body) + b"0\r\n"
    while True:
        yield b"X-More: and more\r\n" * 50
        yield 0.01


# Heads that can't be trusted --------------------------------------------------------------------------------------


@family(in_name="Content-Len", in_value="Content-Length: 40", after_line="Content-Length: 4000\r\n")
def cut_head(request: Request, variant: str) -> Steps:
    """End within the head."""
    yield f"HTTP/1.1 200 OK\r\n{PNG}\r\n{variant}".encode()
    yield End.CLOSE


@behaviour
def headless(request: Request) -> Steps:
    """Send HTTP/0.9: the image, and nothing but the image."""
    yield request.body
    yield End.CLOSE


@behaviour
def garbage(request: Request) -> Steps:
    """Send bytes that mean nothing."""
    yield hashlib.shake_256(request.target.encode()).digest(5000)
    yield End.CLOSE


@family(
    newer="HTTP/2.0 200 OK",
    radio="ICY 200 OK",
    low="HTTP/1.1 99 Low",
    high="HTTP/1.1 2000 OK",
    beyond="HTTP/1.1 999 Beyond",
    negative="HTTP/1.1 -20 OK",
    word="HTTP/1.1 two OK",
    signed="HTTP/1.1 +200 OK",
    bare="HTTP/1.1",
    glued="HTTP/1.1 200OK",
    lower="http/1.1 200 OK",
    leading=" HTTP/1.1 200 OK",
    blank="",
)
def bad_status_line(request: Request, variant: str) -> Steps:
    """Send a status line that is none."""
    yield f"{variant}\r\n{PNG}\r\n{length(request.body)}\r\n\r\n".encode() + request.body
    yield End.CLOSE


@family(
    no_colon="Content-Length 4000",
    spaced_name="Content-Length : 100",
    folded="Content-Length: 40\r\n 00",
    nul="X-Odd: a\0b",
    bare_return="X-Odd: a\rContent-Length: 100",
    binary="\x01\x02: \x03",
)
def bad_header(request: Request, variant: str) -> Steps:
    """Send a header line that is none."""
    yield head(PNG, variant, length(request.body)) + request.body
    yield End.CLOSE


@behaviour
def long_status_line(request: Request) -> Steps:
    """Send a reason phrase of a megabyte."""
    yield head(PNG, length(request.body), status="200 " + "O" * 1_000_000 + "K") + request.body


@behaviour
def long_header(request: Request) -> Steps:
    """Send a header of a megabyte."""
    yield head(PNG, length(request.body), "X-Long: " + "x" * 1_000_000) + request.body


@behaviour
def many_headers(request: Request) -> Steps:
    """Send fifty thousand headers."""
    yield head(PNG, length(request.body), *["X-More: and more"] * 50_000) + request.body


@behaviour
def endless_header(request: Request) -> Steps:
    """Send a header line without end."""
    yield head(PNG)[:-2] + b"X-Long: "
    while True:
        yield b"x" * 4096
        yield 0.01


@behaviour
def endless_headers(request: Request) -> Steps:
    """Send header lines without end."""
    yield head(PNG)[:-2]
    while True:
        yield b"X-More: and more\r\n" * 50
        yield 0.01


@behaviour
def endless_interim(request: Request) -> Steps:
    """Send 1xx responses without end."""
    while True:
        yield head(status="102 Processing") * 20
        yield 0.01


@behaviour
def switching_protocols(request: Request) -> Steps:
    """Send an upgrade that nobody asked for."""
    yield head("Upgrade: h2c", "Connection: Upgrade", status="101 Switching Protocols") + request.body
    yield End.CLOSE


# Content codings that can't be trusted ----------------------------------------------------------------------------


@family(
    cut="cut",
    bad_checksum="bad checksum",
    bad_size="bad size",
    empty="empty",
    plain="plain",
    cut_deflate="cut deflate",
    garbage_behind="garbage behind",
    flipped="flipped",
)
def broken_coding(request: Request, variant: str) -> Steps:
    """Send a compressed body with a right length that is not whole, or not compressed at all."""
    coding = "deflate" if "deflate" in variant else "gzip"
    yield whole(_BROKEN[variant](request.body), f"Content-Encoding: {coding}")


def _flipped(body: bytes) -> bytes:
    packed = bytearray(gzip.compress(body))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


_BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda body: gzip.compress(body)[:-20],
    "bad checksum": lambda body: gzip.compress(body)[:-8] + b"\0\0\0\0" + gzip.compress(body)[-4:],
    "bad size": lambda body: gzip.compress(body)[:-4] + b"\0\0\0\1",
    "empty": lambda _: b"",
    "plain": lambda body: body,
    "cut deflate": lambda body: zlib.compress(body)[:-20],
    "garbage behind": lambda body: gzip.compress(body) + b"not gzip",
    "flipped": _flipped,
}


@family(many=", ".join(["gzip"] * 50), brotli="br", zstandard="ZSTD", among="utf-8, br", compress="compress")
def unknown_coding(request: Request, variant: str) -> Steps:
    """Send a content coding that can't be undone here, or that is there to do harm."""
    yield whole(request.body, f"Content-Encoding: {variant}")


@behaviour
def bomb(request: Request) -> Steps:
    """Send twenty megabytes in twenty kilobytes."""
    yield whole(_bomb(), "Content-Encoding: gzip")


@lru_cache
def _bomb() -> bytes:
    return gzip.compress(bytes(20_000_000))


# Too much ---------------------------------------------------------------------------------------------------------


@behaviour
def endless_body(request: Request) -> Steps:
    """Be a camera: send a body that never ends."""
    yield head(PNG)
    while True:
        yield bytes(65536)


@behaviour
def endless_chunks(request: Request) -> Steps:
    """Send the same in chunks."""
    yield head(PNG, "Transfer-Encoding: chunked")
    while True:
        yield chunked(bytes(65536), 65536)


@behaviour
def enormous_length(request: Request) -> Steps:
    """Send a length of a terabyte."""
    yield head(PNG, "Content-Length: 1000000000000") + request.body
    yield End.STALL


# Too slow ---------------------------------------------------------------------------------------------------------


@family(status_line="0", headers="20", body="120", chunks="0", interim="0")
def drip(request: Request, variant: str) -> Steps:
    """Send a byte now and then, from some point on, the pauses shorter than any limit."""
    response = {
        "chunks": head(PNG, "Transfer-Encoding: chunked") + chunked(request.body, 1),
        "interim": head("X-More: and more", status="102 Processing") * 100,
    }.get(request.path.split("/")[1].removeprefix("drip-"), whole(request.body))
    start = int(variant)
    yield response[:start]
    for byte in response[start:]:
        yield bytes([byte])
        yield 0.1


@behaviour
def stalling_at_once(request: Request) -> Steps:
    """Send nothing."""
    yield End.STALL


@behaviour
def stalling_head(request: Request) -> Steps:
    """Send half a head."""
    yield head(PNG)[:-10]
    yield End.STALL


@behaviour
def stalling_body(request: Request) -> Steps:
    """Send half a body."""
    yield whole(request.body)[: -len(request.body) // 2]
    yield End.STALL


@behaviour
def stalling_unframed(request: Request) -> Steps:
    """Send a body that the end of the connection would end, and never end it."""
    yield head(PNG) + request.body
    yield End.STALL


@behaviour
def stalling_chunk(request: Request) -> Steps:
    """Send all chunks but the last one."""
    yield head(PNG, "Transfer-Encoding: chunked") + chunked(request.body)
    yield End.STALL


# No image ---------------------------------------------------------------------------------------------------------


@family(
    html="Content-Type: text/html",
    none="X-No: type",
    empty="Content-Type:",
    plain="Content-Type: text/plain",
    slash="Content-Type: image/",
    bare="Content-Type: image",
    wildcard="Content-Type: image/*",
    two="Content-Type: image/png\r\nContent-Type: text/html",
    listed="Content-Type: image/png, text/html",
    camera="Content-Type: multipart/x-mixed-replace; boundary=image/png",
    lookalike="Content-Type: ximage/png",
    octets="Content-Type: application/octet-stream",
)
def wrong_type(request: Request, variant: str) -> Steps:
    """Send a media type that is no image's, or none at all."""
    yield head(variant, length(request.body)) + request.body


@family(
    jpeg="image/jpeg",
    png="image/png",
    svg="image/svg+xml",
    compressed="image/png\r\nContent-Encoding: gzip",
    other="image/x-y",
)
def page(request: Request, variant: str) -> Steps:
    """Send a web page as an image."""
    body = b"\n<!DOCTYPE html>\n<title>Please sign in</title>" + b"<p>or go away</p>" * 100
    packed = gzip.compress(body) if "gzip" in variant else body
    yield head(f"Content-Type: {variant}", length(packed)) + packed


@family(length="Content-Length: 0", chunks="Transfer-Encoding: chunked", unframed="Connection: close")
def empty(request: Request, variant: str) -> Steps:
    """Send 200 with an empty body."""
    yield head(PNG, variant) + (b"0\r\n\r\n" if "chunked" in variant else b"")
    yield End.CLOSE


@family(no_content="204 No Content", reset_content="205 Reset Content")
def bodiless(request: Request, variant: str) -> Steps:
    """Send a success without a body."""
    yield head(PNG, status=variant)


@behaviour
def non_authoritative(request: Request) -> Steps:
    """Send what a proxy has changed."""
    yield whole(request.body, status="203 Non-Authoritative Information")


@family(created="201 Created", multi="207 Multi-Status")
def other_success(request: Request, variant: str) -> Steps:
    """Send a success other than 200, with an image for a body."""
    yield whole(request.body, status=variant)


@behaviour
def whole_part(request: Request) -> Steps:
    """Send the whole as a part, which nobody asked for."""
    size = len(request.body)
    yield whole(request.body, f"Content-Range: bytes 0-{size - 1}/{size}", status="206 Partial Content")


@family(part="bytes 0-1999/4000", more="bytes 0-3999/4001", none="")
def unasked_part(request: Request, variant: str) -> Steps:
    """Send 206 to a request without Range."""
    place = (f"Content-Range: {variant}",) if variant else ()
    body = request.body[:2000] if variant.endswith("1999/4000") else request.body
    yield whole(body, *place, status="206 Partial Content")


_STATUSES = [
    400,
    401,
    402,
    403,
    404,
    405,
    406,
    407,
    409,
    410,
    411,
    412,
    414,
    416,
    417,
    418,
    421,
    426,
    451,
    501,
    505,
    511,
]
_PASSING = [408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529, 530]


@family(**{str(code): f"{code} No" for code in _STATUSES + _PASSING})
def status(request: Request, variant: str) -> Steps:
    """Send an error, with an image for a body, as some servers have it."""
    yield whole(request.body, status=variant)


@behaviour
def unasked_304(request: Request) -> Steps:
    """Send 304, whatever was asked."""
    yield head(status="304 Not Modified")


@behaviour
def foreign_304(request: Request) -> Steps:
    """Send 304 with the tag of another image, to a conditional request; else the image."""
    if "if-none-match" in request.headers:
        yield head('ETag: "another"', status="304 Not Modified")
    else:
        yield from respond(request)


# Redirects --------------------------------------------------------------------------------------------------------


def _redirect(location: str, code: int = 302) -> bytes:
    return head(f"Location: {location}", "Content-Length: 0", status=f"{code} Elsewhere")


@behaviour
def redirect(request: Request) -> Steps:
    """Redirect to where the query says, with the status that it says."""
    yield _redirect(request.query.get("to", "/landed.png"), int(request.query.get("status", 302)))


@family(
    file="file:///etc/passwd",
    script="javascript:alert(1)",
    content="data:image/png;base64,AAAA",
    ftp="ftp://127.0.0.1/a.png",
    no_host="http://",
    slashes_alone="http:////",
    broken_address="http://[::1/a.png",
    port="http://127.0.0.1:99999/a.png",
    space_in_host="http://127.0.0.1 .test/a.png",
    empty="",
)
def bad_redirect(request: Request, variant: str) -> Steps:
    """Redirect to where one can't go."""
    yield _redirect(variant)


@behaviour
def redirect_nowhere(request: Request) -> Steps:
    """Send a redirect that does not say where to."""
    yield head("Content-Length: 0", status="301 Moved")


@behaviour
def two_locations(request: Request) -> Steps:
    """Redirect to two places."""
    yield head("Location: /image/a.png", "Location: /image/b.png", "Content-Length: 0", status="302 Found")


@behaviour
def redirect_loop(request: Request) -> Steps:
    """Redirect to itself."""
    yield _redirect(request.target)


@behaviour
def redirect_hops(request: Request) -> Steps:
    """Redirect as many times as the query's ``left`` says, then to ``/landed.png``."""
    left = int(request.query.get("left", 30))
    yield _redirect(f"{request.path}?left={left - 1}" if left > 1 else "/landed.png")


@behaviour
def redirect_slowly(request: Request) -> Steps:
    """Send redirects that each take half a second."""
    yield 0.5
    yield _redirect(f"{request.path}?step={int(request.query.get('step', 0)) + 1}")


@behaviour
def redirect_with_endless_body(request: Request) -> Steps:
    """Send a redirect whose own body never ends."""
    yield head("Location: /landed.png", "Content-Type: text/html", status="302 Found")
    while True:
        yield bytes(65536)


# More than was asked for ------------------------------------------------------------------------------------------


@behaviour
def bytes_behind(request: Request) -> Steps:
    """Send more bytes than the length says, on a connection that stays open."""
    yield whole(request.body) + b"more of it"


@behaviour
def response_behind(request: Request) -> Steps:
    """Send a second response that nobody asked for, with the image of somebody else."""
    yield whole(request.body) + whole(b"an image that nobody asked for")


@behaviour
def late_response_behind(request: Request) -> Steps:
    """Send the same a moment later: a goodbye to an idle connection."""
    yield whole(request.body)
    yield 0.02
    yield head(status="408 Request Timeout")
    yield End.CLOSE


@behaviour
def body_behind_304(request: Request) -> Steps:
    """Send a 304 that brings a body all the same, to a conditional request; else the image."""
    if "if-none-match" in request.headers:
        yield head(f"ETag: {etag(request.body)}", length(request.body), status="304 Not Modified") + request.body
    else:
        yield from respond(request)


# Bodies to be resumed ---------------------------------------------------------------------------------------------


def _half(request: Request, tag: str, end: End = End.CLOSE) -> Steps:
    response = whole(request.body, f"ETag: {tag}", "Accept-Ranges: bytes")
    yield response[: len(response) - len(request.body) // 2]
    yield end


@family(closed="CLOSE", reset="RESET", stalled="STALL")
def resumable(request: Request, variant: str) -> Steps:
    """Send half of the image at first; then answer as RFC 9110 has it."""
    if request.number == 1:
        yield from _half(request, etag(request.body), End[variant])
    yield from respond(request)


@behaviour
def resumable_changed(request: Request) -> Steps:
    """Send half of the image at first; then it is another one."""
    if request.number == 1:
        *half, end = _half(request, etag(request.body))
        yield from half
        request.server.versions[request.target] += 1
        yield end
    yield from respond(request)


@behaviour
def resumable_weakly(request: Request) -> Steps:
    """Send a weak tag: it says nothing of the bytes, so that nothing can be resumed."""
    if request.number == 1:
        yield from _half(request, 'W/"1"')
    yield whole(request.body, 'ETag: W/"1"')


@family(
    from_start="bytes 0-1999/4000",
    shifted="bytes 1999-3998/4000",
    other_total="bytes 2000-3999/4001",
    short="bytes 2000-3998/4000",
    nonsense="bytes two-four",
    none="",
    unsatisfied="bytes */4000",
)
def resumed_wrongly(request: Request, variant: str) -> Steps:
    """Send half of the image at first; then, to a request with a range, a 206 with another one."""
    tag = f"ETag: {etag(request.body)}"
    if request.number == 1:
        yield from _half(request, etag(request.body))
    elif "range" in request.headers:
        place = (f"Content-Range: {variant}",) if variant else ()
        yield whole(request.body[:2000], tag, *place, status="206 Partial Content")
    else:
        yield whole(request.body, tag)


@family(
    other_tag="206 Partial Content",
    refused="416 Range Not Satisfiable",
    gone="404 Not Found",
    page="206 Partial Content",
)
def resumed_elsewise(request: Request, variant: str) -> Steps:
    """Send half of the image at first; then, to a request with a range, something else."""
    tag = f"ETag: {etag(request.body)}"
    if request.number == 1:
        yield from _half(request, etag(request.body))
    elif "range" in request.headers:
        kind = "text/html" if "page" in request.path else "image/png"
        other = 'ETag: "other"' if "other-tag" in request.path else tag
        place = "Content-Range: bytes 2000-3999/4000"
        yield head(f"Content-Type: {kind}", other, place, "Content-Length: 2000", status=variant) + bytes(2000)
    else:
        yield whole(request.body, tag)


# Damage and malice ------------------------------------------------------------------------------------------------


@behaviour
def damaged(request: Request) -> Steps:
    """Send an image with a byte in its middle changed."""
    body = bytearray(request.body)
    body[60] ^= 0xFF
    yield whole(bytes(body))


@behaviour
def short_unframed(request: Request) -> Steps:
    """Send half an image, ended by the end of the connection: nothing but the image itself tells."""
    yield head(PNG) + request.body[: len(request.body) // 2]
    yield End.CLOSE


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e".encode().decode("latin-1")


@behaviour
def hostile_reason(request: Request) -> Steps:
    """Send a reason phrase that a terminal would obey."""
    yield whole(request.body, status=f"404 {HOSTILE}")


@behaviour
def hostile_redirect(request: Request) -> Steps:
    """Redirect to where a terminal would obey."""
    yield _redirect(f"http://127.0.0.1:1/{HOSTILE}")

"""A web server on 127.0.0.1 that behaves, or misbehaves, as the first segment of the path says."""

from __future__ import annotations

import gzip
import hashlib
import select
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from enum import Enum, auto
from functools import lru_cache, partial
from urllib.parse import parse_qsl, urlsplit

SIZE = 4000
"""Bytes of an image, unless its query says ``size=``."""
PATIENCE = 60.0
"""Seconds after which a stalled exchange is given up, should nobody end it."""


class End(Enum):
    """How a connection ends."""

    CLOSE = auto()
    RESET = auto()
    STALL = auto()


Step = bytes | float | threading.Event | End
"""Bytes to send, seconds to wait, an event to wait for, or the end of the connection."""
Steps = Iterator[Step]
Behaviour = Callable[["Request"], Steps]
BEHAVIOURS: dict[str, Behaviour] = {}


@dataclass(frozen=True)
class Request:
    """One request as it arrived; header names are in lower case, ``number`` counts those for the same target from 1."""

    server: Server
    target: str
    headers: Mapping[str, str]
    number: int
    connection: int
    time: float

    @property
    def path(self) -> str:
        """The path alone."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query."""
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def body(self) -> bytes:
        """The image that stands at this target."""
        return self.server.image(self.target)


class Server:
    """One origin. It counts and records what is asked of it; ``healthy`` makes every path behave well."""

    def __init__(self, *, name: str = "", tls: ssl.SSLContext | None = None) -> None:
        """Listen; ``name`` makes the images of one server differ from those of another."""
        self.name = name
        self.tls = tls
        self.healthy = False
        self.gate = threading.Event()
        self.headers: dict[str, dict[str, str | None]] = {}
        self.versions: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.connections = 0
        self.at_work = 0
        self.peak = 0
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Server:
        """Serve."""
        return self

    def __exit__(self, *_: object) -> None:
        """End, and end what is under way."""
        self.gate.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    @property
    def origin(self) -> str:
        """Scheme, address and port."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def url(self, target: str) -> str:
        """Return the URL of a path and query here."""
        return self.origin + target

    def image(self, target: str) -> bytes:
        """Return the bytes of the image at this path and query: distinct for each, and for each of its versions."""
        size = int(dict(parse_qsl(urlsplit(target).query)).get("size", SIZE))
        return png(f"{self.name} {target} {self.versions[target]}", size)

    def asked(self, target: str) -> list[Request]:
        """Return the requests for this path and query, in order."""
        return [request for request in self.requests if request.target == target]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until the condition holds; it is looked at whenever a request comes or ends, and now and then."""
        give_up = time.monotonic() + seconds
        with self._changed:
            while not condition():
                assert time.monotonic() < give_up, f"in vain for {seconds} s"
                self._changed.wait(0.05)

    def record(self, target: str, headers: Mapping[str, str], connection: int) -> Request:
        """Count one request that has arrived."""
        with self._changed:
            number = len(self.asked(target)) + 1 if len(self.requests) < 20_000 else 1
            request = Request(self, target, headers, number, connection, time.monotonic())
            self.requests.append(request)
            self._changed.notify_all()
        return request

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as being at work."""
        self._work(1)
        try:
            yield
        finally:
            self._work(-1)

    def steps(self, request: Request) -> Steps:
        """Return what to do for a request: an unknown first segment is a well-behaved image."""
        name = request.path.split("/")[1]
        return respond(request) if self.healthy else BEHAVIOURS.get(name, respond)(request)

    def _work(self, change: int) -> None:
        with self._changed:
            self.at_work += change
            self.peak = max(self.peak, self.at_work)
            self._changed.notify_all()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                with self._changed:
                    self.connections += 1
                    self._sockets.add(accepted)
                threading.Thread(target=self._serve, args=(accepted, self.connections), daemon=True).start()

    def _serve(self, accepted: socket.socket, number: int) -> None:
        with suppress(OSError):
            Connection(self, accepted, number).serve()
        with self._changed:
            self._sockets.discard(accepted)
        accepted.close()


class Connection:
    """One connection: reads requests and plays the steps of their behaviours."""

    def __init__(self, server: Server, accepted: socket.socket, number: int) -> None:
        """Take over an accepted socket."""
        self._server = server
        self._socket = accepted
        self._number = number
        self._received = b""

    def serve(self) -> None:
        """Serve until one of both ends it."""
        self._socket.settimeout(PATIENCE)
        if self._server.tls:
            self._socket = self._server.tls.wrap_socket(self._socket, server_side=True)
        try:
            while (request := self._read()) and self._play(request):
                pass
        finally:
            self._socket.close()

    def _play(self, request: Request) -> bool:
        with self._server.working():
            return all(self._take(step) for step in self._server.steps(request))

    def _read(self) -> Request | None:
        while b"\r\n\r\n" not in self._received:
            received = self._socket.recv(65536)
            if not received:
                return None
            if received[0] == 0x16:  # the first byte of TLS, spoken to a plain port: answered as nginx does
                self._socket.sendall(head("Connection: close", status="400 Bad Request"))
                return None
            self._received += received
        request, self._received = self._received.split(b"\r\n\r\n", 1)
        line, *fields = request.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        if method == "CONNECT":
            self._tunnel(int(target.rpartition(":")[2]))
            return None
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        return self._server.record(target, headers, self._number)

    def _tunnel(self, port: int) -> None:
        """Be a proxy: pass bytes on in both directions, to a port of this machine."""
        self._server.record(f"CONNECT {port}", {}, self._number)
        with socket.create_connection(("127.0.0.1", port)) as beyond:
            self._socket.sendall(head(status="200 Connection established"))
            threading.Thread(target=_pass_on, args=(beyond, self._socket), daemon=True).start()
            _pass_on(self._socket, beyond)

    def _take(self, step: Step) -> bool:
        """Take one step; False ends the connection."""
        match step:
            case bytes():
                self._socket.sendall(step)
            case float():
                return not self._gone(step)
            case threading.Event():
                while not step.is_set():
                    if self._gone(0.02):
                        return False
            case End.STALL:
                self._gone(PATIENCE)
                return False
            case End.RESET:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            case End.CLOSE:
                return False
        return True

    def _gone(self, seconds: float) -> bool:
        """Wait, but no longer than the other side is there."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(seconds * 1000))


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while received := source.recv(65536):
            sink.sendall(received)
        sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def silent_port() -> Iterator[int]:
    """Yield a port that takes connections (the kernel does) and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener.getsockname()[1]


@contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a port that refuses connections, and is nobody else's meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def unaccepting_port() -> Iterator[int]:
    """Yield a port whose backlog is full: the handshake of TCP itself gets no answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, suppress(OSError):
        address = listener.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for each in filling:
            each.settimeout(0)
            each.connect_ex(address)
        try:
            yield address[1]
        finally:
            for each in filling:
                each.close()


@lru_cache(maxsize=20_000)
def png(seed: str, size: int) -> bytes:
    """Return a true PNG of about ``size`` bytes, distinct for each seed; a private chunk fills it up."""
    digest = hashlib.shake_256(seed.encode())
    rows = b"".join(b"\0" + digest.digest(24) for _ in range(8))
    head_and_pixels = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(rows)),
    ]
    filling = size - 8 - sum(map(len, head_and_pixels)) - 12 - 12
    chunks = [*head_and_pixels, _chunk(b"teSt", digest.digest(max(filling, 0))), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# What well-behaved servers say ------------------------------------------------------------------------------------

PNG = "Content-Type: image/png"


def head(*lines: str, status: str = "200 OK", version: str = "HTTP/1.1") -> bytes:
    """Return a response's head."""
    return "\r\n".join((f"{version} {status}", *lines, "", "")).encode("latin-1")


def length(body: bytes) -> str:
    """Return the header of a body's length."""
    return f"Content-Length: {len(body)}"


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """Return a whole image response."""
    return head(PNG, length(body), *lines, status=status) + body


def chunked(body: bytes, size: int = 1024) -> bytes:
    """Return the body in the chunked transfer coding, up to and without the last chunk."""
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def etag(body: bytes) -> str:
    """Return a strong entity tag."""
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def metadata(request: Request) -> dict[str, str]:
    """Return the headers that a well-behaved server tells of an image; ``server.headers`` adds, alters or removes."""
    body = request.body
    modified = 1_600_000_000 + 86_400 * request.server.versions[request.target]
    told = {
        "Date": formatdate(usegmt=True),
        "Content-Type": "image/png",
        "ETag": etag(body),
        "Last-Modified": formatdate(modified, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    altered = {**told, **request.server.headers.get(request.target, {})}
    return {name: value for name, value in altered.items() if value is not None}


def respond(request: Request) -> Steps:
    """Answer as RFC 9110 has it: conditions, ranges, an image."""
    told = metadata(request)
    if _unchanged(request, told):
        del told["Content-Type"]
        yield head(*_lines(told), status="304 Not Modified")
    elif start := _range_start(request, told):
        rest = request.body[start:]
        place = f"Content-Range: bytes {start}-{len(request.body) - 1}/{len(request.body)}"
        yield head(*_lines(told), length(rest), place, status="206 Partial Content") + rest
    else:
        yield head(*_lines(told), length(request.body)) + request.body


def _lines(headers: Mapping[str, str]) -> Iterator[str]:
    return (f"{name}: {value}" for name, value in headers.items())


def _unchanged(request: Request, told: Mapping[str, str]) -> bool:
    """RFC 9110, 13.2.2: If-Modified-Since counts only where there is no If-None-Match."""
    if (known := request.headers.get("if-none-match")) is not None:
        return known.removeprefix("W/") == told.get("ETag", "").removeprefix("W/")
    try:
        since, modified = request.headers["if-modified-since"], told["Last-Modified"]
        return parsedate_to_datetime(modified) <= parsedate_to_datetime(since)
    except (KeyError, ValueError, TypeError, OverflowError):
        return False


def _range_start(request: Request, told: Mapping[str, str]) -> int:
    wanted = request.headers.get("range", "")
    if not wanted.startswith("bytes=") or request.headers.get("if-range", "") not in ("", told.get("ETag")):
        return 0
    return int(wanted.removeprefix("bytes=").partition("-")[0])


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
    no_name=": 4000",
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


@family(unknown="secret", many=", ".join(["gzip"] * 50), brotli="br")
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
    slash="Content-Type: image/",
    bare="Content-Type: image",
    wildcard="Content-Type: image/*",
    two="Content-Type: image/png\r\nContent-Type: text/html",
    listed="Content-Type: text/html, image/png",
    camera="Content-Type: multipart/x-mixed-replace; boundary=image/png",
    lookalike="Content-Type: ximage/png",
    octets="Content-Type: application/octet-stream",
)
def wrong_type(request: Request, variant: str) -> Steps:
    """Send a media type that is no image's, or none at all."""
    yield head(variant, length(request.body)) + request.body


@family(length="Content-Length: 0", chunks="Transfer-Encoding: chunked", unframed="Connection: close")
def empty(request: Request, variant: str) -> Steps:
    """Send 200 with an empty body."""
    yield head(PNG, variant) + (b"0\r\n\r\n" if "chunked" in variant else b"")
    yield End.CLOSE


@family(no_content="204 No Content", reset_content="205 Reset Content")
def bodiless(request: Request, variant: str) -> Steps:
    """Send a success without a body."""
    yield head(PNG, status=variant)


@family(created="201 Created", non_authoritative="203 Non-Authoritative Information", multi="207 Multi-Status")
def other_success(request: Request, variant: str) -> Steps:
    """Send a success other than 200, with an image for a body."""
    yield whole(request.body, status=variant)


@family(part="bytes 0-1999/4000", complete="bytes 0-3999/4000", none="")
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
_PASSING = [408, 425, 429, 500, 502, 503, 504]


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
    three_slashes="http:///a.png",
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

"""Transport over real sockets: framing, codings, deadlines, connections, proxies, trust, redirects, secrets."""

from __future__ import annotations

import gc
import gzip
import os
import random
import re
import resource
import select
import shutil
import socket
import ssl
import sys
import threading
import time
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trustme
from urllib3.util import create_urllib3_context

from conftest import SETTINGS
from exchange import PNG, End, Request, chunked, head, length, png, whole
from image_loader import transport as transport_module
from image_loader.errors import DownloadError, OptionError
from image_loader.model import Failure, Reason
from image_loader.transport import Transport, coding
from image_loader.transport import response as response_module
from image_loader.transport.connection import is_public
from image_loader.transport.response import ClosedEarlyError, Response
from image_loader.transport.watchdog import Watchdog
from image_loader.url import parse
from server import Scripted, Server, connections_to, plays, refusing_port, silent_port, unaccepting_port

BODY = png("transport", 3000)
OK = "HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Got:
    """An answer that was read to its end."""

    status: int
    fields: Mapping[str, str]
    body: bytes


@contextmanager
def transport(**changes: Any) -> Iterator[Transport]:
    """Yield a transport; when it is closed, nothing of it is left."""
    asking = Transport(SETTINGS._replace(**changes))
    try:
        yield asking
    finally:
        asking.close()


def get(asking: Transport, url: str, fields: Mapping[str, str] | None = None) -> Got:
    """Ask for a URL and read the answer."""
    with asking.exchange(parse(url), fields or {}) as answer:
        body = b"".join(answer.chunks(SETTINGS.chunk))
        return Got(answer.status, answer.fields, body)


def refusal(asking: Transport, url: str, fields: Mapping[str, str] | None = None) -> Failure:
    """Ask for a URL that cannot be had; return why."""
    with pytest.raises(DownloadError) as caught:
        get(asking, url, fields)
    return caught.value.failure


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep out what would lead requests elsewhere, or lend them passwords."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in (
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "NETRC",
            "SSL_CERT_FILE",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


# Responses, read from one end of a pair of sockets -----------------------------------------------------------------


@contextmanager
def response_to(data: bytes, *, ended: bool = True) -> Iterator[Response]:
    """Yield the response that reads ``data``; unless ``ended``, its peer stays without a word."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        sender = threading.Thread(target=_send, args=(theirs, data, ended), daemon=True)
        sender.start()
        yield Response(ours)
        ours.shutdown(socket.SHUT_RDWR)
        sender.join()


def _send(sink: socket.socket, data: bytes, ended: bool) -> None:
    with suppress(OSError):
        sink.sendall(data)
        if ended:
            sink.shutdown(socket.SHUT_WR)


def read_response(data: bytes, *, ended: bool = True, limit: int = 1000) -> tuple[int, bytes, bool]:
    """Return the status, the body and whether the connection can be used again."""
    with response_to(data, ended=ended) as response:
        response.read_head()
        body = b"".join(iter(lambda: response.read(limit), b""))
        return response.status, body, response.reusable


def response_refusal(data: bytes) -> Failure:
    """Return why a response is refused."""
    with pytest.raises(DownloadError) as caught:
        read_response(data)
    return caught.value.failure


LENGTH = f"Content-Length: {len(BODY)}\r\n"
CHUNKS = chunked(BODY, 700) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (f"{OK}{LENGTH}\r\n".encode() + BODY, True),
        (f"{OK}{LENGTH}Connection: close\r\n\r\n".encode() + BODY, False),
        (f"{OK}{LENGTH}Connection: Keep-Alive , CLOSE\r\n\r\n".encode() + BODY, False),
        (f"{OK}{LENGTH}Connection: upgrade\r\nConnection: close\r\n\r\n".encode() + BODY, False),
        (f"{OK}{LENGTH}{LENGTH}\r\n".encode() + BODY, True),
        (f"{OK}Content-Length: {len(BODY)},{len(BODY)}\r\n\r\n".encode() + BODY, True),
        (f"{OK}{LENGTH}\r\n".encode() + BODY + b"H", False),
        (f"HTTP/1.0 200 OK\r\n{LENGTH}\r\n".encode() + BODY, False),
        (f"HTTP/1.0 200 OK\r\n{LENGTH}Connection: keep-alive\r\n\r\n".encode() + BODY, True),
        (f"HTTP/1.1 200\x20\n{LENGTH}\n".encode() + BODY, True),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n".encode() + CHUNKS, True),
        (f"{OK}Transfer-Encoding: CHUNKED\r\n\r\n".encode() + CHUNKS, True),
        (f"{OK}Transfer-Encoding: chunked\r\n{LENGTH}\r\n".encode() + CHUNKS, False),
        (f"{OK}Transfer-Encoding: chunked\r\nContent-Length: 1_0\r\n\r\n".encode() + CHUNKS, False),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n".encode() + CHUNKS + b"x", False),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n".encode() + CHUNKS[:-2] + b"A: b\r\nC: d\r\n\r\n", True),
        (
            f"{OK}Transfer-Encoding: chunked\r\n\r\n000bb8 ;a=\"b\";c\r\n".encode() + BODY + b"\r\n000;last\r\n\r\n",
            True,
        ),
        (f"{OK}\r\n".encode() + BODY, False),
        (b"HTTP/1.1 100 Continue\r\nContent-Length: 7\r\n\r\nHTTP/1.1 103 Early\r\nTransfer-Encoding: gzip\r\n\r\n"
         + f"{OK}{LENGTH}\r\n".encode() + BODY, True),
        (f"{OK}X-Folded: a\r\n\t b\r\n{LENGTH}\r\n".encode() + BODY, True),
    ],
)  # fmt: skip
def test_a_body_ends_where_its_frame_says(data: bytes, reusable: bool) -> None:
    status, body, again = read_response(data)
    assert (status, body) == (200, BODY)
    assert again is reusable


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize(
    "framing", ["Content-Length: 5", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "A: b"]
)
def test_a_status_without_a_body_has_none_whatever_it_says(status: str, framing: str) -> None:
    assert read_response(head(framing, status=status), ended=False) == (int(status[:3]), b"", True)


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: +5", "Content-Length: -5", "Content-Length: 1_0", "Content-Length: 0x5", "Content-Length: 5.0",
        "Content-Length: 5 5", "Content-Length:", "Content-Length: 5, 6", "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5,", "Content-Length: \xb2", "Content-Length: 9999999999999999999",
        "Content-Length: 4\r\n 0", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding:",
        "Transfer-Encoding: chunked;a=b", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: identity\r\nContent-Length: 5",
    ],
)  # fmt: skip
def test_framing_that_is_not_beyond_doubt_is_refused(framing: str) -> None:
    failure = response_refusal(head(framing) + b"12345")
    assert (failure.reason, failure.passing) == (Reason.PROTOCOL, False)


def test_chunks_are_refused_in_http_1_0() -> None:
    failure = response_refusal(head("Transfer-Encoding: chunked", version="HTTP/1.0") + CHUNKS)
    assert failure.reason is Reason.PROTOCOL


@pytest.mark.parametrize(
    "line",
    [
        "no colon", ": no name", "Spaced : name", " leading: space", "\tfolded", "A\x00b: c", "A: b\x00c", "A: b\rc: d",
        "\xe4: b", "A(b): c", "\r",
    ],
)  # fmt: skip
def test_a_header_line_that_is_none_is_refused(line: str) -> None:
    failure = response_refusal(head(line, f"Content-Length: {len(BODY)}") + BODY)
    assert (failure.reason, failure.passing) == (Reason.PROTOCOL, False)


@pytest.mark.parametrize(
    "line",
    [
        "HTTP/2 200 OK", "HTTP/1.1 0200 OK", "HTTP/1.1 20 OK", "HTTP/1.1  200 OK", "HTTP/1.1 200OK",
        "HTTP/1.1 099 Low",
        "HTTP/1.1 2_0 OK", "HTTP/1.1 +20 OK", "http/1.1 200 OK", " HTTP/1.1 200 OK", "HTTP/1.1\t200 OK",
        "HTTP/11 200 OK",
        "HTTP/1.1 200 O\x00K", "HTTP/1.1 200 O\rK", "", "HTTP/1.1 101 Switching Protocols", "SSH-2.0-OpenSSH_9.2",
    ],
)  # fmt: skip
def test_a_status_line_that_is_none_is_refused(line: str) -> None:
    failure = response_refusal(f"{line}\r\n{LENGTH}\r\n".encode() + BODY)
    assert (failure.reason, failure.passing) == (Reason.PROTOCOL, False)


@pytest.mark.parametrize(
    "size", ["zz", "-3", "+3", "0x3", "3_0", "", " 3", ";a", "f" * 16, "3\x00", "3 3", "\xb2"]
)  # fmt: skip
def test_a_chunk_size_that_is_no_number_is_refused(size: str) -> None:
    failure = response_refusal(head("Transfer-Encoding: chunked") + f"{size}\r\nabc\r\n0\r\n\r\n".encode("latin-1"))
    assert failure.reason is Reason.PROTOCOL


@pytest.mark.parametrize("length", [len(BODY) // 2, len(BODY) - 1, 0])
def test_a_body_shorter_than_its_length_is_truncated(length: int) -> None:
    failure = response_refusal(f"{OK}{LENGTH}\r\n".encode() + BODY[:length])
    assert (failure.reason, failure.passing) == (Reason.TRUNCATED, True)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 6, 100, 700, 710])
def test_chunks_that_end_anywhere_but_at_their_end_fail_and_may_be_tried_again(cut: int) -> None:
    failure = response_refusal(head("Transfer-Encoding: chunked") + CHUNKS[:-cut])
    assert failure.reason in (Reason.TRUNCATED, Reason.PROTOCOL)
    assert failure.passing


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_head_that_is_cut_off_fails_and_may_be_tried_again(cut: int) -> None:
    failure = response_refusal(f"{OK}{LENGTH}\r\n".encode()[:-cut])
    assert (failure.reason, failure.passing) == (Reason.PROTOCOL, True)


def test_no_answer_at_all_is_told_apart_from_a_bad_one() -> None:
    with response_to(b"") as response, pytest.raises(ClosedEarlyError):
        response.read_head()


def test_a_chunk_longer_than_its_size_never_becomes_a_body() -> None:
    failure = response_refusal(head("Transfer-Encoding: chunked") + b"3\r\nabcde\r\n0\r\n\r\n")
    assert failure.reason is Reason.TRUNCATED


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 " + b"O" * 200_000,
        OK.encode() + b"X: " + b"x" * 200_000,
        OK.encode() + b"X: y\r\n" * 100_000,
        OK.encode() + b"X:\r\n" + b" \n" * 200_000,
        head("Transfer-Encoding: chunked") + b"3;" + b"x" * 200_000,
        head("Transfer-Encoding: chunked") + b"0\r\n" + b"X: y\r\n" * 100_000,
    ],
)
def test_a_head_or_a_chunk_size_or_a_trailer_without_end_is_refused(data: bytes) -> None:
    assert response_refusal(data).reason is Reason.PROTOCOL


@pytest.mark.parametrize(
    "line",
    [
        b"X: " + b" " * 600 + b"\x00",
        b"X: a" + b" " * 6000 + b"b",
        b"X: a" + b"\t " * 3000 + b"b",
        b"X: a\r\n " + b" " * 600 + b"\x00",
        b"X: a\r\n b" + b" " * 6000 + b"b",
    ],
)
def test_a_line_of_spaces_is_read_in_an_instant(line: bytes) -> None:
    def read() -> None:
        with response_to(OK.encode() + line + b"\r\nContent-Length: 0\r\n\r\n") as response, suppress(DownloadError):
            response.read_head()

    assert seconds(read) < 0.1


@pytest.mark.parametrize("line", [b"a:\n", b"a: b\n", b"a:\n" + b" \n" * 2])
def test_a_quarter_of_a_megabyte_of_tiny_header_lines_is_read_in_an_instant(line: bytes) -> None:
    def read() -> None:
        with response_to(OK.encode() + line * (250_000 // len(line)) + b"\n") as response, suppress(DownloadError):
            response.read_head()

    assert seconds(read) < 0.4


def test_repeated_fields_are_joined_and_spaces_around_values_dropped() -> None:
    with response_to(head("A:\t x  y \t", "a: z", "B:", "C: \xe4")) as response:
        response.read_head()
        assert response.fields == {"a": "x  y, z", "b": "", "c": "\xe4"}


def test_a_head_that_is_read_at_once_is_the_same_as_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes, limit: int) -> tuple[int, Mapping[str, str]] | str:
        monkeypatch.setattr(response_module, "_USUAL_HEAD", limit)
        with response_to(data) as response:
            try:
                response.read_head()
            except (DownloadError, ClosedEarlyError) as error:
                return f"{type(error)}: {error}"
            return response.status, response.fields

    draw, understood = random.Random(1), 0
    statuses = [
        "200 OK",
        "200 OK",
        "304",
        "404 ",
        "103 Early",
        "20 OK",
        "200\tOK",
        "200 \xc4",
        "200 O\nK",
        "200 OK\r",
        "99 no",
    ]
    usual = ["A: b", "a:c", "B-2: \t d: e \t", "B:"]
    odd = ["C : x", " folded", ": x", "no colon", "D: \0", "\xc4: x", "E: \xc4\r", "\n"]
    for _ in range(1000):
        lines = [*draw.sample(usual, draw.randrange(3)), *draw.sample(usual + odd, draw.randrange(3))]
        data = head(*lines, status=draw.choice(statuses)) + head()
        at_once = read(data, 8192)
        assert at_once == read(data, 0), data
        understood += not isinstance(at_once, str)
    assert 200 < understood < 800


def test_a_body_that_has_arrived_is_passed_over_and_one_that_has_not_is_not_waited_for() -> None:
    with response_to(head("Content-Length: 5", status="302 Found") + b"12345", ended=False) as response:
        response.read_head()
        response.skip_buffered()
        assert response.reusable
    with response_to(head("Content-Length: 5", status="302 Found") + b"123", ended=False) as response:
        response.read_head()
        response.skip_buffered()
        assert not response.reusable


def test_no_bytes_at_all_raise_anything_but_what_is_said() -> None:
    draw = random.Random(1)
    pieces = [b"", b"\r\n", b"\n", b":", b" ", b"0", b"f", b"\xff", b"\0", b","]
    seeds = [
        head("Content-Length: 24", "Content-Encoding: gzip") + gzip.compress(b"body"),
        head("Transfer-Encoding: chunked", "A: b\r\n c") + chunked(b"body" * 9, 7) + b"0\r\nA: b\r\n\r\n",
        head("A: b", status="103 Early") + head("Content-Length: 3,3", status="302 Found", version="HTTP/1.0") + b"abc",
    ]
    for _ in range(1500):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(data))
            data[place : place + draw.randrange(3)] = draw.choice(pieces)
        ours, theirs = socket.socketpair()
        with ours, theirs, suppress(DownloadError, ClosedEarlyError):
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            response = Response(ours)
            response.read_head()
            body = iter(lambda response=response: response.read(100), b"")  # type: ignore[misc]
            b"".join(coding.decoded(body, response.fields.get("content-encoding", ""), 100))


# Content codings ---------------------------------------------------------------------------------------------------


def _raw(body: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(body) + compressor.flush()


def in_pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


PACKED: dict[str, tuple[str, bytes]] = {
    "gzip": ("gzip", gzip.compress(BODY)),
    "x-gzip": ("X-GZip", gzip.compress(BODY)),
    "members": ("gzip", gzip.compress(BODY[:1000]) + gzip.compress(b"") + gzip.compress(BODY[1000:])),
    "zlib": (" Deflate ", zlib.compress(BODY)),
    "raw": ("deflate", _raw(BODY)),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("kind", PACKED)
def test_a_coding_is_undone_however_it_is_cut_into_pieces(kind: str, size: int) -> None:
    name, packed = PACKED[kind]
    pieces = list(coding.decoded(in_pieces(packed, size), name, 50))
    assert b"".join(pieces) == BODY
    assert max(map(len, pieces)) <= 50


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 500])
@pytest.mark.parametrize("kind", PACKED)
def test_a_coding_that_ends_too_early_is_truncated(kind: str, cut: int) -> None:
    name, packed = PACKED[kind]
    with pytest.raises(DownloadError) as caught:
        b"".join(coding.decoded(in_pieces(packed[:-cut], 64), name, 1000))
    assert (caught.value.failure.reason, caught.value.failure.passing) == (Reason.TRUNCATED, True)


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", _raw)])
def test_what_is_packed_tightly_comes_out_whole_at_every_limit(name: str, pack: Callable[[bytes], bytes]) -> None:
    """The last byte of raw deflate may stand for kilobytes, of which the limit lets only a part through."""
    for size in range(4000, 6000, 7):
        pieces = list(coding.decoded([pack(bytes(size))], name, 4096))
        assert b"".join(pieces) == bytes(size)
        assert max(map(len, pieces)) <= 4096


@pytest.mark.parametrize("name", ["br", "gzip, gzip", "compress", "gzip;q=1", "chunked", "zstd"])
def test_a_coding_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(DownloadError) as caught:
        list(coding.decoded([BODY], name, 1000))
    assert caught.value.failure.reason is Reason.PROTOCOL


@pytest.mark.parametrize("packed", [BODY, gzip.compress(BODY)[:-8] + bytes(8), gzip.compress(BODY) + b"behind"])
def test_a_coding_that_is_damaged_is_refused(packed: bytes) -> None:
    with pytest.raises(DownloadError) as caught:
        list(coding.decoded([packed], "gzip", 1000))
    assert caught.value.failure.reason is Reason.DAMAGED


def test_a_flood_of_empty_members_costs_no_more_than_its_length() -> None:
    started = time.monotonic()
    assert b"".join(coding.decoded([gzip.compress(b"") * 400_000], "gzip", 65536)) == b""
    assert time.monotonic() - started < 10, "with all that follows copied for each member, it takes 50 s"


def test_a_bomb_stays_small_in_memory() -> None:
    packed = gzip.compress(bytes(30_000_000), 9)
    tracemalloc.start()
    try:
        assert sum(map(len, coding.decoded(in_pieces(packed, 65536), "gzip", 65536))) == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Which connection carries what -------------------------------------------------------------------------------------


@pytest.fixture
def asking() -> Iterator[Transport]:
    """A transport with the settings of most tests."""
    with transport() as made:
        yield made


def served(body: bytes = BODY) -> Callable[[Request], Iterable[Any]]:
    return plays(whole(body))


def test_a_connection_carries_one_request_after_the_other(asking: Transport) -> None:
    with Scripted(served(), plays(head(PNG, "Transfer-Encoding: chunked") + CHUNKS), served(b"third")) as server:
        bodies = [get(asking, server.url("/a")).body for _ in range(3)]
    assert bodies == [BODY, BODY, b"third"]
    assert server.connections == 1


@pytest.mark.parametrize(
    "first",
    [
        plays(whole(BODY) + whole(b"of nobody")),
        plays(whole(BODY), whole(b"of nobody")),
        plays(head(PNG, "Transfer-Encoding: chunked") + CHUNKS + whole(b"of nobody")),
        plays(head(PNG, "Transfer-Encoding: chunked", "Content-Length: 5") + CHUNKS),
        plays(head(status="304 Not Modified") + whole(b"of nobody")),
        plays(head(status="204 No Content") + b"HTTP"),
        plays(whole(BODY, "Connection: close")),
        plays(head(PNG, length(BODY), version="HTTP/1.0") + BODY),
    ],
)
def test_a_connection_with_more_on_it_than_its_response_is_not_used_again(
    asking: Transport, first: Callable[[Request], Iterable[Any]]
) -> None:
    with Scripted(first, served(b"second")) as server:
        get(asking, server.url("/a"))
        server.wait_for(lambda: server.at_work == 0)
        assert get(asking, server.url("/b")).body == b"second"
    assert server.connections == 2


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server whose certificate is right."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file to trust it by."""
    path = tmp_path_factory.mktemp("trust") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def test_more_than_its_response_in_a_record_of_tls_keeps_a_connection_from_being_used_again(
    tls: ssl.SSLContext, bundle: str
) -> None:
    response, behind = whole(BODY), whole(b"of nobody")
    # The head in a record of its own: the body's record is then read as far as the body goes.
    start = len(response) - len(BODY)
    with (
        transport(ca_bundle=bundle) as asking,
        Scripted(plays(response[:start], 0.05, response[start:] + behind), served(b"second"), tls=tls) as server,
    ):
        assert get(asking, server.url("/a")).body == BODY
        assert get(asking, server.url("/b")).body == b"second"
    assert server.connections == 2


def test_more_than_its_response_within_tls_within_tls_keeps_a_connection_from_being_used_again(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = whole(BODY)
    start = len(response) - len(BODY)
    first = plays(response[:start], 0.05, response[start:] + whole(b"of nobody"))
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    with (
        tls_proxy(tls) as proxy,
        transport(ca_bundle=bundle) as asking,
        Scripted(first, served(b"second"), tls=tls) as server,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        assert get(asking, server.url("/a")).body == BODY
        assert get(asking, server.url("/b")).body == b"second"


def test_a_response_that_comes_after_its_timeout_answers_no_other_request() -> None:
    with transport(timeout=0.1) as asking, Scripted(plays(0.3, whole(b"late")), served(b"second")) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.TIMEOUT
        assert get(asking, server.url("/b")).body == b"second"


def test_many_requests_at_once_get_each_its_own_response(asking: Transport) -> None:
    with Server() as server:

        def ask(worker: int) -> None:
            for number in range(20):
                kind = ("image", "in-chunks", "closing-unannounced", "bytes-behind", "unframed")[number % 5]
                target = f"/{kind}/{worker}-{number}.png?size={300 + 997 * number}"
                found[target] = get(asking, server.url(target)).body

        found: dict[str, bytes] = {}
        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(found) == 160
        assert all(body == server.image(target) for target, body in found.items())


def test_what_is_left_of_an_answer_is_not_taken_for_the_next_one(asking: Transport) -> None:
    late = plays(b"0\r\n\r\n", whole(BODY))
    with Scripted(plays(head("Transfer-Encoding: chunked", status="304 Not Modified")), late, served()) as server:
        assert get(asking, server.url("/a")).status == 304
        assert get(asking, server.url("/b")).body == BODY
        assert [request.connection for request in server.requests] == [1, 1, 2]


def test_connections_that_are_dropped_are_closed_at_once_and_made_again(asking: Transport) -> None:
    with Scripted(served()) as server:
        gc.disable()
        try:
            get(asking, server.url("/a"))
            server.wait_for(lambda: server.at_work == 0)
            asking.drop_idle()
            assert connections_to(server.port) == 0
        finally:
            gc.enable()
        assert get(asking, server.url("/b")).body == BODY


def test_attempts_that_fail_leave_no_connection(tls: ssl.SSLContext) -> None:
    with transport(timeout=0.1) as asking, Server(tls=tls) as secure, Server() as plain, silent_port() as silent:
        gc.disable()
        try:
            for url in (
                secure.url("/a"), f"https://127.0.0.1:{plain.port}/a", f"https://127.0.0.1:{silent}/a",
                f"http://127.0.0.1:{silent}/a", plain.url("/garbage/a"), plain.url("/stalling-body/a"),
                plain.url("/short-body/a"), plain.url("/chunk-overrun/a"), plain.url("/endless-header/a"),
            ):  # fmt: skip
                refusal(asking, url)
            assert [connections_to(port) for port in (secure.port, plain.port, silent)] == [0, 0, 0]
        finally:
            gc.enable()


def test_attempts_that_fail_leave_no_circle_of_references() -> None:
    # One would keep, until garbage is searched for, its pool with all connections.
    with transport(timeout=0.1) as asking, Server() as plain, refusing_port() as refusing, silent_port() as silent:
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for url in (
                f"http://127.0.0.1:{refusing}/a", f"http://127.0.0.1:{silent}/a", "http://no.such.invalid/a",
                f"https://127.0.0.1:{plain.port}/a", plain.url("/garbage/a"), plain.url("/stalling-body/a"),
                plain.url("/short-body/a"), plain.url("/redirect-loop/a"),
            ):  # fmt: skip
                with suppress(DownloadError):
                    get(asking, url)
            gc.collect()
            frames = [frame for frame in gc.garbage if isinstance(frame, FrameType)]
            assert [frame for frame in frames if "image_loader" in frame.f_code.co_filename] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()


def test_a_connection_of_which_a_body_is_left_unread_is_not_used_again(asking: Transport) -> None:
    large = bytes(1_000_000)
    with Scripted(served(large), served(b"second")) as server:
        with asking.exchange(parse(server.url("/a")), {}) as answer:
            next(answer.chunks(1000))
        assert get(asking, server.url("/b")).body == b"second"
    assert server.connections == 2


def test_a_connection_on_which_reading_failed_is_not_used_again(asking: Transport) -> None:
    with Scripted(plays(head(PNG, "Transfer-Encoding: chunked") + b"3\r\nabc\r\nzz\r\n"), served()) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.PROTOCOL
        assert get(asking, server.url("/b")).body == BODY
    assert server.connections == 2


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_a_connection_that_went_stale_in_the_pool_costs_no_attempt(asking: Transport, end: End) -> None:
    # The server reads the second request before it ends the connection: that can be seen only afterwards.
    with Scripted(served(b"first"), plays(end), served(b"third")) as server:
        assert get(asking, server.url("/a")).body == b"first"
        assert get(asking, server.url("/b")).body == b"third"
    assert [request.target for request in server.requests] == ["/a", "/b", "/b"]


def test_a_new_connection_that_is_closed_at_once_is_no_stale_one(asking: Transport) -> None:
    with Scripted(plays(End.CLOSE)) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.CONNECT
        assert len(server.requests) == 1


def test_more_hosts_than_pools_are_served_one_after_the_other() -> None:
    with transport(pool_hosts=2) as asking, _everywhere(served()) as (_, port):
        for host in [*range(1, 8), *range(1, 8)]:
            assert get(asking, f"http://127.0.0.{host}:{port}/a").body == BODY


@contextmanager
def _everywhere(script: Callable[[Request], Iterable[Any]]) -> Iterator[tuple[Server, int]]:
    """Yield a server that answers at each address of 127.0.0.0/8, and its port."""
    with Scripted(script) as server, socket.create_server(("0.0.0.0", 0), backlog=100) as listener:
        port = listener.getsockname()[1]

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    beyond = socket.create_connection(("127.0.0.1", server.port))
                    for ends in ((client, beyond), (beyond, client)):
                        threading.Thread(target=_pass_on, args=ends, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server, port
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while received := source.recv(65536):
            sink.sendall(received)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


def test_an_idle_connection_keeps_nothing_of_what_it_carried() -> None:
    # Head and body fit one receive, so that the response held all of them.
    heavy = whole(bytes(30_000), *[f"X-{number}: {'x' * 1000}" for number in range(30)])
    with transport() as asking, _everywhere(plays(heavy)) as (_, port):
        get(asking, f"http://127.0.0.1:{port}/a")
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for host in range(2, 42):
                get(asking, f"http://127.0.0.{host}:{port}/a")
            gc.collect()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    kept = snapshot.filter_traces([tracemalloc.Filter(inclusive=True, filename_pattern="*/transport/response.py")])
    assert sum(each.size for each in kept.traces) < 100_000, before


# Deadlines and interrupts ------------------------------------------------------------------------------------------

SOON = {"timeout": 5.0, "max_time": 0.25}


def assert_deadline(asking: Transport, url: str) -> None:
    started = time.monotonic()
    failure = refusal(asking, url)
    assert (failure.reason, failure.passing) == (Reason.DEADLINE, False)
    assert time.monotonic() - started < 1.5


def drip(data: bytes, pause: float = 0.02) -> Callable[[Request], Iterable[Any]]:
    def play(request: Request) -> Iterable[Any]:
        for byte in data:
            yield bytes([byte])
            yield pause

    return play


@pytest.mark.parametrize(
    "script",
    [
        plays(End.STALL),
        drip(whole(BODY)),
        plays(head(PNG, length(BODY))[:-2], End.STALL),
        plays(whole(BODY)[:-10], End.STALL),
        plays(head(PNG), b"unframed", End.STALL),
        plays(head(PNG, "Transfer-Encoding: chunked") + b"3\r\nabc", End.STALL),
        plays(head(PNG, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n", End.STALL),
        lambda request: (part for _ in range(10_000) for part in (head(status="102 Processing"), 0.001)),
        lambda request: (part for step in range(100) for part in (0.1, head("Location: /a", status="302 Found"))),
        lambda request: [head(PNG)] + [part for byte in BODY for part in (bytes([byte]), 0.02)],
    ],
)
def test_the_deadline_holds_whatever_is_dripped(script: Callable[[Request], Iterable[Any]]) -> None:
    with transport(**SOON) as asking, Scripted(script) as server:
        assert_deadline(asking, server.url("/a"))


def test_the_deadline_holds_while_connecting() -> None:
    with transport(**SOON) as asking, unaccepting_port() as port:
        assert_deadline(asking, f"http://127.0.0.1:{port}/a")


def test_the_timeout_holds_while_connecting() -> None:
    with transport(timeout=0.2) as asking, unaccepting_port() as port:
        failure = refusal(asking, f"http://127.0.0.1:{port}/a")
    assert (failure.reason, failure.passing, failure.unreachable) == (Reason.TIMEOUT, True, True)


@contextmanager
def dripping_handshake() -> Iterator[int]:
    """Yield a port that answers TLS with the header of a long record, and then byte by byte."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                accepted, _ = listener.accept()
                with accepted:
                    accepted.settimeout(0.02)
                    accepted.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
                    while True:
                        accepted.sendall(b"\x00")
                        with suppress(TimeoutError):
                            accepted.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        assert not thread.is_alive(), "the connection outlives its deadline"


def test_the_deadline_holds_during_a_handshake() -> None:
    with transport(**SOON) as asking, dripping_handshake() as port:
        assert_deadline(asking, f"https://127.0.0.1:{port}/a")


def test_a_handshake_that_is_not_answered_times_out() -> None:
    with transport(timeout=0.2) as asking, silent_port() as port:
        failure = refusal(asking, f"https://127.0.0.1:{port}/a")
    assert (failure.reason, failure.passing, failure.unreachable) == (Reason.TIMEOUT, True, True)


def test_the_deadline_holds_within_tls(tls: ssl.SSLContext, bundle: str) -> None:
    with transport(ca_bundle=bundle, **SOON) as asking, Scripted(drip(whole(BODY)), tls=tls) as server:
        assert_deadline(asking, server.url("/a"))


def test_an_unframed_body_that_the_deadline_cuts_off_does_not_pass_for_a_whole_one() -> None:
    with transport(**SOON) as asking, Scripted(plays(head(PNG) + BODY, End.STALL)) as server:
        assert_deadline(asking, server.url("/a"))


@pytest.mark.parametrize("behaviour", ["head", "body", "handshake", "connect"])
def test_an_interrupt_ends_what_is_under_way_and_what_comes_later(behaviour: str) -> None:
    scripts = {"head": plays(End.STALL), "body": plays(head(PNG) + BODY, End.STALL)}
    with (
        transport() as asking,
        silent_port() as silent,
        unaccepting_port() as full,
        Scripted(scripts.get(behaviour, plays(End.STALL))) as server,
    ):
        urls = {"handshake": f"https://127.0.0.1:{silent}/a", "connect": f"http://127.0.0.1:{full}/a"}
        url = urls.get(behaviour, server.url("/a"))
        failures: list[Failure] = []
        thread = threading.Thread(target=lambda: failures.append(refusal(asking, url)))
        thread.start()
        if url == server.url("/a"):
            server.wait_for(lambda: bool(server.requests))
        asking.interrupt()
        thread.join(4)
        assert not thread.is_alive()
        failures.append(refusal(asking, server.url("/a")))
    assert [failure.reason for failure in failures] == [Reason.INTERRUPTED, Reason.INTERRUPTED]


def test_an_attempt_that_is_ended_leaves_alone_the_connection_that_it_gave_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first attempt's redirect leads to a name whose look-up takes long; the second takes its connection over."""
    looked_up, taken_over = threading.Event(), threading.Event()
    look_up = socket.getaddrinfo

    def slow(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "slow.test":
            looked_up.set()
            taken_over.wait(5)
            host = "127.0.0.1"
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    leads_on = plays(head("Location: http://slow.test:1/b", "Content-Length: 0", status="302 Found"))
    with transport(max_time=0.5) as asking, Scripted(leads_on, plays(head(PNG) + BODY, 0.4, BODY, End.CLOSE)) as server:
        failures: list[Failure] = []
        thread = threading.Thread(target=lambda: failures.append(refusal(asking, server.url("/a"))))
        thread.start()
        assert looked_up.wait(5)
        time.sleep(0.3)  # The second attempt's deadline has to lie well behind that of the first.
        got = get(asking, server.url("/c"))
        taken_over.set()
        thread.join(5)
    assert server.connections == 1
    assert got.body == BODY * 2
    assert [failure.reason for failure in failures] == [Reason.DEADLINE]


def test_a_watch_may_be_ended_while_its_attempt_comes_and_goes() -> None:
    watchdog = Watchdog(1.0, 100.0)
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            watch = watchdog.watch()
            done = threading.Event()

            def come_and_go() -> None:
                while not done.is_set():
                    with closing(watch), suppress(DownloadError):
                        watch.guard(ours)

            thread = threading.Thread(target=come_and_go)
            thread.start()
            try:
                until = time.monotonic() + 0.5
                while time.monotonic() < until:
                    watch.end(Reason.INTERRUPTED)
            finally:
                done.set()
                thread.join()
    finally:
        sys.setswitchinterval(former)
        watchdog.close()


def test_nothing_is_left_of_a_transport_that_was_closed(tls: ssl.SSLContext, bundle: str) -> None:
    with Server() as plain, Server(tls=tls) as secure, refusing_port() as port:
        threads = set(threading.enumerate())
        with transport(ca_bundle=bundle, timeout=0.3) as asking:
            for url in (
                plain.url("/image/a"), secure.url("/image/a"), plain.url("/short-body/a"),
                plain.url("/stalling-head/a"),
                secure.url("/stalling-body/a"), f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{plain.port}/",
                plain.url("/garbage/a"), secure.url("/redirect-loop/a"), plain.url("/endless-headers/a"),
            ):  # fmt: skip
                with suppress(DownloadError):
                    get(asking, url)
        plain.wait_for(lambda: plain.at_work == 0)
        secure.wait_for(lambda: secure.at_work == 0)
        ours = [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("image_loader")]
        for each in ours:
            each.join(2)
        assert not any(each.is_alive() for each in ours)
        sockets = [each for each in gc.get_objects() if isinstance(each, socket.socket) and each.fileno() >= 0]
        ports = {plain.port, secure.port}
        assert [each for each in sockets if _peer_port(each) in ports] == []


def _peer_port(each: socket.socket) -> int | None:
    with suppress(OSError, IndexError, TypeError):
        return int(each.getpeername()[1])
    return None


# TLS ---------------------------------------------------------------------------------------------------------------


def test_an_error_of_tls_is_final(tls: ssl.SSLContext) -> None:
    with transport() as asking, Server(tls=tls) as secure, Server() as plain:
        untrusted = refusal(asking, secure.url("/a"))
        no_tls = refusal(asking, f"https://127.0.0.1:{plain.port}/a")
    for failure in (untrusted, no_tls):
        assert (failure.reason, failure.passing) == (Reason.TLS, False)
    assert "not trusted" in untrusted.detail
    assert secure.requests == plain.requests == []


def test_the_name_in_the_certificate_has_to_be_that_of_the_url(authority: trustme.CA, bundle: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with transport(ca_bundle=bundle) as asking, Server(tls=context) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.TLS
        assert get(asking, f"https://localhost:{server.port}/a").status == 200


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environment_says_whom_to_trust(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, bundle)
    with transport() as asking, Server(tls=tls) as server:
        assert get(asking, server.url("/a")).status == 200


def test_an_option_goes_before_the_environment(
    tls: ssl.SSLContext, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with Server(tls=tls) as server:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        with transport() as asking:
            assert refusal(asking, server.url("/a")).reason is Reason.TLS
        with transport(ca_bundle=bundle) as asking:
            assert get(asking, server.url("/a")).status == 200
        with transport(insecure=True) as asking:
            assert get(asking, server.url("/a")).status == 200
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        with transport(ca_bundle=str(other)) as asking:
            assert refusal(asking, server.url("/a")).reason is Reason.TLS


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_a_file_of_certificates_that_is_none_ends_the_run(
    tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "none.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with transport() as asking, Server(tls=tls) as server, pytest.raises(OptionError, match=re.escape(str(path))):
        get(asking, server.url("/a"))


def test_an_option_that_names_no_certificates_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "none.pem").touch()
    before = set(threading.enumerate())
    with pytest.raises(OptionError, match=r"none\.pem"):
        Transport(SETTINGS._replace(ca_bundle=str(tmp_path / "none.pem")))
    assert set(threading.enumerate()) <= before


def test_an_unframed_body_within_tls_is_whole_only_after_a_farewell(
    tls: ssl.SSLContext, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9112, 9.8: whoever stands in between could cut it short by closing the connection."""

    def lenient_context() -> ssl.SSLContext:
        """Make a context as Python up to 3.11.2 makes it."""
        context = create_urllib3_context()
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        return context

    monkeypatch.setattr(transport_module, "create_urllib3_context", lenient_context)
    own = shutil.copy(bundle, tmp_path)  # No context was made for it yet.
    with transport(ca_bundle=str(own)) as asking, Scripted(plays(head(PNG) + BODY, End.CLOSE), tls=tls) as server:
        failure = refusal(asking, server.url("/a"))
    assert (failure.reason, failure.passing) == (Reason.TRUNCATED, True)


def test_an_unframed_body_within_tls_is_whole_after_a_farewell(tls: ssl.SSLContext, bundle: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, transport(ca_bundle=bundle) as asking:

        def serve() -> None:
            accepted, _ = listener.accept()
            accepted.settimeout(5)
            with tls.wrap_socket(accepted, server_side=True) as secure, suppress(OSError):
                secure.recv(65536)
                secure.sendall(head(PNG) + BODY)
                secure.unwrap()

        thread = threading.Thread(target=serve)
        thread.start()
        assert get(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a").body == BODY
        thread.join()


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (b"", {Reason.CONNECT}),
        (b"HTTP/1.1 20", {Reason.PROTOCOL}),
        (head(PNG, length(BODY))[:-9], {Reason.PROTOCOL}),
        (whole(BODY)[:-9], {Reason.TRUNCATED}),
        (head(PNG, "Transfer-Encoding: chunked") + CHUNKS[:-5], {Reason.TRUNCATED}),
        (head(PNG, "Transfer-Encoding: chunked") + CHUNKS[:-2], {Reason.TRUNCATED, Reason.PROTOCOL}),
    ],
)
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_a_connection_lost_within_tls_is_no_error_of_tls(
    tls: ssl.SSLContext, bundle: str, data: bytes, reasons: set[Reason], end: End
) -> None:
    with (
        transport(ca_bundle=bundle) as asking,
        Scripted(plays(*([data, 0.05] if data else []), end), tls=tls) as server,
    ):
        failure = refusal(asking, server.url("/a"))
    assert failure.reason in reasons | ({Reason.CONNECT, Reason.TRUNCATED} if end is End.RESET else set())
    assert failure.passing


# Addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0",
        "0.1.2.3", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "ff0e::1", "100::1", "2001:db8::1",
        "3fff::1", "5f00::1", "4000::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_known_as_such(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700::1", "2002:808:808::1", "2a00::1"],
)
def test_a_public_address_is_known_as_such(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "017700000001", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
def test_a_private_address_is_refused_in_all_its_spellings(host: str) -> None:
    with transport(public_only=True) as asking, Server() as server:
        failure = refusal(asking, f"http://{host}:{server.port}/a")
    assert (failure.reason, failure.passing) == (Reason.PRIVATE_ADDRESS, False)
    assert server.connections == 0


def test_a_redirect_leads_to_no_private_address_either(asking: Transport) -> None:
    with transport(public_only=True) as careful, Server() as server:
        assert refusal(careful, f"https://127.0.0.1:{server.port}/a").reason is Reason.PRIVATE_ADDRESS


def test_a_proxy_is_refused_where_addresses_have_to_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as proxy, transport(public_only=True) as asking:
        monkeypatch.setenv("http_proxy", proxy.origin)
        assert refusal(asking, "http://images.test/a").reason is Reason.PRIVATE_ADDRESS
    assert proxy.connections == 0


def test_ipv6_is_spoken(asking: Transport) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        asked: list[bytes] = []

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                asked.append(accepted.recv(65536))
                accepted.sendall(whole(BODY))

        thread = threading.Thread(target=serve)
        thread.start()
        assert get(asking, f"http://[::1]:{port}/a").body == BODY
        thread.join()
    assert f"Host: [::1]:{port}\r\n".encode() in asked[0]


@pytest.mark.parametrize(
    ("host", "reason"), [("nowhere.invalid", Reason.DNS), ("xn--zz-.invalid", None), ("a." * 120 + "invalid", None)]
)
def test_a_name_without_an_address_is_told_as_such(asking: Transport, host: str, reason: Reason | None) -> None:
    failure = refusal(asking, f"http://{host}/a")
    assert failure.reason in ({reason} if reason else {Reason.DNS, Reason.BAD_URL})


@pytest.mark.parametrize("host", ["\u20ac" * 70 + ".test", "xn--\xe4.test", "\u200b.test", "a\u3002\u3002b"])
def test_a_host_name_that_cannot_be_encoded_is_a_bad_url(asking: Transport, host: str) -> None:
    assert refusal(asking, f"http://{host}/a").reason is Reason.BAD_URL


def test_a_refused_connection_says_so(asking: Transport) -> None:
    with refusing_port() as port:
        failure = refusal(asking, f"http://127.0.0.1:{port}/a")
    assert (failure.reason, failure.passing, failure.unreachable) == (Reason.CONNECT, True, True)
    assert failure.detail == "Connection refused"


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have no file or socket opened in this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("url", ["http://nosuch.invalid/a", "http://127.0.0.1:1/a", "https://127.0.0.1:1/a"])
def test_a_lack_of_descriptors_is_not_the_hosts_fault(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    authorities = Path(shutil.copy(bundle, tmp_path / "never-read-before.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authorities))
    with transport() as asking:
        with no_descriptors():
            failure = refusal(asking, url)
        later = refusal(asking, url)
    assert (failure.reason, failure.passing) == (Reason.CONNECT, True)
    assert (failure.exhausted, failure.unreachable) == (True, False)
    assert (later.exhausted, later.unreachable) == (False, True)


# Proxies -----------------------------------------------------------------------------------------------------------


def test_plain_http_goes_through_its_proxy_with_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(served()) as proxy, transport() as asking:
        monkeypatch.setenv("http_proxy", proxy.origin.replace("://", "://us%40er:se%3Acret@"))
        assert get(asking, "http://images.test:8080/a?b=c").body == BODY
        assert get(asking, "http://other.test/d").body == BODY
    first, second = proxy.requests
    assert (first.target, first.headers["host"]) == ("http://images.test:8080/a?b=c", "images.test:8080")
    assert (second.target, second.headers["host"]) == ("http://other.test/d", "other.test")
    assert first.headers["proxy-authorization"] == f"Basic {b64encode(b'us@er:se:cret').decode()}"
    assert proxy.connections == 1


def test_https_goes_through_its_proxy_as_a_tunnel_that_is_used_again(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as proxy, Server(tls=tls) as server, transport(ca_bundle=bundle) as asking:
        monkeypatch.setenv("https_proxy", proxy.origin)
        assert get(asking, server.url("/a")).body == server.image("/a")
        assert get(asking, server.url("/b")).body == server.image("/b")
    assert [request.target for request in proxy.requests] == [f"CONNECT {server.port}"]
    assert server.connections == 1
    assert all("proxy-authorization" not in request.headers for request in server.requests)


def test_a_tunnel_that_went_stale_is_built_again(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = (served(b"first"), plays(End.CLOSE), served(b"third"))
    with Server() as proxy, Scripted(*scripts, tls=tls) as server, transport(ca_bundle=bundle) as asking:
        monkeypatch.setenv("https_proxy", proxy.origin)
        assert get(asking, server.url("/a")).body == b"first"
        assert get(asking, server.url("/b")).body == b"third"
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("exception", ["127.0.0.1", "*", "localhost,127.0.0.0/8"])
def test_what_is_excepted_from_the_proxy_is_asked_for_directly(monkeypatch: pytest.MonkeyPatch, exception: str) -> None:
    with refusing_port() as port, Scripted(served()) as server, transport() as asking:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", exception)
        assert get(asking, server.url("/a")).body == BODY


@pytest.mark.parametrize("variable", ["all_proxy", "http_proxy"])
def test_a_socks_proxy_is_refused_in_plain_words(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "SOCKS5h://me:secret@127.0.0.1:9")
    with transport() as asking:
        failure = refusal(asking, "http://images.test/a")
    assert (failure.reason, failure.passing) == (Reason.CONNECT, False)
    assert failure.detail.startswith("SOCKS proxies are not spoken to")
    assert "secret" not in failure.detail


@contextmanager
def scripted_port(*steps: Any) -> Iterator[int]:
    """Yield a port that takes one connection, waits for some bytes, and sends these steps, whatever is spoken."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    with accepted, suppress(OSError):
                        accepted.recv(65536)
                        for step in steps:
                            if isinstance(step, bytes):
                                accepted.sendall(step)
                            else:
                                done.wait(step)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 \xff\xfe\r\n\r\n",
    ],
)
def test_a_proxy_that_builds_no_tunnel_fails_the_attempt(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    with scripted_port(answer) as port, transport() as asking:
        monkeypatch.setenv("https_proxy", f"http://user:hush@127.0.0.1:{port}")
        failure = refusal(asking, "https://images.test/a")
    assert failure.reason in (Reason.CONNECT, Reason.PROTOCOL, Reason.TLS)
    assert "address" not in failure.detail
    assert "hush" not in failure.detail


def test_a_proxy_that_refuses_a_tunnel_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_port(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as port, transport() as asking:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert "407" in refusal(asking, "https://images.test/a").detail


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("host", "reason"), [("127.0.0.1", Reason.CONNECT), ("nosuch.invalid", Reason.DNS)])
def test_a_proxy_that_cannot_be_reached_is_named(
    monkeypatch: pytest.MonkeyPatch, scheme: str, host: str, reason: Reason
) -> None:
    with refusing_port() as port, transport() as asking:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:hush@{host}:{port}")
        failure = refusal(asking, f"{scheme}://images.test/a")
        assert failure.detail.startswith(f"the proxy {host}:{port}: ")
    assert (failure.reason, failure.passing, failure.unreachable) == (reason, True, True)


def test_the_deadline_holds_while_a_tunnel_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = [b"HTTP/1.1 200 OK\r\n", *[part for _ in range(100) for part in (b"X: y\r\n", 0.05)]]
    with scripted_port(*endless) as port, transport(**SOON) as asking:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert_deadline(asking, "https://images.test/a")


@pytest.mark.parametrize(
    "proxy",
    [
        "http://", "http://user:hush@", "http://user:hush@127.0.0.1:99999", "http://user:hush@[::1", "socks5://user:hush@h:1",
        "nonsense://user:hush@127.0.0.1:1", "http://user:hush@127.0.0.1:port", "http://us\u20acer:hush@127.0.0.1:1",
        "http://user:hush@\u20ac\u200b..test:1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_used_fails_the_attempt_and_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, proxy: str, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    with transport() as asking:
        failure = refusal(asking, f"{scheme}://images.test/a")
    assert "hush" not in failure.detail
    assert (failure.reason, failure.passing) == (Reason.CONNECT, False), "another attempt changes nothing"


@contextmanager
def tls_proxy(tls: ssl.SSLContext) -> Iterator[str]:
    """Yield the URL of a proxy that is spoken to by TLS, and builds tunnels to 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    threading.Thread(target=serve, args=(accepted,), daemon=True).start()

        def serve(accepted: socket.socket) -> None:
            with suppress(OSError), tls.wrap_socket(accepted, server_side=True) as client:
                request = client.recv(65536).split()
                with socket.create_connection(("127.0.0.1", int(request[1].rpartition(b":")[2]))) as beyond:
                    client.sendall(head(status="200 Connection established"))
                    while _shuttle(client, beyond):
                        pass

        threading.Thread(target=accept, daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _shuttle(client: ssl.SSLSocket, beyond: socket.socket) -> bool:
    """Pass on what has come from either side; one thread for both, since TLS in Python takes no two at once."""
    ready = [client] if client.pending() else select.select([client, beyond], [], [])[0]
    for source, sink in ((client, beyond), (beyond, client)):
        if source in ready:
            received = source.recv(65536)
            sink.sendall(received)
            if not received:
                return False
    return True


def test_a_proxy_may_be_spoken_to_by_tls(tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    with tls_proxy(tls) as proxy, Server(tls=tls) as server, transport(ca_bundle=bundle) as asking:
        monkeypatch.setenv("https_proxy", proxy)
        assert get(asking, server.url("/a")).body == server.image("/a")
        assert get(asking, server.url("/b")).body == server.image("/b")
        assert refusal(asking, server.url("/closing-at-once/a")).reason is Reason.CONNECT
        assert refusal(asking, server.url("/short-body/a")).reason is Reason.TRUNCATED


def test_the_deadline_holds_through_a_proxy_that_is_spoken_to_by_tls(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    with tls_proxy(tls) as proxy, Scripted(plays(End.STALL), tls=tls) as server:
        monkeypatch.setenv("https_proxy", proxy)
        with transport(ca_bundle=bundle, **SOON) as asking:
            assert_deadline(asking, server.url("/a"))


@pytest.fixture
def _ten_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the name localhost lead to ten addresses; each has a tenth of the timeout to connect in."""
    look_up = socket.getaddrinfo

    def ten(host: str, *args: Any, **kwargs: Any) -> Any:
        return look_up("127.0.0.1", *args, **kwargs) * 10 if host == "localhost" else look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", ten)


@contextmanager
def late_handshake(tls: ssl.SSLContext, pause: float) -> Iterator[int]:
    """Yield a port that takes one connection, shakes hands after ``pause`` seconds, and answers one request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            time.sleep(pause)
            accepted.settimeout(5)
            with suppress(OSError), tls.wrap_socket(accepted, server_side=True) as client:
                client.recv(65536)
                client.sendall(whole(BODY))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


@pytest.mark.usefixtures("_ten_addresses")
def test_a_handshake_has_the_whole_timeout_whatever_addresses_its_host_has(tls: ssl.SSLContext, bundle: str) -> None:
    with late_handshake(tls, 0.4) as port, transport(ca_bundle=bundle, timeout=1.5) as asking:
        assert get(asking, f"https://localhost:{port}/a").body == BODY


@contextmanager
def led(way: str, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have requests for https go through a proxy that is at localhost, and is spoken to in plain text or by TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    with Server() as plain, tls_proxy(tls) as secure:
        if way != "directly":
            proxy = secure if way == "in TLS" else plain.origin
            monkeypatch.setenv("https_proxy", proxy.replace("127.0.0.1", "localhost"))
        yield


@pytest.mark.usefixtures("_ten_addresses")
@pytest.mark.parametrize("way", ["in plain text", "in TLS"])
def test_a_tunnel_has_the_whole_timeout_whatever_addresses_its_proxy_has(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with (
        led(way, tls, bundle, monkeypatch),
        transport(ca_bundle=bundle, timeout=1.5) as asking,
        late_handshake(tls, 0.4) as port,
    ):
        assert get(asking, f"https://127.0.0.1:{port}/a").body == BODY


# TLS within TLS is missing here: such a connection is used once.
@pytest.mark.parametrize(("scheme", "way"), [("http", "directly"), ("https", "directly"), ("https", "in plain text")])
def test_a_connection_made_shortly_before_a_deadline_has_the_whole_timeout_for_later_requests(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, scheme: str, way: str
) -> None:
    with (
        led(way, tls, bundle, monkeypatch),
        transport(ca_bundle=bundle, max_time=1.2) as asking,
        Scripted(served(), plays(0.8, whole(BODY)), tls=tls if scheme == "https" else None) as server,
        Scripted(plays(0.7, head(f"Location: {server.url('/b')}", status="302 Found"))) as leading,
    ):
        assert get(asking, leading.url("/a")).body == BODY
        assert get(asking, server.url("/c")).body == BODY
    assert server.connections == 1


# Who asks ----------------------------------------------------------------------------------------------------------


def _basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("userinfo", "sent"),
    [
        ("user:pass", "user:pass"), ("user", "user:"), (":pass", ":pass"), ("us%40er:p%3Ass%25", "us@er:p:ss%"),
        ("user:a:b", "user:a:b"), ("%C3%A4:%E2%82%AC", "\xe4:\u20ac"), ("\xe4:\u20ac", "\xe4:\u20ac"),
    ],
)  # fmt: skip
def test_user_and_password_of_the_url_are_sent(asking: Transport, userinfo: str, sent: str) -> None:
    with Scripted(served()) as server:
        get(asking, server.url("/a").replace("://", f"://{userinfo}@"))
    assert server.requests[0].headers["authorization"] == _basic(sent)


def test_netrc_lends_user_and_password_to_its_host_alone(asking: Transport, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password pass\n")
    netrc.chmod(0o600)
    with Scripted(served()) as server:
        get(asking, server.url("/a"))
        get(asking, server.url("/b").replace("://", "://own:secret@"))
        get(asking, f"http://localhost:{server.port}/c")
    assert [request.headers.get("authorization") for request in server.requests] == [
        _basic("user:pass"), _basic("own:secret"), None,
    ]  # fmt: skip


def test_netrc_does_not_go_before_what_the_user_asks_for(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password pass\n")
    (tmp_path / ".netrc").chmod(0o600)
    with Scripted(served()) as server, transport(headers={"authorization": "Bearer token"}) as asking:
        get(asking, server.url("/a"))
    assert server.requests[0].headers["authorization"] == "Bearer token"


@pytest.mark.parametrize("content", ["machine", "machine 127.0.0.1 login", "\x00\xff"])
def test_a_netrc_that_is_none_does_no_harm(asking: Transport, tmp_path: Path, content: str) -> None:
    (tmp_path / ".netrc").write_text(content)
    (tmp_path / ".netrc").chmod(0o600)
    with Scripted(served()) as server:
        assert get(asking, server.url("/a")).body == BODY


def test_a_netrc_in_another_encoding_ends_the_run_in_plain_words(asking: Transport, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes("machine 127.0.0.1 login caf\xe9 password pass\n".encode("latin-1"))
    (tmp_path / ".netrc").chmod(0o600)
    with pytest.raises(OptionError, match=r"\.netrc.*encoding"):
        get(asking, "http://127.0.0.1:9/a")


def redirect_to(location: str, status: str = "302 Found") -> Callable[[Request], Iterable[Any]]:
    return plays(head(f"Location: {location}", "Content-Length: 0", status=status))


OWN = {"Authorization": "own", "Cookie": "own", "X-Token": "own"}


def test_what_the_user_adds_is_sent_to_the_origin_of_the_list_alone() -> None:
    with (
        transport(headers=OWN) as asking,
        Scripted(served()) as other,
        Scripted(redirect_to(f"http://localhost:{other.port}/b")) as server,
    ):
        get(asking, server.url("/a"), {"If-None-Match": '"1"'})
        (first,), (second,) = server.requests, other.requests
    assert [first.headers.get(name.lower()) for name in OWN] == ["own"] * 3
    assert [second.headers.get(name.lower()) for name in OWN] == [None] * 3
    assert first.headers["user-agent"] == second.headers["user-agent"] == "test/1"
    assert first.headers["accept-encoding"] == second.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("other", ["http://localhost:{port}/b", "//localhost:{port}/b", "http://LOCALHOST:{port}/b"])
def test_another_name_of_the_same_server_is_another_origin(other: str) -> None:
    with transport(headers=OWN) as asking, Server() as server:
        server.steps = lambda request: iter(  # type: ignore[method-assign]
            redirect_to(other.format(port=server.port))(request) if request.target == "/a" else [whole(BODY)]
        )
        get(asking, server.url("/a").replace("://", "://user:secret@"))
    assert server.requests[1].target == "/b"
    assert [server.requests[1].headers.get(name.lower()) for name in OWN] == [None] * 3


@pytest.mark.parametrize("location", ["/b", "b", "?b", "//127.0.0.1:{port}/b", "http://127.0.0.1:{port}/b"])
def test_user_and_password_stay_with_their_origin_over_a_redirect(asking: Transport, location: str) -> None:
    with Server() as server:
        script = redirect_to(location.format(port=server.port))
        server.steps = lambda request: iter(  # type: ignore[method-assign]
            script(request) if request.target == "/a" else [whole(BODY)]
        )
        assert get(asking, server.url("/a").replace("://", "://user:pass@")).body == BODY
    assert [request.headers.get("authorization") for request in server.requests] == [_basic("user:pass")] * 2


# Redirects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/x/b.png", "/x/b.png"), ("b.png", "/d/b.png"), ("../b.png", "/b.png"), ("?q=1", "/d/a.png?q=1"),
        ("./b c.png", "/d/b%20c.png"), ("/b.png#part", "/b.png"), ("/\xc3\xa4.png", "/%C3%A4.png"), ("/%7e", "/%7e"),
    ],
)  # fmt: skip
def test_a_redirect_is_followed(asking: Transport, status: str, location: str, target: str) -> None:
    with Scripted(redirect_to(location, status), served()) as server:
        assert get(asking, server.url("/d/a.png?old")).body == BODY
    assert [request.target for request in server.requests] == ["/d/a.png?old", target]
    assert server.connections == 1


def test_a_redirect_to_another_scheme_is_followed(tls: ssl.SSLContext, bundle: str) -> None:
    with (
        transport(ca_bundle=bundle) as asking,
        Server(tls=tls) as secure,
        Scripted(redirect_to(secure.url("/b"))) as plain,
    ):
        assert get(asking, plain.url("/a")).body == secure.image("/b")


@pytest.mark.parametrize(
    "location",
    [
        "", "file:///etc/passwd", "ftp://127.0.0.1/a", "javascript:alert(1)", "http://", "http:///a", "http://[::1/a",
        "http://a b/c", "http://127.0.0.1:0/a", "http://127.0.0.1:65536/a", "http:b.png", "\\\\host\\a\xff://",
        "http://a..b/c", "http://" + "a" * 300 + "/", "http://.a/", "http://*.a/", "data:,x",
        "http://\xe2\x82\xac" * 60,
    ],
)  # fmt: skip
def test_a_redirect_to_where_one_cannot_go_fails_as_such(asking: Transport, location: str) -> None:
    with Scripted(redirect_to(location)) as server:
        failure = refusal(asking, server.url("/a"))
    assert (failure.reason, failure.passing) == (Reason.REDIRECTS, False)


def test_a_target_that_does_not_answer_is_given_up() -> None:
    reasons = []
    with (
        refusing_port() as port,
        Scripted(redirect_to(f"http://127.0.0.1:{port}/b")) as server,
        transport(host_failures=2, host_patience=1.0) as asking,
    ):
        for pause in (0.0, 1.1, 0.0):
            time.sleep(pause)
            reasons.append(refusal(asking, server.url("/a")).reason)
        reasons.append(refusal(asking, server.url("/a")).reason)
    assert reasons == [Reason.CONNECT] * 3 + [Reason.HOST_DOWN]


def test_a_redirect_without_a_location_fails(asking: Transport) -> None:
    with Scripted(plays(head("Content-Length: 0", status="302 Found"))) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.REDIRECTS


@pytest.mark.parametrize("status", ["300 Multiple Choices", "305 Use Proxy", "306 Unused"])
def test_other_statuses_of_their_kind_lead_nowhere(asking: Transport, status: str) -> None:
    with Scripted(redirect_to("/b", status)) as server:
        assert get(asking, server.url("/a")).status == int(status[:3])


def test_ten_redirects_are_followed_and_eleven_are_not(asking: Transport) -> None:
    with Scripted(*[redirect_to("/b")] * 10, served()) as server:
        assert get(asking, server.url("/a")).body == BODY
    with Scripted(redirect_to("/a")) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.REDIRECTS
        assert len(server.requests) == 11


def test_a_hostile_location_is_judged_in_an_instant(asking: Transport) -> None:
    with Scripted(redirect_to("http://" + ":" * 8000 + "]")) as server:
        assert seconds(lambda: refusal(asking, server.url("/a"))) < 0.4


def test_a_hostile_location_is_not_quoted(asking: Transport) -> None:
    with Scripted(redirect_to("http://user:hush@a b/\x1b[2J")) as server:
        detail = refusal(asking, server.url("/a")).detail
    assert "hush" not in detail
    assert "\x1b" not in detail

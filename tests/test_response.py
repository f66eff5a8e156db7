"""Responses, read from one end of a pair of sockets: the head, and where a body ends."""

from __future__ import annotations

import gzip
import random
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import h11
import pytest
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from asking import BODY, CHUNKS, OK, seconds
from exchange import chunked, head
from image_loader.errors import DownloadError
from image_loader.model import Failure, Reason
from image_loader.transport import coding
from image_loader.transport.response import ClosedEarlyError, ConnectResponse, Response, is_torn


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
        (f"{OK}Transfer-Encoding: identity\r\n{LENGTH}\r\n".encode() + BODY, False),
        (f"{OK}Transfer-Encoding: Identity\r\n\r\n".encode() + BODY, False),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n" + CHUNKS, False),
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
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding:", "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity, chunked", "Transfer-Encoding: chunked, identity", "Content-Length: \xa05",
        "Transfer-Encoding: chunked;a=b", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding:\r\n chunked",
        "Content-Length: \x0b5", "Content-Length: 5\r\nTransfer-Encoding: gzip", "Transfer-Encoding: identity, a",
    ],
)  # fmt: skip
def test_framing_that_is_not_beyond_doubt_is_refused(framing: str) -> None:
    failure = response_refusal(head(framing) + b"12345")
    assert (failure.reason, failure.retryable) == (Reason.PROTOCOL, False)


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("Content-Length: 5, 6", "5, 6"),
        ("Content-Length: 5\r\nContent-Length: 6", "5, 6"),
        ("Content-Length: 1_0", "1_0"),
        ("Transfer-Encoding: gzip, chunked", "gzip, chunked"),
        ("Content-Length : 5", "Content-Length"),
    ],
)
def test_a_refusal_quotes_what_is_wrong(line: str, quoted: str) -> None:
    assert quoted in response_refusal(head(line) + b"12345").detail


@pytest.mark.parametrize(
    "line",
    [
        "no colon", ": no name", "Access-Control-Allow-Credentials : true", " leading: space", "\tfolded", "\xe4: b",
        "X-Foo(bar): 1", "PHP Warning:  Undefined variable $a in /a.php on line 1", "<b>Warning</b>: length",
        "no colon\r\n its continuation", "=====", "HTTP/1.1 200 OK", "X Content-Type: a", "<html>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_a_malformed_line_that_does_not_matter_is_left_out(line: str, *, first: bool) -> None:
    before = ["A: b", "no colon"] if line[0] in " \t" else ["A: b"]
    lines = [line, *before] if first else [*before, line]
    with response_to(head(*lines, LENGTH.strip()) + BODY) as response:
        response.read_head()
        assert response.fields == {"a": "b", "content-length": str(len(BODY))}
        assert response.read(100_000) == BODY
        assert response.reusable


@pytest.mark.parametrize(
    "line",
    [
        "Content-Length : 5", "Content-Length\t: 5", " Content-Length: 5", "Content-Length 5", "CONTENT-LENGTH : 5",
        "\x0bContent-Length: 5", "Content-Length\xa0: 5", "Content Length: 5", "X Content-Length: 5",
        "Content-\r\n Length: 5", "no colon\r\n Content-Length: 5", "A: b\r\n Content-Length: 5",
        "A: b\r\n\tTransfer-Encoding : chunked", "Transfer-Encoding : chunked", "Transfer -Encoding: chunked",
        "Transfer-Encoding chunked", "Tran\xadsfer-Encoding: chunked", "Content-Encoding : gzip",
        "Content-Range : bytes 0-4/5", "A: b\rContent-Length: 5", "\r\r\nA: b", "Content-Length: 3000\r\n \x00",
        "Content-Length: 3000\r\n no\x01", "\r", " ", "A\x00b: c", "A: b\x00c", "A: b\rc: d", "A: b\r",
        "\x01\x02: \x03", "\x89PNG\r\n\x1a", "GIF89a\x01",
    ],
)  # fmt: skip
def test_a_malformed_line_that_may_matter_is_refused(line: str) -> None:
    failure = response_refusal(head(line, f"Content-Length: {len(BODY)}") + BODY)
    assert (failure.reason, failure.retryable) == (Reason.PROTOCOL, False)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Location: http://cdn/a.png?token=SECRET\x00", ": Location …"),
        ("Set-Cookie session=SECRET\x01", ""),
        ("Location: /?SECRET\r/", ": Location …"),
        ("Location http://cdn/?content-length=SECRET", ""),
        ("A: b\r\n Content-Length: SECRET", ": Content-Length …"),
        ("\x01SECRET: a", ""),
    ],
)
def test_of_a_malformed_line_nothing_but_its_name_is_shown(line: str, shown: str) -> None:
    assert response_refusal(head(line) + BODY).detail == f"malformed header line{shown}"


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        (("Location: /a", "Location: /a"), False),
        (("Location: /a", "Location: /b"), True),
        (("Location: /b", "Location: /a"), True),
        (("Location: /a", "Location: /a\r\n b"), True),
    ],
)
def test_two_locations_that_differ_lead_nowhere(lines: tuple[str, ...], *, refused: bool) -> None:
    found = _read_head(head(*lines, status="302 Found"))
    assert isinstance(found, str) is refused


def test_a_list_that_goes_on_in_the_next_line_may_name_any_field() -> None:
    with response_to(
        head("Access-Control-Expose-Headers: ETag,\r\n Content-Length", LENGTH.strip()) + BODY
    ) as response:
        response.read_head()
        assert response.length == len(BODY)


@pytest.mark.parametrize(("count", "refused"), [(20, False), (21, True)])
def test_some_interim_responses_are_passed_over(count: int, *, refused: bool) -> None:
    with response_to(head(status="103 Early") * count + head(LENGTH.strip()) + BODY) as response:
        if refused:
            with pytest.raises(DownloadError, match="20 interim"):
                response.read_head()
        else:
            response.read_head()
            assert response.status == 200


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_any_interim_response_but_that_of_another_protocol_is_passed_over(status: int) -> None:
    assert read_response(head(status=f"{status} Wait") + head(LENGTH.strip()) + BODY) == (200, BODY, True)


def test_another_protocol_that_nobody_asked_for_is_refused() -> None:
    failure = response_refusal(head("Upgrade: h2c", status="101 Switching Protocols") + head(LENGTH.strip()) + BODY)
    assert (failure.reason, "101" in failure.detail) == (Reason.PROTOCOL, True)


@pytest.mark.parametrize("odd", ["", "no colon"])
@pytest.mark.parametrize(("count", "refused"), [(500, False), (501, True)])
def test_many_fields_are_refused_however_short_they_are(count: int, odd: str, *, refused: bool) -> None:
    lines = [odd] * bool(odd)
    lines += [f"{number:x}:" for number in range(count - len(lines))]
    with response_to(head(*lines)) as response:
        if refused:
            with pytest.raises(DownloadError):
                response.read_head()
        else:
            response.read_head()
            assert len(response.fields) == count - bool(odd)


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
    assert (failure.reason, failure.retryable) == (Reason.PROTOCOL, False)


@pytest.mark.parametrize(
    "size", ["zz", "-3", "+3", "0x3", "3_0", "", " 3", ";a", "f" * 16, "3\x00", "3 3", "\xb2"]
)  # fmt: skip
def test_a_chunk_size_that_is_no_number_is_refused(size: str) -> None:
    failure = response_refusal(head("Transfer-Encoding: chunked") + f"{size}\r\nabc\r\n0\r\n\r\n".encode("latin-1"))
    assert failure.reason is Reason.PROTOCOL


@pytest.mark.parametrize("length", [len(BODY) // 2, len(BODY) - 1, 0])
def test_a_body_shorter_than_its_length_is_truncated(length: int) -> None:
    failure = response_refusal(f"{OK}{LENGTH}\r\n".encode() + BODY[:length])
    assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 6, 100, 700, 710])
def test_chunks_that_end_anywhere_but_at_their_end_fail_and_may_be_tried_again(cut: int) -> None:
    failure = response_refusal(head("Transfer-Encoding: chunked") + CHUNKS[:-cut])
    assert failure.reason in (Reason.TRUNCATED, Reason.PROTOCOL)
    assert failure.retryable


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_head_that_is_cut_off_fails_and_may_be_tried_again(cut: int) -> None:
    failure = response_refusal(f"{OK}{LENGTH}\r\n".encode()[:-cut])
    assert (failure.reason, failure.retryable) == (Reason.PROTOCOL, True)


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


@pytest.mark.parametrize(("last", "refused"), [(364, False), (365, True)])
def test_each_field_counts_for_its_line_and_32_bytes(last: int, refused: bool) -> None:
    lines = [f"{number:03}:{'x' * 618}" for number in range(399)]
    data = head(*lines, f"z:{'x' * last}")
    assert 399 * (624 + 32) + 364 + 4 + 32 == 256 * 1024
    if refused:
        assert "256 KiB" in response_refusal(data).detail
    else:
        assert read_response(data)[0] == 200


class Pieces:
    """A connection that brings so many bytes at a time, and ends with an error, if there is one."""

    def __init__(self, data: bytes, size: int, error: Exception | None = None) -> None:
        self._data, self._size, self._error = data, size, error

    def recv(self, limit: int) -> bytes:
        if not self._data and self._error is not None:
            raise self._error
        size = min(limit, self._size)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def in_pieces(data: bytes, size: int = 10**6, error: Exception | None = None) -> Response:
    """Return the response of such a connection, its head read."""
    connection: Any = Pieces(data, size, error)
    response = Response(connection)
    response.read_head()
    return response


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize(
    "data",
    [
        f"{OK}{LENGTH}X: y\r\n\r\n".encode() + BODY,
        f"{OK}X: y\r\n z\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + CHUNKS,
        f"{OK}X: y\n\n".encode() + BODY,
    ],
)
def test_the_pieces_in_which_a_response_comes_make_no_difference(data: bytes, size: int) -> None:
    whole, parts = in_pieces(data), in_pieces(data, size)
    assert (parts.status, parts.fields) == (whole.status, whole.fields)
    assert b"".join(iter(lambda: parts.read(100), b"")) == b"".join(iter(lambda: whole.read(10**6), b"")) == BODY
    assert parts.reusable == whole.reusable


def test_a_connection_without_a_word_for_its_end_tells_of_no_whole_body() -> None:
    response = in_pieces(OK.encode() + b"\r\n" + BODY, error=ssl.SSLEOFError(8, "EOF"))
    assert response.read(10**6) == BODY
    with pytest.raises(DownloadError, match="without close_notify") as caught:
        response.read(10**6)
    assert (caught.value.failure.reason, caught.value.failure.retryable) == (Reason.TRUNCATED, True)


def test_other_errors_of_a_connection_are_told_as_they_are() -> None:
    bad_record = ssl.SSLError(1, "bad record")
    bad_record.reason = "BAD_RECORD"
    with pytest.raises(ssl.SSLError, match="bad record"):
        in_pieces(OK.encode() + b"\r\n", error=bad_record).read(10)
    with pytest.raises(TimeoutError):
        in_pieces(OK.encode() + b"\r\n", error=BlockingIOError()).read(10)


def test_a_body_whose_length_is_not_told_is_not_passed_over() -> None:
    response = in_pieces(head("A: b", status="302 Found") + b"12345")
    response.skip_buffered()
    assert not response.complete


@pytest.mark.parametrize("status", [200, 404])
def test_a_body_of_no_bytes_is_read_at_once(status: int) -> None:
    assert read_response(head("Content-Length: 0", status=f"{status} So"), ended=False) == (status, b"", True)


@pytest.mark.parametrize(
    ("error", "reason", "torn"),
    [
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "", True),
        (ssl.SSLError(1, "unexpected eof while reading"), "UNEXPECTED_EOF_WHILE_READING", True),
        (ssl.SSLError(1, "wrong version number"), "WRONG_VERSION_NUMBER", False),
        (ssl.SSLError(1, "bad length"), "BAD_LENGTH", False),
    ],
)
def test_a_tls_connection_is_torn_where_it_ends_without_a_word(error: ssl.SSLError, reason: str, torn: bool) -> None:
    error.reason = reason
    assert is_torn(error) is torn


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


@pytest.mark.parametrize("behind", [b"", b"behind"])
@pytest.mark.parametrize("interim", [b"", head(status="103 Early Hints")])
@pytest.mark.parametrize("field", ["Content-Length: 3", "Content-Length: nonsense", "Transfer-Encoding: nonsense"])
def test_the_answer_to_connect_ends_with_its_head(behind: bytes, interim: bytes, field: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(interim + head(field, status="201 Built \xe4") + behind)
        answer = ConnectResponse(ours)
        answer.read_head()
    assert (answer.status, answer.phrase, answer.overrun) == (201, "Built \xe4", bool(behind))


class LineByLine(Response):
    """One that never reads a head at once."""

    def _read_usual_head(self) -> bool:
        return False


_STATUS_LINES = st.sampled_from(
    ["HTTP/1.1 200 OK"] * 6
    + ["HTTP/1.0 200 OK", "HTTP/1.1 304", "HTTP/1.1 404 ", "HTTP/1.1 103 Early", "HTTP/1.1 200 \xc4", "HTTP/1.1 20 OK"]
    + [
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 200 O\nK",
        "HTTP/1.1 200 OK\r",
        "HTTP/1.1 99 no",
        "HTTP/1.1 200OK",
        "HTTP/2 200 OK",
    ]
)
_NAMES = st.sampled_from(["A", "a", "B-2", "Content-Type", "Location", "content-length", "Transfer-Encoding"])
_VALUES = st.sampled_from(["b", "", "5", "6", "5, 5", "chunked", "gzip", "identity", "x: y", "\xe4"])
_BLANKS = st.sampled_from(["", " ", "\t", " \t "])
_USUAL_LINES = st.builds("{}:{}{}{}".format, _NAMES, _BLANKS, _VALUES, _BLANKS)
_ODD_LINES = st.sampled_from(
    ["C : x", " folded", "\tContent-Length: 5", ": x", "no colon", "D: \0", "\xc4: x", "E: \xc4\r", "", "\n", "C(d): e"]
) | st.text("aB:- \t\r\n\0\xe4", max_size=8)
_HEADS = st.builds(
    lambda first, lines, end: "".join(f"{line}{end}" for line in (first, *lines, "")).encode("latin-1"),
    _STATUS_LINES,
    st.lists(_USUAL_LINES | _USUAL_LINES | _USUAL_LINES | _ODD_LINES, max_size=6),
    st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]),
)
Read = tuple[int, Mapping[str, str], int | None, bool]


def _read_head(data: bytes, kind: type[Response] = Response) -> Read | str:
    """Return what is read of a head: the status, the fields, the frame; or why it is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        response = kind(ours)
        try:
            response.read_head()
        except (DownloadError, ClosedEarlyError) as error:
            return f"{type(error)}: {error}"
        return response.status, response.fields, response.length, response._chunked


@settings(max_examples=1000)
@given(_HEADS, _HEADS)
@example(b"HTTP/1.1 200 OK\r\nA: b\rc\nD: e\r\n\r\n", b"")
@example(b"HTTP/1.1 200 OK\r\nA: b\nD: e\r\n\r\n", b"")
@example(b"HTTP/1.1 200 OK\r\nno-colon\r\n\r\n", b"")
@example(b"HTTP/1.1 200 OK\r\nA: b\rD: e\r\n\r\n", b"")
def test_a_head_that_is_read_at_once_is_the_same_as_line_by_line(data: bytes, behind: bytes) -> None:
    assert _read_head(data + behind) == _read_head(data + behind, LineByLine)


def _read_by_h11(data: bytes) -> Read | str:
    """Return what another reader of HTTP/1.1 makes of a head."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.receive_data(data)
    connection.receive_data(b"")
    try:
        event = connection.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return str(error)
    if not isinstance(event, h11.Response):
        return str(event)
    fields: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode(), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    reader: Any = connection._reader
    length = reader._length if type(reader).__name__ == "ContentLengthReader" else None
    is_chunked = type(reader).__name__ == "ChunkedReader"
    return event.status_code, fields, None if event.status_code in (204, 304) else length, is_chunked


def _why_only_we_refuse(data: bytes, refusal: str) -> str:
    """Return the reason for refusing what h11 reads; empty where there is none."""
    if "two Location values" in refusal:
        return "they are no list that could be joined"
    if "malformed header line" in refusal and re.search(rb"\n[ \t]+Content-Length:", data):
        return "others may read a length in the continuation of another field"
    if "Transfer-Encoding is not supported" in refusal and re.search(rb"(?i)transfer-encoding:[^\n]*\n[ \t]", data):
        return "a frame that is folded is not beyond doubt"
    return ""


def _why_only_h11_refuses(ours: Read, refusal: str) -> str:
    """Return the reason for reading what h11 refuses; empty where there is none."""
    status, fields, _, is_chunked = ours
    if "illegal header line" in refusal or "continuation line at start" in refusal:
        return "a malformed line that does not matter is left out"
    if status in (204, 304):
        return "whatever frames it, there is no body"
    if is_chunked and "Content-Length" in refusal:
        return "chunks count, whatever length is told; the connection is closed behind them"
    if "Only Transfer-Encoding: chunked" in refusal and fields.get("transfer-encoding") == "identity":
        return "it was a word for none"
    return ""


def _comparable(read: Read) -> tuple[Any, ...]:
    """Leave out in which form a repeated length or Location is kept, and the blanks where a line was folded."""
    status, fields, length, chunked = read
    told = {name: re.sub("[ \t]", "", value) for name, value in fields.items() if name != "content-length"}
    if "location" in told:
        told["location"] = ",".join(dict.fromkeys(told["location"].split(",")))
    return status, told, length, chunked


@settings(max_examples=1000)
@given(_HEADS)
def test_heads_are_read_as_another_reader_does_but_for_what_is_meant(data: bytes) -> None:
    ours, theirs = _read_head(data), _read_by_h11(data)
    note(f"ours: {ours}\nh11: {theirs}")
    if isinstance(ours, str):
        assert isinstance(theirs, str) or _why_only_we_refuse(data, ours)
    elif isinstance(theirs, str):
        assert _why_only_h11_refuses(ours, theirs)
    else:
        assert _comparable(ours) == _comparable(theirs)


def test_a_body_that_has_arrived_is_passed_over_and_one_that_has_not_is_not_waited_for() -> None:
    with response_to(head("Content-Length: 5", status="302 Found") + b"12345", ended=False) as response:
        response.read_head()
        response.skip_buffered()
        assert response.reusable
    with response_to(head("Content-Length: 5", status="302 Found") + b"123456", ended=False) as response:
        response.read_head()
        response.skip_buffered()
        assert (response.complete, response.reusable) == (True, False)
    with response_to(head("Content-Length: 5", status="302 Found") + b"123", ended=False) as response:
        response.read_head()
        response.skip_buffered()
        assert (response.complete, response.reusable) == (False, False)
        assert response.read(10) == b"123"


@pytest.mark.parametrize(
    ("arrived", "reusable"),
    [
        (b"3\r\nabc\r\n0\r\n\r\n", True),
        (b"3\r\nabc\r\n0\r\nA: b\r\n\r\n", True),
        (b"0\r\n\r\n", True),
        (b"3\r\nabc\r\n0\r\n\r\nX", False),
        (b"", False),
        (b"3\r\na", False),
        (b"3\r\nabc\r\n", False),
        (b"3\r\nabc\r\n0\r\n", False),
        (b"zz\r\n", False),
    ],
)
def test_a_body_in_chunks_that_has_arrived_is_passed_over_and_one_that_has_not_is_not_waited_for(
    arrived: bytes, reusable: bool
) -> None:
    with response_to(head("Transfer-Encoding: chunked", status="404 No") + arrived, ended=False) as response:
        response.read_head()
        response.skip_buffered()
        assert response.reusable is reusable


def test_a_trailer_is_no_head() -> None:
    body = b"3\r\nabc\r\n0\r\nLocation: /a\r\nLocation: /b\r\n"
    assert read_response(head("Transfer-Encoding: chunked") + body + b"\r\n")[1] == b"abc"
    failure = response_refusal(head("Transfer-Encoding: chunked") + body)
    assert (failure.reason, failure.detail) == (Reason.TRUNCATED, "the connection ended inside the trailer")
    assert failure.retryable


@pytest.mark.parametrize("options", ["keep-alive\t,\tclose", "keep-alive , close", "Close", "upgrade,\tCLOSE\t"])
def test_a_connection_that_is_to_be_closed_is_not_used_again(options: str) -> None:
    assert not read_response(head("Content-Length: 0", f"Connection: {options}"))[2]


def test_no_bytes_at_all_raise_anything_but_what_is_said() -> None:
    draw = random.Random(1)
    pieces = [b"", b"\r\n", b"\n", b":", b" ", b"0", b"f", b"\xff", b"\0", b","]
    seeds = [
        head("Content-Length: 24", "Content-Encoding: gzip") + gzip.compress(b"body"),
        head("Transfer-Encoding: chunked", "A: b\r\n c") + chunked(b"body" * 9, 7) + b"0\r\nA: b\r\n\r\n",
        head("A: b", status="103 Early") + head("Content-Length: 3,3", status="302 Found", version="HTTP/1.0") + b"abc",
    ]
    endings = Counter[type[Exception] | None]()
    for _ in range(1500):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(data))
            data[place : place + draw.randrange(3)] = draw.choice(pieces)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            response = Response(ours)
            try:
                response.read_head()
                body = iter(lambda response=response: response.read(100), b"")  # type: ignore[misc]
                b"".join(coding.decoded(body, response.fields.get("content-encoding", ""), 100))
            except (DownloadError, ClosedEarlyError) as error:
                endings[type(error)] += 1
            else:
                endings[None] += 1
    assert all(endings[each] for each in (None, DownloadError))
    assert endings.total() == 1500

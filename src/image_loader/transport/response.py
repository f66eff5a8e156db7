"""One HTTP/1.x response, read from its socket: the head, and the body within its frame (RFC 9112).

Strict about what frames the body, since a mistake there would save a wrong image; tolerant about all else.
"""

from __future__ import annotations

import functools
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from image_loader.errors import DownloadError
from image_loader.model import Reason

if TYPE_CHECKING:
    import socket

    class TlsWithinTls(Protocol):
        """The object of urllib3 that speaks TLS within TLS: no socket itself, but on top of one."""

        socket: socket.socket

        def recv(self, size: int, /) -> bytes:
            """Return what the peer sends next, at most ``size`` bytes."""

        def sendall(self, data: bytes, /) -> None:
            """Send all of it."""

        def close(self) -> None:
            """Close the connection."""

    Stream = socket.socket | TlsWithinTls
    """What requests and responses go over."""

_BUFFER = 65536
"""Bytes of one receive, which takes the head and the whole of a small image."""
_LINE_LIMIT = 65536
"""Bytes of a line in the head or between chunks."""
_FIELDS_LIMIT = 262144
"""Bytes of all header fields."""
_MOST_FIELDS = 500
_MOST_INTERIM = 20
"""1xx responses before the one that counts."""
_USUAL_HEAD = 8192
"""Bytes of a head that is read at once where nothing about it is odd."""
_FIELD_OVERHEAD = 32
"""Bytes that each field counts for beside its length, as in HTTP/2 (RFC 9113, 6.5.2): many short ones cost as well."""

_STATUS_LINE = re.compile(r"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\x00]*)?\r?\n")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(r"[0-9]{1,18}")
# Few answers need those below: they are compiled with the first one that does.
_FIELD_LINE = rf"({_FIELD_NAME.pattern}):([^\r\n\x00]*)\r?\n"
_CHUNK_SIZE = rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n"
_CONTINUATION = r"[ \t]([^\r\n\x00]*)\r?\n"
# A malformed line with one of these could have been meant to say where the body ends, or how to read it: what is left
# of a line when all but its letters is taken away.
_FRAMING = "contentlength|transferencoding|contentencoding|contentrange"
_FRAMING_FIELD = r"(?i)[ \t]*(?:content-length|transfer-encoding)[ \t]*:"
_NO_LETTERS = "[^a-z]+"
# Control characters: a line with one may be the beginning of a body that has no header.
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f]"
_BLANKS = " \t"
_LONGEST_FRAMING = len("transfer-encoding")
_SHOWN = 80
"""Characters of what a server sent that a message shows."""
_SHOWN_NAME = r"[ \t]*([A-Za-z-]{1,40})[ \t]*:"
_BODILESS = frozenset({204, 304})


class ClosedEarlyError(Exception):
    """The peer closed or reset the connection before it answered at all."""


class NoStatusLineError(DownloadError):
    """What came is not a response. On a connection that was used before, it may be the rest of the last one."""

    def __init__(self, *, retryable: bool) -> None:
        super().__init__(Reason.PROTOCOL, "no HTTP/1.x status line", retryable=retryable)


class Response:
    """The response that follows on ``connection``; what breaks the rules of framing is a ``DownloadError``.

    ``status`` is its code. ``fields`` has the header fields by lower-case name, repeated ones joined by commas
    (RFC 9110, 5.3). ``length`` is the number of body bytes announced, None where chunks or the end of the connection
    frame the body. ``complete`` says whether the body was read to its end.
    """

    # The state at the beginning. As class attributes, they cost nothing for each response.
    status = 0
    fields: dict[str, str]
    length: int | None = None
    complete = False
    _buffer = b""
    _at = 0
    _minor_version = 1
    _status_line = b""
    _chunked = False
    _left = 0
    _doubtful = False
    _ended = False
    _torn = False

    def __init__(self, connection: Stream) -> None:
        self._recv = connection.recv

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: the body is read, nothing follows it, the peer stays.

        Nor if the frame was one that others may read differently (RFC 9112, 9.3, 6.1 and 6.3).
        """
        if not self.complete or self._doubtful or self._ended or self._at != len(self._buffer):
            return False
        options = _options(self.fields.get("connection", ""))
        return "close" not in options if self._minor_version else "keep-alive" in options

    def read_head(self) -> None:
        """Read the status line and the header fields, past some 1xx responses (RFC 9110, 15.2)."""
        for _ in range(_MOST_INTERIM + 1):
            try:
                if self._at == len(self._buffer):
                    self._buffer, self._at = self._receive(_BUFFER), 0
                usual = self._read_usual_head()
                if not usual:
                    self._read_status_line()
            except ConnectionError as error:
                raise ClosedEarlyError(str(error)) from error
            if not usual:
                self.fields = _fields(self._field_lines())
            if self.status >= 200:
                self._frame()
                return
            if self.status == 101:
                raise DownloadError(Reason.PROTOCOL, "101 Switching Protocols, unasked")
        raise DownloadError(Reason.PROTOCOL, f"more than {_MOST_INTERIM} interim responses (1xx)")

    def read(self, limit: int) -> bytes:
        """Return up to ``limit`` bytes of the body as they come; nothing once it is complete."""
        if self.complete:
            return b""
        if self._chunked:
            try:
                return self._read_chunked(limit)
            except DownloadError:
                self._doubtful = True  # Nobody knows where a broken frame ends.
                raise
        if self.length is None:
            data = self._read_some(limit)
            self.complete = not data
            if self._torn:
                raise DownloadError(Reason.TRUNCATED, "TLS connection closed without close_notify", retryable=True)
            return data
        return self._read_framed(limit)

    def skip_buffered(self) -> None:
        """Pass over a body that has arrived already, so that its connection can be used again; never wait for one."""
        if self.complete:
            return
        if self._chunked:
            self._recv = _nothing  # What is not here yet ends the body, and then the connection is used no more.
            with suppress(DownloadError):
                while self.read(_BUFFER):
                    pass
        elif self.length is not None and len(self._buffer) - self._at >= self._left:
            self._at += self._left
            self.complete = True

    def _read_usual_head(self) -> bool:
        """Read the head at once where all of it is there and nothing about it is odd; else tell so, and leave it."""
        end = self._buffer.find(b"\r\n\r\n", self._at, self._at + _USUAL_HEAD)
        head = _usual_head(self._buffer[self._at : end].decode("latin-1")) if end > 0 else None
        if head is None:
            return False
        (self._minor_version, self.status), self.fields = head
        self._at = end + 4
        return True

    def _read_status_line(self) -> None:
        line = self._line()
        if not line:
            raise ClosedEarlyError("the server closed the connection without an answer")
        status = _status(line.decode("latin-1"))
        if status is None:
            raise NoStatusLineError(retryable=not line.endswith(b"\n"))
        self._minor_version, self.status = status
        self._status_line = line

    def _field_lines(self) -> Iterator[tuple[str, str]]:
        """Yield names and values line by line; a name is empty where the line continues the one before.

        A malformed line is left out, with its continuations.
        """
        room, name, left_out = _FIELDS_LIMIT, "", ""
        for _ in range(_MOST_FIELDS + 1):
            line = self._head_line()
            room -= len(line) + _FIELD_OVERHEAD
            if line in ("\r\n", "\n"):
                return
            if room < 0:
                break
            if match := re.fullmatch(_FIELD_LINE, line):
                name, left_out = match[1], ""
                yield name, match[2]
            elif name and not left_out and (match := re.fullmatch(_CONTINUATION, line)):
                _check_continuation(line)
                yield "", match[1]
            else:
                left_out = _left_out(line, left_out if line[0] in " \t" else "")
        raise DownloadError(Reason.PROTOCOL, f"more than {_MOST_FIELDS} header fields, or 256 KiB of them")

    def _head_line(self) -> str:
        line = self._line()
        if not line.endswith(b"\n"):
            if self._chunked:
                raise DownloadError(Reason.TRUNCATED, "the connection ended inside the trailer", retryable=True)
            raise DownloadError(Reason.PROTOCOL, "the connection ended inside the head", retryable=True)
        return line.decode("latin-1")

    def _frame(self) -> None:
        """Find where the body ends (RFC 9112, 6.3); trust no length that is not beyond doubt."""
        coding, length = self.fields.get("transfer-encoding"), self.fields.get("content-length")
        if self.status in _BODILESS:
            self.complete = True
            return
        if coding is not None:
            # RFC 2616 had "identity", for none. HTTP/1.0 has no codings, but some of its servers use them.
            self._chunked = coding.lower() == "chunked"
            if not self._chunked and coding.lower() != "identity":
                raise DownloadError(Reason.PROTOCOL, f"Transfer-Encoding is not supported: {_shown(coding)}")
            self._doubtful = length is not None or not self._minor_version
        if length is not None and not self._chunked:
            self.length = self._left = _plain_length(length)
            self.complete = self.length == 0

    def _read_framed(self, limit: int) -> bytes:
        data = self._read_some(min(limit, self._left))
        self._left -= len(data)
        self.complete = not self._left
        if not data:
            raise DownloadError(Reason.TRUNCATED, f"{self._left} of {self.length} bytes never came", retryable=True)
        return data

    def _read_chunked(self, limit: int) -> bytes:
        if not self._left:
            self._left = self._chunk_size()
        if not self._left:
            for _ in self._field_lines():
                pass  # A trailer says nothing that is wanted here (RFC 9110, 6.5.1).
            self.complete = True
            return b""
        data = self._read_some(min(limit, self._left))
        if not data:
            raise DownloadError(Reason.TRUNCATED, "the connection ended inside a chunk", retryable=True)
        self._left -= len(data)
        if not self._left and self._line() not in (b"\r\n", b"\n"):
            raise DownloadError(Reason.TRUNCATED, "a chunk without its end", retryable=True)
        return data

    def _chunk_size(self) -> int:
        line = self._line()
        if match := re.fullmatch(_CHUNK_SIZE, line):
            return int(match[1], 16)
        if line.endswith(b"\n"):
            raise DownloadError(Reason.PROTOCOL, "a chunk size that is no number")
        raise DownloadError(Reason.TRUNCATED, "the connection ended between chunks", retryable=True)

    def _read_some(self, limit: int) -> bytes:
        """Return what is there, at most ``limit`` bytes; nothing when the peer has closed."""
        if self._at < len(self._buffer):
            data = self._buffer[self._at : self._at + limit]
            self._at += len(data)
            return data
        return self._receive(limit)

    def _receive(self, limit: int) -> bytes:
        """Return what the peer sends next; nothing when it has closed."""
        try:
            # TLS within TLS (urllib3 2.8) says 0 for the end.
            data = self._recv(limit) or b""
        except ssl.SSLError as error:
            if not is_torn(error):
                raise
            self._torn, data = True, b""
        except BlockingIOError as error:
            raise TimeoutError from error  # What SO_RCVTIMEO says.
        self._ended = not data
        return data

    def _line(self) -> bytes:
        """Return the next line with its end; less, or nothing, when the peer has closed."""
        while (end := self._buffer.find(b"\n", self._at) + 1) == 0:
            if len(self._buffer) - self._at > _LINE_LIMIT:
                raise DownloadError(Reason.PROTOCOL, "a line of over 64 KiB in the head or between chunks")
            data = self._receive(_BUFFER)
            self._buffer, self._at = self._buffer[self._at :] + data, 0
            if not data:
                end = len(self._buffer)
                break
        line = self._buffer[self._at : end]
        self._at = end
        return line


def send(stream: Stream, request: bytes) -> None:
    """Send a request. A server that closes meanwhile may have answered before: reading finds out."""
    try:
        stream.sendall(request)
    except ConnectionError:
        pass
    except ssl.SSLError as error:
        if not is_torn(error):
            raise


def _nothing(_limit: int) -> bytes:
    return b""


class ConnectResponse(Response):
    """The response to CONNECT: whatever its fields say, a tunnel begins behind the head of a 2xx (RFC 9110, 9.3.6)."""

    @property
    def phrase(self) -> str:
        """What the status line says behind the status code."""
        return self._status_line.decode("latin-1")[len("HTTP/1.1 200 ") :].rstrip()

    @property
    def overrun(self) -> bool:
        """Whether bytes came behind the head, with it."""
        return self._at < len(self._buffer)

    def _read_usual_head(self) -> bool:
        return False  # Read line by line, which keeps the status line.

    def _frame(self) -> None:
        pass


def is_torn(error: ssl.SSLError) -> bool:
    """Whether a connection ended without close_notify; Python 3.11.2 has no exception of its own for that."""
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


@functools.lru_cache(64)
def _status(line: str) -> tuple[int, int] | None:
    """Return the minor version and the status code of a status line (RFC 9112, 4); None where it is none."""
    match = _STATUS_LINE.fullmatch(line)
    return (int(match[1]), int(match[2])) if match else None


@functools.lru_cache(64)
def _options(connection: str) -> frozenset[str]:
    """Return the connection options (RFC 9110, 7.6.1)."""
    return frozenset(option.strip(_BLANKS) for option in connection.lower().split(","))


@functools.lru_cache(256)
def _field_name(text: str) -> str:
    """Return a field's name in lower case; nothing where it is none."""
    return text.lower() if _FIELD_NAME.fullmatch(text) else ""


def _usual_head(text: str) -> tuple[tuple[int, int], dict[str, str]] | None:
    """Return what the status line says, and the fields by lower-case name.

    None where the form of a line is unusual, or a name comes twice. Half of the time that patterns would take.
    """
    status_line, *lines = text.split("\r\n")
    status = _status(status_line + "\n")
    if status is None or not text.count("\r") == text.count("\n") == len(lines) <= _MOST_FIELDS or "\0" in text:
        return None
    fields = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        fields[_field_name(name)] = value.strip(_BLANKS)
    return (status, fields) if "" not in fields and len(fields) == len(lines) else None


def _check_continuation(line: str) -> None:
    """Refuse a line that continues another, and that others may take for one which frames the body."""
    if re.match(_FRAMING_FIELD, line):
        raise _malformed(line)


def _left_out(line: str, before: str) -> str:
    """Refuse a malformed line that could be one that matters; else return its last letters, for its continuation.

    ``before`` are those of the line that it continues.
    """
    text = line.removesuffix("\n").removesuffix("\r")
    letters = before + re.sub(_NO_LETTERS, "", text.lower())
    if re.search(_FRAMING, letters) or not text.strip(_BLANKS) or re.search(_CONTROL, text):
        raise _malformed(line)
    return letters[-_LONGEST_FRAMING:] or "-"


def _malformed(line: str) -> DownloadError:
    """Return the error for a line; of it no more is shown than a name, since the rest may hold secrets."""
    name = re.match(_SHOWN_NAME, line)
    return DownloadError(Reason.PROTOCOL, f"malformed header line: {name[1]} …" if name else "malformed header line")


def _shown(text: str) -> str:
    return repr(text[:_SHOWN])


def _fields(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the fields by lower-case name (RFC 9112, 5; RFC 9110, 5.3)."""
    fields: dict[str, str] = {}
    for name, value in _unfolded(lines):
        if name not in fields:
            fields[name] = value
        elif name != "location":
            fields[name] = f"{fields[name]}, {value}"
        elif value != fields[name]:
            # They may hold secrets.
            raise DownloadError(Reason.PROTOCOL, "two Location values that differ")
    return fields


def _unfolded(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    name = value = ""
    for raw_name, raw_value in lines:
        if not raw_name:
            value = f"{value} {raw_value.strip(_BLANKS)}"
            continue
        if name:
            yield name, value
        name, value = raw_name.lower(), raw_value.strip(_BLANKS)
    if name:
        yield name, value


def _plain_length(text: str) -> int:
    """Return the one length that a Content-Length states; equal repetitions count as one (RFC 9110, 8.6)."""
    values = {value.strip(_BLANKS) for value in text.split(",")}
    value = values.pop()
    if values:
        raise DownloadError(Reason.PROTOCOL, f"two Content-Length values: {text[:_SHOWN]}")
    if not _LENGTH.fullmatch(value):
        raise DownloadError(Reason.PROTOCOL, f"Content-Length is not a number: {_shown(text)}")
    return int(value)

"""One HTTP/1.x response, read strictly from its socket: the head, and the body within its frame (RFC 9112)."""

from __future__ import annotations

import functools
import re
import socket
import ssl
from collections.abc import Iterable, Iterator

from image_loader.errors import DownloadError
from image_loader.model import Reason

# One receive takes the head and the whole of a small image.
_BUFFER = 65536
_LINE_LIMIT = 65536
_FIELDS_LIMIT = 262144
# Up to this size, a head is read at once where nothing about it is odd.
_USUAL_HEAD = 8192
# What each field counts for beside its length, as in HTTP/2 (RFC 9113, 6.5.2): many short ones cost as well.
_FIELD_OVERHEAD = 32

_STATUS_LINE = re.compile(r"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\r\n\x00]*)?\r?\n")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_LINE = re.compile(rf"({_FIELD_NAME.pattern}):([^\r\n\x00]*)\r?\n")
_CONTINUATION = re.compile(r"[ \t]([^\r\n\x00]*)\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
# Fields that must not contradict themselves; two validators are none, two lengths are judged with the frame.
_SINGLE = frozenset({"location", "content-type"})
_BODILESS = frozenset({204, 304})


class ClosedEarlyError(Exception):
    """The peer closed or reset the connection before it answered at all."""


class NoStatusLineError(DownloadError):
    """What came is no response; on a connection that was used before, it may be what was left of the last one."""

    def __init__(self, *, retryable: bool) -> None:
        super().__init__(Reason.PROTOCOL, "no HTTP/1.x status line", retryable=retryable)


class Response:
    """The response that follows on ``connection``; what breaks the rules of framing is a ``DownloadError``.

    ``fields`` has the header fields by lower-case name, repeated ones joined by commas (RFC 9110, 5.3). ``length`` is
    the number of body bytes announced, None where chunks or the end of the connection frame the body.
    """

    # How each one begins; to set this again for every one of a million takes time.
    status = 0
    fields: dict[str, str]
    length: int | None = None
    complete = False
    _buffer = b""
    _at = 0
    _minor_version = 1
    _chunked = False
    _left = 0
    _ended = False
    _torn = False

    def __init__(self, connection: socket.socket) -> None:
        self._receive = connection.recv

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: the body is read, nothing follows it, the peer stays.

        RFC 9112, 9.3 and 6.3.
        """
        options = _options(self.fields.get("connection", ""))
        stays = "close" not in options if self._minor_version else "keep-alive" in options
        clear = not (self._chunked and "content-length" in self.fields) and self._at == len(self._buffer)
        return self.complete and stays and clear and not self._ended

    def read_head(self) -> None:
        """Read the status line and the header fields, past any 1xx response (RFC 9110, 15.2)."""
        while True:
            try:
                if self._at == len(self._buffer):
                    self._buffer, self._at = self._next(_BUFFER), 0
                usual = self._read_usual_head()
                if not usual:
                    self._read_status_line()
            except ConnectionError as error:
                raise ClosedEarlyError(str(error)) from error
            if not usual:
                self.fields = _fields(self._field_lines())
            if self.status >= 200:
                break
            if self.status == 101:
                raise DownloadError(Reason.PROTOCOL, "101 Switching Protocols, unasked")
        self._frame()

    def read(self, limit: int) -> bytes:
        """Return up to ``limit`` bytes of the body as they come; nothing once it is complete."""
        if self.complete:
            return b""
        if self._chunked:
            return self._read_chunked(limit)
        if self.length is None:
            data = self._some(limit)
            self.complete = not data
            if self._torn:
                raise DownloadError(Reason.TRUNCATED, "the connection ended without a farewell", retryable=True)
            return data
        return self._read_framed(limit)

    def skip_buffered(self) -> None:
        """Pass over a body that has arrived already, so that its connection can be used again; never wait for one."""
        if self.length is not None and not self.complete and len(self._buffer) - self._at >= self._left:
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

    def _field_lines(self) -> Iterator[tuple[str, str]]:
        """Yield names and values line by line; a name is empty where the line continues the one before."""
        room, first = _FIELDS_LIMIT, True
        while (line := self._head_line()) not in ("\r\n", "\n"):
            room -= len(line) + _FIELD_OVERHEAD
            if room < 0:
                raise DownloadError(Reason.PROTOCOL, "the header fields never end")
            if match := _FIELD_LINE.fullmatch(line):
                yield match[1], match[2]
            elif not first and (match := _CONTINUATION.fullmatch(line)):
                yield "", match[1]
            else:
                raise DownloadError(Reason.PROTOCOL, "a header line that is none")
            first = False

    def _head_line(self) -> str:
        line = self._line()
        if not line.endswith(b"\n"):
            raise DownloadError(Reason.PROTOCOL, "the connection ended inside the head", retryable=True)
        return line.decode("latin-1")

    def _frame(self) -> None:
        """Find where the body ends (RFC 9112, 6.3); trust no length that is not beyond doubt."""
        coding, length = self.fields.get("transfer-encoding"), self.fields.get("content-length")
        if self.status in _BODILESS:
            self.complete = True
        elif coding is not None:
            if coding.lower() != "chunked" or not self._minor_version:
                raise DownloadError(Reason.PROTOCOL, "a transfer coding other than chunked")
            self._chunked = True
        elif length is not None:
            self.length = self._left = _plain_length(length)
            self.complete = self.length == 0

    def _read_framed(self, limit: int) -> bytes:
        data = self._some(min(limit, self._left))
        self._left -= len(data)
        self.complete = not self._left
        if not data:
            raise DownloadError(Reason.TRUNCATED, f"{self._left} of {self.length} bytes never came", retryable=True)
        return data

    def _read_chunked(self, limit: int) -> bytes:
        if not self._left:
            self._left = self._chunk_size()
        if not self._left:
            _fields(self._field_lines())
            self.complete = True
            return b""
        data = self._some(min(limit, self._left))
        if not data:
            raise DownloadError(Reason.TRUNCATED, "the connection ended inside a chunk", retryable=True)
        self._left -= len(data)
        if not self._left and self._line() not in (b"\r\n", b"\n"):
            raise DownloadError(Reason.TRUNCATED, "a chunk without its end", retryable=True)
        return data

    def _chunk_size(self) -> int:
        line = self._line()
        if match := _CHUNK_SIZE.fullmatch(line):
            return int(match[1], 16)
        if line.endswith(b"\n"):
            raise DownloadError(Reason.PROTOCOL, "a chunk size that is no number")
        raise DownloadError(Reason.TRUNCATED, "the connection ended between chunks", retryable=True)

    def _some(self, limit: int) -> bytes:
        """Return what is there, at most ``limit`` bytes; nothing when the peer has closed."""
        if self._at < len(self._buffer):
            data = self._buffer[self._at : self._at + limit]
            self._at += len(data)
            return data
        return self._next(limit)

    def _next(self, limit: int) -> bytes:
        """Return what the peer sends next; nothing when it has closed."""
        try:
            # TLS within TLS (urllib3 2.8) says 0 for the end.
            data = self._receive(limit) or b""
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
            data = self._next(_BUFFER)
            self._buffer, self._at = self._buffer[self._at :] + data, 0
            if not data:
                end = len(self._buffer)
                break
        line = self._buffer[self._at : end]
        self._at = end
        return line


def is_torn(error: ssl.SSLError) -> bool:
    """Whether a connection ended without the farewell of TLS; Python 3.11.2 has no exception of its own for that."""
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


@functools.lru_cache(64)
def _status(line: str) -> tuple[int, int] | None:
    """Return the minor version and the status code of a status line (RFC 9112, 4); None where it is none."""
    match = _STATUS_LINE.fullmatch(line)
    return (int(match[1]), int(match[2])) if match else None


@functools.lru_cache(64)
def _options(connection: str) -> frozenset[str]:
    """Return the connection options (RFC 9110, 7.6.1)."""
    return frozenset(connection.lower().replace(" ", "").split(","))


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
    if status is None or not text.count("\r") == text.count("\n") == len(lines) or "\0" in text:
        return None
    fields = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        fields[_field_name(name)] = value.strip(" \t")
    return (status, fields) if "" not in fields and len(fields) == len(lines) else None


def _fields(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the fields by lower-case name (RFC 9112, 5; RFC 9110, 5.3)."""
    fields: dict[str, str] = {}
    last = ""
    for raw_name, raw_value in lines:
        name, value = raw_name.lower(), raw_value.strip(" \t")
        if not name:
            fields[last] = f"{fields[last]} {value}"
            continue
        if name in fields and name not in _SINGLE:
            value = f"{fields[name]}, {value}"
        elif fields.get(name, value) != value:
            raise DownloadError(Reason.PROTOCOL, "two header fields of a kind that contradict each other")
        fields[name], last = value, name
    return fields


def _plain_length(text: str) -> int:
    """Return the one length that a Content-Length states; equal repetitions count as one (RFC 9110, 8.6)."""
    values = {value.strip() for value in text.split(",")}
    value = values.pop()
    if values or not _LENGTH.fullmatch(value):
        raise DownloadError(Reason.PROTOCOL, "a Content-Length that is no number, or two that differ")
    return int(value)

"""Web servers on 127.0.0.1 that behave, or misbehave, as the first segment of the path says; ports that do neither."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from behaviours import BEHAVIOURS
from exchange import End, Request, Step, Steps, head, png, respond

SIZE = 4000
"""Bytes of an image, unless its query says ``size=``."""
PATIENCE = 60.0
"""Seconds after which a stalled exchange is given up, should nobody end it."""


class Server:
    """One origin. It counts and records what is asked of it; ``healthy`` makes every path behave well."""

    def __init__(self, *, name: str = "", tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        """Listen; ``name`` makes the images of one server differ from those of another."""
        self.name = name
        self.address = address
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
        self._listener = socket.create_server((address, 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
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
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.port}"

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


class Scripted(Server):
    """A server that answers its requests with one script after the other; the last one serves for all further ones."""

    def __init__(self, *scripts: Callable[[Request], Iterable[Any]], **settings: Any) -> None:
        """Take scripts, each of which turns a request into steps, and what a ``Server`` takes."""
        super().__init__(**settings)
        self._scripts = scripts

    def steps(self, request: Request) -> Steps:
        """Return what the script whose turn it is makes of a request."""
        return iter(self._scripts[min(len(self.requests), len(self._scripts)) - 1](request))


def plays(*steps: Any) -> Callable[[Request], Iterable[Any]]:
    """Return a script of these steps, whatever is asked."""
    return lambda request: steps


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
            case End.CLOSE_NOTIFY | End.CLOSE:
                if step is End.CLOSE_NOTIFY and isinstance(self._socket, ssl.SSLSocket):
                    self._socket.unwrap()
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


def connections_to(port: int) -> int:
    """Count the connections of this process to a port, those that are being made among them."""
    made, unmade = 0, set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # It was closed meanwhile.
            if not path.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as each:
                inode = os.fstat(each.fileno()).st_ino
                unmade.add(str(inode))
                made += each.getpeername()[1:2] == (port,)
                unmade.discard(str(inode))
    # A table that changes while it is read may have a row twice.
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return made + len({row[9] for row in rows if int(row[2].rpartition(":")[2], 16) == port} & unmade)


ALL_ADDRESSES = "0.0.0.0"
"""At one port of all addresses of this machine, 127.0.0.0/8 among them: many hosts."""


@contextmanager
def silent_port(address: str = "127.0.0.1") -> Iterator[int]:
    """Yield a port that takes connections (the kernel does) and never answers."""
    with socket.create_server((address, 0), backlog=1024) as listener:
        yield listener.getsockname()[1]


@contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a port that refuses connections, and is nobody else's meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def unaccepting_port(address: str = "127.0.0.1") -> Iterator[int]:
    """Yield a port whose backlog is full: the handshake of TCP itself gets no answer."""
    with socket.create_server((address, 0), backlog=0) as listener, suppress(OSError):
        bound = listener.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for each in filling:
            each.settimeout(0)
            each.connect_ex(bound)
        try:
            yield int(bound[1])
        finally:
            for each in filling:
                each.close()

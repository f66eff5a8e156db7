"""Many connections at once: whatever hosts do, the others are not held up, and each connect is told of once."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import re
import resource
import selectors
import socket
import ssl
import struct
import sys
import threading
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import requests

from asking import BODY, Asking, get, refusal, served, transport
from conftest import SETTINGS, limited
from exchange import whole
from image_loader.errors import DownloadError, LoaderError, OutOfThreadsError
from image_loader.model import Blame, Reason
from image_loader.transport import Connection, Transport, connector
from image_loader.transport import tls as tls_module
from image_loader.transport.connector import Connector
from image_loader.transport.daemons import Daemons
from image_loader.transport.dial import Dial
from image_loader.transport.handshakes import MOST_THREADS, Step
from image_loader.transport.names import LookUp, Names
from image_loader.transport.routes import Routes
from server import Connection as ServerConnection
from server import Scripted, Server, connections_to, plays, refusing_port, silent_port, unaccepting_port

pytestmark = pytest.mark.usefixtures("own_environment")

Result = tuple[str, Connection | DownloadError | LoaderError]


class Told:
    """Collects what is delivered."""

    def __init__(self) -> None:
        """Have nothing yet."""
        self._queue = SimpleQueue[Result]()

    def __call__(self, origin: str, result: Connection | DownloadError | LoaderError, begun: float) -> None:
        """Take a delivery."""
        assert begun <= time.monotonic()
        self._queue.put((origin, result))

    def next(self) -> Result:
        """Wait for the next one."""
        return self._queue.get(timeout=30)

    @property
    def empty(self) -> bool:
        """Whether there is none now."""
        return self._queue.empty()


@contextmanager
def connecting(**changes: Any) -> Iterator[tuple[Transport, Told]]:
    told = Told()
    with closing(Transport(SETTINGS._replace(**changes), told)) as made:
        yield made, told


@contextmanager
def few_handshakes(
    bundle: str, most: int, timeout: float, max_time: float
) -> Iterator[tuple[Connector, Callable[[str], None], Told]]:
    """Yield a connector that makes at most so many handshakes at once, and a function to connect to an origin."""
    told, context = Told(), tls_module.context(bundle)
    with closing(Connector(timeout, max_time, told, public_only=False, most_handshakes=most)) as made:
        routes = Routes(SETTINGS, requests.Session())
        yield made, lambda origin: made.connect(routes.route(origin), context), told


def reasons(told: Told, count: int) -> Counter[Reason]:
    results = [told.next()[1] for _ in range(count)]
    return Counter(each.failure.reason for each in results if isinstance(each, DownloadError))


def resolve(monkeypatch: pytest.MonkeyPatch, addresses: dict[str, list[str]]) -> None:
    """Have these names lead to these addresses."""
    look_up = socket.getaddrinfo

    def resolver(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [found for ip in addresses.get(host, [host]) for found in look_up(ip, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextmanager
def swallowing(ip: str, port: int) -> Iterator[None]:
    """Have an address swallow every SYN: the queue of its listener is full. For "" that is every other one."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((ip, port), family=family, backlog=0, reuse_port=True))
        for _ in range(4):
            filling = stack.enter_context(socket.socket(family))
            filling.settimeout(0)
            filling.connect_ex((ip or "127.9.9.9", listener.getsockname()[1]))
        yield


@contextmanager
def answering(port: int = 0) -> Iterator[int]:
    """Yield a port of 127.0.0.1 that answers each connection with an image; others may listen elsewhere on it."""
    with socket.create_server(("127.0.0.1", port), reuse_port=True) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    with accepted:
                        accepted.recv(65536)
                        accepted.sendall(whole(BODY))

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


# Addresses ---------------------------------------------------------------------------------------------------------


def test_a_black_hole_at_the_first_address_costs_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, {"both.test": ["127.0.0.1", "::1"]})
    with transport(timeout=20.0, max_time=60.0) as asking, answering() as port, swallowing("::1", port):
        begun = time.monotonic()
        asking.connected(f"http://both.test:{port}").close()
        assert 0.25 <= time.monotonic() - begun < 5
        assert get(asking, f"http://both.test:{port}/a").body == BODY


def test_ipv6_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, {"both.test": ["127.0.0.1", "::1"]})
    with (
        transport() as asking,
        Server() as server,
        socket.create_server(("::1", server.port), family=socket.AF_INET6) as newer,
    ):
        asking.connected(f"http://both.test:{server.port}").close()
        newer.settimeout(5)
        newer.accept()[0].close()
    assert server.connections == 0


@pytest.mark.parametrize("others", ["refuse", "swallow"])
def test_the_last_of_two_hundred_addresses_is_found_within_the_timeout(
    monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    resolve(monkeypatch, {"many.test": [*(f"127.0.9.{number}" for number in range(1, 200)), "127.0.0.1"]})
    with transport(timeout=5.0) as asking, answering() as port, ExitStack() as stack:
        if others == "swallow":
            stack.enter_context(swallowing("", port))
        before = open_files()
        most = 0

        def count() -> None:
            nonlocal most
            while not done.wait(0.02):
                most = max(most, open_files())

        done = threading.Event()
        counting = threading.Thread(target=count)
        counting.start()
        try:
            assert get(asking, f"http://many.test:{port}/a").body == BODY
        finally:
            done.set()
            counting.join()
    assert most - before < 20


@pytest.mark.parametrize("addresses", [["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["2a00::1", "10.0.0.1"]])
def test_a_name_with_a_private_address_among_public_ones_is_refused_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    with Server() as server, transport(public_only=True, timeout=0.5) as asking:
        resolve(monkeypatch, {"mixed.test": addresses})
        failure = refusal(asking, f"http://mixed.test:{server.port}/a")
    assert (failure.reason, failure.retryable) == (Reason.PRIVATE_ADDRESS, False)
    assert server.connections == 0


def test_a_name_that_does_not_exist_is_final() -> None:
    with transport() as asking:
        failure = refusal(asking, "http://no.such.invalid/a")
    if failure.retryable:
        pytest.skip("the resolver of this machine does not say that a name does not exist")
    assert (failure.reason, failure.blame) == (Reason.DNS, Blame.HOST)


def test_connects_to_one_name_share_its_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    gate = threading.Event()
    look_up = socket.getaddrinfo

    def resolver(host: str, port: int, **kwargs: Any) -> Any:
        asked.append(host)
        gate.wait(10)
        return look_up("127.0.0.1", port, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with Server() as server, connecting() as (made, told):
        for _ in range(20):
            made.connect(f"http://slow.test:{server.port}")
        gate.set()
        results = [told.next()[1] for _ in range(20)]
        for each in results:
            assert isinstance(each, Connection)
            each.close()
    assert asked == ["slow.test"]


def test_a_resolver_that_hangs_fails_its_own_host_in_time_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    look_up = socket.getaddrinfo

    def resolver(host: str, port: int, **kwargs: Any) -> Any:
        if host.startswith("hang"):
            gate.wait(30)
        return look_up("127.0.0.1", port, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    try:
        with Server() as server, connecting(timeout=3.0) as (made, told):
            for number in range(100):
                made.connect(f"http://hang{number}.test")
            made.connect(f"http://live.test:{server.port}")
            origin, result = told.next()
            assert origin.startswith("http://live.test")
            assert isinstance(result, Connection)
            result.close()
            failures = [told.next()[1] for _ in range(100)]
    finally:
        gate.set()
    for each in failures:
        assert isinstance(each, DownloadError)
        assert (each.failure.reason, each.failure.retryable, each.failure.blame) == (Reason.DNS, True, Blame.HOST)


def test_the_log_says_which_connection_is_made_used_again_and_closed(
    tls: ssl.SSLContext, bundle: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "image_loader.transport")
    with (
        transport(ca_bundle=bundle) as asking,
        Scripted(plays(whole(BODY)), plays(whole(BODY, "Connection: close")), tls=tls) as server,
        refusing_port() as refusing,
    ):
        for name in "ab":
            get(asking, server.url(f"/{name}?signature=hush").replace("://", "://user:hush@"))
        refusal(asking, f"http://127.0.0.1:{refusing}/c")
    address = f"127.0.0.1:{server.port}"
    for pattern in (
        rf"https://{address}: connected to {address} in [0-9.]+ s",
        rf"https://{address}: the connection to {address} is used again",
        rf"https://{address}: a connection is closed, since it can carry no other request",
        rf"http://127.0.0.1:{refusing}: not connected after [0-9.]+ s: connect: Connection refused",
    ):
        assert re.search(pattern, caplog.text)
    assert "hush" not in caplog.text


def test_a_connection_says_what_it_is(asking: Asking) -> None:
    with Server() as server:
        connection = asking.connected(server.origin)
        assert repr(connection) == f"<Connection to {server.origin} at 127.0.0.1:{server.port}: new>"
        connection.close()
        assert repr(connection) == f"<Connection to {server.origin} at an unknown address: closed>"


def test_a_dial_says_what_it_does() -> None:
    with connecting(timeout=60.0, max_time=120.0) as (made, told), unaccepting_port() as full:
        made.connect(f"http://127.0.0.1:{full}")
        made.connect("http://127.0.0.1:1")  # The thread has come to the first one before.
        told.next()
        assert f"<Dial 0 to http://127.0.0.1:{full}: connecting>" in {
            repr(each) for each in gc.get_objects() if isinstance(each, Dial)
        }


# Handshakes --------------------------------------------------------------------------------------------------------


def test_hosts_that_never_shake_hands_hold_up_no_other(tls: ssl.SSLContext, bundle: str) -> None:
    with (
        connecting(ca_bundle=bundle, timeout=30.0, max_time=60.0) as (made, told),
        silent_port() as silent,
        Server(tls=tls) as live,
    ):
        for number in range(1, 201):
            made.connect(f"https://127.0.0.1:{silent}" if number % 2 else f"http://127.0.8.{number}:1")
        for _ in range(20):
            made.connect(live.origin)
        results = [told.next() for _ in range(120)]
        stand = [result for origin, result in results if origin == live.origin]
        assert len(stand) == 20
        for each in stand:
            assert isinstance(each, Connection)
            each.close()
        assert {origin.partition(":")[0] for origin, _ in results} == {"https", "http"}
        assert told.empty


@pytest.mark.parametrize("most", [1, 3])
def test_only_so_many_handshakes_are_made_at_once(tls: ssl.SSLContext, bundle: str, most: int) -> None:
    """The others wait for their turn, connected; each that ends, in whatever way, gives it to the next."""
    with few_handshakes(bundle, most, timeout=1.0, max_time=60.0) as (_, connect, told), ExitStack() as stack:
        silent = stack.enter_context(silent_port())
        live = stack.enter_context(Server(tls=tls))
        for _ in range(most):
            connect(f"https://127.0.0.1:{silent}")
        for _ in range(4):
            connect(live.origin)
        results = [told.next() for _ in range(most + 4)]
        assert [origin == live.origin for origin, _ in results].index(True) >= 1, "one had to end first"
        for origin, result in results:
            assert isinstance(result, Connection) == (origin == live.origin)
            if isinstance(result, Connection):
                stack.callback(result.close)


def test_a_connection_that_is_closed_while_it_waits_to_shake_hands_fails(bundle: str) -> None:
    with (
        few_handshakes(bundle, 1, timeout=30.0, max_time=60.0) as (made, connect, told),
        silent_port() as silent,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        connect(f"https://127.0.0.1:{silent}")
        connect(f"https://127.0.0.1:{listener.getsockname()[1]}")
        accepted, _ = listener.accept()
        accepted.close()
        origin, result = told.next()
        assert origin.endswith(f":{listener.getsockname()[1]}")
        assert isinstance(result, DownloadError)
        assert result.failure.retryable
        connect(f"https://127.0.0.1:{silent}")
        made.interrupt()
        assert reasons(told, 2) == {Reason.INTERRUPTED: 2}


class Held:
    """Holds the steps of handshakes that threads take, until ``go_on`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hold them from now on."""
        self.begun = SimpleQueue[set[int]]()
        """Of each, the processors that its thread may run on."""
        self.go_on = threading.Event()
        self._said_hello = SimpleQueue[None]()
        self._answering = threading.Event()
        take, serve = Step.take, ServerConnection.serve

        def held(step: Step) -> None:
            if threading.current_thread().name == "image_loader-tls":
                self.begun.put(os.sched_getaffinity(0))
                assert self.go_on.wait(30)
                take(step)
            else:
                take(step)
                self._said_hello.put(None)

        def serve_late(connection: ServerConnection) -> None:
            assert self._answering.wait(30)
            serve(connection)

        monkeypatch.setattr(Step, "take", held)
        monkeypatch.setattr(ServerConnection, "serve", serve_late)

    def answer(self, dials: int, threads: int) -> list[set[int]]:
        """Have the server answer when so many dials have begun to shake hands; wait for so many threads."""
        for _ in range(dials):
            self._said_hello.get(timeout=30)
        self._answering.set()
        return [self.begun.get(timeout=30) for _ in range(threads)]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch)
    yield made
    made.go_on.set()


def test_what_handshakes_compute_holds_nothing_else_up_and_takes_few_threads(
    tls: ssl.SSLContext, bundle: str, held: Held
) -> None:
    most = MOST_THREADS
    with connecting(ca_bundle=bundle) as (made, told), Server(tls=tls) as secure, Server() as plain:
        for _ in range(most + 2):
            made.connect(secure.origin)
        held.answer(most + 2, most)
        made.connect(plain.origin)
        origin, result = told.next()
        assert (origin, isinstance(result, Connection)) == (plain.origin, True)
        assert held.begun.empty()
        held.go_on.set()
        for each in [result, *(told.next()[1] for _ in range(most + 2))]:
            assert isinstance(each, Connection)
            each.close()


@pytest.mark.parametrize("end", ["interrupted", "closed", "late", "not done within the time"])
def test_a_dial_ends_while_a_thread_computes_for_it(tls: ssl.SSLContext, bundle: str, held: Held, end: str) -> None:
    """It is closed when its thread is through with it."""
    most = MOST_THREADS
    times = {"late": (0.5, 60.0), "not done within the time": (0.5, 0.5)}.get(end, (60.0, 60.0))
    with Server(tls=tls) as server, connecting(ca_bundle=bundle, timeout=times[0], max_time=times[1]) as (made, told):
        before = connections_to(server.port)
        for _ in range(most + 2):
            made.connect(server.origin)
        held.answer(most + 2, most)
        if end == "interrupted":
            made.interrupt()
        elif end == "closed":
            made.close()
        expected = {"late": Reason.TIMEOUT, "not done within the time": Reason.DEADLINE}.get(end, Reason.INTERRUPTED)
        assert reasons(told, most + 2) == {expected: most + 2}
        held.go_on.set()
        limit = time.monotonic() + 30
        while connections_to(server.port) > before:
            assert time.monotonic() < limit
            time.sleep(0.005)
        assert told.empty


def test_without_a_thread_of_their_own_handshakes_are_made_all_the_same(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "image_loader-tls":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with connecting(ca_bundle=bundle) as (made, told), Server(tls=tls) as server:
        made.connect(server.origin)
        result = told.next()[1]
        assert isinstance(result, Connection)
        result.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_handshake_that_breaks_its_thread_ends_the_run(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Step.take

    def broken(step: Step) -> None:
        if threading.current_thread().name == "image_loader-tls":
            raise MemoryError
        take(step)

    monkeypatch.setattr(Step, "take", broken)
    with connecting(ca_bundle=bundle, timeout=60.0, max_time=60.0) as (made, told), Server(tls=tls) as server:
        made.connect(server.origin)
        result = told.next()[1]
        assert isinstance(result, LoaderError)
        assert "connections can no longer be made" in str(result)
        assert connections_to(server.port) == 0
    for thread in threading.enumerate():
        if thread.name == "image_loader-tls":
            thread.join(30)  # Its exception is this test's.


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a thread choose its processors")
@pytest.mark.parametrize("has_all", [False, True])
def test_handshakes_run_on_the_processors_given(tls: ssl.SSLContext, bundle: str, held: Held, *, has_all: bool) -> None:
    allowed = frozenset(os.sched_getaffinity(0))
    given = allowed if has_all else frozenset[int]()
    os.sched_setaffinity(0, {min(allowed)})
    try:
        made = Transport(SETTINGS._replace(ca_bundle=bundle), told := Told(), given)
    finally:
        os.sched_setaffinity(0, allowed)
    with closing(made), Server(tls=tls) as server:
        made.connect(server.origin)
        assert held.answer(1, 1) == [given or {min(allowed)}]
        held.go_on.set()
        result = told.next()[1]
        assert isinstance(result, Connection)
        result.close()


@pytest.mark.parametrize("close", ["at once", "after the first bytes", "with a reset"])
def test_a_handshake_that_is_torn_may_be_tried_again(close: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, transport() as asking:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                if close == "with a reset":
                    accepted.recv(65536)
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif close == "after the first bytes":
                    accepted.recv(65536)
                    accepted.shutdown(socket.SHUT_WR)
                    accepted.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        failure = refusal(asking, f"https://127.0.0.1:{listener.getsockname()[1]}/a")
        thread.join()
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.CONNECT, True, Blame.HOST)
    assert "during the TLS handshake" in failure.detail


# Tunnels -----------------------------------------------------------------------------------------------------------


def test_tunnels_share_the_look_up_of_their_proxy(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def resolver(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "127.0.0.1":  # As the server's own connections have it.
            asked.append(host)
        return look_up("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with (
        Server() as proxy,
        Server(tls=tls) as server,
        connecting(ca_bundle=bundle) as (made, told),
        ExitStack() as stack,
    ):
        monkeypatch.setenv("https_proxy", f"http://proxy.test:{proxy.port}")
        for number in range(1, 21):
            made.connect(f"https://127.0.0.1:{server.port}" if number % 2 else f"https://localhost:{server.port}")
        for _ in range(20):
            result = told.next()[1]
            assert isinstance(result, Connection)
            stack.callback(result.close)
    assert asked == ["proxy.test"]
    assert (proxy.connections, server.connections) == (20, 20)


@pytest.mark.parametrize("end", ["interrupt", "deadline"])
def test_a_connect_to_a_proxy_is_ended(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    max_time = 120.0 if end == "interrupt" else 0.25
    with connecting(timeout=60.0, max_time=max_time) as (made, told), unaccepting_port() as full:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{full}")
        before = connections_to(full)
        for number in range(100):
            made.connect(f"https://{number}.test")
        if end == "interrupt":
            made.interrupt()
        assert reasons(told, 100) == {Reason.INTERRUPTED if end == "interrupt" else Reason.DEADLINE: 100}
        assert connections_to(full) == before


def test_a_proxy_that_never_answers_takes_no_turn_to_shake_hands(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    asked = threading.Event()

    def silent(*_: object) -> None:
        asked.set()
        gate.wait(30)

    monkeypatch.setattr(ServerConnection, "_tunnel", silent)
    with (
        few_handshakes(bundle, 1, timeout=60.0, max_time=60.0) as (_, connect, told),
        Server(tls=tls) as proxy,
        Server(tls=tls) as server,
    ):
        monkeypatch.setenv("https_proxy", proxy.origin)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        connect("https://images.test")
        assert asked.wait(30)
        connect(server.origin)
        result = told.next()[1]
        gate.set()
        assert isinstance(result, Connection)
        result.close()


def test_a_tunnel_without_a_thread_ends_the_run_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OutOfThreadsError

    monkeypatch.setattr(Daemons, "submit", refused)
    with connecting() as (made, told), silent_port() as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        made.connect("https://images.test")
        assert isinstance(told.next()[1], OutOfThreadsError)
        assert connections_to(port) == 0


# Ends --------------------------------------------------------------------------------------------------------------


def test_an_interrupt_ends_three_hundred_connects() -> None:
    with (
        connecting(timeout=60.0, max_time=120.0) as (made, told),
        unaccepting_port() as full,
        silent_port() as silent,
    ):
        before = connections_to(full)
        for number in range(300):
            made.connect(f"http://127.0.0.1:{full}" if number % 2 else f"https://127.0.0.1:{silent}")
        made.interrupt()
        assert reasons(told, 300) == {Reason.INTERRUPTED: 300}
        assert (connections_to(full), connections_to(silent)) == (before, 0)
        made.connect(f"http://127.0.0.1:{full}")
        assert reasons(told, 1) == {Reason.INTERRUPTED: 1}
        assert told.empty


def test_what_is_under_way_when_a_transport_is_closed_is_told_as_well() -> None:
    with connecting(timeout=60.0, max_time=120.0) as (made, told), unaccepting_port() as full:
        before = connections_to(full)
        for _ in range(10):
            made.connect(f"http://127.0.0.1:{full}")
        made.close()
        made.connect(f"http://127.0.0.1:{full}")
        assert reasons(told, 11) == {Reason.INTERRUPTED: 11}
        assert connections_to(full) == before


def test_a_fault_in_the_thread_ends_the_run_with_all_that_is_under_way_or_comes_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def resolver(host: str, port: int, **_: Any) -> list[Any]:
        if host == "hanging.test":
            gate.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("no address", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with connecting(public_only=True, timeout=60.0, max_time=120.0) as (made, told):
        made.connect("http://hanging.test")
        made.connect("http://broken.test")
        results = [told.next() for _ in range(2)]
        made.connect("http://later.test")
        results.append(told.next())
        gate.set()
    assert {origin for origin, _ in results} == {"http://hanging.test", "http://broken.test", "http://later.test"}
    for _, each in results:
        assert isinstance(each, LoaderError)
        assert str(each) == "connections can no longer be made: unexpected ValueError"
    assert told.empty
    assert "Traceback" in caplog.text


def test_a_connection_that_cannot_be_taken_over_ends_the_run_as_well() -> None:
    """No option can have such a timeout; here, it stands for any fault at that point."""
    with connecting(timeout=1e30, max_time=60.0) as (made, told), Server() as server:
        made.connect(server.origin)
        result = told.next()[1]
        assert isinstance(result, LoaderError)
        assert str(result).startswith("connections can no longer be made: ")


def test_a_connection_of_which_the_system_refuses_the_options_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = itertools.count()

    def refuses_first(*how: Any) -> Connection:
        if next(made) == 0:
            raise OSError(errno.EINVAL, "Invalid argument")
        return Connection(*how)

    monkeypatch.setattr(connector, "Connection", refuses_first)
    with Scripted(served()) as server, transport() as asking:
        failure = refusal(asking, server.url("/a"))
        assert (failure.reason, failure.retryable) == (Reason.CONNECT, True)
        assert get(asking, server.url("/a")).body == BODY
        assert connections_to(server.port) == 1


def test_a_socket_that_the_selector_does_not_take_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Selector(selectors.DefaultSelector):
        """Lacks memory when it is to take in the first socket after that which wakes it."""

        taken = 0

        def register(self, *how: Any) -> selectors.SelectorKey:
            Selector.taken += 1
            if Selector.taken == 2:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return super().register(*how)

    monkeypatch.setattr(selectors, "DefaultSelector", Selector)
    with Scripted(served()) as server, transport() as asking:
        assert refusal(asking, server.url("/a")).detail == "Cannot allocate memory"
        assert get(asking, server.url("/a")).body == BODY
        assert connections_to(server.port) == 1


def test_no_dial_goes_on_in_another_thread_while_the_connector_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that comes back at that moment must not touch what is being ended."""
    asked, go_on, came_back = threading.Event(), threading.Event(), threading.Event()
    found, end, look_up = Dial.found, Dial.end, Names.look_up
    system_resolver = socket.getaddrinfo
    threads: list[str] = []

    def resolver(host: str, port: int, **kwargs: Any) -> Any:
        if host == "slow.test":
            asked.set()
            go_on.wait(30)
        return system_resolver("127.0.0.1", port, **kwargs)

    def noted_look_up(names: Names, host: str, number: int, then: Callable[[int, LookUp], None]) -> LookUp | None:
        def noted(number: int, answer: LookUp) -> None:
            then(number, answer)
            came_back.set()

        return look_up(names, host, number, noted)

    def noted_found(dial: Dial, answer: LookUp) -> None:
        threads.append(threading.current_thread().name)
        found(dial, answer)

    def slow_end(dial: Dial, error: DownloadError | LoaderError) -> None:
        go_on.set()
        assert came_back.wait(30)
        end(dial, error)

    with connecting(timeout=60.0, max_time=120.0) as (made, told), unaccepting_port() as full:
        made.connect(f"http://127.0.0.1:{full}")
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        monkeypatch.setattr(Names, "look_up", noted_look_up)
        made.connect("http://slow.test")
        assert asked.wait(30)
        monkeypatch.setattr(Dial, "found", noted_found)
        monkeypatch.setattr(Dial, "end", slow_end)
        made.close()
        assert reasons(told, 2) == {Reason.INTERRUPTED: 2}
    assert threads == []


@pytest.mark.parametrize("proxy", [False, True])
def test_with_few_descriptors_some_connects_fail_for_want_of_them_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, proxy: bool
) -> None:
    with connecting(timeout=60.0, max_time=120.0) as (made, told), unaccepting_port() as full:
        before = connections_to(full)
        if proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{full}")
            made.connect("https://images.test")  # What is read with the first one is read.
        with few_descriptors(20):
            for _ in range(60):
                made.connect("https://images.test" if proxy else f"http://127.0.0.1:{full}")
            lacking = [told.next()[1] for _ in range(30)]
        for each in lacking:
            assert isinstance(each, DownloadError)
            assert (each.failure.blame, each.failure.retryable) == (Blame.PROCESS, True)
        made.interrupt()
        while connections_to(full) > before:
            told.next()


@pytest.mark.parametrize("number", [1, 2])
def test_without_descriptors_at_the_start_nothing_is_left_open(number: int) -> None:
    before = open_files()
    gc.disable()
    try:
        with few_descriptors(number):
            for _ in range(3):
                with pytest.raises(LoaderError, match=r"connections cannot be made: .*; see ulimit -n"):
                    Connector(1.0, 1.0, Told(), public_only=False)
        assert open_files() == before
    finally:
        gc.enable()


@contextmanager
def few_descriptors(number: int) -> Iterator[None]:
    """Have at most so many more files or sockets opened in this process."""
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(number)]
    for each in free:
        os.close(each)
    with limited(resource.RLIMIT_NOFILE, max(free) + 1):
        yield


def test_a_connection_that_stands_leaves_nothing_of_its_making() -> None:
    with connecting(timeout=600.0, max_time=900.0) as (made, told), Server() as server:
        gc.disable()
        try:
            for _ in range(50):
                made.connect(server.origin)
                result = told.next()[1]
                assert isinstance(result, Connection)
                result.close()
            del result
            made.connect("http://127.0.0.1:1")  # The thread is through with the others.
            told.next()
            assert len([each for each in gc.get_objects() if isinstance(each, Dial)]) <= 1
        finally:
            gc.enable()


def test_timers_of_connections_that_are_through_do_not_pile_up() -> None:
    with connecting(timeout=600.0, max_time=900.0) as (made, told), refusing_port() as port:
        tracemalloc.start()
        try:
            for _ in range(3000):
                made.connect(f"http://127.0.0.1:{port}")
                told.next()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    kept = snapshot.filter_traces([tracemalloc.Filter(inclusive=True, filename_pattern="*/transport/connector.py")])
    assert sum(each.size for each in kept.traces) < 50_000


def test_a_forked_process_leaves_the_connections_of_its_parent_alone() -> None:
    gate = threading.Event()
    with transport() as asking, Scripted(plays(gate, whole(BODY))) as server:
        bodies: list[bytes] = []
        thread = threading.Thread(target=lambda: bodies.append(get(asking, server.url("/a")).body))
        thread.start()
        server.wait_for(lambda: bool(server.requests))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # There are threads; the child ends at once.
            child = os.fork()
        if child == 0:
            asking.interrupt()
            asking.close()
            os._exit(0)
        os.waitpid(child, 0)
        gate.set()
        thread.join()
        assert bodies == [BODY]
        with Server() as other:
            assert get(asking, other.url("/b")).body == other.image("/b")


def test_a_handshake_has_the_timeout_anew_after_a_slow_connect(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"localhost": [*(f"127.0.9.{number}" for number in range(1, 100)), "127.0.0.1"]})

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        time.sleep(1.5)
        with tls.wrap_socket(accepted, server_side=True) as secure, suppress(OSError):
            secure.recv(65536)
            secure.sendall(whole(BODY))

    with (
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener,
        swallowing("", listener.getsockname()[1]),
        transport(ca_bundle=bundle, timeout=2.5) as asking,
    ):
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        assert get(asking, f"https://localhost:{listener.getsockname()[1]}/a").body == BODY


def test_each_step_has_the_timeout_and_all_of_them_the_time_of_an_attempt(
    monkeypatch: pytest.MonkeyPatch, bundle: str
) -> None:
    look_up = socket.getaddrinfo

    def slow(host: str, port: int, **kwargs: Any) -> Any:
        time.sleep(0.3)
        return look_up("127.0.0.1", port, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with silent_port() as silent:
        with transport(timeout=0.5, ca_bundle=bundle) as asking:
            failure = refusal(asking, f"https://slow.test:{silent}/a")
            assert (failure.reason, failure.detail) == (Reason.TIMEOUT, "no TLS handshake within the timeout")
        with transport(timeout=0.5, max_time=0.6, ca_bundle=bundle) as asking:
            failure = refusal(asking, f"https://slow.test:{silent}/a")
            assert (failure.reason, failure.blame) == (Reason.DEADLINE, Blame.HOST)


def test_connections_of_many_threads_lead_each_to_its_own_origin(asking: Asking) -> None:
    with Server(name="a") as first, Server(name="b") as second:
        found: dict[str, bytes] = {}

        def ask(server: Server, number: int) -> None:
            found[server.url(f"/{number}")] = get(asking, server.url(f"/{number}")).body

        threads = [threading.Thread(target=ask, args=(each, n)) for n in range(20) for each in (first, second)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert all(found[each.url(f"/{n}")] == each.image(f"/{n}") for n in range(20) for each in (first, second))

"""Deadlines and interrupts: they hold whatever the peer does, and leave nothing behind."""

from __future__ import annotations

import gc
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from asking import BODY, SOON, assert_deadline, get, refusal, transport
from exchange import PNG, End, Request, head, length, whole
from image_loader.errors import DownloadError
from image_loader.model import Blame, Failure, Reason
from image_loader.transport.watchdog import Watchdog, blame_host_if_late, end_error
from server import Scripted, Server, plays, refusing_port, silent_port, unaccepting_port

pytestmark = pytest.mark.usefixtures("own_environment")


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
        lambda request: (part for _ in range(20) for part in (head(status="102 Processing"), 0.05)),
        lambda request: (part for step in range(100) for part in (0.1, head("Location: /a", status="302 Found"))),
        lambda request: [head(PNG)] + [part for byte in BODY for part in (bytes([byte]), 0.02)],
    ],
)
def test_the_deadline_holds_whatever_is_dripped(script: Callable[[Request], Iterable[Any]]) -> None:
    with transport(**SOON) as asking, Scripted(script) as server:
        assert_deadline(asking, server.url("/a"))


@pytest.mark.parametrize(
    ("script", "blame"),
    [
        (plays(End.STALL), Blame.HOST),
        (plays(head(PNG, length(BODY))[:-2], End.STALL), Blame.HOST),
        (plays(whole(BODY)[:-10], End.STALL), Blame.IMAGE),
    ],
)
def test_the_host_is_to_blame_for_a_deadline_until_it_has_answered(
    script: Callable[[Request], Iterable[Any]], blame: Blame
) -> None:
    with transport(**SOON) as asking, Scripted(script) as server:
        assert refusal(asking, server.url("/a")).blame is blame


@pytest.mark.parametrize(("stopped", "blame"), [(False, Blame.HOST), (True, Blame.IMAGE)])
def test_no_host_is_to_blame_while_this_process_was_stopped(stopped: bool, blame: Blame) -> None:
    error = end_error(Reason.DEADLINE, stopped=stopped)
    blame_host_if_late(error)
    assert error.failure.blame is blame


def test_the_deadline_holds_while_connecting() -> None:
    with transport(**SOON) as asking, unaccepting_port() as port:
        assert_deadline(asking, f"http://127.0.0.1:{port}/a")


def test_the_timeout_holds_while_connecting() -> None:
    with transport(timeout=0.2) as asking, unaccepting_port() as port:
        failure = refusal(asking, f"http://127.0.0.1:{port}/a")
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.TIMEOUT, True, Blame.HOST)


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
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.TIMEOUT, True, Blame.HOST)


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


def test_a_deadline_that_is_earlier_than_the_others_is_kept_as_well() -> None:
    with closing(Watchdog(100.0)) as watchdog:
        ours, theirs = socket.socketpair()
        with ours, theirs, closing(watchdog.watch()), closing(watchdog.watch(0.2)) as watch:
            time.sleep(0.05)
            with closing(watchdog.watch(50)):
                watch.guard(ours)
                theirs.settimeout(20)
                assert theirs.recv(1) == b""
            with pytest.raises(DownloadError, match="not done within"):
                watch.check()


@pytest.mark.parametrize("end", [Watchdog.close, Watchdog.interrupt])
def test_an_end_that_comes_just_before_a_look_ends_the_thread_all_the_same(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[Watchdog], None]
) -> None:
    is_about_to_look, go_on = threading.Event(), threading.Event()

    class Gated(threading.Event):
        """Holds the thread up between its look at the end and the pause."""

        def clear(self) -> None:
            is_about_to_look.set()
            go_on.wait()
            super().clear()

    before = set(threading.enumerate())
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Event", Gated)
        watchdog = Watchdog(100.0)
    (thread,) = (each for each in set(threading.enumerate()) - before if each.name == "image_loader-watchdog")
    assert is_about_to_look.wait(10)
    end(watchdog)
    go_on.set()
    thread.join(10)
    assert not thread.is_alive()
    watchdog.close()


def test_a_watch_may_be_ended_while_its_attempt_comes_and_goes() -> None:
    watchdog = Watchdog(100.0)
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            watch = watchdog.watch()

            def come_and_go() -> int:
                for _ in range(3000):
                    with closing(watch), suppress(DownloadError):
                        watch.guard(ours)
                return 3000

            with ThreadPoolExecutor(1) as executor:
                coming = executor.submit(come_and_go)
                while not coming.done():
                    watch.end(Reason.INTERRUPTED)
                assert coming.result() == 3000
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

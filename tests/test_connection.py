"""Connections over real sockets: which one carries what, which addresses are allowed, and how failures are told."""

from __future__ import annotations

import gc
import resource
import shutil
import socket
import ssl
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from asking import BODY, CHUNKS, Asking, get, refusal, served, transport
from conftest import limited
from exchange import PNG, End, Request, head, length, whole
from image_loader.errors import DownloadError
from image_loader.model import Blame, Reason
from image_loader.transport import Answer, StaleConnectionError
from image_loader.transport import Request as Wanted
from image_loader.transport.addresses import is_public
from image_loader.transport.connection import ClosedUnused
from image_loader.url import parse
from server import Scripted, Server, connections_to, plays, refusing_port, silent_port

pytestmark = pytest.mark.usefixtures("own_environment")


def test_a_connection_carries_one_request_after_the_other(asking: Asking) -> None:
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
    asking: Asking, first: Callable[[Request], Iterable[Any]]
) -> None:
    with Scripted(first, served(b"second")) as server:
        get(asking, server.url("/a"))
        server.wait_for(lambda: server.at_work == 0)
        assert get(asking, server.url("/b")).body == b"second"
    assert server.connections == 2


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


def test_a_response_that_comes_after_its_timeout_answers_no_other_request() -> None:
    with transport(timeout=0.1) as asking, Scripted(plays(0.3, whole(b"late")), served(b"second")) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.TIMEOUT
        assert get(asking, server.url("/b")).body == b"second"


def test_many_requests_at_once_get_each_its_own_response(asking: Asking) -> None:
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


def test_what_is_left_of_an_answer_is_not_taken_for_the_next_one(asking: Asking) -> None:
    late = plays(b"0\r\n\r\n", whole(BODY))
    with Scripted(plays(head("Transfer-Encoding: chunked", status="304 Not Modified")), late, served()) as server:
        assert get(asking, server.url("/a")).status == 304
        assert get(asking, server.url("/b")).body == BODY
        assert [request.connection for request in server.requests] == [1, 1, 2]


def test_connections_that_are_dropped_are_closed_at_once_and_made_again(asking: Asking) -> None:
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


def test_a_connection_of_which_a_body_is_left_unread_is_not_used_again(asking: Asking) -> None:
    large = bytes(1_000_000)
    with Scripted(served(large), served(b"second")) as server:
        with asking.ask(parse(server.url("/a")), {}) as answer:
            next(answer.chunks(1000))
        assert get(asking, server.url("/b")).body == b"second"
    assert server.connections == 2


def test_a_connection_of_which_a_body_is_left_unread_refuses_the_next_request(asking: Asking) -> None:
    with Scripted(served(bytes(1_000_000))) as server:
        connection = asking.connected(server.origin)
        answer = asking.exchange(Wanted(parse(server.url("/a")), {}), connection)
        assert isinstance(answer, Answer)
        with answer:
            pass
        with pytest.raises(StaleConnectionError):
            asking.exchange(Wanted(parse(server.url("/b")), {}), connection)
    assert [request.target for request in server.requests] == ["/a"]


@pytest.mark.parametrize("framed", [length(BODY), "Transfer-Encoding: chunked"])
def test_a_connection_is_used_again_after_errors_whose_bodies_have_arrived(asking: Asking, framed: str) -> None:
    body = BODY if framed == length(BODY) else CHUNKS
    with Scripted(plays(head(framed, status="404 Not Found") + body)) as server:
        for number in range(5):
            with asking.ask(parse(server.url(f"/{number}")), {}) as answer:
                assert answer.status == 404
    assert server.connections == 1


def test_a_connection_on_which_reading_failed_is_not_used_again(asking: Asking) -> None:
    with Scripted(plays(head(PNG, "Transfer-Encoding: chunked") + b"3\r\nabc\r\nzz\r\n"), served()) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.PROTOCOL
        assert get(asking, server.url("/b")).body == BODY
    assert server.connections == 2


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n0\r\n\r\n",
        b"3\r\nabcX\r\n0\r\n\r\n",
        b"3\r\nabc\r\n-5\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nContent Length: 5\r\n0\r\n\r\n",
    ],
)
def test_a_connection_whose_chunks_were_broken_is_not_used_again(asking: Asking, body: bytes) -> None:
    with Scripted(plays(head(PNG, "Transfer-Encoding: chunked") + body), served()) as server:
        refusal(asking, server.url("/a"))
        assert get(asking, server.url("/b")).body == BODY
    assert server.connections == 2


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_a_connection_that_went_stale_in_the_pool_costs_no_attempt(asking: Asking, end: End) -> None:
    # The server reads the second request before it ends the connection: that can be seen only afterwards.
    with Scripted(served(b"first"), plays(end), served(b"third")) as server:
        assert get(asking, server.url("/a")).body == b"first"
        assert get(asking, server.url("/b")).body == b"third"
    assert [request.target for request in server.requests] == ["/a", "/b", "/b"]


def test_a_new_connection_that_is_closed_at_once_is_no_stale_one(asking: Asking) -> None:
    with Scripted(plays(End.CLOSE)) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.CONNECT
        assert len(server.requests) == 1


def test_a_new_connection_that_is_closed_while_it_waits_costs_no_attempt(asking: Asking) -> None:
    with _closing_soon(1) as port:
        assert get(asking, f"http://127.0.0.1:{port}/a", wait=1.2).body == BODY
    assert asking.connects == 2


def test_a_server_that_closes_all_its_new_connections_is_at_fault_in_the_end(asking: Asking) -> None:
    with _closing_soon(100) as port:
        failure = refusal(asking, f"http://127.0.0.1:{port}/a", wait=1.2)
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.CONNECT, True, Blame.HOST)
    assert asking.connects == 4


def test_a_server_that_closes_all_its_new_connections_is_at_fault_behind_redirects_as_well(asking: Asking) -> None:
    with _closing_soon(100) as port, Scripted(plays(_redirect_to(f"http://127.0.0.1:{port}/a"))) as server:
        failure = refusal(asking, server.url("/a"), wait=1.2)
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.CONNECT, True, Blame.HOST)
    assert asking.connects == 5


def _redirect_to(url: str) -> bytes:
    return head(f"Location: {url}", "Content-Length: 0", status="302 Found")


def test_many_threads_may_tell_of_closed_connections_at_once() -> None:
    closed = ClosedUnused(most_remembered=5)
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def tell(worker: int) -> int:
            for number in range(20_000):
                closed.note(f"http://{worker}-{number}.test")
            return worker

        with ThreadPoolExecutor(4) as executor:
            assert list(executor.map(tell, range(4))) == [0, 1, 2, 3]
    finally:
        sys.setswitchinterval(former)


@contextmanager
def _closing_soon(count: int) -> Iterator[int]:
    """Yield a port that closes so many connections before it is asked for anything, and answers on the next one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                for _ in range(count):
                    listener.accept()[0].close()
                with listener.accept()[0] as accepted:
                    accepted.recv(65536)
                    accepted.sendall(whole(BODY))

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


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
    assert (failure.reason, failure.retryable) == (Reason.PRIVATE_ADDRESS, False)
    assert server.connections == 0


def test_a_redirect_leads_to_no_private_address_either(asking: Asking) -> None:
    with transport(public_only=True) as careful, Server() as server:
        assert refusal(careful, f"https://127.0.0.1:{server.port}/a").reason is Reason.PRIVATE_ADDRESS


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_is_refused_where_addresses_have_to_be_checked(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with Server() as proxy, transport(public_only=True) as asking:
        monkeypatch.setenv(f"{scheme}_proxy", proxy.origin)
        assert refusal(asking, f"{scheme}://images.test/a").reason is Reason.PRIVATE_ADDRESS
    assert proxy.connections == 0


def test_ipv6_is_spoken(asking: Asking) -> None:
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
def test_a_name_without_an_address_is_told_as_such(asking: Asking, host: str, reason: Reason | None) -> None:
    failure = refusal(asking, f"http://{host}/a")
    assert failure.reason in ({reason} if reason else {Reason.DNS, Reason.BAD_URL})


def test_a_refused_connection_says_so(asking: Asking) -> None:
    with refusing_port() as port:
        failure = refusal(asking, f"http://127.0.0.1:{port}/a")
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.CONNECT, True, Blame.HOST)
    assert failure.detail == "Connection refused"


def no_descriptors() -> AbstractContextManager[None]:
    """Have no file or socket opened in this process."""
    return limited(resource.RLIMIT_NOFILE, 3)


def test_a_netrc_whose_name_cannot_be_looked_at_does_no_harm(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "/".join(["n" * 200] * 50))
    with Scripted(served()) as server:
        assert get(asking, server.url("/a")).body == BODY


def test_a_netrc_that_lacks_a_descriptor_is_read_later(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password pass\n")
    with transport() as asking:
        with no_descriptors():
            failure = refusal(asking, "http://127.0.0.1:1/a")
        with Scripted(served()) as server:
            get(asking, server.url("/a"))
    assert failure.blame is Blame.PROCESS
    assert "authorization" in server.requests[0].headers


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
    assert (failure.reason, failure.retryable) == (Reason.CONNECT, True)
    assert failure.blame is Blame.PROCESS
    assert later.blame is Blame.HOST

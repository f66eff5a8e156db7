"""Proxies and tunnels: who is asked for what, and how long each step may take."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trustme

from asking import BODY, SOON, assert_deadline, get, refusal, served, transport
from conftest import in_another_process
from exchange import PNG, End, head, whole
from image_loader.errors import DownloadError
from image_loader.model import Blame, Failure, Reason
from image_loader.transport.tunnels import Tunnel
from server import Connection as ServerConnection
from server import Scripted, Server, connections_to, plays, refusing_port, silent_port
from test_connector import resolve, swallowing

pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture(params=["in plain text", "in TLS"])
def spoken(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> ssl.SSLContext | None:
    """How a proxy is spoken to: in both ways, one after the other."""
    return tls if request.param == "in TLS" else None


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


def test_a_host_whose_name_begins_with_socks_is_no_socks_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "sockshop.invalid:3128")
    with transport() as asking:
        assert refusal(asking, "http://images.test/a").reason is Reason.DNS


@pytest.mark.parametrize(
    "form", ["localhost:{}", "//localhost:{}", "127.0.0.1:{}", "http://localhost:{}", "HTTP://LOCALHOST:{}"]
)
def test_a_proxy_may_be_named_without_a_scheme(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    with Scripted(served()) as proxy, transport() as asking:
        monkeypatch.setenv("http_proxy", form.format(proxy.port))
        assert get(asking, "http://images.test/a").body == BODY


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
    assert (failure.reason, failure.retryable) == (Reason.CONNECT, False)
    assert failure.detail.startswith("SOCKS proxies are not supported")
    assert "secret" not in failure.detail


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does soon."""
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@contextmanager
def scripted_port(*steps: Any, received: list[bytes] | None = None) -> Iterator[int]:
    """Yield a port that takes one connection after the other, waits for some bytes, and sends these steps."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    with accepted, suppress(OSError):
                        request = accepted.recv(65536)
                        if received is not None:
                            received.append(request)
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
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 300_000 + b"\r\n\r\n",
        b"HTTP/1.1 \xff\xfe\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 30,
    ],
)  # fmt: skip
def test_a_proxy_that_builds_no_tunnel_fails_the_attempt(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    with scripted_port(answer) as port, transport() as asking:
        monkeypatch.setenv("https_proxy", f"http://user:hush@127.0.0.1:{port}")
        failure = refusal(asking, "https://images.test/a")
        assert connections_to(port) == 0
    assert failure.reason in (Reason.CONNECT, Reason.PROTOCOL)
    assert failure.detail.startswith(f"the proxy 127.0.0.1:{port}: ")
    assert "address" not in failure.detail
    assert "hush" not in failure.detail


@pytest.mark.parametrize(
    ("status", "final"),
    [
        ("403 Forbidden", True), ("407 Proxy Authentication Required", True), ("502 Bad Gateway", False),
        ("503 Service Unavailable", False), ("504 Gateway Timeout", False), ("429 Too Many Requests", False),
        ("403 Not from here", True), ("599", False), ("302 Found", False),
    ],
)  # fmt: skip
def test_a_proxy_that_refuses_a_tunnel_is_named_and_quoted(
    monkeypatch: pytest.MonkeyPatch, status: str, final: bool
) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: nonsense\r\n\r\n<html>"
    with scripted_port(answer.encode()) as port, transport() as asking:
        monkeypatch.setenv("https_proxy", f"http://user:hush@127.0.0.1:{port}")
        failure = refusal(asking, "https://images.test/a")
    assert failure.detail.startswith(f"the proxy 127.0.0.1:{port}: no tunnel, {status}")
    assert (failure.reason, failure.http_status, failure.retryable, failure.blame) == (
        Reason.CONNECT, int(status[:3]), not final, Blame.IMAGE if final else Blame.HOST,
    )  # fmt: skip
    assert ("user:password" in failure.detail) == (status[:3] == "407")
    assert "hush" not in failure.detail


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n\x16\x03", ("there are bytes behind the head of its 200 to CONNECT", False)),
        (head("Content-Length: 1") + b"x", ("there are bytes behind the head of its 200 to CONNECT", False)),
        (b"HTTP/1.1 200 OK\r\nX: y", ("the connection ended inside the head", True)),
        (b"HTTP/1.1 200 O", ("no HTTP/1.x status line", True)),
        (b"\x15\x03\x01\x00\x02\x02\x28\n", ("no HTTP/1.x status line", False)),
        (b"", ("it closed the connection without an answer", True)),
    ],
)  # fmt: skip
def test_an_answer_to_connect_that_is_none_or_more_than_one_is_refused(
    spoken: ssl.SSLContext | None, bundle: str, monkeypatch: pytest.MonkeyPatch, answer: bytes, told: tuple[str, bool]
) -> None:
    with Server() as server, Scripted(plays(), tls=spoken) as proxy:
        monkeypatch.setattr(ServerConnection, "_tunnel", lambda self, port: self._socket.sendall(answer))
        monkeypatch.setenv("https_proxy", proxy.origin)
        with transport(ca_bundle=bundle) as asking:
            failure = refusal(asking, f"https://127.0.0.1:{server.port}/a")
            assert connections_to(proxy.port) == 0
    detail, retryable = told
    assert (failure.detail, failure.retryable) == (f"the proxy 127.0.0.1:{proxy.port}: {detail}", retryable)


@pytest.mark.parametrize(
    "answer",
    [
        head(status="200 "), head(status="299 Tunnel"), head(version="HTTP/1.0"),
        head("Content-Length: 5"), head("Content-Length: 5", "Content-Length: 6"), head("Content-Length: nonsense"),
        head("Transfer-Encoding: chunked"), head("Transfer-Encoding: nonsense", "Connection: close"),
        head(status="100 Continue") + head(status="103 Early Hints") + head(), b"HTTP/1.1 200 OK\n\n",
    ],
)  # fmt: skip
def test_a_tunnel_begins_behind_the_head_of_a_2xx_whatever_else_that_says(
    spoken: ssl.SSLContext | None, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with (
        tunnelling(spoken, answer) as proxy,
        Server(tls=tls) as server,
        transport(ca_bundle=bundle) as asking,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        assert get(asking, server.url("/a")).body == server.image("/a")


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        ("https://images.test", "images.test:443"), ("https://images.test:8443", "images.test:8443"),
        ("https://[2001:db8::1]", "[2001:db8::1]:443"), ("https://b\u00fccher.test", "xn--bcher-kva.test:443"),
    ],
)  # fmt: skip
def test_a_tunnel_is_asked_for_as_rfc_9110_has_it(monkeypatch: pytest.MonkeyPatch, origin: str, place: str) -> None:
    received: list[bytes] = []
    with scripted_port(head(status="403 Forbidden"), received=received) as port, transport() as asking:
        monkeypatch.setenv("https_proxy", f"http://user:pass@127.0.0.1:{port}")
        refusal(asking, f"{origin}/a?b=c")
    credentials = b64encode(b"user:pass").decode()
    assert received == [
        f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nProxy-Authorization: Basic {credentials}\r\n\r\n".encode()
    ]


def test_a_host_whose_name_is_not_taken_for_tls_within_tls_is_a_bad_url(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No URL has such a host; an error that is not expected would end the thread."""
    with tunnelling(tls) as proxy, Server(tls=tls) as server, transport(ca_bundle=bundle) as asking:
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(DownloadError) as caught:
            asking.connected(f"https://{'a' * 64}.test:{server.port}")
    failure = caught.value.failure
    assert (failure.reason, failure.detail, failure.retryable) == (Reason.BAD_URL, "bad host name", False)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_whose_certificate_is_not_trusted_is_named(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with tunnelling(tls) as proxy, transport() as asking:
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        failure = refusal(asking, f"{scheme}://images.test/a")
    assert failure.detail.startswith(f"the proxy {proxy.removeprefix('https://')}: the certificate is not trusted")
    assert (failure.reason, failure.retryable) == (Reason.TLS, False)


@pytest.mark.parametrize("way", ["option", "environment", "insecure"])
def test_whom_to_trust_holds_for_a_proxy_that_is_spoken_to_by_tls(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    ways: dict[str, dict[str, Any]] = {"option": {"ca_bundle": bundle}, "insecure": {"insecure": True}}
    if way == "environment":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    with tunnelling(tls) as proxy, Server(tls=tls) as server, transport(**ways.get(way, {})) as asking:
        monkeypatch.setenv("https_proxy", proxy)
        assert get(asking, server.url("/a")).body == server.image("/a")


def test_a_host_behind_a_tunnel_whose_certificate_is_not_trusted_is_not_called_a_proxy(
    spoken: ssl.SSLContext | None, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(other)
    with (
        tunnelling(spoken) as proxy,
        Server(tls=other) as server,
        transport(ca_bundle=bundle) as asking,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        failure = refusal(asking, server.url("/a"))
    assert failure.detail.startswith("the certificate is not trusted")
    assert failure.reason is Reason.TLS


def test_plain_http_goes_through_a_proxy_that_is_spoken_to_by_tls(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scripted(served(), tls=tls) as proxy, transport(ca_bundle=bundle) as asking:
        monkeypatch.setenv("http_proxy", proxy.origin)
        assert get(asking, "http://images.test/a").body == BODY
        assert get(asking, "http://other.test/b").body == BODY
    assert [request.target for request in proxy.requests] == ["http://images.test/a", "http://other.test/b"]
    assert proxy.connections == 1


_WITHOUT_DESCRIPTORS = """
import importlib, resource, sys
from queue import SimpleQueue
from conftest import SETTINGS, limited
from image_loader.transport import Transport

told = SimpleQueue()
transport = Transport(SETTINGS, lambda origin, result, begun: told.put(result))
if sys.argv[1] == "tunnels":
    importlib.import_module("image_loader.transport.proxies")
transport.connect("https://127.0.0.1:1")  # Directly: with this one, the certificates are read.
told.get(timeout=30)
assert f"image_loader.transport.{sys.argv[1]}" not in sys.modules
with limited(resource.RLIMIT_NOFILE, 3):
    assert transport.take("https://images.test") is None
    transport.connect("https://images.test")
    lacking = told.get(timeout=30).failure
transport.connect("https://images.test")
refused = told.get(timeout=30).failure
transport.close()
print(lacking.retryable, lacking.blame, refused.detail)
"""


@pytest.mark.parametrize("module", ["proxies", "tunnels"])
def test_what_a_proxy_needs_and_no_descriptor_is_left_for_fails_one_attempt(module: str) -> None:
    with refusing_port() as port:
        proxies = {"https_proxy": f"http://127.0.0.1:{port}", "no_proxy": "127.0.0.1"}
        finished = in_another_process(_WITHOUT_DESCRIPTORS, module, environment=proxies)
        expected = f"True {Blame.PROCESS} the proxy 127.0.0.1:{port}: Connection refused\n"
    assert (finished.stdout, finished.stderr) == (expected, "")


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_proxy_of_tls_that_is_gone_before_it_is_asked_may_be_tried_again(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    gone, build = threading.Event(), Tunnel.build

    def builds_later(self: Tunnel, begin_step: Any) -> None:
        gone.wait(10)
        time.sleep(0.1)
        build(self, begin_step)

    def serve() -> None:
        accepted = tls.wrap_socket(listener.accept()[0], server_side=True)
        if end == "reset":
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        gone.set()

    monkeypatch.setattr(Tunnel, "build", builds_later)
    with socket.create_server(("127.0.0.1", 0)) as listener, transport(ca_bundle=bundle) as asking:
        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv("https_proxy", f"https://127.0.0.1:{listener.getsockname()[1]}")
        failure = refusal(asking, "https://images.test/a")
        thread.join()
    assert (failure.reason, failure.retryable) == (Reason.CONNECT, True)
    assert "it closed the connection without an answer" in failure.detail


@pytest.mark.parametrize("way", ["in plain text", "in TLS"])
def test_a_tunnel_that_waits_to_be_used_costs_no_other(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with (
        tunnelling(tls if way == "in TLS" else None) as proxy,
        Server(tls=tls) as server,
        transport(ca_bundle=bundle) as asking,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        assert get(asking, server.url("/a"), wait=1.3).status == 200
        assert asking.connects == 1


def test_a_proxy_that_waits_only_a_moment_for_a_request_is_connected_to_when_it_can_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []

    def serve(accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            told.append(bool(select.select([accepted], [], [], 0.5)[0]))
            time.sleep(1.0)

    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener, transport(timeout=30.0) as asking:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        threads = [threading.Thread(target=refusal, args=(asking, f"https://{number}.test/a")) for number in range(100)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
        listener.shutdown(socket.SHUT_RDWR)
    assert told == [True] * 100


def test_an_interrupt_ends_tunnels_that_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait to be connected among them: fewer are at once."""
    with silent_port() as port, transport(timeout=60.0, max_time=120.0) as asking:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        failures: list[Failure] = []
        threads = [
            threading.Thread(target=lambda host: failures.append(refusal(asking, f"https://{host}.test/a")), args=(n,))
            for n in range(100)
        ]
        for each in threads:
            each.start()
        wait_until(lambda: connections_to(port) == 64)
        asking.interrupt()
        for each in threads:
            each.join(5)
            assert not each.is_alive()
        assert {failure.reason for failure in failures} == {Reason.INTERRUPTED}
        wait_until(lambda: connections_to(port) == 0)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_whose_host_cannot_be_looked_up_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", "http://user:hush@a..b:1")
    with transport() as asking:
        failure = refusal(asking, f"{scheme}://images.test/a")
    assert (failure.detail, failure.retryable) == ("the proxy a..b:1: bad host name", False)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("host", "reason"), [("127.0.0.1", Reason.CONNECT), ("nosuch.invalid", Reason.DNS)])
def test_a_proxy_that_cannot_be_reached_is_named(
    monkeypatch: pytest.MonkeyPatch, scheme: str, host: str, reason: Reason
) -> None:
    with refusing_port() as port, transport() as asking:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:hush@{host}:{port}")
        failure = refusal(asking, f"{scheme}://images.test/a")
        assert failure.detail.startswith(f"the proxy {host}:{port}: ")
    assert (failure.reason, failure.blame) == (reason, Blame.HOST)
    assert failure.retryable == (reason is Reason.CONNECT), "a name that does not exist is looked up once"


def test_the_deadline_holds_while_a_tunnel_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = [b"HTTP/1.1 200 OK\r\n", *[part for _ in range(100) for part in (b"X: y\r\n", 0.05)]]
    with scripted_port(*endless) as port, transport(**SOON) as asking:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert_deadline(asking, "https://images.test/a")


def test_a_black_hole_at_the_first_address_of_a_proxy_costs_a_quarter_of_a_second(
    spoken: ssl.SSLContext | None, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"localhost": ["127.0.0.1", "::1"]})
    with (
        tunnelling(spoken) as proxy,
        swallowing("::1", int(proxy.rpartition(":")[2])),
        Server(tls=tls) as server,
        transport(ca_bundle=bundle, timeout=20.0, max_time=60.0) as asking,
    ):
        monkeypatch.setenv("https_proxy", proxy.replace("127.0.0.1", "localhost"))
        begun = time.monotonic()
        asking.connected(server.origin).close()
        assert 0.25 <= time.monotonic() - begun < 10


def test_a_head_that_comes_bit_by_bit_has_the_timeout_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = [b"HTTP/1.1 200 OK\r\n", *[part for _ in range(400) for part in (b"X: y\r\n", 0.05)]]
    with scripted_port(*endless) as port, transport(timeout=0.5, max_time=60.0) as asking:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        failure = refusal(asking, "https://images.test/a")
        wait_until(lambda: connections_to(port) == 0)
    assert failure.detail == f"the proxy 127.0.0.1:{port}: no answer within the timeout"
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.TIMEOUT, True, Blame.HOST)


def test_a_proxy_that_never_answers_is_named(
    spoken: ssl.SSLContext | None, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_port() as port, transport(timeout=0.5, ca_bundle=bundle) as asking:
        monkeypatch.setenv("https_proxy", f"{'https' if spoken else 'http'}://127.0.0.1:{port}")
        failure = refusal(asking, "https://images.test/a")
        wait_until(lambda: connections_to(port) == 0)
    missing = "TLS handshake" if spoken else "answer"
    assert failure.detail == f"the proxy 127.0.0.1:{port}: no {missing} within the timeout"
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.TIMEOUT, True, Blame.HOST)


def test_a_host_behind_a_tunnel_that_never_shakes_hands_is_not_called_a_proxy(
    spoken: ssl.SSLContext | None, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        silent_port() as port,
        tunnelling(spoken) as proxy,
        transport(timeout=1.0, ca_bundle=bundle) as asking,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        failure = refusal(asking, f"https://127.0.0.1:{port}/a")
        wait_until(lambda: connections_to(int(proxy.rpartition(":")[2])) == 0)
    assert (failure.reason, failure.detail) == (Reason.TIMEOUT, "no TLS handshake within the timeout")


def test_each_step_to_a_tunnel_has_the_timeout(
    spoken: ssl.SSLContext | None, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def slow_look_up(host: str, *args: Any, **kwargs: Any) -> Any:
        time.sleep(1.2 if host == "localhost" else 0)
        return look_up("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow_look_up)
    with tunnelling(spoken, pause=1.2) as proxy, late_handshake(tls, 1.2) as port:
        monkeypatch.setenv("https_proxy", proxy.replace("127.0.0.1", "localhost"))
        with transport(ca_bundle=bundle, timeout=2.0) as asking:
            assert get(asking, f"https://127.0.0.1:{port}/a").body == BODY


def test_a_tunnel_that_is_built_after_the_end_is_closed(
    spoken: ssl.SSLContext | None, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, go_on = threading.Event(), threading.Event()
    build = Tunnel.build

    def held(tunnel: Tunnel, begin_step: Callable[[], None]) -> None:
        build(tunnel, begin_step)
        assert tunnel.error is None
        built.set()
        assert go_on.wait(30)

    monkeypatch.setattr(Tunnel, "build", held)
    with (
        tunnelling(spoken) as proxy,
        Server(tls=tls) as server,
        transport(ca_bundle=bundle) as asking,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        asking.connect(server.origin)
        assert built.wait(30)
        asking.close()
        go_on.set()
        wait_until(lambda: connections_to(int(proxy.rpartition(":")[2])) == 0)


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
    assert (failure.reason, failure.retryable) == (Reason.CONNECT, False), "another attempt changes nothing"


@contextmanager
def tunnelling(tls: ssl.SSLContext | None, answer: bytes = head(), pause: float = 0.0) -> Iterator[str]:
    """Yield the URL of a proxy, spoken to by TLS if there is a context; it builds tunnels to 127.0.0.1 and says so.

    It takes ``pause`` seconds to answer.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    threading.Thread(target=serve, args=(accepted,), daemon=True).start()

        def serve(accepted: socket.socket) -> None:
            with suppress(OSError), tls.wrap_socket(accepted, server_side=True) if tls else accepted as client:
                request = client.recv(65536).split()
                time.sleep(pause)
                with socket.create_connection(("127.0.0.1", int(request[1].rpartition(b":")[2]))) as beyond:
                    client.sendall(answer)
                    while _shuttle(client, beyond):
                        pass

        threading.Thread(target=accept, daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _shuttle(client: socket.socket, beyond: socket.socket) -> bool:
    """Pass on what has come from either side; one thread for both, since TLS in Python takes no two at once."""
    pending = isinstance(client, ssl.SSLSocket) and client.pending()
    ready = [client] if pending else select.select([client, beyond], [], [])[0]
    for source, sink in ((client, beyond), (beyond, client)):
        if source in ready:
            received = source.recv(65536)
            sink.sendall(received)
            if not received:
                return False
    return True


def test_a_proxy_may_be_spoken_to_by_tls(tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tunnelling(tls) as proxy, Server(tls=tls) as server, transport(ca_bundle=bundle) as asking:
        monkeypatch.setenv("https_proxy", proxy)
        assert get(asking, server.url("/a")).body == server.image("/a")
        assert get(asking, server.url("/b")).body == server.image("/b")
        assert refusal(asking, server.url("/closing-at-once/a")).reason is Reason.CONNECT
        assert refusal(asking, server.url("/short-body/a")).reason is Reason.TRUNCATED


def test_the_deadline_holds_through_a_proxy_that_is_spoken_to_by_tls(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tunnelling(tls) as proxy, Scripted(plays(End.STALL), tls=tls) as server:
        monkeypatch.setenv("https_proxy", proxy)
        with transport(ca_bundle=bundle, **SOON) as asking:
            assert_deadline(asking, server.url("/a"))


def test_more_than_its_response_within_tls_within_tls_keeps_a_connection_from_being_used_again(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = whole(BODY)
    start = len(response) - len(BODY)
    first = plays(response[:start], 0.05, response[start:] + whole(b"of nobody"))
    with (
        tunnelling(tls) as proxy,
        transport(ca_bundle=bundle) as asking,
        Scripted(first, served(b"second"), tls=tls) as server,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        assert get(asking, server.url("/a")).body == BODY
        assert get(asking, server.url("/b")).body == b"second"


def test_an_unframed_body_within_tls_within_tls_is_whole_only_after_close_notify(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        tunnelling(tls) as proxy,
        Scripted(plays(head(PNG) + BODY, End.CLOSE), tls=tls) as server,
        transport(ca_bundle=bundle) as asking,
    ):
        monkeypatch.setenv("https_proxy", proxy)
        failure = refusal(asking, server.url("/a"))
    assert (failure.reason, failure.retryable) == (Reason.TRUNCATED, True)


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


def test_a_handshake_has_the_timeout_anew_after_a_slow_look_up(
    tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def slow(host: str, port: int, **kwargs: Any) -> Any:
        time.sleep(1.2)
        return look_up(host, port, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with late_handshake(tls, 1.2) as port, transport(ca_bundle=bundle, timeout=2.0) as asking:
        assert get(asking, f"https://localhost:{port}/a").body == BODY


@contextmanager
def led(way: str, tls: ssl.SSLContext, bundle: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have requests for https go through a proxy that is at localhost, and is spoken to in plain text or by TLS."""
    with Server() as plain, tunnelling(tls) as secure:
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

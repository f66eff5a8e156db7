"""What a server is asked by the command: by whom, how often, and how much at once."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable

import pytest
import trustme

from conftest import Loader, urls_of
from server import Server


def test_a_request_says_who_asks_and_for_what(server: Server, loader: Loader) -> None:
    loader.run([server.url("/a.png?b=1#part")])
    (request,) = server.requests
    assert request.target == "/a.png?b=1"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["user-agent"].startswith("image_loader/")
    assert request.headers["accept-encoding"] == "identity"


def test_headers_and_user_agent_are_sent_as_told(server: Server, loader: Loader) -> None:
    loader.run([server.url("/a.png")], "-H", "X-One: 1", "--header", "X-Two:  two words", "-A", "mine/1.0")
    headers = server.requests[0].headers
    assert (headers["x-one"], headers["x-two"], headers["user-agent"]) == ("1", "two words", "mine/1.0")


def test_user_and_password_of_a_url_are_sent_as_such(server: Server, loader: Loader) -> None:
    url = server.url("/a.png").replace("://", "://user:p%40ss@")
    assert loader.run([url]).counts == (1, 0, 0, 0)
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwQHNz"


def test_netrc_is_heeded(server: Server, loader: Loader) -> None:
    (loader.home / ".netrc").write_text("machine 127.0.0.1 login user password p@ss\n")
    (loader.home / ".netrc").chmod(0o600)
    loader.run([server.url("/a.png")])
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwQHNz"


def test_a_proxy_is_heeded(server: Server, loader: Loader) -> None:
    run = loader.run(["http://images.test/a.png"], environment={"http_proxy": server.origin})
    assert run.counts == (1, 0, 0, 0)
    assert server.requests[0].target == "http://images.test/a.png"


def test_https_goes_through_a_proxy_as_a_tunnel(server: Server, loader: Loader, tls: ssl.SSLContext) -> None:
    with Server(tls=tls) as secure:
        run = loader.run([secure.url("/a.png")], "--insecure", environment={"https_proxy": server.origin})
        assert run.content(secure.url("/a.png")) == secure.image("/a.png")
    assert [request.target for request in server.requests] == [f"CONNECT {secure.port}"]


@pytest.mark.parametrize("options", [(), ("--failed", "failed.txt", "--index", "index.sqlite3")], ids=["bare", "files"])
def test_a_ca_bundle_may_be_a_pipe(
    loader: Loader, authority: trustme.CA, tls: ssl.SSLContext, options: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.write(writing, authority.cert_pem.bytes())
    os.close(writing)
    with Server(tls=tls) as secure:
        bundle = ("--ca-bundle", f"/dev/fd/{reading}")
        run = loader.run([secure.url("/a.png")], *bundle, *options, results=False, pass_fds=[reading])
    os.close(reading)
    assert run.status == 0
    assert run.files == {"a.png"}


def test_a_host_may_be_kept_from_the_proxy(server: Server, loader: Loader) -> None:
    environment = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    assert loader.run([server.url("/a.png")], environment=environment).counts == (1, 0, 0, 0)


def test_connections_are_used_again(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 50), "--threads", "1")
    assert server.connections == 1


def test_nobody_asks_for_robots(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 3))
    assert {request.path for request in server.requests} == {f"/image/000{number}.png" for number in range(3)}


def test_no_more_downloads_run_at_once_than_threads(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 30, "slow"), "--threads", "4", "--per-host", "20")
    assert server.peak == 4


def test_no_more_downloads_run_at_one_host_than_told(server: Server, loader: Loader) -> None:
    with Server(name="other") as other:
        loader.run([*urls_of(server, 30, "slow"), *urls_of(other, 30, "slow")], "--threads", "20", "--per-host", "3")
        assert (server.peak, other.peak) == (3, 3)


def test_by_default_32_downloads_run_at_once(new_server: Callable[..., Server], loader: Loader) -> None:
    servers = [new_server(name=str(number)) for number in range(4)]
    urls = [url for server in servers for url in urls_of(server, 11)]
    held = [url for server in servers for url in urls_of(server, 11, "held/more")]
    running = loader.start([*urls, *held])
    servers[0].wait_for(lambda: sum(server.at_work for server in servers) == 32)
    for server in servers:
        server.gate.set()
    assert running.finish().counts == (88, 0, 0, 0)


def test_by_default_10_downloads_run_at_once_at_one_host(server: Server, loader: Loader) -> None:
    running = loader.start([*urls_of(server, 20), *urls_of(server, 20, "held/more")])
    server.wait_for(lambda: server.at_work == 10)
    server.gate.set()
    assert running.finish().counts == (40, 0, 0, 0)
    assert server.peak == 10


def test_retries_are_as_many_as_told(server: Server, loader: Loader) -> None:
    for retries in (0, 2):
        loader.run([server.url(f"/status-500/{retries}.png")], "--retries", str(retries))
    assert [len(server.asked(f"/status-500/{retries}.png")) for retries in (0, 2)] == [1, 3]


@pytest.mark.parametrize(("size", "status"), [("3999", "failed"), ("4k", "saved"), ("4K", "saved"), ("1M", "saved")])
def test_a_size_over_the_limit_is_refused(server: Server, loader: Loader, size: str, status: str) -> None:
    run = loader.run([server.url("/a.png")], "--max-size", size)
    assert run.rows[0]["status"] == status
    assert run.rows[0]["reason"] == (None if status == "saved" else "too-large")


@pytest.mark.parametrize(
    ("option", "most", "more"),
    [
        ("--threads", "100000", "100001"),
        ("--per-host", "100000", "100001"),
        ("--timeout", "1e6", "1000001"),
        ("--max-time", "1e9", "1e10"),
        ("--retries", "1000000000", "1000000001"),
        ("--max-size", "1000G", "1001G"),
    ],
)
def test_the_greatest_value_accepted_works_and_more_is_refused(
    server: Server, loader: Loader, option: str, most: str, more: str
) -> None:
    run = loader.run([server.url("/a.png"), server.url("/slow/b.png")], option, most)
    assert (run.status, run.counts, run.stderr) == (0, (2, 0, 0, 0), "")
    run = loader.run([server.url("/c.png")], option, more)
    assert run.status == 2
    assert re.search(rf"^loader: {option}: must be between [0-9.]+ and 1000+, not ", run.stderr)

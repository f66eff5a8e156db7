"""Redirects: cookies that are set on the way, bytes in Location, and what is kept of a chain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest

from asking import BODY, Asking, get, refusal, served, transport
from conftest import SETTINGS, in_another_process
from exchange import End, Request, head, whole
from image_loader.errors import DownloadError
from image_loader.model import Blame, Hop, Reason, Redirect
from image_loader.transport import Answer, redirects
from image_loader.transport import Request as Wanted
from image_loader.url import parse
from server import Scripted, Server, plays

pytestmark = pytest.mark.usefixtures("own_environment")

Script = Callable[[Request], Iterable[Any]]


def leads_to(location: str, *lines: str) -> Script:
    return plays(head(f"Location: {location}", "Content-Length: 0", *lines, status="302 Found"))


def cookies_sent(server: Server) -> list[str | None]:
    return [request.headers.get("cookie") for request in server.requests]


# Cookies -----------------------------------------------------------------------------------------------------------


def test_a_loop_that_a_cookie_ends_is_no_loop(asking: Asking) -> None:
    def play(request: Request) -> Iterable[Any]:
        again = head("Location: /a", "Set-Cookie: seen=1; Path=/", "Content-Length: 0", status="302 Found")
        return [whole(BODY) if request.headers.get("cookie") == "seen=1" else again]

    with Scripted(play) as server:
        assert get(asking, server.url("/a")).body == BODY
    assert cookies_sent(server) == [None, "seen=1"]


def test_cookies_are_forgotten_after_their_chain(asking: Asking) -> None:
    with Scripted(leads_to("/b", "Set-Cookie: seen=1"), served()) as server:
        get(asking, server.url("/a"))
        get(asking, server.url("/c"))
    assert cookies_sent(server) == [None, "seen=1", None]


@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        (["Set-Cookie: a=1; Path=/", "Set-Cookie: b=2; Path=/"], "a=1; b=2"),
        (["Set-Cookie: a=1; Expires=Wed, 09 Jun 2100 10:18:14 GMT; Path=/", "Set-Cookie: b=2"], "b=2; a=1"),
        (["Set-Cookie: a=1; Max-Age=0"], None),
        (["Set-Cookie: a=1; Expires=Wed, 09 Jun 2010 10:18:14 GMT"], None),
        (["Set-Cookie: a=1; Secure"], None),
        (["Set-Cookie: a=1; Path=/x/"], "a=1"),
        (["Set-Cookie: a=1; Path=/y/"], None),
        (["Set-Cookie: a=1; Domain=example.com"], None),
        (["Set-Cookie: a=1; HttpOnly; SameSite=Lax; Path=/"], "a=1"),
        (['Set-Cookie: a="1 2"; Path=/'], 'a="1 2"'),
        (["Set-Cookie: nameless"], "nameless"),
        (["Set-Cookie:"], None),
        (["Set-Cookie: a=" + 5000 * "x"], None),
        (["Set-Cookie: a=" + 40 * "9" + "; Path=/"], "a=" + 40 * "9"),
        (["Set-Cookie: max-age=" + 40 * "9"], "max-age=" + 40 * "9"),
        (["Set-Cookie: a=1; Max-Age=" + 400 * "9", "Set-Cookie: b=2"], "a=1; b=2"),
        (["Set-Cookie: a=1;max-age = " + 400 * "9", "Set-Cookie: b=2"], "a=1; b=2"),
        (["Set-Cookie: a=1; Expires=Wed, 09 Jun " + 400 * "9" + " 10:18:14 GMT", "Set-Cookie: b=2"], "a=1; b=2"),
        (["Set-Cookie: a=1; Version=" + 400 * "9", "Set-Cookie: b=2"], "b=2"),
    ],
)
def test_a_cookie_goes_where_its_attributes_say(asking: Asking, lines: list[str], sent: str | None) -> None:
    with Scripted(leads_to("/x/b", *lines), served()) as server:
        get(asking, server.url("/x/a"))
    assert cookies_sent(server) == [None, sent]


def test_a_cookie_goes_to_the_host_that_set_it_alone(asking: Asking) -> None:
    with Scripted(served()) as last, Server() as server:
        scripts = {
            "/a": leads_to(f"http://localhost:{last.port}/b", "Set-Cookie: secret=1; Path=/"),
        }
        server.steps = lambda request: iter(scripts[request.target](request))  # type: ignore[method-assign]
        get(asking, server.url("/a"))
    assert cookies_sent(last) == [None]


def test_a_cookie_comes_back_to_its_host_after_a_way_elsewhere(asking: Asking) -> None:
    with Server() as first, Server() as second:
        scripts: Mapping[str, Script] = {
            "/a": leads_to(f"http://localhost:{second.port}/login", "Set-Cookie: first=1; Path=/"),
            "/login": leads_to(first.url("/b"), "Set-Cookie: second=2; Path=/"),
            "/b": served(),
        }
        for server in (first, second):
            server.steps = lambda request: iter(scripts[request.target](request))  # type: ignore[method-assign]
        assert get(asking, first.url("/a")).body == BODY
    assert cookies_sent(first) == [None, "first=1"]
    assert cookies_sent(second) == [None]


def test_a_secure_cookie_stays_within_tls(tls: Any, bundle: str) -> None:
    with transport(ca_bundle=bundle) as asking, Server(tls=tls) as secure:
        scripts: Mapping[str, Script] = {
            "/a": leads_to(secure.url("/b"), "Set-Cookie: a=1; Secure; Path=/"),
            "/b": served(),
        }
        secure.steps = lambda request: iter(scripts[request.target](request))  # type: ignore[method-assign]
        get(asking, secure.url("/a"))
    assert cookies_sent(secure) == [None, "a=1"]


@pytest.mark.parametrize("domain", ["co.uk", ".co.uk", "uk", "com", "other.co.uk"])
def test_a_cookie_for_more_than_its_host_owns_is_refused(domain: str) -> None:
    hop = redirects.follow(
        parse("http://shop.co.uk/a"),
        Hop(parse("http://shop.co.uk/a"), ()),
        {"location": "http://bank.co.uk/", "set-cookie": f"a=1; Domain={domain}"},
        0.0,
        0.0,
    )
    assert redirects.cookie(hop) == ""


def test_a_cookie_for_a_domain_goes_to_its_other_hosts() -> None:
    hop = redirects.follow(
        parse("http://a.shop.test/a"),
        Hop(parse("http://a.shop.test/a"), ()),
        {"location": "http://b.shop.test/", "set-cookie": "a=1; Domain=shop.test; Path=/"},
        0.0,
        0.0,
    )
    assert redirects.cookie(hop) == "a=1"


def test_a_hop_keeps_its_cookies_when_the_next_redirect_sets_more() -> None:
    url = parse("http://shop.test/a")
    first = redirects.follow(url, Hop(url, ()), {"location": "/b", "set-cookie": "a=1"}, 0.0, 0.0)
    second = redirects.follow(url, first, {"location": "/c", "set-cookie": "b=2"}, 0.0, 0.0)
    again = redirects.follow(url, second, {"location": "/d", "set-cookie": "a=3"}, 0.0, 0.0)
    assert [redirects.cookie(each) for each in (first, second, again)] == ["a=1", "a=1; b=2", "a=3; b=2"]


def test_the_cookies_of_one_answer_are_bounded(asking: Asking) -> None:
    many = [f"Set-Cookie: c{number}=1; Path=/" for number in range(200)]
    with Scripted(leads_to("/b", *many), served()) as server:
        get(asking, server.url("/a"))
    assert len((cookies_sent(server)[1] or "").split("; ")) == 50


# Location ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/x/jos\xe9.png", "/x/jos%E9.png"), ("/x/jos\xc3\xa9.png", "/x/jos%C3%A9.png"), ("/\xff?\xfe", "/%FF?%FE"),
        ("jos\xe9.png", "/d/jos%E9.png"), ("?\xe9", "/d/a?%E9"),
    ],
)  # fmt: skip
def test_bytes_in_a_location_are_percent_encoded_as_they_are(asking: Asking, location: str, target: str) -> None:
    with Scripted(leads_to(location), served()) as server:
        get(asking, server.url("/d/a"))
    assert [request.target for request in server.requests] == ["/d/a", target]


# Hops --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chain() -> Iterator[tuple[Server, Server]]:
    """Two origins: /a of the first leads to /b of the second, and that back to /c of the first."""
    with Server() as first, Server() as second:
        scripts: Mapping[str, Script] = {
            "/a": leads_to(f"http://localhost:{second.port}/b", "Cache-Control: max-age=5", "Server: any", "Age: 1"),
            "/b": leads_to(first.url("/c"), "Date: Thu, 01 Jan 1970 00:00:00 GMT"),
            "/c": served(),
        }
        for server in (first, second):
            server.steps = lambda request: iter(scripts[request.target](request))  # type: ignore[method-assign]
        yield first, second


def test_a_redirect_to_another_origin_is_handed_back_as_a_hop(asking: Asking, chain: tuple[Server, Server]) -> None:
    first, second = chain
    url = parse(first.url("/a"))
    before, started = time.time(), time.monotonic()
    connection = asking.connected(first.origin)
    hop = asking.exchange(Wanted(url, {}), connection)
    assert isinstance(hop, Hop)
    assert connection.usable
    assert (hop.url.origin, hop.url.path) == (f"http://localhost:{second.port}", "/b")
    assert 0 < SETTINGS.max_time - hop.left < time.monotonic() - started
    other = asking.connected(hop.url.origin)
    last = asking.exchange(Wanted(url, {}), other, hop)
    assert isinstance(last, Hop)
    assert last.left < hop.left
    answer = asking.exchange(Wanted(url, {}), connection, last)
    assert isinstance(answer, Answer)
    with answer:
        assert b"".join(answer.chunks(1000)) == BODY
        assert answer.url.path == "/c"
        assert [redirect.fields for redirect in answer.redirects] == [
            {"cache-control": "max-age=5", "age": "1"}, {"date": "Thu, 01 Jan 1970 00:00:00 GMT"},
        ]  # fmt: skip
        for redirect in answer.redirects:
            assert isinstance(redirect, Redirect)
            assert before <= redirect.requested <= redirect.received <= time.time()
    asking.give_back(connection)
    asking.give_back(other)
    assert asking.take(first.origin) is connection
    connection.close()


def test_a_hop_is_asked_for_in_the_time_that_is_left() -> None:
    with Scripted(plays(5.0)) as server, transport(max_time=100.0) as asking:
        url = parse(server.url("/a"))
        late = Hop(url, (), left=0.3)
        connection = asking.connected(server.origin)
        with pytest.raises(DownloadError, match="not done within the time") as caught:
            asking.exchange(Wanted(url, {}), connection, late)
        assert caught.value.failure.blame is Blame.IMAGE, "others took most of the time"
        connection.close()


def test_a_connection_that_went_stale_on_the_way_costs_no_redirect(asking: Asking) -> None:
    scripts = (leads_to("/b", "Set-Cookie: seen=1"), plays(End.CLOSE), served())
    with Scripted(*scripts) as server:
        assert get(asking, server.url("/a")).body == BODY
    assert [request.target for request in server.requests] == ["/a", "/b", "/b"]
    assert cookies_sent(server)[2] == "seen=1"


def test_a_chain_whose_connection_went_stale_still_ends_at_its_deadline(asking: Asking) -> None:
    with Scripted(plays(whole(BODY), End.CLOSE)) as server:
        url = parse(server.url("/a"))
        connection = asking.connected(server.origin)
        found = asking.exchange(Wanted(url, {}), connection)
        assert isinstance(found, Answer)
        with found as answer:
            assert b"".join(answer.chunks(SETTINGS.chunk)) == BODY
        server.wait_for(lambda: not connection.alive)
        late = Hop(url, (Redirect({}, 0.0, 0.0),), left=0.0)
        with pytest.raises(DownloadError, match="not done within the time"):
            asking.exchange(Wanted(url, {}), connection, late)


def test_a_connection_that_a_redirect_closes_is_not_used_for_the_next_hop(asking: Asking) -> None:
    with Scripted(leads_to("/b", "Connection: close"), served()) as server:
        assert get(asking, server.url("/a")).body == BODY
    assert server.connections == 2


def test_a_condition_goes_only_with_the_request_that_it_is_about(asking: Asking, chain: tuple[Server, Server]) -> None:
    first, second = chain
    condition = {"If-None-Match": '"1"'}
    for target in (None, parse(first.url("/c")).digest):
        url, hop = parse(first.url("/a")), None
        while not isinstance(
            found := asking.exchange(
                Wanted(url, {}, condition, target),
                connection := asking.connected((hop.url if hop else url).origin),
                hop,
            ),
            Answer,
        ):
            asking.give_back(connection)
            hop = found
        assert found.conditional == (target is not None)
        with found:
            pass
        asking.give_back(connection)
    sent = [request.headers.get("if-none-match") for request in (*first.requests, *second.requests)]
    assert sent == ['"1"', None, None, '"1"', None, None]


_WITHOUT_DESCRIPTORS = """
import resource, sys
from queue import SimpleQueue
from conftest import SETTINGS, limited
from image_loader.errors import DownloadError
from image_loader.transport import Request, Transport
from image_loader.url import parse

url = parse(sys.argv[1])
told = SimpleQueue()
transport = Transport(SETTINGS, lambda origin, result, begun: told.put(result))
transport.connect(url.origin)
connection = told.get(timeout=30)
assert "image_loader.transport.redirects" not in sys.modules
try:
    with limited(resource.RLIMIT_NOFILE, 3):
        transport.exchange(Request(url, {}), connection)
except DownloadError as error:
    print(error.failure.retryable, error.failure.blame)
transport.close()
"""


def test_a_redirect_that_no_descriptor_is_left_for_may_be_followed_later() -> None:
    with Scripted(leads_to("/b")) as server:
        finished = in_another_process(_WITHOUT_DESCRIPTORS, server.url("/a"))
    assert (finished.stdout, finished.stderr) == (f"True {Blame.PROCESS}\n", "")


def test_a_redirect_to_a_bad_host_is_told_by_the_exchange(asking: Asking) -> None:
    with Scripted(leads_to("http://*.test/")) as server:
        failure = refusal(asking, server.url("/a"))
    assert (failure.reason, failure.retryable) == (Reason.REDIRECTS, False)

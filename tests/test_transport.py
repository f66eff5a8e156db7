"""What is sent to whom: users and passwords, headers, and where redirects lead."""

from __future__ import annotations

import gc
import ssl
import weakref
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from asking import BODY, Asking, get, refusal, seconds, served, transport
from conftest import SETTINGS, in_another_process
from exchange import Request, head, whole
from image_loader.errors import OptionError
from image_loader.model import Reason
from image_loader.transport import Transport
from server import Scripted, Server, plays

pytestmark = pytest.mark.usefixtures("own_environment")


# Who asks ----------------------------------------------------------------------------------------------------------


def _basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("userinfo", "sent"),
    [
        ("user:pass", "user:pass"), ("user", "user:"), (":pass", ":pass"), ("us%40er:p%3Ass%25", "us@er:p:ss%"),
        ("user:a:b", "user:a:b"), ("%C3%A4:%E2%82%AC", "\xe4:\u20ac"), ("\xe4:\u20ac", "\xe4:\u20ac"),
    ],
)  # fmt: skip
def test_user_and_password_of_the_url_are_sent(asking: Asking, userinfo: str, sent: str) -> None:
    with Scripted(served()) as server:
        get(asking, server.url("/a").replace("://", f"://{userinfo}@"))
    assert server.requests[0].headers["authorization"] == _basic(sent)


def test_netrc_lends_user_and_password_to_its_host_alone(asking: Asking, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password pass\n")
    netrc.chmod(0o600)
    with Scripted(served()) as server:
        get(asking, server.url("/a"))
        get(asking, server.url("/b").replace("://", "://own:secret@"))
        get(asking, f"http://localhost:{server.port}/c")
    assert [request.headers.get("authorization") for request in server.requests] == [
        _basic("user:pass"), _basic("own:secret"), None,
    ]  # fmt: skip


def test_netrc_does_not_go_before_what_the_user_asks_for(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password pass\n")
    (tmp_path / ".netrc").chmod(0o600)
    with Scripted(served()) as server, transport(headers={"authorization": "Bearer token"}) as asking:
        get(asking, server.url("/a"))
    assert server.requests[0].headers["authorization"] == "Bearer token"


@pytest.mark.parametrize("content", ["machine", "machine 127.0.0.1 login", "\x00\xff"])
def test_a_netrc_that_is_none_does_no_harm(asking: Asking, tmp_path: Path, content: str) -> None:
    (tmp_path / ".netrc").write_text(content)
    (tmp_path / ".netrc").chmod(0o600)
    with Scripted(served()) as server:
        assert get(asking, server.url("/a")).body == BODY


def test_a_netrc_in_another_encoding_ends_the_run_in_plain_words(asking: Asking, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes("machine 127.0.0.1 login caf\xe9 password pass\n".encode("latin-1"))
    (tmp_path / ".netrc").chmod(0o600)
    with pytest.raises(OptionError, match=r"\.netrc.*encoding"):
        get(asking, "http://127.0.0.1:9/a")


def test_a_netrc_with_letters_that_cannot_be_sent_ends_the_run_in_plain_words(asking: Asking, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login \u65e5 password pass\n")
    (tmp_path / ".netrc").chmod(0o600)
    with pytest.raises(OptionError, match=r"\.netrc.*Latin-1"):
        get(asking, "http://127.0.0.1:9/a")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_netrc_in_another_encoding_is_told_of_by_connecting_alone(
    asking: Asking, tmp_path: Path, scheme: str
) -> None:
    """A look for an idle connection comes first, and raises nothing: what it was for still has to be told of."""
    (tmp_path / ".netrc").write_bytes("machine 127.0.0.1 login caf\xe9 password pass\n".encode("latin-1"))
    (tmp_path / ".netrc").chmod(0o600)
    assert asking.take(f"{scheme}://127.0.0.1:9") is None


_WITHOUT_DESCRIPTORS = """
import resource
import requests
from conftest import SETTINGS, limited
from image_loader.errors import LoaderError
from image_loader.transport import Transport

try:
    with limited(resource.RLIMIT_NOFILE, 3):
        Transport(SETTINGS._replace(ca_bundle=requests.certs.where()), print)
except LoaderError as error:
    print(error)
"""


def test_a_bundle_that_no_descriptor_is_left_for_ends_the_run_in_plain_words() -> None:
    finished = in_another_process(_WITHOUT_DESCRIPTORS)
    assert finished.stdout.endswith("cannot be read: Too many open files; see ulimit -n\n"), finished.stderr


def test_nothing_of_a_transport_waits_for_garbage_to_be_searched_for() -> None:
    gc.disable()
    try:
        made = Transport(SETTINGS, lambda *_: None)
        made.take("http://images.test")
        left = [weakref.ref(each) for each in (made._routes, made._session)]
        made.close()
        del made
        assert [each() for each in left] == [None, None]
    finally:
        gc.enable()


def redirect_to(location: str, status: str = "302 Found") -> Callable[[Request], Iterable[Any]]:
    return plays(head(f"Location: {location}", "Content-Length: 0", status=status))


OWN = {"Authorization": "own", "Cookie": "own", "X-Token": "own"}


def test_what_the_user_adds_is_sent_to_the_origin_of_the_list_alone() -> None:
    with (
        transport(headers=OWN) as asking,
        Scripted(served()) as other,
        Scripted(redirect_to(f"http://localhost:{other.port}/b")) as server,
    ):
        get(asking, server.url("/a"), {"If-None-Match": '"1"'})
        (first,), (second,) = server.requests, other.requests
    assert [first.headers.get(name.lower()) for name in OWN] == ["own"] * 3
    assert [second.headers.get(name.lower()) for name in OWN] == [None] * 3
    assert first.headers["user-agent"] == second.headers["user-agent"] == "test/1"
    assert first.headers["accept-encoding"] == second.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("other", ["http://localhost:{port}/b", "//localhost:{port}/b", "http://LOCALHOST:{port}/b"])
def test_another_name_of_the_same_server_is_another_origin(other: str) -> None:
    with transport(headers=OWN) as asking, Server() as server:
        server.steps = lambda request: iter(  # type: ignore[method-assign]
            redirect_to(other.format(port=server.port))(request) if request.target == "/a" else [whole(BODY)]
        )
        get(asking, server.url("/a").replace("://", "://user:secret@"))
    assert server.requests[1].target == "/b"
    assert [server.requests[1].headers.get(name.lower()) for name in OWN] == [None] * 3


@pytest.mark.parametrize("location", ["/b", "b", "?b", "//127.0.0.1:{port}/b", "http://127.0.0.1:{port}/b"])
def test_user_and_password_stay_with_their_origin_over_a_redirect(asking: Asking, location: str) -> None:
    with Server() as server:
        script = redirect_to(location.format(port=server.port))
        server.steps = lambda request: iter(  # type: ignore[method-assign]
            script(request) if request.target == "/a" else [whole(BODY)]
        )
        assert get(asking, server.url("/a").replace("://", "://user:pass@")).body == BODY
    assert [request.headers.get("authorization") for request in server.requests] == [_basic("user:pass")] * 2


# Redirects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/x/b.png", "/x/b.png"), ("b.png", "/d/b.png"), ("../b.png", "/b.png"), ("?q=1", "/d/a.png?q=1"),
        ("./b c.png", "/d/b%20c.png"), ("/b.png#part", "/b.png"), ("/\xc3\xa4.png", "/%C3%A4.png"), ("/%7e", "/%7e"),
    ],
)  # fmt: skip
def test_a_redirect_is_followed(asking: Asking, status: str, location: str, target: str) -> None:
    with Scripted(redirect_to(location, status), served()) as server:
        assert get(asking, server.url("/d/a.png?old")).body == BODY
    assert [request.target for request in server.requests] == ["/d/a.png?old", target]
    assert server.connections == 1


def test_a_redirect_to_another_scheme_is_followed(tls: ssl.SSLContext, bundle: str) -> None:
    with (
        transport(ca_bundle=bundle) as asking,
        Server(tls=tls) as secure,
        Scripted(redirect_to(secure.url("/b"))) as plain,
    ):
        assert get(asking, plain.url("/a")).body == secure.image("/b")


@pytest.mark.parametrize(
    "location",
    [
        "", "file:///etc/passwd", "ftp://127.0.0.1/a", "javascript:alert(1)", "http://", "http:////", "http://[::1/a",
        "http://a b/c", "http://127.0.0.1:0/a", "http://127.0.0.1:65536/a", "\\\\ho st\\a\xff://",
        "http://a..b/c", "http://" + "a" * 300 + "/", "http://.a/", "http://*.a/", "data:,x",
        "http://" + "\xe2\x82\xac" * 60 + "/",
    ],
)  # fmt: skip
def test_a_redirect_to_where_one_cannot_go_fails_as_such(asking: Asking, location: str) -> None:
    with Scripted(redirect_to(location)) as server:
        failure = refusal(asking, server.url("/a"))
    assert (failure.reason, failure.retryable) == (Reason.REDIRECTS, False)


def test_a_redirect_without_a_location_fails(asking: Asking) -> None:
    with Scripted(plays(head("Content-Length: 0", status="302 Found"))) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.REDIRECTS


@pytest.mark.parametrize("status", ["300 Multiple Choices", "305 Use Proxy", "306 Unused"])
def test_other_statuses_of_their_kind_lead_nowhere(asking: Asking, status: str) -> None:
    with Scripted(redirect_to("/b", status)) as server:
        assert get(asking, server.url("/a")).status == int(status[:3])


def test_twenty_redirects_are_followed_and_no_more(asking: Asking) -> None:
    with Scripted(*[redirect_to("/b")] * 20, served()) as server:
        assert get(asking, server.url("/a")).body == BODY
    with Scripted(redirect_to("/a")) as server:
        assert refusal(asking, server.url("/a")).reason is Reason.REDIRECTS
        assert len(server.requests) == 21


def test_a_hostile_location_is_judged_in_an_instant(asking: Asking) -> None:
    with Scripted(redirect_to("http://" + ":" * 8000 + "]")) as server:
        assert seconds(lambda: refusal(asking, server.url("/a"))) < 0.4


def test_a_hostile_location_is_not_quoted(asking: Asking) -> None:
    with Scripted(redirect_to("http://user:hush@a b/\x1b[2J")) as server:
        detail = refusal(asking, server.url("/a")).detail
    assert "hush" not in detail
    assert "\x1b" not in detail

"""Routes: held against what requests makes of the same environment, for each origin."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from conftest import SETTINGS
from image_loader.errors import DownloadError
from image_loader.settings import Settings
from image_loader.transport.routes import Routes

pytestmark = pytest.mark.usefixtures("own_environment")

ORIGINS = (
    "http://images.test", "https://images.test", "http://images.test:8080", "https://cdn.images.test",
    "http://other.test", "https://other.test:8443", "http://localhost", "http://127.0.0.1", "https://127.0.0.1:444",
    "http://10.1.2.3", "https://10.200.0.1", "http://[::1]", "https://[2001:db8::1]:8443", "http://xn--bcher-kva.test",
    "http://b\xfccher.test", "http://under_score.test", "http://trailing.test.",
)  # fmt: skip
PROXY = "http://proxy.test:3128"
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {},
    {"http_proxy": PROXY},
    {"https_proxy": PROXY},
    {"HTTP_PROXY": PROXY, "HTTPS_PROXY": "https://secure.test"},
    {"HTTP_PROXY": PROXY, "http_proxy": "http://lower.test:1"},
    {"http_proxy": "", "all_proxy": PROXY},
    {"http_proxy": PROXY, "REQUEST_METHOD": "GET"},
    {"all_proxy": PROXY, "https_proxy": "proxy.without.scheme:8080"},
    {"ALL_PROXY": "http://user:secret@proxy.test", "no_proxy": "images.test"},
    {"all_proxy": PROXY, "no_proxy": ".images.test, other.test:8443"},
    {"all_proxy": PROXY, "NO_PROXY": "images.test:8080,localhost"},
    {"all_proxy": PROXY, "no_proxy": "10.0.0.0/8,127.0.0.1"},
    {"all_proxy": PROXY, "no_proxy": "10.1.0.0/16 , 127.0.0.0/33"},
    {"all_proxy": PROXY, "no_proxy": "*"},
    {"all_proxy": PROXY, "no_proxy": "*,images.test"},
    {"all_proxy": PROXY, "no_proxy": "::1,[2001:db8::1]"},
    {"all_proxy": PROXY, "no_proxy": "IMAGES.test"},
    {"all_proxy": PROXY, "no_proxy": "", "NO_PROXY": "images.test"},
    {"REQUESTS_CA_BUNDLE": "/requests.pem"},
    {"CURL_CA_BUNDLE": "/curl.pem"},
    {"REQUESTS_CA_BUNDLE": "/requests.pem", "CURL_CA_BUNDLE": "/curl.pem"},
    {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "/curl.pem"},
)
NETRC = """
machine images.test login user password pass
machine 127.0.0.1 account only password pass
machine ::1 login six password pass
machine other.test login "" password ""
machine xn--bcher-kva.test login book password pass
"""


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with closing(requests.Session()) as made:
        made.headers.clear()
        made.headers["User-Agent"] = SETTINGS.user_agent
        yield made


def fields(lines: str) -> dict[str, str]:
    """Return header lines by name."""
    return dict(line.split(": ", 1) for line in lines.splitlines())


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_the_proxy_is_the_one_of_requests(
    session: requests.Session, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    routes = Routes(SETTINGS, session)
    for origin in ORIGINS:
        url = str(requests.Request("GET", origin + "/").prepare().url)
        found = session.merge_environment_settings(url, {}, None, None, None)
        expected = requests.utils.select_proxy(url, found["proxies"])
        route = routes.route(origin)
        assert (route.proxy is None) == (not expected), origin
        assert routes.verify == found["verify"]
        if expected and route.proxy is not None:
            adapter = requests.adapters.HTTPAdapter()
            manager = adapter.proxy_manager_for(requests.utils.prepend_scheme_if_needed(expected, "http"))  # type: ignore[no-untyped-call]
            assert (route.proxy.scheme, route.proxy.host, route.proxy.port) == (
                manager.proxy.scheme, manager.proxy.host, manager.proxy.port,
            )  # fmt: skip
            assert route.proxy.headers == manager.proxy_headers
            assert route.tunnels == url.startswith("https:")
            assert route.prefix == ("" if route.tunnels else url.removesuffix("/"))


@pytest.mark.parametrize(
    "changes",
    [{"ca_bundle": "/own.pem"}, {"insecure": True}, {"ca_bundle": "/own.pem", "insecure": True}, {}],
    ids=str,
)
@pytest.mark.parametrize("environment", [{}, {"REQUESTS_CA_BUNDLE": "/requests.pem"}], ids=str)
def test_the_certificates_are_those_of_the_options_first(
    session: requests.Session, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    own = False if changes.get("insecure") else changes.get("ca_bundle")
    expected = session.merge_environment_settings("https://images.test/", {}, None, own, None)["verify"]
    assert Routes(SETTINGS._replace(**changes), session).verify == expected


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Authorization": "Bearer own"}, {"user-agent": "own/1", "X-One": "1"}, {"Host": "virtual.test"},
        {"Cookie": "a=1", "Accept": "image/*", "Referer": "http://page.test/", "accept-language": "de"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("netrc", [NETRC, NETRC + "default login any password pass\n", "machine", "", None])
def test_the_headers_are_those_of_requests(
    session: requests.Session, tmp_path: Path, headers: dict[str, str], netrc: str | None
) -> None:
    if netrc is not None:
        (tmp_path / ".netrc").write_text(netrc)
        (tmp_path / ".netrc").chmod(0o600)
    routes = Routes(SETTINGS._replace(headers=headers), session)

    def unchanged(request: Any) -> Any:
        return request

    for origin in ORIGINS:
        own = requests.Request(
            "GET", origin + "/", headers=headers, auth=unchanged if "Authorization" in headers else None
        )
        prepared = session.prepare_request(own)
        expected = {"Host": str(prepared.url).partition("://")[2].removesuffix("/"), **prepared.headers}
        assert fields(routes.header_lines(origin, "", own=True)) == expected


def test_netrc_may_be_named_by_the_environment(
    session: requests.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").write_text(NETRC)
    (tmp_path / "_netrc").write_text("machine images.test login second password pass\n")
    assert _authorization(session) == "second:pass"
    monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    assert _authorization(session) == "user:pass"
    monkeypatch.setenv("NETRC", str(tmp_path / "missing"))
    assert _authorization(session) is None


def _authorization(session: requests.Session) -> str | None:
    found = fields(Routes(SETTINGS, session).header_lines("http://images.test", "", own=True)).get("Authorization")
    expected = session.prepare_request(requests.Request("GET", "http://images.test/")).headers.get("Authorization")
    assert found == expected
    for text in ("second:pass", "user:pass"):
        if found == f"Basic {b64encode(text.encode()).decode()}":
            return text
    return found


def test_another_origin_gets_the_harmless_ones_of_the_users_headers(session: requests.Session) -> None:
    headers = {
        "Authorization": "own", "Cookie": "own", "X-Token": "own", "Proxy-Authorization": "own", "Host": "own",
        "User-Agent": "own", "referer": "own", "Accept": "own", "ACCEPT-LANGUAGE": "own", "Accept-Encoding": "gzip",
    }  # fmt: skip
    sent = fields(Routes(SETTINGS._replace(headers=headers), session).header_lines("http://h.test", "", own=False))
    assert {name for name, value in sent.items() if value == "own"} == {
        "User-Agent", "referer", "Accept", "ACCEPT-LANGUAGE",
    }  # fmt: skip
    assert sent["Host"] == "h.test"
    assert sent.get("Accept-Encoding") != "gzip"


def test_cookies_of_a_chain_are_added_to_the_users_own(session: requests.Session) -> None:
    routes = Routes(SETTINGS._replace(headers={"cookie": "own=1"}), session)
    assert fields(routes.header_lines("http://h.test", "", own=True, cookie="set=2"))["Cookie"] == "own=1; set=2"
    assert fields(routes.header_lines("http://h.test", "", own=False, cookie="set=2"))["Cookie"] == "set=2"
    assert "Cookie" not in fields(routes.header_lines("http://h.test", "", own=False))


def test_the_environment_is_looked_at_once_a_run(
    session: requests.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = Routes(SETTINGS, session)
    routes.route("http://first.test")
    monkeypatch.setenv("http_proxy", PROXY)
    (tmp_path / ".netrc").write_text(NETRC)
    assert routes.route("http://images.test").proxy is None
    assert "Authorization" not in routes.header_lines("http://images.test", "", own=True)


@pytest.mark.parametrize("host", ["*.a", ".a", "\u20ac" * 70 + ".test", "a\u3002\u3002b", "xn--\xe4.test"])
def test_a_host_that_requests_refuses_is_a_bad_url(session: requests.Session, host: str) -> None:
    with pytest.raises(DownloadError, match="bad host name"):
        Routes(SETTINGS, session).route(f"http://{host}")


def test_a_route_takes_no_more_than_some_microseconds(session: requests.Session, settings: Settings) -> None:
    """Some fifty times less than requests takes; measured in function calls, which do not depend on the machine."""
    import sys

    routes = Routes(settings, session)
    routes.route("https://first.test")
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        with suppress(DownloadError):
            routes.route("https://second.test")
            routes.header_lines("https://second.test", "", own=True)
    finally:
        sys.setprofile(None)
    assert calls < 100


@pytest.fixture
def settings() -> Settings:
    return SETTINGS

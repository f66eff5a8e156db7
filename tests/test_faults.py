"""Faults of the net and of the disk, injected for real: what each does to an image that was there before."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from subprocess import DEVNULL
from subprocess import run as call

import pytest
import trustme

from behaviours import BEHAVIOURS
from conftest import IMPATIENT_FAILURES, MODULE, SOURCES, Loader, Row, Run, being_written, impatient, leftovers, urls_of
from exchange import etag
from image_loader.url import part
from server import Server, refusing_port, silent_port, unaccepting_port

RETRIES = 1
TIMEOUT = 1.0
MAX_TIME = 3.0
MAX_SIZE = 2_000_000
FAST = ("--timeout", str(TIMEOUT), "--max-time", str(MAX_TIME), "--retries", str(RETRIES))
IMPATIENT = ("--timeout", "0.5", "--max-time", "2", "--retries", "0")
AT_ONCE = ("--threads", "200", "--per-host", "200")
SAVED = "saved"


@dataclass(frozen=True)
class Expected:
    """The one right reason (or ``saved``), and how many requests at least and at most."""

    reason: str
    fewest: int = 1
    most: int = 1


def failed(reason: str) -> Expected:
    """Fail, and not be tried again."""
    return Expected(reason)


def retried(reason: str) -> Expected:
    """Fail after every further attempt."""
    return Expected(reason, 1 + RETRIES, 1 + RETRIES)


def busy(reason: str) -> Expected:
    """Fail once the host is given up, which asks for one pause after the other."""
    return Expected(reason, IMPATIENT_FAILURES + 1, IMPATIENT_FAILURES + 3)


SAVED_AT_ONCE = Expected(SAVED)
EXPECTED = {
    # Unusual, but right.
    "in-chunks": SAVED_AT_ONCE,
    "in-small-pieces": SAVED_AT_ONCE,
    "unframed": SAVED_AT_ONCE,
    "staying-open": SAVED_AT_ONCE,
    "bare-newlines": SAVED_AT_ONCE,
    "named-otherwise": SAVED_AT_ONCE,
    "old-version": SAVED_AT_ONCE,
    "strange-spelling": SAVED_AT_ONCE,
    "interim": SAVED_AT_ONCE,
    "interim-and-nothing": retried("connect"),
    "encoded": SAVED_AT_ONCE,
    "closing-unannounced": SAVED_AT_ONCE,
    "setting-cookies": SAVED_AT_ONCE,
    "same-length-twice": SAVED_AT_ONCE,
    "bytes-behind": SAVED_AT_ONCE,
    "response-behind": SAVED_AT_ONCE,
    "late-response-behind": SAVED_AT_ONCE,
    # Sloppy, as browsers take it.
    "untrue-coding": SAVED_AT_ONCE,
    "sloppy-header": SAVED_AT_ONCE,
    "sloppy-type": SAVED_AT_ONCE,
    "old-chunks": SAVED_AT_ONCE,
    "identity-framing": SAVED_AT_ONCE,
    "unframed-and-more": SAVED_AT_ONCE,
    "non-authoritative": SAVED_AT_ONCE,
    "whole-part": SAVED_AT_ONCE,
    # Bodies that end early.
    "short-unframed": retried("truncated"),
    "short-body": retried("truncated"),
    "one-byte-short": retried("truncated"),
    "no-body": retried("truncated"),
    "reset-body": retried("truncated"),
    "reset-unframed": retried("truncated"),
    "cut-chunk": retried("truncated"),
    "no-last-chunk": retried("truncated"),
    "chunk-size-cut": retried("truncated"),
    "closing-at-once": retried("connect"),
    "resetting-at-once": retried("connect"),
    # Framing that can't be trusted.
    "bad-length": failed("protocol"),
    "two-lengths": failed("protocol"),
    "length-and-chunks": SAVED_AT_ONCE,
    "bad-transfer-coding": failed("protocol"),
    "bad-chunk-size": failed("protocol"),
    "chunk-overrun": retried("truncated"),
    "endless-chunk-extension": failed("protocol"),
    "endless-trailers": failed("protocol"),
    # Heads that can't be trusted.
    "cut-head": retried("protocol"),
    "headless": failed("protocol"),
    "garbage": failed("protocol"),
    "bad-status-line": failed("protocol"),
    "bad-status-line-beyond": failed("http-status"),
    "bad-header": failed("protocol"),
    "long-status-line": failed("protocol"),
    "long-header": failed("protocol"),
    "many-headers": failed("protocol"),
    "endless-header": failed("protocol"),
    "endless-headers": failed("protocol"),
    "endless-interim": failed("protocol"),
    "switching-protocols": failed("protocol"),
    # Content codings that can't be trusted.
    "broken-coding": failed("damaged"),
    **{f"broken-coding-{kind}": retried("truncated") for kind in ("cut", "empty")},
    "unknown-coding": failed("protocol"),
    "bomb": failed("too-large"),
    # Too much.
    "endless-body": failed("too-large"),
    "endless-chunks": failed("too-large"),
    "enormous-length": failed("too-large"),
    # Too slow.
    "drip": failed("deadline"),
    "stalling": retried("timeout"),
    "redirect-slowly": failed("deadline"),
    # No image.
    "wrong-type": failed("not-an-image"),
    "wrong-type-wildcard": SAVED_AT_ONCE,
    "page": failed("not-an-image"),
    "empty": failed("not-an-image"),
    "bodiless": failed("http-status"),
    "other-success": failed("http-status"),
    "unasked-part": failed("http-status"),
    "status": failed("http-status"),
    **{f"status-{code}": retried("http-status") for code in (408, 425, 500, 502, 504)},
    **{f"status-{code}": busy("http-status") for code in (429, 503)},
    **{f"status-{code}": retried("http-status") for code in (509, 520, 521, 522, 523, 524, 529, 530)},
    "retry-after": busy("http-status"),
    "hostile-reason": failed("http-status"),
    # Redirects.
    "hostile-redirect": failed("redirects"),
    "bad-redirect": failed("redirects"),
    "bad-redirect-empty": Expected("redirects", 21, 21),
    "redirect-nowhere": failed("redirects"),
    "two-locations": failed("protocol"),
    "redirect-loop": Expected("redirects", 21, 21),
    "redirect-hops": failed("redirects"),
}
ELSEWHERE = {
    "slow": "the command's limits",
    "gated": "signals and locks",
    "held": "signals and locks",
    "resetting-half": "a test of its own",
    "failing-once": "a test of its own",
    "retry-after-huge": "a pause of two minutes",
    "retry-after-date": "a pause of two minutes",
    "unasked-304": "a test of its own",
    "foreign-304": "a test of its own",
    "body-behind-304": "a test of its own",
    "redirect": "a test of its own",
    "redirect-with-endless-body": "a test of its own",
    "resumable": "a test of its own",
    "resumed": "a test of its own",
    "damaged": "what only `--verify` sees",
}


TABLE: dict[str, Expected | str] = {**EXPECTED, **ELSEWHERE}


def _expected(name: str) -> Expected | str | None:
    """Look a behaviour up: by its name, or by that of its family."""
    parts = name.split("-")
    prefixes = ("-".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((TABLE[prefix] for prefix in prefixes if prefix in TABLE), None)


CASES = sorted(name for name in BEHAVIOURS if not isinstance(_expected(name), str))


@dataclass(frozen=True)
class Story:
    """Each case's image: saved first, then asked for while its server misbehaves, then when that is well again."""

    servers: dict[str, Server]
    fault: Run
    requests: dict[str, int]
    stood: dict[str, tuple[bytes, int]]
    healed: Run

    def row(self, case: str) -> Row:
        """Return what the run over the misbehaving servers told of a case."""
        return self.fault.row(self.servers[case].url(_target(case)))

    def saved(self, case: str) -> bool:
        """Tell whether the case ended well."""
        return bool(self.row(case)["status"] == SAVED)


def _target(case: str) -> str:
    return f"/{case}/{case}.png"


def _state(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), path.stat().st_mtime_ns


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Run three times over all cases at once, each case on an origin of its own."""
    loader = Loader(tmp_path_factory.mktemp("faults"))
    with closing(loader), ExitStack() as stack:
        servers = {case: stack.enter_context(Server(name=case)) for case in CASES}
        urls = [server.url(_target(case)) for case, server in servers.items()]
        _be_well(servers, well=True)
        assert loader.run(urls, *AT_ONCE).counts == (len(urls), 0, 0, 0)
        _be_well(servers, well=False)
        options = (*FAST, *AT_ONCE, "--max-size", str(MAX_SIZE))
        fault = loader.run(urls, *options, command=impatient(2.0))
        requests = {case: len(server.asked(_target(case))) - 1 for case, server in servers.items()}
        stood = {case: _state(loader.directory / f"{case}.png") for case in CASES}
        _be_well(servers, well=True)
        yield Story(servers, fault, requests, stood, loader.run(urls, *AT_ONCE))


def _be_well(servers: dict[str, Server], *, well: bool) -> None:
    for case, server in servers.items():
        server.healthy = well
        server.versions[_target(case)] = 0 if well else 1


def test_no_behaviour_of_the_server_is_left_out() -> None:
    assert [name for name in BEHAVIOURS if _expected(name) is None] == []


@pytest.mark.parametrize("case", CASES)
def test_a_fault_ends_with_its_reason(story: Story, case: str) -> None:
    expected, row = _expected(case), story.row(case)
    assert isinstance(expected, Expected)
    assert (row["reason"] or row["status"]) == expected.reason, row


@pytest.mark.parametrize("case", CASES)
def test_a_fault_costs_a_bounded_number_of_requests(story: Story, case: str) -> None:
    expected = _expected(case)
    assert isinstance(expected, Expected)
    assert expected.fewest <= story.requests[case] <= expected.most


@pytest.mark.parametrize("case", CASES)
def test_what_stands_after_a_fault_is_the_old_image_or_the_whole_new_one(story: Story, case: str) -> None:
    server, target = story.servers[case], _target(case)
    server.versions[target] = 1 if story.saved(case) else 0
    content, modified = story.stood[case]
    assert content == server.image(target)
    assert story.saved(case) or modified == 1_600_000_000 * 10**9


@pytest.mark.parametrize("case", CASES)
def test_a_failed_image_is_asked_for_with_its_old_validators(story: Story, case: str) -> None:
    if story.saved(case):
        return
    server, target = story.servers[case], _target(case)
    server.versions[target] = 0
    assert server.asked(target)[-1].headers["if-none-match"] == etag(server.image(target))
    assert story.healed.row(server.url(target))["status"] == "fresh"


@pytest.mark.parametrize("case", [case for case in CASES if _expected(case) == failed("deadline")])
def test_a_deadline_is_kept_on_time(story: Story, case: str) -> None:
    assert MAX_TIME - 0.1 <= story.row(case)["seconds"] < 2 * MAX_TIME


def test_faults_leave_no_partial_file(story: Story) -> None:
    assert leftovers(story.fault.directory) == []
    assert story.fault.files == {f"{case}.png" for case in CASES}


def test_faults_end_with_status_1_and_a_summary_that_adds_up(story: Story) -> None:
    assert story.fault.status == 1
    assert story.fault.summary == (len(CASES), *story.fault.counts)


def test_no_fault_takes_memory(story: Story) -> None:
    assert story.fault.peak < 100 * 2**20


# One host at a time -----------------------------------------------------------------------------------------------


def test_nothing_that_a_server_sends_unasked_becomes_another_image(server: Server, loader: Loader) -> None:
    odd = ("bytes-behind", "response-behind", "late-response-behind", "image")
    urls = [server.url(f"/{name}/{number}-{name}.png") for number in range(10) for name in odd]
    run = loader.run(urls, "--threads", "1", "--retries", "0")
    assert run.counts == (40, 0, 0, 0)
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)


def test_a_body_behind_a_304_becomes_no_other_image(server: Server, loader: Loader) -> None:
    urls = [server.url(f"/{name}/{number}-{name}.png") for number in range(10) for name in ("body-behind-304", "image")]
    loader.run(urls)
    run = loader.run(urls, "--threads", "1", "--retries", "0")
    assert run.counts == (0, 20, 0, 0)


def test_a_connection_that_the_server_had_closed_costs_no_retry(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 40, "closing-unannounced"), "--threads", "1", "--retries", "0")
    assert run.counts == (40, 0, 0, 0)


def test_all_is_saved_from_a_server_that_resets_half_of_its_connections(server: Server, loader: Loader) -> None:
    run = loader.run(urls_of(server, 200, "resetting-half"))
    assert run.counts == (200, 0, 0, 0)


def test_a_304_that_was_not_asked_for_is_asked_once_more_and_then_fails(server: Server, loader: Loader) -> None:
    run = loader.run([server.url("/unasked-304/a.png")], *FAST)
    assert run.row(server.url("/unasked-304/a.png"))["reason"] in ("http-status", "protocol")
    assert len(server.requests) == 2
    assert run.files == set()


def test_a_304_with_the_tag_of_another_image_is_not_believed(server: Server, loader: Loader) -> None:
    url = server.url("/foreign-304/a.png")
    loader.run([url])
    run = loader.run([url])
    assert run.row(url)["status"] == SAVED
    assert "if-none-match" not in server.requests[-1].headers


def test_retry_after_pauses_the_whole_host(server: Server, loader: Loader) -> None:
    urls = [server.url("/failing-once/a.png"), *urls_of(server, 20, "slow")]
    run = loader.run(urls, "--threads", "2", "--per-host", "2")
    assert run.counts == (21, 0, 0, 0)
    (pause,) = [gap for gap in _gaps(server) if gap > 0.5]
    assert 0.8 <= pause < 2


def _gaps(server: Server) -> list[float]:
    times = [request.time for request in server.requests]
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("variant", ["closed", "reset", "stalled"])
def test_a_body_that_was_cut_is_resumed(server: Server, loader: Loader, variant: str) -> None:
    url = server.url(f"/resumable-{variant}/a.png?size=500000")
    run = loader.run([url], *FAST)
    first, second = server.requests
    assert run.content(url) == server.image(second.target)
    assert int(second.headers["range"].removeprefix("bytes=").removesuffix("-")) > 100_000
    assert second.headers["if-range"] == etag(first.body)


def test_a_body_that_changed_after_the_cut_is_begun_anew(server: Server, loader: Loader) -> None:
    url = server.url("/resumable-changed/a.png?size=500000")
    run = loader.run([url], *FAST)
    assert run.content(url) == server.image("/resumable-changed/a.png?size=500000")


def test_a_weak_tag_resumes_nothing(server: Server, loader: Loader) -> None:
    url = server.url("/resumable-weakly/a.png")
    run = loader.run([url], *FAST)
    assert run.content(url) == server.image("/resumable-weakly/a.png")
    assert all("range" not in request.headers for request in server.requests)


def test_a_body_is_never_pieced_together_from_a_wrong_range(loader: Loader) -> None:
    wrong = sorted(name for name in BEHAVIOURS if name.startswith("resumed"))
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Server(name=name)) for name in wrong}
        urls = [server.url(_target(name)) for name, server in servers.items()]
        run = loader.run(urls, "--retries", "2", "--timeout", "2")
    assert {row["status"] for row in run.rows} <= {SAVED, "failed"}
    for name, server in servers.items():
        row = run.row(server.url(_target(name)))
        assert row["status"] == "failed" or run.content(row["url"]) == server.image(_target(name))
    assert run.counts[0] >= len(wrong) - 2


# Redirects --------------------------------------------------------------------------------------------------------


def test_a_redirect_is_followed_and_the_list_gives_the_name(server: Server, loader: Loader) -> None:
    codes = (301, 302, 303, 307, 308)
    urls = [server.url(f"/redirect/{code}.png?status={code}&to=/landed.png") for code in codes]
    run = loader.run(urls)
    assert run.files == {f"{code}.png" for code in codes}
    assert [run.content(url) == server.image("/landed.png") for url in urls] == [True] * len(codes)


LOCATIONS = [
    "/landed.png",
    "../landed.png",
    "//127.0.0.1:{port}/landed.png",
    "HTTP://127.0.0.1:{port}/landed.png",
    "/a/../landed.png",
    "/landed.png%23part",
    "%20 /landed.png %20",
]


def test_a_location_may_be_relative(server: Server, loader: Loader) -> None:
    targets = [f"/redirect/{number}.png?to={place.format(port=server.port)}" for number, place in enumerate(LOCATIONS)]
    urls = [server.url(target.replace(" ", "")) for target in targets]
    run = loader.run(urls)
    assert [run.content(url) == server.image("/landed.png") for url in urls] == [True] * len(urls)


def test_twenty_redirects_are_followed_and_more_are_not(server: Server, loader: Loader) -> None:
    twenty, more = server.url("/redirect-hops/a.png?left=20"), server.url("/redirect-hops/b.png?left=21")
    run = loader.run([twenty, more])
    assert [run.row(url)["reason"] for url in (twenty, more)] == [None, "redirects"]


def test_the_body_of_a_redirect_is_not_read(server: Server, loader: Loader) -> None:
    run = loader.run([server.url("/redirect-with-endless-body/a.png")], *FAST)
    assert run.counts == (1, 0, 0, 0)


def test_no_secret_goes_to_another_origin(server: Server, loader: Loader) -> None:
    with Server(name="other") as other:
        there = other.url("/landed.png")
        url = server.url(f"/redirect/a.png?to={there}").replace("http://", "http://me:secret@", 1)
        run = loader.run([url], "-H", "X-Token: secret", "-H", "Cookie: a=secret", "-H", "Authorization: secret")
        (first,), (second,) = server.requests, other.requests
    assert run.content(url) == other.image("/landed.png")
    assert "secret" in str(first.headers)
    assert "secret" not in str(second.headers)
    assert "authorization" not in second.headers


def test_what_belongs_to_an_origin_stays_with_it_over_a_redirect(server: Server, loader: Loader) -> None:
    loader.run([server.url("/redirect/a.png?to=/landed.png")], "-H", "X-Token: mine")
    assert [request.headers["x-token"] for request in server.requests] == ["mine", "mine"]


def test_no_cookie_is_kept(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 3, "setting-cookies"), "--threads", "1")
    assert all("cookie" not in request.headers for request in server.requests)


# Hosts that are not there -----------------------------------------------------------------------------------------


@contextmanager
def dead_hosts() -> Iterator[dict[str, int]]:
    """Yield a port of each kind at which no image is to be had."""
    with refusing_port() as refusing, silent_port() as silent, unaccepting_port() as unaccepting:
        yield {"refusing": refusing, "silent": silent, "unaccepting": unaccepting}


def test_a_dead_host_fails_with_its_reason(loader: Loader) -> None:
    with dead_hosts() as ports:
        urls = {kind: f"http://127.0.0.1:{port}/a.png" for kind, port in ports.items()}
        run = loader.run(list(urls.values()), *FAST)
    reasons = {kind: run.row(url)["reason"] for kind, url in urls.items()}
    assert reasons == {"refusing": "connect", "silent": "timeout", "unaccepting": "timeout"}
    assert all(row["attempts"] == 1 + RETRIES for row in run.rows)


def test_dead_hosts_in_front_hinder_no_other_one(server: Server, loader: Loader) -> None:
    with dead_hosts() as ports:
        dead = [f"http://127.0.0.1:{port}/{number}.png" for port in ports.values() for number in range(500)]
        running = loader.start([*dead, *urls_of(server, 200)], "--timeout", "2")
        server.wait_for(lambda: len(list(loader.directory.glob("*.png"))) == 200)
        running.send(signal.SIGINT)
        run = running.finish()
    assert run.status == 130
    assert len(run.files) == 200


def test_without_any_network_every_image_fails_and_the_run_ends(loader: Loader) -> None:
    without = ("unshare", "--map-root-user", "--net")
    if call([*without, "true"], check=False, stderr=DEVNULL).returncode:
        pytest.skip("this system makes no network namespace")
    urls = ["http://images.invalid/a.png", "http://127.0.0.1:9/a.png"]
    ended = loader.run(urls, *FAST, command=(*without, *MODULE))
    assert [ended.row(url)["reason"] for url in urls] == ["dns", "connect"]


# TLS --------------------------------------------------------------------------------------------------------------


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def _certificate(authority: trustme.CA, fault: str) -> trustme.LeafCert:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    match fault:
        case "expired":
            return authority.issue_cert("127.0.0.1", not_before=yesterday - timedelta(days=9), not_after=yesterday)
        case "wrong name":
            return authority.issue_cert("images.test")
        case "unknown authority":
            return trustme.CA().issue_cert("127.0.0.1")
    raise ValueError(fault)


@pytest.mark.parametrize("fault", ["expired", "wrong name", "unknown authority"])
def test_a_certificate_that_is_not_right_fails_at_once(
    loader: Loader, authority: trustme.CA, bundle: str, fault: str
) -> None:
    with Server(tls=_context(_certificate(authority, fault))) as server:
        url = server.url("/a.png")
        run = loader.run([url], "--ca-bundle", bundle)
        assert (run.status, run.row(url)["reason"], run.row(url)["attempts"]) == (1, "tls", 1)
        assert (server.connections, server.requests) == (1, [])
        assert loader.run([url], "--insecure").content(url) == server.image("/a.png")


def test_a_certificate_is_trusted_by_its_bundle(loader: Loader, tls: ssl.SSLContext, bundle: str) -> None:
    with Server(tls=tls) as server:
        url = server.url("/a.png")
        assert loader.run([url]).row(url)["reason"] == "tls"
        assert loader.run([url], "--ca-bundle", bundle).counts == (1, 0, 0, 0)
        assert loader.run([url], "-f", environment={"REQUESTS_CA_BUNDLE": bundle}).counts == (1, 0, 0, 0)


def test_a_bundle_that_is_none_is_told_in_plain_words(loader: Loader, tls: ssl.SSLContext) -> None:
    (loader.home / "none.pem").write_text("no certificate")
    with Server(tls=tls) as server:
        run = loader.run([server.url("/a.png")], "--ca-bundle", "none.pem")
        assert (run.status, server.requests) == (2, [])
    assert "none.pem" in run.stderr


def test_a_plain_server_is_not_spoken_to_in_place_of_tls(server: Server, loader: Loader) -> None:
    url = server.url("/a.png").replace("http://", "https://")
    assert loader.run([url], *FAST).row(url)["reason"] == "tls"
    assert server.requests == []


def test_a_handshake_that_stalls_times_out(loader: Loader) -> None:
    with silent_port() as port:
        run = loader.run([f"https://127.0.0.1:{port}/a.png"], *IMPATIENT)
    assert (run.rows[0]["reason"], run.rows[0]["attempts"]) == ("timeout", 1)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("short-body", "truncated"), ("drip-body", "deadline"), ("stalling-body", "timeout"), ("image", None)],
)
def test_faults_within_tls_end_as_without(loader: Loader, tls: ssl.SSLContext, behaviour: str, reason: str) -> None:
    with Server(tls=tls) as server:
        run = loader.run([server.url(f"/{behaviour}/a.png")], *IMPATIENT, "--insecure")
    assert run.rows[0]["reason"] == reason


# Addresses that are not public ------------------------------------------------------------------------------------

RESOLVER = """
import socket, time
lookup = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if host == "hanging.test":
        time.sleep(30)
    return lookup("127.0.0.1" if str(host).endswith(".test") else host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


def _resolving(home: Path) -> dict[str, str]:
    """Return an environment in which every name in ``.test`` is this machine."""
    (home / "site").mkdir(exist_ok=True)
    (home / "site" / "sitecustomize.py").write_text(RESOLVER)
    return {"PYTHONPATH": f"{home / 'site'}{os.pathsep}{SOURCES}"}


HOSTS = ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0.0.0.0", "localhost", "[::ffff:127.0.0.1]"]
HOSTS += ["public.test", "[::1]", "[::]"]


def test_an_address_that_is_not_public_is_refused_however_it_is_spelled(server: Server, loader: Loader) -> None:
    # Some of these are one address in another spelling, and would be duplicates.
    urls = [f"http://{host}:{server.port}/{number}.png" for number, host in enumerate(HOSTS)]
    run = loader.run(urls, *IMPATIENT, "--public-only", environment=_resolving(loader.home))
    assert {url: run.row(url)["reason"] for url in urls} == dict.fromkeys(urls, "private-address")
    assert server.connections == 0


def test_a_public_name_of_a_private_address_is_fine_when_nobody_minds(server: Server, loader: Loader) -> None:
    url = f"http://public.test:{server.port}/a.png"
    assert loader.run([url], environment=_resolving(loader.home)).counts == (1, 0, 0, 0)


def test_a_look_up_that_hangs_holds_up_neither_other_hosts_nor_an_interrupt(server: Server, loader: Loader) -> None:
    urls = [f"http://hanging.test/{number}.png" for number in range(100)]
    running = loader.start([*urls, *urls_of(server, 100)], environment=_resolving(loader.home))
    server.wait_for(lambda: len(list(loader.directory.glob("*.png"))) == 100, 6)
    running.send(signal.SIGINT)
    run = running.finish(3)
    assert (run.status, run.counts[0]) == (130, 100)


# Clocks -----------------------------------------------------------------------------------------------------------


SENSELESS_DATES = [
    formatdate(0, usegmt=True),
    formatdate(253402300799, usegmt=True),
    "Sun, 18 Jun 1815 11:35:00 GMT",
    "yesterday",
    "",
    "0",
    "Mon, 99 Foo 2020 99:99:99 GMT",
    "Thu, 01 Jan 99999999999 00:00:00 GMT",
]


def test_a_date_that_makes_no_sense_does_no_harm(server: Server, loader: Loader) -> None:
    targets = [f"/{number}.png" for number in range(len(SENSELESS_DATES))]
    for target, date in zip(targets, SENSELESS_DATES, strict=True):
        server.headers[target] = {"ETag": None, "Last-Modified": date, "Date": date, "Expires": date}
    urls, began = [server.url(target) for target in targets], time.time()
    assert loader.run(urls).counts == (len(urls), 0, 0, 0)
    times = [(loader.directory / target[1:]).stat().st_mtime for target in targets]
    assert [began - 2 <= modified <= time.time() + 2 for modified in times] == [True] * len(times)
    assert loader.run(urls).status == 0
    assert [len(server.asked(target)) for target in targets] == [2] * len(targets)


def test_a_clock_that_is_days_off_makes_nothing_fresh_for_days(server: Server, loader: Loader) -> None:
    url, tomorrow = server.url("/a.png"), time.time() + 3 * 86_400
    server.headers["/a.png"] = {"Date": formatdate(tomorrow, usegmt=True), "Expires": formatdate(tomorrow, usegmt=True)}
    loader.run([url])
    loader.run([url])
    assert len(server.requests) == 2


# The index --------------------------------------------------------------------------------------------------------


def _index(loader: Loader) -> Path:
    return loader.directory / ".image_loader" / "index.sqlite3"


def _forget(loader: Loader) -> None:
    for path in _index(loader).parent.glob("index.sqlite3*"):
        path.unlink()


def test_a_deleted_index_costs_a_conditional_request(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 20)
    loader.run(urls)
    _forget(loader)
    assert loader.run(urls).counts == (0, 20, 0, 0)


def test_a_deleted_index_is_no_loss_where_names_bear_a_hash_either(server: Server, loader: Loader) -> None:
    shared = [server.url(f"/image/{folder}/photo.JPG?type=webp") for folder in "ab"]
    nameless = [server.url(f"/image/{number}") for number in range(5)]
    first = loader.run([*shared, *nameless])
    _forget(loader)
    second = loader.run([*reversed(nameless), *reversed(shared)])
    assert first.counts == (7, 0, 0, 0)
    assert second.counts == (0, 7, 0, 0)
    assert {row["url"]: row["file"] for row in second.rows} == {row["url"]: row["file"] for row in first.rows}


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(8000)])
def test_a_damaged_index_is_moved_aside_and_the_images_stay(server: Server, loader: Loader, content: bytes) -> None:
    urls = urls_of(server, 20)
    loader.run(urls)
    _forget(loader)
    _index(loader).write_bytes(content)
    run = loader.run(urls)
    assert run.counts == (0, 20, 0, 0)
    assert not content or "index.sqlite3" in run.stderr
    assert not content or any(path.read_bytes() == content for path in _index(loader).parent.glob("*.damaged-*"))


def test_an_index_damaged_in_its_middle_is_moved_aside(server: Server, loader: Loader) -> None:
    urls = urls_of(server, 300)
    loader.run(urls)
    content = bytearray(_index(loader).read_bytes())
    content[4096:-4096] = os.urandom(len(content) - 8192)
    _index(loader).write_bytes(content)
    first = loader.run(urls)
    assert first.status == 0 or "index.sqlite3" in first.stderr
    assert loader.run(urls).counts == (0, 300, 0, 0)


def test_an_index_of_a_later_version_is_refused(server: Server, loader: Loader) -> None:
    loader.run(urls_of(server, 1))
    with closing(sqlite3.connect(_index(loader))) as database:
        database.execute("PRAGMA user_version = 999")
    run = loader.run(urls_of(server, 1))
    assert run.status == 2
    assert "index.sqlite3" in run.stderr
    assert len(server.requests) == 1


def test_an_index_that_another_run_writes_is_waited_for(server: Server, loader: Loader) -> None:
    urls = [*urls_of(server, 3, "held"), *urls_of(server, 3)]
    loader.run(urls_of(server, 1))
    with closing(sqlite3.connect(_index(loader), isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        running = loader.start(urls)
        with pytest.raises(AssertionError, match="still running"):
            running.finish(1)
        database.execute("COMMIT")
    server.gate.set()
    assert running.finish().status == 0


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root: it mounts a file system")


def test_an_index_that_may_not_be_written_ends_the_run_before_it_starts(
    server: Server, loader: Loader, ordinary: tuple[str, ...]
) -> None:
    loader.run(urls_of(server, 1))
    for path in _index(loader).parent.glob("index.sqlite3*"):
        path.chmod(0o444)
    run = loader.run(urls_of(server, 5), command=ordinary)
    assert run.status == 2
    assert "index.sqlite3" in run.stderr
    assert len(server.requests) == 1


# The directory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mount(loader: Loader) -> Iterator[Callable[[str], None]]:
    """Mount a small file system as the directory of the images."""

    def mounted(options: str) -> None:
        loader.directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(loader.directory)]
        if call(command, check=False, stderr=DEVNULL).returncode:
            pytest.skip("this system mounts no tmpfs here")

    yield mounted
    loader.close()
    call(["umount", "--lazy", str(loader.directory)], check=False, stderr=DEVNULL)


def _remounted(directory: Path, options: str) -> bool:
    return call(["mount", "-o", f"remount,{options}", str(directory)], check=False, stderr=DEVNULL).returncode == 0


def _whole(server: Server, ended: Run) -> bool:
    """Tell whether every file is the image of its URL."""
    urls = {row["file"]: row["url"] for row in ended.rows if row["status"] == SAVED}
    return ended.files == set(urls) and all(
        (ended.directory / file).read_bytes() == server.image(url.removeprefix(server.origin))
        for file, url in urls.items()
    )


@needs_root
def test_too_few_inodes_at_the_start_end_the_run_with_both_numbers(
    server: Server, loader: Loader, mount: Callable[[str], None]
) -> None:
    mount("nr_inodes=50")
    run = loader.run(urls_of(server, 100))
    assert run.status == 2
    assert re.search(rf"{loader.directory}: 100 new files wanted, but only \d+ inodes available", run.stderr)
    assert _whole(server, run)


@needs_root
def test_too_few_inodes_for_all_processes_together_end_the_run_with_both_numbers(
    new_server: Callable[..., Server], loader: Loader, mount: Callable[[str], None]
) -> None:
    """There are enough for what each of them wants."""
    mount("nr_inodes=100")
    servers = [new_server(address="127.0.0.1"), new_server(address="127.0.0.2")]
    assert {part(server.address, 2) for server in servers} == {0, 1}
    run = loader.run([url for server in servers for url in urls_of(server, 60, "held")], "--processes", "2")
    assert run.status == 2
    assert re.search(rf"{loader.directory}: 1\d\d new files wanted, but only \d+ inodes available", run.stderr)
    assert run.files == set()


@needs_root
def test_just_enough_inodes_are_enough_for_all_processes(
    new_server: Callable[..., Server], loader: Loader, mount: Callable[[str], None]
) -> None:
    mount("nr_inodes=1000")
    servers = [new_server(address="127.0.0.1"), new_server(address="127.0.0.2")]
    loader.run(urls_of(servers[0], 1), "--processes", "2")
    free = os.statvfs(loader.directory).f_favail - 10  # for the index, and to try locks
    urls = [server.url(f"/{server.address}/{n}.png") for server in servers for n in range(free // 2)]
    assert loader.run(urls, "--processes", "2").counts == (len(urls), 0, 0, 0)


@needs_root
def test_inodes_that_others_take_meanwhile_end_the_run(
    server: Server, loader: Loader, mount: Callable[[str], None]
) -> None:
    mount("nr_inodes=100")
    urls = [*urls_of(server, 20), *urls_of(server, 20, "held")]
    running = loader.start(urls, "--threads", "20", "--per-host", "20")
    server.wait_for(lambda: server.at_work == 20 and len(server.requests) == 40)
    with suppress(OSError):
        for number in range(100):
            (loader.directory / f"other-{number}").touch()
    server.gate.set()
    run = running.finish()
    assert run.status == 2
    assert "inodes available" in run.stderr
    assert run.counts[0] > 0
    others = {f"other-{number}" for number in range(100)}
    assert _whole(server, replace(run, files=run.files - others))


@needs_root
def test_a_file_system_that_counts_no_inodes_has_enough(
    server: Server, loader: Loader, mount: Callable[[str], None]
) -> None:
    mount("nr_inodes=0")
    assert os.statvfs(loader.directory).f_files == 0
    assert loader.run(urls_of(server, 20)).counts == (20, 0, 0, 0)


@needs_root
def test_only_new_files_count_against_the_inodes(server: Server, loader: Loader, mount: Callable[[str], None]) -> None:
    mount("nr_inodes=50")
    loader.run(urls_of(server, 25))
    assert loader.run(urls_of(server, 25), "--force").counts == (25, 0, 0, 0)


@needs_root
def test_a_full_disk_ends_the_run_and_what_was_saved_is_whole(
    server: Server, loader: Loader, mount: Callable[[str], None]
) -> None:
    mount("size=1m")
    run = loader.run(urls_of(server, 100, query="?size=50000"))
    assert run.status == 2
    assert str(loader.directory) in run.stderr
    assert _whole(server, run)
    assert leftovers(loader.directory) == []


@needs_root
def test_a_read_only_file_system_ends_the_run_before_it_starts(
    server: Server, loader: Loader, mount: Callable[[str], None]
) -> None:
    mount("ro")
    run = loader.run(urls_of(server, 5))
    assert run.status == 2
    assert str(loader.directory) in run.stderr
    assert server.requests == []


@needs_root
def test_a_file_system_that_turns_read_only_ends_the_run(
    server: Server, loader: Loader, mount: Callable[[str], None]
) -> None:
    mount("size=10m")
    elsewhere = ("--index", str(loader.home / "index.sqlite3"))
    running = loader.start([*urls_of(server, 5), *urls_of(server, 5, "held")], *elsewhere)
    server.wait_for(lambda: server.at_work == 5 and len(server.requests) == 10)
    # The kernel refuses as long as a file there is open for writing, as the last of the five may be.
    server.wait_for(lambda: _remounted(loader.directory, "ro"))
    server.gate.set()
    run = running.finish()
    assert run.status == 2
    assert str(loader.directory) in run.stderr
    assert _whole(server, run)


def test_a_permission_that_is_lost_ends_the_run(server: Server, loader: Loader, ordinary: tuple[str, ...]) -> None:
    urls = [*urls_of(server, 5), *urls_of(server, 5, "held")]
    running = loader.start(urls, command=ordinary)
    server.wait_for(lambda: server.at_work == 5 and len(server.requests) == 10)
    for path in (loader.directory / ".image_loader" / "partial", loader.directory):
        path.chmod(0o555)
    server.gate.set()
    run = running.finish()
    assert run.status == 2
    assert str(loader.directory) in run.stderr
    assert _whole(server, run)
    for path in (loader.directory, loader.directory / ".image_loader" / "partial"):
        path.chmod(0o755)


@pytest.mark.parametrize("mode", [0o555, 0o666, 0o000])
def test_a_directory_without_the_permissions_ends_the_run_before_it_starts(
    server: Server, loader: Loader, ordinary: tuple[str, ...], mode: int
) -> None:
    loader.directory.mkdir(mode=mode)
    run = loader.run(urls_of(server, 5), command=ordinary)
    assert run.status == 2
    assert str(loader.directory) in run.stderr
    assert server.requests == []
    loader.directory.chmod(0o755)


def test_a_directory_that_is_removed_ends_the_run(server: Server, loader: Loader) -> None:
    running = loader.start([*urls_of(server, 5), *urls_of(server, 5, "held")])
    server.wait_for(lambda: server.at_work == 5 and len(server.requests) == 10)
    # Gone at once, since the run may be writing into it.
    gone = loader.directory.rename(loader.directory.with_name("gone"))
    server.gate.set()
    run = running.finish()
    shutil.rmtree(gone)
    assert run.status == 2
    assert str(loader.directory) in run.stderr


FAILING_CALLS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int counts(int descriptor) {
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (readlink(link, path, sizeof path - 1) < 0 || !strstr(path, "/partial/")) return 0;
    return access(getenv("FAILS_WHEN"), F_OK) == 0;
}
static int fails(int descriptor, const char *call) {
    if (strcmp(getenv("FAILING_CALL"), call) || !counts(descriptor)) return 0;
    errno = atoi(getenv("FAILING_WITH"));
    return 1;
}
ssize_t write(int descriptor, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "write");
    return fails(descriptor, "write") ? -1 : real(descriptor, bytes, count);
}
int close(int descriptor) {
    static int (*real)(int);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "close");
    int failing = fails(descriptor, "close");
    int status = real(descriptor);
    if (failing) errno = atoi(getenv("FAILING_WITH"));
    return failing ? -1 : status;
}
"""


@pytest.fixture(scope="session")
def failing_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a library that makes system calls on partial files fail, as a dying disk or a quota does."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("takes a C compiler, to make system calls fail")
    home = tmp_path_factory.mktemp("library")
    (home / "failing.c").write_text(FAILING_CALLS)
    call([compiler, "-shared", "-fPIC", "-o", home / "failing.so", home / "failing.c", "-ldl"], check=True)
    return home / "failing.so"


@pytest.mark.parametrize("call", ["write", "close"])
@pytest.mark.parametrize("error", ["EIO", "EDQUOT"])
def test_an_error_of_the_disk_ends_the_run(
    server: Server, loader: Loader, failing_calls: Path, call: str, error: str
) -> None:
    broken = loader.home / "broken"
    environment = {
        "LD_PRELOAD": str(failing_calls),
        "FAILING_CALL": call,
        "FAILING_WITH": str(getattr(errno, error)),
        "FAILS_WHEN": str(broken),
    }
    running = loader.start([*urls_of(server, 5), *urls_of(server, 5, "held")], environment=environment)
    server.wait_for(lambda: server.at_work == 5 and len(server.requests) == 10)
    broken.touch()
    server.gate.set()
    run = running.finish()
    assert run.status == 2
    assert str(loader.directory) in run.stderr
    assert _whole(server, run)
    assert leftovers(loader.directory) == []


def _limited(limit: str) -> tuple[str, ...]:
    """Return the command, started by a shell that sets a limit first."""
    return ("sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *MODULE)


def test_few_open_files_make_it_slower_and_lose_nothing(server: Server, loader: Loader) -> None:
    urls, command = urls_of(server, 120, "slow"), _limited("-n 64")
    run = loader.run(urls, "--threads", "100", "--per-host", "100", command=command, seconds=30)
    assert run.counts == (120, 0, 0, 0)


def _room_for_threads(number: int) -> tuple[str, ...]:
    """Return the command with memory for so many threads of 1 GB each, its first one not counted."""
    return _limited(f"-Ss 1000000; ulimit -v {number * 1_000_000 + 700_000}")


def test_few_threads_make_it_slower_and_lose_nothing(server: Server, loader: Loader) -> None:
    urls = [*urls_of(server, 60), *urls_of(server, 20, "slow")]
    run = loader.run(urls, "-v", *AT_ONCE, command=_room_for_threads(4), seconds=30)
    assert run.counts == (80, 0, 0, 0)
    assert run.stderr.count("out of threads") == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_run_that_gets_no_thread_for_its_downloads_ends_in_plain_words(
    server: Server, loader: Loader, number: int
) -> None:
    run = loader.run(urls_of(server, 20), command=_room_for_threads(number))
    assert run.status == 2
    assert "no thread can be started" in run.stderr
    assert len(run.rows) == 20
    assert server.requests == []


def test_idle_connections_make_room_where_descriptors_are_few(loader: Loader) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(name=str(number))) for number in range(30)]
        urls = [server.url(f"/{number}.png") for number in range(10) for server in servers]
        run = loader.run(urls, "-v", command=_limited("-n 24"), seconds=30)
    assert run.counts == (300, 0, 0, 0)
    assert run.stderr.count("out of file descriptors") < 30, "a lack that many notice at once counts once"


def test_the_command_takes_the_descriptors_that_it_may_have(server: Server, loader: Loader) -> None:
    running = loader.start(urls_of(server, 1, "gated"), command=_limited("-Sn 64; ulimit -Hn 128"))
    server.wait_for(lambda: server.at_work == 1)
    limits = Path(f"/proc/{running.process.pid}/limits").read_text()
    assert re.search(r"Max open files +128 +128", limits)
    server.gate.set()
    assert running.finish().status == 0


def test_a_file_over_the_limit_of_the_process_fails_alone(server: Server, loader: Loader) -> None:
    large, small = server.url("/large.png?size=600000"), server.url("/small.png")
    run = loader.run([large, small], "--retries", "0", command=_limited("-f 500"))
    assert [run.row(url)["reason"] for url in (large, small)] == ["write", None]
    assert run.files == {"small.png"}
    assert leftovers(loader.directory) == []


# Names that stand in the way --------------------------------------------------------------------------------------


def test_a_directory_under_the_name_of_an_image_fails_alone(server: Server, loader: Loader) -> None:
    (loader.directory / "0000.png" / "below").mkdir(parents=True)
    urls = urls_of(server, 3)
    run = loader.run(urls, "--retries", "0")
    assert [run.row(url)["reason"] for url in urls] == ["write", None, None]
    assert (loader.directory / "0000.png" / "below").is_dir()
    assert leftovers(loader.directory) == []


def test_an_empty_directory_under_the_name_of_an_image_stays(server: Server, loader: Loader) -> None:
    (loader.directory / "0000.png").mkdir(parents=True)
    assert loader.run(urls_of(server, 1), "--retries", "0").rows[0]["reason"] == "write"
    assert (loader.directory / "0000.png").is_dir()


def test_a_symbolic_link_under_the_name_of_an_image_is_replaced_and_its_target_stays(
    server: Server, loader: Loader
) -> None:
    victim = loader.home / "victim"
    victim.write_bytes(b"untouched")
    loader.directory.mkdir()
    (loader.directory / "0000.png").symlink_to(victim)
    run = loader.run(urls_of(server, 1))
    assert run.content(server.url("/image/0000.png")) == server.image("/image/0000.png")
    assert not (loader.directory / "0000.png").is_symlink()
    assert victim.read_bytes() == b"untouched"


def _symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("plant", [_symlink, _hard_link, _fifo])
def test_what_stands_under_the_name_of_a_partial_file_is_not_touched(
    server: Server, loader: Loader, plant: Callable[[Path, Path], None]
) -> None:
    first, second = server.url("/held/first.png"), server.url("/gated/second.png")
    running = loader.start([second])
    server.wait_for(lambda: len(being_written(loader.directory)) == 1)
    partial = loader.directory / ".image_loader" / "partial" / being_written(loader.directory)[0]
    running.end()
    partial.unlink()
    running = loader.start([first, second], "--threads", "1", "--retries", "0")
    server.wait_for(lambda: len(server.asked("/held/first.png")) == 1)
    victim = loader.home / "victim"
    victim.write_bytes(b"untouched")
    plant(partial, victim)
    server.gate.set()
    run = running.finish()
    assert [run.row(url)["reason"] for url in (first, second)] == [None, "write"]
    assert victim.read_bytes() == b"untouched"

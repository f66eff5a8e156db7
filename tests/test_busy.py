"""A busy server, which refuses requests with 429 or 503, loses none of its images and is not hammered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import formatdate
from typing import Any

import pytest

from conftest import Loader, Run, impatient, urls_of
from exchange import Request, Steps, head, respond
from limits import Bucket, Limit, Outage, SlidingWindow, Window
from server import Server

Fields = Callable[[], Sequence[str]]
"""Makes the header lines of a refusal."""
UNAVAILABLE, TOO_MANY = "503 Service Unavailable", "429 Too Many Requests"
MINUTE, HOUR = 60.0, 3600.0


class Busy(Server):
    """Refuses what its limit does not let through; the limit's clock begins with the first request."""

    def __init__(self, limit: Limit, status: str = UNAVAILABLE, fields: Fields = tuple, **settings: Any) -> None:
        """``fields`` makes the header lines that come with a refusal."""
        super().__init__(**settings)
        self._limit = limit
        self._status = status
        self._fields = fields
        self._judging = threading.Lock()

    def steps(self, request: Request) -> Steps:
        """Refuse a request or answer it."""
        if request.path.startswith("/redirect/"):
            return super().steps(request)
        with self._judging:
            passes = self._limit.lets_through(time.monotonic() - self.requests[0].time)
        return respond(request) if passes else iter([head("Content-Length: 0", *self._fields(), status=self._status)])

    @property
    def seconds(self) -> float:
        """From the first request to the last one, by the server's clock."""
        return self.requests[-1].time - self.requests[0].time


def asks_for(value: str) -> Fields:
    """Send a ``Retry-After`` with each refusal."""
    return lambda: [f"Retry-After: {value}"]


def asks_until(seconds: float, clock: float = 0.0) -> Fields:
    """Send a ``Retry-After`` that is a date, so many seconds from now, and a ``Date``, by a clock that is ahead."""

    def fields() -> Sequence[str]:
        now = time.time() + clock
        return [f"Date: {formatdate(now, usegmt=True)}", f"Retry-After: {formatdate(now + seconds, usegmt=True)}"]

    return fields


def assert_all_saved(run: Run, server: Server, urls: Sequence[str]) -> None:
    """See that each image is there, whole."""
    assert run.counts == (len(urls), 0, 0, 0), run.stderr
    assert all(run.content(url) == server.image(url.removeprefix(server.origin)) for url in urls)


# A server that is down for some seconds ------------------------------------------------------------------------------

OUTAGES: Mapping[str, Fields] = {
    "Retry-After of 0": asks_for("0"),
    "Retry-After of 1": asks_for("1"),
    "Retry-After of -5": asks_for("-5"),
    "Retry-After of soon": asks_for("soon"),
    "an empty Retry-After": asks_for(""),
    "Retry-After of 1.5": asks_for("1.5"),
    "a date that has passed": asks_until(-10 * MINUTE),
    "a date to come": asks_until(2),
    "a date by a clock that is 10 minutes slow": asks_until(2, -10 * MINUTE),
    "a date by a clock that is an hour slow": asks_until(2, -HOUR),
    "a date by a clock that is an hour fast": asks_until(2, HOUR),
    "a date without a Date": lambda: [f"Retry-After: {formatdate(time.time() + 2, usegmt=True)}"],
    "no Retry-After": tuple,
}


@pytest.mark.parametrize("name", OUTAGES)
def test_a_server_that_is_down_for_two_seconds_loses_no_image(loader: Loader, name: str) -> None:
    assert_survived(loader, 2.0, OUTAGES[name], UNAVAILABLE)


@pytest.mark.parametrize("name", ["no Retry-After", "Retry-After of 1"])
def test_429_is_taken_as_503_is(loader: Loader, name: str) -> None:
    assert_survived(loader, 2.0, OUTAGES[name], TOO_MANY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "fields"),
    [
        pytest.param(8.0, asks_for("1"), id="8 s, Retry-After of 1"),
        pytest.param(6.0, tuple, id="6 s"),
        pytest.param(8.0, asks_until(3, -HOUR), id="8 s, a date by a clock that is an hour slow"),
    ],
)
def test_a_server_that_is_down_for_longer_loses_no_image(loader: Loader, seconds: float, fields: Fields) -> None:
    assert_survived(loader, seconds, fields, UNAVAILABLE)


def assert_survived(loader: Loader, seconds: float, fields: Fields, status: str) -> None:
    """See that all images are saved in spite of an outage, with at most three requests for each."""
    with Busy(Outage(seconds), status, fields) as server:
        urls = urls_of(server, 300)
        assert_all_saved(loader.run(urls), server, urls)
        assert len(server.requests) <= 3 * len(urls)


def test_a_busy_host_behind_redirects_loses_no_image(server: Server, loader: Loader) -> None:
    with Busy(Outage(2.0)) as busy:
        urls = [server.url(f"/redirect/{number}.png?to={busy.url(f'/image/{number}.png')}") for number in range(100)]
        run = loader.run(urls)
        assert run.counts == (100, 0, 0, 0), run.stderr
        assert all(run.content(url) == busy.image(f"/image/{number}.png") for number, url in enumerate(urls))
        assert len(busy.requests) <= 300


# A server that limits the rate ---------------------------------------------------------------------------------------

LIMITS: Mapping[str, tuple[Callable[[], Limit], int]] = {
    "20 a second": (lambda: Window(20, 1), 300),
    "20 in any second, refused ones too": (lambda: SlidingWindow(20, 1, counts_refused=True), 300),
    "a bucket of 20 a second and 5 at once": (lambda: Bucket(20, 5), 300),
    "5 a second": (lambda: Window(5, 1), 60),
    "50 in 10 s": (lambda: Window(50, 10), 150),
}
GRACE = 2.5
"""How many times the least time such a run may take: two are promised, and the machine may be busy."""
RECOVERY = 5.0
"""Seconds, about a pause: a limit over ten seconds is found out by pauses that may overshoot it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_a_server_that_limits_the_rate_is_asked_about_as_often_as_it_allows(loader: Loader, name: str) -> None:
    assert_rate_kept(loader, *LIMITS[name], tuple)


@pytest.mark.slow
def test_a_server_that_limits_the_rate_and_asks_for_pauses_loses_no_image(loader: Loader) -> None:
    assert_rate_kept(loader, lambda: Window(20, 1), 300, asks_for("1"))


def assert_rate_kept(loader: Loader, make: Callable[[], Limit], images: int, fields: Fields) -> None:
    """See that all images are saved, with few requests and in about the time that the limit allows."""
    limit = make()
    with Busy(limit, TOO_MANY, fields) as server:
        urls = urls_of(server, images)
        assert_all_saved(loader.run(urls, seconds=120), server, urls)
        assert len(server.requests) <= 1.7 * images
        assert server.seconds <= GRACE * limit.ideal(images) + RECOVERY


# What is refused for ever --------------------------------------------------------------------------------------------

PATIENCE = 2.0


class Refusing(Server):
    """Refuses some targets for ever: those whose path begins with ``/refused/``."""

    def steps(self, request: Request) -> Steps:
        """Refuse a request or answer it."""
        if request.path.startswith("/refused/"):
            return iter([head("Content-Length: 0", status=UNAVAILABLE)])
        return respond(request)


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    """A server that refuses some targets."""
    with Refusing() as server:
        yield server


@pytest.mark.parametrize("position", [0, 100, 200])
def test_an_image_that_is_refused_for_ever_fails_alone(refusing: Refusing, loader: Loader, position: int) -> None:
    good, bad = urls_of(refusing, 200), refusing.url("/refused/bad.png")
    urls = [*good[:position], bad, *good[position:]]
    run = loader.run(urls, "--retries", "1", command=impatient(PATIENCE))
    assert run.counts == (200, 0, 0, 1)
    assert (run.row(bad)["reason"], run.row(bad)["http_status"]) == ("http-status", 503)
    assert len(refusing.requests) <= 200 + 10


def test_a_host_that_refuses_ten_thousand_images_for_ever_is_given_up(refusing: Refusing, loader: Loader) -> None:
    urls = urls_of(refusing, 10_000, "refused")
    run = loader.run(urls, command=impatient(PATIENCE))
    assert run.counts == (0, 0, 0, 10_000)
    assert run.status == 1
    assert {row["reason"] for row in run.rows} <= {"http-status", "host-down"}
    # The window of a list that is read as a stream is 10,000 lines; nothing is asked for after the host was given up.
    assert len(refusing.requests) <= 50
    assert refusing.requests[-1].time - refusing.requests[0].time >= PATIENCE


def test_a_host_that_refuses_for_ever_holds_up_no_other(refusing: Refusing, server: Server, loader: Loader) -> None:
    urls = [*urls_of(refusing, 1000, "refused"), *urls_of(server, 300)]
    run = loader.run(urls, command=impatient(PATIENCE))
    assert run.counts == (300, 0, 0, 1000)
    last_good = max(request.time for request in server.requests)
    assert last_good < max(request.time for request in refusing.requests)

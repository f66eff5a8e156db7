"""Promises of --delay: requests to one host start one after the other, also retries and redirects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from conftest import Loader, urls_of
from server import Server

DELAY = 0.4
SLACK = 0.15
"""Seconds by which a busy machine may have a request arrive late."""


def gaps(server: Server) -> list[float]:
    """Return the seconds between the requests that a server got."""
    times = sorted(request.time for request in server.requests)
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("behaviour", ["image", "failing-once", "redirect", "unasked-304"])
def test_requests_to_one_host_are_that_far_apart(server: Server, loader: Loader, behaviour: str) -> None:
    loader.run(urls_of(server, 4, behaviour), "--delay", str(DELAY), "--per-host", "4", "--retries", "1")
    assert len(server.requests) >= 4
    assert min(gaps(server)) > DELAY - SLACK


def test_another_host_is_not_waited_for(server: Server, new_server: Callable[..., Server], loader: Loader) -> None:
    other = new_server(name="other")
    run = loader.run([*urls_of(server, 5), *urls_of(other, 5)], "--delay", str(DELAY))
    assert run.counts == (10, 0, 0, 0)
    assert max(request.time for request in other.requests) < max(request.time for request in server.requests) + DELAY
    assert min(*gaps(server), *gaps(other)) > DELAY - SLACK


def test_redirects_take_no_time_from_the_deadline_while_they_wait(server: Server, loader: Loader) -> None:
    run = loader.run([server.url("/redirect/a.png")], "--delay", "1.5", "--max-time", "1.4")
    assert run.counts == (1, 0, 0, 0)

"""Hosts that do not answer, hundreds of them in front: the images of all others are there before the first timeout."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from conftest import MODULE, Loader, Running, sockets_of, urls_of
from server import ALL_ADDRESSES, Server, silent_port, unaccepting_port

TIMEOUT = 30
"""Seconds; whoever waits for a dead host once waits longer than a test does for the good ones."""
SOON = 25.0
"""Seconds; less than the timeout, and far more than the good images take."""
PROMPT = 3.0
"""Seconds within which a signal has to end the run: two are promised, and the machine may be busy."""


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Twenty origins."""
    with ExitStack() as stack:
        yield [stack.enter_context(Server(name=str(number))) for number in range(20)]


@pytest.fixture
def unaccepting() -> Iterator[Callable[[int, int], str]]:
    """Make the origins of hosts that do not answer a SYN, from the number of a network and that of a host."""
    with unaccepting_port(ALL_ADDRESSES) as port:
        yield lambda network, host: f"http://127.0.{network}.{host}:{port}"


def dead_lines(origin: Callable[[int, int], str], hosts: int, lines: int) -> list[str]:
    """Return the URLs of dead hosts, so many on each, one host after the other and then all over again."""
    return [f"{origin(1 + host // 200, 1 + host % 200)}/{line}.png" for line in range(lines) for host in range(hosts)]


def finish_once_saved(running: Running, loader: Loader, server: Server, images: int) -> Counter[str | None]:
    """Wait for so many images, end the run, and count the reasons of its rows."""
    server.wait_for(lambda: len(list(loader.directory.glob("*.png"))) == images, SOON)
    running.send(signal.SIGINT)
    run = running.finish(PROMPT)
    assert run.status == 130
    assert run.counts[0] == images
    return Counter(row["reason"] for row in run.rows)


@pytest.mark.parametrize("threads", ["32", "8"])
@pytest.mark.parametrize("hosts", [100, 10, 1])
def test_dead_hosts_and_redirects_to_dead_hosts_in_front_hinder_no_other_host(
    servers: list[Server],
    unaccepting: Callable[[int, int], str],
    loader: Loader,
    threads: str,
    hosts: int,
) -> None:
    dead = dead_lines(unaccepting, hosts, 1000 // hosts)
    targets = [f"{unaccepting(9, number)}/{number}.png" for number in range(1, 201)]
    redirects = [servers[0].url(f"/redirect/{number}.png?to={target}") for number, target in enumerate(targets)]
    good = [url for server in servers for url in urls_of(server, 15)]
    running = loader.start([*dead, *redirects, *good], "--threads", threads, "--timeout", str(TIMEOUT))
    assert set(finish_once_saved(running, loader, servers[0], 300)) == {None, "interrupted"}
    assert all(len(server.asked("/image/0000.png")) == 1 for server in servers)


@pytest.mark.parametrize("threads", ["32", "8"])
def test_hosts_that_never_shake_hands_hinder_no_other_host(server: Server, loader: Loader, threads: str) -> None:
    with silent_port(ALL_ADDRESSES) as port:
        silent = dead_lines(lambda network, host: f"https://127.0.{network}.{host}:{port}", 200, 2)
        urls = [*silent, *urls_of(server, 300)]
        running = loader.start(urls, "--threads", threads, "--timeout", str(TIMEOUT))
        assert set(finish_once_saved(running, loader, server, 300)) == {None, "interrupted"}


def test_an_interrupt_ends_a_run_with_three_hundred_connects_under_way(
    server: Server, unaccepting: Callable[[int, int], str], loader: Loader
) -> None:
    with silent_port(ALL_ADDRESSES) as port:
        dead = dead_lines(unaccepting, 150, 1)
        silent = dead_lines(lambda network, host: f"https://127.0.{network}.{host}:{port}", 150, 1)
        running = loader.start([*dead, *silent], "--timeout", str(TIMEOUT))
        server.wait_for(lambda: sockets_of(running.process.pid) >= 300)
        running.send(signal.SIGINT)
        run = running.finish(PROMPT)
    assert run.status == 130
    assert {row["reason"] for row in run.rows} <= {"interrupted"}


@pytest.mark.slow
def test_with_few_descriptors_a_hundred_dead_hosts_lose_no_image_of_another(
    servers: list[Server], unaccepting: Callable[[int, int], str], loader: Loader
) -> None:
    dead = dead_lines(unaccepting, 100, 1)
    good = [url for server in servers for url in urls_of(server, 15)]
    few: Sequence[str] = ("sh", "-c", 'ulimit -n 64; exec "$@"', "-", *MODULE)
    options = ("--timeout", "1", "--retries", "1")
    run = loader.run([*dead, *good], *options, command=few, seconds=180)
    assert run.counts == (300, 0, 0, 100), run.stderr
    assert {row["reason"] for row in run.rows} == {None, "timeout"}

"""The pool: which idle connections it keeps, and that it gives out none that is closed."""

from __future__ import annotations

import gc
import ssl
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from asking import Asking, served, transport
from exchange import End, head
from image_loader.transport import Connection, Request
from image_loader.transport.pool import PoolAdapter
from image_loader.url import parse
from server import Scripted, Server, connections_to, plays

pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture
def pooled() -> Iterator[Asking]:
    with transport(pool_hosts=2, per_host=3) as made:
        yield made


def new(asking: Asking, origin: str) -> Connection:
    """Return a connection that no pool has had."""
    taken = []
    while (idle := asking.take(origin)) is not None:
        taken.append(idle)
    made = asking.connected(origin)
    for each in reversed(taken):
        asking.give_back(each)
    return made


def test_the_newest_connection_goes_first(pooled: Asking) -> None:
    with Server() as server:
        first, second = new(pooled, server.origin), new(pooled, server.origin)
        pooled.give_back(first)
        pooled.give_back(second)
        assert pooled.take(server.origin) is second
        assert pooled.take(server.origin) is first
        assert pooled.take(server.origin) is None
        first.close()
        second.close()


def test_of_one_host_so_many_are_kept_and_the_oldest_is_closed(pooled: Asking) -> None:
    with Server() as server:
        made = [new(pooled, server.origin) for _ in range(4)]
        for each in made:
            pooled.give_back(each)
        assert connections_to(server.port) == 3
        assert not made[0].usable
        kept = [pooled.take(server.origin) for _ in range(4)]
        assert kept == [made[3], made[2], made[1], None]
        for each in made:
            each.close()


def test_of_so_many_hosts_connections_are_kept_and_those_of_the_oldest_are_closed(pooled: Asking) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(3)]
        for server in servers:
            pooled.give_back(new(pooled, server.origin))
        assert [connections_to(server.port) for server in servers] == [0, 1, 1]
        assert pooled.take(servers[0].origin) is None


def test_a_host_that_is_used_is_no_old_one(pooled: Asking) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(3)]
        for number in (0, 0, 1):
            pooled.give_back(new(pooled, servers[number].origin))
        # The other one of this host stays in the pool meanwhile.
        pooled.give_back(pooled.connected(servers[0].origin))
        pooled.give_back(new(pooled, servers[2].origin))
        assert [connections_to(server.port) for server in servers] == [2, 0, 1]


def test_a_connection_that_the_server_closed_is_not_given_out(pooled: Asking) -> None:
    with Scripted(plays(head("Content-Length: 0"), End.CLOSE), served()) as server:
        connection = pooled.connected(server.origin)
        found = pooled.exchange(Request(parse(server.url("/a")), {}), connection)
        with found:  # type: ignore[union-attr]
            pass
        pooled.give_back(connection)
        server.wait_for(lambda: server.at_work == 0)
        server.wait_for(lambda: not connection.alive)
        assert pooled.take(server.origin) is None
        assert connections_to(server.port) == 0


@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_that_was_never_used_is_kept(tls: ssl.SSLContext, bundle: str, secure: bool) -> None:
    with transport(ca_bundle=bundle) as asking, Server(tls=tls if secure else None) as server:
        connection = asking.connected(server.origin)
        time.sleep(0.1)  # Session tickets of TLS 1.3 come after the handshake.
        asking.give_back(connection)
        assert asking.take(server.origin) is connection
        connection.close()


def test_dropping_closes_all_that_are_idle_and_none_that_is_at_work(pooled: Asking) -> None:
    with Server() as server:
        idle, working = new(pooled, server.origin), new(pooled, server.origin)
        pooled.give_back(idle)
        pooled.drop_idle()
        assert (idle.usable, working.usable) == (False, True)
        working.close()


def test_the_session_that_is_closed_closes_them() -> None:
    with Server() as server:
        with transport() as asking:
            asking.give_back(asking.connected(server.origin))
            assert connections_to(server.port) == 1
        assert connections_to(server.port) == 0


def test_pool_and_connection_are_freed_at_once(pooled: Asking) -> None:
    """A circle of references would keep the sockets until garbage is searched for."""
    with Server() as server:
        connection = pooled.connected(server.origin)
        pool = PoolAdapter(2, 3)
        pool.give_back(connection)
        gone = weakref.ref(pool)
        gc.disable()
        try:
            del pool
            assert gone() is None
        finally:
            gc.enable()
        connection.close()

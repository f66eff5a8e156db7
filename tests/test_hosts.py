"""Promises of the hosts of a run: what still matters of one without jobs is remembered, and no more than that."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from image_loader.scheduling.health import Health, Policy
from image_loader.scheduling.hosts import Hosts

POLICY = Policy(per_host=4, failures=2, patience=30.0, longest_pause=120.0)
NOW = 1.0


def hosts_with(event: Callable[[Health], Health], count: int) -> Hosts:
    """Return hosts of which five are remembered, after so many had their one job, with this event."""
    hosts = Hosts(POLICY, remembered=5)
    for number in range(count):
        host = hosts.get(f"http://host{number}", NOW)
        host.note(event(host.health))
        assert hosts.forget_if_idle(host, NOW)
    return hosts


def is_remembered(hosts: Hosts, number: int) -> bool:
    return hosts.get(f"http://host{number}", NOW).health != Health.unknown(POLICY, NOW)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lambda health: health.missed(NOW, NOW), id="failed"),
        pytest.param(lambda health: health.given_up(NOW), id="given up"),
        pytest.param(lambda health: health.refused(NOW, NOW, 20.0, 0), id="paused"),
    ],
)
def test_of_the_hosts_that_failed_the_last_ones_are_remembered(event: Callable[[Health], Health]) -> None:
    hosts = hosts_with(event, 50)
    assert [number for number in range(50) if is_remembered(hosts, number)] == [45, 46, 47, 48, 49]


def test_nothing_is_remembered_of_a_host_that_answers() -> None:
    hosts = hosts_with(lambda health: health.answered(NOW, NOW, 1), 3)
    assert not any(is_remembered(hosts, number) for number in range(3))


def test_a_host_with_jobs_is_not_forgotten() -> None:
    hosts = Hosts(POLICY)
    host = hosts.get("http://host", NOW)
    host.away += 1
    assert not hosts.forget_if_idle(host, NOW)
    assert hosts.get("http://host", NOW) is host
    assert list(hosts) == [host]


def test_a_host_whose_delay_is_not_over_is_remembered() -> None:
    hosts = Hosts(POLICY._replace(delay=2.0))
    host = hosts.get("http://host", NOW)
    host.note(host.health.started(NOW))
    assert hosts.forget_if_idle(host, NOW)
    assert hosts.get("http://host", NOW + 1.0).opens_at == NOW + 2.0
    assert hosts.get("http://other", NOW).opens_at < NOW


def test_hosts_whose_delay_is_not_over_push_out_none_that_is_down() -> None:
    hosts = Hosts(POLICY._replace(delay=60.0), remembered=5)
    down = hosts.get("http://down", NOW)
    down.note(down.health.given_up(NOW))
    assert hosts.forget_if_idle(down, NOW)
    for number in range(10):
        host = hosts.get(f"http://host{number}", NOW)
        host.note(host.health.started(NOW))
        assert hosts.forget_if_idle(host, NOW)
    assert hosts.down_failure("http://down", NOW) is not None
    opens_at = [hosts.get(f"http://host{number}", NOW).opens_at for number in range(10)]
    assert opens_at == [0.0] * 5 + [NOW + 60.0] * 5


def test_what_a_host_lets_through_is_counted_anew_when_it_is_met_again() -> None:
    hosts = Hosts(POLICY)
    host = hosts.get("http://host", NOW)
    health = host.health.refused(NOW, NOW, None, 20).refused(NOW + 5.0, NOW + 4.0, None, 20)
    host.note(health.answered(NOW + 9.0, NOW + 8.0, 22))
    assert (host.health.successes, host.health.resumed_at) == (21, NOW + 9.0)
    assert hosts.forget_if_idle(host, NOW + 9.0)
    again = hosts.get("http://host", NOW + 100.0)
    assert again.health == host.health._replace(successes=0, resumed_at=NOW + 100.0)

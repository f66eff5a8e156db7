"""Promises of one host and its jobs: how many may start, how many a worker takes at once, and in what order."""

from __future__ import annotations

from typing import Any

import pytest

from image_loader.model import Hop, Job, Name, Validators
from image_loader.scheduling.health import Health, Policy
from image_loader.scheduling.host import Host, Task
from image_loader.url import Url, parse

LIMIT = 10
URL = parse("http://host/a.jpg")


@pytest.fixture
def host() -> Host:
    """Return a host that has answered, and so may have its limit of attempts at once."""
    health = Health.unknown(Policy(LIMIT, 5, 30.0, 120.0), 0.0)
    return Host("http://host", health.answered(0.1, 0.0, 1).answered(0.1, 0.0, 2))


def tasks(host: Host, *lines: int, url: Url = URL) -> list[Task]:
    name = Name("a.jpg", complete=True)
    return [Task(Job(line, url, line, name, None, Validators(), inode=None), host) for line in lines]


def redirected(task: Task) -> Task:
    """Return a task whose attempt goes on at the host."""
    task.job = task.job._replace(hop=Hop(URL, (), left=1e9))
    return task


def lines(waiting: list[Task]) -> list[int]:
    return [task.job.line for task in waiting]


def connections(count: int) -> list[Any]:
    return [object()] * count


def test_all_connections_of_a_host_are_counted(host: Host) -> None:
    host.running, host.connections, host.connecting = 5, connections(3), [1]
    assert host.spare_connections == 4
    assert host.connection_count == 9


def test_jobs_that_are_away_leave_room_for_guests_alone(host: Host) -> None:
    host.own, host.guests = tasks(host, 1, 2, 3), tasks(host, 4)
    assert (host.waiting, host.free) == (4, 10)
    host.running, host.away = 2, 3
    assert host.free == 10 - 2 - 3 + 1
    host.running, host.away = 2, 20
    assert host.free == 1
    host.running = 10
    assert host.free == 0


def test_with_a_delay_one_may_start(host: Host) -> None:
    host.own = tasks(host, 1, 2, 3)
    assert host.startable == 3
    host.note(host.health._replace(policy=host.health.policy._replace(delay=1.0)))
    assert host.startable == 1
    seen = []
    for host.running in (7, 8, 9, 10):
        seen.append(host.startable)
    assert seen == [1, 1, 1, 0]


def test_a_job_may_start_once_the_host_opens(host: Host) -> None:
    assert not host.may_start(5.0)
    host.own = tasks(host, 1)
    assert host.may_start(5.0)
    host.note(host.health.refused(5.0, 5.0, 10.0, 2))
    assert [host.may_start(now) for now in (14.9, 15.0, 15.1)] == [False, True, True]
    host.running = 1
    assert not host.may_start(15.1)


def test_the_usual_time_is_that_of_a_host_which_is_full(host: Host) -> None:
    assert host.usual_time == 0.0
    host.running, host.pace = LIMIT, 0.5
    assert host.usual_time == 0.5
    host.running = LIMIT + 1
    assert host.usual_time == 0.5
    host.running = LIMIT - 1
    assert host.usual_time == 0.0


@pytest.mark.parametrize("home", ["http://ahost/b.jpg", "http://other/b.jpg"])
def test_jobs_that_redirects_led_here_come_first_and_in_their_order(host: Host, home: str) -> None:
    own = tasks(host, 1, 2, 3, 4)
    (within,), guests = tasks(host, 5), tasks(host, 6, 7, 8, url=parse(home))
    host.own = own[:2]
    host.put_first(own[2])
    host.put_first(own[3])
    host.put_going_on(redirected(within))
    for guest in guests[:2]:
        host.put_going_on(redirected(guest))
    host.put_first(redirected(guests[2]))
    assert (lines(host.guests), lines(host.own)) == ([8, 6, 7], [5, 4, 3, 1, 2])
    assert host.take_first() is guests[2]
    assert lines([*host.take_all()]) == [6, 7, 5, 4, 3, 1, 2]
    assert host.waiting == 0


def test_a_quarter_of_the_pace_is_that_of_the_last_answer(host: Host) -> None:
    seen = []
    for seconds in (1.0, 2.0, 0.25):
        host.keep_pace(seconds)
        seen.append(host.pace)
    assert seen == [1.0, 1.25, 1.0]


@pytest.mark.parametrize(
    ("pace", "slots", "count"),
    [(None, 1, 1), (1.0, 1, 1), (0.04, 1, 1), (0.015, 1, 2), (0.003, 1, 13), (0.0, 1, 32), (0.0, 3, 14), (0.0, 20, 2)],
)
def test_a_worker_takes_what_is_done_in_40_ms_but_no_more_than_its_fair_share(
    host: Host, pace: float | None, slots: int, count: int
) -> None:
    host.own, host.pace = tasks(host, *range(40)), pace
    assert lines(host.take_share(slots)) == [*range(count)]
    assert lines(host.own) == [*range(count, 40)]


def test_with_an_interval_between_requests_a_worker_takes_one_job(host: Host) -> None:
    host.own, host.pace = tasks(host, *range(40)), 0.001
    host.note(host.health.refused(1.0, 1.0, None, 2))
    assert lines(host.take_share(1)) == [0]


@pytest.mark.parametrize(
    ("chance", "order"),
    [
        (0.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0.25, [8, 9, 0, 1, 2, 3, 4, 5, 6, 7]),
        (0.5, [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]),
        (0.99, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
    ],
)
def test_a_host_goes_on_with_the_part_of_its_jobs_that_chance_says(host: Host, chance: float, order: list[int]) -> None:
    host.own = tasks(host, *range(10))
    host.go_on_elsewhere(chance)
    assert lines(host.own) == order


def test_a_host_without_jobs_goes_on_nowhere(host: Host) -> None:
    host.go_on_elsewhere(0.5)
    assert host.own == []

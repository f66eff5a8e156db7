"""Promises of the timers: one that holds no more is passed over."""

from __future__ import annotations

import gc

import pytest

from image_loader.model import Job, Name, Validators
from image_loader.scheduling.health import Health, Policy
from image_loader.scheduling.host import Host, Task
from image_loader.scheduling.timers import Timers
from image_loader.url import parse


@pytest.fixture
def host() -> Host:
    """Return a host of which nothing is known."""
    return Host("http://host", Health.unknown(Policy(4, 5, 30.0, 120.0), 0.0))


@pytest.fixture
def task(host: Host) -> Task:
    """Return a task of the host."""
    return Task(Job(1, parse("http://host/a.jpg"), 1, Name("a.jpg", complete=True), None, Validators(), None), host)


def test_a_task_whose_timer_is_set_anew_is_due_then_alone(task: Task) -> None:
    timers = Timers()
    timers.set_task(task, 1.0)
    timers.set_task(task, 2.0)
    assert timers.next_at() == 2.0
    assert list(timers.due(1.5)) == []
    assert list(timers.due(2.0)) == [task]
    assert timers.next_at() is None


def test_a_task_whose_timer_is_set_earlier_is_due_once(task: Task) -> None:
    timers = Timers()
    timers.set_task(task, 2.0)
    timers.set_task(task, 1.0)
    assert list(timers.due(3.0)) == [task]


def test_timers_that_hold_no_more_do_not_pile_up_behind_one_that_holds(host: Host, task: Task) -> None:
    timers = Timers()
    timers.set_host(host, 1.0)
    for number in range(20_000):
        forgotten = Host(f"http://{number}", host.health)
        timers.set_host(forgotten, 2.0)
        forgotten.wakes_at = None
    timers.set_task(task, 3.0)
    assert sum(isinstance(each, Host) for each in gc.get_objects()) < 3000
    assert list(timers.due(5.0)) == [host, task]


class Watched(Task):
    """A task that counts how often one looks whether it is finished."""

    __slots__ = ()
    looks = 0

    @property
    def finished(self) -> bool:
        Watched.looks += 1
        return False

    @finished.setter
    def finished(self, _: bool) -> None:
        """Leave it unfinished."""


def test_timers_that_hold_are_not_looked_through_again_and_again(host: Host, task: Task) -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set_task(Watched(task.job, host), number)
    assert Watched.looks < 20_000


def test_a_host_is_looked_at_at_the_earliest_time_that_was_set(host: Host) -> None:
    timers = Timers()
    timers.set_host(host, 3.0)
    timers.set_host(host, 1.0)
    timers.set_host(host, 2.0)
    assert timers.next_at() == 1.0
    assert list(timers.due(5.0)) == [host]
    assert host.wakes_at is None
    timers.set_host(host, 6.0)
    assert timers.next_at() == 6.0

"""Promises of the number of connections that are made at once, where descriptors are few."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from conftest import SETTINGS
from image_loader.scheduling.slots import Slots, connects_at_most


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Restore the limit of descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("limit", "connects"), [(1024, 464), (256, 80), (128, 24), (64, 8), (43, 2), (40, 2)])
def test_where_descriptors_are_few_connects_have_half_of_them(limit: int, connects: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert connects_at_most(SETTINGS._replace(threads=32, connects=512)) == connects


def in_use(number: int, most: int = 8) -> Slots:
    slots = Slots(most, threads=100)
    for _ in range(number):
        slots.begin(1.0)
    return slots


def filled(slots: Slots) -> int:
    """Take every slot that there is; return how many are in use then."""
    while slots.has_room(1.0, standing=0):
        slots.begin(1.0)
    return slots.in_use


def test_a_burst_of_connects_that_lack_descriptors_halves_their_number_once() -> None:
    slots = in_use(8)
    for number in range(1, 5):
        slots.end(number)
        assert slots.shrink(started=1.0, now=1.5)
    slots.end(5)
    slots.end(6)
    assert filled(slots) == 3
    assert slots.shrink(started=2.0, now=2.5)
    assert not slots.shrink(started=3.0, now=3.5), "one is left"


def test_the_number_of_connects_grows_again_up_to_what_it_was() -> None:
    slots = in_use(8)
    slots.shrink(started=1.0, now=1.5)
    seen = []
    for number in range(1, 100):
        slots.end(number)
        seen.append(filled(slots))
    assert seen[:5] == [7, 6, 5, 4, 4]
    assert seen.index(5, 4) == 7, "after two connects for each slot"
    assert seen[4:] == sorted(seen[4:])
    assert seen[-1] == 8


def test_the_number_does_not_grow_while_connects_lack_descriptors() -> None:
    slots = in_use(1, most=2)
    slots.shrink(started=1.0, now=1.5)
    for number in range(1, 9):
        slots.end(number)
        assert not slots.shrink(started=1.0 + number, now=1.5 + number)
        assert filled(slots) == 1


def test_hosts_that_did_not_answer_before_have_half_of_the_slots() -> None:
    slots = Slots(8, threads=100)
    numbers = []
    while slots.has_room(1.0, 0, retry=True):
        numbers.append(slots.begin(1.0, retry=True))
    assert len(numbers) == 4
    assert slots.has_room(1.0, 0)
    slots.end(numbers[0])
    assert slots.has_room(1.0, 0, retry=True)


def test_no_more_are_begun_than_workers_will_use_soon_but_those_that_take_long_do_not_count() -> None:
    slots = Slots(6, threads=2)
    assert slots.has_room(1.0, standing=3)
    assert not slots.has_room(1.0, standing=4)
    numbers = [slots.begin(1.0) for _ in range(4)]
    assert not slots.has_room(1.1, standing=0)
    assert slots.next_at() == 1.25
    assert slots.has_room(1.25, standing=0)
    assert slots.next_at() is None
    assert not slots.has_room(1.3, standing=4)
    assert slots.in_use == 4
    slots.end(numbers[0])
    assert slots.in_use == 3

"""Promises of the number of connections that are made at once, where descriptors are few."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from conftest import SETTINGS
from image_loader.scheduling.slots import Allowance, Slots, connects_at_most


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Restore the limit of descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("limit", "connects"), [(1024, 464), (256, 80), (128, 24), (64, 8), (43, 2), (40, 2), (34, 1)])
def test_where_descriptors_are_few_connects_have_half_of_them(limit: int, connects: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert connects_at_most(SETTINGS._replace(threads=32, connects=512)) == connects


def test_where_descriptors_have_no_limit_connects_are_as_many_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)  # Linux has none for descriptors, macOS has.
    assert connects_at_most(SETTINGS._replace(connects=512)) == 512


def test_an_allowance_shrinks_once_for_what_was_started_before() -> None:
    allowance = Allowance(8, ends_to_grow=2)
    assert allowance.shrink(2, started=1.0, now=1.5)
    assert not allowance.shrink(1, started=1.5, now=1.6)
    assert allowance.current == 2
    assert not allowance.shrink(3, started=1.6, now=1.7), "these are not fewer"
    assert allowance.current == 2
    assert allowance.shrink(0, started=1.8, now=1.9)
    assert allowance.current == 1, "one at least"


def test_an_allowance_grows_by_one_after_so_many_ends_for_each_that_is_allowed() -> None:
    allowance = Allowance(4, ends_to_grow=2)
    allowance.shrink(2, started=1.0, now=1.5)
    seen = []
    for _ in range(12):
        allowance.note_end()
        seen.append(allowance.current)
    assert seen == [2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4, 4]


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


@pytest.mark.parametrize(("most", "share"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_hosts_that_did_not_answer_before_have_one_slot_at_least(most: int, share: int) -> None:
    slots = Slots(most, threads=100)
    for _ in range(share):
        assert slots.has_room(1.0, 0, retry=True)
        slots.begin(1.0, retry=True)
    assert not slots.has_room(1.0, 0, retry=True)


def test_hosts_that_did_not_answer_before_have_half_of_the_slots_that_are_left() -> None:
    slots = Slots(8, threads=100)
    for retry in (True, False):
        for _ in range(4):
            slots.begin(1.0, retry=retry)
    slots.shrink(started=1.0, now=1.5)
    for number in range(5, 13):
        slots.begin(2.0)
        slots.end(number)
    assert slots.in_use == 8
    for number in range(13, 17):
        slots.end(number)
    assert slots.in_use == 4
    assert slots.has_room(2.0, 0), "one has been added"
    assert not slots.has_room(2.0, 0, retry=True)


def test_hosts_that_were_not_asked_before_leave_room_for_those_that_did_not_answer() -> None:
    slots = in_use(5)
    assert slots.has_room(1.0, 0, retry=True)


def test_the_last_two_slots_are_several() -> None:
    slots = in_use(2, most=2)
    assert slots.shrink(started=1.0, now=1.5)
    assert not slots.shrink(started=2.0, now=2.5)


def test_no_more_are_begun_than_workers_will_use_soon_but_those_that_take_long_do_not_count() -> None:
    slots = Slots(8, threads=3)
    assert slots.has_room(1.0, standing=5)
    assert not slots.has_room(1.0, standing=6)
    assert not slots.has_room(1.0, standing=7)
    numbers = [slots.begin(1.0) for _ in range(3)]
    assert slots.has_room(1.1, standing=2)
    assert not slots.has_room(1.1, standing=3)
    assert slots.next_at() == 1.25
    assert slots.has_room(1.25, standing=3)
    assert slots.next_at() is None
    slots.begin(1.3)
    assert slots.in_use == 4
    assert not slots.has_room(1.3, standing=5)
    slots.end(numbers[0])
    assert slots.in_use == 3

"""Processors: a thread stays on the one that it is on, and has all of them for a while."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest

from image_loader import processors

T = TypeVar("T")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a thread choose its processors")


@pytest.fixture(autouse=True)
def interpreter_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the lock also where the tests run on a Python without it; CPython before 3.13 lacks this function."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)


def in_a_thread(call: Callable[[], T]) -> T:
    """Call what binds its thread, and leave all others alone."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


def test_a_thread_stays_on_one_of_the_processors_that_it_might_have_had() -> None:
    allowed = os.sched_getaffinity(0)

    def stay() -> tuple[frozenset[int], set[int], set[int]]:
        return processors.stay_on_one(), os.sched_getaffinity(0), in_a_thread(lambda: os.sched_getaffinity(0))

    might_have_had, bound, bound_of_its_own_threads = in_a_thread(stay)
    assert might_have_had == allowed
    assert len(bound) == 1
    assert bound <= allowed
    assert bound_of_its_own_threads == bound
    assert os.sched_getaffinity(0) == allowed


def test_the_one_is_that_which_the_thread_is_on() -> None:
    def stay(processor: int) -> set[int]:
        os.sched_setaffinity(0, {processor})
        processors.stay_on_one()
        return os.sched_getaffinity(0)

    for processor in os.sched_getaffinity(0):
        assert in_a_thread(partial(stay, processor)) == {processor}


def test_the_one_is_among_those_that_are_the_threads_own() -> None:
    allowed = frozenset(os.sched_getaffinity(0))

    def stay(own: frozenset[int]) -> tuple[frozenset[int], set[int]]:
        return processors.stay_on_one(own), os.sched_getaffinity(0)

    for own in (allowed, *(frozenset({each}) for each in allowed)):
        might_have_had, bound = in_a_thread(partial(stay, own))
        assert might_have_had == allowed
        assert len(bound) == 1
        assert bound <= own


@pytest.mark.parametrize("locked", [False, True])
def test_a_thread_is_bound_only_where_there_is_an_interpreter_lock(
    monkeypatch: pytest.MonkeyPatch, *, locked: bool
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: locked, raising=False)
    allowed = os.sched_getaffinity(0)
    might_have_had, bound = in_a_thread(lambda: (processors.stay_on_one(), os.sched_getaffinity(0)))
    assert might_have_had == (allowed if locked else set())
    assert (bound == allowed) is (not locked or len(allowed) == 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_that_was_spread_returns_to_where_it_was(*, fails: bool) -> None:
    allowed = frozenset(os.sched_getaffinity(0))

    def work() -> list[set[int]]:
        processors.stay_on_one()
        seen = [os.sched_getaffinity(0)]
        try:
            with processors.spread(allowed):
                seen.append(os.sched_getaffinity(0))
                if fails:
                    raise OSError
        except OSError:
            pass
        return [*seen, os.sched_getaffinity(0)]

    before, meanwhile, after = in_a_thread(work)
    assert meanwhile == allowed
    assert before == after


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_processes_share_all_processors(count: int) -> None:
    allowed = os.sched_getaffinity(0)
    shares = [processors.share(number, count) for number in range(count)]
    assert all(shares)
    assert frozenset().union(*shares) == allowed
    assert sum(map(len, shares)) == max(count, len(allowed))

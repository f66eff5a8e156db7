"""Hosts that redirects lead to: given up when they do not answer, asked again now and then."""

from __future__ import annotations

import pytest

from image_loader.errors import DownloadError
from image_loader.model import Reason
from image_loader.transport import targets
from image_loader.transport.targets import Targets


class Time:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def known(clock: Time) -> Targets:
    return Targets(3, 30.0, clock)


def is_asked(known: Targets, origin: str = "http://a") -> bool:
    try:
        known.check(origin)
    except DownloadError:
        return False
    return True


def fail(known: Targets, clock: Time, count: int) -> None:
    for _ in range(count):
        known.missed("http://a", clock.now)


def test_a_host_that_fails_often_and_for_long_is_asked_once_in_a_while(known: Targets, clock: Time) -> None:
    fail(known, clock, 3)
    clock.now = 29.9
    assert is_asked(known)
    for clock.now in (30.0, 60.0, 90.0):
        assert [is_asked(known) for _ in range(3)] == [True, False, False]
    assert is_asked(known, "http://b")
    with pytest.raises(DownloadError) as caught:
        known.check("http://a")
    assert (caught.value.failure.reason, caught.value.failure.retryable) == (Reason.HOST_DOWN, False)


def test_few_failures_are_no_reason(known: Targets, clock: Time) -> None:
    fail(known, clock, 2)
    clock.now = 1000.0
    assert all(is_asked(known) for _ in range(3))


def test_one_answer_makes_it_a_host_like_any_other(known: Targets, clock: Time) -> None:
    fail(known, clock, 9)
    clock.now = 30.0
    assert [is_asked(known) for _ in range(2)] == [True, False]
    known.answered("http://a")
    assert all(is_asked(known) for _ in range(3))


def test_what_is_remembered_is_bounded(known: Targets, clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_REMEMBERED", 5)
    for number in range(9):
        for _ in range(3):
            known.missed(f"http://{number}", clock.now)
    clock.now = 30.0
    assert [all(is_asked(known, f"http://{number}") for _ in range(2)) for number in range(9)] == [True] * 4 + [
        False
    ] * 5

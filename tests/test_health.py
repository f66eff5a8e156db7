"""Promises of what is known of a host: a busy one is asked as often as it allows, and only a dead one is given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from image_loader.scheduling.health import Health, Policy, State
from limits import LIMITS, POLICY, AtRandom, Limit, Outage, simulate

NEW = Health.unknown(POLICY, 0.0)


def settled() -> Health:
    """Return a host that answers as fast as it is asked."""
    health = NEW
    for number in range(1, 4):
        health = health.answered(0.1, 0.0, number)
    return health


def refused(health: Health, *times: float, pause: float | None = None, successes: int = 0) -> Health:
    """Return a host that refused requests which were started, and answered, at these times."""
    for time in times:
        health = health.refused(time, time, pause, successes)
    return health


def missed(health: Health, *times: float) -> Health:
    for time in times:
        health = health.missed(time, time)
    return health


@pytest.mark.parametrize("latency", [0.001, 0.05])
@pytest.mark.parametrize(("name", "make", "images"), LIMITS, ids=[name for name, *_ in LIMITS])
def test_a_host_that_limits_the_rate_gets_about_that(
    name: str, make: Callable[[], Limit], images: int, latency: float
) -> None:
    run = simulate(make(), images, latency, lambda _: None)
    assert run.left == 0
    assert run.requests <= 1.7 * images
    assert run.seconds <= 2 * make().ideal(images) + 5 * (name == "50 in 10 s")


@pytest.mark.parametrize(("share", "at_most"), [(0.05, 0.05), (0.1, 0.1), (0.2, 0.4)])
def test_a_host_that_refuses_some_requests_at_random_is_hardly_slowed_down(share: float, at_most: float) -> None:
    """A longer interval would not help: it grows with each refusal, and shrinks faster than that with the successes."""
    runs = [simulate(AtRandom(share, seed), 300, 0.05, lambda _: None) for seed in range(5)]
    assert all(run.left == 0 for run in runs)
    assert sum(run.seconds for run in runs) / sum(run.requests for run in runs) <= at_most


@pytest.mark.parametrize(("outage", "at_most"), [(2.0, 6.0), (6.0, 12.0), (20.0, 45.0)])
def test_a_host_that_is_down_for_a_while_is_hardly_asked_meanwhile(outage: float, at_most: float) -> None:
    run = simulate(Outage(outage), 300, 0.001, lambda _: None)
    assert run.left == 0
    assert run.requests <= 1.1 * 300
    assert run.seconds <= at_most


@pytest.mark.parametrize(
    ("pause", "outage"),
    [(0.0, 2.0), (1.0, 8.0), (1.0, 29.0), (60.0, 200.0)],
)
def test_a_host_that_asks_for_pauses_is_asked_when_they_are_over(pause: float, outage: float) -> None:
    run = simulate(Outage(outage), 300, 0.001, lambda _: pause)
    assert run.left == 0
    assert run.requests <= 300 + 10 + outage / max(pause, 1.0)


@pytest.mark.parametrize(("pause", "ends"), [(None, 33.0), (0.0, 32.0), (1.0, 32.0), (20.0, 101.0), (1e9, 601.0)])
def test_a_host_that_refuses_for_ever_is_given_up_after_several_pauses_and_the_patience(
    pause: float | None, ends: float
) -> None:
    run = simulate(Outage(1e9), 300, 0.001, lambda _: pause)
    assert run.left == 300
    assert 30.0 <= run.seconds <= ends
    assert run.requests <= 50


def test_a_host_that_has_let_images_through_is_given_twice_the_patience() -> None:
    times = (0.5, 0.6, 1.6, 3.6, 7.6, 15.6, 31.6)
    health = refused(settled(), *times, successes=3)
    assert not health.is_over(31.6)
    assert not refused(health, 60.4, successes=3).is_over(60.4)
    assert refused(health, 60.5, successes=3).is_over(60.5)
    assert refused(NEW, *times[:-1], 30.5).is_over(30.5)
    assert not refused(NEW, *times[:-1], 30.4).is_over(30.4)


@pytest.mark.parametrize(("asked", "kept"), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (50.0, 50.0), (1e9, 120.0)])
def test_a_pause_that_a_host_asks_for_is_a_second_at_least_and_capped(asked: float, kept: float) -> None:
    health = refused(settled(), 10.0, pause=asked)
    assert health.opens_at == 10.0 + kept
    assert health.state is State.PAUSED
    assert health.at_once == 1


def test_refusals_of_what_was_under_way_count_once() -> None:
    health = refused(settled(), 10.0)
    for _ in range(9):
        health = health.refused(10.01, 9.99, None, 3)
    assert health.refusals == 1


def test_a_longer_pause_that_is_asked_for_meanwhile_counts_and_a_shorter_one_does_not() -> None:
    health = refused(settled(), 10.0, pause=5.0)
    assert health.refused(10.01, 9.99, 20.0, 3).opens_at == pytest.approx(30.01)
    assert health.refused(10.01, 9.99, 1.0, 3).opens_at == 15.0


def test_an_answer_to_what_was_under_way_does_not_end_a_pause() -> None:
    health = refused(settled(), 10.0, pause=5.0).answered(10.01, 9.99, 4)
    assert (health.state, health.opens_at) == (State.PAUSED, 15.0)
    assert health.answered(10.5, 10.0, 5).state is State.PAUSED, "it was started when the refusal came"


def test_a_host_that_refuses_all_is_paused_for_longer_and_longer() -> None:
    health, now, pauses = settled(), 100.0, []
    for _ in range(8):
        health = refused(health, now)
        pauses.append(health.opens_at - now)
        now = health.opens_at
    assert pauses == pytest.approx([0.03, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0])


def test_two_refusals_in_a_row_lengthen_the_interval_and_no_further_one() -> None:
    once, twice, often = (refused(settled(), *times) for times in ([10.0], [10.0, 10.1], [10.0, 10.1, 11.2, 13.3]))
    assert [health.interval for health in (once, twice, often)] == pytest.approx([0.03, 0.039, 0.039])
    assert [health.limit for health in (once, twice, often)] == pytest.approx([7.0, 1.0, 1.0])


def test_refusals_one_by_one_lengthen_the_interval_up_to_two_seconds() -> None:
    health, intervals = settled(), []
    for second in range(25):
        health = refused(health, 10.0 * second)
        intervals.append(health.interval)
        health = health.answered(10.0 * second + 5, 10.0 * second + 4, 4 + second)
    assert intervals[:3] == pytest.approx([0.03, 0.03 * 0.93 * 1.3, 0.03 * (0.93 * 1.3) ** 2])
    assert intervals[-1] == pytest.approx(2.0)


def test_one_refusal_alone_leads_to_no_pause_and_each_success_gives_a_little_back() -> None:
    health = refused(settled(), 10.0).answered(10.2, 10.1, 4)
    assert health.interval == pytest.approx(0.03 * 0.93)
    assert health.limit == pytest.approx(7.0 + 0.5 / 7.0)
    assert health.opens_at == pytest.approx(10.03)


def test_after_refusals_a_host_is_asked_twice_as_often_as_it_let_requests_through_before() -> None:
    first = refused(NEW, 1.0, 1.1, successes=99).answered(2.2, 2.1, 102)
    assert first.interval == pytest.approx(0.039 * 0.93), "a hundred in two seconds: the interval is long enough"
    assert first.opens_at == pytest.approx(2.139), "an interval after the start of the one that was let through"
    second = refused(first, 3.0, 3.1, successes=190).answered(22.2, 22.1, 202)
    assert second.interval == pytest.approx(0.1 * 0.93), "a hundred in twenty seconds"
    assert second.opens_at == pytest.approx(22.2)
    third = refused(second, 23.0, 23.1, successes=210).answered(222.2, 222.1, 213)
    assert third.interval == pytest.approx(0.5 * 0.93), "eleven in two hundred seconds: half a second at most"


def test_a_host_that_let_nothing_through_before_it_refused_keeps_its_interval() -> None:
    assert refused(NEW, 1.0, 1.1).answered(2.2, 2.1, 1).interval == pytest.approx(0.039 * 0.93)


def test_one_attempt_at_least_is_allowed_at_a_host_that_refuses() -> None:
    alone = Health.unknown(Policy(1, 5, 30.0, 120.0), 0.0)
    assert refused(alone, 1.0).limit == 1.0


def test_a_host_that_is_spared_is_asked_again_slowly() -> None:
    health = refused(settled(), 10.0, 10.1, 11.2).spared()
    assert (health.state, health.refusals, health.at_once) == (State.SLOWED, 0, 1)
    assert health.interval > 0


def test_an_interval_that_has_become_very_short_is_none() -> None:
    health = refused(settled(), 10.0)
    intervals = []
    while health.interval:
        intervals.append(health.interval)
        health = health.answered(20.0, 19.0, 4)
    assert 0.004 <= intervals[-1] < 0.0044


def test_a_host_that_answers_is_asked_by_four_times_as_many_with_each_answer() -> None:
    health, seen = Health.unknown(Policy(100, 5, 30.0, 120.0), 0.0), []
    for number in range(1, 5):
        seen.append(health.at_once)
        health = health.answered(0.1, 0.0, number)
    assert seen == [3, 12, 48, 100]


def test_a_success_after_refusals_lets_a_host_be_asked_faster_again() -> None:
    health = refused(settled(), 10.0, 10.1, 11.2)
    slowed = health.answered(13.3, 13.2, 4)
    assert slowed.state is State.SLOWED
    assert 0 < slowed.interval <= 2.0
    for number in range(5, 300):
        now = max(slowed.opens_at, 13.3) + 0.01
        slowed = slowed.started(now).answered(now, now, number)
    assert slowed.state is State.READY
    assert (slowed.interval, slowed.at_once) == (0.0, POLICY.per_host)


def test_a_host_begins_with_few_attempts_at_once_and_gets_more_with_each_answer() -> None:
    seen, health = [NEW.at_once], NEW
    for number in range(1, 3):
        health = health.answered(0.1, 0.0, number)
        seen.append(health.at_once)
    assert seen == [3, 10, 10]
    assert health.is_settled
    assert Health.unknown(Policy(1, 5, 30.0, 120.0), 0.0).at_once == 1


def test_a_host_that_does_not_answer_is_probed_at_growing_intervals() -> None:
    health = missed(NEW, 0.0, 0.1, 0.2, 0.3)
    assert health.state is State.READY
    seen = []
    now = 0.4
    for _ in range(6):
        health = health.missed(now, now)
        seen.append(round(health.opens_at - now, 3))
        now = health.opens_at
    assert seen == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert (health.state, health.at_once) == (State.PROBING, 1)


def test_failures_of_what_was_under_way_do_not_lengthen_the_interval() -> None:
    health = missed(NEW, *[0.0] * 5)
    assert missed(health, *[0.1] * 4).opens_at == health.opens_at


def test_a_host_that_does_not_answer_is_given_up_after_the_patience_and_not_before() -> None:
    health = missed(NEW, *[10.0] * 5)
    assert not health.is_over(39.9)
    assert health.is_over(40.0)
    assert not missed(NEW, *[10.0] * 4).is_over(1000.0)


def test_the_patience_begins_when_a_pause_is_over_that_the_host_asked_for() -> None:
    health = missed(refused(settled(), 0.0, pause=60.0), *[1.0] * 5)
    assert not health.is_over(89.0)
    assert health.is_over(90.0)


@pytest.mark.parametrize("event", ["answered", "reached", "refused"])
def test_any_answer_makes_a_host_that_did_not_answer_one_that_does(event: str) -> None:
    health = missed(NEW, *[0.0] * 7)
    match event:
        case "answered":
            again = health.answered(5.0, 4.9, 1)
        case "refused":
            again = health.refused(5.0, 4.9, None, 0)
        case _:
            again = health.reached()
    assert again.misses == 0
    assert again.state is not State.PROBING
    assert not again.is_over(31.0)


def test_a_host_that_was_given_up_is_asked_again_after_the_patience() -> None:
    health = missed(NEW, *[0.0] * 5).given_up(30.0)
    assert (health.state, health.ask_at, health.at_once) == (State.DOWN, 60.0, 1)
    assert health.missed(61.0, 60.0) == health
    assert health.asked(60.0).ask_at == 90.0
    back = health.answered(61.0, 60.0, 1)
    assert (back.state, back.at_once) == (State.READY, 4)


def test_a_busy_host_that_was_given_up_and_answers_is_asked_slowly() -> None:
    health = refused(settled(), *[10.0 + number for number in range(7)]).given_up(50.0)
    assert (health.state, health.refusals) == (State.DOWN, 0)
    back = health.answered(81.0, 80.0, 4)
    assert (back.state, back.at_once, back.limit) == (State.SLOWED, 1, 1.5)


def test_without_patience_a_host_that_was_given_up_is_left_alone_as_long_as_one_that_is_probed() -> None:
    assert Health.unknown(Policy(10, 5, 0.0, 120.0), 0.0).given_up(0.0).ask_at == 8.0


def test_it_is_told_when_to_look_again() -> None:
    assert settled().wakes_at(1.0) is None
    assert refused(settled(), 1.0, pause=5.0).wakes_at(1.0) == 6.0
    probed = missed(NEW, *[0.0] * 5)
    assert probed.wakes_at(0.5) == 1.0
    assert probed.wakes_at(1.0) == 30.0


# A delay that the user wants -----------------------------------------------------------------------------------------

SLOWLY = POLICY._replace(delay=3.0)


def test_without_a_delay_there_is_no_interval() -> None:
    assert NEW.interval == settled().interval == 0.0
    assert NEW.started(5.0) is NEW


def test_a_delay_is_the_least_interval_whatever_happens() -> None:
    health = Health.unknown(SLOWLY, 0.0)
    assert health.interval == 3.0
    for number in range(1, 20):
        health = health.started(4.0 * number)
        assert health.opens_at == 4.0 * number + 3.0
        health = health.answered(4.0 * number + 1, 4.0 * number, number)
        assert health.interval == 3.0
    assert health.is_settled
    assert health.state is State.READY
    assert refused(health, 100.0, 101.0, 102.0).interval >= 3.0
    assert refused(health, 100.0, 101.0).answered(110.0, 109.0, 21).interval >= 3.0


def test_a_refusal_makes_the_interval_longer_than_a_short_delay() -> None:
    health = Health.unknown(POLICY._replace(delay=0.01), 0.0)
    slower = refused(health, 1.0, 2.0)
    assert slower.interval > 0.01
    for number in range(1, 200):
        slower = slower.answered(3.0 + number, 2.5 + number, number)
    assert slower.interval == 0.01


def test_a_host_that_does_not_answer_is_probed_at_growing_intervals_with_a_delay_as_well() -> None:
    health = Health.unknown(POLICY._replace(delay=0.5), 0.0)
    for second in range(POLICY.failures):
        health = health.started(float(second)).missed(second + 0.1, float(second))
    assert health.state is State.PROBING
    assert health.probe_at > health.next_at

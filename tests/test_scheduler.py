"""The scheduler's rules, by a clock and an executor that the test moves by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from conftest import SETTINGS
from image_loader.errors import DirectoryError
from image_loader.model import Blame, Failure, Job, Locked, Name, Reason, Result, Validators
from image_loader.scheduling import scheduler
from image_loader.scheduling.scheduler import Scheduler, Task
from image_loader.url import parse

ANSWER = Locked("another run is downloading it")
RESET = Failure(Reason.CONNECT, "reset", retryable=True, blame=Blame.HOST)
BUSY = Failure(Reason.HTTP_STATUS, "HTTP status 503", 503, retryable=True)
EXHAUSTED = Failure(Reason.CONNECT, "too many open files", retryable=True, blame=Blame.PROCESS)
GONE = Failure(Reason.HTTP_STATUS, "HTTP status 410", 410)


@dataclass
class Turn:
    """What the executor was given, and once it has begun, in its first attempt until the test lets it end."""

    work: Callable[[], Any]
    turn: Any
    future: Future[Any] = field(default_factory=Future)

    def begin(self, now: float) -> None:
        self.turn.current, self.turn.begun = self.turn._waiting.popleft(), now

    @property
    def jobs(self) -> Sequence[Job]:
        return [task.job for task in (self.turn.current, *self.turn._waiting)]

    def attempt(self) -> None:
        """Do the work, and leave the future open, as in the moment before a thread is done."""
        self.turn._waiting.appendleft(self.turn.current)
        self.work()

    def end(self) -> None:
        try:
            self.attempt()
            self.future.set_result(None)
        except Exception as error:  # noqa: BLE001 (what an executor does)
            self.future.set_exception(error)


@dataclass
class House(Executor):
    """A scheduler, its executor and its clock, all in the test's hand."""

    changes: dict[str, Any] = field(default_factory=dict)
    now: float = 0.0
    ahead: list[Turn] = field(default_factory=list)
    running: list[Turn] = field(default_factory=list)
    finished: list[Task] = field(default_factory=list)
    most_handed_over: int = 0
    result: Result | Exception = ANSWER
    pace: float = 0.0
    meanwhile: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.settings = SETTINGS._replace(**{"retries": 2, **self.changes})
        self.scheduler = Scheduler(self, self.attempt, self.settings, clock=lambda: self.now, jitter=lambda: 1.0)

    def attempt(self, _: Job) -> Result:
        self.now += self.pace
        self.meanwhile()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        turn = Turn(partial(work, *args, **options), work.__self__)  # type: ignore[attr-defined]
        self.ahead.append(turn)
        self.most_handed_over = max(self.most_handed_over, len(self.running) + len(self.ahead))
        self.begin()
        return turn.future

    def begin(self) -> None:
        """Have the threads that are free go on with what waits for them."""
        while self.ahead and len(self.running) < self.settings.threads:
            self.running.append(self.ahead.pop(0))
            self.running[-1].begin(self.now)

    def add(self, *urls: str) -> None:
        name = Name("n", complete=True)
        self.scheduler.add(
            [Job(len(self.finished), parse(url), 1, name, None, Validators(), inode=None) for url in urls]
        )
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.finished += self.scheduler.advance(0.0)

    def answer(self, result: Result | Exception = ANSWER, host: str = "") -> None:
        """Let the oldest turn that runs (on ``host``) come to its end, each attempt with ``result``."""
        self.result = result
        index = next(i for i, turn in enumerate(self.running) if host in turn.jobs[0].url.origin)
        self.running.pop(index).end()
        self.begin()
        self.advance(0)

    def on(self, host: str) -> int:
        return sum(host in turn.jobs[0].url.origin for turn in self.running)

    def reasons(self) -> list[Reason]:
        return [end.result.reason for end in self.finished if isinstance(end.result, Failure)]


def asks_for(pause: float) -> Failure:
    return BUSY._replace(retry_after=pause)


def urls(host: str, count: int) -> list[str]:
    return [f"http://{host}/{number}.jpg" for number in range(count)]


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (3, 3), (8, 10)])
def test_no_more_is_handed_over_at_once_than_the_threads_and_a_quarter_ahead(threads: int, most: int) -> None:
    house = House({"threads": threads})
    house.add(*(f"http://host{number}/a.jpg" for number in range(20)))
    while house.running:
        house.answer()
    assert house.most_handed_over == most
    assert len(house.finished) == 20


def test_a_host_never_has_more_attempts_than_its_limit_and_reaches_it_as_it_answers() -> None:
    house = House()
    house.add(*urls("host", 40))
    seen = []
    while house.running:
        seen.append(len(house.running))
        house.answer()
    assert seen[0] == 3
    assert max(seen) == 4


def test_a_full_host_does_not_hold_up_the_hosts_behind_it() -> None:
    house = House()
    house.add(*urls("slow", 50), "http://other/a.jpg")
    assert house.on("other") == 1


def test_hosts_take_turns() -> None:
    house = House({"threads": 4})
    house.add(*urls("one", 500))
    house.add(*urls("two", 500))
    for _ in range(20):
        house.answer()
    assert house.on("two") == 2


def test_a_passing_failure_is_tried_again_after_growing_pauses_and_then_told() -> None:
    house = House()
    house.add("http://host/a.jpg")
    starts = []
    while not house.finished:
        if house.running:
            starts.append(house.now)
            house.answer(BUSY)
        else:
            house.advance(0.25)
    assert starts == [0.0, 1.0, 3.0]
    assert house.finished[0].attempts == 3
    assert house.reasons() == [Reason.HTTP_STATUS]


def test_a_final_failure_is_told_after_one_attempt() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.answer(GONE)
    assert [end.attempts for end in house.finished] == [1]


def test_a_waiting_retry_occupies_no_thread() -> None:
    house = House({"threads": 1})
    house.add("http://host/a.jpg", "http://other/b.jpg")
    house.answer(BUSY, "host")
    assert house.on("other") == 1


def test_retry_after_pauses_the_whole_host_but_no_other() -> None:
    house = House()
    house.add(*urls("host", 4), "http://other/b.jpg")
    house.answer(asks_for(20.0), "host")
    while house.on("host"):
        house.answer(host="host")
    house.advance(19.0)
    assert house.on("host") == 0
    assert house.on("other") == 1
    house.advance(1.0)
    assert house.on("host") > 0


def busy_host(retry_after: float) -> House:
    """Return a house whose one host has just asked for a pause, while seven other attempts at it are under way."""
    house = House({"per_host": 8, "retries": 100}, pace=0.05)
    house.add(*urls("host", 40))
    house.answer()
    house.answer(asks_for(retry_after))
    assert house.on("host") == 7
    return house


def test_retry_after_holds_whatever_failed_and_was_answered_since() -> None:
    house = busy_host(20.0)
    for result in (RESET, RESET, RESET, ANSWER, RESET, ANSWER, ANSWER):
        house.answer(result)
    assert house.on("host") == 0
    house.advance(19.5)
    assert house.on("host") == 0
    house.advance(0.5)
    assert house.on("host") > 1


def test_the_patience_with_a_host_begins_at_the_end_of_the_pause_that_it_asked_for() -> None:
    house = busy_host(60.0)
    while house.running:
        house.answer(RESET)
    house.advance(59.5)
    assert not house.running
    house.advance(0.5)
    assert house.running
    until = house.now + 29.0
    while house.now < until:
        while house.running:
            house.answer(RESET)
        house.advance(0.25)
    assert not house.reasons()
    while house.running:
        house.answer(RESET)
    house.advance(2.0)
    assert set(house.reasons()) == {Reason.HOST_DOWN}
    assert house.scheduler.pending == 0


def test_a_pause_that_a_host_asks_for_is_kept_by_one_that_is_probed() -> None:
    house = House({"retries": 100})
    house.add(*urls("flaky", 10))
    while house.running:
        house.answer(RESET)
    house.advance(1.0)
    house.answer(asks_for(20.0))
    house.advance(19.0)
    assert not house.running
    house.advance(1.0)
    assert house.running


def test_what_another_host_asks_for_holds_for_that_image_alone() -> None:
    house = House({"threads": 1})
    house.add(*urls("host", 3))
    house.answer(asks_for(20.0)._replace(blame=Blame.OTHER_HOST))
    house.answer()
    house.answer()
    house.advance(19.5)
    assert not house.running
    house.advance(0.5)
    assert house.on("host") == 1


def test_another_host_that_fails_is_no_failure_of_this_one() -> None:
    house = House({"retries": 0})
    house.add(*urls("host", 30))
    for _ in range(9):
        house.answer(RESET._replace(blame=Blame.OTHER_HOST))
        house.advance(10.0)
    house.answer()
    assert house.reasons() == [Reason.CONNECT] * 9
    assert house.on("host") > 1


def test_a_host_that_asks_for_pause_after_pause_is_given_up() -> None:
    house = House({"retries": 10})
    house.add(*urls("busy", 40))
    pauses = 0
    while house.scheduler.pending and pauses < 10:
        while house.running:
            house.answer(asks_for(60.0))
        pauses += 1
        house.advance(60.0)
    assert pauses == 4
    assert set(house.reasons()) == {Reason.HTTP_STATUS, Reason.HOST_DOWN}
    house.add(*urls("busy", 5))
    assert house.reasons()[40:] == [Reason.HOST_DOWN] * 4, "so does the rest of the list, but for one that is tried"


def test_images_between_its_pauses_keep_a_host_from_being_given_up() -> None:
    house = House({"retries": 10, "per_host": 1})
    house.add(*urls("busy", 40))
    while house.scheduler.pending:
        house.answer(asks_for(60.0))
        house.advance(60.0)
        house.answer()
    assert house.reasons() == []


def test_retry_after_is_capped() -> None:
    house = House({"retries": 5})
    house.add("http://host/a.jpg")
    house.answer(asks_for(1e9))
    house.advance(119.0)
    assert not house.running
    house.advance(1.0)
    assert house.running


def test_a_host_that_never_answers_is_asked_by_one_job_at_a_time() -> None:
    house = House()
    house.add(*urls("dead", 20))
    while house.running:
        house.answer(RESET)
    assert house.scheduler.pending == 20
    house.advance(1.0)
    assert house.on("dead") == 1


def test_a_host_that_is_down_fails_its_jobs_at_once_after_the_patience_and_not_before() -> None:
    house = House({"retries": 100})
    house.add(*urls("dead", 20))
    while house.now < 29.5:
        while house.running:
            house.answer(RESET)
        house.advance(0.5)
    assert not house.finished
    while house.running:
        house.answer(RESET)
    house.advance(1.0)
    assert house.reasons() == [Reason.HOST_DOWN] * 20
    house.add("http://dead/late.jpg")
    assert house.reasons() == [Reason.HOST_DOWN] * 21


def test_one_answer_brings_a_failing_host_back() -> None:
    house = House({"retries": 100})
    house.add(*urls("flaky", 30))
    for _ in range(3):
        house.answer(RESET)
    house.advance(1.0)
    house.answer()
    assert house.on("flaky") > 1
    house.advance(40.0)
    assert Reason.HOST_DOWN not in house.reasons()


def test_an_answer_ends_the_pause_of_a_host_that_is_probed() -> None:
    house = House()
    house.add(*urls("flaky", 30))
    house.answer()
    for _ in range(3):
        house.answer(RESET)
    assert house.on("flaky") == 1
    house.answer()
    assert house.on("flaky") > 1


def given_up(**changes: Any) -> House:
    """Return a house whose one host was given up a moment ago."""
    house = House({"host_failures": 1, "host_patience": 30.0, "retries": 0, **changes})
    house.add("http://dead/first.jpg")
    house.answer(RESET)
    house.advance(30.0)
    assert house.scheduler.verdict("http://dead") is not None
    return house


def test_a_host_that_was_given_up_is_asked_by_one_job_each_time_the_patience_is_over() -> None:
    house = given_up(retries=2)
    asked = []
    for _ in range(1000):
        house.add(*urls("dead", 3))
        if house.running:
            asked.append(house.now)
            assert house.on("dead") == 1
            house.answer(RESET)
        assert house.scheduler.pending == 0
        house.advance(0.1)
    assert asked == pytest.approx([60.0, 90.0, 120.0], abs=0.2)
    assert house.reasons().count(Reason.CONNECT) == 3
    assert house.reasons().count(Reason.HOST_DOWN) == 1 + 3 * 1000 - 3


def test_the_verdict_on_a_host_that_was_given_up_is_lifted_for_one_job() -> None:
    house = given_up()
    verdict = house.scheduler.verdict("http://dead")
    assert verdict is not None
    assert verdict.reason is Reason.HOST_DOWN
    house.advance(30.0)
    assert house.scheduler.verdict("http://dead") is None
    house.add("http://dead/a.jpg")
    assert house.scheduler.verdict("http://dead") is not None


def test_a_host_that_was_given_up_and_answers_is_one_like_any_other() -> None:
    house = given_up()
    house.advance(30.0)
    house.add(*urls("dead", 10))
    assert house.reasons() == [Reason.CONNECT] + [Reason.HOST_DOWN] * 9
    house.answer(GONE)
    assert house.scheduler.verdict("http://dead") is None
    house.add(*urls("dead", 10))
    while house.running:
        house.answer()
    assert len(house.finished) == 21
    assert house.reasons().count(Reason.HOST_DOWN) == 9


def test_a_host_that_was_given_up_is_asked_by_no_second_job_while_the_first_one_waits_for_its_answer() -> None:
    house = given_up()
    house.advance(30.0)
    house.add("http://dead/a.jpg")
    house.advance(100.0)
    house.add("http://dead/b.jpg")
    assert house.reasons()[-1] is Reason.HOST_DOWN
    house.answer(RESET)
    house.add("http://dead/c.jpg")
    assert house.on("dead") == 1


def test_a_host_that_was_given_up_and_asks_for_a_pause_gets_it() -> None:
    house = given_up(retries=2)
    house.advance(30.0)
    house.add("http://dead/a.jpg")
    house.answer(asks_for(20.0))
    house.add("http://dead/b.jpg")
    house.advance(19.0)
    assert not house.running
    house.advance(1.0)
    assert house.on("dead") == 2


def test_without_any_patience_a_host_that_was_given_up_is_asked_no_more_often_than_one_that_is_probed() -> None:
    house = House({"host_failures": 1, "host_patience": 0.0, "retries": 0})
    house.add("http://dead/a.jpg")
    house.answer(RESET)
    house.advance(7.5)
    house.add("http://dead/b.jpg")
    assert not house.running
    house.advance(0.5)
    house.add("http://dead/c.jpg")
    assert house.running


def test_out_of_descriptors_lowers_the_number_of_threads_and_costs_no_attempt() -> None:
    house = House({"retries": 0})
    house.add(*(f"http://host{number}/a.jpg" for number in range(8)))
    house.answer(EXHAUSTED)
    while len(house.finished) < 8:
        if house.running:
            assert len(house.running) <= 7
            house.answer()
        else:
            house.advance(1.0)
    assert not house.reasons()
    assert {end.attempts for end in house.finished} == {1}


def test_threads_that_run_out_of_descriptors_together_count_as_one() -> None:
    house = House()
    house.add(*(f"http://host{number}/a.jpg" for number in range(100)))
    for _ in range(5):
        house.answer(EXHAUSTED)
    for _ in range(10):
        house.answer()
    assert len(house.running) == 6


def test_the_number_of_threads_grows_again_once_descriptors_suffice() -> None:
    house = House()
    house.add(*(f"http://host{number}/a.jpg" for number in range(500)))
    house.answer(EXHAUSTED)
    seen = []
    for _ in range(400):
        house.answer()
        seen.append(len(house.running))
    assert set(seen[5:110]) == {6}
    assert seen[5:] == sorted(seen[5:])
    assert seen[-1] == 8
    house.advance(1.0)
    while house.running:
        house.answer()
    assert len(house.finished) == 500
    assert not house.reasons()


def test_out_of_descriptors_with_nothing_else_running_is_a_failure_like_any_other() -> None:
    house = House({"threads": 1})
    house.add("http://host/a.jpg")
    while not house.finished:
        if house.running:
            house.answer(EXHAUSTED)
        else:
            house.advance(1.0)
    assert house.finished[0].attempts == 3


def test_what_ends_the_run_is_kept_and_the_other_results_are_not_lost() -> None:
    house = House()
    house.add("http://one/a.jpg", "http://two/b.jpg")
    house.answer(DirectoryError("full"))
    house.answer()
    assert isinstance(house.scheduler.error, DirectoryError)
    assert [end.result for end in house.finished][1] is ANSWER


def test_a_surprise_in_a_worker_is_raised() -> None:
    house = House()
    house.add("http://one/a.jpg")
    with pytest.raises(ZeroDivisionError):
        house.answer(ZeroDivisionError())


def test_abandoned_jobs_are_all_accounted_for() -> None:
    house = House({"threads": 1})
    house.add(*urls("host", 5), "http://other/a.jpg")
    house.answer(BUSY)
    house.finished += house.scheduler.abandon()
    house.running.pop().end()
    house.finished += house.scheduler.settle(0)
    assert len(house.finished) == 6
    assert house.scheduler.pending == 0


def test_jobs_that_wait_in_a_turn_are_abandoned_too() -> None:
    house = House({"per_host": 1})
    house.add(*urls("near", 20))
    house.answer()
    house.finished += house.scheduler.abandon()
    assert house.reasons() == [Reason.INTERRUPTED] * 18
    house.answer()
    assert len(house.finished) == 20


def test_attempts_that_do_not_end_are_forsaken_once() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.finished += house.scheduler.abandon()
    house.finished += house.scheduler.forsake()
    assert house.reasons() == [Reason.INTERRUPTED]
    assert house.scheduler.forsake() == []


def test_hosts_that_are_done_are_forgotten() -> None:
    house = House()
    for number in range(50):
        house.add(f"http://host{number}/a.jpg")
        house.answer()
    assert house.scheduler._hosts == {}


@pytest.mark.parametrize("remembered", ["_hosts", "_down"])
def test_no_more_hosts_that_failed_are_remembered_than_told(monkeypatch: pytest.MonkeyPatch, remembered: str) -> None:
    monkeypatch.setattr(scheduler, "_HOSTS_REMEMBERED", 5)
    # Without any patience they are given up, else they have failed once.
    house = House({"retries": 0, **({"host_failures": 1, "host_patience": 0.0} if remembered == "_down" else {})})
    for number in range(50):
        house.add(f"http://host{number}/a.jpg")
        house.answer(RESET)
    assert len(house.finished) == 50
    assert len(getattr(house.scheduler, remembered)) == 5


def test_jobs_of_a_near_host_are_taken_in_turns() -> None:
    house = House({"per_host": 1})
    house.add(*urls("near", 100))
    sizes = []
    while house.running:
        sizes.append(len(house.running[0].jobs))
        house.answer()
    assert sizes == [1, 16, 16, 16, 16, 16, 16, 3]
    assert len(house.finished) == 100


def test_the_last_jobs_of_a_host_are_shared_among_its_threads() -> None:
    house = House({"per_host": 4})
    house.add(*urls("near", 20))
    house.answer()
    assert [len(turn.jobs) for turn in house.running] == [1, 1, 9, 8]


def test_jobs_of_a_far_host_are_taken_singly() -> None:
    house = House({"per_host": 1}, pace=0.05)
    house.add(*urls("far", 10))
    while house.running:
        assert len(house.running[0].jobs) == 1
        house.answer()
    assert len(house.finished) == 10


def test_a_turn_goes_on_where_its_host_may_have_no_more_and_no_other_waits() -> None:
    house = House({"per_host": 1}, pace=0.05)
    house.add(*urls("far", 10))
    house.answer()
    house.meanwhile = lambda: house.advance(0)
    house.answer()
    assert len(house.finished) == 10
    assert not house.running


def test_a_turn_does_not_go_on_while_another_host_waits() -> None:
    house = House({"per_host": 1, "threads": 1}, pace=0.05)
    house.add(*urls("one", 10))
    house.answer()
    house.add("http://two/a.jpg")
    house.meanwhile = lambda: house.advance(0)
    house.answer(host="one")
    assert len(house.finished) == 2
    assert house.on("two") == 1


def test_a_turn_does_not_go_on_with_a_host_that_is_paused() -> None:
    house = House({"per_host": 2}, pace=0.05)
    house.add(*urls("far", 20))
    house.answer()
    last = house.running.pop()
    house.answer(asks_for(20.0))
    house.result = ANSWER
    house.meanwhile = lambda: house.advance(0)
    last.end()
    house.advance(0)
    assert len(house.finished) == 2
    assert not house.running


def test_it_is_told_how_long_nothing_can_come() -> None:
    house = House()
    house.add(*urls("host", 1))
    assert house.scheduler.waits() == 0
    house.answer(asks_for(20.0))
    house.advance(1.0)
    assert house.scheduler.waits() == 19
    house.add(*urls("other", 1))
    assert house.scheduler.waits() == 0


def test_what_waits_in_a_turn_when_its_host_is_paused_waits_with_the_others() -> None:
    house = House({"per_host": 2})
    house.add(*urls("near", 100))
    house.answer()
    house.answer(asks_for(20.0))
    while house.running:
        assert len(house.running[0].jobs) == 1
        house.answer()
    house.advance(19.0)
    assert not house.running
    house.advance(1.0)
    assert house.running


def test_a_quarter_of_the_threads_never_wait_to_be_told_what_is_next() -> None:
    house = House({"threads": 8})
    house.add(*(f"http://host{number}/a.jpg" for number in range(50)))
    assert len(house.running) == 8
    assert len(house.ahead) == 2


def test_none_is_ahead_once_descriptors_ran_out() -> None:
    house = House({"threads": 8})
    house.add(*(f"http://host{number}/a.jpg" for number in range(50)))
    house.answer(EXHAUSTED)
    for _ in range(10):
        house.answer()
    assert len(house.running) == 6


def test_jobs_behind_a_slow_one_are_recalled_and_run_elsewhere() -> None:
    house = House({"per_host": 2})
    house.add(*urls("host", 100))
    while len(house.running[0].jobs) < 8:
        house.answer()
    stuck = house.running.pop(0)
    house.advance(1.0)
    while house.running:
        house.answer()
    assert len(house.finished) == 99
    stuck.end()
    house.advance(0)
    assert len(house.finished) == 100


def test_what_has_ended_is_told_before_its_turn_is_over() -> None:
    house = House({"per_host": 1})
    house.add(*urls("host", 40))
    while len(house.running[0].jobs) < 8:
        house.answer()
    told = []

    def note() -> None:
        house.advance(0)
        told.append(len(house.finished))

    house.meanwhile = note
    before = len(house.finished)
    house.answer()
    assert told == [*range(before, 40)]


def test_a_turn_ends_with_its_first_failure_and_the_rest_of_it_waits_on() -> None:
    house = House({"per_host": 1, "retries": 0})
    house.add(*urls("host", 40))
    while len(house.running[0].jobs) < 8:
        house.answer()
    before = len(house.finished)
    house.answer(asks_for(5.0))
    assert len(house.finished) == before + 1
    assert not house.running
    house.advance(5.0)
    while house.running:
        house.answer()
    assert len(house.finished) == 40
    assert [end.job.url.path for end in house.finished][before + 1] == f"/{before + 1}.jpg"


def test_a_host_whose_last_job_is_told_before_its_turn_is_over_is_forgotten_all_the_same() -> None:
    house = House()
    house.add("http://host/a.jpg")
    held = house.running[0]
    held.attempt()
    house.advance(0)
    assert len(house.finished) == 1
    held.future.set_result(None)
    house.advance(0)
    assert house.scheduler._hosts == {}


def test_a_timer_of_a_host_that_was_forgotten_leaves_its_successor_alone() -> None:
    house = House({"per_host": 1})
    house.add("http://host/a.jpg")
    house.answer(RESET)
    house.advance(1.0)
    house.answer()
    assert house.scheduler._hosts == {}
    house.add("http://host/b.jpg")
    house.advance(40.0)
    house.add("http://host/c.jpg")
    assert house.on("host") == 1

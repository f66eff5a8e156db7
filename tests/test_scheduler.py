"""The scheduler's rules, by a clock and an executor that the test moves by hand."""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from queue import SimpleQueue
from types import FunctionType, ModuleType
from typing import Any

import pytest

from conftest import SETTINGS
from image_loader.errors import DirectoryError, DownloadError, OutOfThreadsError
from image_loader.inbox import Inbox
from image_loader.model import (
    SAVED_BEFORE,
    Blame,
    Failure,
    Hop,
    Job,
    Locked,
    Name,
    Reason,
    Result,
    Resume,
    Validators,
)
from image_loader.scheduling.dispatch import Connected, Dispatch, Message, close_delivered
from image_loader.scheduling.host import Task
from image_loader.scheduling.scheduler import Scheduler
from image_loader.scheduling.workers import Turn
from image_loader.transport import Connection
from image_loader.url import parse

ANSWER = Locked("another run is downloading it")
RESET = Failure(Reason.CONNECT, "reset", retryable=True, blame=Blame.HOST)
BUSY = Failure(Reason.HTTP_STATUS, "HTTP status 503", 503, retryable=True, blame=Blame.HOST)
FAULTY = Failure(Reason.HTTP_STATUS, "HTTP status 500", 500, retryable=True)
STOPPED = Failure(Reason.DEADLINE, "not done in time", stopped=True)
OUT_OF_DESCRIPTORS = Failure(Reason.CONNECT, "too many open files", retryable=True, blame=Blame.PROCESS)
GONE = Failure(Reason.HTTP_STATUS, "HTTP status 410", 410)


class Messages(Inbox[Message]):
    """The scheduler's inbox; it notes for how long the scheduler would wait, and does not let it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def get(self, timeout: float) -> Message:
        self.waits.append(timeout)
        return self.get_nowait()


class Link:
    """A connection that stands, to nowhere."""

    usable = True
    alive = True
    closed = False
    seconds = 0.0

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def close(self) -> None:
        self.usable = self.alive = False
        self.closed = True


class Worker:
    """A thread that makes the attempts of one turn; each waits for the test to say how it ends."""

    def __init__(self, house: House, work: Callable[[], None]) -> None:
        self.attempts: list[Job] = []
        self.is_over = False
        self._house = house
        self._asks: SimpleQueue[Job | None] = SimpleQueue()
        self._answers: SimpleQueue[Result | Job | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        house.workers[self._thread] = self
        self._thread.start()
        self._wait()

    @property
    def job(self) -> Job:
        return self.attempts[-1]

    def attempt(self, job: Job, connection: Any) -> Result | Job:
        self._asks.put(job)
        result = self._answers.get()
        connection.usable = not self._house.spend_connections
        if isinstance(result, Exception):
            raise result
        return result

    def answer(self, result: Result | Job | Exception) -> None:
        """Let the attempt that is under way end, and the next one begin."""
        self._answers.put(result)
        self._wait()

    def _run(self, work: Callable[[], None]) -> None:
        with suppress(Exception):  # An executor keeps it as well.
            work()
        self._asks.put(None)

    def _wait(self) -> None:
        job = self._asks.get()
        if job is None:
            self.is_over = True
            self._thread.join()
        else:
            self.attempts.append(job)


class House:
    """A scheduler with its workers, its connections and its clock, all in the test's hand."""

    def __init__(self, changes: Mapping[str, Any] | None = None, pace: float = 0.0, chance: float = 1.0) -> None:
        self.settings = SETTINGS._replace(**{"retries": 2, **(changes or {})})
        self.pace = pace
        self.now = 0.0
        self.ahead: list[Callable[[], None]] = []
        self.workers: dict[threading.Thread, Worker] = {}
        self.running: list[Worker] = []
        self.finished: list[Task] = []
        self.most_handed_over = 0
        self.connected: list[str] = []
        self.silent: set[str] = set()
        self.refusing: dict[str, Failure] = {}
        self.connecting: list[tuple[str, float]] = []
        self.kept: list[Connection] = []
        self.links: list[Link] = []
        self.spend_connections = False
        self.submit_error: Exception | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.at_clock: Callable[[], None] = lambda: None
        self.inbox = Messages()
        dispatch = Dispatch(self, self._attempt, self, self.inbox, self.settings, clock=self._clock)
        self.scheduler = Scheduler(dispatch, self.settings, chance=lambda: chance)

    def _clock(self) -> float:
        if threading.current_thread() in self.workers:
            at_clock, self.at_clock = self.at_clock, lambda: None
            at_clock()
        return self.now

    def _attempt(self, job: Job, connection: Connection) -> Result | Job:
        return self.workers[threading.current_thread()].attempt(job, connection)

    @property
    def hosts_in_memory(self) -> int:
        """How many hosts the scheduler holds anything of: their origins, wherever they stand."""
        found: set[str] = set()
        seen = {id(self)}
        left: list[object] = [self.scheduler]
        while left:
            each = left.pop()
            if isinstance(each, str):
                found |= {each} if re.fullmatch("http://[^/]+", each) else set()
            elif id(each) not in seen and not isinstance(each, type | ModuleType | FunctionType):
                seen.add(id(each))
                left += gc.get_referents(each)
                left += each if isinstance(each, dict) else ()  # The collector passes over keys that are text.
        return len(found)

    # What the scheduler uses.

    def submit(self, work: Callable[[], None]) -> None:
        if self.submit_error is not None:
            raise self.submit_error
        self.ahead.append(work)
        self.most_handed_over = max(self.most_handed_over, len(self.running) + len(self.ahead))
        self.begin()

    def connect(self, origin: str) -> None:
        self.connecting.append((origin, self.now))
        if origin not in self.silent:
            self.come(origin)

    def take(self, origin: str) -> Connection | None:
        kept = next((each for each in self.kept if each.origin == origin), None)
        if kept is not None:
            self.kept.remove(kept)
        return kept

    def give_back(self, connection: Connection) -> None:
        self.kept.append(connection)

    def drop_idle(self) -> bool:
        kept, self.kept = self.kept, []
        for connection in kept:
            connection.close()
        return bool(kept)

    # What the test uses.

    def come(self, origin: str, result: Failure | None = None) -> None:
        """Let the oldest connection to an origin that is being made come to its end."""
        pending = next(each for each in self.connecting if each[0] == origin)
        self.connecting.remove(pending)
        self.connected.append(origin)
        failure = result or self.refusing.get(origin)
        link: Any = Link(origin) if failure is None else _error(failure)
        if isinstance(link, Link):
            self.links.append(link)
        self.inbox.put(Connected(origin, link, pending[1]))

    def begin(self) -> None:
        """Have the workers that are free go on with what waits for them."""
        while self.ahead and len(self.running) < self.settings.threads:
            self.running.append(Worker(self, self.ahead.pop(0)))

    def add(self, *urls: str) -> None:
        name = Name("n", complete=True)
        self.scheduler.add(
            [Job(len(self.finished), parse(url), 1, name, None, Validators(), inode=None) for url in urls]
        )
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(3):
            self.finished += self.scheduler.advance(0.0)

    def answer(self, result: Result | Job | Exception = ANSWER, host: str = "") -> int:
        """Let the oldest turn that runs (on ``host``) end, each attempt with ``result``; return how many there were."""
        worker = next(worker for worker in self.running if host in asked(worker.job))
        begun = len(worker.attempts)
        while not worker.is_over:
            self.now += self.pace
            self.meanwhile()
            worker.answer(result)
        self.running.remove(worker)
        self.begin()
        self.advance(0)
        return len(worker.attempts) - begun + 1

    def answer_all(self) -> None:
        """Let the attempt that each worker makes end."""
        for worker in self.running:
            if not worker.is_over:
                worker.answer(ANSWER)

    def step(self, result: Result | Job = ANSWER, host: str = "") -> None:
        """Let one attempt end, and its turn go on."""
        worker = next(worker for worker in self.running if host in asked(worker.job))
        self.now += self.pace
        worker.answer(result)
        if worker.is_over:
            self.running.remove(worker)
            self.begin()
        self.advance(0)

    def on(self, host: str) -> int:
        return sum(host in asked(worker.job) for worker in self.running)

    def reasons(self) -> list[Reason]:
        return [end.result.reason for end in self.finished if isinstance(end.result, Failure)]


def asked(job: Job) -> str:
    """Return the origin that a job asks."""
    return job.url.origin if job.hop is None else job.hop.url.origin


def _error(failure: Failure) -> DownloadError:
    error = DownloadError(failure.reason, failure.detail)
    error.failure = failure
    return error


def asks_for(pause: float) -> Failure:
    return BUSY._replace(retry_after=pause)


def finish(house: House, seconds: float = 200.0) -> None:
    """Let everything end, each attempt with a success."""
    give_up = house.now + seconds
    while house.scheduler.pending and house.now < give_up:
        while house.running:
            house.answer()
        house.advance(0.05)


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
    house = House({"threads": 4}, pace=0.05)
    house.add(*urls("one", 500))
    house.add(*urls("two", 500))
    for _ in range(200):
        house.answer()
    share = sum("two" in end.job.url.origin for end in house.finished) / len(house.finished)
    assert 0.35 < share < 0.65


def test_a_transient_failure_is_tried_again_after_growing_pauses_and_then_told() -> None:
    house = House()
    house.add("http://host/a.jpg")
    starts = []
    while not house.finished:
        if house.running:
            starts.append(house.now)
            house.answer(FAULTY)
        else:
            house.advance(0.25)
    assert starts == [0.0, 1.0, 3.0]
    assert house.finished[0].attempts == 3
    assert house.reasons() == [Reason.HTTP_STATUS]


def test_half_of_the_pause_before_another_attempt_is_left_to_chance() -> None:
    house = House(chance=0.0)
    house.add("http://host/a.jpg")
    house.answer(FAULTY)
    house.advance(0.49)
    assert not house.running
    house.advance(0.01)
    assert house.running


def test_another_attempt_knows_how_much_the_last_one_left() -> None:
    house = House()
    house.add("http://host/a.jpg")
    left = Resume("key", 1000, 7, 10**18, Validators(), "image/png")
    house.answer(FAULTY._replace(resume=left))
    house.advance(1.0)
    assert house.running[0].job.resume is left


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
    assert house.on("host") == 1, "one at a time, until it lets one through"
    finish(house)
    assert not house.reasons()


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


def test_a_host_whose_connections_take_all_of_the_time_is_given_up_like_any_that_does_not_answer() -> None:
    house = House({"host_patience": 10.0})
    house.refusing["http://host"] = Failure(Reason.DEADLINE, "not done in time", blame=Blame.HOST)
    house.add(*urls("host", 100))
    assert Reason.HOST_DOWN not in house.reasons()
    while house.scheduler.pending:
        house.advance(0.5)
    assert set(house.reasons()) == {Reason.DEADLINE, Reason.HOST_DOWN}
    assert house.reasons().count(Reason.HOST_DOWN) > 80
    assert house.now < 20.0


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


def to(url: str, job: Job) -> Job:
    """Return how an attempt goes on that was redirected."""
    return job._replace(hop=Hop(parse(url), (), left=1e9))


def redirect(house: House, url: str, host: str) -> None:
    """Let the oldest attempt at a host end with a redirect to a URL."""
    job = next(worker.job for worker in house.running if host in asked(worker.job))
    house.answer(to(url, job), host)


def test_a_redirected_job_waits_for_a_connection_to_where_it_was_redirected() -> None:
    house = House({"threads": 1, "retries": 0})
    house.silent.add("http://target")
    house.add("http://host/a.jpg", "http://host/b.jpg")
    redirect(house, "http://target/a.jpg", "host")
    assert house.on("host") == 1, "it holds no worker"
    house.answer()
    house.come("http://target")
    house.advance(0)
    assert house.on("target") == 1
    house.answer()
    assert [(end.job.url.path, end.attempts) for end in house.finished] == [("/b.jpg", 1), ("/a.jpg", 1)]
    assert house.hosts_in_memory == 0


def test_a_redirected_job_that_fails_begins_anew_where_the_list_says() -> None:
    house = House({"retries": 1})
    house.add("http://host/a.jpg")
    redirect(house, "http://target/a.jpg", "host")
    house.answer(FAULTY, "target")
    house.advance(1.0)
    assert house.on("host") == 1
    redirect(house, "http://target/a.jpg", "host")
    house.answer(host="target")
    assert [(end.attempts, end.result) for end in house.finished] == [(2, ANSWER)]


@pytest.mark.parametrize("target", ["atarget", "target"])
def test_a_busy_host_behind_redirects_is_slowed_down_and_its_images_wait(target: str) -> None:
    house = House({"retries": 0})
    house.add("http://host/a.jpg")
    redirect(house, f"http://{target}/a.jpg", "host")
    house.answer(asks_for(20.0), target)
    house.advance(19.5)
    assert not house.running
    house.advance(0.5)
    assert house.on("host") == 1
    redirect(house, f"http://{target}/a.jpg", "host")
    house.answer(host=target)
    assert not house.reasons()


@pytest.mark.parametrize("per_host", [1, 3])
@pytest.mark.parametrize("hosts", [("host-a", "host-b"), ("host-a", "host-b", "host-c")])
def test_hosts_that_redirect_to_each_other_come_to_an_end(hosts: Sequence[str], per_host: int) -> None:
    house = House({"threads": 30, "per_host": per_host})
    house.add(*(url for host in hosts for url in urls(host, 1)))
    for host in hosts:
        house.answer(host=host)
    house.add(*(url for host in hosts for url in urls(host, 40)))
    leads = dict(zip(hosts, (*hosts[1:], hosts[0]), strict=True))
    while house.running:
        worker = house.running[0]
        home = worker.job.url.origin.removeprefix("http://")
        if worker.job.hop is None:
            house.answer(to(f"http://{leads[home]}/b.jpg", worker.job), home)
        else:
            house.answer(host=leads[home])
    assert len(house.finished) == 41 * len(hosts)
    assert not house.reasons()


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("busy", [BUSY, BUSY._replace(retry_after=1.0)])
def test_a_host_behind_redirects_that_is_busy_for_ever_is_given_up(busy: Failure, count: int) -> None:
    house = House({"retries": 0, "host_patience": 10.0})
    house.add(*urls("host", count))
    while house.scheduler.pending:
        while house.on("host"):
            redirect(house, "http://target/a.jpg", "host")
        if house.on("target"):
            house.answer(busy, "target")
        house.advance(0.5)
        assert house.now < 100.0
    assert set(house.reasons()) <= {Reason.HTTP_STATUS, Reason.HOST_DOWN}
    assert Reason.HTTP_STATUS in house.reasons()


@pytest.mark.parametrize("target", ["atarget", "target"])
def test_jobs_that_were_redirected_to_a_host_which_answers_keep_their_places_at_home(target: str) -> None:
    house = House({"per_host": 2})
    house.add(f"http://{target}/first.jpg")
    house.add(f"http://{target}/second.jpg")
    house.answer(host=target)
    house.add(*urls("host", 10))
    redirect(house, f"http://{target}/0.jpg", "host")
    redirect(house, f"http://{target}/1.jpg", "host")
    assert house.on("host") == 0
    assert house.on(target) == 2
    finish(house)
    assert len(house.finished) == 12
    assert house.hosts_in_memory == 0


def test_redirects_to_dead_hosts_hold_up_nobody() -> None:
    house = House({"threads": 2, "retries": 0})
    house.silent |= {f"http://dead{number}" for number in range(20)}
    house.add(*urls("host", 40))
    for number in range(20):
        redirect(house, f"http://dead{number}/a.jpg", "host")
    while house.running:
        house.answer()
    assert len(house.finished) == 20
    while len(house.connecting) < 20:
        house.advance(0.3)
    for number in range(20):
        house.come(f"http://dead{number}", RESET)
    house.advance(0)
    assert house.reasons() == [Reason.CONNECT] * 20


def test_jobs_that_are_redirected_to_a_host_that_is_down_fail_at_once() -> None:
    house = given_up()
    house.add("http://host/a.jpg")
    redirect(house, "http://dead/a.jpg", "host")
    assert house.reasons()[-1] is Reason.HOST_DOWN


def test_another_host_that_fails_is_no_failure_of_this_one() -> None:
    house = House({"retries": 0})
    house.add(*urls("host", 30))
    for _ in range(9):
        redirect(house, "http://target/a.jpg", "host")
        if house.on("target"):
            house.answer(RESET, "target")
        house.advance(10.0)
    house.answer(host="host")
    assert house.reasons().count(Reason.CONNECT) + house.reasons().count(Reason.HOST_DOWN) == 9
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
    assert Counter(house.reasons()) == {Reason.HTTP_STATUS: 3, Reason.HOST_DOWN: 37}, "as it was told, or not at all"
    house.add(*urls("busy", 5))
    assert house.reasons()[40:] == [Reason.HOST_DOWN] * 4, "so does the rest of the list, but for one that is tried"


def test_a_host_that_is_given_up_after_it_let_images_through_has_those_that_it_refused_told_as_such() -> None:
    house = House({"retries": 10})
    house.add(*urls("busy", 40))
    for _ in range(3):
        house.answer()
    while house.scheduler.pending:
        while house.running:
            house.answer(asks_for(60.0))
        house.advance(60.0)
    assert Counter(house.reasons()) == {Reason.HTTP_STATUS: 3, Reason.HOST_DOWN: 34}


@pytest.mark.parametrize(("count", "answers"), [(2, 0), (5, 2)])
def test_a_host_that_refused_only_the_last_images_is_not_given_up_for_them(count: int, answers: int) -> None:
    house = House({"retries": 0, "per_host": 1}, pace=0.05)
    house.add(*urls("busy", count))
    saved = sum(house.answer() for _ in range(answers))
    while house.scheduler.pending:
        while not house.running:
            house.advance(30.0)
        house.answer(asks_for(60.0))
    refused = [Reason.HTTP_STATUS] * (count - saved)
    assert house.reasons() == refused
    house.add("http://busy/later.jpg")
    finish(house)
    assert house.reasons() == refused


def test_it_is_logged_once_when_a_host_is_paused_and_for_how_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "image_loader")
    house = House()
    house.add(*urls("host", 5))
    house.answer()
    house.advance(5.0)
    house.answer(asks_for(20.0))
    while house.running:
        house.answer(asks_for(20.0))
    assert caplog.messages == ["http://host: paused, for 20.0 s"]
    house.advance(20.0)
    house.answer()
    assert caplog.messages[1:] == ["http://host: slowed, for 0.0 s"]


def test_images_between_its_pauses_keep_a_host_from_being_given_up() -> None:
    house = House({"retries": 0, "per_host": 1})
    house.add(*urls("busy", 30))
    while house.scheduler.pending:
        house.answer(asks_for(60.0))
        house.advance(60.0)
        house.answer()
        while house.scheduler.pending and not house.running:
            house.advance(0.1)
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
    house = House({"host_failures": 1, "host_patience": 30.0, "retries": 0, "per_host": 1, **changes})
    house.add("http://dead/first.jpg", "http://dead/second.jpg")
    house.answer(RESET)
    house.advance(30.0)
    assert house.reasons()[-1] is Reason.HOST_DOWN
    house.finished.clear()
    assert house.scheduler.down_failure("http://dead") is not None
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
    assert house.reasons().count(Reason.HOST_DOWN) == 3 * 1000 - 3


def test_the_verdict_on_a_host_that_was_given_up_is_lifted_for_one_job() -> None:
    house = given_up()
    verdict = house.scheduler.down_failure("http://dead")
    assert verdict is not None
    assert verdict.reason is Reason.HOST_DOWN
    house.advance(30.0)
    assert house.scheduler.down_failure("http://dead") is None
    house.add("http://dead/a.jpg")
    assert house.scheduler.down_failure("http://dead") is not None


def test_a_host_that_was_given_up_and_answers_is_one_like_any_other() -> None:
    house = given_up()
    house.advance(30.0)
    house.add(*urls("dead", 10))
    assert house.reasons() == [Reason.HOST_DOWN] * 9
    house.answer(GONE)
    assert house.scheduler.down_failure("http://dead") is None
    house.add(*urls("dead", 10))
    while house.running:
        house.answer()
    assert len(house.finished) == 20
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
    assert house.on("dead") == 1


def test_a_job_of_a_host_that_was_forgotten_while_it_is_probed_runs_when_the_next_probe_is_due() -> None:
    house = House({"host_failures": 1, "retries": 0})
    house.add("http://host/a.jpg")
    house.answer(RESET)
    house.add("http://host/b.jpg")
    assert not house.running
    house.advance(1.0)
    assert house.on("host") == 1


def test_a_job_of_a_host_that_was_forgotten_while_it_is_paused_runs_after_the_pause() -> None:
    house = House()
    house.add("http://host/a.jpg")
    redirect(house, "http://target/a.jpg", "host")
    house.answer(asks_for(20.0), "target")
    house.advance(10.0)
    house.add("http://target/b.jpg")
    assert not house.running
    house.advance(10.0)
    assert house.on("target") == 1


def test_a_host_that_is_given_up_with_its_last_job_is_remembered_as_down() -> None:
    house = House({"host_patience": 0.0, "host_failures": 1, "retries": 0})
    house.refusing["http://host"] = RESET
    house.add("http://host/a.jpg")
    house.add("http://host/b.jpg")
    assert house.reasons() == [Reason.CONNECT, Reason.HOST_DOWN]


def test_a_name_that_does_not_exist_is_remembered_without_jobs() -> None:
    house = House()
    house.refusing["http://host"] = Failure(Reason.DNS, "unknown name", blame=Blame.HOST)
    house.add("http://host/a.jpg")
    house.add("http://host/b.jpg")
    assert house.reasons() == [Reason.DNS, Reason.HOST_DOWN]


def _given_up(house: House) -> None:
    """Have a host given up, and let time pass until it is to be asked again."""
    house.refusing["http://down"] = RESET
    house.add(*urls("down", 5))
    while not house.scheduler.down_failure("http://down"):
        house.advance(0.5)
    house.refusing.clear()
    while house.scheduler.down_failure("http://down"):
        house.advance(0.5)
    house.finished.clear()


def _asked_again(house: House) -> None:
    """Have a host given up, and let it be asked again by one job."""
    _given_up(house)
    house.add("http://down/probe.jpg")


@pytest.mark.parametrize("how", ["redirected", "stale", "stopped"])
def test_the_job_that_asks_a_host_which_was_given_up_may_come_back_to_it(how: str) -> None:
    house = House({"per_host": 1})
    _asked_again(house)
    job = house.running[0].job
    results: dict[str, Result | Job] = {
        "redirected": to("http://down/b.jpg", job),
        "stale": job,
        "stopped": STOPPED,
    }
    house.step(results[how])
    house.advance(0.05)
    assert house.on("down") == 1
    house.step()
    assert [end.result for end in house.finished] == [ANSWER]
    assert house.scheduler.down_failure("http://down") is None


def test_the_job_that_asks_a_host_which_was_given_up_may_be_redirected_there_once_more() -> None:
    house = House({"per_host": 1})
    _given_up(house)
    house.add("http://home/a.jpg")
    house.step(to("http://down/a.jpg", house.running[0].job), "home")
    house.step(STOPPED, "down")
    while not house.on("home"):
        house.advance(0.05)
    house.step(to("http://down/a.jpg", house.running[0].job), "home")
    house.step(ANSWER, "down")
    assert [end.result for end in house.finished] == [ANSWER]


def test_a_job_that_was_under_way_when_its_host_was_given_up_does_not_have_it_asked_again() -> None:
    house = House({"per_host": 4, "host_failures": 1, "retries": 0})
    house.add(*urls("down", 3))
    house.step(Failure(Reason.DNS, "unknown", blame=Blame.HOST))
    while house.running:
        house.step(SAVED_BEFORE)
    assert house.scheduler.down_failure("http://down") is not None


def test_a_host_that_was_given_up_is_asked_by_the_next_job_where_the_first_one_had_not_to_ask() -> None:
    house = House({"per_host": 1})
    _asked_again(house)
    house.step(SAVED_BEFORE)
    house.add("http://down/next.jpg")
    assert house.on("down") == 1


def test_jobs_that_come_back_to_a_host_that_was_given_up_meanwhile_fail_at_once() -> None:
    house = House({"host_failures": 1, "retries": 1, "per_host": 4})
    house.add("http://target/first.jpg")
    house.add(*urls("dead", 20))
    for number in range(3):
        redirect(house, f"http://target/{number}.jpg", "dead")
    while house.scheduler.down_failure("http://dead") is None:
        while house.on("dead"):
            house.answer(RESET, "dead")
        house.advance(1.0)
    while house.on("target"):
        house.answer(FAULTY, "target")
    house.advance(1.0)
    assert not house.on("dead")
    assert house.reasons()[-3:] == [Reason.HOST_DOWN] * 3


def test_a_job_that_is_redirected_back_to_its_host_goes_on_there() -> None:
    house = House({"per_host": 1})
    house.add(*urls("target", 2))
    house.answer()
    house.add("http://host/a.jpg")
    redirect(house, "http://target/b.jpg", "host")
    house.answer(host="target")
    house.kept.clear()
    redirect(house, "http://host/c.jpg", "target")
    house.answer(host="host")
    assert [end.result for end in house.finished] == [ANSWER] * 3
    assert house.hosts_in_memory == 0


def test_a_host_that_was_only_passed_on_the_way_is_forgotten() -> None:
    house = House()
    house.add("http://host/a.jpg")
    for number in range(5):
        redirect(house, f"http://way{number}/a.jpg", "host" if number == 0 else f"way{number - 1}")
        assert house.hosts_in_memory == 2, "the host of the list, and the one that is asked"
    house.answer()
    assert house.hosts_in_memory == 0


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
    house.answer(OUT_OF_DESCRIPTORS)
    while len(house.finished) < 8:
        if house.running:
            assert len(house.running) <= 7
            house.answer()
        else:
            house.advance(1.0)
    assert not house.reasons()
    assert {end.attempts for end in house.finished} == {1}


@pytest.mark.parametrize("threads", [1, 8])
def test_connections_that_are_kept_are_closed_where_the_next_one_lacks_a_descriptor(threads: int) -> None:
    house = House({"retries": 0, "threads": threads})
    house.add("http://host/a.jpg")
    house.answer()
    assert [link.closed for link in house.links] == [False]
    house.refusing["http://other"] = OUT_OF_DESCRIPTORS
    house.add("http://other/a.jpg")
    assert [link.closed for link in house.links] == [True]
    del house.refusing["http://other"]
    house.advance(1.0)
    house.answer()
    assert [(task.result, task.attempts) for task in house.finished] == [(ANSWER, 1), (ANSWER, 1)]


def test_threads_that_run_out_of_descriptors_together_count_as_one() -> None:
    house = House()
    house.add(*(f"http://host{number}/a.jpg" for number in range(100)))
    for _ in range(5):
        house.answer(OUT_OF_DESCRIPTORS)
    for _ in range(10):
        house.answer()
    assert len(house.running) == 6


def test_the_number_of_threads_grows_again_once_descriptors_suffice() -> None:
    house = House()
    house.add(*(f"http://host{number}/a.jpg" for number in range(500)))
    house.answer(OUT_OF_DESCRIPTORS)
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
            house.answer(OUT_OF_DESCRIPTORS)
        else:
            house.advance(1.0)
    assert house.finished[0].attempts == 3


@pytest.mark.parametrize("last", [ANSWER, STOPPED])
def test_an_attempt_whose_time_ended_while_this_process_was_stopped_is_made_once_more(last: Result) -> None:
    house = House({"retries": 0})
    house.add("http://host/a.jpg")
    house.answer(STOPPED)
    house.advance(0.0)
    assert not house.finished
    house.answer(last)
    assert [(task.result, task.attempts) for task in house.finished] == [(last, 2)]


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
    house.answer(ZeroDivisionError())
    assert isinstance(house.scheduler.error, ZeroDivisionError)


def test_a_surprise_in_a_worker_loses_no_job() -> None:
    house = House({"per_host": 1})
    house.add(*urls("host", 40))
    while house.answer() < 8:
        pass
    house.answer(ZeroDivisionError())
    house.finished += house.scheduler.abandon()
    assert len(house.finished) == 40


def test_what_a_worker_raises_after_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    house = House({"per_host": 2})
    house.add(*urls("host", 40))
    first, second = house.running
    first.answer(ZeroDivisionError("first"))
    second.answer(ZeroDivisionError("second"))
    house.advance(0)
    house.finished += house.scheduler.abandon()
    assert str(house.scheduler.error) == "first"
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["second"]
    assert len(house.finished) == 40


def test_abandoned_jobs_are_all_accounted_for() -> None:
    house = House({"threads": 1})
    house.add(*urls("host", 5), "http://other/a.jpg")
    house.answer(BUSY)
    house.finished += house.scheduler.abandon()
    house.answer()
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


def test_attempts_that_do_not_end_are_given_up_once() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.finished += house.scheduler.abandon()
    house.finished += house.scheduler.drop_running()
    assert house.reasons() == [Reason.INTERRUPTED]
    assert house.scheduler.drop_running() == []


def test_what_an_attempt_raises_after_it_was_given_up_changes_nothing() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.scheduler.abandon()
    house.finished += house.scheduler.drop_running()
    house.answer(ZeroDivisionError())
    assert house.scheduler.error is None
    assert house.reasons() == [Reason.INTERRUPTED]


def test_an_attempt_that_has_not_quite_begun_is_given_up_as_well() -> None:
    house = House()
    house.at_clock = lambda: house.finished.extend(house.scheduler.drop_running())
    house.add("http://host/a.jpg")
    assert house.reasons() == [Reason.INTERRUPTED]


def test_hosts_that_are_done_are_forgotten() -> None:
    house = House()
    for number in range(50):
        house.add(f"http://host{number}/a.jpg")
        house.answer()
    assert house.hosts_in_memory == 0


def test_jobs_of_a_near_host_are_taken_in_turns() -> None:
    house = House({"per_host": 1})
    house.add(*urls("near", 100))
    sizes = []
    while house.running:
        sizes.append(house.answer())
    assert sizes == [1, 32, 32, 32, 3]
    assert len(house.finished) == 100


def test_the_last_jobs_of_a_host_are_shared_among_its_threads() -> None:
    house = House({"per_host": 4})
    house.add(*urls("near", 20))
    sizes = []
    while house.running:
        sizes.append(house.answer())
    assert sizes == [1, 1, 1, 9, 8]


def test_jobs_of_a_far_host_are_taken_singly() -> None:
    house = House({"per_host": 2}, pace=0.05)
    house.add(*urls("far", 10))
    house.answer()
    house.answer()
    house.meanwhile = lambda: None
    sizes = [house.answer() for _ in range(2)]
    assert max(sizes) <= 2, "the one that runs, and the one after it"


def test_a_turn_goes_on_where_its_host_may_have_no_more_and_no_other_waits() -> None:
    house = House({"per_host": 1}, pace=0.05)
    house.add(*urls("far", 10))
    house.answer()
    house.meanwhile = lambda: house.advance(0)
    assert house.answer() == 9
    assert len(house.finished) == 10
    assert not house.running


def test_a_turn_does_not_go_on_while_another_host_waits() -> None:
    house = House({"per_host": 1, "threads": 1}, pace=0.05)
    house.add(*urls("one", 10), "http://two/a.jpg", "http://two/b.jpg")
    house.answer(host="one")
    house.meanwhile = lambda: house.advance(0)
    assert house.answer(host="two") == 1
    assert house.answer(host="one") == 1
    assert house.on("two") == 1


def test_a_turn_does_not_go_on_with_a_host_that_is_paused() -> None:
    house = House({"per_host": 2}, pace=0.05)
    house.add(*urls("far", 20))
    house.answer()
    house.answer(asks_for(20.0))
    house.meanwhile = lambda: house.advance(0)
    house.answer()
    house.advance(0)
    assert len(house.finished) == 2
    assert not house.running


def test_a_turn_does_not_go_on_with_a_host_that_failed_in_another_one_at_that_moment() -> None:
    house = House({"per_host": 2, "host_failures": 1}, pace=0.01)
    house.add(*urls("near", 40))
    house.answer()
    failing, other = house.running
    other.answer(ANSWER)
    assert not other.is_over, "it begins with its last job"
    failing.answer(RESET)
    house.advance(0)
    other.answer(ANSWER)
    assert other.is_over


def test_a_turn_does_not_go_on_where_its_host_may_have_more_connections() -> None:
    house = House({"per_host": 2}, pace=0.03)
    house.add("http://far/first.jpg")
    house.silent.add("http://far")
    house.add(*urls("far", 10))
    house.answer()
    house.meanwhile = lambda: house.advance(0)
    assert house.answer() == 1


def test_it_is_told_how_long_nothing_can_come() -> None:
    house = House()
    house.add(*urls("host", 1))
    assert house.scheduler.waits() == 0
    house.answer(asks_for(20.0))
    house.advance(1.0)
    assert house.scheduler.waits() == 19
    house.add(*urls("other", 1))
    assert house.scheduler.waits() == 0


def test_a_host_that_was_given_up_does_not_shorten_what_is_told_of_waiting() -> None:
    house = House({"host_failures": 1, "host_patience": 1.0, "retries": 5})
    house.add("http://dead/a.jpg", "http://other/a.jpg")
    house.answer(RESET, "dead")
    house.answer(asks_for(100.0), "other")
    house.advance(1.0)
    assert house.reasons() == [Reason.HOST_DOWN]
    assert house.scheduler.waits() == pytest.approx(99.0)


def test_a_retry_of_a_job_that_failed_with_its_host_is_waited_for_no_more() -> None:
    house = House({"host_failures": 1, "host_patience": 1.0, "retries": 5, "per_host": 1})
    house.add("http://dead/a.jpg", "http://other/a.jpg")
    house.answer(FAULTY._replace(retry_after=50.0), "dead")
    house.add("http://dead/b.jpg")
    house.answer(RESET, "dead")
    house.answer(asks_for(100.0), "other")
    house.advance(1.0)
    assert house.reasons() == [Reason.HOST_DOWN] * 2
    assert house.scheduler.waits() == pytest.approx(99.0)


def test_what_waits_in_a_turn_when_its_host_is_paused_waits_with_the_others() -> None:
    house = House({"per_host": 2})
    house.add(*urls("near", 100))
    house.answer()
    house.answer(asks_for(20.0))
    while house.running:
        assert house.answer() == 1
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
    house.answer(OUT_OF_DESCRIPTORS)
    for _ in range(10):
        house.answer()
    assert len(house.running) == 6


def test_jobs_behind_a_slow_one_are_recalled_and_run_elsewhere() -> None:
    house = House({"per_host": 2})
    house.add(*urls("host", 100))
    while house.answer() < 8:
        pass
    stuck = house.running.pop(0)
    house.advance(1.0)
    while house.running:
        house.answer()
    assert len(house.finished) == 99
    stuck.answer(ANSWER)
    house.advance(0)
    assert stuck.is_over
    assert len(house.finished) == 100


def test_what_has_ended_is_told_before_its_turn_is_over() -> None:
    house = House({"per_host": 1})
    house.add(*urls("host", 40))
    while house.answer() < 8:
        pass
    before, told = len(house.finished), []
    while house.running:
        house.step()
        told.append(len(house.finished))
    assert told == [*range(before + 1, 41)]


def test_a_turn_ends_with_its_first_failure_and_the_rest_of_it_waits_on() -> None:
    house = House({"per_host": 1, "retries": 0})
    house.add(*urls("host", 40))
    while house.answer() < 8:
        pass
    before = len(house.finished)
    assert house.answer(asks_for(5.0)) == 1
    assert len(house.finished) == before
    assert not house.running
    house.advance(5.0)
    assert house.running[0].job.url.path == f"/{before}.jpg", "it comes first after the pause that was asked for"
    finish(house)
    assert len(house.finished) == 40
    assert not house.reasons()


def test_a_turn_ends_with_its_connection_and_the_rest_of_it_gets_another() -> None:
    house = House({"per_host": 1})
    house.add(*urls("host", 80))
    while house.answer() < 8:
        pass
    assert house.connected == ["http://host"]
    house.spend_connections = True
    while house.running:
        assert house.answer() == 1
    assert len(house.finished) == 80
    assert len(house.connected) > 10


def test_an_attempt_whose_connection_was_closed_goes_on_with_another_and_costs_nothing() -> None:
    house = House({"retries": 0})
    house.add("http://host/a.jpg")
    job = house.running[0].job
    house.answer(job)
    assert house.running[0].job == job
    house.answer()
    assert [(end.attempts, end.result) for end in house.finished] == [(1, ANSWER)]


def test_a_timer_of_a_host_that_was_forgotten_leaves_its_successor_alone() -> None:
    house = House({"per_host": 1})
    house.add("http://host/a.jpg")
    house.answer(RESET)
    house.advance(1.0)
    house.answer()
    assert house.hosts_in_memory == 0
    house.add("http://host/b.jpg")
    house.advance(40.0)
    house.add("http://host/c.jpg")
    assert house.on("host") == 1


def test_a_slowed_host_is_asked_by_several_at_once_where_its_answers_take_longer_than_the_interval() -> None:
    house = House({"per_host": 4, "retries": 0})
    house.add(*urls("host", 60))
    house.answer()
    house.answer(BUSY)
    while house.on("host"):
        house.answer()
    house.advance(0.1)
    house.answer()
    house.advance(0.1)
    assert house.on("host") == 1
    house.advance(0.1)
    assert house.on("host") == 2


def test_the_jobs_of_a_name_that_does_not_exist_fail_at_once() -> None:
    house = House({"retries": 3})
    unknown = Failure(Reason.DNS, "unknown name", blame=Blame.HOST)
    house.refusing["http://unknown"] = unknown
    house.add(*urls("unknown", 50))
    house.advance(0)
    assert house.reasons() == [Reason.DNS] * 50
    house.add("http://unknown/late.jpg")
    assert house.reasons()[-1] is Reason.HOST_DOWN


def refuse_one(house: House, path: str, busy: Failure, times: int = 10**6) -> int:
    """Let all jobs end, but refuse one image so many times; return how often it was asked for."""
    asked = 0
    while house.scheduler.pending:
        while house.running:
            bad = house.running[0].job.url.path == path
            asked += bad
            house.step(busy if bad and asked <= times else ANSWER)
        house.advance(0.01)
        assert house.now < 60.0
    return asked


@pytest.mark.parametrize("bad", ["/0.jpg", "/7.jpg"])
@pytest.mark.parametrize("per_host", [1, 2])
@pytest.mark.parametrize("busy", [BUSY, asks_for(1000.0)])
def test_one_image_that_is_refused_for_ever_among_others_fails_alone(busy: Failure, per_host: int, bad: str) -> None:
    house = House({"retries": 1, "per_host": per_host, "retry_after_cap": 5.0})
    house.add(*urls("host", 100))
    refuse_one(house, bad, busy)
    assert [end.job.url.path for end in house.finished if isinstance(end.result, Failure)] == [bad]
    assert house.reasons() == [Reason.HTTP_STATUS]
    house.add("http://host/later.jpg")
    finish(house)
    assert house.reasons() == [Reason.HTTP_STATUS], "the host is not given up for it"


@pytest.mark.parametrize(("times", "failures"), [(2, []), (3, [Reason.HTTP_STATUS])])
def test_an_image_that_is_refused_while_others_get_through_is_asked_for_three_times(
    times: int, failures: Sequence[Reason]
) -> None:
    house = House({"retries": 0, "per_host": 2})
    house.add(*urls("host", 100))
    assert refuse_one(house, "/7.jpg", BUSY, times) == 3
    assert house.reasons() == failures


def asked_next(house: House) -> str:
    """Let the next attempt start, and return what it asks for."""
    while not house.running:
        assert house.scheduler.pending
        house.advance(0.01)
    return house.running[0].job.url.path


@pytest.mark.parametrize("outage", [10.0, 20.0, 40.0])
def test_refusals_while_a_host_behind_redirects_refuses_all_do_not_count_against_an_image(outage: float) -> None:
    house = House({"retries": 0, "per_host": 4, "threads": 4})
    house.add(*urls("home", 8))
    served, after, begun = 0, 0, None
    while house.scheduler.pending:
        while house.running:
            job = house.running[0].job
            if job.hop is None:
                house.step(to(f"http://cdn{job.url.path}", job), "home")
                continue
            result: Result = ANSWER
            if served < 4:
                served += 1
            elif begun is None or house.now - begun < outage:
                begun = house.now if begun is None else begun
                result = BUSY
            else:
                after += 1
                result = BUSY if after == 2 else ANSWER
            house.step(result, "cdn")
        house.advance(0.05)
    assert house.reasons() == []


@pytest.mark.parametrize("others", [1, 2, 3, 10])
def test_refusals_of_a_host_behind_redirects_that_is_forgotten_in_between_are_counted(others: int) -> None:
    house = House({"retries": 0, "per_host": 4, "threads": 4})
    house.add("http://home/bad.jpg")
    refused = 0
    while house.scheduler.pending:
        while house.running:
            job = house.running[0].job
            if job.hop is None:
                house.step(to(f"http://cdn{job.url.path}", job), job.url.origin)
            elif "bad" in job.url.path:
                refused += 1
                house.step(BUSY, "cdn")
                house.add(*(f"http://other/{refused}-{number}.jpg" for number in range(others)))
            else:
                house.step(ANSWER, "cdn")
        house.advance(0.05)
        assert refused <= 3
    assert house.reasons() == [Reason.HTTP_STATUS]


def test_an_image_is_not_lost_to_a_host_behind_redirects_that_is_forgotten_while_it_is_busy() -> None:
    house = House({"retries": 0})
    house.add("http://home/a.jpg")
    results: list[Result] = [*[BUSY] * 4, ANSWER, BUSY, ANSWER]
    while house.scheduler.pending:
        while house.running:
            job = house.running[0].job
            if job.url.origin == "http://home" and job.hop is None:
                house.step(to("http://cdn/a.jpg", job), "home")
                continue
            result = results.pop(0)
            house.step(result, "cdn")
            if len(results) == 3:
                house.add("http://cdn/other.jpg")
        house.advance(0.05)
    assert (results, house.reasons()) == ([], [])


def test_a_refusal_counts_where_a_host_that_was_forgotten_lets_one_through_and_refuses_another() -> None:
    house = House({"retries": 0})
    house.add("http://home/bad.jpg")
    redirect(house, "http://cdn/bad.jpg", "home")
    house.answer(BUSY, "cdn")
    house.add("http://cdn/0.jpg")
    house.advance(0.5)
    house.advance(0.5)
    house.answer(ANSWER, "cdn")
    house.add("http://cdn/1.jpg", "http://cdn/2.jpg")
    redirect(house, "http://cdn/bad.jpg", "home")
    house.advance(0.05)
    assert [worker.job.url.path for worker in house.running] == ["/1.jpg", "/bad.jpg"]
    house.advance(0.05)
    house.step(ANSWER, "cdn")
    assert [worker.job.url.path for worker in house.running] == ["/bad.jpg", "/2.jpg"]
    house.running.reverse()
    house.step(BUSY, "cdn")
    house.step(BUSY, "cdn")
    refused = 2
    while house.scheduler.pending:
        while house.running:
            job = house.running[0].job
            if job.url.origin == "http://home" and job.hop is None:
                house.step(to("http://cdn/bad.jpg", job), "home")
            elif job.url.origin == "http://home":
                refused += 1
                house.step(BUSY, "cdn")
            else:
                house.step(ANSWER, "cdn")
        house.advance(0.05)
    assert (refused, house.reasons()) == (3, [Reason.HTTP_STATUS])


def test_an_image_that_three_hosts_refuse_which_let_others_through_fails_at_once() -> None:
    house = House({"retries": 0, "threads": 10})
    for number in range(5):
        house.add(*urls(f"cdn{number}", 2))
        house.step(ANSWER, f"cdn{number}")
    house.add("http://home/bad.jpg")
    refused = 0
    while not house.reasons():
        if house.on("home"):
            redirect(house, f"http://cdn{refused}/bad.jpg", "home")
        house.advance(0.05)
        if any(worker.job.url.origin == "http://home" and worker.job.hop for worker in house.running):
            house.running.reverse()
            house.step(BUSY, f"cdn{refused}")
            refused += 1
    assert refused == 3


def lead_to_new_hosts(house: House, busy: Failure, outage: float, hosts_name: str = "cdn") -> int:
    """Lead each attempt to another host, of which all are busy for so many seconds; return how many there were."""
    hosts, begun = 0, house.now
    while house.scheduler.pending:
        while house.running:
            job = house.running[0].job
            if job.hop is None:
                hosts += 1
                house.step(to(f"http://{hosts_name}{hosts}/a.jpg", job), "home")
            else:
                house.step(busy if house.now - begun < outage else ANSWER, f"{hosts_name}{hosts}")
        house.advance(0.05)
        assert house.now - begun < 110.0
    return hosts


@pytest.mark.parametrize("busy", [BUSY, asks_for(5.0)])
def test_an_image_is_not_lost_to_busy_hosts_of_which_redirects_lead_to_another_each_time(busy: Failure) -> None:
    house = House({"retries": 0})
    house.add("http://home/a.jpg")
    hosts = lead_to_new_hosts(house, busy, outage=SETTINGS.host_patience - 1)
    assert house.reasons() == []
    assert 5 < hosts < 40


def test_the_patience_with_ever_new_hosts_begins_with_the_first_of_them() -> None:
    house = House({"retries": 0})
    house.add("http://home/a.jpg")
    house.step(asks_for(60.0), "home")
    while not house.running:
        house.advance(1.0)
    assert house.now > SETTINGS.host_patience
    lead_to_new_hosts(house, BUSY, outage=SETTINGS.host_patience - 1)
    assert house.reasons() == []


@pytest.mark.parametrize(("pause", "outage"), [(10.0, 49.0), (20.0, 99.0)])
def test_the_patience_with_ever_new_hosts_is_not_over_before_there_were_some(pause: float, outage: float) -> None:
    house = House({"retries": 0})
    house.add("http://home/a.jpg")
    assert lead_to_new_hosts(house, asks_for(pause), outage) == 6
    assert house.reasons() == []


@pytest.mark.parametrize("hosts_name", ["cdn", "images"])
@pytest.mark.parametrize("busy", [BUSY, asks_for(5.0)])
def test_an_image_that_ever_new_hosts_refuse_fails_after_the_patience(busy: Failure, hosts_name: str) -> None:
    house = House({"retries": 1})
    house.add("http://home/a.jpg")
    hosts = lead_to_new_hosts(house, busy, outage=3600.0, hosts_name=hosts_name)
    assert house.reasons() == [Reason.HTTP_STATUS]
    assert SETTINGS.host_patience < house.now < 2 * SETTINGS.host_patience
    assert 5 < hosts < 40


def test_refusals_of_two_hosts_are_counted_by_what_each_lets_through() -> None:
    house = House({"retries": 0, "per_host": 2, "threads": 4})
    house.add(*urls("home", 400))
    asked_elsewhere = refused_at_home = let_through = 0
    while not house.reasons():
        while house.running:
            job = house.running[0].job
            is_bad = job.url.path == "/150.jpg"
            if job.hop is not None:
                asked_elsewhere += is_bad
                house.step(BUSY if is_bad else ANSWER, "cdn")
                let_through += 1
                if let_through % 40 == 0:
                    house.add(*(f"http://home/{let_through}-{number}.jpg" for number in range(40)))
            elif is_bad and not refused_at_home:
                refused_at_home = 1
                house.step(BUSY, "home")
            else:
                house.step(to(f"http://cdn{job.url.path}", job), "home")
            if house.reasons():
                break
        house.advance(0.05)
    assert asked_elsewhere == 3
    assert house.now < 60


@pytest.mark.parametrize(("result", "pause"), [(ANSWER, 0.6), (SAVED_BEFORE, 8.0)])
def test_what_was_saved_before_it_was_asked_for_says_nothing_of_its_host(result: Locked, pause: float) -> None:
    house = House({"per_host": 1})
    house.add(*urls("host", 20))
    for each in (ANSWER, BUSY, BUSY, BUSY, BUSY, result, BUSY):
        while not house.running:
            house.advance(0.05)
        house.step(each)
    refused = house.now
    while not house.running:
        house.advance(0.05)
    assert house.now - refused == pytest.approx(pause, abs=0.1)


def test_refusals_while_the_host_refuses_all_do_not_count_against_an_image() -> None:
    house = House({"retries": 0, "per_host": 1})
    house.add(*urls("host", 2))
    results: list[Result] = [*[BUSY] * 6, ANSWER, BUSY, ANSWER]
    for result in results:
        asked_next(house)
        house.answer(result)
    assert [end.result for end in house.finished] == [ANSWER, ANSWER]


def test_a_third_refusal_is_no_verdict_on_an_image_while_the_host_refuses_others_as_well() -> None:
    house = House({"retries": 0, "per_host": 1})
    house.add(*urls("host", 60))
    asked = []
    while house.scheduler.pending:
        asked.append(asked_next(house))
        refused = asked.count("/0.jpg")
        is_outage = refused == 2 and asked[-10:].count("/0.jpg") == 0
        house.answer(BUSY if is_outage or (asked[-1] == "/0.jpg" and refused <= 3) else ANSWER)
    assert asked.count("/0.jpg") == 4
    third = [at for at, path in enumerate(asked) if path == "/0.jpg"][2]
    assert asked.count(asked[third - 1]) == 2, "the one before it was refused"
    assert house.reasons() == []


def test_an_image_that_was_refused_waits_behind_ten_others() -> None:
    house = House({"retries": 0, "per_host": 1})
    house.add(*urls("host", 30))
    house.answer(BUSY)
    order = []
    for _ in range(12):
        order.append(asked_next(house))
        house.answer()
    assert order == [*(f"/{number}.jpg" for number in range(1, 11)), "/0.jpg", "/11.jpg"]


@pytest.mark.parametrize("busy", [BUSY, asks_for(1.0)])
def test_after_a_second_refusal_in_a_row_another_part_of_the_list_comes_first(busy: Failure) -> None:
    house = House({"retries": 0, "per_host": 1}, chance=0.5)
    house.add(*urls("host", 40))
    house.answer(busy)
    assert asked_next(house) == ("/1.jpg" if busy is BUSY else "/0.jpg")
    house.answer(busy)
    assert asked_next(house) in {"/20.jpg", "/21.jpg"}


def test_a_host_that_lets_requests_through_again_is_asked_twice_as_often_as_it_did_before() -> None:
    house = House({"retries": 0, "per_host": 1}, pace=0.05)
    house.add(*urls("host", 40))
    for _ in range(10):
        house.answer()
        house.advance(0.95)
    results: list[Result] = [BUSY, BUSY, ANSWER]
    for result in results:
        asked_next(house)
        house.answer(result)
    assert len(house.finished) == 16
    house.advance(0.25)
    assert not house.running, "fifteen in 11.4 seconds: another one in half of 0.76 seconds"
    house.advance(0.1)
    assert house.running


@pytest.mark.parametrize(("failure", "at_once"), [(FAULTY, 3), (GONE, 4)])
def test_an_error_of_the_server_is_no_success_that_lets_a_host_be_asked_faster(failure: Failure, at_once: int) -> None:
    house = House()
    house.add(*urls("host", 40))
    house.answer(failure)
    assert house.on("host") == at_once


def test_being_refused_uses_up_no_retry() -> None:
    house = House({"retries": 0, "per_host": 1})
    house.add("http://host/a.jpg")
    for _ in range(4):
        house.answer(BUSY)
        while not house.running:
            house.advance(0.5)
    house.answer()
    assert [(end.attempts, end.result) for end in house.finished] == [(5, ANSWER)]


@pytest.mark.parametrize("chance", [0.25, 0.5])
def test_a_job_that_lacked_a_descriptor_is_tried_again_at_some_time_in_the_next_second(chance: float) -> None:
    house = House({"threads": 4}, chance=chance)
    house.add(*urls("host", 2))
    house.answer(OUT_OF_DESCRIPTORS)
    house.answer()
    house.advance(chance - 0.01)
    assert not house.running
    house.advance(0.01)
    assert house.running


def test_a_job_that_lacks_a_descriptor_while_the_run_ends_is_told() -> None:
    house = House({"retries": 2})
    house.add(*urls("host", 2))
    house.finished += house.scheduler.abandon()
    house.answer(OUT_OF_DESCRIPTORS)
    assert house.reasons() == [Reason.CONNECT]
    house.answer()
    assert house.scheduler.pending == 0


# Waiting --------------------------------------------------------------------------------------------------------------


def waits(house: House, at_most: float = 5.0) -> list[float]:
    """Return for how long the scheduler would wait for a message, if at all."""
    house.inbox.waits.clear()
    house.finished += house.scheduler.advance(at_most)
    return house.inbox.waits


def test_it_waits_for_messages_until_the_next_timer_and_no_longer_than_it_may() -> None:
    house = House()
    house.now = 100.0
    house.add("http://host/a.jpg")
    assert waits(house) == [5.0]
    house.answer(asks_for(20.0))
    assert waits(house) == [5.0]
    house.advance(17.0)
    assert waits(house) == pytest.approx([3.0])


def test_it_does_not_wait_where_it_has_something_to_tell_or_nothing_to_do() -> None:
    house = given_up()
    assert waits(house) == []
    house.add("http://other/a.jpg")
    house.scheduler.add([house.running[0].job._replace(url=parse("http://dead/a.jpg"))])
    assert waits(house) == []
    assert house.reasons() == [Reason.HOST_DOWN]
    assert waits(house) == [5.0]
    house.inbox.waits.clear()
    house.scheduler.abandon()
    house.scheduler.drop_running()
    assert house.inbox.waits == []


@pytest.mark.parametrize(("pause", "wait"), [(1.1, 0.1), (20.0, 0.25)])
def test_it_waits_for_the_next_slot_for_a_connection_or_the_next_timer(pause: float, wait: float) -> None:
    house = House({"threads": 1})
    house.add("http://host/a.jpg")
    house.answer(asks_for(pause))
    house.advance(1.0)
    house.silent |= {f"http://silent{number}" for number in range(3)}
    house.add(*(f"http://silent{number}/a.jpg" for number in range(3)))
    assert len(house.connecting) == 2
    assert house.scheduler.hosts_ahead == 1
    assert waits(house) == pytest.approx([wait])


def test_a_connection_that_is_being_made_is_likely_to_stand_in_a_moment_and_not_later() -> None:
    house = House()
    house.silent.add("http://silent")
    seen = [house.scheduler.is_about_to_start]
    house.add("http://silent/a.jpg")
    seen.append(house.scheduler.is_about_to_start)
    house.advance(0.25)
    seen.append(house.scheduler.is_about_to_start)
    assert seen == [False, True, False]


def test_while_a_host_is_about_to_be_asked_not_every_job_waits_for_a_timer() -> None:
    house = House()
    house.add("http://paused/a.jpg")
    house.answer(asks_for(20.0))
    assert house.scheduler.waits() == 20.0
    house.scheduler.add(
        [Job(1, parse("http://new/a.jpg"), 1, Name("n", complete=True), None, Validators(), inode=None)]
    )
    assert house.scheduler.waits() == 0.0


def test_what_has_ended_counts_as_running_until_it_is_taken_in() -> None:
    house = House()
    assert house.scheduler.running == 0
    house.add("http://host/a.jpg")
    assert house.scheduler.running == 1
    house.running.pop().answer(ANSWER)
    assert house.scheduler.running > 0
    house.advance(0)
    assert house.scheduler.running == 0
    assert len(house.finished) == 1


def test_nothing_is_waited_for_after_a_time_that_has_passed() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.answer(asks_for(20.0))
    house.now += 19.5
    assert house.scheduler.waits() == 0.5
    house.now += 10.0
    assert house.scheduler.waits() == 0.0


def test_the_seconds_of_all_attempts_are_told_together() -> None:
    house = House(pace=0.25)
    house.now = 50.0
    house.add("http://host/a.jpg")
    house.answer(FAULTY)
    house.advance(1.0)
    house.answer()
    assert house.finished[0].seconds == pytest.approx(0.5)


def test_the_seconds_of_a_connection_that_failed_are_told() -> None:
    house = House({"retries": 0})
    house.now = 50.0
    house.silent.add("http://silent")
    house.add("http://silent/a.jpg")
    house.advance(2.0)
    house.come("http://silent", RESET)
    house.advance(0)
    assert [end.seconds for end in house.finished] == [2.0]


# Who gets how many connections ----------------------------------------------------------------------------------------


def test_a_host_that_has_all_threads_gets_no_further_connection() -> None:
    house = House({"threads": 2, "per_host": 4}, pace=0.05)
    house.add(*urls("host", 40))
    for _ in range(4):
        house.answer()
    assert house.on("host") == 2
    assert len(house.links) == 2


def test_a_connection_that_is_being_made_counts_as_one_of_its_host() -> None:
    house = House({"threads": 2, "per_host": 4}, pace=0.05)
    house.add("http://host/first.jpg")
    house.silent.add("http://host")
    house.add(*urls("host", 40))
    assert house.on("host") == 1
    assert house.connecting == [("http://host", 0.0)]


def test_a_host_that_waits_for_a_worker_has_its_share_of_connections() -> None:
    house = House({"threads": 2, "per_host": 4}, pace=0.05)
    house.add(*urls("host", 40))
    house.add("http://other/first.jpg")
    house.add(*urls("other", 2))
    assert house.connected.count("http://other") == 1


def test_a_host_that_has_more_than_its_share_gets_no_further_connection() -> None:
    house = House({"threads": 4, "per_host": 4}, pace=0.05)
    house.add(*urls("host", 2))
    house.answer()
    house.add(*urls("host", 2))
    house.add("http://other/a.jpg")
    assert (house.on("host"), house.on("other")) == (3, 1)
    house.add("http://host/late.jpg")
    assert house.connected.count("http://host") == 3


def test_a_host_gets_more_than_its_share_while_threads_are_idle() -> None:
    house = House({"threads": 4, "per_host": 4}, pace=0.05)
    house.add("http://other/a.jpg")
    house.add("http://host/first.jpg")
    house.add(*urls("host", 2))
    assert house.on("host") == 3


def test_hosts_that_are_paused_in_the_queue_for_a_connection_hold_up_nobody() -> None:
    house = House({"connects": 1, "per_host": 2})
    paused = ("one", "two", "three")
    house.add(*(f"http://{host}/first.jpg" for host in paused))
    house.silent |= {"http://slow", "http://new"}
    house.add("http://slow/a.jpg", *(url for host in paused for url in urls(host, 2)))
    for host in paused:
        house.answer(asks_for(20.0), host)
    house.add("http://new/a.jpg")
    house.come("http://slow")
    house.scheduler.advance(0.0)
    assert [origin for origin, _ in house.connecting] == ["http://new"]


def test_the_connection_that_was_begun_first_is_taken_for_the_one_that_stands() -> None:
    house = House({"per_host": 2})
    house.silent.add("http://host")
    house.add("http://host/a.jpg")
    house.now = 0.2
    house.add("http://host/b.jpg")
    house.come("http://host")
    house.advance(0.1)
    assert house.scheduler.is_about_to_start, "the second one, since 0.1 s"


def test_no_more_of_the_connections_that_are_kept_are_taken_than_are_needed() -> None:
    house = House()
    house.add(*urls("host", 3))
    while house.running:
        house.answer()
    house.add(*urls("host", 2))
    assert (house.on("host"), len(house.kept), len(house.connected)) == (2, 1, 3)


def test_a_host_that_had_its_share_gets_more_once_threads_are_idle() -> None:
    house = House({"threads": 4, "per_host": 10})
    house.silent.add("http://big")
    house.add(*(url for host in "abcdefgh" for url in urls(host, 1)))
    house.add(*urls("big", 50))
    assert len(house.connecting) == 1
    while house.running:
        house.answer()
    house.advance(0.25)
    assert len(house.connecting) == 3, "as many as a new host may have at once"


def test_hosts_that_did_not_answer_have_half_of_the_slots() -> None:
    house = House({"connects": 4})
    origins = {f"http://flaky{number}" for number in range(6)}
    house.refusing = dict.fromkeys(origins, RESET)
    house.add(*(f"{origin}/a.jpg" for origin in origins))
    house.silent |= {*origins, "http://new"}
    house.advance(1.0)
    assert len(house.connecting) == 2
    house.add("http://new/a.jpg")
    assert house.connecting[2:] == [("http://new", 1.0)]


def test_a_job_that_lacked_a_descriptor_is_tried_again_where_less_can_be_done_at_once() -> None:
    house = House({"threads": 8, "retries": 0})
    house.add("http://host/a.jpg")
    house.answer(OUT_OF_DESCRIPTORS)
    house.advance(1.0)
    house.answer()
    assert [end.result for end in house.finished] == [ANSWER]


def test_a_turn_goes_on_with_the_only_thread() -> None:
    house = House({"per_host": 1, "threads": 1}, pace=0.05)
    house.add(*urls("far", 10))
    house.answer()
    house.meanwhile = lambda: house.advance(0)
    assert house.answer() == 9


def test_no_turn_goes_on_while_there_are_more_than_descriptors_allow() -> None:
    house = House({"threads": 8, "per_host": 1}, pace=0.05)
    house.add(*(url for number in range(9) for url in urls(f"host{number}", 2)), *urls("long", 9))
    for _ in range(10):
        house.answer()
    assert len(house.running) + len(house.ahead) == 10
    house.answer(OUT_OF_DESCRIPTORS, "host0")
    while not house.on("long"):
        house.answer()
    house.meanwhile = lambda: house.advance(0)
    assert len(house.running) + len(house.ahead) > 6
    assert house.answer(host="long") == 1


@pytest.mark.parametrize(("seconds", "are_recalled"), [(0.07, False), (0.09, True)])
def test_jobs_behind_one_that_takes_80_ms_are_recalled(seconds: float, are_recalled: bool) -> None:
    house = House({"per_host": 2})
    house.add(*urls("host", 100))
    while house.answer() < 8:
        pass
    house.advance(seconds)
    assert (house.answer() == 1) is are_recalled


def test_all_connections_that_are_kept_for_a_host_are_used() -> None:
    house = House()
    house.add(*urls("host", 3))
    while house.running:
        house.answer()
    assert len(house.kept) == 3
    house.add(*urls("host", 3))
    assert house.on("host") == 3
    assert len(house.connected) == 3


def test_a_host_that_waits_for_a_connection_is_counted_once() -> None:
    house = House({"threads": 1})
    house.silent |= {f"http://silent{number}" for number in range(3)}
    house.add(*(f"http://silent{number}/a.jpg" for number in range(3)))
    house.add("http://silent2/b.jpg")
    house.add("http://silent2/c.jpg")
    assert house.scheduler.hosts_ahead == 1


def test_while_a_connection_is_being_made_not_every_job_waits_for_a_timer() -> None:
    house = House()
    house.silent.add("http://silent")
    house.add("http://host/a.jpg", "http://silent/a.jpg")
    house.answer(asks_for(20.0))
    assert house.scheduler.waits() == 0.0


def test_a_job_that_lacks_a_descriptor_while_another_connection_is_made_is_tried_again() -> None:
    house = House({"threads": 1, "retries": 0})
    house.silent.add("http://silent")
    house.add("http://host/a.jpg", "http://silent/a.jpg")
    house.answer(OUT_OF_DESCRIPTORS)
    house.advance(1.0)
    house.answer(host="host")
    assert [end.result for end in house.finished] == [ANSWER]


def test_it_is_logged_how_many_downloads_the_descriptors_allow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "image_loader")
    house = House({"threads": 8})
    house.add(*(f"http://host{number}/a.jpg" for number in range(8)))
    for _ in range(3):
        house.answer(OUT_OF_DESCRIPTORS)
    assert caplog.messages == ["out of file descriptors (ulimit -n): 6 downloads at once for the time being"]


def test_what_keeps_a_turn_from_being_handed_over_ends_the_run() -> None:
    house = House()
    house.submit_error = OutOfThreadsError()
    house.add("http://host/a.jpg", "http://other/b.jpg")
    assert isinstance(house.scheduler.error, OutOfThreadsError)
    house.finished += house.scheduler.abandon()
    assert house.scheduler.pending == 0


def test_what_ends_a_turn_that_nobody_waits_for_is_no_error() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.finished += house.scheduler.abandon()
    house.finished += house.scheduler.drop_running()
    house.running[0].answer(ValueError("late"))
    assert house.scheduler.settle(0.0) == []
    assert house.reasons() == [Reason.INTERRUPTED]


# A delay that the user wants -----------------------------------------------------------------------------------------


def test_with_a_delay_requests_to_a_host_start_one_after_the_other() -> None:
    house = House({"delay": 2.0, "threads": 8})
    house.add(*urls("one", 5), *urls("two", 5))
    started: dict[str, list[float]] = {"one": [], "two": []}
    seen: list[Worker] = []
    while house.scheduler.pending:
        for worker in house.running:
            if worker not in seen:
                seen.append(worker)
                started["one" if "one" in asked(worker.job) else "two"].append(house.now)
        if house.now % 1 < 0.1 and house.running:
            house.answer()
        else:
            house.advance(0.1)
    for times in started.values():
        assert len(times) == 5
        assert all(later - earlier >= 2.0 - 1e-6 for earlier, later in pairwise(times))
        assert times[-1] < 8.5, "and no later than that"


def test_with_a_delay_nothing_is_handed_over_ahead() -> None:
    house = House({"delay": 1.0, "threads": 2})
    house.add(*(f"http://host{number}/a.jpg" for number in range(10)))
    assert house.most_handed_over == 2


def test_with_a_delay_no_more_connections_are_made_than_are_needed() -> None:
    house = House({"delay": 5.0})
    house.add(*urls("host", 20))
    assert house.connected == ["http://host"]


def test_with_a_delay_a_redirect_waits_for_its_turn() -> None:
    house = House({"delay": 2.0})
    house.add(*urls("host", 2))
    redirect(house, "http://host/b.jpg", "host")
    assert house.running == []
    house.advance(2.0)
    assert len(house.running) == 1
    assert house.running[0].job.hop is not None


def test_a_connection_is_kept_for_the_next_job_of_its_host_and_used_again() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.answer()
    assert house.kept
    house.add("http://host/b.jpg")
    house.answer()
    assert house.connected == ["http://host"]


def test_a_run_that_is_cut_off_gives_back_the_connections_that_wait_for_a_worker() -> None:
    house = House({"threads": 1})
    house.silent.add("http://late")
    house.add("http://host/a.jpg", "http://other/b.jpg", "http://late/c.jpg")
    house.scheduler.abandon()
    house.come("http://late")
    house.scheduler.drop_running()
    assert {connection.origin for connection in house.kept} == {"http://other", "http://late"}


def test_a_run_that_is_cut_off_closes_the_connections_of_turns_that_nobody_waits_for() -> None:
    house = House({"threads": 4, "per_host": 1})
    house.add(*(f"http://host-{number}/a.jpg" for number in range(5)))
    assert (len(house.running), len(house.ahead)) == (4, 1)
    house.scheduler.abandon()
    house.scheduler.drop_running()
    assert sum(link.closed for link in house.links) == 1
    for worker in house.running:
        worker.answer(GONE)
    assert all(link.closed for link in house.links)


def cut_off(house: House, meanwhile: Callable[[], None] = lambda: None) -> list[Link]:
    """Cut a run off, with what happens while it ends; return the connections that are neither kept nor closed."""
    house.finished += house.scheduler.abandon()
    meanwhile()
    house.finished += house.scheduler.settle(0.0)
    house.finished += house.scheduler.drop_running()
    close_delivered(house.inbox)
    house.answer_all()
    kept = {id(connection) for connection in house.kept}
    return [link for link in house.links if not link.closed and id(link) not in kept]


def test_a_connection_that_comes_after_the_cut_for_a_host_that_waited_for_a_worker_is_kept() -> None:
    house = House({"threads": 2, "per_host": 4})
    house.silent.add("http://late")
    house.add(*urls("host", 20))
    house.add(*urls("late", 20))
    house.come("http://late")
    house.advance(0)
    house.come("http://late")
    assert cut_off(house, house.answer_all) == []
    assert [link.origin for link in house.kept].count("http://late") == 2


def test_a_run_that_is_cut_off_keeps_the_connections_of_a_host_that_was_given_up_in_its_queue() -> None:
    house = House({"threads": 3, "host_failures": 1, "host_patience": 1.0, "retries": 5})
    house.silent.add("http://dead")
    house.add(*urls("host", 3), *urls("dead", 2))
    house.come("http://dead")
    house.come("http://dead", RESET)
    house.advance(0)
    house.advance(1.0)
    assert house.reasons() == [Reason.HOST_DOWN] * 2
    assert cut_off(house) == []


@pytest.mark.parametrize("twice", [False, True])
def test_the_connection_of_a_turn_that_ends_just_before_it_is_dropped_is_closed(
    monkeypatch: pytest.MonkeyPatch, twice: bool
) -> None:
    house = House({"threads": 1})
    house.add("http://host/a.jpg")
    drop = Turn.drop

    def end_and_drop(turn: Turn) -> None:
        house.running[0].answer(ANSWER)
        drop(turn)

    monkeypatch.setattr(Turn, "drop", end_and_drop)
    house.scheduler.abandon()
    house.scheduler.drop_running()
    if twice:
        house.scheduler.drop_running()
    close_delivered(house.inbox)
    assert [link.closed for link in house.links] == [True]


def test_connections_that_nobody_takes_in_are_closed() -> None:
    house = House()
    house.silent.add("http://host")
    house.add(*urls("host", 2))
    house.come("http://host")
    house.come("http://host", RESET)
    close_delivered(house.inbox)
    assert [link.closed for link in house.links] == [True]


def test_a_host_that_is_given_up_gives_back_the_connections_that_wait_for_a_worker() -> None:
    house = House({"threads": 3, "host_failures": 1, "host_patience": 0.0, "retries": 0})
    house.silent.add("http://other")
    house.add(*urls("host", 3), *urls("other", 2))
    house.come("http://other")
    house.come("http://other", RESET)
    house.advance(0)
    assert len(house.finished) == 2
    house.answer(host="host")
    assert "http://other" in {connection.origin for connection in house.kept}


def test_a_connection_that_is_spent_is_closed() -> None:
    house = House()
    house.spend_connections = True
    house.add("http://host/a.jpg")
    house.answer()
    assert [link.closed for link in house.links] == [True]


def test_connections_that_wait_for_a_worker_are_closed_where_descriptors_run_out() -> None:
    house = House({"threads": 2})
    house.add("http://host/a.jpg", "http://other/b.jpg", "http://third/c.jpg")
    (waiting,) = (link for link in house.links if link.origin == "http://third")
    house.answer(OUT_OF_DESCRIPTORS, "host")
    assert waiting.closed
    finish(house)
    assert len(house.finished) == 3


def test_what_ends_the_run_may_come_of_connecting() -> None:
    house = House()
    house.silent.add("http://host")
    house.add("http://host/a.jpg")
    house.inbox.put(Connected("http://host", DirectoryError("gone"), 0.0))
    house.advance(0)
    assert isinstance(house.scheduler.error, DirectoryError)


@pytest.mark.parametrize("where", ["a worker", "a connection"])
def test_once_the_run_is_to_end_nothing_is_started(where: str) -> None:
    house = House({"threads": 2, "retries": 5})
    house.silent.add("http://silent")
    house.add("http://one/a.jpg", "http://two/a.jpg", *urls("three", 3), *urls("silent", 2))
    (pending,) = house.connecting
    if where == "a worker":
        house.answer(DirectoryError("full"), "one")
    else:
        house.inbox.put(Connected("http://silent", DirectoryError("full"), 0.0))
        house.advance(0)
        house.answer(host="one")
    house.answer(FAULTY, "two")
    house.advance(10.0)
    assert not house.running
    assert house.connecting == [pending]


def test_once_the_run_is_to_end_no_turn_goes_on() -> None:
    house = House({"per_host": 1}, pace=0.05)
    house.add(*urls("far", 10), "http://other/a.jpg")
    house.answer(host="far")
    house.running[0].answer(DirectoryError("full"))
    house.meanwhile = lambda: house.advance(0)
    assert house.answer(host="far") == 1


def test_once_the_run_is_to_end_nothing_is_tried_again() -> None:
    house = House()
    house.add("http://host/a.jpg", "http://other/b.jpg")
    house.answer(DirectoryError("gone"), "host")
    house.answer(FAULTY, "other")
    assert house.scheduler.pending == 0
    assert house.reasons() == [Reason.INTERRUPTED, Reason.HTTP_STATUS]


def test_once_the_run_is_to_end_an_image_that_is_refused_waits_no_more() -> None:
    house = House()
    house.add("http://host/a.jpg")
    house.scheduler.abandon()
    house.answer(BUSY)
    assert house.scheduler.pending == 0
    assert house.reasons() == [Reason.HTTP_STATUS]


def test_the_time_that_connecting_takes_counts_where_it_fails() -> None:
    house = House({"retries": 0})
    house.silent.add("http://host")
    house.add("http://host/a.jpg")
    house.advance(2.0)
    house.come("http://host", RESET)
    house.advance(0)
    assert [end.seconds for end in house.finished] == [2.0]


def test_a_redirect_is_an_answer_of_the_host_that_sends_it() -> None:
    house = House({"host_failures": 1})
    house.add(*urls("host", 4))
    house.answer(RESET, "host")
    house.advance(1.0)
    redirect(house, "http://target/a.jpg", "host")
    assert house.on("host") > 1


@pytest.mark.parametrize("answered_with", ["an image", "a redirect"])
def test_an_answer_to_an_older_request_does_not_end_a_pause(answered_with: str) -> None:
    house = House({"per_host": 8, "retries": 100}, pace=0.05)
    house.add(*urls("host", 40))
    house.answer()
    while house.on("host") > 2:
        house.answer(BUSY)
    if answered_with == "a redirect":
        redirect(house, "http://target/a.jpg", "host")
        house.answer(host="target")
    else:
        house.answer()
    house.answer(BUSY)
    house.advance(0.2)
    assert house.on("host") == 1, "one at a time, until it lets one through that was asked for since"


def test_a_place_that_a_redirected_job_leaves_is_taken_at_once() -> None:
    house = House({"per_host": 1})
    house.add(*urls("target", 2))
    house.answer()
    house.add(*urls("host", 2))
    redirect(house, "http://target/b.jpg", "host")
    house.answer(host="target")
    assert not house.on("host")
    house.answer(FAULTY, "target")
    assert house.on("host") == 1


def test_jobs_of_a_slowed_host_are_taken_singly() -> None:
    house = House(pace=0.001)
    house.add(*urls("host", 120))
    while len(house.finished) < 80:
        house.answer()
    house.step(BUSY)
    while house.scheduler.pending:
        house.advance(0.05)
        if house.running:
            assert house.answer() == 1


def test_failures_of_a_host_that_has_one_job_at_a_time_are_counted() -> None:
    house = House({"host_failures": 2, "retries": 0})
    house.refusing["http://host"] = RESET
    house.add("http://host/a.jpg")
    house.add("http://host/b.jpg")
    house.add("http://host/c.jpg")
    assert len(house.finished) == 2, "it is probed"


def test_an_image_that_is_refused_for_ever_alone_brings_no_verdict_on_its_host() -> None:
    house = House({"host_failures": 1, "host_patience": 5.0})
    house.add("http://host/a.jpg")
    while house.scheduler.pending:
        if house.running:
            house.answer(BUSY)
        house.advance(0.5)
    assert house.reasons() == [Reason.HTTP_STATUS]
    house.add("http://host/b.jpg")
    finish(house)
    assert house.reasons() == [Reason.HTTP_STATUS]

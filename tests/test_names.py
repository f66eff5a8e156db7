"""Name look-ups: each name once at a time, answers kept for a while, and a resolver that hangs holds up nobody."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Any

import pytest

from conftest import ENVIRONMENT
from image_loader.errors import DownloadError, LoaderError, OutOfThreadsError
from image_loader.model import Blame, Reason
from image_loader.transport.names import LookUp, Names


class Resolver:
    """Stands in for the system's: answers with 192.0.2.1, or as told. Names like "hang.test" wait for the gate."""

    def __init__(self) -> None:
        """Count what is asked."""
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.error: Exception | None = None

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        """Answer."""
        self.asked.append(host)
        if host.startswith("hang"):
            self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.gate.set()


@pytest.fixture
def names() -> Iterator[Names]:
    wait_for(lambda: look_up_threads() == 0)  # Those of another test may be about to end.
    with closing(Names()) as made:
        yield made


def answer_to(names: Names, host: str) -> LookUp:
    told = SimpleQueue[LookUp]()
    found = names.look_up(host, 0, lambda _, answer: told.put(answer))
    return told.get(timeout=20) if found is None else found


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def look_up_threads() -> int:
    return sum(each.name == "image_loader-names" for each in threading.enumerate())


def test_a_name_is_looked_up_once_for_all_who_ask(resolver: Resolver, names: Names) -> None:
    told = SimpleQueue[tuple[int, LookUp]]()
    for number in range(50):
        assert names.look_up("hang.test", number, lambda *what: told.put(what)) is None
    resolver.gate.set()
    numbers = {told.get(timeout=20)[0] for _ in range(50)}
    assert numbers == set(range(50))
    assert resolver.asked == ["hang.test"]


def test_an_answer_is_kept(resolver: Resolver, names: Names) -> None:
    first = answer_to(names, "a.test")
    assert names.look_up("a.test", 1, lambda *_: None) == first
    assert resolver.asked == ["a.test"]


def test_an_answer_is_not_kept_for_ever(resolver: Resolver) -> None:
    with closing(Names(kept_for=0.0)) as names:
        answer_to(names, "a.test")
        answer_to(names, "a.test")
    assert resolver.asked == ["a.test"] * 2


def test_a_failure_is_not_kept(resolver: Resolver, names: Names) -> None:
    resolver.error = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert isinstance(answer_to(names, "a.test"), DownloadError)
    resolver.error = None
    assert isinstance(answer_to(names, "a.test"), tuple)


@pytest.mark.usefixtures("resolver")
def test_the_answers_that_are_kept_are_bounded() -> None:
    with closing(Names(most_kept=5)) as names:
        for number in range(9):
            answer_to(names, f"{number}.test")
        kept = [names.look_up(f"{number}.test", 1, lambda *_: None) is not None for number in range(9)]
    assert kept == [False] * 4 + [True] * 5


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        (socket.EAI_NONAME, False), (getattr(socket, "EAI_NODATA", socket.EAI_NONAME), False),
        (socket.EAI_AGAIN, True), (socket.EAI_FAIL, True), (socket.EAI_SYSTEM, True),
    ],
)  # fmt: skip
def test_a_name_that_does_not_exist_is_final_and_a_resolver_that_fails_is_not(
    resolver: Resolver, names: Names, code: int, retryable: bool
) -> None:
    resolver.error = socket.gaierror(code, "why")
    answer = answer_to(names, "a.test")
    assert isinstance(answer, DownloadError)
    failure = answer.failure
    assert (failure.reason, failure.retryable, failure.blame) == (Reason.DNS, retryable, Blame.HOST)


@pytest.mark.parametrize(
    ("host", "ip"),
    [
        ("127.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"), ("0x7f.1", "127.0.0.1"), ("2130706433", "127.0.0.1"),
        ("017700000001", "127.0.0.1"), ("[::1]", "::1"), ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"), ("0", "0.0.0.0"),
    ],
)  # fmt: skip
def test_an_address_needs_no_thread(names: Names, host: str, ip: str) -> None:
    before = look_up_threads()
    found = names.look_up(host, 0, lambda *_: None)
    assert isinstance(found, tuple)
    assert [address.ip for address in found] == [ip]
    assert look_up_threads() == before


def test_look_ups_that_hang_hold_up_no_other(resolver: Resolver, names: Names) -> None:
    for number in range(100):
        names.look_up(f"hang{number}.test", number, lambda *_: None)
    told = SimpleQueue[LookUp]()
    names.look_up("a.test", 100, lambda _, answer: told.put(answer))
    while told.empty():
        names.relieve()
        time.sleep(0.01)
    assert len(resolver.asked) == 101
    assert not resolver.gate.is_set()


def test_the_threads_of_look_ups_that_hang_are_bounded(resolver: Resolver, names: Names) -> None:
    for number in range(400):
        names.look_up(f"hang{number}.test", number, lambda *_: None)
    for _ in range(30):
        names.relieve()
        time.sleep(0.06)
    assert len(resolver.asked) == look_up_threads() == 256


def test_look_ups_that_are_fast_take_one_thread(resolver: Resolver, names: Names) -> None:
    for number in range(100):
        answer_to(names, f"{number}.test")
        names.relieve()
    assert len({*resolver.asked}) == 100
    assert look_up_threads() == 1


def test_a_look_up_that_nobody_waits_for_is_not_begun(resolver: Resolver, names: Names) -> None:
    names.look_up("hang.test", 0, lambda *_: None)
    wait_for(lambda: resolver.asked == ["hang.test"])
    names.look_up("forgotten.test", 1, lambda *_: None)
    names.look_up("wanted.test", 2, lambda *_: None)
    names.look_up("wanted.test", 3, lambda *_: None)
    names.forget("forgotten.test", 1)
    names.forget("wanted.test", 2)
    resolver.gate.set()
    answer_to(names, "last.test")
    assert resolver.asked == ["hang.test", "wanted.test", "last.test"]


def test_without_any_thread_the_run_ends(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert isinstance(names.look_up("a.test", 0, lambda *_: None), LoaderError)


def test_without_any_thread_those_that_joined_a_look_up_are_told_as_well(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, LookUp]] = []

    def none(_: threading.Thread) -> None:
        names.look_up("a.test", 1, lambda *what: told.append(what))
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert isinstance(names.look_up("a.test", 0, lambda *what: told.append(what)), LoaderError)
    assert [(number, type(found)) for number, found in told] == [(1, OutOfThreadsError)]


_HANGING = """
import socket, threading, time
socket.getaddrinfo = lambda *_, **__: time.sleep(3600)
from image_loader.transport.names import Names
Names().look_up("a.test", 0, print)
assert any(each.name == "image_loader-names" for each in threading.enumerate())
"""


def test_a_look_up_that_hangs_does_not_keep_the_interpreter_from_ending() -> None:
    finished = subprocess.run([sys.executable, "-c", _HANGING], env=ENVIRONMENT, check=False, timeout=300)
    assert finished.returncode == 0

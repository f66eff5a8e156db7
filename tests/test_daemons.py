"""The threads for calls that block: more while calls are slow, and fewer again afterwards."""

from __future__ import annotations

import threading
import time

import pytest

from image_loader.transport import daemons
from image_loader.transport.daemons import Daemons


def test_threads_that_are_not_needed_end_although_calls_keep_coming() -> None:
    some = Daemons("some-daemons", most=5, idle_time=0.2)
    go_on, busy = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        busy.release()
        go_on.wait()

    for number in range(5):
        some.submit(number, hang)
    busy.acquire()
    while not busy.acquire(timeout=daemons.WAIT):
        some.relieve()
    assert _count("some-daemons") == 5
    go_on.set()
    deadline = time.monotonic() + 20
    while _count("some-daemons") > 1 and time.monotonic() < deadline:
        done = threading.Event()
        some.submit("one", done.set)
        assert done.wait(10)
        time.sleep(0.01)
    assert _count("some-daemons") == 1
    some.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_that_raises_takes_its_thread_along_and_no_other_ones_place() -> None:
    some = Daemons("some-raising", most=1)

    def fail() -> None:
        raise ValueError("a fault")

    some.submit("first", fail)
    deadline = time.monotonic() + 20
    while _count("some-raising"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    done = threading.Event()
    some.submit("second", done.set)
    assert done.wait(10)
    some.close()


def _count(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())

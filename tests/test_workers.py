"""Promises of the pool of threads: it does with the threads that it gets, and is closed without waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from typing import NoReturn

import pytest

from image_loader.errors import OutOfThreadsError
from image_loader.scheduling.workers import Workers


def cannot_start(_: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Return a pool of up to four threads."""
    workers = Workers(4)
    yield workers
    workers.close()


def test_without_a_single_thread_there_is_an_error(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", cannot_start)
    for _ in range(2):
        with pytest.raises(OutOfThreadsError):
            workers.submit(lambda: None)


def test_the_threads_that_run_do_all_the_work_where_no_more_can_be_started(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    go_on = threading.Event()
    done: SimpleQueue[int] = SimpleQueue()

    def hold() -> None:
        go_on.wait()

    workers.submit(hold)
    monkeypatch.setattr(threading.Thread, "start", cannot_start)
    for number in range(3):
        workers.submit(partial(done.put, number))
    assert caplog.messages == ["out of threads (ulimit -u, ulimit -v): fewer downloads at once"]
    go_on.set()
    assert [done.get() for _ in range(3)] == [0, 1, 2]


def test_a_pool_is_closed_without_waiting_and_does_nothing_more() -> None:
    workers = Workers(1)
    go_on, begun, over = (threading.Event() for _ in range(3))
    done, threads = [], list[threading.Thread]()

    def work() -> None:
        threads.append(threading.current_thread())
        begun.set()
        go_on.wait()
        over.set()

    workers.submit(work)
    workers.submit(lambda: done.append("late"))
    begun.wait()
    workers.close()
    go_on.set()
    threads[0].join()
    assert over.is_set()
    assert done == []

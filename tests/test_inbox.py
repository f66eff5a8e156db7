"""Promises of the queue that a thread waits for."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import Empty

import pytest

from conftest import ENVIRONMENT
from image_loader.inbox import Inbox

LONG_HANDLER = """
import queue, signal, time
from image_loader.inbox import Inbox

inbox = Inbox()
signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.3))
signal.setitimer(signal.ITIMER_REAL, 0.05)
for _ in range(2):
    try:
        inbox.get(0.1)
    except queue.Empty:
        print("empty")
"""


def test_messages_come_in_their_order_and_then_none() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(3):
        inbox.put(number)
    assert [inbox.get(60), inbox.get_nowait(), inbox.get(60)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(Empty):
            inbox.get(0.0)


@pytest.mark.parametrize("message_is_late", [True, False])
def test_a_message_ends_the_wait(*, message_is_late: bool) -> None:
    inbox: Inbox[int] = Inbox()
    with pytest.raises(Empty):
        inbox.get(0.0)
    with ThreadPoolExecutor(1) as pool:
        if message_is_late:
            threading.Timer(0.1, inbox.put, [2]).start()
        else:
            inbox.put(1)
            inbox.put(2)
            assert inbox.get(0.0) == 1
        waiting = pool.submit(inbox.get, 90)
        try:
            assert waiting.result(30) == 2
        finally:
            inbox.put(0)


def test_a_signal_whose_handler_takes_longer_than_the_wait_does_not_make_it_endless() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LONG_HANDLER], env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == "empty\n" * 2

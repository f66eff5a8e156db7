"""What OpenSSL computes for TLS handshakes, in a few threads beside the one that makes the connections."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from queue import SimpleQueue

from image_loader.processors import spread

MOST_THREADS = 3
"""Threads of a run. Each computes for half a millisecond a host, without the interpreter lock, so that it may be on
another processor meanwhile. More threads than these would only wait for the lock."""


class Step:
    """A step of a handshake: what the peer has sent is checked, and answered.

    Once it ``is_taken``, ``error`` says why nothing more was done: the peer has the next word (``SSLWantReadError``),
    or a failure. None: the handshake is done. One that raises is not taken.
    """

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.error: OSError | None = None
        self.is_taken = False
        self._tls = tls
        self._is_dropped = False

    def take(self) -> None:
        """Take it, unless it was dropped; any thread may do that."""
        if not self._is_dropped:
            try:
                self._tls.do_handshake()
            except OSError as error:
                self.error = error.with_traceback(None)  # The traceback refers to this step.
            self.is_taken = True

    def drop(self) -> None:
        """Have the connection closed: now, or by whoever is told that the step was taken."""
        self._is_dropped = True
        if self.is_taken:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._tls.close()


class Handshakes:
    """Daemon threads that take steps, started when there is work for them.

    They may run on any of ``processors``; where that is empty, on those of the thread that starts them.
    """

    def __init__(self, processors: frozenset[int]) -> None:
        self._processors = processors
        self._threads = 0
        self._steps: SimpleQueue[tuple[Step, Callable[[], None]] | None] = SimpleQueue()

    def submit(self, step: Step, then: Callable[[], None]) -> None:
        """Have a step taken, and ``then`` called in the same thread; in this one where no other can be started.

        One thread at a time may submit.
        """
        if self._threads < MOST_THREADS and (not self._threads or not self._steps.empty()):
            self._start()
        if self._threads:
            self._steps.put((step, then))
        else:
            step.take()
            then()

    def close(self) -> None:
        """End the threads when they are through with what they have."""
        for _ in range(self._threads):
            self._steps.put(None)

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="image_loader-tls", daemon=True).start()
        except RuntimeError:
            return
        self._threads += 1

    def _run(self) -> None:
        with spread(self._processors):
            while (submitted := self._steps.get()) is not None:
                step, then = submitted
                try:
                    step.take()
                finally:
                    then()
                del submitted, step, then  # While the thread is idle, nothing of the last one is kept.

"""A child as its parent sees it: the process, what it was sent, and what it has told."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from queue import SimpleQueue

from image_loader import interpreter
from image_loader.errors import OutOfThreadsError, ProcessError
from image_loader.inbox import Inbox
from image_loader.model import Line
from image_loader.processes.messages import Part, ToChild, ToParent

Told = tuple["Child", ToParent | None]
"""What a child tells; None: it is gone."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WATCH = 0.5
"""Seconds between two looks whether the child lives: a fork of this process may keep the connection open."""
_PATIENCE = 1.0
"""Seconds for a child that has closed its connection to end."""


class Child:
    """One child; it is started with the first lines that are sent to it. The main thread alone uses it.

    Two threads send and receive: a child that was stopped (SIGSTOP) reads nothing, and holds up nobody.
    """

    def __init__(self, inbox: Inbox[Told]) -> None:
        self.outstanding: dict[int, Line] = {}
        """The lines that are its own and are not told, by their numbers."""
        self.is_running = False
        self.is_lost = False
        """Whether it has died before its end."""
        self.exit_text = ""
        """How it ended, if it died: a signal or an exit status."""
        self.has_ended = False
        self.waits_until = 0.0
        self.wanted = 0
        self._inbox = inbox
        self._threads: list[threading.Thread] = []
        self._to_send: SimpleQueue[Part | ToChild | None] = SimpleQueue()

    def start(self, part: Part) -> None:
        """Start the process; raises ``ProcessError``, ``OutOfThreadsError``."""
        try:
            self._connection, theirs = Pipe()
            with theirs:
                try:
                    self._process = _started(theirs.fileno(), part.held.descriptor)
                except OSError:
                    self._connection.close()
                    raise
        except OSError as error:
            raise ProcessError(f"no process can be started: {error.strerror}; use --processes 1") from error
        self._to_send.put(part)
        self.is_running = True
        try:
            self._start_thread(self._receive)
            self._start_thread(self._send)
        except RuntimeError as error:
            self.kill()
            if not self._threads:
                self._inbox.put((self, None))
            raise OutOfThreadsError from error

    def send(self, message: ToChild) -> None:
        """Send lines, or an order."""
        self._to_send.put(message)

    def kill(self) -> None:
        """Kill the process: it is gone soon."""
        self._process.kill()

    def clean_up(self) -> None:
        """Wait for a process that has closed its connection, and release what it took."""
        self.is_running = False
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if not self.has_ended:
            self.is_lost = True
            self.exit_text = interpreter.status_name(status)
        self.waits_until, self.wanted = 0.0, 0
        self._to_send.put(None)
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._connection.close()

    def _start_thread(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _send(self) -> None:
        with suppress(OSError):
            while (message := self._to_send.get()) is not None:
                self._connection.send(message)

    def _receive(self) -> None:
        with suppress(EOFError, OSError):
            while self._has_message():
                self._inbox.put((self, self._connection.recv()))
        self._inbox.put((self, None))

    def _has_message(self) -> bool:
        """Wait for a message; False where none can come any more."""
        while not self._connection.poll(_WATCH):
            if self._process.poll() is not None:
                return self._connection.poll()
        return True


def _started(*descriptors: int) -> subprocess.Popen[bytes]:
    call = interpreter.code("image_loader.processes.child", f"serve({descriptors[0]})")
    with _blocked_signals():
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", f"import gc; gc.disable(); {call}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
        )


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Start processes that never hear of what ends a run: a signal to all processes of a terminal is for the parent."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)

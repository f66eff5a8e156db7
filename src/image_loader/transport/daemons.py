"""Daemon threads for calls that block and cannot be cut off, such as name look-ups."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from image_loader.errors import OutOfThreadsError

WAIT = 0.05
"""Seconds that a call waits for a thread before more of them are started."""
_IDLE_TIME = 5.0
"""Seconds that a thread waits for its next call before it ends."""


class Daemons:
    """Makes calls in daemon threads: one thread while calls are fast, up to ``most`` while they are slow.

    ``name`` is that of each thread, which ends when it had nothing to do for ``idle_time`` seconds.

    The threads of ``concurrent.futures`` are joined when the interpreter ends; a call that hangs would hold that up.
    """

    def __init__(self, name: str, most: int, idle_time: float = _IDLE_TIME) -> None:
        self._name = name
        self._most = most
        self._idle_time = idle_time
        self._lock = threading.Lock()
        self._waiting: OrderedDict[object, tuple[Callable[[], None], float]] = OrderedDict()
        self._threads = 0
        # What the idle threads wait for. The last one goes on first: those that are not needed come to their end.
        self._idle: list[threading.Lock] = []
        self._closed = False

    @property
    def is_waiting(self) -> bool:
        """Whether a call waits for a thread."""
        return bool(self._waiting)

    def submit(self, key: object, call: Callable[[], None]) -> None:
        """Have a call made. ``OutOfThreadsError`` where there is no thread, and none can be started."""
        with self._lock:
            self._waiting[key] = (call, time.monotonic())
            if self._idle:
                self._idle.pop().release()
            elif not self._threads and not self._start(1):
                del self._waiting[key]
                raise OutOfThreadsError

    def withdraw(self, key: object) -> bool:
        """Forget a call; return False if it has begun already."""
        with self._lock:
            return self._waiting.pop(key, None) is not None

    def relieve(self) -> None:
        """Start more threads if calls wait longer than ``WAIT``; to be called now and then while some wait."""
        with self._lock:
            if not self._waiting or self._idle or self._threads >= self._most:
                return
            _, since = next(iter(self._waiting.values()))
            if time.monotonic() - since >= WAIT:
                # Three times as many: behind a hundred calls that hang, one is made within a quarter of a second.
                self._start(min(len(self._waiting), max(4, 2 * self._threads), self._most - self._threads))

    def close(self) -> None:
        """Forget the calls that wait, and end the threads as soon as they are idle."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            while self._idle:
                self._idle.pop().release()

    def _start(self, count: int) -> bool:
        for _ in range(count):
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError:
                return False
            self._threads += 1
        return True

    def _run(self) -> None:
        try:
            while (call := self._next()) is not None:
                call()
                del call  # While the thread is idle, nothing of the last call is kept.
        except BaseException:
            with self._lock:
                self._threads -= 1
            raise

    def _next(self) -> Callable[[], None] | None:
        """Return the call to make next; None where none came for long, or none comes any more."""
        in_vain = False
        while True:
            with self._lock:
                if self._waiting:
                    return self._waiting.popitem(last=False)[1][0]
                if self._closed or in_vain:
                    self._threads -= 1
                    return None
                gate = threading.Lock()
                gate.acquire()
                self._idle.append(gate)
            if not gate.acquire(timeout=self._idle_time):
                in_vain = self._is_in_vain(gate)

    def _is_in_vain(self, gate: threading.Lock) -> bool:
        """Tell whether a thread still waits when its time is over. It then no longer counts as idle."""
        with self._lock:
            if gate not in self._idle:
                return False
            self._idle.remove(gate)
            return True

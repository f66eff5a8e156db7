"""Signals: the first one asks the run to end, a second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


class Stop:
    """Whether the run is to end: ``event`` is set by a signal, ``status`` is the exit status that it asks for."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.status: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the block runs; one that is ignored (``nohup``) stays so."""
        heard = [number for number in _STATUSES if signal.getsignal(number) != signal.SIG_IGN]
        former = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.status is not None:
            os._exit(_STATUSES[signal.Signals(number)])
        self.status = _STATUSES[signal.Signals(number)]
        self.event.set()

"""Hosts that redirects lead to: the scheduler knows none of them, so those that do not answer are given up here."""

from __future__ import annotations

import time
from collections.abc import Callable

from image_loader.errors import DownloadError
from image_loader.model import Reason

_REMEMBERED = 10_000  # hosts that fail; bounded, whatever the list


class _Failing:
    __slots__ = ("ask_at", "failures", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.failures = 0
        self.ask_at = 0.0


class Targets:
    """What is known of them in this run; any thread may use it, and what two note at once may count once."""

    def __init__(self, failures: int, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        """After so many ``failures`` in a row, and so many seconds of ``patience``, a host counts as down."""
        self._failures = failures
        self._patience = patience
        self._clock = clock
        self._failing: dict[str, _Failing] = {}

    def check(self, origin: str) -> None:
        """Raise ``DownloadError`` for a host that is down; every now and then, it is asked all the same."""
        host = self._failing.get(origin)
        now = self._clock()
        if host is None or host.failures < self._failures or now - host.since < self._patience:
            return
        if now < host.ask_at:
            raise DownloadError(Reason.HOST_DOWN, "the host that this redirects to does not answer")
        host.ask_at = now + self._patience

    def missed(self, origin: str, started: float) -> None:
        """Count a failure to connect; ``started`` is when that was tried, by the clock."""
        host = self._failing.setdefault(origin, _Failing(started))
        host.failures += 1
        if len(self._failing) > _REMEMBERED:
            self._failing.pop(next(iter(self._failing)), None)

    def answered(self, origin: str) -> None:
        """Note that a host answers."""
        self._failing.pop(origin, None)

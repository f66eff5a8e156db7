"""When to look again: at jobs that wait for their next attempt, and at hosts that are paused or run out of patience."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from image_loader.scheduling.host import Host, Task

_FEW = 1000
"""Entries that are not worth looking through."""


class Timers:
    """The timers of a run, for the scheduling thread. Outdated entries are skipped, and thrown away before long."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Task | Host]] = []
        self._numbers = itertools.count()
        self._most = _FEW
        """Entries at which those that are outdated are thrown away."""

    def set_task(self, task: Task, due: float) -> None:
        """Have a task come back at a time, in seconds of the scheduler's clock."""
        task.due = due
        self._push(due, task)

    def set_host(self, host: Host, at: float) -> None:
        """Have a host looked at then, or earlier."""
        if host.wakes_at is None or at < host.wakes_at:
            host.wakes_at = at
            self._push(at, host)

    def next_at(self) -> float | None:
        """Return when the next one is due; None where there is none."""
        while self._heap and _is_outdated(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[Task | Host]:
        """Yield what is due, and take it out."""
        while (at := self.next_at()) is not None and at <= now:
            which = heapq.heappop(self._heap)[2]
            if isinstance(which, Host):
                which.wakes_at = None
            yield which

    def clear(self) -> None:
        """Forget all of them."""
        self._heap.clear()

    def _push(self, at: float, which: Task | Host) -> None:
        heapq.heappush(self._heap, (at, next(self._numbers), which))
        if len(self._heap) > self._most:
            self._heap = [entry for entry in self._heap if not _is_outdated(*entry)]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + _FEW


def _is_outdated(at: float, _: int, which: Task | Host) -> bool:
    """Tell whether a timer was set anew since, or its task is finished."""
    if isinstance(which, Host):
        return which.wakes_at != at
    return which.due != at or which.finished

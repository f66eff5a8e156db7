"""When to look again: at jobs that wait for their next attempt, and at hosts that are paused or run out of patience."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from image_loader.scheduling.host import Host, Task


class Timers:
    """The timers of a run. Outdated entries stay in the heap and are skipped."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Task | Host]] = []
        self._numbers = itertools.count()

    def set_task(self, task: Task, due: float) -> None:
        """Have a task come back at a time, in seconds of the scheduler's clock."""
        task.due = due
        heapq.heappush(self._heap, (due, next(self._numbers), task))

    def set_host(self, host: Host, at: float) -> None:
        """Have a host looked at then, or earlier."""
        if host.wakes_at is None or at < host.wakes_at:
            host.wakes_at = at
            heapq.heappush(self._heap, (at, next(self._numbers), host))

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


def _is_outdated(at: float, _: int, which: Task | Host) -> bool:
    """Tell whether a timer was set anew since, or its task is finished."""
    if isinstance(which, Host):
        return which.wakes_at != at
    return which.due != at or which.finished

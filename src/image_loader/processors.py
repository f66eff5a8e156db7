"""Which processors a thread may run on: passing the interpreter lock from one to another is slow."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def stay_on_one(own: frozenset[int] = frozenset()) -> frozenset[int]:
    """Bind this thread, and those that it will start, to the processor that it is on; return those it might have had.

    The kernel has chosen it, so that runs at the same time have different ones. If it is not among ``own``, one of
    these takes its place; empty, they are all. Does nothing, and returns an empty set, where there is no choice
    (``sched_setaffinity(2)`` exists on Linux alone), and where there is no interpreter lock.
    """
    if sys.platform == "linux" and _has_interpreter_lock():
        with suppress(OSError):
            allowed, current = os.sched_getaffinity(0), _current()
            os.sched_setaffinity(0, {min(own) if own and current not in own else current})
            return frozenset(allowed)
    return frozenset()


def share(number: int, count: int) -> frozenset[int]:
    """Return the processors that one of ``count`` processes should choose among; none where there is no choice."""
    if sys.platform != "linux":
        return frozenset()
    allowed = sorted(os.sched_getaffinity(0))
    return frozenset(allowed[number % len(allowed) :: count])


@contextmanager
def spread(processors: frozenset[int]) -> Iterator[None]:
    """Let this thread run on any of ``processors`` during the block; without any, leave it where it is."""
    if sys.platform != "linux" or not processors:
        yield
        return
    bound = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, bound)


def _has_interpreter_lock() -> bool:
    """Tell whether only one thread runs Python at a time; free-threaded builds exist since CPython 3.13 (PEP 703)."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _current() -> int:
    """Return the processor that this thread runs on (``proc_pid_stat(5)``, field 39)."""
    # The second field, the name of the program, is in parentheses and may hold anything.
    return int(Path("/proc/thread-self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[36])

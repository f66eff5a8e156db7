"""One measured run of one command: its time, processor time and peak memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer


@dataclass(frozen=True)
class Usage:
    """What one run took, from start to end.

    ``started`` is in seconds since the epoch, ``seconds`` and ``cpu`` (user and system, with all child processes) in
    seconds, ``peak`` in bytes of the largest process. ``peak`` is an upper bound while ``peak_is_floor``: Linux counts
    the memory of the process that called ``exec`` as well. ``exit_status`` is None for a run stopped at its limit.
    """

    started: float
    seconds: float
    cpu: float
    peak: int
    peak_is_floor: bool
    exit_status: int | None


def run(command: Sequence[str], *, environment: Mapping[str, str], log: Path, limit: float) -> Usage:
    """Run ``command`` to its end, or for ``limit`` seconds; what it prints goes to ``log``."""
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with log.open("wb") as output:
        started, clock = time.time(), time.monotonic()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        stopped, status, usage = _wait(process.pid, limit)
        seconds = time.monotonic() - clock
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    exit_status = None if stopped else process.returncode
    return Usage(started, seconds, cpu, usage.ru_maxrss * 1024, usage.ru_maxrss <= floor, exit_status)


def _wait(pid: int, limit: float) -> tuple[bool, int, resource.struct_rusage]:
    """Wait for the end; the pid stays taken until the timer can no longer kill a stranger who was given it."""
    timer = Timer(limit, os.killpg, (pid, signal.SIGKILL))
    timer.start()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    timer.cancel()
    timer.join()
    _, status, usage = os.wait4(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status, usage

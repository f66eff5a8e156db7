"""Child processes that run modules of this package: how they are started, and what their exit statuses say.

Not by ``multiprocessing``: it would import the caller's main module in the child (spawn, forkserver), or copy a process
with threads (fork).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def code(module: str, call: str) -> str:
    """Return the code that calls a function of a module of ours, with the modules that this process would import."""
    places = [os.path.abspath(place) for place in sys.path]  # noqa: PTH100 (Path's resolves links)
    package = str(Path(__file__).parents[1])
    return f"import sys; sys.path[:] = {[*places, package]!a}; import {module} as module; module.{call}"


def status_name(status: int) -> str:
    """Name an exit status, as ``subprocess`` tells it.

    >>> status_name(-11), status_name(1)
    ('SIGSEGV', 'exit status 1')
    """
    names = {-number.value: number.name for number in signal.Signals}
    return names.get(status, f"exit status {status}")

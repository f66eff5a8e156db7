"""What makes a run: this process, several, or the workers of a scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import chain, islice

from image_loader import batch
from image_loader.model import Line, Outcome
from image_loader.settings import Settings

Run = Callable[
    [Iterable[Sequence[Line] | None], Settings, threading.Event, Callable[[float], None]],
    Generator[Outcome, None, None],
]
"""A story of a run, as ``batch.run`` is one."""


def run(
    lines: Iterable[Sequence[Line] | None],
    settings: Settings,
    stop: threading.Event,
    tick: Callable[[float], None] = lambda _: None,
) -> Generator[Outcome, None, None]:
    """Yield the outcome of every line; see ``batch.run``."""
    lines = iter(lines)
    # Read before anything is made: a list that is not there leaves no directory behind.
    first = list(islice(lines, 1))
    yield from _story(settings)(chain(first, lines), settings, stop, tick)


def _story(settings: Settings) -> Run:
    """Choose; a dry run takes one process."""
    if settings.dry_run:
        from image_loader import preview

        return preview.run
    if settings.cluster is not None:
        from image_loader.cluster import driver

        return driver.run
    if settings.processes > 1:
        from image_loader.processes import parent

        return parent.run
    return batch.run

"""What makes a run: this process, several, or the workers of a scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence

from image_loader import batch
from image_loader.model import Line, Outcome
from image_loader.settings import Settings


def run(
    lines: Iterable[Sequence[Line] | None],
    settings: Settings,
    stop: threading.Event,
    tick: Callable[[float], None] = lambda _: None,
) -> Generator[Outcome, None, None]:
    """Return the outcomes of every line; see ``batch.run``. A dry run takes one process."""
    if settings.cluster is not None:
        from image_loader.cluster import driver

        return driver.run(lines, settings, stop, tick)
    if settings.processes > 1 and not settings.dry_run:
        from image_loader.processes import parent

        return parent.run(lines, settings, stop, tick)
    return batch.run(lines, settings, stop, tick)

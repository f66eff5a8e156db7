"""What makes a run: this process, or several."""

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
    """Yield the outcome of every line; see ``batch.run``. A dry run takes one process."""
    if settings.processes == 1 or settings.dry_run:
        return batch.run(lines, settings, stop, tick)
    from image_loader.processes import parent

    return parent.run(lines, settings, stop, tick)

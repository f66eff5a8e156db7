"""A dry run: what would be done, with nothing asked and nothing changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from image_loader import outcome, removal
from image_loader.errors import LoaderError
from image_loader.model import Line, Outcome
from image_loader.planner import Planner, beginning
from image_loader.settings import Settings
from image_loader.store.directory import view
from image_loader.store.index import FILE
from image_loader.store.index_copy import IndexCopy


def run(
    lines: Iterable[Sequence[Line] | None], settings: Settings, stop: threading.Event, tick: Callable[[float], None]
) -> Generator[Outcome, None, None]:
    """Yield the outcome of every line; see ``batch.run``."""
    directory = view(settings.directory)
    named = settings.index_file
    with IndexCopy(named or directory.hidden / FILE, stop.is_set, named=named is not None) as index:
        known, planner = index.known(), Planner(settings, directory, index, beginning(directory, index))
        for group in lines:
            yield from _planned(planner, group or (), stop)
            tick(0.0)
            if stop.is_set():
                return
        if settings.delete:
            yield from removal.preview(settings, directory, index, known, stop)


def _planned(planner: Planner, rest: Sequence[Line], stop: threading.Event) -> Iterator[Outcome]:
    try:
        while rest and not stop.is_set():
            plan = planner.plan(rest)
            rest = plan.rest
            yield from plan.outcomes
            yield from map(outcome.would_ask, plan.jobs)
    except LoaderError:
        yield from map(outcome.interrupted, rest)
        raise
    yield from map(outcome.interrupted, rest)

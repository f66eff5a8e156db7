"""The story of a run on a cluster: lines become tasks, tasks become outcomes."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from image_loader import __version__, batch, outcome
from image_loader.cluster.dask import Dask
from image_loader.cluster.heartbeat import Heartbeat
from image_loader.cluster.spools import Spools
from image_loader.cluster.task import Ended, Task
from image_loader.errors import ClusterError, LoaderError
from image_loader.model import INTERRUPTED, Line, Outcome, Reason
from image_loader.settings import Settings
from image_loader.store.partitions import Partitions, name, runs
from image_loader.url import part

_LOG = logging.getLogger(__name__)
DRIVER_PATIENCE = 60.0
"""Seconds without a sign of life of the driver after which its tasks end."""
_ENDING = 6.0
"""Seconds that tasks get to end when the run is to end."""


def run(
    lines: Iterable[Sequence[Line] | None],
    settings: Settings,
    stop: threading.Event,
    tick: Callable[[float], None],
) -> Generator[Outcome, None, None]:
    """Yield the outcome of every line, those of a part when all of it is done; see ``batch.run``.

    All of the list is read before the first image is downloaded: the largest parts go first.
    """
    with ExitStack() as stack:
        dask = Dask(settings.cluster or "", stop, tick)
        stack.callback(dask.close)
        if stop.is_set():
            return
        directory = Partitions(settings.directory, settings.partitions)
        stack.callback(directory.close)
        template = Task(directory.path, secrets.token_hex(8), 0, __version__, DRIVER_PATIENCE)
        spools = Spools(runs(directory.path), template.run, _anywhere(settings, directory.path))
        stack.callback(spools.close)
        heartbeat = Heartbeat(spools.folder.heartbeat)
        stack.callback(heartbeat.close)
        stack.callback(heartbeat.end_tasks)
        dask.check(template)
        yield from _Run(settings, dask, spools, heartbeat, tick).outcomes(lines, template, stop)


def _anywhere(settings: Settings, directory: Path) -> Settings:
    """Return the settings with paths that are the same in every current directory."""
    bundle = None if settings.ca_bundle is None else os.path.abspath(settings.ca_bundle)  # noqa: PTH100 (keeps links)
    return settings._replace(directory=directory, ca_bundle=bundle)


class _Run:
    """One run, in the main thread: it divides the list, and tells what comes back."""

    def __init__(
        self, settings: Settings, dask: Dask, spools: Spools, heartbeat: Heartbeat, tick: Callable[[float], None]
    ) -> None:
        self._parts = settings.partitions
        self._dask = dask
        self._spools = spools
        self._heartbeat = heartbeat
        self._tick = tick
        self._undivided: deque[Line] = deque()
        self._told: set[int] = set()
        """The parts whose lines were all told."""
        self._fault: ClusterError | None = None

    def outcomes(
        self, lines: Iterable[Sequence[Line] | None], template: Task, stop: threading.Event
    ) -> Iterator[Outcome]:
        """Yield the outcomes; whatever ends the run, every line that was read is told."""
        reading = batch.Reading(lines, stop)
        try:
            yield from self._divide(reading)
            if not stop.is_set():
                yield from self._download(template, stop)
        except LoaderError:
            self._heartbeat.end_tasks()
            yield from self._interrupted()
            raise
        yield from self._interrupted()
        if self._fault is not None:
            raise self._fault
        reading.close()

    def _divide(self, reading: batch.Reading) -> Iterator[Outcome]:
        """Write each line to its part; yield the outcomes of those that are no URLs."""
        for group in reading:
            self._undivided.extend(group or ())
            while self._undivided:
                line = self._undivided.popleft()
                if line.url is None:
                    yield outcome.failed(line, Reason.BAD_URL, line.fault)
                else:
                    self._spools.add(part(line.url.host, self._parts), line)
            self._tick(0.0)

    def _download(self, template: Task, stop: threading.Event) -> Iterator[Outcome]:
        self._spools.flush()
        parts = [number for number, _ in self._spools.counts.most_common()]
        self._dask.submit([replace(template, partition=number) for number in parts])
        give_up = None
        while len(self._told) < len(parts) and (give_up is None or time.monotonic() < give_up):
            for number, ended in self._dask.ended():
                yield from self._tell(number, ended)
            self._tick(0.0)
            if give_up is None and (stop.is_set() or self._fault is not None):
                self._heartbeat.end_tasks()
                give_up = time.monotonic() + _ENDING

    def _tell(self, number: int, ended: Ended | str) -> Iterator[Outcome]:
        """Yield the outcomes of a part: those that its task wrote, and those of lines that it did not come to."""
        self._told.add(number)
        detail = INTERRUPTED.detail
        if isinstance(ended, str):
            _LOG.error("part %s was not done: %s", name(number), ended)
            detail, ended = ended, Ended()
        rows = 0
        for each in self._spools.rows(number, ended.attempt) if ended.attempt else ():
            yield each
            rows += 1
        if ended.fault:
            self._fault = self._fault or ClusterError(f"part {name(number)}: {ended.fault}")
        rest: Iterator[Line] = self._spools.rest(number, ended.told)
        if rows != ended.told:
            self._fault = self._fault or ClusterError(f"part {name(number)}: rows are missing; check the disk")
            seen = {each.line for each in self._spools.rows(number, ended.attempt)}
            rest = (line for line in self._spools.rest(number, 0) if line.number not in seen)
        yield from (outcome.failed(line, Reason.INTERRUPTED, detail) for line in rest)
        self._spools.drop(number, ended.attempt)

    def _interrupted(self) -> Iterator[Outcome]:
        """Yield the outcomes of all lines that were read and not told yet: the run ends."""
        yield from map(outcome.interrupted, self._undivided)
        for number in self._spools.counts:
            if number not in self._told:
                yield from map(outcome.interrupted, self._spools.rest(number, 0))

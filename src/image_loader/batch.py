"""The story of a run: lines become jobs, jobs become outcomes, and the index remembers them."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from image_loader import outcome
from image_loader.errors import PythonEndsError
from image_loader.model import (
    Failure,
    Job,
    Layout,
    Line,
    NotModified,
    Outcome,
    Result,
    Saved,
)
from image_loader.planner import Beginning, Planner, beginning
from image_loader.settings import Settings
from image_loader.store.directory import Directory
from image_loader.store.index import FILE, Index
from image_loader.store.root import Held

if TYPE_CHECKING:
    from image_loader.scheduling.host import Task
    from image_loader.scheduling.scheduler import Scheduler

_LOG = logging.getLogger(__name__)
_WANTED_LATER = ("encodings.unicode_escape", "filelock", "idna.uts46data", "image_loader.transport.redirects")
"""What would be imported later. If file descriptors are few, there may be none left then, and an import that fails in
the middle leaves modules behind that never work again."""
_WAIT = 0.1
"""Seconds to wait for a download to end; an interruption is noticed after that."""
_BRIEFLY = 0.01
"""Seconds to wait for one while the next line may have come."""
_GRACE = 1.2
"""Seconds that attempts which were cut off get to clean up."""
_LAST_GRACE = 0.3
"""Seconds that attempts which have just put their image in place get to tell."""

Store = tuple[Directory, Index]
"""What a run works on."""


def run(
    lines: Iterable[Sequence[Line] | None],
    settings: Settings,
    stop: threading.Event,
    tick: Callable[[float], None] = lambda _: None,
) -> Generator[Outcome, None, None]:
    """Yield the outcome of every line, as images end, until the list ends or ``stop`` is set.

    ``lines`` come in groups; None means that there is nothing to read yet. ``tick`` is called several times a second,
    also while nothing ends. Its argument is the number of seconds for which every job has to wait, mostly 0. Raises
    ``LoaderError`` for what ends the run; what was saved until then is in place and in the index.
    """
    with ExitStack() as stack:
        store = opened(settings, stop, stack)
        found = beginning(*store)
        yield from Run(settings, store, found, stack, tick).outcomes(lines, stop)


def opened(settings: Settings, stop: threading.Event, stack: ExitStack, held: Held | None = None) -> Store:
    """Open directory and index, to be closed with ``stack``; ``held`` by another process of the run, nothing is new."""
    directory = Directory(settings.directory, held, stop.is_set)
    stack.callback(directory.close)
    named = settings.index_file
    path = named or directory.hidden / FILE
    index = stack.enter_context(
        Index(path, settings.flush_interval, stop.is_set, named=named is not None, exclusive=settings.exclusive)
    )
    if held is None:
        _compare_layouts(directory.note_layout(settings.layout.value), settings)
    return directory, index


def _compare_layouts(former: str, settings: Settings) -> None:
    """Warn once if the layout is not that of the last run. A note that holds no layout is ignored."""
    if former != settings.layout and former in list(Layout):
        _LOG.warning(
            "%s: --layout is %s, and was %s before: images that are there keep their places",
            *(settings.directory, settings.layout.value, former),
        )


class Reading:
    """The groups of a list, read one by one until ``stop`` is set."""

    def __init__(self, lines: Iterable[Sequence[Line] | None], stop: threading.Event) -> None:
        self._lines = iter(lines)
        self._stop = stop
        self._fault: Exception | None = None

    def __iter__(self) -> Iterator[Sequence[Line] | None]:
        """Yield the groups; what reading raises is kept."""
        while not self._stop.is_set():
            try:
                group = next(self._lines)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 (the caller's own iterable may raise anything)
                self._fault = error
                return
            yield group

    @property
    def is_whole(self) -> bool:
        """Whether the list was read to its end, once there are no more groups."""
        return self._fault is None and not self._stop.is_set()

    def close(self) -> None:
        """Raise what reading has raised."""
        fault, self._fault = self._fault, None
        try:
            if fault is not None:
                raise fault
        finally:
            # Its traceback refers to this frame. This reference cycle would keep the directory open.
            del fault


class Run:
    """One run, or the part of one process in it, in the main thread: it reads, decides, schedules and records."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        found: Beginning,
        stack: ExitStack,
        tick: Callable[[float], None],
        *,
        processors: frozenset[int] | None = None,
    ) -> None:
        """``processors`` are those that this thread might have had; None: it is not bound to one of them yet."""
        self._settings = settings
        self._directory, self._index = store
        self._planner = Planner(settings, *store, found)
        self._stack = stack
        self._tick = tick
        self._processors = processors
        self._known = self._index.known() if settings.delete else None
        self._downloads: _Downloads | None = None
        self._undecided: Sequence[Line] = ()
        """Lines that were read and not decided about yet."""
        self._planned: Sequence[Job] = ()
        """Jobs that were planned and that the scheduler does not have yet."""
        self._new = 0
        """Files that the jobs of the scheduler are going to make."""
        self._size = 0
        """Characters of the URLs of these jobs."""

    @property
    def wanted(self) -> int:
        """How many files are going to be made; those of jobs that run may be there already."""
        running = self._downloads.scheduler.running if self._downloads is not None else 0
        return max(0, self._new - running)

    def outcomes(self, lines: Iterable[Sequence[Line] | None], stop: threading.Event) -> Iterator[Outcome]:
        """Yield the outcomes; whatever ends the run, every line that was read is accounted for."""
        try:
            # In groups: an outcome alone would have to pass through all of these generators.
            for group in self._groups(lines, stop):
                yield from group
        except Exception:
            for group in self._interrupted():
                yield from group
            raise
        finally:
            # If the caller has closed the iterator, nothing can be yielded, but results still have to be recorded.
            self._cut_off()

    def _groups(self, lines: Iterable[Sequence[Line] | None], stop: threading.Event) -> Iterator[Iterable[Outcome]]:
        reading = Reading(lines, stop)
        for read in reading:
            self._undecided = read or ()
            yield from self._take_on_all(stop, _WAIT if read is None else 0.0)
            yield from self._hand_over(stop)
        yield from self._advance(stop, 0, _WAIT)
        if stop.is_set():
            yield from self._interrupted()
        elif reading.is_whole:
            yield self._delete(stop)
        reading.close()

    def _delete(self, stop: threading.Event) -> Iterator[Outcome]:
        """Delete what is no longer in the list, which was read to its end."""
        if self._known is not None:
            from image_loader import removal

            self._index.flush()
            yield from removal.delete(self._settings, self._directory, self._index, self._known, stop)

    def _take_on_all(self, stop: threading.Event, wait: float) -> Iterator[Iterable[Outcome]]:
        """Take on the lines that were read; in parts, with downloads in between, if many files have to be compared."""
        while not stop.is_set():
            if self._undecided:
                yield from self._take_on()
            yield from self._advance(stop, self._settings.window - self._settings.batch, wait)
            if not self._undecided:
                return

    def _take_on(self) -> Iterator[Iterable[Outcome]]:
        """Yield the outcomes of the lines that need no request, and have the others downloaded."""
        if self._downloads is None:
            plan = self._planner.plan(self._undecided)
        else:
            plan = self._planner.plan(self._undecided, self._downloads.scheduler.down_failure)
        self._undecided, self._planned = plan.rest, plan.jobs
        yield plan.outcomes
        if plan.jobs:
            self._download(plan.jobs)
        if self._downloads is not None:
            self._directory.check_inodes(self.wanted)

    def _download(self, jobs: Sequence[Job]) -> None:
        if self._downloads is None:
            self._downloads = _Downloads(self._settings, self._directory, self._stack, self._processors)
        self._planned = ()  # From here on the scheduler has them, whatever it raises.
        self._new += sum(job.inode is None for job in jobs)
        self._size += sum(len(job.url.text) for job in jobs)
        self._downloads.scheduler.add(jobs)

    def _advance(self, stop: threading.Event, room: int, wait: float) -> Iterator[Iterable[Outcome]]:
        """Let downloads go on until at most ``room`` are left. Wait at most ``wait`` seconds for one to end."""
        self._index.tick()
        self._tick(0.0)
        while self._downloads is not None and not stop.is_set():
            scheduler = self._downloads.scheduler
            yield self._record(scheduler.advance(wait if self._has_room(room) else _WAIT))
            self._index.tick()
            self._tick(scheduler.waits())
            if (error := scheduler.error) is not None:
                try:
                    raise error
                finally:
                    # Its traceback refers to this frame, and to the scheduler: the directory would stay open.
                    scheduler.error = error = None
            if self._has_room(room):
                return

    def _hand_over(self, stop: threading.Event) -> Iterator[Iterable[Outcome]]:
        """If there are few jobs, start them before waiting for the next line, which may take long."""
        while self._downloads is not None and not stop.is_set():
            scheduler = self._downloads.scheduler
            if scheduler.pending > self._settings.threads or not scheduler.is_about_to_start:
                return
            yield from self._advance(stop, self._settings.window, _BRIEFLY)

    def _has_room(self, room: int) -> bool:
        if self._downloads is None:
            return True
        scheduler = self._downloads.scheduler
        if scheduler.hosts_ahead > self._settings.window_hosts:
            return False
        return scheduler.pending <= room and (self._size <= self._settings.window_size or not scheduler.pending)

    def _interrupted(self) -> Iterator[Iterable[Outcome]]:
        """Yield the outcomes of all lines that were read and have none yet, since the run ends."""
        undecided, self._undecided = self._undecided, ()
        yield map(outcome.interrupted, undecided)
        planned, self._planned = self._planned, ()
        yield map(outcome.not_asked, planned)
        yield self._cut_off()

    def _cut_off(self) -> list[Outcome]:
        """Give up the downloads that wait, end those that run, and return how each ended."""
        if self._downloads is None:
            return []
        scheduler = self._downloads.scheduler
        self._downloads.interrupt()
        outcomes = self._record(scheduler.abandon()) + self._settled(scheduler, _GRACE)
        # Otherwise an attempt that nobody waits for any more could still save an image, which the index would lack.
        self._directory.give_up_partials()
        outcomes += self._settled(scheduler, _LAST_GRACE)
        return outcomes + self._record(scheduler.drop_running())

    def _settled(self, scheduler: Scheduler, seconds: float) -> list[Outcome]:
        """Wait at most ``seconds`` for the attempts that run; return how they ended."""
        outcomes: list[Outcome] = []
        limit = time.monotonic() + seconds
        while scheduler.running and time.monotonic() < limit:
            outcomes += self._record(scheduler.settle(_WAIT))
        return outcomes

    def _record(self, finished: Sequence[Task]) -> list[Outcome]:
        for task in finished:
            job, result = task.job, task.result
            self._new -= job.inode is None
            self._size -= len(job.url.text)
            if isinstance(result, Saved):
                self._index.record(job.row, result.image, result.key)
            elif isinstance(result, NotModified):
                self._index.renew(job.row, result)
            self._discard(job, result)
        return [outcome.of_task(task, self._settings.ignore_status) for task in finished]

    def _discard(self, job: Job, result: Result) -> None:
        """Remove the partial files that were kept for a next attempt, since there will be none."""
        last = result.resume if isinstance(result, Failure) else None
        for resume in (last, job.resume):
            if resume is not None:
                self._directory.discard(resume.key)


class _Downloads:
    """What downloading needs; built when the first image has to be asked for, since many runs ask for none."""

    def __init__(
        self, settings: Settings, directory: Directory, stack: ExitStack, processors: frozenset[int] | None
    ) -> None:
        if not threading.main_thread().is_alive():
            raise PythonEndsError  # concurrent.futures cannot even be imported now.
        from image_loader.attempt import Downloader
        from image_loader.inbox import Inbox
        from image_loader.processors import stay_on_one
        from image_loader.scheduling.dispatch import Connected, Dispatch, Message, close_delivered
        from image_loader.scheduling.scheduler import Scheduler
        from image_loader.scheduling.slots import connects_at_most
        from image_loader.scheduling.workers import Workers
        from image_loader.transport import Transport

        if connects_at_most(settings) < settings.connects:
            for module in _WANTED_LATER:
                importlib.import_module(module)
        if processors is None:
            processors = stay_on_one() if settings.one_processor else frozenset()
        inbox: Inbox[Message] = Inbox()
        stack.callback(close_delivered, inbox)
        self.transport = Transport(settings, lambda *connected: inbox.put(Connected(*connected)), processors)
        stack.callback(self.transport.close)
        workers = Workers(settings.threads)
        stack.callback(workers.close)
        self._downloader = Downloader(self.transport, directory, settings, processors)
        stack.callback(self._downloader.interrupt)
        dispatch = Dispatch(workers, self._downloader.attempt, self.transport, inbox, settings)
        self.scheduler = Scheduler(dispatch, settings)

    def interrupt(self) -> None:
        """End all attempts within moments."""
        self.transport.interrupt()
        self._downloader.interrupt()

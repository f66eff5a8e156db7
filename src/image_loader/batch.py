"""The story of a run: lines become jobs, jobs become outcomes, and the index remembers them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from image_loader import freshness, naming
from image_loader.directory import Directory, FileState
from image_loader.errors import LoaderError, UrlFileError
from image_loader.index import Index
from image_loader.model import (
    Failure,
    Image,
    Job,
    Line,
    Locked,
    Name,
    NotModified,
    Outcome,
    Reason,
    Record,
    Saved,
    Settings,
    Status,
    Validators,
)
from image_loader.scheduler import Finished, Scheduler
from image_loader.url import Url

_LOG = logging.getLogger(__name__)
# How soon an interruption is noticed, and how long attempts that were cut off get to clean up, in seconds.
_WAIT = 0.1
_GRACE = 1.5


def run(
    lines: Iterable[Sequence[Line]], settings: Settings, stop: threading.Event, tick: Callable[[], None] = lambda: None
) -> Generator[Outcome, None, None]:
    """Yield the outcome of every line, as images end, until the list ends or ``stop`` is set.

    ``lines`` come in groups; an empty group says that none is there yet. ``tick`` is
    called several times a second, also while nothing ends. Raises ``LoaderError`` for what ends the run; what
    was saved until then is in place and in the index.
    """
    lines = iter(lines)
    # Read before anything is made: a list that is not there leaves no directory behind.
    first = list(islice(lines, 1))
    with ExitStack() as stack:
        directory = Directory(settings.directory)
        stack.callback(directory.close)
        path = settings.index or directory.hidden / "index.sqlite3"
        index = stack.enter_context(Index(path, settings.flush_interval))
        yield from _Run(settings, directory, index, stack, tick).outcomes(chain(first, lines), stop)


class _Run:
    """One run, in the main thread: it reads, decides, schedules and records."""

    def __init__(
        self, settings: Settings, directory: Directory, index: Index, stack: ExitStack, tick: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._index = index
        self._stack = stack
        self._tick = tick
        self._downloads: _Downloads | None = None
        self._new = 0

    def outcomes(self, lines: Iterable[Sequence[Line]], stop: threading.Event) -> Iterator[Outcome]:
        """Yield the outcomes; whatever ends the run, every line that was read is accounted for."""
        try:
            yield from self._downloaded(lines, stop)
        except LoaderError:
            yield from self._cut_off()
            raise
        finally:
            # Where nobody takes outcomes any more, there is nothing left to yield, but still something to record.
            self._cut_off()

    def _downloaded(self, lines: Iterable[Sequence[Line]], stop: threading.Event) -> Iterator[Outcome]:
        unreadable = None
        try:
            for group in lines:
                if stop.is_set():
                    yield from map(_interrupted, group)
                    break
                yield from self._take_on(group)
                yield from self._advance(stop, self._settings.window - self._settings.batch, 0.0 if group else _WAIT)
        except UrlFileError as error:
            unreadable = error
        yield from self._advance(stop, 0, _WAIT)
        if stop.is_set():
            yield from self._cut_off()
        if unreadable is not None:
            raise unreadable

    # Lines to jobs.

    def _take_on(self, group: Sequence[Line]) -> Iterator[Outcome]:
        """Yield the outcomes of the lines that need no request, and have the others downloaded."""
        urls: dict[bytes, tuple[Line, Url]] = {}
        duplicates: list[Line] = []
        for line in group:
            if line.url is None:
                yield Outcome(line.number, line.text, None, Status.FAILED, Reason.BAD_URL, line.fault)
            elif urls.setdefault(line.url.digest, (line, line.url))[0] is not line:
                duplicates.append(line)
        unseen = self._index.first_seen(list(urls))
        records = self._records({digest: url for digest, (_, url) in urls.items() if digest in unseen})
        jobs: list[Job] = []
        now = time.time()
        for digest, (line, url) in urls.items():
            if digest not in unseen:
                duplicates.append(line)
            elif digest not in records:
                yield Outcome(line.number, line.text, None, Status.FAILED, Reason.WRITE, "all its names are taken")
            elif isinstance(decision := self._decide(line, url, records[digest], now), Outcome):
                yield decision
            else:
                jobs.append(decision)
        for line in duplicates:
            yield Outcome(line.number, line.text, None, Status.SKIPPED, Reason.DUPLICATE)
        self._download(jobs)

    def _records(self, urls: dict[bytes, Url]) -> dict[bytes, Record]:
        """Return what the index knows of each URL; those that it does not know get their names."""
        records = self._index.look_up(list(urls))
        unknown = [(digest, self._names(url)) for digest, url in urls.items() if digest not in records]
        if unknown:
            records.update(self._index.claim(unknown, naming.key))
        return records

    def _names(self, url: Url) -> Iterator[Name]:
        """Yield the names that ``url`` may get, best first.

        Should the index have been lost, the plain name's file may be another URL's; one with the hash is its own.
        """
        names = naming.candidates(url, self._settings.layout, self._directory.max_name_bytes)
        plain = next(names)
        if plain.complete and self._directory.stat(plain.path) is not None:
            hashed = next(names)
            in_place = self._directory.stat(hashed.file(Path(plain.path).suffix)) is not None
            yield from (hashed, plain) if in_place else (plain, hashed)
        else:
            yield plain
        yield from names

    def _decide(self, line: Line, url: Url, record: Record, now: float) -> Outcome | Job:
        """Say that the file in place is fresh, or what to ask for (RFC 9111, 4)."""
        state = self._directory.stat(record.name.path) if record.name.complete else None
        image = _as_recorded(record, state, now)
        settings = self._settings
        if image is not None and not (settings.force or settings.revalidate) and freshness.is_fresh(image, now):
            _LOG.debug("line %d: %s: its headers call it fresh", line.number, image.file)
            return _fresh(line, image)
        validators = image.validators if image is not None and not settings.force else Validators()
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug("line %d: %s: %s", line.number, record.name.path, _request_shown(state, validators))
        return Job(line.number, url, record.name, image, validators, new=state is None)

    # Jobs to outcomes.

    def _download(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        if self._downloads is None:
            self._downloads = _Downloads(self._settings, self._directory, self._stack)
        for job in jobs:
            self._downloads.scheduler.add(job)
        self._new += sum(job.new for job in jobs)
        # Jobs that run may hold their inode already.
        self._directory.check_inodes(max(0, self._new - self._downloads.scheduler.running))

    def _advance(self, stop: threading.Event, room: int, wait: float) -> Iterator[Outcome]:
        """Let downloads go on until at most ``room`` are left, and until one ends, for ``wait`` seconds at the most."""
        self._index.tick()
        self._tick()
        while self._downloads is not None and not stop.is_set():
            scheduler = self._downloads.scheduler
            yield from self._record(scheduler.advance(wait if scheduler.pending <= room else _WAIT))
            self._index.tick()
            self._tick()
            if scheduler.error is not None:
                raise scheduler.error
            if scheduler.pending <= room:
                return

    def _cut_off(self) -> list[Outcome]:
        """Give up the downloads that wait, end those that run, and return how each ended."""
        if self._downloads is None:
            return []
        scheduler = self._downloads.scheduler
        self._downloads.transport.interrupt()
        outcomes = self._record(scheduler.abandon())
        limit = time.monotonic() + _GRACE
        while scheduler.running and time.monotonic() < limit:
            outcomes += self._record(scheduler.settle(_WAIT))
        return outcomes + self._record(scheduler.forsake())

    def _record(self, finished: Sequence[Finished]) -> list[Outcome]:
        for end in finished:
            self._new -= end.job.new
            resume = end.result.resume if isinstance(end.result, Failure) else None
            if isinstance(end.result, Saved | NotModified):
                self._index.record(end.job.url.digest, end.result.image)
            for left in (end.job.resume, resume):
                if left is not None:
                    self._directory.discard(left.key)
        return [_outcome(end) for end in finished]


class _Downloads:
    """What downloading needs; built when the first image has to be asked for, since many runs ask for none."""

    def __init__(self, settings: Settings, directory: Directory, stack: ExitStack) -> None:
        from image_loader.download import Downloader
        from image_loader.transport import Transport

        self.transport = Transport(settings)
        stack.callback(self.transport.close)
        executor = ThreadPoolExecutor(settings.threads, "image_loader")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        self.scheduler = Scheduler(executor, Downloader(self.transport, directory, settings).attempt, settings)


def _as_recorded(record: Record, state: FileState | None, now: float) -> Image | None:
    """Return the image that stands in place, if it is as it was recorded; a file that was never recorded is adopted.

    One from the future is not: some servers answer 304 to any such date.
    """
    if state is None or not state.size:
        return None
    image = record.image
    if image is None:
        time_saved = state.mtime_ns / 1e9
        if time_saved > now:
            return None
        since = Validators(None, freshness.http_date(time_saved))
        return Image(record.name.path, state.size, state.mtime_ns, None, None, since, None, time_saved, time_saved)
    return image if (image.size, image.mtime_ns) == (state.size, state.mtime_ns) else None


def _request_shown(state: FileState | None, validators: Validators) -> str:
    if validators:
        return "asked whether it changed: " + ", ".join(map(": ".join, freshness.condition(validators).items()))
    return "asked for, since it is not there" if state is None else "asked for, whatever stands there"


def _fresh(line: Line, image: Image) -> Outcome:
    return Outcome(
        line.number,
        line.text,
        image.file,
        Status.FRESH,
        media_type=image.media_type,
        bytes=image.size,
        sha256=image.sha256,
    )


def _interrupted(line: Line) -> Outcome:
    return Outcome(line.number, line.text, None, Status.FAILED, Reason.INTERRUPTED, "the run was ended")


def _outcome(end: Finished) -> Outcome:
    """Say how a job ended, in one row."""
    job, result = end.job, end.result
    line, url, effort = job.line, job.url.text, (end.attempts, round(end.seconds, 3))
    if isinstance(result, Saved | NotModified):
        image, status = result.image, Status.SAVED if isinstance(result, Saved) else Status.FRESH
        known = (result.http_status, image.media_type, image.size, image.sha256)
        return Outcome(line, url, image.file, status, None, None, *known, *effort)
    file = job.name.path if job.name.complete else None
    if isinstance(result, Locked):
        detail = "another process is downloading it"
        return Outcome(line, url, file, Status.SKIPPED, Reason.LOCKED, detail, None, None, None, None, *effort)
    return Outcome(
        line, url, file, Status.FAILED, result.reason, result.detail, result.http_status, None, None, None, *effort
    )

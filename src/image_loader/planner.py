"""What to do about each line: nothing, since it is no URL, came before or is fresh; or a job."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from image_loader import freshness
from image_loader.formats import EXTENSIONS, UNKNOWN_EXTENSION
from image_loader.lists import naming
from image_loader.model import (
    Failure,
    Image,
    Job,
    Line,
    Name,
    Outcome,
    Reason,
    Record,
    Status,
    Validators,
)
from image_loader.settings import Settings
from image_loader.store.directory import Directory, is_as_recorded
from image_loader.store.index import Index
from image_loader.url import Url

_LOG = logging.getLogger(__name__)

_SECOND = 10**9  # nanoseconds

Verdict = Callable[[str], Failure | None]
"""Tells of an origin that it is down, and what becomes of its images; None where it may be asked."""


class Plan(NamedTuple):
    """What becomes of a group of lines: ``outcomes`` of those that need no request, ``jobs`` of the others."""

    outcomes: list[Outcome]
    jobs: list[Job]


class Planner:
    """Decides, by what the index and the directory know; used by the main thread alone."""

    def __init__(self, settings: Settings, directory: Directory, index: Index) -> None:
        self._settings = settings
        self._directory = directory
        self._index = index
        # The images of an index that was lost are found again by their names.
        self._index_lost = index.is_empty() and not directory.is_empty()

    def plan(self, group: Sequence[Line], verdict: Verdict = lambda _: None) -> Plan:
        """Decide about a group of lines, at one price: a few queries, and a look at each file."""
        plan = Plan([], [])
        urls: dict[bytes, tuple[Line, Url]] = {}
        for line in group:
            if line.url is None:
                plan.outcomes.append(_failed(line, Reason.BAD_URL, line.fault))
            elif urls.setdefault(line.url.digest, (line, line.url))[0] is not line:
                plan.outcomes.append(_duplicate(line))
        records = self._records(urls, verdict, plan)
        now = time.time()
        for digest, (line, url) in urls.items():
            record = records.get(digest)
            if record is None:
                continue  # Its outcome is told.
            if self._index.first_seen(record):
                self._decide(line, url, record, now, plan)
            else:
                plan.outcomes.append(_duplicate(line))
        return plan

    def _records(self, urls: dict[bytes, tuple[Line, Url]], verdict: Verdict, plan: Plan) -> dict[bytes, Record]:
        """Return what the index knows of each URL; those that it does not know get their names.

        A name costs more than all else about a line that is not downloaded: where the host is down, none is given.
        """
        records = self._index.look_up(list(urls))
        if len(records) == len(urls):
            return records
        wanted = {}
        for digest, (line, url) in urls.items():
            if digest not in records:
                if down := verdict(url.origin):
                    plan.outcomes.append(_failed(line, down.reason, down.detail))
                else:
                    wanted[digest] = self._names(line, url)
        claimed = self._index.claim(list(wanted.items()), naming.key) if wanted else {}
        for digest in wanted:
            if digest not in claimed:
                plan.outcomes.append(_failed(urls[digest][0], Reason.WRITE, "every name that it may have is taken"))
        return records | claimed

    def _names(self, line: Line, url: Url) -> Iterator[Name]:
        """Yield the names that ``url`` may get, best first.

        Should the index have been lost, the plain name's file may be another URL's; one with the hash is its own.
        """
        names = naming.candidates(url, self._settings.layout, self._directory.max_name_bytes, wanted=line.name)
        preferred = next(names)
        if line.name is not None and not preferred.complete and any(self._standing(preferred)):
            # Without the hash in its name, the file may be another's.
            yield from self._standing(preferred) if self._index_lost else ()
        elif preferred.complete and self._directory.stat(preferred.path) is not None:
            hashed = next(names)
            yield from self._standing(hashed)
            yield from (preferred, hashed)
        else:
            if self._index_lost and not preferred.complete:
                yield from self._standing(preferred)
            yield preferred
        yield from names

    def _standing(self, hashed: Name) -> Iterator[Name]:
        """Yield the name under which an image of this URL was saved, if there is one: its type gave the extension."""
        files = map(hashed.file, sorted({*EXTENSIONS.values(), UNKNOWN_EXTENSION}))
        return (Name(file, complete=True) for file in files if self._directory.stat(file) is not None)

    def _decide(self, line: Line, url: Url, record: Record, now: float, plan: Plan) -> None:
        """Say that the file in place is fresh, or what to ask for (RFC 9111, 4)."""
        name, settings = record.name, self._settings
        state = self._directory.stat(name.path) if name.complete else None
        image = _as_recorded(record, state, now)
        if image is not None and not (settings.force or settings.revalidate) and freshness.is_fresh(image, now):
            if _LOG.isEnabledFor(logging.DEBUG):
                left = (image.fresh_until or now) - now
                _LOG.debug("line %d: %s: fresh for another %.0f s by its headers", line.number, image.file, left)
            plan.outcomes.append(_fresh(line, image))
            return
        validators = image.validators if image is not None and not settings.force else Validators()
        if _LOG.isEnabledFor(logging.DEBUG):
            why = _request_shown(validators, state, changed=image is None and record.image is not None)
            _LOG.debug("line %d: %s: %s", line.number, name.path, "asked for, by force" if settings.force else why)
        plan.jobs.append(Job(line.number, url, record.row, name, image, validators, state and state.st_ino))


def _as_recorded(record: Record, state: os.stat_result | None, now: float) -> Image | None:
    """Return the image that stands in place, if it is as it was recorded; a file that was never recorded is adopted.

    Not so one whose time is no whole second, and so no ``Last-Modified``: it is that of writing, which may have been
    cut off. Nor one from the future: some servers answer 304 to any such date.
    """
    if state is None or not state.st_size:
        return None
    image = record.image
    if image is None:
        time_saved = state.st_mtime_ns / 1e9
        if state.st_mtime_ns % _SECOND or time_saved > now:
            return None
        since = Validators(None, freshness.http_date(time_saved))
        size, mtime_ns = state.st_size, state.st_mtime_ns
        return Image(record.name.path, size, mtime_ns, None, None, since, None, time_saved, time_saved)
    return image if is_as_recorded(state, image) else None


def _request_shown(validators: Validators, state: os.stat_result | None, *, changed: bool) -> str:
    if validators:
        return "asked whether it changed: " + ", ".join(map(": ".join, freshness.condition(validators).items()))
    if state is None:
        return "asked for, since it is not there"
    return f"asked for, since {'the file is not as it was saved' if changed else 'nothing is known to ask with'}"


def _fresh(line: Line, image: Image) -> Outcome:
    return Outcome(
        line.number, line.text, image.file, Status.FRESH, None, None, None, image.media_type, image.size, image.sha256
    )


def _failed(line: Line, reason: Reason, detail: str) -> Outcome:
    return Outcome(line.number, line.text, None, Status.FAILED, reason, detail)


def _duplicate(line: Line) -> Outcome:
    return Outcome(line.number, line.text, None, Status.SKIPPED, Reason.DUPLICATE)

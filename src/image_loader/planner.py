"""What to do about each line: nothing, since it is no URL, came before or is fresh; or a job."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

from image_loader import freshness, outcome
from image_loader.formats import EXTENSIONS, UNKNOWN_EXTENSION
from image_loader.lists import naming
from image_loader.model import (
    Failure,
    Image,
    Job,
    Lifetime,
    Line,
    Name,
    Outcome,
    Reason,
    Record,
    Validators,
)
from image_loader.settings import Settings
from image_loader.store.directory import Directory, View, is_as_recorded
from image_loader.store.index import Index
from image_loader.url import Url

_LOG = logging.getLogger(__name__)

_SECOND = 10**9
"""Nanoseconds."""
_READ_MAX = 64_000_000
"""Bytes of images that are compared before downloads go on; reading them takes some tenths of a second."""
_HEAD = 16384
"""First bytes by which an image is recognised: the root of an SVG may come after long comments."""
_NO_VALIDATORS = Validators()

Verdict = Callable[[str], Failure | None]
"""Returns the failure of all images of an origin that is down; None if the origin may be asked."""


class Beginning:
    """What was there when the run began, seen before anything was changed."""

    def __init__(self, *, first_run: bool, index_lost: bool) -> None:
        self.first_run = first_run
        """Whether there was no index. Then images are found again by their names. Otherwise, those that it does not
        know are another's."""
        self.index_lost = index_lost
        """Whether there was no index, but the images may be ours all the same."""


def beginning(directory: View, index: Index) -> Beginning:
    """Return what is there."""
    first_run = index.is_empty() and not directory.is_empty()
    return Beginning(first_run=first_run, index_lost=first_run and not directory.is_new)


class Plan:
    """What becomes of a group of lines."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        """Of those that need no request."""
        self.jobs: list[Job] = []
        self.rest: list[Line] = []
        """Those that were not decided about, since many files had to be read: they are to be planned later."""


class Planner:
    """Decides, by what the index and the directory know; used by the main thread alone."""

    def __init__(self, settings: Settings, directory: View, index: Index, found: Beginning) -> None:
        self._settings = settings
        self._directory = directory
        self._index = index
        self._beginning = found
        self._renamer = None
        if settings.name_column is not None and isinstance(directory, Directory):
            from image_loader.renaming import Renamer

            self._renamer = Renamer(settings, directory, index)
        self._claimed: frozenset[bytes] = frozenset()
        self._states: dict[str, os.stat_result | None] = {}
        self._explains = _LOG.isEnabledFor(logging.DEBUG)
        self._read = 0

    def plan(self, group: Sequence[Line], verdict: Verdict = lambda _: None) -> Plan:
        """Decide about a group of lines, with a few queries for all of them and a look at each file."""
        plan = Plan()
        self._states.clear()
        self._read = 0
        urls: dict[bytes, tuple[Line, Url]] = {}
        for line in group:
            if line.url is None:
                plan.outcomes.append(outcome.failed(line, Reason.BAD_URL, line.fault))
            elif urls.setdefault(line.url.digest, (line, line.url))[0] is not line:
                plan.outcomes.append(outcome.duplicate(line))
        records = self._records(urls, verdict, plan)
        if self._renamer is not None:
            records = self._renamer.renamed(urls, records)
            self._states.clear()
        now = time.time()
        for digest, (line, url) in urls.items():
            record = records.get(digest)
            if record is None:
                continue  # It has its outcome.
            if self._read > _READ_MAX and record.image is not None:
                plan.rest.append(line)
            elif self._index.seen.add(record.row):
                self._decide(line, url, record, now, plan)
            else:
                plan.outcomes.append(outcome.duplicate(line))
        return plan

    def _records(self, urls: dict[bytes, tuple[Line, Url]], verdict: Verdict, plan: Plan) -> dict[bytes, Record]:
        """Return what the index knows of each URL; those that it does not know get their names.

        URLs whose host is down get no name: finding one costs more than all else about a line that is not downloaded.
        """
        records = self._index.look_up(list(urls))
        self._claimed = frozenset()
        if len(records) == len(urls):
            return records
        wanted = {}
        for digest, (line, url) in urls.items():
            if digest not in records:
                if down := verdict(url.origin):
                    plan.outcomes.append(outcome.failed(line, down.reason, down.detail))
                else:
                    wanted[digest] = self._names(line, url)
        claimed = self._index.claim(list(wanted.items()), naming.key) if wanted else {}
        self._claimed = frozenset(claimed)
        for digest in wanted:
            if digest not in claimed:
                plan.outcomes.append(
                    outcome.failed(urls[digest][0], Reason.WRITE, "every name that it may have is taken")
                )
        return records | claimed

    def _names(self, line: Line, url: Url) -> Iterator[Name]:
        """Yield the names that ``url`` may get, best first.

        A file with the plain name may be another's, which is left alone. If there was no index, it may be the image of
        any URL that ends in this name. A file with a hash in its name belongs to its URL.
        """
        directory = self._directory
        limits = (directory.max_name_bytes, directory.refused_characters)
        names = naming.candidates(url, self._settings.layout, *limits, wanted=line.name)
        preferred = next(names)
        if self._settings.skip_existing and not naming.has_hash(url, preferred.file(".")):
            yield from (name for name in self._standing(preferred) if self._begins_like_image(name.path))
        if not preferred.complete:
            yield from self._in_place(preferred)
            # A file without the hash in its name may be another's.
            if line.name is None or naming.has_hash(url, preferred.path + ".") or not any(self._standing(preferred)):
                yield preferred
        elif self._state(preferred.path) is None:
            yield preferred
        elif self._beginning.first_run:
            hashed = next(names)
            yield from self._in_place(hashed)
            yield from (preferred, hashed)
        yield from names

    def _in_place(self, hashed: Name) -> Iterator[Name]:
        """Return the names under which an image of this URL may have been saved, if the index was lost."""
        return self._standing(hashed) if self._beginning.index_lost else iter(())

    def _standing(self, name: Name) -> Iterator[Name]:
        """Yield the names of files that stand under a name, with whatever extension where it has none."""
        if name.complete:
            yield from [name] if self._state(name.path) is not None else ()
            return
        for extension in sorted({*EXTENSIONS.values(), UNKNOWN_EXTENSION}):
            complete = Name(name.file(extension), complete=True)
            if self._state(complete.path) is not None:
                yield complete

    def _state(self, path: str) -> os.stat_result | None:
        """Look at a file once for each group of lines."""
        if path not in self._states:
            self._states[path] = self._directory.stat(path)
        return self._states[path]

    def _decide(self, line: Line, url: Url, record: Record, now: float, plan: Plan) -> None:
        """Say that the file in place is fresh, or what to ask for (RFC 9111, 4)."""
        name, settings = record.name, self._settings
        if record.image is not None:
            state, unknown = self._directory.stat(name.path), False
            image = None if state is None else self._as_recorded(record.image, record.row, state)
        else:
            state = self._state(name.path) if name.complete else None
            unknown = state is not None
            image = None if state is None else self._adopted(url, name.path, state, now)
        if settings.skip_existing and (image is not None or (unknown and self._begins_like_image(name.path))):
            plan.outcomes.append(outcome.exists(line, name.path, state.st_size if state else 0, record.image))
            return
        if image is not None and not (settings.force or settings.revalidate) and freshness.is_fresh(image, now):
            if self._explains:
                left = freshness.end(image.lifetime, image.checked) - now
                _LOG.debug("line %d: %s: fresh for another %.0f s by its headers", line.number, image.file, left)
            plan.outcomes.append(outcome.fresh(line, image))
            return
        validators = image.validators if image is not None and not settings.force else _NO_VALIDATORS
        if self._explains:
            why = _request_shown(validators, state, changed=image is None and record.image is not None)
            _LOG.debug("line %d: %s: %s", line.number, name.path, "asked for, by force" if settings.force else why)
        adopted = image is not None and not self._beginning.index_lost
        # While the extension is missing, nobody knows whether there is a file.
        may_be_anothers = unknown if name.complete else record.image is None
        foreign = may_be_anothers and not adopted and not naming.has_hash(url, name.file("."))
        inode = None if state is None else state.st_ino
        sha256 = None if record.image is None else record.image.sha256
        job = Job(line.number, url, record.row, name, image, validators, inode, foreign=foreign, sha256=sha256)
        plan.jobs.append(job)

    def _as_recorded(self, image: Image, row: int, state: os.stat_result) -> Image | None:
        """Return the image that stands in place, if it is as it was recorded.

        Where only its times differ, since the directory was moved or restored, its content decides.
        """
        if is_as_recorded(state, image):
            if image.ctime_ns is None:  # Of an earlier version, which trusted size and time alone.
                image = image._replace(ctime_ns=state.st_ctime_ns)
                self._index.touch(row, image)
            return image
        if state.st_size != image.size or image.sha256 is None or self._settings.force:
            return None
        self._read += image.size
        sha256, state = self._directory.digest(image.file) or (None, state)
        if sha256 != image.sha256:
            return None
        image = image._replace(mtime_ns=state.st_mtime_ns, ctime_ns=state.st_ctime_ns)
        self._index.touch(row, image)
        return image

    def _adopted(self, url: Url, path: str, state: os.stat_result, now: float) -> Image | None:
        """Return the image that another program, or this one before its index was lost, has saved.

        None if the file's time is not a whole second: then it is no ``Last-Modified``, but the time of writing, which
        may have been cut off. None if the time is in the future: some servers answer 304 to any such date.
        """
        time_saved = state.st_mtime_ns / 1e9
        if not self._beginning.first_run or url.digest not in self._claimed:
            return None
        if state.st_mtime_ns % _SECOND or time_saved > now or not self._begins_like_image(path):
            return None
        since = Validators(None, freshness.http_date(time_saved))
        times = (state.st_mtime_ns, state.st_ctime_ns)
        return Image(path, state.st_size, *times, None, None, since, Lifetime(), time_saved, time_saved)

    def _begins_like_image(self, path: str) -> bool:
        from image_loader import sniffing

        return sniffing.image_type(self._directory.head(path, _HEAD)) is not None


def _request_shown(validators: Validators, state: os.stat_result | None, *, changed: bool) -> str:
    if validators:
        return "asked whether it changed: " + ", ".join(map(": ".join, freshness.condition(validators).items()))
    if state is None:
        return "asked for, since it is not there"
    return f"asked for, since {'the file is not as it was saved' if changed else 'nothing is known to ask with'}"

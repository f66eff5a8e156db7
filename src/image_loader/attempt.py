"""One attempt at one job, start to end: request, checks, partial file, image in place."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from image_loader import freshness, media
from image_loader.errors import DownloadError, LoaderError, LockedError
from image_loader.lists.naming import key
from image_loader.model import (
    BEING_SAVED,
    SAVED_MEANWHILE,
    Blame,
    Failure,
    Image,
    Job,
    Locked,
    NotModified,
    Reason,
    Result,
    Resume,
    Saved,
    Settings,
    Validators,
)
from image_loader.processors import spread
from image_loader.store.directory import Directory, Partial, is_as_recorded
from image_loader.transport import Answer, Transport
from image_loader.url import redacted

if TYPE_CHECKING:
    from image_loader.decoding.pool import Decoders

_LOG = logging.getLogger(__name__)
# What tells a server, and every cache on the way to it, to send the image whatever they think we have.
_UNCONDITIONAL = {"Cache-Control": "no-cache"}
# What tells the caches to ask the server whether it has changed (RFC 9111, 5.2.1.1).
_REVALIDATING = {"Cache-Control": "max-age=0"}
_NONE: dict[str, str] = {}
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class Downloader:
    """Makes attempts, from any thread; shares nothing that changes but the transport, the directory, and a guess."""

    def __init__(
        self, transport: Transport, directory: Directory, settings: Settings, processors: frozenset[int] = frozenset()
    ) -> None:
        """``processors`` are those for work without Python's lock; none: it is done wherever its thread is."""
        self._processors = processors
        self._transport = transport
        self._directory = directory
        self._settings = settings
        self._fields = _UNCONDITIONAL if settings.force else _REVALIDATING if settings.revalidate else {}
        self._likely_extension = ".jpg"
        self._decoders = _decoders(settings, processors) if settings.verify else None

    def interrupt(self) -> None:
        """End what attempts wait for beside the transport."""
        if self._decoders is not None:
            self._decoders.close()

    def attempt(self, job: Job) -> Result:
        """Make one attempt at ``job``; raise only what ends the run (``LoaderError``)."""
        result = self._result(job)
        if isinstance(result, Failure) and result.blame is Blame.PROCESS:
            # Connections that wait for their next request may be what has the descriptors.
            self._transport.drop_idle()
            result = self._result(job)
        return result

    def _result(self, job: Job) -> Result:
        try:
            return self._attempt(job)
        except DownloadError as error:
            return error.failure
        except LockedError:
            return BEING_SAVED
        except LoaderError:
            raise
        except Exception as error:  # noqa: BLE001 (one job's surprise must not end the others)
            _LOG.exception("unexpected, please report: %s", redacted(job.url.text))
            return Failure(Reason.PROTOCOL, f"unexpected {type(error).__name__}")

    def _attempt(self, job: Job) -> Result:
        if job.resume is not None and not self._directory.is_kept(job.resume):
            job = job._replace(resume=None)  # Another run has taken it for a leftover.
        for fields, condition in ((self._fields, _condition(job)), (_UNCONDITIONAL, _NONE)):
            # Overlapping runs share the work.
            if not condition:
                likely = job.name.file(self._likely_extension)
                if self._directory.saved_meanwhile(likely, job.inode):
                    return SAVED_MEANWHILE
            result = self._ask(job, fields, condition)
            if result is not None:
                return result
        raise DownloadError(Reason.PROTOCOL, "304 Not Modified to an unconditional request", http_status=304)

    def _ask(self, job: Job, fields: Mapping[str, str], condition: Mapping[str, str]) -> Result | None:
        """Ask once; None where a 304 came that says nothing about the file that is here."""
        validators = job.validators if job.resume is None else job.resume.validators
        with self._transport.exchange(job.url, fields, condition, validators.target) as answer:
            resume = job.resume if answer.conditional else None
            if answer.status == 304:
                return self._not_modified(job, answer)
            if answer.status == 200 or (answer.status == 206 and resume is not None):
                return self._receive(job, answer, resume if answer.status == 206 else None)
            raise _status_error(job, answer, ranged=resume is not None)

    def _not_modified(self, job: Job, answer: Answer) -> NotModified | None:
        image = job.image
        if image is None or job.resume is not None or not answer.conditional:
            return None
        renewed = freshness.renewed(image, answer.fields, answer.requested, answer.received)
        state = self._directory.stat(image.file)
        # Since the request was planned, the file may have been deleted or changed.
        if renewed is None or state is None or not is_as_recorded(state, image):
            return None
        if answer.redirects:
            renewed = renewed._replace(fresh_until=_at_the_earliest(renewed.fresh_until, answer))
        return renewed

    def _receive(self, job: Job, answer: Answer, resume: Resume | None) -> Saved | Locked:
        """Save the body, which begins where ``resume`` ends, if given."""
        size = _whole_size(answer, resume) if resume is not None else None
        media_type = _media_type(answer, resume)
        if media_type is None:
            raise DownloadError(Reason.NOT_AN_IMAGE, _shown_type(answer), http_status=answer.status)
        if answer.plain and (answer.length or 0) > self._settings.max_size:
            raise DownloadError(Reason.TOO_LARGE, f"{answer.length} bytes announced", http_status=answer.status)
        extension = self._likely_extension = media.extension(media_type)
        file = job.name.file(extension)
        with self._directory.partial(file, key(file), resume) as partial:
            if self._directory.saved_meanwhile(file, job.inode):
                return SAVED_MEANWHILE
            if resume is not None and partial.size != resume.size:
                raise _wrong_part()
            validators = _validators(answer, resume)
            sha256 = self._store(partial, answer, validators, media_type)
            if size not in (None, partial.size):
                raise _wrong_part()
            self._verify(partial, file, media_type, answer.deadline)
            state = partial.commit(freshness.modified_time(validators.last_modified, answer.received))
        end = _at_the_earliest(_own_lifetime(answer), answer)
        received = answer.received
        image = Image(file, state.st_size, state.st_mtime_ns, media_type, sha256, validators, end, received, received)
        return Saved(image, answer.status)

    def _store(self, partial: Partial, answer: Answer, validators: Validators, media_type: str) -> str:
        """Write the body; return its SHA-256 in hex. A body cut short leaves a partial file that can be resumed."""
        try:
            if (answer.length or 0) > self._settings.chunk:
                with spread(self._processors):
                    return self._write(partial, answer)
            return self._write(partial, answer)
        except DownloadError as error:
            if error.failure.retryable and partial.size and freshness.is_resumable(answer.fields):
                error.resume_with(partial.keep(validators, media_type))
            raise

    def _write(self, partial: Partial, answer: Answer) -> str:
        digest = hashlib.sha256()
        for chunk in partial.chunks() if partial.size else ():
            digest.update(chunk)
        for chunk in answer.chunks(self._settings.chunk):
            if partial.size + len(chunk) > self._settings.max_size:
                raise DownloadError(Reason.TOO_LARGE, f"more than {self._settings.max_size} bytes")
            partial.write(chunk)
            digest.update(chunk)
        if not partial.size:
            raise DownloadError(Reason.NOT_AN_IMAGE, "an empty body", http_status=answer.status)
        return digest.hexdigest()

    def _verify(self, partial: Partial, file: str, media_type: str, deadline: float) -> None:
        if self._decoders is not None:
            found = self._decoders.decode(partial.path, deadline).media_type
            if media.extension(found) != media.extension(media_type):
                _LOG.info("%s: sent as %s, is %s", file, media_type, found)


def _decoders(settings: Settings, processors: frozenset[int]) -> Decoders:
    """Return what decodes; most runs need none, and are spared the time of its import."""
    from image_loader.decoding.pool import Decoders

    return Decoders(settings, processors)


def _own_lifetime(answer: Answer) -> float | None:
    return freshness.fresh_until(answer.fields, answer.requested, answer.received)


def _at_the_earliest(end: float | None, answer: Answer) -> float | None:
    """Return when the first lifetime ends: the image's own, or that of a redirect, which may lead elsewhere by then."""
    if end == freshness.NEVER:
        return end
    for redirect in answer.redirects:
        other = _own_lifetime(redirect)
        end = None if end is None or other in (None, freshness.NEVER) else min(end, other)
    return end


def _condition(job: Job) -> dict[str, str]:
    if job.resume is not None:
        return {"Range": f"bytes={job.resume.size}-", "If-Range": job.resume.validators.etag or ""}
    return freshness.condition(job.validators)


def _media_type(answer: Answer, resume: Resume | None) -> str | None:
    """Return the image's type; a 206 may leave out what was known when its beginning came (RFC 9110, 15.3.7)."""
    if resume is not None and "content-type" not in answer.fields:
        return resume.media_type
    return media.media_type(answer.fields.get("content-type"))


def _validators(answer: Answer, resume: Resume | None) -> Validators:
    etag, last_modified, _ = freshness.validators(answer.fields)
    if resume is not None:
        last_modified = last_modified or resume.validators.last_modified
    return Validators(etag, last_modified, answer.url.resource if answer.redirects else None)


def _whole_size(answer: Answer, resume: Resume) -> int:
    """Return the size of the image that a 206 continues to its end (RFC 9110, 14.4 and 15.3.7)."""
    match = _CONTENT_RANGE.fullmatch(answer.fields.get("content-range", ""))
    same = answer.fields.get("etag") == resume.validators.etag and answer.plain
    if match is None or not same:
        raise _wrong_part()
    first, last, size = map(int, match.groups())
    if first != resume.size or last + 1 != size:
        raise _wrong_part()
    return size


def _wrong_part() -> DownloadError:
    # The next attempt asks for the whole.
    return DownloadError(Reason.PROTOCOL, "206 with another part than was asked for", http_status=206, retryable=True)


def _status_error(job: Job, answer: Answer, *, ranged: bool) -> DownloadError:
    retry_after = None
    if answer.status in (429, 503):
        retry_after = freshness.retry_after(answer.fields.get("retry-after"), answer.received)
    error = DownloadError(
        Reason.HTTP_STATUS,
        f"HTTP status {answer.status}",
        http_status=answer.status,
        # 416 answers the range: the next attempt asks for the whole.
        retryable=answer.status in _TRANSIENT_STATUSES or (ranged and answer.status == 416),
        retry_after=retry_after,
    )
    if answer.url.origin != job.url.origin:
        error.happened_elsewhere()
    return error


def _shown_type(answer: Answer) -> str:
    shown = answer.fields.get("content-type", "")[:80]
    return f"its type is {shown}" if shown else "no Content-Type"

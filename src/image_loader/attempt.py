"""One attempt at one job, start to end: the request, and what its answer leads to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from image_loader import freshness
from image_loader.errors import DownloadError, LoaderError, LockedError
from image_loader.model import (
    BEING_SAVED,
    SAVED_BEFORE,
    SAVED_MEANWHILE,
    Blame,
    Failure,
    Hop,
    Job,
    NotModified,
    Reason,
    Result,
    Resume,
)
from image_loader.saving import Saver, final_url, is_whole, redirects_end
from image_loader.scheduling.retry import BUSY_STATUSES, TRANSIENT_STATUSES
from image_loader.settings import Settings
from image_loader.store.directory import Directory, is_as_recorded
from image_loader.transport import Answer, Connection, Request, StaleConnectionError, Transport
from image_loader.transport.failures import PROXY_LOGIN
from image_loader.url import redacted

_LOG = logging.getLogger(__name__)
# Asks the server, and every cache on the way, to send the image in any case.
_UNCONDITIONAL = {"Cache-Control": "no-cache"}
# Asks the caches on the way to ask the server whether the image has changed (RFC 9111, 5.2.1.1).
_REVALIDATING = {"Cache-Control": "max-age=0"}
_NONE: dict[str, str] = {}
# Answers to a request for the rest of a body.
_PART_STATUSES = frozenset({206, 416})


class Downloader:
    """Makes attempts, from any thread. They share the transport, the directory, and a guess at the next extension."""

    def __init__(
        self, transport: Transport, directory: Directory, settings: Settings, processors: frozenset[int] = frozenset()
    ) -> None:
        """``processors``: where work without the interpreter lock may run; if empty, it stays where its thread is."""
        self._transport = transport
        self._directory = directory
        self._settings = settings
        self._fields = _UNCONDITIONAL if settings.force else _REVALIDATING if settings.revalidate else {}
        self._saver = Saver(directory, settings, processors)

    def interrupt(self) -> None:
        """End the decoding that attempts wait for."""
        self._saver.interrupt()

    def attempt(self, job: Job, connection: Connection) -> Result | Job:
        """Make one attempt at ``job``, or go on with it; raise only what ends the run (``LoaderError``).

        ``connection`` leads to the host that is asked next. If the attempt needs another connection to go on, return
        the job for that.
        """
        result = self._result(job, connection)
        if job.resume is not None and isinstance(result, Failure) and _is_of_no_use(job.resume, result):
            self._directory.discard(job.resume.key)
        if isinstance(result, Failure) and result.blame is Blame.PROCESS and self._transport.drop_idle():
            # Idle connections may have taken the descriptors; they are closed now.
            return job
        return result

    def _result(self, job: Job, connection: Connection) -> Result | Job:
        try:
            return self._attempt(job, connection)
        except DownloadError as error:
            return error.failure
        except StaleConnectionError:
            return job
        except LockedError:
            return BEING_SAVED
        except LoaderError:
            raise
        except Exception as error:  # noqa: BLE001 (one job's surprise must not end the others)
            _LOG.exception("unexpected, please report: %s", redacted(job.url.text))
            return Failure(Reason.PROTOCOL, f"unexpected {type(error).__name__}")

    def _attempt(self, job: Job, connection: Connection) -> Result | Job:
        if job.resume is not None and not self._directory.is_kept(job.resume):
            job = job._replace(resume=None)  # Another run has removed it or written to it.
        condition = _NONE if job.is_unconditional else _condition(job)
        # Overlapping runs share the work.
        if not condition and not (job.hop and job.hop.redirects):
            likely = job.name.file(self._saver.likely_extension)
            if self._directory.saved_meanwhile(likely, job.inode):
                return SAVED_MEANWHILE if job.is_unconditional else SAVED_BEFORE
        result = self._ask(job, condition, connection)
        if not isinstance(result, Job) or job.is_unconditional or not result.is_unconditional:
            return result
        # With a delay, every request has to wait for its turn.
        if connection.usable and connection.origin == job.url.origin and not self._settings.delay:
            with suppress(StaleConnectionError):
                return self._attempt(result, connection)
        return result

    def _ask(self, job: Job, condition: Mapping[str, str], connection: Connection) -> Result | Job:
        """Ask once; return an unconditional job after a 304 that is not about the file in place."""
        fields = _UNCONDITIONAL if job.is_unconditional else self._fields
        target = (job.validators if job.resume is None else job.resume.validators).target
        answer = self._transport.exchange(Request(job.url, fields, condition, target), connection, job.hop)
        if isinstance(answer, Hop):
            return job._replace(hop=answer)
        with answer:
            resume = job.resume if answer.conditional else None
            if answer.status == 304:
                return self._not_modified(job, answer) or _unconditional(job, answer)
            part = resume if answer.status == 206 else None
            if part is not None or is_whole(answer):
                return self._saver.save(job, answer, part)
            raise _status_error(answer, ranged=resume is not None)

    def _not_modified(self, job: Job, answer: Answer) -> NotModified | None:
        image = job.image
        if image is None or job.resume is not None or not answer.conditional:
            return None
        # A file that may be another's counts as the image only if its time is exactly the server's Last-Modified.
        if job.foreign and answer.fields.get("last-modified") != job.validators.last_modified:
            return None
        times = (answer.requested, answer.received, redirects_end(answer))
        renewed = freshness.renewed(image, answer.fields, *times)
        if renewed is None:
            return None
        if image.sha256 is None:  # Another program saved it: from now on its content is known.
            read = self._directory.digest(image.file)
            sha256, state = read or (None, None)
            renewed = renewed._replace(image=image._replace(sha256=sha256))
        else:
            state = self._directory.stat(image.file)
        # Since the request was planned, the file may have been deleted or changed.
        if state is None or not is_as_recorded(state, image):
            return None
        return renewed._replace(final_url=final_url(answer)) if answer.redirects else renewed


def _is_of_no_use(resume: Resume, failure: Failure) -> bool:
    """Whether the next attempt asks for the whole, or goes on from the beginning of another image."""
    is_replaced = failure.resume is not None and failure.resume.key != resume.key
    return is_replaced or failure.http_status in _PART_STATUSES


def _unconditional(job: Job, answer: Answer) -> Job:
    """Return the job whose attempt goes on without a condition, in the time that is left."""
    if job.is_unconditional:
        raise DownloadError(Reason.PROTOCOL, "304 Not Modified to an unconditional request", http_status=304)
    return job._replace(hop=Hop(job.url, (), left=answer.left), is_unconditional=True)


def _condition(job: Job) -> dict[str, str]:
    if job.resume is not None:
        known = job.resume.validators
        return {"Range": f"bytes={job.resume.size}-", "If-Range": known.etag or known.last_modified or ""}
    return freshness.condition(job.validators)


def _status_error(answer: Answer, *, ranged: bool) -> DownloadError:
    is_busy = answer.status in BUSY_STATUSES
    return DownloadError(
        Reason.HTTP_STATUS,
        f"HTTP status {answer.status}" + (PROXY_LOGIN if answer.status == 407 else ""),
        http_status=answer.status,
        # 416 answers the range: the next attempt asks for the whole.
        retryable=is_busy or answer.status in TRANSIENT_STATUSES or (ranged and answer.status == 416),
        blame=Blame.HOST if is_busy else Blame.IMAGE,
        retry_after=freshness.retry_after(answer.fields, answer.received) if is_busy else None,
    )

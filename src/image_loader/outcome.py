"""How each ending is told: one outcome for each line of the list."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from image_loader.model import (
    INTERRUPTED,
    Failure,
    Image,
    Job,
    Line,
    Locked,
    NotModified,
    Outcome,
    Reason,
    Saved,
    Status,
)

if TYPE_CHECKING:
    from image_loader.scheduling.host import Task


def fresh(line: Line, image: Image) -> Outcome:
    """Return the outcome of an image that needs no request."""
    return Outcome(
        line.number, line.text, image.file, Status.FRESH, None, None, None, image.media_type, image.size, image.sha256
    )


def duplicate(line: Line) -> Outcome:
    """Return the outcome of a URL that stood in the list before."""
    return Outcome(line.number, line.text, None, Status.SKIPPED, Reason.DUPLICATE)


def exists(line: Line, file: str, size: int, image: Image | None) -> Outcome:
    """Return the outcome of an image that is there, and is not asked about; None: the index does not know it."""
    outcome = Outcome(line.number, line.text, file, Status.SKIPPED, Reason.EXISTS, bytes=size)
    return outcome if image is None else outcome._replace(media_type=image.media_type, sha256=image.sha256)


def failed(line: Line, reason: Reason, detail: str) -> Outcome:
    """Return the outcome of a line that failed before any request."""
    return Outcome(line.number, line.text, None, Status.FAILED, reason, detail)


def interrupted(line: Line) -> Outcome:
    """Return the outcome of a line that the end of the run left undone."""
    return failed(line, INTERRUPTED.reason, INTERRUPTED.detail)


def not_asked(job: Job) -> Outcome:
    """Return the outcome of a job that the end of the run left undone before any request."""
    file = job.name.path if job.name.complete else None
    return Outcome(job.line, job.url.text, file, Status.FAILED, INTERRUPTED.reason, INTERRUPTED.detail)


def would_ask(job: Job) -> Outcome:
    """Return the outcome of a job in a dry run."""
    file = job.name.path if job.name.complete else None
    detail = "to see whether it changed" if job.validators else "to download it"
    return Outcome(job.line, job.url.text, file, Status.SKIPPED, Reason.WOULD_ASK, detail)


def deleted(image: Image) -> Outcome:
    """Return the outcome of an image that was deleted, since it is no longer in the list."""
    return Outcome(0, "", image.file, Status.DELETED, None, None, None, image.media_type, image.size, image.sha256)


def would_delete(image: Image) -> Outcome:
    """Return the outcome of such an image in a dry run."""
    return deleted(image)._replace(status=Status.SKIPPED, reason=Reason.WOULD_DELETE)


def not_deleted(image: Image, detail: str) -> Outcome:
    """Return the outcome of such an image that the file system does not let go."""
    return deleted(image)._replace(status=Status.FAILED, reason=Reason.WRITE, detail=detail)


def of_task(task: Task, ignored: Container[int] = ()) -> Outcome:
    """Return the outcome of a job that was downloaded, or not; answers with ``ignored`` statuses are no failures."""
    job, result = task.job, task.result
    line, url, attempts, seconds = job.line, job.url.text, task.attempts, task.seconds
    if isinstance(result, (Saved, NotModified)):
        path, size, _, _, media_type, sha256, *_ = result.image
        told = (result.http_status, media_type, size, sha256, attempts, seconds, result.final_url)
        if isinstance(result, NotModified):
            return Outcome(line, url, path, Status.FRESH, None, None, *told)
        return Outcome(line, url, path, Status.SAVED, None, None, *told, result.change, result.width, result.height)
    file = job.name.path if job.name.complete else None
    outcome = Outcome(line, url, file, Status.FAILED, attempts=attempts, seconds=seconds)
    if isinstance(result, Locked):
        return outcome._replace(status=Status.SKIPPED, reason=Reason.LOCKED, detail=result.detail)
    outcome = outcome._replace(reason=result.reason, http_status=result.http_status)
    if result.reason is Reason.HTTP_STATUS and result.http_status in ignored:
        return outcome._replace(status=Status.SKIPPED, reason=Reason.IGNORED_STATUS, detail=result.detail)
    return outcome._replace(detail=_with_hint(result, url))


def _with_hint(failure: Failure, url: str) -> str:
    """Return the detail of a failure, and what may be wrong with a line that a server knows nothing of."""
    if failure.reason is not Reason.HTTP_STATUS:
        return failure.detail
    from image_loader.lists.forms import hint

    advice = hint(url)
    return f"{failure.detail}; {advice}" if advice else failure.detail

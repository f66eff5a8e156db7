"""How each ending is told: one outcome for each line of the list."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from image_loader.lists.forms import hint
from image_loader.model import Failure, Image, Line, Locked, NotModified, Outcome, Reason, Saved, Status

if TYPE_CHECKING:
    from image_loader.scheduling.queue import Task

INTERRUPTED = "the run was ended"
"""The detail of what was not done when a run ended."""


def fresh(line: Line, image: Image) -> Outcome:
    """Return the outcome of an image that needs no request."""
    return _of_image(Outcome(line.number, line.text, None, Status.FRESH), image)


def duplicate(line: Line) -> Outcome:
    """Return the outcome of a URL that stood in the list before."""
    return Outcome(line.number, line.text, None, Status.SKIPPED, Reason.DUPLICATE)


def exists(line: Line, file: str, size: int, image: Image | None) -> Outcome:
    """Return the outcome of an image that is there, and is not asked about; None: the index does not know it."""
    outcome = Outcome(line.number, line.text, file, Status.SKIPPED, Reason.EXISTS, bytes=size)
    return outcome if image is None else _of_image(outcome, image)


def failed(line: Line, reason: Reason, detail: str) -> Outcome:
    """Return the outcome of a line that failed before any request."""
    return Outcome(line.number, line.text, None, Status.FAILED, reason, detail)


def interrupted(line: Line) -> Outcome:
    """Return the outcome of a line that the end of the run left undone."""
    return failed(line, Reason.INTERRUPTED, INTERRUPTED)


def of_task(task: Task, ignored: Container[int] = ()) -> Outcome:
    """Return the outcome of a job that was downloaded, or not; answers with ``ignored`` statuses are no failures."""
    job, result = task.job, task.result
    file = job.name.path if job.name.complete else None
    outcome = Outcome(job.line, job.url.text, file, Status.FAILED, attempts=task.attempts, seconds=task.seconds)
    match result:
        case Saved():
            return _of_saved(_of_image(outcome, result.image), result)
        case NotModified():
            outcome = outcome._replace(http_status=result.http_status, final_url=result.final_url)
            return _of_image(outcome._replace(status=Status.FRESH), result.image)
        case Locked():
            return outcome._replace(status=Status.SKIPPED, reason=Reason.LOCKED, detail=result.detail)
        case Failure():
            return _of_failure(outcome, result, ignored)


def _of_saved(outcome: Outcome, saved: Saved) -> Outcome:
    return outcome._replace(
        status=Status.SAVED,
        http_status=saved.http_status,
        final_url=saved.final_url,
        change=saved.change,
        width=saved.width,
        height=saved.height,
    )


def _of_failure(outcome: Outcome, failure: Failure, ignored: Container[int]) -> Outcome:
    outcome = outcome._replace(reason=failure.reason, http_status=failure.http_status)
    if failure.reason is Reason.HTTP_STATUS and failure.http_status in ignored:
        return outcome._replace(status=Status.SKIPPED, reason=Reason.IGNORED_STATUS, detail=failure.detail)
    return outcome._replace(detail=_with_hint(failure, outcome.url))


def _with_hint(failure: Failure, url: str) -> str:
    """Return the detail of a failure, and what may be wrong with a line that a server knows nothing of."""
    advice = hint(url) if failure.reason is Reason.HTTP_STATUS else ""
    return f"{failure.detail}; {advice}" if advice else failure.detail


def _of_image(outcome: Outcome, image: Image) -> Outcome:
    return outcome._replace(file=image.file, media_type=image.media_type, bytes=image.size, sha256=image.sha256)

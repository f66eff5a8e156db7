"""The exceptions: what ends the run, and what ends one attempt at one image."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

from image_loader.model import INTERRUPTED, Blame, Failure, Reason, Resume

_LATE = 0.5
"""Seconds after a deadline within which even a busy machine lets this process notice it."""


class LoaderError(Exception):
    """The run cannot start or cannot go on; the text is for people, and says what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Those below are made of other values than their text.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[LoaderError], args: tuple[Any, ...], state: dict[str, Any]) -> LoaderError:
    """Return an error that came from another process."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class OptionError(LoaderError):
    """An option has a value that makes no sense, or cannot be used here.

    ``option`` is its keyword, empty where the fault is not one option's; ``fault`` is the text without it.
    """

    def __init__(self, fault: str, option: str = "") -> None:
        super().__init__(f"{option}: {fault}" if option else fault)
        self.fault = fault
        self.option = option


class MissingPackagesError(OptionError):
    """An option needs packages that are not installed."""

    def __init__(self, option: str, packages: str, error: ImportError | None = None) -> None:
        import shlex
        import sys

        python = shlex.quote(sys.executable or "python3")
        why = f" ({error})" if error is not None else ""
        super().__init__(f"packages are missing{why}; install them: {python} -m pip install {packages}", option)


class UrlFileError(LoaderError):
    """The list cannot be read."""


class IndexFileError(LoaderError):
    """The index cannot be used."""


class ResultsFileError(LoaderError):
    """A results file cannot be written."""


class DirectoryError(LoaderError):
    """The output directory cannot be used, or can no longer be used."""


class OutOfInodesError(DirectoryError):
    """More files are to be written than the file system has inodes for."""

    def __init__(self, directory: Path, wanted: int, available: int) -> None:
        super().__init__(f"{directory}: {wanted} new files wanted, but only {available} inodes available")
        self.directory = directory
        self.wanted = wanted
        self.available = available


class TooManyDeletionsError(LoaderError):
    """``--delete`` would delete more images than it may: ``count`` of the ``images`` that were known.

    ``most`` is what the user allows, None where that is half of them.
    """

    def __init__(self, count: int, images: int, most: int | None) -> None:
        limit = "more than half" if most is None else f"more than --max-delete {most}"
        super().__init__(
            f"--delete: {count} of {images} images are no longer in the list, {limit}: nothing was deleted; "
            f"check the list, and allow it with --max-delete {count} (max_delete={count})"
        )
        self.count = count
        self.images = images
        self.most = most


class ClusterError(LoaderError):
    """The scheduler, or a worker of it, cannot do the work."""


class OutOfThreadsError(LoaderError):
    """The system cannot start a thread."""

    def __init__(self) -> None:
        super().__init__("no thread can be started; see ulimit -u, ulimit -v, and the limits of the container")


class PythonEndsError(LoaderError):
    """The main thread has ended, and Python starts no more work."""

    def __init__(self) -> None:
        super().__init__("Python is ending: have the main thread wait for the thread that loads (Thread.join)")


class ProcessError(LoaderError):
    """No process that downloads can be started."""


class LockedError(Exception):
    """Another process holds the lock of this file."""


class DownloadError(Exception):
    """One attempt failed; ``failure`` says why, and whether another attempt makes sense."""

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        http_status: int | None = None,
        retryable: bool = False,
        blame: Blame = Blame.IMAGE,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.failure = Failure(reason, detail, http_status, retryable, blame, retry_after)

    def resume_with(self, resume: Resume) -> None:
        """Say what a later attempt can go on from."""
        self.failure = self.failure._replace(resume=resume)

    def may_pass(self) -> None:
        """Say that another attempt makes sense."""
        self.failure = self.failure._replace(retryable=True)


def interrupted() -> DownloadError:
    """Return the error of what was not done when the run ended."""
    return DownloadError(INTERRUPTED.reason, INTERRUPTED.detail)


def was_stopped(deadline: float) -> bool:
    """Whether this process noticed so late that a deadline was over that it was stopped then (SIGSTOP, Ctrl-Z).

    ``deadline`` is by ``time.monotonic()``. To be asked as soon as it is noticed.
    """
    return time.monotonic() - deadline > _LATE


def too_late(detail: str, *, stopped: bool) -> DownloadError:
    """Return the error of an attempt whose time was over; ``stopped`` says that this process did not run then."""
    error = DownloadError(Reason.DEADLINE, detail)
    error.failure = error.failure._replace(stopped=stopped)
    return error


def is_out_of_descriptors(error: OSError | None) -> bool:
    """Whether an error says that there is no file descriptor left, for this process or for any."""
    return error is not None and error.errno in (errno.EMFILE, errno.ENFILE)

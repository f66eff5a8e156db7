"""What a worker runs: one part of the hosts, by the run that one machine makes as well."""

from __future__ import annotations

import os
import secrets
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from image_loader import __version__, batch
from image_loader.cluster import files
from image_loader.cluster.heartbeat import Watch
from image_loader.errors import ClusterError, LoaderError
from image_loader.flock import takes
from image_loader.settings import Settings
from image_loader.store import partitions

_LOCK_PATIENCE = 300.0
"""Seconds to wait for another attempt at the same part, whose worker was given up, to end."""
_POLL = 0.1


@dataclass(frozen=True, repr=False)
class Task:
    """One part of a run. Dask shows it in logs and on its dashboard, so it holds no secret.

    ``driver_patience`` is in seconds.
    """

    directory: Path
    run: str
    partition: int
    version: str
    driver_patience: float

    def __repr__(self) -> str:
        return f"<part {partitions.name(self.partition)}>"

    @property
    def folder(self) -> files.Folder:
        """Return the places of the files of its run."""
        return files.Folder(partitions.runs(self.directory) / self.run)


@dataclass(frozen=True)
class Ended:
    """How a task ended: the attempt whose rows count, how many there are, and what ended it early."""

    attempt: str = ""
    told: int = 0
    fault: str = ""


class TaskError(Exception):
    """A task cannot be done, or failed in a way that was not foreseen; others may go on."""


def run(task: Task) -> Ended:
    """Do a task; raise ``TaskError`` without any text that could hold a secret."""
    try:
        return _run(task)
    except TaskError:
        raise
    except Exception as error:  # noqa: BLE001 (Dask would log its text)
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise TaskError(f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}") from None


def fault(task: Task) -> str:
    """Say why this worker cannot do a task; nothing where it can."""
    try:
        _check(task)
    except LoaderError as error:
        return str(error)
    return ""


def _run(task: Task) -> Ended:
    rows = None
    try:
        settings = _check(task)
        watch = Watch(task.folder.heartbeat, task.driver_patience)
        with _alone(task, watch) as is_alone:
            if not is_alone:
                return Ended(fault=watch.fault)
            attempt = secrets.token_hex(8)
            rows = files.Rows(task.folder.rows(task.partition, attempt))
            try:
                lines = files.read_lines(task.folder.lines(task.partition), settings.batch)
                with closing(batch.run(lines, settings, watch.stop, watch.look)) as outcomes:
                    for outcome in outcomes:
                        rows.add(outcome)
            finally:
                rows.close()
    except LoaderError as error:
        return Ended(attempt, rows.told, str(error)) if rows is not None else Ended(fault=str(error))
    return Ended(attempt, rows.told, watch.fault)


def _check(task: Task) -> Settings:
    """Return the settings for a task; raise ``LoaderError`` where it cannot be done here."""
    if task.version != __version__:
        raise ClusterError(f"it has version {__version__} of image_loader, and the driver {task.version}")
    folder = task.folder
    try:
        if not folder.heartbeat.exists():
            raise ClusterError(f"{task.directory}: not there, or not the directory that the driver has")
        if not partitions.has_driver(task.directory):
            raise ClusterError(f"{task.directory}: the file system does not pass locks on from machine to machine")
        if not os.access(task.directory, os.W_OK | os.X_OK):
            raise ClusterError(f"{task.directory}: not writable; workers must run as the driver's user")
    except OSError as error:
        raise ClusterError(
            f"{task.directory}: cannot be used: {error.strerror}; workers must run as the driver's user"
        ) from error
    settings = files.read_settings(folder.settings)
    if settings.verify:
        from image_loader.decoding.pool import require_verify

        require_verify()
    directory = task.directory / partitions.name(task.partition)
    if os.path.islink(directory):  # noqa: PTH114 (Path's raises)
        raise ClusterError(f"{directory}: a link, which is not followed; move it away")
    return settings._replace(directory=directory, cluster=None, one_processor=False, exclusive=True)


@contextmanager
def _alone(task: Task, watch: Watch) -> Iterator[bool]:
    """Keep out other attempts at the same part; False where the run ended before they did.

    An attempt can go on after its worker was given up. It is waited for, since two of them would download everything
    twice, and could not both have the index.
    """
    with files.translating():
        descriptor = partitions.open_lock(task.directory, task.partition)
    try:
        give_up = time.monotonic() + _LOCK_PATIENCE
        while not (is_alone := _takes(descriptor)) and not watch.stop.is_set():
            if time.monotonic() > give_up:
                raise TaskError("another worker, which was given up, still has its lock; end that process")
            time.sleep(_POLL)
            watch.look()
        yield is_alone
    finally:
        os.close(descriptor)


def _takes(descriptor: int) -> bool:
    with files.translating():
        return takes(descriptor)

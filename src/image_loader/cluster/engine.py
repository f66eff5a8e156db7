"""Dask's ``distributed``: a scheduler that is there already, its workers, and the tasks that they run."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from image_loader import __version__
from image_loader.cluster import task
from image_loader.cluster.task import Ended, Task
from image_loader.errors import ClusterError, MissingPackagesError

_SCHEDULER_PATIENCE = 8.0
"""Seconds to wait for the scheduler."""
_WORKER_PATIENCE = 60.0
"""Seconds to wait for the first worker."""
_CLOSING = 2.0
"""Seconds to take leave of the scheduler."""
_POLL = 0.1


def require_cluster() -> None:
    """Raise ``MissingPackagesError`` where ``distributed`` is not installed."""
    if find_spec("distributed") is None:
        raise MissingPackagesError("cluster", "'image_loader[cluster]'")


class Engine:
    """A connection to a scheduler. All methods raise ``ClusterError``."""

    def __init__(self, address: str, stop: threading.Event, tick: Callable[[float], None]) -> None:
        """Connect, and wait for a worker; returns early when ``stop`` is set."""
        self._address = _address_in(address)
        # What it would say of a lost connection is said by ours.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        import distributed

        with self._told():
            self._client: Any = distributed.Client(
                self._address, timeout=_SCHEDULER_PATIENCE, set_as_default=False, name="image_loader"
            )
        self._completed = distributed.as_completed(loop=self._client.loop, with_results=True, raise_errors=False)
        self._parts: dict[str, int] = {}
        try:
            self._wait_for_worker(stop, tick)
        except BaseException:
            self.close()
            raise

    def check(self, example: Task) -> None:
        """Raise ``ClusterError`` where the scheduler or a worker cannot do tasks such as this one."""

        # It is sent as code, since the package may be missing there. The scheduler needs it to read the tasks.
        def version() -> str:
            try:
                import image_loader
            except ImportError:
                return "none"
            return image_loader.__version__

        with self._told():
            versions = {
                f"the scheduler {self._address}": self._client.run_on_scheduler(version),
                **_of_workers(self._client.run(version, on_error="return")),
            }
        for place, found in versions.items():
            if found != __version__:
                raise ClusterError(
                    f"{place} has another version of image_loader: {found}, and not {__version__}; "
                    f"install the same version everywhere"
                )
        with self._told():
            faults = _of_workers(self._client.run(task.fault, example, on_error="return"))
        for place, fault in faults.items():
            if fault:
                raise ClusterError(f"{place}: {fault}")

    def submit(self, tasks: Sequence[Task]) -> None:
        """Have tasks run, the first ones first."""
        if not tasks:
            return
        keys = [f"image_loader-{each.run}-{each.partition}" for each in tasks]
        self._parts = {key: each.partition for key, each in zip(keys, tasks, strict=True)}
        with self._told():
            futures = self._client.map(task.run, tasks, key=keys, pure=False)
            self._completed.update(futures)

    def ended(self) -> list[tuple[int, Ended | str]]:
        """Return the tasks that have ended, by their parts; a text says why one cannot be done."""
        # The scheduler forgets a client that it loses, with all of its tasks.
        if self._client.status != "running":
            raise ClusterError(f"{self._address}: the connection to the scheduler is lost; start the command again")
        batch = self._completed.next_batch(block=False)
        if not batch:
            time.sleep(_POLL)
        return [self._ended(future, result) for future, result in batch]

    def close(self) -> None:
        """Take leave: tasks that wait are forgotten."""
        self._completed.clear()
        with suppress(OSError, RuntimeError):
            self._client.close(timeout=_CLOSING)

    def _ended(self, future: Any, result: Any) -> tuple[int, Ended | str]:
        part = self._parts.pop(future.key)
        future.release()
        if isinstance(result, Ended):
            return part, result
        error = result[1] if isinstance(result, tuple) else result
        if type(error).__name__ == "KilledWorker":
            return part, "every worker that it was given to died"
        return part, str(error) if isinstance(error, task.TaskError) else f"Dask: {type(error).__name__}"

    def _wait_for_worker(self, stop: threading.Event, tick: Callable[[float], None]) -> None:
        give_up = time.monotonic() + _WORKER_PATIENCE
        while not stop.is_set():
            with self._told():
                if self._client.nthreads():
                    return
            if time.monotonic() > give_up:
                raise ClusterError(f"{self._address}: no worker after {_WORKER_PATIENCE:.0f} s; start one: dask worker")
            tick(0.0)
            stop.wait(_POLL)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise what goes wrong with the scheduler as ``ClusterError``."""
        try:
            yield
        except (OSError, ImportError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ClusterError(
                f"{self._address}: the scheduler cannot be used: {reason}; start one, and name its address: "
                f"dask scheduler"
            ) from error


def _of_workers(results: Mapping[str, Any]) -> dict[str, str]:
    """Return what workers have answered; an exception is named."""
    return {
        f"the worker {address}": type(result).__name__ if isinstance(result, BaseException) else str(result)
        for address, result in results.items()
    }


def _address_in(name: str) -> str:
    """Return the address that was given, or the one in a scheduler file."""
    if "://" in name:
        return name
    try:
        address = json.loads(Path(name).read_text("utf-8"))["address"]
    except OSError as error:
        raise ClusterError(
            f"{name}: cannot be read: {error.strerror}; have it written: dask scheduler --scheduler-file FILE"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{name}: not a scheduler file") from error
    return str(address)

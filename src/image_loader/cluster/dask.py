"""Dask's ``distributed``: a scheduler that is there already, its workers, and the tasks that they run."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from image_loader import __version__
from image_loader.cluster import task
from image_loader.cluster.task import Ended, Task
from image_loader.errors import ClusterError, MissingPackagesError
from image_loader.store import partitions

_REQUIREMENT = "distributed>=2025.1,<2026.9"
"""What the extra ``cluster`` installs."""
_SCHEDULER_PATIENCE = 10.0
"""Seconds to wait for the scheduler."""
_WORKER_PATIENCE = 60.0
"""Seconds to wait for a worker, at the start and when all are gone; and for an answer of those that there are."""
_CLOSING = 2.0
"""Seconds to disconnect from the scheduler."""
_TALKATIVE = ("distributed", "distributed.client", "distributed.gc", "tornado.application")
"""Dask's loggers with a level of their own: a lost connection, and our own leave, would be told with tracebacks.

``ended`` says it in a sentence.
"""
_POLL = 0.1
_COUNT_INTERVAL = 5.0
"""Seconds between two looks whether there are workers."""


def require_cluster() -> None:
    """Raise ``MissingPackagesError`` where ``distributed`` is not installed."""
    if find_spec("distributed") is None:
        raise MissingPackagesError("cluster", f"'{_REQUIREMENT}'")


class Dask:
    """A connection to a scheduler. All methods raise ``ClusterError``; they return early when ``stop`` is set."""

    def __init__(self, address: str, stop: threading.Event, tick: Callable[[float], None]) -> None:
        """Connect, and wait for a worker."""
        self._address = _address_in(address)
        self._stop = stop
        self._tick = tick
        self._parts: dict[str, int] = {}
        self._seen_workers = self._counted = time.monotonic()
        import distributed

        self._levels = {logging.getLogger(name): logging.getLogger(name).level for name in _TALKATIVE}
        for logger in self._levels:
            logger.setLevel(logging.CRITICAL)
        self._client: Any = None
        try:
            self._client = self._asked(
                lambda: distributed.Client(
                    self._address, timeout=_SCHEDULER_PATIENCE, set_as_default=False, name="image_loader"
                )
            )
            if self._client is not None:
                # The loop is this client's own. What fails in it while the client leaves concerns nobody.
                self._client.loop.asyncio_loop.set_exception_handler(lambda *_: None)
                self._completed = distributed.as_completed(
                    loop=self._client.loop, with_results=True, raise_errors=False
                )
            while not stop.is_set() and not self._has_workers():
                tick(0.0)
                stop.wait(_POLL)
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

        client = self._client
        of_scheduler = self._asked(lambda: {self._address: client.run_on_scheduler(version)})
        for answers in (of_scheduler, self._asked(lambda: client.run(version, on_error="return"))):
            for address, found in _told(answers):
                if found != __version__:
                    raise ClusterError(
                        f"{address} has another version of image_loader: {found}, and not {__version__}; "
                        f"install the same one everywhere"
                    )
        for address, fault in _told(self._asked(lambda: client.run(task.fault, example, on_error="return"))):
            if fault:
                raise ClusterError(f"worker {address}: {fault}")

    def submit(self, tasks: Sequence[Task]) -> None:
        """Have tasks run, the first ones first."""
        keys = [f"image_loader-{each.run}-{partitions.name(each.partition)}" for each in tasks]
        self._parts = {key: each.partition for key, each in zip(keys, tasks, strict=True)}
        if tasks and not self._stop.is_set():
            self._completed.update(self._asked(lambda: self._client.map(task.run, tasks, key=keys, pure=False)) or ())

    def ended(self) -> list[tuple[int, Ended | str]]:
        """Return the tasks that have ended, by their parts; a text says why one was not done."""
        # The scheduler forgets a client that it loses, with all of its tasks.
        if self._client.status != "running":
            raise ClusterError(f"{self._address}: the connection to the scheduler is lost; start the command again")
        batch = self._completed.next_batch(block=False)
        if not batch:
            self._has_workers()
            time.sleep(_POLL)
        return [self._ended(future, result) for future, result in batch]

    def close(self) -> None:
        """Disconnect; the scheduler drops the tasks that wait."""
        if self._client is not None:
            self._completed.clear()
            with suppress(OSError, RuntimeError):
                self._client.close(timeout=_CLOSING)
        for logger, level in self._levels.items():
            logger.setLevel(level)

    def _ended(self, future: Any, result: Any) -> tuple[int, Ended | str]:
        part = self._parts.pop(future.key)
        future.release()
        if isinstance(result, Ended):
            return part, result
        error = result[1] if isinstance(result, tuple) else result
        if type(error).__name__ == "KilledWorker":
            return part, "every worker that it was given to died"
        return part, str(error) if isinstance(error, task.TaskError) else type(error).__name__

    def _has_workers(self) -> bool:
        """Look now and then whether there are workers; raise an error when there have been none for a while."""
        now = time.monotonic()
        if now >= self._counted:
            self._counted = now + (_COUNT_INTERVAL if self._parts else 0.0)
            if self._asked(self._client.nthreads):
                self._seen_workers = now
                return True
            if now > self._seen_workers + _WORKER_PATIENCE:
                raise ClusterError(f"{self._address}: no worker for {_WORKER_PATIENCE:.0f} s; start one: dask worker")
        return False

    def _asked(self, question: Callable[[], Any]) -> Any:
        """Return an answer of the scheduler; None when the run is to end before it comes.

        It is waited for in another thread: Dask's own waiting hears no signal, and may have no end.
        """
        answers: SimpleQueue[Any] = SimpleQueue()
        asking = threading.Thread(target=_ask, args=(question, answers), daemon=True)
        asking.start()
        give_up = time.monotonic() + _WORKER_PATIENCE
        while not self._stop.is_set():
            asking.join(_POLL)  # Not ``answers.get(timeout=…)``: see ``Inbox``.
            with suppress(Empty):
                answer = answers.get_nowait()
                if not isinstance(answer, BaseException):
                    return answer
                reason = str(answer).partition("\n")[0] or type(answer).__name__
                raise ClusterError(
                    f"{self._address}: the scheduler cannot be used ({reason}); start one: dask scheduler"
                ) from answer
            if time.monotonic() > give_up:
                raise ClusterError(f"{self._address}: the scheduler, or a worker, does not answer; end that process")
            self._tick(0.0)
        return None


def _ask(question: Callable[[], Any], answers: SimpleQueue[Any]) -> None:
    try:
        answers.put(question())
    except Exception as error:  # noqa: BLE001 (Dask raises many kinds; raised by the thread that has asked)
        answers.put(error)


def _told(answers: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what was answered, by addresses; an exception is named."""
    return [
        (address, type(answer).__name__ if isinstance(answer, BaseException) else str(answer))
        for address, answer in (answers or {}).items()
    ]


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
    except (ValueError, KeyError, TypeError):
        address = None
    if not isinstance(address, str):
        raise ClusterError(f"{name}: not a scheduler file; have it written: dask scheduler --scheduler-file FILE")
    return address

"""The child processes that decode: about as many as there are processors, started on demand, replaced when they die."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from image_loader import interpreter
from image_loader.decoding.verdict import Decoded, Limits
from image_loader.errors import (
    DownloadError,
    MissingPackagesError,
    OptionError,
    interrupted,
    is_out_of_descriptors,
    too_late,
    was_stopped,
)
from image_loader.flock import takes
from image_loader.formats import EXTENSIONS
from image_loader.interpreter import status_name
from image_loader.model import Blame, Reason
from image_loader.settings import Settings

# Bytes of memory that each child may take without asking: enough for a photo of two megapixels.
_SHARE = 64 << 20
# Seconds that a child may take to start.
_START = 30.0
# Decoding may take so many times its limit of processor time by the clock, since others use the processors as well.
_PATIENCE = 4.0
_LONGEST_REPLY = 4096
# Seconds between two tries for a lock.
_POLL = 0.02
_REASONS = {"damaged": Reason.DAMAGED, "not-an-image": Reason.NOT_AN_IMAGE, "too-large": Reason.TOO_LARGE}
# What the dynamic linker and Python itself may need; all else of the environment may be a secret.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")


def require_verify() -> None:
    """Raise ``MissingPackagesError`` if what ``--verify`` needs is not installed; nothing of it is imported here."""
    if importlib.util.find_spec("PIL") is None:
        raise MissingPackagesError("verify", "Pillow")


class Decoders:
    """The decoders of a run; any thread may use them."""

    def __init__(self, settings: Settings, common: Path, processors: frozenset[int] = frozenset()) -> None:
        """``processors`` are those that the children may use; none: those that this thread may use.

        ``common`` is a directory that all processes of the run share.
        """
        self._common = common
        self._limits = Limits(_SHARE, _SHARE + settings.decoding_memory, settings.max_pixels, settings.decoding_time)
        self._processors = sorted(processors)
        # One more than can run: none of them stands idle while the next image is on its way to it.
        self._number = 1 + max(1, (len(processors) or _available_processors()) // settings.processes)
        self._own = self._left = settings.decoding_memory // settings.processes
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._closed = False
        self._proven = False

    def decode(self, path: str, deadline: float) -> Decoded:
        """Decode a file completely until ``deadline`` (``time.monotonic()``).

        ``DownloadError`` says ``damaged`` of a broken image, ``too-large`` of one that takes more than the limits,
        ``not-an-image`` of anything that is neither SVG nor a format that Pillow decodes.
        """
        try:
            with Path(path).open("rb") as file:
                return self._decode(file.fileno(), deadline)
        except OSError as error:
            raise _unreadable(error) from error

    def close(self) -> None:
        """End all children, also those that are at work, and start no more."""
        with self._changed:
            self._closed = True
            for child in self._children:
                child.kill()
            self._changed.notify_all()
        while self._idle:
            self._drop(self._idle.pop())

    def _decode(self, descriptor: int, deadline: float) -> Decoded:
        memory = _SHARE
        while True:
            with self._granted(memory, deadline):
                reply = self._ask(descriptor, memory, deadline)
            if "memory" not in reply or memory == self._limits.most:
                return _verdict(reply)
            # First what it asks for, then all there is, so that it does not ask for ever.
            memory = min(reply["memory"], self._limits.most) if memory == _SHARE else self._limits.most

    @contextmanager
    def _granted(self, memory: int, deadline: float) -> Iterator[None]:
        """Wait until so much memory is free. Whoever waits longest comes first, so that large images get their turn."""
        extra = memory - _SHARE
        if not extra:
            yield
            return
        if extra > self._own:
            with self._alone(deadline):
                yield
            return
        if not self._turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _too_late(deadline)
        try:
            with self._changed:
                self._wait_for(lambda: self._left >= extra, deadline)
                self._left -= extra
        finally:
            self._turn.release()
        try:
            yield
        finally:
            with self._changed:
                self._left += extra
                self._changed.notify_all()

    @contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        """Wait until no process of the run decodes an image that is too large for what one process has of the memory.

        While it does, the others may take what they have. The lock of a directory is one of this machine alone.
        """
        descriptor = os.open(self._common, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while not takes(descriptor):
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, _POLL):
                        raise interrupted()
                if time.monotonic() > deadline:
                    raise _too_late(deadline)
            yield
        finally:
            os.close(descriptor)

    def _ask(self, descriptor: int, memory: int, deadline: float) -> dict[str, Any]:
        """Have a child decode. If it dies, the reply says of what."""
        limits = self._limits._replace(memory=memory)
        child = self._take(deadline)
        try:
            reply = child.ask(limits, descriptor, deadline)
        except _DeadError as error:
            return self._post_mortem(child, memory, error)
        except BaseException:
            self._drop(child)
            raise
        with self._changed:
            self._proven = True
            if not self._closed and not reply.get("spent"):
                self._idle.append(child)
                self._changed.notify()
                return reply
        self._drop(child)
        return reply

    def _take(self, deadline: float) -> _Child:
        """Return an idle child, a new one where there may be one more, or wait for one."""
        with self._changed:
            while True:
                self._wait_for(lambda: bool(self._idle) or len(self._children) < self._number, deadline)
                if not self._idle:
                    child = self._start()
                    if child is not None:
                        return child
                    continue
                # The one that was used last: if there is little to do, the others stay idle.
                child = self._idle.pop()
                if child.is_alive():
                    return child
                self._children.discard(child)
                child.end()

    def _start(self) -> _Child | None:
        """Start one more child; None where there are others, but no more can be had."""
        try:
            child = _Child(self._processors)
        except OSError as error:
            if not self._children:
                raise _not_started(error) from error
            self._number = len(self._children)
            return None
        self._children.add(child)
        return child

    def _wait_for(self, condition: Callable[[], bool], deadline: float) -> None:
        done = self._changed.wait_for(lambda: self._closed or condition(), max(0.0, deadline - time.monotonic()))
        if self._closed:
            raise interrupted()
        if not done:
            raise _too_late(deadline)

    def _drop(self, child: _Child) -> int:
        """End a child, and make room for another; return its exit status."""
        status = child.end()
        with self._changed:
            self._children.discard(child)
            self._changed.notify()
        return status

    def _post_mortem(self, child: _Child, memory: int, error: _DeadError) -> dict[str, Any]:
        status = self._drop(child)
        if self._closed:
            raise interrupted()
        if not child.ready:
            self._never_ready(error, status)
        if status == -signal.SIGXCPU:
            detail = f"takes more than {self._limits.seconds} s of a processor to decode"
            return {"reason": "too-large", "detail": detail}
        if memory < self._limits.most:
            # A lack of memory makes libraries crash as well, and the child may have been killed from outside.
            return {"memory": self._limits.most}
        return {"reason": "damaged", "detail": f"the decoder crashed ({status_name(status)})"}

    def _never_ready(self, error: _DeadError, status: int) -> None:
        detail = f"the decoder cannot be started: {error or status_name(status)}"
        if self._proven:
            raise DownloadError(Reason.WRITE, detail, retryable=True, blame=Blame.PROCESS)
        raise OptionError(f"--verify: {detail}; is there too little memory (ulimit -v), or Pillow damaged?")


class _DeadError(Exception):
    """A child has died, or made no sense."""


class _Child:
    """One child process; it starts while its first image already waits for it."""

    def __init__(self, processors: list[int]) -> None:
        self._buffer = b""
        self.ready = False
        self._socket, end = socket.socketpair()
        try:
            with end:
                self._process = subprocess.Popen(  # noqa: S603
                    _command(processors),
                    stdin=end.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    process_group=0,
                )
        except BaseException:
            self._socket.close()
            raise

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ask(self, limits: Limits, descriptor: int, deadline: float) -> dict[str, Any]:
        """Have an open file decoded; return the reply."""
        try:
            if not self.ready:
                problem = self._line(min(deadline, time.monotonic() + _START)).get("problem")
                if problem is not None:
                    raise _DeadError(problem)
                self.ready = True
            deadline = min(deadline, time.monotonic() + _PATIENCE * limits.seconds)
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            socket.send_fds(self._socket, [json.dumps(limits).encode()], [descriptor])
            return self._line(deadline)
        except TimeoutError:
            raise _too_late(deadline) from None
        except (OSError, ValueError) as error:
            raise _DeadError from error

    def kill(self) -> None:
        """Kill the process, if it still runs: whoever waits for its reply learns of it."""
        self._process.kill()

    def end(self) -> int:
        """Kill the process, if it still runs; return its exit status."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        return self._process.returncode

    def _line(self, deadline: float) -> dict[str, Any]:
        """Return the next line; raise ``_DeadError`` where there is none, or one that makes no sense."""
        line = b""
        while not line.endswith(b"\n"):
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._socket.recv(_LONGEST_REPLY)
            line += data
            if not data or len(line) > _LONGEST_REPLY:
                raise _DeadError
        found = json.loads(line)
        if not isinstance(found, dict):
            raise _DeadError
        return found


def _command(processors: list[int]) -> list[str]:
    """Return the command that starts a child."""
    # Without ``site``: what it would add to the path is there already.
    call = interpreter.code("image_loader.decoding.child", f"serve({processors})")
    return [sys.executable, "-s", "-S", "-B", "-c", call]


def _available_processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _verdict(reply: dict[str, Any]) -> Decoded:
    """Return or raise what a child has found. Its reply is not trusted: a hostile image may control the child."""
    reason, media_type = reply.get("reason"), reply.get("media_type")
    if reason in _REASONS:
        raise DownloadError(_REASONS[reason], str(reply.get("detail")))
    width, height = reply.get("width"), reply.get("height")
    if media_type not in EXTENSIONS or not isinstance(width, int | None) or not isinstance(height, int | None):
        raise DownloadError(Reason.DAMAGED, "the decoder crashed (its reply makes no sense)")
    return Decoded(media_type, width, height)


def _unreadable(error: OSError) -> DownloadError:
    lacking = is_out_of_descriptors(error)
    blame = Blame.PROCESS if lacking else Blame.IMAGE
    return DownloadError(Reason.WRITE, f"cannot be read back: {error.strerror}", retryable=lacking, blame=blame)


def _not_started(error: OSError) -> DownloadError | OptionError:
    """Return the failure where no child can be started; retryable if descriptors or processes have run out."""
    detail = f"no process to decode in can be started: {error.strerror}"
    if is_out_of_descriptors(error) or error.errno in (errno.EAGAIN, errno.ENOMEM):
        return DownloadError(Reason.WRITE, detail, retryable=True, blame=Blame.PROCESS)
    return OptionError(f"--verify: {detail} ({sys.executable})")


def _too_late(deadline: float) -> DownloadError:
    return too_late("not decoded in time", stopped=was_stopped(deadline))

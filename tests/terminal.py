"""What people see: a pseudo-terminal, a clock that a test sets, and outcomes to tell of."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from typing import TextIO

from image_loader.cli.summary import Tally
from image_loader.model import Outcome, Reason, Status

ROWS = 24


def saved(number: int = 1, size: int = 1000) -> Outcome:
    return Outcome(number, f"http://host/{number}.jpg", f"{number}.jpg", Status.SAVED, bytes=size, attempts=1)


def failed(number: int = 1, reason: Reason = Reason.TIMEOUT, host: str = "host") -> Outcome:
    return Outcome(number, f"http://{host}/{number}.jpg?key=1", None, Status.FAILED, reason, "no answer", attempts=4)


def tallied(outcomes: list[Outcome]) -> Tally:
    tally = Tally()
    for outcome in outcomes:
        tally.add(outcome)
    return tally


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(line: str) -> str:
    """Return what stands in a line of a terminal after its carriage returns and erasures."""
    standing = ""
    for part in line.split("\r"):
        text = part.removeprefix("\x1b[K")
        standing = text if text != part else text + standing[len(text) :]
    return standing


class Terminal:
    """A real pseudo-terminal, and what it was sent."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST  # bytes arrive as they were written
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        os.set_blocking(self._master, False)
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.resize(columns)
        self._received = b""
        self._lock = threading.Lock()

    def resize(self, columns: int) -> None:
        termios.tcsetwinsize(self._master, (ROWS, columns))

    def received(self) -> str:
        with self._lock, suppress(BlockingIOError):
            while chunk := os.read(self._master, 65536):
                self._received += chunk
        return self._received.decode()

    def screen(self) -> list[str]:
        """Return the lines as a person sees them."""
        return [shown(line) for line in self.received().split("\n")]

    def stop(self) -> None:
        """Do as Ctrl-S does."""
        termios.tcflow(self.stream.fileno(), termios.TCOOFF)

    def go_on(self) -> None:
        termios.tcflow(self.stream.fileno(), termios.TCOON)

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


def in_a_process(program: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", program], env=environment, text=True, check=False, timeout=60, **options
    )


def written(read: int) -> str:
    """Return what stands in a pipe."""
    os.set_blocking(read, False)
    return os.read(read, 1 << 20).decode()

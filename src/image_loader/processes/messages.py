"""What parent and child tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from image_loader.errors import LoaderError
from image_loader.model import Line, Outcome
from image_loader.planner import Beginning
from image_loader.settings import Settings
from image_loader.store.root import Held


class Part(NamedTuple):
    """The part of one process in a run: the first message to a child.

    ``settings`` are its share of them. ``level`` is that of the log, ``garbage`` the garbage collector's threshold.
    ``parent`` is the number of the process that started it.
    """

    settings: Settings
    held: Held
    found: Beginning
    processors: frozenset[int]
    level: int
    garbage: int
    parent: int


class Order(Enum):
    """What is sent to a child between and after lines."""

    FINISH = "no more lines come"
    STOP = "the run is to end"


ToChild = Sequence[Line] | Order


class LogRecord(NamedTuple):
    """One record of the log, its text put together."""

    name: str
    level: int
    text: str
    created: float


class Report(NamedTuple):
    """What has happened in a child since its last report.

    Nothing begins or ends there until ``waits_until`` (``time.monotonic()``, which all processes share; 0: it does not
    only wait). ``wanted`` is how many new files it is going to make.
    """

    records: Sequence[LogRecord]
    outcomes: Sequence[Outcome]
    waits_until: float
    wanted: int


class End(NamedTuple):
    """A child is done: with all lines, or with an ``error`` that ends the run. ``seen`` are rows of the index."""

    error: LoaderError | None
    seen: Mapping[int, bytes]


ToParent = Report | End

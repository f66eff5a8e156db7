"""The lines of a run, divided into the parts, and what has come back."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from image_loader.cluster import files
from image_loader.model import Line, Outcome
from image_loader.settings import Settings

_BUFFER = 32768
"""Characters of a part's lines that are written together; with 256 parts, 8 MB are held."""
_GROUP = 100
"""Lines read together."""


class Spools:
    """The files of a run; one of them is open at a time."""

    def __init__(self, runs: Path, name: str, settings: Settings) -> None:
        """Make the folder; remove those of runs that were killed. Raises ``DirectoryError``, as the other methods."""
        self.counts: Counter[int] = Counter()
        """How many lines each part has."""
        self._buffers: defaultdict[int, list[str]] = defaultdict(list)
        self._sizes: Counter[int] = Counter()
        self.folder = files.Folder(runs / name)
        with files.translating():
            for former in runs.iterdir():
                shutil.rmtree(former, ignore_errors=True)
            self.folder.path.mkdir(mode=0o700)
        files.write(self.folder.settings, files.dumped(settings))

    def add(self, partition: int, line: Line) -> None:
        """Add a line to a part."""
        record = files.line_record(line)
        self.counts[partition] += 1
        self._sizes[partition] += len(record)
        self._buffers[partition].append(record)
        if self._sizes[partition] > _BUFFER:
            self._write(partition)

    def flush(self) -> None:
        """Write what was not written yet."""
        for partition in list(self._buffers):
            self._write(partition)

    def rows(self, partition: int, attempt: str) -> Iterator[Outcome]:
        """Yield the outcomes that an attempt has written."""
        return files.read_rows(self.folder.rows(partition, attempt), partition)

    def rest(self, partition: int, told: int) -> Iterator[Line]:
        """Yield the lines of a part, except for the first ones, which were ``told``."""
        held = self._buffers.get(partition, [])
        written = self.counts[partition] - len(held)
        if told < written:
            yield from chain.from_iterable(files.read_lines(self.folder.lines(partition), _GROUP, told))
        yield from map(files.read_line, held[max(0, told - written) :])

    def drop(self, partition: int, attempt: str) -> None:
        """Remove the files of a part that is done."""
        for path in (self.folder.lines(partition), self.folder.rows(partition, attempt)):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything; a task that still runs takes that as a sign to end."""
        self.folder.heartbeat.unlink(missing_ok=True)
        shutil.rmtree(self.folder.path, ignore_errors=True)

    def _write(self, partition: int) -> None:
        files.write(self.folder.lines(partition), "".join(self._buffers[partition]))
        self._sizes[partition] = 0
        del self._buffers[partition]

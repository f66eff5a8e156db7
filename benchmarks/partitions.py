"""How --cluster divides hosts of very different sizes, and what its driver takes for a line.

    python benchmarks/partitions.py

The first table is a simulation. The sizes of the hosts follow Zipf's law: the host of rank r has a share of the lines
in proportion to 1 / r ** exponent. Each part takes time in proportion to its lines, and a worker takes the largest part
that is left. The second table is measured on this machine, in seconds of processor time.
"""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from image_loader.cli.results import json_row
from image_loader.cluster.files import Rows
from image_loader.cluster.spools import Spools
from image_loader.lists import urlfile
from image_loader.loader import DEFAULTS, PARTITIONS, settings_of
from image_loader.model import Change, Outcome, Status
from image_loader.url import part

HOSTS = (1_000, 100_000, 1_000_000)
EXPONENTS = (0.6, 0.8, 1.0)
WORKERS = (2, 8, 32, 128)
LINES = 200_000


def main() -> None:
    """Print both tables."""
    print("hosts     exponent  largest host  largest part  times as fast with", *(f"{count:5}" for count in WORKERS))
    for hosts, exponent in itertools.product(HOSTS, EXPONENTS):
        shares = zipf(hosts, exponent)
        parts = divided(shares)
        speeds = [1 / makespan(parts, count) for count in WORKERS]
        row = f"{hosts:<9} {exponent:<8}  {shares[0]:12.2%}  {max(parts):12.2%}                    "
        print(row, *(f"{speed:5.1f}" for speed in speeds))
    print()
    for step, seconds, size in driver():
        print(f"{step:32} {seconds * 1e6:6.1f} µs a line  {size:6.0f} bytes a line")


def zipf(hosts: int, exponent: float) -> list[float]:
    """Return the shares of the hosts, the largest first."""
    weights = [rank**-exponent for rank in range(1, hosts + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def divided(shares: Sequence[float]) -> list[float]:
    """Return the shares of the parts."""
    parts = [0.0] * PARTITIONS
    for rank, share in enumerate(shares):
        parts[part(f"host-{rank}.example", PARTITIONS)] += share
    return parts


def makespan(parts: Sequence[float], workers: int) -> float:
    """Return how long the workers take, where one alone takes 1."""
    ends = [0.0] * workers
    for share in sorted(parts, reverse=True):
        heapq.heappush(ends, heapq.heappop(ends) + share)
    return max(ends)


def driver() -> list[tuple[str, float, float]]:
    """Return what the steps of a driver take for a line, and what they write."""
    with tempfile.TemporaryDirectory() as home:
        lines = Path(home) / "urls.txt"
        lines.write_text("".join(f"https://host-{n % 9973}.example/images/{n:08}/picture.jpg\n" for n in range(LINES)))
        runs = Path(home) / "runs"
        runs.mkdir()
        spools = Spools(runs, "run", settings_of({**DEFAULTS, "directory": home}))
        return [divide(lines, spools), tell(spools)]


def divide(lines: Path, spools: Spools) -> tuple[str, float, float]:
    """Measure how a list is read and divided."""
    begun = time.process_time()
    for group in urlfile.read(lines, 100):
        for line in group or ():
            if line.url is not None:
                spools.add(part(line.url.host, PARTITIONS), line)
    spools.flush()
    seconds = time.process_time() - begun
    return "reading and dividing", seconds / LINES, _size(spools)


def tell(spools: Spools) -> tuple[str, float, float]:
    """Measure how rows are read back and written as results."""
    rows = Rows(spools.folder.rows(0, "x"))
    url = "https://host-1234.example/images/00001234/picture.jpg"
    row = Outcome(1, url, "picture-00001234.jpg", Status.SAVED, None, None, 200, "image/jpeg", 20_000, "0" * 64, 1, 0.2)
    for _ in range(LINES):
        rows.add(row._replace(change=Change.NEW))
    rows.close()
    begun = time.process_time()
    with open(os.devnull, "w", encoding="ascii") as results:  # noqa: PTH123 (no file of ours)
        results.writelines(map(json_row, spools.rows(0, "x")))
    return "reading rows, writing results", (time.process_time() - begun) / LINES, _size(spools, "rows-*")


def _size(spools: Spools, pattern: str = "lines-*") -> float:
    return sum(path.stat().st_size for path in spools.folder.path.glob(pattern)) / LINES


if __name__ == "__main__":
    main()

"""The images that the benchmarks serve: PNGs of random pixels, which nothing on the way can make smaller."""

from __future__ import annotations

import math
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

FIRST_MODIFIED = 1_577_836_800  # 2020-01-01: old enough for every later change to be in the past as well


def make_images(directory: Path, count: int, smallest: int, largest: int) -> tuple[Path, ...]:
    """Write ``count`` images of ``smallest`` to ``largest`` bytes into ``directory``, the same ones each time."""
    directory.mkdir()
    paths = tuple(directory / f"{number:05d}.png" for number in range(count))
    for number, path in enumerate(paths):
        pixels = random.Random(number)
        write_image(path, pixels.randint(smallest, largest), pixels, FIRST_MODIFIED)
    return paths


def write_image(path: Path, size: int, pixels: random.Random, modified: int) -> None:
    """Write a square RGB image of about ``size`` bytes, last modified at ``modified`` seconds since the epoch."""
    with path.open("wb") as file:
        for chunk in _chunks(math.isqrt(size // 3), pixels):
            file.write(chunk)
    os.utime(path, (modified, modified))


def _chunks(side: int, pixels: random.Random) -> Iterator[bytes]:
    """Yield the file's parts (PNG, 5.2), row by row: whole images in memory would count as the peers' memory."""
    deflate = zlib.compressobj(0)
    yield b"\x89PNG\r\n\x1a\n"
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    for _ in range(side):
        yield _chunk(b"IDAT", deflate.compress(b"\0" + pixels.randbytes(3 * side)))
    yield _chunk(b"IDAT", deflate.flush())
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    if not content and kind == b"IDAT":
        return b""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

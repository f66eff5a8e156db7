"""The chunks of a PNG file that its pixels come from (PNG, third edition, 5 and 13)."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK_TYPE = re.compile(rb"[A-Za-z]{4}")
# Ancillary by name, but they hold the frames of an animation.
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def pixel_chunks(file: BinaryIO) -> io.BytesIO:
    """Return the file without the chunks that no pixel depends on; raise ``ValueError`` where it is damaged.

    Viewers ignore what is wrong with a colour profile or a comment; Pillow would not open the image.
    """
    left = file.seek(0, io.SEEK_END) - file.seek(len(SIGNATURE))
    kept = io.BytesIO(SIGNATURE)
    kept.seek(0, io.SEEK_END)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (left, b"")
        left -= length + 12
        if left < 0:
            raise ValueError("PNG file is truncated")
        if not _CHUNK_TYPE.fullmatch(kind):
            raise ValueError("PNG file has a chunk without a valid type")
        body = file.read(length + 4)
        if kind[0] & 0x20 and kind not in _ANIMATION:
            continue
        if zlib.crc32(body[:-4], zlib.crc32(kind)) != int.from_bytes(body[-4:], "big"):
            raise ValueError(f"PNG file has a wrong checksum in its chunk {kind.decode()}")
        kept.write(head)
        kept.write(body)
    kept.seek(0)
    return kept

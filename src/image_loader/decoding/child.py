"""What runs in a child process: one image after the other is decoded, each within its limits.

A request is the JSON of ``Limits``, with the descriptor of a file. The reply is a line of JSON: ``media_type``,
``width`` and ``height``; or ``reason`` and ``detail``; or ``memory``, if more of it is needed. ``spent`` is added if
this process still holds memory. The very first line is sent when all modules are imported: it is empty, or has a
``problem``.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from image_loader.decoding.verdict import Limits, MoreMemory, Refused

_LONGEST_REQUEST = 1024
_LONGEST_DETAIL = 300
# Bytes of memory that may still be held after an image (11 MB at the start): a fragmented heap is not given back.
_LEFT_OVER = 32 << 20
_PAGE = resource.getpagesize()
_UNLIMITED = resource.RLIM_INFINITY
# First bytes of formats that Pillow does not decode, or not every Pillow: where they begin, and how they go on.
_UNDECODED = {
    "HEIC": (4, (b"ftyphei", b"ftyphev")),
    "HEIF": (4, (b"ftypmif1", b"ftypmsf1")),
    "AVIF": (4, (b"ftypavif", b"ftypavis")),
    "JPEG XL": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    "PSD": (0, (b"8BPS",)),
}


def serve(processors: Iterable[int] = ()) -> None:
    """Decode what comes over standard input, a socket, until its other end is closed."""
    channel = _settle()
    if processors and sys.platform == "linux":
        os.sched_setaffinity(0, processors)
    try:
        from image_loader.decoding import raster, svg  # noqa: F401 (before its limits are set)

        raster.load_plugins()
    except (ImportError, MemoryError) as error:
        channel.sendall(json.dumps({"problem": str(error) or type(error).__name__}).encode() + b"\n")
        return
    gc.freeze()
    room = _room()
    channel.sendall(b"{}\n")
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, _LONGEST_REQUEST, 1)
        if not request:
            return
        limits = Limits(*json.loads(request))
        limits = limits._replace(memory=min(limits.memory, room), most=min(limits.most, room))
        with open(descriptors[0], "rb") as file, _Attached(channel):  # noqa: PTH123 (a descriptor)
            reply = _judged(file, limits)
        reply["spent"] = _data_size() > _LEFT_OVER
        channel.sendall(json.dumps(reply).encode() + b"\n")


def _settle() -> socket.socket:
    """Set up the process, and return the socket that came as standard input."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    # A signal to all processes of a session or a service is for the parent, which ends its children.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGIO, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    warnings.simplefilter("ignore")
    return channel


def _room() -> int:
    """Return how many bytes of memory this process may have by the limits that it was started with."""
    room = resource.getrlimit(resource.RLIMIT_DATA)[0]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    rooms = [1 << 62 if room == _UNLIMITED else room]
    if address_space != _UNLIMITED and sys.platform == "linux":
        # Of what it has already, only a part counts as data.
        mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * _PAGE
        rooms.append(address_space - mapped + _data_size())
    return min(rooms)


class _Attached:
    """A context in which the end of the parent ends this process too, at once, whatever it is busy with (Linux)."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._flags = fcntl.fcntl(channel, fcntl.F_GETFL)

    def __enter__(self) -> None:
        # From here on, the kernel sends SIGIO, which kills this process, when the socket becomes readable. Only its end
        # can make it so.
        fcntl.fcntl(self._channel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._channel, fcntl.F_SETFL, self._flags | os.O_ASYNC)
        if select.select([self._channel], [], [], 0)[0]:
            os._exit(0)

    def __exit__(self, *_: object) -> None:
        fcntl.fcntl(self._channel, fcntl.F_SETFL, self._flags)


def _data_size() -> int:
    """Return how many bytes of memory this process holds, as ``RLIMIT_DATA`` counts them; 0 where it cannot be told."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_bytes().split()[5]) * _PAGE


def _judged(file: BinaryIO, limits: Limits) -> dict[str, Any]:
    """Decode a file; return the reply."""
    _limit(limits)
    try:
        return _decoded(file, limits)
    except MoreMemory as more:
        return {"memory": more.memory}
    except Refused as refused:
        return {"reason": refused.reason, "detail": refused.detail[:_LONGEST_DETAIL]}


def _limit(limits: Limits) -> None:
    """Set what this process may take for the next image."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, hard))
    seconds, (_, hard) = int(time.process_time()) + 1 + limits.seconds, resource.getrlimit(resource.RLIMIT_CPU)
    with suppress(ValueError):  # It is more than the limit that this process was started with. That one stays.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def _decoded(file: BinaryIO, limits: Limits) -> dict[str, Any]:
    from image_loader.decoding import raster, svg

    decoded = raster.decode(file, limits) or svg.decode(file, limits)
    if decoded is None:
        raise Refused("not-an-image", _unknown(file))
    return decoded._asdict()


def _unknown(file: BinaryIO) -> str:
    file.seek(0)
    prefix = file.read(16)
    for name, (place, beginnings) in _UNDECODED.items():
        if prefix.startswith(beginnings, place):
            return f"looks like {name}, which --verify cannot decode"
    return "neither SVG nor an image format that --verify can decode"

"""The values that a decoder works with: its limits, and what it says of an image."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What one image may take: bytes of ``memory`` now, and at ``most`` if asked for; pixels; processor seconds."""

    memory: int
    most: int
    pixels: int
    seconds: int


class Decoded(NamedTuple):
    """The image is whole; an SVG has no width and height in pixels."""

    media_type: str
    width: int | None = None
    height: int | None = None


class Refused(Exception):  # noqa: N818 (it is a verdict, not an error)
    """The image is refused; ``reason`` is the value of a ``model.Reason``, ``detail`` is text for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class MoreMemory(Exception):  # noqa: N818 (it is a wish)
    """Decoding takes up to ``memory`` bytes, more than it has."""

    def __init__(self, memory: int) -> None:
        super().__init__(memory)
        self.memory = memory

"""Asking as the rest of the program does: a transport, and what it returns or raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from conftest import SETTINGS
from exchange import Request, chunked, png, whole
from image_loader.errors import DownloadError
from image_loader.model import Failure, Reason
from image_loader.transport import Transport
from image_loader.url import parse
from server import plays

BODY = png("transport", 3000)
OK = "HTTP/1.1 200 OK\r\n"
CHUNKS = chunked(BODY, 700) + b"0\r\n\r\n"
SOON = {"timeout": 5.0, "max_time": 0.25}


@dataclass(frozen=True)
class Got:
    """An answer that was read to its end."""

    status: int
    fields: Mapping[str, str]
    body: bytes


def transport(**changes: Any) -> closing[Transport]:
    """Return a transport, for a ``with`` statement; when it is closed, nothing of it is left."""
    return closing(Transport(SETTINGS._replace(**changes)))


def get(asking: Transport, url: str, fields: Mapping[str, str] | None = None) -> Got:
    """Ask for a URL and read the answer."""
    with asking.exchange(parse(url), fields or {}) as answer:
        body = b"".join(answer.chunks(SETTINGS.chunk))
        return Got(answer.status, answer.fields, body)


def refusal(asking: Transport, url: str, fields: Mapping[str, str] | None = None) -> Failure:
    """Ask for a URL that cannot be had; return why."""
    with pytest.raises(DownloadError) as caught:
        get(asking, url, fields)
    return caught.value.failure


def assert_deadline(asking: Transport, url: str) -> None:
    """Ask for a URL whose answer takes longer than ``SOON``."""
    started = time.monotonic()
    failure = refusal(asking, url)
    assert (failure.reason, failure.retryable) == (Reason.DEADLINE, False)
    assert time.monotonic() - started < 1.5


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def served(body: bytes = BODY) -> Callable[[Request], Iterable[Any]]:
    """Answer with a whole image."""
    return plays(whole(body))

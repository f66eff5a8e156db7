"""Asking as the rest of the program does: a transport, and what it returns or raises."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import pytest

from conftest import SETTINGS
from exchange import Request, chunked, png, whole
from image_loader.errors import DownloadError, LoaderError
from image_loader.model import Failure, Reason
from image_loader.settings import Settings
from image_loader.transport import Answer, Connection, StaleConnectionError, Transport
from image_loader.transport import Request as Wanted
from image_loader.url import Url, parse
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


class Asking(Transport):
    """A transport that waits for its connections, and goes on from hop to hop, as the scheduler does."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings of a run."""
        self._delivered = defaultdict[str, SimpleQueue[Connection | DownloadError | LoaderError]](SimpleQueue)
        self.connects = 0
        super().__init__(settings, lambda origin, result, begun: self._delivered[origin].put(result))

    def connected(self, origin: str) -> Connection:
        """Return a connection, idle or new."""
        if (idle := self.take(origin)) is not None:
            return idle
        self.connects += 1
        self.connect(origin)
        result = self._delivered[origin].get(timeout=60)
        if isinstance(result, Connection):
            return result
        raise result

    @contextmanager
    def ask(self, url: Url, fields: Mapping[str, str], wait: float = 0.0) -> Iterator[Answer]:
        """Yield the answer to a request; its connections are given back, and wait ``wait`` seconds to be used."""
        request, hop = Wanted(url, fields), None
        while True:
            connection = self.connected((hop.url if hop else url).origin)
            time.sleep(wait)
            try:
                found = self.exchange(request, connection, hop)
                if isinstance(found, Answer):
                    with found as answer:
                        yield answer
                    return
                hop = found
            except StaleConnectionError:
                continue
            finally:
                self.give_back(connection)


def transport(**changes: Any) -> closing[Asking]:
    """Return a transport, for a ``with`` statement; when it is closed, nothing of it is left."""
    return closing(Asking(SETTINGS._replace(**changes)))


def get(asking: Asking, url: str, fields: Mapping[str, str] | None = None, **how: float) -> Got:
    """Ask for a URL and read the answer."""
    with asking.ask(parse(url), fields or {}, **how) as answer:
        body = b"".join(answer.chunks(SETTINGS.chunk))
        return Got(answer.status, answer.fields, body)


def refusal(asking: Asking, url: str, fields: Mapping[str, str] | None = None, **how: float) -> Failure:
    """Ask for a URL that cannot be had; return why."""
    with pytest.raises(DownloadError) as caught:
        get(asking, url, fields, **how)
    return caught.value.failure


def assert_deadline(asking: Asking, url: str) -> None:
    """Ask for a URL whose answer takes longer than ``SOON``, and see that no other limit came first."""
    started = time.monotonic()
    failure = refusal(asking, url)
    assert (failure.reason, failure.retryable) == (Reason.DEADLINE, False)
    assert time.monotonic() - started < SOON["timeout"]


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def served(body: bytes = BODY) -> Callable[[Request], Iterable[Any]]:
    """Answer with a whole image."""
    return plays(whole(body))

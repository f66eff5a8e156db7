"""Name look-ups, made in daemon threads: each name once at a time, its answer kept for a minute."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from image_loader.errors import DownloadError, LoaderError, is_out_of_descriptors
from image_loader.model import Reason
from image_loader.transport.addresses import Address
from image_loader.transport.daemons import Daemons
from image_loader.transport.failures import connect_error, unknown_name
from image_loader.url import ends_in_number

Found = tuple[Address, ...]
"""The addresses of a name."""
LookUp = Found | DownloadError | LoaderError
"""What came of looking a name up: its addresses, or why there are none."""

_MOST_THREADS = 256
"""Threads for look-ups: more than the names whose servers are likely to hang."""
_KEPT_FOR = 60.0
"""Seconds for which an answer is kept."""
_MOST_KEPT = 1000
"""Answers that are kept at most, of about 0.5 kB each."""


class Names:
    """The names of one run; any thread may ask.

    At most ``most_kept`` answers are kept, each for ``kept_for`` seconds.
    """

    def __init__(self, kept_for: float = _KEPT_FOR, most_kept: int = _MOST_KEPT) -> None:
        self._kept_for = kept_for
        self._most_kept = most_kept
        self._daemons = Daemons("image_loader-names", _MOST_THREADS)
        self._lock = threading.Lock()
        self._asking: dict[str, dict[int, Callable[[int, LookUp], None]]] = {}
        self._kept: OrderedDict[str, tuple[float, Found]] = OrderedDict()

    @property
    def is_waiting(self) -> bool:
        """Whether a look-up waits for a thread, so that ``relieve`` is to be called every ``daemons.WAIT`` seconds."""
        return self._daemons.is_waiting

    def look_up(self, host: str, number: int, then: Callable[[int, LookUp], None]) -> LookUp | None:
        """Return the addresses of ``host``, or why there are none.

        Return None where that takes a look-up: ``then`` gets ``number`` and the answer, in another thread.
        """
        if (host[:1] == "[" or ends_in_number(host)) and (literal := _literal(host)):
            return literal
        with self._lock:
            if (kept := self._from_memory(host)) is not None:
                return kept
            asking = self._asking.get(host)
            if asking is not None:
                asking[number] = then
                return None
            self._asking[host] = {number: then}
        try:
            self._daemons.submit(host, partial(self._ask, host))
        except LoaderError as error:
            with self._lock:
                joined = self._asking.pop(host, {})
            joined.pop(number, None)
            for each, tell in joined.items():
                tell(each, error)
            return error
        return None

    def forget(self, host: str, number: int) -> None:
        """Forget one that has waited for too long; a look-up that nobody waits for is not begun."""
        with self._lock:
            asking = self._asking.get(host, {})
            asking.pop(number, None)
            if not asking and self._daemons.withdraw(host):
                del self._asking[host]

    def relieve(self) -> None:
        """Start more threads if look-ups wait for one."""
        self._daemons.relieve()

    def close(self) -> None:
        """End the threads; one whose look-up hangs ends with the process."""
        self._daemons.close()

    def _from_memory(self, host: str) -> Found | None:
        until, found = self._kept.get(host, (0.0, ()))
        return found if time.monotonic() < until else None

    def _ask(self, host: str) -> None:
        answer = _resolved(host)
        with self._lock:
            if isinstance(answer, tuple):
                self._kept[host] = (time.monotonic() + self._kept_for, answer)
                self._kept.move_to_end(host)
                if len(self._kept) > self._most_kept:
                    self._kept.popitem(last=False)
            asking = self._asking.pop(host, {})
        for number, then in asking.items():
            then(number, answer)


def _literal(host: str) -> Found:
    """Return the address that ``host`` spells; nothing if it is none."""
    try:
        return _addresses(host, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return ()


def _addresses(host: str, flags: int = 0) -> Found:
    found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM, flags=flags)
    # The same address may come twice, from /etc/hosts.
    return tuple({Address(family, str(at[0]), at[2:]): None for family, _, _, _, at in found})


def _resolved(host: str) -> LookUp:
    try:
        return _addresses(host)
    except UnicodeError:
        return DownloadError(Reason.BAD_URL, "bad host name")
    except OSError as error:
        # The resolver reports a lack of descriptors like an unreachable server.
        lack = _lack_of_descriptors()
        if lack is not None:
            return connect_error(lack)
        if isinstance(error, socket.gaierror):
            return unknown_name(error)
        return connect_error(error)


def _lack_of_descriptors() -> OSError | None:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if is_out_of_descriptors(error) else None
    return None

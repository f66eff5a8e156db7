"""Hands out connections to the hosts whose jobs may start, and turns to workers once a connection stands."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Protocol

from image_loader.errors import DownloadError, LoaderError
from image_loader.inbox import Inbox
from image_loader.scheduling.host import SHARE_TIME, Host, Task
from image_loader.scheduling.slots import Allowance, Slots, connects_at_most
from image_loader.scheduling.timers import Timers
from image_loader.scheduling.workers import Attempt, Clock, Ended, Tools, Turn, TurnNearlyOver, TurnOver
from image_loader.settings import Settings
from image_loader.transport import Connection

_LOG = logging.getLogger(__name__)
_TURNS_AHEAD = 1 / 4
"""Turns queued beyond the busy workers, as a fraction of all workers, so that no worker waits for its next turn."""
_WORKERS_KEPT = 3 / 4
"""Fraction of the workers that are kept when descriptors run out."""
_IMAGES_TO_GROW = 20
"""Images that each worker has to fetch then, before there is one worker more."""


class Connected:
    """What came of making a connection to an origin, and when that was begun, by the scheduler's clock."""

    def __init__(self, origin: str, result: Connection | DownloadError | LoaderError, started: float) -> None:
        self.origin = origin
        self.result = result
        self.started = started


Message = Connected | TurnOver | TurnNearlyOver


def close_delivered(inbox: Inbox[Message]) -> None:
    """Close the connections of messages that nobody is going to take in."""
    with suppress(Empty):
        while True:
            match inbox.get_nowait():
                case Connected(result=result) if not isinstance(result, Exception):
                    result.close()
                case TurnOver(turn):
                    turn.connection.close()


if TYPE_CHECKING:

    class Connections(Protocol):
        """What makes connections, and keeps those that wait for their next request."""

        def connect(self, origin: str) -> None:
            """Begin to make a connection; a ``Connected`` tells what comes of it."""

        def take(self, origin: str) -> Connection | None:
            """Return a connection to an origin that is kept."""

        def give_back(self, connection: Connection) -> None:
            """Keep a connection, or close it."""

        def drop_idle(self) -> bool:
            """Close the connections that are kept; tell if there were any."""

    class Executor(Protocol):
        """What does work in other threads."""

        def submit(self, work: Callable[[], None]) -> None:
            """Have a thread do some work. Raises ``LoaderError`` where none will do it."""


class Dispatch:
    """Queues hosts: one queue for a worker, two for a connection (first try, retry); used by the scheduling thread.

    A host that cannot start leaves its queue.
    """

    def __init__(
        self,
        workers: Executor,
        attempt: Attempt,
        connections: Connections,
        inbox: Inbox[Message],
        settings: Settings,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """``inbox`` takes the messages of other threads; ``clock`` is that of all times."""
        self._workers = workers
        self.clock = clock
        self._connections = connections
        self.inbox = inbox
        """Messages of other threads."""
        self.ended: deque[Ended] = deque()
        """Attempts that have ended, for the scheduler to take out."""
        self._tools = Tools(attempt, clock, self.ended, inbox.put)
        self.threads = Allowance(settings.threads, _IMAGES_TO_GROW)
        """How many workers are used."""
        # With a delay between two requests, a turn begins at once, and not when a worker comes to it.
        self._turns_ahead = 0 if settings.delay else int(_TURNS_AHEAD * settings.threads)
        self._slots = Slots(connects_at_most(settings), settings.threads)
        self._for_worker: deque[Host] = deque()
        self._for_connection: deque[Host] = deque()
        self._for_connection_again: deque[Host] = deque()
        """Hosts that did not answer before: they have fewer slots."""
        self._over_share: dict[Host, None] = {}
        """Hosts that would get another connection if a thread were idle."""
        self.timers = Timers()
        self.turns: set[Turn] = set()
        """Turns that workers have, or that are queued for them."""

    @property
    def is_waiting(self) -> bool:
        """Whether nothing is under way, nor about to be."""
        return not (self.turns or self._for_worker or self._for_connection or self._slots.in_use)

    @property
    def hosts_ahead(self) -> int:
        """How many hosts wait for a connection, and have not failed yet."""
        return len(self._for_connection)

    def is_about_to_start(self, now: float) -> bool:
        """Tell whether a connection is being made that is likely to stand in a moment."""
        return self._slots.expects(now)

    def next_at(self) -> float | None:
        """Return when something is due without a message: a timer, or a slot for a host that waits for one."""
        at = self.timers.next_at()
        if self._for_connection or self._for_connection_again:
            slot_at = self._slots.next_at()
            return at if slot_at is None or (at is not None and at < slot_at) else slot_at
        return at

    def line_up(self, host: Host, now: float) -> None:
        """Have a host wait for a worker or for a connection, as it needs; or for the end of its pause."""
        self._over_share.pop(host, None)
        if host.opens_at > now:
            if host.waiting:
                self.timers.set_host(host, host.opens_at)
            return
        startable = host.startable
        if startable <= 0:
            return
        lacks = startable - host.spare_connections
        while lacks > 0 and (connection := self._connections.take(host.origin)):
            host.connections.append(connection)
            lacks -= 1
        if host.connections and not host.waits_for_worker:
            host.waits_for_worker = True
            self._for_worker.append(host)
        if lacks > 0 and not host.waits_for_connection:
            host.waits_for_connection = True
            (self._for_connection_again if host.health.misses else self._for_connection).append(host)

    def start(self, now: float) -> None:
        """Begin the connections and the turns that there is room for."""
        if self._over_share and self._has_idle(self._standing()):
            for host in list(self._over_share):
                self.line_up(host, now)
        self._connect(self._for_connection, now, retry=False)
        self._connect(self._for_connection_again, now, retry=True)
        if not self._for_worker:
            return
        threads = self.threads
        # Turns ahead wait in the executor. With fewer threads in use than it has, it would start them at once.
        most = threads.current + self._turns_ahead if threads.current == threads.most else threads.current
        while self._for_worker and len(self.turns) < most:
            host = self._for_worker.popleft()
            host.waits_for_worker = False
            if host.may_start(now) and host.connections:
                # The connection that was used last. Its worker checks whether it still stands.
                self._submit(host, host.connections.pop(), now)
            self.line_up(host, now)
            self.release_unneeded(host)

    def end_connect(self, host: Host, connection: Connection | None) -> None:
        """Take note that making a connection came to its end."""
        # The slot of the one that was begun first, whichever this is: no message says more than the origin.
        self._slots.end(host.connecting.pop(0))
        if connection is not None:
            host.connections.append(connection)

    def release_unneeded(self, host: Host) -> None:
        """Have the connections of a host that does not wait for a worker kept for later."""
        if not host.waits_for_worker:
            self.release(host)

    def release(self, host: Host) -> None:
        """Have the connections of a host kept for later."""
        while host.connections:
            self._connections.give_back(host.connections.pop())

    def clear(self) -> None:
        """Have nothing wait any more, for a worker, for a connection or for a time: the run ends."""
        for host in self._for_worker:
            # It may have no jobs any more, and then nobody else knows of it.
            host.waits_for_worker = False
            self.release(host)
        self._for_worker.clear()
        self._for_connection.clear()
        self._for_connection_again.clear()
        self._over_share.clear()
        self.timers.clear()

    def take_turns(self) -> set[Turn]:
        """Take out all turns: nobody waits for them any more."""
        turns, self.turns = self.turns, set()
        return turns

    def end_turn(self, turn: Turn) -> bool:
        """Take note that a worker is done with its turn; False if nobody waits for it any more."""
        if turn not in self.turns:
            # It may have ended just before it was dropped, and then leaves its connection to us.
            turn.connection.close()
            return False
        self.turns.discard(turn)
        turn.host.running -= 1
        if turn.connection.usable:
            turn.host.connections.append(turn.connection)
        else:
            turn.connection.close()
        return True

    def extend(self, turn: Turn, now: float) -> None:
        """Have a worker go on with its host after its last job, unless another host waits for a worker."""
        host = turn.host
        self.line_up(host, now)
        wanted = self._for_worker or len(self.turns) > self.threads.current
        steady = host.pace is not None and not host.health.interval and host.opens_at <= now
        if steady and host.running >= host.at_once and host.waiting and not wanted:
            turn.extend(host.take_share(host.at_once))

    def slow_turns(self, now: float) -> list[Turn]:
        """Return the turns whose current job takes so long that those behind it should go to another worker."""
        slow = []
        for turn in self.turns:
            seconds = now - turn.begun
            if seconds > 2 * SHARE_TIME and seconds > 2 * turn.host.usual_time:
                slow.append(turn)
        return slow

    def is_alone(self, task: Task) -> bool:
        """Tell whether nothing is under way but the attempt at this task."""
        idle = self.threads.current == 1 and not (self._slots.in_use or self._for_worker)
        return idle and all(turn.current in (task, None) for turn in self.turns)

    def drop_idle(self) -> bool:
        """Close the connections that wait for nobody; tell if there were any."""
        return self._connections.drop_idle()

    def shrink(self, started: float, now: float, *, connecting: bool) -> None:
        """Do less at once for some time, since descriptors have run out: fewer connections, then fewer workers."""
        for host in self._for_worker:
            while host.connections:
                host.connections.pop().close()
        if connecting and self._slots.shrink(started, now):
            return
        kept = int(_WORKERS_KEPT * min(self.threads.current, len(self.turns)))
        if self.threads.shrink(kept, started, now):
            _LOG.info(
                "out of file descriptors (ulimit -n): %d downloads at once for the time being", self.threads.current
            )

    def _connect(self, queue: deque[Host], now: float, *, retry: bool) -> None:
        if not queue:
            return
        # Once, and not for each host that waits: they change little meanwhile.
        standing, share = self._standing(), self._fair_share()
        while queue and self._slots.has_room(now, standing, retry=retry):
            host = queue.popleft()
            host.waits_for_connection = False
            if host.opens_at > now or host.startable <= host.spare_connections:
                continue
            if self._has_idle(standing) or host.connection_count < share:
                host.connecting.append(self._slots.begin(now, retry=retry))
                self._connections.connect(host.origin)
                self.line_up(host, now)
            else:
                self._over_share[host] = None

    def _fair_share(self) -> int:
        """Return how many connections each host needs to get its part of the workers."""
        hosts = {turn.host for turn in self.turns}
        hosts.update(self._for_worker)
        return max(1, self.threads.current // max(1, len(hosts)))

    def _has_idle(self, standing: int) -> bool:
        """Tell whether a thread has neither a turn nor a connection that is ``standing``, or being made, for it."""
        return len(self.turns) + standing + self._slots.in_use < self.threads.current

    def _standing(self) -> int:
        """Return how many connections wait for a worker."""
        return sum(len(host.connections) for host in self._for_worker)

    def _submit(self, host: Host, connection: Connection, now: float) -> None:
        turn = Turn(host, connection, host.take_share(host.free), self._tools)
        self.turns.add(turn)
        host.running += 1
        if host.health.interval:
            host.note(host.health.started(now))
        try:
            self._workers.submit(turn.work)
        except LoaderError as error:
            self.inbox.put(TurnOver(turn, error))

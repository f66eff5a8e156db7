"""The hosts of a run: those with jobs, and what is remembered of others that failed."""

from __future__ import annotations

from collections.abc import Iterator

from image_loader.model import Failure, Reason
from image_loader.scheduling.health import Health, Policy, State
from image_loader.scheduling.host import Host

_REMEMBERED = 10_000
"""Hosts without jobs that are remembered in each of two tables, about 0.4 kB each. The oldest are forgotten first."""


class Hosts:
    """The hosts by origin; their number does not grow with the list."""

    def __init__(self, policy: Policy, remembered: int = _REMEMBERED) -> None:
        """Something is ``remembered`` of at most so many hosts without jobs."""
        self._policy = policy
        self._most_remembered = remembered
        # What is known of one that is new; one value for all that are met at once.
        self._unknown = Health.unknown(policy, 0.0)
        self._active: dict[str, Host] = {}
        self._remembered: dict[str, Health] = {}
        """Those that failed or were slowed down."""
        self._paced: dict[str, Health] = {}
        """The others whose next attempt has to wait for a moment."""

    def __iter__(self) -> Iterator[Host]:
        return iter(self._active.values())

    def get(self, origin: str, now: float) -> Host:
        """Return the host of an origin."""
        host = self._active.get(origin)
        if host is None:
            known = self._remembered.pop(origin, None) or self._paced.pop(origin, None)
            health = self._new(now) if known is None else known.met_again(now)
            host = self._active[origin] = Host(origin, health)
        return host

    def _new(self, now: float) -> Health:
        if self._unknown.resumed_at != now:
            self._unknown = Health.unknown(self._policy, now)
        return self._unknown

    def down_failure(self, origin: str, now: float) -> Failure | None:
        """Return the failure for the jobs of a host that is down.

        None if it is not down, or if it is time to ask it again. It is asked by one job at a time: where attempts take
        longer than the pause, they would pile up.
        """
        host = self._active.get(origin)
        health = self._remembered.get(origin) if host is None else host.health
        if health is None or health.ask_at is None:
            return None
        due = health.ask_at <= now and (host is None or host.is_idle)
        return None if due else host_down()

    def forget_if_idle(self, host: Host, now: float) -> bool:
        """Forget a host that has nothing to do, except for what still matters of its health."""
        if not host.is_idle or self._active.get(host.origin) is not host:
            return False
        del self._active[host.origin]
        host.wakes_at = None
        if host.health.state is not State.READY or host.health.misses:
            self._remember(host, self._remembered)
        elif host.opens_at > now:
            self._remember(host, self._paced)
        return True

    def _remember(self, host: Host, kept: dict[str, Health]) -> None:
        kept[host.origin] = host.health
        if len(kept) > self._most_remembered:
            del kept[next(iter(kept))]


def host_down() -> Failure:
    """Say that a host was given up."""
    return Failure(Reason.HOST_DOWN, "the host does not answer, or refuses every request")

"""Simulated servers that limit what they let through, and a client that asks by what is known of a host."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from image_loader.scheduling.health import Health, Policy

POLICY = Policy(per_host=10, failures=5, patience=30.0, longest_pause=120.0)


class Limit(Protocol):
    """Lets a request through or refuses it; the ``ideal`` is the least time for so many images, in seconds."""

    def lets_through(self, now: float) -> bool:
        """Judge a request that arrives now."""

    def ideal(self, images: int) -> float:
        """Return the least time."""


class Window:
    """So many requests in each period, which begins when the last one is over."""

    def __init__(self, requests: int, period: float) -> None:
        self._requests = requests
        self._period = period
        self._current = -1
        self._count = 0

    def lets_through(self, now: float) -> bool:
        current = int(now / self._period)
        if current != self._current:
            self._current, self._count = current, 0
        self._count += 1
        return self._count <= self._requests

    def ideal(self, images: int) -> float:
        return (images - 1) // self._requests * self._period


class SlidingWindow:
    """So many requests in any period; those that were refused may count as well."""

    def __init__(self, requests: int, period: float, *, counts_refused: bool = False) -> None:
        self._requests = requests
        self._period = period
        self._counts_refused = counts_refused
        self._times: deque[float] = deque()

    def lets_through(self, now: float) -> bool:
        while self._times and self._times[0] <= now - self._period:
            self._times.popleft()
        passes = len(self._times) < self._requests
        if passes or self._counts_refused:
            self._times.append(now)
        return passes

    def ideal(self, images: int) -> float:
        return (images - 1) // self._requests * self._period


class Bucket:
    """So many requests a second, and a burst at once (as nginx's ``limit_req`` with ``nodelay``)."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst + 1.0
        self._then = 0.0

    def lets_through(self, now: float) -> bool:
        self._tokens = min(self._burst + 1.0, self._tokens + (now - self._then) * self._rate)
        self._then = now
        passes = self._tokens >= 1
        self._tokens -= passes
        return passes

    def ideal(self, images: int) -> float:
        return max(0.0, (images - self._burst - 1) / self._rate)


class Outage:
    """Refuses all until so many seconds have passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def lets_through(self, now: float) -> bool:
        return now >= self._seconds

    def ideal(self, images: int) -> float:
        return self._seconds


class AtRandom:
    """Refuses a share of the requests, whatever their rate."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._chance = random.Random(seed)

    def lets_through(self, now: float) -> bool:
        return self._chance.random() >= self._share

    def ideal(self, images: int) -> float:
        return 0.0


class Simulated(NamedTuple):
    """How a simulated run ended, after so many seconds and requests, with so many images left."""

    seconds: float
    requests: int
    left: int


def simulate(limit: Limit, images: int, latency: float, pause: Callable[[float], float | None]) -> Simulated:
    """Load images from a server with a limit; ``pause`` is what it asks for with a refusal."""
    chance = random.Random(1)
    health = Health.unknown(POLICY, 0.0)
    now, successes, requests, waiting = 0.0, 0, 0, images
    running: list[tuple[float, int, float, bool]] = []
    while successes < images and not health.is_over(now):
        while waiting and len(running) < health.at_once and health.opens_at <= now:
            health = health.started(now)
            requests, waiting = requests + 1, waiting - 1
            passes = limit.lets_through(now + latency / 2)
            heapq.heappush(running, (now + latency * chance.uniform(0.9, 1.1), requests, now, passes))
        times = [running[0][0]] if running else []
        if waiting and len(running) < health.at_once:
            times.append(health.opens_at)
        now = max(now, min(times))
        while running and running[0][0] <= now:
            _, _, started, passes = heapq.heappop(running)
            if passes:
                successes += 1
                health = health.answered(now, started, successes)
            else:
                waiting += 1
                health = health.refused(now, started, pause(now), successes)
    return Simulated(now, requests, images - successes)


LIMITS: Sequence[tuple[str, Callable[[], Limit], int]] = (
    ("20 a second", lambda: Window(20, 1), 300),
    ("20 in any second", lambda: SlidingWindow(20, 1), 300),
    ("20 in any second, refused ones too", lambda: SlidingWindow(20, 1, counts_refused=True), 300),
    ("5 a second", lambda: Window(5, 1), 60),
    ("5 in any second", lambda: SlidingWindow(5, 1), 60),
    ("5 in any second, refused ones too", lambda: SlidingWindow(5, 1, counts_refused=True), 60),
    ("50 in 10 s", lambda: Window(50, 10), 150),
    ("50 in any 10 s", lambda: SlidingWindow(50, 10), 150),
    ("100 a minute", lambda: Window(100, 60), 300),
    ("100 in any minute", lambda: SlidingWindow(100, 60), 300),
    ("a bucket of 20 a second", lambda: Bucket(20, 0), 300),
    ("a bucket of 20 a second and 5 at once", lambda: Bucket(20, 5), 300),
    ("a bucket of 5 a second", lambda: Bucket(5, 0), 60),
    ("a bucket of 5 a second and 20 at once", lambda: Bucket(5, 20), 100),
    ("a bucket of 1 a second", lambda: Bucket(1, 0), 40),
)
"""Limits by name, and the images to load."""

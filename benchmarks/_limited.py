"""Servers that limit how they are asked: pure, times are arguments, in seconds.

Each is asked ``arrive(now)`` for every request, in order of time, and says what becomes
of it. The simulation and the HTTP server of the benchmark play the same objects.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request: accepted after *delay*, or rejected at once."""

    delay: float = 0.0
    """Seconds that the server works and lets it queue."""
    queued: float = 0.0
    """Of these, how many it queued."""
    status: int = 200
    retry_after: float | None = None
    as_date: bool = False


class Server(Protocol):
    """Takes requests, and knows what it could have granted."""

    def arrive(self, now: float) -> Verdict:
        """Decide on a request."""

    def ideal(self, seconds: float) -> float:
        """Requests that it grants in *seconds* to who always asks in time."""


@dataclass(slots=True)
class Bucket:
    """Token bucket: *rate* per second, *burst* at once; another rate from *turn* on."""

    rate: float
    burst: float
    status: int = 429
    says: bool = False
    turn: float = math.inf
    later: float = 0.0
    _tokens: float = -1.0
    _at: float = 0.0

    def arrive(self, now: float) -> Verdict:
        if self._tokens < 0:
            self._tokens = self.burst
        earned = self._earned(now) - self._earned(self._at)
        self._tokens = min(self.burst, self._tokens + earned)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return Verdict()
        wait = (1 - self._tokens) / (self.rate if now < self.turn else self.later)
        return Verdict(
            status=self.status,
            retry_after=float(math.ceil(wait)) if self.says else None,
        )

    def _earned(self, now: float) -> float:
        return self.rate * min(now, self.turn) + self.later * max(0, now - self.turn)

    def ideal(self, seconds: float) -> float:
        return self._earned(seconds)


@dataclass(slots=True)
class Window:
    """*count* in each window of *seconds*, on the server's clock from *phase* on."""

    count: int
    seconds: float
    status: int = 429
    says: str = ""
    phase: float = 0.0
    _number: int = -1
    _taken: int = 0

    def arrive(self, now: float) -> Verdict:
        number, inside = divmod(now + self.phase, self.seconds)
        if number != self._number:
            self._number, self._taken = int(number), 0
        if self._taken < self.count:
            self._taken += 1
            return Verdict()
        wait = float(math.ceil(self.seconds - inside))
        return Verdict(
            status=self.status,
            retry_after=wait if self.says else None,
            as_date=self.says == "date",
        )

    def ideal(self, seconds: float) -> float:
        return self.count * seconds / self.seconds


@dataclass(slots=True)
class Sliding:
    """*count* in any *seconds*."""

    count: int
    seconds: float
    status: int = 429
    says: bool = False
    _taken: deque[float] = field(default_factory=deque)

    def arrive(self, now: float) -> Verdict:
        while self._taken and self._taken[0] <= now - self.seconds:
            self._taken.popleft()
        if len(self._taken) < self.count:
            self._taken.append(now)
            return Verdict()
        wait = self._taken[0] + self.seconds - now
        return Verdict(
            status=self.status,
            retry_after=float(math.ceil(wait)) if self.says else None,
        )

    def ideal(self, seconds: float) -> float:
        return self.count * seconds / self.seconds


@dataclass(slots=True)
class Workers:
    """As many at a time as there are workers; the others queue, or are refused."""

    work: Callable[[float, random.Random], float]
    """Seconds of work, at a time."""
    workers: Callable[[float], int]
    seed: int = 0
    refuses: int = 0
    """Status for who would have to queue; 0 lets them queue."""
    mean: float = 0.0
    _free: list[float] = field(default_factory=list)
    _random: random.Random | None = None

    def arrive(self, now: float) -> Verdict:
        if self._random is None:
            self._random = random.Random(self.seed)
        count = self.workers(now)
        while self._free and self._free[0] <= now:
            heapq.heappop(self._free)
        busy = len(self._free)
        if busy >= count and self.refuses:
            return Verdict(status=self.refuses)
        start = now
        if busy >= count:
            # It starts when so many have ended that a worker is free.
            start = heapq.nsmallest(busy - count + 1, self._free)[-1]
        end = start + self.work(start, self._random)
        heapq.heappush(self._free, end)
        return Verdict(delay=end - now, queued=start - now)

    def ideal(self, seconds: float) -> float:
        steps = 1000
        dt = seconds / steps
        rng = random.Random(1)
        total = 0.0
        for n in range(steps):
            now = n * dt
            work = self.mean or sum(self.work(now, rng) for _ in range(50)) / 50
            total += dt * self.workers(now) / work
        return total


@dataclass(slots=True)
class Noisy:
    """Another server, with a share of answers that are refused for no reason."""

    inner: Server
    share: float
    status: int
    retry_after: float | None = None
    seed: int = 0
    _random: random.Random | None = None

    def arrive(self, now: float) -> Verdict:
        if self._random is None:
            self._random = random.Random(self.seed)
        if self._random.random() < self.share:
            return Verdict(status=self.status, retry_after=self.retry_after)
        return self.inner.arrive(now)

    def ideal(self, seconds: float) -> float:
        return self.inner.ideal(seconds)

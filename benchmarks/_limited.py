"""Servers that limit how they are asked: pure, times are arguments, in seconds.

Each is asked ``arrive(now)`` for every request, in order of time, and says what becomes
of it. The tests' simulation and the benchmark's HTTP server play the same objects.
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

    def lasts(self, seconds: float) -> None:
        """The run is so long; some change in its course."""

    def ideal(self, seconds: float, delay: float) -> float:
        """Requests that its limit comes to; *delay* is the way there and back."""


@dataclass(slots=True)
class Bucket:
    """Token bucket: *rate* per second, *burst* at once.

    From *turn* on, a share of the run, it is the rate *later*.
    """

    rate: float
    burst: float
    status: int = 429
    says: bool = False
    turn: float = math.inf
    later: float = 0.0
    _tokens: float = -1.0
    _at: float = 0.0
    _total: float = math.inf

    def lasts(self, seconds: float) -> None:
        """The run is so long."""
        self._total = seconds

    def arrive(self, now: float) -> Verdict:
        """Decide on a request."""
        if self._tokens < 0:
            self._tokens = self.burst
        earned = self._earned(now) - self._earned(self._at)
        self._tokens = min(self.burst, self._tokens + earned)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return Verdict()
        turned = now >= self.turn * self._total
        wait = (1 - self._tokens) / (self.later if turned else self.rate)
        return Verdict(
            status=self.status,
            retry_after=float(math.ceil(wait)) if self.says else None,
        )

    def _earned(self, now: float) -> float:
        turn = self.turn * self._total
        return self.rate * min(now, turn) + self.later * max(0, now - turn)

    def ideal(self, seconds: float, _delay: float) -> float:
        """The rate, without what the burst adds once."""
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

    def lasts(self, seconds: float) -> None:
        """Nothing changes."""

    def arrive(self, now: float) -> Verdict:
        """Decide on a request."""
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

    def ideal(self, seconds: float, _delay: float) -> float:
        """Count by seconds."""
        return self.count * seconds / self.seconds


@dataclass(slots=True)
class Sliding:
    """*count* in any *seconds*."""

    count: int
    seconds: float
    status: int = 429
    says: bool = False
    _taken: deque[float] = field(default_factory=deque)

    def lasts(self, seconds: float) -> None:
        """Nothing changes."""

    def arrive(self, now: float) -> Verdict:
        """Decide on a request."""
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

    def ideal(self, seconds: float, _delay: float) -> float:
        """Count by seconds."""
        return self.count * seconds / self.seconds


@dataclass(slots=True)
class Workers:
    """As many at a time as there are workers; the others queue, or are refused."""

    work: Callable[[float, random.Random], float]
    """Seconds of work that begins at a share of the run."""
    workers: int
    count: Callable[[float, float], int] | None = None
    """Workers at a time, by that and the length of the run."""
    refuses: int = 0
    """Status for who would have to queue; 0 lets them queue."""
    bound: int = 64
    """Requests that are in flight at most."""
    seed: int = 0
    _total: float = 1.0
    _worked: float = 0.0
    _served: int = 0
    _free: list[float] = field(default_factory=list)
    _random: random.Random | None = None

    def lasts(self, seconds: float) -> None:
        """The run is so long."""
        self._total = seconds

    def arrive(self, now: float) -> Verdict:
        """Decide on a request."""
        if self._random is None:
            self._random = random.Random(self.seed)
        count = self._count(now)
        while self._free and self._free[0] <= now:
            heapq.heappop(self._free)
        busy = len(self._free)
        if busy >= count and self.refuses:
            return Verdict(status=self.refuses)
        start = now
        if busy >= count:
            # It starts when so many have ended that a worker is free.
            start = heapq.nsmallest(busy - count + 1, self._free)[-1]
        work = self.work(start / self._total, self._random)
        self._worked += work
        self._served += 1
        end = start + work
        heapq.heappush(self._free, end)
        return Verdict(delay=end - now, queued=start - now)

    def _count(self, now: float) -> int:
        return self.workers if self.count is None else self.count(now, self._total)

    def ideal(self, seconds: float, delay: float) -> float:
        """What the workers can do of the work that came.

        Who may not queue leaves them idle on the way.
        """
        work = self._worked / max(1, self._served)
        total = 0.0
        for n in range(1000):
            count = self._count((n + 0.5) / 1000 * seconds)
            bound = count if self.refuses else self.bound
            total += seconds / 1000 * min(count / work, bound / (work + delay))
        return total


@dataclass(slots=True)
class Noisy:
    """Another server, with a share of answers that are refused for no reason."""

    inner: Server
    share: float
    status: int
    seed: int = 0
    retry_after: float | None = None
    _random: random.Random | None = None

    def lasts(self, seconds: float) -> None:
        """The run is so long."""
        self.inner.lasts(seconds)

    def arrive(self, now: float) -> Verdict:
        """Decide on a request."""
        if self._random is None:
            self._random = random.Random(self.seed)
        if self._random.random() < self.share:
            return Verdict(status=self.status, retry_after=self.retry_after)
        return self.inner.arrive(now)

    def ideal(self, seconds: float, delay: float) -> float:
        """What the other grants."""
        return self.inner.ideal(seconds, delay)


def fixed(seconds: float) -> Callable[[float, random.Random], float]:
    """Always the same work."""
    return lambda _share, _rng: seconds


def heavy(mean: float, sigma: float) -> Callable[[float, random.Random], float]:
    """Log-normal work: much of it in few requests."""
    median = mean * math.exp(-sigma * sigma / 2)
    return lambda _share, rng: median * math.exp(sigma * rng.gauss(0, 1))

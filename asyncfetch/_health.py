"""Whether a host is up, and how many retries it may be sent: pure, times are arguments.

A run that asks thousands of things must not spend the attempts of each of them on a
host that is down, nor multiply what reaches it. The *breaker* opens when failures come
one after the other with no answer in between, or outnumber the answers by far; then one
request at a time looks whether the host is back, and everybody else waits. The *budget*
lets retries be at most a fifth of all requests, and one in five seconds beside.
"""

from __future__ import annotations

import enum
import math
import random

STREAK = 3.0  # failures in a row that open the breaker
MEMORY = 120.0  # seconds over which requests and answers are compared
# Google SRE, "Handling overload": p = (requests - 2 accepts) / (requests + 1).
FEWEST = 20  # requests before that comparison means anything
FIRST_LOOK = 0.25  # seconds; a hiccup costs no more, and each further look waits twice
LONGEST_LOOK = 60.0
# Errors of one item look like an outage when nothing else is asked. Nothing but 500 for
# so many seconds is taken for that.
LONGEST_OUTAGE_OF_500 = 600.0
SHARE = 0.2  # retries for each request
PER_SECOND = 0.2  # retries beside
RESERVE = 100.0  # retries that may come at once


class Failure(enum.Enum):
    """What kind of failure, by how surely it is the host's and not the question's."""

    HOST = 1.0
    """No connection, 502, 503: it is the host."""
    EITHER = 0.9
    """No answer in time, a reset, 504: of another question each time, the host."""
    QUESTION = 0.5
    """500 and its like: only when many questions meet it."""


class Breaker:
    """Closed while a host answers; open, one request at a time looks for it."""

    def __init__(self, rng: random.Random) -> None:
        self.is_open = False
        self.opened_at = -math.inf
        self.last = ""
        self._rng = rng
        self._looking = False
        self._look_at = -math.inf
        self._look_wait = FIRST_LOOK
        self._weight = 0.0
        self._questions: set[int] = set()
        self._requests = 0.0
        self._accepts = 0.0
        self._counted_at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until a request may leave; infinite: not before another ends."""
        if not self.is_open:
            return 0.0
        return math.inf if self._looking else max(0.0, self._look_at - now)

    def next_look(self, now: float) -> float:
        """Seconds until the host is asked again, by anybody."""
        return max(0.0, self._look_at - now) if self.is_open else 0.0

    def sent(self) -> None:
        """Note that a request leaves."""
        self._looking = self.is_open

    def ended(self) -> None:
        """Note that a request ended, however it did."""
        self._looking = False

    def answered(self, now: float) -> None:
        """Note an answer: the host is up."""
        self._count(now, accepts=1.0)
        if self._weight:
            self._weight = 0.0
            self._questions.clear()
        if self.is_open:
            self.is_open = False
            self._look_wait = FIRST_LOOK
            self._requests = self._accepts = 0.0

    def failed(self, now: float, question: int, kind: Failure, error: str) -> None:
        """Note a failure of *question*."""
        self._count(now, accepts=0.0)
        self.last = error
        if kind is Failure.HOST or question not in self._questions:
            self._weight += kind.value
            self._questions.add(question)
        if self.is_open:
            self._look_wait = min(LONGEST_LOOK, 2 * self._look_wait)
        elif self._weight >= STREAK * 0.9 or self._is_overwhelmed():
            self.is_open = True
            self.opened_at = now
        else:
            return
        self._look_at = now + self._look_wait * self._rng.uniform(0.75, 1.25)

    def excuses(self, now: float, kind: Failure) -> bool:
        """Whether a failure says nothing of the question that met it."""
        if kind is Failure.QUESTION and now - self.opened_at > LONGEST_OUTAGE_OF_500:
            return False
        return self.is_open

    def _is_overwhelmed(self) -> bool:
        refused = (self._requests - 2 * self._accepts) / (self._requests + 1)
        return self._requests >= FEWEST and refused > 0.5

    def _count(self, now: float, *, accepts: float) -> None:
        fade = math.exp((self._counted_at - now) / MEMORY)
        self._requests = 1 + fade * self._requests
        self._accepts = accepts + fade * self._accepts
        self._counted_at = now


class Budget:
    """How many retries a host may still be sent."""

    def __init__(self) -> None:
        self._left = RESERVE
        self._at = 0.0

    def left(self, now: float) -> float:
        """Retries that may be sent now."""
        return min(RESERVE, self._left + PER_SECOND * max(0.0, now - self._at))

    def sent(self, now: float) -> None:
        """Note a request; every fifth pays for a retry."""
        self._left = min(RESERVE, self.left(now) + SHARE)
        self._at = now

    def retry(self, now: float) -> float:
        """Take one retry; return seconds until it may be sent."""
        self._left = self.left(now) - 1
        self._at = now
        return max(0.0, -self._left / PER_SECOND)

"""Whether and when to ask again: pure, without clock, sleep or network.

Full jitter: the wait after attempt *n* is drawn from ``[0, min(60, 2 ** (n - 1))]``
seconds, so that clients which failed together do not come back together. A server's
own Retry-After is a floor under it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from asyncfetch.errors import IntegrityError, ResponseError, TransportError

# RFC 9110 and RFC 6585: the statuses that may pass by themselves.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long."""

    attempts: int = 6
    """Attempts in all, the first one included."""
    base: float = 1.0
    """Upper bound of the first wait, in seconds; doubled at each further attempt."""
    cap: float = 60.0
    """Upper bound of every wait, in seconds."""

    def delay(self, attempt: int, error: Exception, rng: random.Random) -> float | None:
        """Seconds to wait after *attempt* (1, 2, …) failed, or None to give up."""
        # An error may know itself how often it is worth another try.
        attempts = min(self.attempts, getattr(error, "tries", self.attempts))
        if attempt >= attempts or not is_transient(error):
            return None
        wait = rng.uniform(0, min(self.cap, self.base * 2 ** (attempt - 1)))
        asked = getattr(error, "retry_after", None)
        return wait if asked is None else max(wait, asked)


# A person waits: an unreachable server is said after about three seconds.
INTERACTIVE = RetryPolicy(attempts=4, base=0.5, cap=4.0)
BULK = RetryPolicy()


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ResponseError):
        return error.status in TRANSIENT
    return isinstance(error, TransportError | IntegrityError)

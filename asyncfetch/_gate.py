"""When the next request to a host may leave.

One gate stands before each service host, shared by all clients of the process. It has
three parts: *slots* bound how many exchanges are in flight and are held by the engine
for a whole exchange; *tokens* space the requests on the wire and are taken by the
transport for every hop, redirects and resends included; a *pause* stops everybody when
the server asks for it. Waiting interactive calls go before bulk items.

Learning a server's rate from its answers enters through :meth:`Gate.answered` and
:meth:`Gate.rejected`, which see every answer.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from aiolimiter import AsyncLimiter

from asyncfetch._model import Limits
from asyncfetch.errors import TransportError

# A 429 or 503 without Retry-After pauses the host for 1 s, doubled while the answer
# stays the same, up to a minute.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


@dataclass(order=True, slots=True)
class _Waiter:
    """A task that waits for a slot; the smallest one is next."""

    rank: tuple[bool, int]
    event: anyio.Event = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    granted: bool = field(compare=False, default=False)
    gone: bool = field(compare=False, default=False)

    def wake(self) -> None:
        if asyncio.get_running_loop() is self.loop:
            self.event.set()
        else:
            self.loop.call_soon_threadsafe(self.event.set)


class Gate:
    """Slots, tokens and pauses for one host.

    Parameters
    ----------
    host
        Shown in events and errors.
    limits
        Where to start; ``rate`` None is no ceiling, ``concurrency`` None is 4.
    clock
        Seconds that only go forward.
    """

    def __init__(
        self,
        host: str,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.host = host
        self.rate = limits.rate
        self.concurrency = limits.concurrency or 4
        self.paused_until = 0.0
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._guard = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._turn = itertools.count()
        self._in_flight = 0
        self._limiters: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[float, AsyncLimiter]
        ] = weakref.WeakKeyDictionary()
        self._backoff = FIRST_PAUSE
        self._last_rejection = -1.0
        self._rejections = 0
        self._pauses = 0.0

    def set_limits(self, limits: Limits) -> None:
        """Take what a user asks for last; what is None stays as it is."""
        if limits.rate is not None:
            self.rate = limits.rate
        if limits.concurrency is not None:
            self.concurrency = limits.concurrency

    @asynccontextmanager
    async def slot(
        self, *, interactive: bool = False, max_wait: float | None = None
    ) -> AsyncGenerator[None]:
        """Hold one of the host's slots.

        Raises
        ------
        TransportError
            No slot came free within *max_wait* seconds.
        """
        await self._enter(interactive, max_wait)
        try:
            yield
        finally:
            with self._guard:
                self._in_flight -= 1
                self._hand_out()

    async def _enter(self, interactive: bool, max_wait: float | None) -> None:
        with self._guard:
            if self._in_flight < self.concurrency and not self._waiting:
                self._in_flight += 1
                return
            waiter = _Waiter(
                (not interactive, next(self._turn)),
                anyio.Event(),
                asyncio.get_running_loop(),
            )
            heapq.heappush(self._waiting, waiter)
        try:
            if max_wait is None:
                await waiter.event.wait()
            else:
                with anyio.fail_after(max_wait):
                    await waiter.event.wait()
        except BaseException as error:
            with self._guard:
                waiter.gone = True
                if waiter.granted:  # the slot came together with the cancellation
                    self._in_flight -= 1
                self._hand_out()
            if isinstance(error, TimeoutError):
                raise TransportError(
                    f"no turn at {self.host} within {max_wait:g} s: "
                    f"{self._in_flight} requests are in flight; raise max_wait"
                ) from None
            raise

    def _hand_out(self) -> None:
        while self._waiting and (
            self._waiting[0].gone or self._in_flight < self.concurrency
        ):
            waiter = heapq.heappop(self._waiting)
            if waiter.gone:
                continue
            try:
                waiter.wake()
            except RuntimeError:  # its event loop has been closed
                continue
            waiter.granted = True
            self._in_flight += 1

    async def token(self, max_wait: float | None = None) -> None:
        """Wait until one more request may leave.

        Raises
        ------
        TransportError
            The host is paused for longer than *max_wait* seconds.
        """
        while True:
            while (wait := self.paused_until - self._clock()) > 0:
                if max_wait is not None and wait > max_wait:
                    raise TransportError(
                        f"{self.host} is paused for another {wait:.1f} s, and max_wait "
                        f"is {max_wait:g} s: try later",
                        is_final=True,
                    )
                await anyio.sleep(wait)
            limiter = self._limiter()
            if limiter is None:
                return
            await limiter.acquire()
            if self.paused_until <= self._clock():
                return

    def _limiter(self) -> AsyncLimiter | None:
        if self.rate is None:
            return None
        loop = asyncio.get_running_loop()
        known = self._limiters.get(loop)
        if known is None or known[0] != self.rate:
            # One token per interval, not a full bucket: AsyncLimiter(10, 1) lets 19
            # requests through in its first second, AsyncLimiter(1, 0.1) lets 10. Timers
            # are good to about a millisecond, so fast rates get two of these at once.
            burst = max(1.0, self.rate * 0.002)
            known = self.rate, AsyncLimiter(burst, burst / self.rate)
            self._limiters[loop] = known
        return known[1]

    def answered(self) -> None:
        """Note an answer that was not a rejection."""
        self._backoff = FIRST_PAUSE

    def rejected(self, sent_at: float, retry_after: float | None) -> float:
        """Note a 429 or 503 to a request sent at *sent_at*; pause the host.

        Returns
        -------
        float
            Seconds that the host is paused for from now.
        """
        now = self._clock()
        self._rejections += 1
        if sent_at > self._last_rejection:  # not one of a volley that left together
            wait = self._backoff * self._rng.uniform(0.75, 1.25)
            self._backoff = min(LONGEST_PAUSE, 2 * self._backoff)
            self._last_rejection = now
        else:
            wait = 0.0
        wait = wait if retry_after is None else retry_after
        until = max(self.paused_until, now + wait)
        self._pauses += max(0.0, until - max(self.paused_until, now))
        self.paused_until = until
        return max(0.0, until - now)

    def now(self) -> float:
        """Return the gate's time, for :meth:`rejected`."""
        return self._clock()

    def statistics(self) -> dict[str, float]:
        """Return what the gate knows: slots, rate (0 is no ceiling), pauses in s."""
        return {
            "concurrency": self.concurrency,
            "in_flight": self._in_flight,
            "waiting": sum(not waiter.gone for waiter in self._waiting),
            "rate": self.rate or 0.0,
            "rejected": self._rejections,
            "paused_seconds": round(self._pauses, 3),
        }


_gates: dict[str, Gate] = {}
_gates_guard = threading.Lock()


def gate_for(host: str, default: Limits, asked: Limits) -> Gate:
    """Return the process's one gate for *host*, made at the first call.

    *default* counts only for the call that makes the gate; *asked* is what a user
    demands, and holds from then on for all clients of the host.
    """
    with _gates_guard:
        gate = _gates.setdefault(host, Gate(host, default))
        gate.set_limits(asked)
        return gate

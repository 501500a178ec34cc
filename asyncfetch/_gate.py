"""When the next request to a host may leave.

One gate stands before each service host, shared by all clients of the process. A *turn*
is a slot among the requests in flight, held by the engine for a whole exchange, that
comes with the token for its first hop; redirects and resends take a token each. Turns
are handed out in one queue, interactive calls first. What they wait for is decided by
pure objects that know no clock: :mod:`asyncfetch._pace` (rate, requests in flight,
pauses) and :mod:`asyncfetch._health` (whether the host is up).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio
from aiolimiter import AsyncLimiter

from asyncfetch._health import Breaker, Budget, Failure
from asyncfetch._model import Limits
from asyncfetch._pace import Learned, Pace
from asyncfetch.errors import TransportError

# A person waits so long for a host that is down to be asked again, and not longer.
IMPATIENT_WAIT = 3.0
DEFAULT_CONCURRENCY = 4


def _whole() -> float:
    return 1.0


@dataclass(order=True, slots=True)
class _Waiter:
    """A task that waits for a turn; the smallest one is next."""

    rank: tuple[bool, int]
    impatient: bool = field(compare=False)
    future: asyncio.Future[bool | None] = field(compare=False)  # None: too late
    loop: asyncio.AbstractEventLoop = field(compare=False)
    crowd: int = field(compare=False, default=0)  # in flight with it; 0: no turn yet
    granted_at: float = field(compare=False, default=0.0)
    gone: bool = field(compare=False, default=False)

    @property
    def interactive(self) -> bool:
        return not self.rank[0]

    def wake(self, granted: bool) -> None:
        if asyncio.get_running_loop() is self.loop:
            self._set(granted)
        else:
            self.loop.call_soon_threadsafe(self._set, granted)

    def expire(self) -> None:
        self._set(None)

    def _set(self, granted: bool | None) -> None:
        if not self.future.done():
            self.future.set_result(granted)


class Turn:
    """One exchange's stay among the requests in flight."""

    __slots__ = ("_deadline", "_gate", "_has_token", "_max_wait", "crowd", "question")

    def __init__(
        self,
        gate: Gate,
        question: int,
        crowd: int,
        max_wait: float | None,
        deadline: float,
    ) -> None:
        self.question = question
        self.crowd = crowd
        """Requests in flight when this one left, itself included."""
        self._gate = gate
        self._has_token = True
        self._max_wait = max_wait
        self._deadline = deadline

    async def hop(self) -> float:
        """Wait until one more request of the exchange may leave; return when it does.

        Raises
        ------
        TransportError
            The host is paused for longer than the caller waits.
        """
        if self._has_token:  # it came with the slot
            self._has_token = False
        else:
            await self._gate.token(self._max_wait, self._deadline)
        limiter = self._gate.limiter()
        if limiter is not None:
            await limiter.acquire()
        return self._gate.now()


class Gate:
    """Slots, tokens and pauses for one host.

    Parameters
    ----------
    host
        Shown in events and errors.
    limits
        The service's own; ``rate`` None is no ceiling, ``concurrency`` None is 4.
    learned
        Where to start.
    share
        The part of the host's rate and slots that this process may use; asked often.
    second
        Length of the gate's second; shorter where tests and benchmarks press time.
    clock
        The gate's seconds, only forward; the default follows *second*.
    """

    def __init__(
        self,
        host: str,
        limits: Limits,
        *,
        learned: Learned | None = None,
        share: Callable[[], float] = _whole,
        second: float = 1.0,
        clock: Callable[[], float] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.host = host
        self.share = share
        self.second = second
        self.now = clock or (
            time.monotonic if second == 1 else lambda: time.monotonic() / second
        )
        rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._rng = rng
        self._demanded = False
        self._pace = Pace(
            concurrency=limits.concurrency or DEFAULT_CONCURRENCY,
            rate=limits.rate,
            learned=learned,
            rng=rng,
        )
        self._breaker = Breaker(rng)
        self._budget = Budget()
        self._guard = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._questions = itertools.count()
        self._in_flight = 0
        self._alarm: (
            tuple[float, asyncio.AbstractEventLoop, asyncio.TimerHandle] | None
        ) = None
        self._limiters: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[float, AsyncLimiter]
        ] = weakref.WeakKeyDictionary()
        self._lag = 0.0  # seconds from a turn until its task runs
        self._answers = 0
        self._rejections = 0
        self._pauses: dict[str, float] = {}
        self._cause = ""

    # Limits, and what is known

    @property
    def rate(self) -> float | None:
        """Requests per second that are never exceeded; None is no ceiling."""
        return None if self._pace.ceiling == math.inf else self._pace.ceiling

    @property
    def concurrency(self) -> int:
        """Requests in flight that are never exceeded."""
        return self._pace.flight.most

    @property
    def paused_until(self) -> float:
        """When the pause ends, in the gate's time."""
        return self._pace.paused_until

    def set_limits(self, limits: Limits) -> None:
        """Take what a user asks for last; what is None stays as it is."""
        with self._guard:
            if limits.rate is not None:
                self._pace.ceiling = limits.rate
            if limits.concurrency is not None:
                self._demanded = True
                self._pace.flight.demand(limits.concurrency)

    def start_from(self, learned: Learned) -> None:
        """Take what was remembered of the host, unless it has said something itself."""
        with self._guard:
            if not self._answers and not self._rejections:
                self._pace = Pace(
                    concurrency=self.concurrency,
                    rate=self.rate,
                    eager=self._demanded,
                    learned=learned,
                    rng=self._rng,
                )

    def hint(self, remaining: float | None, reset: float | None) -> None:
        """Take what a server says: *remaining* requests in the next *reset* seconds."""
        if remaining is None or reset is None or reset <= 0:
            return
        if remaining <= 0:
            # Not all clients of the host come back in the same moment.
            self.pause(reset + self._rng.uniform(0, min(1, 0.1 * reset)), "RateLimit")
        with self._guard:
            self._pace.hint(self.now(), remaining, reset)

    def learned(self) -> Learned | None:
        """Return what to remember of the host; None before it answered anything."""
        flight = self._pace.flight
        if not self._answers:
            return None
        return Learned(
            rate=self._pace.granted,
            delay=None if flight.delay is None else math.exp(flight.delay),
            concurrency=flight.now,
            at=datetime.now(UTC),
        )

    def statistics(self) -> dict[str, Any]:
        """Return what the gate knows, in plain JSON.

        ``rate`` and ``learned_rate`` are requests per second (0 is no ceiling),
        ``pauses`` are seconds by cause, ``paused_for`` is what is left of the last.
        """
        with self._guard:
            now = self.now()
            rate = self._pace.effective(now)
            left = max(0.0, self._pace.paused_until - now)
            return {
                "concurrency": self.concurrency,
                "slots": self._pace.slots,
                "in_flight": self._in_flight,
                "waiting": sum(not waiter.gone for waiter in self._waiting),
                "rate": 0.0 if rate == math.inf else round(rate, 4),
                "learned_rate": round(self._pace.granted or 0.0, 4),
                "rejected": self._rejections,
                "paused_seconds": round(sum(self._pauses.values()), 3),
                "pauses": {
                    cause: round(spent, 3) for cause, spent in self._pauses.items()
                },
                "paused_for": round(left, 3),
                "pause_cause": self._cause if left else "",
                "retries_left": int(self._budget.left(now)),
                "breaker": "open" if self._breaker.is_open else "closed",
            }

    # Waiting

    def question(self) -> int:
        """Return a place in the queue; whoever keeps it goes before later ones."""
        return next(self._questions)

    @asynccontextmanager
    async def slot(
        self,
        *,
        interactive: bool = False,
        impatient: bool = False,
        max_wait: float | None = None,
        deadline: float = math.inf,
        question: int | None = None,
    ) -> AsyncGenerator[Turn]:
        """Hold one of the host's slots, with the token for a first hop.

        An *interactive* call goes before others; an *impatient* one does not wait for
        a host that is down. Both waits are in the gate's seconds from now.

        Raises
        ------
        TransportError
            No turn came within *max_wait* or *deadline*, or will not; or the host is
            down and the call impatient.
        """
        if question is None:
            question = self.question()
        crowd = await self._enter(
            (not interactive, question), impatient, max_wait, deadline
        )
        try:
            yield Turn(self, question, crowd, max_wait, deadline)
        finally:
            with self._guard:
                self._leave()

    def _leave(self) -> None:
        self._in_flight -= 1
        self._breaker.ended()
        self._hand_out()

    async def _enter(
        self,
        rank: tuple[bool, int],
        impatient: bool,
        max_wait: float | None,
        deadline: float,
    ) -> int:
        within = deadline if max_wait is None else min(max_wait, deadline)
        with self._guard:
            now = self.now()
            if not self._waiting and self._wait(now, not rank[0]) <= 0:
                return self._take(now)
            if impatient and self._breaker.next_look(now) > IMPATIENT_WAIT:
                raise self._down(now)
            if self._pace.paused_until - now > within:
                raise self._late(within, within == deadline)
            loop = asyncio.get_running_loop()
            waiter = _Waiter(rank, impatient, loop.create_future(), loop)
            heapq.heappush(self._waiting, waiter)
            self._hand_out()
        # A timer takes 3 µs where a cancel scope takes 20, for each request.
        timer = None
        if within < math.inf:
            timer = loop.call_later(within * self.second, waiter.expire)
        try:
            granted = await waiter.future
            if granted is None:
                raise self._late(within, within == deadline)
        except BaseException:
            with self._guard:
                waiter.gone = True
                if waiter.crowd:  # the turn came together with the cancellation
                    self._leave()
                else:
                    self._hand_out()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        now = self.now()
        if not granted:
            raise self._down(now)
        self._lag += 0.1 * (now - waiter.granted_at - self._lag)
        return waiter.crowd

    def _late(self, within: float, is_deadline: bool) -> TransportError:
        now = self.now()
        left = self._pace.paused_until - now
        if self._breaker.is_open and is_deadline:
            return TransportError(  # not this item's fault, and others fare no better
                f"{self.host} has not answered for {now - self._breaker.opened_at:.0f} "
                f"s, last: {self._breaker.last}; run again when it is back",
                is_fatal=True,
            )
        if left > 0:
            why = f"it is paused for another {left:.1f} s ({self._cause})"
        else:
            why = f"{self._in_flight} requests are in flight"
        name = "item_timeout" if is_deadline else "max_wait"
        return TransportError(
            f"no turn at {self.host} within {within:g} s: {why}; raise {name} or try "
            "later",
            is_final=True,
        )

    def _down(self, now: float) -> TransportError:
        return TransportError(
            f"{self.host} has not answered for {now - self._breaker.opened_at:.0f} s, "
            f"last: {self._breaker.last}; it is asked again in "
            f"{self._breaker.next_look(now):.0f} s: try later",
            is_final=True,
        )

    def _wait(self, now: float, interactive: bool) -> float:
        self._pace.share = self.share()
        wait = self._pace.wait(now, self._in_flight, urgent=interactive)
        if self._breaker.is_open:
            wait = max(wait, self._breaker.wait(now))
        return wait

    def _take(self, now: float) -> int:
        self._in_flight += 1
        self._pace.sent(now)
        self._breaker.sent()
        self._budget.sent(now)
        return self._in_flight

    def _hand_out(self) -> None:
        now = self.now()
        while self._waiting:
            waiter = self._waiting[0]
            if waiter.gone or waiter.loop.is_closed():
                heapq.heappop(self._waiting)
                continue
            wait = self._wait(now, waiter.interactive)
            if wait > 0:
                if wait < math.inf:
                    self._set_alarm(now + wait, wait, waiter.loop)
                return
            heapq.heappop(self._waiting)
            waiter.crowd, waiter.granted_at = self._take(now), now
            waiter.wake(granted=True)

    def _set_alarm(
        self, at: float, wait: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        if asyncio.get_running_loop() is not loop:
            loop.call_soon_threadsafe(self._ring)  # which sets it there
            return
        if self._alarm is not None and self._alarm[1] is loop:
            if self._alarm[0] <= at:
                return  # it will look again in time
            self._alarm[2].cancel()
        self._alarm = (at, loop, loop.call_later(wait * self.second, self._ring))

    def _ring(self) -> None:
        with self._guard:
            self._alarm = None
            self._hand_out()

    async def token(
        self, max_wait: float | None = None, deadline: float = math.inf
    ) -> None:
        """Wait until one more hop may leave, beside those that came with a slot.

        Raises
        ------
        TransportError
            The wait is longer than *max_wait* or *deadline* seconds.
        """
        within = deadline if max_wait is None else min(max_wait, deadline)
        while True:
            with self._guard:
                now = self.now()
                wait = self._pace.token_wait(now)
                if wait <= 0:
                    self._pace.sent(now)
                    return
            if wait > within:
                raise self._late(within, within == deadline)
            within -= wait
            await self.sleep(wait)

    async def sleep(self, seconds: float) -> None:
        """Sleep so many of the gate's seconds."""
        await anyio.sleep(seconds * self.second)

    def limiter(self) -> AsyncLimiter | None:
        """Return the hard ceiling for this event loop, which learning cannot lift."""
        rate = self._pace.ceiling
        if rate == math.inf:
            return None
        loop = asyncio.get_running_loop()
        known = self._limiters.get(loop)
        if known is None or known[0] != rate:
            # One token per interval, not a full bucket: AsyncLimiter(10, 1) lets 19
            # requests through in its first second, AsyncLimiter(1, 0.1) lets 10. Timers
            # are good to about a millisecond, so fast rates get two of these at once.
            burst = max(1.0, rate * 0.002)
            known = rate, AsyncLimiter(burst, self.second * burst / rate)
            self._limiters[loop] = known
        return known[1]

    # What came back

    def answered(self, turn: Turn, sent_at: float, took: float) -> None:
        """Note an answer that was no rejection; *took* is the time to its head."""
        # A busy event loop keeps an answer waiting, about once as it writes and once as
        # it reads; that is no queue at the server.
        took = max(took - 2 * self._lag, 0.2 * took)
        with self._guard:
            now = self.now()
            self._answers += 1
            self._breaker.answered(now)
            self._pace.accepted(now, sent_at, took, turn.crowd)

    def rejected(
        self, turn: Turn, sent_at: float, status: int, retry_after: float | None
    ) -> tuple[float, str, bool]:
        """Note a 429 or 503.

        Returns
        -------
        tuple of float, str and bool
            Seconds of pause from now, their cause, and whether the host is full (a lone
            503 among answers does not say so).
        """
        with self._guard:
            now = self.now()
            self._rejections += 1
            if status == 429:
                self._breaker.answered(now)
            cause = str(status) + (" with Retry-After" if retry_after else "")
            before = max(now, self._pace.paused_until)
            wait = self._pace.rejected(
                now, sent_at, retry_after, turn.crowd, overload=status == 503
            )
            self._note_pause(before, cause)
            full = status == 429 or retry_after is not None or self._pace.in_episode
            return wait, cause, full

    def failed(self, turn: Turn, kind: Failure, error: str) -> bool:
        """Note a failure of the host; return whether it excuses the question."""
        with self._guard:
            now = self.now()
            self._breaker.failed(now, turn.question, kind, error)
            if self._breaker.next_look(now) > IMPATIENT_WAIT:
                for waiter in self._waiting:
                    if waiter.impatient and not waiter.gone:
                        waiter.gone = True
                        waiter.wake(granted=False)
            return self._breaker.excuses(now, kind)

    def pause(self, seconds: float, cause: str) -> None:
        """Let nobody leave for so long."""
        with self._guard:
            now = self.now()
            before = max(now, self._pace.paused_until)
            self._pace.paused_until = max(before, now + seconds)
            self._note_pause(before, cause)

    def pause_left(self) -> float:
        """Return for how many seconds the host is still paused."""
        return max(0.0, self._pace.paused_until - self.now())

    def _note_pause(self, before: float, cause: str) -> None:
        longer = self._pace.paused_until - before
        if longer > 0:
            self._pauses[cause] = self._pauses.get(cause, 0.0) + longer
            self._cause = cause

    def retry(self) -> float:
        """Take one retry from the host's budget; return seconds until it may leave."""
        with self._guard:
            return self._budget.retry(self.now())


_gates: dict[str, Gate] = {}
_gates_guard = threading.Lock()


def gate_for(host: str, default: Limits, asked: Limits) -> Gate:
    """Return the process's one gate for *host*, made at the first call.

    *default* counts only for the call that makes the gate; *asked* is what a user
    demands, and holds from then on for all clients of the host.
    """
    with _gates_guard:
        gate = _gates.get(host)
        if gate is None:
            gate = _gates[host] = Gate(host, default)
        gate.set_limits(asked)
        return gate

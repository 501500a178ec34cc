"""How fast a host may be asked, learned from its answers: pure, times are arguments.

*Rate.* There is no ceiling until the host says 429 or 503 (or the service, or the user,
names one). Such an answer starts an *episode*: everybody pauses, and then one request
at a time looks whether it is over. The first episode ends with a guess: what was
accepted so far, over the time until something was accepted again. From then on an
episode is a measurement. A token bucket is empty at both ends of the cycle between two
of them, so its rate is the average in between; a window is not, but the rate before the
last step upward passed for a whole window. The rate stays a little below the larger of
the two, and looks for more only after as many answers as pay for a rejection.

*Lone 503.* Some hosts say 503 for their rate, others now and then for no reason. A few
are hiccups: only that request waits. More of them are episodes, and the rate falls;
a limit is silent well below what it let pass before, so when they come there too,
again and again, they are not about the rate, which returns to several times of that.

*Concurrency.* Little's law at the server: when answers take longer than they do with
little in flight, requests queue there, and somebody else's page waits behind them. At
twice that delay the number in flight shrinks; below one and a half it grows. The delay
without a queue is measured in *calm probes*: some answers at a third of the requests in
flight, taken only when delays have grown.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import datetime

FIRST_PAUSE = 1.0  # seconds, when a host that is not known says 429 without Retry-After
# Pauses double up to here and grow by half from there: a window of a minute or an hour
# is found without waiting much longer than was waited already.
FAST_PAUSE = 16.0
LONGEST_PAUSE = 300.0
# In flight before anything is known, where nobody named a number and the service has no
# small one of its own: a host that grants five requests at once, or sixty a minute,
# rejects one or two and not sixteen. When so many answers speak for the host, it grows.
START = 2
SMALL = 4  # a service that allows so few is asked so from the start
SPOKEN = 64
# Logarithm of 0.3 s. Where answers take longer, many in flight are few a second, and a
# rejection comes back before many more have left: it grows from the start.
SLOW = math.log(0.3)
USED = 0.96  # share of the learned rate that is used; of one learned from little:
USED_EARLY = 0.94
STEP = 18  # accepted answers between two steps upward, and more where bursts are large
LARGEST_STEP = 100
HOLD = 40  # accepted answers that pay for one rejection before steps begin
USED_REMEMBERED = 0.98  # of one that has proved itself
HOLD_REMEMBERED = 160  # accepted answers before steps upward from that one begin
LOWEST = 1 / 600  # requests per second, below which nothing would be learned
WINDOW = 8.0  # seconds: who rejects for longer after a burst counts in windows
TOLERANCE = 6.0  # lone 503 that are hiccups and no episode; an answer pays for
PAID = 0.05  # so much of one.
# A limit leaves a rate in peace that it granted. When an episode begins while less is
# sent than this share of what passed before, and the last one had no more rejections
# than so many, it is a doubt that 503 are about the rate. After more than so many
# doubts in a row, more is tried.
LONE = 2
SHARE = 0.75
DOUBTS = 2
MORE = 4
# From fewer answers than these little is believed: the rate shrinks to this at most.
SOON = 40
LESS = 0.7
# Logarithm of a delay over the calm one: above the first requests queue, below the
# second they do not. Who demands a number gets the second pair: a busy client delays
# its own answers, and that is no reason to give him less.
QUEUES = (math.log(1.6), math.log(1.3))
QUEUES_DEMANDED = (math.log(3.0), math.log(2.0))
BUSY = 2.0  # seconds that delays must last before a demanded number is touched
CALM_ANSWERS = 16
CALM_GAP = 30.0  # seconds between calm probes, doubled up to
CALM_GAP_MOST = 300.0
# A calm probe with one request in flight stands still behind one long answer: one more
# may leave when none came for so many times the delay.
CALM_PATIENCE = 4
PROVEN = 200  # accepted answers before one more in flight than was rejected is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What was learned of a host, for the next process."""

    rate: float | None
    """Requests per second that it grants; None when it never rejected one."""
    delay: float | None
    """Seconds to an answer when little is in flight."""
    concurrency: float
    """Requests in flight that did not queue."""
    at: datetime
    """When; UTC."""


class Flight:
    """How many requests may be in flight.

    Parameters
    ----------
    most
        Never more than this.
    eager
        All of them from the start: somebody asked for that number.
    """

    def __init__(self, most: int, *, eager: bool, learned: Learned | None) -> None:
        self.most = most
        self.now = float(most if eager or most <= SMALL else START)
        self.starting = not eager
        self._is_demanded = eager
        self.delay: float | None = None  # logarithm of seconds, as all delays here
        if learned is not None:
            self.now = max(1.0, min(most, learned.concurrency))
            self.starting = False
            if learned.delay is not None:
                self.delay = math.log(learned.delay)
        self._mean = self.delay
        self._slack = 0.0
        self._first: list[float] = []
        self._lowest = math.inf
        self._seen = 0
        self._calm: list[float] | None = None
        self._calm_most = 1
        self._calm_from = -math.inf
        self._calm_last = -math.inf  # its last answer
        self._calm_gap = CALM_GAP
        self._shrunk_at = -math.inf
        self._from: tuple[float, float] | None = None  # flight and delay before it
        self._tried = False
        self._calm_until = -math.inf  # the last answer that had not queued
        self._cap = math.inf  # so many were accepted, and one more was rejected
        self._patience = 1
        self._held: dict[int, int] = {}

    def demand(self, most: int) -> None:
        """Take another bound, which somebody asked for, and use it if all was used."""
        if self.starting or (most > self.most and self.now >= self.most):
            self.now = float(most)
        self.most = most
        self.now = min(self.now, most)
        self.starting = False
        self._is_demanded = True

    @property
    def slots(self) -> int:
        """Requests that may be in flight now."""
        return int(self.now) if self._calm is None else self._calm_most

    def widen_probe(self, now: float) -> float:
        """Let one more leave in a calm probe that stands still; seconds to the next."""
        if self._calm is None or self._mean is None or self._calm_most >= int(self.now):
            return math.inf
        patience = CALM_PATIENCE * math.exp(self._mean)
        if now >= self._calm_last + patience:
            self._calm_most += 1
            self._calm_last = now
        return self._calm_last + patience - now

    def end_probes(self) -> None:
        """Stop to look for more: something was rejected."""
        self._calm = None
        self.starting = False

    def rejected(self, crowd: int) -> None:
        """Take *crowd* for too many, unless as many were accepted before."""
        if self._heavy(crowd) < 3:
            self._cap = min(self._cap, max(1, crowd - 1))
        self.now = float(max(1, min(self.now, self._cap)))

    def was_one_too_many(self, crowd: int) -> bool:
        """Whether a rejection is about the number in flight; then take that back."""
        if crowd <= self._cap or self._heavy(crowd) >= 10:
            return False
        self._cap = max(1, crowd - 1)
        self.now = float(self._cap)
        self._patience = min(4, 2 * self._patience)
        return True

    def forget(self) -> None:
        """Let what was accepted long ago count less."""
        self._held = {crowd: count // 2 for crowd, count in self._held.items()}

    def _heavy(self, crowd: int) -> int:
        return sum(count for held, count in self._held.items() if held >= crowd)

    def accepted(self, now: float, sent_at: float, took: float, crowd: int) -> None:
        """Note that an answer took *took* seconds with *crowd* in flight."""
        self._seen += 1
        self._held[crowd] = self._held.get(crowd, 0) + 1
        # Means of logarithms: one slow answer among many is not a queue.
        took = math.log(max(took, 1e-6))
        self._mean = took if self._mean is None else 0.92 * self._mean + 0.08 * took
        if self._calm is not None:
            self._calm_last = now
            if sent_at > self._calm_from and crowd <= self._calm_most:
                self._calm.append(took)
                if len(self._calm) == CALM_ANSWERS:
                    self._settle(self._calm)
                    self._calm = None
                    # On a slow host a calm probe takes long: at most a twentieth.
                    self._calm_gap = max(self._calm_gap, 20 * (now - self._calm_from))
            return
        if self.delay is None:
            if crowd <= SMALL:
                self._first.append(took)
                if len(self._first) == CALM_ANSWERS:
                    self._settle(self._first)
            # Who began with many in flight has no calm answers: the shortest stands for
            # them, until delays far above it are a reason for a calm probe.
            self._calm_until = now
            self._lowest = min(self._lowest, took)
            if self._seen > CALM_ANSWERS + self.most:
                self.delay = self._lowest
            self._grow(crowd)
            return
        self._steer(now, self._mean, self._mean - self.delay - self._slack, crowd)

    def _steer(self, now: float, mean: float, above: float, crowd: int) -> None:
        crowded, free = QUEUES_DEMANDED if self._is_demanded else QUEUES
        if above <= crowded:
            self._calm_until = now
        if above < free:
            self._from = None
            self._grow(crowd)
        elif self._is_demanded and now - self._calm_until < BUSY:
            pass  # a busy moment of this machine, maybe
        elif above > crowded and self.now >= 3:
            if now - self._calm_from > self._calm_gap:
                self._calm = []
                self._calm_from = self._calm_last = now
                self._calm_gap = min(CALM_GAP_MOST, 2 * self._calm_gap)
                self._calm_most = max(1, int(min(self.now, crowd, 12) / 3))
            elif now - self._shrunk_at > 2 * math.exp(mean):
                self._shrunk_at = now
                self._shrink(mean)

    def _shrink(self, mean: float) -> None:
        self.starting = False
        if self._is_demanded and (self._from is None or not self._tried):
            # What it is like before: when delays have stopped to rise.
            self._tried = self._from is not None and mean < self._from[1] + 0.05
            self._from = self.now, mean
            return
        self.now = max(2.0, 0.95 * self.now)
        if self._from is None or self.now > 0.6 * self._from[0]:
            return
        # Where requests queue, delays shrink with their number. If they did not, then
        # everything takes longer now, here or there, and fewer requests do not help.
        before, then = self._from
        self._from, self._tried = None, False
        if mean - then > 0.5 * math.log(self.now / before):
            self.now = before
            self.delay = mean

    def _settle(self, found: list[float]) -> None:
        # Where delays scatter, a few of them say less: twice the standard error.
        self.delay = sum(found) / len(found)
        squares = sum((one - self.delay) ** 2 for one in found)
        self._slack = 2 * math.sqrt(squares) / len(found)

    def _grow(self, crowd: int) -> None:
        if 2 * crowd < self.now or self.now >= self.most:
            return
        if self.starting:
            is_slow = self._mean is not None and self._mean > SLOW
            self.now += 1 / 4 if is_slow or self._seen > SPOKEN else 0
        elif self.now + 1 <= self._cap:
            self.now += 1 / self.now
        else:
            self.now += max(1.0, 0.1 * self._cap) / (PROVEN * self._patience)
            if self.now >= self._cap + max(2.0, 0.2 * self._cap):
                self._cap = int(self.now) - 1
                self._patience = 1
        self.now = min(self.now, self.most)


class Pace:
    """When the next request may leave.

    Parameters
    ----------
    concurrency
        Requests in flight at most.
    rate
        Requests per second at most; None is no ceiling.
    eager
        Use all of *concurrency* from the start.
    learned
        Where to start.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        rate: float | None = None,
        eager: bool = False,
        learned: Learned | None = None,
        rng: random.Random,
    ) -> None:
        self.flight = Flight(concurrency, eager=eager, learned=learned)
        self.ceiling = math.inf if rate is None else rate
        self.share = 1.0
        self.granted: float | None = None
        self.rate = math.inf
        self.paused_until = -math.inf
        self.episodes = 0
        self._rng = rng
        # tokens
        self._tokens = 1.0
        self._filled_at = 0.0
        self._waited = False
        self._hinted = math.inf
        self._hinted_until = -math.inf
        # the episode
        self.in_episode = False
        self._episode_at = -math.inf  # its last rejection that was news
        self._episode_from = -math.inf
        self._failed_at = -math.inf
        self._back = FIRST_PAUSE
        self._burst = 0
        self._span = 0.0  # seconds that a window was last seen to be closed
        # hiccups
        self._streak = 0
        self._hiccups = 0.0
        self._tolerance = TOLERANCE
        self._paid = PAID
        # the cycle since the last one
        self._recovered_at = -math.inf  # at first: when the first request left
        self._cycle = 0
        self._idle = 0
        self._unused = 0.0  # seconds for which nobody wanted to send
        self._bulk = self._first = STEP
        self._looks = 0
        self._reach = 0.0
        self._marked_at = 0.0
        self._marked_rate = math.inf
        self._marked = 0
        # steps upward
        self._before = 0.0
        self._since = 0
        self._hold = 0
        self._step = 0.01
        self._pressed = False
        self._climbed = False
        self._sure = 0
        self._doubts = 0  # lone 503 in a row that a limit would not explain
        self._doubted = 0  # answers between them
        self._enough = DOUBTS
        self._passed = 0.0  # the most requests per second from one episode to the next
        if learned is not None and learned.rate is not None:
            self.granted = learned.rate
            self.rate = USED_REMEMBERED * learned.rate
            self._hold, self._sure = HOLD_REMEMBERED, 1000
            self._marked_rate = self.rate

    # What may leave

    def effective(self, now: float) -> float:
        """Requests per second that may leave now."""
        rate = min(self.rate, self.ceiling) * self.share
        return rate if now >= self._hinted_until else min(rate, self._hinted)

    def hint(self, now: float, remaining: float, reset: float) -> None:
        """Spread what a server says is left over the time that it says."""
        # As if that were a second at least: no window is shorter, and what is left at
        # the end of one says nothing about the next.
        self._hinted = 0.9 * max(1.0, remaining) / max(1.0, reset)
        # Beyond the reset, so that the next answer can say more before a burst leaves.
        self._hinted_until = now + 2 * reset + 1

    @property
    def slots(self) -> int:
        """Requests that may be in flight now."""
        if self.in_episode:
            return 1
        return max(1, min(self.flight.slots, int(self.flight.most * self.share)))

    def wait(self, now: float, in_flight: int, *, urgent: bool = False) -> float:
        """Seconds until a request may leave; infinite: not before an answer comes.

        An *urgent* one does not wait for the number in flight to grow at the start.
        """
        slots = self.slots
        if urgent and self.flight.starting and not self.in_episode:
            slots = max(slots, int(self.flight.most * self.share))
        if in_flight >= slots:
            left = self.flight.widen_probe(now)
            if in_flight >= self.slots:
                return left
        return self.token_wait(now)

    def token_wait(self, now: float) -> float:
        """Seconds until a request may leave, however many are in flight."""
        rate = self.effective(now)
        wait = 0.0
        if rate != math.inf:
            self._fill(now, rate)
            if self._tokens < 1 - 1e-6:  # what floats lose
                wait = (1 - self._tokens) / rate
                self._waited = self._pressed = True
        return max(wait, self.paused_until - now, 0.0)

    def _fill(self, now: float, rate: float) -> None:
        # No start-up burst. Timers are good to about a millisecond, so a fast rate may
        # catch up with what a late one cost.
        most = max(1.0, 0.02 * rate)
        tokens = self._tokens + max(0.0, now - self._filled_at) * rate
        self._unused += max(0.0, tokens - most) / rate
        self._tokens = min(most, tokens)
        self._filled_at = now

    def sent(self, now: float) -> None:
        """Take a token: a request leaves."""
        self._begun(now)
        rate = self.effective(now)
        if rate != math.inf:
            self._fill(now, rate)
            self._tokens -= 1
            self._idle += not self._waited
            self._waited = False

    def _begun(self, now: float) -> None:
        if self._recovered_at == -math.inf:
            self._recovered_at = self._marked_at = now

    # What came back

    def accepted(self, now: float, sent_at: float, took: float, crowd: int) -> None:
        """Note an answer that was no rejection.

        *took* is the time to its head; *crowd* how many were in flight when it left,
        itself included.
        """
        self._marked += 1
        self._cycle += 1
        self._since += 1
        self._streak = 0
        if self._hiccups:
            self._hiccups = max(0.0, self._hiccups - self._paid)
        if self.in_episode:
            if sent_at <= self._episode_at:
                return  # it left before the rejection
            self._recover(now, sent_at)
        if self._pressed and self.rate != math.inf:
            self._climb(now)
        self.flight.accepted(now, sent_at, took, crowd)

    def rejected(
        self,
        now: float,
        sent_at: float,
        retry_after: float | None,
        crowd: int,
        *,
        overload: bool = False,
    ) -> float:
        """Note a 429, or with *overload* a 503; return seconds of pause from now."""
        self._streak += 1
        wait = retry_after
        if self.in_episode and sent_at <= self._episode_at:
            self._burst += 1  # one of a volley that left together
            self.flight.rejected(crowd)
        elif self.in_episode:
            self._burst += 1
            self._looks += 1
            self._failed_at = self._episode_at = now
            growth = 2 if self._back < FAST_PAUSE else 1.5
            # One that closes a window for long has most likely done so again.
            self._back = min(LONGEST_PAUSE, max(growth * self._back, self._span / 6))
            wait = self._pause() if wait is None else wait
        elif self.flight.was_one_too_many(crowd):
            pass
        elif overload and self._streak < 3 and self._hiccups < self._tolerance:
            # A lone 503 among answers is a hiccup: it says nothing of the rate.
            self._hiccups += 1
        else:
            if overload and self._hiccups:
                self._tolerance, self._paid = 0.0, PAID
            self._begin(now, crowd, overload)
            wait = self._pause() if wait is None else wait
        if wait is not None:
            self.paused_until = max(self.paused_until, now + wait)
        return max(0.0, self.paused_until - now)

    def _pause(self) -> float:
        return self._back * self._rng.uniform(0.75, 1.25)

    def _begin(self, now: float, crowd: int, overload: bool) -> None:
        self._begun(now)
        self.episodes += 1
        if self.episodes == 1 and self.granted is None:
            # It came at once: a burst or a window. Steps wait for as much again.
            self._bulk = self._first = min(LARGEST_STEP, max(3, self._cycle))
        else:
            self._learn(now, overload)
        self._back = FIRST_PAUSE
        if self.granted is not None:
            self._back = min(FIRST_PAUSE, max(2 / self.rate, 0.05))
        self.flight.end_probes()
        if not self._doubts:  # what may not be about the rate is not about them either
            self.flight.rejected(crowd)
        self.flight.forget()
        self.in_episode = True
        self._burst, self._looks = 1, 0
        self._episode_at = self._episode_from = self._failed_at = now
        self._sure, self._cycle = self._cycle, 0
        self._mark(now)

    def _learn(self, now: float, overload: bool) -> None:
        """Take what was granted as the host's limit."""
        average = max(self._marked, 0.5) / max(now - self._marked_at, 1e-3)
        seconds = now - self._recovered_at
        is_bound = self._idle > 2 + 0.1 * self._cycle or self._unused > 0.3 * seconds
        is_lone = overload and self._burst <= LONE
        if not is_bound and self._is_refuted(now, is_lone):
            self.granted, self._passed = MORE * self._passed, 0.0
            return
        if is_lone and not self._climbed and self._cycle < SOON:
            # In doubt, less than a share of what passed would prove no more.
            least = self._passed if self._doubts else 0.0
            self.granted = max(average, LESS * max(self.granted or self.rate, least))
            return
        if self.granted is None:
            self.granted = max(average, self.rate if is_bound else self._before)
        elif is_bound:
            self.granted = max(average, 0.95 * self.granted)  # others bound it
        elif self._climbed:
            self.granted = max(average if self._marked >= 8 else 0.0, self._before)
        elif self._marked < self._bulk / 4:
            self.granted = max(average, self.granted / 2)
        else:
            weight = self._marked / (self._marked + self._first)
            self.granted += weight * (average - self.granted)
        self._bulk = max(STEP, self._bulk)
        # The wider what was used lay above what was granted, the larger the steps.
        self._step = min(0.1, max(0.01, (self.rate / self.granted - 1.3) / 5))

    def _is_refuted(self, now: float, is_lone: bool) -> bool:
        """Whether 503 come however little is sent, so that no limit explains them."""
        seconds = max(now - self._episode_from, 1e-3)
        if not is_lone or self._cycle + 1 >= SHARE * self._passed * seconds:
            self._doubts = self._doubted = 0
            self._passed = max(self._passed, (self._cycle - 1) / seconds)
            return False
        self._doubts += 1
        self._doubted += self._cycle
        if self._doubts <= self._enough:
            return False
        # Twice their share is paid for; a limit would reject far more from now on.
        self._tolerance = 2 * TOLERANCE
        self._paid = max(PAID, 2 * self._doubts / (self._doubts + self._doubted))
        self._doubts = self._doubted = 0
        self._enough += 1
        return True

    def _recover(self, now: float, sent_at: float) -> None:
        self.in_episode = False
        cycle = max(now - self._recovered_at, 1e-3)
        waited = sent_at - self._episode_from
        whole = self._sure / cycle
        self._reach = 0.0
        is_long = self._looks > 1 or waited > WINDOW
        self._span /= 2
        if is_long and waited > 0.3 * cycle and self._sure > 2:
            # It counts in windows, and a whole one was seen. The next began at some
            # time between the last two looks.
            self.granted = whole
            self._span = waited
            unsure = cycle / max(self._failed_at - self._recovered_at, 1e-3)
            self._reach = min(4.0, unsure) * whole
            self._step = min(0.1, max(0.01, (unsure - 1) / 4))
        if self.granted is None:
            self.rate = USED_EARLY * max(whole, 1 / cycle)
        else:
            self.rate = (USED if self._sure >= 100 else USED_EARLY) * self.granted
        self.rate = max(self.rate, LOWEST)
        self._hold = 0
        if self.granted is not None and self._step < 0.03 and not self._reach:
            # Little data, little patience.
            self._hold = min(min(5, self._burst) * HOLD, 4 * self._sure)
        self._tokens = 0.0
        self._filled_at = self._recovered_at = now
        self._since = self._cycle = self._idle = 0
        self._unused = 0.0
        self._climbed = self._pressed = False
        self._marked_rate = self.rate

    def _climb(self, now: float) -> None:
        # Wide steps are those of who is far below, so that they may come sooner.
        each = self._bulk if self._step < 0.1 else self._bulk / 2
        if self.rate < self._reach:
            each = min(STEP, max(5, self._first))
        if self._since < self._hold + each:
            return
        self._since = self._hold
        self._before = self.rate
        if self.granted is None:
            self.rate *= 1.25
        elif self.rate < self._reach:
            self.rate = min(self._reach, (1 + self._step) * self.rate)
            if self.rate == self._reach:
                self._step = 0.01
        else:
            self.rate *= 1 + self._step
            if self.rate > self.granted:
                # Far above what it was, the host must have been given more.
                widest = 0.1 if self.rate < 1.3 * self.granted else 0.25
                self._step = min(widest, 3 * self._step)
        self._pressed = False
        self._climbed = True
        if self.rate > 1.1 * self._marked_rate:
            self._mark(now)

    def _mark(self, now: float) -> None:
        """Measure from here on: what went before was far below."""
        self._marked_at = now
        self._marked_rate = self.rate
        self._marked = 0

"""What a download would take, before it is begun: requests, bytes, seconds.

Asks what listing the plan needs, and a few of the items; of a plan that a dataset holds
already, nothing at all. Sizes are not known before the bodies come, so bytes rest on
the best that there is: the items that the dataset holds, those that were measured, or
what the service's items usually take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median

import anyio.to_thread

from asyncfetch._dataset import held
from asyncfetch._engine import Plan, ends_all, settled, survey
from asyncfetch._ledger import Ledger
from asyncfetch._model import ChainSource, ElsewhereSource, Item, RereadSource
from asyncfetch._objects import Destination
from asyncfetch.errors import AsyncfetchError, NotFound

# Fewer items than this say less about the others than the service's usual sizes do.
ENOUGH = 3
# Items that are measured where nobody names a number, but every fourth at most, and no
# large one. Of traces, whose sizes scatter by a seventh, so many are right to 5 %.
SAMPLE = 8
LARGE = 10e6
# Seconds for opening the dataset and for the last commit.
FRAME = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is there, what is left, and what that would take."""

    items: int
    """Items of the plan."""
    already_there: int
    """Of these, how many a run would not ask for."""
    requests: int
    """Requests that a run would send if none fails, those for listing included."""
    asked_for_this: int
    """Requests that the estimate took."""
    bytes: int
    """Of the bodies that a run would receive, as sent."""
    bytes_basis: str
    """Where :attr:`bytes` comes from."""
    rate: float | None
    """Requests per second at most; None is no ceiling."""
    concurrency: int
    """Requests in flight at most."""
    seconds_at_polite_rate: float
    """What a run would take at that rate."""
    is_least: bool
    """Whether it may well take longer: answers bind and not the rate, and it is only
    known how quick those to listing are."""
    is_open: bool = False
    """Whether there may be more items than are known: one leads to the next."""


@dataclass(slots=True)
class _Left:
    """The items that a run would ask for."""

    usual: Callable[[Item], float]
    sampled: int | None
    """Items to measure; None is a few."""
    count: int = 0
    usual_bytes: float = 0.0
    _kept: list[Item] = field(default_factory=list)
    _stride: int = 1

    def add(self, item: Item) -> None:
        wanted = SAMPLE if self.sampled is None else self.sampled
        if self.sampled is None and self.usual(item) > LARGE:
            wanted = 0
        if wanted and self.count % self._stride == 0:
            self._kept.append(item)
            if len(self._kept) > 2 * wanted:  # thinned out, and evenly
                self._kept = self._kept[::2]
                self._stride *= 2
        self.count += 1
        self.usual_bytes += self.usual(item)

    def sample(self) -> list[Item]:
        """Items spread over the whole plan: neighbours are alike."""
        most = min(SAMPLE, math.ceil(self.count / 4))
        size = min(most if self.sampled is None else self.sampled, len(self._kept))
        return [
            self._kept[int((n + 0.5) * len(self._kept) / size)] for n in range(size)
        ]


async def estimate(
    plan: Plan,
    dest: Destination,
    item_bytes: float | Callable[[Item], float],
    *,
    sample: int | None = None,
) -> Estimate:
    """What filling *dest* with *plan* would take; changes nothing there.

    Parameters
    ----------
    item_bytes
        What an item usually takes as sent.
    sample
        Ask for so many of the items, spread over the plan, to measure them. None is a
        few, unless *dest* holds some already.

    Raises
    ------
    DatasetError
        *dest* holds another plan.
    """
    plan = await settled(plan, dest)
    usual = item_bytes if callable(item_bytes) else (lambda _: item_bytes)
    left = _Left(usual=usual, sampled=sample)
    ledger = await anyio.to_thread.run_sync(
        held, dest, plan.record(), plan.source.schema
    )
    basis, seen_bytes, expected_bytes = "the service's usual sizes", 0.0, 0.0
    there = asked = listing = lead = answered = 0
    took: list[float] = []
    if ledger is not None:
        there = ledger.ended
        measured, seen_bytes, expected_bytes = await anyio.to_thread.run_sync(
            _look, ledger, left
        )
        if measured >= ENOUGH:
            basis = f"the {measured:,} items there"
            left.sampled = sample or 0
        else:
            seen_bytes = expected_bytes = 0.0
        if not left.count and not ledger.wants_more:
            for item in await anyio.to_thread.run_sync(_again, plan, ledger):
                left.add(item)
    if ledger is None or ledger.wants_more:
        found = await survey(
            plan,
            visit=left.add,
            cursor=None if ledger is None else ledger.cursor,
            limit=None if ledger is None else ledger.room,
        )
        asked = listing = found.requests
        lead, answered = found.lead, found.answered
        took = [found.seconds] * bool(found.requests)
    if plan.first is not None:  # asked to know the columns, and an item all the same
        asked += 1
        left.sampled = sample or 0
        request, response = plan.first
        seen_bytes = response.body.size
        expected_bytes = usual(Item(key="", request=request))
        basis = "the first answer"
    if sampled := left.sample():
        seen_bytes, expected_bytes, took = await _measure(plan, sampled, usual)
        asked += len(sampled)
        basis = f"{len(took):,} items measured"
    chain = plan.source if isinstance(plan.source, ChainSource) else None
    expected = 0 if chain is None else chain.expected
    if left.count and expected:  # each is found in the one before
        beyond = max(0, expected - there - left.count)
        left.usual_bytes *= 1 + beyond / left.count
        left.count += beyond
    ratio = seen_bytes / expected_bytes if expected_bytes else 1.0
    gate = plan.exchange.gate.statistics()
    rate = gate["rate"] or None
    concurrency = 1 if chain else int(gate["concurrency"])
    answer = median(took) if took else 0.0
    own = left.count - answered  # requests
    by_rate = seconds_by_rate(lead, listing - lead + own, rate, answer)
    by_turns = seconds_by_turns(listing, own, concurrency, answer)
    requests = listing + own
    return Estimate(
        items=there + left.count,
        already_there=there,
        requests=requests,
        asked_for_this=asked,
        bytes=round(left.usual_bytes * ratio),
        bytes_basis=basis,
        rate=rate,
        concurrency=concurrency,
        seconds_at_polite_rate=round(
            max(by_rate, by_turns) + FRAME if requests else 0.0, 3
        ),
        is_least=expected is None or (by_turns > by_rate and not sampled),
        is_open=expected is None,
    )


def seconds_by_rate(lead: int, others: int, rate: float | None, answer: float) -> float:
    """What requests take that leave at *rate*, *lead* of them one after the other.

    The first one waits for nothing, and the last one's *answer* comes so many seconds
    after it has left.
    """
    if not rate:
        return 0.0
    return lead * max(1 / rate, answer) + max(0, others - 1) / rate + answer


def seconds_by_turns(
    listing: int, items: int, concurrency: int, answer: float
) -> float:
    """What requests take when each connection is always busy with one of them."""
    return answer * (listing + math.ceil(items / concurrency))


def _look(ledger: Ledger, left: _Left) -> tuple[int, float, float]:
    """Note what is left; items that are there, their bytes and their usual bytes."""
    for block in ledger.pending(retry_failed=True, only=None):
        for planned in block:
            left.add(planned.item)
    count, seen, expected = 0, 0.0, 0.0
    for received in ledger.received():
        for planned, size in received:
            count += 1
            seen += size
            expected += left.usual(planned.item)
    return count, seen, expected


def _again(plan: Plan, ledger: Ledger) -> tuple[Item, ...]:
    """Where all has ended: what a run reads again, or goes on with by a new limit."""
    source = plan.source
    if not isinstance(source, RereadSource):
        return ()
    if plan.limit is not None and not isinstance(source, ChainSource):
        return ()
    return source.again(ledger.rows, ledger.details())


async def _measure(
    plan: Plan, items: list[Item], usual: Callable[[Item], float]
) -> tuple[float, float, list[float]]:
    """Bytes of *items*, what these would usually be, and the seconds each took.

    One that is not there takes no bytes. One that the service cannot give as it is says
    nothing of the others: a run may get it in parts.

    Raises
    ------
    AsyncfetchError
        It can give none of them, or nothing at all.
    """
    seen, expected, took = 0.0, 0.0, []
    refusal: AsyncfetchError | None = None
    for item in items:
        expected += usual(item)
        places = [item.request.target]
        if isinstance(plan.source, ElsewhereSource):
            places += plan.source.elsewhere(item)
        for place in places:
            try:
                answer = await plan.exchange.ask(
                    replace(item.request, target=place), lambda chunks, _: _end(chunks)
                )
            except NotFound as error:
                if not item.request.may_be_absent:
                    refusal = error
                continue
            except AsyncfetchError as error:
                if ends_all(error):
                    raise
                refusal = error
                expected -= usual(item)
                break
            seen += answer.response.body.size
            took.append(answer.on_wire)
            break
    if refusal is not None and not took:
        raise refusal
    return seen, expected, took


def _end(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass

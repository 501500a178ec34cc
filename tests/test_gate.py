"""When the next request may leave."""

import dataclasses
import math
import random

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch._exchange import Exchange
from asyncfetch._gate import Gate, Turn, gate_for
from asyncfetch._health import PER_SECOND, RESERVE, SHARE, Breaker, Budget, Failure
from asyncfetch._model import Limits, Paused, Request, Retrying
from asyncfetch._pace import Pace
from asyncfetch.errors import ResponseError, TransportError
from tests.conftest import answer, open_wire


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


async def test_no_more_slots_are_held_than_there_are():
    gate = Gate("host", Limits())
    gate.set_limits(Limits(concurrency=3))
    held = peak = 0

    async def hold():
        nonlocal held, peak
        async with gate.slot():
            held += 1
            peak = max(peak, held)
            await checkpoint()
            held -= 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(hold)
    assert peak == 3
    assert gate.statistics()["in_flight"] == 0


async def test_interactive_calls_pass_waiting_bulk_items():
    gate = Gate("host", Limits(concurrency=1))
    order = []

    async def enter(name, *, interactive):
        async with gate.slot(interactive=interactive):
            order.append(name)

    async with anyio.create_task_group() as group, gate.slot():
        group.start_soon(lambda: enter("bulk", interactive=False))
        await wait_all_tasks_blocked()
        group.start_soon(lambda: enter("get", interactive=True))
        await wait_all_tasks_blocked()
    assert order == ["get", "bulk"]


async def test_a_wait_that_is_given_up_leaks_no_slot():
    gate = Gate("host", Limits(concurrency=1))
    async with gate.slot():
        with pytest.raises(TransportError, match="no turn at host within 0 s"):
            async with gate.slot(max_wait=0):
                pass
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with gate.slot():
                pass
    async with gate.slot(max_wait=0):
        assert gate.statistics()["in_flight"] == 1


async def test_a_slot_that_comes_with_a_cancellation_goes_to_the_next():
    gate = Gate("host", Limits(concurrency=1))
    entered = []

    async def enter(name):
        async with gate.slot():
            entered.append(name)

    async with anyio.create_task_group() as group:
        first = anyio.CancelScope()

        async def cancelled():
            with first:
                await enter("first")

        async with gate.slot():
            group.start_soon(cancelled)
            await wait_all_tasks_blocked()
            group.start_soon(enter, "second")
            await wait_all_tasks_blocked()
        first.cancel()  # the slot has just been handed to it
    assert entered[-1] == "second"
    assert gate.statistics()["in_flight"] == 0


def turn(gate, crowd=1, question=0):
    return Turn(gate, question, crowd, None, math.inf)


def reject(gate, sent_at, retry_after=None, status=429):
    return gate.rejected(turn(gate), sent_at, status, retry_after)[0]


def test_a_volley_of_rejections_pauses_once():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)
    sent = gate.now()
    clock.now += 0.1
    waits = [reject(gate, sent) for _ in range(10)]
    assert 0.75 <= waits[0] <= 1.25
    assert waits[1:] == [waits[0]] * 9


def test_pauses_grow_while_the_host_keeps_rejecting_and_start_over_after_an_answer():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)

    def next_pause():
        sent = gate.now() + 0.01
        clock.now += 0.02
        wait = reject(gate, sent)
        clock.now += wait
        return wait

    waits = [next_pause() for _ in range(20)]
    assert waits[3] > 4 * waits[0]
    assert max(waits) <= 1.25 * 300
    gate.answered(turn(gate), gate.now(), 0.01)
    assert next_pause() <= 1.25


def test_what_the_host_asks_for_is_waited_for():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)
    assert reject(gate, gate.now(), 40.0) == 40.0
    assert gate.paused_until == 1040.0
    assert reject(gate, gate.now(), 10.0) == 40.0  # never shortens a pause
    known = gate.statistics()
    assert known["pauses"] == {"429 with Retry-After": 40.0}
    assert known["pause_cause"] == "429 with Retry-After"
    assert known["paused_for"] == 40.0
    assert known["rejected"] == 2


def test_a_lone_503_among_answers_neither_pauses_nor_teaches():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)
    for _ in range(100):
        gate.answered(turn(gate), gate.now(), 0.01)
        clock.now += 0.1
    wait, _, is_full = gate.rejected(turn(gate), gate.now(), 503, None)
    assert (wait, is_full) == (0.0, False)
    assert gate.statistics()["learned_rate"] == 0


@pytest.mark.parametrize("rate", [0.5, 5, 40, 5000])
async def test_the_ceiling_has_no_burst_at_the_start(rate):
    gate = Gate("host", Limits(rate=rate))
    limiter = gate.limiter()
    burst = max(1, rate * 0.002)
    assert limiter.max_rate == burst
    assert limiter.max_rate / limiter.time_period == pytest.approx(rate)


@given(
    rate=st.floats(0.1, 1000),
    seed=st.integers(0, 1000),
    rejecting=st.floats(0, 0.3),
    hints=st.booleans(),
)
def test_learning_never_exceeds_the_ceiling_nor_the_slots(rate, seed, rejecting, hints):
    rng = random.Random(seed)
    pace = Pace(concurrency=5, rate=rate, rng=rng)
    now, in_flight, sent = 0.0, [], []
    for _ in range(400):
        wait = pace.wait(now, len(in_flight))
        if wait <= 0:
            pace.sent(now)
            in_flight.append(now)
            sent.append(now)
            assert len(in_flight) <= 5
            continue
        assert in_flight or wait < math.inf
        if in_flight and (wait == math.inf or rng.random() < 0.5):
            now += rng.uniform(0, 0.1)
            at = in_flight.pop(0)
            crowd = len(in_flight) + 1
            if rng.random() < rejecting:
                pace.rejected(now, at, rng.choice([None, 0.5, 3]), crowd)
            else:
                pace.accepted(now, at, now - at, crowd)
            if hints and rng.random() < 0.1:
                pace.hint(now, rng.uniform(0, 50), rng.uniform(0.1, 60))
        else:
            now += wait
        assert 1 <= pace.slots <= 5
        assert pace.rate > 0
    burst = max(1, 0.02 * rate)
    for first in range(0, len(sent), 7):
        for last in range(first, len(sent), 11):
            allowed = burst + rate * (sent[last] - sent[first]) + 1e-3
            assert last - first + 1 <= allowed + 1


def test_a_demanded_concurrency_is_used_from_the_start_and_a_default_grows():
    gate = Gate("host", Limits(concurrency=64))
    assert gate.statistics()["slots"] == 2
    gate.set_limits(Limits(concurrency=64))
    assert gate.statistics()["slots"] == 64


def test_a_share_divides_rate_and_slots():
    share = [1.0]
    gate = Gate("host", Limits(rate=10), share=lambda: share[0])
    gate.set_limits(Limits(concurrency=8))
    gate._wait(gate.now(), interactive=False)
    assert (gate.statistics()["rate"], gate.statistics()["slots"]) == (10, 8)
    share[0] = 0.5
    gate._wait(gate.now(), interactive=False)
    assert (gate.statistics()["rate"], gate.statistics()["slots"]) == (5, 4)


def test_a_hint_spreads_what_is_left_over_the_time_that_is_left():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)
    gate.hint(20, 10)
    assert gate.statistics()["rate"] == pytest.approx(1.8)
    clock.now += 21  # beyond the reset, so that another answer can say more
    assert gate.statistics()["rate"] == 0  # no ceiling again
    gate.hint(0, 30)
    assert 30 <= gate.pause_left() <= 31
    gate.hint(None, None)
    gate.hint(5, None)


def test_what_was_learned_is_where_the_next_process_starts():
    clock = Clock()
    gate = Gate("host", Limits(concurrency=16), clock=clock)
    assert gate.learned() is None
    for n in range(200):
        sent = gate.now()
        gate._take(sent)
        clock.now += 0.1
        if n in {50, 100, 150}:
            clock.now += reject(gate, sent)
        else:
            gate.answered(turn(gate), sent, 0.1)
        gate._in_flight = 0
    known = gate.learned()
    assert known.rate > 0
    assert known.delay == pytest.approx(0.1)
    other = Gate("host", Limits(concurrency=16), learned=known)
    assert other.statistics()["learned_rate"] == pytest.approx(known.rate, abs=1e-3)
    assert other.statistics()["rate"] == pytest.approx(0.98 * known.rate, abs=1e-3)
    third = Gate("host", Limits(concurrency=16))
    third.start_from(known)
    assert third.learned() is None
    assert third.statistics()["rate"] == other.statistics()["rate"]
    gate.start_from(dataclasses.replace(known, rate=1e-3))  # it knows better
    assert gate.learned().rate == known.rate


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=300),
)
def test_retries_stay_within_the_budget(steps):
    budget = Budget()
    now, retries = 0.0, 0
    for requests, (wait, retry) in enumerate(steps, 1):
        now += wait
        if retry and budget.left(now) >= 1:
            assert budget.retry(now) == 0
            retries += 1
        budget.sent(now)
        assert 0 <= budget.left(now) <= RESERVE
        assert retries <= RESERVE + SHARE * requests + PER_SECOND * now


def test_a_retry_beyond_the_budget_waits():
    budget = Budget()
    waits = [budget.retry(0.0) for _ in range(102)]
    assert waits[99] == 0
    assert waits[101] == pytest.approx(2 / PER_SECOND)


def test_an_open_breaker_lets_one_look_at_a_time_and_waits_longer_each_time():
    breaker = Breaker(random.Random(0))
    for question in range(3):
        breaker.failed(0.0, question, Failure.HOST, "refused")
    assert breaker.is_open
    now, waits = 0.0, []
    for question in range(12):
        wait = breaker.wait(now)
        waits.append(wait)
        now += wait
        breaker.sent()
        assert breaker.wait(now) == math.inf  # nobody beside it
        breaker.ended()
        breaker.failed(now, question, Failure.HOST, "refused")
    assert waits[0] < 1 < waits[5] < max(waits) <= 75
    breaker.sent()
    breaker.ended()
    breaker.answered(now)
    assert breaker.wait(now) == 0


def test_one_question_that_fails_again_and_again_does_not_open_the_breaker():
    breaker = Breaker(random.Random(0))
    for _ in range(6):
        breaker.failed(0.0, 1, Failure.EITHER, "no answer in time")
        breaker.failed(0.0, 1, Failure.QUESTION, "answers with 500")
    assert not breaker.is_open
    breaker.failed(0.0, 2, Failure.EITHER, "no answer in time")
    breaker.failed(0.0, 3, Failure.EITHER, "no answer in time")
    assert breaker.is_open


def test_a_host_that_answers_one_in_ten_is_asked_by_one_at_a_time():
    breaker = Breaker(random.Random(0))
    opened = 0
    for n in range(60):
        if n % 10 == 0:
            breaker.answered(n / 10)
        else:
            breaker.failed(n / 10, 1, Failure.EITHER, "no answer in time")
        opened += breaker.is_open
    assert 10 < opened < 50


def test_nothing_but_500_is_an_outage_only_for_so_long():
    breaker = Breaker(random.Random(0))
    for question in range(6):
        breaker.failed(0.0, question, Failure.QUESTION, "answers with 500")
    assert breaker.excuses(500.0, Failure.QUESTION)
    assert not breaker.excuses(700.0, Failure.QUESTION)
    assert breaker.excuses(700.0, Failure.HOST)


def quick(url, *, second=0.002, **limits):
    """An exchange whose gate takes 2 ms for a second."""
    made = Exchange(url, default=Limits(), limits=Limits(), rng=random.Random(1))
    made.gate = Gate(url, Limits(), second=second, rng=random.Random(2))
    made.gate.set_limits(Limits(**{"concurrency": 4, **limits}))
    return made


async def ask(asker, target, **options):
    found = await asker.ask(
        Request(target=target), lambda chunks, _: b"".join(chunks), **options
    )
    return found.value


UNAVAILABLE = answer(b"down", status="503 Service Unavailable")


@pytest.mark.parametrize(
    ("outage", "requests"),
    [
        (b"", 100),  # 12 items have 72 attempts, and this lasts for an hour
        (answer(b"", status="502 Bad Gateway"), 100),
        (answer(b"", status="500 x"), 20),  # of this, ten minutes are believed
    ],
    ids=["hangs up", "502", "500"],
)
async def test_an_outage_far_beyond_the_attempts_of_an_item_loses_nothing(
    outage, requests
):
    async with open_wire(answer(), *[outage] * requests, answer()) as wire:
        asker = quick(wire.url, second=0.0005)
        await ask(asker, "/first")
        async with anyio.create_task_group() as group:
            for n in range(12):
                group.start_soon(ask, asker, f"/{n}")
        await asker.aclose()
    assert asker.gate.statistics()["breaker"] == "closed"
    assert asker.gate.statistics()["in_flight"] == 0


async def test_an_outage_that_says_503_loses_not_even_the_last_item():
    async with open_wire(*[UNAVAILABLE] * 15, answer()) as wire:
        asker = quick(wire.url, second=0.0001)
        assert await ask(asker, "/only") == b"[]"
        await asker.aclose()


async def test_a_person_is_told_at_once_that_the_host_is_down():
    async with open_wire(answer(b"", status="502 Bad Gateway")) as wire:
        asker = quick(wire.url)
        breaker = asker.gate._breaker
        while breaker.next_look(asker.gate.now()) < 1000:
            now = asker.gate.now()
            breaker.failed(now, 1, Failure.HOST, "answers with 502")
            breaker._look_at += 10_000
        with pytest.raises(TransportError, match=r"not answered for .* with 502"):
            await ask(asker, "/x", interactive=True)
        assert not wire.requests
        await asker.aclose()


async def test_a_person_who_waits_is_told_when_the_host_goes_down():
    gate = Gate("host", Limits(concurrency=1))
    told = []

    async def wait():
        try:
            async with gate.slot(interactive=True, impatient=True):
                pass
        except TransportError as error:
            told.append(str(error))

    async with anyio.create_task_group() as group, gate.slot() as held:
        group.start_soon(wait)
        await wait_all_tasks_blocked()
        gate._breaker._look_wait = 30.0
        for question in range(3):
            held.question = question
            gate.failed(held, Failure.HOST, "no connection")
        await wait_all_tasks_blocked()
        assert len(told) == 1
    assert gate.statistics()["waiting"] == 0


async def test_a_rejected_item_waits_in_the_gate_and_is_asked_first_again():
    full = answer(b"", status="429 x", headers="Retry-After: 3\r\n")
    async with open_wire(full, answer()) as wire:
        asker = quick(wire.url, concurrency=1)
        events = []
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: ask(asker, "/a", observe=events.append))
            await wait_all_tasks_blocked()
            for name in "bc":
                group.start_soon(ask, asker, f"/{name}")
        await asker.aclose()
        assert wire.targets == ["/a", "/a", "/b", "/c"]
    (paused,) = [one for one in events if isinstance(one, Paused)]
    assert (paused.seconds, paused.cause) == (3.0, "429 with Retry-After")
    (again,) = [one for one in events if isinstance(one, Retrying)]
    assert 0 <= again.delay <= 3  # of the pause, what was left by then


async def test_a_redirect_may_ask_for_a_pause_and_others_may_not():
    moved = answer(status="301 x", headers="Location: /new\r\nRetry-After: 5\r\n")
    chatty = answer(headers="Retry-After: 500\r\n")
    async with open_wire(moved, chatty) as wire:
        asker = quick(wire.url)
        await ask(asker, "/old")
        await asker.aclose()
        assert wire.targets == ["/old", "/new"]
    assert asker.gate.statistics()["pauses"] == {"301 with Retry-After": 5.0}


async def test_a_redirect_that_asks_for_hours_ends_the_run():
    moved = answer(status="307 x", headers="Location: /new\r\nRetry-After: 9999\r\n")
    async with open_wire(moved) as wire:
        asker = quick(wire.url)
        with pytest.raises(ResponseError, match="come back in 9999 s") as caught:
            await ask(asker, "/old")
        await asker.aclose()
    assert caught.value.is_fatal


async def test_the_wait_for_a_turn_ends_with_the_time_for_the_item():
    gate = Gate("host", Limits(concurrency=1), second=0.01)
    async with gate.slot():
        with pytest.raises(
            TransportError, match=r"within 1 s: 1 requests .* item_time"
        ):
            async with gate.slot(deadline=1):
                pass
    assert gate.statistics()["waiting"] == 0
    gate.pause(10_000, "429")
    with pytest.raises(TransportError, match=r"paused for another .* s .429."):
        async with gate.slot(deadline=100):
            pass


async def test_a_host_that_grants_five_a_second_is_asked_no_faster():
    gate = Gate("host", Limits(rate=5), second=0.02)
    gate.set_limits(Limits(concurrency=8))
    times = []

    async def one():
        async with gate.slot() as held:
            times.append(await held.hop())

    async with anyio.create_task_group() as group:
        for _ in range(16):
            group.start_soon(one)
    assert times[-1] - times[0] >= 15 / 5 * 0.99


def test_clients_of_one_host_share_a_gate():
    one = gate_for("http://same.example", Limits(concurrency=2), Limits())
    two = gate_for("http://same.example", Limits(), Limits(rate=3))
    assert one is two
    assert one.statistics()["rate"] == 3
    assert one.statistics()["concurrency"] == 2


def test_slots_are_handed_over_between_event_loops():
    gate = Gate("host", Limits(concurrency=1))
    order = []

    async def in_other_loop():
        async with gate.slot():
            order.append("other")

    async def main():
        async with anyio.create_task_group() as group, gate.slot():
            group.start_soon(
                lambda: anyio.to_thread.run_sync(lambda: anyio.run(in_other_loop))
            )
            while not gate.statistics()["waiting"]:
                await checkpoint()
            order.append("main")

    anyio.run(main)
    assert order == ["main", "other"]

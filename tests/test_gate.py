"""When the next request may leave."""

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from asyncfetch._gate import Gate, gate_for
from asyncfetch._model import Limits
from asyncfetch.errors import TransportError


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


async def test_no_more_slots_are_held_than_there_are():
    gate = Gate("host", Limits(concurrency=3))
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


def test_a_volley_of_rejections_pauses_once():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)
    sent = gate.now()
    clock.now += 0.1
    waits = [gate.rejected(sent, None) for _ in range(10)]
    assert 0.75 <= waits[0] <= 1.25
    assert waits[1:] == [waits[0]] * 9


def test_pauses_grow_while_the_host_keeps_rejecting_and_start_over_after_an_answer():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)

    def reject():
        sent = gate.now() + 0.01
        clock.now += 0.02
        wait = gate.rejected(sent, None)
        clock.now += wait
        return wait

    waits = [reject() for _ in range(8)]
    assert waits[3] > 4 * waits[0]
    assert max(waits) <= 75
    gate.answered()
    assert reject() <= 1.25


def test_what_the_host_asks_for_is_waited_for():
    clock = Clock()
    gate = Gate("host", Limits(), clock=clock)
    assert gate.rejected(gate.now(), 40.0) == 40.0
    assert gate.paused_until == 1040.0
    assert gate.rejected(gate.now(), 10.0) == 40.0  # never shortens a pause


@pytest.mark.parametrize("rate", [0.5, 5, 40, 5000])
async def test_the_ceiling_has_no_burst_at_the_start(rate):
    gate = Gate("host", Limits(rate=rate))
    limiter = gate._limiter()
    burst = max(1, rate * 0.002)
    assert limiter.max_rate == burst
    assert limiter.max_rate / limiter.time_period == pytest.approx(rate)


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

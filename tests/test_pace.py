"""What is learned of servers with hidden limits: simulated, no clock and no socket."""

import heapq
import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncfetch._pace import Flight, Learned, Pace
from benchmarks._limited import (
    Bucket,
    Noisy,
    Sliding,
    Window,
    Workers,
    fixed,
    heavy,
)

TRIP = 0.06  # seconds there and back


class Outcome:
    def __init__(self):
        self.accepted = self.rejected = 0
        self.queued = 0.0
        self.in_flight = self.peak = 0

    @property
    def per_hundred(self):
        return 100 * self.rejected / max(1, self.accepted)


def simulate(server, seconds, *, most=16, seed=0, pace=None, until=None):
    """Endless work through a pace: events in order of time."""
    server.lasts(seconds)
    rng = random.Random(seed)
    pace = pace or Pace(concurrency=most, rng=random.Random(seed))
    out = Outcome()
    events, order, alarm = [], itertools.count(), None

    def push(at, kind, *what):
        heapq.heappush(events, (at, next(order), kind, what))

    def leave(now):
        nonlocal alarm
        while (wait := pace.wait(now, out.in_flight)) <= 0:
            out.in_flight += 1
            out.peak = max(out.peak, out.in_flight)
            pace.sent(now)
            push(now + TRIP / 2, "arrives", now, out.in_flight)
        if wait < math.inf and (alarm is None or not now < alarm <= now + wait):
            alarm = now + wait
            push(alarm + 0.001 * rng.random(), "rings")

    leave(0.0)
    while events:
        now, _, kind, what = heapq.heappop(events)
        if now > seconds:
            break
        if kind == "arrives":
            verdict = server.arrive(now)
            out.queued += verdict.queued
            out.accepted += verdict.status == 200
            out.rejected += verdict.status != 200
            push(now + verdict.delay + TRIP / 2, "answered", *what, verdict)
            continue
        if kind == "rings":
            alarm = None
        else:
            sent, crowd, verdict = what
            out.in_flight -= 1
            if verdict.status == 200:
                pace.accepted(now, sent, now - sent, crowd)
            else:
                pace.rejected(
                    now,
                    sent,
                    verdict.retry_after,
                    crowd,
                    overload=verdict.status == 503,
                )
        leave(now)
    out.pace = pace
    out.goodput = out.accepted / server.ideal(seconds, TRIP)
    return out


LIMITED = {
    "bucket": lambda: Bucket(5, 10),
    "bucket without a burst": lambda: Bucket(4, 1),
    "bucket that says 503": lambda: Bucket(3, 2, status=503),
    "bucket that says when": lambda: Bucket(2, 5, says=True),
    "window": lambda: Window(60, 60),
    "window, in its middle": lambda: Window(100, 60, phase=25),
    "window of a second": lambda: Window(5, 1),
    "window that says a date": lambda: Window(120, 60, says="date", phase=40),
    "sliding": lambda: Sliding(20, 10),
    "grows": lambda: Bucket(3, 10, turn=0.5, later=9),
    "shrinks": lambda: Bucket(6, 10, turn=0.5, later=2),
    "so many at a time": lambda: Workers(fixed(0.3), 4, refuses=503),
}


@pytest.mark.parametrize("name", LIMITED)
def test_most_of_a_hidden_limit_is_used_and_little_is_rejected(name):
    found = simulate(LIMITED[name](), 900)
    assert found.goodput >= 0.84
    assert found.per_hundred <= 3.0


@pytest.mark.parametrize("name", ["bucket", "window", "sliding", "window of a second"])
def test_who_remembers_a_host_uses_nearly_all_of_its_limit_at_once(name):
    known = simulate(LIMITED[name](), 1800).pace
    start = Learned(
        rate=known.granted, delay=None, concurrency=known.flight.now, at=None
    )
    pace = Pace(concurrency=16, rng=random.Random(0), learned=start)
    found = simulate(LIMITED[name](), 300, pace=pace)
    assert found.goodput >= 0.93
    assert found.per_hundred <= 2.0


BUSY = {
    "constant": (lambda: Workers(fixed(0.2), 8), 8),
    "heavy tail": (lambda: Workers(heavy(0.6, 1.0), 2), 6),
    "shrinks": (
        lambda: Workers(fixed(0.2), 10, count=lambda t, _: 4 if t > 60 else 10),
        10,
    ),
}


@pytest.mark.parametrize("name", BUSY)
def test_workers_are_busy_and_few_requests_queue_at_them(name):
    server, queue = BUSY[name]
    pace = Pace(concurrency=64, rng=random.Random(0))
    found = simulate(server(), 200, most=64, pace=pace)
    assert found.goodput >= 0.9
    assert found.queued / 200 <= queue


@pytest.mark.parametrize("seed", [109, 247, 334])
def test_one_long_answer_does_not_hold_up_a_calm_probe(seed):
    # Some work takes minutes; with one request in flight, everybody waited for it.
    server = Workers(heavy(1.5, 1.5), 4, seed=seed)
    pace = Pace(concurrency=64, rng=random.Random(seed))
    found = simulate(server, 900, most=64, pace=pace)
    assert found.goodput >= 0.93
    assert found.queued / 900 <= 6


def test_a_number_that_somebody_demands_shrinks_only_where_delays_treble():
    pace = Pace(concurrency=64, eager=True, rng=random.Random(0))
    found = simulate(Workers(fixed(0.2), 8), 200, most=64, pace=pace)
    assert found.goodput >= 0.9
    assert 16 <= found.pace.flight.now <= 40


def test_delays_that_grow_without_a_queue_do_not_slow_a_client_for_long():
    jumps = Workers(lambda share, _: 0.1 if share < 0.5 else 0.6, 64, bound=16)
    pace = Pace(concurrency=16, eager=True, rng=random.Random(0))
    found = simulate(jumps, 300, pace=pace)
    assert found.pace.flight.now >= 14


def test_delays_that_fewer_requests_do_not_shorten_leave_the_number_alone():
    rng = random.Random(0)
    flight = Flight(32, eager=True, learned=None)
    now = 0.0
    for n in range(4000):
        # The machine got busy, whoever asks: ten times the delay, whatever the number.
        took = (0.02 if n < 500 else 0.2) * rng.uniform(0.8, 1.2)
        now += took / flight.now
        flight.accepted(now, now - took, took, min(flight.slots, int(flight.now)))
    assert flight.now >= 22


def test_a_healthy_server_gets_all_that_somebody_asked_for():
    pace = Pace(concurrency=64, eager=True, rng=random.Random(0))
    found = simulate(Workers(fixed(0.2), 100), 20, pace=pace)
    assert found.accepted >= 64 * math.floor(20 / 0.26)
    assert found.peak == 64


def test_stray_503_do_not_slow_a_client():
    server = Noisy(Workers(fixed(0.1), 64, bound=16), 0.01, 503)
    assert simulate(server, 120).goodput >= 0.8


def stray(share, seed, **how):
    return Noisy(Workers(fixed(0.02), 64, bound=8), share, 503, seed=seed, **how)


def test_many_stray_503_are_not_taken_for_a_limit():
    accepted = [
        simulate(stray(0.08, seed), 120, most=8, seed=seed).accepted
        for seed in range(9)
    ]
    assert min(accepted) >= 2000


def test_stray_503_that_say_when_cost_little_more_than_the_time_they_say():
    # Each twentieth answer says to wait for two seconds, each twentieth nothing more.
    accepted = [
        simulate(
            Noisy(stray(0.05, seed, retry_after=2.0), 0.05, 503, seed=1000 + seed),
            60,
            most=8,
            seed=seed,
        ).accepted
        for seed in range(40)
    ]
    assert min(accepted) >= 60
    assert statistics.median(accepted) >= 150


@pytest.mark.parametrize("seed", range(4))
def test_a_limit_that_says_503_is_not_taken_for_stray_ones(seed):
    limit = Bucket(8, 20, status=503, says=True)
    assert simulate(limit, 900, seed=seed).per_hundred <= 1.0


@settings(max_examples=25)
@given(
    rate=st.floats(1, 10),
    burst=st.integers(1, 30),
    says=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_token_bucket_is_found(rate, burst, says, seed):
    found = simulate(Bucket(rate, burst, says=says), 600, seed=seed)
    assert found.goodput >= 0.8
    assert found.rejected <= 12 + 0.03 * found.accepted

"""What the headers of an answer say of a rate limit, and what the client does then."""

import math
import random
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import get_args

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import testing
from asyncfetch._engine import open_stream
from asyncfetch._gate import Gate
from asyncfetch._hints import Hint, hint_of, speaks_of_limits
from asyncfetch._model import Limits
from asyncfetch._pace import Pace
from asyncfetch.testing._faults import LimitHeaders, Throttle

NOW = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC)
DATE = format_datetime(NOW, usegmt=True)
EPOCH = int(NOW.timestamp())


def pairs_of(text):
    parts = [one.partition(":") for one in text.split("|")]
    return [
        ("Date", DATE),
        *((name.strip(), value.strip()) for name, _, value in parts),
    ]


@pytest.mark.parametrize(
    ("headers", "remaining", "reset"),
    [
        # draft-06, its limit with a list of policies
        (
            (
                "RateLimit-Limit: 100, 100;w=10 | RateLimit-Remaining: 0 "
                "| RateLimit-Reset: 60"
            ),
            0,
            60,
        ),
        ("ratelimit-remaining: 7 | RATELIMIT-RESET: 60", 7, 60),
        # draft-07
        ("RateLimit: limit=2, remaining=0, reset=60", 0, 60),
        ("RateLimit: reset=4,remaining=3", 3, 4),
        # draft-08 and later
        ('RateLimit: "2-in-1min"; r=0; t=60', 0, 60),
        ("RateLimit: default;r=50;t=30", 50, 30),
        ('RateLimit: "permin";r=20;t=23, "perhr";r=399;t=2402', 399, 2402),
        ('RateLimit: "permin";r=20;t=23 | RateLimit: "perhr";r=0;t=2402', 0, 2402),
        ('RateLimit: "a";r=1;pk=:MTI3LjA=: | RateLimit-Policy: "a";q=2;w=60', 1, 60),
        (
            (
                'RateLimit: "a";r=1;t=60, "b";r=9;t=10 '
                '| RateLimit-Policy: "a";q=2;w=60;qu="content-bytes", "b";q=9;w=10'
            ),
            9,
            10,
        ),
        ('RateLimit: "a, \\"b\\";r=0;t=9";r=3;t=4', 3, 4),
        # de facto
        (f"X-RateLimit-Remaining: 5 | X-RateLimit-Reset: {EPOCH + 9}", 5, 9),
        (f"X-RateLimit-Remaining: 5 | X-RateLimit-Reset: {EPOCH + 9}000", 5, 9),
        ("X-RateLimit-Remaining: 5 | X-RateLimit-Reset: 9", 5, 9),
        ("X-Rate-Limit-Remaining: 5 | X-Rate-Limit-Reset: 9", 5, 9),
        ("X-RateLimit-Remaining: 5, 0 | X-RateLimit-Reset: 9, 3", 0, 3),
        (
            (
                "X-RateLimit-Remaining: 1 | X-RateLimit-Reset: 9 "
                "| X-RateLimit-Reset-After: 1.25"
            ),
            1,
            1.25,
        ),
        ("X-RateLimit-Remaining-Minute: 0", 0, 31),
        ("X-RateLimit-Remaining-Minute: 5 | X-RateLimit-Remaining-Hour: 9", 9, 3571),
    ],
)
def test_every_generation_of_the_headers_is_read(headers, remaining, reset):
    pairs = pairs_of(headers)
    assert speaks_of_limits(name for name, _ in pairs)
    hint = hint_of(pairs, now=0.0)
    assert hint == Hint(remaining, pytest.approx(reset))


@pytest.mark.parametrize(
    "headers",
    [
        "Server: nginx",
        "RateLimit: ",
        "RateLimit: soon",
        "RateLimit: r=0;t=9",
        'RateLimit: "a;r=0;t=9',
        'RateLimit: "a";r=-1;t=9',
        'RateLimit: "a";r=0;t=nan',
        'RateLimit: "a";r=0',
        'RateLimit: "a";r=0;t=9, ;',
        'RateLimit: "a";r=0;t=9 | RateLimit-Policy: "a";q=9;qu="concurrent-requests"',
        "RateLimit-Remaining: 0",
        "RateLimit-Remaining: none | RateLimit-Reset: 5",
        "X-RateLimit-Remaining: 0 | X-RateLimit-Reset: tomorrow",
        f"X-RateLimit-Remaining: 0 | X-RateLimit-Reset: {EPOCH - 60}",
        "X-RateLimit-Remaining: 0, 1 | X-RateLimit-Reset: 9",
        "X-RateLimit-Remaining: ٣ | X-RateLimit-Reset: 9",
        "X-RateLimit-Remaining: 1e9 | X-RateLimit-Reset: 9",
        "X-RateLimit-Remaining-Tokens: 0 | X-RateLimit-Reset-Tokens: 6m0s",
        f"RateLimit: {'x' * 5000};r=0;t=9",
    ],
)
def test_what_is_malformed_or_counts_no_requests_is_ignored(headers):
    assert hint_of(pairs_of(headers), now=0.0) is None


NAMES = st.sampled_from(
    "RateLimit RateLimit-Policy RateLimit-Remaining RateLimit-Reset "
    "X-RateLimit-Remaining X-RateLimit-Reset X-Rate-Limit-Remaining X-Rate-Limit-Reset "
    "X-RateLimit-Reset-After X-RateLimit-Remaining-Minute Date".split()
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet='"abrt;=:, 0159.-\\', max_size=60),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from([DATE, str(EPOCH), f"{EPOCH}000", '"a";r=1;t=1', "a;q=1;w=9"]),
)


@given(st.lists(st.tuples(NAMES, TEXTS), max_size=8), st.floats(0, 1e11))
def test_no_headers_raise_or_tell_less_than_nothing(headers, now):
    hint = hint_of(headers, now=now)
    assert hint is None or (hint.remaining >= 0 and 0 < hint.reset < 1e15)


@given(
    st.sampled_from(get_args(LimitHeaders)),
    st.sampled_from([1.0, 60.0]),
    st.integers(1, 500),
    st.integers(1, 600),
    st.floats(0, 1, exclude_max=True),
)
def test_what_the_archive_says_is_what_is_read(form, seconds, count, used, gone):
    throttle = Throttle(count=count, seconds=seconds, limit_headers=form)
    wait = seconds * (1 - gone)
    now = datetime.now(UTC)
    headers = throttle.headers(used, wait)
    hint = hint_of(headers.items(), now=now.timestamp())
    if form == "none":
        assert hint is None
        return
    assert hint is not None
    left = max(0, count - used)
    assert hint.remaining == left
    if form != "kong":  # whose windows are those of the calendar
        assert wait - 0.001 <= hint.reset <= wait + 2


def test_a_look_for_hints_is_cheap():
    """Most answers have none: no more than one pass over the names."""
    names = ["Server", "Date", "Content-Type", "Content-Length"]
    looked = []

    def each():
        for name in names:
            looked.append(name)
            yield name

    assert not speaks_of_limits(each())
    assert looked == names


def test_a_host_that_has_nothing_left_is_not_asked_before_its_reset():
    clock = [1000.0]
    gate = Gate("host", Limits(), clock=lambda: clock[0])
    gate.hint(0, 20.0)
    assert 1020.0 <= gate.paused_until <= 1022.0
    gate.hint(5, 20.0)
    assert gate.paused_until >= 1020.0  # never shortens a pause


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])
async def test_hints_spare_the_host_every_rejection(anyio_backend):
    """With each generation of the headers: no 429, and no slower than it must be."""
    refused = {}

    async def fetch(form):
        faults = f"throttle=10/s,throttle_headers={form}"
        async with (
            testing.serve(scale=0.05, faults=faults) as archive,
            asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api,
        ):
            async with open_stream(api.traces.plan(limit=25)) as batches:
                keys = {
                    batch.schema.metadata[b"asyncfetch.key"] async for batch in batches
                }
            assert len(keys) == 25
            refused[form] = [one.status for one in archive.log].count(429)

    async with anyio.create_task_group() as group:
        for form in get_args(LimitHeaders):
            group.start_soon(fetch, form)
    assert (
        refused.pop("none") > 0
    )  # without them the limit is only met by running into it
    assert refused == dict.fromkeys(refused, 0)


def test_a_hint_holds_until_the_next_answer_can_say_more():
    """What is left at the end of a window is not let go at once, nor after it."""
    pace = Pace(concurrency=16, rng=random.Random(0))
    pace.hint(100.0, 9, 0.05)
    assert pace.effective(100.01) == pytest.approx(8.1)
    assert pace.effective(100.06) == pytest.approx(8.1)
    assert pace.effective(110.0) == math.inf  # where only some answers have hints

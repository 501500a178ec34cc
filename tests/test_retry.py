"""Whether and when to ask again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch._retry import RetryPolicy, is_transient
from asyncfetch.errors import (
    DecodeError,
    IntegrityError,
    NotFound,
    ResponseError,
    TransportError,
)


@given(
    attempt=st.integers(1, 20),
    attempts=st.integers(1, 10),
    base=st.floats(0.01, 10),
    cap=st.floats(0.01, 100),
    seed=st.integers(),
)
def test_delays_are_bounded_and_end_after_the_last_attempt(
    attempt, attempts, base, cap, seed
):
    policy = RetryPolicy(attempts=attempts, base=base, cap=cap)
    delay = policy.delay(attempt, TransportError("x"), random.Random(seed))
    if attempt >= attempts:
        assert delay is None
    else:
        assert 0 <= delay <= min(cap, base * 2 ** (attempt - 1))


@given(asked=st.floats(0, 3600), attempt=st.integers(1, 5), seed=st.integers())
def test_a_delay_is_never_shorter_than_the_server_asked_for(asked, attempt, seed):
    error = ResponseError("x", status=503, retry_after=asked)
    assert RetryPolicy().delay(attempt, error, random.Random(seed)) >= asked


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_statuses_that_may_pass_are_asked_again(status):
    assert is_transient(ResponseError("x", status=status))


@pytest.mark.parametrize("status", [400, 405, 414, 422, 501, 505])
def test_statuses_that_stay_are_not_asked_again(status):
    assert not is_transient(ResponseError("x", status=status))


def test_bytes_that_are_not_whole_are_asked_again_and_wrong_data_are_not():
    assert is_transient(IntegrityError("x"))
    assert not is_transient(DecodeError("x"))
    assert not is_transient(NotFound("x"))

"""What a person is told while a run goes."""

import io

import pytest

from asyncfetch._model import ItemEnded, Outcome, Paced, Paused, Planned, Retrying
from asyncfetch._progress import Progress, _State, duration

CALM = {"concurrency": 4, "slots": 4, "rate": 5.0, "learned_rate": 0.0, "rejected": 0}
LEARNED = {
    **CALM,
    "slots": 2,
    "learned_rate": 3.6,
    "rejected": 12,
    "retries_left": 40,
    "breaker": "open",
}


def words(*events):
    state = _State()
    for event in events:
        state.see(event)
    return state.words()


def test_a_run_within_the_limits_says_nothing_of_the_gate():
    said = words(Planned(items=10, ended=4, complete=True), Paced(gate=CALM))
    assert said.startswith("4/10 items, 0 rows")
    for word in ("granted", "connections", "rejected", "down"):
        assert word not in said


def test_what_the_gate_has_learned_is_said():
    retry = Retrying(url="u", attempt=1, delay=1.0, error="e")
    said = words(retry, Paced(gate=LEARNED))
    assert "1 retries (40 left)" in said
    assert "3.6/s granted" in said
    assert "2/4 connections" in said
    assert "12 rejected" in said
    assert "host is down" in said


def test_a_pause_is_said_with_its_cause_and_counts_down():
    said = words(Paused(host="h", seconds=40.0, cause="429 with Retry-After"))
    assert "paused 40 s: 429 with Retry-After" in said
    assert "paused" not in words(Paused(host="h", seconds=0.0, cause="429"))


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch):
    monkeypatch.setattr("asyncfetch._progress.LINE_EVERY", 0.0)
    out = io.StringIO()
    with Progress("s/t", out) as progress:
        progress(ItemEnded(key="k", outcome=Outcome.OK, rows=3, bytes=10))
    assert out.getvalue().startswith("s/t: 1/0+ items, 3 rows")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7265, "2 h 1 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text

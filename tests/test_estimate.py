"""What a dry run foretells, and what the run then does."""

import json
import math

import pytest

from asyncfetch import testing
from asyncfetch._cli import run
from asyncfetch._estimate import seconds_by_rate, seconds_by_turns

EVENTS = ("neuroscout/predictor-events", "dataset_name=SherlockMerlin")
TRACES = ("neuromorpho/traces", "archive=Siegert")
NEURONS = ("neuromorpho/neurons",)


@pytest.fixture
def archive(monkeypatch):
    with testing.serve_in_thread(scale=0.1) as archive:
        for name, url in archive.environment().items():
            monkeypatch.setenv(name, url)
        yield archive


@pytest.fixture
def fetch(tmp_path, capsys):
    def fetch(*words):
        dest = str(tmp_path / "d")
        assert run(["fetch", *words, "-o", dest, "--quiet", "--json"]) in {0, 1}
        return json.loads(capsys.readouterr().out)

    return fetch


@pytest.mark.parametrize("words", [EVENTS, TRACES, NEURONS])
@pytest.mark.parametrize("limit", [(), ("--limit", "1")])
def test_requests_and_items_are_those_of_the_run(archive, fetch, words, limit):
    found = fetch(*words, *limit, "--dry-run", "--sample", "0")
    listing = len(archive.log)
    assert found["asked_for_this"] == listing
    report = fetch(*words, *limit)
    assert found["items"] == sum(report["items"].values())
    assert found["requests"] == report["requests"] == len(archive.log) - listing
    assert found["bytes"] > 0


@pytest.mark.parametrize("words", [EVENTS, TRACES, NEURONS])
def test_measured_items_tell_the_bytes(archive, fetch, words):
    """A whole sample is exact; what is in a dataset counts as well."""
    found = fetch(*words, "--dry-run", "--sample", "1000")
    assert "measured" in found["bytes_basis"]
    assert found["bytes"] == fetch(*words)["bytes"]


@pytest.mark.parametrize("words", [EVENTS, ("neuromorpho/traces",), NEURONS])
def test_a_few_items_tell_the_bytes_of_all(archive, fetch, words):
    listing = fetch(*words, "--dry-run", "--sample", "0")["asked_for_this"]
    found = fetch(*words, "--dry-run")
    assert found["bytes"] == pytest.approx(fetch(*words)["bytes"], rel=0.2)
    asked = found["asked_for_this"] - listing
    assert asked == min(8, math.ceil(found["items"] / 4))


def test_what_cannot_be_had_is_no_reason_to_foretell_nothing(archive, fetch):
    """Some of its records cannot be given; a run takes them out of their pages."""
    found = fetch("neurovault/images", "--dry-run", "--sample", "1000")
    report = fetch("neurovault/images")
    assert report["items"]["split"] > 0
    assert found["items"] < sum(report["items"].values())
    assert 0 < found["bytes"] < 2 * report["bytes"]


def test_a_sample_is_spread_over_the_plan(archive, fetch):
    fetch(*EVENTS, "--dry-run", "--sample", "0")
    listing = len(archive.log)
    found = fetch(*EVENTS, "--dry-run", "--sample", "4")
    sampled = [entry.target for entry in archive.log][2 * listing :]
    assert found["asked_for_this"] == listing + 4
    assert len({target.partition("&")[0] for target in sampled}) == 4  # predictors
    assert found["requests"] == listing + found["items"]


def test_what_is_there_is_not_asked_and_tells_the_bytes(archive, fetch):
    first = fetch(*EVENTS, "--limit", "10")
    asked = len(archive.log)
    found = fetch(*EVENTS, "--dry-run", "--limit", "20")
    assert len(archive.log) == asked  # the plan is known
    assert found["already_there"] == 10
    assert found["requests"] == 10
    assert found["bytes_basis"] == "the 10 items there"
    assert found["bytes"] < 20 * first["bytes"]
    fetch(*EVENTS)
    asked = len(archive.log)
    found = fetch(*EVENTS, "--dry-run")
    assert (found["requests"], found["bytes"]) == (0, 0)
    assert found["seconds_at_polite_rate"] == 0
    assert len(archive.log) == asked


def test_the_rate_tells_the_time(archive, fetch):
    found = fetch(*EVENTS, "--dry-run", "--rate", "2")
    count = found["requests"]
    assert found["rate"] == 2
    assert (count - 1) / 2 <= found["seconds_at_polite_rate"] <= (count + 1) / 2
    assert not found["is_least"]


def test_without_a_rate_the_answers_tell_it():
    assert seconds_by_rate(3, 10, None, 0.2) == 0
    assert seconds_by_turns(3, 10, 4, 0.2) == pytest.approx(0.2 * (3 + 3))
    # Five listings of 1 s each, and the last of 11 requests leaves 2 s after the first.
    assert seconds_by_rate(5, 11, 5.0, 1.0) == pytest.approx(5 + 2 + 1)


def test_another_plan_is_refused_without_a_question(archive, fetch, tmp_path, capsys):
    fetch(*TRACES, "--limit", "1")
    asked = len(archive.log)
    assert run(["fetch", *EVENTS, "-o", str(tmp_path / "d"), "--dry-run"]) == 2
    assert "another" in capsys.readouterr().err
    assert len(archive.log) == asked


def test_a_person_reads_it_in_four_lines(archive, tmp_path, capsys):
    words = [*TRACES, "-o", str(tmp_path / "t"), "--dry-run", "--rate", "1"]
    assert run(["fetch", *words, "--sample", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "SWC files" in lines[0]
    assert "usual sizes" in lines[2]
    assert "at 1 requests/s" in lines[3]
    assert not list(tmp_path.iterdir())

"""What processes remember of a host, and how they share it."""

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import testing
from asyncfetch._pace import Learned
from asyncfetch._profile import BEAT, FORGOTTEN, TRICKLE, Profile, profile_for
from tests.conftest import look

NOTHING = pytest.approx(0, abs=TRICKLE)
LEARNED = Learned(rate=4.5, delay=0.06, concurrency=2.0, at=datetime.now(UTC))


class FakeGate:
    def __init__(self, knows=None):
        self.share = float
        self.knows = knows
        self.recalled = None

    def learned(self):
        return self.knows

    def start_from(self, learned):
        self.recalled = learned


class Processes:
    """Some processes, and the time."""

    def __init__(self, directory, count):
        self.now = 100.0
        self.gates = [FakeGate() for _ in range(count)]
        self.all = [
            Profile("host", Path(directory), gate, clock=lambda: self.now)
            for gate in self.gates
        ]

    def beat(self, *which):
        for one in which:
            self.all[one].beat()
        return [self.gates[one].share() for one in which]


def test_a_process_alone_has_all_of_the_host(tmp_path):
    assert Processes(tmp_path, 1).beat(0) == [1.0]


def test_a_newcomer_gets_what_the_others_leave(tmp_path):
    processes = Processes(tmp_path, 3)
    assert processes.beat(0, 1) == [1.0, NOTHING]
    assert processes.beat(0, 1) == [0.5, 0.5]
    assert processes.beat(2, 0, 1) == [NOTHING, 1 / 3, 1 / 3]
    assert processes.beat(2) == [pytest.approx(1 / 3)]


def test_who_leaves_or_dies_frees_the_share(tmp_path):
    processes = Processes(tmp_path, 3)
    processes.beat(0, 1, 2, 0, 1, 2, 0, 1, 2)
    processes.all[2].leave()
    assert processes.beat(0, 1) == [0.5, 0.5]
    # From here on process 1 is dead.
    for _ in range(FORGOTTEN):
        processes.now += BEAT
        assert processes.beat(0) == [0.5]
    processes.now += BEAT
    assert processes.beat(0) == [1.0]
    # It was only asleep, and comes back as a newcomer.
    assert processes.beat(1) == [NOTHING]
    assert processes.beat(0, 1) == [0.5, 0.5]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2 * BEAT), st.booleans())))
def test_no_more_than_the_host_is_shared_among_those_who_live(steps):
    with tempfile.TemporaryDirectory() as directory:
        processes = Processes(directory, 4)
        alive = {}  # when each beat last
        for which, seconds, leaves in steps:
            processes.now += seconds
            if leaves and which in alive:
                processes.all[which].leave()
                del alive[which]
                continue
            processes.beat(which)
            alive[which] = processes.now
            awake = [
                one
                for one, at in alive.items()
                if processes.now - at < FORGOTTEN * BEAT
            ]
            assert sum(processes.gates[one].share() for one in awake) <= 1 + 4 * TRICKLE


def test_a_lesson_outlives_its_process(tmp_path):
    first = Profile("host", tmp_path, FakeGate(LEARNED))
    first.beat()
    first.leave()
    gate = FakeGate()
    Profile("host", tmp_path, gate).beat()
    assert gate.recalled == LEARNED
    other = FakeGate()
    Profile("host:81", tmp_path, other).beat()
    assert other.recalled is None


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 0},
        {"rate": "4"},
        {"delay": math.inf},
        {"concurrency": None},
        {"at": "yesterday"},
        {"at": (datetime.now(UTC) - timedelta(days=31)).isoformat()},
        {"at": (datetime.now(UTC) + timedelta(days=1)).isoformat()},
        {"at": "2026-11-20T00:00:00"},
    ],
)
def test_an_old_or_impossible_lesson_is_forgotten(tmp_path, change):
    good = {"rate": 4.5, "delay": None, "concurrency": 2, "at": LEARNED.at.isoformat()}
    for learned, is_known in ((good, True), ({**good, **change}, False)):
        (tmp_path / "host.json").write_text(json.dumps({"learned": learned}))
        gate = FakeGate()
        Profile("host", tmp_path, gate).beat()
        assert (gate.recalled is not None) is is_known


@pytest.mark.parametrize("text", ["", "{", "[]", '{"processes": 3}', "\0", "{'a': 1}"])
def test_a_damaged_file_is_written_anew(tmp_path, text):
    (tmp_path / "host.json").write_text(text)
    gate = FakeGate(LEARNED)
    profile = Profile("host", tmp_path, gate)
    profile.beat()
    assert gate.share() == 1.0
    profile.leave()
    facts = json.loads((tmp_path / "host.json").read_text())
    assert facts["learned"]["rate"] == 4.5
    assert facts["processes"] == {}
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["host.json", "host.lock"]


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])
async def test_without_a_directory_everybody_goes_alone(
    tmp_path, caplog, anyio_backend
):
    (tmp_path / "file").write_text("")
    gate = FakeGate(LEARNED)
    profile = Profile("host", tmp_path / "file" / "cache", gate)
    with caplog.at_level(logging.DEBUG, "asyncfetch"):
        async with profile.run():
            await profile.join()
            await profile.keep_beating()
            await profile.join()
    assert gate.share() == 1.0
    assert len([one for one in caplog.records if one.name == "asyncfetch"]) == 1


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])
async def test_who_joins_has_a_share(tmp_path, anyio_backend):
    gone = Profile("host", tmp_path, FakeGate())
    await look(gone.beat)  # and never again
    gate = FakeGate()
    ticks = iter(range(1000))
    profile = Profile("host", tmp_path, gate, clock=lambda: float(next(ticks)))
    await profile.join()
    assert gate.share() > 0


async def test_a_client_that_closes_leaves_the_host_to_others(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCFETCH_CACHE", str(tmp_path))
    monkeypatch.setenv("ASYNCFETCH_CACHE_LOOPBACK", "1")
    async with testing.serve(scale=0.05) as archive:
        async with asyncfetch.Neuroscout(base_url=archive.neuroscout) as api:
            (known, *_) = [
                one for one in await api.analyses.get() if one["status"] == "PASSED"
            ]
            analysis = await api.analyses.get_analysis(known["hash_id"])
            await analysis.get_status()  # no run: it has no end of its own
            (facts,) = tmp_path.glob("*.json")
            assert len(json.loads(facts.read_text())["processes"]) == 1
        assert json.loads(facts.read_text())["processes"] == {}


async def test_who_closes_leaves_nothing_that_a_run_needs(tmp_path):
    profile = Profile("host", tmp_path, FakeGate())
    async with profile.run():
        await profile.join()
        await profile.part()
        facts = json.loads((tmp_path / "host.json").read_text())
        assert len(facts["processes"]) == 1
    facts = json.loads((tmp_path / "host.json").read_text())
    assert facts["processes"] == {}


async def test_nothing_is_remembered_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCFETCH_CACHE", str(tmp_path / "cache"))
    async with (
        testing.serve(scale=0.05) as archive,
        asyncfetch.Neuroscout(base_url=archive.neuroscout) as api,
    ):
        await api.datasets.get()
    assert not list(tmp_path.iterdir())
    assert profile_for("there", FakeGate(), is_loopback=True) is None
    assert profile_for("there", FakeGate(), is_loopback=False) is not None


def test_two_processes_together_stay_under_the_rate_of_a_host(tmp_path):
    """Each may ask 18 times a second, and the host refuses more than 20."""
    environment = {
        **os.environ,
        "ASYNCFETCH_CACHE": str(tmp_path / "cache"),
        "ASYNCFETCH_CACHE_LOOPBACK": "1",
    }
    with testing.serve_in_thread(scale=0.05, faults="throttle=20/s") as archive:
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "asyncfetch", "fetch"),
                    *("neuroscout/predictor-events", "dataset_name=SherlockMerlin"),
                    *("-o", str(tmp_path / name), "--quiet", "--limit", "40"),
                    *("--rate", "18", "--base-url", archive.neuroscout),
                ],
                env=environment,
            )
            for name in ("one", "two")
        ]
        assert [one.wait(60) for one in processes] == [0, 0]
        statuses = [entry.status for entry in archive.log]
    assert len(statuses) == 2 * 44
    assert statuses.count(429) == 0
    (facts,) = (tmp_path / "cache").glob("*.json")
    assert json.loads(facts.read_text())["processes"] == {}

"""The blocking clients: all that the others have, and no thread left behind."""

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
import threading

import pandas as pd
import pytest

import asyncfetch
from asyncfetch import sync, testing
from asyncfetch.testing import Fault


@pytest.fixture
def archive():
    with testing.serve_in_thread(scale=0.05) as archive:
        yield archive


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop():
    """Here everything blocks, inside a loop as well: that is what it is for."""


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert not [one for one in threading.enumerate() if one not in before]


@pytest.fixture
def api(archive):
    with sync.Neuroscout(*archive.account, base_url=archive.neuroscout) as api:
        yield api


def test_the_tutorial_runs_without_await(api):
    dataset = api.datasets.get(name="SherlockMerlin")[0]
    assert dataset["id"] == 5
    first = api.runs.get(
        dataset_name="NaturalisticNeuroimagingDatabase", task_name="500daysofsummer"
    )[0]
    assert first["dataset_id"] == 28
    frame = api.predictor_events.get(
        predictor_name="speech",
        dataset_name="Sherlock_Merlin",
        task_name="MerlinMovie",
        output_type="df",
    )
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns[:6]) == [
        "duration", "onset", "predictor_id", "run_id", "value", "predictor_name",
    ]  # fmt: skip
    assert api.user.get()["user_name"] == "example_user"
    assert {one["name"] for one in api.user.get_predictors()} >= {"my_ratings"}


def test_streams_and_downloads_are_there_too(archive, api, tmp_path):
    rows = 0
    with api.predictor_events.stream(predictor_id=12725, dataset_id=5) as batches:
        for batch in batches:
            rows += batch.num_rows
    assert rows == archive.truth.count_events(12725)
    plan = api.runs.plan(dataset_id=5)
    assert "neuroscout/runs" in plan.name
    report = sync.download(plan, tmp_path / "runs")
    assert report.rows == 36
    assert isinstance(report, asyncfetch.Report)
    with pytest.raises(asyncfetch.ConfigurationError, match=r"of asyncfetch\.sync"):
        sync.download(asyncfetch.Neuroscout().runs.plan(), tmp_path / "x")


def test_it_works_inside_a_running_loop(archive):
    async def notebook():
        with sync.Neuroscout(base_url=archive.neuroscout) as api:
            return api.datasets.get(5)["name"]

    assert asyncio.run(notebook()) == "SherlockMerlin"


def test_errors_and_the_other_client_come_through(archive, api):
    with pytest.raises(asyncfetch.NotFound, match="did you mean"):
        api.runs.get(dataset_name="SherlokMerlin")
    with pytest.raises(asyncfetch.ConfigurationError, match="no table"):
        api.table("nothing")
    with pytest.raises(AttributeError):
        api.nothing  # noqa: B018
    with sync.NeuroMorpho(base_url=archive.neuromorpho) as other:
        assert len(other.neurons.get(limit=3)) == 3
    assert "datasets" in dir(api)
    assert repr(api).startswith("<Neuroscout at")


def test_a_client_may_be_closed_twice_and_used_again(archive):
    api = sync.Neuroscout(base_url=archive.neuroscout)
    api.close()
    for _ in range(2):
        assert api.datasets.get(5)["id"] == 5
        api.close()
        api.close()


def test_a_client_that_is_dropped_ends_its_thread(archive):
    api = sync.Neuroscout(base_url=archive.neuroscout)
    table = api.datasets
    del api
    assert table.get(5)["id"] == 5
    del table


def test_the_environment_sets_it_up(archive, monkeypatch):
    monkeypatch.setenv("ASYNCFETCH_NEUROSCOUT_URL", archive.neuroscout)
    with sync.Neuroscout.from_env() as api:
        assert api.datasets.get(5)["id"] == 5


SCRIPT = """
    import sys
    import asyncfetch
    api = asyncfetch.sync.Neuroscout(base_url=sys.argv[1])
    print(api.datasets.get(5)["name"], flush=True)
    try:
        api.runs.get()
    except KeyboardInterrupt:
        print("interrupted", api.datasets.get(9)["name"], flush=True)
"""


def test_a_script_that_never_closes_ends_and_can_be_interrupted(archive):
    archive.script("/runs", [Fault(delay=60)])
    script = subprocess.Popen(
        [sys.executable, "-Werror", "-c", textwrap.dedent(SCRIPT), archive.neuroscout],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert script.stdout.readline() == "SherlockMerlin\n"
    asked = threading.Event()
    while not any("/runs" in target for target in archive._asked):
        asked.wait(0.01)
    script.send_signal(signal.SIGINT)
    out, err = script.communicate(timeout=30)
    assert (out, err, script.returncode) == ("interrupted Life\n", "", 0)

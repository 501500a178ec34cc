"""Design tables and events files: runs, tasks and missing values kept apart."""

import importlib.util
import json
import logging
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch.services import _design, _resample
from asyncfetch.services._design import RunInfo
from tests.conftest import look

pytestmark = pytest.mark.anyio

HAS_BIDS = importlib.util.find_spec("bids") is not None


async def test_a_design_table_has_a_row_a_scan_of_each_run(archive, api):
    frame = await api.fetch_predictors(["speech", "rms"], "SherlockMerlin")
    assert list(frame.columns) == [
        "onset", "duration", "speech", "rms", "run_id", "subject", "task",
    ]  # fmt: skip
    assert set(frame["duration"]) == {1.5}
    runs = {one["id"]: one for one in archive.truth.runs(dataset_id=5)}
    assert set(frame["run_id"]) == set(runs)
    for run_id, mine in frame.groupby("run_id"):
        assert len(mine) == math.ceil(runs[run_id]["duration"] / 1.5)
        assert mine["onset"].iloc[0] == 0
        assert set(mine["subject"]) == {runs[run_id]["subject"]}
        assert set(mine["task"]) == {runs[run_id]["task_name"]}
    assert frame[["speech", "rms"]].notna().all(axis=None)
    assert frame["speech"].max() > 0.1


async def test_it_takes_one_request_a_list_and_not_one_a_run(archive, api):
    await api.fetch_predictors(["speech", "rmse"], "SherlockMerlin", run_id=[117, 118])
    asked = [one.target.removeprefix("/neuroscout/api") for one in archive.log]
    assert len(asked) == 8
    assert sum(one.startswith("/predictor-events") for one in asked) == 2


async def test_tasks_with_other_repetition_times_are_kept_apart(api):
    frame = await api.fetch_predictors("rms", ["Life", "Budapest"], run=1)
    by_task = frame.groupby("task")["duration"].unique()
    assert {task: list(one) for task, one in by_task.items()} == {
        "life": [2.5],
        "movie": [1.0],
    }
    assert frame["run"].dtype == "Int64"
    assert frame["acquisition"].isna().any()


async def test_a_missing_value_takes_nothing_else_with_it(archive, api):
    names = ["concreteness", "FramewiseDisplacement"]
    frame = await api.fetch_predictors(
        names, "Life", resample=False, subject="rid000001"
    )
    runs = {one["id"] for one in archive.truth.runs(dataset_id=9, subject="rid000001")}
    ids = [archive.truth.predictors(dataset_id=9, name=name)[0]["id"] for name in names]
    events = archive.truth.events(ids[1], runs)
    assert sum(one["value"] == "n/a" for one in events) > 0
    wanted = sorted(float(e["value"]) for e in events if e["value"] != "n/a")
    assert sorted(frame["FramewiseDisplacement"].dropna()) == pytest.approx(wanted)
    scans = await api.fetch_predictors(names, "Life", subject="rid000001")
    assert scans[names].notna().all(axis=None)


async def test_words_are_refused_and_named(api):
    with pytest.raises(asyncfetch.ConfigurationError, match="words in caption"):
        await api.fetch_predictors(["caption", "speech"], "Life")
    with pytest.raises(asyncfetch.ConfigurationError, match="speech never do"):
        await api.fetch_predictors("speech", "Life", rescale=True)
    with pytest.raises(asyncfetch.ConfigurationError, match="got none"):
        await api.fetch_predictors([], "Life")
    with pytest.raises(asyncfetch.ConfigurationError, match="return_type"):
        await api.fetch_predictors("rms", "Life", return_type="list")
    with pytest.raises(asyncfetch.NotFound, match="did you mean rms"):
        await api.fetch_predictors("rmss", "Life")


async def test_rescaled_events_have_mean_0_and_deviation_1(api):
    frame = await api.fetch_predictors(
        ["rms", "brightness"], "Life", rescale=True, resample=False
    )
    assert frame[["rms", "brightness"]].mean().abs().max() < 1e-12
    assert frame[["rms", "brightness"]].std().to_list() == pytest.approx([1, 1])


async def test_events_that_share_everything_are_said_to_be_left_out(api, caplog):
    caplog.set_level(logging.WARNING)
    frame = await api.fetch_predictors("face_probability", "Life", resample=False)
    assert not frame.duplicated(["run_id", "onset", "duration"]).any()
    assert "left out of the table" in caplog.text


@pytest.mark.skipif(HAS_BIDS, reason="pybids is installed")
async def test_without_pybids_a_collection_says_what_to_install(archive, api):
    with pytest.raises(asyncfetch.ConfigurationError, match=r"asyncfetch\[bids\]"):
        await api.fetch_predictors("rms", "Life", return_type="collection")
    assert not archive.log


def numbers(seed, digits, count=60, seconds=150.0):
    random = np.random.default_rng(seed)
    onset = np.sort(np.round(random.uniform(0, seconds - 3, count), digits))
    duration = np.maximum(np.round(random.uniform(0, 2, count), digits), 10.0**-digits)
    return onset, duration, random.normal(size=count)


@pytest.mark.skipif(not HAS_BIDS, reason="needs pybids")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("digits", [3, 2, 1, 0])
@pytest.mark.parametrize("repetition", [1.0, 1.5, 2.0, 2.5])
def test_samples_are_those_of_pybids(digits, repetition):
    from bids.variables import SparseRunVariable
    from bids.variables.entities import RunInfo as Theirs

    onset, duration, amplitude = numbers(1, digits)
    data = pd.DataFrame({"onset": onset, "duration": duration, "amplitude": amplitude})
    run = Theirs(
        duration=151.3, tr=repetition, image=None,
        n_vols=math.ceil(151.3 / repetition), entities={"subject": "1"},
    )  # fmt: skip
    theirs = SparseRunVariable("x", data.assign(subject="1"), run, "events")
    dense = theirs.to_dense(1 / repetition)
    theirs, scans = dense.values.to_numpy().ravel(), len(dense.index)  # noqa: PD011
    mine = _resample.resampled(
        onset, duration, amplitude, seconds=151.3, rate=1 / repetition
    )
    assert len(mine) == len(theirs)
    assert np.abs(mine - theirs).max() < 1e-9
    info = RunInfo(
        id=7, entities={"subject": "1"}, task="t", seconds=151.3, repetition=repetition
    )
    events = data.assign(run_id=7, predictor_name="x")
    table = _design.wide(events, ["x"], {7: info}, resample=True)
    # It cannot make a table of samples that are not as many as its scans; here they go.
    assert len(table) == scans
    assert np.abs(table["x"] - theirs[:scans]).max() < 1e-9


@pytest.mark.skipif(not HAS_BIDS, reason="needs pybids")
@pytest.mark.filterwarnings("ignore")
async def test_a_collection_is_that_of_pybids(api):
    found = await api.fetch_predictors(
        ["rms", "brightness"], "Life", return_type="collection", resample=False,
        subject="rid000001",
    )  # fmt: skip
    assert type(found).__name__ == "BIDSRunVariableCollection"
    assert set(found.variables) == {"rms", "brightness"}
    mine = await api.fetch_predictors(
        ["rms", "brightness"], "Life", resample=False, subject="rid000001"
    )
    theirs = found.to_df()
    key = ["run", "onset"]
    assert np.allclose(
        theirs.sort_values(key)["rms"].astype(float),
        mine.sort_values(key)["rms"],
        equal_nan=True,
    )


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), min_size=1, max_size=20)
)
def test_boxes_on_the_grid_of_the_scans_come_as_they_are(events):
    events = sorted(events)
    onset = np.array([one for one, _ in events], float)
    duration = np.array([one for _, one in events], float)
    amplitude = np.arange(1.0, len(events) + 1)
    got = _resample.resampled(onset, duration, amplitude, seconds=100.0, rate=1.0)
    wanted = np.zeros(100)
    for (begin, length), value in zip(events, amplitude, strict=True):
        wanted[begin : begin + length] = value
    if np.gcd.reduce(np.concatenate([onset, duration]).astype(int)) == 1:
        assert (got == wanted).all()
    assert len(got) == 100


# --- events files ---------------------------------------------------------------------


async def test_events_files_are_where_the_standard_has_them(archive, api, tmp_path):
    names = ["speech", "caption", "trial_type"]
    files = await api.export_events(
        tmp_path, names, "Budapest", subject=["sid000000", "sid000001"]
    )
    assert [str(one.relative_to(tmp_path)) for one in files] == [
        "sub-sid000000/func/sub-sid000000_task-movie_run-1_events.tsv",
        "sub-sid000000/func/sub-sid000000_task-movie_run-2_events.tsv",
        "sub-sid000001/func/sub-sid000001_task-movie_acq-mb8_run-1_events.tsv",
        "sub-sid000001/func/sub-sid000001_task-movie_acq-mb8_run-2_events.tsv",
    ]

    def read(path):
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)

    table = await look(read, files[0])
    assert list(table.columns) == ["onset", "duration", *names]
    assert (table["onset"].astype(float).diff().dropna() >= 0).all()
    assert not table.isin([""]).any(axis=None)
    run = archive.truth.runs(dataset_id=30, subject="sid000000", number=1)[0]["id"]
    for name in names:
        (one,) = archive.truth.predictors(dataset_id=30, name=name)
        events = archive.truth.events(one["id"], run)
        wanted = sorted(" ".join(e["value"].split()) or "n/a" for e in events)
        got = sorted(table[name])
        assert [v for v in got if v != "n/a"] == [v for v in wanted if v != "n/a"]
    assert "n/a" in set(table["duration"])
    text = await look((tmp_path / "task-movie_events.json").read_text)
    about = json.loads(text)
    assert about["speech"]["Description"] == "Speech (binarized, on or off)"
    assert "scene" in about["caption"]["Levels"]
    assert "Levels" not in about["speech"]
    assert set(about) == set(table.columns)
    left = await look(lambda: [one.name for one in tmp_path.rglob("*.part")])
    assert left == []


@pytest.mark.parametrize("label", ["../../x", "a/b", "sub 1", "ü1"])
def test_a_name_from_the_network_cannot_leave_the_folder(label):
    info = RunInfo(
        id=1, entities={"subject": label}, task=label, seconds=1.0, repetition=1.0
    )
    path = _design.bids_name(info)
    assert ".." not in path.parts
    assert len(path.parts) == 3
    assert path.name.isascii()
    with pytest.raises(asyncfetch.ConfigurationError, match="letter or digit"):
        _design._label("../..")


async def test_two_runs_of_one_name_are_not_written_over_each_other(api, tmp_path):
    events = pd.DataFrame(
        {
            "onset": [0.0, 0.0], "duration": [1.0, 1.0], "run_id": [1, 2],
            "predictor_name": ["x", "x"], "value": ["1", "2"], "amplitude": [1.0, 2.0],
        }
    )  # fmt: skip
    one = {"entities": {"subject": "1"}, "task": "t", "seconds": 9.0, "repetition": 1.0}
    runs = {n: RunInfo(id=n, **one) for n in (1, 2)}

    class Table:
        def to_pandas(self):
            return events

    def write():
        _design.write_events(tmp_path, [Table()], ["x"], runs, {})

    with pytest.raises(asyncfetch.ConfigurationError, match="runs 1 and 2 would both"):
        await look(write)

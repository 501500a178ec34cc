"""What surprises clients of Neuroscout's server, one by one, on real sockets.

Others of these are where they belong: names and their data sets, empty lists and
repeated parameters in test_neuroscout.py; tokens in test_neuroscout_user.py; what a
compiled analysis drops, objects for ids and old reports in test_neuroscout_analyses.py;
collections that stay pending in test_neuroscout_collections.py.
"""

import math

import pandas as pd
import pytest

import asyncfetch
from asyncfetch.testing import Fault

pytestmark = pytest.mark.anyio


async def test_a_wrong_path_answers_html_under_200_and_is_an_error(archive):
    async with asyncfetch.Neuroscout(base_url=f"{archive.neuroscout}/typo") as api:
        with pytest.raises(asyncfetch.ItemError, match="HTML") as caught:
            await api.tasks.get()
    assert isinstance(caught.value.cause, asyncfetch.IntegrityError)


async def test_a_502_that_stays_is_an_error_in_the_end(archive, api):
    archive.script("/tasks", [Fault(status=502, body=b"<html>Bad Gateway")] * 99)
    with pytest.raises(asyncfetch.AsyncfetchError, match="502"):
        await api.tasks.get()


async def test_long_lists_are_split_by_characters(archive, api):
    ids = list(range(100_000, 101_500))
    assert await api.predictors.get(run_id=[*ids, 117], name="speech") != []
    names = [f"{'long ' * 20}{n}" for n in range(60)]
    with pytest.raises(asyncfetch.NotFound):
        await api.predictor_events.get(predictor_name=names, dataset_id=5)
    assert all(len(one.target) < 4081 + len("/neuroscout") for one in archive.log)
    assert {one.status for one in archive.log} == {200}


async def test_several_values_go_into_one_parameter(archive, api):
    await api.runs.get(dataset_id=10, number=(1, 2), subject={"rid000005"})
    (one,) = archive.log
    assert one.target.endswith("/runs?dataset_id=10&subject=rid000005&number=1,2")


async def test_a_comma_in_a_name_is_not_two_names(archive, api):
    assert await api.runs.get(dataset_id=10, subject="rid000005,rid000011") == []
    assert await api.datasets.get(name="Life,raiders") == []


async def test_nan_in_json_is_a_missing_number(api):
    frame = await api.predictors.get(dataset_id=5, output_type="df")
    assert frame["max"].isna().any()
    assert frame["num_na"].dtype == pd.Int64Dtype()
    records = await api.predictors.get(dataset_id=5, name="concreteness")
    assert math.isnan(records[0]["max"])


async def test_a_key_that_is_absent_stays_absent_in_records(api):
    frame = await api.predictors.get(
        dataset_id=5, name=["X", "speech"], output_type="df"
    )
    by_name = frame.set_index("name")["extracted_feature"]
    assert by_name["X"] is None
    assert by_name["speech"]["extractor_name"] == "ComplexTextExtractor"
    (raw,) = await api.predictors.get(dataset_id=5, name="X")
    assert "extracted_feature" not in raw
    events = await api.predictor_events.get(
        predictor_name=["X", "speech"], dataset_id=5, run_id=117
    )
    assert {"stimulus_id" in one for one in events} == {True, False}


async def test_values_stay_text_and_durations_may_lack(api):
    frame = await api.predictor_events.get(
        predictor_name=["trial_type", "rms"], dataset_id=9, output_type="df"
    )
    assert frame["value"].map(type).eq(str).all()
    words = frame[frame["predictor_name"] == "trial_type"]
    assert words["duration"].isna().all()
    assert words["amplitude"].isna().all()
    assert frame[frame["predictor_name"] == "rms"]["amplitude"].notna().all()


async def test_rows_come_sorted_whatever_the_server_sends(api):
    frame = await api.predictor_events.get(
        predictor_name=["speech", "rms"], dataset_id=5, output_type="df"
    )
    order = ["predictor_id", "run_id", "onset"]
    assert frame[order].equals(frame[order].sort_values(order, ignore_index=True))


async def test_a_cut_time_is_not_taken_for_another(api):
    table = await api.analyses.get(output_type="arrow")
    assert "2020-02-11T09:4" in table["modified_at"].to_pylist()
    frame = await api.analyses.get(output_type="df")
    assert not pd.api.types.is_datetime64_any_dtype(frame["modified_at"])


async def test_an_inactive_dataset_is_unlisted_but_served(archive, api):
    assert 21 not in {one["id"] for one in await api.datasets.get()}
    assert (await api.datasets.get(21))["name"] == "PilotMovie"
    assert {one["dataset_id"] for one in await api.tasks.get(dataset_id=21)} == {21}
    runs = await api.runs.get(dataset_id=21, active_only=False)
    assert len(runs) == len(archive.truth.runs(dataset_id=21))


async def test_integers_with_gaps_are_no_floats(api):
    frame = await api.predictor_events.get(
        predictor_name="rms", dataset_id=30, output_type="df"
    )
    assert frame["number"].dtype == pd.Int32Dtype()
    assert frame["acquisition"].isna().any()
    both = await api.predictor_events.get(
        predictor_name="rms", dataset_id=5, output_type="df"
    )
    assert both["number"].isna().all()
    assert both["number"].dtype == pd.Int32Dtype()
    assert both["session"].isna().all()

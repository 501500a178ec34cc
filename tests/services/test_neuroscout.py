"""Neuroscout: names resolved right, in few round trips; events complete and typed."""

import gzip
import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import download, open_dataset
from asyncfetch._model import Item, Request, Response
from asyncfetch.services import neuroscout
from asyncfetch.testing import Fault
from tests.conftest import look

pytestmark = pytest.mark.anyio


def targets(archive):
    return [one.target.removeprefix("/neuroscout/api") for one in archive.log]


async def test_the_tutorial_of_the_existing_client_runs(api):
    (dataset,) = await api.datasets.get(name="SherlockMerlin")
    assert dataset["long_description"].startswith(
        "This dataset includes the data of 18"
    )
    run = (await api.runs.get(dataset_id=5))[0]
    assert run["dataset_id"] == 5
    assert (await api.runs.get(1428))["duration"] == 1453.5
    runs = await api.runs.get(
        dataset_name="NaturalisticNeuroimagingDatabase", task_name="500daysofsummer"
    )
    assert 1581 in [one["id"] for one in runs]
    names = [one["name"] for one in await api.predictors.get(run_id=1581)]
    assert "sharpness" in names
    same = await api.predictors.get(
        dataset_name="NaturalisticNeuroimagingDatabase", task_name="500daysofsummer"
    )
    assert {"sharpness", "tool"} <= {one["name"] for one in same}
    first = (await api.predictor_events.get(predictor_id=40254, run_id=1581))[:2]
    assert first == [
        {
            "duration": 1.0,
            "onset": onset,
            "predictor_id": 40254,
            "run_id": 1581,
            "value": value,
        }
        for onset, value in ((0.0, "0.03137254901960784"), (1.0, "0.0196078431372549"))
    ]
    frame = await api.predictor_events.get(
        predictor_name="speech",
        dataset_name="Sherlock_Merlin",
        task_name="MerlinMovie",
        output_type="df",
    )
    assert set(frame["predictor_id"]) == {12725}
    assert (frame["subject"][frame["run_id"] == 134] == "36").all()
    assert set(frame["task_name"]) == {"MerlinMovie"}


async def test_events_by_name_take_three_round_trips(archive, api):
    await api.predictor_events.get(
        predictor_name="speech", dataset_name="SherlockMerlin"
    )
    asked = targets(archive)
    assert sorted(asked[:2]) == ["/datasets", "/predictors?name=speech&newest=false"]
    assert asked[2] == "/runs?dataset_id=5"
    assert all(one.startswith("/predictor-events?") for one in asked[3:])


async def test_ids_are_ascending_and_urls_are_short_enough(archive, api):
    await api.predictor_events.get(dataset_name="SherlockMerlin", limit=1)
    for target in targets(archive):
        assert len("/api" + target) <= 4081
        if target.startswith("/predictor-events?"):
            ids = target.split("run_id=")[1].split(",")
            assert ids == sorted(ids, key=int)


@given(
    ids=st.sets(st.integers(1, 10**6), max_size=2000),
    durations=st.lists(st.none() | st.floats(1, 10**5), min_size=1),
    density=st.floats(0.01, 100),
)
def test_batches_of_runs_cover_every_run_once_within_the_bounds(
    ids, durations, density
):
    ids = sorted(ids)
    runs = [
        [one] + [None] * 7 + [durations[n % len(durations)]]
        for n, one in enumerate(ids)
    ]
    items = list(neuroscout._items_of([10**6, "p"], runs, density, timed=False))
    batches = [item.context["runs"] for item in items]
    assert [run[0] for batch in batches for run in batch] == ids
    for item, batch in zip(items, batches, strict=True):
        assert len(item.request.target) <= neuroscout.MAX_TARGET
        rows = density * sum(run[8] or neuroscout.RUN_DURATION for run in batch)
        assert rows <= neuroscout.ROWS_PER_ITEM or len(batch) == 1


def rows_at(dest):
    return open_dataset(dest).rows.to_table()


async def test_an_answer_with_far_more_rows_than_expected_is_asked_for_in_parts(
    archive, api, tmp_path, monkeypatch
):
    wanted = {"dataset_name": "SherlockMerlin", "predictor_name": "speech"}
    await download(api.predictor_events.plan(**wanted), tmp_path / "whole")
    whole = await look(rows_at, tmp_path / "whole")
    runs = len(set(whole["run_id"].to_pylist()))
    monkeypatch.setattr(neuroscout, "MOST_ROWS", whole.num_rows // 2)
    monkeypatch.setattr(neuroscout, "ROWS_PER_ITEM", whole.num_rows // 3)
    monkeypatch.setattr(neuroscout, "EVENTS_PER_SECOND", 0.001)
    before = len(archive.log)
    report = await download(api.predictor_events.plan(**wanted), tmp_path / "parts")
    order = [("run_id", "ascending"), ("onset", "ascending"), ("value", "ascending")]
    parts = await look(rows_at, tmp_path / "parts")
    assert parts.sort_by(order).equals(whole.sort_by(order))
    assert report.items["split"] == 1
    assert report.items["ok"] >= 3
    asked = [one for one in archive.log[before:] if "/predictor-events" in one.target]
    assert len(asked) == 1 + report.items["ok"]
    both = {**wanted, "predictor_name": ["speech", "rms"]}
    got = await api.predictor_events.get(**both, output_type="arrow")
    some = await api.predictor_events.get(**both, output_type="arrow", limit=100)
    monkeypatch.setattr(neuroscout, "MOST_ROWS", 10**9)
    expected = await api.predictor_events.get(**both, output_type="arrow")
    order = ["predictor_id", "run_id", "onset"]
    assert got.select(order).equals(expected.select(order))
    assert some.select(order).equals(expected.select(order).slice(0, 100))
    # A run is never divided, however many rows it has.
    monkeypatch.setattr(neuroscout, "MOST_ROWS", 5)
    monkeypatch.setattr(neuroscout, "ROWS_PER_ITEM", 1)
    report = await download(api.predictor_events.plan(**wanted), tmp_path / "runs")
    assert report.rows == whole.num_rows
    assert report.items["ok"] == runs


async def test_a_whole_dataset_without_names_is_complete(archive, api):
    table = await api.predictor_events.get(
        dataset_name="SherlockMerlin", output_type="arrow"
    )
    public = archive.truth.predictors(dataset_id=5, private=False)
    runs = {one["id"] for one in archive.truth.runs(dataset_id=5)}
    newest = {}
    for one in public:
        newest[one["name"]] = max(one["id"], newest.get(one["name"], 0))
    assert table.num_rows == archive.truth.count_events(newest.values(), runs)


async def test_run_filters_narrow_to_their_runs(archive, api):
    runs = archive.truth.runs(dataset_id=5)
    subject = runs[0]["subject"]
    table = await api.predictor_events.get(
        predictor_name="speech",
        dataset_name="SherlockMerlin",
        subject=subject,
        output_type="arrow",
    )
    assert set(table["subject"].to_pylist()) == {subject}
    wanted = {one["id"] for one in runs if one["subject"] == subject}
    assert set(table["run_id"].to_pylist()) <= wanted
    both = await api.runs.get(dataset_id=5, run_id=[runs[0]["id"], 10**8])
    assert [one["id"] for one in both] == [runs[0]["id"]]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (
            {"dataset_name": "SherlokMerlin", "predictor_name": "speech"},
            "SherlockMerlin",
        ),
        ({"dataset_name": "SherlockMerlin", "task_name": "Merlin"}, "MerlinMovie"),
        (
            {"dataset_name": "SherlockMerlin", "predictor_name": ["speech", "speach"]},
            "no predictor 'speach'.*speech",
        ),
        ({"predictor_name": "no such predictor"}, "no public predictor"),
        ({"dataset_id": 99999}, "404"),
        ({"dataset_id": 5, "subject": "nobody"}, "no run with .*subject=nobody"),
        ({"predictor_id": 99999999}, "404"),
    ],
)
async def test_a_name_that_is_not_there_is_said_with_the_nearest(api, filters, message):
    with pytest.raises(asyncfetch.NotFound, match=message):
        await api.predictor_events.get(**filters)


async def test_a_predictor_of_several_datasets_needs_one_named(api):
    with pytest.raises(asyncfetch.ConfigurationError, match="pass dataset_name"):
        await api.predictor_events.get(predictor_name="speech")


async def test_a_predictor_of_another_dataset_is_refused(api):
    with pytest.raises(asyncfetch.ConfigurationError, match="belongs to data set 28"):
        await api.predictor_events.get(predictor_id=40254, dataset_id=5)


async def test_an_inactive_dataset_is_found_by_its_id(archive, api):
    active = {one["id"] for one in await api.datasets.get()}
    hidden = next(one for one in archive.truth.datasets() if one["id"] not in active)
    table = await api.predictor_events.get(dataset_id=hidden["id"], output_type="arrow")
    assert set(table["run_id"].to_pylist()) <= set(hidden["runs"])
    assert table.num_rows
    assert set(table["dataset_name"].to_pylist()) == {hidden["name"]}


@pytest.mark.parametrize("body", [b"[1, 2]", b'[{"id": 1}]', b'{"a": 1}'])
async def test_a_server_that_is_another_one_is_said_in_one_line(archive, api, body):
    archive.script("/datasets", [Fault(body=body)])
    with pytest.raises(asyncfetch.DecodeError, match="expected"):
        await api.predictor_events.get(predictor_name="speech", dataset_name="x")


async def test_nothing_to_narrow_by_is_refused(archive, api):
    with pytest.raises(asyncfetch.ConfigurationError, match="at least one of"):
        await api.predictor_events.get()
    assert not archive.log


async def test_a_private_upload_does_not_hide_a_public_predictor(archive, api):
    public = archive.truth.predictors(private=False)
    for hidden in archive.truth.predictors(private=True):
        same = [
            one
            for one in public
            if one["name"] == hidden["name"]
            and one["dataset_id"] == hidden["dataset_id"]
            and one["id"] < hidden["id"]
        ]
        if same:
            break
    else:
        pytest.fail("the archive has no private upload that hides a public name")
    names = {d["id"]: d["name"] for d in archive.truth.datasets()}
    table = await api.predictor_events.get(
        predictor_name=hidden["name"],
        dataset_name=names[hidden["dataset_id"]],
        output_type="arrow",
    )
    assert set(table["predictor_id"].to_pylist()) == {max(one["id"] for one in same)}


async def test_html_under_200_is_a_failure_and_not_an_empty_list(archive, api):
    archive.script(
        "/datasets", [Fault(body=b"<!doctype html><p>x", framing="length")] * 9
    )
    with pytest.raises(asyncfetch.ItemError) as caught:
        await api.datasets.get()
    assert isinstance(caught.value.cause, asyncfetch.IntegrityError)


RUNS = [
    [n, f"{n:02}", None, n if n > 1 else None, None, 4, "Task", "Set", 100.0]
    for n in (1, 2, 3)
]


HEAD = Response(status=200, headers={}, url="http://host/x", body=None)


def decode(events, *, raw=None):
    source = neuroscout._Events(filters={})
    item = Item(
        key="k",
        request=Request(target="/x"),
        context={"predictor": [7, "speech"], "runs": RUNS},
    )
    data = (
        raw if raw is not None else json.dumps(events, separators=(",", ":")).encode()
    )
    decoded = source.decode(item, iter([data]), HEAD, as_records=False)
    table = pa.Table.from_batches(decoded.batches)
    return decoded, table.cast(neuroscout._EVENTS) if events else table


def event(run, onset, value, **more):
    return {
        "onset": onset,
        "duration": 1.0,
        "value": value,
        "run_id": run,
        "predictor_id": 7,
        **more,
    }


def test_events_decode_to_the_columns_in_their_order_and_types():
    decoded, table = decode(
        [
            event(3, 2.0, "n/a"),
            event(1, 5.0, "0.5", duration=None),
            event(3, 1.0, "+1e3", stimulus_id=9),
            event(1, 4.0, 'caf\u00e9 },{ "x"\n'),
        ]
    )
    names = (
        "duration onset predictor_id run_id value predictor_name subject session "
        "number acquisition amplitude dataset_name task_name stimulus_id"
    )
    assert table.column_names == names.split()
    rows = table.to_pylist()
    assert [(r["run_id"], r["onset"]) for r in rows] == [(1, 4), (1, 5), (3, 1), (3, 2)]
    assert [r["amplitude"] for r in rows] == [None, 0.5, 1000.0, None]
    assert [r["duration"] for r in rows] == [1, None, 1, 1]
    assert [r["number"] for r in rows] == [None, None, 3, 3]
    assert [r["stimulus_id"] for r in rows] == [None, None, 9, None]
    assert rows[0]["value"] == 'caf\u00e9 },{ "x"\n'
    assert {r["subject"] for r in rows} == {"01", "03"}
    assert decoded.detail == {"runs_without_events": [2]}


def test_no_events_are_no_rows():
    decoded, _ = decode([])
    assert decoded.batches[0].num_rows == 0
    assert decoded.detail == {"runs_without_events": [1, 2, 3]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            event(9, 1.0, "1"),
            r"expected a run_id that was asked for, got 9 - at \$\[1\]",
        ),
        (
            event(2**64, 1.0, "1"),
            r"expected a run_id that was asked for, got 18446744073709551616 - at",
        ),
        (
            {**event(1, 1.0, "1"), "predictor_id": 8},
            r"expected a predictor_id that was asked for, got 8 - at \$\[1\]",
        ),
        ({**event(1, 1.0, "1"), "onset": "soon"}, r"expected `float`.*\$\[1\].onset"),
        ({**event(1, 1.0, "1"), "value": 1}, r"expected `str`.*\$\[1\].value"),
        ({"onset": 1.0}, "missing required field"),
    ],
)
def test_an_event_that_is_not_what_was_asked_for_is_refused(wrong, message):
    with pytest.raises(asyncfetch.DecodeError, match=message):
        decode([event(1, 0.0, "1"), wrong])


def test_an_error_tells_the_place_in_the_answer_and_not_in_its_slice():
    wrong = {**event(1, 9.0, "1"), "predictor_id": 8}
    text = json.dumps(
        [*(event(1, float(n), "1") for n in range(5)), wrong], separators=(",", ":")
    ).encode()
    slices = [text[:300], text[300:]]
    with pytest.raises(asyncfetch.DecodeError, match=r"\$\[5\]\.predictor_id"):
        neuroscout._event_columns(slices, 7, timed=False, most=math.inf)


def test_fields_of_a_later_server_are_noticed():
    decoded, table = decode([event(1, 0.0, "1", object_id=3)])
    assert decoded.diagnostics == ("unknown-fields",)
    assert table.num_rows == 1


async def test_the_bytes_of_production_decode_to_their_rows(archive, api):
    """Gzip, chunked, alphabetical keys, five runs interleaved, as recorded."""
    runs = [one["id"] for one in archive.truth.runs(dataset_id=5)][:5]
    rows = archive.truth.events(12725, runs)
    rows = (
        [rows[n * 7919 % len(rows)] for n in range(len(rows))]
        if len(rows) % 7919
        else rows
    )
    text = json.dumps(rows, sort_keys=True, separators=(",", ":")) + "\n"
    fault = Fault(
        body=gzip.compress(text.encode(), 6),
        headers={"Content-Encoding": "gzip", "Content-Type": "application/json"},
        framing="chunked",
        piece=1000,
    )
    archive.script("/predictor-events", [fault])
    table = await api.predictor_events.get(
        predictor_id=12725, run_id=runs, output_type="arrow"
    )
    got = table.select(["run_id", "onset", "duration", "value"]).to_pylist()
    wanted = [{name: row[name] for name in got[0]} for row in rows]

    def order(row):
        return (row["run_id"], row["onset"], row["value"], row["duration"] or 0)

    assert sorted(got, key=order) == sorted(wanted, key=order)


# --- conveniences, and names that cannot give wrong data ------------------------------


async def test_columns_come_in_the_order_of_the_existing_client(api):
    frame = await api.runs.get(dataset_id=10, output_type="df")
    names = (
        "acquisition dataset_id duration id number session subject task task_name "
        "dataset_name extra"
    )
    assert list(frame.columns) == names.split()
    assert set(frame["dataset_name"]) == {"raiders"}
    assert frame["number"].dtype == "Int64"
    frame = await api.predictors.get(run_id=1581, output_type="df")
    names = (
        "dataset_id description extracted_feature id max mean min name num_na private "
        "source dataset_name extra"
    )
    assert list(frame.columns) == names.split()
    frame = await api.tasks.get(dataset_name="Sherlock_Merlin", output_type="df")
    assert set(frame["dataset_name"]) == {"SherlockMerlin"}
    assert set(frame["name"]) == {"MerlinMovie", "SherlockMovie"}


async def test_names_of_datasets_are_joined_by_one_request(archive, api):
    await api.runs.get(output_type="df")
    assert targets(archive) == ["/runs", "/datasets?active_only=false"]
    frame = await api.runs.get(run_id=[], output_type="df")
    assert len(frame) == 0
    assert len(targets(archive)) == 2


async def test_public_analyses_are_found_as_the_tutorial_does(api):
    last = (await api.analyses.get(name="speech"))[-1]
    assert last == {
        "dataset_id": 30,
        "description": None,
        "hash_id": "52546",
        "modified_at": "2021-10-07T21:1",
        "name": "speech",
        "nv_count": 0,
        "status": "PASSED",
        "user": "adelavega",
    }
    (one,) = await api.analyses.get(name="speech", dataset_name="SherlockMerlin")
    assert one["hash_id"] == "k2m7p"
    frame = await api.analyses.get(dataset_name=["Budapest", "Life"], output_type="df")
    assert set(frame["dataset_name"]) == {"Budapest", "Life"}
    assert list(frame.columns)[:9] == [*last, "dataset_name"]
    assert (await api.analyses.get("52546"))["predictors"] == [40344]
    with pytest.raises(asyncfetch.NotFound, match="no analyses 'zzzzz'"):
        await api.analyses.get("zzzzz")


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, "array", "series"])
async def test_whatever_holds_several_works_as_a_list(archive, api, kind):
    import numpy as np
    import pandas as pd

    kind = {"array": np.array, "series": pd.Series}.get(kind, kind)
    runs = await api.runs.get(run_id=kind([117, 118]))
    assert [one["id"] for one in runs] == [117, 118]
    found = await api.predictors.get(name=kind(["speech", "rms"]), dataset_id=5)
    assert {one["name"] for one in found} == {"speech", "rms"}


async def test_several_datasets_are_kept_apart(archive, api):
    frame = await api.predictor_events.get(
        predictor_name="speech", dataset_name=["SherlockMerlin", "Life"],
        output_type="df",
    )  # fmt: skip
    pairs = set(zip(frame["dataset_name"], frame["predictor_id"], strict=True))
    assert pairs == {("SherlockMerlin", 12725), ("Life", 12905)}
    assert len(frame) == archive.truth.count_events([12725, 12905])


async def test_a_name_that_one_of_several_datasets_lacks_is_said(archive, api):
    with pytest.raises(asyncfetch.NotFound, match=r"SherlockMerlin has no .*'nope'"):
        await api.predictor_events.get(
            predictor_name=["speech", "nope"], dataset_name=["SherlockMerlin", "Life"]
        )


async def test_a_title_stands_for_its_dataset_with_one_notice(api, caplog):
    await api.runs.get(dataset_name="Sherlock_Merlin")
    (notice,) = caplog.messages
    assert "'Sherlock_Merlin': taken for 'SherlockMerlin'" in notice


async def test_a_title_of_several_datasets_names_them(archive, api):
    same = [
        {"id": n, "name": name, "active": True, "description": {"Name": "Film"}}
        for n, name in ((1, "a"), (2, "b"))
    ]
    archive.script("/datasets", [Fault(body=json.dumps(same).encode())])
    with pytest.raises(asyncfetch.ConfigurationError, match=r"a \(id 1\), b \(id 2\)"):
        await api.runs.get(dataset_name="Film")


async def test_predictors_are_not_hidden_by_uploads_or_other_datasets(api):
    (one,) = await api.predictors.get(name="brightness", dataset_name="Budapest")
    assert not one["private"]
    assert await api.predictors.get(name="brightness", dataset_id=30, newest=True) == []
    found = await api.predictors.get(name="speech")
    assert len({one["dataset_id"] for one in found}) == len(found) == 6
    (one,) = await api.predictors.get(name="rms", dataset_id=5)
    assert one["id"] == 12726
    both = await api.predictors.get(name="rms", dataset_id=5, newest=False)
    assert {one["id"] for one in both} == {12726, 12600}


async def test_many_ids_are_not_asked_one_by_one(archive, api):
    ids = list(range(12720, 12740))
    table = await api.predictor_events.get(
        predictor_id=ids, dataset_id=5, task_name="MerlinMovie", output_type="arrow"
    )
    runs = {one["id"] for one in archive.truth.runs(task=4)}
    assert table.num_rows == archive.truth.count_events(ids, runs)
    lists = [one for one in targets(archive) if not one.startswith("/predictor-e")]
    assert len(lists) == 3


async def test_stimulus_timing_adds_its_columns(archive, api):
    runs = [236, 240]
    for output_type in ("arrow", "df"):
        rows = await api.predictor_events.get(
            predictor_id=12905, run_id=runs, stimulus_timing=True,
            output_type=output_type,
        )  # fmt: skip
        names = list(rows.schema.names if output_type == "arrow" else rows.columns)
        assert names[:14] == neuroscout._EVENTS.names
        assert names[14:] == ["stimulus_onset", "stimulus_duration", "stimulus_path"]
    truth = archive.truth.events(12905, runs, stimulus_timing=True)
    wanted = {(e["run_id"], e["onset"], e["stimulus_path"]) for e in truth}
    got = set(zip(rows["run_id"], rows["onset"], rows["stimulus_path"], strict=True))
    assert got == wanted
    assert set(rows["stimulus_onset"]) == {10.0}
    assert rows["stimulus_id"].notna().all()
    raw = await api.predictor_events.get(
        predictor_name="X", dataset_name="Life", stimulus_timing=True, output_type="df"
    )
    assert raw["stimulus_path"].isna().all()
    without = await api.predictor_events.get(
        predictor_id=12905, run_id=runs, stimulus_timing=False
    )
    assert "stimulus_id" not in without[0]


async def test_pairs_without_events_are_in_the_items(archive, api, tmp_path):
    plan = api.predictor_events.plan(
        predictor_name="vibrance", dataset_name="SherlockMerlin"
    )
    report = await asyncfetch.download(plan, tmp_path / "d")
    items = await look(lambda: asyncfetch.open_dataset(tmp_path / "d").items)
    silent = [
        run
        for text in items["detail"].cast(pa.string()).to_pylist()
        for run in json.loads(text).get("runs_without_events", [])
    ]
    assert set(silent) == {one["id"] for one in archive.truth.runs(task=45)}
    assert report.rows

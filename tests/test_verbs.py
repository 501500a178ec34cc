"""The three verbs, and the lives of clients."""

import gc
import weakref

import anyio
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import _engine
from asyncfetch._decode import repeated
from asyncfetch.services import neuroscout
from asyncfetch.services._table import to_pandas
from asyncfetch.testing import Fault

pytestmark = pytest.mark.anyio

SPEECH = {"predictor_name": "speech", "dataset_name": "SherlockMerlin"}


def key(record):
    return (record["predictor_id"], record["run_id"], record["onset"], record["value"])


async def test_json_is_the_records_as_sent_in_order(archive, api):
    got = await api.predictor_events.get(**SPEECH)
    ids = {one["predictor_id"] for one in got}
    truth = archive.truth.events(ids, {one["run_id"] for one in got})
    assert sorted(got, key=key) == sorted(truth, key=key)
    places = [(one["predictor_id"], one["run_id"], one["onset"]) for one in got]
    assert places == sorted(places)


async def test_the_three_forms_hold_the_same_rows(api):
    records = await api.predictor_events.get(**SPEECH)
    table = await api.predictor_events.get(**SPEECH, output_type="arrow")
    frame = await api.predictor_events.get(**SPEECH, output_type="df")
    assert isinstance(table, pa.Table)
    assert isinstance(frame, pd.DataFrame)
    assert table.schema == api.predictor_events.description.schema
    assert list(frame.columns) == table.column_names
    for rows in (table.to_pylist(), frame.to_dict("records")):
        assert sorted(map(key, rows)) == sorted(map(key, records))


async def test_integers_with_gaps_stay_integers_in_a_frame(api):
    frame = await api.runs.get(output_type="df")
    assert frame["number"].isna().any()
    assert frame["number"].dtype == pd.Int64Dtype()
    assert frame["id"].dtype == "int64"


def test_every_column_of_a_frame_can_be_written():
    # Of one chunk without nulls, Arrow would lend its own memory.
    table = pa.table(
        {
            "float": pa.array([0.0, 1.0]),
            "integer": pa.array([0, 1]),
            "local": pa.array([0, 1], pa.timestamp("us")),
            "instant": pa.array([0, 1], pa.timestamp("us", "UTC")),
            "text": pa.array(["0", "1"]),
            "repeated": pa.array(["0", "1"]).dictionary_encode(),
            "flag": pa.array([False, True]),
        }
    )
    frame = to_pandas(table)
    for name in frame:
        frame.loc[0, name] = frame.loc[1, name]
        assert frame[name].to_list() == [frame.loc[1, name]] * 2
    assert table["float"].to_pylist() == [0.0, 1.0]


@given(
    chunks=st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.sampled_from(["a", "b", None]), st.integers(1, 3000))
            ),
            st.integers(0, 300),
        ),
        min_size=1,
    )
)
def test_repeated_text_of_any_runs_is_that_text(chunks):
    made = []
    for runs, skipped in chunks:
        texts = [text for text, rows in runs for _ in range(rows)]
        made.append(pa.array(texts, pa.string()).dictionary_encode()[skipped:])
    column = pa.chunked_array(made, pa.dictionary(pa.int32(), pa.string()))
    frame = to_pandas(pa.table({"text": column}))
    assert frame["text"].dtype == pd.Series(["a"]).dtype
    got = [None if pd.isna(one) else one for one in frame["text"]]
    assert got == column.to_pylist()


def test_text_that_repeats_itself_is_in_memory_once():
    rows = 100_000
    column = repeated(["a subject", "another one"] * 5, [rows // 10] * 10)
    before = pa.total_allocated_bytes()
    frame = to_pandas(pa.table({"text": column}))
    assert pa.total_allocated_bytes() - before < rows
    assert frame["text"].value_counts().to_list() == [rows // 2, rows // 2]


@given(
    st.lists(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1))),
    st.sampled_from([pa.int32(), pa.int64()]),
)
def test_integers_of_a_frame_are_those_of_the_table(chunks, kind):
    column = pa.chunked_array([pa.array(one, kind) for one in chunks], kind)
    frame = to_pandas(pa.table({"number": column}))
    assert frame["number"].dtype == f"Int{kind.bit_width}"
    got = [None if one is pd.NA else one for one in frame["number"]]
    assert got == column.to_pylist()


async def test_an_id_gives_one_record_or_not_found(api):
    assert (await api.datasets.get(5))["name"] == "SherlockMerlin"
    frame = await api.datasets.get(5, output_type="df")
    assert frame["name"].to_list() == ["SherlockMerlin"]
    assert isinstance(frame["description"][0], dict)
    with pytest.raises(asyncfetch.NotFound, match="no datasets 4711"):
        await api.datasets.get(4711)


@pytest.mark.parametrize("limit", [0, 1, 7, 10**9])
@pytest.mark.parametrize("output_type", ["json", "arrow"])
async def test_a_limit_counts_rows(api, limit, output_type):
    everything = await api.runs.get()
    got = await api.runs.get(output_type=output_type, limit=limit)
    assert len(got) == min(limit, len(everything))


async def test_get_raises_at_the_first_item_that_failed(archive, api):
    archive.script("/predictor-events", [Fault(status=422, body=b'{"message": "no"}')])
    with pytest.raises(asyncfetch.ItemError, match="422") as caught:
        await api.predictor_events.get(**SPEECH)
    assert isinstance(caught.value.cause, asyncfetch.ResponseError)
    assert caught.value.report.items["failed"] == 1


async def test_batches_of_a_stream_are_the_rows_and_name_their_item(archive, api):
    names = {}
    async with api.predictor_events.stream(**SPEECH) as batches:
        async for batch in batches:
            assert batch.schema.equals(api.predictor_events.description.schema)
            item = batch.schema.metadata[b"asyncfetch.key"].decode()
            names.setdefault(item, []).extend(batch.to_pylist())
    rows = [row for some in names.values() for row in some]
    assert len(rows) == len(await api.predictor_events.get(**SPEECH))
    assert all(name.startswith("predictor=12725/runs=") for name in names)


async def test_rows_of_large_answers_do_not_pile_up(api, monkeypatch):
    monkeypatch.setattr("asyncfetch._body.INLINE", 0)  # all are
    rows: list[weakref.ref[pa.RecordBatch]] = []
    make = neuroscout._event_batch

    def noted(*arguments):
        batch, silent = make(*arguments)
        rows.append(weakref.ref(batch))
        return batch, silent

    monkeypatch.setattr(neuroscout, "_event_batch", noted)
    async with api.predictor_events.stream(dataset_name="SherlockMerlin") as batches:
        async for _ in batches:
            alive = sum(one() is not None for one in rows)
            assert alive <= _engine.LARGE_RESULTS
    assert len(rows) > 2 * _engine.LARGE_RESULTS


async def test_a_failed_item_raises_where_the_loop_stands(archive, api):
    archive.script("/predictor-events", [Fault(status=422, body=b'{"message": "no"}')])
    async with api.predictor_events.stream(**SPEECH) as batches:
        with pytest.raises(asyncfetch.ItemError, match="422"):
            async for _ in batches:
                pass


async def test_a_run_that_cannot_go_on_raises_where_the_loop_stands(archive, api):
    archive.script("/predictor-events", [Fault(status=401, body=b"{}")] * 99)
    everything = {"dataset_name": "SherlockMerlin"}
    ended = False
    async with api.predictor_events.stream(**everything, on_error="report") as batches:
        with pytest.raises(asyncfetch.AuthenticationError):
            async for _ in batches:
                pass
        ended = True
    assert ended
    async with api.predictor_events.stream(dataset_name="Sherlok") as batches:
        with pytest.raises(asyncfetch.NotFound):
            await batches.receive()


async def test_an_observer_that_fails_changes_nothing(api, tmp_path):
    def see(event):
        raise OSError(event)

    plan = api.runs.plan(dataset_id=5)
    report = await asyncfetch.download(plan, tmp_path / "runs", observe=see)
    assert report.items == {"ok": 1}


@pytest.mark.parametrize(
    "limits",
    [{"rate": 0}, {"rate": float("nan")}, {"concurrency": 0}, {"max_wait": -1}],
)
def test_limits_that_would_stop_everything_are_refused(limits):
    with pytest.raises(asyncfetch.ConfigurationError, match="of at least"):
        asyncfetch.Limits(**limits)


async def test_numbers_of_other_libraries_are_ids(api):
    frame = await api.datasets.get(output_type="df")
    assert (await api.datasets.get(frame["id"].iloc[0]))["id"] == frame["id"].iloc[0]


async def test_a_failed_item_is_reported_on_demand(archive, api):
    archive.script("/predictor-events", [Fault(status=422, body=b'{"message": "no"}')])
    stream = api.predictor_events.stream(**SPEECH, on_error="report")
    async with stream as batches:
        rows = sum([batch.num_rows async for batch in batches])
    assert [one.error_class for one in batches.failed] == ["ResponseError"]
    assert batches.report().rows == rows


async def test_a_consumer_that_stops_early_leaves_nothing_behind(api):
    async with api.predictor_events.stream(dataset_name="SherlockMerlin") as batches:
        async for _ in batches:
            break
    assert api.exchange.gate.statistics()["in_flight"] == 0
    assert not api.exchange.gate.statistics()["waiting"]


async def test_a_consumer_that_raises_gets_its_own_error(api):
    with pytest.raises(ZeroDivisionError):
        async with api.predictor_events.stream(**SPEECH) as batches:
            async for _ in batches:
                1 / 0  # noqa: B018
    assert api.exchange.gate.statistics()["in_flight"] == 0


async def test_a_stuck_consumer_stops_the_requests(archive, api):
    stream = api.predictor_events.stream(dataset_name="SherlockMerlin")
    async with stream as batches:
        await batches.receive()
        await anyio.wait_all_tasks_blocked()
        while api.exchange.gate.statistics()["in_flight"]:
            await anyio.wait_all_tasks_blocked()
        asked = sum("/predictor-events" in one.target for one in archive.log)
        read = 1
        async for _ in batches:
            read += 1
    assert asked < sum("/predictor-events" in one.target for one in archive.log) == read


async def test_a_cancelled_call_leaves_no_slot(api):
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: api.predictor_events.get(**SPEECH))
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert api.exchange.gate.statistics()["in_flight"] == 0


async def test_a_client_is_opened_in_one_task_and_closed_in_another(archive):
    api = asyncfetch.Neuroscout(base_url=archive.neuroscout)

    async def use():
        assert await api.datasets.get(5)

    async with anyio.create_task_group() as group:
        group.start_soon(use)
    async with anyio.create_task_group() as group:
        group.start_soon(api.aclose)
    assert await api.datasets.get(5)  # and opens again
    await api.aclose()
    gc.collect()


def test_a_client_is_made_without_a_loop_and_used_under_two(asyncfetch_archive):
    api = asyncfetch.Neuroscout(base_url=asyncfetch_archive.neuroscout)

    async def use():
        assert await api.datasets.get(5)
        await api.aclose()

    anyio.run(use)
    anyio.run(use)


def test_from_env_reads_where_the_service_is(asyncfetch_archive, monkeypatch):
    for name, url in asyncfetch_archive.environment().items():
        monkeypatch.setenv(name, url)
    api = asyncfetch.Neuroscout.from_env()
    assert api.exchange.base_url == asyncfetch_archive.neuroscout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"datset_name": "x"}, "did you mean dataset_name"),
        ({"dataset_id": "five"}, "expected int for dataset_id, got 'five'"),
        ({"dataset_name": ["a", 1.5]}, "expected str for dataset_name, got 1.5"),
        ({"stimulus_timing": [True, False]}, "expected one bool for stimulus_timing"),
        ({"limit": -1}, "expected limit of 0 or more"),
        ({"number": 1, "run": 2}, "run and number are the same"),
    ],
)
def test_a_wrong_filter_is_said_before_anything_is_asked(arguments, message):
    api = asyncfetch.Neuroscout()
    with pytest.raises(asyncfetch.ConfigurationError, match=message):
        api.predictor_events.plan(**arguments)


async def test_an_empty_list_is_no_rows_and_no_request(archive, api):
    assert await api.predictor_events.get(run_id=[], **SPEECH) == []
    frame = await api.runs.get(subject=(), output_type="df")
    assert frame.empty
    assert "subject" in frame.columns
    assert not archive.log


@pytest.mark.parametrize("kind", [list, tuple, set, pd.Series, pd.array, frozenset])
def test_any_collection_is_a_list(kind):
    plan = asyncfetch.Neuroscout().predictor_events.plan(run_id=kind([3, 1]))
    assert sorted(plan.filters["run_id"]) == [1, 3]

"""Datasets filled over HTTP: whole, resumed, drained, killed."""

import random
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import anyio
import duckdb
import pandas as pd
import pyarrow.dataset as pads
import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch._gate import Gate
from asyncfetch._model import Committed, ItemEnded, Limits, Planned
from asyncfetch._verify import verify
from asyncfetch.testing import Fault
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio

MERLIN = {"dataset_name": "SherlockMerlin"}
FAULTS = "error=0.02,reset=0.01,reset_body=0.01,truncate=0.01,html=0.01,seed=3"


def rows(dest):
    found = pads.dataset(dest).to_table()
    return found.sort_by([(name, "ascending") for name in found.column_names])


def target(url):
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


async def test_a_dataset_holds_the_rows_that_get_gives(api, tmp_path):
    plan = api.predictor_events.plan(**MERLIN)
    report = await asyncfetch.download(plan, tmp_path / "events")
    table = await api.predictor_events.get(**MERLIN, output_type="arrow")
    there = rows(tmp_path / "events")
    assert report.rows == there.num_rows == table.num_rows
    names = table.column_names
    order = [(name, "ascending") for name in names]
    assert there.cast(table.schema).equals(table.sort_by(order))
    assert not await look(verify, tmp_path / "events")


async def test_what_users_read_with_sees_plain_types(api, tmp_path):
    dest = tmp_path / "events"
    await asyncfetch.download(api.predictor_events.plan(**MERLIN), dest)
    frame = pd.read_parquet(dest)
    assert frame["run_id"].dtype == "int64"
    assert frame["number"].dtype == pd.Int32Dtype()
    assert isinstance(frame["subject"].iloc[0], str)
    for glob in ("*.parquet", "**/*.parquet"):
        found = duckdb.sql(
            f"SELECT count(*), any_value(typeof(value)) FROM '{dest}/{glob}'"
        ).fetchall()
        assert found == [(len(frame), "VARCHAR")]


async def test_a_complete_dataset_asks_nothing(archive, api, tmp_path):
    await asyncfetch.download(api.predictor_events.plan(**MERLIN), tmp_path / "e")
    asked = len(archive.log)
    report = await asyncfetch.download(
        api.predictor_events.plan(**MERLIN), tmp_path / "e"
    )
    assert len(archive.log) == asked
    assert report.requests == 0
    assert not report.pending


async def test_a_failed_item_is_data_and_is_asked_again(archive, api, tmp_path):
    no = Fault(status=422, body=b'{"message": "no"}')
    archive.script("/predictor-events", [no, no])
    plan = api.predictor_events.plan(**MERLIN)
    report = await asyncfetch.download(plan, tmp_path / "e")
    assert report.items["failed"] == len(report.failed) == 2
    with pytest.raises(asyncfetch.ItemError, match="2 items failed"):
        report.raise_for_failed()
    asked = len(archive.log)
    report = await asyncfetch.download(plan, tmp_path / "e")
    assert "failed" not in report.items
    assert len(archive.log) == asked + 2
    assert report.rows == len(await api.predictor_events.get(**MERLIN))


async def test_the_same_query_with_a_higher_limit_goes_on(archive, api, tmp_path):
    for limit in (2, 5, None):
        plan = api.predictor_events.plan(**MERLIN, limit=limit)
        report = await asyncfetch.download(plan, tmp_path / "e")
        if limit:
            assert report.items == {"ok": limit}
    asked = [one.target for one in archive.log if "/predictor-events" in one.target]
    assert len(asked) == len(set(asked)) == report.items["ok"]
    planning = [one.target for one in archive.log if "/datasets" in one.target]
    assert len(planning) == 1


async def test_another_plan_is_refused_and_nothing_is_touched(api, tmp_path):
    await asyncfetch.download(api.runs.plan(**MERLIN), tmp_path / "e")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "e").rglob("*")}
    with pytest.raises(asyncfetch.DatasetError, match="subject"):
        await asyncfetch.download(api.runs.plan(**MERLIN, subject="1"), tmp_path / "e")
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "e").rglob("*")
    }


async def test_a_plan_that_came_to_nothing_can_be_corrected(api, tmp_path):
    wrong = api.predictor_events.plan(dataset_name="Sherlok")
    with pytest.raises(asyncfetch.NotFound):
        await asyncfetch.download(wrong, tmp_path / "e")
    report = await asyncfetch.download(
        api.predictor_events.plan(**MERLIN), tmp_path / "e"
    )
    assert report.rows


async def test_faults_change_no_row(tmp_path):
    for name, faults in (("calm", ""), ("stormy", FAULTS)):
        async with (
            testing.serve(scale=0.05, faults=faults) as archive,
            asyncfetch.Neuroscout(base_url=archive.neuroscout) as api,
        ):
            api.exchange._rng = api.exchange.gate._rng = Impatient()
            plan = api.predictor_events.plan(**MERLIN)
            report = await asyncfetch.download(plan, tmp_path / name)
            assert "failed" not in report.items
    assert report.retries > 0
    assert rows(tmp_path / "calm").equals(rows(tmp_path / "stormy"))


async def test_events_tell_what_happens(api, tmp_path):
    events = []
    report = await asyncfetch.download(
        api.predictor_events.plan(**MERLIN), tmp_path / "e", observe=events.append
    )
    ended = [one for one in events if isinstance(one, ItemEnded)]
    assert sum(one.rows for one in ended) == report.rows
    assert sum(one.items for one in events if isinstance(one, Committed)) == len(ended)
    planned = [one for one in events if isinstance(one, Planned)]
    assert planned[-1].items == len(ended)
    assert planned[-1].complete


async def test_a_run_that_is_asked_to_stop_commits_what_is_in_flight(api, tmp_path):
    stop = anyio.Event()

    def see(event):
        if isinstance(event, ItemEnded):
            stop.set()

    plan = api.predictor_events.plan(**MERLIN)
    report = await asyncfetch.download(plan, tmp_path / "e", observe=see, stop=stop)
    assert report.pending > 0
    assert report.items["ok"] >= 1
    view = await look(asyncfetch.open_dataset, tmp_path / "e")
    assert await look(view.rows.count_rows) == report.rows
    report = await asyncfetch.download(plan, tmp_path / "e")
    assert report.pending == 0
    assert report.rows == len(await api.predictor_events.get(**MERLIN))


async def test_a_run_that_is_stopped_before_it_knows_its_plan_says_so(api, tmp_path):
    stop = anyio.Event()
    stop.set()
    plan = api.predictor_events.plan(**MERLIN)
    report = await asyncfetch.download(plan, tmp_path / "e", stop=stop)
    assert not report.plan_complete
    report = await asyncfetch.download(plan, tmp_path / "e")
    assert report.plan_complete
    assert report.rows


async def test_a_listing_that_is_not_there_is_an_error_and_not_empty(archive, tmp_path):
    url = archive.neuroscout.removesuffix("/api")
    async with asyncfetch.Neuroscout(base_url=url) as api:
        with pytest.raises(asyncfetch.errors.NotFound, match="got 404"):
            await asyncfetch.download(api.datasets.plan(), tmp_path / "e")
    view = await look(asyncfetch.open_dataset, tmp_path / "e")
    assert not (await look(lambda: view.items)).num_rows


async def test_being_asked_to_slow_down_fails_no_item(tmp_path):
    async with (
        testing.serve(scale=0.05, faults="throttle=60/s") as archive,
        asyncfetch.Neuroscout(base_url=archive.neuroscout) as api,
    ):
        plan = api.predictor_events.plan(**MERLIN)
        report = await asyncfetch.download(plan, tmp_path / "e")
    assert set(report.items) == {"ok"}


async def test_a_cancelled_run_leaves_what_ended_and_no_work_in_progress(api, tmp_path):
    plan = api.predictor_events.plan(**MERLIN)
    with anyio.CancelScope() as scope:

        def see(event):
            if isinstance(event, ItemEnded):
                scope.cancel()

        await asyncfetch.download(plan, tmp_path / "e", observe=see)
    assert scope.cancelled_caught
    assert not list((tmp_path / "e/_asyncfetch/tmp").iterdir())
    assert not await look(verify, tmp_path / "e")
    assert api.exchange.gate.statistics()["in_flight"] == 0
    report = await asyncfetch.download(plan, tmp_path / "e")
    assert report.rows == len(await api.predictor_events.get(**MERLIN))


async def test_a_server_that_goes_away_ends_the_run_and_keeps_what_came(tmp_path):
    async with testing.serve(scale=0.05) as archive:
        api = asyncfetch.Neuroscout(
            base_url=archive.neuroscout, limits=Limits(concurrency=1), item_timeout=1.0
        )
        api.exchange._rng = Impatient()
        archive.script("/predictor-events", [Fault()] * 3 + [Fault.reset()] * 10_000)
        plan = api.predictor_events.plan(dataset_name="SherlockMerlin")
        with pytest.raises(asyncfetch.TransportError, match=r"hung up|not answered"):
            await asyncfetch.download(plan, tmp_path / "e")
        await api.aclose()
    state = (await look(asyncfetch.open_dataset, tmp_path / "e")).state()
    assert state.items == {"ok": 3}  # whatever met the outage was not spent on it
    assert state.rows > 0


async def test_an_outage_that_begins_with_the_run_loses_no_item(tmp_path):
    async with testing.serve(scale=0.05) as archive:
        api = asyncfetch.Neuroscout(
            base_url=archive.neuroscout, limits=Limits(concurrency=4)
        )
        api.exchange.gate = Gate("archive", Limits(concurrency=4), second=0.002)
        archive.script("/predictor-events", [Fault()] + [Fault.reset()] * 60)
        plan = api.predictor_events.plan(dataset_name="SherlockMerlin")
        report = await asyncfetch.download(plan, tmp_path / "e")
        await api.aclose()
    assert set(report.items) == {"ok"}
    assert report.items["ok"] > 20
    assert report.gate["breaker"] == "closed"


@pytest.mark.parametrize("name", ["e.parquet", "e.csv", "e.json"])
async def test_a_destination_that_looks_like_a_file_is_refused(api, tmp_path, name):
    with pytest.raises(asyncfetch.ConfigurationError, match="expected a directory"):
        await asyncfetch.download(api.runs.plan(), tmp_path / name)
    assert not list(tmp_path.iterdir())


async def test_a_view_says_where_a_row_came_from(api, tmp_path):
    await asyncfetch.download(api.predictor_events.plan(**MERLIN), tmp_path / "e")
    (part,) = (tmp_path / "e").glob("*.parquet")
    row = pads.dataset(part).take([17]).to_pylist()[0]

    def check():
        view = asyncfetch.open_dataset(tmp_path / "e")
        source = view.source_of(part, 17)
        assert source["key"].startswith(f"predictor={row['predictor_id']}/")
        assert dict(view.plan.filters) == MERLIN
        assert view.items.num_rows == view.state().items["ok"]
        with pytest.raises(LookupError):
            view.source_of(part, 10**9)

    await look(check)


def test_killed_at_any_instant_nothing_is_lost_doubled_or_asked_again(tmp_path):
    """SIGKILL at random instants, and once more without; the log is the witness."""
    chance = random.Random(5)
    log = tmp_path / "log.jsonl"
    with testing.serve_in_thread(
        scale=0.3, faults="error=0.03,reset=0.02,seed=9", log=log
    ) as archive:
        command = [sys.executable, "-m", "asyncfetch"]
        table = ("neuromorpho/traces", "--base-url", archive.neuromorpho)
        options = ("--commit-seconds", "0.1", "--quiet", "--concurrency", "8")

        def fetch(dest, kill_after=None):
            before = len(archive.log)
            process = subprocess.Popen(
                [*command, "fetch", *table, "-o", dest, *options],
                stderr=subprocess.PIPE,
            )
            while kill_after is not None and process.poll() is None:
                if len(archive.log) >= before + kill_after:
                    process.send_signal(signal.SIGKILL)
                    break
            process.wait(60)
            process.stderr.close()
            return process.returncode

        calm = tmp_path / "calm"
        assert fetch(calm) in {0, 1}
        dest = tmp_path / "killed"
        done = set()
        planned = set()
        for _ in range(6):
            before = len(archive.log)
            fetch(dest, kill_after=chance.randrange(1, 90))
            asked = {one.target for one in archive.log[before:]}
            assert not asked & done, "a committed item was asked again"
            assert not asked & planned, "planning was repeated"
            if (dest / "_asyncfetch/plan.json").exists():
                items = asyncfetch.open_dataset(dest).items.to_pylist()
                done = {
                    target(one["url"]) for one in items if one["outcome"] != "failed"
                }
                if list((dest / "_asyncfetch/plan").iterdir()):
                    planned = {one for one in asked | planned if "/api/neuron" in one}
        assert fetch(dest) in {0, 1}
    assert not verify(dest)
    assert rows(dest).equals(rows(calm))

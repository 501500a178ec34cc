"""NeuroMorpho.Org: sources and logs as files, measurements, publications."""

import collections
import json

import pytest

import asyncfetch
from asyncfetch import _absence
from asyncfetch._model import Item
from asyncfetch.services import _literature, _measurements
from asyncfetch.testing import Fault
from tests.conftest import look

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr(_absence, "PATIENCE", 0.1)


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        yield api


async def items_of(dest):
    def read():
        return asyncfetch.open_dataset(dest).items.to_pylist()

    return {one["key"]: one for one in await look(read)}


async def test_sources_are_stored_and_read_where_they_are_in_swc(
    archive, api, tmp_path
):
    plan = api.traces.plan(version="Source version")
    report = await asyncfetch.download(plan, tmp_path / "s")
    items = await items_of(tmp_path / "s")
    for record in archive.truth.neurons():
        item = items[f"neuron={record['neuron_id']}"]
        truth = archive.truth.source(record["neuron_id"])
        if truth is None:
            assert item["outcome"] == "missing"
            continue
        assert item["outcome"] == "ok"
        is_swc = record["original_format"].endswith(".swc")
        assert (item["rows"] > 0) == is_swc
        stored = await look((tmp_path / "s" / item["path"]).read_bytes)
        assert stored == truth
        ending = record["original_format"].rpartition(".")[2]
        folder = record["archive"].replace("/", "_")
        assert item["path"].startswith(f"_files/{folder}/Source-Version/")
        assert item["path"].endswith(ending)
        if record["original_format"] == "Custom.xml":
            assert item["path"].endswith(".morph.xml")
    assert "failed" not in report.items

    def versions():
        rows = asyncfetch.open_dataset(tmp_path / "s").rows.to_table()
        return set(rows["version"].to_pylist())

    assert await look(versions) == {"Source"}
    again = await asyncfetch.download(plan, tmp_path / "s")
    assert again.requests == 0


async def test_what_is_only_kept_is_never_taken_for_a_trace(archive, api):
    """A file of another format may begin as SWC does."""
    swc = archive.truth.swc(1)
    archive.script(".asc", [Fault(body=swc)] * 99)
    table = await api.traces.get(version="Source", output_type="arrow")
    formats = {
        one["neuron_id"]: one["original_format"] for one in archive.truth.neurons()
    }
    found = set(table["neuron_id"].to_pylist())
    assert found
    assert all(formats[one].endswith(".swc") for one in found)


@pytest.mark.parametrize("body", [b"", b"<!DOCTYPE html><html></html>"])
async def test_a_stored_file_is_never_an_empty_one_or_a_page(
    archive, api, tmp_path, body
):
    archive.script(".asc", [Fault(body=body)] * 99)
    plan = api.traces.plan(version="Source", archive="Kawaguchi", limit=1)
    api.exchange._rng = __import__("tests.conftest", fromlist=["x"]).Impatient()
    report = await asyncfetch.download(plan, tmp_path / "s")
    assert report.items == {"failed": 1}


async def test_logs_come_as_files_on_request(archive, api, tmp_path):
    plan = api.traces.plan(archive="Siegert", logs=True)
    report = await asyncfetch.download(plan, tmp_path / "t", files=tmp_path / "files")
    items = await items_of(tmp_path / "t")
    assert len(items) == 36
    assert report.items["ok"] == 12 + 12 + 3  # of most, nothing remained to be said
    ok = items["log=2"]
    name = "CB_CKp25_2w_F_Animal01_01"
    path = tmp_path / "files" / "Siegert" / "Standardization log" / f"{name}.std"
    text = await look(path.read_text)
    assert text == json.loads(ok["detail"])["log"]
    assert (await look(lambda: sorted(tmp_path.glob("files/Siegert/*"))))[0].name == (
        "CNG version"
    )
    issues = tmp_path / "files" / "Siegert" / "Remaining issues"
    assert len(await look(lambda: list(issues.glob("*.CNG.swc.std")))) == 3


async def test_a_file_in_an_odd_folder_is_found_and_said_where(archive, api, tmp_path):
    plan = api.traces.plan(neuron_id=[28, 29])
    report = await asyncfetch.download(plan, tmp_path / "t", files="_files")
    assert report.items == {"ok": 2}
    items = await items_of(tmp_path / "t")
    archive_name = archive.truth.neurons(neuron_id=29)[0]["archive"]
    assert f"/{archive_name.replace(' ', '%20')}/" in items["neuron=29"]["url"]


def test_the_places_of_a_file_are_tried_in_order():
    api = asyncfetch.NeuroMorpho()
    source = api.traces.plan().source
    record = {"neuron_id": 7, "neuron_name": " n 1", "archive": "Allen Cell_Types"}
    (item,) = asyncfetch.services.neuromorpho._files_of(record, "CNG")
    assert source.elsewhere(item) == (
        "/dableFiles/Allen%20Cell_Types/CNG%20version/%20n%201.CNG.swc",
        "/dableFiles/allen_cell%20types/CNG%20version/%20n%201.CNG.swc",
        "/dableFiles/allen%20cell_types/CNG%20version/n%201.CNG.swc",
    )
    assert source.elsewhere(Item(key="x", request=item.request)) == ()


async def test_measurements_are_numbers_however_they_came(archive, api, tmp_path):
    report = await asyncfetch.download(api.morphometry.plan(), tmp_path / "m")
    ids = [one["neuron_id"] for one in archive.truth.neurons()]
    measured = {n: archive.truth.morphometry(n) for n in ids}
    assert report.items == {"ok": len(ids)}

    def read():
        return asyncfetch.open_dataset(tmp_path / "m").rows.to_table().to_pylist()

    rows = {one["neuron_id"]: one for one in await look(read)}
    assert sorted(rows) == ids
    never = {n for n, one in measured.items() if not one}
    assert never
    for neuron in never:
        row = rows.pop(neuron)
        assert row["neuron_name"]
        assert all(row[name] is None for name in list(row)[3:])
    for neuron, row in rows.items():
        for name, value in measured[neuron].items():
            if name not in {"neuron_name", "neuron_id"}:
                assert row[name] == (None if value is None else float(value))
        assert row["extra"] is None
    again = await asyncfetch.download(api.morphometry.plan(), tmp_path / "m")
    assert again.requests == 0
    items = await look(lambda: asyncfetch.open_dataset(tmp_path / "m").items)
    said = {
        (one["http_status"], *one["diagnostics"])
        for one in items.to_pylist()
        if int(one["key"].partition("=")[2]) in never
    }
    assert said == {(404, "not-measured")}


async def test_values_that_do_not_fit_are_counted_by_column(archive, api, tmp_path):
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")

    def read():
        return asyncfetch.open_dataset(tmp_path / "n").rows.to_table().to_pylist()

    rows = {one["neuron_id"]: one for one in await look(read)}
    held = collections.Counter(
        name
        for record in archive.truth.neurons()
        for name, value in record.items()
        if value is not None and rows[record["neuron_id"]].get(name, 0) is None
    )
    assert report.unparsed == held
    assert held["slicing_thickness"]  # "100-200"
    again = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert (again.requests, again.unparsed) == (0, held)
    body = json.dumps({**archive.truth.morphometry(2), "length": "long"}).encode()
    archive.script("/morphometry/id/2", [Fault(body=body)])
    plan = api.morphometry.plan(neuron_id=2)
    assert (await asyncfetch.download(plan, tmp_path / "m")).unparsed == {"length": 1}


async def test_measurements_by_get_are_the_records_as_sent(archive, api):
    found = await api.morphometry.get(archive="Siegert")
    assert found == [archive.truth.morphometry(n) for n in range(2, 14)]
    frame = await api.morphometry.get(neuron_id=2, output_type="df")
    assert frame.loc[0, "neuron_name"] == "CB_CKp25_2w_F_Animal01_01"


async def test_an_empty_body_is_a_row_of_nulls_and_another_neuron_is_a_failure(
    archive, api
):
    archive.script("/morphometry/id/2", [Fault(body=b"")])
    table = await api.morphometry.get(neuron_id=2, output_type="arrow")
    (row,) = table.to_pylist()
    assert row["neuron_id"] == 2
    assert row["length"] is None
    other = json.dumps(archive.truth.morphometry(3)).encode()
    archive.script("/morphometry/id/4", [Fault(body=other)] * 9)
    with pytest.raises(asyncfetch.ItemError, match="expected neuron 4"):
        await api.morphometry.get(neuron_id=4)


async def test_persistence_vectors_have_their_numbers_or_their_text(api, tmp_path):
    plan = api.persistence_vectors.plan()
    report = await asyncfetch.download(plan, tmp_path / "p")
    assert set(report.items) == {"ok"}

    def read():
        return asyncfetch.open_dataset(tmp_path / "p").rows.to_table().to_pylist()

    rows = {one["neuron_id"]: one for one in await look(read)}
    assert len(rows[1]["coefficients"]) == 100
    assert rows[1]["scaling_factor"] > 0
    assert rows[1]["distance"] >= 0
    texts = [one for one in rows.values() if one["raw"] is not None]
    assert all(one["coefficients"] is None for one in texts)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {}),
        (b"1 2 3", {"raw": "1 2 3"}),
        (b'"text"', {"raw": '"text"'}),
        (b"[1, 2]", {"coefficients": [1, 2]}),
        (
            b'{"neuron_id": 1, "ScalingFactor": "2", "Distance": 3, "pv": [4], "k": 5}',
            {
                "neuron_id": 1,
                "scaling_factor": "2",
                "distance": 3,
                "coefficients": [4],
                "k": 5,
            },
        ),
    ],
)
def test_a_persistence_vector_is_read_whatever_its_names(body, fields):
    assert _measurements.persistence(body) == fields


async def test_publications_are_typed_and_selected(archive, api, tmp_path):
    truth = archive.truth.publications()
    report = await asyncfetch.download(api.literature.plan(), tmp_path / "l")
    assert report.rows == len(truth)

    def read():
        return asyncfetch.open_dataset(tmp_path / "l").rows.to_table().to_pylist()

    rows = {one["article_id"]: one for one in await look(read)}
    for record in truth:
        row = rows[record["article_id"]]
        assert row["authors"] == record["authors"]
        assert row["nReconstructions"] is not None
        assert str(row["publishedDate"]) == record["publishedDate"][:10]
        if record["evaluatedDate"] == "Not reported":
            assert row["evaluatedDate"] is None
            assert json.loads(row["extra"])["evaluatedDate"] == "Not reported"
    some = await api.literature.get(brainRegion="Retina", journal=["eLife"])
    assert some == [
        one
        for one in truth
        if one["brainRegion"] == ["Retina"] and one["journal"] == "eLife"
    ]
    one = truth[0]
    assert await api.literature.get(one["article_id"]) == one
    with pytest.raises(asyncfetch.ConfigurationError, match="article_id"):
        await api.literature.get(5)


def test_a_publication_that_is_no_object_is_left_to_the_check():
    assert _literature.prepared(5) == 5
    assert _literature.prepared({"dataUsage": True})["dataUsage"] == "true"

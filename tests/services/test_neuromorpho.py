"""NeuroMorpho.Org: every page once, every trace read, files where they are."""

import json

import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch.services import _select
from asyncfetch.testing import Fault
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio


async def items_of(dest):
    def read():
        return asyncfetch.open_dataset(dest).items.to_pylist()

    return await look(read)


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr("asyncfetch._absence.PATIENCE", 0.1)


SIEGERT = "CB_CKp25_2w_F_Animal01_*"


@pytest.fixture
async def archive():
    async with testing.serve(scale=1.2) as archive:
        yield archive


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        yield api


async def test_the_tutorial_runs(archive, api):
    record = await api.neurons.get(1)
    assert record["neuron_name"] == "cnic_001"
    assert (await api.neurons.get("cnic_001"))["neuron_id"] == 1
    found = await api.neurons.get(q=f"neuron_name:{SIEGERT}")
    names = sorted(one["neuron_name"] for one in found)
    assert len(names) >= 12
    assert all(name.startswith("CB_CKp25_2w_F_Animal01_") for name in names)
    same = await api.neurons.get(neuron_name=SIEGERT)
    assert sorted(one["neuron_name"] for one in same) == names


async def test_records_are_typed_and_nothing_of_them_is_lost(archive, api):
    table = await api.neurons.get(output_type="arrow")
    truth = archive.truth.neurons()
    assert table.num_rows == len(truth)
    assert table["neuron_id"].to_pylist() == [one["neuron_id"] for one in truth]
    first = table.slice(0, 1).to_pylist()[0]
    assert first["soma_surface"] == 834.0
    assert str(first["upload_date"]) == "2006-08-01"
    assert first["brain_region"] == ["neocortex", "prefrontal", "layer 3"]
    assert first["reference_doi"][0] == "10.1016/S0306-4522(02)00305-6"
    schema = set(table.column_names)
    for record, row in zip(truth, table.to_pylist(), strict=True):
        extra = json.loads(row["extra"]) if row["extra"] else {}
        assert set(record) - schema - {"_links"} <= set(extra)
        for name, value in record.items():
            if name in schema and value is not None and row[name] is None:
                assert extra[name] == value


async def test_pages_are_asked_once_each(archive, api, tmp_path):
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    targets = [one.target for one in archive.log]
    assert len(targets) == len(set(targets)) == report.items["ok"] == 3
    assert report.shortfall is None
    assert report.rows == len(archive.truth.neurons())


async def test_fewer_neurons_than_the_service_names_are_reported(
    archive, api, tmp_path
):
    page = {
        "_embedded": {"neuronResources": [dict(archive.truth.neurons()[0])]},
        "page": {"size": 500, "totalElements": 1200, "totalPages": 3, "number": 1},
    }
    body = json.dumps(page).encode()
    archive.script("page=1&size=500", [Fault(body=body)] * 9)
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert "the service names 1200 neurons and" in report.shortfall
    assert report.rows == 700


async def test_an_index_that_grows_while_paging_is_followed(archive, api, tmp_path):
    """The planned last page says that there is another: it joins the plan."""
    truth = archive.truth.neurons()
    pages = []
    for number in (2, 3):
        some = truth[1000:1100] if number == 2 else truth[1100:]
        page = {"size": 500, "totalElements": 1200, "totalPages": 4, "number": number}
        body = {"_embedded": {"neuronResources": some}, "page": page}
        pages.append(json.dumps(body, default=str).encode())
    archive.script("page=2&size=500", [Fault(body=pages[0])])
    archive.script("page=3&size=500", [Fault(body=pages[1])])
    report = await asyncfetch.download(api.neurons.plan(), tmp_path / "n")
    assert report.items == {"ok": 4}
    assert report.rows == 1200
    assert report.shortfall is None
    items = await items_of(tmp_path / "n")
    assert [one["follow_up"] for one in items if one["key"] == "page=2"] == [[3]]


async def test_a_page_without_its_neurons_is_a_failure_in_every_form(archive, api):
    page = {"size": 500, "totalElements": 1200, "totalPages": 3, "number": 1}
    body = json.dumps({"page": page}).encode()
    for output_type in ("json", "arrow"):
        archive.script("page=1&size=500", [Fault(body=body)] * 9)
        api.exchange._rng = Impatient()
        with pytest.raises(asyncfetch.ItemError, match="on page 1, got none"):
            await api.neurons.get(output_type=output_type)


async def test_complete_rows_are_not_complained_of(api, caplog):
    await api.neurons.get()
    assert not caplog.records


async def test_a_cut_answer_while_planning_is_asked_again(archive, api):
    cut = Fault(body=b'{"page": {"totalElem', framing="close")
    archive.script("/select", [cut, cut])
    api.exchange._rng = Impatient()
    assert len(await api.neurons.get(archive="Siegert")) >= 12


async def test_an_odd_first_page_is_asked_again_for_its_item(archive, api):
    # It says how many there are, and is another page than the one that was asked for.
    other = {"page": {"totalElements": 1100, "totalPages": 3, "number": 2}}
    archive.script("page=0&size=500", [Fault(body=json.dumps(other).encode())])
    api.exchange._rng = Impatient()
    assert len(await api.neurons.get()) == len(archive.truth.neurons())
    assert sum("page=0&" in one.target for one in archive.log) == 2


async def test_no_match_is_no_rows(api):
    assert await api.neurons.get(species="no such species") == []
    assert await api.traces.get(species="no such species") == []


async def test_links_in_records_are_never_followed(archive, api):
    await api.traces.get(neuron_name=SIEGERT)
    assert {one.target.split("/")[1] for one in archive.log} == {"neuromorpho"}


async def test_traces_are_the_nodes_of_their_files(archive, api):
    table = await api.traces.get(neuron_id=[1, 2, 3], output_type="arrow")
    assert table.column_names[:5] == [
        "neuron_id",
        "neuron_name",
        "archive",
        "version",
        "node_id",
    ]
    for neuron in (1, 2, 3):
        lines = archive.truth.swc(neuron).decode("latin-1").splitlines()
        wanted = [line.split() for line in lines if line.strip()[:1] not in {"#", ""}]
        got = [row for row in table.to_pylist() if row["neuron_id"] == neuron]
        assert [row["node_id"] for row in got] == [int(one[0]) for one in wanted]
        assert [row["parent_id"] for row in got] == [int(one[6]) for one in wanted]
        assert [row["x"] for row in got] == [float(one[2]) for one in wanted]
    assert set(table["version"].to_pylist()) == {"CNG"}


async def test_names_of_every_kind_lead_to_their_files(archive, api, tmp_path):
    plan = api.traces.plan()
    report = await asyncfetch.download(plan, tmp_path / "t")
    missing = sum(
        archive.truth.swc(one["neuron_id"]) is None for one in archive.truth.neurons()
    )
    assert report.items.get("missing", 0) == missing
    odd = [
        one
        for one in archive.truth.neurons()
        if set("+# %'()é") & set(one["neuron_name"])
    ]
    assert odd
    items = await items_of(tmp_path / "t")
    outcomes = {one["key"]: one["outcome"] for one in items}
    for one in odd:
        if archive.truth.swc(one["neuron_id"]) is not None:
            assert outcomes[f"neuron={one['neuron_id']}"] == "ok"


async def test_what_is_no_trace_is_a_failed_item_with_a_code(archive, api, tmp_path):
    archive.script(".CNG.swc", [Fault(body=b'{"status": 404}', framing="length")])
    plan = api.traces.plan(neuron_name=SIEGERT)
    report = await asyncfetch.download(plan, tmp_path / "t")
    assert report.items["failed"] == 1
    (item,) = [
        one for one in await items_of(tmp_path / "t") if one["outcome"] == "failed"
    ]
    assert item["diagnostics"] == ["not-swc"]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("rat", "rat"),
        ("Mus musculus & co", '"Mus musculus & co"'),
        ("layer 3", '"layer 3"'),
        ('say "x"', '"say \\"x\\""'),
        (SIEGERT, SIEGERT),
        ("humpback whal*", "humpback?whal*"),
        ("a:b", '"a:b"'),
    ],
)
def test_values_of_a_query_are_quoted_when_they_need_it(value, quoted):
    assert _select.quoted(value) == quoted


def test_several_filters_are_one_query_and_further_ones():
    request = _select.NEURONS.page(
        {"species": ["rat", "mouse"], "stain": ["x y"]}, 2, 500
    )
    assert request.target == (
        "/api/neuron/select?q=species:rat,mouse&fq=stain:%22x%20y%22"
        "&page=2&size=500&sort=neuron_id,asc"
    )


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_name_that_leaves_its_folder_makes_no_url(name):
    from asyncfetch.services._paging import segment

    with pytest.raises(asyncfetch.ConfigurationError, match="expected a name"):
        segment(name)

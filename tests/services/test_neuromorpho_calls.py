"""NeuroMorpho.Org: single calls, and what a query becomes on the wire."""

import json
from urllib.parse import unquote

import pytest

import asyncfetch
from asyncfetch import swc, sync, testing
from asyncfetch._model import Request
from asyncfetch.services import _select
from asyncfetch.testing import Fault
from tests.conftest import Impatient, answer, open_wire

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        yield api


async def test_a_neuron_is_found_by_its_id_or_its_name(api):
    assert (await api.neuron(1))["neuron_name"] == "cnic_001"
    assert (await api.neuron("cnic_001"))["neuron_id"] == 1
    named = await api.neuron("5038801")  # a name, although it is a number
    assert named["neuron_name"] == "5038801"


async def test_a_neuron_that_is_not_there_is_not_found_while_all_is_well(archive, api):
    with pytest.raises(asyncfetch.NotFound, match="no neurons 99999"):
        await api.neuron(99999)
    with pytest.raises(asyncfetch.NotFound, match="no_such"):
        await api.neuron("no_such")
    health = [one for one in archive.log if one.target.endswith("/api/health")]
    assert len(health) == 1


async def test_the_trace_of_a_neuron_is_read(archive, api):
    trace = await api.trace(1)
    assert isinstance(trace, swc.Morphology)
    same = swc.read_swc(archive.truth.swc(1))
    assert trace.nodes.equals(same.nodes)
    assert (await api.trace("cnic_001")).nodes.equals(same.nodes)


async def test_a_source_is_read_where_it_is_in_swc_and_said_to_be_where_not(
    archive, api
):
    there = next(
        one
        for one in archive.truth.neurons()
        if one["original_format"].endswith(".swc")
        and archive.truth.source(one["neuron_id"]) is not None
    )
    trace = await api.trace(there["neuron_id"], version="Source-Version")
    wanted = swc.read_swc(archive.truth.source(there["neuron_id"]))
    assert trace.nodes.equals(wanted.nodes)
    other = next(
        one for one in archive.truth.neurons() if one["original_format"].endswith("asc")
    )
    with pytest.raises(asyncfetch.ConfigurationError, match=r"in SWC.*is in\s+asc"):
        await api.trace(other["neuron_id"], version="source")


async def test_a_trace_that_is_not_there_is_not_found(api):
    with pytest.raises(asyncfetch.NotFound, match="no CNG trace of 36"):
        await api.trace(36)


async def test_a_trace_in_an_odd_folder_is_found_after_a_404(archive, api):
    assert (await api.trace(29)).n_roots == 1
    files = [one for one in archive.log if "/dableFiles/" in one.target]
    assert [one.status for one in files] == [404, 200]


@pytest.mark.parametrize(
    ("version", "end"),
    [
        ("CNG", "wearne_hof/CNG%20version/cnic_001.CNG.swc"),
        ("CNG version", "wearne_hof/CNG%20version/cnic_001.CNG.swc"),
        ("Source-Version", "wearne_hof/Source-Version/cnic_001.swc"),
        ("Source", "wearne_hof/Source-Version/cnic_001.swc"),
    ],
)
def test_the_url_of_a_trace_is_made_from_its_record(version, end):
    api = asyncfetch.NeuroMorpho(base_url="http://127.0.0.1:1/nm/")
    record = {
        "archive": "Wearne_Hof",
        "neuron_name": "cnic_001",
        "original_format": "Neurozoom.swc",
    }
    url = api.trace_url(record, version=version)
    assert url == f"http://127.0.0.1:1/nm/dableFiles/{end}"


@pytest.mark.parametrize(
    ("original_format", "ending"),
    [
        ("Custom.xml", ".morph.xml"),
        ("Neurolucida.asc", ".asc"),
        ("Imaris.ims", ".ims"),
        ("NeuronStudio 0.9.swc", ".swc"),
    ],
)
def test_a_source_ends_as_its_format_says(original_format, ending):
    api = asyncfetch.NeuroMorpho()
    record = {"archive": "A+B c", "neuron_name": "a#b/%20+é", "original_format": None}
    url = api.trace_url(
        {**record, "original_format": original_format}, version="source"
    )
    folder, file = url.split("/")[4], url.split("/")[6]
    assert unquote(folder) == "a+b c"
    assert unquote(file) == f"a#b/%20+é{ending}"
    with pytest.raises(asyncfetch.ConfigurationError, match="original_format"):
        api.trace_url(record, version="source")


def test_an_unknown_version_is_said_with_those_there_are():
    with pytest.raises(asyncfetch.ConfigurationError, match="CNG or Source"):
        asyncfetch.NeuroMorpho().trace_url({}, version="v9")


async def test_fields_values_and_partitions_come_whole(archive, api, monkeypatch):
    monkeypatch.setattr("asyncfetch.services.neuromorpho.PAGE", 7)
    assert {"species", "archive", "Physical_Integrity"} <= set(await api.fields())
    names = {one["neuron_name"] for one in archive.truth.neurons()}
    assert set(await api.field_values("neuron_name")) == names
    counts = await api.partition("Archive")
    assert sum(counts.values()) == len(names)
    assert counts["Siegert"] == 12
    assert await api.partition("physical_integrity")


async def test_health_is_what_the_service_says(archive, api):
    assert await api.health() == {"status": "UP"}
    archive.neuromorpho_is_away = True
    assert await api.health() == {"status": "DOWN"}


async def test_filters_are_named_without_regard_to_case(archive, api):
    found = await api.neurons.get(Species="rat", physical_integrity="Complete")
    wanted = [
        one["neuron_id"]
        for one in archive.truth.neurons(species="rat", physical_Integrity="Complete")
    ]
    assert wanted
    assert [one["neuron_id"] for one in found] == wanted


@pytest.mark.parametrize(
    "filters",
    [
        {"archive": ["Siegert", "Jacobs"]},
        {"brain_region": "layer 3"},
        {"neuron_name": ['the "big" one', "v1&v2, right", "a:b", "O'Brien (2)"]},
        {"fq": ["species:cat"]},
        {"q": "species:cat", "archive": "Mendell"},
    ],
)
async def test_filters_find_what_they_say(archive, api, filters):
    found = await api.neurons.get(**filters)
    assert found
    given = {k: v for k, v in filters.items() if k not in {"q", "fq"}}
    for name, values in given.items():
        values = values if isinstance(values, list) else [values]  # noqa: PLW2901
        for one in found:
            there = one[name] if isinstance(one[name], list) else [one[name]]
            assert set(there) & set(values)
    if "neuron_name" in filters:
        assert len(found) == 4


@pytest.mark.parametrize("says", ["400", "none"])
@pytest.mark.parametrize("table", ["neurons", "traces", "literature"])
async def test_fields_that_the_service_does_not_have_are_said(
    archive, api, says, table
):
    known = json.dumps({"Fields": ["Speciez", "archive"]}).encode()
    archive.script("/fields", [Fault(body=known)] * 2)
    page = {"size": 500, "totalElements": 0, "totalPages": 0, "number": 0}
    none = Fault(body=json.dumps({"page": page}).encode())
    archive.script("species", [Fault(status=400) if says == "400" else none] * 2)
    with pytest.raises(
        asyncfetch.ConfigurationError,
        match=r"no field 'species' now \(did you mean Speciez\?\); it has Speciez, ",
    ):
        await api.table(table).get(species="rat")


async def test_fields_are_asked_for_only_when_nothing_is_found(archive, api):
    assert await api.neurons.get(species="rat", limit=1)
    assert not any("fields" in one.target for one in archive.log)
    assert await api.neurons.get(physical_integrity="no such") == []  # in any case
    assert sum("fields" in one.target for one in archive.log) == 1
    archive.script("/fields", [Fault(status=404)])
    assert await api.neurons.get(species="no such") == []
    archive.script("species", [Fault(status=400)])
    with pytest.raises(asyncfetch.ResponseError, match="expected data, got 400"):
        await api.neurons.get(species="rat")


async def test_a_long_list_is_posted(archive, api):
    names = [one["neuron_name"] for one in archive.truth.neurons()]
    names = [name for name in names if "*" not in name]
    many = [*names, *(f"no such neuron {n}" for n in range(400))]
    found = await api.neurons.get(neuron_name=many)
    assert sorted(one["neuron_name"] for one in found) == sorted(names)
    assert {one.method for one in archive.log} == {"POST", "GET"}
    gets = [one.target for one in archive.log if one.method == "GET"]
    assert all("select" not in one for one in gets)


async def test_a_post_that_is_not_allowed_becomes_a_get_and_none_follows(archive, api):
    archive.script("/select", [Fault(status=405, body=b"{}")])
    many = ["Siegert", *(f"no such archive {n}" for n in range(400))]
    for _ in range(2):
        assert len(await api.neurons.get(archive=many)) == 12
    methods = [one.method for one in archive.log if "/select" in one.target]
    assert methods == ["POST", "GET", "GET"]


async def test_a_posted_query_is_asked_again_after_a_failure(archive, api):
    api.exchange._rng = Impatient()
    archive.script("/select", [Fault.html(502)])
    many = ["Siegert", *(f"no such archive {n}" for n in range(400))]
    assert len(await api.neurons.get(archive=many)) == 12


def test_a_posted_request_is_the_same_after_the_plan_was_read():
    request = _select.NEURONS.page({"archive": ["x" * 50] * 100}, 0, 500)
    assert request.method == "POST"
    assert json.loads(request.body) == {"archive": ["x" * 50] * 100}
    assert Request.from_json(request.to_json()) == request
    assert request.as_get.method == "GET"


@pytest.mark.parametrize(
    ("pattern", "sent"),
    [
        ("CB_CKp25_*", "CB_CKp25_*"),
        ("Chat-IRES-*", "Chat-IRES-*"),
        ("humpback whal?", "humpback?whal?"),
        ("a, b*", "a??b*"),
        ('x(1):"*', "x?1???*"),
    ],
)
def test_a_pattern_stays_one_pattern(pattern, sent):
    assert _select.quoted(pattern) == sent


async def test_a_wildcard_finds_what_it_stands_for(api):
    found = await api.neurons.get(neuron_name="CB_CKp25_2w_F_Animal01_0?")
    assert len(found) == 9


async def test_no_page_of_the_web_site_is_called_and_everyone_says_who_asks(
    archive, api
):
    await api.neurons.get()
    await api.trace(1)
    assert not any(".jsp" in one.target for one in archive.log)
    assert all("asyncfetch/" in one.user_agent for one in archive.log)


async def test_an_answer_without_fields_is_said_to_be_none():
    async with (
        open_wire(answer(b'{"page": {"totalElements": 1, "totalPages": 1}}')) as wire,
        asyncfetch.NeuroMorpho(base_url=wire.url) as api,
    ):
        with pytest.raises(asyncfetch.DecodeError, match="expected fields from"):
            await api.field_values("species")
        with pytest.raises(asyncfetch.DecodeError, match="expected a list of fields"):
            await api.fields()


def test_all_of_it_is_there_blocking():
    with (
        testing.serve_in_thread(scale=0.05) as archive,
        sync.NeuroMorpho(base_url=archive.neuromorpho) as api,
    ):
        record = api.neuron(1)
        assert api.trace(1).n_roots == 1
        assert api.trace_url(record).endswith("cnic_001.CNG.swc")
        assert "species" in api.fields()
        assert "rat" in api.field_values("species")
        assert api.partition("archive")["Siegert"] == 12
        assert api.health() == {"status": "UP"}
        assert len(api.morphometry.get(archive="Siegert")) == 12

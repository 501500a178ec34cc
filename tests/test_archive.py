"""What the embedded archive promises: the services' contracts, faults, and its log."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import urllib.request
import zlib
from collections import Counter
from email.utils import parsedate_to_datetime
from itertools import groupby, pairwise
from urllib.parse import quote, urlsplit

import aiohttp
import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from asyncfetch import testing
from asyncfetch.errors import ConfigurationError
from asyncfetch.testing import Fault
from asyncfetch.testing._faults import parse_faults


@pytest.fixture
async def archive():
    async with testing.serve(scale=0.1) as archive:
        yield archive


@pytest.fixture
async def http():
    # The bytes as they are on the wire: nothing is asked for or decoded unseen.
    async with aiohttp.ClientSession(
        auto_decompress=False, skip_auto_headers=["Accept-Encoding"]
    ) as session:
        yield session


async def get(http, url, *, gzipped=False):
    headers = {"Accept-Encoding": "gzip"} if gzipped else {}
    async with http.get(URL(url, encoded=True), headers=headers) as response:
        return response, await response.read()


async def get_json(http, url):
    response, body = await get(http, url)
    assert response.status == 200, body
    assert response.content_type == "application/json"
    return json.loads(body)


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def in_order(events):
    return sorted(events, key=lambda e: (e["predictor_id"], e["run_id"], e["onset"]))


# --- Neuroscout -----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.005, 1.0])
async def test_neuroscout_tutorials_run_at_every_scale(http, scale):
    async with testing.serve(scale=scale) as archive:
        api = archive.neuroscout
        (dataset,) = await get_json(http, f"{api}/datasets?name=SherlockMerlin")
        assert dataset["id"] == 5
        assert dataset["description"]["Name"] == "Sherlock_Merlin"
        assert dataset["long_description"].startswith("This dataset includes the data")
        tasks = await get_json(http, f"{api}/tasks?dataset_id=5")
        assert {(t["id"], t["name"]) for t in tasks} == {
            (4, "MerlinMovie"),
            (45, "SherlockMovie"),
        }
        runs = await get_json(http, f"{api}/runs?dataset_id=5")
        assert runs[0] == {
            "acquisition": None,
            "dataset_id": 5,
            "duration": 1453.5,
            "id": 1428,
            "number": None,
            "session": None,
            "subject": "17",
            "task": 45,
            "task_name": "SherlockMovie",
        }
        assert {
            run["id"]: run["subject"] for run in runs if run["id"] in {134, 117, 1410}
        } == {134: "36", 117: "19", 1410: "25"}
        film = await get_json(http, f"{api}/runs?dataset_id=28&task_id=50")
        assert (film[0]["id"], film[0]["subject"]) == (1581, "18")
        assert film[0]["duration"] == 5470.0
        for number, ids in ((1, [328, 344, 336]), (2, [331, 323, 355])):
            raiders = await get_json(http, f"{api}/runs?dataset_id=10&number={number}")
            assert [run["id"] for run in raiders] == ids
        predictors = await get_json(http, f"{api}/predictors?run_id=1581")
        assert [predictor["name"] for predictor in predictors[:5]] == [
            "sharpness",
            "tool",
            "subtlexusfrequency_FREQcount",
            "subtlexusfrequency_CDcount",
            "subtlexusfrequency_FREQlow",
        ]
        assert predictors[0]["mean"] == 0.8604099357979763
        assert predictors[0]["extracted_feature"]["id"] == 425739
        events = await get_json(
            http, f"{api}/predictor-events?predictor_id=40254&run_id=1581"
        )
        row = {"duration": 1.0, "predictor_id": 40254, "run_id": 1581}
        assert in_order(events)[:2] == [
            {**row, "onset": 0.0, "value": "0.03137254901960784"},
            {**row, "onset": 1.0, "value": "0.0196078431372549"},
        ]
        events = await get_json(http, f"{api}/predictor-events?predictor_id=12725")
        assert {
            "duration": 0.30100000000000016,
            "onset": 72.422,
            "predictor_id": 12725,
            "run_id": 134,
            "value": "1",
        } in events
        analyses = await get_json(http, f"{api}/analyses?name=speech")
        assert (analyses[-1]["hash_id"], analyses[-1]["dataset_id"]) == ("52546", 30)
        life = await get_json(http, f"{api}/predictors/12905")
        assert (life["dataset_id"], life["name"]) == (9, "speech")
        run = await get_json(http, f"{api}/runs/236")
        assert (run["subject"], run["task_name"]) == ("rid000001", "life")


def test_scale_multiplies_events_and_keeps_runs():
    counts = {}
    for scale in (1.0, 3.0):
        with testing.serve_in_thread(scale=scale) as archive:
            truth = archive.truth
            assert len(truth.runs()) == 100
            ids = [predictor["id"] for predictor in truth.predictors()]
            counts[scale] = truth.count_events(ids)
            # The tutorial's data frame has 25 740 rows of speech in MerlinMovie.
            runs = [run["id"] for run in truth.runs(task=4)]
            assert truth.count_events(12725, runs) == 25_740 * scale
    assert counts[1.0] == pytest.approx(1_000_000, rel=0.1)
    assert counts[3.0] == pytest.approx(3 * counts[1.0], rel=0.01)


@pytest.mark.parametrize("timing", ["", "&stimulus_timing=true"])
async def test_events_are_the_truth_in_the_form_of_production(archive, http, timing):
    ids = [p["id"] for p in archive.truth.predictors(dataset_id=5)]
    runs = [117, 118, 1410, 1428]
    url = (
        f"{archive.neuroscout}/predictor-events?predictor_id={','.join(map(str, ids))}"
        f"&run_id={','.join(map(str, runs))}{timing}"
    )
    response, body = await get(http, url, gzipped=True)
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in response.headers
    plain, identity = await get(http, url)
    assert "Content-Encoding" not in plain.headers
    assert int(plain.headers["Content-Length"]) == len(identity)
    assert gzip.decompress(body) == identity
    events = json.loads(identity)
    assert canonical(events) == identity
    truth = archive.truth.events(ids, runs, stimulus_timing=bool(timing))
    assert sorted(map(canonical, events)) == sorted(map(canonical, truth))
    assert len(events) == archive.truth.count_events(ids, runs)


async def test_rows_of_several_runs_are_interleaved_and_unsorted(archive, http):
    url = f"{archive.neuroscout}/predictor-events?predictor_id=12725&run_id="
    runs = "117,118,119,120,121"
    events = await get_json(http, url + runs)
    segments = [run for run, _ in groupby(event["run_id"] for event in events)]
    assert len(segments) > len(events) // 4
    ours = [event["onset"] for event in events if event["run_id"] == 119]
    assert any(later < earlier for earlier, later in pairwise(ours))
    other = await get_json(http, url + "121,120,119,118,117")
    assert other != events
    assert in_order(other) == in_order(events)


async def test_raw_predictors_come_first_and_carry_a_stimulus_id(archive, http):
    raw, extracted = 12738, 12725
    url = f"{archive.neuroscout}/predictor-events?predictor_id={extracted},{raw}"
    for timing in ("false", "true"):
        events = await get_json(http, f"{url}&run_id=117&stimulus_timing={timing}")
        order = [key for key, _ in groupby(event["predictor_id"] for event in events)]
        assert order == [raw, extracted]
        assert all(e["stimulus_id"] is None for e in events if e["predictor_id"] == raw)
        has_stimulus = {
            "stimulus_path" in e and "stimulus_id" in e
            for e in events
            if e["predictor_id"] == extracted
        }
        assert has_stimulus == {timing == "true"}


async def test_values_are_text_and_may_be_anything(archive, http):
    by_name = {p["name"]: p["id"] for p in archive.truth.predictors(dataset_id=28)}
    url = f"{archive.neuroscout}/predictor-events?run_id=1581&predictor_id="
    captions = await get_json(http, f"{url}{by_name['caption']}")
    assert {"a, b, and c", "line one\nline two", 'he said "no"', "雨"} & {
        event["value"] for event in captions
    }
    numbers = await get_json(http, f"{url}{by_name['concreteness']}")
    assert "n/a" in {event["value"] for event in numbers}
    assert all(isinstance(event["value"], str) for event in numbers)
    trials = await get_json(http, f"{url}{by_name['trial_type']}")
    assert {event["duration"] for event in trials} == {None}
    faces = await get_json(http, f"{url}{by_name['face_probability']}")
    assert max(Counter(event["onset"] for event in faces).values()) > 1


async def test_subjects_of_one_film_share_extracted_events_but_not_raw_ones(archive):
    def values(predictor, run):
        return [
            (event["onset"], event["value"])
            for event in archive.truth.events(predictor, run)
        ]

    assert values(12726, 117) == values(12726, 1410)
    assert values(12726, 117) != values(12726, 1428)
    assert values(12738, 117) != values(12738, 1410)


async def test_pairs_without_events_are_silently_absent(archive, http):
    url = f"{archive.neuroscout}/predictor-events?predictor_id="
    assert await get_json(http, f"{url}999999") == []
    assert await get_json(http, f"{url}12725&run_id=1581") == []
    everything = {
        (p["id"], run["id"])
        for p in archive.truth.predictors(dataset_id=5)
        for run in archive.truth.runs(dataset_id=5)
    }
    lacking = [pair for pair in everything if not archive.truth.count_events(*pair)]
    assert 0 < len(lacking) < len(everything) / 10
    twice = await get_json(http, f"{url}12725,12725&run_id=117,117")
    assert in_order(twice) == archive.truth.events(12725, 117)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("runs?bogus=1", {"bogus": ["Unknown field."]}),
        ("runs?acquisition=mb8", {"acquisition": ["Unknown field."]}),
        ("predictors?dataset_id=5", {"dataset_id": ["Unknown field."]}),
        ("runs?number=", {"number": {"0": ["Not a valid integer."]}}),
        ("runs?number=1,x", {"number": {"1": ["Not a valid integer."]}}),
        ("runs?active_only=maybe", {"active_only": ["Not a valid boolean."]}),
        ("runs?dataset_id=5,9", {"dataset_id": ["Not a valid integer."]}),
        ("predictor-events", {"predictor_id": ["Missing data for required field."]}),
    ],
)
async def test_parameters_that_the_service_refuses(archive, http, query, message):
    response, body = await get(http, f"{archive.neuroscout}/{query}")
    assert response.status == 422
    assert json.loads(body) == {"message": {"query": message}}


async def test_the_first_of_repeated_parameters_wins(archive, http):
    runs = await get_json(http, f"{archive.neuroscout}/runs?number=1&number=2")
    assert {run["number"] for run in runs} == {1}
    both = await get_json(http, f"{archive.neuroscout}/runs?number=1%2C2")
    assert {run["number"] for run in both} == {1, 2}


@pytest.mark.parametrize("path", ["nope", "runs/", "runs/abc", "auth"])
async def test_unknown_paths_are_html_under_200(archive, http, path):
    response, body = await get(http, f"{archive.neuroscout}/{path}")
    assert (response.status, response.content_type) == (200, "text/html")
    assert body.startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize("path", ["datasets/9999", "runs/9999", "predictors/9999"])
async def test_unknown_ids_are_404_in_json(archive, http, path):
    response, body = await get(http, f"{archive.neuroscout}/{path}")
    assert response.status == 404
    assert json.loads(body) == {"message": "Resource not found"}


@pytest.mark.parametrize(
    ("length", "status"), [(4081, 200), (4082, 502), (8179, 502), (8180, 414)]
)
async def test_long_targets_fail_as_behind_gunicorn_and_nginx(
    archive, http, length, status
):
    url = f"{archive.neuroscout}/predictor-events?predictor_id=1"
    url += ",1" * ((length - len(url) + len(archive.url)) // 2)
    url += "1" * (length - len(url) + len(archive.url))
    response, body = await get(http, url)
    assert response.status == status
    assert body.startswith(b"<html>") == (status != 200)
    assert len(archive.log[-1].target) == length


async def test_post_to_a_table_is_405(archive, http):
    async with http.post(f"{archive.neuroscout}/runs") as response:
        assert (response.status, response.content_type) == (405, "text/html")


async def test_predictors_hold_nan_literals(archive, http):
    _, body = await get(http, f"{archive.neuroscout}/tasks/4/predictors")
    assert b'"max":NaN' in body
    raw = [p for p in json.loads(body) if "extracted_feature" not in p]
    assert {p["source"] for p in raw} == {"fmriprep", "events"}


async def test_task_predictors_are_those_of_all_its_runs(archive, http):
    by_task = await get_json(http, f"{archive.neuroscout}/tasks/45/predictors")
    ids = ",".join(str(run["id"]) for run in archive.truth.runs(task=45))
    by_runs = await get_json(http, f"{archive.neuroscout}/predictors?run_id={ids}")
    assert {p["id"] for p in by_task} == {p["id"] for p in by_runs}
    assert "vibrance" not in {p["name"] for p in by_task}
    assert await get_json(http, f"{archive.neuroscout}/predictors?run_id=999999") == []


async def test_newest_keeps_one_of_a_name_before_it_hides_private_ones(archive, http):
    url = f"{archive.neuroscout}/predictors"
    (speech,) = await get_json(http, f"{url}?name=speech")
    assert speech["dataset_id"] == 30
    budapest = archive.truth.runs(dataset_id=30)[0]["id"]
    hidden = f"{url}?run_id={budapest}&name=brightness"
    assert await get_json(http, hidden) == []
    (shown,) = await get_json(http, f"{hidden}&newest=false")
    (upload,) = archive.truth.predictors(private=True, name="brightness")
    assert upload["id"] > shown["id"]
    assert await get_json(http, f"{url}/{upload['id']}") == upload
    events = await get_json(
        http, f"{archive.neuroscout}/predictor-events?predictor_id={upload['id']}"
    )
    assert len(events) == archive.truth.count_events(upload["id"]) > 0
    versions = await get_json(http, f"{url}?run_id=117&name=rms&newest=false")
    assert {p["id"] for p in versions} == {12600, 12726}
    inactive = f"{url}?run_id=1581&name=vibrance"
    assert await get_json(http, inactive) == []
    assert await get_json(http, f"{inactive}&active_only=false")


async def test_an_inactive_dataset_is_unlisted_but_served(archive, http):
    api = archive.neuroscout
    listed = {d["id"] for d in await get_json(http, f"{api}/datasets")}
    every = {d["id"] for d in await get_json(http, f"{api}/datasets?active_only=false")}
    assert every - listed == {21}
    dataset = await get_json(http, f"{api}/datasets/21")
    assert dataset["runs"] == [run["id"] for run in archive.truth.runs(dataset_id=21)]
    assert await get_json(http, f"{api}/runs?dataset_id=21") == []
    assert len(await get_json(http, f"{api}/runs?dataset_id=21&active_only=0")) == 4
    assert len(await get_json(http, f"{api}/runs?dataset_id=0")) == 96


async def test_runs_differ_in_what_they_have(archive, http):
    runs = await get_json(http, f"{archive.neuroscout}/runs")
    for field in ("number", "session", "acquisition"):
        assert {run[field] is None for run in runs} == {True, False}
    assert sum(run["duration"] is None for run in runs) == 1
    sessions = await get_json(
        http, f"{archive.neuroscout}/runs?session=perceptionTraining01&subject=01"
    )
    assert {run["dataset_id"] for run in sessions} == {1}


async def test_everything_depends_on_the_seed_and_the_request_alone(http):
    paths = (
        "/neuroscout/api/predictor-events?predictor_id=12726,12738&run_id=117",
        "/neuroscout/api/runs",
        "/neuromorpho/api/neuron?size=500",
        "/neuromorpho/dableFiles/wearne_hof/CNG%20version/cnic_001.CNG.swc",
    )
    served = []
    for seed in (1, 1, 2):
        async with testing.serve(seed=seed, scale=0.06) as archive:
            bodies = [await get(http, archive.url + path) for path in paths]
            served.append([body for _, body in bodies])
    assert served[0] == served[1]
    assert all(one != other for one, other in zip(served[0], served[2], strict=True))


# --- NeuroMorpho.Org ------------------------------------------------------------------


def select(archive, query):
    return f"{archive.neuromorpho}/api/neuron/select?{query}"


async def names(http, url):
    page = await get_json(http, url)
    found = page.get("_embedded", {"neuronResources": []})["neuronResources"]
    assert page["page"]["totalElements"] == len(found)
    return {record["neuron_name"] for record in found}


def file_url(archive, record, version="CNG version", ends=".CNG.swc"):
    segments = (record["archive"].lower(), version, record["neuron_name"] + ends)
    path = "/".join(quote(segment, safe="") for segment in segments)
    return f"{archive.neuromorpho}/dableFiles/{path}"


async def test_neuron_1_is_the_public_record(archive, http):
    record = await get_json(http, f"{archive.neuromorpho}/api/neuron/id/1")
    assert record == await get_json(
        http, f"{archive.neuromorpho}/api/neuron/name/cnic_001"
    )
    assert list(record)[:5] == [
        "neuron_id",
        "neuron_name",
        "archive",
        "note",
        "age_scale",
    ]
    assert record["archive"] == "Wearne_Hof"
    assert record["reference_doi"][0] == "10.1016/S0306-4522(02)00305-6"
    assert record["surface"] == "8842.91"
    assert '<a href=" dableFiles/previous/v6.1/' in record["note"]
    assert len(record) == 45
    measured = await get_json(http, f"{archive.neuromorpho}/api/morphometry/id/1")
    assert (measured["surface"], measured["soma_Surface"]) == (8842.91, 834.0)


async def test_pages_are_clamped_and_hold_every_neuron_once(http):
    async with testing.serve(scale=2) as archive:
        seen, number = [], 0
        while True:
            url = f"{archive.neuromorpho}/api/neuron?size=1000&page={number}"
            page = await get_json(http, url)
            assert (page["page"]["size"], page["page"]["number"]) == (500, number)
            if "_embedded" not in page:
                break
            seen += [r["neuron_id"] for r in page["_embedded"]["neuronResources"]]
            assert ("next" in page["_links"]) == (number < 3)
            assert ("prev" in page["_links"]) == (number > 0)
            for link in page["_links"].values():
                assert urlsplit(link["href"]).netloc == "neuromorpho.org"
            number += 1
    assert page["page"]["totalElements"] == len(seen) == len(set(seen)) == 2000
    assert page["page"]["totalPages"] == number == 4
    assert seen == sorted(seen)
    assert seen[-5:] == [102367, 102368, 102369, 102370, 102371]


async def test_pages_have_fifty_records_by_default_and_can_be_sorted(archive, http):
    url = f"{archive.neuromorpho}/api/neuron"
    page = await get_json(http, url)
    assert len(page["_embedded"]["neuronResources"]) == 50
    page = await get_json(http, f"{url}?sort=neuron_id,neuron_id,desc&size=1")
    assert page["_embedded"]["neuronResources"][0]["neuron_id"] == 102371
    page = await get_json(http, f"{url}?sort=neuron_name&size=500")
    found = [r["neuron_name"] for r in page["_embedded"]["neuronResources"]]
    assert found == sorted(found)


async def test_no_match_is_a_page_without_embedded(archive, http):
    page = await get_json(http, select(archive, "q=species:unicorn"))
    assert "_embedded" not in page
    assert page["page"]["totalElements"] == 0


async def test_the_tutorial_finds_the_siegert_neurons(archive, http):
    dozen = {f"CB_CKp25_2w_F_Animal01_{n:02}" for n in range(1, 13)}
    url = f"{archive.neuromorpho}/api/neuron/select/?q=neuron_name:CB_CKp25_2w_F_*"
    assert await names(http, url) == dozen
    assert await names(http, select(archive, "q=archive:Siegert")) == dozen
    five = await names(
        http, select(archive, "q=archive:%22Allen+Cell+Types%22&size=500")
    )
    assert "Chat-IRES-Cre-neo_Ai14-287662-04-02-01_614444566_m" in five


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("q=species:rat,cat", lambda r: r["species"] in {"rat", "cat"}),
        (
            "q=species:rat&fq=gender:Male&fq=protocol:in+vivo",
            lambda r: (
                (r["species"], r["gender"], r["protocol"]) == ("rat", "Male", "in vivo")
            ),
        ),
        ("q=species:humpback?whale", lambda r: r["species"] == "humpback whale"),
        ("q=species:*whale", lambda r: r["species"] == "humpback whale"),
        ("q=brain_region:%22layer+3%22", lambda r: "layer 3" in r["brain_region"]),
        ("q=species:RAT", lambda _: False),
    ],
)
async def test_select_has_or_and_wildcards_and_quotes(archive, http, query, matches):
    expected = {r["neuron_name"] for r in archive.truth.neurons() if matches(r)}
    assert await names(http, select(archive, query + "&size=500")) == expected
    assert bool(expected) == (query != "q=species:RAT")


async def test_posted_queries_match_those_in_the_url(archive, http):
    body = {"species": ["rat", "cat"], "gender": ["Male"]}
    url = select(archive, "page=0&size=500")
    async with http.post(url, json=body) as response:
        posted = (await response.json())["_embedded"]["neuronResources"]
    query = "q=species:rat,cat&fq=gender:Male&size=500"
    assert {r["neuron_name"] for r in posted} == await names(
        http, select(archive, query)
    )


@pytest.mark.parametrize(
    "path",
    [
        "select?q=bogus:1",
        "select?q=species:rat&fq=bogus:1",
        "select?fq=species:rat",
        "select?q=rat",
        "fields/bogus",
        "partition/bogus",
        "?sort=bogus,asc",
    ],
)
async def test_what_select_does_not_know_is_400(archive, http, path):
    response, body = await get(http, f"{archive.neuromorpho}/api/neuron/{path}")
    assert response.status == 400
    assert json.loads(body)["error"] == "Bad Request"


async def test_other_methods_are_405(archive, http):
    async with http.put(select(archive, "q=species:rat")) as response:
        assert response.status == 405
    async with http.post(f"{archive.neuromorpho}/api/neuron") as response:
        assert response.status == 405
        assert response.content_type == "application/json"


async def test_fields_and_partition_are_paged(archive, http):
    api = f"{archive.neuromorpho}/api/neuron"
    fields = (await get_json(http, f"{api}/fields"))["Neuron Fields"]
    assert {"neuron_id", "species", "Physical_Integrity"} <= {*fields}
    first = await get_json(http, f"{api}/fields/archive?size=4")
    second = await get_json(http, f"{api}/fields/archive?size=4&page=1")
    assert len(first["fields"]) == 4
    assert not {*first["fields"]} & {*second["fields"]}
    counts = await get_json(http, f"{api}/partition/archive?size=500")
    truth = Counter(record["archive"] for record in archive.truth.neurons())
    assert counts["fields"] == truth
    assert counts["page"]["totalPages"] == 1
    strains = await get_json(http, f"{api}/partition/strain")
    assert {"", "null"} <= {*strains["fields"]}


async def test_odd_names_can_be_found_and_their_files_fetched(archive, http):
    odd = [r for r in archive.truth.neurons() if 14 <= r["neuron_id"] <= 25]
    together = "".join(record["neuron_name"] for record in odd)
    assert {*" +#%'()&,\":*?"} <= {*together}
    assert not together.isascii()
    for record in odd:
        escaped = record["neuron_name"].replace("\\", "\\\\").replace('"', '\\"')
        query = "q=" + quote(f'neuron_name:"{escaped}"', safe="")
        assert await names(http, select(archive, query)) == {record["neuron_name"]}
        response, body = await get(http, file_url(archive, record))
        assert response.status == 200
        assert body == archive.truth.swc(record["neuron_id"])


async def test_folders_are_lower_case_and_a_plus_is_a_plus(archive, http):
    (record,) = archive.truth.neurons(neuron_id=15)
    assert record["archive"] in {"Hay+Markram", "Allen Cell Types"}
    joined = next(r for r in archive.truth.neurons(archive="Hay+Markram"))
    url = file_url(archive, joined)
    assert "hay%2Bmarkram" in url
    assert (await get(http, url))[0].status == 200
    assert (await get(http, url.replace("%2B", "+")))[0].status == 200
    response, body = await get(http, url.replace("hay%2Bmarkram", "Hay+Markram"))
    assert (response.status, response.content_type) == (404, "text/html")
    assert body.startswith(b"<html>")


async def test_missing_records_are_404_json_and_missing_files_404_html(archive, http):
    response, body = await get(http, f"{archive.neuromorpho}/api/neuron/id/99999")
    assert response.status == 404
    assert json.loads(body)["path"] == "/api/neuron/id/99999"
    missing = [
        r for r in archive.truth.neurons() if archive.truth.swc(r["neuron_id"]) is None
    ]
    assert 0 < len(missing) < 5
    for record in missing:
        response, _ = await get(http, file_url(archive, record))
        assert (response.status, response.content_type) == (404, "text/html")


def rows_of(body):
    lines = body.decode("utf-8-sig", "replace").splitlines()
    return [line.split() for line in lines if line and line.lstrip()[0] != "#"]


async def test_a_cng_file_is_a_clean_tree(archive, http):
    (record,) = archive.truth.neurons(neuron_id=1)
    response, body = await get(http, file_url(archive, record))
    assert response.content_type == "text/plain"
    assert int(response.headers["Content-Length"]) == len(body)
    rows = rows_of(body)
    assert body.startswith(b"# Original file cnic_001.swc")
    assert body.endswith(b"\n")
    assert b"\r" not in body
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert [int(row[6]) for row in rows[:3]] == [-1, 1, 1]
    assert {row[1] for row in rows[:3]} == {"1"}
    assert float(rows[1][3]) == -float(rows[2][3]) == -float(rows[0][5])
    assert all(0 < int(row[6]) < int(row[0]) for row in rows[1:])
    assert {row[1] for row in rows} <= {"1", "2", "3", "4"}


async def test_a_file_is_served_in_parts_and_on_conditions(archive, http):
    (record,) = archive.truth.neurons(neuron_id=1)
    url = URL(file_url(archive, record), encoded=True)
    response, whole = await get(http, str(url))
    etag, modified = (response.headers[one] for one in ("ETag", "Last-Modified"))
    size = len(whole)

    async def ask(**headers):
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        async with http.get(url, headers=sent) as response:
            return response.status, response.headers, await response.read()

    for mark in ({}, {"If_Range": etag}, {"If_Range": modified}):
        status, headers, body = await ask(Range="bytes=100-", **mark)
        assert (status, body) == (206, whole[100:])
        assert headers["Content-Range"] == f"bytes 100-{size - 1}/{size}"
        assert headers["ETag"] == etag
    assert (await ask(Range="bytes=5-9"))[2] == whole[5:10]
    assert (await ask(Range="bytes=-7"))[2] == whole[-7:]
    for asked in ("bytes=0-1,4-5", "items=0-1", "bytes=-", "bytes=x-"):
        assert (await ask(Range=asked))[::2] == (200, whole)
    for mark in ('"other"', f"W/{etag}", "Thu, 21 May 2015 12:00:01 GMT"):
        assert (await ask(Range="bytes=100-", If_Range=mark))[::2] == (200, whole)
    status, headers, body = await ask(Range=f"bytes={size}-", If_Range=etag)
    assert (status, headers["Content-Range"], body) == (416, f"bytes */{size}", b"")
    assert (await ask(If_None_Match=f'"x", W/{etag}'))[::2] == (304, b"")
    assert (await ask(If_Modified_Since=modified))[0] == 304
    assert (await ask(If_None_Match='"x"', If_Modified_Since=modified))[0] == 200


async def test_cng_files_differ_as_documented():
    async with testing.serve() as archive:
        swc = archive.truth.swc
        bodies = [swc(n) or b"" for n in range(200, 500)]
        nodes = [len(rows_of(body)) for body in bodies if body]
        assert sum(nodes) / len(nodes) == pytest.approx(800, rel=0.05)
        blank = sum(b"\n 2 1 " in body for body in bodies)
        assert blank / len(bodies) == pytest.approx(0.18, abs=0.08)
        assert any(b"# ORIGINAL_SOURCE\n" in body for body in bodies)
        assert any(body and not body.startswith(b"#") for body in bodies)
        assert sum(row[6] == "-1" for row in rows_of(swc(31))) == 2
        assert "-1" in {row[1] for row in rows_of(swc(32))}
        assert swc(33) == b""
        assert b"Z\xfcrich" in swc(34)
        assert swc(35).startswith(b"\xef\xbb\xbf#")
        assert swc(36) is None


async def test_source_files_have_their_own_extension_and_dialects(http):
    async with testing.serve(scale=1) as archive:
        truth = archive.truth
        seen = set()
        for record in truth.neurons():
            _, _, ends = record["original_format"].partition(".")
            ends = ".morph.xml" if ends == "xml" else f".{ends}"
            source = truth.source(record["neuron_id"])
            if ends not in seen:
                url = file_url(archive, record, "Source-Version", ends)
                response, body = await get(http, url)
                assert response.status == (404 if source is None else 200)
                assert source is None or body == source
                seen.add(ends)
        assert {".swc", ".asc", ".morph.xml"} <= seen
        wrong = file_url(archive, record, "Source-Version", ".asc")
        assert (await get(http, wrong))[0].status == 404
        sources = [
            truth.source(r["neuron_id"])
            for r in truth.neurons()
            if r["original_format"].endswith("swc")
        ]
        assert 0 < sources.count(None) < len(sources) / 5
        texts = [source.decode() for source in sources if source]
        assert any("\t" in text for text in texts)
        assert any("\r\n" in text for text in texts)
        assert any(" # the last node" in text for text in texts)
        assert any("\n1.0 1.0 " in text for text in texts)
        assert any(not text.split("\n")[1].endswith(" -1") for text in texts)


async def test_records_take_forms_that_clients_do_not_expect(archive):
    records = archive.truth.neurons()
    assert any(isinstance(r["magnification"], int) for r in records)
    assert any(isinstance(r["brain_region"], str) for r in records)
    assert any(r["cell_type"] is None for r in records)
    assert any("tracing_quality" in r for r in records)
    assert any(r["slicing_thickness"] == "100-200" for r in records)
    assert any(r["min_age"] == "Not reported" for r in records)
    assert any(r["reference_doi"] == [] for r in records)


async def test_health_is_up_and_measurements_may_be_missing(archive, http):
    api = f"{archive.neuromorpho}/api"
    assert await get_json(http, f"{api}/health") == {"status": "UP"}
    as_text = await get_json(http, f"{api}/morphometry/id/3")
    assert isinstance(as_text["length"], str)
    assert (await get_json(http, f"{api}/morphometry/id/4"))["pk_classic"] is None
    assert (await get(http, f"{api}/morphometry/id/53"))[0].status == 404


# --- faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "bogus=1",
        "error",
        "error=much",
        "error=-0.1",
        "error=1.5",
        "error=nan",
        "error=0.6,reset=0.6",
        "throttle=5",
        "throttle=0/s",
        "throttle=5/week",
        "throttle=5/s,throttle_style=loud",
        "throttle=5/s,throttle_headers=draft-99",
        "outage=5",
        "latency=normal:1:2",
        "latency=uniform:1",
    ],
)
def test_faults_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigurationError, match=r"unknown fault|expected"):
        parse_faults(text)


def test_an_unknown_fault_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"'resset'.*reset_body.*throttle"):
        parse_faults("resset=0.1")


@given(
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    targets=st.lists(st.text(), unique=True, min_size=1),
)
def test_the_fate_of_a_request_is_its_own(share, seed, targets):
    def fates(order):
        plan = parse_faults(f"truncate={share},seed={seed}")
        return {(t, k): plan.draw(t, k) for t in order for k in range(3)}

    assert fates(targets) == fates(targets[::-1])


def test_faults_come_as_often_as_asked_and_a_retry_can_succeed():
    plan = parse_faults("error=0.2,reset=0.1,drip=0.1,seed=3")
    drawn = [plan.draw(f"/{n}", 0) for n in range(2000)]
    assert sum(f is None for f in drawn) / 2000 == pytest.approx(0.6, abs=0.05)
    assert {f.status for f in drawn if f and f.status} == {500, 502, 503}
    unlucky = [n for n, fault in enumerate(drawn) if fault]
    again = [plan.draw(f"/{n}", 1) for n in unlucky]
    assert sum(f is None for f in again) / len(again) == pytest.approx(0.6, abs=0.1)


@given(nth=st.integers(0, 100), target=st.text())
def test_latencies_follow_their_distribution(nth, target):
    assert 0.01 <= parse_faults("latency=uniform:0.01:0.1").delay(target, nth) <= 0.1
    assert parse_faults("latency=lognormal:0.05:0.5").delay(target, nth) > 0
    assert parse_faults("latency=lognormal:0.05:0").delay(target, nth) == 0.05
    assert parse_faults("").delay(target, nth) == 0


EVENTS = "/neuroscout/api/predictor-events?predictor_id=12725&run_id=117"


@pytest.mark.parametrize("where", ["reset=1", "reset_body=1", "outage=0+1000"])
async def test_resets_are_seen_by_the_client_and_logged_as_status_0(http, where):
    async with testing.serve(faults=where) as archive:
        with pytest.raises(
            (
                aiohttp.ClientPayloadError,
                aiohttp.ClientOSError,
                aiohttp.ServerDisconnectedError,
            )
        ):
            await get(http, archive.url + EVENTS)
        assert {entry.status for entry in archive.log} == {0}
        assert any(entry.bytes > 0 for entry in archive.log) == ("body" in where)


async def test_a_truncated_body_is_shorter_than_its_content_length(http):
    async with testing.serve(faults="truncate=1") as archive:
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(http, archive.url + EVENTS)
        assert archive.log[0].status == 200


async def test_a_silent_truncation_looks_like_a_whole_answer(http):
    async with testing.serve(faults="truncate_silent=1") as archive:
        response, body = await get(http, archive.url + EVENTS)
        assert response.status == 200
        assert "Content-Length" not in response.headers
        assert "Transfer-Encoding" not in response.headers
        assert len(body) == archive.log[0].bytes > 0
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)


async def test_a_truncated_gzip_stream_ends_in_clean_chunks(http):
    async with testing.serve(faults="truncate_gzip=1") as archive:
        response, body = await get(http, archive.url + EVENTS, gzipped=True)
        assert response.headers["Transfer-Encoding"] == "chunked"
        stream = zlib.decompressobj(wbits=31)
        assert stream.decompress(body)
        assert not stream.eof
        # What is not compressed cannot be cut like this.
        assert (await get_json(http, archive.url + EVENTS))[0]["run_id"] == 117


async def test_html_and_error_objects_come_under_200(http):
    async with testing.serve(faults="html=1") as archive:
        response, body = await get(http, archive.url + EVENTS, gzipped=True)
        assert (response.status, response.content_type) == (200, "text/html")
        assert b"Service Interruption Notice" in body
    async with testing.serve(faults="error_object=1") as archive:
        error = await get_json(http, archive.url + EVENTS)
        assert error["status"] == 500
        assert error["path"] == "/neuroscout/api/predictor-events"


async def test_unavailable_says_when_to_come_back_in_both_forms(http):
    async with testing.serve(faults="unavailable=1") as archive:
        forms = set()
        for n in range(20):
            response, _ = await get(http, f"{archive.url}{EVENTS}&n={n}")
            assert response.status == 503
            after = response.headers["Retry-After"]
            forms.add(after.isdecimal())
            assert after.isdecimal() or parsedate_to_datetime(after).tzinfo
        assert forms == {True, False}


@pytest.mark.parametrize("style", ["seconds", "date", "none"])
async def test_throttled_requests_get_429(http, style):
    faults = f"throttle=3/min,throttle_style={style}"
    async with testing.serve(faults=faults) as archive:
        answers = [(await get(http, archive.url + EVENTS))[0] for _ in range(5)]
        assert [a.status for a in answers] == [200, 200, 200, 429, 429]
        after = answers[-1].headers.get("Retry-After")
        match style:
            case "seconds":
                assert 0 < int(after) <= 60
            case "date":
                assert parsedate_to_datetime(after).tzinfo
            case "none":
                assert after is None


async def test_a_dripping_body_is_whole_in_the_end(archive, http):
    archive.script("events", [Fault.drip(piece=1000, pause=0.001)])
    pieces = []
    async with http.get(archive.url + EVENTS) as response:
        async for piece, _ in response.content.iter_chunks():
            pieces.append(piece)
    assert len(pieces) > 1
    assert in_order(json.loads(b"".join(pieces))) == archive.truth.events(12725, 117)


async def test_scripted_faults_are_met_in_turn_and_then_no_more(archive, http):
    archive.script(
        "runs",
        [
            Fault.refuse(429, retry_after=7),
            Fault(),
            Fault(status=418, headers={"X-Reason": "tea"}, body=b"short and stout"),
            Fault.reset(after=10),
        ],
    )
    url = f"{archive.neuroscout}/runs"
    refused, _ = await get(http, url)
    assert (refused.status, refused.headers["Retry-After"]) == (429, "7")
    assert (await get(http, f"{archive.neuroscout}/datasets"))[0].status == 200
    assert (await get(http, url))[0].status == 200
    teapot, body = await get(http, url)
    assert (teapot.status, teapot.headers["X-Reason"]) == (418, "tea")
    assert body == b"short and stout"
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
        await get(http, url)
    assert (archive.log[-1].status, archive.log[-1].bytes) == (0, 10)
    assert (await get(http, url))[0].status == 200


async def test_head_has_the_headers_and_no_body(archive, http):
    async with http.head(archive.url + EVENTS) as response:
        assert int(response.headers["Content-Length"]) > 0
        assert await response.read() == b""
    assert archive.log[-1].bytes == 0


# --- the log, and ways to run it ------------------------------------------------------


async def test_the_log_has_every_request_as_it_was_on_the_wire(http, tmp_path):
    path = tmp_path / "log.jsonl"
    async with testing.serve(log=path) as archive:
        targets = ["/neuroscout/api/runs?number=1%2C2", "/neuromorpho/api/health", "/x"]
        for target in targets:
            url = URL(archive.url + target, encoded=True)
            async with http.get(url, headers={"User-Agent": "mine/1"}) as response:
                size = len(await response.read())
            # Before the archive ends: a killed one has lost nothing.
            last = json.loads(path.read_text().splitlines()[-1])
            assert (last["target"], last["bytes"]) == (target, size)
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        assert [entry["target"] for entry in entries] == targets
        assert [entry["status"] for entry in entries] == [200, 200, 404]
        assert {entry["user_agent"] for entry in entries} == {"mine/1"}
        assert {entry["method"] for entry in entries} == {"GET"}
        assert [entry["t"] for entry in entries] == [e.t for e in archive.log]
        assert {*entries[0]} == {
            "t", "method", "target", "status", "bytes", "user_agent"
        }  # fmt: skip


async def test_a_client_that_leaves_is_logged_with_status_0(archive):
    archive.script("runs", [Fault(delay=3600)])
    host, port = urlsplit(archive.url).netloc.split(":")
    stream = await anyio.connect_tcp(host, int(port))
    await stream.send(b"GET /neuroscout/api/runs HTTP/1.1\r\nHost: x\r\n\r\n")
    await anyio.wait_all_tasks_blocked()
    await stream.aclose()
    with anyio.fail_after(10):
        while not archive.log:
            await anyio.wait_all_tasks_blocked()
    assert archive.log[0].status == 0


def test_blocking_code_has_an_archive_in_a_thread():
    with testing.serve_in_thread(scale=0.01) as archive:
        assert archive.environment() == {
            "ASYNCFETCH_NEUROSCOUT_URL": archive.neuroscout,
            "ASYNCFETCH_NEUROMORPHO_URL": archive.neuromorpho,
            "ASYNCFETCH_ALYX_URL": archive.alyx,
            "ASYNCFETCH_NEUROVAULT_URL": archive.neurovault,
            "ALYX_USER": "intbrainlab",
            "ALYX_PASSWORD": "international",
        }
        for n in range(20):
            url = f"{archive.neuromorpho}/api/neuron/id/{n + 1}"
            with urllib.request.urlopen(url) as response:
                assert json.load(response)["neuron_id"] == n + 1
            assert len(archive.log) == n + 1
    assert len(archive.log) == 20


async def test_an_unknown_fault_stops_the_archive_before_it_listens():
    with pytest.raises(ConfigurationError):
        async with testing.serve(faults="bogus=1"):
            pytest.fail("it listens")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to catch")
async def test_run_serves_until_sigterm():
    ready = []

    def on_ready(archive):
        ready.append(archive.environment())
        os.kill(os.getpid(), signal.SIGTERM)

    await testing.run(
        port=0, seed=0, scale=0.01, latency=0.0, faults="", log=None, on_ready=on_ready
    )
    assert ready[0]["ASYNCFETCH_NEUROSCOUT_URL"].endswith("/neuroscout/api")

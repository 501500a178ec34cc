"""Alyx: every row once, whatever its pages do, and calls that say what is wrong."""

import datetime as dt
import json
import uuid
from pathlib import Path, PureWindowsPath

import pandas as pd
import pytest

import asyncfetch
from asyncfetch import sync, testing
from asyncfetch._alyx_schema import ENDPOINTS
from asyncfetch.services import _schemes, alyx  # noqa: F401 - heavy, so not in a loop
from asyncfetch.testing import Fault
from asyncfetch.testing._alyx import PUBLIC, WRITER, AlyxService
from asyncfetch.testing._alyx_data import INSERTION, SESSION
from tests.conftest import Impatient

pytestmark = pytest.mark.anyio


@pytest.fixture
async def archive():
    async with testing.serve(scale=1) as archive:
        yield archive


@pytest.fixture
async def one(archive):
    async with asyncfetch.Alyx(archive.alyx, *PUBLIC) as one:
        yield one


@pytest.fixture
async def writer(archive):
    async with asyncfetch.Alyx(archive.alyx, *WRITER) as one:
        yield one


def identities(endpoint, records):
    key = ENDPOINTS[endpoint].identity
    return [str(record[key]).rpartition("/")[2] for record in records]


def true_identities(archive, endpoint, **filters):
    key = ENDPOINTS[endpoint].identity
    name = "id" if key == "url" else key
    return [str(row[name]) for row in archive.truth.alyx(endpoint, **filters)]


def listed(archive):
    return [e.target for e in archive.log if "auth-token" not in e.target]


# --- exact tables ---------------------------------------------------------------------


async def test_pages_by_offset_repeat_rows_and_leave_others_out(archive, one):
    """What makes ranges of keys necessary; the archive does it as the service does."""
    found = []
    for offset in range(0, 5135, 1000):
        found += await one.rest("files", "list", limit=1000, offset=offset)
    assert len(found) == 5135
    assert len({record["url"] for record in found}) < 5135


@pytest.mark.parametrize(
    "endpoint", [e.name for e in ENDPOINTS.values() if e.is_listed and e.identity]
)
async def test_every_list_holds_every_row_once(archive, one, endpoint):
    found = identities(endpoint, await one.rest(endpoint, "list"))
    assert sorted(found) == sorted(true_identities(archive, endpoint))


@pytest.mark.parametrize(
    ("endpoint", "filters"),
    [
        ("datasets", {"lab": "cortexlab"}),
        ("datasets", {"exists": True}),
        ("datasets", {"tag": "2021_Q1_IBL_et_al_Behaviour"}),
        ("sessions", {"dataset_qc_lte": "FAIL"}),
        ("files", {"exists": False}),
        ("trajectories", {"provenance": "Ephys aligned histology track"}),
    ],
)
async def test_filtered_lists_hold_every_row_once(archive, one, endpoint, filters):
    found = identities(endpoint, await one.rest(endpoint, "list", **filters))
    truth = true_identities(
        archive, endpoint, **{k: str(v) for k, v in filters.items()}
    )
    assert len(truth) > 20
    assert sorted(found) == sorted(truth)


async def test_a_limit_counts_distinct_rows(archive, one):
    """A join repeats sessions; two are wanted, and two others are not enough."""
    found = await one.rest("sessions", "list", dataset_qc_lte="FAIL", limit=2)
    assert len({record["id"] for record in found}) == len(found) == 2


async def test_a_range_that_is_too_full_is_divided(archive, one, monkeypatch):
    monkeypatch.setattr("asyncfetch.services._listing.ROWS_PER_ITEM", 4000)
    found = await one.files.get(output_type="arrow")
    assert len(set(found["id"].to_pylist())) == found.num_rows == 5135


async def test_whole_numbers_as_keys_are_divided_as_well(archive, one, monkeypatch):
    whole = await one.rest("brain-regions", "list")
    page = {"count": len(whole), "next": None, "results": whole[:5]}
    archive.script("/brain-regions", [Fault(body=json.dumps(page).encode())])
    found = await one.rest("brain-regions", "list")
    key = identities("brain-regions", whole)
    assert sorted(identities("brain-regions", found)) == sorted(key)
    assert any("pk__gte" in target for target in listed(archive))


async def test_missing_rows_are_reported(archive, one, tmp_path):
    row = {"name": "a", "description": "", "users": []}
    page = {"count": 3, "next": None, "previous": None, "results": [row]}
    archive.script("/projects", [Fault(body=json.dumps(page).encode())] * 9)
    report = await asyncfetch.download(one.projects.plan(), tmp_path / "p")
    assert "counts 3 projects and 1 distinct ones came" in report.shortfall


async def test_a_download_is_resumed_by_what_it_holds(archive, one, tmp_path):
    plan = one.files.plan()
    report = await asyncfetch.download(plan, tmp_path / "f")
    assert (report.rows, report.shortfall) == (5135, None)
    asked = len(archive.log)
    again = await asyncfetch.download(one.files.plan(), tmp_path / "f")
    assert (again.rows, again.requests, len(archive.log)) == (5135, 0, asked)


async def test_columns_are_typed_and_ids_come_from_urls(archive, one):
    table = await one.datasets.get(output_type="arrow", lab="cortexlab")
    truth = {row["id"]: row for row in archive.truth.alyx("datasets", lab="cortexlab")}
    for row in table.to_pylist():
        true = truth.pop(row["id"])
        assert row["file_size"] == true["file_size"]
        assert row["auto_datetime"].isoformat() == true["auto_datetime"]
        assert row["public"] is bool(true["tags"])
        assert json.loads(row["file_records"])[0]["exists"] is True
        assert row["extra"] is None
    assert not truth


async def test_many_ids_are_asked_in_lines_that_the_service_takes(archive, one):
    ids = true_identities(archive, "datasets")[:300]
    found = await one.rest("datasets", "list", django={"id__in": ids})
    assert sorted(identities("datasets", found)) == sorted(ids)
    assert max(map(len, listed(archive))) < 4094 - 13


async def test_the_users_own_bounds_of_keys_stay(archive, one):
    bound = "80000000-0000-4000-8000-000000000000"
    found = await one.rest("files", "list", django={"pk__gte": bound})
    truth = [i for i in true_identities(archive, "files") if i >= bound]
    assert sorted(identities("files", found)) == sorted(truth)


async def test_a_stream_holds_every_row_once(archive, one):
    ids = []
    async with one.datasets.stream() as batches:
        async for batch in batches:
            ids += batch.column("id").to_pylist()
    assert sorted(ids) == sorted(true_identities(archive, "datasets"))


async def test_a_table_that_knows_no_ranges_is_paged(archive, one):
    rows = [{"name": str(n), "description": ""} for n in range(5)]
    for offset in (0, 2, 4):
        page = {"count": 5, "results": rows[offset : offset + 2]}
        where = f"offset={offset}" if offset else "/projects"
        archive.script(where, [Fault(body=json.dumps(page).encode())])
    found = await one.rest("projects", "list")
    assert [record["name"] for record in found] == [str(n) for n in range(5)]


# --- calls ----------------------------------------------------------------------------


async def test_what_there_is_gets_printed_and_returned(archive, one, capsys):
    endpoints = await one.rest()
    assert endpoints == await one.alyx.list_endpoints()
    assert {"sessions", "cache", "cache.zip", "uploaded"} <= set(endpoints)
    assert not {"api", "auth-token", ""} & set(endpoints)
    assert "sessions" in capsys.readouterr().out
    assert "partial_update" in await one.rest("sessions")
    await one.alyx.print_endpoint_info("sessions", action="list")
    lines = capsys.readouterr().out.splitlines()
    assert "'list'" in lines
    assert '\t"limit": integer, Number of results to return per page.' in lines


@pytest.mark.parametrize("is_old", [False, True])
async def test_both_schema_documents_read_alike(archive, one, is_old):
    service = next(s for s in archive._services if isinstance(s, AlyxService))
    service.is_old = is_old
    schemes = await one.alyx.rest_schemes
    assert schemes.backend == ("core_api" if is_old else "open_api_v3")
    text = schemes["sessions"]["list"]["description"]
    assert text.startswith("**FILTERS**")
    assert "histology" in schemes.field_names("sessions", "list")
    assert schemes.url("subjects", "read") == "/subjects/{nickname}"
    assert schemes.actions("weighings") == _schemes.bundled().actions("weighings")
    assert set(schemes.endpoints) - {"docs"} == set(_schemes.bundled().endpoints)


async def test_schemes_are_there_without_a_server(caplog):
    async with asyncfetch.Alyx("http://127.0.0.1:9") as one:
        one.exchange._rng = Impatient()
        schemes = await one.rest_schemes
    assert schemes.backend == "bundled"
    assert "histology" in schemes.field_names("sessions", "list")
    assert "is not there" in caplog.text


@pytest.mark.parametrize(
    ("call", "filters", "words"),
    [
        (("sessios", "list"), {}, "did you mean sessions"),
        (("sessions", "lst"), {}, "did you mean list"),
        (("weighings", "update"), {}, "has no action 'update'"),
        (("sessions", "list"), {"histlogy": True}, "did you mean histology"),
        (("sessions", "list"), {"brain_region": "CA1"}, "no filter 'brain_region'"),
        (("sessions", "list"), {"histology": "maybe"}, "expected bool"),
        (("sessions", "read", "4ecb"), {}, "expected the UUID"),
        (("sessions", "read"), {}, "expected id for read"),
        (("sessions", "list"), {"qc": "ERROR"}, "got ERROR"),
        (("sessions", "list"), {"date_range": "a,b,c"}, "one or two dates"),
    ],
)
async def test_calls_that_would_be_misread_are_errors(one, call, filters, words):
    with pytest.raises(asyncfetch.ConfigurationError, match=words):
        await one.rest(*call, **filters)


async def test_an_exception_of_the_service_is_said_and_not_asked_for_again(
    archive, one
):
    with pytest.raises(asyncfetch.ResponseError, match="did you mean projects") as e:
        await one.rest("sessions", "list", django="projetcs__name,x")
    assert e.value.status == 500
    assert len(listed(archive)) == 1


async def test_a_filter_that_the_service_fails_on_is_explained(one):
    with pytest.raises(asyncfetch.ResponseError, match="use django="):
        await one.rest("weighings", "list", lab="cortexlab")


async def test_an_exact_lookup_without_rows_is_said_to_heed_case(one, caplog):
    query = "subject__nickname__exact,ks022"
    assert await one.rest("sessions", "list", django=query) == []
    assert "iexact does not" in caplog.text


async def test_html_under_a_good_status_is_no_list(archive, one):
    page = b"<!doctype html><title>500 Internal Server Error</title>"
    fault = Fault(body=page, headers={"Content-Type": "text/html"})
    archive.script("/labs", [fault] * 9)
    one.exchange._rng = Impatient()
    with pytest.raises(asyncfetch.IntegrityError, match="HTML"):
        await one.rest("labs", "list")


async def test_a_session_is_read_by_id_and_by_url(archive, one):
    record = await one.rest("sessions", "read", id=SESSION)
    assert record["extended_qc"]["_videoLeft_pin_state"][1] == 9
    again = await one.rest("sessions", "read", id=f"{archive.alyx}/sessions/{SESSION}")
    assert again == record == await one.sessions.get(SESSION)
    with pytest.raises(asyncfetch.NotFound, match="No Session matches"):
        await one.rest("sessions", "read", id=INSERTION)
    water = await one.rest("water-type", "read", id="Water")
    assert water["name"] == "Water"


async def test_records_are_made_changed_and_deleted(writer):
    when = "2026-01-02T10:00:00"
    made = await writer.rest(
        "sessions", "create", data={"subject": "KS014", "start_time": when}
    )
    assert made["start_time"] == when
    changed = await writer.rest(
        "sessions", "partial_update", id=made["id"], data={"narrative": "n"}
    )
    assert changed["narrative"] == "n"
    assert await writer.rest("sessions", "delete", id=made["id"]) is None
    with pytest.raises(asyncfetch.NotFound):
        await writer.rest("sessions", "read", id=made["id"])
    with pytest.raises(asyncfetch.ResponseError, match="subject: This field is"):
        await writer.rest("sessions", "create", data={"start_time": when})


async def test_a_note_takes_its_image_as_a_file(writer, tmp_path):
    image = tmp_path / "i.png"
    image.write_bytes(b"\x89PNG")
    data = {
        "content_type": "session",
        "object_id": SESSION,
        "text": "t",
    }
    note = await writer.rest("notes", "create", data=data, files={"image": image})
    assert (note["text"], note["image"]) == ("t", "i.png")


async def test_keys_of_json_fields_change_one_by_one(writer):
    field = ("insertions", INSERTION)
    before = (await writer.rest("insertions", "read", id=INSERTION))["json"]
    after = await writer.json_field_update(*field, "json", {"new": 1})
    assert after == {**before, "new": 1}
    assert await writer.json_field_remove_key(*field, key="new") == before
    with pytest.raises(asyncfetch.NotFound, match="no key 'new'"):
        await writer.json_field_remove_key(*field, key="new")
    await writer.json_field_write(*field, "json", {"a": 2})
    await writer.json_field_delete(*field)
    assert (await writer.rest("insertions", "read", id=INSERTION))["json"] is None


async def belonging(one):
    """What the tutorial's session is known by without a request."""
    of = {"session": SESSION}
    (record, *_) = await one.rest("sessions", "list", id=SESSION)
    (trajectory, *_) = await one.rest(
        "trajectories", "list", probe_insertion=INSERTION, limit=1
    )
    where = {"probe_insertion": INSERTION, "output_type": "arrow"}
    return [
        *(SESSION.upper(), SESSION.replace("-", ""), uuid.UUID(SESSION)),
        *(record, record["url"], f"{record['url']}/", {"id": SESSION}),
        *({"eid": SESSION}, pd.Series(record)),
        f"https://example.org/admin/actions/session/{SESSION}/change/",
        (await one.rest("datasets", "list", **of, limit=1))[0],
        (await one.rest("tasks", "list", **of, limit=1))[0],
        await one.rest("insertions", "read", id=INSERTION),
        next(n for n in await one.rest("notes", "list") if n["object_id"] == SESSION),
        trajectory,
        (await one.trajectories.get(**where)).to_pylist()[0],
    ]


async def test_sessions_are_known_by_what_belongs_to_them(archive, one):
    some = await belonging(one)
    asked = len(archive.log)
    assert await one.to_eid(some) == [SESSION] * len(some)
    ids = [await one.to_eid(of) for of in some]
    assert ids == [SESSION] * len(some)
    assert len(archive.log) == asked


@pytest.mark.parametrize(
    "of",
    [
        "2019-12-03_1_KS014",
        "2019-12-03_001_KS014",
        "cortexlab/Subjects/KS014/2019-12-03/001/alf/spikes.times.npy",
        Path("/data/cortexlab/Subjects/KS014/2019-12-03/001"),
        PureWindowsPath(r"C:\data\cortexlab\Subjects\KS014\2019-12-03\001"),
        {"subject": "KS014", "date": dt.date(2019, 12, 3), "sequence": 1},
        {"subject": "KS014", "start_time": "2019-12-03T16:20:05", "number": 1},
    ],
)
async def test_sessions_are_found_by_what_people_call_them(one, of):
    assert await one.to_eid(of) == SESSION


async def test_sessions_are_found_by_what_points_at_them(archive, one):
    (dataset, *_) = await one.rest("datasets", "list", session=SESSION)
    (file, *_) = await one.rest("files", "list", dataset=dataset["url"][-36:])
    for of in (file, dataset["url"], f"{archive.alyx}/insertions/{INSERTION}"):
        asked = len(archive.log)
        assert await one.to_eid(of) == SESSION
        assert len(archive.log) == asked + 1
    for row in archive.truth.alyx("datasets", session=SESSION)[:1]:
        row["session"] = None  # one of many sessions
    with pytest.raises(asyncfetch.NotFound, match="no session of datasets"):
        await one.to_eid(f"{archive.alyx}/datasets/{row['id']}")
    with pytest.raises(asyncfetch.NotFound, match="no sessions of KS014"):
        await one.to_eid("2001-12-03_1_KS014")


async def test_several_sessions_come_in_any_container(one):
    table = await one.sessions.get(output_type="arrow", subject="KS014")
    ids = table["id"].to_pylist()
    assert SESSION in ids
    frame = table.to_pandas()
    for some in (
        *(table, table.to_batches()[0], table["id"], frame, frame["id"]),
        *(frame["id"].to_numpy(), frame.set_index("id"), tuple(ids)),
        *(dict.fromkeys(ids).keys(), (one for one in ids)),
    ):
        assert await one.to_eid(some) == ids
    assert await one.to_eid({SESSION}) == [SESSION]
    assert await one.to_eid([]) == []


async def test_what_belongs_to_no_session_is_an_error(one):
    """Most of it has an id of the same form."""
    (channel, *_) = await one.rest("channels", "list", limit=1)
    (lab, *_) = await one.rest("labs", "list", limit=1)
    (tag, *_) = await one.rest("tags", "list", limit=1)
    (weighing, *_) = await one.rest("weighings", "list", limit=1)
    for of in (channel, lab, tag, weighing, {}, None, "", 5, [None], "nonsense"):
        with pytest.raises(asyncfetch.ConfigurationError, match="expected a session's"):
            await one.to_eid(of)


# --- answers that are kept ------------------------------------------------------------


async def test_answers_are_kept_until_something_is_written(archive, tmp_path):
    async with asyncfetch.Alyx(archive.alyx, *WRITER, cache=tmp_path) as one:
        before = await one.rest("sessions", "read", id=SESSION)
        await one.rest("labs", "list")
        asked = len(archive.log)
        assert await one.rest("sessions", "read", id=SESSION) == before
        assert len(await one.rest("labs", "list")) == 5
        assert len(archive.log) == asked
        assert len(await one.rest("labs", "list", no_cache=True)) == 5
        assert len(archive.log) == asked + 1
        data = {"narrative": "new"}
        await one.rest("sessions", "partial_update", id=SESSION, data=data)
        after = await one.rest("sessions", "read", id=SESSION)
        assert after["narrative"] == "new"
    async with asyncfetch.Alyx(archive.alyx, *WRITER, cache=tmp_path) as one:
        asked = len(archive.log)
        assert await one.rest("sessions", "read", id=SESSION) == after
        assert len(archive.log) == asked


async def test_answers_that_are_kept_are_one_users_and_grow_old(archive, tmp_path):
    for account, seconds in ((WRITER, 300), (PUBLIC, 300), (PUBLIC, 0)):
        options = {"cache": tmp_path, "cache_seconds": seconds}
        async with asyncfetch.Alyx(archive.alyx, *account, **options) as one:
            asked = len(listed(archive))
            await one.rest("labs", "list")
            assert len(listed(archive)) == asked + 1


async def test_json_fields_change_from_what_the_service_has_now(archive, tmp_path):
    field = ("insertions", INSERTION)
    async with (
        asyncfetch.Alyx(archive.alyx, *WRITER, cache=tmp_path) as one,
        asyncfetch.Alyx(archive.alyx, *WRITER) as other,
    ):
        await one.rest("insertions", "read", id=INSERTION)
        await other.json_field_update(*field, data={"other": 1})
        after = await one.json_field_update(*field, data={"mine": 2})
    assert (after["other"], after["mine"]) == (1, 2)


# --- credentials ----------------------------------------------------------------------


async def test_a_token_that_is_forgotten_is_got_again(archive, one):
    await one.rest("labs", "list")
    archive.reset_tokens()
    assert len(await one.rest("labs", "list")) == 5
    assert [e.status for e in archive.log if "auth-token" in e.target] == [200, 200]


@pytest.mark.parametrize(
    ("credentials", "words"),
    [
        ({}, "wants credentials"),
        ({"token": "0" * 40}, "does not know the token"),
        ({"username": "a", "password": "secret-of-a"}, "Unable to log in"),
    ],
)
async def test_what_is_wrong_with_credentials_is_told_apart(
    archive, credentials, words
):
    async with asyncfetch.Alyx(archive.alyx, **credentials) as api:
        with pytest.raises(asyncfetch.AuthenticationError, match=words) as error:
            await api.rest("labs", "list")
    assert "secret-of-a" not in str(error.value)


async def test_a_reader_may_not_write(one):
    with pytest.raises(asyncfetch.AuthenticationError, match="may not do that"):
        await one.rest("sessions", "partial_update", id=SESSION, data={"narrative": ""})


async def test_notices_of_the_service_are_logged_once(archive, one, caplog):
    headers = {"Alyx-API-Notice": "!!! update ONE"}
    archive.script("/labs", [Fault(headers=headers)] * 2)
    await one.rest("labs", "list")
    await one.rest("labs", "list")
    assert caplog.text.count("update ONE") == 1


def test_the_blocking_client_does_the_same(capsys):
    with (
        testing.serve_in_thread(scale=0.05) as archive,
        sync.Alyx(archive.alyx, *PUBLIC) as one,
    ):
        found = one.alyx.rest("sessions", "list", subject="KS014")
        assert SESSION in one.to_eid(found)
        text = one.alyx.rest_schemes["sessions"]["list"]["description"]
        assert text.startswith("**FILTERS**")

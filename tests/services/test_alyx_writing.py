"""What the archive's Alyx makes of writes, and how it refuses them."""

import json
import urllib.error
import urllib.request

import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch.services import alyx
from asyncfetch.testing._alyx import PUBLIC, WRITER
from asyncfetch.testing._alyx_data import INSERTION, SESSION, TAG
from tests.conftest import look

pytestmark = pytest.mark.anyio

PATH = "KS014/2019-12-03/001"


@pytest.fixture
async def archive():
    async with testing.serve(scale=0.1) as archive:
        yield archive


@pytest.fixture
async def writer(archive):
    async with asyncfetch.Alyx(archive.alyx, *WRITER) as one:
        yield one


async def refused(call):
    """Status and words of the refusal of a call."""
    with pytest.raises(asyncfetch.ResponseError) as error:
        await call
    return error.value.status, error.value.excerpt


def ask(url, method="GET", body=None, **headers):
    """Status, headers and body of an answer, whatever it is."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def logged_in(archive):
    account = dict(zip(("username", "password"), WRITER, strict=True))
    kind = {"Content-Type": "application/json"}
    body = ask(f"{archive.alyx}/auth-token", "POST", account, **kind)[2]
    return {"Authorization": f"Token {json.loads(body)['token']}", **kind}


# --- records --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "key", "data", "words"),
    [
        ("sessions", SESSION, {"subject": "NO"}, "subject: Object with nickname=NO"),
        ("sessions", SESSION, {"projects": ["no"]}, "projects: Object with name=no"),
        ("sessions", SESSION, {"users": "ines"}, "users: Expected a list of items"),
        ("sessions", SESSION, {"number": "x"}, "number: A valid integer"),
        ("sessions", SESSION, {"start_time": "noon"}, "start_time: Datetime has wrong"),
        ("sessions", SESSION, {"subject": None}, "subject: This field may not be null"),
        ("sessions", SESSION, {"qc": "GOOD"}, "qc: Invalid qc, choices are: NOT_SET"),
        ("subjects", "KS014", {"nickname": "a b"}, "nickname: Nicknames must only"),
        ("subjects", "KS014", {"nickname": "KS022"}, "nickname: subject with this"),
        ("subjects", "KS014", [1], "non_field_errors: Invalid data."),
        ("trajectories", None, {"x": "far"}, "x: A valid number is required."),
        ("tasks", None, {"status": "Ready"}, "status: Invalid status, choices are"),
    ],
)
async def test_a_value_that_does_not_fit_is_refused_by_its_field(
    writer, endpoint, key, data, words
):
    if key is None:
        key = (await writer.rest(endpoint, "list", limit=1))[0]["id"]
    before = await writer.rest(endpoint, "read", id=key)
    status, said = await refused(
        writer.rest(endpoint, "partial_update", id=key, data=data)
    )
    assert status == 400
    assert said.startswith(words)
    assert await writer.rest(endpoint, "read", id=key) == before


async def test_a_put_must_hold_all_that_is_required(archive, writer):
    where = ("sessions", "update")
    status, said = await refused(writer.rest(*where, id=SESSION, data={"number": "x"}))
    assert status == 400
    assert said == (
        "subject: This field is required.; start_time: This field is required.; "
        "number: A valid integer is required."
    )
    whole = {"subject": "KS022", "start_time": "2020-01-02T03:04:05", "number": 7}
    changed = await writer.rest(*where, id=SESSION, data=whole)
    assert changed.items() >= whole.items()
    headers = await look(logged_in, archive)
    answer = await look(
        lambda: ask(f"{archive.alyx}/sessions/{SESSION}", "PUT", {}, **headers)
    )
    required = ["This field is required."]
    assert (answer[0], json.loads(answer[2])) == (
        400,
        {"subject": required, "start_time": required, "status_code": 400},
    )


async def test_relations_change_and_what_the_service_sets_does_not(writer):
    data = {
        "projects": ["matlab_legacy", "ibl_behaviour"],
        "users": ["ines"],
        "procedures": [],
        "qc": "FAIL",
        "id": INSERTION,
        "url": "elsewhere",
        "unknown": 1,
    }
    changed = await writer.rest("sessions", "partial_update", id=SESSION, data=data)
    assert changed["projects"] == data["projects"]
    assert (changed["users"], changed["procedures"]) == (["ines"], [])
    assert (changed["qc"], changed["id"]) == ("FAIL", SESSION)
    assert changed["url"].endswith(SESSION)
    region = await writer.rest(
        "brain-regions",
        "partial_update",
        id=500,
        data={"description": "d", "name": "n"},
    )
    assert (region["description"], region["name"]) == ("d", "Somatomotor areas")


async def test_a_new_session_belongs_to_its_lab_and_to_who_made_it(writer):
    made = await writer.rest(
        "sessions",
        "create",
        data={"subject": "KS014", "start_time": "2026-01-02T10:00:00"},
    )
    assert (made["lab"], made["users"]) == ("cortexlab", ["writer"])
    assert (made["extended_qc"], made["json"]) == (None, None)


async def test_a_note_on_nothing_is_an_exception_of_the_service(writer):
    data = {"content_type": "actions.session", "object_id": INSERTION, "text": "t"}
    assert await refused(writer.rest("notes", "create", data=data)) == (
        500,
        "Session matching query does not exist.",
    )
    note = await writer.rest("notes", "create", data={**data, "object_id": SESSION})
    assert note["user"] == "writer"


async def test_a_dataset_of_a_release_is_not_deleted(archive, writer):
    rows = archive.truth.alyx("datasets")
    tagged = next(row for row in rows if row["tags"])
    free = next(row for row in rows if not row["tags"])
    status, said = await refused(writer.rest("datasets", "delete", id=tagged["id"]))
    assert status == 403
    assert said == (
        f"Failed to delete dataset {tagged['name']} due to protected tag(s) "
        f'"{tagged["tags"][0]["name"]}"'
    )
    assert await writer.rest("datasets", "delete", id=free["id"]) is None


# --- files that somebody has ----------------------------------------------------------


async def test_files_are_registered(archive, writer):
    data = {
        "created_by": "ines",
        "path": f"{PATH}/alf",
        "filenames": ["_ibl_wheel.position.npy", "probe00/spikes.times.npy"],
        "hashes": ["a" * 32, "b" * 32],
        "filesizes": [10, 20],
        "versions": ["3.0", "3.0"],
        "name": "cortexlab_SR",
    }
    old, new = await writer.rest("register-file", "create", data=data)
    known = {row["id"] for row in archive.truth.alyx("datasets")}
    assert old["id"] in known
    assert (new["collection"], new["dataset_type"]) == ("alf/probe00", "spikes.times")
    assert (new["session"], new["created_by"]) == (SESSION, "ines")
    copies = [(one["data_repository"], one["exists"]) for one in new["file_records"]]
    assert copies == [("cortexlab_SR", True)]
    record = await writer.rest("datasets", "read", id=new["id"])
    assert (record["file_size"], record["hash"]) == (20, "b" * 32)
    changed = await writer.rest("datasets", "read", id=old["id"])
    assert (changed["file_size"], changed["hash"]) == (10, "a" * 32)
    count = len(await writer.rest("datasets", "list", session=SESSION))
    await writer.rest("register-file", "create", data=data)
    assert len(await writer.rest("datasets", "list", session=SESSION)) == count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "NOPE/2019-12-03/001"}, 'A subject with nickname "NOPE" does not'),
        ({"path": "KS014/2001-01-01/001"}, "There is no session"),
        ({"path": "KS014"}, "should be subject/date/number"),
        ({"filenames": ["alf/no.such"]}, "No dataset type"),
        ({"filenames": ["alf/#2001-01-01#/spikes.times.npy"]}, "There is no revision"),
        ({"name": "nowhere"}, "There is no data repository"),
    ],
)
async def test_files_that_belong_nowhere_are_refused(archive, writer, changes, words):
    data = {"path": PATH, "filenames": ["alf/spikes.times.npy"], **changes}
    before = len(archive.truth.alyx("datasets"))
    status, said = await refused(writer.rest("register-file", "create", data=data))
    assert status == 400
    assert words in said
    assert len(archive.truth.alyx("datasets")) == before


async def test_protected_files_are_not_registered_again(archive, writer):
    data = {
        "path": PATH,
        "filenames": ["alf/_ibl_wheel.position.npy"],
        "check_protected": True,
    }
    headers = await look(logged_in, archive)
    status, _, body = await look(
        lambda: ask(f"{archive.alyx}/register-file", "POST", data, **headers)
    )
    assert (status, json.loads(body)) == (
        403,
        {
            "error": "One or more datasets is protected",
            "details": [{"_ibl_wheel.position.npy": [{"": True}]}],
            "status_code": 403,
        },
    )
    _, said = await refused(writer.rest("register-file", "create", data=data))
    assert said.endswith('protected: {"_ibl_wheel.position.npy": [{"": true}]}')


async def test_downloads_are_counted_by_user_and_dataset(archive, writer):
    ids = [row["id"] for row in archive.truth.alyx("datasets")[:2]]
    first = await writer.rest("new-download", "create", data={"datasets": ids[0]})
    data = {"datasets": ",".join(ids), "projects": ""}
    again = await writer.rest("new-download", "create", data=data)
    assert (first["count"], again["count"]) == ([1], [2, 1])
    assert again["download"][0] == first["download"][0]
    found = await writer.rest("downloads", "list")
    assert {one["id"]: one["count"] for one in found} == dict(
        zip(again["download"], again["count"], strict=True)
    )
    async with asyncfetch.Alyx(archive.alyx, *PUBLIC) as one:
        with pytest.raises(asyncfetch.AuthenticationError, match="may not do that"):
            await one.rest("new-download", "create", data=data)


# --- tables of a release, and the rate limit ------------------------------------------


async def test_a_release_has_tables_of_its_own(archive, writer):
    headers = await look(logged_in, archive)
    where = f"{archive.alyx}/cache/info"
    info = json.loads((await look(lambda: ask(f"{where}/{TAG}/", **headers)))[2])
    rows = archive.truth.alyx("datasets", tag=TAG)
    assert info["tables"]["datasets"]["nrecs"] == len(rows) > 10
    assert info["database_tags"] == [TAG]
    tables = alyx._tables.Tables(await writer._archive(info["location"]))
    assert set(tables.datasets["id"].to_pylist()) == {row["id"] for row in rows}
    of = {row["session"]["id"] for row in rows}
    assert set(tables.sessions["id"].to_pylist()) == of
    assert (await look(lambda: ask(f"{where}/unknown/", **headers)))[0] == 404
    await writer.rest("tags", "create", data={"name": "empty"})
    assert (await look(lambda: ask(f"{where}/empty/", **headers)))[0] == 500


async def test_a_request_too_many_is_said_as_the_service_says_it():
    async with testing.serve(scale=0.05, faults="throttle=1/min") as archive:
        headers = await look(logged_in, archive)  # which does not count
        await look(lambda: ask(f"{archive.alyx}/labs", **headers))
        status, heads, body = await look(lambda: ask(f"{archive.alyx}/tags", **headers))
        seconds = int(heads["Retry-After"])
        assert status == 429
        assert 50 < seconds <= 60
        words = f"Request was throttled. Expected available in {seconds} seconds."
        assert json.loads(body) == {"detail": words, "status_code": 429}
        status, heads, body = await look(lambda: ask(f"{archive.alyx}/docs/"))
        assert (status, heads.get_content_type()) == (429, "text/html")
        assert body == b"429 Too Many Requests"

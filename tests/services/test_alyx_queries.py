"""The queries of Alyx's own documentation, and the quoting of values."""

import datetime as dt
import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import testing
from asyncfetch.services._lookups import django, encoded, on_json
from asyncfetch.testing._alyx import PUBLIC, WRITER
from asyncfetch.testing._alyx_data import INSERTION, SESSION, TAG
from asyncfetch.testing._alyx_django import pairs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def archive():
    async with testing.serve(scale=0.6) as archive:
        yield archive


@pytest.fixture
async def one(archive):
    async with asyncfetch.Alyx(archive.alyx, *PUBLIC) as one:
        yield one


def ids(records):
    return {record.get("id") or record["url"][-36:] for record in records}


def true(archive, endpoint, test):
    return {row["id"] for row in archive.truth.alyx(endpoint) if test(row)}


def qc_of(row):
    return row["extended_qc"] or {}


# --- quoting --------------------------------------------------------------------------

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.lists(values, min_size=1, max_size=4))
def test_the_service_reads_each_value_as_it_was_given(given_values):
    text = django({f"f{n}__exact": one for n, one in enumerate(given_values)})
    found = [pair.value for pair in pairs(text)]
    # As JSON: what is a float for the service is the same number.
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(given_values))
    assert django(text) == text


@given(st.text())
def test_no_text_reaches_the_evaluation_as_it_is(text):
    sent = encoded(text)
    if sent[:1] in "([":
        inside = sent[2:-2]
        assert sent[:2] == "('"
        assert sent[-2:] == "')"
        assert not set(inside) & set("'\"()[],{}\n")


def test_values_of_many_kinds_have_a_text():
    when = dt.datetime(2021, 7, 22, 1, 2, tzinfo=dt.UTC)
    some = uuid.UUID(SESSION)
    assert django({"a__date": when.date(), "b__in": {some}, "~c": 10**20}) == (
        f"a__date,2021-07-22,b__in,['{SESSION}'],~c,(100000000000000000000)"
    )
    assert encoded("18179095942") == "('18179095942')"
    assert encoded(("a",)) == "['a']"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": object()}, "got object"),
        ({"a": float("nan")}, "finite"),
        ({"a,b": 1}, "expected a name"),
        ({"": 1}, "expected a name"),
        ("a,1,b", "3 pieces"),
        ("a,{b: 1}", "expected a dict"),
        ("a__gt,1,a__gt,2", "a__gt once"),
        (7, "a dict or a text"),
    ],
)
def test_what_the_service_would_misread_is_an_error(value, words):
    with pytest.raises(asyncfetch.ConfigurationError, match=words):
        django(value)


def test_documented_forms_are_mended_and_that_is_said(caplog):
    assert django("a,1, b,2") == "a,1,b,2"
    assert django("extended_qc__contains,{'a': 'x', 'b': 'y'}") == (
        "extended_qc__contains,({'a': 'x', 'b': 'y'})"
    )
    assert django("session__qc__lt,40", "sessions") == "qc__lt,40"
    assert (
        on_json("a;True;b__gte;0.5", "extended_qc") == "a,True,b__gte,0.5,b__lt,False"
    )
    assert (
        django("name__regex,(a{1,3})") == "name__regex,('\\x28a\\x7b1\\x2c3\\x7d\\x29')"
    )
    assert caplog.text.count("in a filter") == 5


def test_the_same_lookup_twice_gets_another_spelling():
    assert django("tags__name,a,tags__name,b") == "tags__name,a,tags__name__exact,b"


# --- the documentation's queries ------------------------------------------------------


async def test_sessions_with_histology(archive, one):
    ses = await one.alyx.rest("sessions", "list", histology=True)
    same = await one.alyx.rest(
        "sessions",
        "list",
        django="subject__actions_sessions__procedures__name,Histology",
    )
    subjects = {
        row["subject"]["id"]
        for row in archive.truth.alyx("sessions")
        if row["procedures"][0]["name"] == "Histology"
    }
    truth = true(archive, "sessions", lambda row: row["subject"]["id"] in subjects)
    assert ids(ses) == ids(same) == truth
    assert set(await one.to_eid(ses)) == truth


@pytest.mark.parametrize("endpoint", ["sessions", "insertions"])
async def test_channels_in_a_region_of_the_atlas(one, endpoint):
    found = [
        ids(await one.alyx.rest(endpoint, "list", **by))
        for by in (
            {"atlas_id": 500},
            {"atlas_acronym": "MO"},
            {"atlas_name": "Somatomotor areas"},
        )
    ]
    assert found[0] == found[1] == found[2]
    assert (SESSION if endpoint == "sessions" else INSERTION) in found[0]


async def test_projects_that_do_not_say_matlab(archive, one):
    for query in (
        "~projects__name__icontains,matlab",
        "~project__name__icontains,matlab",
    ):
        ses = await one.alyx.rest("sessions", "list", django=query)
        assert ids(ses) == true(
            archive, "sessions", lambda row: "matlab" not in row["projects"][0]["name"]
        )


async def test_insertions_whose_alignment_is_resolved(archive, one):
    ins = await one.alyx.rest(
        "insertions", "list", django="json__extended_qc__alignment_resolved,True"
    )
    assert ids(ins) == true(
        archive,
        "insertions",
        lambda row: row["json"]["extended_qc"]["alignment_resolved"],
    )


async def test_names_of_users_who_aligned_an_insertion(one):
    traj = await one.alyx.rest(
        "trajectories",
        "list",
        provenance="Ephys aligned histology track",
        probe_insertion=INSERTION,
    )
    names = traj[0]["json"].keys()
    assert {name.rpartition("_")[0][:10] for name in names} == {
        "2021-11-21",
        "2021-11-24",
    }


async def test_insertions_of_a_task_protocol(archive, one):
    ins = await one.alyx.rest(
        "insertions", "list", django="session__task_protocol__icontains,choiceworld"
    )
    assert ids(ins) == true(archive, "insertions", lambda _row: True)


async def test_errored_tasks_are_found_and_set_to_waiting(archive):
    async with asyncfetch.Alyx(archive.alyx, *WRITER) as one:
        errored = await one.alyx.rest(
            "tasks", "list", status="Errored", lab="angelakilab", name="SpikeSorting"
        )
        assert errored
        assert {(t["status"], t["name"]) for t in errored} == {
            ("Errored", "SpikeSorting")
        }
        ses = await one.alyx.rest(
            "sessions", "list", task_protocol="ephys", django="tasks__status,40"
        )
        assert SESSION in ids(ses)
        tasks = await one.alyx.rest(
            "tasks",
            "list",
            name="EphysDLC",
            django="log__icontains,TimeoutError: [Errno 110]",
        )
        assert tasks
        for t in tasks:
            data = {"log": "", "status": "Waiting"}
            await one.alyx.rest("tasks", "partial_update", id=t["id"], data=data)
        left = await one.alyx.rest("tasks", "list", name="EphysDLC", status="Errored")
        assert left == []


async def test_extended_qc_of_any_video(archive, one):
    keys = ("videoLeft", "videoRight", "videoBody")
    truth = true(archive, "sessions", lambda row: set(keys) & set(qc_of(row)))
    for some in (keys, list(keys)):
        ses = await one.alyx.rest(
            "sessions", "list", django=f"extended_qc__has_any_keys,{some}"
        )
        assert ids(ses) == truth
    ses = await one.alyx.rest(
        "sessions", "list", django={"extended_qc__has_any_keys": keys}
    )
    assert ids(ses) == truth


async def test_sessions_of_a_release(archive, one):
    ses = await one.alyx.rest(
        "sessions", "list", django=f"data_dataset_session_related__tags__name,{TAG}"
    )
    assert ids(ses) == true(
        archive,
        "sessions",
        lambda row: any(
            tag["name"] == TAG
            for dataset in row["data_dataset_session_related"]
            for tag in dataset["tags"]
        ),
    )


def is_of(*names):
    return lambda row: row["subject"]["nickname"] in names


DAY = "02-05"
SERIAL = "18179095942"
D = {"dlcLeft": "PASS", "videoLeft": "PASS"}


@pytest.mark.parametrize(
    ("query", "test"),
    [
        ("extended_qc__task__iexact,fail", lambda qc: qc.get("task") == "FAIL"),
        (
            "extended_qc___videoLeft_pin_state__0__gt,5",
            lambda qc: (
                (first := qc.get("_videoLeft_pin_state", [None])[0]) is not True
                and first is not None
                and first > 5
            ),
        ),
        (f"extended_qc__contains,{D}", lambda qc: {**qc, **D} == qc and qc),
        (
            f"extended_qc__contained_by,{D}",
            lambda qc: qc and qc.items() <= D.items(),
        ),
        ("extended_qc__has_key,dlcLeft", lambda qc: "dlcLeft" in qc),
        (
            f"extended_qc__has_keys,{['behavior', 'ephys']}",
            lambda qc: {"behavior", "ephys"} <= set(qc),
        ),
    ],
)
async def test_fields_of_json(archive, one, query, test):
    found = await one.alyx.rest("sessions", "list", django=query)
    assert ids(found) == true(archive, "sessions", lambda row: test(qc_of(row)))


async def test_comparisons_of_the_parameter_itself(archive, one):
    found = await one.rest("sessions", "list", extended_qc="_task_iti_delays__gte;0.5")
    assert ids(found) == true(
        archive, "sessions", lambda row: qc_of(row).get("_task_iti_delays", 0) >= 0.5
    )


@pytest.mark.parametrize(
    ("endpoint", "query", "test"),
    [
        ("sessions", "subject__nickname__exact,KS022", is_of("KS022")),
        ("sessions", "subject__nickname,KS022", is_of("KS022")),
        ("sessions", "subject__nickname__iexact,ks022", is_of("KS022")),
        (
            "sessions",
            f"subject__nickname__in,{['DY_003', 'DY_006']}",
            is_of("DY_003", "DY_006"),
        ),
        ("sessions", "session__qc__lt,40", lambda r: r["qc"] < 40),
        (
            "insertions",
            "session__start_time__date__lte,2021-07-22",
            lambda r: r["session"]["start_time"][:10] <= "2021-07-22",
        ),
        (
            "weighings",
            "date_time__date,2021-02-05",
            lambda r: r["date_time"][5:10] == DAY,
        ),
        (
            "sessions",
            {"start_time__date__range": ("2020-01-01", dt.date(2020, 6, 30))},
            lambda r: "2020-01-01" <= r["start_time"][:10] <= "2020-06-30",
        ),
        ("sessions", "start_time__year,2020", lambda r: r["start_time"][:4] == "2020"),
        ("insertions", {"serial": SERIAL}, lambda r: r["serial"] == SERIAL),
        (
            "subjects",
            "nickname__icontains,ks, death_date__isnull,True",
            lambda r: "KS" in r["nickname"] and r["death_date"] is None,
        ),
    ],
)
async def test_lookups(archive, one, endpoint, query, test):
    found = await one.alyx.rest(endpoint, "list", django=query)
    assert ids(found) == true(archive, endpoint, test)


async def test_patterns(archive, one):
    found = await one.alyx.rest(
        "datasets",
        "list",
        session=SESSION,
        django="collection__regex,.*probe.*",
        exists=True,
    )
    assert {"probe" in record["collection"] for record in found} == {True}
    found = await one.alyx.rest(
        "datasets",
        "list",
        session=SESSION,
        django="name__iregex,(right|left)camera",
        exists=True,
    )
    names = {record["name"] for record in found}
    assert {"_ibl_leftCamera.times.npy", "_ibl_rightCamera.times.npy"} <= names
    assert all("camera" in name.lower() for name in names)

"""NeuroVault: every record that can be read, whatever the server's lists do."""

import json
import random
import re
from functools import partial

import anyio
import pytest

import asyncfetch
from asyncfetch import open_dataset, testing
from asyncfetch._neurovault_schema import IMAGE
from asyncfetch.testing import Fault
from asyncfetch.testing._neurovault import TOKEN, NeuroVaultService
from asyncfetch.testing._neurovault_data import (
    EMPTY,
    POISONED,
    PRIVATE,
    TUTORIAL,
    TUTORIAL_DOI,
    TUTORIAL_IMAGE,
    WITH_POISONED_IMAGE,
    is_poisoned,
)
from tests.conftest import Impatient, answer, look, open_wire

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(archive):
    async with client(archive) as api:
        yield api


def client(archive, **options):
    api = asyncfetch.NeuroVault(base_url=archive.neurovault, **options)
    api.exchange._rng = Impatient()
    return api


def vault(archive):
    return next(s for s in archive._services if isinstance(s, NeuroVaultService))


def public(archive):
    """Images that everybody may see and the server can give."""
    shown = {one["id"] for one in archive.truth.collections(private=False)}
    return [
        one
        for one in archive.truth.images()
        if one["collection_id"] in shown and not is_poisoned(one)
    ]


def good(archive):
    collections = archive.truth.collections(private=False)
    return {one["id"] for one in collections if not is_poisoned(one)}


def asked(archive):
    return [entry.target.removeprefix("/neurovault/api") for entry in archive.log]


# --- filters --------------------------------------------------------------------------


@pytest.mark.parametrize("filters_work", [False, True])
@pytest.mark.parametrize(
    "doi",
    [TUTORIAL_DOI, TUTORIAL_DOI.upper(), f"https://doi.org/{TUTORIAL_DOI}"],
)
async def test_a_doi_gives_one_collection_whether_the_server_filters_or_not(
    archive, api, doi, filters_work
):
    vault(archive).filters_work = filters_work
    found = await api.collections.get(DOI=doi)
    assert [one["id"] for one in found] == [TUTORIAL]
    assert found[0]["name"] == "Emotion & regulation: fMRI maps"


async def test_a_doi_that_nobody_has_gives_nothing(api):
    assert await api.collections.get(DOI="10.1000/none") == []


async def test_any_field_narrows_what_comes(archive, api):
    found = await api.images.get(
        map_type=["Z map", "T map"], modality="fMRI-BOLD", is_thresholded=False
    )
    wanted = [
        one["id"]
        for one in public(archive)
        if one.get("map_type") in {"Z map", "T map"}
        and one.get("modality") == "fMRI-BOLD"
        and one.get("is_thresholded") is False
    ]
    assert sorted(one["id"] for one in found) == wanted
    assert 0 < len(wanted) < len(public(archive))


@pytest.mark.parametrize(
    "filters",
    [
        {"name": "Emotion & regulation: fMRI maps"},
        {"subject_age_mean": 24.6},
        {"id": [TUTORIAL]},
        {"journal_name": "Neurobiology of Aging", "private": False},
    ],
)
async def test_collections_are_compared_by_what_they_hold(api, filters):
    assert [one["id"] for one in await api.collections.get(**filters)] == [TUTORIAL]


async def test_an_owner_and_a_name_that_do_not_go_together_give_nothing(archive, api):
    vault(archive).filters_work = True
    assert await api.collections.get(owner=99999) == []
    name = "Emotion & regulation: fMRI maps"
    assert await api.collections.get(name=name, owner=99999) == []


async def test_images_are_found_by_their_collection(archive, api):
    ids = [o["id"] for o in public(archive) if o["collection_id"] == TUTORIAL]
    for filters in ({"DOI": TUTORIAL_DOI}, {"collection_id": TUTORIAL}):
        found = await api.images.get(**filters)
        assert [one["id"] for one in found] == ids


async def test_fields_of_the_users_own_are_compared_and_kept(api):
    for own in ("my field=x", {"my field": ["x", "y"], "subject_id": "sub-05"}):
        (found,) = await api.images.get(collection_id=TUTORIAL, extra=own)
        assert found["id"] == TUTORIAL_IMAGE
    table = await api.images.get(id=TUTORIAL_IMAGE, output_type="arrow")
    own = json.loads(table["extra"].to_pylist()[0])
    assert own["my field"] == "x"
    assert own["extra"] == [1]  # a key that is called as the column is
    assert set(own).isdisjoint(IMAGE)


async def test_what_was_not_modified_since_is_left_out(archive, api):
    assert await api.images.get(modified_since="2021-01-01") == []
    for row in archive.truth.collections(id=TUTORIAL):
        row["modify_date"] = "2026-05-01T12:00:00+02:00"
    for row in archive.truth.images(id=TUTORIAL_IMAGE):
        row["modify_date"] = "2026-05-01T12:00:00+02:00"
    (found,) = await api.images.get(modified_since="2026-05-01T10:00:00Z")
    assert found["id"] == TUTORIAL_IMAGE
    assert await api.images.get(modified_since="2026-05-01T10:00:01Z") == []


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"map_typ": "Z map"}, "did you mean map_type"),
        ({"modified_since": "yesterday"}, "expected a time"),
        ({"collection_id": "QWERTZUI"}, "pass it as private="),
        ({"is_thresholded": "maybe"}, "expected bool"),
        ({"extra": "my field"}, "expected NAME=VALUE"),
    ],
)
async def test_a_filter_that_cannot_be_is_said_at_once(archive, api, filters, says):
    with pytest.raises(asyncfetch.ConfigurationError, match=says):
        await api.images.get(**filters)
    assert not archive.log


# --- everything, and what of it cannot be read ----------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_all_that_can_be_read_comes_and_the_rest_is_named(seed):
    async with testing.serve(scale=0.5, seed=seed) as archive, client(archive) as api:
        async with api.images.stream(on_error="report") as batches:
            ids = [one async for batch in batches for one in batch["id"].to_pylist()]
        assert sorted(ids) == sorted(one["id"] for one in public(archive))
        failed = [one.key for one in batches.failed]
        assert f"collections id={POISONED}" in failed
        assert any(k.startswith(f"collection={WITH_POISONED_IMAGE} ") for k in failed)
        assert len(failed) == 2


async def test_collections_come_once_each(archive, api, caplog):
    found = await api.collections.get()
    ids = [one["id"] for one in found]
    assert len(ids) == len(set(ids))
    assert set(ids) == good(archive)
    assert "neurovault cannot give this record" in caplog.text
    assert EMPTY in ids


@pytest.mark.parametrize("table", ["atlases", "nidm-results"])
async def test_the_other_lists_are_tables_too(archive, api, table):
    found = await api.table(table).get()
    kind = {"atlases": "atlas"}.get(table)
    if kind:
        wanted = {o["id"] for o in public(archive) if o["image_type"] == kind}
    else:
        wanted = set(vault(archive).data.packs)
    assert {one["id"] for one in found} == wanted
    frame = await api.table(table).get(output_type="df")
    assert len(frame) == len(found) > 0
    number = found[0]["collection" if table == "nidm-results" else "collection_id"]
    of = "collection" if table == "nidm-results" else "collection_id"
    some = await api.table(table).get(**{of: number})
    assert {one["id"] for one in some} <= wanted
    assert some


async def test_small_pages_of_the_server_lose_nothing(archive, api):
    vault(archive).most = 3
    found = await api.images.get(collection_id=TUTORIAL)
    ids = [o["id"] for o in public(archive) if o["collection_id"] == TUTORIAL]
    assert [one["id"] for one in found] == ids
    assert len(ids) > 3


async def test_a_few_rows_need_few_requests(archive, api):
    found = await api.images.get(limit=3, collection_id=TUTORIAL)
    assert len(found) == 3
    assert len(archive.log) == 1


async def test_one_record_by_its_number_or_url(api):
    one = await api.images.get(TUTORIAL_IMAGE)
    assert one["name"] == "motor lips"
    where = f"https://neurovault.org/collections/{TUTORIAL}/"
    assert (await api.collections.get(where))["id"] == TUTORIAL
    with pytest.raises(asyncfetch.NotFound):
        await api.images.get(1)
    with pytest.raises(asyncfetch.ConfigurationError, match="8 capital letters"):
        await api.collections.get("abcdefgh")  # the server answers 500


async def test_texts_that_stand_for_nothing_are_null(archive, api):
    frame = await api.images.get(output_type="df")
    assert "nonexistent in atlas space" in set(frame["description"])
    for name in ("contrast_definition", "cognitive_paradigm_cogatlas", "description"):
        texts = {str(one).lower() for one in frame[name].dropna()}
        assert not texts & {"", "n/a", "none", "none / other", "null"}
        assert frame[name].isna().any()
    sent = await api.images.get()
    assert "None / Other" in {one.get("cognitive_paradigm_cogatlas") for one in sent}
    assert str(frame["add_date"].dtype) == "datetime64[us, UTC]"
    assert str(frame["number_of_subjects"].dtype) == "Int64"


# --- a server of bytes ----------------------------------------------------------------


def page(ids, count, *, more=False, collection_id=1):
    link = "http://elsewhere.example/api/x/?limit=1000&offset=1000" if more else None
    results = [{"id": one, "name": "n", "collection_id": collection_id} for one in ids]
    body = {"count": count, "next": link, "previous": None, "results": results}
    return answer(
        json.dumps(body).encode(), headers="Content-Type: application/json\r\n"
    )


BROKEN = answer(
    b"<html>Server Error (500)</html>",
    status="500 Internal Server Error",
    headers="Content-Type: text/html\r\n",
)


def of_query(head):
    target = head.split(b" ")[1].decode()
    query = dict(pair.split("=") for pair in target.partition("?")[2].split("&"))
    return int(query["limit"]), int(query.get("offset", 0))


def ids_in(dest):
    return sorted(open_dataset(dest).rows.to_table()["id"].to_pylist())


async def images_of(wire, **filters):
    async with asyncfetch.NeuroVault(base_url=f"{wire.url}/api") as api:
        api.exchange._rng = Impatient()
        found = await api.images.get(collection_id=1, **filters)
        return [one["id"] for one in found]


POISON = 100


def in_a_new_order(head, _body, *, numbers, dice, strays=()):
    """302 collections, each with an image; one of them nobody can read."""
    path = head.split(b" ")[1].decode().partition("?")[0]
    if path == "/api/images/":
        return page(strays, len(strays), collection_id=POISON)
    if one := re.fullmatch(r"/api/collections/(\d+)/images/", path):
        return page([int(one[1])], 1)
    if one := re.fullmatch(r"/api/collections/(\d+)/", path):
        body = json.dumps({"id": int(one[1]), "name": "n"}).encode()
        return BROKEN if int(one[1]) == POISON else answer(body)
    limit, offset = of_query(head)
    dice.shuffle(numbers)
    if numbers[0] == POISON:  # or no count came when only the first is asked for
        numbers.reverse()
    found = numbers[offset : offset + limit]
    return BROKEN if POISON in found else page(found, len(numbers))


@pytest.fixture
async def disorder():
    numbers, dice = [*range(1, 303)], random.Random(1)
    async with (
        open_wire(answer()) as wire,
        asyncfetch.NeuroVault(base_url=f"{wire.url}/api") as api,
    ):
        wire.respond = partial(in_a_new_order, numbers=numbers, dice=dice)
        api.exchange._rng = Impatient()
        yield wire, api


@pytest.mark.parametrize("filters", [{}, {"name": "n"}])
async def test_a_list_in_a_new_order_each_time_comes_whole(disorder, filters, tmp_path):
    wire, api = disorder
    wire.respond = partial(wire.respond, strays=[1])
    plan = api.collections.plan(**filters)
    report = await asyncfetch.download(plan, tmp_path / "d")
    assert await look(ids_in, tmp_path / "d") == sorted({*range(1, 303)} - {POISON})
    assert [one.key for one in report.failed] == [f"id={POISON}"]
    assert "counts 302 collections and 301 distinct ones came" in report.shortfall


async def test_a_collection_that_no_look_shows_is_missed_aloud(disorder, tmp_path):
    _, api = disorder
    report = await asyncfetch.download(api.images.plan(), tmp_path / "d")
    assert await look(ids_in, tmp_path / "d") == sorted({*range(1, 303)} - {POISON})
    (failed,) = report.failed
    assert failed.key == "collections unseen"
    assert "the service counts 302" in failed.error


async def test_an_empty_page_in_the_middle_ends_nothing():
    looks = []

    def respond(head, _body):
        limit, offset = of_query(head)
        looks.append(offset)
        if offset == 1000 and looks.count(1000) == 1:
            return page([], 2500, more=True)
        return page(range(offset, min(offset + limit, 2500)), 2500)

    async with open_wire(answer()) as wire:
        wire.respond = respond
        assert await images_of(wire) == list(range(2500))


async def test_a_count_that_shrinks_ends_nothing():
    def respond(head, _body):
        limit, offset = of_query(head)
        ids = range(offset, min(offset + limit, 1500))
        # Says less and less; its link says that there is more.
        return page(ids, 1000 - offset // 10, more=offset + limit < 1500)

    async with open_wire(answer()) as wire:
        wire.respond = respond
        assert await images_of(wire) == list(range(1500))


async def test_pages_that_repeat_end_with_an_error():
    async with open_wire(page(range(1000), 1000, more=True)) as wire:
        with pytest.raises(asyncfetch.ItemError, match="repeats its pages"):
            await images_of(wire)
        assert len(wire.requests) < 12


async def test_a_record_at_the_end_of_a_page_hides_nothing_behind_it():
    def respond(head, _body):
        limit, offset = of_query(head)
        if offset <= 999 < offset + limit:
            return BROKEN
        return page(range(offset, min(offset + limit, 1300)), 1300)

    async with open_wire(answer()) as wire:
        wire.respond = respond
        expected = [n for n in range(1300) if n != 999]
        assert sorted(await images_of(wire)) == expected
        assert len(wire.requests) < 40


async def test_a_server_that_only_fails_is_not_asked_for_each_record():
    async with (
        open_wire(BROKEN) as wire,
        asyncfetch.NeuroVault(base_url=f"{wire.url}/api") as api,
    ):
        api.exchange._rng = Impatient()
        with pytest.raises(asyncfetch.ResponseError):
            await api.images.get()
        assert len(wire.requests) < 120


async def test_links_with_another_host_lead_nowhere(archive):
    """Of the records' own links the paths count, and nothing else."""
    async with client(archive) as api:
        record = await api.images.get(TUTORIAL_IMAGE)
    elsewhere = record["file"].replace("127.0.0.1", "files.example")
    body = json.dumps({**record, "file": elsewhere}).encode()
    file = archive.truth.images(id=TUTORIAL_IMAGE)[0]["bytes"]

    def respond(head, _body):
        if b"/media/images/" in head.split(b" ")[1]:
            return answer(file)
        return answer(body)

    async with open_wire(answer()) as wire:
        wire.respond = respond
        async with asyncfetch.NeuroVault(base_url=f"{wire.url}/api") as api:
            rows = await api.files.get(id=TUTORIAL_IMAGE)
        assert rows[0]["url"] == f"{wire.url}/media/images/{TUTORIAL}/motor_lips.nii.gz"


# --- whose is it ----------------------------------------------------------------------


async def test_a_private_collection_answers_to_its_token_alone(archive, caplog):
    caplog.set_level("DEBUG", logger="asyncfetch")
    ids = [one["id"] for one in archive.truth.images(collection_id=33)]
    async with client(archive) as nobody:
        with pytest.raises(asyncfetch.ItemError, match="private") as error:
            await nobody.images.get(collection_id=33)
        assert "QWERTZUI" not in str(error.value)
    for options in ({"private": PRIVATE[33]}, {"token": TOKEN}):
        async with client(archive, **options) as api:
            found = await api.images.get(collection_id=33)
            assert [one["id"] for one in found] == ids
            rows = await api.files.get(collection_id=33)
            assert PRIVATE[33] not in json.dumps(rows, default=str)
    async with client(archive) as api:
        assert (await api.collections.get(PRIVATE[33]))["id"] == 33
        one = await api.images.get(f"{PRIVATE[33]}-{ids[0]}")
        assert one["id"] == ids[0]
    assert PRIVATE[33] not in caplog.text
    assert TOKEN not in caplog.text


async def test_no_token_gets_into_a_dataset(archive, tmp_path):
    async with client(archive, private=[PRIVATE[33]]) as api:
        plan = api.files.plan(collection_id=[33, TUTORIAL])
        report = await asyncfetch.download(plan, tmp_path / "d")
        assert not report.items.get("failed")
    files = await look(lambda: [p for p in tmp_path.rglob("*") if p.is_file()])
    there = [await look(path.read_bytes) for path in files]
    assert there
    assert not any(PRIVATE[33].encode() in one for one in there)


async def test_a_run_goes_on_where_one_collection_is_private(archive, api, tmp_path):
    plan = api.images.plan(collection_id=[33, TUTORIAL])
    report = await asyncfetch.download(plan, tmp_path / "d")
    assert report.items == {"ok": 1, "failed": 1}
    assert "private" in report.failed[0].error


async def test_a_wrong_token_is_said_and_not_shown(archive):
    async with client(archive, token="f" * 40) as api:
        with pytest.raises(asyncfetch.AuthenticationError, match="another token") as e:
            await api.collections.get()
    assert "ffff" not in str(e.value)
    with pytest.raises(asyncfetch.ConfigurationError, match="token"):
        asyncfetch.NeuroVault("two words")
    with pytest.raises(asyncfetch.ConfigurationError, match="8 capital"):
        asyncfetch.NeuroVault(private="9b1f9de1")


async def test_from_env_takes_the_token(archive, monkeypatch):
    monkeypatch.setenv("NEUROVAULT_TOKEN", TOKEN)
    monkeypatch.setenv("ASYNCFETCH_NEUROVAULT_URL", archive.neurovault)
    async with asyncfetch.NeuroVault.from_env() as api:
        mine = await api.my_collections()
        assert {one["id"] for one in mine} == {TUTORIAL, *PRIVATE}
        assert (await api.user())["username"] == "user04"


async def test_tables_are_asked_with_a_slash_and_no_redirect(archive, api):
    await api.images.get(collection_id=TUTORIAL)
    assert {entry.status for entry in archive.log} == {200}
    assert all("/?" in one for one in asked(archive))


async def test_blocking_clients_are_the_same(archive):
    def work():
        with asyncfetch.sync.NeuroVault(base_url=archive.neurovault) as api:
            return api.collections.get(TUTORIAL)["name"]

    assert await anyio.to_thread.run_sync(work) == "Emotion & regulation: fMRI maps"


async def test_a_fault_that_passes_costs_nothing(archive, api):
    archive.script(
        f"collections/{TUTORIAL}/images/", [Fault(status=502), Fault.reset()]
    )
    found = await api.images.get(collection_id=TUTORIAL)
    assert len(found) == len(archive.truth.images(collection_id=TUTORIAL))

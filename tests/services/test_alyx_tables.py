"""Alyx's own tables: the same sessions and datasets as its records, for one request."""

import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch.services import alyx  # noqa: F401 - heavy, so not in a loop
from asyncfetch.testing import Fault
from asyncfetch.testing._alyx import PUBLIC
from asyncfetch.testing._alyx_data import SESSION

pytestmark = pytest.mark.anyio


@pytest.fixture
async def archive():
    async with testing.serve(scale=0.3) as archive:
        yield archive


@pytest.fixture
async def one(archive):
    async with asyncfetch.Alyx(archive.alyx, *PUBLIC) as one:
        yield one


@pytest.mark.parametrize(
    "terms",
    [
        {"subject": ["DY_003", "DY_006"]},
        {"subject": "KS014", "number": 1},
        {"lab": ["cortexlab", "danlab"], "date_range": ["2020-01-01", "2021-01-01"]},
        {"date_range": ["2021-01-01", None]},
        {"date": "2019-12-03"},
        {"projects": "brainwide", "task_protocol": "ephys"},
        {"dataset": "spikes.times.npy"},
        {"collection": ["alf/probe*", "nothing"]},
    ],
)
async def test_tables_and_records_find_the_same_sessions(one, terms):
    found = await one.search(**terms)
    assert found
    assert sorted(found) == sorted(await one.search(query_type="remote", **terms))


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"collection": "*probe*"},
        {"filename": {"object": ["leftCamera", "rightCamera"]}},
        {"filename": "*.npy", "collection": ["alf", "raw*"]},
        {"revision": "2023-12-31"},
    ],
)
async def test_tables_and_records_list_the_same_datasets(archive, one, filters):
    found = await one.list(SESSION, **filters)
    assert found
    assert found == await one.list_datasets(SESSION, query_type="remote", **filters)
    assert sum("cache.zip" in entry.target for entry in archive.log) == 1


async def test_the_documentations_lists(one):
    names = await one.list(SESSION, collection="*probe*")
    assert all(name.startswith("alf/probe00/pykilosort/") for name in names)
    names = await one.list_datasets(
        SESSION, filename={"object": ["leftCamera", "rightCamera"]}
    )
    assert names == [
        "alf/_ibl_leftCamera.times.npy",
        "alf/_ibl_rightCamera.times.npy",
        "raw_video_data/_iblrig_leftCamera.raw.mp4",
    ]
    (table,) = await one.list(SESSION, filename="*trials*", revision="2023-12-31")
    assert table == "alf/#2023-01-15#/_ibl_trials.table.pqt"
    (table,) = await one.list("2019-12-03_1_KS014", filename="*trials*")
    assert table == "alf/#2024-05-06#/_ibl_trials.table.pqt"


async def test_without_tables_records_are_asked_for(archive, one, caplog):
    page = b"<html>not found</html>"
    archive.script("cache/info", [Fault(status=404, body=page)])
    assert SESSION in await one.search(subject="KS014")
    assert "has no tables" in caplog.text


@pytest.mark.parametrize("terms", [{"subjct": "a"}, {"query_type": "local"}])
async def test_unknown_terms_are_errors(one, terms):
    with pytest.raises(asyncfetch.ConfigurationError):
        await one.search(**terms)

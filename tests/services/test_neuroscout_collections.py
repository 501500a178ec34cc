"""Collections: files are checked before they are sent, and traps are known."""

import anyio
import pytest

import asyncfetch
from asyncfetch.services import _calls
from asyncfetch.testing import Fault

pytestmark = pytest.mark.anyio

GOOD = "onset\tduration\tapples\tgrapes\n0\t1.5\t1\tn/a\n2.5\tn/a\t0.5\tmany\n"
RUNS = [[328, 344, 336], [331, 323, 355]]


@pytest.fixture
async def api(archive, monkeypatch):
    monkeypatch.setattr(_calls, "FIRST_PAUSE", 0.0)
    async with asyncfetch.Neuroscout(
        *archive.account, base_url=archive.neuroscout
    ) as api:
        yield api


@pytest.fixture
async def files(tmp_path):
    paths = [tmp_path / "food_raiders1.tsv", tmp_path / "food_raiders2.tsv"]
    for path in paths:
        await anyio.Path(path).write_text(GOOD, encoding="utf-8")
    return paths


async def test_an_upload_becomes_predictors_with_their_events(archive, api, files):
    found = await api.predictors.create_collection(
        collection_name="raiders food",
        dataset_id=10,
        runs=RUNS,
        event_files=[str(one) for one in files],
        descriptions={"apples": "instances of apples"},
    )
    assert (found["status"], found["predictors"]) == ("PENDING", [])
    ready = await api.predictors.wait_collection(found["id"])
    assert [one["name"] for one in ready["predictors"]] == ["apples", "grapes"]
    assert ready["predictors"][0]["description"] == "instances of apples"
    assert (await api.predictors.get_collection(found["id"]))["status"] == "OK"
    (one,) = await api.user.get_collections()
    assert one["collection_name"] == "raiders food"
    events = await api.predictor_events.get(
        predictor_name=["apples", "grapes"], dataset_name="raiders", output_type="df"
    )
    assert set(events["run_id"]) == {run for some in RUNS for run in some}
    assert len(events) == 6 * 3
    assert set(events["value"]) == {"1", "0.5", "many"}


async def test_runs_of_another_dataset_are_said_before_anything_is_sent(
    archive, api, files
):
    """The printed call of the tutorial mixes two data sets."""
    with pytest.raises(asyncfetch.ConfigurationError, match="data set 11") as caught:
        await api.predictors.create_collection("raiders food", 11, RUNS, files)
    assert "328, 344, 336, 331, 323, 355 belong to data set 10" in str(caught.value)
    assert all(one.method == "GET" for one in archive.log)
    with pytest.raises(asyncfetch.ConfigurationError, match="there is no run 4711"):
        await api.predictors.create_collection("x", 10, [[4711], [328]], files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no onset and no duration"),
        ("onset,duration,a\n", "has no onset and no duration"),
        ("onset\tduration\n1\t2\n", "and other columns"),
        ("onset\tduration\ta\ta\n", "and other columns"),
        ("onset\tduration\tapples\n1\t1\t1\n", "differ in grapes"),
        (GOOD.splitlines()[0], "has none"),
        (GOOD + "soon\t1\t1\t1\n", r"seconds as onset, got 'soon' - at .*line 4"),
        (GOOD + "n/a\t1\t1\t1\n", "seconds as onset, got 'n/a'"),
        (GOOD + "1\tlong\t1\t1\n", "seconds as duration, got 'long'"),
        (GOOD + "1\t1\t1\n", "expected 4 columns, got 3"),
        (None, "expected a text file of events"),
    ],
)
async def test_a_file_that_the_service_would_choke_on_is_not_sent(
    archive, api, files, text, message
):
    path = anyio.Path(files[1])
    await (path.unlink() if text is None else path.write_text(text, encoding="utf-8"))
    with pytest.raises(asyncfetch.ConfigurationError, match=message):
        await api.predictors.create_collection("x", 10, RUNS, files)
    assert not archive.log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": RUNS[:1]}, "got 1 lists and 2 files"),
        ({"runs": [[328], [328]]}, "runs 328 have several"),
        ({"runs": [[328], ["a"]]}, "expected ids of runs for"),
        ({"runs": [[328], []]}, "expected ids of runs for"),
        ({"collection_name": "a/b"}, "without a slash"),
        ({"descriptions": {"aples": "x"}}, "did you mean apples"),
        ({"descriptions": [{}, {}]}, "one dict by column, got list"),
    ],
)
async def test_arguments_that_cannot_be_meant_are_refused(
    archive, api, files, change, message
):
    given = {
        "collection_name": "x", "dataset_id": 10, "runs": RUNS, "event_files": files,
        **change,
    }  # fmt: skip
    with pytest.raises(asyncfetch.ConfigurationError, match=message):
        await api.predictors.create_collection(**given)
    assert not archive.log


async def test_a_collection_that_is_stuck_or_failed_ends_the_wait(archive, api):
    stuck = b'{"status": "PENDING", "traceback": "ValueError: Column names"}'
    archive.script("/predictors/collection", [Fault(status=200, body=stuck)])
    with pytest.raises(asyncfetch.ResponseError, match="it is PENDING: ValueError"):
        await api.predictors.wait_collection(130)
    failed = b'{"status": "FAILED", "traceback": "sqlalchemy\\n.exc"}'
    archive.script("/predictors/collection", [Fault(status=200, body=failed)])
    with pytest.raises(asyncfetch.ResponseError, match="it is FAILED: sqlalchemy"):
        await api.predictors.wait_collection(130)
    pending = b'{"status": "PENDING", "traceback": null}'
    archive.script("/predictors/collection", [Fault(status=200, body=pending)])
    with pytest.raises(TimeoutError, match="collection 130"):
        await api.predictors.wait_collection(130, timeout=0)
    with pytest.raises(asyncfetch.NotFound):
        await api.predictors.get_collection(4711)


async def test_anybody_without_a_login_sends_no_file(archive, files):
    async with asyncfetch.Neuroscout(base_url=archive.neuroscout) as api:
        with pytest.raises(asyncfetch.AuthenticationError, match="needs a login"):
            await api.predictors.create_collection("x", 10, RUNS, files)
    assert all(one.method == "GET" for one in archive.log)

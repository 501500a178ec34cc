"""Analyses: made by names, pushed and seen to be taken, compiled, and waited for."""

import gzip
import io
import json
import tarfile

import anyio
import pytest

import asyncfetch
from asyncfetch.services import _analyses, _calls
from asyncfetch.services._analyses import build_model
from asyncfetch.testing import Fault
from tests.conftest import look

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(archive, monkeypatch):
    monkeypatch.setattr(_calls, "FIRST_PAUSE", 0.0)
    async with asyncfetch.Neuroscout(
        *archive.account,
        base_url=archive.neuroscout,
        neurovault_url=archive.neurovault_site,
    ) as api:
        yield api


def names_in(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


LIFE = {
    "name": "My new analysis!",
    "dataset_name": "Life",
    "predictor_names": ["rmse", "FramewiseDisplacement"],
    "subject": ["rid000001", "rid000005"],
}


async def test_the_tutorial_makes_and_changes_an_analysis(api):
    made = await api.analyses.create_analysis(**LIFE)
    assert made.status == "DRAFT"
    assert made.user == "example_user"
    assert made.predictors == [12907, 12918]
    assert len(made.runs) == 8
    assert made.model["Input"] == {
        "Subject": ["rid000001", "rid000005"],
        "Task": ["life"],
        "Run": [1, 2, 3, 4],
    }
    assert made.model["Steps"][0]["Model"]["X"] == LIFE["predictor_names"]
    made.predictors = [12905]
    await made.push()
    await made.pull()
    assert made.predictors == [12905]
    again = await api.analyses.get_analysis(made.hash_id)
    assert again.name == "My new analysis!"
    assert made.hash_id in {one["hash_id"] for one in await api.user.get_analyses()}
    await made.delete()
    with pytest.raises(asyncfetch.NotFound):
        await api.analyses.get_analysis(made.hash_id)


async def test_the_tutorials_public_analysis_is_anybodys_to_see(archive):
    async with asyncfetch.Neuroscout(base_url=archive.neuroscout) as api:
        found = await api.analyses.get_analysis("52546")
        assert (found.hash_id, found.predictors) == ("52546", [40344])
        assert found.user == "adelavega"
        assert (found.modified_at, found.created_at) == ("2021-10-07T21:1",) * 2
        with pytest.raises(asyncfetch.AuthenticationError, match="needs a login"):
            await found.push()


async def test_somebody_elses_analysis_cannot_be_pushed(api):
    found = await api.analyses.get_analysis("52546")
    with pytest.raises(asyncfetch.NotFound, match="somebody else's"):
        await found.push()


async def test_only_the_eight_fields_can_be_set(api):
    found = await api.analyses.get_analysis("52546")
    with pytest.raises(AttributeError, match="did you mean predictors"):
        found.predictor = [1]
    with pytest.raises(AttributeError, match="the service's to set"):
        found.status = "DRAFT"
    with pytest.raises(AttributeError, match="did you mean name"):
        found.nme  # noqa: B018
    for name in _analyses.MUTABLE:
        setattr(found, name, getattr(found, name))
        assert name in dir(found)
    assert "52546" in repr(found)


async def test_what_the_service_drops_without_a_word_is_an_error(api):
    (one,) = [a for a in await api.user.get_analyses() if a["hash_id"] == "h4vx8"]
    assert one["status"] == "PASSED"
    mine = await api.analyses.get_analysis("h4vx8")
    mine.name = "still allowed"
    await mine.push()
    mine.runs, mine.predictions = mine.runs[:1], "none"
    with pytest.raises(asyncfetch.ResponseError, match="own predictions, runs"):
        await mine.push()
    assert len(mine.runs) == 1
    await mine.pull()
    assert len(mine.runs) > 1
    copy = await mine.clone()
    assert (copy.status, copy.parent_id) == ("DRAFT", "h4vx8")


async def test_a_clone_for_another_dataset_finds_its_runs_and_predictors(archive, api):
    mine = await api.analyses.get_analysis("h4vx8")
    copy = await mine.clone(dataset_name="Life")
    assert copy.dataset_id == 9
    assert set(copy.runs) == {one["id"] for one in archive.truth.runs(dataset_id=9)}
    assert copy.predictors == [12905]


async def test_null_is_refused_here(api):
    made = await api.analyses.create_analysis(**LIFE)
    await made.push()  # a description that is not set stays so
    made.name = None
    with pytest.raises(asyncfetch.ConfigurationError, match="an empty text can be set"):
        await made.push()


async def test_what_full_gives_never_breaks_the_next_push(api):
    made = await api.analyses.create_analysis(**LIFE)
    full = await made.get_full()
    assert full["predictors"][0]["name"] == "rmse"
    await made.push()
    made.runs, made.predictors = full["runs"], full["predictors"]
    await made.push()
    made.runs.append(full["runs"][0])
    await made.push()
    with pytest.raises(asyncfetch.ConfigurationError, match="expected ids for runs"):
        made.runs = ["a"]
    resources = await made.get_resources()
    assert resources["dataset_name"] == "Life"


async def test_a_dry_fill_saves_nothing(archive, api):
    made = await api.analyses.create_analysis(**LIFE)
    made.runs, made.predictors = [], []
    made.model["Steps"][0]["Model"]["X"] = ["speech", "nothing like it"]
    await made.push()
    shown = await made.fill(dryrun=True)
    assert shown["predictors"] == [12905]
    assert made.runs == []
    await made.pull()
    assert made.runs == []
    strict = await made.fill(partial=False)
    assert strict["predictors"] == []
    await made.fill()
    assert made.predictors == [12905]
    assert made.model["Steps"][0]["Model"]["X"] == ["speech"]


async def test_a_change_that_waits_for_push_outlives_a_fill(api):
    made = await api.analyses.create_analysis(**LIFE)
    made.description = "not yet sent"
    await made.fill()
    assert made.description == "not yet sent"


async def test_compiling_is_waited_for(archive, api, tmp_path):
    made = await api.analyses.create_analysis(**LIFE)
    with pytest.raises(asyncfetch.ConfigurationError, match="call compile"):
        await made.wait()
    with pytest.raises(asyncfetch.NotFound, match="Try compiling"):
        await made.get_bundle()
    assert (await made.compile())["status"] == "PENDING"
    assert made.status == "PENDING"
    assert await made.wait() == "PASSED"
    assert made.status == "PASSED"
    assert (await made.get_status())["traceback"] == ""
    data = await made.get_bundle()
    path = await made.get_bundle(filename=tmp_path / "bundle.tar.gz")
    names = await look(lambda: names_in(path))
    assert "resources.json" in names
    assert await anyio.Path(path).read_bytes() == data
    with pytest.raises(asyncfetch.ResponseError, match="cannot delete"):
        await made.delete()


async def test_a_compilation_that_fails_says_why(api):
    made = await api.analyses.create_analysis(**LIFE)
    made.predictors = []
    await made.push()
    await made.compile()
    with pytest.raises(asyncfetch.ResponseError, match="FAILED: ValueError: No events"):
        await made.wait()


async def test_waiting_ends_on_a_traceback_and_on_time(archive, api):
    stuck = b'{"status": "PENDING", "traceback": "OSError: gone\\n  at x"}'
    archive.script("/compile", [Fault(body=stuck)])
    with pytest.raises(asyncfetch.ResponseError, match="PENDING: OSError: gone at x"):
        await api.analyses.wait("h4vx8")
    archive.script("/compile", [Fault(body=b'{"status":"PENDING","traceback":""}')] * 9)
    with pytest.raises(TimeoutError, match="still goes on"):
        await api.analyses.wait("h4vx8", timeout=0)


async def test_reports_are_found_by_what_they_were_asked_with(api):
    made = await api.analyses.create_analysis(**LIFE)
    runs = made.runs[:2]
    with pytest.raises(asyncfetch.NotFound, match="Report not found"):
        await made.get_report()
    pending = await made.generate_report(run_id=runs, sampling_rate=1.5)
    assert (pending["status"], pending["scale"]) == ("PENDING", False)
    assert (await made.get_report(run_id=runs, loop_wait=False))["status"] == "PENDING"
    assert len(await made.get_design_matrix(runs)) == 2
    made.description = "changed"
    await made.push()
    with pytest.raises(asyncfetch.NotFound, match="No fresh reports"):
        await made.get_report(run_id=runs)
    made.predictors = []
    await made.push()
    await made.generate_report()
    with pytest.raises(asyncfetch.ResponseError, match="FAILED: KeyError"):
        await made.get_design_matrix()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataset_name": "Lif"}, asyncfetch.NotFound, "did you mean Life"),
        ({"task": "lif"}, asyncfetch.NotFound, "no task 'lif' in Life"),
        ({"predictor_names": ["rmse", "spech"]}, asyncfetch.NotFound, "mean speech"),
        ({"subject": ["nobody"]}, asyncfetch.NotFound, "no run of Life with"),
        ({"predictor_names": []}, asyncfetch.ConfigurationError, "got none"),
        ({"subjects": ["a"]}, asyncfetch.ConfigurationError, "are the same"),
        ({"hrf_variables": ["x"]}, asyncfetch.ConfigurationError, "among rmse"),
        ({"nme": "x"}, TypeError, "unexpected keyword argument 'nme'"),
    ],
)
async def test_a_mistake_is_said_before_anything_is_made(
    archive, api, change, error, message
):
    with pytest.raises(error, match=message):
        await api.analyses.create_analysis(**{**LIFE, **change})
    written = [one.target for one in archive.log if one.method != "GET"]
    assert set(written) <= {"/neuroscout/api/auth"}


async def test_predictors_of_an_analysis_are_public_ones_first(api):
    made = await api.analyses.create_analysis(
        name="a",
        dataset_name="Sherlock_Merlin",
        predictor_names=["my_ratings", "concreteness", "speech"],
        task="MerlinMovie",
        run=None,
    )
    assert made.predictors == [41003, 12733, 12725]
    hidden = await api.analyses.create_analysis(
        name="b", dataset_name="Budapest", predictor_names="brightness", runs=[1]
    )
    assert hidden.predictors == [40347]
    assert hidden.model["Input"]["Run"] == [1]


async def test_refusals_of_every_shape_are_one_line(api):
    cases = {
        "json.runs: Invalid run id": {"dataset_id": 9, "runs": [99999]},
        "json.dataset_id: Missing data for required field.": {},
        "json.name: Field may not be null.": {"dataset_id": 9, "name": None},
        "json.dataset_id: Invalid dataset id.": {"dataset_id": 4711},
    }
    for message, fields in cases.items():
        with pytest.raises(asyncfetch.ResponseError, match=r"\(422\)") as caught:
            await api.analyses.post(**fields)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(asyncfetch.ConfigurationError, match="plain JSON"):
        await api.analyses.post(dataset_id=9, model={"x": float("nan")})
    with pytest.raises(asyncfetch.ResponseError, match="502"):
        await api.analyses.post(dataset_id=9, runs=[{"id": 1}])


async def test_a_write_is_sent_once_and_not_again(archive, api):
    await api.user.get()
    archive.script("/analyses", [Fault.reset()])
    with pytest.raises(asyncfetch.TransportError):
        await api.analyses.post(dataset_id=9)
    archive.script("/analyses/h4vx8", [Fault.reset()])
    with pytest.raises(asyncfetch.TransportError):
        await api.analyses.put("h4vx8", dataset_id=28, name="x")
    sent = [one for one in archive.log if one.method in ("POST", "PUT")]
    assert len(sent) == 3  # the login among them


async def test_an_expired_token_does_not_lose_a_write(archive, api):
    made = await api.analyses.create_analysis(**LIFE)
    archive.pass_time(8 * 86400)
    made.description = "later"
    await made.push()
    assert (await api.analyses.get(made.hash_id))["description"] == "later"


async def test_images_are_uploaded_and_loaded(archive, api, tmp_path, monkeypatch):
    made = await api.analyses.create_analysis(**LIFE)
    await made.compile()
    await made.wait()
    bundle = io.BytesIO(await made.get_bundle())
    tar = tarfile.open(fileobj=bundle)  # noqa: SIM115
    key = json.load(tar.extractfile("resources.json"))["validation_hash"]
    image = gzip.compress(b"an image")
    names = [
        "task-life_contrast-a_stat-z_x.nii.gz",
        "task-life_contrast-a_stat-t_x.nii.gz",
    ]
    for name in names:
        await anyio.Path(tmp_path / name).write_bytes(image)
    paths = [tmp_path / name for name in names]
    with pytest.raises(asyncfetch.ResponseError, match="Invalid validation hash"):
        await made.upload_neurovault("wrong", group_paths=paths)
    with pytest.raises(asyncfetch.ConfigurationError, match="expected an image"):
        await made.upload_neurovault(key, group_paths=[tmp_path / "none"])
    found = await made.upload_neurovault(
        key, group_paths=paths, estimator="nilearn", cli_args={"a": 1}, n_subjects=2
    )
    assert [one["basename"] for one in found["files"]] == names[::-1]
    assert found["cli_args"] == {"a": 1}
    with pytest.raises(asyncfetch.ResponseError, match="one with that name already"):
        await made.upload_neurovault(key, group_paths=paths)
    await made.get_uploads()
    (upload,) = await made.get_uploads(estimator="nilearn")
    assert await made.get_uploads(estimator="other") == []

    class Loaded:
        class Nifti1Image:
            from_bytes = bytes

    monkeypatch.setattr(_analyses, "optional", lambda *_, **__: Loaded)
    ((data, about),) = await made.load_uploads(
        image_filters={"stat": "t"}, download_dir=tmp_path / "images"
    )
    assert (data, about["contrast"]) == (b"an image", "a")
    assert about["collection_id"] == upload["collection_id"]
    asked = len(archive.log)
    await made.load_uploads(
        image_filters={"stat": "t"}, download_dir=tmp_path / "images"
    )
    assert len(archive.log) == asked + 1  # the files are there


async def test_uploads_of_many_analyses_are_loaded_in_their_order(api, monkeypatch):
    class Loaded:
        class Nifti1Image:
            from_bytes = bytes

    monkeypatch.setattr(_analyses, "optional", lambda *_, **__: Loaded)
    keys = ["k2m7p", "3q7yo", "h4vx8"]
    loaded = await api.analyses.load_uploads(keys)
    assert [one["hash_id"] for _, one in loaded] == [k for k in keys for _ in range(2)]
    assert all(len(data) == 360 for data, _ in loaded)
    every = await api.analyses.get_uploads("k2m7p", None)
    latest = await api.analyses.get_uploads("k2m7p")
    oldest = await api.analyses.get_uploads("k2m7p", select="oldest")
    assert [every[0]] == oldest
    assert [every[1]] == latest
    with pytest.raises(asyncfetch.ConfigurationError, match="expected select"):
        await api.analyses.get_uploads("k2m7p", "newest")


async def test_without_nibabel_images_say_what_to_install(api):
    try:
        import nibabel  # noqa: F401
    except ImportError:
        with pytest.raises(asyncfetch.ConfigurationError, match="nibabel: pip"):
            await api.analyses.load_uploads("k2m7p")


def test_a_model_has_three_levels_and_leaves_its_arguments_alone():
    given = [{"Name": "Scale", "Input": ["a"]}]
    model = build_model(
        "m", ["a", "b"], ["t"], ["1"], [1], "s",
        hrf_variables=["a"], transformations=given, dummy_contrasts="hrf",
    )  # fmt: skip
    assert len(given) == 1
    first = model["Steps"][0]
    assert [one["Name"] for one in first["Transformations"]] == ["Scale", "Convolve"]
    assert first["DummyContrasts"] == {"Type": "t", "Conditions": ["a"]}
    assert model["Input"] == {
        "Subject": ["1"], "Task": ["t"], "Run": [1], "Session": ["s"],
    }  # fmt: skip
    none = build_model("m", ["a"], ["t"], ["1"], dummy_contrasts=False)
    assert "DummyContrasts" not in none["Steps"][0]
    some = build_model("m", ["a", "b"], ["t"], ["1"], dummy_contrasts=["b"])
    assert some["Steps"][0]["DummyContrasts"]["Conditions"] == ["b"]

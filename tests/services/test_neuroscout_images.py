"""Images of data sets: DataLad and pybids do it, where they are installed."""

import importlib.util
from types import SimpleNamespace

import anyio
import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch.services import _images

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api():
    async with (
        testing.serve(scale=0.05) as archive,
        asyncfetch.Neuroscout(base_url=archive.neuroscout) as api,
    ):
        yield api


@pytest.fixture
def libraries(monkeypatch, tmp_path):
    """DataLad and pybids, played: one folder with one image and one mask."""
    calls = []

    def install(*, source, path):
        calls.append(("install", source))
        (tmp_path / "Life" / "fmriprep").mkdir(parents=True)

    def get(paths, **options):
        calls.append(("get", paths, options))

    def query(**wanted):
        calls.append(("query", wanted))
        if wanted.get("subject") == "nobody":
            return []
        return [SimpleNamespace(path=f"/data/{wanted['suffix']}.nii.gz")]

    played = {
        "datalad.api": SimpleNamespace(install=install, get=get),
        "bids.layout": SimpleNamespace(
            BIDSLayout=lambda *_, **__: SimpleNamespace(get=query)
        ),
    }
    monkeypatch.setattr(_images, "optional", lambda name, *_, **__: played[name])
    return calls


async def test_images_are_installed_found_and_got(api, libraries, tmp_path):
    folder, paths = await api.fetch_images(
        "Life", tmp_path, subjects="rid000001", runs=[1, 2], fetch_brain_mask=True
    )
    assert folder == tmp_path / "Life" / "fmriprep"
    assert [one.name for one in paths] == ["bold.nii.gz", "mask.nii.gz"]
    assert libraries[0] == (
        "install",
        "https://github.com/neuroscout-datasets/Life.git",
    )
    queries = [one[1] for one in libraries if one[0] == "query"]
    assert queries[0]["subject"] == "rid000001"
    assert queries[0]["run"] == [1, 2]
    last = libraries[-1]
    assert last[1] == [str(one) for one in paths]
    assert last[2]["jobs"] == "auto"
    await api.fetch_images("Life", tmp_path)
    assert [one[0] for one in libraries].count("install") == 1


async def test_nothing_is_got_without_need(api, libraries, tmp_path):
    await anyio.Path(tmp_path / "Life").mkdir()
    await api.fetch_images("Life", tmp_path, no_get=True)
    assert {one[0] for one in libraries} == {"query"}
    with pytest.raises(asyncfetch.NotFound, match="no preprocessed image"):
        await api.fetch_images("Life", tmp_path, no_get=True, subject="nobody")
    with pytest.raises(asyncfetch.ConfigurationError, match="each entity once"):
        await api.get_paths(tmp_path, subject="a", subjects="b")
    with pytest.raises(asyncfetch.NotFound, match="did you mean Life"):
        await api.fetch_images("Lif", tmp_path)


async def test_a_failure_of_datalad_says_its_reason(api, libraries, monkeypatch):
    def get(*_, **__):
        error = RuntimeError("incomplete")
        error.failed = [{"path": "/x", "message": "no space"}]
        raise error

    played = SimpleNamespace(get=get)
    monkeypatch.setattr(_images, "optional", lambda *_, **__: played)
    with pytest.raises(asyncfetch.TransportError, match="get /x: no space"):
        _images.fetch([], "x", 1)


@pytest.mark.skipif(
    importlib.util.find_spec("datalad") is not None, reason="datalad is installed"
)
async def test_without_datalad_it_says_what_to_install(api, tmp_path):
    with pytest.raises(asyncfetch.ConfigurationError, match=r"asyncfetch\[bids\]"):
        await api.fetch_images("Life", tmp_path)

"""Images of data sets: DataLad and pybids do it, where they are installed."""

import importlib.util
import json
import os
import shutil
import sys
from types import SimpleNamespace

import anyio
import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch.services import _images
from tests.conftest import look

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

    def install(*, source, path, **_):
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
            BIDSLayout=lambda *_, **__: SimpleNamespace(get=query),
            BIDSLayoutIndexer=lambda **_: None,
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
        error.failed = [{"path": "/x", "message": ("no space on\n%s", "/x")}]
        raise error

    played = SimpleNamespace(get=get)
    monkeypatch.setattr(_images, "optional", lambda *_, **__: played)
    with pytest.raises(asyncfetch.TransportError, match="get /x: no space on /x"):
        _images.fetch([], "x", 1)


NAME = "sub-{}_task-MerlinMovie_space-MNI152NLin2009cAsym_desc-{}.nii.gz"


def preprocess(folder):
    """What fMRIPrep leaves of two subjects, with few bytes in each image."""
    folder.mkdir(parents=True)
    about = {"Name": "x", "BIDSVersion": "1.6.0", "DatasetType": "derivative"}
    about["GeneratedBy"] = [{"Name": "fMRIPrep"}]
    (folder / "dataset_description.json").write_text(json.dumps(about))
    for subject in ("19", "20"):
        func = folder / f"sub-{subject}" / "func"
        func.mkdir(parents=True)
        for kind in ("preproc_bold", "brain_mask"):
            (func / NAME.format(subject, kind)).write_bytes(f"{subject}{kind}".encode())


async def test_pybids_finds_each_image_once(api, tmp_path):
    pytest.importorskip("bids")
    await look(lambda: preprocess(tmp_path / "fmriprep"))
    found = await api.get_paths(
        tmp_path / "fmriprep",
        fetch_brain_mask=True,
        subjects=["19"],
        tasks="MerlinMovie",
    )
    assert [one.name for one in found] == [
        NAME.format("19", "preproc_bold"),
        NAME.format("19", "brain_mask"),
    ]
    assert len(await api.get_paths(tmp_path / "fmriprep")) == 2
    with pytest.raises(asyncfetch.NotFound, match="no preprocessed image"):
        await api.get_paths(tmp_path / "fmriprep", subject="21")


# Not here: DataLad leaves files open, and a warning of that is an error.
REAL = """
import sys
import anyio, asyncfetch, datalad.api
from pathlib import Path
from asyncfetch import testing
from tests.services.test_neuroscout_images import NAME, preprocess

async def main(place):
    source = str(place / "source")
    quiet = {"result_renderer": "disabled"}
    datalad.api.create(path=source, **quiet)
    preprocess(place / "source" / "fmriprep")
    datalad.api.save(dataset=source, **quiet)
    (place / "data").mkdir()
    async with (
        testing.serve(scale=0.05) as archive,
        asyncfetch.Neuroscout(base_url=archive.neuroscout) as api,
    ):
        folder, paths = await api.fetch_images(
            "SherlockMerlin", place / "data", preproc_address=source, subject="19",
            fetch_brain_mask=True,
        )
        assert folder == place / "data/SherlockMerlin/fmriprep"
        found = [one.read_bytes() for one in paths]
        assert found == [b"19preproc_bold", b"19brain_mask"]
        other = folder / "sub-20/func" / NAME.format("20", "preproc_bold")
        assert other.is_symlink() and not other.exists()  # not asked for
        try:
            nowhere = str(place / "nowhere")
            await api.fetch_images("Life", place / "data", preproc_address=nowhere)
        except asyncfetch.TransportError as error:
            assert "could not install" in str(error) and "nowhere" in str(error)
        else:
            raise AssertionError("nothing was said")

anyio.run(main, Path(sys.argv[1]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("datalad") is None or shutil.which("git-annex") is None,
    reason="needs DataLad and git-annex",
)
async def test_datalad_installs_and_gets(tmp_path):
    names = {
        f"GIT_{role}_{what}": "test@example.com"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    ended = await anyio.run_process(
        [sys.executable, "-c", REAL, str(tmp_path)],
        env={**os.environ, **names},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b""


@pytest.mark.skipif(
    importlib.util.find_spec("datalad") is not None, reason="datalad is installed"
)
async def test_without_datalad_it_says_what_to_install(api, tmp_path):
    with pytest.raises(asyncfetch.ConfigurationError, match=r"asyncfetch\[bids\]"):
        await api.fetch_images("Life", tmp_path)

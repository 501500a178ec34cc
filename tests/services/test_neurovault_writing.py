"""Writing to NeuroVault: once, checked beforehand, and said when it went wrong."""

import gzip
import json

import pytest

import asyncfetch
from asyncfetch._neurovault_schema import CODES
from asyncfetch.services.neurovault import _coded
from asyncfetch.testing import Fault
from asyncfetch.testing._neurovault import TOKEN
from asyncfetch.testing._neurovault_data import PRIVATE, TUTORIAL, nifti
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio

WHOLE = nifti(3, 4)
MAP = {"name": "faces", "map_type": "Z", "modality": "fMRI-BOLD"}


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroVault(TOKEN, base_url=archive.neurovault) as api:
        api.exchange._rng = Impatient()
        yield api


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "zstat 1.nii.gz"
    found.write_bytes(WHOLE)
    return found


def posts(archive):
    return [entry for entry in archive.log if entry.method == "POST"]


async def test_a_collection_is_made_changed_and_filled(archive, api, path):
    made = await api.create_collection("Mine", type_of_design="blocked")
    assert made["type_of_design"] == "blocked"
    changed = await api.update_collection(made["id"], description="what it is")
    assert changed["description"] == "what it is"
    assert made["id"] in {one["id"] for one in await api.my_collections()}
    image = await api.add_image(
        made["id"], path, **MAP, analysis_level="group", is_thresholded=False, site="A"
    )
    assert image["map_type"] == "Z map"
    assert image["analysis_level"] == "group"
    assert image["is_thresholded"] is False
    assert image["site"] == "A"
    assert image["file"].endswith("/zstat_1.nii.gz")
    assert archive.truth.images(id=image["id"])[0]["bytes"] == WHOLE
    image = await api.update_image(image["id"], map_type="T map", site="B")
    assert (image["map_type"], image["site"]) == ("T map", "B")
    (row,) = await api.files.get(collection_id=made["id"])
    assert row["size"] == len(WHOLE)


async def test_a_doi_makes_a_collection_too(api):
    made = await api.create_collection(DOI="10.1000/of.a.paper")
    assert made["name"] == "Paper 10.1000/of.a.paper"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({}, "either name or DOI"),
        ({"name": "a", "DOI": "b"}, "either name or DOI"),
        ({"name": "a", "type_of_desing": "x"}, "did you mean type_of_design"),
        ({"name": "a", "description": {1, 2}}, "plain JSON"),
    ],
)
async def test_a_collection_that_cannot_be_is_not_sent(archive, api, call, says):
    with pytest.raises(asyncfetch.ConfigurationError, match=says):
        await api.create_collection(**call)
    assert not archive.log


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"name": "Emotion & regulation: fMRI maps"}, "name: collection with this"),
        ({"name": ""}, "name: This field may not be blank"),
        ({"DOI": "10.9999/none"}, "Could not resolve DOI"),
    ],
)
async def test_the_words_of_a_refusal_arrive(archive, api, call, says):
    with pytest.raises(asyncfetch.ResponseError, match=says) as error:
        await api.create_collection(**call)
    assert error.value.status == 400
    assert len(posts(archive)) == 1


async def test_nobody_writes_without_a_token(archive, path):
    async with asyncfetch.NeuroVault(base_url=archive.neurovault) as nobody:
        for call in (
            nobody.create_collection("a"),
            nobody.my_collections(),
            nobody.add_image(TUTORIAL, path, **MAP),
        ):
            with pytest.raises(
                asyncfetch.AuthenticationError, match="NEUROVAULT_TOKEN"
            ):
                await call
    assert not archive.log


@pytest.mark.parametrize(
    ("given", "code"),
    [("Z", "Z"), ("Z map", "Z"), ("z MAP", "Z"), ("pa", "Pa"), ("other", "Other")],
)
def test_names_and_codes_mean_the_same(given, code):
    assert _coded("map_type", given) == code


def test_every_code_and_name_is_known():
    for name, codes in CODES.items():
        for code, label in codes.items():
            assert _coded(name, code) == code
            assert _coded(name, label) == code


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"map_type": "Y map"}, "did you mean"),
        ({"modality": "fMRI"}, "expected one of fMRI-BOLD"),
        ({"sites": ["a", "b"]}, "cannot give images with such metadata"),
        ({"sites": '["a", "b"]'}, "cannot give images with such metadata"),
        ({"sites": {"a": 1}}, "cannot give images with such metadata"),
    ],
)
async def test_an_image_that_would_do_harm_is_not_sent(
    archive, api, path, fields, says
):
    with pytest.raises(asyncfetch.ConfigurationError, match=says):
        await api.add_image(TUTORIAL, path, **{**MAP, **fields})
    assert not archive.log


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.nii.gz", WHOLE[:-5], "stored cut"),
        ("a.nii.gz", gzip.decompress(WHOLE), "expected a gzip file"),
        ("a.nii.gz", gzip.compress(b"no image", mtime=0), "NIfTI header"),
        ("a.png", WHOLE, r"expected a \.nii or \.nii\.gz file"),
        ("none.nii", None, "No such file"),
    ],
)
async def test_a_file_that_is_no_image_is_not_sent(
    archive, api, tmp_path, name, content, says
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(asyncfetch.ConfigurationError, match=says):
        await api.add_image(TUTORIAL, tmp_path / name, **MAP)
    assert not archive.log


async def test_a_file_that_is_not_compressed_is_sent_compressed(archive, api, tmp_path):
    content = gzip.decompress(WHOLE)
    (tmp_path / "plain.nii").write_bytes(content)
    image = await api.add_image(TUTORIAL, tmp_path / "plain.nii", **MAP)
    sent = archive.truth.images(id=image["id"])[0]
    assert sent["path"] == "plain.nii.gz"
    assert await look(gzip.decompress, sent["bytes"]) == content


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, body=b"<html>Server Error</html>"),
        Fault(ending="reset", after=0.5),
    ],
    ids=["500", "reset"],
)
async def test_an_upload_is_never_sent_twice(archive, api, path, fault):
    """The archive stores the image, and its answer does not come."""
    before = len(archive.truth.images(collection_id=TUTORIAL))
    archive.script(f"collections/{TUTORIAL}/images/", [fault])
    with pytest.raises(
        asyncfetch.AsyncfetchError, match="look there before it is sent again"
    ) as error:
        await api.add_image(TUTORIAL, path, **MAP)
    assert len(posts(archive)) == 1
    there = archive.truth.images(collection_id=TUTORIAL)
    assert len(there) == before + 1
    assert error.value.stored == (there[-1]["id"],)


async def test_an_upload_that_is_not_there_is_said_to_be_so(archive, api, path):
    archive.script(f"collections/{TUTORIAL}/images/", [Fault.reset()])
    with pytest.raises(asyncfetch.TransportError, match="no image of that name") as e:
        await api.add_image(TUTORIAL, path, **MAP)
    assert e.value.stored == ()
    assert not [one for one in posts(archive) if one.status]


async def test_a_private_collection_takes_images_and_is_set_free(archive, api, path):
    image = await api.add_image(33, path, **MAP)
    assert image["collection_id"] == 33
    assert len(posts(archive)) == 2  # by its number, refused; by its token
    for number in PRIVATE:
        found = await api.update_collection(number, private=False)
        assert found["private"] is False
        assert (await api.collections.get(number))["id"] == number


async def test_the_token_goes_to_the_service_alone(archive, api, tmp_path, caplog):
    caplog.set_level("DEBUG", logger="asyncfetch")
    report = await asyncfetch.download(
        api.files.plan(collection_id=TUTORIAL), tmp_path / "d"
    )
    assert report.rows
    files = await look(lambda: [p for p in tmp_path.rglob("*") if p.is_file()])
    for file in files:
        assert TOKEN.encode() not in await look(file.read_bytes)
    assert TOKEN not in caplog.text
    assert TOKEN not in json.dumps([repr(api), repr(api.exchange._auth)])


async def test_names_of_any_kind_arrive_as_they_are(archive, api, tmp_path):
    path = tmp_path / 'größe "1"\r\n.nii.gz'
    path.write_bytes(WHOLE)
    image = await api.add_image(TUTORIAL, path, **MAP, **{"my fünf": "ü", "TR": 2.5})
    assert image["my fünf"] == "ü"
    assert image["TR"] == 2.5
    assert image["file"].rpartition("/")[2].endswith(".nii.gz")

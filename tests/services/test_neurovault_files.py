"""NeuroVault's files: whole under their names, and nothing else under them."""

import gzip
import hashlib
import os
import signal
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import _cli, testing
from asyncfetch.errors import DecodeError
from asyncfetch.services._vaultfiles import extension_of, proved
from asyncfetch.testing import Fault, serve_in_thread
from asyncfetch.testing._neurovault_data import (
    POISONED,
    TUTORIAL,
    TUTORIAL_IMAGE,
    is_poisoned,
    nifti,
)
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio

WHOLE = nifti(1, 2)


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroVault(base_url=archive.neurovault) as api:
        api.exchange._rng = Impatient()
        yield api


def expected(archive):
    """Of each public image: whether its file is there, lost, or cut."""
    shown = {one["id"] for one in archive.truth.collections(private=False)}
    found = {}
    for one in archive.truth.images():
        if one["collection_id"] in shown and not is_poisoned(one):
            found[one["id"]] = "ok"
            if one["bytes"] is None:
                found[one["id"]] = "missing"
            elif not is_whole(one["bytes"]):
                found[one["id"]] = "failed"
    return found


def is_whole(data):
    try:
        gzip.decompress(data)
    except EOFError:
        return False
    return True


def outcomes(dest):
    items = asyncfetch.open_dataset(dest).items.to_pylist()
    return {
        int(one["key"].removeprefix("image=")): one["outcome"]
        for one in items
        if one["key"].startswith("image=")
    }


def prove_files(root, archive):
    """Every file that is there is the one that it should be."""
    bytes_of = {one["id"]: one["bytes"] for one in archive.truth.images()}
    paths = [path for path in root.rglob("*") if path.is_file()]
    for path in paths:
        number = int(path.name.removeprefix("image_").removesuffix(".nii.gz"))
        assert path.read_bytes() == bytes_of[number]
        assert gzip.decompress(bytes_of[number])
    return len(paths)


def media(archive):
    return [entry for entry in archive.log if "/media/" in entry.target]


async def test_good_files_come_and_the_others_are_named(archive, api, tmp_path):
    dest = tmp_path / "d"
    report = await asyncfetch.download(api.files.plan(), dest)
    wanted = expected(archive)
    assert await look(outcomes, dest) == wanted
    ok = sum(one == "ok" for one in wanted.values())
    assert report.rows == ok
    assert await look(prove_files, dest / "_files", archive) == ok
    failed = {one.key for one in report.failed}
    assert f"collections id={POISONED}" in failed
    assert set(wanted.values()) == {"ok", "missing", "failed"}
    view = await look(asyncfetch.open_dataset, dest)
    rows = await look(lambda: view.rows.to_table().to_pylist())
    row = next(one for one in rows if one["id"] == TUTORIAL_IMAGE)
    assert row["path"] == f"collection_{TUTORIAL}/image_{TUTORIAL_IMAGE}.nii.gz"
    (truth,) = archive.truth.images(id=TUTORIAL_IMAGE)
    assert row["sha256"] == hashlib.sha256(truth["bytes"]).hexdigest()
    assert row["size"] == len(truth["bytes"])
    assert row["url"].startswith(f"{archive.url}/neurovault/media/images/{TUTORIAL}/")


async def test_a_lost_file_is_missing_without_a_request(archive, api, tmp_path):
    (lost, *_) = [one for one in archive.truth.images() if one["bytes"] is None]
    plan = api.files.plan(id=lost["id"])
    report = await asyncfetch.download(plan, tmp_path / "d")
    assert report.items == {"missing": 1}
    assert not media(archive)
    assert report.requests == 1  # for its record


async def test_files_go_where_they_are_wanted_and_are_not_asked_twice(
    archive, api, tmp_path
):
    plan = api.files.plan(collection_id=TUTORIAL)
    report = await asyncfetch.download(plan, tmp_path / "d", files=tmp_path / "f")
    count = len(archive.truth.images(collection_id=TUTORIAL))
    assert await look(prove_files, tmp_path / "f", archive) == count
    asked = len(archive.log)
    again = await asyncfetch.download(
        api.files.plan(collection_id=TUTORIAL), tmp_path / "d"
    )
    assert (again.requests, again.rows) == (0, report.rows)
    assert len(archive.log) == asked


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ending="clean", after=0.5),
        Fault(ending="close", after=0.5),
        Fault(body=b"<html>Too many users</html>"),
        Fault(body=WHOLE[:-9]),
        Fault(body=gzip.decompress(WHOLE)),
        Fault(status=404, body=b"<html>Page not found</html>"),
    ],
    ids="short cut html truncated inflated absent".split(),
)
async def test_a_wrong_body_never_gets_a_name(archive, api, tmp_path, fault):
    (truth,) = archive.truth.images(id=TUTORIAL_IMAGE)
    archive.script(truth["path"], [fault] * 20)
    plan = api.files.plan(collection_id=TUTORIAL)
    report = await asyncfetch.download(plan, tmp_path / "d")
    count = len(archive.truth.images(collection_id=TUTORIAL))
    assert report.items.get("ok") == count - 1
    files = tmp_path / "d" / "_files"
    assert await look(prove_files, files, archive) == count - 1


PAGE = Fault(body=b"<html>Too many users</html>")


@pytest.mark.parametrize(
    "faults",
    [[Fault(ending="clean", after=0.5), Fault.reset()], [PAGE, PAGE]],
    ids=["cut", "a page for people"],
)
async def test_a_fault_that_passes_costs_a_request(archive, api, tmp_path, faults):
    (truth,) = archive.truth.images(id=TUTORIAL_IMAGE)
    archive.script(truth["path"], faults)
    plan = api.files.plan(id=TUTORIAL_IMAGE)
    report = await asyncfetch.download(plan, tmp_path / "d")
    assert report.items == {"ok": 1}
    assert report.retries


async def test_what_was_unreadable_is_fetched_when_it_can_be_read(
    archive, api, tmp_path
):
    dest = tmp_path / "d"
    await asyncfetch.download(api.files.plan(), dest)
    for row in [*archive.truth.collections(), *archive.truth.images()]:
        row.pop("owner_is_gone", None)
        row.pop("sites", None)
    wanted = expected(archive)
    report = await asyncfetch.download(api.files.plan(), dest)
    assert await look(outcomes, dest) == wanted
    assert {one.key for one in report.failed} == {
        f"image={number}" for number, one in wanted.items() if one == "failed"
    }


async def test_only_what_was_modified_since_is_fetched(archive, api, tmp_path):
    for rows in (archive.truth.collections(), archive.truth.images()):
        for row in rows:
            row["modify_date"] = "2026-05-01T12:00:00+02:00"
    for row in archive.truth.images(id=TUTORIAL_IMAGE):
        row["modify_date"] = "2026-06-01T12:00:00+02:00"
    for row in archive.truth.collections(id=TUTORIAL):
        row["modify_date"] = "2026-06-01T12:00:00+02:00"
    plan = api.files.plan(modified_since="2026-06-01T10:00:00Z")
    report = await asyncfetch.download(plan, tmp_path / "d")
    assert report.rows == 1
    assert len(media(archive)) == 1
    images = [e for e in archive.log if "/images/?" in e.target]
    # Collections that are older are not looked into, but for one that cannot be read.
    assert {e.target.split("/")[4] for e in images if "collections" in e.target} == {
        str(TUTORIAL),
        str(POISONED),
    }


async def test_what_was_not_modified_is_taken_from_an_earlier_dataset(
    archive, api, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    await asyncfetch.download(api.files.plan(), first, files=tmp_path / "f")
    fresh = nifti(5, 6)
    for row in archive.truth.images(id=TUTORIAL_IMAGE):
        row |= {"bytes": fresh, "file_size": len(fresh)}
        row["modify_date"] = "2026-06-01T12:00:00+02:00"
    before = len(media(archive))
    plan = api.files.plan(earlier=str(first))
    report = await asyncfetch.download(plan, second)
    wanted = expected(archive)
    assert await look(outcomes, second) == wanted
    ok = sum(one == "ok" for one in wanted.values())
    assert report.rows == ok
    assert await look(prove_files, second / "_files", archive) == ok
    asked = media(archive)[before:]
    cut = [number for number, one in wanted.items() if one == "failed"]
    assert len(asked) == 1 + len(cut)  # what is new, and what did not come before
    assert await look(_cli.run, ["verify", str(second)]) == 0


async def test_a_file_of_an_earlier_dataset_that_was_changed_is_asked_for(
    archive, api, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    await asyncfetch.download(api.files.plan(collection_id=TUTORIAL), first)
    where = first / "_files" / f"collection_{TUTORIAL}"
    path = where / f"image_{TUTORIAL_IMAGE}.nii.gz"
    await look(path.write_bytes, b"somebody was here")
    before = len(media(archive))
    plan = api.files.plan(collection_id=TUTORIAL, earlier=str(first))
    report = await asyncfetch.download(plan, second)
    assert len(media(archive)) == before + 1
    assert await look(prove_files, second / "_files", archive) == report.rows


async def test_only_files_of_neurovault_are_an_earlier_dataset(api, tmp_path):
    plan = api.images.plan(collection_id=TUTORIAL)
    await asyncfetch.download(plan, tmp_path / "images")
    plan = api.files.plan(earlier=str(tmp_path / "images"))
    with pytest.raises(asyncfetch.ConfigurationError, match="neurovault/images"):
        await asyncfetch.download(plan, tmp_path / "d")
    plan = api.files.plan(earlier=str(tmp_path / "none"))
    with pytest.raises(asyncfetch.DatasetError, match="none"):
        await asyncfetch.download(plan, tmp_path / "d")


# --- proving --------------------------------------------------------------------------


def test_a_whole_file_is_proved():
    size, digest = proved([WHOLE[:100], WHOLE[100:]], "a.nii.gz")
    assert (size, digest) == (len(WHOLE), hashlib.sha256(WHOLE).hexdigest())
    proved([gzip.decompress(WHOLE)], "a.nii")
    proved([WHOLE + bytes(512)], "a.nii.gz")  # padded, as tape was
    twice = gzip.decompress(WHOLE)
    parts = gzip.compress(twice[:500]) + gzip.compress(twice[500:])
    proved([parts], "a.nii.gz")


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 4000))
def test_no_beginning_of_a_file_is_a_file(end, step):
    cut = WHOLE[:end]
    with pytest.raises(DecodeError):
        proved((cut[n : n + step] for n in range(0, end, step)), "a.nii.gz")


@given(st.integers(0, len(gzip.decompress(WHOLE)) - 1))
def test_fewer_values_than_the_header_names_are_no_file(end):
    with pytest.raises(DecodeError):
        proved([gzip.compress(gzip.decompress(WHOLE)[:end])], "a.nii.gz")


def test_headers_of_both_kinds_and_orders_are_read():
    second = bytearray(544)
    for order in "<>":
        struct.pack_into(f"{order}i", second, 0, 540)
        second[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(f"{order}hh", second, 12, 16, 32)
        struct.pack_into(f"{order}8q", second, 16, 3, 2, 3, 4, 1, 1, 1, 1)
        struct.pack_into(f"{order}q", second, 168, 544)
        proved([bytes(second) + bytes(96)], "a.nii")
        with pytest.raises(DecodeError, match="640 bytes"):
            proved([bytes(second) + bytes(95)], "a.nii")


@pytest.mark.parametrize(
    ("link", "extension"),
    [
        ("http://x/media/images/1/a.nii.gz", ".nii.gz"),
        ("http://x/media/images/1/a.v2.nii.gz", ".nii.gz"),
        ("http://x/media/images/1/a.b.NII", ".NII"),
        ("http://x/media/images/1/a.img", ".img"),
        ("http://x/media/images/1/396069.L.func.gii", ".func.gii"),
        ("", ".nii.gz"),
    ],
)
def test_extensions_are_those_of_the_service(link, extension):
    assert extension_of(link) == extension


# --- a run that is killed -------------------------------------------------------------


def kill_after(command, environment, dest, parts):
    """Kill a process that has committed so many parts; whether it lived so long."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        seen = 0
        while seen < parts and process.poll() is None:
            seen = len(list(dest.glob("part-*.parquet")))
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def test_a_killed_download_goes_on_and_asks_for_nothing_again(tmp_path, monkeypatch):
    dest = tmp_path / "d"
    with serve_in_thread(scale=0.5, latency=0.03) as archive:
        for name, value in archive.environment().items():
            monkeypatch.setenv(name, value)
        words = ["fetch", "neurovault/files", "-o", str(dest), "--concurrency", "4"]
        words += ["--commit-seconds", "0.05", "--quiet"]
        command = [sys.executable, "-m", "asyncfetch", *words]
        for parts in (2, 8):
            assert kill_after(command, {**os.environ}, dest, parts)
            mark = len(archive.log)
            rows = asyncfetch.open_dataset(dest).rows.to_table().to_pylist()
            assert rows
        assert _cli.run(["resume", str(dest), "--quiet"]) == 1
        again = {entry.target for entry in archive.log[mark:]}
        assert not any(row["url"].removeprefix(archive.url) in again for row in rows)
        assert outcomes(dest) == expected(archive)
        ok = sum(one == "ok" for one in expected(archive).values())
        assert prove_files(dest / "_files", archive) == ok
        assert _cli.run(["verify", str(dest)]) == 0


async def test_nibabel_gets_whole_images(archive, api):
    nibabel = pytest.importorskip("nibabel")
    image = await api.load(TUTORIAL_IMAGE)
    assert image.shape == (9, 10, 8)
    assert isinstance(image, nibabel.Nifti1Image)
    several = await api.files.load(collection_id=TUTORIAL, limit=2)
    assert [one["collection_id"] for _, one in several] == [TUTORIAL] * 2


async def test_without_nibabel_it_says_what_to_install(api, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(asyncfetch.ConfigurationError, match=r"asyncfetch\[images\]"):
        await api.load(TUTORIAL_IMAGE)


async def test_32_connections_are_possible(tmp_path):
    async with testing.serve(scale=0.5, latency=0.05) as archive:
        limits = asyncfetch.Limits(concurrency=32)
        url = archive.neurovault
        async with asyncfetch.NeuroVault(base_url=url, limits=limits) as api:
            api.exchange._rng = Impatient()
            report = await asyncfetch.download(api.files.plan(), tmp_path / "d")
        assert report.gate["concurrency"] == 32
        assert report.rows == sum(o == "ok" for o in expected(archive).values())

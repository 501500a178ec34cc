"""Alyx's data files: whole or not at all, under their paths, and no secret beyond."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch._model import Request
from asyncfetch._partial import PARTIAL_POINTS
from asyncfetch._verify import verify
from asyncfetch.services import alyx  # noqa: F401 - heavy, so not in a loop
from asyncfetch.services._datafiles import quoted
from asyncfetch.testing import Fault
from asyncfetch.testing._alyx import DATA_USER, PUBLIC
from asyncfetch.testing._alyx_data import SESSION, content
from asyncfetch.testing._alyx_records import with_uuid
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio


@pytest.fixture
async def archive():
    async with testing.serve(scale=0.2) as archive:
        yield archive


@pytest.fixture
async def one(archive):
    async with asyncfetch.Alyx(archive.alyx, *PUBLIC) as one:
        yield one


def fetched(archive):
    return [e for e in archive.log if "alyx-files" in e.target]


def proved(paths, records):
    """Whether files hold what the database says of them."""
    for path, record in zip(paths, records, strict=True):
        data = Path(path).read_bytes()
        assert len(data) == record["file_size"]
        if record["hash"]:
            kind = hashlib.md5 if len(record["hash"]) == 32 else hashlib.sha1
            assert kind(data).hexdigest() == record["hash"]
    return True


async def test_files_lie_under_their_alf_paths(archive, one, tmp_path):
    records = await one.rest("datasets", "list", session=SESSION)
    report = await one.download(records, tmp_path)
    assert report.items == {"ok": len(records)}
    assert await look(proved, report.paths, records)
    place = tmp_path / "cortexlab/Subjects/KS014/2019-12-03/001/alf"
    names = {
        path.relative_to(place).as_posix()
        for path in report.paths
        if place in path.parents
    }
    assert "_ibl_trials.table.pqt" in names
    assert "#2024-05-06#/_ibl_trials.table.pqt" in names
    assert all("/s3/" in entry.target for entry in fetched(archive))
    assert any("%23" in entry.target for entry in fetched(archive))
    assert {e.method for e in archive.log} == {"GET", "POST"}  # a login; no other write
    assert sum(e.method == "POST" for e in archive.log) == 1


async def test_files_that_are_there_are_not_asked_for_again(archive, one, tmp_path):
    records = await one.rest("datasets", "list", session=SESSION)
    await one.download(records[:3], tmp_path)
    before = len(fetched(archive))
    report = await one.download(records[:4], tmp_path)  # another selection
    unhashed = sum(not record["hash"] for record in records[:3])
    assert len(fetched(archive)) == before + 1 + unhashed
    assert await look(proved, report.paths, records[:4])


async def test_names_keep_the_id_on_demand(one, tmp_path):
    records = await one.rest("datasets", "list", session=SESSION, limit=2)
    report = await one.download(records, tmp_path, keep_uuid=True, source="http")
    for path, record in zip(report.paths, records, strict=True):
        assert path.name.split(".")[-2] == record["url"][-36:]


@pytest.mark.parametrize(
    "fault", [Fault(ending="clean", after=0.5), Fault(body=b"x" * 300)]
)
async def test_a_wrong_file_never_gets_its_name(archive, one, tmp_path, fault):
    records = await one.rest("datasets", "list", session=SESSION)
    chosen = [record for record in records if record["hash"]][:3]
    archive.script(chosen[0]["url"][-36:] + ".", [fault] * 20)
    bad = chosen[0]["url"][-36:]
    one.data_servers._server(archive.url)._rng = Impatient()
    report = await one.download(chosen, tmp_path)
    assert report.items == {"ok": 2, "failed": 1}
    assert [failed.key for failed in report.failed] == [f"dataset={bad}"]
    assert await look(proved, report.paths, chosen[1:])
    found = await look(lambda: [p for p in tmp_path.rglob("*") if bad in p.name])
    name = chosen[0]["file_records"][0]["relative_path"]
    there = await look(lambda: list(tmp_path.rglob(name.rpartition("/")[2])))
    assert not found
    assert not [p for p in there if p.as_posix().endswith(name)]


async def test_a_dataset_that_is_not_there_is_missing(archive, one, tmp_path):
    records = await one.rest("datasets", "list", session=SESSION, limit=1)
    report = await one.download([*records, SESSION], tmp_path)
    assert report.items == {"ok": 1, "missing": 1}
    assert len(report.paths) == 1


async def test_a_file_that_no_server_has_is_missing(archive, one, tmp_path):
    for row in archive.truth.alyx("datasets", session=SESSION)[:1]:
        for copy in row["file_records"]:
            copy["exists"] = False
        report = await one.download([row["id"]], tmp_path)
    assert report.items == {"missing": 1}


async def test_the_table_fills_a_dataset_and_goes_on(archive, one, tmp_path):
    plan = one.table("data-files").plan(lab="cortexlab")
    report = await asyncfetch.download(plan, tmp_path / "d")
    truth = archive.truth.alyx("datasets", lab="cortexlab")
    assert report.items == {"ok": len(truth)}
    rows = await look(
        lambda: asyncfetch.open_dataset(tmp_path / "d").rows.to_table().to_pylist()
    )
    assert {row["id"] for row in rows} == {row["id"] for row in truth}
    for row in rows:
        path = tmp_path / "d" / "_files" / row["path"]
        data = await look(path.read_bytes)
        assert data == content(0, row["id"], row["size"])
    again = await asyncfetch.download(
        one.table("data-files").plan(lab="cortexlab"), tmp_path / "d"
    )
    assert again.requests == 0


async def ask_file(one, url):
    request = Request(target=f"/{quoted(url)}", media="bytes")
    answer = await one.data_servers.ask(
        request, lambda chunks, _: b"".join(chunks), interactive=True
    )
    return answer.value


async def test_credentials_of_the_web_server_go_there_and_nowhere_else(archive):
    """The archive refuses a file of the public tree that is asked for with any."""
    row = archive.truth.alyx("datasets", session=SESSION)[0]
    path = with_uuid(row["file_records"][0]["relative_path"], row["id"])
    private = f"{archive.url}/alyx-files/private/cortexlab/Subjects/{path}"
    public = f"{archive.url}/alyx-files/public/cortexlab/Subjects/{path}"
    account = dict(zip(("data_username", "data_password"), DATA_USER, strict=True))
    where = {"data_server": archive.url, **account}
    async with asyncfetch.Alyx(archive.alyx, *PUBLIC, **where) as one:
        assert await ask_file(one, private) == content(0, row["id"], row["file_size"])
    async with asyncfetch.Alyx(archive.alyx, *PUBLIC, **account) as one:
        assert await ask_file(one, public) == content(0, row["id"], row["file_size"])
        with pytest.raises(asyncfetch.AuthenticationError):
            await ask_file(one, private)


# --- killed ---------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
FAULTS = "error=0.01,reset=0.01,reset_body=0.01,truncate=0.01,html=0.01"
FETCH = ("-m", "asyncfetch", "fetch", "alyx/data-files", "--commit-seconds", "0.02")
DOWNLOAD = """
import sys, anyio, asyncfetch
from asyncfetch.services import alyx

async def main(dest, ids):
    async with asyncfetch.Alyx.from_env() as one:
        report = await one.download(ids.split(), dest)
        report.raise_for_failed()

anyio.run(main, sys.argv[1], sys.stdin.read())
"""


def work(archive, words, ids=(), crash=""):
    """Do it in a process of its own; how that ended."""
    return subprocess.run(
        [sys.executable, *words],
        env={
            **os.environ,
            **archive.environment(),
            "ASYNCFETCH_CRASH": crash,
            "PYTHONPATH": str(Path(asyncfetch.__file__).parents[1]),
        },
        input=" ".join(ids).encode(),
        check=False,
        capture_output=True,
    )


def in_place(archive, folder, rows):
    """Rows whose files have their final names, and are what the service has."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    found = {path for path in found if path.parts[0] != "_downloads"}
    there = []
    for row in rows:
        copy = row["file_records"][0]
        lab = copy["data_repository"]["name"].partition("_")[2]
        path = Path(f"{lab}/Subjects/{copy['relative_path']}")
        if path in found:
            found.remove(path)
            there.append(row)
            size = row["file_size"]
            assert (folder / path).read_bytes() == content(0, row["id"], size)
    assert not found, "no other files, and no part of one, have a name"
    return there


def killed_and_gone_on_with(archive, words, rows, folder, point):
    """What holds of files whose process dies at *point*; the ids that it committed."""
    ids = [row["id"] for row in rows]
    ended = work(archive, words, ids, crash=point)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    there = in_place(archive, folder, rows)
    (dest,) = (path.parent for path in folder.parent.rglob("_asyncfetch"))
    items = asyncfetch.open_dataset(dest).items.to_pylist()
    committed = {one["key"][-36:] for one in items if one["outcome"] == "ok"}
    assert committed <= {row["id"] for row in there}, "a row before its file"
    assert {one.code for one in verify(dest)} <= {"part-missing"}

    mark = len(archive.log)
    ended = work(archive, words, ids)
    assert ended.returncode == 0, ended.stderr.decode()
    asked = " ".join(entry.target for entry in archive.log[mark:])
    assert not [row for row in there if f"{row['id']}." in asked], "asked again"
    assert in_place(archive, folder, rows) == rows
    table = asyncfetch.open_dataset(dest).rows.to_table().to_pylist()
    assert sorted(row["id"] for row in table) == sorted(ids)
    assert verify(dest) == []
    assert list((dest / "_asyncfetch/partial").iterdir()) == []

    mark = len(archive.log)
    assert work(archive, words, ids).returncode == 0
    assert len(archive.log) == mark
    return committed


@posix
@pytest.mark.parametrize(
    "point",
    ["note-durable:2", "file-linked:60", "file-durable:2", "part-linked:2"],
)
def test_a_killed_fetch_asks_for_no_file_again(point, tmp_path):
    with testing.serve_in_thread(scale=0.13, faults=FAULTS) as archive:
        words = [*FETCH, "-o", str(tmp_path / "d")]
        rows = archive.truth.alyx("datasets")
        files = tmp_path / "d/_files"
        assert killed_and_gone_on_with(archive, words, rows, files, point)


@posix
@pytest.mark.parametrize(
    "point", ["note-durable", "file-renamed:5", "items-durable", *PARTIAL_POINTS]
)
def test_a_killed_download_asks_for_no_file_again(point, tmp_path):
    with testing.serve_in_thread(scale=0.05, faults=FAULTS) as archive:
        rows = archive.truth.alyx("datasets")[:20]
        size = 3 << 20  # of one that is kept on its way
        digest = hashlib.md5(content(0, rows[4]["id"], size)).hexdigest()
        rows[4].update(file_size=size, hash=digest)
        words = ["-c", DOWNLOAD, str(tmp_path / "d")]
        killed_and_gone_on_with(archive, words, rows, tmp_path / "d", point)

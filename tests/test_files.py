"""Items that are files: stored as they came, under safe names, and adopted again."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import anyio.to_thread
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch._cli import run
from asyncfetch._files import OWN, Files
from asyncfetch._ledger import seal
from asyncfetch._partial import PARTIAL_POINTS
from asyncfetch._verify import verify
from tests._datasets import files_in
from tests.conftest import Impatient, answer, look, open_wire
from tests.test_partial import MIB, Shelf

pytestmark = pytest.mark.anyio

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and signals")
NODE = b"1 1 0 0 0 1 -1\n"


def trace(nodes, name=b""):
    rows = [b"%d 3 %d 0 0 1 %d\n" % (n, n, n - 1) for n in range(2, nodes + 1)]
    return b"# " + name + b"\n" + NODE + b"".join(rows)


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        api.exchange._rng = api.exchange.gate._rng = Impatient()
        yield api


def expected_files(archive):
    """Every usable trace under its name, but for what some systems do not take."""

    def plain(name):
        return re.sub(r'[<>:"/\\|?*]', "_", name)

    return {
        f"{plain(one['archive'])}/CNG version/{plain(one['neuron_name'])}.CNG.swc": swc
        for one in archive.truth.neurons()
        if (swc := archive.truth.swc(one["neuron_id"]))
    }


def items_of(dest):
    return asyncfetch.open_dataset(dest).items.to_pylist()


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr("asyncfetch._absence.PATIENCE", 0.1)


def files_asked(archive):
    return [one.target for one in archive.log if "/dableFiles" in one.target]


async def test_exact_bytes_lie_in_the_dataset_beside_the_same_rows(
    archive, api, tmp_path
):
    plan = api.traces.plan()
    await asyncfetch.download(plan, tmp_path / "rows")
    await asyncfetch.download(plan, tmp_path / "both", files="_files")
    assert not (tmp_path / "rows/_files").exists()
    files = await look(files_in, tmp_path / "both/_files")
    assert files == expected_files(archive)
    tables = [pads.dataset(tmp_path / one).to_table() for one in ("rows", "both")]
    order = [("neuron_id", "ascending"), ("node_id", "ascending")]
    assert tables[0].sort_by(order).equals(tables[1].sort_by(order))
    for item in await look(items_of, tmp_path / "both"):
        if item["outcome"] == "ok":
            content = files[item["path"].removeprefix("_files/")]
            assert item["bytes"] == len(content)
            assert item["sha256"] == hashlib.sha256(content).hexdigest()
            assert item["etag"]
        else:
            assert item["path"] is None
    assert {one["path"] for one in await look(items_of, tmp_path / "rows")} == {None}
    assert not await look(verify, tmp_path / "both")
    state = (await look(asyncfetch.open_dataset, tmp_path / "both")).state()
    assert state.files == len(files)
    assert state.file_bytes == sum(map(len, files.values()))
    assert not list((tmp_path / "both/_asyncfetch/partial").iterdir())


async def test_a_resume_knows_where_files_go(archive, api, tmp_path):
    dest, files = tmp_path / "d", tmp_path / "files"
    await asyncfetch.download(api.traces.plan(limit=5), dest, files=files)
    await asyncfetch.download(api.traces.plan(), dest)
    assert await look(files_in, files) == expected_files(archive)
    paths = [one["path"] for one in await look(items_of, dest) if one["path"]]
    assert all(path.startswith(str(files.resolve())) for path in paths)
    again = api.traces.plan()
    with pytest.raises(asyncfetch.DatasetError, match="as it was begun"):
        await asyncfetch.download(again, dest, files="_files")
    report = await asyncfetch.download(again, dest, files=files)
    assert not await look(verify, dest)
    assert report.items["ok"] == len(paths)


async def test_a_dataset_that_was_begun_without_files_stays_without(api, tmp_path):
    await asyncfetch.download(api.traces.plan(limit=3), tmp_path / "d")
    with pytest.raises(asyncfetch.DatasetError, match="in no place, as it was begun"):
        await asyncfetch.download(api.traces.plan(), tmp_path / "d", files="_files")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ("", "expected a directory for files, or _files"),
        ("s3://bucket/x", "expected a directory for files, or _files"),
        ("d", "outside the dataset"),
        ("d/sub", "outside the dataset"),
        ("a-file", "expected a directory for files, got"),
    ],
)
async def test_a_directory_that_is_none_is_refused(
    api, tmp_path, monkeypatch, files, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(asyncfetch.ConfigurationError, match=says):
        await asyncfetch.download(api.traces.plan(), tmp_path / "d", files=files)
    assert not (tmp_path / "d").exists()


async def test_a_table_without_files_says_so(api, tmp_path):
    with pytest.raises(asyncfetch.ConfigurationError, match="neurons has no files"):
        await asyncfetch.download(api.neurons.plan(), tmp_path / "d", files="_files")


async def test_faults_change_no_byte(tmp_path):
    faults = "error=0.05,reset_body=0.05,truncate=0.05,truncate_silent=0.05,html=0.02"
    async with (
        testing.serve(scale=0.05, faults=faults) as archive,
        asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api,
    ):
        api.exchange._rng = api.exchange.gate._rng = Impatient()
        retries = []
        for _ in range(4):  # an item all of whose attempts had a fault fails, and waits
            report = await asyncfetch.download(
                api.traces.plan(), tmp_path / "d", files="_files"
            )
            retries.append(report.retries)
        assert retries[0]
        files = await look(files_in, tmp_path / "d/_files")
        assert files == expected_files(archive)


# --- names from the network -----------------------------------------------------------


def service(neurons, files):
    """Answers of a service with these neurons, as (archive, name)."""
    records = [
        {"neuron_id": n, "neuron_name": name, "archive": folder}
        for n, (folder, name) in enumerate(neurons, 1)
    ]
    size = len(records)
    page = {"size": 500, "totalElements": size, "totalPages": 1, "number": 0}
    body = json.dumps({"_embedded": {"neuronResources": records}, "page": page})

    def reply(head):
        target = head.split(b" ")[1].decode()
        if target.startswith("/api/"):
            return answer(body.encode())
        return files(unquote(target.rpartition("/")[2]), head)

    return reply


HOSTILE = [
    ("../..", "../../../../evil"),
    ("/etc", "passwd"),
    ("C:\\Windows", "system32\\evil"),
    ("a\0b", "c\nd"),
    ("Case", "Cell"),
    ("case", "cell"),
    ("long", "n" * 300),
    ("long", "n" * 300 + "m"),
    ("con", "NUL"),
    ("trailing. ", "dots..."),
    ("\u202eevil", "\u00e9"),
    ("\u202eevil", "e\u0301"),
    (".ssh", "authorized_keys"),
]


@pytest.mark.parametrize("where", ["_files", "elsewhere"])
async def test_no_name_leaves_the_directory_and_each_has_its_file(tmp_path, where):
    room = tmp_path / "deep/down"
    room.mkdir(parents=True)
    dest = room / "d"
    asked = []

    def file(name, _head):
        asked.append(name)
        return answer(trace(3, name.encode()))

    async with (
        open_wire(service(HOSTILE, file)) as wire,
        asyncfetch.NeuroMorpho(base_url=wire.url) as api,
    ):
        files = room / where if where != "_files" else "_files"
        report = await asyncfetch.download(api.traces.plan(), dest, files=files)
    assert report.items == {"ok": len(HOSTILE)}
    root = dest / "_files" if where == "_files" else files
    there = await look(files_in, root)
    assert sorted(there.values()) == sorted(trace(3, one.encode()) for one in asked)
    assert len({path.casefold() for path in there}) == len(HOSTILE)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "deep"]
    expected = {dest} if where == "_files" else {dest, root}
    assert set(room.iterdir()) == expected
    assert not await look(verify, dest)


@posix
@pytest.mark.parametrize("what", ["the directory", "a folder", "the file", "a wall"])
async def test_what_was_planted_in_the_way_is_not_followed(
    archive, api, tmp_path, what
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    dest = tmp_path / "d"
    await asyncfetch.download(api.traces.plan(limit=0), dest, files="_files")
    path = min(expected_files(archive))
    target = dest / "_files" / path
    if what == "the directory":
        (dest / "_files").symlink_to(outside)
    elif what == "a folder":
        (dest / "_files").mkdir()
        target.parent.parent.symlink_to(outside)
    else:
        target.parent.mkdir(parents=True)
        if what == "the file":
            target.symlink_to(outside / "victim")
        else:
            target.mkdir()
    report = await asyncfetch.download(api.traces.plan(), dest)
    failed = [one for one in report.failed if "neuron=33" not in one.key]
    assert failed
    for one in failed:
        assert one.error_class == "DatasetError"
        assert "move it away, then retry" in one.error
    assert await look(files_in, outside) == {"victim": b"mine"}
    if what == "the directory":
        (dest / "_files").unlink()
    elif what == "a folder":
        target.parent.parent.unlink()
    elif what == "the file":
        target.unlink()
    else:
        target.rmdir()
    await asyncfetch.download(api.traces.plan(), dest)
    assert await look(files_in, dest / "_files") == expected_files(archive)
    assert not await look(verify, dest)


async def test_files_of_somebody_else_are_left_alone(archive, api, tmp_path):
    files = tmp_path / "files"
    first, second, *_ = sorted(expected_files(archive))
    (files / first).parent.mkdir(parents=True)
    (files / first).write_bytes(b"mine")
    (files / second).parent.mkdir(parents=True, exist_ok=True)
    (files / second).write_bytes(expected_files(archive)[second])
    (files / "notes.txt").write_text("mine")
    report = await asyncfetch.download(api.traces.plan(), tmp_path / "d", files=files)
    assert report.items["failed"] == 2  # one is no trace at all
    assert any("got another: move it away" in one.error for one in report.failed)
    assert (files / first).read_bytes() == b"mine"
    assert not await look(verify, tmp_path / "d")
    (files / first).unlink()
    await asyncfetch.download(api.traces.plan(), tmp_path / "d")
    there = await look(files_in, files)
    assert there.pop("notes.txt") == b"mine"
    assert there == expected_files(archive)


@pytest.mark.parametrize("way", ["another disk", "no hard links"])
async def test_files_come_to_disks_of_every_kind(
    archive, api, tmp_path, monkeypatch, way
):
    files = tmp_path / "files"
    rename = os.rename

    def link(source, target):
        if way == "no hard links" or str(target).startswith(str(files)) != str(
            source
        ).startswith(str(files)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        shutil.copyfile(source, target)

    def move(source, target):
        if way == "another disk" and str(target).startswith(str(files)) != str(
            source
        ).startswith(str(files)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "rename", move)
    await asyncfetch.download(api.traces.plan(), tmp_path / "d", files=files)
    assert await look(files_in, files) == expected_files(archive)
    assert not await look(verify, tmp_path / "d")


@pytest.fixture
def meanwhile(monkeypatch):
    """Files that somebody puts below a folder before the run puts its own."""
    content = {}
    publish = Files.publish

    def late(files, results):
        for path, data in content.items():
            place = Path(files.label(path))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        content.clear()
        publish(files, results)

    monkeypatch.setattr(Files, "publish", late)
    return content


async def test_a_file_that_another_download_put_there_meanwhile_is_taken(
    archive, api, tmp_path, meanwhile
):
    """Two selections with files in common may be downloaded into one directory."""
    expected = expected_files(archive)
    meanwhile.update(list(expected.items())[:5])
    files, dest = tmp_path / "files", tmp_path / "d"
    await asyncfetch.download(api.traces.plan(), dest, files=files)
    assert not meanwhile
    assert await look(files_in, files) == expected
    assert not await look(verify, dest)


@pytest.mark.parametrize(
    "change",
    [lambda data: data[::-1], lambda data: data[1:]],
    ids=["other bytes", "fewer bytes"],
)
async def test_another_file_that_came_meanwhile_stays(
    archive, api, tmp_path, meanwhile, change
):
    path, data = next(iter(expected_files(archive).items()))
    meanwhile[path] = change(data)
    with pytest.raises(asyncfetch.DatasetError, match="put there just now"):
        await asyncfetch.download(
            api.traces.plan(), tmp_path / "d", files=tmp_path / "files"
        )
    found = await look((tmp_path / "files" / path).read_bytes)
    assert found == change(data)


async def test_places_are_looked_at_together(api, tmp_path, monkeypatch):
    hops = []
    run_sync = anyio.to_thread.run_sync

    async def counted(call, *arguments, **options):
        hops.append(getattr(call, "__name__", ""))
        return await run_sync(call, *arguments, **options)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    report = await asyncfetch.download(api.traces.plan(), tmp_path / "d", files=OWN)
    assert report.items["ok"] > 40
    # What a server does not have is looked for in other places, each time anew.
    assert hops.count("_look") < 10
    assert hops.count("_reopen") == 0


# --- killed ---------------------------------------------------------------------------


def fetch(dest, url, *options, crash=None):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "asyncfetch", "fetch", "neuromorpho/traces"),
            *("--base-url", url, "-o", dest, "--files", "_files", "--quiet", *options),
        ],
        env={**os.environ, **({"ASYNCFETCH_CRASH": crash} if crash else {})},
        stderr=subprocess.PIPE,
    )


def ended(process):
    error = process.communicate(timeout=60)[1].decode()
    return process.returncode, error


@posix
@pytest.mark.parametrize(
    "point", ["note-durable", "file-linked", "file-renamed:9", "file-durable"]
)
def test_files_in_their_place_are_taken_without_a_request(point, tmp_path):
    dest = tmp_path / "d"
    with testing.serve_in_thread(scale=0.05) as archive:
        status, error = ended(fetch(dest, archive.neuromorpho, crash=point))
        assert status == -signal.SIGKILL, error
        there = files_in(dest / "_files") if (dest / "_files").exists() else {}
        assert not verify(dest), "a note explains what lies there"
        before = len(archive.log)
        status, error = ended(fetch(dest, archive.neuromorpho))
        assert status == 1, error  # one trace has no rows
        asked = {one.target for one in archive.log[before:]}
        assert files_in(dest / "_files") == expected_files(archive)
    items = asyncfetch.open_dataset(dest).items.to_pylist()
    kept = {f"_files/{path}" for path in there}
    adopted = {one["path"] for one in items if one["attempts"] == 0}
    assert adopted == kept
    assert not {one["url"] for one in items if one["path"] in kept} & {
        archive.url + one for one in asked
    }
    assert all(
        one["etag"] and one["http_status"] == 200 for one in items if one["path"]
    )
    assert not verify(dest)
    assert not list((dest / "_asyncfetch/partial").iterdir())


BIG = trace(150_000)  # 3 MB


@posix
@pytest.mark.parametrize("point", [*PARTIAL_POINTS, "note-durable", "file-linked"])
async def test_a_large_file_survives_a_kill_at_every_step(point, tmp_path):
    shelf = Shelf(BIG)
    reply = service([("a", "big")], lambda _name, head: shelf(head))
    dest = tmp_path / "d"
    async with open_wire(reply) as wire:
        status, error = await look(ended, await look(killed, dest, wire.url, point))
        assert status == -signal.SIGKILL, error
        shelf.ranges.clear()
        status, error = await look(ended, await look(killed, dest, wire.url, None))
        assert (status, error) == (0, "")
    if point in {"partial-sealed", "note-durable", "file-linked"}:
        assert shelf.ranges == [], "all of it was there"
    elif point == "partial-noted":
        assert shelf.ranges[0] > MIB
    else:
        assert shelf.ranges == [None]
    assert files_in(dest / "_files") == {"a/CNG version/big.CNG.swc": BIG}
    assert not await look(verify, dest)
    assert not list((dest / "_asyncfetch/partial").iterdir())


def killed(dest, url, point):
    return fetch(dest, url, crash=point)


@posix
async def test_a_run_that_is_killed_amid_a_large_file_goes_on_from_there(tmp_path):
    """SIGKILL while the server is silent in the middle of the body."""
    shelf = Shelf(BIG)
    silent = []

    def reply(_name, head):
        if not silent:
            silent.append(head)
            return answer(BIG[: 2 * MIB], headers='ETag: "v1"\r\n', length=len(BIG))
        return shelf(head)

    dest = tmp_path / "d"
    partial = dest / "_asyncfetch/partial"
    async with open_wire(service([("a", "big")], reply)) as wire:
        process = await look(killed, dest, wire.url, None)
        while not list(partial.glob("*.json")):
            assert await look(process.poll) is None
        process.kill()
        assert (await look(ended, process))[0] == -signal.SIGKILL
        (note,) = partial.glob("*.json")
        synced = json.loads(note.read_text())["synced"]
        status, error = await look(ended, await look(killed, dest, wire.url, None))
        assert (status, error) == (0, "")
    assert shelf.ranges == [synced]
    assert synced > MIB
    assert files_in(dest / "_files") == {"a/CNG version/big.CNG.swc": BIG}


# --- verify ---------------------------------------------------------------------------


@pytest.fixture
async def whole(archive, api, tmp_path):
    dest = tmp_path / "d"
    await asyncfetch.download(api.traces.plan(), dest, files="_files")
    return dest


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, os.unlink])
async def test_a_damaged_file_is_found_and_only_it_is_fetched_again(
    archive, api, whole, damage
):
    path = max(expected_files(archive))
    damage(whole / "_files" / path)
    before = await look(files_in, whole)
    problems = await look(verify, whole)
    assert problems[0].where == f"_files/{path}"
    assert await look(files_in, whole) == before
    assert await look(lambda: verify(whole, repair=True)) == problems
    assert not await look(verify, whole)
    asked = len(files_asked(archive))
    await asyncfetch.download(api.traces.plan(), whole)
    # And what failed, and what is missing, with the two places where else it may be.
    assert len(set(files_asked(archive)[asked:])) == 1 + 2 + 2
    assert await look(files_in, whole / "_files") == expected_files(archive)
    assert not await look(verify, whole)


async def test_a_part_that_is_lost_costs_no_request_for_its_files(archive, api, whole):
    before = pads.dataset(whole).to_table().num_rows
    (part,) = whole.glob("*.parquet")
    cut(part)
    await look(lambda: verify(whole, repair=True))
    asked = len(files_asked(archive))
    report = await asyncfetch.download(api.traces.plan(), whole)
    assert len(set(files_asked(archive)[asked:])) == 2 + 2
    assert report.rows == before
    assert not await look(verify, whole)


async def test_an_items_file_that_is_lost_leaves_files_to_compare(archive, api, whole):
    (items,) = (whole / "_asyncfetch/items").iterdir()
    items.write_bytes(b"")
    codes = {one.code for one in await look(verify, whole)}
    assert "stray-file" in codes
    await look(lambda: verify(whole, repair=True))
    await asyncfetch.download(api.traces.plan(), whole)
    assert await look(files_in, whole / "_files") == expected_files(archive)
    assert not await look(verify, whole)


async def test_a_stray_file_is_told_and_left(whole):
    stray = whole / "_files/mine/notes.txt"
    stray.parent.mkdir()
    stray.write_text("mine")
    (problem,) = await look(lambda: verify(whole, repair=True))
    assert (problem.code, problem.where) == ("stray-file", "_files/mine/notes.txt")
    assert stray.read_text() == "mine"


@posix
async def test_a_repair_follows_no_link_and_no_path_to_elsewhere(
    archive, api, whole, tmp_path
):
    (tmp_path / "victim").write_text("mine")
    path = whole / "_files" / min(expected_files(archive))
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    (items,) = (whole / "_asyncfetch/items").iterdir()
    table = pq.read_table(items)
    place = table.column_names.index("path")
    paths = table.column("path").to_pylist()
    paths[-1] = "_files/../../victim"
    changed = table.set_column(place, "path", pa.array(paths))
    kept = pq.read_metadata(items).metadata
    kept = {name: kept[name] for name in kept if name.startswith(b"asyncfetch.")}
    changed = changed.replace_schema_metadata({**kept, b"asyncfetch.seal": b"0" * 8})
    pq.write_table(changed, items)
    await look(seal, items)  # by somebody who knows how
    problems = await look(lambda: verify(whole, repair=True))
    assert any("not safe" in one.text for one in problems)
    assert any("got a link" in one.text for one in problems)
    assert (tmp_path / "victim").read_text() == "mine"


def test_the_command_line_keeps_files_and_shows_them(tmp_path, capsys):
    with testing.serve_in_thread(scale=0.05) as archive:
        url = ("--base-url", archive.neuromorpho)
        dest, files = str(tmp_path / "d"), str(tmp_path / "files")
        words = ("fetch", "neuromorpho/traces", "-o", dest, *url)
        assert run([*words, "--files", files, "--limit", "9", "--quiet"]) == 0
        assert run([*words, "--quiet"]) == 1  # one trace has no rows
        assert run(["status", dest]) == 0
        count = len(expected_files(archive))
        assert f"files: {count}, " in capsys.readouterr().out
        assert run(["verify", dest]) == 0
        assert f"and {count} files agree" in capsys.readouterr().out
        assert run([*words, "--files", "_files", "--quiet"]) == 2
        assert "as it was begun" in capsys.readouterr().err
        assert files_in(tmp_path / "files") == expected_files(archive)

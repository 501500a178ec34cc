"""Stored files in buckets: as in a directory, by puts of whole objects."""

import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

import asyncfetch
from asyncfetch import _objects, testing
from asyncfetch._cli import run
from asyncfetch._dataset import View, Writer
from asyncfetch._depot import _Directory, _Objects
from asyncfetch._ledger import store_at
from asyncfetch._verify import verify
from asyncfetch._verify_files import FilesAudit
from tests import _datasets as made_up
from tests import test_files as local
from tests._buckets import content, files_in, objects, put
from tests.conftest import Impatient, answer, look, open_wire
from tests.test_files import BIG, HOSTILE, expected_files, files_asked, trace
from tests.test_objects import RECORD, hurried
from tests.test_partial import Shelf

pytest.importorskip("obstore")
pytest.importorskip("moto")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there"),
    pytest.mark.usefixtures("environment"),
]


@pytest.fixture
async def api(archive):
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        api.exchange._rng = api.exchange.gate._rng = Impatient()
        yield api


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr("asyncfetch._absence.PATIENCE", 0.1)


def items_of(dest):
    columns = ["key", "outcome", "rows", "bytes", "sha256", "etag", "path"]
    return View(dest).items.select(columns).sort_by("key").to_pylist()


def a_file(dest, path):
    return b"".join(View(dest).file(path))


async def test_files_come_out_as_in_a_directory(archive, api, dest, tmp_path):
    plan = api.traces.plan()
    await asyncfetch.download(plan, tmp_path / "d", files="_files")
    report = await asyncfetch.download(plan, dest, files="_files")

    files = expected_files(archive)
    assert await look(files_in, dest) == files
    assert await look(items_of, dest) == await look(items_of, tmp_path / "d")
    assert not await look(verify, dest)
    state = await look(lambda: View(dest).state())
    assert (state.files, state.file_bytes) == (
        len(files),
        sum(map(len, files.values())),
    )
    assert not [one for one in await look(objects, dest) if "/partial/" in one]
    for place in (dest, tmp_path / "d"):
        for path, data in list(files.items())[:3]:
            assert await look(a_file, place, path) == data
            assert await look(a_file, place, f"_files/{path}") == data
        with pytest.raises(LookupError, match="the path of a stored file"):
            await look(a_file, place, "../plan.json")
        with pytest.raises(FileNotFoundError):
            await look(a_file, place, "none.swc")
    again = await asyncfetch.download(plan, dest)
    assert again.items == report.items
    assert again.requests <= 2 + 2  # what failed and what is missing, in each place


async def test_a_directory_of_the_users_goes_with_a_bucket(
    archive, api, dest, tmp_path
):
    files = tmp_path / "files"
    await asyncfetch.download(api.traces.plan(limit=5), dest, files=files)
    await asyncfetch.download(api.traces.plan(), dest)
    assert await look(local.files_in, files) == expected_files(archive)
    assert await look(files_in, dest) == {}
    assert not await look(verify, dest)
    path = min(expected_files(archive))
    assert await look(a_file, dest, path) == expected_files(archive)[path]


async def test_names_from_the_network_are_names_there(dest):
    names = [*HOSTILE, ("a#b?c", "100% [x] {y} ~z'*"), ("日本", "é")]

    def reply(name, _head):
        return answer(trace(3, name.encode()))

    async with (
        open_wire(local.service(names, reply)) as wire,
        asyncfetch.NeuroMorpho(base_url=wire.url) as api,
    ):
        report = await asyncfetch.download(api.traces.plan(), dest, files="_files")
    assert report.items == {"ok": len(names)}
    paths = {one["path"] for one in await look(items_of, dest)}
    assert {f"_files/{one}" for one in await look(files_in, dest)} == paths
    assert not await look(verify, dest)


# --- what lies in the way -------------------------------------------------------------


async def test_what_others_put_there_is_compared_and_left(archive, api, dest):
    files = expected_files(archive)
    first, second, *_ = sorted(files)
    await look(put, dest, f"_files/{first}", b"mine")
    await look(put, dest, f"_files/{second}", files[second])
    report = await asyncfetch.download(api.traces.plan(), dest, files="_files")
    told = [one.error for one in report.failed if "got another" in one.error]
    assert len(told) == 1
    assert f"{dest}/_files/{first}" in told[0]
    assert await look(content, dest, f"_files/{first}") == b"mine"
    store = await look(store_at, dest)
    await look(store.remove, f"_files/{first}")
    await asyncfetch.download(api.traces.plan(), dest)
    assert await look(files_in, dest) == files
    assert not await look(verify, dest)


@pytest.mark.parametrize("is_alike", [True, False])
async def test_a_file_that_came_meanwhile(archive, api, dest, monkeypatch, is_alike):
    """As a run that was only asleep may still put one, or another program."""
    path, data = next(iter(expected_files(archive).items()))
    there = data if is_alike else data[::-1]
    real = _Objects.put

    def late(depot, files):
        put(dest, f"_files/{path}", there)
        monkeypatch.setattr(_Objects, "put", real)
        real(depot, files)

    monkeypatch.setattr(_Objects, "put", late)
    if is_alike:
        await asyncfetch.download(api.traces.plan(), dest, files="_files")
        assert not await look(verify, dest)
    else:
        with pytest.raises(asyncfetch.DatasetError, match="put there just now"):
            await asyncfetch.download(api.traces.plan(), dest, files="_files")
    assert await look(content, dest, f"_files/{path}") == there


@pytest.mark.parametrize("where", ["in the bucket", "in a directory"])
def test_writer_that_slept_puts_no_more_files(dest, tmp_path, monkeypatch, where):
    monkeypatch.setattr("asyncfetch._bucket.BEAT", 0.0)
    is_here = where == "in a directory"
    kind = _Directory if is_here else _Objects
    record = replace(RECORD, files=str(tmp_path)) if is_here else RECORD
    sleeper = Writer.open(dest, record, made_up.SCHEMA)
    for planned in made_up.enumerate_rest(sleeper):
        sleeper.add(made_up.result_of(planned))
    taker = []
    real = kind.put

    def asleep(depot, files):
        if not taker:  # its note is there, and nothing else
            taker.append(hurried(dest, record))
        real(depot, files)

    monkeypatch.setattr(kind, "put", asleep)
    with pytest.raises(asyncfetch.DatasetError, match="another run took over"):
        sleeper.seal()
    sleeper.close()
    assert files_in(dest) == local.files_in(tmp_path) == {}
    made_up.fetch(taker[0])
    taker[0].close()
    assert verify(dest) == []


def test_a_repair_that_slept_removes_nothing_in_a_directory(
    dest, tmp_path, monkeypatch
):
    """What is another's goes by a look at the fence in the bucket."""
    files = str(tmp_path / "files")
    made_up.download(dest, files=files)
    broken = tmp_path / "files/some/3.txt"
    data = broken.read_bytes()
    broken.write_bytes(data[::-1])
    remove = _Directory._remove

    def late(depot, path):
        hurried(dest, replace(RECORD, files=files)).close()
        broken.write_bytes(data)  # as the other one got it
        remove(depot, path)

    monkeypatch.setattr(_Directory, "_remove", late)
    with pytest.raises(asyncfetch.DatasetError, match="another run took over"):
        verify(dest, repair=True)
    assert broken.read_bytes() == data


def test_a_repair_removes_what_it_saw_and_nothing_else(dest, monkeypatch):
    made_up.download(dest, files="_files")
    data = content(dest, "_files/some/3.txt")
    put(dest, "_files/some/3.txt", data[::-1])
    repair = FilesAudit.repair

    def late(audit, untrusted):
        put(dest, "_files/some/3.txt", data)
        repair(audit, untrusted)

    monkeypatch.setattr(FilesAudit, "repair", late)
    assert verify(dest, repair=True)
    assert content(dest, "_files/some/3.txt") == data


async def test_no_room_for_what_is_compared_is_said_in_a_line(dest):
    """What lies there already, by nobody knows whom, is read on this machine."""
    path = "a/CNG version/big.CNG.swc"
    await look(put, dest, f"_files/{path}", BIG)

    def fetch(url):
        words = ["fetch", "neuromorpho/traces", "--base-url", url]
        words += ["-o", dest, "--files", "_files", "--quiet"]
        limited = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "bash"]
        return subprocess.run(
            [*limited, sys.executable, "-m", "asyncfetch", *words],
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )

    reply = local.service([("a", "big")], lambda _name, _head: answer(BIG))
    async with open_wire(reply) as wire:
        ended = await look(fetch, wire.url)
    said = ended.stderr.decode()
    assert ended.returncode == 3, said
    assert "expected to keep the bytes of a file, got File too large" in said
    assert said.count("\n") == 1


# --- killed ---------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["note-durable", "file-renamed:9", "file-durable"])
def test_files_in_their_place_are_taken_without_a_request(point, dest):
    with testing.serve_in_thread(scale=0.05) as archive:
        status, error = local.ended(local.fetch(dest, archive.neuromorpho, crash=point))
        assert status == -signal.SIGKILL, error
        there = files_in(dest)
        assert bool(there) == (point != "note-durable")
        assert not verify(dest), "a note explains what lies there"
        before = len(archive.log)
        status, error = local.ended(local.fetch(dest, archive.neuromorpho))
        assert status == 1, error  # one trace has no rows
        asked = {archive.url + one.target for one in archive.log[before:]}
        assert files_in(dest) == expected_files(archive)
    items = View(dest).items.to_pylist()
    kept = {f"_files/{path}" for path in there}
    found = {one["path"] for one in items if one["attempts"] == 0}
    assert kept <= found, "the service may have got more before its client died"
    assert not {one["url"] for one in items if one["path"] in found} & asked
    assert all(one["etag"] for one in items if one["path"])
    assert not verify(dest)
    assert not [one for one in objects(dest) if "/partial/" in one]


@pytest.mark.parametrize("point", ["partial-noted", "note-durable", "file-durable"])
async def test_a_large_file_comes_whole_whenever_its_run_is_killed(point, dest):
    shelf = Shelf(BIG)
    reply = local.service([("a", "big")], lambda _name, head: shelf(head))
    async with open_wire(reply) as wire:
        process = await look(local.killed, dest, wire.url, point)
        status, error = await look(local.ended, process)
        assert status == -signal.SIGKILL, error
        shelf.ranges.clear()
        process = await look(local.killed, dest, wire.url, None)
        assert await look(local.ended, process) == (0, "")
    # What was on its way was on this machine, and went with its run.
    assert shelf.ranges == ([] if point == "file-durable" else [None])
    assert await look(files_in, dest) == {"a/CNG version/big.CNG.swc": BIG}
    assert not await look(verify, dest)


@pytest.mark.parametrize("says_length", [True, False])
async def test_a_file_that_is_too_large_for_one_request_fails_alone(
    dest, monkeypatch, says_length
):
    big = trace(60_000)  # 1.2 MB
    monkeypatch.setattr(_Objects, "most", len(big) - 10)
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def reply(name, _head):
        if not name.startswith("big"):
            return answer(trace(3))
        if says_length:
            return answer(length=len(big), headers='ETag: "a"\r\n')
        return start + b"%x\r\n%s\r\n0\r\n\r\n" % (len(big), big)

    async with (
        open_wire(local.service([("a", "big"), ("a", "small")], reply)) as wire,
        asyncfetch.NeuroMorpho(base_url=wire.url) as api,
    ):
        report = await asyncfetch.download(api.traces.plan(), dest, files="_files")
    assert report.items == {"ok": 1, "failed": 1}
    assert "takes in one request, got" in report.failed[0].error
    assert "fetch it into a directory" in report.failed[0].error
    assert [*await look(files_in, dest)] == ["a/CNG version/small.CNG.swc"]


async def test_no_more_than_some_bytes_wait_for_their_puts(dest, monkeypatch):
    """Large files lie in TMPDIR until then."""
    names = [("a", f"big-{number}") for number in range(8)]
    monkeypatch.setattr("asyncfetch._dataset.GROUP_ROWS", 1 << 40)
    monkeypatch.setattr("asyncfetch._dataset.GROUP_FILES", 2 * len(BIG))
    at_once = []
    real = _Objects.put

    def put_(depot, files):
        at_once.append(len(files))
        real(depot, files)

    monkeypatch.setattr(_Objects, "put", put_)
    async with (
        open_wire(local.service(names, lambda *_: answer(BIG))) as wire,
        asyncfetch.NeuroMorpho(base_url=wire.url) as api,
    ):
        report = await asyncfetch.download(api.traces.plan(), dest, files="_files")
    assert report.items == {"ok": 8}
    assert sum(at_once) == 8
    assert max(at_once) == 2
    assert len(await look(files_in, dest)) == 8


# --- proved ---------------------------------------------------------------------------


@pytest.fixture
async def whole(archive, api, dest):
    await asyncfetch.download(api.traces.plan(), dest, files="_files")
    return dest


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
async def test_a_damaged_file_is_found_and_only_it_is_fetched_again(
    archive, api, whole, damage
):
    path = max(expected_files(archive))
    data = expected_files(archive)[path]
    if damage == "gone":
        store = await look(store_at, whole)
        await look(store.remove, f"_files/{path}")
    else:
        other = data[:-1] if damage == "cut" else data[:-1] + b"#"
        await look(put, whole, f"_files/{path}", other)
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
    assert await look(files_in, whole) == expected_files(archive)
    assert not await look(verify, whole)


async def test_files_are_proved_piece_by_piece(whole, monkeypatch):
    """So that it takes little memory, however large they are."""
    import obstore

    most = 1000
    monkeypatch.setattr("asyncfetch._bucket.PIECE", most)
    read, read_range, ranges = obstore.get, obstore.get_range, []

    def get_range(store, name, *, start, length):
        if name.startswith("_files/"):
            ranges.append(length)
        return read_range(store, name, start=start, length=length)

    def get(store, name):
        assert not name.startswith("_files/")
        return read(store, name)

    monkeypatch.setattr(obstore, "get", get)
    monkeypatch.setattr(obstore, "get_range", get_range)
    assert not await look(verify, whole)
    assert max(ranges) == most
    assert sum(ranges) == sum(map(len, (await look(files_in, whole)).values()))


async def test_an_items_file_that_is_lost_leaves_files_to_compare(archive, api, whole):
    names = await look(objects, whole)
    (items,) = [one for one in names if "/items/" in one]
    await look(put, whole, items, b"")
    await look(put, whole, "_files/mine/notes.txt", b"mine")
    codes = {one.code for one in await look(verify, whole)}
    assert "stray-file" in codes
    await look(lambda: verify(whole, repair=True))
    await asyncfetch.download(api.traces.plan(), whole)
    there = await look(files_in, whole)
    assert there.pop("mine/notes.txt") == b"mine"
    assert there == expected_files(archive)
    (problem,) = await look(verify, whole)
    assert (problem.code, problem.where) == ("stray-file", "_files/mine/notes.txt")


@pytest.mark.parametrize("which", ["_files/", ".parquet", "/items/", "/plan/0"])
async def test_what_cannot_be_read_for_a_while_is_not_damaged(
    whole, road, monkeypatch, which
):
    """A repair would remove it."""
    monkeypatch.setattr(_objects, "PATIENCE", timedelta(seconds=0.5))
    before = await look(objects, whole)
    real = road._serve

    def serve(client):
        head = client.recv(65536, 2)  # peeked at
        is_it = head.startswith(b"GET") and which.encode() in head.split(b" ")[1]
        road.state = "503" if is_it else "open"
        real(client)

    monkeypatch.setattr(road, "_serve", serve)
    with pytest.raises(asyncfetch.DatasetError, match="expected an answer for"):
        await look(lambda: verify(whole, repair=True))
    left = {*before} - {*await look(objects, whole)}
    assert not {one for one in left if "fence" not in one}


# --- from the command line ------------------------------------------------------------


def test_a_mirror_in_a_bucket_can_be_cited(dest, capsys):
    words = ["mirror", "neuromorpho", "archive=Siegert", "-o", dest, "--quiet"]
    with testing.serve_in_thread() as archive:
        assert run([*words, "--base-url", archive.neuromorpho]) == 0
        names = [path for path in expected_files(archive) if "iegert" in path]
        asked = len(archive.log)
        assert run([*words, "--base-url", archive.neuromorpho]) == 0
        assert len(archive.log) == asked
    assert sorted(files_in(f"{dest}/traces")) == sorted(names)
    assert "https://doi.org" in content(dest, "CITATION.md").decode()
    capsys.readouterr()
    assert run(["cite", dest, "--format", "bibtex"]) == 0
    assert "@article" in capsys.readouterr().out
    assert run(["verify", f"{dest}/traces"]) == 0
    assert f"and {len(names)} files agree" in capsys.readouterr().out
    assert run(["status", dest]) == 3
    assert "datasets in it: neurons, traces" in capsys.readouterr().err


def test_images_are_taken_from_an_earlier_dataset_in_a_bucket(dest, capsys):
    with testing.serve_in_thread(scale=0.05) as archive:
        url = ["--base-url", f"{archive.url}/neurovault/api", "--quiet"]
        words = ["fetch", "neurovault/files", "map_type=T map", *url, "-o"]
        run([*words, f"{dest}/first"])
        there = files_in(f"{dest}/first")
        before = len(archive.log)
        run([*words, f"{dest}/second", f"earlier={dest}/first"])
        media = [one for one in archive.log[before:] if "/media/" in one.target]
    assert there
    assert files_in(f"{dest}/second") == there
    taken = [one for one in View(f"{dest}/second").items.to_pylist() if one["path"]]
    assert len(taken) == len(there)
    assert all(one["attempts"] == 0 for one in taken)
    assert len(media) < len(there)

"""Datasets on object stores keep what those in directories promise."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import asyncfetch
from asyncfetch import ObjectStore, _bucket, _cli, _depot, _files, _objects, testing
from asyncfetch._bucket import OBJECT_POINTS
from asyncfetch._compact import compact
from asyncfetch._dataset import View, Writer
from asyncfetch._ledger import PlanRecord, store_at
from asyncfetch._objects import create_bucket
from asyncfetch._store import COMPACTION_POINTS, CRASH_POINTS
from asyncfetch._verify import verify
from asyncfetch.errors import ConfigurationError, DatasetError

from . import _datasets as made_up
from . import _gcs, _s3
from ._buckets import BUCKET, client, content, files_in, objects, put
from .test_crash import Stepped, die_at, final_keys, reach

obstore = pytest.importorskip("obstore")
pytest.importorskip("moto")

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there"),
    pytest.mark.usefixtures("environment"),
]

RECORD = replace(made_up.RECORD, files="_files")
download = functools.partial(made_up.download, files="_files")


def bare_rows(dest: str) -> list[tuple[int, str]]:
    """Rows of all parts that are there, as a reader sees them who knows of nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[tuple[int, str]] = []
    for name in objects(dest):
        if "/" not in name:
            part = pa.BufferReader(content(dest, name))
            table = pq.read_table(part, columns=["id", "key"])
            rows += zip(*table.to_pydict().values(), strict=True)
    return sorted(rows)


def copied(source: str, target: str, *, but: str = "/lock") -> str:
    """Another dataset with what the first one holds, but for its lease."""
    s3 = client()
    start, there = (one.removeprefix(f"s3://{BUCKET}/") for one in (source, target))
    for name in objects(source):
        if not name.endswith("/lock") and but not in name:
            s3.copy_object(
                Bucket=BUCKET,
                Key=f"{there}/{name}",
                CopySource={"Bucket": BUCKET, "Key": f"{start}/{name}"},
            )
    return target


def assert_whole(dest: str) -> None:
    """The dataset is what one undisturbed run makes of the service."""
    expected = made_up.expected_rows(made_up.KEYS)
    view = View(dest)
    rows = view.rows.to_table(columns=["id", "key"]).to_pydict().values()
    assert sorted(zip(*rows, strict=True)) == expected
    assert bare_rows(dest) == expected
    assert files_in(dest) == {
        f"some/{key}.txt": made_up.content_of(key)
        for key in made_up.KEYS - made_up.MISSING
    }
    assert not [one for one in objects(dest) if "/partial/" in one]
    keys = [row["key"] for row in view.items.to_pylist()]
    assert sorted(keys) == sorted(made_up.KEYS)
    assert verify(dest) == []
    uploads = client().list_multipart_uploads(Bucket=BUCKET)
    assert "Uploads" not in uploads, "nobody is to pay for halves of uploads"


def hurried(dest: str, record: PlanRecord = RECORD) -> Writer:
    """A writer for which the time passes quickly that another's counter stands."""
    clock = itertools.count(0, 30)
    return Writer.open(
        dest,
        record,
        made_up.SCHEMA,
        clock=lambda: float(next(clock)),
        sleep=lambda _: None,
    )


# --- the whole way --------------------------------------------------------------------


def test_a_dataset_comes_out_as_in_a_directory(dest: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    asked = download(local)

    assert download(dest) == asked
    assert_whole(dest)
    assert download(dest) == []
    columns = ["key", "outcome", "rows", "first_row", "bytes", "detail"]
    here, there = (View(one).items.select(columns) for one in (local, dest))
    assert here.sort_by("key").equals(there.sort_by("key"))
    assert View(dest).state().parts == View(local).state().parts > 1

    assert compact(dest).parts == 1
    assert_whole(dest)
    assert compact(dest).merged == 0
    assert download(dest) == []
    source = View(dest).source_of(View(dest).items["part"].drop_null()[0].as_py(), 0)
    assert source["first_row"] == 0


async def test_a_download_and_its_view(dest: str, archive: testing.Archive) -> None:
    url = archive.environment()["ASYNCFETCH_NEUROMORPHO_URL"]
    async with asyncfetch.NeuroMorpho(base_url=url) as api:
        plan = api.table("neurons").plan(limit=2)
        report = await asyncfetch.download(plan, dest)
        again = await asyncfetch.download(plan, ObjectStore(dest))
    assert report.rows == again.rows > 0
    assert again.requests == 0


def test_the_command_line_looks_after_a_dataset(
    dest: str,
    service: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    download(dest)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # the option wins
    there = [dest, "--endpoint-url", service]

    assert _cli.run(["status", *there, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == {"ok": 13, "missing": 1}
    assert _cli.run(["verify", *there]) == 0
    assert f"{dest}: " in capsys.readouterr().out
    assert _cli.run(["compact", *there]) == 0
    assert "in 1 parts" in capsys.readouterr().out
    assert _cli.run(["verify", *there, "--repair"]) == 0
    new = ["bucket", "create", "s3://another-bucket", "--endpoint-url", service]
    assert _cli.run(new) == 0
    assert _cli.run(new) == 0, "as often as one likes"
    assert _cli.run(["bucket", "create", "s3://No"]) == 2
    assert _cli.run(["status", "somewhere", "--endpoint-url", service]) == 2


def test_repair_makes_what_is_lost_be_asked_again(dest: str) -> None:
    download(dest)
    part = next(name for name in objects(dest) if name.endswith(".parquet"))
    body = content(dest, part)
    put(dest, part, body[:-200] + bytes([body[-200] ^ 1]) + body[-199:])

    for repair in (False, True):
        assert "part" in [one.code for one in verify(dest, repair=repair)]
    assert verify(dest) == []
    assert download(dest)
    assert_whole(dest)


# --- killed ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun() -> str:
    """A dataset whose writer died in its second commit, between the two puts."""
    dest = f"s3://{BUCKET}/begun"
    die_at("items-durable:2", dest)
    assert len(final_keys(dest)) == 3
    return dest


# Before each put and behind it, and behind the look that follows where the put may be
# the commit; none between which nothing happens there.
WHAT = ("block", "follow", "note", "file", "items", "part", "run")
PUTS = (
    *("open-announced", "takeover-dropped", "plan-renamed", "close-emptied"),
    *(f"{what}-staged" for what in WHAT),
    *(f"{what}-renamed" for what in WHAT),
    "part-durable",
)
COMPACTION_PUTS = (
    *("merged-items-renamed", "merged-part-staged", "merged-part-renamed"),
    *("replaced-part-removed", "replaced-items-removed"),
)


def test_points_are_those_that_there_are() -> None:
    assert {*PUTS} < {*CRASH_POINTS}
    assert {*COMPACTION_PUTS} < {*COMPACTION_POINTS}


@pytest.mark.parametrize("point", [*PUTS, *OBJECT_POINTS])
def test_run_killed_at_a_point_is_finished_by_the_next(
    point: str, begun: str, dest: str
) -> None:
    if not point.startswith("plan-"):  # the plan is written only once
        copied(begun, dest)
    die_at(point, dest)
    there = final_keys(dest) if "_asyncfetch/plan.json" in objects(dest) else set()

    asked = download(dest)  # at once: its holder is known to be dead

    assert not there & set(asked)
    assert_whole(dest)
    left = Path(tempfile.gettempdir()).glob(store_at(dest)._prefix + "*")
    assert not [one for one in left if _bucket._is_free(one)]


@pytest.mark.parametrize("point", COMPACTION_PUTS)
def test_compaction_killed_at_a_point_changes_nothing(
    point: str, finished: str, dest: str
) -> None:
    copied(finished, dest)
    die_at(point, dest, "compact")

    assert made_up.all_rows(dest) == made_up.expected_rows(made_up.KEYS)
    assert download(dest) == []
    compact(dest)
    assert_whole(dest)


@pytest.fixture(scope="module")
def finished() -> str:
    dest = f"s3://{BUCKET}/finished"
    download(dest)
    return dest


# --- two writers ----------------------------------------------------------------------


def test_second_writer_is_refused_while_the_counter_of_the_first_moves(
    dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bucket, "BEAT", 0.0)
    first = Writer.open(dest, RECORD, made_up.SCHEMA)
    with pytest.raises(DatasetError, match=f"at work in {dest} .*{first.run}"):
        Writer.open(dest, RECORD, made_up.SCHEMA, sleep=lambda _: first.heartbeat())
    made_up.fetch(first)
    first.close()
    assert_whole(dest)


POINTS = (
    *("note-staged", "note-renamed", "file-staged", "file-durable"),
    *("items-staged", "items-renamed", "part-staged", "part-renamed"),
)


@pytest.mark.parametrize("pause", ["fence-claimed", "end"])
@pytest.mark.parametrize("point", POINTS)
def test_writer_that_slept_in_its_commit_adds_nothing_after_a_takeover(
    point: str, pause: str, begun: str, dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(begun, dest)
    for module in (_bucket, _depot, _files):
        monkeypatch.setattr(module, "crash_point", reach)
    sleeper = Writer.open(dest, None, made_up.SCHEMA)
    for planned in made_up.flat(sleeper.pending())[:2]:
        sleeper.add(made_up.result_of(planned))
    taker: list[Writer] = []

    def take_over() -> None:
        taker.append(hurried(dest))
        made_up.fetch(taker[0])
        taker[0].close()

    asleep = Stepped(sleeper.seal, frozenset({point}))
    awake = Stepped(take_over, frozenset({pause}))
    asleep.start()
    awake.start()
    asleep.step()  # up to the point
    awake.step()  # up to the pause
    asleep.step()  # to its end
    if not awake.ended:
        awake.step()
    assert asleep.ended
    assert awake.ended
    assert awake.error is None
    assert isinstance(asleep.error, DatasetError)
    assert "another run took over" in str(asleep.error)
    sleeper.close()
    assert_whole(dest)


def test_what_a_writer_committed_before_a_takeover_stands(
    begun: str, dest: str
) -> None:
    copied(begun, dest)
    sleeper = Writer.open(dest, None, made_up.SCHEMA)
    planned = made_up.flat(sleeper.pending())[:2]
    for one in planned:
        sleeper.add(made_up.result_of(one))
    sleeper.seal()
    writer = hurried(dest)
    asked = made_up.fetch(writer)
    writer.close()
    assert not {*made_up.keys_of(planned)} & {*asked}
    sleeper.close()  # does not take the lease of another
    assert_whole(dest)


def test_what_killed_processes_left_on_this_machine_goes(dest: str) -> None:
    """Also of those that held no lease, and not what a living one has."""
    reader = store_at(dest)
    living = reader.root
    there = [Path(tempfile.mkdtemp(prefix=reader._prefix)) for _ in range(3)]
    for one in there[:2]:
        (one / "alive").touch()
        (one / "begun").write_bytes(b"half of a file")
    download(dest)
    assert [one.exists() for one in there] == [False, False, True]  # being made
    assert living.exists()


def test_two_that_begin_at_once_do_not_both_go_on(
    dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bucket, "crash_point", reach)
    monkeypatch.setattr(_bucket._Lease, "_free", lambda _: "overwrite")
    ends: list[BaseException | None] = []
    threads = [
        Stepped(lambda: download(dest), frozenset({"fence-claimed"})) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        thread.step()
    for thread in threads:
        while not thread.ended:
            thread.step()
        ends.append(thread.error)
    assert sum(one is None for one in ends) == 1, ends
    assert all(one is None or isinstance(one, DatasetError) for one in ends)
    assert_whole(dest)


def test_part_that_came_late_is_seen_by_nobody_and_goes(dest: str) -> None:
    download(dest)
    names = [one for one in objects(dest) if "-00000." in one]
    for name in names:
        body = content(dest, name)
        late = name.replace("-00000.", "-00077.")
        download(dest)  # a new run: what is older ends here
        put(dest, late, body)
        assert late.rpartition("/")[2] not in store_at(dest).names(
            late.rpartition("/")[0]
        )
    assert made_up.all_rows(dest) == made_up.expected_rows(made_up.KEYS)
    assert verify(dest) == []
    download(dest)
    assert_whole(dest)


def test_dataset_that_went_on_elsewhere_can_be_copied_over(
    begun: str, finished: str, dest: str
) -> None:
    copied(begun, dest)
    download(dest)
    for name in objects(dest):
        if "fence" not in name:
            store_at(dest).remove(name)
    copied(finished, dest, but="/fence/")
    assert_whole(dest)
    assert download(dest) == []
    assert_whole(dest)


def test_put_that_was_sent_twice_is_our_own(dest: str) -> None:
    writer = Writer.open(dest, RECORD, made_up.SCHEMA)
    staging = writer._staging
    for name, there, is_fine in (("a", b"x", True), ("b", b"y", False)):
        staging.path("staged").write_bytes(b"x")
        store_at(dest).put(f"_asyncfetch/runs/{name}.json", there)
        if is_fine:
            staging.publish("staged", f"_asyncfetch/runs/{name}.json", "run")
        else:
            with pytest.raises(DatasetError, match="expected no object"):
                staging.publish("staged", f"_asyncfetch/runs/{name}.json", "run")
    writer.close()


def test_folders_that_others_marked_are_none_of_the_files(dest: str) -> None:
    """Consoles and file systems put an empty object where a folder is to be seen."""
    for name in ("", "_files/", "_files/some/", "_asyncfetch/", "_asyncfetch/items/"):
        put(dest, name, b"")
    download(dest)
    assert verify(dest) == []
    assert download(dest) == []
    put(dest, "_files/some/empty", b"")
    assert [one.where for one in verify(dest)] == ["_files/some/empty"]


def test_an_object_whose_name_no_file_can_have_is_named(dest: str) -> None:
    made_up.download(dest)
    put(dest, "_asyncfetch/items//x", b"mine")
    with pytest.raises(DatasetError, match=r"plain names.*items//.*remove that object"):
        verify(dest)


def test_what_a_put_failed_with_is_said_while_its_bytes_are_still_held(
    dest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[memoryview] = []

    def refused(_: object, name: str, data: Any, **__: object) -> None:
        held.append(memoryview(data))
        raise obstore.exceptions.AlreadyExistsError(name)

    monkeypatch.setattr(obstore, "put", refused)
    (tmp_path / "file").write_bytes(b"some bytes")
    store: Any = store_at(dest)
    with pytest.raises(FileExistsError):
        store.put_content("name", tmp_path / "file")
    assert bytes(held[0]) == b"some bytes"


# --- trouble --------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["closed", "reset", "503"])
def test_outage_in_the_middle_is_waited_for(
    state: str, dest: str, road: _s3.Road
) -> None:
    writer = Writer.open(dest, RECORD, made_up.SCHEMA)
    for planned in made_up.enumerate_rest(writer):
        writer.add(made_up.result_of(planned))
    road.state, road.reopen_after = state, 4
    writer.seal()
    assert road.refused == 4
    made_up.fetch(writer)
    writer.close()
    assert_whole(dest)


def test_outage_that_lasts_ends_the_run_and_not_the_dataset(
    dest: str, road: _s3.Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_objects, "PATIENCE", timedelta(seconds=0.5))
    writer = Writer.open(dest, RECORD, made_up.SCHEMA)
    planned = list(made_up.enumerate_rest(writer))
    for one in planned[:2]:
        writer.add(made_up.result_of(one))
    writer.seal()
    writer.add(made_up.result_of(planned[2]))
    road.state = "closed"
    with pytest.raises(DatasetError, match="a resume goes on") as told:
        writer.seal()
    assert "\n" not in str(told.value)
    writer.close()
    road.state = "open"

    # At once: what could not be given back then is known to be nobody's.
    writer = Writer.open(dest, RECORD, made_up.SCHEMA, sleep=pytest.fail)
    asked = made_up.fetch(writer)
    writer.close()
    assert not {*made_up.keys_of(planned[:2])} & {*asked}
    assert_whole(dest)
    assert not [*Path(tempfile.gettempdir()).glob(f"{store_at(dest)._prefix}*")]


def test_bucket_that_disappears_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = ObjectStore("s3://short-lived")
    create_bucket(place)
    writer = Writer.open("s3://short-lived/a", RECORD, made_up.SCHEMA)
    for planned in made_up.enumerate_rest(writer):
        writer.add(made_up.result_of(planned))
    s3 = client()
    for one in s3.list_objects_v2(Bucket="short-lived")["Contents"]:
        s3.delete_object(Bucket="short-lived", Key=one["Key"])
    s3.delete_bucket(Bucket="short-lived")
    with pytest.raises(DatasetError, match="expected a bucket"):
        writer.seal()
    writer.close()
    assert _cli.run(["status", "s3://short-lived/a"]) == 3
    assert "asyncfetch bucket create s3://short-lived" in capsys.readouterr().err


def test_wrong_credentials_are_said_in_a_line_without_them(
    dest: str,
    service: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
    _s3.let_in(service, "0")
    try:
        for command in (["status", dest], ["verify", dest], ["compact", dest]):
            assert _cli.run(command) == 3
            said = capsys.readouterr()
            assert said.err.count("\n") == 1
            assert f"expected access to {dest}, got InvalidAccessKeyId" in said.err
            assert "never-shown" not in said.err + said.out
        assert _cli.run(["bucket", "create", "s3://one-more"]) == 3
        assert "never-shown" not in capsys.readouterr().err
    finally:
        _s3.let_in(service, "inf")


def test_dataset_that_may_only_be_read_can_be_verified(
    dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(dest)

    def refuse(*_: object, **__: object) -> None:
        raise obstore.exceptions.PermissionDeniedError("<Code>AccessDenied</Code>")

    monkeypatch.setattr(obstore, "put", refuse)
    assert verify(dest) == []
    with pytest.raises(DatasetError, match=f"written, got {dest}: AccessDenied"):
        compact(dest)


def test_anonymous_requests_are_not_signed(
    dest: str, road: _s3.Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(dest)
    assert any(b"authorization:" in head.lower() for head in road.heads)
    road.heads.clear()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    # The service shows nothing to strangers.
    with pytest.raises(DatasetError, match=f"expected access to {dest}, got 403"):
        asyncfetch.open_dataset(ObjectStore(dest, anonymous=True))
    assert road.heads
    assert not any(b"authorization:" in head.lower() for head in road.heads)


# --- what is said of a place ----------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://key:hidden@bucket/x", "nothing else"),
        ("s3://bucket/x?secret=hidden", "nothing else"),
        ("ftp://key:hidden@host/x", "expected a directory or s3://bucket/prefix"),
        ("s3:///hidden", "expected a directory or"),
        ("s3://[hidden", "no URL"),
    ],
)
def test_odd_places_are_refused_without_showing_secrets(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as told:
        asyncfetch.open_dataset(url)
    assert "hidden" not in str(told.value)


def test_no_credentials_at_all_are_said(
    dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ConfigurationError, match="AWS_PROFILE, or say --anonymous"):
        asyncfetch.open_dataset(dest)


def test_profiles_of_the_aws_tools_are_read(
    dest: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(dest)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[lab]\naws_access_key_id = AKID\naws_secret_access_key = a%b\n"
    )
    (tmp_path / ".aws/config").write_text(
        f"[profile lab]\nregion = eu-west-3\nendpoint_url = {service}\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    account = _objects._account(ObjectStore(dest))
    assert account.region == "eu-west-3"
    assert account.options["secret_access_key"] == "a%b"
    assert asyncfetch.open_dataset(dest).rows.count_rows()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match="called 'nobody'"):
        asyncfetch.open_dataset(dest)


@pytest.mark.parametrize("url", ["gs://bucket/x", "az://container/x"])
def test_other_services_are_opened_by_the_same_code(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "someone")
    assert str(store_at(url)) == url


@pytest.fixture(scope="module")
def google() -> Iterator[dict[str, tuple[int, bytes]]]:
    """Objects of a bucket ``lab`` on the other service."""
    with _gcs.service("lab") as (url, there), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_BASE_URL", url)
        patch.setenv("GOOGLE_BEARER_TOKEN", "none")
        yield there


@pytest.mark.parametrize(
    "point",
    [
        *("fence-claimed", "block-staged", "note-renamed", "file-renamed"),
        *("items-renamed", "part-staged", "part-renamed", "run-staged"),
    ],
)
def test_generations_are_as_good_as_tags(
    point: str, google: dict[str, tuple[int, bytes]]
) -> None:
    """What GCS says of an object's state is another thing than what S3 says."""
    dest = f"gs://lab/{point}"
    die_at(point, dest)
    there = final_keys(dest) if f"{point}/_asyncfetch/plan.json" in google else set()
    sleeper = Writer.open(dest, RECORD, made_up.SCHEMA)
    with pytest.raises(DatasetError, match="at work in gs://lab"):
        Writer.open(dest, RECORD, made_up.SCHEMA, sleep=lambda _: beat(sleeper))
    taker = hurried(dest)
    asked = made_up.fetch(taker)
    taker.close()
    with pytest.raises(DatasetError, match="another run took over"):
        sleeper.leave("late", "text")
    sleeper.close()

    assert not there & {*asked}
    assert made_up.all_rows(dest) == made_up.expected_rows(made_up.KEYS)
    assert verify(dest) == []
    assert compact(dest).parts == 1
    assert verify(dest) == []
    assert download(dest) == []
    files = {name: data for name, (_, data) in google.items() if "/_files/" in name}
    assert {name: files[name] for name in files if name.startswith(f"{point}/")} == {
        f"{point}/_files/some/{key}.txt": made_up.content_of(key)
        for key in made_up.KEYS - made_up.MISSING
    }


def beat(writer: Writer) -> None:
    """Let the counter of a writer move at once."""
    lease: Any = writer._lock
    lease._beaten = 0.0
    lease.beat()


def test_missing_library_is_said(dest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigurationError, match=r"asyncfetch\[objects\]"):
        asyncfetch.open_dataset(dest)

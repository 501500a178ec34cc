"""Disks that are full, slow clocks, stopped processes: one clear line, and a resume."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch._dataset import open_dataset
from asyncfetch._verify import verify

resource = pytest.importorskip("resource", reason="limits of processes are of POSIX")

TRACES = ("neuromorpho/traces", "archive=Siegert")
NEXT = (
    "--commit-seconds",
    "0",
)  # a commit after each item: as many steps as there can be


@pytest.fixture(scope="module")
def archive() -> Iterator[testing.Archive]:
    with testing.serve_in_thread(scale=0.2) as archive:
        yield archive


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "traces"


CONFINE = """if True:
    import json, os, resource, sys
    for what, limit in json.loads(sys.argv[1]):
        resource.setrlimit(what, (limit, limit))
    os.execv(sys.argv[2], sys.argv[2:])
"""


def start(
    *words: str, limits: dict[int, int] | None = None, **options: object
) -> subprocess.Popen[str]:
    confine = [sys.executable, "-c", CONFINE, json.dumps([*(limits or {}).items()])]
    return subprocess.Popen(
        [*(confine if limits else ()), sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A cache of bytecode that is cut at a limit would break every later start.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        **options,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=100)
    assert "Traceback" not in err
    return process.returncode, err


def fetch(
    archive: testing.Archive, dest: Path, *words: str, **options: object
) -> subprocess.Popen[str]:
    return start(
        *("-m", "asyncfetch", "fetch", *TRACES, "-o", str(dest)),
        *("--base-url", archive.neuromorpho, *words),
        **options,
    )


def assert_resume_completes(archive: testing.Archive, dest: Path) -> None:
    """What was committed is kept, and the rest comes."""
    assert verify(dest) == []
    kept = set(open_dataset(dest).items["key"].to_pylist())
    asked = len(archive.log)
    words = ("resume", str(dest), "--base-url", archive.neuromorpho, "--json")
    process = start("-m", "asyncfetch", *words)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    report = json.loads(out)
    everything = len(archive.truth.neurons(archive="Siegert"))
    assert sum(report["items"].values()) == everything
    traces = [one for one in archive.log[asked:] if "/dableFiles" in one.target]
    assert len(traces) == everything - len(kept)
    assert report["rows"] == open_dataset(dest).rows.count_rows()
    assert verify(dest) == []


def one_line(err: str) -> str:
    """The message, which is all that is said."""
    (line,) = [line for line in err.splitlines() if line.strip()]
    return line


# --- disks ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3_000, 20_000, 60_000])
def test_file_that_may_not_grow_ends_the_run(
    size: int, archive: testing.Archive, dest: Path
) -> None:
    process = fetch(archive, dest, "--quiet", limits={resource.RLIMIT_FSIZE: size})
    status, err = ended(process)
    assert status == 3
    assert "got 'File too large'" in one_line(err)
    assert_resume_completes(archive, dest)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A small disk, where the system lets us have one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="nothing to mount with")
def test_full_disk_ends_the_run(archive: testing.Archive, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "10m"):
        dest = disk / "traces"
        assert ended(fetch(archive, dest, "--quiet", "--limit", "2"))[0] == 0
        room = shutil.disk_usage(disk).used + (64 << 10)
        command = ["mount", "-o", f"remount,size={room}", str(disk)]
        subprocess.run(command, check=True)
        rows = open_dataset(dest).state().rows
        status, err = ended(fetch(archive, dest, "--quiet", *NEXT))
        assert status == 3
        assert "got 'No space left on device'" in one_line(err)
        assert open_dataset(dest).state().rows >= rows > 0
        command[2] = "remount,size=10m"
        subprocess.run(command, check=True)
        assert_resume_completes(archive, dest)


@pytest.mark.skipif(not shutil.which("mount"), reason="nothing to mount with")
def test_disk_that_becomes_read_only_ends_the_run(
    archive: testing.Archive, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "10m"):
        dest = disk / "traces"
        assert ended(fetch(archive, dest, "--quiet", "--limit", "2"))[0] == 0
        command = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(command, check=True)
        for words in (
            ("resume", str(dest), "--quiet", "--base-url", archive.neuromorpho),
            ("compact", str(dest)),
            ("verify", str(dest), "--repair"),
        ):
            status, err = ended(start("-m", "asyncfetch", *words))
            assert status == 3
            assert "Read-only file system" in one_line(err)
        assert verify(dest) == []
        assert open_dataset(dest).rows.count_rows()
        command[2] = "remount,rw"
        subprocess.run(command, check=True)
        status, err = ended(fetch(archive, dest, "--quiet"))
        assert status == 0, err
        assert_resume_completes(archive, dest)


def test_directory_that_is_removed_ends_the_run(
    archive: testing.Archive, dest: Path
) -> None:
    seen = len(archive.log)
    slow = ("--rate", "5")
    process = fetch(archive, dest, "--quiet", *NEXT, *slow)
    while len(archive.log) < seen + 4:
        assert process.poll() is None
    shutil.rmtree(dest, ignore_errors=True)
    shutil.rmtree(dest, ignore_errors=True)  # it may have been written to meanwhile
    status, err = ended(process)
    assert status == 3
    assert "took over the dataset" in one_line(err)
    shutil.rmtree(dest, ignore_errors=True)
    assert ended(fetch(archive, dest, "--quiet"))[0] == 0
    assert_resume_completes(archive, dest)


# --- few file descriptors -------------------------------------------------------------

FEW = {resource.RLIMIT_NOFILE: 64}


def test_64_open_files_are_enough(archive: testing.Archive, dest: Path) -> None:
    status, err = ended(fetch(archive, dest, "--quiet", *NEXT, limits=FEW))
    assert status == 0, err
    for command in ("status", "verify", "compact", "verify"):
        status, err = ended(start("-m", "asyncfetch", command, str(dest), limits=FEW))
        assert status == 0, err
    assert_resume_completes(archive, dest)


def test_more_parts_than_files_may_be_open(dest: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from tests import _datasets as made_up
        from asyncfetch import compact, open_dataset
        from asyncfetch._dataset import Writer
        from asyncfetch._model import Block
        writer = Writer.open(sys.argv[1], made_up.RECORD, made_up.SCHEMA)
        items = tuple(made_up.item(f"{n}") for n in range(100))
        for one in writer.freeze(Block(items)):
            writer.add(made_up.result_of(one, follow_up=()))
            writer.seal()
        writer.finish({})
        writer.close()
        before = made_up.all_rows(sys.argv[1])
        assert len(before) > 100
        assert compact(sys.argv[1]).parts == 1
        assert made_up.all_rows(sys.argv[1]) == before
        assert open_dataset(sys.argv[1]).items.num_rows == 100
    """
    process = start("-c", code, str(dest), limits=FEW, cwd=Path(__file__).parents[1])
    status, err = ended(process)
    assert status == 0, err
    assert verify(dest) == []


@pytest.mark.parametrize("files", [20, 28, 40])
def test_too_few_open_files_are_one_line(
    files: int, archive: testing.Archive, dest: Path
) -> None:
    limits = {resource.RLIMIT_NOFILE: files}
    words = ("--quiet", "--concurrency", "100", *NEXT)
    status, err = ended(fetch(archive, dest, *words, limits=limits))
    assert status in {0, 3}, err
    if status:
        one_line(err)
    if (dest / "_asyncfetch/plan.json").exists():
        assert_resume_completes(archive, dest)


# --- clocks and stopped processes -----------------------------------------------------


@pytest.mark.anyio
async def test_clock_that_jumps_changes_nothing(
    archive: testing.Archive, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + rng.uniform(-1e6, 1e6))
    async with asyncfetch.NeuroMorpho(base_url=archive.neuromorpho) as api:
        plan = api.traces.plan(archive="Siegert")
        report = await asyncfetch.download(plan, dest, commit_seconds=0)
    everything = len(archive.truth.neurons(archive="Siegert"))
    assert report.items["ok"] == everything
    assert report.seconds < 1e5


PROGRAM = """if True:
    import sys, anyio, asyncfetch
    from asyncfetch import _store
    _store.STALE = 1.0  # seconds; nobody wants to wait for a minute here
    url, dest = sys.argv[1:]

    async def main():
        limits = asyncfetch.Limits(rate=10)
        api = asyncfetch.NeuroMorpho(base_url=url, timeout=0.4, limits=limits)
        async with api:
            plan = api.traces.plan(archive="Siegert")
            report = await asyncfetch.download(plan, dest, commit_seconds=0)
            print(report.items)

    try:
        anyio.run(main)
    except asyncfetch.AsyncfetchError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
"""


def begun(archive: testing.Archive, dest: Path) -> subprocess.Popen[str]:
    """A run that is on its way and stopped there."""
    process = start("-c", PROGRAM, archive.neuromorpho, str(dest))
    while len(list(dest.glob("*.parquet"))) < 2:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    return process


def test_run_that_was_stopped_for_longer_than_its_time_outs_goes_on(
    archive: testing.Archive, dest: Path
) -> None:
    process = begun(archive, dest)
    time.sleep(1)  # the time-outs are 0.4 s: this is what is tried, not a wait
    process.send_signal(signal.SIGCONT)
    status, err = ended(process)
    assert status == 0, err
    assert_resume_completes(archive, dest)


def test_run_that_was_stopped_until_another_took_over_ends(
    archive: testing.Archive, dest: Path
) -> None:
    process = begun(archive, dest)
    kept = len(open_dataset(dest).items)
    status, err = ended(start("-c", PROGRAM, archive.neuromorpho, str(dest)))
    assert status == 0, err
    process.send_signal(signal.SIGCONT)
    status, err = ended(process)
    assert status == 3
    assert "another run took over" in one_line(err)
    items = open_dataset(dest).items["key"].to_pylist()
    assert len(items) == len(set(items)) >= kept
    assert_resume_completes(archive, dest)

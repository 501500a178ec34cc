"""Kills real runs at random instants, and proves that nothing is lost or doubled.

::

    python -m tests._kills --kills 300 --seed 7

Each scenario is a table that is fetched by real processes from an archive in a process
of its own. An undisturbed run says what the dataset must come to and how long it takes.
Then runs are killed: at instants drawn uniformly from that length, and at instants
right after one of the durable steps of a commit. What is proved, is proved from
outside, by files, by the archive's log and by exit statuses:

- after every kill ``verify`` finds nothing, what was committed before is committed
  still, and what the archive had answered long enough ago is committed;
- no run asks for an item that was committed when it began, nor for what was planned;
- a file that has its final name is the undisturbed one, bit for bit, at every instant;
- in the end the dataset holds the undisturbed rows, items and files, bit for bit, and
  asking once more asks nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, S3FileSystem

from asyncfetch import open_dataset
from asyncfetch._verify import verify

from . import _s3

ROOT = Path(__file__).parents[1]
# 5 % in all.
FAULTS = "error=0.01,reset=0.01,reset_body=0.01,truncate=0.01,html=0.01"
# A writer looks every two seconds whether a commit is due; the rest is for the commit
# itself, and for a machine that does other things at the same time.
SLACK = 15.0
STALE = 3.0  # seconds for which a stopped writer keeps the others out
DEADLINE = 120.0  # seconds that a run may take; a hundred times what it should


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A table, and how its archive behaves."""

    name: str
    words: tuple[str, ...]
    """As after ``asyncfetch fetch``."""
    weight: int = 1
    """Its share of the kills."""
    module: str = "tests._things"
    """What runs: the real program, or the real program with the made-up service."""
    archive: tuple[str, ...] = ()
    paged: bool = True
    """Whether each block of the plan has a planning request of its own."""
    commit_seconds: float = 0.2
    stops: bool = False
    """Whether runs are stopped and taken over, beside being killed."""
    in_bucket: bool = False
    """Whether the dataset is in an object store."""


REAL = {"module": "asyncfetch"}
SCENARIOS = (
    Scenario(
        name="events",  # pairs of predictor and run without events among them
        words=("neuroscout/predictor-events", "dataset_name=SherlockMerlin"),
        archive=("--scale", "0.05", "--latency", "0.02"),
        paged=False,
        **REAL,
    ),
    Scenario(
        name="neurons",
        words=("neuromorpho/neurons",),
        archive=("--scale", "5", "--latency", "0.05"),
        paged=False,
        **REAL,
    ),
    Scenario(
        name="traces",  # some missing, some failed for good
        words=("neuromorpho/traces",),
        archive=("--scale", "1.02"),
        **REAL,
    ),
    Scenario(
        name="files",  # lost ones, cut ones, and records that nobody can read
        words=("neurovault/files", "--concurrency", "8"),
        archive=("--scale", "1", "--latency", "0.02"),
        **REAL,
    ),
    Scenario(
        name="data files",  # of several servers, behind a login
        words=("alyx/data-files",),
        archive=("--scale", "0.2", "--latency", "0.02"),
        **REAL,
    ),
    Scenario(
        name="numbers",  # one row or none each; two that fail at first
        words=("things/numbers", "count=1000"),
        archive=("--fail", "/numbers/17/", "--fail", "/numbers/801/"),
        weight=2,
    ),
    Scenario(
        name="slow numbers",
        words=("things/numbers", "count=600", "--concurrency", "4"),
        archive=("--latency", "0.05", "--fail", "/numbers/5/"),
        commit_seconds=0.5,
    ),
    Scenario(
        name="chains",
        words=("things/chains", "count=40", "block=15"),
        archive=("--latency", "0.01", "--fail", "/chains/3.4/"),
        weight=2,
    ),
    Scenario(
        name="shards",
        words=("things/shards", "count=150", "block=40"),
        archive=("--latency", "0.01", "--fail", "/shards/3000-3064/"),
        weight=2,
    ),
    Scenario(
        name="large",  # 140 000 rows are more than a row group
        words=("things/numbers", "count=30", "rows=140000", "block=7"),
    ),
    Scenario(
        name="takeover",
        words=("things/numbers", "count=1000", "--concurrency", "4"),
        archive=("--latency", "0.02", "--fail", "/numbers/17/"),
        stops=True,
    ),
    Scenario(
        name="bucket",
        words=("things/chains", "count=40", "block=15"),
        archive=("--latency", "0.01", "--fail", "/chains/3.4/"),
        in_bucket=True,
    ),
    Scenario(
        name="files in a bucket",
        words=("neurovault/files", "--concurrency", "8"),
        archive=("--scale", "0.1", "--latency", "0.02"),
        in_bucket=True,
        **REAL,
    ),
)


class Archive:
    """An archive in its own process, and its log."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdout is not None
        self.environment: dict[str, str] = json.loads(process.stdout.readline())
        self._log = log
        self._entries: list[dict[str, Any]] = []
        self._read = 0
        self._looks = 0

    @property
    def log(self) -> list[dict[str, Any]]:
        """Entries so far."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if line.endswith(b"\n"):
                self._read += len(line)
                self._entries.append(json.loads(line))
        return self._entries

    def of(self, label: str) -> list[dict[str, Any]]:
        """Entries of the run called *label*."""
        return [one for one in self.log if f"(contact: {label})" in one["user_agent"]]

    def now(self) -> float:
        """The archive's own time: that of a request which is made to learn it."""
        self._looks += 1
        base = urlsplit(next(iter(self.environment.values())))
        path = f"/now/{self._looks}"
        try:
            with urllib.request.urlopen(f"{base.scheme}://{base.netloc}{path}"):
                pass
        except OSError:  # it says 404, or one of its faults
            pass
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            found = [one["t"] for one in self.log if one["target"] == path]
            if found:
                return float(found[-1])
        raise AssertionError("the archive does not answer")


@contextmanager
def open_archive(
    scenario: Scenario, seed: int, folder: Path, faults: str = FAULTS
) -> Iterator[Archive]:
    log = folder / "requests.jsonl"
    faults = f"{faults},seed={seed}"
    command = [sys.executable, "-m", "tests._things", "archive"]
    with subprocess.Popen(
        [*command, *scenario.archive, "--faults", faults, "--log", str(log)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield Archive(process, log)
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class Instant:
    """When to strike: so long after the start, or after so many steps on the disk."""

    seconds: float = 0.0
    steps: int = 0

    def __str__(self) -> str:
        where = f"step {self.steps} + " if self.steps else ""
        return f"{where}{self.seconds:.4f} s"


class Run:
    """A process that fetches, and what is seen of it from outside."""

    def __init__(self, session: Session, command: str, *words: str) -> None:
        session.runs += 1
        self.label = f"run-{session.runs}"
        self.command = command
        self._dest = session.folder / session.name
        self._stderr = session.folder / f"{self.label}.txt"
        scenario = session.scenario
        options = ("--contact", self.label)
        options += ("--commit-seconds", str(scenario.commit_seconds))
        self.started = time.monotonic()
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", scenario.module, command, *words, *options],
                env={
                    **session.environment,
                    "THINGS_STALE": str(STALE),
                },
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=ROOT,
            )
        self.steps = 0
        self._seen: dict[Path, int] = {}

    @property
    def said(self) -> str:
        """Its last words."""
        return self._stderr.read_text()[-1000:]

    def _look(self) -> None:
        """Count the changes of the folders that a commit goes through."""
        records = self._dest / "_asyncfetch"
        tmp = records / "tmp"
        try:
            inner = list(tmp.iterdir())
        except FileNotFoundError:
            inner = []
        for folder in (self._dest, records / "plan", records / "items", tmp, *inner):
            try:
                changed = folder.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if self._seen.get(folder) != changed:
                self.steps += folder in self._seen or folder in inner
                self._seen[folder] = changed

    def reach(self, instant: Instant) -> bool:
        """Wait until then; False when the run has ended before."""
        until = self.started if not instant.steps else None
        self._look()
        self.steps = 0
        while self._process.poll() is None:
            now = time.monotonic()
            if instant.steps:
                self._look()
            if until is None and self.steps >= instant.steps:
                until = now
            if until is not None and now >= until + instant.seconds:
                return True
            assert now < self.started + DEADLINE, f"{self.label} hangs: {self.said}"
            pause = 0.001 if until is None else until + instant.seconds - now
            time.sleep(min(max(pause, 0.0), 0.05))
        return False

    def watch(self) -> int:
        """Wait for its end, counting steps; its exit status."""
        self.reach(Instant(steps=sys.maxsize))
        return self._process.returncode

    def end(self) -> int:
        """Wait for its end; its exit status."""
        try:
            return self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            raise AssertionError(f"{self.label} hangs: {self.said}") from None

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> bool:
        """End it at once; False when it had ended by itself."""
        self.send(signal.SIGKILL)
        return self._process.wait() == -signal.SIGKILL


@dataclass(frozen=True)
class Truth:
    """What an undisturbed run comes to."""

    rows: pa.Table
    items: list[dict[str, Any]]
    status: int
    seconds: float
    """From the start of the process to its end."""
    until_first: float
    """Until its first request."""
    steps: int
    planning: tuple[str, ...]
    """Planning requests in their order."""
    whole: dict[str, int]
    """Bytes of the whole answer, by target."""
    files: dict[str, str]
    """SHA-256 of what is stored, by path."""

    @cached_property
    def n_final(self) -> int:
        return sum(one["outcome"] != "failed" for one in self.items)


def rows_in(dest: Path) -> pa.Table:
    """Rows that any reader sees, sorted, floats as their bits."""
    table = pads.dataset(dest, format="parquet").to_table()
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        whole = column.combine_chunks()
        if isinstance(whole, pa.ExtensionArray):
            whole = whole.storage
        if pa.types.is_dictionary(whole.type):
            whole = whole.dictionary_decode()
        if pa.types.is_float64(whole.type):
            whole = whole.view(pa.int64())
        columns[name] = whole
    table = pa.table(columns)
    order = [
        (field.name, "ascending")
        for field in table.schema
        if not pa.types.is_list(field.type)
    ]
    return table.sort_by(order).combine_chunks()


def items_in(dest: Path) -> list[dict[str, Any]]:
    """What became of each item, without what differs from run to run."""
    columns = ["key", "outcome", "rows", "rows_duplicate", "bytes", "sha256"]
    table = open_dataset(dest).items
    final = table.filter(pc.field("outcome") != "failed").select(columns).to_pylist()
    known = {one["key"] for one in final}
    failed = table.filter(pc.field("outcome") == "failed")["key"].to_pylist()
    final += [{"key": one, "outcome": "failed"} for one in {*failed} - known]
    return sorted(final, key=lambda one: str(one["key"]))


def files_in(dest: Path) -> dict[str, str]:
    """SHA-256 of everything that has its final name in the directory of files."""
    folder = dest / "_files"
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@dataclass(slots=True)
class Committed:
    """What a dataset holds."""

    keys: frozenset[str] = frozenset()
    """Of the items that ended for good."""
    targets: frozenset[str] = frozenset()
    failed: int = 0
    blocks: int = 0
    """Blocks of the enumeration."""

    @classmethod
    def at(cls, dest: Path) -> Committed:
        plan = dest / "_asyncfetch/plan"
        if not (dest / "_asyncfetch/plan.json").exists():
            return cls()
        items = open_dataset(dest).items.select(["key", "url", "outcome"])
        final = items.filter(pc.field("outcome") != "failed")
        keys = frozenset(final["key"].to_pylist())
        assert len(keys) == final.num_rows, "an item ended for good twice"
        footers = [pq.read_metadata(one).metadata for one in plan.glob("*.plan")]
        return cls(
            keys=keys,
            targets=frozenset(map(target_of, final["url"].to_pylist())),
            failed=items.num_rows - final.num_rows,
            blocks=sum(b"asyncfetch.cursor" in footer for footer in footers),
        )


def is_torn(dest: Path) -> bool:
    """Whether the last commit lacks its part."""
    for one in (dest / "_asyncfetch/items").glob("*.items"):
        part = json.loads(pq.read_metadata(one).metadata[b"asyncfetch.part"])
        if part is not None and not (dest / part["name"]).exists():
            return True
    return False


def target_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


BUCKET = "some-bucket"


class Bucket:
    """A bucket of an S3 service in its own process."""

    def __init__(self, url: str) -> None:
        self.environment = {**_s3.KEYS, "AWS_ENDPOINT_URL": url}
        self._store = S3FileSystem(
            access_key=_s3.KEYS["AWS_ACCESS_KEY_ID"],
            secret_key=_s3.KEYS["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=url,
            region="us-east-1",
            allow_bucket_creation=True,
        )
        self._store.create_dir(BUCKET)

    def copy(self, name: str, folder: Path) -> None:
        """Let *folder* hold the objects below *name*, and nothing else."""
        shutil.rmtree(folder, ignore_errors=True)
        below = FileSelector(f"{BUCKET}/{name}", allow_not_found=True, recursive=True)
        for one in self._store.get_file_info(below):
            if one.is_file:
                path = folder / one.path.removeprefix(f"{BUCKET}/{name}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # removed meanwhile
                    path.write_bytes(self._store.open_input_file(one.path).read())


@contextmanager
def open_bucket(scenario: Scenario) -> Iterator[Bucket | None]:
    """A bucket for datasets of a scenario that has them there."""
    if not scenario.in_bucket:
        yield None
        return
    with _s3.service() as url:
        yield Bucket(url)


@dataclass
class Session:
    """Kills of one scenario."""

    scenario: Scenario
    archive: Archive
    folder: Path
    random: random.Random
    bucket: Bucket | None = None
    runs: int = 0
    name: str = ""
    """Of the dataset."""
    counts: Counter[str] = field(default_factory=Counter)
    events: list[str] = field(default_factory=list)
    """What was done, for whoever must find out why."""

    def new_dataset(self) -> None:
        self.counts["datasets"] += 1
        self.name = f"dataset-{self.counts['datasets']}"

    @property
    def environment(self) -> dict[str, str]:
        """What the processes that fetch are told."""
        bucket = {} if self.bucket is None else self.bucket.environment
        return {**os.environ, **self.archive.environment, **bucket}

    @property
    def place(self) -> str:
        """The dataset, as the program is told."""
        if self.bucket is None:
            return str(self.folder / self.name)
        return f"s3://{BUCKET}/{self.name}"

    def look(self) -> Path:
        """The dataset, or a copy of what the bucket holds of it now."""
        folder = self.folder / self.name
        if self.bucket is not None:
            self.bucket.copy(self.name, folder)
        return folder

    def start(self, command: str) -> Run:
        if command == "fetch":
            return Run(self, "fetch", *self.scenario.words, "-o", self.place)
        pace = [one for one in self.scenario.words[1:] if "=" not in one]
        return Run(self, command, self.place, *pace)

    def undisturbed(self) -> Truth:
        """Fetch until everything is there, and learn what that is and takes."""
        self.new_dataset()
        since = self.archive.now()
        run = self.start("fetch")
        status = run.watch()
        seconds, steps = time.monotonic() - run.started, run.steps
        log = self.archive.of(run.label)
        until_first = log[0]["t"] - since
        _, status = self.complete(None)
        dest = self.look()
        items = open_dataset(dest).items
        final = items.filter(pc.field("outcome") != "failed")
        targets = [target_of(one) for one in items["url"].to_pylist()]
        # A file has several names that it may be found by; all but one are not there.
        known = {*targets, *(one["target"] for one in log if one["status"] == 404)}
        return Truth(
            rows=rows_in(dest),
            items=items_in(dest),
            status=status,
            seconds=seconds,
            until_first=until_first,
            steps=steps,
            # How the service is, is asked whenever a 404 is to be believed, and a login
            # when a token is needed.
            planning=tuple(
                dict.fromkeys(
                    one["target"]
                    for one in log
                    if one["target"] not in known
                    and one["method"] == "GET"
                    and not one["target"].endswith("/health")
                )
            ),
            files=files_in(dest),
            whole=dict(
                zip(
                    map(target_of, final["url"].to_pylist()),
                    final["bytes"].to_pylist(),
                    strict=True,
                )
            ),
        )

    def complete(self, truth: Truth | None) -> tuple[list[Run], int]:
        """Resume and retry until as much is there as can be."""
        runs: list[Run] = []
        before = None
        for number in range(12):
            # What fails for good must be asked thrice: the made-up failures end then.
            run = self.start("retry" if number % 2 else "resume")
            runs.append(run)
            status = run.end()
            assert status in {0, 1}, f"{run.command} ended with {status}: {run.said}"
            there = len(Committed.at(self.look()).keys)
            if status == 0 or (truth and there == truth.n_final):
                return runs, status
            if truth is None and there == before and number > 2:
                return runs, status
            before = there
        raise AssertionError(f"not complete after {len(runs)} runs: {runs[-1].said}")

    def instant(self, truth: Truth, there: Committed) -> Instant:
        """Uniform over what is left of the run, or right after a durable step."""
        left = 1 - len(there.keys) / truth.n_final
        # Steps of an object store are not seen from outside.
        if self.bucket is None and self.random.random() < 0.5:
            steps = self.random.randint(1, max(2, round(truth.steps * left)))
            # At once, or some way into what a commit does next.
            pause = self.random.choice([0.0, self.random.uniform(0, 0.008)])
            return Instant(pause, steps)
        first = truth.until_first * 0.9
        return Instant(
            self.random.uniform(first, first + (truth.seconds - first) * left)
        )

    def disturb(self, truth: Truth, kills: int) -> None:
        """Kill *kills* runs, over as many datasets as it takes."""
        while self.counts["kills"] < kills:
            self.new_dataset()
            command, whole = "fetch", False
            while not whole and self.counts["kills"] < kills:
                before = Committed.at(self.look())
                strike = self.take_over if self.scenario.stops else self.strike
                whole = strike(command, truth, before)
                choices = ["fetch"]
                if (self.look() / "_asyncfetch/plan.json").exists():
                    choices += ["resume", "resume"]
                    choices += ["retry"] * (Committed.at(self.look()).failed > 0)
                command = self.random.choice(choices)
            self.finish(truth)

    def strike(self, command: str, truth: Truth, before: Committed) -> bool:
        """Start a run and kill it; whether the dataset is whole instead."""
        instant = self.instant(truth, before)
        run = self.start(command)
        if not run.reach(instant) or not run.kill():
            status = run.end()
            self.events.append(f"{run.label}: {command} ended with {status}")
            self.counts["ended first"] += 1
            assert status in {0, 1}, f"{command} ended with {status}: {run.said}"
            self.check(run, before, truth, None)
            return command != "retry"  # which asks for nothing else
        killed_at = self.archive.now()
        self.counts["kills"] += 1
        self.counts["kills after a step" if instant.steps else "kills by time"] += 1
        self.counts["kills inside a commit"] += is_torn(self.look())
        self.events.append(f"{run.label}: {command} killed after {instant}")
        self.check(run, before, truth, killed_at)
        return False

    def take_over(self, command: str, truth: Truth, before: Committed) -> bool:
        """Stop a run, let another take over, and wake the first one up meanwhile."""
        instant = self.instant(truth, before)
        sleeper = self.start(command)
        if not sleeper.reach(instant):
            return sleeper.end() in {0, 1}
        sleeper.send(signal.SIGSTOP)
        held = Committed.at(self.look())
        has_plan = (self.look() / "_asyncfetch/plan.json").exists()
        other = self.start("resume" if has_plan else "fetch")
        # Before, while and after the other one loses its patience.
        wake = truth.until_first + STALE + self.random.uniform(-1.5, 1.5)
        other.reach(Instant(wake))
        fate = self.random.choice(["wakes", "wakes", "killed", "other killed"])
        if fate == "killed":
            sleeper.kill()
        elif fate == "other killed":
            other.kill()
        sleeper.send(signal.SIGCONT)
        ends = sleeper.end(), other.end()
        self.counts["kills"] += 1
        self.counts[f"takeovers: {fate}"] += 1
        self.counts["takeovers: the sleeper is fenced"] += ends[0] == 3
        self.events.append(f"{sleeper.label}, {other.label}: {fate} {instant} {ends}")
        fine = {0, 1, 3, -signal.SIGKILL}
        assert {*ends} <= fine, f"{ends}: {sleeper.said} {other.said}"
        for run, end in zip((sleeper, other), ends, strict=True):
            words = ("another run took over", "another writer is at work")
            assert end != 3 or any(one in run.said for one in words), run.said
        assert fate != "wakes" or ends.count(3) < 2, "each gave way to the other"
        self.check(other, held, truth, None)
        return bool({0, 1} & {*ends})

    def check(
        self, run: Run, before: Committed, truth: Truth, killed_at: float | None
    ) -> Committed:
        """Prove what must hold after a run; what is committed then."""
        dest = self.look()
        there = Committed.at(dest)
        assert before.keys <= there.keys, f"lost: {before.keys - there.keys}"
        if (dest / "_asyncfetch/plan.json").exists():
            # An items file whose part was not yet there counts for nothing.
            problems = [one for one in verify(dest) if one.code != "part-missing"]
            assert not problems, problems
        broken = files_in(dest).items() - truth.files.items()
        assert not broken, f"not what the service has: {broken}"
        log = self.archive.of(run.label)
        asked = {one["target"] for one in log}
        assert not asked & before.targets, f"again: {asked & before.targets}"
        planned = truth.planning[: before.blocks if self.scenario.paged else None]
        if before.blocks:
            assert not asked & {*planned}, f"planned again: {asked & {*planned}}"
        if killed_at is not None:
            due = killed_at - self.scenario.commit_seconds - SLACK
            for one in log:
                name = one["target"]
                if one["t"] < due and truth.whole.get(name) == one["bytes"] > 0:
                    self.counts["old answers found committed"] += 1
                    assert name in there.targets, f"not committed in time: {one}"
        return there

    def finish(self, truth: Truth) -> None:
        """Go on undisturbed to the end, and compare."""
        before = Committed.at(self.look())
        if not (self.look() / "_asyncfetch/plan.json").exists():
            assert self.start("fetch").end() in {0, 1}
        runs, status = self.complete(truth)
        assert status == truth.status, f"{status}: {runs[-1].said}"
        for run in runs:
            self.check(run, before, truth, None)
        dest = self.look()
        assert items_in(dest) == truth.items, "other items"
        assert rows_in(dest).equals(truth.rows), "other rows"
        assert files_in(dest) == truth.files, "other files"
        proved = subprocess.run(
            [sys.executable, "-m", "asyncfetch", "verify", self.place],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
        )
        assert proved.returncode == 0, proved.stderr
        again = self.start("fetch")
        assert again.end() == truth.status, again.said
        asked = {one["target"] for one in self.archive.of(again.label)}
        assert not asked & Committed.at(self.look()).targets
        assert not asked & {*truth.planning}


def campaign(scenario: Scenario, kills: int, seed: int, folder: Path) -> Counter[str]:
    """Kill *kills* runs of *scenario*; what was done."""
    folder = folder / scenario.name.replace(" ", "-")
    folder.mkdir()
    dice = random.Random(f"{seed}/{scenario.name}")
    # One archive for all: a target that was asked before meets another fate.
    with (
        open_archive(scenario, dice.getrandbits(31), folder) as archive,
        open_bucket(scenario) as bucket,
    ):
        session = Session(scenario, archive, folder, dice, bucket)
        try:
            truth = session.undisturbed()
            session.events.append(
                f"undisturbed: {len(truth.items)} items, {truth.rows.num_rows} rows, "
                f"{truth.seconds:.1f} s, {truth.steps} steps"
            )
            session.disturb(truth, kills)
        except Exception:
            (folder / "events.txt").write_text("\n".join(session.events) + "\n")
            raise
    session.counts["runs"] = session.runs
    return session.counts


def shares(kills: int, chosen: list[Scenario]) -> list[int]:
    """How many kills fall on each scenario: no less than *kills* in all."""
    total = sum(one.weight for one in chosen)
    return [math.ceil(kills * one.weight / total) for one in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", help="the name of a scenario")
    parser.add_argument("--folder", type=Path, help="where the datasets go")
    options = parser.parse_args()
    chosen = [one for one in SCENARIOS if options.only in {None, one.name}]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="asyncfetch-kills-"))
    folder.mkdir(exist_ok=True)
    print(f"seed {options.seed}, {options.kills} kills, in {folder}", flush=True)
    total: Counter[str] = Counter()
    broken = 0

    def one(scenario: Scenario, kills: int) -> Callable[[], Counter[str]]:
        return lambda: campaign(scenario, kills, options.seed, folder)

    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:  # a run waits for much, too
        jobs = {
            scenario.name: pool.submit(one(scenario, kills))
            for scenario, kills in zip(
                chosen, shares(options.kills, chosen), strict=True
            )
        }
        for name, job in jobs.items():
            try:
                counts = job.result()
            except Exception as error:  # noqa: BLE001 - shown, and the others go on
                broken += 1
                traceback.print_exc()
                print(f"{name}: BROKEN, see {folder / name.replace(' ', '-')}: {error}")
            else:
                total += counts
                words = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
                print(f"{name}: {words}", flush=True)
    seconds = time.monotonic() - started
    words = ", ".join(f"{n} {what}" for what, n in total.items())
    print(f"all: {words}; {seconds:.0f} s, seed {options.seed}, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

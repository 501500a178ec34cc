"""A million small items: what stays flat, and what going on costs.

::

    python -m tests._soak --items 1000000

One real run against an archive in a process of its own that fails at 2 % of the
requests. Watched from outside: the peak memory, open files and tasks at a tenth of the
items and at the end; then what ``resume`` takes of a plan of which 99.9 % are done.
With ``--kills`` it is killed at random instants instead, and each line says what going
on cost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests._kills import ROOT, Archive, Committed, Scenario, open_archive

# 2 % in all. Not 503: that asks everybody to wait, and the run does.
FAULTS = "reset=0.005,reset_body=0.005,truncate=0.005,html=0.005"
BLOCK = 10_000  # items of a planning request
LEFT = 1000  # items that are left for the resume: of a million, one in a thousand
GROWTH = 1.10  # of the peak memory, from a tenth of the items to all
RESUME_SECONDS = 5.0
RESUME_MB = 300.0
OPEN_FILES = 8  # more or less of them are chance: a connection, a file of the commit


@dataclass(slots=True)
class Client:
    """A process that fetches, as the system sees it."""

    process: subprocess.Popen[bytes]
    tasks_file: Path
    peak_mb: float = 0.0

    def look(self) -> None:
        """Note the peak memory; the kernel forgets it with the process."""
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            high = next(one for one in lines if one.startswith("VmHWM"))
            self.peak_mb = int(high.split()[1]) / 1024

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def tasks(self) -> int:
        known = self.tasks_file.stat().st_size if self.tasks_file.exists() else 0
        self.process.send_signal(signal.SIGUSR1)
        limit = time.monotonic() + 10
        while time.monotonic() < limit and self.process.poll() is None:
            if self.tasks_file.exists() and self.tasks_file.stat().st_size > known:
                return int(self.tasks_file.read_text().split()[-1])
            time.sleep(0.01)
        raise AssertionError("the client does not answer a signal")


@dataclass(slots=True)
class Soak:
    """One dataset, its archive, and what has been asked so far."""

    items: int
    folder: Path
    archive: Archive
    seen: set[str] = field(default_factory=set)
    """Items that were asked for at least once, by target."""
    looked: int = 0
    again: int = 0

    @property
    def dest(self) -> Path:
        return self.folder / "dataset"

    def start(self, command: str) -> Client:
        words = ["things/numbers", f"count={self.items}", f"block={BLOCK}"]
        where = (
            [*words, "-o", str(self.dest)] if command == "fetch" else [str(self.dest)]
        )
        tasks = self.folder / "tasks.txt"
        environment = {**self.archive.environment, "THINGS_TASKS": str(tasks)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests._things", command, *where, "--quiet"],
            # As the program itself has it; here, pyarrow is imported before.
            env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", **environment},
            cwd=ROOT,
        )
        return Client(process, tasks)

    def look(self) -> None:
        """Read what the archive has logged since."""
        log = self.archive.log
        for one in log[self.looked :]:
            if one["target"].startswith("/things/numbers/"):
                self.again += one["target"] in self.seen
                self.seen.add(one["target"])
        self.looked = len(log)

    def until(self, client: Client, items: int) -> bool:
        """Wait until so many have been asked for; False when the run has ended."""
        while len(self.seen) < items:
            if client.process.poll() is not None:
                return False
            time.sleep(0.1)
            client.look()
            self.look()
        return True

    def first_request(self, client: Client, since: float) -> float:
        """Seconds from *since* to the next request, in the archive's time."""
        known = len(self.archive.log)
        while client.process.poll() is None:
            client.look()
            if len(self.archive.log) > known:
                return float(self.archive.log[known]["t"]) - since
            time.sleep(0.01)
        raise AssertionError("the run asked nothing")

    def end(self, client: Client) -> int:
        while client.process.poll() is None:
            client.look()
            time.sleep(0.02)
        self.look()
        return client.process.returncode


def soak(run: Soak) -> list[str]:
    """Fetch 99.9 %, go on, and return the bars that were missed."""
    missed: list[str] = []

    def bar(fine: bool, text: str) -> None:
        print(f"{'ok  ' if fine else 'MISS'} {text}", flush=True)
        if not fine:
            missed.append(text)

    started = time.monotonic()
    client = run.start("fetch")
    run.until(client, run.items // 10)
    peak, files, tasks = client.peak_mb, client.files(), client.tasks()
    for tenth in range(2, 10):
        run.until(client, run.items * tenth // 10)
        print(
            f"     {len(run.seen):,} items after {time.monotonic() - started:.0f} s: "
            f"{client.peak_mb:.0f} MB, {client.files()} files, {client.tasks()} tasks",
            flush=True,
        )
    run.until(client, run.items - LEFT)
    seconds = time.monotonic() - started
    now_files, now_tasks = client.files(), client.tasks()
    client.process.terminate()
    status = run.end(client)
    bar(status == 130, f"interrupted: expected exit status 130, got {status}")
    print(f"     {len(run.seen) / seconds:,.0f} items/s, as the machine goes")
    growth = client.peak_mb / peak
    bar(
        growth <= GROWTH,
        f"peak memory {peak:.0f} MB at a tenth, {client.peak_mb:.0f} MB at the end: "
        f"{growth:.2f}, at most {GROWTH}",
    )
    bar(now_files <= files + OPEN_FILES, f"open files {files}, then {now_files}")
    bar(now_tasks <= tasks, f"tasks {tasks}, then {now_tasks}")

    before = Committed.at(run.dest)
    known = len(run.archive.log)
    since = run.archive.now()
    client = run.start("resume")
    first = run.first_request(client, since)
    status = run.end(client)
    bar(status == 0, f"resumed with {len(before.keys):,} there: exit status {status}")
    again = {one["target"] for one in run.archive.log[known:]} & before.targets
    bar(not again, f"{len(again)} items asked again")
    bar(first <= RESUME_SECONDS, f"first request {first:.1f} s after the start")
    bar(client.peak_mb <= RESUME_MB, f"resumed in {client.peak_mb:.0f} MB")
    done = len(Committed.at(run.dest).keys)
    bar(done == run.items, f"{done:,} items are there")
    return missed


def killed(run: Soak, kills: int, dice: random.Random) -> list[str]:
    """Kill a run at random instants and print what going on costs."""
    marks = sorted(dice.sample(range(run.items // 50, run.items), kills))
    client = run.start("fetch")
    missed: list[str] = []
    for mark in marks:
        run.until(client, mark)
        client.process.kill()
        client.process.wait()
        since = run.archive.now()
        run.look()
        there, asked, again = len(Committed.at(run.dest).keys), len(run.seen), run.again
        client = run.start("resume")
        first = run.first_request(client, since)
        while run.until(client, len(run.seen) + 1) and len(run.seen) == asked:
            pass
        line = (
            f"killed at {asked:,}, {there:,} there: first request after {first:.1f} s, "
            f"{client.peak_mb:.0f} MB then, {run.again - again:,} asked again"
        )
        print(line, flush=True)
        if first > RESUME_SECONDS:
            missed.append(line)
    status = run.end(client)
    done = len(Committed.at(run.dest).keys)
    print(f"ended with {status}, {done:,} items, peak {client.peak_mb:.0f} MB")
    if status or done != run.items:
        missed.append(f"{done:,} of {run.items:,} items, exit status {status}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="asyncfetch-soak-"))
    print(json.dumps(vars(options)), "in", folder, flush=True)
    nothing = Scenario(name="soak", words=())
    with open_archive(nothing, options.seed, folder, faults=FAULTS) as archive:
        run = Soak(options.items, folder, archive)
        if options.kills:
            missed = killed(run, options.kills, random.Random(options.seed))
        else:
            missed = soak(run)
    for one in missed:
        print("missed:", one)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

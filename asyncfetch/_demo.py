"""Two downloads from the embedded archive, one of them killed and resumed.

What a user would type, run as processes of their own, and counted afterwards in what
they left: the datasets, and the archive's log of requests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from asyncfetch._dataset import open_dataset
from asyncfetch._verify import verify
from asyncfetch.errors import AsyncfetchError, DatasetError

FAULTS = "error=0.008,reset=0.004,truncate=0.004,html=0.004,seed=1"  # 2 % in all
EVENTS = ("neuroscout/predictor-events", "dataset_name=SherlockMerlin")
TRACES = ("neuromorpho/traces",)
# The second commit of the traces comes about half-way.
COMMIT_SECONDS = "0.4"
KILL = {"ASYNCFETCH_CRASH": "part-durable:2"}


def steps(dest: Path) -> Iterator[str]:
    """Do it, and say what was done, line by line.

    Raises
    ------
    AsyncfetchError
        A step did not do what it should.
    """
    events, traces = dest / "events", dest / "traces"
    for one in (events, traces):
        _clear(one)
    yield "an archive on this machine, which fails at 2 % of the requests"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.jsonl"
        with _archive(log) as environment:
            yield f"1. events of one data set, to {events}"
            _asyncfetch("fetch", *EVENTS, "-o", str(events), environment=environment)
            yield f"   {_summary(events)}"
            yield f"2. traces of all neurons, to {traces}, killed on the way"
            command = ("fetch", *TRACES, "-o", str(traces))
            options = ("--commit-seconds", COMMIT_SECONDS)
            _asyncfetch(
                *command, *options, environment={**environment, **KILL}, killed=True
            )
            kept = _targets(traces)
            asked_before = len(_log(log))
            yield f"   killed with {len(kept):,} items committed"
            yield "3. resumed"
            _asyncfetch("resume", str(traces), environment=environment)
            again = sum(target in kept for target in _log(log)[asked_before:])
            yield f"   {len(kept):,} items were kept, {again} of them asked again"
            yield f"   {_summary(traces)}"
    problems = verify(events) + verify(traces)
    if problems:
        raise DatasetError(f"verify found {problems[0].text} in {problems[0].where}")
    yield "4. verified: rows, items and parts agree in both"
    yield ""
    yield f"The data are in {events} and {traces}. To read them:"
    yield "   import pandas as pd"
    yield f'   events = pd.read_parquet("{events}")'
    yield '   print(events.groupby("predictor_name").amplitude.describe())'
    yield "The same of the real service, one predictor:"
    yield f"   asyncfetch fetch {' '.join(EVENTS)} predictor_name=speech -o speech"


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    if not folder.exists():
        return
    if urlsplit(open_dataset(folder).plan.base_url).hostname != "127.0.0.1":
        raise DatasetError(f"{folder} holds other data: name another directory")
    shutil.rmtree(folder)


@contextmanager
def _archive(log: Path) -> Iterator[dict[str, str]]:
    """The environment that leads clients to an archive of its own process."""
    command = [sys.executable, "-m", "asyncfetch", "simulate"]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*command, "--faults", FAULTS, "--log", str(log)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        environment: dict[str, str] = {}
        while len(environment) < 2:
            line = process.stdout.readline()
            if not line:
                raise AsyncfetchError("the archive did not start")
            name, _, url = line.removeprefix("export ").strip().partition("=")
            environment[name] = url
        yield environment
    finally:
        process.terminate()
        process.wait(10)


def _asyncfetch(*words: str, environment: dict[str, str], killed: bool = False) -> None:
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "asyncfetch", *words, "--quiet"],
        env={**os.environ, **environment},
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    if killed != (ended.returncode in {-9, 137}):
        raise AsyncfetchError(
            f"asyncfetch {' '.join(words)} ended with {ended.returncode}: "
            f"{ended.stderr.strip() or 'no message'}"
        )


def _summary(dest: Path) -> str:
    view = open_dataset(dest)
    state = view.state()
    counts = ", ".join(f"{count:,} {name}" for name, count in state.items.items())
    why = "".join(f" ({one.key}: {one.error})" for one in view.failed(1))
    return f"{counts}{why}; {state.rows:,} rows in {state.parts} parts"


def _targets(dest: Path) -> frozenset[str]:
    """Targets of the items that are committed and final."""
    items = open_dataset(dest).items
    pairs: Sequence[tuple[str, str]] = list(
        zip(items["url"].to_pylist(), items["outcome"].to_pylist(), strict=True)
    )
    return frozenset(_target(url) for url, outcome in pairs if outcome != "failed")


def _target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _log(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["target"] for line in lines]

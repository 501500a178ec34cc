"""Names to DataFrames, next to pyNS: time, round trips, requests, processor time.

    python -m benchmarks.bench_pyns [--python PYTHON] [--case NAME] [--quick] [--json]

PYTHON is one that has pyNS and pybids; without, an environment is made for it from the
package index. Both ask the same embedded archive, whose answers take 100 ms, for the
runs of one film that 50 subjects have seen. Its answers are made once before, so that
neither waits for that.

Where processor time is what is compared, either has one CPU. Two CPUs may be one core:
what runs on one then makes the same work take more time on the other, by half on some
machines, and the archive and the threads of asyncfetch are at work at once.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio

import asyncfetch
from asyncfetch import testing
from asyncfetch.services import neuroscout  # noqa: F401 - imports are not counted
from asyncfetch.testing import _neuroscout_data as data
from benchmarks._measure import asked_for, measured, medians, on_one_cpu, tell
from benchmarks._peers import environment, taken_by
from benchmarks._server import asked, started

DATASET, TASK, TASK_ID = "SherlockMerlin", "MerlinMovie", 4
SUBJECTS = 50
LATENCY = 0.1
NAMES = ["speech", "rms", "brightness", "numletters"]
importlib.import_module("anyio._backends._asyncio")  # anyio.run would load it later
importlib.import_module("scipy.signal")  # which sampling would load

CASES: Mapping[str, dict[str, Any]] = {
    "events of 50 runs x 4 predictors": {
        "what": "events", "names": NAMES, "scale": 1.0, "latency": LATENCY, "rounds": 1,
    },
    "design table of 50 runs x 2 predictors": {
        "what": "design", "names": ["speech", "rms"], "scale": 1.0, "latency": LATENCY,
        "rounds": 1,
    },
    "200 000 rows to a DataFrame, on one CPU": {
        "what": "events", "names": ["rms"], "scale": 6.67, "latency": 0.0,
        "rounds": 3,  # a fraction of a second each
        "one_cpu": True,
    },
}  # fmt: skip


def serve(scale: float, latency: float) -> None:
    """Run the archive with more subjects of one film, until it is told to end."""
    made = data._make_runs  # noqa: SLF001 - the one thing that is to be another

    def more() -> list[dict[str, Any]]:
        runs = made()
        like = next(run for run in runs if run["task"] == TASK_ID)
        there = sum(run["task"] == TASK_ID for run in runs)
        runs += [
            {**like, "id": 3000 + n, "subject": f"more{n}"}
            for n in range(SUBJECTS - there)
        ]
        return runs

    data._make_runs = more  # noqa: SLF001
    anyio.run(
        lambda: testing.run(
            port=0,
            seed=0,
            scale=scale,
            latency=latency,
            faults="",
            log=os.environ["BENCH_LOG"],
            on_ready=lambda archive: print(archive.neuroscout, flush=True),
        )
    )


def ours(url: str, what: str, names: list[str]) -> dict[str, float]:
    """The same with asyncfetch."""

    async def work() -> int:
        async with asyncfetch.Neuroscout(base_url=url) as api:
            scope = {"dataset_name": DATASET, "task_name": TASK}
            if what == "design":
                frame = await api.fetch_predictors(names, **scope)
            else:
                frame = await api.predictor_events.get(
                    predictor_name=names, output_type="df", **scope
                )
            # Not the frame: asyncio would write it out as text when the loop ends.
            return len(frame)

    return {"rows": anyio.run(work)}


def theirs(python: str, url: str, what: str, names: list[str]) -> dict[str, float]:
    """With pyNS."""
    given = {"url": url, "what": what, "names": names, "dataset": DATASET, "task": TASK}
    return taken_by(python, "_pyns_side.py", given)


def round_trips(lines: list[str], latency: float) -> dict[str, float]:
    """Requests of a log, and how many of them had to wait for another's answer."""
    times = sorted(json.loads(line)["t"] for line in lines)
    waves, begun = 0, -1.0
    for t in times:
        if t > begun + 0.9 * latency:
            waves, begun = waves + 1, t
    return {"requests": len(times), "round_trips": waves if latency else len(times)}


def compared(case: Mapping[str, Any], python: str) -> dict[str, Any]:
    """Figures of one case: medians of its rounds, in each of which we go three times.

    pyNS takes longer, so that one time says as much of it.
    """
    work = {name: case[name] for name in ("what", "names")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        scale, latency = case["scale"], case["latency"]
        code = f"from benchmarks.bench_pyns import serve; serve({scale}, {latency})"
        with started("-c", code, BENCH_LOG=str(log)) as said:
            url = next(said).strip()
            once = "benchmarks.bench_pyns:ours"
            measured(once, 1, url=url, **work)
            start = asked(log)
            measured(once, 1, url=url, **work)
            waited = round_trips(log.read_text().splitlines()[start:], latency)
            ours_of, theirs_of = [], []
            with on_one_cpu() if case.get("one_cpu") else nullcontext():
                for _ in range(case["rounds"]):
                    ours_of += [measured(once, 1, url=url, **work) for _ in range(3)]
                    theirs_of.append(theirs(python, url, **work))
    mine, found = medians(ours_of) | waited, medians(theirs_of)
    return {
        "ours": mine,
        "pyns": found,
        "time_ratio": found["wall"] / mine["wall"],
        "cpu_ratio": (found["cpu"] / found["rows"]) / (mine["cpu"] / mine["rows"]),
    }


def main() -> None:
    """Print two lines a case."""
    parser = asked_for(__doc__)
    parser.add_argument("--python", help="one that has pyNS and pybids")
    parser.add_argument("--case", default="", help="a part of the names of cases")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with environment(options.python, "pyns", "pybids") as python:
        for name, case in CASES.items():
            if options.case not in name:
                continue
            chosen = {**case, "scale": 0.05, "rounds": 1} if options.quick else case
            one = compared(chosen, python)
            results[name] = one
            if options.json:
                continue
            print(
                f"{name}: {one['time_ratio']:.1f} x less time, "
                f"{one['cpu_ratio']:.1f} x less CPU a row"
            )
            for who in ("ours", "pyns"):
                its = one[who]
                print(
                    f"  {who}: {its['wall']:.2f} s, {its['requests']:.0f} requests in "
                    f"{its['round_trips']:.0f} round trips, {its['rows']:.0f} rows, "
                    f"{1e6 * its['cpu'] / its['rows']:.2f} us CPU a row, "
                    f"peak {its['peak_mb']:.0f} MB"
                )
    tell(results, options)


if __name__ == "__main__":
    main()

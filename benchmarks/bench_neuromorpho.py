"""Neurons and traces, next to neuromorpholib and navis: time, requests, what is wrong.

    python -m benchmarks.bench_neuromorpho [--python PYTHON] [--case NAME]
                                           [--quick] [--json] [--versions]

PYTHON is one that has both; without, an environment is made for them from the package
index. All ask the same embedded archive, whose answers take 50 ms, by the query that
each of them can put; asyncfetch over 16 connections, the others as they are (one after
the other, and four threads). What came is compared with what the archive holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import pandas as pd
import pyarrow as pa

import asyncfetch
from asyncfetch._model import Limits
from asyncfetch.services import neuromorpho  # noqa: F401 - imports are not counted
from asyncfetch.services._table import to_pandas
from asyncfetch.testing._neuromorpho import NeuroMorphoService
from benchmarks._measure import asked_for, measured, tell
from benchmarks._peers import environment, taken_by
from benchmarks._server import open_archive

LATENCY = 0.05
CONNECTIONS = 16
OTHERS = ("neuromorpholib", "navis")
# Later source archives of neuromorpholib lack a file, and cannot be installed.
PACKAGES = ("neuromorpholib==0.1.0", "navis", "requests")

CASES: Mapping[str, dict[str, Any]] = {
    "traces of a species": {"what": "traces", "species": "rat", "scale": 1.0},
    "records of 20 000 neurons": {"what": "records", "species": "*", "scale": 20.0},
}


def ours(url: str, what: str, species: str) -> dict[str, float]:
    """The same with asyncfetch, to one DataFrame."""

    async def work() -> tuple[pd.DataFrame, int]:
        async with asyncfetch.NeuroMorpho(
            base_url=url, limits=Limits(concurrency=CONNECTIONS)
        ) as api:
            table = api.traces if what == "traces" else api.neurons
            # All of them is no filter here; neuromorpholib has to name one.
            filters = {} if species == "*" else {"species": species}
            async with table.stream(**filters, on_error="report") as stream:
                frames = [
                    to_pandas(pa.Table.from_batches([batch])) async for batch in stream
                ]
            return pd.concat(frames), stream.report().requests

    frame, requests = anyio.run(work)
    found = frame["neuron_id"].nunique()
    is_traces = what == "traces"
    return {
        "neurons": found,
        "traces": found if is_traces else 0,
        "rows": len(frame) if is_traces else 0,
        "twice": 0 if is_traces else len(frame) - found,
        "requests": requests,
    }


def theirs(python: str, who: str, url: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """With one of the others."""
    given = {"url": url, "who": who, "what": case["what"], "species": case["species"]}
    return taken_by(python, "_neuromorpho_side.py", given)


def truth(case: Mapping[str, Any]) -> dict[str, int]:
    """What the archive holds of a case."""
    service = NeuroMorphoService(seed=0, scale=case["scale"])
    wanted = [
        one["neuron_id"]
        for one in service.neurons()
        if case["species"] in {"*", one["species"]}
    ]
    counts = {"neurons": len(wanted), "traces": 0, "rows": 0}
    if case["what"] == "traces":
        for neuron in wanted:
            lines = (service.swc(neuron) or b"").decode("latin-1").splitlines()
            rows = sum(line.strip()[:1] not in {"", "#", "ï"} for line in lines)
            counts["rows"] += rows
            counts["traces"] += rows > 0
    return counts


def wrong(found: Mapping[str, Any], held: Mapping[str, int]) -> str:
    """What somebody got wrong, in a line."""
    said = [
        f"{held[name] - found[name]:,} of {held[name]:,} {name} not there"
        for name in ("neurons", "traces", "rows")
        if found[name] < held[name] and not (name == "neurons" and held["traces"])
    ]
    if found.get("twice"):
        said.append(f"{found['twice']:,} neurons twice")
    return ", ".join(said) or "nothing"


def compared(case: Mapping[str, Any], python: str, repeats: int) -> dict[str, Any]:
    """Figures of one case."""
    held = truth(case)
    work = {name: case[name] for name in ("what", "species")}
    with open_archive(scale=case["scale"], latency=LATENCY) as urls:
        url = urls["neuromorpho"]
        measured("benchmarks.bench_neuromorpho:ours", 1, url=url, **work)  # warms it
        mine = measured("benchmarks.bench_neuromorpho:ours", repeats, url=url, **work)
        result: dict[str, Any] = {"held": held, "ours": mine}
        for who in OTHERS:
            found = theirs(python, who, url, case)
            result[who] = {
                **found,
                "time_ratio": found["wall"] / mine["wall"],
                "requests_ratio": found["requests"] / mine["requests"],
            }
    return result


def main() -> None:
    """Print a few lines a case."""
    parser = asked_for(__doc__)
    parser.add_argument("--python", help="one that has neuromorpholib and navis")
    parser.add_argument("--case", default="", help="a part of the names of cases")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with environment(options.python, *PACKAGES) as python:
        for name, case in CASES.items():
            if options.case not in name:
                continue
            chosen = {**case, "scale": 0.06} if options.quick else case
            one = compared(chosen, python, 1 if options.quick else 3)
            results[name] = one
            if options.json:
                continue
            print(f"{name}: {one['held']['neurons']:,} neurons")
            for who in ("ours", *OTHERS):
                its = one[who]
                times = f", {its['time_ratio']:.1f} x our time" if who != "ours" else ""
                print(
                    f"  {who}: {its['wall']:.2f} s{times}, {its['requests']:.0f} "
                    f"requests, {its['cpu']:.2f} s CPU, peak {its['peak_mb']:.0f} MB; "
                    f"wrong: {wrong(its, one['held'])}"
                )
    tell(results, options)


if __name__ == "__main__":
    main()

"""Alyx's datasets and data files, next to ONE: time, requests, processor time.

    python -m benchmarks.bench_one [--python PYTHON] [--case NAME] [--quick] [--json]

PYTHON is one that has ONE-api; without, an environment is made for it from the package
index. Both ask the same embedded archive; at scale 13 it has about as many datasets as
the public server. For each file ONE loads the certificates of the system anew, which
takes more than the file: over https always, as the public server is, and over http,
as here, from Python 3.12 on. So PYTHON should be one of these.

Let a minute pass after whatever has removed thousands of files, such as another run of
this: ext4 takes five times as long to make one until then (0.4 ms, 0.07 ms).
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

import asyncfetch
from asyncfetch.services import alyx  # noqa: F401 - imports are not counted
from asyncfetch.testing._alyx import PUBLIC
from benchmarks._measure import asked_for, measured, tell
from benchmarks._peers import environment, taken_by
from benchmarks._server import asked, open_archive

importlib.import_module("anyio._backends._asyncio")  # anyio.run would load it later

CASES: Mapping[str, dict[str, Any]] = {
    "all datasets, server-bound": {
        "what": "datasets", "files": 0, "scale": 13.0, "latency": 0.0,
    },
    "all datasets, 100 ms latency": {
        "what": "datasets", "files": 0, "scale": 13.0, "latency": 0.1,
    },
    "300 small files": {
        "what": "files", "files": 300, "scale": 1.0, "latency": 0.0,
    },
}  # fmt: skip


def ours(url: str, what: str, files: int, folder: str) -> dict[str, float]:
    """The same with asyncfetch; whoever made *folder* removes what is left in it."""

    async def work() -> list[str]:
        async with asyncfetch.Alyx(url, *PUBLIC) as one:
            if what == "datasets":
                return [row["url"] for row in await one.rest("datasets", "list")]
            records = await one.rest("datasets", "list", limit=files)
            report = await one.download(records, tempfile.mkdtemp(dir=folder))
            report.raise_for_failed()
            return [str(path) for path in report.paths]

    found = anyio.run(work)
    return {"rows": len(found), "distinct": len(set(found))}


def rows_of(url: str) -> dict[str, float]:
    """All file records in batches, for the peak of memory."""

    async def work() -> int:
        async with (
            asyncfetch.Alyx(url, *PUBLIC) as one,
            one.files.stream() as batches,
        ):
            return sum([batch.num_rows async for batch in batches])

    return {"rows": anyio.run(work)}


def theirs(python: str, url: str, what: str, files: int) -> dict[str, float]:
    """With ONE."""
    account = {"user": PUBLIC[0], "password": PUBLIC[1]}
    given = {"url": url, "what": what, "files": files, **account}
    return taken_by(python, "_one_side.py", given)


def compared(case: Mapping[str, Any], python: str, repeats: int) -> dict[str, Any]:
    """Figures of one case."""
    work = {name: case[name] for name in ("what", "files")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        scale, latency = case["scale"], case["latency"]
        with open_archive(scale=scale, latency=latency, log=log) as urls:
            url = urls["alyx"]
            given = {"url": url, "folder": folder, **work}
            measured("benchmarks.bench_one:ours", 1, **given)  # rows are made
            marks = [asked(log)]
            mine = measured("benchmarks.bench_one:ours", repeats, **given)
            marks.append(asked(log))
            found = theirs(python, url, **work)
            marks.append(asked(log))
    mine["requests"] = (marks[1] - marks[0]) / repeats
    found["requests"] = marks[2] - marks[1]
    return {
        "ours": mine,
        "one": found,
        "time_ratio": found["wall"] / mine["wall"],
        "cpu_ratio": found["cpu"] / mine["cpu"],
    }


def memory(repeats: int, scale: float) -> dict[str, Any]:
    """Peak memory of a stream of file records, and of ten times as many."""
    found = {}
    for name, size in (("small", scale), ("large", 10 * scale)):
        with open_archive(scale=size) as urls:
            url = urls["alyx"]
            found[name] = measured("benchmarks.bench_one:rows_of", repeats, url=url)
    ratio = found["large"]["peak_mb"] / found["small"]["peak_mb"]
    return {**found, "peak_ratio": ratio}


def main() -> None:
    """Print some lines a case."""
    parser = asked_for(__doc__)
    parser.add_argument("--python", help="one that has ONE-api")
    parser.add_argument("--case", default="", help="a part of the names of cases")
    options = parser.parse_args()
    repeats = 1 if options.quick else 3
    results: dict[str, Any] = {}
    with environment(options.python, "ONE-api") as python:
        for name, case in CASES.items():
            if options.case not in name:
                continue
            small = {"scale": 0.2, "files": min(case["files"], 30)}
            chosen = {**case, **small} if options.quick else case
            one = results[name] = compared(chosen, python, repeats)
            if options.json:
                continue
            print(
                f"{name}: {one['time_ratio']:.1f} x less time, "
                f"{one['cpu_ratio']:.1f} x less CPU"
            )
            for who in ("ours", "one"):
                its = one[who]
                print(
                    f"  {who}: {its['wall']:.2f} s, {its['requests']:.0f} requests, "
                    f"{its['rows']:.0f} rows, {its['distinct']:.0f} distinct, "
                    f"CPU {its['cpu']:.2f} s, peak {its['peak_mb']:.0f} MB"
                )
    if options.case in "memory":
        name = "memory"
        one = results[name] = memory(repeats, 0.2 if options.quick else 1.3)
        if not options.json:
            peaks = [one[size]["peak_mb"] for size in ("small", "large")]
            rows = [one[size]["rows"] for size in ("small", "large")]
            print(f"{name}: peak {peaks} MB for {rows} rows, {one['peak_ratio']:.2f}")
    tell(results, options)


if __name__ == "__main__":
    main()

"""Images of NeuroVault, next to nilearn's fetcher: files a second, requests.

    python -m benchmarks.bench_neurovault [--python PYTHON] [--quick] [--json]

PYTHON is one that has nilearn; without, an environment is made for it from the package
index. Both fetch every image of the same embedded archive, whose answers take 100 ms,
asyncfetch over 32 connections. Cut files count for nilearn, too.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import anyio

import asyncfetch
from asyncfetch.services import neurovault  # noqa: F401 - imports are not counted
from benchmarks._measure import asked_for, measured, tell
from benchmarks._peers import environment, taken_by
from benchmarks._server import asked, started

importlib.import_module("anyio._backends._asyncio")  # anyio.run would load it later

LATENCY = 0.1
CONNECTIONS = 32
SCALE = 5.0  # 300 collections


def ours(url: str) -> dict[str, float]:
    """Every file that can be had, into a dataset."""

    async def work() -> int:
        limits = asyncfetch.Limits(concurrency=CONNECTIONS)
        with tempfile.TemporaryDirectory() as folder:
            async with asyncfetch.NeuroVault(base_url=url, limits=limits) as api:
                plan = api.files.plan()
                report = await asyncfetch.download(plan, f"{folder}/files")
        return report.rows

    return {"files": anyio.run(work)}


def compared(python: str, scale: float, repeats: int) -> dict[str, Any]:
    """Figures of both."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        words = ["-m", "benchmarks._healthy_vault", str(scale), str(LATENCY), str(log)]
        with started(*words) as said:
            url = next(said).strip()
            marks = [asked(log)]
            mine = measured("benchmarks.bench_neurovault:ours", repeats, url=url)
            marks.append(asked(log))
            found = taken_by(python, "_nilearn_side.py", {"url": url})
            marks.append(asked(log))
    mine["requests"] = (marks[1] - marks[0]) / repeats
    found["requests"] = marks[2] - marks[1]
    rates = [its["files"] / its["wall"] for its in (mine, found)]
    return {"ours": mine, "nilearn": found, "rate_ratio": rates[0] / rates[1]}


def main() -> None:
    """Print a line for each side."""
    parser = asked_for(__doc__)
    parser.add_argument("--python", help="one that has nilearn")
    options = parser.parse_args()
    with environment(options.python, "nilearn") as python:
        scale = 0.3 if options.quick else SCALE
        found = compared(python, scale, 1 if options.quick else 3)
    if not options.json:
        print(f"{found['rate_ratio']:.1f} x as many files a second")
        for who in ("ours", "nilearn"):
            its = found[who]
            print(
                f"  {who}: {its['files']:.0f} files in {its['wall']:.1f} s, "
                f"{its['requests']:.0f} requests, CPU {its['cpu']:.1f} s, "
                f"peak {its['peak_mb']:.0f} MB"
            )
    tell({"files": found}, options)


if __name__ == "__main__":
    main()

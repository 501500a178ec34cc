"""Traces, HTTP to Parquet: next to a bare HTTP loop, and to a bare CSV reader.

    python -m benchmarks.bench_swc [--quick] [--json] [--versions]

The bare loop asks for the same files with the same HTTP library over as many
connections, and throws the bytes away. The script is that loop with two more lines, as
many would write it: each file through ``pandas.read_csv``, and the rows into one
Parquet file. It keeps no journal, proves nothing, and leaves out what is not plain.
It is no floor: other readers are faster than pandas.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from yarl import URL

import asyncfetch
from asyncfetch import _engine
from asyncfetch._model import Item, Limits
from asyncfetch.services import neuromorpho  # noqa: F401 - imports are not counted
from asyncfetch.swc import read_swc
from benchmarks._measure import asked_for, measured, tell
from benchmarks._server import open_archive

LATENCY = 0.020  # seconds before each answer
CONNECTIONS = (16, 32)
ROWS_A_GROUP = 122_880  # about what asyncfetch writes
SCHEMA = pa.schema(
    {
        "node_id": pa.int64(),
        "type": pa.int64(),
        "x": pa.float64(),
        "y": pa.float64(),
        "z": pa.float64(),
        "radius": pa.float64(),
        "parent_id": pa.int64(),
    }
)


def ours(url: str, targets: list[str], connections: int) -> dict[str, float]:
    """Download traces with asyncfetch: parsed, checked, committed."""

    async def work() -> Any:
        async with asyncfetch.NeuroMorpho(
            base_url=url, limits=Limits(concurrency=connections)
        ) as api:
            plan = api.traces.plan(limit=len(targets))
            with tempfile.TemporaryDirectory() as folder:
                return await asyncfetch.download(plan, Path(folder) / "traces")

    report = anyio.run(work)
    # The archive lacks a few files, and one is empty: those items end all the same.
    assert sum(report.items.values()) == len(targets), report.items
    return {"files": len(targets), "rows": report.rows}


def bare(url: str, targets: list[str], connections: int) -> dict[str, float]:
    """Ask for the same files and throw them away."""
    return _asked(url, targets, connections, lambda *_: None)


def script(url: str, targets: list[str], connections: int) -> dict[str, float]:
    """Ask for the same files, read them with pandas, and write one Parquet file."""
    frames: list[pd.DataFrame] = []
    rows = 0

    def take(status: int, body: bytes) -> None:
        if status != 200 or not _is_plain(body):
            return
        frames.append(_with_pandas(body))
        if sum(map(len, frames)) >= ROWS_A_GROUP:
            write()

    def write() -> None:
        nonlocal rows
        rows += sum(map(len, frames))
        table = pa.Table.from_pandas(pd.concat(frames), SCHEMA, preserve_index=False)
        writer.write_table(table)
        frames.clear()

    with (
        tempfile.TemporaryDirectory() as folder,
        pq.ParquetWriter(f"{folder}/t.parquet", SCHEMA, compression="zstd") as writer,
    ):
        counts = _asked(url, targets, connections, take)
        write()
    return {**counts, "rows": rows}


def _asked(
    url: str,
    targets: list[str],
    connections: int,
    take: Callable[[int, bytes], None],
) -> dict[str, float]:
    todo = iter(targets)

    async def loop(session: aiohttp.ClientSession) -> None:
        for target in todo:
            async with session.get(URL(url + target, encoded=True)) as answer:
                take(answer.status, await answer.read())

    async def work() -> None:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=connections)
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(connections):
                group.create_task(loop(session))

    asyncio.run(work())
    return {"files": len(targets)}


def parsing(url: str, targets: list[str], rounds: int) -> dict[str, float]:
    """Microseconds a file: our reader with its checks, and pandas without any."""

    async def read() -> list[bytes]:
        async with aiohttp.ClientSession() as session:
            found = []
            for target in targets:
                async with session.get(URL(url + target, encoded=True)) as answer:
                    body = await answer.read()
                    if answer.status == 200 and body:
                        found.append(body)
            return found

    files = asyncio.run(read())

    def best(parse: Any) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            for data in files:
                parse(data)
            times.append(time.perf_counter() - start)
        return 1e6 * min(times) / len(files)

    files = [data for data in files if _is_plain(data)]
    return {"read_swc_us": best(read_swc), "pandas_us": best(_with_pandas)}


def _with_pandas(data: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(data), sep=" ", comment="#", names=SCHEMA.names)


def _is_plain(data: bytes) -> bool:
    # pandas takes a leading blank for an empty first field, and stumbles over text that
    # is not UTF-8; those files are left out for both.
    return bool(data) and data.isascii() and b"\n 1 " not in data


def targets_of(url: str, count: int) -> list[str]:
    """The first *count* traces of the archive."""

    async def work() -> list[str]:
        async with asyncfetch.NeuroMorpho(base_url=url) as api:
            items: list[Item] = []
            await _engine.survey(api.traces.plan(limit=count), visit=items.append)
            return [item.request.target for item in items]

    return anyio.run(work)


def main() -> None:
    """Print one line per number of connections, and one for parsing."""
    options = asked_for(__doc__).parse_args()
    repeats = 1 if options.quick else 3
    count = 60 if options.quick else 2000
    results: dict[str, Any] = {}
    with open_archive(scale=count / 1000, latency=LATENCY) as urls:
        url = urls["neuromorpho"]
        targets = targets_of(url, count)
        measured(
            "benchmarks.bench_swc:bare", 1, url=url, targets=targets, connections=16
        )
        for connections in CONNECTIONS:
            work = {"url": url, "targets": targets, "connections": connections}
            base = measured("benchmarks.bench_swc:bare", repeats, **work)
            by_hand = measured("benchmarks.bench_swc:script", repeats, **work)
            mine = measured("benchmarks.bench_swc:ours", repeats, **work)
            one = results[f"{connections} connections"] = {
                "requests_ratio": base["wall"] / mine["wall"],
                "requests_per_second": count / mine["wall"],
                "cpu_ratio": mine["cpu"] / by_hand["cpu"],
                "cpu_ms_per_file": 1e3 * mine["cpu"] / count,
                "script_cpu_ms_per_file": 1e3 * by_hand["cpu"] / count,
                "bare_cpu_ms_per_file": 1e3 * base["cpu"] / count,
                "peak_mb": mine["peak_mb"],
            }
            if not options.json:
                print(
                    f"traces, {connections} connections: "
                    f"{one['requests_per_second']:.0f} files/s, "
                    f"{100 * one['requests_ratio']:.0f} % of the bare loop's; "
                    f"{one['cpu_ms_per_file']:.2f} ms CPU a file, "
                    f"{one['cpu_ratio']:.2f} x the script's "
                    f"({one['script_cpu_ms_per_file']:.2f}; "
                    f"bare {one['bare_cpu_ms_per_file']:.2f}); "
                    f"peak {one['peak_mb']:.0f} MB"
                )
        parsed = measured(
            "benchmarks.bench_swc:parsing",
            1,
            url=url,
            targets=targets[:50],
            rounds=3 if options.quick else 20,
        )
        parsed["ratio"] = parsed["read_swc_us"] / parsed["pandas_us"]
        results["parsing"] = parsed
        if not options.json:
            print(
                f"parsing with graph checks: {parsed['read_swc_us']:.0f} us a file, "
                f"{parsed['ratio']:.2f} x pandas.read_csv's "
                f"({parsed['pandas_us']:.0f} us)"
            )
    tell(results, options)


if __name__ == "__main__":
    main()

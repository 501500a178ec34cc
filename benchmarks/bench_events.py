"""Predictor events, HTTP to Parquet: processor time next to the least that it can take.

    python -m benchmarks.bench_events [--quick] [--json] [--versions]

The floor does only what no program can leave out: it reads the same bodies with the
same HTTP library, inflates them in slices, decodes the slices into structs, makes
columns of them and writes the five columns that the server sends, compressed alike. It
keeps no journal, proves nothing, sorts nothing, joins no names.
"""

from __future__ import annotations

import asyncio
import tempfile
import zlib
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from yarl import URL

import asyncfetch
from asyncfetch import _engine
from asyncfetch._model import Item, Limits
from asyncfetch.services import neuroscout  # noqa: F401 - imports are not counted
from benchmarks._measure import asked_for, measured, tell
from benchmarks._server import open_archive

# Two body sizes, by events a run; all runs of a task fit into one item.
SIZES = {
    "3000 rows": {"scale": 0.41, "predictors": 30},
    "200000 rows": {"scale": 38.0, "predictors": 6},
}
CONNECTIONS = 4
RUNS = {"dataset_name": "SherlockMerlin", "task_name": "SherlockMovie"}


class Event(msgspec.Struct, gc=False):
    """The five fields that the server sends."""

    duration: float
    onset: float
    predictor_id: int
    run_id: int
    value: str


def ours(url: str, names: list[str], targets: list[str]) -> dict[str, float]:
    """Download with asyncfetch: all columns, proved, in order, committed."""

    async def work() -> Any:
        async with asyncfetch.Neuroscout(
            base_url=url, limits=Limits(concurrency=CONNECTIONS)
        ) as api:
            plan = api.predictor_events.plan(**RUNS, predictor_name=names)
            with tempfile.TemporaryDirectory() as folder:
                return await asyncfetch.download(plan, Path(folder) / "events")

    report = anyio.run(work)
    assert not report.failed
    assert report.items == {"ok": len(targets)}, (report.items, len(targets))
    return {"rows": report.rows, "bytes": report.bytes}


def floor(url: str, names: list[str], targets: list[str]) -> dict[str, float]:
    """Read, inflate, decode and write the same bodies, and nothing else."""
    del names
    rows = size = 0
    decoder = msgspec.json.Decoder(list[Event])
    todo = iter(targets)

    async def work(folder: str) -> None:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(CONNECTIONS):
                group.create_task(loop(session, folder))

    async def loop(session: aiohttp.ClientSession, folder: str) -> None:
        nonlocal rows, size
        for target in todo:
            async with session.get(
                URL(url + target, encoded=True), headers={"Accept-Encoding": "gzip"}
            ) as answer:
                body = await answer.read()
            size += len(body)
            table = await asyncio.to_thread(columns, body)
            rows += len(table)
            await asyncio.to_thread(
                pq.write_table,
                table,
                f"{folder}/{abs(hash(target))}.parquet",
                compression="zstd",
            )

    def columns(body: bytes) -> pa.Table:
        inflate = zlib.decompressobj(31)
        pieces: list[pa.Table] = []
        rest = b""
        data = body
        while data:
            rest += inflate.decompress(data, 256 * 1024)
            data = inflate.unconsumed_tail
            cut = rest.rfind(b"},{")
            if data and cut > 0:
                pieces.append(table(decoder.decode(b"[" + rest[1 : cut + 1] + b"]")))
                rest = b"," + rest[cut + 2 :]
        pieces.append(table(decoder.decode(b"[" + rest[1:])))
        return pa.concat_tables(pieces)

    def table(events: list[Event]) -> pa.Table:
        n = len(events)
        return pa.table(
            {
                "duration": np.fromiter((e.duration for e in events), float, n),
                "onset": np.fromiter((e.onset for e in events), float, n),
                "predictor_id": np.fromiter(
                    (e.predictor_id for e in events), np.int64, n
                ),
                "run_id": np.fromiter((e.run_id for e in events), np.int64, n),
                "value": [e.value for e in events],
            }
        )

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(folder))
    return {"rows": rows, "bytes": size}


def plan_of(url: str, predictors: int) -> tuple[list[str], list[str]]:
    """Names of extracted predictors, and the targets of the items they come to."""

    async def work() -> tuple[list[str], list[str]]:
        async with asyncfetch.Neuroscout(base_url=url) as api:
            found = await api.predictors.get(**RUNS)
            names = sorted(
                {one["name"] for one in found if "extracted_feature" in one}
            )[:predictors]
            plan = api.predictor_events.plan(**RUNS, predictor_name=names)
            items: list[Item] = []
            await _engine.survey(plan, visit=items.append)
            return names, [item.request.target for item in items]

    return anyio.run(work)


def main() -> None:
    """Print one line per body size."""
    options = asked_for(__doc__).parse_args()
    repeats = 1 if options.quick else 3
    results: dict[str, Any] = {}
    for size, setup in SIZES.items():
        scale = setup["scale"] / 20 if options.quick else setup["scale"]
        with open_archive(scale=scale) as urls:
            url = urls["neuroscout"]
            names, targets = plan_of(url, int(setup["predictors"]))
            work = {"url": url, "names": names, "targets": targets}
            measured("benchmarks.bench_events:floor", 1, **work)  # warms the server
            base = measured("benchmarks.bench_events:floor", repeats, **work)
            mine = measured("benchmarks.bench_events:ours", repeats, **work)
        assert mine["rows"] == base["rows"]
        results[size] = {
            "rows": mine["rows"],
            "rows_per_body": mine["rows"] / len(targets),
            "cpu_ns_per_row": 1e9 * mine["cpu"] / mine["rows"],
            "floor_ns_per_row": 1e9 * base["cpu"] / base["rows"],
            "cpu_ratio": mine["cpu"] / base["cpu"],
            "wall_ratio": mine["wall"] / base["wall"],
            "peak_mb": mine["peak_mb"],
        }
        if not options.json:
            one = results[size]
            print(
                f"events, {one['rows_per_body']:,.0f} rows a body: "
                f"{one['cpu_ns_per_row']:.0f} ns CPU a row, "
                f"{one['cpu_ratio']:.2f} x the floor's "
                f"({one['floor_ns_per_row']:.0f} ns); "
                f"time {one['wall_ratio']:.2f} x; peak {one['peak_mb']:.0f} MB"
            )
    tell(results, options)


if __name__ == "__main__":
    main()

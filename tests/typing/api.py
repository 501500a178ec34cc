"""Never run: mypy checks that this is how users may write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

import asyncfetch
from asyncfetch.swc import Morphology, read_swc, write_swc


async def rows() -> None:
    """Await rows in three forms."""
    limits = asyncfetch.Limits(rate=2.0, concurrency=4)
    async with asyncfetch.Neuroscout(limits=limits, contact="me@lab.example") as api:
        frame: pd.DataFrame = await api.predictor_events.get(
            predictor_name=["speech"], dataset_name="SherlockMerlin", output_type="df"
        )
        table: pa.Table = await api.runs.get(dataset_id=5, output_type="arrow")
        records: Any = await api.datasets.get(name="SherlockMerlin", limit=3)
        one: Any = await api.datasets.get(5)
    _ = frame, table, records, one


async def batches() -> int:
    """Stream record batches."""
    count = 0
    async with asyncfetch.NeuroMorpho.from_env() as api:
        async with api.traces.stream(archive="Siegert", on_error="report") as stream:
            async for batch in stream:
                count += batch.num_rows
        failed: list[str] = [item.key for item in stream.failed]
    return count + len(failed)


async def datasets(dest: Path) -> asyncfetch.Report:
    """Fill a dataset and look at it."""
    api = asyncfetch.Neuroscout()
    plan = api.table("predictor-events").plan(dataset_name="SherlockMerlin", limit=5)
    try:
        report = await asyncfetch.download(plan, dest, progress=True)
        report.raise_for_failed()
    except asyncfetch.ItemError as error:
        print(error.key, error.cause, error.report)
        raise
    finally:
        await api.aclose()
    view: asyncfetch.View = asyncfetch.open_dataset(dest)
    print(view.plan.table, view.state().rows)
    return report


def on_an_object_store() -> int:
    """Name a place on an object store where a directory could be."""
    place = asyncfetch.ObjectStore("s3://lab/events", endpoint_url="http://localhost:9")
    return asyncfetch.compact(place).rows + asyncfetch.open_dataset(place).state().rows


async def neurons() -> Morphology:
    """Ask for single neurons and their traces."""
    async with asyncfetch.NeuroMorpho(accept_fewer=True) as api:
        record: dict[str, Any] = await api.neuron("cnic_001")
        url: str = api.trace_url(record, version="Source-Version")
        counts: dict[str, int] = await api.partition("species")
        values: list[str] = await api.field_values("archive")
        one = await api.trace(1)
    frame: pd.DataFrame = one.to_pandas()
    data: bytes = write_swc(one, "a.swc", header={"CREATURE": "rat"})
    print(url, counts, values, len(frame), len(data))
    return one


async def lists(dest: Path) -> int:
    """Any REST API: single calls, and lists of it."""
    auth = asyncfetch.Bearer("a token")
    async with asyncfetch.Rest("https://host.example/v1", auth) as api:
        reply = await api.put("/lights/1", json={"power": "on"})
        table = api.table("lights", records="data", key="id", paging="page:size=n")
        frame: pd.DataFrame = await table.get(output_type="df", color="red")
        typed = api.table("lights", schema={"id": int, "power": "string"})
        report = await asyncfetch.download(typed.plan(limit=5, color="red"), dest)
    return reply.status_code + len(frame) + report.rows


def trace(path: Path) -> Morphology:
    """Read a trace."""
    morphology = read_swc(path, strict=True)
    print(morphology.n_roots, morphology.codes)
    return morphology

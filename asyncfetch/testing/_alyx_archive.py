"""Alyx's own tables of sessions and datasets, in one archive."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

from asyncfetch.testing._alyx_data import QC, AlyxData
from asyncfetch.testing._alyx_records import names

Rows = list[dict[str, Any]]


def zip_rows(data: AlyxData, tag: str | None) -> Mapping[str, Rows]:
    """Rows of both tables; of a release those that have its tag."""
    chosen = [
        row
        for row in data.tables["datasets"]
        if row["file_records"] and (tag is None or tag in names(row["tags"]))
    ]
    of = {row["session"]["id"] for row in chosen}
    sessions = [
        {
            "lab": one["lab"]["name"],
            "subject": one["subject"]["nickname"],
            "date": one["start_time"][:10],
            "number": one["number"] or 0,
            "task_protocol": one["task_protocol"],
            "projects": ",".join(names(one["projects"])),
            "id": one["id"],
        }
        for one in data.tables["sessions"]
        if tag is None or one["id"] in of
    ]
    datasets = [
        {
            "file_size": one["file_size"],
            "hash": one["hash"],
            "default_revision": one["default_dataset"],
            "qc": QC[one["qc"]],
            "exists": True,
            "rel_path": one["file_records"][0]["relative_path"].split("/", 3)[3],
            "eid": one["session"]["id"],
            "id": one["id"],
        }
        for one in chosen
    ]
    return {"sessions": sessions, "datasets": datasets}


def zipped(tables: Mapping[str, Rows]) -> bytes:
    """The archive of tables."""
    import pyarrow as pa  # noqa: PLC0415 - slow to load, and seldom needed
    import pyarrow.parquet as pq  # noqa: PLC0415

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, rows in tables.items():
            table = pa.Table.from_pylist(rows)
            if name == "sessions":
                at = table.schema.get_field_index("date")
                table = table.set_column(at, "date", table["date"].cast(pa.date32()))
            out = io.BytesIO()
            pq.write_table(table, out)
            file.writestr(f"{name}.pqt", out.getvalue())
        file.writestr("cache_info.json", "{}")
    return made.getvalue()

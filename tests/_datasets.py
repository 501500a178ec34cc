"""A small made-up service for the tests of datasets, and an engine to fetch it with.

Run as a program (``python _datasets.py DEST``) it fetches the service into a dataset,
or compacts one (``python _datasets.py DEST compact``); the tests of crashes kill it on
the way.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa

from asyncfetch._compact import compact
from asyncfetch._dataset import View, Writer
from asyncfetch._ledger import PlanRecord, schema_id
from asyncfetch._model import (
    Block,
    FileWish,
    Item,
    ItemResult,
    Kept,
    Outcome,
    PlannedItem,
    Request,
)
from asyncfetch.errors import ResponseError

JSON = pa.json_(pa.string())
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("number", pa.int32()),
        pa.field("onset", pa.float64(), metadata={"unit": "s"}),
        pa.field("extra", JSON),
    ]
)
RECORD = PlanRecord(
    service="made-up",
    base_url="https://example.org/api",
    table="things",
    filters={"name": ["a", "b"], "run": 7},
    limit=None,
    schema_id=schema_id(SCHEMA),
    version="1.2.3",
)

# Ten items in three blocks. The third leads to two more, one of these to another.
ROOTS = 10
FOLLOW_UPS = {"2": ("2a", "2b"), "2a": ("2aa",), "7": ("7a",)}
BLOCKS = ((0, 4), (4, 8), (8, ROOTS))
KEYS = frozenset([*map(str, range(ROOTS)), "2a", "2b", "2aa", "7a"])
MISSING = frozenset({"4"})


def item(key: str) -> Item:
    request = Request(target=f"/{key}", file=FileWish(path=f"some/{key}.txt"))
    return Item(key=key, request=request, context={"of": key})


def block(start: int, stop: int, *, last: bool = False) -> Block:
    items = tuple(item(str(n)) for n in range(start, stop))
    return Block(items, None if last else stop)


def rows_of(key: str) -> list[tuple[int, str]]:
    """Rows that the service has for an item: a different number of them for each."""
    first = 100 * int(key, 16)
    return [(first + n, key) for n in range(int(key[0]) % 4 + 1)]


def batch_of(
    rows: Iterable[tuple[int, str]], *, encoded: bool = True
) -> pa.RecordBatch:
    """Rows in the table's columns, the text dictionary-encoded as decoders send it."""
    rows = list(rows)
    keys = pa.array([key for _, key in rows], pa.string())
    return pa.RecordBatch.from_arrays(
        [
            pa.array([number for number, _ in rows], pa.int64()),
            keys.dictionary_encode() if encoded else keys,
            pa.array([None if n % 2 else n for n, _ in rows], pa.int32()),
            pa.array([n / 8 for n, _ in rows], pa.float64()),
            pa.ExtensionArray.from_storage(
                JSON, pa.array([json.dumps({"k": key}) for _, key in rows], pa.string())
            ),
        ],
        names=SCHEMA.names,
    )


def result_of(planned: PlannedItem, **changes: Any) -> ItemResult:
    """What fetching an item gives."""
    key = planned.item.key
    if "batches" not in changes:
        changes["batches"] = () if key in MISSING else (batch_of(rows_of(key)),)
    result = ItemResult(
        ordinal=planned.ordinal,
        key=key,
        url=f"https://example.org/api/{key}",
        outcome=Outcome.OK,
        follow_up=tuple(map(item, FOLLOW_UPS.get(key, ()))),
        http_status=200,
        bytes=1000,
        sha256="0" * 64,
        fetched_at=datetime(2026, 1, 1, tzinfo=UTC),
        detail={"header": key},
    )
    if key in MISSING:
        result = replace(result, outcome=Outcome.MISSING, http_status=404, detail={})
    elif planned.item.request.file is not None:
        result = replace(result, **stored(planned.item.request.file.path, key))
    return replace(result, **changes)


def content_of(key: str) -> bytes:
    return f"the file of {key}".encode()


def stored(path: str, key: str) -> dict[str, Any]:
    """What a result says of a file that is to be stored."""
    data = content_of(key)
    sha256 = hashlib.sha256(data).hexdigest()
    return {"bytes": len(data), "sha256": sha256, "kept": Kept(path=path, data=data)}


def failure_of(
    planned: PlannedItem, text: str = "503 for the fifth time"
) -> ItemResult:
    return result_of(
        planned,
        outcome=Outcome.FAILED,
        batches=(),
        follow_up=(),
        kept=None,
        error=ResponseError(text, status=503),
        detail={},
    )


def flat(blocks: Iterable[list[PlannedItem]]) -> list[PlannedItem]:
    return [planned for block in blocks for planned in block]


def keys_of(planned: Iterable[PlannedItem]) -> list[str]:
    return [one.item.key for one in planned]


def enumerate_rest(writer: Writer) -> Iterator[PlannedItem]:
    """Freeze what is not frozen yet, from the cursor on."""
    for start, stop in BLOCKS:
        if writer.wants_more and start >= (writer.cursor or 0):
            yield from writer.freeze(block(start, stop, last=stop == ROOTS))


def fetch(
    writer: Writer, *, seal_every: int = 3, is_damaged: bool = False
) -> list[str]:
    """Do what the engine does, without a network; the keys that were asked.

    Only where *is_damaged* a file may lie in its place that no note speaks of.
    """
    asked: list[str] = []
    todo: deque[PlannedItem] = deque()

    def ask(planned: PlannedItem) -> None:
        asked.append(planned.item.key)
        result = _in_place(writer, planned, result_of(planned), is_damaged)
        todo.extend(writer.add(result))
        if len(asked) % 2:
            writer.flush()
        if len(asked) % seal_every == 0:
            writer.seal()

    for planned in flat(writer.pending()):
        ask(planned)
    for planned in enumerate_rest(writer):
        ask(planned)
        while todo:
            ask(todo.popleft())
    while todo:
        ask(todo.popleft())
    writer.finish({"asked": len(asked)})
    return asked


def _in_place(
    writer: Writer, planned: PlannedItem, result: ItemResult, is_damaged: bool
) -> ItemResult:
    """A result whose file a killed run has put in its place is not stored again."""
    if writer.files is None or result.kept is None:
        return result
    found = anyio.run(writer.files.find, planned)
    if found is None:
        return result
    said = found.is_proved or is_damaged
    assert said, "a file came to its place before a note said so"
    path = result.kept.path
    return replace(result, kept=Kept(path=path, data=None))


def download(
    dest: Path | str, *, is_damaged: bool = False, **changes: Any
) -> list[str]:
    """Fetch into *dest*, or go on there; the keys that were asked."""
    writer = Writer.open(dest, replace(RECORD, **changes), SCHEMA)
    try:
        return fetch(writer, is_damaged=is_damaged)
    finally:
        writer.close()


def all_rows(dest: Path | str) -> list[tuple[int, str]]:
    """Rows of the dataset, sorted; a row that is there twice is here twice."""
    table = View(dest).rows.to_table(columns=["id", "key"])
    return sorted(zip(*table.to_pydict().values(), strict=True))


def expected_rows(keys: Iterable[str]) -> list[tuple[int, str]]:
    return sorted(row for key in keys if key not in MISSING for row in rows_of(key))


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    if sys.argv[2:] == ["compact"]:
        compact(sys.argv[1])
    else:
        download(sys.argv[1], files="_files")

"""A compaction changes where rows are, and nothing else, whoever dies or watches."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import _compact, _dataset, _ledger, _store
from asyncfetch._cli import run as cli
from asyncfetch._compact import compact
from asyncfetch._dataset import GROUP_ROWS, Writer, open_dataset
from asyncfetch._ledger import Commit, PlanRecord, schema_id
from asyncfetch._model import Block, Outcome
from asyncfetch._store import COMPACTION_POINTS, CRASH_POINTS, LocalStore
from asyncfetch._verify import verify
from asyncfetch.errors import DatasetError

from . import _datasets as made_up
from ._datasets import (
    KEYS,
    RECORD,
    SCHEMA,
    all_rows,
    batch_of,
    block,
    expected_rows,
    failure_of,
    files_in,
    flat,
    item,
    keys_of,
    result_of,
)
from .test_crash import Stepped, die_at, posix, reach, schedules


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


@pytest.fixture
def complete(dest: Path) -> Path:
    made_up.download(dest)
    return dest


def parts(dest: Path) -> list[Path]:
    return sorted(dest.glob("*.parquet"))


def names(dest: Path) -> set[str]:
    return {path.stem for path in (dest / "_asyncfetch/items").iterdir()}


def replaces(dest: Path) -> set[str]:
    """Names of all commits that a merged one stands for."""
    return {
        replaced.name.removesuffix(".items")
        for path in (dest / "_asyncfetch/items").iterdir()
        for replaced in Commit.of(path.name, pq.read_metadata(path)).replaces
    }


def items_of(dest: Path) -> list[dict[str, Any]]:
    """All items rows, but for where the rows of the items are."""
    rows = open_dataset(dest).items.drop_columns(["first_row", "part"]).to_pylist()
    return sorted(rows, key=lambda row: (row["key"], row["outcome"]))


def rows_by_key(dest: Path) -> dict[str, list[Any]]:
    """The rows of each item as its items row says where they are."""
    return {
        row["key"]: pq.read_table(dest / row["part"])
        .slice(row["first_row"], row["rows"])
        .to_pylist()
        for row in open_dataset(dest).items.to_pylist()
        if row["rows"]
    }


# --- what it does ---------------------------------------------------------------------


def test_rows_and_items_stay_as_they_were(complete: Path) -> None:
    items, rows = items_of(complete), rows_by_key(complete)
    old, before = names(complete), pq.ParquetFile(parts(complete)[0])
    done = compact(complete)
    assert (done.merged, done.parts_before, done.parts) == (len(old), len(old), 1)
    assert done.rows == len(expected_rows(KEYS))
    (part,) = parts(complete)
    after = pq.ParquetFile(part)
    assert after.schema.equals(before.schema)
    assert after.metadata.metadata == before.metadata.metadata
    assert items_of(complete) == items
    assert rows_by_key(complete) == rows
    assert all_rows(complete) == expected_rows(KEYS)
    assert len(names(complete)) == 1
    assert replaces(complete) == old
    assert verify(complete) == []
    assert duckdb.sql(f"SELECT count(*) FROM '{complete}/*.parquet'").fetchall() == [
        (len(expected_rows(KEYS)),)
    ]
    assert made_up.download(complete) == []
    assert list((complete / "_asyncfetch/tmp").iterdir()) == []


def test_row_leads_back_to_its_item(complete: Path) -> None:
    compact(complete)
    (part,) = parts(complete)
    view = open_dataset(complete)
    for place, key in enumerate(pq.read_table(part).column("key").to_pylist()):
        assert view.source_of(part, place)["key"] == key


def test_nothing_to_merge_changes_nothing(complete: Path) -> None:
    compact(complete)
    before = files_in(complete)
    assert compact(complete).merged == 0
    assert files_in(complete) == before


def test_merged_parts_are_merged_again_with_what_came_later(dest: Path) -> None:
    everything = set[str]()
    for limit in (2, 3, 8, None):
        made_up.download(dest, limit=limit)
        everything |= names(dest)
        compact(dest)
        everything |= names(dest)
        assert len(parts(dest)) == 1
        assert verify(dest) == []
    assert all_rows(dest) == expected_rows(KEYS)
    (last,) = names(dest)
    assert replaces(dest) == everything - {last}
    assert open_dataset(dest).plan.limit is None
    assert len(list((dest / "_asyncfetch/runs").iterdir())) >= 7, "reports still agree"


def test_failed_and_missing_items_are_kept(dest: Path) -> None:
    writer = Writer.open(dest, RECORD, SCHEMA)
    planned = writer.freeze(block(0, 4, last=True))
    writer.add(failure_of(planned[0], "first"))
    writer.seal()
    writer.add(failure_of(planned[0], "second"))
    writer.add(result_of(planned[1], outcome=Outcome.MISSING, batches=()))
    writer.seal()
    writer.finish({})
    writer.close()
    items = items_of(dest)
    assert compact(dest).merged == 2, "the empty part has no other to go with"
    assert items_of(dest) == items
    assert open_dataset(dest).state().items == {"failed": 1, "missing": 1}
    assert verify(dest) == []
    again = Writer.open(dest, None, SCHEMA)
    assert keys_of(flat(again.pending())) == ["0", "2", "3"]
    again.close()


def test_parts_are_filled_and_full_ones_left_alone(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compact, "PART_ROWS", 10)
    writer = Writer.open(dest, RECORD, SCHEMA)
    sizes = [5, 1, 2, 4, 12, 4, 4, 4, 1]
    planned = writer.freeze(
        Block(tuple(item(f"{n}") for n in range(len(sizes))), cursor=None)
    )
    for one, size in reversed(list(zip(planned, sizes, strict=True))):
        batch = batch_of((100 * one.ordinal + n, one.item.key) for n in range(size))
        writer.add(result_of(one, batches=(batch,), follow_up=()))
        writer.seal()
    writer.close()
    rows = rows_by_key(dest)
    full = {
        path.name for path in parts(dest) if pq.read_metadata(path).num_rows in {5, 12}
    }
    assert compact(dest).parts == 5
    assert full <= {path.name for path in parts(dest)}
    merged = [
        pq.read_table(p)["id"].to_pylist() for p in parts(dest) if p.name not in full
    ]
    assert sorted(map(len, merged)) == [5, 7, 8]
    assert all(ids == sorted(ids) for ids in merged), "in the order of the plan"
    assert rows_by_key(dest) == rows
    assert verify(dest) == []
    assert compact(dest).merged == 0


def test_parts_with_other_columns_are_not_mixed(dest: Path) -> None:
    made_up.download(dest, limit=3)
    wider = SCHEMA.append(pa.field("new", pa.float64()))
    record = replace(RECORD, schema_id=schema_id(wider))
    writer = Writer.open(dest, record, wider)
    for one in made_up.enumerate_rest(writer):
        rows = batch_of(made_up.rows_of(one.item.key))
        rows = rows.append_column("new", pa.array([1.5] * rows.num_rows))
        writer.add(result_of(one, batches=(rows,), follow_up=()))
        writer.seal()
    writer.close()
    before = all_rows(dest)
    assert compact(dest).parts == 2
    assert all_rows(dest) == before
    assert verify(dest) == []
    new = open_dataset(dest).rows.to_table().column("new")
    assert 0 < new.null_count < len(new)


VALUES = pa.schema(
    [
        ("bits", pa.float64()),
        ("text", pa.string()),
        ("small", pa.int8()),
        ("list", pa.list_(pa.int64())),
        ("at", pa.timestamp("us", "UTC")),
        ("extra", made_up.JSON),
    ]
)
doubles = st.integers(0, 2**64 - 1).map(
    lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]
)
value_rows = st.tuples(
    st.none() | doubles,
    st.none() | st.text(),
    st.none() | st.integers(-128, 127),
    st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.none() | st.integers(-(2**50), 2**50),
    st.none() | st.integers().map(json.dumps),
)


@settings(max_examples=40)
@given(parts_=st.lists(st.lists(value_rows, max_size=4), min_size=2, max_size=4))
def test_every_bit_of_a_row_is_kept(
    parts_: list[list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    dest = tmp_path_factory.mktemp("bits") / "dataset"
    record = PlanRecord(
        service="s", base_url="https://example.org", table="t", filters={}, limit=None,
        schema_id=schema_id(VALUES), version="1",
    )  # fmt: skip
    writer = Writer.open(dest, record, VALUES)
    planned = writer.freeze(Block(tuple(item(f"{n}") for n in range(len(parts_)))))
    for one, rows in zip(planned, parts_, strict=True):
        columns = list(zip(*rows, strict=True)) or [()] * len(VALUES)
        arrays = [
            pa.ExtensionArray.from_storage(made_up.JSON, pa.array(column, pa.string()))
            if field.type == made_up.JSON
            else pa.array(column, field.type)
            for column, field in zip(columns, VALUES, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=VALUES)
        writer.add(result_of(one, batches=(batch,), follow_up=()))
        writer.seal()
    writer.finish({})
    writer.close()

    def rows() -> tuple[list[Any], bytes]:
        in_order = open_dataset(dest).items.sort_by("ordinal").to_pylist()
        tables = [
            pq.read_table(dest / row["part"]).slice(row["first_row"], row["rows"])
            for row in in_order
            if row["rows"]
        ]
        if not tables:
            return [], b""
        table = pa.concat_tables(tables).combine_chunks()
        bits = table.column("bits").combine_chunks().fill_null(0.0)
        return (
            table.drop_columns(["bits"]).to_pylist(),
            np.asarray(bits).tobytes() + bytes(table["bits"].is_null().to_pylist()),
        )

    before = rows()
    compact(dest)
    assert rows() == before
    assert len(parts(dest)) == 1
    assert verify(dest) == []


def test_row_groups_are_merged_and_bounded(dest: Path) -> None:
    writer = Writer.open(dest, RECORD, SCHEMA)
    planned = writer.freeze(block(0, 8, last=True))
    for one in planned:
        rows = batch_of((n, one.item.key) for n in range(GROUP_ROWS // 3))
        writer.add(result_of(one, batches=(rows,), follow_up=()))
        writer.seal()
    writer.close()
    compact(dest)
    (part,) = parts(dest)
    metadata = pq.read_metadata(part)
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert len(sizes) == 2
    assert max(sizes) < 2 * GROUP_ROWS
    assert verify(dest) == []


def test_merged_row_groups_keep_statistics_and_dictionaries(complete: Path) -> None:
    compact(complete)
    group = pq.read_metadata(parts(complete)[0]).row_group(0)
    columns = {c.path_in_schema: c for c in map(group.column, range(len(SCHEMA)))}
    assert columns["id"].is_stats_set
    assert not columns["onset"].is_stats_set
    assert columns["key"].has_dictionary_page
    assert {column.compression for column in columns.values()} == {"ZSTD"}


# --- what it refuses ------------------------------------------------------------------


def test_it_is_public_and_a_command(
    complete: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asyncfetch.compact is compact
    assert cli(["compact", str(complete)]) == 0
    assert "there were 5 parts" in capsys.readouterr().out
    assert cli(["compact", str(complete)]) == 0
    assert "nothing to merge" in capsys.readouterr().out
    assert cli(["compact", str(complete), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merged"] == 0
    assert cli(["compact", str(complete / "nothing")]) == 3
    assert "expected a dataset, got none" in capsys.readouterr().err


def test_living_writer_is_left_alone(complete: Path) -> None:
    writer = Writer.open(complete, None, SCHEMA)
    before = files_in(complete)

    def sleep(_: float) -> None:
        writer.heartbeat()

    with pytest.raises(DatasetError, match="another writer is at work"):
        compact(complete, sleep=sleep)
    lock = "_asyncfetch/lock"
    assert {**files_in(complete), lock: b""} == {**before, lock: b""}
    writer.close()


def test_damaged_part_is_not_merged(complete: Path) -> None:
    part = parts(complete)[0]
    content = bytearray(part.read_bytes())
    content[40] ^= 0xFF
    part.write_bytes(content)
    before = files_in(complete)
    with pytest.raises(DatasetError, match="verify with --repair"):
        compact(complete)
    assert files_in(complete) == before


# --- killed ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven items in three commits, and one that did not come to its part."""
    dest = tmp_path_factory.mktemp("begun") / "dataset"
    made_up.download(dest, limit=3, files="_files")
    die_at("items-durable:2", dest)
    return dest


POINTS = [
    *COMPACTION_POINTS,
    *("replaced-part-removed:2", "replaced-items-removed:2"),
    *("open-made", "open-announced", "close-emptied"),
    *(p for p in CRASH_POINTS if p.startswith(("takeover", "run"))),
]


@posix
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_it_is_finished_by_the_next(
    point: str, begun: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "dataset"
    shutil.copytree(begun, dest)
    rows, items = all_rows(dest), items_of(dest)
    die_at(point, dest, "compact")

    assert all_rows(dest) == rows
    assert items_of(dest) == items
    assert verify(dest) == []
    resumed = shutil.copytree(dest, tmp_path / "resumed")
    compact(dest)
    assert all_rows(dest) == rows
    assert items_of(dest) == items
    assert len(parts(dest)) == 1
    for one in (dest, resumed):
        asked = made_up.download(one)
        assert set(asked) == KEYS - {row["key"] for row in items}
        assert all_rows(one) == expected_rows(KEYS)
        assert verify(one) == []
        compact(one)
        assert len(parts(one)) == 1
        assert all_rows(one) == expected_rows(KEYS)
        assert verify(one) == []


# --- one that slept, and readers -----------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits to merge, and items that were not asked yet."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    dest = tmp_path / "small"
    writer = Writer.open(dest, RECORD, SCHEMA)
    planned = list(made_up.enumerate_rest(writer))
    for one in planned[1:3]:
        writer.add(result_of(one))
        writer.seal()
    writer.close()
    for module in (_store, _dataset, _ledger):
        monkeypatch.setattr(module, "crash_point", reach)
    return dest


def stepwise(
    beginning: list[int], threads: tuple[Stepped, ...]
) -> list[tuple[int, ...]]:
    for thread in threads:
        thread.start()
    choices: list[tuple[int, ...]] = []
    while able := tuple(n for n, one in enumerate(threads) if not one.ended):
        choices.append(able)
        place = len(choices) - 1
        threads[beginning[place] if place < len(beginning) else able[0]].step()
    return choices


def patient_compact(dest: Path) -> None:
    clock = itertools.count(0, 30)
    compact(dest, clock=lambda: float(next(clock)), sleep=lambda _: None)


def patient_writer(dest: Path) -> None:
    clock = itertools.count(0, 30)
    writer = Writer.open(
        dest, None, SCHEMA, clock=lambda: float(next(clock)), sleep=lambda _: None
    )
    writer.add(result_of(flat(writer.pending())[0]))
    writer.seal()
    writer.close()


MERGING = frozenset(
    f"merged-{file}-{step}"
    for file in ("items", "part")
    for step in ("linked", "durable")
) | {"replaced-part-removed", "replaced-parts-durable"}
TAKEOVER = frozenset({"open-announced", "takeover-renamed", "takeover-dropped"})


@pytest.mark.parametrize("second", [patient_compact, patient_writer])
def test_one_that_slept_changes_nothing_after_a_takeover(
    second: Callable[[Path], None], small: Path, tmp_path: Path
) -> None:
    numbers = itertools.count()
    ends = set()
    rows = all_rows(small)

    def run(beginning: list[int]) -> list[tuple[int, ...]]:
        dest = shutil.copytree(small, tmp_path / str(next(numbers)))
        asleep = Stepped(lambda: patient_compact(dest), MERGING)
        awake = Stepped(lambda: second(dest), TAKEOVER)
        # The first has the lock before the second comes.
        choices = stepwise([0, *beginning], (asleep, awake))[1:]
        for one in (asleep, awake):
            assert one.error is None or isinstance(one.error, DatasetError), one.error
            assert one.error is None or "took over" in str(one.error)
        assert awake.error is None
        ends.add(type(asleep.error))
        assert verify(dest) == []
        assert list((dest / "_asyncfetch/tmp").iterdir()) == []
        if second is patient_compact:
            assert all_rows(dest) == rows
            assert len(parts(dest)) == 1
        else:
            assert all_rows(dest) == sorted([*rows, *made_up.rows_of("0")])
        shutil.rmtree(dest)
        return choices

    assert sum(1 for _ in schedules(run)) > 50
    assert ends == {type(None), DatasetError}


def test_view_that_is_opened_meanwhile_holds_each_row_once(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()
    rows, items = all_rows(small), items_of(small)
    list_names, open_file = LocalStore.names, _ledger.opened
    outcomes = set()
    looks = Counter[threading.Thread]()

    def reach_(point: str) -> None:
        thread = threading.current_thread()
        looks[thread] += 1
        if looks[thread] <= 4:  # two listings, two files: more would take minutes
            reach(point)

    def listed(store: LocalStore, folder: str = "") -> dict[str, int]:
        reach_("look")
        return list_names(store, folder)

    @contextmanager
    def opened(*arguments: Any, **options: Any) -> Iterator[Any]:
        reach_("look")
        with open_file(*arguments, **options) as file:
            yield file

    monkeypatch.setattr(LocalStore, "names", listed)
    monkeypatch.setattr(_ledger, "opened", opened)

    def run(beginning: list[int]) -> list[tuple[int, ...]]:
        dest = shutil.copytree(small, tmp_path / str(next(numbers)))
        views = []
        reader = Stepped(lambda: views.append(open_dataset(dest)), frozenset({"look"}))
        compactor = Stepped(
            lambda: patient_compact(dest),
            frozenset(
                {"merged-part-durable", "replaced-part-removed"}
                | {"replaced-items-removed"}
            ),
        )
        choices = stepwise(beginning, (compactor, reader))
        assert compactor.error is None
        assert reader.error is None
        (view,) = views
        state = view.state()
        assert (state.rows, state.items) == (len(rows), {"ok": 2})
        outcomes.add(state.parts)
        if state.parts == 2:  # its files are gone by now
            with pytest.raises(DatasetError, match="open it again"):
                _ = view.rows
        else:
            table = view.rows.to_table(columns=["id", "key"]).to_pydict()
            got = view.items.drop_columns(["first_row", "part"]).to_pylist()
            assert sorted(zip(*table.values(), strict=True)) == rows
            assert sorted(got, key=lambda row: row["key"]) == items
        shutil.rmtree(dest)
        return choices

    assert sum(1 for _ in schedules(run)) > 50
    assert outcomes == {2, 1}, "as it was before, and as it is afterwards"


def test_view_stays_exact_while_the_files_are_there(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, items = all_rows(complete), items_of(complete)
    before = open_dataset(complete)
    seen = []

    def look(point: str) -> None:
        assert all_rows(complete) == rows
        assert items_of(complete) == items
        seen.append(point)

    for module in (_store, _dataset, _ledger):
        monkeypatch.setattr(module, "crash_point", look)
    compact(complete)
    assert {one.partition(":")[0] for one in POINTS} & set(seen) >= {*COMPACTION_POINTS}
    for read in (
        lambda: before.rows,
        lambda: before.items,
        lambda: before.source_of("x", 0),
    ):
        with pytest.raises(DatasetError, match="compacted since; open it again") as no:
            read()
        assert "\n" not in str(no.value)

"""What a dataset promises to its readers and to the next run, and what it refuses."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from asyncfetch import _ledger, _store
from asyncfetch._dataset import GROUP_ROWS, View, Writer, open_dataset
from asyncfetch._ledger import (
    PART_ITEMS,
    KeySet,
    PlanRecord,
    hashes,
    schema_id,
    seal,
)
from asyncfetch._model import Block, FailedItem, Outcome, PlannedItem
from asyncfetch._store import STALE, LocalStore, Lock
from asyncfetch._verify import verify
from asyncfetch.errors import ConfigurationError, DatasetError

from . import _datasets as made_up
from ._datasets import (
    KEYS,
    RECORD,
    ROOTS,
    SCHEMA,
    all_rows,
    batch_of,
    block,
    expected_rows,
    failure_of,
    fetch,
    files_in,
    flat,
    item,
    keys_of,
    result_of,
)

posix = pytest.mark.skipif(not hasattr(_store, "fcntl"), reason="locked otherwise")
OpenWriter = Callable[..., Writer]


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


@pytest.fixture
def open_writer(dest: Path) -> Iterator[OpenWriter]:
    """Open the writer of *dest*; it is closed after the test, if not before."""
    opened: list[Writer] = []

    def open_(**options: Any) -> Writer:
        record = options.pop("record", RECORD)
        schema = options.pop("schema", SCHEMA)
        writer = Writer.open(dest, record, schema, **options)
        opened.append(writer)
        return writer

    yield open_
    for writer in opened:
        writer.close()


@pytest.fixture
def complete(dest: Path) -> Path:
    """A dataset with all rows of the made-up service, in several parts."""
    made_up.download(dest)
    return dest


# --- what counts ----------------------------------------------------------------------


def test_committed_items_are_not_pending_again(open_writer: OpenWriter) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4))
    for one in planned[:2]:
        writer.add(result_of(one))
    assert writer.seal() == (2, 3)
    writer.close()
    assert keys_of(flat(open_writer().pending())) == ["2", "3"]


def test_what_was_only_added_is_gone_without_a_trace(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4))
    before = files_in(dest)
    writer.add(result_of(planned[0]))
    writer.flush()
    writer.close()
    lock = "_asyncfetch/lock"
    assert {**files_in(dest), lock: b""} == {**before, lock: b""}
    assert keys_of(flat(open_writer().pending())) == ["0", "1", "2", "3"]


def test_adding_touches_nothing_but_memory(
    open_writer: OpenWriter, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(row_key="id")
    planned = writer.freeze(block(0, 4))
    before = files_in(dest)
    away = dest.rename(dest.with_name("away"))
    for one in planned:
        writer.add(result_of(one))
    away.rename(dest)
    assert files_in(dest) == before
    assert writer.seal() == (4, 10)


def test_finished_dataset_holds_every_row_once(complete: Path) -> None:
    assert all_rows(complete) == expected_rows(KEYS)
    state = open_dataset(complete).state()
    assert state.items == {"ok": len(KEYS) - 1, "missing": 1}
    assert (state.planned, state.pending, state.plan_complete) == (len(KEYS), 0, True)
    assert state.parts == len(list(complete.glob("*.parquet")))
    assert state.bytes == sum(p.stat().st_size for p in complete.glob("*.parquet"))
    assert verify(complete) == []


def test_second_run_asks_for_nothing(complete: Path) -> None:
    assert made_up.download(complete) == []
    assert all_rows(complete) == expected_rows(KEYS)


def test_planned_items_come_back_as_they_were_frozen(open_writer: OpenWriter) -> None:
    writer = open_writer(record=replace(RECORD, files="_files"))
    frozen = writer.freeze(block(0, 4))
    writer.close()
    assert flat(open_writer().pending()) == frozen


def test_block_is_durable_before_its_items_are_known(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    writer.freeze(Block((item("0"),), cursor={"page": 2, "of": ["x"]}))
    shutil.copytree(dest, dest.with_name("copy"))
    copy = Writer.open(dest.with_name("copy"), None, SCHEMA)
    assert copy.cursor == {"page": 2, "of": ["x"]}
    assert not copy.plan_complete
    assert keys_of(flat(copy.pending())) == ["0"]
    copy.close()


def test_last_block_may_be_empty(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.freeze(block(0, 4))
    assert writer.freeze(Block((), cursor=None)) == []
    writer.close()
    again = open_writer()
    assert again.plan_complete
    assert not again.wants_more
    assert again.planned == 4


# --- items that are found in responses ------------------------------------------------


def test_found_item_counts_once_its_parent_is_committed(
    open_writer: OpenWriter,
) -> None:
    writer = open_writer(record=replace(RECORD, files="_files"))
    planned = writer.freeze(block(0, 4))
    found = writer.add(result_of(planned[2]))
    assert [(one.item.key, one.parent) for one in found] == [("2a", 2), ("2b", 2)]
    assert keys_of(flat(writer.pending())) == ["0", "1", "3"]
    writer.seal()
    writer.close()
    assert flat(open_writer().pending())[-2:] == found


def test_ordinals_of_an_uncommitted_find_are_not_given_to_others(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4))
    found = writer.add(result_of(planned[2]))
    writer.seal()
    # As a kill between the renames leaves it: the plan rows are durable, no items file.
    for path in dest.glob("_asyncfetch/items/*"):
        path.unlink()
    for path in dest.glob("*.parquet"):
        path.unlink()
    writer.close()

    again = open_writer()
    assert keys_of(flat(again.pending())) == ["0", "1", "2", "3"]
    refound = again.add(result_of(planned[2]))
    assert keys_of(refound) == keys_of(found)
    assert not {one.ordinal for one in refound} & {one.ordinal for one in found}
    again.close()
    made_up.download(dest)
    assert all_rows(dest) == expected_rows(KEYS)
    assert verify(dest) == []


def test_item_that_is_planned_is_not_planned_again(open_writer: OpenWriter) -> None:
    writer = open_writer()
    planned = writer.freeze(Block((item("0"), item("1"), item("0")), cursor=1))
    assert keys_of(planned) == ["0", "1"]
    loop = result_of(planned[1], follow_up=(item("1"), item("0"), item("2a")))
    assert keys_of(writer.add(loop)) == ["2a"]
    writer.seal()
    writer.close()
    again = open_writer()
    assert keys_of(again.freeze(Block((item("2a"), item("5")), cursor=None))) == ["5"]
    assert again.planned == 4


# --- limits ---------------------------------------------------------------------------


def test_limit_inside_a_block_feeds_only_its_beginning(
    open_writer: OpenWriter,
) -> None:
    writer = open_writer(record=replace(RECORD, limit=6))
    assert keys_of(writer.freeze(block(0, 4))) == ["0", "1", "2", "3"]
    assert writer.wants_more
    assert keys_of(writer.freeze(block(4, 8))) == ["4", "5"]
    assert not writer.wants_more
    assert writer.planned == 6
    writer.close()
    assert keys_of(flat(open_writer(record=None).pending())) == list("012345")


@pytest.mark.parametrize("first", [0, 1, 3, 5, 8, 9, ROOTS, None])
def test_higher_limit_goes_on_where_a_lower_one_ended(
    first: int | None, dest: Path
) -> None:
    asked = made_up.download(dest, limit=first)
    roots = {key for key in KEYS if first is None or int(key[0]) < first}
    assert set(asked) == roots
    assert all_rows(dest) == expected_rows(roots)
    assert set(made_up.download(dest)) == KEYS - roots
    assert all_rows(dest) == expected_rows(KEYS)
    assert verify(dest) == []


def test_lower_limit_leaves_what_lies_beyond_it(open_writer: OpenWriter) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4, last=True))
    found = writer.add(result_of(planned[2]))
    writer.seal()
    writer.close()
    narrow = open_writer(record=replace(RECORD, limit=2))
    assert keys_of(flat(narrow.pending())) == ["0", "1"]
    assert narrow.planned == 3, "two within the limit, and one that ended before"
    assert narrow.record.limit == 2
    narrow.close()
    wide = open_writer(record=replace(RECORD, limit=3))
    assert keys_of(flat(wide.pending())) == ["0", "1", *keys_of(found)]


def test_resume_keeps_the_limit(complete: Path, open_writer: OpenWriter) -> None:
    open_writer(record=replace(RECORD, limit=3)).close()
    assert open_writer(record=None).record.limit == 3
    assert open_dataset(complete).plan.limit == 3


# --- failures -------------------------------------------------------------------------


def test_failed_items_are_asked_again_unless_told_otherwise(
    open_writer: OpenWriter,
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4, last=True))
    writer.add(failure_of(planned[0], "first reason"))
    writer.add(result_of(planned[1]))
    writer.add(result_of(planned[3], outcome=Outcome.MISSING, batches=()))
    assert writer.counts() == {"failed": 1, "ok": 1, "missing": 1}
    writer.seal()
    assert writer.failed() == [
        FailedItem(
            key="0",
            url="https://example.org/api/0",
            error_class="ResponseError",
            error="first reason",
        )
    ]
    writer.close()
    again = open_writer()
    assert keys_of(flat(again.pending())) == ["0", "2"]
    assert keys_of(flat(again.pending(retry_failed=False))) == ["2"]
    assert keys_of(flat(again.pending(only={0}))) == ["0"]
    assert keys_of(flat(again.pending(only={1, 3}))) == ["3"]


def test_best_outcome_of_an_item_counts(open_writer: OpenWriter, dest: Path) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 1, last=True))
    for result in (failure_of(planned[0]), result_of(planned[0])):
        writer.add(result)
        writer.seal()
    assert writer.counts() == {"ok": 1}
    assert writer.failed() == []
    writer.close()
    again = open_writer()
    assert flat(again.pending()) == []
    again.close()
    assert open_dataset(dest).state().items == {"ok": 1}
    assert [row["outcome"] for row in open_dataset(dest).items.to_pylist()].count(
        "failed"
    ) == 1
    assert verify(dest) == []


def test_first_failures_are_listed_in_plan_order(open_writer: OpenWriter) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, ROOTS, last=True))
    for one in reversed(planned):
        writer.add(failure_of(one))
    writer.seal()
    assert [one.key for one in writer.failed(3)] == ["0", "1", "2"]


# --- items ----------------------------------------------------------------------------


def test_items_say_what_became_of_each(complete: Path) -> None:
    items = open_dataset(complete).items
    assert items.column_names == [
        *("ordinal", "key", "url", "outcome", "http_status", "rows"),
        *("rows_duplicate", "first_row", "bytes", "sha256", "etag", "last_modified"),
        *("attempts", "elapsed", "fetched_at", "error_class", "error"),
        *("diagnostics", "detail", "follow_up", "path", "part"),
    ]
    rows = {row["key"]: row for row in items.to_pylist()}
    assert rows.keys() == KEYS
    ordinals = {row["key"]: row["ordinal"] for row in rows.values()}
    assert rows["2"]["follow_up"] == [ordinals["2a"], ordinals["2b"]]
    assert rows["2"]["http_status"] == 200
    assert rows["4"]["outcome"] == "missing"
    assert rows["4"]["part"] is rows["4"]["first_row"] is None
    for key, row in rows.items():
        if row["part"] is not None:
            part = pq.read_table(complete / row["part"], columns=["id", "key"])
            part = part.slice(row["first_row"], row["rows"])
            assert list(zip(*part.to_pydict().values(), strict=True)) == (
                made_up.rows_of(key)
            )


def test_row_leads_back_to_the_item_it_came_from(complete: Path) -> None:
    view = open_dataset(complete)
    for path in complete.glob("*.parquet"):
        for place, key in enumerate(pq.read_table(path).column("key").to_pylist()):
            assert view.source_of(path, place)["key"] == key
            assert view.source_of(path.name, place)["key"] == key
    with pytest.raises(LookupError, match="row of a part"):
        view.source_of(path.name, 10**6)


def test_details_come_as_the_items_ended(open_writer: OpenWriter) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4, last=True))
    for one in reversed(planned):
        writer.add(result_of(one, detail={"n": one.ordinal} if one.ordinal else {}))
        writer.seal()
    assert list(writer.details()) == [{"n": 3}, {"n": 2}, {"n": 1}, {}]


# --- rows -----------------------------------------------------------------------------


def test_every_reader_sees_the_rows(complete: Path) -> None:
    expected = expected_rows(KEYS)
    glob = str(complete / "*.parquet")
    rows = [
        pd.read_parquet(complete)[["id", "key"]].itertuples(index=False, name=None),
        pads.dataset(complete).to_table(columns=["id", "key"]).to_pylist(),
        duckdb.sql(f"SELECT id, key FROM '{glob}'").fetchall(),
        duckdb.sql(f"SELECT id, key FROM '{complete}/**/*.parquet'").fetchall(),
        pl.read_parquet(glob).select("id", "key").rows(),
    ]
    for found in rows:
        tuples = [tuple(r.values()) if isinstance(r, dict) else r for r in found]
        assert sorted(tuples) == expected


def test_pandas_reads_gaps_as_gaps_and_text_as_text(complete: Path) -> None:
    frame = pd.read_parquet(complete)
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    text = kinds.pop("key")
    assert kinds == {
        "id": "int64",
        "number": "Int32",
        "onset": "float64",
        "extra": "object",
    }
    assert text in {"str", "object"}, "pandas 3 has a type for text"
    assert frame["number"].isna().any()


def test_text_that_came_encoded_reads_back_as_plain_text(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4, last=True))
    for one in planned:
        rows = made_up.rows_of(one.item.key)
        encoded = bool(one.ordinal % 2)
        batch = batch_of(rows, encoded=encoded)
        writer.add(result_of(one, batches=(batch,), follow_up=()))
        if one.ordinal == 1:
            writer.flush()
            writer.seal()
    writer.seal()
    assert all_rows(dest) == expected_rows("0123")
    for path in dest.glob("*.parquet"):
        assert pq.read_schema(path).field("key").type == pa.string()
        column = pq.read_metadata(path).row_group(0).column(1)
        assert column.has_dictionary_page


def test_encodings_of_one_row_group_may_differ(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4, last=True))
    small = batch_of(made_up.rows_of("1"))
    keys = small.column("key").cast(pa.dictionary(pa.int8(), pa.string()))
    small = small.set_column(1, "key", keys)
    for one, batch in zip(
        planned,
        [batch_of(made_up.rows_of("0")), small, batch_of(made_up.rows_of("2"))],
        strict=False,
    ):
        writer.add(result_of(one, batches=(batch,), follow_up=()))
    writer.seal()
    assert all_rows(dest) == expected_rows("012")


def test_part_says_where_it_comes_from(complete: Path) -> None:
    for path in complete.glob("*.parquet"):
        metadata = pq.read_metadata(path)
        assert metadata.metadata[b"asyncfetch.version"] == b"1.2.3"
        assert metadata.metadata[b"asyncfetch.table"] == b"made-up/things"
        assert metadata.metadata[b"asyncfetch.schema_id"] == (
            schema_id(SCHEMA).encode()
        )
        assert metadata.metadata[b"asyncfetch.base_url"] == b"https://example.org/api"
        assert json.loads(metadata.metadata[b"asyncfetch.units"]) == {"onset": "s"}
        columns = {
            column.path_in_schema: column
            for column in map(metadata.row_group(0).column, range(len(SCHEMA)))
        }
        assert {column.compression for column in columns.values()} == {"ZSTD"}
        assert columns["id"].is_stats_set
        assert not columns["onset"].is_stats_set
        assert columns["id"].has_dictionary_page
        assert not columns["onset"].has_dictionary_page
        assert pq.read_schema(path).field("extra").type == made_up.JSON


def test_nothing_among_the_records_looks_like_rows(complete: Path) -> None:
    assert list((complete / "_asyncfetch").rglob("*.parquet")) == []
    visible = [p.name for p in complete.iterdir() if not p.name.startswith("_")]
    assert all(name.startswith("part-") for name in visible)


def test_dataset_without_rows_has_one_empty_part(
    open_writer: OpenWriter, dest: Path
) -> None:
    for _ in range(2):
        writer = open_writer()
        writer.freeze(Block((), cursor=None))
        writer.finish({})
        writer.close()
    (part,) = dest.glob("*.parquet")
    assert pq.read_table(part).num_rows == 0
    assert pd.read_parquet(dest).columns.tolist() == SCHEMA.names
    assert duckdb.sql(f"SELECT count(*) FROM '{dest}/*.parquet'").fetchall() == [(0,)]
    assert open_dataset(dest).rows.schema.names == SCHEMA.names
    assert verify(dest) == []


def test_rows_of_a_large_item_lie_side_by_side(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 3, last=True))
    large = batch_of((n, "large") for n in range(GROUP_ROWS // 2))
    writer.add(result_of(planned[0]))
    writer.add(result_of(planned[1], batches=(large,) * 5))
    assert writer.wants_flush
    writer.add(result_of(planned[2]))
    writer.seal()
    (part,) = dest.glob("*.parquet")
    file = pq.ParquetFile(part)
    sizes = [
        file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)
    ]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 1
    keys = file.read(columns=["key"]).column(0).to_pylist()
    assert [(key, len(list(run))) for key, run in itertools.groupby(keys)] == [
        ("0", 1),
        ("large", GROUP_ROWS * 5 // 2),
        ("2", 3),
    ]
    writer.close()
    assert verify(dest) == []


def test_queue_in_memory_ends_with_a_flush(open_writer: OpenWriter) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 1))
    assert not writer.wants_flush
    for _ in range(PART_ITEMS // 2):
        writer.add(failure_of(planned[0]))
    assert writer.wants_flush
    writer.flush()
    assert not writer.wants_flush


def test_row_whose_key_is_taken_is_dropped_and_counted(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer(row_key="id")
    planned = writer.freeze(block(0, 3, last=True))
    first = batch_of([(1, "a"), (2, "a"), (1, "a")])
    writer.add(result_of(planned[0], batches=(first, batch_of([(2, "a"), (3, "a")]))))
    writer.seal()
    writer.close()
    again = open_writer(row_key="id")
    again.add(result_of(planned[1], batches=(batch_of([(3, "b"), (4, "b")]),)))
    again.add(result_of(planned[2], batches=(batch_of([(4, "c")]),), follow_up=()))
    again.finish({})
    again.close()
    assert all_rows(dest) == [(1, "a"), (2, "a"), (3, "a"), (4, "b")]
    items = open_dataset(dest).items.select(["key", "rows", "rows_duplicate"])
    assert sorted(items.to_pylist(), key=lambda row: row["key"]) == [
        {"key": "0", "rows": 3, "rows_duplicate": 2},
        {"key": "1", "rows": 1, "rows_duplicate": 1},
        {"key": "2", "rows": 0, "rows_duplicate": 1},
    ]
    assert verify(dest) == []


def test_text_may_be_the_key_of_a_row_and_no_key_is_no_duplicate(
    open_writer: OpenWriter, dest: Path
) -> None:
    rows = [(1, "a"), (2, "b"), (3, None), (4, "a"), (5, None)]
    batch = batch_of(rows)  # type: ignore[arg-type]
    writer = open_writer(row_key="key")
    writer.add(result_of(writer.freeze(block(0, 1))[0], batches=(batch,)))
    writer.finish({})
    assert View(dest).rows.to_table().column("id").to_pylist() == [1, 2, 3, 5]


ENDS = st.integers(-(2**63), -(2**63) + 3) | st.integers(2**63 - 4, 2**63 - 1)


@given(st.lists(st.lists(st.integers(-3, 40) | ENDS, max_size=20), max_size=30))
def test_key_is_new_once(batches: list[list[int]]) -> None:
    keys, seen = KeySet(), set[int]()
    with pytest.MonkeyPatch.context() as patch:  # so that each way is taken
        patch.setattr(_ledger, "FEW_KEYS", 5)
        patch.setattr(_ledger, "RECENT_KEYS", 7)
        patch.setattr(_ledger, "LARGE_RUN", 12)
        for batch in batches:
            expected = []
            for key in batch:
                expected.append(key not in seen)
                seen.add(key)
            assert keys.add(np.array(batch, dtype=np.int64)).tolist() == expected


def test_keys_that_follow_each_other_take_no_memory() -> None:
    ids = np.arange(300_000)
    keys, rng = KeySet(), np.random.default_rng(1)
    tracemalloc.start()
    for some in np.array_split(ids, 300):  # nearly in order, as answers come
        assert keys.add(rng.permutation(some)).all()
    numbered = KeySet()
    assert numbered.add(hashes([f"neuron={n}" for n in range(300_000)])).all()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < ids.nbytes / 8
    assert not keys.add(ids).any()


PLAIN = st.from_regex(r"([aé]=)*0?[1-3]*=?[0-9]{0,17}\n?", fullmatch=True)
NUMBERED = st.integers(0, 10**17).map("é=a={}".format)


@given(st.lists(PLAIN) | st.lists(NUMBERED, min_size=20) | st.lists(PLAIN | NUMBERED))
def test_texts_have_hashes_of_their_own(texts: list[str]) -> None:
    known = dict(zip(texts, hashes(texts).tolist(), strict=True))
    assert len(set(known.values())) == len(known)
    assert hashes(pa.array(texts, pa.string())).tolist() == list(map(known.get, texts))
    assert [hashes([text])[0] for text in known] == list(known.values())


# --- when a commit is due -------------------------------------------------------------


def test_commit_is_due_by_age(open_writer: OpenWriter) -> None:
    clock = Clock()
    writer = open_writer(clock=clock)
    planned = writer.freeze(block(0, 4))
    assert writer.seal_due() is None
    assert writer.seal() is None
    clock.now = 10.0
    writer.add(result_of(planned[0]))
    assert writer.seal_due() == 30.0
    clock.now = 45.0
    assert writer.seal_due() == -5.0
    writer.seal()
    assert writer.seal_due() is None
    clock.now = 10_000.0
    writer.add(result_of(planned[1]))
    assert writer.seal_due() == 200.0, "2 % of the run's age"
    clock.now = 1_000_000.0
    assert writer.seal_due() == 10_000.0 + 600.0 - 1_000_000.0


def test_commit_is_due_by_items_and_by_rows(open_writer: OpenWriter) -> None:
    writer = open_writer(clock=Clock())
    planned = writer.freeze(block(0, 2))
    for _ in range(PART_ITEMS):
        writer.add(failure_of(planned[0]))
    assert writer.seal_due() == 0.0
    writer.seal()
    rows = batch_of((n, "k") for n in range(250_000))
    writer.add(result_of(planned[1], batches=(rows,) * 4))
    assert writer.seal_due() == 0.0


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filters": {"name": ["a"], "run": 7}}, "filter name is ['a', 'b'] and not"),
        ({"filters": {"name": ["a", "b"]}}, "filter run is 7 and not None"),
        ({"table": "others"}, "table is 'things' and not 'others'"),
        ({"base_url": "http://127.0.0.1:1/api"}, "base_url is 'https://example.org"),
        ({"service": "other"}, "service is 'made-up' and not 'other'"),
    ],
)
def test_another_plan_is_refused_with_the_difference(
    changes: dict[str, Any], said: str, complete: Path, open_writer: OpenWriter
) -> None:
    before = files_in(complete)
    with pytest.raises(DatasetError) as refusal:
        open_writer(record=replace(RECORD, **changes))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert files_in(complete) == before


def test_same_plan_may_be_spelled_differently(
    complete: Path, open_writer: OpenWriter
) -> None:
    writer = open_writer(
        record=replace(RECORD, filters={"run": 7, "name": ("a", "b")}, version="9")
    )
    assert writer.record.version == "1.2.3", "of the package that began it"


@pytest.mark.parametrize(
    "name", ["rows.parquet", "rows.csv", "rows.json", "ftp://bucket/rows"]
)
def test_name_of_a_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a directory"):
        Writer.open(name, RECORD, SCHEMA)
    assert not Path(name).exists()


def test_file_is_refused(dest: Path) -> None:
    dest.write_text("mine")
    with pytest.raises(DatasetError, match="got a file at"):
        Writer.open(dest, RECORD, SCHEMA)
    with pytest.raises(DatasetError, match="directory that can be written"):
        Writer.open(dest / "below", RECORD, SCHEMA)
    assert dest.read_text() == "mine"


def test_directory_with_other_content_is_refused(dest: Path) -> None:
    dest.mkdir()
    (dest / "thesis.tex").write_text("mine")
    with pytest.raises(DatasetError, match=r"thesis\.tex and no _asyncfetch"):
        Writer.open(dest, RECORD, SCHEMA)
    assert files_in(dest) == {"thesis.tex": b"mine"}


def test_resume_of_nothing_is_refused(dest: Path) -> None:
    with pytest.raises(DatasetError, match="expected a dataset, got none at"):
        Writer.open(dest, None, SCHEMA)
    for read in (open_dataset, verify):
        with pytest.raises(DatasetError, match="expected a dataset, got none at"):
            read(dest)
    assert not dest.exists()


def test_plan_that_cannot_be_understood_is_refused(complete: Path) -> None:
    (complete / "_asyncfetch/plan.json").write_text('{"service": 1')
    with pytest.raises(DatasetError, match="expected a plan, got something else"):
        Writer.open(complete, RECORD, SCHEMA)
    (complete / "_asyncfetch/plan.json").unlink()
    with pytest.raises(DatasetError, match=r"expected _asyncfetch/plan\.json beside"):
        Writer.open(complete, RECORD, SCHEMA)


def test_new_nullable_columns_at_the_end_may_mix(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 2, last=True))
    writer.add(result_of(planned[0]))
    writer.seal()
    writer.close()
    wider = SCHEMA.append(pa.field("new", pa.float64()))
    again = open_writer(
        schema=wider, record=replace(RECORD, schema_id=schema_id(wider))
    )
    batch = batch_of(made_up.rows_of("1"))
    batch = batch.append_column("new", pa.array([1.5] * batch.num_rows))
    again.add(result_of(planned[1], batches=(batch,)))
    again.finish({})
    new = View(dest).rows.to_table().column("new").to_pylist()
    assert sorted(new, key=str) == [1.5, 1.5, None]
    assert View(dest).plan.schema_id == schema_id(wider)


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA.append(pa.field("new", pa.float64(), nullable=False)),
        SCHEMA.set(1, pa.field("key", pa.int64())),
        SCHEMA.insert(0, pa.field("new", pa.float64())),
        SCHEMA.remove(0),
    ],
    ids=["required", "type", "order", "fewer"],
)
def test_other_columns_are_refused(
    schema: pa.Schema, complete: Path, open_writer: OpenWriter
) -> None:
    before = files_in(complete)
    with pytest.raises(DatasetError, match="fetch into another directory"):
        open_writer(schema=schema)
    assert files_in(complete) == before


# --- one writer -----------------------------------------------------------------------


def test_living_writer_is_left_alone(open_writer: OpenWriter, dest: Path) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4))
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > STALE - 1:
            writer.heartbeat()

    with pytest.raises(DatasetError) as refusal:
        open_writer(clock=clock, sleep=sleep)
    assert f"run {writer.run}, process {os.getpid()}" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    writer.add(result_of(planned[0]))
    assert writer.seal() == (1, 1)


STEPS_OF_A_WRITER: dict[str, Callable[[Writer], object]] = {
    "heartbeat": Writer.heartbeat,
    "freeze": lambda writer: writer.freeze(block(4, 8)),
    "seal": Writer.seal,
    "finish": lambda writer: writer.finish({}),
}


@pytest.mark.parametrize("step", STEPS_OF_A_WRITER)
def test_writer_that_stands_still_loses_the_dataset(
    step: str, open_writer: OpenWriter, dest: Path
) -> None:
    stopped = open_writer()
    planned = stopped.freeze(block(0, 4))
    stopped.add(result_of(planned[0]))
    stopped.flush()
    stopped.add(result_of(planned[2]))
    clock = Clock()
    writer = open_writer(clock=clock, sleep=clock.sleep)
    assert STALE <= clock.now < STALE + 2
    fetch(writer)

    before = files_in(dest)
    with pytest.raises(DatasetError, match="another run took over"):
        STEPS_OF_A_WRITER[step](stopped)
    stopped.close()
    assert files_in(dest) == before
    assert all_rows(dest) == expected_rows(KEYS)
    writer.close()
    assert verify(dest) == []


def test_ended_writer_is_not_waited_for(open_writer: OpenWriter) -> None:
    def sleep(_: float) -> None:
        pytest.fail("waited for nobody")

    open_writer().close()
    writer = open_writer(sleep=sleep)
    assert writer.planned == 0


def break_file_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_store.fcntl, "flock", flock)


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_counter_alone_decides_where_files_cannot_be_locked(
    number: int, open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_file_locks(monkeypatch, number)
    first = open_writer()
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        first.heartbeat()

    with pytest.raises(DatasetError, match="another writer is at work"):
        open_writer(clock=clock, sleep=sleep)
    first.close()
    clock.now = 0.0
    second = open_writer(clock=clock, sleep=clock.sleep)
    assert clock.now == 0.0, "the first said that it is done"
    clock.now = 0.0
    open_writer(clock=clock, sleep=clock.sleep)
    assert clock.now >= STALE
    with pytest.raises(DatasetError, match="took over"):
        second.heartbeat()


@posix
def test_disk_that_fails_is_not_taken_for_one_without_locks(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_file_locks(monkeypatch, errno.EIO)
    with pytest.raises(DatasetError, match="Input/output error"):
        open_writer()


@posix
@pytest.mark.parametrize("number", [None, errno.ENOLCK])
def test_observer_that_slept_does_not_think_that_the_writer_did(
    number: int | None, open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number is not None:
        break_file_locks(monkeypatch, number)
    first = open_writer()
    now = itertools.count(0, 2 * STALE)

    def clock() -> float:  # stopped here, while the other works
        first.heartbeat()
        return float(next(now))

    with pytest.raises(DatasetError, match="another writer is at work"):
        open_writer(clock=clock, sleep=lambda _: None)
    first.heartbeat()


@posix
def test_lease_that_nobody_gave_back_is_taken_over_once_it_is_stale(
    open_writer: OpenWriter, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_file_locks(monkeypatch, errno.ENOLCK)
    dead = open_writer()
    dead._lock._close()  # all that is left of a process that was killed
    clock = Clock()
    writer = open_writer(clock=clock, sleep=clock.sleep)
    assert STALE <= clock.now < STALE + 2
    fetch(writer)
    writer.close()
    assert all_rows(dest) == expected_rows(KEYS)
    assert verify(dest) == []


def test_lock_file_stays(open_writer: OpenWriter, dest: Path) -> None:
    writer = open_writer()
    lock = dest / "_asyncfetch/lock"
    number = lock.stat().st_ino
    assert lock.read_text().split()[:2] == [writer.run, str(os.getpid())]
    writer.close()
    writer.close()
    open_writer().close()
    assert lock.stat().st_ino == number
    assert not lock.read_text().strip()


def test_lock_is_free_again_when_opening_fails(
    complete: Path, open_writer: OpenWriter
) -> None:
    part = next(complete.glob("*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match="run verify with --repair"):
        open_writer()
    part.write_bytes(whole)
    assert list((complete / "_asyncfetch/tmp").iterdir()) == []
    lock = Lock(
        complete / "_asyncfetch/lock", "0" * 16, clock=Clock(), sleep=pytest.fail
    )
    lock.acquire()
    lock.release(erase=True)


def test_dataset_works_where_there_are_no_hard_links(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    made_up.download(dest)
    assert all_rows(dest) == expected_rows(KEYS)


@pytest.mark.parametrize("links", [True, False])
def test_file_is_never_replaced(
    links: bool, open_writer: OpenWriter, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", link)
    writer = open_writer()
    (dest / "_asyncfetch/plan/00000.plan").write_text("mine")
    with pytest.raises(DatasetError, match="expected no file"):
        writer.freeze(block(0, 4))
    assert (dest / "_asyncfetch/plan/00000.plan").read_text() == "mine"


def test_report_lies_beside_the_rows(complete: Path) -> None:
    (path,) = (complete / "_asyncfetch/runs").iterdir()
    report = json.loads(path.read_text())
    assert report["asked"] == len(KEYS)
    assert report["run"] == path.stem
    assert report["committed"]["items"] == len(KEYS)
    assert report["committed"]["rows"] == len(expected_rows(KEYS))


# --- verify and repair ----------------------------------------------------------------


def first(dest: Path, pattern: str) -> Path:
    """The first file by what it holds: names begin with random digits."""
    return min(dest.glob(pattern), key=lambda path: path.name.split("-")[-1])


def flip_a_byte(path: Path, place: int = 40) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def copy_items(dest: Path) -> None:
    items = first(dest, "_asyncfetch/items/*.items")
    table = pq.read_table(items)
    rows = table.num_rows
    empty = table.set_column(
        table.column_names.index("rows"), "rows", pa.array([0] * rows)
    ).set_column(
        table.column_names.index("first_row"),
        "first_row",
        pa.array([None] * rows, pa.int64()),
    )
    no_part = pa.array([None] * rows, pa.string())
    empty = empty.set_column(table.column_names.index("part"), "part", no_part)
    stem, _, number = items.stem.rpartition("-")
    path = items.with_name(f"{stem}-{int(number) + 90:05d}.items")
    places = {"asyncfetch.name": path.name, "asyncfetch.seal": "0" * 8}
    metadata = {"asyncfetch.part": "null", **places}
    pq.write_table(empty.replace_schema_metadata(metadata), path)
    seal(path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a part is cut": (
        lambda dest: first(dest, "*.parquet").write_bytes(b"PAR1"),
        "part",
    ),
    "a byte of a part is flipped": (
        lambda dest: flip_a_byte(first(dest, "*.parquet")),
        "part",
    ),
    "a part is gone": (lambda dest: first(dest, "*.parquet").unlink(), "part-missing"),
    "an items file is gone": (
        lambda dest: first(dest, "_asyncfetch/items/*").unlink(),
        "stray",
    ),
    "an items file is cut": (
        lambda dest: first(dest, "_asyncfetch/items/*").write_bytes(b""),
        "items",
    ),
    "a byte of an items file is flipped": (
        lambda dest: flip_a_byte(first(dest, "_asyncfetch/items/*")),
        "items",
    ),
    "a part was copied": (
        lambda dest: shutil.copy(first(dest, "*.parquet"), dest / "part-0-1.parquet"),
        "stray",
    ),
    "the first block of the plan is gone": (
        lambda dest: first(dest, "_asyncfetch/plan/*").unlink(),
        "plan",
    ),
    "the second block of the plan is damaged": (
        lambda dest: flip_a_byte(dest / "_asyncfetch/plan/00001.plan"),
        "plan",
    ),
    "items are there twice": (copy_items, "key-twice"),
    "a report is cut": (
        lambda dest: first(dest, "_asyncfetch/runs/*").write_text("{"),
        "report",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_repaired_by_fetching_again(
    damage: str, complete: Path
) -> None:
    inflict, code = DAMAGES[damage]
    inflict(complete)
    before = files_in(complete)
    problems = verify(complete)
    assert code in {problem.code for problem in problems}
    assert all("\n" not in problem.text for problem in problems)
    assert files_in(complete) == before

    assert verify(complete, repair=True) == problems
    assert verify(complete) == []
    made_up.download(complete)
    assert all_rows(complete) == expected_rows(KEYS)
    assert verify(complete) == []


def test_stray_file_of_somebody_else_is_told_and_left(complete: Path) -> None:
    (complete / "notes.txt").write_text("mine")
    (complete / "old").mkdir()
    (complete / "_mine").mkdir()
    problems = verify(complete, repair=True)
    assert [(one.code, one.where) for one in problems] == [
        ("stray", "notes.txt"),
        ("stray", "old"),
    ]
    assert (complete / "notes.txt").read_text() == "mine"


def test_part_that_was_taken_away_is_fetched_again(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    for one in writer.freeze(block(8, ROOTS, last=True)):
        writer.add(result_of(one))
        writer.seal()
    writer.finish({})
    writer.close()
    first(dest, "*.parquet").unlink()
    again = open_writer()
    assert keys_of(flat(again.pending())) == ["8"]
    fetch(again)
    again.close()
    assert all_rows(dest) == expected_rows("89")
    assert verify(dest) == []


def test_part_that_others_hang_on_is_not_just_fetched_again(
    open_writer: OpenWriter, dest: Path
) -> None:
    writer = open_writer()
    planned = writer.freeze(block(0, 4, last=True))
    (found, _) = writer.add(result_of(planned[2]))
    writer.seal()
    writer.add(result_of(found))
    writer.seal()
    writer.close()
    first(dest, "*.parquet").unlink()
    # Fetching "2" again would plan "2a" again, and its rows are there.
    with pytest.raises(DatasetError, match="run verify with --repair"):
        open_writer()
    assert {one.code for one in verify(dest, repair=True)} == {
        "part-missing",
        "items-unplanned",
    }
    assert keys_of(flat(open_writer().pending())) == ["0", "1", "2", "3"]


def test_verify_waits_for_no_writer(
    open_writer: OpenWriter, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer()
    monkeypatch.setattr(time, "sleep", lambda _: writer.heartbeat())
    for repair in (False, True):
        with pytest.raises(DatasetError, match="another writer is at work"):
            verify(dest, repair=repair)
    writer.close()
    assert verify(dest) == []


def test_archive_that_cannot_be_written_can_be_verified(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(_: Lock) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Lock, "acquire", acquire)
    assert verify(complete) == []
    with pytest.raises(DatasetError, match="can be written"):
        verify(complete, repair=True)


def test_view_of_a_dataset_that_is_being_written_holds_whole_commits(
    open_writer: OpenWriter, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer()
    todo = writer.freeze(Block((item("0"),), cursor=None))
    names = LocalStore.names

    def commit() -> None:
        one = todo.pop()
        child = item(f"{one.item.key}/next")
        rows = batch_of([(one.ordinal, one.item.key)])
        # Rows and no rows by turns: one with no part counts at once.
        batches = (rows,) if one.ordinal % 2 else ()
        todo.extend(writer.add(result_of(one, batches=batches, follow_up=(child,))))
        writer.seal()

    def names_while_writing(store: LocalStore, folder: str = "") -> dict[str, int]:
        commit()
        found = names(store, folder)
        commit()
        return found

    monkeypatch.setattr(LocalStore, "names", names_while_writing)
    view = open_dataset(dest)
    monkeypatch.undo()
    items = view.items.column("ordinal").to_pylist()
    assert sorted(items) == list(range(len(items)))
    assert items
    assert view.state().items == {"ok": len(items)}
    assert view.state().rows == sum(n % 2 for n in items)


# --- against a model ------------------------------------------------------------------


class DatasetMachine(RuleBasedStateMachine):
    """A dataset beside a few sets that say what it must hold."""

    fed = Bundle("fed")

    def __init__(self) -> None:
        super().__init__()
        self.frozen = 0
        self.limit: int | None = None
        self.planned: dict[str, str | None] = {}
        self.ended: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        self.found: dict[str, str] = {}
        self.writer: Writer | None = None
        folder = Path(os.environ["PYTEST_CURRENT_TEST_FOLDER"])
        self.dest = folder / str(len(list(folder.iterdir())))

    def root(self, key: str) -> int:
        return int(key.partition("/")[0])

    def is_within(self, key: str) -> bool:
        return self.limit is None or self.root(key) < self.limit

    @precondition(lambda self: self.writer is None)
    @rule(target=fed, limit=st.none() | st.integers(0, 12))
    def open(self, limit: int | None) -> Any:
        self.limit = limit
        record = replace(RECORD, limit=limit)
        self.writer = Writer.open(self.dest, record, SCHEMA)
        pending = flat(self.writer.pending())
        assert {one.item.key for one in pending} == {
            key
            for key in self.planned
            if self.ended.get(key, "failed") == "failed" and self.is_within(key)
        }
        assert len(pending) == len({one.item.key for one in pending})
        return self.feed(pending)

    def feed(self, planned: list[PlannedItem]) -> Any:
        return multiple(*((self.writer, one) for one in planned))

    @precondition(lambda self: self.writer is not None)
    @rule(target=fed, count=st.integers(0, 4))
    def freeze(self, count: int) -> Any:
        assert self.writer is not None
        keys = [str(n) for n in range(self.frozen, self.frozen + count)]
        self.frozen += count
        self.planned.update(dict.fromkeys(keys))
        frozen = self.writer.freeze(Block(tuple(map(item, keys)), cursor=self.frozen))
        assert keys_of(frozen) == [key for key in keys if self.is_within(key)]
        return self.feed(frozen)

    @rule(
        target=fed,
        one=consumes(fed),
        outcome=st.sampled_from(["ok", "ok", "missing", "failed"]),
        children=st.integers(0, 2),
    )
    def end(self, one: tuple[Writer, PlannedItem], outcome: str, children: int) -> Any:
        writer, planned = one
        if writer is not self.writer:
            return multiple()  # it was fed by a run that died
        key = planned.item.key
        self.waiting[key] = outcome
        if outcome == "failed":
            writer.add(failure_of(planned))
            return multiple()
        follow_up = tuple(item(f"{key}/{n}") for n in range(children))
        batches = (batch_of(self.rows_of(key)),) if outcome == "ok" else ()
        found = writer.add(
            result_of(
                planned,
                outcome=Outcome(outcome),
                batches=batches,
                follow_up=follow_up,
            )
        )
        self.found.update((one.item.key, key) for one in found)
        return self.feed(found)

    def rows_of(self, key: str) -> list[tuple[int, str]]:
        return [(n, key) for n in range(len(key) % 3)]

    @precondition(lambda self: self.writer is not None)
    @rule()
    def flush(self) -> None:
        assert self.writer is not None
        self.writer.flush()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def seal(self) -> None:
        assert self.writer is not None
        sealed = self.writer.seal()
        assert (sealed or (0, 0))[0] == len(self.waiting)
        self.keep()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def finish(self) -> None:
        assert self.writer is not None
        self.writer.finish({})
        self.keep()
        self.leave()
        assert self.writer is None

    def keep(self) -> None:
        self.ended.update(self.waiting)
        self.planned.update(self.found)
        self.waiting, self.found = {}, {}

    @precondition(lambda self: self.writer is not None)
    @rule()
    def leave(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.forget()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def die(self) -> None:
        assert self.writer is not None
        self.writer._lock._close()  # all that the kernel does for a dead process
        self.forget()

    def forget(self) -> None:
        self.writer, self.waiting, self.found = None, {}, {}

    @precondition(lambda self: self.writer is None and self.dest.exists())
    @invariant()
    def holds_what_was_committed(self) -> None:
        view = open_dataset(self.dest)
        assert view.state().items == {
            outcome: count
            for outcome in ("ok", "missing", "failed")
            if (count := list(self.ended.values()).count(outcome))
        }
        rows = view.rows.to_table().to_pydict() if view.state().parts else {}
        assert sorted(zip(rows.get("id", []), rows.get("key", []), strict=True)) == (
            sorted(
                row
                for key, outcome in self.ended.items()
                if outcome == "ok"
                for row in self.rows_of(key)
            )
        )
        assert verify(self.dest) == []

    def teardown(self) -> None:
        if self.writer is not None:
            self.writer.close()
        shutil.rmtree(self.dest, ignore_errors=True)


def test_dataset_behaves_like_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("PYTEST_CURRENT_TEST_FOLDER", str(tmp_path))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run_state_machine_as_test(
        DatasetMachine,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@given(
    st.builds(
        PlanRecord,
        service=st.text(),
        base_url=st.text(),
        table=st.text(),
        filters=st.dictionaries(st.text(), st.none() | st.integers() | st.text()),
        limit=st.none() | st.integers(0),
        schema_id=st.text(),
        version=st.text(),
    )
)
def test_plan_record_reads_back_as_it_was(record: PlanRecord) -> None:
    assert PlanRecord.from_json(record.to_json()) == record

"""What is on disk and how it gets there: a dataset that is its own journal.

::

    <dest>/part-<run>-<nnnnn>.parquet          rows
    <dest>/_asyncfetch/plan.json               what was asked
                      /plan/<nnnnn>.plan       the items that it comes to
                      /items/part-<run>-<nnnnn>.items   what became of them
                      /runs/<run>.json         reports
                      /tmp/<run>/              work in progress of one run
                      /lock

A commit publishes up to three files: the plan rows of items that were found on the way,
the items file, and the part. The items file names its part with its size, and counts
when that part is there (or when it has none), so **the last rename is the commit**.
Killed before it, the next run deletes the items file and asks again; killed after it,
nothing is asked again.

Ordinals are never used twice for different items while anything refers to them. A plan
row of a follow-up counts only when the counted items row of its parent lists it; one
that became durable while its commit did not stays where it is and means nothing, and
its ordinal is burnt: the next run numbers on from the highest ordinal in the plan. So
the plan is only ever appended to. An ordinal that was drawn in memory and never reached
the disk may be drawn again, because whatever refers to it died with the process.

The parts with ``_store`` in their names: how a file becomes durable, who may write, and
what becomes of a writer that was only asleep.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from asyncfetch._model import (
    Block,
    FailedItem,
    Item,
    ItemResult,
    Json,
    Outcome,
    PlannedItem,
    Request,
)
from asyncfetch._store import RECORDS, LocalStore, Lock, Staging, crash_point
from asyncfetch.errors import ConfigurationError, DatasetError

PLAN_FILE = f"{RECORDS}/plan.json"
PLAN = f"{RECORDS}/plan"
ITEMS = f"{RECORDS}/items"
RUNS = f"{RECORDS}/runs"

# Small enough for a reader's cache and our memory, large enough to compress well.
GROUP_ROWS = 128 * 1024
# What may wait in memory beside the row limit: wide rows, and items without rows.
GROUP_BYTES = 32 * 1024 * 1024
GROUP_ITEMS = 8192
PART_ROWS = 1_000_000
PART_BYTES = 128 * 1024 * 1024
PART_ITEMS = 50_000

JSON = pa.json_(pa.string())

PLAN_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("key", pa.string()),
        ("request", JSON),
        ("context", JSON),
        ("parent", pa.int64()),
    ]
)

ITEMS_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("outcome", pa.string()),
        ("http_status", pa.int16()),
        ("rows", pa.int64()),
        ("rows_duplicate", pa.int64()),
        ("first_row", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("etag", pa.string()),
        ("last_modified", pa.string()),
        ("attempts", pa.int32()),
        ("elapsed", pa.float64()),
        ("fetched_at", pa.timestamp("us", "UTC")),
        ("error_class", pa.string()),
        ("error", pa.string()),
        ("diagnostics", pa.list_(pa.string())),
        ("detail", JSON),
        ("follow_up", pa.list_(pa.int64())),
        ("path", pa.string()),
        ("part", pa.string()),
    ]
)

# One byte per ordinal. The order is that of the rule "the state of an item is the best
# of its counted rows", so that the rule is a maximum.
# 0: no such ordinal, or one that is burnt.
PLANNED = 1
CODES = {
    Outcome.FAILED: 2,
    Outcome.MISSING: 3,
    Outcome.OK: 4,
    Outcome.UNCHANGED: 5,
    Outcome.SPLIT: 6,
}
FAILED = CODES[Outcome.FAILED]
MISSING = CODES[Outcome.MISSING]

Bytes: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]
Longs: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What was asked: the content of ``plan.json``."""

    service: str
    base_url: str
    table: str
    filters: Mapping[str, Json]
    limit: int | None
    """Items at most, not counting those that are found in a response."""
    schema_id: str
    version: str
    """Of the package that began the dataset."""

    def to_json(self) -> str:
        """Text for people and programs."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps({**values, "filters": dict(self.filters)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PlanRecord:
        """Undo :meth:`to_json`; keys of later versions are passed over."""
        found = json.loads(text)
        return cls(**{one.name: found[one.name] for one in fields(cls)})

    def differences(self, other: PlanRecord) -> list[str]:
        """How *other* asks for something else, one phrase each."""
        here, there = self._question(), other._question()
        return [
            f"{name} is {here.get(name)!r} and not {there.get(name)!r}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]

    def _question(self) -> dict[str, Any]:
        question = {
            name: getattr(self, name) for name in ("service", "base_url", "table")
        }
        for name, value in json.loads(json.dumps(dict(self.filters))).items():
            question[f"filter {name}"] = value
        return question


def schema_id(schema: pa.Schema) -> str:
    """Hash of names, types and nullability; a corrected description changes nothing."""
    text = "\n".join(f"{one.name}\t{one.type}\t{one.nullable}" for one in schema)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _KeySet:
    """Which keys have been seen, in eight bytes each.

    Keys are known by a 64-bit hash: among ten million, two are mistaken for each other
    with a probability of 3e-6. Sorted arrays of growing size are searched one after the
    other; a neighbour of the same size is merged, so there are few.
    """

    def __init__(self) -> None:
        self._runs: list[Longs] = []

    def add(self, keys: Longs) -> Flags:
        """Take *keys* in; for each, whether it is here for the first time."""
        distinct, first = np.unique(keys, return_index=True)
        known = np.zeros(len(distinct), dtype=np.bool_)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            known |= run[place] == distinct
        fresh = np.zeros(len(keys), dtype=np.bool_)
        fresh[first[~known]] = True
        if not known.all():
            self._runs.append(distinct[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")  # two sorted runs: a merge
            self._runs.append(merged)
        return fresh


def _hashes(values: pa.Array | list[str]) -> Longs:
    """64-bit hashes; of integers, themselves."""
    if isinstance(values, pa.Array) and pa.types.is_integer(values.type):
        whole: Longs = values.to_numpy(zero_copy_only=False).astype(np.int64)
        return whole
    # Python's hash of text is keyed by each process: good for the memory of one.
    texts = values.to_pylist() if isinstance(values, pa.Array) else values
    return np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))


@dataclass(frozen=True, slots=True)
class _Commit:
    """An items file, and the part that makes it count."""

    name: str
    """Of the items file."""
    items: int
    part: str | None
    rows: int
    size: int
    """Of the part, in bytes."""

    @classmethod
    def of(cls, name: str, metadata: pq.FileMetaData) -> _Commit:
        """What the footer of an items file says."""
        part = json.loads(metadata.metadata[b"asyncfetch.part"])
        if part is None:
            return cls(name, metadata.num_rows, None, 0, 0)
        return cls(name, metadata.num_rows, part["name"], part["rows"], part["bytes"])


@dataclass(frozen=True, slots=True)
class _PlanBlock:
    """A file of plan rows, and the ordinals between which they lie."""

    name: str
    first: int
    last: int


class _Ledger:
    """What counts in a dataset: its commits, and one byte for each ordinal.

    Parameters
    ----------
    limit
        Items of the enumeration that are within the plan.
    keys
        Takes the keys of the items that are planned, if they are wanted.
    """

    def __init__(
        self, store: LocalStore, limit: int | None, keys: _KeySet | None = None
    ) -> None:
        self._store = store
        self._limit = math.inf if limit is None else limit
        self.commits: list[_Commit] = []
        self.uncounted: list[str] = []
        self.blocks: list[_PlanBlock] = []
        self.next_block = 0
        self.next_ordinal = 0
        self.roots = 0
        self.cursor: Json = None
        self.complete = False
        self.state: Bytes = np.zeros(1024, dtype=np.uint8)
        self.within: Flags = np.zeros(1024, dtype=np.bool_)
        self._load(keys)

    def _load(self, keys: _KeySet | None) -> None:
        # In this order: while a writer is at work, then at most its last commit lacks
        # its part here, and none that builds on it is in the list.
        names = _items_names(self._store)
        parts = self._store.names()
        listed: list[Longs] = [np.zeros(0, dtype=np.int64)]
        for name in names:
            with _opened(self._store.path(f"{ITEMS}/{name}"), ["outcome"]) as file:
                commit = _Commit.of(name, file.metadata)
                if commit.part is not None and commit.part not in parts:
                    self.uncounted.append(name)
                    continue
                if commit.part is not None and parts[commit.part] != commit.size:
                    raise DatasetError(
                        f"expected {commit.size} bytes, got {parts[commit.part]} in "
                        f"{self._store.path(commit.part)}: run verify with --repair"
                    )
                self.commits.append(commit)
                listed.extend(self._read_items(file))
        follow_ups = np.unique(np.concatenate(listed))
        ended = int(np.count_nonzero(self.state))
        for name in _plan_names(self._store):
            with _opened(self._store.path(f"{PLAN}/{name}")) as file:
                ended -= self._read_block(name, file, follow_ups, keys)
        if ended:
            # No kill leaves this: what a lost response led to was committed after it.
            raise DatasetError(
                f"expected items of the plan, got {ended} that it does not hold in "
                f"{self._store.path(ITEMS)}: files were taken away; run verify with "
                "--repair"
            )

    def _read_items(self, file: pq.ParquetFile) -> Iterator[Longs]:
        for batch in file.iter_batches(columns=["ordinal", "outcome", "follow_up"]):
            ordinals, outcomes, follow_up = batch.columns
            codes = np.array(
                [CODES[Outcome(one)] for one in outcomes.dictionary.to_pylist()],
                dtype=np.uint8,
            )[outcomes.indices.to_numpy()]
            numbers = ordinals.to_numpy()
            self.reserve(int(numbers.max(initial=-1)) + 1)
            np.maximum.at(self.state, numbers, codes)
            yield follow_up.flatten().to_numpy()

    def _read_block(
        self,
        name: str,
        file: pq.ParquetFile,
        follow_ups: Longs,
        keys: _KeySet | None,
    ) -> int:
        """Know a block of the plan; how many of its items have ended."""
        wanted = ["ordinal", "parent"] if keys is None else ["ordinal", "parent", "key"]
        first, last, ended = -1, -1, 0
        for batch in file.iter_batches(columns=wanted):
            ordinals = batch.column("ordinal").to_numpy()
            if not len(ordinals):
                continue
            first = int(ordinals[0]) if first < 0 else first
            last = int(ordinals[-1])
            self.reserve(last + 1)
            parents = batch.column("parent")
            counts: Flags = np.ones(len(ordinals), dtype=np.bool_)
            if not parents.null_count:
                counts = np.isin(ordinals, follow_ups)
            ended += int(np.count_nonzero(self.state[ordinals[counts]]))
            if parents.null_count:
                self.plan_roots(ordinals)
            else:
                self._plan_found(ordinals[counts], parents.to_numpy()[counts])
            if keys is not None:
                keys.add(_hashes(batch.column("key").filter(pa.array(counts))))
        self.add_block(name, first, last)
        metadata = file.metadata.metadata
        if b"asyncfetch.cursor" in metadata:
            self.cursor = json.loads(metadata[b"asyncfetch.cursor"])
            self.complete = self.cursor is None
        return ended

    def add_block(self, name: str, first: int, last: int) -> None:
        """Know a file of plan rows."""
        self.blocks.append(_PlanBlock(name, first, last))
        self.next_block = int(name[:-5]) + 1

    def reserve(self, ordinals: int) -> None:
        """Make room for so many."""
        self.next_ordinal = max(self.next_ordinal, ordinals)
        more = max(ordinals, 2 * len(self.state)) - len(self.state)
        if ordinals > len(self.state):
            self.state = np.pad(self.state, (0, more))
            self.within = np.pad(self.within, (0, more))

    def plan_roots(self, ordinals: Longs) -> int:
        """Plan items of the enumeration; how many of them the limit lets in."""
        self.reserve(int(ordinals[-1]) + 1)
        room = int(min(max(self._limit - self.roots, 0), len(ordinals)))
        self.roots += len(ordinals)
        self.state[ordinals] = np.maximum(self.state[ordinals], PLANNED)
        self.within[ordinals[:room]] = True
        return room

    def _plan_found(self, ordinals: Longs, parents: Longs) -> None:
        self.state[ordinals] = np.maximum(self.state[ordinals], PLANNED)
        if math.isinf(self._limit):
            self.within[ordinals] = True
            return
        # A parent may lie in the same block, always before its children.
        for ordinal, parent in zip(ordinals.tolist(), parents.tolist(), strict=True):
            self.within[ordinal] = self.within[parent]

    def plan_found(self, found: range) -> None:
        """Plan items that were found in the response to one within the limit."""
        self.reserve(found.stop)
        self.state[found.start : found.stop] = PLANNED
        self.within[found.start : found.stop] = True

    def settle(self, ordinal: int, outcome: Outcome) -> None:
        """Take note that an item has ended."""
        self.state[ordinal] = max(int(self.state[ordinal]), CODES[outcome])

    @property
    def ended(self) -> int:
        """Items that need not be asked for again."""
        return int(np.count_nonzero(self.state > FAILED))

    @property
    def planned(self) -> int:
        """Items within the limit, and those beyond it that ended under a wider one."""
        ended = self.state > PLANNED
        return int(np.count_nonzero(ended | ((self.state == PLANNED) & self.within)))

    @property
    def wants_more(self) -> bool:
        """Whether the enumeration has more to give within the limit."""
        return not self.complete and self.roots < self._limit

    @property
    def rows(self) -> int:
        """Rows in the parts that count."""
        return sum(commit.rows for commit in self.commits)

    @property
    def parts(self) -> int:
        """Parts that count."""
        return sum(commit.part is not None for commit in self.commits)

    def counts(self) -> dict[str, int]:
        """Items by outcome, each with its best."""
        tally = np.bincount(self.state, minlength=len(CODES) + 2)
        return {
            outcome.value: int(tally[code])
            for outcome, code in CODES.items()
            if tally[code]
        }

    def pending(
        self, *, retry_failed: bool, only: Collection[int] | None
    ) -> Iterator[list[PlannedItem]]:
        """Items that have not ended by now, a row group of the plan at a time."""
        best = FAILED if retry_failed else PLANNED
        wanted = (self.state >= PLANNED) & (self.state <= best) & self.within
        if only is not None:  # those that are missing may be asked for by name
            named = np.isin(np.arange(len(self.state)), list(only))
            wanted = named & (self.state >= PLANNED) & (self.state <= MISSING)
        return self._planned_items(tuple(self.blocks), wanted)

    def _planned_items(
        self, blocks: tuple[_PlanBlock, ...], wanted: Flags
    ) -> Iterator[list[PlannedItem]]:
        for block in blocks:
            if not wanted[block.first : block.last + 1].any():
                continue
            with _opened(self._store.path(f"{PLAN}/{block.name}")) as file:
                for group in range(file.num_row_groups):
                    ordinals = file.read_row_group(group, columns=["ordinal"])
                    mask = wanted[ordinals.column(0).to_numpy()]
                    if mask.any():
                        rows = file.read_row_group(group).filter(pa.array(mask))
                        yield [_planned_item(row) for row in rows.to_pylist()]

    def items(self) -> pads.Dataset:
        """The items files that count."""
        paths = [str(self._store.path(f"{ITEMS}/{one.name}")) for one in self.commits]
        if not paths:
            return pads.dataset(ITEMS_SCHEMA.empty_table())
        return pads.dataset(paths, schema=ITEMS_SCHEMA, format="parquet")

    def failed(self, limit: int) -> list[FailedItem]:
        """The first items that failed in the end, each with its latest reason."""
        ordinals = np.flatnonzero(self.state == FAILED)[:limit]
        rows = self.items().to_table(
            columns=["ordinal", "key", "url", "error_class", "error", "fetched_at"],
            filter=pads.field("ordinal").isin(pa.array(ordinals)),
        )
        latest: dict[int, FailedItem] = {}
        for row in rows.sort_by("fetched_at").to_pylist():
            latest[row["ordinal"]] = FailedItem(
                key=row["key"],
                url=row["url"],
                error_class=row["error_class"] or "",
                error=row["error"] or "",
            )
        return [latest[ordinal] for ordinal in sorted(latest)]

    def details(self) -> Iterator[Mapping[str, Any]]:
        """What was learned beside the rows of each item that is ok, in plan order."""
        items = self.items()
        step = 2 * GROUP_ITEMS  # a header may be kilobytes
        is_ok = pads.field("outcome").isin(["ok", "unchanged"])
        for start in range(0, self.next_ordinal, step):
            near = pads.field("ordinal") >= start
            near &= pads.field("ordinal") < start + step
            rows = items.to_table(columns=["ordinal", "detail"], filter=near & is_ok)
            for text in rows.sort_by("ordinal").column("detail").to_pylist():
                yield json.loads(text) if text else {}


def _plan_names(store: LocalStore) -> list[str]:
    """The plan's files in their order."""
    names = [name.removesuffix(".plan") for name in store.names(PLAN)]
    return [f"{name}.plan" for name in sorted(filter(str.isdigit, names), key=int)]


def _items_names(store: LocalStore) -> list[str]:
    return [name for name in store.names(ITEMS) if name.endswith(".items")]


def _run_of(name: str) -> str:
    """The run that committed a part or items file."""
    return name.split("-")[1]


def _committed(commits: Collection[_Commit], run: str) -> dict[str, int]:
    """What a run has committed, as its report says it."""
    own = [one for one in commits if _run_of(one.name) == run]
    return {
        "items": sum(one.items for one in own),
        "rows": sum(one.rows for one in own),
        "parts": sum(one.part is not None for one in own),
    }


@contextmanager
def _opened(
    path: Path, categories: list[str] | None = None, *, verify: bool = False
) -> Iterator[pq.ParquetFile]:
    """A Parquet file, or one clear line when it is none.

    An error of the file system is one, too: Arrow tells some damage like that.
    """
    try:
        with pq.ParquetFile(
            path, read_dictionary=categories, page_checksum_verification=verify
        ) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"expected a file of the dataset, got a damaged one at {path}: "
            f"{str(error).splitlines()[0]}; run verify with --repair"
        ) from error


def _planned_item(row: Mapping[str, Any]) -> PlannedItem:
    item = Item(
        key=row["key"],
        request=Request.from_json(row["request"]),
        context=json.loads(row["context"]),
    )
    return PlannedItem(ordinal=row["ordinal"], item=item, parent=row["parent"])


def _plan_row(planned: PlannedItem) -> tuple[Any, ...]:
    item = planned.item
    context = json.dumps(dict(item.context), separators=(",", ":"))
    return planned.ordinal, item.key, item.request.to_json(), context, planned.parent


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [
        pa.ExtensionArray.from_storage(JSON, pa.array(values, pa.string()))
        if field.type == JSON
        else pa.array(values, field.type)
        for values, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


class _StagedFile:
    """A Parquet file that grows under ``tmp/<run>/``."""

    def __init__(
        self, staging: Staging, name: str, schema: pa.Schema, **options: Any
    ) -> None:
        self.name = name
        self.schema = schema
        self.rows = 0
        with staging.fenced():
            self._sink = pa.OSFile(str(staging.path(name)), mode="wb")
        self._writer = pq.ParquetWriter(
            self._sink, schema, compression="zstd", write_page_checksum=True, **options
        )

    @property
    def bytes(self) -> int:
        """Length so far."""
        return int(self._sink.tell())

    def write(self, table: pa.Table, group_rows: int = GROUP_ITEMS) -> None:
        """Add row groups of at most *group_rows*."""
        self._writer.write_table(table, row_group_size=group_rows)
        self.rows += table.num_rows

    def close(self, metadata: Mapping[str, str]) -> int:
        """Write the footer; the length of the file."""
        self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()
        length = self.bytes
        self._sink.close()
        return length

    def abandon(self) -> None:
        """Let the file go; what is in it does not matter."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._sink.close()


class Writer:
    """The one process that may change a dataset.

    Everything here may wait for the disk, except :meth:`add` and the properties, which
    are made for the event loop. One call at a time. After an error nothing but
    :meth:`close` is of use.
    """

    def __init__(
        self,
        store: LocalStore,
        staging: Staging,
        lock: Lock,
        *,
        record: PlanRecord,
        schema: pa.Schema,
        row_key: str | None,
        seal_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.record = record
        self.run = staging.run
        self._store = store
        self._staging = staging
        self._lock = lock
        self._schema = schema
        self._row_key = row_key
        self._seal_seconds = seal_seconds
        self._clock = clock
        self._started = clock()
        self._closed = False
        self._keys = _KeySet()
        self._ledger = _Ledger(store, record.limit, self._keys)
        for name in self._ledger.uncounted:
            store.remove(f"{ITEMS}/{name}")
            # Its run was killed and left no report, or a part was taken away since.
            store.remove(f"{RUNS}/{_run_of(name)}.json")
            crash_point("takeover-dropped")
        self._taken = _KeySet() if row_key is None else self._row_keys(row_key)
        # The commit that is open, and what waits in memory to join it.
        self._commits = 0
        self._part: _StagedFile | None = None
        self._items: _StagedFile | None = None
        self._follow: _StagedFile | None = None
        self._batches: list[pa.RecordBatch] = []
        self._item_rows: list[tuple[Any, ...]] = []
        self._found: list[PlannedItem] = []
        self._queued_rows = 0
        self._queued_bytes = 0
        self._open_rows = 0
        self._open_items = 0
        self._open_found = 0
        self._opened_at: float | None = None

    @classmethod
    def open(
        cls,
        dest: str | Path,
        record: PlanRecord | None,
        schema: pa.Schema,
        *,
        row_key: str | None = None,
        seal_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """Become the writer of the dataset at *dest*, which is made if need be.

        Parameters
        ----------
        record
            What is asked. None takes whatever plan the dataset holds. The same question
            with another limit is the same plan, extended or narrowed.
        schema
            Of the rows.
        row_key
            Column whose value must be unique among the rows of the dataset.
        seal_seconds
            A commit is due so long after the first result that it will hold, or after
            2 % of the run's age when that is longer (10 minutes at most).
        clock, sleep
            Seconds that only grow, and how to wait for another writer.

        Raises
        ------
        ConfigurationError
            The name cannot be a dataset's.
        DatasetError
            The dataset holds another plan or other columns, another writer is at work,
            or the directory is no dataset or cannot be written. The disk is as it was.
        """
        store = LocalStore(_destination(dest))
        _agreed(store, record, schema)
        run = secrets.token_hex(8)
        staging = Staging(store, run)
        lock = Lock(store.path(f"{RECORDS}/lock"), run, clock=clock, sleep=sleep)
        try:
            store.create()
            lock.acquire()
        except OSError as error:
            raise _unwritable(store.root, error) from error
        crash_point("open-locked")
        try:
            staging.announce()
            agreed = _agreed(store, record, schema)  # nobody else changes it now
            writer = cls(
                store,
                staging,
                lock,
                record=agreed,
                schema=schema,
                row_key=row_key,
                seal_seconds=seal_seconds,
                clock=clock,
            )
            if store.read_text(PLAN_FILE) != agreed.to_json():
                staging.replace(agreed.to_json(), PLAN_FILE, "plan")
        except BaseException:
            _let_go(staging, lock)
            raise
        return writer

    def _row_keys(self, row_key: str) -> _KeySet:
        taken = _KeySet()
        for commit in self._ledger.commits:
            if commit.part is not None:
                with _opened(self._store.path(commit.part)) as file:
                    for batch in file.iter_batches(columns=[row_key]):
                        taken.add(_hashes(batch.column(0).drop_null()))
        return taken

    @property
    def cursor(self) -> Json:
        """Where the enumeration goes on."""
        return self._ledger.cursor

    @property
    def plan_complete(self) -> bool:
        """Whether the enumeration has come to its end."""
        return self._ledger.complete

    @property
    def wants_more(self) -> bool:
        """Whether there is more to enumerate within the limit."""
        return self._ledger.wants_more

    @property
    def planned(self) -> int:
        """Items within the limit, and those beyond it that ended under a wider one."""
        return self._ledger.planned

    @property
    def ended(self) -> int:
        """Items that need not be asked for again."""
        return self._ledger.ended

    @property
    def rows(self) -> int:
        """Rows that are committed."""
        return self._ledger.rows

    @property
    def parts(self) -> int:
        """Parts that are committed."""
        return self._ledger.parts

    @property
    def spool_dir(self) -> Path:
        """Directory for temporary files of this run; it ends with it."""
        return self._staging.folder

    def counts(self) -> dict[str, int]:
        """Items by outcome, those included that wait for their commit."""
        return self._ledger.counts()

    def failed(self, limit: int = 100) -> list[FailedItem]:
        """The first of the committed items that failed in the end."""
        return self._ledger.failed(limit)

    def details(self) -> Iterator[Mapping[str, Any]]:
        """What was learned beside the rows of each committed item, in plan order."""
        return self._ledger.details()

    def pending(
        self, *, retry_failed: bool = True, only: Collection[int] | None = None
    ) -> Iterator[list[PlannedItem]]:
        """Planned items that have not ended by now, some thousands at a time.

        Parameters
        ----------
        retry_failed
            Whether those are among them that failed.
        only
            Ordinals to which to keep; what is missing may then be asked for again, too.
        """
        return self._ledger.pending(retry_failed=retry_failed, only=only)

    def freeze(self, block: Block) -> list[PlannedItem]:
        """Make a block of the enumeration durable; its items within the limit.

        An item whose key is planned already is left out.
        """
        fresh = self._keys.add(_hashes([item.key for item in block.items]))
        ledger = self._ledger
        first = ledger.next_ordinal
        planned = [
            PlannedItem(ordinal=ordinal, item=block.items[place])
            for ordinal, place in enumerate(np.flatnonzero(fresh), first)
        ]
        file = _StagedFile(self._staging, "block.plan", PLAN_SCHEMA)
        file.write(_table([_plan_row(one) for one in planned], PLAN_SCHEMA))
        file.close({"asyncfetch.cursor": json.dumps(block.cursor)})
        self._publish_plan(file, "block", first, first + len(planned) - 1)
        ledger.cursor, ledger.complete = block.cursor, block.cursor is None
        room = 0
        if planned:
            room = ledger.plan_roots(np.arange(first, first + len(planned)))
        return planned[:room]

    def _publish_plan(
        self, file: _StagedFile, what: str, first: int, last: int
    ) -> None:
        name = f"{self._ledger.next_block:05d}.plan"
        self._staging.publish(file.name, f"{PLAN}/{name}", what)
        self._ledger.add_block(name, first, last)

    def add(self, result: ItemResult) -> list[PlannedItem]:
        """Queue a result for the next commit; the items that were found in it.

        Touches nothing but memory. The found items become durable with the commit; one
        whose key is planned already is left out.
        """
        if self._opened_at is None:
            self._opened_at = self._clock()
        found = self._number(result)
        batches, duplicate = self._without_taken(result.batches)
        rows = sum(batch.num_rows for batch in batches)
        detail = json.dumps(dict(result.detail)) if result.detail else None
        error = result.error
        self._item_rows.append(
            (
                result.ordinal,
                result.key,
                result.url,
                result.outcome.value,
                result.http_status,
                rows,
                duplicate,
                self._open_rows if rows else None,
                result.bytes,
                result.sha256,
                result.etag,
                result.last_modified,
                result.attempts,
                result.elapsed,
                result.fetched_at,
                None if error is None else type(error).__name__,
                None if error is None else str(error),
                list(result.diagnostics),
                detail,
                [one.ordinal for one in found],
                None,
                self._stem + ".parquet" if rows else None,
            )
        )
        self._ledger.settle(result.ordinal, result.outcome)
        self._batches.extend(batches)
        self._found.extend(found)
        self._queued_rows += rows
        self._queued_bytes += sum(batch.get_total_buffer_size() for batch in batches)
        self._queued_bytes += len(detail or "") + 200 * len(found)
        self._open_rows += rows
        self._open_items += 1
        return found

    @property
    def _stem(self) -> str:
        return f"part-{self.run}-{self._commits:05d}"

    def _number(self, result: ItemResult) -> list[PlannedItem]:
        if not result.follow_up:
            return []
        fresh = self._keys.add(_hashes([item.key for item in result.follow_up]))
        items = [result.follow_up[place] for place in np.flatnonzero(fresh)]
        first = self._ledger.next_ordinal
        self._ledger.plan_found(range(first, first + len(items)))
        return [
            PlannedItem(ordinal=first + n, item=item, parent=result.ordinal)
            for n, item in enumerate(items)
        ]

    def _without_taken(
        self, batches: tuple[pa.RecordBatch, ...]
    ) -> tuple[list[pa.RecordBatch], int]:
        """Batches without rows whose key another row has, and how many those were."""
        if self._row_key is None:
            return [batch for batch in batches if batch.num_rows], 0
        left, dropped = [], 0
        for batch in batches:
            keys = batch.column(self._row_key)
            if pa.types.is_dictionary(keys.type):
                keys = keys.dictionary_decode()
            fresh = np.ones(len(keys), dtype=np.bool_)  # a row without a key stays
            has_key = keys.is_valid().to_numpy(zero_copy_only=False)
            fresh[has_key] = self._taken.add(_hashes(keys.drop_null()))
            kept = batch if fresh.all() else batch.filter(pa.array(fresh))
            dropped += batch.num_rows - kept.num_rows
            if kept.num_rows:
                left.append(kept)
        return left, dropped

    @property
    def wants_flush(self) -> bool:
        """Whether enough waits in memory for a row group."""
        return (
            self._queued_rows >= GROUP_ROWS
            or self._queued_bytes >= GROUP_BYTES
            or len(self._item_rows) >= GROUP_ITEMS
        )

    def flush(self) -> None:
        """Move what waits in memory to the open files under ``tmp/<run>/``."""
        if self._batches:
            self._flush_rows()
        if self._found:
            if self._follow is None:
                self._open_found = self._found[0].ordinal
                self._follow = _StagedFile(self._staging, "follow.plan", PLAN_SCHEMA)
            rows = [_plan_row(one) for one in self._found]
            self._follow.write(_table(rows, PLAN_SCHEMA))
        if self._item_rows:
            self._flush_items()
        self._batches, self._found, self._item_rows = [], [], []
        self._queued_rows = self._queued_bytes = 0
        # What the allocator keeps for later would grow with every group.
        pa.default_memory_pool().release_unused()

    def _flush_rows(self) -> None:
        if self._part is None:
            self._part = self._new_part(self._batches[0].schema)
        schema = self._part.schema
        table = pa.Table.from_batches(
            [_conformed(batch, schema) for batch in self._batches], schema
        ).unify_dictionaries()
        table = table.combine_chunks()  # one piece to encode, not one for every item
        # Equal groups rather than full ones and a stub.
        groups = max(1, table.num_rows // GROUP_ROWS)
        self._part.write(table, math.ceil(table.num_rows / groups))

    def _flush_items(self) -> None:
        if self._items is None:
            self._items = _StagedFile(self._staging, "part.items", ITEMS_SCHEMA)
        self._items.write(_table(self._item_rows, ITEMS_SCHEMA))

    def _new_part(self, sent: pa.Schema) -> _StagedFile:
        """Begin a part; columns that come dictionary-encoded are written like that."""
        schema = pa.schema(
            [
                field.with_type(pa.dictionary(pa.int32(), field.type))
                if pa.types.is_dictionary(sent.field(field.name).type)
                else field
                for field in self._schema
            ]
        )
        return _StagedFile(
            self._staging,
            "part.parquet",
            schema,
            # The Arrow schema would make readers see dictionaries where text is.
            store_schema=False,
            use_dictionary=list(_dictionary_columns(self._schema)),
        )

    def seal_due(self) -> float | None:
        """Seconds until what was added must be sealed; None when there is nothing."""
        if self._opened_at is None:
            return None
        if (
            self._open_rows >= PART_ROWS
            or self._open_items >= PART_ITEMS
            or (self._part is not None and self._part.bytes >= PART_BYTES)
        ):
            return 0.0
        now = self._clock()
        # A kill costs at most this much; a long run gets fewer and larger parts for it.
        age = min(600.0, max(self._seal_seconds, 0.02 * (now - self._started)))
        return self._opened_at + age - now

    def seal(self) -> tuple[int, int] | None:
        """Commit what was added: its items and rows, or None when there was nothing.

        Raises
        ------
        DatasetError
            Another run took over; what was added since the last commit is not counted.
        """
        self.flush()
        return None if self._items is None else self._commit()

    def _commit(self) -> tuple[int, int]:
        part, items, follow = self._part, self._items, self._follow
        assert items is not None
        counted = None
        commit = _Commit(f"{self._stem}.items", items.rows, None, 0, 0)
        if follow is not None:
            follow.close({})
            self._publish_plan(
                follow, "follow", self._open_found, self._ledger.next_ordinal - 1
            )
        if part is not None:
            size = part.close(self._part_metadata())
            commit = replace(
                commit, part=f"{self._stem}.parquet", rows=part.rows, size=size
            )
            counted = {"name": commit.part, "rows": part.rows, "bytes": size}
        items.close({"asyncfetch.part": json.dumps(counted)})
        self._staging.publish(items.name, f"{ITEMS}/{commit.name}", "items")
        if part is not None:
            self._staging.publish(part.name, str(commit.part), "part")
        self._ledger.commits.append(commit)
        self._commits += 1
        self._part = self._items = self._follow = None
        self._open_rows = self._open_items = 0
        self._opened_at = None
        return items.rows, commit.rows

    def _part_metadata(self) -> dict[str, str]:
        record = self.record
        units = {
            field.name: field.metadata[b"unit"].decode()
            for field in self._schema
            if field.metadata and b"unit" in field.metadata
        }
        return {
            "pandas": _pandas_metadata(self._schema),
            "asyncfetch.version": record.version,
            "asyncfetch.table": f"{record.service}/{record.table}",
            "asyncfetch.schema_id": record.schema_id,
            "asyncfetch.base_url": record.base_url,
            "asyncfetch.units": json.dumps(units),
        }

    def heartbeat(self) -> None:
        """Show others that this writer lives; notice that another took over."""
        with self._staging.fenced():
            self._staging.folder.stat()
        self._lock.beat()

    def finish(self, report: Mapping[str, Any]) -> None:
        """Commit what was added, and leave *report* (plain JSON) in the dataset.

        A dataset without rows gets an empty part, so that readers find its columns.
        """
        self.seal()
        if not self.parts:
            self._part = self._new_part(self._schema)
            self._part.write(self._schema.empty_table())
            self._flush_items()
            self._commit()
        crash_point("finish-sealed")
        committed = _committed(self._ledger.commits, self.run)
        text = json.dumps({**report, "run": self.run, "committed": committed}, indent=2)
        with self._staging.fenced():
            self._staging.path("run.json").write_text(text + "\n", encoding="utf-8")
        self._staging.publish("run.json", f"{RUNS}/{self.run}.json", "run")

    def close(self) -> None:
        """Let others write. What was not committed is gone."""
        if self._closed:
            return
        self._closed = True
        for file in (self._part, self._items, self._follow):
            if file is not None:
                file.abandon()
        _let_go(self._staging, self._lock)


def _let_go(staging: Staging, lock: Lock) -> None:
    is_ours = staging.folder.exists()
    staging.discard()
    crash_point("close-emptied")
    lock.release(erase=is_ours)


def _conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows, with text encoded as the open part has it."""
    if batch.schema.types == schema.types:  # as every batch but the odd one
        return pa.RecordBatch.from_arrays(batch.columns, schema=schema)
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if column.type != field.type:
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            if pa.types.is_dictionary(field.type):
                column = column.dictionary_encode()
            column = column.cast(field.type)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _dictionary_columns(schema: pa.Schema) -> Iterator[str]:
    """Columns that repeat themselves: text and whole numbers.

    Not floats. Of 1 million rows, onset, duration and a random amplitude took 150 ns
    and 15.7 bytes a row with a dictionary, 71 ns and 11.1 bytes without; x, y, z and
    radius of traces 128 ns and 8.9 bytes against 119 ns and 9.9 bytes.
    """
    for field in schema:
        name, kind = field.name, field.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            name, kind = f"{name}.list.element", kind.value_type
        if not (pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            yield name


def _pandas_metadata(schema: pa.Schema) -> str:
    """What makes pandas read gaps in whole numbers as gaps, and not as floats."""
    columns = []
    for field in schema:
        kind = str(field.type)
        nullable = {"bool": "boolean"}.get(kind, kind.title().replace("Ui", "UI"))
        if pa.types.is_integer(field.type) or pa.types.is_boolean(field.type):
            columns.append(
                {
                    "name": field.name,
                    "field_name": field.name,
                    "pandas_type": kind,
                    "numpy_type": nullable if field.nullable else kind,
                    "metadata": None,
                }
            )
    return json.dumps({"index_columns": [], "column_indexes": [], "columns": columns})


def _destination(dest: str | Path) -> Path:
    """Directory that *dest* names.

    Raises
    ------
    ConfigurationError
        It names a file, or an object store.
    """
    text = str(dest)
    if not text or "://" in text:
        raise ConfigurationError(f"expected a directory, got {text!r}")
    if text.endswith((".parquet", ".csv", ".json")):
        raise ConfigurationError(
            f"expected a directory, got {text}: a dataset is a directory of Parquet "
            f"files; name it {text.rpartition('.')[0]}, for example"
        )
    return Path(dest).absolute()


def _agreed(
    store: LocalStore, record: PlanRecord | None, schema: pa.Schema
) -> PlanRecord:
    """The plan that the dataset holds or is to hold; changes nothing.

    Raises
    ------
    DatasetError
        The directory holds something else.
    """
    root = store.root
    stored = stored_plan(store)
    if stored is None:
        _refuse_other_content(store)
        if record is None:
            raise _no_dataset(root)
        return record
    if record is not None and (differences := stored.differences(record)):
        if not store.names(PLAN):  # a mistaken question that came to no item
            return record
        raise DatasetError(
            f"expected the plan that {root} holds, got another: "
            f"{', '.join(differences)}; choose another directory for it",
            is_usage=True,
        )
    parts = [name for name in store.names() if is_part(name)]
    if stored.schema_id != schema_id(schema) and parts:
        with _opened(store.path(parts[0])) as file:
            _check_columns(file.schema_arrow, schema, root)
    limit = stored.limit if record is None else record.limit
    return replace(stored, limit=limit, schema_id=schema_id(schema))


def _refuse_other_content(store: LocalStore) -> None:
    root = store.root
    if root.exists() and not root.is_dir():
        raise DatasetError(f"expected a directory, got a file at {root}")
    if root.is_dir() and not store.path(RECORDS).is_dir():
        others = sorted(p.name for p in root.iterdir() if p.name[0] not in "._")
        if others:
            raise DatasetError(
                f"expected a dataset or an empty directory, got {root} with "
                f"{others[0]} and no {RECORDS} in it: choose another directory"
            )
    if store.names(PLAN):
        raise DatasetError(
            f"expected {PLAN_FILE} beside the frozen plan, got none in {root}: "
            "put it back, or choose another directory"
        )


def _check_columns(there: pa.Schema, here: pa.Schema, root: Path) -> None:
    """Refuse to mix columns, but for new nullable ones at the end."""
    both = list(zip(there, here, strict=False))
    for old, new in both:
        if (old.name, old.type) != (new.name, new.type):
            raise DatasetError(
                f"expected column {old.name} {old.type}, got {new.name} {new.type}: "
                f"{root} was begun with other columns; fetch into another directory"
            )
    for extra in [*list(there)[len(both) :], *list(here)[len(both) :]]:
        if not extra.nullable:
            raise DatasetError(
                f"expected the columns of {root}, got a required column "
                f"{extra.name} beside them: fetch into another directory"
            )


def is_part(name: str) -> bool:
    """Whether a file in a dataset's directory is named as a part."""
    return name.startswith("part-") and name.endswith(".parquet")


def stored_plan(store: LocalStore) -> PlanRecord | None:
    """The plan that a dataset holds.

    Raises
    ------
    DatasetError
        The file is there and cannot be understood.
    """
    text = store.read_text(PLAN_FILE)
    if text is None:
        return None
    try:
        return PlanRecord.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"expected a plan, got something else at {store.path(PLAN_FILE)}: {error!r}"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far a dataset has come."""

    items: Mapping[str, int]
    """Items by outcome."""
    planned: int
    """Items known so far within the limit, and those that ended beyond it."""
    pending: int
    """Of these, how many have not ended."""
    plan_complete: bool
    """Whether nothing is left to enumerate within the limit."""
    rows: int
    parts: int
    bytes: int
    """Length of the parts."""


class View:
    """A dataset as its readers see it: what is committed when the view is opened.

    Parameters
    ----------
    dest
        Its directory.

    Attributes
    ----------
    plan
        What was asked.

    Raises
    ------
    DatasetError
        There is no dataset, or it is damaged.
    """

    def __init__(self, dest: str | Path) -> None:
        self._store = LocalStore(_destination(dest))
        plan = stored_plan(self._store)
        if plan is None:
            raise _no_dataset(self._store.root)
        self.plan = plan
        self._ledger = _Ledger(self._store, plan.limit)

    @property
    def items(self) -> pa.Table:
        """What became of each item; one that was tried in two runs has two rows."""
        return self._ledger.items().to_table()

    @property
    def rows(self) -> pads.Dataset:
        """The rows of exactly the parts that count."""
        paths = [
            str(self._store.path(commit.part))
            for commit in self._ledger.commits
            if commit.part is not None
        ]
        if not paths:
            return pads.dataset(pa.table({}))
        # Later parts may have more columns at the end.
        return pads.dataset(
            paths, schema=pa.unify_schemas([pq.read_schema(path) for path in paths])
        )

    def source_of(self, part: str | Path, row: int) -> dict[str, Any]:
        """The items row of the item that the row number *row* of a part came from.

        Raises
        ------
        LookupError
            The part does not count, or has no such row.
        """
        name = Path(part).name
        first, rows = pads.field("first_row"), pads.field("rows")
        found = self._ledger.items().to_table(
            filter=(pads.field("part") == name) & (first <= row) & (row < first + rows)
        )
        if not found.num_rows:
            raise LookupError(
                f"expected a row of a part that counts, got {row} of {name}"
            )
        source: dict[str, Any] = found.to_pylist()[0]
        return source

    def failed(self, limit: int = 100) -> list[FailedItem]:
        """The first items that failed in the end, each with its latest reason."""
        return self._ledger.failed(limit)

    def state(self) -> State:
        """How far it has come."""
        ledger = self._ledger
        items = ledger.counts()
        return State(
            items=items,
            planned=ledger.planned,
            pending=ledger.planned - sum(items.values()),
            plan_complete=not ledger.wants_more,
            rows=ledger.rows,
            parts=ledger.parts,
            bytes=sum(commit.size for commit in ledger.commits),
        )


def open_dataset(dest: str | Path) -> View:
    """View of the dataset at *dest*; what a writer commits later is not in it."""
    return View(dest)


def _unwritable(root: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"expected a directory that can be written, got {root}: {error.strerror}"
    )


def _no_dataset(root: Path) -> DatasetError:
    return DatasetError(
        f"expected a dataset, got none at {root}: there is no {PLAN_FILE}"
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a dataset that does not agree with the rest."""

    code: str
    """A short stable word for the kind."""
    where: str
    """Name below the dataset's directory."""
    text: str
    """One line: expected, got, what follows."""


def verify(dest: str | Path, *, repair: bool = False) -> list[Problem]:
    """Prove that plan, items, parts and reports of a dataset agree.

    Every page of every file is read and its checksum compared.

    Parameters
    ----------
    repair
        Remove what cannot be trusted, so that a resume asks for it again; nothing else
        is touched. What was found is returned all the same.

    Raises
    ------
    DatasetError
        There is no dataset, a writer is at work in it, or it is to be repaired and
        cannot be written.
    """
    store = LocalStore(_destination(dest))
    if stored_plan(store) is None:
        raise _no_dataset(store.root)
    run = secrets.token_hex(8)
    staging = Staging(store, run)
    lock = Lock(
        store.path(f"{RECORDS}/lock"), run, clock=time.monotonic, sleep=time.sleep
    )
    try:
        lock.acquire()
    except OSError as error:
        if repair:  # otherwise it may be an archive on a read-only disk
            raise _unwritable(store.root, error) from error
    try:
        if repair:
            staging.announce()
        audit = _Audit(store)
        if repair:
            for name in audit.untrusted:
                store.remove(name)
            for name in _Audit(store).wrong_reports:  # of runs whose commits went
                store.remove(name)
    finally:
        staging.discard()
        lock.release(erase=True)
    return audit.problems


@dataclass(frozen=True, slots=True)
class _Audited:
    """An items file that was read whole."""

    commit: _Commit
    ordinals: Longs
    keys: Longs
    """Hashes."""
    final: Flags
    """Which of the items have ended for good."""
    follow_ups: Longs
    rows: Longs
    first_rows: Longs
    """-1 for an item without rows."""

    @classmethod
    def read(cls, path: Path) -> _Audited:
        """Read every page of an items file."""
        with _opened(path, verify=True) as file:
            table = file.read()  # no more than PART_ITEMS rows
            commit = _Commit.of(path.name, file.metadata)
            outcomes = [Outcome(one) for one in table.column("outcome").to_pylist()]
        return cls(
            commit,
            ordinals=table.column("ordinal").to_numpy(),
            keys=_hashes(table.column("key").to_pylist()),
            final=np.array([one.is_final for one in outcomes], dtype=np.bool_),
            follow_ups=table.column("follow_up").combine_chunks().flatten().to_numpy(),
            rows=table.column("rows").to_numpy(),
            first_rows=table.column("first_row").fill_null(-1).to_numpy(),
        )

    @property
    def rows_agree(self) -> bool:
        """Whether the items share the rows of the part among them without a gap."""
        has_rows = self.first_rows >= 0
        order = np.argsort(self.first_rows[has_rows])
        rows = self.rows[has_rows][order]
        ends = np.cumsum(rows)
        starts = self.first_rows[has_rows][order]
        return (
            np.array_equal(starts, ends - rows)
            and int(ends[-1:].sum()) == self.commit.rows
            and int(self.rows.sum()) == self.commit.rows
        )


_NONE: Longs = np.zeros(0, dtype=np.int64)


class _Audit:
    """What is found when everything is read and compared.

    Trust is taken away by whole commits. The plan rows of follow-ups hang on the commit
    that lists them, and the items of these on those plan rows; so distrust spreads
    until what is left agrees with itself.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._parts = {n: size for n, size in store.names().items() if is_part(n)}
        self._trusted: dict[str, _Audited] = {}
        self._claims: list[_Commit] = []
        self.problems: list[Problem] = []
        self.untrusted: list[str] = []
        """Files to remove: a part, then its items file, and the plan from its end."""
        self.wrong_reports: list[str] = []
        lost_blocks = self._read_plan()
        for name in _items_names(store):
            self._read_commit(name)
        self._spread_distrust()
        self._find_keys_that_are_twice_there()
        self._find_strays()
        self._compare_reports()
        self.untrusted += lost_blocks

    def _tell(self, code: str, where: str, text: str) -> None:
        self.problems.append(Problem(code, where, text))

    def _distrust(self, code: str, commit: _Commit, text: str) -> None:
        """Commits go as a whole: the part first, for without it the rest is void."""
        self._trusted.pop(commit.name, None)
        where = f"{ITEMS}/{commit.name}"
        self._tell(code, where, text)
        self.untrusted += [commit.part, where] if commit.part else [where]

    def _read_plan(self) -> list[str]:
        """Read the frozen plan as far as it can be; the blocks behind that place."""
        names = _plan_names(self._store)
        no_flags: Flags = np.zeros(0, dtype=np.bool_)
        ordinals, is_root, keys = [_NONE], [no_flags], [_NONE]
        lost: list[str] = []
        for number, name in enumerate(names):
            where = f"{PLAN}/{name}"
            try:
                if int(name[:-5]) != number:
                    raise DatasetError(f"expected {number:05d}.plan first, got none")
                with _opened(self._store.path(where), verify=True) as file:
                    for batch in file.iter_batches():
                        ordinals.append(batch.column("ordinal").to_numpy())
                        parents = batch.column("parent").is_null()
                        is_root.append(parents.to_numpy(zero_copy_only=False))
                        keys.append(_hashes(batch.column("key")))
            except DatasetError as error:
                self._tell(
                    "plan",
                    where,
                    f"{error}; the plan from here on must be enumerated again",
                )
                lost = [f"{PLAN}/{one}" for one in names[number:]]
                break
        numbers = np.concatenate(ordinals)
        order = np.argsort(numbers, kind="stable")
        self._ordinals = numbers[order]
        self._is_root = np.concatenate(is_root)[order]
        self._keys = np.concatenate(keys)[order]
        if (np.diff(self._ordinals) == 0).any():
            self._tell("plan", PLAN, "expected each ordinal once, got one twice")
        return lost[::-1]

    def _read_commit(self, name: str) -> None:
        where = self._store.path(f"{ITEMS}/{name}")
        try:
            audited = _Audited.read(where)
        except DatasetError as error:
            part = f"{name.removesuffix('.items')}.parquet"
            held = part if part in self._parts else None
            self._distrust("items", _Commit(name, 0, held, 0, 0), str(error))
            return
        commit = audited.commit
        self._claims.append(commit)
        self._trusted[name] = audited
        if commit.part is not None and commit.part not in self._parts:
            text = (
                f"expected {commit.part}, got none: a kill leaves this, or a deletion"
            )
            self._distrust("part-missing", replace(commit, part=None), text)
        elif commit.part is not None and (trouble := self._part_trouble(commit)):
            self._distrust("part", commit, trouble)
        elif not audited.rows_agree:
            text = f"expected items with {commit.rows} rows side by side, got others"
            self._distrust("rows", commit, text)

    def _part_trouble(self, commit: _Commit) -> str | None:
        assert commit.part is not None
        size = self._parts[commit.part]
        if size != commit.size:
            return f"expected {commit.size} bytes, got {size} in {commit.part}"
        try:
            with _opened(self._store.path(commit.part), verify=True) as file:
                rows = sum(batch.num_rows for batch in file.iter_batches())
        except DatasetError as error:
            return str(error)
        if rows != commit.rows:
            return f"expected {commit.rows} rows, got {rows} in {commit.part}"
        return None

    def _spread_distrust(self) -> None:
        while True:
            listed = np.concatenate(
                [_NONE, *(one.follow_ups for one in self._trusted.values())]
            )
            counts = self._is_root | np.isin(self._ordinals, listed)
            ordinals, keys = self._ordinals[counts], self._keys[counts]
            strangers = [
                one.commit
                for one in self._trusted.values()
                if not _is_planned(one, ordinals, keys)
            ]
            for commit in strangers:
                text = "expected items of the plan, got others, or found by lost ones"
                self._distrust("items-unplanned", commit, text)
            if not strangers:
                return

    def _find_keys_that_are_twice_there(self) -> None:
        seen = _KeySet()
        for audited in list(self._trusted.values()):
            if not seen.add(audited.keys[audited.final]).all():
                text = "expected each item once, got one that another commit holds"
                self._distrust("key-twice", audited.commit, text)
        self._spread_distrust()

    def _find_strays(self) -> None:
        claimed = {commit.part for commit in self._claims}
        for path in sorted(self._store.root.iterdir()):
            name = path.name
            if name[0] in "._" or name in claimed or name in self.untrusted:
                continue
            self._tell("stray", name, "expected parts, got what no commit knows of")
            if name in self._parts:  # readers take its rows for ours
                self.untrusted.append(name)
        records = self._store.path(RECORDS)
        for path in sorted(records.rglob("*.parquet")):
            if records / "tmp" not in path.parents:
                where = path.relative_to(self._store.root).as_posix()
                self._tell("stray", where, "expected no rows in here, got a part")

    def _compare_reports(self) -> None:
        for name in self._store.names(RUNS):
            where = f"{RUNS}/{name}"
            expected = _committed(self._claims, name.removesuffix(".json"))
            try:
                got = json.loads(self._store.read_text(where) or "")["committed"]
            except (ValueError, KeyError, TypeError):
                got = None
            if got != expected:
                self.wrong_reports.append(where)
                self._tell("report", where, f"expected {expected}, got {got}")


def _is_planned(items: _Audited, ordinals: Longs, keys: Longs) -> bool:
    """Whether a commit speaks of none but items with these *ordinals* and *keys*."""
    if not np.isin(np.concatenate([items.ordinals, items.follow_ups]), ordinals).all():
        return False
    place = np.searchsorted(ordinals, items.ordinals)
    return bool(np.array_equal(keys[place], items.keys))

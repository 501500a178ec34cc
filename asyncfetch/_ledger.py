"""What counts in a dataset: a dataset is its own journal, and this module reads it.

::

    <dest>/part-<run>-<nnnnn>.parquet          rows
    <dest>/_asyncfetch/plan.json               what was asked
                      /plan/<nnnnn>.plan       the items that it comes to
                      /items/part-<run>-<nnnnn>.items   what became of them
                      /runs/<run>.json         reports
                      /tmp/<run>/              work in progress of one run
                      /lock

A commit counts when its items file is there and the part that it names, with the size
that it names. One byte for each ordinal then says what became of the item.

Ordinals are never used twice for different items while anything refers to them. A plan
row of a follow-up counts only when the counted items row of its parent lists it; one
that became durable while its commit did not stays where it is and means nothing, and
its ordinal is burnt: the next run numbers on from the highest ordinal in the plan. So
the plan is only ever appended to. An ordinal that was drawn in memory and never reached
the disk may be drawn again, because whatever refers to it died with the process.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from asyncfetch._model import (
    FailedItem,
    Item,
    Json,
    Outcome,
    PlannedItem,
    Request,
)
from asyncfetch._store import RECORDS, LocalStore
from asyncfetch.errors import ConfigurationError, DatasetError

PLAN_FILE = f"{RECORDS}/plan.json"


PLAN = f"{RECORDS}/plan"


ITEMS = f"{RECORDS}/items"


RUNS = f"{RECORDS}/runs"


GROUP_ITEMS = 8192


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


class KeySet:
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


def hashes(values: pa.Array | list[str]) -> Longs:
    """64-bit hashes; of integers, themselves."""
    if isinstance(values, pa.Array) and pa.types.is_integer(values.type):
        whole: Longs = values.to_numpy(zero_copy_only=False).astype(np.int64)
        return whole
    # Python's hash of text is keyed by each process: good for the memory of one.
    texts = values.to_pylist() if isinstance(values, pa.Array) else values
    return np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))


@dataclass(frozen=True, slots=True)
class Commit:
    """An items file, and the part that makes it count."""

    name: str
    """Of the items file."""
    items: int
    part: str | None
    rows: int
    size: int
    """Of the part, in bytes."""

    @classmethod
    def of(cls, name: str, metadata: pq.FileMetaData) -> Commit:
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


class Ledger:
    """What counts in a dataset: its commits, and one byte for each ordinal.

    Parameters
    ----------
    limit
        Items of the enumeration that are within the plan.
    keys
        Takes the keys of the items that are planned, if they are wanted.
    """

    def __init__(
        self, store: LocalStore, limit: int | None, keys: KeySet | None = None
    ) -> None:
        self._store = store
        self._limit = math.inf if limit is None else limit
        self.commits: list[Commit] = []
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

    def _load(self, keys: KeySet | None) -> None:
        # In this order: while a writer is at work, then at most its last commit lacks
        # its part here, and none that builds on it is in the list.
        names = items_names(self._store)
        parts = self._store.names()
        listed: list[Longs] = [np.zeros(0, dtype=np.int64)]
        for name in names:
            with opened(self._store.path(f"{ITEMS}/{name}"), ["outcome"]) as file:
                commit = Commit.of(name, file.metadata)
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
        for name in plan_names(self._store):
            with opened(self._store.path(f"{PLAN}/{name}")) as file:
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
        keys: KeySet | None,
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
                keys.add(hashes(batch.column("key").filter(pa.array(counts))))
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
    def room(self) -> int | None:
        """Items that the enumeration may still add; None is no limit."""
        return None if math.isinf(self._limit) else int(self._limit) - self.roots

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

    def received(self) -> Iterator[list[tuple[PlannedItem, int]]]:
        """Items that are ok, each with the bytes of its body, some thousands a time."""
        is_ok = pads.field("outcome") == "ok"
        rows = self.items().to_table(columns=["ordinal", "bytes"], filter=is_ok)
        sizes = np.zeros(len(self.state), dtype=np.int64)
        sizes[rows.column("ordinal").to_numpy()] = rows.column("bytes").to_numpy()
        ok = self.state == CODES[Outcome.OK]
        for items in self._planned_items(tuple(self.blocks), ok):
            yield [(planned, int(sizes[planned.ordinal])) for planned in items]

    def _planned_items(
        self, blocks: tuple[_PlanBlock, ...], wanted: Flags
    ) -> Iterator[list[PlannedItem]]:
        for block in blocks:
            if not wanted[block.first : block.last + 1].any():
                continue
            with opened(self._store.path(f"{PLAN}/{block.name}")) as file:
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


def plan_names(store: LocalStore) -> list[str]:
    """The plan's files in their order."""
    names = [name.removesuffix(".plan") for name in store.names(PLAN)]
    return [f"{name}.plan" for name in sorted(filter(str.isdigit, names), key=int)]


def items_names(store: LocalStore) -> list[str]:
    return [name for name in store.names(ITEMS) if name.endswith(".items")]


def run_of(name: str) -> str:
    """The run that committed a part or items file."""
    return name.split("-")[1]


def committed(commits: Collection[Commit], run: str) -> dict[str, int]:
    """What a run has committed, as its report says it."""
    own = [one for one in commits if run_of(one.name) == run]
    return {
        "items": sum(one.items for one in own),
        "rows": sum(one.rows for one in own),
        "parts": sum(one.part is not None for one in own),
    }


@contextmanager
def opened(
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


def destination(dest: str | Path) -> Path:
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


def unwritable(root: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"expected a directory that can be written, got {root}: {error.strerror}"
    )


def no_dataset(root: Path) -> DatasetError:
    return DatasetError(
        f"expected a dataset, got none at {root}: there is no {PLAN_FILE}"
    )


NO_ORDINALS: Longs = np.zeros(0, dtype=np.int64)

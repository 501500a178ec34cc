"""What counts in a dataset: a dataset is its own journal, and this module reads it.

::

    <dest>/part-<run>-<nnnnn>.parquet          rows
    <dest>/_files/                             items that are files, as they came
    <dest>/_asyncfetch/plan.json               what was asked
                      /plan/<nnnnn>.plan       the items that it comes to
                      /items/part-<run>-<nnnnn>.items   what became of them
                      /runs/<run>.json         reports
                      /CITATION.md             what is to be cited, of some services
                      /partial/<hash>          large files on their way, with a note
                      /partial/<run>-<nnnnn>.files   files in place, not committed yet
                      /tmp/<run>/              work in progress of one run
                      /lock

A commit counts when its items file is there and the part that it names, with the size
that it names, and when no commit that counts replaces it. One byte for each ordinal
then says what became of the item.

A compaction merges commits into one, whose items file lists all that it replaces: those
it was made of, and those that they had replaced. So a commit is void from the instant
at which the merged one counts, whichever of the files are gone by then.

Items and plan files are sealed: they hold their own name and a checksum of all their
bytes, and an items file that of its part, so that no change of a byte goes unseen. The
plan's record and the reports hold a checksum, too.

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
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from asyncfetch._bucket import BucketStore
from asyncfetch._model import (
    FailedItem,
    Item,
    Json,
    Outcome,
    PlannedItem,
    Request,
)
from asyncfetch._objects import Destination, ObjectStore
from asyncfetch._store import RECORDS, LocalStore, crash_point, sync_folder
from asyncfetch.errors import ConfigurationError, DatasetError

PLAN_FILE = f"{RECORDS}/plan.json"


# What is to be cited, where a service says so.
CITATION = f"{RECORDS}/CITATION.md"


PLAN = f"{RECORDS}/plan"


ITEMS = f"{RECORDS}/items"


RUNS = f"{RECORDS}/runs"


GROUP_ITEMS = 8192
# How items files are read to find something in them: their texts may be kilobytes each,
# and many files read ahead took 30 MB at the end of a run.
SMALL_STEPS: dict[str, Any] = {
    "batch_size": 1024,
    "batch_readahead": 1,
    "fragment_readahead": 1,
    "use_threads": False,
}


PART_ITEMS = 50_000


# So many keys at once are looked up one by one, and so many wait to be sorted in: that
# takes half a megabyte, and next to no sorting.
FEW_KEYS = 16


RECENT_KEYS = 8192


# So often a reader looks anew when a compaction moves files under its eyes; each of
# them takes far longer than a look.
LOOKS = 10


# A run of so many is not merged any more: that would take its size twice over for the
# moment. Ten million keys make some 50 runs, each looked up in 1 µs.
LARGE_RUN = 128 * 1024


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
    row_key: str | None = None
    """Column whose value is unique among the rows."""
    format: int = 1
    """2: all files are sealed, and ``row_key`` is told."""
    files: str | None = None
    """Where files are stored: ``_files`` in the dataset, or an absolute directory."""
    notes: Mapping[str, Json] | None = None
    """What was learned of the service before the first item; not what was asked."""

    def to_json(self) -> str:
        """Text for people and programs."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.notes is None:
            del values["notes"]  # as earlier versions have it
        return sealed_json({**values, "filters": dict(self.filters)})

    @classmethod
    def from_json(cls, text: str) -> PlanRecord:
        """Undo :meth:`to_json`; keys of later versions are passed over."""
        found = json.loads(text)
        record = cls(
            **{
                one.name: found[one.name]
                for one in fields(cls)
                if one.name in found or one.default is NO_DEFAULT
            }
        )
        limit = record.limit
        if not (
            all(isinstance(getattr(record, name), str) for name in _TEXTS)
            and isinstance(record.filters, dict)
            and (limit is None or (isinstance(limit, int) and limit >= 0))
            and isinstance(record.row_key, str | None)
            and isinstance(record.format, int)
            and isinstance(record.files, str | None)
            and isinstance(record.notes, dict | None)
        ):
            raise TypeError("a value is of another type")
        return record

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


_TEXTS = ("service", "base_url", "table", "schema_id", "version")

FORMAT = 2
"""Of the datasets that this version begins."""


def schema_id(schema: pa.Schema) -> str:
    """Hash of names, types and nullability; a corrected description changes nothing."""
    text = "\n".join(f"{one.name}\t{one.type}\t{one.nullable}" for one in schema)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_NUMBER = "^(0|[1-9][0-9]{0,14})$"  # not 01: that is another key


class _Run(NamedTuple):
    """Sorted keys as ranges; a run without neighbours keeps one array for both ends."""

    first: Longs
    last: Longs

    @classmethod
    def of(cls, first: Longs, last: Longs) -> _Run:
        """From sorted ranges that do not overlap, whether or not they touch."""
        joins = first[1:] == last[:-1] + 1
        outer = np.ones(len(first) + 1, dtype=np.bool_)
        outer[1:-1] = ~joins
        if 2 * np.count_nonzero(joins) >= len(first):
            return cls(first[outer[:-1]], last[outer[1:]])
        if first is last:
            return cls(first, first)
        counts = last - first + 1
        ends = counts.cumsum()
        keys = np.repeat(last - ends + 1, counts) + np.arange(ends[-1])
        return cls(keys, keys)

    def has(self, keys: Longs) -> Flags:
        """Which of *keys* are in it."""
        place = np.searchsorted(self.first, keys, side="right") - 1
        return (place >= 0) & (self.last[place] >= keys)

    def with_others(self, others: _Run) -> _Run:
        """One run for two, of which no key is in both."""
        first = np.concatenate([self.first, others.first])
        if self.first is self.last and others.first is others.last:
            first.sort(kind="stable")  # two sorted runs: a merge
            return self.of(first, first)
        last = np.concatenate([self.last, others.last])
        order = first.argsort(kind="stable")
        return self.of(first[order], last[order])


class KeySet:
    """Which keys have been seen, in eight bytes each at most.

    Keys are known by a 64-bit hash: among ten million, two are mistaken for each other
    with a probability of 3e-6. Sorted runs of growing size are searched one after the
    other; a neighbour of the same size is merged, so there are few. What follows each
    other, as ids do, takes next to nothing. What comes in small numbers waits in a set:
    for items with a single row, sorting arrays of one key took a tenth of the
    processor.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._recent: set[int] = set()

    def add(self, keys: Longs) -> Flags:
        """Take *keys* in; for each, whether it is here for the first time."""
        if len(keys) <= FEW_KEYS:
            return self._add_few(keys)
        self._sort_recent()
        return self._add_many(keys)

    def _add_few(self, keys: Longs) -> Flags:
        fresh = np.zeros(len(keys), dtype=np.bool_)
        for place, key in enumerate(keys.tolist()):
            if key not in self._recent and not self._is_sorted_in(key):
                self._recent.add(key)
                fresh[place] = True
        if len(self._recent) > RECENT_KEYS:
            self._sort_recent()
        return fresh

    def _is_sorted_in(self, key: int) -> bool:
        for run in self._runs:
            place = int(run.first.searchsorted(key, side="right")) - 1
            if place >= 0 and run.last[place] >= key:
                return True
        return False

    def _sort_recent(self) -> None:
        if self._recent:
            recent = np.fromiter(self._recent, np.int64, len(self._recent))
            self._recent.clear()
            self._add_many(recent)

    def _add_many(self, keys: Longs) -> Flags:
        distinct, first = np.unique(keys, return_index=True)
        known = np.zeros(len(distinct), dtype=np.bool_)
        for run in self._runs:
            known |= run.has(distinct)
        fresh = np.zeros(len(keys), dtype=np.bool_)
        fresh[first[~known]] = True
        if not known.all():
            unknown = distinct[~known]
            self._runs.append(_Run.of(unknown, unknown))
        while len(self._runs) > 1 and (
            len(self._runs[-2].first) <= min(2 * len(self._runs[-1].first), LARGE_RUN)
        ):
            last = self._runs.pop()
            self._runs.append(self._runs.pop().with_others(last))
        return fresh


def hashes(values: pa.Array | list[str]) -> Longs:
    """64-bit hashes; of integers, themselves; of numbered texts, neighbours."""
    if isinstance(values, pa.Array) and pa.types.is_integer(values.type):
        whole: Longs = values.to_numpy(zero_copy_only=False).astype(np.int64)
        return whole
    if len(values) > FEW_KEYS and (numbered := _numbered(pa.array(values))) is not None:
        return numbered
    texts = values.to_pylist() if isinstance(values, pa.Array) else values
    return np.fromiter(map(_hash, texts), dtype=np.int64, count=len(texts))


def _numbered(texts: pa.Array) -> Longs | None:
    """The same in a tenth of the time, where all texts are one name and a number."""
    if not pa.types.is_string(texts.type):
        return None
    name, equals, _ = texts[0].as_py().rpartition("=")
    if not equals or not pc.all(pc.starts_with(texts, name + equals)).as_py():
        return None
    numbers = pc.utf8_slice_codeunits(texts, len(name) + 1)
    if not pc.all(pc.match_substring_regex(numbers, _NUMBER)).as_py():
        return None
    whole: Longs = pc.cast(numbers, pa.int64()).to_numpy()
    return (hash(name) >> 1) + whole


def _hash(text: str) -> int:
    # Python's hash of text is keyed by each process: good for the memory of one.
    name, equals, number = text.rpartition("=")
    if equals and re.fullmatch(_NUMBER, number):
        return (hash(name) >> 1) + int(number)
    return hash(text)


class Replaced(NamedTuple):
    """What stays known of a commit that was merged into another."""

    name: str
    """Of its items file."""
    items: int
    rows: int
    parts: int
    """1 if it had a part."""


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
    crc32: int | None = None
    """Of the part's bytes, where it is known."""
    replaces: tuple[Replaced, ...] = ()
    """Commits that are void since this one counts."""

    @classmethod
    def of(cls, name: str, metadata: pq.FileMetaData) -> Commit:
        """What the footer of an items file says."""
        found = metadata.metadata
        part = json.loads(found[b"asyncfetch.part"])
        merged = json.loads(found.get(b"asyncfetch.replaces", "[]"))
        replaces = tuple(Replaced(*one) for one in merged)
        if part is None:
            return cls(name, metadata.num_rows, None, 0, 0, None, replaces)
        if part["name"] != part_of(name):
            raise ValueError(f"it speaks of {part['name']}")
        return cls(
            name,
            metadata.num_rows,
            part["name"],
            part["rows"],
            part["bytes"],
            part.get("crc32"),
            replaces,
        )

    def footer(self) -> dict[str, str]:
        """Undo :meth:`of`."""
        part = None
        if self.part is not None:
            part = {
                "name": self.part,
                "rows": self.rows,
                "bytes": self.size,
                "crc32": self.crc32,
            }
        return {
            "asyncfetch.part": json.dumps(part),
            "asyncfetch.replaces": json.dumps(self.replaces),
        }

    @property
    def as_replaced(self) -> Replaced:
        """What of it stays known."""
        return Replaced(self.name, self.items, self.rows, int(self.part is not None))


class _Path(msgspec.Struct):
    path: str


class _Named(msgspec.Struct):
    """Of a request in the plan, what its file is called: the rest is not built."""

    file: _Path | None = None


_named = msgspec.json.Decoder(_Named)


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
        self.uncounted: list[Commit] = []
        """Without their part: what a kill left of a commit."""
        self.replaced: list[Commit] = []
        """What a compaction that was killed did not come to remove."""
        self.blocks: list[_PlanBlock] = []
        self.next_block = 0
        self.next_ordinal = 0
        self.roots = 0
        self.cursor: Json = None
        self.complete = False
        self.shortfall: str | None = None
        self.state: Bytes = np.zeros(1024, dtype=np.uint8)
        self.within: Flags = np.zeros(1024, dtype=np.bool_)
        self._load(keys)

    def _load(self, keys: KeySet | None) -> None:
        for _ in range(LOOKS):
            follow_ups = self._load_commits()
            if follow_ups is not None:
                break
        else:
            raise DatasetError(
                f"expected a dataset that holds still, got one whose files come and go "
                f"at {self._store}: try again, or run verify with --repair"
            )
        ended = int(np.count_nonzero(self.state))
        for name in plan_names(self._store):
            with opened(self._store, f"{PLAN}/{name}") as file:
                ended -= self._read_block(name, file, follow_ups, keys)
        if ended:
            # No kill leaves this: what a lost response led to was committed after it.
            raise DatasetError(
                f"expected items of the plan, got {ended} that it does not hold in "
                f"{self._store}/{ITEMS}: files were taken away; run verify with "
                "--repair"
            )

    def _load_commits(self) -> Longs | None:
        """Ordinals of follow-ups that count; None if a compaction came between.

        In this order: while a writer is at work, then at most its last commit lacks its
        part here, and none that builds on it is in the list.
        """
        names = items_names(self._store)
        parts = self._store.names()
        self.state[:] = 0
        listed: list[Longs] = [np.zeros(0, dtype=np.int64)]
        found: list[Commit] = []
        try:
            for name in names:
                with opened(self._store, f"{ITEMS}/{name}", ["outcome"]) as file:
                    commit = Commit.of(name, file.metadata)
                    found.append(commit)
                    if commit.part is None or commit.part in parts:
                        # Of one that is replaced, too: it says nothing else.
                        listed.extend(self._read_items(file))
            self.commits, self.replaced, self.uncounted = sorted_out(found, parts)
            if self._was_compacted(names):
                return None
        except DatasetError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        for commit in self.commits:
            if commit.part is not None and parts[commit.part] != commit.size:
                raise DatasetError(
                    f"expected {commit.size} bytes, got {parts[commit.part]} in "
                    f"{self._store}/{commit.part}: run verify with --repair"
                )
        return np.unique(np.concatenate(listed))

    def _was_compacted(self, names: list[str]) -> bool:
        """Whether a compaction may have moved rows from file to file under our eyes.

        Its merged items file is there before it removes anything. So either that file
        is new since *names* were listed, or its part is and the replaced ones were
        gone already, or a file of *names* is gone.
        """
        now = set(items_names(self._store))
        if not now.issuperset(names):
            return True
        without_part = {one.name for one in self.uncounted}
        if any(r.name in without_part for one in self.uncounted for r in one.replaces):
            return True
        for name in now.difference(names):
            with opened(self._store, f"{ITEMS}/{name}") as file:
                if Commit.of(name, file.metadata).replaces:
                    return True
        return False

    def tidy(self) -> None:
        """Remove what a kill left and does not count; for the holder of the lock."""
        for commit in self.uncounted:
            self._store.remove(f"{ITEMS}/{commit.name}")
            # Its run was killed and left no report, or a part was taken away since.
            self._store.remove(f"{RUNS}/{run_of(commit.name)}.json")
            crash_point("takeover-dropped")
        remove_replaced(self._store, self.replaced)
        self.uncounted, self.replaced = [], []

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
        if b"asyncfetch.shortfall" in metadata:
            self.shortfall = metadata[b"asyncfetch.shortfall"].decode()
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
            with opened(self._store, f"{PLAN}/{block.name}") as file:
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
        # A list, for Arrow to copy: a thread of its own may let go of the filter when
        # the interpreter has ended, and memory of NumPy aborts the process then.
        ordinals = np.flatnonzero(self.state == FAILED)[:limit].tolist()
        rows = self.items().to_table(
            columns=["ordinal", "key", "url", "error_class", "error", "fetched_at"],
            filter=pads.field("ordinal").isin(pa.array(ordinals, pa.int64())),
            **SMALL_STEPS,
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

    def paths(self) -> Iterator[str]:
        """Paths of the files that the plan's items are, as far as they count."""
        for block in self.blocks:
            with opened(self._store, f"{PLAN}/{block.name}") as file:
                for batch in file.iter_batches(columns=["ordinal", "request"]):
                    counts = self.state[batch.column("ordinal").to_numpy()] >= PLANNED
                    requests = batch.column("request").filter(pa.array(counts))
                    for text in requests.to_pylist():
                        if (wish := _named.decode(text).file) is not None:
                            yield wish.path

    def stored(self, labels: list[str]) -> set[str]:
        """Of which of the *labels* there are items."""
        rows = self.items().to_table(
            columns=["path"], filter=pads.field("path").isin(labels)
        )
        return set(rows.column("path").to_pylist())

    def files(self) -> tuple[int, int]:
        """How many files are stored, and their bytes."""
        rows = self.items().to_table(
            columns=["bytes"], filter=pads.field("path").is_valid()
        )
        return rows.num_rows, pc.sum(rows.column("bytes")).as_py() or 0

    def details(self) -> Iterator[Mapping[str, Any]]:
        """What was learned beside the rows of each item that is ok, as they ended."""
        batches = self.items().to_batches(
            columns=["detail"],
            filter=pads.field("outcome").isin(["ok", "unchanged"]),
            **SMALL_STEPS,
        )
        for batch in batches:
            for text in batch.column("detail").to_pylist():
                yield msgspec.json.decode(text) if text else {}


def plan_names(store: LocalStore) -> list[str]:
    """The plan's files in their order."""
    names = [name.removesuffix(".plan") for name in store.names(PLAN)]
    return [f"{name}.plan" for name in sorted(filter(str.isdigit, names), key=int)]


def items_names(store: LocalStore) -> list[str]:
    return [name for name in store.names(ITEMS) if name.endswith(".items")]


def run_of(name: str) -> str:
    """The run that committed a part or items file."""
    return name.split("-")[1]


def part_of(name: str) -> str:
    """The name of the part that belongs to an items file."""
    return f"{name.removesuffix('.items')}.parquet"


def sorted_out(
    found: Collection[Commit], parts: Collection[str]
) -> tuple[list[Commit], list[Commit], list[Commit]]:
    """Commits that count, those that are replaced by them, and those without a part."""
    whole = [one for one in found if one.part is None or one.part in parts]
    void = {replaced.name for one in whole for replaced in one.replaces}
    return (
        [one for one in whole if one.name not in void],
        [one for one in found if one.name in void],
        [
            one
            for one in found
            if one.name not in void and not (one.part is None or one.part in parts)
        ],
    )


def remove_replaced(store: LocalStore, replaced: Collection[Commit]) -> None:
    """Remove the files of commits that a merged one stands for; for the lock's holder.

    All parts first, durably: an items file without its part is nothing, a part without
    its items file would be rows that nobody knows of.
    """
    if not replaced:
        return
    for commit in replaced:
        if commit.part is not None:
            store.remove(commit.part)
            crash_point("replaced-part-removed")
    sync_folder(store.root)
    crash_point("replaced-parts-durable")
    for commit in replaced:
        store.remove(f"{ITEMS}/{commit.name}")
        crash_point("replaced-items-removed")


def committed(commits: Collection[Commit], run: str) -> dict[str, int]:
    """What a run has committed, as its report says it, whatever it was merged into."""
    own = {
        one.name: one
        for commit in commits
        for one in (commit.as_replaced, *commit.replaces)
        if run_of(one.name) == run
    }.values()
    return {
        "items": sum(one.items for one in own),
        "rows": sum(one.rows for one in own),
        "parts": sum(one.parts for one in own),
    }


# The last of these names is followed by eight digits of a checksum, in a footer that is
# not compressed: they are filled in when the file is complete.
SEAL = b"asyncfetch.seal"
UNSEALED = b"00000000"


def sealed_json(values: Mapping[str, Any]) -> str:
    """Text of *values* that holds its own checksum, so that an edited one is told."""
    crc = f"{zlib.crc32(json.dumps(values).encode()):08x}"
    return json.dumps({**values, "seal": crc}, indent=2) + "\n"


def is_as_sealed(text: str) -> bool:
    """Whether *text* is what :func:`sealed_json` gave."""
    values = json.loads(text)
    values.pop("seal", None)
    return sealed_json(values) == text


def crc32_of(path: Path) -> int:
    """Checksum of a file's bytes."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def seal(path: Path) -> None:
    """Fill in the checksum of a Parquet file that has a place for it."""
    place, digits, crc = _seal_in(path)
    assert digits == UNSEALED, digits
    with path.open("r+b") as file:
        file.seek(place)
        file.write(crc)


def check_seal(store: LocalStore, where: str) -> None:
    """Refuse a file that is not as it was written, under the name that it was given.

    Raises
    ------
    DatasetError
        A byte of it is another, or it is the copy of another file.
    """
    path = store.path(where)
    _, digits, crc = _seal_in(path)
    if digits != crc:
        got = crc.decode() if digits else "no checksum at all"
        raise DatasetError(
            f"expected a file with checksum {digits.decode('ascii', 'replace')}, got "
            f"{got} at {store}/{where}"
        )
    name = pq.read_metadata(path).metadata.get(b"asyncfetch.name", b"").decode()
    if name != path.name:
        raise DatasetError(
            f"expected the file {path.name}, got {name} at {store}/{where}"
        )


def _seal_in(path: Path) -> tuple[int, bytes, bytes]:
    """Where in a file its checksum is, what it says, and what it should say."""
    content = bytearray(path.read_bytes())  # no more than PART_ITEMS items
    at = content.rfind(SEAL)
    if at < 0:
        return 0, b"", UNSEALED
    place = at + len(SEAL) + 2  # the type and the length of a text that follows
    digits = bytes(content[place : place + len(UNSEALED)])
    content[place : place + len(UNSEALED)] = UNSEALED
    return place, digits, f"{zlib.crc32(content):08x}".encode()


@contextmanager
def opened(
    store: LocalStore,
    name: str,
    categories: list[str] | None = None,
    *,
    verify: bool = False,
) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a dataset, or one clear line when it is none.

    An error of the file system is one, too: Arrow tells some damage like that.
    """
    try:
        with pq.ParquetFile(
            store.address(name),
            filesystem=store.filesystem,
            read_dictionary=categories,
            page_checksum_verification=verify,
        ) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"expected a file of the dataset, got a damaged one at {store}/{name}: "
            f"{str(error).splitlines()[0]}; run verify with --repair"
        ) from error


def _planned_item(row: Mapping[str, Any]) -> PlannedItem:
    item = Item(
        key=row["key"],
        request=Request.from_json(row["request"]),
        context=json.loads(row["context"]),
    )
    return PlannedItem(ordinal=row["ordinal"], item=item, parent=row["parent"])


def store_at(dest: Destination) -> LocalStore:
    """Where the files of the dataset *dest* are; nothing is touched yet.

    Raises
    ------
    ConfigurationError
        It names a file, or an object store that cannot be used.
    """
    if isinstance(dest, ObjectStore):
        return BucketStore(dest)
    text = str(dest)
    if "://" in text:
        return BucketStore(ObjectStore(text))
    if not text:
        raise ConfigurationError(f"expected a directory, got {text!r}")
    if text.endswith((".parquet", ".csv", ".json")):
        raise ConfigurationError(
            f"expected a directory, got {text}: a dataset is a directory of Parquet "
            f"files; name it {text.rpartition('.')[0]}, for example"
        )
    return LocalStore(Path(dest).absolute())


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
    try:
        text = store.read_text(PLAN_FILE)
        if text is None:
            return None
        return PlanRecord.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"expected a plan, got something else at {store}/{PLAN_FILE}: {error!r}"
        ) from error


def unwritable(store: LocalStore, error: OSError) -> DatasetError:
    return DatasetError(
        f"expected a directory that can be written, got {store}: {error.strerror}"
    )


def cut_short(store: LocalStore, error: OSError) -> DatasetError:
    """What the disk said, and what it means for the dataset."""
    reason = str(error) if error.errno is None else os.strerror(error.errno)
    return DatasetError(
        f"expected to write to {store}, got {reason!r}: what was committed before "
        "stands; mend that, and a resume goes on"
    )


def no_dataset(store: LocalStore) -> DatasetError:
    below: list[str] = []
    with suppress(OSError):  # a mirror, or where somebody keeps several
        names = store.entries()[:20]
        below = [one for one in names if store.read_text(f"{one}/{PLAN_FILE}")]
    hint = f"; there are datasets in it: {', '.join(below)}" if below else ""
    return DatasetError(
        f"expected a dataset, got none at {store}: there is no {PLAN_FILE}{hint}"
    )


NO_ORDINALS: Longs = np.zeros(0, dtype=np.int64)

"""How rows get into a dataset and out again: its one writer, and the view of readers.

What lies where is drawn in :mod:`asyncfetch._ledger`; how a file becomes durable, who
may write, and what becomes of a writer that was only asleep, in
:mod:`asyncfetch._store`.

A commit publishes up to three files: the plan rows of items that were found on the way,
the items file, and the part. The items file names its part with its size, and counts
when that part is there (or when it has none), so **the last rename is the commit**.
Killed before it, the next run deletes the items file and asks again; killed after it,
nothing is asked again.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from asyncfetch._depot import OWN, depot_of
from asyncfetch._files import Files
from asyncfetch._ledger import (
    FORMAT,
    GROUP_ITEMS,
    ITEMS,
    ITEMS_SCHEMA,
    JSON,
    PART_ITEMS,
    PLAN,
    PLAN_FILE,
    PLAN_SCHEMA,
    RUNS,
    SEAL,
    UNSEALED,
    Commit,
    KeySet,
    Ledger,
    PlanRecord,
    committed,
    crc32_of,
    hashes,
    is_part,
    no_dataset,
    opened,
    schema_id,
    seal,
    sealed_json,
    store_at,
    stored_plan,
    unwritable,
)
from asyncfetch._model import (
    Block,
    FailedItem,
    Item,
    ItemResult,
    Json,
    PlannedItem,
)
from asyncfetch._names import Names, safe_path
from asyncfetch._objects import Destination
from asyncfetch._store import RECORDS, LocalStore, Lock, Staging, crash_point
from asyncfetch.errors import DatasetError

# Small enough for a reader's cache and our memory, large enough to compress well. With
# twice as many, 20 000 traces took 231 to 234 MB at their peak, with these 208 to 212.
GROUP_ROWS = 64 * 1024


# What may wait in memory beside the row limit: wide rows, and items without rows.
GROUP_BYTES = 32 * 1024 * 1024


# Files that wait on this machine's disk for their places elsewhere.
GROUP_FILES = 256 * 1024 * 1024


PART_ROWS = 1_000_000


PART_BYTES = 128 * 1024 * 1024


def _plan_row(planned: PlannedItem, *, with_file: bool) -> tuple[Any, ...]:
    item = planned.item
    request = item.request.to_json(with_file=with_file)
    context = json.dumps(dict(item.context), separators=(",", ":"))
    return planned.ordinal, item.key, request, context, planned.parent


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [
        pa.ExtensionArray.from_storage(JSON, pa.array(values, pa.string()))
        if field.type == JSON
        else pa.array(values, field.type)
        for values, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


class StagedFile:
    """A Parquet file that grows under ``tmp/<run>/``."""

    def __init__(
        self, staging: Staging, name: str, schema: pa.Schema, **options: Any
    ) -> None:
        self.name = name
        self.schema = schema
        self.rows = 0
        self.crc32: int | None = None
        """Of all its bytes, once it is closed and was not sealed."""
        self._staging = staging
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

    def write_rows(self, table: pa.Table) -> None:
        """Add rows of a part."""
        table = table.combine_chunks()  # one piece to encode, not one for every item
        # Equal groups rather than full ones and a stub.
        groups = max(1, table.num_rows // GROUP_ROWS)
        self.write(table, max(1, math.ceil(table.num_rows / groups)))

    def close(self, metadata: Mapping[str, str], *, seal_as: str | None = None) -> int:
        """Write the footer; the length of the file.

        Parameters
        ----------
        seal_as
            Final name of a file that is to hold its own checksum.
        """
        if seal_as is not None:
            places = {"asyncfetch.name": seal_as, SEAL.decode(): UNSEALED.decode()}
            metadata = {**metadata, **places}
        self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()
        length = self.bytes
        self._sink.close()
        path = self._staging.path(self.name)
        with self._staging.fenced():
            if seal_as is None:
                self.crc32 = crc32_of(path)
            else:
                seal(path)
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
        self._keys = KeySet()
        self._ledger = Ledger(store, record.limit, self._keys)
        self._ledger.tidy()
        self.files: Files | None = None
        if record.files is not None:
            self.files = Files(store, staging, record.files, beat=lock.beat)
            self.files.recall(self._ledger.stored)
        self._names: Names | None = None
        self._taken = KeySet() if row_key is None else self._row_keys(row_key)
        # The commit that is open, and what waits in memory to join it.
        self._commits = 0
        self._part: StagedFile | None = None
        self._items: StagedFile | None = None
        self._follow: StagedFile | None = None
        self._batches: list[pa.RecordBatch] = []
        self._item_rows: list[tuple[Any, ...]] = []
        self._found: list[PlannedItem] = []
        self._kept: list[ItemResult] = []
        self._queued_rows = 0
        self._queued_bytes = 0
        self._queued_files = 0
        self._open_rows = 0
        self._open_items = 0
        self._open_found = 0
        self._opened_at: float | None = None

    @classmethod
    def open(
        cls,
        dest: Destination,
        record: PlanRecord | None,
        schema: pa.Schema,
        *,
        row_key: str | None = None,
        seal_seconds: float = 30.0,
        stores_files: bool = False,
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
        stores_files
            Whether files are stored in the dataset when nothing else was said.
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
        store = store_at(dest)
        _agreed(store, record, schema)
        run = secrets.token_hex(8)
        staging = store.staging(run)
        lock = store.lock(run, clock=clock, sleep=sleep)
        try:
            store.create()
            lock.acquire()
        except OSError as error:
            raise unwritable(store, error) from error
        crash_point("open-locked")
        try:
            staging.announce()
            agreed = _agreed(store, record, schema)  # nobody else changes it now
            if agreed is record:  # the dataset begins
                agreed = replace(record, row_key=row_key, format=FORMAT)
            if agreed.files is None and stores_files:
                agreed = replace(agreed, files=OWN)
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
            let_go(staging, lock)
            raise
        return writer

    def _row_keys(self, row_key: str) -> KeySet:
        taken = KeySet()
        for commit in self._ledger.commits:
            if commit.part is not None:
                with opened(self._store, commit.part) as file:
                    for batch in file.iter_batches(columns=[row_key]):
                        taken.add(hashes(batch.column(0).drop_null()))
        return taken

    @property
    def cursor(self) -> Json:
        """Where the enumeration goes on."""
        return self._ledger.cursor

    @property
    def shortfall(self) -> str | None:
        """What the service promised and the enumeration did not find."""
        return self._ledger.shortfall

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
        for planned in self._ledger.pending(retry_failed=retry_failed, only=only):
            if self.files is not None:
                self.files.look(planned)
            yield planned

    def freeze(self, block: Block) -> list[PlannedItem]:
        """Make a block of the enumeration durable; its items within the limit.

        An item whose key is planned already is left out.
        """
        fresh = self._keys.add(hashes([item.key for item in block.items]))
        ledger = self._ledger
        first = ledger.next_ordinal
        planned = [
            PlannedItem(ordinal=ordinal, item=self._named(block.items[place]))
            for ordinal, place in enumerate(np.flatnonzero(fresh), first)
        ]
        file = StagedFile(self._staging, "block.plan", PLAN_SCHEMA)
        file.write(self._plan_rows(planned))
        metadata = {"asyncfetch.cursor": json.dumps(block.cursor)}
        if block.shortfall is not None:
            metadata["asyncfetch.shortfall"] = block.shortfall
            ledger.shortfall = block.shortfall
        if not ledger.blocks:  # by which an edited plan.json can be told and mended
            metadata["asyncfetch.plan"] = self.record.to_json()
        self._publish_plan(file, metadata, "block", first, first + len(planned) - 1)
        ledger.cursor, ledger.complete = block.cursor, block.cursor is None
        room = 0
        if planned:
            room = ledger.plan_roots(np.arange(first, first + len(planned)))
        if self.files is not None:
            self.files.look(planned[:room])
        return planned[:room]

    def _plan_rows(self, planned: list[PlannedItem]) -> pa.Table:
        with_file = self.files is not None
        rows = [_plan_row(one, with_file=with_file) for one in planned]
        return _table(rows, PLAN_SCHEMA)

    def _publish_plan(
        self,
        file: StagedFile,
        metadata: Mapping[str, str],
        what: str,
        first: int,
        last: int,
    ) -> None:
        name = f"{self._ledger.next_block:05d}.plan"
        file.close(metadata, seal_as=name)
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
                self._keep(result),
                self._stem + ".parquet" if rows else None,
            )
        )
        self._ledger.settle(result.ordinal, result.outcome)
        self._batches.extend(batches)
        self._found.extend(found)
        self._queued_rows += rows
        self._queued_bytes += sum(map(_size, batches))
        self._queued_bytes += len(detail or "") + 200 * len(found)
        self._open_rows += rows
        self._open_items += 1
        return found

    def _keep(self, result: ItemResult) -> str | None:
        """Queue the file of a result; what its items row says of it."""
        if result.kept is None or self.files is None:
            return None
        self._kept.append(result)
        if isinstance(result.kept.data, bytes):
            self._queued_bytes += result.bytes
        elif self.files.is_remote:  # or what was compared with the one in its place
            self._queued_files += result.bytes
        return self.files.label(result.kept.path)

    @property
    def _stem(self) -> str:
        return f"part-{self.run}-{self._commits:05d}"

    def _number(self, result: ItemResult) -> list[PlannedItem]:
        if not result.follow_up:
            return []
        fresh = self._keys.add(hashes([item.key for item in result.follow_up]))
        items = [result.follow_up[place] for place in np.flatnonzero(fresh)]
        first = self._ledger.next_ordinal
        self._ledger.plan_found(range(first, first + len(items)))
        return [
            PlannedItem(
                ordinal=first + n, item=self._named(item), parent=result.ordinal
            )
            for n, item in enumerate(items)
        ]

    def _named(self, item: Item) -> Item:
        """*item* as it joins the plan: the name of its file is safe and its alone."""
        wish = item.request.file
        if wish is None or self.files is None:
            return item
        if self._names is None:
            self.know_names()
        assert self._names is not None
        wish = replace(wish, path=self._names.give(wish.path, item.key))
        return replace(item, request=replace(item.request, file=wish))

    @property
    def lacks_names(self) -> bool:
        """Whether items with files must wait for :meth:`know_names`."""
        return self.files is not None and self._names is None

    def know_names(self) -> None:
        """Read which names of files are taken; waits for the disk.

        When more is planned and not before: 4 s for a million files, which what is
        pending need not wait for.
        """
        self._names = Names()
        for path in self._ledger.paths():
            self._names.take(path)

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
            if not keys.null_count:
                fresh = self._taken.add(hashes(keys))
            else:  # a row without a key stays
                fresh = np.ones(len(keys), dtype=np.bool_)
                has_key = keys.is_valid().to_numpy(zero_copy_only=False)
                fresh[has_key] = self._taken.add(hashes(keys.drop_null()))
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
            or self._queued_files >= GROUP_FILES
            or len(self._item_rows) >= GROUP_ITEMS
        )

    def flush(self) -> None:
        """Move what waits in memory to the open files under ``tmp/<run>/``.

        Stored files go to their places, before anything speaks of them.
        """
        if self.files is not None and self._kept:
            self.files.publish(self._kept)
            self._kept = []
        if self._batches:
            self._flush_rows()
        if self._found:
            if self._follow is None:
                self._open_found = self._found[0].ordinal
                self._follow = StagedFile(self._staging, "follow.plan", PLAN_SCHEMA)
            self._follow.write(self._plan_rows(self._found))
        if self._item_rows:
            self._flush_items()
        self._batches, self._found, self._item_rows = [], [], []
        self._queued_rows = self._queued_bytes = self._queued_files = 0
        # What the allocator keeps for later would grow with every group.
        pa.default_memory_pool().release_unused()

    def _flush_rows(self) -> None:
        if self._part is None:
            self._part = self._new_part(self._batches[0].schema)
        schema = self._part.schema
        table = pa.Table.from_batches(
            [_conformed(batch, schema) for batch in self._batches], schema
        ).unify_dictionaries()
        self._part.write_rows(table)

    def _flush_items(self) -> None:
        if self._items is None:
            self._items = StagedFile(self._staging, "part.items", ITEMS_SCHEMA)
        self._items.write(_table(self._item_rows, ITEMS_SCHEMA))

    def _new_part(self, sent: pa.Schema) -> StagedFile:
        """Begin a part; columns that come dictionary-encoded are written like that."""
        schema = pa.schema(
            [
                field.with_type(pa.dictionary(pa.int32(), field.type))
                if pa.types.is_dictionary(sent.field(field.name).type)
                else field
                for field in self._schema
            ]
        )
        return new_part(self._staging, schema, self._schema)

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
        commit = Commit(f"{self._stem}.items", items.rows, None, 0, 0)
        if follow is not None:
            self._publish_plan(
                follow, {}, "follow", self._open_found, self._ledger.next_ordinal - 1
            )
        if part is not None:
            size = part.close(self._part_metadata())
            commit = replace(
                commit,
                part=f"{self._stem}.parquet",
                rows=part.rows,
                size=size,
                crc32=part.crc32,
            )
        items.close(commit.footer(), seal_as=commit.name)
        self._staging.publish(items.name, f"{ITEMS}/{commit.name}", "items")
        if part is not None:
            self._staging.publish(part.name, str(commit.part), "part")
        self._ledger.commits.append(commit)
        if self.files is not None:
            self.files.committed()
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

    def leave(self, name: str, text: str) -> None:
        """Put a text for readers into the dataset, in the place of an earlier one."""
        self._staging.replace(text, name, "text")

    def heartbeat(self) -> None:
        """Show others that this writer lives; notice that another took over."""
        self._staging.check()
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
        if self.files is not None:
            self._tidy(self.files)
        leave_report(self._staging, report, self._ledger)

    def _tidy(self, files: Files) -> None:
        files.forget(self._ledger.stored)
        if not self.wants_more and self.ended == self.planned:
            files.tidy()

    def close(self) -> None:
        """Let others write. What was not committed is gone."""
        if self._closed:
            return
        self._closed = True
        for file in (self._part, self._items, self._follow):
            if file is not None:
                file.abandon()
        let_go(self._staging, self._lock)


def leave_report(staging: Staging, report: Mapping[str, Any], ledger: Ledger) -> None:
    """Say in the dataset what a run came to, when all else is done."""
    run = staging.run
    proof = {
        "run": run,
        "committed": committed(ledger.commits, run),
        "plan_blocks": ledger.next_block,
    }
    text = sealed_json({**report, **proof})
    with staging.fenced():
        staging.path("run.json").write_text(text, encoding="utf-8")
    staging.publish("run.json", f"{RUNS}/{run}.json", "run")


def let_go(staging: Staging, lock: Lock) -> None:
    """End what was under way, and let others write."""
    is_ours = staging.folder.exists()
    staging.discard()
    crash_point("close-emptied")
    lock.release(erase=is_ours)


def new_part(staging: Staging, schema: pa.Schema, plain: pa.Schema) -> StagedFile:
    """A part to write rows of *schema* to, which readers see as *plain*."""
    repeating = list(_dictionary_columns(plain))
    return StagedFile(
        staging,
        "part.parquet",
        schema,
        # The Arrow schema would make readers see dictionaries where text is.
        store_schema=False,
        use_dictionary=repeating,
        # A trace or a run is found by them; coordinates and onsets of a row group
        # span everything, and their statistics take a tenth of the writing.
        write_statistics=repeating,
    )


def _conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows, with text encoded as the open part has it."""
    if batch.schema.equals(schema):
        return batch
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


def _size(batch: pa.RecordBatch) -> int:
    """Bytes of its rows, or somewhat more.

    Buffers of numbers may hold the rows of other items as well, and are not counted as
    a whole. Dictionaries hold names, and few. ``nbytes`` takes five times as long.
    """
    try:
        bits = sum(kind.bit_width for kind in batch.schema.types)
    except ValueError:  # a column of text or lists: those are no item's but its own
        return int(batch.get_total_buffer_size())
    return int(batch.num_rows * bits // 8)


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


def _agreed(
    store: LocalStore, record: PlanRecord | None, schema: pa.Schema
) -> PlanRecord:
    """The plan that the dataset holds or is to hold; changes nothing.

    Raises
    ------
    DatasetError
        The directory holds something else.
    """
    stored = stored_plan(store)
    if stored is None:
        _refuse_other_content(store)
        if record is None:
            raise no_dataset(store)
        return record
    if record is not None and (differences := stored.differences(record)):
        if not store.names(PLAN):  # a mistaken question that came to no item
            return record
        raise DatasetError(
            f"expected the plan that {store} holds, got another: "
            f"{', '.join(differences)}; choose another directory for it",
            is_usage=True,
        )
    parts = [name for name in store.names() if is_part(name)]
    if stored.schema_id != schema_id(schema) and parts:
        with opened(store, parts[0]) as file:
            _check_columns(file.schema_arrow, schema, store)
    limit = stored.limit if record is None else record.limit
    files = stored.files
    if record is not None and record.files not in {None, files}:
        if store.names(PLAN):  # what was fetched lies elsewhere, or nowhere
            raise DatasetError(
                f"expected the files of {store} in {files or 'no place'}, as it was "
                f"begun, got {record.files}: choose another directory for the dataset",
                is_usage=True,
            )
        files = record.files
    return replace(stored, limit=limit, schema_id=schema_id(schema), files=files)


def _refuse_other_content(store: LocalStore) -> None:
    if store.root.exists() and not store.root.is_dir():
        raise DatasetError(f"expected a directory, got a file at {store}")
    there = store.entries()
    if RECORDS not in there:
        others = [name for name in there if name[0] not in "._"]
        if others:
            raise DatasetError(
                f"expected a dataset or an empty directory, got {store} with "
                f"{others[0]} and no {RECORDS} in it: choose another directory"
            )
    if store.names(PLAN):
        raise DatasetError(
            f"expected {PLAN_FILE} beside the frozen plan, got none in {store}: "
            "put it back, or choose another directory"
        )


def _check_columns(there: pa.Schema, here: pa.Schema, store: LocalStore) -> None:
    """Refuse to mix columns, but for new nullable ones at the end."""
    both = list(zip(there, here, strict=False))
    for old, new in both:
        if (old.name, old.type) != (new.name, new.type):
            raise DatasetError(
                f"expected column {old.name} {old.type}, got {new.name} {new.type}: "
                f"{store} was begun with other columns; fetch into another directory"
            )
    for extra in [*list(there)[len(both) :], *list(here)[len(both) :]]:
        if not extra.nullable:
            raise DatasetError(
                f"expected the columns of {store}, got a required column "
                f"{extra.name} beside them: fetch into another directory"
            )


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
    files: int = 0
    """Files that are stored."""
    file_bytes: int = 0


class View:
    """A dataset as its readers see it: what is committed when the view is opened.

    A view is exact, also one that is opened while a run or a compaction is at work: it
    holds each row once. It keeps no file open. A compaction that comes later takes its
    files away; then its members raise :class:`~asyncfetch.errors.DatasetError`, and a
    scan that is under way in ``rows`` raises :class:`FileNotFoundError`. Open the
    dataset again; the rows are the same.

    Parameters
    ----------
    dest
        Its directory, or its place on an object store.

    Attributes
    ----------
    plan
        What was asked.

    Raises
    ------
    DatasetError
        There is no dataset, or it is damaged.
    """

    def __init__(self, dest: Destination) -> None:
        self._store = store_at(dest)
        plan = stored_plan(self._store)
        if plan is None:
            raise no_dataset(self._store)
        self.plan = plan
        self._ledger = Ledger(self._store, plan.limit)

    @property
    def items(self) -> pa.Table:
        """What became of each item; one that was tried in two runs has two rows."""
        with self._still_there():
            return self.items_unread.to_table()

    @property
    def items_unread(self) -> pads.Dataset:
        """The same, to be read in parts: a million items take 400 MB at once."""
        return self._ledger.items()

    def details(self) -> Iterator[Mapping[str, Any]]:
        """What was learned beside the rows of each item that is ok, as they ended."""
        with self._still_there():
            yield from self._ledger.details()

    @property
    def rows(self) -> pads.Dataset:
        """The rows of exactly the parts that count."""
        paths = [
            self._store.address(commit.part)
            for commit in self._ledger.commits
            if commit.part is not None
        ]
        if not paths:
            return pads.dataset(pa.table({}))
        with self._still_there():
            # Later parts may have more columns at the end.
            system = self._store.filesystem
            schemas = [pq.read_schema(path, filesystem=system) for path in paths]
            schema = pa.unify_schemas(schemas)
            return pads.dataset(paths, schema=schema, filesystem=system)

    def source_of(self, part: str | Path, row: int) -> dict[str, Any]:
        """The items row of the item that the row number *row* of a part came from.

        Raises
        ------
        LookupError
            The part does not count, or has no such row.
        """
        name = Path(part).name
        first, rows = pads.field("first_row"), pads.field("rows")
        with self._still_there():
            found = self._ledger.items().to_table(
                filter=(pads.field("part") == name)
                & (first <= row)
                & (row < first + rows)
            )
        if not found.num_rows:
            raise LookupError(
                f"expected a row of a part that counts, got {row} of {name}"
            )
        source: dict[str, Any] = found.to_pylist()[0]
        return source

    @contextmanager
    def _still_there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DatasetError(
                f"expected the files that {self._store} had when this view of it "
                f"was opened, got others: it was compacted since; open it again "
                f"({' '.join(str(error).split())})"
            ) from error

    def file(self, path: str) -> Iterator[bytes]:
        """The bytes of a stored file, from wherever it lies, some at a time.

        Parameters
        ----------
        path
            As the items have it, or from the directory of files on.

        Raises
        ------
        LookupError
            No stored file of the dataset can be called that.
        FileNotFoundError
            It is not there: verify says more.
        """
        if self.plan.files is not None:
            staging = self._store.staging("")
            depot = depot_of(self._store, staging, self.plan.files, beat=lambda: None)
            below = depot.path_of(path) or path
            if safe_path(below) == below:
                return depot.pieces(below)
        raise LookupError(f"expected the path of a stored file, got {path!r}")

    def failed(self, limit: int = 100) -> list[FailedItem]:
        """The first items that failed in the end, each with its latest reason."""
        with self._still_there():
            return self._ledger.failed(limit)

    def state(self) -> State:
        """How far it has come."""
        ledger = self._ledger
        items = ledger.counts()
        files, file_bytes = (0, 0) if self.plan.files is None else ledger.files()
        return State(
            items=items,
            planned=ledger.planned,
            pending=ledger.planned - sum(items.values()),
            plan_complete=not ledger.wants_more,
            rows=ledger.rows,
            parts=ledger.parts,
            bytes=sum(commit.size for commit in ledger.commits),
            files=files,
            file_bytes=file_bytes,
        )


def noted(
    dest: Destination, record: PlanRecord, schema: pa.Schema
) -> Mapping[str, Json] | None:
    """What the dataset at *dest* has learned of that plan; only looks.

    Raises
    ------
    ConfigurationError, DatasetError
        As :meth:`Writer.open`.
    """
    return _agreed(store_at(dest), record, schema).notes


def held(dest: Destination, record: PlanRecord, schema: pa.Schema) -> Ledger | None:
    """What a writer of that plan would find at *dest*, None for nothing; only looks.

    Raises
    ------
    ConfigurationError, DatasetError
        As :meth:`Writer.open`.
    """
    store = store_at(dest)
    agreed = _agreed(store, record, schema)
    return Ledger(store, agreed.limit) if stored_plan(store) is not None else None


def open_dataset(dest: Destination) -> View:
    """View of the dataset at *dest*; what a writer commits later is not in it."""
    return View(dest)

"""Small parts into large ones, with every row where a reader finds it once.

A merged commit is a commit like any other: its items file, then its part, and the last
rename is the instant at which it counts. Its items file names what it replaces; that is
void from then on, and its files are removed. So a compaction may be killed anywhere:
either the small ones count or the large one, and the next who holds the lock removes
the rest. Nothing is asked of the service, and no row, item or plan row is changed, but
for the place where an item's rows are.

Whoever reads the parts by a bare glob may see the rows of one merged part twice, for
the moment between the rename and the removals; :func:`asyncfetch.open_dataset` never.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asyncfetch._dataset import (
    GROUP_BYTES,
    GROUP_ROWS,
    PART_BYTES,
    PART_ROWS,
    StagedFile,
    leave_report,
    let_go,
    new_part,
)
from asyncfetch._ledger import (
    GROUP_ITEMS,
    ITEMS,
    ITEMS_SCHEMA,
    PART_ITEMS,
    Commit,
    Ledger,
    cut_short,
    no_dataset,
    opened,
    part_of,
    remove_replaced,
    store_at,
    stored_plan,
    unwritable,
)
from asyncfetch._objects import Destination
from asyncfetch._store import LocalStore, Lock, Staging
from asyncfetch.errors import DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What a compaction came to."""

    merged: int
    """Commits that were merged, with a part or without."""
    parts_before: int
    parts: int
    """Parts in the dataset now."""
    bytes_before: int
    bytes: int
    """Length of the parts now."""
    rows: int
    """Rows in the dataset, the same as before."""


def compact(
    dest: Destination,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Compaction:
    """Merge the small parts of the dataset at *dest*.

    Parts grow to about 1 million rows or 128 MiB. Rows and items stay as they are, the
    rows of an item side by side. At no time is more than a few row groups in memory.
    Killed anywhere, nothing is lost and nothing doubled, and it may be called again.

    It blocks: in an event loop, call it by ``anyio.to_thread.run_sync``.

    Parameters
    ----------
    dest
        The dataset's directory, or its place on an object store.
    clock, sleep
        Seconds that only grow, and how to wait for another writer.

    Raises
    ------
    DatasetError
        There is no dataset or a damaged one, another writer is at work, or the
        directory cannot be written.
    """
    store = store_at(dest)
    record = stored_plan(store)
    if record is None:
        raise no_dataset(store)
    run = secrets.token_hex(8)
    staging = store.staging(run)
    lock = store.lock(run, clock=clock, sleep=sleep)
    try:
        store.create()
        lock.acquire()
    except OSError as error:
        raise unwritable(store, error) from error
    try:
        staging.announce()
        ledger = Ledger(store, record.limit)
        ledger.tidy()
        return _Compactor(store, staging, lock, ledger).run()
    except OSError as error:
        raise cut_short(store, error) from error
    finally:
        let_go(staging, lock)


@dataclass(frozen=True, slots=True)
class _Small:
    """A commit that may be merged, and what decides with which."""

    commit: Commit
    first: int
    """The lowest ordinal of its items."""
    kind: tuple[pa.Schema, tuple[tuple[bytes, bytes], ...]] | None
    """Columns and metadata of its part; only what is alike is merged."""


class _Compactor:
    """One compaction, under the lock."""

    def __init__(
        self, store: LocalStore, staging: Staging, lock: Lock, ledger: Ledger
    ) -> None:
        self._store = store
        self._staging = staging
        self._lock = lock
        self._ledger = ledger
        self._commits = 0

    def run(self) -> Compaction:
        """Merge what is small."""
        ledger = self._ledger
        parts_before, bytes_before = ledger.parts, _length(ledger)
        merged = 0
        try:
            for group in self._groups():
                self._merge(group)
                merged += len(group)
            result = Compaction(
                merged=merged,
                parts_before=parts_before,
                parts=ledger.parts,
                bytes_before=bytes_before,
                bytes=_length(ledger),
                rows=ledger.rows,
            )
            if merged:
                counts = {"merged": merged, "parts_before": parts_before}
                leave_report(self._staging, {"compaction": counts}, ledger)
        except DatasetError:
            # Files that went under our eyes, because another run merged them?
            self._staging.check()
            raise
        return result

    def _groups(self) -> Iterator[list[Commit]]:
        """Commits to merge, in plan order, so that a part is full or has all there is.

        Small is what is less than half of a part. So what a full group becomes is not
        small again, and a second compaction finds nothing to do.
        """
        kinds: dict[Any, list[_Small]] = {}
        for commit in self._ledger.commits:
            if (
                2 * commit.rows < PART_ROWS
                and 2 * commit.size < PART_BYTES
                and 2 * commit.items < PART_ITEMS
            ):
                small = self._looked_at(commit)
                kinds.setdefault(small.kind, []).append(small)
        for alike in kinds.values():
            yield from _filled([one.commit for one in sorted(alike, key=_place)])

    def _looked_at(self, commit: Commit) -> _Small:
        self._beat()
        with opened(self._store, f"{ITEMS}/{commit.name}") as file:
            ordinals = file.read(columns=["ordinal"]).column(0)
            first = pc.min(ordinals).as_py()
        kind = None
        if commit.part is not None:
            with opened(self._store, commit.part) as file:
                schema = file.schema_arrow.remove_metadata()
                kind = schema, tuple(sorted(_metadata_of(file).items()))
        return _Small(commit, -1 if first is None else first, kind)

    def _merge(self, group: list[Commit]) -> None:
        """Write what the commits of *group* hold as one, and remove them."""
        staging = self._staging
        name = f"part-{staging.run}-{self._commits:05d}.items"
        rows = size = 0
        crc32 = None
        part = self._merged_part(group)
        if part is not None:
            file, metadata = part
            size, rows, crc32 = file.close(metadata), file.rows, file.crc32
        items = self._merged_items(group, part_of(name))
        commit = Commit(
            name,
            items.rows,
            part_of(name) if part is not None else None,
            rows,
            size,
            crc32,
            tuple(
                replaced
                for one in group
                for replaced in (one.as_replaced, *one.replaces)
            ),
        )
        items.close(commit.footer(), seal_as=name)
        staging.publish(items.name, f"{ITEMS}/{name}", "merged-items")
        if part is not None:
            staging.publish(part[0].name, part_of(name), "merged-part")
        self._commits += 1
        gone = {one.name for one in group}
        left = [one for one in self._ledger.commits if one.name not in gone]
        self._ledger.commits = [*left, commit]
        remove_replaced(self._store, group)

    def _merged_part(
        self, group: list[Commit]
    ) -> tuple[StagedFile, dict[str, str]] | None:
        """The rows of all, and the metadata that they have in common."""
        merged: StagedFile | None = None
        metadata: dict[str, str] = {}
        waiting: list[pa.Table] = []
        rows = size = 0
        try:
            for commit in group:
                if commit.part is None:
                    continue
                with (
                    self._store.whole(commit.part),
                    opened(self._store, commit.part, verify=True) as file,
                ):
                    if merged is None:
                        schema = file.schema_arrow.remove_metadata()
                        merged = new_part(self._staging, schema, schema)
                        metadata = {
                            key.decode(): value.decode()
                            for key, value in _metadata_of(file).items()
                        }
                    for number in range(file.num_row_groups):
                        table = file.read_row_group(number)
                        waiting.append(table.cast(merged.schema))
                        rows += table.num_rows
                        size += table.nbytes
                        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                            merged.write_rows(pa.concat_tables(waiting))
                            waiting, rows, size = [], 0, 0
                            self._beat()
            if merged is not None and (waiting or not merged.rows):
                waiting = waiting or [merged.schema.empty_table()]
                merged.write_rows(pa.concat_tables(waiting))
        except BaseException:
            if merged is not None:
                merged.abandon()
            raise
        return None if merged is None else (merged, metadata)

    def _merged_items(self, group: list[Commit], part: str) -> StagedFile:
        """The items of all, each with the place where its rows are now."""
        merged = StagedFile(self._staging, "part.items", ITEMS_SCHEMA)
        waiting: list[pa.Table] = []
        rows_before = 0
        for commit in group:
            self._beat()
            with opened(self._store, f"{ITEMS}/{commit.name}", verify=True) as file:
                for batch in file.iter_batches(GROUP_ITEMS):
                    table = pa.Table.from_batches([batch])
                    waiting.append(_moved(table, rows_before, part))
                    if sum(one.num_rows for one in waiting) >= GROUP_ITEMS:
                        merged.write(pa.concat_tables(waiting))
                        waiting = []
            rows_before += commit.rows
        if waiting or not merged.rows:
            merged.write(pa.concat_tables(waiting or [ITEMS_SCHEMA.empty_table()]))
        return merged

    def _beat(self) -> None:
        self._staging.check()
        self._lock.beat()


def _place(small: _Small) -> int:
    return small.first


def _filled(commits: list[Commit]) -> Iterator[list[Commit]]:
    """Neighbours that fit into a part together; one that finds no company stays."""
    group: list[Commit] = []
    rows = size = items = 0
    for commit in commits:
        rows, size, items = (
            rows + commit.rows,
            size + commit.size,
            items + commit.items,
        )
        if rows > PART_ROWS or size > PART_BYTES or items > PART_ITEMS:
            if len(group) > 1:
                yield group
            group = []
            rows, size, items = commit.rows, commit.size, commit.items
        group.append(commit)
    if len(group) > 1:
        yield group


def _length(ledger: Ledger) -> int:
    return sum(commit.size for commit in ledger.commits)


def _metadata_of(file: pq.ParquetFile) -> dict[bytes, bytes]:
    return dict(file.metadata.metadata or {})


def _moved(items: pa.Table, rows_before: int, part: str) -> pa.Table:
    """Items whose rows lie in *part* now, behind so many others."""
    place = items.schema.get_field_index("first_row")
    items = items.set_column(
        place, "first_row", pc.add(items.column(place), rows_before)
    )
    place = items.schema.get_field_index("part")
    names = pc.if_else(items.column(place).is_valid(), part, None)
    return items.set_column(place, "part", names.cast(pa.string())).cast(ITEMS_SCHEMA)

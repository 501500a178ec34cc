"""Whether a dataset agrees with itself: every file is read and compared.

What a kill leaves behind is no disagreement: items that wait for a part that never
came, files that a compaction had replaced and did not come to remove. Neither counts,
and the next run removes them; they are told as notes.

Trust is taken away by whole commits, and ``--repair`` removes these, so that a resume
asks for their items again. What is sound stays.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asyncfetch._ledger import (
    ITEMS,
    NO_ORDINALS,
    PLAN,
    PLAN_FILE,
    RUNS,
    Commit,
    Flags,
    KeySet,
    Longs,
    PlanRecord,
    check_seal,
    committed,
    crc32_of,
    hashes,
    is_as_sealed,
    is_part,
    items_names,
    no_dataset,
    opened,
    part_of,
    plan_names,
    run_of,
    store_at,
    stored_plan,
    unwritable,
)
from asyncfetch._model import Outcome
from asyncfetch._objects import Destination
from asyncfetch._store import FOLDERS, RECORDS, LocalStore, Staging, sync_folder
from asyncfetch._verify_files import FilesAudit
from asyncfetch.errors import DatasetError

# At most one counted row of an item has one of these.
GOT = {Outcome.OK, Outcome.UNCHANGED, Outcome.SPLIT}

# What may lie among the records.
KNOWN = {*FOLDERS, "plan.json", "CITATION.md", "lock", "fence"}

# Without a change of mind by then, something else writes here.
REPAIRS = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a dataset that does not agree with the rest."""

    code: str
    """A short stable word for the kind."""
    where: str
    """Name below the dataset's directory."""
    text: str
    """One line: expected, got, what follows."""
    key: str | None = None
    """Of the first item that is concerned, where it is known."""


def verify(
    dest: Destination,
    *,
    repair: bool = False,
    note: Callable[[Problem], object] = lambda _: None,
) -> list[Problem]:
    """Prove that plan, items, parts and reports of a dataset agree.

    Every byte of every file is read, and its checksum compared; stored files too.

    Parameters
    ----------
    repair
        Remove what cannot be trusted, so that a resume asks for it again; nothing else
        is touched. What was found is returned all the same.
    note
        Called with what is worth knowing and no disagreement: what a kill left.

    Raises
    ------
    DatasetError
        There is no dataset, a writer is at work in it, or it is to be repaired and
        cannot be written.
    """
    store = store_at(dest)
    if "plan.json" not in store.names(RECORDS) and not store.names(PLAN):
        raise no_dataset(store)
    run = secrets.token_hex(8)
    staging = store.staging(run)
    lock = store.lock(run, clock=time.monotonic, sleep=time.sleep)
    try:
        if repair:
            store.create()
        lock.acquire()
    except OSError as error:
        if repair:  # otherwise it may be an archive on a read-only disk
            raise unwritable(store, error) from error
    try:
        if repair:
            staging.announce()

        def beat() -> None:
            if repair:
                staging.check()
            lock.beat()

        audit = _Audit(store, beat, staging)
        for one in audit.notes:
            note(one)
        problems = audit.problems
        if repair:
            if audit.files is not None:
                audit.files.repair(audit.untrusted_items)
            _repair(store, staging, beat, audit)
            if audit.files is not None:
                audit.files.clear()
    finally:
        staging.discard()
        lock.release(erase=True)
    return problems


def _repair(
    store: LocalStore, staging: Staging, beat: Callable[[], None], audit: _Audit
) -> None:
    if audit.mended is not None:
        staging.replace(audit.mended.to_json(), PLAN_FILE, "plan")
    for _ in range(REPAIRS):
        # Parts before what speaks of them, and that durably.
        for name in sorted(audit.untrusted, key=lambda name: "/" in name):
            beat()  # nothing is removed once another run took over
            if "/" in name:
                sync_folder(store.root)
            store.remove(name)
        if not audit.untrusted:
            break
        # What was removed may have stood for others, or been what others hang on.
        audit = _Audit(store, beat)
    for name in audit.wrong_reports:  # of runs whose commits went
        store.remove(name)


@dataclass(frozen=True, slots=True)
class _Audited:
    """An items file that was read whole."""

    commit: Commit
    ordinals: Longs
    keys: Longs
    """Hashes."""
    got: Flags
    """Which of the items are ok, unchanged or split."""
    follow_ups: Longs
    trouble: tuple[str, str] | None
    """Key of the first item whose rows are not where they should be, and why."""

    @classmethod
    def read(cls, store: LocalStore, name: str, *, sealed: bool) -> _Audited:
        """Read every byte of an items file."""
        where = f"{ITEMS}/{name}"
        if sealed:
            check_seal(store, where)
        with opened(store, where, verify=True) as file:
            table = file.read()  # no more than PART_ITEMS rows
            commit = Commit.of(name, file.metadata)
            outcomes = [Outcome(one) for one in table.column("outcome").to_pylist()]
        return cls(
            commit,
            ordinals=table.column("ordinal").to_numpy(),
            keys=hashes(table.column("key").to_pylist()),
            got=np.array([one in GOT for one in outcomes], dtype=np.bool_),
            follow_ups=table.column("follow_up").combine_chunks().flatten().to_numpy(),
            trouble=_trouble_of_rows(table, commit),
        )


def _trouble_of_rows(items: pa.Table, commit: Commit) -> tuple[str, str] | None:
    """Whether the items share the rows of the part among them without gap or overlap.

    The key of the first that does not, and what it should say.
    """
    items = items.select(["key", "rows", "first_row", "part"])
    items = items.append_column("place", pc.fill_null(items["first_row"], -1))
    behind, last = 0, ""
    for row in items.sort_by(
        [("place", "ascending"), ("rows", "ascending")]
    ).to_pylist():
        part = commit.part if row["rows"] else None
        first = behind if row["rows"] else None
        if (row["first_row"], row["part"]) != (first, part):
            return row["key"], (
                f"expected its {row['rows']} rows from {first} of {part}, got from "
                f"{row['first_row']} of {row['part']}"
            )
        behind, last = behind + row["rows"], row["key"]
    if behind != commit.rows:
        return last, f"expected items with {commit.rows} rows in all, got {behind}"
    return None


class _Audit:
    """What is found when everything is read and compared.

    Stored files only with *staging*, the way to change them.

    The plan rows of follow-ups hang on the commit that lists them, and the items of
    these on those plan rows; so distrust spreads until what is left agrees with itself.
    """

    def __init__(
        self,
        store: LocalStore,
        beat: Callable[[], None],
        staging: Staging | None = None,
    ) -> None:
        self._store = store
        self._beat = beat
        self._parts = {n: size for n, size in store.names().items() if is_part(n)}
        self._reports = set(store.names(RUNS))
        self._trusted: dict[str, _Audited] = {}
        self._claims: list[Commit] = []
        self._origins: dict[str, tuple[Any, ...]] = {}
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.untrusted: list[str] = []
        """Files to remove: parts, their items files, and the plan from its end."""
        self.wrong_reports: list[str] = []
        self.mended: PlanRecord | None = None
        """What plan.json must say."""
        self._record = self._read_record()
        self._sealed = self._record is not None and self._record.format > 1
        self.files: FilesAudit | None = None
        if staging is not None and self._record is not None and self._record.files:
            self.files = FilesAudit(store, self._record, staging, beat)
        lost_blocks = self._read_plan()
        self._read_commits()
        self._compare_origins()
        self._spread_distrust()
        self._find_what_is_twice_there()
        self._find_strays()
        self._compare_reports()
        self.untrusted += lost_blocks
        if store.lost is not None:  # what could not be read need not be damaged
            raise store.lost

    @property
    def untrusted_items(self) -> list[str]:
        """Names of the items files to remove."""
        start = f"{ITEMS}/"
        return [n.removeprefix(start) for n in self.untrusted if n.startswith(start)]

    def _tell(self, code: str, where: str, text: str, key: str | None = None) -> None:
        self.problems.append(Problem(code, where, text, key))

    def _note(self, code: str, where: str, text: str) -> None:
        self.notes.append(Problem(code, where, text))

    def _distrust(
        self, code: str, commit: Commit, text: str, key: str | None = None
    ) -> None:
        """Commits go as a whole: the part first, for without it the rest is void."""
        self._trusted.pop(commit.name, None)
        where = f"{ITEMS}/{commit.name}"
        self._tell(code, where, text if key is None else f"{key}: {text}", key)
        self.untrusted += [commit.part, where] if commit.part else [where]

    # --- the plan

    def _read_record(self) -> PlanRecord | None:
        """What was asked; the first block of the plan knows it, too."""
        try:
            told = stored_plan(self._store)
            trouble = f"expected {PLAN_FILE}, got none" if told is None else None
        except DatasetError as error:
            told, trouble = None, str(error)
        frozen = self._frozen_record()
        if frozen is None:
            if trouble is not None:
                self._tell("plan-record", PLAN_FILE, f"{trouble}; put it back")
            return told
        if told is not None:
            text = self._store.read_text(PLAN_FILE) or ""
            if is_as_sealed(text):
                # Limit and files are wishes of a run; a new version may add columns.
                frozen = replace(
                    frozen,
                    limit=told.limit,
                    schema_id=told.schema_id,
                    files=told.files,
                )
            changed = [
                f"{one.name} {there!r}, got {here!r}"
                for one in fields(PlanRecord)
                if (there := getattr(frozen, one.name))
                != (here := getattr(told, one.name))
            ]
            if changed or not is_as_sealed(text):
                expected = "; ".join(changed) or "what asyncfetch wrote"
                trouble = f"expected {expected}: it was edited"
        if trouble is not None:
            self.mended = frozen
            self._tell("plan-record", PLAN_FILE, trouble)
        return frozen

    def _frozen_record(self) -> PlanRecord | None:
        where = f"{PLAN}/00000.plan"
        try:
            check_seal(self._store, where)
            with opened(self._store, where) as file:
                text = file.metadata.metadata[b"asyncfetch.plan"]
            return PlanRecord.from_json(text.decode())
        except (DatasetError, pa.ArrowException, OSError, ValueError, KeyError):
            return None  # what is wrong with the block is told with the others

    def _read_plan(self) -> list[str]:
        """Read the frozen plan as far as it can be; the blocks behind that place."""
        names = plan_names(self._store)
        no_flags: Flags = np.zeros(0, dtype=np.bool_)
        ordinals, is_root, keys = [NO_ORDINALS], [no_flags], [NO_ORDINALS]
        lost: list[str] = []
        for number, name in enumerate(names):
            where = f"{PLAN}/{name}"
            try:
                if int(name[:-5]) != number:
                    raise DatasetError(f"expected {number:05d}.plan first, got none")
                for batch in self._block(where):
                    ordinals.append(batch.column("ordinal").to_numpy())
                    roots = batch.column("parent").is_null()
                    is_root.append(roots.to_numpy(zero_copy_only=False))
                    keys.append(hashes(batch.column("key")))
            except DatasetError as error:
                self._tell(
                    "plan",
                    where,
                    f"{error}; the plan from here on must be enumerated again",
                )
                lost = [f"{PLAN}/{one}" for one in names[number:]]
                break
        self._blocks = len(names) - len(lost)
        numbers = np.concatenate(ordinals)
        order = np.argsort(numbers, kind="stable")
        self._ordinals = numbers[order]
        self._is_root = np.concatenate(is_root)[order]
        self._keys = np.concatenate(keys)[order]
        if (np.diff(self._ordinals) == 0).any():
            self._tell("plan", PLAN, "expected each ordinal once, got one twice")
        return lost[::-1]

    def _block(self, where: str) -> Iterator[pa.RecordBatch]:
        self._beat()
        if self._sealed:
            check_seal(self._store, where)
        with opened(self._store, where, verify=True) as file:
            behind = -1
            for batch in file.iter_batches():
                steps = np.diff(batch.column("ordinal").to_numpy(), prepend=behind)
                # Ordinals drawn for others may lie between those of follow-ups, and
                # burnt ones before the first.
                roots = batch.column("parent").null_count
                if (steps < 1).any() or (roots and (steps[behind < 0 :] != 1).any()):
                    raise DatasetError(
                        "expected ordinals that count up at "
                        f"{self._store}/{where}, got a jump"
                    )
                yield batch
                behind = int(batch.column("ordinal")[-1].as_py()) if len(batch) else -1

    # --- commits

    def _read_commits(self) -> None:
        """Trust each commit for itself, or find why not."""
        read: list[_Audited] = []
        damaged: dict[str, str] = {}
        for name in items_names(self._store):
            self._beat()
            try:
                read.append(_Audited.read(self._store, name, sealed=self._sealed))
            except DatasetError as error:
                damaged[name] = str(error)
        void: set[str] = set()
        waiting: list[_Audited] = []
        # What was merged last lists all that the merged ones before it list.
        for audited in sorted(read, key=lambda one: -len(one.commit.replaces)):
            commit = audited.commit
            if commit.name in void:
                continue
            self._claims.append(commit)
            if commit.part is not None and commit.part not in self._parts:
                waiting.append(audited)
                continue
            if (found := self._trouble_of(audited)) is not None:
                code, key, text = found
                self._distrust(code, commit, text, key)
            else:
                self._trusted[commit.name] = audited
                void.update(one.name for one in commit.replaces)
        waiting = [one for one in waiting if one.commit.name not in void]
        for audited in waiting:
            self._without_part(audited)
        for name, trouble in damaged.items():
            if name not in void:
                held = part_of(name) if part_of(name) in self._parts else None
                self._distrust("items", Commit(name, 0, held, 0, 0), trouble)
        self._trusted = dict(sorted(self._trusted.items()))
        self._claims = [one for one in self._claims if one.name not in void]
        left = void & {one.commit.name for one in read} | void & damaged.keys()
        self._left_over = {part_of(name) for name in left}
        for name in sorted(left):
            self._note(
                "replaced",
                f"{ITEMS}/{name}",
                "does not count: a compaction was killed before it removed what it had "
                "merged; the next run does it",
            )

    def _trouble_of(self, audited: _Audited) -> tuple[str, str | None, str] | None:
        """Code, key and text for a commit whose part, rows or files are not whole."""
        commit = audited.commit
        damage = [] if self.files is None else list(self.files.troubles(commit.name))
        for one in damage:
            self._tell(*one)
        if trouble := self._part_trouble(commit):
            return "part", None, trouble
        if audited.trouble is not None:
            return "rows", *audited.trouble
        if damage:
            text = f"expected all its stored files, got {len(damage)} not whole"
            return "file", None, text
        return None

    def _without_part(self, audited: _Audited) -> None:
        """Find out whether the part of a commit never came, or was taken away."""
        commit = audited.commit
        run = run_of(commit.name)
        later = [
            name
            for name in (*items_names(self._store), *map(_items_of, self._parts))
            if run_of(name) == run and name > commit.name
        ]
        held = [one.ordinals for one in self._trusted.values()]
        lost_sources = (
            commit.replaces
            and not np.isin(
                audited.ordinals, np.concatenate([NO_ORDINALS, *held])
            ).all()
        )
        if f"{run}.json" in self._reports or later or lost_sources:
            text = f"expected {commit.part}, got none: it was taken away"
            self._distrust("part-missing", replace(commit, part=None), text)
        else:
            self._note(
                "part-missing",
                f"{ITEMS}/{commit.name}",
                f"does not count: a run was killed before {commit.part} was there; a "
                "resume asks for its items",
            )

    def _part_trouble(self, commit: Commit) -> str | None:
        if commit.part is None:
            return None
        size = self._parts[commit.part]
        if size != commit.size:
            return f"expected {commit.size} bytes, got {size} in {commit.part}"
        try:
            with self._store.whole(commit.part) as path:
                with opened(self._store, commit.part, verify=True) as file:
                    rows = 0
                    for batch in file.iter_batches():
                        rows += batch.num_rows
                        self._beat()
                    metadata = file.metadata.metadata or {}
                    columns = [(one.name, one.type) for one in file.schema_arrow]
                crc = crc32_of(path)
        except (DatasetError, OSError) as error:
            return str(error)
        if commit.crc32 is not None and crc != commit.crc32:
            return (
                f"expected checksum {commit.crc32:08x}, got {crc:08x} of {commit.part}"
            )
        if rows != commit.rows:
            return f"expected {commit.rows} rows, got {rows} in {commit.part}"
        names = (b"asyncfetch.table", b"asyncfetch.base_url", b"asyncfetch.schema_id")
        told = (metadata.get(name, b"").decode() for name in names)
        self._origins[commit.name] = (*told, columns)
        return None

    def _compare_origins(self) -> None:
        """Parts say what they are of; the odd one out is not of this dataset."""
        record = self._record
        if record is None or not self._origins:
            return
        expected = f"{record.service}/{record.table}", record.base_url
        if all(origin[:2] != expected for origin in self._origins.values()):
            text = f"expected what the parts are of, got {' of '.join(expected)}"
            self._tell("plan-record", PLAN_FILE, text)
            return
        widest = max((origin[3] for origin in self._origins.values()), key=len)
        of_id: dict[str, Any] = {}
        for name, (table, base_url, schema, columns) in self._origins.items():
            commit = self._trusted[name].commit if name in self._trusted else None
            if commit is None:
                continue
            if (table, base_url) != expected:
                text = (
                    f"expected a part of {' of '.join(expected)}, got {commit.part} of "
                    f"{table} of {base_url}"
                )
                self._distrust("part", commit, text)
            elif (
                columns != widest[: len(columns)]
                or of_id.setdefault(schema, columns) != columns
            ):
                text = f"expected the columns of the other parts in {commit.part}, got "
                names = ", ".join(f"{one} {kind}" for one, kind in columns)
                self._distrust("part", commit, text + names)
        if record.schema_id not in {origin[2] for origin in self._origins.values()}:
            self._note(
                "schema",
                PLAN_FILE,
                f"names columns {record.schema_id} that no part has so far",
            )

    def _spread_distrust(self) -> None:
        while True:
            listed = np.concatenate(
                [NO_ORDINALS, *(one.follow_ups for one in self._trusted.values())]
            )
            counts = self._is_root | np.isin(self._ordinals, listed)
            ordinals, keys = self._ordinals[counts], self._keys[counts]
            strangers = [
                (one.commit, place)
                for one in self._trusted.values()
                if (place := _unplanned(one, ordinals, keys)) is not None
            ]
            for commit, place in strangers:
                text = "expected items of the plan, got others, or found by lost ones"
                key = self._key_at(commit, place)
                self._distrust("items-unplanned", commit, text, key)
            if not strangers:
                return

    def _key_at(self, commit: Commit, place: int) -> str:
        with opened(self._store, f"{ITEMS}/{commit.name}") as file:
            key: str = file.read(columns=["key"]).column(0)[place].as_py()
        return key

    def _find_what_is_twice_there(self) -> None:
        seen, taken = KeySet(), KeySet()
        row_key = None if self._record is None else self._record.row_key
        for audited in list(self._trusted.values()):
            commit = audited.commit
            fresh = seen.add(audited.keys[audited.got])
            if not fresh.all():
                place = int(np.flatnonzero(audited.got)[np.argmin(fresh)])
                text = "expected each item once, got one that another commit holds"
                self._distrust("key-twice", commit, text, self._key_at(commit, place))
            elif row_key is not None and commit.part is not None:
                for value in self._taken_row_keys(commit.part, row_key, taken):
                    text = f"expected each {row_key} once, got {value} in two rows"
                    self._distrust("row-key-twice", commit, text)
        self._spread_distrust()

    def _taken_row_keys(self, part: str, row_key: str, taken: KeySet) -> Iterator[Any]:
        """The first row key of a part that another row has, if there is one."""
        self._beat()
        with opened(self._store, part) as file:
            for batch in file.iter_batches(columns=[row_key]):
                values = batch.column(0).drop_null()
                fresh = taken.add(hashes(values))
                if not fresh.all():
                    yield values[int(np.argmin(fresh))].as_py()
                    return

    # --- what else lies there

    def _find_strays(self) -> None:
        claimed = {commit.part for commit in self._claims} | self._left_over
        for name in self._store.entries():
            if name[0] in "._" or name in claimed or name in self.untrusted:
                continue
            self._tell("stray", name, "expected parts, got what no commit knows of")
            if name in self._parts:  # readers take its rows for ours
                self.untrusted.append(name)
        for trouble in () if self.files is None else self.files.strays():
            self._tell(*trouble)
        known = {
            RECORDS: KNOWN,
            PLAN: set(plan_names(self._store)),
            ITEMS: set(items_names(self._store)),
            RUNS: self._reports,
        }
        for folder, names in known.items():
            for name in self._store.entries(folder):
                is_known = name in names and not name.endswith(".parquet")
                if name[0] != "." and not is_known:
                    text = "expected records, got a file of others"
                    self._tell("stray", f"{folder}/{name}", text)

    def _compare_reports(self) -> None:
        for name in sorted(self._reports):
            where = f"{RUNS}/{name}"
            expected = committed(self._claims, name.removesuffix(".json"))
            try:
                text = self._store.read_text(where) or ""
                report = json.loads(text)
                got, blocks = report["committed"], int(report.get("plan_blocks", 0))
                if self._sealed and not is_as_sealed(text):
                    got = "a text that was edited"
            except (ValueError, KeyError, TypeError, AttributeError):
                got, blocks = None, 0
            if got != expected:
                self.wrong_reports.append(where)
                self._tell("report", where, f"expected {expected}, got {got}")
            elif blocks > self._blocks:
                self.wrong_reports.append(where)
                text = f"expected {blocks} blocks, as {name} says, got {self._blocks}"
                self._tell("plan", PLAN, text)
        names = {
            replaced.name
            for one in self._claims
            for replaced in (one.as_replaced, *one.replaces)
        }
        for run in sorted({run_of(name) for name in names}):
            if f"{run}.json" not in self._reports:
                text = "is not there: the run was killed, or its report taken away"
                self._note("no-report", f"{RUNS}/{run}.json", text)


def _items_of(part: str) -> str:
    return f"{part.removesuffix('.parquet')}.items"


def _unplanned(items: _Audited, ordinals: Longs, keys: Longs) -> int | None:
    """Place of the first item that has none of these *ordinals* and *keys*."""
    if len(ordinals):
        place = np.searchsorted(ordinals, items.ordinals)
        place = np.minimum(place, len(ordinals) - 1)
        planned = (ordinals[place] == items.ordinals) & (keys[place] == items.keys)
    else:
        planned = np.zeros(len(items.ordinals), dtype=np.bool_)
    if not planned.all():
        return int(np.argmin(planned))
    if not np.isin(items.follow_ups, ordinals).all():
        return 0
    return None

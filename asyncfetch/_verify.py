"""Whether a dataset agrees with itself: every file is read and compared."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from asyncfetch._ledger import (
    ITEMS,
    NO_ORDINALS,
    PLAN,
    RUNS,
    Commit,
    Flags,
    KeySet,
    Longs,
    committed,
    destination,
    hashes,
    is_part,
    items_names,
    no_dataset,
    opened,
    plan_names,
    stored_plan,
    unwritable,
)
from asyncfetch._model import (
    Outcome,
)
from asyncfetch._store import RECORDS, LocalStore, Lock, Staging
from asyncfetch._verify_files import FilesAudit
from asyncfetch.errors import DatasetError


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

    Every page of every file is read and its checksum compared, and every stored file.

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
    store = LocalStore(destination(dest))
    plan = stored_plan(store)
    if plan is None:
        raise no_dataset(store.root)
    run = secrets.token_hex(8)
    staging = Staging(store, run)
    lock = Lock(
        store.path(f"{RECORDS}/lock"), run, clock=time.monotonic, sleep=time.sleep
    )
    try:
        lock.acquire()
    except OSError as error:
        if repair:  # otherwise it may be an archive on a read-only disk
            raise unwritable(store.root, error) from error
    try:
        if repair:
            staging.announce()
        files = None if plan.files is None else FilesAudit(store, plan)
        audit = _Audit(store, files)
        if repair:
            if files is not None:
                files.repair(staging, audit.untrusted_items)
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

    commit: Commit
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
        with opened(path, verify=True) as file:
            table = file.read()  # no more than PART_ITEMS rows
            commit = Commit.of(path.name, file.metadata)
            outcomes = [Outcome(one) for one in table.column("outcome").to_pylist()]
        return cls(
            commit,
            ordinals=table.column("ordinal").to_numpy(),
            keys=hashes(table.column("key").to_pylist()),
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


class _Audit:
    """What is found when everything is read and compared.

    Trust is taken away by whole commits. The plan rows of follow-ups hang on the commit
    that lists them, and the items of these on those plan rows; so distrust spreads
    until what is left agrees with itself.
    """

    def __init__(self, store: LocalStore, files: FilesAudit | None = None) -> None:
        self._store = store
        self._files = files
        self._parts = {n: size for n, size in store.names().items() if is_part(n)}
        self._trusted: dict[str, _Audited] = {}
        self._claims: list[Commit] = []
        self.problems: list[Problem] = []
        self.untrusted: list[str] = []
        """Files to remove: a part, then its items file, and the plan from its end."""
        self.wrong_reports: list[str] = []
        lost_blocks = self._read_plan()
        for name in items_names(store):
            self._read_commit(name)
        self._spread_distrust()
        self._find_keys_that_are_twice_there()
        self._find_strays()
        self._compare_reports()
        self.untrusted += lost_blocks

    @property
    def untrusted_items(self) -> list[str]:
        """Names of the items files to remove."""
        start = f"{ITEMS}/"
        return [n.removeprefix(start) for n in self.untrusted if n.startswith(start)]

    def _tell(self, code: str, where: str, text: str) -> None:
        self.problems.append(Problem(code, where, text))

    def _distrust(self, code: str, commit: Commit, text: str) -> None:
        """Commits go as a whole: the part first, for without it the rest is void."""
        self._trusted.pop(commit.name, None)
        where = f"{ITEMS}/{commit.name}"
        self._tell(code, where, text)
        self.untrusted += [commit.part, where] if commit.part else [where]

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
                with opened(self._store.path(where), verify=True) as file:
                    for batch in file.iter_batches():
                        ordinals.append(batch.column("ordinal").to_numpy())
                        parents = batch.column("parent").is_null()
                        is_root.append(parents.to_numpy(zero_copy_only=False))
                        keys.append(hashes(batch.column("key")))
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
            self._distrust("items", Commit(name, 0, held, 0, 0), str(error))
            return
        commit = audited.commit
        self._claims.append(commit)
        self._trusted[name] = audited
        files = [] if self._files is None else list(self._files.troubles(name))
        for one in files:
            self._tell(*one)
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
        elif files:
            text = f"expected all its stored files, got {len(files)} that are not whole"
            self._distrust("file", commit, text)

    def _part_trouble(self, commit: Commit) -> str | None:
        assert commit.part is not None
        size = self._parts[commit.part]
        if size != commit.size:
            return f"expected {commit.size} bytes, got {size} in {commit.part}"
        try:
            with opened(self._store.path(commit.part), verify=True) as file:
                rows = sum(batch.num_rows for batch in file.iter_batches())
        except DatasetError as error:
            return str(error)
        if rows != commit.rows:
            return f"expected {commit.rows} rows, got {rows} in {commit.part}"
        return None

    def _spread_distrust(self) -> None:
        while True:
            listed = np.concatenate(
                [NO_ORDINALS, *(one.follow_ups for one in self._trusted.values())]
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
        seen = KeySet()
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
        for trouble in () if self._files is None else self._files.strays():
            self._tell(*trouble)
        records = self._store.path(RECORDS)
        for path in sorted(records.rglob("*.parquet")):
            if records / "tmp" not in path.parents:
                where = path.relative_to(self._store.root).as_posix()
                self._tell("stray", where, "expected no rows in here, got a part")

    def _compare_reports(self) -> None:
        for name in self._store.names(RUNS):
            where = f"{RUNS}/{name}"
            expected = committed(self._claims, name.removesuffix(".json"))
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

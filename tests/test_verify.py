"""Damage of every kind is named, repaired, and costs only what it has hit."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asyncfetch._cli import run as cli
from asyncfetch._compact import compact
from asyncfetch._dataset import Writer, open_dataset
from asyncfetch._ledger import seal
from asyncfetch._model import Outcome
from asyncfetch._verify import Problem, verify

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
    result_of,
)
from .test_crash import die_at, posix

PARENTS = {
    child: parent
    for parent, children in made_up.FOLLOW_UPS.items()
    for child in children
}
RECORDS = "_asyncfetch"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows, three histories."""
    folder = tmp_path_factory.mktemp("datasets")
    found = {name: folder / name for name in ("plain", "killed", "compacted")}
    made_up.download(found["plain"])
    die_at("part-durable:2", found["killed"])
    made_up.download(found["killed"])
    made_up.download(found["compacted"], limit=8)
    compact(found["compacted"])
    made_up.download(found["compacted"])
    for dest in found.values():
        assert verify(dest) == []
        assert all_rows(dest) == expected_rows(KEYS)
    return found


@dataclass
class Patient:
    """A dataset to be damaged, and what the damage may cost."""

    dest: Path
    random: random.Random
    other: Path
    lost: set[str] = field(default_factory=set)
    """Keys of the items that were hit."""

    def one(self, pattern: str) -> Path:
        # Not by name: that begins with digits that are drawn anew for each run.
        found = sorted(self.dest.glob(pattern), key=lambda p: p.read_bytes())
        return self.random.choice(found)

    def keys(self, stem: str) -> set[str]:
        table = pq.read_table(
            self.dest / RECORDS / f"items/{stem}.items", columns=["key"]
        )
        return set(table.column("key").to_pylist())

    def hit(self, path: Path) -> Path:
        """Know that a part, an items file or a plan file is not what it was."""
        if path.suffix == ".plan":
            for later in path.parent.iterdir():
                if later.name >= path.name:
                    keys = set(pq.read_table(later)["key"].to_pylist())
                    # Whoever lists items that no plan has is not to be trusted, either.
                    self.lost |= keys | {PARENTS[key] for key in keys & set(PARENTS)}
        else:
            self.lost |= self.keys(path.stem)
        return path

    def widened(self) -> set[str]:
        """Commits go as a whole, and what was found by lost items goes with them."""
        lost = set(self.lost)
        commits = [
            self.keys(path.stem) for path in self.dest.glob(f"{RECORDS}/items/*")
        ]
        while True:
            more = {key for key in KEYS if PARENTS.get(key) in lost}
            more |= {key for keys in commits if keys & (lost | more) for key in keys}
            if more <= lost:
                return lost
            lost |= more


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def swap(one: Patient) -> None:
    first, second = one.random.sample(sorted(one.dest.glob("*.parquet")), 2)
    one.hit(first), one.hit(second)
    between = first.with_name("_between")
    first.rename(between)
    second.rename(first)
    between.rename(second)


def copy_items(one: Patient) -> None:
    path = one.one(f"{RECORDS}/items/*")
    _, _, number = path.stem.split("-")
    shutil.copy(path, path.with_name(f"part-{'0' * 16}-{number}.items"))


def copy_plan(one: Patient) -> None:
    path = one.one(f"{RECORDS}/plan/*")
    number = len(list(path.parent.iterdir()))
    shutil.copy(path, path.with_name(f"{number:05d}.plan"))


def strange_part(one: Patient) -> None:
    path = next(one.other.glob("*.parquet"))
    shutil.copy(path, one.dest / path.name)


def part_of_another(one: Patient) -> None:
    path = one.hit(one.one("*.parquet"))
    # The same items in the same order make the same part: that is no damage.
    content = path.read_bytes()
    others = [p for p in one.other.glob("*.parquet") if p.read_bytes() != content]
    shutil.copy(others[0], path)


def edit_plan(name: str, value: object) -> Callable[[Patient], None]:
    def edit(one: Patient) -> None:
        path = one.dest / RECORDS / "plan.json"
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, name: value}, indent=2) + "\n")

    return edit


def to_each(
    change: Callable[[Path, random.Random], None], pattern: str, *, costs: bool
) -> Callable[[Patient], None]:
    def inflict(one: Patient) -> None:
        path = one.one(pattern)
        if costs:
            one.hit(path)
        change(path, one.random)

    return inflict


DAMAGES: dict[str, Callable[[Patient], None]] = {
    f"{change.__name__} {what}": to_each(change, pattern, costs=costs)
    for change in (flip, truncate, delete)
    for what, pattern, costs in (
        ("a part", "*.parquet", True),
        ("an items file", f"{RECORDS}/items/*", True),
        ("a plan block", f"{RECORDS}/plan/*", True),
        ("a report", f"{RECORDS}/runs/*", False),
        ("plan.json", f"{RECORDS}/plan.json", False),
    )
}
DAMAGES |= {
    "swap two parts": swap,
    "copy an items file": copy_items,
    "copy a plan block": copy_plan,
    "a part of another dataset is added": strange_part,
    "a part of another dataset is in the place of one": part_of_another,
    "edit the table": edit_plan("table", "others"),
    "edit the base URL": edit_plan("base_url", "https://example.com"),
    "edit the filters": edit_plan("filters", {"name": ["a"]}),
    "edit the limit": edit_plan("limit", 2),
    "edit the row key": edit_plan("row_key", "key"),
    "edit the schema id": edit_plan("schema_id", "0" * 16),
    "edit the type of the limit": edit_plan("limit", "many"),
}


@posix
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_repaired(
    damage: str, seed: int, datasets: dict[str, Path], tmp_path: Path
) -> None:
    history = ["plain", "killed", "compacted"][seed]
    dest = shutil.copytree(datasets[history], tmp_path / "dataset")
    other = datasets["plain" if history == "compacted" else "compacted"]
    patient = Patient(dest, random.Random(f"{damage} {seed}"), other)
    whole = shutil.copytree(dest, tmp_path / "whole")
    DAMAGES[damage](patient)
    patient.dest = whole
    may_ask = patient.widened()
    damaged = made_up.files_in(dest)

    notes: list[Problem] = []
    problems = verify(dest, note=notes.append)

    if damage == "delete a report":
        assert not problems
        assert "no-report" in {one.code for one in notes}
    else:
        assert problems
    assert all("\n" not in one.text and one.where for one in problems)
    lock = f"{RECORDS}/lock"
    assert {**made_up.files_in(dest), lock: b""} == {**damaged, lock: b""}
    assert verify(dest, repair=True) == problems
    # A file of an item that only lost rows speak of stays; a resume finds it there.
    assert {one.code for one in verify(dest)} <= {"stray-file"}
    asked = made_up.download(dest, is_damaged=True)
    assert set(asked) <= may_ask
    assert all_rows(dest) == expected_rows(KEYS)
    assert open_dataset(dest).state().items == {"ok": len(KEYS) - 1, "missing": 1}
    assert verify(dest) == []


def test_what_is_wrong_is_named_with_its_file_and_key(
    datasets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = shutil.copytree(datasets["plain"], tmp_path / "dataset")
    path = next(
        path
        for path in sorted((dest / RECORDS / "items").iterdir())
        if pq.read_metadata(path).num_rows > 1
    )
    table = pq.read_table(path)
    place = table.schema.get_field_index("first_row")
    moved = [None if n is None else n + 1 for n in table.column(place).to_pylist()]
    metadata = pq.read_metadata(path).metadata
    kept = {key: value for key, value in metadata.items() if key.startswith(b"async")}
    table = table.set_column(place, "first_row", pa.array(moved, pa.int64()))
    pq.write_table(
        table.replace_schema_metadata({**kept, b"asyncfetch.seal": b"0" * 8}), path
    )
    seal(path)
    problem, *_ = verify(dest)
    assert problem.code == "rows"
    assert problem.where.endswith(path.name)
    assert problem.key == pq.read_table(path)["key"][0].as_py()
    assert "expected its" in problem.text
    assert "from 0 of part-" in problem.text
    assert "got from 1 of" in problem.text
    assert cli(["verify", str(dest)]) == 1
    assert path.name in capsys.readouterr().out


@posix
@pytest.mark.parametrize(
    "point", ["items-durable:2", "part-staged:2", "follow-linked:2"]
)
def test_what_a_kill_leaves_is_a_note_and_no_problem(
    point: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "dataset"
    die_at(point, dest)
    notes: list[Problem] = []
    assert verify(dest, note=notes.append) == []
    if not point.startswith("follow"):
        assert "part-missing" in {one.code for one in notes}
    assert cli(["verify", str(dest)]) == 0
    captured = capsys.readouterr()
    assert "agree" in captured.out
    assert ("does not count" in captured.err) is not point.startswith("follow")
    before = all_rows(dest)
    assert verify(dest, repair=True) == []
    assert all_rows(dest) == before
    made_up.download(dest)
    assert all_rows(dest) == expected_rows(KEYS)


def test_row_key_is_recorded_and_proved(tmp_path: Path) -> None:
    dest = tmp_path / "dataset"
    writer = Writer.open(dest, RECORD, SCHEMA, row_key="id")
    assert open_dataset(dest).plan.row_key == "id"
    planned = writer.freeze(block(0, 2, last=True))
    writer._row_key = None  # the writer itself would drop the row
    for one in planned:
        rows = batch_of([(7, one.item.key)])
        writer.add(result_of(one, batches=(rows,), follow_up=()))
        writer.seal()
    writer.close()
    (problem,) = verify(dest)
    assert problem.code == "row-key-twice"
    assert "expected each id once, got 7" in problem.text
    verify(dest, repair=True)
    assert [key for key, _ in all_rows(dest)] == [7]


def test_missing_item_that_came_later_is_there_once(tmp_path: Path) -> None:
    dest = tmp_path / "dataset"
    made_up.download(dest)
    writer = Writer.open(dest, None, SCHEMA)
    ((missing,),) = writer.pending(only=range(ROOTS + 4))
    writer.add(result_of(missing, outcome=Outcome.OK, batches=(batch_of([(1, "x")]),)))
    writer.finish({})
    writer.close()
    assert verify(dest) == []


def test_dataset_of_an_earlier_version_is_not_asked_for_checksums(
    tmp_path: Path,
) -> None:
    dest = tmp_path / "dataset"
    made_up.download(dest)
    for path in [*dest.glob(f"{RECORDS}/items/*"), *dest.glob(f"{RECORDS}/plan/*")]:
        metadata = pq.read_metadata(path).metadata
        old = {
            key: value
            for key, value in metadata.items()
            if key in {b"asyncfetch.part", b"asyncfetch.cursor"}
        }
        if b"asyncfetch.part" in old and (part := json.loads(old[b"asyncfetch.part"])):
            del part["crc32"]
            old[b"asyncfetch.part"] = json.dumps(part).encode()
        pq.write_table(pq.read_table(path).replace_schema_metadata(old), path)
    path = dest / RECORDS / "plan.json"
    told = json.loads(path.read_text())
    for name in ("seal", "format", "row_key"):
        del told[name]
    path.write_text(json.dumps(told))
    for path in dest.glob(f"{RECORDS}/runs/*"):
        report = json.loads(path.read_text())
        del report["seal"], report["plan_blocks"]
        path.write_text(json.dumps(report))
    assert verify(dest) == []
    compact(dest)
    assert made_up.download(dest) == []
    assert verify(dest) == []
    assert all_rows(dest) == expected_rows(KEYS)

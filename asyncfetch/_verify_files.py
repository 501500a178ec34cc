"""Whether stored files are what the items say, and nothing else lies among them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asyncfetch._files import OWN, PARTIAL, Line, lstat_inside, read_note
from asyncfetch._ledger import ITEMS, Ledger, PlanRecord, opened
from asyncfetch._names import safe_path
from asyncfetch._store import LocalStore, Staging
from asyncfetch.errors import DatasetError

_COLUMNS = "path bytes sha256 url http_status etag last_modified".split()
_READ = 1 << 20


class FilesAudit:
    """Reads every stored file of a dataset once.

    A commit whose file is damaged or gone is not trusted, like one whose part is. What
    else it stored is noted at a repair, so that a resume finds it and asks for no more
    than was lost.
    """

    def __init__(self, store: LocalStore, record: PlanRecord) -> None:
        assert record.files is not None
        self._store = store
        self._record = record
        self._is_own = record.files == OWN
        self._root = store.path(OWN) if self._is_own else Path(record.files)
        self._claimed: set[int] = set()  # hashes: a million paths would be large
        self._damaged: list[str] = []
        self._strays: list[str] = []

    def troubles(self, items: str) -> Iterator[tuple[str, str, str]]:
        """Code, place and text for each file of an items file that is not as it says.

        Raises
        ------
        DatasetError
            The items file cannot be read.
        """
        for row in self._rows(items).to_pylist():
            path = self._path_of(row["path"])
            if path is None:
                text = f"expected a name below {self._root}, got one that is not safe"
                yield "file", row["path"], text
                continue
            self._claimed.add(hash(path))
            trouble = self._trouble(path, row)
            if trouble is not None:
                yield "file", row["path"], trouble

    def _rows(self, items: str) -> pa.Table:
        with opened(self._store, f"{ITEMS}/{items}") as file:
            rows = file.read(columns=_COLUMNS)
        return rows.filter(pc.is_valid(rows.column("path")))

    def _path_of(self, label: str) -> str | None:
        """The path below the directory of files; None when it leads elsewhere."""
        start = f"{OWN}/" if self._is_own else str(self._root / "_")[:-1]
        path = label.removeprefix(start)
        if not self._is_own:
            path = path.replace(os.sep, "/")
        return path if path != label and safe_path(path) == path else None

    def _trouble(self, path: str, row: dict[str, Any]) -> str | None:
        try:
            info = lstat_inside(self._root, path, is_own=self._is_own)
            if info is None:
                return "expected a stored file, got none"
            if info.st_size == row["bytes"]:
                got = _sha256(self._root / path)
                if got == row["sha256"]:
                    return None
                text = f"expected SHA-256 {row['sha256']}, got {got}"
            else:
                text = f"expected {row['bytes']} bytes, got {info.st_size}"
        except DatasetError as error:  # a link: it is not ours, and stays
            return str(error)
        except OSError as error:
            return f"expected a stored file, got {error.strerror}"
        self._damaged.append(path)
        return text

    def strays(self) -> Iterator[tuple[str, str, str]]:
        """The same for files in the dataset that no item speaks of.

        In a directory of the user's there may be anything.
        """
        if not self._is_own:
            return
        for name in self._store.names(PARTIAL):
            if name.endswith(".files"):  # put there by a run that was killed
                self._claimed.update(
                    hash(line.path) for line in read_note(self._store, name)
                )
        self._strays = [one for one in _walk(self._root) if self._is_stray(one)]
        for path in self._strays:
            text = "expected stored files, got what no item speaks of"
            yield "stray-file", f"{OWN}/{path}", text

    def _is_stray(self, path: str) -> bool:
        return hash(path) not in self._claimed

    def repair(self, staging: Staging, untrusted: Iterable[str]) -> None:
        """Remove damaged files; note the others of commits that are to be removed."""
        lines = []
        for items in untrusted:
            try:
                rows = self._rows(items).to_pylist()
            except DatasetError:
                continue
            for row in rows:
                path = self._path_of(row["path"])
                if path is not None and row["sha256"] is not None:
                    lines.append(Line(**{**row, "path": path}).to_json() + "\n")
        if lines:
            staging.path("note").write_text("".join(lines), encoding="utf-8")
            staging.publish("note", f"{PARTIAL}/{staging.run}-repair.files", "note")
        for path in self._damaged:
            staging.take_away(self._root / path)

    def clear(self, staging: Staging) -> None:
        """Remove stray files where an item of the repaired plan is to lie."""
        if not self._strays:
            return
        planned = {hash(path) for path in self._planned()}
        for path in self._strays:
            if hash(path) in planned:
                staging.take_away(self._root / path)

    def _planned(self) -> Iterator[str]:
        try:
            yield from Ledger(self._store, None).paths()
        except DatasetError:  # the plan is damaged, too: told by others
            return


def _walk(root: Path) -> Iterator[str]:
    """Paths of all that is no folder below *root*; links are not followed."""
    if root.is_symlink():
        yield "."
        return
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (here / name).relative_to(root).as_posix()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ):
            digest.update(piece)
    return digest.hexdigest()

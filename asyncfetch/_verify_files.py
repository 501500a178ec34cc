"""Whether stored files are what the items say, and nothing else lies among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asyncfetch._depot import OWN, Lying, depot_of
from asyncfetch._files import PARTIAL, Line, read_note
from asyncfetch._ledger import ITEMS, Ledger, PlanRecord, opened
from asyncfetch._store import LocalStore, Staging
from asyncfetch.errors import DatasetError

_COLUMNS = "path bytes sha256 url http_status etag last_modified".split()

_BEAT = 1000  # after so many names, each page of which may take a while


class FilesAudit:
    """Reads every stored file of a dataset once.

    A commit whose file is damaged or gone is not trusted, like one whose part is. What
    else it stored is noted at a repair, so that a resume finds it and asks for no more
    than was lost.
    """

    def __init__(
        self,
        store: LocalStore,
        record: PlanRecord,
        staging: Staging,
        beat: Callable[[], None],
    ) -> None:
        assert record.files is not None
        self._store = store
        self._staging = staging
        self._depot = depot_of(store, staging, record.files, beat)
        self._claimed: set[int] = set()  # hashes: a million paths would be large
        self._beat = beat
        self._damaged: list[tuple[str, Lying]] = []
        self._strays: list[str] = []

    def troubles(self, items: str) -> Iterator[tuple[str, str, str]]:
        """Code, place and text for each file of an items file that is not as it says.

        Raises
        ------
        DatasetError
            The items file cannot be read, or the place of the files not be reached.
        """
        rows = self._rows(items).to_pylist()
        for row, trouble in zip(
            rows, self._depot.each(self._trouble, rows), strict=True
        ):
            if trouble is not None:
                yield "file", row["path"], trouble

    def _rows(self, items: str) -> pa.Table:
        with opened(self._store, f"{ITEMS}/{items}") as file:
            rows = file.read(columns=_COLUMNS)
        return rows.filter(pc.is_valid(rows.column("path")))

    def _trouble(self, row: dict[str, Any]) -> str | None:
        depot = self._depot
        path = depot.path_of(row["path"])
        if path is None:
            where = depot.at("")
            return f"expected a name below {where}, got one that is not safe"
        self._claimed.add(hash(path))
        try:
            found = depot.look(path)
            if found is None:
                return "expected a stored file, got none"
            if found.size == row["bytes"]:
                got = depot.sha256(path)
                if got == row["sha256"]:
                    return None
                text = f"expected SHA-256 {row['sha256']}, got {got}"
            else:
                text = f"expected {row['bytes']} bytes, got {found.size}"
        except DatasetError as error:  # a link: it is not ours, and stays
            if not getattr(error, "is_of_item", False):
                raise
            return str(error)
        except OSError as error:
            return f"expected a stored file, got {error.strerror}"
        self._damaged.append((path, found))
        return text

    def strays(self) -> Iterator[tuple[str, str, str]]:
        """The same for files in the dataset that no item speaks of.

        In a directory of the user's there may be anything.
        """
        if not self._depot.is_own:
            return
        for name in self._store.names(PARTIAL):
            if name.endswith(".files"):  # put there by a run that was killed
                self._claimed.update(
                    hash(line.path) for line in read_note(self._store, name)
                )
        for number, path in enumerate(self._depot.paths()):
            if hash(path) not in self._claimed:
                self._strays.append(path)
            if number % _BEAT == 0:
                self._beat()
        for path in self._strays:
            text = "expected stored files, got what no item speaks of"
            yield "stray-file", f"{OWN}/{path}", text

    def repair(self, untrusted: Iterable[str]) -> None:
        """Remove damaged files; note the others of commits that are to be removed."""
        lines = []
        for items in untrusted:
            try:
                rows = self._rows(items).to_pylist()
            except DatasetError:
                continue
            for row in rows:
                path = self._depot.path_of(row["path"])
                if path is not None and row["sha256"] is not None:
                    lines.append(Line(**{**row, "path": path}).to_json() + "\n")
        if lines:
            staging = self._staging
            staging.path("note").write_text("".join(lines), encoding="utf-8")
            staging.publish("note", f"{PARTIAL}/{staging.run}-repair.files", "note")
        for path, seen in self._damaged:
            self._depot.remove(path, seen)

    def clear(self) -> None:
        """Remove stray files where an item of the repaired plan is to lie."""
        if not self._strays:
            return
        planned = {hash(path) for path in self._planned()}
        for path in self._strays:
            if hash(path) in planned:
                self._depot.remove(path)

    def _planned(self) -> Iterator[str]:
        try:
            yield from Ledger(self._store, None).paths()
        except DatasetError:  # the plan is damaged, too: told by others
            return

"""Stored files: how they get into place, and what a kill leaves of that.

A file goes into place before the items row that speaks of it. In between a kill may
come, so each batch of files is preceded by a note in ``partial/`` which says what will
lie where: the next run finds the files, compares, and need not ask again. The note goes
when the items are committed.

Where they lie, and how they come there, is in :mod:`asyncfetch._depot`. What a note of
this dataset says to lie there is believed only when its checksum agrees.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread

from asyncfetch._body import Body, Proof
from asyncfetch._bucket import BucketStore
from asyncfetch._depot import OWN, Lying, depot_of
from asyncfetch._model import ItemResult, Kept, PlannedItem, Response
from asyncfetch._names import safe_path
from asyncfetch._partial import Partial, note_of, on_disk
from asyncfetch._store import RECORDS, LocalStore, Staging, crash_point
from asyncfetch.errors import ConfigurationError, DatasetError

PARTIAL = f"{RECORDS}/partial"
# One call to a thread reads for so many seconds, so a cancellation is soon seen.
_STEP = 0.05


def directory_of(files: str | Path, store: LocalStore) -> str:
    """How a plan names the directory *files* for the dataset in *store*.

    Raises
    ------
    ConfigurationError
        It is none, or it lies inside the dataset.
    """
    text = str(files)
    if text == OWN:
        return OWN
    if not text or "://" in text or "\0" in text:
        raise ConfigurationError(
            f"expected a directory for files, or {OWN} for one in the dataset, got "
            f"{text!r}"
        )
    where = Path(files).absolute().resolve()
    inside = store.root.absolute().resolve()
    if where == inside / OWN:
        return OWN
    if where == inside or inside in where.parents:
        raise ConfigurationError(
            f"expected a directory for files outside the dataset, got {where}; say "
            f"{OWN} for the one in it"
        )
    if where.exists() and not where.is_dir():
        raise ConfigurationError(f"expected a directory for files, got {where}")
    return str(where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a note: a file that lies in its place, or will in a moment."""

    path: str
    bytes: int
    sha256: str
    url: str
    http_status: int | None
    etag: str | None
    last_modified: str | None

    def heads(self) -> dict[str, str | None]:
        """The headers of the answer that are remembered."""
        return {"ETag": self.etag, "Last-Modified": self.last_modified}

    def to_json(self) -> str:
        """Text for a note."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file that lies where an item's is to lie."""

    response: Response
    """As if it had just come."""
    fetched_at: datetime
    is_proved: bool
    """Whether it is known to be the item's; if not, its content must be compared."""
    copy: Path | None = None
    """Where its bytes are meanwhile, if it does not lie on this machine."""


class Files:
    """The stored files of a dataset, for its one writer.

    Methods block unless they are coroutines.

    Parameters
    ----------
    where
        The directory, as the plan names it.
    beat
        Shows others that the run lives.
    """

    def __init__(
        self,
        store: LocalStore,
        staging: Staging,
        where: str,
        *,
        beat: Callable[[], object],
    ) -> None:
        self._store = store
        self._staging = staging
        self._depot = depot_of(store, staging, where, beat)
        self.label = self._depot.label
        self.is_remote = isinstance(store, BucketStore)
        """Whether the disk on which files wait is not the one they are to lie on."""
        self._batches = 0
        self._notes: list[str] = []
        self._old_notes: dict[str, set[str]] = {}
        # By path: an item that was found in a response may have got another ordinal.
        self._lines: dict[str, Line] = {}
        # Paths of planned items at which nothing lay; each until it is asked for.
        self._vacant: set[str] = set()
        self._begun: frozenset[str] = frozenset()

    # --- before an item is asked for --------------------------------------------------

    def partial(self, planned: PlannedItem, url: str) -> Partial:
        """Where the bytes of an item go."""
        assert planned.item.request.file is not None
        home = self._home(planned.item.key)
        return Partial(
            home,
            self._staging,
            url,
            planned.item.request.file,
            has_begun=note_of(home).name in self._begun,
            most=self._depot.most,
        )

    def _home(self, key: str) -> Path:
        return self._store.path(f"{PARTIAL}/{_hash(key)}")

    def look(self, planned: Iterable[PlannedItem]) -> None:
        """Learn at which places of items that will be asked for nothing lies.

        One call to a thread for many of them: one for each takes as long as half of the
        file's own bytes do when it is small.
        """
        paths = [one.item.request.file.path for one in planned if one.item.request.file]
        # Whatever else is the matter is said when the item is asked for.
        safe = (path for path in paths if safe_path(path) == path)
        self._vacant.update(self._depot.vacant(safe))

    async def find(self, planned: PlannedItem) -> Found | None:
        """The file of an item if it lies in its place.

        Raises
        ------
        DatasetError
            Something else lies there. Only this item is concerned.
        """
        wish = planned.item.request.file
        assert wish is not None
        if wish.path in self._vacant:
            self._vacant.remove(wish.path)
            return None
        found = await anyio.to_thread.run_sync(self._look, wish.path)
        if found is None:
            return None
        here = self._depot.here(wish.path)
        copy = None if here is not None else self._home(planned.item.key)
        try:
            sha256, other = await _taken(
                self._depot.pieces(wish.path), wish.checksum, copy
            )
        except FileNotFoundError:  # somebody took it away meanwhile
            return None
        line = self._lines.get(wish.path)
        if line is not None and (line.bytes, line.sha256) != (found.size, sha256):
            line = None
        heads = {} if line is None else line.heads()
        is_alike = wish.checksum is not None and wish.checksum.lower() == other
        body = Body(
            data=copy or here or b"",
            size=found.size,
            sha256=sha256,
            proof=Proof.LENGTH,
        )
        return Found(
            response=Response(
                status=0 if line is None else line.http_status or 0,
                headers={name: one for name, one in heads.items() if one is not None},
                url="" if line is None else line.url,
                body=body,
            ),
            fetched_at=found.since,
            is_proved=line is not None
            or (is_alike and wish.size in {None, found.size}),
            copy=copy,
        )

    async def release(self, found: Found) -> None:
        """Remove the copy of a file that lies elsewhere: it has been read."""
        if found.copy is not None:
            await anyio.to_thread.run_sync(self._staging.take_away, found.copy)

    def _look(self, path: str) -> Lying | None:
        if safe_path(path) != path:
            raise DatasetError(
                f"expected the safe name of a file in the plan, got {path!r}: run "
                "verify with --repair",
                is_of_item=True,
            )
        return self._depot.look(path)

    def occupied(self, path: str) -> DatasetError:
        """What to say of an item whose place another file has."""
        is_own = self._depot.is_own
        hint = "run verify with --repair, or move it" if is_own else "move it"
        return DatasetError(
            f"expected no file at {self._depot.at(path)}, or the one that came; got "
            f"another: {hint} away, then retry",
            is_of_item=True,
        )

    # --- before a commit --------------------------------------------------------------

    def publish(self, results: Iterable[ItemResult]) -> None:
        """Put files in their places, durably; a note of them is durable before.

        Raises
        ------
        DatasetError
            Another run took over, or something came to lie in the way meanwhile.
        """
        coming: list[Kept] = []
        lines: list[str] = []
        for result in results:
            kept = result.kept
            assert kept is not None
            if kept.data is None:  # it lay there
                self._let_go(self._home(result.key))
            else:
                coming.append(kept)
                lines.append(_line_of(result, kept).to_json())
        if not coming:
            return
        ready = self._depot.prepare(
            (one.path, one.data) for one in coming if one.data is not None
        )
        crash_point("file-staged")
        name = f"{PARTIAL}/{self._staging.run}-{self._batches:05d}.files"
        with self._staging.fenced():
            text = "".join(f"{line}\n" for line in lines)
            self._staging.path("note").write_text(text, encoding="utf-8")
        self._staging.publish("note", name, "note")
        self._notes.append(name)
        self._batches += 1
        self._depot.put(ready)
        for one in coming:
            if isinstance(one.data, Path):
                self._let_go(one.data)

    def _let_go(self, home: Path) -> None:
        """Remove what is left of a file on its way."""
        self._staging.take_away(note_of(home))
        self._staging.take_away(home)

    def committed(self) -> None:
        """Forget the notes of what has been committed."""
        for name in self._notes:
            self._staging.remove(name)
        self._notes = []

    # --- what earlier runs left -------------------------------------------------------

    def recall(self, stored: Callable[[list[str]], set[str]]) -> None:
        """Read the notes that killed runs left.

        *stored* says of which labels there are committed items.
        """
        names = self._store.names(PARTIAL)
        self._begun = frozenset(names)
        for name in names:
            if name.endswith(".files"):
                lines = {line.path: line for line in read_note(self._store, name)}
                self._lines.update(lines)
                self._old_notes[name] = set(map(self.label, lines))
        self.forget(stored)

    def forget(self, stored: Callable[[list[str]], set[str]]) -> None:
        """Remove old notes whose files all belong to committed items by now."""
        if not self._old_notes:
            return
        done = stored(sorted(set().union(*self._old_notes.values())))
        for name, labels in list(self._old_notes.items()):
            if labels <= done:
                self._staging.remove(f"{PARTIAL}/{name}")
                del self._old_notes[name]

    def tidy(self) -> None:
        """Remove what is left of files on their way: no item waits for one."""
        for name in self._store.names(PARTIAL):
            self._staging.remove(f"{PARTIAL}/{name}")


def read_note(store: LocalStore, name: str) -> Iterator[Line]:
    """Lines of a note, as far as they can be read and lead to a safe place."""
    for text in (store.read_text(f"{PARTIAL}/{name}") or "").splitlines():
        try:
            line = Line(**json.loads(text))
        except (ValueError, TypeError):
            continue
        if safe_path(line.path) == line.path:
            yield line


def _line_of(result: ItemResult, kept: Kept) -> Line:
    assert result.sha256 is not None
    return Line(
        path=kept.path,
        bytes=result.bytes,
        sha256=result.sha256,
        url=result.url,
        http_status=result.http_status,
        etag=result.etag,
        last_modified=result.last_modified,
    )


async def _taken(
    pieces: Iterator[bytes], checksum: str | None, copy: Path | None
) -> tuple[str, str]:
    """SHA-256 of what lies somewhere, and the checksum that is as long as *checksum*.

    It is written to *copy* on the way.
    """
    names = {32: "md5", 40: "sha1"}
    name = names.get(len(checksum or ""), "sha256")
    whole = hashlib.sha256()
    other = hashlib.new(name, usedforsecurity=False) if name != "sha256" else whole

    def take(file: IO[bytes] | None) -> bool:
        """Some of it, so that a cancellation is soon seen; whether there is more."""
        until = time.monotonic() + _STEP
        for piece in pieces:
            whole.update(piece)
            if other is not whole:
                other.update(piece)
            if file is not None and copy is not None:
                with on_disk(copy):
                    file.write(piece)
            if time.monotonic() >= until:
                return True
        return False

    if copy is None:
        while await anyio.to_thread.run_sync(take, None):
            pass
    else:
        async with await anyio.open_file(copy, "wb") as file:
            while await anyio.to_thread.run_sync(take, file.wrapped):
                pass
            with on_disk(copy):
                await file.flush()
    return whole.hexdigest(), other.hexdigest()


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]

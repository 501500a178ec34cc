"""Stored files: how they get into place, and what a kill leaves of that.

A file goes into place before the items row that speaks of it. In between a kill may
come, so each batch of files is preceded by a note in ``partial/`` which says what will
lie where: the next run finds the files, compares, and need not ask again. The note goes
when the items are committed.

Every file gets its name by way of ``tmp/<run>/``, as all of a dataset does. Only in a
directory of the user's on another disk that is not possible; there a hidden sibling is
written first, and the last step is taken after a look at the fence.

Nothing that lies in the way is followed, replaced or removed, and what a note
of this dataset says to lie there is believed only when its checksum agrees.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio.to_thread

from asyncfetch._body import Body, Proof
from asyncfetch._model import ItemResult, Kept, PlannedItem, Response
from asyncfetch._names import safe_path
from asyncfetch._partial import Partial, note_of
from asyncfetch._store import (
    RECORDS,
    LocalStore,
    Staging,
    crash_point,
    link_or_rename,
    sync_all,
    sync_file,
    sync_folder,
)
from asyncfetch.errors import ConfigurationError, DatasetError

OWN = "_files"
"""The directory of files inside a dataset, and the word for it."""

PARTIAL = f"{RECORDS}/partial"
# One call to a thread reads so much: some 50 ms, so a cancellation is soon seen.
_STEP = 64 << 20
_READ = 1 << 20


def directory_of(files: str | Path, root: Path) -> str:
    """How a plan names the directory *files* for the dataset at *root*.

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
    inside = root.absolute().resolve()
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
        self._beat = beat
        self._store = store
        self._staging = staging
        self._is_own = where == OWN
        self.root = store.path(OWN) if self._is_own else Path(where)
        self._batches = 0
        self._notes: list[str] = []
        self._old_notes: dict[str, set[str]] = {}
        # By path: an item that was found in a response may have got another ordinal.
        self._lines: dict[str, Line] = {}
        # Paths of planned items at which nothing lay; each until it is asked for.
        self._vacant: set[str] = set()
        self._begun: frozenset[str] = frozenset()

    def label(self, path: str) -> str:
        """What the items say of a file: from the dataset on, or absolute."""
        return f"{OWN}/{path}" if self._is_own else str(self.root / path)

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
        )

    def _home(self, key: str) -> Path:
        return self._store.path(f"{PARTIAL}/{_hash(key)}")

    def look(self, planned: Iterable[PlannedItem]) -> None:
        """Learn at which places of items that will be asked for nothing lies.

        One call to a thread for many of them: one for each takes as long as half of the
        file's own bytes do when it is small.
        """
        for one in planned:
            wish = one.item.request.file
            if wish is not None:
                # Whatever else is the matter is said when the item is asked for.
                with suppress(DatasetError):
                    if self._look(wish.path) is None:
                        self._vacant.add(wish.path)

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
        info = await anyio.to_thread.run_sync(self._look, wish.path)
        if info is None:
            return None
        target = self.root / wish.path
        sha256, other = await _digests(target, wish.checksum)
        line = self._lines.get(wish.path)
        if line is not None and (line.bytes, line.sha256) != (info.st_size, sha256):
            line = None
        heads = {} if line is None else line.heads()
        return Found(
            response=Response(
                status=0 if line is None else line.http_status or 0,
                headers={name: one for name, one in heads.items() if one is not None},
                url="" if line is None else line.url,
                body=Body(
                    data=target, size=info.st_size, sha256=sha256, proof=Proof.LENGTH
                ),
            ),
            fetched_at=datetime.fromtimestamp(info.st_mtime, UTC),
            is_proved=line is not None
            or (
                wish.checksum is not None
                and wish.checksum.lower() == other
                and wish.size in {None, info.st_size}
            ),
        )

    def _look(self, path: str) -> os.stat_result | None:
        """What lies at *path*, which no link leads to; None when nothing does."""
        if safe_path(path) != path:
            raise DatasetError(
                f"expected the safe name of a file in the plan, got {path!r}: run "
                "verify with --repair",
                is_of_item=True,
            )
        try:
            return lstat_inside(self.root, path, is_own=self._is_own)
        except DatasetError:
            raise
        except OSError as error:
            raise DatasetError(
                f"expected a place for a file, got {error.strerror} at "
                f"{self.root / path}",
                is_of_item=True,
            ) from error

    def occupied(self, path: str) -> DatasetError:
        """What to say of an item whose place another file has."""
        hint = "run verify with --repair, or move it" if self._is_own else "move it"
        return DatasetError(
            f"expected no file at {self.root / path}, or the one that came; got "
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
        staged: list[tuple[Path, Kept]] = []
        written: list[Path] = []
        lines: list[str] = []
        with self._staging.fenced():
            for result in results:
                kept = result.kept
                assert kept is not None
                if kept.data == self.root / kept.path:  # it lay there
                    home = self._home(result.key)
                    self._staging.take_away(note_of(home))
                    self._staging.take_away(home)
                    continue
                source = self._staging.path(f"file-{self._batches}-{len(staged)}")
                if isinstance(kept.data, Path):  # its bytes are on the disk already
                    self._name_again(kept.data, source)
                else:
                    source.write_bytes(kept.data)
                    written.append(source)
                staged.append((source, kept))
                lines.append(_line_of(result, kept).to_json())
            if not staged:
                return
            sync_all(sync_file, written)
            crash_point("file-staged")
            name = f"{PARTIAL}/{self._staging.run}-{self._batches:05d}.files"
            text = "".join(f"{line}\n" for line in lines)
            self._staging.path("note").write_text(text, encoding="utf-8")
        self._staging.publish("note", name, "note")
        self._notes.append(name)
        self._batches += 1
        folders = _Folders(self.root, is_own=self._is_own)
        for source, kept in staged:
            with self._staging.fenced():
                self._put(source, kept.path, folders)
            crash_point("file-renamed")
        folders.sync()
        crash_point("file-durable")
        for _, kept in staged:
            if isinstance(kept.data, Path):
                self._staging.take_away(kept.data)
                self._staging.take_away(note_of(kept.data))

    @staticmethod
    def _name_again(path: Path, source: Path) -> None:
        """Give a second name: should a kill follow, the first one still leads to it."""
        try:
            os.link(path, source)
        except FileNotFoundError:
            raise
        except OSError:  # no hard links here
            path.rename(source)

    def _put(self, source: Path, path: str, folders: _Folders) -> None:
        target = self.root / path
        try:
            folders.make_for(path)
            try:
                link_or_rename(source, target, "file")
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._carry(source, target)
        except FileExistsError:
            if not self._is_alike(source, target):
                raise DatasetError(
                    f"expected no file at {target}, got one that another program put "
                    "there just now: move it away and go on"
                ) from None
            sync_file(target)
            folders.doubt(path)
            source.unlink()

    def _is_alike(self, source: Path, target: Path) -> bool:
        """Whether a file that came to lie in the way is the one that was to lie there.

        Two downloads that have files in common may go on at the same time.
        """
        if target.is_symlink() or target.stat().st_size != source.stat().st_size:
            return False
        with source.open("rb") as one, target.open("rb") as other:
            while piece := one.read(_READ):
                if other.read(_READ) != piece:
                    return False
                self._beat()  # others must see that this run lives
        return True

    def _carry(self, source: Path, target: Path) -> None:
        """Move a file to another disk: copied under a hidden name, then renamed."""
        sibling = target.with_name(f".{self._staging.run}-{_hash(target.name)}")
        try:
            with source.open("rb") as read, sibling.open("wb") as write:
                while piece := read.read(_STEP):
                    write.write(piece)
                    self._beat()  # others must see that this run lives
            sync_file(sibling)
            self._staging.check()
            link_or_rename(sibling, target, "file")
        finally:
            sibling.unlink(missing_ok=True)
        source.unlink()

    def committed(self) -> None:
        """Forget the notes of what has been committed."""
        for name in self._notes:
            self._staging.take_away(self._store.path(name))
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
                self._staging.take_away(self._store.path(f"{PARTIAL}/{name}"))
                del self._old_notes[name]

    def tidy(self) -> None:
        """Remove what is left of files on their way: no item waits for one."""
        for name in self._store.names(PARTIAL):
            self._staging.take_away(self._store.path(f"{PARTIAL}/{name}"))


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


class _Folders:
    """Folders on the way to new files, made once and looked at once."""

    def __init__(self, root: Path, *, is_own: bool) -> None:
        self._root = root
        self._is_own = is_own
        self._known: set[str] = set()
        self._changed: set[str] = set()

    def make_for(self, path: str) -> None:
        """Make what is missing on the way to *path*.

        Raises
        ------
        FileExistsError
            Something lies at *path*.
        """
        root, is_own, known = self._root, self._is_own, self._known
        if lstat_inside(root, path, is_own=is_own, known=known) is not None:
            raise FileExistsError(path)
        if not is_own:
            root.mkdir(parents=True, exist_ok=True)
        folder = str(root)
        for name in ("", *path.split("/")[:-1]):
            folder = f"{folder}{os.sep}{name}" if name else folder
            if folder not in known:
                # One that somebody else makes meanwhile is looked at the next time.
                with suppress(FileExistsError):
                    Path(folder).mkdir()
                    known.add(folder)
                    self._changed.add(str(Path(folder).parent))
        self._changed.add(folder)

    def doubt(self, path: str) -> None:
        """Count the names on the way to *path* as new: they are somebody else's."""
        folder = self._root / path
        while folder != self._root:
            folder = folder.parent
            self._changed.add(str(folder))

    def sync(self) -> None:
        """Flush the new names to the disk."""
        sync_all(sync_folder, map(Path, self._changed))


def lstat_inside(
    root: Path, path: str, *, is_own: bool, known: set[str] | None = None
) -> os.stat_result | None:
    """What lies at *path* below *root*, without following any link on the way.

    *known* holds folders that need no look, and gets those that had one.

    Raises
    ------
    DatasetError
        A link, or something that is no folder, lies on the way; or what lies there is
        no file.
    """
    here = str(root)
    names = ["", *path.split("/")] if is_own else path.split("/")
    info = None
    for place, name in enumerate(names):
        here = f"{here}{os.sep}{name}" if name else here
        if known is not None and here in known:
            continue
        try:
            info = os.lstat(here)
        except FileNotFoundError:
            return None
        is_last = place == len(names) - 1
        fits = stat.S_ISREG if is_last else stat.S_ISDIR
        if not fits(info.st_mode):
            kind = "a link" if stat.S_ISLNK(info.st_mode) else "something else"
            raise DatasetError(
                f"expected a {'file' if is_last else 'folder'}, got {kind} at {here}: "
                "move it away, then retry",
                is_of_item=True,
            )
        if known is not None and not is_last:
            known.add(here)
    return info


async def _digests(path: Path, checksum: str | None) -> tuple[str, str]:
    """SHA-256 of a file, and the checksum that is as long as *checksum*."""
    names = {32: "md5", 40: "sha1"}
    name = names.get(len(checksum or ""), "sha256")
    whole = hashlib.sha256()
    other = hashlib.new(name, usedforsecurity=False)
    place = 0

    def read_on() -> int:
        nonlocal place
        start = place
        with path.open("rb") as file:
            file.seek(place)
            while place < start + _STEP and (piece := file.read(_READ)):
                whole.update(piece)
                if name != "sha256":
                    other.update(piece)
                place += len(piece)
        return place - start

    while await anyio.to_thread.run_sync(read_on) == _STEP:
        pass
    if name == "sha256":
        other = whole
    return whole.hexdigest(), other.hexdigest()


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]

"""Where stored files lie: in a directory, or as objects of a dataset's bucket.

A file comes into place whole and once. What lies in the way is not followed, replaced
or removed; when it is what was to lie there, it is taken for that.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias, TypeVar

from asyncfetch._bucket import MAX_OBJECT, BucketStore
from asyncfetch._names import safe_path
from asyncfetch._store import (
    LocalStore,
    Staging,
    crash_point,
    link_or_rename,
    sync_all,
    sync_file,
    sync_folder,
)
from asyncfetch.errors import DatasetError

S = TypeVar("S")
T = TypeVar("T")

OWN = "_files"
"""The directory of files inside a dataset, and the word for it."""

_READ = 1 << 20
# A copy to another disk shows others after so many bytes that it lives.
_STEP = 64 << 20

Content: TypeAlias = bytes | Path
"""The bytes of a file, or the file that holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lying:
    """What lies somewhere."""

    size: int
    since: datetime
    tag: str | None = None
    """By which an object store knows this content."""


class Depot(ABC):
    """The place of a dataset's stored files, by their paths. Everything blocks.

    Parameters
    ----------
    staging
        Of whoever changes something there.
    """

    is_own: bool
    """Whether nothing but the dataset's files is there."""
    most: int | None = None
    """Length of the largest file that it takes."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    @abstractmethod
    def at(self, path: str) -> str:
        """Where a file lies, for people."""

    @property
    @abstractmethod
    def start(self) -> str:
        """What stands before a path in the items: from the dataset on, or absolute."""

    def label(self, path: str) -> str:
        """What the items say of a file."""
        return self.start + path.replace("/", self._between)

    def path_of(self, label: str) -> str | None:
        """The path that a label stands for; None when it leads elsewhere."""
        path = label.removeprefix(self.start)
        if path == label:
            return None
        path = path.replace(self._between, "/")
        return path if safe_path(path) == path else None

    @property
    def _between(self) -> str:
        return "/" if self.is_own else os.sep

    @abstractmethod
    def look(self, path: str) -> Lying | None:
        """What lies at *path*, which no link leads to; None when nothing does.

        Raises
        ------
        DatasetError
            It is no file, or cannot be looked at. Only its item is concerned.
        """

    def vacant(self, paths: Iterable[str]) -> Iterator[str]:
        """Those of *paths* at which nothing lies."""
        looked = list(paths)
        for path, is_vacant in zip(
            looked, self.each(self._is_vacant, looked), strict=True
        ):
            if is_vacant:
                yield path

    def _is_vacant(self, path: str) -> bool:
        try:
            return self.look(path) is None
        except DatasetError as error:  # said when the item is asked for
            if not getattr(error, "is_of_item", False):
                raise
            return False

    def each(self, call: Callable[[S], T], values: Iterable[S]) -> list[T]:
        """What *call* makes of each of *values*, of several at once if that helps."""
        return list(map(call, values))

    def here(self, path: str) -> Path | None:  # noqa: ARG002 - for those that have
        """The file of this machine at *path*; None where it must be copied."""
        return None

    @abstractmethod
    def pieces(self, path: str) -> Iterator[bytes]:
        """The bytes of what lies at *path*."""

    def sha256(self, path: str) -> str:
        """Of what lies at *path*."""
        return _sha256(self.pieces(path))

    def prepare(
        self, files: Iterable[tuple[str, Content]]
    ) -> list[tuple[str, Content]]:
        """Get files ready for :meth:`put`, without a trace of them in their places."""
        return list(files)

    @abstractmethod
    def put(self, files: list[tuple[str, Content]]) -> None:
        """Bring files that were prepared into their places, durably.

        Raises
        ------
        DatasetError
            Another run took over, or something came to lie in the way meanwhile.
        """

    def remove(self, path: str, seen: Lying | None = None) -> None:
        """Take away what lies at *path*; a run that was taken over from does not.

        Parameters
        ----------
        seen
            What it must be still. In a bucket, a process that stops between that look
            and the step itself may take away what came meanwhile.
        """
        if seen is None or self.look(path) == seen:
            self._remove(path)

    @abstractmethod
    def _remove(self, path: str) -> None: ...

    @abstractmethod
    def paths(self) -> Iterator[str]:
        """Of all that lies there."""

    def _in_the_way(self, path: str) -> DatasetError:
        return DatasetError(
            f"expected no file at {self.at(path)}, got one that another program put "
            "there just now: move it away and go on"
        )


def depot_of(
    store: LocalStore, staging: Staging, where: str, beat: Callable[[], object]
) -> Depot:
    """The place of files that a plan calls *where*, of the dataset in *store*.

    Parameters
    ----------
    beat
        Shows others that the run lives.
    """
    if where != OWN:
        return _Directory(Path(where), staging, beat, is_own=False)
    if isinstance(store, BucketStore):
        return _Objects(store, staging)
    return _Directory(store.path(OWN), staging, beat, is_own=True)


def _sha256(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_READ):
            yield piece


# --- in a directory -------------------------------------------------------------------


class _Directory(Depot):
    """Files in the dataset's directory, or in one of the user's on whatever disk.

    Every file gets its name by way of ``tmp/<run>/``, as all of a dataset does. Only on
    another disk that is not possible; there a hidden sibling is written first, and the
    last step is taken after a look at the fence.
    """

    def __init__(
        self,
        root: Path,
        staging: Staging,
        beat: Callable[[], object],
        *,
        is_own: bool,
    ) -> None:
        super().__init__(staging)
        self.is_own = is_own
        self.root = root
        self._beat = beat
        self._prepared = 0

    def at(self, path: str) -> str:
        return str(self.root / path)

    @property
    def start(self) -> str:
        return f"{OWN}/" if self.is_own else str(self.root / "_")[:-1]

    def look(self, path: str) -> Lying | None:
        try:
            info = _lstat_inside(self.root, path, is_own=self.is_own)
        except OSError as error:
            raise DatasetError(
                f"expected a place for a file, got {error.strerror} at {self.at(path)}",
                is_of_item=True,
            ) from error
        if info is None:
            return None
        since = datetime.fromtimestamp(info.st_mtime, UTC)
        return Lying(size=info.st_size, since=since)

    def here(self, path: str) -> Path | None:
        return self.root / path

    def pieces(self, path: str) -> Iterator[bytes]:
        return _pieces(self.root / path)

    def prepare(
        self, files: Iterable[tuple[str, Content]]
    ) -> list[tuple[str, Content]]:
        prepared: list[tuple[str, Content]] = []
        written: list[Path] = []
        with self._staging.fenced():
            for path, content in files:
                source = self._staging.path(f"file-{self._prepared}")
                self._prepared += 1
                if isinstance(content, Path):  # its bytes are on the disk already
                    self._name_again(content, source)
                else:
                    source.write_bytes(content)
                    written.append(source)
                prepared.append((path, source))
            sync_all(sync_file, written)
        return prepared

    @staticmethod
    def _name_again(path: Path, source: Path) -> None:
        """Give a second name: should a kill follow, the first one still leads to it."""
        try:
            os.link(path, source)
        except FileNotFoundError:
            raise
        except OSError:  # no hard links here
            path.rename(source)

    def put(self, files: list[tuple[str, Content]]) -> None:
        folders = _Folders(self.root, is_own=self.is_own)
        for path, source in files:
            assert isinstance(source, Path)
            self._staging.check()
            with self._staging.fenced():
                self._put(source, path, folders)
            crash_point("file-renamed")
        folders.sync()
        crash_point("file-durable")

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
                raise self._in_the_way(path) from None
            sync_file(target)
            folders.doubt(path)
            source.unlink()

    def _is_alike(self, source: Path, target: Path) -> bool:
        """Whether a file that came to lie in the way is the one that was to lie there.

        Two downloads that have files in common may go on at the same time.
        """
        if target.is_symlink() or target.stat().st_size != source.stat().st_size:
            return False
        for one, other in zip_longest(_pieces(source), _pieces(target)):
            if one != other:
                return False
            self._beat()  # others must see that this run lives
        return True

    def _carry(self, source: Path, target: Path) -> None:
        """Move a file to another disk: copied under a hidden name, then renamed."""
        mark = hashlib.sha256(target.name.encode()).hexdigest()[:32]
        sibling = target.with_name(f".{self._staging.run}-{mark}")
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

    def _remove(self, path: str) -> None:
        self._staging.take_away(self.root / path)

    def paths(self) -> Iterator[str]:
        """Of all that is no folder; links are not followed."""
        if self.root.is_symlink():
            yield "."
            return
        for folder, folders, files in os.walk(self.root):
            here = Path(folder)
            links = [name for name in folders if (here / name).is_symlink()]
            for name in sorted([*files, *links]):
                yield (here / name).relative_to(self.root).as_posix()


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
        if _lstat_inside(root, path, is_own=is_own, known=known) is not None:
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


def _lstat_inside(
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


# --- in a bucket ----------------------------------------------------------------------


class _Objects(Depot):
    """Files in the dataset's bucket, each of them put in a single request.

    Nothing ends a run there that was only asleep: what it had under way it still puts,
    and that is what its note said before, at a name that is free.
    """

    is_own = True
    start = f"{OWN}/"
    most = MAX_OBJECT

    def __init__(self, store: BucketStore, staging: Staging) -> None:
        super().__init__(staging)
        self._store = store

    def at(self, path: str) -> str:
        return f"{self._store}/{OWN}/{path}"

    def look(self, path: str) -> Lying | None:
        found = self._store.head(f"{OWN}/{path}")
        if found is None:
            return None
        tag = found["version"] or found["e_tag"]
        return Lying(size=found["size"], since=found["last_modified"], tag=tag)

    def vacant(self, paths: Iterable[str]) -> Iterator[str]:
        return iter(paths) if self._was_empty else super().vacant(paths)

    @cached_property
    def _was_empty(self) -> bool:
        """Whether nothing was there at the first look: each name is an item's alone."""
        return next(self.paths(), None) is None

    def each(self, call: Callable[[S], T], values: Iterable[S]) -> list[T]:
        return self._store.each(call, values)

    def pieces(self, path: str) -> Iterator[bytes]:
        return self._store.pieces(f"{OWN}/{path}")

    def put(self, files: list[tuple[str, Content]]) -> None:
        def put(file: tuple[str, Content]) -> None:
            path, content = file
            self._staging.check()
            try:
                self._store.put_content(f"{OWN}/{path}", content)
            except FileExistsError:
                if not self._is_alike(path, content):
                    raise self._in_the_way(path) from None
            crash_point("file-renamed")

        self.each(put, files)
        crash_point("file-durable")

    def _is_alike(self, path: str, content: Content) -> bool:
        """Whether what is there is what was to be: put twice, or by another run."""
        mine = _pieces(content) if isinstance(content, Path) else [content]
        return _sha256(mine) == self.sha256(path)

    def _remove(self, path: str) -> None:
        self._staging.remove(f"{OWN}/{path}")

    def paths(self) -> Iterator[str]:
        return self._store.below(OWN)

"""Where a dataset lies: a local directory, and how a file becomes durable there.

Two promises carry everything that :mod:`asyncfetch._dataset` builds on them.

*All or nothing.* A file is staged under ``tmp/<run>/``, flushed to the disk, and only
then given its final name, which must be free. Nobody sees half a file, and nothing is
ever replaced but ``plan.json``.

*The fence.* Every file gets its name by way of ``tmp/<run>/``. A run that takes over
renames the directories of all others away, and from then on each step of theirs ends
with "no such file". So even a writer that was only asleep cannot add anything to what
the new run has listed. The lock says who waits for whom; safety comes from the fence.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asyncfetch.errors import DatasetError

RECORDS = "_asyncfetch"
FOLDERS = ("plan", "items", "runs", "partial", "tmp")

# A writer's counter moves every few seconds. One that has not moved for so long belongs
# to a process that is stopped, or on a machine that is gone.
STALE = 60.0
POLL = 0.5  # seconds between two looks at the counter

FLUSHES = 8  # at the same time


def _crash_points() -> Iterator[str]:
    yield from ("open-made", "open-locked", "open-announced")
    yield from ("takeover-renamed", "takeover-emptied", "takeover-dropped")
    yield from ("plan-staged", "plan-renamed", "plan-durable")
    for what in ("block", "follow", "note", "file", "items", "part", "run"):
        for step in ("staged", "linked", "renamed", "durable"):
            yield f"{what}-{step}"
    yield from ("finish-sealed", "close-emptied")


CRASH_POINTS = tuple(_crash_points())
"""Between these lies one durable step each, in the order of a dataset's life."""

COMPACTION_POINTS = (
    *(
        f"{what}-{step}"
        for what in ("merged-items", "merged-part")
        for step in ("staged", "linked", "renamed", "durable")
    ),
    *("replaced-part-removed", "replaced-parts-durable", "replaced-items-removed"),
)
"""The same for a compaction, which begins and ends like a run."""


def _crash_at(wanted: str | None) -> Callable[[str], None]:
    """Function that ends this process at the point that *wanted* (``name:n``) names."""
    if not wanted:
        return lambda _: None
    name, _, times = wanted.partition(":")
    left = int(times or 1)

    def crash_point(reached: str) -> None:
        nonlocal left
        left -= reached == name
        if reached == name and not left:
            if hasattr(signal, "SIGKILL"):
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(137)  # Windows has no SIGKILL; nothing is cleaned up here either

    return crash_point


# Looked up once: the test of the commit protocol dies here, everybody else pays a call.
crash_point = _crash_at(os.environ.get("ASYNCFETCH_CRASH"))


def sync_file(path: Path) -> int:
    """Flush a file to the disk; its size."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def sync_folder(path: str | Path) -> None:
    """Flush the names in a folder to the disk."""
    if sys.platform == "win32":
        return  # a folder cannot be opened there; NTFS journals its names
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sync_all(sync: Callable[[Path], object], paths: Iterable[Path]) -> None:
    """Flush many files or folders: a disk that has several to flush does it at once.

    300 small files take 35 ms instead of 70.
    """
    with ThreadPoolExecutor(FLUSHES) as pool:
        for _ in pool.map(sync, paths):
            pass


class LocalStore:
    """The files of one dataset in a local directory, by their names below it.

    Parameters
    ----------
    root
        The dataset's directory. Nothing is touched before :meth:`create`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The directory that all names are below."""
        return self._root

    lost: DatasetError | None = None
    """Why it can no more be asked; of no use to ask again."""
    filesystem: Any = None
    """What Arrow reads through; None is what it takes for files."""

    def __str__(self) -> str:
        """Where the dataset is, for people."""
        return str(self.root)

    def staging(self, run: str) -> Staging:
        """Where *run* prepares files, and the way to their names."""
        return Staging(self, run)

    def lock(
        self, run: str, *, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> Lock:
        """The right to change the dataset, for *run* to acquire."""
        return Lock(self.path(f"{RECORDS}/lock"), run, clock=clock, sleep=sleep)

    def path(self, name: str) -> Path:
        """Where the file *name* is."""
        return self.root / name

    def address(self, name: str) -> str:
        """Under which name Arrow finds a file by way of :attr:`filesystem`."""
        return str(self.path(name))

    @contextmanager
    def whole(self, part: str) -> Iterator[Path]:
        """Where a part lies while all of it is read."""
        yield self.path(part)

    def create(self) -> None:
        """Make the directories that are missing, durably."""
        missing = [self.root, *self.root.parents]
        missing = missing[: next(n for n, p in enumerate(missing) if p.exists())]
        records = self.root / RECORDS
        folders = [*reversed(missing), records, *(records / one for one in FOLDERS)]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for folder in {folder.parent: None for folder in folders}:
            sync_folder(folder)
        crash_point("open-made")

    def names(self, folder: str = "") -> dict[str, int]:
        """Sizes of the files in *folder*, by name; empty when there is no folder."""
        try:
            with os.scandir(self.root / folder) as entries:
                return {one.name: one.stat().st_size for one in sorted_files(entries)}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def entries(self, folder: str = "") -> list[str]:
        """Names of all that lies in *folder*, and of the folders there."""
        try:
            return sorted(one.name for one in (self.root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read_text(self, name: str) -> str | None:
        """Text of a small file, None when it is not there."""
        try:
            return self.path(name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_text(self, name: str, text: str) -> None:
        """Make a small file, in the place of an earlier one, that nothing relies on."""
        self.path(name).write_text(text, encoding="utf-8")

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        self.path(name).unlink(missing_ok=True)


def sorted_files(entries: Iterator[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    """Files among *entries*, by name."""
    return sorted((one for one in entries if one.is_file()), key=lambda one: one.name)


class Staging:
    """Work in progress of one run, and the only way to a final name.

    Parameters
    ----------
    run
        16 hex digits, drawn anew by each process.
    """

    def __init__(self, store: LocalStore, run: str) -> None:
        self.run = run
        self.folder = store.root / RECORDS / "tmp" / run
        self._store = store

    def announce(self) -> None:
        """Begin. What is under way in other runs ends here, and is thrown away."""
        self.folder.mkdir()
        crash_point("open-announced")
        for number, other in enumerate(sorted(self.folder.parent.iterdir())):
            if other.name == self.run:
                continue
            away = self.folder / f"other-{number}"
            with suppress(FileNotFoundError):  # a third run is doing the same
                other.rename(away)
            crash_point("takeover-renamed")
            shutil.rmtree(away, ignore_errors=True)
            crash_point("takeover-emptied")

    def path(self, name: str) -> Path:
        """Where to stage the file *name*."""
        return self.folder / name

    def publish(self, staged: str, name: str, what: str) -> int:
        """Give a staged file its final *name*, durably; its size in bytes.

        Raises
        ------
        DatasetError
            The name is taken, or another run took over.
        """
        source, target = self.folder / staged, self._store.path(name)
        with self.fenced():
            size = sync_file(source)
            crash_point(f"{what}-staged")
            try:
                link_or_rename(source, target, what)
            except FileExistsError:
                raise DatasetError(
                    f"expected no file {target}, found one: another program writes "
                    "here, or files were copied in; run verify"
                ) from None
            crash_point(f"{what}-renamed")
            sync_folder(target.parent)
            crash_point(f"{what}-durable")
        return size

    def replace(self, text: str, name: str, what: str) -> None:
        """Put *text* in the place of the file *name*, all or nothing."""
        source, target = self.folder / "replacement", self._store.path(name)
        with self.fenced():
            source.write_text(text, encoding="utf-8")
            sync_file(source)
            crash_point(f"{what}-staged")
            source.replace(target)
            crash_point(f"{what}-renamed")
            sync_folder(target.parent)
            crash_point(f"{what}-durable")

    def check(self) -> None:
        """Go on only while no other run took over.

        Raises
        ------
        DatasetError
            It did, or somebody removed the dataset.
        """
        with self.fenced():
            self.folder.stat()

    def take_away(self, path: Path) -> None:
        """Remove a file that may belong to a later run by now; no harm is done then."""
        gone = self.folder / f"gone-{secrets.token_hex(8)}"
        try:
            path.replace(gone)  # a name in a folder that only this run has
        except FileNotFoundError:
            self.check()
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.check()  # on another disk there is no such step: look, then go
            path.unlink(missing_ok=True)
            return
        gone.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """The same for a file of the dataset, by its name."""
        self.take_away(self._store.path(name))

    def discard(self) -> None:
        """End: nothing that was not published stays."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Turn "no such file" into what it means once the run's folder is gone."""
        try:
            yield
        except FileNotFoundError as error:
            if self.folder.exists():
                raise
            raise DatasetError(
                f"another run took over the dataset {self._store.root} from run "
                f"{self.run}, or removed it: what was committed before stands"
            ) from error


def link_or_rename(source: Path, target: Path, what: str) -> None:
    """Move a file to a name that must be free.

    A link fails when the name is taken; a rename would replace silently on POSIX. Where
    there are no hard links (exFAT, some network drives) the lock alone keeps others
    from taking the name between the look and the rename.
    """
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        if target.exists():
            raise FileExistsError(target) from None
        source.rename(target)
    else:
        crash_point(f"{what}-linked")
        source.unlink()


class Lock:
    """The right to change a dataset, held until :meth:`release` or death.

    A file lock where there are such, and a counter in the same file that moves while
    the holder lives. Where there are no file locks the counter is all there is: a
    lease. Two that begin at the same instant may both believe that it is theirs, and
    so may one that slept; the fence of :class:`Staging` lets only one of them go on.

    Parameters
    ----------
    path
        A file that is made when missing and never deleted.
    clock, sleep
        Seconds of the observer's own clock, and how to wait.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._path = path
        self._run = run
        self._clock = clock
        self._sleep = sleep
        self._file: int | None = None
        self._beats = 0
        self._is_lease = False

    def acquire(self) -> None:
        """Get the lock, or find out that its holder lives.

        The kernel frees a file lock when its holder dies, so getting it settles the
        matter. When it is held, or the file system has no locks, the holder's counter
        is watched.

        Raises
        ------
        DatasetError
            Another writer is at work: its counter moves.
        """
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._wait(self._file)
            self.beat()
        except BaseException:
            self._close()
            raise

    def _wait(self, file: int) -> None:
        seen: bytes | None = None
        since = 0.0
        while True:
            # Before the look: whoever is stopped behind it must not take the time that
            # it slept for the time that the counter stood still.
            now = self._clock()
            got = try_lock(file)
            self._is_lease = got is None
            found = self._look()
            if got or (got is None and not found.strip()):
                return
            if seen is None:
                seen, since = found, self._clock()
            elif found != seen:
                run, process, *_ = [*found.decode("ascii", "replace").split(), "?", "?"]
                raise DatasetError(
                    f"another writer is at work in {self._path.parent.parent} (run "
                    f"{run}, process {process}): wait until it ends, or end it"
                )
            elif now - since >= STALE:
                return
            self._sleep(POLL)

    def _look(self) -> bytes:
        # Opened anew: a network drive asks its server only then what others wrote.
        return self._path.read_bytes()[:100]

    def beat(self) -> None:
        """Move the counter, so that others see that this run lives."""
        if self._file is not None:
            self._beats += 1
            # After a takeover from a stopped process its lock is free once it is gone.
            self._is_lease = try_lock(self._file) is None
            self._write(f"{self._run} {os.getpid()} {self._beats}")

    def release(self, *, erase: bool) -> None:
        """Give the right back; *erase* the counter unless another run moves it now."""
        if self._file is not None:
            if erase:
                self._write("")  # where there is no file lock, this says it is free
            self._close()

    def _write(self, text: str) -> None:
        assert self._file is not None
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, text.ljust(63).encode("ascii") + b"\n")
        if self._is_lease:
            os.fsync(self._file)  # a network drive may keep it for half a minute

    def _close(self) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None


# What a file system says that has no locks (some network, user-space and cluster file
# systems, and NFS whose lock daemon is not there). Anything else is an error.
NO_LOCKS = {
    *(errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
    *(errno.EINVAL, errno.ENOTTY, errno.EPROTONOSUPPORT),
}


if sys.platform == "win32":
    import msvcrt

    def try_lock(file: int) -> bool | None:
        """Whether the file lock is ours now."""
        # Locked bytes cannot be read there: take one far behind the counter.
        os.lseek(file, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(file: int) -> bool | None:
        """Whether the file lock is ours now; None where there are no locks."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise
        return True

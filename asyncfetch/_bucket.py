"""Datasets on object stores: what a directory does with renames, done with puts.

The dataset is worked on in a directory of its own on this machine, which goes when the
work ends: what is open is staged there, and the small records of the dataset (plan and
items) are read from there. Parts and stored files are in the bucket alone. What the
caller sees as names, sizes and contents is what the bucket says at that moment.

*All or nothing.* An object is there as a whole or not at all, since it comes in a
single request; so a killed run leaves no half of an upload behind, and nobody pays for
one. A name is taken if it is free (``If-None-Match: *``), and never twice. As on a disk
the put of the part is the commit.

*The fence.* Nothing on an object store ends a writer that was only asleep. So a run
takes the next number in ``_asyncfetch/fence/``, and then writes there how far each run
before it had come: what these put later does not count, for nobody (:class:`Fence`).
Between the two it looks: what a writer knew to be committed was there by then. After
each put a writer looks at the numbers; a higher one than its own is the end of it.

*The lease.* A counter in ``_asyncfetch/lock``, changed only by who has seen it as it is
(``If-Match``). It is stale when it has not moved for 60 s of the observer's own clock.
A process that was killed on this machine is known to be dead at once: it held a file
lock in its directory.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import mmap
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, TypeVar

from asyncfetch._objects import (
    REQUEST_SECONDS,
    SLOWEST,
    ObjectStore,
    connect,
    no_bucket,
    patience,
    reason,
)
from asyncfetch._store import (
    RECORDS,
    STALE,
    LocalStore,
    Lock,
    Staging,
    crash_point,
    try_lock,
)
from asyncfetch.errors import DatasetError

S = TypeVar("S")
T = TypeVar("T")

LOCK = f"{RECORDS}/lock"
FENCE = f"{RECORDS}/fence"
ITEMS = f"{RECORDS}/items"
# They never change, so that one copy here is as good as the object.
KEPT = (f"{RECORDS}/plan/", f"{ITEMS}/")

# Twelve of them fit into the time after which a counter is stale.
BEAT = 5.0
POLL = 1.0  # seconds between two looks at another's counter
# Requests at the same time, where many are to be made: most are for a few kilobytes,
# and take as long as the way to the bucket and back.
FETCHERS = 16
PIECE = 4 << 20  # of an object is asked for at a time
# What Azure takes in one request (5000 MiB); S3 takes 5 GiB, GCS more.
# https://learn.microsoft.com/rest/api/storageservices/put-blob
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html
MAX_OBJECT = 5000 << 20
LOOKS = 10  # so often a name that goes while it is looked up is looked up anew


OBJECT_POINTS = ("lease-taken", "fence-claimed", "fence-complete", "fence-cleared")
"""Where a run of a dataset on an object store can be killed, beside the others."""


# S3 and Azure know the state of an object by its tag, GCS by its generation.
_Version: TypeAlias = dict[str, str]
_Mode: TypeAlias = Literal["create", "overwrite"] | _Version


def _version(told: Mapping[str, Any]) -> _Version:
    return {name: told[name] for name in ("e_tag", "version") if told.get(name)}


class BucketStore(LocalStore):
    """The files of one dataset on an object store, by their names below its prefix."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place
        self._objects = connect(place)
        self._connections: dict[int, Any] = {REQUEST_SECONDS: self._objects}
        of_url = hashlib.sha256(str(place).encode()).hexdigest()[:12]
        self._prefix = f"asyncfetch-{of_url}-"
        self.lease: _Lease | None = None
        self._sizes: dict[str, int] = {}
        self._fences: dict[str, Fence] = {}

    def __str__(self) -> str:
        return str(self._place)

    @cached_property
    def root(self) -> Path:
        """A directory of this machine, from the first use to the end of the store."""
        root, alive = _made(self._prefix)
        self._end = weakref.finalize(self, _discard, root, alive)
        return root

    def close(self, *, is_held: bool = False) -> None:
        """Remove the directory; what is read later makes another.

        Parameters
        ----------
        is_held
            Whether the lease still names this process: what shows that it is dead
            then stays.
        """
        if "root" in self.__dict__:
            if is_held and (found := self._end.detach()) is not None:
                _leave_mark(*found[2])
            else:
                self._end()
            del self.root

    # --- one object, one request ------------------------------------------------------

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what a service says into one line, unless the caller expects it.

        Raises
        ------
        FileExistsError, FileNotFoundError
            The name is taken, or the object is another; there is none.
        DatasetError
            It is refused, or came to nothing.
        """
        from obstore import exceptions as kinds  # noqa: PLC0415

        try:
            yield
        except (kinds.AlreadyExistsError, kinds.PreconditionError) as error:
            raise FileExistsError(errno.EEXIST, reason(error)) from None
        except (kinds.BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and not no_bucket(str(error)):
                raise FileNotFoundError(errno.ENOENT, reason(error)) from None
            self.lost = self._lost(error)
            raise self.lost from None

    def _lost(self, error: Exception) -> DatasetError:
        from obstore import exceptions as kinds  # noqa: PLC0415

        if no_bucket(str(error)):
            return DatasetError(
                f"expected a bucket for {self}, got none: make it (asyncfetch bucket "
                f"create s3://{self._place.bucket}), or mend its name"
            )
        denied = (kinds.PermissionDeniedError, kinds.UnauthenticatedError)
        if isinstance(error, denied) or "status code: 403" in str(error):
            return _DeniedError(
                f"expected access to {self}, got {reason(error)}: mend the "
                "credentials or what they may do"
            )
        if "invalid path" in str(error):
            return DatasetError(
                f"expected objects with plain names in {self}, got {reason(error)}: "
                "remove that object"
            )
        is_answer = "status code" in str(error)
        is_broken_off = isinstance(error, kinds.GenericError) and not is_answer
        kind = _BrokenOffError if is_broken_off else DatasetError
        return kind(
            f"expected an answer for {self}, got {reason(error)}: what was "
            "committed before stands; mend that, and a resume goes on"
        )

    def read(self, name: str) -> tuple[bytes, _Version] | None:
        """Content of a small object, and which state of it that is."""
        import obstore  # noqa: PLC0415

        try:
            with self._asking():
                found = obstore.get(self._objects, name)
                return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None

    def put(
        self, name: str, data: Any, mode: _Mode = "create", *, size: int = 0
    ) -> _Version:
        """Make an object of *data* in a single request.

        Parameters
        ----------
        mode
            ``create``, ``overwrite``, or the state that it is to replace.
        size
            Length of *data* where it may take more time than usual.
        """
        import obstore  # noqa: PLC0415

        seconds = REQUEST_SECONDS
        while size > seconds * SLOWEST:
            seconds *= 2
        how: Any = mode  # a state is what obstore itself gave
        until = time.monotonic() + patience(seconds).total_seconds()
        pause = 0.1
        while True:
            try:
                with self._asking():
                    done = obstore.put(
                        self._waiting(seconds),
                        name,
                        data,
                        mode=how,
                        use_multipart=False,
                    )
                return _version(done)
            except _BrokenOffError:
                # The library leaves it to us, since the first one may have got there.
                # Then the second is refused, and the caller compares what is there.
                if time.monotonic() >= until:
                    raise
                self.lost = None
            time.sleep(pause)
            pause = min(2 * pause, POLL)

    def _waiting(self, seconds: int) -> Any:
        """The objects, by connections that wait so long."""
        if seconds not in self._connections:
            self._connections[seconds] = connect(self._place, seconds)
        return self._connections[seconds]

    def put_content(self, name: str, content: bytes | Path) -> None:
        """Make an object of the bytes of a file."""
        if isinstance(content, bytes):
            self.put(name, content)
            return
        with content.open("rb") as file:
            if not (size := os.fstat(file.fileno()).st_size):  # nothing to map
                self.put(name, b"")
                return
            # Not closed here: after a failure the library may hold it for a moment.
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.put(name, pages, size=size)

    def head(self, name: str) -> Mapping[str, Any] | None:
        """What the service says of an object: size, last_modified."""
        import obstore  # noqa: PLC0415

        try:
            with self._asking():
                found: Mapping[str, Any] = obstore.head(self._objects, name)
                return found
        except FileNotFoundError:
            return None

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of an object, one request for each piece.

        Raises
        ------
        FileNotFoundError
            There is none.
        """
        import obstore  # noqa: PLC0415

        with self._asking():
            size = obstore.head(self._objects, name)["size"]
        for start in range(0, size, PIECE):
            length = min(PIECE, size - start)
            with self._asking():
                yield bytes(
                    obstore.get_range(self._objects, name, start=start, length=length)
                )

    def below(self, folder: str) -> Iterator[str]:
        """Names of all objects in *folder* and in the folders there, from it on.

        Other programs mark folders by empty objects, which come before what is in them.
        """
        import obstore  # noqa: PLC0415

        empty = None
        with self._asking():
            for some in obstore.list(self._objects, folder):
                for one in some:
                    path = one["path"]
                    if empty is not None and not path.startswith(f"{empty}/"):
                        yield empty.removeprefix(f"{folder}/")
                    empty = None if one["size"] or path == folder else path
                    if one["size"]:
                        yield path.removeprefix(f"{folder}/")
        if empty is not None:
            yield empty.removeprefix(f"{folder}/")

    def _list(self, folder: str) -> tuple[dict[str, int], list[str]]:
        """Objects in *folder* with their sizes, and the folders there."""
        import obstore  # noqa: PLC0415

        with self._asking():
            found = obstore.list_with_delimiter(self._objects, folder or None)
        sizes = {PurePosixPath(o["path"]).name: o["size"] for o in found["objects"]}
        folders = [PurePosixPath(one).name for one in found["common_prefixes"]]
        # Other programs mark a folder by an empty object with the name of the folder.
        sizes.pop(PurePosixPath(folder).name, None)
        return dict(sorted(sizes.items())), sorted(folders)

    def patiently(self, call: Callable[[], T]) -> T:
        """Wait for what may take minutes; others see meanwhile that this run lives."""
        if self.lease is None:
            return call()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(call)
            while wait([future], BEAT).not_done:
                self.lease.beat()
            return future.result()

    def each(self, call: Callable[[S], T], values: Iterable[S]) -> list[T]:
        """What *call* makes of each of *values*, of some of them at the same time."""
        with ThreadPoolExecutor(FETCHERS) as pool:
            return self.patiently(lambda: list(pool.map(call, values)))

    # --- what the rest of the package asks --------------------------------------------

    def staging(self, run: str) -> Staging:
        return _BucketStaging(self, run)

    def lock(
        self, run: str, *, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> Lock:
        self.lease = _Lease(self, run, clock=clock, sleep=sleep)
        return self.lease

    @property
    def filesystem(self) -> Any:
        """Records from here, parts by ranges from the bucket."""
        return _filesystem(self)

    def address(self, name: str) -> str:
        return name

    def path(self, name: str) -> Path:
        """Where the copy of a record is, which is fetched if need be."""
        here = self.root / name
        if name.startswith(KEPT) and not here.exists():
            with suppress(FileNotFoundError):  # whoever opens it says so
                self._fetch(name)
        return here

    def _fetch(self, name: str) -> None:
        import obstore  # noqa: PLC0415

        here = self.root / name
        here.parent.mkdir(parents=True, exist_ok=True)
        there = self.root / f"fetched-{secrets.token_hex(8)}"
        try:
            with self._asking(), there.open("wb") as file:
                for piece in obstore.get(self._objects, name).stream():
                    file.write(piece)
            there.replace(here)
        finally:
            there.unlink(missing_ok=True)

    @contextmanager
    def whole(self, part: str) -> Iterator[Path]:
        """A copy of a part, for as long as it is read."""
        here = self.root / part
        try:
            self.patiently(lambda: self._fetch(part))
        except FileNotFoundError:
            raise DatasetError(
                f"expected a file of the dataset, got none at {self}/{part}: run "
                "verify with --repair"
            ) from None
        try:
            yield here
        finally:
            here.unlink(missing_ok=True)

    def reader(self, name: str) -> io.RawIOBase:
        """A part as a file of which pieces are asked for."""
        return _Ranges(self, name, self._sizes.get(name))

    def names(self, folder: str = "") -> dict[str, int]:
        sizes, _ = self._list(folder)
        if folder in {"", ITEMS}:
            fence = self.fence()  # after the listing: a later one says nothing of it
            sizes = {n: size for n, size in sizes.items() if fence.lets(n)}
        if not folder:
            self._sizes = sizes
        if f"{folder}/" in KEPT:
            self._fetch_all([f"{folder}/{name}" for name in sizes])
        return sizes

    def _fetch_all(self, names: list[str]) -> None:
        self.each(self.path, [n for n in names if not (self.root / n).exists()])

    def entries(self, folder: str = "") -> list[str]:
        sizes, folders = self._list(folder)
        if folder in {"", ITEMS}:
            fence = self.fence()
            sizes = {n: size for n, size in sizes.items() if fence.lets(n)}
        return sorted([*sizes, *folders])

    def read_text(self, name: str) -> str | None:
        found = self.read(name)
        return None if found is None else found[0].decode()

    def write_text(self, name: str, text: str) -> None:
        self.put(name, text.encode(), "overwrite")

    def remove(self, name: str) -> None:
        import obstore  # noqa: PLC0415

        with suppress(FileNotFoundError), self._asking():
            obstore.delete(self._objects, name)
        (self.root / name).unlink(missing_ok=True)

    # --- the fence --------------------------------------------------------------------

    def fence_numbers(self) -> list[str]:
        """Names in the folder of fences, the newest last."""
        sizes, _ = self._list(FENCE)
        return sorted((name for name in sizes if name.isdigit()), key=int)

    def fence(self) -> Fence:
        """The newest one that says how far the runs before it had come."""
        for _ in range(LOOKS):
            names = self.fence_numbers()
            for name in reversed(names):
                if name not in self._fences:
                    found = self.read(f"{FENCE}/{name}")
                    if found is None:
                        break  # a newer one is there: look anew
                    fence = Fence.from_json(found[0], f"{self}/{FENCE}/{name}")
                    if fence.stands is None:
                        continue
                    self._fences = {name: fence}
                return self._fences[name]
            else:
                return NO_FENCE
        raise DatasetError(
            f"expected a dataset that holds still, got one whose writers change "
            f"all the time at {self}: try again"
        )

    def standing(self, fences: list[str]) -> dict[str, tuple[int, int]]:
        """The last items file and the last part of each run, as their numbers.

        Parameters
        ----------
        fences
            Those that were there: a run that had put nothing by now is known by its
            own, or by that of whoever came after it.
        """
        last: dict[str, tuple[int, int]] = {}
        for number in fences:
            if (text := self.read(f"{FENCE}/{number}")) is not None:
                fence = Fence.from_json(text[0], f"{self}/{FENCE}/{number}")
                last |= dict.fromkeys((fence.run, *(fence.stands or ())), (-1, -1))
        for name in self.names(ITEMS):
            if (found := _numbered(name)) is not None:
                items, part = last.get(found[0], (-1, -1))
                last[found[0]] = max(items, found[1]), part
        for name in self.names():
            if (found := _numbered(name)) is not None:
                items, part = last.get(found[0], (-1, -1))
                last[found[0]] = items, max(part, found[1])
        return last

    def withdraw(self) -> None:
        """Remove what came too late to count; for the holder of the lease."""
        fence = self.fence()
        for folder in ("", ITEMS):
            for name in self._list(folder)[0]:
                if not fence.lets(name):
                    self.remove(f"{folder}/{name}" if folder else name)

    # --- directories on this machine --------------------------------------------------

    @property
    def mark(self) -> str:
        """By which other processes on this machine find out whether this one lives."""
        return self.root.name

    def is_dead(self, mark: str) -> bool:
        """Whether the process with that mark was on this machine, and is no more."""
        if not re.fullmatch(re.escape(self._prefix) + r"\w+", mark):
            return False
        return _is_free(self.root.with_name(mark))

    def bury(self) -> None:
        """Remove what processes that were killed left on this machine."""
        for one in self.root.parent.glob(f"{self._prefix}*"):
            if one != self.root and _is_free(one):
                shutil.rmtree(one, ignore_errors=True)


class _DeniedError(DatasetError):
    """The service does not let us."""


class _BrokenOffError(DatasetError):
    """No answer came."""


def _made(prefix: str) -> tuple[Path, int]:
    """A new directory, and the file in it that is locked while this process lives."""
    while True:
        root = Path(tempfile.mkdtemp(prefix=prefix))
        alive = os.open(root / "alive", os.O_RDWR | os.O_CREAT, 0o600)
        # One that clears up may have come before the lock.
        if try_lock(alive) is not False and (root / "alive").exists():
            return root, alive
        os.close(alive)


def _is_free(root: Path) -> bool:
    """Whether nobody lives who holds the directory."""
    try:
        file = os.open(root / "alive", os.O_RDWR)
    except OSError:
        return False  # of another machine
    try:
        return try_lock(file) is True
    finally:
        os.close(file)


def _discard(root: Path, alive: int) -> None:
    os.close(alive)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        shutil.rmtree(root, ignore_errors=True)
    else:  # a view was let go of there, and nothing may block it
        threading.Thread(target=shutil.rmtree, args=(root, True)).start()


def _leave_mark(root: Path, alive: int) -> None:
    """Remove what is in the directory but the file that nobody holds any more."""
    for one in root.iterdir():
        if one.is_dir():
            shutil.rmtree(one, ignore_errors=True)
        elif one.name != "alive":
            one.unlink(missing_ok=True)
    os.close(alive)


def _numbered(name: str) -> tuple[str, int] | None:
    """Run and number of a part or an items file."""
    found = re.fullmatch(r"part-([0-9a-f]+)-([0-9]+)\.(?:parquet|items)", name)
    return None if found is None else (found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class Fence:
    """How far the runs before *run* had come; what they put later does not count."""

    run: str
    stands: Mapping[str, tuple[int, int]] | None
    """By run, the number of the last items file and of the last part; None while it is
    being found out."""

    @classmethod
    def from_json(cls, text: bytes, where: str) -> Fence:
        """Undo :meth:`to_json`."""
        try:
            found = json.loads(text)
            stands = found["stands"]
            if stands is not None:
                stands = {run: (int(a), int(b)) for run, (a, b) in stands.items()}
            return cls(str(found["run"]), stands)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DatasetError(
                f"expected a fence, got something else at {where}"
            ) from None

    def to_json(self) -> bytes:
        """As it is put."""
        return json.dumps({"run": self.run, "stands": self.stands}).encode()

    def lets(self, name: str) -> bool:
        """Whether a file may count: none that a run before the fence put behind it.

        Files of runs that never were here were copied in, and are what they are.
        """
        found = _numbered(name)
        if found is None or self.stands is None or found[0] not in self.stands:
            return True
        items, part = self.stands[found[0]]
        return found[1] <= (items if name.endswith(".items") else part)


# Of a dataset that was copied there.
NO_FENCE = Fence("", None)


class _BucketStaging(Staging):
    """Work in progress of one run on this machine, and puts to their final names."""

    def __init__(self, store: BucketStore, run: str) -> None:
        super().__init__(store, run)
        self._bucket = store
        self._number = -1
        self._looked = _now()

    def announce(self) -> None:
        super().announce()
        bucket = self._bucket
        numbers = bucket.fence_numbers()
        self._number = 1 + max(map(int, numbers), default=-1)
        name = f"{FENCE}/{self._number:05d}"
        claim = Fence(self.run, None).to_json()
        try:
            bucket.put(name, claim)
        except FileExistsError:
            found = bucket.read(name)
            if found is None or found[0] != claim:  # not our own, put again
                raise _taken_over(self._bucket, self.run) from None
        self._look()  # a number can become free again for whoever slept before this
        crash_point("fence-claimed")
        # From here on no other run believes that it commits: it looks after its put.
        stands = bucket.standing(numbers)
        bucket.put(name, Fence(self.run, stands).to_json(), "overwrite")
        crash_point("fence-complete")
        for number in numbers:
            bucket.remove(f"{FENCE}/{number}")
        crash_point("fence-cleared")
        bucket.withdraw()

    def publish(self, staged: str, name: str, what: str) -> int:
        source = self.folder / staged
        size = source.stat().st_size
        crash_point(f"{what}-staged")
        try:
            self._bucket.patiently(lambda: self._bucket.put_content(name, source))
        except FileExistsError:
            if not self._is_ours(source, name):
                self._look()
                raise DatasetError(
                    f"expected no object {self._bucket}/{name}, found one: another "
                    "program writes there, or files were copied in; run verify"
                ) from None
        crash_point(f"{what}-renamed")
        if name.startswith(KEPT):
            here = self._bucket.root / name
            here.parent.mkdir(parents=True, exist_ok=True)
            source.replace(here)
        else:
            source.unlink()
        self._look(name)
        crash_point(f"{what}-durable")
        return size

    def _is_ours(self, source: Path, name: str) -> bool:
        """Whether what is there came from us: a put may be sent twice."""
        with self._bucket.whole(name) as there:
            return there.read_bytes() == source.read_bytes()

    def replace(self, text: str, name: str, what: str) -> None:
        crash_point(f"{what}-staged")
        self._look()
        self._bucket.put(name, text.encode(), "overwrite")
        crash_point(f"{what}-renamed")
        self._look()
        crash_point(f"{what}-durable")

    def check(self) -> None:
        if _now() - self._looked >= BEAT:
            self._look()

    def _look(self, name: str | None = None) -> None:
        """End if another run took over; what it does not count goes with us.

        Parameters
        ----------
        name
            Of what has just been put.
        """
        self._looked = _now()
        numbers = [int(one) for one in self._bucket.fence_numbers()]
        if max(numbers, default=-1) == self._number:
            return
        # While the other run still finds out what is there, it may find this, too. A
        # note comes before what it speaks of, and nothing of that will come.
        if name is not None and (
            name.endswith(".files")
            or not self._bucket.fence().lets(PurePosixPath(name).name)
        ):
            self._bucket.remove(name)
        raise _taken_over(self._bucket, self.run)

    def take_away(self, path: Path) -> None:
        if not path.is_relative_to(self._bucket.root):  # others have what is there
            self._look()
        path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        self._look()
        self._bucket.remove(name)


def _now() -> float:
    """Seconds that pass while the machine sleeps, too, where there is such a clock."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _taken_over(store: BucketStore, run: str) -> DatasetError:
    return DatasetError(
        f"another run took over the dataset {store} from run {run}, or removed it: "
        "what was committed before stands"
    )


class _Lease(Lock):
    """The right to change a dataset: a counter that moves while its holder lives."""

    def __init__(
        self,
        store: BucketStore,
        run: str,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(store.root / "lock", run, clock=clock, sleep=sleep)
        self._store = store
        self._text = b""
        self._version: _Version | None = None
        self._beaten = 0.0

    def acquire(self) -> None:
        try:
            other = self._take(self._free())
        except _DeniedError as error:  # a dataset that may be read alone
            self._store.lost = None
            reason = str(error).partition(", got ")[2]
            raise PermissionError(errno.EACCES, reason) from None
        if other is not None:
            raise self._at_work(other)
        crash_point("lease-taken")
        self._store.bury()

    def _free(self) -> _Mode:
        """Wait until nobody holds it; how to put what is to be there now."""
        seen: bytes | None = None
        since = 0.0
        while True:
            now = self._clock()  # before the look, as on a disk
            found = self._store.read(LOCK)
            if found is None:
                return "create"
            text, version = found
            words = text.decode("ascii", "replace").split()
            if not words:
                return version
            if self._store.is_dead(words[-1]):
                return version
            if seen is None:
                seen, since = text, self._clock()
            elif text != seen:
                raise self._at_work(text)
            elif now - since >= STALE:
                return version
            self._sleep(POLL)

    def _at_work(self, text: bytes) -> DatasetError:
        run, process, *_ = [*text.decode("ascii", "replace").split(), "?", "?"]
        return DatasetError(
            f"another writer is at work in {self._store} (run {run}, process "
            f"{process}): wait until it ends, or end it"
        )

    def _take(self, mode: _Mode) -> bytes | None:
        """Put the counter there; what another put there before, if one did."""
        self._beats += 1
        text = f"{self._run} {os.getpid()} {self._beats} {self._store.mark}\n".encode()
        self._beaten = _now()
        try:
            self._version = self._store.put(LOCK, text, mode)
        except (FileExistsError, FileNotFoundError):
            found = self._store.read(LOCK)
            if found is None or found[0] != text:  # not our own, put twice
                self._version = None
                return found[0] if found else b""
            self._version = found[1]
        return None

    def beat(self) -> None:
        if (
            self._version is not None
            and _now() - self._beaten >= BEAT
            and self._take(self._version) is not None
        ):
            raise _taken_over(self._store, self._run)

    def release(self, *, erase: bool) -> None:
        version, self._version = self._version, None
        is_held = erase and version is not None
        if erase and version is not None and self._store.lost is None:
            with suppress(OSError, DatasetError):  # it is another's, or cannot be
                self._store.put(LOCK, b"\n", version)
                is_held = False
        self._store.lease = None
        self._store.close(is_held=is_held)  # only now: it shows that this process lives


class _Ranges(io.RawIOBase):
    """A part in the bucket, of which each read asks for what it needs."""

    def __init__(self, store: BucketStore, name: str, size: int | None) -> None:
        import obstore  # noqa: PLC0415

        self._store = store
        self._name = name
        self._place = 0
        if size is None:
            with store._asking():  # noqa: SLF001 - one of the same module
                size = obstore.head(store._objects, name)["size"]  # noqa: SLF001
        self._size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}
        self._place = start[whence] + offset
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        import obstore  # noqa: PLC0415

        left = self._size - self._place
        size = left if size < 0 else min(size, left)
        if size <= 0:
            return b""
        store = self._store
        with store._asking():  # noqa: SLF001
            found = obstore.get_range(
                store._objects,  # noqa: SLF001
                self._name,
                start=self._place,
                length=size,
            )
        self._place += size
        return bytes(found)


def _filesystem(store: BucketStore) -> Any:
    """What Arrow reads a dataset through: its files, by their names."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import fs  # noqa: PLC0415

    def only_reads(*_: object) -> Any:
        raise NotImplementedError("a dataset is written by its writer alone")

    def opened(path: str) -> pa.NativeFile:
        here = store.path(path)
        if here.exists():
            return pa.OSFile(str(here))
        return pa.PythonFile(store.reader(path), mode="r")

    class Handler(fs.FileSystemHandler):  # type: ignore[misc] # pyarrow has no types
        def __eq__(self, other: object) -> bool:
            return self is other

        def __hash__(self) -> int:
            return id(self)

        def get_type_name(self) -> str:
            return "asyncfetch"

        def normalize_path(self, path: str) -> str:
            return path

        def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
            return [fs.FileInfo(path, fs.FileType.File) for path in paths]

        def open_input_file(self, path: str) -> pa.NativeFile:
            return opened(path)

        def open_input_stream(self, path: str) -> pa.NativeFile:
            return opened(path)

        get_file_info_selector = only_reads
        create_dir = delete_dir = delete_dir_contents = only_reads
        delete_root_dir_contents = delete_file = move = copy_file = only_reads
        open_output_stream = open_append_stream = only_reads

    return fs.PyFileSystem(Handler())

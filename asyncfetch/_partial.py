"""The bytes of a file on their way: kept over resets, retries and kills.

A small file stays in memory. A larger one goes to ``partial/<hash>``, with a note
beside it that says of which representation the bytes are and how many of them have
reached the disk. An attempt that breaks off is followed by one that asks for the rest,
by the rules of RFC 9110 (13.1.5, 14): only with a strong validator, only from the very
byte, and anything that does not fit starts the file over.

Who may write. A run that takes over may meet a file that a sleeping writer of an older
run still has open. Starting over gives the name to a new file, by way of ``tmp/<run>/``
which the older run has lost; going on writes from where the older one stood, and if
that one wakes up it writes, at its own place, bytes of the same representation. Nothing
is ever cut off a file that may be shared.
"""

from __future__ import annotations

import email.utils
import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import anyio.to_thread

from asyncfetch._body import Body, Proof, is_page
from asyncfetch._model import FileWish, Response
from asyncfetch._store import Staging, crash_point, sync_folder
from asyncfetch.errors import DatasetError, IntegrityError

# A file of up to this is held in memory and simply asked for again.
SMALL = 1 << 20
# Progress that counts, and the least that is worth a Range: what the slowest server
# that is still waited for sends in a minute (1 KiB/s).
PROGRESS = 64 * 1024
# Bytes are flushed to the disk and the note is renewed this often: what a loss of power
# costs. Bytes beyond the note are not trusted, for a file may grow before its content.
CHECKPOINT = 1.0
# One call to a thread reads so much back: some 50 ms, so a cancellation is soon seen.
READ_BACK = 64 << 20
_READ = 1 << 20

PARTIAL_POINTS = (
    "partial-begun",
    "partial-written",
    "partial-synced",
    "partial-noted",
    "partial-sealed",
)
"""Where a process can die while a large file comes, beside the dataset's own points."""

_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes\s+\*/(\d+)", re.IGNORECASE)


def validator_of(headers: Mapping[str, str]) -> str | None:
    """What If-Range may carry, exactly as it was sent; None forbids to resume.

    A weak ETag does not say that bytes are the same, and a date beside any ETag may not
    be used (RFC 9110, 13.1.5). A date that is not a second older than the answer may
    belong to two contents (8.8.2.2).
    """
    etag = headers.get("ETag", "").strip()
    if etag:
        return None if etag[:2].upper() == "W/" else etag
    modified = headers.get("Last-Modified", "").strip()
    try:
        since = _seconds(modified)
        now = _seconds(headers["Date"]) if "Date" in headers else math.inf
    except ValueError:
        return None
    return modified if now - since >= 1 else None


def _seconds(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp()


def rest_of(headers: Mapping[str, str], have: int, total: int | None) -> int | None:
    """The whole length that a 206 names, None when it does not know.

    Raises
    ------
    IntegrityError
        It is not the rest of what is there.
    """
    text = headers.get("Content-Range", "").strip()
    found = _CONTENT_RANGE.fullmatch(text)
    if found is not None and int(found[1]) == have <= int(found[2]):
        named = None if found[3] == "*" else int(found[3])
        if named is None:
            return total
        if total in {None, named} and int(found[2]) < named:
            return named
    raise IntegrityError(
        f"expected bytes {have}- of {total or '?'}, got Content-Range {text!r}: "
        "the file starts over"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is known of the bytes in ``partial/<hash>``."""

    url: str
    validator: str
    etag: str | None
    last_modified: str | None
    total: int | None
    """Length of the whole, if the server said it."""
    synced: int
    """Bytes that are on the disk."""
    sha256: str | None = None
    """Of the whole, once it has been received and proved."""

    @classmethod
    def read(cls, path: Path) -> Note | None:
        """The note at *path*; None when there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class Partial:
    """The bytes of one file, from its first to its last attempt.

    Methods block unless they are coroutines, but for :meth:`begin`, :meth:`add` and
    :meth:`headers`. One attempt at a time.

    Parameters
    ----------
    path
        ``partial/<hash>`` of the item.
    staging
        Of the run; its directory is the fence.
    url
        What is asked.
    wish
        What the service says of the file.
    has_begun
        Whether an earlier run may have left some of it.
    most
        Length of the largest file that its place takes.
    """

    def __init__(
        self,
        path: Path,
        staging: Staging,
        url: str,
        wish: FileWish,
        *,
        has_begun: bool = True,
        most: int | None = None,
    ) -> None:
        self._most = most
        self._home = path
        self._note_path = note_of(path)
        self._staging = staging
        self._url = url
        self._wish = wish
        self._has_begun = has_begun
        self._may_resume = True
        self._was_wrong = False
        self._file: IO[bytes] | None = None
        self.start_over()

    def start_over(self) -> None:
        """Forget what has come. The name gets a new file when the next bytes come."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self.size = 0
        self.pieces: list[bytes] = []
        self.path: Path | None = None
        self.digest = hashlib.sha256()
        self._check = _hash_like(self._wish.checksum)
        self._note: Note | None = None
        self._held = 0
        self._checked_at = -CHECKPOINT

    def drop(self) -> None:
        """Forget what has come, and remove it: it is not what it should be."""
        self.start_over()
        self._staging.take_away(self._note_path)
        self._staging.take_away(self._home)

    # --- what the transport does with it ----------------------------------------------

    def headers(self) -> dict[str, str]:
        """What an attempt sends beside the usual."""
        # Length, ranges and checksums shall be those of the file.
        headers = {"Accept-Encoding": "identity"}
        if self.size and self._note is not None:
            headers["Range"] = f"bytes={self.size}-"
            headers["If-Range"] = self._note.validator
        return headers

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the body of an answer belongs to the file; be ready for it.

        Raises
        ------
        IntegrityError
            It would be a part that does not fit, and the next attempt starts over; or
            the whole is too large for its place.
        """
        if status == 206:
            try:
                self._go_on(headers)
            except IntegrityError:
                self._may_resume = False  # what its ranges mean is not known
                self.start_over()
                raise
            return True
        if status == 200:
            self.start_over()
            validator = validator_of(headers) if self._may_resume else None
            if validator is not None:
                self._note = Note(
                    url=self._url,
                    validator=validator,
                    etag=headers.get("ETag"),
                    last_modified=headers.get("Last-Modified"),
                    total=_length(headers),
                    synced=0,
                )
            self._check_room(_length(headers) or 0)
        return status == 200

    def _check_room(self, size: int) -> None:
        if self._most is not None and size > self._most:
            raise IntegrityError(
                f"expected at most {self._most} bytes, which is what an object store "
                f"takes in one request, got {size} from {self._url}: fetch it into a "
                "directory",
                is_final=True,
            )

    def _go_on(self, headers: Mapping[str, str]) -> None:
        if self._note is None or not self.size:
            raise IntegrityError(f"expected a whole file, got a part from {self._url}")
        total = rest_of(headers, self.size, self._note.total)
        for name, known in (
            ("ETag", self._note.etag),
            ("Last-Modified", self._note.last_modified),
        ):
            got = headers.get(name)
            if got is not None and known is not None and got.strip() != known.strip():
                raise IntegrityError(
                    f"expected the rest of {name} {known}, got a part of {got} from "
                    f"{self._url}: the file starts over"
                )
        self._note = replace(self._note, total=total)

    def add(self, piece: bytes) -> None:
        """Take the next bytes into memory."""
        self.digest.update(piece)
        if self._check is not None:
            self._check.update(piece)
        self.pieces.append(piece)
        self.size += len(piece)
        self._held += len(piece)

    @property
    def wants_write(self) -> bool:
        """Whether memory is full."""
        return self._held > SMALL

    def write(self) -> None:
        """Move what is in memory to the file."""
        with on_disk(self._home):
            if self._file is None:
                self._open()
            assert self._file is not None
            # Woken up after a takeover, a writer ends here.
            self._staging.check()
            self._check_room(self.size)
            self._file.writelines(self.pieces)
            self._file.flush()
            self.pieces, self._held = [], 0
            crash_point("partial-written")
            if time.monotonic() - self._checked_at >= CHECKPOINT:
                self._checkpoint()

    def _open(self) -> None:
        """Give the name to a file of this run, which holds nothing yet."""
        # The note goes first: it must never speak of another file.
        self._staging.take_away(self._note_path)
        begun = self._staging.path(f"begun-{self._home.name}")
        begun.touch()
        begun.replace(self._home)
        self._file = self._home.open("r+b")
        self._staging.check()  # not the file of a run that took over in between
        self.path = self._home
        crash_point("partial-begun")

    def _checkpoint(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        crash_point("partial-synced")
        self._checked_at = time.monotonic()
        if self._note is not None:
            self._note = replace(self._note, synced=self.size - self._held)
            text = json.dumps(asdict(self._note))
            staged = self._staging.path(f"note-{self._home.name}")
            staged.write_text(text, encoding="utf-8")
            staged.replace(self._note_path)
            crash_point("partial-noted")

    def finish(self) -> None:
        """Write the rest: the body has ended.

        Raises
        ------
        IntegrityError
            There are fewer bytes than the whole has, or more.
        """
        total = None if self._note is None else self._note.total
        if total is not None and self.size != total:
            raise IntegrityError(
                f"the body was cut: {self.size} of {total} bytes from {self._url}"
            )
        if self._file is not None:
            self.write()
            with on_disk(self._home):
                self._checkpoint()

    def discard(self) -> None:
        """Let an attempt end early: keep its bytes if another may go on from them."""
        if self._note is None or self.size < PROGRESS:
            self.start_over()
        else:
            self._checked_at = -CHECKPOINT
            self.write()

    # --- what the exchange does with it -----------------------------------------------

    async def recover(self) -> Response | None:
        """Take over what an earlier run left; the answer, if it was all there.

        Raises
        ------
        DatasetError
            The disk cannot be read, or another run took over.
        """
        if not self._has_begun:
            return None
        note = await anyio.to_thread.run_sync(self._reopen)
        while self._file is not None and self.size < self._synced:
            await anyio.to_thread.run_sync(self._read_back)
        if note is None or note.sha256 is None:
            return None
        if self.digest.hexdigest() != note.sha256:
            self.start_over()
            return None
        return self.response()

    @property
    def _synced(self) -> int:
        return 0 if self._note is None else self._note.synced

    def _reopen(self) -> Note | None:
        note = Note.read(self._note_path)
        if note is None or note.url != self._url or note.synced < PROGRESS:
            return None
        with on_disk(self._home):
            try:
                file = self._home.open("r+b")
            except FileNotFoundError:
                return None
            if os.fstat(file.fileno()).st_size < note.synced:
                file.close()
                return None
        self._note, self._file, self.path = note, file, self._home
        return note

    def _read_back(self) -> None:
        assert self._file is not None
        until = min(self._synced, self.size + READ_BACK)
        with on_disk(self._home):
            while self.size < until:
                piece = self._file.read(min(_READ, until - self.size))
                if not piece:
                    raise OSError(errno.EIO, "fewer bytes than there were")
                self.digest.update(piece)
                if self._check is not None:
                    self._check.update(piece)
                self.size += len(piece)

    def response(self) -> Response:
        """The answer that the bytes come to, when all of them are there."""
        assert self._note is not None
        heads = {"ETag": self._note.etag, "Last-Modified": self._note.last_modified}
        return Response(
            status=206,
            headers={name: text for name, text in heads.items() if text is not None},
            url=self._url,
            body=Body(
                data=self.path or b"".join(self.pieces),
                size=self.size,
                sha256=self.digest.hexdigest(),
                proof=Proof.LENGTH,
            ),
        )

    def whole_by(self, refusal: Response) -> Response:
        """The answer, if a 416 says that there is nothing behind what is there.

        Raises
        ------
        IntegrityError
            It does not say so. The next attempt starts over.
        """
        text = refusal.headers.get("Content-Range", "").strip()
        found = _UNSATISFIED.fullmatch(text)
        if found is None or self._note is None or int(found[1]) != self.size:
            size = self.size
            self.start_over()
            raise IntegrityError(
                f"expected bytes {size}- of {self._url}, got 416 with Content-Range "
                f"{text!r}: the file starts over"
            )
        self._note = replace(self._note, total=self.size)
        return self.response()

    def exact(self, body: Body) -> Body:
        """*body* as the bytes of the file.

        Raises
        ------
        IntegrityError
            They are packed although the file is not.
        """
        if not body.is_compressed:
            return body
        # Some servers call a file encoded that simply is a .gz file.
        if self._wish.path.lower().endswith((".gz", ".tgz")):
            return replace(body, encoding="")
        raise IntegrityError(
            f"expected the bytes of the file, got them in {body.encoding}, which was "
            f"not asked for, from {self._url}",
            is_final=True,
        )

    def check(self, body: Body) -> None:
        """Compare a whole file with what the service said of it beforehand.

        Raises
        ------
        IntegrityError
            Length or checksum are others.
        """
        wish = self._wish
        expected, got = f"{wish.size} bytes", f"{body.size}"
        if wish.size in {None, body.size}:
            if not wish.checksum:
                return
            expected = f"checksum {wish.checksum}"
            got = (self._check or self.digest).hexdigest()
            if got == wish.checksum.lower():
                return
        # Once more may help against a fault on the way, and not against a wrong file. A
        # page for people is none.
        is_final = self._was_wrong
        if isinstance(body.data, bytes) and is_page(body.data):
            is_final, got = False, "an HTML page"
        else:
            self._was_wrong = True
        raise IntegrityError(
            f"expected {expected}, got {got} from {self._url}", is_final=is_final
        )

    def seal(self) -> None:
        """Note that all is there and was proved: a kill from now on costs nothing."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        with on_disk(self._home):
            note = self._note or Note(
                url=self._url,
                validator="",
                etag=None,
                last_modified=None,
                total=self.size,
                synced=self.size,
            )
            note = replace(
                note, total=self.size, synced=self.size, sha256=self.digest.hexdigest()
            )
            staged = self._staging.path(f"note-{self._home.name}")
            with staged.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(note)))
                file.flush()
                os.fsync(file.fileno())
            staged.replace(self._note_path)
            sync_folder(self._home.parent)
            crash_point("partial-sealed")

    def close(self) -> None:
        """Let go of the file; what is on the disk stays for a later run."""
        if self._file is not None:
            self._file.close()
            self._file = None


def note_of(path: Path) -> Path:
    """Where the note of ``partial/<hash>`` lies."""
    return path.with_name(f"{path.name}.json")


def _hash_like(checksum: str | None) -> hashlib._Hash | None:
    """What makes checksums of that length; None where SHA-256 does.

    Raises
    ------
    IntegrityError
        Nothing makes them.
    """
    if not checksum or len(checksum) == 64:
        return None
    names = {32: "md5", 40: "sha1"}
    if len(checksum) not in names:
        raise IntegrityError(
            f"expected an MD5, SHA-1 or SHA-256 in hexadecimal, got {checksum!r}"
        )
    return hashlib.new(names[len(checksum)], usedforsecurity=False)


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Tell trouble with the disk from trouble with the network: it ends the run."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"expected to keep the bytes of a file, got {error.strerror} at {path}",
            is_fatal=True,
        ) from error

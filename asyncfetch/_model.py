"""Frozen values that cross the seams between modules, and the Protocols at the seams.

A table describes itself as a :class:`Source`: a generator that enumerates its items
(yielding requests and being sent the responses, never doing I/O) and a pure function
from an item and its bytes to record batches. The engine knows services by nothing else.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Protocol,
    Self,
    TypeAlias,
    runtime_checkable,
)

from asyncfetch.errors import AsyncfetchError, ConfigurationError, ItemError

if TYPE_CHECKING:
    import pyarrow as pa

    from asyncfetch._body import Body

Json: TypeAlias = (
    "bool | int | float | str | list[Json] | Mapping[str, Json] | None"  # RFC 8259
)
Media: TypeAlias = Literal["json", "swc", "bytes", "any"]
Stores: TypeAlias = Literal["none", "asked", "always"]
"""Of a table: its items are no files; their bytes are stored on demand; or always."""
READS = frozenset({"GET", "HEAD"})
"""Methods that change nothing."""
# The code of an item that stands for a record from which no request can be made.
ODD_RECORD = "odd-record"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWish:
    """The file that a body is, as the service describes it."""

    path: str
    """Where it belongs below the directory of files; not safe before a plan took it."""
    size: int | None = None
    """Its length in bytes, where the service says it."""
    checksum: str | None = None
    """Its MD5, SHA-1 or SHA-256, where the service says it: told apart by length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a form (multipart/form-data, RFC 7578)."""

    name: str
    """Of the field; several parts may bear the same."""
    value: str | bytes | Path
    """Its text, its bytes, or the file that is sent under its own name."""
    file_name: str | None = None
    """Another name for a file; bytes are one by having a name."""
    content_type: str | None = None
    """Of a file, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a service, relative to the service's base URL."""

    target: str
    """Path and query below the base URL, percent-encoded; begins with ``/``."""
    media: Media = "json"
    """What the body must be; HTML in its place is refused as not whole, but for any."""
    method: str = "GET"
    """Only what :attr:`is_read` names is retried."""
    body: str | bytes | tuple[Part, ...] | None = field(default=None, repr=False)
    """JSON text to send, if any (a login is one), bytes, or the parts of a form."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What is sent beside the usual, and in place of it; never planned."""
    range: str | None = None
    """What of a list is wanted, where a header says it: ``items=0-24``."""
    accept: str | None = None
    """What the answer may be, where :attr:`media` does not say it; never planned."""
    may_be_absent: bool = False
    """Whether a 404 says that a thing is not there, and not that the URL is wrong."""
    file: FileWish | None = None
    """The file that the body is, if it is one."""
    only_asks: bool = False
    """Whether it changes nothing although its method might."""
    may_leave: bool = False
    """Whether a redirect may lead to another host, which is sent nothing that is ours;
    never planned."""
    or_get: str | None = None
    """The target to get where the method is not allowed (405)."""
    refused: str | None = None
    """Why it cannot be sent; whoever asks it gets this as an error, and nobody else."""

    @property
    def is_read(self) -> bool:
        """Whether asking twice is harmless."""
        return self.only_asks or self.method in READS

    @property
    def as_get(self) -> Request:
        """The same question by GET, of a request that can be put so."""
        assert self.or_get is not None
        return replace(self, method="GET", body=None, target=self.or_get, or_get=None)

    def to_json(self, *, with_file: bool = True) -> str:
        """Compact JSON for the frozen plan; defaults are left out."""
        fields: dict[str, Any] = {"target": self.target, "media": self.media}
        if self.method != "GET":
            fields["method"] = self.method
        if self.body is not None:
            assert isinstance(self.body, str)  # others are sent once, never planned
            fields["body"] = self.body
        for name in ("range", "may_be_absent", "only_asks", "or_get", "refused"):
            if value := getattr(self, name):
                fields[name] = value
        if with_file and self.file is not None:
            fields["file"] = {
                name: value
                for name in ("path", "size", "checksum")
                if (value := getattr(self.file, name)) is not None
            }
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Undo :meth:`to_json`."""
        fields = json.loads(text)
        if "file" in fields:
            fields["file"] = FileWish(**fields["file"])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One whole answer: its head, and its body as it was received."""

    status: int
    """The HTTP status."""
    headers: Mapping[str, str]
    """Case-insensitive."""
    url: str
    """Where the answer came from in the end, without secrets."""
    body: Body
    """The bytes, with the proof that they are all there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """The unit of work that succeeds or fails as a whole."""

    key: str
    """Stable name: the same for the same piece of the same query, always."""
    request: Request
    """What to ask."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What decoding needs beside the bytes; plain JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedItem:
    """An item with its place in a frozen plan."""

    ordinal: int
    """Position in the plan, from 0, without gaps."""
    item: Item
    parent: int | None = None
    """Ordinal of the item in whose response this one was found."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A step of an enumeration: wants the JSON bodies of these, asked side by side.

    When one of them fails for good, the enumeration meets the error where it asks.
    """

    requests: tuple[Request, ...]
    is_tolerant: bool = False
    """Whether a refusal is sent as an error in the place of its body, and goes on."""
    is_item: bool = False
    """Whether the first is what an item asks too, for which its answer is kept."""


@dataclass(frozen=True, slots=True)
class Block:
    """A step of an enumeration: items, and where to go on after them."""

    items: tuple[Item, ...]
    cursor: Json = None
    """Given back to :meth:`Source.enumerate` to go on; None when this was the last."""
    shortfall: str | None = None
    """Of the last one: what the service promised and the enumeration did not find."""


Enumeration: TypeAlias = Generator[Ask | Block, tuple[Any, ...] | None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What the bytes of one item came to."""

    batches: tuple[pa.RecordBatch, ...] = ()
    """Rows in the table's schema; text columns may be dictionary-encoded."""
    records: list[Any] | None = None
    """The rows as the service sent them, when those were asked for instead."""
    follow_up: tuple[Item, ...] = ()
    """Items that were found in this response."""
    is_split: bool = False
    """Whether the answer was cut short: then it has no rows, and the items that were
    found stand for it."""
    diagnostics: tuple[str, ...] = ()
    """Sorted distinct codes of what was odd in the bytes."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What was learned beside the rows; plain JSON."""


class Source(Protocol):
    """A table with its filters set: all that the engine knows of a service."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows."""

    @property
    def row_key(self) -> str | None:
        """Column whose value identifies a row in a dataset, if there is one."""

    def enumerate(self, cursor: Json) -> Enumeration:
        """Steps to the items, from the beginning (None) or after a block's cursor."""

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows of one item, as batches or as sent. Pure: same answer, same rows.

        *head* is the answer that *chunks* are the proved content of, for a service that
        says something of its rows in the headers or by its final URL.
        """

    def shortfall(self, rows: int, details: Iterable[Mapping[str, Any]]) -> str | None:
        """One line if the service promised more rows than came, else None."""


@runtime_checkable
class BulkSource(Source, Protocol):
    """A source whose small answers cost less when they are decoded together."""

    def decode_many(self, bodies: list[tuple[Item, bytes]]) -> list[Decoded | None]:
        """Batches of those that can be decoded together, in the order of *bodies*.

        The others give None and are left to :meth:`decode`, also those that cannot be
        decoded at all: one must not make the others wait, or fail.
        """


@runtime_checkable
class ElsewhereSource(Source, Protocol):
    """A source whose items may lie in another place than the first one."""

    def elsewhere(self, item: Item) -> tuple[str, ...]:
        """Targets to ask for after a 404, one after the other."""


@runtime_checkable
class AbsentSource(Source, Protocol):
    """A source to which it says something, too, that a thing is not there."""

    def absent(self, item: Item, *, as_records: bool) -> Decoded:
        """What a 404 comes to that is believed."""


@runtime_checkable
class LenientSource(Source, Protocol):
    """A source that keeps values aside which do not fit their columns."""

    def unparsed(self, details: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
        """How many of each column, by the details of the items."""


@runtime_checkable
class CitedSource(Source, Protocol):
    """A source whose rows are to be cited."""

    def citation(self, details: Iterable[Mapping[str, Any]]) -> str | None:
        """What is to be cited, in Markdown, by the details of the items."""


@runtime_checkable
class RereadSource(Source, Protocol):
    """A source that reads again when what came does not agree with itself."""

    def again(
        self, rows: int, details: Iterable[Mapping[str, Any]]
    ) -> tuple[Item, ...]:
        """Items to ask for when all others have ended; none when it is enough.

        Called anew when they have ended, too: sooner or later it must give none.
        """


@runtime_checkable
class LearningSource(Source, Protocol):
    """A source that does not know its columns before its first answer."""

    @property
    def notes(self) -> Mapping[str, Json] | None:
        """What was learned, to be kept beside the plan; None before that."""

    @property
    def question(self) -> Request:
        """What teaches it: the request of its first item."""

    def taught(self, chunks: Iterator[bytes], head: Response) -> Self:
        """The source that knows its columns, by the answer to its question."""

    def knowing(self, notes: Mapping[str, Json]) -> Self:
        """The source that knows what an earlier run has learned."""


@runtime_checkable
class ChainSource(RereadSource, Protocol):
    """A source each of whose items is found in the answer to the one before.

    It keeps to the limit of the plan by itself; :meth:`again` gives the item at which
    an earlier run with a lower limit ended.
    """

    @property
    def expected(self) -> int | None:
        """Items that it comes to, as far as its first answer tells."""


@runtime_checkable
class DivisibleSource(Source, Protocol):
    """A source with items that smaller ones can stand for."""

    def divided(self, item: Item, error: AsyncfetchError) -> tuple[Item, ...]:
        """Items to ask in place of one that was refused; none when it has failed."""


class Outcome(enum.StrEnum):
    """What became of an item."""

    OK = "ok"
    UNCHANGED = "unchanged"
    SPLIT = "split"
    MISSING = "missing"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether a later run leaves the item alone."""
        return self is not Outcome.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The bytes of an item that are to be stored as they came."""

    path: str
    """Below the directory of files; safe, and this item's alone."""
    data: bytes | Path | None
    """They, or the partial file that holds them; None when it is in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """How one item ended, with its rows."""

    ordinal: int
    key: str
    url: str
    outcome: Outcome
    batches: tuple[pa.RecordBatch, ...] = ()
    records: list[Any] | None = None
    """The records as sent, when those were asked for in place of batches."""
    follow_up: tuple[Item, ...] = ()
    http_status: int | None = None
    bytes: int = 0
    """Length of the body as received."""
    sha256: str | None = None
    """Of the body as received."""
    etag: str | None = None
    last_modified: str | None = None
    attempts: int = 1
    elapsed: float = 0.0
    """Seconds from the first attempt's start, waits included."""
    fetched_at: datetime
    """UTC."""
    error: Exception | None = None
    diagnostics: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)
    kept: Kept | None = None
    """What is to be stored beside the rows."""

    @property
    def rows(self) -> int:
        """Rows that came."""
        if self.records is not None:
            return len(self.records)
        return sum(batch.num_rows for batch in self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How hard a service may be asked; None means the service's own default."""

    rate: float | None = None
    """Requests per second, never exceeded."""
    concurrency: int | None = None
    """Requests in flight at one time."""
    max_wait: float | None = None
    """Longest wait for a turn, in seconds, before a call gives up."""

    def __post_init__(self) -> None:
        """Refuse what would stop everything.

        Raises
        ------
        ConfigurationError
            A limit is zero, negative or not a number.
        """
        for name, lowest in (("rate", 1e-6), ("concurrency", 1), ("max_wait", 0)):
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ConfigurationError(
                    f"expected {name} of at least {lowest:g}, got {value}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedItem:
    """One line of :attr:`Report.failed`."""

    key: str
    url: str
    error_class: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to."""

    items: Mapping[str, int]
    """Items of the dataset by outcome, those of earlier runs included."""
    rows: int
    """Rows in the dataset."""
    bytes: int
    """Bytes received by this run, as sent."""
    requests: int
    """Requests that this run put on the wire."""
    retries: int
    """Of these, how many asked again."""
    seconds: float
    parts: int
    """Parts in the dataset."""
    gate: Mapping[str, Any]
    """What the gate knows of the host at the end: the learned rate, requests in flight,
    pauses by cause, rejections, retries left."""
    failed: tuple[FailedItem, ...] = ()
    """The first 100; all are in the items table."""
    pending: int = 0
    """Items that the run did not come to, because it was asked to stop."""
    plan_complete: bool = True
    """Whether all items are known, within the plan's limit."""
    unparsed: Mapping[str, int] = field(default_factory=dict)
    """Values that did not fit their column, by column: null, and kept in ``extra``."""
    shortfall: str | None = None
    """How many rows the service promised and did not deliver, in one line."""

    def raise_for_failed(self) -> None:
        """Raise :class:`~asyncfetch.errors.ItemError` if any item failed."""
        if self.failed:
            first = self.failed[0]
            raise ItemError(
                f"{self.items.get('failed', len(self.failed))} items failed, first "
                f"{first.key}: {first.error_class}: {first.error}",
                key=first.key,
                cause=AsyncfetchError(first.error),
                report=self,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSent:
    """An event: a request left for the wire."""

    method: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """An event: an attempt failed and another will follow."""

    url: str
    attempt: int
    delay: float
    """Seconds until the next attempt."""
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """An event: the host asked everybody to wait."""

    host: str
    seconds: float
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """An event: what the gate knows of the host by now; every few seconds."""

    gate: Mapping[str, Any]
    """As :attr:`Report.gate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """An event: more of the plan is known."""

    items: int
    """Items known so far, the finished ones included."""
    ended: int
    """Items that earlier runs finished."""
    complete: bool
    """Whether there will be no more, but for those found in responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemEnded:
    """An event: an item ended (it is not committed yet)."""

    key: str
    outcome: Outcome
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """An event: these items and rows can no longer be lost."""

    items: int
    rows: int


Event: TypeAlias = (
    RequestSent | Retrying | Paused | Paced | Planned | ItemEnded | Committed
)


class Observer(Protocol):
    """Receives every event, in the event loop; must not block.

    What it raises is logged and changes nothing else.
    """

    def __call__(self, event: Event, /) -> object:
        """See the event."""

"""Which neurons of NeuroMorpho.Org: the query, and the way through its pages.

Nothing here does I/O: generators yield requests and are sent the answers.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from asyncfetch._model import Ask, Block, Enumeration, Item, Json, Request
from asyncfetch.errors import (
    ConfigurationError,
    DecodeError,
    NotFound,
    ResponseError,
)
from asyncfetch.services._paging import target
from asyncfetch.services._table import Filter, close

Record = Mapping[str, Any]

# The largest page that the service gives (its API reference); more is cut without a
# word. Sorted, so that pages do not shift into each other while they are read.
PAGE = 500
# The longest target to get; a longer list of values is posted. What the service takes
# is not on record; 8 KiB for the whole head is what servers of its kind take unless
# they are told otherwise.
LONGEST_GET = 4000
# An index that changes while it is read is read again so often.
MOST_TURNS = 3
# Characters that mean something to the search engine inside an unquoted value.
_SPECIAL = re.compile(r'[\s:,"()\[\]{}\\+\-&|!^~/]')
# Of these, what would end a pattern or make another query of it. A pattern cannot be
# quoted; "?" stands for any one character.
_ENDS_A_PATTERN = re.compile(r'[\s:,"()\[\]{}\\]')

TEXTS = tuple(
    "archive note age_scale gender age_classification brain_region cell_type species "
    "strain scientific_name stain experiment_condition protocol slicing_direction "
    "reconstruction_software objective_type original_format domain attributes "
    "magnification upload_date deposition_date shrinkage_reported "
    "shrinkage_corrected".split()
)
# The one name that is another in a query than in a record.
QUERY_NAMES = {"physical_Integrity": "Physical_Integrity"}

QUERY = (
    Filter(name="q", kind=str, doc="a query in the service's own words"),
    Filter(name="fq", kind=str, many=True, doc="further queries, all of which hold"),
)
FILTERS = (
    *QUERY,
    Filter(name="neuron_id", kind=int, many=True),
    Filter(name="neuron_name", kind=str, many=True, doc="* and ? are wildcards"),
    *(
        Filter(name=name, kind=str, many=True)
        for name in (*TEXTS, "physical_Integrity")
        if name != "note"
    ),
)


def quoted(value: Any) -> str:
    """A value of a query: quoted when it needs it, unless it is a pattern."""
    text = str(value)
    if "*" in text or "?" in text:
        return _ENDS_A_PATTERN.sub("?", text)
    if not _SPECIAL.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A paged list of the service, and how its answers are to be read."""

    path: str
    records: str
    """What its records are called below ``_embedded``."""
    sort: str
    """The field that makes pages stable."""

    def page(self, filters: Mapping[str, Any], page: int, size: int) -> Request:
        """The request for one page of what matches."""
        paging = [
            ("page", str(page)),
            ("size", str(size)),
            ("sort", f"{self.sort},asc"),
        ]
        by_field = {
            QUERY_NAMES.get(name, name): values
            for name, values in filters.items()
            if name not in {"q", "fq"}
        }
        clauses = [filters["q"]] if "q" in filters else []
        clauses += filters.get("fq", [])
        clauses += [
            f"{name}:{','.join(quoted(value) for value in values)}"
            for name, values in by_field.items()
        ]
        if not clauses:
            return Request(target=target(self.path, paging))
        query = [("q", clauses[0]), *(("fq", clause) for clause in clauses[1:])]
        get = target(f"{self.path}/select", [*query, *paging])
        if len(get) <= LONGEST_GET or len(by_field) != len(filters):
            return Request(target=get)
        return Request(
            target=target(f"{self.path}/select", paging),
            method="POST",
            body=json.dumps(by_field, separators=(",", ":"), ensure_ascii=False),
            only_asks=True,
            or_get=get,
        )

    def check_fields(
        self, filters: Mapping[str, Any]
    ) -> Generator[Ask, tuple[Any, ...] | None]:
        """See whether the service knows the fields of a query.

        Raises
        ------
        ConfigurationError
            It does not know one: fields change from release to release.
        """
        names = [QUERY_NAMES.get(one, one) for one in filters if one not in {"q", "fq"}]
        if not names:
            return
        try:
            (body,) = (yield Ask((Request(target=f"{self.path}/fields"),))) or ()
            known = field_names(body)
        except (NotFound, ResponseError):
            return  # what was asked for has its own answer
        folded = {one.casefold() for one in known}
        for name in names:
            if name.casefold() not in folded:
                raise ConfigurationError(
                    f"the service has no field {name!r} now{close(name, known)}; it "
                    f"has {', '.join(known)}"
                )

    def records_of(self, body: Any, page: int) -> list[Any]:
        """The records of a page; the service leaves the list out when it is empty.

        Raises
        ------
        DecodeError
            The answer is no page.
        """
        where = "$._embedded"
        embedded = body.get("_embedded") if isinstance(body, Mapping) else None
        if embedded is None and isinstance(body, Mapping) and "page" in body:
            return []
        if isinstance(embedded, Mapping):
            found = embedded.get(self.records)
            if found is None:  # the only list there is
                found = next((v for v in embedded.values() if type(v) is list), None)
            if isinstance(found, list):
                return found
            where += f".{self.records}"
        raise DecodeError(
            f"expected the records of page {page} - at {where}",
            path=where,
            code="not-array",
        )


NEURONS = Listing(path="/api/neuron", records="neuronResources", sort="neuron_id")


def paging(body: Any) -> tuple[int, int]:
    """Total number of elements and of pages that an answer names.

    Raises
    ------
    DecodeError
        It names none.
    """
    try:
        page = body["page"]
        return int(page["totalElements"]), int(page["totalPages"])
    except (KeyError, TypeError, ValueError):
        raise DecodeError(
            "expected page.totalElements and page.totalPages - at $.page",
            path="$.page",
            code="no-page",
        ) from None


@dataclass(slots=True, kw_only=True)
class Census:
    """How many neurons there are in all, so that an index which lost most is noticed.

    After a restart the service may serve a nearly empty index, and call itself healthy.
    What is read then would look complete.
    """

    remembered: Callable[[], dict[str, Any]]
    """The small facts of the host that are kept between processes."""
    floor: int = 0
    """So many there were when this was written."""
    accepts_fewer: bool = False
    is_taken: bool = False
    """Whether this client has looked."""

    def check(self, total: int) -> None:
        """Compare *total* with what was seen last.

        Raises
        ------
        ResponseError
            A tenth and more are gone.
        """
        self.is_taken = True
        facts = self.remembered()
        last = facts.get("neurons")
        last = last if isinstance(last, int) else self.floor
        # Neurons are withdrawn one by one; 10 % is far from that.
        if total < 0.9 * last and not self.accepts_fewer:
            raise ResponseError(
                f"expected about {last:,} neurons in the whole index, got {total:,}: "
                "it is not complete, most likely after a restart; come back later, or "
                "go on with accept_fewer=True (ASYNCFETCH_NEUROMORPHO_ACCEPT_FEWER=1)",
                is_fatal=True,
            )
        facts["neurons"] = total


def counted(
    listing: Listing,
    filters: Mapping[str, Any],
    census: Census | None,
    *,
    is_item: bool,
) -> Generator[Ask, tuple[Any, ...] | None, Any]:
    """The first page of what matches; the whole index is counted beside it, once.

    Parameters
    ----------
    is_item
        Whether an item asks for that page.

    Raises
    ------
    ConfigurationError
        Nothing matches, or the query is refused, and the service lacks a field of it.
    """
    requests = [listing.page(filters, 0, PAGE)]
    counts = census is not None and (not filters or not census.is_taken)
    if counts and filters:
        requests.append(listing.page({}, 0, 1))
    try:
        bodies = (yield Ask(tuple(requests), is_item=is_item)) or ()
    except ResponseError as error:
        if error.status == 400:
            yield from listing.check_fields(filters)
        raise
    if counts:
        assert census is not None
        census.check(paging(bodies[-1])[0])
    if filters and not paging(bodies[0])[0]:
        yield from listing.check_fields(filters)
    return bodies[0]


@dataclass(slots=True, kw_only=True)
class _Pass:
    """How far a pass over the pages has come; the cursor of an enumeration."""

    page: int = 0
    """The next one."""
    turn: int = 0
    last: int = 0
    """The largest id that is planned."""
    top: int = 0
    """The largest id of this pass."""
    seen: int = 0
    """How many different neurons came by."""
    total: int | None = None
    """How many there are, by the last page."""
    is_steady: bool = True
    """Whether all pages agree on that."""

    @classmethod
    def of(cls, cursor: Json) -> _Pass:
        """The one that a cursor stands for, also one of an earlier version."""
        given: Mapping[str, Any] = cursor if isinstance(cursor, Mapping) else {}
        known = {one.name for one in fields(cls)}
        return cls(**{name: one for name, one in given.items() if name in known})

    def see_total(self, total: int) -> None:
        """Note what a page says."""
        self.is_steady &= self.total in {None, total}
        self.total = total

    def see(self, neuron: int | None) -> None:
        """Count a record."""
        if neuron is None or neuron > self.top:
            self.seen, self.top = self.seen + 1, neuron or self.top

    @property
    def shortfall(self) -> str | None:
        """What did not come, as far as that is known."""
        if self.is_whole or self.total is None:
            return None
        return missed(self.total, None if self.seen == self.total else self.seen)

    @property
    def is_whole(self) -> bool:
        """Whether as many came as all pages say that there are."""
        return self.is_steady and self.seen == self.total


@dataclass(slots=True)
class Walk:
    """The way through the pages of neurons: each neuron once, whatever moves.

    A pass over all pages is trusted when every page names the same total and so many
    neurons came by. If not, there is another pass, which takes what is new.
    """

    filters: Mapping[str, Any]
    census: Census | None = None
    known: pa.Table | None = None
    """Records that need not be asked for, by id, in place of the service's."""
    # Eight bytes a neuron: 2.4 MB for all there are.
    _planned: array[int] = field(default_factory=lambda: array("q"))
    _odd: set[str] = field(default_factory=set)

    def blocks(
        self, cursor: Json, items_of: Callable[[Record], Iterable[Item]]
    ) -> Enumeration:
        """A block for each page; *items_of* gives the items of a record.

        A record from which it makes none becomes an item that fails by itself.
        """
        now = _Pass.of(cursor)
        before = now.last  # planned by an earlier process
        while True:
            page, turn = now.page, now.turn
            body = yield from self._page(page, turn)
            total, pages = paging(body)
            now.see_total(total)
            items: list[Item] = []
            for place, record in enumerate(NEURONS.records_of(body, page)):
                neuron = _id_of(record)
                now.see(neuron)
                if neuron is None or (
                    (turn or neuron > before) and self._is_new(neuron)
                ):
                    items += self._items(record, f"{page}.{place}", items_of)
            now.page += 1
            if now.page >= pages:
                if now.is_whole or turn + 1 == MOST_TURNS:
                    yield Block(tuple(items), shortfall=now.shortfall)
                    return
                now = _Pass(turn=turn + 1, last=now.last)
            now.last = max(now.last, self._planned[-1] if self._planned else 0)
            yield Block(tuple(items), asdict(now))

    def _page(
        self, page: int, turn: int
    ) -> Generator[Ask, tuple[Any, ...] | None, Any]:
        if self.known is not None and not turn:
            return _as_page(self.known, page)
        if not page and not turn:
            return (
                yield from counted(NEURONS, self.filters, self.census, is_item=False)
            )
        (body,) = (yield Ask((NEURONS.page(self.filters, page, PAGE),))) or ()
        return body

    def _items(
        self, record: Any, place: str, items_of: Callable[[Record], Iterable[Item]]
    ) -> Iterator[Item]:
        neuron = _id_of(record)
        try:
            if neuron is None:
                raise ConfigurationError("expected a record with a neuron_id, got none")
            items = tuple(items_of(record))
        except (ConfigurationError, KeyError, TypeError, AttributeError) as error:
            key = f"record={place}" if neuron is None else f"neuron={neuron}"
            if key in self._odd:
                return
            self._odd.add(key)
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            yield refused(key, what)
            return
        yield from items

    def _is_new(self, neuron: int) -> bool:
        planned = self._planned
        if not planned or neuron > planned[-1]:
            planned.append(neuron)
            return True
        place = bisect_left(planned, neuron)
        if planned[place] == neuron:
            return False
        planned.insert(place, neuron)
        return True


def refused(key: str, why: str) -> Item:
    """An item that fails by itself, for a record that is not what it should be."""
    text = f"this record of the service cannot be used: {why}"
    return Item(key=key, request=Request(target="/", refused=text))


def all_unparsed(details: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
    """How many values of each column did not fit it, by the details of items."""
    found: Counter[str] = Counter()
    for detail in details:
        found.update(detail.get("unparsed", {}))
    return dict(sorted(found.items()))


def field_names(body: Any) -> list[str]:
    """The names in an answer that holds one list of them.

    Raises
    ------
    DecodeError
        It holds none.
    """
    values = body.values() if isinstance(body, Mapping) else ()
    names = next((one for one in values if isinstance(one, list)), None)
    if names is None:
        raise DecodeError("expected a list of fields - at $", code="not-array")
    return list(map(str, names))


def missed(total: int, came: int | None, what: str = "neurons") -> str:
    """The line that says what did not come; None when that cannot be known."""
    if came is None:
        return (
            f"the service's index changed each time it was read: some of its {total} "
            f"{what} may not be among those that came"
        )
    return (
        f"the service names {total} {what} and {came} distinct ones came: its index "
        "changed while it was read"
    )


def _as_page(known: pa.Table, page: int) -> dict[str, Any]:
    """A page of records that are here, as the service would give it."""
    records = known.slice(page * PAGE, PAGE).to_pylist()
    total = known.num_rows
    return {
        "_embedded": {NEURONS.records: records},
        "page": {"totalElements": total, "totalPages": -(-total // PAGE)},
    }


def _id_of(record: Any) -> int | None:
    found = record.get("neuron_id") if isinstance(record, Mapping) else None
    return found if type(found) is int and 0 < found < 2**63 else None

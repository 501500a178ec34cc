"""NeuroVault's lists: what of them is asked, and which records match.

The server ignores filters, so they are applied to the records that come. It has no
order for its lists of everything, so that pages repeat records and leave others out;
the images of one collection come by id. So images are found through their collections.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from asyncfetch._decode import EXTRA, JSON, as_json, batch_of, document
from asyncfetch._model import (
    Ask,
    Block,
    Decoded,
    Enumeration,
    Item,
    Json,
    Request,
    Response,
)
from asyncfetch._neurovault_schema import NULLS, PAGE, UNITS
from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DecodeError,
    IntegrityError,
)
from asyncfetch.services._paging import target
from asyncfetch.services._table import Filter, column, members
from asyncfetch.services._windows import Seen, Window, walk

Record = Mapping[str, Any]

_TYPES: Mapping[str, pa.DataType] = {
    "i": pa.int64(),
    "f": pa.float64(),
    "b": pa.bool_(),
    "s": pa.string(),
    "t": pa.timestamp("us", "UTC"),
    "j": JSON,
}
_FILTERS: Mapping[str, type] = {"i": int, "f": float, "b": bool, "s": str, "t": str}
# Texts of people, with commas in them.
_FREE = re.compile(r"name|description|authors|title|criteria|conditions|definition$")
# Looks at a list without order, each cut in other places: records of a window at most,
# and as a share of the list.
_CUTS = (
    (PAGE, 1.0),
    (700, 0.37),
    (450, 0.23),
    (300, 0.61),
    (850, 0.29),
    (550, 0.17),
)
# So often, while they find what those before did not.
_ROUNDS = 3
# Full pages of images that are read for the name of a collection: all of them are as
# much as everything else together.
_PAGES = 8
# Looks at all images for those of a collection that no look at a list has shown.
_LOOKS_FOR_STRAYS = 8
# Looks in a row that find nothing new: what is missing then cannot be read. Where the
# order is new each time it takes a round of them.
_STALE = 2
# Share of records that a first look may miss: those that came or were moved meanwhile.
# Where it missed more, no window will hold again what it held.
_MOVED = 0.01
# Records that are asked for one by one rather than by the pages that they are on.
_FEW = 20
_DOI = re.compile(r"^(?:https?://(?:dx\.)?doi\.org/|doi:)\s*", re.IGNORECASE)

# Of the collection that an image belongs to.
OF_COLLECTION = {"DOI": "DOI", "owner": "owner", "collection_name": "name"}


def schema_of(kinds: Mapping[str, str]) -> pa.Schema:
    """Columns of records with keys of those kinds."""
    fields = [
        column(name, _TYPES[kind], unit=UNITS.get(name), nullable=name != "id")
        for name, kind in kinds.items()
    ]
    about = "fields of the users' own, and values that are not as they should"
    return pa.schema([*fields, column(EXTRA, JSON, about)])


def filters_of(kinds: Mapping[str, str], *, of_images: bool) -> tuple[Filter, ...]:
    """Filters of a table: every key, and what else can be compared."""
    known = [
        Filter(
            name=name,
            kind=_FILTERS[kind],
            many=not _FREE.search(name),
            or_many=bool(_FREE.search(name)),
            doc="as sent, or how it begins" if kind == "t" else "",
            alias="doi" if name == "DOI" else None,
        )
        for name, kind in kinds.items()
        if kind != "j"
    ]
    if of_images:
        doc = "of the collection"
        known += [
            Filter(name="DOI", kind=str, many=True, doc=doc, alias="doi"),
            Filter(name="owner", kind=int, many=True, doc=doc),
            Filter(name="collection_name", kind=str, or_many=True, doc=doc),
        ]
    doc = "a field of the users' own: NAME=VALUE, or a dict"
    known.append(Filter(name=EXTRA, kind=str, or_many=True, doc=doc))
    doc = "a time; records that were not modified since are left out"
    known.append(Filter(name="modified_since", kind=str, doc=doc))
    return tuple(known)


def checked(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Filters as texts and numbers: a dict of own fields and times as JSON has them.

    Raises
    ------
    ConfigurationError
        One of them cannot be compared with anything.
    """
    given = {k: v for k, v in filters.items() if v is not None}
    own = given.get(EXTRA)
    if isinstance(own, Mapping):
        given[EXTRA] = as_json(dict(sorted(own.items())))
    for one in members(given.get(EXTRA, "{}")):
        if not str(one).startswith("{") and "=" not in str(one):
            raise ConfigurationError(f"expected NAME=VALUE for extra, got {one!r}")
    since = given.get("modified_since")
    if since is not None:
        text = since.isoformat() if hasattr(since, "isoformat") else str(since)
        try:
            instant(text)
        except ValueError:
            raise ConfigurationError(
                f"expected a time like 2024-05-01 or 2024-05-01T12:00:00Z for "
                f"modified_since, got {text!r}"
            ) from None
        given["modified_since"] = text
    if "collection_id" in given:
        for one in members(given["collection_id"]):
            if isinstance(one, str) and not one.strip().replace(",", "").isdecimal():
                raise ConfigurationError(
                    "expected the number of a collection as collection_id; the token "
                    "of a private one is a secret, and would lie in the plan: pass it "
                    "as private= to NeuroVault, and ask by the number"
                )
    return given


def instant(text: str) -> float:
    """Seconds of the epoch; a time without a zone is UTC."""
    found = dt.datetime.fromisoformat(text)
    if found.tzinfo is None:
        found = found.replace(tzinfo=dt.UTC)
    return found.timestamp()


def matches(record: Record, filters: Mapping[str, Json]) -> bool:
    """Whether a record is what all *filters* name."""
    return all(_is(record, name, wanted) for name, wanted in filters.items())


def _is(record: Record, name: str, wanted: Json) -> bool:
    if name == EXTRA:
        return all(_has_own(record, one) for one in members(wanted))
    if name == "modified_since":
        try:
            return instant(str(record.get("modify_date"))) >= instant(str(wanted))
        except ValueError:
            return True  # of unknown age
    value = record.get(name)
    several = members(wanted)
    if value is None:
        return False
    if name == "DOI":
        return plain_doi(value) in {plain_doi(one) for one in several}
    if name.endswith("_date"):
        return str(value).startswith(tuple(map(str, several)))
    if isinstance(value, str) and not isinstance(several[0], str):
        return value.strip() in {str(one) for one in several}
    # True is no 1: an id is never a flag, but a flag may have been asked for.
    return any(
        value == one and isinstance(value, bool) is isinstance(one, bool)
        for one in several
    )


def plain_doi(text: object) -> str:
    """A DOI by itself; upper and lower case are the same in it."""
    return _DOI.sub("", str(text).strip()).casefold()


def _has_own(record: Record, text: object) -> bool:
    """Whether a record has the fields that a text names."""
    words = str(text)
    if words.startswith("{"):
        pairs: Any = json.loads(words)
    else:
        name, _, value = words.partition("=")
        pairs = {name: value}
    return all(
        name in record
        and any(
            record[name] == one or _text(record[name]) == _text(one)
            for one in members(value)
        )
        for name, value in pairs.items()
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else as_json(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Records of one of the lists, that match."""

    path: str
    """Of the list, such as ``/collections/``."""
    kinds: Mapping[str, str]
    filters: Mapping[str, Json]
    schema: pa.Schema
    row_key: str | None = "id"
    most: int | None = None
    """Rows that are wanted, where these are fewer than a page holds."""

    def enumerate(self, _cursor: Json) -> Enumeration:
        """Pages that hold every record; which ones do is found out first."""
        ids = self.filters.get("id")
        if isinstance(ids, list):
            yield Block(tuple(map(self._one, ids)))
            return
        collections = self.filters.get(self._of)
        if isinstance(collections, list):
            kind = self.path.strip("/")
            yield Block(
                tuple(
                    self.item(Window(path=f"/collections/{number}/{kind}/"))
                    for number in collections
                )
            )
            return
        if self.most is not None and not self.filters:
            yield Block((self.item(Window(path=self.path, limit=self.most)),))
            return
        query = _probe(self.filters) if self.path == "/collections/" else {}
        found, count = yield from _asked_first(self.path, query, self.filters)
        if found is not None:
            yield Block((self._one(found["id"]),))
            return
        listed = yield from _all_of(
            self.path, count, lambda one: matches(one, self.filters) or None
        )
        is_few = bool(self.filters) and len(listed.known) <= _FEW
        if is_few or not listed.is_steady:
            items = [self._one(number) for number in sorted(listed.known)]
        else:
            items = [self.item(one) for one in listed.windows()]
        if is_few and query and items:  # no two have the same
            yield Block(tuple(items))
            return
        unread = [self.item(one) for one in listed.unread]
        if listed.missing > len(unread) and self.path == "/collections/":
            # Where they are in the list is not known; their images may tell.
            strays = yield from _strays(listed, most=_PAGES)
            unread = [self._one(number) for number in strays]
        if not listed.is_steady:  # whose count is to be compared all the same
            one = self.item(Window(path=self.path, limit=1, is_last=False))
            context = {**one.context, "seen": listed.n_seen}
            unread.append(replace(one, context=context))
        yield Block((*items, *unread))

    @property
    def _of(self) -> str:
        return "collection" if "collection" in self.kinds else "collection_id"

    def _one(self, number: Any) -> Item:
        request = Request(target=f"{self.path}{number}/", may_be_absent=True)
        return Item(key=f"id={number}", request=request, context={"one": True})

    def item(self, window: Window) -> Item:
        """The item that asks for a window."""
        return Item(
            key=key_of(window),
            request=window.request,
            context={"window": window.to_json()},
        )

    def divided(self, item: Item, error: AsyncfetchError) -> tuple[Item, ...]:
        """Halves of a page that the server cannot give."""
        window = _window_of(item)
        return () if window is None else tuple(map(self.item, window.divided(error)))

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows of one page that match; the last page may lead on."""
        body = document(chunks)
        window = _window_of(item)
        if window is None:
            return self._decoded([body], as_records)
        records, count, follow = window.read(body)
        return replace(
            self._decoded(records, as_records),
            detail={
                "of": window.path,
                "count": count,
                "came": item.context.get("seen", len(records)),
            },
            follow_up=tuple(map(self.item, follow)),
        )

    def _decoded(self, records: list[Any], as_records: bool) -> Decoded:
        for place, one in enumerate(records):
            if not isinstance(one, Mapping) or type(one.get("id")) is not int:
                path = f"$.results[{place}].id"
                raise DecodeError(f"expected an id - at {path}, got none", path=path)
        found = [one for one in records if matches(one, self._of_record)]
        if as_records:
            return Decoded(records=found)
        rows = (plain_record(one, self.kinds) for one in found)
        batch, codes = batch_of(rows, self.schema, at="$.results", lenient=True)
        return Decoded(batches=(batch,), diagnostics=codes)

    @property
    def _of_record(self) -> Mapping[str, Json]:
        """Filters that a record itself answers."""
        return self.filters

    def shortfall(self, rows: int, details: Iterable[Mapping[str, Any]]) -> str | None:
        """Compare distinct records with what was counted, list by list."""
        counts: dict[str, int] = {}
        came: Counter[str] = Counter()
        for one in details:
            if "of" in one:
                counts[one["of"]] = max(one["count"], counts.get(one["of"], 0))
                came[one["of"]] += one["came"]
        total = sum(counts.values())
        # A list without order comes twice: then rows tell, if none was left out.
        got = sum(min(came[path], count) for path, count in counts.items())
        if len(counts) == 1 and not self.filters:
            got = rows
        if got >= total:
            return None
        name = self.path.strip("/")
        return (
            f"the service counts {total} {name} and {got} distinct ones came: some "
            "cannot be read, or they changed while they were read"
        )


def key_of(window: Window) -> str:
    """A name for a window, always the same."""
    found = re.match(r"/collections/(\d+)/", window.path)
    words = [f"collection={found[1]}"] if found else []
    words.append(f"offset={window.offset}")
    if window.limit != PAGE:
        words.append(f"limit={window.limit}")
    return " ".join(words)


def _window_of(item: Item) -> Window | None:
    fields = item.context.get("window")
    return None if fields is None else Window.from_json(fields)


def plain_record(record: Record, kinds: Mapping[str, str]) -> dict[str, Any]:
    """A record in which texts that stand for nothing are null.

    Only whole texts, and never a name: somebody may have called it so. What users added
    stays as it is.
    """
    return {
        name: None
        if isinstance(value, str)
        and name in kinds
        and name != "name"
        and value.strip().casefold() in NULLS
        else value
        for name, value in record.items()
    }


# --- collections that are wanted ------------------------------------------------------

Steps = Generator[Ask, tuple[Any, ...] | None, Any]


def _probe(filters: Mapping[str, Json]) -> dict[str, str]:
    """A filter that the server may honour, and that leads to one collection."""
    for name in ("DOI", "name"):
        several = members(filters[name]) if name in filters else []
        if len(several) == 1:
            return {name: str(several[0])}
    return {}


def _asked_first(
    path: str, query: Mapping[str, str], filters: Mapping[str, Json]
) -> Steps:
    """The record that a filter leads to, if it does; and how many there are."""
    first = Request(target=target(path, {**query, "limit": "1"}))
    (body,) = (yield Ask((first,), is_tolerant=True)) or (None,)
    if isinstance(body, AsyncfetchError):  # of the first record of all, maybe
        return None, None
    try:
        records, count, _ = Window(path=path, limit=1, is_last=False).read(body)
    except IntegrityError:  # an empty page: what there is shows when it is read
        return None, None
    is_honoured = bool(query) and count == len(records) == 1
    if is_honoured and matches(records[0], filters):
        return records[0], count
    # 0: honoured, letter by letter; whether another spelling is there is not known.
    return None, count if count > 1 or not query else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A list without order, after as many looks as it needed."""

    known: Mapping[int, Any]
    """What was kept of the records that are wanted, by id."""
    others: frozenset[int]
    """Ids of the other ones."""
    seen: tuple[tuple[Window, frozenset[int]], ...]
    """Windows that were read, each with the ids in it."""
    unread: tuple[Window, ...]
    """Records that the server cannot give, where their places are known."""
    missing: int
    """Records that are counted and were not seen."""
    is_steady: bool
    """Whether its order is about the same from look to look."""

    @property
    def n_seen(self) -> int:
        """Records that were seen."""
        return len(self.known) + len(self.others)

    def windows(self) -> Iterator[Window]:
        """Windows that hold everything that is wanted between them."""
        left = set(self.known)
        for window, ids in self.seen:
            if left & ids:
                left -= ids
                yield replace(window, is_last=False)


def _all_of(path: str, count: int | None, keep: Any) -> Steps:
    """All records of a list without order, looked at again until they are all there.

    Each look cuts the list in other places. It ends when as many are known as are
    counted, or when what is missing is known to be what cannot be read.

    Parameters
    ----------
    keep
        From a record, what is to be kept of it; None when it is not wanted.
    """
    known: dict[int, Any] = {}
    others: set[int] = set()
    seen: list[tuple[Window, frozenset[int]]] = []
    unread: list[Window] = []
    stale = first = n_seen = 0
    for look, (cap, share) in enumerate(_CUTS * _ROUNDS, 1):
        total = count or cap
        step = min(cap, max(1, math.ceil(share * total)))
        window = Window(path=path, limit=step if share < 1 else PAGE, likely=count)
        looked: list[Seen] = yield from walk(
            [window], keep=lambda one: (one["id"], keep(one))
        )
        before = n_seen
        for one in looked:
            known |= {number: kept for number, kept in one.records if kept is not None}
            others |= {number for number, kept in one.records if kept is None}
            if one.error is None:
                ids = frozenset(number for number, _ in one.records)
                seen.append((one.window, ids))
        bad = [one.window for one in looked if one.error is not None]
        unread = unread or bad
        count = max([one.count for one in looked] + [count or 0])
        n_seen = len(known) + len(others)
        first = first or n_seen
        missing = count - n_seen
        stale = stale + 1 if n_seen == before else 0
        is_steady = n_seen - first <= _MOVED * count
        is_stale = stale >= (_STALE if is_steady else len(_CUTS))
        is_explained = bool(unread) and (missing == 1 or is_stale)
        is_tried = look >= len(_CUTS) and (is_steady or is_stale)
        if missing <= 0 or is_explained or is_tried:
            break
    return Listed(
        known=known,
        others=frozenset(others),
        seen=tuple(seen),
        # The place of one that cannot be read differs from look to look.
        unread=tuple(unread[: max(0, missing)]) if is_steady else (),
        missing=max(0, missing),
        is_steady=is_steady,
    )


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection, as far as its images are concerned."""

    number: int
    likely: int | None
    """Images and more that it says to have."""


def _int(number: Json) -> int:
    assert type(number) is int  # checked with the filters
    return number


def collections(filters: Mapping[str, Json]) -> Steps:
    """Collections by number, in which what *filters* name may be; and what is unread.

    Gives a list of :class:`Collection`, and items for collections that the server
    cannot give, whose images may well be there.
    """
    numbers = filters.get("collection_id")
    of = {own: filters[name] for name, own in OF_COLLECTION.items() if name in filters}
    if isinstance(numbers, list) and not of:
        return [Collection(number, None) for number in sorted(map(_int, numbers))], ()
    since = {k: v for k, v in filters.items() if k == "modified_since"}

    def keep(record: Record) -> Collection | None:
        size = record.get("number_of_images")
        # A collection is modified whenever an image in it is.
        is_wanted = size != 0 and matches(record, {**of, **since})
        if isinstance(numbers, list) and record["id"] not in numbers:
            is_wanted = False
        return Collection(record["id"], size) if is_wanted else None

    path = "/collections/"
    found, count = yield from _asked_first(path, _probe(of), of)
    if found is not None:
        return list(filter(None, [keep(found)])), ()
    listed = yield from _all_of(path, count, keep)
    wanted = list(listed.known.values())
    strays: list[int] = []
    if listed.missing and not of and not isinstance(numbers, list):
        strays = yield from _strays(listed)
        wanted += [Collection(number, None) for number in strays]
    unread = [
        _unreadable(Request(target=f"{path}{one}/"), f"id={one}") for one in strays
    ]
    rest = max(0, listed.missing - len(strays))
    if rest and not (wanted and _probe(of)):  # else it was found: no two have the same
        unread += _unfound(listed, rest, seen=listed.n_seen + len(strays))
    return sorted(wanted, key=lambda one: one.number), unread


def _strays(listed: Listed, *, most: float = math.inf) -> Steps:
    """Collections that were not seen, by their images, of which *most* pages are."""
    known = listed.others.union(listed.known)
    found: set[int] = set()
    pages = 0

    def is_enough(one: Seen) -> bool:
        nonlocal pages
        pages += len(one.records) > PAGE // 2
        found.update(set(one.records) - known)
        return len(found) >= listed.missing or pages >= most

    for _ in range(1 if listed.is_steady else _LOOKS_FOR_STRAYS):
        yield from walk(
            [Window(path="/images/")],
            keep=lambda record: record["collection_id"],
            is_enough=is_enough,
        )
        if len(found) >= listed.missing or pages >= most:
            break
    return sorted(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images(Lists):
    """Records of images that match, collection by collection."""

    path: str = "/images/"

    def enumerate(self, _cursor: Json) -> Enumeration:
        """The pages of each collection; and the collections that cannot be read."""
        ids = self.filters.get("id")
        if isinstance(ids, list):
            yield Block(tuple(map(self._one, ids)))
            return
        listed, unread = yield from collections(self.filters)
        items = [
            self.item(
                Window(path=f"/collections/{one.number}/images/", likely=one.likely)
            )
            for one in listed
        ]
        yield Block((*items, *unread))

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows of one page that match."""
        if item.context.get("collections"):
            return readable_again(item, document(chunks), self.item)
        return super(Images, self).decode(item, chunks, head, as_records=as_records)

    @property
    def _of_record(self) -> Mapping[str, Json]:
        return {k: v for k, v in self.filters.items() if k not in OF_COLLECTION}


def images_of(number: int, likely: int | None) -> Window:
    """The images of a collection, by id."""
    return Window(path=f"/collections/{number}/images/", likely=likely)


def _unreadable(request: Request, key: str, **context: Json) -> Item:
    """An item for a collection that the server cannot give: it says so by failing."""
    return Item(
        key=f"collections {key}",
        request=request,
        context={"collections": True, **context},
    )


def _unfound(listed: Listed, rest: int, *, seen: int) -> Iterator[Item]:
    """Items for *rest* collections of which nothing is known, so that they are named.

    Parameters
    ----------
    seen
        Collections of which something is.
    """
    if rest <= len(listed.unread):
        for window in listed.unread[:rest]:
            yield _unreadable(window.request, key_of(window))
        return
    window = Window(path="/collections/", limit=1)
    yield _unreadable(window.request, "unseen", seen=seen)


def readable_again(item: Item, body: Any, made: Callable[[Window], Item]) -> Decoded:
    """What a collection leads to that the server can give by now.

    Raises
    ------
    DecodeError
        There still are more collections than were seen.
    """
    seen = item.context.get("seen")
    if seen is not None and body["count"] > seen:
        raise DecodeError(
            f"expected the {seen} collections that were seen, the service counts "
            f"{body['count']}: what is in the others is not known, a new dataset "
            "looks for them again - at $.count",
            path="$.count",
        )
    records = body.get("results", [body])
    follow = [
        made(images_of(one["id"], one.get("number_of_images"))) for one in records
    ]
    return Decoded(follow_up=tuple(follow))

"""Lists of Alyx, exactly: by ranges of primary keys, and never by offset.

Most tables of the server have no order, so that pages by offset repeat rows and leave
others out, while their number is right. An answer to a range of keys is one statement
of SQL: it holds every row of its range once, or says that there are more than it holds,
and then the range is divided. A filter ``django`` also makes the server's rows distinct
where a join would multiply them.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa

from asyncfetch import _engine
from asyncfetch._alyx_schema import PAGE, UNITS, Endpoint
from asyncfetch._decode import EXTRA, JSON, batch_of, document, records_at
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
from asyncfetch.errors import ConfigurationError, DecodeError, IntegrityError
from asyncfetch.services._lookups import django, encoded, joined, on_json, pairs_of
from asyncfetch.services._paging import segment, target
from asyncfetch.services._table import Filter, Table, column, members

# Rows that a range is made for. Ids are random, so that their number scatters by its
# root; one in many thousand ranges of 700 has more than the 1000 that a page holds.
ROWS_PER_ITEM = 700
# gunicorn takes a request line of 4094 characters, and a host name may come before the
# path; more is a 414.
MAX_TARGET = 3900
# Bounds of a range in the filter: 75 characters each, quoted.
_ROOM_FOR_RANGE = 160
_KEYS = 1 << 128

_TYPES: Mapping[str, Any] = {
    "s": pa.string(),
    "i": pa.int64(),
    "f": pa.float64(),
    "b": pa.bool_(),
    "t": pa.timestamp("us"),
    "l": pa.list_(pa.string()),
    "j": JSON,
}
KINDS: Mapping[str, type] = {"s": str, "i": int, "f": float, "b": bool}
# Values whose text is what the service takes.
_IN_WORDS = (uuid.UUID, dt.date)
# Lists that the service takes as texts with commas.
_LISTS = frozenset("users dataset_types datasets".split())
# Tables that have no id of their own in their records: their URL ends with it.
_ID_IN_URL = "url"


def schema_of(endpoint: Endpoint) -> pa.Schema:
    """Columns of an endpoint's table."""
    fields = [
        column(
            name,
            _TYPES[kind],
            "at the end of the URL" if _lacks_id(endpoint) and name == "id" else "",
            unit=UNITS.get(name),
            nullable=name != endpoint.identity,
        )
        for name, kind in endpoint.columns.items()
    ]
    extra = column(
        EXTRA, JSON, "unknown fields, and values that are not as they should"
    )
    return pa.schema([*fields, extra])


def filters_of(endpoint: Endpoint) -> tuple[Filter, ...]:
    """Filters of an endpoint's table."""
    return tuple(
        Filter(
            name=name,
            kind=KINDS[kind],
            many=name in _LISTS,
            doc="NAME__LOOKUP,VALUE pairs, or a dict" if name == "django" else "",
        )
        for name, kind in endpoint.filters.items()
    )


def _lacks_id(endpoint: Endpoint) -> bool:
    return endpoint.identity == _ID_IN_URL


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The rows of an endpoint that match."""

    endpoint: Endpoint
    filters: Mapping[str, Json]
    schema: pa.Schema
    asks_first: bool = True
    """Whether it looks how many rows there are before it asks for any."""
    most: int | None = None
    """Rows that are wanted, where these are fewer than a page holds."""
    is_apart: bool = False
    """Whether rows are told apart answer by answer, and no key of them is kept."""

    @property
    def row_key(self) -> str | None:
        """What tells a row from all others.

        Ranges of keys have no row in common, and a range is one answer.
        """
        if self.is_apart and self._has_ranges and len(self._queries()) == 1:
            return None
        return self.endpoint.identity

    def enumerate(self, _cursor: Json) -> Enumeration:
        """A page for each query, or ranges of keys where a page would not hold it."""
        queries = range(len(self._queries()))
        counts = [0 for _ in queries]
        if self.asks_first and self.endpoint.is_large and self.most is None:
            asked = [self._request({"query": query}, limit=1) for query in queries]
            bodies = (yield Ask(tuple(asked))) or ()
            counts = [_count(body, ()) for body in bodies]
        items: list[Item] = []
        for query, count in zip(queries, counts, strict=True):
            whole = {"query": query} if len(queries) > 1 else {}
            if count > PAGE and self._has_ranges:
                items += self._ranges(whole, 0, _KEYS, _shards(count))
            else:
                items.append(self.item(whole))
        yield Block(tuple(items))

    @property
    def _has_ranges(self) -> bool:
        return self.endpoint.has_django

    def _queries(self) -> list[str]:
        """The filter ``django``, in as many parts as a request line needs."""
        text = str(self.filters.get("django", ""))
        room = MAX_TARGET - _ROOM_FOR_RANGE
        # Quoting makes nothing shorter, and takes long for thousands of ids.
        if len(text) <= room and len(self._target(text)) <= room:
            return [text]
        parts = _in_parts(text, room - len(self._target("")))
        if parts is None:
            raise ConfigurationError(
                f"expected filters of {self.endpoint.name} that fit a request line of "
                f"{MAX_TARGET} characters, got {len(self._target(text))}: ask for less "
                "at a time"
            )
        return list(parts)

    def _target(self, text: str, **paging: int) -> str:
        pairs = [
            (name, _sent(value))
            for name, value in self.filters.items()
            if name != "django"
        ]
        if text:
            pairs.append(("django", text))
        pairs += [(name, str(value)) for name, value in paging.items()]
        return target(f"/{self.endpoint.name}", pairs)

    def _request(self, context: Mapping[str, Any], limit: int = PAGE) -> Request:
        text = self._queries()[context.get("query", 0)]
        paging = {"limit": limit}
        if "offset" in context:
            paging["offset"] = context["offset"]
        if "low" in context:
            text = ",".join(filter(None, [text, self._bounds(text, context)]))
        return Request(target=self._target(text, **paging))

    def _bounds(self, text: str, context: Mapping[str, Any]) -> str:
        taken = {key for key, _ in pairs_of(text)}
        name = next(
            (n for n in ("pk", "id") if not {f"{n}__gte", f"{n}__lt"} & taken), None
        )
        if name is None:
            raise ConfigurationError(
                "expected bounds of pk or of id in a filter, got some of both"
            )
        pairs = []
        for lookup, end in (("gte", context["low"]), ("lt", context["high"])):
            if end is not None:
                bound = encoded(end) if self.endpoint.keys == "int" else _uuid(end)
                pairs.append((f"{name}__{lookup}", bound))
        return joined(pairs)

    def item(self, context: Mapping[str, Any]) -> Item:
        """The item that asks for the rows of a context: a query, a range, a page."""
        words = [f"{name}={value}" for name, value in context.items()]
        return Item(
            key=" ".join(words) or "all",
            request=self._request(context, min(PAGE, self.most or PAGE)),
            context=context,
        )

    def _ranges(
        self, context: Mapping[str, Any], low: int, high: int, parts: int
    ) -> Iterator[Item]:
        """Items of *parts* ranges of keys that are as wide as each other."""
        edges = [low + (high - low) * n // parts for n in range(parts + 1)]
        for start, end in itertools.pairwise(edges):
            ends = {
                "low": f"{start:032x}",
                "high": f"{end:032x}" if end < _KEYS else None,
            }
            yield self.item({**context, **ends})

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows of one answer; one that does not hold them all leads to others."""
        return self.read(item, document(chunks), as_records=as_records)

    def read(self, item: Item, body: Any, *, as_records: bool) -> Decoded:
        """As :meth:`decode`, of a body that is decoded already."""
        if item.context.get("one"):
            return self._decoded([body], as_records)
        records = body if isinstance(body, list) else records_at(body, ("results",))
        count = _count(body, records)
        is_cut = count > len(records)
        detail: dict[str, Any] = {"count": count}
        if isinstance(body, Mapping) and body.get("detail"):
            detail["notice"] = str(body["detail"])
        is_multiplied = "low" not in item.context and self._repeats(records)
        if self.most is not None and not (is_multiplied and self._has_ranges):
            return self._decoded(records, as_records)
        if self._has_ranges:
            if is_cut or is_multiplied:
                return Decoded(is_split=True, follow_up=self._halves(item, body))
            if self._repeats(records):
                key = self.endpoint.identity
                records = list({one.get(key): one for one in records}.values())
            return replace(self._decoded(records, as_records), detail=detail)
        return self._paged(item, records, count, as_records=as_records)

    def _paged(
        self, item: Item, records: list[Any], count: int, *, as_records: bool
    ) -> Decoded:
        """A page of a table that knows no ranges; the first leads to the others."""
        found = self._decoded(records, as_records)
        if "offset" in item.context:
            return found
        offsets = range(len(records), count, len(records)) if records else ()
        more = (self.item({**item.context, "offset": one}) for one in offsets)
        return replace(found, detail={"count": count}, follow_up=tuple(more))

    def _repeats(self, records: list[Any]) -> bool:
        key = self.endpoint.identity
        return key is not None and len({one.get(key) for one in records}) < len(records)

    def _halves(self, item: Item, body: Mapping[str, Any]) -> tuple[Item, ...]:
        """Items that stand for one whose rows no answer holds."""
        context = item.context
        records, count = body["results"], body["count"]
        outer = {name: one for name, one in context.items() if name == "query"}
        if self.endpoint.keys == "int":
            low, high = context.get("low"), context.get("high")
            ids = sorted(one["id"] for one in records)
            middle = ids[len(ids) // 2] if ids else None
            if middle is None or middle == low:
                raise self._stuck(item, count)
            return (
                self.item({**outer, "low": low, "high": middle}),
                self.item({**outer, "low": middle, "high": high}),
            )
        low = int(context.get("low") or "0", 16)
        high = int(context["high"], 16) if context.get("high") else _KEYS
        if high - low < 2:
            raise self._stuck(item, count)
        # The rows that a join multiplies are fewer than their number.
        is_whole = count <= len(records) or self.most is not None
        parts = 1 if is_whole else _shards(count)
        if "low" in context:
            parts = max(2, parts)
        return tuple(self._ranges(outer, low, high, min(parts, high - low)))

    def _stuck(self, item: Item, count: int) -> IntegrityError:
        return IntegrityError(
            f"expected at most {PAGE} {self.endpoint.name} in the smallest range, "
            f"{item.key}, the service counts {count}"
        )

    def _decoded(self, records: list[Any], as_records: bool) -> Decoded:
        key = self.endpoint.identity
        for place, record in enumerate(records):
            if key is not None and not (
                isinstance(record, Mapping) and record.get(key) is not None
            ):
                raise DecodeError(
                    f"expected {key} in each of {self.endpoint.name}, got none - at "
                    f"$.results[{place}]",
                    path=f"$.results[{place}].{key}",
                )
        if as_records:
            return Decoded(records=records)
        rows = map(self._row, records)
        batch, codes = batch_of(rows, self.schema, at="$.results", lenient=True)
        return Decoded(batches=(batch,), diagnostics=codes)

    def _row(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        row = dict(record)
        if _lacks_id(self.endpoint):
            row["id"] = row[_ID_IN_URL][-36:]
        for name, kind in self.endpoint.columns.items():
            if kind == "b" and type(row.get(name)) is int:
                row[name] = bool(row[name])  # a number of tags
        return row

    def shortfall(self, rows: int, details: Iterable[Mapping[str, Any]]) -> str | None:
        """Compare distinct rows with what the answers counted, each for its range."""
        total = sum(detail.get("count", 0) for detail in details)
        if rows >= total or self.most is not None or len(self._queries()) > 1:
            return None
        return (
            f"the service counts {total} {self.endpoint.name} and {rows} distinct ones "
            "came: a filter repeats rows, or they changed while they were read"
        )


@functools.lru_cache(maxsize=16)
def _in_parts(text: str, room: int) -> tuple[str, ...] | None:
    """Filters whose rows together are those of *text*, by its longest list of values.

    None when they cannot be made so short.
    """
    pairs = pairs_of(text)
    lists = [
        (len(value), place)
        for place, (key, value) in enumerate(pairs)
        if key.endswith("__in") and not key.startswith("~") and value[:1] in {"[", "("}
    ]
    if not lists:
        return None
    place = max(lists)[1]
    key, value = pairs[place]
    members = value.strip("[]()").split(",")

    def made(some: list[str]) -> str:
        one = (key, f"[{','.join(some)}]")
        return joined([*pairs[:place], one, *pairs[place + 1 :]])

    step = len(members)
    while step:
        texts = [made(members[n : n + step]) for n in range(0, len(members), step)]
        longest = max(map(_sent_length, texts))
        if longest <= room:
            return tuple(texts)
        step = min(step - 1, step * room // longest)
    return None


def _sent_length(text: str) -> int:
    return len(target("", [("&django", text)]))


def _count(body: Any, records: Any) -> int:
    if isinstance(body, list):
        return len(body)
    count = body.get("count", len(records))
    if type(count) is not int:
        raise DecodeError(
            f"expected a number - at $.count, got {count!r}", path="$.count"
        )
    return count


def _shards(count: int) -> int:
    return math.ceil(count / ROWS_PER_ITEM)


def _uuid(end: str) -> str:
    return str(uuid.UUID(hex=end))


def _sent(value: Json) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_whole else value)  # type: ignore[arg-type]


class AlyxTable(Table):
    """A list endpoint as a table."""

    def plan(self, *, limit: int | None = None, **filters: Any) -> _engine.Plan:
        """The items that *filters* come to; ``django`` may be a dict."""
        return super().plan(limit=limit, **self.plain(filters))

    def plain(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        """Filters as the service takes them, all but their types checked.

        Raises
        ------
        ConfigurationError
            One of them would be misread.
        """
        given = {
            name.replace("-", "_"): str(one) if isinstance(one, _IN_WORDS) else one
            for name, one in filters.items()
            if one is not None
        }
        if given.get("django") is not None:
            given["django"] = django(given["django"], self.description.name) or None
        for name in ("extended_qc", "json"):
            if name in given and self.description.name == "sessions":
                given[name] = on_json(given[name], name)
        if "date_range" in given:
            given["date_range"] = _dates(given["date_range"])
        for name in _LISTS & given.keys():
            if isinstance(given[name], str):
                given[name] = [one.strip() for one in given[name].split(",")]
        if str(given.get("qc", "")).upper() == "ERROR":  # documented, and not there
            raise ConfigurationError(
                "expected qc CRITICAL, FAIL, WARNING, NOT_SET or PASS, got ERROR"
            )
        return given

    def stream(
        self, *, on_error: Literal["raise", "report"] = "raise", **filters: Any
    ) -> AbstractAsyncContextManager[_engine.BatchStream]:
        """As of every table, with no memory of the rows that went by."""
        plan = self.plan(**filters)
        if isinstance(plan.source, Listing):
            plan = replace(plan, source=replace(plan.source, is_apart=True))
        return _engine.open_stream(plan, on_error=on_error)

    def _plan_of_rows(
        self, limit: int | None, filters: Mapping[str, Any]
    ) -> _engine.Plan:
        plan = self.plan(limit=0 if limit == 0 else None, **filters)
        if isinstance(plan.source, Listing):
            most = limit if limit is not None and limit <= PAGE else None
            plan = replace(
                plan, source=replace(plan.source, asks_first=False, most=most)
            )
        return plan


def _dates(value: Any) -> str:
    """Both ends of a range of dates; the server stumbles over one alone."""
    given = value.split(",") if isinstance(value, str) else members(value)
    dates = [str(one).strip()[:10] for one in given]
    if len(dates) == 1:
        dates *= 2
    if len(dates) != 2:
        raise ConfigurationError(
            f"expected one or two dates for date_range, got {len(dates)}"
        )
    return ",".join(dates)


def one_request(endpoint: Endpoint, key: Any) -> Request:
    """The request for a record by its key, or by its URL."""
    text = str(key).strip()
    if text.startswith(("http://", "https://")):
        text = text.rstrip("/").rpartition("/")[2]
    if endpoint.lookup == "id" and endpoint.keys == "uuid" and endpoint.columns:
        try:
            uuid.UUID(text)
        except ValueError:
            raise ConfigurationError(
                f"expected the UUID of one of {endpoint.name}, got {text[:100]!r}"
            ) from None
    return Request(target=f"/{endpoint.name}/{segment(text)}")

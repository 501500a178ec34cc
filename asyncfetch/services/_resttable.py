"""Lists of any REST API as tables: their records, their pages, their columns.

The first answer teaches what nobody said: where the records are, how the list pages and
which columns they come to. That is kept beside the plan, so that every later page, and
every later run, goes by the same.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow as pa

from asyncfetch import _engine
from asyncfetch._auth import is_secret_name
from asyncfetch._decode import EXTRA, INSTANT, JSON, batch_of, document, whole
from asyncfetch._model import (
    Block,
    Decoded,
    Enumeration,
    Item,
    Json,
    Request,
    Response,
)
from asyncfetch._threads import in_thread
from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DecodeError,
    NotFound,
)
from asyncfetch.services._paging import (
    NextLinks,
    Params,
    path_of,
    segment,
    with_query,
)
from asyncfetch.services._styles import (
    Page,
    Place,
    Style,
    at,
    following,
    guessed,
    param_of,
)
from asyncfetch.services._table import (
    Description,
    OutputType,
    Table,
    check_limit,
    close,
    column,
)

logger = logging.getLogger("asyncfetch")
guesses = logging.getLogger("asyncfetch.guesses")
"""What was guessed, which the command line says and a library does not."""

# Columns that are made of what one page has: objects that are keyed by something, and
# not by names, have any number of keys. More are kept in `extra`.
MOST_COLUMNS = 1000
_INT64 = range(-(2**63), 2**63)
# The column for what records are keyed by. Fields of a service rarely begin like that.
KEY = "_key"
# Whole numbers among others that a double holds to the last digit.
_EXACT = range(-(2**53), 2**53 + 1)

_KINDS: Mapping[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "json": JSON,
}
_SPOKEN: Mapping[Any, str] = {
    bool: "bool",
    int: "int64",
    float: "float64",
    str: "string",
    dict: "json",
    list: "json",
    "int": "int64",
    "float": "float64",
    "double": "float64",
    "str": "string",
    "text": "string",
}
# Names of what a verb takes beside parameters of the query; none begins like that.
_OPTIONS = ("records", "paging", "key", "schema")
_LINES = re.compile(r"ndjson|jsonl|json-lines|stream\+json", re.IGNORECASE)
# What no JSON text has, not even in a string: one object behind another, each on a line
# of its own. Many services send lines as if they were one text.
_BETWEEN_LINES = re.compile(rb"\}[ \t\r]*\n\s*\{")
# What lists of records are called, and what stands beside them and in no record.
_LISTS = {"results", "data", "items", "rows", "records", "hits", "value", "entry"}
_LISTING = {"next", "next_url", "next_cursor", "nextPageToken", "_links", "_embedded"}
# Parameters with which a list does not begin at its beginning.
_STARTS = re.compile(
    r"[$_]?(offset|skip|start|page|page[-_]?number|p|from|after\w*|since\w*|cursor|"
    r"page_?token)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestSource:
    """The records of a list, page after page."""

    target: str
    """Path and query of the list."""
    base_url: str
    leave_out: frozenset[str] = frozenset()
    """Parameters of credentials, which links may repeat."""
    records: str | None = None
    paging: str | None = None
    key: str | None = None
    declared: Mapping[str, str] | None = None
    is_one: bool = False
    """Whether one record by its id is asked for, and not a list."""
    limit: int | None = None
    """Pages at most."""
    remembered: Mapping[str, Json] = field(default_factory=dict)
    """What joins the notes: how to get credentials, but no credentials."""
    notes: Mapping[str, Any] | None = None
    """What the first answer taught."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows; none before they are known."""
        if self.notes is None:
            return pa.schema([])
        return schema_of(self.notes["columns"])

    @property
    def row_key(self) -> str | None:
        """The field that is unique, where one was named and records came."""
        has_key = self.notes is not None and self.key in self.notes["columns"]
        return self.key if has_key else None

    @property
    def expected(self) -> int | None:
        """Pages, as far as the first one tells."""
        pages: int | None = None if self.notes is None else self.notes["pages"]
        if pages is None or self.limit is None:
            return pages
        return min(pages, self.limit)

    # --- what is learned --------------------------------------------------------------

    @property
    def question(self) -> Request:
        """The first page."""
        return self._item(self._first).request

    @property
    def _first(self) -> Place:
        if self.paging is None:
            return Place(target=self.target)
        return Style.parse(self.paging).first(self.target)

    def taught(self, chunks: Iterator[bytes], head: Response) -> Self:
        """The source that knows its columns, by its first page.

        Raises
        ------
        ConfigurationError
            The records cannot be told, or have no such key.
        DecodeError
            They are no objects.
        NotFound
            The one that was asked for did not come.
        """
        body = _document(chunks, head.headers)
        where = self._where(body)
        records = _records(body, where)
        if self.is_one and len(records) != 1:
            raise NotFound(f"expected one record from {head.url}, got {len(records)}")
        page = self._page(records, body, head)
        style = None if self.paging is None else Style.parse(self.paging)
        if style is None:
            is_list = not isinstance(at(body, where), Mapping)
            style = (guessed(page) if is_list else None) or Style.parse("none")
        columns = dict(self.declared or inferred(records, self.key))
        self._check_key(columns, records)
        total, pages = page.total, None
        if style.kind == "none":
            pages = 1
        elif records and total is not None and total > len(records):
            pages = math.ceil(total / len(records))
        elif style.kind in {"page", "page0"}:
            pages = page.pages
        if self.paging is None:
            guesses.info(
                "%s: records at %s; pages by %s",
                self.base_url + self.target.partition("?")[0],
                where or "the top",
                style,
            )
        learned = {
            "records": where,
            "paging": str(style),
            "columns": columns,
            "pages": pages,
        }
        return replace(self, notes={**self.remembered, **learned})

    def _where(self, body: Any) -> str:
        """Where the records are, as was said or as the first page shows."""
        if self.is_one:  # where lists are in an envelope, a record often is in none
            is_there = at(body, self.records or "") is not None
            return self.records if self.records and is_there else ""
        if self.records is not None:
            return self.records
        where = records_path(body, self.target)
        if not where and (keyed := _keyed_at(body)) is not None:
            logger.warning(
                "%s: taken for one record; if it is an object of records, say so "
                "(records=%r, --records %r)",
                self.base_url + self.target.partition("?")[0],
                keyed,
                keyed,
            )
        return where

    def knowing(self, notes: Mapping[str, Any]) -> Self:
        """The source that knows what an earlier run was taught."""
        if not {"records", "paging", "columns", "pages"} <= notes.keys():
            return self
        return replace(self, notes=notes)

    def _check_key(self, columns: Mapping[str, str], records: list[Any]) -> None:
        key = self.key
        if key is None or (not records and self.declared is None):
            return
        if key not in columns:
            raise ConfigurationError(
                f"expected key= to name a field of the records, got {key!r}"
                f"{close(key, columns)}; they have {', '.join(columns)}"
            )
        if columns[key] not in {"int64", "string"}:
            raise ConfigurationError(
                f"expected whole numbers or texts as key, got {columns[key]} in {key!r}"
            )

    # --- pages ------------------------------------------------------------------------

    def enumerate(self, _cursor: Json) -> Enumeration:
        """The first page, which leads to the others."""
        yield Block((self._item(self._first),))

    def _item(self, place: Place) -> Item:
        return Item(
            key=f"page={place.number}",
            request=Request(
                target=place.target,
                range=place.range,
                may_be_absent=not place.is_promised,
            ),
            context=place.to_json(),
        )

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows of one page, and the page behind it.

        A page that came before is an error. What is wrong with the way on is an item of
        its own that fails, and takes no row away.
        """
        assert self.notes is not None
        body = _document(chunks, head.headers)
        style = Style.parse(self.notes["paging"])
        request, number = item.request, item.context["page"]
        place = Place.from_json(request.target, request.range, item.context)
        # A later page that holds nothing may lack its list.
        is_lax = number > 1 and style.kind in {"cursor", "hal"}
        records = _records(body, self.notes["records"], is_lax=is_lax)
        page = self._page(records, body, head)
        place.check(page)
        links = NextLinks(self.base_url, leave_out=self.leave_out)
        later = following(style, place, page, links)
        detail: dict[str, Any] = {"page": number}
        # A number in what is one record itself counts something else.
        is_record = isinstance(body, Mapping) and not self.notes["records"]
        if page.total is not None and not is_record:
            detail["total"] = page.total
        if style.kind == "none" and not is_record and (page.pages or 0) > 1:
            detail["pages"] = page.pages
        follow_up: tuple[Item, ...] = ()
        if isinstance(later, AsyncfetchError):
            follow_up = (_refused(number + 1, request, str(later)),)
        elif later is not None and self.limit is not None and number >= self.limit:
            detail["more"] = _as_json(self._item(later))
        elif later is not None:
            follow_up = (self._item(later),)
        found = self._decoded(records, as_records=as_records)
        return replace(found, detail=detail, follow_up=follow_up)

    def _page(self, records: list[Any], body: Any, head: Response) -> Page:
        """What an answer holds, and where redirects led to in the end."""
        path, base = urlsplit(head.url).path, urlsplit(self.base_url).path
        return Page(
            records=records,
            body=body,
            head=_joined(head.headers),
            path=path.removeprefix(base) if path.startswith(f"{base}/") else None,
        )

    def _decoded(self, records: list[Any], *, as_records: bool) -> Decoded:
        if as_records:
            return Decoded(records=records)
        assert self.notes is not None
        where = f"$.{self.notes['records']}".rstrip(".")
        batch, codes = batch_of(records, self.schema, at=where, aside=True)
        return Decoded(batches=(batch,), diagnostics=codes)

    def absent(self, item: Item, *, as_records: bool) -> Decoded:
        """The end of a list, where there was no telling before."""
        detail = {"page": item.context["page"]}
        return Decoded(records=[] if as_records else None, detail=detail)

    def again(
        self, _rows: int, details: Iterable[Mapping[str, Any]]
    ) -> tuple[Item, ...]:
        """The page behind the one at which a lower limit ended an earlier run."""
        last = max(details, key=lambda one: one.get("page", 0), default={})
        if "more" not in last or (
            self.limit is not None and last["page"] >= self.limit
        ):
            return ()
        return (_from_json(last["more"]),)

    def shortfall(self, rows: int, details: Iterable[Mapping[str, Any]]) -> str | None:
        """Compare rows with what the last page counted, if the list is whole."""
        total, latest = None, 0
        for one in details:
            if "pages" in one:
                return (
                    f"the service speaks of {one['pages']:,} pages and one came: say "
                    "how it pages (paging=, --paging)"
                )
            if "total" in one and one["page"] > latest:
                total, latest = one["total"], one["page"]
        if total is None or self.notes is None:
            return None
        style = Style.parse(self.notes["paging"])
        if style.kind == "offset":
            total -= int(param_of(self.target, style.names["param"]) or 0)
        elif any(_STARTS.fullmatch(name) for name in _names(self.target)):
            return None
        if rows >= total:
            return None
        text = f"the service counts {total:,} records and {rows:,} distinct ones came"
        if style.kind == "none":
            return f"{text} on one page: say how it pages (paging=, --paging)"
        return f"{text}: it repeats or omits some, or they changed while they were read"


def _names(target: str) -> list[str]:
    return [pair.partition("=")[0] for pair in target.partition("?")[2].split("&")]


def _as_json(item: Item) -> dict[str, Any]:
    request = item.request.to_json()
    return {"key": item.key, "request": request, "context": dict(item.context)}


def _from_json(fields: Mapping[str, Any]) -> Item:
    return Item(
        key=fields["key"],
        request=Request.from_json(fields["request"]),
        context=fields["context"],
    )


def _refused(number: int, request: Request, why: str) -> Item:
    return Item(
        key=f"page={number}",
        request=Request(target=request.target, refused=why),
        context={"page": number},
    )


# --- bodies ---------------------------------------------------------------------------


def _document(chunks: Iterator[bytes], head: Mapping[str, str]) -> Any:
    """A body of JSON, or the list of what its lines hold; nothing is an empty list."""
    text = whole(chunks)
    if not text.strip():
        return []
    if _LINES.search(head.get("Content-Type", "")) or _BETWEEN_LINES.search(text):
        return [document(iter([one])) for one in text.splitlines() if one.strip()]
    return document(iter([text]))


def _joined(head: Mapping[str, str]) -> dict[str, str]:
    """Headers by their names in lower case, repeated ones as one list."""
    found: dict[str, str] = {}
    for name, value in head.items():
        name = name.lower()  # noqa: PLW2901
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def records_path(body: Any, target: str) -> str:
    """Where the records of a body are, if only one list of objects can be them.

    Raises
    ------
    ConfigurationError
        There are several lists, or an empty one that might as well be a field of the
        only record.
    """
    if not isinstance(body, Mapping):
        return ""
    inner = {name: one for name, one in body.items() if isinstance(one, Mapping)}
    levels: list[dict[str, Any]] = [
        dict(body),
        {f"{a}.{b}": one for a, inside in inner.items() for b, one in inside.items()},
    ]
    candidates = [
        [name for name, one in level.items() if is_candidate(one)]
        for is_candidate in (_has_objects, _is_empty)
        for level in levels
    ]
    found = next(filter(None, candidates), [])
    if len(found) > 1:
        raise ConfigurationError(
            f"expected one list of records from {target}, got {', '.join(found)}: say "
            "which (records=, --records; '' is all of it as one record)"
        )
    where = "".join(found)
    if where and _is_empty(at(body, where)) and not _is_listing(body, where):
        raise ConfigurationError(
            f"expected records from {target}, got an object with the empty list "
            f"{where}: say whether that is the list, or the object the only record "
            f"(records={where!r} or records='', --records)"
        )
    return where


def _has_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, Mapping) for one in value)


def _is_empty(value: Any) -> bool:
    return isinstance(value, list) and not value


def _is_listing(body: Mapping[str, Any], where: str) -> bool:
    """Whether a body with an empty list is a list of nothing, and no record."""
    return (
        len(body) == 1
        or not _LISTING.isdisjoint(body)
        or where.rpartition(".")[2] in _LISTS
        or Page(records=[], body=body, head={}).total == 0
    )


def _keyed_at(body: Any) -> str | None:
    """Where a body has objects under keys that look like records of one list."""
    inner = body.items() if isinstance(body, Mapping) else ()
    for where, found in (("*", body), *((f"{name}.*", one) for name, one in inner)):
        if isinstance(found, Mapping) and len(found) > 1:
            several = list(found.values())
            if all(isinstance(one, Mapping) for one in several) and set.intersection(
                *map(set, several)
            ):
                return where
    return None


def _records(body: Any, where: str, *, is_lax: bool = False) -> list[Any]:
    """The records of a body; an object in the place of a list is the only one.

    Behind a last step ``*`` they are the values of an object, each with its key.

    Raises
    ------
    DecodeError
        There are none.
    """
    is_keyed = where == "*" or where.endswith(".*")
    where = where[: -len(".*")] if is_keyed else where
    found = at(body, where)
    if (found is None and is_lax) or at(body, "page.totalElements") == 0:
        return []  # where nothing is embedded, HAL has no list
    place = f"$.{where}".rstrip(".")
    if isinstance(found, Mapping):
        return _of_object(found, place) if is_keyed else [found]
    if not isinstance(found, list):
        keys = f"; it has {', '.join(body)}" if isinstance(body, Mapping) else ""
        raise DecodeError(
            f"expected a list of records - at {place}, got "
            f"{json.dumps(found, default=str)[:60]}{keys}"[:500],
            path=place,
            code="not-array",
        )
    for number, one in enumerate(found):
        _check_object(one, f"{place}[{number}]")
    return found


def _of_object(found: Mapping[str, Any], place: str) -> list[Any]:
    for name, one in found.items():
        _check_object(one, f"{place}.{name}")
        if one.get(KEY, name) != name:
            raise DecodeError(
                f"expected a record without a field {KEY}, which is for its key "
                f"{name!r} - at {place}.{name}, got {one[KEY]!r}"[:500],
                path=f"{place}.{name}.{KEY}",
                code="type",
            )
    return [{KEY: name, **one} for name, one in found.items()]


def _check_object(one: Any, place: str) -> None:
    if not isinstance(one, Mapping):
        raise DecodeError(
            f"expected an object - at {place}, got {json.dumps(one, default=str)[:60]}",
            path=place,
            code="type",
        )


# --- columns --------------------------------------------------------------------------


def schema_of(columns: Mapping[str, str]) -> pa.Schema:
    """The columns of names and kinds, and the one for all that does not fit them."""
    known = [column(name, _KINDS[kind]) for name, kind in columns.items()]
    if EXTRA not in columns:
        about = "other fields, and values that do not fit their column"
        known.append(column(EXTRA, JSON, about))
    return pa.schema(known)


def inferred(records: Iterable[Mapping[str, Any]], key: str | None) -> dict[str, str]:
    """Columns for records, by all the values of each field, in the order they come in.

    A field whose values are all of one kind gets its type: ``bool``, ``int64``,
    ``float64``, ``string``, or ``timestamp`` for texts that all are times with a zone
    (RFC 3339); whole numbers among others make a ``float64`` if that loses no digit.
    Everything else is ``json``, which holds any value as it was sent: objects, lists,
    mixtures, whole numbers beyond 64 bits, and what is null throughout.
    """
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            if name != EXTRA and (name in values or len(values) < MOST_COLUMNS):
                values.setdefault(name, []).append(value)
    return {
        name: _kind_of([one for one in some if one is not None], is_key=name == key)
        for name, some in values.items()
    }


def _kind_of(values: list[Any], *, is_key: bool) -> str:
    kinds = {type(one) for one in values}
    if kinds == {bool}:
        return "bool"
    if kinds == {str}:
        is_time = not is_key and all(map(INSTANT.fullmatch, values))
        return "timestamp" if is_time and _are_times(values) else "string"
    if kinds == {int} and all(one in _INT64 for one in values):
        return "int64"
    if float in kinds and kinds <= {int, float}:
        is_exact = all(one in _EXACT for one in values if type(one) is int)
        return "float64" if is_exact else "json"
    return "json"


def _are_times(values: list[str]) -> bool:
    try:
        pa.array(values).cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        return False
    return True


def declared(schema: Any) -> dict[str, str] | None:
    """A schema as names and kinds: of Arrow, or names and types as a dict or a text.

    Raises
    ------
    ConfigurationError
        There is no such type.
    """
    if schema is None:
        return None
    if isinstance(schema, pa.Schema):
        schema = {one.name: one.type for one in schema}
    if isinstance(schema, str):
        schema = dict(_column_of(one) for one in schema.split(",") if one.strip())
    if not isinstance(schema, Mapping) or not schema:
        raise ConfigurationError(
            f"expected schema= as a pyarrow.Schema, or as names and types in a dict or "
            f"as name=type,…, got {schema!r}"[:300]
        )
    return {str(name): _spoken(name, kind) for name, kind in schema.items()}


def _column_of(text: str) -> tuple[str, str]:
    name, sign, kind = text.rpartition("=")
    if not sign:
        raise ConfigurationError(f"expected NAME=TYPE for a column, got {text!r}")
    return name.strip(), kind.strip()


def _spoken(name: object, kind: Any) -> str:
    if isinstance(kind, pa.DataType):
        for spoken, one in _KINDS.items():
            if kind == one:
                return spoken
    elif isinstance(kind, str | type):
        spoken = _SPOKEN.get(kind, str(kind))
        if spoken in _KINDS:
            return spoken
    raise ConfigurationError(
        f"expected {', '.join(_KINDS)} as type of {name}, got {kind}"
    )


# --- the table ------------------------------------------------------------------------


class RestTable(Table):
    """A list of a REST API; see :meth:`asyncfetch.Rest.table`."""

    def __init__(
        self,
        client: Any,
        target: str,
        *,
        params: Params | str | None = None,
        leave_out: frozenset[str] = frozenset(),
        remembered: Mapping[str, Json] | None = None,
        **options: Any,
    ) -> None:
        path, _, query = target.partition("?")
        self._path, self._query = path, query
        self._params = params
        self._options = options
        self._leave_out = leave_out
        self._remembered = dict(remembered or {})
        super().__init__(
            client,
            Description(
                name=path.removeprefix("/"),
                summary="a list of a REST API",
                item="pages",
                filters=(),
                schema=pa.schema([]),
                source=self._source,
                takes_any=True,
            ),
        )
        self.plan()  # what cannot be asked is said here

    async def get(
        self,
        id: Any = None,  # noqa: A002 - as of every table
        /,
        *,
        output_type: OutputType = "json",
        limit: int | None = None,
        **filters: Any,
    ) -> Any:
        """Records of the list, in its order; see :meth:`Table.get`.

        All pages are there before columns are made, so that ``df`` and ``arrow`` have
        those of all of them.
        """
        asked = self._asked(filters)
        is_typed = "--schema" in asked
        if id is not None or output_type not in {"df", "arrow"} or is_typed:
            return await super().get(
                id, output_type=output_type, limit=limit, **filters
            )
        records = await super().get(limit=limit, **filters)

        def made() -> pa.Table:
            schema = schema_of(inferred(records, asked.get("--key")))
            batch, _ = batch_of(records, schema, aside=True)
            return pa.Table.from_batches([batch])

        table = await in_thread(made)
        return await self._frame(table) if output_type == "df" else table

    def plan(self, *, limit: int | None = None, **filters: Any) -> _engine.Plan:
        """The pages of the list, at most *limit*; asks nothing yet.

        *filters* are parameters of the query; ``params=`` takes those whose names are
        taken by the verbs.
        """
        check_limit(limit)
        asked = self._asked(filters)
        return _engine.Plan(
            service=self.client.service,
            table=self.description.name,
            filters=asked,
            limit=limit,
            source=replace(self._source(asked), limit=limit),
            exchange=self.client.exchange,
        )

    def _asked(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked, as a plan keeps it: the query and the options."""
        own = {f"--{name}" for name in _OPTIONS}
        options: dict[str, Any] = {f"--{k}": v for k, v in self._options.items()}
        options |= {name: one for name, one in filters.items() if name in own}
        words = {n: v for n, v in filters.items() if n not in own and n != "params"}
        target = f"?{self._query}" if self._query else ""
        for params in (self._params, filters.get("params"), words):
            target = with_query(target, params)
        query = path_of(target).partition("?")[2]
        for name in _names(f"?{query}"):
            if is_secret_name(name):
                raise ConfigurationError(
                    f"{name} is a secret by its name and would lie in the plan: give "
                    f"it as auth=ApiKey(…, query={name!r}), or as --bearer-env"
                )
        if options.get("--paging") is not None:
            options["--paging"] = str(Style.parse(str(options["--paging"])))
        if options.get("--records") is not None:
            path = str(options["--records"]).strip().removesuffix("[*]")
            options["--records"] = path.lstrip("$").strip(".")
        options["--schema"] = declared(options.get("--schema"))
        known = {name: one for name, one in options.items() if one is not None}
        return {**({"params": query} if query else {}), **known}

    def _source(self, filters: Mapping[str, Any]) -> RestSource:
        query = filters.get("params")
        return RestSource(
            target=f"{self._path}?{query}" if query else self._path,
            base_url=self.client.exchange.base_url,
            leave_out=self._leave_out,
            records=filters.get("--records"),
            paging=filters.get("--paging"),
            key=filters.get("--key"),
            declared=filters.get("--schema"),
            remembered=self._remembered,
        )

    def _plan_of_one(self, key: Any, filters: Mapping[str, Any]) -> _engine.Plan:
        if filters:
            raise ConfigurationError(
                f"expected an id or parameters, got {key!r} and {', '.join(filters)}"
            )
        asked = self._asked({})
        source = self._source(asked)
        path, mark, query = source.target.partition("?")
        slash = "/" if path.endswith("/") else ""  # as Django has its paths
        one = f"{path.rstrip('/')}/{segment(str(key))}{slash}"
        return _engine.Plan(
            service=self.client.service,
            table=self.description.name,
            filters=asked,
            limit=None,
            source=replace(
                source, target=f"{one}{mark}{query}", is_one=True, paging="none"
            ),
            exchange=self.client.exchange,
        )

"""What a table is, and its three verbs, written once for every service.

A service module describes its tables (:class:`Description`) and derives its client from
:class:`Client`; verbs, command line, resuming, progress and limits come from here and
from the engine.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, overload

import numpy as np
import pandas as pd  # here, because pyarrow would import it later, inside the loop
import pyarrow as pa

from asyncfetch import _engine
from asyncfetch._absence import Health
from asyncfetch._auth import Auth
from asyncfetch._decode import JSON, as_schema
from asyncfetch._exchange import Exchange, Refusal
from asyncfetch._model import (
    Block,
    Decoded,
    Enumeration,
    Item,
    Json,
    Limits,
    Request,
    Response,
    Source,
    Stores,
)
from asyncfetch._threads import in_thread
from asyncfetch.errors import ConfigurationError, NotFound

OutputType = Literal["json", "df", "arrow"]

# Rows of one text in a chunk of a DataFrame's column: on average at least, and most.
_FEWEST_ROWS, _MOST_ROWS = 256, 1024


def column(
    name: str,
    kind: pa.DataType,
    doc: str = "",
    *,
    unit: str | None = None,
    nullable: bool = True,
) -> pa.Field:
    """A field of a table's schema with its meaning and unit as metadata."""
    metadata = {"doc": doc} if doc else {}
    if unit is not None:
        metadata["unit"] = unit
    return pa.field(name, kind, nullable=nullable, metadata=metadata or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A named argument that narrows a table."""

    name: str
    kind: type
    """``int``, ``float``, ``str`` or ``bool``."""
    many: bool = False
    """Whether a list is taken: rows that match any of its members."""
    or_many: bool = False
    """Whether one value or a list is taken; a comma is part of a value then."""
    doc: str = ""
    alias: str | None = None
    """Another name for the same filter."""
    spellings: Mapping[str, str] | None = None
    """All that it takes, in lower case with blanks for - and _, and what that means."""

    def parse(self, text: str) -> Json:
        """The value that *text* of a command line names; a comma splits a list."""
        if self.many:
            return [self._one(part) for part in text.split(",")]
        one: Json = self._one(text)
        return one

    def check(self, value: Any) -> Json:
        """*value* as plain JSON.

        Raises
        ------
        ConfigurationError
            It is of another type.
        """
        several = members(value)
        if self.many or (self.or_many and len(several) != 1):
            found = list(dict.fromkeys(self._one(one) for one in several))
            # The order of a set changes from run to run; that of a plan must not.
            return sorted(found) if isinstance(value, AbstractSet) else found
        if len(several) != 1:
            raise ConfigurationError(
                f"expected one {self.kind.__name__} for {self.name}, "
                f"got {len(several)}: ask once for each"
            )
        one: Json = self._one(several[0])
        return one

    def _one(self, value: Any) -> Any:  # int, float, str or bool
        value = plain(value)
        kind = self.kind
        if isinstance(value, str) and kind is not str:
            value = _from_text(value.strip(), kind)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is str and type(value) is int:
            value = str(value)  # subject=1 means the text "1"
        if kind is int and type(value) is float and value.is_integer():
            value = int(value)  # a column of a DataFrame with gaps
        if type(value) is not kind or value == "":
            raise ConfigurationError(
                f"expected {kind.__name__} for {self.name}, got {value!r}"
            )
        if self.spellings is not None:
            plainly = str(value).casefold().replace("-", " ").replace("_", " ")
            if plainly not in self.spellings:
                known = " or ".join(dict.fromkeys(self.spellings.values()))
                raise ConfigurationError(
                    f"expected {known} for {self.name}, got {value!r}"
                )
            return self.spellings[plainly]
        return value


def plain(value: Any) -> Any:
    """A Python number for one of numpy's, such as a row of a DataFrame holds."""
    return value.item() if hasattr(value, "item") else value


def _from_text(text: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(
            text.lower(), text
        )
    try:
        return kind(text)
    except ValueError:
        return text


def members(value: Any) -> list[Any]:
    """What a list, tuple, set, array or Series holds; one value as a list of it."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return [value]
    if getattr(value, "ndim", 1) == 0:  # one of numpy's, in an array of no dimension
        return [plain(value)]
    return list(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a table offers and how it is fetched."""

    name: str
    """As on the command line, with hyphens."""
    summary: str
    item: str
    """What one item is, in the plural: ``pages of up to 500 neurons``."""
    item_bytes: float | Callable[[Item], float] = 100_000
    """What an item takes as sent, roughly, for estimates."""
    filters: tuple[Filter, ...]
    schema: pa.Schema
    source: Callable[[Mapping[str, Json]], Source]
    """From checked filters to what the engine runs."""
    one: Callable[[Any], Request] | None = None
    """The request for one record by its positional id, where there is such."""
    row_key: str | None = None
    files: Stores = "none"
    """Whether its items are files, and when their bytes are stored."""
    is_single: bool = False
    """Whether it is one record, which ``json`` then gives by itself."""
    takes_any: bool = False
    """Whether every word is a filter: a parameter of the query, as it stands."""
    table: Callable[[Any, Description], Table] | None = None
    """What makes the table of client and description, where it can do more."""

    def find(self, name: str) -> Filter | None:
        """The filter of that name or alias; case matters only between two of them."""
        known = {f.alias: f for f in self.filters if f.alias is not None}
        known |= {f.name: f for f in self.filters}
        name = name.replace("-", "_")
        folded = {one.casefold(): f for one, f in known.items()}
        return known.get(name) or folded.get(name.casefold())

    def check(self, filters: Mapping[str, Any]) -> dict[str, Json]:
        """Filters under their proper names as plain JSON, sorted by name.

        Raises
        ------
        ConfigurationError
            There is no such filter, or its value is of another type.
        """
        checked: dict[str, Json] = {}
        for name, value in filters.items():
            found = self.find(name)
            if found is None:
                known = [f.name for f in self.filters]
                known += [f.alias for f in self.filters if f.alias is not None]
                raise ConfigurationError(
                    f"{self.name} has no filter {name!r}{close(name, known)}; "
                    f"it has {', '.join(sorted(f.name for f in self.filters))}"
                )
            if value is not None:
                if found.name in checked:
                    raise ConfigurationError(f"{name} and {found.name} are the same")
                checked[found.name] = found.check(value)
        return dict(sorted(checked.items()))


def close(name: str, known: Iterable[str]) -> str:
    """A hint at the names nearest to one that is not known."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


@dataclass(frozen=True, slots=True)
class Nothing:
    """The source for an empty list of wanted things: no rows, and no request."""

    of: Source

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows that do not come."""
        return self.of.schema

    @property
    def row_key(self) -> str | None:
        """As for the table."""
        return self.of.row_key

    def enumerate(self, _cursor: Json) -> Enumeration:
        """No items."""
        yield Block(())

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Never called."""
        return self.of.decode(item, chunks, head, as_records=as_records)

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """Nothing is missing of nothing."""
        return None


@dataclass(frozen=True, slots=True)
class _One:
    """The source for one record by its id."""

    of: Source
    request: Request

    @property
    def schema(self) -> pa.Schema:
        return self.of.schema

    @property
    def row_key(self) -> None:
        return None

    def enumerate(self, _cursor: Json) -> Enumeration:
        request = replace(self.request, may_be_absent=True)
        yield Block((Item(key="one", request=request, context={"one": True}),))

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        return self.of.decode(item, chunks, head, as_records=as_records)

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        return None


class Table:
    """A table of a service, with its three verbs."""

    def __init__(self, client: Client, description: Description) -> None:
        self.client = client
        self.description = description

    def __repr__(self) -> str:
        return f"<{self.client.service}/{self.description.name}>"

    @overload
    async def get(
        self,
        id: Any = ...,
        /,
        *,
        output_type: Literal["json"] = ...,
        limit: int | None = ...,
        **filters: Any,
    ) -> Any: ...

    @overload
    async def get(
        self,
        id: Any = ...,
        /,
        *,
        output_type: Literal["df"],
        limit: int | None = ...,
        **filters: Any,
    ) -> pd.DataFrame: ...

    @overload
    async def get(
        self,
        id: Any = ...,
        /,
        *,
        output_type: Literal["arrow"],
        limit: int | None = ...,
        **filters: Any,
    ) -> pa.Table: ...

    async def get(
        self,
        id: Any = None,  # noqa: A002 - the service's own word
        /,
        *,
        output_type: OutputType = "json",
        limit: int | None = None,
        **filters: Any,
    ) -> Any:
        """Rows that match *filters*, in plan order.

        Parameters
        ----------
        id
            One record by its id, instead of filters.
        output_type
            ``json``: the records as the service sent them, a list of dicts (one dict
            for an id). ``df``: a pandas DataFrame. ``arrow``: a pyarrow Table.
        limit
            Rows at most.

        Raises
        ------
        NotFound
            There is no record with that id, or no such name.
        ItemError
            A request failed for good.
        """
        if output_type not in {"json", "df", "arrow"}:
            raise ConfigurationError(
                f"expected output_type json, df or arrow, got {output_type!r}"
            )
        check_limit(limit)
        if id is not None:
            plan = self._plan_of_one(plain(id), filters)
        else:
            plan = self._plan_of_rows(limit, filters)
        plan = await _engine.settled(plan)
        results = await _engine.collect(
            plan, as_records=output_type == "json", limit=limit
        )
        if id is not None and all(result.outcome == "missing" for result in results):
            raise NotFound(
                f"{self.client.service} has no {self.description.name} {id!r}"
            )
        if output_type == "json":
            records = [row for result in results for row in result.records or []]
            is_one = id is not None or self.description.is_single
            return records[0] if is_one and records else records[:limit]
        schema = plan.source.schema  # some filters add columns

        is_frame = output_type == "df"

        def joined() -> pa.Table:
            batches = [
                as_schema(batch, schema, encoded=is_frame)
                for result in results
                for batch in result.batches
            ]
            found = batches[0].schema if batches else schema
            return pa.Table.from_batches(batches, schema=found).slice(0, limit)

        # A million rows would keep the event loop for a second.
        table = await in_thread(joined)
        return await self._frame(table) if is_frame else table

    def stream(
        self, *, on_error: Literal["raise", "report"] = "raise", **filters: Any
    ) -> AbstractAsyncContextManager[_engine.BatchStream]:
        """Context manager with a stream of record batches, in constant memory.

        Batches of one item come together, items in order of completion;
        ``batch.schema.metadata[b"asyncfetch.key"]`` names the item. A failed item
        raises :class:`~asyncfetch.errors.ItemError` where the loop stands, or is
        collected in ``failed`` with ``on_error="report"``. Leaving the block closes
        what is in flight.
        """
        return _engine.open_stream(self.plan(**filters), on_error=on_error)

    def plan(self, *, limit: int | None = None, **filters: Any) -> _engine.Plan:
        """The items that *filters* come to, at most *limit*; asks nothing yet."""
        check_limit(limit)
        checked = self.description.check(filters)
        source = self._source(checked)
        return _engine.Plan(
            service=self.client.service,
            table=self.description.name,
            filters=checked,
            limit=limit,
            source=Nothing(source) if [] in checked.values() else source,
            exchange=self.client.exchange,
            files=self.description.files,
        )

    async def _frame(self, table: pa.Table) -> pd.DataFrame:
        return await in_thread(lambda: to_pandas(table))

    def _source(self, filters: Mapping[str, Json]) -> Source:
        return self.description.source(filters)

    def _plan_of_rows(
        self, limit: int | None, filters: Mapping[str, Any]
    ) -> _engine.Plan:
        """What :meth:`get` asks; no rows need no items."""
        return self.plan(limit=0 if limit == 0 else None, **filters)

    def _plan_of_one(self, key: Any, filters: Mapping[str, Any]) -> _engine.Plan:
        if filters:
            raise ConfigurationError(
                f"expected an id or filters, got {key!r} and {', '.join(filters)}"
            )
        if self.description.one is None:
            raise ConfigurationError(
                f"{self.description.name} has no records by id; use its filters: "
                + ", ".join(f.name for f in self.description.filters)
            )
        return _engine.Plan(
            service=self.client.service,
            table=self.description.name,
            filters={},
            limit=None,
            source=_One(self._source({}), self.description.one(key)),
            exchange=self.client.exchange,
        )


def check_limit(limit: int | None) -> None:
    if limit is not None and (type(limit) is not int or limit < 0):
        raise ConfigurationError(f"expected limit of 0 or more, got {limit!r}")


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A DataFrame with nullable integers as integers and JSON columns as objects."""
    columns = {}
    for field, values in zip(table.schema, table.columns, strict=True):
        if field.type == JSON:
            columns[field.name] = pd.Series(
                [
                    None if text is None else json.loads(text)
                    for text in values.cast(pa.string()).to_pylist()
                ],
                dtype=object,
            )
        elif pa.types.is_integer(field.type) and field.nullable:
            columns[field.name] = _nullable_integers(values)
        elif pa.types.is_dictionary(field.type):
            columns[field.name] = _plain_text(values).to_pandas()
        else:
            series = values.to_pandas()
            # Of one chunk it may be a view of what Arrow holds, which nobody can write.
            is_view = values.num_chunks == 1 and pa.types.is_primitive(field.type)
            columns[field.name] = series.copy() if is_view else series
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows), copy=False)


def _nullable_integers(values: pa.ChunkedArray) -> pd.Series:
    """Whole numbers of which some may be missing, by one copy."""
    kind = values.type.to_pandas_dtype()
    if values.null_count == len(values):  # nothing to copy, and zeros take no memory
        numbers, is_missing = np.zeros(len(values), kind), np.ones(len(values), bool)
    else:
        numbers, is_missing = np.empty(len(values), kind), np.zeros(len(values), bool)
        start = 0
        for chunk in values.chunks:
            end = start + len(chunk)
            numbers[start:end] = chunk.fill_null(0)
            if chunk.null_count:
                is_missing[start:end] = chunk.is_null()
            start = end
    return pd.Series(pd.arrays.IntegerArray(numbers, is_missing), copy=False)


def _plain_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Repeated text as pandas keeps text, without a copy of it for every row.

    Rows that follow each other with the same text are chunks of their own, and the
    chunks of a text share its memory. Short runs are not worth that.
    """
    runs = [run for chunk in values.chunks for run in _runs(chunk)]
    if len(runs) > len(values) // _FEWEST_ROWS:
        return values.cast(pa.large_string())
    longest: dict[str | None, int] = {}
    for text, rows in runs:
        longest[text] = max(longest.get(text, 0), min(rows, _MOST_ROWS))
    shared = {
        text: pa.repeat(pa.scalar(text, pa.large_string()), rows)
        for text, rows in longest.items()
    }
    parts = [
        shared[text].slice(0, min(_MOST_ROWS, rows - start))
        for text, rows in runs
        for start in range(0, rows, _MOST_ROWS)
    ]
    return pa.chunked_array(parts, pa.large_string())


def _runs(column: pa.DictionaryArray) -> Iterator[tuple[str | None, int]]:
    """Each text and the number of rows that have it one after the other."""
    places = column.indices.fill_null(-1).to_numpy()
    starts = np.flatnonzero(np.diff(places, prepend=places[:1] - 1))
    texts = [*column.dictionary.to_pylist(), None]  # at -1
    counts = np.diff(starts, append=len(places))
    for place, rows in zip(places[starts].tolist(), counts.tolist(), strict=True):
        yield texts[place], rows


class Client:
    """One web API: its tables, and the connections to it.

    Constructed without an event loop; opens at the first request, closes by
    ``async with`` or :meth:`aclose`, in any task.

    Parameters
    ----------
    base_url
        Where the service is; a mirror or a test server of one's own.
    limits
        How hard it may be asked. The defaults are the service's own.
    timeout
        Seconds without a byte of progress that end an attempt.
    item_timeout
        Seconds that an item may take with all its attempts and waits; for a file that
        goes on where it broke off, from its last progress on.
    user_agent
        Replaces ``asyncfetch/<version>``.
    contact
        A mail address or page that the service's operators may turn to.
    proxy
        Replaces the environment's proxy.
    ca_file
        A file of certificates to trust in place of the system's.
    tls_compat
        ``no-dhe`` or ``seclevel1``, for this host only: for servers whose key exchange
        is too weak for OpenSSL's defaults. Certificates are verified all the same.
    auth
        Made by the service's client from the credentials that it takes.
    refusal, notice
        How the service's client reads refusals, and headers of answers.
    """

    service: ClassVar[str]
    default_url: ClassVar[str]
    default_limits: ClassVar[Limits]
    limits_source: ClassVar[str]
    """Where the default limits come from."""
    descriptions: ClassVar[tuple[Description, ...]]
    health_check: ClassVar[Health | None] = None
    """Where the service says how it is, if its 404 is not to be believed otherwise."""
    exchange_class: ClassVar[type[Exchange]] = Exchange
    """What asks; another one where a service is more than one address."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        limits: Limits | None = None,
        timeout: float = 60.0,
        item_timeout: float = 1800.0,
        user_agent: str | None = None,
        contact: str | None = None,
        proxy: str | None = None,
        ca_file: str | None = None,
        tls_compat: Literal["no-dhe", "seclevel1"] | None = None,
        auth: Auth | None = None,
        refusal: Refusal | None = None,
        notice: Callable[[Mapping[str, str]], object] | None = None,
    ) -> None:
        if tls_compat not in {None, "no-dhe", "seclevel1"}:
            raise ConfigurationError(
                f"expected tls_compat no-dhe or seclevel1, got {tls_compat!r}"
            )
        self.exchange = self.exchange_class(
            self.default_url if base_url is None else base_url,
            default=self.default_limits,
            limits=limits or Limits(),
            timeout=timeout,
            item_timeout=item_timeout,
            user_agent=user_agent,
            contact=contact,
            proxy=proxy,
            ca_file=ca_file,
            tls_compat=tls_compat,
            auth=auth,
            refusal=refusal,
            notice=notice,
            health=self.health_check,
        )
        self._tables = {
            description.name: (description.table or Table)(self, description)
            for description in self.descriptions
        }
        for name, table in self._tables.items():
            setattr(self, name.replace("-", "_"), table)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A client set up by the environment: ``ASYNCFETCH_<SERVICE>_URL``."""
        url = os.environ.get(f"ASYNCFETCH_{cls.service.upper()}_URL")
        if url:
            options.setdefault("base_url", url)
        return cls(**options)

    def table(self, name: str) -> Table:
        """The table called *name*, with hyphens or underscores."""
        try:
            return self._tables[name.replace("_", "-")]
        except KeyError:
            raise ConfigurationError(
                f"{self.service} has no table {name!r}{close(name, self._tables)}; "
                f"it has {', '.join(self._tables)}"
            ) from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.exchange.base_url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. The client may be used again afterwards."""
        await self.exchange.aclose()

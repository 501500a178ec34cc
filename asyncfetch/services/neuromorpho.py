"""NeuroMorpho.Org: neurons, and their traces as SWC files.

Content is CC BY 4.0; its papers must be cited, which is why archive, DOI and PubMed ids
are in every record. The API serves pages of at most 500 records; files lie under
``/dableFiles``. Links inside records point to ``http://`` and elsewhere and are never
followed: every address is built on the configured base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from asyncfetch._decode import (
    EXTRA,
    JSON,
    batch_of,
    document,
    records_at,
    repeated,
    whole,
    with_repeated,
    wrapped,
)
from asyncfetch._model import (
    Ask,
    Block,
    Decoded,
    Enumeration,
    FileWish,
    Item,
    Json,
    Limits,
    Request,
)
from asyncfetch.errors import ConfigurationError, DecodeError, IntegrityError
from asyncfetch.services._paging import segment, target
from asyncfetch.services._table import Client, Description, Filter, Table, column
from asyncfetch.swc import NODES_SCHEMA, Morphology, read_alike, read_swc

# The largest page that the service gives (its API reference); more is cut without a
# word. Sorted by id, so that pages do not shift into each other while they are read.
PAGE = 500
SORT = ("sort", "neuron_id,asc")

_RECORDS = ("_embedded", "neuronResources")
# Characters that mean something to the search engine inside an unquoted value.
_SPECIAL = re.compile(r'[\s:,"()\[\]{}\\+\-&|!^~/]')

_TEXTS = tuple(
    "archive note age_scale gender age_classification brain_region cell_type species "
    "strain scientific_name stain experiment_condition protocol slicing_direction "
    "reconstruction_software objective_type original_format domain attributes "
    "magnification upload_date deposition_date shrinkage_reported "
    "shrinkage_corrected".split()
)
_LISTS = {"brain_region", "cell_type", "experiment_condition"}
_DATES = {"upload_date", "deposition_date"}
_SHRINKAGE = tuple(
    f"{which}_{part}"
    for which in ("reported", "corrected")
    for part in ("value", "xy", "z")
)
_UNITS = {
    "soma_surface": "µm²",
    "surface": "µm²",
    "volume": "µm³",
    "slicing_thickness": "µm",
    "min_age": "in age_scale",
    "max_age": "in age_scale",
    "min_weight": "g",
    "max_weight": "g",
}


def _text_column(name: str) -> pa.Field:
    if name in _LISTS:
        return column(name, pa.list_(pa.string()))
    return column(name, pa.date32() if name in _DATES else pa.string())


_NEURONS = pa.schema(
    [
        column("neuron_id", pa.int64(), "shown as NMO_00001", nullable=False),
        column("neuron_name", pa.string(), "unique", nullable=False),
        *(_text_column(name) for name in _TEXTS),
        *(column(name, pa.float64(), "shrinkage factor") for name in _SHRINKAGE),
        *(column(name, pa.float64(), unit=unit) for name, unit in _UNITS.items()),
        column("png_url", pa.string(), "as sent; http and maybe elsewhere"),
        column("reference_pmid", pa.list_(pa.string()), "PubMed ids, to be cited"),
        column("reference_doi", pa.list_(pa.string()), "to be cited"),
        column("physical_Integrity", pa.string()),
        column(EXTRA, JSON, "unknown fields, and values that are not what they should"),
    ]
)
_TRACES = pa.schema(
    [
        column("neuron_id", pa.int64(), nullable=False),
        column("neuron_name", pa.string(), nullable=False),
        column("archive", pa.string()),
        column("version", pa.string(), "CNG: standardized by the service"),
        *NODES_SCHEMA,
    ]
)
_TRACES_STORED = with_repeated(_TRACES, "neuron_name", "archive", "version")

_FILTERS = (
    Filter(name="q", kind=str, doc="a query in the service's own words"),
    Filter(name="fq", kind=str, many=True, doc="further queries, all of which hold"),
    Filter(name="neuron_id", kind=int, many=True),
    Filter(name="neuron_name", kind=str, many=True, doc="* and ? are wildcards"),
    *(
        Filter(name=name, kind=str, many=True)
        for name in (*_TEXTS, "physical_Integrity")
        if name != "note"
    ),
)


def _quoted(value: Any) -> str:
    """A value of a query: quoted when it needs it, unless it is a pattern."""
    text = str(value)
    if "*" in text or "?" in text:
        return re.sub(r"\s", "?", text)  # a blank would end the pattern
    if not _SPECIAL.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _page(filters: Mapping[str, Any], page: int, size: int) -> Request:
    clauses = [filters["q"]] if "q" in filters else []
    clauses += filters.get("fq", [])
    clauses += [
        f"{name}:{','.join(_quoted(value) for value in values)}"
        for name, values in filters.items()
        if name not in {"q", "fq"}
    ]
    paging = [("page", str(page)), ("size", str(size)), SORT]
    if not clauses:
        return Request(target=target("/api/neuron", paging))
    query = [("q", clauses[0]), *(("fq", clause) for clause in clauses[1:])]
    return Request(target=target("/api/neuron/select", [*query, *paging]))


def _paging(body: Any) -> tuple[int, int]:
    """Total number of elements and of pages that an answer names."""
    try:
        page = body["page"]
        return int(page["totalElements"]), int(page["totalPages"])
    except (KeyError, TypeError, ValueError):
        raise DecodeError(
            "expected page.totalElements and page.totalPages - at $.page",
            path="$.page",
            code="no-page",
        ) from None


def _neurons_of(body: Any, page: int) -> list[Any]:
    """The records of a page; the service leaves the list out when it is empty.

    Raises
    ------
    IntegrityError
        The answer is another page than the one that was asked for.
    """
    number = body["page"].get("number", page)
    if number != page:
        raise IntegrityError(f"expected page {page}, got page {number} - at $.page")
    if isinstance(body, Mapping) and "_embedded" not in body and "page" in body:
        return []
    return records_at(body, _RECORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Neurons:
    """Records, page by page."""

    filters: Mapping[str, Any]
    schema: pa.Schema = _NEURONS
    row_key: str | None = "neuron_id"

    def enumerate(self, _cursor: Json) -> Enumeration:
        """All pages at once; one question of a single record tells how many."""
        (first,) = (yield Ask((_page(self.filters, 0, 1),))) or ()
        total, _ = _paging(first)
        pages = math.ceil(total / PAGE)
        yield Block(tuple(self._item(page, pages, total) for page in range(pages)))

    def _item(self, page: int, pages: int, total: int) -> Item:
        rows = min(PAGE, total - page * PAGE)
        return Item(
            key=f"page={page}",
            request=_page(self.filters, page, PAGE),
            context={"page": page, "pages": pages, "rows": rows},
        )

    def decode(
        self, item: Item, chunks: Iterator[bytes], *, as_records: bool
    ) -> Decoded:
        """Rows of one page; the last page leads on if there are more by now."""
        body = document(chunks)
        if item.context.get("one"):
            return self._decoded([body], as_records)
        total, pages = _paging(body)
        page, known = item.context["page"], item.context["pages"]
        records = _neurons_of(body, page)
        if not records and page * PAGE < total:
            raise IntegrityError(
                f"expected up to {PAGE} of {total} neurons on page {page}, got none"
            )
        grown = range(known, pages) if page == known - 1 else range(0)
        return replace(
            self._decoded(records, as_records),
            detail={"total": total},
            follow_up=tuple(self._item(more, pages, total) for more in grown),
        )

    def _decoded(self, records: list[Any], as_records: bool) -> Decoded:
        if as_records:
            return Decoded(records=records)
        batch, codes = batch_of(
            records,
            self.schema,
            at="$._embedded.neuronResources",
            ignore=frozenset({"_links"}),
            lenient=True,
        )
        return Decoded(batches=(batch,), diagnostics=codes)

    def shortfall(self, rows: int, details: Iterable[Mapping[str, Any]]) -> str | None:
        """Compare distinct neurons with the largest total that a page named.

        Not with the last: when the index shrinks while it is read, later pages shift by
        as many neurons as their total falls, and what slipped through would not show.
        """
        total = max((detail.get("total", 0) for detail in details), default=0)
        if rows == total:
            return None
        return (
            f"the service names {total} neurons and {rows} distinct ones came: "
            "its index changed while it was read"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traces:
    """Standardized SWC files of the neurons that match."""

    filters: Mapping[str, Any]
    schema: pa.Schema = _TRACES
    row_key: str | None = None

    def enumerate(self, cursor: Json) -> Enumeration:
        """A page of neurons at a time, each neuron an item, by id.

        The cursor keeps the next page and the last id, so that a neuron which moves to
        a later page while paging is not planned twice.
        """
        state: Mapping[str, Any] = cursor if isinstance(cursor, Mapping) else {}
        page, last = state.get("page", 0), state.get("last", 0)
        while True:
            (body,) = (yield Ask((_page(self.filters, page, PAGE),))) or ()
            _, pages = _paging(body)
            items = []
            for record in _neurons_of(body, page):
                if record["neuron_id"] > last:
                    items.append(_trace_item(record))
                    last = record["neuron_id"]
            page += 1
            if page >= pages:
                yield Block(tuple(items))
                return
            yield Block(tuple(items), {"page": page, "last": last})

    def decode(
        self, item: Item, chunks: Iterator[bytes], *, as_records: bool
    ) -> Decoded:
        """Nodes in file order; what was odd goes into the item."""
        trace = read_swc(whole(chunks))
        (rows,) = _batches([(item.context, trace)])
        return Decoded(
            batches=() if as_records else (rows,),
            # A trace has no records of its own: its rows as dicts.
            records=rows.to_pylist() if as_records else None,
            diagnostics=trace.codes,
            detail=_trace_detail(trace),
        )

    def decode_many(self, bodies: list[tuple[Item, bytes]]) -> list[Decoded | None]:
        """The plain ones among some traces; their rows are parts of one batch."""
        traces = read_alike([body for _, body in bodies])
        rows = _batches(
            [
                (item.context, trace)
                for (item, _), trace in zip(bodies, traces, strict=True)
                if trace is not None
            ]
        )
        return [
            None
            if trace is None
            else Decoded(
                batches=(next(rows),),
                diagnostics=trace.codes,
                detail=_trace_detail(trace),
            )
            for trace in traces
        ]

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """How many nodes a trace has is known from the trace alone."""
        return None


def _trace_item(record: Mapping[str, Any]) -> Item:
    name, archive = record["neuron_name"], record["archive"]
    # Folders are the archive's name in lower case, whole (Wearne_Hof: wearne_hof).
    path = f"/dableFiles/{segment(archive.lower())}/CNG%20version/{segment(name)}"
    folder, file = archive.replace("/", "_"), name.replace("/", "_")
    return Item(
        key=f"neuron={record['neuron_id']}",
        request=Request(
            target=f"{path}.CNG.swc",
            media="swc",
            may_be_absent=True,
            file=FileWish(path=f"{folder}/CNG version/{file}.CNG.swc"),
        ),
        context={
            "neuron_id": record["neuron_id"],
            "neuron_name": name,
            "archive": archive,
        },
    )


def _batches(
    traces: list[tuple[Mapping[str, Any], Morphology]],
) -> Iterator[pa.RecordBatch]:
    """The rows of each trace."""
    if not traces:
        return
    counts = [trace.batch.num_rows for _, trace in traces]
    contexts = [context for context, _ in traces]
    ids = np.array([one["neuron_id"] for one in contexts], np.int64)
    (nodes,) = (
        pa.Table.from_batches([trace.batch for _, trace in traces])
        .combine_chunks()
        .to_batches()
    )
    batch = pa.RecordBatch.from_arrays(
        [
            wrapped(pa.int64(), ids.repeat(counts)),
            repeated([one["neuron_name"] for one in contexts], counts),
            repeated([one["archive"] for one in contexts], counts),
            repeated(["CNG"], [sum(counts)]),
            *nodes.columns,
        ],
        schema=_TRACES_STORED,
    )
    start = 0
    for count in counts:
        yield batch.slice(start, count)
        start += count


def _trace_detail(trace: Morphology) -> dict[str, Any]:
    return {
        "n_nodes": trace.batch.num_rows,
        "n_roots": trace.n_roots,
        "n_rejected": trace.n_rejected,
        "header": trace.header,
        "metadata": dict(trace.metadata),
        "units": trace.units,
        "units_assumed": trace.units_assumed,
        "offset": trace.offset,
        "encoding": trace.encoding,
        "line_ends": trace.line_ends,
        "messages": [
            f"line {one.line}: {one.code}: {one.text}" for one in trace.diagnostics
        ],
    }


def _one_neuron(key: Any) -> Request:
    if type(key) is int:
        return Request(target=f"/api/neuron/id/{key}")
    if isinstance(key, str):  # "5038801" is a name: numeric names exist
        return Request(target=f"/api/neuron/name/{segment(key)}")
    raise ConfigurationError(f"expected an id or a name, got {key!r}")


class NeuroMorpho(Client):
    """https://neuromorpho.org: digital reconstructions of neurons."""

    service = "neuromorpho"
    default_url = "https://neuromorpho.org"
    # Handed down by way of neuromorphr: about 5 requests a second for API and files
    # together, and not more than 5 side by side; 4 leaves one for a browser.
    default_limits = Limits(rate=5.0, concurrency=4)
    limits_source = "its maintainers ask for about 5 requests a second"

    neurons: Table
    traces: Table

    descriptions: ClassVar[tuple[Description, ...]] = (
        Description(
            name="neurons",
            summary="Neurons: one record each",
            item=f"pages of up to {PAGE} neurons",
            # 1.9 kB a record, the mean over the whole collection.
            item_bytes=lambda item: 1900.0 * item.context.get("rows", PAGE),
            filters=_FILTERS,
            schema=_NEURONS,
            row_key="neuron_id",
            source=lambda filters: _Neurons(filters=filters),
            one=_one_neuron,
        ),
        Description(
            name="traces",
            summary="Traces: the nodes of the neurons' standardized SWC files",
            item="SWC files",
            item_bytes=70_000,  # the mean over the whole collection
            files="asked",
            filters=_FILTERS,
            schema=_TRACES,
            source=lambda filters: _Traces(filters=filters),
        ),
    )

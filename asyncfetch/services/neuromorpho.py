"""NeuroMorpho.Org: neurons, and their traces as SWC files.

Content is CC BY 4.0; its papers must be cited, which is why archive, DOI and PubMed ids
are in every record. The API serves pages of at most 500 records; files lie under
``/dableFiles``. Links inside records point to ``http://`` and elsewhere and are never
followed: every address is built on the configured base.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from asyncfetch._absence import Health
from asyncfetch._decode import (
    EXTRA,
    JSON,
    document,
    repeated,
    whole,
    with_repeated,
    wrapped,
)
from asyncfetch._engine import Plan
from asyncfetch._model import (
    Decoded,
    Enumeration,
    FileWish,
    Item,
    Json,
    Limits,
    Request,
    Response,
    Source,
)
from asyncfetch.errors import ConfigurationError, DecodeError, NotFound, ResponseError
from asyncfetch.services._literature import (
    LITERATURE,
    LITERATURE_FILTERS,
    PUBLICATIONS,
    prepared,
)
from asyncfetch.services._measurements import (
    MORPHOMETRY,
    PERSISTENCE,
    PerNeuron,
    measures,
    persistence,
)
from asyncfetch.services._paging import segment, target
from asyncfetch.services._papers import markdown, paper_of
from asyncfetch.services._records import Pages
from asyncfetch.services._select import (
    FILTERS,
    NEURONS,
    PAGE,
    QUERY,
    QUERY_NAMES,
    TEXTS,
    Census,
    Record,
    Walk,
    field_names,
    paging,
)
from asyncfetch.services._table import Client, Description, Filter, Table, column
from asyncfetch.swc import NODES_SCHEMA, Morphology, read_alike, read_swc

# So many there were in 2023 (release 8.5): the collection grows, and the service has
# been seen to serve a nearly empty index after a restart.
AT_LEAST = 250_000
# Bytes of a standardization log that are kept beside the item; real ones have few.
MOST_OF_A_LOG = 64 << 10

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
        *(_text_column(name) for name in TEXTS),
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

_VERSIONS = {
    "cng": "CNG",
    "cng version": "CNG",
    "standardized": "CNG",
    "source": "Source",
    "source version": "Source",
    "original": "Source",
}
_VERSION = Filter(
    name="version",
    kind=str,
    spellings=_VERSIONS,
    doc="CNG: standardized by the service (default); Source: as it was contributed",
)
_TRACE_FILTERS = (
    *FILTERS,
    _VERSION,
    Filter(
        name="logs", kind=bool, doc="also the logs of the standardization, as files"
    ),
)
# Folder and ending of each kind of file below an archive's folder.
_PLACES = {
    "CNG": ("CNG version", ".CNG.swc"),
    "Source": ("Source-Version", ""),
    "issues": ("Remaining issues", ".CNG.swc.std"),
    "log": ("Standardization log", ".std"),
}


def _extension(record: Record) -> str:
    """The ending of the file that the authors gave, with its dot.

    Raises
    ------
    ConfigurationError
        The record does not say it.
    """
    text = record.get("original_format")
    if text == "Custom.xml":
        return ".morph.xml"
    _, dot, extension = text.rpartition(".") if isinstance(text, str) else ("", "", "")
    if not dot or not (extension.isalnum() and extension.isascii()):
        raise ConfigurationError(
            f"expected an original_format such as Neurolucida.asc, got {text!r}"
        )
    return f".{extension}"


def _name_in(record: Record, field_name: str) -> str:
    found = record.get(field_name)
    if not isinstance(found, str):
        raise ConfigurationError(f"expected a text as {field_name}, got {found!r}")
    return found


def _file_target(folder: str, name: str, kind: str, ending: str = "") -> str:
    between, usual = _PLACES[kind]
    file = f"{segment(name)}{ending or usual}"  # no ending needs to be quoted
    return f"/dableFiles/{segment(folder)}/{between.replace(' ', '%20')}/{file}"


def _files_of(record: Record, version: str, *, logs: bool = False) -> Iterator[Item]:
    """The trace of a neuron, and the logs of its standardization."""
    neuron = record["neuron_id"]
    name, archive = _name_in(record, "neuron_name"), _name_in(record, "archive")
    context = {
        "neuron_id": neuron,
        "neuron_name": name,
        "archive": archive,
        "papers": [[*paper_of(record), 1]],
    }
    ending = _extension(record) if version == "Source" else ""
    kinds = [("neuron", version, ending)]
    if logs:
        kinds += [("issues", "issues", ""), ("log", "log", "")]
    folder, file = archive.replace("/", "_"), name.replace("/", "_")
    for key, kind, ends in kinds:
        between, usual = _PLACES[kind]
        is_trace = key == "neuron" and ends.lower() in {"", ".swc"}
        extra = {} if is_trace else {"kept_as": kind}
        extra |= {"ending": ends} if ends else {}
        yield Item(
            key=f"{key}={neuron}",
            request=Request(
                # Folders are the archive's name in lower case, whole.
                target=_file_target(archive.lower(), name, kind, ends),
                media="swc" if is_trace else "bytes",
                may_be_absent=True,
                file=FileWish(path=f"{folder}/{between}/{file}{ends or usual}"),
            ),
            context={**context, **extra},
        )


def _elsewhere(item: Item, version: str) -> tuple[str, ...]:
    """Where a file may lie that is not where it should: names are not consistent."""
    archive, name = item.context["archive"], item.context["neuron_name"]
    kind = item.context.get("kept_as", version)
    folder = archive.lower()
    swapped = folder.replace(" ", "\0").replace("_", " ").replace("\0", "_")
    places = [(archive, name), (swapped, name)]
    if name.strip():
        places.append((folder, name.strip()))
    targets = [
        _file_target(one, file, kind, item.context.get("ending", ""))
        for one, file in places
    ]
    first = item.request.target
    return tuple(one for one in dict.fromkeys(targets) if one != first)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traces:
    """Files of the neurons that match: their nodes, where they are in SWC."""

    filters: Mapping[str, Any]
    version: str = "CNG"
    logs: bool = False
    schema: pa.Schema = _TRACES
    row_key: str | None = None
    census: Census | None = None
    known: pa.Table | None = None

    @classmethod
    def of(cls, filters: Mapping[str, Any]) -> Self:
        """The source for all filters of the table."""
        query = {k: v for k, v in filters.items() if k not in {"version", "logs"}}
        return cls(
            filters=query,
            version=filters.get("version", "CNG"),
            logs=filters.get("logs", False),
        )

    @property
    def is_mixed(self) -> bool:
        """Whether there may be files that are not in SWC."""
        return self.logs or self.version != "CNG"

    def enumerate(self, cursor: Json) -> Enumeration:
        """A page of neurons at a time, each neuron an item, by id."""
        walk = Walk(self.filters, self.census, self.known)
        yield from walk.blocks(
            cursor, lambda record: _files_of(record, self.version, logs=self.logs)
        )

    def elsewhere(self, item: Item) -> tuple[str, ...]:
        """Where else the file may lie."""
        if "archive" not in item.context:
            return ()
        return _elsewhere(item, self.version)

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Nodes in file order; what was odd goes into the item.

        Raises
        ------
        DecodeError
            No row is usable, or the file is empty.
        """
        data = whole(chunks)
        if "kept_as" in item.context:
            return _kept(item, data)
        trace = read_swc(data)
        (rows,) = _batches([(item.context, trace)], self.version)
        return Decoded(
            batches=() if as_records else (rows,),
            # A trace has no records of its own: its rows as dicts.
            records=rows.to_pylist() if as_records else None,
            diagnostics=trace.codes,
            detail=_trace_detail(item.context, trace),
        )

    def decode_many(self, bodies: list[tuple[Item, bytes]]) -> list[Decoded | None]:
        """The plain ones among some traces; their rows are parts of one batch."""
        if self.is_mixed:  # what is only kept is not to be taken for a trace
            bodies = [
                (item, b"" if "kept_as" in item.context else body)
                for item, body in bodies
            ]
        traces = read_alike([body for _, body in bodies])
        rows = _batches(
            [
                (item.context, trace)
                for (item, _), trace in zip(bodies, traces, strict=True)
                if trace is not None
            ],
            self.version,
        )
        return [
            None
            if trace is None
            else Decoded(
                batches=(next(rows),),
                diagnostics=trace.codes,
                detail=_trace_detail(item.context, trace),
            )
            for (item, _), trace in zip(bodies, traces, strict=True)
        ]

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """Nothing beyond the plan: a trace alone knows how many nodes it has."""
        return None

    def citation(self, details: Iterable[Mapping[str, Any]]) -> str | None:
        """What is to be cited, in Markdown."""
        return markdown(details)


def _kept(item: Item, data: bytes) -> Decoded:
    """What becomes of a file that is stored and not read."""
    if not data.strip():
        raise DecodeError("expected a file, got an empty one", code="no-data")
    kind = item.context["kept_as"]
    detail: dict[str, Any] = {
        "papers": item.context.get("papers", []),
        "kept_as": item.context.get("ending", "").lstrip(".") or kind,
    }
    if kind != "Source":  # text, of whatever encoding
        detail["log"] = data[:MOST_OF_A_LOG].decode("utf-8", "replace")
    return Decoded(detail=detail)


def _batches(
    traces: list[tuple[Mapping[str, Any], Morphology]], version: str
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
            repeated([version], [sum(counts)]),
            *nodes.columns,
        ],
        schema=_TRACES_STORED,
    )
    start = 0
    for count in counts:
        yield batch.slice(start, count)
        start += count


def _trace_detail(context: Mapping[str, Any], trace: Morphology) -> dict[str, Any]:
    return {
        "papers": context.get("papers", []),
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


def _per_neuron(filters: Mapping[str, Any], **options: Any) -> PerNeuron:
    return PerNeuron(filters=filters, **options)


def _version(text: str) -> str:
    checked = _VERSION.check(text)
    assert isinstance(checked, str)
    return checked


def _one_publication(key: Any) -> Request:
    if isinstance(key, str):
        return Request(target=f"/api/literature/id/{segment(key)}")
    raise ConfigurationError(f"expected an article_id, got {key!r}")


def _is_up(body: bytes) -> bool:
    try:
        found = json.loads(body)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("status") == "UP"


class _OfNeurons(Table):
    """A table that begins with the list of neurons."""

    client: NeuroMorpho

    def plan(self, *, limit: int | None = None, **filters: Any) -> Plan:
        """The items that *filters* come to, at most *limit*; asks nothing yet."""
        plan = super().plan(limit=limit, **filters)
        if isinstance(plan.source, _Traces) and plan.source.is_mixed:
            # Files that are not read are worth nothing if they are not stored.
            return replace(plan, files="always")
        return plan

    def _source(self, filters: Mapping[str, Json]) -> Source:
        source: Any = self.description.source(filters)
        made: Source = replace(source, census=self.client.census)
        return made


class NeuroMorpho(Client):
    """https://neuromorpho.org: digital reconstructions of neurons.

    Parameters
    ----------
    accept_fewer
        Go on although the service has far fewer neurons in all than it had: after a
        restart its index may be nearly empty, and what is read would look complete.
    """

    service = "neuromorpho"
    default_url = "https://neuromorpho.org"
    # Handed down by way of neuromorphr: about 5 requests a second for API and files
    # together, and not more than 5 side by side; 4 leaves one for a browser.
    default_limits = Limits(rate=5.0, concurrency=4)
    limits_source = "its maintainers ask for about 5 requests a second"
    health_check = Health(target="/api/health", is_up=_is_up)

    neurons: Table
    traces: Table
    morphometry: Table
    persistence_vectors: Table
    literature: Table

    def __init__(self, *, accept_fewer: bool = False, **options: Any) -> None:
        super().__init__(**options)
        is_the_service = self.exchange.base_url == self.default_url
        self.census = Census(
            remembered=lambda: self.exchange.remembered,
            floor=AT_LEAST if is_the_service else 0,
            accepts_fewer=accept_fewer,
        )

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A client set up by the environment.

        ``ASYNCFETCH_NEUROMORPHO_URL`` is another base URL, and
        ``ASYNCFETCH_NEUROMORPHO_ACCEPT_FEWER=1`` sets *accept_fewer*.
        """
        if os.environ.get("ASYNCFETCH_NEUROMORPHO_ACCEPT_FEWER", "0") not in {"", "0"}:
            options.setdefault("accept_fewer", True)
        return super().from_env(**options)

    async def neuron(self, key: int | str) -> dict[str, Any]:
        """The record of one neuron, by its id (a number) or its name (a text).

        Raises
        ------
        NotFound
            There is no such neuron, and the service is up.
        """
        record: dict[str, Any] = await self.neurons.get(key)
        return record

    async def trace(self, key: int | str, *, version: str = "CNG") -> Morphology:
        """The trace of one neuron, by its id (a number) or its name (a text).

        Parameters
        ----------
        version
            ``CNG``: standardized by the service; ``Source``: as it was contributed.

        Raises
        ------
        NotFound
            There is no such neuron, or no such file.
        ConfigurationError
            The file is in another format than SWC.
        DecodeError
            No row of it can be used.
        """
        version = _version(version)
        item = next(_files_of(await self.neuron(key), version))
        if "kept_as" in item.context:
            raise ConfigurationError(
                f"expected a trace in SWC, that of {key!r} is in "
                f"{item.context['ending'].lstrip('.')}: fetch the table traces with "
                "version=Source, which stores it"
            )
        for place in (item.request.target, *_elsewhere(item, version)):
            try:
                answer = await self.exchange.ask(
                    replace(item.request, target=place),
                    lambda chunks, _response: read_swc(whole(chunks)),
                    interactive=True,
                )
            except NotFound:
                continue
            return answer.value
        raise NotFound(f"neuromorpho has no {version} trace of {key!r}", status=404)

    def trace_url(self, record: Mapping[str, Any], *, version: str = "CNG") -> str:
        """Where the trace of the neuron with that record lies.

        Parameters
        ----------
        record
            As the service gives it; of ``archive`` and ``neuron_name``, and for a
            source ``original_format``, too.
        version
            ``CNG`` (or ``CNG version``), or ``Source`` (or ``Source-Version``).
        """
        (item,) = _files_of({"neuron_id": 0, **record}, _version(version))
        return self.exchange.base_url + item.request.target

    async def health(self) -> dict[str, Any]:
        """What the service says of itself: ``{"status": "UP"}`` when all is well."""
        try:
            found: dict[str, Any] = await self._asked("/api/health")
        except ResponseError as error:  # a service that is down may say so with a 503
            return {"status": "DOWN", "error": str(error)}
        return found

    async def fields(self) -> list[str]:
        """Names of the fields of a neuron that may be queried."""
        return field_names(await self._asked("/api/neuron/fields"))

    async def field_values(self, field: str) -> list[str]:
        """All values of a field that neurons may be queried by."""
        pages = [page async for page in self._field_pages("fields", field)]
        return list(dict.fromkeys(value for page in pages for value in page))

    async def partition(self, field: str) -> dict[str, int]:
        """How many neurons there are of each value of a field."""
        found: dict[str, int] = {}
        async for page in self._field_pages("partition", field):
            found |= page
        return found

    async def _field_pages(self, kind: str, field_name: str) -> AsyncIterator[Any]:
        names = {one.name.casefold(): one.name for one in FILTERS}
        name = names.get(field_name.casefold(), field_name)
        name = QUERY_NAMES.get(name, name)
        page = 0
        while True:
            query = {"page": str(page), "size": str(PAGE)}
            path = f"/api/neuron/{kind}/{segment(name)}"
            body = await self._asked(target(path, query))
            if not isinstance(body, dict) or "fields" not in body:
                raise DecodeError(f"expected fields from {path} - at $", code="type")
            yield body["fields"]
            page += 1
            if page >= paging(body)[1]:
                return

    async def _asked(self, where: str) -> Any:
        answer = await self.exchange.ask(
            Request(target=where),
            lambda chunks, _response: document(chunks),
            interactive=True,
        )
        return answer.value

    descriptions: ClassVar[tuple[Description, ...]] = (
        Description(
            name="neurons",
            summary="Neurons: one record each",
            item=f"pages of up to {PAGE} neurons",
            # 1.9 kB a record, the mean over the whole collection.
            item_bytes=lambda item: 1900.0 * item.context.get("rows", PAGE),
            filters=FILTERS,
            schema=_NEURONS,
            row_key="neuron_id",
            table=_OfNeurons,
            source=lambda filters: Pages(
                listing=NEURONS, filters=filters, schema=_NEURONS, row_key="neuron_id"
            ),
            one=_one_neuron,
        ),
        Description(
            name="traces",
            summary="Traces: the nodes of the neurons' SWC files",
            item="SWC files",
            item_bytes=70_000,  # the mean over the whole collection
            files="asked",
            filters=_TRACE_FILTERS,
            schema=_TRACES,
            table=_OfNeurons,
            source=_Traces.of,
        ),
        Description(
            name="morphometry",
            summary="Measurements of the neurons, by L-Measure",
            item="neurons",
            item_bytes=600,
            filters=FILTERS,
            schema=MORPHOMETRY,
            row_key="neuron_id",
            table=_OfNeurons,
            source=partial(
                _per_neuron, path="morphometry", schema=MORPHOMETRY, row=measures
            ),
        ),
        Description(
            name="persistence-vectors",
            summary="Persistence vectors of the neurons: 100 numbers each",
            item="neurons",
            item_bytes=2000,
            filters=FILTERS,
            schema=PERSISTENCE,
            row_key="neuron_id",
            table=_OfNeurons,
            source=partial(
                _per_neuron, path="pvec", schema=PERSISTENCE, row=persistence
            ),
        ),
        Description(
            name="literature",
            summary="Publications that the service knows of",
            item=f"pages of up to {PAGE} publications",
            item_bytes=lambda item: 800.0 * item.context.get("rows", PAGE),
            filters=(*QUERY, *LITERATURE_FILTERS),
            schema=LITERATURE,
            row_key="article_id",
            source=lambda filters: Pages(
                listing=PUBLICATIONS,
                filters=filters,
                schema=LITERATURE,
                row_key="article_id",
                prepared=prepared,
            ),
            one=_one_publication,
        ),
    )

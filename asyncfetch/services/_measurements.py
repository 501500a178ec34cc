"""Tables of NeuroMorpho.Org with one request a neuron: measurements, not records.

The service offers both only by id, or all at once as a dump; none can be selected. So
the neurons are selected, and each is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from asyncfetch._decode import EXTRA, JSON, batch_of, document, whole
from asyncfetch._model import Decoded, Enumeration, Item, Json, Request, Response
from asyncfetch.errors import DecodeError, IntegrityError
from asyncfetch.services._papers import markdown, paper_of
from asyncfetch.services._select import Census, Record, Walk, all_unparsed
from asyncfetch.services._table import column

_UNITS = {
    "surface": "µm²",
    "volume": "µm³",
    "width": "µm",
    "height": "µm",
    "depth": "µm",
    "diameter": "µm",
    "eucDistance": "µm",
    "pathDistance": "µm",
    "bif_ampl_local": "degrees",
    "soma_Surface": "µm²",
    "bif_ampl_remote": "degrees",
    "length": "µm",
}
_MEASURES = tuple(
    "surface volume n_bifs n_branch width height depth diameter eucDistance "
    "pathDistance branch_Order contraction fragmentation partition_asymmetry "
    "pk_classic bif_ampl_local fractal_Dim soma_Surface n_stems bif_ampl_remote "
    "length".split()
)
_DOCS = {"fragmentation": "points of the reconstruction, about the nodes of its trace"}
_UNKNOWN = column(
    EXTRA, JSON, "unknown fields, and values that are not what they should"
)

MORPHOMETRY = pa.schema(
    [
        column("neuron_id", pa.int64(), nullable=False),
        column("neuron_name", pa.string()),
        column("archive", pa.string()),
        *(
            column(name, pa.float64(), _DOCS.get(name, ""), unit=_UNITS.get(name))
            for name in _MEASURES
        ),
        _UNKNOWN,
    ]
)
PERSISTENCE = pa.schema(
    [
        column("neuron_id", pa.int64(), nullable=False),
        column("neuron_name", pa.string()),
        column("archive", pa.string()),
        column("scaling_factor", pa.float64()),
        column("distance", pa.float64()),
        column("coefficients", pa.list_(pa.float64()), "100 of them"),
        column("raw", pa.string(), "the body as it came, where it is no JSON"),
        _UNKNOWN,
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerNeuron:
    """One answer a neuron."""

    filters: Mapping[str, Any]
    path: str
    """Of the resource, below the API."""
    schema: pa.Schema
    row: Callable[[bytes], dict[str, Any]]
    """From a body, which may be empty, to the fields of its row."""
    census: Census | None = None
    known: pa.Table | None = None
    row_key: str | None = "neuron_id"

    def enumerate(self, cursor: Json) -> Enumeration:
        """A page of neurons at a time, each neuron an item, by id."""
        walk = Walk(self.filters, self.census, self.known)
        yield from walk.blocks(cursor, self._items)

    def _items(self, record: Record) -> Iterable[Item]:
        neuron = record["neuron_id"]
        yield Item(
            key=f"neuron={neuron}",
            request=Request(
                target=f"/api/{self.path}/id/{neuron}",
                media="bytes",  # JSON, mostly; a body may be empty or a text
                may_be_absent=True,
            ),
            context={
                "neuron_id": neuron,
                "neuron_name": record.get("neuron_name"),
                "archive": record.get("archive"),
                "papers": [[*paper_of(record), 1]],
            },
        )

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """One row; of nulls where the body is empty.

        Raises
        ------
        IntegrityError
            The answer is another neuron's.
        """
        return self._decoded(item, whole(chunks).strip(), as_records)

    def absent(self, item: Item, *, as_records: bool) -> Decoded:
        """A row of nulls: a neuron that was not measured is a neuron of the query."""
        decoded = self._decoded(item, b"", as_records)
        return replace(decoded, diagnostics=("not-measured",))

    def _decoded(self, item: Item, body: bytes, as_records: bool) -> Decoded:
        context = item.context
        found = self.row(body)
        named = found.get("neuron_id")
        if named is not None and str(named) != str(context["neuron_id"]):
            raise IntegrityError(
                f"expected neuron {context['neuron_id']} at $.neuron_id, got {named!r}"
            )
        detail = {"papers": context.get("papers", [])}
        if as_records:
            return Decoded(records=[found] if body else [], detail=detail)
        own = {name: context[name] for name in ("neuron_id", "neuron_name", "archive")}
        unparsed: Counter[str] = Counter()
        batch, codes = batch_of(
            [{**found, **own}],
            self.schema,
            ignore=frozenset({"_links"}),
            lenient=True,
            unparsed=unparsed,
        )
        if unparsed:
            detail["unparsed"] = dict(unparsed)
        return Decoded(batches=(batch,), diagnostics=codes, detail=detail)

    def unparsed(self, details: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
        """How many values of each column are kept aside."""
        return all_unparsed(details)

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """Nothing beyond the plan: each neuron is an item."""
        return None

    def citation(self, details: Iterable[Mapping[str, Any]]) -> str | None:
        """What is to be cited, in Markdown."""
        return markdown(details)


def measures(body: bytes) -> dict[str, Any]:
    """The fields of a body of measurements.

    Raises
    ------
    DecodeError
        It is no object.
    """
    if not body:
        return {}
    found = document(iter([body]))
    if not isinstance(found, dict):
        raise DecodeError("expected object - at $", code="type")
    return found


def persistence(body: bytes) -> dict[str, Any]:
    """The fields of a persistence vector; its text, where it is no JSON.

    How the fields are called is not on record: a name that tells what it is about is
    taken, and the one array for the coefficients.
    """
    if not body:
        return {}
    try:
        found = document(iter([body]))
    except IntegrityError:
        return {"raw": body.decode("utf-8", "replace")}
    if isinstance(found, list):
        return {"coefficients": found}
    if not isinstance(found, dict):
        return {"raw": body.decode("utf-8", "replace")}
    fields: dict[str, Any] = {}
    for name, value in found.items():
        plain = name.lower()
        if "scal" in plain:
            fields.setdefault("scaling_factor", value)
        elif "dist" in plain:
            fields.setdefault("distance", value)
        elif isinstance(value, list) and "coefficients" not in fields:
            fields["coefficients"] = value
        else:
            fields[name] = value
    return fields

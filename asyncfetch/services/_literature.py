"""The publications that NeuroMorpho.Org knows of.

Their names are in camel case, and their vocabularies are not those of the neurons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from asyncfetch._decode import EXTRA, JSON
from asyncfetch.services._select import Listing
from asyncfetch.services._table import Filter, column

PUBLICATIONS = Listing(
    path="/api/literature", records="publicationResources", sort="article_id"
)

_LISTS = ("authors", "species", "brainRegion", "cellType", "tracingSystem")
_DATES = ("evaluatedDate", "publishedDate")
# A date with a time behind it; the day is what is meant.
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[T ]")

_NAMES = tuple(
    "pmid doi journal title authors species brainRegion cellType tracingSystem "
    "evaluatedDate publishedDate globalStatus collection dataUsage "
    "sharedReconstructions status".split()
)


def _kind(name: str) -> pa.DataType:
    if name in _LISTS:
        return pa.list_(pa.string())
    return pa.date32() if name in _DATES else pa.string()


LITERATURE = pa.schema(
    [
        column("article_id", pa.string(), "24 hexadecimal digits", nullable=False),
        *(column(name, _kind(name)) for name in _NAMES),
        column("nReconstructions", pa.float64()),
        column(EXTRA, JSON, "unknown fields, and values that are not what they should"),
    ]
)
LITERATURE_FILTERS = tuple(
    Filter(name=name, kind=str, many=True)
    for name in ("article_id", *_NAMES)
    if name not in _DATES
)


def prepared(record: Any) -> Any:
    """A record with its days as days, and its number of reconstructions on top."""
    if not isinstance(record, Mapping):
        return record
    changed = dict(record)
    for name in _DATES:
        if isinstance(text := record.get(name), str) and (day := _MOMENT.match(text)):
            changed[name] = day[1]
    for name in ("dataUsage", "sharedReconstructions", "collection", "globalStatus"):
        if isinstance(value := record.get(name), bool):
            changed[name] = str(value).lower()
    status = record.get("status")
    if isinstance(status, Mapping) and "nReconstructions" not in record:
        changed["nReconstructions"] = status.get("nReconstructions")
    return changed

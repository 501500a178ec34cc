"""An archive of neurons in one pass: their records, traces, files, and what to cite.

::

    <root>/neurons/       a dataset of records
    <root>/traces/        a dataset of nodes, with the exact files below _files/
    <root>/CITATION.md

The traces are planned from the records that have been fetched, so that no page is asked
for twice. Everything here blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from asyncfetch._dataset import open_dataset
from asyncfetch._ledger import store_at, stored_plan
from asyncfetch._model import ODD_RECORD
from asyncfetch._objects import Destination, below
from asyncfetch.errors import ConfigurationError
from asyncfetch.services._papers import cited

if TYPE_CHECKING:
    from asyncfetch._engine import Plan
    from asyncfetch.services._table import Client

# What is needed of a record to find its files, and to cite it.
_COLUMNS = (
    "neuron_id",
    "neuron_name",
    "archive",
    "original_format",
    "reference_doi",
    "reference_pmid",
)


def neurons_plan(client: Client, filters: Mapping[str, Any]) -> Plan:
    """The plan for the records that *filters* of traces are about."""
    table = client.table("neurons")
    own = {k: v for k, v in filters.items() if table.description.find(k) is not None}
    return table.plan(**own)


def traces_plan(client: Client, filters: Mapping[str, Any], root: Destination) -> Plan:
    """The plan for the traces of the records that lie in a mirror."""
    rows = open_dataset(below(root, "neurons")).rows.to_table(columns=list(_COLUMNS))
    plan = client.table("traces").plan(**filters)
    source: Any = plan.source
    return replace(plan, source=replace(source, known=rows.sort_by("neuron_id")))


def is_readable(root: Destination) -> bool:
    """Whether all records of a mirror have been asked for, and came.

    One that gives no row stays failed, and is none that traces could wait for.
    """
    view = open_dataset(below(root, "neurons"))
    state = view.state()
    items = view.items.select(["key", "diagnostics"]).to_pylist()
    odd = {one["key"] for one in items if ODD_RECORD in one["diagnostics"]}
    failed = state.items.get("failed", 0)
    return state.plan_complete and not state.pending and failed == len(odd)


def leave_citation(root: Destination) -> None:
    """Write what is to be cited beside the datasets of a mirror."""
    text = cited(open_dataset(below(root, "neurons")).details(), "md")
    store_at(root).write_text("CITATION.md", text)


def citation(dest: Destination, form: str) -> str:
    """What is to be cited of a dataset, or of a mirror.

    Raises
    ------
    ConfigurationError
        It is of a service that asks for nothing, or there is no such format.
    """
    neurons = below(dest, "neurons")
    is_mirror = stored_plan(store_at(neurons)) is not None
    view = open_dataset(neurons if is_mirror else dest)
    plan = view.plan
    if plan.service != "neuromorpho" or plan.table == "literature":
        raise ConfigurationError(
            f"expected a dataset of neurons, got one of {plan.service}/{plan.table}: "
            "what is to be cited of it is not known here"
        )
    return cited(view.details(), form)

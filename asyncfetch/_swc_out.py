"""What becomes of a trace elsewhere: SWC text, a data frame, a graph, navis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from asyncfetch.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncfetch.swc import Morphology


def as_text(trace: Morphology, header: Mapping[str, str] | None) -> bytes:
    """The bytes of an SWC file with the nodes of a trace, in their order."""
    columns = []
    for field, column in zip(trace.batch.schema, trace.batch.columns, strict=True):
        # Arrow writes the shortest text that reads back as the same double.
        text = pc.cast(column, pa.string())
        columns.append(pc.fill_null(text, "NA") if field.nullable else text)
    rows = pc.binary_join_element_wise(*columns, " ")
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(rows)], rows), "\n")
    lines = _header_lines(trace, header)
    body: str = joined[0].as_py()
    return "".join(f"{line}\n" for line in lines).encode() + body.encode() + b"\n"


def _header_lines(trace: Morphology, header: Mapping[str, str] | None) -> list[str]:
    if header is not None:
        for name, value in header.items():
            if not f"{name}{value}".replace("\t", " ").isprintable() or not name:
                raise ConfigurationError(
                    f"expected a header line of one line, got {name!r}: {value!r}"
                )
        return [f"# {name} {value}".rstrip() for name, value in header.items()]
    # As they stand; an indented one or an end of line of old would be a finding.
    return ["#" + line.strip().lstrip("#") for line in trace.header.splitlines()]


def to_pandas(trace: Morphology) -> pd.DataFrame:
    """The nodes as a DataFrame, a missing type as NA."""
    types = {pa.int32(): pd.Int32Dtype()}
    frame: pd.DataFrame = trace.batch.to_pandas(types_mapper=types.get)
    return frame


def to_networkx(trace: Morphology) -> Any:
    """The nodes as a directed graph, from each node to its parent."""
    try:
        import networkx as nx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            "a graph needs networkx: pip install 'asyncfetch[networkx]'"
        ) from error
    graph = nx.DiGraph(units=trace.units)
    nodes = trace.batch.to_pydict()
    ids = nodes.pop("node_id")
    parents = nodes.pop("parent_id")
    for place, node in enumerate(ids):
        graph.add_node(node, **{name: one[place] for name, one in nodes.items()})
    at = np.column_stack([nodes["x"], nodes["y"], nodes["z"]])
    known = {node: place for place, node in enumerate(ids)}
    for place, (node, parent) in enumerate(zip(ids, parents, strict=True)):
        if parent != -1 and parent in known:
            length = float(np.linalg.norm(at[place] - at[known[parent]]))
            graph.add_edge(node, parent, length=length)
    return graph


def to_navis(trace: Morphology, **attributes: Any) -> Any:
    """The nodes as a ``navis.TreeNeuron``."""
    try:
        import navis  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            "a neuron of navis needs navis: pip install 'asyncfetch[navis]'"
        ) from error
    frame = to_pandas(trace).rename(columns={"type": "label"})
    frame["label"] = frame["label"].fillna(0).astype("int32")
    return navis.TreeNeuron(frame, units=trace.units, **attributes)

"""SWC text of made-up neurons: standardized files, and sources in other dialects.

A standardized file has a three-point soma, ids from 1, parents first and LF line ends,
like nearly all of the real ones. These differ, as some real ones do:

==========  ======================================================================
neuron id   its CNG file
==========  ======================================================================
31          two roots
32          a node of type -1
33          empty
34          has Latin-1 bytes in its header
35          begins with a byte order mark
==========  ======================================================================

Beside them, 18 % begin each row with a blank, 15 % list the fields of Cannon's
header, 2 % have no header, 2 % have a soma of one point and 1 % a radius of zero. Of
the source files in SWC, every second one is in another dialect: tabs, CRLF, ids as
floats, a comment after the numbers, or children before their parents.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asyncfetch.testing._answer import generator, uniforms

TWO_ROOTS, NEGATIVE_TYPE, EMPTY, LATIN_1, BYTE_ORDER_MARK = range(31, 36)

# Hundredths of a micrometre from the soma, and ids: traces stay within this.
_REACH = 50_000

_CANNON = "".join(
    f"# {line}\n"
    for line in (
        "ORIGINAL_SOURCE", "CREATURE", "REGION", "FIELD/LAYER", "TYPE", "CONTRIBUTOR",
        "REFERENCE", "RAW", "EXTRAS", "SOMA_AREA", "SHRINKAGE_CORRECTION",
        "VERSION_NUMBER", "VERSION_DATE", "SCALE 1.0 1.0 1.0",
    )
)  # fmt: skip


def count_nodes(seed: int, neuron_id: int) -> int:
    """Nodes of the neuron's trace: 800 on average."""
    return 600 + int(401 * uniforms(seed, "nodes", neuron_id)[0])


def cng(seed: int, neuron_id: int, name: str) -> bytes:
    """The standardized file."""
    if neuron_id == EMPTY:
        return b""
    blank, header, _, _ = uniforms(seed, "file", neuron_id)
    before = " " if blank < 0.18 else ""
    rows = _rows(_columns(seed, neuron_id), separator=" ")
    body = before + _text(rows, separator=f"\n{before}") + "\n"
    head = (
        f"# Original file {name}.swc edited using StdSwc version 1.31 on 5/21/15.\n"
        f"# Irregularities and fixes documented in {name}.swc.std.\n"
    )
    if header < 0.02:
        head = ""
    elif header < 0.17:
        head += _CANNON
    if neuron_id == LATIN_1:
        return "# Reconstructed in Zürich\n".encode("latin-1") + (head + body).encode()
    if neuron_id == BYTE_ORDER_MARK:
        return (head + body).encode("utf-8-sig")
    return (head + body).encode()


def source(seed: int, neuron_id: int, name: str) -> bytes:
    """The file as its authors wrote it, where that was SWC."""
    columns = _columns(seed, neuron_id)
    dialect = int(10 * uniforms(seed, "dialect", neuron_id)[0])
    if dialect == 4:  # children first
        columns = [column[::-1] for column in columns]
    if dialect == 2:  # as MATLAB writes integers
        for k in (0, 1, 6):
            columns[k] = pc.binary_join_element_wise(columns[k], "0", ".")
    body = _text(
        _rows(columns, separator="\t" if dialect == 0 else " "),
        separator="\r\n" if dialect == 1 else "\n",
    )
    if dialect == 3:
        body += " # the last node"
    return f"# {name}\n{body}\n".encode()


def _rows(columns: list[Any], *, separator: str) -> Any:
    return pc.binary_join_element_wise(*columns, separator)


def _text(rows: Any, *, separator: str) -> str:
    """All *rows* in one text, joined without leaving Arrow."""
    text: str = pc.binary_join(
        pa.ListArray.from_arrays([0, len(rows)], rows), separator
    )[0].as_py()
    return text


@functools.cache
def _numbers(parts: int) -> Any:
    """The text of every number of so many *parts* of one, as Arrow strings."""
    numbers = np.arange(-_REACH, _REACH + 1)
    return pa.array(numbers if parts == 1 else numbers / parts).cast(pa.string())


def _columns(seed: int, neuron_id: int) -> list[Any]:
    """The seven columns as Arrow strings.

    Their text is looked up, not written: a fifth of the time of a format string.
    """
    random = generator(seed, "trace", neuron_id)
    count = count_nodes(seed, neuron_id)
    shape = uniforms(seed, "shape", neuron_id)
    soma = 1 if shape[0] < 0.02 else 3
    radius = random.integers(400, 1200)

    # Branches are runs of consecutive nodes. The first five start at the soma, later
    # ones at any node before them.
    ends = np.unique(random.integers(soma + 10, count, count // 20))
    starts = np.concatenate([[soma], ends])
    branch = np.repeat(np.arange(len(starts)), np.diff([*starts, count]))
    parent = np.arange(count) - 1
    parent[starts[:5]] = 0
    parent[starts[5:]] = (starts[5:] * random.random(len(starts[5:]))).astype(np.int64)

    # In hundredths of a micrometre, so that the text is short.
    walk = np.cumsum(np.rint(random.normal(0, 150, (count - soma, 3))), axis=0)
    place = np.zeros((count, 3), dtype=np.int64)
    place[soma:] = walk
    shift = np.zeros((len(starts), 3), dtype=np.int64)
    for k, start in enumerate(starts.tolist()):
        root = parent[start]
        at = place[root] + shift[branch[root - soma]] if root >= soma else 0
        shift[k] = at - (place[start - 1] if start > soma else 0)
    place[soma:] += shift[branch]
    place = np.clip(place, -_REACH, _REACH)
    thickness = random.integers(10, 150, count)
    kind = np.full(count, 3)
    kind[soma:][branch % 5 == 1] = 2
    kind[soma:][branch % 5 == 2] = 4

    thickness[:soma], kind[:soma], parent[0] = radius, 1, -2
    if soma == 3:  # the centre, then a radius to each side along y
        place[1:3, 1] = -radius, radius
        parent[1:3] = 0
    if shape[1] < 0.014:
        thickness[-1] = 0
    if neuron_id == TWO_ROOTS:
        parent[starts[3]] = -2
    elif neuron_id == NEGATIVE_TYPE:
        kind[-1] = -1
    whole = (
        np.arange(1, count + 1),
        kind,
        # Ids count from 1, and a root has the parent -1.
        np.where(parent < 0, -1, parent + 1),
    )
    number, node_type, up = (_numbers(1).take(column + _REACH) for column in whole)
    hundredths = (*place.T, thickness)
    x, y, z, r = (_numbers(100).take(column + _REACH) for column in hundredths)
    return [number, node_type, x, y, z, r, up]

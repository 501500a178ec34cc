"""A look at traces: projections with a scale bar, by matplotlib.

Loaded when something is to be drawn and not before; matplotlib is an extra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncfetch.errors import ConfigurationError

if TYPE_CHECKING:
    import pyarrow as pa

# Colours that stay apart for those who see red and green alike (Okabe and Ito).
_TYPES = {
    1: ("soma", "#000000"),
    2: ("axon", "#D55E00"),
    3: ("basal dendrite", "#0072B2"),
    4: ("apical dendrite", "#CC79A7"),
}
_OTHER = ("other", "#009E73")
# The projections: place in the grid, horizontal and vertical axis.
_VIEWS = (((0, 0), "x", "y"), ((0, 1), "z", "y"), ((1, 0), "x", "z"))
# Of the extent of a trace, the longest scale bar that is not in the way.
_BAR = 0.35
_GAP = 0.06


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is to be drawn of one trace."""

    title: str
    nodes: pa.Table
    """With the columns of a trace's nodes."""
    unit: str = "µm"


def figure_class() -> Any:
    """Matplotlib's figure, or one clear line where it is not installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            "a plot needs matplotlib: pip install 'asyncfetch[plot]'"
        ) from error
    return Figure


def draw(drawings: Sequence[Drawing]) -> Any:
    """A figure of matplotlib with three projections of each trace, all to one scale.

    Raises
    ------
    ConfigurationError
        There is nothing to draw, or no matplotlib.
    """
    if not drawings:
        raise ConfigurationError("expected a trace to draw, got none")
    across = math.ceil(math.sqrt(len(drawings)))
    down = math.ceil(len(drawings) / across)
    figure = figure_class()(figsize=(6.4 * across, 6.4 * down))
    for place, drawing in enumerate(drawings):
        left, top = place % across, place // across
        axes = figure.add_axes(
            (left / across, 1 - (top + 1) / down, 1 / across, 1 / down)
        )
        draw_on(axes, drawing)
    return figure


def draw_on(axes: Any, drawing: Drawing) -> None:
    """Draw the projections of one trace on *axes*: front, side and from above.

    Raises
    ------
    ConfigurationError
        *axes* are none.
    """
    if not hasattr(axes, "add_collection"):
        raise ConfigurationError(
            f"expected axes of matplotlib to draw on, got {axes!r}: a picture is "
            "written by plot().savefig"
        )
    place = {name: drawing.nodes[name].to_numpy() for name in ("x", "y", "z")}
    tree = _Tree.of(drawing.nodes)
    ball, radius = tree.soma, tree.radius[tree.soma]
    extent = {
        name: (
            min(one.min(), (one[ball] - radius).min(initial=np.inf)),
            max(one.max(), (one[ball] + radius).max(initial=-np.inf)),
        )
        for name, one in place.items()
    }
    size = {name: high - low for name, (low, high) in extent.items()}
    whole = max(*size.values(), 1e-9)
    gap = _GAP * whole
    axes.set_aspect("equal")
    axes.axis("off")
    for (row, column), across, up in _VIEWS:
        # One system of coordinates for all three: one scale, whatever the window.
        shift = (
            column * (size["x"] + gap) - extent[across][0],
            -row * (size["z"] + gap) - extent[up][0],
        )
        points = np.column_stack([place[across] + shift[0], place[up] + shift[1]])
        _project(axes, tree, points, whole)
        axes.annotate(
            f"{across}{up}",
            (points[:, 0].min(), points[:, 1].max()),
            xytext=(0, 3),
            textcoords="offset points",
            color="0.5",
            fontsize=8,
        )
    right = size["x"] + gap + size["z"]
    bottom = -gap - size["z"]
    _scale_bar(axes, (size["x"] + gap, bottom), whole, drawing.unit)
    margin = 0.05 * max(right, size["y"] - bottom)
    axes.set_xlim(-margin, max(right, size["x"] + gap + _BAR * whole) + margin)
    axes.set_ylim(bottom - 2 * margin, size["y"] + 2 * margin)
    axes.set_title(drawing.title, fontsize=10, y=0.955)
    _legend(axes, tree.kinds)


@dataclass(frozen=True, slots=True)
class _Tree:
    """What is drawn of a trace, whatever the projection: rows of its nodes."""

    kinds: Any
    radius: Any
    child: Any
    parent: Any
    """Of each child."""
    soma: Any

    @classmethod
    def of(cls, nodes: pa.Table) -> _Tree:
        kinds = nodes["type"].fill_null(-1).to_numpy()
        radius = np.nan_to_num(nodes["radius"].to_numpy(), nan=0.0)
        return cls(kinds, radius, *_edges(nodes), _soma(nodes, kinds))


def _project(axes: Any, tree: _Tree, points: Any, whole: float) -> None:
    """Draw a trace whose nodes lie at *points*."""
    from matplotlib.collections import (  # noqa: PLC0415 - an extra
        EllipseCollection,
        LineCollection,
    )

    segments = np.stack([points[tree.child], points[tree.parent]], axis=1)
    for name, colour, of_kind in _by_kind(tree.kinds):
        if name == "soma":
            continue
        own = of_kind[tree.child]
        width = np.clip(tree.radius[tree.child][own] / whole * 300, 0.4, 3.0)
        axes.add_collection(
            LineCollection(segments[own], colors=colour, linewidths=width)
        )
    if len(tree.soma):
        across = 2 * tree.radius[tree.soma]
        axes.add_collection(
            EllipseCollection(
                across,
                across,
                np.zeros(len(tree.soma)),
                units="xy",
                offsets=points[tree.soma],
                offset_transform=axes.transData,
                facecolors=_TYPES[1][1],
            )
        )


def _edges(nodes: pa.Table) -> tuple[Any, Any]:
    """Rows of the children, and of their parents."""
    ids, parents = nodes["node_id"].to_numpy(), nodes["parent_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    found = np.minimum(ids.searchsorted(parents, sorter=order), len(ids) - 1)
    above = order[found]
    child = np.flatnonzero((ids[above] == parents) & (parents != -1))
    return child, above[child]


def _soma(nodes: pa.Table, kinds: Any) -> Any:
    """Rows whose spheres are the soma.

    Of three points, a centre and one at either side, the service means the sphere
    around the centre.
    """
    soma = np.flatnonzero(kinds == 1)
    if len(soma) == 3:
        ids, parents = nodes["node_id"].to_numpy(), nodes["parent_id"].to_numpy()
        if (parents[soma[1:]] == ids[soma[0]]).all():
            return soma[:1]
    return soma


def _by_kind(kinds: Any) -> list[tuple[str, str, Any]]:
    known = [
        (name, colour, kinds == number) for number, (name, colour) in _TYPES.items()
    ]
    other = (*_OTHER, ~np.isin(kinds, list(_TYPES)))
    return [one for one in (*known, other) if one[2].any()]


def _scale_bar(axes: Any, at: tuple[float, float], whole: float, unit: str) -> None:
    """A bar of 1, 2 or 5 times a power of ten."""
    most = _BAR * whole
    power = 10.0 ** math.floor(math.log10(most))
    length = max(one * power for one in (1, 2, 5) if one * power <= most)
    axes.plot([at[0], at[0] + length], [at[1], at[1]], color="black", linewidth=2)
    axes.annotate(
        f"{length:g} {unit}",
        (at[0] + length / 2, at[1]),
        xytext=(0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=9,
    )


def _legend(axes: Any, kinds: Any) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an extra

    lines = [
        Line2D([], [], color=colour, linewidth=2, label=name)
        for name, colour, _ in _by_kind(kinds)
    ]
    # Below the side view and beside the one from above: nothing is drawn there.
    axes.legend(
        handles=lines,
        loc="lower right",
        bbox_to_anchor=(0.98, 0.08),
        frameon=False,
        fontsize=8,
    )

"""What becomes of a trace: SWC text that reads back, frames, graphs, pictures."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch.swc import Morphology, read_swc, write_swc
from asyncfetch.testing import _traces
from tests.test_swc import BASE, HUGE, ODD, SAME_NODES, rows


def as_nodes(trace: Morphology):
    """Rows whose floats are compared to the last bit."""
    return [
        tuple(one.hex() if isinstance(one, float) else one for one in row.values())
        for row in trace.nodes.to_pylist()
    ]


@pytest.mark.parametrize(
    "data", [one[0] for one in SAME_NODES.values()], ids=SAME_NODES
)
def test_what_is_written_of_any_dialect_reads_back_the_same(data):
    trace = read_swc(data)
    written = write_swc(trace)
    again = read_swc(written, strict=True)
    assert as_nodes(again) == as_nodes(trace)
    assert write_swc(again) == written
    assert again.offset == trace.offset
    assert again.n_synapses == trace.n_synapses


@pytest.mark.parametrize("data", [one[0] for one in ODD.values()], ids=ODD)
def test_what_is_written_of_odd_trees_reads_back_the_same(data):
    trace = read_swc(data)
    assert as_nodes(read_swc(write_swc(trace))) == as_nodes(trace)


finite = st.floats(allow_nan=False, allow_infinity=False)
int64 = st.integers(0, 2**63 - 1)


@given(
    st.lists(
        st.tuples(
            int64,
            st.none() | st.integers(-(2**31), 2**31 - 1),
            finite,
            finite,
            finite,
            st.none() | finite,
        ),
        min_size=1,
        max_size=20,
        unique_by=lambda row: row[0],
    )
)
def test_any_numbers_read_back_to_the_last_bit(made):
    lines, parent = [], -1
    for node, kind, x, y, z, radius in made:
        numbers = [node, "NA" if kind is None else kind, *map(repr, (x, y, z))]
        last = "nan" if radius is None else repr(radius)
        lines.append(" ".join(map(str, [*numbers, last, parent])))
        parent = node
    trace = read_swc(rows(*lines), strict=True)
    assert as_nodes(read_swc(write_swc(trace), strict=True)) == as_nodes(trace)


def test_the_text_is_short_and_plain():
    trace = read_swc(b"# a\r\n1 1 0.50 0e0 -1.00 5.000 -1\r\n2 NA 1 1 1 nan 1\r\n")
    assert write_swc(trace) == b"# a\n1 1 0.5 0 -1 5 -1\n2 NA 1 1 1 NA 1\n"


def test_a_header_of_ones_own_takes_the_place_of_the_old_one():
    trace = read_swc(b"# old\n" + BASE)
    written = write_swc(trace, header={"CREATURE": "rat", "SCALE": ""})
    assert written.startswith(b"# CREATURE rat\n# SCALE\n1 1 0")
    assert read_swc(written).metadata["CREATURE"] == "rat"
    for header in ({"a": "b\n1 1 0 0 0 1 -1"}, {"": "b"}, {"a\r": "b"}):
        with pytest.raises(asyncfetch.ConfigurationError, match="one line"):
            write_swc(trace, header=header)


def test_a_path_gets_the_bytes(tmp_path):
    trace = read_swc(BASE)
    data = write_swc(trace, tmp_path / "a.swc")
    assert (tmp_path / "a.swc").read_bytes() == data
    assert as_nodes(read_swc(tmp_path / "a.swc")) == as_nodes(trace)


def test_a_million_nodes_in_a_chain_are_written():
    count = 1_000_000
    lines = [f"{n} 3 {n / 8} 0 0 1 {n - 1 or -1}" for n in range(1, count + 1)]
    trace = read_swc(rows(*lines))
    assert read_swc(write_swc(trace)).nodes.equals(trace.nodes)


def test_a_frame_has_the_nodes_and_gaps_where_they_are():
    trace = read_swc(rows("1 NA 0 0 0 1 -1", f"{HUGE} 3 1 0 0 nan 1"))
    frame = trace.to_pandas()
    assert list(frame.columns) == trace.nodes.column_names
    assert frame["node_id"].tolist() == [1, HUGE]
    assert frame["type"].isna().tolist() == [True, False]
    assert str(frame["type"].dtype) == "Int32"
    assert frame["radius"].isna().tolist() == [False, True]


def test_a_graph_leads_from_each_node_to_its_parent():
    pytest.importorskip("networkx")
    graph = read_swc(BASE).to_networkx()
    assert sorted(graph.edges) == [(2, 1), (3, 2), (4, 3), (5, 3)]
    assert graph.edges[4, 3]["length"] == pytest.approx(2**0.5)
    assert graph.nodes[1] == {"type": 1, "x": 0, "y": 0, "z": 0, "radius": 5}
    assert graph.graph["units"] == "um"
    broken = read_swc(rows("1 1 0 0 0 1 -1", "2 3 0 0 0 1 9")).to_networkx()
    assert not broken.edges


def test_a_neuron_of_navis_has_the_nodes():
    pytest.importorskip("navis")
    neuron = read_swc(BASE).to_navis(name="x")
    assert neuron.n_nodes == 5
    assert neuron.name == "x"


@pytest.mark.parametrize("extra", ["networkx", "navis", "matplotlib"])
def test_an_extra_that_is_not_installed_is_named(extra, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.setitem(sys.modules, f"{extra}.figure", None)
    trace = read_swc(BASE)
    call = {"matplotlib": trace.plot}.get(extra) or getattr(trace, f"to_{extra}")
    with pytest.raises(asyncfetch.ConfigurationError, match="pip install 'asyncfetch"):
        call()


@pytest.mark.parametrize(
    "data",
    [
        _traces.cng(0, 5, "x"),
        BASE,
        b"1 3 0 0 0 1 -1\n",  # one point, and no soma
        rows("1 NA 0 0 0 nan 2", "2 9 0 0 0 nan 1"),  # a cycle of nothing
    ],
)
def test_a_picture_has_three_projections_and_a_scale_bar(data, tmp_path):
    pytest.importorskip("matplotlib")
    trace = read_swc(data)
    figure = trace.plot(title="it")
    (axes,) = figure.axes
    texts = [one.get_text() for one in axes.texts]
    assert texts[:3] == ["xy", "zy", "xz"]
    assert texts[3].endswith(" µm")
    figure.savefig(tmp_path / "a.png", dpi=30)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert trace.plot(axes) is axes


def test_a_picture_is_drawn_on_axes_alone():
    trace = read_swc(BASE)
    with pytest.raises(asyncfetch.ConfigurationError, match=r"got 'a.png': .*savefig"):
        trace.plot("a.png")


def test_projections_are_to_one_scale_and_apart():
    pytest.importorskip("matplotlib")
    (axes,) = read_swc(_traces.cng(0, 5, "x")).plot().figure.axes
    boxes = []
    for view in range(3):
        segments = [
            np.concatenate(one.get_segments())
            for one in axes.collections
            if hasattr(one, "get_segments")
        ]
        own = segments[view * 3 : view * 3 + 3]
        points = np.concatenate(own)
        boxes.append((points.min(axis=0), points.max(axis=0)))
    (low, high), (low_z, high_z), (low_x, high_x) = boxes
    assert high[0] < low_z[0]  # the side view is to the right
    assert high_x[1] < low[1]  # and the one from above is below
    assert high[1] - low[1] == pytest.approx(high_z[1] - low_z[1])
    assert high[0] - low[0] == pytest.approx(high_x[0] - low_x[0])

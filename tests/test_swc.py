"""What the SWC reader makes of the dialects in the wild, and of damage."""

from __future__ import annotations

import gzip
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncfetch import swc
from asyncfetch.errors import DecodeError
from asyncfetch.swc import (
    ERROR_CODES,
    NODES_SCHEMA,
    WARNING_CODES,
    Morphology,
    read_alike,
    read_swc,
)

BASE = (
    b"1 1 0 0 0 5 -1\n2 3 1 0 0 1 1\n3 3 2 0 0 1 2\n4 3 3 1 0 0.5 3\n5 3 3 -1 0 0.5 3\n"
)
BASE_NODES = [
    (1, 1, 0.0, 0.0, 0.0, 5.0, -1),
    (2, 3, 1.0, 0.0, 0.0, 1.0, 1),
    (3, 3, 2.0, 0.0, 0.0, 1.0, 2),
    (4, 3, 3.0, 1.0, 0.0, 0.5, 3),
    (5, 3, 3.0, -1.0, 0.0, 0.5, 3),
]


def nodes_of(trace: Morphology) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in trace.nodes.to_pylist()]


def rows(*lines: str, end: str = "\n") -> bytes:
    return ("\n".join(lines) + end).encode()


def as_floats() -> bytes:
    lines = (
        b" ".join(b"%.7e" % float(w) for w in r.split()) for r in BASE.split(b"\n")
    )
    return b"\n".join(lines)


HUGE = 720575940661139073
SAME_NODES = {
    "one blank": (BASE, ""),
    "tabs": (BASE.replace(b" ", b"\t"), ""),
    "leading blanks": (b" " + BASE.replace(b"\n", b"\n ").rstrip(b" "), ""),
    "leading blanks, a blank line at the end": (b" " + BASE.replace(b"\n", b"\n "), ""),
    "trailing blanks": (BASE.replace(b"\n", b" \t \n"), ""),
    "double blanks": (BASE.replace(b" ", b"  "), ""),
    "CRLF": (BASE.replace(b"\n", b"\r\n"), ""),
    "blank line inside": (BASE.replace(b"\n3 ", b"\n\n \t\n3 "), ""),
    "no final newline": (BASE.rstrip(b"\n"), ""),
    "plus signs, exponents, bare points": (
        BASE.replace(b"2 3 1 0 0 1 1", b"+2 +3 .1e1 0. -0e5 10E-1 +1"),
        "",
    ),
    "commas": (BASE.replace(b" ", b","), "comma-separated"),
    "commas and blanks": (BASE.replace(b" ", b", "), "comma-separated"),
    "commas between blanks": (BASE.replace(b" ", b" , "), "comma-separated"),
    "a comma at the end": (
        BASE.replace(b" ", b",").replace(b"\n", b",\n"),
        "comma-separated",
    ),
    "semicolons": (BASE.replace(b" ", b";"), "comma-separated"),
    "decimal commas": (BASE.replace(b"0.5", b"0,5"), "decimal-comma"),
    "BOM": (b"\xef\xbb\xbf" + BASE, "bom"),
    "BOM and header": (b"\xef\xbb\xbf# h\n" + BASE, "bom"),
    "latin-1 header": (b"# M\xfcller\n" + BASE, "legacy-encoding"),
    "UTF-8 header": ("# Müller\n".encode() + BASE, ""),
    "UTF-16": (BASE.decode().encode("utf-16"), "bom"),
    "UTF-16 big-endian": (b"\xfe\xff" + BASE.decode().encode("utf-16-be"), "bom"),
    "CR only": (BASE.replace(b"\n", b"\r"), "odd-line-ends"),
    "CR CR LF": (BASE.replace(b"\n", b"\r\r\n"), "odd-line-ends"),
    "LF header, CRLF rows": (
        b"# h\n" + BASE.replace(b"\n", b"\r\n"),
        "odd-line-ends",
    ),
    "gzip": (gzip.compress(BASE), ""),
    "gzip in two members": (gzip.compress(BASE[:30]) + gzip.compress(BASE[30:]), ""),
    "everything as %.7e": (as_floats(), "float-id float-type"),
    "inline comments": (BASE.replace(b"\n", b" # soma\n"), "inline-comment"),
    "comments between rows": (BASE.replace(b"\n", b"\n# x\n"), ""),
    "ten columns": (BASE.replace(b"\n", b" 7 8 a,b\n"), "extra-columns"),
    "eight columns in row 2": (BASE.replace(b" 1\n3", b" 1 9\n3"), "extra-columns"),
    "words before the rows": (b"id type x y z r pid\n" + BASE, "non-numeric"),
    "words with commas and points before the rows": (
        b"3 mice, aged 4.5 weeks, drawn in 2 days, by X\n"
        b"1 mouse was 4.5 weeks old that day\n"
        b"id, type, x, y, z, r, pid, by X, Y\n" + BASE,
        "non-numeric",
    ),
    "indented comment": (b"  # hi\n" + BASE, "indented-comment"),
    "synapse footer": (
        BASE + b"#start synapse\n# 1 7 0 0 0 1 2\n#end synapse\n",
        "",
    ),
    "offset": (b"# OFFSET 100 200 300\n" + BASE, ""),
    "0x1A": (BASE + b"\x1a", "control-bytes"),
    "0x1A on the last line": (BASE.rstrip() + b"\x1a", "control-bytes"),
    "NULs": (BASE + b"\0" * 512, "control-bytes"),
    "row 2 twice": (BASE.replace(b"3 3 2", b"2 3 1 0 0 1.0 1\n3 3 2"), "duplicate-row"),
    "id 2 twice": (BASE.replace(b"3 3 2", b"2 3 9 0 0 1 1\n3 3 2"), "duplicate-id"),
    "a short row": (BASE + b"6 3 3\n", "short-row"),
    "a cut last row": (BASE + b"6 3 3", "truncated"),
}


@pytest.mark.parametrize(("data", "codes"), SAME_NODES.values(), ids=SAME_NODES)
def test_every_dialect_gives_the_same_nodes(data: bytes, codes: str) -> None:
    trace = read_swc(data)
    assert nodes_of(trace) == BASE_NODES
    assert trace.n_roots == 1
    assert trace.codes == tuple(codes.split())
    assert trace.nodes.schema.equals(NODES_SCHEMA, check_metadata=True)
    trace.nodes.validate(full=True)


# Input, nodes, roots, codes.
ODD = {
    "a cycle": (
        rows("1 1 0 0 0 1 -1", "2 3 0 0 0 1 4", "3 3 0 0 0 1 2", "4 3 0 0 0 1 3"),
        [(2, 4), (3, 2), (4, 3)],
        1,
        "cycle",
    ),
    "a branch below a cycle": (
        rows("1 1 0 0 0 1 -1", "2 3 0 0 0 1 3", "3 3 0 0 0 1 2", "4 3 0 0 0 1 3"),
        [(2, 3), (3, 2), (4, 3)],
        1,
        "cycle",
    ),
    "its own parent": (
        rows("1 1 0 0 0 1 -1", "2 3 1 0 0 1 2"),
        [(1, -1), (2, 2)],
        1,
        "self-parent",
    ),
    "a missing parent": (
        rows("1 1 0 0 0 1 -1", "2 3 1 0 0 1 9"),
        [(1, -1), (2, -1)],
        2,
        "missing-parent",
    ),
    "only a cycle": (
        rows("1 1 0 0 0 1 2", "2 3 1 0 0 1 1"),
        [(1, 2), (2, 1)],
        0,
        "cycle first-not-root no-root",
    ),
    "parent 0 without a node 0": (
        rows("1 1 0 0 0 1 0", "2 3 1 0 0 1 1", "3 3 1 0 0 1 2"),
        [(1, -1), (2, 1), (3, 2)],
        1,
        "odd-root-parent",
    ),
    "parent -2": (
        rows("1 1 0 0 0 1 -2", "2 3 1 0 0 1 1", "3 3 1 0 0 1 2"),
        [(1, -1), (2, 1), (3, 2)],
        1,
        "odd-root-parent",
    ),
    "ids from 0": (
        rows("0 1 0 0 0 1 -1", "1 3 1 0 0 1 0", "2 3 1 0 0 1 1"),
        [(0, -1), (1, 0), (2, 1)],
        1,
        "id-zero",
    ),
    "negative radius": (
        rows("1 1 0 0 0 1 -1", "2 3 1 0 0 -1 1", "3 3 1 0 0 0 2"),
        [(1, -1), (2, 1), (3, 2)],
        1,
        "non-positive-radius",
    ),
    "unusual types": (
        rows("1 1 0 0 0 1 -1", "2 -1 1 0 0 1 1", "3 25 1 0 0 1 2"),
        [(1, -1), (2, 1), (3, 2)],
        1,
        "unusual-type",
    ),
    "no soma": (rows("1 3 0 0 0 1 -1"), [(1, -1)], 1, "no-soma"),
    "two trees": (
        rows("1 1 0 0 0 1 -1", "2 3 0 0 0 1 1", "3 2 0 0 0 1 -1"),
        [(1, -1), (2, 1), (3, -1)],
        2,
        "multiple-roots",
    ),
    "root last": (
        rows("1 3 0 0 0 1 2", "2 3 1 0 0 1 3", "3 1 1 0 0 1 -1"),
        [(1, 2), (2, 3), (3, -1)],
        1,
        "child-before-parent first-not-root",
    ),
    "ids with gaps": (
        rows("1 1 0 0 0 1 -1", "5 3 0 0 0 1 1"),
        [(1, -1), (5, 1)],
        1,
        "ids-not-contiguous",
    ),
    "ids not in order": (
        rows("2 1 0 0 0 1 -1", "1 3 0 0 0 1 2"),
        [(2, -1), (1, 2)],
        1,
        "ids-not-contiguous",
    ),
    "ids beyond 2^53": (
        rows(
            f"{HUGE} 1 0 0 0 1 -1",
            f"{HUGE + 1} 3 0 0 0 1 {HUGE}",
            f"{HUGE + 2} 3 0 0 0 1 {HUGE + 1}",
        ),
        [(HUGE, -1), (HUGE + 1, HUGE), (HUGE + 2, HUGE + 1)],
        1,
        "ids-not-contiguous",
    ),
    "ids beyond 2^53 read line by line": (
        rows(f"{HUGE} 1 0 0 0 1 -1 # x", f"{HUGE + 1} 3 0 0 0 1 {HUGE}"),
        [(HUGE, -1), (HUGE + 1, HUGE)],
        1,
        "ids-not-contiguous inline-comment",
    ),
    "x is nan": (
        rows("1 1 0 0 0 1 -1", "2 3 nan 0 0 1 1", "3 3 0 0 0 1 2"),
        [(1, -1), (3, -1)],
        2,
        "missing-parent na-coordinate",
    ),
    "a cut last row": (
        rows("1 1 0 0 0 1 -1", "2 3 0 0 0 1 1", "3 3 2 0", end=""),
        [(1, -1), (2, 1)],
        1,
        "truncated",
    ),
    "a gap left by a broken row": (
        rows("1 1 0 0 0 1 -1", "2 3 0 x 0 1 1", "3 3 0 0 0 1 1"),
        [(1, -1), (3, 1)],
        1,
        "non-numeric",
    ),
}


@pytest.mark.parametrize(("data", "links", "roots", "codes"), ODD.values(), ids=ODD)
def test_odd_trees_are_reported_and_kept_as_they_are(
    data: bytes, links: list[tuple[int, int]], roots: int, codes: str
) -> None:
    trace = read_swc(data)
    found = [(node[0], node[6]) for node in nodes_of(trace)]
    assert found[-len(links) :] == links
    assert trace.n_roots == roots
    assert trace.codes == tuple(codes.split())


@pytest.mark.parametrize(
    "text", ["nan", "NA", "None", "inf", "-Infinity", "n/a", "NULL"]
)
def test_a_radius_that_is_no_number_is_null(text: str) -> None:
    trace = read_swc(rows("1 1 0 0 0 1 -1", f"2 3 1 0 0 {text} 1", "3 3 1 0 0 1 2"))
    assert trace.nodes["radius"].to_pylist() == [1.0, None, 1.0]
    assert trace.codes == ("na-radius",)


def test_a_type_that_is_no_number_is_null() -> None:
    trace = read_swc(rows("1 1 0 0 0 1 -1", "2 NA 1 0 0 1 1"))
    assert trace.nodes["type"].to_pylist() == [1, None]
    assert trace.codes == ("unusual-type",)


BROKEN_ROWS = {
    "1": "short-row",
    "9 3 0 0 0 1": "short-row",
    "9 3 0 zero 0 1 1": "non-numeric",
    "9 3 0 0x1F 0 1 1": "non-numeric",
    "0x9 3 0 0 0 1 1": "non-numeric",
    "9 3 0 1_0 0 1 1": "non-numeric",
    "9 3 0 1e999 0 1 1": "non-numeric",
    "9 3 0 0 0 1e999 1": "non-numeric",
    "9 3 0 0 0 wide 1": "non-numeric",
    "9 three 0 0 0 1 1": "non-numeric",
    "9 3 0 0 0 1 one": "non-numeric",
    "9 3 0\u00a00 0 0 1 1": "non-numeric",
    "9 3 \u0663 0 0 1 1": "non-numeric",
    "9.5 3 0 0 0 1 1": "bad-id",
    "NA 3 0 0 0 1 1": "bad-id",
    "9 3 0 0 0 1 NA": "bad-id",
    "9 3 0 0 0 1 1.5": "bad-id",
    "9223372036854775808 3 0 0 0 1 1": "bad-id",
    "9007199254740993.0 3 0 0 0 1 1": "bad-id",
    "1e400 3 0 0 0 1 1": "bad-id",
    f"{'9' * 5000} 3 0 0 0 1 1": "bad-id",
    "-9 3 0 0 0 1 1": "negative-id",
    "-9.0 3 0 0 0 1 1": "negative-id",
    "9 3.5 0 0 0 1 1": "bad-type",
    "9 2147483648 0 0 0 1 1": "bad-type",
    "9 3 NaN 0 0 1 1": "na-coordinate",
    "9 3 0 -inf 0 1 1": "na-coordinate",
    "9 3 0 0 none 1 1": "na-coordinate",
    f"9 3 0 0 0 1 1{' 0' * 40_000}": "line-too-long",
    f"9 3 0 0 0 1{' ' * 70_000}1 x": "line-too-long",
    "9,3,0,0,0,1,1": "ambiguous-separator",
    "9 3 0,5 0 0 1 1": "ambiguous-separator",
}


@pytest.mark.parametrize("mode", ["tolerant", "strict"])
@pytest.mark.parametrize(
    ("row", "code"), BROKEN_ROWS.items(), ids=[row[:30] for row in BROKEN_ROWS]
)
def test_a_broken_row_is_dropped_or_raised_with_its_line(
    row: str, code: str, mode: str
) -> None:
    data = b"# header\n" + BASE + row.encode() + b"\n"
    if mode == "strict":
        with pytest.raises(DecodeError) as caught:
            read_swc(data, strict=True)
        assert (caught.value.code, caught.value.path) == (code, "line 7")
        assert "\n" not in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    else:
        trace = read_swc(data)
        assert nodes_of(trace) == BASE_NODES
        assert trace.codes == (code,)
        assert trace.n_rejected == 1
        (found,) = trace.diagnostics
        assert (found.code, found.line, found.text) == (code, 7, row[:80])


@pytest.mark.parametrize(
    "lines",
    [
        # 1,234.5 is a number to some and two columns to others.
        ["1 1 1,234.5 0 0 5 -1", "2 3 1,234.5 0 0 5 1"],
        # With commas for points and between columns nothing can be told apart.
        ["1;1;0,5;0;0;5;-1", "2;3;0,5;0;0;5;1"],
        # An empty field would shift those after it.
        ["1,1,0,0,0,,-1,8", "2,3,0,0,0,,1,8"],
    ],
)
def test_separators_that_cannot_be_told_apart_are_never_guessed(
    lines: list[str],
) -> None:
    with pytest.raises(DecodeError) as caught:
        read_swc(rows(*lines))
    assert caught.value.code == "ambiguous-separator"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1 1 0.5 0 0 5 -1", "2 3 0,5 0 0 5 1"),
        ("1 1 0,5 0 0 5 -1", "2 3 0.5 0 0 5 1"),
        ("1,1,0,0,0,5,-1", "2 3 0 0 0 5 1"),
        ("1 1 0 0 0 5 -1", "2,3,0,0,0,5,1"),
        ("1,1,0,0,0,5,-1", "2 3 0,5 0 0 5 1"),
    ],
)
def test_the_first_rows_decide_the_separator_for_all(first: str, second: str) -> None:
    trace = read_swc(rows(first, second))
    assert trace.nodes.num_rows == 1
    assert "ambiguous-separator" in trace.codes


UNUSABLE = {
    "HTML": (b"\n <!doctype html><html><body>404</body></html>", "not-swc"),
    "XML": (b"<?xml version='1.0'?><x/>", "not-swc"),
    "HTML after a BOM": (b"\xef\xbb\xbf<html>", "not-swc"),
    "HTML in gzip": (gzip.compress(b"<html>"), "not-swc"),
    "JSON": (b'{"status":404}', "not-swc"),
    "JSON array": (b"[]", "not-swc"),
    "zip": (b"PK\x03\x04" + bytes(30), "not-swc"),
    "PDF": (b"%PDF-1.4", "not-swc"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not-swc"),
    "not really gzip": (b"\x1f\x8b" + bytes(20), "not-swc"),
    "half a gzip": (gzip.compress(BASE)[:-9], "truncated"),
    "empty": (b"", "no-data"),
    "a BOM alone": (b"\xef\xbb\xbf", "no-data"),
    "blanks only": (b" \r\n\t\n", "no-data"),
    "NULs only": (bytes(4096), "no-data"),
    "comments only": (b"# a\n# b\n", "no-data"),
    "one cut row": (b"1 1 0 0", "truncated"),
    "one short row": (b"1 1 0 0\n", "short-row"),
    "plain words": (b"Not found\n", "short-row"),
    "only broken rows": (b"1 1 nan 0 0 1 -1\n2 1 x 0 0 1 1\n", "na-coordinate"),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("data", "code"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_without_a_usable_row_is_an_error_in_both_modes(
    data: bytes, code: str, *, strict: bool
) -> None:
    with pytest.raises(DecodeError) as caught:
        read_swc(data, strict=strict)
    assert caught.value.code == code
    assert code in ERROR_CODES


@pytest.mark.parametrize("code", ["missing-parent", "self-parent", "cycle", "no-root"])
def test_strict_mode_raises_for_a_broken_tree(code: str) -> None:
    lines = {
        "missing-parent": ["1 1 0 0 0 1 -1", "2 3 1 0 0 1 9"],
        "self-parent": ["1 1 0 0 0 1 -1", "2 3 1 0 0 1 2"],
        "cycle": ["1 1 0 0 0 1 -1", "2 3 0 0 0 1 3", "3 3 0 0 0 1 2"],
        "no-root": ["1 1 0 0 0 1 1"],
    }[code]
    with pytest.raises(DecodeError) as caught:
        read_swc(rows(*lines), strict=True)
    assert caught.value.code == ("self-parent" if code == "no-root" else code)


def test_decompression_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swc, "MAX_BYTES", 1000)
    assert read_swc(gzip.compress(BASE)).nodes.num_rows == 5
    for bomb in (gzip.compress(BASE + b"\n" * 1000), BASE + b"\n" * 1000):
        with pytest.raises(DecodeError) as caught:
            read_swc(bomb)
        assert caught.value.code == "too-large"


def test_a_path_is_read_like_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.swc"
    path.write_bytes(BASE)
    assert nodes_of(read_swc(path)) == nodes_of(read_swc(str(path))) == BASE_NODES
    with pytest.raises(FileNotFoundError):
        read_swc(tmp_path / "none.swc")


def test_a_missing_parent_on_a_last_line_without_end_hints_at_truncation() -> None:
    lines = ["1 1 0 0 0 1 -1", "2 3 1 0 0 1 1", "3 3 1 0 0 1 12"]
    whole, cut = (read_swc(rows(*lines, end=end)) for end in ("\n", ""))
    assert [d.hint for d in whole.diagnostics] == [""]
    assert [d.hint for d in cut.diagnostics] == ["possibly truncated"]


def test_every_finding_is_counted_and_the_first_twenty_are_listed() -> None:
    lines = [f"{n} 3 0 0 0 0 {n - 1 if n > 1 else -1}" for n in range(1, 101)]
    trace = read_swc(rows("# header", *lines))
    assert trace.counts == {"non-positive-radius": 100, "no-soma": 1}
    listed = [d for d in trace.diagnostics if d.code == "non-positive-radius"]
    assert [d.line for d in listed] == list(range(2, 22))
    assert listed[3].text == lines[3]
    assert trace.codes == ("no-soma", "non-positive-radius")


# --------------------------------------------------------------------------------------
# The header


def test_fields_of_the_header_become_metadata_whatever_their_case() -> None:
    trace = read_swc(
        b"# Creature mouse, adult\n"
        b"# CREATURE rat\n"
        b"#REGION\thippocampus CA1\n"
        b"# SOMA_AREA\n"
        b"# SHINKAGE_CORRECTION 1.0 1.0 1.0\n"
        b"# SCALE 2 2 2\n"
        b"# Neuron Id:\tAA0001\n"
        b"# DOI: https://doi.org/10.25378/x\n"
        b"# see http://example.org\n"
        b"# id,type,x,y,z,r,pid,seg_id,level\n" + BASE
    )
    assert trace.metadata == {
        "Creature": "mouse, adult",
        "REGION": "hippocampus CA1",
        "SOMA_AREA": "",
        "SHRINKAGE_CORRECTION": "1.0 1.0 1.0",
        "SCALE": "2 2 2",
        "Neuron Id": "AA0001",
        "DOI": "https://doi.org/10.25378/x",
        "columns": "id,type,x,y,z,r,pid,seg_id,level",
    }
    assert nodes_of(trace) == BASE_NODES  # the scale has been applied by its writer
    assert (trace.units, trace.units_assumed) == ("um", True)
    assert trace.header.startswith("# Creature mouse, adult\n# CREATURE rat\n")


@pytest.mark.parametrize(
    "line",
    [
        "##n,type,x,y,z,radius,parent,seg_id,level,mode,timestamp,teraflyindex",
        "# PointNo Label X Y Z Radius Parent",
        "# type id x y z r pid",
    ],
)
def test_a_column_line_names_the_columns(line: str) -> None:
    trace = read_swc(line.encode() + b"\n" + BASE)
    assert trace.metadata == {"columns": line.lstrip("# ")}


def test_units_are_given_as_the_file_has_them_and_never_applied() -> None:
    meta = b'# Meta: {"id": 7, "name": "x", "units": "1 nanometer", "more": []}\n'
    trace = read_swc(meta + BASE)
    assert (trace.units, trace.units_assumed) == ("1 nanometer", False)
    assert (trace.metadata["id"], trace.metadata["name"]) == ("7", "x")
    assert nodes_of(trace) == BASE_NODES


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", "3", '{"units": null}', "[" * 60_000, '{"name": "\\ud800"}', "nope"],
)
def test_odd_json_in_the_header_is_only_text(text: str) -> None:
    trace = read_swc(f"# Meta: {text}\n".encode() + BASE)
    assert trace.units_assumed
    assert trace.metadata["Meta"] == text
    pa.array(list(trace.metadata.values())).validate(full=True)


def test_an_offset_is_kept_beside_the_coordinates() -> None:
    trace = read_swc(b"# OFFSET 100 200.5 -3e2\n# OFFSET 1 1 1\n" + BASE)
    assert trace.offset == (100.0, 200.5, -300.0)
    assert trace.nodes["x"].to_pylist()[1] == 1.0


@pytest.mark.parametrize("text", ["", "1 2", "a b c", "1 2 3 4", "1 2 1e999"])
def test_an_offset_that_is_not_three_numbers_is_only_text(text: str) -> None:
    trace = read_swc(f"# OFFSET {text}\n".encode() + BASE)
    assert trace.offset is None
    assert trace.metadata["OFFSET"] == text


def test_the_synapse_footer_is_kept_and_counted() -> None:
    footer = b"#start synapse\n# 1 7 0 0 0 1 2\n# 2 7 0 0 0 1 3\n#end synapse\n# x\n"
    trace = read_swc(BASE + footer)
    assert trace.n_synapses == 2
    assert trace.header == footer.decode().rstrip("\n")
    assert trace.codes == ()


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_row_hidden_in_a_comment_is_reported(end: str) -> None:
    hidden = "# made by hand on Monday 1 1 0.5 0 0 5 -1"
    trace = read_swc(rows("1 1 0 0 0 1 -1", "2 3 0 0 0 1 1", hidden, end=end))
    assert trace.codes == ("row-in-comment",)
    assert trace.diagnostics[0].line == 3


def test_a_long_header_is_cut_and_says_so() -> None:
    line = "# Müller " + "x" * 90 + "\n"
    header = line * 1000
    whole, cut = (read_swc(text.encode() + BASE) for text in (line * 600, header))
    assert (whole.header_cut, whole.header + "\n") == (False, line * 600)
    assert cut.header_cut
    assert len(cut.header.encode()) in (2**16, 2**16 - 1)
    assert header.startswith(cut.header)
    assert nodes_of(cut) == BASE_NODES


@pytest.mark.parametrize(
    ("data", "encoding", "line_ends"),
    [
        (BASE, "utf-8", "lf"),
        (BASE.replace(b"\n", b"\r\n"), "utf-8", "crlf"),
        (BASE.replace(b"\n", b"\r"), "utf-8", "cr"),
        (BASE.replace(b"1\n", b"1\r\n"), "utf-8", "mixed"),
        (b"1 1 0 0 0 5 -1", "utf-8", "none"),
        (b"# \xe9\n" + BASE, "latin-1", "lf"),
        (BASE.decode().encode("utf-16-le"), None, None),
        (b"\xff\xfe" + BASE.decode().encode("utf-16-le"), "utf-16-le", "lf"),
        (b"\xfe\xff" + BASE.decode().encode("utf-16-be"), "utf-16-be", "lf"),
    ],
)
def test_encoding_and_line_ends_are_told(
    data: bytes, encoding: str | None, line_ends: str | None
) -> None:
    if encoding is None:  # without a byte order mark it cannot be told from binary
        with pytest.raises(DecodeError):
            read_swc(data)
        return
    trace = read_swc(data)
    assert (trace.encoding, trace.line_ends) == (encoding, line_ends)


def test_legacy_bytes_come_out_as_the_letters_they_were() -> None:
    trace = read_swc(b"# CONTRIBUTOR M\xfcller\n" + BASE)
    assert trace.metadata["CONTRIBUTOR"] == "Müller"
    assert trace.header == "# CONTRIBUTOR Müller"


def test_a_trace_can_be_sent_to_another_process() -> None:
    trace = read_swc(b"# CREATURE rat\n" + BASE)
    copy = pickle.loads(pickle.dumps(trace))
    assert copy.nodes.equals(trace.nodes)
    assert copy.metadata == trace.metadata


# --------------------------------------------------------------------------------------
# Two readers, one meaning


def line_by_line(data: bytes, *, strict: bool = False) -> Morphology:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swc, "_read_plain", lambda *_: None)
        return read_swc(data, strict=strict)


def columns_at_once(data: bytes) -> Morphology:
    def refuse(*_: object) -> None:
        raise AssertionError("the slow way was taken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swc, "_read_lines", refuse)
        return read_swc(data)


def everything(read: Any, data: bytes, *, strict: bool) -> tuple[Any, ...]:
    try:
        trace = read(data, strict=strict)
    except DecodeError as error:
        return (str(error), error.code, error.path)
    trace.nodes.validate(full=True)
    bits = [column.combine_chunks().fill_null(0) for column in trace.nodes.columns]
    return (
        [np.asarray(one).tobytes() for one in bits],
        [column.is_null().to_pylist() for column in trace.nodes.columns],
        *(getattr(trace, name) for name in Morphology.__slots__ if name != "nodes"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "one blank",
        "tabs",
        "leading blanks",
        "trailing blanks",
        "double blanks",
        "CRLF",
        "blank line inside",
        "no final newline",
        "BOM and header",
        "latin-1 header",
        "UTF-16",
        "gzip",
        "comments between rows",
        "synapse footer",
        "row 2 twice",
    ],
)
def test_plain_files_are_read_a_column_at_once(name: str) -> None:
    assert nodes_of(columns_at_once(SAME_NODES[name][0])) == BASE_NODES


INTS = st.integers(0, 9) | st.integers(0, 2**63 - 1)
PLAIN_REAL = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e4, 1e4).map("{:.3f}".format),
    st.integers(-(10**30), 10**30).map(str),
    st.from_regex(
        r"[+-]?([0-9]{1,25}\.?[0-9]{0,25}|\.[0-9]{1,25})(e[+-]?[0-9]{1,2})?",
        fullmatch=True,
    ),
)
ODD_TOKEN = st.sampled_from(
    "1.0 +1 -0 007 1e2 1e400 nan NA inf -inf 0x1F 0X1f 1_0 1,5 -2 -1 0 , ; . - + e "
    "0,5 --1 1- 1e 1e+ 5.e3 abc 9223372036854775808 2147483648 -2147483649 1.5 "
    "0.00000000000000000000000000000001e-300 \u0661 \x0b 1\x0b2 \x1a \0 #".split(" ")
)


ODD_LINES = [
    *("", " ", "\t", "\x0c", "##", "# x", " # x", "# Meta: {}", "# 1 1 0 0 0 1 -1"),
    *("#start synapse", "#end synapse"),
]


@st.composite
def plain_row(draw: st.DrawFn, n: int) -> list[str]:
    last = n - 1 if n > 1 else -1
    return [
        str(draw(st.sampled_from([n, n, n, n + 1, n - 1]) | INTS) if n % 3 == 0 else n),
        str(draw(st.integers(0, 7) | st.integers(-(2**31), 2**31 - 1))),
        *(draw(PLAIN_REAL) for _ in range(4)),
        str(draw(st.sampled_from([last, last, last, -1, 0, n, n + 1]) | INTS)),
    ]


@st.composite
def swc_files(draw: st.DrawFn) -> bytes:
    plain = draw(st.booleans())  # half of the files are fit for the fast path
    separators = [" ", "\t", "  ", " \t"] + [",", ", ", ";", " ; "] * (not plain)
    separator = draw(st.sampled_from(separators))
    lead = draw(st.sampled_from(["", " ", "\t", "  "]))
    trail = draw(st.sampled_from(["", " ", "\t "] + [","] * (not plain)))
    ends = st.sampled_from(
        draw(st.sampled_from([["\n"], ["\r\n"]] + ["\r", "\n\r"] * (not plain)))
    )
    odd = draw(st.integers(0, 2))
    lines = []
    for n in range(1, draw(st.integers(1, 8)) + 1):
        row = draw(plain_row(n))
        if odd == 2 and draw(st.integers(0, 5)) == 0:
            place = draw(st.integers(0, 7))
            row[place : place + draw(st.integers(0, 1))] = [draw(ODD_TOKEN)]
        lines.append(lead + separator.join(row) + trail)
        if odd and draw(st.integers(0, 3)) == 0:
            lines.append(draw(st.sampled_from([*ODD_LINES, lines[-1]])))
    head = draw(
        st.sampled_from(["", "", "# CREATURE x", "#", "\n# a\n\n# b", "\ufeff#"])
    )
    text = "".join(line + draw(ends) for line in ([head] if head else []) + lines)
    data = text.encode()
    if draw(st.integers(0, 3)) == 0:
        data = data[: -draw(st.integers(1, 20))]
    return data


@settings(max_examples=400, deadline=None)
@given(data=swc_files(), strict=st.booleans())
@example(data=b"1 1 0 0 0 1 -1\n2 1 0 0 0 1 0x1\n", strict=False)
@example(data=b"1 1 0 0 0 1 -1\n2 1 0 0 0 1e400 1\n", strict=False)
@example(data=b"1 1 0 0 0 1\n-1 2 1 0 0 0 1 0\n", strict=False)
@example(data=b"1 1 0 0 0 1 -1 2 1 0 0 0 1 1\n", strict=False)
@example(data=b"1 1 0 0 0\n1 -1\n", strict=False)
@example(data=b"-1 1 0 0 0 1 -1\n", strict=False)
@example(data=b"1 1 0 0 0 1 -1\n" + b" " * 70_000 + b"2 1 0 0 0 1 1", strict=False)
@example(data=b"1 1 0 0 0 1 -1\n2 1 0 0 0" + b" " * 70_000 + b"1 1", strict=True)
def test_both_readers_give_the_same_to_the_last_bit(
    data: bytes, *, strict: bool
) -> None:
    assert everything(read_swc, data, strict=strict) == everything(
        line_by_line, data, strict=strict
    )


NEIGHBOUR = b"# SCALE 1 1 1\n1 1 0 0 0 1 -1\n2 3 1.5 -2 .25 1e-1 1\n3 3 2 2 2 1 2\n"


@settings(max_examples=400, deadline=None)
@given(files=st.lists(swc_files() | st.just(NEIGHBOUR), min_size=1, max_size=5))
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n2 0x1 0 0 0 1 1\n", NEIGHBOUR])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 nan -1\n", NEIGHBOUR])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n2 1 0 0 0 1e400 1\n"])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n\n2 1 0 0 0 1 1\n"])
@example(files=[NEIGHBOUR, b" 1 1 0 0 0 1 -1\n 2 1 0 0 0 1 1\n3 1 0 0 0 1 1\n"])
@example(files=[NEIGHBOUR, b" 1 1 0 0 0 1 -1\n  2 1 0 0 0 1 1\n"])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n2 1 0 0 0 1 1 7\n"])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n1 1 0 0 0 1 -1\n", b"", b"<html>"])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n2 9 0 0 0 1 1\n", NEIGHBOUR])
@example(files=[NEIGHBOUR, b"1 3 0 0 0 1 -1\n2 3 0 0 0 0 1\n", NEIGHBOUR])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n2 1 0 0 0 1 -1\n", NEIGHBOUR])
@example(files=[NEIGHBOUR, b"1 1 0 0 0 1 -1\n2 4294967299 0 0 0 1 1\n"])
def test_files_read_together_are_as_if_each_was_read_alone(files: list[bytes]) -> None:
    for data, one in zip(files, read_alike(files), strict=True):
        if one is not None:
            together = everything(lambda *_, **__: one, data, strict=False)  # noqa: B023
            assert together == everything(read_swc, data, strict=False)


def test_plain_files_are_read_in_one_go() -> None:
    indented = NEIGHBOUR.replace(b"\n", b"\n ")[:-1]
    first, *others, second = read_alike(
        [NEIGHBOUR, b"<html>", gzip.compress(NEIGHBOUR), indented]
    )
    assert others == [None, None]
    assert first is not None
    assert second is not None
    assert first.nodes.equals(second.nodes)
    assert first.n_soma == second.n_soma == 1


def test_both_readers_agree_on_files_of_many_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [f"{n} 3 {n}.5 0 0 1 {n - 1 or -1}" for n in range(1, 500)]
    data = rows("# h", *lines[:250], "", "# c", *lines[250:])
    once = everything(read_swc, data, strict=False)
    monkeypatch.setattr(swc, "_BLOCK", 64)
    assert everything(read_swc, data, strict=False) == once
    assert once == everything(line_by_line, data, strict=False)
    assert columns_at_once(data).nodes.num_rows == 499


@settings(max_examples=200, deadline=None)
@given(data=swc_files())
def test_no_row_is_lost_without_a_code(data: bytes) -> None:
    lines = [line.partition(b"#")[0] for line in data.splitlines()]
    n_rows = sum(bool(line.strip(b"\0\x1a \t\x0b\x0c\xef\xbb\xbf")) for line in lines)
    try:
        trace = read_swc(data)
    except DecodeError:
        return
    copies = trace.counts.get("duplicate-row", 0)
    assert trace.nodes.num_rows + trace.n_rejected + copies == n_rows


@settings(max_examples=200, deadline=None)
@given(data=swc_files())
def test_strict_and_tolerant_agree_on_files_without_errors(data: bytes) -> None:
    try:
        tolerant = everything(read_swc, data, strict=False)
        broken = not ERROR_CODES.keys().isdisjoint(read_swc(data).codes)
    except DecodeError:
        broken = True
    if broken:
        with pytest.raises(DecodeError):
            read_swc(data, strict=True)
    else:
        assert everything(read_swc, data, strict=True) == tolerant


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=300) | st.text("0123 .-#\n\r\t,;e\0\x1aé").map(str.encode)
)
def test_any_bytes_end_in_a_trace_or_one_error(data: bytes) -> None:
    try:
        trace = read_swc(data)
    except DecodeError as error:
        codes = {error.code} - ERROR_CODES.keys()
    else:
        codes = set(trace.codes) - ERROR_CODES.keys() - WARNING_CODES.keys()
        assert trace.nodes.num_rows > 0
    assert not codes


@settings(max_examples=200, deadline=None)
@given(
    place=st.integers(0, len(BASE)),
    width=st.integers(0, 3),
    new=st.binary(max_size=3),
    wrap=st.sampled_from([bytes, gzip.compress]),
)
def test_damage_anywhere_ends_in_a_trace_or_one_error(
    place: int, width: int, new: bytes, wrap: Any
) -> None:
    data = wrap(b"# CREATURE x\n" + BASE[:place] + new + BASE[place + width :])
    assert everything(read_swc, data, strict=False) == everything(
        line_by_line, data, strict=False
    )


# --------------------------------------------------------------------------------------
# Trees


def told_by_walking(links: dict[int, int]) -> tuple[set[int], set[int]]:
    """Which nodes are on a cycle, and which are their own parent."""
    on_cycle = set()
    for start, parent in links.items():
        node = parent
        for _ in links:
            if node == start or node not in links:
                break
            node = links[node]
        if node == start:
            on_cycle.add(start)
    own = {node for node, parent in links.items() if node == parent}
    return on_cycle - own, own


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12, unique=True).flatmap(
        lambda ids: st.fixed_dictionaries(
            {n: st.sampled_from([-1, 0, -7, 99, *ids]) for n in ids}
        )
    )
)
def test_the_tree_checks_find_what_walking_it_finds(links: dict[int, int]) -> None:
    trace = read_swc(rows(*(f"{n} 1 0 0 0 1 {p}" for n, p in links.items())))
    on_cycle, own = told_by_walking(links)
    listed: dict[str, set[int]] = {}
    for found in trace.diagnostics:
        node = int(found.text.split()[0]) if found.line else 0
        listed.setdefault(found.code, set()).add(node)
    order = list(links)
    late = {
        n
        for n, p in links.items()
        if p in links and order.index(p) > order.index(n) and n not in on_cycle
    }
    assert listed.get("cycle", set()) == on_cycle
    assert listed.get("self-parent", set()) == own
    assert listed.get("missing-parent", set()) == {n for n in links if links[n] == 99}
    assert listed.get("odd-root-parent", set()) == {
        n for n in links if links[n] in (0, -7)
    }
    assert listed.get("child-before-parent", set()) == late
    assert trace.n_roots == sum(p not in links for p in links.values())
    assert ("no-root" in trace.codes) == (trace.n_roots == 0)
    assert [(n[0], n[6]) for n in nodes_of(trace)] == [
        (n, p if p in links else -1) for n, p in links.items()
    ]


@pytest.mark.parametrize("direction", [1, -1], ids=["root first", "root last"])
def test_a_chain_of_a_million_nodes_is_one_tree(direction: int) -> None:
    lines = ["1 1 0 0 0 1 -1", *(f"{n} 3 0 0 0 1 {n - 1}" for n in range(2, 1_000_001))]
    trace = columns_at_once(rows(*lines[::direction]))
    assert trace.nodes.num_rows == 1_000_000
    assert trace.n_roots == 1
    late = ("child-before-parent", "first-not-root", "ids-not-contiguous")
    assert trace.codes == (() if direction == 1 else late)


def test_a_ring_of_a_hundred_thousand_nodes_is_a_cycle() -> None:
    n_nodes = 100_000
    ring = (f"{n} 3 0 0 0 1 {n % n_nodes + 1}" for n in range(1, n_nodes + 1))
    trace = read_swc(rows(*ring))
    assert trace.counts["cycle"] == n_nodes
    assert trace.n_roots == 0


def test_the_doubles_are_the_nearest_to_the_text() -> None:
    texts = ["-0.0017926065475977177", "9007199254740993", "1e23", "4.9e-324", "1e-999"]
    data = rows(*(f"{n} 1 {t} 0 0 1 -1" for n, t in enumerate(texts, 1)))
    for trace in (columns_at_once(data), line_by_line(data)):
        assert trace.nodes["x"].to_pylist() == [float(t) for t in texts]
    negative = read_swc(b"1 1 -0.0 0 0 1 -1\n").nodes["x"][0].as_py()
    assert math.copysign(1, negative) == -1


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_reading_starts_no_thread_and_imports_no_pandas() -> None:
    script = (
        "import os, sys\n"
        "from asyncfetch.swc import read_alike, read_swc\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        "before = threads()\n"
        f"read_swc({BASE!r})\n"
        f"read_swc({BASE.replace(b'0.5', b'nan')!r})\n"
        "assert threads() == before\n"
        f"assert None not in read_alike([{NEIGHBOUR!r}] * 2)\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

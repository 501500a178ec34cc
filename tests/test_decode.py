"""Bytes to rows: every cut, every odd value, every error with its place."""

import itertools
import json

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch._body import prove
from asyncfetch._decode import (
    JSON,
    ArrayDecoder,
    arrays,
    as_schema,
    batch_of,
    document,
    records_at,
    repeated,
)
from asyncfetch.errors import DecodeError, IntegrityError
from asyncfetch.services.neuroscout import amplitudes


class Row(msgspec.Struct, forbid_unknown_fields=True):
    n: int
    text: str = ""


class AnyRow(Row, forbid_unknown_fields=False):
    pass


ROWS = ArrayDecoder(msgspec.json.Decoder(list[Row]), msgspec.json.Decoder(list[AnyRow]))

# Text that looks like the places where an array is cut.
text = st.text(alphabet='},{[]"\\n:a1 é\u2028') | st.text()
rows = st.lists(
    st.fixed_dictionaries({"n": st.integers(-(2**40), 2**40), "text": text})
)


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(rows=rows, places=st.lists(st.integers(0, 10**6)), spaced=st.booleans())
def test_an_array_read_in_slices_is_the_array(rows, places, spaced):
    separators = None if spaced else (",", ":")
    data = json.dumps(rows, separators=separators).encode() + b"\n"
    found = [row for some in arrays(cut(data, places), ROWS) for row in some]
    assert [msgspec.to_builtins(row) for row in found] == rows


@given(
    rows=rows.filter(bool),
    places=st.lists(st.integers(0, 10**6)),
    drop=st.integers(1, 10**6),
)
def test_a_cut_array_is_never_taken_for_a_whole_one(rows, places, drop):
    data = json.dumps(rows, separators=(",", ":")).encode()
    data = data[: -1 - drop % (len(data) - 1)]
    with pytest.raises((IntegrityError, DecodeError)):
        list(arrays(cut(data, places), ROWS))


def test_nan_literals_are_read():
    class Number(msgspec.Struct):
        x: float | None

    decoder = msgspec.json.Decoder(list[Number])
    data = b'[{"x":NaN},{"x":1},{"x":-Infinity}]'
    found = arrays([data], ArrayDecoder(decoder, decoder))
    assert [repr(one.x) for some in found for one in some] == ["nan", "1.0", "-inf"]
    assert repr(document([b'{"max": NaN}'])["max"]) == "nan"


def test_a_wrong_value_is_named_by_its_place_in_the_whole_body():
    good = b",".join(b'{"n":%d}' % n for n in range(1000))
    data = b"[" + good + b',{"n":"x"}]'
    with pytest.raises(
        DecodeError, match=r"expected `int`, got `str` - at \$\[1000\].n"
    ):
        list(arrays([data[:5000], data[5000:]], ROWS))


def test_unknown_fields_are_noticed():
    (found,) = arrays([b'[{"n":1,"new":2}]'], ROWS)
    assert type(found[0]) is AnyRow


@pytest.mark.parametrize("data", [b'{"n":1}', b"7", b'"text"'])
def test_something_else_than_an_array_is_refused(data):
    with pytest.raises(DecodeError, match="expected array"):
        list(arrays([data], ROWS))


SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("x", pa.float64()),
        pa.field("name", pa.string()),
        pa.field("flag", pa.bool_()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("day", pa.date32()),
        pa.field("nested", JSON),
        pa.field("extra", JSON),
    ]
)


def test_records_become_typed_columns_and_nothing_is_dropped():
    batch, codes = batch_of(
        [
            {"id": 1, "x": 2, "name": "n", "flag": True, "tags": ["a"]},
            {"id": 2**62, "day": "2006-08-01", "nested": {"a": [1]}, "new": None},
        ],
        SCHEMA,
    )
    assert codes == ()
    first, second = batch.to_pylist()
    assert first["x"] == 2.0
    assert first["extra"] is None
    assert second["id"] == 2**62
    assert str(second["day"]) == "2006-08-01"
    assert json.loads(second["nested"]) == {"a": [1]}
    assert json.loads(second["extra"]) == {"new": None}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "1"}, r"expected int64, got str '1' - at \$\[0\].id"),
        ({"id": True}, r"expected int64, got bool - at \$\[0\].id"),
        ({"id": 2**63}, r"expected int64, got int 9223372036854775808"),
        ({}, r"expected a value, got null - at \$\[0\].id"),
        ({"id": 1, "x": "2"}, r"expected float64, got str '2' - at \$\[0\].x"),
        ({"id": 1, "tags": "a"}, r"expected array, got str 'a' - at \$\[0\].tags"),
        ([], r"expected object, got array - at \$\[0\]"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_place(record, message):
    with pytest.raises(DecodeError, match=message):
        batch_of([record], SCHEMA)


def test_lenient_columns_read_numbers_as_text_and_keep_what_is_none():
    batch, codes = batch_of(
        [
            {"id": 1, "x": "834.0", "tags": "Control", "name": 5},
            {"id": 2, "x": "100-200", "day": "soon"},
            {"id": 3, "x": "nan"},
        ],
        SCHEMA,
        lenient=True,
    )
    assert codes == ("unparsed",)
    assert batch.column("x").to_pylist() == [834.0, None, None]
    assert batch.column("tags").to_pylist()[0] == ["Control"]
    assert batch.column("name").to_pylist()[0] == "5"
    kept = [one and json.loads(one) for one in batch.column("extra").to_pylist()]
    assert kept == [None, {"x": "100-200", "day": "soon"}, {"x": "nan"}]


def test_a_list_below_a_path_is_found_or_its_absence_named():
    assert records_at({"a": {"b": [{}]}}, ("a", "b")) == [{}]
    with pytest.raises(DecodeError, match=r"expected array, got null - at \$.a.c"):
        records_at({"a": {"b": [{}]}}, ("a", "c"))
    with pytest.raises(DecodeError, match=r"expected object, got int 1 - at \$.a\[0\]"):
        records_at({"a": [1]}, ("a",))


@pytest.mark.parametrize("data", [b"", b"[1", b'{"a": tru', b"[1]x"])
def test_text_that_is_no_json_is_not_whole(data):
    with pytest.raises(IntegrityError):
        document([data])


def test_encoded_columns_come_out_plain():
    schema = pa.schema([("a", pa.string()), ("b", pa.int64())])
    batch = pa.RecordBatch.from_arrays(
        [repeated(["x"], [3]), pa.array([1, 2, 3])], names=["a", "b"]
    )
    assert as_schema(batch, schema).to_pydict() == {"a": ["x"] * 3, "b": [1, 2, 3]}


NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


@given(
    st.lists(
        st.sampled_from(["1", "+1", "-.5", "5.", "1e3", "n/a", "", " 1", "nan", "inf"])
        | st.sampled_from(
            ["0x10", "1_0", "1e999", "-1E-400", "\u0661", "1 ", "infinity", "-"]
        )
        | st.floats().map(repr)
        | st.text(alphabet="0123456789+-.eE naif_x", max_size=8)
    )
)
def test_an_amplitude_is_the_finite_number_that_the_text_spells(values):
    import math
    import re

    def number(value):
        if not re.fullmatch(NUMBER, value, re.ASCII):
            return None
        found = float(value)
        return found if math.isfinite(found) else None

    found = amplitudes(pa.array(values, pa.string())).to_pylist()
    assert found == [number(value) for value in values]


@pytest.mark.parametrize("media", ["json", "swc"])
def test_a_page_in_the_place_of_data_is_refused(media):
    with pytest.raises(IntegrityError, match="HTML page"):
        list(prove([b"\n ", b"<html>x"], media, "http://x"))

"""Bytes to checked rows to record batches; errors name the JSON path.

Two ways in. :func:`arrays` reads a top-level array of any size slice by slice into
typed structs, for the bulk tables. :func:`document` reads a bounded page whole, and
:func:`batch_of` turns its records into a batch: it checks every value against the
schema, keeps keys that the schema does not know in the column ``extra``, and drops
nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from asyncfetch._body import excerpt
from asyncfetch._model import ItemResult
from asyncfetch.errors import DecodeError, IntegrityError

T = TypeVar("T")

# What is read whole is a page or one trace: some megabytes, the largest traces 100.
LARGEST = 256 << 20

# Up to here every whole number is a double; beyond it some lose their last digits.
_EXACT = 1 << 53

# A time of RFC 3339, to the microsecond at most.
INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII
)

EXTRA = "extra"
JSON = pa.json_(pa.string())


@dataclass(frozen=True, slots=True)
class ArrayDecoder(Generic[T]):
    """How the elements of an array are read: strictly, or else with unknown fields."""

    strict: msgspec.json.Decoder[list[T]]
    tolerant: msgspec.json.Decoder[list[T]]
    """Leaves unknown fields aside; used only where there are any."""


def arrays(chunks: Iterable[bytes], decoder: ArrayDecoder[T]) -> Iterator[list[T]]:
    """Elements of a top-level JSON array, some at a time.

    The buffer is cut at its last ``},{`` and decoded as an array of its own, in place:
    a bracket stands where the comma was. If that place is inside a string, the string
    has no end before the cut, so the piece cannot decode and the cut before it is
    tried: a wrong cut never yields rows.

    Raises
    ------
    IntegrityError
        The array has no end.
    DecodeError
        An element is not what the decoder expects, or the text is not JSON.
    """
    text = bytearray()
    done = 0  # elements before the buffer, for the path in errors
    opened = False
    for chunk in chunks:
        text += chunk
        if not opened:
            if not text.strip():
                continue
            text = _from_bracket(text)
            opened = True
        cut = text.rfind(b"},{")
        while cut >= 0:
            text[cut + 1] = ord("]")
            with memoryview(text)[: cut + 2] as piece:
                elements = _decoded(piece, decoder, done)
            if elements is not None:
                yield elements
                done += len(elements)
                del text[1 : cut + 2]
                break
            text[cut + 1] = ord(",")
            cut = text.rfind(b"},{", 0, cut)
    elements = _decoded(text or b"[", decoder, done)
    if elements is None:
        raise IntegrityError(
            f"expected the end of a JSON array, got {excerpt(bytes(text[1:][-60:]))!r} "
            f"after {done} elements"
        )
    yield elements


def _from_bracket(text: bytearray) -> bytearray:
    start = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        raise DecodeError(
            f"expected array, got {excerpt(bytes(start))!r} - at $",
            path="$",
            code="not-array",
        )
    return start


def _decoded(
    text: bytes | bytearray | memoryview, decoder: ArrayDecoder[T], done: int
) -> list[T] | None:
    """Elements of *text*, or None when a string or object in it has no end."""
    try:
        return decoder.strict.decode(text)
    except msgspec.ValidationError as error:
        if "unknown field" not in str(error):
            raise _located(error, done) from None
    except msgspec.DecodeError as error:
        if "truncated" in str(error):
            return None
        text = bytes(text)
        if b"NaN" not in text and b"Infinity" not in text:
            raise _malformed(error, done) from None
    try:
        return decoder.tolerant.decode(text)
    except msgspec.ValidationError as error:
        raise _located(error, done) from None
    except msgspec.DecodeError:
        pass  # the bare literals NaN and Infinity, which RFC 8259 forbids
    try:
        return msgspec.convert(json.loads(bytes(text)), decoder.tolerant.type)
    except msgspec.ValidationError as error:
        raise _located(error, done) from None
    except json.JSONDecodeError as error:
        if error.pos >= len(text) - 1 or "Unterminated" in error.msg:
            return None
        raise _malformed(error, done) from None


def _malformed(error: Exception, done: int) -> IntegrityError:
    return IntegrityError(f"expected JSON, got malformed text after $[{done}]: {error}")


def _located(error: msgspec.ValidationError, done: int) -> DecodeError:
    """Say the place in the whole body, not in the piece."""
    message, _, path = str(error).partition(" - at `")
    path = path.rstrip("`") or "$"
    if path.startswith("$["):
        index, _, tail = path[2:].partition("]")
        path = f"$[{int(index) + done}]{tail}" if index.isdigit() else path
    message = message[:1].lower() + message[1:]
    return DecodeError(f"{message} - at {path}", path=path, code="type")


def whole(chunks: Iterable[bytes]) -> bytes:
    """All of a body, of bounded size.

    Raises
    ------
    DecodeError
        It is larger than :data:`LARGEST`.
    """
    pieces = []
    size = 0
    for piece in chunks:
        size += len(piece)
        if size > LARGEST:
            raise DecodeError(
                f"expected one page or file of at most {LARGEST >> 20} MiB, got more",
                code="too-large",
            )
        pieces.append(piece)
    return b"".join(pieces)


def document(chunks: Iterable[bytes]) -> Any:
    """A whole JSON body of bounded size.

    Raises
    ------
    IntegrityError
        It is cut, or not JSON.
    DecodeError
        It is larger than :data:`LARGEST`.
    """
    text = whole(chunks)
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        pass  # maybe only a NaN
    try:
        return json.loads(text)
    except ValueError as error:
        raise IntegrityError(f"expected JSON, got malformed text: {error}") from None


def records_at(body: Any, path: tuple[str, ...]) -> list[Any]:
    """The list of records below *path* in a decoded body.

    Raises
    ------
    DecodeError
        There is something else.
    """
    found = body
    where = "$"
    for step in path:
        where += f".{step}"
        found = found.get(step) if isinstance(found, Mapping) else None
    if not isinstance(found, list):
        raise DecodeError(
            f"expected array, got {_kind(found)} - at {where}",
            path=where,
            code="not-array",
        )
    for place, record in enumerate(found):
        if not isinstance(record, Mapping):
            raise _misfit("object", record, f"{where}[{place}]")
    return found


class _Misfit(Exception):  # noqa: N818 - never leaves this module
    """A value does not fit its column."""


def batch_of(
    records: Iterable[Any],
    schema: pa.Schema,
    *,
    at: str = "$",
    ignore: frozenset[str] = frozenset(),
    lenient: bool = False,
    aside: bool = False,
    first: int = 0,
    unparsed: Counter[str] | None = None,
) -> tuple[pa.RecordBatch, tuple[str, ...]]:
    """A batch with one row per record, and the sorted codes of what was odd.

    Keys beyond the schema go to its column ``extra``, those in *ignore* nowhere.

    Parameters
    ----------
    at
        JSON path of the list, for errors.
    lenient
        A value that does not fit becomes null and is kept in ``extra`` (code
        ``unparsed``); numbers may come as text, and a bare value stands for a list of
        one. Otherwise such a value is an error.
    aside
        The same, but nothing is converted: what is in a column is what was sent.
    first
        Place of the first record in the list, for errors.
    unparsed
        Counts such values by column.

    Raises
    ------
    DecodeError
        A record is not an object, or a value does not fit.
    """
    columns: dict[str, list[Any]] = {field.name: [] for field in schema}
    convert = {
        field.name: _converter(field.type, lenient)
        for field in schema
        if field.name != EXTRA  # which records may have a key of the same name as
    }
    extras = columns.get(EXTRA)
    codes: set[str] = set()
    for row, record in enumerate(records, first):
        if not isinstance(record, Mapping):
            raise _misfit("object", record, f"{at}[{row}]")
        beyond: dict[str, Any] = {
            key: value
            for key, value in record.items()
            if key not in convert and key not in ignore
        }
        for name, values in columns.items():
            if values is extras:
                continue
            value = record.get(name)
            try:
                values.append(None if value is None else convert[name](value))
            except _Misfit as error:
                if not (lenient or aside):
                    raise _misfit(str(error), value, f"{at}[{row}].{name}") from None
                values.append(None)
                beyond[name] = value
                codes.add("unparsed")
                if unparsed is not None:
                    unparsed[name] += 1
        for name in _missing_required(schema, columns):
            raise _misfit("a value", None, f"{at}[{row}].{name}")
        if extras is not None:
            extras.append(as_json(beyond) if beyond else None)
        elif beyond:
            codes.add("unknown-fields")
    batch = pa.RecordBatch.from_arrays(
        [_array(columns[field.name], field.type) for field in schema], schema=schema
    )
    return batch, tuple(sorted(codes))


def _missing_required(
    schema: pa.Schema, columns: Mapping[str, list[Any]]
) -> Iterator[str]:
    for field in schema:
        if not field.nullable and columns[field.name][-1] is None:
            yield field.name


def _misfit(expected: str, value: Any, path: str) -> DecodeError:
    return DecodeError(
        f"expected {expected}, got {_kind(value)} - at {path}", path=path, code="type"
    )


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}
    kind = names.get(type(value), "array" if isinstance(value, list) else "object")
    return f"{kind} {value!r}"[:80] if kind in {"int", "float", "str"} else kind


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind == JSON:
        return pa.ExtensionArray.from_storage(JSON, pa.array(values, pa.string()))
    return pa.array(values, kind)


def as_json(value: Any) -> str:
    """Compact JSON text of a decoded value."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _converter(kind: pa.DataType, lenient: bool) -> Callable[[Any], Any]:
    if kind == JSON:
        return as_json
    if pa.types.is_list(kind):
        inner = _converter(kind.value_type, lenient)
        return lambda value: _to_list(value, inner, lenient)
    if pa.types.is_floating(kind):
        return _text_to_float if lenient else _to_float
    if pa.types.is_integer(kind):
        return _to_int
    if pa.types.is_boolean(kind):
        return _to_bool
    if pa.types.is_date(kind):
        return _to_date
    if pa.types.is_timestamp(kind):
        return _to_time if lenient or kind.tz is None else _to_instant
    return _text_of if lenient else _to_text


def _to_int(value: Any) -> int:
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    raise _Misfit("int64")


def _to_float(value: Any) -> float:
    if type(value) is float or (type(value) is int and abs(value) <= _EXACT):
        return float(value)
    raise _Misfit("float64")


def _text_to_float(value: Any) -> float:
    # Python also reads "nan", "inf" and "1_000" as numbers; a text that says so does
    # not name a measurement.
    if isinstance(value, str):
        text = value.strip()
        if text.replace("_", "") == text and text[-1:].isdigit() | text.endswith("."):
            try:
                number = float(text)
            except ValueError:
                raise _Misfit("float64") from None
            if math.isfinite(number):
                return number
        raise _Misfit("float64")
    return _to_float(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _Misfit("bool")


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _Misfit("string")


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    if type(value) in {int, float}:
        return json.dumps(value)
    raise _Misfit("string")


def _to_date(value: Any) -> dt.date:
    try:
        return dt.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise _Misfit("date") from None


def _to_time(value: Any) -> dt.datetime:
    """A time as sent: without a zone, unless the text names one."""
    try:
        return dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _Misfit("time") from None


def _to_instant(value: Any) -> dt.datetime:
    """A time that names its zone, with no more digits than the column keeps."""
    if isinstance(value, str) and INSTANT.fullmatch(value):
        return _to_time(value)
    raise _Misfit("time with a zone")


def _to_list(value: Any, inner: Callable[[Any], Any], lenient: bool) -> list[Any]:
    if isinstance(value, list):
        return [None if element is None else inner(element) for element in value]
    if lenient:
        return [inner(value)]
    raise _Misfit("array")


def repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.Array:
    """A column in which each text comes as often as its count says, stored once."""
    known = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    places = np.array([known[text] for text in texts], np.int32)
    return pa.DictionaryArray.from_arrays(
        wrapped(pa.int32(), places.repeat(counts)), pa.array(known, pa.string())
    )


def wrapped(kind: pa.DataType, numbers: npt.NDArray[Any]) -> pa.Array:
    """A column of *numbers*. `pa.array` would import pandas, a long stall."""
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def with_repeated(schema: pa.Schema, *names: str) -> pa.Schema:
    """The schema of batches in which those columns come from :func:`repeated`."""
    encoded = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        field.with_type(encoded) if field.name in names else field for field in schema
    )


def as_schema(
    batch: pa.RecordBatch, schema: pa.Schema, *, encoded: bool = False
) -> pa.RecordBatch:
    """The same rows with dictionary-encoded columns as the schema's plain ones.

    With *encoded* these stay as they are, under the schema's names.
    """
    if encoded:
        kept = pa.schema(
            [
                field.with_type(column.type)
                for column, field in zip(batch.columns, schema, strict=True)
            ]
        )
        return pa.RecordBatch.from_arrays(batch.columns, schema=kept)
    columns = [
        column.cast(field.type) if pa.types.is_dictionary(column.type) else column
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def without_taken_keys(result: ItemResult, row_key: str, taken: set[Any]) -> ItemResult:
    """The result without rows whose key is in *taken*; its keys join *taken*."""
    if result.records is not None:
        records = []
        for record in result.records:
            key = record.get(row_key) if isinstance(record, Mapping) else None
            if not isinstance(key, int | str):  # as sent, whatever that is
                records.append(record)
            elif key not in taken:
                taken.add(key)
                records.append(record)
        return replace(result, records=records)
    batches = []
    for batch in result.batches:
        fresh = []
        for key in batch.column(row_key).to_pylist():
            fresh.append(key not in taken)
            taken.add(key)
        batches.append(batch if all(fresh) else batch.filter(pa.array(fresh)))
    return replace(result, batches=tuple(batches))

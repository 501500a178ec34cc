"""The filter ``django=`` as the server reads it, over rows that lie in memory.

Nothing is mended here: what the server refuses or misreads is refused or misread.
"""

from __future__ import annotations

import ast
import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

JSON_FIELDS = frozenset({"json", "extended_qc", "arguments"})
_DATES = frozenset(
    "date year iso_year month day week week_day iso_week_day quarter time hour minute "
    "second".split()
)
_MISSING = object()
_OPENING = {"[": "]", "(": ")"}


class Row(dict[str, Any]):
    """A row of a model; relations are other rows, or lists of them."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


class RefusedError(Exception):
    """An exception of the server's; its text goes into the answer."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One condition."""

    is_exclusion: bool
    key: str
    value: Any


def pieces(text: str) -> list[str]:
    """*text* split at commas outside of brackets, which do not nest."""
    found, start, place = [], 0, 0
    while place < len(text):
        if text[place] in _OPENING:
            end = text.find(_OPENING[text[place]], place)
            place = len(text) if end < 0 else end
        elif text[place] == ",":
            found.append(text[start:place])
            start = place + 1
        place += 1
    return [*found, text[start:]]


def pairs(text: str) -> list[Pair]:
    """The conditions of a filter.

    Raises
    ------
    RefusedError
        The server cannot read it.
    """
    text = text.strip()
    if not text:
        return []
    parts = pieces(text)
    if len(parts) % 2:
        raise RefusedError("list index out of range")
    found = [
        Pair(key.startswith("~"), key.removeprefix("~"), _value(value))
        for key, value in zip(parts[::2], parts[1::2], strict=True)
    ]
    if len({one.key for one in found}) < len(found):
        raise RefusedError(f'Duplicated fields in "{text}"')
    return found


def _value(text: str) -> Any:
    lower = text.lower()
    if text == "None":
        return None
    if lower in {"true", "false"}:
        return lower == "true"
    if text.replace(".", "", 1).isdigit():
        return float(text)
    if text[:1] in _OPENING and text[-1:] in _OPENING.values():
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise RefusedError(str(error)) from None
    return text


def test_of(key: str, value: Any) -> Callable[[Row], bool]:
    """Whether a row meets the condition ``key,value``."""
    steps = key.split("__")
    # A key of a JSON field may begin with an underscore of its own: a___b.
    while "" in steps:
        place = steps.index("")
        steps[place : place + 2] = ["_" + "".join(steps[place + 1 : place + 2])]
    if steps in (["pk", "gte"], ["pk", "lt"]) and isinstance(value, str):
        is_floor = steps[1] == "gte"
        return lambda row: (row["id"] >= value) == is_floor
    return lambda row: any(
        _meets(found, lookups, value, is_json)
        for found, lookups, is_json in _reached(row, steps)
    )


def _reached(row: Row, steps: list[str]) -> Iterator[tuple[Any, list[str], bool]]:
    """What a path leads to, with the lookups that are left and whether it is JSON."""
    name, rest = ("id" if steps[0] == "pk" else steps[0]), steps[1:]
    if name not in row:
        raise RefusedError(
            f"Cannot resolve keyword '{steps[0]}' into field. Choices are: "
            f"{', '.join(sorted(row))}"
        )
    found = row[name]
    if name in JSON_FIELDS:
        yield _in_json(found, rest)
    elif isinstance(found, list):
        for one in found or ([None] if rest == ["isnull"] else []):
            yield from _below(one, rest)
    else:
        yield from _below(found, rest)


def _below(found: Any, rest: list[str]) -> Iterator[tuple[Any, list[str], bool]]:
    if not isinstance(found, Row):
        if found is None and rest and rest[-1] in _LOOKUPS:
            rest = rest[-1:]
        yield found, rest, False
    elif rest and rest[0] not in _LOOKUPS:
        yield from _reached(found, rest)
    else:
        yield found["id"], rest, False


def _in_json(found: Any, rest: list[str]) -> tuple[Any, list[str], bool]:
    lookups = rest[-1:] if rest and rest[-1] in _LOOKUPS | _IN_JSON else []
    for step in rest[: len(rest) - len(lookups)]:
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return _MISSING, lookups, True
    is_column = len(rest) == len(lookups)
    if is_column and found is None:
        found = _MISSING
    return found, lookups, True


def _meets(found: Any, lookups: list[str], value: Any, is_json: bool) -> bool:
    for step in lookups[:-1] if lookups[-1:] and lookups[-1] in _ENDS else lookups:
        if step not in _DATES and step not in _IN_JSON:
            raise RefusedError(
                f"Unsupported lookup '{step}' for field or join on the field not "
                "permitted."
            )
        if step in _DATES and found is not None:
            found = _part(found, step)
    last = lookups[-1] if lookups and lookups[-1] not in _DATES else "exact"
    if last == "isnull":
        if not isinstance(value, bool):
            raise RefusedError("The QuerySet value for an isnull lookup must be bool")
        return ((found is None and not is_json) or found is _MISSING) == value
    if found is _MISSING or (found is None and not (is_json or value is None)):
        return False
    if is_json:
        return _meets_json(found, last, value)
    if last == "exact":
        return _same(found, value)
    if last in _ORDER:
        return bool(_ORDER[last](*_comparable(found, value)))
    if last == "in":
        return any(_same(found, one) for one in value)
    if last == "range":
        low, high = (_comparable(found, one) for one in value)
        return bool(low[0] >= low[1] and high[0] <= high[1])
    return _TEXT[last](str(found), str(value))


def _same(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return found == str(value)
    if isinstance(found, bool) or found is None or value is None:
        return found is value or (isinstance(found, bool) and found == value)
    return bool(found == _number(value))


def _comparable(found: Any, value: Any) -> tuple[Any, Any]:
    if isinstance(found, str):
        return found, str(value)
    return float(found), _number(value)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RefusedError(f"Field expected a number but got {value!r}.") from None


def _meets_json(found: Any, lookup: str, value: Any) -> bool:
    if lookup == "exact":
        return _order(found) == _order(value)
    if lookup in _ORDER:
        return _ORDER[lookup](_order(found), _order(value))
    if lookup == "in":
        return any(_order(found) == _order(one) for one in value)
    if lookup == "contains":
        return _contains(found, value)
    if lookup == "contained_by":
        return _contains(value, found)
    if lookup == "has_key":
        return _has_key(found, value)
    if lookup == "has_keys":
        return all(_has_key(found, one) for one in value)
    if lookup == "has_any_keys":
        return any(_has_key(found, one) for one in value)
    if found is None or lookup not in _TEXT:
        return False
    return _TEXT[lookup](str(found), str(value))


def _has_key(found: Any, key: Any) -> bool:
    return isinstance(found, Mapping | list) and str(key) in found


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(whole, Mapping) and isinstance(part, Mapping):
        return all(k in whole and _contains(whole[k], v) for k, v in part.items())
    if isinstance(whole, list) and isinstance(part, list | tuple):
        return all(any(_contains(one, other) for one in whole) for other in part)
    return _order(whole) == _order(part)


def _order(value: Any) -> tuple[Any, ...]:
    """Place of a value in PostgreSQL's order of jsonb."""
    if value is None:
        return (0,)
    if isinstance(value, str):
        return (1, value)
    if isinstance(value, bool):
        return (3, value)
    if isinstance(value, int | float):
        return (2, float(value))
    if isinstance(value, list | tuple):
        return (4, len(value), *map(_order, value))
    return (5, len(value), *((k, _order(v)) for k, v in sorted(value.items())))


def _part(text: str, step: str) -> Any:
    when = dt.datetime.fromisoformat(text)
    parts: dict[str, Any] = {
        "date": text[:10],
        "time": when.time().isoformat(),
        "week": when.isocalendar().week,
        "iso_year": when.isocalendar().year,
        "week_day": when.isoweekday() % 7 + 1,
        "iso_week_day": when.isoweekday(),
        "quarter": (when.month + 2) // 3,
    }
    return parts[step] if step in parts else getattr(when, step)


_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}
_TEXT: Mapping[str, Callable[[str, str], bool]] = {
    "iexact": lambda a, b: a.lower() == b.lower(),
    "contains": lambda a, b: b in a,
    "icontains": lambda a, b: b.lower() in a.lower(),
    "startswith": lambda a, b: a.startswith(b),
    "istartswith": lambda a, b: a.lower().startswith(b.lower()),
    "endswith": lambda a, b: a.endswith(b),
    "iendswith": lambda a, b: a.lower().endswith(b.lower()),
    "regex": lambda a, b: re.search(b, a) is not None,
    "iregex": lambda a, b: re.search(b, a, re.IGNORECASE) is not None,
}
_IN_JSON = frozenset({"contained_by", "has_key", "has_keys", "has_any_keys"})
_ENDS = frozenset({"exact", "in", "range", "isnull", *_ORDER, *_TEXT, *_IN_JSON})
_LOOKUPS = _ENDS - _IN_JSON | _DATES

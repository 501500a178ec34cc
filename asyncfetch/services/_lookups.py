"""Alyx's filter ``django=``: values quoted so that the server reads what was meant.

The server splits the text at commas outside of round and square brackets, takes digits
for floats, and evaluates what stands in brackets as Python. So a text with a comma, a
bracket or only digits is sent as ``('…')``, in which every character that could mean
something is escaped, and nothing from outside ever reaches the evaluation as it is.
Pure.
"""

from __future__ import annotations

import ast
import datetime as dt
import decimal
import logging
import math
import re
import uuid
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from asyncfetch.errors import ConfigurationError
from asyncfetch.services._table import plain

logger = logging.getLogger("asyncfetch")

_OPENING = {"(": ")", "[": "]", "{": "}"}
# Nothing that ends a text, a bracket or a pair, and no escape.
_PLAIN = re.compile(r"[A-Za-z0-9 _.:/+@*$^|?=<>!#%&;-]*")
_JSON_FIELDS = frozenset({"json", "extended_qc", "arguments"})
# Beyond that a float does not hold every whole number, and the server makes one.
_EXACT = 10**15
_LOWEST = "(-1e308)"
LOOKUPS = frozenset(
    "exact iexact contains icontains startswith istartswith endswith iendswith in gt "
    "gte lt lte range isnull regex iregex contained_by has_key has_keys "
    "has_any_keys".split()
)

Pairs = list[tuple[str, str]]
"""Keys, with what is sent for their values."""


def django(value: Any, endpoint: str = "") -> str:
    """The text of a filter, from a mapping of Python values or from such a text.

    Parameters
    ----------
    value
        ``{"subject__nickname__in": ["a", "b"], "~qc__lt": 40}``, or a text in the
        server's own form. Documented forms that the server does not read are mended.
    endpoint
        What is filtered.

    Raises
    ------
    ConfigurationError
        It cannot be said in the server's form.
    """
    if isinstance(value, Mapping):
        pairs = [(_key(key), encoded(one)) for key, one in value.items()]
    elif isinstance(value, str):
        pairs = _read(value)
    else:
        raise ConfigurationError(
            f"expected a dict or a text for django, got {type(value).__name__}"
        )
    pairs = [(_resolved(key, endpoint), one) for key, one in pairs]
    return joined(_numbers_only(_apart(pairs)))


def on_json(text: Any, name: str) -> str:
    """The text of a filter on a JSON field itself, ``extended_qc`` or ``json``.

    Semicolons, which the server's own documentation has in it, become commas.
    """
    if isinstance(text, Mapping):
        pairs = [(_key(key), encoded(one)) for key, one in text.items()]
    else:
        text = str(text)
        if ";" in text and "," not in text:
            _say(f"{name}={text}: its separator is the comma")
            text = text.replace(";", ",")
        pairs = _read(text)
    if negated := [key for key, _ in pairs if key.startswith("~")]:
        raise ConfigurationError(
            f"{name} takes no ~, got {negated[0]}: use django={{'~{name}__…': …}}"
        )
    prefix = f"{name}__"
    bounded = _numbers_only([(prefix + key, one) for key, one in pairs])
    return joined([(key.removeprefix(prefix), one) for key, one in bounded])


def pairs_of(text: str) -> Pairs:
    """The pairs of a text that :func:`django` has made."""
    parts = _split(text) if text else []
    return list(zip(parts[::2], parts[1::2], strict=True))


def joined(pairs: Pairs) -> str:
    """Undo :func:`pairs_of`."""
    return ",".join(f"{key},{value}" for key, value in pairs)


def encoded(value: Any) -> str:
    """What is sent for a Python value.

    Raises
    ------
    ConfigurationError
        No text stands for it.
    """
    value = plain(value)
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) and 0 <= value < _EXACT:
        return str(value)
    if isinstance(value, float) and re.fullmatch(r"\d+\.\d+", repr(value)):
        return repr(value)
    if isinstance(value, Mapping):
        return f"({_literal(value)})"
    if isinstance(value, AbstractSet):
        value = sorted(value)
    if isinstance(value, list | tuple):
        text = _literal(list(value))
        is_nested = any(isinstance(one, list | tuple | Mapping) for one in value)
        # A closing bracket inside would end it for the server.
        return f"({text})" if is_nested else text
    if isinstance(value, int | float | decimal.Decimal):
        return f"({_literal(value)})"
    text = _text(value)
    return f"({_literal(text)})" if _needs_quotes(text) else text


def _text(value: Any) -> str:
    if isinstance(value, dt.date | dt.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, str | uuid.UUID):
        return str(value)
    raise ConfigurationError(
        f"expected text, number, date, list or dict in a filter, got "
        f"{type(value).__name__}"
    )


def _needs_quotes(text: str) -> bool:
    return (
        text != text.strip()
        or not text
        or any(one in text for one in ",()[]{}")
        or text.replace(".", "", 1).isdigit()
        or text.lower() in {"true", "false", "none"}
        or not text.isprintable()
    )


def _literal(value: Any) -> str:
    """A Python literal without round brackets, which would not nest."""
    value = plain(value)
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float | decimal.Decimal):
        if not math.isfinite(value):
            raise ConfigurationError(f"expected a finite number, got {value}")
        return str(value) if isinstance(value, decimal.Decimal) else repr(value)
    if isinstance(value, Mapping):
        members = (f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items())
        return f"{{{', '.join(members)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_literal, value))}]"
    return f"'{''.join(map(_escaped, _text(value)))}'"


def _escaped(one: str) -> str:
    if _PLAIN.fullmatch(one):
        return one
    code = ord(one)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _key(key: Any) -> str:
    if (
        not isinstance(key, str)
        or not key.removeprefix("~")
        or key != key.strip()
        or any(one in key for one in ",()[]")
    ):
        raise ConfigurationError(
            f"expected a name like subject__nickname__in in a filter, got {key!r}"
        )
    return key


def _read(text: str) -> Pairs:
    parts = _split(text)
    if not text.strip():
        return []
    if len(parts) % 2:
        raise ConfigurationError(
            "expected pairs like name__lookup,value in a filter, got "
            f"{len(parts)} pieces of {text!r}; give a dict, or ('…') for a value "
            "with a comma in it"
        )
    pairs = []
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        if key != key.strip():
            _say(f"blanks before {key.strip()} are left out")
        pairs.append((_key(key.strip()), _mended(value)))
    return pairs


def _split(text: str) -> list[str]:
    """*text* at the commas that are in no bracket, and in no text in a bracket."""
    parts, start = [], 0
    closing: list[str] = []
    quote = ""
    place = 0
    while place < len(text):
        one = text[place]
        if quote:
            place += one == "\\"
            quote = "" if one == quote else quote
        elif closing and one in "'\"":
            quote = one
        elif one in _OPENING:
            closing.append(_OPENING[one])
        elif closing and one == closing[-1]:
            closing.pop()
        elif one == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
        place += 1
    return [*parts, text[start:]]


def _mended(value: str) -> str:
    """A value of a text, as the server reads it the way it is meant."""
    text = value.strip()
    if text[:1] in _OPENING and text[-1:] == _OPENING[text[0]]:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if text[0] == "{":
                raise ConfigurationError(
                    f"expected a dict in a filter, got {text!r}"
                ) from None
            # A pattern such as (left|right): the server would evaluate it.
            _say(f"{text} is sent as a text")
            return encoded(text)
        if text[0] == "{":
            _say(f"{text} is sent in round brackets, without which it finds nothing")
        return f"({_literal(found)})" if isinstance(found, str) else encoded(found)
    if any(one in text for one in "()[],{}"):
        return f"({_literal(text)})"
    return text


def _resolved(key: str, endpoint: str) -> str:
    """A key with the relation that is meant, where a documented one is another."""
    bare = key.removeprefix("~")
    mended = bare
    if endpoint == "sessions" and bare.startswith("session__"):
        mended = bare.removeprefix("session__")
    if endpoint in {"sessions", "subjects"} and bare.startswith("project__"):
        mended = f"projects__{bare.removeprefix('project__')}"
    if mended != bare:
        _say(f"{bare} of {endpoint} is sent as {mended}")
    return f"~{mended}" if key.startswith("~") else mended


def _apart(pairs: Pairs) -> Pairs:
    """Pairs in which no key comes twice, which the server refuses."""
    found: dict[str, str] = {}
    for key, value in pairs:
        again = key
        if again in found and key.rpartition("__")[2] not in LOOKUPS:
            again = f"{key}__exact"
        if again in found and found[again] != value:
            raise ConfigurationError(
                f"expected {key} once in a filter, got it again: ask twice"
            )
        found[again] = value
    return list(found.items())


def _numbers_only(pairs: Pairs) -> Pairs:
    """Pairs in which a number is compared with numbers alone.

    In the order of jsonb every truth value is greater than every number, and every text
    less: a quality check that says ``true`` would be more than 5.
    """
    known = dict(pairs)
    found: Pairs = []
    for key, value in pairs:
        found.append((key, value))
        path, _, lookup = key.rpartition("__")
        steps = path.split("__")
        inner = next((n for n, one in enumerate(steps) if one in _JSON_FIELDS), None)
        is_inside = inner is not None and (len(steps) > inner + 1)
        if key.startswith("~") or not is_inside or not _is_number(value):
            continue
        uppers = {f"{path}__lt", f"{path}__lte"} & known.keys()
        lowers = {f"{path}__gt", f"{path}__gte"} & known.keys()
        if lookup in {"gt", "gte"} and not uppers:
            found.append((f"{path}__lt", "False"))
        elif lookup in {"lt", "lte"} and not lowers:
            found.append((f"{path}__gte", _LOWEST))
    return list(dict(found).items())


def _is_number(value: str) -> bool:
    try:
        float(value.strip("()"))
    except ValueError:
        return False
    return True


def _say(text: str) -> None:
    logger.warning("alyx: in a filter, %s", text)

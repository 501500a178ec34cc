"""Which session something is, or belongs to. Pure.

A record has the id of its session under one of several names, and an ``id`` of its own,
which is a session's only where the record is one: a channel's id is of the same form.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from asyncfetch.errors import ConfigurationError
from asyncfetch.services._table import plain

_UUID = re.compile(r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.IGNORECASE)
# In the REST API, and on the pages for administrators.
_OF_SESSION = re.compile(rf"/sessions?/({_UUID.pattern})", re.IGNORECASE)
_BELOW = re.compile(
    rf"/(datasets|insertions|tasks|trajectories)/({_UUID.pattern})/?$", re.IGNORECASE
)
_REFERENCE = re.compile(r"(\d{4}-\d\d-\d\d)_(\d{1,3})_([\w-]+)")
_PATH = re.compile(r"([\w-]+)/(\d{4}-\d\d-\d\d)/(\d{1,3})(?:/|$)")


@dataclass(frozen=True, slots=True)
class Reference:
    """A session by what people call it."""

    subject: str
    date: str
    number: int


@dataclass(frozen=True, slots=True)
class Part:
    """A record whose own says which session it belongs to."""

    endpoint: str
    key: str


def several(of: Any) -> list[Any] | None:
    """What a list, a set, an array or a table holds; None for one thing."""
    if hasattr(of, "to_pylist"):  # Arrow
        return list(of.to_pylist())
    if hasattr(of, "columns") and hasattr(of, "to_dict"):  # pandas
        if of.index.name is not None:
            of = of.reset_index()
        return list(of.to_dict("records"))
    if isinstance(of, str | bytes | Mapping) or _is_row(of):
        return None
    return list(of) if isinstance(of, Iterable) else None


def _is_row(of: Any) -> bool:
    """Whether it is a row of a DataFrame: a Series that knows an id."""
    return hasattr(of, "to_dict") and bool({"id", "eid", "session"} & set(of.index))


def eid_of(of: Any) -> str | Reference | Part:
    """The id of the session of one thing, or what must be asked to know it.

    Raises
    ------
    ConfigurationError
        It says nothing of a session.
    """
    if _is_row(of):
        of = of.to_dict()
    found = _of_record(of) if isinstance(of, Mapping) else _of_text(str(plain(of)))
    if found is None:
        raise ConfigurationError(
            "expected a session's id, URL, path, record or reference like "
            f"2019-12-03_1_KS014, got {str(of)[:100]!r}"
        )
    return found


def _of_record(record: Mapping[str, Any]) -> str | Reference | Part | None:
    for name in ("session_info", "eid", "session"):
        if (found := _of_value(record.get(name))) is not None:
            return found
    if record.get("content_type") in {"session", "actions.session"}:  # of a note
        return _of_value(record.get("object_id"))
    for name in ("session_path", "dataset", "url"):
        if isinstance(text := record.get(name), str):
            return _of_text(text)
    is_session = "subject" in record or record.keys() == {"id"}
    if is_session and (found := _of_value(record.get("id"))) is not None:
        return found
    date = record.get("date") or record.get("start_time")
    number = record.get("number", record.get("sequence"))
    if record.get("subject") and date and number is not None:
        return Reference(str(record["subject"]), str(date)[:10], int(number))
    return None


def _of_value(value: Any) -> str | Reference | Part | None:
    """Of what a field of a record holds: a text, or a record in it."""
    if isinstance(value, str) and value.startswith("{"):  # in a table of Arrow
        value = json.loads(value)
    if isinstance(value, Mapping):
        return _of_record(value)
    return _of_text(str(value)) if isinstance(value, str | uuid.UUID) else None


def _of_text(text: str) -> str | Reference | Part | None:
    text = text.strip().replace("\\", "/")
    if _UUID.fullmatch(text):
        return str(uuid.UUID(text))
    if found := _OF_SESSION.search(text):
        return str(uuid.UUID(found[1]))
    if found := _BELOW.search(text):
        return Part(found[1].lower(), str(uuid.UUID(found[2])))
    if found := _REFERENCE.fullmatch(text):
        return Reference(found[3], found[1], int(found[2]))
    if found := _PATH.search(text):
        return Reference(found[1], found[2], int(found[3]))
    return None

"""How Neuroscout's server reads requests, and the forms of its answers and refusals."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from asyncfetch.testing._answer import Answer, Call

# gunicorn takes a request line of 4094 characters: 13 go to the method and protocol.
MAX_TARGET = 4081
# nginx itself refuses a request line above its 8 kB header buffer.
MAX_NGINX_TARGET = 8192 - 13

Kind = Literal["int", "ints", "number", "number list", "str", "strs", "bool"]
Values = dict[str, Any]

_TRUTHY = frozenset("t T true True TRUE on On ON y Y yes Yes YES 1".split())
_FALSY = frozenset("f F false False FALSE off Off OFF n N no No NO 0".split())

INDEX = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Neuroscout</title></head>
<body><div id="root"></div><script src="/static/js/main.js"></script></body></html>
"""


class InvalidError(Exception):
    """Parameters that the server's validation refuses, by field."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path of the service, and what answers there."""

    pattern: re.Pattern[str]
    answer: Callable[[Call, int, Values], Any]
    """From the call, the id in the path, and the parameters; None is a 404."""
    parameters: Mapping[str, Kind] | None = None
    """None where the service declares none, and so ignores the query."""
    required: frozenset[str] = field(default_factory=frozenset)
    is_private: bool = False
    """Whether only a user who is logged in is answered."""


def route(
    path: str,
    answer: Callable[[Call, int, Values], Any],
    parameters: Mapping[str, Kind] | None = None,
    required: frozenset[str] = frozenset(),
    *,
    is_private: bool = False,
) -> Route:
    """A route whose path may hold ``ID``, a number."""
    digits = path.replace("ID", r"(?P<id>\d+)")
    pattern = re.compile(digits if "ID" in path else f"{path}(?P<id>)")
    return Route(pattern, answer, parameters, required, is_private)


def parameters(
    declared: Mapping[str, Kind] | None,
    pairs: Sequence[tuple[str, str]],
    required: frozenset[str] = frozenset(),
) -> Values:
    """The parameters of a request, converted.

    Raises
    ------
    InvalidError
        With the fields and their messages, as the service words them.
    """
    if declared is None:
        return {}
    sent: dict[str, str] = {}
    for name, text in pairs:
        sent.setdefault(name, text)  # the first value wins, the rest is not looked at
    values: Values = {}
    errors: dict[str, Any] = {
        name: ["Missing data for required field."] for name in required - {*sent}
    }
    for name, text in sent.items():
        if name not in declared:
            errors[name] = ["Unknown field."]
            continue
        try:
            values[name] = _convert(declared[name], text)
        except InvalidError as error:
            errors[name] = error.args[0]
    if errors:
        raise InvalidError(errors)
    return values


def _convert(kind: Kind, text: str) -> Any:
    match kind:
        case "str":
            return text
        case "bool":
            if text in _TRUTHY or text in _FALSY:
                return text in _TRUTHY
            raise InvalidError(["Not a valid boolean."])
        case "int":
            return _whole(text)
        case "number":
            return _number(text)
    values: list[Any] = []
    errors: dict[str, Any] = {}
    for index, part in enumerate(text.split(",")):
        try:
            values.append(_ITEM[kind](part))
        except InvalidError as error:
            errors[str(index)] = error.args[0]
    if errors:
        raise InvalidError(errors)
    return values


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidError(["Not a valid integer."]) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidError(["Not a valid number."]) from None


def _text(text: str) -> str:
    if not text:
        raise InvalidError(["Field may not be empty."])
    return text


_ITEM: Mapping[Kind, Callable[[str], Any]] = {
    "ints": _whole,
    "number list": _number,
    "strs": _text,
}


def json_answer(call: Call, value: Any, *, status: int = 200) -> Answer:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return compressed(call, status, text.encode("ascii") + b"\n", "application/json")


def page(call: Call, status: int, reason: str) -> Answer:
    """A page of the proxy's own."""
    body = (
        f"<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} {reason}</h1></center>\r\n"
        "<hr><center>nginx/1.21.6</center>\r\n</body>\r\n</html>\r\n"
    )
    return compressed(call, status, body.encode("ascii"), "text/html")


def compressed(call: Call, status: int, body: bytes, content_type: str) -> Answer:
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Content-Type": content_type,
        "Server": "nginx/1.21.6",
        "Vary": "Accept-Encoding",
    }
    if not call.accepts_gzip:
        return Answer(status=status, body=body, headers=headers)
    return Answer(
        status=status,
        # No time in the stream: the same request gets the same bytes.
        body=gzip.compress(body, compresslevel=6, mtime=0),
        headers={**headers, "Content-Encoding": "gzip"},
        framing="chunked",
    )

"""What an Alyx server says that it offers, in either form of its schema document.

Both forms, and the copy that comes with the package, become the same mapping: endpoint
to action to ``url``, ``action`` (the method), ``description`` and ``fields``, as in the
older form, so that ``schemes["sessions"]["list"]["description"]`` is there on every
server. Pure.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from asyncfetch._alyx_schema import ACTIONS, DESCRIPTIONS, ENDPOINTS, KINDS, Endpoint
from asyncfetch.errors import ConfigurationError, DecodeError
from asyncfetch.services._table import close

Action = dict[str, Any]

_NO_ENDPOINTS = frozenset({"", "api", "auth-token", "_type", "_meta"})
_PAGING = {
    "limit": "Number of results to return per page.",
    "offset": "The initial index from which to return the results.",
}


class Schemes(Mapping[str, Mapping[str, Action]]):
    """Endpoints, actions and fields.

    Attributes
    ----------
    backend
        ``open_api_v3`` or ``core_api``: the form of the document; ``bundled`` for the
        copy that comes with the package.
    """

    def __init__(self, known: Mapping[str, Mapping[str, Action]], backend: str) -> None:
        self._known = {name: known[name] for name in sorted(known)}
        self.backend = backend

    def __getitem__(self, endpoint: str) -> Mapping[str, Action]:
        return self._known[endpoint]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"<{len(self)} endpoints of Alyx, {self.backend}>"

    @property
    def endpoints(self) -> list[str]:
        """Names of the endpoints, sorted."""
        return list(self._known)

    def actions(self, endpoint: str) -> list[str]:
        """Names of the actions of an endpoint.

        Raises
        ------
        ConfigurationError
            There is no such endpoint; the message has the nearest.
        """
        if endpoint not in self._known:
            raise ConfigurationError(
                f"alyx has no endpoint {endpoint!r}{close(endpoint, self._known)}; see "
                "list_endpoints()"
            )
        return list(self._known[endpoint])

    def action(self, endpoint: str, action: str) -> Action:
        """What is known of an action.

        Raises
        ------
        ConfigurationError
            There is no such endpoint, or it has no such action.
        """
        known = self.actions(endpoint)
        name = action.replace("-", "_")
        if name not in known:
            raise ConfigurationError(
                f"{endpoint} of alyx has no action {action!r}{close(name, known)}; it "
                f"has {', '.join(known) or 'none'}"
            )
        return self._known[endpoint][name]

    def fields(self, endpoint: str, action: str) -> list[dict[str, Any]]:
        """Parameters and fields of an action, each with its ``name`` and ``schema``."""
        return list(self.action(endpoint, action)["fields"])

    def field_names(self, endpoint: str, action: str) -> list[str]:
        """Names of the parameters and fields of an action."""
        return [field["name"] for field in self.fields(endpoint, action)]

    def url(self, endpoint: str, action: str) -> str:
        """Path of an action, with its lookup in braces."""
        return str(self.action(endpoint, action)["url"])

    def print_endpoint_info(self, endpoint: str, action: str | None = None) -> Any:
        """Print the parameters of an action, or of all; return what is known of it."""
        names = self.actions(endpoint) if action is None else [action.replace("-", "_")]
        for name in names:
            lines = [_line(field) for field in self.fields(endpoint, name)]
            say(repr(name), *sorted(lines, key=lambda line: "(required)" not in line))
        return self[endpoint] if action is None else self[endpoint][names[0]]


def say(*lines: str) -> None:
    """Print what was asked for to be printed."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _line(field: Mapping[str, Any]) -> str:
    required = " (required)" if field.get("required") else ""
    kind = field["schema"].get("_type", "")
    return f'\t"{field["name"]}"{required}: {kind}, {field["schema"]["description"]}'


def bundled() -> Schemes:
    """The copy that comes with the package, of server 3.6.1."""
    known = {
        name: {
            ACTIONS[letter][0]: _bundled_action(one, letter) for letter in one.actions
        }
        for name, one in ENDPOINTS.items()
    }
    return Schemes(known, "bundled")


def _bundled_action(one: Endpoint, letter: str) -> Action:
    _, method = ACTIONS[letter]
    path = f"/{one.name}" if letter in "LC" else f"/{one.name}/{{{one.lookup}}}"
    fields = [] if letter in "LC" else [_field(one.lookup, "string", "path", True)]
    if letter == "L":
        kinds = {
            **one.filters,
            **({"limit": "i", "offset": "i"} if one.is_listed else {}),
        }
        fields += [
            _field(name, KINDS[kind], "query", description=_PAGING.get(name, ""))
            for name, kind in sorted(kinds.items())
        ]
    elif letter in "CUP":
        fields += [_field(n, KINDS[k], "form") for n, k in one.columns.items()]
    text = DESCRIPTIONS.get(one.name, "") if letter == "L" else ""
    return _action(path, method, text, fields)


def _action(url: str, method: str, text: str, fields: list[dict[str, Any]]) -> Action:
    return {
        "url": url,
        "action": method.lower(),
        # Both forms say which method the text is for, and have it at all of them.
        "description": re.sub(r"^\s*get:\s*", "", text or ""),
        "fields": fields,
    }


def _field(
    name: str,
    kind: str,
    location: str,
    required: bool = False,
    description: str = "",
) -> dict[str, Any]:
    return {
        "name": name,
        "location": location,
        "required": required,
        "schema": {"_type": kind, "type": kind, "description": description},
    }


def read(document: Any) -> Schemes:
    """The schemes of a document in either form.

    Raises
    ------
    DecodeError
        It is neither.
    """
    if isinstance(document, Mapping):
        if isinstance(document.get("paths"), Mapping):
            return Schemes(_of_open_api(document), "open_api_v3")
        if document.get("_type") == "document":
            return Schemes(_of_core_api(document), "core_api")
    raise DecodeError("expected a schema document of Alyx, got something else")


def _of_open_api(document: Mapping[str, Any]) -> dict[str, dict[str, Action]]:
    names = {method.lower(): name for name, method in ACTIONS.values()}
    known: dict[str, dict[str, Action]] = {}
    for path, methods in document["paths"].items():
        endpoint = path.strip("/").partition("/")[0]
        if endpoint in _NO_ENDPOINTS:
            continue
        actions = known.setdefault(endpoint, {})
        for method, operation in methods.items():
            if method not in names:
                continue
            name = names[method]
            if method == "get":
                name = "read" if "{" in path else "list"
            fields = [_parameter(one) for one in operation.get("parameters", [])]
            fields += _body_fields(document, operation)
            text = operation.get("description", "")
            actions[name] = _action(path, method, text, fields)
    return known


def _parameter(one: Mapping[str, Any]) -> dict[str, Any]:
    schema = one.get("schema") or {}
    return _field(
        one["name"],
        schema.get("type", "string"),
        one.get("in", "query"),
        bool(one.get("required")),
        one.get("description", ""),
    )


def _body_fields(
    document: Mapping[str, Any], operation: Mapping[str, Any]
) -> list[dict[str, Any]]:
    content = (operation.get("requestBody") or {}).get("content") or {}
    schema = (content.get("application/json") or {}).get("schema") or {}
    name = schema.get("$ref", "").rpartition("/")[2]
    found = document.get("components", {}).get("schemas", {}).get(name) or schema
    required = found.get("required") or ()
    return [
        _field(
            name,
            one.get("type", "object"),
            "form",
            name in required,
            one.get("description", ""),
        )
        for name, one in (found.get("properties") or {}).items()
        if not one.get("readOnly")
    ]


def _of_core_api(document: Mapping[str, Any]) -> dict[str, dict[str, Action]]:
    known: dict[str, dict[str, Action]] = {}
    for endpoint, links in document.items():
        if endpoint in _NO_ENDPOINTS or not isinstance(links, Mapping):
            continue
        known[endpoint] = {
            name: _action(
                link["url"],
                link["action"],
                link.get("description", ""),
                [_core_field(one) for one in link.get("fields", [])],
            )
            for name, link in links.items()
            if isinstance(link, Mapping) and "url" in link  # "cache" lies one deeper
        }
    return known


def _core_field(one: Mapping[str, Any]) -> dict[str, Any]:
    schema = one.get("schema") or {}
    return _field(
        one["name"],
        schema.get("_type", "string"),
        one.get("location", "query"),
        bool(one.get("required")),
        schema.get("description", ""),
    )

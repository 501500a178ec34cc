"""Alyx, as the archive plays it: offset paging without order, and filters by django.

Most tables have no order, so that PostgreSQL gives their rows in another one at another
offset: pages repeat rows and leave others out while nothing changes. A page holds 1000
records at most. Values that the server does not understand are ignored, or an exception
whose text is sent with a 500.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from http.client import responses
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from asyncfetch._alyx_schema import (
    ACTIONS,
    DESCRIPTIONS,
    ENDPOINTS,
    KINDS,
    PAGE,
    Endpoint,
)
from asyncfetch.testing._alyx_archive import zip_rows, zipped
from asyncfetch.testing._alyx_data import AlyxData, content
from asyncfetch.testing._alyx_django import RefusedError, Row, pairs, test_of
from asyncfetch.testing._alyx_records import (
    InvalidError,
    Record,
    Records,
    condition,
    names,
    repeated,
    with_uuid,
)
from asyncfetch.testing._alyx_writing import REQUIRED, Writing
from asyncfetch.testing._answer import Answer, Call
from asyncfetch.testing._ranges import validators

# gunicorn takes a request line of 4094 characters: method and protocol need 13.
MAX_TARGET = 4081
DEFAULT_PAGE = 250
# Of accounts that exist in the archive only.
PUBLIC = ("intbrainlab", "international")
WRITER = ("writer", "example-password")
DATA_USER = ("iblmember", "example-password")
MODIFIED = "Wed, 06 May 2026 09:12:44 GMT"
_ORDERED = {
    "subjects": "nickname",
    "users": "username",
    "tags": "name",
    "revisions": "name",
    "dataset-types": "name",
    "data-formats": "name",
    "data-repository": "name",
}
_HTML = (
    "<!doctype html>\n<html lang=en>\n<head><title>{0}</title></head>\n"
    "<body><h1>{0}</h1></body></html>\n"
)


class _StoppedError(Exception):
    """The answer is known."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class AlyxService:
    """The REST API."""

    prefix = "/alyx"
    environment: Mapping[str, str] = {"ASYNCFETCH_ALYX_URL": prefix}
    credentials: Mapping[str, str] = {
        "ALYX_USER": PUBLIC[0],
        "ALYX_PASSWORD": PUBLIC[1],
    }

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self._scale = scale
        self._building = threading.Lock()
        self._generation = 0
        self._archives: dict[str | None, bytes] = {}
        self.is_old = False
        """Whether it is a server from before the OpenAPI document."""

    @cached_property
    def _data(self) -> AlyxData:
        return AlyxData(seed=self._seed, scale=self._scale)

    @property
    def data(self) -> AlyxData:
        """The rows; made when they are first asked for."""
        with self._building:
            return self._data

    def reset_tokens(self) -> None:
        """Let every token that was given out be unknown, as after a release."""
        self._generation += 1

    def is_throttled(self, target: str) -> bool:
        """Whether a request counts for the rate limit: all but logins do."""
        return not target.startswith(f"{self.prefix}/auth-token")

    def throttled(self, target: str, wait: float) -> Answer:
        """What is said to a request that comes *wait* seconds too early."""
        if target.startswith(f"{self.prefix}/docs"):
            page = b"429 Too Many Requests"
            return Answer(status=429, body=page, headers={"Content-Type": "text/html"})
        seconds = math.ceil(wait)
        words = f"Request was throttled. Expected available in {seconds} seconds."
        return _no(429, words)

    def _token(self, user: str) -> str:
        return hashlib.sha1(f"{user}{self._generation}".encode()).hexdigest()  # noqa: S324

    def answer(self, call: Call) -> Answer:
        """The response to *call*; it is kept by nobody, because rows change."""
        if len(call.target) > MAX_TARGET:
            return _page(414)
        try:
            return self._answer(call)
        except _StoppedError as stopped:
            return stopped.answer
        except InvalidError as error:
            return _json(error.body, error.status)
        except RefusedError as error:
            return _json({"status_code": 500, "detail": str(error)}, 500)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return _json({"status_code": 500, "detail": str(error)}, 500)

    def _answer(self, call: Call) -> Answer:
        path = call.path.strip("/")
        if (public := self._public(path, call)) is not None:
            return public
        name, _, key = path.partition("/")
        endpoint = ENDPOINTS.get(name)
        is_table = path in {"cache/info", "cache.zip"} or path.startswith("cache/info/")
        if not is_table and (endpoint is None or "/" in key or call.path[-1] == "/"):
            return _page(404)
        user = self._user(call)
        if is_table or endpoint is None:
            return self._tables(path, call)
        if call.method in {"HEAD", "OPTIONS"} or (
            call.method != "GET" and user == PUBLIC[0]
        ):
            return _no(403, "You do not have permission to perform this action.")
        if name == "check-protected":
            return _json({"status_code": 200, "details": []})
        if name == "sync-file-status":
            return _json([])
        records = Records(f"{call.origin}{self.prefix}", f"{call.origin}{FILES}")
        if key:
            return self._one(endpoint, unquote(key), call, records)
        if call.method == "POST" and "C" in endpoint.actions:
            return self._create(endpoint, call, records, user)
        if call.method != "GET" or not endpoint.is_listed:
            return _no(405, f'Method "{call.method}" not allowed.')
        return self._list(endpoint, call, records)

    def _public(self, path: str, call: Call) -> Answer | None:
        """What needs no credentials."""
        if path == "auth-token":
            return self._log_in(call)
        if path == "api/schema" and not self.is_old:
            return _json(open_api(), kind="application/vnd.oai.openapi+json")
        if path == "docs" and "coreapi" in call.accept:
            return _json(core_api(), kind="application/coreapi+json")
        return None

    # --- who asks ---------------------------------------------------------------------

    def _log_in(self, call: Call) -> Answer:
        if call.method != "POST":
            return _no(405, f'Method "{call.method}" not allowed.')
        sent = _sent(call)
        missing = [name for name in ("username", "password") if not sent.get(name)]
        if missing:
            required = {name: ["This field is required."] for name in missing}
            return _json({**required, "status_code": 400}, 400)
        if (sent["username"], sent["password"]) not in (PUBLIC, WRITER):
            words = ["Unable to log in with provided credentials."]
            return _json({"non_field_errors": words, "status_code": 400}, 400)
        return _json({"token": self._token(sent["username"])})

    def _user(self, call: Call) -> str:
        scheme, _, token = call.authorization.partition(" ")
        if scheme != "Token":
            words = "Authentication credentials were not provided."
            raise _StoppedError(_no(403, words))
        for user, _ in (PUBLIC, WRITER):
            if token.strip() == self._token(user):
                return user
        raise _StoppedError(_no(403, "Invalid token."))

    # --- reading ----------------------------------------------------------------------

    def rows(self, endpoint: str, filters: Mapping[str, str]) -> list[Row]:
        """The rows that match, in the order of the heap; some may come again."""
        found = self.data.tables[endpoint]
        is_distinct = bool(filters.get("django", "").strip())
        if ENDPOINTS[endpoint].has_django:
            for pair in pairs(filters.get("django", "")):
                test = test_of(pair.key, pair.value)
                found = [one for one in found if test(one) != pair.is_exclusion]
        for name, text in filters.items():
            narrowed = condition(self.data, endpoint, name, text)
            if narrowed is not None and name != "dataset_qc_lte":
                found = [one for one in found if narrowed(one)]
        if filters.get("dataset_qc_lte") and endpoint == "sessions":
            joined = [
                again
                for one in found
                for again in repeated(one, filters["dataset_qc_lte"])
            ]
            found = list(dict.fromkeys(joined)) if is_distinct else joined
        return found

    def _list(self, endpoint: Endpoint, call: Call, records: Records) -> Answer:
        filters = dict(call.pairs())  # of a name that comes twice the last counts
        limit = _whole(filters.pop("limit", ""))
        offset = max(0, _whole(filters.pop("offset", "")))
        limit = DEFAULT_PAGE if limit <= 0 else min(limit, PAGE)
        found = self.rows(endpoint.name, filters)
        page = _in_order(endpoint.name, found, offset)[offset : offset + limit]
        base = f"{call.origin}{call.target.partition('?')[0]}"

        def link(start: int) -> str:
            query = {**filters, "limit": limit, "offset": start}
            return f"{base}?{urlencode(query)}"

        return _json(
            {
                "count": len(found),
                "next": link(offset + limit) if offset + limit < len(found) else None,
                "previous": link(max(0, offset - limit)) if offset else None,
                "results": [records.of(endpoint.name, one) for one in page],
            }
        )

    def _one(
        self, endpoint: Endpoint, key: str, call: Call, records: Records
    ) -> Answer:
        if endpoint.name == "water-requirement":
            return _json({"subject": key, "implant_weight": 0, "records": []})
        if endpoint.name == "water-type":
            return self._list(endpoint, call, records)
        if endpoint.name not in self.data.tables:
            return _page(404)
        is_uuid = endpoint.lookup == "id" and endpoint.keys == "uuid"
        if is_uuid and (len(key) != 36 or key.count("-") != 4):
            return _page(404)
        rows = self.data.tables[endpoint.name]
        row = next((one for one in rows if str(one[endpoint.lookup]) == key), None)
        if row is None:
            model = endpoint.name.removesuffix("s").title()
            return _no(404, f"No {model} matches the given query.")
        letters = {"GET": "R", "PUT": "U", "PATCH": "P", "DELETE": "D"}
        if letters.get(call.method, "?") not in endpoint.actions:
            return _no(405, f'Method "{call.method}" not allowed.')
        if call.method == "DELETE":
            self._writing.remove(endpoint, row)
            return Answer(status=204, may_be_kept=False)
        if call.method != "GET":
            is_whole = call.method == "PUT"
            self._writing.change(endpoint, row, _sent(call), is_whole=is_whole)
        return _json(records.one(endpoint.name, row))

    # --- writing ----------------------------------------------------------------------

    @property
    def _writing(self) -> Writing:
        return Writing(self.data)

    def _create(
        self, endpoint: Endpoint, call: Call, records: Records, user: str
    ) -> Answer:
        sent = _sent(call)
        if endpoint.name == "register-file":
            return _json(self._writing.registered(sent, user), 201)
        if endpoint.name == "new-download":
            return _json(self._writing.downloaded(sent, user), 201)
        if endpoint.name != "channels" or not isinstance(sent, list):
            made = self._writing.made(endpoint, sent, user)
            return _json(records.one(endpoint.name, made), 201)
        if not all("trajectory_estimate" in one for one in sent):
            # The handler cannot format what is wrong with a list.
            return _page(200, "500 Internal Server Error")
        several = [self._writing.made(endpoint, one, user) for one in sent]
        return _json([records.one(endpoint.name, one) for one in several], 201)

    # --- tables -----------------------------------------------------------------------

    def _tables(self, path: str, call: Call) -> Answer:
        """The service's own tables, whole or of a release."""
        if path == "cache.zip":
            return _zip(self.archive())
        tag = unquote(path.removeprefix("cache/info").strip("/"))
        if tag and tag not in names(self.data.tables["tags"]):
            return Answer(status=404, body=b"no such tag", may_be_kept=False)
        counts = {
            name: len(rows) for name, rows in zip_rows(self.data, tag or None).items()
        }
        if not all(counts.values()):
            return _no(500, f"There is no table of {tag}")
        info: Record = {
            "date_created": "2026-11-21 02:45",
            "origin": "alyx",
            "min_api_version": "2.10",
            "tables": {n: {"nrecs": k, "size": 1} for n, k in counts.items()},
        }
        if tag:
            info["database_tags"] = [tag]
            info["location"] = f"{call.origin}{FILES}{CACHES}/{quote(tag)}/cache.zip"
        return _json(info)

    def archive(self, tag: str | None = None) -> bytes:
        """The tables in one archive, as they were when they were first asked for."""
        with self._building:
            if tag not in self._archives:
                self._archives[tag] = zipped(zip_rows(self._data, tag))
            return self._archives[tag]


CACHES = "/s3/caches/openalyx"
FILES = "/alyx-files"


class AlyxFiles:
    """The servers of data files: a public tree, a private one, and a bucket."""

    prefix = FILES
    environment: Mapping[str, str] = {}

    def __init__(self, alyx: AlyxService, seed: int) -> None:
        self._alyx = alyx
        self._seed = seed

    @cached_property
    def _known(self) -> Mapping[str, Row]:
        return {
            with_uuid(one["relative_path"], one["dataset"]["id"]): one["dataset"]
            for one in self._alyx.data.tables["files"]
        }

    def answer(self, call: Call) -> Answer:
        """A file, by the address that its record names."""
        if call.method != "GET":
            return _page(405)
        path = unquote(call.path)
        if path.startswith("/private/"):
            pair = base64.b64encode(":".join(DATA_USER).encode()).decode()
            if call.authorization != f"Basic {pair}":
                return _page(401)
        elif call.authorization:
            return _page(400)  # a secret that was meant for somebody else
        if path.startswith(CACHES):
            return _zip(self._alyx.archive(path.split("/")[-2]))
        _, is_below, below = path.partition("/Subjects/")
        dataset = self._known.get(below) if is_below else None
        if dataset is None:
            return _page(404)
        data = content(self._seed, dataset["id"], dataset["file_size"])
        kind = {"Content-Type": "application/octet-stream"}
        return Answer(body=data, headers=kind | validators(data, MODIFIED))


def _in_order(endpoint: str, rows: list[Row], offset: int) -> list[Row]:
    """Rows as a query with that offset gives them."""
    if endpoint in _ORDERED:
        return sorted(rows, key=lambda row: str(row[_ORDERED[endpoint]]))
    if endpoint == "sessions":  # those of one time in any order
        ties = sorted(rows, key=lambda row: str(row["id"])[offset // PAGE % 4 :])
        return sorted(ties, key=lambda row: str(row["start_time"]), reverse=True)
    plan = 0 if offset < 2 * DEFAULT_PAGE else 1 + offset // 5000
    return rows if plan == 0 else sorted(rows, key=lambda r: str(r["id"])[plan % 8 :])


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _sent(call: Call) -> Any:
    if "json" in call.content_type:
        try:
            return json.loads(call.body)
        except ValueError as error:
            words = f"JSON parse error - {error}"
            raise _StoppedError(_no(400, words)) from None
    if "multipart" in call.content_type:
        return dict(_parts(call))
    return dict(parse_qsl(call.body.decode()))


def _parts(call: Call) -> Iterable[tuple[str, str]]:
    """Names and texts of a form; of a file, its name stands for it."""
    mark = call.content_type.partition("boundary=")[2].strip('"').encode()
    for part in call.body.split(b"--" + mark)[1:-1]:
        head, _, text = part.strip(b"\r\n").partition(b"\r\n\r\n")
        found = dict(
            one.strip().replace('"', "").split("=", 1)
            for line in head.decode().split("\r\n")
            if line.lower().startswith("content-disposition")
            for one in line.split(";")[1:]
        )
        yield found["name"], found.get("filename") or text.decode()


def _json(value: Any, status: int = 200, kind: str = "application/json") -> Answer:
    return Answer(
        status=status,
        body=json.dumps(value, separators=(",", ":")).encode(),
        headers={"Content-Type": kind, "Server": "gunicorn"},
        may_be_kept=False,
    )


def _zip(body: bytes) -> Answer:
    kind = {"Content-Type": "application/zip"}
    return Answer(body=body, headers=kind, may_be_kept=False)


def _no(status: int, detail: str) -> Answer:
    return _json({"detail": detail, "status_code": status}, status)


def _page(status: int, title: str | None = None) -> Answer:
    """A page for people."""
    return Answer(
        status=status,
        body=_HTML.format(title or f"{status} {responses[status]}").encode(),
        headers={"Content-Type": "text/html"},
        may_be_kept=False,
    )


def _fields(endpoint: Endpoint) -> dict[str, str]:
    paging = {"limit": "i", "offset": "i"}
    return dict(sorted({**endpoint.filters, **paging}.items()))


_PAGING = {
    "limit": "Number of results to return per page.",
    "offset": "The initial index from which to return the results.",
}


def open_api() -> Record:
    """The schema document of servers since 3.3.1."""
    paths: Record = {"/auth-token": {"post": {"operationId": "auth_token_create"}}}
    schemas: Record = {}
    for one in ENDPOINTS.values():
        schema = "".join(map(str.title, one.name.split("-")))
        schemas[schema] = {
            "type": "object",
            "properties": {
                name: {"type": KINDS[kind]} for name, kind in one.columns.items()
            },
            "required": list(REQUIRED.get(one.name, ())),
        }
        for letter in one.actions:
            _, method = ACTIONS[letter]
            path = f"/{one.name}"
            operation: Record = {
                "operationId": f"{one.name}_{letter}",
                "parameters": [],
            }
            if letter == "L":
                operation["parameters"] = [
                    {"in": "query", "name": name, "schema": {"type": KINDS[kind]}}
                    | ({"description": _PAGING[name]} if name in _PAGING else {})
                    for name, kind in _fields(one).items()
                ]
            elif letter != "C":
                path += f"/{{{one.lookup}}}"
                operation["parameters"] = [
                    {
                        "in": "path",
                        "name": one.lookup,
                        "schema": {"type": "string"},
                        "required": True,
                    }
                ]
            if letter in "CUP":
                name = f"Patched{schema}" if letter == "P" else schema
                reference = {"$ref": f"#/components/schemas/{name}"}
                operation["requestBody"] = {
                    "content": {"application/json": {"schema": reference}}
                }
            if letter in "LC" and one.name in DESCRIPTIONS:
                operation["description"] = DESCRIPTIONS[one.name]
            paths.setdefault(path, {})[method.lower()] = operation
    for name, schema in list(schemas.items()):
        schemas[f"Patched{name}"] = {**schema, "required": []}
    for path in ("/cache/info/", "/cache.zip", "/uploaded/{img_url}", "/api/schema"):
        paths[path] = {"get": {"operationId": path.strip("/"), "parameters": []}}
    return {
        "openapi": "3.0.3",
        "info": {"title": "", "version": "0.0.0"},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": schemas, "securitySchemes": {}},
    }


def core_api() -> Record:
    """The schema document of older servers."""
    found: Record = {"_type": "document", "_meta": {"title": "Alyx REST API"}}
    for one in ENDPOINTS.values():
        actions: Record = {}
        for letter in one.actions:
            action, method = ACTIONS[letter]
            url = f"/{one.name}" if letter in "LC" else f"/{one.name}/{{{one.lookup}}}"
            if letter == "L":
                fields = [_core_field(n, k, "query") for n, k in _fields(one).items()]
            else:
                fields = [] if letter == "C" else [_core_field(one.lookup, "s", "path")]
                if letter in "CUP":
                    fields += [
                        _core_field(n, k, "form") for n, k in one.columns.items()
                    ]
            actions[action] = {
                "_type": "link",
                "url": url,
                "action": method.lower(),
                "description": DESCRIPTIONS.get(one.name, "") if letter == "L" else "",
                "fields": fields,
            }
        found[one.name] = actions
    found["cache"] = {"info": {"read": {"url": "/cache/info/", "action": "get"}}}
    found["auth-token"] = {"create": {"url": "/auth-token", "action": "post"}}
    return found


def _core_field(name: str, kind: str, location: str) -> Record:
    return {
        "name": name,
        "location": location,
        **({"required": True} if location == "path" else {}),
        "schema": {
            "_type": KINDS[kind],
            "title": name.title(),
            "description": _PAGING.get(name, ""),
        },
    }

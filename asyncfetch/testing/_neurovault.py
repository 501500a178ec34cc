"""NeuroVault, as the archive plays it: filters that do nothing, and records that fail.

Lists have no order, so that pages by offset repeat rows and leave others out. Filters
are ignored, and nobody is told. One record that cannot be serialised makes an HTML page
with a 500 of every page that it is on. A file that is not on the disk has a size of 0.
An upload may be stored although its answer is a 500.
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
import re
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from asyncfetch._neurovault_schema import (
    CODES,
    COLLECTION,
    DEFAULT_PAGE,
    IMAGE,
    PAGE,
    STATISTIC_MAP,
)
from asyncfetch.testing._answer import Answer, Call, uniforms
from asyncfetch.testing._forms import FormPart, form
from asyncfetch.testing._neurovault_data import OWNER, Row, VaultData, is_poisoned

# Of an account that exists in the archive only.
TOKEN = "0123456789abcdef" * 2 + "01234567"
SITE = "/neurovault"
MEDIA = f"{SITE}/media/images"
_MODIFIED = "Mon, 20 Jul 2020 22:14:26 GMT"
_CAPITALS = re.compile(r"[A-Z]{8}")
_IMAGE = re.compile(r"(?:([A-Z]{8})-)?(\d+)")
_NOT_FOUND = {"detail": "Not found."}
_NO_CREDENTIALS = {"detail": "Authentication credentials were not provided."}
_NO_RIGHT = {"detail": "You do not have permission to perform this action."}
_HTML = "<!DOCTYPE html>\n<html><title>{0}</title><body>{0}</body></html>\n"
_NO_CHOICE = "Select a valid choice. That choice is not one of the available choices."
_REQUIRED = {"map_type": "", "modality": "", "name": ""}


class _StoppedError(Exception):
    """The answer is known."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class NeuroVaultService:
    """The REST API."""

    prefix = f"{SITE}/api"
    environment: Mapping[str, str] = {"ASYNCFETCH_NEUROVAULT_URL": prefix}

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self._scale = scale
        self._building = threading.Lock()
        self.most = PAGE
        """Records on a page at most."""
        self.filters_work = False
        """Whether the deployed libraries honour what the source declares."""

    @cached_property
    def _data(self) -> VaultData:
        return VaultData(seed=self._seed, scale=self._scale)

    @property
    def data(self) -> VaultData:
        """The rows; made when they are first asked for."""
        with self._building:
            return self._data

    def answer(self, call: Call) -> Answer:
        """The response to *call*; it is kept by nobody, because rows change."""
        try:
            return self._answer(call)
        except _StoppedError as stopped:
            return stopped.answer

    def _answer(self, call: Call) -> Answer:
        query = dict(call.pairs())
        if (misled := self._misled(call, query)) is not None:
            return misled
        user = self._user(call)
        kind, *rest = call.path.strip("/").split("/")
        if kind in {"user", "my_collections"}:
            return self._of_user(call, query, kind, rest, user)
        match [kind, *rest]:
            case ["collections"]:
                return self._collections(call, query, user)
            case ["collections", key]:
                return self._one_collection(call, key, user)
            case ["collections", key, of]:
                return self._of_collection(call, query, key, of, user)
            case ["images" | "atlases"]:
                rows = [r for r in self.data.images.values() if self._is_public(r)]
                if kind == "atlases":
                    rows = [r for r in rows if r["image_type"] == "atlas"]
                return self._list(call, query, rows, self._image)
            case ["images" | "atlases", key]:
                return self._one_image(call, key, user)
            case ["nidm_results"]:
                packs = list(self.data.packs.values())
                return self._list(call, query, packs, self._pack)
            case ["nidm_results", key]:
                pack = self.data.packs.get(_whole(key))
                return _json(self._pack(pack, call)) if pack else _json(_NOT_FOUND, 404)
        return page(404, "Page not found")

    def _misled(self, call: Call, query: Mapping[str, str]) -> Answer | None:
        """What comes of a path or an ``Accept`` that the API does not mean."""
        if not call.path.endswith("/"):
            rest = f"?{call.query}" if call.query else ""
            where = f"{self.prefix}{call.path}/{rest}"
            return Answer(status=301, headers={"Location": where}, may_be_kept=False)
        if query.get("format", "json") not in {"json", "api"}:
            return _json(_NOT_FOUND, 404)
        if query.get("format") == "api" or "text/html" in call.accept:
            return page(200, "Api Root - Django REST framework")
        if call.accept and not any(k in call.accept for k in ("json", "*/*")):
            words = "Could not satisfy the request Accept header."
            return _json({"detail": words}, 406)
        if call.path == "/":
            names = "images atlases collections my_collections nidm_results".split()
            root = f"{call.origin}{self.prefix}"
            return _json({name: f"{root}/{name}/" for name in names})
        return None

    def _of_user(
        self,
        call: Call,
        query: Mapping[str, str],
        kind: str,
        rest: list[str],
        user: int | None,
    ) -> Answer:
        self._only(user)
        if kind == "user":
            return _json({"id": OWNER, "username": "user04", "email": ""})
        if not rest:
            mine = [c for c in self.data.collections.values() if c["owner"] == user]
            return self._list(call, query, mine, self._collection)
        if call.method == "PATCH":
            return self._change_collection(
                call, self._row(call, rest[0], user, mine=True)
            )
        return _json(_NO_RIGHT, 403)

    # --- who asks ---------------------------------------------------------------------

    def _user(self, call: Call) -> int | None:
        scheme, _, token = call.authorization.partition(" ")
        if scheme != "Token":  # any other one is not looked at
            return None
        if not token.strip():
            words = "Invalid token header. No credentials provided."
        elif " " in token.strip():
            words = "Invalid token header. Token string should not contain spaces."
        elif token.strip() == TOKEN:
            return OWNER
        else:
            words = "Invalid token."
        raise _StoppedError(_json({"detail": words}, 401))

    def _only(self, user: int | None) -> None:
        if user is None:
            raise _StoppedError(_json(_NO_CREDENTIALS, 401))

    def _is_public(self, image: Row) -> bool:
        return not self.data.collections[image["collection_id"]]["private"]

    def _row(
        self, call: Call, key: str, user: int | None, *, mine: bool = False
    ) -> Row:
        """The collection that a key leads to."""
        if key.isdecimal():
            row = self.data.collections.get(int(key))
            if row is not None and row["private"] and not mine:
                refused = _json(_NO_RIGHT, 403)
                if call.method in {"PATCH", "PUT", "DELETE"}:
                    refused = _json(_NOT_FOUND, 404)
                raise _StoppedError(refused)
        elif not _CAPITALS.fullmatch(key):  # the server does not expect it
            raise _StoppedError(page(500, "Server Error (500)"))
        else:
            row = next(
                (r for r in self.data.collections.values() if r["token"] == key), None
            )
        if row is None or (mine and row["owner"] != user):
            raise _StoppedError(_json(_NOT_FOUND, 404))
        return row

    # --- reading ----------------------------------------------------------------------

    def _collections(
        self, call: Call, query: dict[str, str], user: int | None
    ) -> Answer:
        if call.method == "POST":
            self._only(user)
            return self._create(call)
        rows = [c for c in self.data.collections.values() if not c["private"]]
        if self.filters_work:
            if (owner := query.get("owner")) and not any(
                str(c["owner"]) == owner for c in rows
            ):
                return _json({"owner": [_NO_CHOICE]}, 400)
            for name in ("DOI", "name", "owner"):
                if query.get(name):
                    rows = [c for c in rows if str(c[name]) == query[name]]
        return self._list(call, query, rows, self._collection)

    def _list(
        self,
        call: Call,
        query: Mapping[str, str],
        rows: Sequence[Row],
        shown: Callable[[Row, Call], Row],
        *,
        is_ordered: bool = False,
    ) -> Answer:
        if call.method not in {"GET", "HEAD"}:
            return _json({"detail": f'Method "{call.method}" not allowed.'}, 405)
        limit = _whole(query.get("limit", ""))
        limit = DEFAULT_PAGE if limit <= 0 else min(limit, self.most)
        offset = max(0, _whole(query.get("offset", "")))
        if not is_ordered:
            rows = self._unordered(rows, offset // limit)
        found = rows[offset : offset + limit]
        if any(is_poisoned(row) for row in found):
            return page(500, "Server Error (500)")
        where = f"{call.origin}{self.prefix}{call.path}"

        def link(start: int) -> str:
            # Names that nobody knows come back, too.
            return f"{where}?{urlencode({**query, 'limit': limit, 'offset': start})}"

        body = {
            "count": len(rows),
            "next": link(offset + limit) if offset + limit < len(rows) else None,
            "previous": link(max(0, offset - limit)) if offset else None,
            "results": [shown(row, call) for row in found],
        }
        return _json(body, gzipped=call.accepts_gzip)

    def _unordered(self, rows: Sequence[Row], plan: int) -> Sequence[Row]:
        """Rows as a statement with that offset finds them: now and then swapped."""
        if not plan:
            return rows

        def place(row: Row) -> float:
            a, b, _, _ = uniforms(self._seed, "plan", plan, row["id"])
            return float(row["id"]) + (40 * b - 20 if a < 0.03 else 0)

        return sorted(rows, key=place)

    def _collection(self, row: Row, call: Call) -> Row:
        key = row["token"] or row["id"]
        url = f"{call.origin}{SITE}/collections/{key}/"
        return {name: row[name] for name in COLLECTION} | {
            "url": url,
            "download_url": f"{url}download",
            "number_of_images": self.data.number_of_images(row["id"]),
        }

    def _image(self, row: Row, call: Call) -> Row:
        collection = self.data.collections[row["collection_id"]]
        key, site = collection["token"] or collection["id"], f"{call.origin}{SITE}"
        name = row["id"] if not collection["token"] else f"{key}-{row['id']}"
        shown = {
            name: value for name, value in row.items() if name not in {"path", "bytes"}
        } | {
            "url": f"{site}/images/{name}/",
            "file": f"{site}/media/images/{key}/{row['path']}",
            "collection": f"{site}/collections/{key}/",
        }
        if shown.get("label_description_file"):
            shown["label_description_file"] = f"{site}/media/images/{key}/parcels.xml"
        if number := shown.get("nidm_results"):
            shown["nidm_results"] = f"{site}/collections/{key}/{number}.nidm.zip"
            shown["nidm_results_ttl"] = f"{site}/collections/{key}/{number}.nidm.ttl"
        if row["image_type"] == "atlas" and "/atlases/" in call.path:
            del shown["image_type"]
        return shown

    def _pack(self, row: Row, call: Call) -> Row:
        site = f"{call.origin}{SITE}/collections/{row['collection']}"
        shown = {name: value for name, value in row.items() if name != "maps"}
        return shown | {
            "url": f"{site}/{row['name']}.nidm",
            "zip_file": f"{site}/{row['name']}.nidm.zip",
            "ttl_file": f"{site}/{row['name']}.nidm.ttl",
            "statmaps": [self._image(self.data.images[n], call) for n in row["maps"]],
        }

    def _one_collection(self, call: Call, key: str, user: int | None) -> Answer:
        row = self._row(call, key, user)
        if is_poisoned(row):
            return page(500, "Server Error (500)")
        if call.method == "GET":
            return _json(self._collection(row, call))
        self._only(user)
        if row["owner"] != user:
            return _json(_NO_RIGHT, 403)
        if row["private"]:
            return _json(_NOT_FOUND, 404)
        if call.method == "DELETE":
            for image in self.data.in_collection(row["id"]):
                del self.data.images[image["id"]]
            del self.data.collections[row["id"]]
            return Answer(status=204, may_be_kept=False)
        return self._change_collection(call, row)

    def _of_collection(
        self, call: Call, query: dict[str, str], key: str, kind: str, user: int | None
    ) -> Answer:
        row = self._row(call, key, user)
        images = self.data.in_collection(row["id"])
        if call.method == "POST" and kind == "images":
            self._only(user)
            if row["owner"] != user:
                return _json(_NO_RIGHT, 403)
            return self._upload(call, row)
        if kind == "images":
            return self._list(call, query, images, self._image, is_ordered=True)
        if kind == "atlases":
            atlases = [r for r in images if r["image_type"] == "atlas"]
            return self._list(call, query, atlases, self._image, is_ordered=True)
        if kind == "nidm_results":
            packs = [
                p for p in self.data.packs.values() if p["collection"] == row["id"]
            ]
            return self._list(call, query, packs, self._pack, is_ordered=True)
        return page(404, "Page not found")

    def _one_image(self, call: Call, key: str, user: int | None) -> Answer:
        found = _IMAGE.fullmatch(key)
        row = self.data.images.get(int(found[2])) if found else None
        if row is None or found is None:
            return _json(_NOT_FOUND, 404)
        collection = self.data.collections[row["collection_id"]]
        if collection["private"] and found[1] != collection["token"]:
            return _json(_NOT_FOUND, 404)
        if is_poisoned(row):
            return page(500, "Server Error (500)")
        if call.method == "GET":
            return _json(self._image(row, call))
        self._only(user)
        if collection["owner"] != user:
            return _json(_NO_RIGHT, 403)
        if call.method == "DELETE":
            del self.data.images[row["id"]]
            return Answer(status=204, may_be_kept=False)
        fields = {name: _stored(value) for name, value in _sent(call).items()}
        for name, codes in CODES.items():
            if name in fields and fields[name] not in codes:
                words = f'"{fields[name]}" is not a valid choice.'
                return _json({name: [words]}, 400)
            if name in fields:
                fields[name] = codes[fields[name]]
        self._note(row, fields)
        return _json(self._image(row, call))

    # --- writing ----------------------------------------------------------------------

    def _create(self, call: Call) -> Answer:
        sent = _sent(call)
        if bool(sent.get("name")) == bool(sent.get("DOI")):
            if "name" in sent and not sent["name"] and not sent.get("DOI"):
                return _json({"name": ["This field may not be blank."]}, 400)
            words = 'Specify either "name" or "DOI"'
            return _json({"non_field_errors": [words]}, 400)
        if sent.get("DOI"):
            if not sent["DOI"].startswith("10.1000/"):
                return _json({"non_field_errors": ["Could not resolve DOI"]}, 400)
            sent = {**sent, "name": f"Paper {sent['DOI']}"}
        if any(c["name"] == sent["name"] for c in self.data.collections.values()):
            words = "collection with this Name of collection already exists."
            return _json({"name": [words]}, 400)
        row = self.data.new_collection(max(self.data.collections) + 1)
        self.data.collections[row["id"]] = row
        self._note(row, {k: v for k, v in sent.items() if k in COLLECTION})
        if row["private"]:  # a token that no route takes
            row["token"] = f"{row['id']:08x}"
        shown = self._collection(row, call)
        return _json(shown, 201, headers={"Location": shown["url"]})

    def _change_collection(self, call: Call, row: Row) -> Answer:
        self._note(row, {k: v for k, v in _sent(call).items() if k in COLLECTION})
        if not row["private"]:
            row["token"] = None
        return _json(self._collection(row, call))

    def _note(self, row: Row, fields: Mapping[str, Any]) -> None:
        row |= {
            name: one for name, one in fields.items() if name not in {"id", "owner"}
        }
        now = dt.datetime.now(dt.timezone(dt.timedelta(hours=1)))
        row["modify_date"] = now.isoformat()
        if "collection_id" in row:
            self.data.collections[row["collection_id"]]["modify_date"] = now.isoformat()

    def _upload(self, call: Call, collection: Row) -> Answer:
        parts: dict[str, FormPart] = {one.name: one for one in form(call)}
        errors: dict[str, list[str]] = {
            name: ["This field is required."] for name in _REQUIRED if name not in parts
        }
        if "file" not in parts:
            errors["file"] = ["No file was submitted."]
        fields: Row = {n: p.text for n, p in parts.items() if p.file_name is None}
        for name, codes in CODES.items():
            if name in fields:
                if fields[name] not in codes:
                    errors[name] = [f'"{fields[name]}" is not a valid choice.']
                else:
                    fields[name] = codes[fields[name]]
        if errors:
            return _json(errors, 400)
        file = parts["file"]
        if not _is_nifti(file.data):
            return page(500, "Server Error (500)")
        name = re.sub(r"[^\w.-]", "", (file.file_name or "").replace(" ", "_"))
        fields = {n: one if n in CODES else _typed(n, one) for n, one in fields.items()}
        row = self.data.add_image(
            collection["id"],
            STATISTIC_MAP,
            stem=self._free(collection["id"], name.removesuffix(".nii.gz")),
            data=file.data,
            **fields,
        )
        self._note(row, {})
        if is_poisoned(row):  # and yet it is stored
            return page(500, "Server Error (500)")
        return _json(self._image(row, call), 201)

    def _free(self, collection: int, stem: str) -> str:
        taken = {one["path"] for one in self.data.in_collection(collection)}
        names = [stem, *(f"{stem}_{n}" for n in range(1, len(taken) + 2))]
        return next(one for one in names if f"{one}.nii.gz" not in taken)


class NeuroVaultFiles:
    """The files of images, and those that Neuroscout's users have uploaded."""

    prefix = MEDIA
    environment: Mapping[str, str] = {}

    def __init__(self, vault: NeuroVaultService, uploads: Mapping[str, bytes]) -> None:
        self._vault = vault
        self._uploads = uploads

    def answer(self, call: Call) -> Answer:
        """A file, whole: ranges are not looked at."""
        if call.method not in {"GET", "HEAD"}:
            return page(405, "Method Not Allowed")
        path = unquote(call.path.lstrip("/"))
        if path in self._uploads:
            body = self._uploads[path]
            return Answer(body=body, headers={"Content-Type": "application/gzip"})
        key, _, name = path.partition("/")
        data = self._vault.data
        if key.isdecimal():
            collection = data.collections.get(int(key))
            if collection is not None and collection["private"]:
                return page(403, "403 Forbidden")
        else:
            rows = data.collections.values()
            collection = next((r for r in rows if r["token"] == key), None)
        for row in data.in_collection(collection["id"]) if collection else ():
            if row["path"] == name and row["bytes"] is not None:
                title = name.rpartition("/")[2]
                headers = {
                    "Content-Type": "application/octet-stream",
                    "Content-Encoding": "utf-8",  # which is no coding of content
                    "Content-Disposition": f'inline; filename="{title}"',
                    "Last-Modified": _MODIFIED,
                }
                return Answer(body=row["bytes"], headers=headers, may_be_kept=False)
        return page(404, "Page not found")


def _is_nifti(data: bytes) -> bool:
    if data[:2] != b"\x1f\x8b":
        return False
    try:
        start = zlib.decompressobj(31).decompress(data, 352)
    except zlib.error:
        return False
    return start[344:347] in {b"n+1", b"ni1"}


def _typed(name: str, text: str) -> Any:
    """A field of a form as it is read back."""
    kind = IMAGE.get(name)
    if kind in {"f", "i"}:
        return float(text) if kind == "f" else int(text)
    if kind == "b":
        return text.lower() in {"true", "1", "on"}
    return text if kind else _stored(text)


def _stored(value: Any) -> Any:
    """What becomes of a user's own field: texts are decoded as JSON on the way out."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _sent(call: Call) -> dict[str, Any]:
    if "json" in call.content_type:
        try:
            found: dict[str, Any] = json.loads(call.body)
        except ValueError as error:
            words = f"JSON parse error - {error}"
            raise _StoppedError(_json({"detail": words}, 400)) from None
        return found
    if "multipart" in call.content_type:
        return {one.name: one.text for one in form(call)}
    return dict(parse_qsl(call.body.decode()))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _json(
    value: Any,
    status: int = 200,
    *,
    gzipped: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    sent = {"Content-Type": "application/json", "Vary": "Accept", **(headers or {})}
    if status == 401:
        sent["WWW-Authenticate"] = "Token"
    if gzipped and len(body) > 1000:  # by nginx, before it
        sent["Content-Encoding"] = "gzip"
        body = gzip.compress(body, 1, mtime=0)
        return Answer(body=body, headers=sent, framing="chunked", may_be_kept=False)
    return Answer(status=status, body=body, headers=sent, may_be_kept=False)


def page(status: int, title: str) -> Answer:
    """A page for people."""
    return Answer(
        status=status,
        body=_HTML.format(title).encode(),
        headers={"Content-Type": "text/html; charset=utf-8"},
        may_be_kept=False,
    )

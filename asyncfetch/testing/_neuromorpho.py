"""NeuroMorpho.Org: its API, and the files beside it.

True to the service in what surprises clients: at most 500 records a page whatever is
asked, no ``_embedded`` where nothing matches, links to another origin by ``http://``,
folders in lower case, files that are missing, and a 404 that is HTML for a file and
JSON for a record.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlencode

from asyncfetch.testing import _traces
from asyncfetch.testing._answer import Answer, Call, uniforms
from asyncfetch.testing._literature import FIELDS, Publications
from asyncfetch.testing._neuromorpho_data import Neurons, Record
from asyncfetch.testing._ranges import validators

_DEFAULT_SIZE, _MAX_SIZE = 50, 500
_ORIGIN = "http://neuromorpho.org"
# Whether the service sends validators and takes ranges is not on record; its files lie
# behind an Apache, and this is what that does. A client must do without them, too.
_MODIFIED = "Thu, 21 May 2015 12:00:00 GMT"

# The query names are those of the records but for this one.
_RENAMED = {"Physical_Integrity": "physical_Integrity"}
# Neurons whose files lie in a folder that has the archive's name as it is written.
_ODD_FOLDERS = frozenset({29, 41})
_ENDINGS = {
    "CNG version": ".CNG.swc",
    "Standardization log": ".std",
    "Remaining issues": ".CNG.swc.std",
}
_NOT_QUERIED = frozenset({"note", "png_url", "_links", *_RENAMED.values()})

# field -> accepted values, each a predicate on the text of a value
_Query = list[tuple[str, list[Callable[[str], bool]]]]


class _BadRequestError(Exception):
    """A parameter that select does not take."""


class NeuroMorphoService:
    """NeuroMorpho.Org, played from a seed."""

    prefix = "/neuromorpho"
    environment: Mapping[str, str] = {"ASYNCFETCH_NEUROMORPHO_URL": prefix}

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self._neurons = Neurons(seed=seed, scale=scale)
        self._publications = Publications(seed=seed, scale=scale)
        self.withdrawn: set[int] = set()
        """Ids of neurons that the index does not have at the moment."""
        names = [key for key in self._neurons[0] if key not in _NOT_QUERIED]
        self._fields = [*names, *_RENAMED]
        self._places: dict[str, int] = {}
        self._index: dict[str, dict[str, list[int]]] = {}

    def answer(self, call: Call) -> Answer:
        """The response to *call*."""
        if call.path.startswith("/dableFiles/"):
            return self._file(call)
        if not call.path.startswith("/api/"):
            return _html(404, "Not Found")
        path = call.path.removeprefix("/api").rstrip("/")
        is_select = path == "/neuron/select"
        if call.method not in ("GET", "HEAD", *(["POST"] if is_select else [])):
            return _problem(call, 405, "Method Not Allowed", "method not supported")
        try:
            found = self._resource(call, path)
        except _BadRequestError as error:
            return _problem(call, 400, "Bad Request", str(error))
        if found is None:
            return _problem(call, 404, "Not Found", "Requested neuron not found")
        if isinstance(found, str):  # a persistence vector that is no JSON
            return Answer(body=found.encode(), headers={"Content-Type": "text/plain"})
        return _json(200, found)

    def away(self, call: Call) -> Answer:
        """The response while the service is down: nothing is found, and all is said."""
        if call.path.startswith("/dableFiles/"):
            return _html(404, "Not Found")
        if call.path == "/api/health":
            return _json(200, {"status": "DOWN"})
        return _problem(call, 404, "Not Found", "Requested neuron not found")

    def publications(self) -> Iterator[Record]:
        """Publications by id."""
        return iter(self._publications)

    def morphometry(self, neuron_id: int) -> Record | None:
        """The measurements of a neuron; some were never measured."""
        is_there = self._there(neuron_id) is not None and neuron_id % 53
        return self._neurons.morphometry(neuron_id) if is_there else None

    def neurons(self) -> Iterator[Record]:
        """Records by id."""
        return iter(self._neurons)

    def swc(self, neuron_id: int) -> bytes | None:
        """The CNG file, or None."""
        # 36 and every 199th: a few records have no file, as in each real release.
        if self._neurons.place(neuron_id) is None or neuron_id == 36:
            return None
        if neuron_id % 199 == 0:
            return None
        return _traces.cng(self._seed, neuron_id, self._neurons.name(neuron_id))

    def source(self, neuron_id: int) -> bytes | None:
        """The file in the form of ``original_format``, or None."""
        place = self._neurons.place(neuron_id)
        if place is None or uniforms(self._seed, "source", neuron_id)[0] < 0.05:
            return None
        name = self._neurons.name(neuron_id)
        if _extension(self._neurons[place]) == "swc":
            return _traces.source(self._seed, neuron_id, name)
        # Binary and vendors' formats: a client keeps the bytes and reads nothing.
        return b";\tV3 text file written for MicroBrightField products.\n\x00" * 40

    def _resource(self, call: Call, path: str) -> Any:
        match path.split("/")[1:]:
            case ["health"]:
                return {"status": "UP"}
            case ["neuron"]:
                return self._page(call, range(len(self._neurons)))
            case ["neuron", "select"]:
                return self._page(call, self._select(_query(call, self._fields)))
            case ["neuron", "fields"]:
                return {"Neuron Fields": self._fields}
            case ["neuron", "fields", field]:
                values = [v for v in self._values(unquote(field)) if v != "null"]
                return _slice(call, sorted(values))
            case ["neuron", "partition", field]:
                counts = {
                    value: len(places)
                    for value, places in self._values(unquote(field)).items()
                }
                return _slice(call, sorted(counts), counts)
            case ["neuron", "id", text] if text.isdecimal():
                place = self._there(int(text))
                return None if place is None else self._neurons[place]
            case ["neuron", "name", text]:
                place = self._place(unquote(text))
                if place is None or self._neurons.id(place) in self.withdrawn:
                    return None
                return self._neurons[place]
            case ["morphometry" | "pvec" as kind, "id", text] if text.isdecimal():
                return self._measured(kind, int(text))
            case ["literature", *rest]:
                return self._literature(call, rest)
        return None

    def _measured(self, kind: str, neuron_id: int) -> Any:
        if kind == "morphometry":
            return self.morphometry(neuron_id)
        if self._there(neuron_id) is None:
            return None
        return self._neurons.persistence(neuron_id)

    def _there(self, neuron_id: int) -> int | None:
        if neuron_id in self.withdrawn:
            return None
        return self._neurons.place(neuron_id)

    def _literature(self, call: Call, path: Sequence[str]) -> Any:
        publications = self._publications
        match path:
            case []:
                return self._listed(call, publications, range(len(publications)))
            case ["id", article_id]:
                place = publications.place(unquote(article_id))
                return None if place is None else publications[place]
            case ["fields"]:
                return {"Literature Fields": list(FIELDS)}
            case ["select"]:
                query = _query(call, FIELDS)
                found = [
                    place
                    for place, record in enumerate(publications)
                    if all(
                        any(accepts(text) for accepts in accepted for text in texts)
                        for field, accepted in query
                        for texts in [_texts(record.get(field))]
                    )
                ]
                return self._listed(call, publications, found)
            case ["fields" | "partition" as kind, field]:
                if unquote(field) not in FIELDS:
                    raise _BadRequestError(f"unknown field {field}")
                counts = Counter(
                    text
                    for record in publications
                    for text in _texts(record.get(unquote(field)))
                )
                return _slice(
                    call, sorted(counts), counts if kind != "fields" else None
                )
        return None

    def _listed(
        self, call: Call, publications: Publications, places: Sequence[int]
    ) -> Record:
        number, size, order = _paging(call)
        if order == ("article_id", True):
            places = places[::-1]
        records = [publications[k] for k in places[number * size :][:size]]
        found: Record = {"_embedded": {"publicationResources": records}}
        return {
            **(found if records else {}),
            "page": _page_of(number, size, len(places)),
        }

    def _place(self, name: str) -> int | None:
        if not self._places:
            neurons = self._neurons
            self._places = {
                neurons.name(neurons.id(place)): place for place in range(len(neurons))
            }
        return self._places.get(name)

    def _values(self, field: str) -> dict[str, list[int]]:
        """Every value of *field*, as text, with the places of its neurons."""
        if field not in self._fields:
            raise _BadRequestError(f"unknown field {field}")
        if field not in self._index:
            index: dict[str, list[int]] = defaultdict(list)
            for place, record in enumerate(self._neurons):
                value = record.get(_RENAMED.get(field, field))
                for one in _texts(value):
                    index[one].append(place)
            self._index[field] = dict(index)
        return self._index[field]

    def _select(self, query: _Query) -> Sequence[int]:
        found: set[int] | None = None
        for field, accepted in query:
            places = {
                place
                for value, places in self._values(field).items()
                if any(accepts(value) for accepts in accepted)
                for place in places
            }
            found = places if found is None else found & places
        return sorted(found or ())

    def _page(self, call: Call, places: Sequence[int]) -> Record:
        number, size, order = _paging(call)
        if order is not None:
            places = self._sorted(places, *order)
        if self.withdrawn:
            places = [k for k in places if self._neurons.id(k) not in self.withdrawn]
        total = len(places)
        pages = -(-total // size)
        records = [self._neurons[k] for k in places[number * size :][:size]]
        kept = [(k, v) for k, v in call.pairs() if k not in ("page", "size")]
        base = f"{_ORIGIN}/api{call.path.removeprefix('/api').rstrip('/')}"

        def link(page: int) -> Record:
            query = urlencode([*kept, ("page", page), ("size", size)])
            return {"href": f"{base}?{query}"}

        links = {"first": link(0)}
        if number > 0:
            links["prev"] = link(number - 1)
        links["self"] = link(number)
        if number + 1 < pages:
            links["next"] = link(number + 1)
        links["last"] = link(max(pages - 1, 0))
        return {
            **({"_embedded": {"neuronResources": records}} if records else {}),
            "_links": links,
            "page": _page_of(number, size, total),
        }

    def _sorted(
        self, places: Sequence[int], field: str, descending: bool
    ) -> Sequence[int]:
        if field == "neuron_id":
            return places[::-1] if descending else places
        if field not in self._fields:
            raise _BadRequestError(f"cannot sort by {field}")
        name = _RENAMED.get(field, field)
        return sorted(
            places,
            key=lambda place: (str(self._neurons[place].get(name)), place),
            reverse=descending,
        )

    def _file(self, call: Call) -> Answer:
        if call.method not in ("GET", "HEAD"):
            return _html(405, "Method Not Allowed")
        content: bytes | None = None
        match [unquote(segment) for segment in call.path.split("/")[2:]]:
            case [folder, version, file]:
                content = self._content(folder, version, file)
        if content is None:
            return _html(404, "Not Found")
        headers = {"Content-Type": "text/plain", "Server": "Apache"}
        headers |= validators(content, _MODIFIED)
        return Answer(body=content, headers=headers)

    def _content(self, folder: str, version: str, file: str) -> bytes | None:
        ends = _ENDINGS.get(version, "")
        if version == "Source-Version":
            # The record names the extension, so the name is what is before one.
            is_morph = file.endswith(".morph.xml")
            ends = ".morph.xml" if is_morph else f".{file.rpartition('.')[2]}"
        if not ends or not file.endswith(ends):
            return None
        name = file.removesuffix(ends)
        place = self._place(name)
        if place is None:
            return None
        neuron_id = self._neurons.id(place)
        archive = self._neurons.archive(neuron_id)
        # A few folders are not called as all others are.
        if folder != (archive if neuron_id in _ODD_FOLDERS else archive.lower()):
            return None
        if ends == ".CNG.swc":
            return self.swc(neuron_id)
        if ends == ".CNG.swc.std" and neuron_id % 4:
            return None  # nothing remained
        if ends in {".std", ".CNG.swc.std"}:
            return (
                f"# Standardization file for {name}.swc created with StdSwc version "
                "1.31\n3.4 line 1: several soma points (3 points made)\n"
                "  0.0 0.0 0.0\n"
            ).encode()
        if ends != f".{_extension(self._neurons[place])}":
            return None
        return self.source(neuron_id)


def _extension(record: Record) -> str:
    software, _, extension = record["original_format"].partition(".")
    return "morph.xml" if software == "Custom" else extension


def _query(call: Call, fields: Sequence[str]) -> _Query:
    """The fields that a select names, with the values that each accepts."""
    if call.method == "POST":
        return _posted_query(call.body, fields)
    pairs = call.pairs()
    clauses = [v for k, v in pairs if k == "q"][:1]
    if not clauses or not clauses[0]:
        raise _BadRequestError("Required parameter 'q' is not present")
    clauses += [v for k, v in pairs if k == "fq"]
    query: _Query = []
    for clause in clauses:
        field, colon, text = clause.partition(":")
        if not colon or field not in fields:
            raise _BadRequestError(f"unknown field in {clause}")
        query.append((field, [_accepts(value) for value in _split(text)]))
    return query


def _posted_query(body: bytes, fields: Sequence[str]) -> _Query:
    try:
        asked = json.loads(body)
    except ValueError:
        raise _BadRequestError("the body is not JSON") from None
    if not isinstance(asked, dict) or not asked:
        raise _BadRequestError("the body is not an object of fields")
    query: _Query = []
    for field, values in asked.items():
        if field not in fields or not isinstance(values, list):
            raise _BadRequestError(f"unknown field {field}")
        query.append((field, [_accepts(str(value)) for value in values]))
    return query


# A quoted text with escapes, or anything up to the next comma, escapes included.
_VALUE = re.compile(r'\s*("(?:[^"\\]|\\.)*"|(?:[^,\\]|\\.)*)\s*(?:,|$)', re.DOTALL)


def _split(text: str) -> list[str]:
    values: list[str] = []
    position = 0
    while position <= len(text):
        found = _VALUE.match(text, position)
        if found is None:
            raise _BadRequestError(f"cannot read {text}")
        values.append(found[1].strip())
        if found.end() == len(text) and not text.endswith(","):
            break
        position = max(found.end(), position + 1)
    return [value for value in values if value]


def _accepts(value: str) -> Callable[[str], bool]:
    """Whether a text is what *value* means: itself if quoted, else a pattern."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL).__eq__
    pattern = "".join(
        re.escape(escaped or plain)
        if plain not in ("*", "?")
        else {"*": ".*", "?": "."}[plain]
        for escaped, plain in re.findall(r"\\(.)|(.)", value, flags=re.DOTALL)
    )
    matches = re.compile(pattern, re.DOTALL).fullmatch
    return lambda text: matches(text) is not None


def _paging(call: Call) -> tuple[int, int, tuple[str, bool] | None]:
    """Page number, page size, and what to sort by if anything."""
    sent = dict(reversed(call.pairs()))
    number, size = _natural(sent.get("page"), 0), _natural(sent.get("size"), 0)
    order = None
    if "sort" in sent:
        # "neuron_id,asc", and "neuron_id,neuron_id,asc" too.
        *names, last = sent["sort"].split(",")
        if last.lower() not in ("asc", "desc"):
            names, last = [*names, last], "asc"
        order = (names[0] if names else "", last.lower() == "desc")
    return number, min(size or _DEFAULT_SIZE, _MAX_SIZE), order


def _natural(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


def _slice(
    call: Call, values: Sequence[str], counts: Mapping[str, int] | None = None
) -> Record:
    number, size, _ = _paging(call)
    shown = values[number * size :][:size]
    return {
        "fields": shown if counts is None else {v: counts[v] for v in shown},
        "page": _page_of(number, size, len(values)),
    }


def _page_of(number: int, size: int, total: int) -> Record:
    return {
        "size": size,
        "totalElements": total,
        "totalPages": -(-total // size),
        "number": number,
    }


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return ["null" if one is None else str(one) for one in values]


def _json(status: int, value: Any) -> Answer:
    return Answer(
        status=status,
        body=json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
        headers={"Content-Type": "application/json"},
        framing="chunked",
    )


def _problem(call: Call, status: int, error: str, message: str) -> Answer:
    path = unquote(call.path)
    return _json(
        status, {"status": status, "error": error, "message": message, "path": path}
    )


def _html(status: int, reason: str) -> Answer:
    body = f"<html><head><title>{status} {reason}</title></head></html>\n".encode()
    headers = {"Content-Type": "text/html", "Server": "Apache"}
    return Answer(status=status, body=body, headers=headers)

"""Alyx's data files: where they are, under which path they belong, and their servers.

A dataset's record names copies of its file: on a web server, in a public bucket, on a
laboratory's own machine. The token of the database goes to none of them; credentials of
the web server go to that one alone. Nothing is written to the database.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa

from asyncfetch import _engine
from asyncfetch._auth import Auth
from asyncfetch._exchange import Answer, Consume, Exchange, T
from asyncfetch._model import (
    Ask,
    Block,
    Decoded,
    Enumeration,
    FileWish,
    Item,
    Json,
    Limits,
    Request,
    Response,
)
from asyncfetch.errors import ConfigurationError, NotFound
from asyncfetch.services._listing import AlyxTable, Listing
from asyncfetch.services._table import Filter, column, members

# Of each server of files; the database itself is not asked for them.
LIMITS = Limits(concurrency=8)
# Pages of datasets that are asked for side by side: 1000 of them take the service
# about a second.
_AT_ONCE = 4
_SOURCES = ("auto", "s3", "http")
# <subject>/<date>/<number>/<collection>/#<revision>#/<name>, the middle ones if any.
_ALF = re.compile(
    r"(?P<subject>[^/]+)/(?P<date>\d{4}-\d\d-\d\d)/(?P<number>\d{1,3})/"
    r"(?:(?P<collection>.*?)/)?(?:#(?P<revision>[^/#]+)#/)?(?P<name>[^/]+)"
)
_LAB = re.compile(r"([^/]+)/Subjects/?$")

SCHEMA = pa.schema(
    [
        column("id", pa.string(), "of the dataset", nullable=False),
        column("session", pa.string(), "its id; null for an aggregate"),
        column("subject", pa.string()),
        column("date", pa.string(), "of the session"),
        column("number", pa.int64(), "of the session"),
        column("collection", pa.string()),
        column("revision", pa.string()),
        column("name", pa.string(), nullable=False),
        column("path", pa.string(), "below the directory of files", nullable=False),
        column("size", pa.int64(), unit="bytes"),
        column("hash", pa.string(), "MD5 or SHA-1, as the database has it"),
        column("url", pa.string(), "where the file came from"),
    ]
)

_STRUCT = pa.struct(list(SCHEMA))

FILTERS = (
    Filter(name="dataset", kind=str, many=True, doc="ids or URLs of datasets"),
    Filter(name="source", kind=str, doc="s3, http, or auto: the first there is"),
    Filter(name="keep_uuid", kind=bool, doc="whether names keep the dataset's id"),
)
_OWN = frozenset(one.name for one in FILTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    """The files of the datasets that match."""

    datasets: Listing
    wanted: tuple[str, ...] | None
    """Ids that were asked for by themselves."""
    source: str
    keep_uuid: bool
    schema: pa.Schema = SCHEMA
    row_key: str | None = "id"

    def enumerate(self, cursor: Json) -> Enumeration:
        """Pages of datasets, as ranges of ids, each dataset an item.

        The cursor keeps the ranges that are left, and the ids that were not met yet.
        """
        todo: list[Any]
        missing: dict[str, None]
        if cursor is None:
            todo = yield from self._contexts()
            missing = dict.fromkeys(self.wanted or ())
        else:
            left: Any = cursor
            todo, missing = list(left["todo"]), dict.fromkeys(left["missing"])
        while todo:
            contexts, todo = todo[:_AT_ONCE], todo[_AT_ONCE:]
            pages = [self.datasets.item(one) for one in contexts]
            bodies = (yield Ask(tuple(page.request for page in pages))) or ()
            items: list[Item] = []
            for page, body in zip(pages, bodies, strict=True):
                read = self.datasets.read(page, body, as_records=True)
                todo += [one.context for one in read.follow_up]
                for record in read.records or ():
                    items.append(self._item(record))
                    missing.pop(record["url"][-36:], None)
            if not todo:
                yield Block((*items, *map(_absent, missing)))
                return
            yield Block(tuple(items), {"todo": todo, "missing": list(missing)})

    def _contexts(self) -> Any:
        """What the first requests for datasets are about."""
        steps = self.datasets.enumerate(None)
        answers = None
        while True:
            step = steps.send(answers)
            if isinstance(step, Block):
                return [item.context for item in step.items]
            answers = yield step

    def _item(self, record: Mapping[str, Any]) -> Item:
        identifier = record["url"][-36:]
        copy = self._copy(record)
        if copy is None:
            return _absent(identifier)
        path = _path_of(copy)
        found = _ALF.fullmatch(copy["relative_path"])
        parts = found.groupdict() if found else {}
        if self.keep_uuid:
            stem, _, extension = path.rpartition(".")
            path = f"{stem}.{identifier}.{extension}"
        session = record.get("session")
        return Item(
            key=f"dataset={identifier}",
            request=Request(
                target=f"/{quoted(copy['data_url'])}",
                media="bytes",
                file=FileWish(
                    path=path,
                    size=record.get("file_size"),
                    checksum=record.get("hash") or None,
                ),
            ),
            context={
                "id": identifier,
                "session": session and session[-36:],
                "subject": parts.get("subject"),
                "date": parts.get("date"),
                "number": int(parts["number"]) if parts.get("number") else None,
                "collection": record.get("collection"),
                "revision": record.get("revision"),
                "name": record["name"],
                "size": record.get("file_size"),
                "hash": record.get("hash"),
                "path": path,
            },
        )

    def _copy(self, record: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The copy of a file that is asked for: one that is there, and has a URL."""
        there = [
            one
            for one in record.get("file_records") or ()
            if one.get("exists") and one.get("data_url")
        ]
        if self.source != "auto":
            there = [one for one in there if _is_bucket(one) == (self.source == "s3")]
        return next(iter(sorted(there, key=_is_bucket, reverse=True)), None)

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """The row of a file; its bytes are compared where they are stored."""
        if item.request.file is None:
            raise NotFound(f"no server has the file of {item.key}")
        size = sum(map(len, chunks))
        row = {
            **item.context,
            "path": item.request.file.path,
            "size": size,
            "url": item.request.target[1:],
        }
        if as_records:
            return Decoded(records=[row])
        # For one row this takes a third of what making each column does.
        rows = pa.array([row], _STRUCT)
        return Decoded(batches=(pa.RecordBatch.from_struct_array(rows),))

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """Every dataset is an item, and so says itself when its file is not there."""
        return None


def _absent(identifier: str) -> Item:
    """An item for a file that no server has: its dataset is looked at once more."""
    return Item(
        key=f"dataset={identifier}",
        request=Request(target=f"/datasets/{identifier}", may_be_absent=True),
    )


def _is_bucket(copy: Mapping[str, Any]) -> bool:
    host = urlsplit(copy["data_url"]).hostname or ""
    return copy.get("data_repository", "").startswith("aws") or ".s3." in host


def _path_of(copy: Mapping[str, Any]) -> str:
    """The path by which ALF keeps a file: laboratory, subject, date and so on."""
    below = str(copy.get("data_repository_path") or "")
    relative = str(copy["relative_path"]).lstrip("/")
    if found := _LAB.search(below):
        return f"{found[1]}/Subjects/{relative}"
    if "aggregates" in below and not relative.startswith("aggregates/"):
        return f"aggregates/{relative}"
    return relative


def quoted(url: str) -> str:
    """A URL as records have it, which is not quoted, with its ``#`` quoted as well."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}/{quote(path)}"


class DataServers(Exchange):
    """Asks the database, and each server of files by its own gate and credentials.

    A target that is a whole URL behind its slash goes to the server that it names.

    Parameters
    ----------
    api
        Asks the database.
    origin, auth
        The server that wants credentials, and they.
    options
        Of every exchange.
    """

    def __init__(
        self,
        api: Exchange,
        *,
        origin: str,
        auth: Auth | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(api.base_url, default=LIMITS, limits=Limits())
        self.gate = api.gate
        self._api = api
        self._origin = origin.rstrip("/")
        self._data_auth = auth
        self._options = options
        self._servers: dict[str, Exchange] = {}

    async def ask(
        self, request: Request, consume: Consume[T], **options: Any
    ) -> Answer[T]:
        """As :meth:`Exchange.ask`, of whichever server the target names."""
        target = request.target[1:]
        if not target.startswith(("http://", "https://")):
            return await self._api.ask(request, consume, **options)
        scheme, _, rest = target.partition("://")
        host, _, path = rest.partition("/")
        server = self._server(f"{scheme}://{host}")
        return await server.ask(replace(request, target=f"/{path}"), consume, **options)

    def shown_url(self, request: Request) -> str:
        """The URL of *request*, without secrets."""
        if request.target.startswith(("/http://", "/https://")):
            return request.target[1:]
        return self._api.shown_url(request)

    def _server(self, origin: str) -> Exchange:
        if origin not in self._servers:
            if origin.startswith("http://") and self.base_url.startswith("https://"):
                raise ConfigurationError(
                    f"expected files by https, got {origin}: a file from there could "
                    "be anybody's"
                )
            self._servers[origin] = Exchange(
                origin,
                default=LIMITS,
                limits=Limits(),
                auth=self._data_auth if origin == self._origin else None,
                **self._options,
            )
        return self._servers[origin]

    async def aclose(self) -> None:
        """Close the connections."""
        await super().aclose()
        for server in self._servers.values():
            await server.aclose()


class DataFilesTable(AlyxTable):
    """Files of datasets: the filters of datasets, and which copy is taken."""

    def plan(self, *, limit: int | None = None, **filters: Any) -> _engine.Plan:
        """The files of the datasets that match."""
        if filters.get("dataset") is not None:
            filters["dataset"] = [dataset_id(o) for o in members(filters["dataset"])]
        plan = super().plan(limit=limit, **filters)
        return replace(plan, exchange=self.client.data_servers)  # type: ignore[attr-defined]


def dataset_id(of: Any) -> str:
    """The id of a dataset, from its record, its URL, or itself.

    Raises
    ------
    ConfigurationError
        There is none.
    """
    if isinstance(of, Mapping):
        of = of.get("id") or of.get("url") or ""
    text = str(of)[-36:]
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ConfigurationError(
            f"expected the id, URL or record of a dataset, got {str(of)[:80]!r}"
        ) from None


def source_of(listing: Listing, filters: Mapping[str, Json]) -> DataFiles:
    """What the engine runs for *filters*, which hold those of datasets too."""
    own = {name: filters[name] for name in _OWN & filters.keys()}
    rest = {name: one for name, one in filters.items() if name not in _OWN}
    source = str(own.get("source", "auto"))
    if source not in _SOURCES:
        raise ConfigurationError(
            f"expected source {', '.join(_SOURCES)}, got {source!r}"
        )
    wanted = own.get("dataset")
    if isinstance(wanted, list):
        text = f"id__in,[{','.join(repr(str(one)) for one in wanted)}]"
        rest["django"] = ",".join(filter(None, [str(rest.get("django", "")), text]))
    return DataFiles(
        datasets=replace(listing, filters=rest, asks_first=not wanted),
        wanted=tuple(map(str, wanted)) if isinstance(wanted, list) else None,
        source=source,
        keep_uuid=bool(own.get("keep_uuid", False)),
    )

"""Alyx, the database of the International Brain Laboratory: every table, exactly.

What ``one.alyx.rest(…)`` does, awaitable. Lists are read by ranges of keys and not by
offset (:mod:`asyncfetch.services._listing`), filters are quoted so that the server
reads what was meant (:mod:`asyncfetch.services._lookups`), and a call that the server
would misread is an error with the nearest names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import anyio

from asyncfetch import _engine
from asyncfetch._alyx_schema import ENDPOINTS, PAGE, Endpoint
from asyncfetch._dataset import open_dataset
from asyncfetch._decode import document, records_at, whole
from asyncfetch._model import Limits, Part, Report, Request
from asyncfetch._threads import in_thread
from asyncfetch.errors import (
    ConfigurationError,
    DecodeError,
    ItemError,
    NotFound,
    ResponseError,
    TransportError,
)
from asyncfetch.services import _datafiles, _eids, _schemes, _tables
from asyncfetch.services._listing import (
    AlyxTable,
    Listing,
    filters_of,
    one_request,
    schema_of,
)
from asyncfetch.services._paging import target
from asyncfetch.services._refusals import data_login, login, notices_in, refusal
from asyncfetch.services._restcache import FIVE_MINUTES, CachedExchange, folder_of
from asyncfetch.services._table import Client, Description, members

logger = logging.getLogger("asyncfetch")

Names: TypeAlias = list[str]

# 550 requests a minute are granted; parallel heavy ones took the public server down.
_LIMITS = Limits(rate=8.0, concurrency=4)
_BYTES = {"datasets": 1500, "sessions": 400, "subjects": 900, "insertions": 1200}


def _description(endpoint: Endpoint) -> Description:
    schema = schema_of(endpoint)
    return Description(
        name=endpoint.name,
        summary=f"The list of {endpoint.name}",
        item=f"requests of up to {PAGE} {endpoint.name}",
        item_bytes=700.0 * _BYTES.get(endpoint.name, 300),
        filters=filters_of(endpoint),
        schema=schema,
        row_key=endpoint.identity,
        table=AlyxTable,
        source=lambda filters: Listing(
            endpoint=endpoint, filters=filters, schema=schema
        ),
        one=partial(one_request, endpoint) if "R" in endpoint.actions else None,
    )


_DATASETS = _description(ENDPOINTS["datasets"])
_DATA_FILES = Description(
    name="data-files",
    summary="The files of datasets, under their ALF paths",
    item="data files",
    item_bytes=10e6,
    files="always",
    filters=(*_datafiles.FILTERS, *_DATASETS.filters),
    schema=_datafiles.SCHEMA,
    row_key="id",
    table=_datafiles.DataFilesTable,
    source=lambda filters: _datafiles.source_of(
        Listing(endpoint=ENDPOINTS["datasets"], filters={}, schema=_DATASETS.schema),
        filters,
    ),
)


class _Soon:
    """What an awaitable call gives, awaited where it stands as an attribute."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call = call

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._call().__await__()


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded(Report):
    """What a download of files came to."""

    paths: tuple[Path, ...] = ()
    """Where the files are, in the order in which they were asked for."""


class Alyx(Client):
    """https://openalyx.internationalbrainlab.org, or another server of Alyx.

    Parameters
    ----------
    username, password
        Of an account; the service gives out a token for them.
    token
        One that was given out before. With a name and a password as well, another is
        got when it is no longer good.
    data_server, data_username, data_password
        The web server of private files, and an account there: it goes nowhere else.
    cache
        Keeps the answers of single calls: a directory, or True for the user's own. What
        is written by this client makes them void.
    cache_seconds
        How long they are good.
    """

    service = "alyx"
    default_url = "https://openalyx.internationalbrainlab.org"
    default_limits = _LIMITS
    limits_source = "it grants 550 requests a minute, and heavy ones took it down"
    descriptions: ClassVar[tuple[Description, ...]] = (
        *(_description(one) for one in ENDPOINTS.values() if one.is_listed),
        _DATA_FILES,
    )

    channels: AlyxTable
    datasets: AlyxTable
    files: AlyxTable
    insertions: AlyxTable
    sessions: AlyxTable
    subjects: AlyxTable
    tasks: AlyxTable
    trajectories: AlyxTable

    def __init__(
        self,
        base_url: str | None = None,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        *,
        data_server: str = "https://ibl.flatironinstitute.org",
        data_username: str | None = None,
        data_password: str | None = None,
        cache: bool | str | Path = False,
        cache_seconds: float = FIVE_MINUTES,
        **options: Any,
    ) -> None:
        self._noticed: set[str] = set()
        super().__init__(
            base_url=base_url,
            auth=login(username, password, token),
            refusal=refusal,
            notice=self._notice,
            **options,
        )
        if cache is not False:
            user = username or token or ""
            self.exchange = CachedExchange(
                self.exchange,
                folder=folder_of(cache, self.exchange.base_url, user),
                seconds=cache_seconds,
            )
        self._schemes: _schemes.Schemes | None = None
        self._tables_read: _tables.Tables | None = None
        self._loading = anyio.Lock()
        # The user's limits are meant for the database.
        others = {name: one for name, one in options.items() if name != "limits"}
        others.pop("tls_compat", None)
        self.data_servers = _datafiles.DataServers(
            self.exchange,
            origin=data_server,
            auth=data_login(data_username, data_password),
            options=others,
        )

    async def aclose(self) -> None:
        """Close the connections. The client may be used again afterwards."""
        try:
            await super().aclose()
        finally:
            await self.data_servers.aclose()

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A client set up by the environment.

        ``ALYX_USER`` and ``ALYX_PASSWORD``, or ``ALYX_TOKEN``, and ``ALYX_URL`` for
        another server; ``ASYNCFETCH_ALYX_URL`` goes before that.
        """
        for name, variable in (
            ("username", "ALYX_USER"),
            ("password", "ALYX_PASSWORD"),
            ("token", "ALYX_TOKEN"),
        ):
            if os.environ.get(variable):
                options.setdefault(name, os.environ[variable])
        if os.environ.get("ALYX_URL") and not os.environ.get("ASYNCFETCH_ALYX_URL"):
            options.setdefault("base_url", os.environ["ALYX_URL"])
        return super().from_env(**options)

    @property
    def alyx(self) -> Self:
        """The client itself, so that ``one.alyx.rest(…)`` reads as printed."""
        return self

    @property
    def offline(self) -> bool:
        """Whether it answers without a server: never."""
        return False

    # --- what there is ----------------------------------------------------------------

    @property
    def rest_schemes(self) -> Any:
        """To be awaited: endpoints, actions and fields, as the server says them."""
        return _Soon(self._ask_schemes)

    async def _ask_schemes(self) -> _schemes.Schemes:
        if self._schemes is None:
            try:
                self._schemes = _schemes.read(await self._ask_document())
            except TransportError as error:
                logger.warning(
                    "%s is not there (%s): going by the copy of its schema in this "
                    "package",
                    self.exchange.base_url,
                    error,
                )
                return _schemes.bundled()
        return self._schemes

    async def _ask_document(self) -> Any:
        try:
            return await self._json(Request(target="/api/schema"))
        except NotFound:  # a server from before version 3.3.1
            old = Request(target="/docs/", accept="application/coreapi+json")
            return await self._json(old)

    async def list_endpoints(self) -> Names:
        """Names of the endpoints that the server has."""
        return (await self._ask_schemes()).endpoints

    async def print_endpoint_info(
        self, endpoint: str, action: str | None = None
    ) -> Any:
        """Print the parameters of an endpoint's action, or of all; return them."""
        return (await self._ask_schemes()).print_endpoint_info(endpoint, action)

    # --- calls ------------------------------------------------------------------------

    async def rest(
        self,
        endpoint: str | None = None,
        action: str | None = None,
        id: Any = None,  # noqa: A002 - the service's own word
        data: Any = None,
        files: Mapping[str, Any] | None = None,
        *,
        no_cache: bool = False,
        **filters: Any,
    ) -> Any:
        """The answer to a call of the REST API.

        Parameters
        ----------
        endpoint, action
            Without an action, what there is gets printed and returned.
        id
            What one record is named by, or its URL.
        data
            The record, or the fields of it that change.
        files
            Paths of files that go with *data* as a form.
        no_cache
            Ask anew, whatever is kept.
        **filters
            Of a list. ``django`` may be a dict. ``limit`` is a number of rows; with
            ``offset`` it is one page as the server cuts it.

        Returns
        -------
        list, dict or None
            All records that match, each once; one record; nothing for a deletion.

        Raises
        ------
        ConfigurationError
            There is no such endpoint, action or filter, or a value would be misread.
        ResponseError, NotFound, AuthenticationError
            The service says no, with its words.
        """
        if no_cache:
            await self._forget()
        if endpoint is None:
            names = await self.list_endpoints()
            _schemes.say(repr(names))
            return names
        if action is None:
            schemes = await self._ask_schemes()
            schemes.print_endpoint_info(endpoint)
            return schemes.actions(endpoint)
        action = action.replace("-", "_")
        schemes = await self._schemes_with(endpoint, action)
        method = schemes.action(endpoint, action)["action"].upper()
        if action == "list":
            return await self._list(endpoint, {**filters, "id": id}, schemes)
        if action == "read":
            return await self._read(endpoint, id, filters, schemes)
        if filters:
            raise ConfigurationError(
                f"expected data for {action}, got filters: {', '.join(filters)}"
            )
        if action == "create":
            where = f"/{endpoint}"
        else:
            where = one_request(_endpoint(endpoint), _needed(id, action)).target
        if data is None and action != "delete":
            raise ConfigurationError(f"expected data for {action}, got none")
        request = Request(
            target=where,
            method=method,
            body=None if action == "delete" else _body(data, files),
            # A record that is gone has no body; it would be no JSON.
            media="bytes" if action == "delete" else "json",
        )
        return await self._json(request)

    async def _schemes_with(self, endpoint: str, action: str) -> _schemes.Schemes:
        """The copy in the package where it knows the call, else the server's own."""
        schemes = self._schemes or _schemes.bundled()
        if action not in schemes.get(endpoint, {}):
            schemes = await self._ask_schemes()
        schemes.action(endpoint, action)
        return schemes

    async def _list(
        self, endpoint: str, filters: Mapping[str, Any], schemes: _schemes.Schemes
    ) -> Any:
        given = {name: one for name, one in filters.items() if one is not None}
        limit, offset = given.pop("limit", None), given.pop("offset", None)
        known = ENDPOINTS.get(endpoint)
        if known is not None and not known.is_listed:
            return await self._json(
                Request(target=target(f"/{endpoint}", _texts(given)))
            )
        table = await self._table_with(endpoint, given, schemes)
        if offset is not None:
            return await self._page(table, given, limit, offset)
        try:
            found = await table.get(limit=limit, **given)
        except ItemError as error:
            if error.cause is None:
                raise
            raise error.cause from error
        if not found and "__exact," in str(given.get("django")):
            logger.warning(
                "alyx: no %s match %s: exact heeds upper and lower case, iexact does "
                "not",
                endpoint,
                given["django"],
            )
        return _in_order(endpoint, found) if limit is None else found

    async def _page(
        self, table: AlyxTable, given: Mapping[str, Any], limit: Any, offset: Any
    ) -> Any:
        checked = table.description.check(table.plain(given))
        paging = {"limit": limit or PAGE, "offset": offset}
        where = target(f"/{table.description.name}", _texts({**checked, **paging}))
        return records_at(await self._json(Request(target=where)), ("results",))

    async def _table_with(
        self, endpoint: str, given: Mapping[str, Any], schemes: _schemes.Schemes
    ) -> AlyxTable:
        """The table of an endpoint, with what filters the server has beyond ours."""
        known = ENDPOINTS.get(endpoint)
        names = {name.replace("-", "_") for name in given}
        if known is None or not names <= known.filters.keys():
            schemes = await self._ask_schemes()
            names = set(schemes.field_names(endpoint, "list")) - {"limit", "offset"}
            known = known or Endpoint(name=endpoint, actions="LR", identity=None)
            beyond = dict.fromkeys(names - known.filters.keys(), "s")
            known = replace(
                known,
                filters=dict(sorted({**known.filters, **beyond}.items())),
                has_django="django" in names,
            )
            return AlyxTable(self, _description(known))
        table = self.table(endpoint)
        assert isinstance(table, AlyxTable)
        return table

    async def _read(
        self,
        endpoint: str,
        key: Any,
        filters: Mapping[str, Any],
        schemes: _schemes.Schemes,
    ) -> Any:
        names = {*schemes.field_names(endpoint, "read"), "start_date", "end_date"}
        if unknown := filters.keys() - names:
            raise ConfigurationError(
                f"expected an id for read, got filters: {', '.join(sorted(unknown))}"
            )
        request = one_request(_endpoint(endpoint), _needed(key, "read"))
        where = target(request.target, _texts(filters))
        found = await self._json(Request(target=where))
        if endpoint == "water-type" and isinstance(found, Mapping):
            for one in found.get("results", ()):  # the service sends its list
                if one.get("name") == str(key):
                    return one
            raise NotFound(f"alyx has no water-type {key!r}")
        return found

    async def _json(self, request: Request) -> Any:
        def read(chunks: Any, _response: Any) -> Any:
            if request.media == "bytes":
                text = whole(chunks)
                return json.loads(text) if text.strip() else None
            return document(chunks)

        answer = await self.exchange.ask(request, read, interactive=True)
        return answer.value

    async def _forget(self) -> None:
        """Keep no answer that came before."""
        if isinstance(self.exchange, CachedExchange):
            await self.exchange.void()

    def _notice(self, headers: Mapping[str, str]) -> None:
        for text in notices_in(headers):
            if text not in self._noticed:
                self._noticed.add(text)
                logger.warning("%s: %s", self.exchange.base_url, text)

    # --- JSON fields ------------------------------------------------------------------

    async def json_field_write(
        self,
        endpoint: str,
        uuid: Any,
        field_name: str = "json",
        data: Any = None,
    ) -> Any:
        """Replace a JSON field; what it holds then."""
        return await self._patched(endpoint, uuid, field_name, data)

    async def json_field_update(
        self,
        endpoint: str,
        uuid: Any,
        field_name: str = "json",
        data: Mapping[str, Any] | None = None,
    ) -> Any:
        """Set keys of a JSON field, the others kept; what it holds then.

        Read from the service first. Who writes at the same time may undo it: the
        service has no locks.
        """
        current = await self._current(endpoint, uuid, field_name)
        return await self._patched(
            endpoint, uuid, field_name, {**current, **(data or {})}
        )

    async def json_field_remove_key(
        self, endpoint: str, uuid: Any, field_name: str = "json", key: str | None = None
    ) -> Any:
        """Remove a key of a JSON field; what it holds then.

        Raises
        ------
        NotFound
            There is no such key.
        """
        current = await self._current(endpoint, uuid, field_name)
        if key not in current:
            raise NotFound(f"{field_name} of {endpoint} {uuid} has no key {key!r}")
        rest = {name: one for name, one in current.items() if name != key}
        return await self._patched(endpoint, uuid, field_name, rest)

    async def json_field_delete(
        self, endpoint: str, uuid: Any, field_name: str = "json"
    ) -> None:
        """Empty a JSON field."""
        await self._patched(endpoint, uuid, field_name, None)

    async def _current(self, endpoint: str, key: Any, name: str) -> Mapping[str, Any]:
        where = one_request(_endpoint(endpoint), key).target
        # Asked anew: what is kept may be older than what is about to be overwritten.
        await self._forget()
        record = await self._json(Request(target=where))
        if name not in record:
            raise ConfigurationError(f"{endpoint} of alyx has no field {name!r}")
        found = record[name]
        if isinstance(found, str):  # some hold JSON as a text
            with contextlib.suppress(ValueError):
                found = json.loads(found)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise ConfigurationError(
                f"expected an object in {name} of {endpoint} {key}, got "
                f"{type(found).__name__}: use json_field_write"
            )
        return found

    async def _patched(self, endpoint: str, key: Any, name: str, value: Any) -> Any:
        record = await self.rest(endpoint, "partial_update", id=key, data={name: value})
        return record[name]

    # --- files ------------------------------------------------------------------------

    async def download(
        self,
        datasets: Any,
        dest: str | Path,
        *,
        source: str = "auto",
        keep_uuid: bool = False,
        progress: bool = False,
    ) -> Downloaded:
        """Files of datasets, below *dest* under their ALF paths.

        Each is compared with size and checksum before it gets its name. What is there
        already is not asked for again, and a large file goes on where it broke off.

        Parameters
        ----------
        datasets
            Records, ids or URLs of datasets, or a table of them.
        dest
            A directory; ``_downloads`` in it keeps what was done.
        source
            ``s3`` for the public bucket, ``http`` for the web server, ``auto`` for the
            first of them that has a file.
        keep_uuid
            Whether names keep the dataset's id.

        Returns
        -------
        Downloaded
            A report with ``paths``, in the order of *datasets*, of those that came. The
            others are in ``failed``, or are counted as ``missing``.
        """
        if hasattr(datasets, "to_pylist"):  # Arrow
            datasets = datasets.to_pylist()
        elif hasattr(datasets, "columns"):  # pandas
            datasets = datasets.to_dict("records")
        elif isinstance(datasets, Mapping):
            datasets = [datasets]
        ids = [_datafiles.dataset_id(one) for one in members(datasets)]
        plan = self.table("data-files").plan(
            dataset=ids, source=source, keep_uuid=keep_uuid
        )
        root = Path(dest)
        words = json.dumps(plan.filters, sort_keys=True).encode()
        records = root / "_downloads" / hashlib.sha256(words).hexdigest()[:16]
        report = await _engine.download(plan, records, files=root, progress=progress)
        rows = await in_thread(
            lambda: open_dataset(records).rows.to_table(columns=["id", "path"])
        )
        found = dict(
            zip(*(rows[name].to_pylist() for name in ("id", "path")), strict=True)
        )
        return Downloaded(
            **{one.name: getattr(report, one.name) for one in fields(report)},
            paths=tuple(root / found[one] for one in ids if one in found),
        )

    # --- sessions ---------------------------------------------------------------------

    async def search(self, query_type: str = "auto", **terms: Any) -> Names:
        """Ids of the sessions that match, the latest first.

        Parameters
        ----------
        query_type
            ``auto``: by the service's own tables, some MB for everything, when they
            have the terms; else as ``remote``. ``remote``: by its records.
        **terms
            ``subject``, ``lab``, ``number``, ``date_range``, ``projects``,
            ``task_protocol``, ``dataset``, ``collection``; a list matches any of its
            members (each, for datasets).
        """
        if query_type not in {"auto", "remote"}:
            raise ConfigurationError(
                f"expected query_type auto or remote, got {query_type!r}"
            )
        names = {one.name for one in self.sessions.description.filters}
        if query_type == "auto" and not terms.keys() - set(_tables.TERMS):
            tables = await self._own_tables()
            if tables is not None:
                return await in_thread(lambda: tables.search(_tables.checked(terms)))
        if terms.keys() - names - set(_tables.TERMS):
            _tables.checked(terms)  # says what there is
        found = await self.rest("sessions", "list", **_as_filters(terms))
        return [one["id"] for one in found]

    async def list(
        self,
        eid: Any,
        filename: Any = None,
        collection: Any = None,
        revision: str | None = None,
        query_type: str = "auto",
    ) -> Names:
        """Paths of a session's datasets below its folder, each in one revision.

        Parameters
        ----------
        eid
            The session, as :meth:`to_eid` takes it.
        filename
            A name with ``*`` and ``?``, several, or parts of a name: ``{"object":
            ["leftCamera"]}``.
        collection
            A collection with ``*`` and ``?``, or several.
        revision
            The last one up to it; by default what the service calls default.
        query_type
            As for :meth:`search`.
        """
        session = await self.to_eid(eid)
        tables = await self._own_tables() if query_type == "auto" else None
        rows = [] if tables is None else tables.of(session)
        if not rows:  # a session that is newer than the tables
            records = await self.rest("datasets", "list", session=session, exists=True)
            rows = [_tables.as_row(one) for one in records]
        return _tables.select(
            rows, filename=filename, collection=collection, revision=revision
        )

    list_datasets = list  # noqa: A003 - ONE's two words for it

    async def _own_tables(self) -> _tables.Tables | None:
        """The service's own tables; None where it has none."""
        async with self._loading:
            if self._tables_read is None:
                try:
                    info = await self._json(Request(target="/cache/info/"))
                    archive = await self._archive(info.get("location"))
                    self._tables_read = await in_thread(lambda: _tables.Tables(archive))
                except (NotFound, ResponseError, DecodeError) as error:
                    logger.warning(
                        "%s has no tables (%s): its records are asked for",
                        self.exchange.base_url,
                        error,
                    )
                    return None
            return self._tables_read

    async def _archive(self, location: object) -> bytes:
        here = f"{self.exchange.base_url}/"
        where = (
            location if isinstance(location, str) and location else f"{here}cache.zip"
        )
        if where.startswith(here):  # the token is needed, and goes no further
            request = Request(target=f"/{where.removeprefix(here)}", media="bytes")
        else:
            request = Request(target=f"/{_datafiles.quoted(where)}", media="bytes")
        answer = await self.data_servers.ask(
            request, lambda chunks, _: whole(chunks), interactive=True
        )
        return answer.value

    async def to_eid(self, of: Any) -> Any:
        """The id of the session, or of each, that something is or belongs to.

        Parameters
        ----------
        of
            A UUID, a URL or path of a session or of its files, a reference such as
            ``2019-12-03_1_KS014``, a record or the URL of one, or several of them: a
            list, a set, an array, a table. Only what holds no id is asked for.

        Returns
        -------
        str or list of str

        Raises
        ------
        NotFound
            There is no such session.
        """
        some = _eids.several(of)
        if some is not None:
            calls = [partial(self.to_eid, one) for one in some]
            return await _engine.side_by_side(calls, at_once=4)
        known = _eids.eid_of(of)
        if isinstance(known, _eids.Part):
            record = await self.rest(known.endpoint, "read", id=known.key)
            known = _eids.eid_of(record)
            if isinstance(known, _eids.Part):  # it names nothing but itself
                raise NotFound(f"alyx has no session of {known.endpoint} {known.key}")
        if isinstance(known, str):
            return known
        found = await self.rest(
            "sessions",
            "list",
            subject=known.subject,
            date_range=[known.date, known.date],
            number=known.number,
        )
        if len(found) != 1:
            raise NotFound(
                f"alyx has {len(found) or 'no'} sessions of {known.subject} on "
                f"{known.date} with number {known.number}"
            )
        return found[0]["id"]


def _as_filters(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Terms of a search as filters of the list of sessions."""
    also = {"dataset": "datasets", "date": "date_range"}
    filters = {also.get(name, name): one for name, one in terms.items()}
    django: dict[str, Any] = {}
    if "date_range" in filters:
        low, high = _tables.ends_of(filters.pop("date_range"))
        ends = {"gte": low, "lte": high}
        django |= {
            f"start_time__date__{name}": one for name, one in ends.items() if one
        }
    if "collection" in filters:
        patterns = map(_tables.as_pattern, members(filters.pop("collection")))
        django["data_dataset_session_related__collection__regex"] = "|".join(patterns)
    for name, path in _ANY_OF.items():
        if name not in filters:
            continue
        several = members(filters.pop(name))
        if len(several) == 1:
            filters[name] = several[0]
        elif path is None:
            raise ConfigurationError(
                f"expected one of {name} for query_type remote, got {len(several)}"
            )
        else:
            django[path] = several
    return {**filters, **({"django": django} if django else {})}


_ANY_OF = {
    "subject": "subject__nickname__in",
    "lab": "lab__name__in",
    "number": "number__in",
    "task_protocol": None,
    "projects": None,
}


def _endpoint(name: str) -> Endpoint:
    return ENDPOINTS.get(name) or Endpoint(name=name, actions="")


def _needed(key: Any, action: str) -> Any:
    if key is None:
        raise ConfigurationError(f"expected id for {action}, got none")
    return key


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: ",".join(map(str, one)) if isinstance(one, list | tuple) else str(one)
        for name, one in values.items()
        if one is not None
    }


def _body(data: Any, files: Mapping[str, Any] | None) -> str | tuple[Part, ...]:
    if not files:
        return data if isinstance(data, str) else json.dumps(data, default=str)
    parts = [Part(name=name, value=text) for name, text in _texts(data).items()]
    for name, file in files.items():
        # An open file is read again, from its beginning.
        path = file if isinstance(file, str | Path) else file.name
        parts.append(Part(name=name, value=Path(path)))
    return tuple(parts)


# Ranges of keys give rows in no order; that of the service is put back.
_ORDERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "sessions": lambda one: one.get("start_time") or "",
    "insertions": lambda one: (one.get("session_info") or {}).get("start_time") or "",
}


def _in_order(endpoint: str, found: list[Any]) -> list[Any]:
    if endpoint in _ORDERS:
        return sorted(found, key=_ORDERS[endpoint], reverse=True)
    return found

"""Any other REST API: single calls, with the names of requests and httpx.

The gate, retries of reads, certificates and the hiding of secrets are those of every
service. What a call answers is given as it is, whatever its status.
"""

from __future__ import annotations

import itertools
import json
import logging
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlencode

from multidict import CIMultiDict

from asyncfetch import _auth
from asyncfetch._auth import Auth, TokenLogin
from asyncfetch._decode import whole
from asyncfetch._exchange import Answer, Consume, Exchange
from asyncfetch._model import Limits, Part, Request, Response
from asyncfetch._threads import in_thread
from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DecodeError,
    IntegrityError,
    NotFound,
)
from asyncfetch.services._paging import Params, path_of, text_of, with_query
from asyncfetch.services._resttable import RestTable
from asyncfetch.services._table import Client, Description, members

T = TypeVar("T")

logger = logging.getLogger("asyncfetch")

# Of a refusal so much is read: 16 MiB in the slices of a body.
_SLICES = 64
_BOM = "\ufeff"
_FORM = "application/x-www-form-urlencoded"


def Bearer(token: str) -> Auth:  # noqa: N802 - reads as the kind that it makes
    """``Authorization: Bearer`` and a token (RFC 6750)."""
    return _auth.token(token)


def Token(token: str) -> Auth:  # noqa: N802
    """``Authorization: Token`` and a token, as Django's services take it."""
    return _auth.token(token, scheme="Token")


def Basic(user: str, password: str) -> Auth:  # noqa: N802
    """HTTP basic authentication (RFC 7617)."""
    return _auth.basic(user, password)


def ApiKey(  # noqa: N802
    key: str, *, header: str | None = None, query: str | None = None
) -> Auth:
    """A key in a header of that name, or in that parameter of the query.

    Raises
    ------
    ConfigurationError
        Both names are given.
    """
    if header is not None and query is not None:
        raise ConfigurationError("expected header or query for a key, got both")
    place: Literal["header", "query"] = "header" if query is None else "query"
    return _auth.api_key(key, name=query or header or "X-Api-Key", place=place)


class OAuth2ClientCredentials(TokenLogin):
    """Tokens for an application by its own id and secret (RFC 6749, 4.4).

    Parameters
    ----------
    token_url
        The token endpoint: a path below the base URL, or a URL of whatever host. Id and
        secret go there and nowhere else; the token goes to the service alone.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        *,
        scope: str | None = None,
    ) -> None:
        fields = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        if scope is not None:
            fields["scope"] = scope
        scheme, mark, rest = token_url.partition("://")
        host, _, path = rest.partition("/")
        self.origin = f"{scheme}://{host}" if mark else None
        """Where tokens are got, if that was said."""
        super().__init__(path_of(path if mark else token_url), fields)
        self._request = replace(
            self._request, body=urlencode(fields), headers={"Content-Type": _FORM}
        )
        # The kind of grant is no secret; to hide it would hide words in every error.
        self._given = (client_id, client_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a call answered."""

    status_code: int
    headers: CIMultiDict[str]
    """Whatever the case of their names; ``getall`` gives those that came repeatedly."""
    url: str
    """Without secrets."""
    content: bytes = field(repr=False)
    """The body, inflated."""
    error: AsyncfetchError | None = field(default=None, repr=False)
    """What :meth:`raise_for_status` raises."""

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    @property
    def text(self) -> str:
        """The body as text, in the charset that it names, or UTF-8."""
        kind = self.headers.get("Content-Type", "")
        _, _, charset = kind.lower().partition("charset=")
        name = charset.partition(";")[0].strip(" \"'") or "utf-8"
        try:
            return self.content.decode(name, "replace")
        except LookupError:
            return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body read as JSON, which is UTF-8 whatever the headers say.

        Raises
        ------
        DecodeError
            It is none; an empty body is none.
        """
        text = self.content.decode("utf-8", "replace").removeprefix(_BOM)
        try:
            return json.loads(text)
        except ValueError as error:
            raise DecodeError(
                f"expected JSON from {self.url}, got {text[:100]!r}: {error}",
                code="not-json",
            ) from None

    def raise_for_status(self) -> Reply:
        """The reply itself, unless its status says no.

        Raises
        ------
        AuthenticationError, NotFound, ResponseError
            By its status.
        """
        if self.error is not None and not self.ok:
            raise self.error
        return self


class RestExchange(Exchange):
    """Asks a host; what it replied when it refused is kept with the error."""

    headers: Mapping[str, str] = MappingProxyType({})
    """Sent with every request that has none of the same names."""

    async def ask(
        self, request: Request, consume: Consume[T], **options: Any
    ) -> Answer[T]:
        """As of every service, with the headers of the client."""
        if self.headers:
            names = {name.lower() for name in request.headers}
            own = {n: v for n, v in self.headers.items() if n.lower() not in names}
            request = replace(request, headers={**own, **request.headers})
        try:
            return await super().ask(request, consume, **options)
        except AsyncfetchError as error:
            if request.media != "any":  # for single calls: not cleaned of secrets
                vars(error).pop("reply", None)
            raise

    async def consume(
        self, request: Request, response: Response, consume: Consume[T]
    ) -> T:
        """As of every service; an answer that has no content by its status is one."""
        if response.status in {204, 205}:
            request = replace(request, media="any")
        return await super().consume(request, response, consume)

    async def _refuse(self, response: Response) -> None:
        start = await in_thread(partial(_content, response))
        try:
            await super()._refuse(response)
        except AsyncfetchError as refusal:
            error = refusal
            if response.status == 416:  # there is nothing in that range
                error = NotFound(str(refusal), status=416)
            error.__dict__["reply"] = Reply(
                status_code=response.status,
                headers=CIMultiDict(response.headers),
                url=response.url,
                content=start,
            )
            raise error from None


def _content(response: Response) -> bytes:
    """The beginning of a body, which is all of most. Blocks."""
    try:
        return b"".join(itertools.islice(response.body.chunks(), _SLICES))
    except IntegrityError:
        return b""


class Rest(Client):
    """Any REST API.

    Parameters
    ----------
    base_url
        What paths are below; without a scheme, ``https`` is meant.
    auth
        ``Bearer``, ``Token``, ``Basic``, ``ApiKey`` or ``OAuth2ClientCredentials``: it
        goes to the host of *base_url* and nowhere else.
    headers
        Sent with every call.
    """

    service = "rest"
    default_url = ""
    # Of a host that nothing is known of.
    default_limits = Limits(rate=5.0, concurrency=4)
    limits_source = "nothing is known of the host"
    descriptions: ClassVar[tuple[Description, ...]] = ()
    exchange_class = RestExchange
    exchange: RestExchange

    def __init__(
        self,
        base_url: str,
        auth: Auth | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        if "://" not in base_url:
            logger.warning(
                "%s has no scheme: taken for https", base_url.split("/", maxsplit=1)[0]
            )
            base_url = f"https://{base_url}"
        super().__init__(base_url=base_url, auth=auth, **options)
        if isinstance(auth, OAuth2ClientCredentials) and auth.origin is not None:
            self.exchange.desk = self._desk(auth, auth.origin, options)
        self.exchange.headers = dict(headers or {})
        now = None if auth is None else auth.credentials
        self._leave_out = frozenset(() if now is None else now.query)

    def _desk(self, auth: Auth, origin: str, options: Mapping[str, Any]) -> Exchange:
        """What asks for tokens, by the gate of its own host."""
        if self.exchange.base_url.startswith("https:") and origin.startswith("http:"):
            raise ConfigurationError(
                f"expected a token URL by https, got {origin}: the secret could be read"
            )
        # The user's limits, and the weak key exchange, are meant for the service.
        own = {n: o for n, o in options.items() if n not in {"limits", "tls_compat"}}
        return Exchange(
            origin, default=self.default_limits, limits=Limits(), auth=auth, **own
        )

    async def get(self, path: str = "", **given: Any) -> Reply:
        """What a GET answers; asked again where that may help (see :meth:`request`)."""
        return await self.request("GET", path, **given)

    async def post(self, path: str = "", **given: Any) -> Reply:
        """What a POST answers; sent once (see :meth:`request`)."""
        return await self.request("POST", path, **given)

    async def put(self, path: str = "", **given: Any) -> Reply:
        """What a PUT answers; sent once (see :meth:`request`)."""
        return await self.request("PUT", path, **given)

    async def patch(self, path: str = "", **given: Any) -> Reply:
        """What a PATCH answers; sent once (see :meth:`request`)."""
        return await self.request("PATCH", path, **given)

    async def delete(self, path: str = "", **given: Any) -> Reply:
        """What a DELETE answers; sent once (see :meth:`request`)."""
        return await self.request("DELETE", path, **given)

    async def request(
        self,
        method: str,
        path: str = "",
        *,
        params: Params | None = None,
        json: Any = None,
        data: Any = None,
        files: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """What a call answers, whatever its status.

        Parameters
        ----------
        path
            Below the base URL, or a URL on its host. A query in it stays.
        params
            Joins the query: a list is as many parameters; None is left out.
        json
            Sent as JSON.
        data
            A text or bytes, sent as they are; a dict is sent as a form.
        files
            Of a form (multipart): a dict or a list of pairs of field name and path,
            open file, bytes, or a tuple of file name, one of these, and content type.
        headers
            Beside those of the client, and in place of them.

        Raises
        ------
        TransportError, IntegrityError
            No answer came, or not all of it.
        ResponseError
            A write was led to another host, or a read from https to http.
        """
        body, kind = _body_of(json, data, files)
        sent = dict(headers or {})
        names = {name.lower() for name in (*sent, *self.exchange.headers)}
        if kind and "content-type" not in names:
            sent["Content-Type"] = kind
        request = Request(
            target=with_query(self._target(path), params),
            media="any",
            method=method.upper(),
            body=body,
            headers=sent,
            may_leave=True,
        )
        try:
            answer: Answer[bytes] = await self.exchange.ask(
                request, lambda chunks, _: whole(chunks), interactive=True
            )
        except AsyncfetchError as error:
            reply: Reply | None = vars(error).pop("reply", None)
            if reply is None:
                raise
            return replace(reply, error=error)
        return Reply(
            status_code=answer.response.status,
            headers=CIMultiDict(answer.response.headers),
            url=answer.response.url,
            content=answer.value,
        )

    def table(
        self,
        path: str,
        *,
        records: str | None = None,
        paging: str | None = None,
        key: str | None = None,
        schema: Any = None,
        params: Params | str | None = None,
        bearer_env: str | None = None,
    ) -> RestTable:
        """The list at a path as a table with ``get``, ``stream`` and ``plan``.

        Parameters
        ----------
        path
            Below the base URL, or a URL on its host. A query in it stays.
        records
            Where the records are in an answer: ``results``, ``hits.hits``, or an empty
            text for all of it; ``data.*``, or ``*``, where they are the values of an
            object, whose keys become the field ``_key``. By default the only list of
            objects that there is, or the answer itself.
        paging
            ``offset``, ``page`` (from 1), ``page0``, ``next`` (a link in the body),
            ``cursor``, ``keyset``, ``link`` (the header, RFC 8288), ``range`` (the
            header ``Content-Range``), ``hal`` or ``none``; with a service's own names
            behind a colon, such as ``page:param=p,size=n,step=50``,
            ``next:at=links.next``, ``cursor:param=c,at=meta.next_cursor``,
            ``keyset:param=after_id,at=id``, ``range:unit=items,step=1000``. By default
            what the first page shows.
        key
            A field that is unique: a record that comes twice is one row.
        schema
            The columns: a ``pyarrow.Schema``, or names with ``bool``, ``int64``,
            ``float64``, ``string``, ``date``, ``timestamp`` or ``json``, as a dict or
            as ``id=int64,name=string``.
        params
            Parameters of the query; the verbs take more.
        bearer_env
            The environment variable that holds the bearer token; its name is kept in a
            dataset, so that the command line finds the token again.

        Notes
        -----
        By default the first page makes the columns, for this run and all that go on
        with its dataset. A field whose values there are of one kind has that type;
        objects, lists, mixtures, whole numbers beyond 64 bits and what is null
        throughout are JSON, as sent. No value is ever converted: one that does not fit
        its column on a later page is null there and kept, as sent, in the JSON column
        ``extra``, beside the fields that the first page did not have. So no row and no
        digit is lost, whatever comes later.

        ``get`` with an id gives the record that has the path of the list, and the id
        behind it.

        Pages come one after the other, and a page is committed with the way to the
        next. A page or a link that comes again is an item that fails; all rows before
        it stay.
        """
        return RestTable(
            self,
            self._target(path),
            records=records,
            paging=paging,
            key=key,
            schema=schema,
            params=params,
            leave_out=self._leave_out,
            remembered={} if bearer_env is None else {"bearer_env": bearer_env},
        )

    def _target(self, path: str) -> str:
        base = self.exchange.base_url
        if "://" in path:
            if not path.startswith(base) or path[len(base) :][:1] not in {*"/?#", ""}:
                raise ConfigurationError(
                    f"expected a path below {base}, got one elsewhere: make another "
                    "Rest for it"
                )
            path = path.removeprefix(base)
        return path_of(path)


def _body_of(
    given: Any, data: Any, files: Any
) -> tuple[str | bytes | tuple[Part, ...] | None, str | None]:
    """What is sent, and its content type where that is not known by its kind."""
    if sum(one is not None for one in (given, data or files or None)) > 1:
        raise ConfigurationError("expected json, or data and files, got both")
    if given is not None:
        try:
            return json.dumps(given, allow_nan=False), None
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"expected plain JSON: {error}") from error
    if files:
        texts = [Part(name=name, value=one) for name, one in _fields(data)]
        return (*texts, *itertools.starmap(_file, _pairs(files, "files"))), None
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), "application/octet-stream"
    if data is None or isinstance(data, str):
        return data, None if data is None else _kind_of(data)
    return urlencode(_fields(data)), _FORM


def _fields(data: Any) -> list[tuple[str, str]]:
    """Fields of a form: a list is as many of them, and None is left out."""
    return [
        (name, text_of(one))
        for name, value in _pairs(data, "data")
        for one in ([] if value is None else members(value))
    ]


def _pairs(given: Any, what: str) -> list[tuple[str, Any]]:
    """Names with what they stand for, of a dict or a list of pairs."""
    found = given.items() if isinstance(given, Mapping) else given or ()
    try:
        return [(str(name), one) for name, one in found]
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"expected {what} of a form as a dict or a list of pairs, got "
            f"{type(given).__name__}"
        ) from None


def _kind_of(text: str) -> str:
    try:
        json.loads(text)
    except ValueError:
        return "text/plain; charset=utf-8"
    return "application/json"


def _file(name: str, given: Any) -> Part:
    """A file of a form; one that is open is read again, from its beginning."""
    file_name = content_type = None
    if isinstance(given, tuple):
        if len(given) not in {2, 3}:
            raise ConfigurationError(
                f"expected file name, file and content type for {name}, got "
                f"{len(given)} things"
            )
        file_name, given, content_type = (*given, None)[:3]
    if isinstance(given, str | Path):
        given = Path(given)
    elif not isinstance(given, bytes):
        path = getattr(given, "name", None)
        if isinstance(path, str):
            given = Path(path)
        elif hasattr(given, "getvalue"):
            given = given.getvalue()
        else:
            raise ConfigurationError(
                f"expected a path, an open file or bytes for {name}, got "
                f"{type(given).__name__}"
            )
        given = given.encode() if isinstance(given, str) else given
    if file_name is None and isinstance(given, Path):
        file_name = given.name
    return Part(
        name=name,
        value=given,
        file_name=file_name or name,
        content_type=content_type or mimetypes.guess_type(file_name or "")[0],
    )

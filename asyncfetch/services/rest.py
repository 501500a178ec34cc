"""Any other REST API: single calls, with the names of requests and httpx.

The gate, retries of reads, certificates and the hiding of secrets are those of every
service. What a call answers is given as it is, whatever its status.
"""

from __future__ import annotations

import itertools
import json
import logging
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

from multidict import CIMultiDict

from asyncfetch import _auth
from asyncfetch._auth import Auth, TokenLogin
from asyncfetch._decode import whole
from asyncfetch._exchange import Answer, Exchange
from asyncfetch._model import Limits, Part, Request, Response
from asyncfetch._threads import in_thread
from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DecodeError,
    IntegrityError,
)
from asyncfetch.services._table import Client, Description, members, plain

logger = logging.getLogger("asyncfetch")

Params: TypeAlias = "Mapping[str, Any] | Sequence[tuple[str, Any]]"

# Of a refusal so much is read: 16 MiB in the slices of a body.
_SLICES = 64
_BOM = "\ufeff"
_FORM = "application/x-www-form-urlencoded"
# What a path of a request may hold as it is (RFC 3986); more is quoted.
_IN_PATH = "/%:@!$&'()*+,;=~"


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
    token_path
        The token endpoint, on the service's own host.
    """

    def __init__(
        self,
        token_path: str,
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
        super().__init__(_path_of(token_path), fields)
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
    """Asks a host; what it refuses is kept with the error."""

    async def _refuse(self, response: Response) -> None:
        start = await in_thread(partial(_content, response))
        try:
            await super()._refuse(response)
        except AsyncfetchError as error:
            held = (response.status, CIMultiDict(response.headers), start)
            error.__dict__["held"] = held
            raise


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
        self._headers = dict(headers or {})
        super().__init__(base_url=base_url, auth=auth, **options)

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
        """
        body, kind = _body_of(json, data, files)
        sent = {**self._headers, **(headers or {})}
        if kind and "content-type" not in {name.lower() for name in sent}:
            sent["Content-Type"] = kind
        request = Request(
            target=_with_query(self._target(path), params),
            media="any",
            method=method.upper(),
            body=body,
            headers=sent,
        )
        try:
            answer: Answer[bytes] = await self.exchange.ask(
                request, lambda chunks, _: whole(chunks), interactive=True
            )
        except AsyncfetchError as error:
            if "held" not in vars(error):
                raise
            status, found, content = vars(error).pop("held")
            return Reply(
                status_code=status,
                headers=found,
                url=self.exchange.shown_url(request),
                content=content,
                error=error,
            )
        return Reply(
            status_code=answer.response.status,
            headers=CIMultiDict(answer.response.headers),
            url=answer.response.url,
            content=answer.value,
        )

    def _target(self, path: str) -> str:
        base = self.exchange.base_url
        if "://" in path:
            here, there = urlsplit(base), urlsplit(path)
            is_here = (here.scheme, here.netloc) == (there.scheme, there.netloc)
            if not is_here or not path.startswith(base):
                raise ConfigurationError(
                    f"expected a path below {base}, got one elsewhere: make another "
                    "Rest for it"
                )
            path = path.removeprefix(base)
        return _path_of(path)


def _path_of(path: str) -> str:
    """A path with its query as a request has it."""
    path, mark, query = path.partition("#")[0].partition("?")
    if path and not path.startswith("/"):
        path = f"/{path}"
    return quote(path, safe=_IN_PATH) + mark + quote(query, safe=f"{_IN_PATH}?")


def _with_query(where: str, params: Params | None) -> str:
    pairs = params.items() if isinstance(params, Mapping) else (params or ())
    texts = [
        f"{quote(str(name), safe='')}={quote(_text(one), safe='')}"
        for name, value in pairs
        for one in ([None] if value is None else members(value))
        if one is not None
    ]
    if not texts:
        return where
    return where + ("&" if "?" in where else "?") + "&".join(texts)


def _text(value: Any) -> str:
    value = plain(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _body_of(
    given: Any, data: Any, files: Any
) -> tuple[str | tuple[Part, ...] | None, str | None]:
    """What is sent, and its content type where that is not known by its kind."""
    if sum(one is not None for one in (given, data or files or None)) > 1:
        raise ConfigurationError("expected json, or data and files, got both")
    if given is not None:
        try:
            return json.dumps(given, allow_nan=False), None
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"expected plain JSON: {error}") from error
    if files:
        fields = data.items() if isinstance(data, Mapping) else (data or ())
        texts = [Part(name=name, value=_text(one)) for name, one in fields]
        pairs = files.items() if isinstance(files, Mapping) else files
        return (*texts, *itertools.starmap(_file, pairs)), None
    if isinstance(data, bytes):
        return data.decode(), "application/octet-stream"
    if data is None or isinstance(data, str):
        return data, None if data is None else _kind_of(data)
    pairs = data.items() if isinstance(data, Mapping) else data
    form = [(name, _text(o)) for name, one in pairs for o in members(one)]
    return urlencode(form), _FORM


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

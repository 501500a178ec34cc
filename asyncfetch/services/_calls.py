"""What Neuroscout offers beside its tables: single calls, and waiting for its jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio

from asyncfetch._auth import TokenLogin
from asyncfetch._decode import document
from asyncfetch._model import Part, Request
from asyncfetch.errors import (
    AuthenticationError,
    ConfigurationError,
    NotFound,
    ResponseError,
)
from asyncfetch.services._scope import request_for
from asyncfetch.services._table import Client

T = TypeVar("T")

# Compiling was seen to take 8 to 10 s, a report about 2 s, a collection about 1 s.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0


def login(email: str | None, password: str | None) -> TokenLogin | None:
    """How the service knows its user; None for nobody.

    Raises
    ------
    ConfigurationError
        One of the two is missing.
    """
    if email is None and password is None:
        return None
    if not email or not password:
        missing = "password" if email else "email"
        raise ConfigurationError(f"expected email and password, got no {missing}")
    return TokenLogin(
        "/auth",
        {"email": email, "password": password},
        scheme="JWT",
        # A disabled account says so under "message": no other token would help.
        stale=lambda status, body: status == 401 and b'"description"' in body,
        where=needs_user,
    )


def needs_user(request: Request) -> bool:
    """Whether a request needs a login.

    To everybody else the token is not sent: with it each call writes to the service's
    database.
    """
    first, *rest = request.target.partition("?")[0].strip("/").split("/")
    if request.is_read:
        return first == "user" and (
            not rest or rest in (["myanalyses"], ["predictors"], ["collections"])
        )
    return not (
        first == "auth"
        or (first == "analyses" and rest[-1:] in (["report"], ["upload"]))
    )


async def call(
    client: Client,
    path: str,
    *,
    method: str = "GET",
    query: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | tuple[Part, ...] | None = None,
) -> Any:
    """The JSON that the service answers; what is None in *query* is left out.

    A call that writes is sent once. When it is cancelled, or its answer does not come,
    it may have been carried out all the same.

    Raises
    ------
    AuthenticationError
        The call needs a login, or another one.
    ResponseError, NotFound
        The service says no; the message has its words.
    """
    given = {k: v for k, v in (query or {}).items() if v is not None}
    request = Request(
        target=request_for(path, **given).target,
        method=method,
        body=json.dumps(body) if isinstance(body, Mapping) else body,
    )
    return await ask(client, request, lambda chunks, _response: document(chunks))


async def ask(
    client: Client, request: Request, consume: Callable[[Iterator[bytes], Any], Any]
) -> Any:
    """What *consume* makes of an answer, with the errors of :func:`call`."""
    if needs_user(request) and not client.exchange.has_auth:
        raise AuthenticationError(
            f"{request.method} {request.target} needs a login: pass email and password "
            "to Neuroscout, or set NEUROSCOUT_USER and NEUROSCOUT_PASSWORD and use "
            "Neuroscout.from_env()"
        )
    try:
        answer = await client.exchange.ask(request, consume, interactive=True)
    except ResponseError as error:
        said = _said(error.excerpt)
        if said is None:
            raise
        raise type(error)(
            f"{request.method} {request.target} was refused ({error.status}): {said}",
            **vars(error),
        ) from error
    except NotFound as error:
        raise NotFound(
            f"neuroscout has no {request.target}, or it is somebody else's: {error}",
            **vars(error),
        ) from error
    return answer.value


def _said(text: str) -> str | None:
    """The service's words in the body of a refusal, of whatever shape."""
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        return None
    return "; ".join(_flat(message))


def _flat(message: Any, path: str = "") -> Iterator[str]:
    if isinstance(message, Mapping):
        for name, more in message.items():
            yield from _flat(more, f"{path}.{name}" if path else str(name))
    elif isinstance(message, list):
        for more in message:
            yield from _flat(more, path)
    else:
        yield f"{path}: {message}" if path else str(message)


async def settled(
    look: Callable[[], Awaitable[T]],
    is_over: Callable[[T], bool],
    *,
    timeout: float,  # noqa: ASYNC109 - part of the call's meaning, said in its error
    what: str,
) -> T:
    """What *look* gives as soon as *is_over* says so of it.

    Raises
    ------
    StillPendingError
        It did not within *timeout* seconds.
    """
    until = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        found = await look()
        if is_over(found):
            return found
        left = until - time.monotonic()
        if left <= 0:
            raise StillPendingError(
                f"expected {what} to end within {timeout:g} s, it still goes on: "
                "wait again, with a longer timeout"
            )
        await anyio.sleep(min(pause, left))
        pause = min(1.5 * pause, LONGEST_PAUSE)


class StillPendingError(ResponseError, TimeoutError):
    """A job of the service has not ended in the time that was given."""

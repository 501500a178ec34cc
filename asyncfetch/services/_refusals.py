"""How Alyx says no, and how it knows its users. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from asyncfetch import _auth
from asyncfetch._auth import Auth, TokenLogin
from asyncfetch.errors import (
    AsyncfetchError,
    AuthenticationError,
    ConfigurationError,
    NotFound,
    ResponseError,
)
from asyncfetch.services._table import close

_STALE = "Invalid token"
_NOBODY = "credentials were not provided"
_NO_RIGHT = "do not have permission"
_PUBLIC = ("/auth-token", "/api/schema", "/docs")
_NO_FIELD = re.compile(
    r"Cannot resolve keyword '(.*?)' into field\. Choices are: (.*)", re.DOTALL
)
# They offer the filters of sessions, and have no session.
_WATER = re.compile(r"/(?:weighings|water-administrations)\?")
# A message of the server's is a line or two; a traceback may be pages.
_LONGEST = 2000


def login(username: str | None, password: str | None, token: str | None) -> Auth | None:
    """How the service knows its user; None for nobody.

    Raises
    ------
    ConfigurationError
        One of name and password is missing.
    """
    if not username and not password:
        return _auth.token(token, scheme="Token") if token else None
    if not username or not password:
        missing = "password" if username else "username"
        raise ConfigurationError(f"expected username and password, got no {missing}")
    return TokenLogin(
        "/auth-token",
        {"username": username, "password": password},
        token_at="token",  # noqa: S106 - where it is in the answer
        scheme="Token",
        stale=lambda status, body: status == 403 and _STALE.encode() in body,
        where=lambda request: not request.target.startswith(_PUBLIC),
        given=token or None,
    )


def data_login(username: str | None, password: str | None) -> Auth | None:
    """How the web server of private files knows its user; sent before it is asked for.

    Raises
    ------
    ConfigurationError
        One of the two is missing.
    """
    if not username and not password:
        return None
    if not username or not password:
        raise ConfigurationError(
            "expected data_username and data_password, got one of them"
        )
    return _auth.basic(username, password)


def refusal(status: int, body: bytes, url: str) -> AsyncfetchError | None:
    """The error that a refusal of the service is; None where it says nothing of it.

    An exception of the server's, which most bad filters are, comes with a 500 and will
    come again.
    """
    if status == 414:
        return ResponseError(
            f"the request is too long for the service (414 from {url[:200]}…): ask for "
            "less at a time",
            status=status,
        )
    words = words_of(body)
    if words is None or status in {429, 502, 503, 504}:
        return None
    if status == 403 and any(one in words for one in (_STALE, _NOBODY, _NO_RIGHT)):
        return AuthenticationError(
            f"{_advice(words)} (403 from {url}: {words})",
            status=status,
            excerpt=words,
            is_fatal=True,
        )
    if status == 404:
        return NotFound(f"alyx has no {url}: {words}", status=status)
    return ResponseError(
        f"alyx refuses ({status} from {url}): {_explained(words, url)}",
        status=status,
        excerpt=words,
        retry_after=None,
        is_final=True,
    )


def _advice(words: str) -> str:
    if _NOBODY in words:
        return (
            "alyx wants credentials: pass username and password, or token, to Alyx, or "
            "set ALYX_USER and ALYX_PASSWORD or ALYX_TOKEN and use Alyx.from_env()"
        )
    if _STALE in words:
        return "alyx does not know the token (any more): get another"
    return "the account may not do that; public ones may only read"


def _explained(words: str, url: str) -> str:
    if "keyword 'session'" in words and _WATER.search(url):
        return (
            "it offers lab, users, date_range and location here and fails on each: use "
            f"django={{'subject__lab__name': …}} and the like ({words})"
        )
    found = _NO_FIELD.search(words)
    if found is None:
        if words == "list index out of range":
            return "a filter is not made of pairs (list index out of range)"
        return words
    fields = found[2].split(", ")
    return (
        f"a filter names no field: {found[1]!r}{close(found[1], fields)}; "
        f"there are {', '.join(fields)}"
    )


def words_of(body: bytes) -> str | None:
    """What the body of a refusal says; None when it is not the service's own."""
    try:
        said = json.loads(body)
    except ValueError:
        return None
    if not isinstance(said, Mapping):
        return None
    text = said.get("detail") or said.get("error")
    if text is None:
        rest = {name: one for name, one in said.items() if name != "status_code"}
        text = "; ".join(f"{name}: {_plain(one)}" for name, one in rest.items())
    elif said.get("details"):
        text = f"{_plain(text)}: {_plain(said['details'])}"
    return " ".join(_plain(text).split())[:_LONGEST]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_plain(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def notices_in(headers: Mapping[str, str]) -> Iterator[str]:
    """What a server says of itself beside its answers."""
    notice = headers.get("Alyx-API-Notice", "").strip()
    if notice:
        yield notice.removeprefix("!!!").strip()
    for name, what in (("Deprecation", "is deprecated"), ("Sunset", "will end")):
        if said := headers.get(name, "").strip():
            link = headers.get("Link", "")
            yield f"what was asked for {what}: {said} {link}".strip()

"""Targets: paths with query strings, quoted exactly and once; and links to follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from asyncfetch.errors import ConfigurationError, DecodeError
from asyncfetch.services._table import members, plain

Params: TypeAlias = Mapping[str, Any] | Sequence[tuple[str, Any]]

# What may stand in a path or a link as it is: the characters of RFC 3986, quoted ones
# included.
_IN_PATH = "/%:@!$&'()*+,;=~"
_IN_LINKS = "%/?:@!$&'()*+,;=~[]"


def target(path: str, query: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> str:
    """A request target: *path* is quoted already, names and values are not.

    A comma stays as it is: services use it between the members of a list, and three
    characters for one would cut the ids that fit a URL by a third.
    """
    pairs = query.items() if isinstance(query, Mapping) else query
    text = "&".join(
        f"{quote(name, safe='')}={quote(value, safe=',:*')}" for name, value in pairs
    )
    return f"{path}?{text}" if text else path


def path_of(path: str) -> str:
    """A path with its query as a request has it; what is quoted stays so."""
    path, mark, query = path.partition("#")[0].partition("?")
    if path and not path.startswith("/"):
        path = f"/{path}"
    return quote(path, safe=_IN_PATH) + mark + quote(query, safe=f"{_IN_PATH}?")


def with_query(where: str, params: Params | str | None) -> str:
    """A target with parameters behind those that it has.

    A list is as many parameters, and None is left out. A text is a query as sent.
    """
    if isinstance(params, str):
        query = params.removeprefix("?")
        return (
            path_of(where + ("&" if "?" in where else "?") + query) if query else where
        )
    pairs = params.items() if isinstance(params, Mapping) else (params or ())
    texts = [
        f"{quote(str(name), safe='')}={quote(text_of(one), safe='')}"
        for name, value in pairs
        for one in ([None] if value is None else members(value))
        if one is not None
    ]
    if not texts:
        return where
    return where + ("&" if "?" in where else "?") + "&".join(texts)


def text_of(value: Any) -> str:
    """A value as the text of a parameter or of a form's field."""
    value = plain(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def digest(value: Any) -> str:
    """A short checksum of plain JSON, to tell pages from each other."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def segment(name: str) -> str:
    """One path segment with nothing left that could end it or leave the folder.

    Raises
    ------
    ConfigurationError
        No segment can stand for the name.
    """
    if name in {"", ".", ".."}:
        raise ConfigurationError(f"expected a name, got {name!r}")
    return quote(name, safe="")


class NextLinks:
    """Makes targets of the links to a next page that answers give.

    A link is rebuilt on the configured base: its path and query count, its scheme and
    host do not (services behind a proxy write ``http://`` and names of their own into
    them), so that nothing in an answer leads a request elsewhere.

    Parameters
    ----------
    base_url
        Of the service, without a trailing slash.
    leave_out
        Query parameters that links may repeat and that do not belong into a target: the
        ones that credentials add by themselves.
    """

    def __init__(self, base_url: str, *, leave_out: Iterable[str] = ()) -> None:
        self._base = base_url
        self._path = urlsplit(base_url).path
        self._leave_out = frozenset(leave_out)

    def target(self, page: str, link: object) -> str:
        """The target that *link* on *page* stands for, absolute or relative to it.

        Raises
        ------
        DecodeError
            The link is none, or leads out of the service.
        """
        if not isinstance(link, str):
            raise DecodeError(
                f"expected a link, got {type(link).__name__} on {page}", code="link"
            )
        try:
            found = urlsplit(urljoin(self._base + page, link.strip()))
        except ValueError:
            found = urlsplit("")
        below = found.path.removeprefix(self._path)
        if (
            found.scheme not in {"http", "https"}
            or not found.path.startswith(self._path)
            or not below.startswith("/")
        ):
            raise DecodeError(
                f"expected a link below {self._base}, got {link[:200]!r} on {page}; "
                "set base_url if the service has moved",
                code="link",
            )
        query = "&".join(
            pair
            for pair in quote(found.query, safe=_IN_LINKS).split("&")
            if pair and pair.partition("=")[0] not in self._leave_out
        )
        path = quote(below, safe=_IN_LINKS)
        return f"{path}?{query}" if query else path

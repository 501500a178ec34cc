"""Targets: paths with query strings, quoted exactly and once; and links to follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from asyncfetch.errors import ConfigurationError, DecodeError, IntegrityError
from asyncfetch.services._table import members, plain

Params: TypeAlias = Mapping[str, Any] | Sequence[tuple[str, Any]]

# A cursor may lead over pages that hold nothing; a hundred in a row lead nowhere.
MOST_EMPTY = 100
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
    """Follows a listing from page to page by the links to the next that it gives.

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
        self._targets: set[str] = set()
        self._pages: dict[bytes, str] = {}
        self._empty = 0

    def after(self, page: str, records: Sequence[Any], link: object) -> str | None:
        """The target of the page after *page*; None when that was the last.

        Parameters
        ----------
        page
            The target that was asked for.
        records
            What it held.
        link
            The answer's link to the next page: absolute, relative to the page, or
            None or an empty text at the end.

        Raises
        ------
        IntegrityError
            The pages go round in a circle, or on without end.
        DecodeError
            The link is none, or leads out of the service.
        """
        self._targets.add(page)
        self._note(page, records)
        if link is None or link == "":
            return None
        found = self.target(page, link)
        if found in self._targets:
            raise IntegrityError(
                f"expected a page that was not asked for yet, got {found} as the one "
                f"after {page}: its links go round in a circle"
            )
        return found

    def target(self, page: str, link: object) -> str:
        """The target that *link* on *page* stands for.

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

    def _note(self, page: str, records: Sequence[Any]) -> None:
        """Compare a page with all before it."""
        if not records:
            self._empty += 1
            if self._empty > MOST_EMPTY:
                raise IntegrityError(
                    f"expected records, got {self._empty} empty pages in a row up to "
                    f"{page}"
                )
            return
        self._empty = 0
        text = json.dumps(records, sort_keys=True, default=str)
        content = hashlib.blake2b(text.encode(), digest_size=16).digest()
        earlier = self._pages.setdefault(content, page)
        if earlier != page:
            raise IntegrityError(
                f"expected other records on {page} than on {earlier}, got the same: "
                "the service repeats its pages"
            )

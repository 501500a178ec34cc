"""Targets: paths with query strings, quoted exactly and once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from asyncfetch.errors import ConfigurationError


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

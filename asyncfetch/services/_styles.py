"""How REST APIs page: from a page to the request for the next one. Pure.

A :class:`Style` is one of the ways in which lists come in pieces, with the names that
a service has for it; a :class:`Place` is where a walk through the pages stands. Pages
come one after the other, each found in the one before: what a service says of its list
is a hint, and only the pages themselves tell where it ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote_plus

from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DecodeError,
    IntegrityError,
)
from asyncfetch.services._paging import NextLinks, digest

# Of each style, the names that it takes and what they are where nobody says it.
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "offset": {"param": "offset", "size": "limit", "step": ""},
    "page": {"param": "page", "size": "per_page", "step": ""},
    "page0": {"param": "page", "size": "size", "step": ""},
    "next": {"at": "next"},
    "cursor": {"param": "cursor", "at": "next_cursor"},
    "keyset": {"param": "after", "at": "id"},
    "link": {},
    "range": {"unit": "items", "step": "100"},
    "hal": {"param": "page"},
}
STYLES = tuple(_DEFAULTS)

# Where bodies have the link to the next page.
_LINKS_AT = (
    "next",
    "next_url",
    "nextLink",
    "next_page_url",
    "nextPageUrl",
    "next_page",
    "nextPage",
    "@odata.nextLink",
    "odata.nextLink",
    "links.next",
    "paging.next",
    "pagination.next",
    "pagination.next_url",
    "meta.next",
    "info.next",
)
# Where they have a cursor, and the parameter that it is given back in.
_CURSORS_AT = {
    "next_cursor": "cursor",
    "nextCursor": "cursor",
    "meta.next_cursor": "cursor",
    "pagination.next_cursor": "cursor",
    "response_metadata.next_cursor": "cursor",
    "nextPageToken": "pageToken",
    "next_page_token": "page_token",
}
_TOTALS_AT = (
    "total",
    "totalCount",
    "total_count",
    "totalElements",
    "page.totalElements",
    "meta.total",
    "meta.total_count",
    "meta.pagination.total",
    "pagination.total",
    "hits.total",
    "@odata.count",
)
# The same, or how many records the page itself has.
_COUNTS_AT = ("count", "meta.count", "info.count")
_PAGES_AT = (
    "totalPages",
    "total_pages",
    "page.totalPages",
    "meta.total_pages",
    "pagination.total_pages",
    "last_page",
    "meta.last_page",
)
# Where they say which page they are, beside how many there are.
_PAGE_AT = (
    "page",
    "current_page",
    "currentPage",
    "number",
    "page.number",
    "meta.page",
    "meta.current_page",
    "pagination.page",
    "pagination.current_page",
)
# Where they say how many records come before theirs, and the parameter for that.
_OFFSETS_AT = {
    "offset": "offset",
    "meta.offset": "offset",
    "pagination.offset": "offset",
    "skip": "skip",
    "start": "start",
    "startAt": "startAt",
}
_CONTENT_RANGE = re.compile(r"(?:(\w+) )?(?:(\d+)-(\d+)|\*)/(\d+|\*)", re.ASCII)
# What is a link and no cursor.
_IS_LINK = re.compile(r"https?://|[/?]|[^\s?]+\?[^\s=]+=")
# The form that RFC 6570 gives to parameters that may be added to a link.
_TEMPLATE = re.compile(r"\{[?&][^}]*\}")
# Pages that are remembered one by one; of earlier ones, those whose number is a power
# of two. So a circle of at most so many pages is seen when it closes, a larger one some
# rounds later (as by Brent's algorithm), and what is remembered stays small.
_REMEMBERED = 32
# A cursor may lead over pages that hold nothing; a hundred in a row lead nowhere.
MOST_EMPTY = 100


@dataclass(frozen=True, slots=True)
class Style:
    """A way to page, and the service's names for it."""

    kind: str
    names: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The style that a text names: ``page`` or ``page:param=p,size=n,step=50``.

        Raises
        ------
        ConfigurationError
            There is no such style, or it has no such name.
        """
        kind, _, rest = text.partition(":")
        kind = kind.strip().lower()
        if kind not in _DEFAULTS:
            raise ConfigurationError(
                f"expected a style of paging, one of {', '.join(STYLES)}, got {text!r}"
            )
        names = dict(_DEFAULTS[kind])
        for word in filter(None, rest.split(",")):
            name, sign, value = word.partition("=")
            if not sign or name not in names or not value:
                known = ", ".join(f"{one}=" for one in names) or "nothing"
                raise ConfigurationError(
                    f"expected {kind} with {known}, got {word!r} in {text!r}"
                )
            names[name] = value
        if not re.fullmatch(r"([1-9]\d{0,8})?", names.get("step", "")):
            raise ConfigurationError(
                f"expected a number of records as step, got {names['step']!r}"
            )
        return cls(kind, names)

    def __str__(self) -> str:
        """The text that :meth:`parse` takes."""
        own = [
            f"{name}={value}"
            for name, value in self.names.items()
            if value != _DEFAULTS[self.kind][name]
        ]
        return f"{self.kind}:{','.join(own)}" if own else self.kind

    @property
    def may_end_absent(self) -> bool:
        """Whether a page that is not there may be the end of the list."""
        return self.kind in {"offset", "page", "page0", "range", "hal", "keyset"}

    def first(self, target: str) -> Place:
        """Where a walk begins that asks for *target*."""
        step = self.names.get("step")
        if self.kind == "range":
            asked = f"{self.names['unit']}=0-{int(step or 1) - 1}"
            return Place(target=target, range=asked)
        begin = param_of(target, self.names.get("param", ""))
        if step:
            target = with_param(target, self.names["size"], step)
        first = "1" if self.kind == "page" else "0"
        return Place(target=target, is_whole=begin in {None, first})


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one answer holds."""

    records: Sequence[Any]
    body: Any
    head: Mapping[str, str]
    """Names in lower case; what came repeatedly is joined with commas."""
    path: str | None = None
    """Where the answer came from below the base URL, if not from where it was asked."""

    @property
    def total(self) -> int | None:
        """Records that the service says there are; a hint."""
        total = self.sure_total
        return _number(self.body, _COUNTS_AT) if total is None else total

    @property
    def pages(self) -> int | None:
        """Pages that the service says there are; a hint."""
        return _number(self.body, _PAGES_AT)

    @property
    def sure_total(self) -> int | None:
        """The same, where it cannot be the number of this page's own records."""
        found = _CONTENT_RANGE.fullmatch(self.head.get("content-range", "").strip())
        if found is not None and found[4] != "*":
            return int(found[4])
        text = self.head.get("x-total-count", "").strip()
        if text.isascii() and text.isdigit():
            return int(text)
        total = _number(self.body, _TOTALS_AT)
        if total is not None:
            return total
        count = _number(self.body, _COUNTS_AT)
        return count if count is not None and count > len(self.records) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a walk through pages stands: the next request, and what came before it."""

    target: str
    range: str | None = None
    number: int = 1
    """Of the page, from 1."""
    seen: int = 0
    """Records on the pages before."""
    empty: int = 0
    """Empty pages right before this one."""
    most: int = 0
    """Records on the fullest page before."""
    is_whole: bool = True
    """Whether the walk began where the list does, so that totals are those of both."""
    is_promised: bool = True
    """Whether the page must be there: a 404 of another one may be the end."""
    trail: tuple[str, ...] = ()
    """What tells pages before from others: of some, checksums of what was asked and of
    what came."""

    def to_json(self) -> dict[str, Any]:
        """For the context of an item, whose request holds the rest."""
        return {
            "page": self.number,
            "seen": self.seen,
            "empty": self.empty,
            "most": self.most,
            "whole": self.is_whole,
            "trail": " ".join(self.trail),
        }

    @classmethod
    def from_json(
        cls, target: str, asked: str | None, context: Mapping[str, Any]
    ) -> Self:
        """Undo :meth:`to_json`."""
        return cls(
            target=target,
            range=asked,
            number=context["page"],
            seen=context["seen"],
            empty=context["empty"],
            most=context["most"],
            is_whole=context["whole"],
            trail=tuple(context["trail"].split()),
        )

    def check(self, page: Page) -> None:
        """Refuse a page that came before.

        Raises
        ------
        IntegrityError
            It did, or nothing but empty pages comes.
        """
        if page.records and digest(page.records) in self.trail:
            raise _final(
                f"expected other records on page {self.number} ({self.target}) than on "
                "the pages before, got those of one of them: the service repeats its "
                "pages (is paging= as the service has it?)"
            )
        if not page.records and self.empty >= MOST_EMPTY:
            raise _final(
                f"expected records, got {self.empty + 1} empty pages in a row up to "
                f"{self.target}"
            )

    def after(self, page: Page, target: str, asked: str | None = None) -> Place:
        """The place behind this one.

        Raises
        ------
        IntegrityError
            It was asked for before.
        """
        trail = dict.fromkeys((*self.trail, digest([self.target, self.range])))
        if digest([target, asked]) in trail:
            raise _final(
                f"expected a page that was not asked for yet, got {target} as the one "
                f"after {self.target}: the pages go round in a circle"
            )
        if page.records:
            trail[digest(page.records)] = None
        return replace(
            self,
            target=target,
            range=asked,
            number=self.number + 1,
            seen=self.seen + len(page.records),
            empty=0 if page.records else self.empty + 1,
            most=max(self.most, len(page.records)),
            trail=_thinned(tuple(trail), self.number),
        )


def _final(text: str) -> IntegrityError:
    """What the same request would come to again."""
    error = IntegrityError(text)
    error.__dict__["is_final"] = True
    return error


def _thinned(trail: tuple[str, ...], number: int) -> tuple[str, ...]:
    """What is left of a trail when page *number* has joined it."""
    kept = 2 * _REMEMBERED  # what was asked and what came
    old, late = trail[:-kept], trail[-kept:]
    if len(old) < 2:
        return trail
    # The newest of the old ones stays where its page's number is a power of two.
    leaves = number - _REMEMBERED
    stays = leaves > 0 and leaves & (leaves - 1) == 0
    return (*old[:-2], *(old[-2:] if stays else ()), *late)


# --- from a page to the next ----------------------------------------------------------


def following(
    style: Style, place: Place, page: Page, links: NextLinks
) -> Place | AsyncfetchError | None:
    """Where to go on after *page*, which came from *place*; None at the end.

    An error is what is wrong with the way on, not with the page.
    """
    try:
        found = _STEPS[style.kind](style, place, page, links)
        if found is None:
            return None
        target, asked = found
        later = place.after(page, target, asked)
    except (DecodeError, IntegrityError) as error:
        return error
    is_counted = later.is_whole and (page.sure_total or 0) > later.seen
    is_promised = is_counted or not style.may_end_absent
    return replace(later, is_promised=is_promised)


def _by_offset(style: Style, place: Place, page: Page, _links: NextLinks) -> _Next:
    """Behind what came, however many were asked for: services cap that."""
    param = style.names["param"]
    end = (_whole(param_of(place.target, param)) or 0) + len(page.records)
    if not page.records or _is_end(page, end):
        return None
    return with_param(place.target, param, str(end)), None


def _by_number(style: Style, place: Place, page: Page, _links: NextLinks) -> _Next:
    param = style.names["param"]
    first = 0 if style.kind == "page0" else 1
    number = _whole(param_of(place.target, param))
    number = first if number is None else number
    pages = page.pages
    if pages is not None:
        if number - first + 1 >= pages:
            return None
    elif not page.records or _is_end(page, place.seen + len(page.records)):
        return None
    return with_param(place.target, param, str(number + 1)), None


def _by_link(style: Style, place: Place, page: Page, links: NextLinks) -> _Next:
    link = at(page.body, style.names["at"])
    if isinstance(link, Mapping):
        link = link.get("href")
    return _linked(place, page, link, links)


def _linked(place: Place, page: Page, link: object, links: NextLinks) -> _Next:
    if link is None or link == "" or link is False:
        return None
    if isinstance(link, str):
        link = _TEMPLATE.sub("", link)
    # A relative link begins where redirects have led to (RFC 3986, 5.1.3).
    return links.target(page.path or place.target, link), None


def _by_hal(style: Style, place: Place, page: Page, links: NextLinks) -> _Next:
    """By the number of the page where there is one: links may be templates."""
    number, pages = at(page.body, "page.number"), at(page.body, "page.totalPages")
    if type(number) is not int or type(pages) is not int:
        return _linked(place, page, at(page.body, "_links.next.href"), links)
    asked = _whole(param_of(place.target, style.names["param"]))
    if asked is not None and asked != number:
        raise _final(
            f"expected page {asked}, got page {number} - at $.page.number of "
            f"{place.target}"
        )
    # The first page says from what they count. A walk that began at a later one cannot
    # know, and may find nothing behind the last page.
    is_from_zero = number == place.number - 1
    if number >= pages - is_from_zero:
        return None
    return with_param(place.target, style.names["param"], str(number + 1)), None


def _by_cursor(style: Style, place: Place, page: Page, _links: NextLinks) -> _Next:
    where = style.names["at"]
    cursor = at(page.body, where)
    if cursor is None or cursor == "" or cursor is False:
        return None
    if not isinstance(cursor, str | int | float):
        raise DecodeError(
            f"expected a cursor, got {type(cursor).__name__} - at $.{where} of "
            f"{place.target}",
            path=f"$.{where}",
        )
    return with_param(place.target, style.names["param"], str(cursor)), None


def _by_key(style: Style, place: Place, page: Page, _links: NextLinks) -> _Next:
    """Behind the last key; a page of nothing but the key asked for is the end."""
    if not page.records:
        return None
    where, param = style.names["at"], style.names["param"]
    key = at(page.records[-1], where)
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise DecodeError(
            f"expected a key - at {where} of the last record of {place.target}, got "
            f"{type(key).__name__}",
            path=where,
        )
    if param_of(place.target, param) == str(key):
        if len(page.records) > 1 and len(page.records) >= place.most:
            raise _final(
                f"expected a page with more than one {where}, got {len(page.records)} "
                f"records with {key!r}: more have it than a page of {place.target} "
                "holds, so that the others cannot be asked for"
            )
        return None
    return with_param(place.target, param, str(key)), None


def _by_header(_style: Style, place: Place, page: Page, links: NextLinks) -> _Next:
    return _linked(place, page, next_of(page.head.get("link", "")), links)


def _by_range(style: Style, place: Place, page: Page, _links: NextLinks) -> _Next:
    text = page.head.get("content-range", "").strip()
    found = _CONTENT_RANGE.fullmatch(text)
    if found is None or found[2] is None or not page.records:
        return None  # all of it, or nothing
    first, last = int(found[2]), int(found[3])
    asked = re.search(r"=(\d+)-(\d+)$", place.range or "")
    if (asked is not None and int(asked[1]) != first) or last < first:
        raise _final(
            f"expected {place.range or 'a range'}, got Content-Range: {text} from "
            f"{place.target}"
        )
    end = last + 1
    if found[4] != "*" and end >= int(found[4]):
        return None
    step = int(style.names["step"])
    return place.target, f"{style.names['unit']}={end}-{end + step - 1}"


_Next = tuple[str, str | None] | None
_STEPS = {
    "none": lambda *_: None,
    "offset": _by_offset,
    "page": _by_number,
    "page0": _by_number,
    "next": _by_link,
    "cursor": _by_cursor,
    "keyset": _by_key,
    "link": _by_header,
    "range": _by_range,
    "hal": _by_hal,
}


def _is_end(page: Page, end: int) -> bool:
    """Whether a list ends at *end*, by what the page says beside its records."""
    if isinstance(page.body, Mapping) and "next" in page.body:
        return not page.body["next"]
    return page.sure_total is not None and end >= page.sure_total


# --- which style it is ----------------------------------------------------------------


def guessed(page: Page) -> Style | None:
    """The style that a first page shows; None where it shows nothing of one."""
    if next_of(page.head.get("link", "")) is not None:
        return Style.parse("link")
    links = at(page.body, "_links")
    if isinstance(links, Mapping) and ("next" in links or "page" in page.body):
        return Style.parse("hal")
    for where in _LINKS_AT:
        link = at(page.body, where)
        link = link.get("href") if isinstance(link, Mapping) else link
        if isinstance(link, str) and _IS_LINK.match(link.strip()):
            return Style.parse(f"next:at={where}")
    for where, param in _CURSORS_AT.items():
        cursor = at(page.body, where)
        if type(cursor) in {str, int} and cursor != "":
            return Style.parse(f"cursor:at={where},param={param}")
    found = _CONTENT_RANGE.fullmatch(page.head.get("content-range", "").strip())
    if found is not None and found[2] is not None and found[1] in {None, "items"}:
        step = int(found[3]) - int(found[2]) + 1
        return Style.parse(f"range:step={step}") if step > 0 else None
    return _counted(page)


def _counted(page: Page) -> Style | None:
    """The style of a first page that says its number, or that nothing is before it.

    Where the parameter has another name than the number, the same page comes again,
    and that is an error.
    """
    if (page.pages or 0) > 1:
        for where in _PAGE_AT:
            number = at(page.body, where)
            if type(number) is int and number in {0, 1}:
                return Style.parse("page" if number else "page0")
    if page.sure_total is not None and page.sure_total > len(page.records) > 0:
        for where, param in _OFFSETS_AT.items():
            offset = at(page.body, where)
            if type(offset) is int and offset == 0:
                return Style.parse(f"offset:param={param}")
    return None


# --- bodies, headers, queries ---------------------------------------------------------


def at(body: Any, path: str) -> Any:
    """What a body has at a path such as ``meta.next``; None where there is nothing.

    A key may have dots of its own.
    """
    if not path:
        return body
    if not isinstance(body, Mapping):
        return None
    if path in body:
        return body[path]
    head, dot, tail = path.partition(".")
    while dot:
        if head in body and (found := at(body[head], tail)) is not None:
            return found
        more, dot, tail = tail.partition(".")
        head = f"{head}.{more}"
    return None


def _number(body: Any, places: Iterable[str]) -> int | None:
    for place in places:
        value = at(body, place)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if type(value) is int and value >= 0:
            return value
    return None


def _whole(text: str | None) -> int | None:
    is_whole = text is not None and text.isascii() and text.isdigit()
    return int(text) if is_whole and text is not None else None


def next_of(field: str) -> str | None:
    """The target of the ``next`` link of a ``Link`` header (RFC 8288).

    Several fields are joined by commas; of several such links the first counts.
    """
    for link, parameters in _links_of(field):
        relations = [value for name, value in parameters if name == "rel"]
        if relations and "next" in relations[0].lower().split():
            return link
    return None


def _links_of(field: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    place = 0
    while (found := _LINK.search(field, place)) is not None:
        place = found.end()
        parameters = []
        while (one := _PARAMETER.match(field, place)) is not None:
            place = one.end()
            quoted = one[2]
            value = one[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.append((one[1].lower(), value or ""))
        yield found[1].strip(), parameters


_LINK = re.compile(r"<([^>]*)>")
_PARAMETER = re.compile(
    r"""\s*;\s*([^\s=;,<>"]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?"""
)


def param_of(target: str, name: str) -> str | None:
    """The value of a parameter in a target's query, unquoted."""
    pairs = parse_qsl(target.partition("?")[2], keep_blank_values=True)
    return next((value for one, value in pairs if one == name), None)


def with_param(target: str, name: str, value: str) -> str:
    """*target* with a parameter in its query; all others stay as they are."""
    path, _, query = target.partition("?")
    pair = f"{quote(name, safe='')}={quote(value, safe='')}"
    pairs = [
        one
        for one in query.split("&")
        if one and unquote_plus(one.partition("=")[0]) != name
    ]
    return f"{path}?{'&'.join([*pairs, pair])}"

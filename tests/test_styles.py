"""Styles of paging: every record once, whatever the style; and in no circle."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncfetch.errors import (
    ConfigurationError,
    DecodeError,
    IntegrityError,
)
from asyncfetch.services._paging import NextLinks
from asyncfetch.services._styles import (
    MOST_EMPTY,
    STYLES,
    Page,
    Place,
    Style,
    at,
    following,
    guessed,
    next_of,
    param_of,
    with_param,
)

LINKS = NextLinks("https://host.example/api")


def page_of(records, body=None, head=None):
    return Page(
        records=records, body=records if body is None else body, head=head or {}
    )


class Service:
    """A list of so many records, some on each page; it may say how many there are."""

    def __init__(self, count, size, *, says_total, first=0):
        self.first = first
        self.records = [{"id": 3 * n + 1} for n in range(count)]
        self.size = size
        self.total = {"total": count, "totalElements": count} if says_total else {}

    def answer(self, style, place):
        def param(name, default):
            return int(param_of(place.target, name) or default)

        def piece(start):
            return self.records[start : start + self.size]

        count, size = len(self.records), self.size
        match style.kind:
            case "none":
                return page_of(self.records)
            case "offset":
                some = piece(param("offset", 0))
                return page_of(some, {"items": some, **self.total})
            case "page" | "page0":
                first = 1 if style.kind == "page" else 0
                some = piece((param("page", first) - first) * size)
                return page_of(some, {"items": some, **self.total})
            case "hal":
                number, pages = param("page", self.first), -(-count // size)
                paging = {"number": number, "totalPages": pages, **self.total}
                some = piece((number - self.first) * size)
                return page_of(some, {"page": paging, "_embedded": {"items": some}})
            case "next" | "link" | "cursor":
                start = param("c", 0)
                end = start + size
                some, more = piece(start), end < count
                if style.kind == "next":
                    link = f"http://inside:80/api/items?c={end}" if more else None
                    return page_of(some, {"next": link, "items": some})
                if style.kind == "cursor":
                    body = {"items": some, "next_cursor": end if more else ""}
                    return page_of(some, body)
                link = f'</api/items?c=0>; rel="first", <?c={end}>; rel=next'
                return page_of(some, some, {"link": link if more else ""})
            case "keyset":
                after = param("after", 0)
                some = [one for one in self.records if one["id"] > after][:size]
                return page_of(some)
            case "range":
                start = int(place.range.partition("=")[2].partition("-")[0])
                some, of = piece(start), count if self.total else "*"
                field = f"{start}-{start + len(some) - 1}/{of}" if some else f"*/{of}"
                return page_of(some, some, {"content-range": field})


def walk(service, style, place, most=10_000):
    """Records of a walk, and what it ended with."""
    records = []
    for _ in range(most):
        page = service(style, place)
        try:
            place.check(page)
        except IntegrityError as error:
            return records, error
        records += page.records
        later = following(style, place, page, LINKS)
        if not isinstance(later, Place):
            return records, later
        context = json.loads(json.dumps(later.to_json()))
        place = Place.from_json(later.target, later.range, context)
    raise AssertionError("the walk has no end")


@pytest.mark.parametrize("kind", STYLES)
@given(count=st.integers(0, 60), size=st.integers(1, 20), says_total=st.booleans())
@example(count=40, size=20, says_total=False)
@example(count=40, size=20, says_total=True)
@example(count=20, size=20, says_total=True)
def test_every_record_comes_once_and_in_order(kind, count, size, says_total):
    text = "cursor:param=c" if kind == "cursor" else kind
    style = Style.parse(text)
    service = Service(count, size, says_total=says_total)
    records, end = walk(service.answer, style, style.first("/items?x=%2F"))
    assert end is None
    assert records == service.records


@given(
    begin=st.integers(0, 60),
    count=st.integers(1, 60),
    size=st.integers(1, 20),
    first=st.integers(0, 1),
)
def test_a_walk_from_any_page_comes_to_the_last_one(begin, count, size, first):
    """Pages of HAL count from 0 or from 1, and only the first one shows from what."""
    begin = first + begin % -(-count // size)
    service = Service(count, size, says_total=True, first=first)
    style = Style.parse("hal")
    place, records = style.first(f"/items?page={begin}"), []
    while place is not None:
        page = service.answer(style, place)
        records += page.records
        # Of a list that it has not seen the beginning of, a walk may look too far.
        assert page.records or (begin > first == 0 and not place.is_promised)
        place = following(style, place, page, LINKS)
    assert records == service.records[(begin - first) * size :]


@given(lead=st.integers(0, 200), circle=st.integers(1, 100))
@example(lead=0, circle=1)
def test_a_circle_of_pages_is_an_error_and_no_page_before_it_is_lost(lead, circle):
    pages = lead + circle

    def answer(_, place):
        number = int(param_of(place.target, "c") or 0)
        later = number + 1 if number + 1 < pages else lead
        return page_of([{"n": number}], {"next": f"?c={later}"})

    style = Style.parse("next")
    records, end = walk(answer, style, style.first("/items"), most=1000)
    assert isinstance(end, IntegrityError)
    assert records[:pages] == [{"n": n} for n in range(pages)]
    if circle <= 30:
        assert len(records) == pages


@given(circle=st.integers(1, 30), lead=st.integers(0, 100))
def test_pages_that_repeat_under_other_names_are_an_error(circle, lead):
    """A server that does not know the parameter, or reads it as something else."""

    def answer(_, place):
        asked = int(param_of(place.target, "page") or 1) - 1
        number = asked if asked < lead else lead + (asked - lead) % circle
        return page_of([{"n": number}])

    style = Style.parse("page")
    records, end = walk(answer, style, style.first("/items"))
    assert isinstance(end, IntegrityError)
    assert "repeats" in str(end)
    assert records == [{"n": n} for n in range(lead + circle)]


def test_what_is_remembered_of_a_long_walk_stays_small():
    place = Place(target="/items?page=0")
    for number in range(3000):
        place = place.after(page_of([number]), f"/items?page={number + 1}")
    assert len(json.dumps(place.to_json())) < 2000


def test_empty_pages_lead_on_for_some_time_only():
    def answer(_, place):
        number = int(param_of(place.target, "c") or 0)
        return page_of([], {"next": f"?c={number + 1}"})

    style = Style.parse("next")
    _, end = walk(answer, style, style.first("/items"))
    assert f"{MOST_EMPTY + 1} empty pages" in str(end)


def test_a_count_of_the_page_itself_ends_nothing():
    def answer(_, place):
        start = int(param_of(place.target, "offset") or 0)
        some = list(range(start, min(start + 5, 12)))
        return page_of(some, {"count": len(some), "items": some})

    style = Style.parse("offset")
    records, end = walk(answer, style, style.first("/items"))
    assert (records, end) == (list(range(12)), None)


def test_more_records_with_one_key_than_a_page_holds_are_an_error():
    times = [{"t": 1}] * 2 + [{"t": 2, "n": n} for n in range(9)]

    def answer(_, place):  # inclusive: the last key comes again
        since = int(param_of(place.target, "since") or 0)
        return page_of([one for one in times if one["t"] >= since][:4])

    style = Style.parse("keyset:param=since,at=t")
    _, end = walk(answer, style, style.first("/items"))
    assert "more have it than a page" in str(end)
    del times[4:]
    records, end = walk(answer, style, style.first("/items"))
    assert end is None
    assert [one for n, one in enumerate(records) if one not in records[:n]] == [
        {"t": 1},
        {"t": 2, "n": 0},
        {"t": 2, "n": 1},
    ]


@pytest.mark.parametrize(
    ("style", "body", "head", "expected"),
    [
        ("next", {"next": 17}, {}, "expected a link"),
        ("next", {"next": "ftp://host.example/api/x"}, {}, "below https://host"),
        ("next", {"next": "/other/items"}, {}, "below https://host"),
        ("cursor", {"next_cursor": {"a": 1}}, {}, "expected a cursor"),
        ("keyset", [{}], {}, "expected a key"),
        ("hal", {"page": {"number": 4, "totalPages": 9}}, {}, "expected page 0"),
        ("range", [], {"content-range": "5-9/20"}, "Content-Range: 5-9/20"),
    ],
)
def test_a_way_on_that_is_none_is_said(style, body, head, expected):
    style = Style.parse(style)
    place = style.first("/items?page=0")
    later = following(style, place, page_of([{}], body, head), LINKS)
    assert isinstance(later, DecodeError | IntegrityError)
    assert expected in str(later)


# --- which style it is ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "head", "style"),
    [
        ([], {"link": '<https://host/api/i?_page=2>; rel="next"'}, "link"),
        ({"count": 9, "next": "http://h/api/i?page=2"}, {}, "next"),
        ({"next_url": "/api/i?_next=3", "next": "3"}, {}, "next:at=next_url"),
        ({"next": "items?start=10"}, {}, "next"),
        ({"links": {"next": {"href": "?p=2"}}}, {}, "next:at=links.next"),
        ({"@odata.nextLink": "https://h/api/i?$skip=2"}, {}, "next:at=@odata.nextLink"),
        ({"_links": {"next": {"href": "/x{?page}"}}, "page": {}}, {}, "hal"),
        ({"nextPageToken": "abc"}, {}, "cursor:param=pageToken,at=nextPageToken"),
        ({"meta": {"next_cursor": "a"}}, {}, "cursor:at=meta.next_cursor"),
        ([1], {"content-range": "0-24/3573458"}, "range:step=25"),
        ([1], {"content-range": "bytes 0-24/3573458"}, None),
        ({"next_page_url": "https://h/api/i?page=2"}, {}, "next:at=next_page_url"),
        ({"page": 1, "total_pages": 3, "items": [1]}, {}, "page"),
        ({"page": {"number": 0, "totalPages": 3}}, {}, "page0"),
        ({"meta": {"current_page": 1, "last_page": 2}}, {}, "page"),
        ({"page": 1, "total_pages": 1}, {}, None),
        ({"page": 4, "total_pages": 9}, {}, None),
        ({"skip": 0, "limit": 1, "total": 7}, {}, "offset:param=skip"),
        ({"offset": 0, "total": 1}, {}, None),
        ({"offset": 5, "total": 9}, {}, None),
        ({"next": None, "count": 3}, {}, None),
        ({"next": "tuesday"}, {}, None),
        ({"total": 300, "items": [1]}, {}, None),
        ([1, 2], {"link": '<https://host/api/i>; rel="first"'}, None),
    ],
)
def test_a_first_page_shows_its_style_where_it_can_be_no_other(body, head, style):
    found = guessed(page_of([1], body, head))
    assert (None if found is None else str(found)) == style


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pages", "one of none, offset"),
        ("page:step=many", "a number"),
        ("page:at=x", "page with param=, size=, step="),
        ("none:x=1", "none with nothing"),
        ("next:at=", "next with at="),
    ],
)
def test_a_style_that_is_none_is_said(text, expected):
    with pytest.raises(ConfigurationError, match=expected):
        Style.parse(text)


def test_a_step_is_asked_for():
    place = Style.parse("page:size=n,step=50").first("/items?n=3&x=%2F")
    assert place.target == "/items?x=%2F&n=50"
    assert Style.parse("range:step=7").first("/items").range == "items=0-6"


# --- headers, bodies, queries ---------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "target"),
    [
        ("", None),
        ("<a>; rel=next", "a"),
        ('<a,b;c>; rel="prev", <d,e;f?g=h>; rel="next"', "d,e;f?g=h"),
        ('<a>; title="x, <y>; rel=next"; rel="last", <b>; REL="NEXT"', "b"),
        ('<a>; rel="start first next"', "a"),
        ('<a> ; type="x\\"y" ; rel = next ; title*=UTF-8\'\'n', "a"),
        ("<a>; rel=prev; rel=next", None),
        ("<a>; rel=nextish", None),
        ("<a>;rel=first,<b>;rel=next,<c>;rel=next", "b"),
        ("a; rel=next", None),
    ],
)
def test_links_of_a_header_are_read_by_the_book(field, target):
    assert next_of(field) == target


@given(st.text(max_size=40))
def test_no_header_stumbles(field):
    next_of(field)
    Page(records=[], body={}, head={"content-range": field}).total  # noqa: B018


def test_a_path_finds_keys_with_dots_too():
    body = {"a": {"b": 1}, "c.d": {"e.f": 2}, "@odata.nextLink": 3}
    found = [at(body, path) for path in ("a.b", "c.d.e.f", "@odata.nextLink", "a.x.b")]
    assert found == [1, 2, 3, None]
    assert at(body, "") is body


@given(
    name=st.text(min_size=1, max_size=5),
    value=st.text(max_size=5),
    others=st.lists(st.tuples(st.text(min_size=1, max_size=3), st.text(max_size=3))),
)
def test_a_parameter_is_set_once_and_others_stay(name, value, others):
    target = "/items"
    for one, other in others:
        target = with_param(target, one, other)
    before = {one: param_of(target, one) for one, _ in others}
    after = with_param(with_param(target, name, "x"), name, value)
    assert param_of(after, name) == value
    for one, former in before.items():
        if one != name:
            assert param_of(after, one) == former
    assert after.count("&") == len({*before, name}) - 1

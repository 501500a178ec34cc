"""Windows of a list where some records cannot be given: all the others come once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch._neurovault_schema import PAGE
from asyncfetch.errors import DecodeError, IntegrityError, NotFound, ResponseError
from asyncfetch.services._windows import MOST_REFUSED, Window, walk

REFUSED = ResponseError("no", status=500)


def page(records, window, bad=(), most=PAGE):
    """What a server answers to a window."""
    some = records[window.offset : window.offset + min(window.limit, most)]
    if set(some) & set(bad):
        return REFUSED
    end = window.offset + min(window.limit, most)
    return {
        "count": len(records),
        "next": "more" if end < len(records) else None,
        "results": [{"id": one} for one in some],
    }


def window_of(request):
    path, _, query = request.target.partition("?")
    words = dict(pair.split("=") for pair in query.split("&"))
    return Window(path=path, offset=int(words["offset"]), limit=int(words["limit"]))


def drive(steps, respond):
    """Answer a walk to its end: what was seen, and how many requests that took."""
    asked = 0
    answers = None
    try:
        while True:
            step = steps.send(answers)
            asked += len(step.requests)
            answers = tuple(respond(window_of(one)) for one in step.requests)
    except StopIteration as end:
        return end.value, asked


@given(
    count=st.integers(0, 2600),
    bad=st.sets(st.integers(0, 2600), max_size=3),
    likely=st.one_of(st.none(), st.integers(0, 3000)),
    most=st.sampled_from([1, 7, 100, PAGE]),
)
def test_every_good_record_comes_once_and_the_bad_are_alone(count, bad, likely, most):
    if most < 100:  # else so many requests that nothing is learned
        count = count % 150
    records = list(range(count))
    bad &= set(records)
    first = Window(path="/x/", likely=likely)
    seen, asked = drive(walk([first]), lambda w: page(records, w, bad, most))
    ids = [record["id"] for one in seen for record in one.records]
    assert ids == [one for one in records if one not in bad]
    failed = [one.window for one in seen if one.error is not None]
    assert [one.offset for one in failed] == sorted(bad)
    assert all(one.limit == 1 for one in failed)
    if most == PAGE:
        assert asked <= 6 + len(bad) * 28 + count // 400


@given(st.integers(1, 40), st.integers(1, 12))
def test_few_records_need_few_requests(count, place):
    records = list(range(count))
    bad = [place % count]
    seen, asked = drive(
        walk([Window(path="/x/", likely=count)]), lambda w: page(records, w, bad)
    )
    assert sum(len(one.records) for one in seen) == count - 1
    assert asked <= 2 * count.bit_length() + 4


def test_a_walk_ends_when_everything_is_refused():
    with pytest.raises(ResponseError):
        drive(walk([Window(path="/x/")]), lambda _: REFUSED)
    steps = walk([Window(path="/x/")])
    asked = 0
    with pytest.raises(ResponseError):
        drive(steps, lambda _: REFUSED)
    assert asked <= 2 * MOST_REFUSED


def test_what_is_not_there_is_not_divided():
    seen, asked = drive(walk([Window(path="/x/")]), lambda _: NotFound("none"))
    assert asked == 1
    assert isinstance(seen[0].error, NotFound)


def test_a_walk_ends_where_it_has_enough():
    records = list(range(5000))
    seen, _ = drive(
        walk(
            [Window(path="/x/")],
            is_enough=lambda one: 500 in [r["id"] for r in one.records],
        ),
        lambda w: page(records, w),
    )
    assert sum(len(one.records) for one in seen) == PAGE


def test_an_empty_page_is_looked_at_thrice_and_then_named():
    records = list(range(1500))

    def respond(window):
        if window.offset == PAGE:
            return {"count": 1500, "next": None, "results": []}
        return page(records, window)

    seen, asked = drive(walk([Window(path="/x/")]), respond)
    assert asked == 4
    (failed,) = [one for one in seen if one.error is not None]
    assert failed.window.offset == PAGE


@pytest.mark.parametrize(
    "body",
    [{"results": []}, {"count": "3", "results": []}, {"count": 3}, [], {"count": True}],
)
def test_what_is_no_page_is_an_error(body):
    with pytest.raises((DecodeError, IntegrityError)):
        Window(path="/x/").read(body)


@given(st.integers(0, 10**6), st.integers(1, PAGE), st.booleans(), st.integers(0, 5000))
def test_windows_survive_being_written_down(offset, limit, is_last, likely):
    window = Window(
        path="/x/", offset=offset, limit=limit, is_last=is_last, likely=likely
    )
    assert Window.from_json(window.to_json()) == window
    covered = set()
    for part in window.divided(REFUSED):
        places = set(range(part.offset, part.offset + part.limit))
        assert not covered & places
        covered |= places
    if window.divided(REFUSED):
        assert set(range(offset, offset + limit)) <= covered

"""Links to the next page: followed on the service's own ground, and in no circle."""

import json
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch._auth import api_key
from asyncfetch._decode import document
from asyncfetch._model import Request
from asyncfetch.errors import DecodeError, IntegrityError
from asyncfetch.services._paging import NextLinks
from asyncfetch.services._styles import MOST_EMPTY, Page, Place, Style, following
from tests.conftest import answer, exchange, open_wire

BASE = "https://host.example/api/v1"
PAGE = "/things?limit=2"


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("https://host.example/api/v1/things?limit=2&offset=2", None),
        ("http://host.example/api/v1/things?limit=2&offset=2", None),
        ("http://internal:8000/api/v1/things?limit=2&offset=2", None),
        ("https://me:pw@evil.example/api/v1/things?limit=2&offset=2", None),
        ("//evil.example/api/v1/things?limit=2&offset=2", None),
        ("/api/v1/things?limit=2&offset=2", None),
        ("?limit=2&offset=2", None),
        ("things?limit=2&offset=2#top", None),
        ("./../v1/things?limit=2&offset=2", None),
        (" https://host.example/api/v1/things?limit=2&offset=2\n", None),
        ("?cursor=a%2Fb%3D%3D+c&q=x,y:z", "/things?cursor=a%2Fb%3D%3D+c&q=x,y:z"),
        ('?name=ä b"<', "/things?name=%C3%A4%20b%22%3C"),
        ("?api_key=abc&offset=2", "/things?offset=2"),
        ("/api/v1/things/page/2/", "/things/page/2/"),
    ],
)
def test_a_link_is_rebuilt_on_the_configured_base(link, target):
    links = NextLinks(BASE, leave_out=["api_key"])
    assert links.target(PAGE, link) == (target or "/things?limit=2&offset=2")


@pytest.mark.parametrize(
    "link",
    [
        "https://host.example/login",
        "https://host.example/api/v10/things",
        "../../../etc/passwd",
        "https://host.example/api/v1",
        "ftp://host.example/api/v1/things",
        "javascript:alert(1)",
        "https://[host/api/v1/things",
        17,
        {"href": "/api/v1/things"},
    ],
    ids=str,
)
def test_a_link_out_of_the_service_is_refused(link):
    with pytest.raises(DecodeError, match="expected a link"):
        NextLinks(BASE).target(PAGE, link)


@pytest.mark.parametrize("end", [None, ""])
def test_no_link_is_the_end(end):
    assert follow({PAGE: ([1], end)}, PAGE) == [PAGE]


def follow(pages, start="/p0"):
    """Targets in order, from a table of pages: target to records and link."""
    links, place, seen = NextLinks("http://h"), Place(target=start), []
    while place is not None:
        seen.append(place.target)
        records, link = pages[place.target]
        page = Page(records=records, body={"next": link}, head={})
        place.check(page)
        place = following(Style.parse("next"), place, page, links)
        if isinstance(place, Exception):
            raise place
    return seen


def test_a_circle_of_links_is_noticed_before_it_is_walked():
    pages = {f"/p{n}": ([n], f"/p{(n + 1) % 5}") for n in range(5)}
    with pytest.raises(IntegrityError, match=r"got /p0 as the one after /p4"):
        follow(pages)
    with pytest.raises(IntegrityError, match="circle"):
        follow({"/p0": ([1], "http://elsewhere/p0")})


def test_pages_that_repeat_under_new_names_are_noticed():
    class Endless(dict):
        def __missing__(self, page):
            number = int(page[2:])
            return [{"id": number % 3, "x": [1.5, None]}], f"/p{number + 1}"

    with pytest.raises(IntegrityError, match=r"other records on page 4 \(/p3\) than"):
        follow(Endless())


def test_empty_pages_are_walked_over_and_not_for_ever():
    pages = {f"/p{n}": ([], f"/p{n + 1}") for n in range(MOST_EMPTY)}
    assert len(follow({**pages, f"/p{MOST_EMPTY}": ([1], None)})) == MOST_EMPTY + 1
    pages[f"/p{MOST_EMPTY}"] = ([], f"/p{MOST_EMPTY + 1}")
    with pytest.raises(IntegrityError, match="empty pages in a row"):
        follow(pages)


@given(st.text(), st.sampled_from(["", "https://evil.example", "//evil.example"]))
def test_no_link_leads_elsewhere(text, host):
    try:
        target = NextLinks(BASE).target(PAGE, f"{host}/api/v1/{text}")
    except DecodeError:
        return
    assert target.startswith("/")
    assert target.isascii()
    assert target.isprintable()
    assert " " not in target
    whole = urlsplit(BASE + target)
    assert (whole.scheme, whole.netloc) == ("https", "host.example")
    assert whole.path.startswith("/api/v1/")


@given(st.lists(st.integers(), unique=True, min_size=1))
def test_every_page_of_a_chain_is_visited_once(numbers):
    names = [f"/p{n}" for n in numbers]
    links = dict(zip(names, [*names[1:], None], strict=True))
    pages = {name: ([name], link) for name, link in links.items()}
    assert follow(pages, names[0]) == names


@pytest.mark.anyio
async def test_a_key_that_links_repeat_is_sent_once_and_kept_nowhere():
    """As Django builds its links: from the whole URL that it was asked for."""
    secret = "the-secret-key"

    def respond(head, _body):
        asked = head.split(b" ")[1].decode()
        number = int(asked.partition("page=")[2][0])
        link = f"http://internal{asked.replace(f'page={number}', f'page={number + 1}')}"
        page = {"next": link if number < 3 else None, "results": [number]}
        return answer(json.dumps(page).encode())

    auth = api_key(secret, name="api_key", place="query")
    async with open_wire() as wire:
        wire.respond = respond
        asker = exchange(f"{wire.url}/api", auth=auth)
        links = NextLinks(asker.base_url, leave_out=auth.credentials.query)
        page, pages = "/things?page=0&n=1", []
        while page is not None:
            pages.append(page)
            found = await asker.ask(Request(target=page), lambda c, _: document(c))
            after = found.value["next"]
            page = None if after is None else links.target(page, after)
        await asker.aclose()
    assert pages == [f"/things?page={n}&n=1" for n in range(4)]
    assert wire.targets == [f"/api{page}&api_key={secret}" for page in pages]

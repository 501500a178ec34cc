"""Lists of any REST API: their pages, types and datasets, over real sockets."""

import datetime as dt
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import anyio
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import _cli
from asyncfetch._decode import JSON
from asyncfetch._model import Response
from asyncfetch._verify import verify
from asyncfetch.services._resttable import RestSource, records_path
from asyncfetch.services._styles import at
from tests.conftest import Impatient, look

pytestmark = pytest.mark.anyio

TOKEN = "s3cret-token-of-64-hexadecimal-digits"
BIG = 2**53 + 1
HUGE = 123456789012345678901234567890
NEXT_CURSOR = "a/b+c== &%20"


class Api:
    """A made-up service with a list that it gives in every style."""

    def __init__(self, url):
        self.url = url
        self.count = 25
        self.size = 10
        self.log = []
        self.headers = []
        self.broken = Counter()
        """Targets, and how often each is to fail."""

    def record(self, number):
        return {"id": BIG + number, "name": f"n{number}", "of": {"number": number}}

    def records(self, start, stop=None):
        stop = start + self.size if stop is None else stop
        return [self.record(n) for n in range(start, min(stop, self.count))]

    def answer(self, target, headers):
        """Status, headers and body for a request."""
        parts = urlsplit(target)
        query = {name: one[-1] for name, one in parse_qs(parts.query).items()}
        if self.broken[target] > 0:
            self.broken[target] -= 1
            return 400, {}, {"detail": "no"}
        path = parts.path.removeprefix("/api/things/")
        if path != parts.path:
            if path == "no":
                return 404, {}, {"detail": "Not found."}
            return 200, {}, self.thing(unquote(path))
        return getattr(self, parts.path.strip("/").replace("/", "_"))(query, headers)

    def thing(self, name):
        """A record by its id, with a list and a number in it."""
        return {"id": name, "total": 9, "parts": [{"n": 1}, {"n": 2}]}

    def api_boxed_7(self, _query, _):
        return 200, {}, {"data": {"id": 7}}

    def api_boxed_0(self, _query, _):
        return 200, {}, {"data": []}

    def api_offset(self, query, _):
        size = min(int(query.get("limit", 10)), 7)  # a cap that nobody mentions
        start = int(query.get("offset", 0))
        items = self.records(start, start + size)
        return 200, {}, {"total": self.count, "data": {"items": items}}

    def api_page(self, query, _):
        page, size = int(query.get("page", 1)), int(query.get("per_page", 10))
        items = self.records((page - 1) * size, page * size)
        if not items:
            return 404, {}, {"detail": "Invalid page."}
        return 200, {"X-Total-Count": str(self.count)}, items

    def api_numbered(self, query, _):
        """Pages that say their number and how many there are, and nothing else."""
        page, pages = int(query.get("page", 1)), -(-self.count // self.size)
        items = self.records((page - 1) * self.size, page * self.size)
        return 200, {}, {"page": page, "total_pages": pages, "items": items}

    def api_other(self, query, _):
        """The same, by a parameter that nobody guesses."""
        return self.api_numbered({"page": query.get("sheet", 1)}, None)

    def api_skip(self, query, _):
        skip = int(query.get("skip", 0))
        items = self.records(skip, skip + self.size)
        return 200, {}, {"skip": skip, "total": self.count, "items": items}

    def api_blind(self, query, _):
        """Pages without a word of how many there are, and a 404 behind them."""
        status, _, body = self.api_page(query, None)
        return status, {}, body

    def api_hal(self, query, _):
        page = int(query.get("page", 0))
        pages = -(-self.count // self.size)
        link = {"href": "http://inside:8080/api/hal{?page,size}", "templated": True}
        body = {
            "_links": {"next": link},
            "page": {
                "number": page,
                "totalPages": pages,
                "totalElements": self.count,
            },
        }
        if page < pages:
            body["_embedded"] = {"neurons": self.records(page * self.size)}
        return 200, {}, body

    def _linked(self, query, link):
        start = int(query.get("start", 0))
        end = start + self.size
        more = link.format(end) if end < self.count else None
        body = {"count": self.count, "next": more, "results": self.records(start)}
        return 200, {}, body

    def api_next(self, query, _):
        return self._linked(query, f"{self.url}/api/next?start={{}}&x=%2F")

    def api_relative(self, query, _):
        return self._linked(query, "?start={}")

    def api_astray(self, query, _):
        """As behind a proxy: the scheme and the host are another one's."""
        return self._linked(query, "https://inside.example/api/astray?start={}")

    def api_moved(self, _query, _):
        return 302, {"Location": "/api/lists/v2"}, ""

    def api_lists_v2(self, query, _):
        return self._linked(query, "v2?start={}")

    def api_circle(self, query, _):
        """The last page leads to the second one."""
        status, head, body = self._linked(query, "?start={}")
        return status, head, {**body, "next": body["next"] or "?start=10"}

    def api_same(self, _query, _):
        """A service that does not know the parameter."""
        return 200, {}, {"items": self.records(0)}

    def api_cursor(self, query, _):
        start = int(query.get("cursor", "0").rpartition(" ")[2].strip("%"))
        end = start + self.size
        more = f"{NEXT_CURSOR} {end}" if end < self.count else ""
        items = self.records(start)
        return 200, {}, {"meta": {"next_cursor": more}, "items": items}

    def api_keyset(self, query, _):
        after = int(query.get("after_id", 0))
        found = [one for one in self.records(0, self.count) if one["id"] > after]
        return 200, {}, found[: self.size]

    def api_link(self, query, _):
        page = int(query.get("_page", 1))
        links = [f'<{self.url}/api/link?_page=1>; rel="first"']
        if page * self.size < self.count:
            links.append(f'<{self.url}/api/link?_page={page + 1}&q=a,b>; rel="next"')
        head = {"Link": links, "X-Total-Count": str(self.count)}
        return 200, head, self.records((page - 1) * self.size)

    def api_range(self, _query, headers):
        first, _, last = headers.get("Range", "items=0-9")[6:].partition("-")
        items = self.records(int(first), int(last) + 1)
        if not items:
            return 416, {"Content-Range": "*/*"}, {"message": "none there"}
        said = f"{first}-{int(first) + len(items) - 1}/*"
        return 206, {"Content-Range": said}, items

    def api_short(self, _query, _):
        return 200, {}, {"total": 300, "items": self.records(0)}

    def api_drift(self, query, _):
        """Each page comes to other types, and to other fields."""
        pages = [
            [{"id": 1, "v": 1, "when": "2020-01-01T00:00:00+02:00", "x": None}],
            [{"id": 2, "v": 2.5, "when": "yesterday", "x": "now"}, {"id": HUGE}],
            [{"id": "three", "v": BIG, "new": [1, {"a": 2}], "extra": 0, "x": HUGE}],
        ]
        page = int(query.get("p", 1))
        more = f"?p={page + 1}" if page < len(pages) else None
        return 200, {}, {"next": more, "results": pages[page - 1]}

    def api_two(self, _query, _):
        return 200, {}, {"data": [{"a": 1}], "included": [{"b": 1}]}

    def api_doubled(self, query, _):
        """Pages that overlap: what an unordered backend makes of them."""
        page = int(query.get("page", 1))
        body = {
            "count": self.count,
            "results": self.records(page * 8 - 8, page * 8 + 2),
        }
        return 200, {}, body

    def api_secret(self, query, headers):
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, {"detail": "who are you?"}
        return self._linked(query, "?start={}")

    def api_lines(self, _query, _):
        text = "\n".join(json.dumps(one) for one in self.records(0, 3))
        return 200, {"Content-Type": "application/x-ndjson"}, text

    def api_stream(self, _query, _):
        """Lines, said to be JSON."""
        return 200, {}, "".join(f"{json.dumps(one)}\r\n" for one in self.records(0, 3))

    def api_nothing(self, _query, _):
        return 204, {}, ""

    def api_empty(self, _query, _):
        return 200, {}, {"count": 0, "results": []}

    def api_untagged(self, _query, _):
        return 200, {}, {"id": 5, "tags": []}

    def api_one(self, _query, _):
        return 200, {}, {"version": "1.2", "ok": True, "tags": ["a"]}

    def api_hal_one(self, query, _):
        """Pages that count from 1, and of which none has a link to the next."""
        page = int(query.get("page", 1))
        pages = -(-self.count // self.size)
        paging = {"number": page, "totalPages": pages, "totalElements": self.count}
        body = {"_links": {"self": {"href": "x"}}, "page": paging}
        if page <= pages:
            body["_embedded"] = {"neurons": self.records((page - 1) * self.size)}
        return 200, {}, body

    def api_keyed(self, query, _):
        """Records under their keys; the last page says that there is none."""
        start = int(query.get("start", 0))
        end = start + self.size
        found = {
            f"k{n}": {"name": one["name"]}
            for n, one in enumerate(self.records(start), start)
        }
        more = f"?start={end}" if end < self.count else None
        return 200, {}, {"data": found, "meta": {"next": more, "total": self.count}}

    def api_keys(self, _query, _):
        return 200, {}, {"a1": {"v": 1}, "b2": {"v": 2, "_key": "b2"}}

    def api_keys_clash(self, _query, _):
        return 200, {}, {"a1": {"v": 1}, "b2": {"v": 2, "_key": "c"}}

    def api_keys_odd(self, _query, _):
        return 200, {}, {"a1": {"v": 1}, "b2": 7}

    def api_hal_empty(self, _query, _):
        return 200, {}, {"_links": {"self": {}}, "page": {"totalElements": 0}}

    def api_item(self, _query, _):
        return 200, {}, {"id": 5, "next": "/api/item?id=6", "of": {"x": 1}}

    def api_words(self, _query, _):
        return 200, {}, ["a", "b"]

    def v1_lights_all(self, _query, headers):
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, {"error": "Invalid token"}
        return 200, {}, LIGHTS

    def api_collections(self, query, _):
        found = self.records(0, 1) if query.get("DOI") == "10.1016/j.x<y" else []
        return 200, {}, {"count": len(found), "next": None, "results": found}


LIGHTS = [
    {
        "id": f"d073d5{n}",
        "label": label,
        "brightness": 1,
        "connected": not n,
        "color": {"hue": 0, "saturation": saturation},
        "last_seen": "2019-11-05T17:24:16Z",
        "product": {"capabilities": {"has_color": bool(n), "max_kelvin": 4000}},
        "seconds_since_seen": seconds,
    }
    for n, (label, saturation, seconds) in enumerate(
        [("Mom's Room", 0, 0), ("Matt's Room", 0.003997863736934462, 14146087)]
    )
]


@pytest.fixture
def api():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            service.log.append(self.path)
            service.headers.append(dict(self.headers))
            status, headers, body = service.answer(self.path, self.headers)
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                for one in value if isinstance(value, list) else [value]:
                    self.send_header(name, one)
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service = Api(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield service
    server.shutdown()
    thread.join()
    server.server_close()


def client(api, auth=None, **options):
    made = asyncfetch.Rest(f"{api.url}/api", auth, **options)
    made.exchange._rng = made.exchange.gate._rng = Impatient()
    return made


def rows_in(dest):
    return asyncfetch.open_dataset(dest).rows.to_table()


# --- pages ----------------------------------------------------------------------------

STYLES = [
    pytest.param("offset", "offset", 4, id="offset, with a cap"),
    pytest.param("offset", "offset:step=5", 5, id="offset, a step"),
    pytest.param("page", "page", 3, id="page"),
    pytest.param("blind", "page", 4, id="page, and a 404"),
    pytest.param("page", "page:step=25", 1, id="page, all at once"),
    pytest.param("hal", "hal", 3, id="hal"),
    pytest.param("hal", None, 3, id="hal, guessed"),
    pytest.param("hal/one", None, 3, id="hal, from 1"),
    pytest.param("next", None, 3, id="next, absolute"),
    pytest.param("relative", None, 3, id="next, relative"),
    pytest.param("astray", None, 3, id="next, of another host"),
    pytest.param("moved", None, 4, id="next, relative to a redirect"),
    pytest.param("numbered", None, 3, id="page, guessed"),
    pytest.param("skip", None, 3, id="offset, guessed"),
    pytest.param("other", "page:param=sheet", 3, id="page, of another name"),
    pytest.param("cursor", None, 3, id="cursor"),
    pytest.param("keyset", "keyset:param=after_id", 4, id="keyset"),
    pytest.param("link", None, 3, id="link"),
    pytest.param("range", "range:step=5", 6, id="range, and a 416"),
    pytest.param("range", None, 4, id="range, guessed"),
]


@pytest.mark.parametrize(("path", "paging", "requests"), STYLES)
async def test_all_records_come_in_every_style(api, path, paging, requests):
    async with client(api) as rest:
        table = rest.table(path, paging=paging)
        found = await table.get(DOI="10.1/x y")
    assert found == api.records(0, api.count)
    assert len(api.log) == requests
    first, *_ = api.log
    assert "DOI=10.1%2Fx%20y" in first


@pytest.mark.parametrize(("path", "paging", "requests"), STYLES)
async def test_a_dataset_of_every_style_agrees_and_asks_nothing_twice(
    api, tmp_path, path, paging, requests
):
    async with client(api) as rest:
        plan = rest.table(path, paging=paging, key="id").plan()
        report = await asyncfetch.download(plan, tmp_path / "d")
        assert report.requests == len(api.log) == requests
        again = await asyncfetch.download(plan, tmp_path / "d")
    assert (report.rows, again.rows, again.requests) == (api.count, api.count, 0)
    assert report.shortfall is None
    rows = await look(rows_in, tmp_path / "d")
    assert sorted(rows["id"].to_pylist()) == [BIG + n for n in range(api.count)]
    assert await look(verify, tmp_path / "d") == []


async def test_a_walk_that_begins_later_may_look_behind_the_last_page(api):
    async with client(api) as rest:
        found = await rest.table("hal").get(page=1)
    assert found == api.records(10, api.count)
    assert api.log == [f"/api/hal?page={page}" for page in (1, 2, 3)]


async def test_a_cursor_is_given_back_as_it_came(api):
    async with client(api) as rest:
        await rest.table("cursor").get()
    cursor = quote(f"{NEXT_CURSOR} 10", safe="")
    assert api.log[1] == f"/api/cursor?cursor={cursor}"


async def test_a_wrong_guess_is_an_error(api, tmp_path):
    async with client(api) as rest:
        with pytest.raises(
            asyncfetch.ItemError, match="is paging= as the service has it"
        ):
            await rest.table("other").get()
        plan = rest.table("other", paging="none").plan()
        report = await asyncfetch.download(plan, tmp_path / "d")
    assert report.rows == 10
    assert "speaks of 3 pages and one came: say how it pages" in str(report.shortfall)


async def test_the_style_is_said_once(api, caplog):
    caplog.set_level(logging.INFO, logger="asyncfetch.guesses")
    async with client(api) as rest:
        await rest.table("next").get()
    (line,) = [one for one in caplog.messages if "pages by" in one]
    assert line == f"{api.url}/api/next: records at results; pages by next"


async def test_a_limit_asks_for_no_more(api):
    async with client(api) as rest:
        table = rest.table("next")
        assert await table.get(limit=12) == api.records(0, 12)
        assert len(api.log) == 2
        async with table.stream() as batches:
            rows = [batch.num_rows async for batch in batches]
        assert rows == [10, 10, 5]


async def test_a_lower_limit_holds_for_what_is_gone_on_with(api, tmp_path):
    api.count = 95
    async with client(api) as rest:
        table = rest.table("next")
        api.broken["/api/next?start=20&x=%2F"] = 99
        await asyncfetch.download(table.plan(), tmp_path / "d")
        api.broken.clear()
        for limit, rows in ((3, 30), (5, 50), (5, 50), (None, 95), (None, 95)):
            api.log.clear()
            report = await asyncfetch.download(table.plan(limit=limit), tmp_path / "d")
            assert report.rows == rows
    assert report.shortfall is None
    assert api.log == []


async def test_a_circle_is_an_error_and_the_rows_before_it_stay(api, tmp_path):
    async with client(api) as rest:
        table = rest.table("circle", key="id")
        with pytest.raises(asyncfetch.ItemError, match="round in a circle"):
            await table.get()
        report = await asyncfetch.download(table.plan(), tmp_path / "d")
    assert report.rows == api.count
    assert report.items["failed"] == 1
    assert "round in a circle" in report.failed[0].error


async def test_a_page_that_comes_again_is_an_error_and_no_row_twice(api, tmp_path):
    async with client(api) as rest:
        table = rest.table("same", paging="page")
        report = await asyncfetch.download(table.plan(), tmp_path / "d")
    assert (report.rows, report.items["failed"], report.requests) == (10, 1, 2)
    assert "repeats its pages" in report.failed[0].error


async def test_what_the_service_counts_and_does_not_give_is_said(api, tmp_path, caplog):
    async with client(api) as rest:
        report = await asyncfetch.download(rest.table("short").plan(), tmp_path / "d")
        assert "counts 300 records and 10" in report.shortfall
        assert "paging=" in report.shortfall
        assert len(await rest.table("short").get()) == 10
        assert "counts 300" in caplog.text
        table = rest.table("doubled", paging="page", key="id")
        assert len(await table.get()) == api.count
        api.count = 40
        part = rest.table("next", params="start=20")
        assert len(await part.get()) == 20
    assert caplog.text.count("service counts") == 2


async def test_an_error_of_a_table_does_not_hold_what_was_refused(api):
    async with client(api, asyncfetch.Bearer("a-wrong-token")) as rest:
        with pytest.raises(asyncfetch.AuthenticationError) as caught:
            await rest.table("secret").get()
        api.broken["/api/next"] = 1
        with pytest.raises(asyncfetch.ResponseError) as other:
            await rest.table("next").get()
        assert (await rest.get("secret")).json() == {"detail": "who are you?"}
    assert "reply" not in {*vars(caught.value), *vars(other.value)}


async def test_a_first_page_that_is_not_there_is_an_error(api, tmp_path):
    async with client(api) as rest:
        table = rest.table("page", paging="page")
        with pytest.raises(asyncfetch.NotFound):
            await table.get(page=9)
        with pytest.raises(asyncfetch.NotFound):
            await asyncfetch.download(table.plan(page=9), tmp_path / "d")
    assert not (tmp_path / "d").exists()


async def test_a_page_that_is_lost_although_there_is_more_has_failed(api, tmp_path):
    async with client(api) as rest:
        plan = rest.table("page", paging="page").plan()
        api.api_page, whole = (
            lambda q, h: (
                (404, {}, {"detail": "lost"}) if q.get("page") == "2" else whole(q, h)
            ),
            api.api_page,
        )
        report = await asyncfetch.download(plan, tmp_path / "d")
        assert (report.rows, report.items) == (10, {"ok": 1, "failed": 1})
        api.api_page = whole
        api.log.clear()
        report = await asyncfetch.download(plan, tmp_path / "d")
    assert (report.rows, report.items) == (25, {"ok": 3})
    assert api.log == ["/api/page?page=2", "/api/page?page=3"]


# --- records --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "records", "count"),
    [
        ("offset", "data.items", 7),
        ("offset", "$.data.items[*]", 7),
        ("page", "", 10),
        ("page", ".", 10),
        ("hal", "_embedded.neurons", 10),
        ("lines", None, 3),
        ("stream", None, 3),
        ("nothing", None, 0),
        ("empty", None, 0),
        ("one", None, 1),
        ("next", "", 1),
        ("hal/empty", None, 0),
        ("item", None, 1),
        ("untagged", "", 1),
        ("untagged", "tags", 0),
    ],
)
async def test_records_are_found(api, path, records, count):
    async with client(api) as rest:
        paging = None if path == "item" else "none"
        table = rest.table(path, records=records, paging=paging)
        assert len(await table.get()) == count
        frame = await table.get(output_type="df")
    assert len(frame) == count


@pytest.mark.parametrize(
    ("path", "records", "expected"),
    [
        ("two", None, "data, included: say which"),
        ("untagged", None, r"the empty list tags: .*records='tags' or records=''"),
        (
            "next",
            "result",
            r"a list of records - at \$\.result, got null; it has count",
        ),
        ("words", None, r"an object - at \$\[0\], got .a."),
    ],
)
async def test_records_that_are_not_there_are_said(api, path, records, expected):
    async with client(api) as rest:
        with pytest.raises(asyncfetch.AsyncfetchError, match=expected):
            await rest.table(path, records=records).get()


async def test_records_under_keys_are_rows_with_the_key(api, tmp_path):
    async with client(api) as rest:
        table = rest.table("keyed", records="data.*", key="_key")
        found = await table.get()
        report = await asyncfetch.download(table.plan(), tmp_path / "d")
        for path in ("$.*", "*"):
            (one, two) = await rest.table("keys", records=path).get()
        frame = await rest.table("keys", records="*").get(output_type="df")
        with pytest.raises(asyncfetch.AsyncfetchError, match=r"_key.* 'b2'.* got 'c'"):
            await rest.table("keys/clash", records="*").get()
        with pytest.raises(asyncfetch.AsyncfetchError, match=r"at \$\.b2, got 7"):
            await rest.table("keys/odd", records="*").get()
        # A list under the same path is a list.
        assert await rest.table("page", records="*", paging="none").get() == (
            api.records(0)
        )
    assert found == [{"_key": f"k{n}", "name": f"n{n}"} for n in range(api.count)]
    assert (one, two) == ({"_key": "a1", "v": 1}, {"_key": "b2", "v": 2})
    assert frame["_key"].tolist() == ["a1", "b2"]
    assert (report.rows, report.shortfall) == (api.count, None)
    rows = await look(rows_in, tmp_path / "d")
    assert rows.schema.names == ["_key", "name", "extra"]


async def test_records_under_keys_that_nobody_mentioned_are_hinted_at(api, caplog):
    async with client(api) as rest:
        assert len(await rest.table("keys").get()) == 1
        assert "--records '*'" in caplog.text
        assert len(await rest.table("keyed", paging="none").get()) == 1
        assert "--records 'data.*'" in caplog.text
        caplog.clear()
        for path in ("one", "item", "next", "hal"):
            await rest.table(path, paging="none").get(limit=1)
    assert "--records" not in caplog.text


async def test_a_number_in_the_only_record_counts_no_records(api, tmp_path):
    async with client(api) as rest:
        table = rest.table("things/a", records="")
        report = await asyncfetch.download(table.plan(), tmp_path / "d")
    assert (report.rows, report.shortfall) == (1, None)


async def test_one_record_comes_by_its_id(api):
    async with client(api) as rest:
        table = rest.table("things?x=1", key="id")
        thing = api.thing("a/b")
        assert await table.get("a/b") == thing
        assert (await table.get("a/b", output_type="df"))["id"].tolist() == ["a/b"]
        assert await rest.table("things/").get(17) == api.thing("17/")
        boxed = rest.table("boxed", records="data", schema="id=int64")
        assert await boxed.get(7) == {"id": 7}
        with pytest.raises(asyncfetch.NotFound):
            await table.get("no")
        with pytest.raises(asyncfetch.NotFound, match="got 0"):
            await boxed.get(0)
        with pytest.raises(asyncfetch.ConfigurationError, match="id or parameters"):
            await table.get(5, x=2)
    assert api.log[0] == "/api/things/a%2Fb?x=1"
    assert api.log[2] == "/api/things/17/"
    assert len(api.log) == 6


@pytest.mark.parametrize(
    "body",
    [
        {"neurons": []},
        {"status": "ok", "items": []},
        {"total": 0, "neurons": []},
        {"next": None, "neurons": []},
        {"took": 3, "hits": {"total": {"value": 0}, "hits": []}},
        {"_embedded": {"neurons": []}, "_links": {}},
    ],
    ids=json.dumps,
)
def test_a_list_of_nothing_is_told_from_a_record(body):
    where = records_path(body, "/x")
    assert at(body, where) == []


async def test_a_key_makes_records_one(api, tmp_path):
    async with client(api) as rest:
        table = rest.table("doubled", paging="page", key="id")
        report = await asyncfetch.download(table.plan(), tmp_path / "d")
        assert (report.rows, report.shortfall) == (api.count, None)
        for key, expected in [("idd", "did you mean id"), ("of", "got json")]:
            with pytest.raises(asyncfetch.ConfigurationError, match=expected):
                await rest.table("doubled", key=key).get()


# --- columns --------------------------------------------------------------------------


async def test_types_are_those_of_all_pages_where_all_are_there(api):
    async with client(api) as rest:
        table = await rest.table("drift").get(output_type="arrow")
        frame = await rest.table("drift").get(output_type="df")
        sent = await rest.table("drift").get()
    types = {one.name: str(one.type) for one in table.schema}
    assert types["id"] == types["v"] == types["x"] == "extension<arrow.json>"
    assert types["when"] == "string"
    assert frame["id"].tolist() == [1, 2, HUGE, "three"]
    assert frame["v"].tolist() == [1, 2.5, None, BIG]
    assert frame["new"].tolist() == [None, None, None, [1, {"a": 2}]]
    assert frame["extra"].tolist() == [None, None, None, {"extra": 0}]
    assert sent[2] == {"id": HUGE}


async def test_a_dataset_has_the_columns_of_its_first_page_and_loses_nothing(
    api, tmp_path
):
    async with client(api) as rest:
        plan = rest.table("drift").plan()
        report = await asyncfetch.download(plan, tmp_path / "d", commit_seconds=0)
        assert report.rows == 4
        assert await look(verify, tmp_path / "d") == []
        async with rest.table("drift").stream() as batches:
            streamed = [batch async for batch in batches]
    rows = await look(rows_in, tmp_path / "d")
    assert rows.schema.names == ["id", "v", "when", "x", "extra"]
    assert rows.schema.field("when").type == pa.timestamp("us", "UTC")
    assert str(rows["when"][0].as_py()) == "2019-12-31 22:00:00+00:00"
    texts = {name: rows[name].cast(pa.string()).to_pylist() for name in ("x", "extra")}
    assert rows["id"].to_pylist() == [1, 2, None, None]
    assert rows["v"].to_pylist() == [1, None, None, BIG]
    assert texts["x"] == [None, '"now"', None, str(HUGE)]
    kept = [None if one is None else json.loads(one) for one in texts["extra"]]
    assert kept == [
        None,
        {"v": 2.5, "when": "yesterday"},
        {"id": HUGE},
        {"new": [1, {"a": 2}], "extra": 0, "id": "three"},
    ]
    assert pa.Table.from_batches(
        [one.replace_schema_metadata(None) for one in streamed]
    )["id"].to_pylist() == [1, 2, None, None]


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["2020-01-01T00:00:00Z", "1999-12-31T23:59:59.123456+05:30", "2020-01-01"]
)
NUMBERS = st.integers(-9, 9) | st.integers() | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=4,
)
RECORDS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "extra", ""]), VALUES), max_size=4
)


@given(pages=st.lists(RECORDS, min_size=1, max_size=3))
def test_rows_hold_all_that_was_sent_whatever_comes_later(pages):
    head = Response(status=200, headers={}, url="https://host/x", body=None)

    def chunks(page):
        return iter([json.dumps(page).encode()])

    source = RestSource(target="/x", base_url="https://host", paging="none")
    source = source.taught(chunks(pages[0]), head)
    (block,) = source.enumerate(None)
    for page in pages:
        found = source.decode(block.items[0], chunks(page), head, as_records=False)
        (batch,) = found.batches
        assert batch.schema == source.schema
        assert batch.num_rows == len(page)
        columns = {
            field.name: [
                one if one is None or field.type != JSON else json.loads(one)
                for one in (
                    values.cast(pa.string()) if field.type == JSON else values
                ).to_pylist()
            ]
            for field, values in zip(batch.schema, batch.columns, strict=True)
        }
        for place, record in enumerate(page):
            row = {name: values[place] for name, values in columns.items()}
            rest = row.pop("extra") or {}
            assert not {name for name in rest if row.get(name) is not None}
            held = {
                name: one for name, one in {**row, **rest}.items() if one is not None
            }
            sent = {name: one for name, one in record.items() if one is not None}
            for name, one in held.items():
                if isinstance(one, dt.datetime):
                    sent[name] = dt.datetime.fromisoformat(sent[name])
                assert isinstance(one, bool) == isinstance(sent[name], bool)
            assert held == sent


async def test_types_may_be_given(api, tmp_path):
    schema = {"id": "int64", "v": float, "x": "string", "new": "json"}
    async with client(api) as rest:
        table = rest.table("drift", schema=schema)
        report = await asyncfetch.download(table.plan(), tmp_path / "d")
        frame = await table.get(output_type="df")
        arrow = pa.schema([("id", pa.int64()), ("v", pa.float64())])
        short = await rest.table("drift", schema=arrow).get(output_type="arrow")
        with pytest.raises(asyncfetch.ConfigurationError, match="as type of id"):
            rest.table("drift", schema={"id": "number"})
        with pytest.raises(
            asyncfetch.ConfigurationError, match="in a dict or as name=type"
        ):
            rest.table("drift", schema=["id"])
    assert report.rows == 4
    assert short.schema.names == ["id", "v", "extra"]
    assert frame["v"].tolist()[:2] == [1.0, 2.5]
    assert frame["extra"].tolist()[3] == {
        "id": "three",
        "v": BIG,
        "extra": 0,
        "x": HUGE,
    }


async def test_lights_with_objects_in_them_are_a_table(api):
    async with asyncfetch.Rest(api.url, asyncfetch.Bearer(TOKEN)) as rest:
        table = rest.table("v1/lights/all")
        assert await table.get() == LIGHTS
        frame = await table.get(output_type="df")
    assert frame["color"].tolist() == [one["color"] for one in LIGHTS]
    assert frame["brightness"].tolist() == [1, 1]
    assert str(frame["last_seen"][0]) == "2019-11-05 17:24:16+00:00"
    assert frame["seconds_since_seen"].dtype == "Int64"


# --- what is asked --------------------------------------------------------------------


async def test_a_table_is_a_path_with_parameters(api):
    async with client(api, headers={"X-Client": "me"}) as rest:
        table = rest.table("collections/?DOI=10.1016/j.x<y", records="results")
        assert len(await table.get(params={"limit": 3, "n": None}, q=[1, True])) == 1
        assert len(await table.get()) == 1
        assert await rest.table(f"{api.url}/api/collections").get() == []
        with pytest.raises(asyncfetch.ConfigurationError, match="make another Rest"):
            rest.table("https://elsewhere.example/x")
    path = "/api/collections/?DOI=10.1016/j.x%3Cy"
    assert api.log == [f"{path}&limit=3&q=1&q=true", path, "/api/collections"]
    assert {one["X-Client"] for one in api.headers} == {"me"}


async def test_secrets_are_not_planned(api, tmp_path):
    async with client(api, asyncfetch.ApiKey("abcdefgh", query="apikey")) as rest:
        with pytest.raises(asyncfetch.ConfigurationError, match="auth=ApiKey"):
            rest.table("next").plan(api_key="abcdefgh")
        await asyncfetch.download(rest.table("next").plan(), tmp_path / "d")
    assert all("apikey=abcdefgh" in one for one in api.log)
    held = [p for p in (tmp_path / "d").rglob("*") if p.is_file()]
    assert held
    for path in held:
        assert b"abcdefgh" not in path.read_bytes(), path


async def test_the_blocking_client_has_tables_too(api):
    def work():
        with asyncfetch.sync.Rest(f"{api.url}/api") as rest:
            table = rest.table("next", key="id")
            with table.stream() as batches:
                streamed = sum(batch.num_rows for batch in batches)
            return len(table.get(output_type="df")), streamed

    assert await anyio.to_thread.run_sync(work) == (25, 25)


# --- the command line -----------------------------------------------------------------


@pytest.fixture
def run(capsys):
    def call(*words, status=0):
        found = _cli.run(list(words))
        printed = capsys.readouterr()
        assert found == status, printed.err
        return printed.out + printed.err

    return call


def test_a_url_is_shown(api, run):
    url = f"{api.url}/api/offset?limit=5"
    options = ("--records", "data.items", "--paging", "offset", "--format", "json")
    found = json.loads(run("show", url, "x=a,b", "y:=[1,2]", *options))
    assert found == api.records(0, api.count)
    assert api.log[0] == "/api/offset?limit=5&x=a%2Cb&y=1&y=2"
    said = run("show", f"{api.url}/api/next", "--columns", "name", "--limit", "2")
    assert [line.strip() for line in said.splitlines()[1:]] == ["n0", "n1"]
    said = run("show", f"{api.url}/api/next", "--columns", "nam", status=2)
    assert "it has id, name, of" in said


def test_a_url_is_fetched_and_gone_on_with(api, run, tmp_path):
    dest = str(tmp_path / "d")
    words = ("fetch", f"{api.url}/api/next", "a=1", "--key", "id", "-o", dest)
    said = run(*words, "--dry-run")
    assert "3 pages" in said
    assert len(api.log) == 1
    assert not (tmp_path / "d").exists()
    api.log.clear()
    said = run(*words, "--limit", "2")
    assert "/api/next: records at results; pages by next\n" in said
    assert "1 and more pages" in said
    assert len(api.log) == 2
    assert "nothing left to ask" in run("resume", dest)
    said = run("status", dest)
    assert "rest/api/next params=a=1 --key=id" in said
    assert "rows: 20" in said
    assert "records: results; pages: next" in said
    assert "25 rows" in run(*words)
    assert len(api.log) == 3
    assert "25 rows of 3 items" in run("verify", dest)
    assert "there were 2 parts" in run("compact", dest)
    assert "25 rows of 3 items in 1 parts" in run("verify", dest)
    said = run(*words)
    assert "3 pages, 3 of them there" in said
    assert "nothing left to ask" in said
    assert len(api.log) == 3
    said = run(*words[:2], "a=2", *words[3:], status=2)
    assert "filter params" in said


def test_what_a_higher_limit_would_ask_is_foretold(api, run, tmp_path):
    api.count = 95
    words = ("fetch", f"{api.url}/api/next", "-o", str(tmp_path / "d"))
    run(*words, "--limit", "2")
    for limit, left in ((("--limit", "2"), 0), (("--limit", "5"), 3), ((), 8)):
        found = json.loads(run(*words, *limit, "--dry-run", "--sample", "0", "--json"))
        assert (found["already_there"], found["requests"]) == (2, left)
    api.log.clear()
    run(*words, "--limit", "5")
    assert len(api.log) == 3


def test_columns_are_given_on_the_command_line(api, run, tmp_path):
    (tmp_path / "columns").write_text("id=json\n\nv = float64\n")
    url, dest = f"{api.url}/api/drift", str(tmp_path / "d")
    said = run("show", url, "--schema", "id=json,v=float", "--format", "csv")
    assert said.splitlines()[0] == "id,v,extra"
    run("fetch", url, "--schema", f"@{tmp_path / 'columns'}", "-o", dest)
    run("fetch", url, "--schema", "id=json,v=float", "-o", dest)
    assert "--schema=id=json,v=float64" in run("status", dest)
    assert "nothing left to ask" in run("resume", dest)
    assert rows_in(dest).schema.names == ["id", "v", "extra"]
    for columns, expected in [
        ("id", "expected NAME=TYPE for a column, got 'id'"),
        ("id=number", "as type of id"),
        ("@nowhere", "No such file"),
        (",", "names and types"),
    ]:
        assert expected in run("show", url, "--schema", columns, status=2)


def test_what_cannot_be_counted_is_said_to_be_more(api, run, tmp_path):
    words = ("fetch", f"{api.url}/api/cursor", "-o", str(tmp_path / "d"), "--dry-run")
    said = run(*words)
    assert "1 and more pages" in said
    assert "requests: at least 1;" in said
    assert json.loads(run(*words, "--json"))["is_open"]
    words = ("fetch", f"{api.url}/api/one", "-o", str(tmp_path / "d"))
    assert "one: 1 pages" in run(*words)


def test_a_page_that_failed_is_retried(api, run, tmp_path):
    dest = str(tmp_path / "d")
    api.broken["/api/next?start=10&x=%2F"] = 1
    run("fetch", f"{api.url}/api/next", "-o", dest, status=1)
    assert "400" in run("status", dest, "--failed")
    api.log.clear()
    run("retry", dest)
    assert api.log == ["/api/next?start=10&x=%2F", "/api/next?start=20&x=%2F"]
    assert "25 rows of 3 items" in run("verify", dest)


def test_a_token_is_found_again_by_the_name_of_its_variable(
    api, run, tmp_path, monkeypatch
):
    dest = str(tmp_path / "d")
    words = (
        "fetch",
        f"{api.url}/api/secret",
        "-o",
        dest,
        "--bearer-env",
        "LIGHT_TOKEN",
    )
    assert "got nothing in LIGHT_TOKEN" in run(*words, status=2)
    monkeypatch.setenv("LIGHT_TOKEN", TOKEN)
    run(*words, "--limit", "1")
    plan = json.loads((tmp_path / "d/_asyncfetch/plan.json").read_text())
    assert plan["notes"]["bearer_env"] == "LIGHT_TOKEN"
    run(*words)
    for path in (tmp_path / "d").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
    monkeypatch.delenv("LIGHT_TOKEN")
    assert "got nothing in LIGHT_TOKEN" in run("resume", dest, status=2)
    monkeypatch.setenv("OTHER", TOKEN)
    assert "nothing left" in run("resume", dest, "--bearer-env", "OTHER")
    assert "nothing left" in run("retry", dest, "--bearer-env", "OTHER")


def test_mistakes_on_the_command_line_are_one_line(api, run, tmp_path):
    dest = ("-o", str(tmp_path / "d"))
    cases = [
        (("show", "neuroscout/runs", "--key", "id"), "expected a URL for --key"),
        (("show", f"{api.url}/api/next", "word"), "expected NAME=VALUE"),
        (("show", f"{api.url}/api/two"), "data, included"),
        (("show", f"{api.url}/api/next", "--paging", "pages"), "one of none, offset"),
        (("fetch", f"{api.url}/api/next", "token=x", *dest), "is a secret by its name"),
        (("fetch", f"{api.url}/api/next", "--key", "nam", *dest), "mean name"),
    ]
    for words, expected in cases:
        said = run(*words, status=2)
        assert expected in said
        assert said.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_a_url_without_a_scheme_means_https(run):
    with pytest.raises(AssertionError, match=r"no service.*any URL like https://"):
        run("show", "neurovalt/images")
    client, table = _cli._open_table("neurovault.org/api/collections?x=1", None, {})
    assert client.exchange.base_url == "https://neurovault.org"
    assert table.description.name == "api/collections"


# --- killed ---------------------------------------------------------------------------


POINTS = (
    "plan-durable",
    "block-durable",
    "follow-durable:2",
    "items-durable:2",
    "part-linked:2",
    "part-durable:3",
    "finish-sealed",
)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize("path", ["next", "page"])
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_was_killed_goes_on_behind_its_last_page(
    api, run, tmp_path, point, path
):
    api.count = 250
    dest = tmp_path / "d"
    words = ["fetch", f"{api.url}/api/{path}", "-o", str(dest), "--key", "id"]
    words += ["--paging", path, "--commit-seconds", "0"]
    ended = subprocess.run(
        [sys.executable, "-m", "asyncfetch", *words],
        env={
            **os.environ,
            "ASYNCFETCH_CRASH": point,
            "PYTHONPATH": str(Path(asyncfetch.__file__).parents[1]),
        },
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    items = asyncfetch.open_dataset(dest).items.to_pylist()
    committed = {one["url"].removeprefix(api.url) for one in items}
    api.log.clear()
    run("resume", str(dest))
    assert not committed & set(api.log)
    assert len(api.log) == 25 - len(committed)
    assert "250 rows of 25 items" in run("verify", str(dest))
    rows = rows_in(dest)
    assert sorted(rows["name"].to_pylist()) == sorted(f"n{n}" for n in range(250))

"""Any REST API by single calls: what is sent, and what comes back whatever it is."""

import json
import re

import anyio
import pytest

import asyncfetch
from asyncfetch._auth import HIDDEN
from tests.conftest import Impatient, answer, look, open_wire

pytestmark = pytest.mark.anyio


@pytest.fixture
async def wire():
    async with open_wire(answer(b'{"ok": true}')) as wire:
        yield wire


def client(wire, auth=None, **options):
    api = asyncfetch.Rest(wire.url, auth, **options)
    api.exchange._rng = Impatient()
    return api


# --- the query ------------------------------------------------------------------------


async def test_a_query_in_a_path_survives_further_parameters(wire):
    path = "api/collections/?DOI=10.1016/j.neurobiolaging.2012.11.002"
    async with client(wire) as api:
        reply = await api.get(path, params={"limit": 1})
    assert wire.targets == [f"/{path}&limit=1"]
    assert reply.json() == {"ok": True}


async def test_parameters_of_odd_characters_are_quoted_once(wire):
    given = [("a", "i<3 peach/&="), ("ü", "ß"), ("b", True), ("n", None), ("l", [1, 2])]
    async with client(wire) as api:
        await api.get("/get", params=given)
    (target,) = wire.targets
    quoted = "a=i%3C3%20peach%2F%26%3D&%C3%BC=%C3%9F&b=true&l=1&l=2"
    assert target == f"/get?{quoted}"


async def test_secrets_in_a_query_are_shown_nowhere(wire, caplog):
    caplog.set_level("DEBUG", logger="asyncfetch")
    async with client(wire) as api:
        params = {"user_name": "luigi", "password": "i<3peach"}
        reply = await api.get("/get", params=params)
    assert "password=i%3C3peach" in wire.targets[0]
    assert f"password={HIDDEN}" in reply.url
    assert "peach" not in caplog.text + repr(reply)


# --- replies --------------------------------------------------------------------------


async def test_headers_are_found_whatever_their_case(wire):
    headers = "Date: Tue, 05 Nov 2019 17:15:34 GMT\r\nSet-Cookie: a=1\r\n"
    headers += "set-cookie: b=2\r\nServer: gws\r\n"
    wire.answers = [answer(b"[]", headers=headers)]
    async with client(wire) as api:
        reply = await api.get("/")
    assert reply.status_code == 200
    assert reply.ok
    assert reply.headers["date"] == reply.headers["DATE"]
    assert dict(reply.headers)["Server"] == "gws"
    assert reply.headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert reply.url == f"{wire.url}/"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400 Bad Request", asyncfetch.ResponseError),
        ("401 Unauthorized", asyncfetch.AuthenticationError),
        ("404 Not Found", asyncfetch.NotFound),
        ("418 Teapot", asyncfetch.ResponseError),
    ],
)
async def test_a_refusal_is_a_reply_too(wire, status, kind):
    wire.answers = [answer(b'{"detail": "no"}', status=status, headers="X-Why: so\r\n")]
    async with client(wire) as api:
        reply = await api.get("/x")
    assert (reply.status_code, reply.ok) == (int(status[:3]), False)
    assert reply.json() == {"detail": "no"}
    assert reply.headers["x-why"] == "so"
    with pytest.raises(kind):
        reply.raise_for_status()


async def test_a_read_is_asked_again_and_a_write_is_not(wire):
    busy = answer(b"busy", status="503 Service Unavailable")
    async with client(wire) as api:
        wire.answers = [busy, answer(b"1")]
        assert (await api.get("/")).text == "1"
        wire.requests.clear()
        wire.answers = [busy, answer(b"1")]
        reply = await api.post("/", json={})
        assert (reply.status_code, reply.text) == (503, "busy")
        assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"<html>hello</html>", "text/html", "<html>hello</html>"),
        ("größe".encode("latin-1"), "text/plain; charset=ISO-8859-1", "größe"),
        ("größe".encode(), "text/plain; charset=none-such", "größe"),
        (b'{"message": "fine"}', "application/json", '{"message": "fine"}'),
        (b"", "text/plain", ""),
    ],
)
async def test_a_body_is_given_as_it_is(wire, body, kind, text):
    wire.answers = [answer(body, headers=f"Content-Type: {kind}\r\n")]
    async with client(wire) as api:
        reply = await api.get("/")
    assert (reply.content, reply.text) == (body, text)
    if not body.startswith(b"{"):
        with pytest.raises(asyncfetch.DecodeError, match="expected JSON"):
            reply.json()


async def test_json_is_read_with_a_mark_before_it_and_keeps_large_numbers(wire):
    wire.answers = [answer(b'\xef\xbb\xbf{"id": 9007199254740993}')]
    async with client(wire) as api:
        assert (await api.get("/")).json() == {"id": 9007199254740993}


async def test_a_deletion_has_no_body(wire):
    wire.answers = [answer(b"", status="204 No Content")]
    async with client(wire) as api:
        reply = await api.delete("/lights/1")
    assert (reply.status_code, reply.content) == (204, b"")
    assert wire.requests[0].startswith(b"DELETE /lights/1 ")


# --- what is sent ---------------------------------------------------------------------


def parts_of(body, head):
    mark = re.search(rb"boundary=([^\r\n]+)", head)[1]
    found = []
    for part in body.split(b"--" + mark)[1:-1]:
        top, _, data = part.strip(b"\r\n").partition(b"\r\n\r\n")
        words = dict(re.findall(r'(\w*name)="([^"]*)"', top.decode()))
        kind = re.search(r"Content-Type: (\S+)", top.decode())
        found.append((words["name"], words.get("filename"), kind and kind[1], data))
    return found


async def test_two_files_of_one_name_are_sent_from_the_disk(wire, tmp_path):
    paths = [tmp_path / "imgA.png", tmp_path / "imgB.jpg"]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * 1000)
    files = await look(lambda: [path.open("rb") for path in paths])
    try:
        file_list = [
            ("image", ("imgA.png", files[0], "image/png")),
            ("image", ("imgB.png", files[1], "image/jpg")),
        ]
        async with client(wire) as api:
            await api.post("/post", files=file_list, data={"who": "me"})
    finally:
        for file in files:
            file.close()
    assert parts_of(wire.bodies[0], wire.requests[0]) == [
        ("who", None, "text/plain;", b"me"),
        ("image", "imgA.png", "image/png", bytes(1000)),
        ("image", "imgB.png", "image/jpg", b"\1" * 1000),
    ]


async def test_paths_and_bytes_are_files_too(wire, tmp_path):
    (tmp_path / "a.json").write_bytes(b"{}")
    async with client(wire) as api:
        files = {"a": tmp_path / "a.json", "b": ("b.bin", b"\0\1")}
        await api.post("/", files=files, data={"n": [1, 2], "none": None})
        with pytest.raises(asyncfetch.ConfigurationError, match="expected a path"):
            await api.post("/", files={"a": 3})
    assert parts_of(wire.bodies[0], wire.requests[0]) == [
        ("n", None, "text/plain;", b"1"),
        ("n", None, "text/plain;", b"2"),
        ("a", "a.json", "application/json", b"{}"),
        ("b", "b.bin", "application/octet-stream", b"\0\1"),
    ]


def moved(status, place="/new?x=%2F"):
    return answer(status=f"{status} x", headers=f"Location: {place}\r\n")


@pytest.mark.parametrize("status", [307, 308])
async def test_what_is_sent_is_sent_again_where_it_is_told_to(wire, tmp_path, status):
    path = tmp_path / "a.bin"
    await look(path.write_bytes, b"\0\1" * 50_000)
    async with client(wire, asyncfetch.Bearer("tok")) as api:
        for sent in ({"json": {"a": 1}}, {"files": {"f": path}}):
            wire.answers = [moved(status), answer(b"{}")]
            reply = await api.post("/old", **sent)
            assert (reply.status_code, reply.url) == (200, f"{wire.url}/new?x=%2F")
    heads = [one.decode("latin-1").lower() for one in wire.requests]
    assert [one.split()[0] for one in heads] == ["post"] * 4
    assert wire.targets[1::2] == ["/new?x=%2F"] * 2
    assert all(one.count("authorization: bearer tok") == 1 for one in heads)
    assert wire.bodies[0] == wire.bodies[1] == b'{"a": 1}'
    assert b"\0\1" * 50_000 in wire.bodies[3]


async def test_a_read_may_end_elsewhere_and_takes_nothing_there(wire):
    async with open_wire(answer(b"its bytes")) as store:
        wire.answers = [moved(302, f"{store.url}/f?signature=x%2F")]
        for auth in (
            asyncfetch.Bearer("s3cret"),
            asyncfetch.ApiKey("s3cret", header="X-Key"),
            asyncfetch.ApiKey("s3cret", query="key"),
        ):
            async with client(wire, auth, headers={"X-Other": "s3cret"}) as api:
                reply = await api.get("/f", headers={"Cookie": "s3cret"})
                assert (reply.content, reply.url) == (
                    b"its bytes",
                    f"{store.url}/f?signature={HIDDEN}",
                )
                with pytest.raises(asyncfetch.ResponseError, match="a redirect to"):
                    wire.answers = [moved(307, f"{store.url}/f")]
                    await api.post("/f", json={})
                wire.answers = [moved(302, f"{store.url}/f?signature=x%2F")]
        assert store.targets == ["/f?signature=x%2F"] * 3
        assert not any(b"s3cret" in one for one in store.requests)
        assert all(b"s3cret" in one for one in wire.requests)


async def test_a_table_is_read_from_its_own_host_alone(wire):
    async with open_wire(answer(b'[{"id": 1}]')) as other:
        wire.answers = [moved(302, f"{other.url}/f")]
        async with client(wire) as api:
            with pytest.raises(asyncfetch.AsyncfetchError, match="a redirect to"):
                await api.table("/f").get()
        assert not other.requests


async def test_see_other_is_got(wire):
    wire.answers = [moved(303), answer(b'{"state": "queued"}')]
    async with client(wire) as api:
        reply = await api.post("/jobs", json={"a": 1})
    assert reply.json() == {"state": "queued"}
    head = wire.requests[1].decode().lower()
    assert head.startswith("get /new?x=%2f")
    assert "content-type" not in head
    assert wire.bodies[1] == b""


@pytest.mark.parametrize("status", [301, 302])
async def test_a_redirect_that_would_lose_what_is_sent_is_the_answer(wire, status):
    wire.answers = [moved(status), answer(b"{}")]
    async with client(wire) as api:
        reply = await api.put("/old", json={"a": 1})
    assert reply.status_code == status
    assert len(wire.requests) == 1


async def test_what_is_sent_goes_round_ten_times_at_most(wire):
    wire.answers = [moved(307, "/old")]
    async with client(wire) as api:
        with pytest.raises(asyncfetch.ResponseError, match="redirected too often"):
            await api.post("/old", json={"a": 1})
    assert len(wire.requests) == 10


async def test_a_put_of_json_gives_an_answer_that_holds_failures(wire):
    results = {"results": [{"id": "d1", "status": "ok"}, {"id": "d2", "status": "no"}]}
    body = json.dumps(results).encode()
    wire.answers = [answer(body, status="207 Multi-Status")]
    payload = {"states": [{"selector": "d1", "power": "on"}]}
    async with client(wire, asyncfetch.Bearer("s3cret-token")) as api:
        for given in ({"json": payload}, {"data": json.dumps(payload)}):
            reply = await api.put("/v1/lights/states", **given)
            assert reply.status_code == 207
            assert reply.raise_for_status().json() == results
            assert json.loads(wire.bodies[-1]) == payload
            assert wire.header("Content-Type") == "application/json"
            assert wire.header("Authorization") == "Bearer s3cret-token"


@pytest.mark.parametrize(
    ("given", "body", "kind"),
    [
        ({"data": "just words"}, b"just words", "text/plain; charset=utf-8"),
        (
            {"data": {"a": "1 2", "b": [1, 2], "c": None}},
            b"a=1+2&b=1&b=2",
            "application/x-www-form-urlencoded",
        ),
        ({"data": "x", "headers": {"content-type": "text/csv"}}, b"x", "text/csv"),
        ({"data": b"\xff\x00\n"}, b"\xff\x00\n", "application/octet-stream"),
        ({"data": bytearray(b"\xfe")}, b"\xfe", "application/octet-stream"),
    ],
)
async def test_data_is_sent_as_it_is(wire, given, body, kind):
    async with client(wire) as api:
        await api.patch("/x", **given)
    assert wire.bodies == [body]
    assert wire.header("Content-Type") == kind


async def test_what_cannot_be_sent_is_said_at_once(wire):
    async with client(wire) as api:
        for given in (
            {"json": {1, 2}},
            {"json": 1, "data": "x"},
            {"data": "x", "files": {"a": b"1"}},
            {"data": 3},
            {"files": "a.png"},
            {"files": {"a": (b"1",)}},
            {"files": {"a": ("b", b"1", "text/csv", {})}},
        ):
            with pytest.raises(asyncfetch.ConfigurationError):
                await api.post("/", **given)
        with pytest.raises(asyncfetch.ConfigurationError, match="make another Rest"):
            await api.get("https://elsewhere.example/x")
        with pytest.raises(asyncfetch.ConfigurationError, match="make another Rest"):
            await api.get(f"{wire.url}0/x")
        assert (await api.get(f"{wire.url}/x?y=1")).ok
    assert wire.targets == ["/x?y=1"]


# --- who asks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        (asyncfetch.Bearer("abcdef"), "Authorization", "Bearer abcdef"),
        (asyncfetch.Token("abcdef"), "Authorization", "Token abcdef"),
        (asyncfetch.Basic("a", "secret"), "Authorization", "Basic YTpzZWNyZXQ="),
        (asyncfetch.ApiKey("abcdef"), "X-Api-Key", "abcdef"),
        (asyncfetch.ApiKey("abcdef", header="X-Mine"), "X-Mine", "abcdef"),
    ],
)
async def test_credentials_are_headers_and_are_not_shown(wire, auth, header, value):
    async with client(wire, auth, headers={"X-Client": "me"}) as api:
        reply = await api.get("/x")
        assert wire.header(header) == value
        assert wire.header("X-Client") == "me"
        for secret in ("abcdef", "secret", "YTpz"):
            assert secret not in repr(reply) + repr(api) + repr(auth)


async def test_a_key_in_the_query_is_hidden(wire):
    async with client(wire, asyncfetch.ApiKey("abcdef", query="apikey")) as api:
        reply = await api.get("/x", params={"a": 1})
    assert wire.targets == ["/x?a=1&apikey=abcdef"]
    assert "abcdef" not in reply.url
    with pytest.raises(asyncfetch.ConfigurationError, match="got both"):
        asyncfetch.ApiKey("k", header="a", query="b")


async def test_an_application_gets_its_token_and_another_when_it_is_over(wire):
    tokens = iter(["first-token", "second-token"])

    def respond(head, body):
        if head.startswith(b"POST /oauth/token"):
            assert b"grant_type=client_credentials" in body
            assert b"client_secret=a+secret" in body
            return answer(json.dumps({"access_token": next(tokens)}).encode())
        if b"Bearer second-token" in head:
            return answer(b"{}")
        return answer(b"{}", status="401 Unauthorized")

    wire.respond = respond
    auth = asyncfetch.OAuth2ClientCredentials("oauth/token", "me", "a secret")
    async with client(wire, auth) as api:
        assert (await api.get("/x")).status_code == 200
    assert wire.targets == ["/oauth/token", "/x", "/oauth/token", "/x"]
    head = next(one for one in wire.requests if b"/oauth/token" in one)
    assert b"application/x-www-form-urlencoded" in head


async def test_tokens_may_come_from_another_host(wire, caplog):
    """Each host gets what is its own: id and secret, or the token."""
    caplog.set_level("DEBUG", logger="asyncfetch")
    tokens = iter(["first-token", "second-token"])
    wire.respond = lambda head, _: answer(
        b"{}", status="200 OK" if b"Bearer second-token" in head else "401 No"
    )
    async with open_wire() as desk:
        desk.respond = lambda *_: answer(
            json.dumps({"access_token": next(tokens), "expires_in": 3600}).encode()
        )
        auth = asyncfetch.OAuth2ClientCredentials(
            f"{desk.url}/oauth/token?v=2", "client-id", "client-secret", scope="read"
        )
        async with client(wire, auth, headers={"X-Client": "me"}) as api:
            gates = {api.exchange.gate.host, api.exchange.desk.gate.host}
            reply = await api.get("/x")
            assert reply.status_code == 200
            desk.respond = lambda *_: answer(
                b'{"error": "client-secret is wrong"}', status="400 Bad Request"
            )
            wire.respond = lambda *_: answer(b"{}", status="401 No")
            with pytest.raises(asyncfetch.AuthenticationError) as caught:
                await api.get("/y")
    assert len(gates) == 2
    assert wire.targets == ["/x", "/x", "/y"]
    assert desk.targets == ["/oauth/token?v=2"] * 3
    assert b"client_secret=client-secret&scope=read" in desk.bodies[0]
    assert not any(b"Authorization" in one for one in desk.requests)
    assert not any(b"X-Client" in one for one in desk.requests)
    assert not any(b"client-" in one for one in [*wire.requests, *wire.bodies])
    assert desk.url.removeprefix("http://") in str(caught.value)
    for secret in ("client-secret", "first-token", "second-token"):
        assert secret not in f"{caplog.text}{caught.value!r}{reply!r}{api!r}{auth!r}"


async def test_a_token_host_that_leads_elsewhere_gets_nobody_there(wire):
    async with open_wire(answer(b'{"access_token": "abcdef"}')) as elsewhere:
        moved = f"Location: {elsewhere.url}/oauth/token\r\n"
        async with open_wire(
            answer(b"", status="307 Temporary Redirect", headers=moved)
        ) as desk:
            auth = asyncfetch.OAuth2ClientCredentials(f"{desk.url}/t", "id", "a secret")
            async with client(wire, auth) as api:
                with pytest.raises(asyncfetch.AuthenticationError, match="a redirect"):
                    await api.get("/x")
        assert (len(desk.requests), elsewhere.requests, wire.requests) == (1, [], [])


def test_a_secret_is_not_sent_in_the_clear():
    auth = asyncfetch.OAuth2ClientCredentials("http://login.example/t", "id", "secret")
    with pytest.raises(asyncfetch.ConfigurationError, match="by https"):
        asyncfetch.Rest("https://host.example", auth)


def test_a_url_without_a_scheme_means_https_and_says_so_once(caplog):
    api = asyncfetch.Rest("neurovault.org/api")
    assert api.exchange.base_url == "https://neurovault.org/api"
    assert caplog.text.count("taken for https") == 1


async def test_the_blocking_client_is_the_same(wire):
    def work():
        with asyncfetch.sync.Rest(wire.url) as api:
            return api.get("/x", params={"a": 1}).json()

    assert await anyio.to_thread.run_sync(work) == {"ok": True}

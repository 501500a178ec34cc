"""One question, asked until its answer is whole and proved: over real sockets."""

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from asyncfetch._model import Request, RequestSent, Retrying
from asyncfetch.errors import (
    AuthenticationError,
    ConfigurationError,
    DecodeError,
    IntegrityError,
    NotFound,
    ResponseError,
    TransportError,
)
from tests.conftest import answer, exchange, open_wire, read_whole

pytestmark = pytest.mark.anyio


async def ask(wire, *, media="json", path="/data", **options):
    asker = exchange(wire.url, **options)
    try:
        found = await asker.ask(Request(target=path, media=media), read_whole)
        return found.value
    finally:
        await asker.aclose()


BODY = b'[{"a": 1}, {"a": 2}]'


async def test_wrong_data_are_not_asked_again():
    async with open_wire(answer(b"[1]")) as wire:
        asker = exchange(wire.url)

        def refuse(chunks, _response):
            raise DecodeError("expected object")

        with pytest.raises(DecodeError):
            await asker.ask(Request(target="/x"), refuse)
        await asker.aclose()
        assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("401 Unauthorized", AuthenticationError),
        ("403 Forbidden", AuthenticationError),
        ("404 Not Found", NotFound),
        ("422 Unprocessable Entity", ResponseError),
        ("414 URI Too Long", ResponseError),
    ],
)
async def test_a_refusal_is_said_at_once(status, error):
    async with open_wire(answer(b'{"message": "why"}', status=status)) as wire:
        with pytest.raises(error, match="why"):
            await ask(wire)
        assert len(wire.requests) == 1


@pytest.mark.parametrize("status", ["500 x", "502 x", "503 x", "429 x"])
async def test_a_passing_error_is_asked_again(status):
    async with open_wire(answer(b"no", status=status), answer(BODY)) as wire:
        assert await ask(wire) == BODY


@pytest.mark.parametrize(
    "header",
    [
        "Retry-After: 7200\r\n",
        (
            "Date: Fri, 31 Dec 1999 21:59:59 GMT\r\nRetry-After: "
            "Fri, 31 Dec 1999 23:59:59 GMT\r\n"
        ),
    ],
    ids=["seconds", "date"],
)
async def test_a_host_that_asks_for_hours_ends_the_run(header):
    async with open_wire(answer(b"", status="503 x", headers=header)) as wire:
        with pytest.raises(ResponseError, match="come back in 7200 s") as caught:
            await ask(wire)
        assert caught.value.is_fatal
        assert len(wire.requests) == 1


async def test_a_redirect_to_another_host_is_refused():
    away = answer(status="302 Found", headers="Location: http://localhost:9/x\r\n")
    async with open_wire(away) as wire:
        with pytest.raises(ResponseError, match="redirect to http://localhost:9/x"):
            await ask(wire)


async def test_a_redirect_on_the_same_host_is_followed():
    moved = answer(status="301 Moved", headers="Location: /new\r\n")
    async with open_wire(moved, answer(BODY)) as wire:
        assert await ask(wire) == BODY
        assert wire.targets == ["/data", "/new"]


async def test_an_unreachable_server_is_said_soon():
    async with open_wire(answer()) as wire:
        url = wire.url
    asker = exchange(url)
    with pytest.raises(TransportError, match="no connection: GET"):
        await asker.ask(Request(target="/x"), read_whole, interactive=True)
    await asker.aclose()


async def test_a_server_that_never_answers_is_given_up():
    async with open_wire(answer(b"x" * 10, length=20)) as wire:
        with pytest.raises((TransportError, IntegrityError)):
            await ask(wire, timeout=0.05, item_timeout=0.4)


async def test_a_large_body_goes_through_a_file_and_leaves_none(tmp_path):
    body = b"[" + b",".join(b'{"n": %d}' % n for n in range(1_000_000)) + b"]"
    async with open_wire(answer(body)) as wire:
        asker = exchange(wire.url)
        seen = []

        def consume(chunks, response):
            seen.append(response.body.data)
            return sum(map(len, chunks))

        found = await asker.ask(Request(target="/x"), consume, spool_dir=tmp_path)
        await asker.aclose()
    assert found.value == len(body)
    assert seen[0].parent == tmp_path
    assert not list(tmp_path.iterdir())


async def test_a_cancelled_question_leaves_no_slot_and_no_file(tmp_path):
    body = b"[" + b"1," * 6_000_000
    async with open_wire(answer(body, length=len(body) + 10)) as wire:
        asker = exchange(wire.url)
        async with anyio.create_task_group() as group:
            group.start_soon(
                lambda: asker.ask(Request(target="/x"), read_whole, spool_dir=tmp_path)
            )
            while not list(tmp_path.iterdir()):
                await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        await asker.aclose()
    assert asker.gate.statistics()["in_flight"] == 0
    assert not list(tmp_path.iterdir())


async def test_every_request_and_every_retry_is_an_event():
    events = []
    async with open_wire(b"", b"", answer(BODY)) as wire:
        asker = exchange(wire.url)
        await asker.ask(Request(target="/x?y=z"), read_whole, observe=events.append)
        await asker.aclose()
        sent = [one for one in events if isinstance(one, RequestSent)]
        # The HTTP library sends a second time by itself when a server hangs up.
        assert len(sent) == len(wire.requests) == 3
        assert sum(isinstance(one, Retrying) for one in events) == 1


async def test_the_client_says_who_it_is():
    async with open_wire(answer(BODY)) as wire:
        await ask(wire, contact="me@lab.example")
        agent = wire.header("User-Agent")
    assert agent.startswith("asyncfetch/")
    assert agent.endswith("(contact: me@lab.example)")


@pytest.mark.parametrize("url", ["neuroscout.org/api", "", "not a url", "http://"])
def test_a_base_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigurationError, match="expected a base URL"):
        exchange(url)


@pytest.mark.parametrize(
    "url", ["https://me:secret@host.example/api", "https://host.example/api?key=secret"]
)
def test_a_secret_in_the_base_url_is_refused_and_not_repeated(url):
    with pytest.raises(ConfigurationError) as caught:
        exchange(url)
    assert "secret" not in str(caught.value)


def test_a_client_is_used_under_one_loop_after_the_other():
    asker = []

    async def first():
        async with open_wire(answer(BODY)) as wire:
            asker.append(exchange(wire.url))
            await asker[0].ask(Request(target="/x"), read_whole)

    async def second():
        async with open_wire(answer(BODY)) as wire:
            asker[0].base_url = wire.url
            asker[0]._transport._origin = type(asker[0]._transport._origin)(wire.url)
            await asker[0].ask(Request(target="/x"), read_whole)
            await asker[0].aclose()

    anyio.run(first)
    anyio.run(second)

"""Credentials reach the service and nobody else, and nothing that is kept or shown."""

import json
import logging
import pickle
import subprocess
import sys
import traceback

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch import testing
from asyncfetch._auth import Reply, TokenLogin, api_key, basic, hide, token
from asyncfetch._model import Request
from asyncfetch.errors import (
    AuthenticationError,
    ConfigurationError,
    NotFound,
    ResponseError,
)
from asyncfetch.testing import Fault
from tests.conftest import Impatient, answer, exchange, open_wire, read_whole

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t/+&=%$ word"
FIXED = {
    "bearer": token(SECRET),
    "token": token(SECRET, scheme="Token"),
    "basic": basic("me@lab.example", SECRET),
    "header": api_key(SECRET),
    "query": api_key(SECRET, name="api_key", place="query"),
    "odd query": api_key(SECRET, name="our-own", place="query"),
}


def shown(secret):
    """Forms in which a secret would be found."""
    import base64
    from urllib.parse import quote, quote_plus

    pair = base64.b64encode(f"me@lab.example:{secret}".encode()).decode()
    return [secret, quote(secret), quote(secret, safe=""), quote_plus(secret), pair]


def holds_secret(data, secret=SECRET):
    data = data if isinstance(data, bytes) else data.encode()
    return any(one.encode() in data for one in shown(secret))


def wire_bears(wire, which=-1):
    return holds_secret(wire.requests[which])


@pytest.mark.parametrize("kind", FIXED)
async def test_requests_to_the_service_bear_credentials_once(kind):
    async with open_wire(answer()) as wire:
        asker = exchange(wire.url, auth=FIXED[kind])
        for target in ("/x", "/x?a=1,2&b=%2F"):
            await asker.ask(Request(target=target), read_whole)
            assert wire_bears(wire)
            assert wire.targets[-1].startswith(target)
        await asker.aclose()
    head = wire.requests[-1].decode()
    expected = {
        "bearer": f"Authorization: Bearer {SECRET}",
        "token": f"Authorization: Token {SECRET}",
        "basic": "Authorization: Basic bWVAbGFiLmV4YW1wbGU6czNjcjN0LysmPSUkIHdvcmQ=",
        "header": f"X-Api-Key: {SECRET}",
        "query": "/x?a=1,2&b=%2F&api_key=s3cr3t%2F%2B%26%3D%25%24%20word ",
        "odd query": "/x?a=1,2&b=%2F&our-own=s3cr3t%2F%2B%26%3D%25%24%20word ",
    }[kind]
    assert head.count(expected) == 1


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_elsewhere_is_refused_and_gets_no_credentials(kind, status):
    async with open_wire(answer()) as other:
        for place in (other.url, other.url.replace("127.0.0.1", "localhost")):
            away = answer(
                status=f"{status} x", headers=f"Location: {place}/x?key={SECRET}\r\n"
            )
            async with open_wire(away) as wire:
                asker = exchange(wire.url, auth=FIXED[kind])
                with pytest.raises(ResponseError, match="got a redirect to") as caught:
                    await asker.ask(Request(target="/x"), read_whole)
                await asker.aclose()
            assert not holds_secret(str(caught.value))
        assert not other.requests


@pytest.mark.parametrize("kind", FIXED)
async def test_a_redirect_on_the_service_bears_credentials_once(kind):
    moved = answer(status="302 x", headers="Location: /new?api_key=old&n=1\r\n")
    async with open_wire(moved, answer()) as wire:
        asker = exchange(wire.url, auth=FIXED[kind])
        await asker.ask(Request(target="/x"), read_whole)
        await asker.aclose()
    assert wire_bears(wire, 1)
    assert wire.targets[1].count("api_key=") == 1


@pytest.mark.parametrize("status", [303, 307, 308])
async def test_what_is_posted_never_goes_elsewhere(status):
    async with (
        open_wire(answer()) as other,
        open_wire(
            answer(status=f"{status} x", headers=f"Location: {other.url}/\r\n")
        ) as wire,
    ):
        asker = exchange(wire.url)
        with pytest.raises(ResponseError, match="got a redirect to"):
            await asker.ask(
                Request(target="/x", method="POST", body='{"a": 1}'), read_whole
            )
        await asker.aclose()
        assert not other.requests
        assert len(wire.requests) == 1


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("status", ["401 x", "403 x", "404 x", "422 x", "200 x"])
async def test_no_error_event_or_cause_says_a_secret(kind, status):
    """The server tells everything that it was sent."""
    events = []

    def respond(head, _body):
        return answer(b"{" + head, status=status)

    async with open_wire() as wire:
        wire.respond = respond
        asker = exchange(wire.url, auth=FIXED[kind])
        with pytest.raises(asyncfetch.AsyncfetchError) as caught:
            await asker.ask(
                Request(target=f"/x?token={'T' * 9}"),
                lambda chunks, _: json.loads(b"".join(chunks)),
                observe=events.append,
            )
        await asker.aclose()
        assert wire_bears(wire)
    error = caught.value
    said = [
        str(error),
        repr(vars(error)),
        repr(events),
        "".join(traceback.format_exception(error)),
        repr(pickle.loads(pickle.dumps(error))),
        repr(asker.shown_url(Request(target=f"/x?q=1&token={'T' * 9}"))),
    ]
    for text in said:
        assert not holds_secret(text)
        assert "TTTTTTTTT" not in text
    assert "q=1&token=***" in said[-1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: token("one\r\nX-Evil: two"),
        lambda: token("bell\x07"),
        lambda: api_key(""),
        lambda: api_key("x", name="a\nb"),
        lambda: basic("with:colon", "secret-word"),
    ],
    ids=["line end", "control", "nothing", "name", "user"],
)
def test_credentials_that_no_header_can_hold_are_refused_and_not_said(make):
    with pytest.raises(ConfigurationError) as caught:
        make()
    for secret in ("X-Evil", "bell", "secret-word"):
        assert secret not in str(caught.value)


@given(st.text(min_size=4), st.text(), st.text())
def test_a_hidden_text_is_not_there(secret, before, after):
    said = hide(f"{before}{secret}{after}", [secret])
    # The replacement may make another of them, with what stands beside it.
    assert secret not in said or secret in f"{before}***{after}" or "*" in secret


@pytest.mark.parametrize(
    "name", ["api_key", "apikey", "key", "TOKEN", "X-Amz-Signature"]
)
def test_parameters_that_are_secrets_by_name_are_hidden_anywhere(name):
    assert hide(f"GET http://h/x?a=1&{name}=abc&b=2 failed") == (
        f"GET http://h/x?a=1&{name}=***&b=2 failed"
    )
    assert hide("/x?monkey=1&page_token=2") == "/x?monkey=1&page_token=2"


# Renewal ------------------------------------------------------------------------------

LOGIN = {"email": "me@lab.example", "password": SECRET}


class Office:
    """A service that gives out tokens, each good for *uses* requests."""

    def __init__(self, *, uses=10**9, status="401 x", login=None):
        self.uses = uses
        self.status = status
        self.login = login
        self.logins = 0
        self.served = 0
        self.used = {}

    def __call__(self, head, body):
        if head.startswith(b"POST /login "):
            self.logins += 1
            if self.login is not None:
                return self.login
            assert json.loads(body) == LOGIN
            assert b"Authorization" not in head
            made = {"access_token": f"token-{self.logins}-{SECRET}", "expires_in": 60}
            return answer(json.dumps(made).encode())
        bearer = f"Authorization: JWT token-{self.logins}-{SECRET}\r\n".encode()
        used = self.used.get(bearer, 0)
        if bearer not in head + b"\r\n" or used == self.uses:
            return answer(b'{"message": "Signature has expired"}', status=self.status)
        self.used[bearer] = used + 1
        self.served += 1
        return answer(b"[1]")


def login(**options):
    return TokenLogin("/login", LOGIN, scheme="JWT", **options)


async def ask_many(asker, count):
    failed = []

    async def one(number):
        try:
            await asker.ask(Request(target=f"/x/{number}"), read_whole)
        except AuthenticationError as error:
            failed.append(error)

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
    await asker.aclose()
    return failed


async def test_many_tasks_log_in_once():
    office = Office()
    async with open_wire() as wire:
        wire.respond = office
        assert not await ask_many(exchange(wire.url, auth=login()), 20)
    assert (office.logins, office.served) == (1, 20)
    assert len(wire.requests) == 21


async def test_an_expired_token_is_renewed_once_for_all():
    office = Office(uses=8)
    async with open_wire() as wire:
        wire.respond = office
        asker = exchange(wire.url, auth=login())
        assert not await ask_many(asker, 8)
        assert not await ask_many(asker, 8)
    assert (office.logins, office.served) == (2, 16)


async def test_a_service_may_refuse_with_another_status():
    def stale(status, body):
        return status == 403 and b"expired" in body

    office = Office(uses=1, status="403 x")
    async with open_wire() as wire:
        wire.respond = office
        asker = exchange(wire.url, auth=login(stale=stale))
        for _ in range(3):
            await asker.ask(Request(target="/x"), read_whole)
        await asker.aclose()
    assert (office.logins, office.served) == (3, 3)


async def test_a_new_token_that_is_refused_as_well_ends_it():
    office = Office(uses=0)
    async with open_wire() as wire:
        wire.respond = office
        (error,) = await ask_many(exchange(wire.url, auth=login()), 1)
    assert error.is_fatal
    assert "wants other credentials: 401" in str(error)
    assert office.logins == 2  # the first, and one renewal


@pytest.mark.parametrize(
    "no",
    [
        answer(b'{"non_field_errors": ["Unable to log in"]}', status="400 x"),
        answer(b'{"description": "Invalid credentials"}', status="401 x"),
        answer(b"<html>", status="404 x"),
        answer(b'{"token": "another member"}'),
        answer(b"<html>Welcome</html>"),
        answer(b'{"access_token": ""}'),
    ],
    ids=["400", "401", "404", "another member", "html", "empty"],
)
async def test_a_wrong_password_is_tried_once_and_ends_all(no):
    office = Office(login=no)
    async with open_wire() as wire:
        wire.respond = office
        asker = exchange(wire.url, auth=login())
        failed = await ask_many(asker, 20)
        assert len(failed) == 20
        assert all(error.is_fatal for error in failed)
        assert not holds_secret(repr([str(one) for one in failed]))
        assert office.logins == 1
        # The user may have set the password right at the service.
        office.login = None
        assert not await ask_many(asker, 1)


async def test_a_login_that_only_failed_is_tried_again():
    office = Office()
    async with open_wire() as wire:
        answers = [b"", answer(b"", status="503 x")]
        wire.respond = lambda head, body: (
            answers.pop(0) if answers else office(head, body)
        )
        assert not await ask_many(exchange(wire.url, auth=login()), 3)
    assert office.served == 3


async def test_who_is_cancelled_at_the_login_leaves_it_to_the_next():
    office = Office()
    async with open_wire() as wire:
        asker = exchange(wire.url, auth=login())

        async with anyio.create_task_group() as group:

            def respond(head, body):
                if len(wire.requests) == 1:
                    group.cancel_scope.cancel()
                return office(head, body)

            wire.respond = respond
            group.start_soon(asker.ask, Request(target="/x"), read_whole)
        await asker.ask(Request(target="/x"), read_whole)
        await asker.aclose()
    assert office.served == 1


async def test_the_password_goes_to_no_other_place():
    async with open_wire(answer(b'{"access_token": "abcdef"}')) as other:
        away = answer(status="307 x", headers=f"Location: {other.url}/login\r\n")
        async with open_wire(away) as wire:
            asker = exchange(wire.url, auth=login())
            with pytest.raises(
                AuthenticationError, match=r"gives no access: .* redirect"
            ):
                await asker.ask(Request(target="/x"), read_whole)
            await asker.aclose()
        assert not other.requests


# Whole runs ---------------------------------------------------------------------------


def files_with_secret(folder):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and (holds_secret(path.read_bytes()) or holds_secret(path.name))
    ]


@pytest.mark.parametrize("kind", FIXED)
async def test_a_run_leaves_its_secret_nowhere(kind, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    events = []
    async with testing.serve(scale=0.02) as archive:
        refuse = Fault(status=422, body=f"no to {SECRET}".encode())
        archive.script("dableFiles", [Fault.html(), refuse, Fault(status=500), refuse])
        async with asyncfetch.NeuroMorpho(
            base_url=archive.neuromorpho, auth=FIXED[kind]
        ) as api:
            api.exchange._rng = Impatient()
            plan = api.traces.plan(neuron_id=[1, 2, 3])
            report = await asyncfetch.download(
                plan, tmp_path / "d", observe=events.append
            )
            assert report.items["failed"] == 2
            # The archive, in this process too, logs what it was asked.
            logs = [one for one in caplog.records if one.name == "asyncfetch"]
            assert len(logs) > 5
            said = [repr(api), repr(plan), repr(report), repr(events)]
            said += [one.getMessage() for one in logs]
            with pytest.raises(asyncfetch.ItemError) as caught:
                report.raise_for_failed()
            said += [repr(caught.value), repr(pickle.loads(pickle.dumps(caught.value)))]
            with pytest.raises(NotFound) as caught:
                await api.neurons.get(10**6)
            said.append("".join(traceback.format_exception(caught.value)))
        if "query" in kind:
            assert holds_secret(archive.log[-1].target)
    for text in said:
        assert not holds_secret(text)
    assert not await anyio.to_thread.run_sync(files_with_secret, tmp_path)


COMMAND = """
import sys
from asyncfetch import _auth, _cli
from asyncfetch.services.neuromorpho import NeuroMorpho

class Known(NeuroMorpho):
    def __init__(self, **options):
        super().__init__(**options, auth={auth})

NeuroMorpho.from_env = classmethod(lambda cls, **options: Known(**options))
sys.exit(_cli.run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "auth",
    [
        f"_auth.token({SECRET!r})",
        f"_auth.api_key({SECRET!r}, name='api_key', place='query')",
        f"_auth.TokenLogin('/login', {{'user': 'me', 'password': {SECRET!r}}})",
    ],
    ids=["bearer", "query", "login"],
)
def test_a_command_with_debug_says_no_secret(auth, tmp_path, asyncfetch_archive):
    command = [sys.executable, "-c", COMMAND.format(auth=auth)]
    done = subprocess.run(
        [
            *(*command, "fetch", "neuromorpho/traces", "neuron_id=1,2", "--debug"),
            *("--base-url", asyncfetch_archive.neuromorpho, "-o", tmp_path / "d"),
        ],
        capture_output=True,
        check=False,
    )
    assert b"Traceback" in done.stderr or b"GET http" in done.stderr
    assert not holds_secret(done.stdout + done.stderr)
    assert not files_with_secret(tmp_path)
    assert done.returncode == (3 if "TokenLogin" in auth else 0)


@pytest.mark.parametrize(
    ("expires_in", "end"),
    [
        (1000, 700),
        ("900.5", 600.5),
        (60, 30),
        *((one, None) for one in (None, "soon", 0)),
    ],
)
def test_a_token_is_replaced_before_the_end_that_comes_with_it(expires_in, end):
    now = 0
    auth = TokenLogin("/login", LOGIN, clock=lambda: now)
    steps = auth.renew()
    next(steps)
    answered = {"access_token": "opaque", "expires_in": expires_in}
    with pytest.raises(StopIteration):
        steps.send(Reply(status=200, body=json.dumps(answered).encode()))
    now = (end or 1e9) - 1
    assert auth.credentials is not None
    now += 1
    assert (auth.credentials is None) == (end is not None)

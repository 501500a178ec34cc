"""Small answers that are decoded together."""

import threading

import anyio
import pytest

from asyncfetch._model import Decoded, Item, Request
from asyncfetch._together import ENOUGH, MOST, Together
from asyncfetch.errors import DecodeError

pytestmark = pytest.mark.anyio

ITEM = Item(key="x", request=Request(target="/x"))


class Decoder:
    """Gives what it got as detail; notes what came together, and what came alone."""

    def __init__(self):
        self.groups, self.lonely, self.threads = [], [], []

    def __call__(self, bodies):
        assert threading.current_thread() is not threading.main_thread()
        self.groups.append([body for _, body in bodies])
        if any(body == b"unforeseen" for _, body in bodies):
            raise ZeroDivisionError
        return [
            None if body == b"broken" else Decoded(detail={"body": body})
            for _, body in bodies
        ]

    def alone(self, body):
        assert threading.current_thread() is not threading.main_thread()
        self.lonely.append(body)
        if body == b"broken":
            raise DecodeError("broken", code="x", path="$")
        if body == b"unforeseen":
            raise ZeroDivisionError
        return Decoded(detail={"body": body})

    def together(self, under_way=1000):
        return Together(self, lambda: under_way)

    async def ask(self, together, body):
        return await together.decode(ITEM, body, lambda: self.alone(body))


async def test_a_full_group_is_decoded_at_once_and_each_gets_its_own():
    decoder, found = Decoder(), {}
    together = decoder.together()

    async def ask(body):
        found[body] = (await decoder.ask(together, body)).detail["body"]

    bodies = [b"%d" % n for n in range(2 * MOST)]
    async with anyio.create_task_group() as group:
        for body in bodies:
            group.start_soon(ask, body)
    assert found == {body: body for body in bodies}
    assert decoder.groups == [bodies[:MOST], bodies[MOST:]]
    assert not decoder.lonely


async def test_a_group_with_enough_bytes_waits_for_nobody(monkeypatch):
    monkeypatch.setattr("asyncfetch._together.LINGER", 3600)
    decoder = Decoder()
    together = decoder.together()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(decoder.ask, together, bytes(ENOUGH // 2))
    assert [len(group) for group in decoder.groups] == [2, 2]


async def test_the_only_one_waits_for_nobody(monkeypatch):
    monkeypatch.setattr("asyncfetch._together.LINGER", 3600)
    decoder = Decoder()
    with anyio.fail_after(60):
        found = await decoder.ask(decoder.together(1), b"x")
    assert found.detail == {"body": b"x"}


async def test_who_waits_in_vain_is_decoded_after_a_moment():
    decoder = Decoder()
    with anyio.fail_after(60):
        found = await decoder.ask(decoder.together(5), b"x")
    assert found.detail == {"body": b"x"}


@pytest.mark.parametrize("odd", [b"broken", b"unforeseen"])
@pytest.mark.parametrize("place", range(3))
async def test_a_body_that_cannot_be_decoded_harms_no_other(odd, place):
    decoder, found, failed = Decoder(), [], []
    together = decoder.together(3)

    async def ask(body):
        try:
            found.append((await decoder.ask(together, body)).detail["body"])
        except (DecodeError, ZeroDivisionError):
            failed.append(body)

    bodies = [b"a", b"b", b"c"]
    bodies[place] = odd
    async with anyio.create_task_group() as group:
        for body in bodies:
            group.start_soon(ask, body)
    assert failed == [odd]
    assert sorted([*found, odd]) == sorted(bodies)
    # What can be decoded quickly is not decoded again for the sake of another.
    assert decoder.lonely == [odd] if odd == b"broken" else len(decoder.lonely) == 3


@pytest.mark.parametrize("place", range(3))
async def test_others_are_decoded_when_one_is_cancelled(monkeypatch, place):
    monkeypatch.setattr("asyncfetch._together.LINGER", 3600)
    decoder, found = Decoder(), []
    together = decoder.together()
    scopes = [anyio.CancelScope() for _ in range(3)]

    async def ask(number):
        with scopes[number]:
            await decoder.ask(together, b"%d" % number)
            found.append(number)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(ask, number)
            await anyio.wait_all_tasks_blocked()
            scopes[place].cancel()
            if place:  # else its leader is gone, and the others go on alone
                await anyio.wait_all_tasks_blocked()
                for number in range(MOST - 3):
                    group.start_soon(decoder.ask, together, b"more %d" % number)
    assert sorted(found) == [n for n in range(3) if n != place]

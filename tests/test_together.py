"""Small answers that are decoded together."""

import threading

import anyio
import pytest

from asyncfetch._model import Decoded, Item, Request
from asyncfetch._together import MOST, Together
from asyncfetch.errors import DecodeError

pytestmark = pytest.mark.anyio

ITEM = Item(key="x", request=Request(target="/x"))


class Decoder:
    """Gives what it got as detail; notes what came together."""

    def __init__(self):
        self.groups = []

    def __call__(self, bodies):
        self.groups.append([body for _, body in bodies])
        if any(body == b"unforeseen" for _, body in bodies):
            raise ZeroDivisionError
        return [
            DecodeError("broken", code="x", path="$")
            if body == b"broken"
            else Decoded(detail={"body": body})
            for _, body in bodies
        ]


async def test_a_full_group_is_decoded_at_once_and_each_gets_its_own():
    decoder, found = Decoder(), {}
    together = Together(decoder, lambda: 1000)

    async def ask(body):
        found[body] = (await together.decode(ITEM, body)).detail["body"]

    bodies = [b"%d" % n for n in range(2 * MOST)]
    async with anyio.create_task_group() as group:
        for body in bodies:
            group.start_soon(ask, body)
    assert found == {body: body for body in bodies}
    assert decoder.groups == [bodies[:MOST], bodies[MOST:]]


@pytest.mark.parametrize("size", [10, 1 << 19])
async def test_only_large_groups_go_to_a_thread(size):
    threads = []

    def decode(bodies):
        threads.append(threading.current_thread())
        return [Decoded() for _ in bodies]

    together = Together(decode, lambda: 2)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(together.decode, ITEM, bytes(size))
    (thread,) = threads
    assert (thread is threading.main_thread()) == (size == 10)


async def test_the_only_one_waits_for_nobody(monkeypatch):
    monkeypatch.setattr("asyncfetch._together.LINGER", 3600)
    with anyio.fail_after(60):
        found = await Together(Decoder(), lambda: 1).decode(ITEM, b"x")
    assert found.detail == {"body": b"x"}


async def test_who_waits_in_vain_is_decoded_after_a_moment():
    with anyio.fail_after(60):
        found = await Together(Decoder(), lambda: 5).decode(ITEM, b"x")
    assert found.detail == {"body": b"x"}


@pytest.mark.parametrize("odd", [b"broken", b"unforeseen"])
@pytest.mark.parametrize("place", range(3))
async def test_a_body_that_cannot_be_decoded_harms_no_other(odd, place):
    decoder, found, failed = Decoder(), [], []
    together = Together(decoder, lambda: 3)

    async def ask(body):
        try:
            found.append((await together.decode(ITEM, body)).detail["body"])
        except (DecodeError, ZeroDivisionError):
            failed.append(body)

    bodies = [b"a", b"b", b"c"]
    bodies[place] = odd
    async with anyio.create_task_group() as group:
        for body in bodies:
            group.start_soon(ask, body)
    assert failed == [odd]
    assert sorted([*found, odd]) == sorted(bodies)


@pytest.mark.parametrize("place", range(3))
async def test_others_are_decoded_when_one_is_cancelled(monkeypatch, place):
    monkeypatch.setattr("asyncfetch._together.LINGER", 3600)
    decoder, found = Decoder(), []
    together = Together(decoder, lambda: 1000)
    scopes = [anyio.CancelScope() for _ in range(3)]

    async def ask(number):
        with scopes[number]:
            await together.decode(ITEM, b"%d" % number)
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
                    group.start_soon(together.decode, ITEM, b"more %d" % number)
    assert sorted(found) == [n for n in range(3) if n != place]

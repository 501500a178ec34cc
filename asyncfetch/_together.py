"""Decoding small answers together, where that costs less than one by one.

Whoever comes first waits a moment for others and decodes for all. Nobody holds a slot
of the host meanwhile: only its own place among those that may have an answer in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import anyio

from asyncfetch._model import Decoded, Item
from asyncfetch._threads import in_thread
from asyncfetch.errors import AsyncfetchError

# What a call costs besides is small in so many.
MOST = 16
# Bytes that are decoded in the event loop, some 7 ms of traces: with a hop to a thread
# for each group, a download took a tenth more processor time.
INLINE = 512 << 10
# Seconds: about one round trip to a server next door, so that a full set of
# connections can answer meanwhile.
LINGER = 0.02

DecodeMany = Callable[[list[tuple[Item, bytes]]], list[Decoded | AsyncfetchError]]


@dataclass(slots=True)
class _Group:
    bodies: list[tuple[Item, bytes]] = field(default_factory=list)
    found: list[Decoded | AsyncfetchError] | None = None
    is_full: anyio.Event = field(default_factory=anyio.Event)
    is_done: anyio.Event = field(default_factory=anyio.Event)


class Together:
    """Collects answers until there are enough, or until nobody else can come.

    Parameters
    ----------
    decode_many
        Gives one result for each body, in their order; called in the event loop for
        small groups, else in a thread.
    under_way
        How many items may still bring an answer, those that wait here included.
    """

    def __init__(self, decode_many: DecodeMany, under_way: Callable[[], int]) -> None:
        self._decode_many = decode_many
        self._under_way = under_way
        self._open: _Group | None = None

    async def decode(self, item: Item, body: bytes) -> Decoded:
        """What *body* comes to, after a moment of waiting for others.

        Raises
        ------
        AsyncfetchError
            It cannot be decoded.
        """
        group = self._open
        is_first = group is None
        if group is None:
            group = self._open = _Group()
        place = len(group.bodies)
        group.bodies.append((item, body))
        if len(group.bodies) >= min(MOST, self._under_way()):
            self._close(group)
        if is_first:
            await self._lead(group)
        else:
            await group.is_done.wait()
        if group.found is not None:
            one = group.found[place]
        else:  # whoever led was cancelled, or met something unforeseen in one body
            (one,) = await in_thread(partial(self._decode_many, [(item, body)]))
        if isinstance(one, AsyncfetchError):
            raise one
        return one

    def _close(self, group: _Group) -> None:
        if self._open is group:
            self._open = None
        group.is_full.set()

    async def _lead(self, group: _Group) -> None:
        try:
            with anyio.move_on_after(LINGER):
                await group.is_full.wait()
            self._close(group)
            # What nobody foresaw in one body shows when each is decoded alone.
            with suppress(Exception):
                if sum(len(body) for _, body in group.bodies) <= INLINE:
                    group.found = self._decode_many(group.bodies)
                else:
                    group.found = await in_thread(
                        partial(self._decode_many, group.bodies)
                    )
        finally:
            self._close(group)
            group.is_done.set()

"""Decoding small answers together, where that costs less than one by one.

Whoever comes first waits a moment for others and decodes for all. Nobody holds a slot
of the host meanwhile: only its own place among those that may have an answer in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from asyncfetch._model import Decoded, Item
from asyncfetch._threads import give_back, in_decode_thread

# What a call costs besides is small in so many.
MOST = 16
# Bytes after which nobody else is waited for.
ENOUGH = 512 << 10
# Seconds: about one round trip to a server next door, so that a full set of
# connections can answer meanwhile.
LINGER = 0.02

logger = logging.getLogger("asyncfetch")


@dataclass(slots=True)
class _Group:
    bodies: list[tuple[Item, bytes]] = field(default_factory=list)
    size: int = 0
    found: list[Decoded | None] | None = None
    is_full: anyio.Event = field(default_factory=anyio.Event)
    is_done: anyio.Event = field(default_factory=anyio.Event)


class Together:
    """Collects answers until there are enough, or until nobody else can come.

    Parameters
    ----------
    decode_many
        Gives one result for each body, in their order, or None for one that is to be
        decoded by itself. Called in a thread.
    under_way
        How many items may still bring an answer, those that wait here included.
    """

    def __init__(
        self,
        decode_many: Callable[[list[tuple[Item, bytes]]], list[Decoded | None]],
        under_way: Callable[[], int],
    ) -> None:
        self._decode_many = decode_many
        self._under_way = under_way
        self._open: _Group | None = None

    async def decode(
        self, item: Item, body: bytes, alone: Callable[[], Decoded]
    ) -> Decoded:
        """What *body* comes to, after a moment of waiting for others.

        *alone* decodes it by itself; called in a thread.

        Raises
        ------
        Exception
            Whatever decoding it alone raises.
        """
        group = self._open
        is_first = group is None
        if group is None:
            group = self._open = _Group()
        place = len(group.bodies)
        group.bodies.append((item, body))
        group.size += len(body)
        if len(group.bodies) >= min(MOST, self._under_way()) or group.size >= ENOUGH:
            self._close(group)
        if is_first:
            await self._lead(group)
        else:
            await group.is_done.wait()
        # Nothing was found if whoever led was cancelled.
        one = None if group.found is None else group.found[place]
        if one is None:
            one = await in_decode_thread(alone)
        return one

    def _close(self, group: _Group) -> None:
        if self._open is group:
            self._open = None
        group.is_full.set()

    def _found(self, group: _Group) -> list[Decoded | None]:
        try:
            return self._decode_many(group.bodies)
        finally:
            give_back()  # small bodies leave the most behind

    async def _lead(self, group: _Group) -> None:
        try:
            with anyio.move_on_after(LINGER):
                await group.is_full.wait()
            self._close(group)
            group.found = await in_decode_thread(lambda: self._found(group))
        except Exception:  # it shows when each is decoded alone
            logger.debug("a group could not be decoded together", exc_info=True)
        finally:
            self._close(group)
            group.is_done.set()

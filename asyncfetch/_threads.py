"""Blocking calls in threads, never left alone.

A cancel scope of anyio waits for the thread. A cancellation that comes from elsewhere
(``asyncio.timeout``, ``task.cancel()``) does not: the thread would go on writing while
its caller already cleans up. Here either the call has not begun and never will, or
the cancelled caller waits for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
import pyarrow as pa
from anyio.lowlevel import RunVar

T = TypeVar("T")

# Seconds between two times of giving memory back, which takes some milliseconds, and
# makes whatever comes next fetch it anew: a sixth of the time of large bodies.
GIVE_BACK = 1.0


@dataclass(slots=True)
class _Decoding:
    """What the calls of one event loop share."""

    limiter: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(1)
    )
    gave_back: float = field(default_factory=time.monotonic)
    """When memory was last given back."""

    def run(self, call: Callable[[], T]) -> T:
        try:
            return call()
        finally:
            if (now := time.monotonic()) - self.gave_back > GIVE_BACK:
                self.gave_back = now
                give_back()


_decoding: RunVar[_Decoding] = RunVar("_decoding")


def give_back() -> None:
    """Let the allocator have what it keeps for this thread and others have freed.

    Of small bodies 52 MB were held when no more than 12 MB had ever been in use. The
    system's allocator gives large pieces back by itself, and would take a walk through
    all that it has.
    """
    pool = pa.default_memory_pool()
    if pool.backend_name != "system":
        pool.release_unused()


async def in_thread(
    call: Callable[[], T], *, limiter: anyio.CapacityLimiter | None = None
) -> T:
    """What *call* gives, run in a thread.

    Cancelled, it returns when the thread has ended, or before it has begun. What the
    call gave is lost then, so a call that opens something keeps it where the caller
    can close it.
    """
    inside = _Call(call)
    try:
        return await anyio.to_thread.run_sync(inside.run, limiter=limiter)
    except asyncio.CancelledError:
        await inside.ended()
        raise


async def in_decode_thread(call: Callable[[], T]) -> T:
    """What *call* gives, run when no other such call runs in this event loop.

    A thread for each body doubled the processor time.
    """
    decoding = _decoding.get(None)
    if decoding is None:
        decoding = _Decoding()
        _decoding.set(decoding)
    return await in_thread(partial(decoding.run, call), limiter=decoding.limiter)


async def surely_in_thread(call: Callable[[], T]) -> T:
    """What *call* gives, run in a thread whatever is cancelled meanwhile.

    For what cleans up and must not be left out. A cancellation is raised afterwards.
    """
    cancelled: asyncio.CancelledError | None = None
    while True:
        inside = _Call(call)
        try:
            with anyio.CancelScope(shield=True):
                value = await anyio.to_thread.run_sync(inside.run)
        except asyncio.CancelledError as error:
            await inside.ended()
            cancelled = error
            if not inside.has_begun:
                continue
        if cancelled is not None:
            raise cancelled
        return value


class _Call(Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._guard = threading.Lock()
        self._is_off = False
        self.has_begun = False
        self._is_running = False
        self._report: Callable[[], object] | None = None

    def run(self) -> T:
        with self._guard:
            if self._is_off:
                raise asyncio.CancelledError  # nobody waits for it
            self.has_begun = self._is_running = True
        try:
            return self._call()
        finally:
            with self._guard:
                self._is_running = False
                if self._report is not None:
                    self._report()

    async def ended(self) -> None:
        """Wait until the call has ended; one that has not begun never will."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        with self._guard:
            self._is_off = True
            if not self._is_running:
                return
            self._report = lambda: loop.call_soon_threadsafe(done.set)
        while not done.is_set():  # whoever cancels twice waits all the same
            with (
                anyio.CancelScope(shield=True),
                contextlib.suppress(asyncio.CancelledError),
            ):
                await done.wait()

"""The embedded archive: a server on loopback that plays the services.

It speaks HTTP/1.1 on a real socket and serves made-up data that depend on nothing but
a seed and a scale, with the quirks of the real services: unordered tables, capped
pages, limits on the length of a URL, NaN literals, numbers as text, HTML under a 200.
The names and ids of the services' own tutorials exist at every scale. On demand it
misbehaves.

::

    async with asyncfetch.testing.serve(faults="error=0.02,seed=7") as archive:
        async with asyncfetch.Neuroscout(base_url=archive.neuroscout) as api:
            ...
        assert {entry.status for entry in archive.log} == {200, 502}

pytest finds the fixture ``asyncfetch_archive`` by itself, once asyncfetch is installed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from anyio.from_thread import start_blocking_portal

from asyncfetch.testing._faults import Fault
from asyncfetch.testing._server import Archive, LogEntry, serve
from asyncfetch.testing._truth import Truth

__all__ = [
    "Archive",
    "Fault",
    "LogEntry",
    "Truth",
    "run",
    "serve",
    "serve_in_thread",
]


@contextmanager
def serve_in_thread(
    *,
    seed: int = 0,
    scale: float = 1.0,
    latency: float = 0.0,
    faults: str = "",
    port: int = 0,
    log: str | Path | None = None,
) -> Iterator[Archive]:
    """`serve`, for code that blocks or has a loop of its own: it runs in a thread."""
    serving = serve(
        seed=seed, scale=scale, latency=latency, faults=faults, port=port, log=log
    )
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(serving) as archive,
        archive.read_through(portal),
    ):
        yield archive


async def run(
    *,
    port: int,
    seed: int,
    scale: float,
    latency: float,
    faults: str,
    log: str | Path | None,
    on_ready: Callable[[Archive], None],
) -> None:
    """Serve until cancelled, or until SIGTERM or SIGINT comes.

    *on_ready* is called once, when the first request can be answered.
    """
    async with serve(
        seed=seed, scale=scale, latency=latency, faults=faults, port=port, log=log
    ) as archive:
        if sys.platform == "win32":  # asyncio has no signal receiver there
            on_ready(archive)
            await anyio.sleep_forever()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            on_ready(archive)
            async for _ in signals:
                break

"""Event loops to run on, and a server that says exactly the bytes it is told."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import pytest
from anyio.abc import SocketStream
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

# What is heavy is imported here and not, at first use, inside an event loop.
from asyncfetch import _gate, _profile
from asyncfetch.services import neuromorpho, neuroscout  # noqa: F401


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


T = TypeVar("T")

LOOPS = [pytest.param(("asyncio", {}), id="asyncio")]
if sys.version_info >= (3, 12):
    LOOPS.append(
        pytest.param(("asyncio", {"loop_factory": _eager_loop}), id="eager tasks")
    )
if sys.platform != "win32":
    LOOPS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))


# A property holds or not; how long an example takes on a busy machine is no matter.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    # Only our own code is watched: servers and pytest run in the same process.
    with blockbuster_ctx("asyncfetch", excluded_modules=["asyncfetch.testing"]):
        yield


@pytest.fixture(autouse=True)
def _gates_are_new() -> Iterator[None]:
    # A port that the kernel hands out again is another server, not a paused one.
    yield
    _gate._gates.clear()
    _profile._profiles.clear()


class Impatient(random.Random):
    """Waits are drawn from it: it draws the shortest."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return 0.0


async def look(call: Callable[..., T], *arguments: object) -> T:
    """What *call* gives, in a thread: reading a dataset blocks."""
    return await anyio.to_thread.run_sync(call, *arguments)


@dataclass
class Wire:
    """A raw HTTP server: each request meets the next answer, the last one for ever."""

    url: str
    answers: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    reset: bool = False

    @property
    def targets(self) -> list[str]:
        return [one.split(b" ")[1].decode() for one in self.requests]

    def header(self, name: str, which: int = -1) -> str | None:
        for line in self.requests[which].split(b"\r\n"):
            if line.lower().startswith(name.lower().encode() + b":"):
                return line.partition(b":")[2].strip().decode()
        return None


def answer(
    body: bytes = b"[]",
    *,
    status: str = "200 OK",
    headers: str = "",
    length: int | None = -1,
) -> bytes:
    """Bytes of a response; *length* None sends no Content-Length."""
    head = f"HTTP/1.1 {status}\r\n{headers}"
    if length is not None:
        head += f"Content-Length: {len(body) if length == -1 else length}\r\n"
    else:
        head += "Connection: close\r\n"
    return head.encode() + b"\r\n" + body


def chunked(body: bytes, *, ended: bool = True, headers: str = "") -> bytes:
    pieces = [body[n : n + 7] for n in range(0, len(body), 7)]
    text = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces)
    end = b"0\r\n\r\n" if ended else b""
    head = f"HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + text + end


@asynccontextmanager
async def open_wire(*answers: bytes) -> AsyncIterator[Wire]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    wire = Wire(f"http://127.0.0.1:{port}", list(answers))

    async def serve(stream: SocketStream) -> None:
        async with stream:
            seen = b""
            while True:
                while b"\r\n\r\n" not in seen:
                    try:
                        seen += await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return
                head, _, seen = seen.partition(b"\r\n\r\n")
                wire.requests.append(head)
                out = wire.answers.pop(0) if len(wire.answers) > 1 else wire.answers[0]
                if out:
                    await stream.send(out)
                # One answer a connection, unless it says how long it is.
                if b"Content-Length" not in out or b"cut" in out:
                    return

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield wire
        group.cancel_scope.cancel()

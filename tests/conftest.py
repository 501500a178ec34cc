"""Event loops to run on, and a server that says exactly the bytes it is told."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from anyio.abc import ByteStream, Listener
from anyio.streams.tls import TLSListener
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

# What is heavy is imported here and not, at first use, inside an event loop.
import asyncfetch
from asyncfetch import _gate, _profile, testing
from asyncfetch._exchange import Exchange
from asyncfetch._model import Limits
from asyncfetch.services import (  # noqa: F401
    alyx,
    neuromorpho,
    neuroscout,
    neurovault,
    rest,
)

from ._buckets import dest, environment, road, service  # noqa: F401 - fixtures

# The benchmarks are no part of the package. Last, so that the installed one is tested.
sys.path.append(str(Path(__file__).parents[1]))


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


@pytest.fixture
async def archive() -> AsyncIterator[testing.Archive]:
    """A small one, for tests that ask for no other."""
    async with testing.serve(scale=0.05) as archive:
        yield archive


@pytest.fixture
async def api(archive: testing.Archive) -> AsyncIterator[asyncfetch.Neuroscout]:
    """Nobody's client of its Neuroscout."""
    async with asyncfetch.Neuroscout(base_url=archive.neuroscout) as api:
        yield api


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    # Only our own code is watched: servers and pytest run in the same process.
    with blockbuster_ctx("asyncfetch", excluded_modules=["asyncfetch.testing"]):
        yield


@pytest.fixture(autouse=True)
def _nothing_is_remembered_at_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path_factory.mktemp("cache", numbered=True)
    monkeypatch.setenv(_profile.DIRECTORY, str(directory))


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
    """A raw HTTP server: each request meets the next answer, the last one for ever.

    An answer may be a function of the request's head.
    """

    url: str
    answers: list[bytes | Callable[[bytes], bytes]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    respond: Callable[[bytes, bytes], bytes] | None = None
    """From head and body to the answer, in place of the answers."""
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
async def open_wire(
    *answers: bytes | Callable[[bytes], bytes], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Wire]:
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = tcp.extra(anyio.abc.SocketAttribute.local_port)
    scheme = "http" if tls is None else "https"
    wire = Wire(f"{scheme}://127.0.0.1:{port}", list(answers))
    listener: Listener[Any] = (
        tcp if tls is None else TLSListener(tcp, tls, standard_compatible=False)
    )

    async def serve(stream: ByteStream) -> None:
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
                length = int(wire.header("Content-Length") or 0)
                while len(seen) < length:
                    seen += await stream.receive()
                body, seen = seen[:length], seen[length:]
                wire.bodies.append(body)
                if wire.respond is not None:
                    out = wire.respond(head, body)
                else:
                    several = len(wire.answers) > 1
                    given = wire.answers.pop(0) if several else wire.answers[0]
                    out = given(head) if callable(given) else given
                if out:
                    await stream.send(out)
                # One answer a connection, unless it says how long it is.
                if b"Content-Length" not in out or b"cut" in out:
                    return

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield wire
        group.cancel_scope.cancel()


def read_whole(chunks: Iterator[bytes], _response: object) -> bytes:
    return b"".join(chunks)


def exchange(url: str, **options: object) -> Exchange:
    """An exchange that does not wait between attempts."""
    options = {"default": Limits(), "limits": Limits(), "rng": Impatient(), **options}
    made = Exchange(url, **options)  # type: ignore[arg-type]
    made.gate._rng = Impatient()
    return made


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        default=int(os.environ.get("ASYNCFETCH_TEST_SEED", "1")),
        help="seed of the faults and of the instants that tests draw",
    )
    parser.addoption(
        "--rounds",
        type=int,
        default=0,
        help="how many seeds to draw, from --seed on; 0: one, and no slow faults",
    )
    parser.addoption(
        "--every-step",
        action="store_true",
        help="cancel at every step of a call, not at some of them",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "drawn_seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--seed")
        rounds = metafunc.config.getoption("--rounds")
        metafunc.parametrize("drawn_seed", range(first, first + max(1, rounds)))

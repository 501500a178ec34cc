"""The archive's server: it finds the service, keeps answers, and puts them on the wire.

Services say what the answer is and know no sockets. Faults say what becomes of it. The
server keeps whole answers, as production's own cache does: a body of 200 000 rows is
made once, in a thread, and then costs no more than the bytes that are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import struct
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread
from aiohttp import web
from anyio.from_thread import BlockingPortal

from asyncfetch.testing._alyx import AlyxFiles, AlyxService
from asyncfetch.testing._answer import Answer, Call, Framing, Service
from asyncfetch.testing._faults import Fault, FaultPlan, parse_faults
from asyncfetch.testing._neuromorpho import NeuroMorphoService
from asyncfetch.testing._neuroscout import NeuroscoutService
from asyncfetch.testing._neuroscout_users import ACCOUNTS, PASSWORD
from asyncfetch.testing._neurovault import (
    SITE,
    NeuroVaultFiles,
    NeuroVaultService,
)
from asyncfetch.testing._ranges import conditional
from asyncfetch.testing._truth import Truth

# Bounds the memory of a long simulation: about 8 000 traces, or 100 large bodies.
_MAX_KEPT_BYTES = 256 * 2**20
# Beside its body, a kept answer takes the call, its headers and places in tables.
_KEEPING = 2048
# One write: large enough for throughput, small enough to feel a slow reader.
_PIECE = 256 * 2**10
# Far above what any service takes: theirs are the limits that a client should meet.
_MAX_LINE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One request that came over the wire, noted when it had ended or died."""

    t: float
    """Seconds from the start of the archive to the arrival of the request."""
    method: str
    """The HTTP method."""
    target: str
    """Path and query exactly as on the wire."""
    status: int
    """The status sent; 0 when the connection was reset, by either side."""
    bytes: int
    """Bytes of the body as sent, without head and chunk marks."""
    user_agent: str
    """The client's ``User-Agent``, or an empty text."""


class Archive:
    """A running archive.

    Attributes
    ----------
    url
        The server, without a final slash.
    neuroscout, neuromorpho, alyx, neurovault
        Base URLs, in the form that the clients take them.
    account
        E-mail address and password of a user of Neuroscout.
    truth
        What the archive holds, without HTTP.
    neuromorpho_is_away
        Set it, and NeuroMorpho answers 404 to everything, and its health is DOWN.
    """

    def __init__(
        self,
        services: Sequence[Service],
        truth: Truth,
        *,
        latency: float,
        faults: FaultPlan,
        log: BinaryIO | None,
    ) -> None:
        self.url = ""  # known once the kernel has chosen a port
        self.truth = truth
        self.account = (ACCOUNTS[0].email, PASSWORD)
        self._services = services
        self._latency = latency
        self._faults = faults
        self._started = time.monotonic()
        self._first_request: float | None = None
        self._window: tuple[float, int] = (-math.inf, 0)
        self._asked: Counter[str] = Counter()
        self._scripts: list[tuple[str, deque[Fault]]] = []
        self._kept = _Kept(_MAX_KEPT_BYTES)
        # As many as Neuroscout has workers; more would only fight for the interpreter.
        self._workers = anyio.CapacityLimiter(2)
        self.neuromorpho_is_away = False
        self._log: list[LogEntry] = []
        self._log_file = log
        # Set while the archive runs in a thread of its own.
        self._portal: BlockingPortal | None = None

    @property
    def neuroscout(self) -> str:
        """Base URL of Neuroscout's API."""
        return f"{self.url}/neuroscout/api"

    @property
    def neuromorpho(self) -> str:
        """Base URL of NeuroMorpho.Org; ``/api`` and ``/dableFiles`` lie below it."""
        return f"{self.url}/neuromorpho"

    @property
    def alyx(self) -> str:
        """Base URL of Alyx."""
        return f"{self.url}/alyx"

    @property
    def log(self) -> Sequence[LogEntry]:
        """One entry per wire request that has ended, in the order of their ends."""
        if self._portal is not None:
            # Asked in the server's own thread: there the entry of an answer always
            # comes before its last byte can have been read.
            return self._portal.call(lambda: tuple(self._log))
        return tuple(self._log)

    @property
    def neurovault(self) -> str:
        """Base URL of NeuroVault's API."""
        return f"{self.url}{NeuroVaultService.prefix}"

    @property
    def neurovault_site(self) -> str:
        """Where NeuroVault's files are, those of Neuroscout's analyses included."""
        return f"{self.url}{SITE}"

    def environment(self) -> dict[str, str]:
        """Environment variables that lead every client to this archive."""
        urls = {
            name: self.url + path
            for service in self._services
            for name, path in service.environment.items()
        }
        for service in self._services:
            if isinstance(service, AlyxService):
                urls |= service.credentials
        return urls

    def reset_tokens(self) -> None:
        """Let Alyx forget every token that it gave out, as it does at releases."""
        for service in self._services:
            if isinstance(service, AlyxService):
                service.reset_tokens()

    def script(self, target: str, faults: Iterable[Fault]) -> None:
        """Let the next requests whose target contains *target* meet *faults* in turn.

        A scripted fault goes before a drawn one. ``Fault()`` lets a request through.
        """
        self._scripts.append((target, deque(faults)))

    def pass_time(self, seconds: float) -> None:
        """Let Neuroscout's tokens grow older by so much; a week is their life."""
        for service in self._services:
            if isinstance(service, NeuroscoutService):
                service.users.passed += seconds

    def withdraw(self, *neuron_ids: int) -> None:
        """Take just these neurons out of NeuroMorpho's index; without any, none."""
        for service in self._services:
            if isinstance(service, NeuroMorphoService):
                service.withdrawn = set(neuron_ids)
        self._kept = _Kept(_MAX_KEPT_BYTES)

    @contextlib.contextmanager
    def read_through(self, portal: BlockingPortal) -> Iterator[None]:
        """Read the log in the thread of *portal* for as long as the block lasts."""
        self._portal = portal
        try:
            yield
        finally:
            self._portal = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request and note it."""
        arrived = time.monotonic() - self._started
        wire = _Wire(request)
        try:
            await self._respond(request, wire, arrived)
        except ConnectionError:  # the client has gone
            wire.status = 0
        except BaseException:
            wire.status = 0
            raise
        finally:
            self._note(
                LogEntry(
                    t=round(arrived, 6),
                    method=request.method,
                    target=request.raw_path,
                    status=wire.status,
                    bytes=wire.sent,
                    user_agent=request.headers.get("User-Agent", ""),
                )
            )
        # aiohttp wants a response even where the connection is gone; it is not sent.
        return wire.response or web.Response()

    def _note(self, entry: LogEntry) -> None:
        self._log.append(entry)
        if self._log_file is not None:
            # Unbuffered: a line is with the kernel before the next one is written,
            # so that the log survives a SIGKILL.
            self._log_file.write(json.dumps(asdict(entry)).encode() + b"\n")

    async def _respond(
        self, request: web.BaseRequest, wire: _Wire, arrived: float
    ) -> None:
        target = request.raw_path
        if self._first_request is None:
            self._first_request = arrived
        nth = self._asked[target]
        self._asked[target] += 1
        fault = self._scripted(target)
        limit: Mapping[str, str] = {}
        if fault is None:
            fault, limit = self._timed(arrived, target)
            fault = fault or self._faults.draw(target, nth) or Fault()
        if limit:
            fault = replace(fault, headers={**limit, **fault.headers})
        delay = self._latency + self._faults.delay(target, nth) + fault.delay
        if delay:
            await anyio.sleep(delay)
        if fault.ending == "reset" and fault.after is None:
            wire.reset()
            return
        answer = conditional(await self._answer(request), request.headers)
        await wire.send(answer, fault)

    def _scripted(self, target: str) -> Fault | None:
        for part, faults in self._scripts:
            if faults and part in target:
                return faults.popleft()
        return None

    def _timed(self, now: float, target: str) -> tuple[Fault | None, Mapping[str, str]]:
        """What the clock decides, an outage or a request too many; limit headers."""
        plan = self._faults
        assert self._first_request is not None
        if plan.outage is not None:
            start, length = plan.outage
            if start <= now - self._first_request < start + length:
                return Fault.reset(), {}
        service = self._service_of(target)
        own = service if isinstance(service, AlyxService) else None
        if plan.throttle is None or (own and not own.is_throttled(target)):
            return None, {}
        opened, count = self._window
        if now >= opened + plan.throttle.seconds:
            # Kong's windows are those of the calendar; others begin at a request.
            is_calendar = plan.throttle.limit_headers == "kong"
            gone = time.time() % plan.throttle.seconds if is_calendar else 0.0
            opened, count = now - gone, 0
        self._window = (opened, count + 1)
        wait = opened + plan.throttle.seconds - now
        headers = plan.throttle.headers(count + 1, wait)
        if count >= plan.throttle.count:
            refusal = plan.throttle.refusal(wait)
            if own:
                answer = own.throttled(target, wait)
                said = {**answer.headers, "Retry-After": refusal.headers["Retry-After"]}
                refusal = replace(refusal, headers=said, body=answer.body)
            return refusal, headers
        return None, headers

    def _service_of(self, target: str) -> Service | None:
        path = target.partition("?")[0]
        for service in self._services:
            if path.startswith(service.prefix + "/"):
                return service
        return None

    def _is_away(self) -> bool:
        if self._faults.away is None or self._first_request is None:
            return self.neuromorpho_is_away
        start, length = self._faults.away
        since = time.monotonic() - self._started - self._first_request
        return self.neuromorpho_is_away or start <= since < start + length

    async def _answer(self, request: web.BaseRequest) -> Answer:
        body = await request.read() if request.can_read_body else b""
        path, _, query = request.raw_path.partition("?")
        accepts_gzip = "gzip" in request.headers.get("Accept-Encoding", "")
        service = self._service_of(request.raw_path)
        if service is None:
            return Answer(
                status=404,
                headers={"Content-Type": "text/html"},
                body=b"<html><body><h1>404 Not Found</h1></body></html>\n",
            )
        call = Call(
            method=request.method,
            target=request.raw_path,
            path=path.removeprefix(service.prefix),
            query=query,
            body=body,
            content_type=request.headers.get("Content-Type", ""),
            authorization=request.headers.get("Authorization", ""),
            accept=request.headers.get("Accept", ""),
            origin=f"http://{request.headers.get('Host', '')}",
            accepts_gzip=accepts_gzip,
        )
        # For a service of a test, which adds up what it says: a hop to a thread
        # took more than half of the time.
        if getattr(service, "answers_at_once", False):
            return service.answer(call)
        if isinstance(service, NeuroMorphoService) and self._is_away():
            return service.away(call)
        answer = self._kept.get(call)
        if answer is None:
            answer = await anyio.to_thread.run_sync(
                service.answer, call, limiter=self._workers
            )
            if answer.may_be_kept:
                self._kept.put(call, answer)
            if call.method not in ("GET", "HEAD"):
                self._kept = _Kept(_MAX_KEPT_BYTES)  # as the service does
        return answer


class _Kept:
    """The answers used last, bounded by the bytes of their bodies."""

    def __init__(self, max_bytes: int) -> None:
        self._answers: OrderedDict[Call, Answer] = OrderedDict()
        self._free = max_bytes

    def get(self, call: Call) -> Answer | None:
        answer = self._answers.get(call)
        if answer is not None:
            self._answers.move_to_end(call)
        return answer

    def put(self, call: Call, answer: Answer) -> None:
        if call in self._answers:  # two requests for one target were under way
            return
        self._answers[call] = answer
        self._free -= len(answer.body) + _KEEPING
        while self._free < 0:
            _, dropped = self._answers.popitem(last=False)
            self._free += len(dropped.body) + _KEEPING


class _Wire:
    """One answer on its way out."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None
        self.status = 0
        self.sent = 0

    async def send(self, answer: Answer, fault: Fault) -> None:
        """Send *answer* as *fault* leaves it."""
        headers = dict(answer.headers)
        if fault.only_gzip and headers.get("Content-Encoding") != "gzip":
            fault = Fault()
        body, framing = answer.body, fault.framing or answer.framing
        if fault.body is not None:
            headers.pop("Content-Encoding", None)
            body, framing = fault.body, fault.framing or "length"
        headers.update(fault.headers)
        headers = {name: value for name, value in headers.items() if value}
        status = fault.status or answer.status

        if fault.ending == "clean":
            body = body[: _bytes(fault.after, body)]
        await self._begin(status, headers, framing, len(body))
        if self._request.method != "HEAD":
            await self._write_body(body, fault)
        if fault.ending == "reset":
            self.status = 0
            self.reset()
        elif fault.ending == "close" or framing == "close":
            self._transport().close()
        elif self.response is not None:
            await self.response.write_eof()

    async def _write_body(self, body: bytes, fault: Fault) -> None:
        whole = fault.ending in ("whole", "clean")
        end = len(body) if whole else _bytes(fault.after, body)
        if end == 0:
            await self._write(memoryview(b""))  # the head, before it is too late
        size = _PIECE if fault.piece is None else max(16, _bytes(fault.piece, body))
        for start in range(0, end, size):
            if start and fault.pause:
                await anyio.sleep(fault.pause)
            piece = memoryview(body)[start : min(start + size, end)]
            await self._write(piece)
            self.sent += len(piece)

    async def _begin(
        self, status: int, headers: dict[str, str], framing: Framing, length: int
    ) -> None:
        self.status = status
        if framing == "close":
            # aiohttp frames every HTTP/1.1 answer, so this head is written by hand.
            lines = [f"HTTP/1.1 {status} OK", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self._transport().write("\r\n".join([*lines, "", ""]).encode())
            return
        self.response = web.StreamResponse(status=status, headers=headers)
        if framing == "chunked":
            self.response.enable_chunked_encoding()
        else:
            self.response.content_length = length
        await self.response.prepare(self._request)

    async def _write(self, piece: memoryview) -> None:
        if self.response is not None:
            await self.response.write(piece)
        else:
            self._transport().write(piece)

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        return transport

    def reset(self) -> None:
        """Let the client see a connection reset by its peer."""
        transport = self._transport()
        sock = transport.get_extra_info("socket")
        # Lingering for zero seconds makes the close a RST instead of a FIN.
        linger = struct.pack("ii", 1, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()


def _bytes(amount: float | None, body: bytes) -> int:
    """Bytes of *body*: a share when *amount* is below 1, all when it is None."""
    if amount is None:
        return len(body)
    return min(int(amount * len(body) if amount < 1 else amount), len(body))


@asynccontextmanager
async def serve(
    *,
    seed: int = 0,
    scale: float = 1.0,
    latency: float = 0.0,
    faults: str = "",
    port: int = 0,
    log: str | Path | None = None,
) -> AsyncGenerator[Archive]:
    """The archive, listening on loopback for as long as the block lasts.

    Parameters
    ----------
    seed
        What all data depend on.
    scale
        1.0 has 1 000 neurons, and about a million events of 100 runs.
    latency
        Seconds before the first byte of each answer.
    faults
        A comma list such as ``error=0.02,reset=0.01,throttle=5/s,seed=7``.
    port
        0 lets the kernel choose.
    log
        A file that gets every log entry as a line of JSON, as soon as there is one.

    Raises
    ------
    ConfigurationError
        `faults` names no known fault.
    """
    plan = parse_faults(faults, seed=seed)
    neuroscout = NeuroscoutService(seed=seed, scale=scale)
    neuromorpho = NeuroMorphoService(seed=seed, scale=scale)
    alyx = AlyxService(seed=seed, scale=scale)
    neurovault = NeuroVaultService(seed=seed, scale=scale)
    with _open_log(log) as log_file:
        archive = Archive(
            (
                neuroscout,
                neuromorpho,
                alyx,
                AlyxFiles(alyx, seed),
                neurovault,
                NeuroVaultFiles(neurovault, neuroscout.analyses.images),
            ),
            Truth(neuroscout, neuromorpho, alyx, neurovault),
            latency=latency,
            faults=plan,
            log=log_file,
        )
        server = web.Server(
            archive.handle, handler_cancellation=True, max_line_size=_MAX_LINE
        )
        # Nothing is worth waiting for at the end: a dripping body would take seconds.
        runner = web.ServerRunner(server, shutdown_timeout=0.01)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            host, port = runner.addresses[0][:2]
            archive.url = f"http://{host}:{port}"
            yield archive
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()


@contextlib.contextmanager
def _open_log(path: str | Path | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
    else:
        with Path(path).open("ab", buffering=0) as file:
            yield file

"""One request out, one whole response in.

The only module that knows the HTTP client. A body is taken as it comes (nothing is
inflated here), spooled to memory and from 8 MiB on to a file, with its checksum and the
proof of its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import aiohttp
import anyio
import anyio.to_thread
from yarl import URL

from asyncfetch._body import Body, Proof
from asyncfetch._model import Response
from asyncfetch._partial import Partial
from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    IntegrityError,
    ResponseError,
    TransportError,
)

MEMORY_LIMIT = 8 << 20  # a body larger than this goes on in a file
CONNECT_TIMEOUT = 15.0
SLOWEST = 1024.0  # bytes per second, over one time-out

# aiohttp's errors, most special first, and what each means for the caller.
ERRORS: tuple[tuple[type[BaseException], type[AsyncfetchError], str], ...] = (
    (aiohttp.InvalidURL, ConfigurationError, "not a usable URL"),
    (aiohttp.TooManyRedirects, ResponseError, "redirected too often"),
    (aiohttp.ClientPayloadError, IntegrityError, "the body was cut"),
    (aiohttp.ClientConnectorCertificateError, TransportError, "bad certificate"),
    (aiohttp.ClientConnectorDNSError, TransportError, "unknown host"),
    (aiohttp.ClientSSLError, TransportError, "no secure connection"),
    (aiohttp.ClientConnectorError, TransportError, "no connection"),
    (aiohttp.ServerTimeoutError, TransportError, "no answer in time"),
    (aiohttp.ServerDisconnectedError, TransportError, "the server hung up"),
    (aiohttp.ClientResponseError, TransportError, "not an HTTP answer"),
    (aiohttp.ClientError, TransportError, "the connection broke"),
    (TimeoutError, TransportError, "no answer in time"),
    (OSError, TransportError, "the connection broke"),
)

# The middleware of a session learns from here whose request it sees.
_on_wire: ContextVar[Callable[[str, str], Awaitable[None]]] = ContextVar("_on_wire")


class Transport:
    """HTTP to one origin.

    It opens its session at the first request, in the event loop of that request, and
    opens another when it is used in another loop after the first one has ended.

    Parameters
    ----------
    origin
        Where all requests go: scheme, host and port. A redirect may lead to https on
        the same host; one to elsewhere is refused.
    timeout
        Seconds without progress after which an attempt is given up.
    """

    def __init__(
        self,
        origin: URL,
        *,
        user_agent: str,
        timeout: float,
        proxy: str | None = None,
        ca_file: str | None = None,
        tls_compat: str | None = None,
    ) -> None:
        self._origin = origin
        self._user_agent = user_agent
        self._timeout = timeout
        self._proxy = proxy
        self._ca_file = ca_file
        self._tls_compat = tls_compat
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: str | None,
        spool_dir: Path | None,
        on_wire: Callable[[str, str], Awaitable[None]],
        deadline: float,
        partial: Partial | None = None,
    ) -> Response:
        """Return the response to one request, its body received to the last byte.

        A body that belongs to the file *partial* goes there, behind what it holds.

        *deadline* is what it may take in all, in seconds from now.

        *on_wire* is awaited with method and URL before every request that leaves for
        it: the request itself, its redirects, and a resend on a fresh connection.

        Raises
        ------
        TransportError, IntegrityError
            Nothing came, or not all of it. Cancelling closes the connection.
        """
        session = self._open(url)
        target = URL(url, encoded=True)
        _on_wire.set(on_wire)
        try:
            async with session.request(
                method,
                target,
                headers=headers,
                data=body,
                proxy=self._proxy_for(target),
                timeout=aiohttp.ClientTimeout(
                    total=max(deadline, 0.001),  # 0 would mean no end
                    sock_connect=CONNECT_TIMEOUT,
                    sock_read=self._timeout,
                ),
            ) as answer:
                received = await self._receive(answer, spool_dir, partial)
                return Response(
                    status=answer.status,
                    headers=answer.headers,
                    url=str(answer.url.with_user(None)) if answer.history else url,
                    body=received,
                )
        except AsyncfetchError:
            raise  # from the gate, by way of the middleware
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # A time-out may have swallowed a cancellation: look before going on.
            await anyio.lowlevel.checkpoint()
            raise _translated(error, method, url) from error

    async def aclose(self) -> None:
        """Close the connections; the transport may be used again afterwards."""
        session, self._session = self._session, None
        if session is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await session.close()

    def _open(self, url: str) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is not None and self._loop is not loop:
            if self._loop is not None and self._loop.is_running():
                raise ConfigurationError(
                    "this client is open in another event loop that still runs; "
                    "make one client for each loop"
                )
            self._abandon()
        if self._session is None or self._session.closed:
            secure = url.startswith("https:")
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # the gate bounds connections; a second bound would hide
                    ttl_dns_cache=300,
                    keepalive_timeout=30,
                    ssl=self._tls_context() if secure else True,
                ),
                auto_decompress=False,  # length and end of stream are proved first
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": self._user_agent, "Accept-Encoding": "gzip"},
                middlewares=(self._pass_gate,),
                max_line_size=32768,  # sign-on cookies and long redirects
                max_field_size=32768,
            )
            self._loop = loop
        return self._session

    def _abandon(self) -> None:
        # The loop of the old session is gone and cannot close it. Closing what is left
        # does not suspend then, so one step of the awaitable is all of it.
        session, self._session = self._session, None
        if session is not None and session.connector is not None:
            connector = session.connector
            session.detach()
            with contextlib.suppress(StopIteration):
                next(connector.close().__await__())

    async def _pass_gate(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        url = request.url
        if url.host != self._origin.host or (
            url.scheme not in {self._origin.scheme, "https"}
        ):
            raise ResponseError(
                f"expected an answer from {self._origin}, got a redirect to {url}; "
                "set base_url if the service has moved",
                status=302,
            )
        await _on_wire.get()(request.method, str(url))
        return await handler(request)

    async def _receive(
        self,
        answer: aiohttp.ClientResponse,
        spool_dir: Path | None,
        partial: Partial | None,
    ) -> Body:
        spool: Spool | Partial = Spool(spool_dir)
        if partial is not None and partial.begin(answer.status, answer.headers):
            spool = partial
        pace = _Pace(self._timeout)
        try:
            while piece := await answer.content.readany():
                pace.moved(len(piece))
                spool.add(piece)
                if spool.wants_write:
                    await anyio.to_thread.run_sync(spool.write)
            if spool.path is not None:
                await anyio.to_thread.run_sync(spool.finish)
            elif spool is partial:
                spool.finish()  # in memory: only its length is looked at
        except BaseException:
            if spool.path is not None or spool is partial:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(spool.discard)
            raise
        headers = answer.headers
        if "Content-Length" in headers or answer.status in {204, 304}:
            proof = Proof.LENGTH
        elif "chunked" in headers.get("Transfer-Encoding", ""):
            proof = Proof.CHUNKED
        else:
            proof = Proof.NONE
        return Body(
            data=spool.path or b"".join(spool.pieces),
            size=spool.size,
            sha256=spool.digest.hexdigest(),
            encoding=headers.get("Content-Encoding", "").strip().lower(),
            proof=proof,
        )

    def _proxy_for(self, url: URL) -> str | None:
        host = url.host or ""
        if is_loopback(host):
            return None
        if self._proxy is None and not urllib.request.proxy_bypass(host):
            self._proxy = urllib.request.getproxies().get(url.scheme, "")
        return self._proxy or None

    def _tls_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_file)
        ciphers = {"no-dhe": "DEFAULT:!DHE", "seclevel1": "DEFAULT:@SECLEVEL=1"}
        if self._tls_compat is not None:
            context.set_ciphers(ciphers[self._tls_compat])
        return context


class Spool:
    """Takes a body as it comes: in memory, and when it is large in a file."""

    def __init__(self, directory: Path | None) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.digest = hashlib.sha256()
        self.path: Path | None = None
        self._directory = directory
        self._held = 0
        self._file: IO[bytes] | None = None

    def add(self, piece: bytes) -> None:
        """Take the next bytes into memory."""
        self.digest.update(piece)
        self.pieces.append(piece)
        self.size += len(piece)
        self._held += len(piece)

    @property
    def wants_write(self) -> bool:
        """Whether memory is full: 8 MiB at first, 1 MiB once there is a file."""
        return self._held > (MEMORY_LIMIT if self.path is None else MEMORY_LIMIT // 8)

    def write(self) -> None:
        """Move what is in memory to the file. Blocks."""
        if self._file is None:
            self._file = NamedTemporaryFile(  # noqa: SIM115 - outlives this call
                dir=self._directory, prefix="body-", delete=False
            )
            self.path = Path(self._file.name)
        self._file.writelines(self.pieces)
        self.pieces, self._held = [], 0

    def finish(self) -> None:
        """Write the rest and close. Blocks."""
        self.write()
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Close and delete the file, if there is one."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)


class _Pace:
    """Gives up a body that trickles: a read time-out alone never ends one."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._start = time.monotonic()
        self._bytes = 0

    def moved(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if now - self._start > self._window:
            if self._bytes < SLOWEST * self._window:
                raise aiohttp.ServerTimeoutError(
                    f"only {self._bytes} bytes came in {self._window:g} s"
                )
            self._start, self._bytes = now, 0


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _translated(error: BaseException, method: str, url: str) -> AsyncfetchError:
    if "DH_KEY_TOO_SMALL" in str(error):
        return TransportError(
            f"{URL(url).host} offers a key exchange that is too weak: {error}; "
            'pass tls_compat="no-dhe" to use a stronger one with this host'
        )
    for source, kind, meaning in ERRORS:
        if isinstance(error, source):
            return kind(f"{meaning}: {method} {url}: {str(error) or 'timed out'}")
    raise error

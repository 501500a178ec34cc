"""One request out, one whole response in.

The only module that knows the HTTP client. A body is taken as it comes (nothing is
inflated here), spooled to memory and from 8 MiB on to a file, with its checksum and the
proof of its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import ipaddress
import re
import ssl
import time
import urllib.request
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Protocol

import aiohttp
import anyio
from anyio.lowlevel import checkpoint
from yarl import URL

from asyncfetch._auth import Credentials
from asyncfetch._body import Body, Proof
from asyncfetch._model import READS, Part, Response
from asyncfetch._partial import Partial
from asyncfetch._threads import in_thread, surely_in_thread
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
MOST_REDIRECTS = 10  # as many as aiohttp follows

# What another host may be sent of a request that was led there: no key of anybody's.
_PUBLIC = frozenset({"host", "accept", "accept-encoding", "range", "user-agent"})
_DOWN = ("https", "http")
# RFC 9110, 15.4. Three of them say what is to be sent, whatever was sent before: a GET,
# and twice the same again. After 301 and 302 some send a GET in place of a POST.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TOLD = _REDIRECTS - {301, 302}
_SEE_OTHER = 303

# aiohttp's errors, most special first, and what each means for the caller.
ERRORS: tuple[tuple[type[BaseException], type[AsyncfetchError], str], ...] = (
    (aiohttp.InvalidURL, ConfigurationError, "not a usable URL"),
    (aiohttp.ClientPayloadError, IntegrityError, "the body was cut"),
    (aiohttp.ClientConnectorCertificateError, TransportError, "bad certificate"),
    (aiohttp.ClientConnectorDNSError, TransportError, "unknown host"),
    (aiohttp.ClientSSLError, TransportError, "no secure connection"),
    (aiohttp.ClientProxyConnectionError, TransportError, "no connection to the proxy"),
    (aiohttp.ClientConnectorError, TransportError, "no connection"),
    (aiohttp.ServerTimeoutError, TransportError, "no answer in time"),
    (aiohttp.ServerDisconnectedError, TransportError, "the server hung up"),
    (aiohttp.ClientHttpProxyError, TransportError, "the proxy refused"),
    (aiohttp.ClientResponseError, TransportError, "not an HTTP answer"),
    (aiohttp.ClientError, TransportError, "the connection broke"),
    (TimeoutError, TransportError, "no answer in time"),
    (OSError, TransportError, "the connection broke"),
)

# Of these meanings, those that are the host's fault and never the question's.
UNREACHABLE = frozenset({"no connection", "unknown host"})


class Hops(Protocol):
    """Sees every request that leaves for one exchange: redirects and resends too."""

    async def leave(self, method: str, url: str) -> None:
        """Wait until it may leave."""

    def arrive(self, status: int, headers: Mapping[str, str]) -> None:
        """See the head of its answer."""


@dataclass(slots=True)
class _Sending:
    """What the middleware of a session must know of the request that it sees."""

    hops: Hops
    credentials: Credentials | None
    may_repeat: bool
    may_leave: bool
    has_left: bool = False


_sending: ContextVar[_Sending] = ContextVar("_sending")


class Transport:
    """HTTP to one origin.

    It opens its session at the first request, in the event loop of that request, and
    opens another when it is used in another loop after the first one has ended.

    Parameters
    ----------
    origin
        Where all requests go: scheme, host and port. A redirect may lead from http to
        https on the same host, without credentials; one to elsewhere is refused.
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
        self._proxy = None if proxy is None else _proxy_url(proxy, "proxy")
        self._proxies: dict[tuple[str, str | None], URL | None] = {}
        self._ca_file = ca_file
        self._tls_compat = tls_compat
        self._opening = anyio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        credentials: Credentials | None = None,
        body: str | bytes | tuple[Part, ...] | None,
        spool_dir: Path | None,
        hops: Hops,
        deadline: float,
        partial: Partial | None = None,
        may_leave: bool = False,
    ) -> Response:
        """Return the response to one request, its body received to the last byte.

        A body that belongs to the file *partial* goes there, behind what it holds.

        *deadline* is what it may take in all, in seconds from now.

        *credentials* join every request to the origin, redirects on it included, and
        none to elsewhere. A read follows all redirects, what is written 303, 307 and
        308; others are its answer. With *may_leave* a redirect of a read may lead to
        another host.

        *hops* sees every request that leaves for it: itself, its redirects, and a
        resend on a fresh connection.

        Raises
        ------
        TransportError, IntegrityError
            Nothing came, or not all of it. Cancelling closes the connection.
        """
        ends = time.monotonic() + deadline
        for _ in range(MOST_REDIRECTS):
            response = await self._send(
                method,
                url,
                headers=headers,
                credentials=credentials,
                body=body,
                spool_dir=spool_dir,
                hops=hops,
                deadline=ends - time.monotonic(),
                partial=partial,
                may_leave=may_leave and method in READS,
            )
            place = response.headers.get("Location")
            followed = _REDIRECTS if method in READS else _TOLD
            if response.status not in followed or place is None:
                return response
            await discard(response.body)
            url = _led_to(url, place)
            if response.status == _SEE_OTHER and method != "HEAD":
                method, body = "GET", None
                headers = {
                    name: value
                    for name, value in headers.items()
                    if name.lower() != "content-type"
                }
        raise ResponseError(
            f"redirected too often: {method} {url}", status=response.status
        )

    async def _send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        credentials: Credentials | None,
        body: str | bytes | tuple[Part, ...] | None,
        spool_dir: Path | None,
        hops: Hops,
        deadline: float,
        partial: Partial | None,
        may_leave: bool,
    ) -> Response:
        session = self._opened() or await self._open()
        target = URL(url, encoded=True)
        is_read = method in READS
        _sending.set(
            _Sending(hops, credentials, may_repeat=is_read, may_leave=may_leave)
        )
        received: Body | None = None
        form = _Form(body) if isinstance(body, tuple) else None
        try:
            if form is not None:
                await in_thread(form.open)
            async with session.request(
                method,
                target,
                headers=headers,
                data=body if form is None else form.data,
                allow_redirects=False,  # aiohttp quotes anew what a signature covers
                proxy=self._proxy_for(target),
                timeout=aiohttp.ClientTimeout(
                    total=max(deadline, 0.001),  # 0 would mean no end
                    sock_connect=CONNECT_TIMEOUT,
                    sock_read=self._timeout,
                ),
            ) as answer:
                if answer.status in _REDIRECTS:
                    partial = None  # its body is no part of the file
                received = await self._receive(answer, spool_dir, partial)
                response = Response(
                    status=answer.status,
                    headers=answer.headers,
                    url=url,
                    body=received,
                )
        except BaseException as error:
            if received is not None:  # what is left is to wait for the request's end
                await discard(received)
            is_ours = isinstance(error, AsyncfetchError)
            if is_ours or not isinstance(error, aiohttp.ClientError | OSError):
                raise  # from the gate, by way of the middleware; or a cancellation
            # A time-out may have swallowed a cancellation: look before going on.
            await checkpoint()
            raise _translated(error, method, url, self._tls_compat) from error
        finally:
            if form is not None:
                form.close()
        return response

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must never be shown: passwords of proxies."""
        proxies = [self._proxy, *self._proxies.values()]
        return tuple(
            proxy.password for proxy in proxies if proxy is not None and proxy.password
        )

    async def aclose(self) -> None:
        """Close the connections; the transport may be used again afterwards."""
        session, self._session = self._session, None
        if session is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await session.close()

    def _opened(self) -> aiohttp.ClientSession | None:
        """The session of the running loop, if there is one already."""
        loop = asyncio.get_running_loop()
        if self._session is not None and self._loop is not loop:
            if self._loop is not None and self._loop.is_running():
                raise ConfigurationError(
                    "this client is open in another event loop that still runs; "
                    "make one client for each loop"
                )
            self._abandon()
        if self._session is None or self._session.closed:
            return None
        return self._session

    async def _open(self) -> aiohttp.ClientSession:
        async with self._opening:
            context: ssl.SSLContext | bool = True  # as the library has it
            if self._origin.scheme == "https" or self._ca_file is not None:
                # A thread: the system's certificates take 20 ms to read.
                context = await in_thread(
                    lambda: tls_context(self._ca_file, self._tls_compat)
                )
            session = self._opened()  # by another task, while this one waited
            if session is None:
                session = self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(
                        limit=0,  # the gate bounds them; a second bound would hide
                        ttl_dns_cache=300,
                        keepalive_timeout=30,
                        ssl=context,
                    ),
                    auto_decompress=False,  # length and end are proved first
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={
                        "User-Agent": self._user_agent,
                        "Accept-Encoding": "gzip",
                    },
                    middlewares=(self._pass_gate,),
                    max_line_size=32768,  # sign-on cookies and long redirects
                    max_field_size=32768,
                )
                self._loop = asyncio.get_running_loop()
            return session

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
        is_home = _place(url) == _place(self._origin)
        sending = _sending.get()
        if not is_home and not _is_upgrade(self._origin, url):
            if not sending.may_leave or (self._origin.scheme, url.scheme) == _DOWN:
                raise ResponseError(
                    f"expected an answer from {self._origin}, got a redirect to "
                    f"{url.with_user(None)}; set base_url if the service has moved",
                    status=302,
                )
            for name in [one for one in request.headers if one.lower() not in _PUBLIC]:
                del request.headers[name]
        if sending.has_left and not sending.may_repeat:
            # The library sends a PUT or DELETE again when an idle connection broke.
            raise TransportError(
                f"the server hung up: {request.method} {url.with_user(None)}; "
                "look whether it arrived before it is sent again"
            )
        sending.has_left = True
        # Here and not in the headers of the first request: the library would take
        # those along to wherever a redirect leads, all but Authorization.
        if is_home and sending.credentials is not None:
            request.headers.update(sending.credentials.headers)
            if sending.credentials.query:
                query = sending.credentials.added_to(url.raw_query_string)
                request.url = URL(f"{url.with_query(None)}?{query}", encoded=True)
        await sending.hops.leave(request.method, str(request.url))
        response = await handler(request)
        sending.hops.arrive(response.status, response.headers)
        return response

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
                    await in_thread(spool.write)
            if spool.path is not None:
                await in_thread(spool.finish)
            elif spool is partial:
                spool.finish()  # in memory: only its length is looked at
        except BaseException:
            if spool.path is not None or spool is partial:
                await surely_in_thread(spool.discard)
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

    def _proxy_for(self, url: URL) -> URL | None:
        if self._proxy is not None:
            return self._proxy
        place = (url.scheme, url.host)
        if place not in self._proxies:
            self._proxies[place] = _proxy_of_environment(url)
        return self._proxies[place]


def _proxy_of_environment(url: URL) -> URL | None:
    """The proxy that the environment (or the system) names for *url*."""
    if is_loopback(url.host or ""):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or urllib.request.proxy_bypass(f"{url.host}:{url.port}"):
        return None
    return _proxy_url(named, f"{url.scheme}_proxy")


def _proxy_url(text: str, source: str) -> URL:
    try:
        url = URL(text if "://" in text else f"http://{text}")  # as curl takes it
        if url.scheme in {"http", "https"} and url.host:
            return url
        got = str(url.with_user(None)) if url.host else url.scheme
    except ValueError:
        got = "something else"  # it may hold a password
    raise ConfigurationError(
        f"expected {source} like http://host:port or http://user:password@host:port, "
        f"got {got}"
    )


def tls_context(ca_file: str | None, tls_compat: str | None) -> ssl.SSLContext:
    """How certificates are verified: always, and with the host's name. Blocks.

    Raises
    ------
    ConfigurationError
        *ca_file* cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"expected a PEM file of certificates as ca_file, got {ca_file}: {error}"
        ) from error
    if ca_file is not None:
        # A server that leaves out its intermediate is answered with just that one.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    elif not context.cert_store_stats()["x509_ca"] and not _has_system_store():
        with contextlib.suppress(ImportError):  # Python from python.org on a Mac
            context.load_verify_locations(importlib.import_module("certifi").where())
    ciphers = {"no-dhe": "DEFAULT:!DHE", "seclevel1": "DEFAULT:@SECLEVEL=1"}
    if tls_compat is not None:
        context.set_ciphers(ciphers[tls_compat])
    return context


def _has_system_store() -> bool:
    paths = ssl.get_default_verify_paths()  # None for what does not exist
    return paths.cafile is not None or paths.capath is not None


async def discard(body: Body) -> None:
    """Delete the file that holds *body*, if one does."""
    data = body.data
    if isinstance(data, Path):
        await surely_in_thread(lambda: data.unlink(missing_ok=True))


_BYTES = "application/octet-stream"


class _Form:
    """A form on its way out; its files are read as it is sent."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        # Quoted by aiohttp, a blank is %20, and servers take that for the name.
        self.data = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        self._parts = parts
        self._files: list[IO[bytes]] = []

    def open(self) -> None:
        """Take the parts in their order, and open the files. Blocks.

        Raises
        ------
        ConfigurationError
            A file cannot be read.
        """
        for part in self._parts:
            if isinstance(part.value, str):
                self.data.add_field(_quoted(part.name), part.value)
                continue
            if isinstance(part.value, bytes):
                self.data.add_field(
                    _quoted(part.name),
                    part.value,
                    filename=_quoted(part.file_name or part.name),
                    content_type=part.content_type or _BYTES,
                )
                continue
            try:
                file = part.value.open("rb")
            except OSError as error:
                raise ConfigurationError(
                    f"expected a file to send as {part.name}, got {error}"
                ) from error
            self._files.append(file)
            self.data.add_field(
                _quoted(part.name),
                file,
                filename=_quoted(part.file_name or part.value.name),
                content_type=part.content_type or _BYTES,
            )

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _quoted(name: str) -> str:
    """A name with nothing left that could end it (RFC 7578, 2: as HTML has it)."""
    return name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")


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
    """Whether *host* is this machine: by name (RFC 6761) or by address."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False  # a name like others, 127.example.com for one


def _place(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port


def _led_to(url: str, place: str) -> str:
    """Where a ``Location`` leads; it may be relative, and is quoted only if it must be.

    Raises
    ------
    ResponseError
        It is no URL.
    """
    is_quoted = re.fullmatch(r"[!#-;=?-\[\]_a-z~]*", place) is not None
    try:
        found = URL(url, encoded=True).join(URL(place, encoded=is_quoted))
        if found.scheme not in {"http", "https"} or found.host is None:
            raise ValueError
    except (ValueError, UnicodeError):
        raise ResponseError(
            f"expected a URL as redirect, got {place!r} from {url}"
        ) from None
    return str(found.with_user(None))


def _is_upgrade(origin: URL, url: URL) -> bool:
    """Whether *url* is the same host, from http to https, both on their own ports."""
    return (
        (origin.scheme, url.scheme) == ("http", "https")
        and origin.host == url.host
        and origin.is_default_port()
        and url.is_default_port()
    )


def _translated(
    error: BaseException, method: str, url: str, tls_compat: str | None
) -> AsyncfetchError:
    hint = _hint(error, tls_compat)
    for source, kind, meaning in ERRORS:
        if isinstance(error, source):
            said = f"{meaning}: {method} {url}: {str(error) or 'timed out'}"
            if hint is not None:
                return kind(f"{said}; {hint}", is_final=True)
            return kind(
                said, **({"is_unreachable": True} if meaning in UNREACHABLE else {})
            )
    raise error


def _hint(error: BaseException, tls_compat: str | None) -> str | None:
    """What to do about an error that will not pass by itself, or None."""
    text = str(error)
    if "DH_KEY_TOO_SMALL" in text:
        return (
            'the server\'s key exchange is too weak: pass tls_compat="no-dhe" to use '
            'another with this host, or "seclevel1" where it has no other'
        )
    if tls_compat == "no-dhe" and "HANDSHAKE_FAILURE" in text:
        return 'the server has no other key exchange: pass tls_compat="seclevel1"'
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        if "local issuer" in text or "self-signed" in text or "self signed" in text:
            return "pass ca_file= with the certificates that are missing here"
        return "the certificate is not good for this host"
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status == 407:
        return "pass proxy=http://user:password@host:port"
    return None

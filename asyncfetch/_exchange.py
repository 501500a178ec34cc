"""One question to a service, asked until its answer is whole, proved and consumed.

An exchange takes a slot of the host's gate, sends the request, gives the slot back,
proves the body and hands it to the caller's function: in the event loop when it is
small, else in the one decode thread. What fails on the way is tried again as
:mod:`asyncfetch._retry` says. What comes out is a value, or one of our errors.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from yarl import URL

from asyncfetch._body import (
    SLICE,
    Proof,
    excerpt,
    prove,
)
from asyncfetch._gate import gate_for
from asyncfetch._model import (
    Event,
    Limits,
    Observer,
    Paused,
    Request,
    RequestSent,
    Response,
    Retrying,
)
from asyncfetch._partial import PROGRESS, Partial
from asyncfetch._retry import BULK, INTERACTIVE
from asyncfetch._transport import Transport, is_loopback
from asyncfetch._version import __version__
from asyncfetch.errors import (
    AsyncfetchError,
    AuthenticationError,
    ConfigurationError,
    DecodeError,
    IntegrityError,
    NotFound,
    ResponseError,
)

T = TypeVar("T")

logger = logging.getLogger("asyncfetch")

# A body that inflates to at most this is consumed in the event loop: about 10 000
# events or one large trace, some 5 ms. A hop to the decode thread costs 0.1 ms.
INLINE = 1 << 20
# A server may ask for a pause of up to an hour without anybody being asked.
LONGEST_RETRY_AFTER = 3600.0
# Loopback has no ceiling; this many connections kept a local server busy.
LOOPBACK = Limits(concurrency=16)

# One decode thread per event loop: a thread per body doubled the processor time.
_decode_thread: RunVar[anyio.CapacityLimiter] = RunVar("_decode_thread")


def ignore(_event: Event, /) -> None:
    """Observe nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """What a question came to, and what it took."""

    value: T
    response: Response
    attempts: int
    elapsed: float
    """Seconds, waits included."""


class Exchange:
    """Asks one service, politely and until it is sure.

    Parameters
    ----------
    base_url
        Prefix of every request's target, without a trailing slash.
    default
        The service's own limits; none on loopback.
    limits
        What the user asks for.
    timeout
        Seconds without a byte of progress that end an attempt.
    item_timeout
        Seconds that a question may take with all its attempts and waits; for a file
        that goes on where it broke off, from its last progress on.
    """

    def __init__(
        self,
        base_url: str,
        *,
        default: Limits,
        limits: Limits,
        timeout: float = 60.0,
        item_timeout: float = 1800.0,
        user_agent: str | None = None,
        contact: str | None = None,
        proxy: str | None = None,
        ca_file: str | None = None,
        tls_compat: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        try:
            origin = URL(base_url).origin()
        except ValueError:
            origin = URL()
        if origin.scheme not in {"http", "https"}:
            raise ConfigurationError(
                f"expected a base URL like https://host/api, got {base_url!r}"
            )
        if URL(base_url).raw_user is not None or URL(base_url).query_string:
            raise ConfigurationError(  # it goes into plans, items and logs
                f"expected a base URL without user and query for {origin}"
            )
        self.base_url = base_url.rstrip("/")
        self.host = origin.authority
        self.gate = gate_for(
            str(origin), LOOPBACK if is_loopback(origin.host or "") else default, limits
        )
        self._max_wait = limits.max_wait
        self._item_timeout = item_timeout
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        who = user_agent or f"asyncfetch/{__version__}"
        if not f"{who}{contact or ''}".isprintable():
            raise ConfigurationError(
                f"expected user_agent and contact on one line, got {contact or who!r}"
            )
        self._transport = Transport(
            origin,
            user_agent=f"{who} (contact: {contact})" if contact else who,
            timeout=timeout,
            proxy=proxy,
            ca_file=ca_file,
            tls_compat=tls_compat,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def ask(
        self,
        request: Request,
        consume: Callable[[Iterator[bytes], Response], T],
        *,
        interactive: bool = False,
        spool_dir: Path | None = None,
        observe: Observer = ignore,
        partial: Partial | None = None,
    ) -> Answer[T]:
        """Return what *consume* makes of the proved content of the answer.

        *consume* is called with slices of the inflated body, in the event loop for a
        small one and otherwise in a thread; it may be called again after a failure.

        With *partial* the body is a file that is to be kept: its exact bytes come, over
        several attempts if need be, and are still in *partial* afterwards. Each attempt
        that brings it on gives the question its tries and its time anew.

        Raises
        ------
        AsyncfetchError
            The last attempt's failure, with ``attempts`` as an attribute.
        """
        policy = INTERACTIVE if interactive else BULK
        started = time.monotonic()
        until = started + self._item_timeout
        unproved: str | None = None  # checksum of a body whose end nothing proved
        attempt = tries = 0
        if partial is not None and (
            there := await self._recovered(request, consume, partial)
        ):
            return there
        reached = 0 if partial is None else partial.size
        while True:
            attempt += 1
            tries += 1
            try:
                left = until - time.monotonic()
                response = await self._send(
                    request, interactive, spool_dir, observe, left, partial=partial
                )
                try:
                    # Whoever waits for the slot sends first: decoding keeps the loop.
                    await asyncio.sleep(0)
                    known, unproved = unproved, _unproved(request, response)
                    if unproved is not None and unproved != known:
                        raise IntegrityError(
                            f"nothing shows that the {response.body.size} bytes from "
                            f"{response.url} are all; a second answer must be the same"
                        )
                    if partial is None:
                        value = await self.consume(request, response, consume)
                    else:
                        value = await self._consume_file(
                            request, response, consume, partial
                        )
                finally:
                    if partial is None:
                        await _dispose(response)
                return Answer(
                    value=value,
                    response=response,
                    attempts=attempt,
                    elapsed=time.monotonic() - started,
                )
            except AsyncfetchError as error:
                error.__dict__["attempts"] = attempt
                if _is_rejection(error):
                    tries = 1  # a full server is not a failing one: the gate waits
                if partial is not None and partial.size >= reached + PROGRESS:
                    tries, reached = 1, partial.size
                    until = time.monotonic() + self._item_timeout
                delay = (
                    policy.delay(tries, error, self._rng) if request.is_read else None
                )
                is_final = getattr(error, "is_fatal", False) or getattr(
                    error, "is_final", False
                )
                left = until - time.monotonic()
                if delay is None or is_final or delay > left:
                    raise
                failed = str(error)
            observe(
                Retrying(
                    url=self._url(request), attempt=attempt, delay=delay, error=failed
                )
            )
            await anyio.sleep(delay)

    async def _send(
        self,
        request: Request,
        interactive: bool,
        spool_dir: Path | None,
        observe: Observer,
        left: float,
        *,
        partial: Partial | None,
    ) -> Response:
        async def on_wire(method: str, url: str) -> None:
            await self.gate.token(self._max_wait)
            observe(RequestSent(method=method, url=url))

        headers = {"Accept": "application/json" if request.media == "json" else "*/*"}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if partial is not None:
            headers |= partial.headers()
        async with self.gate.slot(interactive=interactive, max_wait=self._max_wait):
            sent_at = self.gate.now()
            response = await self._transport.send(
                request.method,
                self._url(request),
                headers=headers,
                body=request.body,
                spool_dir=spool_dir,
                on_wire=on_wire,
                deadline=left,
                partial=partial,
            )
        if response.status in {429, 503}:
            asked = retry_after(response)
            wait = self.gate.rejected(sent_at, asked)
            observe(
                Paused(
                    host=self.host,
                    seconds=wait,
                    cause=f"{response.status}"
                    + (" with Retry-After" if asked is not None else ""),
                )
            )
        else:
            self.gate.answered()
        if partial is not None and response.status == 416 and partial.size:
            await _dispose(response)
            return partial.whole_by(response)
        if not 200 <= response.status < 300:
            try:
                await self._refuse(response)
            finally:
                await _dispose(response)
        if partial is not None:
            response = replace(response, body=partial.exact(response.body))
        return response

    async def _refuse(self, response: Response) -> None:
        status = response.status
        start = await anyio.to_thread.run_sync(_beginning, response)
        says = f"{status} from {response.url}: {excerpt(start)!r}"
        if status in {401, 403}:
            raise AuthenticationError(
                f"the service wants credentials, or others than these: {says}",
                status=status,
                is_fatal=True,
            )
        if status in {404, 410}:
            raise NotFound(f"expected data, got {says}", status=status)
        asked = retry_after(response) if status in {429, 503} else None
        if asked is not None and asked > LONGEST_RETRY_AFTER:
            raise ResponseError(
                f"{self.host} asks to come back in {asked:.0f} s; run again then",
                status=status,
                is_fatal=True,
            )
        raise ResponseError(
            f"expected data, got {says}",
            status=status,
            excerpt=excerpt(start),
            retry_after=asked,
        )

    async def _recovered(
        self,
        request: Request,
        consume: Callable[[Iterator[bytes], Response], T],
        partial: Partial,
    ) -> Answer[T] | None:
        """The answer from bytes that an earlier run had received to the last."""
        there = await partial.recover()
        if there is None:
            return None
        try:
            value = await self.consume(request, there, consume)
        except AsyncfetchError:
            partial.start_over()
            return None
        return Answer(value=value, response=there, attempts=0, elapsed=0.0)

    async def _consume_file(
        self,
        request: Request,
        response: Response,
        consume: Callable[[Iterator[bytes], Response], T],
        partial: Partial,
    ) -> T:
        try:
            partial.check(response.body)
            value = await self.consume(request, response, consume)
        except AsyncfetchError:
            # What was wrong once is not gone on from.
            if partial.path is not None:
                await anyio.to_thread.run_sync(partial.drop)
            partial.start_over()
            raise
        if partial.path is not None:
            await anyio.to_thread.run_sync(partial.seal)
        return value

    async def consume(
        self,
        request: Request,
        response: Response,
        consume: Callable[[Iterator[bytes], Response], T],
    ) -> T:
        """Return what *consume* makes of an answer that is there, once it is proved."""
        body = response.body
        try:
            content = small_content(response)
            if content is not None:
                whole = prove([content], request.media, response.url)
                return consume(whole, response)
            limiter = _decode_thread.get(None)
            if limiter is None:
                limiter = anyio.CapacityLimiter(1)
                _decode_thread.set(limiter)
            return await anyio.to_thread.run_sync(
                lambda: consume(
                    prove(body.chunks(), request.media, response.url), response
                ),
                limiter=limiter,
            )
        except DecodeError as error:
            if body.proof is Proof.NONE and not body.is_compressed:
                raise IntegrityError(f"a body without a length: {error}") from error
            raise
        except (AsyncfetchError, OSError):
            raise
        except Exception as error:
            # One body that a decoder stumbles over must not end a long run.
            logger.debug("%s could not be decoded", response.url, exc_info=True)
            raise DecodeError(
                f"expected {request.media} that can be decoded, got {error!r} from "
                f"{response.url}; please report it",
                code="unforeseen",
            ) from error

    def _url(self, request: Request) -> str:
        return self.base_url + request.target


def _is_rejection(error: AsyncfetchError) -> bool:
    """Whether the server said that it was asked too often."""
    return isinstance(error, ResponseError) and (
        error.status == 429 or (error.status == 503 and error.retry_after is not None)
    )


def small_content(response: Response) -> bytes | None:
    """Return the inflated body when it is small enough for the event loop."""
    body = response.body
    if isinstance(body.data, Path) or body.size > SLICE:
        return None
    if not body.is_compressed:
        return body.data
    pieces = []
    room = INLINE
    for piece in body.chunks():
        room -= len(piece)
        if room < 0:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def retry_after(response: Response) -> float | None:
    """Seconds from the Retry-After header, seconds or date; None if there is none.

    A date is taken relative to the server's own Date (RFC 9110, 10.2.3), so that a
    wrong clock on either side does no harm.
    """
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    try:
        now = email.utils.parsedate_to_datetime(response.headers.get("Date", ""))
    except ValueError:
        now = email.utils.localtime()
    if until.tzinfo is None or now.tzinfo is None:  # "-0000": an unknown zone, UTC
        until, now = until.replace(tzinfo=None), now.replace(tzinfo=None)
    return max(0.0, (until - now).total_seconds())


def _beginning(response: Response) -> bytes:
    try:
        start = next(response.body.chunks(), b"")
    except IntegrityError:
        return b""
    return start


def _unproved(request: Request, response: Response) -> str | None:
    body = response.body
    if request.media == "json" or body.is_compressed or body.proof is not Proof.NONE:
        return None
    return body.sha256


async def _dispose(response: Response) -> None:
    data = response.body.data
    if isinstance(data, Path):
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: data.unlink(missing_ok=True))

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
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

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
from asyncfetch._gate import Gate, Turn, gate_for
from asyncfetch._health import Failure
from asyncfetch._hints import hint_of, speaks_of_limits
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
from asyncfetch._profile import profile_for
from asyncfetch._retry import BULK, INTERACTIVE, RetryPolicy
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
    TransportError,
)

T = TypeVar("T")

logger = logging.getLogger("asyncfetch")

# A body that inflates to at most this is consumed in the event loop: about 10 000
# events or one large trace, some 5 ms. A hop to the decode thread costs 0.1 ms.
INLINE = 1 << 20
# A server may ask for a pause of up to an hour without anybody being asked.
LONGEST_RETRY_AFTER = 3600.0
# A person does not wait longer than this for another attempt.
IMPATIENCE = 10.0
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
    on_wire: float
    """Seconds from the last attempt's leave to leave until its last byte."""


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
        Seconds that a question may take with all its attempts and waits.
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
        self._profile = profile_for(
            origin.authority, self.gate, is_loopback=is_loopback(origin.host or "")
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

    @asynccontextmanager
    async def beside_others(
        self,
    ) -> AsyncGenerator[Callable[[], Coroutine[Any, Any, None]]]:
        """For a run: the host is shared with other processes as long as it lasts.

        Gives what a task of the run calls, to show them that it goes on.
        """
        if self._profile is None:
            yield anyio.lowlevel.checkpoint
        else:
            async with self._profile.run():
                yield self._profile.keep_beating

    async def _join(self) -> None:
        if self._profile is not None:
            await self._profile.join()

    async def ask(
        self,
        request: Request,
        consume: Callable[[Iterator[bytes], Response], T],
        *,
        interactive: bool = False,
        impatient: bool | None = None,
        spool_dir: Path | None = None,
        observe: Observer = ignore,
    ) -> Answer[T]:
        """Return what *consume* makes of the proved content of the answer.

        *consume* is called with slices of the inflated body, in the event loop for a
        small one and otherwise in a thread; it may be called again after a failure. An
        *interactive* question passes the gate before others; an *impatient* one is
        given up soon when the host is down (the same, unless said).

        Raises
        ------
        AsyncfetchError
            The last attempt's failure, with ``attempts`` as an attribute.
        """
        impatient = interactive if impatient is None else impatient
        policy = INTERACTIVE if impatient else BULK
        started = time.monotonic()
        unproved: str | None = None  # checksum of a body whose end nothing proved
        question = self.gate.question()
        attempt = tries = 0
        while True:
            await self._join()
            attempt += 1
            tries += 1
            hops: _Hops | None = None
            left = started + self._item_timeout - time.monotonic()
            try:
                async with self.gate.slot(
                    interactive=interactive,
                    impatient=impatient,
                    max_wait=self._max_wait,
                    deadline=left / self.gate.second,
                    question=question,
                ) as turn:
                    hops = _Hops(self.gate, turn, observe)
                    response = await self._send(request, hops, spool_dir, left)
                try:
                    # Whoever waits for the slot sends first: decoding keeps the loop.
                    await asyncio.sleep(0)
                    if not 200 <= response.status < 300:
                        await self._refuse(response)
                    known, unproved = unproved, _unproved(request, response)
                    if unproved is not None and unproved != known:
                        raise IntegrityError(
                            f"nothing shows that the {response.body.size} bytes from "
                            f"{response.url} are all; a second answer must be the same"
                        )
                    value = await self._consume(request, response, consume)
                finally:
                    await _dispose(response)
                return Answer(
                    value=value,
                    response=response,
                    attempts=attempt,
                    elapsed=time.monotonic() - started,
                    on_wire=hops.on_wire,
                )
            except AsyncfetchError as error:
                error.__dict__["attempts"] = attempt
                is_rejected = hops is not None and hops.is_rejected
                is_excused = hops is not None and hops.is_excused and not impatient
                delay: float | None
                if is_rejected:
                    # A full server is not a failing one: the gate waits, and whoever
                    # was rejected keeps his place in the queue.
                    tries, delay = 0, self.gate.pause_left()
                else:
                    tries -= is_excused  # the host is down, whatever is asked
                    delay = self._delay(error, tries, policy, is_excused=is_excused)
                    question = self.gate.question()
                left = started + self._item_timeout - time.monotonic()
                if delay is None or not request.is_read or _is_final(error):
                    raise
                if delay * self.gate.second > left:
                    if is_excused:  # and so would be the next question
                        error.__dict__["is_fatal"] = True
                    raise
                failed = str(error)
            observe(
                Retrying(
                    url=self._url(request), attempt=attempt, delay=delay, error=failed
                )
            )
            if not is_rejected:
                await self.gate.sleep(delay)

    def _delay(
        self,
        error: AsyncfetchError,
        tries: int,
        policy: RetryPolicy,
        *,
        is_excused: bool,
    ) -> float | None:
        """Seconds until the next attempt, or None to give up."""
        if is_excused:
            return policy.delay(1, error, self._rng)
        delay = policy.delay(tries, error, self._rng)
        if delay is None:
            return None
        delay = max(delay, self.gate.retry())
        return None if policy is INTERACTIVE and delay > IMPATIENCE else delay

    async def _send(
        self, request: Request, hops: _Hops, spool_dir: Path | None, left: float
    ) -> Response:
        headers = {"Accept": "application/json" if request.media == "json" else "*/*"}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = await self._transport.send(
                request.method,
                self._url(request),
                headers=headers,
                body=request.body,
                spool_dir=spool_dir,
                hops=hops,
                deadline=left,
            )
        except TransportError as error:
            hops.failed(error)
            raise
        except IntegrityError:
            hops.ended(200, {})  # cut, but there
            raise
        hops.ended(response.status, response.headers)
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
        asked = retry_after(response.headers) if status in {429, 503} else None
        if asked is not None and asked > LONGEST_RETRY_AFTER:
            raise _come_back(self.host, asked, status)
        raise ResponseError(
            f"expected data, got {says}",
            status=status,
            excerpt=excerpt(start),
            retry_after=asked,
        )

    async def _consume(
        self,
        request: Request,
        response: Response,
        consume: Callable[[Iterator[bytes], Response], T],
    ) -> T:
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


class _Hops:
    """What one exchange puts on the wire, and what the gate is told of it."""

    def __init__(self, gate: Gate, turn: Turn, observe: Observer) -> None:
        self.is_rejected = False
        self.is_excused = False
        self._gate = gate
        self._turn = turn
        self._observe = observe
        self._sent_at = gate.now()
        self._took = 0.0
        self.on_wire = 0.0  # seconds from its leave to the last byte

    async def leave(self, method: str, url: str) -> None:
        """Wait for the token of a hop."""
        self._sent_at = await self._turn.hop()
        self._observe(RequestSent(method=method, url=url))

    def arrive(self, status: int, headers: Mapping[str, str]) -> None:
        """Note the head of an answer; a redirect may ask for a pause."""
        self._took = self._gate.now() - self._sent_at
        if 300 <= status < 400 and (asked := retry_after(headers)):
            if asked > LONGEST_RETRY_AFTER:
                raise _come_back(self._gate.host, asked, status)
            cause = f"{status} with Retry-After"
            self._gate.pause(asked, cause)
            self._observe(Paused(host=self._gate.host, seconds=asked, cause=cause))

    def failed(self, error: TransportError) -> None:
        """Note that nothing usable came."""
        if not _is_final(error):  # else it is the gate's own
            kind = (
                Failure.HOST
                if getattr(error, "is_unreachable", False)
                else Failure.EITHER
            )
            self.is_excused = self._gate.failed(self._turn, kind, str(error))

    def ended(self, status: int, headers: Mapping[str, str]) -> None:
        """Note an answer."""
        self.on_wire = (self._gate.now() - self._sent_at) * self._gate.second
        if status in {429, 503}:
            asked = retry_after(headers)
            wait, cause, is_full = self._gate.rejected(
                self._turn, self._sent_at, status, asked
            )
            self.is_rejected = is_full
            if wait > 0:
                self._observe(Paused(host=self._gate.host, seconds=wait, cause=cause))
            if asked is None:  # else that one wins
                self._take_hint(headers)
            return
        self._take_hint(headers)
        if status in _FAILURES:
            says = f"answers with {status}"
            self.is_excused = self._gate.failed(self._turn, _FAILURES[status], says)
        else:
            self._gate.answered(self._turn, self._sent_at, self._took)

    def _take_hint(self, headers: Mapping[str, str]) -> None:
        """Let the gate know what an answer says of the host's limits."""
        if not speaks_of_limits(headers):
            return
        hint = hint_of(headers.items(), now=time.time())
        if hint is None or hint.reset > LONGEST_RETRY_AFTER:
            return  # the answer to one request too many says what is to be said
        self._gate.hint(hint.remaining, hint.reset)
        if (wait := self._gate.pause_left()) > 0:
            self._observe(
                Paused(host=self._gate.host, seconds=wait, cause="rate limit")
            )


# A gateway that finds nobody behind it; and one that waited too long, maybe for a
# question that is too hard.
_FAILURES = {500: Failure.QUESTION, 502: Failure.HOST, 504: Failure.EITHER}


def _is_final(error: AsyncfetchError) -> bool:
    return getattr(error, "is_fatal", False) or getattr(error, "is_final", False)


def _come_back(host: str, seconds: float, status: int) -> ResponseError:
    return ResponseError(
        f"{host} asks to come back in {seconds:.0f} s; run again then",
        status=status,
        is_fatal=True,
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


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from the Retry-After header, seconds or date; None if there is none.

    A date is taken relative to the server's own Date (RFC 9110, 10.2.3), so that a
    wrong clock on either side does no harm.
    """
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    try:
        now = email.utils.parsedate_to_datetime(headers.get("Date", ""))
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

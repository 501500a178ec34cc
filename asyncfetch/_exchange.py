"""One question to a service, asked until its answer is whole, proved and consumed.

An exchange takes a slot of the host's gate, sends the request, gives the slot back,
proves the body and hands it to the caller's function: in the event loop when it is
small, else in the one decode thread. What fails on the way is tried again as
:mod:`asyncfetch._retry` says. What comes out is a value, or one of our errors.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import logging
import random
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
)
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import anyio
from yarl import URL

from asyncfetch._absence import Absence, Health, Verdict
from asyncfetch._auth import Auth, Credentials, Reply, hide, scrub
from asyncfetch._body import (
    INLINE,
    Proof,
    excerpt,
    prove,
)
from asyncfetch._gate import Gate, Turn, gate_for
from asyncfetch._health import Failure
from asyncfetch._hints import hint_of, speaks_of_limits
from asyncfetch._model import (
    ODD_RECORD,
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
from asyncfetch._profile import profile_for
from asyncfetch._retry import BULK, INTERACTIVE, is_transient
from asyncfetch._threads import in_decode_thread, in_thread
from asyncfetch._transport import Transport, discard, is_loopback
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

# What makes a value of the slices of a body: at once, or with others.
Consume: TypeAlias = Callable[[Iterator[bytes], Response], T | Awaitable[T]]

logger = logging.getLogger("asyncfetch")

# A server may ask for a pause of up to an hour without anybody being asked.
LONGEST_RETRY_AFTER = 3600.0
# A person does not wait longer than this for another attempt.
IMPATIENCE = 10.0
# Loopback has no ceiling; this many connections kept a local server busy.
LOOPBACK = Limits(concurrency=16)


# A gateway that finds nobody behind it; and one that waited too long, maybe for a
# question that is too hard.
FAILURES = {500: Failure.QUESTION, 502: Failure.HOST, 504: Failure.EITHER}


# What becomes of a refusal, of status, body and URL: an error of the service's own, or
# None for the one that it would be for every service.
Refusal: TypeAlias = Callable[[int, bytes, str], AsyncfetchError | None]


def ignore(_event: Event, /) -> None:
    """Observe nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """What a question came to, and what it took."""

    value: T
    response: Response
    """Its URL is without secrets."""
    attempts: int
    elapsed: float
    """Seconds, waits included."""
    on_wire: float = 0.0
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
        Seconds that a question may take with all its attempts and waits; for a file
        that goes on where it broke off, from its last progress on.
    auth
        Credentials for the service, if it is to know who asks. They go to the origin of
        *base_url* alone, and into no event, log line, error or record.
    refusal
        Reads what the service says when it refuses. An error with ``is_final`` is not
        tried again.
    notice
        Is shown the headers of every answer.
    health
        Where the service tells how it is, if its 404 is to be believed only then.
    """

    failures: ClassVar[Mapping[int, Failure]] = FAILURES
    """Statuses by which the host itself may have failed."""
    desk: Exchange | None = None
    """Asks for credentials, where another origin than the service's gives them out."""

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
        auth: Auth | None = None,
        refusal: Refusal | None = None,
        notice: Callable[[Mapping[str, str]], object] | None = None,
        health: Health | None = None,
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
        self._health = health
        self._absence = Absence()
        self._gets_only = False
        self._kept: dict[str, Any] = {}
        self._auth = auth
        self._refusal = refusal
        self._notice = notice
        self._renewing = anyio.Lock()
        self._renewal_error: AuthenticationError | None = None
        self._transport = Transport(
            origin,
            user_agent=f"{who} (contact: {contact})" if contact else who,
            timeout=timeout,
            proxy=proxy,
            ca_file=ca_file,
            tls_compat=tls_compat,
        )

    async def aclose(self) -> None:
        """Close the connections, and leave the host to other processes."""
        try:
            await self._transport.aclose()
            if self.desk is not None:
                await self.desk.aclose()
        finally:
            if self._profile is not None:
                await self._profile.part()

    @property
    def has_auth(self) -> bool:
        """Whether there are credentials, or a way to get some."""
        return self._auth is not None

    @property
    def remembered(self) -> dict[str, Any]:
        """Small facts of the host, plain JSON; kept between processes where possible.

        Those of earlier processes are there as soon as a question has been answered.
        """
        return self._kept if self._profile is None else self._profile.kept

    def shown_url(self, request: Request) -> str:
        """The URL of *request*, without secrets."""
        return self._hide(self.url_of(request))

    def url_of(self, request: Request) -> str:
        """Where *request* goes."""
        return self.base_url + request.target

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
        consume: Consume[T],
        *,
        interactive: bool = False,
        impatient: bool | None = None,
        spool_dir: Path | None = None,
        observe: Observer = ignore,
        sleep: Callable[[float], Awaitable[object]] | None = None,
        partial: Partial | None = None,
        is_probe: bool = False,
    ) -> Answer[T]:
        """Return what *consume* makes of the proved content of the answer.

        *consume* is called with slices of the inflated body, in the event loop for a
        small one and otherwise in a thread; it may be called again after a failure, and
        give something to wait for in place of the value. An
        *interactive* question passes the gate before others; an *impatient* one is
        given up soon when the host is down (the same, unless said). *sleep* is awaited
        between two attempts, with the seconds to wait (of the gate, unless said).

        A *probe* asks for what is not there most likely: of the service's health, what
        it said within a minute is enough.

        With *partial* the body is a file that is to be kept: its exact bytes come, over
        several attempts if need be, and are still in *partial* afterwards. Each attempt
        that brings it on gives the question its tries and its time anew.

        Raises
        ------
        AsyncfetchError
            The last attempt's failure, with ``attempts`` as an attribute.
        """
        if request.refused is not None:
            raise DecodeError(request.refused, code=ODD_RECORD)
        started = time.monotonic()
        asking = _Asking(
            interactive=interactive,
            impatient=interactive if impatient is None else impatient,
            started=started,
            until=started + self._item_timeout,
            place=self.gate.question(),
            spool_dir=spool_dir,
            observe=observe,
            partial=partial,
            is_probe=is_probe,
        )
        if partial is not None:
            if there := await self._recovered(request, consume, partial):
                return there
            asking.reached = partial.size
        with self._awaited_there(request):
            return await self._until_answered(
                request, consume, asking, sleep or self.gate.sleep
            )

    def _awaited_there(self, request: Request) -> AbstractContextManager[None]:
        """For the time of a question whose answer may show that the service is well."""
        if request.may_be_absent and self._health is not None:
            return self._absence.asking()
        return nullcontext()

    async def _until_answered(
        self,
        request: Request,
        consume: Consume[T],
        asking: _Asking,
        sleep: Callable[[float], Awaitable[object]],
    ) -> Answer[T]:
        while True:
            await self._join()
            asking.attempts += 1
            asking.tries += 1
            try:
                value, response = await self._answered(request, consume, asking)
                if request.may_be_absent and self._health is not None:
                    self._absence.there(asking.sent_at)
                return Answer(
                    value=value,
                    response=response,
                    attempts=asking.attempts,
                    elapsed=time.monotonic() - asking.started,
                    on_wire=asking.on_wire,
                )
            except AsyncfetchError as caught:
                error = await self._believed(caught, asking)
                if error is None:
                    continue
                scrub(error, self._secrets())
                error.__dict__["attempts"] = asking.attempts
                delay = self._delay(error, asking)
                if delay is None or not request.is_read:
                    raise error from error.__cause__
                failed = str(error)
            asking.observe(
                Retrying(
                    url=self.shown_url(request),
                    attempt=asking.attempts,
                    delay=delay,
                    error=failed,
                )
            )
            if not asking.is_rejected:
                await sleep(delay)

    async def _believed(
        self, error: AsyncfetchError, asking: _Asking
    ) -> AsyncfetchError | None:
        """What to say of an error; None after a 404 that must be asked for again."""
        health = self._health
        if health is None or not isinstance(error, NotFound):
            return error
        verdict = await self._absence.judge(
            lambda: self._is_up(health, asking),
            impatient=asking.impatient or asking.is_probe or asking.is_doubted,
        )
        if verdict is Verdict.DOWN:
            down = TransportError(
                f"{error}; {health.target} does not say that the service is up, so "
                "this is no proof that there is nothing: go on later",
                status=404,
            )
            down.__cause__ = error
            return down
        if verdict is Verdict.PROVED:
            return error
        asking.is_doubted = True
        return None

    async def _is_up(self, health: Health, asking: _Asking) -> bool:
        asking = replace(
            asking,
            interactive=True,
            impatient=True,
            place=self.gate.question(),
            partial=None,
        )
        try:
            response = await self._send(Request(target=health.target), asking)
        except AsyncfetchError:
            return False
        try:
            start = await in_thread(functools.partial(_beginning, response))
        finally:
            await discard(response.body)
        return health.is_up(start)

    async def _answered(
        self,
        request: Request,
        consume: Consume[T],
        asking: _Asking,
    ) -> tuple[T, Response]:
        response = await self._send_or_get(request, asking)
        try:
            # Whoever waits for the slot sends first: decoding keeps the loop.
            await asyncio.sleep(0)
            known, asking.unproved = asking.unproved, _unproved(request, response)
            if asking.unproved is not None and asking.unproved != known:
                raise IntegrityError(
                    f"nothing shows that the {response.body.size} bytes from "
                    f"{response.url} are all; a second answer must be the same"
                )
            if asking.partial is None:
                value = await self.consume(request, response, consume)
            else:
                value = await self._consume_file(
                    request, response, consume, asking.partial
                )
        finally:
            if asking.partial is None:
                await discard(response.body)
        return value, response

    def _delay(self, error: AsyncfetchError, asking: _Asking) -> float | None:
        """Seconds until the next attempt, or None when there is to be none."""
        policy = INTERACTIVE if asking.impatient else BULK
        partial = asking.partial
        if partial is not None and partial.size >= asking.reached + PROGRESS:
            asking.tries, asking.reached = 1, partial.size
            asking.until = time.monotonic() + self._item_timeout
        is_excused = asking.is_excused and not asking.impatient
        delay: float | None
        if asking.is_rejected:
            # A full server is not a failing one: the gate waits, and whoever was
            # rejected keeps his place in the queue.
            asking.tries, delay = 0, self.gate.pause_left()
        else:
            asking.place = self.gate.question()
            asking.tries -= is_excused  # the host is down, whatever is asked
            delay = policy.delay(1 if is_excused else asking.tries, error, self._rng)
            if delay is not None and not is_excused:
                delay = max(delay, self.gate.retry())
        if delay is None or _is_final(error):
            return None
        if delay * self.gate.second > asking.left():
            if is_excused:  # and so would be the next question
                error.__dict__["is_fatal"] = True
            return None
        return None if asking.impatient and delay > IMPATIENCE else delay

    async def _send_or_get(self, request: Request, asking: _Asking) -> Response:
        """One attempt; a second one by GET where the service takes no other method."""
        if request.or_get is None:
            return await self._send(request, asking)
        if not self._gets_only:
            try:
                return await self._send(request, asking)
            except ResponseError as error:
                if error.status != 405:
                    raise
            self._gets_only = True
        return await self._send(request.as_get, asking)

    async def _send(self, request: Request, asking: _Asking) -> Response:
        """One attempt; a second one when other credentials may help."""
        auth = self._auth
        if auth is None or not auth.goes_with(request):
            return await self._attempt(request, None, asking)
        bearing = auth.credentials
        if bearing is None:
            bearing = await self._renewed(auth, None, asking)
        try:
            return await self._attempt(request, bearing, asking)
        except AuthenticationError as error:
            if not auth.is_stale(error.status, error.excerpt.encode()):
                raise
        bearing = await self._renewed(auth, bearing, asking)
        return await self._attempt(request, bearing, asking)

    async def _renewed(
        self, auth: Auth, former: Credentials | None, asking: _Asking
    ) -> Credentials:
        """Credentials other than *former*, got once for all who want them.

        Raises
        ------
        AuthenticationError
            The service gives none. Who waited meanwhile gets the same error, so that
            a wrong password is tried once and not by each of many tasks.
        """
        known_error = self._renewal_error
        async with self._renewing:
            if (now := auth.credentials) is None or now is former:
                if self._renewal_error is not known_error:
                    assert self._renewal_error is not None
                    raise AuthenticationError(
                        str(self._renewal_error), **vars(self._renewal_error)
                    )
                try:
                    await self._renew(auth, asking)
                except AuthenticationError as error:
                    scrub(error, self._secrets())
                    self._renewal_error = error
                    raise
            current = auth.credentials
        if current is None:
            raise AuthenticationError(
                f"expected credentials for {self.host}, the login gave none",
                is_fatal=True,
            )
        return current

    async def _renew(self, auth: Auth, asking: _Asking) -> None:
        desk = self.desk or self
        await desk._join()  # noqa: SLF001 - of its own kind
        place = desk.gate.question()
        asking = replace(asking, interactive=True, place=place, partial=None)
        steps = auth.renew()
        try:
            request = next(steps)
            while True:
                try:
                    response = await desk._attempt(  # noqa: SLF001
                        request, None, asking
                    )
                except (AuthenticationError, NotFound, ResponseError) as error:
                    if is_transient(error):
                        raise
                    raise AuthenticationError(
                        f"{desk.host} gives no access: {error}",
                        status=getattr(error, "status", 0),
                        is_fatal=True,
                    ) from error
                try:
                    start = await in_thread(functools.partial(_beginning, response))
                finally:
                    await discard(response.body)
                request = steps.send(Reply(status=response.status, body=start))
        except StopIteration:
            pass

    async def _attempt(
        self, request: Request, credentials: Credentials | None, asking: _Asking
    ) -> Response:
        asking.is_rejected = asking.is_excused = False
        kind = "application/json" if request.media == "json" else "*/*"
        headers = {"Accept": request.accept or kind}
        if isinstance(request.body, str):
            headers["Content-Type"] = "application/json"
        if request.range is not None:
            headers["Range"] = request.range
        headers |= request.headers
        partial = asking.partial
        if partial is not None:
            headers |= partial.headers()
        async with self.gate.slot(
            interactive=asking.interactive,
            impatient=asking.impatient,
            max_wait=self._max_wait,
            deadline=asking.left() / self.gate.second,
            question=asking.place,
        ) as turn:
            hops = _Hops(self.gate, turn, asking, self._hide, self.failures)
            asking.sent_at = time.monotonic()
            try:
                response = await self._transport.send(
                    request.method,
                    self.url_of(request),
                    headers=headers,
                    credentials=credentials,
                    body=request.body,
                    spool_dir=asking.spool_dir,
                    hops=hops,
                    deadline=asking.left(),
                    partial=partial,
                    may_leave=request.may_leave,
                )
            except TransportError as error:
                hops.failed(error)
                raise
            except IntegrityError:
                hops.ended(200, {})  # cut, but there
                raise
            status = response.status
            if status == 404 and self._absence.is_down:
                status = 502  # nobody is behind it, whatever it says
            hops.ended(status, response.headers)
        shown = self._hide(response.url)
        if shown != response.url:
            response = replace(response, url=shown)
        if (
            asking.partial is not None
            and response.status == 416
            and asking.partial.size
        ):
            await discard(response.body)
            return asking.partial.whole_by(response)
        if not 200 <= response.status < 300:
            try:
                await self._refuse(response)
            finally:
                await discard(response.body)
        if self._notice is not None:
            self._notice(response.headers)
        if partial is not None:
            response = replace(response, body=partial.exact(response.body))
        return response

    async def _refuse(self, response: Response) -> None:
        status = response.status
        start = await in_thread(functools.partial(_beginning, response))
        if self._refusal is not None:
            own = self._refusal(status, start, response.url)
            if own is not None:
                raise own
        says = f"{status} from {response.url}: {excerpt(start)!r}"
        if status in {401, 403}:
            wants = "credentials" if self._auth is None else "other credentials"
            raise AuthenticationError(
                f"the service wants {wants}: {says}",
                status=status,
                excerpt=excerpt(start),
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

    async def _recovered(
        self,
        request: Request,
        consume: Consume[T],
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
        consume: Consume[T],
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
        consume: Consume[T],
    ) -> T:
        """Return what *consume* makes of an answer that is there, once it is proved."""
        body = response.body
        try:
            content = small_content(response)
            if content is not None:
                whole = prove([content], request.media, response.url)
                return await _awaited(consume(whole, response))
            value = await in_decode_thread(
                lambda: consume(
                    prove(body.chunks(), request.media, response.url), response
                )
            )
            return await _awaited(value)
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

    def _secrets(self) -> tuple[str, ...]:
        mine = () if self._auth is None else tuple(self._auth.secrets)
        return mine + self._transport.secrets

    def _hide(self, text: str) -> str:
        return hide(text, self._secrets())


@dataclass(slots=True, kw_only=True)
class _Asking:
    """One question on its way: how it is asked, and what became of it so far."""

    interactive: bool
    impatient: bool
    started: float
    """When it was asked, on the monotonic clock."""
    until: float
    """When it is given up, on the monotonic clock."""
    place: int
    """In the gate's queue."""
    spool_dir: Path | None
    observe: Observer
    partial: Partial | None
    """The file that the answer belongs to."""
    is_probe: bool = False
    is_doubted: bool = False
    """Whether a 404 came that was not believed."""
    reached: int = 0
    """Its size when the tries were counted anew."""
    attempts: int = 0
    tries: int = 0
    """Attempts that count against the question."""
    unproved: str | None = None
    """Checksum of a body whose end nothing proved."""
    is_rejected: bool = False
    """Whether the host was full."""
    is_excused: bool = False
    """Whether the host was down, which is not the question's fault."""
    sent_at: float = 0.0
    """When the last request left, on the monotonic clock."""
    on_wire: float = 0.0
    """Seconds from the last request's leave to its last byte."""

    def left(self) -> float:
        """Seconds until it is given up."""
        return self.until - time.monotonic()


class _Hops:
    """What one attempt puts on the wire, and what the gate is told of it."""

    def __init__(
        self,
        gate: Gate,
        turn: Turn,
        asking: _Asking,
        hide: Callable[[str], str],
        failures: Mapping[int, Failure],
    ) -> None:
        self._failures = failures
        self._gate = gate
        self._turn = turn
        self._asking = asking
        self._hide = hide
        self._sent_at = gate.now()
        self._took = 0.0

    async def leave(self, method: str, url: str) -> None:
        """Wait for the token of a hop."""
        self._sent_at = await self._turn.hop()
        self._asking.observe(RequestSent(method=method, url=self._hide(url)))

    def arrive(self, status: int, headers: Mapping[str, str]) -> None:
        """Note the head of an answer; a redirect may ask for a pause."""
        self._took = self._gate.now() - self._sent_at
        if 300 <= status < 400 and (asked := retry_after(headers)):
            if asked > LONGEST_RETRY_AFTER:
                raise _come_back(self._gate.host, asked, status)
            cause = f"{status} with Retry-After"
            self._gate.pause(asked, cause)
            self._tell_pause(asked, cause)

    def failed(self, error: TransportError) -> None:
        """Note that nothing usable came."""
        if not _is_final(error):  # else it is the gate's own
            kind = (
                Failure.HOST
                if getattr(error, "is_unreachable", False)
                else Failure.EITHER
            )
            self._asking.is_excused = self._gate.failed(self._turn, kind, str(error))

    def ended(self, status: int, headers: Mapping[str, str]) -> None:
        """Note an answer."""
        self._asking.on_wire = (self._gate.now() - self._sent_at) * self._gate.second
        if status in {429, 503}:
            asked = retry_after(headers)
            wait, cause, is_full = self._gate.rejected(
                self._turn, self._sent_at, status, asked
            )
            self._asking.is_rejected = is_full
            if wait > 0:
                self._tell_pause(wait, cause)
            if asked is None:  # else that one wins
                self._take_hint(headers)
            return
        self._take_hint(headers)
        if status in self._failures:
            says = f"answers with {status}"
            failed = self._gate.failed(self._turn, self._failures[status], says)
            self._asking.is_excused = failed
        else:
            self._gate.answered(self._turn, self._sent_at, self._took)

    def _tell_pause(self, seconds: float, cause: str) -> None:
        self._asking.observe(Paused(host=self._gate.host, seconds=seconds, cause=cause))

    def _take_hint(self, headers: Mapping[str, str]) -> None:
        """Let the gate know what an answer says of the host's limits."""
        if not speaks_of_limits(headers):
            return
        hint = hint_of(headers.items(), now=time.time())
        if hint is None or hint.reset > LONGEST_RETRY_AFTER:
            return  # the answer to one request too many says what is to be said
        self._gate.hint(hint.remaining, hint.reset)
        if (wait := self._gate.pause_left()) > 0:
            self._tell_pause(wait, "rate limit")


def _is_final(error: AsyncfetchError) -> bool:
    return getattr(error, "is_fatal", False) or getattr(error, "is_final", False)


def _come_back(host: str, seconds: float, status: int) -> ResponseError:
    return ResponseError(
        f"{host} asks to come back in {seconds:.0f} s; run again then",
        status=status,
        is_fatal=True,
    )


async def _awaited(value: T | Awaitable[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


def small_content(response: Response) -> bytes | None:
    """Return the inflated body when it is small enough for the event loop."""
    body = response.body
    if not body.is_small:
        return None
    if not body.is_compressed and isinstance(body.data, bytes):
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
    if (
        request.media in {"json", "any"}
        or body.is_compressed
        or body.proof is not Proof.NONE
    ):
        return None
    return body.sha256

"""Answers of a database kept for a while on disk, for calls that come again.

A file per question: by host, user, method, URL and body. It appears whole or not at
all. A call that writes makes every answer of that host and user void, before and after
it is carried out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs

from asyncfetch._body import Body, Proof
from asyncfetch._exchange import Answer, Consume, Exchange, T
from asyncfetch._model import Limits, Request, Response
from asyncfetch._threads import in_thread
from asyncfetch.errors import ConfigurationError

FIVE_MINUTES = 300.0


def folder_of(cache: object, base_url: str, user: str) -> Path:
    """Where the answers of a host to a user lie.

    Parameters
    ----------
    cache
        A directory, or True for the one in the user's cache directory.

    Raises
    ------
    ConfigurationError
        It is neither.
    """
    if cache is True:
        root = platformdirs.user_cache_path("asyncfetch") / "rest"
    elif isinstance(cache, str | Path) and str(cache):
        root = Path(cache)
    else:
        raise ConfigurationError(
            f"expected a directory or True for cache, got {cache!r}"
        )
    return root / hashlib.sha256(f"{base_url}\n{user}".encode()).hexdigest()[:32]


class CachedExchange(Exchange):
    """Asks by another exchange what it has no fresh answer to.

    Parameters
    ----------
    inner
        Asks the service.
    folder
        Where answers lie; made when there is one.
    seconds
        How long an answer is good.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self,
        inner: Exchange,
        *,
        folder: Path,
        seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(inner.base_url, default=Limits(), limits=Limits())
        self.gate = inner.gate
        self._inner = inner
        self._folder = folder
        self._seconds = seconds
        self._clock = clock

    @property
    def has_auth(self) -> bool:
        """Whether there are credentials, or a way to get some."""
        return self._inner.has_auth

    def shown_url(self, request: Request) -> str:
        """The URL of *request*, without secrets."""
        return self._inner.shown_url(request)

    async def ask(
        self, request: Request, consume: Consume[T], **options: Any
    ) -> Answer[T]:
        """As :meth:`Exchange.ask`; an interactive read may be answered from disk."""
        if not request.is_read:
            await in_thread(self._void)
            try:
                return await self._inner.ask(request, consume, **options)
            finally:
                await in_thread(self._void)
        if request.media != "json" or not options.get("interactive"):
            return await self._inner.ask(request, consume, **options)
        path = self._folder / self._name(request)
        known = await in_thread(lambda: self._read(path))
        if known is not None:
            return await self._from(known, request, consume)
        # A write that comes while the answer is on its way makes it void too.
        started = await in_thread(self._generation)
        received: list[bytes] = []

        def keep(chunks: Iterator[bytes], response: Response) -> Any:
            received[:] = [b"".join(chunks)]
            return consume(iter(received), response)

        answer: Answer[T] = await self._inner.ask(request, keep, **options)
        await in_thread(lambda: self._write(path, received[0], started))
        return answer

    async def void(self) -> None:
        """Forget every answer."""
        await in_thread(self._void)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    async def _from(
        self, content: bytes, request: Request, consume: Consume[T]
    ) -> Answer[T]:
        response = Response(
            status=200,
            headers={},
            url=self.shown_url(request),
            body=Body(
                data=content,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                proof=Proof.LENGTH,
            ),
        )
        value = await self.consume(request, response, consume)
        return Answer(value=value, response=response, attempts=0, elapsed=0.0)

    @staticmethod
    def _name(request: Request) -> str:
        words = [request.method, request.target, request.accept, str(request.body)]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()

    def _read(self, path: Path) -> bytes | None:
        with contextlib.suppress(OSError, ValueError):
            head, _, content = path.read_bytes().partition(b"\n")
            asked = float(head)
            if asked <= self._clock() < asked + self._seconds:
                return content
        return None

    def _generation(self) -> int | None:
        with contextlib.suppress(OSError):
            return self._folder.stat().st_ino
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._folder.stat().st_ino
        return None

    def _write(self, path: Path, content: bytes, started: int | None) -> None:
        # A cache that cannot be written is none: the answer is there all the same.
        with contextlib.suppress(OSError):
            if started is None or self._folder.stat().st_ino != started:
                return
            handle, name = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(f"{self._clock()}\n".encode() + content)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def _void(self) -> None:
        """Take all answers away at once, and then remove them."""
        gone = self._folder.with_name(f"{self._folder.name}-{os.urandom(4).hex()}")
        with contextlib.suppress(OSError):
            self._folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

"""How NeuroVault is asked: files beside its API, private collections, refusals.

A private collection answers by its token alone, and by its number to nobody, its owner
included. The token is the secret. So plans, items and events hold the number, and the
token takes its place on the wire: those that the user named, and those of the user's
own collections, once the service has said no to a number.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, urlsplit

import anyio

from asyncfetch import _auth
from asyncfetch._auth import Auth
from asyncfetch._decode import document
from asyncfetch._exchange import FAILURES, Answer, Consume, Exchange, T
from asyncfetch._health import Failure
from asyncfetch._model import Request
from asyncfetch._neurovault_schema import PAGE
from asyncfetch.errors import (
    AsyncfetchError,
    AuthenticationError,
    ConfigurationError,
    NotFound,
    ResponseError,
)
from asyncfetch.services._paging import target
from asyncfetch.services._refusals import words_of

logger = logging.getLogger("asyncfetch")

# What the server takes for the token of a private collection; to anything else that is
# no number it answers 500.
PRIVATE_TOKEN = re.compile(r"[A-Z]{8}")
_OF_COLLECTION = re.compile(r"(/collections/|/media/images/)(\d+)(?=/)")
_IN_URL = re.compile(r"/(?:collections|images)/([A-Z]{8})(?=[/-]|$)")
_MEDIA = re.compile(r"/media/images/([^/]+)/(.+)")
# Bad records fail every time; once more is for the server's sake, not for theirs.
_TRIES = 3


def login(token: str | None) -> Auth | None:
    """How the service knows its user; None for nobody.

    Raises
    ------
    ConfigurationError
        The token cannot be one.
    """
    if token is None:
        return None
    text = token.strip()
    if not text or len(text.split()) > 1:
        raise ConfigurationError(
            "expected a token of 40 hexadecimal digits, as Account settings > token on "
            "neurovault.org has it, got something else"
        )
    return _auth.token(text, scheme="Token")  # Bearer is ignored, without a word


def refusal(status: int, body: bytes, url: str) -> AsyncfetchError | None:
    """The error that a refusal of the service is; None where it says nothing of it."""
    words = words_of(body)
    if status == 401:
        return AuthenticationError(
            f"neurovault wants another token, or one: pass token to NeuroVault, or set "
            f"NEUROVAULT_TOKEN and use NeuroVault.from_env() (401 from {url}: {words})",
            status=status,
            excerpt=words or "",
            is_fatal=True,
        )
    if status == 403:  # of one collection; others answer
        return AuthenticationError(
            f"the collection is private, or somebody else's (403 from {url}): pass its "
            "token of 8 letters as private= to NeuroVault, or token= of its owner",
            status=status,
            excerpt=words or "",
        )
    if status == 500:
        return _failure(url)
    if words is None or status in {404, 429, 502, 503, 504}:
        return None
    return ResponseError(
        f"neurovault refuses ({status} from {url}): {words}",
        status=status,
        excerpt=words,
        retry_after=None,
    )


def _failure(url: str) -> ResponseError:
    """A 500: of a record that cannot be serialised, most likely."""
    found = parse_qs(urlsplit(url).query).get("limit", ["1"])
    if found != ["1"]:  # pieces of the page are the next try
        return ResponseError(
            f"neurovault fails on this page (500 from {url})", status=500, is_final=True
        )
    return ResponseError(
        f"neurovault cannot give this record (500 from {url})",
        status=500,
        tries=_TRIES,
        is_of_record=True,
    )


def media_target(link: str, collection: int) -> str:
    """The target of a file from the link to it: its path counts, its host does not.

    Raises
    ------
    ConfigurationError
        It leads to no file.
    """
    path = urlsplit(link).path
    found = _MEDIA.search(path)
    if found is None or ".." in path.split("/"):
        raise ConfigurationError(f"expected a link to a file, got {link[:200]!r}")
    return f"/media/images/{collection}/{quote(found[2], safe='/%')}"


class VaultExchange(Exchange):
    """Asks NeuroVault's API, and the site that its files lie on.

    Attributes
    ----------
    private
        Tokens of private collections, by their numbers, as far as they are known.
    given
        Tokens that the user named.
    """

    # A 500 is an answer, of a record that is bad: dividing its page meets many of them
    # in a row, and that looks like an outage.
    failures: ClassVar[Mapping[int, Failure]] = {
        one: kind for one, kind in FAILURES.items() if one != 500
    }

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(base_url, **options)
        self.site = self.base_url.removesuffix("/api")
        self.private: dict[int, str] = {}
        self.given: tuple[str, ...] = ()
        self._learning = anyio.Lock()
        self._has_learned = False

    def url_of(self, request: Request) -> str:
        """Where *request* goes: by its token, if it is about a private collection."""

        def key(found: re.Match[str]) -> str:
            return found[1] + self.private.get(int(found[2]), found[2])

        path = _OF_COLLECTION.sub(key, request.target, count=1)
        is_file = path.startswith("/media/")
        return f"{self.site if is_file else self.base_url}{path}"

    def shown_url(self, request: Request) -> str:
        """The URL of *request*, without secrets."""
        # What is asked by number is shown by number.
        is_file = request.target.startswith("/media/")
        where = self.site if is_file else self.base_url
        return self._hide(f"{where}{request.target}")

    async def ask(
        self, request: Request, consume: Consume[T], **options: Any
    ) -> Answer[T]:
        """As :meth:`Exchange.ask`; what is private is asked by its token."""
        if request.file is not None and request.file.size == 0:
            raise NotFound(
                f"neurovault has lost the file {self.shown_url(request)}: it says that "
                "its size is 0",
                attempts=0,
            )
        if request.is_read:  # a token in the text itself is no less a secret
            self._note(_IN_URL.findall(request.target))
        try:
            return await super().ask(request, consume, **options)
        except AuthenticationError as error:
            found = _OF_COLLECTION.search(request.target)
            if error.status != 403 or found is None or int(found[2]) in self.private:
                raise
            await self._learn()
            if int(found[2]) not in self.private:
                raise
        return await super().ask(request, consume, **options)

    def _note(self, tokens: Iterable[str]) -> None:
        self.given = tuple(dict.fromkeys((*self.given, *tokens)))

    async def _learn(self) -> None:
        """Find out which collections the tokens belong to, once."""
        async with self._learning:
            if self._has_learned:
                return
            for token in self.given:
                try:
                    record = await self._json(f"/collections/{token}/")
                    self.private[record["id"]] = token
                except (ResponseError, NotFound, AuthenticationError) as error:
                    logger.warning("a private collection: %s", error)
            if self.has_auth:
                await self._learn_own()
            self._has_learned = True

    async def _learn_own(self) -> None:
        offset: int | None = 0
        while offset is not None:
            query = {"limit": str(PAGE), "offset": str(offset)}
            try:
                body = await self._json(target("/my_collections/", query))
            except ResponseError as error:
                logger.warning("collections of one's own: %s", error)
                return
            for record in body["results"]:
                token = _IN_URL.search(record.get("url") or "")
                if record.get("private") and token is not None:
                    self.private[record["id"]] = token[1]
            has_more = body.get("next") and body["results"]
            offset = offset + len(body["results"]) if has_more else None

    async def _json(self, where: str) -> Mapping[str, Any]:
        answer = await super().ask(
            Request(target=where), lambda chunks, _: document(chunks), interactive=True
        )
        body: Mapping[str, Any] = answer.value
        return body

    def _secrets(self) -> tuple[str, ...]:
        return (*super()._secrets(), *self.given, *self.private.values())

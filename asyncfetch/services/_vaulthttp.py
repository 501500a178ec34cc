"""How NeuroVault is asked: files beside its API, private collections, refusals.

A private collection answers by its token alone, and by its number to nobody, its owner
included. The token is the secret. So plans, items and events hold the number, and the
token takes its place on the wire: those that the user named, and those of the user's
own collections, once the service has said no to a number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

import anyio

from asyncfetch import _auth
from asyncfetch._auth import Auth
from asyncfetch._body import Body, Proof
from asyncfetch._dataset import View, open_dataset
from asyncfetch._decode import document
from asyncfetch._exchange import FAILURES, Answer, Consume, Exchange, T
from asyncfetch._health import Failure
from asyncfetch._model import Request, Response
from asyncfetch._neurovault_schema import PAGE
from asyncfetch._partial import Partial
from asyncfetch._threads import in_thread
from asyncfetch.errors import (
    AsyncfetchError,
    AuthenticationError,
    ConfigurationError,
    DatasetError,
    DecodeError,
    IntegrityError,
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


_EARLIER = "/earlier/"


def earlier(dest: str) -> Request:
    """What asks for the files that an earlier dataset holds; it goes to no server."""
    return Request(target=f"{_EARLIER}{quote(dest, safe='')}")


class VaultExchange(Exchange):
    """Asks NeuroVault's API, and the site that its files lie on.

    A file that an earlier dataset holds, with the checksum that is wanted, is taken
    from there.

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
        self._there: dict[str, tuple[View, str]] = {}
        """Files of earlier datasets, by their checksums: which, and what path."""
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
        if request.target.startswith(_EARLIER):
            return await self._earlier(request, consume)
        if (known := await self._copied(request, consume, options)) is not None:
            return known
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

    async def _earlier(self, request: Request, consume: Consume[T]) -> Answer[T]:
        """What an earlier dataset holds: by image, its time and its checksum."""
        dest = unquote(request.target.removeprefix(_EARLIER))
        rows, there = await in_thread(lambda: _held(dest))
        self._there |= there
        text = json.dumps(rows).encode()
        digest = hashlib.sha256(text).hexdigest()
        response = self._as_response(request, text, len(text), digest)
        value = await self.consume(request, response, consume)
        return Answer(value=value, response=response, attempts=0, elapsed=0.0)

    async def _copied(
        self, request: Request, consume: Consume[T], options: Mapping[str, Any]
    ) -> Answer[T] | None:
        """A file as an earlier dataset has it; None where it must be asked for."""
        partial: Partial | None = options.get("partial")
        checksum = request.file.checksum if request.file is not None else None
        found = self._there.get(checksum or "")
        if partial is None or found is None:
            return None
        view, path = found
        partial.begin(200, {})
        try:
            await in_thread(lambda: _copy(view, path, partial))
            data = partial.path or b"".join(partial.pieces)
            digest = partial.digest.hexdigest()
            response = self._as_response(request, data, partial.size, digest)
            value = await self._consume_file(request, response, consume, partial)
        except (OSError, IntegrityError, DecodeError) as error:
            logger.warning("%s is not what it was (%s): it is asked for", path, error)
            partial.start_over()
            return None
        return Answer(value=value, response=response, attempts=0, elapsed=0.0)

    def _as_response(
        self, request: Request, data: bytes | Path, size: int, sha256: str
    ) -> Response:
        """An answer of bytes that are here."""
        body = Body(data=data, size=size, sha256=sha256, proof=Proof.LENGTH)
        url = self.shown_url(request)
        return Response(status=200, headers={}, url=url, body=body)

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


def _held(dest: str) -> tuple[dict[str, Any], dict[str, tuple[View, str]]]:
    """Files of a dataset: time and checksum by image, and where they are. Blocks.

    Raises
    ------
    ConfigurationError
        It is none of NeuroVault's files.
    """
    view = open_dataset(dest)
    if (view.plan.service, view.plan.table) != ("neurovault", "files"):
        raise ConfigurationError(
            f"expected a dataset of neurovault/files as earlier, got one of "
            f"{view.plan.service}/{view.plan.table} at {dest}"
        )
    rows: dict[str, Any] = {}
    there: dict[str, tuple[View, str]] = {}
    columns = ["id", "path", "sha256", "modify_date"]
    for batch in view.rows.to_batches(columns=columns):
        for row in batch.to_pylist():
            if row["modify_date"] is not None:
                rows[str(row["id"])] = [row["modify_date"].isoformat(), row["sha256"]]
                there[row["sha256"]] = view, row["path"]
    return rows, there


def _copy(view: View, path: str, partial: Partial) -> None:
    """Let *partial* take a file of another dataset. Blocks.

    Raises
    ------
    IntegrityError
        It cannot be read there.
    """
    for piece in _read(view, path):
        partial.add(piece)
        if partial.wants_write:
            partial.write()
    partial.finish()


def _read(view: View, path: str) -> Iterator[bytes]:
    try:
        yield from view.file(path)
    except (DatasetError, LookupError) as error:  # also where it cannot be reached
        raise IntegrityError(str(error)) from error

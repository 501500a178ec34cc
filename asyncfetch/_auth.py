"""Credentials: what a request bears, how new ones are got, and what may be shown.

Pure: nothing here sends anything. An :class:`Auth` says what requests bear; when an
answer says that this is no longer good, its :meth:`~Auth.renew` yields the requests
that get something better and is sent their answers. The exchange carries them out, for
all tasks at once, and the transport adds credentials to requests for the service's own
origin and to no other, redirects included.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import quote, quote_plus

import msgspec

from asyncfetch._model import Request
from asyncfetch.errors import AuthenticationError, ConfigurationError

HIDDEN = "***"
# Query parameters that are secrets by their name, wherever a URL comes from: what
# services call their keys, and the signatures of presigned URLs.
_BY_NAME = (
    "api[-_]?key|key|token|(?:access|auth|private|refresh|security)[-_]token|auth|"
    "passw(?:or)?d|secret|client[-_]secret|sig|signature|"
    "x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid"
)
_SECRET_PAIR = re.compile(rf"([?&;](?:{_BY_NAME})=)[^&;#\s'\"<>]+", re.IGNORECASE)
# Shorter texts are words like others; to hide each of them would hide everything.
_SHORTEST = 4
# Seconds before a token's end at which another one is got: more than a slow answer to
# a request that was sent with the old one takes.
_EARLY = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What requests to the service's own origin bear; not shown by ``repr``."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Parameters that join the query string, unquoted."""

    def __post_init__(self) -> None:
        """Refuse what would end a header early.

        Raises
        ------
        ConfigurationError
            A value is empty, or holds something that no header can.
        """
        for values in (self.headers, self.query):
            for name, value in values.items():
                if not name or not value.strip() or not f"{name}{value}".isprintable():
                    raise ConfigurationError(
                        f"expected credentials of printable characters for {name!r}, "
                        "got something else (a line end, or nothing?)"
                    )

    def added_to(self, query: str) -> str:
        """A raw query string with the parameters in it once each."""
        if not self.query:
            return query
        rest = [
            pair
            for pair in query.split("&")
            if pair and pair.partition("=")[0] not in self.query
        ]
        mine = [
            f"{quote(name, safe='')}={quote(value, safe='')}"
            for name, value in self.query.items()
        ]
        return "&".join(rest + mine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back for a request of :meth:`Auth.renew`."""

    status: int
    body: bytes = field(repr=False)


class Auth(Protocol):
    """How a service knows its user."""

    @property
    def credentials(self) -> Credentials | None:
        """What requests bear now; None when that has to be got first."""

    @property
    def secrets(self) -> Iterable[str]:
        """Texts that must never be shown."""

    def goes_with(self, request: Request) -> bool:
        """Whether *request* bears credentials; another one is asked as by anybody."""

    def is_stale(self, status: int, body: bytes) -> bool:
        """Whether a refusal says that the credentials are no longer good."""

    def renew(self) -> Generator[Request, Reply, None]:
        """Get other :attr:`credentials`: yields requests, is sent their answers.

        The requests go to the service without credentials. An answer that is not a
        2xx never arrives here: it ends the renewal.

        Raises
        ------
        AuthenticationError
            The answers held none.
        """


@dataclass(frozen=True, slots=True)
class Fixed:
    """Credentials that are what they are: given once, never renewed."""

    credentials: Credentials
    secrets: tuple[str, ...] = field(repr=False)

    def goes_with(self, _request: Request) -> bool:
        """Every request bears them."""
        return True

    def is_stale(self, _status: int, _body: bytes) -> bool:
        """Nothing better could be got."""
        return False

    def renew(self) -> Generator[Request, Reply, None]:
        """Never called."""
        yield from ()


def token(value: str, *, scheme: str = "Bearer") -> Fixed:
    """An ``Authorization`` header of a scheme and a token.

    Parameters
    ----------
    scheme
        ``Bearer`` (RFC 6750), or the service's own word: ``Token``, ``JWT``.
    """
    return Fixed(Credentials(headers={"Authorization": f"{scheme} {value}"}), (value,))


def basic(user: str, password: str) -> Fixed:
    """HTTP basic authentication, in UTF-8 (RFC 7617).

    Raises
    ------
    ConfigurationError
        The user name holds a colon.
    """
    if ":" in user:
        raise ConfigurationError("expected a user name without a colon")
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    credentials = Credentials(headers={"Authorization": f"Basic {pair}"})
    return Fixed(credentials, (password, pair))


def api_key(
    value: str, *, name: str = "X-Api-Key", place: Literal["header", "query"] = "header"
) -> Fixed:
    """A key in a header of its own, or in the query string."""
    if place == "query":
        return Fixed(Credentials(query={name: value}), (value,))
    return Fixed(Credentials(headers={name: value}), (value,))


def every(_request: Request) -> bool:
    """Whether a request bears credentials: all do."""
    return True


def refused(status: int, _body: bytes) -> bool:
    """Whether an answer is a 401: the credentials are not good, or no longer."""
    return status == 401


class TokenLogin:
    """Tokens that a login gives out, and that may expire.

    Parameters
    ----------
    path
        The token endpoint, below the base URL.
    fields
        What is sent there as a JSON object: user, password, grant.
    token_at
        Member of the answer's object that holds the token.
    scheme
        First word of the ``Authorization`` header.
    stale
        From status and body of a refusal: whether another token may help.
    where
        Whether a request bears the token.
    given
        A token to begin with, if there is one.
    clock
        Seconds that only go up.

    A token that says how long it lives (a JSON Web Token, RFC 7519), or comes with the
    seconds that it lives (``expires_in``, RFC 6749), is replaced a little before its
    end. Only the length counts, from one of the server's times to the
    other, so that it does not matter what this machine's clock says.
    """

    def __init__(
        self,
        path: str,
        fields: Mapping[str, str],
        *,
        token_at: str = "access_token",  # noqa: S107 - RFC 6749's word for the member
        scheme: str = "Bearer",
        stale: Callable[[int, bytes], bool] = refused,
        where: Callable[[Request], bool] = every,
        given: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = Request(target=path, method="POST", body=json.dumps(fields))
        self._given = tuple(fields.values())
        self._token_at = token_at
        self._scheme = scheme
        self._stale = stale
        self._where = where
        self._clock = clock
        self._until = math.inf
        self._current = None if given is None else token(given, scheme=scheme)
        self._former: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"TokenLogin({self._request.target!r})"

    @property
    def credentials(self) -> Credentials | None:
        """The last token; None before the first login, and when its time is over."""
        if self._current is None or self._clock() >= self._until:
            return None
        return self._current.credentials

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is sent to log in, the token, and the one before it.

        An answer that was under way while the token changed may still name the former.
        """
        now = () if self._current is None else self._current.secrets
        return (*self._given, *now, *self._former)

    def goes_with(self, request: Request) -> bool:
        """Whether *request* bears the token."""
        return self._where(request)

    def is_stale(self, status: int, body: bytes) -> bool:
        """Whether another token may help."""
        return self._stale(status, body)

    def renew(self) -> Generator[Request, Reply, None]:
        """Log in."""
        asked = self._clock()
        reply = yield self._request
        try:
            answer: Any = msgspec.json.decode(reply.body)
            found = answer[self._token_at]
        except (msgspec.DecodeError, KeyError, TypeError, IndexError):
            found = None
        if not isinstance(found, str) or not found:
            raise AuthenticationError(
                f"expected a token - at $.{self._token_at} of {self._request.target}, "
                "got something else",
                status=reply.status,
                is_fatal=True,
            )
        self._former = () if self._current is None else self._current.secrets
        self._current = token(found, scheme=self._scheme)
        life = min(lifetime(found), _seconds(answer.get("expires_in")))
        self._until = asked + max(life - _EARLY, life / 2)


def _seconds(value: object) -> float:
    try:
        seconds = float(value) if isinstance(value, int | float | str) else 0.0
    except ValueError:
        seconds = 0.0
    return seconds if seconds > 0 else math.inf


def lifetime(jwt: str) -> float:
    """Seconds from begin to end of a JSON Web Token; infinite where it says none."""
    try:
        claims = jwt.split(".")[1]
        text = base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
        said: Any = msgspec.json.decode(text)
        seconds = float(said["exp"]) - float(said["iat"])
    except (ValueError, KeyError, TypeError, IndexError):
        return math.inf  # no such token, or one without an end
    return seconds if seconds > 0 else math.inf


def is_secret_name(name: str) -> bool:
    """Whether a query parameter of that name is a secret, wherever it comes from."""
    return re.fullmatch(_BY_NAME, name, re.IGNORECASE) is not None


def hide(text: str, secrets: Iterable[str] = ()) -> str:
    """*text* with every secret in it replaced by ``***``.

    These are the values of query parameters that are secrets by name, and *secrets*,
    also where they are quoted for a URL or for JSON.
    """
    if "=" in text:
        text = _SECRET_PAIR.sub(rf"\1{HIDDEN}", text)
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            for form in (
                secret,
                quote(secret, safe=""),
                quote(secret),
                quote_plus(secret),
                json.dumps(secret)[1:-1],
                repr(secret)[1:-1],
            ):
                if form in text:
                    text = text.replace(form, HIDDEN)
    return text


def scrub(error: BaseException, secrets: Iterable[str]) -> None:
    """Take every secret out of what *error* says and carries.

    What it was raised from is let go when that would say one.
    """
    secrets = tuple(secrets)
    error.args = tuple(
        hide(one, secrets) if isinstance(one, str) else one for one in error.args
    )
    for name, value in vars(error).items():
        if isinstance(value, str):
            vars(error)[name] = hide(value, secrets)
    cause = error.__cause__ or error.__context__
    while cause is not None:
        for said in (str(cause), repr(cause)):
            if hide(said, secrets) != said:
                error.__cause__ = error.__context__ = None
                return
        cause = cause.__cause__ or cause.__context__

"""Neuroscout's accounts: logging in, tokens that expire, and what only a user sees."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from asyncfetch.testing._answer import Answer, Call
from asyncfetch.testing._neuroscout_http import json_answer

Record = dict[str, Any]

PASSWORD = "example-password"  # noqa: S105 - of accounts that exist in the archive only
_KEY = b"a key that protects nothing"
_LIFETIME = 7 * 86400
_LEEWAY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody who can log in."""

    id: int
    email: str
    user_name: str | None
    trouble: str | None = None
    """What every call after the login is answered with, instead of data."""

    @property
    def profile(self) -> Record:
        """The record of ``GET user``."""
        return {
            "email": self.email,
            "first_login": None,
            "institution": None,
            "name": "Example User",
            "orcid": None,
            "personal_site": None,
            "picture": None,
            "public_email": None,
            "twitter_handle": None,
            "user_name": self.user_name,
        }


ACCOUNTS = tuple(
    Account(id=number, email=f"{name}@example.com", user_name=user, trouble=trouble)
    for number, (name, user, trouble) in enumerate(
        (
            ("user", "example_user", None),
            ("adelavega", "adelavega", None),
            ("other", None, None),
            ("disabled", "disabled", "Your account has been disabled."),
            ("new", "new", "Your account has not been confirmed."),
        ),
        start=1,
    )
)


class RefusedError(Exception):
    """A call without a good token; holds the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Users:
    """Logs in, and knows by its token who calls."""

    def __init__(self) -> None:
        self.passed = 0.0
        """Seconds by which the service's clock is ahead."""

    def _now(self) -> float:
        return time.time() + self.passed

    def log_in(self, call: Call) -> Answer | None:
        """The answer to ``POST auth``; None for one that the server stumbles over."""
        try:
            sent = json.loads(call.body)
        except ValueError:
            return None
        for account in ACCOUNTS:
            if sent == {"email": account.email, "password": PASSWORD}:
                now = int(self._now())
                claims = {
                    "exp": now + _LIFETIME,
                    "iat": now,
                    "identity": account.id,
                    "nbf": now,
                }
                return json_answer(call, {"access_token": _signed(claims)})
        return _no(call, "Invalid credentials", "Bad Request")

    def caller(self, call: Call) -> Account:
        """Who calls.

        Raises
        ------
        RefusedError
            Nobody who may.
        """
        words = call.authorization.split()
        if not words:
            answer = _no(
                call,
                "Request does not contain an access token",
                "Authorization Required",
            )
            realm = {"WWW-Authenticate": 'JWT realm="Login Required"'}
            answer = replace(answer, headers={**answer.headers, **realm})
            raise RefusedError(answer)
        trouble = None
        if words[0].lower() != "jwt":
            trouble = "Unsupported authorization type"
        elif len(words) == 1:
            trouble = "Token missing"
        elif len(words) > 2:
            trouble = "Token contains spaces"
        if trouble is not None:
            raise RefusedError(_no(call, trouble, "Invalid JWT header"))
        claims = _verified(words[1])
        if claims is None:
            raise RefusedError(
                _no(call, "Signature verification failed", "Invalid token")
            )
        if self._now() > claims["exp"] + _LEEWAY:
            raise RefusedError(_no(call, "Signature has expired", "Invalid token"))
        account = next((a for a in ACCOUNTS if a.id == claims["identity"]), None)
        if account is None:
            raise RefusedError(_no(call, "User does not exist", "Invalid JWT"))
        if account.trouble is not None:
            raise RefusedError(
                json_answer(call, {"message": account.trouble}, status=401)
            )
        return account


def public_profiles() -> Iterable[Record]:
    """What anybody sees of the accounts that have a name."""
    return [
        {**account.profile, "email": "HIDDEN"}
        for account in ACCOUNTS
        if account.user_name
    ]


def _no(call: Call, description: str, error: str) -> Answer:
    body = {"description": description, "error": error, "status_code": 401}
    return json_answer(call, body, status=401)


def _signed(claims: Mapping[str, Any]) -> str:
    head = _encoded(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = _encoded(json.dumps(claims).encode())
    return f"{head}.{body}.{_signature(f'{head}.{body}')}"


def _verified(token: str) -> Mapping[str, Any] | None:
    found = re.fullmatch(r"([\w-]+\.([\w-]+))\.([\w-]+)", token)
    if not found or not hmac.compare_digest(_signature(found[1]), found[3]):
        return None
    padded = found[2] + "=" * (-len(found[2]) % 4)
    claims: Mapping[str, Any] = json.loads(base64.urlsafe_b64decode(padded))
    return claims


def _signature(text: str) -> str:
    return _encoded(hmac.digest(_KEY, text.encode(), hashlib.sha256))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

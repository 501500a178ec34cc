"""What passes between the server and the services that it plays."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import parse_qsl

import numpy as np

Framing = Literal["length", "chunked", "close"]
"""How the end of a body is marked: Content-Length, chunks, or only by closing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as a service sees it."""

    method: str
    """Upper case."""
    target: str
    """Path and query exactly as on the wire, the service's prefix included."""
    path: str
    """The path below the service's prefix, still percent-encoded."""
    query: str
    """The query string, still percent-encoded."""
    body: bytes = b""
    """The request body; empty for a GET."""
    content_type: str = ""
    """The ``Content-Type`` of the body, or an empty text."""
    authorization: str = ""
    """The ``Authorization`` header, or an empty text."""
    accept: str = ""
    """The ``Accept`` header, or an empty text."""
    origin: str = ""
    """Scheme and host by which the client came: the beginning of links."""
    accepts_gzip: bool = False
    """The client sent ``Accept-Encoding`` with gzip in it."""

    def pairs(self) -> list[tuple[str, str]]:
        """Decoded query parameters, in order, empty values kept."""
        return parse_qsl(self.query, keep_blank_values=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole response."""

    status: int = 200
    """The HTTP status."""
    body: bytes = b""
    """The body as it goes out, content encoding applied."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers beside those that frame the body."""
    framing: Framing = "length"
    """How the end of the body is marked."""
    may_be_kept: bool = True
    """The same call will be answered the same."""


class Service(Protocol):
    """One web API.

    An answer is a pure function of the call and of the seed and scale that the
    service was made with, so that the server may keep it, and ask in any thread; but
    for those that say otherwise.
    """

    prefix: str
    """The path that everything of the service lies under, without a final slash."""
    environment: Mapping[str, str]
    """Environment variables that lead the client here, name to path."""

    def answer(self, call: Call) -> Answer:
        """The response to *call*."""
        ...


def uniforms(*words: object) -> tuple[float, float, float, float]:
    """Four numbers in [0, 1) that depend on nothing but *words*."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=32).digest()
    # 53 bits each: what a double holds, so that 1.0 cannot come out by rounding.
    a, b, c, d = (n >> 11 for n in struct.unpack("<4Q", digest))
    return (a / 2**53, b / 2**53, c / 2**53, d / 2**53)


def generator(*words: object) -> np.random.Generator:
    """A random generator that depends on nothing but *words*."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))

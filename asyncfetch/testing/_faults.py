"""How the archive misbehaves: the faults, how they are drawn, and how they are named.

A fault is drawn from the faults' seed, the target, and how many times that target was
asked before. So the third request of one target meets the same fate whatever else was
asked in between, and a retry can succeed. Throttling and outages depend on the clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from statistics import NormalDist
from typing import Literal, cast, get_args

from asyncfetch.errors import ConfigurationError
from asyncfetch.testing._answer import Framing, uniforms

Ending = Literal["whole", "close", "reset", "clean"]
RetryAfterStyle = Literal["seconds", "date", "none"]
LimitHeaders = Literal[
    "none",
    "draft-06",
    "draft-07",
    "draft-08",
    "epoch",
    "milliseconds",
    "delta",
    "twitter",
    "discord",
    "kong",
]
"""In which of their generations the headers say what a rate limit leaves."""

MAINTENANCE = b"""<!DOCTYPE html>
<html><head><title>Service Interruption Notice</title></head>
<body><h1>Service Interruption Notice</h1>
<p>The site is down for maintenance and will be back shortly.</p></body></html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What becomes of one answer; the default sends it as it is."""

    status: int | None = None
    """Another status."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers to add or to replace; an empty value removes one."""
    body: bytes | None = None
    """Another body, sent without content encoding."""
    framing: Framing | None = None
    """Another way to mark the end of the body."""
    ending: Ending = "whole"
    """``close`` and ``reset`` end the connection at `after`; ``clean`` ends the body
    there, as if it were whole."""
    after: float | None = None
    """Where it ends: bytes of the body as sent, or a share of it when below 1. With
    ``reset``, None is before the first byte of the head."""
    delay: float = 0.0
    """Seconds before the first byte, beside the archive's latency."""
    piece: float | None = None
    """Bytes to send at a time, or a share of the body when below 1; at least 16."""
    pause: float = 0.0
    """Seconds between pieces."""
    only_gzip: bool = False
    """Leave an answer that is not compressed alone."""

    @classmethod
    def reset(cls, *, after: float | None = None) -> Fault:
        """Reset the connection, before the first byte or inside the body."""
        return cls(ending="reset", after=after)

    @classmethod
    def truncate(cls, *, after: float = 0.5) -> Fault:
        """Promise a Content-Length and close before it is reached."""
        return cls(framing="length", ending="close", after=after)

    @classmethod
    def truncate_silent(cls, *, after: float = 0.5) -> Fault:
        """Cut the body where only its own syntax can tell, as HTTP/1.0 allows."""
        return cls(framing="close", ending="close", after=after)

    @classmethod
    def truncate_gzip(cls, *, after: float = 0.5) -> Fault:
        """Cut the compressed stream and end the chunks cleanly."""
        return cls(framing="chunked", ending="clean", after=after, only_gzip=True)

    @classmethod
    def html(cls, status: int = 200) -> Fault:
        """A maintenance page in place of the data."""
        return cls(status=status, headers=_HTML, body=MAINTENANCE)

    @classmethod
    def refuse(cls, status: int, *, retry_after: float | datetime | None) -> Fault:
        """A 429 or 503 with ``Retry-After`` in seconds, as a date, or without."""
        body = f"<html><body><h1>{status}</h1></body></html>\n".encode()
        return cls(
            status=status,
            headers={**_HTML, "Retry-After": _retry_after(retry_after)},
            body=body,
        )

    @classmethod
    def error_object(cls, target: str) -> Fault:
        """A JSON error under a 200."""
        body = json.dumps(
            {
                "status": 500,
                "error": "Internal Server Error",
                "message": "could not execute query",
                "path": target.partition("?")[0],
            }
        )
        return cls(
            status=200,
            headers={"Content-Type": "application/json"},
            body=body.encode("ascii"),
        )

    @classmethod
    def drip(cls, *, piece: float = 0.01, pause: float = 0.05) -> Fault:
        """The whole body, a little at a time; unless told otherwise, in 5 seconds."""
        return cls(piece=piece, pause=pause)


_HTML = {"Content-Type": "text/html"}


def _retry_after(value: float | datetime | None) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return format_datetime(value.astimezone(UTC), usegmt=True)
    return str(math.ceil(value))


def _in_seconds(seconds: float) -> datetime:
    # An HTTP date has whole seconds: rounded up, so that it never invites too early.
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.replace(microsecond=0) + timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """At most *count* answers in each window of *seconds*; beyond, 429."""

    count: int
    seconds: float
    style: RetryAfterStyle = "seconds"
    limit_headers: LimitHeaders = "none"
    """What every answer says of the limit, the 429 included."""

    def headers(self, used: int, wait: float) -> Mapping[str, str]:
        """The limit's headers with *used* answers given, *wait* seconds before more."""
        left = str(max(0, self.count - used))
        quota, window = str(self.count), f"{self.seconds:g}"
        whole = str(math.ceil(wait))
        policy = {"RateLimit-Policy": f"{quota};w={window}"}
        match self.limit_headers:
            case "draft-06":
                return policy | _three("RateLimit", quota, left, whole)
            case "draft-07":
                text = f"limit={quota}, remaining={left}, reset={whole}"
                return policy | {"RateLimit": text}
            case "draft-08":
                # The day's quota is named as well: the tighter one is the other.
                return {
                    "RateLimit-Policy": f'"w";q={quota};w={window};pk=:MTI3:, '
                    '"daily";q=999999999;w=86400, '
                    '"size";q=1000;w=86400;qu="content-bytes"',
                    "RateLimit": f'"daily";r=999999;t=1000, "size";r=0;t=86400, '
                    f'"w"; r={left}; t={whole}',
                }
            case "epoch" | "milliseconds":
                scale = 1 if self.limit_headers == "epoch" else 1000
                reset = math.ceil((datetime.now(UTC).timestamp() + wait) * scale)
                return _three("X-RateLimit", quota, left, str(reset))
            case "delta":
                return _three("X-RateLimit", quota, left, whole)
            case "twitter":
                return _three("X-Rate-Limit", quota, left, whole)
            case "discord":
                limit = _three("X-RateLimit", quota, left, "")
                return limit | {"X-RateLimit-Reset-After": f"{wait:.3f}"}
            case "kong":
                unit = "Second" if self.seconds == 1 else "Minute"
                return {
                    f"X-RateLimit-Limit-{unit}": quota,
                    f"X-RateLimit-Remaining-{unit}": left,
                }
        return {}

    def refusal(self, wait: float) -> Fault:
        """The 429 for a request that comes *wait* seconds before the next window."""
        match self.style:
            case "seconds":
                return Fault.refuse(429, retry_after=wait)
            case "date":
                return Fault.refuse(429, retry_after=_in_seconds(wait))
            case _:
                return Fault.refuse(429, retry_after=None)


def _three(family: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    return {
        f"{family}-Limit": limit,
        f"{family}-Remaining": remaining,
        f"{family}-Reset": reset,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """Which faults there are, and how often."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """Probability of each drawn fault, by name."""
    throttle: Throttle | None = None
    """The rate limit, or None."""
    outage: tuple[float, float] | None = None
    """Start and length, in seconds after the first request."""
    away: tuple[float, float] | None = None
    """The same for NeuroMorpho alone, which then answers 404 to everything."""
    latency: Callable[[float], float] | None = None
    """Seconds before the first byte, from a number in (0, 1)."""
    seed: int = 0
    """What the draws depend on beside the target."""

    def draw(self, target: str, nth: int) -> Fault | None:
        """What happens to the *nth* request (from 0) of *target*."""
        if not self.shares:
            return None
        chance, detail, more, _ = uniforms(self.seed, "fault", target, nth)
        for name, share in self.shares.items():
            if chance < share:
                return _DRAWN[name](target, detail, more)
            chance -= share
        return None

    def delay(self, target: str, nth: int) -> float:
        """Seconds that the *nth* request of *target* waits for its first byte."""
        if self.latency is None:
            return 0.0
        # An open interval: the quantile of 0 is minus infinity.
        return self.latency(uniforms(self.seed, "latency", target, nth)[0] or 2**-54)


def _unavailable(_: str, detail: float, more: float) -> Fault:
    wait = 1 + int(2 * more)
    return Fault.refuse(503, retry_after=wait if detail < 0.5 else _in_seconds(wait))


# Every drawn fault: from the target and two numbers in [0, 1) to what happens.
_DRAWN: dict[str, Callable[[str, float, float], Fault]] = {
    "error": lambda _, u, __: Fault.html((500, 502, 503)[int(3 * u)]),
    "reset": lambda *_: Fault.reset(),
    "reset_body": lambda _, u, __: Fault.reset(after=0.05 + 0.9 * u),
    "truncate": lambda _, u, __: Fault.truncate(after=0.05 + 0.9 * u),
    "truncate_silent": lambda _, u, __: Fault.truncate_silent(after=0.05 + 0.9 * u),
    "truncate_gzip": lambda _, u, __: Fault.truncate_gzip(after=0.05 + 0.9 * u),
    "html": lambda *_: Fault.html(),
    "error_object": lambda target, *_: Fault.error_object(target),
    "unavailable": _unavailable,
    "drip": lambda *_: Fault.drip(),
}
_OTHERS = (
    "throttle",
    "throttle_style",
    "throttle_headers",
    "outage",
    "away",
    "latency",
    "seed",
)


def parse_faults(text: str, *, seed: int = 0) -> FaultPlan:
    """The plan that a comma list such as ``error=0.02,throttle=5/s,seed=7`` names.

    Raises
    ------
    ConfigurationError
        A name is not known, or a value does not have the form that its name wants.
    """
    words: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        if name not in _DRAWN and name not in _OTHERS:
            known = ", ".join([*_DRAWN, *_OTHERS])
            raise ConfigurationError(f"unknown fault {name!r}: expected one of {known}")
        words[name] = value
    shares = {
        name: _number(name, words[name], most=1.0) for name in _DRAWN if name in words
    }
    if sum(shares.values()) > 1:
        raise ConfigurationError(
            f"faults come to {sum(shares.values()):g} of all requests: expected <= 1"
        )
    return FaultPlan(
        shares=shares,
        throttle=_throttle(words),
        outage=_outage("outage", words["outage"]) if "outage" in words else None,
        away=_outage("away", words["away"]) if "away" in words else None,
        latency=_latency(words["latency"]) if "latency" in words else None,
        seed=int(_number("seed", words["seed"])) if "seed" in words else seed,
    )


def _number(name: str, text: str, *, most: float = math.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most or math.isinf(number):
        limit = "" if math.isinf(most) else f" up to {most:g}"
        raise ConfigurationError(
            f"expected {name}=NUMBER{limit}, not negative - got {name}={text}"
        )
    return number


def _throttle(words: Mapping[str, str]) -> Throttle | None:
    style = _word(words, "throttle_style", "seconds", get_args(RetryAfterStyle))
    headers = _word(words, "throttle_headers", "none", get_args(LimitHeaders))
    if "throttle" not in words:
        return None
    count, _, unit = words["throttle"].partition("/")
    seconds = {"s": 1.0, "min": 60.0}.get(unit)
    if seconds is None or not count.isdecimal() or int(count) == 0:
        raise ConfigurationError(
            f"expected throttle=N/s or N/min - got throttle={words['throttle']}"
        )
    return Throttle(
        count=int(count),
        seconds=seconds,
        style=cast("RetryAfterStyle", style),
        limit_headers=cast("LimitHeaders", headers),
    )


def _word(
    words: Mapping[str, str], name: str, default: str, known: Sequence[str]
) -> str:
    word = words.get(name, default)
    if word not in known:
        raise ConfigurationError(
            f"expected {name}={', '.join(known[:-1])} or {known[-1]} - got {word!r}"
        )
    return word


def _outage(name: str, text: str) -> tuple[float, float]:
    start, plus, length = text.partition("+")
    if not plus:
        raise ConfigurationError(f"expected {name}=START+LENGTH - got {name}={text}")
    return (_number(name, start), _number(name, length))


def _latency(text: str) -> Callable[[float], float]:
    match text.split(":"):
        case ["lognormal", median, sigma]:
            m, s = _number("latency", median), _number("latency", sigma)
            return lambda u: m * math.exp(s * NormalDist().inv_cdf(u))
        case ["uniform", low, high]:
            a, b = _number("latency", low), _number("latency", high)
            return lambda u: a + (b - a) * u
    raise ConfigurationError(
        "expected latency=lognormal:MEDIAN:SIGMA or uniform:LOW:HIGH - "
        f"got latency={text}"
    )

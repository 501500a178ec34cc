"""How many requests a server still allows, from the headers of any of its answers.

Pure: headers in, a :class:`Hint` or None out. What is malformed counts as not sent.
The generations of these headers, as servers send them today:

==================  ==========================================================
draft-06            ``RateLimit-Remaining: 0``, ``RateLimit-Reset: 60``
draft-07            ``RateLimit: limit=2, remaining=0, reset=60``
draft-08 and later  ``RateLimit: "permin";r=20;t=23, "perhr";r=399;t=2402``
de facto            ``X-RateLimit-Remaining``, ``X-RateLimit-Reset`` (seconds from
                    now, or an epoch in seconds or milliseconds)
Twitter, Discord    ``X-Rate-Limit-Reset``; ``X-RateLimit-Reset-After: 1.5``
Kong                ``X-RateLimit-Remaining-Minute``, without a reset
==================  ==========================================================

All drafts are those of draft-ietf-httpapi-ratelimit-headers; ``RateLimit-Policy`` adds
the window of a policy, and which unit it counts.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

# A delta of so many seconds would be 30 years: it is an epoch, or one in milliseconds.
EPOCH = 1e9
EPOCH_MILLISECONDS = 1e12

# Kong counts in calendar windows, whose length is in the header's name.
_WINDOWS = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86400.0,
    "month": 30 * 86400.0,
    "year": 365 * 86400.0,
}
# What a name without its family prefix says.
_FAMILIES = ("ratelimit", "x-ratelimit", "x-rate-limit")
# 15 digits is what a structured field's integer may have (RFC 9651, 3.3.1).
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_STRING = r'"(?:[^"\\]|\\["\\])*"'
_KEY = r"[a-z*][a-z0-9_.*-]*"
_BARE = rf"(?:{_STRING}|:[A-Za-z0-9+/=]*:|\?[01]|[A-Za-z0-9*.+/:_!#$%&'^`|~-]+)"
_PARAMETER = re.compile(rf"[ ]*;[ ]*({_KEY})(?:=({_BARE}))?")
_MEMBER = re.compile(rf"[ \t]*({_BARE})((?:[ ]*;[ ]*{_KEY}(?:={_BARE})?)*)[ \t]*(,|$)")
_PAIR = re.compile(rf"[ \t]*({_KEY})[ ]*=[ ]*({_BARE})[ \t]*(?:,|$)")
# A field that is longer says nothing that is worth the time of reading it.
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Hint:
    """What a host still allows: *remaining* requests in the next *reset* seconds."""

    remaining: float
    reset: float


def hint_of(headers: Iterable[tuple[str, str]], *, now: float) -> Hint | None:
    """The tightest limit that the headers of an answer tell, if they tell any.

    Parameters
    ----------
    headers
        All of them, in their order, a repeated one as often as it came.
    now
        Seconds of the epoch; counts only where the server says no ``Date`` itself.
    """
    fields: dict[str, str] = {}
    for name, text in headers:
        key = name.lower()
        fields[key] = f"{fields[key]},{text}" if key in fields else text
    fields = {name: text for name, text in fields.items() if len(text) <= _LONGEST}
    here = _seconds_of(fields.get("date", ""), now)
    return tightest(
        [
            *_structured(fields.get("ratelimit", ""), _policies(fields)),
            *(one for family in _FAMILIES for one in _separate(family, fields, here)),
        ]
    )


def speaks_of_limits(names: Iterable[str]) -> bool:
    """Whether :func:`hint_of` may find anything: a look of less than 1 µs."""
    return "limit" in ",".join(names).lower()


def tightest(hints: Iterable[Hint]) -> Hint | None:
    """The one that binds: the longest wait if any is used up, else the lowest rate."""
    binding = [one for one in hints if one.reset > 0]
    used_up = [one for one in binding if one.remaining < 1]
    if used_up:
        return max(used_up, key=lambda one: one.reset)
    return min(binding, key=lambda one: one.remaining / one.reset, default=None)


def _seconds_of(date: str, now: float) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError, OSError):
        return now


def _number(text: str | None) -> float | None:
    text = (text or "").strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _from_now(value: float, here: float) -> float:
    """Seconds from now that a reset names as a delta, an epoch, or in milliseconds."""
    if value > EPOCH_MILLISECONDS:
        value /= 1000.0
    return max(0.0, value - here) if value > EPOCH else value


# --- structured fields ----------------------------------------------------------------


def _members(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Items of a structured list with their parameters; none if it is malformed."""
    found = []
    at = 0
    while at < len(text):
        match = _MEMBER.match(text, at)
        if match is None:
            return
        parameters = dict(_PARAMETER.findall(match[2]))
        found.append((match[1].strip('"'), parameters))
        at = match.end()
    yield from found


def _policies(fields: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return dict(_members(fields.get("ratelimit-policy", "")))


def _structured(text: str, policies: Mapping[str, Mapping[str, str]]) -> Iterator[Hint]:
    pairs = dict(_PAIR.findall(text))
    if "remaining" in pairs and _PAIR.sub("", text).strip() == "":  # draft-07
        yield from _hints(_number(pairs["remaining"]), _number(pairs.get("reset")))
        return
    for name, parameters in _members(text):
        policy = policies.get(name, {})
        if policy.get("qu", '"requests"').strip('"') == "requests":
            reset = _number(parameters.get("t"))
            window = _number(policy.get("w"))  # it resets within that at the latest
            yield from _hints(
                _number(parameters.get("r")), window if reset is None else reset
            )


def _hints(remaining: float | None, reset: float | None) -> Iterator[Hint]:
    if remaining is not None and reset is not None:
        yield Hint(remaining, reset)


# --- a field for each number ----------------------------------------------------------


def _separate(family: str, fields: Mapping[str, str], here: float) -> Iterator[Hint]:
    resets = fields.get(f"{family}-reset", "").split(",")
    after = fields.get(f"{family}-reset-after")
    remaining = fields.get(f"{family}-remaining", "").split(",")
    if after is not None and len(remaining) == 1:
        yield from _hints(_number(remaining[0]), _number(after))
    elif len(remaining) == len(resets):  # two limiters, one behind the other: in pairs
        for left, reset in zip(remaining, resets, strict=True):
            value = _number(reset)
            seconds = None if value is None else _from_now(value, here)
            yield from _hints(_number(left), seconds)
    for unit, length in _WINDOWS.items():
        of_window = fields.get(f"{family}-remaining-{unit}")
        if of_window is not None:
            # A calendar window ends at the next full one. Date has whole seconds, so
            # the end may be nearly one later than it says.
            rest = length - here % length + 1.0 if length <= _WINDOWS["day"] else length
            yield from _hints(_number(of_window), min(rest, length))

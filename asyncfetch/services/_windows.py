"""Pages by offset of a server where one record may fail the whole page. Pure.

A window is a piece of a list. One that is refused is divided until the record is alone
which the server cannot give. The last window of a list leads on to what lies behind it:
the count that an answer names is a hint, and an empty page no end by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from asyncfetch._decode import records_at
from asyncfetch._model import Ask, Request
from asyncfetch._neurovault_schema import PAGE
from asyncfetch.errors import (
    AsyncfetchError,
    DecodeError,
    IntegrityError,
    ResponseError,
)
from asyncfetch.services._paging import digest, target

# Pages that are asked for side by side while something is planned. Few at first, for
# who wants little; the host's gate decides how many really go at once.
FIRST_AT_ONCE = 4
AT_ONCE = 16
# Refusals in a row that end the planning: one bad record of 1000 takes 11.
MOST_REFUSED = 40
# Looks at a page that is empty although more is counted, before it is given up.
_LOOKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Records of a list from *offset* on, *limit* of them at most."""

    path: str
    offset: int = 0
    limit: int = PAGE
    is_last: bool = True
    """Whether what lies behind it is found by it alone."""
    likely: int | None = None
    """Records that the list has, as far as is known."""
    behind: str | None = None
    """What a page held that leads here although its count does not."""
    looks: int = 0

    @property
    def request(self) -> Request:
        """What to ask."""
        query = {"limit": str(self.limit), "offset": str(self.offset)}
        return Request(target=target(self.path, query))

    def to_json(self) -> dict[str, Any]:
        """The window for the context of an item; defaults are left out."""
        names = ("path", "offset", "limit", "is_last", "likely", "behind")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_json`."""
        return cls(**fields)

    def divided(self, error: AsyncfetchError) -> tuple[Window, ...]:
        """Windows that stand for this one, which was refused; none if it has failed."""
        is_refused = isinstance(error, ResponseError) and error.status in {500, 504}
        if not is_refused or (self.limit == 1 and not self.is_last):
            return ()
        size = self.limit
        # More than was likely: nothing is known then of what is left.
        if self.is_last and self.likely is not None and self.likely > self.offset:
            size = min(size, self.likely - self.offset)
        end, half = self.offset + size, (size + 1) // 2
        first = replace(self, limit=half, is_last=False, behind=None, looks=0)
        parts = [first]
        if half < size:
            rest = replace(first, offset=self.offset + half, limit=size - half)
            parts.append(rest)
        if self.is_last:
            parts.append(replace(self, offset=end, limit=PAGE, behind=None))
        return tuple(parts)

    def read(self, body: Any) -> tuple[list[Any], int, tuple[Window, ...]]:
        """Records of an answer, the count that it names, and the windows that follow.

        Raises
        ------
        IntegrityError
            A page is empty although there is more, or the pages go round in a circle.
        DecodeError
            The answer is no page.
        """
        records = records_at(body, ("results",))
        count = body.get("count")
        if type(count) is not int:
            raise DecodeError(
                f"expected a number, got {count!r} - at $.count", path="$.count"
            )
        got, end = len(records), self.offset + self.limit
        if not got and self.offset < count:
            raise IntegrityError(
                f"expected up to {self.limit} of {count} records from {self.offset} "
                f"on, got none from {self.path}"
            )
        held = digest(records)
        if got and held == self.behind:
            raise IntegrityError(
                f"expected other records from {self.offset} on, got those before: "
                f"{self.path} repeats its pages"
            )
        follow: list[Window] = []
        if got < self.limit and self.offset + got < min(end, count):  # a page is less
            rest = replace(
                self, offset=self.offset + got, limit=self.limit - got, looks=0
            )
            follow.append(replace(rest, is_last=False, behind=None))
        if self.is_last:
            follow += self._beyond(count, body.get("next"), held if got else None)
        return records, count, tuple(follow)

    def _beyond(self, count: int, link: object, held: str | None) -> list[Window]:
        """Windows behind the last one that was known."""
        end = self.offset + self.limit
        step = self.limit if self.limit > PAGE // 2 else PAGE
        windows = [
            replace(self, offset=n, limit=step, is_last=False, behind=None, looks=0)
            for n in range(end, count, step)
        ]
        if windows:
            windows[-1] = replace(windows[-1], is_last=True, likely=count)
        elif link and held is not None:
            # The link says that there is more, the count does not: one look.
            windows.append(replace(self, offset=end, limit=step, behind=held))
        return windows


@dataclass(frozen=True, slots=True)
class Seen:
    """What a window came to."""

    window: Window
    records: list[Any]
    count: int = 0
    error: AsyncfetchError | None = None
    """Why there are no records."""


def walk(
    windows: Iterable[Window],
    *,
    keep: Callable[[Any], Any] = lambda record: record,
    is_enough: Callable[[Seen], bool] = lambda _: False,
) -> Generator[Ask, tuple[Any, ...] | None, list[Seen]]:
    """Read *windows* and what they lead to, some side by side; in their order.

    Parameters
    ----------
    keep
        What is kept of a record.
    is_enough
        From what a window came to, whether the others need not be read.

    Raises
    ------
    AsyncfetchError
        The server refuses everything.
    """
    todo = list(windows)
    seen: list[Seen] = []
    refused, size = 0, FIRST_AT_ONCE
    while todo:
        some, todo = todo[:size], todo[size:]
        size = min(AT_ONCE, 2 * size)
        answers = (yield Ask(tuple(w.request for w in some), is_tolerant=True)) or ()
        found: list[Window] = []
        for window, answer in zip(some, answers, strict=True):
            try:
                if isinstance(answer, AsyncfetchError):
                    raise answer
                records, count, follow = window.read(answer)
            except IntegrityError as error:
                if window.looks + 1 < _LOOKS:
                    found.append(replace(window, looks=window.looks + 1))
                else:
                    seen.append(Seen(window, [], error=error))
                continue
            except AsyncfetchError as error:
                refused += 1
                if refused > MOST_REFUSED:
                    raise
                parts = window.divided(error)
                found += parts
                if not parts:
                    seen.append(Seen(window, [], error=error))
                continue
            refused = 0
            found += follow
            seen.append(Seen(window, list(map(keep, records)), count))
            if is_enough(seen[-1]):
                return seen
        todo = found + todo
    return sorted(seen, key=lambda one: (one.window.path, one.window.offset))

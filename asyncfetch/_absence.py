"""Whether a 404 says that something is not there, or only that the service is away.

Some services answer 404 to everything while they are down. Their health says so, and
it is asked about before a 404 is believed: seldom, for all who wait together. What was
said some time before or after says little of the moment it came. So a 404 is believed

- when no other came beside it, and the health was well just after it;
- or when the health was well within a minute, and it is the only one between two things
  that were there;
- or when it comes again after something has shown that the service is well.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

# What one look says holds for so many seconds, if nothing speaks against it.
MINUTE = 60.0
# Where nothing but 404 comes (all that is left is missing; or an outage begins), the
# service is asked again after so many seconds: one request beside 25 at 5 a second.
PATIENCE = 5.0
# So soon where nothing else is under way that could show that the service is well.
ALONE = 0.5
# So long after a 404 the health still speaks of the same moment.
JUST_AFTER = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Where a service tells how it is."""

    target: str
    """What to ask for."""
    is_up: Callable[[bytes], bool]
    """Whether the beginning of the answer says that all is well."""


class Verdict(enum.Enum):
    """What a 404 is worth."""

    PROVED = enum.auto()
    DOUBTFUL = enum.auto()
    """The service is well now, and may not have been: to be asked again."""
    DOWN = enum.auto()


@dataclass(slots=True)
class _Gap:
    """What came between two things that were there."""

    missed: int = 0
    is_over: bool = False
    waiting: list[anyio.Event] = field(default_factory=list)

    def end(self) -> None:
        self.is_over = True
        self.wake()

    def wake(self) -> None:
        for event in self.waiting:
            event.set()

    async def wait(self, seconds: float) -> None:
        event = anyio.Event()
        self.waiting.append(event)
        try:
            with anyio.move_on_after(seconds):
                await event.wait()
        finally:
            self.waiting.remove(event)


class Absence:
    """What is known of the presence of a service.

    Parameters
    ----------
    clock
        Seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looking = anyio.Lock()
        self._looked_at = self._up_at = self._down_at = self._missed_at = -math.inf
        self._gap = _Gap()
        self._asking = self._judging = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """For the time of a question about what might not be there."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            if self._is_alone:
                self._gap.wake()

    @property
    def _is_alone(self) -> bool:
        """Whether nothing can come before somebody has looked."""
        return self._asking <= self._judging

    @property
    def is_down(self) -> bool:
        """Whether the service said lately that it is down, and nothing came since."""
        return self._clock() - self._down_at < PATIENCE

    def there(self, sent_at: float) -> None:
        """Note that what might have been missing came, asked for at *sent_at*."""
        if sent_at > self._down_at:
            self._down_at = -math.inf
        if self._gap.missed and sent_at > self._missed_at:
            self._gap.end()
            self._gap = _Gap()

    async def judge(
        self, look: Callable[[], Awaitable[bool]], *, impatient: bool
    ) -> Verdict:
        """What a 404 that came just now is worth.

        Parameters
        ----------
        look
            Asks the service whether it is up.
        impatient
            What was said within the last minute is enough.
        """
        self._judging += 1
        try:
            if self._is_alone:
                self._gap.wake()
            return await self._judged(look, impatient)
        finally:
            self._judging -= 1

    async def _judged(
        self, look: Callable[[], Awaitable[bool]], impatient: bool
    ) -> Verdict:
        at = self._clock()
        gap = self._gap
        if not impatient:
            gap.missed += 1
            self._missed_at = at
        while not self.is_down:
            now = self._clock()
            if self._up_at >= at:
                is_of_then = self._up_at - at <= JUST_AFTER and gap.missed <= 1
                return Verdict.PROVED if is_of_then else Verdict.DOUBTFUL
            if now - self._up_at < MINUTE:
                if impatient:
                    return Verdict.PROVED
                if gap.is_over:
                    return Verdict.PROVED if gap.missed == 1 else Verdict.DOUBTFUL
                patience = min(ALONE, PATIENCE) if self._is_alone else PATIENCE
                if (left := self._looked_at + patience - now) > 0:
                    await gap.wait(left)
                    continue
            await self._look(look)
        return Verdict.DOWN

    async def _look(self, look: Callable[[], Awaitable[bool]]) -> None:
        before = self._looked_at
        async with self._looking:
            if self._looked_at != before:
                return  # another one looked meanwhile
            self._looked_at = self._clock()
            if await look():
                # From when it was asked on: what it says may be older than it comes.
                self._up_at, self._down_at = self._looked_at, -math.inf
                self._gap.wake()
                self._gap = _Gap()
            else:
                self._down_at = self._clock()

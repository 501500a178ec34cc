"""What a run is doing, on standard error: a bar, or a line now and then.

Consumes the events of a run and nothing deeper.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from asyncfetch._model import (
    Committed,
    Event,
    ItemEnded,
    Outcome,
    Paced,
    Paused,
    Planned,
    RequestSent,
    Retrying,
)

LINE_EVERY = 5.0  # seconds between lines when there is no terminal


class _State:
    """What the events of a run have come to."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.planned = 0
        self.is_complete = False
        self.ended = 0
        self.before = 0
        self.failed = 0
        self.rows = 0
        self.bytes = 0
        self.requests = 0
        self.retries = 0
        self.committed = 0
        self.paused_until = 0.0
        self.pause_cause = ""
        self.gate: Mapping[str, Any] = {}

    def see(self, event: Event) -> None:
        if isinstance(event, Planned):
            self.planned, self.is_complete = event.items, event.complete
            self.before = event.ended
        elif isinstance(event, ItemEnded):
            self.ended += 1
            self.failed += event.outcome is Outcome.FAILED
            self.rows += event.rows
            self.bytes += event.bytes
        elif isinstance(event, RequestSent):
            self.requests += 1
        elif isinstance(event, Retrying):
            self.retries += 1
        elif isinstance(event, Committed):
            self.committed += event.items
        elif isinstance(event, Paced):
            self.gate = event.gate
        elif isinstance(event, Paused) and event.seconds > 0:
            self.paused_until = time.monotonic() + event.seconds
            self.pause_cause = event.cause

    def words(self) -> str:
        """Items, rows, rate, what is left, retries and what the gate is doing."""
        done = self.before + self.ended
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = self.ended / seconds
        known = f"{self.planned:,}" if self.is_complete else f"{self.planned:,}+"
        parts = [
            f"{done:,}/{known} items",
            f"{self.rows:,} rows",
            f"{self.bytes / 1e6:,.1f} MB",
            f"{rate:,.1f} items/s",
        ]
        left = self.planned - done
        if self.is_complete and rate > 0 and left > 0:
            parts.append(f"{duration(left / rate)} left")
        if self.retries:
            reserve = self.gate.get("retries_left")
            known = "" if reserve is None else f" ({reserve:,} left)"
            parts.append(f"{self.retries:,} retries{known}")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        parts.extend(self._pace())
        pause = self.paused_until - time.monotonic()
        if pause > 0:
            parts.append(f"paused {pause:.0f} s: {self.pause_cause}")
        return ", ".join(parts)

    def _pace(self) -> Iterator[str]:
        """What the gate has learned; nothing while it goes by the service's limits."""
        gate = self.gate
        if gate.get("learned_rate"):
            yield f"{gate['learned_rate']:.3g}/s granted"
        if gate.get("slots", 0) < gate.get("concurrency", 0):
            yield f"{gate['slots']}/{gate['concurrency']} connections"
        if gate.get("rejected"):
            yield f"{gate['rejected']:,} rejected"
        if gate.get("breaker") == "open":
            yield "host is down"


class _Bar(RichProgress):
    """The bar, and below it the state in words, over the whole width.

    They are read when the bar is drawn, so that pauses count down.
    """

    def __init__(self, state: _State, stream: TextIO) -> None:
        self._state = state  # first: the base class draws itself
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield Text(self._state.words())


class Progress:
    """An observer that shows a run; a context manager that shows it while open."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        self._state = _State()
        self._stream = stream
        self._title = title
        self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        if stream.isatty():
            self._bar = _Bar(self._state, stream)
            self._task = self._bar.add_task(title, total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event, /) -> None:
        """Take an event; draw or print when it is time."""
        state = self._state
        state.see(event)
        if self._bar is not None:
            self._bar.update(
                self._task,
                total=state.planned if state.is_complete else None,
                completed=state.before + state.ended,
            )
        elif time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            print(f"{self._title}: {state.words()}", file=self._stream)


def duration(seconds: float) -> str:
    """*seconds* as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

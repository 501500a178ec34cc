"""What is remembered of a host between processes, and what they share at one time.

A small file per host lies in the user's cache directory (``ASYNCFETCH_CACHE`` names
another): what was learned of the host, and which processes talk to it at the moment,
each with the part of the host's rate and connections that it takes. All parts together
are never more than one: a newcomer gets what the others have left over, and they leave
it some at their next beat. A process that died beats no more, and is forgotten after a
few beats as the others see them; no clock is compared with another's.

The file is changed under the lock of a file beside it, in a thread. It is a help and no
more: without a directory that can be written, every process goes by itself. Hosts of
this machine have no file. No credentials come here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import platformdirs

from asyncfetch._pace import Learned
from asyncfetch._store import try_lock

logger = logging.getLogger("asyncfetch")

DIRECTORY = "ASYNCFETCH_CACHE"
# For tests alone: with it, hosts of this machine are remembered like others.
LOOPBACK_TOO = "ASYNCFETCH_CACHE_LOOPBACK"

BEAT = 1.0  # seconds between two looks of a process at the others
# Beats without a sign of life after which a process is forgotten: enough for one whose
# disk is slow, or whose event loop is stuck.
FORGOTTEN = 5
# Others hold the lock for about a millisecond.
LOCK_SECONDS = 1.0
# Of a fair share, while the others have left nothing: whoever is at it does not stop.
TRICKLE = 0.01
# What was learned so long ago may be of another server.
OLD = timedelta(days=30)


class HasPace(Protocol):
    """What a profile needs of a gate."""

    share: Callable[[], float]
    """The part of the host that this process may use."""

    def learned(self) -> Learned | None:
        """What this process has learned of the host."""

    def start_from(self, learned: Learned) -> None:
        """Start from what an earlier process has learned."""


@dataclass(slots=True)
class _Other:
    """Another process, as this one sees it."""

    beats: int
    since: float
    """When its beats were first seen to have come to that, by the own clock."""


class Profile:
    """The file of one host, and this process's place in it.

    Parameters
    ----------
    host
        Names the file.
    directory
        Where it lies; made when the first thing is to be written.
    gate
        Gets this process's share of the host, and what was learned of it.
    clock
        Seconds that only go forward.
    """

    def __init__(
        self,
        host: str,
        directory: Path,
        gate: HasPace,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        name = re.sub(r"[^A-Za-z0-9.-]", "_", host)
        self._path = directory / f"{name}.json"
        self._gate = gate
        gate.share = lambda: self.share
        self.share = 1.0
        """Of the host, that this process may use now."""
        self.kept: dict[str, Any] = {}
        """Small facts of the host: what the file has, and what this process adds."""
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._beats = 0
        self._beat_at = -math.inf
        self._others: dict[str, _Other] = {}
        self._fair = self._claim = 1.0
        self._runs = 0
        self._is_useless = False
        self._is_recalled = False
        # Several event loops may send requests to one host.
        self._guard = threading.Lock()

    async def join(self) -> None:
        """Be counted among the processes that talk to the host, with a share of it.

        Costs nothing while the last beat is recent; else it waits for a beat of the
        others when there are any. Cancelling leaves a sign that is soon forgotten.
        """
        if self._is_useless or self._clock() - self._beat_at < 2 * BEAT:
            return
        # Others who do not beat are forgotten by then.
        deadline = self._clock() + (FORGOTTEN + 2) * BEAT
        await anyio.to_thread.run_sync(self.beat)
        while self._claim < self._fair / 4 and self._clock() < deadline:
            await anyio.sleep(BEAT / 4)
            await anyio.to_thread.run_sync(self.beat)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """For as long as a run lasts; its end frees the share and keeps the lesson."""
        self._runs += 1
        try:
            yield
        finally:
            self._runs -= 1
            await self.part()

    async def part(self) -> None:
        """Leave, unless a run goes on here; whoever asks afterwards joins again."""
        if not self._runs and self._beat_at > -math.inf:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.leave)

    async def keep_beating(self) -> None:
        """Beat until cancelled."""
        while not self._is_useless:
            await anyio.sleep(BEAT)
            if self._beats:  # else nothing has been asked so far
                await anyio.to_thread.run_sync(self.beat)

    def beat(self) -> None:
        """Show that this process lives, and adjust its share. Blocks."""
        self._change(self._beat)

    def _beat(self, facts: dict[str, Any]) -> None:
        now = self._clock()
        if not self._is_recalled:
            self._is_recalled = True
            if (learned := _learned(facts.get("learned"))) is not None:
                self._gate.start_from(learned)
            if isinstance(kept := facts.get("kept"), dict):
                self.kept |= {**kept, **self.kept}
        shares = self._alive(facts, now)
        self._fair = 1.0 / (len(shares) + 1)
        self._claim = min(self._fair, max(0.0, 1.0 - sum(shares.values())))
        self.share = max(self._claim, TRICKLE * self._fair)
        self._beats += 1
        self._beat_at = now
        mine = {"beats": self._beats, "share": self._claim}
        facts["processes"][self._name] = mine

    def leave(self) -> None:
        """Free the share, and write down what was learned. Blocks."""
        self._change(self._leave)

    def _leave(self, facts: dict[str, Any]) -> None:
        facts["processes"].pop(self._name, None)
        if (learned := self._gate.learned()) is not None:
            facts["learned"] = {**asdict(learned), "at": learned.at.isoformat()}
        if self.kept:
            facts["kept"] = self.kept
        self._beat_at = -math.inf

    def _alive(self, facts: dict[str, Any], now: float) -> dict[str, float]:
        """Shares of the other processes; those that are forgotten leave the file."""
        shares = {}
        for name, entry in list(facts["processes"].items()):
            if name == self._name:
                continue
            try:
                beats, share = int(entry["beats"]), float(entry["share"])
            except (KeyError, TypeError, ValueError):
                beats, share = -1, math.nan
            seen = self._others.setdefault(name, _Other(beats, now))
            if seen.beats != beats:
                seen.beats, seen.since = beats, now
            if now - seen.since >= FORGOTTEN * BEAT or not 0 <= share <= 1:
                del facts["processes"][name]
                del self._others[name]
            else:
                shares[name] = share
        return shares

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Let *change* have the facts in the file; do nothing if there is no use."""
        with self._guard:
            if self._is_useless:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self._path.with_suffix(".lock")):
                    facts = self._read()
                    change(facts)
                    staged = self._path.with_suffix(f".{self._name}")
                    staged.write_text(json.dumps(facts), encoding="utf-8")
                    staged.replace(self._path)
            except OSError as error:
                self._is_useless, self.share = True, 1.0
                logger.debug("nothing is remembered in %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        with suppress(FileNotFoundError, ValueError):  # ValueError: it is damaged
            found = json.loads(self._path.read_text(encoding="utf-8"))
            facts = found if isinstance(found, dict) else {}
        if not isinstance(facts.get("processes"), dict):
            facts["processes"] = {}
        return facts


def _learned(facts: Any) -> Learned | None:
    """What the file says, unless it is old or nonsense."""
    try:
        at = datetime.fromisoformat(facts["at"])
        numbers = [facts["rate"], facts["delay"], facts["concurrency"]]
        is_sane = all(one is None or 0 < one < math.inf for one in numbers)
        if not is_sane or not timedelta() <= datetime.now(UTC) - at < OLD:
            return None
        return Learned(
            rate=facts["rate"],
            delay=facts["delay"],
            concurrency=float(facts["concurrency"]),
            at=at,
        )
    except (KeyError, TypeError, ValueError):
        return None


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the lock that *path* is, or go without where there are none."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while try_lock(file) is False:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is locked for more than {LOCK_SECONDS} s")
            time.sleep(LOCK_SECONDS / 200)
        yield
    finally:
        os.close(file)


_profiles: dict[str, Profile] = {}
_profiles_guard = threading.Lock()


def profile_for(host: str, gate: HasPace, *, is_loopback: bool) -> Profile | None:
    """Return the process's one profile of *host*; None where nothing is remembered."""
    if is_loopback and not os.environ.get(LOOPBACK_TOO):
        return None
    named = os.environ.get(DIRECTORY)
    directory = Path(named) if named else platformdirs.user_cache_path("asyncfetch")
    with _profiles_guard:
        return _profiles.setdefault(host, Profile(host, directory, gate))

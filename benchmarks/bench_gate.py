"""How well the gate finds what a server grants: goodput, rejections, queue.

    python -m benchmarks.bench_gate [--quick] [--json] [--versions]
                                    [--only SERVER] [--seed N]

Servers with a hidden limit are played over real sockets in a process of their own; a
"second" takes 200 ms, so that loopback's jitter stays small beside it. All begin cold;
the rows called "remembered" begin with what an earlier run has learned. Beside the gate
stand three published rules, each with retries after full jitter:
AIMD (TCP's, halved once a round trip), the AWS SDK's adaptive mode, and AutoThrottle.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Protocol
from urllib.parse import urlencode

import aiohttp
import anyio
from aiohttp import web
from yarl import URL

from asyncfetch._exchange import Exchange
from asyncfetch._gate import Gate
from asyncfetch._model import Limits, Request
from asyncfetch._pace import Learned
from asyncfetch.errors import AsyncfetchError
from benchmarks._limited import (
    Bucket,
    Noisy,
    Server,
    Sliding,
    Window,
    Workers,
    fixed,
    heavy,
)
from benchmarks._measure import asked_for, measured, tell

SECOND = 0.2  # a shorter one would measure the jitter of loopback
DELAY = 0.06  # seconds of the way there and back, on the server's side
REMEMBERED = " (remembered)"
METHODS = ("gate", "AIMD", "AWS", "AutoThrottle")
# Per kind of server: goodput at least, as a share of the hidden limit, and rejected per
# accepted at most.
BARS = {
    # One in a hundred is refused whatever is done.
    "noisy": (0.90, 0.03),
    "window": (0.84, 0.02),
    "bucket": (0.90, 0.02),
    "workers": (0.90, 0.02),
}

# Name: kind, requests in flight at most (0: loopback's default), the server.
Row = tuple[str, int, Callable[[], Server]]
TABLE: dict[str, Row] = {
    "8 workers, 0.2 s": ("workers", 64, lambda: Workers(fixed(0.2), 8)),
    "16-4-16 workers": (
        "workers",
        64,
        lambda: Workers(
            fixed(0.2), 16, count=lambda t, run: 4 if 1 / 3 < t / run < 2 / 3 else 16
        ),
    ),
    "32 workers, 0.4 s": ("workers", 64, lambda: Workers(fixed(0.4), 32)),
    "capacity flips each 30 s": (
        "workers",
        64,
        lambda: Workers(
            fixed(0.2), 10, count=lambda t, _: 4 if int(t / 30) % 2 else 10
        ),
    ),
    "2 workers, heavy tail": ("workers", 64, lambda: Workers(heavy(0.6, 1.0), 2)),
    "4 workers, very heavy": ("workers", 64, lambda: Workers(heavy(1.5, 1.5), 4)),
    "bucket 5/s, burst 10": ("bucket", 0, lambda: Bucket(5, 10)),
    "bucket 0.5/s, burst 3": ("bucket", 0, lambda: Bucket(0.5, 3)),
    "bucket 20/s, burst 40": ("bucket", 0, lambda: Bucket(20, 40)),
    "window 60/min": ("window", 0, lambda: Window(60, 60)),
    "window 10/10 s": ("window", 0, lambda: Window(10, 10)),
    "window 60/min, says": ("window", 0, lambda: Window(60, 60, says="seconds")),
}
# More than 20 requests a second: these are played alone.
FAST = set(list(TABLE)[:4])


def drawn(seed: int) -> dict[str, Row]:
    """Servers of other kinds, drawn from a seed."""
    rng = random.Random(seed)
    count, span = rng.choice([10, 20, 40]), rng.choice([10.0, 20.0])
    rate, burst = rng.uniform(2, 8), rng.choice([1, 2, 15])
    slots, work = rng.randint(2, 6), rng.uniform(0.2, 0.5)
    turn = rng.uniform(0.4, 0.6)
    quota, phase = rng.randint(80, 240), rng.uniform(0, 60)
    jump = rng.uniform(3, 6)
    return {
        f"sliding {count}/{span:.0f} s": ("window", 0, lambda: Sliding(count, span)),
        f"at most {slots} at a time, 503": (
            "workers",
            0,
            lambda: Workers(fixed(work), slots, refuses=503),
        ),
        f"bucket {rate:.1f}/s, then {3 * rate:.1f}/s": (
            "bucket",
            0,
            lambda: Bucket(rate, 10, turn=turn, later=3 * rate),
        ),
        f"bucket {2 * rate:.1f}/s, then {rate:.1f}/s": (
            "bucket",
            0,
            lambda: Bucket(2 * rate, 10, turn=turn, later=rate),
        ),
        f"GCRA {rate:.1f}/s, burst {burst}": ("bucket", 0, lambda: Bucket(rate, burst)),
        f"quota {quota}/min, says a date": (
            "window",
            0,
            lambda: Window(quota, 60, says="date", phase=phase),
        ),
        f"answers take {jump:.1f} x longer": (
            "workers",
            16,
            lambda: Workers(
                lambda share, _: 2.0 * (jump if share > 0.5 else 1.0), 64, bound=16
            ),
        ),
        f"bucket {rate:.1f}/s, 1 % of 503 beside": (
            "noisy",
            0,
            lambda: Noisy(Bucket(rate, 10), 0.01, 503, seed=seed),
        ),
    }


# The servers' process


def serve() -> None:
    """Play every server; print the port."""
    models: dict[str, tuple[Server, float]] = {}
    counts: dict[str, list[float]] = {}
    epoch = datetime(2030, 1, 1, tzinfo=UTC)

    async def ask(request: web.Request) -> web.Response:
        name = request.match_info["run"]
        if name not in models:
            seed, seconds = int(request.query["seed"]), float(request.query["seconds"])
            row = (TABLE | drawn(seed))[request.query["server"]]
            model = row[2]()
            model.lasts(seconds)
            models[name] = model, time.monotonic()
            counts[name] = [0.0, 0.0, 0.0, 0.0]
        model, start = models[name]
        await asyncio.sleep(DELAY / 2 * SECOND)
        now = (time.monotonic() - start) / SECOND
        verdict = model.arrive(now)
        seen = counts[name]
        if now <= float(request.query["seconds"]):
            seen[verdict.status != 200] += 1
            seen[2] += verdict.queued
            seen[3] = now
        await asyncio.sleep((DELAY / 2 + verdict.delay) * SECOND)
        headers = {}
        if verdict.retry_after is not None:
            headers["Retry-After"] = f"{verdict.retry_after:.0f}"
            if verdict.as_date:
                date = epoch + timedelta(seconds=math.floor(now))
                until = date + timedelta(seconds=verdict.retry_after)
                headers["Date"] = format_datetime(date, usegmt=True)
                headers["Retry-After"] = format_datetime(until, usegmt=True)
        return web.json_response([], status=verdict.status, headers=headers)

    async def count(request: web.Request) -> web.Response:
        run = request.match_info["run"]
        ideal = models[run][0].ideal(float(request.query["seconds"]), DELAY)
        return web.json_response([*counts[run], ideal])

    async def work() -> None:
        app = web.Application()
        app.router.add_get("/ask/{run}", ask)
        app.router.add_get("/count/{run}", count)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(work())


@contextmanager
def open_servers() -> Iterator[str]:
    """URL of the servers' process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bench_gate", "--serve"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)


# The gate, and the rules that it is compared with


async def with_gate(
    url: str, target: str, most: int, seconds: float, learned: Learned | None
) -> Learned | None:
    """Ask through the gate until the time is over; return what it learned."""
    asker = Exchange(url, default=Limits(), limits=Limits())
    asker.gate = gate = Gate(
        url, Limits(concurrency=most or 16), learned=learned, second=SECOND
    )

    async def work() -> None:
        while True:
            try:
                await asker.ask(Request(target=target), lambda *_: None)
            except AsyncfetchError as error:
                print(f"lost: {error}", file=sys.stderr)

    with anyio.move_on_after(seconds * SECOND):
        async with anyio.create_task_group() as group:
            for _ in range(gate.concurrency + 8):
                group.start_soon(work)
    await asker.aclose()
    return gate.learned()


class Rule(Protocol):
    """A published rule."""

    def wait(self, now: float, in_flight: int) -> float:
        """Seconds until a request may leave; infinite: after the next answer."""

    def sent(self, now: float) -> None:
        """A request leaves."""

    def answered(self, now: float, took: float, ok: bool) -> None:
        """An answer came."""


class Aimd:
    """One more in flight each round trip; half of it after a rejection."""

    def __init__(self, most: int) -> None:
        self.limit, self.most = 1.0, most
        self.cut_at = -math.inf

    def wait(self, _now: float, in_flight: int) -> float:
        """Only the number in flight counts."""
        return 0.0 if in_flight < int(self.limit) else math.inf

    def sent(self, _now: float) -> None:
        """Nothing is counted."""

    def answered(self, now: float, took: float, ok: bool) -> None:
        """An answer came."""
        if ok:
            self.limit = min(self.most, self.limit + 1 / self.limit)
        elif now - self.cut_at > took:
            self.limit, self.cut_at = max(1.0, self.limit / 2), now


class Aws:
    """The cubic token bucket of the AWS SDKs' adaptive mode; off until a rejection."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rate = math.inf
        self.tokens, self.filled_at = 1.0, 0.0
        self.measured, self.bucket, self.count = 0.0, 0.0, 0
        self.top, self.failed_at, self.k = 0.0, 0.0, 0.0

    def _fill(self, now: float) -> None:
        earned = (now - self.filled_at) * self.rate
        self.tokens = min(max(1.0, self.rate), self.tokens + earned)
        self.filled_at = now

    def wait(self, now: float, in_flight: int) -> float:
        """Seconds until a request may leave."""
        if in_flight >= self.most:
            return math.inf
        if self.rate == math.inf:
            return 0.0
        self._fill(now)
        return 0.0 if self.tokens >= 0.999 else (1 - self.tokens) / self.rate

    def sent(self, now: float) -> None:
        """A request leaves."""
        if self.rate != math.inf:
            self._fill(now)
            self.tokens -= 1

    def answered(self, now: float, _took: float, ok: bool) -> None:
        """An answer came."""
        self.count += 1
        half = math.floor(now * 2) / 2
        if half > self.bucket:
            current = self.count / (half - self.bucket)
            self.measured = 0.8 * current + 0.2 * self.measured
            self.bucket, self.count = half, 0
        if ok and self.rate == math.inf:
            return
        if ok:
            rate = 0.4 * (now - self.failed_at - self.k) ** 3 + self.top
        else:
            self.top = min(self.measured, self.rate)
            self.failed_at = now
            self.k = (self.top * 0.3 / 0.4) ** (1 / 3)
            rate = 0.7 * self.top
        if self.rate == math.inf:
            self.tokens, self.filled_at = 0.0, now
        else:
            self._fill(now)
        self.rate = max(0.5, min(rate, 2 * self.measured))


class AutoThrottle:
    """Scrapy's: a delay that follows the latency, for one request at a time."""

    def __init__(self, _most: int) -> None:
        self.delay, self.next_at = 5.0, 0.0
        self.rng = random.Random(0)

    def wait(self, now: float, in_flight: int) -> float:
        """Seconds until a request may leave."""
        return math.inf if in_flight >= 8 else max(0.0, self.next_at - now)

    def sent(self, now: float) -> None:
        """A request leaves."""
        self.next_at = now + self.delay * self.rng.uniform(0.5, 1.5)

    def answered(self, _now: float, took: float, ok: bool) -> None:
        """An answer came."""
        delay = min(60.0, max(took, (self.delay + took) / 2))
        if ok or delay > self.delay:
            self.delay = delay


RULES: dict[str, Callable[[int], Rule]] = {
    "AIMD": Aimd,
    "AWS": Aws,
    "AutoThrottle": AutoThrottle,
}


async def with_rule(
    url: str, target: str, most: int, seconds: float, method: str
) -> None:
    """Ask as a published rule says; rejected items come again after full jitter."""
    rule = RULES[method](most or 64)
    rng = random.Random(0)
    start = time.monotonic()
    in_flight = 0
    changed = asyncio.Event()

    def now() -> float:
        return (time.monotonic() - start) / SECOND

    async def leave() -> None:
        nonlocal in_flight
        while (wait := rule.wait(now(), in_flight)) > 0:
            changed.clear()
            with anyio.move_on_after(min(wait, 5.0) * SECOND):
                await changed.wait()
        rule.sent(now())
        in_flight += 1

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal in_flight
        while True:
            tries, ok = 0, False
            while not ok:
                await leave()
                sent = now()
                async with session.get(URL(url + target, encoded=True)) as answer:
                    await answer.read()
                    ok = answer.status == 200
                in_flight -= 1
                rule.answered(now(), now() - sent, ok)
                changed.set()
                if not ok:
                    await anyio.sleep(rng.uniform(0, min(60, 2**tries)) * SECOND)
                    tries += 1

    with anyio.move_on_after(seconds * SECOND):
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            anyio.create_task_group() as group,
        ):
            for _ in range(64):
                group.start_soon(work, session)


def play(
    url: str, method: str, servers: Sequence[str], seconds: float, seed: int
) -> dict[str, float]:
    """Ask several servers side by side; return what became of it by server."""
    rows = TABLE | drawn(seed)
    found: dict[str, float] = {}

    async def one(name: str) -> None:
        _, most, _ = rows[name]
        run = f"{method}-{list(rows).index(name)}-{seconds:g}"
        learned = None
        if method == "gate":
            learned = await with_gate(url, path(run, name), most, seconds, None)
            await note(run, name)
            # Nothing is remembered of what workers can do, or of a limit that changes.
            if rows[name][0] != "workers" and "then" not in name and learned:
                run += "-remembered"
                await with_gate(url, path(run, name), most, seconds / 3, learned)
                await note(run, name + REMEMBERED)
        else:
            await with_rule(url, path(run, name), most, seconds, method)
            await note(run, name)

    def path(run: str, name: str) -> str:
        query = urlencode({"server": name, "seed": seed, "seconds": seconds})
        return f"/ask/{run}?{query}"

    async def note(run: str, name: str) -> None:
        span = seconds / 3 if name.endswith(REMEMBERED) else seconds
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{url}/count/{run}?seconds={span}") as answer,
        ):
            accepted, rejected, queued, lasted, ideal = await answer.json()
        found[f"{name}|accepted"] = accepted
        found[f"{name}|rejected"] = rejected / max(1.0, accepted)
        found[f"{name}|queue"] = queued / max(1.0, lasted)
        found[f"{name}|goodput"] = accepted / ideal

    async def work() -> None:
        async with anyio.create_task_group() as group:
            for name in servers:
                group.start_soon(one, name)

    anyio.run(work)
    return found


def main() -> None:
    """Print the table, and beside each row whether the gate reaches its bar."""
    parser = asked_for(__doc__)
    parser.add_argument("--only", default="", metavar="SERVER", help="part of a name")
    parser.add_argument("--seed", type=int, default=0, help="of the servers drawn")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    rows = TABLE | drawn(options.seed)
    if options.quick:
        rows = {name: rows[name] for name in ("bucket 5/s, burst 10", "window 10/10 s")}
    names = [name for name in rows if options.only in name]
    slow = [name for name in names if name not in FAST]
    # Servers of a few requests a second cost nothing side by side; fast ones do.
    methods = METHODS[:1] if options.quick else METHODS
    results: dict[str, Any] = {}
    with open_servers() as url:
        for method in methods:
            # The other rules need not run as long to show what they do.
            mine = method == "gate"
            groups = [(slow, 20.0 if options.quick else 900.0 if mine else 100.0)]
            groups += [
                ([name], 200.0 if mine else 20.0) for name in names if name in FAST
            ]
            for servers, seconds in groups:
                if not servers:
                    continue
                found = measured(
                    "benchmarks.bench_gate:play",
                    1,
                    url=url,
                    method=method,
                    servers=servers,
                    seconds=seconds,
                    seed=options.seed,
                )
                for key, value in found.items():
                    name, _, figure = key.rpartition("|")
                    if name:
                        row = results.setdefault(name, {})
                        row[figure if mine else f"{method} {figure}"] = value
    misses = sum(not _note_reached(rows, name, row) for name, row in results.items())
    if not options.json:
        for name, row in results.items():
            print(_line(name, row))
        print(f"{len(results) - misses} of {len(results)} rows reach their bar")
    tell(results, options)


def _note_reached(rows: dict[str, Row], name: str, row: dict[str, float]) -> bool:
    least, most = BARS[rows[name.removesuffix(REMEMBERED)][0]]
    if name.endswith(REMEMBERED):
        least = 0.95
    row["reached"] = row["goodput"] >= least and row["rejected"] <= most
    return bool(row["reached"])


def _line(name: str, row: dict[str, float]) -> str:
    mine = (
        f"{name:38s} {100 * row['goodput']:5.1f} % of the limit, "
        f"{100 * row['rejected']:5.2f} rejected per 100, queue {row['queue']:4.1f}"
        f"{'' if row['reached'] else '  MISSED'}"
    )
    others = [
        f"{method} {100 * row[f'{method} goodput']:.0f} %, "
        f"{100 * row[f'{method} rejected']:.1f}, q {row[f'{method} queue']:.0f}"
        for method in METHODS[1:]
        if f"{method} goodput" in row
    ]
    return " | ".join([mine, *others])


if __name__ == "__main__":
    main()

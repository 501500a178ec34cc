"""A made-up web API with what no real one shows often enough, and its client.

It has items that are tiny, that are larger than a row group, that lead to the next page
by a link, and that are too large for one answer and fall into halves. Its server lives
in an embedded archive, beside the services there, so that faults, latency and the log
are the archive's.

Run as a program, this is ``asyncfetch`` with that service::

    python -m tests._things fetch things/numbers count=1000 -o DEST

or, with ``archive`` as the first word, the archive in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pyarrow as pa

from asyncfetch import _cli, _store, services
from asyncfetch._decode import document
from asyncfetch._model import (
    Ask,
    Block,
    Decoded,
    Enumeration,
    Item,
    Json,
    Limits,
    Request,
    Response,
)
from asyncfetch.services._table import Client, Description, Filter
from asyncfetch.testing import Fault, serve
from asyncfetch.testing._answer import Answer, Call

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("name", pa.string()),
        pa.field("value", pa.float64()),
    ]
)
TYPES = SCHEMA.types
CAP = 32  # rows of a shard that the server gives at most
LINKS = 24  # pages of the longest chain


def row(number: int) -> list[Any]:
    return [number, f"thing {number % 97}", number / 7]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Things:
    """Items of one of the three kinds, a planning request for each block of them."""

    kind: str
    filters: Mapping[str, Any]
    schema: pa.Schema = SCHEMA
    row_key: str | None = "id"

    def enumerate(self, cursor: Json) -> Enumeration:
        first = cursor or 0
        count, size = self.filters["count"], self.filters.get("block", 100)
        while True:
            (told,) = (yield Ask((_plan_request(self.kind, first, size, count),))) or ()
            items = tuple(self._item(name) for name in told["names"])
            first += size
            yield Block(items, first if first < count else None)
            if first >= count:
                return

    def _item(self, name: str) -> Item:
        rows = self.filters.get("rows", 1)
        return Item(
            key=f"{self.kind}={name}",
            request=Request(target=f"/{self.kind}/{name}/?rows={rows}"),
            context={"name": name},
        )

    def decode(
        self,
        _item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        body = document(chunks)
        halves = body.get("halves", ())
        if halves:
            return Decoded(is_split=True, follow_up=tuple(map(self._item, halves)))
        rows, found = body["rows"], body.get("next")
        columns = zip(*rows, strict=True) if rows else [()] * len(TYPES)
        batch = pa.RecordBatch.from_arrays(
            [pa.array(c, kind) for c, kind in zip(columns, TYPES, strict=True)],
            schema=SCHEMA,
        )
        return Decoded(
            batches=() if as_records else (batch,),
            records=batch.to_pylist() if as_records else None,
            follow_up=() if found is None else (self._item(found),),
        )

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        return None


def _plan_request(kind: str, first: int, size: int, count: int) -> Request:
    return Request(target=f"/plan/{kind}/{first}-{min(first + size, count)}/")


def _description(kind: str, doc: str) -> Description:
    names = {"count": "roots", "block": "of them in a block", "rows": "of each"}
    return Description(
        name=kind,
        summary=doc,
        item="requests",
        filters=tuple(Filter(name=n, kind=int, doc=d) for n, d in names.items()),
        schema=SCHEMA,
        row_key="id",
        source=lambda filters: _Things(kind=kind, filters=filters),
    )


class Things(Client):
    service = "things"
    default_url = "http://127.0.0.1:9"
    default_limits = Limits()
    limits_source = "it has none"
    descriptions: ClassVar[tuple[Description, ...]] = (
        _description("numbers", "Rows by number; every tenth item has none"),
        _description("chains", "Pages that each name the next"),
        _description("shards", "Ranges, of which the larger ones come in halves"),
    )


class ThingsService:
    """The server's side."""

    prefix = "/things"
    answers_at_once = True
    environment: ClassVar = {"ASYNCFETCH_THINGS_URL": "/things"}

    def answer(self, call: Call) -> Answer:
        kind, name, *more = call.path.strip("/").split("/")
        asked = int(dict(call.pairs()).get("rows", 1))
        body = {
            "plan": lambda: {"names": _names(name, *more)},
            "numbers": lambda: _number(int(name), asked),
            "chains": lambda: _page(*map(int, name.split("."))),
            "shards": lambda: _shard(*map(int, name.split("-"))),
        }[kind]()
        return Answer(
            body=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )


def _names(kind: str, bounds: str) -> list[str]:
    numbers = range(*map(int, bounds.split("-")))
    if kind == "chains":
        return [f"{n}.0" for n in numbers]
    if kind == "shards":  # some fit, some fall into halves and quarters
        return [f"{1000 * n}-{1000 * n + CAP * (1 + n % 4)}" for n in numbers]
    return [str(n) for n in numbers]


def _number(number: int, asked: int) -> dict[str, Any]:
    # Of the larger items only every third is large, so that they meet the small ones.
    count = 0 if number % 10 == 3 else asked if number % 3 == 0 else 1
    return {"rows": [row(1_000_000 * number + n) for n in range(count)]}


def _page(chain: int, page: int) -> dict[str, Any]:
    last = 7 * chain % LINKS
    rows = [row(1000 * chain + 10 * page + n) for n in range(page % 4)]
    return {"rows": rows, "next": None if page == last else f"{chain}.{page + 1}"}


def _shard(start: int, stop: int) -> dict[str, Any]:
    if stop - start > CAP:
        middle = (start + stop) // 2
        return {"rows": [], "halves": [f"{start}-{middle}", f"{middle}-{stop}"]}
    return {"rows": [row(n) for n in range(start, stop)]}


async def _archive(options: argparse.Namespace) -> None:
    async with serve(
        scale=options.scale,
        latency=options.latency,
        faults=options.faults,
        log=options.log,
    ) as archive:
        archive._services = (*archive._services, ThingsService())
        for target in options.fail:
            # Two refusals that no retry cures, then an answer: again and again.
            no = Fault(status=400, body=b"no", headers={"Content-Type": "text/plain"})
            archive.script(target, [no, no, Fault()] * 100)
        print(json.dumps(archive.environment()), flush=True)
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                return


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="archive")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", default="")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--fail", action="append", default=[])
    return parser.parse_args(words)


def _tell_tasks(_signal: int, _frame: object) -> None:
    """Append the number of tasks to a file; runs between two steps of the loop."""
    with Path(os.environ["THINGS_TASKS"]).open("a", encoding="ascii") as file:
        print(len(asyncio.all_tasks()), file=file)


def main() -> None:
    if sys.argv[1:2] == ["archive"]:
        uvloop = {"use_uvloop": find_spec("uvloop") is not None}
        anyio.run(_archive, _options(sys.argv[2:]), backend_options=uvloop)
        return
    services.SERVICES["things"] = (Things.__module__, Things.__name__)
    if "THINGS_TASKS" in os.environ:
        signal.signal(signal.SIGUSR1, _tell_tasks)
    # A minute is what a stopped writer is given; nobody learns more from waiting so
    # long. It must still be more than the seconds between two beats of a living one.
    _store.STALE = float(os.environ.get("THINGS_STALE", _store.STALE))
    _cli.main()


if __name__ == "__main__":
    main()

"""From a plan to rows: fan-out and back-pressure. The only module that starts tasks.

::

    feeder ──▶ bounded stream ──▶ workers ──▶ bounded stream ──▶ consumer
       ▲       (PlannedItem)      (Exchange)    (ItemResult)        │
       └──────────────── follow-up items ◀──────────────────────────┘

One feeder owns the plan. It takes what a journal already holds, then drives the
source's enumeration, and every block goes through the journal before its first item is
sent. Workers perform items one after the other. The consumer is one of three: the
caller of :func:`collect`, the one who iterates :func:`open_stream`, or the writer of
:func:`download`. A consumer that is slow fills the streams, and the requests stop.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import Counter, deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol, TypeVar

import anyio
import pyarrow as pa
from anyio.abc import ObjectReceiveStream, TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asyncfetch._body import INLINE
from asyncfetch._dataset import Writer, noted
from asyncfetch._decode import as_schema, document, whole, without_taken_keys
from asyncfetch._exchange import Answer, Exchange, ignore
from asyncfetch._files import Files, directory_of
from asyncfetch._ledger import CITATION, PlanRecord, cut_short, schema_id, store_at
from asyncfetch._model import (
    AbsentSource,
    Ask,
    Block,
    BulkSource,
    ChainSource,
    CitedSource,
    Committed,
    Decoded,
    DivisibleSource,
    ElsewhereSource,
    Event,
    FailedItem,
    Item,
    ItemEnded,
    ItemResult,
    Json,
    Kept,
    LearningSource,
    LenientSource,
    Observer,
    Outcome,
    Paced,
    Planned,
    PlannedItem,
    Report,
    Request,
    RequestSent,
    RereadSource,
    Response,
    Retrying,
    Source,
    Stores,
)
from asyncfetch._objects import Destination
from asyncfetch._partial import Partial
from asyncfetch._threads import in_decode_thread, in_thread, surely_in_thread
from asyncfetch._together import MOST, Together
from asyncfetch._version import __version__
from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DatasetError,
    DecodeError,
    IntegrityError,
    ItemError,
    NotFound,
    TransportError,
)

T = TypeVar("T")

logger = logging.getLogger("asyncfetch")

# Workers beyond the host's slots decode and wait for the consumer while others are on
# the wire, so that a slot is never idle for that. Each may hold one decoded item.
SPARE_WORKERS = 8
# For each of the host's slots, so many more go on while others wait for their next
# attempt: when 2 % of the requests fail, most of a worker's time are those waits, of
# half a second and more, and the slots would stand idle. Not more than that, so that a
# host in trouble is not asked by ever more of them.
RESTING_WORKERS = 2
# Items that are divided one after the other without a good answer in between. One bad
# record among 1000 takes 11; a server that answers nothing else would be asked for each
# of its records.
MOST_DIVIDED = 40
# Large answers that are decoded and not yet taken by the consumer: one that it takes
# next, and one in the decode thread.
LARGE_RESULTS = 2
HEARTBEAT = 2.0  # seconds; another writer watches for a multiple of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The items that a table and its filters come to; nothing is asked before use."""

    service: str
    table: str
    filters: Mapping[str, Json]
    """As the user gave them, normalized; plain JSON."""
    limit: int | None
    """Items at most."""
    source: Source
    exchange: Exchange
    files: Stores = "none"
    """Whether its items are files, and when their bytes are stored."""
    first: tuple[Request, Response] | None = None
    """What the first item asks, if the answer is there already."""

    @property
    def name(self) -> str:
        """The table's full name, such as ``neuroscout/predictor-events``."""
        return f"{self.service}/{self.table}"

    def record(self) -> PlanRecord:
        """What a dataset keeps of the plan."""
        source = self.source
        return PlanRecord(
            service=self.service,
            base_url=self.exchange.base_url,
            table=self.table,
            filters=self.filters,
            limit=self.limit,
            schema_id=schema_id(self.source.schema),
            version=__version__,
            notes=source.notes if isinstance(source, LearningSource) else None,
        )


class Journal(Protocol):
    """Where a run finds and leaves its plan."""

    @property
    def cursor(self) -> Json:
        """Where the enumeration goes on."""

    @property
    def wants_more(self) -> bool:
        """Whether there is more to enumerate within the limit."""

    @property
    def planned(self) -> int:
        """Items known."""

    @property
    def ended(self) -> int:
        """Items that ended before this run."""

    def pending(self) -> Iterator[list[PlannedItem]]:
        """Items planned earlier that have not ended."""

    def freeze(self, block: Block) -> list[PlannedItem]:
        """Keep a block; return its items that are within the limit."""

    def add(self, result: ItemResult) -> list[PlannedItem]:
        """Note a result; return the items that were found in it."""


class MemoryJournal:
    """The journal of a plan that is executed once, for its rows alone."""

    def __init__(self, limit: int | None) -> None:
        self.cursor: Json = None
        self.planned = 0
        self.ended = 0
        self.shortfall: str | None = None
        self._left = limit
        self._complete = False

    @property
    def wants_more(self) -> bool:
        """Whether there is more to enumerate within the limit."""
        return not self._complete and self._left != 0

    def pending(self) -> Iterator[list[PlannedItem]]:
        """Nothing is left from an earlier run."""
        return iter(())

    def freeze(self, block: Block) -> list[PlannedItem]:
        """Number the items of a block."""
        self.cursor, self._complete = block.cursor, block.cursor is None
        self.shortfall = block.shortfall or self.shortfall
        items = block.items[: self._left]
        if self._left is not None:
            self._left -= len(items)
        return self._number(items, None)

    def add(self, result: ItemResult) -> list[PlannedItem]:
        """Number the items found in a result."""
        return self._number(result.follow_up, result.ordinal)

    def _number(self, items: Any, parent: int | None) -> list[PlannedItem]:
        first = self.planned
        self.planned += len(items)
        return [
            PlannedItem(ordinal=first + n, item=item, parent=parent)
            for n, item in enumerate(items)
        ]


class Planner:
    """Drives a source's enumeration: carries its questions to the service."""

    def __init__(
        self,
        plan: Plan,
        *,
        interactive: bool = True,
        observe: Observer = ignore,
        spool_dir: Path | None = None,
    ) -> None:
        self._plan = plan
        self._interactive = interactive
        self._observe = observe
        self._spool_dir = spool_dir
        self.took: deque[float] = deque(maxlen=100)
        """Seconds on the wire of the last questions."""
        self.first: tuple[Request, Response] | None = None
        """What an item asks, with the answer that is there already."""

    async def blocks(self, cursor: Json) -> AsyncGenerator[Block]:
        """Blocks of the plan, from the beginning or after one's cursor."""
        steps = self._plan.source.enumerate(cursor)
        answers: tuple[Any, ...] | None = None
        refusal: AsyncfetchError | None = None
        while True:
            try:
                step = steps.send(answers) if refusal is None else steps.throw(refusal)
            except StopIteration:
                return
            except (KeyError, TypeError, AttributeError) as error:
                raise DecodeError(
                    f"expected the records of {self._plan.service}, got something else "
                    f"from {self._plan.exchange.base_url} ({error!r}): check base_url"
                ) from error
            answers = refusal = None
            if isinstance(step, Ask):
                try:
                    answers = await self._ask_all(step)
                except AsyncfetchError as error:  # the source may know what it means
                    refusal = error
            else:
                yield step

    async def _ask_all(self, step: Ask) -> tuple[Any, ...]:
        answers: dict[int, Any] = {}

        async def ask(place: int) -> None:
            try:
                answer = await self._plan.exchange.ask(
                    step.requests[place],
                    lambda chunks, _response: document(chunks),
                    interactive=self._interactive,
                    spool_dir=self._spool_dir,
                    observe=self._observe,
                )
            except AsyncfetchError as error:
                if not step.is_tolerant or ends_all(error):
                    raise
                answers[place] = error
                return
            self.took.append(answer.on_wire)
            answers[place] = answer.value
            if step.is_item and place == 0:
                self.first = _kept(step.requests[0], answer.response)

        with _lone_error_as_itself():
            async with anyio.create_task_group() as group:
                for place in range(len(step.requests)):
                    group.start_soon(ask, place)
        # The server is there: what comes later may take the patience of a long run.
        self._interactive = False
        return tuple(answers[place] for place in range(len(step.requests)))


async def settled(
    plan: Plan,
    dest: Destination | None = None,
    *,
    observe: Observer = ignore,
    interactive: bool = True,
) -> Plan:
    """The plan with a source that knows its columns: by *dest*, or by its first answer.

    Raises
    ------
    DatasetError
        *dest* holds another plan.
    AsyncfetchError
        There is no answer, or it is not what it should be.
    """
    source = plan.source
    if not isinstance(source, LearningSource) or source.notes is not None:
        return plan
    if dest is not None:
        notes = await in_thread(partial(noted, dest, plan.record(), source.schema))
        if notes is not None:
            source = source.knowing(notes)
            if source.notes is not None:
                return replace(plan, source=source)
    question = source.question
    answer: Answer[LearningSource] = await plan.exchange.ask(
        question,
        source.taught,
        interactive=interactive,
        impatient=True,  # a wrong URL or a server that is not there is said soon
        observe=observe,
    )
    # The answer is the first item's as well.
    return replace(plan, source=answer.value, first=_kept(question, answer.response))


def _kept(request: Request, response: Response) -> tuple[Request, Response] | None:
    """Both, if the answer was small enough to lie in memory."""
    return (request, response) if isinstance(response.body.data, bytes) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the enumeration of a plan comes to."""

    items: int
    requests: int
    """Requests that were needed to know."""
    lead: int
    """Of these, how many came before the first items were known."""
    answered: int
    """Items that need no request of their own."""
    seconds: float
    """What such a request takes on the wire, the median; 0 when none was needed."""


async def survey(
    plan: Plan,
    *,
    visit: Callable[[Item], object] = lambda _: None,
    cursor: Json = None,
    limit: int | None = None,
) -> Survey:
    """Enumerate *plan* without asking for any of its items, each of which is visited.

    Parameters
    ----------
    cursor
        Where to go on, of a plan that is known in part.
    limit
        Items at most, in place of the plan's own limit.
    """
    tally = Tally(ignore)
    journal = MemoryJournal(plan.limit if limit is None else limit)
    planner = Planner(plan, observe=tally.see)
    lead = 0
    with _lone_error_as_itself():
        async with aclosing(planner.blocks(cursor)) as blocks:
            while journal.wants_more and (block := await anext(blocks, None)):
                lead = lead or tally.requests
                for planned in journal.freeze(block):
                    visit(planned.item)
    return Survey(
        items=journal.planned,
        requests=tally.requests,
        lead=lead,
        answered=int(planner.first is not None and journal.planned > 0),
        seconds=median(planner.took) if planner.took else 0.0,
    )


class Run:
    """One execution of a plan, as its consumer sees it.

    The consumer takes results from :attr:`results` and settles each with the items that
    were found in it; the run ends when everything fed has been settled.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        *,
        as_records: bool,
        interactive: bool,
        observe: Observer,
        spool_dir: Path | None = None,
        guard: anyio.Lock | None = None,
        files: Files | None = None,
        again: Callable[[RereadSource], Awaitable[tuple[Item, ...]]] | None = None,
    ) -> None:
        self._files = files
        self._again = again
        self._plan = plan
        self.exchange = plan.exchange
        self._journal = journal
        self._as_records = as_records
        self._interactive = interactive
        self._observe = observe
        self._spool_dir = spool_dir
        self._guard = guard or anyio.Lock()
        self._found: list[PlannedItem] = []
        self._outstanding = 0
        self._settled = anyio.Event()
        self._reached = False  # whether the server has answered anything yet
        self._divided = 0  # items since the last good answer
        self._planner = Planner(plan, observe=observe, spool_dir=spool_dir)
        self._error: BaseException | None = None
        self._scope = anyio.CancelScope()
        self._group: TaskGroup
        self.draining = False
        # One item ahead for each worker keeps them busy; results queue no further.
        slots = plan.exchange.gate.concurrency
        spare = SPARE_WORKERS
        self._working = 0  # workers there are: no more than there were items at once
        self._performing = 0
        self._together: Together | None = None
        if isinstance(plan.source, BulkSource) and not as_records:
            spare = MOST
            self._together = Together(plan.source.decode_many, lambda: self._performing)
        self.workers = slots + spare + RESTING_WORKERS * slots
        # Who holds one may ask, decode and hold a result.
        self._hands = anyio.Semaphore(slots + spare, fast_acquire=True)
        # Who holds one may decode a large answer, and has it until it is settled.
        self._rooms = anyio.Semaphore(LARGE_RESULTS, fast_acquire=True)
        self._large: set[int] = set()
        self._give, self._take = anyio.create_memory_object_stream[PlannedItem](
            self.workers
        )
        self._report, self.results = anyio.create_memory_object_stream[ItemResult](
            SPARE_WORKERS
        )

    def settle(self, result: ItemResult, found: list[PlannedItem]) -> None:
        """Say that *result* has been dealt with; *found* joins the queue."""
        self._leave(result.ordinal)
        self._outstanding -= 1
        self._found.extend(reversed(found))  # taken from the end
        self._settled.set()

    def drain(self) -> None:
        """Start no further item; those in flight end."""
        self.draining = True
        self._settled.set()

    def abandon(self) -> None:
        """Cancel what is in flight; the results end."""
        self._scope.cancel()

    async def produce(self) -> None:
        """Run feeder and workers until the plan has ended.

        What ends it early is kept for :meth:`raise_error`: the consumer meets it where
        it stands, after the results that came before.
        """
        async with self._report:
            try:
                with self._scope:
                    async with anyio.create_task_group() as self._group:
                        await self._feed()
            except Exception as error:  # noqa: BLE001 - raised by the consumer
                self._error = _alone(error)

    def close(self) -> None:
        """Let go of the streams between the tasks, which have ended or never began."""
        for stream in (self._give, self._take, self._report, self.results):
            stream.close()

    def raise_error(self) -> None:
        """Raise what ended the run early, if anything did."""
        if self._error is not None:
            raise self._error

    async def _feed(self) -> None:
        async with self._give, self._take:
            self._observe(
                Planned(
                    items=self._journal.planned,
                    ended=self._journal.ended,
                    complete=self._is_known,
                )
            )
            await self._feed_pending()
            await self._feed_enumeration()
            while not self.draining:
                await self._feed_found()
                if not self._outstanding and not await self._feed_again():
                    return
                self._settled = anyio.Event()
                await self._settled.wait()

    @property
    def _is_known(self) -> bool:
        """Whether there will be no more items than those that are planned."""
        journal, source = self._journal, self._plan.source
        if journal.wants_more:
            return False
        if not isinstance(source, ChainSource) or journal.planned == journal.ended:
            return True
        return source.expected is not None and journal.planned >= source.expected

    async def _feed_pending(self) -> None:
        blocks = self._journal.pending()
        while not self.draining:
            async with self._guard:
                block = await in_thread(lambda: next(blocks, None))
            if block is None:
                return
            await self._feed_items(block)

    async def _feed_enumeration(self) -> None:
        journal = self._journal
        async with aclosing(self._planner.blocks(journal.cursor)) as blocks:
            while journal.wants_more and not self.draining:
                block = await anext(blocks, None)
                if block is None:
                    return
                async with self._guard:
                    items = await in_thread(partial(journal.freeze, block))
                self._observe(
                    Planned(
                        items=journal.planned,
                        ended=journal.ended,
                        complete=self._is_known,
                    )
                )
                await self._feed_items(items)

    async def _feed_again(self) -> bool:
        """Feed what is to be read once more; whether there was anything."""
        source = self._plan.source
        if (
            self._again is None
            or not isinstance(source, RereadSource)
            or (self._plan.limit is not None and not isinstance(source, ChainSource))
        ):
            return False
        block = Block(await self._again(source))
        if not block.items:
            return False
        async with self._guard:
            items = await in_thread(partial(self._journal.freeze, block))
        await self._feed_items(items)
        return bool(items)

    async def _feed_items(self, items: list[PlannedItem]) -> None:
        for item in items:
            await self._feed_found()
            if self.draining:
                return
            await self._feed_one(item)

    async def _feed_found(self) -> None:
        # Before the next item of the plan, and depth first: what waits here is then
        # bounded by what is in flight, however many items lead to others.
        while self._found and not self.draining:
            await self._feed_one(self._found.pop())

    async def _feed_one(self, item: PlannedItem) -> None:
        self._outstanding += 1
        if self._working < min(self._outstanding, self.workers):
            self._working += 1
            self._group.start_soon(self._work, self._take.clone())
        await _send(self._give, item)

    async def _work(self, todo: MemoryObjectReceiveStream[PlannedItem]) -> None:
        async with todo:
            async for planned in _received(todo):
                async with self._hands:
                    if self.draining:
                        continue
                    self._performing += 1
                    try:
                        result = await self._perform(planned)
                    finally:
                        self._performing -= 1
                    self._observe(
                        ItemEnded(
                            key=result.key,
                            outcome=result.outcome,
                            rows=result.rows,
                            # None came for a file that lay there.
                            bytes=result.bytes if result.attempts else 0,
                        )
                    )
                    await _send(self._report, result)
                    del result  # its rows would stay until this worker's next ones

    async def _rest(self, seconds: float) -> None:
        """Let another worker go on while this one waits for its next attempt."""
        self._hands.release()
        await self._plan.exchange.gate.sleep(seconds)
        # A cancellation here leaves one hand too many, and nobody to use it.
        await self._hands.acquire()

    async def _perform(self, planned: PlannedItem) -> ItemResult:
        item = planned.item
        exchange = self._plan.exchange
        started = time.monotonic()
        try:
            answer, kept, fetched_at = await self._answered(planned)
        except AsyncfetchError as error:
            parts = self._parts_of(item, error)
            if not parts:
                self._note_failure(error, item)
            result = ItemResult(
                ordinal=planned.ordinal,
                key=item.key,
                url=exchange.shown_url(item.request),
                outcome=Outcome.SPLIT if parts else Outcome.FAILED,
                follow_up=parts,
                http_status=getattr(error, "status", None),
                attempts=getattr(error, "attempts", 1),
                elapsed=time.monotonic() - started,
                fetched_at=datetime.now(UTC),
                error=error,
                diagnostics=(code,) if (code := getattr(error, "code", "")) else (),
            )
            if not parts and isinstance(error, NotFound) and item.request.may_be_absent:
                return self._absent(item, result)
            return result
        self._reached, self._divided = True, 0
        value, response = answer.value, answer.response
        return ItemResult(
            ordinal=planned.ordinal,
            key=item.key,
            url=response.url,
            outcome=Outcome.SPLIT if value.is_split else Outcome.OK,
            batches=value.batches,
            records=value.records,
            follow_up=value.follow_up,
            http_status=response.status or None,
            bytes=response.body.size,
            sha256=response.body.sha256,
            etag=response.headers.get("ETag"),
            last_modified=response.headers.get("Last-Modified"),
            attempts=answer.attempts,
            elapsed=answer.elapsed,
            fetched_at=fetched_at or datetime.now(UTC),
            diagnostics=value.diagnostics,
            detail=value.detail,
            kept=kept,
        )

    def _absent(self, item: Item, result: ItemResult) -> ItemResult:
        """What it comes to that the thing is not there."""
        source = self._plan.source
        if not isinstance(source, AbsentSource):
            return replace(result, outcome=Outcome.MISSING)
        value = source.absent(item, as_records=self._as_records)
        return replace(
            result,
            outcome=Outcome.OK,
            error=None,
            batches=value.batches,
            records=value.records,
            diagnostics=value.diagnostics,
            detail=value.detail,
        )

    async def _answered(
        self, planned: PlannedItem
    ) -> tuple[Answer[Decoded], Kept | None, datetime | None]:
        """The answer of an item, from the first place that has it."""
        try:
            return await self._answered_there(planned)
        except NotFound:
            source, item = self._plan.source, planned.item
            if not isinstance(source, ElsewhereSource):
                raise
            for target in source.elsewhere(item):
                request = replace(item.request, target=target)
                there = replace(planned, item=replace(item, request=request))
                with suppress(NotFound):
                    return await self._answered_there(there, is_probe=True)
            raise

    async def _answered_there(
        self, planned: PlannedItem, *, is_probe: bool = False
    ) -> tuple[Answer[Decoded], Kept | None, datetime | None]:
        if self._files is not None and planned.item.request.file is not None:
            return await self._fetch_file(self._files, planned, is_probe=is_probe)
        return await self._ask(planned, is_probe=is_probe), None, None

    def _decode(
        self, planned: PlannedItem, chunks: Iterator[bytes], response: Response
    ) -> Decoded | Awaitable[Decoded]:
        item = planned.item

        def alone(chunks: Iterator[bytes]) -> Decoded:
            return self._plan.source.decode(
                item, chunks, response, as_records=self._as_records
            )

        if not response.body.is_small:
            return self._decode_large(planned.ordinal, lambda: alone(chunks))
        if self._together is None:
            return alone(chunks)
        content = whole(chunks)
        if len(content) > INLINE:
            return alone(iter([content]))
        return self._together.decode(item, content, lambda: alone(iter([content])))

    async def _decode_large(
        self, ordinal: int, decode: Callable[[], Decoded]
    ) -> Decoded:
        """What it comes to, when others that are large have been taken."""
        if ordinal not in self._large:
            await self._rooms.acquire()
            self._large.add(ordinal)
        try:
            return await in_decode_thread(decode)
        except BaseException:  # nobody waits for one that waits for its next attempt
            self._leave(ordinal)
            raise

    def _leave(self, ordinal: int) -> None:
        if ordinal in self._large:
            self._large.remove(ordinal)
            self._rooms.release()

    async def _fetch_file(
        self, files: Files, planned: PlannedItem, *, is_probe: bool
    ) -> tuple[Answer[Decoded], Kept, datetime | None]:
        """The answer of an item that is a file, and its bytes.

        What lies in its place already is taken when it is known to be the file.
        """
        item, exchange = planned.item, self._plan.exchange
        assert item.request.file is not None
        path, url = item.request.file.path, exchange.shown_url(item.request)

        found = await files.find(planned)
        if found is not None and found.is_proved:
            there = replace(found.response, url=found.response.url or url)
            try:
                value = await exchange.consume(
                    item.request,
                    there,
                    lambda chunks, response: self._decode(planned, chunks, response),
                )
            finally:
                await files.release(found)
            kept = Kept(path=path, data=None)
            answer = Answer(value=value, response=there, attempts=0, elapsed=0.0)
            return answer, kept, found.fetched_at
        if found is not None:
            await files.release(found)
        partial = files.partial(planned, url)
        try:
            answer = await self._ask(planned, partial, is_probe=is_probe)
        finally:
            partial.close()
        body = answer.response.body
        if found is None:
            return answer, Kept(path=path, data=body.data), None
        if found.response.body.sha256 != body.sha256:
            raise files.occupied(path)
        return answer, Kept(path=path, data=None), None

    async def _ask(
        self, planned: PlannedItem, partial: Partial | None = None, *, is_probe: bool
    ) -> Answer[Decoded]:
        item = planned.item
        first = self._plan.first or self._planner.first
        if first is not None and first[0] == item.request:
            self._planner.first = None
            # What is odd in it is for the item to ask again.
            with suppress(IntegrityError, DecodeError):
                value = await self._plan.exchange.consume(
                    item.request,
                    first[1],
                    lambda chunks, response: self._decode(planned, chunks, response),
                )
                return Answer(value=value, response=first[1], attempts=1, elapsed=0.0)

        async def ask(*, impatient: bool) -> Answer[Decoded]:
            return await self._plan.exchange.ask(
                item.request,
                lambda chunks, response: self._decode(planned, chunks, response),
                interactive=self._interactive,
                impatient=impatient,
                spool_dir=self._spool_dir,
                observe=self._observe,
                sleep=self._rest,
                partial=partial,
                is_probe=is_probe,
            )

        # A wrong URL or a server that is not there is said soon.
        if not self._interactive and not self._reached:
            try:
                return await ask(impatient=True)
            except AsyncfetchError as error:
                may_pass = isinstance(error, TransportError | IntegrityError) or (
                    getattr(error, "status", 0) >= 500
                )
                if not (self._reached and may_pass):
                    raise
                # Others were answered meanwhile: it is there, and it will be back.
        return await ask(impatient=self._interactive)

    def _parts_of(self, item: Item, error: AsyncfetchError) -> tuple[Item, ...]:
        """Items that are asked in place of one that was refused."""
        source = self._plan.source
        if not isinstance(source, DivisibleSource) or ends_all(error):
            return ()
        parts = source.divided(item, error) if self._divided < MOST_DIVIDED else ()
        if parts:
            self._reached = True  # it was an answer
            self._divided += 1
        return parts

    def _note_failure(self, error: AsyncfetchError, item: Item) -> None:
        if isinstance(error, DatasetError) and not getattr(error, "is_of_item", False):
            raise error
        if getattr(error, "is_fatal", False) or isinstance(error, ConfigurationError):
            raise error
        journal = self._journal
        # A 404, or a page for people: most likely the URL is wrong.
        is_astray = isinstance(error, NotFound) or (
            isinstance(error, IntegrityError) and not self._interactive
        )
        if (
            is_astray
            and not item.request.may_be_absent
            and journal.planned == 1
            and not journal.wants_more
        ):
            raise error  # nothing else is there to be had
        if not isinstance(error, TransportError):
            self._reached = True
        elif not self._reached:
            raise error


def ends_all(error: AsyncfetchError) -> bool:
    """Whether an error is not of one request alone."""
    return getattr(error, "is_fatal", False) or isinstance(
        error, ConfigurationError | DatasetError | TransportError
    )


async def _received(stream: MemoryObjectReceiveStream[T]) -> AsyncGenerator[T]:
    """Values of *stream*, without the checkpoint of an awaited receive: 20 µs each."""
    while True:
        try:
            value = stream.receive_nowait()
        except anyio.EndOfStream:
            return
        except anyio.WouldBlock:
            try:
                value = await stream.receive()
            except anyio.EndOfStream:
                return
        yield value


async def _send(stream: MemoryObjectSendStream[T], value: T) -> None:
    """Send without the checkpoint of an awaited send, where there is room."""
    try:
        stream.send_nowait(value)
    except anyio.WouldBlock:
        await stream.send(value)


@contextmanager
def _lone_error_as_itself() -> Iterator[None]:
    """Let an error that is alone in a group leave as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = _alone(group)
        if error is group:
            raise
        raise error from error.__cause__


def _alone(error: BaseException) -> BaseException:
    """The one error in a group, or the first when all are ours; else the group."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = list(_leaves(error))
    if len(leaves) == 1 or all(isinstance(leaf, AsyncfetchError) for leaf in leaves):
        return leaves[0]
    return error


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


@asynccontextmanager
async def _producing(run: Run) -> AsyncGenerator[TaskGroup]:
    """Run *run* beside the body; leaving the body cancels what is in flight."""
    exchange = run.exchange
    with _lone_error_as_itself():
        async with (
            exchange.beside_others() as keep_beating,
            run.results,
            anyio.create_task_group() as group,
        ):
            group.start_soon(run.produce)
            group.start_soon(keep_beating)
            yield group
            # Before the stream closes: a blocked worker sees cancellation, not a
            # broken stream.
            group.cancel_scope.cancel()


async def collect(
    plan: Plan,
    *,
    as_records: bool,
    limit: int | None = None,
    observe: Observer = ignore,
) -> list[ItemResult]:
    """Results of a plan in its order; *limit* rows are enough.

    Parts of an item stand where it stood.

    Raises
    ------
    ItemError
        At the first item that failed; its ``report`` has the counts so far.
    """
    journal = MemoryJournal(plan.limit)
    tally = Tally(observe)
    done: dict[int, ItemResult] = {}
    taken: set[Any] = set()
    rows = first_open = 0
    places: dict[int, tuple[int, ...]] = {}  # of parts, by ordinal
    awaited: set[int] = set()  # parts that have not ended

    def place(ordinal: int) -> tuple[int, ...]:
        return places.get(ordinal, (ordinal,))

    async def again(source: RereadSource) -> tuple[Item, ...]:
        return source.again(rows, [done[n].detail for n in sorted(done)])

    run = Run(
        plan,
        journal,
        as_records=as_records,
        interactive=True,
        observe=tally.see,
        again=None if limit is not None else again,
    )
    if limit is not None:
        run.workers = 1  # ask for no more than is wanted
    async with _producing(run):
        async for result in run.results:
            if result.outcome is Outcome.FAILED:
                if not getattr(result.error, "is_of_record", False):
                    raise item_error(result, tally.report(plan))
                # One record that the service cannot give; it would be so every time.
                logger.warning("%s: %s: %s", plan.name, result.key, result.error)
            if plan.source.row_key is not None:
                result = without_taken_keys(result, plan.source.row_key, taken)  # noqa: PLW2901
            done[result.ordinal] = result
            found = journal.add(result)
            run.settle(result, found)
            awaited.discard(result.ordinal)
            parts = found if result.outcome is Outcome.SPLIT else []
            awaited.update(one.ordinal for one in parts)
            whole_place = place(result.ordinal)
            places |= {one.ordinal: (*whole_place, one.ordinal) for one in parts}
            while first_open in done:
                rows += done[first_open].rows
                first_open += 1
            if limit is not None and rows >= limit and not awaited:
                break
        else:
            run.raise_error()
            if plan.limit is None:
                details = [done[n].detail for n in sorted(done)]
                note_shortfall(plan, journal.shortfall, rows, details)
    return [done[n] for n in sorted(done, key=place)]


async def side_by_side(
    calls: Sequence[Callable[[], Awaitable[T]]], *, at_once: int
) -> list[T]:
    """What *calls* give, in their order; *at_once* of them go on at a time.

    The first that fails cancels the others, and its error is raised as itself.
    """
    found: dict[int, T] = {}
    todo = iter(enumerate(calls))

    async def work() -> None:
        for place, call in todo:
            found[place] = await call()

    with _lone_error_as_itself():
        async with anyio.create_task_group() as group:
            for _ in range(min(at_once, len(calls))):
                group.start_soon(work)
    return [found[place] for place in range(len(calls))]


@dataclass(slots=True)
class _Seen:
    """What a stream has given so far, as far as a source asks for it."""

    keeps_details: bool
    rows: int = 0
    details: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, result: ItemResult) -> None:
        """Count a result."""
        self.rows += result.rows
        if self.keeps_details and result.outcome is Outcome.OK:
            self.details.append(result.detail)


class BatchStream(ObjectReceiveStream[pa.RecordBatch]):
    """Record batches of a plan, in order of completion; batches of an item together.

    Attributes
    ----------
    failed
        The items that failed, with ``on_error="report"``.
    """

    def __init__(
        self,
        run: Run,
        plan: Plan,
        journal: MemoryJournal,
        tally: Tally,
        *,
        on_error: Literal["raise", "report"],
        seen: _Seen,
    ) -> None:
        self._seen = seen
        self._run = run
        self._plan = plan
        self._journal = journal
        self._tally = tally
        self._on_error = on_error
        self._taken: set[Any] = set()
        self._ready: deque[pa.RecordBatch] = deque()
        self.failed: list[FailedItem] = []

    def report(self) -> Report:
        """What the stream has come to so far."""
        return self._tally.report(self._plan, self.failed)

    async def receive(self) -> pa.RecordBatch:
        """Next batch; its schema's metadata names the item.

        Raises
        ------
        ItemError
            The next item failed. Iteration may go on after it.
        AsyncfetchError
            The run could not go on.
        anyio.EndOfStream
            There are no more.
        """
        while not self._ready:
            try:
                result = await self._run.results.receive()
            except anyio.EndOfStream:
                self._run.raise_error()
                raise
            key = self._plan.source.row_key
            if key is not None:
                result = without_taken_keys(result, key, self._taken)
            self._seen.add(result)
            self._run.settle(result, self._journal.add(result))
            if result.outcome is Outcome.FAILED:
                self.failed.append(failed_item(result))
                if self._on_error == "raise":
                    raise item_error(result, self.report())
            named = self._plan.source.schema.with_metadata(
                {**(self._plan.source.schema.metadata or {}), KEY: result.key}
            )
            self._ready.extend(
                as_schema(batch, named) for batch in result.batches if batch.num_rows
            )
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Stop: cancels what is in flight, and waits for its end."""
        self._run.abandon()
        await self._run.results.aclose()


KEY = b"asyncfetch.key"


class open_stream(AbstractAsyncContextManager[BatchStream]):  # noqa: N801 - as a function
    """Stream of the record batches of *plan*, in constant memory.

    The run has a task of its own and no cancel scope in the task of its consumer. So
    the block may be left in another task than it was entered in: a consumer that is an
    asynchronous generator is closed by the event loop when somebody breaks out of it.
    A stream that is dropped without being left stops its run as well.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        on_error: Literal["raise", "report"] = "raise",
        observe: Observer = ignore,
    ) -> None:
        self._plan = plan
        self._on_error = on_error
        self._observe = observe

    async def __aenter__(self) -> BatchStream:
        tally = Tally(self._observe)
        plan = await settled(self._plan, observe=tally.see)
        journal = MemoryJournal(plan.limit)
        seen = _Seen(isinstance(plan.source, RereadSource))

        async def again(source: RereadSource) -> tuple[Item, ...]:
            return source.again(seen.rows, seen.details)

        run = Run(
            plan,
            journal,
            as_records=False,
            interactive=False,
            observe=tally.see,
            again=again,
        )
        self._stream = BatchStream(
            run, plan, journal, tally, on_error=self._on_error, seen=seen
        )
        loop = asyncio.get_running_loop()
        # The one task without a group: it ends with this block, or with the stream.
        self._run, self._task = run, loop.create_task(run.produce())
        self._dropped = weakref.finalize(self._stream, _end_soon, loop, run, self._task)
        self._dropped.atexit = False  # the loop ends its tasks
        return self._stream

    async def __aexit__(self, *exception: object) -> None:
        self._dropped.detach()
        self._task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not self._task.done():  # it only cleans up: see what it waits for there
            try:
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([self._task])
            except asyncio.CancelledError as error:
                cancelled = error
        self._run.close()
        if cancelled is not None:
            raise cancelled


def _end_soon(
    loop: asyncio.AbstractEventLoop, run: Run, task: asyncio.Task[None]
) -> None:
    """End the run of a stream that was dropped; called by whatever thread drops it."""

    def end() -> None:
        task.add_done_callback(lambda _: run.close())
        task.cancel()

    with suppress(RuntimeError):  # the loop is closed, and has ended its tasks
        loop.call_soon_threadsafe(end)


async def download(
    plan: Plan,
    dest: Destination,
    *,
    files: str | Path | None = None,
    only: frozenset[int] | None = None,
    progress: bool = False,
    observe: Observer | None = None,
    stop: anyio.Event | None = None,
    drain_seconds: float = 30.0,
    commit_seconds: float = 30.0,
) -> Report:
    """Fill the dataset at *dest* with the rows of *plan*; go on where one stopped.

    Parameters
    ----------
    dest
        A directory, made if it is not there, or a place on an object store
        (``s3://bucket/prefix``, or an :class:`~asyncfetch.ObjectStore`).
    files
        A directory for the exact bytes of items that are files: ``_files`` is the one
        in the dataset. It is remembered; by default it is what the dataset says, and
        for most tables that no bytes are stored.
    only
        Ordinals of the items to ask for, of those that have failed or are missing;
        nothing else is asked then. By default everything that is not there, and
        what failed in an earlier run.
    progress
        Show a progress bar on standard error.
    observe
        Called with every event, in the event loop.
    stop
        When it is set, no further item is started; those in flight end within
        *drain_seconds*, and everything that ended is committed.
    commit_seconds
        Rows are committed at least this often, or every 50th part of the run's age
        when that is longer (10 minutes at most).

    Raises
    ------
    DatasetError
        *dest* holds another plan, or another writer is at work there.
    AsyncfetchError
        The run could not go on. What had ended by then is committed. The same holds
        when the call is cancelled.
    """
    if progress:
        from asyncfetch._progress import Progress  # noqa: PLC0415 - rich, when shown

        bar = Progress(plan.name)
        with bar:
            return await download(
                plan,
                dest,
                files=files,
                only=only,
                observe=_both(bar, observe),
                stop=stop,
                drain_seconds=drain_seconds,
                commit_seconds=commit_seconds,
            )
    if files is not None and plan.files == "none":
        raise ConfigurationError(
            f"{plan.name} has no files: ask without a directory for them"
        )
    tally = Tally(observe or ignore)
    plan = await settled(plan, dest, observe=tally.see, interactive=False)
    source = plan.source
    opened: list[Writer] = []  # here also when the call is cancelled while it opens

    def record() -> PlanRecord:
        if files is None:
            return plan.record()
        return replace(plan.record(), files=directory_of(files, store_at(dest)))

    def open_writer() -> None:
        opened.append(
            Writer.open(
                dest,
                record(),
                source.schema,
                stores_files=plan.files == "always",
                row_key=source.row_key,
                seal_seconds=commit_seconds,
            )
        )

    try:
        await in_thread(open_writer)
        (writer,) = opened
        download_ = _Download(plan, writer, tally, only)
        try:
            await download_.run(stop, drain_seconds)
        except BaseException as error:
            if not _is_of_the_disk(error):
                await surely_in_thread(writer.seal)
            raise
        report = await surely_in_thread(download_.finish)
    except OSError as error:
        if isinstance(error, AsyncfetchError):
            raise
        raise cut_short(store_at(dest), error) from error
    finally:
        for writer in opened:
            await surely_in_thread(writer.close)
    return report


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether the disk or the dataset itself failed: no more can be written then."""
    if isinstance(error, AsyncfetchError):
        return isinstance(error, DatasetError)
    return isinstance(error, OSError)


class _Download:
    """The consumer that writes: results into the writer, parts sealed in time."""

    def __init__(
        self, plan: Plan, writer: Writer, tally: Tally, only: frozenset[int] | None
    ) -> None:
        self._plan = plan
        self._writer = writer
        self._tally = tally
        # The writer is called by one at a time: feeder, consumer and heartbeat.
        self._guard = anyio.Lock(fast_acquire=True)
        self._run = Run(
            plan,
            _WriterJournal(writer, only),
            as_records=False,
            interactive=False,
            observe=tally.see,
            spool_dir=writer.spool_dir,
            guard=self._guard,
            files=writer.files,
            again=self._again if only is None else None,
        )

    async def _again(self, source: RereadSource) -> tuple[Item, ...]:
        writer = self._writer
        if writer.counts().get("failed"):
            return ()  # what is missing is known
        sealed = await self._on_disk(writer.seal)  # what is open is to be counted
        if sealed is not None:
            self._tally.see(Committed(items=sealed[0], rows=sealed[1]))
        return await self._on_disk(lambda: source.again(writer.rows, writer.details()))

    async def run(self, stop: anyio.Event | None, drain_seconds: float) -> None:
        writer, results = self._writer, self._run.results
        async with _producing(self._run) as group:
            group.start_soon(self._beat)
            if stop is not None:
                group.start_soon(self._drain_on, stop, drain_seconds)
            async for result in _received(results):
                async with self._guard:
                    if result.follow_up and writer.lacks_names:
                        await in_thread(writer.know_names)
                    found = writer.add(result)
                self._run.settle(result, found)
                if writer.wants_flush:
                    await self._on_disk(writer.flush)
                await self._seal_if_due()
            self._run.raise_error()

    async def _seal_if_due(self) -> None:
        due = self._writer.seal_due()
        if due is None or due > 0:
            return
        sealed = await self._on_disk(self._writer.seal)
        if sealed is not None:
            self._tally.see(Committed(items=sealed[0], rows=sealed[1]))

    async def _on_disk(self, call: Callable[[], T]) -> T:
        async with self._guard:
            return await in_thread(call)

    async def _beat(self) -> None:
        while True:
            await anyio.sleep(HEARTBEAT)
            self._tally.see(Paced(gate=self._plan.exchange.gate.statistics()))
            await self._on_disk(self._writer.heartbeat)
            await self._seal_if_due()  # when no result comes to ask for it

    async def _drain_on(self, stop: anyio.Event, seconds: float) -> None:
        await stop.wait()
        self._run.drain()
        await anyio.sleep(seconds)
        self._run.abandon()

    def finish(self) -> Report:
        """Commit the rest, write the run's report and return it."""
        writer, plan = self._writer, self._plan
        sealed = writer.seal()
        if sealed is not None:
            self._tally.see(Committed(items=sealed[0], rows=sealed[1]))
        counts = writer.counts()
        pending = writer.planned - sum(counts.values())
        shortfall = None
        if plan.limit is None and not pending and not writer.wants_more:
            shortfall = note_shortfall(
                plan, writer.shortfall, writer.rows, writer.details()
            )
        unparsed = {}
        if isinstance(plan.source, LenientSource):
            unparsed = dict(plan.source.unparsed(writer.details()))
        report = self._tally.report(
            plan,
            writer.failed(),
            unparsed=unparsed,
            items=counts,
            rows=writer.rows,
            parts=writer.parts,
            pending=pending,
            plan_complete=not writer.wants_more,
            shortfall=shortfall,
        )
        if isinstance(plan.source, CitedSource) and self._tally.outcomes:
            citation = plan.source.citation(writer.details())
            if citation is not None:
                writer.leave(CITATION, citation)
        writer.finish(asdict(report))
        logger.info("%s: %s items, %s rows", plan.name, report.items, report.rows)
        return report


@dataclass(slots=True)
class _WriterJournal:
    """The journal that lies in a dataset."""

    writer: Writer
    only: frozenset[int] | None

    @property
    def cursor(self) -> Json:
        return self.writer.cursor

    @property
    def wants_more(self) -> bool:
        return self.only is None and self.writer.wants_more

    @property
    def planned(self) -> int:
        return self.writer.planned

    @property
    def ended(self) -> int:
        return self.writer.ended

    def pending(self) -> Iterator[list[PlannedItem]]:
        return self.writer.pending(only=self.only)

    def freeze(self, block: Block) -> list[PlannedItem]:
        return self.writer.freeze(block)

    def add(self, result: ItemResult) -> list[PlannedItem]:
        return self.writer.add(result)


@dataclass(slots=True)
class Tally:
    """Counts events on their way to an observer."""

    observe: Observer
    started: float = field(default_factory=time.monotonic)
    requests: int = 0
    retries: int = 0
    bytes: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def see(self, event: Event, /) -> None:
        """Count *event* and pass it on."""
        if isinstance(event, RequestSent):
            self.requests += 1
            logger.debug("%s %s", event.method, event.url)
        elif isinstance(event, Retrying):
            self.retries += 1
            logger.debug("attempt %d of %s: %s", event.attempt, event.url, event.error)
        elif isinstance(event, ItemEnded):
            self.bytes += event.bytes
            self.rows += event.rows
            self.outcomes[event.outcome.value] += 1
        try:
            self.observe(event)
        except Exception:  # whoever looks on must not change what happens
            logger.exception("an observer failed at %r", event)

    def report(
        self, plan: Plan, failed: list[FailedItem] | None = None, **more: Any
    ) -> Report:
        """What has been counted; *more* overrides fields of the report."""
        fields = {
            "items": dict(self.outcomes),
            "rows": self.rows,
            "bytes": self.bytes,
            "requests": self.requests,
            "retries": self.retries,
            "seconds": round(time.monotonic() - self.started, 3),
            "parts": 0,
            "gate": plan.exchange.gate.statistics(),
            "failed": tuple((failed or [])[:100]),
        }
        return Report(**{**fields, **more})


def failed_item(result: ItemResult) -> FailedItem:
    """The line of a report for a result that failed."""
    return FailedItem(
        key=result.key,
        url=result.url,
        error_class=type(result.error).__name__,
        error=str(result.error),
    )


def item_error(result: ItemResult, report: Report) -> ItemError:
    """The error for a result that failed."""
    return ItemError(
        f"{result.key}: {type(result.error).__name__}: {result.error}",
        key=result.key,
        cause=result.error,
        report=report,
    )


def note_shortfall(
    plan: Plan, of_plan: str | None, rows: int, details: Any
) -> str | None:
    """Log and return one line if the service promised more than came."""
    shortfall = of_plan or plan.source.shortfall(rows, details)
    if shortfall is not None:
        logger.warning("%s: %s", plan.name, shortfall)
    return shortfall


def _both(first: Observer, second: Observer | None) -> Observer:
    if second is None:
        return first

    def see(event: Event, /) -> None:
        first(event)
        second(event)

    return see

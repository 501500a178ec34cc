"""Tables of NeuroMorpho.Org whose items are pages of records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from asyncfetch._decode import batch_of, document
from asyncfetch._model import Block, Decoded, Enumeration, Item, Json, Response
from asyncfetch.errors import DecodeError, IntegrityError
from asyncfetch.services._papers import markdown, papers_of
from asyncfetch.services._select import (
    MOST_TURNS,
    PAGE,
    Census,
    Listing,
    all_unparsed,
    counted,
    missed,
    paging,
    refused,
)


def as_sent(record: Any) -> Any:
    """A record that needs no preparation."""
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Records, page by page."""

    listing: Listing
    filters: Mapping[str, Any]
    schema: pa.Schema
    row_key: str
    census: Census | None = None
    prepared: Callable[[Any], Any] = as_sent
    """A record with the types of the schema, where it needs a hand."""

    def enumerate(self, _cursor: Json) -> Enumeration:
        """All pages at once; the first one tells how many."""
        first = yield from counted(
            self.listing, self.filters, self.census, is_item=True
        )
        total, _ = paging(first)
        pages = math.ceil(total / PAGE)
        yield Block(tuple(self._item(page, pages, total) for page in range(pages)))

    def _item(self, page: int, pages: int, total: int, turn: int = 0) -> Item:
        rows = max(0, min(PAGE, total - page * PAGE))
        context = {"page": page, "pages": pages, "rows": rows}
        return Item(
            key=f"again={turn};page={page}" if turn else f"page={page}",
            request=self.listing.page(self.filters, page, PAGE),
            context={**context, "turn": turn} if turn else context,
        )

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows of one page; the last page leads on if there are more by now.

        Raises
        ------
        IntegrityError
            The answer is another page than the one that was asked for.
        """
        body = document(chunks)
        if item.context.get("one"):
            return self._decoded([body], as_records)
        total, pages = paging(body)
        page, known = item.context["page"], item.context["pages"]
        number = body["page"].get("number", page)
        if number != page:
            raise IntegrityError(f"expected page {page}, got page {number} - at $.page")
        records = self.listing.records_of(body, page)
        if not records and page * PAGE < total:
            raise IntegrityError(
                f"expected up to {PAGE} of {total} records on page {page}, got none"
            )
        odd: dict[int, str] = {}
        try:
            decoded = self._decoded(records, as_records)
        except DecodeError:
            odd = self._odd(records)
            usable = [one for place, one in enumerate(records) if place not in odd]
            decoded = self._decoded(usable, as_records)
        grown = range(known, pages) if page == known - 1 else range(0)
        turn = item.context.get("turn", 0)
        detail = {
            "total": total,
            "page": page,
            "turn": turn,
            "papers": papers_of(records),
            **decoded.detail,
        }
        if odd:
            detail["odd"] = [records[place] for place in odd]
        return replace(
            decoded,
            detail=detail,
            follow_up=(
                *(refused(f"record={page}.{place}", odd[place]) for place in odd),
                *(self._item(more, pages, total, turn) for more in grown),
            ),
        )

    def _decoded(self, records: list[Any], as_records: bool, first: int = 0) -> Decoded:
        if as_records:
            return Decoded(records=records)
        unparsed: Counter[str] = Counter()
        batch, codes = batch_of(
            [self.prepared(record) for record in records],
            self.schema,
            at=f"$._embedded.{self.listing.records}",
            ignore=frozenset({"_links"}),
            lenient=True,
            first=first,
            unparsed=unparsed,
        )
        detail = {"unparsed": dict(unparsed)} if unparsed else {}
        return Decoded(batches=(batch,), diagnostics=codes, detail=detail)

    def _odd(self, records: list[Any]) -> dict[int, str]:
        """Places of the records that give no row, and why."""
        found = {}
        for place, record in enumerate(records):
            try:
                self._decoded([record], as_records=False, first=place)
            except DecodeError as error:
                found[place] = str(error)
        return found

    def unparsed(self, details: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
        """How many values of each column are kept aside."""
        return all_unparsed(details)

    def again(
        self, rows: int, details: Iterable[Mapping[str, Any]]
    ) -> tuple[Item, ...]:
        """The pages that were read in another state of the index than the last.

        All pages, when they agree and records are missing nevertheless: nothing tells
        then which page it is.
        """
        state = _State.of(details)
        turn = state.turn + 1
        if turn == MOST_TURNS or (not state.stale and rows >= state.rows):
            return ()
        pages = math.ceil(state.total / PAGE)
        return tuple(
            self._item(page, pages, state.total, turn)
            for page in state.stale or range(pages)
        )

    def shortfall(self, rows: int, details: Iterable[Mapping[str, Any]]) -> str | None:
        """Compare distinct records with what the pages name.

        The number alone proves nothing while the index changes: a record that is gone
        by now makes up for one that slipped to a page that had been read.
        """
        state = _State.of(details)
        if rows < state.rows:
            return missed(state.rows, rows, self._what)
        return missed(state.rows, None, self._what) if state.stale else None

    @property
    def _what(self) -> str:
        return "neurons" if self.row_key == "neuron_id" else "records"

    def citation(self, details: Iterable[Mapping[str, Any]]) -> str | None:
        """What is to be cited, in Markdown."""
        return markdown(details) if self.row_key == "neuron_id" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the last readings of all pages say of the index."""

    total: int = 0
    """How many records there are, by the page that was read last."""
    odd: int = 0
    """Of these, how many are items that failed."""
    turn: int = 0
    stale: tuple[int, ...] = ()
    """Pages that were read when there were more or fewer, or not at all."""

    @property
    def rows(self) -> int:
        """How many rows there are to be."""
        return self.total - self.odd

    @classmethod
    def of(cls, details: Iterable[Mapping[str, Any]]) -> _State:
        latest: dict[int, tuple[int, int, int]] = {}
        for detail in details:
            if "turn" in detail:
                page, turn = detail["page"], detail["turn"]
                odd = len(detail.get("odd", ()))
                latest[page] = max(
                    latest.get(page, (-1, 0, 0)), (turn, detail["total"], odd)
                )
        if not latest:
            return cls()
        # Pages are asked for in their order: the last one tells the latest state.
        turn, _, total = max((turn, page, of) for page, (turn, of, _) in latest.items())
        pages = range(math.ceil(total / PAGE))
        return cls(
            total=total,
            odd=sum(latest[page][2] for page in pages if page in latest),
            turn=turn,
            stale=tuple(
                page for page in pages if page not in latest or latest[page][1] != total
            ),
        )

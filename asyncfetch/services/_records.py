"""Tables of NeuroMorpho.Org whose items are pages of records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from asyncfetch._decode import batch_of, document
from asyncfetch._model import Block, Decoded, Enumeration, Item, Json
from asyncfetch.errors import DecodeError, IntegrityError
from asyncfetch.services._papers import markdown, papers_of
from asyncfetch.services._select import (
    MOST_TURNS,
    PAGE,
    Census,
    Listing,
    all_unparsed,
    counted,
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
        """All pages at once; one question of a single record tells how many."""
        first = yield from counted(self.listing, self.filters, self.census, 1)
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
        self, item: Item, chunks: Iterator[bytes], *, as_records: bool
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
        """The pages that were read in another state of the index than the last."""
        pages = _latest(details)
        most = _promised(pages)
        turn = 1 + max((one["turn"] for one in pages.values()), default=0)
        if rows >= most or turn == MOST_TURNS:
            return ()
        # What shrinks shifts the rest to earlier pages: what slipped through lies now
        # on one that was read before. When all agree, nothing tells which one it is.
        least = min(one["total"] for one in pages.values())
        count = math.ceil(least / PAGE)
        stale = [n for n, one in sorted(pages.items()) if one["total"] != least]
        return tuple(
            self._item(page, count, least, turn)
            for page in stale or sorted(pages)
            if page < count
        )

    def shortfall(self, rows: int, details: Iterable[Mapping[str, Any]]) -> str | None:
        """Compare distinct records with the largest total that a page named.

        Of each page its last reading counts. Not with the last total alone: when the
        index shrinks while it is read, later pages shift by as many records as their
        total falls, and what slipped through would not show.
        """
        pages = _latest(details)
        total = _promised(pages)
        if rows >= total:
            return None
        return (
            f"the service names {total} {self._what} and {rows} distinct ones came: "
            "its index changed while it was read"
        )

    @property
    def _what(self) -> str:
        return "neurons" if self.row_key == "neuron_id" else "records"

    def citation(self, details: Iterable[Mapping[str, Any]]) -> str | None:
        """What is to be cited, in Markdown."""
        return markdown(details) if self.row_key == "neuron_id" else None


def _latest(details: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The detail of the last reading of each page."""
    latest: dict[int, Mapping[str, Any]] = {}
    for detail in details:
        if "total" not in detail:
            continue
        page, turn = detail.get("page", len(latest)), detail.get("turn", 0)
        if page not in latest or turn >= latest[page]["turn"]:
            odd = len(detail.get("odd", ()))
            latest[page] = {"total": detail["total"], "turn": turn, "odd": odd}
    return latest


def _promised(pages: Mapping[int, Mapping[str, Any]]) -> int:
    """How many rows there are to be; odd records are items that failed."""
    odd = sum(one["odd"] for one in pages.values())
    return int(max((one["total"] for one in pages.values()), default=0) - odd)

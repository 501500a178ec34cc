"""NeuroVault's files: the images themselves, proved before they get their names.

The service knows no checksums and stores what is sent to it, cut or not. A file is
whole when it is as long as was said, when its gzip stream comes to its end with the
right CRC, and when it holds as many values as its NIfTI header names.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from zlib_ng import zlib_ng

from asyncfetch import _engine
from asyncfetch._decode import batch_of, document, whole
from asyncfetch._model import (
    Ask,
    Block,
    Decoded,
    Enumeration,
    FileWish,
    Item,
    Json,
    Request,
    Response,
    Source,
)
from asyncfetch._neurovault_schema import IMAGE, PAGE
from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DecodeError,
    NotFound,
)
from asyncfetch.services._analyses import optional
from asyncfetch.services._table import Filter, Table, column, plain
from asyncfetch.services._vault import (
    OF_COLLECTION,
    Lists,
    Record,
    checked,
    collections,
    filters_of,
    images_of,
    instant,
    key_of,
    matches,
    readable_again,
)
from asyncfetch.services._vaulthttp import earlier, media_target
from asyncfetch.services._windows import AT_ONCE, FIRST_AT_ONCE, Window, walk

SCHEMA = pa.schema(
    [
        column("id", pa.int64(), "of the image", nullable=False),
        column("collection_id", pa.int64(), nullable=False),
        column("name", pa.string()),
        column("path", pa.string(), "below the directory of files", nullable=False),
        column("size", pa.int64(), unit="bytes"),
        column("sha256", pa.string(), "of the file as it came"),
        column("url", pa.string(), "where the file came from"),
        column("modify_date", pa.timestamp("us", "UTC"), "of the image"),
    ]
)

_EXTENSION = re.compile(
    r"(?:\.(?:nii|img|hdr)(?:\.gz)?|\.func\.gii|\.gii)$", re.IGNORECASE
)
_ANY_EXTENSION = re.compile(r"(?:\.[A-Za-z0-9]{1,8}){1,2}$")
# Blocks of a plan are made of so many parts of what is left, so that what is left,
# which each of them notes, is written a hundred times and not once for each collection.
_PARTS = 100
# Name of the filter that is none of the images'.
EARLIER = "earlier"
FILTERS = (
    *filters_of(IMAGE, of_images=True),
    Filter(
        name=EARLIER,
        kind=str,
        doc="an earlier dataset of files: those not modified since are taken from it",
    ),
)
# Of a NIfTI-2 header, and where its magic lies.
_HEAD = 540
# What is inflated at a time.
_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of the images that match."""

    filters: Mapping[str, Json]
    site: str = ""
    """What the URLs of files begin with."""
    there: Mapping[str, Any] = field(default_factory=dict)
    """Time and checksum of files that an earlier dataset has, by image."""
    schema: pa.Schema = SCHEMA
    row_key: str | None = "id"

    def enumerate(self, cursor: Json) -> Enumeration:
        """Some collections at a time, each of their images an item.

        The cursor keeps the collections that are left.
        """
        before = self.filters.get(EARLIER)
        if before is not None:
            (there,) = (yield Ask((earlier(str(before)),))) or ({},)
            yield from replace(self, there=there).planned(cursor)
        else:
            yield from self.planned(cursor)

    def planned(self, cursor: Json) -> Enumeration:
        """As :meth:`enumerate`, when it is known which files are there."""
        ids = self.filters.get("id")
        if isinstance(ids, list):
            yield from self._by_id(ids)
            return
        items: list[Item] = []
        todo: list[Any]
        size = FIRST_AT_ONCE
        if cursor is None:
            listed, unread = yield from collections(self.filters)
            todo = [[one.number, one.likely] for one in listed]
            items += unread
        else:
            todo, size = list(cursor), AT_ONCE  # type: ignore[arg-type]
        while todo:
            some, todo = todo[:size], todo[size:]
            size = max(AT_ONCE, len(todo) // _PARTS)
            for one in (yield from walk([images_of(*one) for one in some])):
                if one.error is not None:
                    items.append(self._page(one.window))
                items += self._wanted(one.records)
            if todo:
                yield Block(tuple(items), todo)
                items = []
        yield Block(tuple(items))

    def _by_id(self, ids: list[Any]) -> Enumeration:
        """Images that are asked for one by one."""
        items: list[Item] = []
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            requests = [Request(target=f"/images/{number}/") for number in some]
            answers = (yield Ask(tuple(requests), is_tolerant=True)) or ()
            for number, request, answer in zip(some, requests, answers, strict=True):
                if not isinstance(answer, AsyncfetchError):
                    items += self._wanted([answer])
                    continue
                request = replace(request, may_be_absent=isinstance(answer, NotFound))  # noqa: PLW2901
                context = {"image": number}
                key = f"record={number}"  # that of its file is another
                items.append(Item(key=key, request=request, context=context))
        yield Block(tuple(items))

    def _wanted(self, records: Iterable[Record]) -> list[Item]:
        return [self._file(one) for one in records if matches(one, self._of_image)]

    @property
    def _of_image(self) -> Mapping[str, Json]:
        others = {*OF_COLLECTION, EARLIER}
        return {k: v for k, v in self.filters.items() if k not in others}

    def _unchanged(self, record: Record) -> str | None:
        """The checksum of a file that was not modified since an earlier dataset."""
        when, checksum = self.there.get(str(record["id"]), (None, None))
        modified = record.get("modify_date")
        if when is None or not isinstance(modified, str):
            return None
        return checksum if instant(modified) == instant(when) else None

    def _page(self, window: Window) -> Item:
        """An item for a page of images that could not be read."""
        return Item(
            key=key_of(window),
            request=window.request,
            context={"window": window.to_json()},
        )

    def _file(self, record: Record) -> Item:
        number, collection = record["id"], record["collection_id"]
        link, size = record.get("file"), record.get("file_size")
        context = {
            "id": number,
            "collection_id": collection,
            "name": record.get("name"),
            "modify_date": record.get("modify_date"),
        }
        where = f"/images/{number}/"
        if isinstance(link, str) and link:
            try:
                where = media_target(link, collection)
            except ConfigurationError:
                context["link"] = link
        else:
            size, link = 0, ""  # there is none
        extension = extension_of(link)
        return Item(
            key=f"image={number}",
            request=Request(
                target=where,
                media="bytes",
                may_be_absent=True,
                file=FileWish(
                    path=f"collection_{collection}/image_{number}{extension}",
                    size=size if type(size) is int else None,
                    checksum=self._unchanged(record),
                ),
            ),
            context=context,
        )

    def divided(self, item: Item, error: AsyncfetchError) -> tuple[Item, ...]:
        """Halves of a page of images that the server cannot give."""
        if "window" not in item.context:
            return ()
        window = Window.from_json(item.context["window"])
        return tuple(map(self._page, window.divided(error)))

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """The row of a file that is whole."""
        if item.request.file is None:  # what could not be read while planning, can be
            return self._found(item, document(chunks))
        if "link" in item.context:
            raise DecodeError(
                f"expected a link to a file, got {item.context['link'][:200]!r} in "
                f"image {item.context['id']}",
                code="link",
            )
        path = item.request.file.path
        size, sha256 = proved(chunks, path)
        row = {
            **item.context,
            "path": path,
            "size": size,
            "sha256": sha256,
            "url": f"{self.site}{item.request.target}",
        }
        if as_records:
            return Decoded(records=[row])
        batch, _ = batch_of([row], self.schema, lenient=True)
        return Decoded(batches=(batch,))

    def _found(self, item: Item, body: Any) -> Decoded:
        if item.context.get("collections"):
            return readable_again(item, body, self._page)
        if "image" in item.context:
            return Decoded(follow_up=tuple(self._wanted([body])))
        records, _, more = Window.from_json(item.context["window"]).read(body)
        pages = map(self._page, more)
        return Decoded(follow_up=(*self._wanted(records), *pages))

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """Every image is an item, and so says itself when its file is not there."""
        return None


def extension_of(link: str) -> str:
    """What the name of a file ends with; a NIfTI file's, where nothing says it."""
    name = link.partition("?")[0].rpartition("/")[2]
    found = _EXTENSION.search(name) or _ANY_EXTENSION.search(name)
    return found[0] if found else ".nii.gz"


def proved(chunks: Iterable[bytes], name: str) -> tuple[int, str]:
    """Length and SHA-256 of a file that is whole.

    Raises
    ------
    DecodeError
        Its compression has no end, or it is not what its name says, or less.
    """
    digest, size = hashlib.sha256(), 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    lower = name.lower()
    content = _inflated(counted(), name) if lower.endswith(".gz") else counted()
    head, length = b"", 0
    for piece in content:
        if len(head) < _HEAD:
            head += piece[: _HEAD - len(head)]
        length += len(piece)
    if re.search(r"\.nii(\.gz)?$", lower):
        needed = nifti_length(head, name)
        if length < needed:
            raise DecodeError(
                f"expected the {needed} bytes that the header of {name} names, got "
                f"{length}: it was stored cut",
                code="truncated",
            )
    elif not size:
        raise DecodeError(f"expected a file, got nothing for {name}", code="empty")
    return size, digest.hexdigest()


def _inflated(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    stream: Any = None
    is_first = True
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if stream is None:
                    if not is_first and not rest.strip(b"\0"):
                        break  # padding behind the end
                    stream = zlib_ng.decompressobj(wbits=31)
                    is_first = False
                yield stream.decompress(rest, _PIECE)
                rest = stream.unconsumed_tail
                if stream.eof:
                    rest, stream = stream.unused_data, None
    except zlib_ng.error as error:  # type: ignore[misc]  # its stub says instance
        raise DecodeError(
            f"expected a gzip file, got another, or a damaged one, for {name}: {error}",
            code="not-gzip",
        ) from error
    if stream is not None or is_first:
        raise DecodeError(
            f"expected the end of the gzip stream of {name}, got none: it was stored "
            "cut",
            code="truncated",
        )


def nifti_length(head: bytes, name: str) -> int:
    """Bytes that a NIfTI file has by its header, at least.

    Raises
    ------
    DecodeError
        It is no NIfTI header.
    """
    for order in "<>":
        (kind,) = struct.unpack_from(f"{order}i", head.ljust(4, b"\0"))
        if kind == 348 and head[344:348] in {b"n+1\0", b"ni1\0"}:
            dims = struct.unpack_from(f"{order}8h", head, 40)
            (bits,) = struct.unpack_from(f"{order}h", head, 72)
            (offset,) = struct.unpack_from(f"{order}f", head, 108)
        elif kind == 540 and len(head) == _HEAD and head[4:7] in {b"n+2", b"ni2"}:
            (bits,) = struct.unpack_from(f"{order}h", head, 14)
            dims = struct.unpack_from(f"{order}8q", head, 16)
            (offset,) = struct.unpack_from(f"{order}q", head, 168)
        else:
            continue
        values = 1
        for extent in dims[1 : 1 + max(0, min(7, dims[0]))]:
            values *= max(1, extent)
        length: int = int(offset) + values * bits // 8
        return length
    raise DecodeError(
        f"expected a NIfTI header, got {head[:16]!r} for {name}", code="not-nifti"
    )


class VaultTable(Table):
    """A table of NeuroVault: any key of its records is a filter."""

    def plan(self, *, limit: int | None = None, **filters: Any) -> _engine.Plan:
        """The items that *filters* come to; asks nothing yet."""
        return super().plan(limit=limit, **checked(filters))

    def _plan_of_rows(
        self, limit: int | None, filters: Mapping[str, Any]
    ) -> _engine.Plan:
        plan = super()._plan_of_rows(limit, filters)
        if limit and isinstance(plan.source, Lists):  # any rows will do
            source = replace(plan.source, most=min(limit, PAGE))
            plan = replace(plan, source=source)
        return plan


class FilesTable(VaultTable):
    """Files of images."""

    def plan(self, *, limit: int | None = None, **filters: Any) -> _engine.Plan:
        """The files that *filters* come to; asks nothing yet."""
        if filters.get(EARLIER) is not None:  # the plan may be gone on with elsewhere
            where = str(filters[EARLIER])
            filters[EARLIER] = where if "://" in where else str(Path(where).absolute())
        return super().plan(limit=limit, **filters)

    def _source(self, filters: Mapping[str, Json]) -> Source:
        site = self.client.exchange.site  # type: ignore[attr-defined]
        return Files(filters=filters, site=site)

    async def load(
        self,
        id: Any = None,  # noqa: A002 - the service's own word
        /,
        *,
        limit: int | None = None,
        **filters: Any,
    ) -> Any:
        """Images in memory, as nibabel has them.

        Parameters
        ----------
        id
            One image by its id: gives it alone.
        limit
            Images at most.

        Returns
        -------
        list of (nibabel image, dict)
            Each image with its record.

        Raises
        ------
        NotFound
            There is no image with that id, or its file is lost.
        ConfigurationError
            nibabel is not installed.
        """
        nibabel = optional("nibabel", "loading images", extra="images")
        images = self.client.table("images")
        if id is not None:
            records = [await images.get(id, **filters)]
        else:
            records = await images.get(limit=limit, **filters)
            records = [one for one in records if one.get("file_size") != 0]
        files = Files(filters={})
        items = [files._file(one) for one in records]  # noqa: SLF001 - of this module
        calls = [partial(self._bytes, item) for item in items]
        data = await _engine.side_by_side(calls, at_once=4)
        loaded = [
            (_as_image(nibabel, content), record)
            for content, record in zip(data, records, strict=True)
        ]
        return loaded[0][0] if plain(id) is not None else loaded

    async def _bytes(self, item: Item) -> bytes:
        """A file that is whole, inflated."""
        name = item.request.file.path if item.request.file else ""

        def consume(chunks: Iterator[bytes], _: object) -> bytes:
            data = whole(chunks)
            proved([data], name)
            return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data

        answer = await self.client.exchange.ask(item.request, consume, interactive=True)
        return answer.value


def _as_image(nibabel: Any, content: bytes) -> Any:
    is_second = content[4:6] == b"n+"
    kind = nibabel.Nifti2Image if is_second else nibabel.Nifti1Image
    return kind.from_bytes(content)

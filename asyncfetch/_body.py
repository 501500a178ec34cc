"""A body as it was received, and the proof that it is whole and is data.

An answer is data only when nothing is missing and nothing else stands in its place.
What proves that nothing is missing differs: a Content-Length that was met, a chunked
body that was ended, the end mark inside a gzip stream. A body that ends with its
connection proves nothing by itself; JSON then still proves itself by parsing, other
media need a second answer with the same bytes (see :attr:`Body.proof`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from zlib_ng import zlib_ng

from asyncfetch.errors import IntegrityError, ResponseError

# Slices of this size keep one step of inflating and decoding near a millisecond, so a
# decode thread that holds the interpreter lets the event loop through in between.
SLICE = 256 * 1024
# What is decoded in the event loop at most. The slowest decoder, of traces with commas,
# takes some 25 ms for this; a hop to a thread costs 0.1 ms, little beside more bytes.
INLINE = 64 * 1024
# Bounds on inflating, against a small body that expands without end. Zeros deflate at
# 1030:1, so the format itself is no bound; neuron records and events were seen at 10:1
# to 25:1. The ratio counts from FREE_INFLATED on: short bodies may repeat themselves.
MAX_RATIO = 200
FREE_INFLATED = 32 << 20
MAX_INFLATED = 4 << 30

_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_INFLATED = {"gzip", "x-gzip", "deflate"}
# Registered codings (RFC 9110, 8.4.1 and its registry) that are not undone here, and
# not asked for. What is not registered is no coding: NeuroVault sends "utf-8".
_NOT_UNDONE = {"br", "zstd", "compress", "x-compress", "dcb", "dcz", "exi", "aes128gcm"}
# What error objects are made of, with Spring, Django, Flask and RFC 9457; a record has
# more than that. One of the second set is in each of them.
_ERROR_KEYS = set(
    "timestamp status status_code code error errors message detail details description "
    "path trace title type instance non_field_errors".split()
)
_ERROR_SIGNS = {"error", "errors", "message", "detail", "non_field_errors"}


class Proof(enum.StrEnum):
    """What shows that the bytes received are all that were sent."""

    LENGTH = "content-length"
    CHUNKED = "chunked"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """Bytes as received, in memory or in a file, with their checksum.

    Whoever made the body owns the file; a body never deletes it.
    """

    data: bytes | Path
    """The bytes, or the file that holds them when they were many."""
    size: int
    """Length as received, before any inflating."""
    sha256: str
    """Of the bytes as received, hexadecimal."""
    encoding: str = ""
    """The Content-Encoding as sent. Only gzip and deflate are undone."""
    proof: Proof = Proof.LENGTH
    """What shows that the bytes are all there."""

    @property
    def codings(self) -> tuple[str, ...]:
        """What was done to the content, in order; only what is registered."""
        if not self.encoding:
            return ()
        names = (name.strip() for name in self.encoding.split(","))
        return tuple(name for name in names if name in _INFLATED or name in _NOT_UNDONE)

    @property
    def is_small(self) -> bool:
        """Whether it lies in memory, and what came may go to the event loop."""
        return isinstance(self.data, bytes) and self.size <= INLINE

    @property
    def is_compressed(self) -> bool:
        """Whether :meth:`chunks` inflates, and so proves the end of the stream."""
        return bool(self.codings)

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in slices of at most :data:`SLICE` bytes.

        Raises
        ------
        IntegrityError
            The compressed stream is cut, damaged, or expands beyond every bound.
        """
        codings = self.codings
        if not codings:
            return self._raw()
        if len(codings) > 1 or codings[0] in _NOT_UNDONE:
            raise IntegrityError(
                f"expected content as it is or in gzip, got {self.encoding}, "
                "which was not asked for",
                is_final=True,
            )
        return self._inflated()

    def _raw(self, most: int = SLICE) -> Iterator[bytes]:
        if isinstance(self.data, Path):
            with self.data.open("rb") as file:
                while piece := file.read(most):
                    yield piece
        elif self.size <= most:
            yield self.data
        else:
            for start in range(0, self.size, most):
                yield self.data[start : start + most]

    def _inflated(self) -> Iterator[bytes]:
        stream = None
        inflated = 0
        most = min(MAX_INFLATED, max(FREE_INFLATED, MAX_RATIO * self.size))
        try:
            # Small pieces: what is not yet inflated of one is copied for each slice.
            for piece in self._raw(SLICE // 4):
                rest = piece
                while rest:
                    if stream is None:
                        stream = self._decompressor(rest)
                    out = stream.decompress(rest, SLICE)
                    inflated += len(out)
                    if inflated > most:
                        raise IntegrityError(
                            f"expected at most {most} bytes from the {self.size} of a "
                            f"{self.encoding} stream, got more",
                            is_final=True,
                        )
                    if out:
                        yield out
                    rest = stream.unconsumed_tail
                    if stream.eof:  # another member may follow (RFC 1952, 2.2)
                        rest = stream.unused_data
                        stream = None
        except zlib_ng.error as error:  # type: ignore[misc]  # its stub says instance
            raise IntegrityError(
                f"expected a {self.encoding} stream, got a damaged one: {error}"
            ) from error
        if stream is not None:
            raise IntegrityError(
                f"expected a whole {self.encoding} stream, got one cut after "
                f"{self.size} bytes"
            )

    def _decompressor(self, start: bytes) -> zlib_ng._Decompress:
        # "deflate" is zlib's format (RFC 9110, 8.4.1.2); some send it without its
        # header, whose first two bytes are a multiple of 31 (RFC 1950, 2.2).
        if self.codings == ("deflate",) and not start.startswith(b"\x1f\x8b"):
            head = int.from_bytes(start[:2], "big")
            if start[0] & 0x0F != zlib_ng.DEFLATED or head % 31:
                return zlib_ng.decompressobj(-zlib_ng.MAX_WBITS)
        # 32: gzip's header or zlib's
        return zlib_ng.decompressobj(32 + zlib_ng.MAX_WBITS)


def prove(chunks: Iterable[bytes], media: str, url: str) -> Iterator[bytes]:
    """Yield *chunks* on after the first has shown that it begins like *media*.

    Raises
    ------
    IntegrityError
        An HTML page, nothing at all, or something else stands in the place of data.
    ResponseError
        A JSON error object stands in the place of data.
    """
    source = iter(chunks)
    if media == "any":
        yield from source
        return
    for piece in source:
        start = piece.lstrip(_BLANK + _BOM)
        if start:
            _check_start(start, media, url)
            yield piece
            yield from source
            return
        if media != "json":  # blanks are bytes like others
            yield piece
    if media == "json":  # what no bytes mean elsewhere, the decoder knows
        raise IntegrityError(f"expected JSON, got an empty body from {url}")


def is_page(start: bytes) -> bool:
    """Whether what begins like that is an HTML page, which is no data anywhere."""
    lower = start.lstrip(_BLANK + _BOM)[:20].lower()
    return lower.startswith((b"<!doctype html", b"<html"))


def _check_start(start: bytes, media: str, url: str) -> None:
    if is_page(start) or (start[:1] == b"<" and media != "bytes"):  # a file may be XML
        raise IntegrityError(
            f"expected {media}, got an HTML page from {url}: {excerpt(start)!r}"
        )
    if media == "json" and start[:1] not in b'[{"0123456789-tfnNI':
        raise IntegrityError(f"expected JSON, got {excerpt(start)!r} from {url}")
    if start[:1] == b"{" and len(start) <= 8192:  # error objects are small
        raise_error_object(start, url)


def raise_error_object(body: bytes, url: str) -> None:
    """Raise if *body* is a JSON object that only reports an error, under any status."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return
    if not isinstance(found, dict) or not found or set(found) - _ERROR_KEYS:
        return
    if not _ERROR_SIGNS & set(found):
        return
    status = found.get("status", found.get("status_code"))
    raise ResponseError(
        f"expected data, got an error object from {url}: {excerpt(body)!r}",
        status=status if isinstance(status, int) else 500,
        excerpt=excerpt(body),
        retry_after=None,
    )


def excerpt(body: bytes) -> str:
    """Return the beginning of *body* as one short line, for messages."""
    text = body[:800].decode("utf-8", "replace")
    return " ".join(text.split())[:200]

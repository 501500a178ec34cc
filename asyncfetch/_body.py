"""A body as it was received, and the proof that it is whole and is data.

An answer is data only when nothing is missing and nothing else stands in its place.
What proves that nothing is missing differs: a Content-Length that was met, a chunked
body that was ended, the end mark inside a gzip stream. A body that ends with its
connection proves nothing by itself; JSON then still proves itself by parsing, other
media need a second answer with the same bytes (see :attr:`Body.proof`).
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from asyncfetch.errors import IntegrityError, ResponseError

# Slices of this size keep one step of inflating and decoding near a millisecond, so a
# decode thread that holds the interpreter lets the event loop through in between.
SLICE = 256 * 1024
# Bounds on inflating, against a small body that expands without end. Deflate cannot
# exceed 1032:1; neuron records and events were seen at about 10:1 to 25:1.
MAX_RATIO = 1100
MAX_INFLATED = 4 << 30

_BLANK = b" \t\r\n"
_ERROR_KEYS = {"timestamp", "status", "error", "message", "path", "detail", "trace"}


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
    def is_compressed(self) -> bool:
        """Whether :meth:`chunks` inflates, and so proves the end of the stream."""
        return self.encoding in {"gzip", "x-gzip", "deflate"}

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in slices of at most :data:`SLICE` bytes.

        Raises
        ------
        IntegrityError
            The compressed stream is cut, damaged, or expands beyond every bound.
        """
        return self._inflated() if self.is_compressed else self._raw()

    def _raw(self) -> Iterator[bytes]:
        if isinstance(self.data, Path):
            with self.data.open("rb") as file:
                while piece := file.read(SLICE):
                    yield piece
        elif self.size <= SLICE:
            yield self.data
        else:
            for start in range(0, self.size, SLICE):
                yield self.data[start : start + SLICE]

    def _inflated(self) -> Iterator[bytes]:
        # 32: detect the gzip or zlib header; some servers send raw deflate instead.
        wbits = 32 + zlib.MAX_WBITS
        stream = zlib.decompressobj(wbits)
        inflated = 0
        try:
            for piece in self._raw():
                rest = piece
                while rest:
                    if stream.eof:  # concatenated gzip members are one body (RFC 1952)
                        stream = zlib.decompressobj(wbits)
                    out = stream.decompress(rest, SLICE)
                    inflated += len(out)
                    if inflated > MAX_INFLATED or inflated > MAX_RATIO * self.size:
                        raise IntegrityError(
                            f"expected a body of at most {MAX_RATIO} times its "
                            f"{self.size} compressed bytes, got {inflated} and more"
                        )
                    if out:
                        yield out
                    rest = stream.unused_data if stream.eof else stream.unconsumed_tail
        except zlib.error as error:
            raise IntegrityError(
                f"expected a {self.encoding} stream, got a damaged one: {error}"
            ) from error
        if self.size and not stream.eof:
            raise IntegrityError(
                f"expected a whole {self.encoding} stream, got one cut after "
                f"{self.size} bytes"
            )


def prove(chunks: Iterable[bytes], media: str, url: str) -> Iterator[bytes]:
    """Yield *chunks* on after the first has shown that it begins like *media*.

    Raises
    ------
    IntegrityError
        An HTML page, nothing at all, or something else stands in the place of data.
    ResponseError
        A JSON error object stands in the place of data.
    """
    start = b""
    source = iter(chunks)
    for piece in source:
        start = piece.lstrip(_BLANK + b"\xef\xbb\xbf")
        if start:
            _check_start(start, media, url)
            yield piece
            break
    else:
        if media == "json":  # what no bytes mean elsewhere, the decoder knows
            raise IntegrityError(f"expected JSON, got an empty body from {url}")
    yield from source


def _check_start(start: bytes, media: str, url: str) -> None:
    if media == "bytes":
        return
    if start[:1] == b"<":
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
    if not ({"error", "message"} & set(found)):
        return
    status = found.get("status")
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

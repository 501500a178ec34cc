"""SWC traces: bytes -> nodes, header, diagnostics.

SWC is seven numbers a row: id, type, x, y, z, radius, parent. The specification is
narrow and real files are not, so the reader reads widely, reports exactly, never
guesses silently and never repairs: every row of the file is a row of ``nodes``, or is
reported under a code with its line.

There are two ways in and one set of checks behind them. `_read_plain` takes the files
that nearly everybody has (blanks or tabs, whole-line comments, no surprise) and parses
whole columns at once; at the first thing it does not know it gives up, and
`_read_lines` reads the same bytes line by line. The slow reader is the definition of
the format; the fast one may only be a shortcut to the same result, which a property
test holds it to.

Codes are stable words. Those in `ERROR_CODES` say that a row or the tree is broken;
those in `WARNING_CODES` that it is unusual and was read in the one way possible.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from itertools import islice
from math import isfinite, isnan, nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from asyncfetch.errors import DecodeError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ERROR_CODES",
    "NODES_SCHEMA",
    "WARNING_CODES",
    "Diagnostic",
    "Morphology",
    "read_alike",
    "read_swc",
    "write_swc",
]

MAX_BYTES: Final = 256 << 20  # after decompression; the largest trace met has 1.8 MB
MAX_LINE: Final = 64 << 10  # bytes of one row; real rows have about 40
MAX_HEADER: Final = 64 << 10  # bytes of comments that are kept
MAX_LISTED: Final = 20  # diagnostics kept per code; all are counted
MAX_TEXT: Final = 80  # characters of a line in a diagnostic

_LENGTH = {"unit": "um"}  # unless `Morphology.units` says otherwise
NODES_SCHEMA: Final = pa.schema(
    [
        pa.field("node_id", pa.int64(), nullable=False),
        pa.field("type", pa.int32()),
        pa.field("x", pa.float64(), nullable=False, metadata=_LENGTH),
        pa.field("y", pa.float64(), nullable=False, metadata=_LENGTH),
        pa.field("z", pa.float64(), nullable=False, metadata=_LENGTH),
        pa.field("radius", pa.float64(), metadata=_LENGTH),
        pa.field("parent_id", pa.int64(), nullable=False),
    ],
    metadata={"asyncfetch.format": "swc", "asyncfetch.schema": "1"},
)

ERROR_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # the file
        "not-swc": "expected rows of seven numbers",
        "no-data": "expected at least one row",
        "too-large": f"expected at most {MAX_BYTES} bytes",
        # a row, which is dropped
        "truncated": "expected a whole last line, the file seems cut off",
        "short-row": "expected at least seven columns",
        "line-too-long": f"expected rows of at most {MAX_LINE} bytes",
        "ambiguous-separator": "expected the separator of the rows before it",
        "non-numeric": "expected finite numbers",
        "bad-id": "expected whole 64-bit numbers as id and parent",
        "negative-id": "expected an id of 0 or more",
        "bad-type": "expected a whole 32-bit number as type",
        "na-coordinate": "expected finite coordinates",
        "duplicate-id": "expected every id once",
        # the tree, whose rows are kept
        "missing-parent": "expected the parent among the rows",
        "self-parent": "expected a parent other than the row itself",
        "cycle": "expected a tree, the row is its own ancestor",
        "no-root": "expected at least one row with parent -1",
    }
)

WARNING_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bom": "a byte order mark was stripped",
        "child-before-parent": "the parent comes later in the file",
        "comma-separated": "commas or semicolons separate the columns",
        "control-bytes": "trailing NUL or 0x1A bytes were stripped",
        "decimal-comma": "a decimal comma was read as a point",
        "duplicate-row": "a copy of an earlier row was dropped",
        "extra-columns": "columns after the seventh were ignored",
        "first-not-root": "the first row has a parent",
        "float-id": "an id or parent is written as a decimal number",
        "float-type": "a type is written as a decimal number",
        "id-zero": "a node has the id 0",
        "ids-not-contiguous": "ids do not count up by one from 0 or 1",
        "indented-comment": "blanks before a comment",
        "inline-comment": "a comment after a row",
        "legacy-encoding": "not UTF-8, read as latin-1",
        "multiple-roots": "more than one row with parent -1",
        "na-radius": "a radius that is no number was read as null",
        "no-soma": "no row of type 1",
        "non-positive-radius": "a radius of 0 or less",
        "odd-line-ends": "line ends other than all LF or all CRLF",
        "odd-root-parent": "the parent of a root is not written -1",
        "row-in-comment": "a comment that ends like a row, perhaps one is hidden in it",
        "unusual-type": "a type outside 0 to 7, or none",
    }
)

LineEnds = Literal["lf", "crlf", "cr", "mixed", "none"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding in a file."""

    code: str
    """A key of `ERROR_CODES` or `WARNING_CODES`."""
    line: int
    """Counted from 1; 0 when it concerns the whole file."""
    text: str
    """The first characters of that line."""
    hint: str = ""
    """What may lie behind it, when more is known than the code says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Morphology:
    """A trace, as its file has it: nothing sorted, renumbered, rescaled or moved."""

    batch: pa.RecordBatch
    """The rows of `nodes`."""
    n_roots: int
    """Nodes with ``parent_id`` -1."""
    n_soma: int
    """Nodes of type 1."""
    n_rejected: int
    """Rows dropped for an error; copies dropped as ``duplicate-row`` do not count."""
    codes: tuple[str, ...]
    """The distinct codes found, sorted."""
    counts: Mapping[str, int]
    """How often each code was found."""
    diagnostics: tuple[Diagnostic, ...]
    """The first 20 findings of each code, as they were found."""
    header: str
    """The comment lines from anywhere in the file, footers too, as they stand."""
    header_cut: bool
    """Whether there were more than 64 KiB of them."""
    metadata: Mapping[str, str]
    """Keys lifted from the header, spelled as there. Of a key that comes twice in any
    spelling the first is kept. ``columns`` are the names of a column line."""
    units: str
    """Of coordinates and radius, as given."""
    units_assumed: bool
    """Whether the file is silent about them, and they are ``um`` by the format."""
    offset: tuple[float, float, float] | None
    """``# OFFSET``: what to add to the coordinates for an absolute position."""
    n_synapses: int
    """Lines of the synapse footer."""
    encoding: str
    """``utf-8`` (ASCII too), ``latin-1``, ``utf-16-le`` or ``utf-16-be``."""
    line_ends: LineEnds
    """``lf``, ``crlf``, ``cr``, ``mixed``, or ``none`` when there is no line end."""

    @property
    def nodes(self) -> pa.Table:
        """One row per node in file order, with `NODES_SCHEMA`.

        ``parent_id`` -1 is a root; a parent that is missing, below -1, or 0 without a
        node 0, is written -1 too.
        """
        return pa.Table.from_batches([self.batch])

    def to_pandas(self) -> pd.DataFrame:
        """The nodes as a DataFrame; where a type is missing it is NA."""
        frame: pd.DataFrame = _out().to_pandas(self)
        return frame

    def to_networkx(self) -> Any:
        """The nodes as a ``networkx.DiGraph`` (extra ``networkx``).

        An edge leads from a node to its parent, as in navis, and has a ``length``.
        Type, coordinates and radius are attributes of the nodes.
        """
        return _out().to_networkx(self)

    def to_navis(self, **attributes: Any) -> Any:
        """The nodes as a ``navis.TreeNeuron`` (extra ``navis``).

        Parameters
        ----------
        attributes
            Of the neuron, such as ``name`` and ``id``.
        """
        return _out().to_navis(self, **attributes)

    def plot(self, ax: Any = None, *, title: str = "") -> Any:
        """Front, side and top view with a scale bar (extra ``plot``: matplotlib).

        Parameters
        ----------
        ax
            Axes of matplotlib to draw on; a new figure without.

        Returns
        -------
        Figure or Axes
            What was drawn on. ``figure.savefig("trace.png")`` writes a picture.

        Raises
        ------
        ConfigurationError
            *ax* is something else, or matplotlib is not there.
        """
        from asyncfetch._plot import Drawing, draw, draw_on  # noqa: PLC0415

        unit = {"um": "µm", "1 micrometer": "µm", "1 nanometer": "nm"}
        drawing = Drawing(title, self.nodes, unit.get(self.units, self.units))
        if ax is None:
            return draw([drawing])
        draw_on(ax, drawing)
        return ax


def read_swc(
    source: bytes | str | os.PathLike[str], *, strict: bool = False
) -> Morphology:
    """Read the nodes of an SWC file in file order, and report all that is odd in it.

    Parameters
    ----------
    source
        The content of a file as bytes (gzip is unpacked), or a path.
    strict
        Raise at the first error, instead of dropping broken rows and reporting them.
        Files without errors give the same result in both modes.

    Raises
    ------
    DecodeError
        No row is usable or, when `strict`, something is wrong. ``code`` is a key of
        `ERROR_CODES`, ``path`` the line (``line 12``) or ``file``.
    OSError
        The path cannot be read.

    Notes
    -----
    Ids are exact over the whole range of int64. Coordinates and radius are the doubles
    nearest to the text. Time is linear in the size, but for sorting ids that are not
    in order already. Starts no thread; safe to call from several.
    """
    if isinstance(source, bytes):
        data = source
    else:
        with open(source, "rb") as file:  # noqa: PTH123 - takes str and PathLike alike
            data = file.read(MAX_BYTES + 1)
    return _File(data, strict=strict).read()


def write_swc(
    trace: Morphology,
    dest: str | os.PathLike[str] | None = None,
    *,
    header: Mapping[str, str] | None = None,
) -> bytes:
    """Write a trace as SWC, so that reading it gives the same nodes.

    Numbers are the shortest that read back as the same doubles, one blank between them;
    what is null is written ``NA``. Nothing is sorted, renumbered or moved.

    Parameters
    ----------
    dest
        A path to write to, beside giving the bytes.
    header
        Keys and values for the comment lines on top. By default they are those of the
        file that the trace came from.

    Raises
    ------
    ConfigurationError
        A key or value is no single line.
    """
    data: bytes = _out().as_text(trace, header)
    if dest is not None:
        with open(dest, "wb") as file:  # noqa: PTH123 - takes str and PathLike alike
            file.write(data)
    return data


def _out() -> Any:
    """What needs pandas and more, which reading does not."""
    from asyncfetch import _swc_out  # noqa: PLC0415

    return _swc_out


def read_alike(files: Sequence[bytes]) -> list[Morphology | None]:
    """Read at once those of *files* that are written in the commonest way.

    That is: one blank between numbers, comments above the rows, a tree of which there
    is nothing to say. Most files of NeuroMorpho.Org are.

    Returns
    -------
    list of Morphology or None
        One for each file, in their order. What is read is as `read_swc` reads it; None
        says nothing about a file but that it takes `read_swc`.

    Notes
    -----
    Give it some ten small files at a time: what is read together lives together, and
    when it turns out that one of them was not so common, all give None.
    """
    plain = [_plain_as_most(data) for data in files]
    traces = iter(_read_alike([one for one in plain if one is not None]))
    return [None if one is None else next(traces) for one in plain]


# --------------------------------------------------------------------------------------
# What is found

_DROPPING: Final = frozenset(
    (
        "truncated",
        "short-row",
        "line-too-long",
        "ambiguous-separator",
        "non-numeric",
        "bad-id",
        "negative-id",
        "bad-type",
        "na-coordinate",
        "duplicate-id",
    )
)
_BLANKS: Final = b" \t\x0b\x0c"


class _Rows(NamedTuple):
    """The columns of the rows read so far, as arrays of one length."""

    ids: npt.NDArray[np.int64]
    types: npt.NDArray[np.int32]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    z: npt.NDArray[np.float64]
    radius: npt.NDArray[np.float64]  # NaN where it is null
    parents: npt.NDArray[np.int64]
    untyped: npt.NDArray[np.bool_] | None  # where the type is null, if it is anywhere
    lines: npt.NDArray[np.int64] | None  # None: every line that is no comment or blank
    lost_ids: int  # rows dropped so far although they begin with an id


class _Report:
    """Collects findings; in strict mode raises the first error instead."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.data = b""
        self.counts: dict[str, int] = {}
        self.listed: list[Diagnostic] = []

    @property
    def terminated(self) -> bool:
        return self.data.endswith((b"\n", b"\r"))

    @cached_property
    def lines(self) -> list[bytes]:
        return self.data.splitlines()  # of bytes: at LF, CRLF and CR only

    def add(self, code: str, line: int = 0, text: bytes = b"", hint: str = "") -> None:
        count = self.counts.get(code, 0)
        self.counts[code] = count + 1
        if count >= MAX_LISTED:
            return
        # Four bytes are the longest character in UTF-8.
        shown = text.strip(_BLANKS)[: 4 * MAX_TEXT].decode("utf-8", "replace")
        found = Diagnostic(code, line, shown[:MAX_TEXT], hint)
        self.listed.append(found)
        if self.strict and code in ERROR_CODES:
            raise _error(found)

    def add_rows(self, code: str, rows: _Rows, where: npt.NDArray[np.intp]) -> None:
        """Add a finding for each row whose index is in `where`, which is sorted."""
        if not len(where):
            return
        first = where[:MAX_LISTED]
        known = rows.lines
        numbers = self.row_lines(int(first[-1]) + 1) if known is None else known
        for number in numbers[first].tolist():
            last = number == len(self.lines) and not self.terminated
            hint = "possibly truncated" if last and code == "missing-parent" else ""
            self.add(code, number, self.lines[number - 1], hint)
        self.counts[code] += len(where) - len(first)

    def row_lines(self, n_rows: int) -> npt.NDArray[np.int64]:
        """Give the lines of the first rows of a plain file."""
        rows = (
            number
            for number, line in enumerate(self.lines, 1)
            if not line.startswith(b"#") and line.strip()
        )
        return np.fromiter(islice(rows, n_rows), np.int64, n_rows)

    def fail(self, code: str, hint: str = "") -> DecodeError:
        """Give the error for a file of which nothing can be used."""
        return _error(Diagnostic(code, 0, "", hint))

    def nothing_usable(self, otherwise: str) -> DecodeError:
        """Give the error for a file without a good row: its first, if it had rows."""
        for found in self.listed:
            if found.code in ERROR_CODES:
                return _error(found)
        return self.fail("no-data", otherwise)


class _File:
    """One file on its way: its text, and what is found in it."""

    def __init__(self, data: bytes, *, strict: bool) -> None:
        self.report = report = _Report(strict=strict)
        data = _unpacked(data, report)
        data, self.encoding = _as_utf8(data, report)
        _refuse_other_formats(data, report)
        self.line_ends = _line_ends(data, report)
        report.data = data
        self.header = _Header()

    def read(self) -> Morphology:
        header, report = self.header, self.report
        rows = None
        if self.line_ends in ("lf", "crlf", "none"):
            rows = _read_plain(header, report)
        if rows is None:
            rows = _read_lines(header, report)
        if not len(rows.ids):
            raise report.nothing_usable("comments only" if header.lines else "empty")
        return self.checked(rows)

    def checked(self, rows: _Rows) -> Morphology:
        """Check the tree of all rows that were read."""
        rows = _checked_tree(rows, self.report)
        return self.trace(
            _batch(rows),
            n_roots=int(np.count_nonzero(rows.parents == -1)),
            n_soma=int(np.count_nonzero(rows.types == 1)),
        )

    def trace(self, batch: pa.RecordBatch, *, n_roots: int, n_soma: int) -> Morphology:
        header, report = self.header, self.report
        return Morphology(
            batch=batch,
            n_roots=n_roots,
            n_soma=n_soma,
            n_rejected=sum(n for code, n in report.counts.items() if code in _DROPPING),
            codes=tuple(sorted(report.counts)),
            counts=report.counts,
            diagnostics=tuple(report.listed),
            header="\n".join(header.lines),
            header_cut=header.cut,
            metadata=header.metadata,
            units=header.units or "um",
            units_assumed=header.units is None,
            offset=header.offset,
            n_synapses=header.n_synapses,
            encoding=self.encoding,
            line_ends=self.line_ends,
        )


def _error(found: Diagnostic) -> DecodeError:
    path = f"line {found.line}" if found.line else "file"
    got = f", got {found.text!r}" if found.line else ""
    hint = f" ({found.hint})" if found.hint else ""
    return DecodeError(
        f"SWC {path}: {found.code}: {ERROR_CODES[found.code]}{got}{hint}",
        code=found.code,
        path=path,
    )


# --------------------------------------------------------------------------------------
# Bytes


_GZIP: Final = b"\x1f\x8b"


def _unpacked(data: bytes, report: _Report) -> bytes:
    if data.startswith(_GZIP):
        try:
            with gzip.open(BytesIO(data)) as file:
                data = file.read(MAX_BYTES + 1)
        except EOFError:
            raise report.fail("truncated", "gzip ends early") from None
        except (OSError, zlib.error) as error:
            raise report.fail("not-swc", f"broken gzip: {error}") from error
    if len(data) > MAX_BYTES:
        raise report.fail("too-large")
    return data


def _as_utf8(data: bytes, report: _Report) -> tuple[bytes, str]:
    """Give the text as UTF-8 without byte order mark, and the encoding it came in."""
    for mark, codec in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            report.add("bom")
            data = data.removeprefix(mark)
            if codec != "utf-8":
                # What cannot be decoded cannot be a number either: its row is reported.
                return data.decode(codec, "replace").encode(), codec
    try:
        if not data.isascii():
            data.decode()
    except UnicodeDecodeError:
        report.add("legacy-encoding")
        return data.decode("latin-1").encode(), "latin-1"
    return data, "utf-8"


# First bytes of what servers and people send under the name of a trace.
_OTHER_FORMATS: Final = (
    (b"<", "markup, perhaps an error page"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"PK\x03\x04", "zip"),
    (b"%PDF", "PDF"),
)


def _refuse_other_formats(data: bytes, report: _Report) -> None:
    start = data[:1024].lstrip()
    for magic, name in _OTHER_FORMATS:
        if start.startswith(magic):
            raise report.fail("not-swc", f"this is {name}")
    # NULs at the very end are padding, which a tape or a disk block left there.
    if b"\0" in start and b"\0" in data.rstrip(b"\0\x1a \t\r\n")[:1024]:
        raise report.fail("not-swc", "this is binary")


def _line_ends(data: bytes, report: _Report) -> LineEnds:
    if b"\r" not in data:
        return "lf" if b"\n" in data else "none"
    lf = data.count(b"\n")
    if data.count(b"\r") == lf == data.count(b"\r\n"):
        return "crlf"
    report.add("odd-line-ends")
    return "mixed" if lf else "cr"


# --------------------------------------------------------------------------------------
# Comments

# Fields of Cannon et al. 1998 and words of the SWC specification 1.0.0, written
# ``# KEY value``; the misspelt one is what CloudVolume writes.
_HEADER_KEYS: Final = frozenset(
    """original_source creature region field/layer type contributor reference raw extras
    soma_area shrinkage_correction shinkage_correction version_number version_date scale
    sex age weight class condition label slicing microscopy coordinate brainspace
    offset color""".split()
)
_KEY_VALUE = re.compile(r"(\w[\w /.()-]{0,63}?)\s*:(?:\s+(.*))?").fullmatch
_COLUMN_NAMES = re.compile(
    r"(?:[^\s,;]+[\s,;]+){2}x[\s,;]+y[\s,;]+z[\s,;]+[^\s,;]+[\s,;]+\S", re.IGNORECASE
).match
_INTEGER = re.compile(rb"[+-]?\d+").fullmatch
_DECIMAL = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?").fullmatch


class _Header:
    """The comment lines, and what they say together."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cut = False
        self.metadata: dict[str, str] = {}
        self.units: str | None = None
        self.offset: tuple[float, float, float] | None = None
        self.n_synapses = 0
        self._room = MAX_HEADER
        self._seen: set[str] = set()
        self._in_footer = False

    def add(self, line: bytes, number: int, report: _Report) -> None:
        # The files of an archive share most of their header.
        said = _said(line) if len(line) > 200 else _said_before(line)
        if said.is_indented:
            report.add("indented-comment", number, line)
        if said.mark:
            self._in_footer = said.mark == b"start"
        elif self._in_footer:
            self.n_synapses += 1
        elif said.is_like_a_row:
            report.add("row-in-comment", number, line)
        if self.cut:
            return
        self.cut = len(line) > self._room
        self.lines.append(line[: self._room].decode("utf-8", "ignore"))
        self._room -= len(line) + 1
        if not self.cut and not self._in_footer:
            for key, value in said.values:  # noqa: PD011 - of a comment, not a frame
                self._put(key, value)

    def _put(self, key: str, value: str) -> None:
        folded = key.lower()
        if folded == "shinkage_correction":
            key, folded = "SHRINKAGE_CORRECTION", "shrinkage_correction"
        if folded in self._seen:
            return
        self._seen.add(folded)
        self.metadata[key] = value
        if folded == "units" and value:
            self.units = value
        elif folded == "offset":
            numbers = [float(w) for w in value.encode().split() if _DECIMAL(w)]
            if len(numbers) == 3 and all(map(isfinite, numbers)):
                self.offset = (numbers[0], numbers[1], numbers[2])


class _Comment(NamedTuple):
    """What one line of comment says by itself."""

    is_indented: bool
    mark: bytes  # of the synapse footer: start, end, or none
    is_like_a_row: bool
    values: tuple[tuple[str, str], ...]


def _said(line: bytes) -> _Comment:
    text = line.lstrip(_BLANKS).lstrip(b"#").strip()
    begins = text[:13].lower()
    if begins == b"start synapse":
        mark = b"start"
    else:
        mark = b"end" if begins.startswith(b"end synapse") else b""
    return _Comment(
        is_indented=not line.startswith(b"#"),
        mark=mark,
        is_like_a_row=_ends_like_a_row(text),
        values=tuple(_lifted(text.decode())),
    )


_said_before = lru_cache(maxsize=1024)(_said)


def _lifted(text: str) -> Iterator[tuple[str, str]]:
    word, *rest = text.split(None, 1) or [""]
    if _COLUMN_NAMES(text):
        yield "columns", text
    elif word.lower() in _HEADER_KEYS:
        yield word, "".join(rest)
    elif found := _KEY_VALUE(text):
        key, value = found.groups(default="")
        yield key, value
        if key.lower() == "meta":
            yield from _lifted_json(value)


def _lifted_json(text: str) -> Iterator[tuple[str, str]]:
    """Take what navis writes: ``# Meta: {"id": 1, "units": "1 nanometer"}``."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        return  # it stays in the metadata as raw text
    if not isinstance(meta, dict):
        return
    for key in ("id", "name", "units"):
        if (value := meta.get(key)) is not None:
            shown = value if isinstance(value, str) else json.dumps(value)
            # JSON can spell half a character, which no UTF-8 can hold.
            yield key, shown.encode("utf-8", "replace").decode()


def _ends_like_a_row(comment: bytes) -> bool:
    if not comment[-1:].isdigit():
        return False
    words = comment.rsplit(None, 7)[-7:]
    return (
        len(words) == 7
        and all(map(_DECIMAL, words))
        and all(map(_INTEGER, (words[0], words[1], words[6])))
    )


# --------------------------------------------------------------------------------------
# Rows, line by line: the definition of the format

_SEPARATORS: Final = re.compile(rb"[\s,;]+")
_EMPTY_FIELD: Final = re.compile(rb"[,;]\s*[,;]")
_INNER_COMMA: Final = re.compile(rb"[^,;\s][,;][^,;\s]")
_DECIMAL_COMMA: Final = re.compile(rb"[+-]?\d+,\d+(?:[eE][+-]?\d+)?").fullmatch
_NOT_A_NUMBER: Final = frozenset(b"na n/a nan none null inf infinity".split())


class _BadRow(Exception):  # noqa: N818 - carries a code, not a message
    """A row that cannot be used; its argument is the code."""


class _Dialect:
    """What separates columns, decided by the first rows and then binding.

    A row such as ``1 1 0 0 0 5 -1`` does not tell whether the file writes ``0.5`` or
    ``0,5``, so the decimal sign stays open until a row shows one. There is no falling
    back row by row: ``1,234`` would be two columns here and one there.
    """

    def __init__(self) -> None:
        self.kind: Literal["open", "blank", "point", "decimal-comma", "comma"] = "open"

    def split(self, row: bytes) -> tuple[list[bytes], list[str]]:
        """Give the columns, with points for decimal commas, and codes of warnings."""
        tokens = row.split()
        seven = b" ".join(tokens[:7])
        if self.kind == "comma" or b"," in seven or b";" in seven:
            return self._split_at_commas(row, tokens)
        if len(tokens) < 7:
            raise _BadRow("short-row")
        if self.kind != "point":
            if b"." not in b"".join(tokens[2:6]):
                if self.kind == "open":
                    self.kind = "blank"
            elif self.kind == "decimal-comma":
                raise _BadRow("ambiguous-separator")
            else:
                self.kind = "point"
        return tokens, []

    def _split_at_commas(
        self, row: bytes, tokens: list[bytes]
    ) -> tuple[list[bytes], list[str]]:
        if self.kind in ("open", "blank", "decimal-comma") and _decimal_commas(tokens):
            self.kind = "decimal-comma"
            return [token.replace(b",", b".") for token in tokens], ["decimal-comma"]
        if self.kind == "decimal-comma" and len(tokens) < 7:
            raise _BadRow("short-row")
        fields = _SEPARATORS.split(row.rstrip(b",; \t"))
        if len(fields) < 7 and self.kind in ("open", "comma"):
            raise _BadRow("short-row")
        if (
            self.kind not in ("open", "comma")
            # Neither: blanks in a file of commas. Both: which one is a decimal comma?
            or (b"," in row) == (b";" in row)
            or _EMPTY_FIELD.search(row)
            or (len(tokens) >= 7 and _INNER_COMMA.search(row))
        ):
            raise _BadRow("ambiguous-separator")
        self.kind = "comma"
        return fields, ["comma-separated"]


def _decimal_commas(tokens: list[bytes]) -> bool:
    """Whether commas are the decimal signs of columns 3 to 6, and nothing else."""
    numbers = tokens[2:6]
    others = b" ".join((*tokens[:2], *tokens[6:7]))
    return (
        len(tokens) >= 7
        and not (b"," in others or b";" in others)
        and not any(b"." in token or b";" in token for token in numbers)
        and all(_DECIMAL_COMMA(token) for token in numbers if b"," in token)
    )


def _is_none(token: bytes) -> bool:
    return token.lower().lstrip(b"+-") in _NOT_A_NUMBER


def _whole(token: bytes, bits: int, otherwise: str) -> tuple[int, bool]:
    """Give the integer that `token` is, and whether it is written as a decimal."""
    value, decimal = None, False
    if token.isdigit() and len(token) < 10:  # nearly all of them
        return int(token), False
    if _INTEGER(token):
        # int() refuses longer ones, which are far beyond 64 bits anyway.
        value = int(token) if len(token) <= 4300 else None
    elif _DECIMAL(token):
        number, decimal = float(token), True
        # From 2**53 on, a double stands for several integers.
        value = int(number) if number.is_integer() and abs(number) < 2**53 else None
    elif not _is_none(token):
        raise _BadRow("non-numeric")
    if value is None or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise _BadRow(otherwise)
    return value, decimal


def _real(token: bytes) -> float:
    """Give the nearest double; NaN for what is written instead of a number."""
    if _DECIMAL(token):
        value = float(token)
        if isfinite(value):
            return value
    elif _is_none(token):
        return nan
    raise _BadRow("non-numeric")


class _Builder:
    """Rows in the making."""

    def __init__(self) -> None:
        # Arrays, not lists: 256 MiB of text can hold 19 million rows.
        self._ids, self._types, self._parents = array("q"), array("i"), array("q")
        self._x, self._y, self._z = array("d"), array("d"), array("d")
        self._radius, self._untyped, self._lines = array("d"), array("b"), array("q")
        self._dialect = _Dialect()
        self._lost_ids = 0

    def add(self, row: bytes, number: int) -> list[str]:
        """Append the row; give the codes of its warnings, or raise `_BadRow`."""
        kind = self._dialect.kind
        try:
            return self._add(row, number)
        except _BadRow:
            self._dialect.kind = kind  # words before the rows decide nothing
            self._lost_ids += row[:1].isdigit()
            raise

    def _add(self, row: bytes, number: int) -> list[str]:
        if len(row) > MAX_LINE:
            raise _BadRow("line-too-long")
        columns, warnings = self._dialect.split(row)
        if len(columns) > 7:
            warnings.append("extra-columns")
        node, decimal_id = _whole(columns[0], 64, "bad-id")
        if node < 0:
            raise _BadRow("negative-id")
        untyped = not columns[1].isdigit() and _is_none(columns[1])
        kind, decimal_type = (
            (0, False) if untyped else _whole(columns[1], 32, "bad-type")
        )
        x, y, z, radius = map(_real, columns[2:6])
        if isnan(x) or isnan(y) or isnan(z):
            raise _BadRow("na-coordinate")
        if isnan(radius):
            warnings.append("na-radius")
        parent, decimal_parent = _whole(columns[6], 64, "bad-id")
        if decimal_id or decimal_parent:
            warnings.append("float-id")
        if decimal_type:
            warnings.append("float-type")
        self._ids.append(node)
        self._types.append(kind)
        self._x.append(x)
        self._y.append(y)
        self._z.append(z)
        self._radius.append(radius)
        self._parents.append(parent)
        self._untyped.append(untyped)
        self._lines.append(number)
        return warnings

    def rows(self) -> _Rows:
        return _Rows(
            ids=np.frombuffer(self._ids, np.int64),
            types=np.frombuffer(self._types, np.int32),
            x=np.frombuffer(self._x),
            y=np.frombuffer(self._y),
            z=np.frombuffer(self._z),
            radius=np.frombuffer(self._radius),
            parents=np.frombuffer(self._parents, np.int64),
            untyped=np.frombuffer(self._untyped, np.bool_),
            lines=np.frombuffer(self._lines, np.int64),
            lost_ids=self._lost_ids,
        )


def _read_lines(header: _Header, report: _Report) -> _Rows:
    """Read any file."""
    builder = _Builder()
    lines = report.lines
    for number, line in enumerate(lines, 1):
        row, sharp, _ = line.partition(b"#")
        row = row.strip(_BLANKS)
        if row.endswith((b"\0", b"\x1a")):
            report.add("control-bytes", number, line)
            row = row.rstrip(b"\0\x1a" + _BLANKS)
        if not row:
            if sharp:
                header.add(line, number, report)
            continue
        try:
            warnings = builder.add(row, number)
        except _BadRow as bad:
            (code,) = bad.args
            if code == "short-row" and number == len(lines) and not report.terminated:
                code = "truncated"
            report.add(code, number, line)
            continue
        if sharp:
            warnings.append("inline-comment")
        for code in warnings:
            report.add(code, number, line)
    return builder.rows()


# --------------------------------------------------------------------------------------
# Rows, whole columns at once

_INT64: Final = pa.int64()
_INT32: Final = pa.int32()
_FLOAT64: Final = pa.float64()
_STRING: Final = pa.string()

_PLAIN: Final = b"0123456789+-.eE \t\r\n"
_HEAD = re.compile(rb"(?:#[^\n]*(?:\n|\Z)|[ \t]*\r?\n)*")
# Bytes that are parsed at once. Temporary arrays then stay in the cache, and below the
# size that malloc maps anew each time: 7500 nodes took 2.4 ms at 1 MiB, 1.6 ms here.
_BLOCK: Final = 60_000


def _bits_of(*columns: int) -> pa.Buffer:
    """Validity bits that leave those columns of token, gap, token, gap, ..."""
    row = np.zeros(14, np.bool_)
    row[2 * np.array(columns)] = True
    # No more pieces than bytes; four rows are seven bytes of bits.
    rows = np.tile(row, 4 * (_BLOCK // 56 + 1))
    return pa.py_buffer(np.packbits(rows, bitorder="little").tobytes())


_WHOLE: Final = _bits_of(0, 1, 6)
_REAL: Final = _bits_of(2, 3, 4, 5)


def _read_plain(header: _Header, report: _Report) -> _Rows | None:
    """Read a file of plain rows with comments on lines of their own, else None.

    `pyarrow.csv` would hand each file to an I/O thread, which costs 140 µs before the
    first row; the casts of Arrow alone are exact, take less and stay in this thread.
    """
    comments, body = _without_head(report.data)
    if b"#" in body:
        lines = body.splitlines()
        n_above = report.data.count(b"\n", 0, -len(body))
        comments += (
            (n, line)
            for n, line in enumerate(lines, 1 + n_above)
            if line.startswith(b"#")
        )
        body = b"\n".join(line for line in lines if not line.startswith(b"#"))
    if not body or body.translate(None, _PLAIN):
        return None
    blocks = []
    for block in _blocks(body):
        rows = _parse_block(block)
        if rows is None:
            return None
        blocks.append(rows)
    columns: Iterable[npt.NDArray[Any]] = blocks[0]
    if len(blocks) > 1:
        columns = map(np.concatenate, zip(*blocks, strict=True))
    ids, types, x, y, z, radius, parents = columns
    for number, line in comments:
        header.add(line, number, report)
    return _Rows(
        ids=ids,
        types=types.astype(np.int32),
        x=x,
        y=y,
        z=z,
        radius=radius,
        parents=parents,
        untyped=None,
        lines=None,
        lost_ids=0,
    )


def _without_head(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Part the text at its first row: numbered comments above it, and the rest."""
    found = _HEAD.match(data)
    assert found is not None  # it matches the empty string
    top = enumerate(found.group().splitlines(), 1)
    return [(n, line) for n, line in top if line.startswith(b"#")], data[found.end() :]


def _blocks(body: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(body):
        end = len(body)
        if end - start > _BLOCK:
            end = body.rfind(b"\n", start, start + _BLOCK) + 1 or end
        yield body[start:end]
        start = end


def _parse_block(block: bytes) -> tuple[npt.NDArray[Any], ...] | None:
    """The seven columns of the block's rows, if each line holds seven numbers."""
    # So that every token begins and ends at an edge.
    block = (b"\n%b" if block.endswith(b"\n") else b"\n%b\n") % block
    text = np.frombuffer(block, np.uint8)
    inside = text > 32
    edges = ((inside[1:] != inside[:-1]).nonzero()[0] + 1).astype(np.int32)
    n_tokens = len(edges) // 2
    n_pieces = 2 * n_tokens - 1
    if (
        n_tokens == 0
        or n_tokens % 7
        or n_pieces > 8 * _WHOLE.size
        or not _is_seven_a_line(edges, text == 10)
    ):
        return None
    # The edges cut the text into token, gap, token, gap, ..., token. A cast reads the
    # pieces whose bit is set; taking them out of the text first would cost as much.
    cut = pa.py_buffer(edges), pa.py_buffer(block)
    whole_text = pa.Array.from_buffers(_STRING, n_pieces, [_WHOLE, *cut])
    real_text = pa.Array.from_buffers(_STRING, n_pieces, [_REAL, *cut])
    try:
        whole = np.frombuffer(whole_text.cast(_INT64).buffers()[1], np.int64)
        real = np.frombuffer(real_text.cast(_FLOAT64).buffers()[1], np.float64)
    except pa.ArrowInvalid:
        return None
    ids, types, parents = (whole[2 * n : n_pieces : 14].copy() for n in (0, 1, 6))
    x, y, z, radius = (real[2 * n : n_pieces : 14].copy() for n in (2, 3, 4, 5))
    if (
        ids.min() < 0
        or types.min() < -(2**31)
        or types.max() >= 2**31
        or not all(np.isfinite(column).all() for column in (x, y, z, radius))
    ):
        return None
    return ids, types, x, y, z, radius, parents


class _Plain(NamedTuple):
    """A file that is to be read together with others."""

    file: _File
    comments: list[tuple[int, bytes]]
    body: bytes


_COMMON_ROW = re.compile(rb" ?\d+(?: [-\d.]+){5} -?\d+\n").match
_CSV_COLUMNS: Final = {field.name: field.type for field in NODES_SCHEMA}
_CSV_KINDS: Final = [kind.to_pandas_dtype() for kind in NODES_SCHEMA.types]
_CSV_PARSE: Final = pa_csv.ParseOptions(
    delimiter=" ", quote_char=False, double_quote=False, ignore_empty_lines=False
)
_CSV_CONVERT: Final = pa_csv.ConvertOptions(
    column_types=_CSV_COLUMNS, null_values=[], check_utf8=False
)


def _plain_as_most(data: bytes) -> _Plain | None:
    """Give what is to be read, if it looks like the commonest way of writing."""
    if data.startswith(_GZIP):  # it may become long
        return None
    try:
        file = _File(data, strict=False)
    except DecodeError:
        return None
    if file.line_ends != "lf" or not file.report.terminated:
        return None
    comments, body = _without_head(file.report.data)
    if len(body) > _BLOCK or _COMMON_ROW(body) is None:
        return None
    if b"#" in body or b"x" in body or b"X" in body:  # comments; 0x1 is no number
        return None
    return _Plain(file, comments, body)


def _read_alike(files: list[_Plain]) -> list[Morphology | None]:
    """Read files at once; none of them if there is any doubt about one."""
    none: list[Morphology | None] = [None] * len(files)
    if len(files) < 2:
        return none
    text = b"".join(
        plain.body.replace(b"\n ", b"\n")[1:] if plain.body[:1] == b" " else plain.body
        for plain in files
    )
    # A third of the time of `bytes.count`, as nearly every line is short.
    counts = np.array(
        [np.count_nonzero(np.frombuffer(plain.body, np.uint8) == 10) for plain in files]
    )
    options = pa_csv.ReadOptions(
        use_threads=False, column_names=list(_CSV_COLUMNS), block_size=len(text) + 1
    )
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(text), options, _CSV_PARSE, _CSV_CONVERT
        )
    except pa.ArrowInvalid:
        return none
    batches = table.to_batches()
    if table.num_rows != counts.sum() or len(batches) != 1:
        return none
    batch = pa.RecordBatch.from_arrays(batches[0].columns, schema=NODES_SCHEMA)
    # `to_numpy` would import pandas, a long stall in an event loop.
    ids, types, x, y, z, radius, parents = (
        np.frombuffer(column.buffers()[1], kind, batch.num_rows)
        for column, kind in zip(batch.columns, _CSV_KINDS, strict=True)
    )
    if not all(np.isfinite(column).all() for column in (x, y, z, radius)):
        return none
    ends = counts.cumsum()
    starts = ends - counts
    is_first = np.zeros(len(ids), np.bool_)
    is_first[starts] = True
    # What `_checked_tree` would have nothing to say about; see `_is_standard`.
    is_usual = (
        (ids == np.arange(1, len(ids) + 1) - starts.repeat(counts))
        & np.where(is_first, parents == -1, (parents > 0) & (parents < ids))
        & (types.view(np.uint32) <= 7)
        & (radius > 0)
    )
    usual = np.logical_and.reduceat(is_usual, starts)
    n_soma = np.add.reduceat(types == 1, starts, dtype=np.int64)
    traces: list[Morphology | None] = []
    for plain, first, end, is_plain, somas in zip(
        files,
        starts.tolist(),
        ends.tolist(),
        (usual & (n_soma > 0)).tolist(),
        n_soma.tolist(),
        strict=True,
    ):
        if not is_plain:
            traces.append(None)
            continue
        file = plain.file
        for number, line in plain.comments:
            file.header.add(line, number, file.report)
        own = batch.slice(first, end - first)
        traces.append(file.trace(own, n_roots=1, n_soma=somas))
    return traces


def _is_seven_a_line(
    edges: npt.NDArray[np.int32], is_end: npt.NDArray[np.bool_]
) -> bool:
    """Whether every line has seven tokens or none, and not too many bytes."""
    n_rows = len(edges) // 14
    if (
        len(is_end) <= MAX_LINE
        and np.count_nonzero(is_end) == n_rows + 1
        and is_end[edges[13::14]].all()
    ):
        return True  # each seventh token ends its line, and there are no other lines
    ends = np.flatnonzero(is_end)
    # How many tokens come before each line end: seven more each time, or none.
    before = edges[::2].searchsorted(ends)
    width = before[1:] - before[:-1]
    return bool(
        ((width == 7) | (width == 0)).all() and (ends[1:] - ends[:-1]).max() <= MAX_LINE
    )


def _array(kind: pa.DataType, values: npt.NDArray[Any], valid: Any = None) -> pa.Array:
    """Wrap numbers. `pa.array` would import pandas, a long stall in an event loop."""
    bits = (
        None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    )
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(values)])


# --------------------------------------------------------------------------------------
# The tree


def _checked_tree(rows: _Rows, report: _Report) -> _Rows:
    """Drop duplicates and write roots as -1; everything else is only reported."""
    if not _is_standard(rows):
        rows = _without_duplicates(rows, report)
        _report_ids(rows, report)
        rows = _with_links_checked(rows, report)
    unusual = rows.types.view(np.uint32) > 7  # negative ones too
    if rows.untyped is not None:
        unusual |= rows.untyped
    report.add_rows("unusual-type", rows, np.flatnonzero(unusual))
    report.add_rows("non-positive-radius", rows, np.flatnonzero(rows.radius <= 0))
    if not (rows.types == 1).any():
        report.add("no-soma")
    return rows


def _is_standard(rows: _Rows) -> bool:
    """Whether ids are 1, 2, ..., the first row is the only root and parents come first.

    True for nearly every standardized file of NeuroMorpho.Org, and then nothing is left
    to check.
    """
    ids, parents = rows.ids, rows.parents[1:]
    return bool(
        rows.parents[0] == -1
        and (ids == np.arange(1, len(ids) + 1)).all()
        and (parents > 0).all()
        and (parents < ids[1:]).all()
    )


def _without_duplicates(rows: _Rows, report: _Report) -> _Rows:
    ids = rows.ids
    if (ids[1:] > ids[:-1]).all():
        return rows
    order = np.argsort(ids, kind="stable")
    again = np.zeros(len(ids), np.bool_)
    again[1:] = ids[order][1:] == ids[order][:-1]
    if not again.any():
        return rows
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(ids))))
    copies, originals = order[again], order[first[again]]
    equal = np.ones(len(copies), np.bool_)
    for column in rows[:8]:
        if column is not None:
            one, other = column[copies], column[originals]
            equal &= (one == other) | ((one != one) & (other != other))  # noqa: PLR0124 - NaN
    if rows.lines is None:
        rows = rows._replace(lines=report.row_lines(len(ids)))
    report.add_rows("duplicate-row", rows, np.sort(copies[equal]))
    report.add_rows("duplicate-id", rows, np.sort(copies[~equal]))
    keep = np.ones(len(ids), np.bool_)
    keep[copies] = False
    columns = [column if column is None else column[keep] for column in rows[:9]]
    return _Rows._make([*columns, rows.lost_ids])


def _report_ids(rows: _Rows, report: _Report) -> None:
    ids = rows.ids
    report.add_rows("id-zero", rows, np.flatnonzero(ids == 0))
    jumps = np.ones(len(ids), np.bool_)
    jumps[0] = ids[0] > 1
    jumps[1:] = ids[1:] - ids[:-1] != 1
    # Rows that were dropped leave gaps which the file does not have.
    gaps = int(ids[-1]) - (len(ids) - 1) - min(int(ids[0]), 1)
    if not (ids[1:] > ids[:-1]).all() or gaps > rows.lost_ids:
        report.add_rows("ids-not-contiguous", rows, np.flatnonzero(jumps))


def _with_links_checked(rows: _Rows, report: _Report) -> _Rows:
    ids, own = rows.ids, np.arange(len(rows.ids))
    parents = rows.parents.copy()
    order = np.argsort(ids, kind="stable")
    place = np.minimum(ids.searchsorted(parents, sorter=order), len(ids) - 1)
    above = order[place]  # the parent's row, where there is one
    known = ids[above] == parents
    odd_root = ~known & ((parents < -1) | (parents == 0))
    missing = ~known & (parents > 0)
    is_self = known & (above == own)
    parents[odd_root | missing] = -1
    above = np.where(known, above, own)
    in_cycle = _in_cycles(above, own)

    report.add_rows("missing-parent", rows, np.flatnonzero(missing))
    report.add_rows("self-parent", rows, np.flatnonzero(is_self))
    report.add_rows("cycle", rows, np.flatnonzero(in_cycle))
    is_root = parents == -1
    if not is_root.any():
        report.add("no-root")
    report.add_rows("odd-root-parent", rows, np.flatnonzero(odd_root))
    report.add_rows("multiple-roots", rows, np.flatnonzero(is_root & ~missing)[1:])
    if not is_root[0]:
        report.add_rows("first-not-root", rows, own[:1])
    late = (above > own) & ~in_cycle
    report.add_rows("child-before-parent", rows, np.flatnonzero(late))
    return rows._replace(parents=parents)


def _in_cycles(
    above: npt.NDArray[np.intp], own: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Mark the rows of cycles of two and more; rows that only lead there are not."""
    found: npt.NDArray[np.bool_] = np.zeros(len(own), np.bool_)
    if (above <= own).all():
        return found
    # Each step doubles how far everyone has gone up: after enough steps all are at a
    # root, or on a cycle; and the ones on a cycle are all over it.
    top = above
    for _ in range(len(own).bit_length()):
        top = top[top]
    found[top] = True
    found &= above != own
    return found


def _batch(rows: _Rows) -> pa.RecordBatch:
    typed = known = None
    if rows.untyped is not None:  # plain rows have all their numbers
        typed, known = ~rows.untyped, ~np.isnan(rows.radius)
    columns = [
        _array(_INT64, rows.ids),
        _array(_INT32, rows.types, typed),
        _array(_FLOAT64, rows.x),
        _array(_FLOAT64, rows.y),
        _array(_FLOAT64, rows.z),
        _array(_FLOAT64, rows.radius, known),
        _array(_INT64, rows.parents),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=NODES_SCHEMA)

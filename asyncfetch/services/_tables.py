"""Alyx's own tables of sessions and datasets: one archive of some MB for all of them.

They are made by the service every few hours. For questions about everything they cost a
thousandth of what records cost; what changed since is not in them.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asyncfetch.errors import ConfigurationError, DecodeError, IntegrityError
from asyncfetch.services._table import close, members

# A table of millions of datasets is some hundred MB; more expands without end.
_LARGEST = 2 << 30
TERMS = tuple(
    "subject date_range lab date number task_protocol projects dataset datasets "
    "dataset_type collection".split()
)
"""What sessions are searched by."""
_ALSO = {"project": "projects", "dates": "date_range", "users": "users"}


class Tables:
    """Sessions and datasets, as the service has written them.

    Raises
    ------
    IntegrityError, DecodeError
        The archive is damaged, or holds something else.
    """

    def __init__(self, archive: bytes) -> None:
        try:
            with zipfile.ZipFile(io.BytesIO(archive)) as file:
                self.sessions = _read(file, "sessions.pqt")
                self.datasets = _read(file, "datasets.pqt")
        except zipfile.BadZipFile as error:
            raise IntegrityError(
                f"expected a zip archive of tables: {error}"
            ) from error
        except (KeyError, pa.ArrowInvalid) as error:
            raise DecodeError(f"expected tables in the archive: {error}") from error
        self._by_session: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.datasets.to_pylist():
            self._by_session.setdefault(str(row["eid"]), []).append(row)

    def search(self, terms: Mapping[str, Any]) -> list[str]:
        """Ids of the sessions that match, the latest first."""
        found = [
            row
            for row in self.sessions.to_pylist()
            if all(self._is(row, name, one) for name, one in terms.items())
        ]
        found.sort(key=lambda row: (str(row["date"]), row["subject"]), reverse=True)
        return [str(row["id"]) for row in found]

    def _is(self, row: Mapping[str, Any], name: str, wanted: Any) -> bool:
        if name in {"dataset", "datasets"}:
            names = {one["rel_path"].rpartition("/")[2] for one in self.of(row["id"])}
            return all(any(_like(n, one) for n in names) for one in members(wanted))
        if name == "collection":
            paths = {_parts(one)[0] for one in self.of(row["id"])}
            return any(_like(p, one) for p in paths for one in members(wanted))
        if name in {"date", "date_range"}:
            low, high = ends_of(wanted)
            return (low or "") <= str(row["date"]) <= (high or "9999")
        value = row[name]
        if name == "number":
            return value in members(wanted)
        if name in {"subject", "lab"}:
            return any(str(value).lower() == str(o).lower() for o in members(wanted))
        return any(str(one).lower() in str(value).lower() for one in members(wanted))

    def of(self, session: Any) -> list[Mapping[str, Any]]:
        """The datasets of a session."""
        return self._by_session.get(str(session), [])


def _read(file: zipfile.ZipFile, name: str) -> pa.Table:
    if file.getinfo(name).file_size > _LARGEST:
        raise DecodeError(f"expected {name} of at most {_LARGEST >> 20} MiB, got more")
    return pq.read_table(io.BytesIO(file.read(name)))


def checked(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Terms under their own names; an unknown one is an error.

    Raises
    ------
    ConfigurationError
        There is no such term; the message has the nearest.
    """
    found = {}
    for name, value in terms.items():
        if value is None:
            continue
        own = _ALSO.get(name, name)
        if own not in TERMS:
            raise ConfigurationError(
                f"sessions are not searched by {name!r}{close(name, TERMS)}; but by "
                f"{', '.join(TERMS)}, or by any filter of rest('sessions', 'list', …)"
            )
        found[own] = value
    return found


def ends_of(value: Any) -> tuple[str | None, str | None]:
    """Both ends of a range of dates; one date is both, None is open."""
    given = [value] if isinstance(value, str) else members(value)
    dates = [None if one is None else str(one)[:10] for one in given]
    if len(dates) == 1:
        dates *= 2
    if len(dates) != 2:
        raise ConfigurationError(f"expected one or two dates, got {len(dates)}")
    return dates[0], dates[1]


def select(
    rows: Iterable[Mapping[str, Any]],
    *,
    filename: Any = None,
    collection: Any = None,
    revision: str | None = None,
) -> list[str]:
    """Paths below a session of the datasets that match, each in one revision.

    Parameters
    ----------
    filename
        A name with ``*`` and ``?``, several, or parts of a name: ``{"object":
        ["leftCamera"], "attribute": "times"}``.
    collection
        A collection with ``*`` and ``?``, or several.
    revision
        The last one up to it; by default the one that the service calls default.
    """
    chosen: dict[tuple[str, str], tuple[str, Mapping[str, Any]]] = {}
    for row in rows:
        folder, mark, name = _parts(row)
        if filename is not None and not _is_named(name, filename):
            continue
        if collection is not None and not any(
            _like(folder, one) for one in members(collection)
        ):
            continue
        if revision is None and not row.get("default_revision", True):
            continue
        if revision is not None and mark > revision:
            continue
        if (folder, name) not in chosen or mark > chosen[folder, name][0]:
            chosen[folder, name] = (mark, row)
    return sorted(str(row["rel_path"]) for _, row in chosen.values())


_REVISION = re.compile(r"(?:(.*?)/)?(?:#([^/#]+)#/)?([^/]+)")
# namespace, object, attribute, timescale, extra, extension: _ibl_wheel.times_bpod.npy
_NAME = re.compile(
    r"(?:_(?P<namespace>[^_.]+)_)?(?P<object>[^_.]+)\.(?P<attribute>[^_.]+)"
    r"(?:_(?P<timescale>[^.]+))?(?:\.(?P<extra>.+))?\.(?P<extension>[^.]+)"
)


def _parts(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Collection, revision and name of a dataset's path below its session."""
    found = _REVISION.fullmatch(str(row["rel_path"]))
    if found is None:
        return "", "", str(row["rel_path"])
    return found[1] or "", found[2] or "", found[3]


def _is_named(name: str, wanted: Any) -> bool:
    if not isinstance(wanted, Mapping):
        return any(_like(name, one) for one in members(wanted))
    found = _NAME.fullmatch(name)
    if unknown := wanted.keys() - _NAME.groupindex.keys():
        raise ConfigurationError(
            f"expected parts of names {', '.join(_NAME.groupindex)}, got "
            f"{', '.join(sorted(unknown))}"
        )
    return found is not None and all(
        any(_like(found[part] or "", one) for one in members(some))
        for part, some in wanted.items()
    )


def _like(text: str, pattern: Any) -> bool:
    return fnmatchcase(text, str(pattern))


def as_pattern(text: Any) -> str:
    """A pattern with ``*`` and ``?`` as a regular expression of PostgreSQL."""
    signs = {"*": ".*", "?": "."}
    return f"^{''.join(signs.get(one, re.escape(one)) for one in str(text))}$"


def as_row(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of the table for a dataset's record."""
    middle = f"#{record['revision']}#/" if record.get("revision") else ""
    folder = f"{record['collection']}/" if record.get("collection") else ""
    return {
        "rel_path": f"{folder}{middle}{record['name']}",
        "default_revision": record.get("default_dataset", True),
        "id": record["url"][-36:],
    }

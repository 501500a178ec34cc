"""Neuroscout's collections: predictors of one's own, uploaded as events files.

The service looks at files and ids in a job that nobody hears of when it fails half-way,
and deletes nothing. So everything that can be wrong is found here, before it is sent.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncfetch._decode import records_at
from asyncfetch._model import Part
from asyncfetch._threads import in_thread
from asyncfetch.errors import ConfigurationError, ResponseError
from asyncfetch.services._calls import call, settled
from asyncfetch.services._scope import OfDataset, Record
from asyncfetch.services._table import close, members, plain

_TIMES = ("onset", "duration")


class Predictors(OfDataset):
    """Public predictors; collections of one's own are uploaded here."""

    async def create_collection(
        self,
        collection_name: str,
        dataset_id: int,
        runs: Sequence[Sequence[int]],
        event_files: Sequence[str | Path],
        descriptions: Mapping[str, str] | None = None,
    ) -> Record:
        """Upload events files; each column but onset and duration is a predictor.

        Files are read and runs looked up before anything is sent.

        Parameters
        ----------
        runs
            For each file the ids of the runs that it belongs to.
        event_files
            Tab-separated, with columns ``onset`` and ``duration`` in seconds and the
            same other columns in all.
        descriptions
            What columns mean, by their names.

        Returns
        -------
        dict
            The collection as it begins, ``PENDING``: :meth:`wait_collection` waits.

        Raises
        ------
        ConfigurationError
            A file or a run is not what the service takes; the message says which.
        """
        paths = [Path(one) for one in members(event_files)]
        ids = _runs_of_files(runs, paths)
        if not collection_name.strip() or "/" in collection_name:
            raise ConfigurationError(
                f"expected a collection_name without a slash, got {collection_name!r}"
            )
        columns = await in_thread(lambda: _checked(paths))
        about = _descriptions(descriptions, columns)
        await self._check_runs(dataset_id, ids)
        form = [
            Part(name="collection_name", value=collection_name),
            Part(name="dataset_id", value=str(dataset_id)),
            *(Part(name="runs", value=",".join(map(str, some))) for some in ids),
            *(Part(name="event_files", value=path) for path in paths),
        ]
        if about:
            form.append(Part(name="descriptions", value=json.dumps(about)))
        found: Record = await call(
            self.client, "/predictors/collection", method="POST", body=tuple(form)
        )
        return found

    async def get_collection(self, collection_id: int) -> Record:
        """A collection: its status, and its predictors once they are there."""
        found: Record = await call(
            self.client, f"/predictors/collection/{int(collection_id)}"
        )
        return found

    async def wait_collection(
        self,
        collection_id: int,
        timeout: float = 120.0,  # noqa: ASYNC109
    ) -> Record:
        """The collection, once its predictors are there; that takes about a second.

        Raises
        ------
        ResponseError
            It has failed, or is stuck: for some files the service leaves it pending for
            ever and only notes why.
        TimeoutError
            It goes on after *timeout* seconds.
        """
        found: Record = await settled(
            lambda: self.get_collection(collection_id),
            lambda one: one["status"] != "PENDING" or bool(one["traceback"]),
            timeout=timeout,
            what=f"collection {collection_id}",
        )
        if found["status"] != "OK":
            why = " ".join(str(found["traceback"] or "no reason given").split())
            raise ResponseError(
                f"expected collection {collection_id} to become predictors, it is "
                f"{found['status']}: {why}",
                status=200,
            )
        return found

    async def _check_runs(self, dataset_id: int, ids: list[list[int]]) -> None:
        listed = await call(self.client, "/runs", query={"active_only": False})
        of_run = {one["id"]: one["dataset_id"] for one in records_at(listed, ())}
        flat = [run for some in ids for run in some]
        if unknown := [run for run in flat if run not in of_run]:
            raise ConfigurationError(
                f"expected runs of data set {dataset_id}, there is no run "
                f"{', '.join(map(str, unknown))}"
            )
        strange = [run for run in flat if of_run[run] != dataset_id]
        if strange:
            where = ", ".join(str(one) for one in sorted({of_run[r] for r in strange}))
            raise ConfigurationError(
                f"expected runs of data set {dataset_id}, runs "
                f"{', '.join(map(str, strange))} belong to data set {where}: pass "
                f"dataset_id={where}, or runs of {dataset_id}"
            )


def _runs_of_files(runs: Any, paths: list[Path]) -> list[list[int]]:
    ids = [[plain(one) for one in members(some)] for some in members(runs)]
    if len(ids) != len(paths) or not paths:
        raise ConfigurationError(
            f"expected a list of runs for each event file, got {len(ids)} lists and "
            f"{len(paths)} files"
        )
    for path, some in zip(paths, ids, strict=True):
        if not some or any(type(one) is not int for one in some):
            raise ConfigurationError(f"expected ids of runs for {path}, got {some}")
    counts = Counter(run for some in ids for run in some)
    if several := [run for run, count in counts.items() if count > 1]:
        raise ConfigurationError(
            f"expected each run with one event file, runs "
            f"{', '.join(map(str, several))} have several"
        )
    return ids


def _descriptions(given: Any, columns: list[str]) -> Mapping[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"expected descriptions as one dict by column, got {type(given).__name__}"
        )
    for name in given:
        if name not in columns:
            raise ConfigurationError(
                f"descriptions name a column {name!r} that no event file has"
                f"{close(str(name), columns)}; they have {', '.join(columns)}"
            )
    return given


def _checked(paths: list[Path]) -> list[str]:
    """The columns of the predictors in all the files. Blocks."""
    heads = [_head(path) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if set(head) != set(heads[0]):
            odd = ", ".join(sorted(set(head) ^ set(heads[0])))
            raise ConfigurationError(
                f"expected the same columns in all event files, {paths[0]} and {path} "
                f"differ in {odd}"
            )
    return [name for name in heads[0] if name not in _TIMES]


def _head(path: Path) -> list[str]:
    """The header of an events file, whose rows are checked against it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t")
            head = next(rows, [])
            if missing := [name for name in _TIMES if name not in head]:
                raise ConfigurationError(
                    f"expected columns onset and duration, separated by tabs, {path} "
                    f"has no {' and no '.join(missing)}"
                )
            if len(set(head)) != len(head) or not all(head) or len(head) < 3:
                raise ConfigurationError(
                    f"expected onset, duration and other columns, each with a name of "
                    f"its own, {path} has {', '.join(head)}"
                )
            count = _check_rows(path, head, rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(
            f"expected a text file of events, {path}: {error}"
        ) from error
    if not count:
        raise ConfigurationError(f"expected events, {path} has none")
    return head


def _check_rows(path: Path, head: list[str], rows: Any) -> int:
    places = {name: head.index(name) for name in _TIMES}
    count = 0
    for row in rows:
        if not row:
            continue
        count += 1
        if len(row) != len(head):
            raise ConfigurationError(
                f"expected {len(head)} columns, got {len(row)} - at {path}, line "
                f"{rows.line_num}"
            )
        for name, place in places.items():
            if not _is_time(row[place], may_lack=name == "duration"):
                raise ConfigurationError(
                    f"expected seconds as {name}, got {row[place]!r} - at {path}, line "
                    f"{rows.line_num}"
                )
    return count


def _is_time(text: str, *, may_lack: bool) -> bool:
    if may_lack and text.strip() in ("", "n/a"):
        return True
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False

"""Neuroscout: predictor events per run, and what they hang on.

The service has no pagination: every list is one body. Names are resolved in at most two
round trips before the first event is asked for: data sets and predictors side by side,
then runs. Predictor events are asked per predictor and batch of runs, ids ascending,
because the server keeps answers by the text of their query.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asyncfetch import _engine
from asyncfetch._decode import (
    EXTRA,
    JSON,
    ArrayDecoder,
    arrays,
    batch_of,
    document,
    records_at,
    repeated,
)
from asyncfetch._exchange import Exchange
from asyncfetch._model import (
    Block,
    Decoded,
    Enumeration,
    Item,
    Json,
    Limits,
    Request,
    Response,
    Source,
)
from asyncfetch._threads import in_thread
from asyncfetch.errors import ConfigurationError, DecodeError, NotFound
from asyncfetch.services._analyses import Analyses, optional
from asyncfetch.services._calls import call, login
from asyncfetch.services._collections import Predictors
from asyncfetch.services._design import (
    NEEDED,
    RunInfo,
    collection_of,
    numeric,
    rescaled,
    runs_by_id,
    wide,
    write_events,
)
from asyncfetch.services._images import fetch, installed, paths_in
from asyncfetch.services._paging import segment
from asyncfetch.services._scope import (
    BY_ID,
    DATASETS,
    ENTITIES,
    MAX_TARGET,
    SCOPE,
    OfDataset,
    Record,
    Resolving,
    Scope,
    as_text,
    asked,
    asked_list,
    fits_a_query,
    fitting,
    in_words,
    is_scoped,
    newest_of,
    request_for,
    runs_requests,
    scope_of,
    wanted_runs,
)
from asyncfetch.services._table import (
    Client,
    Description,
    Filter,
    Table,
    close,
    column,
    members,
    to_pandas,
)

# A few ten thousand rows an answer: each costs the server 20 to 40 µs a row on one of
# two workers, and beyond that a larger answer is no faster.
ROWS_PER_ITEM = 50_000
# Predictors sampled once a second are the densest regular ones that were seen; speech
# has 0.4 events a second. The number of events is not known before they are asked for.
EVENTS_PER_SECOND = 1.0
# Seconds assumed for the few runs without a duration.
RUN_DURATION = 1500.0
# An item that comes to more is asked for again in parts: its rows are put in order, and
# so have to be in memory together.
MOST_ROWS = 5 * ROWS_PER_ITEM
ITEMS_PER_BLOCK = 500

# Columns come in the order in which the service writes its keys, which is that of the
# alphabet, and so that of the existing client's DataFrames; what it only writes with
# one record, by id, comes after them.
_DATASETS = pa.schema(
    [
        column("active", pa.bool_()),
        column("dataset_address", pa.string()),
        column("description", JSON, "BIDS dataset_description"),
        column("id", pa.int64(), nullable=False),
        column("long_description", pa.string()),
        column("mean_age", pa.float64(), unit="year"),
        column("mimetypes", pa.list_(pa.string())),
        column("name", pa.string(), "the service's short name"),
        column("percent_female", pa.float64(), "as a fraction"),
        column("preproc_address", pa.string(), "DataLad or git address"),
        column("summary", pa.string()),
        column("tasks", JSON),
        column("url", pa.string()),
        column("runs", pa.list_(pa.int64()), "run ids, with one data set by id only"),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_TASKS = pa.schema(
    [
        column("TR", pa.float64(), unit="s"),
        column("avg_run_duration", pa.float64(), unit="s"),
        column("dataset_id", pa.int64()),
        column("id", pa.int64(), nullable=False),
        column("n_runs_subject", pa.int64()),
        column("n_subjects", pa.int64()),
        column("name", pa.string(), "unique within a data set"),
        column("summary", pa.string()),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_RUNS = pa.schema(
    [
        column("acquisition", pa.string()),
        column("dataset_id", pa.int64()),
        column("duration", pa.float64(), unit="s"),
        column("id", pa.int64(), nullable=False),
        column("number", pa.int64(), "the BIDS run"),
        column("session", pa.string()),
        column("subject", pa.string()),
        column("task", pa.int64(), "task id"),
        column("task_name", pa.string()),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_PREDICTORS = pa.schema(
    [
        column("dataset_id", pa.int64()),
        column("description", pa.string()),
        column("extracted_feature", JSON, "null unless extracted from a stimulus"),
        column("id", pa.int64(), nullable=False),
        column("max", pa.float64()),
        column("mean", pa.float64()),
        column("min", pa.float64()),
        column("name", pa.string(), "not unique"),
        column("num_na", pa.int64()),
        column("private", pa.bool_()),
        column("source", pa.string(), "extracted, fmriprep, events, Collection: …"),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_ANALYSES = pa.schema(
    [
        column("dataset_id", pa.int64()),
        column("description", pa.string()),
        column("hash_id", pa.string(), nullable=False),
        column("modified_at", pa.string(), "as sent: cut to 15 characters, UTC"),
        column("name", pa.string()),
        column("nv_count", pa.int64(), "uploads to NeuroVault"),
        column("status", pa.string(), "DRAFT, PENDING, PASSED or FAILED"),
        column("user", pa.string()),
        # With one analysis by its id only:
        column("created_at", pa.string(), "as sent: cut to 15 characters, UTC"),
        column("locked", pa.bool_()),
        column("model", JSON, "BIDS Stats Model"),
        column("parent_id", pa.string(), "what it was cloned from"),
        column("predictions", pa.string()),
        column("predictors", pa.list_(pa.int64()), "predictor ids"),
        column("private", pa.bool_()),
        column("runs", pa.list_(pa.int64()), "run ids"),
        column("submitted_at", pa.string(), "as sent: cut to 15 characters, UTC"),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_USER = pa.schema(
    [
        column("email", pa.string()),
        column("first_login", JSON),
        column("institution", pa.string()),
        column("name", pa.string()),
        column("orcid", pa.string()),
        column("personal_site", pa.string()),
        column("picture", pa.string()),
        column("public_email", JSON),
        column("twitter_handle", pa.string()),
        column("user_name", pa.string()),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_EVENTS = pa.schema(
    [
        column("duration", pa.float64(), unit="s"),
        column("onset", pa.float64(), "since the run's start", unit="s"),
        column("predictor_id", pa.int64(), nullable=False),
        column("run_id", pa.int64(), nullable=False),
        column("value", pa.string(), "as sent: a number in its own text, n/a, a word"),
        column("predictor_name", pa.string()),
        column("subject", pa.string()),
        column("session", pa.string()),
        column("number", pa.int32(), "the BIDS run"),
        column("acquisition", pa.string()),
        column("amplitude", pa.float64(), "value where it is a finite number"),
        column("dataset_name", pa.string()),
        column("task_name", pa.string()),
        column("stimulus_id", pa.int64()),
    ]
)

_TIMED_EVENTS = pa.schema(
    [
        *_EVENTS,
        column("stimulus_onset", pa.float64(), "since the run's start", unit="s"),
        column("stimulus_duration", pa.float64(), unit="s"),
        column("stimulus_path", pa.string(), "name of the stimulus' file"),
    ]
)

_ACTIVE = Filter(name="active_only", kind=bool, doc="leave out inactive ones (true)")


# --- tables of one request each -------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """A table whose rows come as one list, or as one record by id."""

    schema: pa.Schema
    path: str
    filters: Mapping[str, Any]
    row_key: str | None = "id"

    def enumerate(self, _cursor: Json) -> Enumeration:
        """One item: the list that the filters name."""
        yield Block((self._item(request_for(self.path, **self.filters)),))

    def _item(self, request: Request, **context: Any) -> Item:
        return Item(key=request.target, request=request, context=context)

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows that match, in the server's order."""
        body = document(chunks)
        is_one = item.context.get("one")
        records = [body] if is_one else self.matching(records_at(body, ()), item)
        if as_records:
            return Decoded(records=records)
        batch, codes = batch_of(records, self.schema)
        return Decoded(batches=(batch,), diagnostics=codes)

    def matching(self, records: list[Record], _item: Item) -> list[Record]:
        """Those of the server's records that the filters mean: here all of them."""
        return records

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """A list is whole or fails."""
        return None


class _OfDatasets(_Listing):
    """Tasks or analyses, of data sets that may be given by name."""

    __slots__ = ()

    def enumerate(self, _cursor: Json) -> Enumeration:
        """One item, or one a data set where the service takes only one."""
        scope = yield from scope_of(self.filters)
        names = self.filters.get("name")
        query = {} if names is None or not fits_a_query(names) else {"name": names}
        keep = {"name": names} if isinstance(names, list) else {}
        ids = scope.dataset_ids
        if ids is None:
            requests = [request_for(self.path, **query)]
        elif self.path == "/analyses":
            requests = [request_for(self.path, dataset_id=ids, **query)]
        else:
            requests = [request_for(self.path, dataset_id=one, **query) for one in ids]
        yield Block(tuple(self._item(request, keep=keep) for request in requests))

    def matching(self, records: list[Record], item: Item) -> list[Record]:
        """Those of the wanted names."""
        return _named(records, item)


def _named(records: list[Record], item: Item) -> list[Record]:
    names = item.context.get("keep", {}).get("name")
    if names is None:
        return records
    return [one for one in records if one["name"] in names]


class _Profile(_Listing):
    """The user who is logged in: one record."""

    __slots__ = ()

    def enumerate(self, _cursor: Json) -> Enumeration:
        """One item."""
        yield Block((self._item(request_for(self.path), one=True),))


class _Runs(_Listing):
    """Runs, with names resolved and the filters that the server lacks applied here."""

    __slots__ = ()

    def enumerate(self, _cursor: Json) -> Enumeration:
        """One item a data set that is named, or one for all."""
        scope = yield from scope_of(self.filters)
        keep: dict[str, Any] = {
            name: self.filters[name]
            for name in ("run_id", "acquisition", "subject", "session", "number")
            if name in self.filters
        }
        if scope.dataset_ids is not None:
            keep["dataset_id"] = scope.dataset_ids
        yield Block(
            tuple(
                self._item(request, keep=keep, tasks=scope.tasks)
                for request in runs_requests(scope, self.filters)
            )
        )

    def matching(self, records: list[Record], item: Item) -> list[Record]:
        """The runs that match filters which the server lacks, by id."""
        keep = item.context["keep"]
        scope = Scope.find([], {k: keep[k] for k in ("dataset_id",) if k in keep})
        scope.tasks = item.context["tasks"]
        return wanted_runs(records, scope, keep)


class _Predictors(_Listing):
    """Predictors, by name or of the runs that the filters name.

    The service's ``newest=true`` looks at names alone, in whatever data set, and before
    it looks at what is private: it may answer with another data set's predictor, or
    hide a public one behind somebody's upload. So, unless ``newest`` is said, all are
    asked for, and of each name in each data set the one with the highest id is kept.
    """

    __slots__ = ()

    def enumerate(self, _cursor: Json) -> Enumeration:
        """One item a task, or for chosen runs one a batch of ids that fits a URL."""
        filters = self.filters
        query = {k: filters[k] for k in ("active_only",) if k in filters}
        query["newest"] = filters.get("newest", False)
        names = filters.get("name")
        keep: dict[str, Any] = {} if names is None else {"name": names}
        keep["newest"] = "newest" not in filters
        if not is_scoped(filters):
            if names is not None and fits_a_query(names):
                query["name"] = names
            yield Block((self._item(request_for("/predictors", **query), keep=keep),))
            return
        scope = yield from scope_of(filters)
        found = yield from asked_list(*runs_requests(scope, filters))
        runs = wanted_runs(found, scope, filters)
        if any(name in filters for name in ("run_id", *(f.name for f in ENTITIES))):
            requests = [
                request_for("/predictors", run_id=batch, **query)
                for batch in fitting([run["id"] for run in runs], 200)
            ]
        else:  # whole tasks: the same rows by a short URL
            tasks = sorted({run["task"] for run in runs})
            requests = [
                request_for(f"/tasks/{task}/predictors", **query) for task in tasks
            ]
        yield Block(tuple(self._item(request, keep=keep) for request in requests))

    def matching(self, records: list[Record], item: Item) -> list[Record]:
        """The predictors of the wanted names."""
        found = _named(records, item)
        return newest_of(found) if item.context["keep"]["newest"] else found


# --- predictor events -----------------------------------------------------------------


class _Event(msgspec.Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    """One event as the server sends it, and in its order: that is read quicker."""

    duration: float | None = None
    onset: float
    predictor_id: int
    run_id: int
    stimulus_id: int | None = None
    value: str


class _AnyEvent(_Event, gc=False, forbid_unknown_fields=False, kw_only=True):
    """The same, with fields that this version does not know left aside."""


class _TimedEvent(_Event, gc=False, forbid_unknown_fields=True, kw_only=True):
    """One event as the server sends it with ``stimulus_timing``."""

    stimulus_onset: float | None = None
    stimulus_duration: float | None = None
    stimulus_path: str | None = None


class _AnyTimedEvent(_TimedEvent, gc=False, forbid_unknown_fields=False, kw_only=True):
    """The same, with fields that this version does not know left aside."""


def _decoder_of(strict: type, tolerant: type) -> ArrayDecoder[Any]:
    return ArrayDecoder(
        msgspec.json.Decoder(list[strict]),  # type: ignore[valid-type]  # made below
        msgspec.json.Decoder(list[tolerant]),  # type: ignore[valid-type]
    )


_EVENTS_OF = _decoder_of(_Event, _AnyEvent)
_TIMED_EVENTS_OF = _decoder_of(_TimedEvent, _AnyTimedEvent)

# Text that is a number as people write it: no hexadecimal, no "1_000", no inf.
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pick:
    """A predictor to ask for, in the runs of some tasks (None: of all)."""

    id: int
    name: str
    tasks: list[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    """Events by predictor and batch of runs."""

    filters: Mapping[str, Any]
    has_user: bool = False
    """Whether somebody is logged in, who may have predictors of his own."""
    row_key: str | None = None

    @property
    def schema(self) -> pa.Schema:
        """With the columns of the stimulus where they were asked for."""
        return _TIMED_EVENTS if self._is_timed else _EVENTS

    @property
    def _is_timed(self) -> bool:
        return bool(self.filters.get("stimulus_timing"))

    def enumerate(self, cursor: Json) -> Enumeration:
        """Resolve names, then one item per predictor and batch of runs.

        The cursor keeps what was resolved, so that going on asks nothing again.
        """
        if cursor is None:
            state = yield from self._resolve()
        else:
            assert isinstance(cursor, Mapping)
            state = dict(cursor)
        items = list(_event_items(state, timed=self._is_timed))
        first = int(state["next"])
        if not items[first:]:
            yield Block(())
        for start in range(first, len(items), ITEMS_PER_BLOCK):
            end = start + ITEMS_PER_BLOCK
            is_last = end >= len(items)
            yield Block(
                tuple(items[start:end]), None if is_last else {**state, "next": end}
            )

    def _resolve(self) -> Resolving:
        filters = self.filters
        if not is_scoped(filters) and not (
            {"predictor_id", "predictor_name"} & set(filters)
        ):
            raise ConfigurationError(
                "predictor-events needs at least one of dataset_name, dataset_id, "
                "task_id, run_id, predictor_name, predictor_id"
            )
        datasets, candidates, runs = yield from self._first_round()
        scope = Scope.find(datasets, filters)
        named = {run["dataset_id"] for run in runs or ()} | set(scope.dataset_ids or ())
        if hidden := named - {dataset["id"] for dataset in datasets}:
            # Not among the active ones: served all the same, by its id.
            datasets += yield from asked(
                *(request_for(f"/datasets/{one}") for one in sorted(hidden))
            )
        if named:
            scope.datasets = [one for one in datasets if one["id"] in named]
        else:
            scope.datasets = _datasets_of(candidates, datasets, filters)
        doubtful = self._tasks_in_doubt(candidates, scope)
        listing = {task: self._task_request(task, scope) for task in doubtful}
        asking = runs_requests(scope, filters) if runs is None else []
        # Side by side: what is in doubt is known before the runs are.
        answers = yield from asked(*asking, *listing.values())
        for answer in answers[: len(asking)]:
            runs = [*(runs or ()), *records_at(answer, ())]
        runs = wanted_runs(runs or (), scope, filters)
        if not runs:
            raise NotFound(f"neuroscout has no run with {in_words(filters)}")
        lists = dict(zip(listing, answers[len(asking) :], strict=True))
        picks = yield from self._picks(candidates, runs, scope, lists)
        names = {d["id"]: d["name"] for d in datasets}
        return {
            "next": 0,
            "picks": [[pick.id, pick.name, pick.tasks] for pick in picks],
            "runs": [
                [
                    run["id"],
                    run["subject"],
                    run["session"],
                    run["number"],
                    run["acquisition"],
                    run["task"],
                    run["task_name"],
                    names.get(run["dataset_id"]),
                    run["duration"],
                ]
                for run in runs
            ],
        }

    def _first_round(self) -> Resolving:
        """Data sets, candidate predictors and, when only ids are given, runs."""
        filters = self.filters
        wanted = [request_for("/datasets")]
        names, ids = filters.get("predictor_name"), filters.get("predictor_id")
        by_name = ids is None and names is not None and fits_a_query(names)
        has_many = ids is not None and len(ids) > BY_ID
        if by_name:
            # newest=false: otherwise somebody's private upload of the same name would
            # hide the public predictor, or another data set's would take its place.
            wanted.append(request_for("/predictors", name=names, newest=False))
        elif has_many:
            wanted.append(request_for("/predictors", newest=False, active_only=False))
        elif ids is not None:
            wanted += [request_for(f"/predictors/{one}") for one in ids]
        run_ids = filters.get("run_id", [])
        only_ids = bool(run_ids) and not (
            {"dataset_id", "dataset_name", "task_id", "task_name"} & set(filters)
        )
        if only_ids:
            if len(run_ids) <= BY_ID:
                wanted += [request_for(f"/runs/{one}") for one in run_ids]
            else:
                wanted.append(request_for("/runs", active_only=False))
        answers = yield from asked(*wanted)
        datasets = records_at(answers.pop(0), ())
        candidates: list[Record] | None = None
        if by_name or has_many:
            candidates = records_at(answers.pop(0), ())
        elif ids is not None:
            candidates = [answers.pop(0) for _ in ids]
        if has_many:
            assert candidates is not None
            assert ids is not None
            candidates = [one for one in candidates if one["id"] in ids]
            # Private ones are served by their id alone.
            unlisted = sorted(set(ids) - {one["id"] for one in candidates})
            candidates += yield from asked(
                *(request_for(f"/predictors/{one}") for one in unlisted)
            )
        if ids is not None and names is not None:
            assert candidates is not None
            candidates = [one for one in candidates if one["name"] in names]
        runs: list[Record] | None = None
        if only_ids and len(run_ids) <= BY_ID:
            runs = answers
        elif only_ids:
            runs = records_at(answers.pop(0), ())
            runs = [run for run in runs if run["id"] in run_ids]
        return datasets, candidates, runs

    def _tasks_in_doubt(
        self, candidates: list[Record] | None, scope: Scope
    ) -> list[int]:
        """Tasks whose own lists are needed, as far as that is known by now.

        Where all predictors are wanted, or several bear one name, or none bears one.
        """
        if "predictor_id" in self.filters or not scope.datasets:
            return []
        wanted = {
            (dataset["id"], name)
            for dataset in scope.datasets
            for name in self.filters.get("predictor_name", ())
        }
        found = [(c["dataset_id"], c["name"]) for c in candidates or ()]
        if wanted and all(found.count(key) == 1 for key in wanted):
            return []
        return sorted(
            task["id"]
            for dataset in scope.datasets
            for task in dataset.get("tasks") or ()
            if scope.tasks is None or task["id"] in scope.tasks
        )

    def _task_request(self, task: int, scope: Scope) -> Request:
        everything = {} if scope.is_active else {"active_only": False}
        return request_for(f"/tasks/{task}/predictors", newest=False, **everything)

    def _picks(
        self,
        candidates: list[Record] | None,
        runs: list[Record],
        scope: Scope,
        lists: dict[int, Any],
    ) -> Resolving:
        """The predictors to ask for, by id."""
        filters = self.filters
        tasks_of: dict[int, set[int]] = {}
        for run in runs:
            tasks_of.setdefault(run["dataset_id"], set()).add(run["task"])
        if "predictor_id" in filters:
            assert candidates is not None
            for one in candidates:
                if one["dataset_id"] not in tasks_of:
                    raise ConfigurationError(
                        f"predictor {one['id']} ({one['name']}) belongs to data set "
                        f"{one['dataset_id']}, and the runs asked for to "
                        f"{as_text(sorted(tasks_of))}"
                    )
            picks = [_pick(one, tasks_of) for one in candidates]
            return sorted(picks, key=attrgetter("id"))
        names = filters.get("predictor_name")
        wanted = {(one, name) for one in tasks_of for name in names or ()}
        candidates = [c for c in candidates or () if c["dataset_id"] in tasks_of]
        found = [(c["dataset_id"], c["name"]) for c in candidates]
        if found and len(found) == len(set(found)) and set(found) == wanted:
            picks = [_pick(one, tasks_of) for one in candidates]
            return sorted(picks, key=attrgetter("id"))
        return (yield from self._picks_of_tasks(wanted, tasks_of, scope, lists))

    def _picks_of_tasks(
        self,
        wanted: set[tuple[int, str]],
        tasks_of: Mapping[int, set[int]],
        scope: Scope,
        lists: dict[int, Any],
    ) -> Resolving:
        """The predictors that the tasks' own lists name, by id."""
        names = self.filters.get("predictor_name")
        # All predictors, or several of one name, or a name that is not there: only the
        # tasks' own lists say which predictor belongs to which runs.
        of_task = {task: one for one, tasks in tasks_of.items() for task in tasks}
        unasked = [task for task in sorted(of_task) if task not in lists]
        answers = yield from asked(*(self._task_request(one, scope) for one in unasked))
        lists |= dict(zip(unasked, answers, strict=True))
        picked: dict[int, _Pick] = {}
        known: set[tuple[int, str]] = set()
        for task in sorted(of_task):
            public = records_at(lists[task], ())
            known |= {(of_task[task], one["name"]) for one in public}
            for one in newest_of(public):
                if names is None or one["name"] in names:
                    pick = picked.setdefault(
                        one["id"], _Pick(id=one["id"], name=one["name"], tasks=[])
                    )
                    assert pick.tasks is not None
                    pick.tasks.append(task)
        missing = wanted - known
        if missing and self.has_user:
            own = yield from self._own(sorted({name for _, name in missing}))
            for one in newest_of(own):
                if (key := (one["dataset_id"], one["name"])) in missing:
                    missing.discard(key)
                    picked[one["id"]] = _pick(one, tasks_of)
        _refuse_unknown(missing, known, scope)
        return [picked[one_id] for one_id in sorted(picked)]

    def _own(self, names: list[str]) -> Resolving:
        """Private predictors of the user who is logged in, by name."""
        found = yield from asked_list(request_for("/user/predictors", newest=False))
        return [one for one in found if one["name"] in names]

    def decode(
        self,
        item: Item,
        chunks: Iterator[bytes],
        _head: Response,
        /,
        *,
        as_records: bool,
    ) -> Decoded:
        """Rows by predictor, run and onset."""
        if as_records:
            events = records_at(document(chunks), ())
            return Decoded(records=sorted(events, key=_event_order))
        is_one_run = len(item.context["runs"]) == 1
        columns = _event_columns(
            chunks,
            item.context["predictor"][0],
            timed=self._is_timed,
            most=inf if is_one_run else MOST_ROWS,
        )
        if isinstance(columns, int):
            parts = _parts_of(item, columns, timed=self._is_timed)
            return Decoded(follow_up=parts, is_split=True)
        batch, silent = _event_batch(columns, item.context)
        return Decoded(
            batches=(batch,),
            diagnostics=("unknown-fields",) if columns.has_unknown else (),
            detail={"runs_without_events": silent} if silent else {},
        )

    def shortfall(
        self, _rows: int, _details: Iterable[Mapping[str, Any]]
    ) -> str | None:
        """How many events there are is known from the events alone."""
        return None


def _event_order(event: Record) -> tuple[int, int, float]:
    return event["predictor_id"], event["run_id"], event["onset"]


def _pick(one: Record, tasks_of: Mapping[int, set[int]]) -> _Pick:
    """*one* in all runs of its data set."""
    tasks = None if len(tasks_of) == 1 else sorted(tasks_of[one["dataset_id"]])
    return _Pick(id=one["id"], name=one["name"], tasks=tasks)


def _refuse_unknown(
    missing: set[tuple[int, str]], known: set[tuple[int, str]], scope: Scope
) -> None:
    if not missing:
        return
    titles = {one["id"]: one["name"] for one in scope.datasets or ()}
    says = []
    for dataset in sorted({dataset for dataset, _ in missing}):
        there = {name for one, name in known if one == dataset}
        hints = ", ".join(
            f"{name!r}{close(name, there)}"
            for one, name in sorted(missing)
            if one == dataset
        )
        where = titles.get(dataset, f"data set {dataset}")
        says.append(f"{where} has no predictor {hints}")
    raise NotFound("; ".join(says))


def _datasets_of(
    candidates: list[Record] | None,
    datasets: list[Record],
    filters: Mapping[str, Any],
) -> list[Record] | None:
    """The one data set that predictors point to, when none was named."""
    if "task_id" in filters or "task_name" in filters:
        return None
    found = {one["dataset_id"] for one in candidates or ()}
    if len(found) > 1:
        names = sorted(d["name"] for d in datasets if d["id"] in found)
        raise ConfigurationError(
            f"the predictors asked for belong to {len(found)} data sets "
            f"({', '.join(names)}): pass dataset_name"
        )
    if not found:
        wanted = filters.get("predictor_name") or filters.get("predictor_id")
        raise NotFound(
            f"neuroscout has no public predictor {wanted}: pass dataset_name"
        )
    only = found.pop()
    return [next((d for d in datasets if d["id"] == only), {"id": only, "name": None})]


def _event_items(state: Mapping[str, Any], *, timed: bool = False) -> Iterator[Item]:
    for predictor, name, tasks in state["picks"]:
        runs = [run for run in state["runs"] if tasks is None or run[5] in tasks]
        yield from _items_of([predictor, name], runs, EVENTS_PER_SECOND, timed=timed)


def _items_of(
    predictor: Sequence[Any], runs: Sequence[Any], density: float, *, timed: bool
) -> Iterator[Item]:
    """The events of a predictor, of which about *density* a second are expected."""
    more = {"stimulus_timing": True} if timed else {}
    for batch in _run_batches(runs, density):
        ids = [run[0] for run in batch]
        yield Item(
            key=f"predictor={predictor[0]}/runs={ids[0]}-{ids[-1]}",
            request=request_for(
                "/predictor-events", predictor_id=predictor[0], run_id=ids, **more
            ),
            context={"predictor": list(predictor), "runs": batch},
        )


def _parts_of(item: Item, rows: int, *, timed: bool) -> tuple[Item, ...]:
    """Items in place of one that came to so many *rows*."""
    runs = item.context["runs"]
    density = rows / sum(map(_seconds, runs))
    return tuple(_items_of(item.context["predictor"], runs, density, timed=timed))


def _seconds(run: Sequence[Any]) -> float:
    """How long *run* took, or about as long."""
    return float(run[8] or RUN_DURATION)


def _run_batches(runs: Sequence[Any], density: float) -> Iterator[list[Any]]:
    """Batches of runs that fit a URL and come to about :data:`ROWS_PER_ITEM` rows."""
    batch: list[Any] = []
    room, rows = MAX_TARGET - 100, 0.0
    for run in runs:
        width = len(str(run[0])) + 1
        more = _seconds(run) * density
        if batch and (width > room or rows + more > ROWS_PER_ITEM):
            yield batch
            batch, room, rows = [], MAX_TARGET - 100, 0.0
        batch.append(run)
        room -= width
        rows += more
    if batch:
        yield batch


@dataclass(slots=True)
class _Columns:
    """The columns that the server sends, of one item."""

    onset: np.ndarray
    duration: pa.Array
    run_id: np.ndarray
    value: pa.Array
    stimulus: list[pa.Array]
    """Its id, and with timing its onset, duration and path."""
    has_unknown: bool
    """Whether there were fields that this version does not know."""


_STIMULUS = {
    "stimulus_id": pa.int64(),
    "stimulus_onset": pa.float64(),
    "stimulus_duration": pa.float64(),
    "stimulus_path": pa.string(),
}


def _event_columns(
    chunks: Iterable[bytes], predictor: int, *, timed: bool, most: float
) -> _Columns | int:
    """The columns of an answer, or only the number of its rows if that is too many.

    Raises
    ------
    DecodeError
        An event is of another predictor.
    """
    has_unknown = False
    count = 0
    # They grow in place, and nothing reads a list of numbers in less time than struct.
    onset, run = bytearray(), bytearray()
    duration: list[pa.Array] = []
    value: list[pa.Array] = []
    names = list(_STIMULUS) if timed else ["stimulus_id"]
    stimulus: dict[str, list[pa.Array]] = {name: [] for name in names}
    for events in arrays(chunks, _TIMED_EVENTS_OF if timed else _EVENTS_OF):
        rows = len(events)
        count += rows
        if count > most:  # they are only counted: the answer must be whole
            continue
        has_unknown |= bool(events) and type(events[0]) in (_AnyEvent, _AnyTimedEvent)
        # A comprehension reads an attribute in less time than map() does.
        ids = [event.predictor_id for event in events]
        if ids.count(predictor) < rows:
            wrong = next(n for n, one in enumerate(ids) if one != predictor)
            raise _not_asked("predictor_id", ids[wrong], count - rows + wrong)
        onset += struct.pack(f"{rows}d", *[event.onset for event in events])
        runs = [event.run_id for event in events]
        try:
            run += struct.pack(f"{rows}q", *runs)
        except struct.error:  # no such run was asked for
            wrong = next(n for n, one in enumerate(runs) if one.bit_length() > 63)
            raise _not_asked("run_id", runs[wrong], count - rows + wrong) from None
        value.append(pa.array([event.value for event in events], pa.string()))
        duration.append(pa.array([event.duration for event in events], pa.float64()))
        sent = {"stimulus_id": [event.stimulus_id for event in events]}
        if timed:
            sent |= {name: list(map(attrgetter(name), events)) for name in names[1:]}
        for name, values in sent.items():
            is_there = values.count(None) < rows  # an id nearly never
            kind = _STIMULUS[name] if is_there else pa.null()
            stimulus[name].append(pa.array(values, kind))
    if count > most:
        return count
    return _Columns(
        onset=np.frombuffer(onset, np.float64),
        duration=_joined(duration, pa.float64()),
        run_id=np.frombuffer(run, np.int64),
        value=_joined(value, pa.string()),
        stimulus=[_joined(parts, _STIMULUS[name]) for name, parts in stimulus.items()],
        has_unknown=has_unknown,
    )


def _joined(parts: list[pa.Array], kind: pa.DataType) -> pa.Array:
    """One array of *parts*, which are let go: the next may take their memory."""
    if any(part.type == kind for part in parts):
        joined = pa.concat_arrays([part.cast(kind) for part in parts])
    else:
        joined = pa.nulls(sum(map(len, parts)), kind)
    parts.clear()
    return joined


def _not_asked(what: str, got: int, place: int) -> DecodeError:
    path = f"$[{place}].{what}"
    return DecodeError(
        f"expected a {what} that was asked for, got {got} - at {path}",
        path=path,
        code="not-asked",
    )


def _event_batch(
    columns: _Columns, context: Mapping[str, Any]
) -> tuple[pa.RecordBatch, list[int]]:
    """The batch in row order, and the runs that were asked for and have no events."""
    predictor, name = context["predictor"]
    runs = context["runs"]
    ids = pa.array([run[0] for run in runs], pa.int64())  # ascending
    found = pc.index_in(pa.array(columns.run_id), value_set=ids)
    if found.null_count:
        wrong = int(np.flatnonzero(found.is_null())[0])
        raise _not_asked("run_id", columns.run_id[wrong], wrong)
    place = found.to_numpy()
    # Onset first, then run by a stable sort of small integers, which is a radix sort.
    order = np.argsort(columns.onset)
    order = order[np.argsort(place[order].astype(np.uint16), kind="stable")]
    place = place[order]
    rows = pa.array(order)
    value = columns.value.take(rows)
    count = len(order)
    text = _PerRun(place, runs)
    batch = pa.RecordBatch.from_arrays(
        [
            columns.duration.take(rows),
            pa.array(columns.onset[order]),
            pa.array(np.full(count, predictor, np.int64)),
            pa.array(columns.run_id[order]),
            value,
            repeated([name], [count]),
            text.column(1),
            text.column(2),
            pa.array([run[3] for run in runs], pa.int32()).take(pa.array(place)),
            text.column(4),
            amplitudes(value),
            text.column(7),
            text.column(6),
            *(
                one if one.null_count == count else one.take(rows)
                for one in columns.stimulus
            ),
        ],
        names=_TIMED_EVENTS.names[: len(_EVENTS) + len(columns.stimulus) - 1],
    )
    events = np.bincount(place, minlength=len(runs))
    return batch, [runs[silent][0] for silent in np.flatnonzero(events == 0)]


@dataclass(slots=True)
class _PerRun:
    """Text columns that are constant over a run, without a copy for every row."""

    place: np.ndarray
    runs: Sequence[Any]

    def column(self, which: int) -> pa.Array:
        values = [run[which] for run in self.runs]
        distinct = sorted({one for one in values if one is not None})
        at = {one: place for place, one in enumerate(distinct)}
        of_run = pa.array([at.get(one) for one in values], pa.int32())
        return pa.DictionaryArray.from_arrays(
            of_run.take(pa.array(self.place)), pa.array(distinct, pa.string())
        )


def amplitudes(values: pa.Array) -> pa.Array:
    """The finite numbers that *values* spell out, null for everything else."""
    try:
        numbers = pc.cast(values, pa.float64())
    except pa.ArrowInvalid:
        looks = pc.match_substring_regex(values, _NUMBER)
        plain = pc.if_else(looks, values, pa.scalar(None, pa.string()))
        numbers = pc.cast(pc.replace_substring_regex(plain, r"^\+", ""), pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


# --- the client -----------------------------------------------------------------------


def _by_id(path: str) -> Any:
    def one(key: Any) -> Request:
        if type(key) is not int:
            raise ConfigurationError(f"expected a whole number as id, got {key!r}")
        return Request(target=f"{path}/{key}")

    return one


def _by_hash(key: Any) -> Request:
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise ConfigurationError(f"expected a hash_id like '52546', got {key!r}")
    return request_for(f"/analyses/{segment(str(key))}")


class _EventsTable(Table):
    """Predictor events, by the names of the logged-in user's predictors as well."""

    def _source(self, filters: Mapping[str, Json]) -> Source:
        return _Events(filters=filters, has_user=self.client.exchange.has_auth)


_OWN = Description(
    name="user.get_predictors",
    summary="The user's own predictors",
    item="requests",
    filters=(
        Filter(name="run_id", kind=int, many=True),
        Filter(name="name", kind=str, many=True),
        Filter(name="newest", kind=bool),
    ),
    schema=_PREDICTORS,
    source=lambda filters: _Listing(
        schema=_PREDICTORS, path="/user/predictors", filters=filters
    ),
)


class User(Table):
    """The user who is logged in."""

    async def get_predictors(self, **filters: Any) -> list[Record]:
        """The user's own private predictors, by ``name``, ``run_id`` and ``newest``."""
        checked = _OWN.check(filters)
        if [] in checked.values():
            return []
        found = await call(self.client, "/user/predictors", query=checked)
        return records_at(found, ())

    async def get_analyses(self) -> list[Record]:
        """Summaries of the user's own analyses, of any status."""
        return records_at(await call(self.client, "/user/myanalyses"), ())

    async def get_collections(self) -> list[Record]:
        """The user's own collections of predictors."""
        return records_at(await call(self.client, "/user/collections"), ())


# Files behind a proxy, of a small archive that says nothing of limits.
_NEUROVAULT = Limits(concurrency=4)


class Neuroscout(Client):
    """https://neuroscout.org: naturalistic fMRI data sets and their predictors.

    Parameters
    ----------
    email, password
        Of an account at the service, for one's own analyses and predictors. Everything
        public is open without. The service is asked for a token when one is first
        needed, and again before that one expires.
    neurovault_url
        Where images of analyses are got from.
    **options
        As :class:`~asyncfetch.services._table.Client` takes them: ``base_url``,
        ``limits``, ``timeout``, ``item_timeout``, ``user_agent``, ``contact``,
        ``proxy``, ``ca_file``, ``tls_compat``.
    """

    service = "neuroscout"
    default_url = "https://neuroscout.org/api"
    # gunicorn with 2 synchronous workers and no rate limit: each request holds one of
    # them until its last row, and more connections would only queue before them.
    default_limits = Limits(concurrency=2)
    limits_source = "its server has 2 synchronous workers, which everybody shares"

    datasets: Table
    tasks: Table
    runs: Table
    predictors: Predictors
    predictor_events: Table
    analyses: Analyses
    user: User

    def __init__(
        self,
        email: str | None = None,
        password: str | None = None,
        *,
        neurovault_url: str = "https://neurovault.org",
        **options: Any,
    ) -> None:
        super().__init__(auth=login(email, password), **options)
        # Where images of analyses are; the user's limits are meant for Neuroscout.
        others = {k: v for k, v in options.items() if k not in ("base_url", "limits")}
        others.pop("tls_compat", None)
        self.neurovault = Exchange(
            neurovault_url, default=_NEUROVAULT, limits=Limits(), **others
        )

    async def aclose(self) -> None:
        """Close the connections. The client may be used again afterwards."""
        try:
            await super().aclose()
        finally:
            await self.neurovault.aclose()

    async def fetch_predictors(
        self,
        predictor_names: Sequence[str] | str,
        dataset_name: str,
        *,
        return_type: Literal["df", "collection"] = "df",
        rescale: bool = False,
        resample: bool = True,
        **entities: Any,
    ) -> Any:
        """Predictors side by side: a column for each, a row for each scan.

        Parameters
        ----------
        return_type
            ``df``: a DataFrame with ``onset``, ``duration``, the predictors, and then
            ``run_id``, ``task`` and the entities that runs have. ``collection``: a
            ``BIDSRunVariableCollection``, for which pybids is needed.
        rescale
            To mean 0 and standard deviation 1, over all events of a predictor.
        resample
            To one row a scan of the run's task, by the arithmetic of pybids, each run
            by itself. A missing value (``n/a``) counts as no event. Otherwise there is
            a row for each event.
        **entities
            Which runs: ``task_name``, ``subject``, ``session``, ``run``,
            ``acquisition``, ``run_id``.

        Raises
        ------
        ConfigurationError
            A predictor holds words, or cannot be rescaled or resampled.
        """
        if return_type not in ("df", "collection"):
            raise ConfigurationError(
                f"expected return_type df or collection, got {return_type!r}"
            )
        names = list(dict.fromkeys(members(predictor_names)))
        if return_type == "collection":
            optional("bids.variables", "return_type='collection'", extra="bids")
        scope = {"dataset_name": dataset_name, **entities}
        events, runs = await self._events_and_runs(names, scope)

        def table() -> Any:
            frame = numeric(to_pandas(events.select(NEEDED)))
            if return_type == "collection":
                return collection_of(
                    frame, names, runs, rescale=rescale, resample=resample
                )
            frame = rescaled(frame) if rescale else frame
            return wide(frame, names, runs, resample=resample)

        return await in_thread(table)

    async def export_events(
        self,
        dest: str | Path,
        predictor_names: Sequence[str] | str,
        dataset_name: str,
        **entities: Any,
    ) -> list[Path]:
        """Write events as BIDS has them: ``sub-…/func/sub-…_events.tsv``, one a run.

        ``n/a`` stands for what is missing. Beside them is a JSON file for each task
        with descriptions of the columns, and the words of those that hold words.

        Parameters
        ----------
        dest
            The folder of the data set; files there are replaced.
        **entities
            Which runs, as for :meth:`fetch_predictors`.

        Returns
        -------
        list of Path
            The events files.
        """
        names = list(dict.fromkeys(members(predictor_names)))
        scope = {"dataset_name": dataset_name, **entities}
        events, runs = await self._events_and_runs(names, scope)
        ids = {*events["predictor_id"].to_pylist()}
        found = await _engine.side_by_side(
            [partial(self.predictors.get, one) for one in sorted(ids)], at_once=4
        )
        about = {one["name"]: one["description"] for one in found}
        return await in_thread(
            lambda: write_events(Path(dest), [events], names, runs, about)
        )

    async def fetch_images(
        self,
        dataset_name: str,
        data_dir: str | Path,
        *,
        no_get: bool = False,
        datalad_jobs: int | str = "auto",
        preproc_address: str | None = None,
        fetch_json: bool = False,
        fetch_brain_mask: bool = False,
        **entities: Any,
    ) -> tuple[Path, list[Path]]:
        """Install a data set with DataLad and get its preprocessed images.

        Parameters
        ----------
        data_dir
            Where data sets are, each in a folder of its name.
        no_get
            Only find what is there already.
        preproc_address
            Where the data set is installed from, if not from where the service says.
        **entities
            Which images: ``subject``, ``session``, ``task``, ``run``, … of pybids.

        Returns
        -------
        tuple
            The folder of preprocessed files, and the files.
        """
        record: Record | None = None
        if preproc_address is None:
            record = await self.analyses.dataset(dataset_name)
            preproc_address = record["preproc_address"]
            if not preproc_address:
                raise NotFound(f"{dataset_name} has no preprocessed images")
        folder = segment(dataset_name if record is None else record["name"])
        dataset_dir = Path(data_dir) / folder
        found = await self.install_dataset(dataset_dir, preproc_address, no_get=no_get)
        paths = await self.get_paths(
            found,
            fetch_json=fetch_json,
            fetch_brain_mask=fetch_brain_mask,
            **entities,
        )
        if not no_get:
            await in_thread(lambda: fetch(paths, dataset_dir, datalad_jobs))
        return found, paths

    async def install_dataset(
        self, dataset_dir: str | Path, preproc_address: str, *, no_get: bool = False
    ) -> Path:
        """The folder of preprocessed files, its data set installed if it is not."""
        return await in_thread(
            lambda: installed(Path(dataset_dir), preproc_address, no_get=no_get)
        )

    async def get_paths(
        self,
        preproc_dir: str | Path,
        *,
        fetch_json: bool = False,
        fetch_brain_mask: bool = False,
        **entities: Any,
    ) -> list[Path]:
        """Preprocessed images below a folder that match the *entities* of pybids."""
        return await in_thread(
            lambda: paths_in(
                Path(preproc_dir),
                fetch_json=fetch_json,
                fetch_brain_mask=fetch_brain_mask,
                entities=entities,
            )
        )

    async def _events_and_runs(
        self, names: list[str], scope: Mapping[str, Any]
    ) -> tuple[pa.Table, dict[int, RunInfo]]:
        """Events by names, and what is known of their runs; asked side by side."""
        if not names:
            raise ConfigurationError("expected predictor_names, got none")
        calls: list[Callable[[], Awaitable[Any]]] = [
            partial(
                self.predictor_events.get,
                output_type="arrow",
                predictor_name=names,
                **scope,
            ),
            partial(self.runs.get, **scope),
            self.tasks.get,
        ]
        events, runs, tasks = await _engine.side_by_side(calls, at_once=len(calls))
        return events, runs_by_id(runs, tasks)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """A client set up by the environment.

        ``NEUROSCOUT_USER`` and ``NEUROSCOUT_PASSWORD`` log in,
        ``ASYNCFETCH_NEUROSCOUT_URL`` is another base URL.
        """
        for name, variable in (
            ("email", "NEUROSCOUT_USER"),
            ("password", "NEUROSCOUT_PASSWORD"),
        ):
            if os.environ.get(variable):
                options.setdefault(name, os.environ[variable])
        return super().from_env(**options)

    descriptions: ClassVar[tuple[Description, ...]] = (
        Description(
            name="datasets",
            summary="Data sets",
            item="requests",
            filters=(
                Filter(name="name", kind=str, doc="exact name"),
                _ACTIVE,
            ),
            schema=_DATASETS,
            row_key="id",
            source=lambda filters: _Listing(
                schema=_DATASETS, path="/datasets", filters=filters
            ),
            one=_by_id("/datasets"),
        ),
        Description(
            name="tasks",
            summary="Tasks of the data sets",
            item="requests",
            filters=(*DATASETS, Filter(name="name", kind=str, doc="exact name")),
            schema=_TASKS,
            row_key="id",
            table=OfDataset,
            source=lambda filters: _OfDatasets(
                schema=_TASKS, path="/tasks", filters=filters
            ),
            one=_by_id("/tasks"),
        ),
        Description(
            name="runs",
            summary="Runs: one subject, one task, one time",
            item="requests",
            filters=(*SCOPE, _ACTIVE),
            schema=_RUNS,
            row_key="id",
            table=OfDataset,
            source=lambda filters: _Runs(schema=_RUNS, path="/runs", filters=filters),
            one=_by_id("/runs"),
        ),
        Description(
            name="predictors",
            summary="Predictors: what varies over a run",
            item="requests",
            filters=(
                Filter(name="name", kind=str, many=True),
                *SCOPE,
                _ACTIVE,
                Filter(
                    name="newest",
                    kind=bool,
                    doc="the service's own choice by name; unless said, the highest "
                    "id of each name in each data set",
                ),
            ),
            schema=_PREDICTORS,
            row_key="id",
            table=Predictors,
            source=lambda filters: _Predictors(
                schema=_PREDICTORS, path="/predictors", filters=filters
            ),
            one=_by_id("/predictors"),
        ),
        Description(
            name="predictor-events",
            summary="Events of predictors: onset, duration and value in each run",
            item="requests, each one predictor in a batch of runs",
            # 9 bytes an event, compressed, as recorded. Most predictors change less
            # often than speech does: about every fifth second.
            item_bytes=lambda item: 9 * 0.2 * sum(map(_seconds, item.context["runs"])),
            filters=(
                Filter(name="predictor_id", kind=int, many=True),
                Filter(name="predictor_name", kind=str, many=True),
                *SCOPE,
                Filter(
                    name="stimulus_timing",
                    kind=bool,
                    doc="with stimulus_onset, stimulus_duration, stimulus_path (false)",
                ),
            ),
            schema=_EVENTS,
            table=_EventsTable,
            source=lambda filters: _Events(filters=filters),
        ),
        Description(
            name="analyses",
            summary="Public analyses that passed; any one by its hash_id",
            item="requests",
            filters=(*DATASETS, Filter(name="name", kind=str, many=True)),
            schema=_ANALYSES,
            row_key="hash_id",
            table=Analyses,
            source=lambda filters: _OfDatasets(
                schema=_ANALYSES, path="/analyses", filters=filters, row_key="hash_id"
            ),
            one=_by_hash,
        ),
        Description(
            name="user",
            summary="The user who is logged in",
            item="requests",
            filters=(),
            schema=_USER,
            is_single=True,
            table=User,
            source=lambda filters: _Profile(
                schema=_USER, path="/user", filters=filters, row_key=None
            ),
        ),
    )

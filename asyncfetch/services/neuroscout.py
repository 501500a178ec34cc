"""Neuroscout: predictor events per run, and what they hang on.

The service has no pagination: every list is one body. Names are resolved in at most two
round trips before the first event is asked for: data sets and predictors side by side,
then runs. Predictor events are asked per predictor and batch of runs, ids ascending,
because the server keeps answers by the text of their query.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
from asyncfetch._model import (
    Ask,
    Block,
    Decoded,
    Enumeration,
    Item,
    Json,
    Limits,
    Request,
)
from asyncfetch.errors import ConfigurationError, DecodeError, NotFound
from asyncfetch.services._paging import target
from asyncfetch.services._table import (
    Client,
    Description,
    Filter,
    Table,
    close,
    column,
)

Record = dict[str, Any]
Resolving = Generator[Ask, tuple[Any, ...], Any]

# The server takes a request line of 4094 characters, which leaves 4081 for path and
# query; what exceeds it comes back as a 502. The base URL's own path (``/api``) is part
# of it, so a little is kept back.
MAX_TARGET = 4081 - 100
# A few ten thousand rows an answer: each costs the server 20 to 40 µs a row on one of
# two workers, and beyond that a larger answer is no faster.
ROWS_PER_ITEM = 50_000
# Predictors sampled once a second are the densest regular ones that were seen; speech
# has 0.4 events a second. The number of events is not known before they are asked for.
EVENTS_PER_SECOND = 1.0
# Seconds assumed for the few runs without a duration.
RUN_DURATION = 1500.0
# Up to so many records are asked by id; for more, a list is cheaper.
BY_ID = 8
ITEMS_PER_BLOCK = 500

_DATASETS = pa.schema(
    [
        column("id", pa.int64(), nullable=False),
        column("name", pa.string(), "the service's short name"),
        column("active", pa.bool_()),
        column("description", JSON, "BIDS dataset_description"),
        column("summary", pa.string()),
        column("url", pa.string()),
        column("long_description", pa.string()),
        column("mimetypes", pa.list_(pa.string())),
        column("mean_age", pa.float64(), unit="year"),
        column("percent_female", pa.float64(), "as a fraction"),
        column("dataset_address", pa.string()),
        column("preproc_address", pa.string(), "DataLad or git address"),
        column("tasks", JSON),
        column("runs", pa.list_(pa.int64()), "run ids, with one data set by id only"),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_TASKS = pa.schema(
    [
        column("id", pa.int64(), nullable=False),
        column("name", pa.string(), "unique within a data set"),
        column("dataset_id", pa.int64()),
        column("summary", pa.string()),
        column("TR", pa.float64(), unit="s"),
        column("avg_run_duration", pa.float64(), unit="s"),
        column("n_subjects", pa.int64()),
        column("n_runs_subject", pa.int64()),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_RUNS = pa.schema(
    [
        column("id", pa.int64(), nullable=False),
        column("dataset_id", pa.int64()),
        column("task", pa.int64(), "task id"),
        column("task_name", pa.string()),
        column("subject", pa.string()),
        column("session", pa.string()),
        column("number", pa.int64(), "the BIDS run"),
        column("acquisition", pa.string()),
        column("duration", pa.float64(), unit="s"),
        column(EXTRA, JSON, "fields that this version does not know"),
    ]
)
_PREDICTORS = pa.schema(
    [
        column("id", pa.int64(), nullable=False),
        column("name", pa.string(), "not unique"),
        column("dataset_id", pa.int64()),
        column("description", pa.string()),
        column("source", pa.string(), "extracted, fmriprep, events, Collection: …"),
        column("private", pa.bool_()),
        column("max", pa.float64()),
        column("min", pa.float64()),
        column("mean", pa.float64()),
        column("num_na", pa.int64()),
        column("extracted_feature", JSON, "null unless extracted from a stimulus"),
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

_ENTITIES = (
    Filter(name="subject", kind=str, many=True),
    Filter(name="session", kind=str, many=True),
    Filter(name="number", kind=int, many=True, doc="the BIDS run", alias="run"),
    Filter(name="acquisition", kind=str, many=True),
)
_SCOPE = (
    Filter(name="dataset_id", kind=int),
    Filter(name="dataset_name", kind=str),
    Filter(name="task_id", kind=int, many=True),
    Filter(name="task_name", kind=str, many=True),
    Filter(name="run_id", kind=int, many=True),
    *_ENTITIES,
)
_ACTIVE = Filter(name="active_only", kind=bool, doc="leave out inactive ones (true)")
# Filters that the server's /runs knows itself; the rest is applied to its answer.
_RUN_QUERY = ("dataset_id", "task_id", "subject", "session", "number", "active_only")


# --- resolving names: generators that yield requests and are sent the responses ------


def _request(path: str, **query: Any) -> Request:
    """A request with lists joined by commas, as the server takes them."""
    return Request(
        target=target(path, {name: _text(value) for name, value in query.items()})
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(member) for member in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fits_a_query(value: Json) -> bool:
    """Whether the server would read *value* back: it splits every list at commas."""
    return not isinstance(value, list) or not any("," in str(one) for one in value)


def _asked(*requests: Request) -> Resolving:
    """The bodies of the answers, some requests at a time."""
    bodies: list[Any] = []
    for start in range(0, len(requests), 2 * BY_ID):
        bodies += yield Ask(requests[start : start + 2 * BY_ID])
    return bodies


def _asked_list(request: Request) -> Resolving:
    """The records of one list."""
    (body,) = yield Ask((request,))
    return records_at(body, ())


@dataclass(slots=True)
class _Scope:
    """Which runs a query is about, as far as it has been resolved."""

    dataset: Record | None = None
    tasks: list[int] | None = None
    """Task ids, or None for all."""

    @property
    def is_active(self) -> bool:
        """Whether the service lists the data set, and its runs, without being told."""
        return self.dataset is None or self.dataset.get("active", True)

    @classmethod
    def find(cls, datasets: list[Record], filters: Mapping[str, Any]) -> _Scope:
        """Resolve dataset and task names among the service's *datasets*.

        Raises
        ------
        NotFound
            There is no such name; the message has the nearest ones.
        """
        scope = cls(tasks=filters.get("task_id"))
        if "dataset_name" in filters:
            scope.dataset = _dataset_named(datasets, filters["dataset_name"])
            if filters.get("dataset_id", scope.dataset["id"]) != scope.dataset["id"]:
                raise ConfigurationError(
                    f"dataset_id={filters['dataset_id']} and dataset_name="
                    f"{filters['dataset_name']!r} (id {scope.dataset['id']}) differ"
                )
        elif "dataset_id" in filters:
            scope.dataset = next(
                (d for d in datasets if d["id"] == filters["dataset_id"]), None
            )
        if "task_name" in filters:
            scope.tasks = _tasks_named(scope, datasets, filters)
        return scope


def _dataset_named(datasets: list[Record], name: str) -> Record:
    exact = [d for d in datasets if d["name"] == name]
    # The tutorial writes Sherlock_Merlin, which is the title inside the description.
    titled = [d for d in datasets if (d.get("description") or {}).get("Name") == name]
    found = exact or titled
    if len(found) != 1:
        names = [d["name"] for d in datasets]
        what = f"{len(found)} data sets called" if found else "no data set"
        raise NotFound(
            f"neuroscout has {what} {name!r}{close(name, names)}: "
            "see asyncfetch show neuroscout/datasets"
        )
    return found[0]


def _tasks_named(
    scope: _Scope, datasets: list[Record], filters: Mapping[str, Any]
) -> list[int]:
    within = [scope.dataset] if scope.dataset else datasets
    tasks = [task for d in within for task in d.get("tasks") or []]
    wanted: list[int] = []
    for name in filters["task_name"]:
        ids = [task["id"] for task in tasks if task["name"] == name]
        if not ids:
            names = [task["name"] for task in tasks]
            where = f" in {scope.dataset['name']}" if scope.dataset else ""
            raise NotFound(f"no task {name!r}{where}{close(name, names)}")
        if len(ids) > 1 and scope.dataset is None:
            raise ConfigurationError(
                f"{len(ids)} data sets have a task {name!r}: pass dataset_name as well"
            )
        wanted += ids
    given = filters.get("task_id")
    return [task for task in wanted if given is None or task in given]


def _runs_request(scope: _Scope, filters: Mapping[str, Any]) -> Request:
    query = {
        name: filters[name]
        for name in _RUN_QUERY
        if name in filters and _fits_a_query(filters[name])
    }
    if scope.dataset is not None:
        query["dataset_id"] = scope.dataset["id"]
    if scope.tasks is not None:
        query["task_id"] = scope.tasks
    if not scope.is_active:
        query.setdefault("active_only", False)
    return _request("/runs", **query)


def _words(filters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in filters.items())


def _wanted_runs(
    runs: Iterable[Record], scope: _Scope, filters: Mapping[str, Any]
) -> list[Record]:
    """The runs that match every filter, by id."""
    exact = {
        "id": filters.get("run_id"),
        "task": scope.tasks,
        "dataset_id": (
            [scope.dataset["id"]]
            if scope.dataset
            else [filters["dataset_id"]]
            if "dataset_id" in filters
            else None
        ),
        **{name: filters.get(name) for name in ("subject", "session", "number")},
        "acquisition": filters.get("acquisition"),
    }
    tests = {name: frozenset(some) for name, some in exact.items() if some is not None}
    return sorted(
        (run for run in runs if all(run[name] in some for name, some in tests.items())),
        key=lambda run: run["id"],
    )


def _is_scoped(filters: Mapping[str, Any]) -> bool:
    return any(f.name in filters for f in _SCOPE)


def _needs_datasets(filters: Mapping[str, Any]) -> bool:
    return "dataset_name" in filters or "task_name" in filters


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
        yield Block((self._item(_request(self.path, **self.filters)),))

    def _item(self, request: Request, **context: Any) -> Item:
        return Item(key=request.target, request=request, context=context)

    def decode(
        self, item: Item, chunks: Iterator[bytes], *, as_records: bool
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


class _Runs(_Listing):
    """Runs, with names resolved and the filters that the server lacks applied here."""

    __slots__ = ()

    def enumerate(self, _cursor: Json) -> Enumeration:
        """One item: the runs of a data set, or all."""
        datasets: list[Record] = []
        if _needs_datasets(self.filters):
            datasets = yield from _asked_list(_request("/datasets"))
        scope = _Scope.find(datasets, self.filters)
        keep = {
            name: self.filters[name]
            for name in ("run_id", "acquisition", "subject", "session", "number")
            if name in self.filters
        }
        request = _runs_request(scope, self.filters)
        yield Block((self._item(request, keep=keep, tasks=scope.tasks),))

    def matching(self, records: list[Record], item: Item) -> list[Record]:
        """The runs that match filters which the server lacks, by id."""
        return _wanted_runs(
            records, _Scope(tasks=item.context["tasks"]), item.context["keep"]
        )


class _Predictors(_Listing):
    """Predictors, by name or of the runs that the filters name."""

    __slots__ = ()

    def enumerate(self, _cursor: Json) -> Enumeration:
        """One item a task, or for chosen runs one a batch of ids that fits a URL."""
        filters = self.filters
        query = {k: filters[k] for k in ("active_only", "newest") if k in filters}
        names = filters.get("name")
        keep = {"name": names} if names is not None else {}
        if not _is_scoped(filters):
            if names is not None and _fits_a_query(names):
                query["name"] = names
            yield Block((self._item(_request("/predictors", **query), keep=keep),))
            return
        datasets: list[Record] = []
        if _needs_datasets(filters):
            datasets = yield from _asked_list(_request("/datasets"))
        scope = _Scope.find(datasets, filters)
        found = yield from _asked_list(_runs_request(scope, filters))
        runs = _wanted_runs(found, scope, filters)
        if any(name in filters for name in ("run_id", *(f.name for f in _ENTITIES))):
            requests = [
                _request("/predictors", run_id=batch, **query)
                for batch in _fitting([run["id"] for run in runs], 200)
            ]
        else:  # whole tasks: the same rows by a short URL
            tasks = sorted({run["task"] for run in runs})
            requests = [
                _request(f"/tasks/{task}/predictors", **query) for task in tasks
            ]
        yield Block(tuple(self._item(request, keep=keep) for request in requests))

    def matching(self, records: list[Record], item: Item) -> list[Record]:
        """The predictors of the wanted names."""
        names = item.context["keep"].get("name")
        if names is None:
            return records
        return [one for one in records if one["name"] in names]


def _fitting(ids: Sequence[int], kept: int) -> Iterator[list[int]]:
    """Batches of *ids* whose text fits a URL of which *kept* characters are taken."""
    batch: list[int] = []
    room = MAX_TARGET - kept
    for one in ids:
        width = len(str(one)) + 1
        if batch and width > room:
            yield batch
            batch, room = [], MAX_TARGET - kept
        batch.append(one)
        room -= width
    if batch:
        yield batch


# --- predictor events -----------------------------------------------------------------


class _Event(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One event as the server sends it."""

    onset: float
    value: str
    predictor_id: int
    run_id: int
    duration: float | None = None
    stimulus_id: int | None = None


class _AnyEvent(_Event, gc=False, forbid_unknown_fields=False):
    """The same, with fields that this version does not know left aside."""


_EVENTS_OF: ArrayDecoder[Any] = ArrayDecoder(
    msgspec.json.Decoder(list[_Event]), msgspec.json.Decoder(list[_AnyEvent])
)

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
    schema: pa.Schema = field(default=_EVENTS)
    row_key: str | None = None

    def enumerate(self, cursor: Json) -> Enumeration:
        """Resolve names, then one item per predictor and batch of runs.

        The cursor keeps what was resolved, so that going on asks nothing again.
        """
        if cursor is None:
            state = yield from self._resolve()
        else:
            assert isinstance(cursor, Mapping)
            state = dict(cursor)
        items = list(_event_items(state))
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
        if not _is_scoped(filters) and not (
            {"predictor_id", "predictor_name"} & set(filters)
        ):
            raise ConfigurationError(
                "predictor-events needs at least one of dataset_name, dataset_id, "
                "task_id, run_id, predictor_name, predictor_id"
            )
        datasets, candidates, runs = yield from self._first_round()
        scope = _Scope.find(datasets, filters)
        named = {filters["dataset_id"]} if "dataset_id" in filters else set()
        named |= {run["dataset_id"] for run in runs or ()}
        for one in named - {dataset["id"] for dataset in datasets}:
            # Not among the active ones: served all the same, by its id.
            (body,) = yield Ask((_request(f"/datasets/{one}"),))
            scope.dataset = body if len(named) == 1 else None
            datasets.append(body)
        if scope.dataset is None:
            scope.dataset = _dataset_of(candidates, runs, datasets, filters)
        if runs is None:
            runs = yield from _asked_list(_runs_request(scope, filters))
        runs = _wanted_runs(runs, scope, filters)
        if not runs:
            raise NotFound(f"neuroscout has no run with {_words(filters)}")
        picks = yield from self._picks(candidates, runs, scope)
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
        wanted = [_request("/datasets")]
        names, ids = filters.get("predictor_name"), filters.get("predictor_id")
        by_name = names is not None and _fits_a_query(names)
        if by_name:
            # newest=false: otherwise somebody's private upload of the same name would
            # hide the public predictor, or another data set's would take its place.
            wanted.append(_request("/predictors", name=names, newest=False))
        if ids is not None:
            wanted += [_request(f"/predictors/{one}") for one in ids]
        run_ids = filters.get("run_id", [])
        only_ids = bool(run_ids) and not (
            {"dataset_id", "dataset_name", "task_id", "task_name"} & set(filters)
        )
        if only_ids:
            if len(run_ids) <= BY_ID:
                wanted += [_request(f"/runs/{one}") for one in run_ids]
            else:
                wanted.append(_request("/runs", active_only=False))
        answers = yield from _asked(*wanted)
        datasets = records_at(answers.pop(0), ())
        candidates: list[Record] | None = None
        if by_name:
            candidates = records_at(answers.pop(0), ())
        if ids is not None:
            by_id = [answers.pop(0) for _ in ids]
            candidates = [one for one in by_id if names is None or one["name"] in names]
        runs: list[Record] | None = None
        if only_ids and len(run_ids) <= BY_ID:
            runs = answers
        elif only_ids:
            runs = records_at(answers.pop(0), ())
        return datasets, candidates, runs

    def _picks(
        self, candidates: list[Record] | None, runs: list[Record], scope: _Scope
    ) -> Resolving:
        """The predictors to ask for, by id."""
        filters = self.filters
        of_datasets = {run["dataset_id"] for run in runs}
        if "predictor_id" in filters:
            assert candidates is not None
            for one in candidates:
                if one["dataset_id"] not in of_datasets:
                    raise ConfigurationError(
                        f"predictor {one['id']} ({one['name']}) belongs to data set "
                        f"{one['dataset_id']}, and the runs asked for to {of_datasets}"
                    )
            return sorted(
                (_Pick(id=one["id"], name=one["name"]) for one in candidates),
                key=attrgetter("id"),
            )
        names = filters.get("predictor_name")
        if candidates is not None:
            candidates = [c for c in candidates if c["dataset_id"] in of_datasets]
            found = [c["name"] for c in candidates]
            if len(found) == len(set(found)) and set(found) == set(names or ()):
                return sorted(
                    (_Pick(id=c["id"], name=c["name"]) for c in candidates),
                    key=attrgetter("id"),
                )
        # All predictors, or several of one name, or a name that is not there: only the
        # tasks' own lists say which predictor belongs to which runs.
        tasks = sorted({run["task"] for run in runs})
        everything = {} if scope.is_active else {"active_only": False}
        answers = yield from _asked(
            *(
                _request(f"/tasks/{task}/predictors", newest=False, **everything)
                for task in tasks
            )
        )
        picked: dict[int, _Pick] = {}
        known: set[str] = set()
        for task, answer in zip(tasks, answers, strict=True):
            newest: dict[str, int] = {}
            for one in records_at(answer, ()):
                known.add(one["name"])
                if names is None or one["name"] in names:
                    newest[one["name"]] = max(one["id"], newest.get(one["name"], 0))
            for name, one_id in newest.items():
                pick = picked.setdefault(one_id, _Pick(id=one_id, name=name, tasks=[]))
                assert pick.tasks is not None
                pick.tasks.append(task)
        self._refuse_unknown(names, known, scope)
        return [picked[one_id] for one_id in sorted(picked)]

    def _refuse_unknown(
        self,
        names: list[str] | None,
        known: set[str],
        scope: _Scope,
    ) -> None:
        missing = [name for name in names or () if name not in known]
        if missing:
            where = scope.dataset["name"] if scope.dataset else "the runs asked for"
            hints = ", ".join(f"{name!r}{close(name, known)}" for name in missing)
            raise NotFound(f"{where} has no predictor {hints}")

    def decode(
        self, item: Item, chunks: Iterator[bytes], *, as_records: bool
    ) -> Decoded:
        """Rows by predictor, run and onset."""
        if as_records:
            events = records_at(document(chunks), ())
            return Decoded(records=sorted(events, key=_event_order))
        columns = _event_columns(chunks)
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


def _dataset_of(
    candidates: list[Record] | None,
    runs: list[Record] | None,
    datasets: list[Record],
    filters: Mapping[str, Any],
) -> Record | None:
    """The one data set that ids or names point to, when none was named."""
    if runs is not None or "task_id" in filters or "task_name" in filters:
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
        raise NotFound(f"neuroscout has no public predictor {wanted}")
    only = found.pop()
    return next((d for d in datasets if d["id"] == only), {"id": only, "name": None})


def _event_items(state: Mapping[str, Any]) -> Iterator[Item]:
    for predictor, name, tasks in state["picks"]:
        runs = [run for run in state["runs"] if tasks is None or run[5] in tasks]
        for batch in _run_batches(runs):
            ids = [run[0] for run in batch]
            yield Item(
                key=f"predictor={predictor}/runs={ids[0]}-{ids[-1]}",
                request=_request(
                    "/predictor-events", predictor_id=predictor, run_id=ids
                ),
                context={"predictor": [predictor, name], "runs": batch},
            )


def _seconds(run: Sequence[Any]) -> float:
    """How long *run* took, or about as long."""
    return float(run[8] or RUN_DURATION)


def _run_batches(runs: Sequence[Any]) -> Iterator[list[Any]]:
    """Batches of runs that fit a URL and come to about :data:`ROWS_PER_ITEM` rows."""
    batch: list[Any] = []
    room, rows = MAX_TARGET - 100, 0.0
    for run in runs:
        width = len(str(run[0])) + 1
        more = _seconds(run) * EVENTS_PER_SECOND
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
    predictor_id: np.ndarray
    run_id: np.ndarray
    value: pa.Array
    stimulus_id: pa.Array
    has_unknown: bool
    """Whether there were fields that this version does not know."""


def _event_columns(chunks: Iterable[bytes]) -> _Columns:
    has_unknown = False
    onset, duration, predictor, run = [], [], [], []
    value: list[pa.Array] = []
    stimulus: list[pa.Array] = []
    for events in arrays(chunks, _EVENTS_OF):
        has_unknown |= bool(events) and type(events[0]) is _AnyEvent
        onset.append(_numbers(events, "onset", np.float64))
        predictor.append(_numbers(events, "predictor_id", np.int64))
        run.append(_numbers(events, "run_id", np.int64))
        value.append(pa.array([event.value for event in events], pa.string()))
        seconds = _numbers(events, "duration", np.float64)
        if np.isnan(seconds).any():  # null here and there
            duration.append(pa.array([e.duration for e in events], pa.float64()))
        else:
            duration.append(pa.array(seconds))
        ids = [event.stimulus_id for event in events]
        has_ids = ids.count(None) < len(ids)  # nearly never
        stimulus.append(
            pa.array(ids, pa.int64()) if has_ids else pa.nulls(len(ids), pa.int64())
        )
    return _Columns(
        onset=np.concatenate(onset),
        duration=pa.concat_arrays(duration),
        predictor_id=np.concatenate(predictor),
        run_id=np.concatenate(run),
        value=pa.concat_arrays(value),
        stimulus_id=pa.concat_arrays(stimulus),
        has_unknown=has_unknown,
    )


def _numbers(events: list[Any], name: str, kind: Any) -> np.ndarray:
    return np.fromiter(map(attrgetter(name), events), kind, len(events))


def _event_batch(
    columns: _Columns, context: Mapping[str, Any]
) -> tuple[pa.RecordBatch, list[int]]:
    """The batch in row order, and the runs that were asked for and have no events."""
    predictor, name = context["predictor"]
    runs = context["runs"]
    ids = np.array([run[0] for run in runs], np.int64)  # ascending
    place = np.searchsorted(ids, columns.run_id)
    place = np.minimum(place, len(ids) - 1)
    for asked, got, what in (
        (predictor, columns.predictor_id, "predictor_id"),
        (ids[place], columns.run_id, "run_id"),
    ):
        wrong = np.flatnonzero(got != asked)
        if len(wrong):
            path = f"$[{wrong[0]}].{what}"
            raise DecodeError(
                f"expected a {what} that was asked for, got {got[wrong[0]]} "
                f"- at {path}",
                path=path,
                code="not-asked",
            )
    # Onset first, then run by a stable sort of small integers, which is a radix sort.
    order = np.argsort(columns.onset)
    order = order[np.argsort(place[order].astype(np.uint16), kind="stable")]
    place = place[order].astype(np.int32)
    value = columns.value.take(pa.array(order))
    count = len(order)
    text = _PerRun(place, runs)
    batch = pa.RecordBatch.from_arrays(
        [
            columns.duration.take(pa.array(order)),
            pa.array(columns.onset[order]),
            pa.array(columns.predictor_id),
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
            columns.stimulus_id.take(pa.array(order)),
        ],
        names=_EVENTS.names,
    )
    present = np.unique(place)
    silent = sorted(set(ids.tolist()) - set(ids[present].tolist()))
    return batch, silent


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


class Neuroscout(Client):
    """https://neuroscout.org: naturalistic fMRI data sets and their predictors."""

    service = "neuroscout"
    default_url = "https://neuroscout.org/api"
    # gunicorn with 2 synchronous workers and no rate limit: each request holds one of
    # them until its last row, and more connections would only queue before them.
    default_limits = Limits(concurrency=2)
    limits_source = "its server has 2 synchronous workers, which everybody shares"

    datasets: Table
    tasks: Table
    runs: Table
    predictors: Table
    predictor_events: Table

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
            filters=(
                Filter(name="dataset_id", kind=int),
                Filter(name="name", kind=str, doc="exact name"),
            ),
            schema=_TASKS,
            row_key="id",
            source=lambda filters: _Listing(
                schema=_TASKS, path="/tasks", filters=filters
            ),
            one=_by_id("/tasks"),
        ),
        Description(
            name="runs",
            summary="Runs: one subject, one task, one time",
            item="requests",
            filters=(*_SCOPE, _ACTIVE),
            schema=_RUNS,
            row_key="id",
            source=lambda filters: _Runs(schema=_RUNS, path="/runs", filters=filters),
            one=_by_id("/runs"),
        ),
        Description(
            name="predictors",
            summary="Predictors: what varies over a run",
            item="requests",
            filters=(
                Filter(name="name", kind=str, many=True),
                *_SCOPE,
                _ACTIVE,
                Filter(
                    name="newest",
                    kind=bool,
                    doc="of each name only the highest id, before other filters (true)",
                ),
            ),
            schema=_PREDICTORS,
            row_key="id",
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
                *_SCOPE,
            ),
            schema=_EVENTS,
            source=lambda filters: _Events(filters=filters),
        ),
    )

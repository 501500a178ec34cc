"""Which data sets, tasks and runs of Neuroscout a query is about: names made ids.

Generators that yield requests and are sent the answers. A name never resolves to what
it might not mean: one that is not there is said with the nearest, one that several
things bear is said with all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from asyncfetch._decode import EXTRA, records_at
from asyncfetch._model import Ask, Json, Request
from asyncfetch.errors import ConfigurationError, NotFound
from asyncfetch.services._paging import target
from asyncfetch.services._table import Filter, Table, close

Record = dict[str, Any]
Resolving = Generator[Ask, tuple[Any, ...], Any]

logger = logging.getLogger("asyncfetch")

# The server takes a request line of 4094 characters, which leaves 4081 for path and
# query; what exceeds it comes back as a 502. The base URL's own path (``/api``) is part
# of it, so a little is kept back.
MAX_TARGET = 4081 - 100
# Up to so many records are asked by id; for more, a list is cheaper.
BY_ID = 8

ENTITIES = (
    Filter(name="subject", kind=str, many=True),
    Filter(name="session", kind=str, many=True),
    Filter(name="number", kind=int, many=True, doc="the BIDS run", alias="run"),
    Filter(name="acquisition", kind=str, many=True),
)
DATASETS = (
    Filter(name="dataset_id", kind=int, or_many=True),
    Filter(name="dataset_name", kind=str, or_many=True),
)
SCOPE = (
    *DATASETS,
    Filter(name="task_id", kind=int, many=True),
    Filter(name="task_name", kind=str, many=True),
    Filter(name="run_id", kind=int, many=True),
    *ENTITIES,
)
# Filters that the server's /runs knows itself; the rest is applied to its answer.
_RUN_QUERY = ("subject", "session", "number", "active_only")


def request_for(path: str, **query: Any) -> Request:
    """A request with lists joined by commas, as the server takes them."""
    return Request(
        target=target(path, {name: as_text(value) for name, value in query.items()})
    )


def as_text(value: Any) -> str:
    """A query value as the server reads it."""
    if isinstance(value, list):
        return ",".join(str(member) for member in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def fits_a_query(value: Json) -> bool:
    """Whether the server would read *value* back: it splits every list at commas."""
    if not isinstance(value, list):
        return True
    text = as_text(value)
    return text.count(",") == len(value) - 1 and len(text) < MAX_TARGET // 4


def asked(*requests: Request) -> Resolving:
    """The bodies of the answers, some requests at a time."""
    bodies: list[Any] = []
    for start in range(0, len(requests), 2 * BY_ID):
        bodies += yield Ask(requests[start : start + 2 * BY_ID])
    return bodies


def asked_list(*requests: Request) -> Resolving:
    """The records of some lists, one after the other."""
    bodies = yield from asked(*requests)
    return [record for body in bodies for record in records_at(body, ())]


def listed(value: Any) -> list[Any]:
    """A filter that takes one value or several, as several."""
    return value if isinstance(value, list) else [value]


@dataclass(slots=True)
class Scope:
    """Which runs a query is about, as far as it has been resolved."""

    datasets: list[Record] | None = None
    """Those named, or None for all."""
    tasks: list[int] | None = None
    """Task ids, or None for all."""

    @property
    def is_active(self) -> bool:
        """Whether the service lists the data sets, and their runs, by itself."""
        return all(d.get("active", True) for d in self.datasets or ())

    @property
    def dataset_ids(self) -> list[int] | None:
        """Of the data sets named."""
        if self.datasets is None:
            return None
        return sorted(dataset["id"] for dataset in self.datasets)

    def __str__(self) -> str:
        """As it is said in messages."""
        if self.datasets is None:
            return "the runs asked for"
        return " and ".join(str(dataset["name"]) for dataset in self.datasets)

    @classmethod
    def find(cls, datasets: list[Record], filters: Mapping[str, Any]) -> Scope:
        """Resolve dataset and task names among the service's *datasets*.

        Raises
        ------
        NotFound
            There is no such name; the message has the nearest ones.
        ConfigurationError
            Several things bear the name.
        """
        scope = cls(tasks=filters.get("task_id"))
        ids = listed(filters["dataset_id"]) if "dataset_id" in filters else None
        if "dataset_name" in filters:
            scope.datasets = [
                dataset_named(datasets, name)
                for name in listed(filters["dataset_name"])
            ]
            if ids is not None and sorted(ids) != scope.dataset_ids:
                raise ConfigurationError(
                    f"dataset_id={as_text(ids)} and dataset_name="
                    f"{as_text(filters['dataset_name'])!r} (id "
                    f"{as_text(scope.dataset_ids)}) differ"
                )
        elif ids is not None:
            # One that is not listed is inactive, or is none: its id is all there is.
            known = {dataset["id"]: dataset for dataset in datasets}
            scope.datasets = [
                known.get(one, {"id": one, "name": f"data set {one}"}) for one in ids
            ]
        if "task_name" in filters:
            scope.tasks = _tasks_named(scope, datasets, filters)
        return scope


def dataset_named(datasets: list[Record], name: str) -> Record:
    """The data set of that name, or else the only one with that title.

    Raises
    ------
    NotFound
        There is none; the message has the nearest names.
    ConfigurationError
        Several have the title.
    """
    found = [d for d in datasets if d["name"] == name]
    if not found:
        # The tutorial writes Sherlock_Merlin, which is the title in the description.
        found = [
            d for d in datasets if (d.get("description") or {}).get("Name") == name
        ]
        if len(found) == 1:
            logger.warning(
                "no data set is named %r: taken for %r, which has it as its title",
                name,
                found[0]["name"],
            )
    if not found:
        names = [d["name"] for d in datasets]
        raise NotFound(
            f"neuroscout has no data set {name!r}{close(name, names)}: "
            "see asyncfetch show neuroscout/datasets"
        )
    if len(found) > 1:
        which = ", ".join(f"{d['name']} (id {d['id']})" for d in found)
        raise ConfigurationError(
            f"{len(found)} data sets are called {name!r}: {which}; pass dataset_id"
        )
    return found[0]


def _tasks_named(
    scope: Scope, datasets: list[Record], filters: Mapping[str, Any]
) -> list[int]:
    within = datasets if scope.datasets is None else scope.datasets
    wanted: list[int] = []
    for name in filters["task_name"]:
        found = [
            (dataset["name"], task["id"])
            for dataset in within
            for task in dataset.get("tasks") or []
            if task["name"] == name
        ]
        if not found:
            names = [task["name"] for d in within for task in d.get("tasks") or []]
            where = f" in {scope}" if scope.datasets else ""
            raise NotFound(f"no task {name!r}{where}{close(name, names)}")
        if len(found) > 1 and scope.datasets is None:
            which = ", ".join(dataset for dataset, _ in found)
            raise ConfigurationError(
                f"{len(found)} data sets have a task {name!r} ({which}): "
                "pass dataset_name as well"
            )
        wanted += [task for _, task in found]
    given = filters.get("task_id")
    return [task for task in wanted if given is None or task in given]


def runs_requests(scope: Scope, filters: Mapping[str, Any]) -> list[Request]:
    """The requests for the runs: one for each data set, or one."""
    query = {
        name: filters[name]
        for name in _RUN_QUERY
        if name in filters and fits_a_query(filters[name])
    }
    if scope.tasks is not None:
        query["task_id"] = scope.tasks
    if not scope.is_active:
        query.setdefault("active_only", False)
    ids = scope.dataset_ids
    # The service takes one id; the list of all runs is no longer than a few of them.
    if ids is None or len(ids) > BY_ID:
        return [request_for("/runs", **query)]
    return [request_for("/runs", dataset_id=one, **query) for one in ids]


def wanted_runs(
    runs: Iterable[Record], scope: Scope, filters: Mapping[str, Any]
) -> list[Record]:
    """The runs that match every filter, by id."""
    exact = {
        "id": filters.get("run_id"),
        "task": scope.tasks,
        "dataset_id": scope.dataset_ids,
        **{name: filters.get(name) for name in ("subject", "session", "number")},
        "acquisition": filters.get("acquisition"),
    }
    tests = {name: frozenset(some) for name, some in exact.items() if some is not None}
    return sorted(
        (run for run in runs if all(run[name] in some for name, some in tests.items())),
        key=lambda run: run["id"],
    )


def is_scoped(filters: Mapping[str, Any]) -> bool:
    """Whether a filter narrows the runs."""
    return any(f.name in filters for f in SCOPE)


def scope_of(filters: Mapping[str, Any]) -> Generator[Ask, tuple[Any, ...], Scope]:
    """The scope of *filters*; a name costs the list of data sets."""
    datasets: list[Record] = []
    if "dataset_name" in filters or "task_name" in filters:
        datasets = yield from asked_list(request_for("/datasets"))
    return Scope.find(datasets, filters)


def in_words(filters: Mapping[str, Any]) -> str:
    """The filters as they would be written."""
    return ", ".join(f"{name}={as_text(value)}" for name, value in filters.items())


def newest_of(predictors: Iterable[Record]) -> list[Record]:
    """Of each name in each data set the predictor with the highest id."""
    newest: dict[tuple[int, str], Record] = {}
    for one in predictors:
        key = (one["dataset_id"], one["name"])
        if key not in newest or newest[key]["id"] < one["id"]:
            newest[key] = one
    return list(newest.values())


def fitting(ids: Sequence[int], kept: int) -> Iterator[list[int]]:
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


class OfDataset(Table):
    """A table whose rows belong to data sets: a DataFrame has their names as well."""

    async def _frame(self, table: pa.Table) -> pd.DataFrame:
        frame = await super()._frame(table)
        # All of them by one request, and not each by its id.
        found: list[Record] = []
        if table.num_rows:
            found = await self.client.table("datasets").get(active_only=False)
        names = {one["id"]: one["name"] for one in found}
        ids = table["dataset_id"].to_pylist()
        column = pa.array([names.get(one) for one in ids], pa.string()).to_pandas()
        # Behind the columns of a list, before those of a single record and the unknown.
        later = "created_at" if "created_at" in frame else EXTRA
        frame.insert(list(frame.columns).index(later), "dataset_name", column)
        return frame

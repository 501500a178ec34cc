"""Neuroscout's API, as its server behind nginx answers.

True to the service in what surprises clients: a page of HTML under a 200 for a path
that it does not know, 502 for a long URL, 422 for an unknown or empty parameter, the
first value of a repeated one, rows in any order, NaN in JSON, ``value`` always text.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from asyncfetch.testing._answer import Answer, Call, generator, uniforms
from asyncfetch.testing._neuroscout_data import (
    FIRST_PREDICTORS,
    FIRST_RUNS,
    Catalogue,
    Predictor,
    Record,
    by_id,
)

# gunicorn takes a request line of 4094 characters: 13 go to the method and protocol.
_MAX_TARGET = 4081
# nginx itself refuses a request line above its 8 kB header buffer.
_MAX_NGINX_TARGET = 8192 - 13

_Kind = Literal["int", "ints", "number list", "str", "strs", "bool"]
_Values = dict[str, Any]

_TRUTHY = frozenset("t T true True TRUE on On ON y Y yes Yes YES 1".split())
_FALSY = frozenset("f F false False FALSE off Off OFF n N no No NO 0".split())

_INDEX = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Neuroscout</title></head>
<body><div id="root"></div><script src="/static/js/main.js"></script></body></html>
"""

_ANALYSES: tuple[Record, ...] = tuple(
    {
        "dataset_id": dataset,
        "description": description,
        "hash_id": hash_id,
        "modified_at": modified_at,
        "name": name,
        "nv_count": uploads,
        "status": "PASSED",
        "user": user,
    }
    for dataset, description, hash_id, modified_at, name, uploads, user in (
        (9, None, "3q7yo", "2021-12-14T23:3", "f0_no_rescale", 1, "example_user"),
        (5, "Speech in Merlin", "k2m7p", "2020-02-11T09:4", "speech", 2, None),
        (28, None, "9dw3r", "2021-06-30T17:2", "brightness", 0, "example_user"),
        (28, None, "h4vx8", "2021-08-19T12:0", "speech", 1, "example_user"),
        # The documents' analyses.get(name="speech")[-1].
        (30, None, "52546", "2021-10-07T21:1", "speech", 0, "adelavega"),
    )
)


class _InvalidError(Exception):
    """Parameters that the server's validation refuses, by field."""


@dataclass(frozen=True, slots=True)
class _Route:
    pattern: re.Pattern[str]
    answer: Callable[[Call, int, _Values], Any]
    """From the call, the id in the path, and the parameters; None is a 404."""
    parameters: Mapping[str, _Kind] | None = None
    """None where the service declares none, and so ignores the query."""
    required: frozenset[str] = field(default_factory=frozenset)


class NeuroscoutService:
    """Neuroscout, played from a seed."""

    prefix = "/neuroscout/api"
    environment: Mapping[str, str] = {"ASYNCFETCH_NEUROSCOUT_URL": prefix}

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self._data = Catalogue(seed=seed, scale=scale)
        listing: dict[str, _Kind] = {"active_only": "bool", "newest": "bool"}
        self._routes = (
            _route("/datasets", self._datasets, {"active_only": "bool", "name": "str"}),
            _route("/datasets/ID", self._dataset),
            _route("/tasks", self._tasks, {"dataset_id": "int", "name": "str"}),
            _route("/tasks/ID", lambda _, key, __: self._data.tasks.get(key)),
            _route("/tasks/ID/predictors", self._task_predictors, listing),
            _route(
                "/runs",
                self._runs,
                {
                    "dataset_id": "int",
                    "task_id": "ints",
                    "subject": "strs",
                    "session": "strs",
                    "number": "ints",
                    "active_only": "bool",
                },
            ),
            _route("/runs/ID", lambda _, key, __: self._data.runs.get(key)),
            _route("/runs/ID/timing", self._timing),
            _route(
                "/predictors",
                self._predictors,
                {"run_id": "ints", "name": "strs", **listing},
            ),
            _route("/predictors/ID", self._predictor),
            _route(
                "/predictor-events",
                self._predictor_events,
                {
                    "predictor_id": "ints",
                    "run_id": "ints",
                    "stimulus_timing": "bool",
                },
                required=frozenset({"predictor_id"}),
            ),
            _route(
                "/analyses",
                self._analyses,
                {"name": "strs", "dataset_id": "number list"},
            ),
        )

    def answer(self, call: Call) -> Answer:
        """The response to *call*."""
        if len(call.target) > _MAX_NGINX_TARGET:
            return _page(call, 414, "Request-URI Too Large")
        if len(call.target) > _MAX_TARGET:
            return _page(call, 502, "Bad Gateway")
        for route in self._routes:
            if found := route.pattern.fullmatch(call.path):
                break
        else:
            # Unknown paths belong to the web application, whose router would say so.
            if call.method in ("GET", "HEAD"):
                return _compressed(call, 200, _INDEX, "text/html; charset=utf-8")
            return _page(call, 405, "Method Not Allowed")
        if call.method not in ("GET", "HEAD"):
            return _page(call, 405, "Method Not Allowed")
        try:
            values = _parameters(route, call.pairs())
        except _InvalidError as error:
            return _json(call, {"message": {"query": error.args[0]}}, status=422)
        result = route.answer(call, int(found["id"] or 0), values)
        if result is None:
            return _json(call, {"message": "Resource not found"}, status=404)
        if isinstance(result, bytes):
            return _compressed(call, 200, result, "application/json")
        return _json(call, result)

    def datasets(self) -> list[Record]:
        """Datasets by id, in the single-resource form."""
        return list(self._data.datasets.values())

    def runs(self) -> list[Record]:
        """Runs by id."""
        return list(self._data.runs.values())

    def predictors(self) -> list[Record]:
        """Predictors by id."""
        found = self._data.predictors
        return [found[key].record for key in sorted(found)]

    def count_events(
        self, predictor_ids: Sequence[int], run_ids: Sequence[int] | None
    ) -> int:
        """The number of events of the predictors in the runs."""
        return sum(
            len(runs) * self._data.events_per_run(predictor)
            for predictor, runs in self._pairs(predictor_ids, run_ids)
        )

    def events(
        self,
        predictor_ids: Sequence[int],
        run_ids: Sequence[int] | None,
        *,
        stimulus_timing: bool,
    ) -> list[Record]:
        """Events by predictor, run and onset."""
        records: list[Record] = []
        for predictor, runs in self._pairs(predictor_ids, run_ids):
            for run in runs:
                track = self._data.track(predictor, run)
                more: Record = {"stimulus_id": None} if predictor.is_raw else {}
                if stimulus_timing and not predictor.is_raw:
                    stimulus = self._data.stimulus(run)
                    more = {
                        "stimulus_duration": stimulus.duration,
                        "stimulus_id": stimulus.id,
                        "stimulus_onset": stimulus.onset,
                        "stimulus_path": stimulus.path,
                    }
                records += [
                    {
                        "duration": duration,
                        "onset": onset,
                        "predictor_id": predictor.record["id"],
                        "run_id": run,
                        **more,
                        "value": value,
                    }
                    for onset, duration, value in zip(
                        track.onset, track.duration, track.value, strict=True
                    )
                ]
        return records

    def _pairs(
        self, predictor_ids: Sequence[int], run_ids: Sequence[int] | None
    ) -> list[tuple[Predictor, list[int]]]:
        """Each known predictor with those of its runs that are wanted."""
        return [
            (
                predictor := self._data.predictors[key],
                sorted(predictor.runs)
                if run_ids is None
                else by_id(run_ids, predictor.runs),
            )
            for key in by_id(predictor_ids, self._data.predictors)
        ]

    def _datasets(self, call: Call, _: int, values: _Values) -> list[Record]:
        return self._shuffled(
            call,
            (
                {key: value for key, value in dataset.items() if key != "runs"}
                for dataset in self._data.datasets.values()
                if dataset["active"] or not values.get("active_only", True)
                if values.get("name") in (None, dataset["name"])
            ),
        )

    def _dataset(self, _: Call, key: int, __: _Values) -> Record | None:
        return self._data.datasets.get(key)

    def _tasks(self, call: Call, _: int, values: _Values) -> list[Record]:
        return self._shuffled(
            call,
            (
                task
                for task in self._data.tasks.values()
                if values.get("dataset_id") in (None, task["dataset_id"])
                if values.get("name") in (None, task["name"])
            ),
        )

    def _runs(self, call: Call, _: int, values: _Values) -> list[Record]:
        def wanted(run: Record) -> bool:
            active = self._data.datasets[run["dataset_id"]]["active"]
            return (
                (active or not values.get("active_only", True))
                and (values.get("dataset_id") or run["dataset_id"]) == run["dataset_id"]
                and ("task_id" not in values or run["task"] in values["task_id"])
                and all(
                    name not in values or run[name] in values[name]
                    for name in ("subject", "session", "number")
                )
            )

        return self._shuffled(
            call, filter(wanted, self._data.runs.values()), FIRST_RUNS
        )

    def _timing(self, _: Call, key: int, __: _Values) -> list[Record] | None:
        if key not in self._data.runs:
            return None
        stimulus = self._data.stimulus(key)
        return [{"filename": stimulus.path, "onset": stimulus.onset}]

    def _task_predictors(
        self, call: Call, key: int, values: _Values
    ) -> list[Record] | None:
        if key not in self._data.tasks:
            return None
        return self._predictors(
            call, 0, {**values, "run_id": self._data.runs_of(task=key)}
        )

    def _predictors(self, call: Call, _: int, values: _Values) -> list[Record]:
        found: Iterable[Predictor] = self._data.predictors.values()
        if "run_id" in values:
            found = [p for p in found if not p.runs.isdisjoint(values["run_id"])]
        if values.get("newest", True):
            # Before privacy and activity are looked at: what is hidden later may have
            # hidden the public predictor of its name first.
            by_age = sorted(found, key=lambda p: int(p.record["id"]))
            found = {p.record["name"]: p for p in by_age}.values()
        return self._shuffled(
            call,
            (
                p.record
                for p in found
                if p.active or not values.get("active_only", True)
                if not p.record["private"]
                if "name" not in values or p.record["name"] in values["name"]
            ),
            FIRST_PREDICTORS,
        )

    def _predictor(self, _: Call, key: int, __: _Values) -> Record | None:
        found = self._data.predictors.get(key)
        return found.record if found else None

    def _analyses(self, _: Call, __: int, values: _Values) -> list[Record]:
        return [
            analysis
            for analysis in _ANALYSES
            if "name" not in values or analysis["name"] in values["name"]
            if "dataset_id" not in values
            or analysis["dataset_id"] in values["dataset_id"]
        ]

    def _predictor_events(self, call: Call, _: int, values: _Values) -> bytes:
        random = generator(self._seed, "order", sorted(call.pairs()))
        pairs = self._pairs(values["predictor_id"], values.get("run_id"))
        # Raw predictors come first; beyond that the order is the database's.
        pairs = [pairs[k] for k in random.permutation(len(pairs))]
        pairs.sort(key=lambda pair: not pair[0].is_raw)
        timing = values.get("stimulus_timing", False)
        rows: list[str] = []
        for predictor, runs in pairs:
            rows += self._rows(predictor, runs, random, timing=timing)
        return f"[{','.join(rows)}]\n".encode("ascii")

    def _rows(
        self,
        predictor: Predictor,
        runs: Sequence[int],
        random: np.random.Generator,
        *,
        timing: bool,
    ) -> list[str]:
        """The JSON of a predictor's events, the runs interleaved.

        Written by hand, in the form of `json.dumps(record, sort_keys=True)`: the runs
        of one stimulus share all but their id, so most of the text is made once.
        """
        halves: dict[object, tuple[list[str], list[str]]] = {}
        rows: list[str] = []
        for run in runs:
            stimulus = self._data.stimulus(run)
            shared = run if predictor.is_raw else stimulus.id
            if shared not in halves:
                halves[shared] = self._halves(predictor, run)
            middle = str(run)
            if predictor.is_raw:
                middle += ',"stimulus_id":null'
            elif timing:
                middle += (
                    f',"stimulus_duration":{stimulus.duration!r}'
                    f',"stimulus_id":{stimulus.id},"stimulus_onset":{stimulus.onset!r}'
                    f',"stimulus_path":{json.dumps(stimulus.path)}'
                )
            left, right = halves[shared]
            rows += [a + middle + b for a, b in zip(left, right, strict=True)]
        # By the place in the run, give or take a few rows: the runs are interleaved in
        # short segments, and onsets go back and forth, as in recorded answers.
        each = self._data.events_per_run(predictor)
        place = np.tile(np.arange(each, dtype=np.float64), len(runs))
        order = np.argsort(place + 8 * random.random(len(rows)), kind="stable")
        return [rows[k] for k in order.tolist()]

    def _halves(self, predictor: Predictor, run: int) -> tuple[list[str], list[str]]:
        """What stands before and after the run's id in each event of *run*."""
        track = self._data.track(predictor, run)
        key = predictor.record["id"]
        left = [
            f'{{"duration":{"null" if duration is None else repr(duration)}'
            f',"onset":{onset!r},"predictor_id":{key},"run_id":'
            for onset, duration in zip(track.onset, track.duration, strict=True)
        ]
        if predictor.kind.content == "text":
            return left, [f',"value":{json.dumps(value)}}}' for value in track.value]
        return left, [f',"value":"{value}"}}' for value in track.value]

    def _shuffled(
        self, call: Call, records: Iterable[Record], first: Sequence[int] = ()
    ) -> list[Record]:
        """The records in an order that the request decides, but for *first*."""
        rank = {key: place for place, key in enumerate(first)}
        asked = sorted(call.pairs())
        return sorted(
            records,
            key=lambda record: (
                rank.get(record["id"], len(rank)),
                uniforms(self._seed, call.path, asked, record["id"]),
            ),
        )


def _route(
    path: str,
    answer: Callable[[Call, int, _Values], Any],
    parameters: Mapping[str, _Kind] | None = None,
    required: frozenset[str] = frozenset(),
) -> _Route:
    digits = path.replace("ID", r"(?P<id>\d+)")
    pattern = re.compile(digits if "ID" in path else f"{path}(?P<id>)")
    return _Route(pattern, answer, parameters, required)


def _parameters(route: _Route, pairs: Sequence[tuple[str, str]]) -> _Values:
    """The parameters of a request, converted.

    Raises
    ------
    _InvalidError
        With the fields and their messages, as the service words them.
    """
    declared = route.parameters
    if declared is None:
        return {}
    sent: dict[str, str] = {}
    for name, text in pairs:
        sent.setdefault(name, text)  # the first value wins, the rest is not looked at
    values: _Values = {}
    errors: dict[str, Any] = {
        name: ["Missing data for required field."] for name in route.required - {*sent}
    }
    for name, text in sent.items():
        if name not in declared:
            errors[name] = ["Unknown field."]
            continue
        try:
            values[name] = _convert(declared[name], text)
        except _InvalidError as error:
            errors[name] = error.args[0]
    if errors:
        raise _InvalidError(errors)
    return values


def _convert(kind: _Kind, text: str) -> Any:
    match kind:
        case "str":
            return text
        case "bool":
            if text in _TRUTHY or text in _FALSY:
                return text in _TRUTHY
            raise _InvalidError(["Not a valid boolean."])
        case "int":
            return _whole(text)
    values: list[Any] = []
    errors: dict[str, Any] = {}
    for index, part in enumerate(text.split(",")):
        try:
            values.append(_ITEM[kind](part))
        except _InvalidError as error:
            errors[str(index)] = error.args[0]
    if errors:
        raise _InvalidError(errors)
    return values


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _InvalidError(["Not a valid integer."]) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _InvalidError(["Not a valid number."]) from None


def _text(text: str) -> str:
    if not text:
        raise _InvalidError(["Field may not be empty."])
    return text


_ITEM: Mapping[_Kind, Callable[[str], Any]] = {
    "ints": _whole,
    "number list": _number,
    "strs": _text,
}


def _json(call: Call, value: Any, *, status: int = 200) -> Answer:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return _compressed(call, status, text.encode("ascii") + b"\n", "application/json")


def _page(call: Call, status: int, reason: str) -> Answer:
    """A page of the proxy's own."""
    body = (
        f"<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} {reason}</h1></center>\r\n"
        "<hr><center>nginx/1.21.6</center>\r\n</body>\r\n</html>\r\n"
    )
    return _compressed(call, status, body.encode("ascii"), "text/html")


def _compressed(call: Call, status: int, body: bytes, content_type: str) -> Answer:
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Content-Type": content_type,
        "Server": "nginx/1.21.6",
        "Vary": "Accept-Encoding",
    }
    if not call.accepts_gzip:
        return Answer(status=status, body=body, headers=headers)
    return Answer(
        status=status,
        # No time in the stream: the same request gets the same bytes.
        body=gzip.compress(body, compresslevel=6, mtime=0),
        headers={**headers, "Content-Encoding": "gzip"},
        framing="chunked",
    )

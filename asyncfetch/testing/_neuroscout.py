"""Neuroscout's API, as its server behind nginx answers.

True to the service in what surprises clients: a page of HTML under a 200 for a path
that it does not know, 502 for a long URL, 422 for an unknown or empty parameter, the
first value of a repeated one, rows in any order, NaN in JSON, ``value`` always text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from asyncfetch.testing._answer import Answer, Call, generator, uniforms
from asyncfetch.testing._neuroscout_analyses import Analyses
from asyncfetch.testing._neuroscout_data import (
    FIRST_PREDICTORS,
    FIRST_RUNS,
    Catalogue,
    Predictor,
    Record,
    by_id,
)
from asyncfetch.testing._neuroscout_http import (
    INDEX,
    MAX_NGINX_TARGET,
    MAX_TARGET,
    InvalidError,
    Kind,
    Values,
    compressed,
    json_answer,
    page,
    parameters,
    route,
)
from asyncfetch.testing._neuroscout_users import RefusedError, Users, public_profiles


class NeuroscoutService:
    """Neuroscout, played from a seed."""

    prefix = "/neuroscout/api"
    environment: Mapping[str, str] = {"ASYNCFETCH_NEUROSCOUT_URL": prefix}

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self._data = Catalogue(seed=seed, scale=scale)
        listing: dict[str, Kind] = {"active_only": "bool", "newest": "bool"}
        self._routes = (
            route("/datasets", self._datasets, {"active_only": "bool", "name": "str"}),
            route("/datasets/ID", self._dataset),
            route("/tasks", self._tasks, {"dataset_id": "int", "name": "str"}),
            route("/tasks/ID", lambda _, key, __: self._data.tasks.get(key)),
            route("/tasks/ID/predictors", self._task_predictors, listing),
            route(
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
            route("/runs/ID", lambda _, key, __: self._data.runs.get(key)),
            route("/runs/ID/timing", self._timing),
            route(
                "/predictors",
                self._predictors,
                {"run_id": "ints", "name": "strs", **listing},
            ),
            route("/predictors/ID", self._predictor),
            route(
                "/predictor-events",
                self._predictor_events,
                {
                    "predictor_id": "ints",
                    "run_id": "ints",
                    "stimulus_timing": "bool",
                },
                required=frozenset({"predictor_id"}),
            ),
            route("/users", lambda _, __, ___: public_profiles()),
            route("/user", self._profile, is_private=True),
            route(
                "/user/predictors",
                self._own_predictors,
                {"run_id": "ints", "name": "strs", "newest": "bool"},
                is_private=True,
            ),
        )
        self.users = Users()
        self.analyses = Analyses(self._data, self.users)

    def answer(self, call: Call) -> Answer:
        """The response to *call*."""
        if len(call.target) > MAX_NGINX_TARGET:
            return page(call, 414, "Request-URI Too Large")
        if len(call.target) > MAX_TARGET:
            return page(call, 502, "Bad Gateway")
        try:
            answer = self._answer(call)
        except RefusedError as error:
            return replace(error.answer, may_be_kept=False)
        except InvalidError as error:
            return json_answer(call, {"message": {"query": error.args[0]}}, status=422)
        if answer is not None:
            return answer
        # Unknown paths belong to the web application, whose router would say so.
        if call.method in ("GET", "HEAD"):
            return compressed(call, 200, INDEX, "text/html; charset=utf-8")
        return page(call, 405, "Method Not Allowed")

    def _answer(self, call: Call) -> Answer | None:
        """The response of the API, or None where it has none."""
        is_read = call.method in ("GET", "HEAD")
        if call.path == "/auth" and call.method == "POST":
            answer = self.users.log_in(call) or page(call, 502, "Bad Gateway")
            return replace(answer, may_be_kept=False)
        if self.analyses.owns(call):
            said = self.analyses.answer(call)
            return said and replace(said, may_be_kept=False)
        for one in self._routes:
            if found := one.pattern.fullmatch(call.path):
                break
        else:
            return None
        if not is_read:
            return None
        values = parameters(one.parameters, call.pairs(), one.required)
        if one.is_private:
            self.users.caller(call)
        result = one.answer(call, int(found["id"] or 0), values)
        if result is None:
            answer = json_answer(call, {"message": "Resource not found"}, status=404)
        elif isinstance(result, bytes):
            answer = compressed(call, 200, result, "application/json")
        else:
            answer = json_answer(call, result)
        # An upload brings predictors that were not there before.
        is_late = one.is_private or not self._data.is_settled(call.path)
        return replace(answer, may_be_kept=not is_late)

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
            self._data.events_per_run(predictor, run)
            for predictor, runs in self._pairs(predictor_ids, run_ids)
            for run in runs
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

    def _datasets(self, call: Call, _: int, values: Values) -> list[Record]:
        return self._shuffled(
            call,
            (
                {key: value for key, value in dataset.items() if key != "runs"}
                for dataset in self._data.datasets.values()
                if dataset["active"] or not values.get("active_only", True)
                if values.get("name") in (None, dataset["name"])
            ),
        )

    def _dataset(self, _: Call, key: int, __: Values) -> Record | None:
        return self._data.datasets.get(key)

    def _tasks(self, call: Call, _: int, values: Values) -> list[Record]:
        return self._shuffled(
            call,
            (
                task
                for task in self._data.tasks.values()
                if values.get("dataset_id") in (None, task["dataset_id"])
                if values.get("name") in (None, task["name"])
            ),
        )

    def _runs(self, call: Call, _: int, values: Values) -> list[Record]:
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

    def _timing(self, _: Call, key: int, __: Values) -> list[Record] | None:
        if key not in self._data.runs:
            return None
        stimulus = self._data.stimulus(key)
        return [{"filename": stimulus.path, "onset": stimulus.onset}]

    def _task_predictors(
        self, call: Call, key: int, values: Values
    ) -> list[Record] | None:
        if key not in self._data.tasks:
            return None
        return self._predictors(
            call, 0, {**values, "run_id": self._data.runs_of(task=key)}
        )

    def _predictors(self, call: Call, _: int, values: Values) -> list[Record]:
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

    def _predictor(self, _: Call, key: int, __: Values) -> Record | None:
        found = self._data.predictors.get(key)
        return found.record if found else None

    def _profile(self, call: Call, _: int, __: Values) -> Record:
        return self.users.caller(call).profile

    def _own_predictors(self, call: Call, _: int, values: Values) -> list[Record]:
        caller = self.users.caller(call)
        found = [
            p
            for p in self._data.predictors.values()
            if p.owner == caller.id
            if "run_id" not in values or not p.runs.isdisjoint(values["run_id"])
        ]
        if values.get("newest", True):
            by_age = sorted(found, key=lambda p: int(p.record["id"]))
            found = list({p.record["name"]: p for p in by_age}.values())
        return self._shuffled(
            call,
            (
                p.record
                for p in found
                if "name" not in values or p.record["name"] in values["name"]
            ),
        )

    def _predictor_events(self, call: Call, _: int, values: Values) -> bytes:
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
        each = [self._data.events_per_run(predictor, run) for run in runs]
        place = np.concatenate([np.empty(0), *map(np.arange, each)])
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

"""Neuroscout's analyses, reports, uploads and collections, as its server keeps them.

The one part of the archive that remembers: what is created here is there until the
archive ends. Jobs take no time but looks: the first `LOOKS` at a job find it pending.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import re
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncfetch.testing._answer import Answer, Call, uniforms
from asyncfetch.testing._forms import form
from asyncfetch.testing._neuroscout_data import Catalogue, Record, Track
from asyncfetch.testing._neuroscout_http import (
    Kind,
    Values,
    json_answer,
    page,
    parameters,
)
from asyncfetch.testing._neuroscout_users import (
    ACCOUNTS,
    Account,
    Users,
    public_profiles,
)

# Looks at a job that find it pending.
LOOKS = 2

_LETTERS = "23456789abcdefghijkmnopqrstuvwxyz"
# Times go through a field that cuts them to 15 characters.
_NOW = "2023-10-05T20:3"
_EDITABLE = ("DRAFT", "FAILED")
_SUMMARY = (
    "dataset_id",
    "description",
    "hash_id",
    "modified_at",
    "name",
    "nv_count",
    "status",
    "user",
)
_WRITABLE: Mapping[str, type] = {
    "name": str,
    "description": str,
    "predictions": str,
    "model": dict,
    "predictors": list,
    "runs": list,
    "private": bool,
}
_NA = {"", "n/a", "NA", "N/A", "nan", "NaN", "null", "NULL", "None", "#N/A"}

# dataset, description, hash_id, modified_at, name, uploads, owner, predictor name
_FIRST = (
    (9, None, "3q7yo", "2021-12-14T23:3", "f0_no_rescale", 1, 1, "rms"),
    (5, "Speech in Merlin", "k2m7p", "2020-02-11T09:4", "speech", 2, 3, "speech"),
    (28, None, "9dw3r", "2021-06-30T17:2", "brightness", 0, 1, "brightness"),
    (28, None, "h4vx8", "2021-08-19T12:0", "speech", 1, 1, "speech"),
    # The documents' analyses.get(name="speech")[-1].
    (30, None, "52546", "2021-10-07T21:1", "speech", 0, 2, "speech"),
)


class _NoError(Exception):
    """A refusal with its status and body."""


@dataclass(slots=True)
class _Job:
    """Something that goes on for some looks."""

    outcome: Record
    """What there is to see when it is over."""
    left: int = LOOKS

    def look(self) -> Record | None:
        """The outcome, or None while it goes on."""
        self.left -= 1
        return None if self.left >= 0 else self.outcome


@dataclass(slots=True)
class _Analysis:
    record: Record
    owner: int
    compiling: _Job | None = None
    traceback: str = ""
    reports: list[tuple[Record, Record, _Job]] = field(default_factory=list)
    """The filters that each was asked with, the report, and its job."""
    uploads: list[Record] = field(default_factory=list)

    @property
    def is_editable(self) -> bool:
        return self.record["status"] in _EDITABLE and not self.record["locked"]


@dataclass(slots=True)
class _Collection:
    owner: int
    record: Record
    job: _Job


class Analyses:
    """What the service keeps for its users."""

    def __init__(self, data: Catalogue, users: Users) -> None:
        self._data = data
        self._users = users
        self._guard = threading.Lock()
        self._numbers = itertools.count()
        self._collections: dict[int, _Collection] = {}
        self._next_collection = itertools.count(130)
        self._next_vault = itertools.count(9842)
        self.images: dict[str, bytes] = {}
        """What NeuroVault holds, by ``<collection>/<file>``."""
        self._kept: dict[str, _Analysis] = {}
        for row in _FIRST:
            self._add_first(row)
        listing: dict[str, Kind] = {"name": "strs", "dataset_id": "number list"}
        report: dict[str, Kind] = {
            "run_id": "ints",
            "sampling_rate": "number",
            "scale": "bool",
        }
        h = r"/analyses/(?P<hash>[^/]+)"
        c = "/predictors/collection"
        self._routes: dict[tuple[str, str], tuple[_Handler, dict[str, Kind] | None]] = {
            ("GET", "/analyses"): (self._list, listing),
            ("POST", "/analyses"): (self._create, None),
            ("GET", h): (self._one, None),
            ("PUT", h): (self._put, None),
            ("DELETE", h): (self._delete, None),
            ("GET", f"{h}/full"): (self._full, None),
            ("GET", f"{h}/resources"): (self._resources, None),
            ("GET", f"{h}/bibliography"): (self._bibliography, None),
            ("GET", f"{h}/bundle"): (self._bundle, None),
            ("POST", f"{h}/clone"): (self._clone, None),
            ("POST", f"{h}/fill"): (self._fill, {"partial": "bool", "dryrun": "bool"}),
            ("POST", f"{h}/compile"): (self._compile, {"build": "bool"}),
            ("GET", f"{h}/compile"): (self._status, None),
            ("POST", f"{h}/report"): (self._report, report),
            ("GET", f"{h}/report"): (self._get_report, report),
            ("POST", f"{h}/upload"): (self._upload, None),
            ("GET", f"{h}/upload"): (self._uploads, None),
            ("GET", "/user/myanalyses"): (self._mine, None),
            ("GET", "/user/(?P<name>[^/]+)/analyses"): (self._of_user, None),
            ("GET", "/user/collections"): (self._my_collections, None),
            ("GET", "/user/(?P<name>(?!predictors$)[^/]+)"): (self._user, None),
            ("POST", c): (self._collect, None),
            ("GET", rf"{c}/(?P<id>\d+)"): (self._collection, None),
            ("GET", "/image_version"): (self._image_version, None),
            ("GET", r"/datasets/(?P<id>\d+)/analyses"): (self._of_dataset, None),
        }

    def owns(self, call: Call) -> bool:
        """Whether a path is one of these."""
        return any(re.fullmatch(path, call.path) for _, path in self._routes)

    def answer(self, call: Call) -> Answer | None:
        """The response to *call*; None where the service has no such route."""
        method = "GET" if call.method == "HEAD" else call.method
        for (verb, path), (handler, declared) in self._routes.items():
            found = re.fullmatch(path, call.path)
            if not found or verb != method:
                continue
            values: Values = {}
            if declared is not None:
                values = parameters(declared, call.pairs())
            try:
                with self._guard:
                    result = handler(call, found.groupdict(), values)
            except _NoError as error:
                status, message = error.args
                if status in (400, 502):
                    return page(
                        call, status, "Bad Gateway" if message == "" else message
                    )
                return json_answer(call, {"message": message}, status=status)
            return result if isinstance(result, Answer) else json_answer(call, result)
        return page(call, 405, "METHOD NOT ALLOWED") if method != "GET" else None

    # --- analyses ---------------------------------------------------------------------

    def _add_first(self, row: tuple[Any, ...]) -> None:
        dataset, about, key, when, name, uploads, owner, predictor = row
        runs = self._data.runs_of(dataset=dataset)
        record = self._new(key, ACCOUNTS[owner - 1], dataset)
        record.update(
            description=about,
            name=name,
            nv_count=uploads,
            status="PASSED",
            modified_at=when,
            created_at=when,
            submitted_at=when,
            private=False,
            runs=runs,
            predictors=[
                min(
                    p.record["id"]
                    for p in self._data.predictors.values()
                    if p.record["dataset_id"] == dataset
                    and p.record["name"] == predictor
                    and not p.record["private"]
                )
            ],
            model=_model(name, [predictor], [self._data.runs[run] for run in runs]),
        )
        kept = self._kept[key] = _Analysis(record, owner)
        for _ in range(uploads):
            vault = next(self._next_vault)
            kept.uploads.append(_vault(vault))
            for level, stat in (("GROUP", "t"), ("GROUP", "variance")):
                self._add_image(
                    kept.uploads[-1],
                    f"task-x_space-MNI152NLin2009cAsym_contrast-{predictor}"
                    f"_stat-{stat}_statmap.nii.gz",
                    level,
                    _nifti(vault),
                )

    def _new(self, key: str, owner: Account, dataset: int) -> Record:
        return {
            "created_at": _NOW,
            "dataset_id": dataset,
            "description": None,
            "hash_id": key,
            "locked": False,
            "model": {},
            "modified_at": _NOW,
            "name": None,
            "nv_count": 0,
            "parent_id": None,
            "predictions": "",
            "predictors": [],
            "private": True,
            "runs": [],
            "status": "DRAFT",
            "submitted_at": None,
            "user": owner.user_name,
        }

    def _new_key(self) -> str:
        number = next(self._numbers)
        draws = uniforms("hash", number) + uniforms("hash more", number)
        return "".join(_LETTERS[int(u * len(_LETTERS))] for u in draws[:5])

    def _find(self, words: Mapping[str, str]) -> _Analysis:
        if words["hash"] not in self._kept:
            raise _NoError(404, "Resource not found")
        return self._kept[words["hash"]]

    def _own(self, call: Call, words: Mapping[str, str]) -> _Analysis:
        caller = self._users.caller(call)
        found = self._kept.get(words["hash"])
        if found is None or found.owner != caller.id:
            raise _NoError(404, {"message": "Resource not found."})
        return found

    def _summaries(self, wanted: Callable[[_Analysis], bool]) -> list[Record]:
        return [
            {name: one.record[name] for name in _SUMMARY}
            for one in self._kept.values()
            if wanted(one)
        ]

    def _list(self, _: Call, __: Mapping[str, str], values: Values) -> list[Record]:
        return self._summaries(
            lambda one: (
                _is_public(one)
                and ("name" not in values or one.record["name"] in values["name"])
                and (
                    "dataset_id" not in values
                    or one.record["dataset_id"] in values["dataset_id"]
                )
            )
        )

    def _of_dataset(self, _: Call, words: Mapping[str, str], __: Values) -> Any:
        dataset = int(words["id"])
        return self._summaries(
            lambda one: _is_public(one) and one.record["dataset_id"] == dataset
        )

    def _mine(self, call: Call, _: Mapping[str, str], __: Values) -> list[Record]:
        caller = self._users.caller(call)
        return self._summaries(lambda one: one.owner == caller.id)

    def _of_user(self, _: Call, words: Mapping[str, str], __: Values) -> list[Record]:
        name = words["name"]
        return self._summaries(
            lambda one: _is_public(one) and one.record["user"] == name
        )

    def _user(self, _: Call, words: Mapping[str, str], __: Values) -> Record:
        for profile in public_profiles():
            if profile["user_name"] == words["name"]:
                return profile
        raise _NoError(404, "Resource not found")

    def _one(self, _: Call, words: Mapping[str, str], __: Values) -> Record:
        return self._find(words).record

    def _checked(self, call: Call) -> Record:
        """What a body of POST or PUT holds of the fields that can be written."""
        try:
            sent = json.loads(call.body or b"{}")
        except ValueError:
            raise _NoError(400, "Bad Request") from None
        errors: dict[str, list[str]] = {}
        if "dataset_id" not in sent:
            errors["dataset_id"] = ["Missing data for required field."]
        elif sent["dataset_id"] not in self._data.datasets:
            errors["dataset_id"] = ["Invalid dataset id."]
        errors |= {
            name: ["Field may not be null."]
            if sent[name] is None
            else [f"Not a valid {kind.__name__}."]
            for name, kind in _WRITABLE.items()
            if name in sent and not isinstance(sent[name], kind)
        }
        for name in ("runs", "predictors"):
            if name not in errors and any(
                type(one) is not int for one in sent.get(name, ())
            ):
                raise _NoError(502, "")
        runs = sent.get("runs") or []
        if "runs" not in errors and any(one not in self._data.runs for one in runs):
            given = [{"id": one} for one in runs]
            errors["runs"] = [f"Invalid run id: {given}"]
        if "predictors" not in errors and any(
            one not in self._data.predictors for one in sent.get("predictors") or ()
        ):
            errors["predictors"] = ["Invalid predictor id."]
        if errors:
            raise _NoError(422, {"json": errors})
        return {name: sent[name] for name in ("dataset_id", *_WRITABLE) if name in sent}

    def _create(self, call: Call, _: Mapping[str, str], __: Values) -> Record:
        sent = self._checked(call)
        caller = self._users.caller(call)
        record = self._new(self._new_key(), caller, sent["dataset_id"])
        record.update(sent)
        self._kept[record["hash_id"]] = _Analysis(record, caller.id)
        return record

    def _put(self, call: Call, words: Mapping[str, str], _: Values) -> Record:
        sent = self._checked(call)
        found = self._own(call, words)
        if found.record["locked"]:
            raise _NoError(422, "Analysis is locked. It cannot be edited.")
        if found.is_editable:
            found.record.update({**sent, "modified_at": _NOW})
            # Reports that were made of what it was are no longer fresh.
            found.reports = [
                ({**filters, "stale": True}, report, job)
                for filters, report, job in found.reports
            ]
            return found.record
        allowed: Record = {
            name: sent[name]
            for name in ("private", "description", "name")
            if name in sent
        }
        if not allowed:
            raise _NoError(422, "Analysis is not editable. Try cloning it.")
        found.record.update(allowed)
        return found.record

    def _delete(self, call: Call, words: Mapping[str, str], _: Values) -> Record:
        if not self._own(call, words).is_editable:
            raise _NoError(422, "Analysis not editable, cannot delete.")
        del self._kept[words["hash"]]
        return {}

    def _full(self, _: Call, words: Mapping[str, str], __: Values) -> Record:
        found = self._find(words)
        return {
            **found.record,
            "neurovault_collections": [
                {name: one[name] for name in ("collection_id", "uploaded_at")}
                for one in found.uploads
            ],
            "predictors": [
                {"id": one, "name": self._data.predictors[one].record["name"]}
                for one in found.record["predictors"]
            ],
            "runs": [
                {
                    name: value
                    for name, value in self._data.runs[run].items()
                    if name not in ("dataset_id", "task")
                }
                for run in found.record["runs"]
            ],
        }

    def _resources(self, _: Call, words: Mapping[str, str], __: Values) -> Record:
        found = self._find(words)
        dataset = self._data.datasets[found.record["dataset_id"]]
        return {
            "dataset_address": dataset["dataset_address"],
            "dataset_name": dataset["name"],
            "preproc_address": dataset["preproc_address"],
            "predictors": [
                self._data.predictors[one].record for one in found.record["predictors"]
            ],
        }

    def _bibliography(self, _: Call, words: Mapping[str, str], __: Values) -> Record:
        self._find(words)
        names = ("neuroscout", "supporting", "data", "extraction")
        return {**{one: ["<p>de la Vega (2022)</p>"] for one in names}, "csl_json": []}

    def _bundle(self, _: Call, words: Mapping[str, str], __: Values) -> Answer:
        found = self._find(words)
        if found.record["status"] != "PASSED":
            raise _NoError(404, "Analysis bundle not available. Try compiling.")
        return Answer(
            body=_bundle_of(found.record, self._full(_, words, __)),
            headers={
                "Cache-Control": "public, max-age=43200",
                "Content-Disposition": (
                    f"attachment; filename={words['hash']}_bundle.tar.gz"
                ),
                "Content-Type": "application/x-tar",
                "ETag": f'"{words["hash"]}"',
                "Server": "nginx/1.21.6",
            },
        )

    def _clone(self, call: Call, words: Mapping[str, str], _: Values) -> Record:
        caller = self._users.caller(call)
        parent = self._find(words)
        if parent.record["status"] != "PASSED":
            raise _NoError(422, "Only passed analyses can be cloned.")
        record = self._new(self._new_key(), caller, parent.record["dataset_id"])
        for name in ("name", "description", "predictions", "runs", "predictors"):
            record[name] = parent.record[name]
        record["model"] = json.loads(json.dumps(parent.record["model"]))
        record["parent_id"] = words["hash"]
        self._kept[record["hash_id"]] = _Analysis(record, caller.id)
        return record

    def _fill(self, call: Call, words: Mapping[str, str], values: Values) -> Record:
        found = self._own(call, words)
        if not found.is_editable:
            raise _NoError(422, "Analysis not editable.")
        record: Record = json.loads(json.dumps(found.record))
        if not record["runs"]:
            record["runs"] = self._data.runs_of(dataset=record["dataset_id"])
            runs = [self._data.runs[run] for run in record["runs"]]
            record["model"].setdefault("Input", {})
            record["model"]["Input"] = _input_of(runs)
        if not record["predictors"]:
            self._fill_predictors(record, is_partial=values.get("partial", True))
        if not values.get("dryrun", False):
            found.record.update(record)
        return record

    def _fill_predictors(self, record: Record, *, is_partial: bool) -> None:
        steps = record["model"].get("Steps") or [{}]
        names = steps[0].get("Model", {}).get("X", [])
        newest: dict[str, int] = {}
        for one in self._data.predictors.values():
            is_there = not one.runs.isdisjoint(record["runs"])
            if is_there and one.active and not one.record["private"]:
                name, key = one.record["name"], one.record["id"]
                newest[name] = max(key, newest.get(name, 0))
        there = [name for name in names if name in newest]
        if len(there) < len(names) and not is_partial:
            return
        record["predictors"] = [newest[name] for name in there]
        if len(there) < len(names):
            gone = set(names) - set(there)
            steps[0]["Model"]["X"] = there
            parts = {"Transformations": "Input", "Contrasts": "ConditionList"}
            for part, key in parts.items():
                steps[0][part] = [
                    one
                    for one in steps[0].get(part, [])
                    if gone.isdisjoint(one.get(key, []))
                ]

    def _compile(self, call: Call, words: Mapping[str, str], _: Values) -> Record:
        found = self._own(call, words)
        if not found.record["name"]:
            raise _NoError(404, "Resource not found")
        has_events = found.record["runs"] and found.record["predictors"]
        found.record.update(status="PENDING", submitted_at=_NOW)
        found.compiling = _Job(
            {"status": "PASSED", "traceback": ""}
            if has_events
            else {"status": "FAILED", "traceback": "ValueError: No events found"}
        )
        return {"status": "PENDING", "traceback": ""}

    def _status(self, _: Call, words: Mapping[str, str], __: Values) -> Record:
        found = self._find(words)
        if found.compiling is not None and (over := found.compiling.look()):
            found.record["status"] = over["status"]
            found.traceback = over["traceback"]
            found.compiling = None
        return {"status": found.record["status"], "traceback": found.traceback}

    def _report(self, _: Call, words: Mapping[str, str], values: Values) -> Record:
        found = self._find(words)
        report = {
            "generated_at": _NOW,
            "result": None,
            "sampling_rate": values.get("sampling_rate"),
            "scale": values.get("scale", True),
            "status": "PENDING",
            "traceback": None,
            "warnings": [],
        }
        runs = values.get("run_id") or found.record["runs"]
        known = [self._data.runs[run] for run in runs if run in self._data.runs]
        over: Record = {"status": "FAILED", "traceback": "KeyError: 'trial_type'"}
        if known and found.record["predictors"]:
            over = {
                "result": {
                    "design_matrix": [
                        f"https://neuroscout.org/reports/{words['hash']}/"
                        f"sub-{run['subject']}_design_matrix.tsv"
                        for run in known
                    ],
                    "design_matrix_corrplot": [{"mark": "rect"} for _ in known],
                    "design_matrix_plot": [{"mark": "rect"} for _ in known],
                },
                "status": "OK",
                "traceback": None,
                "warnings": [[]],
            }
        found.reports.append((dict(values), report, _Job(over)))
        return dict(report)

    def _get_report(self, _: Call, words: Mapping[str, str], values: Values) -> Record:
        found = self._find(words)
        matching = [
            (filters, report, job)
            for filters, report, job in found.reports
            if all(filters.get(name) == value for name, value in values.items())
        ]
        if not matching:
            raise _NoError(404, "Report not found")
        filters, report, job = matching[-1]
        if filters.get("stale"):
            raise _NoError(404, "No fresh reports available")
        if report["status"] == "PENDING" and (over := job.look()):
            report.update(over)
        return report

    # --- images on their way to NeuroVault --------------------------------------------

    def _uploads(self, _: Call, words: Mapping[str, str], __: Values) -> list[Record]:
        found = self._find(words)
        seen = json.loads(json.dumps(found.uploads))
        for upload in found.uploads:
            for file in upload["files"]:
                file["status"] = "OK"  # the next look finds it there
        return sorted(seen, key=lambda one: int(one["collection_id"]))

    def _upload(self, call: Call, words: Mapping[str, str], _: Values) -> Record:
        found = self._find(words)
        sent = form(call)
        fields = {part.name: part.text for part in sent if part.file_name is None}
        files = [part for part in sent if part.file_name is not None]
        if fields.get("validation_hash") != _validation(words["hash"]):
            raise _NoError(422, "Invalid validation hash.")
        if files and "level" not in fields:
            raise _NoError(422, "Must provide image level.")
        if files and fields["level"] not in ("GROUP", "SUBJECT"):
            raise _NoError(502, "")
        if "collection_id" in fields:
            wanted = int(fields["collection_id"])
            same = [u for u in found.uploads if u["collection_id"] == wanted]
            if not same:
                raise _NoError(404, "No record of collection id.")
            upload = same[0]
        else:
            if found.uploads and fields.get("force", "").lower() != "true":
                raise _NoError(
                    422,
                    f"Error creating collection named: {found.record['name']} - "
                    f"{words['hash']}, perhaps one with that name already exists?",
                )
            args = fields.get("cli_args")
            upload = _vault(next(self._next_vault))
            upload.update(
                cli_args=json.loads(args) if args else None,
                cli_version=fields.get("cli_version"),
                estimator=fields.get("estimator"),
                fmriprep_version=fields.get("fmriprep_version"),
                uploaded_at=_NOW,
            )
            found.uploads.append(upload)
            found.record["nv_count"] += 1
        for file in files:
            assert file.file_name is not None
            self._add_image(upload, file.file_name, fields["level"], file.data)
            upload["files"][-1]["status"] = "PENDING"
        return upload

    def _add_image(self, upload: Record, name: str, level: str, data: bytes) -> None:
        upload["files"].append(
            {"basename": name, "level": level, "status": "OK", "traceback": None}
        )
        self.images[f"{upload['collection_id']}/{name}"] = data

    # --- collections of predictors ----------------------------------------------------

    def _collect(self, call: Call, _: Mapping[str, str], __: Values) -> Record:
        sent = form(call)
        known = ("collection_name", "dataset_id", "runs", "event_files", "descriptions")
        texts = {part.name: part.text for part in sent if part.file_name is None}
        files = [part for part in sent if part.name == "event_files"]
        runs = [part.text for part in sent if part.name == "runs"]
        missing = {
            name: ["Missing data for required field."]
            for name in ("collection_name", "dataset_id")
            if name not in texts
        }
        if missing or not runs:
            field_errors = missing or {"runs": ["Missing data for required field."]}
            raise _NoError(422, {"form": field_errors})
        if not files:
            raise _NoError(
                422, {"files": {"event_files": ["Missing data for required field."]}}
            )
        caller = self._users.caller(call)
        try:
            descriptions = json.loads(texts.get("descriptions", "null"))
        except ValueError:
            raise _NoError(502, "") from None
        if "/" in texts["collection_name"] or any(p.name not in known for p in sent):
            raise _NoError(502, "")
        if len(files) != len(runs):
            raise _NoError(422, "The length of event_files and runs must be the same.")
        ids = [[int(one) for one in text.split(",")] for text in runs]
        flat = [one for some in ids for one in some]
        if len(flat) != len(set(flat)):
            raise _NoError(422, "Runs can only be assigned to a single event file.")
        key = next(self._next_collection)
        record: Record = {
            "collection_name": texts["collection_name"],
            "id": key,
            "predictors": [],
            "status": "PENDING",
            "traceback": None,
            "uploaded_at": _NOW,
        }
        job = _Job(
            self._collected(
                caller, texts, ids, [one.text for one in files], descriptions
            )
        )
        self._collections[key] = _Collection(caller.id, record, job)
        return dict(record)

    def _collected(
        self,
        caller: Account,
        texts: Mapping[str, str],
        ids: list[list[int]],
        files: list[str],
        descriptions: Any,
    ) -> Record:
        """What becomes of an upload."""
        tables = [list(csv.reader(io.StringIO(text), delimiter="\t")) for text in files]
        heads = [table[0] for table in tables]
        if not {"onset", "duration"} <= set(heads[0]) or any(
            set(head) != set(heads[0]) for head in heads
        ):
            # For ever: the job ends before it can say that it has.
            return {"traceback": "ValueError: Column names are not all the same"}
        if descriptions is not None and not isinstance(descriptions, dict):
            return {"status": "FAILED", "traceback": "AttributeError: 'list' object"}
        dataset = int(texts["dataset_id"])
        for run in (run for some in ids for run in some):
            if run not in self._data.runs or dataset not in self._data.datasets:
                return {
                    "status": "FAILED",
                    "traceback": "sqlalchemy.exc.IntegrityError: insert or update on "
                    'table "predictor_run" violates foreign key constraint',
                }
        predictors = []
        for name in heads[0]:
            if name in ("onset", "duration"):
                continue
            tracks = {
                run: _track(table, name)
                for some, table in zip(ids, tables, strict=True)
                for run in some
            }
            record = self._data.upload(
                name,
                caller.id,
                dataset,
                f"Collection: {texts['collection_name']}",
                tracks,
            )
            record["description"] = (descriptions or {}).get(name)
            predictors.append(record)
        return {"predictors": predictors, "status": "OK"}

    def _collection(self, _: Call, words: Mapping[str, str], __: Values) -> Record:
        if int(words["id"]) not in self._collections:
            raise _NoError(404, "Resource not found")
        found = self._collections[int(words["id"])]
        if found.record["status"] == "PENDING" and (over := found.job.look()):
            found.record.update(over)
        return found.record

    def _my_collections(self, call: Call, _: Mapping[str, str], __: Values) -> Any:
        caller = self._users.caller(call)
        return [c.record for c in self._collections.values() if c.owner == caller.id]

    def _image_version(self, _: Call, __: Mapping[str, str], ___: Values) -> Record:
        return {"version": "0.6.0"}


_Handler = Callable[[Call, Mapping[str, str], Values], Any]


def _is_public(one: _Analysis) -> bool:
    return one.record["status"] == "PASSED" and not one.record["private"]


def _model(name: str, predictors: list[str], runs: list[Record]) -> Record:
    return {
        "Input": _input_of(runs),
        "Name": name,
        "Steps": [
            {
                "Contrasts": [],
                "DummyContrasts": {"Type": "t"},
                "Level": "Run",
                "Model": {"X": predictors},
                "Transformations": [],
            },
            {"DummyContrasts": {"Type": "FEMA"}, "Level": "Subject"},
            {"DummyContrasts": {"Type": "t"}, "Level": "Dataset"},
        ],
    }


def _input_of(runs: list[Record]) -> Record:
    """The entities of *runs*, in no particular order."""
    entities = {"Subject": "subject", "Task": "task_name", "Run": "number"}
    entities["Session"] = "session"
    found: Record = {}
    for title, name in entities.items():
        values = {run[name] for run in runs if run[name] is not None}
        if values:
            found[title] = sorted(values, key=lambda one: uniforms("input", one))
    return found


def _validation(key: str) -> str:
    return f"validation-of-{key}"


def _vault(collection: int) -> Record:
    return {
        "cli_args": None,
        "cli_version": "0.5.1",
        "collection_id": collection,
        "estimator": "nistats",
        "files": [],
        "fmriprep_version": None,
        "uploaded_at": "2021-05-06T10:5",
    }


def _nifti(seed: int) -> bytes:
    """A small NIfTI-1 image: the header that readers want, and 2 x 2 x 2 voxels."""
    head = bytearray(352)
    head[0:4] = (348).to_bytes(4, "little")
    for place, value in enumerate((3, 2, 2, 2, 1, 1, 1, 1)):
        head[40 + 2 * place : 42 + 2 * place] = value.to_bytes(2, "little")
    head[70:72] = (2).to_bytes(2, "little")  # unsigned bytes
    head[72:74] = (8).to_bytes(2, "little")
    head[108:112] = bytes.fromhex("0000b043")  # 352 as a float: where voxels begin
    head[344:348] = b"n+1\0"
    voxels = bytes((seed + k) % 256 for k in range(8))
    return gzip.compress(bytes(head) + voxels, mtime=0)


def _bundle_of(record: Record, full: Record) -> bytes:
    files = {
        "analysis.json": full,
        "model.json": record["model"],
        "resources.json": {"validation_hash": _validation(record["hash_id"])},
        "dataset_description.json": {"Name": record["name"], "BIDSVersion": "1.0.2"},
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content, sort_keys=True).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _track(table: list[list[str]], name: str) -> Track:
    head, *rows = table
    place = {title: head.index(title) for title in ("onset", "duration", name)}
    kept = [row for row in rows if row and row[place[name]].strip() not in _NA]
    kept.sort(key=lambda row: float(row[place["onset"]]))
    durations = [row[place["duration"]] for row in kept]
    return Track(
        onset=[float(row[place["onset"]]) for row in kept],
        duration=[
            None if text in _NA or math.isnan(float(text)) else float(text)
            for text in durations
        ],
        value=[row[place[name]] for row in kept],
    )

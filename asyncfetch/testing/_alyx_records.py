"""Records of Alyx as they are sent, and its parameters as conditions on rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from asyncfetch._alyx_schema import ENDPOINTS
from asyncfetch.testing._alyx_data import (
    PROVENANCES,
    QC,
    STATUSES,
    AlyxData,
    region_and_below,
)
from asyncfetch.testing._alyx_django import RefusedError, Row, pairs, test_of

Record = dict[str, Any]
Test = Callable[[Row], bool]


class InvalidError(Exception):
    """What fails a validation; holds the body of the answer, and its status."""

    def __init__(self, body: Record, status: int = 400) -> None:
        super().__init__(body)
        self.body: Record = {**body, "status_code": status}
        self.status = status


def names(rows: Iterable[Row], field: str = "name") -> list[str]:
    return [row[field] for row in rows]


def _name(row: Row | None, field: str = "name") -> Any:
    return None if row is None else row[field]


def with_uuid(path: str, identifier: str) -> str:
    stem, _, extension = path.rpartition(".")
    return f"{stem}.{identifier}.{extension}"


class Records:
    """Rows as records, with the addresses of one server in them."""

    def __init__(self, base: str, files: str) -> None:
        self._base = base
        self._data = files

    def of(self, endpoint: str, row: Row) -> Record:
        """The record of a list."""
        made = getattr(self, "_" + endpoint.replace("-", "_"), None)
        if made is not None:
            found: Record = made(row)
            return found
        return {name: _plain(row.get(name)) for name in ENDPOINTS[endpoint].columns}

    def one(self, endpoint: str, row: Row) -> Record:
        """The record by its key, which holds more for some."""
        found = self.of(endpoint, row)
        if endpoint == "sessions":
            found |= self._whole_session(row)
        if endpoint == "insertions":
            found["datasets"] = [
                {"id": one["id"], "name": one["name"], "qc": one["qc"]}
                for one in row["datasets"]
            ]
        if endpoint == "subjects":
            found |= {"weighings": [], "water_administrations": []}
        return found

    def _url(self, endpoint: str, key: str) -> str:
        return f"{self._base}/{endpoint}/{key}"

    def _sessions(self, row: Row) -> Record:
        return {
            "id": row["id"],
            "subject": row["subject"]["nickname"],
            "start_time": row["start_time"],
            "number": row["number"],
            "lab": row["lab"]["name"],
            "projects": names(row["projects"]),
            "url": self._url("sessions", row["id"]),
            "task_protocol": row["task_protocol"],
        }

    def _whole_session(self, row: Row) -> Record:
        kept = "type end_time narrative n_correct_trials n_trials extended_qc json"
        return {
            **{name: row[name] for name in f"{kept} auto_datetime".split()},
            "users": names(row["users"], "username"),
            "location": _name(row["location"]),
            "procedures": names(row["procedures"]),
            "parent_session": None,
            "qc": QC[row["qc"]],
            "wateradmin_session_related": [],
            "data_dataset_session_related": [
                {
                    "id": one["id"],
                    "name": one["name"],
                    "dataset_type": one["dataset_type"]["name"],
                    "data_url": self._data_url(one),
                    "url": self._url("datasets", one["id"]),
                    "file_size": one["file_size"],
                    "hash": one["hash"],
                    "version": one["version"],
                    "collection": one["collection"],
                    "revision": ""
                    if one["revision"] is None
                    else one["revision"]["id"],
                    "default_revision": str(one["default_dataset"]),
                    "qc": QC[one["qc"]],
                }
                for one in row["data_dataset_session_related"]
                if self._data_url(one) is not None
            ],
            "probe_insertion": [self._insertions(o) for o in row["probe_insertion"]],
            "field_of_view": [],
            "notes": [],
        }

    def _datasets(self, row: Row) -> Record:
        session = row["session"]
        kept = "created_datetime collection file_size hash version auto_datetime json"
        return {
            "url": self._url("datasets", row["id"]),
            "name": row["name"],
            "created_by": row["created_by"]["username"],
            "dataset_type": row["dataset_type"]["name"],
            "data_format": row["data_format"]["name"],
            "session": session and self._url("sessions", session["id"]),
            "experiment_number": session and session["number"],
            "file_records": [self._file_record(one) for one in row["file_records"]],
            "revision": "" if row["revision"] is None else row["revision"]["name"],
            "default_dataset": row["default_dataset"],
            "protected": len(row["tags"]),
            "public": len(row["tags"]),
            "tags": names(row["tags"]),
            "qc": QC[row["qc"]],
            **{name: row[name] for name in kept.split()},
        }

    def _data_url(self, row: Row) -> str | None:
        """Where the first copy is that a server has."""
        copies = map(self._file_record, row["file_records"])
        urls = (one["data_url"] for one in copies if one["exists"])
        return next(filter(None, urls), None)

    def _file_record(self, row: Row) -> Record:
        repository = row["data_repository"]["name"]
        kind, _, lab = repository.partition("_")
        below = {
            "flatiron": f"/public/{lab}/Subjects/",
            "aws": f"data/{lab}/Subjects/",
        }.get(kind, "/mnt/s0/Data/Subjects/")
        path = with_uuid(row["relative_path"], row["dataset"]["id"])
        url = None
        if repository.startswith("flatiron"):
            url = f"{self._data}{below}{path}"  # with its # as it is
        elif repository.startswith("aws"):
            url = f"{self._data}/s3/{below}{path}"
        return {
            "id": row["id"],
            "data_repository": repository,
            "data_repository_path": below,
            "relative_path": row["relative_path"],
            "data_url": url,
            "exists": row["exists"],
        }

    def _files(self, row: Row) -> Record:
        return {
            "url": self._url("files", row["id"]),
            "dataset": self._url("datasets", row["dataset"]["id"]),
            "data_repository": row["data_repository"]["name"],
            "name": "",
            "json": row["json"],
            "relative_path": row["relative_path"],
            "exists": row["exists"],
        }

    def _session_info(self, row: Row) -> Record:
        whole = self._sessions(row)
        del whole["url"]
        return whole

    def _insertions(self, row: Row) -> Record:
        return {
            "id": row["id"],
            "session": row["session"]["id"],
            "model": row["model"]["name"].removeprefix("Neuropixel "),
            "session_info": self._session_info(row["session"]),
            "name": row["name"],
            "json": row["json"],
            "serial": row["serial"],
            "auto_datetime": row["auto_datetime"],
            "chronic_insertion": None,
            "datasets": [one["id"] for one in row["datasets"]],
        }

    def _trajectories(self, row: Row) -> Record:
        insertion = row["probe_insertion"]
        return {
            **{
                k: row[k] for k in "id x y z depth theta phi roll datetime json".split()
            },
            "probe_insertion": insertion["id"],
            "provenance": PROVENANCES[row["provenance"]],
            "session": self._session_info(insertion["session"]),
            "probe_name": insertion["name"],
            "coordinate_system": "IBL-Allen" if row["provenance"] == 70 else None,
            "chronic_insertion": None,
        }

    def _tasks(self, row: Row) -> Record:
        record = {name: row.get(name) for name in ENDPOINTS["tasks"].columns}
        status = STATUSES[row["status"]]
        return {**record, "session": row["session"]["id"], "status": status}

    def _subjects(self, row: Row) -> Record:
        return {
            **dict.fromkeys(ENDPOINTS["subjects"].columns),
            "nickname": row["nickname"],
            "url": self._url("subjects", row["nickname"]),
            "id": row["id"],
            "responsible_user": row["responsible_user"]["username"],
            "birth_date": row["birth_date"],
            "death_date": row["death_date"],
            "age_weeks": 60,
            "species": "Laboratory mouse",
            "sex": row["sex"],
            "projects": names(row["projects"]),
            "session_projects": names(row["projects"]),
            "lab": row["lab"]["name"],
            "genotype": [],
            "description": row["description"],
            "alive": row["death_date"] is None,
            "reference_weight": 20.82,
            "json": row["json"],
        }

    def _weighings(self, row: Row) -> Record:
        return {
            "subject": row["subject"]["nickname"],
            "date_time": row["date_time"],
            "weight": row["weight"],
            "user": row["user"]["username"],
            "url": self._url("weighings", row["id"]),
        }

    def _water_administrations(self, row: Row) -> Record:
        return {
            "subject": row["subject"]["nickname"],
            "date_time": row["date_time"],
            "water_administered": row["water_administered"],
            "water_type": "Water",
            "user": row["user"]["username"],
            "url": self._url("water-administrations", row["id"]),
            "session": None,
            "adlib": False,
        }

    def _channels(self, row: Row) -> Record:
        kept = "id name json axial lateral x y z"
        return {
            **{name: row[name] for name in kept.split()},
            "trajectory_estimate": row["trajectory_estimate"]["id"],
            "brain_region": row["brain_region"]["id"],
        }


def _plain(value: Any) -> Any:
    """What stands for a relation: the name of a row."""
    if isinstance(value, Row):
        for field in ("username", "nickname", "name"):
            if field in value:
                return (
                    value["id"]
                    if field == "name" and "acronym" in value
                    else value[field]
                )
        return value["id"]
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def condition(data: AlyxData, endpoint: str, name: str, text: str) -> Test | None:
    """The rows that a parameter leaves; None for one that is ignored.

    Raises
    ------
    InvalidError, RefusedError
        The server refuses the value.
    """
    text = text.strip()
    known = ENDPOINTS[endpoint].filters
    if not text or name not in known or name == "django":
        return None
    if endpoint in _WATER and name in {"lab", "users", "date_range", "location"}:
        raise RefusedError("Cannot resolve keyword 'session' into field.")
    own = _OWN.get((endpoint, name))
    if own is not None:
        return own(data, text)
    if name.startswith("atlas_"):
        return _in_atlas(data, endpoint, name, text)
    if name in {"extended_qc", "json"} and endpoint == "sessions":
        tests = [test_of(f"{name}__{one.key}", one.value) for one in pairs(text)]
        return lambda row: all(test(row) for test in tests)
    path, lookup = _PATHS.get((endpoint, name), (name, "exact"))
    if known[name] == "b":
        if text not in {"True", "true", "False", "false"}:
            return None
        return test_of(path, text.lower() == "true")
    if name in _UUIDS:
        try:
            uuid.UUID(text)
        except ValueError:
            raise InvalidError({name: ["Enter a valid UUID."]}) from None
    if known[name] in "if":
        try:
            return test_of(path, float(text))
        except ValueError:
            raise InvalidError({name: ["Enter a number."]}) from None
    return test_of(f"{path}__{lookup}", text)


_WATER = frozenset({"weighings", "water-administrations"})
_UUIDS = frozenset(
    "id session dataset probe_insertion trajectory_estimate parent_session".split()
)
_NAMED = {
    "subject": ("subject__nickname", "exact"),
    "nickname": ("subject__nickname", "exact"),
    "lab": ("lab__name", "exact"),
    "user": ("user__username", "exact"),
}
_SESSION = {
    "subject": ("subject__nickname", "iexact"),
    "nickname": ("subject__nickname", "iexact"),
    "lab": ("lab__name", "iexact"),
    "project": ("projects__name", "icontains"),
    "projects": ("projects__name", "icontains"),
    "procedures": ("procedures__name", "icontains"),
    "location": ("location__name", "icontains"),
    "task_protocol": ("task_protocol", "icontains"),
    "type": ("type", "iexact"),
    "tag": ("data_dataset_session_related__tags__name", "icontains"),
}
_BELOW_SESSION = {
    name: (f"session__{path}", lookup) for name, (path, lookup) in _SESSION.items()
} | {
    "date": ("session__start_time__date", "exact"),
    "experiment_number": ("session__number", "exact"),
}
_PATHS: Mapping[tuple[str, str], tuple[str, str]] = {
    (endpoint, name): path
    for endpoint, paths in {
        "sessions": _SESSION,
        "datasets": {
            **_BELOW_SESSION,
            "subject": ("session__subject__nickname", "exact"),
            "lab": ("session__lab__name", "exact"),
            "created_by": ("created_by__username", "exact"),
            "created_date": ("created_datetime__date", "exact"),
            "created_date_gte": ("created_datetime__date", "gte"),
            "created_date_lte": ("created_datetime__date", "lte"),
            "dataset_type": ("dataset_type__name", "exact"),
            "data_format": ("data_format__name", "exact"),
            "revision": ("revision__name", "exact"),
            "tag": ("tags__name", "exact"),
            "exists": ("file_records__exists", "exact"),
        },
        "files": {
            "lab": ("dataset__session__lab__name", "exact"),
            "data_repository": ("data_repository__name", "exact"),
        },
        "insertions": {**_BELOW_SESSION, "model": ("model__name", "exact")},
        "trajectories": {
            **{k: (f"probe_insertion__{p}", o) for k, (p, o) in _BELOW_SESSION.items()},
            "session": ("probe_insertion__session", "exact"),
            "probe": ("probe_insertion__name", "exact"),
        },
        "channels": {
            "probe_insertion": ("trajectory_estimate__probe_insertion", "exact"),
            "session": ("trajectory_estimate__probe_insertion__session", "exact"),
        },
        "tasks": {"lab": ("session__lab__name", "exact")},
        "subjects": {
            "lab": ("lab__name", "exact"),
            "project": ("projects__name", "exact"),
            "responsible_user": ("responsible_user__username", "exact"),
        },
        "weighings": _NAMED,
        "water-administrations": _NAMED,
        "water-restriction": _NAMED,
        "brain-regions": {
            "acronym": ("acronym", "iexact"),
            "name": ("name", "icontains"),
            "description": ("description", "icontains"),
        },
    }.items()
    for name, path in paths.items()
}


def _all_of(path: str) -> Callable[[AlyxData, str], Test]:
    def make(_data: AlyxData, text: str) -> Test:
        tests = [test_of(path, one.strip()) for one in text.split(",")]
        return lambda row: all(test(row) for test in tests)

    return make


def _dates(_data: AlyxData, text: str) -> Test:
    found = text.split(",")
    if len(found) != 2:
        raise RefusedError("list index out of range")
    return lambda row: found[0] <= row["start_time"][:10] <= found[1]


def _named_number(path: str, known: Mapping[int, str], what: str) -> Any:
    numbers = {name.lower(): number for number, name in known.items()}

    def make(_data: AlyxData, text: str) -> Test:
        if text.lower() not in numbers:
            raise RefusedError(
                f"Invalid{what}, choices are: {', '.join(known.values())}"
            )
        return test_of(path, numbers[text.lower()])

    return make


def _histology(_data: AlyxData, text: str) -> Test | None:
    if text not in {"True", "true", "False", "false"}:
        return None
    test = test_of("subject__actions_sessions__procedures__name", "Histology")
    return lambda row: test(row) == (text.lower() == "true")


def _performance(least: bool) -> Any:
    def make(_data: AlyxData, text: str) -> Test:
        bound = float(text)

        def test(row: Row) -> bool:
            percent = 100 * row["n_correct_trials"] / row["n_trials"]
            return bool(percent >= bound if least else percent <= bound)

        return test

    return make


def _in_atlas(data: AlyxData, endpoint: str, name: str, text: str) -> Test:
    def is_it(region: Row) -> bool:
        if name == "atlas_id":
            return bool(region["id"] == float(text))
        if name == "atlas_acronym":
            return bool(region["acronym"].lower() == text.lower())
        return text.lower() in region["name"].lower()

    wanted = {one["id"] for one in data.tables["brain-regions"] if is_it(one)}

    def test(row: Row) -> bool:
        insertions = row["probe_insertion"] if endpoint == "sessions" else [row]
        return any(
            region_and_below(channel["brain_region"], wanted)
            for insertion in insertions
            for trajectory in insertion["trajectory_estimate"]
            if trajectory["provenance"] == 70
            for channel in trajectory["channels"]
        )

    return test


_OWN: Mapping[tuple[str, str], Callable[[AlyxData, str], Test | None]] = {
    ("sessions", "users"): _all_of("users__username"),
    ("sessions", "datasets"): _all_of("data_dataset_session_related__name"),
    ("sessions", "dataset_types"): _all_of(
        "data_dataset_session_related__dataset_type__name"
    ),
    ("sessions", "date_range"): _dates,
    ("sessions", "qc"): _named_number("qc", QC, "qc"),
    ("datasets", "qc"): _named_number("qc", QC, "qc"),
    ("tasks", "status"): _named_number("status", STATUSES, "status"),
    ("trajectories", "provenance"): _named_number(
        "provenance", PROVENANCES, "provenance"
    ),
    ("sessions", "histology"): _histology,
    ("sessions", "performance_gte"): _performance(least=True),
    ("sessions", "performance_lte"): _performance(least=False),
}


def repeated(row: Row, qc: str) -> Iterator[Row]:
    """A row once for each of its datasets of that quality, as a join gives it."""
    numbers = {name: number for number, name in QC.items()}
    for dataset in row["data_dataset_session_related"]:
        if dataset["qc"] <= numbers[qc.upper()]:
            yield row

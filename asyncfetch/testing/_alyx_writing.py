"""What Alyx makes of what is sent to it, and how it refuses that.

Fields that it does not know, and those that it sets by itself, are left out in silence;
every field whose value does not fit is named in one answer.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any

from asyncfetch._alyx_schema import Endpoint
from asyncfetch.testing._alyx_data import PROVENANCES, QC, STATUSES, AlyxData
from asyncfetch.testing._alyx_django import JSON_FIELDS, RefusedError, Row
from asyncfetch.testing._alyx_records import InvalidError, Record, names

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "sessions": ("subject", "start_time"),
    "subjects": ("nickname", "lab"),
    "notes": ("content_type", "object_id", "text"),
    "trajectories": ("provenance", "x", "y", "z", "depth", "theta", "phi"),
}
"""Fields without which nothing is made, nor replaced by PUT."""

_READ_ONLY = frozenset(
    "id url auto_datetime session_info session_projects probe_name age_weeks alive "
    "file_records public protected experiment_number related_descriptions".split()
)
# Beyond the columns of lists: what is sent and read one by one.
_ALSO = {
    "sessions": "end_time:t extended_qc:j json:j location n_correct_trials:i "
    "n_trials:i narrative parent_session procedures:l qc type users:l"
}
_RELATIONS = {
    "brain_region": ("brain-regions", "id"),
    "created_by": ("users", "username"),
    "data_format": ("data-formats", "name"),
    "data_repository": ("data-repository", "name"),
    "dataset": ("datasets", "id"),
    "dataset_type": ("dataset-types", "name"),
    "lab": ("labs", "name"),
    "location": ("locations", "name"),
    "parent": ("brain-regions", "id"),
    "probe_insertion": ("insertions", "id"),
    "procedures": ("procedures", "name"),
    "projects": ("projects", "name"),
    "responsible_user": ("users", "username"),
    "revision": ("revisions", "name"),
    "session": ("sessions", "id"),
    "subject": ("subjects", "nickname"),
    "tags": ("tags", "name"),
    "trajectory_estimate": ("trajectories", "id"),
    "user": ("users", "username"),
    "users": ("users", "username"),
    "water_type": ("water-type", "name"),
}
_CHOICES = {
    ("datasets", "qc"): QC,
    ("sessions", "qc"): QC,
    ("tasks", "status"): STATUSES,
    ("trajectories", "provenance"): PROVENANCES,
}
_NICKNAME = re.compile(r"[A-Za-z0-9_-]+")
_PATH = re.compile(
    r"(?P<subject>[^/]+)/(?P<date>\d{4}-\d\d-\d\d)/(?P<number>\d+)(?:/(?P<below>.*))?"
)
_FILE = re.compile(
    r"(?:(?P<collection>.*?)/)?(?:#(?P<revision>[^#/]+)#/)?(?P<name>[^/]+)"
)


class Writing:
    """Changes of the rows of one server."""

    def __init__(self, data: AlyxData) -> None:
        self._data = data

    def made(self, endpoint: Endpoint, sent: Any, user: str) -> Row:
        """A new row, as it was sent."""
        table = self._data.tables[endpoint.name]
        values = self._values(endpoint, sent, is_whole=True)
        if endpoint.name == "notes":
            self._check_object(values)
        row = _like(table[-1] if table else Row())
        row["id"] = self._data.uuid(endpoint.name, len(table), "new")
        callers = self._named("users", user)
        if "user" in row:
            row["user"] = callers[0]
        if endpoint.name == "sessions":
            row.update(lab=values["subject"]["lab"], users=callers)
            values["subject"]["actions_sessions"].append(row)
        row.update(values)
        table.append(row)
        return row

    def change(
        self, endpoint: Endpoint, row: Row, sent: Any, *, is_whole: bool
    ) -> None:
        """Set what was sent; *is_whole* when it must be all that is required."""
        row.update(self._values(endpoint, sent, is_whole=is_whole))

    def remove(self, endpoint: Endpoint, row: Row) -> None:
        """Take a row away, unless a tag protects it."""
        if endpoint.name == "datasets" and row["tags"]:
            tags = " ".join(f'"{tag}"' for tag in names(row["tags"]))
            words = f"Failed to delete dataset {row['name']} due to protected tag(s)"
            raise InvalidError({"detail": f"{words} {tags}"}, 403)
        self._data.tables[endpoint.name].remove(row)
        if endpoint.name == "sessions":
            row["subject"]["actions_sessions"].remove(row)

    def _check_object(self, values: Mapping[str, Any]) -> None:
        """Refuse a note on what is not there."""
        model = values["content_type"].rpartition(".")[2]
        rows = self._data.tables.get(f"{model}s", [])
        if not any(row["id"] == values["object_id"] for row in rows):
            raise RefusedError(f"{model.title()} matching query does not exist.")

    # --- validation -------------------------------------------------------------------

    def _values(
        self, endpoint: Endpoint, sent: Any, *, is_whole: bool
    ) -> dict[str, Any]:
        if not isinstance(sent, Mapping):
            got = type(sent).__name__
            words = f"Invalid data. Expected a dictionary, but got {got}."
            raise InvalidError({"non_field_errors": [words]})
        also = (word.partition(":") for word in _ALSO.get(endpoint.name, "").split())
        kinds = {**endpoint.columns, **{name: kind or "s" for name, _, kind in also}}
        writable = kinds.keys() - _READ_ONLY
        if endpoint.name == "brain-regions":
            writable = {"description"}
        required = REQUIRED.get(endpoint.name, ()) if is_whole else ()
        errors: Record = {
            name: ["This field is required."] for name in required if name not in sent
        }
        values = {}
        for name in sent:
            if name not in writable:
                continue
            try:
                values[name] = self._value(endpoint, name, kinds[name], sent[name])
            except ValueError as error:
                errors[name] = [str(error)]
        if errors:
            raise InvalidError(errors)
        return values

    def _value(self, endpoint: Endpoint, name: str, kind: str, value: Any) -> Any:
        if value is None:
            if name in {*REQUIRED.get(endpoint.name, ()), endpoint.lookup}:
                raise ValueError("This field may not be null.")
            return None
        if choices := _CHOICES.get((endpoint.name, name)):
            numbers = {word: number for number, word in choices.items()}
            if value not in numbers:
                words = ", ".join(numbers)
                raise ValueError(f"Invalid {name}, choices are: {words}")
            return numbers[value]
        if name in _RELATIONS:
            return self._related(name, kind, value)
        if (endpoint.name, name) == ("subjects", "nickname"):
            return self._nickname(value)
        return _CHECKS[kind](value)

    def _related(self, name: str, kind: str, value: Any) -> Any:
        table, field = _RELATIONS[name]
        known = {str(row[field]): row for row in self._data.tables[table]}
        found = []
        for one in _list(value) if kind == "l" else [value]:
            key = str(one).rpartition("/")[2] if field == "id" else str(one)
            if key not in known:
                raise ValueError(f"Object with {field}={one} does not exist.")
            found.append(known[key])
        return found if kind == "l" else found[0]

    def _nickname(self, value: Any) -> str:
        if not isinstance(value, str) or not _NICKNAME.fullmatch(value):
            raise ValueError("Nicknames must only contain letters, numbers, - or _.")
        if any(row["nickname"] == value for row in self._data.tables["subjects"]):
            raise ValueError("subject with this nickname already exists.")
        return value

    # --- files ------------------------------------------------------------------------

    def registered(self, sent: Any, user: str) -> list[Record]:
        """Datasets of files that somebody has, new or known, and their records."""
        if not isinstance(sent, Mapping):
            raise _refused("expected an object")
        session, below = self._session_at(str(sent.get("path", "")))
        files = [
            self._file(session, "/".join(filter(None, [below, one])))
            for one in _several(sent.get("filenames"))
        ]
        if sent.get("check_protected"):
            protected = [
                {row["name"]: [{_revision(row): True}]}
                for _, row in files
                if row is not None and row["tags"]
            ]
            if protected:
                words = "One or more datasets is protected"
                raise InvalidError({"error": words, "details": protected}, 403)
        repository = self._repository(sent, session)
        rows = [self._dataset(session, where, row) for where, row in files]
        columns = {"hash": "hashes", "file_size": "filesizes", "version": "versions"}
        for name, of in columns.items():
            values = _several(sent.get(of))
            for row, value in zip(rows, values, strict=False):
                row[name] = value
        for row in rows:
            self._place(row, repository, is_there=bool(sent.get("exists", True)))
        author = str(sent.get("created_by") or user)
        return [_registered(row, author) for row in rows]

    def _session_at(self, path: str) -> tuple[Row, str]:
        found = _PATH.fullmatch(path.strip("/"))
        if found is None:
            raise _refused(f'The path "{path}" should be subject/date/number')
        subject, date, number = found["subject"], found["date"], int(found["number"])
        if not self._named("subjects", subject, "nickname"):
            raise _refused(f'A subject with nickname "{subject}" does not exist.')
        for row in self._data.tables["sessions"]:
            if (
                row["subject"]["nickname"] == subject
                and row["start_time"][:10] == date
                and (row["number"] or 1) == number
            ):
                return row, found["below"] or ""
        raise _refused(f'There is no session "{subject}/{date}/{number:03}"')

    def _file(self, session: Row, path: str) -> tuple[Mapping[str, str], Row | None]:
        """Where a file belongs, and the dataset that it is, if that is known."""
        found = _FILE.fullmatch(path)
        if found is None:
            raise _refused(f'"{path}" is no name of a file')
        where = {name: one or "" for name, one in found.groupdict().items()}
        for row in session["data_dataset_session_related"]:
            place = {
                "collection": row["collection"],
                "revision": _revision(row),
                "name": row["name"],
            }
            if place == where:
                return where, row
        return where, None

    def _dataset(self, session: Row, where: Mapping[str, str], row: Row | None) -> Row:
        if row is not None:
            return row
        tables = self._data.tables
        like = next(
            (one for one in tables["datasets"] if one["name"] == where["name"]), None
        )
        if like is None:
            raise _refused(f'No dataset type is known for "{where["name"]}"')
        revisions = self._named("revisions", where["revision"], "name")
        if where["revision"] and not revisions:
            raise _refused(f'There is no revision "{where["revision"]}"')
        row = _like(like)
        row.update(
            id=self._data.uuid("datasets", len(tables["datasets"]), "new"),
            session=session,
            collection=where["collection"],
            revision=revisions[0] if revisions else None,
            default_dataset=True,
            hash="",
            file_size=None,
            qc=0,
        )
        tables["datasets"].append(row)
        session["data_dataset_session_related"].append(row)
        return row

    def _repository(self, sent: Mapping[str, Any], session: Row) -> Row:
        name = (
            sent.get("name") or sent.get("hostname") or f"{session['lab']['name']}_SR"
        )
        found = self._named("data-repository", str(name), "name")
        if not found:
            raise _refused(f'There is no data repository "{name}"')
        return found[0]

    def _place(self, dataset: Row, repository: Row, *, is_there: bool) -> None:
        for copy in dataset["file_records"]:
            if copy["data_repository"] is repository:
                copy["exists"] = is_there
                return
        session, revision = dataset["session"], _revision(dataset)
        path = [
            session["subject"]["nickname"],
            session["start_time"][:10],
            f"{session['number'] or 1:03}",
            dataset["collection"],
            f"#{revision}#" if revision else "",
            dataset["name"],
        ]
        copy = Row(
            id=self._data.uuid("files", dataset["id"], repository["name"]),
            json=None,
            dataset=dataset,
            data_repository=repository,
            relative_path="/".join(filter(None, path)),
            exists=is_there,
        )
        self._data.tables["files"].append(copy)
        dataset["file_records"].append(copy)

    def downloaded(self, sent: Any, user: str) -> Record:
        """How often the user has got each of some datasets."""
        table = self._data.tables["downloads"]
        (who,) = self._named("users", user)
        rows = []
        for one in _several(sent.get("datasets")):
            known = self._named("datasets", one, "id")
            if not known:
                raise RefusedError("Dataset matching query does not exist.")
            row = next(
                (r for r in table if r["dataset"] is known[0] and r["user"] is who),
                None,
            )
            if row is None:
                row = Row(id=self._data.uuid("downloads", len(table)), json=None)
                row.update(user=who, dataset=known[0], count=0)
                table.append(row)
            row["count"] += 1
            rows.append(row)
        return {"download": names(rows, "id"), "count": names(rows, "count")}

    def _named(self, table: str, name: str, field: str = "username") -> list[Row]:
        return [row for row in self._data.tables[table] if row[field] == name]


def _like(row: Row) -> Row:
    """A row with the same relations, and with nothing that belongs to one alone."""
    made = {name: [] if isinstance(one, list) else one for name, one in row.items()}
    return Row({**made, **dict.fromkeys(JSON_FIELDS & {*row, "json"})})


def _refused(words: str) -> InvalidError:
    """The body of endpoints that were made by hand."""
    return InvalidError({"error": words})


def _several(value: Any) -> list[Any]:
    """Members of a list, or of a text with commas."""
    if value is None:
        return []
    return value if isinstance(value, list) else str(value).split(",")


def _revision(row: Row) -> str:
    return "" if row["revision"] is None else str(row["revision"]["name"])


def _registered(row: Row, author: str) -> Record:
    session = row["session"]
    return {
        "id": row["id"],
        "name": row["name"],
        "file_size": row["file_size"],
        "subject": session["subject"]["nickname"],
        "created_by": author,
        "created_datetime": row["created_datetime"],
        "dataset_type": row["dataset_type"]["name"],
        "data_format": row["data_format"]["name"],
        "session": session["id"],
        "session_number": session["number"],
        "session_users": ",".join(names(session["users"], "username")),
        "session_start_time": session["start_time"],
        "collection": row["collection"],
        "revision": _revision(row) or None,
        "default": row["default_dataset"],
        "qc": row["qc"],
        "file_records": [
            {
                "id": copy["id"],
                "data_repository": copy["data_repository"]["name"],
                "relative_path": copy["relative_path"],
                "exists": copy["exists"],
            }
            for copy in row["file_records"]
        ],
    }


# --- values, by the letters of their kinds ------------------------------------------


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("A valid number is required.") from None


def _whole(value: Any) -> int:
    try:
        if float(value) == int(value):
            return int(value)
    except (TypeError, ValueError):
        pass
    raise ValueError("A valid integer is required.")


def _bool(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise ValueError("Must be a valid boolean.") from None


def _time(value: Any) -> str:
    try:
        dt.datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(
            "Datetime has wrong format. Use one of these formats instead: "
            "YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z]."
        ) from None
    return str(value)


def _text(value: Any) -> str:
    if isinstance(value, bool | list | Mapping):
        raise ValueError("Not a valid string.")  # noqa: TRY004 - it is an answer
    return str(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        kind = type(value).__name__
        words = f'Expected a list of items but got type "{kind}".'
        raise ValueError(words)  # noqa: TRY004 - it is an answer
    return value


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "s": _text,
    "i": _whole,
    "f": _number,
    "b": _bool,
    "t": _time,
    "l": _list,
    "j": lambda value: value,
}

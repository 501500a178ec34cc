"""Predictors as design tables, and as the events files of the BIDS standard.

What is done here with rows that are there: pure, but for the files that it writes.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from asyncfetch.errors import ConfigurationError
from asyncfetch.services._analyses import optional
from asyncfetch.services._resample import resampled
from asyncfetch.services._scope import Record

logger = logging.getLogger("asyncfetch")

# Of the columns of events those that a design table is made from.
NEEDED = ("run_id", "predictor_name", "onset", "duration", "amplitude", "value")
# Texts that stand for a missing value, and are no words.
_MISSING = ("n/a", "", "nan", "NaN")
_ENTITIES = ("subject", "session", "run", "acquisition")
# A column with so few words is described by its levels.
_MAX_LEVELS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a design table needs to know of a run."""

    id: int
    entities: Mapping[str, Any]
    """Subject, session, run and acquisition, those that it has."""
    task: str
    seconds: float | None
    repetition: float
    """Seconds from scan to scan."""


def runs_by_id(runs: Iterable[Record], tasks: Iterable[Record]) -> dict[int, RunInfo]:
    """What is known of each run."""
    repetition = {task["id"]: float(task["TR"]) for task in tasks}
    return {
        run["id"]: RunInfo(
            id=run["id"],
            entities={
                "run" if name == "number" else name: run[name]
                for name in ("subject", "session", "number", "acquisition")
                if run[name] is not None
            },
            task=run["task_name"],
            seconds=run["duration"],
            repetition=repetition[run["task"]],
        )
        for run in runs
    }


def numeric(events: pd.DataFrame) -> pd.DataFrame:
    """*events* of predictors that are numbers; ``n/a`` is a missing one.

    Raises
    ------
    ConfigurationError
        A predictor holds words.
    """
    words = events["amplitude"].isna() & ~events["value"].isin(_MISSING)
    if words.any():
        first = events[words].groupby("predictor_name")["value"].first()
        said = ", ".join(f"{name} ({value!r})" for name, value in first.items())
        raise ConfigurationError(
            f"expected predictors of numbers, got words in {said}: leave them out, and "
            "get their events by predictor_events"
        )
    return events.drop(columns="value")


def rescaled(events: pd.DataFrame) -> pd.DataFrame:
    """Each predictor's amplitudes with mean 0 and standard deviation 1.

    Raises
    ------
    ConfigurationError
        A predictor never changes.
    """
    groups = events.groupby("predictor_name")["amplitude"]
    spread = groups.max() - groups.min()
    constant = [str(name) for name in spread.index[~(spread > 0)]]
    if constant:
        raise ConfigurationError(
            f"expected predictors that vary to rescale, {', '.join(constant)} never do"
        )
    amplitude = (events["amplitude"] - groups.transform("mean")) / groups.transform(
        "std"
    )
    return events.assign(amplitude=amplitude)


def wide(
    events: pd.DataFrame,
    names: Sequence[str],
    runs: Mapping[int, RunInfo],
    *,
    resample: bool,
) -> pd.DataFrame:
    """A column for each predictor; a row for each scan, or for each event.

    Onsets are those of the run, of each run. Tasks are kept apart: each run is sampled
    at its own task's repetition time.
    """
    frame = _scans(events, names, runs) if resample else _sparse(events, names)
    ids = list(dict.fromkeys(frame["run_id"]))
    known = [runs[one] for one in ids]
    place = pd.Index(ids).get_indexer(pd.Index(frame["run_id"]))
    for name in _ENTITIES:
        if any(name in one.entities for one in known):
            values = pd.Series(
                [one.entities.get(name) for one in known],
                dtype="Int64" if name == "run" else "str",
            )
            frame[name] = values.array.take(place)
    tasks = pd.Series([one.task for one in known], dtype="str")
    frame["task"] = tasks.array.take(place)
    order = [one for one in (*_ENTITIES, "task", "onset") if one in frame]
    frame = frame.sort_values(order, kind="stable", ignore_index=True)
    first = ["onset", "duration", *names]
    return frame[first + sorted(set(frame.columns) - set(first))]


def _sparse(events: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    place = ["run_id", "onset", "duration"]
    rows = events.drop_duplicates([*place, "predictor_name"])
    if len(rows) < len(events):
        logger.warning(
            "%d events share predictor, run, onset and duration with another, and are "
            "left out of the table",
            len(events) - len(rows),
        )
    # A missing duration is no number that rows could be told apart by.
    keys = rows[place].fillna({"duration": -1.0})
    keyed = rows.assign(duration=keys["duration"])
    table = keyed.set_index([*place, "predictor_name"])["amplitude"].unstack()  # noqa: PD010
    frame = table.reindex(columns=list(names)).reset_index()
    frame.columns.name = None
    frame["duration"] = frame["duration"].where(frame["duration"] >= 0)
    return frame


def _scans(
    events: pd.DataFrame, names: Sequence[str], runs: Mapping[int, RunInfo]
) -> pd.DataFrame:
    present = dict(iter(events.groupby(["run_id", "predictor_name"], sort=False)))
    # Runs that saw the same stimulus have the same events of it: sampled once.
    done: dict[tuple[Any, ...], np.ndarray] = {}
    pieces = []
    for run_id in dict.fromkeys(events["run_id"]):
        info = runs[run_id]
        seconds = _seconds(info, events)
        samples = {
            name: _sampled(present[run_id, name], name, info, seconds, done)
            for name in names
            if (run_id, name) in present
        }
        # The grid of the events may go on a little behind the run's last scan.
        count = math.ceil(seconds * (1.0 / info.repetition))
        columns = {name: np.full(count, np.nan) for name in names}
        for name, some in samples.items():
            columns[name][: len(some)] = some[:count]
        pieces.append(
            pd.DataFrame(
                {
                    "onset": np.arange(count) * info.repetition,
                    "duration": info.repetition,
                    **columns,
                    "run_id": run_id,
                }
            )
        )
    if not pieces:
        return pd.DataFrame(columns=["onset", "duration", *names, "run_id"])
    return pd.concat(pieces, ignore_index=True)


def _seconds(info: RunInfo, events: pd.DataFrame) -> float:
    if info.seconds is not None:
        return info.seconds
    mine = events[events["run_id"] == info.id]
    end = float((mine["onset"] + mine["duration"].fillna(0)).max())
    logger.warning("run %d has no duration: taken to end at %.1f s", info.id, end)
    return end


def _sampled(
    events: pd.DataFrame,
    name: str,
    info: RunInfo,
    seconds: float,
    done: dict[tuple[Any, ...], np.ndarray],
) -> np.ndarray:
    # A missing value has no box: it must not take the rest of the run with it.
    events = events[events["amplitude"].notna()].sort_values("onset", kind="stable")
    if events["duration"].isna().any():
        raise ConfigurationError(
            f"expected events of some duration to resample, {name} has some without in "
            f"run {info.id}: pass resample=False"
        )
    parts = [
        events[one].to_numpy(np.float64) for one in ("onset", "duration", "amplitude")
    ]
    key = (*(one.tobytes() for one in parts), seconds, info.repetition)
    if key not in done:
        try:
            done[key] = resampled(*parts, seconds=seconds, rate=1.0 / info.repetition)
        except ValueError as error:
            raise ConfigurationError(
                f"run {info.id} is too short to resample {name}: {error}"
            ) from error
    return done[key]


def collection_of(
    events: pd.DataFrame,
    names: Sequence[str],
    runs: Mapping[int, RunInfo],
    *,
    rescale: bool,
    resample: bool,
) -> Any:
    """The events as a ``BIDSRunVariableCollection`` of pybids, which does the rest."""
    variables = optional("bids.variables", "return_type='collection'", extra="bids")
    entities = optional("bids.variables.entities", "a collection", extra="bids")
    found = []
    groups: Any = events.groupby(["run_id", "predictor_name"])
    for (run_id, name), one in groups:
        info = runs[run_id]
        seconds = _seconds(info, events)
        own = {**info.entities, "task": info.task, "run_id": run_id}
        data = one[["onset", "duration", "amplitude"]].sort_values(
            "onset", kind="stable"
        )
        described = entities.RunInfo(
            duration=seconds,
            tr=info.repetition,
            image=None,
            n_vols=math.ceil(seconds / info.repetition),
            entities=own,
        )
        data = data.assign(**own).reset_index(drop=True)
        found.append(variables.SparseRunVariable(name, data, described, "events"))
    collection = variables.BIDSRunVariableCollection(found)
    if rescale:
        compute = optional("bids.modeling.transformations", "rescale", extra="bids")
        compute.Scale(collection, list(names))
    return collection.to_dense("TR") if resample else collection


# --- events files ---------------------------------------------------------------------


def bids_name(info: RunInfo) -> Path:
    """Where the events of a run belong below the data set's folder."""
    labels = [
        (short, info.entities[name])
        for short, name in (("sub", "subject"), ("ses", "session"))
        if name in info.entities
    ]
    folder = Path(*(f"{short}-{_label(value)}" for short, value in labels), "func")
    labels.append(("task", info.task))
    if "acquisition" in info.entities:
        labels.append(("acq", info.entities["acquisition"]))
    if "run" in info.entities:
        labels.append(("run", info.entities["run"]))
    stem = "_".join(f"{short}-{_label(value)}" for short, value in labels)
    return folder / f"{stem}_events.tsv"


def _label(value: Any) -> str:
    """A label of the standard: letters and digits, nothing that leaves the folder."""
    text = re.sub(r"[^0-9A-Za-z]", "", str(value))
    if not text:
        raise ConfigurationError(
            f"expected a name with a letter or digit, got {value!r}"
        )
    return text


def events_file(events: pd.DataFrame, names: Sequence[str]) -> str:
    """The text of one run's events file: by onset, ``n/a`` for what is missing."""
    keys = ["onset", "duration"]
    events = events.sort_values(keys, kind="stable")
    # Several events of one predictor may share onset and duration: a row for each.
    nth = events.groupby([*keys, "predictor_name"], dropna=False).cumcount()
    rows = events.assign(nth=nth, duration=events["duration"].fillna(-1.0))
    table = rows.set_index([*keys, "nth", "predictor_name"])["value"].unstack()  # noqa: PD010
    table = table.reindex(columns=list(names))
    lines = ["\t".join(["onset", "duration", *map(_cell, names)])]
    for (onset, duration, _), values in zip(
        table.index, table.to_numpy(object), strict=True
    ):
        length = "n/a" if duration < 0 else _number(duration)
        lines.append("\t".join([_number(onset), length, *map(_cell, values)]))
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Seconds to the microsecond; the service's floats have noise behind it."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _cell(value: Any) -> str:
    if not isinstance(value, str) or value in _MISSING:
        return "n/a"
    return " ".join(value.split()) or "n/a"  # no tab or line end inside a cell


def sidecar(
    events: pd.DataFrame, names: Sequence[str], descriptions: Mapping[str, str | None]
) -> str:
    """The JSON beside the files of a task: what columns mean, and their words."""
    about: dict[str, Any] = {
        "onset": {"Description": "Start of the event in the run", "Units": "s"},
        "duration": {"Description": "Length of the event", "Units": "s"},
    }
    for name in names:
        one: dict[str, Any] = {"Description": descriptions.get(name) or name}
        mine = events[events["predictor_name"] == name]
        words = mine[mine["amplitude"].isna() & ~mine["value"].isin(_MISSING)]["value"]
        levels = sorted({_cell(word) for word in words.unique()} - {"n/a"})
        if levels and len(levels) <= _MAX_LEVELS:
            one["Levels"] = {level: level for level in levels}
        about[name] = one
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def write_events(
    dest: Path,
    batches: Iterable[pa.Table],
    names: Sequence[str],
    runs: Mapping[int, RunInfo],
    descriptions: Mapping[str, str | None],
) -> list[Path]:
    """Write one file a run and one sidecar a task; gives the files. Blocks."""
    events = pd.concat([one.to_pandas() for one in batches], ignore_index=True)
    written: dict[Path, int] = {}
    ids: dict[int, pd.DataFrame] = dict(iter(events.groupby("run_id")))
    for run_id, mine in ids.items():
        path = dest / bids_name(runs[run_id])
        if path in written:
            raise ConfigurationError(
                f"runs {written[path]} and {run_id} would both be {path.name}: ask for "
                "one of them"
            )
        written[path] = run_id
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, events_file(mine, names))
    by_task = events["run_id"].map(lambda one: runs[one].task)
    for task, mine in events.groupby(by_task):
        dest.mkdir(parents=True, exist_ok=True)
        text = sidecar(mine, names, descriptions)
        _replace(dest / f"task-{_label(task)}_events.json", text)
    return sorted(written)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

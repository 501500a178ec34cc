"""Neuroscout's made-up content: datasets, runs, predictors, and their events.

The ids, names and first values that the service's tutorials print are here at every
scale. Everything else is drawn from the seed. The scale multiplies the events of each
(predictor, run) pair; datasets, runs and predictors stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asyncfetch.testing._answer import generator, uniforms

Record = dict[str, Any]
Rhythm = Literal["seconds", "words", "scans", "objects", "trials"]
Content = Literal["one", "grey", "number", "count", "gaps", "text"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A predictor that every dataset has under the same name."""

    name: str
    description: str | None
    extractor: str | None
    """None for a raw predictor: one stored row per event and run."""
    modality: str | None
    rhythm: Rhythm
    content: Content
    events: int
    """Events of each run at scale 1."""


def _word(name: str, text: str, content: Content = "number") -> _Kind:
    return _Kind(
        name, text, "PredefinedDictionaryExtractor", None, "words", content, 300
    )


def _scan(name: str, content: Content = "number") -> _Kind:
    return _Kind(name, None, None, None, "scans", content, 310)


def _image(name: str, text: str, extractor: str) -> _Kind:
    return _Kind(name, text, extractor, "image", "seconds", "number", 320)


# In the order of their ids. It puts `speech` where the tutorials have it: fifth after
# the first of SherlockMerlin (12725) and of Life (12905). About 10 000 events a run.
_KINDS = (
    _Kind("sharpness", "Degree of blur/sharpness of the image", "SharpnessExtractor",
          "image", "seconds", "grey", 420),
    _image("tool", "Probability of a tool in the image", "ClarifaiAPIImageExtractor"),
    _word("subtlexusfrequency_FREQcount", "Word frequency: count", "count"),
    _word("subtlexusfrequency_CDcount", "Contextual diversity: count", "count"),
    _word("subtlexusfrequency_FREQlow", "Word frequency: lower case", "gaps"),
    _Kind("speech", "Speech (binarized, on or off)", "ComplexTextExtractor", None,
          "words", "one", 1430),
    _Kind("rms", "Root mean square of the audio", "RMSExtractor", "audio", "seconds",
          "number", 600),
    _Kind("rmse", "Root mean square energy", "RMSEExtractor", "audio", "seconds",
          "number", 600),
    _image("brightness", "Brightness of the image", "BrightnessExtractor"),
    _image("vibrance", "Variance of the colour channels", "VibranceExtractor"),
    _image("building-exterior", "Probability of a building", "PlacesExtractor"),
    _Kind("face_probability", "One row per detected face", "FaceExtractor", "image",
          "objects", "number", 360),
    _Kind("caption", "Words on the screen, as read", "TesseractExtractor", "image",
          "words", "text", 120),
    _word("concreteness", "Concreteness norm", "gaps"),
    _word("affect_V.Mean.Sum", "Valence norm", "gaps"),
    _word("numletters", "Letters of the word", "count"),
    _word("log10_freq", "Log frequency"),
    _Kind("mel_0", "First mel band", "MelspectrogramExtractor", "audio", "seconds",
          "number", 400),
    _scan("FramewiseDisplacement", "gaps"),
    _scan("stdDVARS", "gaps"),
    _scan("CSF"),
    _scan("WhiteMatter"),
    _scan("a_comp_cor_00"),
    _scan("a_comp_cor_01"),
    _scan("X"),
    _scan("Y"),
    _scan("Z"),
    _scan("RotX"),
    _scan("RotY"),
    _Kind("trial_type", "As in the events files", None, None, "trials", "text", 60),
)  # fmt: skip

_TEXTS = (
    "scene", "close-up", "n/a", "a, b, and c", 'he said "no"', "line one\nline two",
    "Zürich", "naïve café", "雨", "🎬 cut", "back\\slash", "tab\there", " padded ", "",
)  # fmt: skip

# id, name, active, description.Name, summary, url, first predictor id
_DATASETS: tuple[tuple[int, str, bool, str, str, str, int], ...] = (
    (1, "ImageReconstruction", True, "Deep image reconstruction",
     "Natural images and letters", "https://openneuro.org/datasets/ds001506", 500),
    (5, "SherlockMerlin", True, "Sherlock_Merlin", "Sherlock and Merlin TV episodes",
     "https://openneuro.org/datasets/ds001110", 12720),
    (9, "Life", True, "Life", "Nature documentary",
     "https://datasets.datalad.org/?dir=/labs/haxby/life", 12900),
    (10, "raiders", True, "raiders", "Raiders of the Lost Ark",
     "https://datasets.datalad.org/?dir=/labs/haxby/raiders", 13100),
    (21, "PilotMovie", False, "PilotMovie", "Withdrawn", "", 30000),
    (28, "NaturalisticNeuroimagingDatabase", True, "Naturalistic Neuroimaging Database",
     "Full-length films", "https://openneuro.org/datasets/ds002837", 40254),
    (30, "Budapest", True, "Grand Budapest Hotel", "The Grand Budapest Hotel",
     "https://openneuro.org/datasets/ds003017", 40339),
)  # fmt: skip

_LONG_DESCRIPTIONS = {
    5: "This dataset includes the data of 18 particpants who watched Sherlock movie "
    "and data of 18 participants who watched Merlin movie.",
    28: "Each participant watched one full-length film.",
}

# id, dataset, name, TR, summary, runs per subject
_TASKS: tuple[tuple[int, int, str, float, str, int], ...] = (
    (1, 1, "perception", 2.0, "Viewing images", 8),
    (4, 5, "MerlinMovie", 1.5, "AV Presentation: Merlin Episode", 1),
    (45, 5, "SherlockMovie", 1.5, "AV Presentation: Sherlock Episode", 1),
    (9, 9, "life", 2.5, "AV Presentation: Life", 4),
    (10, 10, "raiders", 2.5, "AV Presentation: Raiders of the Lost Ark", 4),
    (21, 21, "pilot", 2.0, "AV Presentation", 1),
    (50, 28, "500daysofsummer", 1.0, "AV Presentation: 500 Days of Summer", 1),
    (48, 30, "movie", 1.0, "AV Presentation: The Grand Budapest Hotel", 2),
)

# Rows of a list come in an order that changes with the request, but these come first:
# the tutorials print `runs.get(...)[0]`, and the first five predictors of a task.
FIRST_RUNS = (1428, 1581, 328, 344, 336, 331, 323, 355)
FIRST_PREDICTORS = (40254, 40255, 40256, 40257, 40258)


def _make_runs() -> list[Record]:
    rows: list[tuple[int, int, str, int | None, str | None, str | None, float | None]]
    rows = [
        (i, 1, "01", n, f"perceptionTraining0{s}", None, 534.0)
        for i, n, s in zip(
            range(1, 9), (1, 2, 3, 4, 5, 6, 1, 2), (1, 1, 1, 1, 1, 1, 2, 2), strict=True
        )
    ]
    # Subject 25 was put in again later, so its run has a late id (the tutorial's 1410).
    rows += [
        (1410 if s == 25 else 98 + s, 4, str(s), None, None, None, 1543.5)
        for s in range(19, 37)
    ]
    rows += [
        (1411 + s, 45, str(s), None, None, None, 1453.5 if s >= 10 else 1494.0)
        for s in range(1, 19)
    ]
    rows += [
        (236 + 4 * k + n, 9, subject, n + 1, None, None, 962.5 + 5 * n)
        for k, subject in enumerate(
            ("rid000001", "rid000005", "rid000006", "rid000009")
        )
        for n in range(4)
    ]
    by_number = ((328, 344, 336), (331, 323, 355), (325, 340, 351), (330, 347, 359))
    rows += [
        (run, 10, subject, n, None, None, 840.0 + n)
        for n, runs in enumerate(by_number, start=1)
        for run, subject in zip(
            runs, ("rid000005", "rid000011", "rid000012"), strict=True
        )
    ]
    rows += [(900 + s, 21, f"p{s:02}", None, None, None, 600.0) for s in range(4)]
    rows += [(1563 + s, 50, str(s), None, None, None, 5470.0) for s in range(11, 21)]
    rows += [
        (
            1600 + 2 * s + n, 48, f"sid{s:06}", n + 1, None,
            "mb8" if s % 2 else None, None if s == 6 and n == 1 else 598.0 + n,
        )
        for s in range(7)
        for n in range(2)
    ]  # fmt: skip
    tasks = {task[0]: task for task in _TASKS}
    return sorted(
        (
            {
                "acquisition": acquisition,
                "dataset_id": tasks[task][1],
                "duration": duration,
                "id": run,
                "number": number,
                "session": session,
                "subject": subject,
                "task": task,
                "task_name": tasks[task][2],
            }
            for run, task, subject, number, session, acquisition, duration in rows
        ),
        key=lambda record: record["id"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """One predictor with what its record does not show."""

    record: Record
    """The record as sent."""
    active: bool
    """Listed by default."""
    kind: _Kind
    """What its events look like."""
    runs: frozenset[int]
    """The runs it has events for."""
    owner: int | None = None
    """The account that has uploaded it."""
    uploaded: Mapping[int, Track] | None = None
    """Its events by run, where somebody has uploaded them."""

    @property
    def is_raw(self) -> bool:
        """Its rows are stored per run, and always have a ``stimulus_id``."""
        return self.kind.extractor is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """The events of one (predictor, run), by onset."""

    onset: list[float]
    duration: list[float | None]
    value: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stimulus:
    """The stimulus behind the extracted events of one run."""

    id: int
    onset: float
    duration: float
    path: str


# Private predictors by the id of the account that they belong to.
_OWNERS = {41002: 3, 41003: 1, 41004: 1}


class Catalogue:
    """All of Neuroscout's content for one seed and scale."""

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self._scale = scale
        self._uploads = 0
        self.runs = {record["id"]: record for record in _make_runs()}
        self.tasks = {row[0]: self._task(row) for row in _TASKS}
        self.datasets = {row[0]: self._dataset(row) for row in _DATASETS}
        self.predictors = {
            predictor.record["id"]: predictor for predictor in self._predictors()
        }

    def runs_of(
        self, *, dataset: int | None = None, task: int | None = None
    ) -> list[int]:
        """Ids of the runs of a dataset or a task, ascending."""
        return [
            run["id"]
            for run in self.runs.values()
            if dataset in (None, run["dataset_id"]) and task in (None, run["task"])
        ]

    def _task(self, row: tuple[int, int, str, float, str, int]) -> Record:
        task, dataset, name, repetition, summary, per_subject = row
        runs = [self.runs[run] for run in self.runs_of(task=task)]
        durations = [run["duration"] for run in runs if run["duration"] is not None]
        return {
            "TR": repetition,
            "avg_run_duration": int(sum(durations) / len(durations)),
            "dataset_id": dataset,
            "id": task,
            "n_runs_subject": per_subject,
            "n_subjects": len({run["subject"] for run in runs}),
            "name": name,
            "summary": summary,
        }

    def _dataset(self, row: tuple[int, str, bool, str, str, str, int]) -> Record:
        dataset, name, active, title, summary, url, _ = row
        return {
            "active": active,
            "dataset_address": None,
            "description": {
                "Authors": ["Zadbood, A.", "Chen, J."] if dataset == 5 else ["N. N."],
                "BIDSVersion": "1.0.2",
                "Name": title,
            },
            "id": dataset,
            "long_description": _LONG_DESCRIPTIONS.get(dataset),
            "mean_age": 21.72222222222222 if dataset == 5 else None,
            "mimetypes": ["video/mp4", "image/png", "text/csv"],
            "name": name,
            "percent_female": 0.6111111111111112 if dataset == 5 else None,
            "preproc_address": f"https://github.com/neuroscout-datasets/{name}.git",
            "runs": self.runs_of(dataset=dataset),
            "summary": summary,
            "tasks": [
                {key: value for key, value in task.items() if key != "dataset_id"}
                for task in self.tasks.values()
                if task["dataset_id"] == dataset
            ],
            "url": url,
        }

    def _predictors(self) -> Iterable[Predictor]:
        for dataset, _, active, _, _, _, first in _DATASETS:
            for index, kind in enumerate(_KINDS):
                yield self._predictor(first + index, dataset, kind, active=active)
        by_name = {kind.name: kind for kind in _KINDS}
        # An older version that `newest` hides; an inactive predictor and a private
        # upload that hide the public one of their name.
        yield self._predictor(12600, 5, by_name["rms"])
        yield self._predictor(41001, 28, by_name["vibrance"], active=False)
        yield self._predictor(41002, 30, by_name["brightness"], private=True)
        # What the archive's user has uploaded: a name of its own, and a name that a
        # public predictor has too.
        mine = replace(by_name["numletters"], name="my_ratings", events=40)
        yield self._predictor(41003, 5, mine, private=True)
        same = replace(by_name["concreteness"], events=40)
        yield self._predictor(41004, 5, same, private=True)

    def _predictor(
        self,
        predictor: int,
        dataset: int,
        kind: _Kind,
        *,
        active: bool = True,
        private: bool = False,
    ) -> Predictor:
        low, mean, high, _ = sorted(uniforms(self._seed, "statistics", predictor))
        record: Record = {
            "dataset_id": dataset,
            "description": kind.description,
            "id": predictor,
            "max": high,
            "mean": mean,
            "min": low,
            "name": kind.name,
            "num_na": 0,
            "private": private,
            "source": "extracted",
        }
        match kind.content:
            case "one":
                record.update(max=1.0, mean=1.0, min=1.0)
            case "gaps":  # the database has NaN, and the service passes it on
                record.update(max=math.nan, mean=math.nan, num_na=17)
            case "text":
                record.update(max=None, mean=None, min=None, num_na=None)
        if private:
            record.update(source="Collection: my ratings", num_na=None)
        elif kind.extractor is None:
            scans = kind.rhythm == "scans"
            record.update(source="fmriprep" if scans else "events", num_na=None)
        else:
            record["extracted_feature"] = {
                "created_at": "2018-05-23 01:40:47.717434",
                "description": kind.description,
                "extractor_name": kind.extractor,
                "id": 70000 + predictor,
                "modality": kind.modality,
                "resample_frequency": None,
            }
        # The two records that the documents print, to the letter.
        if predictor == 40254:
            record.update(max=1.0, mean=0.8604099357979763, min=0.0)
            record["extracted_feature"].update(
                created_at="2021-05-05 00:52:59.856713", id=425739
            )
        elif predictor == 12905:
            record["extracted_feature"].update(id=84257)
        return Predictor(
            record=record,
            active=active,
            kind=kind,
            owner=_OWNERS.get(predictor),
            runs=frozenset(
                run
                for run in self.runs_of(dataset=dataset)
                if self._has_events(predictor, kind, run)
            ),
        )

    def _has_events(self, predictor: int, kind: _Kind, run: int) -> bool:
        # `vibrance` was only extracted from one of SherlockMerlin's films.
        if kind.name == "vibrance" and self.runs[run]["task"] == 45:
            return False
        # Some runs lack some confounds: a request for such a pair just has no rows.
        is_spotty = kind.rhythm == "scans" and kind.name != "FramewiseDisplacement"
        return not is_spotty or uniforms(self._seed, "lack", predictor, run)[0] >= 0.03

    def events_per_run(self, predictor: Predictor, run: int | None = None) -> int:
        """How many events each run of *predictor* has; uploads differ by the run."""
        if predictor.uploaded is not None:
            return 0 if run is None else len(predictor.uploaded[run].onset)
        return max(2, round(predictor.kind.events * self._scale))

    def upload(
        self, name: str, owner: int, dataset: int, source: str, tracks: dict[int, Track]
    ) -> Record:
        """The record of a new predictor with these events, private to its owner."""
        self._uploads += 1
        predictor = 50_000 + self._uploads
        record: Record = {
            "dataset_id": dataset,
            "description": None,
            "id": predictor,
            "max": None,
            "mean": None,
            "min": None,
            "name": name,
            "num_na": None,
            "private": True,
            "source": source,
        }
        kind = _Kind(name, None, None, None, "trials", "text", 0)
        self.predictors[predictor] = Predictor(
            record=record,
            active=True,
            kind=kind,
            runs=frozenset(tracks),
            owner=owner,
            uploaded=tracks,
        )
        return record

    def is_settled(self, path: str) -> bool:
        """Whether an answer stays the same, whatever is uploaded."""
        return not path.startswith(("/predictors/", "/predictor-events")) or (
            not self._uploads
        )

    def stimulus(self, run: int) -> Stimulus:
        """What was shown in *run*; one film for all runs of a task and number."""
        record = self.runs[run]
        number = record["number"] or 0
        return Stimulus(
            id=100 * record["task"] + number,
            # The scanner runs for ten seconds before the shorter films start.
            onset=0.0 if record["number"] is None else 10.0,
            duration=record["duration"] or 600.0,
            path=f"{record['task_name']}_part{number}.mp4",
        )

    def track(self, predictor: Predictor, run: int) -> Track:
        """The events of *predictor* in *run*.

        Runs that showed the same stimulus have the same events of an extracted
        predictor; those of a raw one are its own.
        """
        if predictor.uploaded is not None:
            return predictor.uploaded[run]
        kind, name = predictor.kind, predictor.record["id"]
        stimulus = self.stimulus(run)
        shown = ("run", run) if predictor.is_raw else ("stimulus", stimulus.id)
        random = generator(self._seed, "events", name, shown)
        count = self.events_per_run(predictor)
        begin = 0.0 if predictor.is_raw else stimulus.onset
        onset, duration = _rhythm(
            kind.rhythm,
            random,
            count,
            seconds=stimulus.duration - begin,
            scan=self.tasks[self.runs[run]["task"]]["TR"],
        )
        if kind.name == "speech":
            onset += 72.422 - onset[0]
            duration[0] = 0.301
        onset = np.round(onset + begin, 3)
        # The service stores ends and subtracts, and so do its floats:
        # 0.30100000000000016 in the tutorial, not 0.301.
        duration = (onset + np.round(duration, 3)) - onset
        if kind.name == "speech":
            duration[0] = 0.30100000000000016
        values = _values(kind.content, random, count)
        if kind.rhythm == "scans" and kind.content == "gaps":
            values[0] = "n/a"  # a difference to the scan before: the first has none
        if name == 40254:  # the two events that the tutorial prints
            values[:2] = ["0.03137254901960784", "0.0196078431372549"]
        nulls = kind.rhythm == "trials"
        return Track(
            onset=onset.tolist(),
            duration=[None] * count if nulls else duration.tolist(),
            value=values,
        )


def _rhythm(
    rhythm: Rhythm,
    random: np.random.Generator,
    count: int,
    *,
    seconds: float,
    scan: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Onsets from about 0, and durations, of *count* events that fit in *seconds*."""
    index = np.arange(count, dtype=np.float64)
    match rhythm:
        case "words":
            gap = min(0.5, 0.9 * max(seconds - 73.0, 1.0) / count)
            onset = np.cumsum(random.uniform(0.2 * gap, 1.8 * gap, count))
            return onset, random.uniform(0.1 * gap, 0.9 * gap, count)
        case "objects":  # three in each frame: onsets repeat
            index //= 3
            step = min(1.0, 3 * seconds / count)
        case "scans":
            step = min(scan, seconds / count)
        case "trials":
            step = min(12.0, seconds / count)
        case _:
            step = min(1.0, seconds / count)
    return index * step, np.full(count, step)


def _values(content: Content, random: np.random.Generator, count: int) -> list[str]:
    match content:
        case "one":
            return ["1"] * count
        case "grey":
            return [repr(k / 255) for k in random.integers(0, 256, count).tolist()]
        case "count":
            return [str(k) for k in random.integers(0, 200_000, count).tolist()]
        case "text":
            return [_TEXTS[k] for k in random.integers(0, len(_TEXTS), count).tolist()]
    # Mostly about 1, some so small that their text has an exponent.
    numbers = random.standard_normal(count) * 10.0 ** -random.integers(0, 7, count)
    values = [repr(number) for number in np.round(numbers, 9).tolist()]
    if content == "gaps":
        for k in np.flatnonzero(random.random(count) < 0.05).tolist():
            values[k] = "n/a"
    return values


def by_id(ids: Sequence[int], known: Iterable[int]) -> list[int]:
    """Those of *ids* that are *known*, ascending, each once."""
    return sorted(set(ids).intersection(known))

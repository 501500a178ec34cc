"""Made-up rows of Alyx: the tutorial's sessions, subjects and insertions among them."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from asyncfetch.testing._alyx_django import Row
from asyncfetch.testing._answer import uniforms

SESSION = "4ecb5d24-f5cc-402c-be28-9d0f7cb14b3a"
INSERTION = "b749446c-18e3-4987-820a-50649ab0f826"
TAG = "2021_Q1_IBL_et_al_Behaviour"
# At scale 1; a server in use has ten times as many.
SESSIONS = 250
_LABS = "cortexlab angelakilab danlab mainenlab wittenlab".split()
_SUBJECTS = "KS014 KS022 DY_003 DY_006".split()
# The last one is an account that may write.
_USERS = "karolina ines nate_m dan test_user writer".split()
_PROJECTS = "ibl_neuropixel_brainwide_01 matlab_legacy ibl_behaviour".split()
# Files of a session: collection, name, type; the last come in two revisions.
_FILES = """
alf _ibl_trials.table.pqt trials.table
alf _ibl_wheel.position.npy wheel.position
alf _ibl_leftCamera.times.npy camera.times
alf _ibl_rightCamera.times.npy camera.times
raw_behavior_data _iblrig_taskData.raw.jsonable _iblrig_taskData.raw
raw_video_data _iblrig_leftCamera.raw.mp4 _iblrig_Camera.raw
alf/probe00/pykilosort spikes.times.npy spikes.times
alf/probe00/pykilosort spikes.amps.npy spikes.amps
alf/probe00/pykilosort clusters.metrics.pqt clusters.metrics
""".split()
_ERRORS = "Traceback (most recent call last):\n\x1b[31mTimeoutError: [Errno 110]\x1b[0m"
_QC = (0, 10, 30, 40, 50)
STATUSES = {
    20: "Waiting",
    25: "Held",
    30: "Started",
    40: "Errored",
    45: "Abandoned",
    50: "Empty",
    55: "Incomplete",
    60: "Complete",
}
QC = {0: "NOT_SET", 10: "PASS", 30: "WARNING", 40: "FAIL", 50: "CRITICAL"}
PROVENANCES = {
    10: "Planned",
    30: "Micro-manipulator",
    50: "Histology track",
    70: "Ephys aligned histology track",
}
# A piece of the Allen atlas: id, acronym, name, parent.
_REGIONS = (
    (997, "root", "root", None),
    (688, "CTX", "Cerebral cortex", 997),
    (500, "MO", "Somatomotor areas", 688),
    (985, "MOp", "Primary motor area", 500),
    (993, "MOs", "Secondary motor area", 500),
    (320, "MOp1", "Primary motor area Layer 1", 985),
    (943, "MOp2/3", "Primary motor area Layer 2/3", 985),
    (656, "MOs1", "Secondary motor area layer 1", 993),
    (1089, "HPF", "Hippocampal formation", 688),
    (382, "CA1", "Field CA1", 1089),
    (549, "TH", "Thalamus", 997),
    (950, "SSp-m4", "Primary somatosensory area mouth layer 4", 688),
    (614454277, "SIM", "A region of the newer atlas", 549),
)


def content(seed: int, dataset: str, size: int) -> bytes:
    """The bytes of a data file."""
    return hashlib.shake_128(f"{seed}:{dataset}".encode()).digest(size)


class AlyxData:
    """All rows by endpoint, in the order in which they were written."""

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self.tables: dict[str, list[Row]] = {}
        self._labs = self._named("labs", _LABS)
        self._users = [
            self._add("users", n, username=name, email=f"{name}@example.com", id=n)
            for n, name in enumerate(_USERS, 1)
        ]
        self._projects = self._named("projects", _PROJECTS)
        self._tags = self._named("tags", [TAG, "2022_Q2_IBL_et_al_RepeatedSite"])
        types = sorted({*_FILES[2::3]})
        self._types = {one["name"]: one for one in self._named("dataset-types", types)}
        formats = ["npy", "pqt", "jsonable", "mp4"]
        self._formats = {
            one["name"]: one for one in self._named("data-formats", formats)
        }
        self._revisions = self._named("revisions", ["2023-01-15", "2024-05-06"])
        self._procedures = self._named(
            "procedures",
            ["Ephys recording with acute probe(s)", "Histology", "Imaging"],
        )
        self._repositories = {
            name: self._add("data-repository", name, name=name)
            for lab in _LABS
            for name in (f"flatiron_{lab}", f"aws_{lab}", f"{lab}_SR")
        }
        self._named("locations", ["_iblrig_cortexlab_ephys_0", "_iblrig_danlab_1"])
        self._named("water-type", ["Water", "Water 10% Sucrose"])
        self._named("data-repository-type", ["Fileserver"])
        self._models = [
            self._row("model", n, name=n) for n in ("Neuropixel 3B2", "NP2")
        ]
        self._regions = self._atlas()
        for name in (
            "chronic-insertions fields-of-view fov-location data-notices imaging-stack "
            "surgeries downloads water-restricted-subjects".split()
        ):
            self.tables[name] = []
        sessions = max(8, round(SESSIONS * scale))
        subjects = [*_SUBJECTS, *(f"SUB_{n:03}" for n in range(sessions // 10))]
        for n, name in enumerate(subjects):
            self._subject(n, name)
        for n in range(sessions):
            self._session(n)
        self._restrictions(subjects)

    def _add(self, table: str, word: object, **fields: Any) -> Row:
        row = self._row(table, word, **fields)
        self.tables.setdefault(table, []).append(row)
        return row

    def _row(self, table: str, word: object, **fields: Any) -> Row:
        return Row({"id": self.uuid(table, word), "json": None, **fields})

    def _named(self, table: str, names: Sequence[str]) -> list[Row]:
        return [self._add(table, name, name=name, description="") for name in names]

    def uuid(self, *words: object) -> str:
        """A random UUID of version 4, of nothing but *words*."""
        digest = hashlib.blake2b(repr((self._seed, *words)).encode(), digest_size=16)
        return str(uuid.UUID(bytes=digest.digest(), version=4))

    def _drawn(self, *words: object) -> tuple[float, float, float, float]:
        return uniforms(self._seed, "alyx", *words)

    def _atlas(self) -> dict[int, Row]:
        regions = {
            number: self._add(
                "brain-regions",
                number,
                id=number,
                acronym=acronym,
                name=name,
                description="",
            )
            for number, acronym, name, _ in _REGIONS
        }
        for number, _, _, parent in _REGIONS:
            regions[number]["parent"] = None if parent is None else regions[parent]
        return regions

    def _subject(self, n: int, name: str) -> None:
        a, b, _, _ = self._drawn("subject", name)
        lab = self._labs[0 if name.startswith("KS") else 2 if n < 4 else n % 5]
        born = dt.date(2019, 1, 1) + dt.timedelta(days=int(300 * a))
        row = self._add(
            "subjects",
            name,
            nickname=name,
            lab=lab,
            projects=[self._projects[n % 3]],
            responsible_user=self._users[n % 4],
            actions_sessions=[],
            birth_date=born.isoformat(),
            death_date=None if b < 0.3 else "2022-08-09",
            sex="MF"[n % 2],
            description="",
        )
        for table, field, value in (
            ("weighings", "weight", 20.0),
            ("water-administrations", "water_administered", 1.2),
        ):
            for day in range(10):
                when = dt.datetime.combine(dt.date(2021, 2, 1 + day), dt.time(9, 30))
                self._add(
                    table,
                    (name, day),
                    subject=row,
                    user=self._users[n % 4],
                    date_time=when.isoformat(),
                    session=None,
                    **{field: round(value + a / 2 + day / 100, 2)},
                )

    def _session(self, n: int) -> None:
        a, b, c, d = self._drawn("session", n)
        subjects = self.tables["subjects"]
        is_tutorial = n == 0
        subject = subjects[n if n < 4 else int(a * len(subjects))]
        day = dt.date(2019, 12, 3) + dt.timedelta(
            days=0 if is_tutorial else int(b * 900)
        )
        # Several sessions begin in the same second, so that their order is not told.
        start = dt.datetime.combine(day, dt.time(9 + n % 8, 20, 5))
        tutorial = {"id": SESSION} if is_tutorial else {}
        names = ["alf", "ephys"]
        lab = self._labs[1] if n == 1 else subject["lab"]
        session = self._add(
            "sessions",
            n,
            **tutorial,
            name="",
            subject=subject,
            lab=lab,
            projects=[self._projects[int(c * 3)]],
            users=[self._users[n % 4]],
            procedures=[self._procedures[n % 3]],
            location=self.tables["locations"][n % 2],
            start_time=start.isoformat(),
            end_time=(start + dt.timedelta(hours=1)).isoformat(),
            number=1 if is_tutorial or d > 0.05 else None,
            type="Experiment",
            task_protocol=(
                "_iblrig_tasks_ephysChoiceWorld6.4.2"
                if n % 2 == 0
                else "_iblrig_tasks_trainingChoiceWorld6.4.2"
            ),
            narrative="auto-generated" if n % 5 else "",
            parent_session=None,
            n_trials=500 + n % 100,
            n_correct_trials=400 + n % 90,
            qc=_QC[n % 5],
            extended_qc=None if n % 11 == 10 else self._extended_qc(n),
            auto_datetime=(start + dt.timedelta(days=90)).isoformat(),
            probe_insertion=[],
            data_dataset_session_related=[],
            tasks=[],
            field_of_view=[],
        )
        session["json"] = {"IBLRIG_VERSION": "6.4.2", "POOP_COUNT": n % 40, "at": names}
        subject["actions_sessions"].append(session)
        insertion = self._insertion(n, session) if n % 2 == 0 else None
        self._datasets(n, session, insertion)
        self._tasks(n, session)
        if n % 6 == 0:
            self._add(
                "notes",
                n,
                user=self._users[n % 4],
                date_time=start.isoformat(),
                content_type="session",
                object_id=session["id"],
                text=f"note {n}",
                image=None,
            )

    def _extended_qc(self, n: int) -> Mapping[str, Any]:
        a, b, c, _ = self._drawn("qc", n)
        first: Any = n % 3 == 0 or int(10 * a)  # a number in some, a bool in others
        found: dict[str, Any] = {
            "task": ("WARNING", "PASS", "FAIL")[n % 3],
            "behavior": 1,
            "_task_iti_delays": round(b, 4),
            "_videoLeft_pin_state": [first, 9, 0],
            "_dlcLeft_lick_detection": None if n % 4 == 0 else True,
        }
        if n % 3 != 2:
            found |= {"dlcLeft": "PASS", "videoLeft": ("PASS", "FAIL")[int(2 * c)]}
        if n % 4 == 1:
            found |= {"ephys": 1, "videoRight": "FAIL"}
        return found

    def _insertion(self, n: int, session: Row) -> Row:
        a, b, c, d = self._drawn("insertion", n)
        is_resolved = n == 0 or a < 0.5
        tutorial = {"id": INSERTION} if n == 0 else {}
        insertion = self._add(
            "insertions",
            n,
            **tutorial,
            session=session,
            name="probe00",
            model=self._models[n % 4 // 2],
            serial=str(18179095942 + n),
            auto_datetime=session["auto_datetime"],
            chronic_insertion=None,
            datasets=[],
            trajectory_estimate=[],
        )
        insertion["json"] = {
            "qc": "PASS",
            "n_units": int(1000 * b),
            "extended_qc": {
                "tracing_exists": True,
                "alignment_count": 2,
                "alignment_resolved": is_resolved,
            },
        }
        session["probe_insertion"].append(insertion)
        for provenance in (10, 50, *([70] if is_resolved else [])):
            trajectory = self._add(
                "trajectories",
                (n, provenance),
                probe_insertion=insertion,
                provenance=provenance,
                coordinate_system=None,
                datetime=session["auto_datetime"],
                chronic_insertion=None,
                channels=[],
                x=-1513.7 + n,
                y=round(1000 * c, 1),
                z=-332.8,
                depth=5611.3,
                theta=15.0,
                phi=180.0,
                roll=0.0,
            )
            insertion["trajectory_estimate"].append(trajectory)
            if provenance == 70:
                trajectory["json"] = {
                    "2021-11-21T14:31:37_ines": [[0.001304, -0.000561]],
                    "2021-11-24T14:31:37_nate_m": [[0.001304, -0.000461]],
                }
                self._channels(n, trajectory, d)
        return insertion

    def _channels(self, n: int, trajectory: Row, drawn: float) -> None:
        ids = list(self._regions)
        for k in range(16):
            place = 5 + (int(7 * drawn) + k // 8) % 7
            if n == 0 and k < 4:
                place = 5  # of the motor areas
            trajectory["channels"].append(
                self._add(
                    "channels",
                    (n, k),
                    trajectory_estimate=trajectory,
                    brain_region=self._regions[ids[place]],
                    name="",
                    axial=20.0 * k,
                    lateral=11.0 + 16 * (k % 4),
                    x=round(-1500 + k / 7, 3),
                    y=1720.0,
                    z=-300.0 - 20 * k,
                )
            )

    def _datasets(self, n: int, session: Row, insertion: Row | None) -> None:
        for k in range(len(_FILES) // 3):
            collection, name, kind = _FILES[3 * k : 3 * k + 3]
            if "probe" in collection and insertion is None:
                continue
            versions = [None, *self._revisions] if k == 0 and n % 10 == 0 else [None]
            for revision in versions:
                self._dataset(
                    (n, k, revision and revision["name"]),
                    session,
                    collection,
                    name,
                    kind,
                    revision=revision,
                    is_default=revision is versions[-1],
                    insertion=insertion if "probe" in collection else None,
                )

    def _dataset(
        self,
        word: tuple[Any, ...],
        session: Row,
        collection: str,
        name: str,
        kind: str,
        *,
        revision: Row | None,
        is_default: bool,
        insertion: Row | None,
    ) -> None:
        a, b, c, _ = self._drawn("dataset", word)
        n, k, _ = word
        size = 200 + int(1800 * a)
        extension = name.rpartition(".")[2]
        dataset = self._add(
            "datasets",
            word,
            name=name,
            session=session,
            collection=collection,
            dataset_type=self._types[kind],
            data_format=self._formats[extension],
            created_by=self._users[n % 4],
            created_datetime=session["start_time"] + ".891531",
            auto_datetime=session["auto_datetime"],
            file_size=size,
            version="2.39.0",
            revision=revision,
            default_dataset=is_default,
            tags=[self._tags[n % 2]] if n % 4 < 2 else [],
            qc=_QC[int(5 * b)],
            file_records=[],
            probe_insertion=[] if insertion is None else [insertion],
        )
        data = content(self._seed, dataset["id"], size)
        # SHA-1 now and then, and a few records without a checksum.
        digest = hashlib.sha1 if k == 2 else hashlib.md5
        dataset["hash"] = "" if c < 0.02 else digest(data).hexdigest()
        session["data_dataset_session_related"].append(dataset)
        if insertion is not None:
            insertion["datasets"].append(dataset)
        subject, lab = session["subject"]["nickname"], session["lab"]["name"]
        number = f"{session['number'] or 1:03}"
        middle = "" if revision is None else f"#{revision['name']}#/"
        place = f"{subject}/{session['start_time'][:10]}/{number}/{collection}"
        path = f"{place}/{middle}{name}"
        for repository in (f"flatiron_{lab}", f"aws_{lab}", f"{lab}_SR"):
            if repository.startswith("aws") and n % 3 == 2:
                continue
            dataset["file_records"].append(
                self._add(
                    "files",
                    (*word, repository),
                    dataset=dataset,
                    data_repository=self._repositories[repository],
                    relative_path=path,
                    exists=not repository.endswith("_SR"),
                )
            )

    def _tasks(self, n: int, session: Row) -> None:
        for k, name in enumerate(("EphysDLC", "SpikeSorting", "TrainingTrials")):
            status = 40 if (n, k) in {(0, 0), (1, 1)} else (60, 40, 20, 60)[(n + k) % 4]
            session["tasks"].append(
                self._add(
                    "tasks",
                    (n, k),
                    session=session,
                    name=name,
                    status=status,
                    priority=40 + k,
                    level=k,
                    io_charge=5,
                    gpu=0,
                    cpu=2,
                    ram=8,
                    graph="EphysExtractionPipeline",
                    executable=f"ibllib.pipes.ephys_preprocessing.{name}",
                    log=_ERRORS if status == 40 else "",
                    version="2.39.0",
                    datetime=session["auto_datetime"],
                    parents=[],
                    data_repository=None,
                    arguments=None,
                )
            )

    def _restrictions(self, subjects: Sequence[str]) -> None:
        self.tables["water-restriction"] = []
        for n, name in enumerate(subjects):
            self._add(
                "water-restriction",
                name,
                subject=self.tables["subjects"][n],
                start_time="2021-01-01T10:00:00",
                end_time=None if n % 2 else "2021-12-14T10:00:00",
                water_type=self.tables["water-type"][0],
                reference_weight=20.82,
            )


def region_and_below(region: Row | None, wanted: set[int]) -> bool:
    """Whether a region is one of *wanted*, or lies in one."""
    while region is not None:
        if region["id"] in wanted:
            return True
        region = region["parent"]
    return False

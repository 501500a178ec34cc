"""Neuroscout's analyses: made by names, changed, compiled, reported on and uploaded.

Two faces of the same calls, as the existing client has them: of the table, with the
analysis' ``hash_id`` first, and of an :class:`Analysis`, which knows its own.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import anyio

from asyncfetch import _engine
from asyncfetch._decode import records_at, whole
from asyncfetch._model import Part, Request
from asyncfetch._threads import in_thread
from asyncfetch.errors import ConfigurationError, NotFound, ResponseError
from asyncfetch.services._calls import ask, call, settled
from asyncfetch.services._paging import segment
from asyncfetch.services._scope import OfDataset, Record, dataset_named, newest_of
from asyncfetch.services._table import close, members, plain

# What may be written; the order is that of the existing client.
MUTABLE = (
    "dataset_id",
    "description",
    "name",
    "predictions",
    "model",
    "predictors",
    "private",
    "runs",
)
_READ_ONLY = (
    "created_at",
    "hash_id",
    "locked",
    "modified_at",
    "nv_count",
    "parent_id",
    "status",
    "submitted_at",
    "user",
)
_ENTITY = re.compile(r"(task|contrast|stat|space)-(.*?)_")


def build_model(  # noqa: PLR0917 - as in the existing client
    name: str,
    variables: Sequence[str],
    tasks: Sequence[str],
    subjects: Sequence[str],
    runs: Sequence[int] | None = None,
    session: Sequence[str] | str | None = None,
    *,
    hrf_variables: Sequence[str] | None = None,
    transformations: Sequence[Mapping[str, Any]] | None = None,
    contrasts: Sequence[Mapping[str, Any]] | None = None,
    dummy_contrasts: bool | Literal["hrf"] | Sequence[str] = True,
) -> dict[str, Any]:
    """A BIDS Stats Model of three levels: run, subject, data set.

    Parameters
    ----------
    hrf_variables
        Those of *variables* that are convolved with the haemodynamic response.
    dummy_contrasts
        Whether each variable gets a contrast of its own; ``"hrf"`` or a list names
        those that do.

    Raises
    ------
    ConfigurationError
        A variable is named that is none of the model's.
    """
    hrf = _names(hrf_variables)
    wanted = [] if isinstance(dummy_contrasts, bool | str) else _names(dummy_contrasts)
    for what, some in (("hrf_variables", hrf), ("dummy_contrasts", wanted)):
        if unknown := [one for one in some if one not in variables]:
            raise ConfigurationError(
                f"expected {what} among {', '.join(variables)}, got "
                f"{', '.join(unknown)}"
            )
    if isinstance(dummy_contrasts, str):
        if dummy_contrasts != "hrf":
            raise ConfigurationError(
                f"expected dummy_contrasts True, False, 'hrf' or a list of names, "
                f"got {dummy_contrasts!r}"
            )
        wanted = hrf
    steps = [copy.deepcopy(dict(one)) for one in transformations or ()]
    if hrf:
        steps.append({"Input": hrf, "Name": "Convolve"})
    first: dict[str, Any] = {
        "DummyContrasts": {"Type": "t", **({"Conditions": wanted} if wanted else {})},
        "Contrasts": [copy.deepcopy(dict(one)) for one in contrasts or ()],
        "Level": "Run",
        "Model": {"X": list(variables)},
        "Transformations": steps,
    }
    if dummy_contrasts is False:
        del first["DummyContrasts"]
    chosen: dict[str, Any] = {"Subject": list(subjects), "Task": list(tasks)}
    if runs:
        chosen["Run"] = list(runs)
    if session is not None:
        chosen["Session"] = _names(session)
    return {
        "Input": chosen,
        "Name": name,
        "Steps": [
            first,
            {"DummyContrasts": {"Type": "FEMA"}, "Level": "Subject"},
            {"DummyContrasts": {"Type": "t"}, "Level": "Dataset"},
        ],
    }


def _names(given: Any) -> list[Any]:
    """One name or several, as several."""
    return [] if given is None else [plain(one) for one in members(given)]


def _ids(field: str, given: Any) -> list[int]:
    """Ids of what may be ids, or records as ``get_full`` gives them.

    The service answers objects where it wants ids back, and stumbles over them.
    """
    found = [
        plain(one["id"] if isinstance(one, Mapping) else one) for one in members(given)
    ]
    for one in found:
        if type(one) is not int:
            raise ConfigurationError(f"expected ids for {field}, got {one!r}")
    return found


class Analysis:
    """One analysis, as the service knows it and as it is to become.

    Its fields are attributes. Eight of them can be set (``dataset_id``,
    ``description``, ``name``, ``predictions``, ``model``, ``predictors``, ``private``,
    ``runs``); :meth:`push` sends them, :meth:`pull` takes the service's own.

    Times are text, as sent: the service cuts them to ``2023-10-05T20:3``, where the
    last digit of the minute and the seconds are gone.
    """

    _table: Analyses
    _known: Record
    _wanted: Record

    def __init__(self, table: Analyses, record: Record) -> None:
        set_ = object.__setattr__
        set_(self, "_table", table)
        set_(self, "_known", {})
        set_(self, "_wanted", {})
        self._take(record, everything=True)

    def __getattr__(self, name: str) -> Any:
        for fields in (self._wanted, self._known):
            if name in fields:
                return fields[name]
        raise AttributeError(
            f"an analysis has no {name!r}{close(name, [*MUTABLE, *self._known])}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("runs", "predictors"):
            value = _ids(name, value)
        if name not in MUTABLE:
            if name in self._known or name in _READ_ONLY:
                raise AttributeError(f"{name} of an analysis is the service's to set")
            raise AttributeError(
                f"an analysis has no {name!r}{close(name, MUTABLE)}; what can be set: "
                f"{', '.join(MUTABLE)}"
            )
        self._wanted[name] = value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *MUTABLE, *self._known})

    def __repr__(self) -> str:
        return (
            f"<Analysis {self.hash_id} {self.name!r} of data set {self.dataset_id}: "
            f"{self.status}>"
        )

    def _take(self, record: Record, *, everything: bool = False) -> None:
        """Learn what the service holds; a change that waits for push stays."""
        for name in MUTABLE:
            mine, theirs = self._wanted.get(name), self._known.get(name)
            if everything or _same(name, mine, theirs):
                self._wanted[name] = copy.deepcopy(record.get(name))
        self._known.update(copy.deepcopy(record))

    async def push(self) -> None:
        """Send the eight fields, and see that the service has taken them.

        Raises
        ------
        ResponseError
            The service kept other values, which it does without a word for an analysis
            that has been compiled: ``dropped`` names the fields. They stay here as they
            were set.
        ConfigurationError
            A field is None, which the service refuses.
        """
        sent = _sendable(self._wanted, self._known)
        self._wanted.update(sent)  # ids, where records of get_full were mixed in
        self._take(await self._table.put(self.hash_id, **sent))
        self._compare(sent)

    def _compare(self, sent: Mapping[str, Any]) -> None:
        dropped = [n for n in sent if not _same(n, sent[n], self._known.get(n))]
        if dropped:
            raise ResponseError(
                f"expected analysis {self.hash_id} to be changed, the service kept its "
                f"own {', '.join(dropped)} (it is {self.status}): clone() gives one "
                "that can be changed, pull() what the service holds",
                status=200,
                dropped=tuple(dropped),
            )

    async def pull(self) -> None:
        """Take what the service holds; changes made here are lost."""
        self._take(await self._table.get(self.hash_id), everything=True)

    async def fill(self, partial: bool = True, dryrun: bool = False) -> Record:
        """Let the service find runs and predictors that are missing.

        Without runs all of the data set's are taken. Predictors are found by the names
        in the model; with *partial* those found are set, and what names another is
        dropped from the model.

        Parameters
        ----------
        dryrun
            Only show what it would come to: nothing changes, there or here.
        """
        found = await self._table.fill(self.hash_id, partial=partial, dryrun=dryrun)
        if not dryrun:
            self._take(found)
        return found

    async def clone(
        self, dataset_id: int | None = None, *, dataset_name: str | None = None
    ) -> Analysis:
        """A copy of one's own that can be changed; only of one that has PASSED.

        For another data set its runs and predictors are found anew.
        """
        if dataset_name is not None:
            if dataset_id is not None:
                raise ConfigurationError(
                    "expected dataset_id or dataset_name, got both"
                )
            dataset_id = (await self._table.dataset(dataset_name))["id"]
        made = Analysis(self._table, await self._table.clone(self.hash_id))
        if dataset_id is not None and dataset_id != made.dataset_id:
            made.dataset_id, made.runs, made.predictors = dataset_id, [], []
            await made.push()
            await made.fill()
        return made

    async def compile(self, build: bool = False) -> Record:
        """Hand it in; from then on it cannot be changed. :meth:`wait` waits."""
        found = await self._table.compile(self.hash_id, build=build)
        self._known["status"] = found["status"]
        return found

    async def wait(self, timeout: float = 600.0) -> str:  # noqa: ASYNC109
        """Wait until it is compiled, ``PASSED``.

        Raises
        ------
        ResponseError
            It has failed; the message has what the service says about it.
        TimeoutError
            It goes on after *timeout* seconds. Compiling takes about ten.
        """
        found = await self._table.wait(self.hash_id, timeout=timeout)
        await self._refresh()
        return str(found["status"])

    async def _refresh(self) -> None:
        self._take(await self._table.get(self.hash_id))

    async def get_status(self) -> Record:
        """``status`` and ``traceback``."""
        found = await self._table.get_status(self.hash_id)
        self._known["status"] = found["status"]
        return found

    async def get_full(self) -> Record:
        """The analysis with runs and predictors as records. Changes nothing here."""
        return await self._table.get_full(self.hash_id)

    async def get_resources(self) -> Record:
        """Addresses of the data set, and the predictors as records."""
        return await self._table.get_resources(self.hash_id)

    async def get_bundle(self, filename: str | Path | None = None) -> bytes | Path:
        """As :meth:`Analyses.get_bundle`."""
        return await self._table.get_bundle(self.hash_id, filename)

    async def generate_report(self, *args: Any, **options: Any) -> Record:
        """As :meth:`Analyses.generate_report`."""
        return await self._table.generate_report(self.hash_id, *args, **options)

    async def get_report(self, *args: Any, **options: Any) -> Record:
        """As :meth:`Analyses.get_report`."""
        return await self._table.get_report(self.hash_id, *args, **options)

    async def get_design_matrix(self, *args: Any, **options: Any) -> list[str]:
        """As :meth:`Analyses.get_design_matrix`."""
        return await self._table.get_design_matrix(self.hash_id, *args, **options)

    async def upload_neurovault(self, validation_hash: str, **options: Any) -> Record:
        """As :meth:`Analyses.upload_neurovault`."""
        return await self._table.upload_neurovault(
            self.hash_id, validation_hash, **options
        )

    async def get_uploads(
        self, select: Literal["latest", "oldest"] | None = "latest", **equal: Any
    ) -> list[Record]:
        """As :meth:`Analyses.get_uploads`."""
        return await self._table.get_uploads(self.hash_id, select, **equal)

    async def load_uploads(self, **options: Any) -> list[tuple[Any, Record]]:
        """As :meth:`Analyses.load_uploads`."""
        return await self._table.load_uploads(self.hash_id, **options)

    async def delete(self) -> None:
        """Delete it; only as long as it is not compiled."""
        await self._table.delete(self.hash_id)


def _same(name: str, one: Any, other: Any) -> bool:
    if name in ("runs", "predictors") and one is not None and other is not None:
        return sorted(set(one)) == sorted(set(other))  # sets, to the service
    return bool(one == other)


def _sendable(wanted: Mapping[str, Any], known: Mapping[str, Any]) -> Record:
    sent: Record = {}
    for name in MUTABLE:
        value = wanted.get(name)
        if value is None:
            if known.get(name) is not None:
                raise ConfigurationError(
                    f"expected {name} of an analysis, got None, which the service "
                    "refuses: an empty text can be set"
                )
            continue
        sent[name] = _ids(name, value) if name in ("runs", "predictors") else value
    return sent


class Analyses(OfDataset):
    """Public analyses; one's own are made and changed here."""

    build_model = staticmethod(build_model)

    async def dataset(self, name: str) -> Record:
        """The record of a data set, inactive ones too."""
        datasets = await self.client.table("datasets").get(active_only=False)
        return dataset_named(datasets, name)

    async def get_analysis(self, hash_id: str) -> Analysis:
        """The analysis of that ``hash_id``, anybody's."""
        return Analysis(self, await self.get(hash_id))

    async def create_analysis(
        self,
        *,
        name: str,
        dataset_name: str,
        predictor_names: Sequence[str] | str,
        tasks: Sequence[str] | str | None = None,
        subjects: Sequence[str] | str | None = None,
        runs: Sequence[int] | int | None = None,
        session: Sequence[str] | str | None = None,
        hrf_variables: Sequence[str] | None = None,
        contrasts: Sequence[Mapping[str, Any]] | None = None,
        dummy_contrasts: bool | Literal["hrf"] | Sequence[str] = True,
        transformations: Sequence[Mapping[str, Any]] | None = None,
        task: Sequence[str] | str | None = None,
        subject: Sequence[str] | str | None = None,
        run: Sequence[int] | int | None = None,
        description: str | None = None,
        predictions: str | None = None,
        private: bool | None = None,
    ) -> Analysis:
        """Make an analysis, everything by its name.

        Parameters
        ----------
        tasks, subjects, runs, session
            Which runs: all that match. *runs* are the BIDS run numbers. *task*,
            *subject* and *run* are the same.
        hrf_variables, contrasts, dummy_contrasts, transformations
            As :func:`build_model` takes them.

        Raises
        ------
        NotFound
            A name is not there; the message says which, with the nearest. Nothing has
            been made.
        """
        names = _names(predictor_names)
        if not names:
            raise ConfigurationError("expected predictor_names, got none")
        dataset = await self.dataset(dataset_name)
        scope: dict[str, Any] = {
            "dataset_id": dataset["id"],
            "subject": _either("subjects", subjects, "subject", subject),
            "number": _either("runs", runs, "run", run),
            "session": session,
        }
        task_names = _names(_either("tasks", tasks, "task", task))
        known = {one["name"]: one["id"] for one in dataset["tasks"]}
        for one in task_names:
            if one not in known:
                raise NotFound(
                    f"no task {one!r} in {dataset['name']}{close(one, known)}"
                )
        if task_names:
            scope["task_id"] = [known[one] for one in task_names]
        chosen = {} if dataset["active"] else {"active_only": False}
        found: list[Record] = await self.client.table("runs").get(**{**scope, **chosen})
        if not found:
            said = {k: v for k, v in scope.items() if v is not None}
            raise NotFound(f"no run of {dataset['name']} with {said}")
        ids = await self._predictors(names, dataset, scope)
        model = build_model(
            name,
            names,
            task_names or sorted({one["task_name"] for one in found}),
            sorted({one["subject"] for one in found}),
            sorted({one["number"] for one in found if one["number"] is not None}),
            session,
            hrf_variables=hrf_variables,
            transformations=transformations,
            contrasts=contrasts,
            dummy_contrasts=dummy_contrasts,
        )
        more = {
            "description": description,
            "predictions": predictions,
            "private": private,
        }
        sent = {
            "dataset_id": dataset["id"],
            "name": name,
            "model": model,
            "runs": [one["id"] for one in found],
            "predictors": ids,
            **{k: v for k, v in more.items() if v is not None},
        }
        made = Analysis(self, await self.post(**sent))
        made._compare(sent)  # noqa: SLF001 - of this module
        return made

    async def _predictors(
        self, names: list[str], dataset: Record, scope: Mapping[str, Any]
    ) -> list[int]:
        """Ids by name: public ones first, then inactive, then one's own."""
        table = self.client.table("predictors")
        ids: dict[str, int] = {}
        for active_only in (True, False):
            left = [one for one in names if one not in ids]
            if left:
                found = await table.get(name=left, active_only=active_only, **scope)
                ids |= {one["name"]: one["id"] for one in newest_of(found)}
        left = [one for one in names if one not in ids]
        if left and self.client.exchange.has_auth:
            own = await call(self.client, "/user/predictors", query={"newest": False})
            for one in newest_of(records_at(own, ())):
                if one["name"] in left and one["dataset_id"] == dataset["id"]:
                    ids[one["name"]] = one["id"]
        left = [one for one in names if one not in ids]
        if left:
            there = {one["name"] for one in await table.get(**scope)}
            hints = ", ".join(f"{one!r}{close(one, there)}" for one in left)
            raise NotFound(f"{dataset['name']} has no predictor {hints} in these runs")
        return [ids[one] for one in names]

    # --- the service's own calls ------------------------------------------------------

    async def post(self, **fields: Any) -> Record:
        """Make an analysis of these fields, as they are."""
        return await self._call("", "POST", body=_json(fields))

    async def put(self, hash_id: str, /, **fields: Any) -> Record:
        """Change these fields, and see no more to it; ``dataset_id`` is needed."""
        return await self._call(hash_id, "PUT", body=_json(fields))

    async def delete(self, hash_id: str, /) -> None:
        """Delete an analysis that is not compiled."""
        await self._call(hash_id, "DELETE")

    async def clone(self, hash_id: str, /) -> Record:
        """Copy an analysis that has PASSED; gives the copy's record."""
        return await self._call(f"{hash_id}/clone", "POST")

    async def fill(
        self, hash_id: str, /, partial: bool = True, dryrun: bool = False
    ) -> Record:
        """As :meth:`Analysis.fill`."""
        query = {"partial": partial, "dryrun": dryrun}
        return await self._call(f"{hash_id}/fill", "POST", query=query)

    async def compile(self, hash_id: str, /, build: bool = False) -> Record:
        """Hand an analysis in. With *build* it is also tried with pybids: slow."""
        return await self._call(f"{hash_id}/compile", "POST", query={"build": build})

    async def wait(self, hash_id: str, /, *, timeout: float = 600.0) -> Record:  # noqa: ASYNC109
        """As :meth:`Analysis.wait`; gives the status record."""
        found: Record = await settled(
            lambda: self.get_status(hash_id),
            lambda one: (
                one["status"] not in ("PENDING", "SUBMITTING") or bool(one["traceback"])
            ),
            timeout=timeout,
            what=f"compiling analysis {hash_id}",
        )
        if found["status"] == "DRAFT" and not found["traceback"]:
            raise ConfigurationError(
                f"expected analysis {hash_id} to be compiling, it is a DRAFT: call "
                "compile() first"
            )
        _refuse(found, "PASSED", f"analysis {hash_id}")
        return found

    async def get_status(self, hash_id: str, /) -> Record:
        """``status`` and ``traceback`` of compiling."""
        return await self._call(f"{hash_id}/compile")

    async def get_full(self, hash_id: str, /) -> Record:
        """The analysis with its runs and predictors as records."""
        return await self._call(f"{hash_id}/full")

    async def get_resources(self, hash_id: str, /) -> Record:
        """Addresses of the data set, and the predictors as records."""
        return await self._call(f"{hash_id}/resources")

    async def get_bibliography(self, hash_id: str, /) -> Record:
        """What is to be cited."""
        return await self._call(f"{hash_id}/bibliography")

    async def get_bundle(
        self, hash_id: str, /, filename: str | Path | None = None
    ) -> bytes | Path:
        """The bundle (``.tar.gz``) of an analysis that has PASSED.

        Parameters
        ----------
        filename
            Where to write it; it is there only when it is whole. Without, the bytes.
        """
        request = Request(target=f"/analyses/{segment(hash_id)}/bundle", media="bytes")
        if filename is None:
            data: bytes = await ask(
                self.client, request, lambda chunks, _: whole(chunks)
            )
            return data
        path = Path(filename)
        await ask(
            self.client,
            request,
            lambda chunks, _: in_thread(lambda: _save(chunks, path)),
        )
        return path

    async def generate_report(
        self,
        hash_id: str,
        /,
        run_id: Sequence[int] | int | None = None,
        sampling_rate: float | None = None,
        scale: bool = False,
    ) -> Record:
        """Have the design matrix made; :meth:`get_report` gets it.

        Parameters
        ----------
        run_id
            Runs to make it for; all unless said.
        """
        query = {
            "run_id": _run_ids(run_id),
            "sampling_rate": sampling_rate,
            "scale": scale,
        }
        return await self._call(f"{hash_id}/report", "POST", query=query)

    async def get_report(
        self,
        hash_id: str,
        /,
        run_id: Sequence[int] | int | None = None,
        loop_wait: bool = True,
        *,
        timeout: float = 300.0,  # noqa: ASYNC109
    ) -> Record:
        """The newest report, of *run_id* as :meth:`generate_report` was given them.

        Parameters
        ----------
        loop_wait
            Wait until it is made, up to *timeout* seconds. One that FAILED is given
            back like any other: its ``traceback`` says why.

        Raises
        ------
        NotFound
            There is none, or the analysis was changed since.
        """

        async def look() -> Record:
            query = {"run_id": _run_ids(run_id)}
            return await self._call(f"{hash_id}/report", query=query)

        return await settled(
            look,
            lambda one: (
                not loop_wait or one["status"] != "PENDING" or bool(one["traceback"])
            ),
            timeout=timeout,
            what=f"the report of analysis {hash_id}",
        )

    async def get_design_matrix(
        self,
        hash_id: str,
        /,
        run_id: Sequence[int] | int | None = None,
        **options: Any,
    ) -> list[str]:
        """URLs of the design matrices, one a run; options of :meth:`get_report`.

        Raises
        ------
        ResponseError
            The report has failed; the message says why.
        """
        report = await self.get_report(hash_id, run_id, **options)
        _refuse(report, "OK", f"the report of analysis {hash_id}")
        urls: list[str] = report["result"]["design_matrix"]
        return urls

    # --- NeuroVault -------------------------------------------------------------------

    async def upload_neurovault(
        self,
        hash_id: str,
        /,
        validation_hash: str,
        *,
        subject_paths: Sequence[str | Path] | None = None,
        group_paths: Sequence[str | Path] | None = None,
        collection_id: int | None = None,
        force: bool = False,
        cli_version: str | None = None,
        fmriprep_version: str | None = None,
        estimator: str | None = None,
        n_subjects: int | None = None,
        cli_args: Mapping[str, Any] | None = None,
    ) -> Record:
        """Send images to NeuroVault, one after the other; gives the collection.

        Group images go first, and of each level those of t statistics.

        Parameters
        ----------
        validation_hash
            From ``resources.json`` of the bundle.
        collection_id
            The collection that they join; a new one is made unless said.
        force
            Make a new one although there is one of that name.
        """
        paths = [
            (level, Path(one))
            for level, some in (("GROUP", group_paths), ("SUBJECT", subject_paths))
            for one in sorted(
                map(str, some or ()), key=lambda name: "stat-t" not in name
            )
        ]
        if not paths:
            raise ConfigurationError("expected group_paths or subject_paths, got none")
        for _, path in paths:
            if not await anyio.Path(path).is_file():
                raise ConfigurationError(f"expected an image to upload, got {path}")
        texts: dict[str, Any] = {
            "validation_hash": validation_hash,
            "force": str(force).lower(),
            "cli_version": cli_version,
            "fmriprep_version": fmriprep_version,
            "estimator": estimator,
            "n_subjects": n_subjects,
            "cli_args": None if cli_args is None else json.dumps(dict(cli_args)),
        }
        found: Record = {}
        for level, path in paths:
            sent = {**texts, "level": level, "collection_id": collection_id}
            parts = [
                Part(name=name, value=str(value))
                for name, value in sent.items()
                if value is not None
            ]
            form = (*parts, Part(name="image_file", value=path))
            found = await self._call(f"{hash_id}/upload", "POST", body=form)
            collection_id = found["collection_id"]
        return found

    async def get_uploads(
        self,
        hash_id: str,
        /,
        select: Literal["latest", "oldest"] | None = "latest",
        **equal: Any,
    ) -> list[Record]:
        """Collections of the analysis in NeuroVault: the latest, the oldest, or all.

        Parameters
        ----------
        **equal
            Fields that they must have, such as ``estimator="nistats"``.
        """
        if select not in ("latest", "oldest", None):
            raise ConfigurationError(
                f"expected select 'latest', 'oldest' or None, got {select!r}"
            )
        found = records_at(await self._call(f"{hash_id}/upload"), ())
        # As text: the service cuts times, so that they are none. Ids only grow.
        found.sort(key=lambda one: (one["uploaded_at"], one["collection_id"]))
        if select == "latest":
            found.reverse()
        found = [one for one in found if all(one.get(k) == v for k, v in equal.items())]
        return found if select is None else found[:1]

    async def load_uploads(
        self,
        hash_id: str | Analysis | Sequence[str | Analysis],
        /,
        *,
        select: Literal["latest", "oldest"] | None = "latest",
        download_dir: str | Path | None = None,
        collection_filters: Mapping[str, Any] | None = None,
        image_filters: Mapping[str, Any] | None = None,
    ) -> list[tuple[Any, Record]]:
        """Images of one analysis or of many, with what is known of each.

        Parameters
        ----------
        download_dir
            Where images are kept, and found again; else they stay in memory.
        collection_filters, image_filters
            Fields that a collection or an image must have; of an image also ``task``,
            ``contrast``, ``stat`` and ``space`` of its name.

        Returns
        -------
        list of (Nifti1Image, dict)
            By analysis, collection and file.

        Raises
        ------
        ConfigurationError
            nibabel is not installed.
        """
        nibabel = optional("nibabel", "loading images", extra="images")
        several = [hash_id] if isinstance(hash_id, str | Analysis) else list(hash_id)
        keys = [str(getattr(one, "hash_id", one)) for one in several]
        filters = dict(collection_filters or {})
        # Two questions wait behind the service's two workers while two are answered.
        collections: list[list[Record]] = await _engine.side_by_side(
            [partial(self.get_uploads, key, select, **filters) for key in keys],
            at_once=4,
        )
        wanted = list(_images(keys, collections, dict(image_filters or {})))
        directory = None if download_dir is None else Path(download_dir)
        if directory is not None:
            await anyio.Path(directory).mkdir(parents=True, exist_ok=True)
        data: list[bytes] = await _engine.side_by_side(
            [partial(self._image, one, directory) for one in wanted], at_once=4
        )
        return [
            (nibabel.Nifti1Image.from_bytes(image), one)
            for image, one in zip(data, wanted, strict=True)
        ]

    async def _image(self, one: Record, directory: Path | None) -> bytes:
        """The bytes of an image, inflated."""
        collection, name = one["collection_id"], one["basename"]
        path = None
        if directory is not None:
            path = directory / f"{collection}_{segment(name)}"
            if await anyio.Path(path).exists():
                return await in_thread(lambda: _inflated(path.read_bytes()))
        target = f"/media/images/{collection}/{segment(name)}"
        vault = cast("Any", self.client).neurovault
        answer = await vault.ask(
            Request(target=target, media="bytes"),
            lambda chunks, _: whole(chunks),
            interactive=True,
        )
        data: bytes = answer.value
        if path is not None:
            await in_thread(lambda: _save([data], path))
        return await in_thread(lambda: _inflated(data))

    async def _call(
        self,
        path: str,
        method: str = "GET",
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> Record:
        hash_id, _, rest = path.partition("/")
        where = "/analyses"
        if hash_id:
            where += f"/{segment(hash_id)}" + (f"/{rest}" if rest else "")
        found: Record = await call(
            self.client, where, method=method, query=query, body=body
        )
        return found


def _either(name: str, value: Any, alias: str, other: Any) -> Any:
    if value is not None and other is not None:
        raise ConfigurationError(f"{name} and {alias} are the same")
    return other if value is None else value


def _json(fields: Record) -> Record:
    """*fields*, if they can be sent."""
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"expected fields of an analysis that are plain JSON: {error}"
        ) from error
    return fields


def _run_ids(given: Any) -> list[int] | None:
    return None if given is None else _ids("run_id", given)


def _refuse(found: Mapping[str, Any], good: str, what: str) -> None:
    if found["status"] != good:
        why = " ".join(str(found.get("traceback") or "no reason given").split())
        raise ResponseError(
            f"expected {what} to end as {good}, got {found['status']}: {why}",
            status=200,
        )


def _save(chunks: Iterable[bytes], path: Path) -> None:
    """Write a file that is there only when it is whole. Blocks."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _inflated(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _images(
    keys: list[str], collections: list[list[Record]], equal: Mapping[str, Any]
) -> Iterator[Record]:
    """What is known of each image that is in NeuroVault and wanted."""
    for key, some in zip(keys, collections, strict=True):
        for collection in some:
            about = {k: v for k, v in collection.items() if k != "files"}
            for file in collection["files"]:
                one = {**file, **dict(_ENTITY.findall(file["basename"]))}
                is_there = one.pop("status") == "OK"
                if is_there and all(k in one and one[k] == v for k, v in equal.items()):
                    one.pop("traceback", None)
                    yield {"hash_id": key, **about, **one}


def optional(module: str, purpose: str, *, extra: str) -> Any:
    """A library that not everybody needs.

    Raises
    ------
    ConfigurationError
        It is not installed.
    """
    from importlib import import_module  # noqa: PLC0415 - rarely needed

    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{purpose} needs {module.partition('.')[0]}: "
            f'pip install "asyncfetch[{extra}]"'
        ) from error

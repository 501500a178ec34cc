"""Preprocessed images of Neuroscout's data sets: got by DataLad, found by pybids.

Both block, and neither is needed for anything else, so they are imported when they are
used, and run in a thread. A cancelled call waits for what the thread is at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asyncfetch.errors import ConfigurationError, NotFound, TransportError
from asyncfetch.services._analyses import optional

# As the documents write them, and as pybids calls them.
_SINGULAR = {
    "subjects": "subject",
    "sessions": "session",
    "tasks": "task",
    "runs": "run",
}


def installed(dataset_dir: Path, preproc_address: str, *, no_get: bool) -> Path:
    """The folder of preprocessed files, its data set installed if it is not. Blocks.

    Raises
    ------
    TransportError
        DataLad could not; the message has its reason.
    """
    if not no_get and not dataset_dir.exists():
        _datalad("install", source=preproc_address, path=str(dataset_dir))
    found = next(
        (
            (dataset_dir / name).absolute()
            for name in ("preproc", "fmriprep")
            if (dataset_dir / name).exists()
        ),
        dataset_dir,
    )
    if not no_get:
        description = str(found / "dataset_description.json")
        _datalad("get", description, dataset=str(dataset_dir))
    return found


def paths_in(
    preproc_dir: Path, *, fetch_json: bool, fetch_brain_mask: bool, entities: Any
) -> list[Path]:
    """Preprocessed images below a folder that match the entities. Blocks.

    Raises
    ------
    NotFound
        There are none.
    """
    bids = optional("bids.layout", "finding images", extra="bids")
    chosen = {_SINGULAR.get(name, name): value for name, value in entities.items()}
    if len(chosen) < len(entities):
        raise ConfigurationError(
            f"expected each entity once, got {', '.join(sorted(entities))}"
        )
    layout = bids.BIDSLayout(
        str(preproc_dir),
        derivatives=str(preproc_dir),
        indexer=bids.BIDSLayoutIndexer(index_metadata=False),
    )
    wanted = [{"desc": "preproc", "suffix": "bold"}]
    if fetch_brain_mask:
        wanted.append({"datatype": "func", "suffix": "mask"})
    # The folder is a data set and its own derivative, so each image is there twice.
    images = [
        one.path
        for kind in wanted
        for one in layout.get(extension=".nii.gz", **kind, **chosen)
    ]
    found = [Path(one) for one in dict.fromkeys(images)]
    if not found:
        said = ", ".join(f"{name}={value}" for name, value in chosen.items())
        raise NotFound(f"no preprocessed image in {preproc_dir} with {said or 'any'}")
    return found + sorted(preproc_dir.rglob("*.json")) if fetch_json else found


def fetch(paths: list[Path], dataset_dir: Path, jobs: int | str) -> None:
    """Get the contents of files of an installed data set. Blocks.

    Raises
    ------
    TransportError
        DataLad could not; the message has its reason.
    """
    _datalad("get", [str(one) for one in paths], dataset=str(dataset_dir), jobs=jobs)


def _datalad(command: str, *arguments: Any, **options: Any) -> None:
    datalad = optional("datalad.api", "images of data sets", extra="bids")
    try:
        getattr(datalad, command)(*arguments, result_renderer="disabled", **options)
    except Exception as error:
        failed = getattr(error, "failed", None)
        if not failed:
            raise
        reason = failed[0].get("message") or "no reason given"
        if isinstance(reason, tuple):  # a text and what belongs into it
            reason = reason[0] % reason[1:]
        raise TransportError(
            f"DataLad could not {command} {failed[0].get('path')}: "
            + " ".join(str(reason).split())
        ) from error

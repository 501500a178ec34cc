"""Made-up collections and images of NeuroVault, the tutorials' among them."""

from __future__ import annotations

import gzip
import struct
from typing import Any

from asyncfetch._neurovault_schema import (
    ATLAS,
    COLLECTION,
    IMAGE,
    NIDM_MAP,
    NIDM_RESULTS,
    STATISTIC_MAP,
)
from asyncfetch.testing._answer import generator, uniforms

Row = dict[str, Any]

# The collection and the image that tutorials name.
TUTORIAL = 8477
TUTORIAL_DOI = "10.1016/j.neurobiolaging.2012.11.002"
TUTORIAL_IMAGE = 396069
# Collections that some answers stumble over, or that not everybody may see.
POISONED = 8482
"""A collection whose owner's account is gone: it cannot be serialised."""
WITH_POISONED_IMAGE = 8481
EMPTY = 8483
PRIVATE = {33: "QWERTZUI", 34: "9b1f9de1"}
"""Tokens by number; only one of capital letters leads anywhere."""
OWNER = 1599

# At scale 1; the public service has some thousands.
_COLLECTIONS = 60
_FIRST_IMAGE = 396000
_MAPS = ("Z map", "T map", "F map", "univariate-beta map", "ROI/mask", "other")
_TASKS = (
    ("action observation task", "trm_4f24126c22011"),
    ("emotion processing fMRI task paradigm", "trm_550b54a8b30f4"),
    ("None / Other", ""),
)
_NULLS = ("", "n/a", "none", "None / Other", "null")
ADDED = "2020-07-20T22:14:26.898628Z"


class VaultData:
    """Collections, images and packs by their ids; they change when somebody writes."""

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        self.collections: dict[int, Row] = {}
        self.images: dict[int, Row] = {}
        self.packs: dict[int, Row] = {}
        self._of: dict[int, list[Row]] = {}
        self._next_image = _FIRST_IMAGE
        for place in range(max(16, round(_COLLECTIONS * scale))):
            self._add_collection(TUTORIAL - 4 + place, place)
        for number, token in PRIVATE.items():
            self._add_collection(number, number, token=token)
        self._poison()

    # --- making -----------------------------------------------------------------------

    def _add_collection(
        self, number: int, place: int, token: str | None = None
    ) -> None:
        a, b, c, d = uniforms(self._seed, "collection", number)
        is_known = number == TUTORIAL
        row = self.new_collection(number)
        row |= {
            "name": f"Study {number}: maps of task {place}",
            "DOI": f"10.1000/vault.{number}" if a < 0.5 else None,
            "publication_status": "published" if a < 0.5 else None,
            "authors": "A. Lopez, B. K. Li and C. O'Neil" if a < 0.5 else None,
            "owner": OWNER if is_known or token else 1000 + int(b * 400),
            "owner_name": "user04",
            "description": "A study.\nSecond line, naïve" if c < 0.5 else "",
            "type_of_design": ("blocked", "eventrelated", None)[int(3 * d)],
            "length_of_trials": "variable" if c < 0.3 else None,
            "field_strength": 3.0 if b < 0.7 else None,
            "scanner_make": _NULLS[int(5 * a)] if b < 0.4 else "Siemens",
            "number_of_imaging_runs": int(4 * c) or None,
            "group_comparison": d < 0.5 or None,
            "private": token is not None,
            "token": token,
        }
        if is_known:
            row |= {
                "name": "Emotion & regulation: fMRI maps",
                "DOI": TUTORIAL_DOI,
                "publication_status": "published",
                "journal_name": "Neurobiology of Aging",
                "subject_age_mean": 24.6,
                "repetition_time": 2000.0,
                "communities": [1],
            }
        self.collections[number] = row
        count = 0 if number == EMPTY else 1 + int(14 * a * b) + 4 * (place % 10 == 9)
        for n in range(6 if is_known else count):
            self._add_image(number, n)
        if place % 7 == 5:
            self._add_pack(number)
        if place % 9 == 4 and number != EMPTY:
            self.add_image(
                number,
                ATLAS,
                image_type="atlas",
                name="Parcels",
                stem="parcels",
                label_description_file="parcels.xml",
            )

    def new_collection(self, number: int) -> Row:
        """A collection of which nothing is said."""
        row: Row = dict.fromkeys(COLLECTION)
        row |= {
            "id": number,
            "name": "",
            "contributors": "",
            "communities": [],
            "private": False,
            "description": "",
            "owner": OWNER,
            "owner_name": "user04",
            "add_date": "2020-07-20T22:10:00.123456+02:00",
            "modify_date": "2020-07-21T08:00:00.000001+02:00",
            "token": None,
        }
        return row

    def _add_image(self, collection: int, n: int) -> Row:
        a, b, c, d = uniforms(self._seed, "image", collection, n)
        task, task_id = _TASKS[int(3 * a)]
        fields: Row = {
            "map_type": _MAPS[int(6 * b * b)],
            "analysis_level": "group" if c < 0.8 else None,
            "modality": "fMRI-BOLD" if d < 0.9 else "Structural MRI",
            "is_thresholded": None if a < 0.02 else b < 0.2,
            "not_mni": c < 0.05,
            "perc_bad_voxels": 75.0073396711163 * d,
            "brain_coverage": None if b < 0.1 else 82.0078517876603 * a,
            "number_of_subjects": 10 + int(90 * c),
            "cognitive_paradigm_cogatlas": task,
            "cognitive_paradigm_cogatlas_id": task_id or None,
            "contrast_definition": _NULLS[int(5 * d)] if c < 0.3 else "faces - houses",
            "statistic_parameters": 20.0,
            "is_valid": d < 0.4,
            "description": "" if a < 0.7 else "nonexistent in atlas space",
            "TR": 2.0 if a < 0.5 else "2 s",
        }
        if b < 0.5:
            fields["subject_id"] = f"sub-{int(20 * d):02d}"
        if collection == TUTORIAL and n == 2:
            fields |= {"my field": "x", "extra": [1], "subject_id": "sub-05"}
            return self.add_image(
                collection,
                STATISTIC_MAP,
                id=TUTORIAL_IMAGE,
                name="motor lips",
                stem="motor_lips",
                **{**fields, "map_type": "Z map", "is_thresholded": False},
            )
        # A name is unique in its collection only, and says nothing.
        stem = f"spmT_{n % 4 + 1:04d}" + (f"_{n // 4}" if n >= 4 else "")
        is_missing = uniforms(self._seed, "missing", collection, n)[0] < 0.014
        is_cut = uniforms(self._seed, "cut", collection, n)[0] < 0.01
        if (collection, n) in {(TUTORIAL + 1, 0), (TUTORIAL + 2, 0)}:
            is_missing, is_cut = collection == TUTORIAL + 1, collection != TUTORIAL + 1
        return self.add_image(
            collection,
            STATISTIC_MAP,
            name=f"map {n}",
            stem=stem,
            is_missing=is_missing,
            is_cut=is_cut,
            **fields,
        )

    def _add_pack(self, collection: int) -> None:
        number = 1 + len(self.packs)
        maps = [
            self.add_image(
                collection,
                NIDM_MAP,
                image_type="NIDM results statistic map",
                name=f"{title} of pack {number}",
                stem=f"fsl_course.nidm/{title}",
                map_type="T map",
                nidm_results=number,
                data=None,
            )["id"]
            for title in ("TStatistic", "ZStatistic")
        ]
        row: Row = dict.fromkeys(NIDM_RESULTS)
        self.packs[number] = row | {
            "id": number,
            "collection": collection,
            "name": "fsl_course",
            "description": "",
            "maps": maps,
            "add_date": ADDED,
            "modify_date": ADDED,
            "polymorphic_ctype": 17,
        }

    def _poison(self) -> None:
        self.collections[POISONED]["owner_is_gone"] = True
        some = self.in_collection(WITH_POISONED_IMAGE)
        some[len(some) // 2]["sites"] = ["a", "b"]  # stored, and never serialised

    def add_image(
        self,
        collection: int,
        kind: Any,
        *,
        stem: str,
        data: bytes | None = None,
        extension: str = ".nii.gz",
        is_missing: bool = False,
        is_cut: bool = False,
        **fields: Any,
    ) -> Row:
        """Store an image; its own id, unless *fields* have one."""
        row: Row = dict.fromkeys(kind)
        row |= {"image_type": "statistic_map", "target_template_image": "GenericMNI"}
        row |= {"id": self._next_image, "data_origin": "volume", "is_valid": False}
        row |= {"add_date": ADDED, "modify_date": "2020-07-20T22:14:30.314520Z"}
        row |= {"description": "", "collection_id": collection, **fields}
        self._next_image = max(self._next_image, row["id"]) + 1
        row["path"] = f"{stem}{extension}"
        if data is None:
            data = nifti(self._seed, row["id"])
        if is_cut:  # as somebody's broken upload, which nobody noticed
            data = data[: len(data) * 2 // 3]
        row["bytes"] = None if is_missing else data
        row["file_size"] = 0 if is_missing else len(data)
        self.images[row["id"]] = row
        self._of.setdefault(collection, []).append(row)
        return row

    # --- looking ----------------------------------------------------------------------

    def in_collection(self, number: int) -> list[Row]:
        """Images of a collection, by id."""
        found = [r for r in self._of.get(number, ()) if r["id"] in self.images]
        return sorted(found, key=lambda row: row["id"])

    def number_of_images(self, number: int) -> int:
        """What a collection says that it has: packs count, and the maps in them."""
        packs = [row for row in self.packs.values() if row["collection"] == number]
        return len(packs) + len(self.in_collection(number))


def is_poisoned(row: Row) -> bool:
    """Whether the server cannot serialise a row."""
    is_image = "image_type" in row
    beyond = (v for name, v in row.items() if is_image and name not in IMAGE)
    return bool(row.get("owner_is_gone")) or any(
        isinstance(value, list) and len(value) > 1 for value in beyond
    )


def nifti(seed: int, image: int, shape: tuple[int, int, int] = (9, 10, 8)) -> bytes:
    """A NIfTI-1 file in gzip, of made-up values."""
    values = generator(seed, "nifti", image).normal(size=shape).astype("<f4")
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", head, 70, 16, 32)  # float32
    struct.pack_into("<8f", head, 76, 1, 4, 4, 4, 1, 1, 1, 1)
    struct.pack_into("<f", head, 108, 352)
    struct.pack_into("<ff", head, 112, 1, 0)
    struct.pack_into("<hh", head, 252, 0, 1)
    for n, row in enumerate(((4, 0, 0, -16), (0, 4, 0, -18), (0, 0, 4, -14))):
        struct.pack_into("<4f", head, 280 + 16 * n, *row)
    head[344:348] = b"n+1\0"
    return gzip.compress(bytes(head) + values.tobytes(order="F"), 6, mtime=0)

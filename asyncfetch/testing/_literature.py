"""NeuroMorpho's made-up publications.

True to the service in what surprises: names in camel case, words that are not those of
the neurons, and a status that is an object in some records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from asyncfetch.testing._answer import uniforms

Record = dict[str, Any]

FIELDS = tuple(
    "article_id pmid doi journal title authors species brainRegion cellType "
    "tracingSystem evaluatedDate publishedDate globalStatus collection dataUsage "
    "sharedReconstructions status nReconstructions".split()
)
_JOURNALS = ("J Comp Neurol", "Cerebral Cortex", "eLife", "Nature Neuroscience")
_SPECIES = ("Mouse", "Rat", "Human", "Drosophila")
_REGIONS = ("Neocortex", "Hippocampus", "Retina", "Spinal Cord")
_AUTHORS = ("Müller A", "O'Neil B", "Sánchez C", "Tanaka D")


class Publications:
    """All publications for one seed and scale, by article id."""

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        count = max(30, round(700 * scale))
        ids = [
            hashlib.blake2b(f"article {n}".encode(), digest_size=12).hexdigest()
            for n in range(count)
        ]
        self._ids = sorted(ids)
        self._places = {one: place for place, one in enumerate(self._ids)}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Record]:
        return (self[place] for place in range(len(self._ids)))

    def place(self, article_id: str) -> int | None:
        """Where the publication is, or None."""
        return self._places.get(article_id)

    def __getitem__(self, place: int) -> Record:
        a, b, c, d = uniforms(self._seed, "article", place)
        shared = int(40 * d)
        record: Record = {
            "article_id": self._ids[place],
            "pmid": str(11_000_000 + int(2e7 * a)),
            "doi": f"10.1000/made.up.{place}",
            "journal": _JOURNALS[int(4 * b)],
            "title": f"Arbors of the {_REGIONS[int(4 * c)].lower()}, part {place}",
            "authors": list(_AUTHORS[: 1 + int(4 * d)]),
            "species": [_SPECIES[int(4 * a)]],
            "brainRegion": [_REGIONS[int(4 * c)]],
            "cellType": ["Pyramidal"] if d < 0.5 else ["Interneuron", "Basket"],
            "tracingSystem": ["Neurolucida"],
            "evaluatedDate": f"{2010 + int(14 * b)}-{1 + int(12 * c):02}-15",
            "publishedDate": f"{2005 + int(18 * b)}-{1 + int(12 * a):02}-01",
            "globalStatus": "Available",
            "collection": "Positive",
            "dataUsage": ["Describing_NeuroMorphoOrg", ""][int(2 * a)],
            "sharedReconstructions": "Yes" if shared else "No",
            "status": "In the repository" if shared else "Not shared",
            "nReconstructions": shared,
        }
        if place % 3 == 1:
            record["status"] = {
                "specific_details": record["status"],
                "nReconstructions": record.pop("nReconstructions"),
            }
        if place % 5 == 2:
            record["publishedDate"] += "T00:00:00.000+0000"
        if place % 7 == 3:
            record["evaluatedDate"] = "Not reported"
        return record

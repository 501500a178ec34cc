"""NeuroMorpho's made-up content: the neurons' records.

Neuron 1, the dozen of the Siegert archive and five of the Allen Cell Types are real
names under their real ids; so the service's tutorials run. The records differ in form
as the service's do: nulls, numbers as text, words in place of numbers, a number or a
bare text where another type is usual, and a key that no document mentions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asyncfetch.testing._answer import uniforms
from asyncfetch.testing._traces import count_nodes

Record = dict[str, Any]

_ALLEN_FIRST_ID = 102367
_ALLEN_NAMES = (
    "Chat-IRES-Cre-neo_Ai14-287662-04-02-01_614444566_m",
    "Chat-IRES-Cre-neo_Ai14-299763-03-01-01_606273532_m",
    "Chat-IRES-Cre-neo_Ai14-304709-05-02-01_607125374_m",
    "Chat-IRES-Cre-neo_Ai14-312304-03-02-01_609846154_m",
    "Chat-IRES-Cre-neo_Ai14-313182-04-02-01_610885878_m",
)
# What a client has to encode, each in its own way, in a path and in a query.
_ODD_NAMES = (
    "cell 7 left", "A+B_3", "slice#2", "100%20done", "O'Brien (2)", "Zellkörper_ä",
    "5038801", "v1&v2, right", "ニューロン1", 'the "big" one', "a:b", "x*y?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Archive:
    name: str
    species: str
    scientific_name: str
    strain: str | None
    brain_region: tuple[str, ...]
    cell_type: tuple[str, ...]
    stain: str
    original_format: str
    doi: str


_WEARNE = _Archive(
    "Wearne_Hof", "monkey", "Macaca mulatta", "Rhesus",
    ("neocortex", "prefrontal", "layer 3"),
    ("Local projecting", "pyramidal", "principal cell"),
    "lucifer yellow", "Neurozoom.swc", "10.1093/cercor/13.9.950",
)  # fmt: skip
_SIEGERT = _Archive(
    "Siegert", "mouse", "Mus musculus", "CK-p25", ("cerebellum",),
    ("microglia", "Glia"), "ionized calcium-binding adaptor molecule 1", "Imaris.swc",
    "10.1038/s41593-022-01167-6",
)  # fmt: skip
_ALLEN = _Archive(
    "Allen Cell Types", "mouse", "Mus musculus", "Chat-IRES-Cre-neo",
    ("neocortex", "occipital", "primary visual", "layer 4"),
    ("Aspiny", "interneuron"), "biocytin", "Vaa3D.swc", "10.1016/j.neuron.2015.02.022",
)  # fmt: skip
_JOINED = _Archive(
    "Hay+Markram", "rat", "Rattus norvegicus", "Wistar",
    ("neocortex", "somatosensory", "layer 5"), ("thick-tufted", "pyramidal"),
    "biocytin", "Neurolucida.asc", "10.1371/journal.pcbi.1002107",
)  # fmt: skip
_ARCHIVES = (
    _WEARNE,
    _ALLEN,
    _JOINED,
    _Archive(
        "Mendell", "cat", "Felis catus", None, ("spinal cord", "lumbar"),
        ("motoneuron", "principal cell"), "horseradish peroxidase", "Eutectic.nts",
        "10.1152/jn.00001.1999",
    ),
    _Archive(
        "Chiang", "drosophila melanogaster", "Drosophila melanogaster", "w1118",
        ("protocerebrum", "mushroom body"), ("Kenyon cell",),
        "green fluorescent protein", "Amira.am", "10.1016/j.cub.2010.11.056",
    ),
    _Archive(
        "Jacobs", "human", "Homo sapiens", None, ("neocortex", "frontal", "layer 3"),
        ("pyramidal", "principal cell"), "golgi", "Neurolucida.dat",
        "10.1093/cercor/11.6.558",
    ),
    _Archive(
        "Hrvoj-Mihic_Semendeferi", "humpback whale", "Megaptera novaeangliae", None,
        ("neocortex", "anterior cingulate", "layer 5"), ("von Economo",), "golgi",
        "Custom.xml", "10.3389/fnana.2015.00079",
    ),
    _Archive(
        "Kawaguchi", "rat", "Rattus norvegicus", "Wistar",
        ("neocortex", "frontal", "layer 2-3"), ("basket", "interneuron"), "biocytin",
        "Neurolucida.asc", "10.1093/cercor/bhj036",
    ),
)  # fmt: skip

# The record of neuron 1 as it is public, for the keys that its archive does not give.
_FIRST: Record = {
    "note": (
        "When originally released, this reconstruction had been incompletely "
        "processed, and this issue was fixed in release 6.1 (May 2015). The pre-6.1 "
        "version of the processed file is available for download "
        '<a href=" dableFiles/previous/v6.1/wearne_hof/cnic_001.CNG.swc ">here</a>.'
    ),
    "age_scale": "Year",
    "gender": "Male/Female",
    "age_classification": "old",
    "experiment_condition": ["Control"],
    "protocol": "in vivo",
    "slicing_direction": "custom",
    "reconstruction_software": "Neurozoom",
    "objective_type": "Not reported",
    "domain": "Dendrites, Soma, No Axon",
    "attributes": "Diameter, 3D, Angles",
    "magnification": "100",
    "upload_date": "2006-08-01",
    "deposition_date": "2005-12-31",
    "shrinkage_reported": "Reported",
    "shrinkage_corrected": "Not Corrected",
    "reported_value": None,
    "reported_xy": None,
    "reported_z": None,
    "corrected_value": None,
    "corrected_xy": None,
    "corrected_z": None,
    "soma_surface": "834.0",
    "surface": "8842.91",
    "volume": "4725.89",
    "slicing_thickness": "400",
    "min_age": "24.0",
    "max_age": "25.0",
    "min_weight": "4500.0",
    "max_weight": "10000.0",
    "reference_pmid": ["12204204", "12902394"],
    "reference_doi": ["10.1016/S0306-4522(02)00305-6", "10.1093/cercor/13.9.950"],
    "physical_Integrity": "Dendrites Moderate",
}


class Neurons:
    """All neurons for one seed and scale, by their place in the order of ids."""

    def __init__(self, *, seed: int, scale: float) -> None:
        self._seed = seed
        # Room for every neuron with a name of its own, the odd files, every archive.
        self._count = max(60, round(1000 * scale))
        self._plain = self._count - len(_ALLEN_NAMES)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        return (self[place] for place in range(self._count))

    def __getitem__(self, place: int) -> Record:
        return self._record(self.id(place))

    def id(self, place: int) -> int:
        """The id of the neuron at *place*."""
        if place >= self._plain and self._plain < _ALLEN_FIRST_ID:
            return _ALLEN_FIRST_ID + place - self._plain
        return place + 1  # so large an archive reaches the five on its own

    def place(self, neuron_id: int) -> int | None:
        """Where the neuron with this id is, or None."""
        if self._plain < _ALLEN_FIRST_ID <= neuron_id:
            place = self._plain + neuron_id - _ALLEN_FIRST_ID
        elif self._plain < _ALLEN_FIRST_ID and neuron_id > self._plain:
            return None
        else:
            place = neuron_id - 1
        return place if 0 <= place < self._count else None

    def name(self, neuron_id: int) -> str:
        """The neuron's name."""
        return self._identity(neuron_id)[0]

    def archive(self, neuron_id: int) -> str:
        """The name of the neuron's archive, as its record has it."""
        return self._identity(neuron_id)[1].name

    def _identity(self, neuron_id: int) -> tuple[str, _Archive]:
        if neuron_id == 1:
            return "cnic_001", _WEARNE
        if neuron_id <= 13:
            return f"CB_CKp25_2w_F_Animal01_{neuron_id - 1:02}", _SIEGERT
        if neuron_id <= 13 + len(_ODD_NAMES):
            return _ODD_NAMES[neuron_id - 14], (_JOINED, _ALLEN)[neuron_id % 2]
        if 0 <= neuron_id - _ALLEN_FIRST_ID < len(_ALLEN_NAMES):
            return _ALLEN_NAMES[neuron_id - _ALLEN_FIRST_ID], _ALLEN
        archive = _ARCHIVES[neuron_id // 4 % len(_ARCHIVES)]
        return f"{archive.name.split('_')[0].replace(' ', '')}-{neuron_id}", archive

    def _record(self, neuron_id: int) -> Record:
        name, archive = self._identity(neuron_id)
        values = _FIRST if neuron_id == 1 else self._values(neuron_id, archive)
        record: Record = {
            "neuron_id": neuron_id,
            "neuron_name": name,
            "archive": archive.name,
            "note": values["note"],
            "age_scale": values["age_scale"],
            "gender": values["gender"],
            "age_classification": values["age_classification"],
            "brain_region": list(archive.brain_region),
            "cell_type": list(archive.cell_type),
            "species": archive.species,
            "strain": archive.strain,
            "scientific_name": archive.scientific_name,
            "stain": archive.stain,
            "experiment_condition": values["experiment_condition"],
            "protocol": values["protocol"],
            "slicing_direction": values["slicing_direction"],
            "reconstruction_software": values["reconstruction_software"],
            "objective_type": values["objective_type"],
            "original_format": archive.original_format,
        }
        record |= {key: values[key] for key in values if key not in record}
        record["png_url"] = (
            f"http://neuromorpho.org/images/imageFiles/{archive.name}/{name}.png"
        )
        # Last, as they are in the real record.
        for key in ("reference_pmid", "reference_doi", "physical_Integrity"):
            record[key] = record.pop(key)
        api = "http://neuromorpho.org/api"
        record["_links"] = {
            "self": {"href": f"{api}/neuron/id/{neuron_id}"},
            "measurements": {"href": f"{api}/morphometry/id/{neuron_id}"},
            "persistence_vector": {"href": f"{api}/pvec/id/{neuron_id}"},
        }
        if neuron_id != 1:
            _make_odd(record)
        return record

    def _values(self, neuron_id: int, archive: _Archive) -> Record:
        a, b, c, d = uniforms(self._seed, "neuron", neuron_id)
        year, month, day = 2006 + int(18 * a), 1 + int(12 * b), 1 + int(28 * c)
        surface = f"{2000 + 9000 * b:.2f}"
        return {
            "note": None,
            "age_scale": ("Day", "Month", "Year")[int(3 * a)],
            "gender": ("Male", "Female", "Male/Female", "Not reported")[int(4 * b)],
            "age_classification": ("young", "adult", "old")[int(3 * c)],
            "experiment_condition": ["Control"] if d < 0.8 else ["CK-p25", "2 weeks"],
            "protocol": ("in vivo", "in vitro", "Not reported")[int(3 * d)],
            "slicing_direction": ("coronal", "sagittal", "Not reported")[int(3 * a)],
            "reconstruction_software": archive.original_format.partition(".")[0],
            "objective_type": ("oil", "water", "Not reported")[int(3 * b)],
            "domain": "Dendrites, Soma, Axon"
            if c < 0.5
            else "Dendrites, Soma, No Axon",
            "attributes": "Diameter, 3D, Angles",
            "magnification": ("40", "60", "63", "100")[int(4 * c)],
            "upload_date": f"{year + 1}-{month:02}-{day:02}",
            "deposition_date": f"{year}-{month:02}-{day:02}",
            "shrinkage_reported": "Reported" if d < 0.3 else "Not reported",
            "shrinkage_corrected": "Corrected" if d < 0.1 else "Not Corrected",
            "reported_value": f"{100 * d:.1f}" if d < 0.3 else None,
            "reported_xy": None,
            "reported_z": None,
            "corrected_value": round(1 + d, 2) if d < 0.1 else None,
            "corrected_xy": None,
            "corrected_z": None,
            "soma_surface": f"{400 + 800 * a:.1f}",
            "surface": surface,
            "volume": f"{1000 + 5000 * c:.2f}",
            "slicing_thickness": "300",
            "min_age": f"{20 + 40 * a:.1f}",
            "max_age": f"{60 + 40 * a:.1f}",
            "min_weight": None if d < 0.5 else "18.0",
            "max_weight": None if d < 0.5 else "25.0",
            "reference_pmid": [str(12_000_000 + int(2e7 * b))],
            "reference_doi": [archive.doi],
            "physical_Integrity": "Dendrites Moderate" if a < 0.5 else "Complete",
        }

    def morphometry(self, neuron_id: int) -> Record:
        """The neuron's measurements, the keys in the service's order."""
        record = self._record(neuron_id)
        a, b, c, d = uniforms(self._seed, "morphometry", neuron_id)
        values: Record = {
            "neuron_name": record["neuron_name"],
            "neuron_id": neuron_id,
            "surface": float(record["surface"]),
            "volume": float(record["volume"]),
            "n_bifs": 20.0 + int(40 * a),
            "n_branch": 45.0 + int(80 * a),
            "width": round(100 + 300 * a, 1),
            "height": round(200 + 400 * b, 1),
            "depth": round(50 + 100 * c, 1),
            "diameter": round(0.3 + d, 2),
            "eucDistance": round(200 + 300 * b, 1),
            "pathDistance": round(300 + 400 * b, 1),
            "branch_Order": 5.0 + int(8 * c),
            "contraction": round(0.8 + 0.15 * d, 2),
            "fragmentation": float(count_nodes(self._seed, neuron_id) - 3),
            "partition_asymmetry": round(0.4 + 0.2 * a, 2),
            "pk_classic": round(1.2 + 0.6 * b, 2),
            "bif_ampl_local": round(60 + 20 * c, 1),
            "fractal_Dim": round(1 + 0.1 * d, 2),
            "soma_Surface": float(record["soma_surface"]),
            "n_stems": 3.0 + int(8 * a),
            "bif_ampl_remote": round(50 + 20 * b, 1),
            "length": round(2000 + 4000 * c, 1),
        }
        if neuron_id % 5 == 3:  # numbers as text
            values |= {
                key: repr(value)
                for key, value in values.items()
                if isinstance(value, float)
            }
        elif neuron_id % 5 == 4:
            values["pk_classic"] = None
        return values

    def persistence(self, neuron_id: int) -> Record | str:
        """The neuron's persistence vector; as a text for one in 61."""
        a, b, _, _ = uniforms(self._seed, "persistence", neuron_id)
        numbers = [round(a * (1 - n / 100) ** 2, 6) for n in range(100)]
        if neuron_id % 61 == 0:
            return " ".join(map(str, [neuron_id, *numbers]))
        return {
            "neuron_name": self.name(neuron_id),
            "neuron_id": neuron_id,
            "scaling_factor": round(100 + 400 * b, 3),
            "distance": round(10 * a, 4),
            "coefficients": numbers,
        }


def _make_odd(record: Record) -> None:
    """Give some records a form that a client does not expect, by their ids."""
    neuron_id = record["neuron_id"]
    if neuron_id % 10 == 6:
        record["note"] = (
            'Superseded: see <a href="dableFiles/previous/v5.1/">v5.1</a> &amp; "new"'
        )
    if neuron_id % 37 == 5:
        record["tracing_quality"] = {"score": neuron_id % 7, "rater": "M. Müller"}
    if neuron_id % 41 == 7:
        record["magnification"] = 63
    if neuron_id % 43 == 9:
        record["brain_region"] = record["brain_region"][0]
    if neuron_id % 47 == 11:
        record["cell_type"] = None
    if neuron_id % 29 == 3:
        record["slicing_thickness"] = "100-200"
    if neuron_id % 23 == 2:
        record["min_age"] = record["max_age"] = "Not reported"
    if neuron_id % 31 == 4:
        record["upload_date"] = "Not reported"
    if neuron_id % 19 == 8:
        record["reference_pmid"], record["reference_doi"] = ["9999999", "88"], []
    if neuron_id % 17 == 12:
        record["strain"] = ""

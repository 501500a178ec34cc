"""What the terms of NeuroMorpho.Org ask to be cited: papers, database, and its paper.

Content is CC BY 4.0. Whoever uses it cites the papers of the neurons, the name of the
database with its RRID, and the paper on the database.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncfetch.errors import ConfigurationError

RRID = "SCR_002145"
DATABASE_DOI = "10.1096/fba.2024-00048"
LICENCE = "CC BY 4.0"
_TEXT = str | int  # made once: a union costs more than the look at a value
FORMATS = ("md", "bibtex", "csl")


def texts_of(value: Any) -> list[str]:
    """The texts of a field that holds some, one, or none."""
    found = value if isinstance(value, list) else [value]
    texts = [str(one).strip() for one in found if isinstance(one, _TEXT)]
    return [text for text in texts if text]


def paper_of(record: Mapping[str, Any]) -> list[Any]:
    """Archive, DOIs and PubMed ids of a record, as details hold them."""
    archive = record.get("archive")
    return [
        archive if isinstance(archive, str) else "",
        texts_of(record.get("reference_doi")),
        texts_of(record.get("reference_pmid")),
    ]


def papers_of(records: Iterable[Any]) -> list[Any]:
    """The same of some records, each once, with the number of neurons behind."""
    found: Counter[str] = Counter(
        json.dumps(paper_of(record))
        for record in records
        if isinstance(record, Mapping)
    )
    return [[*json.loads(text), count] for text, count in found.items()]


@dataclass(slots=True)
class _Paper:
    """Something to be cited, with what it stands for."""

    doi: str = ""
    pmid: str = ""
    archives: Counter[str] = field(default_factory=Counter)

    @property
    def key(self) -> str:
        text = self.doi or f"pmid-{self.pmid}"
        return "".join(one if one.isalnum() else "-" for one in text).strip("-")

    @property
    def url(self) -> str:
        if self.doi:
            return f"https://doi.org/{self.doi}"
        return f"https://pubmed.ncbi.nlm.nih.gov/{self.pmid}/"

    @property
    def neurons(self) -> int:
        return sum(self.archives.values())


def gathered(details: Iterable[Mapping[str, Any]]) -> tuple[list[_Paper], Counter[str]]:
    """The papers in the details of items, most neurons first; and archives without."""
    papers: dict[tuple[str, str], _Paper] = {}
    without: Counter[str] = Counter()
    for detail in details:
        for archive, dois, pmids, count in detail.get("papers") or ():
            # The two lists are not side by side where one is shorter.
            pairs = (
                zip(dois, pmids, strict=True)
                if len(dois) == len(pmids)
                else [
                    *((doi, "") for doi in dois),
                    *(("", one) for one in pmids if not dois),
                ]
            )
            for doi, pmid in pairs:
                paper = papers.setdefault(
                    (doi.lower() or "", "" if doi else pmid), _Paper()
                )
                # Of several spellings the same one, in whatever order they come.
                paper.doi = min(paper.doi or doi, doi)
                paper.pmid = min(paper.pmid or pmid, pmid or paper.pmid)
                paper.archives[archive] += count
            if not dois and not pmids:
                without[archive] += count
    return sorted(papers.values(), key=lambda one: (-one.neurons, one.key)), without


def cited(details: Iterable[Mapping[str, Any]], form: str) -> str:
    """What is to be cited, in one of :data:`FORMATS`.

    Raises
    ------
    ConfigurationError
        There is no such format.
    """
    if form not in FORMATS:
        raise ConfigurationError(f"expected format {', '.join(FORMATS)}, got {form!r}")
    papers, without = gathered(details)
    if form == "csl":
        return _csl(papers)
    return _bibtex(papers) if form == "bibtex" else _markdown(papers, without)


def markdown(details: Iterable[Mapping[str, Any]]) -> str:
    """What is to be cited, for people."""
    return cited(details, "md")


def _markdown(papers: Sequence[_Paper], without: Mapping[str, int]) -> str:
    lines = [
        "# What to cite",
        "",
        f"The neurons are from NeuroMorpho.Org (RRID:{RRID}), under {LICENCE}.",
        "Its terms of use ask to cite:",
        "",
        f"- the database by its name and RRID: NeuroMorpho.Org (RRID:{RRID})",
        f"- the paper on the database: <https://doi.org/{DATABASE_DOI}>",
        f"- the papers of the neurons: the {len(papers)} below" if papers else "",
        "",
    ]
    for paper in papers:
        archives = ", ".join(
            f"{n} of {name}" for name, n in sorted(paper.archives.items())
        )
        pmid = f", PMID {paper.pmid}" if paper.pmid and paper.doi else ""
        lines.append(f"- <{paper.url}>{pmid} ({archives})")
    if without:
        names = ", ".join(f"{n} of {name}" for name, n in sorted(without.items()))
        lines += ["", f"No paper is named for: {names}. Ask the archive."]
    return "\n".join(lines) + "\n"


def _bibtex(papers: Sequence[_Paper]) -> str:
    entries = [
        [
            "@misc{neuromorpho,",
            "  title = {NeuroMorpho.Org},",
            f"  note = {{RRID:{RRID}, {LICENCE}}},",
            "  url = {https://neuromorpho.org},",
            "}",
        ],
        [
            "@article{neuromorpho-database,",
            f"  doi = {{{DATABASE_DOI}}},",
            f"  url = {{https://doi.org/{DATABASE_DOI}}},",
            "}",
        ],
    ]
    for paper in papers:
        entry = [f"@article{{{paper.key},"]
        if paper.doi:
            entry.append(f"  doi = {{{paper.doi}}},")
        if paper.pmid:
            entry += [f"  eprint = {{{paper.pmid}}},", "  eprinttype = {pubmed},"]
        archives = ", ".join(sorted(paper.archives))
        entry += [f"  url = {{{paper.url}}},", f"  note = {{archive {archives}}},", "}"]
        entries.append(entry)
    return "\n\n".join("\n".join(entry) for entry in entries) + "\n"


def _csl(papers: Sequence[_Paper]) -> str:
    found: list[dict[str, Any]] = [
        {
            "id": "neuromorpho",
            "type": "dataset",
            "title": "NeuroMorpho.Org",
            "note": f"RRID:{RRID}",
            "URL": "https://neuromorpho.org",
        },
        {"id": "neuromorpho-database", "type": "article-journal", "DOI": DATABASE_DOI},
    ]
    for paper in papers:
        one = {"id": paper.key, "type": "article-journal", "URL": paper.url}
        if paper.doi:
            one["DOI"] = paper.doi
        if paper.pmid:
            one["PMID"] = paper.pmid
        found.append(one)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"

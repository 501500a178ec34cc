"""A lab's pass: records, traces, files and what to cite; and a look at a trace."""

import json
import sys

import pytest

import asyncfetch
from asyncfetch import testing
from asyncfetch._cli import run
from asyncfetch._verify import verify
from asyncfetch.services import _papers
from asyncfetch.testing import Fault


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr("asyncfetch._absence.PATIENCE", 0.1)


@pytest.fixture
def archive(monkeypatch):
    with testing.serve_in_thread(scale=0.05) as archive:
        for name, url in archive.environment().items():
            monkeypatch.setenv(name, url)
        yield archive


def test_a_mirror_has_all_of_an_archive_and_asks_for_each_once(
    archive, tmp_path, capsys
):
    dest = tmp_path / "siegert"
    assert run(["mirror", "neuromorpho", "archive=Siegert", "-o", str(dest)]) == 0
    assert asyncfetch.open_dataset(dest / "neurons").state().rows == 12
    traces = asyncfetch.open_dataset(dest / "traces")
    assert traces.state().items == {"ok": 12}
    for neuron in range(2, 14):
        name = f"CB_CKp25_2w_F_Animal01_{neuron - 1:02}.CNG.swc"
        path = dest / "traces" / "_files" / "Siegert" / "CNG version" / name
        assert path.read_bytes() == archive.truth.swc(neuron)
    assert "https://doi.org/10.1038/s41593-022-01167-6" in (
        dest / "CITATION.md"
    ).read_text(encoding="utf-8")
    targets = [one.target for one in archive.log]
    assert len(targets) == len(set(targets))
    pages = [one for one in targets if "select" in one]
    assert len(pages) == 1
    assert run(["mirror", "neuromorpho", "archive=Siegert", "-o", str(dest)]) == 0
    assert len(archive.log) == len(targets)
    assert "nothing left to ask" in capsys.readouterr().err
    assert run(["verify", str(dest)]) == 3
    assert "datasets in it: neurons, traces" in capsys.readouterr().err
    for table in ("neurons", "traces"):
        assert not verify(dest / table)
        citation = dest / table / "_asyncfetch" / "CITATION.md"
        assert "SCR_002145" in citation.read_text(encoding="utf-8")


def test_a_mirror_that_was_cut_goes_on_where_it_stopped(archive, tmp_path):
    dest = tmp_path / "m"
    archive.script(".CNG.swc", [Fault(body=b"no trace\n")] * 5)
    words = ["mirror", "neuromorpho", "archive=Siegert", "-o", str(dest), "--quiet"]
    assert run(words) == 1
    asked = len(archive.log)
    assert run(words) == 0
    assert len(archive.log) == asked + 5
    assert asyncfetch.open_dataset(dest / "traces").state().items == {"ok": 12}


def test_traces_wait_until_all_records_are_there(archive, tmp_path):
    dest = tmp_path / "m"
    page = {"totalElements": 12, "totalPages": 1, "number": 0}
    body = json.dumps({"_embedded": "none", "page": page}).encode()
    archive.script("size=500", [Fault(body=body)] * 9)
    words = ["mirror", "neuromorpho", "archive=Siegert", "-o", str(dest), "--quiet"]
    assert run(words) == 1
    assert not (dest / "traces").exists()


def test_traces_do_not_wait_for_a_record_that_gives_no_row(archive, tmp_path):
    records = [*archive.truth.neurons()[1:4], {"neuron_name": "no id"}]
    page = {"size": 500, "totalElements": 4, "totalPages": 1, "number": 0}
    body = {"_embedded": {"neuronResources": records}, "page": page}
    archive.script("neuron/select", [Fault(body=json.dumps(body).encode())] * 2)
    dest = tmp_path / "m"
    words = ["mirror", "neuromorpho", "archive=Siegert", "-o", str(dest), "--quiet"]
    assert run(words) == 1
    items = asyncfetch.open_dataset(dest / "neurons").state().items
    assert items == {"ok": 1, "failed": 1}
    assert asyncfetch.open_dataset(dest / "traces").state().items == {"ok": 3}
    asked = len(archive.log)
    assert run(words) == 1
    assert len(archive.log) == asked


def test_only_neuromorpho_is_mirrored(tmp_path, capsys):
    assert run(["mirror", "neuroscout", "-o", str(tmp_path / "m")]) == 2
    assert "expected neuromorpho" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["neurons", "traces", "morphometry"])
@pytest.mark.parametrize("form", ["md", "bibtex", "csl"])
def test_what_a_dataset_holds_can_be_cited(archive, tmp_path, capsys, table, form):
    dest = str(tmp_path / "d")
    words = ["fetch", f"neuromorpho/{table}", "neuron_id=1,2,3", "-o", dest, "--quiet"]
    assert run(words) == 0
    asked = len(archive.log)
    capsys.readouterr()
    assert run(["cite", dest, "--format", form]) == 0
    out = capsys.readouterr().out
    assert len(archive.log) == asked
    dois = {
        "10.1016/S0306-4522(02)00305-6",
        "10.1093/cercor/13.9.950",
        "10.1038/s41593-022-01167-6",
        _papers.DATABASE_DOI,
    }
    assert all(doi in out for doi in dois)
    assert "RRID:SCR_002145" in out
    if form == "csl":
        found = json.loads(out)
        assert {one["DOI"] for one in found if "DOI" in one} == dois
        assert len({one["id"] for one in found}) == len(found) == 5
        assert any(one.get("PMID") == "12204204" for one in found)
    if form == "bibtex":
        assert out.count("{") == out.count("}")
        assert out.count("\n@") + 1 == 5


def test_what_cannot_be_cited_is_said(archive, tmp_path, capsys):
    dest = str(tmp_path / "d")
    assert run(["fetch", "neuroscout/datasets", "-o", dest, "--quiet"]) == 0
    assert run(["cite", dest]) == 2
    assert "expected a dataset of neurons" in capsys.readouterr().err
    words = ["fetch", "neuromorpho/neurons", "neuron_id=1", "-o", f"{dest}2", "--quiet"]
    assert run(words) == 0
    assert run(["cite", f"{dest}2", "--format", "ris"]) == 2


def test_papers_are_counted_once_whatever_is_missing():
    records = [
        {"archive": "A", "reference_doi": ["10.1/X"], "reference_pmid": ["1"]},
        {"archive": "A", "reference_doi": ["10.1/x"], "reference_pmid": ["1"]},
        {"archive": "B", "reference_doi": "10.1/X", "reference_pmid": None},
        {"archive": "B", "reference_doi": [], "reference_pmid": ["2", "3"]},
        {"archive": None, "reference_doi": None},
        "no record",
    ]
    details = [{"papers": _papers.papers_of(records)}, {}]
    papers, without = _papers.gathered(details)
    assert [(one.doi, one.pmid, one.neurons) for one in papers] == [
        ("10.1/X", "1", 3),
        ("", "2", 1),
        ("", "3", 1),
    ]
    assert without == {"": 1}
    text = _papers.markdown(details)
    assert "https://pubmed.ncbi.nlm.nih.gov/2/" in text
    assert "(2 of A, 1 of B)" in text
    assert "No paper is named for" in text


def test_a_trace_is_drawn(archive, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    words = ["show", "neuromorpho/traces", "neuron_name=cnic_001,CB_CKp25_*_01"]
    assert run([*words, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "2 traces" in capsys.readouterr().err
    assert run([*words, "--plot", str(tmp_path / "out.nonsense")]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_nothing_is_asked_for_a_picture_that_cannot_be(
    archive, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["show", "neuromorpho/traces", "neuron_name=cnic_001"]
    assert run([*words, "--plot", str(tmp_path / "out.png")]) == 2
    assert "pip install 'asyncfetch[plot]'" in capsys.readouterr().err
    assert not archive.log


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["neuromorpho/neurons"], "expected a table of traces"),
        (["neuromorpho/traces", "species=rat,mouse"], "at most 16 traces"),
        (["neuromorpho/traces", "neuron_name=cnic_001", "--limit", "5"], "--limit"),
    ],
)
def test_what_cannot_be_drawn_is_said(archive, tmp_path, capsys, words, said):
    assert run(["show", *words, "--plot", str(tmp_path / "a.png")]) == 2
    assert said in capsys.readouterr().err

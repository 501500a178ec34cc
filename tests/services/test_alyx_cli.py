"""Alyx on the command line: the words are those of every service."""

import json

import pytest

import asyncfetch
from asyncfetch import _cli
from asyncfetch.testing import serve_in_thread


@pytest.fixture(scope="module")
def archive():
    with serve_in_thread(scale=1) as archive:
        yield archive


@pytest.fixture
def run(archive, monkeypatch, capsys):
    for name, value in archive.environment().items():
        monkeypatch.setenv(name, value)

    def call(*words):
        status = _cli.run(list(words))
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    return call


def ids_in(dest):
    return sorted(asyncfetch.open_dataset(dest).rows.to_table()["id"].to_pylist())


def test_a_part_of_a_table_is_fetched_and_then_the_rest(archive, run, tmp_path):
    dest = tmp_path / "files"
    run("fetch", "alyx/files", "-o", str(dest), "--limit", "3", "--quiet")
    some = len(ids_in(dest))
    run("fetch", "alyx/files", "-o", str(dest), "--quiet")
    truth = sorted(row["id"] for row in archive.truth.alyx("files"))
    assert 0 < some < len(truth)
    assert ids_in(dest) == truth
    asked = len(archive.log)
    run("resume", str(dest), "--quiet")
    assert len(archive.log) == asked
    run("verify", str(dest))


def test_filters_are_words(archive, run):
    lab = json.loads(run("show", "alyx/labs", "name=cortexlab", "--format", "json"))
    assert [one["name"] for one in lab] == ["cortexlab"]
    words = 'django:={"subject__nickname__in": ["DY_003", "DY_006"]}'
    found = json.loads(run("show", "alyx/sessions", words, "--format", "json"))
    names = {"DY_003", "DY_006"}
    assert {one["subject"] for one in found} == names
    truth = [
        one
        for one in archive.truth.alyx("sessions")
        if one["subject"]["nickname"] in names
    ]
    assert len(found) == len(truth)


def test_a_plan_is_counted_without_rows(archive, run, tmp_path):
    said = run("fetch", "alyx/files", "-o", str(tmp_path / "f"), "--dry-run")
    count = len(archive.truth.alyx("files"))
    assert f"{-(-count // 700)} requests of up to 1000 files" in said


def test_tables_describe_themselves_without_a_server(capsys):
    assert _cli.run(["describe", "alyx/data-files"]) == 0
    said = capsys.readouterr().out
    assert "keep_uuid" in said
    assert "where the file came from" in said
    assert _cli.run(["services"]) == 0
    assert "alyx/trajectories" in capsys.readouterr().out

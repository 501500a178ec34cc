"""What the README shows is run, and what it promises is held to its words."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asyncfetch
from asyncfetch._cli import app, run
from asyncfetch.services import SERVICES, client_class
from asyncfetch.testing import serve_in_thread

# As a program does it: what is heavy is imported before the loop runs.
CLIENT, DOWNLOAD = asyncfetch.Neuroscout, asyncfetch.download
README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


async def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    async with asyncfetch.testing.serve(scale=0.05) as archive:
        local = code.replace(
            "Neuroscout()", f"Neuroscout(base_url={archive.neuroscout!r})"
        )
        tree = compile(local, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names = {}
        await eval(tree, names)
    assert names["report"].rows == len(names["events"]) > 0
    assert sum(map(int, capsys.readouterr().out.split())) == names["report"].rows


def commands():
    (code,) = blocks("sh")
    joined = code.replace("\\\n", " ")
    return [line.split("#")[0].split() for line in joined.splitlines()]


def test_every_command_is_named():
    named = {words[1] for words in commands()}
    assert named | {"demo"} == {
        one.name or one.callback.__name__ for one in app.registered_commands
    }


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[1:3]))
def test_every_command_line_is_understood(words, tmp_path, monkeypatch, capsys):
    if words[1] == "simulate":
        assert run(["simulate", "--help"]) == 0
        return
    monkeypatch.chdir(tmp_path)
    with serve_in_thread(scale=0.05) as archive:
        for name, url in archive.environment().items():
            monkeypatch.setenv(name, url)
        for place, first in (("events", "fetch"), ("siegert", "mirror")):
            if place in (words[-1], *words[2:3]) and words[1] != first:
                before = next(one for one in commands() if one[1] == first)
                assert run(before[1:]) == 0
        # In the place of somebody's API, a list that is there.
        there = f"{archive.environment()['ASYNCFETCH_NEUROSCOUT_URL']}/datasets"
        words = [there if word.startswith("https://host/") else word for word in words]
        assert run(words[1:]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("service", SERVICES)
def test_the_table_of_services_is_true(service):
    kind = client_class(service)
    (row,) = [
        line for line in TEXT.splitlines() if kind.default_url.split("/api")[0] in line
    ]
    for description in kind.descriptions:
        assert description.name in row
    limits = kind.default_limits
    if limits.rate:
        assert f"{limits.rate:g} requests/s" in row
    assert f"{limits.concurrency} connections" in row


def test_the_demo_does_what_it_says(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "asyncfetch", "demo", "data"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) <= 25
    assert any(
        re.search(r"items were kept, 0 of them asked again", one) for one in lines
    )
    (kept,) = re.findall(r"killed with ([\d,]+) items committed", ended.stdout)
    assert 0 < int(kept.replace(",", "")) < 1000
    script = "\n".join(
        line.strip() for line in lines if re.match(r"\s+(import|events|print)", line)
    )
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "speech" in shown.stdout

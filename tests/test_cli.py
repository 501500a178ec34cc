"""The command line: words in, data on stdout, one line when it goes wrong."""

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib import metadata

import pyarrow as pa
import pytest

from asyncfetch import testing
from asyncfetch._cli import filters_of, run
from asyncfetch.errors import ConfigurationError
from asyncfetch.services import client_class
from asyncfetch.testing import Fault

SPEECH = (
    "neuroscout/predictor-events",
    "dataset_name=SherlockMerlin",
    "predictor_name=speech",
)


@pytest.fixture
def archive(monkeypatch):
    with testing.serve_in_thread(scale=0.05) as archive:
        for name, url in archive.environment().items():
            monkeypatch.setenv(name, url)
        yield archive


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def test_the_version_is_said(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"asyncfetch {metadata.version('asyncfetch')}\n"


def test_services_and_tables_are_listed(capsys):
    assert run(["services"]) == 0
    out = capsys.readouterr().out
    assert "https://neuromorpho.org" in out
    assert "neuroscout/predictor-events" in out


def test_a_table_is_described_with_units(capsys):
    assert run(["describe", "neuroscout/predictor-events"]) == 0
    out = capsys.readouterr().out
    assert "predictor_name" in out
    assert any("onset" in line and " s," in line for line in lines(out))


def test_rows_are_shown_in_every_form(archive, capfdbinary):
    for form in ("csv", "json", "jsonl", "table", "arrow"):
        assert run(["show", *SPEECH, "--limit", "3", "--format", form]) == 0
        out = capfdbinary.readouterr().out
        if form == "csv":
            rows = list(csv.DictReader(io.StringIO(out.decode())))
        elif form == "json":
            rows = json.loads(out)
        elif form == "jsonl":
            rows = [json.loads(line) for line in lines(out.decode())]
        elif form == "arrow":
            rows = pa.ipc.open_stream(out).read_all().to_pylist()
        else:
            rows = lines(out.decode())[1:]
        assert len(rows) == 3
        if form != "table":
            assert float(rows[0]["onset"]) == 72.422


def test_columns_are_chosen(archive, capsys):
    words = ["neuroscout/datasets", "--columns", "id,name", "--format", "csv"]
    assert run(["show", *words]) == 0
    assert lines(capsys.readouterr().out)[0] == "id,name"
    assert run(["show", "neuroscout/datasets", "--columns", "idd"]) == 2


def test_fetch_resume_status_verify(archive, tmp_path, capsys):
    dest = str(tmp_path / "e")
    assert run(["fetch", *SPEECH, "-o", dest, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["items"] == {"ok": 2}
    assert run(["fetch", *SPEECH, "-o", dest]) == 0
    assert "nothing left to ask" in capsys.readouterr().err
    assert run(["resume", dest, "--quiet"]) == 0
    assert run(["status", dest]) == 0
    out = capsys.readouterr().out
    assert f"rows: {report['rows']:,}" in out
    assert run(["verify", dest]) == 0
    assert "agree" in capsys.readouterr().out


def test_failed_items_give_status_1_and_are_retried(archive, tmp_path, capsys):
    dest = str(tmp_path / "e")
    archive.script("/predictor-events", [Fault(status=422, body=b'{"message": "no"}')])
    assert run(["fetch", *SPEECH, "-o", dest]) == 1
    err = capsys.readouterr().err
    assert "422" in err
    assert "retry" in err
    assert run(["status", dest, "--failed", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["failed"]) == 1
    assert run(["retry", dest, "error_class=Nothing"]) == 1
    assert run(["retry", dest, "http_status=422", "--quiet"]) == 0
    assert run(["retry", dest, "outcome=ok"]) == 2


def test_a_dry_run_says_what_would_be_asked(archive, tmp_path, capsys):
    words = ["neuromorpho/traces", "archive=Siegert"]
    words += ["-o", str(tmp_path / "t"), "--dry-run", "--json", "--sample", "0"]
    assert run(["fetch", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["items"] == len(archive.truth.neurons(archive="Siegert"))
    assert not list(tmp_path.iterdir())
    assert all("/dableFiles" not in one.target for one in archive.log)


def test_a_limit_counts_items(archive, tmp_path, capsys):
    words = [
        "fetch",
        "neuromorpho/traces",
        "-o",
        str(tmp_path / "t"),
        "--json",
        "--quiet",
    ]
    assert run([*words, "--limit", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == {"ok": 3}


def nowhere():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["fetch", "neuroscot/datasets", "-o", "x"], 2, "did you mean neuroscout"),
        (["fetch", "neuroscout/datasetz", "-o", "x"], 2, "did you mean datasets"),
        (["fetch", "neuroscout", "-o", "x"], 2, "expected SERVICE/TABLE"),
        (["fetch", "neuroscout/datasets", "nam=x", "-o", "x"], 2, "did you mean name"),
        (["fetch", "neuroscout/datasets", "name", "-o", "x"], 2, "expected NAME=VALUE"),
        (
            ["fetch", "neuroscout/datasets", "-o", "x.parquet"],
            2,
            "expected a directory",
        ),
        (["fetch", "neuroscout/datasets"], 2, "-o"),
        (["fetch", "neuroscout/datasets", "--colour", "-o", "x"], 2, "--colour"),
        (["fetch", "neuroscout/runs", "-o", "x", "--rate", "0"], 2, "expected rate"),
        (["show", "neuroscout/datasets", "--format", "xml"], 2, "--format"),
        (["resume", "not-there"], 3, "expected a dataset, got none"),
        (["status", "not-there"], 3, "expected a dataset, got none"),
        (
            ["fetch", "neuroscout/datasets", "-o", "/dev/null/x"],
            3,
            "that can be written",
        ),
        (
            ["fetch", "neuroscout/datasets", "-o", "x", "--base-url", "DOWN"],
            3,
            "no conn",
        ),
        (["fetch", *SPEECH, "-o", "x", "--base-url", "DOWN"], 3, "no connection"),
        (["show", "neuroscout/datasets", "--base-url", "DOWN"], 3, "no connection"),
        (
            ["show", "neuroscout/datasets", "--base-url", "down"],
            2,
            "expected a base URL",
        ),
        (["fetch", *SPEECH, "-o", "x", "--base-url", "HTML"], 3, "got an HTML page"),
        (
            ["fetch", "neuroscout/runs", "dataset_name=Sherlok", "-o", "x"],
            2,
            "Sherlock",
        ),
        (["simulate", "--faults", "nonsense=1"], 2, "nonsense"),
        (["fech"], 2, "fech"),
        (["fetch", "neuroscout/datasets", "-o", ""], 2, "expected a directory"),
        (
            ["fetch", "neuroscout/datasets", "-o", "ftp://a/b"],
            2,
            "expected a directory",
        ),
        (["fetch", "neuroscout/runs", "subject=", "-o", "x"], 2, "expected str"),
        (["fetch", "neuroscout/runs", "-o", "x", "--rate", "nan"], 2, "rate"),
        (
            ["fetch", "neuroscout/runs", "-o", "x", "--concurrency", "0"],
            2,
            "concurrency",
        ),
        (
            ["fetch", "neuroscout/runs", "-o", "x", "--commit-seconds", "-1"],
            2,
            "--commit",
        ),
        (["show", "neuroscout/runs", "--contact", "a\nb"], 2, "one line"),
        (["show", "neuroscout/runs", "--base-url", "ftp://x/y"], 2, "base URL"),
        (["show", "neuroscout/runs", "--base-url", ""], 2, "base URL"),
        (["show", "neuroscout/runs", "name=\udcff"], 2, "UTF-8"),
        (["simulate", "--port", "99999"], 2, "--port"),
        (["show", "neuroscout/datasets", "--base-url", "API"], 2, "404"),
        (["fetch", "neuroscout/runs", "-o", "x", "--base-url", "API"], 2, "404"),
        (["fetch", "neuroscout/runs", "-o", "x", "--base-url", "HTML"], 3, "an HTML"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(
    archive, tmp_path, monkeypatch, capsys, arguments, status, says
):
    monkeypatch.chdir(tmp_path)
    urls = {
        "DOWN": nowhere(),
        "HTML": f"{archive.neuroscout}/nowhere",
        "API": archive.neuroscout.removesuffix("/api"),
    }
    assert run([urls.get(one, one) for one in arguments]) == status
    err = capsys.readouterr().err
    assert len(lines(err)) <= 2
    assert says in err
    assert "Traceback" not in err


def test_another_plan_is_refused_and_shown(archive, tmp_path, capsys):
    dest = str(tmp_path / "e")
    assert run(["fetch", *SPEECH, "-o", dest, "--quiet"]) == 0
    assert run(["fetch", *SPEECH[:2], "predictor_name=rms", "-o", dest]) == 2
    assert "predictor_name is ['speech'] and not ['rms']" in capsys.readouterr().err
    assert run(["verify", dest]) == 0


def test_a_traceback_only_on_demand(archive, capsys):
    assert run(["show", "neuroscout/datasetz", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "filters"),
    [
        (["run_id=1,2"], {"run_id": [1, 2]}),
        (["run_id=1", "run_id=2,3"], {"run_id": [1, 2, 3]}),
        (["run-id=1"], {"run_id": [1]}),
        (["dataset_name=a,b"], {"dataset_name": "a,b"}),
        (["subject=01"], {"subject": ["01"]}),
        (['predictor_name:=["a,b"]'], {"predictor_name": ["a,b"]}),
        (["run=3"], {"number": [3]}),
        (["dataset_name=a=b"], {"dataset_name": "a=b"}),
    ],
)
def test_words_are_typed_by_their_filter(words, filters):
    description = client_class("neuroscout")().predictor_events.description
    assert filters_of(words, description) == filters


def test_values_are_read_from_a_file(tmp_path):
    (tmp_path / "ids").write_text("1\n2\n\n3\n")
    description = client_class("neuroscout")().predictor_events.description
    assert description.check(filters_of([f"run_id=@{tmp_path}/ids"], description)) == {
        "run_id": [1, 2, 3]
    }
    with pytest.raises(ConfigurationError, match="No such file"):
        filters_of(["run_id=@nowhere"], description)


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "asyncfetch", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_first_interrupt_commits_and_the_second_stops_at_once(tmp_path):
    slow = "latency=uniform:0.05:0.1"
    with testing.serve_in_thread(scale=0.3, faults=slow) as archive:
        dest = tmp_path / "t"
        process = start(
            "fetch", "neuromorpho/traces", "-o", str(dest),
            "--base-url", archive.neuromorpho, "--concurrency", "2",
        )  # fmt: skip
        while len(archive.log) < 10:
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "finishing what is in flight" in err
        assert "items are left" in err
        assert run(["verify", str(dest)]) == 0
        assert run(["status", str(dest), "--json"]) == 0


def test_a_closed_pipe_ends_quietly(archive):
    process = start("show", *SPEECH, "--format", "csv", env=os.environ.copy())
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 0


def test_without_a_terminal_no_bar_is_drawn(archive, tmp_path):
    process = start("fetch", *SPEECH, "-o", str(tmp_path / "e"), env=os.environ.copy())
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    assert "\x1b" not in err
    first, last = lines(err)
    assert first == (
        "neuroscout/predictor-events: 2 requests, each one predictor in a batch of runs"
    )
    assert "2 ok" in last


def test_simulate_says_where_it_is_and_ends_on_a_signal(tmp_path):
    process = start("simulate", "--log", str(tmp_path / "log"))
    urls = dict(
        process.stdout.readline().strip().removeprefix("export ").split("=", 1)
        for _ in range(2)
    )
    environment = {**os.environ, **urls}
    shown = start("show", "neuroscout/tasks", "--format", "jsonl", env=environment)
    out, err = shown.communicate(timeout=60)
    assert shown.returncode == 0, err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    (entry,) = [json.loads(line) for line in lines((tmp_path / "log").read_text())]
    assert set(entry) == {"t", "method", "target", "status", "bytes", "user_agent"}
    assert len(lines(out)) > 1
    shutil.rmtree(tmp_path)

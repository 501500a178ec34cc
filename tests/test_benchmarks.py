"""The benchmarks run, tiny, so that none rots; what they measure is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("bench_events", {"cpu_ratio", "cpu_ns_per_row"}),
        ("bench_swc", {"requests_ratio", "cpu_ratio"}),
        ("bench_gate", {"goodput", "accepted"}),
    ],
)
def test_a_benchmark_runs_and_gives_its_figures(name, figures):
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", "--versions"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found.pop("versions")["python"]
    found.pop("parsing", None)
    assert len(found) >= 2
    for one in found.values():
        assert figures <= set(one)
        assert all(one[figure] > 0 for figure in figures)

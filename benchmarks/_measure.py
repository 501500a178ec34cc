"""One fresh process per measurement; ratios between medians of one run."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from benchmarks._taken import taking

PACKAGES = ("asyncfetch", "aiohttp", "anyio", "pyarrow", "msgspec", "numpy", "pandas")


def measured(target: str, repeats: int, **arguments: Any) -> dict[str, float]:
    """Medians of what *target* (``module:function``) took in fresh processes.

    The function is called with *arguments* and returns a dict of counts; time and
    processor time (all threads and children) are those of the call alone, without
    imports.
    """
    return medians([_one(target, arguments) for _ in range(repeats)])


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure of some runs."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _one(target: str, arguments: Mapping[str, Any]) -> dict[str, float]:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks._measure", target],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"{target} ended with {ended.returncode}")
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """Processes started meanwhile share one CPU, where the system can do that."""
    if sys.platform != "linux":
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def asked_for(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, and once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--versions", action="store_true")
    return parser


def tell(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print *results* as one JSON line, if *options* ask for it."""
    if options.versions:
        results["versions"] = {"python": platform.python_version()} | {
            name: version(name) for name in PACKAGES
        }
    if options.json or options.versions:
        print(json.dumps(results))


def main() -> None:
    """Call one function and print what it took, as one JSON line."""
    arguments = json.load(sys.stdin)
    module, _, name = sys.argv[1].partition(":")
    function: Callable[..., dict[str, float]]
    function = getattr(importlib.import_module(module), name)
    taken = taking()
    counts = function(**arguments)
    print(json.dumps({**taken(), **counts}))


if __name__ == "__main__":
    main()

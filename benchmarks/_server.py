"""The embedded archive in a process of its own, so that its work is not counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncfetch.services import SERVICES


@contextmanager
def open_archive(
    *,
    seed: int = 0,
    scale: float = 1.0,
    latency: float = 0.0,
    faults: str = "",
    log: Path | None = None,
) -> Iterator[dict[str, str]]:
    """Base URLs of a running archive, by service; requests go to *log*, a line each."""
    words = ["-m", "asyncfetch", "simulate", "--seed", str(seed)]
    words += ["--scale", str(scale), "--latency", str(latency)]
    words += ["--faults", faults] if faults else []
    words += ["--log", str(log)] if log else []
    with started(*words) as lines:
        urls: dict[str, str] = {}
        while len(urls) < len(SERVICES):
            name, _, url = next(lines).removeprefix("export ASYNCFETCH_").partition("=")
            urls[name.removesuffix("_URL").lower()] = url.strip().strip("\"'")
        yield urls


@contextmanager
def started(*words: str, **variables: str) -> Iterator[Iterator[str]]:
    """The lines that a Python prints which is given *words*; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    try:
        assert process.stdout is not None
        yield _lines(process.stdout)
    finally:
        process.terminate()
        process.wait(10)


def _lines(output: Iterator[str]) -> Iterator[str]:
    yield from output
    raise RuntimeError("the archive did not start")


def asked(log: Path) -> int:
    """How many requests a log has."""
    return log.read_text().count("\n")

"""The embedded archive in a process of its own, so that its work is not counted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def open_archive(
    *, seed: int = 0, scale: float = 1.0, latency: float = 0.0, faults: str = ""
) -> Iterator[dict[str, str]]:
    """Base URLs of a running archive, by service."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "asyncfetch",
            "simulate",
            *("--seed", str(seed), "--scale", str(scale), "--latency", str(latency)),
            *(("--faults", faults) if faults else ()),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        urls = {}
        while len(urls) < 2:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the archive did not start")
            if line.startswith("export ASYNCFETCH_"):
                name, _, url = line.removeprefix("export ASYNCFETCH_").partition("=")
                urls[name.removesuffix("_URL").lower()] = url.strip().strip("\"'")
        yield urls
    finally:
        process.terminate()
        process.wait(10)

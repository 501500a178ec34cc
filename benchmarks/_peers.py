"""Another library that does the same: its Python, and what it took there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def environment(python: str | None, *packages: str) -> Iterator[str]:
    """A Python with *packages*: *python*, or one that is made for it."""
    if python is not None:
        yield python
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        made = f"{folder}/bin/python"
        subprocess.run([made, "-m", "pip", "install", "-q", *packages], check=True)
        yield made


def taken_by(python: str, script: str, given: dict[str, Any]) -> dict[str, Any]:
    """What *script* of this directory prints last, as JSON, when it is *given* that.

    It runs in a home directory of its own, where libraries keep what they know.
    """
    with tempfile.TemporaryDirectory() as home:
        mine = {name: one for name, one in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(
            [python, str(Path(__file__).with_name(script))],
            input=json.dumps(given),
            capture_output=True,
            check=False,
            text=True,
            env={**mine, "HOME": home},
        )
    if ended.returncode:
        raise SystemExit(f"{script}: {ended.stderr.splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found

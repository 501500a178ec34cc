"""The pytest plugin: pytest loads it by itself once asyncfetch is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from asyncfetch.testing import Archive


@pytest.fixture
def asyncfetch_archive() -> Iterator[Archive]:
    """A fresh archive without faults, for sync and async tests."""
    # Every pytest run with asyncfetch installed loads this file: the server and Arrow
    # only come with the first test that wants them.
    from asyncfetch.testing import serve_in_thread  # noqa: PLC0415

    with serve_in_thread(scale=0.1) as archive:
        yield archive

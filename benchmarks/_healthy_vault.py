"""The archive's NeuroVault without the records that nobody can read; until SIGTERM.

nilearn's fetcher ends at the first page with such a record on it.
"""

from __future__ import annotations

import sys

import anyio

from asyncfetch import testing


async def main(scale: float, latency: float, log: str) -> None:
    """Serve, and print the base URL."""
    async with testing.serve(scale=scale, latency=latency, log=log) as archive:
        for row in archive.truth.collections():
            row.pop("owner_is_gone", None)
        for row in archive.truth.images():
            row.pop("sites", None)
        print(archive.neurovault, flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, float(sys.argv[1]), float(sys.argv[2]), sys.argv[3])

"""What neuromorpholib or navis does with the same archive; run by a Python with them.

Reads its arguments as JSON from standard input; prints one JSON line.
"""

import contextlib
import io
import json
import sys
import threading
import warnings
from typing import Any

warnings.simplefilter("ignore")

import requests  # type: ignore[import-untyped]  # noqa: E402
from _taken import taking  # type: ignore[import-not-found]  # noqa: E402

given = json.load(sys.stdin)
asked = 0
guard = threading.Lock()
send = requests.Session.request


def counted(self: Any, method: str, url: str, **kwargs: Any) -> Any:
    """Count a request, and lead it to the archive."""
    global asked  # noqa: PLW0603
    with guard:
        asked += 1
    _, _, path = url.partition("//neuromorpho.org")
    return send(self, method, given["url"] + path, **kwargs)


requests.Session.request = counted


def with_neuromorpholib() -> dict[str, Any]:
    """Neurons that match, one after the other."""
    import neuromorpholib  # type: ignore[import-not-found]  # noqa: PLC0415

    sys.setrecursionlimit(10_000)  # it calls itself for each page
    api = neuromorpholib.neuromorpho.NeuroMorpho()
    records = api.search({"species": given["species"]})
    found: dict[int, int] = {}
    failed = 0
    if given["what"] == "traces":
        for record in records:
            try:
                trace = api.download_swc(record["archive"], record["neuron_name"])
            except Exception:  # noqa: BLE001 - whatever it raises for a missing file
                failed += 1
            else:
                found[record["neuron_id"]] = len(trace.get_graph())
    return told(records, found, failed)


def with_navis() -> dict[str, Any]:
    """The same, in the four threads that it starts."""
    import navis  # type: ignore[import-not-found]  # noqa: PLC0415
    import navis.interfaces.neuromorpho as nm  # type: ignore[import-not-found]  # noqa: PLC0415

    navis.set_pbars(hide=True)
    frame = nm.find_neurons(species=given["species"])
    records = frame.to_dict("records")
    found: dict[int, int] = {}
    if given["what"] == "traces":
        for neuron in nm.get_neuron(frame):
            found[int(neuron.id)] = len(neuron.nodes)
    return told(records, found, len(records) - len(found))


def told(records: list[Any], found: dict[int, int], failed: int) -> dict[str, Any]:
    """What came."""
    ids = [record["neuron_id"] for record in records]
    return {
        "neurons": len(set(ids)),
        "twice": len(ids) - len(set(ids)),
        "traces": len(found),
        "failed": failed if given["what"] == "traces" else 0,
        "rows": sum(found.values()),
    }


work = {"neuromorpholib": with_neuromorpholib, "navis": with_navis}[given["who"]]
__import__(given["who"])  # imports are not counted
taken = taking()
with contextlib.redirect_stdout(io.StringIO()):
    counts = work()
print(
    json.dumps(
        {
            **taken(),
            "requests": asked,
            **counts,
        }
    )
)

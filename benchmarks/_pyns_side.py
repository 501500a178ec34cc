"""What pyNS does with the same archive; run by the Python that has pyNS.

Reads its arguments as JSON from standard input; prints one JSON line.
"""

import json
import resource
import sys
import time
import warnings
from typing import Any

warnings.simplefilter("ignore")

import pyns.api  # type: ignore[import-not-found]  # noqa: E402
import pyns.fetch_utils  # type: ignore[import-not-found]  # noqa: E402
import requests  # type: ignore[import-untyped]  # noqa: E402

given = json.load(sys.stdin)
pyns.api.API_BASE_URL = given["url"]
asked = 0
send = requests.Session.request


def counted(*args: Any, **kwargs: Any) -> Any:
    """Count a request; pyNS sends one after the other."""
    global asked  # noqa: PLW0603
    asked += 1
    return send(*args, **kwargs)


requests.Session.request = counted


def cpu() -> float:
    """Processor time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


api = pyns.Neuroscout()
before, started = cpu(), time.perf_counter()
scope = {"dataset_name": given["dataset"], "task_name": given["task"]}
if given["what"] == "design":
    frame = pyns.fetch_utils.fetch_predictors(given["names"], api=api, **scope)
else:
    frame = api.predictor_events.get(
        predictor_name=given["names"], output_type="df", **scope
    )
print(
    json.dumps(
        {
            "wall": time.perf_counter() - started,
            "cpu": cpu() - before,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "rows": len(frame),
            "requests": asked,
            "round_trips": asked,
        }
    )
)

"""What pyNS does with the same archive; run by the Python that has pyNS.

Reads its arguments as JSON from standard input; prints one JSON line.
"""

import json
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

import pyns.api  # type: ignore[import-not-found]  # noqa: E402
import pyns.fetch_utils  # type: ignore[import-not-found]  # noqa: E402
import requests  # type: ignore[import-untyped]  # noqa: E402
from _taken import taking  # type: ignore[import-not-found]  # noqa: E402

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


api = pyns.Neuroscout()
taken = taking()
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
            **taken(),
            "rows": len(frame),
            "requests": asked,
            "round_trips": asked,
        }
    )
)

"""What ONE does with the same archive; run by the Python that has ONE.

Reads its arguments as JSON from standard input; prints one JSON line.
"""

import json
import sys
import tempfile
from pathlib import Path

from _taken import taking  # type: ignore[import-not-found]
from one.webclient import (  # type: ignore[import-not-found]
    AlyxClient,
    http_download_file_list,
)

given = json.load(sys.stdin)


with tempfile.TemporaryDirectory() as folder:
    one = AlyxClient(
        base_url=given["url"],
        username=given["user"],
        password=given["password"],
        cache_dir=folder,
        silent=True,
        cache_rest=None,
    )
    taken = taking()
    records = []
    if given["what"] == "files":
        records = one.rest("datasets", "list", limit=given["files"])
    if given["what"] == "datasets":
        found = [one["url"] for one in one.rest("datasets", "list")]
    else:
        urls = []
        for n in range(given["files"]):
            copies = records[n]["file_records"]
            urls.append(next(copy["data_url"] for copy in copies if copy["data_url"]))
        folders = [Path(folder) / str(n) for n in range(len(urls))]
        for place in folders:
            place.mkdir()
        found = http_download_file_list(urls, target_dir=folders, silent=True)
    print(
        json.dumps(
            {
                **taken(),
                "rows": len(found),
                "distinct": len({str(one) for one in found}),
            }
        )
    )

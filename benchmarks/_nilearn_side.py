"""What nilearn does with the same archive; run by the Python that has nilearn.

Reads its arguments as JSON from standard input; prints one JSON line.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from urllib.parse import urljoin

from _taken import taking  # type: ignore[import-not-found]
from nilearn.datasets import neurovault  # type: ignore[import-not-found]

given = json.load(sys.stdin)
warnings.simplefilter("ignore")
base = given["url"].rstrip("/") + "/"
for name, path in (
    ("BASE", ""),
    ("COLLECTIONS", "collections/"),
    ("IMAGES", "images/"),
):
    setattr(neurovault, f"_NEUROVAULT_{name}_URL", urljoin(base, path))


with tempfile.TemporaryDirectory() as folder:
    taken = taking()
    neurovault.fetch_neurovault(
        max_images=None,
        collection_terms={},
        image_terms={},
        mode="overwrite",
        data_dir=folder,
        verbose=0,
    )
    found = taken()
    files = [path for path in Path(folder).rglob("*.nii.gz") if path.is_file()]
    print(
        json.dumps(
            {
                **found,
                "files": len(files),
            }
        )
    )

"""What nilearn does with the same archive; run by the Python that has nilearn.

Reads its arguments as JSON from standard input; prints one JSON line.
"""

import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from urllib.parse import urljoin

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


def cpu() -> float:
    """Processor time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


with tempfile.TemporaryDirectory() as folder:
    before, started = cpu(), time.perf_counter()
    neurovault.fetch_neurovault(
        max_images=None,
        collection_terms={},
        image_terms={},
        mode="overwrite",
        data_dir=folder,
        verbose=0,
    )
    took, used = time.perf_counter() - started, cpu() - before
    files = [path for path in Path(folder).rglob("*.nii.gz") if path.is_file()]
    print(
        json.dumps(
            {
                "wall": took,
                "cpu": used,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "files": len(files),
            }
        )
    )

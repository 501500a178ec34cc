"""What some work takes of its machine. For any Python: it needs nothing else.

The scripts that other Pythons run import it from beside themselves.
"""

import resource
import time
from collections.abc import Callable


def taking() -> Callable[[], dict[str, float]]:
    """Begin to measure; what it returns says what was taken since.

    That is ``wall`` and ``cpu`` in seconds, the latter of this process and of the
    children that it waited for, and ``peak_mb``, the most memory that it ever had.
    """
    cpu, start = _cpu(), time.perf_counter()
    return lambda: {
        "wall": time.perf_counter() - start,
        "cpu": _cpu() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _cpu() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total

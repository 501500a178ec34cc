"""Events to one sample a scan, as pybids makes them of a run.

Events are drawn as boxes on a grid that every onset and duration falls on; a low-pass
filter (Butterworth, fifth order, forwards and backwards) takes away what the scans
cannot show; the rest is interpolated. The filter has a form whose rounding errors grow
with the ratio of grid to scan: where onsets have milliseconds they reach the second
digit. To give the numbers that users of pybids know, it is the same call of scipy here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_ORDER = 5


def resampled(
    onset: Numbers,
    duration: Numbers,
    amplitude: Numbers,
    *,
    seconds: float,
    rate: float,
) -> Numbers:
    """Samples of one run's events, *rate* a second, from its start to its end.

    Parameters
    ----------
    onset, duration
        In seconds; by onset. Where events overlap the later one counts.
    amplitude
        Finite numbers.
    seconds
        The length of the run.
    """
    grid = rate
    times = np.round(np.concatenate([onset, duration]) * 1000).astype(np.int64)
    step = int(np.gcd.reduce(times)) if len(times) else 0
    if step:
        grid = max(1000.0 / step, rate)
    count = math.ceil(round(grid * seconds, 3))
    boxes = np.zeros(count)
    begins = np.round(onset * grid).astype(np.int64)
    ends = begins + np.round(duration * grid).astype(np.int64)
    for begin, end, value in zip(
        begins.tolist(), ends.tolist(), amplitude.tolist(), strict=True
    ):
        if end > begin >= 0:
            boxes[begin:end] = value
    if grid == rate:
        return boxes
    wanted = math.ceil(count * rate / grid)
    if wanted != math.ceil(seconds * rate):
        # One too many by the rounding of floats, for which pybids has no scan.
        wanted = math.ceil(round(count * rate / grid, 9))
    smooth = _smooth(boxes, (rate / 2.0) / (grid / 2.0))
    return np.interp(np.linspace(0, count - 1, num=wanted), np.arange(count), smooth)


def _smooth(values: Numbers, cutoff: float) -> Numbers:
    """Without what varies faster than *cutoff*, a share of half the sampling rate."""
    from scipy import signal  # type: ignore[import-untyped]  # noqa: PLC0415 - slow

    smooth: Numbers = signal.filtfilt(*signal.butter(_ORDER, cutoff), values)
    return smooth

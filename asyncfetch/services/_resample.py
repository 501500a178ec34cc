"""Events to one sample a scan, as pybids makes them of a run: pure, numpy alone.

Events are drawn as boxes on a grid that every onset and duration falls on; a low-pass
filter (Butterworth, fifth order, forwards and backwards) takes away what the scans
cannot show; the rest is interpolated. pybids leaves the filter to scipy, in a form
whose rounding errors grow with the ratio of grid to scan: where onsets have
milliseconds they reach the second digit. To give the numbers that users of pybids know,
the same sums are done in the same order here. scipy does them faster where it is
installed.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

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
    try:
        signal: Any = importlib.import_module("scipy.signal")
    except ImportError:
        b, a = _butterworth(cutoff)
        return _both_ways(b, a, values)
    b, a = signal.butter(_ORDER, cutoff, btype="low", output="ba", analog=False)
    smooth: Numbers = signal.filtfilt(b, a, values)
    return smooth


def _butterworth(cutoff: float) -> tuple[Numbers, Numbers]:
    """Coefficients of the filter: numerator and denominator."""
    place = np.arange(-_ORDER + 1, _ORDER, 2, dtype=np.float64)
    poles = -np.exp(1j * np.pi * place / (2 * _ORDER))
    warped = float(4.0 * np.tan(np.pi * cutoff / 2.0))
    poles = warped * poles
    gain = warped**_ORDER * np.real(1.0 / np.prod(4.0 - poles))
    poles = (4.0 + poles) / (4.0 - poles)
    zeros = -np.ones(_ORDER)
    return gain * np.poly(zeros), np.real(np.poly(poles))


def _both_ways(b: Numbers, a: Numbers, values: Numbers) -> Numbers:
    """The filter forwards and backwards, over values continued at both ends."""
    edge = 3 * len(a)
    if len(values) <= edge:
        raise ValueError(f"expected more than {edge} samples, got {len(values)}")
    longer = np.concatenate(
        [
            2 * values[0] - values[edge:0:-1],
            values,
            2 * values[-1] - values[-2 : -edge - 2 : -1],
        ]
    )
    companion = np.zeros((_ORDER, _ORDER))
    companion[0] = -a[1:] / a[0]
    companion[np.arange(1, _ORDER), np.arange(_ORDER - 1)] = 1
    settled = np.linalg.solve(np.eye(_ORDER) - companion.T, b[1:] - a[1:] * b[0])
    forth = _one_way(b, a, longer, settled * longer[0])
    back = _one_way(b, a, forth[::-1], settled * forth[-1])[::-1]
    return back[edge:-edge]


def _one_way(b: Numbers, a: Numbers, values: Numbers, state: Numbers) -> Numbers:
    b0, b1, b2, b3, b4, b5 = b.tolist()
    _, a1, a2, a3, a4, a5 = a.tolist()
    z0, z1, z2, z3, z4 = state.tolist()
    out = []
    for x in values.tolist():
        y = z0 + b0 * x
        z0 = z1 + x * b1 - y * a1
        z1 = z2 + x * b2 - y * a2
        z2 = z3 + x * b3 - y * a3
        z3 = z4 + x * b4 - y * a4
        z4 = x * b5 - y * a5
        out.append(y)
    return np.array(out)

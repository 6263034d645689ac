"""Clipping thresholds for 8 bits: criteria over a tensor's histogram.

Those for TensorRT use magnitudes, since its int8 is symmetric. All ignore the bin at 0, since 0 is represented exactly,
and after a ReLU its bin holds half of all values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from krl_runtime.int8 import LARGEST_INT8

from .histogram import Histogram

__all__ = ["entropy", "mse", "mse_uint8"]

_LEVELS = LARGEST_INT8 + 1  # magnitudes of an int8, from 0 on
_STEP = 32
"""Candidate thresholds are this many bins apart, 1/128 of the histogram's limit."""


def entropy(histogram: Histogram) -> tuple[float, float]:
    """Return the range that keeps most information (TensorRT's entropy calibration; Migacz, GTC 2017).

    Each threshold gives two histograms of the bins below it. ``P`` has the values above the threshold in its last
    bin. ``Q`` does not have them; its bins are merged into 128 levels and spread again over those that were not empty.
    The result is the threshold with the smallest Kullback-Leibler divergence, the sum of ``P log(P / Q)``.

    Returns:
        The ends of the range, within the smallest and largest value.
    """
    counts = histogram.magnitudes()
    counts[0] = 0
    used = _used(counts)
    if used <= _LEVELS:
        return _everything(histogram)
    candidates = [*range(_LEVELS, used, _STEP), used]
    best = min(candidates, key=lambda bins: _divergence(counts[:used], bins))
    return histogram.clipped(best * histogram.width)


def _divergence(counts: npt.NDArray[np.float64], bins: int) -> float:
    """Return the divergence in nats between ``P`` and ``Q`` for a threshold after ``bins`` bins."""
    kept = counts[:bins]
    p = kept.copy()
    p[-1] += counts[bins:].sum()
    starts = np.arange(_LEVELS) * bins // _LEVELS
    filled = np.add.reduceat((kept > 0).astype(np.float64), starts)
    level = np.add.reduceat(kept, starts) / np.maximum(filled, 1)
    q = np.repeat(level, np.diff([*starts, bins])) * (kept > 0)
    if not q.any():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    some = p > 0
    # The last bin may be empty but for what was cut off; a share of 0 there would make the divergence infinite.
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-9))).sum())


def mse(histogram: Histogram) -> tuple[float, float]:
    """Return the range with the smallest mean squared error in symmetric int8.

    A threshold ``T`` costs ``(T / 127)² / 12`` for each value below it (the variance of rounding) and ``(x − T)²``
    for each value above it.

    Returns:
        The ends of the range, within the smallest and largest value.
    """
    counts = histogram.magnitudes()
    counts[0] = 0
    if not counts.any():
        return _everything(histogram)
    edges, clipping, inside = _costs(counts, histogram.width)
    rounding = (edges / (_LEVELS - 1)) ** 2 / 12 * inside
    return histogram.clipped(float(edges[np.argmin(clipping + rounding)]))


def mse_uint8(histogram: Histogram) -> tuple[float, float]:
    """Return the range with the smallest mean squared error in uint8, whose 255 steps lie between its two ends.

    The costs are those of ``mse``. Each end is chosen for the other one in turn, until neither moves.

    Returns:
        The ends of the range, within the smallest and largest value.
    """
    half = len(histogram.counts) // 2
    above, below = histogram.counts[half:].astype(np.float64), histogram.counts[:half][::-1].astype(np.float64)
    above[0] = below[0] = 0
    if not above.any() and not below.any():
        return _everything(histogram)
    sides = [_costs(counts, histogram.width) for counts in (above, below)]
    chosen = [half, half]
    moved = 0
    while moved < 2:
        for side in (0, 1):
            (edges, clipping, inside), (others, _, held) = sides[side], sides[1 - side]
            step = (edges + others[chosen[1 - side]]) / 255
            best = int(np.argmin(clipping + step**2 / 12 * (inside + held[chosen[1 - side]])))
            moved = moved + 1 if best == chosen[side] else 0
            chosen[side] = best
    high, low = (float(edges[index]) for (edges, *_), index in zip(sides, chosen, strict=True))
    return max(histogram.low, -low), min(histogram.high, high)


def _costs(counts: npt.NDArray[np.float64], width: float) -> tuple[npt.NDArray[np.float64], ...]:
    """Return the edges of bins from 0 on; for each, the squared error of the values above it and how many are below."""
    edges = np.arange(len(counts) + 1, dtype=np.float64) * np.float64(width)
    centers = edges[1:] - width / 2
    # Sums over the values above each edge, of x⁰, x¹ and x².
    above = [np.append((counts * centers**power)[::-1].cumsum()[::-1], 0.0) for power in range(3)]
    return edges, above[2] - 2 * edges * above[1] + edges**2 * above[0], counts.sum() - above[0]


def _used(counts: npt.NDArray[np.float64]) -> int:
    """Return the number of bins up to the last one that is not empty."""
    filled = np.flatnonzero(counts)
    return int(filled[-1]) + 1 if len(filled) else 0


def _everything(histogram: Histogram) -> tuple[float, float]:
    return (histogram.low, histogram.high) if histogram.limit else (0.0, 0.0)

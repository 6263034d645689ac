"""A histogram that takes any number of values in constant memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import ModelError

__all__ = ["Histogram"]

_BINS = 8192  # of both signs: at least 16 for each of the 128 steps of INT8, also just after the limit has doubled
_PIECE = 32768  # values, 128 KiB as float32: a piece and its bins stay in a core's second-level cache


class Histogram:
    """Counts values in equal bins between ``-limit`` and ``limit``.

    A value outside doubles the limit, and pairs of bins become one. So no value is lost, and no bin is wider than
    1/2048 of the largest magnitude. 0 is always the edge between two bins. The limit is a power of two, so that the
    counts depend neither on the order of the values nor on their batches.

    Attributes:
        limit: End of the last bin, a power of two; 0 until the first value that is not 0.
        counts: Number of values in each bin.
        low: Smallest value, exactly.
        high: Largest value, exactly.
    """

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = np.zeros(_BINS, np.int64)
        self.low = np.inf
        self.high = -np.inf

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count the values of an array of any shape.

        Raises:
            ModelError: A value is not a finite number.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high):
            raise ModelError("values are not finite numbers")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        scale, middle = np.float32(_BINS / 2 / self.limit if self.limit else 0.0), np.float32(_BINS / 2)
        flat = values.ravel()
        # In pieces that stay in the processor's cache: whole activations would go to memory and back five times.
        positions, bins = np.empty(_PIECE, np.float32), np.empty(_PIECE, np.int32)
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            position, bin_ = positions[: piece.size], bins[: piece.size]
            np.multiply(piece, scale, out=position)
            np.add(position, middle, out=position)
            np.copyto(bin_, position, casting="unsafe")
            counts = np.bincount(bin_, minlength=_BINS + 1)  # the limit itself is at the start of one bin more
            self.counts += counts[:_BINS]
            self.counts[-1] += counts[_BINS]

    def _widen(self, magnitude: float) -> None:
        if self.limit == 0.0 and magnitude > 0.0:
            fraction, exponent = math.frexp(magnitude)
            self.limit = math.ldexp(1.0, exponent - (fraction == 0.5))
        while self.limit < magnitude:
            inner = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(_BINS, np.int64)
            self.counts[_BINS // 4 : _BINS // 4 + _BINS // 2] = inner
            self.limit *= 2

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self.limit / _BINS

    def magnitudes(self) -> npt.NDArray[np.float64]:
        """Return the counts of absolute values in bins of ``width`` from 0 on, ``[4096]``."""
        half = _BINS // 2
        return (self.counts[half:] + self.counts[:half][::-1]).astype(np.float64)

    def clipped(self, largest: float) -> tuple[float, float]:
        """Return the range of the values, cut off at ``-largest`` and ``largest``."""
        return max(self.low, -largest), min(self.high, largest)

    def percentile(self, share: float) -> tuple[float, float]:
        """Return the interval that leaves out an equal part of the values at both ends.

        Args:
            share: Percentage of the values that the interval holds, above 50, up to 100.

        Returns:
            Its ends: edges of bins, within the smallest and largest value.
        """
        if self.limit == 0.0:
            return 0.0, 0.0
        outside = (100 - share) / 200 * self.counts.sum()
        below = np.cumsum(self.counts)
        first = int(np.searchsorted(below, outside, side="right"))
        last = int(np.searchsorted(below, below[-1] - outside, side="left"))
        low, high = first * self.width - self.limit, (last + 1) * self.width - self.limit
        return max(low, self.low), min(high, self.high)

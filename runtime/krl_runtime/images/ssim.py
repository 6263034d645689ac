"""Structural similarity of two planes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import UsageError

__all__ = ["ssim"]

_WINDOW, _SIGMA = 11, 1.5  # pixels a side of the Gaussian window, and its width (Wang et al. 2004)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # K1 = 0.01, K2 = 0.03 of a peak of 255, as there
_POSITIONS = np.arange(_WINDOW) - _WINDOW // 2
_WEIGHTS = np.exp(-(_POSITIONS**2) / (2 * _SIGMA**2))
_GAUSSIAN = _WEIGHTS / _WEIGHTS.sum()


def ssim(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Return the structural similarity of two planes (https://doi.org/10.1109/TIP.2003.819861).

    Gaussian window of 11 pixels with sigma 1.5, averaged where the window fits, as the authors' code does.

    Args:
        a: uint8 ``[H, W]``, at least 11 pixels a side.
        b: The same shape.

    Raises:
        UsageError: A side is shorter than the window, or the shapes differ.

    Example:
        >>> plane = np.arange(256, dtype=np.uint8).reshape(16, 16)
        >>> round(ssim(plane, plane), 6), ssim(plane, 255 - plane) < 0
        (1.0, True)
    """
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) < _WINDOW:
        raise UsageError(
            f"the SSIM of {list(a.shape)} and {list(b.shape)} pixels is undefined; both need one shape of at least "
            f"{_WINDOW} pixels a side"
        )
    first, second = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _smooth(first), _smooth(second)
    variance_a = _smooth(first * first) - mean_a * mean_a
    variance_b = _smooth(second * second) - mean_b * mean_b
    covariance = _smooth(first * second) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return float((luminance * structure).mean())


def _smooth(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weighted means of all windows, ``[H - 10, W - 10]``: first down the columns, then along the rows."""
    height, width = (length - _WINDOW + 1 for length in plane.shape)
    rows = sum(weight * plane[start : start + height] for start, weight in enumerate(_GAUSSIAN))
    columns = sum(weight * rows[:, start : start + width] for start, weight in enumerate(_GAUSSIAN))
    return np.asarray(columns)

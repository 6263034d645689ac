"""Average precision of labels that are independent of each other, and its standard error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["average_precision", "mean_average_precision", "resampled", "with_floor"]

Array = npt.NDArray[Any]

# Each makes the standard error 7 % (1 / sqrt(2 * 100)) more or less than it is; a hundred take a second for a million
# scores.
_RESAMPLES = 100
_SEED = 0  # of the resampling: the same figures give the same error


def average_precision(scores: Array, truth: Array, weights: Array | None = None) -> npt.NDArray[np.float64]:
    """Return the average precision of one label: the mean precision at its images, from the highest score on.

    Images with equal scores are taken together, so that their order does not matter.

    Args:
        scores: ``[N]``; any rising function of them gives the same.
        truth: Whether each image has the label, ``[N]``.
        weights: How much each image counts, ``[B, N]``, for ``B`` results; ``None`` for one, of all images alike.

    Returns:
        ``[B]``, 0 to 1; NaN without an image that has the label.

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])).round(3)
        array([0.833])
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    counted = np.ones((1, len(scores))) if weights is None else weights[:, order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)  # of runs of equal scores
    every = counted.cumsum(axis=1)[:, ends]
    found = (counted * truth[order]).cumsum(axis=1)[:, ends]
    steps = np.diff(found, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore"):  # 0 / 0 without an image that has the label
        precision = np.divide(found, every, out=np.zeros_like(found), where=every > 0)
        return np.asarray((steps * precision).sum(axis=1) / found[:, -1])


def mean_average_precision(scores: Array, truth: Array, weights: Array | None = None) -> npt.NDArray[np.float64]:
    """Return the mean of the average precisions of all labels that some image has.

    Args:
        scores: ``[N, labels]``.
        truth: ``[N, labels]``, 1 where an image has a label.
        weights: As of ``average_precision``.

    Returns:
        ``[B]``, 0 to 1; NaN where no image has a label.
    """
    known = np.flatnonzero((truth > 0).any(axis=0))
    total = np.zeros(1 if weights is None else len(weights))
    for label in known:
        total = total + average_precision(scores[:, label], truth[:, label] > 0, weights)
    return total / len(known) if len(known) else np.full_like(total, np.nan)


def resampled(count: int) -> npt.NDArray[np.float64]:
    """Return weights ``[B, count]`` of images for the Bayesian bootstrap: positive, so that no label is left out.

    The standard deviation of a metric over them is its standard error (Rubin, 1981); that of the difference of two
    metrics with the same weights is the paired one.
    """
    return np.random.default_rng(_SEED).standard_exponential((_RESAMPLES, count))


def with_floor(error: float, count: int) -> float:
    """Return a standard error that is at least what one image may change: a perfect score would have none at all.

    Example:
        >>> with_floor(0.0, 98), with_floor(0.05, 98)
        (0.01, 0.05)
    """
    return max(error, 1 / (count + 2)) if math.isfinite(error) else error

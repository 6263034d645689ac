"""Distribution shift: whether images are unlike those that a classifier was exported with.

A classifier predicts something for every image, so agreement between its variants on X-rays says nothing of faces. The
golden inputs are images that the model is for. Two measures compare other images with them:

* The energy of the logits, by which a network shows how familiar an image is (Liu et al., 2020, "Energy-based
  Out-of-distribution Detection").
* Plain statistics of the pixels: brightness and contrast of each channel, gradients, saturation. Energy alone overlooks
  images that are so unlike that the network is sure of them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_GOLDEN", "SAMPLE", "distribution_shift"]

SAMPLE: Final = 128
"""Images that are looked at: their mean is then less uncertain than what the few golden inputs say."""

LEAST_GOLDEN: Final = 8
"""Golden inputs to compare with: with fewer, chance alone passes the limits."""

_LEAST_SPREAD: Final = 1e-5  # of energies, as a share of them: a network whose logits hardly vary shows rounding alone
_MOST_ENERGY: Final = 0.8  # see below
_MOST_STATISTICS: Final = 0.95
"""Limits of the ROC AUC, the chance that an image lies beyond a golden input. Measured with 16 golden inputs on a
resnet20 of CIFAR-10 and a mobilenet_v3_small of flowers: the own data and its single classes have an energy of 0.33 to
0.61 and statistics of 0.58 to 0.78. Each other's data, ImageNet photographs, handwritten digits and inverted images are
above one of the limits. Own images in gray or half as bright are above the second one."""


def distribution_shift(
    golden: npt.NDArray[Any], golden_logits: npt.NDArray[Any], images: npt.NDArray[Any], logits: npt.NDArray[Any]
) -> str:
    """Return in which way images are unlike the golden ones; empty if they are alike.

    Args:
        golden: Golden inputs, pixels ``[N, C, H, W]``, at least ``LEAST_GOLDEN``.
        golden_logits: Logits of FP32 for them, ``[N, classes]``.
        images: The images, pixels ``[M, C, H, W]``.
        logits: Logits of FP32 for them, ``[M, classes]``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> dark, bright = rng.integers(0, 90, (16, 3, 8, 8)), rng.integers(160, 255, (50, 3, 8, 8))
        >>> distribution_shift(dark, np.eye(16), bright, np.eye(16)[rng.integers(0, 16, 50)])
        'their pixels differ (ROC AUC of statistics 1.00, accepted: 0.95)'
    """
    known = _log_sum_exp(golden_logits)
    energy = _auc(known, _log_sum_exp(logits))
    says_something = known.std() > _LEAST_SPREAD * max(1.0, float(np.abs(known).mean()))
    if says_something and energy > _MOST_ENERGY:
        return f"the network does not know them (ROC AUC of the energy {energy:.2f}, accepted: {_MOST_ENERGY:g})"
    pairs = list(zip(_statistics(images).T, _statistics(golden).T, strict=True))
    most = max(max(_auc(ours, theirs), _auc(theirs, ours)) for ours, theirs in pairs)
    if most > _MOST_STATISTICS:
        return f"their pixels differ (ROC AUC of statistics {most:.2f}, accepted: {_MOST_STATISTICS:g})"
    return ""


def _log_sum_exp(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the negative energy ``[N]`` of logits ``[N, classes]``."""
    values = logits.reshape(len(logits), -1).astype(np.float64)
    largest = values.max(axis=1)
    return np.asarray(largest + np.log(np.exp(values - largest[:, None]).sum(axis=1)))


def _statistics(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return mean and deviation of each channel, both gradients, and saturation, of each image ``[N, 2 C + 3]``."""
    values = pixels.astype(np.float32)
    down, across = (np.abs(np.diff(values, axis=axis)).mean(axis=(1, 2, 3)) for axis in (2, 3))
    saturation = (values.max(axis=1) - values.min(axis=1)).mean(axis=(1, 2))
    each = [*values.mean(axis=(2, 3)).T, *values.std(axis=(2, 3)).T, down, across, saturation]
    return np.stack(each, axis=1).astype(np.float64)


def _auc(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Return the chance that a value of the first set is larger than one of the second; equal ones count half."""
    return float((first[:, None] > second[None]).mean() + (first[:, None] == second[None]).mean() / 2)

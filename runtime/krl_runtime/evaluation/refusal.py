"""The score below which an image is none of what is known, and how well it separates known images from others."""

from __future__ import annotations

import logging
import math

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError

__all__ = ["refusing", "separation"]

_log = logging.getLogger("krl")


def refusing(known: npt.NDArray[np.float64], share: float, where: str, more: str) -> tuple[float, float]:
    """Return the score that refuses a share of known images.

    Args:
        known: Scores of known images, ``[N]``.
        share: Share to refuse, above 0 and below 1.
        where: What the images are, for the message.
        more: How to give more of them, for the message.

    Returns:
        The least score that an image needs, and the share that is really refused. It is less where many scores are
        equal, which is logged.

    Raises:
        DataError: The share is less than one image.

    Example:
        >>> refusing(np.array([0.9, 0.5, 0.8, 0.7]), 0.25, "images", "with --data FOLDER")
        (0.6, 0.25)
    """
    count = math.floor(share * len(known) + 1e-9)  # 0.29 of 100 images are 29, and not 28.999…
    if count < 1:
        raise DataError(
            f"--none-of-these {share:g} of {len(known)} {where} is less than one image; give at least "
            f"{math.ceil(1 / share)} {more}, or a larger share"
        )
    ordered = np.sort(known)
    # Between two images, so that the rounding of another device refuses the same ones.
    least = float((ordered[count - 1] + ordered[min(count, len(ordered) - 1)]) / 2)
    refused = float((known < least).mean())
    if round(refused * len(known)) < count:
        _log.warning("only %.2f%% instead of %.2f%% are refused: many scores are equal", 100 * refused, 100 * share)
    return least, refused


def separation(known: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Return the AUROC: the chance that a known image has a larger score than another one, ties counting half.

    Example:
        >>> separation(np.array([0.9, 0.8, 0.7]), np.array([0.7, 0.1]))
        0.9166666666666666
    """
    ordered = np.sort(known)
    above = len(known) - np.searchsorted(ordered, others, side="right")
    equal = len(known) - np.searchsorted(ordered, others, side="left") - above
    return float((above + 0.5 * equal).mean() / len(known))

"""Whether pictures are fit to calibrate on: real, varied, and enough of them."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError

__all__ = ["ENOUGH", "check_pictures"]

_log = logging.getLogger("krl")

ENOUGH = 32
"""Fewer pictures than this leave ranges that a few more pictures would widen."""

_LEAST_CORRELATION = 0.1
_SAMPLE = 256


def check_pictures(pixels: npt.NDArray[np.uint8]) -> None:
    """Refuse pictures whose ranges would say nothing of real ones; warn where there are few.

    Neighbouring pixels of any photograph, drawing or scan are alike (their correlation is 0.5 to 0.99); those of
    noise are not.

    Args:
        pixels: Decoded pictures ``[N, C, H, W]``.

    Raises:
        DataError: Most pictures are of one colour, all are the same, or most look like noise.
    """
    count = len(pixels)
    sample = pixels[:: max(1, count // _SAMPLE)].astype(np.float32)
    flat = np.ptp(sample.reshape(len(sample), -1), axis=1) == 0
    if flat.mean() > 0.5:
        raise DataError(f"{flat.mean():.0%} of the pictures are of one colour; calibrate on real pictures")
    if count > 1 and not np.any(pixels != pixels[:1]):
        raise DataError(f"all {count} pictures are the same; calibrate on pictures that differ")
    noisy = np.array([_looks_random(picture) for picture in sample[~flat]])
    if noisy.mean() > 0.5:
        raise DataError(
            f"{noisy.mean():.0%} of the pictures look like random noise (their neighbouring pixels are unrelated); "
            "ranges from noise are wrong for real pictures; calibrate on real ones"
        )
    if count < ENOUGH:
        _log.warning("only %d pictures to calibrate on: %d or more, of all classes, are safer", count, ENOUGH)


def _looks_random(picture: npt.NDArray[np.float32]) -> bool:
    """Return whether neighbours, across and down, are all but uncorrelated."""
    centred = picture - picture.mean(axis=(1, 2), keepdims=True)
    power = float(np.square(centred).mean())
    if min(picture.shape[1:]) < 2 or power == 0:
        return False
    across = float((centred[:, :, 1:] * centred[:, :, :-1]).mean())
    down = float((centred[:, 1:] * centred[:, :-1]).mean())
    return max(across, down) / power < _LEAST_CORRELATION

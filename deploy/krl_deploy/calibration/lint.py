"""Checks of calibration images: real, varied, enough, of all classes; and checks of the network on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError

__all__ = ["ENOUGH", "check_batches", "check_channels", "check_classes", "check_images"]

_log = logging.getLogger("krl")

ENOUGH = 32
"""Fewer images than this leave ranges that a few more images would widen."""

_LEAST_CORRELATION = 0.1  # of neighboring pixels: noise has about 0, real images 0.5 and more (check_images)
_SAMPLE = 256  # images that are looked at, so that the time is bounded
_BATCH_TOLERANCE = 0.01  # of a range: far above the rounding between batch sizes, far below what batch statistics do
_SHOWN = 5  # names in a message; more would hide the advice


def check_images(pixels: npt.NDArray[np.uint8]) -> None:
    """Refuse images whose ranges would not fit real ones; warn of few images.

    Neighboring pixels of any photograph, drawing or scan are alike (their correlation is 0.5 to 0.99); those of
    noise are not.

    Args:
        pixels: Decoded images ``[N, C, H, W]``.

    Raises:
        DataError: Most images are of one color, all are the same, or most look like noise.
    """
    count = len(pixels)
    sample = pixels[:: max(1, count // _SAMPLE)].astype(np.float32)
    flat = np.ptp(sample.reshape(len(sample), -1), axis=1) == 0
    if flat.mean() > 0.5:
        raise DataError(f"{flat.mean():.0%} of the images are of one color; calibrate on real images")
    if count > 1 and not np.any(pixels != pixels[:1]):
        raise DataError(f"all {count} images are the same; calibrate on images that differ")
    noisy = np.array([_looks_random(image) for image in sample[~flat]])
    if noisy.mean() > 0.5:
        raise DataError(
            f"{noisy.mean():.0%} of the images look like random noise (their neighboring pixels are unrelated); "
            "ranges from noise are wrong for real images; calibrate on real ones"
        )
    if count < ENOUGH:
        _log.warning("only %d images to calibrate on: %d or more, of all classes, are safer", count, ENOUGH)


def _looks_random(image: npt.NDArray[np.float32]) -> bool:
    """Return whether neighbors, across and down, are all but uncorrelated."""
    centered = image - image.mean(axis=(1, 2), keepdims=True)
    power = float(np.square(centered).mean())
    if min(image.shape[1:]) < 2 or power == 0:
        return False
    across = float((centered[:, :, 1:] * centered[:, :, :-1]).mean())
    down = float((centered[:, 1:] * centered[:, :-1]).mean())
    return max(across, down) / power < _LEAST_CORRELATION


def check_classes(labels: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Warn of classes without an image.

    Args:
        labels: Index of the class of each image ``[N]``, or of several labels 0 and 1 ``[N, labels]``; -1 if it is not
            known.
        names: The classes.
    """
    if (labels < 0).any():
        return  # without classes there is nothing to say of them
    shown = set(np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else labels.tolist())
    missing = [name for index, name in enumerate(names) if index not in shown]
    if missing:
        _log.warning(
            "%d of the %d classes have no calibration image: %s; their values may exceed the ranges; give images of "
            "all classes, or a higher --limit",
            len(missing),
            len(names),
            _some(missing),
        )


def check_channels(largest: Mapping[str, npt.NDArray[np.float32]], count: int) -> None:
    """Warn of channels without signal on all images.

    Args:
        largest: For each activation the largest magnitude of each channel, ``[C]``.
        count: Number of images.
    """
    dead = {name: int((values == 0).sum()) for name, values in largest.items() if (values == 0).any()}
    if dead:
        listed = [f"{name} ({number} of {len(largest[name])})" for name, number in dead.items()]
        _log.warning(
            "%d channels of %d activations are 0 on all %d images of a sample: %s; either the images do not show "
            "what the net was trained on, or it can do without these channels",
            sum(dead.values()),
            len(dead),
            count,
            _some(listed),
        )


def check_batches(alone: Mapping[str, tuple[float, float]], together: Mapping[str, tuple[float, float]]) -> None:
    """Warn of tensors whose range depends on the size of the batch.

    Args:
        alone: Ranges over images that were run one by one.
        together: Ranges over the same images in one batch.
    """
    differing = []
    for name, ends in alone.items():
        largest = max(abs(value) for value in (*ends, *together[name]))
        if max(abs(a - b) for a, b in zip(ends, together[name], strict=True)) > _BATCH_TOLERANCE * largest:
            differing.append(name)
    if differing:
        _log.warning(
            "the ranges of %d tensors change with the batch size: %s; the net mixes the images of a batch (batch "
            "statistics that training left on?), so that no scale fits; export it in evaluation mode",
            len(differing),
            _some(differing),
        )


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")

"""Whether a teacher is good enough to learn from: a linear classifier of the pixels is the yardstick."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F

from krl_train.data import PixelSet
from krl_train.data.splits import Training

__all__ = ["linear_top1", "warn_if_weak"]

_log = logging.getLogger("krl")

_SIDE = 16  # pixels: of MNIST, CIFAR-10 and photographs of flowers the linear classifier sees enough in them
_MOST = 5000  # images that the linear classifier is fitted to: a second on one core
# A network that is worth learning from makes clearly fewer mistakes than the linear classifier, which is wrong on 64 %
# of CIFAR-10 and on 22 % of MNIST after 1,000 images: a judgment.
_SHARE = 0.9


def linear_top1(train: PixelSet, val: PixelSet, classes: int) -> float:
    """Return the top-1 on held-out images of a linear classifier of the pixels, a yardstick for networks.

    It is a ridge regression to the classes from images of 16 × 16 pixels at most, fitted to 5,000 at most.

    Args:
        train: Images to fit it to.
        val: Held-out images.
        classes: Number of classes.

    Returns:
        The share of right predictions, 0 to 1.
    """
    from sklearn.linear_model import Ridge

    features, labels = _features(train)
    targets = 2.0 * np.eye(classes, dtype=np.float32)[labels] - 1.0
    held_out, truth = _features(val)
    # Three times the features' variance: of 0.1 to 30 the best, or within a point of it, for 100 to 4,000 images of
    # digits, MNIST, CIFAR-10 and flowers.
    ridge = Ridge(alpha=3.0 * float(features.var(axis=0).sum()))
    predictions = ridge.fit(features, targets).predict(held_out).reshape(len(held_out), classes).argmax(1)
    return float((predictions == truth).mean())


def _features(images: PixelSet) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    chosen = np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(np.int64)
    pixels, margin = images.pixels(chosen).float() / 255, images.margin
    if margin:
        pixels = pixels[:, :, margin:-margin, margin:-margin]
    height, width = (min(_SIDE, side) for side in pixels.shape[2:])
    small = F.adaptive_avg_pool2d(pixels, (height, width))
    return small.flatten(1).numpy(), images.labels[chosen].numpy()


def warn_if_weak(names: Sequence[str], measured: Sequence[Mapping[str, Any]], training: Training) -> None:
    """Warn of teachers that know little more than a linear classifier of the pixels.

    Args:
        names: The teachers, as the user named them.
        measured: Metrics of each on the held-out images.
        training: The student's data.
    """
    linear = linear_top1(training.train, training.val, len(training.source.labels))
    for name, found in zip(names, measured, strict=True):
        if 1 - found["top1"] > _SHARE * (1 - linear):
            _log.warning(
                "teacher %s is right on %.1f %% of the %d validation images, and a linear classifier of the pixels "
                "on %.1f %%: it is too weak to help. Train it longer or on more images, give another --teacher, or "
                "add --baseline to see whether the student needs one",
                name,
                100 * found["top1"],
                found["count"],
                100 * linear,
            )

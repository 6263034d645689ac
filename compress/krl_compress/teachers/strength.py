"""How good teachers' answers are, and whether that is enough: a linear model of the pixels is the yardstick."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from krl_runtime.evaluation.average_precision import mean_average_precision
from krl_train.data import PixelSet
from krl_train.data.splits import Training
from krl_train.tasks import Batch
from krl_train.worker import Worker

from .teacher import Teacher

__all__ = ["answers_quality", "linear_quality", "warn_if_weak"]

_log = logging.getLogger("krl")

_SIDE = 16  # pixels: of MNIST, CIFAR-10 and photographs of flowers the linear classifier sees enough in them
_MOST = 5000  # images that the linear classifier is fitted to: a second on one core
# A network that is worth learning from makes clearly fewer mistakes than the linear classifier, which is wrong on 64 %
# of CIFAR-10 and on 22 % of MNIST after 1,000 images: a judgment.
_SHARE = 0.9
_TOGETHER = 256  # images in memory at a time


def answers_quality(answers: Teacher, images: PixelSet, device: torch.device) -> float:
    """Return the top-1 (mAP of several labels) of teachers' answers to images as the student sees them.

    Args:
        answers: One teacher, or several as one.
        images: Labeled, at the student's input.
        device: Where to compute.

    Returns:
        The share of right answers, or the mAP, 0 to 1.
    """
    found = []
    for start in range(0, len(images), _TOGETHER):
        indices = np.arange(start, min(start + _TOGETHER, len(images)))
        pixels, further = images.shown(indices, Worker(device))
        positions = torch.from_numpy(indices)
        found.append(answers(Batch(pixels, images.labels[positions].to(device), positions, 0, further=further)).cpu())
    return _quality(torch.cat(found).numpy(), images.labels.numpy())


def _quality(scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """Return the top-1 of scores ``[N, classes]`` with the classes ``[N]``, or the mAP with labels ``[N, classes]``."""
    if labels.ndim == 2:
        return float(mean_average_precision(scores, labels)[0])
    return float((scores.argmax(1) == labels).mean())


def linear_quality(train: PixelSet, val: PixelSet, classes: int) -> float:
    """Return the top-1 (mAP of several labels) on held-out images of a linear model of the pixels, a yardstick.

    It is a ridge regression to the classes from images of 16 × 16 pixels at most, fitted to 5,000 at most.

    Args:
        train: Images to fit it to.
        val: Held-out images.
        classes: Number of classes.

    Returns:
        The share of right predictions, or the mAP, 0 to 1.
    """
    from sklearn.linear_model import Ridge

    features, labels = _features(train)
    targets = 2.0 * (labels if labels.ndim == 2 else np.eye(classes, dtype=np.float32)[labels]) - 1.0
    held_out, truth = _features(val)
    # Three times the features' variance: of 0.1 to 30 the best, or within a point of it, for 100 to 4,000 images of
    # digits, MNIST, CIFAR-10 and flowers.
    ridge = Ridge(alpha=3.0 * float(features.var(axis=0).sum()))
    return _quality(ridge.fit(features, targets).predict(held_out).reshape(len(held_out), classes), truth)


def _features(images: PixelSet) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    chosen = np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(np.int64)
    small = []
    for start in range(0, len(chosen), _TOGETHER):
        pixels = images.inside(chosen[start : start + _TOGETHER])
        height, width = (min(_SIDE, side) for side in pixels.shape[2:])
        small.append(F.adaptive_avg_pool2d(pixels.float() / 255, (height, width)).flatten(1))
    return torch.cat(small).numpy(), images.labels[chosen].numpy()


def warn_if_weak(name: str, quality: float, training: Training) -> None:
    """Warn of a teacher that knows little more than a linear classifier of the pixels.

    Args:
        name: The teacher, or several that answer as one, as the user named them.
        quality: ``answers_quality`` of the validation images, 0 to 1.
        training: The student's data.
    """
    linear = linear_quality(training.train, training.val, len(training.source.labels))
    if 1 - quality > _SHARE * (1 - linear):
        _log.warning(
            "teacher %s has %s %.1f %% on the %d validation images as the student sees them, and a linear model of the "
            "pixels %.1f %%: it is too weak to help. Train it longer or on more images, give another --teacher, or add "
            "--baseline to see whether the student needs one",
            name,
            "an mAP of" if training.val.multi_label else "a top-1 of",
            100 * quality,
            len(training.val),
            100 * linear,
        )

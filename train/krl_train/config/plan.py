"""How long, and in which batches, to train: what the user leaves out follows from the number of images."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields

from .base import LoopConfig

__all__ = ["PlannedLoop", "log_plan", "plan_loop", "steps_per_epoch"]

_log = logging.getLogger("krl")

# 128 is that of the published protocols; below 8 the statistics of a batch say little.
_LARGEST_BATCH, _SMALLEST_BATCH = 128, 8
_BATCHES = 8  # batches in an epoch of few images: a judgment
_EPOCHS = 30  # enough for a first look at a set of thousands of images; published protocols have 90 to 240
# Few images want many passes: with 200 of CIFAR-10, resnet8 has a top-1 of 31.9 % after 30 epochs in batches of 8,
# 34.9 % after 100 in batches of 32, 35.0 % after 300 in batches of 128 (benchmarks/train/default_plan.py, two seeds).
_LEAST_STEPS = 1200
_MOST_EPOCHS = 300  # of a handful of images; more of the same only learns them by heart
_TOO_FEW_STEPS = 100  # below it a network with batch normalization has hardly left its start, whatever the rate


@dataclass(frozen=True)
class PlannedLoop(LoopConfig):
    """A ``LoopConfig`` in which nothing is left open.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in one step, over all processes together.
    """

    epochs: int = _EPOCHS
    batch_size: int = _LARGEST_BATCH


def plan_loop(loop: LoopConfig, count: int) -> PlannedLoop:
    """Fill in the batch size and the number of epochs, where the user left them out.

    A batch is the largest power of two that makes 8 batches of the images, from 8 to 128. Sets that are shown in 30
    epochs in fewer than 1,200 steps get more epochs, 300 at most.

    Args:
        loop: What the user asked for.
        count: Number of training images.

    Example:
        >>> [plan_loop(LoopConfig(), count).batch_size for count in (20, 200, 2000, 20000)]
        [8, 16, 128, 128]
        >>> [plan_loop(LoopConfig(), count).epochs for count in (20, 200, 2000, 20000)]
        [300, 93, 75, 30]
    """
    size = loop.batch_size
    if size is None:
        power = 1 << int(math.log2(max(1, count / _BATCHES)))
        size = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, power))
    epochs = loop.epochs
    if epochs is None:
        needed = math.ceil(_LEAST_STEPS / steps_per_epoch(count, size))
        epochs = min(_MOST_EPOCHS, max(_EPOCHS, needed))
    given = {item.name: getattr(loop, item.name) for item in fields(LoopConfig)}
    return PlannedLoop(**{**given, "epochs": epochs, "batch_size": size})


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches in ``count`` images, whose last one has 0.5 to 1.5 times ``batch_size``.

    Example:
        >>> steps_per_epoch(40, 16), steps_per_epoch(33, 16), steps_per_epoch(3, 16)
        (3, 2, 1)
    """
    return max(1, math.floor(count / batch_size + 0.5))


def log_plan(loop: PlannedLoop, count: int, steps: int, rate: float) -> None:
    """Log what will be trained, and warn where it cannot work.

    Args:
        loop: The plan.
        count: Number of training images.
        steps: Number of steps in one epoch.
        rate: The peak learning rate.
    """
    total = loop.epochs * steps
    _log.info(
        "plan: %d images, batches of %d: %d steps in an epoch, %d epochs, %d steps in all; learning rate %.4g",
        count,
        loop.batch_size,
        steps,
        loop.epochs,
        total,
        rate,
    )
    if total < _TOO_FEW_STEPS:
        other = plan_loop(LoopConfig(), count)
        _log.warning(
            "%d steps are too few to train a network; accepted: any number, but for %d images leave --batch-size and "
            "--epochs out (%d and %d), or give more epochs",
            total,
            count,
            other.batch_size,
            other.epochs,
        )

"""How to train: what the user leaves out follows from the number of images, and from the steps that come of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .optimization import LoopConfig, OptimConfig

__all__ = [
    "Plan",
    "PlannedLoop",
    "PlannedOptim",
    "log_plan",
    "plan_loop",
    "plan_optim",
    "steps_per_epoch",
    "warmup_steps",
]

_log = logging.getLogger("krl")

# 128 is that of the published protocols; below 8 the statistics of a batch say little.
_LARGEST_BATCH, _SMALLEST_BATCH = 128, 8
# Batches in an epoch of few images, of which 300 epochs then make 1,200 steps. Of as many steps, those of large batches
# see the images more often: with 200 of CIFAR-10, resnet8 has a top-1 of 32.1 % after 48 epochs in batches of 8, 35.9 %
# after 93 in batches of 16, 36.7 % after 200 in batches of 32 (docs/results.md, Default options).
_BATCHES = 4
# Enough for a first look at a set of thousands of images; published protocols have 90 to 240. Of a million images, too:
# on ImageNet resnet18 has a top-1 of 66.9 % after 16 epochs, 70.0 % after 32, 72.4 % after 88
# (https://github.com/libffcv/ffcv-imagenet).
_EPOCHS = 30
# Few images want many passes: with 2,000 of CIFAR-10, resnet8 has a top-1 of 54.0 % after 30 epochs in batches of 32,
# 59.3 % after 75 in batches of 128 (docs/results.md, Default options).
_LEAST_STEPS = 1200
_MOST_EPOCHS = 300  # of a handful of images; more of the same only learns them by heart
_TOO_FEW_STEPS = 100  # below it a network with batch normalization has hardly left its start, whatever the rate
# An evaluated image costs a third of a trained one, a forward pass without the backward one. So evaluations take a
# quarter of the time at most, but where they are for more images than the training and would then be too few.
_LEAST_EVALUATIONS = 20  # so that the best epoch can be chosen: a judgment
# Epochs of 20 images are over at once: with a checkpoint after each, these took half of the time of a resnet18 (11
# million parameters) on a CPU, and 300 of them would write 40 GB.
_CHECKPOINTS = 30
_WARMUP_SHARE = 0.05  # of the training: 1,200 steps, the shortest planned training of most sets, get 60
# 2 / (1 - beta2) of Adam (https://arxiv.org/abs/1910.04209); the five epochs of https://arxiv.org/abs/1706.02677 for
# SGD are 780 steps.
_MOST_WARMUP_STEPS = 2000
# No moving average by default: with 20, 200 and 2,000 images none was measured to help, as the learning rate falls to
# 0 at the end, nor were rotation, zoom and mixup (docs/results.md, Default options).
_AVERAGED_SHARE = 5  # spans of an average in a training: its beginning then weighs e^-5, less than 1 %, at the end


@dataclass(frozen=True)
class PlannedLoop(LoopConfig):
    """A ``LoopConfig`` in which nothing is left open.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in one step, over all processes together.
        evaluate_every: Epochs between evaluations.
    """

    epochs: int = _EPOCHS
    batch_size: int = _LARGEST_BATCH
    evaluate_every: int = 1

    @property
    def checkpoint_every(self) -> int:
        """Epochs between checkpoints: 1, or more where there are 60 epochs or more."""
        return max(1, self.epochs // _CHECKPOINTS)


@dataclass(frozen=True)
class PlannedOptim(OptimConfig):
    """An ``OptimConfig`` in which nothing is left open but the learning rate, which is for the tasks to say.

    Attributes:
        warmup: Share of the training in which the learning rate rises from 0.
        ema: Decay of the moving average of the weights, which forgets the beginning of the training; 0 is off.
    """

    warmup: float = _WARMUP_SHARE


@dataclass(frozen=True)
class Plan:
    """A training with nothing left open, as the log and ``run.json`` have it.

    Attributes:
        images: Number of training images.
        batch_size: Images in one step, over all processes together.
        steps_per_epoch: Number of steps in one epoch.
        epochs: Passes over the training images.
        steps: Number of steps in all.
        evaluate_every: Epochs between evaluations.
        checkpoint_every: Epochs between checkpoints.
        lr: Peak learning rate.
        warmup_steps: Number of steps in which it rises from 0.
        ema: Decay of the moving average of the weights; 0 is off.
        augmentation: How training views are made; empty where that is for the task to say.
    """

    images: int
    batch_size: int
    steps_per_epoch: int
    epochs: int
    steps: int
    evaluate_every: int
    checkpoint_every: int
    lr: float
    warmup_steps: int
    ema: float
    augmentation: Mapping[str, Any]

    @classmethod
    def of(
        cls, loop: PlannedLoop, optim: PlannedOptim, images: int, steps: int, lr: float, augmentation: Mapping[str, Any]
    ) -> Plan:
        """Collect what was planned.

        Args:
            loop: How long and on what.
            optim: How weights are moved.
            images: Number of training images.
            steps: Number of steps in one epoch.
            lr: Peak learning rate.
            augmentation: How training views are made.
        """
        total = loop.epochs * steps
        return cls(
            images=images,
            batch_size=loop.batch_size,
            steps_per_epoch=steps,
            epochs=loop.epochs,
            steps=total,
            evaluate_every=loop.evaluate_every,
            checkpoint_every=loop.checkpoint_every,
            lr=lr,
            warmup_steps=warmup_steps(optim, total),
            ema=optim.ema,
            augmentation=augmentation,
        )


def plan_loop(loop: LoopConfig, count: int, val: int = 0) -> PlannedLoop:
    """Fill in the batch size, the number of epochs and how often to evaluate, where the user left them out.

    A batch is the largest power of two that makes 4 batches of the images, from 8 to 128. Sets that are shown in 30
    epochs in fewer than 1,200 steps get more epochs, 300 at most. Each epoch is evaluated; if it is of more
    images than are for training, so many fewer, but 20 in all.

    Args:
        loop: What the user asked for.
        count: Number of training images.
        val: Number of images in an evaluation: for validation, or generated ones; 0 where it is of something else.

    Example:
        >>> [plan_loop(LoopConfig(), count).batch_size for count in (20, 200, 2000, 20000, 2000000)]
        [8, 32, 128, 128, 128]
        >>> [plan_loop(LoopConfig(), count).epochs for count in (20, 200, 2000, 20000, 2000000)]
        [300, 200, 75, 30, 30]
        >>> [plan_loop(LoopConfig(), count, val=2000).evaluate_every for count in (20, 200, 2000)]
        [15, 10, 1]
    """
    size = loop.batch_size
    if size is None:
        power = 1 << int(math.log2(max(1, count / _BATCHES)))
        size = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, power))
    epochs = loop.epochs
    if epochs is None:
        needed = math.ceil(_LEAST_STEPS / steps_per_epoch(count, size))
        epochs = min(_MOST_EPOCHS, max(_EPOCHS, needed))
    every = loop.evaluate_every
    if every is None:
        every = max(1, min(math.ceil(val / max(1, count)), epochs // _LEAST_EVALUATIONS))
    given = {item.name: getattr(loop, item.name) for item in fields(LoopConfig)}
    return PlannedLoop(**{**given, "epochs": epochs, "batch_size": size, "evaluate_every": every})


def plan_optim(optim: OptimConfig, steps: int) -> PlannedOptim:
    """Fill in the warm-up, where the user left it out, and bound the moving average.

    The warm-up is a twentieth of the training, 2,000 steps at most. A moving average, which the user has to ask for,
    spans a fifth of the training at most: 1 / (1 - decay) steps.

    Args:
        optim: What the user asked for.
        steps: Number of steps in the whole training.

    Example:
        >>> [round(plan_optim(OptimConfig(), steps).warmup * steps) for steps in (1200, 40000, 400000)]
        [60, 2000, 2000]
        >>> plan_optim(OptimConfig(ema=0.999), 1000).ema
        0.995
    """
    warmup = optim.warmup
    if warmup is None:
        warmup = min(_WARMUP_SHARE, _MOST_WARMUP_STEPS / max(1, steps))
    ema = min(optim.ema, max(0.0, 1 - _AVERAGED_SHARE / max(1, steps)))
    given = {item.name: getattr(optim, item.name) for item in fields(OptimConfig)}
    return PlannedOptim(**{**given, "warmup": warmup, "ema": ema})


def warmup_steps(optim: PlannedOptim, steps: int) -> int:
    """Return the number of steps in which the learning rate rises, of ``steps`` in the whole training."""
    return int(optim.warmup * steps)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches in ``count`` images, whose last one has 0.5 to 1.5 times ``batch_size``.

    Example:
        >>> steps_per_epoch(40, 16), steps_per_epoch(33, 16), steps_per_epoch(3, 16)
        (3, 2, 1)
    """
    return max(1, math.floor(count / batch_size + 0.5))


def log_plan(plan: Plan) -> None:
    """Log what will be trained, and warn where it cannot work."""
    _log.info(
        "plan: %d images, batches of %d: %d steps in an epoch, %d epochs, %d steps in all; learning rate %.4g after "
        "%d steps of warm-up; moving average %s; evaluation %s, checkpoint %s",
        plan.images,
        plan.batch_size,
        plan.steps_per_epoch,
        plan.epochs,
        plan.steps,
        plan.lr,
        plan.warmup_steps,
        f"{plan.ema:.4g}" if plan.ema else "off",
        _epochs(plan.evaluate_every),
        _epochs(plan.checkpoint_every),
    )
    if plan.augmentation:
        shown = (f"{name.replace('_', '-')} {_shown(value)}" for name, value in plan.augmentation.items())
        _log.info("plan: views: %s", ", ".join(shown))
    _warn(plan)


def _warn(plan: Plan) -> None:
    other = plan_loop(LoopConfig(), plan.images)
    if plan.steps < _TOO_FEW_STEPS:
        _log.warning(
            "%d steps are too few to train a network; accepted: any number, but for %d images leave --batch-size and "
            "--epochs out (%d and %d), or give more epochs",
            plan.steps,
            plan.images,
            other.batch_size,
            other.epochs,
        )
    if plan.batch_size > max(plan.images, other.batch_size):
        _log.warning(
            "batches of %d are more than all %d images: each step has all of them, at a learning rate for %d; "
            "accepted: any number, but for %d images leave --batch-size out (%d)",
            plan.batch_size,
            plan.images,
            plan.batch_size,
            plan.images,
            other.batch_size,
        )


def _epochs(number: int) -> str:
    return "every epoch" if number == 1 else f"every {number} epochs"


def _shown(value: bool | float | str | list[float]) -> str:
    if isinstance(value, bool):
        return {False: "off", True: "on"}[value]
    if isinstance(value, list):
        return " ".join(f"{item:.4g}" for item in value)
    return value if isinstance(value, str) else f"{value:g}"

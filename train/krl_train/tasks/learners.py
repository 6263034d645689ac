"""A module with its optimizer, its schedule, and the moving average of its weights: what a training step moves."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from krl_train.config import PlannedOptim

from .base import Learner
from .optim import build_schedule

__all__ = ["gan_adam", "growing_average", "make_learner", "moving_average"]

_LR = 2e-4  # DCGAN's (Radford et al. 2016)

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def make_learner(
    module: nn.Module,
    optim: PlannedOptim,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    average: AveragedModel | None = None,
    average_of: nn.Module | None = None,
) -> Learner:
    """Return a module with its optimizer and schedule.

    Args:
        module: What is trained.
        optim: Schedule, largest gradient and decay of the average, all planned.
        optimizer: Of the module's parameters.
        steps: Number of optimization steps in the whole training.
        average: The moving average, which the run then keeps.
        average_of: The part of the module that is averaged.
    """
    return Learner(module, optimizer, build_schedule(optim, optimizer, steps), optim, average, average_of)


def gan_adam(module: nn.Module, lr: float | None) -> torch.optim.Adam:
    """Return Adam with the momentum of GANs (https://arxiv.org/abs/1511.06434), and its rate where ``lr`` is none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trained, lr=lr or _LR, betas=(0.5, 0.999))


# Two rules keep the beginning of a training out of its average. They differ in what trainings of them were measured
# with: one rule for both would move those figures.


def moving_average(module: nn.Module, decay: float) -> AveragedModel | None:
    """Return a moving average of weights and of the statistics of normalization; ``None`` where ``decay`` is 0.

    Args:
        module: What is averaged.
        decay: Of the average, as ``plan_optim`` returns it.
    """
    if not decay:
        return None
    ema = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=ema, use_buffers=True)


def growing_average(module: nn.Module, decay: float) -> AveragedModel:
    """Return a moving average whose decay grows with the steps, as GANs keep it.

    Args:
        module: What is averaged.
        decay: Up to which it grows as (1 + n) / (10 + n).
    """

    def move(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current.to(average.dtype), share)
            else:
                average.copy_(current)

    return AveragedModel(module, multi_avg_fn=torch.no_grad()(move), use_buffers=True)

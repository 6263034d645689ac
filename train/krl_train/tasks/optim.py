"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from krl_train.config import OptimConfig, PlannedOptim, warmup_steps

__all__ = ["LayerRates", "build_optimizer", "build_schedule", "default_learning_rate", "learning_rate_factor"]

# Images, at which the default rates are meant; larger batches take proportionally more (Goyal et al. 2017).
_REFERENCE_BATCH = 128
_DEFAULT_LR = {"sgd": 0.1, "adamw": 1e-3}


@dataclass(frozen=True)
class LayerRates:
    """How some parameters are moved otherwise than the rest.

    Attributes:
        rates: Factor of the learning rate of a parameter; 1 for those that it does not have.
        undecayed: Parameters without weight decay.
    """

    rates: Mapping[nn.Parameter, float] = field(default_factory=dict)
    undecayed: frozenset[nn.Parameter] = frozenset()

    def split(self, groups: Iterable[Mapping[str, Any]], lr: float) -> list[dict[str, Any]]:
        """Split an optimizer's groups, so that all parameters of one are moved alike; the fastest come first.

        Args:
            groups: Each has ``"params"`` and what else torch's optimizers take.
            lr: Learning rate where the factor is 1.
        """
        made: dict[tuple[float, int, bool], dict[str, Any]] = {}
        for number, group in enumerate(groups):
            for parameter in group["params"]:
                rate, undecayed = self.rates.get(parameter, 1.0), parameter in self.undecayed
                other = {**group, "params": [], "lr": rate * lr, **({"weight_decay": 0.0} if undecayed else {})}
                made.setdefault((-rate, number, undecayed), other)["params"].append(parameter)
        return [made[key] for key in sorted(made)]


_NORMS = (nn.LayerNorm, nn.RMSNorm)  # their scales may have more than one dimension; all others have vectors


def build_optimizer(
    config: OptimConfig, module: nn.Module, batch_size: int, layers: LayerRates | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of a module's parameters.

    Args:
        config: What the user asked for; without a learning rate the default grows with the batch size
            (https://arxiv.org/abs/1706.02677).
        module: What to train; parameters that need no gradient are left out.
        batch_size: Images in one step over all processes.
        layers: Which of them are moved otherwise than the rest.
    """
    trained = _groups(config, module)
    lr = config.lr if config.lr is not None else default_learning_rate(config, batch_size)
    if layers is not None:
        trained = layers.split(trained, lr)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=lr, weight_decay=config.weight_decay)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(
        trained, lr=lr, momentum=config.momentum, nesterov=nesterov, weight_decay=config.weight_decay
    )


def _groups(config: OptimConfig, module: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters as one group, or those without a decay of weights as a second one.

    The second one has vectors and numbers (biases, scales and offsets), as in timm's ``param_groups_weight_decay``, and
    what else is a bias by its name or belongs to a layer of normalization, as in torchvision's recipe of ImageNet.
    """
    decayed: dict[nn.Parameter, bool] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                small = parameter.ndim < 2 or name == "bias" or isinstance(owner, _NORMS)
                decayed[parameter] = config.decay_norms or not small
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter, is_decayed in decayed.items() if is_decayed]},
        {"params": [parameter for parameter, is_decayed in decayed.items() if not is_decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def default_learning_rate(config: OptimConfig, batch_size: int) -> float:
    """Return the peak learning rate where the user gives none."""
    return _DEFAULT_LR[config.optimizer] * batch_size / _REFERENCE_BATCH


def build_schedule(config: PlannedOptim, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Build the schedule, which is to be stepped after each of ``steps`` optimization steps."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, steps))


def learning_rate_factor(config: PlannedOptim, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at one step.

    Linear warm-up, then half a cosine down to 0 (https://arxiv.org/abs/1608.03983), or steps of a tenth, or constant.

    Args:
        config: The schedule, its warm-up and milestones.
        step: From 0.
        steps: Number of steps of the whole training.
    """
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "multistep":
        return 0.1 ** sum(step >= milestone * steps for milestone in config.milestones)
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

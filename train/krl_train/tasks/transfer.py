"""Transfer learning: which of the weights of a start are trained, when, how fast, and what holds them near it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from krl_train.config import TransferConfig
from krl_train.models import Network
from krl_train.models.features import reading, stage_outputs
from krl_train.models.relations import relative_distances
from krl_train.models.stages import Stage

from .base import Batch
from .classification import Objective
from .optim import LayerRates

__all__ = ["TransferObjective", "first_steps"]

_EMBEDDING = "embedding given to the last layer"  # no name of a module


def first_steps(config: TransferConfig, count: int, steps: int) -> list[int | None]:
    """Return the first step in which each stage is trained, from the input to the last layer; ``None`` for never.

    Args:
        config: With ``staged`` the last layer is trained at once, and the others follow at equal intervals, the one
            next to it first, as in gradual unfreezing (https://arxiv.org/abs/1801.06146); there by epochs.
        count: Number of stages, the last layer included.
        steps: Number of optimization steps in the whole training.

    Example:
        >>> first_steps(TransferConfig("run", "staged", unfreeze_share=0.6), 4, 100)
        [60, 40, 20, 0]
    """
    below = count - 1
    if config.transfer == "full":
        return [0] * count
    if config.transfer == "linear":
        return [None] * below + [0]
    return [int(config.share * steps * depth / below) for depth in range(below, -1, -1)]


class TransferObjective(Objective):
    """An objective whose network starts from trained weights.

    What is frozen gets no gradient, computes as in an evaluation, and keeps its statistics of normalization. The terms
    that hold the network near its start are added to the loss, each times its weight:

    - ``l2_sp``: half the sum of the squared differences from the weights of the start
      (https://arxiv.org/abs/1802.01483), of all parameters that come from there; these have no weight decay.
    - ``feature_transfer``: the mean over the stages of the squared distance of their output from that of the start, as
      a share of the latter's mean square. It is DELTA (https://arxiv.org/abs/1901.09229) without the weights that this
      gives to the channels. A network without feature maps is compared at the input of its last layer.
    - ``relation_transfer``: the distance part of Relational Knowledge Distillation (https://arxiv.org/abs/1904.05068)
      between the inputs of the last layers, of the images that a process sees in a step.

    Args:
        objective: What is minimized; its network has the weights of the start.
        config: What is trained, and the weights of the terms.
        stages: Of the network; see ``split_stages``.
        transferred: Names of the tensors in the backbone that come from the start.
    """

    def __init__(
        self, objective: Objective, config: TransferConfig, stages: Sequence[Stage], transferred: Collection[str]
    ) -> None:
        super().__init__()
        self.objective = objective
        self.network = objective.network
        self.config, self.stages = config, tuple(stages)
        self.unfreezes = config.transfer == "staged"
        parameters = dict(self.network.backbone.named_parameters())
        kept = {name: value for name, value in parameters.items() if name in transferred and config.l2_sp}
        self._start = {name: value.detach().clone() for name, value in kept.items()}
        self._source = self._frozen_source()
        depths = {name: depth for depth, stage in enumerate(reversed(self.stages)) for name in stage.parameters}
        rates = {parameters[name]: config.layer_decay**depth for name, depth in depths.items()}
        self.layers = LayerRates(rates, frozenset(kept.values()))
        self._trained = [True] * len(self.stages)
        if config.transfer == "linear":  # the optimizer need not know of the others
            self._train_stages([start is not None for start in first_steps(config, len(self.stages), 0)])

    def _frozen_source(self) -> tuple[Network, ...]:
        """Return a copy of the network at its start, where one is needed: in a tuple, so that it is no submodule."""
        if not (self.config.feature_transfer or self.config.relation_transfer):
            return ()
        self._maps = stage_outputs(self.network)
        return (copy.deepcopy(self.network).eval().requires_grad_(False),)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the objective's losses and the terms; ``"loss"`` is the sum."""
        if not self._source:
            parts = dict(self.objective(batch))
            terms: dict[str, Tensor] = {}
        else:
            source = self._source[0].to(batch.pixels.device)
            with self._reading(self.network) as mine:
                parts = dict(self.objective(batch))
            with torch.no_grad(), self._reading(source) as theirs:
                source(batch.pixels)
            with torch.autocast(batch.pixels.device.type, enabled=False):
                terms = self._compare(mine, theirs)
        if self.config.l2_sp:
            terms["l2_sp"] = self.config.l2_sp * self._distance()
        return {**parts, **terms, "loss": parts["loss"] + sum(terms.values())}

    def _reading(self, network: Network) -> AbstractContextManager[dict[str, Any]]:
        modules = {tap.name: network.backbone.get_submodule(tap.name) for tap in self._maps}
        return reading(modules, {_EMBEDDING: network.backbone.get_submodule(self.stages[-1].name)})

    def _compare(self, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Tensor]:
        terms = {}
        if self.config.feature_transfer:
            names = [tap.name for tap in self._maps] or [_EMBEDDING]
            distances = [_relative_error(mine[name].float(), theirs[name].float()) for name in names]
            terms["feature_transfer"] = self.config.feature_transfer * torch.stack(distances).mean()
        if self.config.relation_transfer:
            here, there = (relative_distances(_embedding(found[_EMBEDDING])) for found in (mine, theirs))
            terms["relation_transfer"] = self.config.relation_transfer * F.smooth_l1_loss(here, there)
        return terms

    def _distance(self) -> Tensor:
        """Return half the sum of the squared differences from the weights of the start."""
        parameters = dict(self.network.backbone.named_parameters())
        self._start = {name: value.to(parameters[name].device) for name, value in self._start.items()}
        squares = [(parameters[name] - value).square().sum() for name, value in self._start.items()]
        return 0.5 * torch.stack(squares).sum()

    def begin_step(self, step: int, steps: int) -> None:
        """Train the stages whose turn has come."""
        self.objective.begin_step(step, steps)
        starts = first_steps(self.config, len(self.stages), steps)
        trained = [start is not None and step >= start for start in starts]
        if trained != self._trained:
            self._train_stages(trained)

    def _train_stages(self, trained: Sequence[bool]) -> None:
        self._trained = list(trained)
        parameters = dict(self.network.backbone.named_parameters())
        for stage, is_trained in zip(self.stages, trained, strict=True):
            for name in stage.parameters:
                parameters[name].requires_grad_(is_trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> TransferObjective:
        """Put what is trained into training mode, and what is frozen into evaluation mode."""
        super().train(mode)
        if not mode:
            return self
        backbone = self.network.backbone
        if self.config.transfer == "linear":
            backbone.eval()
            backbone.get_submodule(self.stages[-1].name).train()
            return self
        for stage, is_trained in zip(self.stages, self._trained, strict=True):
            for module in (backbone.get_submodule(name) for name in stage.modules):
                module.training = is_trained and not (self.config.freeze_statistics and isinstance(module, _BatchNorm))
        return self

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Let the objective take note of an evaluation's metrics."""
        self.objective.evaluated(metrics)

    def planned(self, steps: int, lr: float) -> Mapping[str, Any]:
        """Return the stages from the last layer down: their numbers of weights, learning rates and first steps."""
        weights = {name: value.numel() for name, value in self.network.backbone.named_parameters()}
        starts = first_steps(self.config, len(self.stages), steps)
        listed = [
            {
                "name": stage.name,
                "parameters": sum(weights[name] for name in stage.parameters),
                "lr": lr * self.config.layer_decay**depth if start is not None else 0.0,
                "first_step": start,
            }
            for depth, (stage, start) in enumerate(zip(reversed(self.stages), reversed(starts), strict=True))
        ]
        return {**self.objective.planned(steps, lr), "transfer": {"method": self.config.transfer, "stages": listed}}


def _embedding(value: Tensor) -> Tensor:
    """Return the input of the last layer as vectors; of a convolution's, its mean over all positions."""
    return (value.mean((2, 3)) if value.ndim == 4 else value.flatten(1)).float()


def _relative_error(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference, as a share of the second one's mean square."""
    return F.mse_loss(mine, theirs) / theirs.square().mean().clamp(min=torch.finfo(theirs.dtype).tiny)

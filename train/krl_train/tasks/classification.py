"""Training a classifier, whatever the objective: labels alone, or a teacher as well."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from krl_train.config import OptimConfig
from krl_train.data import PixelSet
from krl_train.metrics import evaluate_classifier
from krl_train.models import Network
from krl_train.optim import build_optimizer, build_schedule
from krl_train.placement import Placement

from .base import Batch, Learner, Task, Update

__all__ = ["ClassificationTask", "Objective", "Supervised"]


class Objective(nn.Module):
    """A network together with what its training minimises; all of its parameters are trained."""

    network: Network

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return named scalar losses; ``"loss"`` is the one to minimise."""


class Supervised(Objective):
    """Cross-entropy with the labels.

    Args:
        network: The classifier.
        label_smoothing: Share of the target that is spread evenly over the classes, 0 to below 1
            (https://arxiv.org/abs/1512.00567).
    """

    def __init__(self, network: Network, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"loss": mean cross-entropy in nats}``."""
        logits = self.network(batch.pixels).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        if batch.partners is not None and batch.share is not None:
            other = F.cross_entropy(logits, batch.partners, label_smoothing=self.label_smoothing)
            loss = batch.share * loss + (1 - batch.share) * other
        return {"loss": loss}


class ClassificationTask(Task[Batch]):
    """Trains the network of an objective and measures it on validation pictures.

    Args:
        objective: What is minimised.
        optim: How.
        steps: Number of optimisation steps in the whole training.
        batch_size: Pictures in one step over all processes; the default learning rate grows with it.
        val: Validation pictures.
        labels: Class names.
    """

    def __init__(
        self,
        objective: Objective,
        optim: OptimConfig,
        *,
        steps: int,
        batch_size: int,
        val: PixelSet,
        labels: tuple[str, ...],
    ) -> None:
        self.network = objective.network
        self.val = val
        self.labels = labels
        optimizer = build_optimizer(optim, objective.parameters(), batch_size)
        average = None
        if optim.ema:
            ema = get_ema_multi_avg_fn(optim.ema)  # type: ignore[no-untyped-call]
            average = AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        schedule = build_schedule(optim, optimizer, steps)
        self.learners = {
            "model": Learner(objective, optimizer, schedule, optim.clip_norm, average, average_of=self.network)
        }

    def step(self, batch: Batch, update: Update) -> Mapping[str, Tensor]:
        """Minimise the objective's ``"loss"`` on one batch."""
        parts: dict[str, Tensor] = self.learners["model"].module(batch)
        update("model", parts["loss"])
        return {name: value.detach() for name, value in parts.items()}

    def _final(self) -> Network:
        average = self.learners["model"].average
        if average is None:
            return self.network
        assert isinstance(average.module, Network)  # noqa: S101  for the type checker
        return average.module

    def evaluate(self, placement: Placement) -> dict[str, Any]:
        """Measure the network (its moving average, where there is one) on the validation pictures."""
        return evaluate_classifier(
            self._final(),
            self.val,
            self.labels,
            placement,
        )

    def state(self) -> dict[str, Tensor]:
        """Return the backbone's weights (their moving average, where there is one)."""
        return self._final().backbone.state_dict()

"""Training a classifier, whatever the objective: labels alone, or a teacher as well."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from krl_train.config import OptimConfig
from krl_train.data import PixelSet
from krl_train.metrics import evaluate_classifier, quality_of
from krl_train.models import Network
from krl_train.worker import Worker

from .base import Batch, Update
from .cross_entropy import cross_entropy
from .objective import ObjectiveTask
from .optim import LayerRates

__all__ = ["ClassificationTask", "Objective", "Supervised", "label_loss"]


class Objective(nn.Module):
    """A network together with what its training minimizes; all of its parameters are trained."""

    network: Network

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return named scalar losses; ``"loss"`` is the one to minimize."""

    layers: LayerRates | None = None
    """Which parameters are moved otherwise than the rest."""
    unfreezes = False
    """Whether more weights are trained later than at first."""

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Take note of an evaluation's metrics; all processes call it with the same ones. Nothing by default."""
        del metrics

    def begin_step(self, step: int, steps: int) -> None:
        """Prepare for an optimization step, from 0, of ``steps`` in the whole training. Nothing by default."""
        del step, steps

    def planned(self, steps: int, lr: float) -> Mapping[str, Any]:
        """Return its part of the record of the plan, for ``steps`` and a peak learning rate; nothing by default."""
        del steps, lr
        return {}


class Supervised(Objective):
    """Cross-entropy with the labels; binary cross-entropy where an image can have several.

    Args:
        network: The classifier.
        label_smoothing: Share of the target that is spread evenly over the classes, 0 to below 1
            (https://arxiv.org/abs/1512.00567).
        class_weights: Weight of each class, ``[K]``, see ``class_weights``; ``None`` for equal ones.
    """

    def __init__(self, network: Network, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"loss": mean cross-entropy in nats}``; see ``label_loss``."""
        logits = self.network.answer(batch.pixels, batch.further)
        return {"loss": label_loss(logits.float(), batch, self.label_smoothing, self._weights)}

    @property
    def _weights(self) -> Tensor | None:
        weights = self.class_weights
        return weights if isinstance(weights, Tensor) else None


def label_loss(logits: Tensor, batch: Batch, label_smoothing: float, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy with a batch's labels; of mixed images, with both labels by their shares.

    Where an image can have several labels it is the binary cross-entropy of each, the mean over labels and images.

    Args:
        logits: ``[N, classes]``.
        batch: Has the labels.
        label_smoothing: Share of the target that is spread evenly over the classes; 0 where there are several labels.
        class_weights: Weight of each class, ``[classes]``, or of several labels that of the images which have it;
            ``None`` for equal ones.
    """

    def loss(labels: Tensor, whole: Tensor | None) -> Tensor:
        if labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), pos_weight=class_weights)
        if class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return cross_entropy(logits, labels, label_smoothing=label_smoothing, class_weights=class_weights, whole=whole)

    whole = batch.whole or batch
    if batch.partners is None or batch.share is None:
        return loss(batch.labels, whole.labels)
    mine, other = loss(batch.labels, whole.labels), loss(batch.partners, whole.partners)
    return batch.share * mine + (1 - batch.share) * other


class ClassificationTask(ObjectiveTask[Batch, Network]):
    """Trains the network of an objective and measures it on validation images.

    Args:
        objective: What is minimized.
        optim: How.
        steps: Number of optimization steps in the whole training.
        batch_size: Images in one step over all processes; the default learning rate grows with it.
        val: Validation images.
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
        layers = objective.layers
        super().__init__(objective, objective.network, optim, steps=steps, batch_size=batch_size, layers=layers)
        self.objective = objective
        self.unfreezes = objective.unfreezes
        self.steps = steps
        self.val = val
        self.labels = labels

    def planned(self) -> Mapping[str, Any]:
        """Return the objective's part of the record of the plan."""
        rates = [group["initial_lr"] for group in self.learners["model"].optimizer.param_groups]
        return self.objective.planned(self.steps, max(rates))

    def step(self, batch: Batch, update: Update) -> Mapping[str, Tensor]:
        """Minimize the objective's ``"loss"`` on one batch, with the weights that are trained at this step."""
        self.objective.begin_step(self.learners["model"].schedule.last_epoch, self.steps)
        return super().step(batch, update)

    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Measure the network (its moving average, where there is one) on the validation images."""
        metrics = evaluate_classifier(self.final(), self.val, self.labels, worker)
        self.objective.evaluated(metrics)
        return metrics

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, ...]:
        """Return top-1 (mAP of several labels), and the loss for epochs that are equal in it, as on few images."""
        return quality_of(metrics), -metrics["loss"]

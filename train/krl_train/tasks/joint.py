"""Training one feature extractor on two labelings at once: of a target, and of a source beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krl_train.data import PixelSet
from krl_train.metrics import evaluate_classifier
from krl_train.models import TwoHeads
from krl_train.worker import Worker

from .base import Batch
from .classification import ClassificationTask, Objective, label_loss

__all__ = ["JointBatch", "JointSupervised", "JointTask"]


@dataclass(frozen=True, kw_only=True)
class JointBatch(Batch):
    """One step's images of the target, and those of the source.

    Attributes:
        source: The images of the source; their labels are the source's.
    """

    source: Batch


class JointSupervised(Objective):
    """The cross-entropy of the target's head on the target's images, and of the source's head on the source's.

    Both batches go through the network in one pass. Batch normalization then has the statistics of both together, and
    so are the running ones that it is evaluated with. Two passes would normalize each by its own, and evaluate the
    target's images with a mean of both, which neither was trained with.

    Args:
        network: The classifier with two heads.
        weight: Weight of the source's loss beside the target's, above 0.
        label_smoothing: Share of the labels that is spread evenly over the classes, 0 to below 1.
        class_weights: Weight of each class of the target and of the source, ``[K]``; ``None`` for equal ones.
    """

    network: TwoHeads

    def __init__(
        self,
        network: TwoHeads,
        weight: float,
        label_smoothing: float = 0.0,
        class_weights: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        super().__init__()
        self.network, self.weight, self.label_smoothing = network, weight, label_smoothing
        for name, values in zip(("target", "source"), class_weights, strict=True):
            self.register_buffer(f"{name}_weights", values, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``"loss"``, and of it ``"target_loss"`` and ``"source_loss"`` without its weight, in nats."""
        assert isinstance(batch, JointBatch)  # noqa: S101  for the type checker
        target, source = self.network.both(torch.cat([batch.pixels, batch.source.pixels]))
        count = len(batch.pixels)
        of_target = label_loss(target[:count].float(), batch, self.label_smoothing, self._weights("target"))
        of_source = label_loss(source[count:].float(), batch.source, self.label_smoothing, self._weights("source"))
        return {
            "loss": of_target + self.weight * of_source,
            "target_loss": of_target,
            "source_loss": of_source,
        }

    def _weights(self, head: str) -> Tensor | None:
        weights = getattr(self, f"{head}_weights")
        return weights if isinstance(weights, Tensor) else None


class JointTask(ClassificationTask):
    """Trains a classifier with two heads, and measures each on the validation images of its labels.

    The quality of an epoch is that of the target's head.

    Args:
        objective: What is minimized.
        source_val: Validation images of the source.
        source_labels: Its class names.
        options: What ``ClassificationTask`` takes.
    """

    def __init__(
        self, objective: JointSupervised, *, source_val: PixelSet, source_labels: tuple[str, ...], **options: Any
    ) -> None:
        super().__init__(objective, **options)
        self.source_val, self.source_labels = source_val, source_labels

    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Measure both heads; what is measured of the source's has ``source_`` before its name."""
        metrics = super().evaluate(worker)
        network = self.final()
        assert isinstance(network, TwoHeads)  # noqa: S101  for the type checker
        found = evaluate_classifier(network.source(), self.source_val, self.source_labels, worker)
        return {**metrics, **{f"source_{name}": value for name, value in found.items()}}

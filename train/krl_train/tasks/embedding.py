"""Training a network that learns embeddings, whatever the objective: labels alone, or a teacher as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from krl_train.metrics.retrieval import evaluate_embedder
from krl_train.models import Network
from krl_train.worker import Worker

from .base import Batch
from .classification import ClassificationTask, Objective
from .metric_losses import MetricLoss

__all__ = ["EmbeddingTask", "MetricLearning"]


class MetricLearning(Objective):
    """A loss of embeddings and labels.

    Args:
        network: Gives embeddings of length 1.
        loss: The loss.
    """

    def __init__(self, network: Network, loss: MetricLoss) -> None:
        super().__init__()
        self.network, self.metric_loss = network, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"loss": the loss of the batch's embeddings}``."""
        return {"loss": self.metric_loss(self.network(batch.pixels).float(), batch.labels)}


class EmbeddingTask(ClassificationTask):
    """Trains the network of an objective, and measures how well its embeddings find images of the same class."""

    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Measure the network (its moving average, where there is one) on the validation images."""
        metrics = evaluate_embedder(self.final(), self.val, worker)
        self.objective.evaluated(metrics)
        return metrics

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, ...]:
        """Return recall@1, and the mean precision for epochs that are equal in it."""
        return metrics["recall_at_1"], metrics["map_at_r"]

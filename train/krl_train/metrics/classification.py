"""Top-1, top-5, loss, recall of each class and the confusion matrix of a classifier; mAP and F1 of several labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassRecall

from krl_runtime.errors import ModelError
from krl_runtime.evaluation.labels import measure_labels
from krl_runtime.evaluation.predictions import standard_error
from krl_train.data.pixels import PixelSet
from krl_train.models import Network
from krl_train.worker import Worker

__all__ = ["evaluate_classifier", "outputs_of", "quality_error", "quality_name", "quality_of", "standard_error"]


@torch.no_grad()
def evaluate_classifier(
    network: nn.Module,
    data: PixelSet,
    labels: Sequence[str],
    worker: Worker,
    *,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Measure a classifier in float32.

    Args:
        network: Takes pixels ``[N, C, H, W]`` of uint8; it is in eval mode afterwards.
        data: The images.
        labels: Class names in the order of the logits.
        worker: Where the network is; each process takes every ``world``-th image, and all get the same answer.
        batch_size: Images in one step.

    Returns:
        ``count``, ``top1`` (share, 0 to 1), ``top1_standard_error``, ``top5`` (of more than five classes),
        ``loss`` (mean cross-entropy in nats), ``recall`` (share by class name, ``None`` for classes without images),
        ``confusion`` (``[true][predicted]`` counts). Of multi-label data what ``measure_labels`` returns, and ``loss``
        (mean binary cross-entropy in nats).
    """
    if data.multi_label:
        return _evaluate_labels(network, data, labels, worker, batch_size)
    classes = len(labels)
    metrics: dict[str, Metric] = {
        "top1": MulticlassAccuracy(classes, top_k=1, average="micro"),
        **({"top5": MulticlassAccuracy(classes, top_k=5, average="micro")} if classes > 5 else {}),
        "recall": MulticlassRecall(classes, average=None),
        "confusion": MulticlassConfusionMatrix(classes),
        "loss": MeanMetric(),
    }
    for metric in metrics.values():
        metric.to(worker.device)
    for logits, targets in outputs_of(network, data, worker, batch_size):
        metrics["loss"].update(F.cross_entropy(logits, targets), weight=len(targets))
        for name, metric in metrics.items():
            if name != "loss":
                metric.update(logits, targets)
    return _result({name: metric.compute() for name, metric in metrics.items()}, labels, len(data))


def outputs_of(network: nn.Module, data: PixelSet, worker: Worker, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the outputs ``[n, ...]`` of a network for this process's images, and their labels, some at a time.

    Raises:
        ModelError: An output is not a finite number.
    """
    network.eval()
    mine = np.arange(worker.rank, len(data), worker.world)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]
        pixels, *others = (center(each, indices).to(worker.device) for each in data.images)
        pixels = pixels.contiguous(memory_format=worker.layout)
        if isinstance(network, Network):
            further = data.beside(torch.from_numpy(indices), others, worker)
            logits = network.answer(pixels, further).float()
        else:
            logits = network(pixels).float()
        if not logits.isfinite().all():
            raise ModelError("the network answers images with numbers that are not finite; train it again")
        yield logits, data.labels[torch.from_numpy(indices)].to(worker.device)


def _evaluate_labels(
    network: nn.Module, data: PixelSet, labels: Sequence[str], worker: Worker, batch_size: int
) -> dict[str, Any]:
    """Measure a classifier whose images can have several labels; see ``evaluate_classifier``."""
    kept = {"logits": CatMetric(), "truth": CatMetric()}  # of all processes, once they are computed
    for metric in kept.values():
        metric.to(worker.device)
    for logits, targets in outputs_of(network, data, worker, batch_size):
        kept["logits"].update(logits)
        kept["truth"].update(targets.float())
    logits, truth = (metric.compute() for metric in kept.values())
    loss = F.binary_cross_entropy_with_logits(logits, truth)
    found = measure_labels("sigmoid-logits", logits.cpu().numpy(), truth.cpu().numpy(), labels)
    return {**found, "loss": round(float(loss), 6)}


def quality_name(metrics: Mapping[str, Any]) -> str:
    """Return the name of the metric that a classifier is judged by: ``"map"`` of several labels, else ``"top1"``."""
    return "map" if "map" in metrics else "top1"


def quality_of(metrics: Mapping[str, Any]) -> float:
    """Return the metric that a classifier is judged by, 0 to 1."""
    return float(metrics[quality_name(metrics)])


def quality_error(metrics: Mapping[str, Any]) -> float:
    """Return one standard error of that metric."""
    return float(metrics[f"{quality_name(metrics)}_standard_error"])


def center(data: PixelSet, indices: np.ndarray[Any, Any]) -> Tensor:
    """Return images ``[n, C, H, W]`` without the margin for random crops."""
    pixels = data.pixels(indices)
    margin = data.margin
    return pixels[:, :, margin:-margin, margin:-margin] if margin else pixels


def _result(values: dict[str, Tensor], labels: Sequence[str], count: int) -> dict[str, Any]:
    confusion = values["confusion"].long().tolist()
    recall = {
        label: round(float(value), 6) if sum(row) else None
        for label, value, row in zip(labels, values["recall"].tolist(), confusion, strict=True)
    }
    shares: dict[str, Any] = {
        name: round(float(values[name]), 6) for name in ("top1", "top5", "loss") if name in values
    }
    shares["top1_standard_error"] = round(standard_error(shares["top1"], count), 6)
    return {"count": count, **shares, "recall": recall, "confusion": confusion}

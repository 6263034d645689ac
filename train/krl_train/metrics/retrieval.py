"""Metrics of embeddings: whether the nearest images are of the same class; ``krl_runtime.evaluation`` computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torchmetrics import CatMetric

from krl_runtime.errors import DataError
from krl_runtime.evaluation.predictions import standard_error
from krl_runtime.evaluation.retrieval import label_matches, mean_average_precision_at_r
from krl_train.data.pixels import PixelSet
from krl_train.worker import Worker

from .classification import outputs_of

__all__ = ["check_measurable", "evaluate_embedder"]


def check_measurable(labels: npt.NDArray[np.int64]) -> None:
    """Check that images with these labels, ``[N]``, tell embeddings of one class from those of another.

    Raises:
        DataError: No label is on two images, or all images have the same one.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if counts.max(initial=0) < 2:
        raise DataError("retrieval cannot be measured: no image has another one of its class; give two or more of each")
    if len(counts) < 2:
        raise DataError(
            f"retrieval cannot be measured: all {len(labels)} images are of one class, so that each finds its own; "
            "give images of two or more classes"
        )


@torch.no_grad()
def evaluate_embedder(network: nn.Module, data: PixelSet, worker: Worker, *, batch_size: int = 256) -> dict[str, Any]:
    """Measure a network of embeddings in float32: each image is looked for among all others.

    Args:
        network: Takes pixels ``[N, C, H, W]`` of uint8; it is in eval mode afterwards.
        data: The images.
        worker: Where the network is; each process takes every ``world``-th image, and all get the same answer.
        batch_size: Images in one step.

    Returns:
        ``count``, ``recall_at_1`` (share, 0 to 1, whose nearest other image is of the same class) with its standard
        error, ``recall_at_5``, and ``map_at_r`` (mean average precision among as many images as the class has others).

    Raises:
        DataError: See ``check_measurable``.
    """
    check_measurable(data.labels.numpy())
    kept = {"embeddings": CatMetric(), "labels": CatMetric()}  # of all processes, once they are computed
    for metric in kept.values():
        metric.to(worker.device)
    for found, of_these in outputs_of(network, data, worker, batch_size):
        kept["embeddings"].update(found)
        kept["labels"].update(of_these.double())
    embeddings, labels = (metric.compute().cpu().numpy() for metric in kept.values())
    truth = labels.astype("int64")
    matches, counted = label_matches(embeddings, truth, 5)
    precision = mean_average_precision_at_r(embeddings, truth)
    assert precision is not None  # noqa: S101  for the type checker: it was checked
    first = float(matches[counted, 0].mean())
    return {
        "count": int(counted.sum()),
        "recall_at_1": round(first, 6),
        "recall_at_1_standard_error": round(standard_error(first, int(counted.sum())), 6),
        "recall_at_5": round(float(matches[counted].any(axis=1).mean()), 6),
        "map_at_r": round(precision, 6),
    }

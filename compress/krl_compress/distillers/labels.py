"""Labels of a batch in which some images have none (label -1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import mean_over_processes

__all__ = ["binary_cross_entropy", "cross_entropy", "labels_or_answers"]


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of the labeled images of a batch, over all processes.

    Args:
        logits: ``[N, classes]``.
        labels: ``[N]`` of int64, -1 for an image without a label, which counts for nothing.
        label_smoothing: Share of the target that is spread evenly over the classes.
        class_weights: Weight of each class, ``[classes]``; ``None`` for equal ones.

    Returns:
        Scalar; 0, with a gradient of 0, where no image has a label. Over several processes, each one's part of the
        mean: the mean of the parts is that of the whole batch, however the labels are spread.
    """
    total = F.cross_entropy(
        logits, labels, class_weights, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    labeled = (labels >= 0).to(total.dtype)
    weights = labeled if class_weights is None else labeled * class_weights[labels.clamp(min=0)]
    count = mean_over_processes(weights.sum())
    return total / torch.where(count > 0, count, 1.0)


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of several labels: the mean over labels and over the labeled images of a batch.

    Args:
        logits: ``[N, labels]``.
        labels: ``[N, labels]``, 1 where an image has a label and 0 where not; a row of -1 for an image whose labels are
            not known, which counts for nothing.
        class_weights: Weight of the images that have a label, ``[labels]``; ``None`` for 1.

    Returns:
        Scalar; see ``cross_entropy`` for batches without labels and for several processes.
    """
    labeled = (labels[:, :1] >= 0).to(logits.dtype)
    targets = labels.clamp(min=0).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights, reduction="none")
    count = mean_over_processes(labeled.sum() * labels.shape[1])
    return (each * labeled).sum() / torch.where(count > 0, count, 1.0)


def labels_or_answers(labels: Tensor, teacher: Tensor) -> Tensor:
    """Return labels ``[N]`` with the teacher's most likely class in place of each -1.

    Args:
        labels: ``[N]`` of int64.
        teacher: Its logits, ``[N, classes]``.
    """
    return torch.where(labels < 0, teacher.argmax(1), labels)

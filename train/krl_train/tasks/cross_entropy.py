"""The cross-entropy of a batch that is spread over processes, or computed in parts."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["binary_cross_entropy", "cross_entropy"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    whole: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the labeled images of a batch, over all processes.

    Args:
        logits: ``[N, classes]``.
        labels: ``[N]`` of int64, -1 for an image without a label, which counts for nothing.
        label_smoothing: Share of the target that is spread evenly over the classes.
        class_weights: Weight of each class, ``[classes]``; ``None`` for equal ones.
        whole: The labels of this process's whole batch, ``[M]``, where ``labels`` are of a part of it.

    Returns:
        Scalar; 0, with a gradient of 0, where no image has a label. Over several processes, each one's part of the
        mean: the mean of the parts is that of the whole batch, however the labels are spread. Likewise for the parts of
        a batch, where the mean is weighted by their numbers of images.
    """
    total = F.cross_entropy(
        logits, labels, class_weights, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    counted = labels if whole is None else whole
    labeled = (counted >= 0).to(total.dtype)
    weights = labeled if class_weights is None else labeled * class_weights[counted.clamp(min=0)]
    count = _mean_over_processes(weights.mean()) * len(labels)
    return total / torch.where(count > 0, count, 1.0)


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None, whole: Tensor | None = None
) -> Tensor:
    """Return the binary cross-entropy of several labels: the mean over labels and over the labeled images of a batch.

    Args:
        logits: ``[N, labels]``.
        labels: ``[N, labels]``, 1 where an image has a label and 0 where not; a row of -1 for an image whose labels are
            not known, which counts for nothing.
        class_weights: Weight of the images that have a label, ``[labels]``; ``None`` for 1.
        whole: The labels of this process's whole batch, ``[M, labels]``, where ``labels`` are of a part of it.

    Returns:
        Scalar; see ``cross_entropy`` for batches without labels, for several processes and for parts of a batch.
    """
    labeled = (labels[:, :1] >= 0).to(logits.dtype)
    targets = labels.clamp(min=0).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights, reduction="none")
    counted = labels if whole is None else whole
    count = _mean_over_processes((counted[:, :1] >= 0).to(logits.dtype).mean()) * labels.numel()
    return (each * labeled).sum() / torch.where(count > 0, count, 1.0)


def _mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a number over the processes, without a gradient; the number itself where there is one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()

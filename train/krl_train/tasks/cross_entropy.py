"""The cross-entropy of a batch that is spread over processes, or computed in parts."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_entropy"]


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


def _mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a number over the processes, without a gradient; the number itself where there is one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()

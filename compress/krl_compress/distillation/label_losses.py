"""The loss of a network on the labels of its training images, part by part, for gradients without a training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from krl_train.data import PixelSet
from krl_train.tasks import Batch, Objective

from .job import MEASURED_LOSSES

__all__ = ["label_losses"]

_BATCH = 64  # images in one step: bounds memory, and gradients are sums over all


def label_losses(objective: Objective, images: PixelSet, device: torch.device) -> Iterator[Tensor]:
    """Yield the losses on parts of the labeled images, evenly spread over the set; their sum is the mean loss.

    Args:
        objective: A network and its loss of labels; it is in eval mode afterwards, and on the device.
        images: Training images; up to 1024 are looked at, without augmentation.
        device: Where to compute.
    """
    objective.to(device).eval()
    height, width = objective.network.preprocessing.shape[1:]
    known = np.flatnonzero(images.labeled.numpy())
    chosen = known[np.linspace(0, len(known) - 1, min(MEASURED_LOSSES, len(known))).astype(np.int64)]
    for first in range(0, len(chosen), _BATCH):
        indices, margin = chosen[first : first + _BATCH], images.margin
        pixels = images.pixels(indices)[:, :, margin : margin + height, margin : margin + width].to(device)
        batch = Batch(pixels, images.labels[indices].to(device), torch.from_numpy(indices), 0)
        yield objective(batch)["loss"] * (len(indices) / len(chosen))

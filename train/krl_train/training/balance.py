"""Classes with unlike numbers of images: named, and evened out if asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from krl_train.config import LoopConfig
from krl_train.data import PixelSet

__all__ = ["class_weights", "warn_of_imbalance"]

_log = logging.getLogger("krl")

_UNLIKE = 3.0  # times as many images in one class as in another: a judgment; from there on recall suffers visibly
_NAMED = 5  # rare classes that a message names


def class_weights(train: PixelSet, loop: LoopConfig) -> Tensor | None:
    """Return the weight of each class in the cross-entropy for ``--balance weights``: inverse to its images.

    Args:
        train: The training images.
        loop: Whether weights are asked for.

    Returns:
        ``[K]``, such that the mean over the labeled images is 1; ``None`` where they are not asked for.
    """
    if loop.balance != "weights":
        return None
    labels = train.labels[train.labels >= 0]
    counts = torch.bincount(labels).double().clamp(min=1)
    return (len(labels) / (len(counts) * counts)).float()


def warn_of_imbalance(train: PixelSet, labels: Sequence[str], loop: LoopConfig) -> None:
    """Name rare classes, and the option that helps, unless it is given.

    Args:
        train: The training images.
        labels: Class names.
        loop: Whether classes are evened out already.
    """
    counts = torch.bincount(train.labels[train.labels >= 0], minlength=len(labels)).tolist()
    most = max(counts)
    rare = sorted((count, label) for count, label in zip(counts, labels, strict=True) if most >= _UNLIKE * count)
    if loop.balance != "none" or not rare:
        return
    named = ", ".join(f"{label} {count}" for count, label in rare[:_NAMED])
    _log.warning(
        "classes have %d to %d training images (%s%s); --balance sampling or --balance weights helps the rare ones, as "
        "their recall shows",
        min(counts),
        most,
        named,
        ", …" if len(rare) > _NAMED else "",
    )

"""Classes with unlike numbers of images: named, and evened out if asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from krl_train.config import LoopConfig, OptimConfig
from krl_train.data import PixelSet, Source

__all__ = ["check_options", "class_weights", "warn_of_imbalance"]

_log = logging.getLogger("krl")

_UNLIKE = 3.0  # times as many images in one class as in another: a judgment; from there on recall suffers visibly
_NAMED = 5  # rare classes that a message names
_MOST_WEIGHT = 100.0  # of a label that one image in a hundred has: more makes single images decide over whole steps


def check_options(source: Source, optim: OptimConfig, loop: LoopConfig) -> None:
    """Refuse options that need one class for each image where there can be several labels.

    Raises:
        UsageError: One is given.
    """
    if optim.label_smoothing:
        source.require_one_class("--label-smoothing")
    if loop.balance == "sampling":
        source.require_one_class("--balance sampling")


def class_weights(train: PixelSet, loop: LoopConfig) -> Tensor | None:
    """Return the weight of each class in the cross-entropy for ``--balance weights``: inverse to its images.

    Args:
        train: The training images.
        loop: Whether weights are asked for.

    Returns:
        ``[K]``, such that the mean over the labeled images is 1; ``None`` where they are not asked for. Of multi-label
        data the weight of images that have a label: as many times as others do not have it, 100 at most.
    """
    if loop.balance != "weights":
        return None
    labels = train.labels[train.labeled]
    if train.multi_label:
        having = labels.sum(0, dtype=torch.int64).double()
        return ((len(labels) - having) / having.clamp(min=1)).clamp(1 / _MOST_WEIGHT, _MOST_WEIGHT).float()
    counts = torch.bincount(labels).double().clamp(min=1)
    return (len(labels) / (len(counts) * counts)).float()


def warn_of_imbalance(train: PixelSet, labels: Sequence[str], loop: LoopConfig) -> None:
    """Name rare classes, and the option that helps, unless it is given.

    Args:
        train: The training images.
        labels: Class names.
        loop: Whether classes are evened out already.
    """
    known = train.labels[train.labeled]
    if train.multi_label:
        missing = [
            label for label, count in zip(labels, known.sum(0, dtype=torch.int64).tolist(), strict=True) if not count
        ]
        if missing:
            _log.warning("no training image has %s; they cannot be learned", ", ".join(missing[:_NAMED]))
        return
    counts = torch.bincount(known, minlength=len(labels)).tolist()
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

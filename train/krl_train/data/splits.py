"""Both splits of a classifier's data set, read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig

from . import Augmentation, PixelSet, Source

__all__ = ["Training", "read_training"]


@dataclass(frozen=True)
class Training:
    """Data of a classifier's training, read.

    Attributes:
        source: Where it comes from.
        train: Training images.
        val: Validation images.
        augmentation: Makes the training views.
    """

    source: Source
    train: PixelSet
    val: PixelSet
    augmentation: Augmentation

    def describe(self) -> dict[str, Any]:
        """Return the record of the data for ``run.json``."""
        return self.source.describe({"train": self.train, "val": self.val})


def read_training(source: Source, preprocessing: Preprocessing, augment: AugmentConfig, seed: int) -> Training:
    """Read both splits of a data set.

    Args:
        source: The data set.
        preprocessing: From an image to ``uint8``.
        augment: How training views are made.
        seed: Seed of the views.

    Raises:
        DataError: A split is empty, or images cannot be used.
    """
    augmentation = Augmentation.resolve(augment, preprocessing, flip=source.flip, seed=seed)
    train = source.read("train", preprocessing, margin=augmentation.margin, limit=source.config.limit)
    if source.shots is not None:
        source.shots.report(train.labels.tolist(), source.labels)
    val = source.read("val", preprocessing, limit=source.config.val_limit)
    return Training(source, train, val, augmentation)

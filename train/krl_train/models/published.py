"""The input that published weights were trained with, as torchvision and timm state it; nothing is downloaded."""

from __future__ import annotations

from typing import Any

from krl_runtime.errors import require
from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["published_classes", "published_input"]


def published_input(name: str) -> Preprocessing | None:
    """Return the input of a network's published weights, RGB; ``None`` where there are no weights of it.

    Args:
        name: A torchvision classifier, whose default weights are meant, or ``"timm/NAME"``.

    Raises:
        UsageError: The weights take an input that krl does not make.
        MissingExtraError: timm is not installed.
    """
    return _of_timm(name) if name.startswith("timm/") else _of_torchvision(name)


def published_classes(name: str) -> int:
    """Return the number of classes of a network's published weights; of torchvision's they are ImageNet's 1000.

    Args:
        name: A torchvision classifier, or ``"timm/NAME"``.

    Raises:
        MissingExtraError: timm is not installed.
    """
    if not name.startswith("timm/"):
        return 1000
    timm = require("timm", extra="timm", purpose=f"model {name}")
    stated = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    return 1000 if stated is None else int(stated.num_classes)


def _of_torchvision(name: str) -> Preprocessing | None:
    models: Any = require("torchvision.models", extra="train", purpose=f"model {name}")
    try:
        transforms = models.get_model_weights(name).DEFAULT.transforms()
    except (ValueError, AttributeError):  # no such network, or one without weights
        return None
    height, width = transforms.crop_size[0], transforms.crop_size[-1]
    return Preprocessing(
        height=height,
        width=width,
        crop_fraction=min(1.0, min(height, width) / transforms.resize_size[0]),
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _of_timm(name: str) -> Preprocessing | None:
    timm = require("timm", extra="timm", purpose=f"model {name}")
    stated = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    if stated is None or not stated.has_weights:
        return None
    _, height, width = stated.input_size
    stretched = stated.crop_mode == "squash"
    return Preprocessing(
        height=height,
        width=width,
        resize="stretch" if stretched else "crop",
        crop_fraction=1.0 if stretched else min(1.0, stated.crop_pct),
        interpolation=stated.interpolation,
        mean=tuple(stated.mean),
        std=tuple(stated.std),
    )

"""Options of transfer learning: what a training starts from, and how the weights from there are moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

__all__ = ["TransferConfig"]


@dataclass(frozen=True)
class TransferConfig:
    """The start of a training."""

    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Start from the weights of a run of the same network; --model may then be left out, and other labels get a new
    last layer. Classifiers: or from published ImageNet weights, by the name of a network of torchvision or timm/NAME,
    with --pretrained."""

"""Views that are mixed with others of their batch."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

__all__ = ["cut_in", "mix_in"]


def mix_in(views: Tensor, alpha: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Return mixtures of each view and its neighbor (mixup, https://arxiv.org/abs/1710.09412), and the view's share.

    Args:
        views: ``[N, C, H, W]``, 0 to 255.
        alpha: Parameter of the Beta distribution.
        random: Source of the share.

    Returns:
        ``[N, C, H, W]`` of float32, and the share, 0.5 to 1.
    """
    share = float(random.beta(alpha, alpha))
    share = max(share, 1 - share)
    mixed = views.float()
    return share * mixed + (1 - share) * mixed.roll(1, 0), share


def cut_in(views: Tensor, alpha: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Return views with a rectangle of their neighbor (CutMix, https://arxiv.org/abs/1905.04899), and what is left.

    The rectangle has the proportions of the view, a random center, and is cut off at the view's border, as in
    torchvision.

    Args:
        views: ``[N, C, H, W]``, 0 to 255.
        alpha: Parameter of the Beta distribution.
        random: Source of the rectangle.

    Returns:
        ``[N, C, H, W]`` of the same dtype, and the share of the view's pixels that are its own, 0 to 1.
    """
    height, width = views.shape[2:]
    half = 0.5 * math.sqrt(1 - float(random.beta(alpha, alpha)))
    row, column = int(random.integers(height)), int(random.integers(width))
    top, bottom = max(0, row - int(half * height)), min(height, row + int(half * height))
    left, right = max(0, column - int(half * width)), min(width, column + int(half * width))
    mixed = views.clone()
    mixed[:, :, top:bottom, left:right] = views.roll(1, 0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)

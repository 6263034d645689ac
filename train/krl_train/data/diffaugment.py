"""Differentiable augmentation of real and generated images alike, for GANs on small sets.

https://arxiv.org/abs/2006.10738. Random numbers come from torch's generator, which the training loop seeds anew for
each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError

__all__ = ["DIFFAUGMENT", "diffaugment"]

DIFFAUGMENT = ("color", "translation", "cutout")


def diffaugment(pixels: Tensor, policy: Sequence[str]) -> Tensor:
    """Augment images so that gradients flow through.

    Args:
        pixels: ``[N, C, H, W]``, floating point, 0 to 255.
        policy: Any of ``"color"`` (brightness by up to half the range, saturation times 0 to 2, contrast times 0.5 to
            1.5), ``"translation"`` (by up to an eighth of the side, black comes in) and ``"cutout"`` (a black square of
            half the side), in that order.

    Returns:
        ``[N, C, H, W]``.

    Raises:
        UsageError: A name is not known.
    """
    unknown = sorted(set(policy) - set(DIFFAUGMENT))
    if unknown:
        raise UsageError(f"DiffAugment has no {', '.join(unknown)}; accepted: {', '.join(DIFFAUGMENT)}")
    if "color" in policy:
        pixels = _color(pixels)
    if "translation" in policy:
        pixels = _translate(pixels)
    return _cut_out(pixels) if "cutout" in policy else pixels


def _color(pixels: Tensor) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, len(pixels), 1, 1, 1, device=pixels.device, dtype=pixels.dtype)
    pixels = pixels + 255 * (brightness - 0.5)
    gray = pixels.mean(1, keepdim=True)
    pixels = gray + (pixels - gray) * 2 * saturation
    mean: Tensor = pixels.mean((1, 2, 3), keepdim=True)
    return torch.add(mean, (pixels - mean) * (contrast + 0.5))


def _offsets(count: int, largest: int, device: torch.device) -> Tensor:
    return torch.randint(-largest, largest + 1, (count, 1), device=device)


def _translate(pixels: Tensor) -> Tensor:
    count, _, height, width = pixels.shape
    rows = torch.arange(height, device=pixels.device) + _offsets(count, height // 8, pixels.device)
    columns = torch.arange(width, device=pixels.device) + _offsets(count, width // 8, pixels.device)
    padded = F.pad(pixels, (1, 1, 1, 1))  # whatever lies outside comes from the black rim
    rows, columns = (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1)
    samples = torch.arange(count, device=pixels.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(pixels: Tensor) -> Tensor:
    count, _, height, width = pixels.shape
    outside = []
    for side in (height, width):
        first = torch.randint(0, side + 1, (count, 1), device=pixels.device) - side // 4
        position = torch.arange(side, device=pixels.device)
        outside.append((position < first) | (position >= first + side // 2))
    keep = outside[0][:, :, None] | outside[1][:, None, :]
    return pixels * keep[:, None]

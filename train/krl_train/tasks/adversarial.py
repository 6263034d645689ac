"""Losses of generator and discriminator: pure functions of logits and images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError

__all__ = ["discriminator_loss", "generator_loss", "r1_penalty"]


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """Return the loss of the generator.

    ``"non-saturating"``: mean softplus(-D(fake)) (https://arxiv.org/abs/1406.2661); ``"hinge"``: -mean D(fake)
    (https://arxiv.org/abs/1705.02894).

    Args:
        kind: The loss.
        fake: Logits of generated images, ``[N]``.

    Raises:
        UsageError: The kind is not known.
    """
    if kind == "non-saturating":
        return F.softplus(-fake).mean()
    if kind == "hinge":
        return -fake.mean()
    raise UsageError(f"adversarial loss {kind!r} is not known; accepted: non-saturating, hinge")


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of the discriminator.

    ``"non-saturating"``: mean softplus(-D(real)) + mean softplus(D(fake)); ``"hinge"``: mean max(0, 1 - D(real)) +
    mean max(0, 1 + D(fake)).

    Args:
        kind: The loss.
        real: Logits of real images, ``[N]``.
        fake: Logits of generated images, ``[N]``.

    Raises:
        UsageError: The kind is not known.
    """
    if kind == "non-saturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    raise UsageError(f"adversarial loss {kind!r} is not known; accepted: non-saturating, hinge")


def r1_penalty(discriminator: Callable[[Tensor], Tensor], pixels: Tensor, unit: Tensor | float = 1.0) -> Tensor:
    """Return the mean squared norm of the discriminator's gradient at real images (https://arxiv.org/abs/1801.04406).

    Args:
        discriminator: Maps images to logits ``[N]``.
        pixels: Real images ``[N, C, H, W]``.
        unit: How many of the images' units make one of those that the gradient is taken in, broadcast over images.

    Returns:
        A scalar that can be differentiated again; to be multiplied by gamma / 2.
    """
    pixels = pixels.detach().float().requires_grad_(True)
    logits = discriminator(pixels)
    (gradient,) = torch.autograd.grad(logits.sum(), pixels, create_graph=True)
    return (gradient * unit).square().sum((1, 2, 3)).mean()

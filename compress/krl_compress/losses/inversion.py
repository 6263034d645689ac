"""Losses of a generator that has a classifier alone to learn from (DAFL, https://arxiv.org/abs/1904.01186).

All take what the frozen classifier makes of generated images, and have their gradient flow back through it to them.
They are computed in float32 at least and return one scalar, a mean over the images.
"""

from __future__ import annotations

from torch import Tensor

from ._common import full_precision

__all__ = ["activation", "class_balance", "one_hot"]


@full_precision
def one_hot(logits: Tensor) -> Tensor:
    """Return −mean log p_y with y the classifier's own answer: its answers shall be sure.

    Args:
        logits: ``[N, C]``.

    Returns:
        A scalar in nats, 0 or more.
    """
    return -logits.log_softmax(1).amax(1).mean()


@full_precision
def activation(features: Tensor) -> Tensor:
    """Return −mean |f|: images that are like those of the training make the classifier's features large.

    The mean is over images and features, where the paper sums over the features.

    Args:
        features: What the last linear layer takes, ``[N, D]``.

    Returns:
        A scalar, 0 or less.
    """
    return -features.abs().mean()


@full_precision
def class_balance(logits: Tensor) -> Tensor:
    """Return Σ_c p̄_c log p̄_c with p̄ the mean of the softmax over the batch: all classes shall come, equally often.

    Args:
        logits: ``[N, C]``.

    Returns:
        A scalar in nats, −log C (best) to 0.
    """
    mean = logits.softmax(1).mean(0)
    return (mean * mean.clamp(min=1e-12).log()).sum()

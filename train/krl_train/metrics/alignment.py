"""How alike two networks see the same inputs: linear CKA of layers, and the agreement of attention maps.

CKA is that of Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414). Over batches it is the mean of the unbiased
estimator of HSIC, as Nguyen et al. 2021 (https://arxiv.org/abs/2010.15327) compute it: its expectation does not depend
on the size of a batch, so that no Gram matrix of all inputs is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LEAST_BATCH", "MinibatchCKA", "attention_agreement", "gram"]

LEAST_BATCH = 4
"""Inputs that a batch needs: the unbiased estimator of HSIC divides by (n - 1), (n - 2) and (n - 3)."""


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrix of features without its diagonal, which the unbiased estimator leaves out.

    Args:
        features: ``[N, ...]`` of floating point; each input's is flattened. The mean is subtracted, which HSIC ignores
            and float32 does not.

    Returns:
        ``[N, N]`` of float64.
    """
    rows = features.flatten(1).float()
    rows = rows - rows.mean(0)
    return (rows @ rows.T).double().fill_diagonal_(0)


class MinibatchCKA:
    """Linear CKA between all layers of one network and all layers of another, gathered batch by batch."""

    def __init__(self) -> None:
        self.batches = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            first: For each layer of the first network its ``gram``, ``[N, N]``, N at least ``LEAST_BATCH``.
            second: The same of the second network, for the same inputs in the same order.
        """
        mine, theirs = torch.stack(list(first)), torch.stack(list(second))
        own = [torch.stack([_hsic(layer[None], layer[None])[0, 0] for layer in each]) for each in (mine, theirs)]
        found = (_hsic(mine, theirs), *own)
        self._sums = found if self._sums is None else tuple(a + b for a, b in zip(self._sums, found, strict=True))  # type: ignore[assignment]
        self.batches += 1

    def compute(self) -> Tensor:
        """Return CKA ``[layers of the first, layers of the second]`` of float64, 1 for features that are alike.

        It is about 0, and may be a little below, for features that have nothing in common. A layer that gives the same
        for all inputs has none: NaN.
        """
        assert self._sums is not None  # noqa: S101  for the type checker: there was a batch
        both, mine, theirs = self._sums
        norm = (mine[:, None] * theirs[None]).sqrt()
        nothing = (mine[:, None] <= 0) | (theirs[None] <= 0)
        return torch.where(nothing, torch.nan, both / norm).cpu()


def _hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased HSIC of each pair from ``[S, N, N]`` and ``[T, N, N]`` with zero diagonals, ``[S, T]``."""
    count = first.shape[-1]
    trace = first.flatten(1) @ second.flatten(1).T  # of the products: the matrices are symmetric
    rows, others = first.sum(-1), second.sum(-1)
    totals = rows.sum(-1)[:, None] * others.sum(-1)[None]
    found: Tensor = trace + totals / ((count - 1) * (count - 2)) - 2 / (count - 2) * (rows @ others.T)
    return found / (count * (count - 3))


def attention_agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how alike two feature maps look at each image: the cosine between their attention maps.

    The attention map is the mean over the channels of the squares (Zagoruyko and Komodakis 2017,
    https://arxiv.org/abs/1612.03928). The larger one is averaged down to the smaller.

    Args:
        student: ``[N, C, H, W]``.
        teacher: ``[N, C', H', W']``.

    Returns:
        ``[N]`` of float32, 0 to 1; 0 where a map is zero everywhere.
    """
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    maps = (each.float().square().mean(1, keepdim=True) for each in (student, teacher))
    first, second = (F.adaptive_avg_pool2d(each, size).flatten(1) for each in maps)
    return (_unit(first) * _unit(second)).sum(1)


def _unit(rows: Tensor) -> Tensor:
    """Return rows at length 1, however small their numbers are; a row of zeros stays zero."""
    largest = rows.amax(1, keepdim=True)
    return F.normalize(rows / largest.clamp(min=torch.finfo(rows.dtype).tiny), dim=1)

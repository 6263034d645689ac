"""Relations among the samples of a batch, as losses compare them between two networks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["relative_distances"]


def relative_distances(embeddings: Tensor) -> Tensor:
    """Return the distances between all samples, divided by the mean of those that are not 0.

    Args:
        embeddings: ``[N, D]`` of float32 or float64.

    Returns:
        ``[N, N]``, 0 or more; all 0 where all embeddings are equal.
    """
    # Differences first: |a|² + |b|² − 2ab cancels, and cdist's gradient is 0, not NaN, for equal points.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)

"""Sharing a batch between processes, for losses that couple its samples."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_batch"]


def gather_batch(tensor: Tensor) -> Tensor:
    """Return the whole batch, the processes' shares interleaved as one process would have had them.

    Gradients flow back to each process's share. Each process then computes the same loss of the whole batch, and
    the mean of the gradients over the processes, which distributed training takes, is that loss's gradient.

    Args:
        tensor: This process's share, ``[n, …]``; every process has the same shape.

    Returns:
        ``[n × processes, …]``; the tensor itself where there is one process.
    """
    if not _are_several():
        return tensor
    if tensor.requires_grad:
        from torch.distributed.nn.functional import all_gather

        shares = list(all_gather(tensor.contiguous()))  # type: ignore[no-untyped-call]
    else:
        shares = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, tensor.contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)  # sample i of rank r was sample i * processes + r


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

"""How much each channel of a unit matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from krl_compress.config import Criterion

from .units import Slice, Unit, rows

__all__ = ["gradients", "lowest", "scores"]

_WEIGHED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def scores(
    backbone: nn.Module, unit: Unit, criterion: Criterion, slopes: Mapping[str, Tensor] | None = None
) -> Tensor | None:
    """Return for each channel of a unit how much it matters, ``[channels]`` of float64, in no unit of measure.

    Each layer of the unit counts the same: its numbers are divided by their mean.

    Args:
        backbone: The network.
        unit: The channels.
        criterion: ``l1`` and ``l2``: norm of the weights that make the channel (Li et al. 2017,
            https://arxiv.org/abs/1608.08710). ``group``: L2 norm of these, of the weights that read the channel and of
            the factors of batch normalization (Fang et al. 2023, https://arxiv.org/abs/2301.12900). ``bn``: factors of
            batch normalization (Liu et al. 2017, https://arxiv.org/abs/1708.06519). ``taylor``: weights times
            gradients, the change of the loss to first order (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771).
        slopes: For ``taylor``, see ``gradients``.

    Returns:
        ``None`` where the unit has nothing that the criterion looks at.
    """
    found = []
    for piece in unit.slices:
        layer = backbone.get_submodule(piece.layer)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or not _counts(layer, piece, criterion):
            continue
        values = weight.detach().double()
        if criterion == "taylor":
            values = values * (slopes or {})[f"{piece.layer}.weight"].double()
        each = rows(layer, piece.side, values).abs()
        size = each.sum(1) if criterion in ("l1", "taylor", "bn") else each.square().sum(1).sqrt()
        found.append(_by_root(size, piece, unit.channels))
    if not found:
        return None
    return torch.stack([each / each.mean().clamp_min(torch.finfo(each.dtype).tiny) for each in found]).mean(0)


def _counts(layer: nn.Module, piece: Slice, criterion: Criterion) -> bool:
    normalizes = isinstance(layer, _BatchNorm)
    if criterion == "bn":
        return normalizes
    if criterion == "group":
        return normalizes or isinstance(layer, _WEIGHED)
    return piece.side != "in" and (criterion == "taylor" or isinstance(layer, _WEIGHED))


def _by_root(size: Tensor, piece: Slice, channels: int) -> Tensor:
    """Return the sums of a layer's numbers over the indices that belong to each channel of the unit."""
    total = torch.zeros(channels, dtype=size.dtype)
    return total.index_add_(0, torch.tensor(piece.roots), size[list(piece.channels)].cpu())


def gradients(network: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the gradient of the sum of losses, by the names of the backbone's parameters, on the CPU.

    Args:
        network: The network around the backbone; it is on the CPU afterwards.
        losses: Scalars that were computed with it, one after the other.
    """
    network.zero_grad()
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    found = {
        name: torch.zeros_like(value, device="cpu") if value.grad is None else value.grad.cpu().clone()
        for name, value in network.get_submodule("backbone").named_parameters()
    }
    network.zero_grad(set_to_none=True)
    network.cpu()
    return found


def lowest(score: Sequence[float] | Tensor, parts: int, gone: int) -> set[int]:
    """Return the channels that matter least: as many of each part.

    Args:
        score: See ``scores``.
        parts: Number of consecutive parts.
        gone: Channels to remove, a multiple of ``parts``.
    """
    values = torch.as_tensor(score).reshape(parts, -1)
    order = values.argsort(dim=1, stable=True)[:, : gone // parts]
    return set((order + torch.arange(parts)[:, None] * values.shape[1]).flatten().tolist())

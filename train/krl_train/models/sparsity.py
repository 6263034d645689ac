"""Weights that stay zero: layers of a sparse network are marked, and trainings hold their zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from krl_runtime.errors import ModelError

__all__ = ["SPARSE", "Zeros", "mark_sparse"]

SPARSE = "sparse"
"""Argument of a ``ModelSpec``: names of the layers of the backbone whose weights of 0 stay 0 in any training."""

_MARK = "holds_zeros"  # attribute of a layer


def mark_sparse(network: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Mark the layers of a backbone that the arguments of its ``ModelSpec`` call sparse.

    Raises:
        ModelError: A layer is not there, or has no weights.
    """
    layers = dict(network.named_modules())
    for name in arguments.get(SPARSE, ()):
        if not isinstance(getattr(layers.get(name), "weight", None), Tensor):
            raise ModelError(f"the record of the sparse network names a layer {name!r} that the network does not have")
        setattr(layers[name], _MARK, True)


class Zeros:
    """The weights of marked layers that are zero now.

    Args:
        module: Has the layers, with their weights.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = [layer.weight for layer in module.modules() if getattr(layer, _MARK, False)]
        self._kept = [(weight, weight.detach() != 0) for weight in weights if isinstance(weight, Tensor)]

    @torch.no_grad()
    def hold(self) -> None:
        """Make them zero again, after an optimization step."""
        for weight, kept in self._kept:
            weight.mul_(kept)

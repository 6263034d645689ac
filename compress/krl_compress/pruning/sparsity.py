"""2:4 sparsity: of each four consecutive weights along the input channels two are zero.

GPUs from Ampere on skip them (Mishra et al. 2021, https://arxiv.org/abs/2104.08378).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from krl_train.models import ModelSpec
from krl_train.models.sparsity import SPARSE, mark_sparse

__all__ = ["as_sparse", "is_two_of_four", "sparse_layers", "sparsity_of"]

_GROUP, _KEPT = 4, 2  # the pattern 2:4


def sparse_layers(backbone: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Return the names of the layers that can be sparse, and why the other ones with weights cannot."""
    found, left_alone = [], {}
    for name, layer in backbone.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        if isinstance(layer, nn.ConvTranspose2d):
            left_alone[name] = "it is a transposed convolution, whose weights are in another order"
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            left_alone[name] = f"it is a convolution of {layer.groups} groups"
        elif inputs % _GROUP:
            left_alone[name] = f"its {inputs} input channels are no multiple of {_GROUP}"
        else:
            found.append(name)
    return found, left_alone


@torch.no_grad()
def as_sparse(backbone: nn.Module, spec: ModelSpec, layers: Sequence[str]) -> ModelSpec:
    """Zero the two smallest of each four weights, in place.

    Args:
        backbone: The network.
        spec: Its record.
        layers: Names of the layers; see ``sparse_layers``.

    Returns:
        The record of the sparse network, whose zeros trainings hold.
    """
    for name in layers:
        weight = backbone.get_submodule(name).get_parameter("weight")
        groups = weight.reshape(len(weight), -1, _GROUP, *weight.shape[2:])
        largest = groups.abs().topk(_KEPT, dim=2).indices
        groups.mul_(torch.zeros_like(groups).scatter_(2, largest, 1))
        weight.copy_(groups.reshape(weight.shape))
    mark_sparse(backbone, {SPARSE: layers})
    return replace(spec, arguments={**spec.arguments, SPARSE: list(layers)})


def is_two_of_four(weight: Tensor) -> bool:
    """Whether at most two of each four weights along the input channels are not zero.

    Args:
        weight: Of a layer, outputs and inputs first.
    """
    if weight.shape[1] % _GROUP:
        return False
    groups = weight.reshape(len(weight), -1, _GROUP, *weight.shape[2:])
    return int((groups != 0).sum(2).max()) <= _KEPT


def sparsity_of(state: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Any]:
    """Return ``"layers"``, the number of layers that are 2:4, and ``"zeros"``, the share of all weights that are 0.

    Args:
        state: State of a backbone.
        layers: Names of the layers that should be.
    """
    weights = [value for name, value in state.items() if name.endswith("weight") and value.ndim > 1]
    zeros = sum(int((value == 0).sum()) for value in weights)
    sparse = sum(is_two_of_four(state[f"{name}.weight"]) for name in layers)
    return {"layers": sparse, "zeros": zeros / max(1, sum(value.numel() for value in weights))}

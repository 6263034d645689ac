"""Widths of a pruned network: the original with fewer channels in some of its layers, made again from its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from krl_runtime.errors import ModelError

from .sparsity import SPARSE, mark_sparse

__all__ = ["PRUNED", "THINNED", "cut_as_recorded", "set_widths", "widths_of"]

PRUNED = "pruned"
"""Argument of a ``ModelSpec``: the widths of a pruned network, see ``set_widths``."""

THINNED = (PRUNED, SPARSE)
"""Arguments of a ``ModelSpec`` that belong to weights which were pruned; a network by its name alone has none."""

_CONVOLUTION = ("in_channels", "out_channels", "groups")
_LINEAR = ("in_features", "out_features")
_NORMALIZATION = ("num_features",)  # batch and instance normalization
_ACTIVATION = ("num_parameters",)  # PReLU with a slope for each channel


def widths_of(module: nn.Module) -> dict[str, int]:
    """Return the numbers that say how wide a layer is, by the names of its attributes; none for other modules."""
    return {name: int(getattr(module, name)) for name in _attributes(module)}


def cut_as_recorded(network: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Cut a backbone to the widths that the arguments of its ``ModelSpec`` have, and mark its sparse layers.

    Raises:
        ModelError: See ``set_widths`` and ``mark_sparse``.
    """
    if PRUNED in arguments:
        set_widths(network, arguments[PRUNED])
    mark_sparse(network, arguments)


def set_widths(network: nn.Module, widths: Mapping[str, Mapping[str, int]]) -> None:
    """Cut layers of a network to widths, in place; their weights are to be loaded afterwards.

    Args:
        network: As its name makes it.
        widths: For each layer, by name, the attributes that ``widths_of`` returns, or some of them.

    Raises:
        ModelError: A layer is not there, is not one that has widths, or cannot have these.
    """
    layers = dict(network.named_modules())
    for name, values in widths.items():
        layer = layers.get(name)
        if layer is None:
            raise ModelError(f"the record of the pruned network names a layer {name!r} that the network does not have")
        known = widths_of(layer)
        wrong = [
            f"{key}={value!r}"
            for key, value in values.items()
            if key not in known or not isinstance(value, int) or not 1 <= value <= known[key]
        ]
        if wrong:
            raise ModelError(
                f"the record of the pruned network gives layer {name} ({type(layer).__name__}) {', '.join(wrong)}; "
                f"accepted: {', '.join(f'{key} of 1 to {value}' for key, value in known.items()) or 'nothing'}"
            )
        for key, value in values.items():
            setattr(layer, key, value)
        _cut(name, layer)


def _attributes(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return _CONVOLUTION
    if isinstance(module, nn.Linear):
        return _LINEAR
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return _ACTIVATION
    return _NORMALIZATION if isinstance(module, _NormBase) else ()


def _cut(name: str, layer: nn.Module) -> None:
    """Give the tensors of a layer the shapes that its attributes say."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
            raise ModelError(
                f"the record of the pruned network gives layer {name} {layer.in_channels} to {layer.out_channels} "
                f"channels, which {layer.groups} groups do not divide"
            )
        wide = (layer.out_channels, layer.in_channels // layer.groups)
        if isinstance(layer, nn.ConvTranspose2d):
            wide = (layer.in_channels, layer.out_channels // layer.groups)
        _cut_tensor(layer, "weight", (*wide, *layer.weight.shape[2:]))
        _cut_tensor(layer, "bias", (layer.out_channels,))
    elif isinstance(layer, nn.Linear):
        _cut_tensor(layer, "weight", (layer.out_features, layer.in_features))
        _cut_tensor(layer, "bias", (layer.out_features,))
    elif isinstance(layer, nn.PReLU):
        _cut_tensor(layer, "weight", (layer.num_parameters,))
    elif isinstance(layer, _NormBase):
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            _cut_tensor(layer, tensor, (layer.num_features,))


def _cut_tensor(layer: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    tensor: Tensor | None = getattr(layer, name)
    if tensor is None:
        return
    cut = tensor.detach()[tuple(slice(0, size) for size in shape)].clone()
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(cut, requires_grad=tensor.requires_grad))
    else:
        with torch.no_grad():
            setattr(layer, name, cut)

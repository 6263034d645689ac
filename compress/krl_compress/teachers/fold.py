"""Folding batch normalization into the convolution before it, in a network that is not trained any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["fold_batch_norm"]

_ROUNDING = 1e-3  # relative: folding changes the rounding of float32, by far less; a wrong fold changes more
_Pair: TypeAlias = tuple[nn.Conv2d, nn.BatchNorm2d, str]


@torch.no_grad()
def fold_batch_norm(network: nn.Module, example: Tensor) -> int:
    """Fold in place what can be folded; the module names stay, a folded normalization becomes an identity.

    Which convolution feeds which normalization is seen in one forward pass; what changes the answer is undone (a
    convolution's result may be used elsewhere, too).

    Args:
        network: In eval mode, frozen.
        example: An input of it; few and small ones are enough.

    Returns:
        The number of normalizations that were folded.
    """
    expected = network(example)
    if not expected.isfinite().all():  # the forward pass reports it
        return 0
    return _fold(network, example, expected, _pairs(network, example))


def _fold(network: nn.Module, example: Tensor, expected: Tensor, pairs: Sequence[_Pair]) -> int:
    """Fold these; where the answer changes undo it, and try each half alone."""
    if not pairs:
        return 0
    kept = [(convolution, convolution.weight, convolution.bias) for convolution, _, _ in pairs]
    for convolution, norm, name in pairs:
        assert norm.running_mean is not None  # noqa: S101  for the type checker: _pairs looked
        assert norm.running_var is not None  # noqa: S101
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        _replace(network, name, nn.Identity())
    if torch.allclose(network(example), expected, rtol=_ROUNDING, atol=_ROUNDING * float(expected.abs().max())):
        return len(pairs)
    for (convolution, weight, bias), (_, norm, name) in zip(kept, pairs, strict=True):
        convolution.weight, convolution.bias = weight, bias
        _replace(network, name, norm)
    half = len(pairs) // 2
    return sum(_fold(network, example, expected, part) for part in (pairs[:half], pairs[half:]) if half)


def _pairs(network: nn.Module, example: Tensor) -> list[_Pair]:
    """Return the convolutions whose very output a normalization takes, each called once, with the latter's name."""
    made: list[tuple[Tensor, nn.Conv2d]] = []
    taken: list[tuple[Tensor, nn.BatchNorm2d, str]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not is_parametrized(module):
            hooks.append(module.register_forward_hook(lambda conv, _, output: made.append((output, conv))))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(
                module.register_forward_pre_hook(lambda norm, inputs, name=name: taken.append((inputs[0], norm, name)))
            )
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    # The tensors are held until here, so that no two of them share an identity.
    makers = {id(output): convolution for output, convolution in made}
    calls = [id(module) for _, module in made] + [id(norm) for _, norm, _ in taken]
    found = [(makers[id(value)], norm, name) for value, norm, name in taken if id(value) in makers]
    once = [pair for pair in found if calls.count(id(pair[0])) == calls.count(id(pair[1])) == 1]
    uses = [id(pair[0]) for pair in once]
    return [pair for pair in once if uses.count(id(pair[0])) == 1]


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)

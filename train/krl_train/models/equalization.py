"""Channels of an activation brought to like magnitudes before scales are learned, which changes nothing but rounding.

An activation has one INT8 scale for all of its channels, and training does not find its way out where one outlier
channel leaves a few levels to the others. Where only a ReLU stands between two convolutions, a channel can be divided
by a factor in the weights of the first and multiplied by it in those of the second (Nagel et al., 2019,
https://arxiv.org/abs/1906.04721); ``krl-deploy quantize`` does the same to a graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from krl_runtime.int8 import LARGEST_FACTOR, OUTLIER_RATIO

from .quantizers import Quantizer

__all__ = ["equalize"]

_RECTIFIERS = (F.relu, torch.relu)


@torch.no_grad()
def equalize(graph: fx.GraphModule) -> int:
    """Scale the weights around each activation of which one channel is much larger than the median one.

    Args:
        graph: With quantizers that have seen real inputs; what they have seen is scaled as well.

    Returns:
        How many activations were equalized.
    """
    count = 0
    for node in graph.graph.nodes:
        quantizer = _module(graph, node)
        between = _convolutions(graph, node) if isinstance(quantizer, Quantizer) else None
        if not isinstance(quantizer, Quantizer) or between is None or quantizer.largest.ndim != 1:
            continue
        before, after = between
        alive = quantizer.largest > 0
        if not alive.any() or quantizer.largest.max() <= OUTLIER_RATIO * quantizer.largest[alive].median():
            continue
        factor = _factor(quantizer.largest, after)
        rows = factor.reshape(-1, 1, 1, 1)
        before.weight.div_(rows)
        if before.bias is not None:
            before.bias.div_(factor)
        after.weight.mul_(rows if after.groups > 1 else factor.reshape(1, -1, 1, 1))
        quantizer.largest.div_(factor)
        count += 1
    return count


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _convolutions(graph: fx.GraphModule, quantizer: fx.Node) -> tuple[nn.Conv2d, nn.Conv2d] | None:
    """Return the convolutions before and behind a quantizer, if nothing else reads what stands between them."""
    source = quantizer.args[0]
    if isinstance(source, fx.Node) and (source.target in _RECTIFIERS or isinstance(_module(graph, source), nn.ReLU)):
        if len(source.users) != 1:
            return None
        source = source.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1 or len(quantizer.users) != 1:
        return None
    before, after = _module(graph, source), _module(graph, next(iter(quantizer.users)))
    if not isinstance(before, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        return None
    plain = after.groups == 1 or after.groups == after.in_channels == after.out_channels
    return (before, after) if plain else None


def _factor(largest: Tensor, after: nn.Conv2d) -> Tensor:
    """Return the factors that channels are divided by; a channel without signal keeps its factor of 1."""
    reading = torch.ones_like(largest) if after.groups > 1 else after.weight.abs().amax((0, 2, 3))
    alive = (largest > 0) & (reading > 0)
    ratio = largest[alive] / reading[alive]
    ratio = ratio if after.groups > 1 else ratio.sqrt()
    factor = torch.ones_like(largest)
    factor[alive] = (ratio / ratio.log().mean().exp()).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return factor

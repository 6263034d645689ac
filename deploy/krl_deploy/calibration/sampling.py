"""Samples of large activations, which the graph itself takes: one value of each tile of each channel.

Reading whole activations takes several times as long as computing them. A histogram of many images needs only some
values of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.operators import CONVOLUTIONS

__all__ = ["add_samples", "image_tensors", "sample_of", "tile", "values_needed"]

# Values of the sample beyond an end of a percentile: by chance 16 % more or fewer, which moves the end of a normal
# distribution by 1 %. Other images move it by more.
_BEYOND = 40
_LEAST = 1 << 22  # values of the sample, also where a small percentile needs fewer: 512 for each bin


def values_needed(share: float) -> float:
    """Return how many values a histogram needs for a percentile.

    Args:
        share: Percentage of the values between the ends.

    Example:
        >>> round(values_needed(99.999)), values_needed(100.0)
        (8000000, inf)
    """
    return max(_LEAST, 200 * _BEYOND / (100 - share)) if share < 100 else math.inf


def image_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the tensors ``[N, C, H, W]`` that a convolution reads or makes; the axes of others may mean anything."""
    graph = GraphEditor(model)
    found = {name for node in graph.nodes if node.op_type in CONVOLUTIONS for name in (node.input[0], node.output[0])}
    return {name for name in found if len(graph.shape(name) or ()) == 4}


def tile(shape: Sequence[int], count: int, needed: float) -> tuple[int, int]:
    """Return the height and width of the tiles to take one value of; they cover the activation without a rest.

    Args:
        shape: Shape of an activation, ``[N, C, H, W]``.
        count: Number of all images.
        needed: Number of values to take at least, if there are so many.

    Example:
        >>> tile((1, 96, 112, 112), 512, 8e6), tile((1, 16, 32, 32), 512, 8e6)
        ((8, 8), (1, 1))
    """
    height, width = shape[2:]
    surplus = math.prod(shape[1:]) * count / needed
    across = _divisor(width, math.sqrt(surplus))
    return _divisor(height, surplus / across), across


def _divisor(size: int, limit: float) -> int:
    """Return the largest divisor of a size up to a limit, at least 1."""
    return max(each for each in range(1, size + 1) if size % each == 0 and each <= max(1, limit))


def sample_of(name: str) -> str:
    """Return the name of the sample of a tensor."""
    return f"{name}::sample"


def add_samples(model: onnx.ModelProto, tiles: Mapping[str, tuple[int, int, int]]) -> None:
    """Add the samples of tensors to a model.

    A convolution takes them: its weight for a channel is 1 at one place of the tile and 0 elsewhere. ONNX Runtime
    runs it in its own layout for convolutions, from which whole activations are costly to bring back. A value that is
    not finite makes the sample of its tile NaN, wherever in the tile it is. The places differ from channel to channel,
    so that neither borders nor a pattern of the network's upsampling count more than they should.

    Args:
        model: The model.
        tiles: Channels of each tensor, and height and width of its tiles.
    """
    rng = np.random.default_rng(0)  # the same places every time
    for name, (channels, height, width) in tiles.items():
        weight = np.zeros((channels, height * width), np.float32)
        weight[np.arange(channels), rng.integers(0, height * width, channels)] = 1
        weight_name = f"{name}::places"
        model.graph.initializer.append(numpy_helper.from_array(weight.reshape(channels, 1, height, width), weight_name))
        size = [height, width]
        model.graph.node.append(
            helper.make_node(
                "Conv", [name, weight_name], [sample_of(name)], kernel_shape=size, strides=size, group=channels
            )
        )

"""Cross-layer equalization: channels of an activation scaled to like magnitudes, at no cost and with equal outputs.

An activation has one INT8 scale for all of its channels, so one outlier channel leaves few levels to the small ones.
If only a ReLU stands between two convolutions, the weights of the first can divide a channel by a factor. The weights
of the second then multiply it by the factor (Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction").

Weights have a scale for each output channel here, so the first weight does not limit the factor. The magnitudes of the
activation limit it, and are measured, as in SmoothQuant (Xiao et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto

from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.placement import Weighted, weighted_nodes, why_bias_is_odd
from krl_runtime.int8 import LARGEST_FACTOR, OUTLIER_RATIO

from .weights import bias_of

__all__ = ["Factors", "divided_layers", "equalizable", "equalize", "factors", "is_uneven"]

Factors = Mapping[str, npt.NDArray[np.float32]]
"""Divisors of the channels ``[C]`` of tensors between two convolutions, by name."""

_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu"})


@dataclass(frozen=True)
class _Between:
    """An activation that one convolution writes and one other reads, with at most a ReLU between them."""

    tensor: str
    before: Weighted
    after: NodeProto
    depthwise: bool


def equalizable(model: onnx.ModelProto) -> list[str]:
    """Return the tensors whose channels can be equalized, in the order of execution."""
    return [item.tensor for item in _between(GraphEditor(model))]


def _between(graph: GraphEditor) -> list[_Between]:
    producers, consumers = graph.producers(), graph.consumers()
    weighted = (item for item in weighted_nodes(graph) if why_bias_is_odd(graph, item) is None)
    convolutions = {item.node.name: item for item in weighted if item.node.op_type == "Conv"}
    found = []
    for node in graph.nodes:
        if node.name not in convolutions:
            continue
        tensor = node.input[0]
        source = producers.get(tensor)
        if source is not None and source.op_type in _HOMOGENEOUS:
            source = producers.get(source.input[0])
        if source is None or source.name not in convolutions or not _alone(graph, consumers, source, tensor):
            continue
        channels, groups = int((graph.shape(tensor) or (0, 0))[1]), attribute(node, "group", 1)
        if groups in (1, channels):
            found.append(_Between(tensor, convolutions[source.name], node, groups > 1))
    return found


def _alone(graph: GraphEditor, consumers: Mapping[str, list[NodeProto]], source: NodeProto, tensor: str) -> bool:
    """Return whether nothing else reads the tensors from a convolution to ``tensor``."""
    on_the_way = {source.output[0], tensor}
    return all(len(consumers[name]) == 1 and name not in graph.outputs for name in on_the_way)


def is_uneven(largest: npt.NDArray[np.float32]) -> bool:
    """Return whether one channel is so large that it takes more than 2 of 8 bits from the median one.

    Below that, measurements show little gain, and a drop with few images. The reason: if all channels fill the range,
    it has no room for larger values of other images.

    Args:
        largest: The largest magnitude of each channel, ``[C]``; channels without signal do not count.
    """
    alive = largest[largest > 0]
    return bool(alive.size and alive.max() > OUTLIER_RATIO * np.median(alive))


def factors(model: onnx.ModelProto, largest: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[Any]]:
    """Return the factors that channels are divided by.

    For a dense convolution the factor is the root of the channel's magnitude over that of the weights that read it.
    Then both are alike. A depthwise convolution has a weight scale for each channel, so only the activation counts.
    The factors of a tensor have a geometric mean of 1. A channel without signal keeps its factor of 1.

    Args:
        model: The float32 model.
        largest: For tensors of ``equalizable``, the largest magnitude of each channel on real inputs, ``[C]``.
    """
    graph = GraphEditor(model)
    found: dict[str, npt.NDArray[Any]] = {}
    for item in _between(graph):
        if item.tensor not in largest:
            continue
        weight = graph.constant(item.after.input[1])
        assert weight is not None  # noqa: S101  weighted_nodes returns no other
        magnitude = largest[item.tensor].astype(np.float64)
        reading = np.ones(len(magnitude)) if item.depthwise else np.abs(weight).max(axis=(0, *range(2, weight.ndim)))
        alive = (magnitude > 0) & (reading > 0)
        factor = np.ones(len(magnitude))
        if alive.any():
            ratio = magnitude[alive] / reading[alive]
            ratio = ratio if item.depthwise else np.sqrt(ratio)
            factor[alive] = np.clip(ratio / np.exp(np.log(ratio).mean()), 1 / LARGEST_FACTOR, LARGEST_FACTOR)
        found[item.tensor] = factor.astype(np.float32)
    return found


def equalize(model: onnx.ModelProto, factors: Factors) -> onnx.ModelProto:
    """Return an equivalent model whose channels are divided by the factors."""
    graph = GraphEditor(model)
    for item in _between(graph):
        if item.tensor in factors:
            factor = np.asarray(factors[item.tensor], np.float64)
            _scale(graph, item.before.node, 1 / factor, axis=0)
            bias = bias_of(graph, item.before)
            if bias is not None:
                node = item.before.node
                node.input[2] = graph.add_constant(node.input[2], (bias / factor).astype(np.float32))
            _scale(graph, item.after, factor, axis=0 if item.depthwise else 1)
    return graph.close()


def divided_layers(model: onnx.ModelProto, factors: Factors) -> dict[str, npt.NDArray[np.float32]]:
    """Return the divisors of the outputs of nodes in ``equalize``, by the name of the node.

    Args:
        model: The model before it was equalized.
        factors: Those that it was equalized with.
    """
    graph = GraphEditor(model)
    producers = graph.producers()
    found: dict[str, npt.NDArray[np.float32]] = {}
    for item in _between(graph):
        if item.tensor in factors:
            names = {item.before.node.name, producers[item.tensor].name}
            found |= dict.fromkeys(names, np.asarray(factors[item.tensor], np.float32))
    return found


def _scale(graph: GraphEditor, node: NodeProto, factor: npt.NDArray[np.float64], *, axis: int) -> None:
    weight = graph.constant(node.input[1])
    assert weight is not None  # noqa: S101  weighted_nodes returns no other
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    if weight.shape[axis] != len(factor):  # a depthwise convolution with several outputs for each input
        factor = np.repeat(factor, weight.shape[axis] // len(factor))
    node.input[1] = graph.add_constant(node.input[1], (weight * factor.reshape(shape)).astype(np.float32))

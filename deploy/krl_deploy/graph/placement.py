"""The placement of Q/DQ pairs: the operators that are quantized, and their quantized inputs, for every emitter.

The rules are NVIDIA's for explicit quantization: all inputs of weighted operators, none of their outputs, and one
input of a residual addition. Further rules are those of TensorRT's own quantizer. They exclude operators whose INT8
kernels do not exist or do not pay: thin convolutions and narrow matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from krl_runtime.int8 import MIN_CHANNELS

from .edit import GraphEditor, attribute
from .operators import MOVES_OR_CASTS, WEIGHTED

__all__ = [
    "WRONG_IN_INT8",
    "Ranges",
    "Weighted",
    "channel_axis",
    "residual_inputs",
    "weighted_depths",
    "weighted_nodes",
    "why_bias_is_odd",
    "why_float_on_tensorrt",
    "why_narrow",
]

WRONG_IN_INT8 = "transposed convolution: TensorRT gave wrong outputs for such in INT8 (NVIDIA/TensorRT #4366)"
"""Why a transposed convolution stays in floating point."""

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest value of each tensor on calibration data."""


@dataclass(frozen=True)
class Weighted:
    """A convolution or matrix product with a constant float32 weight.

    Attributes:
        node: The operator; its first input is the activation, its second the weight.
        axis: Axis of the weight that counts the output channels.
        depth: Number of weighted operators on the longest way from the graph's inputs to it, itself included.
    """

    node: NodeProto
    axis: int
    depth: int


def weighted_nodes(graph: GraphEditor) -> list[Weighted]:
    """Return the operators that quantization is about, in the order of execution."""
    depths = weighted_depths(graph)
    found = []
    for node in graph.nodes:
        weight = graph.constant(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.dtype != np.float32 or graph.dtype(node.input[0]) != TensorProto.FLOAT:
            continue
        axis = channel_axis(node, weight.ndim)
        if axis is not None:
            found.append(Weighted(node, axis, depths[node.output[0]]))
    return found


def channel_axis(node: NodeProto, rank: int) -> int | None:
    """Return the axis of a weight of this rank that counts the output channels, ``None`` where INT8 is not for it."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "MatMul" and rank == 2:
        return 1
    plain = node.op_type == "Gemm" and not attribute(node, "transA", 0)
    if plain and attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0:
        return 0 if attribute(node, "transB", 0) else 1
    return None


def weighted_depths(graph: GraphEditor) -> dict[str, int]:
    """Return, for each tensor, how many weighted operators stand on the longest way to it."""
    depths: dict[str, int] = {}
    for node in graph.nodes:
        before = max((depths.get(name, 0) for name in node.input), default=0)
        weighted = node.op_type in WEIGHTED
        depths |= dict.fromkeys(node.output, before + weighted)
    return depths


def why_narrow(graph: GraphEditor, weighted: Weighted) -> str | None:
    """Return why a matrix product is too narrow for INT8 to pay, on any device; ``None`` if it is not."""
    if weighted.node.op_type not in ("Gemm", "MatMul"):
        return None
    rows, columns = graph.shape(weighted.node.input[1]) or (0, 0)
    if min(int(rows), int(columns)) < MIN_CHANNELS:
        return f"matrix of {rows}x{columns}: INT8 needs {MIN_CHANNELS} rows and columns"
    return None


def why_bias_is_odd(graph: GraphEditor, weighted: Weighted) -> str | None:
    """Return why a bias cannot be corrected or stored as an integer; ``None`` if it can, or if there is none."""
    node = weighted.node
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or not node.input[2]:
        return None
    bias = graph.constant(node.input[2])
    if bias is None:
        return "its bias is computed"
    channels = (graph.shape(node.input[1]) or ())[weighted.axis]
    if bias.size not in (1, channels) or (bias.ndim > 0 and bias.shape[-1] != bias.size):
        return f"its bias has shape {list(bias.shape)}: INT8 needs one number for each of the {channels} outputs"
    return None


def why_float_on_tensorrt(graph: GraphEditor, weighted: Weighted) -> str | None:
    """Return why TensorRT should keep this operator in floating point; ``None`` if INT8 suits it."""
    node = weighted.node
    odd = why_bias_is_odd(graph, weighted)
    if odd is not None:
        return odd
    if node.op_type == "ConvTranspose":
        return WRONG_IN_INT8
    if node.op_type != "Conv":
        return why_narrow(graph, weighted) or _why_behind_attention(graph, node)
    out_channels, in_channels, *kernel = (int(size) for size in graph.shape(node.input[1]) or ())
    if min(out_channels, in_channels) >= MIN_CHANNELS:
        return None
    thin = f"convolution of {in_channels} to {out_channels} channels, kernel {'x'.join(map(str, kernel))}"
    if attribute(node, "group", 1) > 1:
        fits = out_channels % 8 == 0 and min(kernel) >= 3
        return None if fits else f"grouped {thin}: INT8 needs a multiple of 8 outputs and a kernel of 3 or more"
    aligned = (out_channels % 8 == 0 or in_channels % 8 == 0) and len(set(kernel)) == 1
    wide = weighted.depth == 1 or max(out_channels, in_channels) >= MIN_CHANNELS
    return None if aligned and wide else f"thin {thin}: INT8 needs {MIN_CHANNELS} channels"


def _why_behind_attention(graph: GraphEditor, node: NodeProto) -> str | None:
    """Return why the output projection of an attention stays in floating point; ``None`` for other products.

    TensorRT 11 gave wrong values for an INT8 projection behind an attention in FP16 (roboflow/rf-detr #1453).
    """
    producers = graph.producers()
    applied = _behind_moves(producers, node.input[0])
    if applied is None or applied.op_type not in ("Attention", "MatMul"):
        return None
    weights = _behind_moves(producers, applied.input[0])
    if applied.op_type == "Attention" or (weights is not None and weights.op_type == "Softmax"):
        return "output projection of an attention in floating point"
    return None


def _behind_moves(producers: Mapping[str, NodeProto], tensor: str) -> NodeProto | None:
    """Return the node that computes a tensor, before nodes that only move or cast values."""
    node = producers.get(tensor)
    while node is not None and node.op_type in MOVES_OR_CASTS:
        node = producers.get(node.input[0])
    return node


def residual_inputs(graph: GraphEditor, chosen: list[Weighted]) -> list[tuple[NodeProto, int]]:
    """Return the additions of a residual branch to the output of a quantized operator, each with the branch's input.

    TensorRT fuses the addition into the operator whose only consumer it is. The other input, on the shorter path, is
    quantized. Its type decides the type of the fused output.
    """
    fused = {weighted.node.output[0] for weighted in chosen}
    consumers, depths = graph.consumers(), weighted_depths(graph)
    found = []
    for node in graph.nodes:
        if node.op_type != "Add" or any(name in graph.constants for name in node.input):
            continue
        shapes = [graph.shape(name) for name in node.input]
        main = [i for i, name in enumerate(node.input) if name in fused and len(consumers[name]) == 1]
        if not main or shapes[0] != shapes[1]:
            continue
        longest = max(main, key=lambda index: (depths[node.input[index]], -index))
        found.append((node, 1 - longest))
    return found

"""INT8 as TensorRT wants it: symmetric Q/DQ pairs on the inputs of weighted operators.

These are NVIDIA's rules of explicit quantization. An activation has one scale, a weight one for each output channel,
and all zero points are 0. Weights are stored as int8, biases stay in floating point, and outputs are not quantized.
TensorRT fuses the pairs into the kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from krl_deploy.graph.coupling import products_behind_gelu
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import opset_of
from krl_deploy.graph.infinities import intended_infinities
from krl_deploy.graph.operators import QUANTIZED
from krl_deploy.graph.placement import (
    WRONG_IN_INT8,
    Ranges,
    Weighted,
    residual_inputs,
    weighted_nodes,
    why_float_on_tensorrt,
)
from krl_runtime.errors import ModelError
from krl_runtime.int8 import LARGEST_INT8, LEAST_FP16_SCALE

from .insensitive_channels import InsensitiveChannels
from .weights import Rounding, bias_of, bias_shift, dequantized_constant, quantize_weight

__all__ = ["Quantized", "open_quantizable", "symmetric_scale", "to_tensorrt"]


_log = logging.getLogger("krl")

_BEFORE_FLOAT = "the product behind its GELU stays in floating point, and TensorRT gave NaN for such pairs"


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and its operators in floating point.

    Attributes:
        model: The Q/DQ model.
        count: Number of weighted operators that compute in INT8.
        kept_float: Reasons by name, for each other weighted operator.
    """

    model: onnx.ModelProto
    count: int
    kept_float: dict[str, str]


def symmetric_scale(low: float, high: float) -> np.float32:
    """Return the scale of int8 values for a tensor between ``low`` and ``high``; 1 for a tensor that is always 0.

    Example:
        >>> float(symmetric_scale(-254.0, 127.0)), float(symmetric_scale(0.0, 0.0))
        (2.0, 1.0)
    """
    scale: np.float32 = np.float32(max(abs(low), abs(high)) / LARGEST_INT8 or 1.0)
    return scale


def open_quantizable(model: onnx.ModelProto) -> tuple[GraphEditor, list[Weighted]]:
    """Open a model and return its weighted operators.

    Raises:
        ModelError: Its opset is below 13, it is quantized already, or it has no weighted operator in float32.
    """
    if opset_of(model) < 13:
        raise ModelError(f"the model has opset {opset_of(model)}; INT8 needs 13 or more; take a file of a newer opset")
    present = QUANTIZED & {node.op_type for node in model.graph.node}
    if present:
        raise ModelError(
            f"the model is quantized already (it has {', '.join(sorted(present))}); start from the float model"
        )
    graph = GraphEditor(model)
    candidates = weighted_nodes(graph)
    if not candidates:
        raise ModelError(
            "the model has no convolution or matrix product with float32 weights, so INT8 has nothing to do"
        )
    return graph, candidates


def to_tensorrt(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    rounding: Rounding | None = None,
    keep: Mapping[str, str] | None = None,
) -> Quantized:
    """Write the INT8 graph that TensorRT builds from, with FP32 around INT8.

    Args:
        model: A clean float32 model.
        ranges: At least of the tensors that are quantized.
        rounding: How weights become integers.
        keep: Names of operators that stay in floating point, each with the reason.

    Raises:
        ModelError: The model cannot be quantized.
    """
    graph, candidates = open_quantizable(model)
    rounding, keep = rounding or Rounding(), keep or {}
    own = {item.node.name: why_float_on_tensorrt(graph, item) for item in candidates}
    if all(own.values()) and WRONG_IN_INT8 in own.values():
        _log.warning(
            "only transposed convolutions suit INT8 on TensorRT, which gave wrong outputs for such (#4366): they are "
            "quantized, and the comparison after build-engine decides"
        )
        own = {name: None if why == WRONG_IN_INT8 else why for name, why in own.items()}
    reasons = {name: why or keep.get(name) for name, why in own.items()}
    if rounding.fp16:
        reasons |= _before_float(graph, candidates, {name for name, why in reasons.items() if why is not None})
    chosen = [weighted for weighted in candidates if reasons[weighted.node.name] is None]
    infinite = intended_infinities(model)
    residuals = [(node, index) for node, index in residual_inputs(graph, chosen) if node.input[index] not in infinite]
    # A dead channel must not ask for a scale that FP16 does not have.
    channels, step = InsensitiveChannels(graph, ranges), LEAST_FP16_SCALE
    least = {
        item.node.name: np.where(channels.of(item.node, item.axis, step), step, 0.0) if rounding.fp16 else 0.0
        for item in chosen
    }
    pairs: dict[str, str] = {}

    def pair(tensor: str) -> str:
        if tensor not in pairs:
            scale = graph.add_constant(f"{tensor}_scale", rounding.scale(symmetric_scale(*ranges[tensor])))
            zero = graph.add_constant(f"{tensor}_zero_point", np.zeros((), np.int8))
            quantized = graph.add("QuantizeLinear", [tensor, scale, zero], f"{tensor}_quantized")
            pairs[tensor] = graph.add("DequantizeLinear", [quantized, scale, zero], f"{tensor}_dequantized")
        return pairs[tensor]

    for weighted in chosen:
        node = weighted.node
        weight = graph.constant(node.input[1])
        assert weight is not None  # noqa: S101  weighted_nodes returns no other
        values, scale = quantize_weight(weight, weighted.axis, least[node.name], rounding, node.input[1])
        shift = bias_shift(graph, weighted, values, scale, rounding.means)
        if shift is not None:
            bias = bias_of(graph, weighted)
            name = node.input[2] if bias is not None else f"{node.input[1]}_bias"
            node.input[:] = [*node.input[:2], graph.add_constant(name, shift if bias is None else bias + shift)]
        node.input[0] = pair(node.input[0])
        node.input[1] = dequantized_constant(graph, node.input[1], values, scale, weighted.axis)
    for node, index in residuals:
        node.input[index] = pair(node.input[index])
    return Quantized(graph.close(), len(chosen), {name: why for name, why in reasons.items() if why is not None})


def _before_float(graph: GraphEditor, candidates: list[Weighted], kept: set[str]) -> dict[str, str]:
    """Return the products that FP16 around INT8 does not suit, since one behind their GELU is not in INT8."""
    consumers = graph.consumers()
    int8 = {item.node.name for item in candidates} - kept
    found: dict[str, str] = {}
    for node in (item.node for item in reversed(candidates)):
        if node.name not in int8 or node.op_type not in ("Gemm", "MatMul"):
            continue
        if any(reader.name not in int8 for reader in products_behind_gelu(consumers, node)):
            found[node.name] = _BEFORE_FLOAT
            int8.discard(node.name)
    return found

"""Reading a quantized graph: its float32 model, and the ranges of its quantizers.

Both emitters can then write INT8 anew from the same ranges, whatever tool wrote the Q/DQ pairs. This matters because a
graph in TensorRT's style runs at a third of FP32's speed on ONNX Runtime's CPU provider. TensorRT refuses a graph in
ONNX Runtime's style.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto

from krl_runtime.errors import ModelError
from krl_runtime.int8 import LARGEST_INT8, SMALLEST_INT8

from .cleanup import clean, constants_to_initializers
from .edit import GraphEditor, attribute
from .number_types import widened
from .operators import INTEGER, KEEPS_INTEGERS, KEEPS_SIGNS, NEVER_NEGATIVE, QDQ
from .placement import Ranges, weighted_nodes

__all__ = ["Unquantized", "is_qdq_model", "read_quantized"]

_STEPS = {int(TensorProto.INT8): (SMALLEST_INT8, LARGEST_INT8), int(TensorProto.UINT8): (0, 255)}


@dataclass(frozen=True)
class Unquantized:
    """The float model and the ranges of a quantized graph.

    Attributes:
        model: The float32 model, clean.
        ranges: Smallest and largest value that INT8 represents, of each tensor that was quantized.
        weight_scales: Scales by the name of a quantized weight, one or ``[channels]``.
    """

    model: onnx.ModelProto
    ranges: Ranges
    weight_scales: Mapping[str, npt.NDArray[np.float32]]


def is_qdq_model(model: onnx.ModelProto) -> bool:
    """Return whether a graph is a Q/DQ model: no operator of it computes on integers."""
    present = {node.op_type for node in model.graph.node}
    return bool(present & QDQ) and not present & INTEGER


def read_quantized(model: onnx.ModelProto) -> Unquantized:
    """Remove the Q/DQ pairs from a graph.

    Args:
        model: A Q/DQ model in int8 or uint8 with constant scales, of ONNX's operators or of those of ``com.microsoft``.
            FP16 tensors become float32.

    Raises:
        ModelError: The Q/DQ pairs are of another kind: in blocks, per channel on an activation, of other types, with
            computed scales, or around operators that compute.
    """
    reader = _Reader(widened(model))
    result = clean(reader.read())
    graph = GraphEditor(result)
    tensors = {name for node in graph.nodes for name in [*node.input, *node.output]}
    weights = {weighted.node.input[1] for weighted in weighted_nodes(graph)}
    return Unquantized(
        result,
        {name: limits for name, limits in reader.ranges.items() if name in tensors},
        {name: scales for name, scales in reader.weight_scales.items() if name in weights},
    )


def _become(node: NodeProto, operator: str) -> None:
    """Turn a node into a standard operator of its first input."""
    node.domain, node.op_type = "", operator
    node.input[:] = node.input[:1]
    del node.attribute[:]


@dataclass(frozen=True)
class _Parameters:
    """Float32 scales, zero points and integer type of one quantizer or dequantizer."""

    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.int64]
    dtype: int

    def limits(self) -> tuple[float, float]:
        low, high = _STEPS[self.dtype]
        scale, zero = float(self.scales.reshape(())), int(self.zeros.reshape(()))
        if self.dtype == TensorProto.INT8 and zero == 0:
            low = -high  # symmetric: the scale follows from the largest magnitude
        return (low - zero) * scale, (high - zero) * scale


class _Reader:
    """Records the parameters of each quantizer, and removes it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = GraphEditor(model)
        constants_to_initializers(self.graph)
        self.ranges: dict[str, tuple[float, float]] = {}
        self.weight_scales: dict[str, npt.NDArray[np.float32]] = {}

    def read(self) -> onnx.ModelProto:
        """Return the graph without the Q/DQ pairs."""
        graph = self.graph
        self._check_between()
        producers = graph.producers()
        weights: set[str] = set()
        for node in graph.nodes:
            if node.op_type == "QuantizeLinear":
                parameters = self._parameters(node, is_weight=node.input[0] in graph.constants)
                if node.input[0] in graph.constants:
                    weights.add(node.output[0])
                    self.weight_scales[node.input[0]] = parameters.scales.reshape(-1)
                elif parameters.limits()[0] == 0 and not self._never_negative(producers, node.input[0]):
                    # The range acts as the activation: quantizers for ONNX Runtime remove the ReLU.
                    self._note(node.output[0], parameters)
                    _become(node, "Relu")
                    continue
                else:
                    self._note(node.input[0], parameters)
            elif node.op_type == "DequantizeLinear":
                stored = graph.constant(node.input[0])
                parameters = self._parameters(node, is_weight=stored is not None or node.input[0] in weights)
                if stored is not None:
                    node.input[0] = self._as_float(node, stored, parameters)
                elif node.input[0] not in weights and producers[node.input[0]].op_type not in ("Identity", "Relu"):
                    self._note(node.input[0], parameters)  # what an operator made of integers
            else:
                continue
            _become(node, "Identity")
        return graph.close()

    def _never_negative(self, producers: Mapping[str, NodeProto], tensor: str) -> bool:
        """Return whether a tensor cannot be negative, or is a graph's input with a range without negative values."""
        node = producers.get(tensor)
        while node is not None and node.op_type in KEEPS_SIGNS:
            node = producers.get(node.input[0])
        if node is None or node.op_type in NEVER_NEGATIVE:
            return True
        low = self.graph.constant(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
        return low is not None and float(low) >= 0

    def _check_between(self) -> None:
        """Refuse operators that compute on stored integers."""
        stored: set[str] = set()
        for node in self.graph.nodes:
            if node.op_type == "QuantizeLinear":
                stored.add(node.output[0])
            elif node.op_type != "DequantizeLinear" and stored & set(node.input):
                if node.op_type not in KEEPS_INTEGERS:
                    raise ModelError(f"{node.op_type} {node.name} computes on stored integers")
                stored.update(node.output)

    def _parameters(self, node: NodeProto, *, is_weight: bool) -> _Parameters:
        graph, named = self.graph, f"{node.op_type} {node.name}"
        scales = graph.constant(node.input[1])
        has_zeros = len(node.input) > 2 and node.input[2] != ""
        zeros = graph.constant(node.input[2]) if has_zeros else np.zeros((), np.uint8)
        if scales is None or zeros is None:
            raise ModelError(f"{named} has a scale that is computed; only constant ones can be read")
        if attribute(node, "block_size", 0):
            raise ModelError(f"{named} quantizes in blocks, which INT8 engines do not have")
        chosen = attribute(node, "output_dtype", 0) or int(TensorProto.UINT8)
        stored = graph.dtype(node.input[0]) if node.op_type == "DequantizeLinear" else chosen
        dtype = graph.dtype(node.input[2]) if has_zeros else stored
        if dtype not in _STEPS and not (is_weight and dtype == TensorProto.INT32):
            raise ModelError(f"{named} has the type {TensorProto.DataType.Name(dtype)}; int8 and uint8 can be read")
        if scales.size > 1 and not is_weight:
            raise ModelError(f"{named} has a scale for each channel of an activation, which TensorRT does not take")
        return _Parameters(scales.astype(np.float32), zeros.astype(np.int64), dtype)

    def _note(self, tensor: str, parameters: _Parameters) -> None:
        low, high = parameters.limits()
        before = self.ranges.get(tensor, (low, high))
        self.ranges[tensor] = min(low, before[0]), max(high, before[1])

    def _as_float(self, node: NodeProto, stored: npt.NDArray[np.generic], parameters: _Parameters) -> str:
        """Add the values that stored integers stand for; return their name."""
        axis = attribute(node, "axis", 1)
        shape = [-1 if i == axis % stored.ndim else 1 for i in range(stored.ndim)] if parameters.scales.size > 1 else ()
        scales, zeros = (part.reshape(shape if part.size > 1 else ()) for part in (parameters.scales, parameters.zeros))
        values = (stored.astype(np.int64) - zeros).astype(np.float32) * scales
        name = self.graph.add_constant(f"{node.input[0]}_float", values)
        if parameters.dtype in _STEPS:
            self.weight_scales[name] = parameters.scales.reshape(-1)
        return name

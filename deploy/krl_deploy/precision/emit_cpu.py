"""INT8 as ONNX Runtime's CPU provider runs it fast: unsigned activations, and every convolution in INT8.

It has the ranges of TensorRT's graph, which runs at a third of FP32's speed there. The differences, each of them
measured:

* Activations are uint8.
* The output of a convolution is quantized too, also before an addition.
* A ReLU is not a node but the lower end of its uint8 range.
* Biases are int32 on the scale of the accumulator.
* A convolution that writes an image stays in floating point: its 8 bits would be those of the image.
* Layout operators (slices, padding, pooling by maximum) work on the uint8 values.

On x86 processors without VNNI the product of uint8 and int8 can saturate. The runtime sets ONNX Runtime's exact mode
there (``session.x64quantprecision``); other programs must set it too. The self-test finds such an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto

from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.operators import MOVES_STORED_INTEGERS, POINTWISE
from krl_deploy.graph.placement import Ranges, Weighted, why_bias_is_odd, why_narrow

from .emit_tensorrt import Quantized, open_quantizable
from .weights import Rounding, bias_of, bias_shift, dequantized_constant, quantize_weight

__all__ = ["affine_parameters", "to_cpu"]

_PER_VALUE = (MOVES_STORED_INTEGERS | POINTWISE) - {"MaxPool"}
_ELEMENTWISE = frozenset({"Add", "Mul", "Concat"})
_IMAGE = "it writes the image, which would have 8 bits"
_READ_IN_FLOAT = "its output is read in floating point, and INT8 convolutions write INT8"


@dataclass(frozen=True)
class _Stored:
    """A tensor in uint8: its name and the names of its scale and zero point; ``scale`` is the number itself."""

    name: str
    scale_name: str
    zero_name: str
    scale: np.float32
    zero: int


def affine_parameters(low: float, high: float) -> tuple[np.float32, int]:
    """Return scale and zero point of uint8 values for a tensor from ``low`` to ``high``; 0 is represented exactly.

    Example:
        >>> scale, zero = affine_parameters(-1.0, 1.55)
        >>> round(float(scale), 6), zero
        (0.01, 100)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1.0), 0
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, 255))


def to_cpu(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    rounding: Rounding | None = None,
    keep: Mapping[str, str] | None = None,
    alone: bool = False,
    image: bool = False,
) -> Quantized:
    """Write the INT8 graph for ONNX Runtime's CPU provider.

    Args:
        model: A clean float32 model.
        ranges: At least of the tensors that are quantized.
        rounding: How weights become integers.
        keep: Names of operators that stay in floating point, each with the reason. A convolution that is read by no
            others follows them, since it would write the INT8 that they shall not read.
        alone: Leave such a convolution in INT8, to measure what it costs by itself.
        image: Whether the output is an image. The convolution that writes it stays in floating point.

    Raises:
        ModelError: The model cannot be quantized.
    """
    graph, candidates = open_quantizable(model)
    return _Emitter(graph, ranges, rounding or Rounding(), keep or {}, alone=alone, image=image).emit(candidates)


class _Emitter:
    """Walks the graph once, in the order of execution, and keeps the float and the uint8 name of each tensor."""

    def __init__(
        self,
        graph: GraphEditor,
        ranges: Ranges,
        rounding: Rounding,
        keep: Mapping[str, str],
        *,
        alone: bool,
        image: bool,
    ) -> None:
        self.graph = graph
        self.ranges = ranges
        self.rounding = rounding
        self.keep = keep
        self.alone, self.image = alone, image
        self.consumers = graph.consumers()
        self.stored: dict[str, _Stored] = {}
        self.floats: dict[str, str] = {}
        self.computed: set[str] = set()
        self.folded: set[int] = set()

    def emit(self, candidates: list[Weighted]) -> Quantized:
        graph = self.graph
        weighted = {item.node.name: item for item in candidates}
        kept = {name: _why_float(graph, item) or self.keep.get(name) for name, item in weighted.items()}
        if self.image:
            free = [item.node for name, item in weighted.items() if kept[name] is None and item.node.op_type == "Conv"]
            last = {node.name: _IMAGE for node in free if _writes_the_output(graph, node, self.consumers)}
            if any(why is None and name not in last for name, why in kept.items()):  # else nothing would be in INT8
                kept |= last
        kept |= {
            name: _READ_IN_FLOAT for name in weighted if kept[name] is None and self._read_in_float(weighted[name])
        }
        nodes, graph.nodes = graph.nodes, []
        for node in nodes:
            if id(node) in self.folded:
                continue
            if kept.get(node.name, "") is None:
                self._weighted(weighted[node.name])
            elif node.op_type in MOVES_STORED_INTEGERS and node.input[0] in self.stored and len(node.output) == 1:
                self._layout(node)
            elif node.op_type in _ELEMENTWISE and all(name in self.stored for name in node.input):
                self._arithmetic(node, [self._dequantized(name) for name in node.input])
            else:
                node.input[:] = [self._float(name) for name in node.input]
                graph.nodes.append(node)
        for output in graph.outputs:
            self._restore(output)
        reasons = {name: why for name, why in kept.items() if why is not None}
        return Quantized(graph.close(), len(kept) - len(reasons), reasons)

    def _weighted(self, item: Weighted) -> None:
        """Emit a convolution or matrix product on quantized inputs; a convolution's output is quantized as well."""
        graph, node = self.graph, item.node
        source = self._quantized(node.input[0])
        weight = graph.constant(node.input[1])
        bias = bias_of(graph, item)
        assert weight is not None  # noqa: S101  weighted_nodes returns no other
        # A channel whose weights are almost 0 must not have a scale on which its bias overflows int32.
        least = np.abs(bias.astype(np.float64)) / (float(source.scale) * 2**30) if bias is not None else 0.0
        values, scale = quantize_weight(weight, item.axis, least, self.rounding, node.input[1])
        shift = bias_shift(graph, item, values, scale, self.rounding.means)
        weights = dequantized_constant(graph, node.input[1], values, scale, item.axis)
        inputs = [self._dequantized(node.input[0]), weights]
        if shift is not None:
            bias = shift if bias is None else bias + shift
        if bias is not None:
            steps = (source.scale * scale).astype(np.float32)
            counts = np.rint(bias.astype(np.float64) / steps).astype(np.int32)
            name = node.input[2] if len(node.input) > 2 and node.input[2] else f"{node.input[1]}_bias"
            inputs.append(dequantized_constant(graph, name, counts, steps, 0))
        if node.op_type == "Conv":
            self._arithmetic(node, inputs)
        else:
            node.input[:] = inputs
            graph.nodes.append(node)

    def _arithmetic(self, node: NodeProto, inputs: list[str]) -> None:
        """Emit a node whose output is quantized, with the activation behind it folded into the uint8 range."""
        final = self._fold_activation(node.output[0])
        folded = final != node.output[0]
        node.input[:] = inputs
        raw = self.graph.fresh(f"{node.output[0]}_raw")
        node.output[0] = raw
        self.graph.nodes.append(node)
        self._store(final, raw, from_zero=folded)

    def _read_in_float(self, item: Weighted) -> bool:
        """Return whether only operators that stay in floating point by choice read a convolution's output."""
        if self.alone:
            return False
        readers = self.consumers[item.node.output[0]]
        if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
            readers = self.consumers[readers[0].output[0]]
        return item.node.op_type == "Conv" and bool(readers) and all(reader.name in self.keep for reader in readers)

    def _fold_activation(self, tensor: str) -> str:
        """Return the output of the ReLU (or clipping from 0) that alone reads ``tensor``, else ``tensor`` itself."""
        readers = self.consumers[tensor]
        if len(readers) != 1 or tensor in self.graph.outputs:
            return tensor
        reader = readers[0]
        output = reader.output[0]
        if reader.op_type == "Relu" or (reader.op_type == "Clip" and self._clips_at_zero(reader)):
            self.folded.add(id(reader))
            return str(output)
        return tensor

    def _clips_at_zero(self, node: NodeProto) -> bool:
        """Return whether a ``Clip`` does no more than the calibrated uint8 range of its output."""
        low = self.graph.constant(node.input[1]) if len(node.input) > 1 else None
        high = self.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if low is None or float(low) != 0.0:
            return False
        return high is None or self.ranges[node.output[0]][1] <= float(high)

    def _layout(self, node: NodeProto) -> None:
        """Emit a node that only moves values, on the uint8 values themselves."""
        source = self.stored[node.input[0]]
        if node.op_type == "Pad":
            if len(node.input) > 2 and node.input[2] and np.any(self.graph.constant(node.input[2]) != 0):
                node.input[:] = [self._float(name) for name in node.input]
                self.graph.nodes.append(node)
                return
            if attribute(node, "mode", b"constant") == b"constant":
                rest = list(node.input[3:])
                node.input[:] = [node.input[0], node.input[1], source.zero_name, *rest]
        output = node.output[0]
        node.input[0] = source.name
        node.output[0] = self.graph.fresh(f"{output}_quantized")
        self.graph.nodes.append(node)
        self.stored[output] = _Stored(node.output[0], source.scale_name, source.zero_name, source.scale, source.zero)

    def _store(self, tensor: str, raw: str, *, from_zero: bool = False) -> None:
        """Quantize the float tensor ``raw``: ``tensor``, or ``tensor`` before its negative values become 0."""
        graph = self.graph
        low, high = self.ranges[tensor]
        scale, zero = affine_parameters(0.0 if from_zero else low, high)
        scale_name = graph.add_constant(f"{tensor}_scale", np.asarray(scale))
        zero_name = graph.add_constant(f"{tensor}_zero_point", np.asarray(zero, np.uint8))
        name = graph.add("QuantizeLinear", [raw, scale_name, zero_name], f"{tensor}_quantized")
        self.stored[tensor] = _Stored(name, scale_name, zero_name, scale, zero)

    def _quantized(self, tensor: str) -> _Stored:
        if tensor not in self.stored:
            self._store(tensor, tensor)
            self.computed.add(tensor)
        return self.stored[tensor]

    def _float(self, tensor: str) -> str:
        """Return the name of a tensor in float: the tensor itself where the graph still computes it."""
        return tensor if tensor not in self.stored or tensor in self.computed else self._dequantized(tensor)

    def _dequantized(self, tensor: str) -> str:
        """Return the name of the float model of a quantized tensor."""
        if tensor not in self.floats:
            stored = self.stored[tensor]
            inputs = [stored.name, stored.scale_name, stored.zero_name]
            self.floats[tensor] = self.graph.add("DequantizeLinear", inputs, f"{tensor}_dequantized")
        return self.floats[tensor]

    def _restore(self, output: str) -> None:
        """Make sure that a graph output exists under its own name, in float."""
        if any(output in node.output for node in self.graph.nodes):
            return
        stored = self.stored[output]
        inputs = [stored.name, stored.scale_name, stored.zero_name]
        self.graph.add_for("DequantizeLinear", inputs, output)


def _writes_the_output(graph: GraphEditor, node: NodeProto, consumers: Mapping[str, list[NodeProto]]) -> bool:
    """Return whether only operators that move values or work on each by itself follow, up to the graph's output."""
    waiting, seen = [node.output[0]], set[str]()
    while waiting:
        name = waiting.pop()
        readers = [reader for reader in consumers.get(name, []) if reader.name not in seen]
        if any(reader.op_type not in _PER_VALUE for reader in readers):
            return False
        seen |= {reader.name for reader in readers}
        waiting += [reader.output[0] for reader in readers]
    return bool(consumers.get(node.output[0])) or node.output[0] in graph.outputs


def _why_float(graph: GraphEditor, item: Weighted) -> str | None:
    if item.node.op_type == "ConvTranspose":
        return "ONNX Runtime's CPU provider has no quantized transposed convolution"
    return why_bias_is_odd(graph, item) or why_narrow(graph, item)

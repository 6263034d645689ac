"""The expected form of a parsed network, from the float graph and the plan alone: none of the emitters' code is used.

Each function ends in ``_faults`` and returns the differences as text; no text, no fault.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import NodeProto, TensorProto

from _helpers.parsed import Layer

KINDS = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "Gemm": "MATRIX_MULTIPLY",
    "MatMul": "MATRIX_MULTIPLY",
}
FLOATS = ("FLOAT", "HALF")
INDICES = ("INT32", "INT64", "BOOL")


@dataclass(frozen=True)
class Plan:
    """How a graph is meant to compute.

    Attributes:
        model: The FP32 graph.
        half: Whether floating point is FP16.
        int8: Whether weighted operators compute in INT8.
        fp32: Names of the nodes that stay in FP32 although ``half`` is set.
        unquantized: Names of the weighted operators that stay in floating point although ``int8`` is set.
    """

    model: onnx.ModelProto
    half: bool = False
    int8: bool = False
    fp32: frozenset[str] = frozenset()
    unquantized: frozenset[str] = frozenset()
    _depths: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def nodes(self) -> dict[str, NodeProto]:
        """The nodes by name."""
        return {node.name: node for node in self.model.graph.node}

    @cached_property
    def constants(self) -> frozenset[str]:
        """Names of the initializers."""
        return frozenset(tensor.name for tensor in self.model.graph.initializer)

    @cached_property
    def floats(self) -> dict[str, tuple[int | str, ...]]:
        """Shapes of the float tensors that the graph takes or computes."""
        graph = self.model.graph
        return {
            value.name: tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)
            for value in [*graph.input, *graph.value_info, *graph.output]
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }

    @cached_property
    def readers(self) -> Mapping[str, list[str]]:
        """Names of the nodes that read a tensor; the graph's outputs are read by ``""``."""
        found = defaultdict(list)
        for node in self.nodes.values():
            for name in node.input:
                found[name].append(node.name)
        for value in self.model.graph.output:
            found[value.name].append("")
        return found

    @cached_property
    def makers(self) -> dict[str, str]:
        """Names of the nodes that make a tensor."""
        return {name: node.name for node in self.nodes.values() for name in node.output}

    def depth(self, tensor: str) -> int:
        """Return the number of weighted operators on the longest way to a tensor."""
        if not self._depths:
            for node in self.model.graph.node:  # sorted, as ONNX demands
                before = max((self._depths.get(name, 0) for name in node.input), default=0)
                self._depths.update(dict.fromkeys(node.output, before + (node.op_type in KINDS)))
        return self._depths.get(tensor, 0)

    def dtype(self, node: str) -> str:
        """Return the type that a node computes in: FP32 before the first weighted operator, where pixels are scaled."""
        first = not self.depth(self.nodes[node].output[0])
        return "FLOAT" if first or not self.half or node in self.fp32 else "HALF"

    @cached_property
    def quantized(self) -> frozenset[str]:
        """Names of the operators in INT8: those with a constant weight, but for ``unquantized``."""
        weighted = {name for name, node in self.nodes.items() if node.op_type in KINDS}
        constant = {name for name in weighted if self.nodes[name].input[1] in self.constants}
        return frozenset(constant - self.unquantized) if self.int8 else frozenset()

    @cached_property
    def residuals(self) -> dict[str, list[int]]:
        """Inputs of which one is quantized, by the name of an addition that fuses with an operator in INT8."""
        found = {}
        for name, node in self.nodes.items():
            if node.op_type != "Add" or any(item in self.constants for item in node.input):
                continue
            fused = [self.makers.get(item) in self.quantized and len(self.readers[item]) == 1 for item in node.input]
            if self.floats.get(node.input[0]) != self.floats.get(node.input[1]) or not any(fused):
                continue
            depths = [self.depth(item) for item in node.input]
            shorter = [0, 1] if depths[0] == depths[1] else [depths.index(min(depths))]
            found[name] = shorter if all(fused) else [fused.index(False)]
        return found


def faults(layers: list[Layer], plan: Plan, emitted: onnx.ModelProto) -> list[str]:
    """Return every difference between a parsed network and its plan; ``emitted`` is the file that was parsed."""
    return [
        *operator_faults(layers, plan),
        *type_faults(layers, plan),
        *bias_faults(layers, plan),
        *quantization_faults(layers, plan),
        *residual_faults(layers, plan),
        *pair_faults(layers),
        *scale_faults(layers, plan),
        *cast_faults(layers, plan, emitted),
    ]


def operator_faults(layers: list[Layer], plan: Plan) -> list[str]:
    """Each convolution and matrix product is one layer of its kind, and there are no others."""
    expected = Counter((KINDS[node.op_type], name) for name, node in plan.nodes.items() if node.op_type in KINDS)
    found = Counter((layer.kind, layer.node) for layer in layers if layer.kind in KINDS.values())
    return [f"{kind} of node {name!r}: {found[kind, name]} layers" for kind, name in (found - expected)] + [
        f"{kind} of node {name!r} is missing" for kind, name in (expected - found)
    ]


def type_faults(layers: list[Layer], plan: Plan) -> list[str]:
    """Each layer of a node of the float graph computes in the type that the plan says, its kernel as well."""
    found = []
    for layer in layers:
        made = [tensor.dtype for tensor in layer.outputs if tensor.dtype in FLOATS]
        if layer.node not in plan.nodes or not made:
            continue
        wanted = plan.dtype(layer.node)
        read = [tensor.dtype for tensor in layer.inputs if tensor.dtype in FLOATS] if layer.kind != "CAST" else []
        types = {*made, *read, *([layer.kernel] if layer.kernel else [])}
        if types != {wanted}:
            found.append(f"{layer.kind} {layer.name!r} computes in {'/'.join(sorted(types))}, planned is {wanted}")
    return found


def bias_faults(layers: list[Layer], plan: Plan) -> list[str]:
    """A bias is there where the node has one, in the type of its operator."""
    found = []
    for name, node in plan.nodes.items():
        if node.op_type not in KINDS or len(node.input) < 3 or not node.input[2]:
            continue
        own = [layer for layer in layers if layer.node == name]
        if node.op_type == "Gemm":  # the parser adds the bias of a matrix product in a layer of its own
            types = {item.dtype for layer in own if layer.kind == "ELEMENTWISE" for item in layer.inputs}
        else:
            types = {layer.bias for layer in own}
        if types != {plan.dtype(name)}:
            found.append(f"bias of {name!r} is {sorted(types)}, planned is {plan.dtype(name)}")
    return found


def quantization_faults(layers: list[Layer], plan: Plan) -> list[str]:
    """Data and weight of an operator in INT8 come from pairs, of the others none does."""
    makers = _makers(layers)
    found = []
    for layer in layers:
        if layer.kind not in KINDS.values():
            continue
        origins = [_origin(makers, tensor.name) for tensor in layer.inputs]
        sources = ["float" if origin is None else _source(makers, origin) for origin in origins]
        if layer.node in plan.quantized:
            if sources[:2] != ["activation", "weight"]:
                found.append(f"{layer.kind} {layer.name!r} should be in INT8, its inputs are {sources}")
        elif sources.count("float") != len(sources):
            found.append(f"{layer.kind} {layer.name!r} should not be in INT8, its inputs are {sources}")
    return found


def residual_faults(layers: list[Layer], plan: Plan) -> list[str]:
    """Of an addition that fuses with an operator in INT8 one input is quantized, on the shorter path."""
    makers, found = _makers(layers), []
    for layer in layers:
        if layer.kind != "ELEMENTWISE" or (layer.node in plan.nodes and plan.nodes[layer.node].op_type in KINDS):
            continue
        pairs = [i for i, tensor in enumerate(layer.inputs) if _origin(makers, tensor.name) is not None]
        allowed = [[index] for index in plan.residuals.get(layer.node, [])] or [[]]
        if pairs not in allowed:
            found.append(f"addition {layer.name!r} has pairs at inputs {pairs}, planned is one of {allowed}")
    return found


def pair_faults(layers: list[Layer]) -> list[str]:
    """A QUANTIZE is read by DEQUANTIZE alone, and what leaves a pair only by operators and additions."""
    makers, readers, found = _makers(layers), _readers(layers), []
    for layer in layers:
        if layer.kind == "QUANTIZE":
            kinds = {reader.kind for reader in readers[layer.outputs[0].name]}
            if kinds != {"DEQUANTIZE"}:
                found.append(f"QUANTIZE {layer.name!r} is read by {sorted(kinds)}")
        if layer.kind == "DEQUANTIZE":
            maker = makers.get(layer.inputs[0].name)
            if maker is None or maker.kind not in ("QUANTIZE", "CONSTANT") or layer.inputs[0].dtype != "INT8":
                found.append(f"DEQUANTIZE {layer.name!r} reads {layer.inputs[0]}")
            kinds = {reader.kind for reader in _readers_behind_broadcasts(readers, layer.outputs[0].name)}
            if not kinds or not kinds <= {*KINDS.values(), "ELEMENTWISE"}:
                found.append(f"DEQUANTIZE {layer.name!r} is read by {sorted(kinds)}")
    return found


def scale_faults(layers: list[Layer], plan: Plan) -> list[str]:
    """An activation has one scale, a weight one for each output channel, on that axis; zero points are 0."""
    makers, readers, found = _makers(layers), _readers(layers), []
    for layer in layers:
        if layer.kind not in ("QUANTIZE", "DEQUANTIZE"):
            continue
        scale, zero = (makers[tensor.name].values if tensor.name else None for tensor in layer.inputs[1:3])
        source = makers.get(layer.inputs[0].name)
        if zero is not None and zero.any():
            found.append(f"{layer.name!r} has zero points other than 0")
        if scale is None:
            found.append(f"{layer.name!r} has no constant scale")
        elif source is None or source.kind != "CONSTANT":
            if scale.size != 1:
                found.append(f"activation {layer.name!r} has {scale.size} scales")
        else:
            for reader in _readers_behind_broadcasts(readers, layer.outputs[0].name):
                axis, channels = _channels(plan, reader.node)
                if scale.size != channels or (channels > 1 and layer.axis != axis):
                    found.append(f"weight {layer.name!r} has {scale.size} scales on axis {layer.axis}, not {channels}")
    return found


def cast_faults(layers: list[Layer], plan: Plan, emitted: onnx.ModelProto) -> list[str]:
    """Each CAST of values is a Cast of the file, and the file has no more than the plan needs.

    The parser adds casts between integers, for shapes and indices; these are not counted.
    """
    casts = [layer for layer in layers if layer.kind == "CAST"]
    values = [cast for cast in casts if {cast.inputs[0].dtype, cast.outputs[0].dtype} - {*INDICES}]
    nodes = {node.name for node in emitted.graph.node if node.op_type == "Cast"}
    found = [f"the parser added CAST {cast.name!r}" for cast in values if cast.node not in nodes]
    found += [f"CAST {cast.name!r} changes nothing" for cast in values if is_idle(cast)]
    between = [cast for cast in values if {cast.inputs[0].dtype, cast.outputs[0].dtype} == {*FLOATS}]
    needed = needed_casts(plan)
    if len(between) != needed:
        found.append(f"{len(between)} casts between FLOAT and HALF, {needed} are needed")
    makers = _makers(layers)
    for cast in between:
        maker = makers.get(cast.inputs[0].name)
        if maker is not None and maker.kind in ("CAST", "DEQUANTIZE") and maker.inputs[0].dtype != "UINT8":
            found.append(f"CAST {cast.name!r} follows {maker.kind} {maker.name!r}")
    return found


def is_idle(cast: Layer) -> bool:
    """Return whether a CAST gives the type that it reads."""
    return cast.inputs[0].dtype == cast.outputs[0].dtype


def needed_casts(plan: Plan) -> int:
    """Return the number of float tensors that are read in the type that they do not have; a pair needs no cast."""
    count = 0
    outputs = {value.name for value in plan.model.graph.output}
    for tensor in plan.floats:
        made = plan.dtype(plan.makers[tensor]) if tensor in plan.makers else "FLOAT"
        wanted = {"FLOAT"} if tensor in outputs else set()
        for name in plan.readers[tensor]:
            if name and not _behind_pair(plan, name, tensor) and plan.nodes[name].op_type != "Shape":
                wanted.add(plan.dtype(name))
        count += len(wanted - {made})
    return count


def _behind_pair(plan: Plan, node: str, tensor: str) -> bool:
    """Return whether a node reads a tensor through a pair alone."""
    inputs = list(plan.nodes[node].input)
    return node in plan.quantized and inputs.index(tensor) == 0


def _makers(layers: list[Layer]) -> dict[str, Layer]:
    return {tensor.name: layer for layer in layers for tensor in layer.outputs}


def _readers(layers: list[Layer]) -> Mapping[str, list[Layer]]:
    found = defaultdict(list)
    for layer in layers:
        for tensor in layer.inputs:
            found[tensor.name].append(layer)
    return found


def _origin(makers: Mapping[str, Layer], tensor: str) -> Layer | None:
    """Return the DEQUANTIZE that makes a tensor, before the parser's own broadcasts; ``None`` if none does."""
    layer = makers.get(tensor)
    while layer is not None and layer.kind == "SHUFFLE" and not layer.node:
        layer = makers.get(layer.inputs[0].name)
    return layer if layer is not None and layer.kind == "DEQUANTIZE" else None


def _source(makers: Mapping[str, Layer], dequantize: Layer) -> str:
    maker = makers.get(dequantize.inputs[0].name)
    return {"QUANTIZE": "activation", "CONSTANT": "weight"}.get(maker.kind if maker else "", "unknown")


def _readers_behind_broadcasts(readers: Mapping[str, list[Layer]], tensor: str) -> list[Layer]:
    found = []
    for layer in readers[tensor]:
        broadcast = layer.kind == "SHUFFLE" and not layer.node
        found += _readers_behind_broadcasts(readers, layer.outputs[0].name) if broadcast else [layer]
    return found


def _channels(plan: Plan, node: str) -> tuple[int, int]:
    """Return axis and number of a weight's output channels, by ONNX's definition of the operator."""
    operator = plan.nodes[node]
    (shape,) = (tuple(item.dims) for item in plan.model.graph.initializer if item.name == operator.input[1])
    transposed = any(item.name == "transB" and item.i for item in operator.attribute)
    axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else 1, "MatMul": len(shape) - 1}[operator.op_type]
    return axis, shape[axis]

"""Conversion to FP16: half-precision initializers, and ``Cast`` nodes between precisions, written into the graph.

The graph leaves nothing to a builder's flags, which TensorRT 11 does not have. A node stays in FP32

* if FP16 would lose its values; see ``fp16_limits``,
* if a scale of a Q/DQ pair beside it has no FP16 number,
* if ONNX does not define the operator in FP16,
* before the first weighted operator: normalizing pixels costs nothing and cancels digits.

Around INT8 a ``QuantizeLinear`` has the precision of the tensor that it reads. A ``DequantizeLinear`` has that of the
operators that read it. So no ``Cast`` stands between a Q/DQ pair and the operators that it fuses with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.files import opset_of
from krl_deploy.graph.operators import QDQ, QUANTIZED
from krl_deploy.graph.placement import Ranges, weighted_depths
from krl_runtime.errors import ModelError
from krl_runtime.int8 import LEAST_FP16_SCALE

from .fp16_limits import Fp16Limits

__all__ = ["OPSET_OF_FP16_SCALES", "Fp16Graph", "float_tensors", "round_to_fp16", "to_fp16"]

OPSET_OF_FP16_SCALES = 19
"""From this opset on ``QuantizeLinear`` and ``DequantizeLinear`` may have FP16 scales."""


@dataclass(frozen=True)
class Fp16Graph:
    """A graph converted to FP16.

    Attributes:
        model: The converted model; the types of its inputs and outputs are unchanged.
        nodes: Names of the nodes that compute in FP16.
        kept: Reasons by node, for each node after the first weighted one that stays in FP32.
    """

    model: onnx.ModelProto
    nodes: frozenset[str]
    kept: Mapping[str, str]


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the names of the float32 tensors that the graph computes, in the order of execution."""
    graph = GraphEditor(model)
    return [name for node in graph.nodes for name in node.output if graph.dtype(name) == TensorProto.FLOAT]


def to_fp16(
    model: onnx.ModelProto, ranges: Ranges, *, around_int8: bool = False, keep: Mapping[str, str] | None = None
) -> Fp16Graph:
    """Convert a clean float32 model to FP16.

    Args:
        model: The model; it is not changed.
        ranges: Smallest and largest values of its tensors on real inputs. A tensor without a range counts as fitting.
        around_int8: Whether the model has Q/DQ pairs of ``to_tensorrt``, with scales that are FP16 numbers.
        keep: Names of nodes that stay in FP32, each with the reason.

    Raises:
        ModelError: The model is quantized in another way, its opset has no FP16 scales, or no node of a float model
            can compute in FP16.
    """
    present = QUANTIZED & {node.op_type for node in model.graph.node}
    if present - (QDQ if around_int8 else frozenset()):
        raise ModelError("the model is quantized; convert the float model to FP16 instead")
    if present and opset_of(model) < OPSET_OF_FP16_SCALES:
        raise ModelError(f"the model has opset {opset_of(model)}; FP16 scales need {OPSET_OF_FP16_SCALES}")
    graph = GraphEditor(model)
    limits = Fp16Limits(graph, {**ranges, **_through_pairs(graph, ranges)})
    depths, wide = weighted_depths(graph), _wide_scales(graph)
    chosen: set[str] = set()
    kept: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in QDQ:
            continue  # follows its neighbors
        if not any(graph.dtype(name) == TensorProto.FLOAT for name in [*node.input, *node.output]):
            continue
        if not depths[node.output[0]]:
            continue  # the normalization of pixels stays as it is
        reason = (
            _why_float(graph, node, opset_of(model))
            or wide.get(node.name)
            or limits.why_float(node)
            or (keep or {}).get(node.name)
        )
        if reason is None:
            chosen.add(node.name)
        else:
            kept[node.name] = reason
    if not chosen and not around_int8:
        raise ModelError("no node of the model can compute in FP16; krl-runtime runs it in FP32 as it is")
    _split_pairs(graph, chosen)
    chosen |= _pairs_beside(graph, chosen)
    _retype(graph, chosen, opset_of(model))
    return Fp16Graph(graph.close(), frozenset(chosen), kept)


def _through_pairs(graph: GraphEditor, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """Return the ranges of the outputs of ``DequantizeLinear`` nodes: those of the tensors that were quantized."""
    producers = graph.producers()
    found = {}
    for node in graph.nodes:
        source = producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.op_type == "QuantizeLinear" and source.input[0] in ranges:
            found[node.output[0]] = ranges[source.input[0]]
    return found


def _is_fp16(graph: GraphEditor, scale: str) -> bool:
    """Return whether every number of a constant scale is an FP16 number."""
    value = graph.constant(scale)
    with np.errstate(over="ignore"):  # what overflows is none
        return value is not None and bool((value.astype(np.float16) == value).all())


def _wide_scales(graph: GraphEditor) -> dict[str, str]:
    """Return the nodes beside pairs whose scale has no FP16 number, each with the reason to stay in FP32."""
    producers, consumers = graph.producers(), graph.consumers()
    found: dict[str, str] = {}
    for node in graph.nodes:
        scale = graph.constant(node.input[1]) if node.op_type in QDQ else None
        if scale is None or _is_fp16(graph, node.input[1]):
            continue
        beside = [producers.get(node.input[0])] if node.op_type == "QuantizeLinear" else consumers[node.output[0]]
        why = f"scale {node.input[1]} has {scale.min():.4g}; FP16 scales begin at {LEAST_FP16_SCALE:.1e}"
        found |= {item.name: why for item in beside if item is not None}
    return found


def _split_pairs(graph: GraphEditor, chosen: set[str]) -> None:
    """Give nodes that stay in FP32 a dequantizer of their own where they share one with nodes in FP16."""
    consumers = graph.consumers()
    for node in [node for node in graph.nodes if node.op_type == "DequantizeLinear"]:
        wide = [reader for reader in consumers[node.output[0]] if reader.name not in chosen]
        if not wide or len(wide) == len(consumers[node.output[0]]):
            continue
        output = graph.fresh(f"{node.output[0]}_float")
        graph.add_for(node.op_type, node.input, output)
        graph.nodes[-1].attribute.extend(node.attribute)
        for reader in wide:
            reader.input[:] = [output if name == node.output[0] else name for name in reader.input]


def _pairs_beside(graph: GraphEditor, chosen: set[str]) -> set[str]:
    """Return the names of the quantizers that read FP16, and of the dequantizers that FP16 nodes read."""
    producers, consumers = graph.producers(), graph.consumers()
    found = set()
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            source = producers.get(node.input[0])
            beside = [source] if source is not None else []
        elif node.op_type == "DequantizeLinear":
            beside = consumers[node.output[0]]
        else:
            continue
        if any(item.name in chosen for item in beside):
            found.add(node.name)
    return found


def _formal(node: NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def _types(schema: onnx.defs.OpSchema, parameter: onnx.defs.OpSchema.FormalParameter) -> list[str]:
    """Return the types that ONNX allows for an input or output; one item if it is fixed."""
    for constraint in schema.type_constraints:
        if constraint.type_param_str == parameter.type_str:
            return list(constraint.allowed_type_strs)
    return [parameter.type_str]


def _takes_fp16(schema: onnx.defs.OpSchema, index: int) -> bool:
    """Return whether an operator's input may be FP16. The last formal input stands for all further ones."""
    return "tensor(float16)" in _types(schema, schema.inputs[min(index, len(schema.inputs) - 1)])


def _why_float(graph: GraphEditor, node: NodeProto, opset: int) -> str | None:
    """Return why ONNX does not define this node in FP16, or ``None``."""
    schema = _formal(node, opset)
    if schema is None:
        return f"{node.domain}:{node.op_type} is not a standard operator"
    if node.op_type == "Cast":
        return None if attribute(node, "to", 0) == TensorProto.FLOAT else "casts to another type"
    inputs = {schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in range(len(node.input))}
    for index, name in enumerate(node.input):
        fixed = _types(schema, schema.inputs[min(index, len(schema.inputs) - 1)]) == ["tensor(float)"]
        if graph.dtype(name) == TensorProto.FLOAT and not _takes_fp16(schema, index):
            parameter = schema.inputs[min(index, len(schema.inputs) - 1)]
            if not fixed or any(out.type_str == parameter.type_str for out in schema.outputs):
                return f"{node.op_type} is not defined in FP16"
    for index, name in enumerate(node.output):
        parameter = schema.outputs[min(index, len(schema.outputs) - 1)]
        if graph.dtype(name) == TensorProto.FLOAT and parameter.type_str not in inputs:
            return f"{node.op_type} makes FP32 by definition"
    return None


def _retype(graph: GraphEditor, chosen: set[str], opset: int) -> None:
    """Convert the chosen nodes to FP16. Add ``Cast`` nodes if a tensor is read in the other precision."""
    floats = {name for node in graph.nodes for name in node.output if graph.dtype(name) == TensorProto.FLOAT}
    made = {name for node in graph.nodes if node.name in chosen for name in node.output if name in floats}
    casts: dict[tuple[str, int], str] = {}

    def as_type(name: str, wanted: int) -> str:
        is_half = name in made
        if (wanted == TensorProto.FLOAT16) == is_half:
            return name
        value = graph.constant(name)
        suffix = "half" if wanted == TensorProto.FLOAT16 else "float"
        if (name, wanted) not in casts:
            casts[name, wanted] = (
                graph.add_constant(f"{name}_half", value.astype(np.float16))
                if value is not None
                else graph.add("Cast", [name], f"{name}_{suffix}", to=wanted)
            )
        return casts[name, wanted]

    for node in list(graph.nodes):
        schema = _formal(node, opset)
        for index, name in enumerate(node.input):
            if graph.dtype(name) != TensorProto.FLOAT or (node.op_type == "Cast" and node.name in chosen):
                continue
            half = node.name in chosen and schema is not None and _takes_fp16(schema, index)
            node.input[index] = as_type(name, TensorProto.FLOAT16 if half else TensorProto.FLOAT)
        if node.name in chosen and node.op_type == "Cast":
            _set_target(node)
    _keep_output_types(graph, made)


def _set_target(cast: NodeProto) -> None:
    for item in cast.attribute:
        if item.name == "to":
            item.i = TensorProto.FLOAT16


def _keep_output_types(graph: GraphEditor, made: set[str]) -> None:
    for output in [name for name in graph.outputs if name in made]:
        half = graph.fresh(f"{output}_half")
        for node in graph.nodes:
            node.output[:] = [half if name == output else name for name in node.output]
        graph.reroute(output, half)
        graph.add_for("Cast", [half], output, to=TensorProto.FLOAT)


def round_to_fp16(model: onnx.ModelProto, nodes: frozenset[str]) -> onnx.ModelProto:
    """Return a float32 model that rounds the constants and outputs of FP16 nodes to FP16.

    It computes what a device with FP16 storage and FP32 accumulation computes. ONNX Runtime's CPU provider computes
    FP16 graphs in FP32 throughout, and would show no overflow.

    Args:
        model: The float32 model.
        nodes: Names of the nodes that compute in FP16, as in ``Fp16Graph``.
    """
    graph = GraphEditor(model)
    chosen = [node for node in graph.nodes if node.name in nodes]
    rounded = {name for node in chosen for name in node.output}
    for node in chosen:
        for index, name in enumerate(node.input):
            value = graph.constant(name)
            if graph.dtype(name) != TensorProto.FLOAT or name in rounded:
                continue
            if value is not None:
                node.input[index] = graph.add_constant(name, value.astype(np.float16).astype(np.float32))
            else:
                node.input[index] = _rounded(graph, name, graph.fresh(f"{name}_rounded"))
        for index, name in enumerate(node.output):
            if graph.dtype(name) == TensorProto.FLOAT:
                node.output[index] = graph.fresh(f"{name}_exact")
                _rounded(graph, node.output[index], name)
    return graph.close()


def _rounded(graph: GraphEditor, source: str, output: str) -> str:
    half = graph.add("Cast", [source], f"{source}_half", to=TensorProto.FLOAT16)
    graph.add_for("Cast", [half], output, to=TensorProto.FLOAT)
    return output

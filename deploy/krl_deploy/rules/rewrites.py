"""Rewrites for ``check --fix``: each removes one kind of finding, and leaves every output as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from krl_deploy.graph.cleanup import constants_to_initializers, shape_behind_cast, split_without_sequences
from krl_deploy.graph.contrib import to_standard
from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.files import opset_of
from krl_deploy.graph.operators import MOVES_ACROSS_QDQ, WEIGHTED
from krl_deploy.graph.versions import expanded, lowered

__all__ = ["REWRITES", "Rewrite"]

_OLD: Final = 9  # the oldest opset that TensorRT's parser documents
_CONVERTED: Final = 17  # ONNX's converter knows every operator up to it, and every supported runtime reads it
_MIDDLE: Final = 128  # zero point of symmetric uint8


@dataclass(frozen=True)
class Rewrite:
    """A rewrite of a graph.

    Attributes:
        rules: Rules whose findings it removes.
        what: What it does, for people.
        apply: Returns the rewritten model, or ``None`` where there is nothing to do. It gets a model without control
            flow, and the names of the nodes that the findings are about.
    """

    rules: frozenset[str]
    what: str
    apply: Callable[[onnx.ModelProto, Collection[str]], onnx.ModelProto | None]


def _edits(edit: Callable[[GraphEditor], bool]) -> Callable[[onnx.ModelProto, Collection[str]], onnx.ModelProto | None]:
    """Return a rewrite that edits a graph, and says whether it did."""

    def apply(model: onnx.ModelProto, _: Collection[str]) -> onnx.ModelProto | None:
        graph = GraphEditor(model)
        constants_to_initializers(graph)
        return graph.close() if edit(graph) else None

    return apply


def _newer_opset(model: onnx.ModelProto, _: Collection[str]) -> onnx.ModelProto | None:
    return onnx.version_converter.convert_version(model, _CONVERTED) if opset_of(model) < _OLD else None


def _older_opset(model: onnx.ModelProto, _: Collection[str]) -> onnx.ModelProto | None:
    result, changes, _reasons = lowered(model)
    return result if changes else None


def _standard(model: onnx.ModelProto, _: Collection[str]) -> onnx.ModelProto | None:
    result, changes = to_standard(model)
    return result if changes else None


def _functions(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto | None:
    result = expanded(model, lambda node: node.name in names or (not node.name and node.output[0] in names))
    return None if len(result.graph.node) == len(model.graph.node) else GraphEditor(result).close()


def _sequences(graph: GraphEditor) -> bool:
    before = len(graph.nodes)
    split_without_sequences(graph)
    return len(graph.nodes) != before


def _shapes(graph: GraphEditor) -> bool:
    def read() -> list[str]:
        return [name for node in graph.nodes for name in node.input]

    before = read()
    shape_behind_cast(graph)
    return read() != before


def _unread_outputs(graph: GraphEditor) -> bool:
    """Leave out the optional outputs that nothing reads."""
    read = {name for node in graph.nodes for name in node.input} | set(graph.outputs)
    found = False
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPTIONAL_OUTPUTS:
            continue
        while len(node.output) > 1 and node.output[-1] not in read:
            node.output.pop()
            found = True
    return found


_OPTIONAL_OUTPUTS: Final = frozenset({"Attention", "BatchNormalization", "Dropout", "LayerNormalization", "MaxPool"})


def _small_letters(graph: GraphEditor) -> bool:
    """Write the equations of ``Einsum`` in small letters, if there are enough."""
    found = False
    for node in graph.nodes:
        for item in node.attribute:
            if node.op_type != "Einsum" or item.name != "equation":
                continue
            equation = item.s.decode()
            capitals = sorted({letter for letter in equation if "A" <= letter <= "Z"})
            free = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in equation]
            if capitals and len(capitals) <= len(free) and "->" in equation:  # implicit outputs are sorted by letter
                item.s = equation.translate(dict(zip(map(ord, capitals), free, strict=False))).encode()
                found = True
    return found


def _float_biases(graph: GraphEditor) -> bool:
    """Compute the biases that are stored as integers, as every runtime does before it runs."""
    producers, found = graph.producers(), False
    for node in graph.nodes:
        maker = producers.get(node.input[2]) if node.op_type in WEIGHTED and len(node.input) > 2 else None
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        values = [graph.constant(name) for name in maker.input if name]
        stored, scale = values[0], values[1]
        if any(value is None for value in values) or stored is None or scale is None or stored.ndim != 1:
            continue
        zero = values[2] if len(values) > 2 and values[2] is not None else np.zeros(1, np.int64)
        bias = (stored.astype(np.float64) - zero.astype(np.float64)) * scale.astype(np.float64)
        node.input[2] = graph.add_constant(f"{node.input[2]}_float", bias.astype(scale.dtype))
        found = True
    return found


def _signed(graph: GraphEditor) -> bool:
    """Write symmetric uint8 with a zero point of 128 as int8 with 0: the same values, 128 lower.

    Constants may have any zero point that leaves them in the range of int8.
    """
    producers, consumers = graph.producers(), graph.consumers()
    found = False
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or graph.dtype(node.input[0]) != TensorProto.UINT8:
            continue
        zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        stored = graph.constant(node.input[0])
        if zero is None or zero.dtype != np.uint8:
            continue
        if stored is not None and len(consumers[node.input[0]]) == 1:
            found |= _signed_constant(graph, node, zero)
        elif stored is None and (zero == _MIDDLE).all():
            found |= _signed_activation(graph, node, producers, consumers)
    return found


def _signed_constant(graph: GraphEditor, node: NodeProto, zero: npt.NDArray[Any]) -> bool:
    stored, axis = graph.constant(node.input[0]), int(attribute(node, "axis", 1))
    if stored is None or zero.ndim > 1:
        return False
    lowered_by = zero.astype(np.int64)
    if zero.size > 1:
        if not -stored.ndim <= axis < stored.ndim or stored.shape[axis] != zero.size:
            return False
        lowered_by = lowered_by.reshape([-1 if at == axis % stored.ndim else 1 for at in range(stored.ndim)])
    values = stored.astype(np.int64) - lowered_by.reshape(lowered_by.shape if zero.size > 1 else ())
    if values.min() < -_MIDDLE or values.max() >= _MIDDLE:
        return False
    node.input[0] = graph.add_constant(f"{node.input[0]}_int8", values.astype(np.int8))
    node.input[2] = graph.add_constant(f"{node.input[2]}_int8", np.zeros(zero.shape, np.int8))
    return True


def _signed_activation(
    graph: GraphEditor,
    node: NodeProto,
    producers: dict[str, NodeProto],
    consumers: dict[str, list[NodeProto]],
) -> bool:
    """Shift an activation's quantizer with all of its dequantizers, if only moves stand between them."""
    maker = producers.get(node.input[0])
    while maker is not None and maker.op_type in MOVES_ACROSS_QDQ:
        maker = producers.get(maker.input[0])
    if maker is None or maker.op_type != "QuantizeLinear" or len(maker.input) < 3:
        return False
    pending, around = [maker.output[0]], [maker]
    while pending:
        name = pending.pop()
        if name in graph.outputs:
            return False
        for reader in consumers[name]:
            if reader.op_type == "DequantizeLinear" and len(reader.input) > 2:
                around.append(reader)
            elif reader.op_type in MOVES_ACROSS_QDQ and reader.input[0] == name:
                pending += reader.output[:1]
            else:
                return False
    zeros = [zero for item in around if (zero := graph.constant(item.input[2])) is not None]
    if len(zeros) < len(around) or any(zero.dtype != np.uint8 or (zero != _MIDDLE).any() for zero in zeros):
        return False
    for item, zero in zip(around, zeros, strict=True):
        item.input[2] = graph.add_constant(f"{item.input[2]}_int8", np.zeros(zero.shape, np.int8))
    return True


def _single(graph: GraphEditor) -> bool:
    """Compute in FP32 what is computed in FP64 inside the graph, as TensorRT does."""
    ends = {*graph.inputs, *graph.outputs}
    if any(graph.dtype(name) == TensorProto.DOUBLE for name in ends):
        return False
    found = False
    for name, tensor in list(graph.constants.items()):
        if tensor.data_type == TensorProto.DOUBLE:
            value = onnx.numpy_helper.to_array(tensor)
            single = graph.add_constant(f"{name}_float", value.astype(np.float32))
            graph.reroute(name, single)
            found = True
    for node in graph.nodes:
        for item in node.attribute:
            if item.name in ("to", "dtype", "output_dtype") and item.i == TensorProto.DOUBLE:
                item.i = TensorProto.FLOAT
                found = True
            elif item.name == "value" and item.t.data_type == TensorProto.DOUBLE:  # ConstantOfShape
                value = onnx.numpy_helper.to_array(item.t)
                item.CopyFrom(helper.make_attribute("value", onnx.numpy_helper.from_array(value.astype(np.float32))))
                found = True
    return found


REWRITES: Final = (
    Rewrite(frozenset({"operators/opset", "operators/restriction"}), f"opset raised to {_CONVERTED}", _newer_opset),
    Rewrite(frozenset({"operators/opset"}), "opset lowered", _older_opset),
    Rewrite(frozenset({"operators/domain"}), "operators of com.microsoft written as standard ones", _standard),
    Rewrite(frozenset({"operators/supported"}), "sequences of parts written as Split", _edits(_sequences)),
    Rewrite(frozenset({"operators/supported"}), "operators written as the functions that define them", _functions),
    Rewrite(frozenset({"operators/restriction"}), "outputs that nothing reads left out", _edits(_unread_outputs)),
    Rewrite(frozenset({"operators/restriction"}), "equations written in small letters", _edits(_small_letters)),
    Rewrite(frozenset({"qdq/bias"}), "integer biases computed", _edits(_float_biases)),
    Rewrite(frozenset({"qdq/int8", "qdq/symmetric"}), "symmetric uint8 written as int8", _edits(_signed)),
    Rewrite(frozenset({"types/uint8"}), "shape of pixels taken behind their cast", _edits(_shapes)),
    Rewrite(frozenset({"types/double"}), "FP64 inside the graph written as FP32", _edits(_single)),
)
"""All rewrites, in the order in which they are tried."""

"""One number type for a third-party graph: float32 in place of FP16, bfloat16 and double."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .edit import attribute, infer
from .files import nodes_of

__all__ = ["FLOATS", "has_other_floats", "widened"]

_OTHERS: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
FLOATS: Final = _OTHERS | {TensorProto.FLOAT}
"""Floating-point types of a third-party graph."""

_TYPE_ATTRIBUTES: Final = frozenset({"to", "dtype", "output_dtype", "stash_type", "softmax_precision"})
"""Attributes whose number is an element type."""


def has_other_floats(model: onnx.ModelProto) -> bool:
    """Return whether a graph stores, takes, makes or casts to floats that are not float32."""
    types = {tensor.data_type for tensor in _tensors(model)}
    types |= {value.type.tensor_type.elem_type for value in _ends(model)}
    types |= {item.i for item in _type_attributes(model)}
    return bool(types & _OTHERS)


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float32 in place of every other float type; double loses digits, the others nothing."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in _tensors(wide):
        if tensor.data_type in _OTHERS:
            with np.errstate(over="ignore"):  # a double beyond float32 means infinity
                values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in _ends(wide):
        if value.type.tensor_type.elem_type in _OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del wide.graph.value_info[:]
    for item in _type_attributes(wide):
        if item.i in _OTHERS:
            item.i = TensorProto.FLOAT
    types = {value.name: value.type.tensor_type.elem_type for value in (infer(wide).graph.value_info)}
    types |= {value.name: value.type.tensor_type.elem_type for value in _ends(wide)}
    types |= {tensor.name: tensor.data_type for tensor in wide.graph.initializer}
    for node in wide.graph.node:
        if node.op_type == "Cast" and attribute(node, "to", 0) == types.get(node.input[0]) == TensorProto.FLOAT:
            node.op_type = "Identity"
            del node.attribute[:]
    return wide


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    constants = [item.t for node in nodes_of(model.graph) for item in node.attribute if item.HasField("t")]
    return [*model.graph.initializer, *constants]


def _ends(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]


def _type_attributes(model: onnx.ModelProto) -> list[onnx.AttributeProto]:
    return [item for node in nodes_of(model.graph) for item in node.attribute if item.name in _TYPE_ATTRIBUTES]

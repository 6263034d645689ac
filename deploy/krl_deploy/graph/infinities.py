"""Infinities that a network stores on purpose: attention masks, open ends of ``Clip``, padding before a maximum.

They are no fault, and neither are the infinite values that follow from them. Every other infinity is one, and so is
each NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from krl_runtime.errors import ModelError

from .edit import GraphEditor, attribute
from .operators import KEEPS_INTEGERS, MOVES_OR_CASTS, QDQ, WEIGHTED

__all__ = ["Signs", "check_numbers", "intended_infinities"]

Signs = frozenset[float]
"""Infinite values that a tensor may hold: ``inf``, ``-inf``, both or none."""

_NONE: Final[Signs] = frozenset()
_BOTH: Final[Signs] = frozenset({np.inf, -np.inf})
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

_BOUNDED = frozenset({"Erf", "HardSigmoid", "Sigmoid", "Sign", "Softmax", "Softsign", "Tanh"})
_NEVER_MINUS = frozenset({"Celu", "Elu", "Exp", "Relu", "Selu", "Softplus", "Sqrt", "ThresholdedRelu"})
_KEEPS_SIGNS = KEEPS_INTEGERS | {
    *("Add", "AveragePool", "Cast", "Constant", "ConstantOfShape", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu"),
    *("Log", "LogSoftmax", "Pad", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Resize", "Sum"),
    *("Tile", "Where"),
}
_HAS_WEIGHTS = WEIGHTED | {"BatchNormalization"}
_HANDS_ON = MOVES_OR_CASTS | QDQ  # from a stored weight to the operator


def check_numbers(model: onnx.ModelProto) -> None:
    """Refuse a model with stored numbers that no network needs.

    Raises:
        ModelError: A stored number is NaN, or one of a weight, a bias or a batch normalization is infinite.
    """
    stored = {item.name: _array(item) for item in model.graph.initializer if item.data_type in _FLOATS}
    for node in model.graph.node:
        for values in _attributes(node):
            stored[node.output[0] if node.op_type == "Constant" else f"in {node.op_type} {node.name}"] = values
    for name, values in stored.items():
        if np.isnan(values).any():
            raise ModelError(f"the model's weight {name} has values that are not finite numbers: NaN")
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        for name in node.input if node.op_type in _HAS_WEIGHTS else ():
            origin = _origin(producers, name)
            if origin in stored and not np.isfinite(stored[origin]).all():
                raise ModelError(
                    f"the model's weight {origin} has values that are not finite numbers; {node.op_type} {node.name} "
                    "reads it. Infinity is accepted in masks, limits and padding"
                )


def _origin(producers: dict[str, NodeProto], name: str) -> str:
    """Return the tensor that a tensor was before it was moved, cast or quantized."""
    while name in producers and producers[name].op_type in _HANDS_ON:
        name = producers[name].input[0]
    return name


def _array(tensor: TensorProto) -> npt.NDArray[Any]:
    return numpy_helper.to_array(tensor)


def _attributes(node: NodeProto) -> Iterator[npt.NDArray[Any]]:
    """Yield the float numbers that a node has in its attributes."""
    for item in node.attribute:
        if item.type == AttributeProto.FLOAT:
            yield np.array([item.f], np.float32)
        elif item.type == AttributeProto.FLOATS:
            yield np.array(item.floats, np.float32)
        elif item.type == AttributeProto.TENSOR and item.t.data_type in _FLOATS:
            yield _array(item.t)


def intended_infinities(model: onnx.ModelProto) -> dict[str, Signs]:
    """Return the infinite values that tensors may hold because the model stores infinities.

    Args:
        model: A model without infinities in weights; see ``check_numbers``.

    Returns:
        The signs by the tensor's name, for each tensor that has some.
    """
    graph = GraphEditor(model)
    found = {name: _signs(graph.constant(name)) for name, item in graph.constants.items() if item.data_type in _FLOATS}
    for node in graph.nodes:
        signs = _after(graph, node, [found.get(name, _NONE) for name in node.input])
        found |= dict.fromkeys(node.output, signs)
    return {name: signs for name, signs in found.items() if signs}


def _signs(values: npt.NDArray[Any] | None) -> Signs:
    return _NONE if values is None else frozenset(sign for sign in _BOTH if (values == sign).any())


def _after(graph: GraphEditor, node: NodeProto, before: Sequence[Signs]) -> Signs:
    """Return the infinite values that may leave a node, from those that may enter it."""
    kind = node.op_type
    entering = _NONE.union(*before)
    if kind == "Clip":
        low, high = (_limit(graph, node, index, name) for index, name in ((1, "min"), (2, "max")))
        return before[0] - ({np.inf} if high < np.inf else _NONE) - ({-np.inf} if low > -np.inf else _NONE)
    if kind in ("Max", "Min"):
        least = np.inf if kind == "Min" else -np.inf  # it leaves only where every input has it
        return entering - ({least} if any(least not in signs for signs in before) else _NONE)
    if kind == "Attention":  # its mask is followed by a softmax
        return before[2]
    if kind in _BOUNDED:
        return _NONE
    if kind in _NEVER_MINUS:
        return entering & {np.inf}
    if kind in _KEEPS_SIGNS:
        return entering.union(*(_signs(values) for values in _attributes(node)))
    return _BOTH if entering else _NONE


def _limit(graph: GraphEditor, node: NodeProto, index: int, name: str) -> float:
    """Return an end of a ``Clip``, infinite if it is left out or computed."""
    value = graph.constant(node.input[index]) if len(node.input) > index else attribute(node, name, None)
    return (-np.inf if name == "min" else np.inf) if value is None else float(value)

"""ONNX graphs in NumPy, each operator in the types of its tensors: FP16 stays FP16 inside an operator too.

Sums are an exception: NumPy adds FP16 numbers up in FP32, as devices do, and rounds the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
_TYPES = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}


def emulate(model: onnx.ModelProto, **feeds: Array) -> Array:
    """Return the first output of a model."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | feeds
    with np.errstate(all="ignore"):
        for node in model.graph.node:
            inputs = [values[name] for name in node.input if name]
            floats = {value.dtype for value in inputs if value.dtype.kind == "f"}
            assert len(floats) <= 1, f"{node.name} mixes {floats}"
            values[node.output[0]] = np.asarray(OPERATORS[node.op_type](node, *inputs))
    return values[model.graph.output[0].name]


def _given(node: NodeProto, name: str, default: Any = None) -> Any:
    found = [helper.get_attribute_value(item) for item in node.attribute if item.name == name]
    return found[0] if found else default


def _same(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda node, *inputs: function(*inputs)


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def apply(node: NodeProto, x: Array, axes: Array | None = None) -> Array:
        chosen = tuple(axes.tolist()) if axes is not None else None
        return function(x, axis=chosen, keepdims=bool(_given(node, "keepdims", 1))).astype(x.dtype)

    return apply


def _matrix_product(node: NodeProto, a: Array, b: Array, bias: Array | None = None) -> Array:
    b = b.T if _given(node, "transB", 0) else b
    made = (a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype)
    return made if bias is None else made + bias


def _normalize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = (centered * centered).mean(axis=axes, keepdims=True)
    return centered / np.sqrt(variance + x.dtype.type(epsilon))


def _layer(node: NodeProto, x: Array, scale: Array, bias: Array | float = 0) -> Array:
    return _normalize(x, (-1,), _given(node, "epsilon", 1e-5)) * scale + bias


def _channels(part: Array, x: Array) -> Array:
    return part.reshape((1, -1) + (1,) * (x.ndim - 2))


def _instance(node: NodeProto, x: Array, scale: Array, bias: Array) -> Array:
    made = _normalize(x, tuple(range(2, x.ndim)), _given(node, "epsilon", 1e-5))
    return made * _channels(scale, x) + _channels(bias, x)


def _batch(node: NodeProto, x: Array, *parts: Array) -> Array:
    scale, bias, mean, variance = (_channels(part, x) for part in parts)
    return (x - mean) / np.sqrt(variance + x.dtype.type(_given(node, "epsilon", 1e-5))) * scale + bias


def _softmax(node: NodeProto, x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _softplus(x: Array) -> Array:
    return np.log(np.exp(x) + x.dtype.type(1))


def _l2(x: Array, **how: Any) -> Array:
    return np.sqrt((x * x).sum(**how))


OPERATORS: dict[str, Callable[..., Array]] = {
    "Abs": _same(np.abs),
    "Add": _same(np.add),
    "BatchNormalization": _batch,
    "Cast": lambda node, x: x.astype(_TYPES[_given(node, "to")]),
    "Clip": _same(np.maximum),  # with a lower end alone
    "Div": _same(np.divide),
    "Exp": _same(np.exp),
    "Expand": _same(lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape)))),
    "Gemm": _matrix_product,
    "Greater": _same(np.greater),
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "Log": _same(np.log),
    "LpNormalization": lambda node, x: x / _l2(x, axis=_given(node, "axis", -1), keepdims=True),
    "MatMul": _matrix_product,
    "Max": _same(np.maximum),
    "Mul": _same(np.multiply),
    "Pow": _same(np.power),
    "Reciprocal": _same(np.reciprocal),
    "ReduceL2": _reduction(_l2),
    "ReduceLogSumExp": _reduction(lambda x, **how: np.log(np.exp(x).sum(**how))),
    "ReduceMean": _reduction(np.mean),
    "ReduceSum": _reduction(np.sum),
    "ReduceSumSquare": _reduction(lambda x, **how: (x * x).sum(**how)),
    "Relu": _same(lambda x: np.maximum(x, x.dtype.type(0))),
    "Reshape": _same(lambda x, shape: x.reshape(shape)),
    "Softmax": _softmax,
    "Softplus": _same(_softplus),
    "Sqrt": _same(np.sqrt),
    "Sub": _same(np.subtract),
    "Where": _same(np.where),
    "Transpose": lambda node, x: x.transpose(_given(node, "perm")),
}

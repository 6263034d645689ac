"""Networks that store infinities on purpose, in every form in which exporters write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from _helpers.graphs import graph, node

MASK = np.where(np.triu(np.ones((4, 4), bool), 1), -np.inf, 0).astype(np.float32)
"""No position attends to a later one."""


def weights(*names: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=shape) / 4).astype(np.float32) for name in names}


WEIGHTS = weights("wq", "wv", "wo", shape=(16, 16))


def tensor(values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(values)


def constant(output: str, **attributes: object) -> NodeProto:
    return helper.make_node("Constant", [], [output], name=f"n_{output}", **attributes)


def attention(mask: list[NodeProto], masked: NodeProto, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return an attention over 4 positions, whose products ``s`` the node ``masked`` turns into ``m``."""
    nodes = [
        node("MatMul", ["x", "wq"], "q"),
        node("Transpose", ["q"], "k", perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], "s"),
        *mask,
        masked,
        node("Softmax", ["m"], "p", axis=-1),
        node("MatMul", ["x", "wv"], "v"),
        node("MatMul", ["p", "v"], "a"),
        node("MatMul", ["a", "wo"], "o"),
        node("Relu", ["o"], "y"),
    ]
    return graph(nodes, {"x": ["batch", 4, 16]}, {"y": None}, {**WEIGHTS, **constants})


ADD = node("Add", ["s", "mask"], "m")
BOOLEAN = {"hidden": np.isinf(MASK)}
SHAPE = {"shape": np.array([4, 4])}


def windows(pad: NodeProto, *, opset: int = 20, constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Return a convolution, padding with ``-inf``, the maximum of windows, and a convolution."""
    nodes = [
        node("Conv", ["x", "w1"], "c"),
        pad,
        node("MaxPool", ["d"], "h", kernel_shape=[3, 3], strides=[2, 2]),
        node("Conv", ["h", "w2"], "y"),
    ]
    kernels = weights("w1", "w2", shape=(16, 16, 1, 1))
    shapes = {"x": ["batch", 16, 4, 4]}
    return graph(nodes, shapes, {"y": None}, {**kernels, **(constants or {})}, opset=opset)


def clip(limits: list[str], *, opset: int = 20, **how: object) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w1"], "c"), node("Clip", ["c", *limits], "d", **how), node("Conv", ["d", "w2"], "y")]
    kernels = weights("w1", "w2", shape=(16, 16, 1, 1))
    ends = {"low": np.float32(0), "high": np.float32(np.inf), "below": np.float32(-np.inf)}
    used = {**kernels, **{name: ends[name] for name in limits}}
    return graph(nodes, {"x": ["batch", 16, 4, 4]}, {"y": None}, used, opset=opset)


PADS = [0, 0, 1, 1, 0, 0, 1, 1]
FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "initializer": lambda: attention([], ADD, {"mask": MASK}),
    "Constant value": lambda: attention([constant("mask", value=tensor(MASK))], ADD, {}),
    "Constant value_float": lambda: attention(
        [constant("none", value_float=-np.inf)],
        node("Where", ["hidden", "none", "s"], "m"),
        BOOLEAN,
    ),
    "Constant value_floats": lambda: attention(
        [constant("flat", value_floats=MASK.reshape(-1).tolist()), node("Reshape", ["flat", "shape"], "mask")],
        ADD,
        SHAPE,
    ),
    "Expand": lambda: attention(
        [node("Expand", ["none", "shape"], "wide"), node("Where", ["hidden", "wide", "zero"], "mask")],
        ADD,
        {**BOOLEAN, **SHAPE, "none": np.float32([-np.inf]), "zero": np.float32(0)},
    ),
    "ConstantOfShape": lambda: attention(
        [
            node("Shape", ["s"], "size"),
            node("ConstantOfShape", ["size"], "wide", value=tensor(np.float32([-np.inf]))),
        ],
        node("Where", ["hidden", "wide", "s"], "m"),
        BOOLEAN,
    ),
    "Where of a computed size": lambda: attention(
        [node("Shape", ["s"], "size"), node("Expand", ["none", "size"], "wide")],
        node("Where", ["hidden", "wide", "s"], "m"),
        {**BOOLEAN, "none": np.float32([-np.inf])},
    ),
    "Pad": lambda: windows(
        node("Pad", ["c", "pads", "none"], "d"), constants={"pads": np.array(PADS), "none": np.float32(-np.inf)}
    ),
    "Pad with attributes": lambda: windows(node("Pad", ["c"], "d", pads=PADS, value=-np.inf), opset=10),
    "Clip above": lambda: clip(["low", "high"]),
    "Clip below": lambda: clip(["below", "low"]),
    "Clip with attributes": lambda: clip([], opset=10, min=0.0, max=np.inf),
}


def inputs(model: onnx.ModelProto, count: int = 8) -> np.ndarray:
    """Return normally distributed inputs."""
    shape = [item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)

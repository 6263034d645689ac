"""Quantized graphs as krl writes them, and small edits that plant a fault in one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from _helpers.graphs import graph, node
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_deploy.rules.findings import Finding
from krl_deploy.rules.run import findings_of
from krl_deploy.rules.targets import parse_target

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def findings(model: onnx.ModelProto, target: str = "tensorrt-11.4") -> list[Finding]:
    return list(findings_of(model, parse_target(target)))


def of_rule(model: onnx.ModelProto, rule: str, target: str = "tensorrt-11.4") -> list[Finding]:
    return [finding for finding in findings(model, target) if finding.rule == rule]


def family(model: onnx.ModelProto, name: str, target: str = "tensorrt-11.4") -> list[Finding]:
    return [finding for finding in findings(model, target) if finding.rule.startswith(f"{name}/")]


def one(op, shape, constants=None, *, outputs=("y",), opset=20, dtypes=None, free=None, **attributes):
    """A model of one node named "node", as a converter writes it: not checked."""
    kinds = {"x": TensorProto.FLOAT, **(dtypes or {})}
    arrays = {name: np.asarray(array) for name, array in (constants or {}).items()}
    inputs = {"x": shape, **(free or {})}
    made = helper.make_node(op, [*inputs, *arrays], list(outputs), name="node", **attributes)
    values = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), s) for name, s in inputs.items()]
    results = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in outputs]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    shell = helper.make_graph([made], "g", values, results, weights)
    return helper.make_model(shell, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def quantize(model: onnx.ModelProto, *, half: bool = False) -> onnx.ModelProto:
    """Return the Q/DQ model for TensorRT, with FP32 or FP16 around INT8; every range is -1 to 1."""
    ranges: dict[str, tuple[float, float]] = defaultdict(lambda: (-1.0, 1.0))
    quantized = to_tensorrt(model, ranges, rounding=Rounding(fp16=half)).model
    return to_fp16(quantized, {}, around_int8=True).model if half else quantized


def block(*, half: bool = False) -> onnx.ModelProto:
    """A residual block in INT8: pixels → first → relu → second → third → add (with relu) → head."""
    kernels = {"w0": normal(32, 3, 3, 3), "w1": normal(32, 32, 3, 3), "w2": normal(32, 32, 3, 3)}
    biases = {f"b{index}": normal(32) for index in range(3)}
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w0", "b0"], "c0", **same),
        node("Relu", ["c0"], "r0"),
        node("Conv", ["r0", "w1", "b1"], "c1", **same),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2", "b2"], "c2", **same),
        node("Add", ["c2", "r0"], "a"),
        node("GlobalAveragePool", ["a"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "w3"], "y"),
    ]
    model = graph(
        nodes, {"x": ["batch", 3, 8, 8]}, {"y": ["batch", 16]}, {**kernels, **biases, "w3": normal(32, 16)}, opset=20
    )
    return quantize(model, half=half)


def transformer(*, half: bool = True, layers: bool = True) -> onnx.ModelProto:
    """A block of a vision transformer: attention with its projection, and two products around a GELU."""
    weights = {name: normal(32, 32) for name in ("wq", "wk", "wv", "wo", "w1", "w2")}
    nodes = [
        *(node("MatMul", ["x", f"w{name}"], name) for name in "qkv"),
        node("Transpose", ["k"], "kt", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], "scores"),
        node("Softmax", ["scores"], "probabilities", axis=-1),
        node("MatMul", ["probabilities", "v"], "applied"),
        node("MatMul", ["applied", "wo"], "projected"),
        node("MatMul", ["projected", "w1"], "wide"),
        node("Gelu", ["wide"], "gelu"),
        node("MatMul", ["gelu", "w2"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 8, 32]}, {"y": ["batch", 8, 32]}, weights, opset=20)
    return quantize(model, half=half) if layers else model


def edited(model: onnx.ModelProto, edit: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    """Return a copy with a fault planted in it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    edit(copy)
    return copy


def find(model: onnx.ModelProto, name: str) -> NodeProto:
    return next(item for item in model.graph.node if item.name == name or name in item.output)


def producer_of(model: onnx.ModelProto, reader: str, index: int) -> NodeProto:
    """Return the node that makes an input of the node ``reader``."""
    return find(model, find(model, reader).input[index])


def value(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(item for item in model.graph.initializer if item.name == name))


def set_value(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    for item in model.graph.initializer:
        if item.name == name:
            item.CopyFrom(numpy_helper.from_array(np.asarray(array), name))


def add_constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def insert_pair(model: onnx.ModelProto, reader: str, index: int, scale: float = 0.01) -> None:
    """Put a pair before an input of the node ``reader``."""
    target = find(model, reader)
    name = f"{reader}_{index}"
    add_constant(model, f"{name}_s", np.float32(scale))
    add_constant(model, f"{name}_z", np.int8(0))
    quantized = helper.make_node(
        "QuantizeLinear", [target.input[index], f"{name}_s", f"{name}_z"], [f"{name}_q"], name=f"Q_{name}"
    )
    restored = helper.make_node(
        "DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [f"{name}_d"], name=f"DQ_{name}"
    )
    target.input[index] = f"{name}_d"
    place(model, [quantized, restored], before=reader)


def remove_pair(model: onnx.ModelProto, reader: str, index: int) -> None:
    """Let an input of the node ``reader`` be the float tensor behind its pair."""
    restored = producer_of(model, reader, index)
    find(model, reader).input[index] = find(model, restored.input[0]).input[0]


def place(model: onnx.ModelProto, nodes: list[NodeProto], *, before: str) -> None:
    position = next(i for i, item in enumerate(model.graph.node) if item.name == before)
    for item in nodes:
        model.graph.node.insert(position, item)
        position += 1


WEIGHT = "DequantizeLinear_w1_dequantized"
"""Node of the second convolution's weight in ``block``."""


def few_scales(model: onnx.ModelProto) -> None:
    """Leave half of the scales of a weight, and half of their zero points."""
    set_value(model, find(model, WEIGHT).input[1], np.full(16, 0.01, np.float32))
    few_zero_points(model)


def few_zero_points(model: onnx.ModelProto) -> None:
    """Leave half of the zero points of a weight."""
    set_value(model, find(model, WEIGHT).input[2], np.zeros(16, np.int8))

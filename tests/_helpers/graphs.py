"""Small ONNX graphs for tests, and running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

DTYPES = {
    name: getattr(TensorProto, kind)
    for name, kind in (
        ("float32", "FLOAT"),
        ("float16", "FLOAT16"),
        ("float64", "DOUBLE"),
        ("uint8", "UINT8"),
        ("int8", "INT8"),
        ("int16", "INT16"),
        ("int32", "INT32"),
        ("int64", "INT64"),
    )
}


def graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str] | None],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 20,
    dtypes: Mapping[str, str] | None = None,
    ir: int = 10,
) -> onnx.ModelProto:
    """Return a checked model; float32 unless ``dtypes`` says otherwise; an output's shape of ``None`` is inferred."""

    def value(name: str, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, DTYPES[(dtypes or {}).get(name, "float32")], shape)

    proto = helper.make_graph(
        list(nodes),
        "test",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return model


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [output], name=f"n_{output}", **attributes)


def run(model: onnx.ModelProto, *, optimize: bool = True, **feeds: np.ndarray) -> list[np.ndarray]:
    """Run a model on ONNX Runtime's CPU provider, with one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact INT8 on x86 without VNNI
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def ops(model: onnx.ModelProto) -> list[str]:
    return [item.op_type for item in model.graph.node]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producer(model: onnx.ModelProto, tensor: str) -> NodeProto:
    return next(item for item in model.graph.node if tensor in item.output)


def named(model: onnx.ModelProto, name: str) -> NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def measured_ranges(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of every float32 tensor that the graph computes or takes."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    values = [value for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    extended.graph.output.extend(value for value in values if value.name not in present)
    names = [value.name for value in extended.graph.output]
    outputs = dict(zip(names, run(extended, optimize=False, **feeds), strict=True))
    return {name: (float(array.min()), float(array.max())) for name, array in {**feeds, **outputs}.items()}


def assert_alike(got: np.ndarray, expected: np.ndarray, share: float = 0.03) -> None:
    """Assert that the difference has at most ``share`` of the expected values' own deviation."""
    assert (got - expected).std() <= share * expected.std()

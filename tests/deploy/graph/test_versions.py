"""Files that are newer than the oldest supported ONNX Runtime, judged by the reference evaluator of onnx."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from _helpers.graphs import ops
from krl_deploy.graph.files import NEWEST_IR, read_model
from krl_deploy.graph.versions import NEWEST_OPSET, lowered

X = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
NEWEST_KNOWN = onnx.defs.onnx_opset_version()


def made(nodes, opset, ir=onnx.IR_VERSION, outputs=("y",), dtype=TensorProto.FLOAT, **constants):
    """A graph from x to its outputs, without what the checker of an older onnx would refuse."""
    values = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 6])
    results = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], results, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return onnx.shape_inference.infer_shapes(model)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=f"n_{output}", **attributes)


def opset(model):
    return model.opset_import[0].version


def test_the_limits_are_those_of_the_oldest_onnxruntime():
    """ONNX Runtime 1.20 was built with onnx 1.17 or before: IR 10, opset 21 (its release notes)."""
    text = Path(__file__).parents[3].joinpath("pyproject.toml").read_text("utf-8")
    assert re.findall(r'"onnxruntime>=([\d.]+)"', text) == ["1.20"]
    assert (NEWEST_IR, NEWEST_OPSET) == (10, 21)


@pytest.mark.parametrize(("opset", "expected"), [(9, 10), (17, 10), (21, 10)])
@pytest.mark.parametrize("ir", [11, 13, 14, 99])
def test_the_ir_version_is_lowered(opset, expected, ir, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(made([node("Relu", ["x"], "y")], opset, ir).SerializeToString())
    assert read_model(path).ir_version == expected


@pytest.mark.parametrize("ir", [7, 8, 10])
def test_an_older_ir_version_stays(ir, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(made([node("Relu", ["x"], "y")], 12, ir).SerializeToString())
    assert read_model(path).ir_version == ir


NODES = {
    "same": [node("Softmax", ["x"], "y", axis=1)],
    "types": [node("Transpose", ["x"], "t", perm=[0, 2, 1]), node("HardSwish", ["t"], "y")],
    "default": [node("Cast", ["x"], "y", to=TensorProto.FLOAT, round_mode="up")],
    "RMSNormalization": [node("RMSNormalization", ["x", "scale"], "n", axis=-1), node("Relu", ["n"], "y")],
    "Swish": [node("Swish", ["x"], "y", alpha=1.5)],
    "Attention": [node("Attention", ["x", "x", "x"], "y", q_num_heads=2, kv_num_heads=2)],
}


@pytest.mark.skipif(NEWEST_KNOWN < 24, reason="onnx does not know these opsets")
@pytest.mark.parametrize("name", NODES)
def test_newer_opsets_are_lowered(name):
    constants = {"scale": np.linspace(0.5, 2, 6, dtype=np.float32)} if name == "RMSNormalization" else {}
    model = made(NODES[name], 24, **constants)
    result, changes, reasons = lowered(model)
    assert (opset(result), result.ir_version, reasons) == (21, 10, [])
    assert changes == ["opset 24 was lowered to 21"]
    if name not in ops(result):
        assert all(onnx.defs.has(op) and onnx.defs.get_schema(op, 21, "") for op in ops(result))
    onnx.checker.check_model(result, full_check=True)
    expected = ReferenceEvaluator(model).run(None, {"x": X})[0]
    np.testing.assert_allclose(ReferenceEvaluator(result).run(None, {"x": X})[0], expected, atol=1e-5)


KEPT = {
    "TopK of bfloat16": (
        [node("Cast", ["x"], "b", to=TensorProto.BFLOAT16), helper.make_node("TopK", ["b", "k"], ["v", "y"], name="t")],
        {"k": np.int64([2])},
        TensorProto.INT64,
    ),
    "TensorScatter, which opset 21 has not": (
        [node("TensorScatter", ["x", "x", "zeros"], "y", axis=1)],
        {"zeros": np.int64([0, 0])},
        TensorProto.FLOAT,
    ),
    "Cast with round_mode": (
        [node("Cast", ["x"], "y", to=TensorProto.FLOAT, round_mode="down")],
        {},
        TensorProto.FLOAT,
    ),
    "Cast of float8e8m0": (
        [node("Cast", ["x"], "e", to=TensorProto.FLOAT8E8M0), node("Cast", ["e"], "y", to=TensorProto.FLOAT)],
        {},
        TensorProto.FLOAT,
    ),
}  # fmt: skip


@pytest.mark.skipif(NEWEST_KNOWN < 24, reason="onnx does not know these opsets")
@pytest.mark.parametrize("reason", KEPT)
def test_what_older_opsets_lack_is_named(reason):
    nodes, constants, dtype = KEPT[reason]
    model = made(nodes, 24, dtype=dtype, **constants)
    result, changes, reasons = lowered(model)
    assert result == model
    assert (changes, reasons[0]) == ([], reason)


def test_older_opsets_stay():
    model = made([node("Relu", ["x"], "y")], 20, 10)
    assert lowered(model) == (model, [], [])

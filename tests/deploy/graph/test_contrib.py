"""Operators of com.microsoft in standard ones: judged by ONNX Runtime, which defines them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.graphs import ops, run
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.contrib import check_standard, foreign_operators, to_standard
from krl_runtime.errors import ModelError

RNG = np.random.default_rng(0)
X = RNG.normal(0, 2, size=(2, 6, 8)).astype(np.float32)
IMAGES = RNG.normal(size=(2, 4, 9, 9)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def contrib(op, inputs, outputs, **attributes):
    outputs = [outputs] if isinstance(outputs, str) else outputs
    return helper.make_node(op, inputs, outputs, name=f"n_{outputs[0]}", domain="com.microsoft", **attributes)


def model_of(nodes, shape, outputs=("y",), opset=18, **constants):
    graph = helper.make_graph(
        nodes,
        "contrib",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["?"] * len(shape)) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def same(model, x=X):
    """Assert that the standard graph makes the same; return its operators."""
    before, after = model, clean(to_standard(model)[0])
    assert not foreign_operators(after)
    assert [item.domain for item in after.opset_import] == [""]
    for ours, theirs in zip(run(after, x=x), run(before, optimize=False, x=x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    return ops(after)


VECTOR = normal(8)
NODES = {
    "Gelu": contrib("Gelu", ["x"], "y"),
    "BiasGelu": contrib("BiasGelu", ["x", "v"], "y"),
    "FastGelu": contrib("FastGelu", ["x"], "y"),
    "FastGelu with a bias": contrib("FastGelu", ["x", "v"], "y"),
    "QuickGelu": contrib("QuickGelu", ["x"], "y"),
    "QuickGelu with alpha": contrib("QuickGelu", ["x"], "y", alpha=0.7),
    "SkipLayerNormalization": contrib("SkipLayerNormalization", ["x", "x", "v"], "y", epsilon=1e-3),
    "SkipLayerNormalization with all": contrib("SkipLayerNormalization", ["x", "x", "v", "w", "u"], "y"),
    "SkipSimplifiedLayerNormalization": contrib("SkipSimplifiedLayerNormalization", ["x", "x", "v", "u"], "y"),
    "FusedMatMul": contrib("FusedMatMul", ["x", "m"], "y", alpha=0.5),
    "FusedMatMul transposed": contrib("FusedMatMul", ["x", "x"], "y", transB=1, alpha=0.25),
    "FusedMatMul transposed twice": contrib("FusedMatMul", ["x", "r"], "y", transA=1, transB=1),
    "TransposeMatMul": contrib("TransposeMatMul", ["x", "m"], "y", transB=1),
}


@pytest.mark.parametrize("name", NODES)
def test_products_and_activations(name):
    node = NODES[name]
    values = {"v": VECTOR, "w": normal(8), "u": normal(8), "m": normal(8, 8), "r": normal(3, 6)}
    same(model_of([node], ["n", 6, 8], **{key: value for key, value in values.items() if key in node.input}))


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_the_sum_before_a_normalization_is_an_output(op):
    node = contrib(op, ["x", "x", "v"], ["y", "", "", "sum"])
    same(model_of([node], ["n", 6, 8], outputs=("y", "sum"), v=VECTOR))


ACTIVATIONS = {
    "Relu": {},
    "Sigmoid": {},
    "Tanh": {},
    "LeakyRelu": {"activation_params": [0.2]},
    "Clip": {"activation_params": [-0.5, 1.0]},
    "HardSigmoid": {"activation_params": [0.3, 0.4]},
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("added", [False, True])
def test_fused_convolutions(kind, added):
    inputs = ["x", "w", "b", *(["x"] if added else [])]
    fused = contrib("FusedConv", inputs, "y", activation=kind, pads=[1, 1, 1, 1], group=2, **ACTIVATIONS[kind])
    found = same(model_of([fused], ["n", 4, 9, 9], w=normal(4, 2, 3, 3), b=normal(4)), IMAGES)
    assert found == ["Conv", *(["Add"] if added else []), kind]


@pytest.mark.parametrize("kind", ["Relu", "Tanh", "LeakyRelu"])
def test_fused_matrix_products(kind):
    more = {"activation_alpha": 0.2} if kind == "LeakyRelu" else {}
    fused = contrib("FusedGemm", ["x", "w", "b"], "y", activation=kind, transB=1, alpha=0.5, beta=2.0, **more)
    assert same(model_of([fused], ["n", 8], w=normal(3, 8), b=normal(3)), normal(2, 8)) == ["Gemm", kind]


def test_what_the_optimizer_of_onnxruntime_wrote(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w", "b"], ["d"], pads=[1] * 4),
        helper.make_node("Add", ["d", "x"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    model = model_of(nodes, ["n", 4, 9, 9], w=normal(4, 4, 3, 3), b=normal(4))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert "com.microsoft.FusedConv" in foreign_operators(optimized)
    assert set(same(optimized, IMAGES)) == {"Conv", "Relu", "Add"}


@pytest.mark.parametrize("stored", [np.uint8, np.int8])
def test_quantizers_of_the_other_domain(stored):
    nodes = [contrib("QuantizeLinear", ["x", "s", "z"], "q"), contrib("DequantizeLinear", ["q", "s", "z"], "y")]
    model = model_of(nodes, ["n", 6, 8], s=np.float32(0.05), z=np.array(3, stored))
    assert same(model) == ["QuantizeLinear", "DequantizeLinear"]


STAYING = {
    "FusedConv with another activation": contrib("FusedConv", ["x", "w"], "y", activation="Softsign"),
    "FusedMatMul with transposed batches": contrib("FusedMatMul", ["x", "x"], "y", transBatchA=1, transBatchB=1),
    "the deviation of a normalization": contrib("SkipLayerNormalization", ["x", "x", "v"], ["y", "", "deviation"]),
    "GridSample": contrib("GridSample", ["x", "grid"], "y"),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_has_no_counterpart_stays_and_is_named(name):
    node = STAYING[name]
    constants = {"w": normal(4, 4, 3, 3), "v": VECTOR, "grid": normal(1, 3, 3, 2)}
    used = {key: value for key, value in constants.items() if key in node.input}
    model, changes = to_standard(model_of([node], ["n", 4, 9, 9], **used))
    assert not changes
    assert [(item.op_type, item.domain) for item in model.graph.node] == [(node.op_type, "com.microsoft")]
    with pytest.raises(ModelError, match=rf"FP16 needs standard .* the model has 1 com.microsoft.{node.op_type}"):
        check_standard(model, "FP16")


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"])
def test_of_a_quantized_model_the_float_model_is_wanted(op):
    """Beside an operator of the other domain, which is not what is wrong with it."""
    model = model_of([contrib("QLinearAdd", ["x"] * 8, "y")], ["n", 4])
    model.graph.node.append(helper.make_node(op, ["x"], ["z"]))
    with pytest.raises(ModelError, match=rf"INT8 needs a model in floating point; .*{op}.*; start from the float"):
        check_standard(model, "INT8")


def test_types_behind_a_rewritten_operator_are_known():
    nodes = [
        contrib("Gelu", ["x"], "g"),
        contrib("FusedMatMul", ["g", "g"], "m", transA=1),
        contrib("Gelu", ["m"], "y"),
    ]
    model = model_of(nodes, ["n", 6, 8])
    del model.graph.value_info[:]
    same(model)


def test_constants_have_the_type_of_the_input():
    model = model_of([contrib("FastGelu", ["x"], "y")], ["n", 6, 8])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    half = X.astype(np.float16)
    found = run(to_standard(model)[0], x=half)[0]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, run(model, optimize=False, x=half)[0], atol=2e-3)

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from _helpers.graphs import assert_alike, constants, graph, measured_ranges, named, node, ops, producer, run
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.precision.emit_fp16 import float_tensors, round_to_fp16, to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_runtime.errors import ModelError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def classifier(*extra, k=2.0):
    """Pixels, normalized, through a convolution; ``extra`` nodes turn ``r`` into ``e``."""
    nodes = [
        node("Cast", ["x"], "f", to=TensorProto.FLOAT),
        node("Mul", ["f", "scale"], "s"),
        node("Conv", ["s", "w", "b"], "c", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r"),
        *(extra or [node("Identity", ["r"], "e")]),
        node("GlobalAveragePool", ["e"], "g"),
        node("Flatten", ["g"], "l"),
        node("Gemm", ["l", "v"], "y"),
    ]
    values = {
        "scale": np.float32(1 / 255),
        "w": normal(8, 3, 3, 3),
        "b": normal(8),
        "v": normal(8, 4),
        "k": np.float32(k),
    }
    return graph(nodes, {"x": ["batch", 3, 8, 8]}, {"y": ["batch", 4]}, values, dtypes={"x": "uint8"})


def test_types_after_the_pass():
    half = to_fp16(classifier(), {})
    editor = GraphEditor(half.model)
    assert editor.dtype("x") == TensorProto.UINT8
    assert editor.dtype("y") == TensorProto.FLOAT
    for name in ("f", "s"):
        assert editor.dtype(name) == TensorProto.FLOAT  # pixels are normalized in FP32
    for name in ("c", "r", "g", "l"):
        assert editor.dtype(name) == TensorProto.FLOAT16, name
    assert producer(half.model, "y").op_type == "Cast"
    stored = constants(half.model)
    assert {stored[name].dtype for name in ("w_half", "b_half", "v_half")} == {np.dtype(np.float16)}
    assert stored["scale"].dtype == np.float32
    assert "w" not in stored
    assert half.kept == {}
    assert len([item for item in half.model.graph.value_info if item.name == "c"]) == 1


def test_it_computes_the_same():
    model = classifier()
    half = to_fp16(model, {})
    expected = run(model, x=X)[0]
    assert_alike(run(half.model, x=X)[0], expected, 0.003)
    rounded = run(round_to_fp16(model, half.nodes), x=X)[0]
    assert_alike(rounded, expected, 0.003)
    assert np.abs(rounded - expected).max() > 0  # it does round


def test_rounding_shows_the_overflow_that_the_cpu_provider_hides():
    """The provider computes FP16 graphs in FP32; on a device, 70000 is infinite."""
    model = classifier(node("Mul", ["r", "k"], "m"), node("Div", ["m", "k"], "e"), k=20000.0)
    naive = to_fp16(model, {})
    assert not np.isfinite(run(round_to_fp16(model, naive.nodes), x=X)[0]).all()
    ranges = measured_ranges(model, x=X)
    rescued = to_fp16(model, ranges)
    assert set(rescued.kept) == {"n_m", "n_e"}
    assert "reaches" in rescued.kept["n_m"]
    assert "FP16 ends at 65504" in rescued.kept["n_m"]
    expected = run(model, x=X)[0]
    for variant in (rescued.model, round_to_fp16(model, rescued.nodes)):
        assert_alike(run(variant, x=X)[0], expected, 0.01)


def test_a_constant_beyond_the_range_stays():
    values = {"w": normal(16, 16), "big": np.float32(1e5), "tiny": np.float32(1e-12)}
    nodes = [node("MatMul", ["x", "w"], "m"), node("Min", ["m", "big"], "n"), node("Add", ["n", "tiny"], "y")]
    half = to_fp16(graph(nodes, {"x": ["batch", 16]}, {"y": None}, values), {})
    assert half.nodes == {"n_m"}
    assert "constant big has 1e+05" in half.kept["n_n"]
    assert "constant tiny, at most 1e-12, would become 0" in half.kept["n_y"]
    assert run(half.model, x=normal(2, 16))[0].dtype == np.float32


def test_a_tiny_bias_may_vanish():
    nodes = [node("Gemm", ["x", "w", "b"], "y")]
    values = {"w": normal(16, 16), "b": np.full(16, 1e-10, np.float32)}
    assert to_fp16(graph(nodes, {"x": ["batch", 16]}, {"y": None}, values), {}).nodes == {"n_y"}


def test_casts_to_float_are_retargeted_and_others_stay():
    nodes = [
        node("MatMul", ["x", "w"], "m"),
        node("Cast", ["m"], "i", to=TensorProto.INT32),
        node("Cast", ["i"], "f", to=TensorProto.FLOAT),
        node("Add", ["f", "m"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 16]}, {"y": None}, {"w": normal(16, 16)})
    half = to_fp16(model, {})
    assert named(half.model, "n_f").attribute[0].i == TensorProto.FLOAT16
    assert half.kept == {"n_i": "casts to another type"}
    x = normal(2, 16)
    assert_alike(run(half.model, x=x)[0], run(model, x=x)[0], 0.3)  # truncation amplifies


def test_scales_of_resize_stay_fp32():
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Resize", ["c", "", "scales"], "y", mode="nearest"),
    ]
    values = {"w": normal(4, 3, 1, 1), "scales": np.float32([1, 1, 2, 2])}
    model = graph(nodes, {"x": ["batch", 3, 4, 4]}, {"y": None}, values)
    half = to_fp16(model, {})
    assert "n_y" in half.nodes
    assert constants(half.model)["scales"].dtype == np.float32
    x = normal(1, 3, 4, 4)
    assert_alike(run(half.model, x=x)[0], run(model, x=x)[0], 0.003)


def test_operators_without_an_fp16_form_stay():
    nodes = [
        node("MatMul", ["x", "w"], "m"),
        node("Celu", ["m"], "c"),
        node("Shape", ["c"], "shape"),
        node("ConstantOfShape", ["shape"], "zeros"),
        node("Add", ["c", "zeros"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 16]}, {"y": None}, {"w": normal(16, 16)})
    half = to_fp16(model, {})
    assert half.kept == {"n_c": "Celu is not defined in FP16", "n_zeros": "ConstantOfShape makes FP32 by definition"}
    x = normal(2, 16)
    assert_alike(run(half.model, x=x)[0], run(model, x=x)[0], 0.003)


def test_foreign_operators_stay():
    model = graph([node("MatMul", ["x", "w"], "m")], {"x": ["batch", 16]}, {"m": None}, {"w": normal(16, 16)})
    model.graph.node.append(helper.make_node("QuickGelu", ["m"], ["y"], domain="com.microsoft", name="n_y"))
    model.graph.output[0].name = "y"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    half = to_fp16(model, {"m": (-1.0, 1.0)})
    assert half.nodes == {"n_m"}
    x = normal(2, 16)
    assert_alike(run(half.model, x=x)[0], run(model, x=x)[0], 0.003)


def test_what_cannot_be_typed_is_refused():
    with pytest.raises(ModelError, match="no node of the model can compute in FP16"):
        to_fp16(graph([node("Relu", ["x"], "y")], {"x": [1]}, {"y": [1]}), {})
    nodes = [node("DequantizeLinear", ["q", "s"], "w"), node("MatMul", ["x", "w"], "y")]
    values = {"q": np.int8([[1, 2], [3, 4]]), "s": np.float32(0.5)}
    with pytest.raises(ModelError, match="the model is quantized"):
        to_fp16(graph(nodes, {"x": [1, 2]}, {"y": [1, 2]}, values), {})


def test_float_tensors_in_order():
    assert float_tensors(classifier()) == ["f", "s", "c", "r", "e", "g", "l", "y"]


def test_a_tensor_is_cast_once_for_all_its_readers():
    nodes = [
        node("MatMul", ["x", "w"], "m"),
        node("Mul", ["m", "big"], "a"),
        node("Add", ["m", "big"], "b"),
        node("Add", ["a", "b"], "y"),
    ]
    half = to_fp16(graph(nodes, {"x": ["batch", 16]}, {"y": None}, {"w": normal(16, 16), "big": np.float32(1e5)}), {})
    casts = [item for item in half.model.graph.node if item.op_type == "Cast" and item.input[0] == "m"]
    assert len(casts) == 1
    assert "Cast" in ops(half.model)


def quantized(opset=20, keep=None):
    """A stem on pixels, a residual block and a plain layer; FP16 scales, FP32 tensors."""
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("Conv", ["f", "w0"], "c0"),
        node("Relu", ["c0"], "r0"),
        node("Conv", ["r0", "w1"], "c1"),
        node("Add", ["c1", "r0"], "s"),
        node("Conv", ["s", "w2"], "y"),
    ]
    values = {"w0": normal(16, 3, 3, 3), "w1": normal(16, 16, 1, 1), "w2": normal(16, 16, 1, 1)}
    model = graph(nodes, {"pixels": ["batch", 3, 8, 8]}, {"y": None}, values, dtypes={"pixels": "uint8"}, opset=opset)
    ranges = measured_ranges(model, pixels=PIXELS)
    ranges = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
    return model, ranges, to_tensorrt(model, ranges, rounding=Rounding(fp16=True), keep=keep).model


PIXELS = np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)


def test_around_int8_the_pairs_have_the_precision_of_their_neighbors():
    _, ranges, model = quantized()
    half = to_fp16(model, ranges, around_int8=True)
    assert half.kept == {}
    values = constants(half.model)
    types = {item.output[0]: item.op_type for item in half.model.graph.node}
    for item in half.model.graph.node:
        if item.op_type == "Conv":
            assert [types[name] for name in item.input[:2]] == ["DequantizeLinear"] * 2  # no Cast between
            assert [values[producer(half.model, name).input[1]].dtype for name in item.input[:2]] == [np.float16] * 2
        if item.op_type == "QuantizeLinear":
            expected = np.float32 if item.input[0] == "f" else np.float16
            assert values[item.input[1]].dtype == expected
            assert values[item.input[2]].dtype == np.int8
    assert ops(half.model).count("Cast") == 2  # of the pixels and of the output
    assert half.model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_around_int8_the_numbers_are_those_of_fp32_around():
    _, ranges, model = quantized()
    half = to_fp16(model, ranges, around_int8=True)
    exact = run(model, pixels=PIXELS)[0]
    for net in (half.model, round_to_fp16(model, half.nodes)):
        assert_alike(run(net, pixels=PIXELS)[0], exact, 0.01)


def test_around_int8_what_overflows_stays_in_fp32():
    _, ranges, model = quantized()
    half = to_fp16(model, {**ranges, "s": (-1e5, 1e5)}, around_int8=True)
    assert set(half.kept) == {"n_s", "n_y"}  # the addition that makes it, and the convolution that reads it
    assert "1e+05" in half.kept["n_y"]
    values = constants(half.model)
    reader = producer(half.model, "y")
    assert [values[producer(half.model, name).input[1]].dtype for name in reader.input[:2]] == [np.float32] * 2
    assert_alike(run(half.model, pixels=PIXELS)[0], run(model, pixels=PIXELS)[0], 0.01)


def test_around_int8_a_layer_that_is_not_int8_is_fp16():
    _, ranges, model = quantized(keep={"n_c1": "for a reason"})
    half = to_fp16(model, ranges, around_int8=True)
    assert "n_c1" in half.nodes
    assert constants(half.model)[named(half.model, "n_c1").input[1]].dtype == np.float16


def test_fp16_scales_need_opset_19():
    _, ranges, model = quantized(opset=18)
    with pytest.raises(ModelError, match="the model has opset 18; FP16 scales need 19"):
        to_fp16(model, ranges, around_int8=True)
    _, ranges, model = quantized()
    with pytest.raises(ModelError, match="the model is quantized"):
        to_fp16(model, ranges)


def divided(divisor):
    nodes = [node("Conv", ["x", "w"], "c"), node("Div", ["c", "d"], "y")]
    return graph(
        nodes, {"x": [1, 4, 3, 3]}, {"y": [1, 4, 1, 1]}, {"w": np.ones((4, 4, 3, 3), np.float32), "d": divisor}
    )


@pytest.mark.parametrize(
    ("divisor", "kept"),
    [
        ([1, 2, 3, 4], False),
        ([1, 2, 1e-9, 4], True),  # one channel alone would be divided by 0
        ([1, 2, 0, 4], False),  # a zero stays what it is
        ([1e-9, 1e-9, 1e-9, 1e-9], True),
    ],
)
def test_a_divisor_that_would_become_zero_stays(divisor, kept):
    made = to_fp16(divided(np.float32(divisor).reshape(1, 4, 1, 1)), {})
    assert ("n_y" in made.kept) == kept


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0.0, 1.0, False),
        (0.0, 7e-5, False),
        (0.0, 5e-5, True),  # subnormal: fewer bits the smaller it is
        (-5e-5, 0.0, True),
        (0.0, 0.0, False),  # nothing is there to be lost
        (8000.0, 8010.0, True),  # two steps
        (8000.0, 8200.0, False),
        (-8010.0, -8000.0, True),
        (5.0, 5.0, False),
        (0.98, 1.0, False),
        (0.4969, 0.5026, False),  # a gate that hardly varies is a factor
    ],
)
def test_small_values_and_small_differences_stay_in_fp32(low, high, kept):
    model = divided(np.float32([1, 2, 3, 4]).reshape(1, 4, 1, 1))
    assert ("n_y" in to_fp16(model, {"y": (low, high)}).kept) == kept


@pytest.mark.parametrize(("low", "kept"), [(1e-9, True), (1e-3, False), (-1.0, False)])
def test_a_computed_divisor_that_would_become_zero_stays(low, kept):
    nodes = [node("Conv", ["x", "w"], "c"), node("Abs", ["c"], "d"), node("Div", ["c", "d"], "y")]
    model = graph(nodes, {"x": [1, 4, 3, 3]}, {"y": [1, 4, 1, 1]}, {"w": np.ones((4, 4, 3, 3), np.float32)})
    assert ("n_y" in to_fp16(model, {"d": (low, 10.0)}).kept) == kept


def test_names_of_new_nodes_are_new():
    """A third-party file may have the very names that krl would give."""
    nodes = [node("MatMul", ["x", "w"], "m"), node("Greater", ["m", "w0"], "g"), node("Cast", ["g"], "f", to=1)]
    nodes += [node("Mul", ["f", "m"], "y")]
    model = graph(nodes, {"x": ["batch", 16]}, {"y": None}, {"w": normal(16, 16), "w0": normal(1)})
    for item in model.graph.node:
        item.name = {"f": "Cast_f", "m": "Cast_y", "y": "Cast_m"}.get(item.output[0], item.name)
    half = to_fp16(model, {"m": (-1.0, 1.0)})
    x = normal(2, 16)
    for net in (half.model, round_to_fp16(model, half.nodes)):
        names = [item.name for item in net.graph.node]
        assert len(set(names)) == len(names)
        assert_alike(run(net, x=x)[0], run(model, x=x)[0], 0.01)

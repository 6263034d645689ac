"""TensorRT's graph: where the pairs stand, what their scales are, and what the graph computes."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import assert_alike, constants, graph, measured_ranges, node, ops, producer, run
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.placement import residual_inputs, weighted_nodes, why_float_on_tensorrt
from krl_deploy.precision.emit_tensorrt import symmetric_scale, to_tensorrt
from krl_deploy.precision.weights import quantize_weight
from krl_runtime.errors import ModelError

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def conv(channels, out, kernel=3, group=1, *, first=None):
    """A model of one convolution, behind another one unless ``first``."""
    nodes = [] if first else [node("Conv", ["x", "w0"], "a")]
    nodes.append(node("Conv", ["x" if first else "a", "w"], "y", group=group))
    values = {"w": normal(out, channels // group, *((kernel, kernel) if isinstance(kernel, int) else kernel))}
    if not first:
        values["w0"] = normal(channels, 32, 1, 1)
    return graph(nodes, {"x": ["batch", channels if first else 32, 8, 8]}, {"y": None}, values)


def reason(model):
    editor = GraphEditor(model)
    return why_float_on_tensorrt(editor, weighted_nodes(editor)[-1])


@pytest.mark.parametrize(
    ("arguments", "quantized"),
    [
        ({"channels": 16, "out": 16}, True),
        ({"channels": 8, "out": 16, "kernel": 1}, True),  # thin, but aligned, square, and 16 outputs
        ({"channels": 8, "out": 8}, False),
        ({"channels": 3, "out": 8, "first": True}, True),  # the first layer may be thin
        ({"channels": 3, "out": 7, "first": True}, False),  # neither count is a multiple of 8
        ({"channels": 3, "out": 32, "kernel": (1, 3), "first": True}, False),  # thin and not square
        ({"channels": 32, "out": 32, "group": 32}, True),  # depthwise, 3×3
        ({"channels": 32, "out": 32, "group": 32, "kernel": 1}, False),
        ({"channels": 12, "out": 12, "group": 12}, False),
    ],
)
def test_which_convolutions_are_quantized_for_tensorrt(arguments, quantized):
    assert (reason(conv(**arguments)) is None) == quantized


@pytest.mark.parametrize(("rows", "columns", "quantized"), [(16, 16, True), (64, 10, False), (8, 64, False)])
def test_narrow_matrix_products_stay_float(rows, columns, quantized):
    values = {"w": normal(rows, columns)}
    model = graph([node("MatMul", ["x", "w"], "y")], {"x": ["batch", rows]}, {"y": ["batch", columns]}, values)
    assert (reason(model) is None) == quantized


def test_scale_by_hand():
    assert symmetric_scale(-2.54, 1.0) == np.float32(0.02)
    assert symmetric_scale(0.0, 0.0) == 1


def test_weight_by_hand():
    weight = np.float32([[1.27, -0.635, 0.0], [0.0, 0.0, 0.0], [-254.0, 1.0, 3.0]])
    values, scale = quantize_weight(weight, axis=0)
    np.testing.assert_allclose(scale, [0.01, 1.0, 2.0], rtol=1e-6)
    # 63.5 and 0.5 and 1.5 round half to even
    assert values.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 0, 2]]


def test_weight_scales_count_along_the_axis():
    weight = normal(4, 6, 3, 3)
    _, scale = quantize_weight(weight, axis=1)
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=(0, 2, 3)) / 127, rtol=1e-6)


def test_denormal_weights_do_not_give_a_scale_that_divides_by_zero():
    values, scale = quantize_weight(np.float32([[1e-44, 0.0]]), axis=0)
    assert values.tolist() == [[0, 0]]
    assert np.isfinite(1 / scale).all()


def fake(x, scale):
    """Quantize to int8 and back, independently of the code under test."""
    return np.clip(np.round(x / scale), -128, 127) * scale


def test_gemm_computes_what_numpy_computes():
    weight, bias, x = normal(32, 24), normal(24), normal(5, 32)
    model = graph(
        [node("Gemm", ["x", "w", "b"], "y")], {"x": ["batch", 32]}, {"y": ["batch", 24]}, {"w": weight, "b": bias}
    )
    quantized = to_tensorrt(model, {"x": (-3.0, 2.0)})
    weight_scale = np.abs(weight).max(axis=0) / 127
    expected = fake(x, 3 / 127) @ fake(weight, weight_scale) + bias
    np.testing.assert_allclose(run(quantized.model, x=x)[0], expected, atol=1e-4)
    assert quantized.count == 1
    assert sorted(ops(quantized.model)) == ["DequantizeLinear", "DequantizeLinear", "Gemm", "QuantizeLinear"]


@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0)])
def test_gemm_scales_lie_on_the_output_axis(transposed, axis):
    weight = normal(24, 32) if transposed else normal(32, 24)
    model = graph(
        [node("Gemm", ["x", "w"], "y", transB=transposed)], {"x": ["batch", 32]}, {"y": ["batch", 24]}, {"w": weight}
    )
    quantized = to_tensorrt(model, {"x": (-3.0, 3.0)}).model
    dequantize = producer(quantized, quantized.graph.node[-1].input[1])
    assert constants(quantized)[dequantize.input[1]].shape == (24,)
    assert next(item.i for item in dequantize.attribute if item.name == "axis") == axis


def test_transposed_convolution_stays_in_floating_point_beside_others():
    """As ``check`` advises: TensorRT has given wrong outputs for it in INT8."""
    nodes = [
        node("Conv", ["x", "wc"], "c", pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["c", "w"], "y", strides=[2, 2]),
    ]
    values = {"w": normal(16, 20, 4, 4), "wc": normal(16, 16, 3, 3)}
    model = graph(nodes, {"x": ["batch", 16, 4, 4]}, {"y": None}, values)
    quantized = to_tensorrt(model, measured_ranges(model, x=normal(2, 16, 4, 4)))
    assert quantized.count == 1
    assert "NVIDIA/TensorRT #4366" in quantized.kept_float["n_y"]
    assert quantized.model.graph.node[-1].input[1] == "w"


def test_transposed_convolutions_alone_are_quantized_with_scales_on_axis_1(caplog):
    weight = normal(16, 20, 4, 4)
    model = graph(
        [node("ConvTranspose", ["x", "w"], "y", strides=[2, 2])], {"x": ["batch", 16, 4, 4]}, {"y": None}, {"w": weight}
    )
    x = normal(2, 16, 4, 4)
    quantized = to_tensorrt(model, measured_ranges(model, x=x)).model
    dequantize = producer(quantized, quantized.graph.node[-1].input[1])
    np.testing.assert_allclose(
        constants(quantized)[dequantize.input[1]], np.abs(weight).max(axis=(0, 2, 3)) / 127, rtol=1e-6
    )
    assert_alike(run(quantized, x=x)[0], run(model, x=x)[0])
    assert "only transposed convolutions suit INT8 on TensorRT" in caplog.text


def residual_block():
    """conv1 → relu → conv2 → add with a 1×1 projection of the block's input → relu → gemm of 10 outputs."""
    nodes = [
        node("Relu", ["x"], "r0"),
        node("Conv", ["r0", "w1", "b1"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2", "b2"], "c2", pads=[1, 1, 1, 1]),
        node("Conv", ["r0", "ws", "bs"], "cs"),
        node("Add", ["c2", "cs"], "a"),
        node("Relu", ["a"], "r2"),
        node("GlobalAveragePool", ["r2"], "g"),
        node("Flatten", ["g"], "f"),
        node("Gemm", ["f", "wf", "bf"], "y"),
    ]
    values = {f"w{i}": normal(16, 16, 3, 3) * 0.1 for i in (1, 2)} | {"ws": normal(16, 16, 1, 1), "wf": normal(16, 10)}
    values |= {name: normal(16) for name in ("b1", "b2", "bs")} | {"bf": normal(10)}
    return graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": ["batch", 10]}, values)


RANGES = {"r0": (0.0, 4.0), "r1": (0.0, 6.0), "cs": (-9.0, 9.0), "a": (-12.0, 12.0), "f": (0.0, 3.0)}


def test_placement_in_a_residual_block():
    quantized = to_tensorrt(residual_block(), RANGES)
    model = quantized.model
    by_output = {item.output[0]: item for item in model.graph.node}

    def is_quantized(tensor):
        return by_output[tensor].op_type == "DequantizeLinear" if tensor in by_output else False

    for name in ("c1", "c2", "cs"):
        assert is_quantized(by_output[name].input[0]), name  # activation
        assert is_quantized(by_output[name].input[1]), name  # weight
        assert by_output[name].input[2].startswith("b")  # the bias stays in floating point
    # One input of the addition: the projection, which is the shorter way; not the output of conv2, which is fused.
    assert by_output["a"].input[0] == "c2"
    assert is_quantized(by_output["a"].input[1])
    # r0 feeds two convolutions through one pair.
    assert by_output["c1"].input[0] == by_output["cs"].input[0]
    # Nothing is quantized that is not asked for: r0, r1, cs, and the three weights.
    assert ops(model).count("QuantizeLinear") == 3
    assert ops(model).count("DequantizeLinear") == 6
    assert quantized.kept_float == {"n_y": "matrix of 16x10: INT8 needs 16 rows and columns"}


def test_the_identity_is_the_residual_input_where_there_is_no_projection():
    nodes = [
        node("Relu", ["x"], "r"),
        node("Conv", ["r", "w"], "c", pads=[1, 1, 1, 1]),
        node("Add", ["r", "c"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": None}, {"w": normal(16, 16, 3, 3)})
    editor = GraphEditor(model)
    found = residual_inputs(editor, weighted_nodes(editor))
    assert [(item.name, index) for item, index in found] == [("n_y", 0)]
    quantized = to_tensorrt(model, {"r": (0.0, 3.0)}).model
    assert ops(quantized).count("QuantizeLinear") == 1  # the convolution and the addition share it


def test_additions_of_other_things_are_left_alone():
    nodes = [
        node("Relu", ["x"], "r"),
        node("Conv", ["r", "w"], "c"),
        node("Add", ["c", "bias"], "d"),  # a constant
        node("Sigmoid", ["d"], "s"),
        node("Add", ["s", "r"], "y"),  # neither comes straight from a convolution
    ]
    model = graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": None}, {"w": normal(16, 16, 1, 1), "bias": normal(8, 8)})
    editor = GraphEditor(model)
    assert residual_inputs(editor, weighted_nodes(editor)) == []


def test_zero_points_are_zero_and_weights_are_int8():
    values = constants(to_tensorrt(residual_block(), RANGES).model)
    zero_points = [value for name, value in values.items() if name.endswith("zero_point")]
    assert zero_points
    assert all(value.dtype == np.int8 and not value.any() for value in zero_points)
    assert {values[name].dtype for name in values if name.endswith("_int8")} == {np.dtype(np.int8)}
    assert values["r0_scale"] == np.float32(4 / 127)
    assert values["cs_scale"] == np.float32(9 / 127)


def test_what_cannot_be_quantized_is_refused():
    model = residual_block()
    model.opset_import[0].version = 12
    with pytest.raises(ModelError, match="the model has opset 12; INT8 needs 13"):
        to_tensorrt(model, RANGES)
    with pytest.raises(ModelError, match="quantized already"):
        to_tensorrt(to_tensorrt(residual_block(), RANGES).model, RANGES)
    with pytest.raises(ModelError, match="no convolution or matrix product"):
        to_tensorrt(graph([node("Relu", ["x"], "y")], {"x": [1]}, {"y": [1]}), {})


@pytest.mark.parametrize("kind", ["MatMulInteger", "QLinearMatMul", "ConvInteger", "DynamicQuantizeLinear"])
def test_a_graph_of_any_integer_operator_is_quantized_already(kind: str):
    model = residual_block()
    model.graph.node.append(node(kind, ["x"], "integers"))
    with pytest.raises(ModelError, match=rf"quantized already \(it has {kind}\)"):
        to_tensorrt(model, RANGES)


def test_products_that_are_not_plain_are_left_alone():
    nodes = [
        node("Gemm", ["x", "w"], "a", alpha=2.0),
        node("Gemm", ["a", "w"], "b", transA=1, transB=1),
        node("MatMul", ["a", "b"], "y"),  # no constant
    ]
    model = graph(nodes, {"x": [32, 32]}, {"y": None}, {"w": normal(32, 32)})
    assert weighted_nodes(GraphEditor(model)) == []


@pytest.mark.parametrize(("activation", "quantized"), [("Softmax", False), ("Relu", True)])
def test_the_projection_behind_an_attention_stays_float_as_the_attention_is(activation, quantized):
    """TensorRT 11 gave wrong values for one in INT8."""
    nodes = [
        node("MatMul", ["q", "k"], "scores"),
        node(activation, ["scores"], "weights"),
        node("MatMul", ["weights", "v"], "applied"),
        node("Transpose", ["applied"], "moved", perm=[0, 2, 1]),
        node("MatMul", ["moved", "w"], "y"),
    ]
    inputs = {"q": ["batch", 24, 8], "k": ["batch", 8, 24], "v": ["batch", 24, 16]}
    model = graph(nodes, inputs, {"y": None}, {"w": normal(24, 32)})
    assert (reason(model) is None) == quantized

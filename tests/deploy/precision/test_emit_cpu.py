"""The graph for ONNX Runtime's CPU provider: every convolution in INT8, and the traps that keep them in float."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import assert_alike, constants, graph, measured_ranges, node, ops, producer, run
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.session import count_convolutions, optimized_graph
from krl_deploy.precision.emit_cpu import affine_parameters, to_cpu

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


class Ranges(dict):
    """Ranges wide enough for whatever is asked."""

    def __missing__(self, name):
        return (-6.0, 6.0)


def after_optimization(model):
    return optimized_graph(to_bytes(model))


def counts(model):
    return tuple(count_convolutions(after_optimization(model)).values())


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0.0, 2.55, 0.01, 0),
        (-1.0, 1.55, 0.01, 100),
        (0.5, 2.55, 0.01, 0),  # 0 is always inside
        (-2.55, -1.0, 0.01, 255),
        (0.0, 0.0, 1.0, 0),
    ],
)
def test_affine_parameters_by_hand(low, high, scale, zero):
    assert affine_parameters(low, high) == (pytest.approx(scale, rel=1e-6), zero)


def fake(x, low, high):
    """Quantize to uint8 and back, independently of the code under test."""
    scale = np.float32((high - low) / 255)
    zero = round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


def test_convolution_computes_what_numpy_computes():
    """1×1, so that numpy needs one einsum; inputs, weights and outputs are quantized."""
    weight, bias, x = normal(20, 16, 1, 1), normal(20), normal(2, 16, 5, 5)
    nodes = [node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "y")]
    model = graph(nodes, {"x": ["batch", 16, 5, 5]}, {"y": ["batch", 20, 5, 5]}, {"w": weight, "b": bias})
    quantized = to_cpu(model, {"x": (-3.0, 4.0), "y": (0.0, 9.0)}).model
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    rounded = np.round(weight / steps) * steps
    exact = np.einsum("nchw,oc->nohw", fake(x, -3, 4), rounded[:, :, 0, 0]) + bias.reshape(1, -1, 1, 1)
    expected = fake(np.maximum(exact, 0), 0, 9)
    got = run(quantized, x=x)[0]
    assert np.abs(got - expected).max() <= 9 / 255 + 1e-6  # one step, where rounding falls on the other side
    assert np.mean(np.abs(got - expected) < 1e-5) > 0.99
    assert counts(quantized) == (1, 0)


def test_relu_is_the_lower_end_of_the_range_and_no_node():
    nodes = [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "w"], "y")]
    model = clean(graph(nodes, {"x": ["batch", 16, 5, 5]}, {"y": None}, {"w": normal(16, 16, 1, 1)}))
    quantized = to_cpu(model, {"x": (-3.0, 3.0), "r": (0.0, 5.1), "y": (-7.0, 7.0)}).model
    assert "Relu" not in ops(quantized)
    values = constants(quantized)
    assert values["r_scale"] == np.float32(0.02)
    assert values["r_zero_point"] == 0
    assert values["r_zero_point"].dtype == np.uint8
    assert counts(quantized) == (2, 0)


def test_a_relu_that_is_not_the_only_reader_stays():
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Relu", ["c"], "r"),
        node("Add", ["c", "r"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 16, 5, 5]}, {"y": None}, {"w": normal(16, 16, 1, 1)})
    x = normal(1, 16, 5, 5)
    quantized = to_cpu(model, measured_ranges(model, x=x)).model
    assert "Relu" in ops(quantized)
    assert_alike(run(quantized, x=x)[0], run(model, x=x)[0])


@pytest.mark.parametrize(("high", "folded"), [(6.0, True), (4.0, False)])
def test_clipping_is_folded_where_the_range_does_the_same(high, folded):
    """Relu6 is the range 0 to 6; a clip below the calibrated range would be lost with its node."""
    nodes = [node("Conv", ["x", "w"], "c"), node("Clip", ["c", "zero", "high"], "y")]
    values = {"w": normal(16, 16, 1, 1), "zero": np.float32(0), "high": np.float32(high)}
    model = graph(nodes, {"x": ["batch", 16, 5, 5]}, {"y": None}, values)
    quantized = to_cpu(model, {"x": (-3.0, 3.0), "c": (-9.0, 9.0), "y": (0.0, 5.5)}).model
    assert ("Clip" not in ops(quantized)) == folded
    assert run(quantized, x=9 * np.ones((1, 16, 5, 5), np.float32))[0].max() <= min(high, 5.5) + 1e-5


def test_clipping_from_elsewhere_is_not_folded():
    nodes = [node("Conv", ["x", "w"], "c"), node("Clip", ["c", "low"], "y")]
    values = {"w": normal(16, 16, 1, 1), "low": np.float32(-1)}
    model = graph(nodes, {"x": ["batch", 16, 5, 5]}, {"y": None}, values)
    assert "Clip" in ops(to_cpu(model, Ranges()).model)


def residual(*, shared_bias: bool):
    """Two convolutions and a skip; with ``shared_bias`` one bias comes through Identity, as legacy exports do it."""
    second = "b2" if shared_bias else "b"
    nodes = [
        node("Relu", ["x"], "r0"),
        node("Conv", ["r0", "w1", "b"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2", second], "c2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r0"], "a"),
        node("Relu", ["a"], "y"),
    ]
    if shared_bias:
        nodes.insert(0, node("Identity", ["b"], "b2"))
    values = {"w1": normal(16, 16, 3, 3) * 0.1, "w2": normal(16, 16, 3, 3) * 0.1, "b": normal(16)}
    return graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": ["batch", 16, 8, 8]}, values)


def test_the_output_of_a_convolution_before_an_addition_is_quantized():
    """Without it, the convolution before each addition of a ResNet stays in float."""
    model = clean(residual(shared_bias=False))
    quantized = to_cpu(model, Ranges(r0=(0.0, 5.0), r1=(0.0, 5.0), y=(0.0, 7.0))).model
    addition = next(item for item in quantized.graph.node if item.op_type == "Add")
    for name in addition.input:
        assert producer(quantized, name).op_type == "DequantizeLinear"
    optimized = [item.op_type for item in after_optimization(quantized).graph.node]
    assert optimized.count("QLinearConv") == 2
    assert optimized.count("QLinearAdd") == 1
    x = np.abs(normal(2, 16, 8, 8))
    assert np.abs(run(quantized, x=x)[0] - run(model, x=x)[0]).max() < 0.25


def test_biases_that_are_shared_through_identity_do_not_keep_convolutions_in_float():
    assert counts(to_cpu(clean(residual(shared_bias=True)), Ranges()).model) == (2, 0)


def test_biases_are_int32_on_the_steps_of_the_accumulator():
    model = clean(residual(shared_bias=False))
    values = constants(to_cpu(model, Ranges(r0=(0.0, 5.1))).model)
    weight_scale = np.abs(constants(model)["w1"]).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(values["b_scale"], 0.02 * weight_scale, rtol=1e-5)
    assert values["b_int32"].dtype == np.int32
    np.testing.assert_allclose(values["b_int32"] * values["b_scale"], constants(model)["b"], atol=1e-4)


def test_a_channel_without_weights_keeps_its_bias():
    """Its own scale would be so small that the bias overflows int32, or 0."""
    weight, bias = normal(16, 16, 1, 1), normal(16)
    weight[3], weight[5], bias[3], bias[5] = 0.0, 1e-30, 2.5, -1.5
    model = graph(
        [node("Conv", ["x", "w", "b"], "y")], {"x": ["batch", 16, 5, 5]}, {"y": None}, {"w": weight, "b": bias}
    )
    y = run(to_cpu(model, Ranges()).model, x=normal(1, 16, 5, 5))[0]
    np.testing.assert_allclose(y[:, 3], 2.5, atol=0.05)
    np.testing.assert_allclose(y[:, 5], -1.5, atol=0.05)


def test_layout_operators_work_on_the_quantized_values():
    """Option-A shortcuts: slices and zero padding; padding writes the zero point, not 0."""
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("MaxPool", ["c"], "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("Slice", ["m", "starts", "ends", "axes", "steps"], "s"),
        node("Pad", ["s", "pads"], "p"),
        node("Conv", ["p", "w2"], "y"),
    ]
    values = {
        "w": normal(16, 16, 1, 1),
        "w2": normal(16, 32, 1, 1),
        "starts": np.int64([0]),
        "ends": np.int64([2**60]),
        "axes": np.int64([2]),
        "steps": np.int64([2]),
        "pads": np.int64([0, 8, 0, 0, 0, 8, 0, 0]),
    }
    model = graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": None}, values)
    quantized = to_cpu(model, Ranges(c=(-4.0, 8.0), y=(-30.0, 30.0))).model
    quantized_ops = ops(quantized)
    assert quantized_ops.count("QuantizeLinear") == 3  # x, c, y: the moved values have the parameters of c
    for op in ("MaxPool", "Slice", "Pad"):
        moved = next(item for item in quantized.graph.node if item.op_type == op)
        assert moved.input[0].endswith("_quantized")
    pad = next(item for item in quantized.graph.node if item.op_type == "Pad")
    assert constants(quantized)[pad.input[2]] == 85
    assert counts(quantized) == (2, 0)
    x = normal(2, 16, 8, 8)
    assert_alike(run(to_cpu(model, measured_ranges(model, x=x)).model, x=x)[0], run(model, x=x)[0])


def test_padding_with_another_value_is_done_in_float():
    nodes = [node("Conv", ["x", "w"], "c"), node("Pad", ["c", "pads", "one"], "y")]
    values = {"w": normal(16, 16, 1, 1), "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.float32(1)}
    model = graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": None}, values)
    x = normal(1, 16, 8, 8)
    got = run(to_cpu(model, measured_ranges(model, x=x)).model, x=x)[0]
    assert (got[:, :, 0] == 1).all()
    assert_alike(got, run(model, x=x)[0])


def test_reflecting_padding_moves_quantized_values():
    nodes = [node("Conv", ["x", "w"], "c"), node("Pad", ["c", "pads"], "y", mode="reflect")]
    values = {"w": normal(16, 16, 1, 1) * 0.2, "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}
    model = graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": None}, values)
    x = normal(1, 16, 8, 8)
    assert_alike(run(to_cpu(model, measured_ranges(model, x=x)).model, x=x)[0], run(model, x=x)[0])


def test_concatenation_of_quantized_tensors():
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["x", "w2"], "b"),
        node("Concat", ["a", "b"], "j", axis=1),
        node("Conv", ["j", "w3"], "y"),
    ]
    values = {"w": normal(16, 16, 1, 1), "w2": normal(16, 16, 1, 1) * 0.1, "w3": normal(16, 32, 1, 1)}
    model = graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": None}, values)
    x = normal(1, 16, 8, 8)
    quantized = to_cpu(model, measured_ranges(model, x=x)).model
    assert counts(quantized) == (3, 0)
    assert_alike(run(quantized, x=x)[0], run(model, x=x)[0])


def test_the_last_gemm_gives_logits_in_float():
    nodes = [node("Relu", ["x"], "r"), node("Gemm", ["r", "w", "b"], "y")]
    model = graph(nodes, {"x": ["batch", 32]}, {"y": ["batch", 20]}, {"w": normal(32, 20), "b": normal(20)})
    quantized = to_cpu(model, {"r": (0.0, 4.0)}).model
    assert ops(quantized)[-1] == "Gemm"
    assert "QGemm" in [item.op_type for item in after_optimization(quantized).graph.node]


def test_thin_convolutions_are_quantized_here_and_transposed_ones_are_not():
    nodes = [node("Conv", ["x", "w"], "c"), node("ConvTranspose", ["c", "t"], "y")]
    model = graph(nodes, {"x": ["batch", 3, 8, 8]}, {"y": None}, {"w": normal(4, 3, 3, 3), "t": normal(4, 3, 2, 2)})
    quantized = to_cpu(model, Ranges())
    assert quantized.count == 1
    assert list(quantized.kept_float) == ["n_y"]
    assert counts(quantized.model) == (1, 1)


def test_a_depthwise_network_is_quantized_whole():
    nodes = [
        node("Conv", ["x", "d"], "c", group=16, pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r"),
        node("Conv", ["r", "w"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": None}, {"d": normal(16, 1, 3, 3), "w": normal(16, 16, 1, 1)})
    assert counts(to_cpu(model, Ranges(r=(0.0, 9.0))).model) == (2, 0)


def test_a_tensor_that_the_graph_computes_in_float_is_not_rounded_for_others():
    """The input of the first convolution is quantized for it alone."""
    nodes = [
        node("Relu", ["x"], "r"),
        node("Conv", ["r", "w"], "c"),
        node("Add", ["c", "k"], "d"),
        node("Mul", ["d", "r"], "y"),
    ]
    values = {"w": np.zeros((16, 16, 1, 1), np.float32), "k": np.ones((5, 5), np.float32)}
    model = graph(nodes, {"x": ["batch", 16, 5, 5]}, {"y": None}, values)
    x = np.abs(normal(1, 16, 5, 5))
    np.testing.assert_allclose(run(to_cpu(model, Ranges()).model, x=x)[0], x, atol=1e-6)


def test_a_layer_that_is_kept_reads_floats_that_were_not_rounded():
    """And so the convolution before it writes floats; what it reads itself stays in INT8."""
    nodes = [
        node("Conv", ["x", "w0"], "c0"),
        node("Relu", ["c0"], "r0"),
        node("Conv", ["r0", "w1"], "c1"),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2"], "y"),
    ]
    values = {name: normal(16, 16, 1, 1) for name in ("w0", "w1", "w2")}
    model = graph(nodes, {"x": ["batch", 16, 5, 5]}, {"y": None}, values)
    quantized = to_cpu(model, Ranges(x=(-3.0, 3.0), r0=(0.0, 9.0)), keep={"n_y": "for a reason"})
    assert quantized.kept_float["n_y"] == "for a reason"
    assert "its output is read in floating point" in quantized.kept_float["n_c1"]
    assert quantized.count == 1
    assert sorted(name for name in constants(quantized.model) if name.endswith("_scale")) == [
        "r0_scale",
        "w0_scale",
        "x_scale",
    ]

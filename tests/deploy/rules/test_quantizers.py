"""Each quantizer by itself: a fault is found where it is planted, and the graph without it has no finding."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from _helpers.graphs import graph, node
from _helpers.planted import WEIGHT as W
from _helpers.planted import block, edited, family, few_scales, few_zero_points, find, of_rule, set_value, value

Q, DQ = "QuantizeLinear_r0_quantized", "DequantizeLinear_r0_dequantized"


@pytest.mark.parametrize("half", [False, True])
def test_our_own_output_has_no_finding(half):
    assert family(block(half=half), "qdq") == []


def zero_scale(model):
    set_value(model, find(model, W).input[1], np.where(np.arange(32) == 3, 0, 0.01).astype(np.float32))


def tiny_scale(model):
    set_value(model, find(model, DQ).input[1], np.float16(1e-6))


def zero_point(model):
    set_value(model, find(model, Q).input[2], np.int8(3))


def unsigned(model):
    set_value(model, find(model, Q).input[2], np.uint8(0))


def no_zero_point(model):
    del find(model, Q).input[2]


def open_scale(model):
    model.graph.input.append(helper.make_tensor_value_info("s", 1, []))
    find(model, Q).input[1] = find(model, DQ).input[1] = "s"


def open_zero_point(model):
    model.graph.input.append(helper.make_tensor_value_info("z", 3, []))
    find(model, Q).input[2] = find(model, DQ).input[2] = "z"


def per_channel(model):
    scale, zero = find(model, Q).input[1:3]
    set_value(model, scale, np.full(32, 0.01, np.float32))
    set_value(model, zero, np.zeros(32, np.int8))


def axis_beyond(model):
    find(model, W).attribute[0].i = 5


def other_scale(model):
    find(model, DQ).input[1] = find(model, "QuantizeLinear_x_quantized").input[1]
    set_value(model, find(model, DQ).input[1], value(model, find(model, Q).input[1]) * 2)


def integer_output(model):
    model.graph.output.append(helper.make_tensor_value_info(find(model, Q).output[0], 3, ["batch", 32, 8, 8]))


@pytest.mark.parametrize(
    ("plant", "rule", "severity", "node_name", "why"),
    [
        (zero_scale, "qdq/scale", "error", W, "a scale is not positive"),
        (zero_point, "qdq/symmetric", "error", Q, "its zero point is not 0; TensorRT's quantization is symmetric"),
        (unsigned, "qdq/int8", "error", Q, "its values are uint8, which is the graph for"),
        (no_zero_point, "qdq/int8", "error", Q, "without a zero point its values are uint8 by ONNX, and int8 for"),
        (open_scale, "qdq/constant", "error", Q, "its scale is not a constant"),
        (open_zero_point, "qdq/constant", "error", Q, "its zero point is not a constant"),
        (per_channel, "qdq/per-channel-activation", "error", Q, "this is an activation"),
        (few_scales, "qdq/scale-count", "error", W, "it has 16 scales for 32 values of axis 0"),
        (few_zero_points, "qdq/scale-count", "error", W, "it has 32 scales and 16 zero points"),
        (axis_beyond, "qdq/scale-count", "error", W, "its axis is 5; its input has 4 axes"),
        (other_scale, "qdq/pair", "warning", DQ, "its scale is not that of the QuantizeLinear before it"),
        (integer_output, "qdq/pair", "error", Q, "the graph gives out its integers"),
    ],
)
def test_a_planted_fault_is_found(plant, rule, severity, node_name, why):
    model = block()
    assert of_rule(model, rule) == []
    found = {finding.node: finding for finding in of_rule(edited(model, plant), rule)}
    assert found[node_name].severity == severity
    assert why in found[node_name].why
    assert found[node_name].do
    assert found[node_name].source


def test_a_scale_that_fp16_holds_with_few_digits():
    model = block(half=True)
    assert of_rule(model, "qdq/scale") == []
    set_value(model, find(model, DQ).input[1], np.float16(3e-5))  # subnormal, in steps of 1/500 of it
    assert of_rule(model, "qdq/scale") == []
    (found, *_) = of_rule(edited(model, tiny_scale), "qdq/scale")
    assert (found.severity, found.why) == ("warning", "an FP16 scale is 1.0e-06, where FP16 has few digits")


def test_integers_of_a_type_that_tensorrt_does_not_quantize_to():
    pair = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "y")]

    def model(zero):
        return graph(pair, {"x": ["n", 3]}, {"y": ["n", 3]}, {"s": np.float32(0.1), "z": zero}, opset=21)

    assert of_rule(model(np.int8(0)), "qdq/int8") == []
    assert [finding.node for finding in of_rule(model(np.int16(0)), "qdq/int8")] == ["n_q", "n_y"]

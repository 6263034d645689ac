"""Where pairs stand: a fault is found where it is planted, and the graph without it has no finding."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from _helpers.graphs import graph, node
from _helpers.planted import (
    add_constant,
    block,
    edited,
    find,
    insert_pair,
    normal,
    of_rule,
    place,
    producer_of,
    quantize,
    remove_pair,
    set_value,
)


def weight_left_float(model):
    stored = producer_of(model, "n_c1", 1)
    find(model, "n_c1").input[1] = add_constant(model, "w1_float", normal(32, 32, 3, 3))
    model.graph.node.remove(stored)


def activation_left_float(model):
    remove_pair(model, "n_c1", 0)


def input_channels(model):
    producer_of(model, "n_c1", 1).attribute[0].i = 1


def one_scale(model):
    stored = producer_of(model, "n_c1", 1)
    set_value(model, stored.input[1], np.float32(0.01))
    set_value(model, stored.input[2], np.int8(0))


def bias(dtype):
    def plant(model):
        name = add_constant(model, "b1_stored", np.arange(32).astype(dtype))
        scale = add_constant(model, "b1_scale", np.full(32, 1e-4, np.float32))
        restored = helper.make_node("DequantizeLinear", [name, scale], ["b1_restored"], name="DQ_b1", axis=0)
        find(model, "n_c1").input[2] = "b1_restored"
        place(model, [restored], before="n_c1")

    return plant


def no_shortcut(model):
    remove_pair(model, "n_a", 1)


def both_shortcuts(model):
    insert_pair(model, "n_a", 0)


def wrong_shortcut(model):
    remove_pair(model, "n_a", 1)
    insert_pair(model, "n_a", 0)


def before_the_activation(model):
    insert_pair(model, "n_r1", 0)


def quantized_output(model):
    add_constant(model, "y_s", np.float32(0.1))
    add_constant(model, "y_z", np.int8(0))
    find(model, "n_y").output[0] = "logits"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["logits", "y_s", "y_z"], ["y_q"], name="Q_y"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["y_q", "y_s", "y_z"], ["y"], name="DQ_y"))


@pytest.mark.parametrize(
    ("plant", "rule", "severity", "node_name", "why"),
    [
        (weight_left_float, "qdq/both-inputs", "warning", "n_c1", "its activation is quantized, its weight is not"),
        (activation_left_float, "qdq/both-inputs", "warning", "n_c1", "its weight is quantized, its activation is not"),
        (input_channels, "qdq/weight-axis", "error", "n_c1", "scales along axis 1; the output channels are axis 0"),
        (one_scale, "qdq/per-tensor-weight", "note", "n_c1", "its weight has one scale for all channels"),
        (bias(np.int32), "qdq/bias", "error", "n_c1", "its bias is quantized to INT32"),
        (bias(np.int8), "qdq/bias", "warning", "n_c1", "its bias is quantized to INT8"),
        (no_shortcut, "qdq/residual", "warning", "n_a", "its shortcut is not quantized"),
        (both_shortcuts, "qdq/residual", "warning", "n_a", "both of its inputs are quantized"),
        (wrong_shortcut, "qdq/residual", "warning", "n_a", "is quantized instead of the shortcut"),
        (before_the_activation, "qdq/fusion", "warning", "n_r1", "a pair stands between it and the Conv before it"),
        (quantized_output, "qdq/output", "warning", "DQ_y", "the graph's output y is quantized"),
    ],
)
def test_a_planted_fault_is_found(plant, rule, severity, node_name, why):
    model = block()
    assert of_rule(model, rule) == []
    (found,) = of_rule(edited(model, plant), rule)
    assert (found.severity, found.node) == (severity, node_name)
    assert why in found.why
    assert found.do
    assert found.source


def one_layer(op, weight, axis, shape, **attributes):
    """x → pair → layer on a weight that is dequantized along ``axis``."""
    channels = weight.shape[axis]
    constants = {
        "s": np.float32(0.01),
        "z": np.int8(0),
        "w": np.ones(weight.shape, np.int8),
        "ws": np.full(channels, 0.01, np.float32),
        "wz": np.zeros(channels, np.int8),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "xq"),
        node("DequantizeLinear", ["xq", "s", "z"], "xd"),
        node("DequantizeLinear", ["w", "ws", "wz"], "wd", axis=axis),
        node(op, ["xd", "wd"], "y", **attributes),
    ]
    return graph(nodes, {"x": shape}, {"y": None}, constants)


def test_one_scale_is_all_that_a_single_channel_has():
    assert of_rule(one_layer("Conv", normal(1, 24, 3, 3), 0, ["n", 24, 8, 8]), "qdq/per-tensor-weight") == []
    assert of_rule(one_layer("ConvTranspose", normal(24, 1, 3, 3), 1, ["n", 24, 8, 8]), "qdq/per-tensor-weight") == []


@pytest.mark.parametrize(
    ("op", "weight", "right", "shape", "attributes"),
    [
        ("Conv", normal(16, 24, 3, 3), 0, ["n", 24, 8, 8], {}),
        ("ConvTranspose", normal(24, 16, 2, 2), 1, ["n", 24, 8, 8], {}),
        ("MatMul", normal(24, 16), 1, ["n", 24], {}),
        ("Gemm", normal(24, 16), 1, ["n", 24], {}),
        ("Gemm", normal(16, 24), 0, ["n", 24], {"transB": 1}),
    ],
)
def test_the_axis_of_a_weight_by_operator(op, weight, right, shape, attributes):
    assert of_rule(one_layer(op, weight, right, shape, **attributes), "qdq/weight-axis") == []
    (found,) = of_rule(one_layer(op, weight, 1 - right, shape, **attributes), "qdq/weight-axis")
    assert found.why == f"its weight has scales along axis {1 - right}; the output channels are axis {right}"


def test_the_axis_of_a_weight_behind_a_transpose():
    def model(axis):
        made = one_layer("MatMul", normal(16, 24), axis, ["n", 16])
        find(made, "n_y").input[1] = "wt"
        place(made, [node("Transpose", ["wd"], "wt", perm=[1, 0])], before="n_y")
        made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 24
        return made

    assert of_rule(model(0), "qdq/weight-axis") == []
    assert len(of_rule(model(1), "qdq/weight-axis")) == 1


def test_thin_convolutions_and_narrow_products():
    assert of_rule(one_layer("Conv", normal(16, 16, 3, 3), 0, ["n", 16, 8, 8]), "qdq/thin") == []
    (found,) = of_rule(one_layer("Conv", normal(7, 3, 3, 3), 0, ["n", 3, 8, 8]), "qdq/thin")
    assert found.why == "thin convolution of 3 to 7 channels, kernel 3x3: INT8 needs 16 channels"
    (found,) = of_rule(one_layer("MatMul", normal(24, 10), 1, ["n", 24]), "qdq/thin")
    assert found.why == "matrix of 24x10: INT8 needs 16 rows and columns"


def test_fp32_scales_in_an_fp16_graph():
    def in_fp32(model):
        """Let the second convolution be FP32 again, as a tool does that knows no FP16 scales."""
        for index in (0, 1):
            restored = producer_of(model, "n_c1", index)
            scale = add_constant(model, f"scale_{index}", np.full(32 if index else (), 0.01, np.float32))
            own = helper.make_node(
                "DequantizeLinear", [restored.input[0], scale, restored.input[2]], [f"own_{index}"], name=f"DQ_{index}",
                axis=0,
            )  # fmt: skip
            place(model, [own], before="n_c1")
            find(model, "n_c1").input[index] = f"own_{index}"
        find(model, "n_c1").input[2] = add_constant(model, "b1_float", normal(32))
        find(model, "n_c1").output[0] = "c1_float"
        place(model, [helper.make_node("Cast", ["c1_float"], ["c1"], name="Cast_c1", to=10)], before="n_r1")

    model = block(half=True)
    assert of_rule(model, "qdq/fp32-scale") == []
    (found,) = of_rule(edited(model, in_fp32), "qdq/fp32-scale")
    assert (found.severity, found.node) == ("warning", "n_c1")
    assert of_rule(block(), "qdq/fp32-scale") == []  # in an FP32 graph they are right


@pytest.mark.parametrize("op", ["Softmax", "Sigmoid", "InstanceNormalization"])
def test_operators_that_do_not_compute_in_int8(op):
    constants = {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    inputs = ["x", *constants] if op == "InstanceNormalization" else ["x"]
    used = constants if op == "InstanceNormalization" else {}
    model = graph([node(op, inputs, "y")], {"x": ["n", 3, 4, 4]}, {"y": ["n", 3, 4, 4]}, used)
    assert of_rule(model, "qdq/no-quantizer") == []
    (found,) = of_rule(edited(model, lambda made: insert_pair(made, "n_y", 0)), "qdq/no-quantizer")
    assert (found.severity, found.node, found.op) == ("warning", "n_y", op)


def test_a_concatenation_of_different_scales():
    model = graph([node("Concat", ["a", "b"], "y", axis=1)], {"a": ["n", 3], "b": ["n", 3]}, {"y": ["n", 6]}, opset=20)

    def pairs(first, second):
        def plant(made):
            insert_pair(made, "n_y", 0, first)
            insert_pair(made, "n_y", 1, second)

        return edited(model, plant)

    assert of_rule(pairs(0.1, 0.1), "qdq/concat") == []
    assert [finding.node for finding in of_rule(pairs(0.1, 0.2), "qdq/concat")] == ["n_y"]


def test_values_that_only_move_on_the_way_count_as_quantized():
    """Q → DQ → MaxPool → Conv: TensorRT moves the pair across the pooling."""

    def pooled(model):
        find(model, "n_c1").input[0] = "pooled"
        pool = node("MaxPool", ["r0_dequantized"], "pooled", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        place(model, [pool], before="n_c1")

    assert of_rule(edited(block(), pooled), "qdq/both-inputs") == []


def test_weights_that_are_quantized_in_the_graph_are_judged_alike():
    """FP → Q → DQ, as tools of quantization-aware training write it."""

    def from_floats(axis):
        def plant(model):
            restored = producer_of(model, "n_c1", 1)
            add_constant(model, "w1_float", normal(32, 32, 3, 3))
            quantized = helper.make_node(
                "QuantizeLinear", ["w1_float", *restored.input[1:]], ["w1_q"], name="Q_w1", axis=axis
            )
            place(model, [quantized], before=restored.name)
            restored.input[0] = "w1_q"
            restored.attribute[0].i = axis

        return plant

    good, bad = (edited(block(), from_floats(axis)) for axis in (0, 1))
    assert of_rule(good, "qdq/per-channel-activation") == []
    assert of_rule(good, "qdq/weight-axis") == []
    assert [finding.node for finding in of_rule(bad, "qdq/weight-axis")] == ["n_c1"]


def test_transposed_convolutions_of_our_own_have_no_finding_of_placement():
    nodes = [node("ConvTranspose", ["x", "w"], "y", strides=[2, 2])]
    model = graph(nodes, {"x": ["batch", 32, 4, 4]}, {"y": None}, {"w": normal(32, 16, 2, 2)})
    quantized = quantize(model)
    assert of_rule(quantized, "qdq/weight-axis") == []
    assert of_rule(quantized, "qdq/thin") == []

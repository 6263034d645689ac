"""Graphs that contradict themselves: types that one operator mixes, and sizes that do not fit each other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.graphs import DTYPES, node
from _helpers.planted import family, of_rule


def loose(nodes, inputs, constants, *, opset=20, dtypes=None):
    """A model as a converter may write it: not checked, and nothing inferred."""
    kinds = dtypes or {}
    values = [helper.make_tensor_value_info(name, DTYPES[kinds.get(name, "float32")], s) for name, s in inputs.items()]
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    shell = helper.make_graph(nodes, "g", values, [helper.make_empty_tensor_value_info("y")], arrays)
    return helper.make_model(shell, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def conv(weight, *bias, shape=("n", 4, 8, 8), dtype="float32", op="Conv", **attributes):
    constants = {"w": weight, **({"b": bias[0]} if bias else {})}
    return loose([node(op, ["x", *constants], "y", **attributes)], {"x": shape}, constants, dtypes={"x": dtype})


HALF = ones(8, 4, 3, 3, dtype=np.float16)


@pytest.mark.parametrize(
    ("wrong", "right", "why"),
    [
        (
            conv(HALF, ones(8), dtype="float16"),
            conv(HALF, ones(8, dtype=np.float16), dtype="float16"),
            "its inputs have to have one type: x FLOAT16, w FLOAT16, b FLOAT",
        ),
        (conv(HALF), conv(HALF, dtype="float16"), "its inputs have to have one type: x FLOAT, w FLOAT16"),
        (
            loose([node("Add", ["x", "c"], "y")], {"x": ["n"]}, {"c": np.int64(1)}, dtypes={"x": "int32"}),
            loose([node("Add", ["x", "c"], "y")], {"x": ["n"]}, {"c": np.int32(1)}, dtypes={"x": "int32"}),
            "its inputs have to have one type: x INT32, c INT64",
        ),
        (
            loose([node("Add", ["x", "c"], "y")], {"x": ["n"]}, {"c": np.float16(1)}),
            loose([node("Add", ["x", "c"], "y")], {"x": ["n"]}, {"c": np.float64(1)}),  # the parser makes FP32 of it
            "its inputs have to have one type: x FLOAT, c FLOAT16",
        ),
        (
            loose([node("Add", ["x", "c"], "y")], {"x": ["n"]}, {"c": np.float16(1)}),
            loose([node("Clip", ["x", "c"], "y")], {"x": ["n"]}, {"c": np.float16(1)}),  # the parser casts the limit
            "its inputs have to have one type",
        ),
    ],
)
def test_mixed_types(wrong, right, why):
    (found,) = of_rule(wrong, "types/mixed")
    assert (found.severity, found.node) == ("error", "n_y")
    assert why in found.why
    assert of_rule(right, "types/mixed") == []


def test_types_that_onnx_does_not_define_an_operator_for():
    def model(dtype):
        return loose([node("Softmax", ["x"], "y")], {"x": ["n", 3]}, {}, dtypes={"x": dtype})

    (found,) = of_rule(model("int32"), "types/undefined")
    assert (found.severity, found.node, found.why) == ("error", "n_y", "ONNX does not define it for INT32")
    assert of_rule(model("float16"), "types/undefined") == []
    brain = loose([node("Relu", ["x"], "y")], {"x": ["n", 3]}, {}, opset=11)
    brain.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16  # before opset 13 not in ONNX, but taken
    assert of_rule(brain, "types/undefined") == []


LSTM = {"w": ones(1, 16, 3), "r": ones(1, 16, 4)}


def lstm(**changes):
    return loose([node("LSTM", ["x", "w", "r"], "y", hidden_size=4)], {"x": [5, 1, 3]}, {**LSTM, **changes})


def reshape(*sizes, shape=(2, 3)):
    return loose([node("Reshape", ["x", "s"], "y")], {"x": shape}, {"s": np.int64(sizes)})


def blocks(size, channels=4):
    return loose([node("DepthToSpace", ["x"], "y", blocksize=size)], {"x": [1, channels, 2, 2]}, {})


@pytest.mark.parametrize(
    ("wrong", "right", "why"),
    [
        (conv(ones(8, 3, 3, 3)), conv(ones(8, 4, 3, 3)), "its weight is for 3 channels in 1 groups, its input has 4"),
        (conv(ones(8, 4, 3, 3), group=2), conv(ones(8, 2, 3, 3), group=2), "for 8 channels in 2 groups, its input has"),
        (conv(ones(8, 4, 3, 3), group=0), conv(ones(8, 4, 3, 3)), "its group is 0; accepted: 1 or more"),
        (conv(ones(9, 2, 3, 3), group=2), conv(ones(8, 2, 3, 3), group=2), "its 9 output channels are not a multiple"),
        (conv(ones(8, 4, 3, 3), ones(4)), conv(ones(8, 4, 3, 3), ones(8)), "its bias has shape [4], it has 8 output"),
        (conv(ones(8, 4, 9, 9)), conv(ones(8, 4, 9, 9), pads=[1, 1, 0, 0]), "its kernel spans 9 values along axis 2"),
        (conv(ones(3, 8, 2, 2), op="ConvTranspose"), conv(ones(4, 8, 2, 2), op="ConvTranspose"), "is for 3 channels"),
        (blocks(0), blocks(2), "its blocksize is 0; accepted: 1 or more"),
        (blocks(2, 3), blocks(2), "its axis 1 has 3 values, not a multiple of 4"),
        (
            loose([node("PRelu", ["x", "s"], "y")], {"x": ["n", 4, 8, 8]}, {"s": ones(3, 1, 1)}),
            loose([node("PRelu", ["x", "s"], "y")], {"x": ["n", 4, 8, 8]}, {"s": ones(4, 1, 1)}),
            "its slope of shape [3, 1, 1] does not fit its input of shape [?, 4, 8, 8]",
        ),
        (reshape(7), reshape(6), "it changes the number of values: from [2, 3] to [7]"),
        (reshape(4, -1), reshape(0, -1), "it changes the number of values: from [2, 3] to [4, -1]"),
        (reshape(-1, -1), reshape(-1, 2), "it asks for the shape [-1, -1]"),
        (lstm(w=ones(1, 12, 3)), lstm(), "its weight W has 12 rows, a hidden size of 4 needs 16"),
    ],
)
def test_sizes_that_do_not_fit(wrong, right, why):
    (found,) = [item for item in family(wrong, "shapes") if why in item.why]
    assert (found.rule, found.severity, found.node) == ("shapes/sizes", "error", "n_y")
    assert of_rule(right, "shapes/sizes") == []
    assert of_rule(right, "shapes/consistent") == []


def test_an_open_batch_is_no_contradiction():
    assert of_rule(reshape(7, shape=("n", 3)), "shapes/sizes") == []


def test_a_slope_of_channels_before_it_was_broadcast():
    """In opset 6 a slope of one axis counts the channels."""
    old = loose([node("PRelu", ["x", "s"], "y")], {"x": [2, 4, 8, 8]}, {"s": ones(4)}, opset=6)
    assert of_rule(old, "shapes/sizes") == []


def test_operators_that_onnx_defines_by_a_function():
    """ONNX infers them from the function's body, where it finds faults of its own."""
    assert (
        of_rule(loose([node("MeanVarianceNormalization", ["x"], "y")], {"x": [1, 3, 4, 4]}, {}), "shapes/consistent")
        == []
    )


@pytest.mark.parametrize(
    ("op", "other", "why"),
    [("MatMul", (5, 4), "Incompatible dimensions for matrix multiplication"), ("Add", (5,), "Incompatible dimensions")],
)
def test_contradictions_that_shape_inference_finds(op, other, why):
    def model(shape):
        return loose([node(op, ["x", "w"], "y")], {"x": ["n", 4]}, {"w": ones(*shape)})

    (found,) = of_rule(model(other), "shapes/consistent")
    assert (found.severity, found.node, found.op) == ("error", "n_y", op)
    assert why in found.why
    assert of_rule(model((4, 4)), "shapes/consistent") == []


def test_an_output_that_is_declared_otherwise_is_no_contradiction():
    """Stale shapes are common in third-party files, and TensorRT does not read them."""
    model = loose([node("Relu", ["x"], "y")], {"x": ["n", 4]}, {})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5]))
    assert of_rule(model, "shapes/consistent") == []
    assert onnx.checker.check_model(model) is None

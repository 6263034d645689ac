"""Inputs, shapes and element types."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from _helpers.graphs import graph, node
from _helpers.planted import of_rule


def relu(*shapes):
    """A concatenation of inputs of these shapes."""
    names = [f"x{index}" for index in range(len(shapes))]
    return graph([node("Concat", names, "y", axis=-1)], dict(zip(names, shapes, strict=True)), {"y": None})


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ([["n", 3, "h"]], "input 'x0' has shape [batch, 3, h]; accepted: a batch, and height and width of images"),
        ([["n", 3], [2, 3]], "the inputs have different batches: x0 batch, x1 2"),
    ],
)
def test_inputs_that_krl_cannot_feed(shapes, why):
    found = of_rule(relu(*shapes), "shapes/inputs")
    assert {finding.severity for finding in found} == {"warning"}
    assert any(why in finding.why for finding in found)
    assert of_rule(relu(["n", 3, 8, 8], ["n", 3, 8, 8]), "shapes/inputs") == []
    assert of_rule(relu([2, 3]), "shapes/inputs") == []


def test_images_of_any_size_get_a_note():
    (found,) = of_rule(relu(["n", 3, "h", "w"]), "shapes/inputs")
    assert (found.severity, found.node) == ("note", "x0")
    assert "--height" in found.do


def test_shapes_that_depend_on_values():
    model = graph([node("NonZero", ["x"], "y")], {"x": ["n", 3]}, {"y": None}, dtypes={"y": "int64"})
    (found,) = of_rule(model, "shapes/data-dependent")
    assert found.severity == "note"
    assert of_rule(relu(["n", 3]), "shapes/data-dependent") == []


def pixels(op, output="uint8", **attributes):
    types = {"x": "uint8", "y": output}
    return graph([node(op, ["x"], "y", **attributes)], {"x": ["n", 3, 8, 8]}, {"y": None}, dtypes=types)


def test_pixels_that_are_not_cast_first():
    (found,) = of_rule(pixels("Transpose", perm=[0, 2, 3, 1]), "types/uint8")
    assert (found.severity, found.node) == ("error", "n_y")
    (found,) = of_rule(pixels("Cast", "int32", to=TensorProto.INT32), "types/uint8")
    assert found.severity == "warning"  # not documented, but NVIDIA's parser takes it
    assert found.why == "UINT8 is cast to INT32; FLOAT and FLOAT16 are documented, TensorRT-RTX 1.7.1 takes others"
    assert of_rule(pixels("Cast", "float32", to=TensorProto.FLOAT), "types/uint8") == []
    assert of_rule(pixels("Cast", "float16", to=TensorProto.FLOAT16), "types/uint8") == []
    (found,) = of_rule(pixels("Shape", "int64"), "types/uint8")
    assert found.severity == "warning"  # NVIDIA's documents disagree


def test_int8_outside_of_pairs():
    def model(between):
        nodes = [
            node("QuantizeLinear", ["x", "s", "z"], "q"),
            *([node("MaxPool", ["q"], "p", kernel_shape=[2, 2])] if between else []),
            node("DequantizeLinear", ["p" if between else "q", "s", "z"], "y"),
        ]
        return graph(nodes, {"x": ["n", 3, 8, 8]}, {"y": None}, {"s": np.float32(0.1), "z": np.int8(0)})

    (found,) = of_rule(model(True), "types/int8")
    assert (found.severity, found.node) == ("warning", "n_p")  # not documented, but NVIDIA's builder takes it
    assert of_rule(model(False), "types/int8") == []


@pytest.mark.parametrize(
    ("to", "rule", "why"),
    [
        (TensorProto.UINT8, "types/uint8", "it makes UINT8, which TensorRT has at inputs and outputs alone"),
        (TensorProto.INT16, "types/supported", "it casts to INT16, which TensorRT does not have"),
        (TensorProto.FLOAT8E5M2, "types/supported", "it casts to FLOAT8E5M2, which TensorRT does not have"),
        (TensorProto.FLOAT8E4M3FN, "types/supported", "it casts to FLOAT8E4M3FN, which TensorRT takes from Quantize"),
    ],
)
def test_casts_to_types_that_tensorrt_does_not_have_there(to, rule, why):
    def model(kind):
        nodes = [node("Cast", ["x"], "c", to=kind), node("Cast", ["c"], "y", to=TensorProto.FLOAT)]
        return graph(nodes, {"x": ["n", 3]}, {"y": ["n", 3]})

    found = {finding.node: finding for finding in of_rule(model(to), rule)}
    assert found["n_c"].severity == "error"
    assert why in found["n_c"].why
    assert of_rule(model(TensorProto.FLOAT16), rule) == []


def test_pixels_may_be_given_out():
    assert of_rule(pixels("Cast", to=TensorProto.UINT8), "types/uint8") == []


@pytest.mark.parametrize(
    ("dtype", "op", "rule", "severity"),
    [
        ("float64", "Relu", "types/double", "warning"),
        ("int16", "Relu", "types/supported", "error"),  # TensorRT has no such type
        ("int32", "Clip", "types/supported", "warning"),  # not in the table
    ],
)
def test_other_types(dtype, op, rule, severity):
    def model(kind):
        return graph([node(op, ["x"], "y")], {"x": ["n", 3]}, {"y": ["n", 3]}, dtypes={"x": kind, "y": kind})

    (found,) = of_rule(model(dtype), rule)
    assert (found.severity, found.node) == (severity, "n_y")
    assert of_rule(model("float32"), rule) == []


def test_powers_of_integers_from_10_12_on():
    model = graph(
        [node("Pow", ["x", "two"], "y")], {"x": ["n", 3]}, {"y": ["n", 3]}, {"two": np.int32(2)},
        dtypes={"x": "int32", "y": "int32"},
    )  # fmt: skip
    assert len(of_rule(model, "types/supported", "tensorrt-10.11")) == 1
    assert of_rule(model, "types/supported", "tensorrt-10.12") == []

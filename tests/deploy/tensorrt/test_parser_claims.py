"""Statements of docs/precision.md about TensorRT that its real parser and builder can confirm or refute."""

from __future__ import annotations

import logging
from collections import defaultdict

import numpy as np
import onnx
import pytest
from onnx import helper

from _helpers.graphs import graph, node
from _helpers.planted import add_constant, block, edited, find, normal, place, set_value, transformer, value
from _helpers.required import real_rtx
from krl_deploy.graph.files import to_bytes
from krl_deploy.precision import emit_tensorrt
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.tensorrt.builder import BuiltPlan, build_plan
from krl_deploy.tensorrt.options import BuildOptions
from krl_runtime.errors import ModelError


def build(model: onnx.ModelProto) -> BuiltPlan:
    return build_plan(to_bytes(model), BuildOptions(), real_rtx())


def convolution(weight: np.ndarray, **attributes: int) -> onnx.ModelProto:
    channels = weight.shape[1] * attributes.get("group", 1)
    return graph(
        [node("Conv", ["x", "w"], "y", **attributes)], {"x": ["batch", channels, 8, 8]}, {"y": None}, {"w": weight}
    )


def test_there_are_no_precision_flags_and_no_calibrators():
    trt = real_rtx().module
    assert not {"FP16", "INT8", "BF16"} & set(trt.BuilderFlag.__members__)
    assert not [name for name in dir(trt) if "Calibrator" in name]


def test_scales_in_fp16_are_parsed_and_widened_by_the_builder(caplog):
    with caplog.at_level(logging.WARNING, "krl"):
        build(block(half=False))
        assert "scales to fp32" not in caplog.text
        built = build(block(half=True))
    assert built.layer_types["CONVOLUTION HALF"] == 3
    assert "Converting conv weight scales to fp32" in caplog.text


def test_the_cpu_s_graph_is_refused():
    model = convolution(normal(32, 16, 3, 3))
    with pytest.raises(ModelError, match="Non-zero zero point is not supported"):
        build(to_cpu(model, defaultdict(lambda: (-1.0, 1.0))).model)


def test_uint8_with_zero_points_of_0_is_read_as_int8(caplog):
    """The parser warns and builds: values above 127 steps are clipped, and no error says so."""

    def unsigned(model: onnx.ModelProto) -> None:
        set_value(model, "r0_zero_point", np.uint8(0))

    with caplog.at_level(logging.WARNING, "krl"):
        assert build(edited(block(), unsigned)).plan
    assert "Defaulting to INT8 instead" in caplog.text


def test_a_bias_as_int32_is_refused():
    def plant(model: onnx.ModelProto) -> None:
        stored = add_constant(model, "b1_stored", np.arange(32, dtype=np.int32))
        scale = add_constant(model, "b1_scale", np.full(32, 1e-4, np.float32))
        place(
            model,
            [helper.make_node("DequantizeLinear", [stored, scale], ["b1_float"], name="DQ", axis=0)],
            before="n_c1",
        )
        find(model, "n_c1").input[2] = "b1_float"

    with pytest.raises(ModelError, match="input has type Int32"):
        build(edited(block(), plant))


@pytest.mark.parametrize("op", ["QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"])
def test_operators_on_integers_are_refused(op):
    linear, product = op.startswith("QLinear"), "MatMul" in op
    constants = {"w": np.ones((8, 8) if product else (4, 3, 3, 3), np.int8)}
    constants |= {"s": np.float32(0.1), "z": np.int8(0)} if linear else {}
    inputs = ["x", "s", "z", "w", "s", "z", "s", "z"] if linear else ["x", "w"]
    types = {"x": "int8", "y": "int8" if linear else "int32"}
    shape = [1, 8] if product else [1, 3, 8, 8]
    with pytest.raises(ModelError, match=op):
        build(graph([node(op, inputs, "y")], {"x": shape}, {"y": None}, constants, dtypes=types))


def test_dynamic_quantization_is_refused():
    dynamic = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic")
    model = graph([dynamic, node("DequantizeLinear", ["q", "s", "z"], "y")], {"x": [1, 8]}, {"y": None})
    with pytest.raises(ModelError, match="DynamicQuantizeLinear"):
        build(model)


def input_channels(model: onnx.ModelProto) -> None:
    find(model, "w1_dequantized").attribute[0].i = 1


def scales_of_activations(model: onnx.ModelProto) -> None:
    for name in ("r0_scale", "r0_zero_point"):
        one = value(model, name)
        set_value(model, name, np.full(32, one, one.dtype))
    for name in ("r0_quantized", "r0_dequantized"):
        find(model, name).attribute.append(helper.make_attribute("axis", 1))


@pytest.mark.parametrize("plant", [input_channels, scales_of_activations])
def test_misplaced_scales_are_not_refused(plant):
    """Neither parser nor builder objects, so krl's own rules must: nobody else does before the engine runs."""
    assert build(edited(block(), plant)).plan


@pytest.mark.parametrize(
    "model",
    [convolution(normal(5, 3, 3, 3)), convolution(normal(6, 1, 5, 5), group=6), transformer(layers=False)],
    ids=["thin", "depthwise", "behind an attention"],
)
def test_operators_that_krl_keeps_in_floating_point_would_build(model, monkeypatch):
    """That they stay in floating point is for speed and for known wrong values, and not because the builder fails."""
    ranges = defaultdict(lambda: (-1.0, 1.0))
    kept = [item for item in model.graph.node if item.op_type in ("Conv", "MatMul")]
    monkeypatch.setattr(emit_tensorrt, "why_float_on_tensorrt", lambda *_: None)
    quantized = emit_tensorrt.to_tensorrt(model, ranges)
    assert not quantized.kept_float
    assert quantized.count >= len(kept) - 2  # the two products inside an attention have no weight
    assert build(quantized.model).plan

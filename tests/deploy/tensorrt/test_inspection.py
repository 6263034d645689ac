"""A fault that is planted in a graph is found in the network that NVIDIA's parser makes of it, or the parser refuses.

These tests show that the inspection of the zoo is not empty. They also record what the parser checks by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from _helpers.graphs import graph, node
from _helpers.inspection import Plan, faults, needed_casts
from _helpers.parsed import Layer, Tensor, read_layers
from _helpers.planted import add_constant, edited, find, insert_pair, normal, place, quantize, remove_pair, set_value
from _helpers.required import real_rtx
from krl_deploy.graph.files import to_bytes
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_runtime.errors import ModelError


def block() -> onnx.ModelProto:
    """pixels → scaled → first → relu → second → add → head; weights have biases."""
    weights = {"w0": normal(32, 16, 3, 3), "w1": normal(32, 32, 3, 3), "b0": normal(32), "b1": normal(32)}
    nodes = [
        node("Mul", ["x", "gain"], "s"),
        node("Conv", ["s", "w0", "b0"], "c0", pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], "r0"),
        node("Conv", ["r0", "w1", "b1"], "c1", pads=[1, 1, 1, 1]),
        node("Add", ["c1", "r0"], "a"),
        node("GlobalAveragePool", ["a"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "w2", "b2"], "y"),
    ]
    constants = {**weights, "w2": normal(32, 16), "b2": normal(16), "gain": np.float32(2)}
    return graph(nodes, {"x": ["batch", 16, 8, 8]}, {"y": ["batch", 16]}, constants)


FLOAT = block()
PLANS = {
    "fp32": (FLOAT, Plan(FLOAT)),
    "fp16": (to_fp16(FLOAT, {}).model, Plan(FLOAT, half=True)),
    "int8": (quantize(FLOAT), Plan(FLOAT, int8=True)),
    "int8 in fp16": (quantize(FLOAT, half=True), Plan(FLOAT, half=True, int8=True)),
}


def inspect(model: onnx.ModelProto, plan: Plan) -> list[str]:
    return faults(read_layers(to_bytes(model), real_rtx()), plan, model)


@pytest.mark.parametrize("form", PLANS)
def test_without_a_fault_nothing_is_found(form):
    assert inspect(*PLANS[form]) == []


@pytest.mark.parametrize(("made", "planned"), [(a, b) for a in PLANS for b in PLANS if a != b])
def test_another_precision_than_planned_is_found(made, planned):
    assert inspect(PLANS[made][0], PLANS[planned][1])


def cast_before(reader: str, index: int, to: int) -> Callable[[onnx.ModelProto], None]:
    """Return an edit that puts a Cast before an input of a node."""

    def edit(model: onnx.ModelProto) -> None:
        source = find(model, reader).input[index]
        name = f"{reader}_{index}_cast"
        place(model, [helper.make_node("Cast", [source], [name], name=f"Cast_{name}", to=to)], before=reader)
        find(model, reader).input[index] = name

    return edit


def fp32_island(model: onnx.ModelProto) -> None:
    """Let the ReLU compute in FP32, between two casts."""
    cast_before("n_r0", 0, TensorProto.FLOAT)(model)
    find(model, "n_r0").output[0] = "r0_float"
    place(
        model, [helper.make_node("Cast", ["r0_float"], ["r0"], name="Cast_back", to=TensorProto.FLOAT16)], before="n_c1"
    )


def pair_after_the_convolution(model: onnx.ModelProto) -> None:
    insert_pair(model, "n_r0", 0)


def float_input(model: onnx.ModelProto) -> None:
    remove_pair(model, "n_c1", 0)


def longer_branch(model: onnx.ModelProto) -> None:
    """Quantize the convolution's output before the addition, and not the shortcut."""
    remove_pair(model, "n_a", 1)
    insert_pair(model, "n_a", 0)


def one_scale(model: onnx.ModelProto) -> None:
    set_value(model, "w1_scale", np.float32(0.1))
    set_value(model, "w1_zero_point", np.int8(0))


def other_axis(model: onnx.ModelProto) -> None:
    dequantize = find(model, "w1_dequantized")
    next(item for item in dequantize.attribute if item.name == "axis").i = 1


def integers_go_elsewhere(model: onnx.ModelProto) -> None:
    """Let a Cast read the integers beside the DequantizeLinear."""
    cast = helper.make_node("Cast", ["r0_quantized"], ["extra"], name="Cast_extra", to=TensorProto.FLOAT)
    place(model, [cast], before="n_c1")
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, None))


def pair_on_a_move(model: onnx.ModelProto) -> None:
    insert_pair(model, "n_f", 0)


@pytest.mark.parametrize(
    ("form", "plant", "message"),
    [
        ("fp16", fp32_island, "ACTIVATION 'n_r0' computes in FLOAT, planned is HALF"),
        ("fp16", cast_before("n_c1", 0, TensorProto.FLOAT16), "changes nothing"),
        ("int8", pair_after_the_convolution, "is read by ['ACTIVATION']"),
        ("int8", pair_on_a_move, "is read by ['SHAPE', 'SHUFFLE']"),
        ("int8", float_input, "'n_c1' should be in INT8, its inputs are ['float', 'weight']"),
        ("int8", longer_branch, "'n_a' has pairs at inputs [0], planned is one of [[1]]"),
        ("int8", one_scale, "has 1 scales on axis 1, not 32"),
        ("int8", other_axis, "has 32 scales on axis 1, not 32"),
        ("int8", integers_go_elsewhere, "is read by ['CAST', 'DEQUANTIZE']"),
    ],
)
def test_planted_faults(form, plant, message):
    model, plan = PLANS[form]
    found = inspect(edited(model, plant), plan)
    assert any(message in text for text in found), found


def test_a_node_that_stays_in_fp32_is_found_there():
    kept = to_fp16(FLOAT, {"c1": (-1e5, 1e5)})
    plan = Plan(FLOAT, half=True, fp32=frozenset(kept.kept))
    assert set(kept.kept) == {"n_c1", "n_a"}
    assert inspect(kept.model, plan) == []
    assert inspect(kept.model, Plan(FLOAT, half=True))
    assert inspect(PLANS["fp16"][0], plan)


def zero_point(model: onnx.ModelProto) -> None:
    set_value(model, "r0_zero_point", np.int8(3))


def float_bias(model: onnx.ModelProto) -> None:
    find(model, "n_c1").input[2] = add_constant(model, "wide_bias", normal(32))


def float_gemm_bias(model: onnx.ModelProto) -> None:
    find(model, "n_y").input[2] = add_constant(model, "wide_bias", normal(16))


def mixed_addition(model: onnx.ModelProto) -> None:
    cast_before("n_a", 0, TensorProto.FLOAT)(model)


def unsigned(model: onnx.ModelProto) -> None:
    set_value(model, "r0_zero_point", np.uint8(128))


def float_scale(model: onnx.ModelProto) -> None:
    set_value(model, "r0_scale_half", np.float32(0.01))


@pytest.mark.parametrize(
    ("form", "plant"),
    [
        ("int8 in fp16", float_scale),
        ("int8", zero_point),
        ("int8", unsigned),
        ("fp16", float_bias),
        ("fp16", float_gemm_bias),
        ("fp16", mixed_addition),
    ],
)
def test_what_the_parser_refuses_itself(form, plant):
    with pytest.raises(ModelError, match="does not take this ONNX file"):
        read_layers(to_bytes(edited(PLANS[form][0], plant)), real_rtx())


def test_faults_that_a_parser_could_make():
    model, plan = PLANS["int8 in fp16"]
    layers = read_layers(to_bytes(model), real_rtx())
    assert faults(layers, plan, model) == []
    convolution = next(layer for layer in layers if layer.node == "n_c1")
    assert any("bias of 'n_c1'" in text for text in _with(layers, replace(convolution, bias="FLOAT"), plan, model))
    assert any("bias of 'n_c1'" in text for text in _with(layers, replace(convolution, bias=""), plan, model))
    stored = replace(convolution, kernel="FLOAT")
    assert any("computes in FLOAT/HALF" in text for text in _with(layers, stored, plan, model))
    cast = Layer("CAST", "helper", "", convolution.outputs, (Tensor("wide", "FLOAT"),))
    assert any("the parser added CAST 'helper'" in text for text in faults([*layers, cast], plan, model))
    assert any("is missing" in text for text in faults([x for x in layers if x is not convolution], plan, model))


def _with(layers: list[Layer], changed: Layer, plan: Plan, model: onnx.ModelProto) -> list[str]:
    return faults([changed if layer.name == changed.name else layer for layer in layers], plan, model)


def test_casts_that_a_plan_needs():
    assert needed_casts(Plan(FLOAT)) == 0
    assert needed_casts(Plan(FLOAT, half=True)) == 2  # behind the scaled pixels, and before the output
    assert needed_casts(Plan(FLOAT, half=True, int8=True)) == 1  # the first pair reads FP32 and gives FP16
    assert needed_casts(Plan(FLOAT, half=True, fp32=frozenset({"n_c1"}))) == 4

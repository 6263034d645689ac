"""Faults planted in graphs that krl writes: krl's rules against the verdict of NVIDIA's own parser and builder.

Each entry is one fault in a graph that both accept. The judge is TensorRT-RTX's parser or builder, never krl's rules.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from _helpers.planted import WEIGHT as W
from _helpers.planted import (
    add_constant,
    block,
    edited,
    few_scales,
    few_zero_points,
    find,
    findings,
    normal,
    place,
    set_value,
    transformer,
    value,
)
from _helpers.required import real_rtx
from krl_deploy.rules.targets import RTX
from krl_deploy.tensorrt.ask import ask

Q, DQ = "QuantizeLinear_r0_quantized", "DequantizeLinear_r0_dequantized"
W0, W3 = "DequantizeLinear_w0_dequantized", "DequantizeLinear_w3_dequantized"

FULL, HALF = block(), block(half=True)  # INT8 within FP32, and within FP16


@pytest.fixture(scope="module", autouse=True)
def rtx():
    return real_rtx()


@pytest.fixture
def verdict(tmp_path):
    """Ask NVIDIA's parser and builder: how far they came, and the nodes that they complain of with their rules."""

    def judge(model: onnx.ModelProto) -> tuple[str, dict[str, str]]:
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        said, found = ask(path, RTX)
        stage = "built" if said.built else "parsed" if said.parsed else "refused"
        return stage, {item.node: item.rule for item in found}

    return judge


def errors(model: onnx.ModelProto, target: str) -> dict[str, set[str]]:
    """Return the rules of krl's errors by node."""
    found: dict[str, set[str]] = {}
    for item in findings(model, target):
        if item.severity == "error":
            found.setdefault(item.node, set()).add(item.rule)
    return found


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("make", [block, transformer])
def test_both_accept_the_graphs_without_a_fault(make, half, verdict):
    model = make(half=half)
    assert verdict(model) == ("built", {})
    assert errors(model, "tensorrt-11.4") == errors(model, "rtx") == {}


def zero_point_of_an_activation(model):
    set_value(model, find(model, Q).input[2], np.int8(3))


def zero_point_of_one_channel(model):
    set_value(model, find(model, W).input[2], np.where(np.arange(32) == 5, 1, 0).astype(np.int8))


def zero_point_of_uint8(model):
    set_value(model, find(model, Q).input[2], np.uint8(128))


def uint8_weight(model):
    stored, _, zero = find(model, W).input
    set_value(model, stored, value(model, stored).view(np.uint8))
    set_value(model, zero, np.zeros(32, np.uint8))


def int16_pair(model):
    model.opset_import[0].version = 21
    set_value(model, find(model, Q).input[2], np.int16(0))


def float8_of_another_kind(model):
    set_value(model, find(model, Q).input[2], np.asarray(0, ml_dtypes.float8_e5m2))


def int32_weight(model):
    restored = find(model, W)
    set_value(model, restored.input[0], value(model, restored.input[0]).astype(np.int32))
    del restored.input[2]


def scale(wrong):
    def plant(model):
        set_value(model, find(model, Q).input[1], np.float32(wrong))

    return plant


def scale_of_one_channel(wrong):
    def plant(model):
        scales = np.full(32, 0.01, np.float32)
        scales[3] = wrong
        set_value(model, find(model, W).input[1], scales)

    return plant


def no_scale(model):
    set_value(model, find(model, Q).input[1], np.zeros(0, np.float32))


def axis(name, wrong):
    def plant(model):
        find(model, name).attribute[0].i = wrong

    return plant


def int32_bias(model):
    stored = add_constant(model, "b1_stored", np.arange(32, dtype=np.int32))
    scales = add_constant(model, "b1_scale", np.full(32, 1e-4, np.float32))
    restored = helper.make_node("DequantizeLinear", [stored, scales], ["b1_restored"], name="DQ_b1", axis=0)
    place(model, [restored], before="n_c1")
    find(model, "n_c1").input[2] = "b1_restored"


def fp32_bias(model):
    find(model, "n_c1").input[2] = add_constant(model, "b1_float", normal(32))


def cast(tensor, reader, index, to=TensorProto.FLOAT):
    """Plant a cast before one input of a node, so that its inputs have two types."""

    def plant(model):
        place(model, [helper.make_node("Cast", [tensor], ["other"], name="Cast_other", to=to)], before=reader)
        find(model, reader).input[index] = "other"

    return plant


def scale_type(name, dtype, count=()):
    def plant(model):
        find(model, name).input[1] = add_constant(model, "other_scale", np.full(count, 0.01, dtype))

    return plant


def no_dequantizer(reader, index):
    def plant(model):
        find(model, reader).input[index] = "r0_quantized"

    return plant


def no_quantizer(model):
    find(model, DQ).input[0] = "r0"


def integer_weight(model):
    find(model, "n_c1").input[1] = "w1_int8"


def open_zero_point(model):
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.INT8, []))
    find(model, Q).input[2] = find(model, DQ).input[2] = "z"


def group(model):
    find(model, "n_c1").attribute.append(helper.make_attribute("group", 2))


def missing_channels(model):
    stored = find(model, W).input[0]
    set_value(model, stored, value(model, stored)[:, :16])


def short_bias(model):
    set_value(model, "b1", normal(16))


def short_matrix(model):
    stored = find(model, W3).input[0]
    set_value(model, stored, value(model, stored)[:16])


def large_kernel(model):
    set_value(model, find(model, W).input[0], np.ones((32, 32, 21, 21), np.int8))
    kernel = next((item for item in find(model, "n_c1").attribute if item.name == "kernel_shape"), None)
    if kernel is not None:
        kernel.ints[:] = [21, 21]


def uint8_inside(model):
    """Cast the activation to pixels and back, as a converter may that writes its postprocessing into the graph."""
    pixels = helper.make_node("Cast", ["r0_dequantized"], ["r0_pixels"], name="Cast_pixels", to=TensorProto.UINT8)
    back = helper.make_node("Cast", ["r0_pixels"], ["r0_back"], name="Cast_back", to=TensorProto.FLOAT)
    place(model, [pixels, back], before="n_c1")
    find(model, "n_c1").input[0] = "r0_back"


PLANTED = {
    "asymmetric activation": (FULL, zero_point_of_an_activation, Q, "qdq/symmetric", Q),
    "asymmetric weight, one channel": (FULL, zero_point_of_one_channel, W, "qdq/symmetric", W),
    "asymmetric uint8 activation": (FULL, zero_point_of_uint8, Q, "qdq/symmetric", Q),
    "uint8 weight": (FULL, uint8_weight, W, "qdq/int8", W),
    # The parser fails when it reads the zero point, before any node: it names that initializer.
    "int16 pair": (FULL, int16_pair, "r0_zero_point", "qdq/int8", Q),
    "FP8 of another kind": (FULL, float8_of_another_kind, "r0_zero_point", "qdq/int8", Q),
    "int32 weight": (FULL, int32_weight, W, "qdq/int8", W),
    "negative scale": (FULL, scale(-0.01), Q, "qdq/scale", Q),
    "scale 0": (FULL, scale(0), Q, "qdq/scale", Q),
    "scale NaN": (FULL, scale(np.nan), Q, "qdq/scale", Q),
    "scale 0 of one channel": (FULL, scale_of_one_channel(0), W, "qdq/scale", W),
    "no scale at all": (FULL, no_scale, Q, "qdq/scale", Q),
    "half of the scales": (FULL, few_scales, W, "qdq/scale-count", W),
    "half of the zero points": (FULL, few_zero_points, W, "qdq/scale-count", W),
    "axis of the input channels": (FULL, axis(W0, 1), W0, "qdq/scale-count", W0),
    "axis of a matrix's rows": (FULL, axis(W3, 0), W3, "qdq/scale-count", W3),
    "axis that is not there": (FULL, axis(W, 5), W, "qdq/scale-count", W),
    # krl names the convolution, which is what the remedy is about; the parser its bias's dequantizer.
    "int32 bias": (FULL, int32_bias, "DQ_b1", "qdq/bias", "n_c1"),
    "FP32 bias in FP16": (HALF, fp32_bias, "n_c1", "types/mixed", "n_c1"),
    "FP32 input in FP16": (HALF, cast("r0_dequantized", "n_c1", 0), "n_c1", "types/mixed", "n_c1"),
    "FP32 shortcut in FP16": (HALF, cast("r0_dequantized", "n_a", 1), "n_a", "types/mixed", "n_a"),
    "FP32 scale of an activation in FP16": (HALF, scale_type(DQ, np.float32), "n_c1", "types/mixed", "n_c1"),
    "FP32 scales of a weight in FP16": (HALF, scale_type(W, np.float32, 32), "n_c1", "types/mixed", "n_c1"),
    "FP16 scale of an activation in FP32": (FULL, scale_type(DQ, np.float16), "n_c1", "types/mixed", "n_c1"),
    "FP16 scales of a weight in FP32": (FULL, scale_type(W, np.float16, 32), "n_c1", "types/mixed", "n_c1"),
    "BF16 scale in FP32": (FULL, scale_type(DQ, ml_dtypes.bfloat16), "n_c1", "types/mixed", "n_c1"),
    "Q without DQ at a convolution": (FULL, no_dequantizer("n_c1", 0), "n_c1", "types/mixed", "n_c1"),
    "Q without DQ at an addition": (FULL, no_dequantizer("n_a", 1), "n_a", "types/mixed", "n_a"),
    "DQ without Q": (FULL, no_quantizer, DQ, "qdq/int8", DQ),
    "integer weight without DQ": (FULL, integer_weight, "n_c1", "types/mixed", "n_c1"),
    "zero point that is an input": (FULL, open_zero_point, Q, "qdq/constant", Q),
    "group that does not fit": (FULL, group, "n_c1", "shapes/sizes", "n_c1"),
    "weight of fewer channels": (FULL, missing_channels, "n_c1", "shapes/sizes", "n_c1"),
    "bias of fewer channels": (FULL, short_bias, "n_c1", "shapes/sizes", "n_c1"),
    "matrix of fewer rows": (FULL, short_matrix, "n_y", "shapes/consistent", "n_y"),
    "kernel larger than its input": (FULL, large_kernel, "n_c1", "shapes/sizes", "n_c1"),
    "uint8 inside the graph": (FULL, uint8_inside, "Cast_pixels", "types/uint8", "Cast_pixels"),
}
"""By fault: the graph, the edit, the node that NVIDIA names, krl's rule, and the node that krl names."""


@pytest.mark.parametrize("fault", PLANTED)
def test_nvidia_refuses_what_krl_calls_an_error(fault, verdict):
    model, plant, theirs, rule, ours = PLANTED[fault]
    planted = edited(model, plant)
    stage, complaints = verdict(planted)
    assert stage in ("refused", "parsed")
    assert theirs in complaints
    for target in ("tensorrt-11.4", "rtx"):
        assert rule in errors(planted, target).get(ours, set())


def test_some_faults_are_found_by_the_builder_alone(verdict):
    assert verdict(edited(FULL, short_bias)) == ("parsed", {"n_c1": "builder/refused"})
    assert verdict(edited(FULL, open_zero_point)) == ("parsed", {Q: "builder/refused"})


def test_a_scale_that_is_an_input_kills_the_builder(verdict):
    """krl reports it as an error, so that nothing gets so far."""

    def plant(model):
        model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
        find(model, Q).input[1] = find(model, DQ).input[1] = "s"

    planted = edited(FULL, plant)
    stage, complaints = verdict(planted)
    assert (stage, list(complaints.values())) == ("parsed", ["parser/crashed"])
    assert "qdq/constant" in errors(planted, "rtx")[Q]


def square_axis(model):
    """Count the scales of a square weight along its input channels, where their number fits."""
    find(model, W).attribute[0].i = 1


def unsigned(model):
    set_value(model, find(model, Q).input[2], np.uint8(0))


def unsaid_zero_point(model):
    del find(model, Q).input[2]


def scales_of_an_activation(model):
    scales, zeros = find(model, Q).input[1:3]
    set_value(model, scales, np.full(32, 0.01, np.float32))
    set_value(model, zeros, np.zeros(32, np.int8))


def integers_given_out(model):
    model.graph.output.append(helper.make_tensor_value_info("r0_quantized", TensorProto.INT8, ["batch", 32, 8, 8]))


ACCEPTED = {
    # The parser only counts the scales. Along the input channels TensorRT's INT8 kernels have none.
    "axis of a square weight": (square_axis, "n_c1", "qdq/weight-axis"),
    # The parser makes int8 of it: values above 127 saturate, which is not what the file says.
    "uint8 activation with zero point 0": (unsigned, Q, "qdq/int8"),
    # By ONNX the values are uint8 then; the same.
    "no zero point": (unsaid_zero_point, Q, "qdq/int8"),
    # NvInfer.h: scales for each channel are for weights; the engine then computes in floating point.
    "scales for each channel of an activation": (scales_of_an_activation, Q, "qdq/per-channel-activation"),
    # Every value becomes 0.
    "infinite scale": (scale(np.inf), Q, "qdq/scale"),
    # krl's runtime gives out floats.
    "integers at an output": (integers_given_out, Q, "qdq/pair"),
}
"""Graphs that NVIDIA builds and krl refuses as a policy, with the reason."""


@pytest.mark.parametrize("fault", ACCEPTED)
def test_nvidia_builds_what_krl_refuses_as_a_policy(fault, verdict):
    plant, node, rule = ACCEPTED[fault]
    planted = edited(FULL, plant)
    assert verdict(planted) == ("built", {})
    for target in ("tensorrt-11.4", "rtx"):
        assert rule in errors(planted, target)[node]


def relu_on_integers(model):
    between = helper.make_node("Relu", ["r0_quantized"], ["r0_positive"], name="Relu_int8")
    place(model, [between], before=DQ)
    find(model, DQ).input[0] = "r0_positive"


def int8_bias(model):
    stored = add_constant(model, "b1_stored", np.arange(32, dtype=np.int8))
    scales = add_constant(model, "b1_scale", np.full(32, 1e-4, np.float32))
    restored = helper.make_node("DequantizeLinear", [stored, scales], ["b1_restored"], name="DQ_b1", axis=0)
    place(model, [restored], before="n_c1")
    find(model, "n_c1").input[2] = "b1_restored"


def fp32_scale_of_a_quantizer(model):
    find(model, Q).input[1] = add_constant(model, "other_scale", np.float32(0.01))


WARNED = {
    "Relu on int8": (FULL, relu_on_integers, "types/int8"),
    "int8 bias": (FULL, int8_bias, "qdq/bias"),
    "FP32 scale of a quantizer in FP16": (HALF, fp32_scale_of_a_quantizer, "qdq/pair"),
}
"""Graphs that NVIDIA builds and krl warns of: not documented, slow, or of another scale than its partner."""


@pytest.mark.parametrize("fault", WARNED)
def test_nvidia_builds_what_krl_warns_of(fault, verdict):
    model, plant, rule = WARNED[fault]
    planted = edited(model, plant)
    assert verdict(planted) == ("built", {})
    assert {item.severity for item in findings(planted) if item.rule == rule} == {"warning"}
    assert errors(planted, "tensorrt-11.4") == errors(planted, "rtx") == {}


def test_a_miss_of_krl_that_the_builder_refuses(verdict):
    """FP8 activations with INT8 weights: no converter that krl knows writes it, so that no rule looks for it."""

    def plant(model):
        set_value(model, find(model, Q).input[2], np.asarray(0, ml_dtypes.float8_e4m3fn))

    planted = edited(FULL, plant)
    stage, complaints = verdict(planted)
    assert (stage, list(complaints.values())) == ("parsed", ["builder/refused"])
    assert errors(planted, "rtx") == {}

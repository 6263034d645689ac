"""What generators and restorers are made of survives typing: cleaned, in FP16 and in INT8 it computes the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from _helpers.graphs import graph, named, node, run
from _helpers.image_nets import smooth
from krl_deploy.calibration.collect import collect
from krl_deploy.calibration.record import Identity
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.session import open_cpu
from krl_deploy.precision.calibrate import measure_tensors
from krl_deploy.precision.emit_fp16 import float_tensors, round_to_fp16, to_fp16
from krl_deploy.precision.variants import Emitter

RNG = np.random.default_rng(0)
WIDTH = 32
NOISE = 0.1  # of INT8: instance normalization amplifies that of quiet channels; another function would be at 1 or more
PIXELS = np.stack([smooth(12, 14, 1, seed)[..., 0][None] for seed in range(40)])

MIDDLES = {
    "InstanceNormalization": ([node("InstanceNormalization", ["b", "g", "o"], "m", epsilon=1e-5)], WIDTH),
    "ConvTranspose": ([node("ConvTranspose", ["b", "t"], "m", strides=[2, 2], pads=[1, 1, 1, 1])], WIDTH),
    "DepthToSpace": ([node("DepthToSpace", ["b"], "m", blocksize=2, mode="CRD")], WIDTH // 4),
    "Resize": (
        [
            node(
                "Resize",
                ["b", "", "s"],
                "m",
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        ],
        WIDTH,
    ),
    "Pad": ([node("Pad", ["b", "p"], "m", mode="reflect")], WIDTH),
}


def net(name):
    """Convolution, ReLU, the operator, and another convolution."""
    middle, channels = MIDDLES[name]
    values = {
        "u": np.float32(1 / 255),
        "w": RNG.normal(0, 0.3, (WIDTH, 1, 3, 3)).astype(np.float32),
        "v": RNG.normal(0, 0.1, (16, channels, 3, 3)).astype(np.float32),
        "g": RNG.uniform(0.5, 1.5, WIDTH).astype(np.float32),
        "o": RNG.normal(0, 0.1, WIDTH).astype(np.float32),
        "t": RNG.normal(0, 0.1, (WIDTH, WIDTH, 4, 4)).astype(np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
        "p": np.array([0, 0, 2, 2, 0, 0, 2, 2]),
    }
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("Mul", ["f", "u"], "x"),
        node("Conv", ["x", "w"], "a", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "b"),
        *middle,
        node("Conv", ["m", "v"], "y", pads=[1, 1, 1, 1]),
    ]
    used = {each for item in nodes for each in item.input}
    constants = {key: value for key, value in values.items() if key in used}
    return graph(nodes, {"pixels": ["n", 1, "h", "w_"]}, {"y": None}, constants, dtypes={"pixels": "uint8"})


def noise(made, wanted):
    """Return the error relative to the wanted values' deviation."""
    return float((made - wanted).std() / wanted.std())


@pytest.mark.parametrize("name", MIDDLES)
def test_clean_half_and_int8(name):
    original = net(name)
    model = clean(original)
    (wanted,) = run(original, pixels=PIXELS)
    np.testing.assert_allclose(run(model, pixels=PIXELS)[0], wanted, atol=1e-4)

    extremes = collect(model, float_tensors(model), PIXELS)
    converted = to_fp16(model, extremes)
    assert converted.nodes
    assert noise(run(converted.model, pixels=PIXELS)[0], wanted) < 0.01
    assert noise(run(round_to_fp16(model, converted.nodes), pixels=PIXELS)[0], wanted) < 0.01

    calibration = measure_tensors(model, PIXELS, Identity("", {}, "", len(PIXELS), "minmax", "auto"))
    emitter = Emitter(to_bytes(model), calibration, fp16=False, optimal_scales=False, bias_correction=True)
    graphs = emitter.emit()
    assert "n_y" not in graphs.tensorrt.kept_float
    for form in ("int8", "int8.cpu"):
        assert noise(outputs_of(graphs.sessions[form], PIXELS), wanted) < NOISE
        other = np.ascontiguousarray(PIXELS[:, :, :10, :6])
        assert noise(outputs_of(graphs.sessions[form], other), run(model, pixels=other)[0]) < NOISE


def test_transposed_convolutions_are_in_int8_nowhere():
    model = clean(net("ConvTranspose"))
    calibration = measure_tensors(model, PIXELS, Identity("", {}, "", len(PIXELS), "minmax", "auto"))
    emitter = Emitter(to_bytes(model), calibration, fp16=False, optimal_scales=False, bias_correction=True)
    tensorrt, cpu = emitter.tensorrt(), emitter.cpu()
    assert "wrong outputs" in tensorrt.kept_float["n_m"]
    assert "no quantized transposed convolution" in cpu.kept_float["n_m"]
    reads = [item.op_type for item in tensorrt.model.graph.node if item.output[0] in named(tensorrt.model, "n_m").input]
    assert "DequantizeLinear" not in reads
    assert open_cpu(to_bytes(tensorrt.model))


def test_plans_that_keep_what_comes_before():
    """A layer whose predecessor stays in floating point quantizes what it reads itself, behind a Pad for instance."""
    for name in MIDDLES:
        model = clean(net(name))
        calibration = measure_tensors(model, PIXELS, Identity("", {}, "", len(PIXELS), "minmax", "auto"))
        emitter = Emitter(to_bytes(model), calibration, fp16=False, optimal_scales=False, bias_correction=True)
        (wanted,) = run(model, pixels=PIXELS)
        for kept in (["n_a"], ["n_a", "n_m"], ["n_y"]):
            graphs = emitter.emit(dict.fromkeys(kept, "kept by the test"))
            for form in ("int8", "int8.cpu"):
                assert noise(outputs_of(graphs.sessions[form], PIXELS), wanted) < NOISE


@pytest.mark.parametrize("behind", [["Clip"], ["DepthToSpace", "Clip"], ["Tanh"], ["Add", "Mul"], []])
def test_the_convolution_that_writes_an_image_stays_in_float_on_a_cpu(behind):
    model = _ending_in(behind)
    calibration = measure_tensors(model, PIXELS, Identity("", {}, "", len(PIXELS), "minmax", "auto"))
    graphs = {}
    for image in (False, True):
        emitter = Emitter(
            to_bytes(model), calibration, fp16=False, optimal_scales=False, bias_correction=True, image=image
        )
        graphs[image] = emitter.emit()
    assert "n_y" not in graphs[False].cpu.kept_float
    assert graphs[True].cpu.kept_float == {"n_y": "it writes the image, which would have 8 bits"}
    (wanted,) = run(model, pixels=PIXELS)
    errors = [noise(outputs_of(each.sessions["int8.cpu"], PIXELS), wanted) for each in graphs.values()]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("behind", [["GlobalAveragePool"], ["Conv"]])
def test_a_convolution_before_other_operators_does_not(behind):
    model = _ending_in(behind)
    calibration = measure_tensors(model, PIXELS, Identity("", {}, "", len(PIXELS), "minmax", "auto"))
    emitter = Emitter(to_bytes(model), calibration, fp16=False, optimal_scales=False, bias_correction=True, image=True)
    assert "n_y" not in emitter.cpu().kept_float


def _ending_in(behind):
    """The network above, with these operators behind its last convolution."""
    model = net("Pad")
    extra = {"low": np.float32(-9), "high": np.float32(9), "half": np.float32(0.5)}
    extra["k"] = RNG.normal(0, 0.1, (16, 16, 1, 1)).astype(np.float32)
    more = {"Clip": ["low", "high"], "Add": ["half"], "Mul": ["half"], "Conv": ["k"]}
    nodes, last = list(model.graph.node), "y"
    for op in behind:
        options = {"blocksize": 2, "mode": "CRD"} if op == "DepthToSpace" else {}
        nodes.append(node(op, [last, *more.get(op, [])], f"{last}_", **options))
        last += "_"
    used = {name for item in nodes for name in item.input}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants |= {name: value for name, value in extra.items() if name in used}
    return clean(graph(nodes, {"pixels": ["n", 1, "h", "w_"]}, {last: None}, constants, dtypes={"pixels": "uint8"}))

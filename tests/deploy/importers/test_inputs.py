"""Forms of inputs: the bundle's outputs against those of the file on arrays that NumPy lays out and normalizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from _helpers.graphs import node, ops
from _helpers.third_party import LABELS, SIDE, body, brought, model_of, one_by_one, read_pixels
from krl_deploy.cli import main
from krl_runtime import load
from krl_runtime.errors import ModelError, UsageError

TAIL = node("Flatten", ["z"], "out")
TO_NCHW = node("Transpose", ["image"], "x", perm=[0, 3, 1, 2])


def reading(name, channels=3):
    """The body, which reads another tensor than the input."""
    nodes, weights = body(channels=channels)
    nodes[0].input[0] = name
    return [*nodes, TAIL], weights


def check(bundle, files, expected, tolerance=1e-4):
    with load(bundle.path, require="cpu", threads=1) as net:
        np.testing.assert_allclose([net(file).logits for file in files], expected, atol=tolerance)
        np.testing.assert_allclose([each.logits for each in net(files)], expected, atol=tolerance)
    assert bundle.manifest.inputs[0].shape[0] == "batch"


def unit(pixels):
    return (pixels / 255).astype(np.float32)


@pytest.mark.parametrize("batch", ["N", 1])
def test_channels_last_behind_a_transpose(batch, tmp_path, colors):
    nodes, weights = reading("x")
    model = model_of([TO_NCHW, *nodes], weights, "out", shape=(batch, SIDE, SIDE, 3))
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    check(bundle, files, one_by_one(model, unit(pixels).transpose(0, 2, 3, 1)))
    assert "Transpose" not in ops(onnx.load(bundle.path / "model.fp32.onnx"))


def test_channels_last_throughout(tmp_path, colors):
    """As Keras exports: scaling and a bias in NHWC, a Transpose around each convolution, a mean over axes 1 and 2."""
    nodes, weights = body()
    nodes = [
        node("Mul", ["image", "scale"], "s"),
        node("Sub", ["s", "mean"], "n"),
        node("Transpose", ["n"], "x", perm=[0, 3, 1, 2]),
        node("Conv", ["x", "w1"], "c", pads=[1] * 4, strides=[2, 2]),
        node("Transpose", ["c"], "t", perm=[0, 2, 3, 1]),
        node("Add", ["t", "b1"], "b"),
        node("Relu", ["b"], "r"),
        node("ReduceMean", ["r"], "g", axes=[1, 2], keepdims=0),
        node("MatMul", ["g", "w2"], "m"),
        node("Add", ["m", "b2"], "out"),
    ]
    weights["w2"] = weights["w2"].reshape(4, 16).T.copy()
    weights |= {"scale": np.float32(2), "mean": np.float32([[[[0.9, 1.0, 1.1]]]])}
    model = model_of(nodes, weights, "out", shape=("N", SIDE, SIDE, 3))
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    check(bundle, files, one_by_one(model, unit(pixels).transpose(0, 2, 3, 1)))
    assert main(["quantize", str(bundle.path), "--data", str(colors), "--max-drop", "100"]) == 0


def test_channels_last_in_uint8(tmp_path, colors):
    nodes, weights = reading("x")
    cast = node("Cast", ["image"], "f", to=TensorProto.FLOAT)
    scaled = node("Div", ["f", "white"], "d")
    turned = node("Transpose", ["d"], "x", perm=[0, 3, 1, 2])
    values = {**weights, "white": np.float32(255)}
    shape = ("N", SIDE, SIDE, 3)
    model = model_of([cast, scaled, turned, *nodes], values, "out", shape=shape, dtype=TensorProto.UINT8)
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    check(bundle, files, one_by_one(model, np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))))
    made = onnx.load(bundle.path / "model.fp32.onnx")
    assert [item.op_type for item in made.graph.node if "pixels" in item.input] == ["Cast"]


@pytest.mark.parametrize(("batch", "options"), [("N", {}), (1, {}), ("N", {"height": 16}), ("N", {"width": 16})])
def test_a_flat_input(batch, options, tmp_path, colors):
    nodes, weights = reading("x")
    shaped = node("Reshape", ["image", "shape"], "x")
    values = {**weights, "shape": np.int64([-1, 3, SIDE, SIDE])}
    model = model_of([shaped, *nodes], values, "out", shape=(batch, 3 * SIDE * SIDE))
    bundle, _ = brought(model, tmp_path, colors, **options)
    files, pixels = read_pixels(colors)
    check(bundle, files, one_by_one(model, unit(pixels).reshape(len(pixels), -1)))


def test_a_flat_input_that_is_no_square(tmp_path, colors):
    rng = np.random.default_rng(0)
    model = model_of(
        [node("Gemm", ["image", "w"], "out")],
        {"w": rng.normal(0, 0.1, (8 * 24, 4)).astype(np.float32)},
        "out",
        shape=("N", 8 * 24),
    )
    # 192 values are an 8x8 image in color, unless the user knows better.
    assert brought(model, tmp_path, colors)[0].manifest.preprocessing.shape == (3, 8, 8)
    assert brought(model, tmp_path, colors, height=8, width=24)[0].manifest.preprocessing.shape == (1, 8, 24)
    with pytest.raises(UsageError, match=r"192 values .* with height 7 and width 24; give the --height and --width"):
        brought(model, tmp_path, colors, height=7, width=24)
    odd = model_of([node("Gemm", ["image", "w"], "out")], {"w": np.ones((190, 4), np.float32)}, "out", shape=("N", 190))
    with pytest.raises(UsageError, match=r"has 190 values .* which is not one image of 1 or 3 channels; give"):
        brought(odd, tmp_path, colors)


def test_gray_without_channels(tmp_path, colors):
    nodes, weights = reading("x", channels=1)
    model = model_of(
        [node("Unsqueeze", ["image", "axis"], "x"), *nodes],
        {**weights, "axis": np.int64([1])},
        "out",
        shape=("N", SIDE, SIDE),
    )
    bundle, _ = brought(model, tmp_path, colors)
    files, _ = read_pixels(colors)
    with load(bundle.path, require="cpu", threads=1) as net:
        gray = np.stack([net.preprocessing(file) for file in files])
    check(bundle, files, one_by_one(model, unit(gray[:, 0])))


RANGES = {
    "symmetric": ({}, lambda x: x * 2 - 1),
    "0-255": ({}, lambda x: x * 255),
    "symmetric with mean and std": (
        {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)},
        lambda x: (x * 2 - 1 - np.reshape([0.1, 0.2, 0.3], (1, 3, 1, 1))) / np.reshape([0.5, 0.6, 0.7], (1, 3, 1, 1)),
    ),
}


@pytest.mark.parametrize("given", RANGES)
def test_ranges(given, tmp_path, colors):
    options, function = RANGES[given]
    nodes, weights = reading("image")
    weights["w1"] *= 0.05 if given == "0-255" else 1
    model = model_of(nodes, weights, "out")
    bundle, _ = brought(model, tmp_path, colors, input_range=given.split(" ")[0], **options)
    files, pixels = read_pixels(colors)
    check(bundle, files, one_by_one(model, function(pixels / 255).astype(np.float32)))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "uint8"])
def test_blue_first(layout, tmp_path, colors):
    """With Caffe's means, which are in the model's own order."""
    nodes, weights = reading("x" if layout != "NCHW" else "image")
    weights["w1"] *= 0.05
    before = {"NCHW": [], "NHWC": [TO_NCHW], "uint8": [node("Cast", ["image"], "x", to=TensorProto.FLOAT)]}[layout]
    shape = ("N", SIDE, SIDE, 3) if layout == "NHWC" else ("N", 3, SIDE, SIDE)
    kind = TensorProto.UINT8 if layout == "uint8" else TensorProto.FLOAT
    model = model_of([*before, *nodes], weights, "out", shape=shape, dtype=kind)
    means = (103.939, 116.779, 123.68)
    options = {} if layout == "uint8" else {"mean": means, "input_range": "0-255"}
    bundle, said = brought(model, tmp_path, colors, channel_order="bgr", **options)
    assert "the channels are brought into the order BGR in the graph" in said["changes"]
    files, pixels = read_pixels(colors)
    blue_first = pixels[:, ::-1]
    if layout != "uint8":
        blue_first = (blue_first - np.reshape(means, (1, 3, 1, 1))).astype(np.float32)
        assert bundle.manifest.preprocessing.mean == pytest.approx([mean / 255 for mean in means[::-1]])
    inputs = blue_first.transpose(0, 2, 3, 1) if layout == "NHWC" else blue_first
    check(bundle, files, one_by_one(model, np.ascontiguousarray(inputs)), tolerance=1e-3)


def test_blue_first_needs_colors(tmp_path, colors):
    nodes, weights = reading("image", channels=1)
    model = model_of(nodes, weights, "out", shape=("N", 1, SIDE, SIDE))
    with pytest.raises(UsageError, match=r"--channel-order is bgr, but the model's input image has 1 channel"):
        brought(model, tmp_path, colors, channel_order="bgr")


TYPES = {"float16": (TensorProto.FLOAT16, np.float16), "float64": (TensorProto.DOUBLE, np.float64)}
PLACES = ["everywhere", "input", "output", "inside"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TYPES)
def test_number_types(kind, place, tmp_path, colors):
    number, dtype = TYPES[kind]
    nodes, weights = reading("image")
    if place in ("everywhere", "inside"):
        weights = {name: value.astype(dtype) for name, value in weights.items()}
    float32 = TensorProto.FLOAT
    if place in ("input", "inside"):
        nodes[0].input[0] = "x"
        nodes.insert(0, node("Cast", ["image"], "x", to=float32 if place == "input" else number))
    if place in ("output", "inside"):
        nodes[-1] = node("Flatten", ["z"], "o")
        nodes.append(node("Cast", ["o"], "out", to=number if place == "output" else float32))
    given = number if place in ("everywhere", "input") else float32
    made = number if place in ("everywhere", "output") else float32
    model = model_of(nodes, weights, "out", dtype=given, made=made)
    bundle, said = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    # ONNX's own evaluator: ONNX Runtime has no convolution in double on a CPU.
    inputs = (pixels / 255).astype(dtype if given == number else np.float32)
    expected = ReferenceEvaluator(model).run(None, {"image": inputs})[0].astype(np.float64)
    check(bundle, files, expected, tolerance=0.02 * np.abs(expected).max() if kind == "float16" else 1e-4)
    assert "all number types became float32" in said["changes"]
    stored = onnx.load(bundle.path / "model.fp32.onnx")
    assert {tensor.data_type for tensor in stored.graph.initializer} <= {float32, TensorProto.INT64}
    assert ops(stored).count("Cast") == 1, "the one of the pixels"
    assert main(["quantize", str(bundle.path), "--data", str(colors), "--max-drop", "100"]) == 0


def test_constants_of_fp16_in_all_forms(tmp_path, colors):
    nodes, weights = reading("image")
    nodes[-1] = node("Flatten", ["z"], "o")
    half = numpy_helper.from_array(np.full((1,), 0.25, np.float16))
    scalar = numpy_helper.from_array(np.float16(2))
    nodes += [
        node("Shape", ["o"], "s"),
        node("ConstantOfShape", ["s"], "k", value=half),
        node("Constant", [], "two", value=scalar),
        node("Add", ["o", "k"], "p"),
        node("Mul", ["p", "two"], "out"),
    ]
    weights = {name: value.astype(np.float16) for name, value in weights.items()}
    model = model_of(nodes, weights, "out", dtype=TensorProto.FLOAT16, made=TensorProto.FLOAT16)
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels / 255).astype(np.float16))
    check(bundle, files, expected, tolerance=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (("N", 8, SIDE, SIDE), TensorProto.FLOAT),
        (("N", 3, SIDE, SIDE), TensorProto.INT32),
        ((3, SIDE, SIDE, 2, 2), TensorProto.FLOAT),
        (("N", "values"), TensorProto.FLOAT),
    ],
)
def test_inputs_that_are_refused(shape, kind, tmp_path, colors):
    model = model_of([node("Identity", ["image"], "out")], {}, "out", shape=shape, dtype=kind, made=kind)
    floats = model_of([node("Cast", ["image"], "out", to=1)], {}, "out", shape=shape, dtype=kind)
    with pytest.raises(ModelError, match=r"input image is \w+ \[.*\]; accepted: float32, float16, float64 or uint8 of"):
        brought(floats if kind == TensorProto.INT32 else model, tmp_path, colors, labels=LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "a"], "--labels is not for --task restoration"),
        (["--latent-distribution", "uniform"], "--latent-distribution is not for --task restoration"),
        (["--output-kind", "sigmoid"], "--output-kind is not for --task restoration"),
    ],
)
def test_options_of_classifiers_are_refused_for_restorers(options, message, tmp_path, capsys):
    arguments = ["import", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "a.krl"), "--data", str(tmp_path)]
    assert main([*arguments, "--task", "restoration", *options]) == 2
    assert message in capsys.readouterr().err

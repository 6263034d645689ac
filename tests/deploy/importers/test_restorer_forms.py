"""Forms of third-party restorers: layouts, number types, ranges, orders and sizes; judged by ONNX Runtime alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from _helpers.graphs import node, run
from _helpers.image_nets import smooth
from krl_deploy.config import ImportConfig
from krl_deploy.importers import restorer as importer
from krl_deploy.importers.import_onnx import import_onnx
from krl_runtime import Bundle, CheckFailedError, KrlError, ModelError, Restorer, UsageError, load

SIDE = 16
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        Image.fromarray(smooth(60, 70, 3, seed=number)).save(folder / f"{number}.png")
    return folder


def network(
    *,
    given: str = "NCHW",
    made: str = "NCHW",
    channels: int = 3,
    sides: tuple[Any, Any] = ("h", "w"),
    dtype: str = "float32",
    taken: int | None = None,
    levels: bool = False,
    end: str = "",
    batch: Any = "n",
    pad: int = 1,
    multiple: int = 1,
    mode: str = "reflect",
    declared: bool = True,
) -> onnx.ModelProto:
    """Return a network ×2: a reflected 3×3 convolution added to an enlargement, in the layouts that are asked for."""
    rng, kind = np.random.default_rng(5), np.dtype(dtype)
    side = 2 * pad + 1
    values: dict[str, np.ndarray] = {
        "w": rng.normal(0, 0.05, (4 * channels, channels, side, side)).astype(kind),
        "twice": np.float32([1, 1, 2, 2]),
        "pads": np.int64([0, 0, pad, pad] * 2),
        "one": np.int64([1]),
        "half": np.array(0.5, kind),
        "two": np.array(2, kind),
        "minus": np.array(1, kind),
        "255": np.array(255, kind),
        "0": np.array(0, kind),
        "down": np.float32([1, 1, multiple, multiple]),
    }
    nodes, x = [], "x"
    if taken == TensorProto.UINT8:
        nodes += [node("Cast", [x], "cast", to=TYPES[dtype]), node("Div", ["cast", "255"], "divided")]
        x = "divided"
    if given == "NHWC":
        nodes, x = [*nodes, node("Transpose", [x], "nchw", perm=[0, 3, 1, 2])], "nchw"
    if given == "NHW":
        nodes, x = [*nodes, node("Unsqueeze", [x, "one"], "nchw")], "nchw"
    if multiple > 1:
        nodes += [node("AveragePool", [x], "small", kernel_shape=[multiple] * 2, strides=[multiple] * 2)]
        nodes += [node("Resize", ["small", "", "down"], "again", mode="nearest"), node("Add", [x, "again"], "both")]
        nodes, x = [*nodes, node("Mul", ["both", "half"], "mixed")], "mixed"
    nodes += [
        node("Pad", [x, "pads"], "p", mode=mode),
        node("Conv", ["p", "w"], "c"),
        node("DepthToSpace", ["c"], "d", blocksize=2),
        node("Resize", [x, "", "twice"], "large", mode="nearest"),
        node("Add", ["large", "d"], "y"),
    ]
    y = "y"
    if end == "sigmoid":
        nodes, y = [*nodes, node("Sigmoid", [y], "s")], "s"
    if end == "tanh":
        nodes, y = [*nodes, node("Tanh", [y], "t")], "t"
    if levels:
        nodes += [node("Clip", [y, "0", "minus"], "unit"), node("Mul", ["unit", "255"], "levels")]
        nodes, y = [*nodes, node("Cast", ["levels"], "u", to=TensorProto.UINT8)], "u"
    if made == "NHWC":
        nodes, y = [*nodes, node("Transpose", [y], "last", perm=[0, 2, 3, 1])], "last"
    if made == "NHW":
        nodes, y = [*nodes, node("Squeeze", [y, "one"], "last")], "last"
    shapes = {"NCHW": [batch, channels, *sides], "NHWC": [batch, *sides, channels], "NHW": [batch, *sides]}
    large = [2 * each if isinstance(each, int) and each > 0 else f"{each}_2" for each in sides]
    outs = {"NCHW": [batch, channels, *large], "NHWC": [batch, *large, channels], "NHW": [batch, *large]}
    made_type = TensorProto.UINT8 if levels else TYPES[dtype]
    used = {name for item in nodes for name in item.input}
    proto = helper.make_graph(
        nodes,
        "third_party",
        [helper.make_tensor_value_info("x", taken or TYPES[dtype], shapes[given])],
        [helper.make_tensor_value_info(y, made_type, outs[made] if declared else None)],
        [numpy_helper.from_array(value, name) for name, value in values.items() if name in used],
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def brought(model: onnx.ModelProto, folder: Path, data: Path, **options: Any) -> Bundle:
    """Import a restorer."""
    file, out = folder / "net.onnx", folder / "net.krl"
    file.write_bytes(model.SerializeToString())
    import_onnx(ImportConfig(file, out, data, task="restoration", **options))
    return Bundle.open(out)


def wanted(
    model: onnx.ModelProto, image: np.ndarray, *, given: str = "NCHW", made: str = "NCHW", order: int = 1, dtype: Any
) -> np.ndarray:
    """Return what the file makes of an image ``[H, W, C]`` of its own range, as ``[H, W, C]``."""
    values = image[..., ::order]
    values = {"NCHW": values.transpose(2, 0, 1), "NHWC": values, "NHW": values[..., 0]}[given]
    out = run(model, x=np.ascontiguousarray(values[None]).astype(dtype))[0][0].astype(np.float64)
    return {"NCHW": lambda: out.transpose(1, 2, 0), "NHWC": lambda: out, "NHW": lambda: out[..., None]}[made]()[
        ..., ::order
    ]


def restored(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    """Return the bundle's image ``[H, W, C]``."""
    with load(bundle.path, Restorer, threads=1) as model:
        return model.restore_planes(np.ascontiguousarray(image.transpose(2, 0, 1))).transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("form", "channels"),
    [
        ({"given": "NHWC"}, 3),
        ({"given": "NHWC", "made": "NHWC"}, 3),
        ({"made": "NHWC"}, 3),
        ({"given": "NHWC", "made": "NHWC"}, 1),
        ({"given": "NHW"}, 1),
        ({"given": "NHW", "made": "NHW"}, 1),
        ({"made": "NHW"}, 1),
    ],
)
@pytest.mark.parametrize("sides", [("h", "w"), (SIDE, SIDE + 4)])
def test_layouts(tmp_path: Path, data: Path, form: dict[str, str], channels: int, sides: tuple[Any, Any]):
    model = network(channels=channels, sides=sides, **form)
    bundle = brought(model, tmp_path, data)
    assert bundle.manifest.inputs[0].shape == ("batch", channels, "height", "width")
    assert bundle.manifest.settings["overlap"] == 2  # of the convolution, all of it to one side
    image = smooth(SIDE, SIDE + 4, 3)[..., :channels]
    expected = wanted(model, image / 255, dtype=np.float32, **form) * 255
    np.testing.assert_allclose(restored(bundle, image), expected, atol=0.05)


@pytest.mark.parametrize(("dtype", "accepted"), [("float16", 2.0), ("float64", 0.05), ("float32", 0.05)])
@pytest.mark.parametrize("mode", ["reflect", "constant", "edge"])
def test_number_types(tmp_path: Path, data: Path, dtype: str, accepted: float, mode: str):
    bundle = brought(network(dtype=dtype, mode=mode), tmp_path, data)
    types = {tensor.data_type for tensor in onnx.load(bundle.file("model.fp32.onnx")).graph.initializer}
    assert types <= {TensorProto.FLOAT, TensorProto.INT64}
    image = smooth(SIDE, SIDE, 3)
    single = network(mode=mode)
    if dtype == "float16":
        expected = wanted(network(dtype=dtype, mode=mode), image / 255, dtype=dtype) * 255
    else:  # ONNX Runtime has no convolution of float64
        expected = wanted(single, image / 255, dtype=np.float32) * 255
    np.testing.assert_allclose(restored(bundle, image), expected, atol=accepted)


@pytest.mark.parametrize("given", ["NCHW", "NHWC"])
@pytest.mark.parametrize("levels", [True, False])
def test_uint8(tmp_path: Path, data: Path, given: str, levels: bool):
    model = network(taken=TensorProto.UINT8, levels=levels, given=given)
    bundle = brought(model, tmp_path, data, **({} if levels else {"output_range": "0-1"}))
    image = smooth(20, 24, 3)
    expected = wanted(model, image, given=given, dtype=np.uint8)
    if levels:
        assert np.abs(np.clip(restored(bundle, image), 0, 255) - expected).max() <= 1.001
    else:
        np.testing.assert_allclose(restored(bundle, image), expected * 255, atol=0.05)


@pytest.mark.parametrize(
    ("end", "options", "low", "high"),
    [
        ("", {"input_range": "symmetric"}, -1, 1),
        ("tanh", {"input_range": "symmetric"}, -1, 1),
        ("tanh", {}, -1, 1),
        ("sigmoid", {"input_range": "symmetric"}, 0, 1),
        ("", {"input_range": "symmetric", "output_range": "0-1"}, 0, 1),
        ("", {"input_range": "0-255"}, 0, 255),
        ("", {"mean": (0.4, 0.5, 0.6), "std": (0.5, 0.5, 0.25)}, 0, 1),
    ],
)
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_ranges_and_orders(
    tmp_path: Path, data: Path, end: str, options: dict[str, Any], low: int, high: int, order: str
):
    model = network(end=end)
    bundle = brought(model, tmp_path, data, channel_order=order, **options)
    image = smooth(18, 22, 3)
    step = -1 if order == "bgr" else 1
    values = {"symmetric": image / 127.5 - 1, "0-255": image * 1.0}.get(options.get("input_range", ""), image / 255)
    if "mean" in options:
        values = (values - np.array(options["mean"])[::step]) / np.array(options["std"])[::step]
    expected = (wanted(model, values, order=step, dtype=np.float32) - low) * 255 / (high - low)
    np.testing.assert_allclose(restored(bundle, image), expected, atol=0.1)


@pytest.mark.parametrize("sides", [(0, 0), (-1, -1), ("rows", "columns"), (0, "w")])
@pytest.mark.parametrize("batch", [0, -1, 1])
def test_sizes_that_are_written_otherwise(tmp_path: Path, data: Path, sides: tuple[Any, Any], batch: int):
    bundle = brought(network(sides=sides, batch=batch), tmp_path, data)
    assert bundle.manifest.inputs[0].shape[1:] == (3, "height", "width")
    assert bundle.manifest.settings["scale"] == 2


@pytest.mark.parametrize("form", [{}, {"given": "NHWC", "made": "NHWC"}, {"sides": (SIDE, SIDE)}, {"levels": True}])
def test_outputs_without_a_shape(tmp_path: Path, data: Path, form: dict[str, Any]):
    assert brought(network(declared=False, **form), tmp_path, data).manifest.settings["scale"] == 2


@pytest.mark.parametrize("name", ["y", "large", "d"])
def test_one_of_several_outputs(tmp_path: Path, data: Path, name: str):
    model = network()
    for each in ("large", "d"):
        model.graph.output.append(helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 3, "a", "b"]))
    with pytest.raises(ModelError, match=r"the model has 3 outputs: .*give the one with the images as --output"):
        brought(model, tmp_path, data)
    bundle = brought(model, tmp_path, data, output=name)
    image = smooth(SIDE, SIDE, 3)
    values = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    expected = run(model, x=values)[["y", "large", "d"].index(name)][0].transpose(1, 2, 0) * 255
    np.testing.assert_allclose(restored(bundle, image), expected, atol=0.05)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (network(channels=4), {}, ModelError, r"input x is FLOAT \['n', 4, .*seems to take RGBA \(4 channels\)"),
        (
            network(channels=2),
            {},
            ModelError,
            r"input x is FLOAT \['n', 2, .*seems to take gray with alpha \(2 channels\)",
        ),
        (network(channels=4, given="NHWC"), {}, ModelError, r"'w', 4\]; accepted: .*with 1 or 3 channels"),
        (network(channels=1), {"channel_order": "bgr"}, UsageError, "--channel-order is bgr, but .* 1 channel"),
        (network(), {"scale": 4}, UsageError, "--scale is 4, but the model makes images 2 times as large"),
        (
            network(),
            {"output": "c"},
            ModelError,
            r"output c has shape .*accepted: images with the channels of the input",
        ),
        (network(), {"output": "nothing"}, ModelError, "makes no tensor 'nothing' for --output"),
        (network(multiple=8), {"height": 50}, UsageError, "--height is 50; the model takes 56"),
        (network(taken=TensorProto.UINT8), {"mean": (0.5,) * 3}, UsageError, "takes uint8 and normalizes it itself"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, data: Path, model: onnx.ModelProto, options: dict[str, Any], error: type[KrlError], message: str
):
    with pytest.raises(error, match=message):
        brought(model, tmp_path, data, **options)
    assert not (tmp_path / "net.krl").exists()


@pytest.mark.parametrize("pad", [1, 3, 20])
def test_the_smallest_side(tmp_path: Path, data: Path, pad: int):
    model = network(pad=pad)
    bundle = brought(model, tmp_path, data)
    assert bundle.manifest.settings["smallest_side"] == pad + 1
    image = smooth(1, pad + 3, 3)
    filled = np.pad(image, ((0, pad), (0, 0), (0, 0)), mode="edge")
    expected = wanted(model, filled / 255, dtype=np.float32)[:2] * 255
    np.testing.assert_allclose(restored(bundle, image), expected, atol=0.05)


@pytest.mark.parametrize("multiple", [2, 4, 7, 8, 32])
@pytest.mark.parametrize("form", [{}, {"given": "NHWC", "made": "NHWC"}])
def test_multiples(tmp_path: Path, data: Path, multiple: int, form: dict[str, str]):
    model = network(multiple=multiple, **form)
    bundle = brought(model, tmp_path, data)
    assert (bundle.manifest.settings["multiple"], bundle.manifest.settings["smallest_side"]) == (multiple, multiple)
    image = smooth(multiple + 1, 2 * multiple - 1, 3)
    filled = np.pad(image, ((0, multiple - 1), (0, 1), (0, 0)), mode="edge")
    expected = wanted(model, filled / 255, dtype=np.float32, **form)[: 2 * len(image), : 2 * image.shape[1]] * 255
    np.testing.assert_allclose(restored(bundle, image), expected, atol=0.05)


@pytest.mark.parametrize("multiple", [2, 8])
def test_multiples_of_a_fixed_file_that_is_opened(tmp_path: Path, data: Path, multiple: int):
    bundle = brought(network(multiple=multiple, sides=(64, 64)), tmp_path, data)
    assert bundle.manifest.inputs[0].shape == ("batch", 3, "height", "width")
    assert bundle.manifest.settings["multiple"] == multiple


@pytest.mark.parametrize("wrong", ["pixels", "sides", "padding"])
def test_a_bundle_that_differs_is_not_written(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, wrong: str):
    """Faults that the check of the rewritten graph cannot see: in the runtime, or at other sizes than the file's."""
    if wrong == "pixels":
        monkeypatch.setattr(Restorer, "_run", lambda self, pixels: np.repeat(np.repeat(pixels, 2, 1), 2, 2) * 0.5)
    elif wrong == "sides":
        monkeypatch.setattr(importer, "_overlap", lambda model, scale: 1)  # the network sees 20 pixels
    else:
        monkeypatch.setattr(
            "krl_runtime.pipelines.restorer.padded", lambda pixels, *size: np.resize(pixels, (3, *size))
        )
    model = network(pad=20, mode="constant") if wrong == "sides" else network(multiple=8)
    with pytest.raises(CheckFailedError, match=r"the bundle is not written: an image of .* differs from the file's by"):
        brought(model, tmp_path, data)
    assert not (tmp_path / "net.krl").exists()

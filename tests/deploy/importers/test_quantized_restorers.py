"""Q/DQ restorers of other tools: taken apart, judged by PSNR beside the file, and quantized with their ranges."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantFormat
from PIL import Image

from _helpers.graphs import graph, node, ops, run
from _helpers.images import SHARED_DATA, blurred_noise
from _helpers.quantized import static
from krl_deploy.calibration.record import Calibration
from krl_deploy.config import ImportConfig, QuantizeConfig
from krl_deploy.importers import quantized as importing
from krl_deploy.importers.import_onnx import import_onnx
from krl_deploy.precision.quantize import quantize
from krl_runtime import Bundle
from krl_runtime.errors import CheckFailedError

SIDE = 16
FLOAT_WEIGHTS = {"AddQDQPairToWeight": True}


def float_restorer() -> onnx.ModelProto:
    """Colors of a fixed size, denoised by a small blur: convolutions of 16 channels that pass the image through."""
    rng = np.random.default_rng(0)
    mix = rng.normal(0, 0.3, (16, 16, 3, 3)).astype(np.float32) / 12
    w0, w2 = (np.zeros(shape, np.float32) for shape in ((16, 3, 3, 3), (3, 16, 3, 3)))
    for channel in range(3):
        w0[channel, channel] = w2[channel, channel, 1, 1] = 1
        w0[channel, channel] /= 9
    w0[3:] = rng.normal(0, 0.2, (13, 3, 3, 3))
    mix[range(16), range(16), 1, 1] += 1
    mix[:3, 3:] = 0
    nodes = [
        node("Conv", ["image", "w0"], "a", pads=[1] * 4),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "w1"], "c", pads=[1] * 4),
        node("Relu", ["c"], "d"),
        node("Conv", ["d", "w2"], "made", pads=[1] * 4),
    ]
    sides = ["n", 3, SIDE, SIDE]
    return graph(nodes, {"image": sides}, {"made": sides}, {"w0": w0, "w1": mix, "w2": w2}, opset=17, ir=8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs") / "images"
    folder.mkdir()
    for number in range(12):
        blurred_noise(40, number, 2).save(folder / f"{number:02d}.png")
    return folder


def inputs_of(folder, peak=1.0):
    planes = [np.asarray(Image.open(file)).transpose(2, 0, 1)[:, :SIDE, :SIDE] for file in sorted(folder.glob("*.png"))]
    return (np.stack(planes) * (peak / 255)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(photographs):
    """A file that keeps its weights in floating point, so that its float model is the one that it was made from."""
    return static(float_restorer(), inputs_of(photographs), extra_options=FLOAT_WEIGHTS)


def imported(model, data, folder, **options):
    onnx.save(model, folder / "file.onnx")
    given = {"task": "restoration", "scale": 1, "overwrite": True, **options}
    return import_onnx(ImportConfig(folder / "file.onnx", folder / "a.krl", data, **given))


def psnr(made, wanted):
    """Mean over images of the PSNR of colors, by NumPy."""
    errors = np.square(made.astype(np.float64).clip(0, 255) - wanted).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / errors)))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("range_", "peak"), [("0-1", 1.0), ("0-255", 255.0)])
def test_a_restorer_is_taken_apart_and_keeps_its_ranges(photographs, tmp_path, caplog, symmetric, range_, peak):
    written = static(float_restorer(), inputs_of(photographs, peak), symmetric=symmetric)
    with caplog.at_level(logging.WARNING, "krl"):
        said = imported(written, photographs, tmp_path, input_range=range_)
    assert "krl-deploy quantize" in caplog.text
    assert "ranges of the file are of tensors" not in caplog.text
    found = said["quantized_file"]
    assert found["count"] == 12
    assert not found["poor_ranges"]
    bundle = Bundle.open(tmp_path / "a.krl")
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(onnx.load(bundle.file("model.fp32.onnx"))))
    came = Calibration.from_bytes(bundle.file("calibration.json").read_bytes())
    assert len(came.given) >= 3
    quantize(QuantizeConfig(bundle.path, photographs, accept_unmeasured=True))
    made = Bundle.open(bundle.path)
    kept = Calibration.from_bytes(made.file("calibration.json").read_bytes())
    assert kept.given == came.given
    assert kept.identity.method == "given, else mse"
    values = inputs_of(photographs, peak)
    exact = run(float_restorer(), image=values)[0] * (255 / peak)
    theirs = run(written, optimize=False, image=values)[0] * (255 / peak)
    pixels = (inputs_of(photographs, 255.0)).round().astype(np.uint8)
    for file in ("model.int8.fp32.onnx", "model.int8.cpu.onnx"):
        ours = run(onnx.load(made.file(file)), optimize=False, pixels=pixels)[0]
        assert psnr(ours, exact) > psnr(theirs, exact) - 1  # krl does not quantize the image itself


def test_the_psnr_of_both_goes_into_the_bundle(quantized, photographs, tmp_path):
    said = imported(quantized, photographs, tmp_path)
    found = Bundle.open(tmp_path / "a.krl").manifest.evidence["fp32"]["quantized_file"]
    assert found == said["quantized_file"]
    assert found["judged"]
    values = inputs_of(photographs)
    exact, theirs = (run(model, image=values)[0] * 255 for model in (float_restorer(), quantized))
    assert found["scores"]["quantized_file"]["psnr_to_fp32"] == pytest.approx(psnr(theirs, exact.clip(0, 255)), abs=0.3)
    assert found["scores"]["fp32"]["psnr"] == pytest.approx(psnr(exact, values * 255), abs=0.05)  # of colors


@pytest.mark.parametrize("degradation", ["bicubic", "none"])
def test_poor_ranges_and_wrong_models(photographs, tmp_path, caplog, monkeypatch, degradation):
    poor = static(float_restorer(), inputs_of(photographs) * np.float32(0.6))
    with caplog.at_level(logging.WARNING, "krl"):
        said = imported(poor, photographs, tmp_path, degradation=degradation)
    assert said["quantized_file"]["poor_ranges"]
    assert "krl-deploy quantize --recalibrate measures new ones" in caplog.text
    good = static(float_restorer(), inputs_of(photographs))
    shutil.rmtree(tmp_path / "a.krl")
    read = importing.read_quantized

    def negated(model):
        found = read(model)
        last = [node for node in found.model.graph.node if node.op_type == "Conv"][-1]
        for tensor in found.model.graph.initializer:
            if tensor.name in last.input:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return found

    monkeypatch.setattr(importing, "read_quantized", negated)
    reason = "is worse than the file: PSNR drops by" if degradation == "bicubic" else "nothing tells which of them"
    with pytest.raises(CheckFailedError, match=reason):
        imported(good, photographs, tmp_path, degradation=degradation)
    assert not (tmp_path / "a.krl").exists()
    accepted = {"max_drop": 90.0} if degradation == "bicubic" else {"accept_unmeasured": True}
    said = imported(good, photographs, tmp_path, degradation=degradation, **accepted)
    assert said["quantized_file"]["judged"] == (degradation == "bicubic")


def test_a_restorer_that_computes_on_integers_stays_as_it_is(photographs, tmp_path, caplog):
    written = static(float_restorer(), inputs_of(photographs), quant_format=QuantFormat.QOperator)
    assert "QLinearConv" in ops(written)
    with caplog.at_level(logging.WARNING, "krl"):
        said = imported(written, photographs, tmp_path)
    assert "the model computes on integers (QLinearConv), so it is imported unchanged" in caplog.text
    assert "quantized_file" not in said
    bundle = Bundle.open(tmp_path / "a.krl")
    assert ops(onnx.load(bundle.file("model.fp32.onnx"))).count("QLinearConv") == 3
    values = inputs_of(photographs)
    pixels = (values * 255).round().astype(np.uint8)
    ours = run(onnx.load(bundle.file("model.fp32.onnx")), pixels=pixels)[0]
    np.testing.assert_allclose(ours, run(written, image=values)[0] * 255, atol=0.01)


@pytest.mark.skipif(not (SHARED_DATA / "models").is_dir(), reason="shared data is absent")
def test_the_espcn_of_the_onnx_zoo_quantized(tmp_path):
    """Fixed to 224 pixels a side: the file is compared on parts of this size, and the bundle takes any."""
    model = onnx.load(SHARED_DATA / "models" / "super_resolution_espcn_x3.onnx")
    model = onnx.version_converter.convert_version(model, 17)
    planes = [
        np.asarray(Image.open(file).convert("L").resize((224, 224)), np.float32)[None] / 255
        for file in sorted((SHARED_DATA / "sr" / "t91").glob("*.png"))[:16]
    ]
    written = static(model, np.stack(planes), extra_options=FLOAT_WEIGHTS)
    said = imported(written, SHARED_DATA / "sr" / "set5", tmp_path, scale=None, golden=2)
    assert said["input"] == "uint8 [batch, 1, height, width]"
    assert said["psnr"] == pytest.approx(30.57, abs=0.02)  # as of the float file
    found = said["quantized_file"]
    assert found["count"] == 5
    assert found["poor_ranges"]  # its weights in eight bits cost three dB
    quantize(QuantizeConfig(tmp_path / "a.krl", SHARED_DATA / "sr" / "t91", limit=32, val_limit=8, max_drop=9.0))
    made = Bundle.open(tmp_path / "a.krl")
    assert Calibration.from_bytes(made.file("calibration.json").read_bytes()).keeps_given
    # krl leaves the convolution that writes the image in floating point on a CPU.
    theirs = found["scores"]["quantized_file"]["drop"]
    assert made.manifest.evidence["int8"]["scores"]["int8.cpu"]["drop"] < theirs + 0.5

"""Q/DQ files that are imported: judged by the task's metric on enough images, and calibrated anew on request."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import onnx
import pytest

from _helpers.digits import LABELS, pixels_of
from _helpers.graphs import run
from _helpers.quantized import float_input, ranges_of, static
from krl_deploy.calibration.record import Calibration
from krl_deploy.cli import main
from krl_deploy.config import ImportConfig, QuantizeConfig
from krl_deploy.graph import quantized as reading
from krl_deploy.importers import quantized as importing
from krl_deploy.importers.import_onnx import import_onnx
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.quantize import quantize
from krl_deploy.precision.weights import Rounding
from krl_runtime import Bundle
from krl_runtime.errors import CheckFailedError

POOR = 0.1  # contrast of the calibration images of a poor file: its ranges clip most of what real images have
FAIR = 0.6  # the same, and most predictions stay


def normalized(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255 - 0.3) / 0.35).astype(np.float32)


@pytest.fixture(scope="module")
def files(exported, digits):
    """Q/DQ files of one network: with good ranges and with poor ones, and one whose ReLUs are in its ranges."""
    model = float_input(exported)
    inputs = normalized(pixels_of(digits / "train")[0][::8])
    return {
        "float": model,
        "good": static(model, inputs),
        "poor": static(model, inputs * np.float32(POOR)),
        "fair": static(model, inputs * np.float32(FAIR)),
        "clips": to_cpu(model, ranges_of(model, inputs)).model,
    }


@pytest.fixture(scope="module")
def nameless(digits, tmp_path_factory):
    """The evaluation images without classes."""
    folder = tmp_path_factory.mktemp("nameless") / "images"
    folder.mkdir()
    for number, file in enumerate(sorted((digits / "val").glob("*/*.png"))):
        shutil.copy(file, folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def imported(tmp_path):
    def bring(model, data, **options):
        onnx.save(model, tmp_path / "file.onnx")
        given = {"mean": (0.3,), "std": (0.35,), "overwrite": True, **options}
        return import_onnx(ImportConfig(tmp_path / "file.onnx", tmp_path / "a.krl", data, LABELS, **given))

    return bring


def top1(model, digits):
    """Accuracy of a file by ONNX Runtime alone."""
    pixels, truth = pixels_of(digits / "val")
    made = run(model, **{model.graph.input[0].name: normalized(pixels)})[0]
    return float((made.argmax(1) == truth).mean())


def misread_clips(monkeypatch):
    """Leave out every ReLU that a file has in its ranges."""
    monkeypatch.setattr(reading._Reader, "_never_negative", lambda *_: True)


def misread_last(monkeypatch):
    """Change the sign of the outputs."""
    read = importing.read_quantized

    def negated(model):
        found = read(model)
        last = next(node for node in found.model.graph.node if found.model.graph.output[0].name in node.output)
        for tensor in found.model.graph.initializer:
            if tensor.name in last.input:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return found

    monkeypatch.setattr(importing, "read_quantized", negated)


def test_the_scores_of_the_file_are_its_own(files, digits, imported, caplog):
    with caplog.at_level(logging.WARNING, "krl"):
        said = imported(files["poor"], digits)
    found = said["quantized_file"]
    assert found["count"] == said["count"] == 300
    assert found["scores"]["quantized_file"]["top1"] == pytest.approx(top1(files["poor"], digits), abs=0.011)
    assert found["scores"]["fp32"]["top1"] == said["top1"] == pytest.approx(top1(files["float"], digits), abs=0.011)
    assert found["scores"]["quantized_file"]["drop"] > 10
    assert found["poor_ranges"]
    assert "krl-deploy quantize --recalibrate measures new ones" in caplog.text
    assert "the file's own INT8 has a top-1 of" in caplog.text


@pytest.mark.parametrize("count", [8, 16, 64])
def test_poor_ranges_are_no_evidence_against_the_float_model(files, digits, imported, caplog, count):
    with caplog.at_level(logging.WARNING, "krl"):
        found = imported(files["poor"], digits, golden=count, val_limit=count)["quantized_file"]
    assert found["count"] == count
    assert not found["judged"]
    assert f"{count} images are too few to judge by, required: 100" in caplog.text


@pytest.mark.parametrize("count", [8, 16, 64, 300])
@pytest.mark.parametrize(("file", "misread"), [("good", misread_last), ("clips", misread_clips)])
def test_a_float_model_that_is_worse_is_refused(files, digits, imported, monkeypatch, tmp_path, count, file, misread):
    assert imported(files[file], digits, val_limit=count)["quantized_file"]["count"] == count
    shutil.rmtree(tmp_path / "a.krl")
    misread(monkeypatch)
    with pytest.raises(CheckFailedError, match="the float model of the quantized file is worse than the file") as error:
        imported(files[file], digits, val_limit=count)
    assert f"on {count} images" in str(error.value)
    assert "give --max-drop to accept it" in str(error.value)
    assert not (tmp_path / "a.krl").exists()
    with pytest.raises(CheckFailedError):
        imported(files[file], digits, val_limit=count, accept_unmeasured=True)
    assert imported(files[file], digits, val_limit=count, max_drop=100.0)["quantized_file"]["judged"] == (count >= 100)


def test_without_labels_only_enough_images_refuse(files, nameless, imported, monkeypatch):
    assert imported(files["good"], nameless)["quantized_file"]["judged"]
    misread_last(monkeypatch)
    for count in (8, 16, 64):
        found = imported(files["good"], nameless, val_limit=count)["quantized_file"]
        assert not found["judged"]
        assert len(found["doubts"]) == 2
    with pytest.raises(CheckFailedError, match=r"nothing tells which of them is right.*--accept-unmeasured"):
        imported(files["good"], nameless)
    found = imported(files["good"], nameless, accept_unmeasured=True)["quantized_file"]
    assert len(found["doubts"]) == 1
    assert found["scores"]["quantized_file"]["top1"] is None


def test_the_bundle_keeps_the_evidence(files, digits, imported, tmp_path):
    said = imported(files["good"], digits)
    assert Bundle.open(tmp_path / "a.krl").manifest.evidence["fp32"]["quantized_file"] == said["quantized_file"]
    assert not said["quantized_file"]["poor_ranges"]


@pytest.mark.parametrize("option", ["--max-drop=5", "--accept-unmeasured"])
def test_options_of_quantized_files_are_refused_for_others(files, digits, tmp_path, capsys, option):
    onnx.save(files["float"], tmp_path / "float.onnx")
    arguments = ["import", str(tmp_path / "float.onnx"), "-o", str(tmp_path / "a.krl"), "--labels", *LABELS]
    assert main([*arguments, "--data", str(digits), option]) == 2
    assert f"{option.partition('=')[0]} is for files with Q/DQ pairs" in capsys.readouterr().err


def test_the_command_shows_both(files, digits, tmp_path, capsys):
    onnx.save(files["poor"], tmp_path / "poor.onnx")
    arguments = ["import", str(tmp_path / "poor.onnx"), "-o", str(tmp_path / "a.krl"), "--labels", *LABELS]
    assert main([*arguments, "--data", str(digits), "--mean", "0.3", "--std", "0.35"]) == 0
    lines = capsys.readouterr().out.splitlines()
    own, file = (
        next(line for line in lines if line.split("  ")[0] == name) for name in ("top-1", "top-1 of the file itself")
    )
    assert own.endswith("on 300 images")
    assert file.endswith("on 300 images")
    assert own != file


def kept(path):
    return Calibration.from_bytes(Bundle.open(path).file("calibration.json").read_bytes())


def test_recalibrate_measures_anew_and_keeps_what_came(files, digits, imported, tmp_path):
    imported(files["fair"], digits)
    path = tmp_path / "a.krl"
    came = kept(path)
    with pytest.raises(CheckFailedError, match="--recalibrate measures new ranges"):
        quantize(QuantizeConfig(path, digits))
    assert kept(path) == came
    found, _ = quantize(QuantizeConfig(path, digits, method="minmax", equalize="none", recalibrate=True))
    assert found["recalibrated"]
    assert found["calibration"]["method"] == "minmax"
    assert found["drop_points"] <= 1
    new = kept(path)
    assert (new.given, new.weight_scales) == (came.given, came.weight_scales)
    # The network's input, by NumPy: all values of the training images.
    values = normalized(pixels_of(digits / "train")[0])
    name = next(name for name in came.given if name.startswith("pixels_normalized"))
    assert new.ranges.cpu[name] == pytest.approx((values.min(), values.max()), rel=1e-5)
    assert new.ranges.cpu[name][1] > 1.5 * came.given[name][1]

    again, _ = quantize(
        QuantizeConfig(path, digits, method="minmax", equalize="none", recalibrate=True, reuse_calibration=True)
    )
    assert again["calibration"] == found["calibration"]
    assert kept(path) == new
    with pytest.raises(CheckFailedError, match="the calibration in the bundle is stale: method is minmax there"):
        quantize(QuantizeConfig(path, digits, method="minmax", equalize="none", reuse_calibration=True))

    before, _ = quantize(QuantizeConfig(path, digits, max_drop=100.0, max_recall_drop=100.0))
    assert not before["recalibrated"]
    assert before["calibration"]["method"] == "given, else mse"
    back = kept(path)
    assert (back.given, back.recalibrated) == (came.given, False)
    assert back.ranges.cpu[name] == pytest.approx(came.given[name])
    assert before["drop_points"] > 1


def test_the_golden_inputs_advise_it_too(files, digits, imported, tmp_path):
    imported(files["poor"], digits)
    with pytest.raises(CheckFailedError, match=r"golden inputs of the bundle.*--recalibrate measures new ranges"):
        quantize(QuantizeConfig(tmp_path / "a.krl", digits, max_drop=100.0, max_recall_drop=100.0))


def test_recalibrate_says_where_no_ranges_came(bundle, digits, caplog):
    with caplog.at_level(logging.WARNING, "krl"):
        found, _ = quantize(QuantizeConfig(bundle.path, digits, recalibrate=True))
    assert "--recalibrate changes nothing: no ranges came with the model" in caplog.text
    assert not found["recalibrated"]


def test_old_calibrations_have_nothing_recalibrated():
    values = json.loads(_calibration().to_bytes())
    del values["recalibrated"]
    assert Calibration.from_bytes(json.dumps(values).encode()) == _calibration()


def _calibration():
    from krl_deploy.calibration.record import Identity, Int8Ranges

    return Calibration(Identity("a", {}, "b", 1, "given", "none"), Int8Ranges({}, {}), given={"x": (-1.0, 1.0)})


def half_around(model, ranges):
    """TensorRT's style with FP16 around INT8: FP16 scales, which need opset 19."""
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True)).model
    return to_fp16(exact, {}, around_int8=True).model


def channels_last(model):
    """The same model for images of [N, H, W, C]."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    name, sides = made.graph.input[0].name, ["batch", 16, 16, 1]
    made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("image", 1, sides))
    made.graph.node.insert(0, onnx.helper.make_node("Transpose", ["image"], [name], "turned", perm=[0, 3, 1, 2]))
    return made


WRITERS = {
    "uint8": lambda model, x: static(model, x),
    "int8, symmetric": lambda model, x: static(model, x, symmetric=True),
    "a scale for the tensor": lambda model, x: static(model, x, per_channel=False),
    "seven bits": lambda model, x: static(model, x, reduce_range=True),
    "com.microsoft": lambda model, x: static(model, x, extra_options={"UseQDQContribOps": True}),
    "float weights": lambda model, x: static(model, x, extra_options={"AddQDQPairToWeight": True}),
    "TensorRT": lambda model, x: to_tensorrt(model, ranges_of(model, x)).model,
    "FP16 scales": lambda model, x: half_around(model, ranges_of(model, x)),
    "channels last": lambda model, x: static(channels_last(model), x.transpose(0, 2, 3, 1)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_several_writers(files, digits, imported, tmp_path, writer):
    inputs = normalized(pixels_of(digits / "train")[0][::8])
    written = WRITERS[writer](files["float"], inputs)
    found = imported(written, digits)["quantized_file"]
    assert found["judged"]
    assert not found["poor_ranges"]
    assert found["scores"]["quantized_file"]["agreement"] > 0.97
    made, _ = quantize(QuantizeConfig(tmp_path / "a.krl", digits, val_limit=300))
    calibration = kept(tmp_path / "a.krl")
    assert calibration.keeps_given
    model = onnx.load(Bundle.open(tmp_path / "a.krl").file("model.fp32.onnx"))
    read = {node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    # TensorRT's style leaves thin convolutions in floating point; all others quantize the input of each.
    assert read & set(calibration.given) if writer in ("TensorRT", "FP16 scales") else read <= set(calibration.given)
    assert made["drop_points"] <= 1

"""INT8 from a bundle and images: what is measured, kept, chosen and refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image

from _helpers.graphs import graph, node, ops
from krl_deploy.calibration.checkpoint import Checkpoint
from krl_deploy.calibration.record import Calibration, Int8Ranges
from krl_deploy.cli import main
from krl_deploy.config import ExportConfig, QuantizeConfig
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.exporters.export import export
from krl_deploy.graph.files import opset_of
from krl_deploy.graph.session import count_convolutions, open_cpu, optimized_graph
from krl_deploy.precision import calibrate
from krl_deploy.precision import quantize as module
from krl_deploy.precision.quantize import quantize
from krl_deploy.precision.variants import Emitter, tensors_to_calibrate
from krl_runtime import Bundle
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import ModelError, UsageError


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fast(monkeypatch):
    """A clock by which INT8 is twice as fast as FP32, and one call is enough."""
    monkeypatch.setattr(module, "interleaved_latency", lambda sessions, pixels: {"fp32": 2.0, "int8.cpu": 1.0})


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(module, "interleaved_latency", lambda sessions, pixels: {"fp32": 1.0, "int8.cpu": 0.95})


def test_the_whole_way(bundle, digits, capsys):
    assert main(["quantize", str(bundle.path), "--data", str(digits), "--limit", "200", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["drop_points"] <= 1
    assert result["scores"]["fp32"]["top1"] > 0.9
    assert result["scores"]["int8"]["agreement"] > 0.98
    assert result["scores"]["int8.cpu"]["agreement"] > 0.98
    assert result["calibration"]["count"] == 200
    assert result["calibration"]["method"] == "mse"
    assert result["images"] == {"data": "digits", "count": 300}
    assert result["cpu_convolutions"] == {"int8_convolutions": 13, "float_convolutions": 0}
    assert result["file_bytes"]["int8"] < result["file_bytes"]["fp32"]

    made = Bundle.open(bundle.path)
    made.verify()
    assert made.manifest.evidence["int8"] == {key: result[key] for key in made.manifest.evidence["int8"]}
    assert made.manifest.evidence["fp32"] == bundle.manifest.evidence["fp32"]
    variant = made.manifest.variants["int8"]
    assert (variant.file, variant.cpu_file) == ("model.int8.onnx", "model.int8.cpu.onnx")
    assert 0.8 <= variant.agreement <= 1
    assert [replay.state for replay in selftest(made) if replay.kind == "cpu"] == ["passed", "passed"]
    expected = "int8" if result["speedup"] >= 1.1 else "fp32"
    assert made.manifest.default_variants["cpu"] == result["default_on_cpu"] == expected


def test_both_files_are_what_they_should_be(bundle, digits, fast):
    quantize(QuantizeConfig(bundle.path, digits, limit=64))
    tensorrt = onnx.load(bundle.path / "model.int8.onnx")
    assert "Relu" in ops(tensorrt)
    convolutions = [item for item in tensorrt.graph.node if item.op_type == "Conv"]
    dequantized = {item.output[0] for item in tensorrt.graph.node if item.op_type == "DequantizeLinear"}
    assert all(set(item.input[:2]) <= dequantized for item in convolutions)
    cpu = onnx.load(bundle.path / "model.int8.cpu.onnx")
    assert "Relu" not in ops(cpu)
    counted = count_convolutions(optimized_graph((bundle.path / "model.int8.cpu.onnx").read_bytes()))
    assert counted["float_convolutions"] == 0
    assert [value.name for value in (*cpu.graph.input, *cpu.graph.output)] == ["pixels", "logits"]


def test_the_table(bundle, digits, fast, capsys):
    assert main(["quantize", str(bundle.path), "--data", str(digits), "--limit", "64"]) == 0
    output = capsys.readouterr().out
    assert "measured on 300 images of digits" in output
    assert "int8 (TensorRT, GPU)" in output
    assert "default on a CPU: int8 (INT8 runs at 2.00 times FP32's speed)" in output
    for column in ("file MiB", "top-1", "drop in points", "agreement", "CPU latency ms"):
        assert column in output


def test_where_int8_is_no_faster_fp32_stays_the_default(bundle, digits, slow, caplog):
    caplog.set_level("INFO", logger="krl")
    result, _ = quantize(QuantizeConfig(bundle.path, digits, limit=64))
    assert result["default_on_cpu"] == "fp32"
    assert Bundle.open(bundle.path).manifest.default_variants == {"cpu": "fp32"}
    assert "INT8 runs at 1.05 times its speed here" in caplog.text


def test_a_drop_above_the_limit_fails_and_leaves_the_bundle_as_it_was(bundle, digits, fast, monkeypatch, capsys):
    narrow = lambda model, names, *_, **__: Int8Ranges(*[dict.fromkeys(names, (-0.01, 0.01))] * 2)  # noqa: E731
    monkeypatch.setattr(calibrate, "collect_int8", narrow)
    before = tree(bundle.path)
    assert main(["quantize", str(bundle.path), "--data", str(digits), "--limit", "64", "--max-drop", "2"]) == 1
    error = capsys.readouterr().err
    assert "points of top-1, accepted: 2; the recall of class" in error
    assert "accepted: 10 points; the bundle is unchanged" in error
    assert "judged on 300 images: the accuracy drop is" in error
    assert "int8 (CPU)" in error  # the table that says which
    assert tree(bundle.path) == before


def test_images_without_labels_measure_agreement(tmp_path, bundle, digits, fast, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, file in enumerate(sorted(digits.glob("train/*/*.png"))[::4]):
        shutil.copy(file, flat / f"{index:03d}.png")
    before = tree(bundle.path)
    assert main(["quantize", str(bundle.path), "--data", str(flat), "--max-drop", "5"]) == 1
    error = capsys.readouterr().err
    assert "the images have no labels of the model, so that --max-drop cannot be checked" in error
    assert main(["quantize", str(bundle.path), "--data", str(flat)]) == 1
    assert "images are too few to judge by, required: 100" in capsys.readouterr().err
    assert tree(bundle.path) == before
    assert main(["quantize", str(bundle.path), "--data", str(flat), "--accept-unmeasured", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["judged"] is False
    assert result["drop_points"] is None
    assert result["scores"]["int8"]["top1"] is None
    assert result["scores"]["int8"]["agreement"] > 0.9
    assert result["default_on_cpu"] == "int8"
    assert result["calibration"]["count"] + result["images"]["count"] == 150
    assert "INT8 was accepted with --accept-unmeasured: 30 images are too few to judge by" in captured.err


def test_missing_labels_do_not_open_the_gate(tmp_path, bundle, digits, fast, monkeypatch, capsys):
    """Ranges that are far too small destroy INT8; the images have no labels."""
    narrow = lambda model, names, *_, **__: Int8Ranges(*[dict.fromkeys(names, (-0.01, 0.01))] * 2)  # noqa: E731
    monkeypatch.setattr(calibrate, "collect_int8", narrow)
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, file in enumerate(sorted(digits.glob("train/*/*.png"))):
        shutil.copy(file, flat / f"{index:03d}.png")
    before = tree(bundle.path)
    assert main(["quantize", str(bundle.path), "--data", str(flat), "--accept-unmeasured"]) == 1
    assert "of the predictions agree with FP32, required: 95.0%" in capsys.readouterr().err
    assert tree(bundle.path) == before


def test_folders_of_other_classes_are_reported(tmp_path, bundle, digits, fast, capsys):
    shutil.copytree(digits, tmp_path / "other")
    for split in ("train", "val"):
        (tmp_path / "other" / split / "3").rename(tmp_path / "other" / split / "three")
    before = tree(bundle.path)
    arguments = ["quantize", str(bundle.path), "--data", str(tmp_path / "other"), "--limit", "64"]
    assert main(arguments) == 1
    assert "the images are of classes that the model does not have: three" in capsys.readouterr().err
    assert tree(bundle.path) == before
    assert main([*arguments, "--accept-unmeasured"]) == 0
    assert "has classes that the model does not: three" in capsys.readouterr().err
    assert Bundle.open(bundle.path).manifest.evidence["int8"]["judged"] is False


def test_the_calibration_is_kept_and_reused_only_if_it_is_the_same(bundle, digits, fast, monkeypatch, capsys):
    quantize(QuantizeConfig(bundle.path, digits, limit=64))
    kept = Calibration.from_bytes((bundle.path / "calibration.json").read_bytes())
    assert kept.identity.graph_sha256 == bundle.manifest.files["model.fp32.onnx"].sha256
    assert kept.identity.preprocessing == bundle.manifest.preprocessing.to_dict()
    model = onnx.load(bundle.path / "model.fp32.onnx")
    for ranges in (kept.ranges.tensorrt, kept.ranges.cpu):
        assert set(ranges) == set(tensors_to_calibrate(model))
        assert all(low <= high for low, high in ranges.values())

    monkeypatch.setattr(calibrate, "collect_int8", lambda *_, **__: pytest.fail("calibrated again"))
    result, _ = quantize(QuantizeConfig(bundle.path, digits, limit=64, reuse_calibration=True))
    assert result["calibration"]["images"] == kept.identity.images
    arguments = ["quantize", str(bundle.path), "--data", str(digits), "--limit", "60", "--reuse-calibration"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "count is 64 there and 60 now" in error
    assert "images is" in error


@pytest.mark.parametrize("method", ["mse", "percentile", "minmax"])
def test_each_file_has_the_ranges_for_its_own_integers(bundle, digits, fast, method):
    quantize(QuantizeConfig(bundle.path, digits, limit=64, method=method, max_drop=5))
    ranges = Calibration.from_bytes((bundle.path / "calibration.json").read_bytes()).ranges
    assert (ranges.tensorrt == ranges.cpu) == (method != "mse")
    symmetric, unsigned = _scales(bundle.path / "model.int8.fp32.onnx"), _scales(bundle.path / "model.int8.cpu.onnx")
    assert symmetric
    assert unsigned
    for name, scale in symmetric.items():
        assert scale == pytest.approx(max(map(abs, ranges.tensorrt[name])) / 127, rel=2**-11)  # as FP16
    for name, scale in unsigned.items():
        low, high = ranges.cpu[name]
        assert scale == pytest.approx((max(high, 0) - min(low, 0)) / 255)


def _scales(path):
    """Return the scales of a file's activations by the activation's name."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[1].removesuffix("_scale"): float(values[node.input[1]]) for node in nodes}


def test_nothing_to_reuse(bundle, digits, capsys):
    assert main(["quantize", str(bundle.path), "--data", str(digits), "--limit", "64", "--reuse-calibration"]) == 2
    assert "has no calibration; run it without --reuse-calibration" in capsys.readouterr().err


def test_percentile(bundle, digits, fast):
    wide, _ = quantize(QuantizeConfig(bundle.path, digits, limit=64, method="minmax", max_drop=5))
    ranges = Calibration.from_bytes((bundle.path / "calibration.json").read_bytes()).ranges.cpu
    config = QuantizeConfig(bundle.path, digits, limit=64, method="percentile", percentile=99.9, max_drop=5)
    result, _ = quantize(config)
    assert result["calibration"]["method"] == "percentile 99.9"
    narrow = Calibration.from_bytes((bundle.path / "calibration.json").read_bytes()).ranges.cpu
    assert set(narrow) == set(ranges)
    # Bins are at most 1/2048 of the largest magnitude wide; an interval may end with one.
    assert all(narrow[name][1] <= ranges[name][1] * 1.001 for name in ranges)
    assert sum(narrow[name][1] < 0.99 * ranges[name][1] for name in ranges) > len(ranges) // 2
    assert wide["calibration"]["method"] == "minmax"


def test_ranges_do_not_depend_on_how_images_are_batched(bundle, digits, fast, monkeypatch):
    quantize(QuantizeConfig(bundle.path, digits, limit=50, method="minmax", max_drop=5))
    first = Calibration.from_bytes((bundle.path / "calibration.json").read_bytes()).ranges.cpu
    monkeypatch.setattr("krl_deploy.calibration.collect._VALUES_IN_BATCH", 256)
    quantize(QuantizeConfig(bundle.path, digits, limit=50, method="minmax", max_drop=5))
    second = Calibration.from_bytes((bundle.path / "calibration.json").read_bytes()).ranges.cpu
    for name, values in first.items():
        assert second[name] == pytest.approx(values, rel=1e-5, abs=1e-6)


def write_noise(folder, count=40):
    rng = np.random.default_rng(0)
    for label in "01":
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / label / f"{index}.png")


def test_random_and_constant_images_are_refused(tmp_path, bundle, capsys):
    write_noise(tmp_path / "noise")
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "noise")]) == 2
    assert "look like random noise" in capsys.readouterr().err
    for index in range(40):
        (tmp_path / "gray" / "0").mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), index).save(tmp_path / "gray" / "0" / f"{index}.png")
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "gray")]) == 2
    assert "are of one color" in capsys.readouterr().err


def test_few_images_are_warned_of(bundle, digits, fast, capsys):
    arguments = ["quantize", str(bundle.path), "--data", str(digits), "--limit", "20", "--max-drop", "20"]
    assert main(arguments) == 0
    assert "only 20 images to calibrate on" in capsys.readouterr().err


def test_bad_folders(tmp_path, bundle, digits, fast, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", str(bundle.path), "--data", "digits"]) == 2
    assert "krl-train unpack --data digits" in capsys.readouterr().err
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "none")]) == 2
    assert "none does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "empty")]) == 2
    assert "holds no images" in capsys.readouterr().err
    shutil.copytree(digits, tmp_path / "damaged")
    (tmp_path / "damaged" / "train" / "0" / "000.png").write_bytes(b"no image")
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "damaged")]) == 2
    assert "--on-bad-image skip" in capsys.readouterr().err
    arguments = ["quantize", str(bundle.path), "--data", str(tmp_path / "damaged"), "--on-bad-image", "skip"]
    assert main(arguments) == 0
    assert "skipped 1 files" in capsys.readouterr().err


def test_bad_bundles(tmp_path, bundle, digits, capsys):
    assert main(["quantize", str(tmp_path / "none.krl"), "--data", str(digits)]) == 2
    assert "none.krl does not exist" in capsys.readouterr().err
    (bundle.path / "golden.npz").unlink()
    assert main(["quantize", str(bundle.path), "--data", str(digits)]) == 2
    assert "golden.npz is missing" in capsys.readouterr().err


def test_a_bundle_without_golden_inputs(tmp_path, digits, capsys):
    from _helpers.bundles import write_bundle

    write_bundle(tmp_path / "tiny.krl", golden=0)
    assert main(["quantize", str(tmp_path / "tiny.krl"), "--data", str(digits)]) == 2
    assert "has no golden inputs; export it again with real data" in capsys.readouterr().err


def test_a_flipped_byte_is_noticed(bundle, digits, capsys):
    file = bundle.path / "model.fp32.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(["quantize", str(bundle.path), "--data", str(digits)]) == 2
    assert "model.fp32.onnx is damaged or was changed" in capsys.readouterr().err


def test_a_net_too_narrow_for_tensorrt_is_reported(tmp_path, digits, capsys):
    """Five filters of three channels: the first layer, but no multiple of 8; the CPU's graph takes it."""
    from _helpers.bundles import write_bundle

    write_bundle(tmp_path / "tiny.krl")
    arguments = ["quantize", str(tmp_path / "tiny.krl"), "--data", str(digits), "--limit", "64"]
    assert main([*arguments, "--accept-unmeasured"]) == 0  # its golden inputs are noise
    error = capsys.readouterr().err
    assert "INT8 is for CPUs alone: TensorRT's graph has nothing in INT8" in error
    assert "thin convolution of 3 to 5 channels" in error


def test_convolutions_that_stay_in_float_are_reported(bundle, digits, fast, monkeypatch, caplog):
    counts = {"int8_convolutions": 10, "float_convolutions": 3}
    monkeypatch.setattr(module, "count_convolutions", lambda _: counts)
    result, _ = quantize(QuantizeConfig(bundle.path, digits, limit=64))
    assert result["cpu_convolutions"] == counts
    assert "3 of 13 convolutions stay in floating point" in caplog.text


def test_what_depends_on_the_old_int8_is_dropped_when_it_is_made_again(bundle, digits, fast):
    quantize(QuantizeConfig(bundle.path, digits, limit=64))
    first = Bundle.open(bundle.path).manifest.files["model.int8.onnx"]
    quantize(QuantizeConfig(bundle.path, digits, limit=128))
    again = Bundle.open(bundle.path)
    again.verify()
    assert again.manifest.files["model.int8.onnx"] != first
    assert set(again.manifest.variants) == {"fp32", "int8"}


def test_tensors_to_calibrate_are_few(bundle):
    """Only what an emitter asks for: the input, and what stands behind each ReLU; not what is folded."""
    model = onnx.load(bundle.path / "model.fp32.onnx")
    names = tensors_to_calibrate(model)
    relu_outputs = {item.output[0] for item in model.graph.node if item.op_type == "Relu"}
    convolution_outputs = {item.output[0] for item in model.graph.node if item.op_type == "Conv"}
    assert relu_outputs <= set(names)
    assert not convolution_outputs & set(names)


def test_a_net_with_nothing_for_int8_is_refused():
    values = {"w": np.ones((64, 4), np.float32)}
    narrow = graph([node("MatMul", ["x", "w"], "y")], {"x": ["batch", 64]}, {"y": None}, values)
    with pytest.raises(ModelError, match="no operator of the model can be in INT8: matrix of 64x4"):
        tensors_to_calibrate(narrow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit is 0"),
        ({"val_limit": -1}, "--val-limit is -1"),
        ({"val_fraction": 1.0}, "--val-fraction is 1.0"),
        ({"percentile": 50.0}, "--percentile is 50.0"),
        ({"max_drop": -1.0}, "--max-drop is -1.0"),
        ({"mixed_precision": True, "budget_seconds": 0.0}, "--budget-seconds is 0.0"),
        ({"budget_seconds": 9.0}, "give --mixed-precision as well"),
        ({"max_drop": float("nan")}, "--max-drop is nan"),
        ({"max_drop": float("inf")}, "--max-drop is inf"),
        ({"max_recall_drop": -1.0}, "--max-recall-drop is -1.0"),
        ({"max_recall_drop": float("inf")}, "--max-recall-drop is inf"),
        ({"min_psnr": float("inf")}, "--min-psnr is inf"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        QuantizeConfig(None, None, **options)


def test_fp16_around_int8_and_fp32_on_request(bundle, digits, fast):
    result, shown = quantize(QuantizeConfig(bundle.path, digits, limit=64))
    assert result["float_precision"] == "fp16"
    model = onnx.load(bundle.path / "model.int8.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    types = {
        item.name: item.type.tensor_type.elem_type for item in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    convolutions = [types[node.output[0]] for node in model.graph.node if node.op_type == "Conv"]
    assert set(convolutions) == {onnx.TensorProto.FLOAT16}  # none is FP32 on a GPU
    operators = result["operators"]
    assert (operators["int8"]["fp32"], operators["int8.fp32"].get("fp16", 0)) == (2, 0)  # the normalization of pixels
    assert f"int8 (OpenVINO)         {operators['int8.fp32']['int8']}" in shown
    variant = Bundle.open(bundle.path).manifest.variants["int8"]
    assert variant.files == ("model.int8.onnx", "model.int8.cpu.onnx", "model.int8.fp32.onnx")
    exact = onnx.load(bundle.path / "model.int8.fp32.onnx")
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in exact.graph.initializer}
    cpu = onnx.load(bundle.path / "model.int8.cpu.onnx")
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in cpu.graph.initializer}
    assert [replay.state for replay in selftest(Bundle.open(bundle.path)) if replay.kind == "cpu"] == ["passed"] * 2
    result, _ = quantize(QuantizeConfig(bundle.path, digits, limit=64, float_precision="fp32", max_drop=2))
    assert result["float_precision"] == "fp32"
    assert not (bundle.path / "model.int8.fp32.onnx").exists()  # of the earlier one
    model = onnx.load(bundle.path / "model.int8.onnx")
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in model.graph.initializer}


def test_the_file_computes_what_was_measured(bundle, digits, fast):
    """The simulation that is measured, against the shipped file itself."""
    quantize(QuantizeConfig(bundle.path, digits, limit=64, float_precision="fp16"))
    calibration = Calibration.from_bytes((bundle.path / "calibration.json").read_bytes())
    emitter = Emitter(
        (bundle.path / "model.fp32.onnx").read_bytes(),
        calibration,
        fp16=True,
        optimal_scales=False,
        bias_correction=True,
    )
    graphs = emitter.emit()
    assert graphs.files["int8"] == (bundle.path / "model.int8.onnx").read_bytes()
    golden = bundle.golden()["pixels"]
    shipped, simulated = outputs_of(open_cpu(graphs.files["int8"]), golden), outputs_of(graphs.sessions["int8"], golden)
    exact = outputs_of(graphs.sessions["fp32"], golden)
    assert np.abs(shipped - simulated).std() <= 0.02 * exact.std()


def test_an_older_opset_is_raised_for_fp16(tmp_path, digits, run, fast):
    export(ExportConfig(run.path, tmp_path / "old.krl", data=digits, opset=18))
    result, _ = quantize(QuantizeConfig(tmp_path / "old.krl", digits, limit=64, max_drop=2, float_precision="fp16"))
    assert result["float_precision"] == "fp16"
    assert opset_of(onnx.load(tmp_path / "old.krl" / "model.int8.onnx")) == 19


def test_each_improvement_can_be_turned_off(bundle, digits, fast):
    files = []
    for options in ({}, {"bias_correction": False}, {"optimal_scales": True}, {"equalize": "all"}):
        result, _ = quantize(QuantizeConfig(bundle.path, digits, limit=200, max_drop=5, **options))
        assert result["bias_correction"] == options.get("bias_correction", True)
        assert result["optimal_scales"] == options.get("optimal_scales", False)
        assert (result["equalized_activations"] > 0) == (options.get("equalize") == "all")
        files.append((bundle.path / "model.int8.cpu.onnx").read_bytes())
    assert len(set(files)) == 4


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_the_other_methods(bundle, digits, fast, method):
    result, _ = quantize(QuantizeConfig(bundle.path, digits, limit=200, method=method, max_drop=10))
    assert result["calibration"]["method"] == method
    assert result["scores"]["int8"]["agreement"] > 0.9


def test_an_interrupted_calibration_is_gone_on_with(bundle, digits, fast, monkeypatch, capsys):
    monkeypatch.setattr("krl_deploy.calibration.collect._SECONDS_BETWEEN_SAVES", -1.0)
    monkeypatch.setattr("krl_deploy.calibration.collect._VALUES_IN_BATCH", 16 * 256)
    original = Checkpoint.save

    def pull_the_plug(self, arrays):
        original(self, arrays)
        raise KeyboardInterrupt

    arguments = ["quantize", str(bundle.path), "--data", str(digits), "--limit", "100", "--max-drop", "5"]
    arguments += ["--method", "minmax"]
    before = tree(bundle.path)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", pull_the_plug)
        assert main(arguments) == 130
    assert tree(bundle.path) == before
    unfinished = bundle.path.with_name("digits.krl.calibration.npz")
    assert unfinished.exists()
    assert main([*arguments, "--resume"]) == 0
    assert "going on after 16 images" in capsys.readouterr().err
    assert not unfinished.exists()
    resumed = (bundle.path / "calibration.json").read_bytes()
    assert main(arguments) == 0
    assert (bundle.path / "calibration.json").read_bytes() == resumed


def test_missing_classes_are_reported(bundle, digits, fast, capsys):
    assert main(["quantize", str(bundle.path), "--data", str(digits), "--limit", "8", "--max-drop", "99"]) == 0
    assert "2 of the 10 classes have no calibration image: 8, 9" in capsys.readouterr().err

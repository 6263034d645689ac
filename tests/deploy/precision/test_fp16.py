"""FP16 from a bundle: types, overflow, evidence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from _helpers.bundles import npz, write_bundle
from krl_deploy.cli import main
from krl_deploy.config import Fp16Config
from krl_deploy.precision import fp16 as module
from krl_deploy.precision.fp16 import fp16
from krl_runtime import Bundle
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import UsageError


def test_the_whole_way(bundle, digits, capsys):
    assert main(["fp16", str(bundle.path), "--data", str(digits), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == {"data": "digits", "count": 300}
    for name in ("fp16", "fp16.rounded"):
        score = result["scores"][name]
        assert score["agreement"] > 0.99
        assert 0 < score["max_error"] < 0.05
        assert abs(score["top1"] - result["scores"]["fp32"]["top1"]) < 0.01
    assert result["kept_fp32"] == {}
    assert result["file_bytes"]["fp16"] < 0.6 * result["file_bytes"]["fp32"]
    made = Bundle.open(bundle.path)
    made.verify()
    assert made.manifest.variants["fp16"].file == "model.fp16.onnx"
    assert made.manifest.evidence["fp16"]["scores"] == result["scores"]
    assert made.manifest.default_variants == bundle.manifest.default_variants
    assert [replay.state for replay in selftest(made) if replay.kind == "cpu"] == ["passed", "passed"]


def test_types(bundle):
    fp16(Fp16Config(bundle.path, accept_unmeasured=True))
    model = onnx.load(bundle.path / "model.fp16.onnx")
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert kinds == {"pixels": onnx.TensorProto.UINT8, "logits": onnx.TensorProto.FLOAT}
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert all(value.dtype == np.float16 for value in weights if value.size > 100)


def test_without_data_the_logits_of_the_golden_inputs_say_enough(bundle):
    result, _ = fp16(Fp16Config(bundle.path))
    assert (result["images"], result["judged"]) == ({"data": "golden inputs", "count": 16}, True)
    assert min(score["snr_db"] for score in result["scores"].values()) > 55
    assert result["limits"]["enough_snr_db"] == 40


def test_where_they_do_not_only_the_user_can_say_so(bundle, capsys, monkeypatch):
    monkeypatch.setattr("krl_runtime.evaluation.gate.ENOUGH_SNR_DB", 150.0)
    before = (bundle.path / "manifest.json").read_bytes()
    assert main(["fp16", str(bundle.path)]) == 1
    error = capsys.readouterr().err
    assert "FP16 is not kept, judged on 16 images: 16 images are too few to judge by, required: 100" in error
    assert "--accept-unmeasured" in error
    assert "fp16.rounded" in error  # the table
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert main(["fp16", str(bundle.path), "--accept-unmeasured"]) == 0
    captured = capsys.readouterr()
    assert "measured on 16 images of golden inputs" in captured.out
    assert "FP16 was accepted with --accept-unmeasured: 16 images are too few to judge by" in captured.err
    assert Bundle.open(bundle.path).manifest.evidence["fp16"]["judged"] is False


def planted(path, kind):
    """A bundle whose values FP16 cannot hold: 8000 and more, where its steps are 4, or around 10^-8."""
    bundle = write_bundle(path, golden=16)
    model = onnx.load_model_from_string((path / "model.fp32.onnx").read_bytes())
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    head, bias = (numpy_helper.to_array(constants[name]) for name in ("head", "bias"))
    nodes = list(model.graph.node)
    if kind == "far":
        added = {"far": np.float32(8000)}
        nodes[5:5] = [helper.make_node("Add", ["positive", "far"], ["moved"])]
        nodes[6].input[0] = "moved"
        constants["bias"].CopyFrom(numpy_helper.from_array(bias - 8000 * head.sum(1), "bias"))
    else:
        added = {"down": np.float32(1e-4), "up": np.float32(1e4)}
        nodes[5:5] = [
            helper.make_node("Mul", ["positive", "down"], ["small"]),
            helper.make_node("Mul", ["small", "down"], ["tiny"]),
        ]
        nodes[7].input[0] = "tiny"
        nodes[9:9] = [
            helper.make_node("Mul", ["features", "up"], ["larger"]),
            helper.make_node("Mul", ["larger", "up"], ["as_before"]),
        ]
        nodes[11].input[0] = "as_before"
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in added.items())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    manifest = replace(bundle.manifest, variants={"fp32": replace(bundle.manifest.variants["fp32"], tolerance=0.05)})
    files = {"model.fp32.onnx": model.SerializeToString(), "golden.npz": npz(**bundle.golden())}
    return Bundle.create(path, manifest, files, replace=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("far", "where the steps of FP16 are 7.8"), ("tiny", "FP16 has its full precision from 6.1e-05 on")],
)
def test_a_net_that_fp16_destroys_is_rescued(tmp_path, capsys, kind, reason):
    """The values that calibration saw say which nodes stay in FP32."""
    bundle = planted(tmp_path / "planted.krl", kind)
    assert main(["fp16", str(bundle.path), "--accept-unmeasured", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert any(reason in why for why in result["kept_fp32"].values()), result["kept_fp32"]
    assert result["scores"]["fp16.rounded"]["agreement"] == 1
    assert result["fp16_operators"] >= 1


@pytest.mark.parametrize("kind", ["far", "tiny"])
def test_a_net_that_fp16_destroys_and_calibration_did_not_see_is_not_kept(tmp_path, monkeypatch, capsys, kind):
    """ONNX Runtime's CPU computes FP16 files in FP32, so that the rounded simulation decides."""
    monkeypatch.setattr(module, "collect", lambda *_: {})
    bundle = planted(tmp_path / "planted.krl", kind)
    assert [replay.state for replay in selftest(bundle) if replay.kind == "cpu"] == ["passed"]
    before = (bundle.path / "manifest.json").read_bytes()
    assert main(["fp16", str(bundle.path), "--accept-unmeasured"]) == 1
    error = capsys.readouterr().err
    assert "of the predictions agree with FP32, required: 99.0%; the bundle is unchanged" in error
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert not (bundle.path / "model.fp16.onnx").exists()


def test_a_limit_of_the_users_is_enforced_or_fails(bundle, digits, tmp_path, capsys):
    """With labels it is a statement on these images, however few; without labels it cannot be checked."""
    options = ["--data", str(digits), "--val-limit", "20", "--max-drop", "50"]
    assert main(["fp16", str(bundle.path), *options]) == 0
    assert main(["fp16", str(bundle.path), "--max-drop", "50", "--accept-unmeasured"]) == 1
    assert "the images have no labels of the model, so that --max-drop cannot be checked" in capsys.readouterr().err


def overflowing(path, *, factor):
    """A bundle whose convolution gives large numbers, and whose linear layer makes them small again."""
    bundle = write_bundle(path)
    model = onnx.load_model_from_string((path / "model.fp32.onnx").read_bytes())
    golden = bundle.golden()
    for tensor in model.graph.initializer:
        if tensor.name in ("kernel", "head"):
            scale = factor if tensor.name == "kernel" else 1 / factor
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(scale), tensor.name))
    manifest = replace(bundle.manifest, variants={"fp32": replace(bundle.manifest.variants["fp32"], tolerance=0.01)})
    files = {"model.fp32.onnx": model.SerializeToString(), "golden.npz": npz(**golden)}
    return Bundle.create(path, manifest, files, replace=True)


def test_a_net_that_overflows_is_rescued(tmp_path, capsys):
    bundle = overflowing(tmp_path / "big.krl", factor=7_000.0)
    assert main(["fp16", str(bundle.path), "--accept-unmeasured", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert any("FP16 ends at 65504" in reason for reason in result["kept_fp32"].values())
    assert "nodes stay in FP32" in captured.err
    assert result["scores"]["fp16.rounded"]["max_error"] < 0.05


def test_an_overflow_that_calibration_did_not_see_fails_and_changes_nothing(tmp_path, monkeypatch, capsys):
    bundle = overflowing(tmp_path / "big.krl", factor=20_000.0)
    monkeypatch.setattr(module, "collect", lambda *_: {})
    assert main(["fp16", str(bundle.path)]) == 1
    assert "in FP16 the network's outputs have numbers that are not finite" in capsys.readouterr().err
    assert set(Bundle.open(bundle.path).manifest.variants) == {"fp32"}


def test_bad_input(tmp_path, bundle, capsys):
    assert main(["fp16", str(tmp_path / "none.krl")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["fp16", str(bundle.path), "--data", str(tmp_path / "none")]) == 2
    assert "none does not exist" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--val-limit is 0"):
        Fp16Config(bundle.path, val_limit=0)


def test_the_table_says_what_the_images_resolve(bundle, digits, capsys):
    assert main(["fp16", str(bundle.path), "--data", str(digits)]) == 0
    out = capsys.readouterr().out
    assert "one image is worth 0.33 points, one standard error of top-1 is" in out
    assert "finer" not in out
    assert main(["fp16", str(bundle.path), "--data", str(digits), "--max-drop", "0.2"]) in (0, 1)
    captured = capsys.readouterr()
    assert "points; --max-drop 0.2 is finer than that" in captured.out + captured.err

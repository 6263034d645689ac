"""FP16 from a bundle: types, overflow, evidence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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
    fp16(Fp16Config(bundle.path))
    model = onnx.load(bundle.path / "model.fp16.onnx")
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert kinds == {"pixels": onnx.TensorProto.UINT8, "logits": onnx.TensorProto.FLOAT}
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert all(value.dtype == np.float16 for value in weights if value.size > 100)


def test_without_data_the_golden_inputs_are_measured_on(bundle, capsys):
    assert main(["fp16", str(bundle.path)]) == 0
    output = capsys.readouterr().out
    assert "measured on 16 images of golden inputs" in output
    assert "fp16.rounded" in output


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
    assert main(["fp16", str(bundle.path), "--json"]) == 0
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

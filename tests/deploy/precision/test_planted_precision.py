"""Networks that INT8 or FP16 destroys: refused, and rescued by the planner. Agreement is measured without krl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from _helpers.planted_nets import (
    DIFFERENCES,
    OUTLIERS,
    UNDERFLOWS,
    outputs,
    overflow,
    pixels_of,
    write_colors,
    write_planted,
)
from krl_deploy.cli import main
from krl_deploy.precision import fp16 as fp16_module
from krl_deploy.precision import quantize as quantize_module

FP16_NETS = {f"difference of {name}": make for name, make in DIFFERENCES.items()}
FP16_NETS |= {f"underflow by {name}": make for name, make in UNDERFLOWS.items()}


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors") / "data")


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(quantize_module, "interleaved_latency", lambda sessions, pixels: {"fp32": 2.0, "int8.cpu": 1.0})


def tree(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def agreement(model: onnx.ModelProto, logits: np.ndarray, colors: Path) -> float:
    return float((logits.argmax(1) == outputs(model, pixels_of(colors)).argmax(1)).mean())


@pytest.mark.parametrize("name", OUTLIERS)
def test_an_outlier_channel_is_refused_and_rescued(tmp_path, colors, capsys, name):
    model = OUTLIERS[name]()
    bundle = write_planted(tmp_path / "outlier.krl", model, colors)
    before = tree(bundle.path)
    command = ["quantize", str(bundle.path), "--data", str(colors)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "points of top-1, accepted: 1" in error
    assert "the bundle is unchanged" in error
    assert tree(bundle.path) == before
    assert main([*command, "--mixed-precision", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert 0 < len(plan["layers_kept_float"]) < plan["layers"]
    for file in ("model.int8.onnx", "model.int8.cpu.onnx"):
        made = onnx.load(bundle.path / file)
        assert any(node.op_type == "QuantizeLinear" for node in made.graph.node)
        assert agreement(model, outputs(made, pixels_of(colors)), colors) >= 0.95


@pytest.mark.parametrize("name", FP16_NETS)
def test_what_fp16_loses_is_refused_and_rescued(tmp_path, colors, capsys, name):
    """The static rules see nothing: all values fit, and each tensor has a wide range."""
    model = FP16_NETS[name]()
    bundle = write_planted(tmp_path / "lost.krl", model, colors)
    before = tree(bundle.path)
    command = ["fp16", str(bundle.path), "--data", str(colors)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "points of top-1, accepted: 1" in error
    assert "the bundle is unchanged. --mixed-precision keeps the nodes" in error
    assert "stay in FP32" not in error
    assert tree(bundle.path) == before
    assert main([*command, "--mixed-precision", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["kept_fp32"]) == set(result["plan"]["layers_kept_float"])
    made = onnx.load(bundle.path / "model.fp16.onnx")
    half = {tensor.name for tensor in made.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    assert half
    # ONNX's reference runs each FP16 node in NumPy's float16, on which krl has no influence.
    logits = ReferenceEvaluator(made).run(None, {"pixels": pixels_of(colors)})[0]
    assert agreement(model, logits, colors) >= 0.99
    plan = json.loads((bundle.path / "plan.fp16.json").read_bytes())
    assert {layer["fp16"] for layer in plan["layers"] if layer["name"] in plan["layers_kept_float"]} == {"fp32"}
    assert (bundle.path / "sensitivity.fp16.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("factor", [100, 1000, 10_000])
def test_an_overflow_that_calibration_did_not_see_is_rescued(tmp_path, colors, capsys, monkeypatch, factor):
    """Outputs are not finite, so that the gate has no score."""
    monkeypatch.setattr(fp16_module, "collect", lambda *_: {})
    model = overflow(factor)
    bundle = write_planted(tmp_path / "big.krl", model, colors)
    before = tree(bundle.path)
    command = ["fp16", str(bundle.path), "--data", str(colors)]
    assert main(command) == 1
    assert "in FP16 the network's outputs have numbers that are not finite" in capsys.readouterr().err
    assert tree(bundle.path) == before
    assert main([*command, "--mixed-precision", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["plan"]["attempts"][0]["agreement"] is None
    assert "n_other" in result["plan"]["layers_kept_float"]
    logits = ReferenceEvaluator(onnx.load(bundle.path / "model.fp16.onnx")).run(None, {"pixels": pixels_of(colors)})[0]
    assert agreement(model, logits, colors) >= 0.99

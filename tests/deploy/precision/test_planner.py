"""The planner on a net with an outlier channel on its residual path, which no equalization reaches."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from krl_deploy.cli import main
from krl_deploy.precision import quantize as quantize_module
from krl_deploy.precision.planner.judge import Judge
from krl_deploy.precision.planner.plot import sensitivity_plot
from krl_deploy.precision.planner.search import Attempt, steps
from krl_runtime import Bundle


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(quantize_module, "interleaved_latency", lambda sessions, pixels: {"fp32": 2.0, "int8.cpu": 1.0})


@pytest.fixture
def outlier(bundle):
    """The bundle with one channel between the third and the fourth convolution 2000 times as large; equal answers."""
    path = bundle.file("model.fp32.onnx")
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    before, after = [item for item in model.graph.node if item.op_type == "Conv"][4:6]

    def scale(name, factor):
        values = numpy_helper.to_array(weights[name]).copy()
        values[3 if name != after.input[1] or values.shape[1] == 1 else (slice(None), 3)] *= np.float32(factor)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))

    for name in before.input[1:]:
        scale(name, 2000)
    scale(after.input[1], 1 / 2000)
    golden = bundle.golden()
    manifest = bundle.manifest
    from krl_deploy.bundles.reference import make_reference

    reference = make_reference(
        model.SerializeToString(),
        {"pixels": golden["pixels"]},
        {"logits": golden["logits"]},
        name="outlier",
        preprocessing=manifest.preprocessing,
        source={},
        labels=manifest.labels,
    )
    return reference.write(bundle.path.with_name("outlier.krl"), {}, overwrite=False)


def arguments(made, digits, *more):
    return ["quantize", str(made.path), "--data", str(digits), "--limit", "100", "--equalize", "none", *more]


def test_a_net_that_collapses_passes_with_a_plan(outlier, digits, capsys):
    assert main(arguments(outlier, digits)) == 1
    error = capsys.readouterr().err
    assert "--mixed-precision keeps the layers with the largest drop" in error
    assert main(arguments(outlier, digits, "--mixed-precision", "--float-precision", "fp16", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["drop_points"] <= 1
    attempts = result["plan"]["attempts"]
    assert attempts[0]["kept"] == 0
    assert attempts[0]["drop"] > 10
    accepted = [attempt["kept"] for attempt in attempts if attempt["refused"] is None]
    refused = [attempt["kept"] for attempt in attempts if attempt["refused"] is not None]
    assert min(accepted) == len(result["plan"]["layers_kept_float"]) == max(refused) + 1 <= 3

    made = Bundle.open(outlier.path)
    made.verify()
    plan = json.loads(made.read("plan.json"))
    assert plan["drop"] == "points of top-1"
    kept = [layer for layer in plan["layers"] if layer["name"] in plan["layers_kept_float"]]
    assert all((layer["tensorrt"], layer["cpu"]) == ("fp16", "fp32") for layer in kept)
    others = [layer for layer in plan["layers"] if layer not in kept]
    assert max(layer["sensitivity"] for layer in others) <= min(layer["sensitivity"] for layer in kept)
    assert made.read("sensitivity.png").startswith(b"\x89PNG")
    tensorrt = onnx.load(made.file("model.int8.onnx"))
    dequantized = {item.output[0] for item in tensorrt.graph.node if item.op_type == "DequantizeLinear"}
    for layer in kept:
        assert not dequantized & set(next(item for item in tensorrt.graph.node if item.name == layer["name"]).input)


def test_equalization_alone_saves_it(outlier, digits, capsys):
    assert main([*arguments(outlier, digits)[:-2], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equalized_activations"] == 1
    assert result["drop_points"] <= 1


def test_no_plan_passes(outlier, digits, capsys, monkeypatch):
    monkeypatch.setattr(Judge, "attempt", lambda self, keep: Attempt(len(keep), 7.0, refused="no"))
    before = (outlier.path / "manifest.json").read_bytes()
    assert main(arguments(outlier, digits, "--mixed-precision")) == 1
    error = capsys.readouterr().err
    assert "no plan with a layer in INT8 is accepted on 500 planning images; the bundle is unchanged" in error
    assert "most sensitive of 13 groups of layers" in error
    assert "layers in float" in error
    assert not outlier.path.with_name(f"{outlier.path.name}.plan.json").exists()  # nothing is left to go on with
    assert (outlier.path / "manifest.json").read_bytes() == before


def test_the_budget_ends_the_search(outlier, digits, capsys):
    assert main(arguments(outlier, digits, "--mixed-precision", "--budget-seconds", "0.001")) == 1
    error = capsys.readouterr().err
    assert "the time was up after 1 of 13 groups of layers; the others rank last" in error
    assert "within --budget-seconds 0.001; the bundle is unchanged; give more time and --resume to go on" in error


def test_a_net_that_needs_no_plan_gets_the_evidence(bundle, digits, capsys):
    assert (
        main(["quantize", str(bundle.path), "--data", str(digits), "--mixed-precision", "--max-drop", "3", "--json"])
        == 0
    )
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["layers_kept_float"] == []
    assert plan["layers"] == 13
    # Without a plan the old one would speak of another file.
    assert main(["quantize", str(bundle.path), "--data", str(digits), "--max-drop", "3"]) == 0
    again = Bundle.open(bundle.path)
    again.verify()
    assert not {"plan.json", "sensitivity.png"} & set(again.manifest.files)
    assert not (bundle.path / "plan.json").exists()


def test_without_labels_agreement_counts(tmp_path, outlier, digits, capsys):
    import shutil

    flat = tmp_path / "flat"
    flat.mkdir()
    for index, file in enumerate(sorted(digits.glob("train/*/*.png"))[::4]):
        shutil.copy(file, flat / f"{index:03d}.png")
    assert main(arguments(outlier, flat, "--mixed-precision", "--accept-unmeasured", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert {attempt["drop"] for attempt in plan["attempts"]} == {None}
    assert min(a["agreement"] for a in plan["attempts"] if a["refused"] is None) >= 0.95


def test_steps_leave_something_to_int8():
    assert steps(1) == [0]
    assert steps(10) == [0, 1, 2, 3, 4, 6, 9]
    assert steps(9) == [0, 1, 2, 3, 4, 6, 8]


def test_the_plot_has_a_bar_for_each_layer():
    from io import BytesIO

    from PIL import Image

    small, large = (
        Image.open(BytesIO(sensitivity_plot([("layer", 0.1, "int8"), *[("x" * 99, 0.2, "fp16")] * count], "int8")))
        for count in (1, 40)
    )
    assert large.height > 3 * small.height
    assert small.width == large.width

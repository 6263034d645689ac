"""``krl-deploy check`` as people and programs meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

import krl_deploy.rules
from _helpers.bundles import write_bundle
from _helpers.images import SHARED_DATA
from _helpers.planted import block, edited, set_value
from krl_deploy.cli import main

MODELS = SHARED_DATA / "models"


def asymmetric(model):
    for item in list(model.graph.initializer):
        if item.name.endswith("r0_zero_point"):
            set_value(model, item.name, onnx.numpy_helper.to_array(item) + 3)


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.onnx"
    path.write_bytes(block().SerializeToString())
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(edited(block(), asymmetric).SerializeToString())
    return path


def test_a_good_file(good, capsys):
    assert main(["check", str(good), "--target", "tensorrt-11.4"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("good.onnx for tensorrt-11.4: no findings\n")
    assert "Not known before it runs on tensorrt-11.4:\n  - whether TensorRT's parser takes every node" in told
    assert "the accuracy of INT8 on the device" in told


def test_a_bad_file(bad, capsys):
    assert main(["check", str(bad), "--target", "jetpack-7.2"]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "bad.onnx for jetpack-7.2 (TensorRT 10.16.2, Orin, Thor): 2 errors, 1 warning"
    assert [line.split()[0] for line in lines[3:6]] == ["error", "error", "warning"]  # worst first
    assert re.search(
        r"^error +qdq/symmetric +QuantizeLinear: QuantizeLinear_r0_quantized +its zero point", captured.out, re.M
    )
    assert "qdq/symmetric: quantize the float model again" in captured.out
    assert "[NVIDIA/TensorRT: NvInfer.h, IQuantizeLayer]" in captured.out
    assert "is not ready for jetpack-7.2: 2 errors" in captured.err


def test_as_json(bad, capsys):
    assert main(["check", str(bad), "--target", "tensorrt-10.3", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == {"name": "tensorrt-10.3", "tensorrt": "10.3", "boards": []}
    assert report["counts"] == {"error": 2, "warning": 0, "note": 0}
    (file,) = report["files"]
    assert (file["file"], file["variant"], file["quantized"]) == ("bad.onnx", None, True)
    assert {finding["rule"] for finding in file["findings"]} == {"qdq/symmetric"}
    assert set(file["findings"][0]) == {"severity", "rule", "node", "op", "why", "do", "source"}
    assert report["unknown"]


def test_equal_findings_are_one_line(tmp_path, capsys):
    def everywhere(model):
        for item in list(model.graph.initializer):
            if item.name.endswith("_zero_point"):
                set_value(model, item.name, onnx.numpy_helper.to_array(item) + 3)

    path = tmp_path / "all.onnx"
    path.write_bytes(edited(block(), everywhere).SerializeToString())
    assert main(["check", str(path), "--target", "tensorrt-11.4"]) == 1
    told = capsys.readouterr().out
    assert told.count("its zero point is not 0") == 2  # QuantizeLinear and DequantizeLinear
    assert "and 1 more" in told
    assert "and 5 more" in told


def test_a_bundle_is_checked_in_the_form_that_the_target_runs(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "tiny.krl", variants=("fp32", "int8"))
    assert main(["check", str(bundle.path), "--target", "tensorrt-11.4", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [(file["variant"], file["file"]) for file in files] == [
        ("fp32", "model.fp32.onnx"),
        ("int8", "model.int8.onnx"),
    ]
    assert main(["check", str(bundle.path), "--target", "onnxruntime-cpu", "--precision", "int8", "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["file"] == "model.int8.cpu.onnx"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{good}", "--target", "jetpack-99"], "--target is 'jetpack-99'"),
        (["{good}", "--target", "tensorrt-11.4", "--precision", "int8"], "--precision is for bundles"),
        (["{bundle}", "--target", "tensorrt-11.4", "--precision", "fp16"], "has no variant fp16; it has: fp32"),
        (["{missing}.onnx", "--target", "tensorrt-11.4"], "does not exist; give an ONNX file"),
        (["{text}", "--target", "tensorrt-11.4"], "is not an ONNX file, or is damaged"),
        (["{empty}", "--target", "tensorrt-11.4"], "is not a bundle"),
    ],
)
def test_bad_input(arguments, message, good, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("no model", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    names = {
        "good": good,
        "bundle": write_bundle(tmp_path / "tiny.krl").path,
        "missing": tmp_path / "missing",
        "text": tmp_path / "text.onnx",
        "empty": tmp_path / "empty",
    }
    assert main(["check", *(argument.format(**names) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"no real models in {MODELS}")
@pytest.mark.parametrize(
    ("file", "target", "rules", "code"),
    [
        ("super_resolution_espcn_x3.onnx", "jetpack-6.2", set(), 0),
        ("super_resolution_espcn_x3.onnx", "onnxruntime-cpu", set(), 0),
        ("mnist-cntk.onnx", "tensorrt-11.4", {"operators/opset"}, 0),
        ("shufflenet-v2-12-int8.onnx", "onnxruntime-cpu", set(), 0),
        (
            "shufflenet-v2-12-int8.onnx",
            "tensorrt-10.16",
            {"operators/domain", "operators/integer", "qdq/int8", "qdq/output", "qdq/symmetric", "types/uint8"},
            1,
        ),
    ],
)
def test_files_that_others_made(file, target, rules, code, capsys):
    assert main(["check", str(MODELS / file), "--target", target, "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert {finding["rule"] for finding in report["files"][0]["findings"]} == rules


def test_every_rule_has_a_graph_that_breaks_it():
    """Names of rules in the sources, against those that the tests of this folder plant."""
    names = re.compile(r'"((?:bugs|cpu|fp16|operators|qdq|shapes|types)/[\w.-]+)"')
    sources = Path(krl_deploy.rules.__file__).parent.glob("*.py")
    defined = {name for path in sources for name in names.findall(path.read_text(encoding="utf-8"))}
    tested = {
        name for path in Path(__file__).parent.glob("test_*.py") for name in names.findall(path.read_text("utf-8"))
    }
    assert len(defined) > 30
    assert defined - tested == set()

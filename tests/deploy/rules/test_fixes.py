"""``krl-deploy check --fix``: findings go, and outputs stay. The judge is plain ONNX Runtime on further inputs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from _helpers.bundles import write_bundle
from _helpers.graphs import graph, node, run
from _helpers.planted import findings, normal
from krl_deploy.cli import main
from krl_deploy.rules import fixes
from krl_deploy.rules.fixes import fix
from krl_deploy.rules.targets import parse_target

IMAGE = ["batch", 3, 8, 8]
PIXELS = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model)


def old_opset() -> onnx.ModelProto:
    nodes = [node("Relu", ["x"], "r"), node("Upsample", ["r"], "y", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")]
    return graph(nodes, {"x": IMAGE}, {"y": None}, opset=7)


def new_opset() -> onnx.ModelProto:
    return graph([node("Relu", ["x"], "y")], {"x": IMAGE}, {"y": IMAGE}, opset=26, ir=11)


def contrib() -> onnx.ModelProto:
    made = helper.make_node("Gelu", ["x"], ["y"], name="n_y", domain="com.microsoft")
    model = graph([node("Identity", ["x"], "y")], {"x": IMAGE}, {"y": IMAGE})
    model.graph.node[0].CopyFrom(made)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def sequence() -> onnx.ModelProto:
    nodes = [
        node("SplitToSequence", ["x", "sizes"], "parts", axis=1),
        node("SequenceAt", ["parts", "first"], "a"),
        node("SequenceAt", ["parts", "second"], "b"),
        node("Concat", ["b", "a"], "y", axis=1),
    ]
    constants = {"sizes": np.int64([1, 2]), "first": np.int64(0), "second": np.int64(1)}
    return graph(nodes, {"x": IMAGE}, {"y": None}, constants)


def function() -> onnx.ModelProto:
    return graph(
        [node("CenterCropPad", ["x", "s"], "y", axes=[2, 3])], {"x": IMAGE}, {"y": None}, {"s": np.int64([4, 6])}
    )


def unread_output() -> onnx.ModelProto:
    made = helper.make_node("LayerNormalization", ["x", "g"], ["y", "mean", "deviation"], name="n_y")
    return graph([made], {"x": IMAGE}, {"y": IMAGE}, {"g": normal(8)})


def capitals() -> onnx.ModelProto:
    return graph(
        [node("Einsum", ["x", "w"], "y", equation="ncHW,Wd->ncHd")], {"x": IMAGE}, {"y": None}, {"w": normal(8, 2)}
    )


def quantized(stored: type, zero: int) -> onnx.ModelProto:
    """A convolution of a uint8 activation and a weight, with a bias stored as int32, as ONNX Runtime's tools write."""
    rng = np.random.default_rng(2)
    limits = np.iinfo(stored)
    constants = {
        "xs": np.float32(0.03),
        "xz": np.uint8(zero),
        "w": rng.integers(limits.min, limits.max + 1, (4, 3, 3, 3)).astype(stored),
        "ws": rng.uniform(0.01, 0.02, 4).astype(np.float32),
        "wz": np.full(4, 128 if stored is np.uint8 else 0, stored),
        "b": rng.integers(-9000, 9000, 4).astype(np.int32),
        "bs": np.full(4, 4e-4, np.float32),
    }
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], "q"),
        node("MaxPool", ["q"], "m", kernel_shape=[2, 2]),
        node("DequantizeLinear", ["m", "xs", "xz"], "d"),
        node("DequantizeLinear", ["w", "ws", "wz"], "wd", axis=0),
        node("DequantizeLinear", ["b", "bs"], "bd", axis=0),
        node("Conv", ["d", "wd", "bd"], "y"),
    ]
    return graph(nodes, {"x": IMAGE}, {"y": None}, constants)


def shape_of_pixels() -> onnx.ModelProto:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Cast", ["x"], "f", to=TensorProto.FLOAT),
        node("Flatten", ["f"], "v"),
        node("Reshape", ["v", "s"], "y"),
    ]
    return graph(nodes, {"x": IMAGE}, {"y": None}, dtypes={"x": "uint8"})


def doubles() -> onnx.ModelProto:
    nodes = [
        node("Cast", ["x"], "d", to=TensorProto.DOUBLE),
        node("Mul", ["d", "c"], "m"),
        node("Cast", ["m"], "y", to=TensorProto.FLOAT),
    ]
    return graph(nodes, {"x": IMAGE}, {"y": IMAGE}, {"c": np.float64(1 / 3)})


CASES = {
    "old opset": (old_opset, "tensorrt-11.4", {"operators/opset"}),
    "new opset": (new_opset, "rtx", {"operators/opset"}),
    "ONNX Runtime's operators": (contrib, "rtx", {"operators/domain"}),
    "sequences": (sequence, "rtx", {"operators/supported"}),
    "functions": (function, "rtx", {"operators/supported"}),
    "outputs that nothing reads": (unread_output, "rtx", {"operators/restriction"}),
    "capitals": (capitals, "rtx", {"operators/restriction"}),
    "symmetric uint8": (lambda: quantized(np.uint8, 128), "rtx", {"qdq/int8", "qdq/symmetric", "qdq/bias"}),
    "int32 bias": (lambda: quantized(np.int8, 128), "rtx", {"qdq/int8", "qdq/symmetric", "qdq/bias"}),
    "shape of pixels": (shape_of_pixels, "rtx", {"types/uint8"}),
    "FP64": (doubles, "rtx", {"types/double"}),
}


def feed(model: onnx.ModelProto) -> np.ndarray:
    uint8 = model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    return np.clip(PIXELS * 60 + 128, 0, 255).astype(np.uint8) if uint8 else PIXELS


@pytest.mark.parametrize("case", CASES)
def test_the_finding_goes_and_the_outputs_stay(case, tmp_path, capsys):
    make, target, rules = CASES[case]
    given, out = tmp_path / "given.onnx", tmp_path / "fixed.onnx"
    model = make()
    given.write_bytes(model.SerializeToString())
    assert rules <= {item.rule for item in findings(model, target)}
    assert main(["check", str(given), "--target", target, "--fix", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"][0]["file"] == "fixed.onnx"
    assert {item["rule"] for item in report["files"][0]["findings"]} & rules == set()
    assert {item["rule"] for done in report["fixes"]["done"] for item in done["findings"]} == rules
    assert report["fixes"]["left"] == []
    fixed = onnx.load(out)
    x = feed(model)
    expected, got = run(model, x=x, optimize=False), run(fixed, x=x, optimize=False)
    np.testing.assert_allclose(got[0], expected[0], rtol=0, atol=1e-5 * np.abs(expected[0]).max())
    assert got[0].dtype == expected[0].dtype
    assert given.read_bytes() == model.SerializeToString()


def asymmetric() -> onnx.ModelProto:
    return quantized(np.int8, 100)


def read_outside() -> onnx.ModelProto:
    model = quantized(np.int8, 128)
    model.graph.output.append(helper.make_tensor_value_info("q", TensorProto.UINT8, IMAGE))
    return model


@pytest.mark.parametrize("make", [asymmetric, read_outside])
def test_uint8_that_has_no_equal_int8_stays(make):
    """Another zero point would clip other values, and an output would have other integers."""
    fixed = fix(make(), parse_target("rtx"))
    assert {item.rule for kept in fixed.kept for item in kept.gone} <= {"qdq/bias", "qdq/int8", "qdq/symmetric"}
    assert all(item.node != "n_q" for kept in fixed.kept for item in kept.gone)
    assert any(item.op_type == "Conv" and item.input[2].endswith("_float") for item in fixed.model.graph.node)
    assert any(item.node == "n_q" for item in findings(fixed.model, "rtx") if item.rule == "qdq/int8")


def broken(model, _):
    """Remove the operator that the finding is about, which changes the outputs."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    wrong.graph.node[0].op_type = "Identity"
    del wrong.graph.node[0].input[1:], wrong.graph.node[0].attribute[:]
    return wrong


def test_a_rewrite_that_changes_the_outputs_is_not_kept(monkeypatch):
    (rewrite,) = (item for item in fixes.REWRITES if "small letters" in item.what)
    monkeypatch.setattr(fixes, "REWRITES", (replace(rewrite, apply=broken),))
    model = capitals()
    fixed = fix(model, parse_target("rtx"))
    assert (fixed.model, fixed.kept) == (model, ())
    assert "an output became" in fixed.left[0]
    monkeypatch.setattr(fixes, "REWRITES", (replace(rewrite, apply=lambda given, _: scaled(given)),))
    assert "an output differs by" in fix(model, parse_target("rtx")).left[0]


def scaled(model):
    """Return the model in small letters, with a weight that is 1.0001 times as large."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    wrong.graph.node[0].attribute[0].s = b"nchw,wd->nchd"
    weight = onnx.numpy_helper.to_array(wrong.graph.initializer[0])
    wrong.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight * np.float32(1.0001), "w"))
    return wrong


def test_a_graph_that_onnx_runtime_does_not_run_stays():
    model = graph(
        [node("Add", ["x", "c"], "y", broadcast=1)], {"x": [1, 3, 8, 8]}, {"y": None}, {"c": normal(8)}, opset=6
    )
    fixed = fix(model, parse_target("rtx"))
    assert fixed.model is model
    assert "the outputs cannot be compared" in fixed.left[0]


def test_what_would_change(tmp_path, capsys):
    path = tmp_path / "given.onnx"
    path.write_bytes(unread_output().SerializeToString())
    assert main(["check", str(path), "--target", "rtx", "--diff"]) == 1
    shown = capsys.readouterr().out
    assert "can be fixed" in shown
    assert "-y, mean, deviation = LayerNormalization(x, g)\n+y = LayerNormalization(x, g)" in shown
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_findings_is_written_as_well(tmp_path, capsys):
    path, out = tmp_path / "given.onnx", tmp_path / "fixed.onnx"
    path.write_bytes(graph([node("Relu", ["x"], "y")], {"x": IMAGE}, {"y": IMAGE}).SerializeToString())
    assert main(["check", str(path), "--target", "rtx", "--fix", str(out)]) == 0
    assert "nothing fixed" in capsys.readouterr().out
    assert [item.op_type for item in onnx.load(out).graph.node] == ["Relu"]


def test_bad_input(tmp_path, capsys):
    path = tmp_path / "given.onnx"
    path.write_bytes(capitals().SerializeToString())
    assert main(["check", str(path), "--target", "rtx", "--fix", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    bundle = write_bundle(tmp_path / "tiny.krl").path
    assert main(["check", str(bundle), "--target", "rtx", "--diff"]) == 2
    assert "are for ONNX files" in capsys.readouterr().err

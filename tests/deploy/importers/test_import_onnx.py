"""Third-party ONNX classifiers: a float model of digits, made with torch's weights but without krl's hand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.graphs import constants, graph, node, run
from krl_deploy.cli import main
from krl_deploy.config import ImportConfig
from krl_deploy.importers import classifier as importing
from krl_deploy.importers import original as module
from krl_runtime import Bundle, load
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import CheckFailedError, ModelError, UsageError

LABELS = [str(digit) for digit in range(10)]


def third_party(exported, *, batch: int | str = "batch", softmax=False, reshape=False):
    """The exported network without its normalization: float input, as in a third-party file."""
    model = onnx.load(exported / "model.fp32.onnx")
    nodes = [item for item in model.graph.node if item.op_type not in ("Cast", "Mul")]
    first = next(item for item in nodes if item.op_type == "Add")
    nodes.remove(first)
    for item in nodes:
        item.input[:] = ["image" if name == first.output[0] else name for name in item.input]
    last = "logits"
    if softmax:
        nodes.append(node("Softmax", [last], "probabilities"))
        last = "probabilities"
    values = constants(model)
    if reshape:
        nodes.append(node("Reshape", [last, "shape"], "reshaped"))
        values["shape"] = np.int64([batch, 10])
        last = "reshaped"
    used = {name for item in nodes for name in item.input}
    return graph(nodes, {"image": [batch, 1, 16, 16]}, {last: None}, {k: v for k, v in values.items() if k in used})


@pytest.fixture
def options(tmp_path, digits):
    def make(model, *more):
        path = tmp_path / "third_party.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        common = ["--labels", *LABELS, "--mean", "0.3", "--std", "0.35", "--data", str(digits), "--overwrite"]
        return ["import", str(path), "-o", str(tmp_path / "a.krl"), *common, *more]

    return make


def test_a_float_model_answers_as_the_exported_one(exported, options, tmp_path, digits, capsys):
    assert main(options(third_party(exported), "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["top1"] > 0.9
    assert result["count"] == 300
    assert result["input"] == "uint8 [batch, 1, 16, 16]"
    imported = Bundle.open(tmp_path / "a.krl")
    assert imported.manifest.name == "third_party"
    assert imported.manifest.source["file"] == "third_party.onnx"
    files = sorted((digits / "val").glob("*/*.png"))[::10]
    with load(imported.path) as ours, load(exported) as theirs:
        for left, right in zip(ours(files), theirs(files), strict=True):
            np.testing.assert_allclose(left.logits, right.logits, atol=1e-4)
    assert [replay.state for replay in selftest(imported) if replay.kind == "cpu"] == ["passed"]


def test_mean_and_std_in_units_of_the_input_range(exported, options, tmp_path, capsys):
    arguments = options(third_party(exported), "--input-range", "0-255")
    for name, value in (("--mean", 0.3), ("--std", 0.35)):
        arguments[arguments.index(name) + 1] = str(value * 255)
    assert main(arguments) == 0
    assert "top-1" in capsys.readouterr().out
    preprocessing = Bundle.open(tmp_path / "a.krl").manifest.preprocessing
    assert preprocessing.mean == pytest.approx((0.3,))
    assert preprocessing.std == pytest.approx((0.35,))


def test_labels_from_a_file(exported, options, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f" kind {label} " for label in LABELS) + "\n\n", encoding="utf-8")
    arguments = options(third_party(exported))
    start = arguments.index("--labels")
    arguments[start + 1 : start + 11] = [str(names)]
    assert main(arguments) == 0
    assert Bundle.open(tmp_path / "a.krl").manifest.labels[3] == "kind 3"


def test_a_fixed_batch_is_opened(exported, options, tmp_path, capsys):
    assert main(options(third_party(exported, batch=1, reshape=True), "--json")) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert "the batch of 1 was opened" in changes
    assert Bundle.open(tmp_path / "a.krl").manifest.inputs[0].shape == ("batch", 1, 16, 16)


def test_a_softmax_goes_and_probabilities_stay(exported, options, tmp_path, capsys):
    assert main(options(third_party(exported, softmax=True), "--json")) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert "the output was read as probabilities; the last softmax was taken out" in changes
    model = onnx.load(tmp_path / "a.krl" / "model.fp32.onnx")
    assert model.graph.node[-1].op_type == "Gemm"


def mixing(batch=1):
    """Adds the largest logits of the batch to those of each image: with an open batch it is another function."""
    nodes = [
        node("Flatten", ["image"], "v"),
        node("Gemm", ["v", "w"], "z"),
        node("ReduceMax", ["z", "zero"], "m", keepdims=1),
        node("Add", ["z", "m"], "out"),
    ]
    values = {"w": np.random.default_rng(0).normal(size=(256, 10)).astype(np.float32), "zero": np.int64([0])}
    return graph(nodes, {"image": [batch, 1, 16, 16]}, {"out": None}, values)


def test_a_batch_that_cannot_be_opened_stays_fixed(options, tmp_path, capsys):
    assert main(options(mixing())) == 0
    assert "the batch stays fixed to 1; with an open one: the outputs differ" in capsys.readouterr().err
    imported = Bundle.open(tmp_path / "a.krl")
    assert imported.manifest.inputs[0].shape == (1, 1, 16, 16)
    assert [replay.state for replay in selftest(imported) if replay.kind == "cpu"] == ["passed"]
    assert main(["fp16", str(imported.path), "--accept-unmeasured"]) == 0


def test_a_larger_batch_that_cannot_be_opened_is_refused(options, tmp_path, capsys):
    assert main(options(mixing(batch=3))) == 1
    assert "an open batch differ from the file's" in capsys.readouterr().err
    assert not (tmp_path / "a.krl").exists()


def test_an_old_opset_is_raised(exported, options, tmp_path, capsys):
    nodes = [
        node("Conv", ["image", "w"], "c"),
        node("Relu", ["c"], "r"),
        node("ReduceMean", ["r"], "g", axes=[2, 3], keepdims=0),
        node("MatMul", ["g", "v"], "out"),
    ]
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(6, 1, 3, 3)).astype(np.float32), "v": rng.normal(size=(6, 10)).astype(np.float32)}
    old = graph(nodes, {"image": [1, 1, 16, 16]}, {"out": None}, values, opset=9, ir=4)
    assert main(options(old, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["opset"] == 18
    assert result["changes"][0] == "opset 9 was raised to 18"


def test_an_opset_that_cannot_be_raised_stays(exported, options, monkeypatch, capsys):
    def fail(*_):
        raise ModelError("no adapter")

    monkeypatch.setattr(module, "raise_opset", fail)
    old = graph(
        [node("Flatten", ["image"], "v"), node("MatMul", ["v", "w"], "out")],
        {"image": [1, 1, 16, 16]},
        {"out": None},
        {"w": np.random.default_rng(0).normal(size=(256, 10)).astype(np.float32)},
        opset=11,
        ir=6,
    )
    assert main(options(old, "--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["opset"] == 11
    assert "the model stays in opset 11, ONNX cannot raise it: no adapter" in captured.err


def test_weights_that_are_stored_as_integers_become_floats(options, tmp_path, digits, capsys):
    rng = np.random.default_rng(0)
    nodes = [
        node("Flatten", ["image"], "v"),
        node("DequantizeLinear", ["q", "s"], "w"),
        node("MatMul", ["v", "w"], "out"),
    ]
    values = {"q": rng.integers(-127, 128, (256, 10), dtype=np.int8), "s": np.float32(0.01)}
    model = graph(nodes, {"image": ["n", 1, 16, 16]}, {"out": None}, values)
    assert main(options(model)) == 0
    assert "the file is quantized" in capsys.readouterr().err
    imported = onnx.load(tmp_path / "a.krl" / "model.fp32.onnx")
    assert any(np.array_equal(value, values["q"] * values["s"]) for value in constants(imported).values())
    assert Bundle.open(tmp_path / "a.krl").manifest.calibration is None


def test_bad_models(tmp_path, exported, options, capsys):
    assert main(options(b"nothing of the kind")) == 2
    assert "is not an ONNX file, or is damaged" in capsys.readouterr().err
    broken = third_party(exported)
    weight = next(item for item in broken.graph.initializer if len(item.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.full(list(weight.dims), np.nan, np.float32), weight.name))
    assert main(options(broken)) == 2
    assert f"weight {weight.name} has values that are not finite" in capsys.readouterr().err
    unknown = third_party(exported)
    unknown.graph.node[0].domain = "somebody"
    unknown.opset_import.append(helper.make_opsetid("somebody", 1))
    assert main(options(unknown)) == 2
    assert "ONNX Runtime cannot open the model" in capsys.readouterr().err


def test_bad_options(exported, options, digits, tmp_path, capsys):
    arguments = options(third_party(exported))
    start = arguments.index("--labels")
    assert main([*arguments[: start + 4], *arguments[start + 11 :]]) == 2
    assert "3 labels were given (0, 1, 2 …), but the model has 10 outputs" in capsys.readouterr().err
    assert main([*arguments[: start + 10], "0", *arguments[start + 11 :]]) == 2
    assert "some labels are the same" in capsys.readouterr().err
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert main([*arguments[: start + 1], str(tmp_path / "binary"), *arguments[start + 11 :]]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err
    assert main([*arguments, "--height", "20"]) == 2
    assert "--height is 20, but the model's input is fixed to 16" in capsys.readouterr().err
    assert main([*arguments, "--mean", "0.1", "0.2"]) == 2
    assert "mean has 2 values" in capsys.readouterr().err
    assert main([*arguments[:-1]]) == 0
    assert main([*arguments[:-1]]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--golden is 0"):
        ImportConfig(tmp_path, tmp_path, (), tmp_path, golden=0)


def test_open_sizes_need_options(options, capsys):
    nodes = [node("GlobalMaxPool", ["image"], "p"), node("Flatten", ["p"], "v"), node("MatMul", ["v", "w"], "out")]
    model = graph(
        nodes, {"image": ["n", 1, "h", "w_"]}, {"out": None}, {"w": np.linspace(-1, 1, 10, dtype=np.float32)[None]}
    )
    assert main(options(model)) == 2
    assert "leaves its input's height open; give --height" in capsys.readouterr().err
    assert main(options(model, "--height", "12", "--width", "20")) == 0
    assert "[batch, 1, 12, 20]" in capsys.readouterr().out


def test_a_uint8_model_normalizes_itself(options, tmp_path, capsys):
    nodes = [node("Cast", ["image"], "f", to=TensorProto.FLOAT), node("Flatten", ["f"], "v")]
    nodes.append(node("MatMul", ["v", "w"], "out"))
    values = {"w": np.random.default_rng(0).normal(size=(256, 10)).astype(np.float32)}
    model = graph(nodes, {"image": ["n", 1, 16, 16]}, {"out": None}, values, dtypes={"image": "uint8"})
    arguments = options(model)
    assert main(arguments) == 2
    assert "takes uint8 and normalizes it itself; leave --mean and --std out" in capsys.readouterr().err
    start = arguments.index("--mean")
    assert main([*arguments[:start], *arguments[start + 4 :]]) == 0
    golden = Bundle.open(tmp_path / "a.krl").golden()
    np.testing.assert_allclose(golden["logits"], run(model, image=golden["pixels"])[0], rtol=1e-4)


def test_a_rewritten_model_whose_outputs_differ_is_refused(exported, options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importing, "class_outputs", lambda *_: np.zeros((16, 10), np.float32))
    assert main(options(third_party(exported))) == 1
    assert "the outputs differ by" in capsys.readouterr().err
    assert issubclass(CheckFailedError, Exception)
    assert not (tmp_path / "a.krl").exists()

"""The meaning of outputs: scores of the runtime against the file's own probabilities, which ONNX Runtime computes."""

from __future__ import annotations

import json
import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from _helpers.graphs import node, ops
from _helpers.third_party import LABELS, body, brought, model_of, one_by_one, read_pixels
from krl_deploy.cli import main
from krl_deploy.importers import import_onnx as importing
from krl_runtime import load
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import CheckFailedError, ModelError, UsageError

FLAT = node("Flatten", ["z"], "f")
ONE = {"one": np.float32(1), "half": np.float32(0.5)}

SOFTMAX = {
    "flatten": [node("Softmax", ["z"], "s", axis=1), node("Flatten", ["s"], "out")],
    "squeeze": [node("Softmax", ["z"], "s", axis=1), node("Squeeze", ["s", "sides"], "out")],
    "clip": [FLAT, node("Softmax", ["f"], "s"), node("Clip", ["s", "tiny", "one"], "out")],
    "casts": [
        FLAT,
        node("Cast", ["f"], "d", to=TensorProto.DOUBLE),
        node("Softmax", ["d"], "s"),
        node("Cast", ["s"], "out", to=TensorProto.FLOAT),
    ],
    "by_hand": [FLAT, node("Exp", ["f"], "e"), node("ReduceSum", ["e", "last"], "t"), node("Div", ["e", "t"], "out")],
    "by_hand_and_stable": [
        FLAT,
        node("ReduceMax", ["f"], "m", axes=[1]),
        node("Sub", ["f", "m"], "d"),
        node("Exp", ["d"], "e"),
        node("ReduceSum", ["e", "last"], "t"),
        node("Reciprocal", ["t"], "u"),
        node("Mul", ["u", "e"], "out"),
    ],
    "exp_of_log": [FLAT, node("LogSoftmax", ["f"], "l", axis=1), node("Exp", ["l"], "out")],
    "temperature": [FLAT, node("Mul", ["f", "half"], "t"), node("Softmax", ["t"], "s"), node("Identity", ["s"], "out")],
    "transposed": [
        node("Transpose", ["z"], "t", perm=[0, 2, 3, 1]),
        node("Softmax", ["t"], "s", axis=3),
        node("Reshape", ["s", "rows"], "out"),
    ],
}
LOG_SOFTMAX = {
    "one_operator": [FLAT, node("LogSoftmax", ["f"], "out", axis=1)],
    "log_of_softmax": [node("Softmax", ["z"], "s", axis=1), node("Log", ["s"], "l"), node("Flatten", ["l"], "out")],
    "less_the_log_of_the_sum": [FLAT, node("ReduceLogSumExp", ["f"], "t", axes=[1]), node("Sub", ["f", "t"], "out")],
}
SIGMOID = {
    "one_operator": [FLAT, node("Sigmoid", ["f"], "out")],
    "then_reshaped": [node("Sigmoid", ["z"], "s"), node("Reshape", ["s", "rows"], "out")],
    "by_hand": [
        FLAT,
        node("Neg", ["f"], "n"),
        node("Exp", ["n"], "e"),
        node("Add", ["e", "one"], "t"),
        node("Div", ["one", "t"], "out"),
    ],
    "by_tanh": [
        FLAT,
        node("Mul", ["f", "half"], "h"),
        node("Tanh", ["h"], "t"),
        node("Mul", ["t", "half"], "u"),
        node("Add", ["u", "half"], "out"),
    ],
}


def ending_in(tail, columns=4, **options):
    nodes, weights = body(columns=columns)
    used = {name for item in tail for name in item.input}
    constants = {
        **ONE,
        "sides": np.int64([2, 3]),
        "last": np.int64([1]),
        "rows": np.int64([-1, columns]),
        "tiny": np.float32(1e-7),
    }
    return model_of([*nodes, *tail], {**weights, **{k: v for k, v in constants.items() if k in used}}, "out", **options)


def scores(bundle, files, **options):
    """The runtime's scores of each file, in the order of the labels."""
    with load(bundle.path, require="cpu", threads=1, **options) as net:
        results = [net(file, top_k=len(net.labels)) for file in files]
        return np.array([[dict(result.top)[label] for label in net.labels] for result in results]), results


def by_hand(logits, kind):
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True) if kind == "softmax" else 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("tail", SOFTMAX)
def test_scores_are_the_files_probabilities(tail, tmp_path, colors):
    model = ending_in(SOFTMAX[tail])
    bundle, said = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels / 255).astype(np.float32))
    made, results = scores(bundle, files)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert [result.index for result in results] == expected.argmax(1).tolist()
    assert results[0].present is None
    assert "the output was read as probabilities; the last softmax was taken out" in said["changes"]
    assert not {"Softmax", "Exp", "LogSoftmax"} & set(ops(onnx.load(bundle.path / "model.fp32.onnx")))
    assert bundle.manifest.settings == {"output_kind": "logits"}


@pytest.mark.parametrize("tail", LOG_SOFTMAX)
def test_log_probabilities(tail, tmp_path, colors):
    model = ending_in(LOG_SOFTMAX[tail])
    bundle, said = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    made, _ = scores(bundle, files)
    np.testing.assert_allclose(made, np.exp(one_by_one(model, (pixels / 255).astype(np.float32))), atol=1e-5)
    assert "the output was read as log-probabilities; the last log-softmax was taken out" in said["changes"]


@pytest.mark.parametrize("tail", SIGMOID)
def test_independent_classes(tail, tmp_path, colors):
    model = ending_in(SIGMOID[tail])
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels / 255).astype(np.float32))
    assert (expected > 0.5).sum(1).std() > 0, "the images must differ in their number of labels"
    made, results = scores(bundle, files)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    for row, result in zip(expected, results, strict=True):
        assert result.present == tuple(LABELS[index] for index in np.argsort(-row) if row[index] > 0.5)
        assert result.to_dict()["present"] == list(result.present)
    assert bundle.manifest.settings == {"output_kind": "sigmoid-logits"}


@pytest.mark.parametrize("tail", [*SIGMOID, "logit"])
@pytest.mark.parametrize("labels", [("not red", "red"), ("red",)])
def test_one_output_is_the_second_of_two_classes(tail, labels, tmp_path, colors):
    nodes = [node("Flatten", ["z"], "out")] if tail == "logit" else SIGMOID[tail]
    model = ending_in(nodes, columns=1)
    bundle, said = brought(model, tmp_path, colors, labels=labels)
    files, pixels = read_pixels(colors)
    raw = one_by_one(model, (pixels / 255).astype(np.float32))
    expected = (by_hand(raw, "sigmoid") if tail == "logit" else raw)[:, 0]
    assert 0 < (expected > 0.5).mean() < 1, "both classes must occur"
    made, results = scores(bundle, files)
    assert bundle.manifest.labels == ("not red", "red")
    np.testing.assert_allclose(made[:, 1], expected, atol=1e-5)
    np.testing.assert_allclose(made[:, 0], 1 - expected, atol=1e-5)
    assert [result.label == "red" for result in results] == (expected > 0.5).tolist()
    # The accuracy counts each other folder as the first class.
    right = (expected > 0.5) == [file.parent.name == "red" for file in files]
    assert said["top1"] == pytest.approx(right.mean())


def test_a_bounded_output_that_is_no_sigmoid_stays_in_the_graph(tmp_path, colors):
    model = ending_in([FLAT, node("HardSigmoid", ["f"], "out")])
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    made, _ = scores(bundle, files)
    np.testing.assert_allclose(made, one_by_one(model, (pixels / 255).astype(np.float32)), atol=1e-5)
    assert bundle.manifest.settings == {"output_kind": "sigmoid"}
    single = ending_in([FLAT, node("HardSigmoid", ["f"], "out")], columns=1)
    bundle, _ = brought(single, tmp_path, colors, labels=("red",))
    made, _ = scores(bundle, files)
    np.testing.assert_allclose(made[:, 1:], one_by_one(single, (pixels / 255).astype(np.float32)), atol=1e-5)
    assert bundle.manifest.settings == {"output_kind": "probabilities"}


def test_a_mean_of_two_softmaxes_is_read_by_its_sum(tmp_path, colors):
    """No tensor before it is its logits, so the probabilities stay, and are not normalized again."""
    nodes, weights = body()
    more, others = body(seed=1)
    for item in more:
        item.name += "_b"
        item.input[:] = [name if name == "image" else f"{name}_b" for name in item.input]
        item.output[:] = [f"{item.output[0]}_b"]
    tail = [node("Softmax", [z], f"s{z}", axis=1) for z in ("z", "z_b")]
    tail += [node("Add", ["sz", "sz_b"], "t"), node("Mul", ["t", "half"], "u"), node("Flatten", ["u"], "out")]
    weights |= {f"{name}_b": value for name, value in others.items()}
    model = model_of([*nodes, *more, *tail], {**weights, "half": np.float32(0.5)}, "out")
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    made, _ = scores(bundle, files)
    np.testing.assert_allclose(made, one_by_one(model, (pixels / 255).astype(np.float32)), atol=1e-5)
    assert bundle.manifest.settings == {"output_kind": "probabilities"}


@pytest.mark.parametrize(
    "tail",
    [
        [FLAT, node("ArgMax", ["f"], "out", axis=1)],
        [FLAT, node("Softmax", ["f"], "s"), node("ArgMax", ["s"], "out", axis=1, keepdims=0)],
        [FLAT, node("ArgMax", ["f"], "a", axis=1), node("Cast", ["a"], "out", to=TensorProto.INT32)],
        [FLAT, helper.make_node("TopK", ["f", "two"], ["best", "out"], name="top", axis=1)],
    ],
)
def test_the_scores_that_labels_are_made_of_are_taken(tail, tmp_path, colors):
    nodes, weights = body()
    kind = TensorProto.INT32 if tail[-1].op_type == "Cast" else TensorProto.INT64
    constants = {"two": np.int64([2])} if tail[-1].op_type == "TopK" else {}
    model = model_of([*nodes, *tail], {**weights, **constants}, "out", made=kind)
    logits = model_of([*nodes, FLAT], weights, "f")
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    inputs = (pixels / 255).astype(np.float32)
    made, results = scores(bundle, files)
    np.testing.assert_allclose(made, by_hand(one_by_one(logits, inputs), "softmax"), atol=1e-5)
    assert [result.index for result in results] == one_by_one(model, inputs)[:, 0].astype(int).tolist()


def test_labels_that_nothing_says_the_scores_of_are_refused(tmp_path, colors):
    tail = [FLAT, node("Sigmoid", ["f"], "s"), node("Greater", ["s", "half"], "out")]
    model = ending_in(tail, made=TensorProto.BOOL)
    with pytest.raises(
        ModelError, match=r"output out is BOOL, made by Greater: labels, and no scores; give .* --output"
    ):
        brought(model, tmp_path, colors)
    bundle, _ = brought(model, tmp_path, colors, output="s")
    assert bundle.manifest.settings == {"output_kind": "sigmoid-logits"}


def test_several_outputs(tmp_path, colors):
    nodes, weights = body()
    tail = [FLAT, node("Softmax", ["f"], "p", axis=1), node("Flatten", ["g"], "embedding")]
    model = model_of([*nodes, *tail], weights, ["embedding", "p"])
    with pytest.raises(ModelError, match=r"has 2 outputs: embedding \['N', 16\], p \['N', 4\]; give .* as --output"):
        brought(model, tmp_path, colors)
    with pytest.raises(ModelError, match=r"makes no tensor 'scores' for --output; its outputs are: embedding, p"):
        brought(model, tmp_path, colors, output="scores")
    bundle, _ = brought(model, tmp_path, colors, output="p")
    files, pixels = read_pixels(colors)
    made, _ = scores(bundle, files)
    np.testing.assert_allclose(made, one_by_one(model, (pixels / 255).astype(np.float32), output=1), atol=1e-5)


@pytest.mark.parametrize(
    ("tail", "stated", "function"),
    [
        ([node("Flatten", ["z"], "out")], "sigmoid-logits", lambda raw: by_hand(raw, "sigmoid")),
        ([FLAT, node("Softmax", ["f"], "out")], "sigmoid", lambda raw: raw),
        ([FLAT, node("Sigmoid", ["f"], "out")], "logits", lambda raw: by_hand(raw, "softmax")),
        ([FLAT, node("Softmax", ["f"], "out")], "probabilities", lambda raw: raw),
        ([FLAT, node("LogSoftmax", ["f"], "out")], "log-probabilities", np.exp),
    ],
)
def test_the_users_word_counts(tail, stated, function, tmp_path, colors):
    model = ending_in(tail)
    bundle, _ = brought(model, tmp_path, colors, output_kind=stated)
    files, pixels = read_pixels(colors)
    made, _ = scores(bundle, files)
    np.testing.assert_allclose(made, function(one_by_one(model, (pixels / 255).astype(np.float32))), atol=1e-5)


@pytest.mark.parametrize(
    ("tail", "stated", "message"),
    [
        ([node("Flatten", ["z"], "out")], "probabilities", r"the outputs are -.*; accepted: 0 to 1"),
        ([node("Flatten", ["z"], "out")], "sigmoid", r"accepted: 0 to 1; for logits give sigmoid-logits"),
        ([node("Flatten", ["z"], "out")], "log-probabilities", "the sum of their exponentials is not 1"),
        ([FLAT, node("Sigmoid", ["f"], "out")], "probabilities", r"add up to .*; accepted: 1"),
    ],
)
def test_a_meaning_that_the_values_refute_is_refused(tail, stated, message, tmp_path, colors):
    with pytest.raises(UsageError, match=message):
        brought(ending_in(tail), tmp_path, colors, output_kind=stated)


INFINITE = {
    "logarithm of zeros": [FLAT, node("Relu", ["f"], "v"), node("Log", ["v"], "out")],
    "division by zeros": [FLAT, node("Relu", ["f"], "v"), node("Div", ["one", "v"], "out")],
    "log odds of a hard sigmoid": [
        FLAT,
        node("HardSigmoid", ["f"], "p", alpha=1.0),
        node("Sub", ["one", "p"], "q"),
        node("Div", ["p", "q"], "odds"),
        node("Log", ["odds"], "out"),
    ],
}


@pytest.mark.parametrize("tail", INFINITE)
def test_infinite_outputs_are_the_files_own(tail, tmp_path, colors):
    with pytest.raises(ModelError, match=r"the file's own outputs are infinite for \d+ of 16 images.*--output NAME"):
        brought(ending_in(INFINITE[tail]), tmp_path, colors)


def test_values_between_0_and_1_without_bounds_are_logits_with_a_warning(tmp_path, colors, caplog):
    nodes, weights = body()
    weights["w2"] *= 0.01
    weights["b2"] = np.float32([0.4, 0.5, 0.6, 0.55])
    with caplog.at_level(logging.WARNING, "krl"):
        bundle, _ = brought(model_of([*nodes, node("Flatten", ["z"], "out")], weights, "out"), tmp_path, colors)
    assert "the outputs are all between 0 and 1, but are read as logits" in caplog.text
    assert bundle.manifest.settings == {"output_kind": "logits"}


MADE = {
    "probabilities": (SOFTMAX["clip"], 4, {}),
    "log-probabilities": (LOG_SOFTMAX["log_of_softmax"], 4, {}),
    "sigmoid": (SIGMOID["one_operator"], 4, {}),
    "kept sigmoid": ([FLAT, node("HardSigmoid", ["f"], "out")], 4, {}),
    "kept probabilities": (SIGMOID["one_operator"], 1, {"labels": ("red",), "output_kind": "probabilities"}),
    "one logit": ([node("Flatten", ["z"], "out")], 1, {"labels": ("red",)}),
}


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_becomes_fp16_and_int8_and_passes_the_self_test(kind, tmp_path, colors):
    tail, columns, options = MADE[kind]
    model = ending_in(tail, columns=columns)
    bundle, _ = brought(model, tmp_path, colors, **options)
    assert main(["fp16", str(bundle.path), "--data", str(colors), "--accept-unmeasured"]) == 0
    assert main(["quantize", str(bundle.path), "--data", str(colors), "--max-drop", "100", "--accept-unmeasured"]) == 0
    replays = [replay for replay in selftest(bundle.open(bundle.path), threads=1) if replay.kind == "cpu"]
    assert [(replay.variant, replay.state) for replay in replays] == [
        (name, "passed") for name in ("fp16", "fp32", "int8")
    ]
    files, _ = read_pixels(colors)
    expected, _ = scores(bundle, files)
    made, _ = scores(bundle, files, variant="int8")
    np.testing.assert_allclose(made, expected, atol=0.25)  # INT8 of a random network


@pytest.mark.parametrize("fault", [0.1, -0.1])
def test_a_bundle_whose_predictions_differ_is_not_written(fault, tmp_path, colors, monkeypatch, capsys):
    """The fault is planted behind all checks of graphs: in the runtime's own scores."""
    from krl_runtime.pipelines import classifier

    true = classifier.scores_of
    monkeypatch.setattr(classifier, "scores_of", lambda kind, values: true(kind, values) + fault)
    file = tmp_path / "a.onnx"
    file.write_bytes(ending_in(SOFTMAX["flatten"]).SerializeToString())
    arguments = ["import", str(file), "-o", str(tmp_path / "a.krl"), "--data", str(colors), "--labels", *LABELS]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "the bundle is not written: in a batch of 1 the scores of" in said
    assert "differ from the file's by 0.1; accepted: 0.001" in said
    assert not (tmp_path / "a.krl").exists()


def test_a_bundle_that_the_runtime_cannot_run_is_not_written(tmp_path, colors, monkeypatch):
    from krl_runtime.errors import BackendError

    def fail(*_, **__):
        raise BackendError("no backend can run it")

    monkeypatch.setattr(importing, "load", fail)
    with pytest.raises(CheckFailedError, match="not written, krl-runtime cannot run it: no backend can run it"):
        brought(ending_in(SOFTMAX["flatten"]), tmp_path, colors)
    assert not (tmp_path / "third_party.krl").exists()


def test_the_command_shows_all_labels_of_a_multi_label_model(tmp_path, colors, capsys):
    from krl_runtime.cli.program import main as runtime

    model = ending_in(SIGMOID["one_operator"])
    bundle, _ = brought(model, tmp_path, colors)
    files, pixels = read_pixels(colors)
    expected = one_by_one(model, (pixels[:1] / 255).astype(np.float32))[0]
    present = [LABELS[index] for index in np.argsort(-expected) if expected[index] > 0.5]
    capsys.readouterr()
    assert runtime(["classify", str(bundle.path), str(files[0]), "--json", "--require", "cpu"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["present"] == present
    assert runtime(["classify", str(bundle.path), str(files[0]), "--require", "cpu"]) == 0
    assert (", ".join(present) or "none") in capsys.readouterr().out

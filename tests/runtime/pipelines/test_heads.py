"""Classifiers with two outputs: one run of the graph, the prediction of each head beside the other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from _helpers.bundles import LABELS, npz, write_bundle
from _helpers.two_heads import HEADS, OUTPUTS, SOURCE, both, two_outputs, write_two_heads
from krl_runtime import Bundle, BundleError, Classifier, ModelError, load
from krl_runtime.bundle import TensorSpec
from krl_runtime.cli.program import main
from krl_runtime.device.selftest import selftest
from krl_runtime.evaluation.gate import judge_predictions


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_two_heads(tmp_path / "two.krl")


@pytest.fixture
def model(bundle: Bundle) -> Classifier:
    return load(bundle.path, threads=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    values = [math.exp(float(value)) for value in logits]
    return np.array(values) / math.fsum(values)


def test_each_head_answers_as_numpy_and_plain_onnxruntime_compute_it(model: Classifier, images: list[Path]) -> None:
    session = onnxruntime.InferenceSession(two_outputs(), providers=["CPUExecutionProvider"])
    for image in images:
        pixels = model.preprocessing(image)[None]
        result = model(image)
        other = result.others["source"]
        for found, logits, labels in zip((result, other), both(pixels), (LABELS, SOURCE), strict=True):
            assert found.logits == pytest.approx(logits[0], abs=1e-5)
            assert found.label == labels[logits[0].argmax()]
            assert found.score == pytest.approx(softmax(logits[0]).max(), abs=1e-6)
        first, second = session.run(None, {"pixels": pixels})
        assert np.allclose(result.logits, first[0], atol=1e-5)
        assert np.allclose(other.logits, second[0], atol=1e-5)
    assert list(result.others) == [head.name for head in model.heads] == ["source"]


def test_the_graph_runs_once_for_both(model: Classifier, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    running, calls = model.backend.backend, []
    run = running.run
    monkeypatch.setattr(running, "run", lambda feed: calls.append(1) or run(feed))
    model(images[0])
    assert len(calls) == 1


def test_lists_batches_and_streams_have_both(model: Classifier, images: list[Path], tmp_path: Path) -> None:
    expected = [model(image, top_k=2) for image in images]
    assert all(len(result.others["source"].top) == 2 for result in expected)
    assert [result.others for result in model(images, top_k=2)] == [result.others for result in expected]
    with model.batched() as batcher:
        assert [batcher(image, top_k=2) for image in images] == expected
    assert [item.result for item in model.stream(images, top_k=2)] == expected


def test_as_json_and_as_text(model: Classifier, bundle: Bundle, images: list[Path], capsys) -> None:
    result = model(images[0])
    other = result.others["source"]
    assert result.to_dict()["others"]["source"]["logits"] == other.logits.tolist()
    assert "logits" not in result.to_dict(logits=False)["others"]["source"]
    assert str(result).endswith(f"; source: {other}")
    assert hash(result) == hash(model(images[0]))
    assert main(["classify", str(bundle.path), str(images[0]), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert found["others"] == {"source": other.to_dict(logits=False)}
    assert main(["classify", str(bundle.path), str(images[0])]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[-1] == "source"
    assert table[2].endswith(f"{other.label} {other.score:.1%}")
    assert main(["info", str(bundle.path)]) == 0
    assert "labels of source  3: red, green, blue" in capsys.readouterr().out


def test_a_model_with_one_head_answers_as_before(tmp_path: Path, images: list[Path]) -> None:
    result = load(write_bundle(tmp_path / "one.krl").path, threads=1)(images[0])
    assert result.others == {}
    assert set(result.to_dict()) == {"label", "index", "score", "top", "known", "logits"}


def test_a_second_head_that_is_not_finite_gives_no_answer(tmp_path: Path, images: list[Path]) -> None:
    broken = {"model.fp32.onnx": two_outputs(source_shift=math.inf)}
    bundle = write_two_heads(tmp_path / "broken.krl", contents=broken)
    with pytest.raises(ModelError, match="logits that are not finite"):
        load(bundle.path, variant="fp32", threads=1)(images[0])


def head(**changes: Any) -> list[dict[str, Any]]:
    return [{**HEADS[0], **changes}]


@pytest.mark.parametrize(
    "heads",
    [
        None,
        "source",
        [],
        ["source"],
        [None],
        {"source": HEADS[0]},
        head(labels=["red", "green"]),
        head(labels=[*SOURCE, "white"]),
        head(labels=[]),
        head(labels="rgb"),
        head(labels=["red", "green", 3]),
        head(name=""),
        head(name=7),
        head(output="logits"),
        head(output="other"),
        head(kind="sigmoid"),
        [{"name": "source", "labels": list(SOURCE)}],
        [*HEADS, *HEADS],
    ],
)
def test_a_forged_manifest_is_refused(tmp_path: Path, heads: Any, capsys) -> None:
    bundle = write_two_heads(tmp_path / "forged.krl", settings={"heads": heads})
    with pytest.raises(BundleError, match=r"forged\.krl is no classifier: heads"):
        load(bundle.path)
    assert main(["classify", str(bundle.path), "none.png"]) == 2
    assert main(["info", str(bundle.path)]) == 0  # which shows what is there, and why it is not used
    assert "heads" in capsys.readouterr().out


def test_outputs_that_no_head_is_for_and_heads_without_an_output_are_refused(tmp_path: Path) -> None:
    more = (*OUTPUTS, TensorSpec("third", "float32", ("batch", 2)))
    wide = (OUTPUTS[0], TensorSpec("source_logits", "float32", ("batch", 3, 1)))
    for number, outputs in enumerate((more, OUTPUTS[:1], wide, OUTPUTS[::-1])):
        bundle = write_two_heads(tmp_path / f"{number}.krl", outputs=outputs)
        with pytest.raises(BundleError, match="is no classifier"):
            load(bundle.path)
    double = [HEADS[0], {"name": "source", "output": "third", "labels": ["a", "b"]}]
    with pytest.raises(BundleError, match="is no classifier: heads"):
        load(write_two_heads(tmp_path / "double.krl", outputs=more, settings={"heads": double}).path)


@pytest.mark.parametrize("shift", [0.0, 3.0, 30.0])
def test_the_self_test_judges_the_second_output_too(tmp_path: Path, shift: float) -> None:
    """A second head that is off, in its values or in its classes, fails where the first is as it was."""
    wrong = {} if shift == 0 else {"model.int8.cpu.onnx": two_outputs(0.02, source_shift=shift)}
    bundle = write_two_heads(tmp_path / "two.krl", contents=wrong)
    replays = {item.variant: item for item in selftest(bundle, threads=1, require="cpu")}
    assert {name: item.state for name, item in replays.items()} == {
        "fp32": "passed",
        "fp16": "passed",
        "int8": "failed" if shift else "passed",
    }
    if shift:
        assert "the largest error" in replays["int8"].cause
        assert replays["int8"].max_abs_error == pytest.approx(shift + 0.02, abs=0.01)
    if shift == 30.0:
        assert "top-1 agrees on" in replays["int8"].cause


def test_golden_outputs_of_another_width_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((3, 3, 12, 10), np.uint8)
    logits, source = both(pixels)
    golden = npz(pixels=pixels, logits=logits, source_logits=source[:, :2])
    bundle = write_two_heads(tmp_path / "two.krl", contents={"golden.npz": golden})
    with pytest.raises(BundleError, match="golden file"):
        selftest(bundle, threads=1, require="cpu")


def test_the_gate_refuses_a_variant_whose_second_head_predicts_otherwise() -> None:
    good = {"count": 1000, "agreement": 1.0, "drop": 0.0}
    assert judge_predictions("int8", **good, further={"source": 0.95}).passes
    verdict = judge_predictions("int8", **good, further={"source": 0.949})
    assert verdict.reason == "94.9% of the predictions of the head source agree with FP32, required: 95.0%"
    assert verdict.limits["least_further_agreement"] == 0.95
    assert not judge_predictions("fp16", **good, further={"source": 0.98}).passes
    assert judge_predictions("int8", **good, max_drop=5.0, further={"source": 0.85}).passes  # three times as much
    assert not judge_predictions("int8", **good, max_drop=5.0, further={"source": 0.84}).passes
    assert "least_further_agreement" not in judge_predictions("fp16", **good).limits

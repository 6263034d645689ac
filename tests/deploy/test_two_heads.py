"""A run with two heads, from its export over FP16 and INT8 to an engine: both outputs stay, and both are judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from _helpers.digits import LABELS, pixels_of
from _helpers.labelings import PARITY, train_two_heads, write_parity
from _helpers.required import real_rtx
from krl_deploy import build_engine, check, export, fp16, quantize
from krl_deploy.data.arrays import apart, side_by_side
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_deploy.exporters import parity as parity_of_export
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.tensorrt.builder import parse
from krl_runtime import Bundle, load
from krl_runtime.backends.tensorrt.calls import tensorrt_logger
from krl_runtime.bundle.heads import further_heads
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import CheckFailedError
from krl_train.run import Run

NAMES = ["logits", "source_logits"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    return train_two_heads(tmp_path_factory.mktemp("two") / "run", digits)


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parity(tmp_path_factory.mktemp("labelings") / "parity", per_class=120, val_per_class=120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, run: Run, digits: Path, parity: Path) -> Path:
    """A bundle with all variants, which no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "two.krl"
    export(run=run.path, out=path, data=digits)
    fp16(bundle=path, data=parity)
    quantize(bundle=path, data=parity)
    return path


@pytest.fixture
def bundle(tmp_path: Path, made: Path) -> Bundle:
    shutil.copytree(made, tmp_path / "two.krl")
    return Bundle.open(tmp_path / "two.krl")


def session_of(bundle: Bundle, file: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(bundle.read(file), providers=["CPUExecutionProvider"])


def test_the_bundle_has_two_outputs_with_labels_of_their_own(made: Path, run: Run, digits: Path) -> None:
    manifest = Bundle.open(made).manifest
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [
        ("logits", ("batch", 2)),
        ("source_logits", ("batch", 10)),
    ]
    assert manifest.labels == PARITY
    (head,) = further_heads(manifest)
    assert (head.name, head.labels) == ("source", LABELS)
    parity = manifest.evidence["fp32"]["parity"]
    assert parity["max_abs_error"] < 1e-4
    assert parity["agreement"] == 1.0


def test_both_outputs_are_torchs(made: Path, run: Run, digits: Path) -> None:
    """By plain ONNX Runtime, beside torch's layers one by one."""
    import torch

    bundle = Bundle.open(made)
    pixels, _ = pixels_of(digits / "val")
    found = session_of(bundle, "model.fp32.onnx").run(NAMES, {"pixels": pixels[:40]})
    network = run.network()
    with torch.inference_mode():
        rows = network.backbone(network.normalized(torch.from_numpy(pixels[:40]))).numpy()
    assert np.allclose(found[0], rows[:, :2], atol=1e-4)
    assert np.allclose(found[1], rows[:, 2:], atol=1e-4)
    golden = bundle.golden()
    again = session_of(bundle, "model.fp32.onnx").run(NAMES, {"pixels": golden["pixels"]})
    assert all(np.allclose(golden[name], values, atol=1e-4) for name, values in zip(NAMES, again, strict=True))


def test_every_file_has_both_outputs_and_they_are_close(made: Path, digits: Path) -> None:
    bundle = Bundle.open(made)
    pixels, names = pixels_of(digits / "val")
    reference = session_of(bundle, "model.fp32.onnx").run(NAMES, {"pixels": pixels})
    assert (reference[0].argmax(1) == names % 2).mean() > 0.9
    assert (reference[1].argmax(1) == names).mean() > 0.9
    files = {file for variant in bundle.manifest.variants.values() for file in variant.files}
    assert files >= {"model.fp16.onnx", "model.int8.onnx", "model.int8.cpu.onnx"}
    for file in files - {"model.int8.onnx"}:  # which not every ONNX Runtime computes
        made_outputs = session_of(bundle, file).run(NAMES, {"pixels": pixels})
        for values, wanted in zip(made_outputs, reference, strict=True):
            assert (values.argmax(1) == wanted.argmax(1)).mean() >= 0.95
            assert np.abs(values - wanted).max() < 0.25 * np.abs(wanted).max()
    graph = onnx.load_from_string(bundle.read("model.int8.onnx")).graph
    assert [value.name for value in graph.output] == NAMES
    replays = [item for item in selftest(bundle, threads=1) if item.state != "unavailable"]
    assert {item.variant for item in replays} == {"fp32", "fp16", "int8"}
    assert all(item.state == "passed" for item in replays), replays


def test_the_evidence_has_the_agreement_of_the_second_head(made: Path, digits: Path, parity: Path, capsys) -> None:
    bundle = Bundle.open(made)
    evidence = bundle.manifest.evidence
    pixels = np.stack([bundle.manifest.preprocessing(file) for file in sorted((parity / "val").glob("*/*.png"))])
    outputs = [session_of(bundle, f"model.{name}.onnx").run(NAMES, {"pixels": pixels})[1] for name in ("fp32", "fp16")]
    agreement = float((outputs[0].argmax(1) == outputs[1].argmax(1)).mean())
    assert evidence["fp16"]["scores"]["fp16"]["further"] == {"source": pytest.approx(agreement)}
    assert evidence["int8"]["scores"]["int8.cpu"]["further"]["source"] >= 0.95
    assert evidence["int8"]["limits"]["least_further_agreement"] == 0.95
    assert evidence["int8"]["scores"]["int8.cpu"]["top1"] is not None  # the first head is judged by labels


def _tally(first: np.ndarray, second: np.ndarray, bundle: Bundle, parity: Path, truth: np.ndarray):
    """Return task and scores of a variant beside a reference whose outputs are one for the right class."""
    task = task_of(bundle, EvaluationOptions(parity, 100, 0.2, "refuse"))
    reference = np.concatenate([np.eye(2)[truth], np.eye(10)[np.arange(len(truth)) % 10]], axis=1).astype(np.float32)
    scores = {}
    for name, outputs in (("fp32", reference), ("int8", np.concatenate([first, second], axis=1).astype(np.float32))):
        tally = task.tally()
        for start in range(0, len(truth), 64):
            part = slice(start, start + 64)
            tally.add(outputs[part], reference[part], truth[part])
        scores[name] = tally.score()
    return task, scores


@pytest.mark.parametrize(("moved", "passes"), [(0, True), (20, True), (21, False)])
def test_a_variant_whose_second_head_predicts_otherwise_is_refused(bundle, parity, moved: int, passes: bool) -> None:
    """Of 400 images 20 are 5 %, which INT8 may predict otherwise; the first head stays as it is."""
    truth = np.arange(400) % 2
    second = np.eye(10)[np.arange(400) % 10]
    second[:moved] = np.roll(second[:moved], 1, axis=1)
    task, scores = _tally(np.eye(2)[truth], second, bundle, parity, truth)
    score = scores["int8"]
    assert (score.top1, score.agreement, score.drop) == (1.0, 1.0, 0.0)
    assert score.further == {"source": pytest.approx(1 - moved / 400)}
    assert score.max_error == (1.0 if moved else 0.0)
    verdict = task.verdict("int8", 400, scores)
    assert verdict.passes == passes, verdict.reason
    assert (task.why_refused("int8", score) is None) == passes
    assert ("head source" in verdict.reason) != passes
    assert "head source: agreement int8" in task.remark(400, scores)


def test_the_export_is_refused_where_the_second_output_is_wrong(run, tmp_path, digits, monkeypatch) -> None:
    outputs_of = parity_of_export.outputs_of

    def wrong(session, inputs, **options):
        values = outputs_of(session, inputs, **options).copy()
        values[:, 5] += 0.5  # a class of the source
        return values

    monkeypatch.setattr(parity_of_export, "outputs_of", wrong)
    with pytest.raises(CheckFailedError, match=r"the exported graph's logits differ from torch's by 0\.5"):
        export(run=run.path, out=tmp_path / "wrong.krl", data=digits)
    assert not (tmp_path / "wrong.krl").exists()


def test_a_plan_of_mixed_precision_keeps_both_outputs(bundle: Bundle, parity: Path) -> None:
    quantize(bundle=bundle.path, data=parity, mixed_precision=True, budget_seconds=60)
    made = Bundle.open(bundle.path)
    assert [value.name for value in onnx.load_from_string(made.read("model.int8.onnx")).graph.output] == NAMES


@pytest.mark.parametrize("target", ["jetpack-6.2", "rtx", "tensorrt-11.4", "onnxruntime-cpu"])
def test_the_rules_accept_it(made: Path, target: str) -> None:
    assert check(model=made, target=target).ready


def test_outputs_side_by_side_are_taken_apart_again() -> None:
    parts = [np.arange(6.0).reshape(2, 3), np.arange(4.0).reshape(2, 2)]
    again = apart(side_by_side(parts), [3, 2])
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(again, parts, strict=True))
    assert apart(parts[0], [3])[0] is parts[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_rtx_builds_it_and_its_parser_keeps_both(bundle: Bundle, precision: str) -> None:
    library = real_rtx()
    found = build_engine(model=bundle.path, target="rtx", precision=precision, profile="1,4,8")
    assert found.engine in Bundle.open(bundle.path).manifest.engines
    data = bundle.read(bundle.manifest.variants[precision].file)
    builder = library.module.Builder(tensorrt_logger(library))
    network = parse(data, builder, library)
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    assert [output.name for output in outputs] == NAMES
    assert {output.dtype.name for output in outputs} == {"FLOAT"}


def test_it_answers_in_both_labelings(made: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((digits / "val").glob("*/*.png"))[::15]
    with load(made, variant="int8", threads=1) as model:
        results = model(files)
    parity = [result.label == PARITY[int(file.parent.name) % 2] for result, file in zip(results, files, strict=True)]
    names = [result.others["source"].label == file.parent.name for result, file in zip(results, files, strict=True)]
    assert np.mean(parity) > 0.8
    assert np.mean(names) > 0.8
    assert json.loads(json.dumps(results[0].to_dict()))["others"]["source"]["label"] in LABELS


def test_the_graph_splits_the_last_layer_alone(made: Path) -> None:
    graph = GraphEditor(onnx.load_from_string(Bundle.open(made).read("model.fp32.onnx")))
    makers = [graph.producers()[name] for name in NAMES]
    assert len({maker.input[0] for maker in makers}) == 1  # one layer, of both heads

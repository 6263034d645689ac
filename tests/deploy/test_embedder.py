"""A network of embeddings, from its run over FP16 and INT8 to an engine: how it is judged, and what is refused."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from _helpers.digits import pixels_of
from _helpers.required import real_rtx
from krl_deploy import build_engine, check, export, fp16, quantize
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_deploy.exporters import parity as parity_of_export
from krl_deploy.graph.files import to_bytes
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.tensorrt.builder import parse
from krl_runtime import Bundle
from krl_runtime.backends.tensorrt.calls import tensorrt_logger
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import CheckFailedError, UsageError
from krl_train import fit
from krl_train.run import Run

SIZE = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    out = tmp_path_factory.mktemp("embedding") / "run"
    made = {"model": "resnet8", "embedding_dim": SIZE, "epochs": 5, "batch_size": 40, "size": (16,)}
    fit(task="embedding", data=digits, out=out, device="cpu", precision="fp32", **made)
    return Run.open(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, run: Run, digits: Path) -> Path:
    """A bundle with all variants, which no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "embedder.krl"
    export(run=run.path, out=path)
    fp16(bundle=path, data=digits)
    quantize(bundle=path, data=digits)
    return path


@pytest.fixture
def bundle(tmp_path: Path, made: Path) -> Bundle:
    shutil.copytree(made, tmp_path / "embedder.krl")
    return Bundle.open(tmp_path / "embedder.krl")


def embeddings(bundle: Bundle, file: str, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(bundle.read(file), providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {"pixels": pixels})[0]


def recall(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return the share whose nearest other image is of the same class, by scikit-learn."""
    found = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors).kneighbors(return_distance=False)[:, 0]
    return float((labels[found] == labels).mean())


def test_the_bundle_has_embeddings_and_no_labels(made: Path, run: Run, digits: Path) -> None:
    manifest = Bundle.open(made).manifest
    assert (manifest.task, manifest.labels) == ("embedding", ())
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [("embeddings", ("batch", SIZE))]
    assert manifest.settings == {"embedding": {"size": SIZE}}
    parity = manifest.evidence["fp32"]["parity"]
    assert parity["max_abs_error"] < 1e-5
    assert parity["agreement"] == 1.0
    pixels, _ = pixels_of(digits / "val", manifest.preprocessing)
    with torch.inference_mode():
        expected = run.module()(torch.from_numpy(pixels)).numpy()
    made_of = embeddings(Bundle.open(made), "model.fp32.onnx", pixels)
    np.testing.assert_allclose(made_of, expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_variants_are_judged_by_the_drop_of_recall(made: Path, digits: Path, precision: str) -> None:
    bundle = Bundle.open(made)
    pixels, labels = pixels_of(digits / "val", bundle.manifest.preprocessing)
    evidence = bundle.manifest.evidence[precision]
    variant = bundle.manifest.variants[precision]
    file = variant.cpu_file or variant.file
    name = file.removeprefix("model.").removesuffix(".onnx")
    score = evidence["scores"][name]
    assert score["counted"] == len(labels) == 300
    whole, lower = (recall(embeddings(bundle, each, pixels), labels) for each in ("model.fp32.onnx", file))
    assert score["drop"] == pytest.approx(100 * (whole - lower), abs=1e-6)
    assert evidence["limits"]["max_drop_points"] == 1.0
    assert evidence["drop_points"] <= 1.0
    lengths = np.linalg.norm(embeddings(bundle, file, pixels), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)


def test_the_self_test_replays_every_variant(made: Path) -> None:
    replays = [item for item in selftest(Bundle.open(made), threads=1) if item.state != "unavailable"]
    assert {item.state for item in replays} == {"passed"}
    assert {item.variant for item in replays} == {"fp32", "fp16", "int8"}


@pytest.fixture
def images(tmp_path: Path, digits: Path) -> Path:
    """A folder of images without classes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for file in sorted(digits.glob("*/*/*.png")):
        shutil.copy(file, folder / f"{file.parent.parent.name}-{file.parent.name}-{file.name}")
    return folder


@pytest.fixture
def plain(tmp_path: Path, run: Run) -> Path:
    export(run=run.path, out=tmp_path / "plain.krl")
    return tmp_path / "plain.krl"


def test_without_labels_each_image_has_to_find_itself(plain: Path, images: Path) -> None:
    quantize(bundle=plain, data=images)
    evidence = Bundle.open(plain).manifest.evidence["int8"]
    assert evidence["limits"]["least_agreement"] == 0.95
    assert evidence["drop_points"] is None
    assert min(score["agreement"] for score in evidence["scores"].values()) >= 0.95
    with pytest.raises(
        CheckFailedError, match="no labels that two of them share, so that --max-drop cannot be checked"
    ):
        quantize(bundle=plain, data=images, max_drop=1.0)


def test_too_few_images_judge_nothing(plain: Path, images: Path) -> None:
    with pytest.raises(CheckFailedError, match="50 images are too few to judge by, required: 100, or embeddings with"):
        quantize(bundle=plain, data=images, val_limit=50)
    assert "int8" not in Bundle.open(plain).manifest.variants
    quantize(bundle=plain, data=images, val_limit=50, accept_unmeasured=True)
    assert "int8" in Bundle.open(plain).manifest.variants


def _scores(bundle: Bundle, digits: Path, outputs: np.ndarray, reference: np.ndarray, truth: np.ndarray):
    """Return the task, and the scores of a variant beside its reference."""
    task = task_of(bundle, EvaluationOptions(digits, 100, 0.2, "refuse"))
    scores = {}
    for name, values in (("fp32", reference), ("int8", outputs)):
        tally = task.tally()
        for start in range(0, len(truth), 64):
            part = slice(start, start + 64)
            tally.add(values[part], reference[part], truth[part])
        scores[name] = tally.score()
    return task, scores


def test_a_planted_bad_variant_is_refused_with_labels_and_without(bundle: Bundle, digits: Path) -> None:
    """Ranges of a hundredth clip nearly everything, as a wrong calibration does."""
    pixels, labels = pixels_of(digits / "val", bundle.manifest.preprocessing)
    ranges: dict[str, tuple[float, float]] = defaultdict(lambda: (-0.01, 0.01))
    bad = to_tensorrt(onnx.load_from_string(bundle.read("model.fp32.onnx")), ranges).model
    session = onnxruntime.InferenceSession(to_bytes(bad), providers=["CPUExecutionProvider"])
    outputs = session.run(["embeddings"], {"pixels": pixels})[0]
    reference = embeddings(bundle, "model.fp32.onnx", pixels)
    assert recall(outputs, labels) < recall(reference, labels) - 0.05  # the fault is one
    task, scores = _scores(bundle, digits, outputs, reference, labels)
    verdict = task.verdict("int8", len(labels), scores)
    assert not verdict.passes
    assert "points of recall@1, accepted: 1" in verdict.reason
    assert task.why_refused("int8", scores["int8"])
    task, scores = _scores(bundle, digits, outputs, reference, np.full(len(labels), -1))
    verdict = task.verdict("int8", len(labels), scores)
    assert "of the images are nearest to their own embedding of FP32, required: 95.0%" in verdict.reason
    assert "of the embeddings are nearest to those of fp32" in (task.why_refused("int8", scores["int8"]) or "")


def test_labels_of_chance_do_not_open_the_gate(bundle: Bundle, digits: Path) -> None:
    """Where FP32 finds no class better than chance, a drop of 0 says nothing, and agreement counts."""
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(400, SIZE)).astype(np.float32)
    outputs = generator.permutation(reference)
    task, scores = _scores(bundle, digits, outputs, reference, generator.integers(0, 4, 400))
    verdict = task.verdict("int8", 400, scores)
    assert "where FP32 is not better than chance" in verdict.reason


def test_the_export_is_refused_where_the_graph_is_not_torchs(run: Run, tmp_path: Path, monkeypatch) -> None:
    outputs_of = parity_of_export.outputs_of

    def wrong(session, inputs, **options):
        values = outputs_of(session, inputs, **options).copy()
        values[:, 0] += 0.5
        return values

    monkeypatch.setattr(parity_of_export, "outputs_of", wrong)
    with pytest.raises(CheckFailedError, match=r"the exported graph's embeddings differ from torch's by 0\.5"):
        export(run=run.path, out=tmp_path / "wrong.krl")
    assert not (tmp_path / "wrong.krl").exists()


def test_options_of_classifiers_are_refused(run: Run, plain: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--none-of-these is for classifiers"):
        export(run=run.path, out=tmp_path / "none.krl", none_of_these=0.05)
    with pytest.raises(UsageError, match="--min-psnr is for bundles that make images"):
        quantize(bundle=plain, data=digits, min_psnr=30.0)


def test_a_plan_of_mixed_precision_keeps_the_output(plain: Path, digits: Path) -> None:
    quantize(bundle=plain, data=digits, mixed_precision=True, budget_seconds=60)
    graph = onnx.load_from_string(Bundle.open(plain).read("model.int8.onnx")).graph
    assert [value.name for value in graph.output] == ["embeddings"]


@pytest.mark.parametrize("target", ["jetpack-6.2", "rtx", "tensorrt-11.4", "onnxruntime-cpu"])
def test_the_rules_accept_it(made: Path, target: str) -> None:
    assert check(model=made, target=target).ready


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_rtx_parses_and_builds_it(bundle: Bundle, precision: str) -> None:
    library = real_rtx()
    found = build_engine(model=bundle.path, target="rtx", precision=precision, profile="1,4,8")
    assert found.engine in Bundle.open(bundle.path).manifest.engines
    builder = library.module.Builder(tensorrt_logger(library))
    network = parse(bundle.read(bundle.manifest.variants[precision].file), builder, library)
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    assert [(output.name, output.dtype.name) for output in outputs] == [("embeddings", "FLOAT")]

"""The commands of a device on an embedding network: evaluate, selftest, bench, tune, info."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import TinyNet
from _helpers.embeddings import SIZE, colored, embed, write_embedder, write_folder
from krl_runtime import Bundle, DataError
from krl_runtime.cli.program import main
from krl_runtime.device.evaluate import evaluate
from krl_runtime.device.selftest import selftest
from krl_runtime.device.tune import lost, tune
from krl_runtime.images.preprocessing import Preprocessing

pytestmark = pytest.mark.usefixtures("without_openvino")

SPEC = Preprocessing(12, 12)


@pytest.fixture
def embedder(tmp_path: Path) -> Bundle:
    return write_embedder(tmp_path / "tiny.krl", variants=("fp32", "fp16", "int8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of six classes whose colors overlap."""
    generator = np.random.default_rng(3)
    for name, color in zip("abcdef", generator.integers(60, 190, (6, 3)), strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(15):
            image = colored(1, color + generator.integers(-40, 41, 3), seed=number)[0]
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{number:02}.png")
    return tmp_path / "photos"


def expected(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(folder.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    return embed(TinyNet.random(SPEC, SIZE), pixels), np.array([file.parent.name for file in files])


def test_the_figures_are_those_of_scikit_learn(embedder: Bundle, folder: Path):
    from sklearn.neighbors import KNeighborsClassifier

    found = evaluate(embedder, folder, backends=("cpu",))
    vectors, labels = expected(folder)
    first = []
    for index in range(len(labels)):
        rest = np.arange(len(labels)) != index
        nearest = KNeighborsClassifier(1, metric="cosine").fit(vectors[rest], labels[rest])
        first.append(nearest.predict(vectors[index : index + 1])[0] == labels[index])
    row = found.rows[0]
    assert row.metrics["recall_at_1"] == pytest.approx(np.mean(first))
    assert 0.3 < np.mean(first) < 1
    assert (row.metrics["count"], row.metrics["counted"], row.metrics["drop"], row.metrics["agreement"]) == (
        90,
        90,
        0,
        1,
    )
    assert row.metrics["better_than_chance"]
    assert found.reference == "fp32 on cpu"
    int8 = found.rows[2].metrics
    assert int8["mean_cosine"] < 1
    assert int8["drop"] == pytest.approx(100 * (row.metrics["recall_at_1"] - int8["recall_at_1"]))
    assert found.faults(max(0.0, int8["drop"])) == []


def test_without_labels_there_is_agreement_alone(embedder: Bundle, folder: Path):
    found = evaluate(embedder, folder / "a", backends=("cpu",))
    assert "recall_at_1" not in found.rows[0].metrics
    assert found.remark == "no label is on two images, so that only agreement is measured"
    assert found.faults(1.0) == [
        "the truth is not known, so that there is no drop; give images with labels, two of each"
    ]
    with pytest.raises(DataError):
        evaluate(embedder, folder / "none", backends=("cpu",))


def test_the_table(embedder: Bundle, folder: Path, capsys):
    assert main(["evaluate", str(embedder.path), str(folder), "--backend", "cpu", "--max-drop", "50"]) == 0
    out = capsys.readouterr().out
    header = next(line for line in out.splitlines() if line.startswith("variant"))
    for column in ("recall@1", "recall@5", "MAP@R", "drop in points", "agreement"):
        assert column in header
    assert "top-1" not in out


def test_selftest_replays_the_golden_inputs(embedder: Bundle):
    replays = [item for item in selftest(embedder) if item.state != "unavailable"]
    assert {item.variant: item.state for item in replays} == dict.fromkeys(("fp32", "fp16", "int8"), "passed")
    assert {item.agreement for item in replays} == {1.0}
    assert {item.psnr for item in replays} == {None}


def test_selftest_refuses_another_network(tmp_path: Path):
    other = write_embedder(tmp_path / "other.krl", seed=8)
    bundle = write_embedder(tmp_path / "a.krl", contents={"model.fp32.onnx": other.read("model.fp32.onnx")})
    (failed,) = (item for item in selftest(bundle) if item.state != "unavailable")
    assert failed.state == "failed"
    assert "of the embeddings are nearest to the golden one of their input, required: " in failed.cause
    assert "top-1" not in failed.cause


def test_bench_has_its_stages(embedder: Bundle, capsys):
    assert main(["bench", str(embedder.path), "--iterations", "3", "--warmup", "0", "--batch", "2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values["stages_ms"]) == ["preprocess", "inference", "postprocess"]


def test_tune_goes_by_recall_and_else_by_agreement(embedder: Bundle):
    scores = {
        "fp32": {"recall_at_1": 0.9, "agreement": 1.0},
        "int8.cpu": {"recall_at_1": 0.87, "agreement": 0.97},
        "fp16": {"recall_at_1": None, "agreement": 0.995},
    }
    bundle = embedder.update({}, evidence={name: {"scores": scores} for name in ("fp16", "int8")})
    assert lost(bundle.manifest, "int8", "cpu") == pytest.approx(3.0)
    assert lost(bundle.manifest, "fp16", "cpu") == pytest.approx(0.5)
    best = tune(bundle, threads=(1,), rounds=1, write=False).measurements
    ruled_out = next(item for item in best if item.variant == "int8" and item.kind == "cpu")
    assert ruled_out.cause == "variant int8 drops by 3.00 points by the bundle's evidence, accepted: 1"
    assert best[0].cause == ""


def test_info(embedder: Bundle, capsys):
    evidence = {"int8": {"recall_drop_points": 0.25, "scores": {"fp32": {"recall_at_1": 0.9}}}}
    embedder.update({}, evidence=evidence)
    assert main(["info", str(embedder.path)]) == 0
    out = capsys.readouterr().out
    assert "embedding: size 6" in out
    assert "drop of 0.25 points of recall@1; fp32 90.00%" in out


def test_many_images_are_decoded_once(embedder: Bundle, tmp_path: Path, monkeypatch):
    write_folder(tmp_path / "data")
    counted = []
    decode = Preprocessing.__call__
    monkeypatch.setattr(Preprocessing, "__call__", lambda *args, **more: counted.append(1) or decode(*args, **more))
    evaluate(embedder, tmp_path / "data", backends=("cpu",))
    assert len(counted) == 12

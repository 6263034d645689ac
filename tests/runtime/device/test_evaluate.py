"""``krl-runtime evaluate``: figures against numpy and plain ONNX Runtime, and what stops it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import krl_runtime
from _helpers.bundles import LABELS, TinyNet, write_bundle
from krl_runtime import Bundle
from krl_runtime.bundle.sidecar import device_folder, read_evaluations
from krl_runtime.cli.program import main
from krl_runtime.device.evaluate import evaluate
from krl_runtime.errors import BackendError, DataError, UsageError
from krl_runtime.images.preprocessing import Preprocessing

CPU: Any = ("cpu",)
SPEC = Preprocessing(12, 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in the folders of their classes; the network's prediction has no part in that."""
    rng = np.random.default_rng(3)
    for index in range(40):
        label = tmp_path / "photos" / LABELS[index % 4]
        label.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (1, 1, 3)) * np.ones((12, 10, 1)) + rng.normal(0, 20, (12, 10, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(label / f"{index:02}.png")
    return tmp_path / "photos"


def expected(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of the network in numpy, and the labels."""
    files = sorted(folder.rglob("*.png"), key=lambda file: (LABELS.index(file.parent.name), file.name))
    pixels = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    labels = np.array([LABELS.index(file.parent.name) for file in files])
    return TinyNet.random(SPEC, len(LABELS)).logits(pixels), labels


def test_the_figures_are_those_of_numpy(bundle: Bundle, folder: Path) -> None:
    found = evaluate(bundle, folder, backends=CPU)
    logits, labels = expected(folder)
    predictions = logits.argmax(1)
    metrics = found.rows[0].metrics
    assert [(row.variant, row.kind, row.state) for row in found.rows] == [
        (name, "cpu", "measured") for name in ("fp32", "fp16", "int8")
    ]
    assert metrics["correct"] == (predictions == labels).sum()
    assert metrics["top1"] == pytest.approx((predictions == labels).mean())
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (labels, predictions), 1)
    assert metrics["confusion"] == confusion.tolist()
    assert metrics["recall"] == pytest.approx(dict(zip(LABELS, np.diag(confusion) / confusion.sum(1), strict=True)))
    assert metrics["count"] == 40
    assert found.reference == "fp32 on cpu"
    assert found.rows[2].size_bytes == (bundle.path / "model.int8.cpu.onnx").stat().st_size
    assert all(row.latency_ms is not None and row.latency_ms > 0 for row in found.rows)


def test_images_that_are_none_of_the_classes_are_counted(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits, labels = expected(folder)
    powers = np.exp(logits.astype(np.float64))
    scores = (powers / powers.sum(1, keepdims=True)).max(1)
    least = float(np.sort(scores)[9:11].mean())  # ten of forty
    path = write_bundle(tmp_path / "careful.krl", settings={"least_score": least}).path
    assert main(["evaluate", str(path), str(folder), "--backend", "cpu", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["rows"][0]["metrics"]
    accepted = scores >= least
    assert metrics["refused"] == pytest.approx(0.25)
    assert metrics["top1_of_known"] == pytest.approx((logits.argmax(1) == labels)[accepted].mean())
    assert metrics["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert main(["evaluate", str(path), str(folder), "--backend", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "none of these  top-1 of the rest" in shown
    assert "25.00%" in shown


def test_top_5_is_that_of_numpy(tmp_path: Path) -> None:
    names = tuple("abcdefgh")
    bundle = write_bundle(tmp_path / "eight.krl", labels=names)
    rng = np.random.default_rng(0)
    hits = 0
    for index in range(32):
        pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        place = tmp_path / "photos" / names[index % 8] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
        logits = TinyNet.random(SPEC, 8).logits(pixels.transpose(2, 0, 1)[None])[0]
        hits += index % 8 in np.argsort(-logits)[:5]
    assert evaluate(bundle, tmp_path / "photos", backends=CPU).rows[0].metrics["top5"] == hits / 32


def test_a_variant_that_is_worse_drops_and_its_limit_is_a_check(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = TinyNet.random(SPEC, len(LABELS), seed=5).onnx()
    bundle = write_bundle(tmp_path / "worse.krl", variants=("fp32", "int8"), contents={"model.int8.cpu.onnx": other})
    logits, labels = expected(folder)
    session = ort.InferenceSession(other)
    files = sorted(folder.rglob("*.png"), key=lambda file: (LABELS.index(file.parent.name), file.name))
    pixels = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    (worse,) = session.run(None, {"pixels": pixels})
    drop = 100 * ((logits.argmax(1) == labels).mean() - (worse.argmax(1) == labels).mean())
    found = evaluate(bundle, folder, backends=CPU)
    assert found.rows[1].metrics["drop"] == pytest.approx(drop)
    assert found.rows[1].metrics["agreement"] == pytest.approx((logits.argmax(1) == worse.argmax(1)).mean())
    assert drop > 1
    command = ["evaluate", str(bundle.path), str(folder), "--backend", "cpu", "--variant", "int8"]
    assert main([*command, "--max-drop", "100"]) == 0
    assert main([*command, "--max-drop", "1"]) == 1
    assert f"int8 on cpu drops by {drop:.3g} points, accepted: 1" in capsys.readouterr().err


def test_without_the_truth_a_limit_is_not_kept(bundle: Bundle, images: list[Path]) -> None:
    found = evaluate(bundle, images[0].parent, backends=CPU)
    assert "top1" not in found.rows[0].metrics
    assert found.rows[1].metrics["agreement"] == 1.0
    (fault,) = found.faults(100)
    assert "the truth is not known" in fault


def test_where_fp32_fails_there_is_no_drop(tmp_path: Path, folder: Path) -> None:
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "int8"), contents={"model.fp32.onnx": b"no graph"})
    found = evaluate(bundle, folder, backends=CPU)
    assert found.reference == ""
    assert [row.state for row in found.rows] == ["failed", "measured"]
    assert "top1" in found.rows[1].metrics
    assert "drop" not in found.rows[1].metrics
    faults = found.faults(100)
    assert faults[0].startswith("fp32 on cpu failed")
    assert faults[1] == "fp32 was not measured, so that there is no drop"


def test_classes_that_the_model_does_not_have_are_said(
    bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cat").rename(folder / "zebra")
    assert main(["evaluate", str(bundle.path), str(folder), "--backend", "cpu"]) == 0
    assert "classes that the model does not have: zebra" in capsys.readouterr().out


def test_what_was_measured_is_kept_beside_the_bundle(
    bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(bundle.path), str(folder), "--backend", "cpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (kept,) = read_evaluations(bundle.path).values()
    assert kept == {name: value for name, value in shown.items() if name not in ("max_drop", "faults")}
    assert kept["manifest"] == bundle.manifest.digest
    evaluate(bundle, folder, backends=CPU)
    assert len(read_evaluations(bundle.path)) == 1  # of the same data
    evaluate(bundle, folder, limit=8, backends=CPU)
    assert len(read_evaluations(bundle.path)) == 2


def test_kept_measurements_that_were_changed_are_skipped(
    bundle: Bundle, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(bundle, folder, limit=8, backends=CPU)
    assert len(read_evaluations(bundle.path)) == 1
    file = device_folder(bundle.path) / "evaluations.json"
    file.write_bytes(file.read_bytes().replace(b'"cpu"', b'"gpu"', 1))
    with caplog.at_level(logging.WARNING, "krl"):
        assert read_evaluations(bundle.path) == {}
    assert "measure again" in caplog.text


def test_what_cannot_be_kept_is_a_warning(bundle: Bundle, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    device_folder(bundle.path).write_bytes(b"")  # a file where the folder should be
    with caplog.at_level(logging.WARNING, "krl"):
        assert evaluate(bundle, folder, backends=CPU).rows[0].state == "measured"
    assert "the evaluation is not kept" in caplog.text


def test_what_is_not_here_has_its_reason(bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(bundle.path), str(folder), "--backend", "tensorrt", "cpu"]) == 0
    assert "not here: tensorrt (the bundle has no TensorRT engine)" in capsys.readouterr().out
    with pytest.raises(BackendError, match=r"nothing can run bundle .* here: fp32 on tensorrt"):
        evaluate(bundle, folder, backends=("tensorrt",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}"], "give a folder of images after the bundle"),
        (["{bundle}", "nowhere"], "data folder nowhere does not exist"),
        (["{bundle}", "digits"], "krl-train unpack --data digits"),
        (["{bundle}", "{folder}", "--variant", "int4"], "has no variant 'int4'; it has: fp16, fp32, int8"),
        (["{bundle}", "{folder}", "--split", "val", "--limit", "0"], "0"),
    ],
)
def test_bad_arguments_are_named(
    bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [item.format(bundle=bundle.path, folder=folder) for item in arguments]
    try:
        code = main(["evaluate", *given])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_unreadable_images_are_refused_or_skipped(bundle: Bundle, folder: Path) -> None:
    (folder / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        evaluate(bundle, folder, backends=CPU)
    assert evaluate(bundle, folder, backends=CPU, on_bad_image="skip").rows[0].metrics["count"] == 40


def test_a_generator_takes_no_images(tmp_path: Path, bundle: Bundle) -> None:
    forged = write_bundle(
        tmp_path / "g.krl", task="generation", settings={"latent": {"size": 4, "distribution": "normal"}}
    )
    with pytest.raises(krl_runtime.BundleError):
        evaluate(forged, tmp_path)


def test_the_split_of_a_folder(bundle: Bundle, folder: Path) -> None:
    whole = folder.with_name("split")
    for part, keep in (("train", 0), ("val", 1)):
        for file in sorted(folder.rglob("*.png")):
            if int(file.stem) // 4 % 2 == keep:
                place = whole / part / file.parent.name / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read_bytes())
    counts = {
        split: evaluate(bundle, whole, split=split, backends=CPU).rows[0].metrics["count"]
        for split in ("auto", "train", "val", "all")
    }
    assert counts == {"auto": 20, "train": 20, "val": 20, "all": 40}
    with pytest.raises(DataError, match="unknown split"):
        evaluate(bundle, whole, split="test", backends=CPU)
    with pytest.raises(UsageError, match="limit is 0"):
        evaluate(bundle, whole, limit=0)


def test_several_labels_are_measured_as_scikit_learn_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    settings = {"output_kind": "sigmoid-logits"}
    other = TinyNet.random(SPEC, len(LABELS), seed=5).onnx()
    bundle = write_bundle(
        tmp_path / "m.krl", variants=("fp32", "int8"), settings=settings, contents={"model.int8.cpu.onnx": other}
    )
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (50, 12, 10, 3), dtype=np.uint8)
    truth = rng.random((50, 4)) < 0.4
    lines = ["image,labels"]
    for number, (image, has) in enumerate(zip(pixels, truth, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
        lines.append(f"{number:02}.png,{'|'.join(name for name, each in zip(LABELS, has, strict=True) if each)}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    found = evaluate(bundle, tmp_path / "list.csv", backends=CPU)
    logits = TinyNet.random(SPEC, 4).logits(pixels.transpose(0, 3, 1, 2))
    (worse,) = ort.InferenceSession(other).run(None, {"pixels": pixels.transpose(0, 3, 1, 2)})
    quality, lower = (metrics.average_precision_score(truth, each, average="macro") for each in (logits, worse))
    measured = found.rows[0].metrics
    assert measured["map"] == pytest.approx(quality, abs=1e-6)
    assert measured["f1_macro"] == pytest.approx(metrics.f1_score(truth, logits > 0, average="macro"), abs=1e-6)
    assert found.rows[1].metrics["drop"] == pytest.approx(100 * (quality - lower), abs=1e-4)
    assert main(["evaluate", str(bundle.path), str(tmp_path / "list.csv"), "--backend", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "mAP" in shown
    assert "F1 of label" in shown

"""Bundles of multi-label classifiers: what they say of themselves, and what the gate judges them by."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import krl_deploy
import krl_runtime
import krl_train
from _helpers.images import make_folder
from _helpers.lists import PLACES, write_labeled_list
from krl_deploy.verbs import VariantResult
from krl_runtime.bundle import Bundle
from krl_runtime.device.selftest import selftest
from krl_runtime.images.labeled import open_data, truth_of, with_label_indices

LABELS = tuple(PLACES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labeled_list(tmp_path_factory.mktemp("list"), {"train": 120, "val": 120})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    options = {"epochs": 10, "batch_size": 16, "device": "cpu", "augment": False}
    run = krl_train.fit(model="dscnn-0.25", data=str(data), out=out / "run", **options).run
    return Path(krl_deploy.export(run=run, out=out / "m.krl").bundle)


@pytest.fixture(scope="module")
def quantized(exported: Path, data: Path) -> VariantResult:
    return krl_deploy.quantize(bundle=exported, data=data, max_drop=5, max_recall_drop=60)


def validation(data: Path) -> tuple[list[Path], np.ndarray]:
    """Return the validation images and their labels, read here by hand."""
    rows = [line.split(",") for line in data.read_text().splitlines()[1:]]
    chosen = [(data.parent / name, labels.split("|")) for name, labels, split in rows if split == "val"]
    return [path for path, _ in chosen], np.array([[label in labels for label in LABELS] for _, labels in chosen])


def outputs(bundle: Path, file: str, images: list[Path]) -> np.ndarray:
    opened = Bundle.open(bundle)
    session = ort.InferenceSession((bundle / file).read_bytes(), providers=["CPUExecutionProvider"])
    pixels = np.stack([opened.manifest.preprocessing(path) for path in images])
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def test_a_bundle_says_that_its_labels_are_independent(exported: Path, data: Path) -> None:
    manifest = Bundle.open(exported).manifest
    assert manifest.settings == {"output_kind": "sigmoid-logits"}
    assert manifest.labels == LABELS
    images, _ = validation(data)
    logits = outputs(exported, "model.fp32.onnx", images[:20])
    with krl_runtime.load(exported) as model:
        results = model([Image.open(path) for path in images[:20]])
    for result, row in zip(results, logits, strict=True):
        assert set(result.present) == {label for label, value in zip(LABELS, row, strict=True) if value > 0}
        assert result.to_dict()["present"] == list(result.present)
    assert {len(result.present) for result in results} >= {0, 1, 2}


def test_the_gate_judges_the_drop_of_map(quantized: VariantResult, exported: Path, data: Path) -> None:
    images, truth = validation(data)
    fp32 = outputs(exported, "model.fp32.onnx", images)
    expected = average_precision_score(truth, fp32)
    assert quantized.scores["fp32"]["map"] == pytest.approx(expected, abs=1e-5)
    cpu = outputs(exported, "model.int8.cpu.onnx", images)
    found = quantized.scores["int8.cpu"]
    assert found["map"] == pytest.approx(average_precision_score(truth, cpu), abs=0.02)  # INT8 of another order of sums
    assert found["drop"] == pytest.approx(100 * (quantized.scores["fp32"]["map"] - found["map"]))
    assert found["drop_error"] > 0
    assert "top1" not in found
    assert "mAP" in quantized.text
    assert "F1 of label" in quantized.text
    evidence = Bundle.open(exported).manifest.evidence["int8"]
    f1 = f1_score(truth, fp32 > 0, average=None)
    shown = {name: round(value["fp32"], 5) for name, value in evidence["f1"].items()}
    assert shown == pytest.approx({label: round(value, 5) for label, value in zip(LABELS, f1, strict=True)}, abs=1e-4)
    with krl_runtime.load(exported) as model:
        replays = selftest(model.bundle)
    assert {item.state for item in replays} <= {"passed", "unavailable"}


def test_without_labels_there_is_agreement(exported: Path, data: Path, tmp_path: Path) -> None:
    found = krl_deploy.fp16(bundle=exported, data=data.parent / "images", val_fraction=0.6)
    assert found.scores["fp16"]["map"] is None
    assert found.scores["fp16"]["agreement"] > 0.9


def translated(data: Path, *, multi_label: bool = True) -> list[list[int]]:
    folder = open_data(data, on_bad="refuse")
    images = with_label_indices(folder.split("all"), folder, LABELS, multi_label=multi_label)
    return truth_of(images, len(LABELS) if multi_label else None).tolist()


def write(root: Path, lines: str) -> Path:
    for name in "abc":
        Image.new("L", (8, 8), ord(name)).save(root / f"{name}.png")
    (root / "list.csv").write_text(lines)
    return root / "list.csv"


def test_labels_are_matched_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write(tmp_path, "image,top,other,bottom\na.png,1,1,0\nb.png,0,1,0\nc.png,1,0,1\n")
    with caplog.at_level(logging.WARNING, "krl"):
        assert translated(data) == [[0, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert "has labels that the model does not: other; they are left out" in caplog.text


def test_lists_without_a_known_label_have_no_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write(tmp_path, "image,labels\na.png,x\nb.png,\nc.png,x|y\n")
    with caplog.at_level(logging.WARNING, "krl"):
        assert translated(data) == [[-1, -1, -1]] * 3
    assert "only agreement is measured" in caplog.text


def test_images_of_a_class_have_its_label_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", ("bottom", "top"), count=1)
    assert translated(folder) == [[1, 0, 0], [0, 0, 1]]
    listed = write(tmp_path, "image,label\na.png,top\nb.png,right\nc.png,top\n")
    assert translated(listed) == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert translated(listed, multi_label=False) == [2, 1, 2]


def test_several_labels_say_nothing_of_a_model_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write(tmp_path, "image,labels\na.png,top\nb.png,\nc.png,top|right\n")
    with caplog.at_level(logging.WARNING, "krl"):
        assert translated(data, multi_label=False) == [-1, -1, -1]
    assert "predicts one class for each" in caplog.text


def test_an_imported_file_of_several_labels_is_measured_by_map(exported: Path, data: Path, tmp_path: Path) -> None:
    images, truth = validation(data)
    found = krl_deploy.import_onnx(
        model=exported / "model.fp32.onnx",
        out=tmp_path / "i.krl",
        data=data,
        labels=LABELS,
        output_kind="sigmoid-logits",
    )
    assert found.details["map"] == pytest.approx(
        average_precision_score(truth, outputs(exported, "model.fp32.onnx", images))
    )
    assert "top1" not in found.details

"""Classifiers whose images have several labels: what is minimized, measured, refused and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from _helpers.images import make_split_folder
from _helpers.lists import PLACES, write_labeled_list
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.folders import ImageFile
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.cli import main
from krl_train.config import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    FitConfig,
    JointConfig,
    LoopConfig,
    OptimConfig,
)
from krl_train.data import PixelSet, open_source
from krl_train.evaluation.evaluate import evaluate
from krl_train.run import Run
from krl_train.tasks import Batch, label_loss
from krl_train.tasks.cross_entropy import binary_cross_entropy
from krl_train.training.balance import class_weights
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=8, batch_size=16, device="cpu", precision="fp32")
RGB8 = Preprocessing(8, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labeled_list(tmp_path_factory.mktemp("list"), {"train": 120, "val": 60})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    return fit(config(data, tmp_path_factory.mktemp("run") / "run"))


def config(data: Path, out: Path, **changes) -> FitConfig:
    augment = AugmentConfig(augment=False)
    base = FitConfig(model="resnet8", data=DataConfig(data=str(data)), out=out, loop=LOOP, augment=augment)
    return replace(base, **changes)


def answers(run: Run, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels of the validation images, read here by hand."""
    rows = [line.split(",") for line in data.read_text().splitlines()[1:]]
    chosen = [(data.parent / name, labels.split("|")) for name, labels, split in rows if split == "val"]
    truth = np.array([[label in labels for label in PLACES] for _, labels in chosen])
    pixels = torch.from_numpy(np.stack([run.record.preprocessing(path) for path, _ in chosen]))
    with torch.no_grad():
        return run.network()(pixels).numpy(), truth


def test_a_run_of_several_labels_says_how_well_it_finds_them(run: Run, data: Path) -> None:
    metrics, record = run.record.metrics, run.record
    assert (record.output_kind, record.multi_label, record.labels) == ("sigmoid-logits", True, tuple(PLACES))
    logits, truth = answers(run, data)
    assert metrics["map"] == pytest.approx(average_precision_score(truth, logits), abs=1e-5)
    assert metrics["f1_macro"] == pytest.approx(f1_score(truth, logits > 0, average="macro"), abs=1e-5)
    loss = np.logaddexp(0, -np.where(truth, logits, -logits)).mean()
    assert metrics["loss"] == pytest.approx(loss, abs=1e-4)
    assert metrics["map"] > 0.8
    assert metrics["map"] == max(entry["val_map"] for entry in record.history), "the best epoch is kept"
    assert Run.open(run.path).record == record
    assert "top1" not in metrics
    assert metrics["labels"]["top"]["images"] == truth[:, 2].sum()


def test_a_run_is_measured_on_another_list(run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = evaluate(EvaluateConfig(run=run.path, device="cpu"))
    assert found["map"] == run.record.metrics["map"]
    assert (found["split"], found["trained_images"]) == ("val", 0)
    other = write_labeled_list(tmp_path / "other", {"val": 40}, seed=9)
    other.write_text(other.read_text().replace("|top", "").replace("top", ""))
    assert main(["evaluate", str(run.path), "--data", str(other), "--device", "cpu"]) == 0
    assert "no image has top: not part of the mean" in capsys.readouterr().out
    other.write_text(other.read_text().replace("bottom", "high"))
    with pytest.raises(DataError, match=r"classes that run .* does not know: high"):
        evaluate(EvaluateConfig(run=run.path, device="cpu", data=DataConfig(data=str(other))))


def test_a_folder_of_classes_does_not_measure_several_labels(run: Run, tmp_path: Path, data: Path) -> None:
    folder = make_split_folder(tmp_path / "classes", classes=("bottom", "top"))
    with pytest.raises(DataError, match=r"predicts any number of labels, and .* has one class .* column 'labels'"):
        evaluate(EvaluateConfig(run=run.path, device="cpu", data=DataConfig(data=str(folder))))
    one = fit(config(folder, tmp_path / "one", loop=replace(LOOP, epochs=1)))
    with pytest.raises(DataError, match=r"predicts one class for each image, and .* has any number of labels"):
        evaluate(EvaluateConfig(run=one.path, device="cpu", data=DataConfig(data=str(data))))


def test_a_stopped_run_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    changes = {"loop": replace(LOOP, epochs=3, balance="weights"), "augment": AugmentConfig(mixup=0.4)}
    whole = fit(config(data, tmp_path / "whole", **changes))
    asked = config(data, tmp_path / "run", **changes)
    with stopped_at_checkpoint(2), pytest.raises(KeyboardInterrupt):
        fit(asked)
    assert fit(replace(asked, resume=True)).record.weights_sha256 == whole.record.weights_sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": OptimConfig(label_smoothing=0.1)}, "--label-smoothing needs one class for each image"),
        ({"loop": replace(LOOP, balance="sampling")}, "--balance sampling needs one class for each image"),
    ],
)
def test_options_for_one_class_are_refused(data: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(config(data, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_loss_is_the_binary_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)), rng.integers(0, 2, (5, 3))
    weights = np.array([2.0, 0.5, 1.0])
    batch = Batch(torch.zeros(5), torch.from_numpy(labels).to(torch.int8), torch.arange(5), 0)

    def by_hand(targets: np.ndarray) -> float:
        sigmoid = 1 / (1 + np.exp(-logits))
        return float(-(weights * targets * np.log(sigmoid) + (1 - targets) * np.log(1 - sigmoid)).mean())

    given = torch.from_numpy(logits), torch.from_numpy(weights)
    assert float(label_loss(given[0], batch, 0.0, given[1])) == pytest.approx(by_hand(labels))
    other = np.roll(labels, 1, axis=0)
    mixed = replace(batch, partners=torch.from_numpy(other).to(torch.int8), share=0.7)
    assert float(label_loss(given[0], mixed, 0.0, given[1])) == pytest.approx(by_hand(0.7 * labels + 0.3 * other))


def test_rare_labels_weigh_more_where_they_are_present(data: Path) -> None:
    source = open_source(DataConfig(data=str(data)))
    assert source.multi_label
    train = source.read("train", RGB8)
    assert train.labels.shape == (120, 3)
    having = train.labels.sum(0).double()
    weights = class_weights(train, replace(LOOP, balance="weights"))
    assert weights is not None
    assert weights.tolist() == pytest.approx(((120 - having) / having).tolist())
    assert class_weights(train, LOOP) is None


def test_labels_of_images_as_a_table(tmp_path: Path, data: Path) -> None:
    files = sorted((data.parent / "images").iterdir())[:3]
    images = [ImageFile(files[0], present=(2, 0)), ImageFile(files[1], present=()), ImageFile(files[2])]
    common = {"margin": 0, "on_bad": "refuse", "memory_limit": 2**20}
    made = PixelSet.from_images(images, RGB8, several=3, **common)
    assert made.labels.tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1]]
    assert made.labeled.tolist() == [True, True, False]
    other = PixelSet.from_images([replace(images[0], present=(0, 2)), *images[1:]], RGB8, several=3, **common)
    assert other.identity == made.identity
    changed = PixelSet.from_images([replace(images[0], present=(0,)), *images[1:]], RGB8, several=3, **common)
    assert changed.identity != made.identity
    with pytest.raises(DataError, match="cannot be trained on together"):
        made.joined(PixelSet.from_images(images[2:], RGB8, **common))


def test_signs_among_several_labels_are_not_mirrored(tmp_path: Path) -> None:
    data = write_labeled_list(tmp_path / "list", {"train": 10, "val": 10})
    assert not open_source(DataConfig(data=str(data))).flip, "right"
    data.write_text(data.read_text().replace("right", "7"))
    assert not open_source(DataConfig(data=str(data))).flip
    data.write_text(data.read_text().replace(",7", ",middle").replace("|7", "|middle"))
    assert open_source(DataConfig(data=str(data))).flip


def test_an_image_of_several_labels_has_no_condition_of_its_class(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = ["fit", "--task", "gan", "--model", "mlp-256-256", "--data", str(data), "--size", "8", "--epochs", "1"]
    assert main([*asked, "--condition", "labels", "--out", str(tmp_path / "gan")]) == 2
    assert "--condition labels needs one class for each image" in capsys.readouterr().err.replace("\n", " ")


def test_what_takes_one_class_of_an_image_is_refused(data: Path, tmp_path: Path) -> None:
    shots = DataConfig(data=str(data), shots=3)
    with pytest.raises(UsageError, match="--shots needs one class for each image"):
        fit(replace(config(data, tmp_path / "run"), data=shots))
    with pytest.raises(UsageError, match="--source-data needs one class for each image"):
        fit(config(data, tmp_path / "run", joint=JointConfig(source_data="digits")))
    assert not (tmp_path / "run").exists()


def test_steps_in_parts_have_the_loss_of_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(7, 3, generator=generator), torch.randint(0, 2, (7, 3), generator=generator)
    labels[2] = -1
    mean = binary_cross_entropy(logits, labels)
    parts = [(slice(0, 4), 4 / 7), (slice(4, 7), 3 / 7)]
    each = [share * binary_cross_entropy(logits[part], labels[part], whole=labels) for part, share in parts]
    torch.testing.assert_close(sum(each), mean)
    known = [0, 1, 3, 4, 5, 6]
    expected = np.logaddexp(0, -np.where(labels[known] > 0, logits[known], -logits[known])).mean()
    assert mean.item() == pytest.approx(expected, abs=1e-6)

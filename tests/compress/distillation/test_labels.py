"""Distilling classifiers whose images have several labels: teachers of every kind, losses, refusals by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import krl_deploy
from _helpers.digits import train_run, write_digits
from _helpers.lists import PLACES, write_labeled_list
from krl_compress.config import CacheConfig, DistillConfig, LossConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillation.terms import resolve_losses
from krl_compress.distillation.together import mutual
from krl_compress.teachers.strength import linear_quality
from krl_runtime.errors import KrlError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig, FitConfig, LoopConfig, OptimConfig
from krl_train.data import open_source
from krl_train.run import Run
from krl_train.tasks.cross_entropy import binary_cross_entropy
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=2, batch_size=16, device="cpu", precision="fp32")
PLAIN = AugmentConfig(augment=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labeled_list(tmp_path_factory.mktemp("list"), {"train": 80, "val": 40})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    out = tmp_path_factory.mktemp("teacher") / "run"
    loop = replace(LOOP, epochs=8)
    return fit(FitConfig(model="resnet8", data=DataConfig(data=str(data)), out=out, loop=loop, augment=PLAIN))


def config(teacher: str | Path, data: Path, out: Path, **changes) -> DistillConfig:
    common = {"data": DataConfig(data=str(data)), "loop": LOOP, "augment": PLAIN}
    return DistillConfig(teacher=(str(teacher),), student="dscnn-0.25", out=out, **{**common, **changes})


def test_a_student_learns_from_labels_and_from_each_label_of_the_teacher(
    teacher: Run, data: Path, tmp_path: Path
) -> None:
    student = distill(config(teacher.path, data, tmp_path / "s", baseline=True)).record
    assert student.output_kind == "sigmoid-logits"
    assert student.metrics["teacher"]["map"] == teacher.record.metrics["map"]
    assert {"map", "f1_macro", "labels"} <= student.metrics["baseline"].keys()
    assert {"bce", "logistic"} <= student.history[0].keys()
    mixed = distill(config(teacher.path, data, tmp_path / "mixed", augment=AugmentConfig(mixup=0.5)))
    assert mixed.record.metrics["count"] == 40


def test_the_default_counts_labels_and_teacher_alike_whatever_the_number_of_labels() -> None:
    """``logistic`` is a sum over labels, ``bce`` a mean: the gradients of both are alike for an undecided student."""
    for labels in (3, 30):
        bce, logistic = resolve_losses(LossConfig(), 0.0, several=labels)
        student, teacher = torch.zeros(4, labels, requires_grad=True), torch.full((4, labels), 20.0)
        loss = bce.weight * bce.kind.function(student, torch.ones(4, labels))
        loss.backward()
        of_labels = student.grad.clone()
        student.grad = None
        (logistic.weight * logistic.kind.function(student, teacher, **logistic.options)).backward()
        assert student.grad.sum() == pytest.approx(float(of_labels.sum()) * logistic.weight * labels, rel=1e-4)


def test_unlabeled_images_count_for_nothing_in_the_cross_entropy() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=rng)
    labels = torch.randint(0, 2, (5, 3), generator=rng)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:3], labels[:3].float())
    labels[3:] = -1
    assert binary_cross_entropy(logits, labels) == pytest.approx(float(expected))
    assert binary_cross_entropy(logits, torch.full((5, 3), -1)) == 0


def test_unlabeled_images_are_learned_from_the_teacher(teacher: Run, data: Path, tmp_path: Path) -> None:
    other = write_labeled_list(tmp_path / "other", {"x": 30}, seed=7)
    student = distill(config(teacher.path, data, tmp_path / "s", unlabeled=(other.parent / "images",)))
    assert student.record.data["unlabeled"]["count"] == 30


@pytest.mark.parametrize("name", ["ce", "kd", "dkd", "nkd", "dist", "soft_bce", "hard_label", "crd", "mlkd"])
def test_losses_of_one_class_are_refused_by_name(name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"--loss {name} is for other data: here an image can have several labels; ac"
    ):
        resolve_losses(LossConfig(loss=("bce", name)), 0.0, several=3)
    assert resolve_losses(LossConfig(loss=("ce", name) if name != "ce" else ("ce",)), 0.0)


def test_losses_of_several_labels_are_refused_by_name() -> None:
    with pytest.raises(
        UsageError, match=r"--loss bce is for other data: here each image has one class; accepted: ce, kd"
    ):
        resolve_losses(LossConfig(loss=("bce",)), 0.0)
    with pytest.raises(UsageError, match="add --loss bce, or leave adaptive out"):
        resolve_losses(LossConfig(loss=("logistic:adaptive",)), 0.0, several=3)


@pytest.mark.parametrize("loss", [("bce", "fitnet"), ("bce", "sp", "rkd"), ("bce", "logit_mse"), ("logistic",)])
def test_losses_that_need_no_class_teach(teacher: Run, data: Path, tmp_path: Path, loss: tuple[str, ...]) -> None:
    asked = config(teacher.path, data, tmp_path / "s", losses=LossConfig(loss=loss), loop=replace(LOOP, epochs=1))
    history = distill(asked).record.history
    assert set(loss) <= history[0].keys()


def test_a_stored_teacher_and_two_as_one(teacher: Run, data: Path, tmp_path: Path) -> None:
    cache = CacheConfig(cache_teacher=True, cache_dir=tmp_path / "cache")
    assert distill(config(teacher.path, data, tmp_path / "s", cache=cache)).record.metrics["count"] == 40
    with pytest.raises(UsageError, match="--cache-top-k needs one class for each image"):
        distill(config(teacher.path, data, tmp_path / "k", cache=replace(cache, cache_top_k=1)))
    both = replace(config(teacher.path, data, tmp_path / "two"), teacher=(str(teacher.path),) * 2)
    assert distill(both).record.metrics["count"] == 40
    with pytest.raises(UsageError, match="--fusion confidence needs one class for each image"):
        distill(replace(both, out=tmp_path / "three", fusion="confidence"))


def scores_file(path: Path, *, sigmoid: bool) -> Path:
    """Write a network of 3 labels: means of the image's quarters, as logits or their sigmoids."""
    head = np.random.default_rng(0).normal(size=(3 * 4, 3)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "h"], ["l" if sigmoid else "y"]),
    ]
    nodes += [helper.make_node("Sigmoid", ["l"], ["y"])] if sigmoid else []
    taken = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])
    made = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [taken], [made], [onnx.numpy_helper.from_array(head, "h")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_files_teach_alike_with_logits_and_with_their_sigmoids(data: Path, tmp_path: Path) -> None:
    students = []
    for sigmoid in (False, True):
        file = scores_file(tmp_path / f"{sigmoid}.onnx", sigmoid=sigmoid)
        students.append(distill(config(file, data, tmp_path / f"s{sigmoid}")).record)
    plain, scores = (student.metrics["teacher"] for student in students)
    assert plain["map"] == pytest.approx(scores["map"], abs=1e-6)
    assert plain["loss"] == pytest.approx(scores["loss"], abs=1e-4)
    assert students[0].history[0]["logistic"] == pytest.approx(students[1].history[0]["logistic"], rel=1e-3)


def test_a_bundle_teaches_as_its_run(teacher: Run, data: Path, tmp_path: Path) -> None:
    bundle = krl_deploy.export(run=teacher.path, out=tmp_path / "t.krl").bundle
    paths = (teacher.path, Path(bundle))
    made = [distill(config(path, data, tmp_path / f"s{index}")).record for index, path in enumerate(paths)]
    assert made[1].metrics["teacher"]["map"] == pytest.approx(made[0].metrics["teacher"]["map"], abs=1e-5)
    assert made[1].history[0]["logistic"] == pytest.approx(made[0].history[0]["logistic"], rel=1e-3)


def test_teachers_and_data_of_other_kinds_are_refused(teacher: Run, data: Path, tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "digits", per_class=4, val_per_class=4)
    one = train_run(tmp_path / "one", digits, steps=1, source=str(digits))
    with pytest.raises(UsageError, match=r"teacher .* predicts one class for each image, and .* has any number of lab"):
        distill(config(one.path, data, tmp_path / "s"))
    with pytest.raises(UsageError, match=r"teacher .* predicts any number of labels, and .* has one class for each"):
        distill(config(teacher.path, digits, tmp_path / "s"))
    with pytest.raises(KrlError, match="--label-smoothing needs one class"):
        distill(config(teacher.path, data, tmp_path / "s", optim=OptimConfig(label_smoothing=0.1)))
    assert not (tmp_path / "s").exists()


def test_networks_that_teach_each_other_need_one_class(data: Path, tmp_path: Path) -> None:
    from krl_compress.config import MutualConfig

    with pytest.raises(UsageError, match="krl-compress mutual needs one class for each image"):
        mutual(MutualConfig(peer=("resnet8", "resnet8"), out=tmp_path / "m", data=DataConfig(data=str(data))))


def test_the_yardstick_of_a_weak_teacher_is_the_map_of_a_linear_model(data: Path) -> None:
    source = open_source(DataConfig(data=str(data)))
    train, val = (source.read(split, Preprocessing(8, 8)) for split in ("train", "val"))
    assert linear_quality(train, val, len(PLACES)) > 0.9, "each label is a bright quarter"

"""A run with two heads, and its bundle, as a teacher and as the start of a student: the target's head counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from _helpers.digits import pixels_of, write_digits
from _helpers.labelings import PARITY, train_two_heads, write_parity
from krl_compress import distill
from krl_compress.teachers.loading import load_teacher, name_alike
from krl_deploy import export
from krl_runtime import Bundle
from krl_runtime.errors import UsageError
from krl_train import fit
from krl_train.models import TwoHeads
from krl_train.run import Run

SHORT = {"epochs": 1, "batch_size": 32, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parity(tmp_path_factory.mktemp("labelings") / "parity", per_class=60)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    return train_two_heads(tmp_path_factory.mktemp("two") / "run", digits)


def test_the_run_teaches_the_targets_labels(run: Run, digits: Path) -> None:
    pixels = torch.from_numpy(pixels_of(digits / "val")[0][:20])
    network = run.network()
    rows = network.backbone(network.normalized(pixels))
    teacher = load_teacher(str(run.path), pretrained=False)
    assert teacher.labels == PARITY
    assert torch.equal(teacher.network(pixels), rows[:, :2])
    turned = name_alike(teacher, ("odd", "even"), ())
    assert torch.equal(turned.network(pixels), rows[:, [1, 0]])


@pytest.mark.parametrize("form", ["run", "bundle"])
def test_a_student_learns_from_it(run: Run, digits: Path, parity: Path, tmp_path: Path, form: str) -> None:
    """The teacher's measured accuracy is that of the first output, by plain ONNX Runtime."""
    export(run=run.path, out=tmp_path / "two.krl", data=digits)
    teacher = run.path if form == "run" else tmp_path / "two.krl"
    made = distill(teacher=teacher, student="dscnn-0.25", data=str(parity), out=tmp_path / "student", **SHORT)
    student = Run.open(made.run).record
    assert student.labels == PARITY
    assert student.source_labels == ()
    bundle = Bundle.open(tmp_path / "two.krl")
    files = sorted((parity / "val").glob("*/*.png"))
    pixels = np.stack([bundle.manifest.preprocessing(file) for file in files])
    session = onnxruntime.InferenceSession(bundle.read("model.fp32.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": pixels})
    right = [PARITY[row.argmax()] == file.parent.name for row, file in zip(logits, files, strict=True)]
    assert student.metrics["teachers"][0]["top1"] == pytest.approx(np.mean(right), abs=1e-6)


def test_a_student_starts_from_the_targets_head(run: Run, parity: Path, tmp_path: Path) -> None:
    options = {**SHORT, "lr": 1e-9, "weight_decay": 0.0}
    made = distill(teacher=run.path, student=str(run.path), data=str(parity), out=tmp_path / "student", **options)
    student = Run.open(made.run)
    assert not isinstance(student.network(), TwoHeads)
    mine, theirs = student.state(), run.state()
    heads = [name for name in mine if mine[name].shape != theirs[name].shape]
    assert len(heads) == 2
    for name, values in mine.items():
        wanted = theirs[name][:2] if name in heads else theirs[name]
        if "running" not in name and "tracked" not in name:  # statistics of normalization, which go on
            assert torch.allclose(values, wanted, atol=1e-5), name


def test_a_student_with_other_labels_gets_a_new_last_layer(parity: Path, tmp_path: Path) -> None:
    """As many labels of other names: their number alone does not make them the same."""
    renamed = tmp_path / "renamed"
    shutil.copytree(parity, renamed)
    for folder in sorted(renamed.glob("*/*")):
        folder.rename(folder.parent / f"not {folder.name}")
    runs = [
        fit(data=str(data), model="dscnn-0.25", out=tmp_path / f"of {data.name}", **SHORT).run
        for data in (parity, renamed)
    ]
    options = {**SHORT, "lr": 1e-9, "weight_decay": 0.0, "keep": "last"}
    made = distill(teacher=runs[1], student=str(runs[0]), data=str(renamed), out=tmp_path / "student", **options)
    mine, theirs = Run.open(made.run).state(), Run.open(runs[0]).state()
    trained = [name for name in mine if "running" not in name and "tracked" not in name]
    unlike = [name for name in trained if not torch.allclose(mine[name], theirs[name], atol=1e-5)]
    assert {name.rpartition(".")[0] for name in unlike} == {trained[-1].rpartition(".")[0]}


def test_a_run_with_two_heads_is_not_quantized_in_training(run: Run, parity: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has two heads, and --quantize trains one; distill a float student"):
        distill(
            teacher=run.path,
            student=str(run.path),
            data=str(parity),
            quantize="int8",
            out=tmp_path / "student",
            **SHORT,
        )

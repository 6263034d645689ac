"""``krl-compress distill`` and ``prune`` of networks of embeddings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from _helpers.digits import write_digits
from krl_compress import distill, prune, search
from krl_compress.cli import main
from krl_compress.config import DistillConfig, EmbeddingStudentConfig, LossConfig
from krl_compress.distillation.distill import prepare
from krl_runtime.errors import UsageError
from krl_train import fit
from krl_train.config import DataConfig, LoopConfig
from krl_train.data import load_split
from krl_train.run import Run

SHORT = {"epochs": 4, "batch_size": 40, "device": "cpu", "precision": "fp32"}
HELD_OUT = ("8", "9")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a teacher that has not seen two of the ten classes."""
    folder = tmp_path_factory.mktemp("teacher")
    data = write_digits(folder / "digits", per_class=40, val_per_class=20)
    options = {"embedding_dim": 16, "held_out_classes": HELD_OUT, "embedding_loss": "contrastive"}
    fit(task="embedding", data=data, model="resnet8", out=folder / "run", **options, **SHORT)
    return folder / "run"


def vectors(path: Path) -> np.ndarray:
    run = Run.open(path)
    pixels, _ = load_split(run.record, "val")
    with torch.inference_mode():
        return run.module()(torch.from_numpy(pixels)).numpy()


def test_a_student_comes_to_lie_where_the_teacher_does(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    options = {**SHORT, "epochs": 8, "loss": ("contrastive", "cosine")}
    result = distill(teacher=(str(teacher),), student="dscnn-0.5", out=out, baseline=True, **options)
    record = Run.open(out).record
    assert record.task == "embedding"
    assert record.model.num_classes == 16
    assert record.data["held_out_classes"] == list(HELD_OUT)
    assert result.teachers[0]["recall_at_1"] == Run.open(teacher).record.metrics["recall_at_1"]
    assert result.baseline is not None
    assert {"recall_at_1", "map_at_r", "parameters"} <= set(result.student) & set(result.baseline)
    alike = (vectors(teacher) * vectors(out)).sum(axis=1).mean()
    alone = (vectors(teacher) * vectors(out / "baseline")).sum(axis=1).mean()
    assert alike > alone + 0.2  # without the teacher another direction is as good


def test_the_default_terms_are_the_teachers_loss_and_its_relations(teacher: Path, tmp_path: Path) -> None:
    job: Any = prepare(DistillConfig(teacher=(str(teacher),), student="resnet8", out=tmp_path / "student"))
    assert [term.name for term in job.terms] == ["contrastive", "rkd"]


def test_on_other_data_a_teachers_classes_are_held_out_where_they_are_there(teacher: Path, tmp_path: Path) -> None:
    for kind, count in (("all", 10), ("some", 9)):
        write_digits(tmp_path / kind, per_class=4, val_per_class=2)
        for name in range(count, 10):
            for split in ("train", "val"):
                shutil.rmtree(tmp_path / kind / split / str(name))
        options: Any = {"teacher": (str(teacher),), "student": "resnet8", "out": tmp_path / "student"}
        job: Any = prepare(DistillConfig(**options, data=DataConfig(data=str(tmp_path / kind))))
        trained = set(job.training.train.labels.tolist())
        assert trained == (set(range(8)) if kind == "all" else set(range(9)))


@pytest.mark.parametrize("loss", ["rkd", "sp", "pkt", "cc", "cosine"])
def test_an_embedding_of_another_size_learns_by_every_loss(loss: str, teacher: Path, tmp_path: Path) -> None:
    config = DistillConfig(
        teacher=(str(teacher),),
        student="resnet8",
        out=tmp_path / "student",
        losses=LossConfig(loss=(loss,)),
        embedding_student=EmbeddingStudentConfig(embedding_dim=8),
        loop=LoopConfig(epochs=3, batch_size=40, device="cpu", precision="fp32"),
    )
    job = prepare(config)
    made = job.train(replace(job.record, metrics={}))
    history = [epoch["loss"] for epoch in made.record.history]
    assert history[-1] < history[0]
    assert made.state()["linear.weight"].shape[0] == 8


def test_a_pruned_network_of_embeddings(teacher: Path, tmp_path: Path) -> None:
    result = prune(run=teacher, keep_channels=0.5, multiple=4, criterion="taylor", out=tmp_path / "thin", **SHORT)
    assert result.student["parameters"] < 0.6 * Run.open(teacher).record.metrics["parameters"]
    assert result.student["recall_at_1"] > 0.6  # chance is a half
    assert Run.open(tmp_path / "thin").record.task == "embedding"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "kd"), "unknown loss 'kd'"),
        (("--loss", "cosin"), "did you mean 'cosine'?"),
        (("--loss", "supcon:margin=0.5"), "the loss supcon has no margin"),
        (("--quantize", "int8"), "--quantize is for classification; the task is embedding"),
        (("--embedding-dim", "1"), "--embedding-dim is 1; accepted: 2 or more"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: tuple[str, ...], message: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "student"), "--epochs", "1")
    assert main(["distill", "--teacher", str(teacher), "--student", "resnet8", *out, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_one_teacher_that_is_a_run_is_accepted(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="embeddings are distilled from one teacher"):
        distill(teacher=(str(teacher), str(teacher)), student="resnet8", out=tmp_path / "student", **SHORT)


def test_a_search_finds_a_student_within_a_budget(teacher: Path, tmp_path: Path) -> None:
    options = {
        "architectures": "dscnn-0.5",
        "prune_teacher": False,
        "rounds": 1,
        "precisions": ("fp32", "int8"),
        "max_drop": 100.0,
    }
    found = search(teacher=str(teacher), budget=("macs=0.3M",), out=tmp_path / "search", **options, **SHORT)
    record = Run.open(found.run).record
    assert record.task == "embedding"
    assert record.metrics["macs"] <= 300_000
    assert found.details["result"]["metric"] == "recall_at_1"

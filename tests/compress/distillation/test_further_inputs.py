"""Teachers with several inputs: students of the image alone, and of the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from _helpers.further_inputs import write_list
from krl_compress import distill
from krl_compress.cli import main
from krl_compress.config import DistillConfig
from krl_compress.distillation.distill import prepare
from krl_runtime.errors import KrlError, UsageError
from krl_train import evaluate, fit
from krl_train.models.fusion import FusionNetwork
from krl_train.run import Run

SHORT: dict[str, Any] = {"batch_size": 16, "device": "cpu", "precision": "fp32", "augment": False}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_list(tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module")
def teacher(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    options = {"attributes": ("kind", "weight"), "further_images": ("other",)}
    fit(data=str(listed), model="resnet8", out=out, epochs=10, **options, **SHORT)
    return out


def test_a_student_of_the_image_alone_learns_the_teachers_answers(teacher: Path, tmp_path: Path) -> None:
    config = DistillConfig(teacher=(str(teacher),), student="resnet8", out=tmp_path / "student")
    job: Any = prepare(config)
    batch = next(_batches(job))
    answers = job.teachers[0].network
    with torch.inference_mode():
        expected = answers.eval()(batch.pixels, *batch.further)
    from krl_compress.distillers import FrozenTeacher

    assert torch.allclose(FrozenTeacher(answers)(batch), expected)
    result = distill(
        teacher=(str(teacher),), student="resnet8", out=tmp_path / "student", epochs=3, baseline=True, **SHORT
    )
    record = Run.open(tmp_path / "student").record
    assert record.inputs == ()
    assert result.teachers[0]["top1"] == Run.open(teacher).record.metrics["top1"]
    network = Run.open(tmp_path / "student").network()
    assert not isinstance(network, FusionNetwork)
    assert network(batch.pixels).shape == (len(batch.pixels), 2)
    assert evaluate(run=tmp_path / "student").metrics["top1"] == result.student["top1"]


def _batches(job: Any) -> Any:
    from krl_train.loop import BatchStream
    from krl_train.worker import Worker

    stream = BatchStream(job.training.train, job.training.augmentation, 16, 0)
    return stream.epoch(0, 0, Worker(torch.device("cpu")))


def test_a_student_of_the_same_inputs(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    distill(teacher=(str(teacher),), student="resnet8", student_inputs="same", out=out, epochs=8, **SHORT)
    student, taught = Run.open(out).record, Run.open(teacher).record
    assert student.inputs == taught.inputs
    assert student.metrics["top1"] > 0.8  # the attributes and the other image tell all, the image itself nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache-teacher",), "--cache-teacher is for classifiers of the image alone"),
        (("--mixup", "0.2"), "--mixup and --cutmix mix images"),
        (("--student-inputs", "same", "--quantize", "int8"), "--quantize is for classifiers of the image alone"),
        (("--unlabeled", "."), "--unlabeled is for classifiers of the image alone"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    options: tuple[str, ...], message: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("distill", "--teacher", str(teacher), "--student", "resnet8", "--out", str(tmp_path / "student"))
    assert main([*given, "--epochs", "1", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("prune", "TEACHER", "--keep", "0.5"), "prune takes classifiers of the image alone"),
        (("search", "--teacher", "TEACHER", "--budget", "macs=1M"), "a search has networks of the image alone"),
    ],
)
def test_what_cuts_networks_takes_the_image_alone(
    command: tuple[str, ...], message: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(teacher) if item == "TEACHER" else item for item in command]
    assert main([*given, "--out", str(tmp_path / "out"), "--epochs", "1"]) == 2
    assert f"takes several inputs, and {message}" in capsys.readouterr().err


def test_the_same_inputs_need_a_teacher_that_has_several(listed: Path, tmp_path: Path) -> None:
    fit(data=str(listed), model="resnet8", out=tmp_path / "run", epochs=1, **SHORT)
    with pytest.raises(UsageError, match="--student-inputs same is for a teacher with several inputs"):
        distill(
            teacher=(str(tmp_path / "run"),),
            student="resnet8",
            student_inputs="same",
            out=tmp_path / "student",
            **SHORT,
        )


def test_other_data_needs_the_columns(teacher: Path, tmp_path: Path) -> None:
    plain = write_list(tmp_path, columns=False)
    with pytest.raises(KrlError, match="kind"):
        distill(teacher=(str(teacher),), student="resnet8", data=str(plain), out=tmp_path / "student", **SHORT)


def test_descriptors_are_of_images_of_the_teachers_size(listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(data=str(listed), model="resnet8", out=out, epochs=1, descriptors=("color-histogram",), **SHORT)
    with pytest.raises(UsageError, match="the teacher takes descriptors of images of 3x8x8"):
        distill(teacher=(str(out),), student="resnet8", size=(16,), out=tmp_path / "student", epochs=1, **SHORT)
    distill(teacher=(str(out),), student="resnet8", out=tmp_path / "student", epochs=1, **SHORT)

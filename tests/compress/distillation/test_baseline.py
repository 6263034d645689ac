"""Teachers that are too weak, and students that are worse than without a teacher, are named."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from krl_compress.config import DistillConfig, LossConfig, QuantizationConfig
from krl_compress.distillation.classification import prepare
from krl_compress.distillation.distill import distill
from krl_compress.distillation.job import Job, carry_out
from krl_compress.teachers.strength import answers_quality
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig, FitConfig, InputConfig, LoopConfig
from krl_train.data import PixelSet
from krl_train.models import Network, build_model
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=1, batch_size=64, device="cpu", precision="fp32")


@dataclass
class _PlannedJob(Job):
    """A job that trains nothing: its figures are given."""

    student: float = 0.0
    alone: float = 0.0
    teacher: float = 0.0

    def measure_teachers(self) -> list[dict[str, Any]]:
        return [{"top1": self.teacher}]

    def quality(self, metrics: Any) -> tuple[float, str]:
        return metrics["top1"], f"{100 * metrics['top1']:.1f} %"

    def measure(self, network: torch.nn.Module) -> dict[str, Any]:
        raise NotImplementedError

    def metric(self) -> tuple[str, str]:
        raise NotImplementedError

    def training_losses(self, network: torch.nn.Module) -> Iterator[torch.Tensor]:
        raise NotImplementedError

    def train_alone(self, record: RunRecord, out: Path) -> Run:
        return self._write(record, out, self.alone)

    def train(self, record: RunRecord) -> Run:
        return self._write(record, self.config.out, self.student)

    def _write(self, record: RunRecord, out: Path, top1: float) -> Run:
        network = Network(build_model("resnet8", 2, 3), record.preprocessing)
        metrics = {**record.metrics, "top1": top1}
        return Run.write(out, replace(record, metrics=metrics), network.get_submodule("backbone").state_dict())


def _carry_out(folder: Path, student: float, alone: float, teacher: float) -> None:
    record = RunRecord(
        task="classification",
        model=ModelSpec("resnet8", 2, 3),
        preprocessing=Preprocessing(16, 16),
        labels=("a", "b"),
        command="krl-compress distill",
        configuration={},
        seed=0,
        data={},
    )
    config = DistillConfig(teacher=("runs/large",), student="resnet8", out=folder / "student", baseline=True)
    carry_out(_PlannedJob(config, record, None, student=student, alone=alone, teacher=teacher))


def test_a_student_below_its_baseline_is_named_with_the_command_that_exports_the_baseline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _carry_out(tmp_path, student=0.8, alone=0.9, teacher=0.95)
    (line,) = [item.getMessage() for item in caplog.records if item.levelno == logging.WARNING]
    assert "the student has 80.0 %, and without the teacher 90.0 %" in line
    assert f"krl-deploy export {tmp_path / 'student' / 'baseline'} -o NAME.krl" in line
    assert "krl-compress study" in line


def test_a_teacher_that_is_no_better_is_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _carry_out(tmp_path, student=0.8, alone=0.9, teacher=0.9)
    (line,) = [item.getMessage() for item in caplog.records if item.levelno == logging.WARNING]
    assert "no teacher is better than that" in line


@pytest.mark.parametrize("student", [0.9, 0.95])
def test_a_student_that_is_as_good_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture, student: float) -> None:
    _carry_out(tmp_path, student=student, alone=0.9, teacher=0.99)
    assert not [item for item in caplog.records if item.levelno == logging.WARNING]


def test_a_weak_teacher_is_named_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataConfig(data="digits", limit=320, val_limit=100)
    weak = fit(FitConfig(model="dscnn-0.25", out=tmp_path / "weak", data=data, loop=LOOP))
    caplog.clear()
    asked = DistillConfig(teacher=(str(weak.path),), student="dscnn-0.25", out=tmp_path / "student", data=data)
    student = distill(replace(asked, loop=replace(LOOP, epochs=2)))
    lines = [item.getMessage() for item in caplog.records]
    (warned,) = [number for number, line in enumerate(lines) if "it is too weak to help" in line]
    assert str(weak.path) in lines[warned]
    assert warned < next(number for number, line in enumerate(lines) if line.startswith("10 steps are too few"))
    first, second = student.record.history
    teacher, mine = (100 * (1 - top1) + 0.5 for top1 in (weak.record.metrics["top1"], first["val_top1"]))
    assert first["teacher_weight"] == 1
    assert second["teacher_weight"] == pytest.approx(min(1.0, max(0.0, 2 * (1 - teacher / mine))), abs=1e-6)


def test_a_good_teacher_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataConfig(data="digits", limit=640, val_limit=200)
    good = fit(FitConfig(model="resnet8", out=tmp_path / "good", data=data, loop=replace(LOOP, epochs=12)))
    assert good.record.metrics["top1"] > 0.96
    asked = DistillConfig(teacher=(str(good.path),), student="dscnn-0.25", out=tmp_path / "student", data=data)
    distill(replace(asked, loop=LOOP))
    assert not any("too weak" in item.getMessage() for item in caplog.records)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder, data = tmp_path_factory.mktemp("teachers"), DataConfig(data="digits", limit=320, val_limit=100)
    asked = FitConfig(model="dscnn-0.25", out=folder, data=data, loop=replace(LOOP, epochs=3))
    runs = [fit(replace(asked, out=folder / str(seed), loop=replace(asked.loop, seed=seed))) for seed in range(2)]
    return runs[0], runs[1]


def _teaching(config: DistillConfig) -> tuple[float, list[dict[str, Any]], PixelSet]:
    job: Any = prepare(config)
    measured = job.measure_teachers()
    return job.teaching_quality, measured, job.labeled.val


def test_what_counts_of_several_teachers_is_what_they_answer_as_one(weak: tuple[Run, Run], tmp_path: Path) -> None:
    data = DataConfig(data="digits", limit=320, val_limit=100)
    teachers = tuple(str(run.path) for run in weak)
    asked = DistillConfig(teacher=teachers, student="dscnn-0.25", out=tmp_path / "student", data=data, loop=LOOP)
    found, measured, val = _teaching(asked)
    pixels = val.pixels(torch.arange(len(val)).numpy())
    with torch.no_grad():
        logits = [run.network().eval()(pixels) for run in weak]
    expected = float(((logits[0] + logits[1]).argmax(1) == val.labels).float().mean())
    assert expected != max(each["top1"] for each in measured)  # else the test would say nothing
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_counts_of_a_teacher_is_its_answer_to_what_the_student_sees(weak: tuple[Run, Run], tmp_path: Path) -> None:
    data, teacher = DataConfig(data="digits", limit=320, val_limit=100), weak[0]
    asked = DistillConfig(teacher=(str(teacher.path),), student="dscnn-0.25", out=tmp_path / "student", data=data)
    found, measured, val = _teaching(replace(asked, input=InputConfig(size=(4, 4)), loop=LOOP))
    side = teacher.record.preprocessing.height
    pixels = val.pixels(torch.arange(len(val)).numpy())
    assert pixels.shape[2:] == (4, 4)
    enlarged = F.interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = float((teacher.network().eval()(enlarged).argmax(1) == val.labels).float().mean())
    assert expected != measured[0]["top1"]  # else the test would say nothing
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_weak_teacher_does_not_teach_a_student_that_starts_better(
    weak: tuple[Run, Run], tmp_path: Path, quantize: Any
) -> None:
    data = DataConfig(data="digits", limit=640, val_limit=100)
    good = fit(FitConfig(model="dscnn-0.5", out=tmp_path / "good", data=data, loop=replace(LOOP, epochs=12)))
    assert good.record.metrics["top1"] > weak[0].record.metrics["top1"] + 0.1
    asked = DistillConfig(teacher=(str(weak[0].path),), student=str(good.path), out=tmp_path / "student", data=data)
    student = distill(replace(asked, loop=LOOP, quantization=QuantizationConfig(quantize)))
    assert student.record.history[0]["teacher_weight"] == 0
    given = replace(asked, out=tmp_path / "given", losses=LossConfig(loss=("ce", "kd")), loop=LOOP)
    assert "teacher_weight" not in distill(given).record.history[0]


def test_top1_of_answers_leaves_the_margin_out() -> None:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 1, 6, 6), generator=random, dtype=torch.uint8)
    labels = torch.arange(300) % 2
    pixels[:, 0, 1, 1] = (labels * 200).to(torch.uint8)
    labels[:30] = 1 - labels[:30]
    images = PixelSet(pixels.numpy(), labels.tolist(), margin=1)

    def answers(batch: Any) -> torch.Tensor:
        corner = batch.pixels[:, 0, 0, 0].float()
        return torch.stack([100 - corner, corner - 100], 1)

    assert answers_quality(answers, images, torch.device("cpu")) == pytest.approx(0.9)


def test_a_weak_teacher_is_named_once_where_a_student_in_floating_point_comes_first(
    weak: tuple[Run, Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataConfig(data="digits", limit=320, val_limit=100)
    asked = DistillConfig(teacher=(str(weak[0].path),), student="dscnn-0.25", out=tmp_path / "student", data=data)
    distill(replace(asked, loop=LOOP, quantization=QuantizationConfig("int8", 1)))
    assert len([item for item in caplog.records if "too weak to help" in item.getMessage()]) == 1


def test_a_teacher_that_no_loss_looks_at_is_not_called_weak(
    weak: tuple[Run, Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataConfig(data="digits", limit=320, val_limit=100)
    asked = DistillConfig(teacher=(str(weak[0].path),), student="dscnn-0.25", out=tmp_path / "student", data=data)
    for losses, named in ((LossConfig(), True), (LossConfig(loss=("ce",)), False)):
        caplog.clear()
        _teaching(replace(asked, losses=losses, loop=LOOP))
        assert any("too weak to help" in item.getMessage() for item in caplog.records) == named

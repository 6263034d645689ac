"""Teachers that are too weak, and students that are worse than without a teacher, are named."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from krl_compress.config import DistillConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillation.job import Job, carry_out
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig, FitConfig, LoopConfig
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
    carry_out(_PlannedJob(config, record, student=student, alone=alone, teacher=teacher))


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

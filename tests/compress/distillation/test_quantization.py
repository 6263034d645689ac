"""Distilling a student that computes as its INT8 graph will."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from krl_compress.cli import main
from krl_compress.config import DistillConfig, LossConfig, QuantizationConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillation.quantization import gentle
from krl_runtime.errors import RunError, UsageError
from krl_train.config import DataConfig, EvaluateConfig, FitConfig, LoopConfig, OptimConfig, TransferConfig
from krl_train.evaluation.evaluate import evaluate
from krl_train.models.quantized import FakeQuantized
from krl_train.run import Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=1, batch_size=50, device="cpu", precision="fp32")
DIGITS = DataConfig(data="digits", limit=400, val_limit=200)
INT8 = QuantizationConfig("int8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    loop = replace(LOOP, epochs=6)
    return {
        "teacher": fit(FitConfig(model="resnet20", out=folder / "teacher", data=DIGITS, loop=loop)),
        "student": fit(FitConfig(model="resnet8", out=folder / "student", data=DIGITS, loop=loop)),
    }


def config(runs: dict[str, Run], out: Path, **changes) -> DistillConfig:
    teacher, student = (str(runs[name].path) for name in ("teacher", "student"))
    base = DistillConfig(teacher=(teacher,), student=student, out=out, data=DIGITS, loop=LOOP, quantization=INT8)
    return replace(base, **changes)


def test_from_a_trained_student(runs, tmp_path):
    run = distill(config(runs, tmp_path / "q", loop=replace(LOOP, epochs=4)))
    record = run.record
    assert record.model.arguments == {"quantize": "int8"}
    # Its normalization is part of the trained weights, so that its own preprocessing stays.
    assert record.preprocessing == runs["student"].record.preprocessing
    assert record.metrics["float"]["top1"] == runs["student"].record.metrics["top1"]
    assert record.metrics["rounded"]["top1"] > record.metrics["float"]["top1"] - 0.05
    assert record.metrics["top1"] > record.metrics["float"]["top1"] - 0.05
    assert record.history[0]["loss"] > record.history[-1]["loss"]
    network = run.network()
    assert isinstance(network.backbone, FakeQuantized)
    assert (
        evaluate(EvaluateConfig(run.path, split="val", data=DataConfig(val_limit=200)))["top1"]
        == record.metrics["top1"]
    )
    # Both the weights and the scales were moved.
    again = distill(config(runs, tmp_path / "none", optim=OptimConfig(lr=1e-12)))
    moved = {
        name
        for name, value in run.state().items()
        if not torch.allclose(value, again.state()[name], rtol=1e-6, atol=1e-9)
    }
    assert {"graph.conv1.weight", "graph.layer2.0.conv1.weight", "graph.quantizers.relu.scale"} <= moved


def test_it_goes_on_from_a_quantized_student(runs, tmp_path):
    first = distill(config(runs, tmp_path / "a"))
    second = distill(config(runs, tmp_path / "b", student=str(first.path), optim=OptimConfig(lr=1e-12)))
    assert second.record.metrics["rounded"]["top1"] == first.record.metrics["top1"]
    scales = [name for name in first.state() if name.endswith("scale")]
    assert scales
    assert all(torch.allclose(first.state()[name], second.state()[name], rtol=1e-5) for name in scales)
    with pytest.raises(UsageError, match="is of a quantized student; go on with it with --quantize int8"):
        distill(config(runs, tmp_path / "c", student=str(first.path), quantization=QuantizationConfig()))
    with pytest.raises(RunError, match="weights do not fit"):
        fit(
            FitConfig(
                model="resnet8", out=tmp_path / "d", transfer=TransferConfig(str(first.path)), data=DIGITS, loop=LOOP
            )
        )


def test_a_new_student_is_trained_in_floating_point_first(runs, tmp_path, capsys):
    options = ["--teacher", str(runs["teacher"].path), "--student", "resnet8", "--data", "digits", "--limit", "400"]
    options += ["--val-limit", "200", "--batch-size", "50", "--device", "cpu", "--precision", "fp32", "--epochs", "1"]
    options += ["--quantize", "int8", "--out", str(tmp_path / "q")]
    assert main(["distill", *options]) == 2
    assert "give a run as --student, or --float-epochs to train resnet8" in capsys.readouterr().err
    assert main(["distill", *options, "--float-epochs", "3"]) == 0
    shown = capsys.readouterr().out
    assert "student before, in floating point" in shown
    assert "student before, rounded to INT8" in shown
    before, run = Run.open(tmp_path / "q" / "float"), Run.open(tmp_path / "q")
    assert len(before.record.history) == 3
    assert len(run.record.history) == 1
    assert run.record.metrics["float"]["top1"] == before.record.metrics["top1"]
    assert main(["distill", *options, "--float-epochs", "3", "--resume"]) == 0  # finished already
    other = ["--student", str(before.path), "--float-epochs", "1", "--overwrite"]
    assert main(["distill", *options, *other]) == 2
    assert "is trained already; leave --float-epochs out" in capsys.readouterr().err


def test_what_does_not_go_together(runs, tmp_path):
    with pytest.raises(UsageError, match="--loss at looks into the student"):
        distill(config(runs, tmp_path / "q", losses=LossConfig(loss=("ce", "at"))))
    with pytest.raises(UsageError, match="--float-epochs come before quantization"):
        QuantizationConfig(float_epochs=2)
    with pytest.raises(UsageError, match="--float-epochs is -1"):
        QuantizationConfig("int8", -1)


def test_the_learning_rate_is_gentle():
    chosen = gentle(OptimConfig(), 64)
    assert (chosen.optimizer, chosen.lr) == ("adamw", pytest.approx(5e-5))
    assert gentle(OptimConfig(lr=0.3), 64) == OptimConfig(lr=0.3)

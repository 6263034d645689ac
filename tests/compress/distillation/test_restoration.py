"""``krl-compress distill`` with a restorer as teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from _helpers.images import blurred_noise
from krl_compress.cli import main
from krl_compress.config import CacheConfig, DistillConfig, GeneratorStudentConfig, LossConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillation.restoration import RESTORATION_LOSSES, RestorationDistiller
from krl_compress.distillers import WeightedLoss, parse_loss
from krl_runtime.errors import ModelError, UsageError
from krl_train.config import DataConfig, FitConfig, InputConfig, LoopConfig, RestorationConfig
from krl_train.data import PatchBatch
from krl_train.models.restorers import RestorerNetwork, build_restorer
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.training.fit import fit
from krl_train.training.restoration import restorer_preprocessing
from krl_train.training.style import style_preprocessing, style_spec

LOOP = LoopConfig(epochs=2, batch_size=4, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("restoration")
    for split, count in (("train", 3), ("val", 1)):
        (folder / split).mkdir()
        for index in range(count):
            blurred_noise(60, (count, index), 2).save(folder / split / f"{index}.png")
    return fit(
        FitConfig(
            out=folder / "teacher",
            task="restoration",
            model="edsr-1-8",
            data=DataConfig(data=str(folder)),
            input=InputConfig(size=(10,)),
            restoration=RestorationConfig(scale=2),
            loop=LOOP,
        )
    )


def config(teacher: Run, out: Path, **changes: Any) -> DistillConfig:
    return replace(DistillConfig(out=out, teacher=(str(teacher.path),), student="espcn-8", loop=LOOP), **changes)


def network(name: str, scale: int = 2, channels: int = 1, seed: int = 0) -> RestorerNetwork:
    torch.manual_seed(seed)
    made = build_restorer(ModelSpec(name, 0, channels, {"scale": scale}), restorer_preprocessing(channels, (6, 6)))
    for parameter in made.backbone.get_submodule("tail").parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def batch(scale: int = 2) -> PatchBatch:
    generator = torch.Generator().manual_seed(0)
    small, large = (
        torch.randint(0, 256, (2, 1, 6 * k, 6 * k), generator=generator, dtype=torch.uint8) for k in (1, scale)
    )
    return PatchBatch(small, large, 0)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    student, large = network("espcn-8"), network("edsr-1-8", seed=1)
    terms = [parse_loss(text, RESTORATION_LOSSES) for text in RESTORATION_LOSSES]
    parts = RestorationDistiller(student, large, terms)(batch())
    assert set(parts) == {"loss", *RESTORATION_LOSSES}
    parts = {name: value.detach() for name, value in parts.items()}
    expected = sum(term.weight * parts[term.name] for term in terms)
    assert parts["loss"].item() == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        restored, wanted = student(batch().pixels), large(batch().pixels)
    assert parts["pixels"].item() == pytest.approx((restored - batch().truth).abs().mean().item() / 255, rel=1e-5)
    assert parts["teacher"].item() == pytest.approx((restored - wanted).abs().mean().item() / 255, rel=1e-5)


def test_the_teacher_is_frozen_and_no_part_of_the_objective() -> None:
    student, large = network("espcn-8"), network("edsr-1-8", seed=1)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    objective = RestorationDistiller(student, large, [WeightedLoss("fitnet", 1.0)]).train()
    objective(batch())["loss"].backward()
    assert not large.training
    assert all(parameter.grad is None for parameter in large.parameters())
    assert all(torch.equal(before[name], value) for name, value in large.state_dict().items())
    held = sum(parameter.numel() for parameter in objective.parameters())
    adapter = 4 * 8  # from the 4 maps before the student's last layer to the teacher's 8
    assert held == sum(parameter.numel() for parameter in student.parameters()) + adapter
    # A loss on features alone still reaches every parameter, as several processes need it.
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    same = network("edsr-1-8"), network("edsr-1-8")
    terms = [WeightedLoss(name, 1.0) for name in ("teacher", "affinity", "at", "sp")]
    parts = RestorationDistiller(*same, terms)(batch())
    assert parts["loss"].detach().item() == pytest.approx(0, abs=1e-6)


def test_distillation_writes_a_run_with_teacher_and_baseline(teacher: Run, tmp_path: Path) -> None:
    run = distill(config(teacher, tmp_path / "student", baseline=True))
    record = Run.open(run.path).record
    assert record.task == "restoration"
    assert record.model.arguments == {**teacher.record.model.arguments, "overlap": 4}
    assert record.metrics["teacher"]["psnr"] == pytest.approx(teacher.record.metrics["psnr"], abs=1e-3)
    assert record.metrics["baseline"]["psnr"] != record.metrics["psnr"]
    identity = {"path": str(teacher.path.resolve()), "weights_sha256": teacher.record.weights_sha256}
    assert record.parent == {"teachers": [{"kind": "run", **identity}]}
    assert record.data["train"] == teacher.record.data["train"]
    alone = distill(config(teacher, tmp_path / "alone"))
    assert alone.record.weights_sha256 == record.weights_sha256  # the baseline before it changes nothing
    again = distill(config(teacher, tmp_path / "pixels", losses=LossConfig(loss=("pixels:weight=1",))))
    baseline = Run.open(run.path / "baseline").record
    assert again.record.weights_sha256 == baseline.weights_sha256  # the truth alone is what the baseline learns from


def test_the_command_compares(teacher: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distill", "--teacher", str(teacher.path), "--student", "espcn-8", "--epochs", "1", "--batch-size", "4"]
    command += ["--device", "cpu", "--out", str(tmp_path / "student")]
    assert main([*command, "--baseline"]) == 0
    shown = capsys.readouterr().out
    assert "psnr" in shown
    assert "student without teacher" in shown
    assert "top1" not in shown
    assert main([*command, "--overwrite", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["student"]["count"] == result["teacher"]["count"] == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"student": "espcm"}, ModelError, "unknown model 'espcm' for restoration"),
        ({"cache": CacheConfig(cache_teacher=True)}, UsageError, "--cache-teacher is for classification"),
        ({"losses": LossConfig(feature_taps=("trunk",))}, UsageError, "--feature-taps is for classification"),
        (
            {"generator_student": GeneratorStudentConfig(online=True)},
            UsageError,
            "--online is for gan; the task is restoration",
        ),
        ({"losses": LossConfig(loss=("kd",))}, UsageError, "unknown loss 'kd'; accepted: pixels, teacher, affinity"),
        ({"losses": LossConfig(loss=("pixels", "pixels"))}, UsageError, "pixels, pixels; accepted: one or more, each"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    teacher: Run, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        distill(config(teacher, tmp_path / "student", **changes))
    assert not (tmp_path / "student").exists()


def test_two_teachers_are_refused(teacher: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 teachers are given; restoration takes one"):
        distill(replace(config(teacher, tmp_path / "student"), teacher=(str(teacher.path),) * 2))


def test_a_network_of_style_is_no_teacher(tmp_path: Path) -> None:
    spec = style_spec("style-4")
    record = RunRecord("restoration", spec, style_preprocessing((16, 16)), (), "test", {}, 0, {})
    backbone = build_restorer(spec, record.preprocessing).backbone
    run = Run.write(tmp_path / "style", record, backbone.state_dict())
    with pytest.raises(UsageError, match="is of translation or style, which are not distilled"):
        distill(config(run, tmp_path / "student"))


def test_nets_of_two_scales_are_refused() -> None:
    with pytest.raises(UsageError, match="the student enlarges 2 times in 1 channels, the teacher 3 times in 1"):
        RestorationDistiller(network("espcn-8"), network("espcn-8", scale=3), [WeightedLoss("pixels", 1.0)])

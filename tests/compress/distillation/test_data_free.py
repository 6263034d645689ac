"""Distillation without data."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from krl_compress.config import DataFreeConfig, DistillConfig
from krl_compress.distillation.data_free import invert
from krl_compress.distillation.distill import distill
from krl_runtime.errors import DataError, ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig, FitConfig, InputConfig, LoopConfig, OptimConfig
from krl_train.models import Network
from krl_train.models.generators import build_generator
from krl_train.run import RECORD, ModelSpec, Run, RunRecord
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=1, batch_size=64, device="cpu", precision="fp32")
CPU = torch.device("cpu")
SIDE = 16


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    data = DataConfig(data="digits", val_limit=200)
    optim = OptimConfig(optimizer="adamw", lr=0.01)
    size = InputConfig(size=(SIDE,))
    return fit(FitConfig(model="dscnn-0.5", out=out, data=data, input=size, optim=optim, loop=replace(LOOP, epochs=6)))


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "generator"
    images = Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,))
    spec = ModelSpec("mlp-16", 0, 1, {"latent": 4})
    torch.manual_seed(0)
    state = build_generator(spec, images).backbone.state_dict()
    Run.write(path, RunRecord("generation", spec, images, (), "krl-train import", {}, 0, {}), state)
    return path


def config(teacher: Run, out: Path, data_free: str, count: int = 200, **changes: object) -> DistillConfig:
    base = DistillConfig(
        teacher=(str(teacher.path),),
        student="dscnn-0.25",
        out=out,
        data=DataConfig(val_limit=100),
        loop=LOOP,
        data_free=DataFreeConfig(data_free=data_free, data_free_count=count),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_the_student_sees_generated_images_alone(teacher: Run, generator: Path, tmp_path: Path) -> None:
    run = distill(config(teacher, tmp_path / "student", str(generator)))
    assert run.record.data["train"]["count"] == 200
    assert run.record.data["generated"] == {
        "generator": str(generator.resolve()),
        "sha256": Run.open(generator).record.weights_sha256,
        "count": 200,
    }
    assert run.record.data["source"] == "digits"
    assert run.record.metrics["count"] == 100  # real images measure it
    assert run.record.metrics["teacher"]["top1"] > 0.8
    assert run.record.preprocessing == teacher.record.preprocessing


def test_where_no_real_image_is_agreement_is_measured(
    teacher: Run, generator: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = tmp_path / "teacher"
    record = replace(teacher.record, data={**teacher.record.data, "source": str(tmp_path / "gone")})
    Run.write(moved, record, teacher.state())
    with caplog.at_level(logging.WARNING, "krl"):
        run = distill(config(Run.open(moved), tmp_path / "student", str(generator), data=DataConfig()))
    assert "no real image to measure on" in caplog.text
    assert run.record.metrics["teacher"]["top1"] == 1.0  # the labels are its own answers
    assert run.record.data["source"] == "generated"
    assert (run.record.data["train"]["count"], run.record.data["val"]["count"]) == (160, 40)


def test_images_against_the_teacher_are_of_all_classes_and_sure(teacher: Run) -> None:
    network = teacher.network()
    pixels = invert(network, 160, seed=0, device=CPU)
    assert pixels.shape == (160, 1, SIDE, SIDE)
    assert pixels.dtype == torch.uint8
    with torch.no_grad():
        found = network(pixels).softmax(1)
        noise = network(torch.randint(0, 256, pixels.shape, dtype=torch.uint8)).softmax(1)
    shares = [answers.argmax(1).bincount(minlength=10).max() / len(pixels) for answers in (found, noise)]
    assert float(shares[0]) < 0.35 < 0.5 < float(shares[1])  # of the most frequent class
    assert len(set(found.argmax(1).tolist())) >= 6
    assert float(found.amax(1).mean()) > 0.5
    assert torch.equal(pixels, invert(network, 160, seed=0, device=CPU))


def test_the_teacher_alone_is_enough(teacher: Run, tmp_path: Path) -> None:
    run = distill(config(teacher, tmp_path / "student", "teacher", 160))
    assert run.record.data["generated"] == {"generator": "teacher", "count": 160}
    assert (run.path / RECORD).is_file()


def test_a_teacher_without_a_linear_layer() -> None:
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Network(backbone, Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,)))
    with pytest.raises(ModelError, match="no linear layer; give a generator with --data-free GENERATOR"):
        invert(network, 16, seed=0, device=CPU)


def test_what_does_not_go_together(teacher: Run, generator: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--baseline trains on labels, and with --data-free there are none"):
        distill(config(teacher, tmp_path / "a", str(generator), baseline=True))
    with pytest.raises(UsageError, match="--shots draws images of --data, and with --data-free these are not trained"):
        distill(config(teacher, tmp_path / "a", str(generator), data=DataConfig(shots=3)))
    with pytest.raises(UsageError, match="--data-free nowhere does not exist; give a generator's run or bundle"):
        distill(config(teacher, tmp_path / "a", "nowhere"))
    with pytest.raises(DataError, match="neither a folder nor a known data set"):
        distill(config(teacher, tmp_path / "a", str(generator), data=DataConfig(data=str(tmp_path / "gone"))))
    with pytest.raises(UsageError, match="--data-free-count is 1; accepted: 10 or more"):
        DataFreeConfig(data_free_count=1)
    assert not (tmp_path / "a").exists()

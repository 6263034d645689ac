"""Distilling generators: the terms by hand, and the command on small runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import krl_deploy
from _helpers.digits import train_run, write_digits
from _helpers.generation import LOOP, gan_config, third_party_generator
from _helpers.resuming import stopped_at_checkpoint
from krl_compress.config import CacheConfig, DistillConfig, GeneratorStudentConfig, LossConfig, QuantizationConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillers.generator import StudentObjective
from krl_compress.losses.alignment import kernel_alignment
from krl_runtime.errors import RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import (
    ConditioningConfig,
    DataConfig,
    EvaluateConfig,
    GenerationConfig,
    GeneratorScoreConfig,
    OptimConfig,
)
from krl_train.evaluation.evaluate import evaluate
from krl_train.importers.importing import import_weights
from krl_train.metrics.generation import FeatureNet
from krl_train.models import ModelSpec
from krl_train.models.generators import GeneratorNetwork, build_generator
from krl_train.run import Run
from krl_train.training.fit import fit

PREPROCESSING = Preprocessing(16, 16, channels=1, mean=(0.5,), std=(0.5,))


def generator(name: str, latent: int = 4, preprocessing: Preprocessing = PREPROCESSING) -> GeneratorNetwork:
    return build_generator(ModelSpec(name, 0, 1, {"latent": latent}), preprocessing)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("teacher") / "run"
    knowledge = ConditioningConfig(condition="labels", condition_dim=4)
    return fit(gan_config(out, model="dcgan-4", generation=GenerationConfig(latent=6), conditioning=knowledge))


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A generator that was imported, whose run names no data."""
    folder = tmp_path_factory.mktemp("third_party")
    return import_weights(third_party_generator(folder, latent=3, hidden=32, size=(8,), channels=1)[1])


def config(run: Run, out: Path, **changes) -> DistillConfig:
    base = DistillConfig(
        teacher=(str(run.path),),
        student="dsgan-2",
        out=out,
        data=DataConfig(limit=160, val_limit=80),
        loop=LOOP,
        generator_student=GeneratorStudentConfig(latents=320),
    )
    return replace(base, **changes)


def test_kernel_alignment_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0], [0.0]])
    # K_s = [[1, 1], [1, 2]], K_t = [[4, 0], [0, 0]]
    assert float(kernel_alignment(student, teacher)) == pytest.approx(1 - 4 / (7**0.5 * 4))
    turned = 3 * student @ torch.linalg.qr(torch.randn(2, 2)).Q
    assert float(kernel_alignment(turned, student)) == pytest.approx(0, abs=1e-6)
    assert float(kernel_alignment(student[:1], teacher[:1])) == pytest.approx(0, abs=1e-6)
    assert float(kernel_alignment(torch.zeros(2, 3), teacher)) == 1
    with pytest.raises(UsageError, match="of the same N"):
        kernel_alignment(student, teacher[:1])


def test_terms_are_what_their_names_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = train_run(tmp_path / "c", write_digits(tmp_path / "d", per_class=4, val_per_class=2), steps=1)
    classifier = FeatureNet(run.path, torch.device("cpu"))
    student, teacher = generator("dsgan-2"), generator("dcgan-2")
    weights = {"pixels": 3.0, "squares": 5.0, "features": 1.0, "kernel": 2.0, "perceptual": 7.0}
    objective = StudentObjective(student, teacher, weights, classifier)
    objective.train()
    assert not teacher.training
    latent = torch.randn(6, 4)
    images, terms = objective(latent)
    assert set(terms) == set(weights)
    maps, mine = student.backbone.features(latent)
    their_maps, theirs = teacher.backbone.features(latent)
    difference = mine - theirs
    torch.testing.assert_close(images, (mine + 1) * 127.5)
    assert float(terms["pixels"].detach()) == pytest.approx(3 * float(difference.detach().abs().mean()), rel=1e-5)
    assert float(terms["squares"].detach()) == pytest.approx(5 * float(difference.detach().square().mean()), rel=1e-5)
    assert len(maps) == len(their_maps) == len(objective.adapters) == 2  # 8 and 16 pixels a side
    expected = [
        F.mse_loss(adapter(first), second) / second.square().mean()
        for adapter, first, second in zip(objective.adapters, maps, their_maps, strict=True)
    ]
    assert float(terms["features"].detach()) == pytest.approx(float(sum(expected).detach()) / 2, rel=1e-4)
    kernels = [kernel_alignment(*pair) for pair in zip(maps, their_maps, strict=True)]
    assert float(terms["kernel"].detach()) == pytest.approx(float(sum(kernels).detach()), rel=1e-4)
    seen = [classifier.features(each) for each in (images, (theirs + 1) * 127.5)]
    relative = F.mse_loss(seen[0], seen[1]) / seen[1].square().mean()
    assert float(terms["perceptual"].detach()) == pytest.approx(7 * float(relative.detach()), rel=1e-4)
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name, _ in objective.named_parameters())


def test_maps_of_no_common_resolution_are_refused() -> None:
    small = replace(PREPROCESSING, height=8, width=8)
    student, teacher = generator("subgan-2", preprocessing=small), generator("dcgan-2", preprocessing=small)
    with pytest.raises(UsageError, match=r"maps of \[\(4, 4\)\], the teacher of \[\(8, 8\)\], none alike"):
        StudentObjective(student, teacher, {"features": 1.0})


def test_a_conditional_student_is_distilled_beside_one_without_a_teacher(teacher: Run, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data", per_class=12, val_per_class=8)
    classifier = train_run(tmp_path / "classifier", data, steps=20)
    options = GenerationConfig(features=classifier.path, score_samples=64, discriminator_width=2)
    run = distill(config(teacher, tmp_path / "run", baseline=True, generation=options))
    record = Run.open(run.path).record
    assert record.model == ModelSpec("dsgan-2", 0, 1, teacher.record.model.arguments)
    assert record.labels == teacher.record.labels
    assert record.data["conditions"] == teacher.record.data["conditions"]
    assert record.parent["teachers"][0]["weights_sha256"] == teacher.record.weights_sha256
    for metrics in (record.metrics, record.metrics["teacher"], record.metrics["baseline"]):
        assert {"fid", "kid", "agreement", "energy", "diversity", "collapsed", "parameters", "macs"} <= set(metrics)
        assert metrics["energy_reference"]["images"] == "validation images"
    assert {"psnr", "ssim"} <= set(record.metrics)
    assert {"pixels", "generator", "discriminator"} <= set(record.history[0])
    assert (run.path / "baseline" / "run.json").is_file()
    grid = np.asarray(Image.open(run.path / "samples" / "samples-0002.png"))
    assert grid.shape == (64, 132)  # teacher, gap, student
    assert run.module()(torch.randn(1, 6), torch.tensor([[3]])).shape == (1, 1, 8, 8)
    against = GeneratorScoreConfig(against=teacher.path, score_samples=1000)
    again = evaluate(EvaluateConfig(run=run.path, generator=against, device="cpu", data=DataConfig(limit=160)))
    assert again["psnr"] == pytest.approx(record.metrics["psnr"], abs=0.01)


def test_an_imported_generator_needs_no_data(third_party: Run, tmp_path: Path) -> None:
    student = config(
        third_party,
        tmp_path / "run",
        student="mlp-16",
        data=DataConfig(),
        optim=OptimConfig(lr=0.02),
        losses=LossConfig(loss=("squares",)),
        loop=replace(LOOP, epochs=12),
        generator_student=GeneratorStudentConfig(latents=1600),
    )
    run = distill(student)
    assert run.record.metrics["psnr"] > run.record.history[0]["val_psnr"] + 3
    assert run.record.metrics["parameters"] == 3 * 16 + 16 + 16 * 64 + 64
    assert run.record.data == {}
    # There are no real images: the student is measured against the teacher's, and so is the teacher, on other latents.
    reference = run.record.metrics["energy_reference"]
    assert (reference["images"], reference["real"]) == ("images of the teacher", 2000)
    assert run.record.metrics["teacher"]["energy"] <= reference["floor"]
    assert run.record.metrics["collapsed"] is False
    assert distill(replace(student, resume=True)).record.weights_sha256 == run.record.weights_sha256


def test_resumed_in_mid_epoch_a_student_is_as_if_never_stopped(teacher: Run, tmp_path: Path) -> None:
    whole = distill(config(teacher, tmp_path / "whole")).record
    stopped = config(teacher, tmp_path / "stopped", loop=replace(LOOP, checkpoint_minutes=0.0))
    with stopped_at_checkpoint() as saves, pytest.raises(KeyboardInterrupt):
        distill(stopped)
    assert saves[-1] not in (0, 5)
    assert distill(replace(stopped, resume=True)).record.weights_sha256 == whole.weights_sha256


def test_a_student_follows_a_teacher_that_is_still_trained(teacher: Run, tmp_path: Path) -> None:
    online = GeneratorStudentConfig(online=True)
    run = distill(
        config(
            teacher,
            tmp_path / "run",
            generator_student=online,
            losses=LossConfig(loss=("pixels", "kernel:weight=0.5")),
            loop=replace(LOOP, epochs=4),
            optim=OptimConfig(lr=0.01),
        )
    )
    assert {"pixels", "kernel", "teacher_generator", "teacher_discriminator"} <= set(run.record.history[0])
    assert "discriminator" not in run.record.history[0]
    taught = Run.open(run.path / "teacher")
    assert 0 < taught.record.metrics["energy"] < 1
    against = GeneratorScoreConfig(against=taught.path, score_samples=1000)
    followed = evaluate(EvaluateConfig(run=run.path, generator=against, device="cpu", data=DataConfig(limit=160)))
    assert followed["psnr"] == pytest.approx(run.record.metrics["psnr"], abs=0.01)
    assert taught.record.model.name == "dcgan-4"
    assert taught.record.weights_sha256 != teacher.record.weights_sha256
    assert taught.module()(torch.randn(1, 6), torch.tensor([[0]])).shape == (1, 1, 8, 8)


def test_a_student_may_start_from_a_run(teacher: Run, tmp_path: Path) -> None:
    first = distill(config(teacher, tmp_path / "first", losses=LossConfig(loss=("pixels",))))
    second = distill(
        config(
            teacher,
            tmp_path / "second",
            student=str(first.path),
            losses=LossConfig(loss=("pixels",)),
            optim=OptimConfig(lr=1e-9),
        )
    )
    assert second.record.model.name == "dsgan-2"
    before, after = first.state(), second.state()
    for name, _ in second.module().backbone.named_parameters():
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_what_a_generator_cannot_be_distilled_with_is_refused(teacher: Run, third_party: Run, tmp_path: Path) -> None:
    def refused(message: str, run: Run = teacher, **changes) -> None:
        with pytest.raises(UsageError, match=message):
            distill(config(run, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()

    refused("--cache-teacher is for classification", cache=CacheConfig(cache_teacher=True))
    refused("--pretrained is for classification", pretrained=True)
    refused("--quantize is for classification", quantization=QuantizationConfig(quantize="int8"))
    refused("2 teachers are given; a generator has one", teacher=(str(teacher.path), str(third_party.path)))
    refused("unknown loss 'kd'", losses=LossConfig(loss=("kd",)))
    refused("accepted are different terms", losses=LossConfig(loss=("pixels", "pixels:weight=2")))
    refused("adversarial alone has nothing of the teacher", losses=LossConfig(loss=("adversarial",)))
    refused("--loss perceptual needs a classifier", losses=LossConfig(loss=("perceptual",)))
    refused("--latent is 9; a student has its teacher's, 6", generation=GenerationConfig(latent=9))
    online = GeneratorStudentConfig(online=True)
    both = LossConfig(loss=("pixels", "adversarial"))
    refused("no discriminator of its own", generator_student=online, losses=both)
    refused("an mlp-… generator has none", run=third_party, losses=LossConfig(loss=("features",)))
    refused("its weights were imported; give --data", run=third_party, losses=both)
    data = write_digits(tmp_path / "d", per_class=4, val_per_class=2)
    classifier = train_run(tmp_path / "c", data, steps=1).path
    refused(
        "what is trained on cannot measure",
        losses=LossConfig(loss=("perceptual",)),
        generator_student=GeneratorStudentConfig(perceptual=classifier),
        generation=GenerationConfig(features=classifier),
    )
    with pytest.raises(RunError, match="nothing does not exist"):
        distill(config(teacher, tmp_path / "run", generation=GenerationConfig(features=tmp_path / "nothing")))


def test_a_bundle_teaches_on_latents_as_its_run_does(third_party, teacher, tmp_path) -> None:
    krl_deploy.export(run=third_party.path, out=tmp_path / "t.krl")
    asked = config(third_party, tmp_path / "run", student="mlp-16")
    bundle = replace(asked, teacher=(str(tmp_path / "t.krl"),), out=tmp_path / "bundle")
    runs = [distill(each).record for each in (asked, bundle)]
    assert runs[1].history[-1]["loss"] == pytest.approx(runs[0].history[-1]["loss"], rel=1e-3)
    assert runs[1].metrics["psnr"] == pytest.approx(runs[0].metrics["psnr"], abs=0.05)
    assert runs[1].model == runs[0].model
    kinds = [record.parent["teachers"][0]["kind"] for record in runs]
    assert (kinds, "sha256" in runs[1].parent["teachers"][0]) == (["run", "bundle"], True)
    with pytest.raises(UsageError, match="a bundle cannot be trained; give its run"):
        distill(replace(bundle, out=tmp_path / "no", generator_student=GeneratorStudentConfig(online=True)))
    with pytest.raises(UsageError, match="a bundle shows none"):
        distill(replace(bundle, out=tmp_path / "no", student="dcgan-2", losses=LossConfig(loss=("features",))))
    krl_deploy.export(run=teacher.path, out=tmp_path / "c.krl")
    with pytest.raises(UsageError, match="names no data for its conditions; give the run"):
        distill(replace(bundle, out=tmp_path / "no", teacher=(str(tmp_path / "c.krl"),)))

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from _helpers.digits import train_run, write_digits
from _helpers.generation import LOOP, gan_config, third_party_generator
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import DataError, KrlError, RunError, TrainingError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.cli import main
from krl_train.config import (
    AugmentConfig,
    ConditioningConfig,
    DataConfig,
    EvaluateConfig,
    FitConfig,
    GenerationConfig,
    GeneratorScoreConfig,
    InputConfig,
    OptimConfig,
)
from krl_train.data.diffaugment import diffaugment
from krl_train.evaluation.evaluate import evaluate
from krl_train.importers.importing import import_weights
from krl_train.loop import CHECKPOINT
from krl_train.models.generators import GeneratorNetwork, build_generator
from krl_train.run import WEIGHTS, ModelSpec
from krl_train.tasks.adversarial import discriminator_loss, generator_loss, r1_penalty
from krl_train.tasks.collapse import CollapseWatch
from krl_train.tasks.gan import GanTask
from krl_train.tasks.vae import divergence, gaussian_likelihood
from krl_train.training import gan, vae
from krl_train.training.fit import fit


def test_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, -0.5]), torch.tensor([0.5, -3.0])
    assert float(discriminator_loss("hinge", real, fake)) == pytest.approx((0 + 1.5) / 2 + (1.5 + 0) / 2)
    assert float(generator_loss("hinge", fake)) == pytest.approx(1.25)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    expected = (softplus(-2) + softplus(0.5)) / 2 + (softplus(0.5) + softplus(-3)) / 2
    assert float(discriminator_loss("non-saturating", real, fake)) == pytest.approx(expected)
    assert float(generator_loss("non-saturating", fake)) == pytest.approx((softplus(-0.5) + softplus(3)) / 2)
    for function in (lambda kind: generator_loss(kind, fake), lambda kind: discriminator_loss(kind, real, fake)):
        with pytest.raises(UsageError, match="'wasserstein' is not known; accepted: non-saturating, hinge"):
            function("wasserstein")


def test_r1_by_finite_differences_and_it_can_be_differentiated_again() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1).double()

    def judge(pixels: torch.Tensor) -> torch.Tensor:
        return torch.tanh(layer(pixels.flatten(1).double()))[:, 0] ** 2

    pixels = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    step, total = 1e-5, 0.0
    for index in range(3):
        for place in range(4):
            moved = [pixels.clone() for _ in range(2)]
            moved[0].view(3, 4)[index, place] += step
            moved[1].view(3, 4)[index, place] -= step
            slope = (judge(moved[0]) - judge(moved[1]))[index] / (2 * step)
            total += float(slope.detach()) ** 2 / 3
    penalty = r1_penalty(judge, pixels, unit=3.0)
    assert float(penalty.detach()) == pytest.approx(9 * total, rel=1e-4)
    penalty.backward()
    assert float(layer.weight.grad.abs().sum()) > 0


def test_diffaugment_keeps_gradients_and_does_what_its_names_say() -> None:
    torch.manual_seed(0)
    pixels = torch.full((64, 3, 16, 16), 100.0, requires_grad=True)
    cut = diffaugment(pixels, ("cutout",))
    gone = (cut.detach() == 0).float().mean((1, 2, 3))
    assert float(gone.max()) == pytest.approx(0.25)  # half the side, where it does not reach over the rim
    assert 0 < float(gone.mean()) < 0.25
    cut.sum().backward()
    assert torch.equal(pixels.grad != 0, cut.detach() != 0)
    ramp = torch.arange(16.0).expand(64, 1, 16, 16)
    moved = diffaugment(ramp, ("translation",))
    shifts = moved[:, 0, 8, 8] - 8
    assert set(shifts.tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    colored = diffaugment(torch.full((200, 3, 4, 4), 100.0), ("color",))
    assert float((colored - colored.mean((1, 2, 3), keepdim=True)).abs().max()) < 1e-3  # flat stays flat
    levels = colored[:, 0, 0, 0]
    assert float(levels.min()) >= 100 - 127.5
    assert float(levels.max()) <= 100 + 127.5
    assert float(levels.std()) > 50
    assert torch.equal(diffaugment(ramp, ()), ramp)
    with pytest.raises(UsageError, match="DiffAugment has no flip"):
        diffaugment(ramp, ("flip",))


def test_generators_see_resized_crops_and_other_colors_if_asked_to(tmp_path: Path) -> None:
    views = AugmentConfig(random_resized_crop=True, crop_scale=(0.8, 1.0), color_jitter=(0.2,))
    for task, options in (("gan", {}), ("vae", {"generation": GenerationConfig(latent=6)})):
        run = fit(gan_config(tmp_path / task, task=task, augment=views, **options))
        plan = run.record.plan["augmentation"]
        assert (plan["shift"], plan["crop_scale"], plan["color_jitter"]) == (0, [0.8, 1.0], [0.2, 0.2, 0.0, 0.0])
        assert all(np.isfinite(value) for entry in run.record.history for value in entry.values())


def test_a_gan_is_trained_and_its_run_generates(tmp_path: Path) -> None:
    run = fit(gan_config(tmp_path / "run"))
    assert run.record.task == "generation"
    assert run.record.model.arguments == {"latent": 6}
    assert run.record.labels == ()
    generator = run.module()
    assert run.record.metrics["parameters"] == sum(value.numel() for value in generator.parameters())
    assert isinstance(generator, GeneratorNetwork)
    assert generator(torch.randn(2, 6)).shape == (2, 1, 8, 8)
    grid = np.asarray(Image.open(run.path / "samples" / "samples-0002.png"))
    assert grid.shape == (64, 64)
    assert grid.std() > 1
    assert len(run.record.history) == 2
    with pytest.raises(RunError, match="a classifier is needed here"):
        run.network()


def test_a_guided_gan_tells_its_classes_and_is_scored(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data", per_class=12, val_per_class=8)
    classifier = train_run(tmp_path / "classifier", data, steps=60, source=str(data))
    run = fit(
        gan_config(
            tmp_path / "run",
            data=DataConfig(data=str(data)),
            input=InputConfig(size=(16,)),
            generation=GenerationConfig(latent=6, features=classifier.path, score_samples=80, adversarial="hinge"),
            conditioning=ConditioningConfig(condition="labels", condition_dim=4, guide=classifier.path),
        )
    )
    assert run.record.labels == tuple("0123456789")
    assert run.record.model.arguments["condition"]["vocabulary"] == list("0123456789")
    assert {"fid", "kid", "precision", "recall", "density", "coverage", "agreement"} <= set(run.record.metrics)
    assert "guide" in run.record.history[0]
    options = GeneratorScoreConfig(
        features=classifier.path,
        score_samples=80,
        against=run.path,
        train_on_synthetic="dscnn-0.25",
        synthetic_epochs=1,
    )
    result = evaluate(EvaluateConfig(run=run.path, generator=options, device="cpu"))
    assert result["features"]["weights_sha256"] == classifier.record.weights_sha256
    assert result["psnr"] is None or result["psnr"] > 60
    assert 0 <= result["synthetic_top1"] <= 1
    assert 0 <= result["fid_floor"] < result["fid"]
    assert result["real"] == 80


def test_resumed_in_mid_epoch_a_gan_is_as_if_never_stopped(tmp_path: Path) -> None:
    whole = fit(gan_config(tmp_path / "whole")).record
    stopped = gan_config(tmp_path / "stopped", loop=replace(LOOP, checkpoint_minutes=0.0))
    with stopped_at_checkpoint() as saves, pytest.raises(KeyboardInterrupt):
        fit(stopped)
    assert saves[-1] not in (0, 5)
    assert fit(replace(stopped, resume=True)).record.weights_sha256 == whole.weights_sha256


def test_a_loss_that_is_no_number_stops_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GanTask.step
    count = 0

    def step(task: GanTask, batch, update):
        nonlocal count
        count += 1
        parts = dict(real(task, batch, update))
        return {**parts, "loss": parts["loss"] * (float("nan") if count == 7 else 1)}

    monkeypatch.setattr(GanTask, "step", step)
    with pytest.raises(TrainingError, match=r"not a finite number in epoch 2, step 2; the last good checkpoint stays"):
        fit(gan_config(tmp_path / "run"))
    saved = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert saved["state"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in saved["learners"]["generator"]["module"].values())


SHORT = GenerationConfig(latent=6, score_samples=500)


def short_gan(out: Path, **changes: object) -> FitConfig:
    """Return a training of 120 steps on the digits, as short as a first look is."""
    values = {"data": DataConfig(data="digits"), "loop": replace(LOOP, epochs=11, evaluate_every=11, batch_size=128)}
    return gan_config(out, **{**values, "model": "dcgan-4", "generation": SHORT, **changes})


@pytest.mark.parametrize(("task", "condition"), [("gan", "none"), ("gan", "labels"), ("vae", "none")])
def test_a_short_training_of_the_digits_raises_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str, condition: str
) -> None:
    knowledge = ConditioningConfig(condition=condition, condition_dim=4)
    metrics = fit(short_gan(tmp_path / "run", task=task, conditioning=knowledge)).record.metrics
    assert metrics["collapsed"] is False
    assert "fails" not in caplog.text
    assert metrics["energy_reference"]["images"] == "validation images"
    assert metrics["energy_reference"]["real"] == 359
    assert metrics["energy_reference"]["generated"] == 500
    assert metrics["energy_reference"]["floor"] < metrics["energy"] < 0.5


@pytest.mark.parametrize(("task", "module"), [("gan", gan), ("vae", vae)])
def test_few_images_are_not_scored_more_often_than_they_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, module: ModuleType
) -> None:
    plans = []
    monkeypatch.setattr(module, "train_task", lambda *arguments, **_: plans.append(arguments[4]))
    loop = replace(LOOP, epochs=100, evaluate_every=None)
    for samples in (64, 480, 2000):
        options = GenerationConfig(latent=6, score_samples=samples)
        fit(gan_config(tmp_path / f"run{samples}", task=task, loop=loop, generation=options))
    # Of 160 images: 64 generated ones are fewer, 480 are three times as many, and 2,000 would make 7 evaluations.
    assert [plan.evaluate_every for plan in plans] == [1, 3, 5]


def deaf(spec: ModelSpec, preprocessing: Preprocessing) -> GeneratorNetwork:
    """Return a generator that does not see its latent: its images of one condition are all the same."""
    generator = build_generator(spec, preprocessing)
    generator.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]), *inputs[1:]))
    return generator


@pytest.mark.parametrize(("task", "condition"), [("gan", "none"), ("gan", "labels"), ("vae", "none")])
def test_a_collapse_is_noticed_in_a_short_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, task: str, condition: str
) -> None:
    monkeypatch.setattr(gan, "build_generator", deaf)
    knowledge = ConditioningConfig(condition=condition, condition_dim=4)
    run = fit(short_gan(tmp_path / "run", task=task, conditioning=knowledge, model="dsgan-4"))
    assert run.record.metrics["collapsed"] is True
    assert run.record.metrics["diversity"] < 0.01
    assert "collapsed" in json.loads((run.path / "run.json").read_text())["metrics"]
    assert "differ by 0.0% of what real images do" in caplog.text
    assert {"gan": "raise --r1", "vae": "Lower --beta"}[task] in caplog.text


def test_a_discriminator_that_wins_at_once_is_noticed_in_a_short_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The generator hardly moves, and its opponent does, fast.
    options = replace(SHORT, r1=0.0, discriminator_lr=0.02)
    run = fit(short_gan(tmp_path / "run", model="dcgan-16", generation=options, optim=OptimConfig(lr=1e-7)))
    assert run.record.metrics["collapsed"] is True
    assert "of the last 100 steps; the generator learns nothing from it. Lower --discriminator-lr" in caplog.text


def test_steps_that_go_wrong_are_named_when_they_are_many() -> None:
    won, lost = (torch.full((4,), 3.0), torch.full((4,), -3.0)), (torch.zeros(4), torch.zeros(4))
    images = 255 * torch.rand(4, 1, 4, 4)
    watch = CollapseWatch(500)
    for step in range(60):
        assert (watch.faults() == []) is (step < 50)
        watch(*(lost if step % 12 == 5 else won), images, images)
    assert len(watch.faults()) == 1
    for _ in range(30):
        watch(*lost, images, images)
    assert watch.faults() == []
    for _ in range(100):
        watch(*lost, images, images[:1].expand(4, -1, -1, -1))
    assert "the generated images were all the same in 100 of the last 100 steps" in watch.faults()[0]


def test_a_discriminator_that_always_wins_stops_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [5.0, -5.0, -5.0] * 100  # real, generated, and generated again for the generator's step

    def judge(task: GanTask, images: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        logits = task.discriminator(images, condition)
        return 0 * logits + verdicts.pop(0)

    monkeypatch.setattr(GanTask, "_judge", judge)
    wins = GenerationConfig(latent=6, patience=6, r1=0.0)
    with pytest.raises(TrainingError, match=r"classified every image of 7 steps correctly .* Lower --discriminator-lr"):
        fit(gan_config(tmp_path / "run", generation=wins))
    assert (tmp_path / "run" / CHECKPOINT).is_file()
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_images_that_are_all_the_same_stop_the_training() -> None:
    watch = CollapseWatch(2)
    logits, real = torch.zeros(4), 255 * torch.rand(4, 1, 4, 4)
    same = torch.full((4, 1, 4, 4), 9.0)
    for _ in range(2):
        watch(logits, logits, real, same)
    watch(logits, logits, real, real)  # one good step, and it counts from the beginning
    for _ in range(2):
        watch(logits, logits, real, same)
    with pytest.raises(TrainingError, match=r"of 3 steps are all the same .* the generator has collapsed"):
        watch(logits, logits, real, same)


def test_vae_losses_by_hand() -> None:
    mean, log_variance = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]])
    # KL of N(1, 1) is 1/2; of N(0, 4) it is (4 - 1 - log 4) / 2
    assert float(divergence(mean, log_variance)) == pytest.approx(0.5 + (3 - math.log(4)) / 2)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum()
    assert float(divergence(mean, log_variance)) == pytest.approx(float(expected))
    torch.manual_seed(0)
    decoded, images = torch.rand(5, 1, 3, 3), torch.rand(5, 1, 3, 3)
    sigma = (decoded - images).square().mean().sqrt()
    likelihood = torch.distributions.Normal(decoded, sigma).log_prob(images).sum((1, 2, 3)).mean()
    assert float(gaussian_likelihood(decoded, images)) == pytest.approx(-float(likelihood), rel=1e-5)


def test_a_vae_learns_to_reconstruct_and_its_decoder_is_the_run(tmp_path: Path) -> None:
    run = fit(
        gan_config(
            tmp_path / "run",
            task="vae",
            model="dsgan-4",
            generation=GenerationConfig(latent=6),
            data=DataConfig(data="digits", val_limit=80),
            loop=replace(LOOP, epochs=8),
            optim=OptimConfig(lr=0.01),
        )
    )
    history = run.record.history
    assert history[-1]["loss"] < history[0]["loss"] - 10
    assert history[-1]["val_psnr"] > 12  # the mean image of the digits has 11.4 dB
    assert set(load_file(run.path / WEIGHTS)) == set(run.module().backbone.state_dict())
    assert (run.path / "samples" / "reconstructions-0008.png").is_file()


def test_a_vae_with_a_condition(tmp_path: Path) -> None:
    knowledge = ConditioningConfig(condition="labels", condition_dim=4)
    run = fit(gan_config(tmp_path / "run", task="vae", generation=GenerationConfig(latent=6), conditioning=knowledge))
    assert run.module()(torch.randn(2, 6), torch.tensor([[1], [9]])).shape == (2, 1, 8, 8)


def test_a_folder_without_classes_will_do_and_an_empty_one_will_not(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(DataError, match="holds no images"):
        fit(gan_config(tmp_path / "none", data=DataConfig(data=str(folder))))
    for index in range(40):
        noise = np.random.default_rng(index).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    run = fit(gan_config(tmp_path / "run", data=DataConfig(data=str(folder)), loop=replace(LOOP, batch_size=8)))
    assert run.module()(torch.randn(1, 6)).shape == (1, 3, 9, 9)
    knowledge = ConditioningConfig(condition="labels")
    with pytest.raises(DataError, match="no classes"):
        fit(gan_config(tmp_path / "labels", data=DataConfig(data=str(folder)), conditioning=knowledge))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent": 0}, "--latent is 0"),
        ({"patience": 0}, "--patience is 0"),
        ({"score_samples": 10}, "--score-samples is 10; accepted: 64 or more"),
        ({"r1": -1.0}, "--r1 is -1.0"),
        ({"discriminator_lr": 0.0}, "--discriminator-lr is 0.0"),
    ],
)
def test_options_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GenerationConfig(**values)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    missing = GenerationConfig(latent=6, features=tmp_path / "nothing", score_samples=64)
    with pytest.raises(RunError, match="nothing does not exist"):
        fit(gan_config(tmp_path / "run", generation=missing))
    run = fit(gan_config(tmp_path / "done", loop=replace(LOOP, epochs=1)))
    with pytest.raises(UsageError, match="needs a generator that was trained with --condition labels"):
        evaluate(EvaluateConfig(run=run.path, generator=GeneratorScoreConfig(train_on_synthetic="resnet8")))
    classifier = train_run(tmp_path / "c", write_digits(tmp_path / "d", per_class=4, val_per_class=2), steps=1)
    options = GeneratorScoreConfig(features=classifier.path, score_samples=64)
    data = DataConfig(data="digits", val_limit=20)
    with pytest.raises(UsageError, match="64 generated and 20 real images are too few"):
        evaluate(EvaluateConfig(run=run.path, generator=options, data=data))


def test_options_of_classifiers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for classification"):
        fit(gan_config(tmp_path / "run", pretrained=True))


def test_the_command_line_trains_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    options = ["--task", "gan", "--model", "mlp-8", "--data", "digits", "--limit", "64", "--val-limit", "64"]
    options += ["--epochs", "1", "--batch-size", "32", "--latent", "3", "--diffaugment", "color", "cutout"]
    assert main(["fit", *options, "--device", "cpu", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "mlp-8" in printed
    assert re.search(
        r"^energy: distance of 2000 generated images from 64 validation images, 0 \(alike\) to 1$", printed, re.M
    )
    assert re.search(r"^two halves of the validation images have 0\.\d+; nothing is better than that$", printed, re.M)
    assert main(["evaluate", out, "--json", "--device", "cpu", "--score-samples", "2000", "--val-limit", "64"]) == 0
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert json.loads(capsys.readouterr().out)["energy"] == pytest.approx(recorded["energy"], abs=1e-3)
    assert main(["evaluate", out, "--against", out, "--score-samples", "64", "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["psnr"] is None  # the same images
    assert result["samples"] == 64
    assert main(["evaluate", out, "--against", out, "--score-samples", "64", "--device", "cpu"]) == 0
    assert "64 generated images" in capsys.readouterr().out
    assert main(["fit", "--task", "gan", "--model", "resnet8", "--data", "digits", "--out", out + "2"]) == 2
    assert "unknown model 'resnet8' for gan; accepted: dcgan-W" in capsys.readouterr().err


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="trains in one process"):
        fit(gan_config(tmp_path / "run"))


def test_a_third_party_generator_is_imported(tmp_path: Path) -> None:
    third_party, asked = third_party_generator(tmp_path, latent=5, hidden=7, size=(4, 6), channels=3)
    run = import_weights(asked)
    latent = torch.randn(2, 5)
    expected = (third_party(latent).reshape(2, 3, 4, 6) + 1) * 127.5
    torch.testing.assert_close(run.module()(latent), expected)
    assert run.record.metrics["macs"] == 5 * 7 + 7 * 72
    with pytest.raises(UsageError, match="give --size, --channels and --latent"):
        import_weights(replace(asked, latent=None))
    with pytest.raises(KrlError, match=r"does not fit the network: .*of another shape"):
        import_weights(replace(asked, latent=4, out=tmp_path / "other"))
    options = GeneratorScoreConfig(features=tmp_path / "classifier")
    with pytest.raises(UsageError, match="imported; give --data"):
        evaluate(EvaluateConfig(run=run.path, generator=options))

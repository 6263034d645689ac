"""What follows from the number of images; which epoch is kept; classes with unlike numbers of images."""

import itertools
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from krl_runtime.errors import RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import (
    AugmentConfig,
    DataConfig,
    FitConfig,
    InputConfig,
    LoopConfig,
    OptimConfig,
    Plan,
    log_plan,
    plan_loop,
    plan_optim,
)
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream, Trainer
from krl_train.metrics.classification import standard_error
from krl_train.run import Run
from krl_train.tasks import Batch, ClassificationTask, Supervised
from krl_train.tasks.optim import learning_rate_factor
from krl_train.training.balance import class_weights
from krl_train.training.fit import fit
from krl_train.worker import Worker

CPU = Worker(torch.device("cpu"))


@pytest.mark.parametrize("count", [1, 5, 20, 100, 244, 1000, 5000, 50_000, 2_000_000])
def test_each_number_of_images_gets_enough_steps(count):
    plan = plan_loop(LoopConfig(), count)
    assert 8 <= plan.batch_size <= 128
    assert plan.batch_size & (plan.batch_size - 1) == 0
    assert 30 <= plan.epochs <= 300
    steps = max(1, int(count / plan.batch_size + 0.5))
    assert plan.epochs == 300 or plan.epochs * steps >= 1200
    assert plan_loop(plan, count) == plan


def test_what_is_given_stays():
    plan = plan_loop(LoopConfig(epochs=2, batch_size=100, seed=5, evaluate_every=2), 10, val=1000)
    assert (plan.epochs, plan.batch_size, plan.seed, plan.evaluate_every) == (2, 100, 5, 2)
    optim = plan_optim(OptimConfig(warmup=0.3, ema=0.9), 10**6)
    assert (optim.warmup, optim.ema) == (0.3, 0.9)


@pytest.mark.parametrize(("count", "val"), [(20, 5), (20, 20), (20, 2000), (1000, 10_000), (2_000_000, 50_000)])
def test_evaluations_cost_little_but_are_enough(count, val):
    plan = plan_loop(LoopConfig(), count, val)
    evaluations = plan.epochs // plan.evaluate_every
    assert evaluations >= 20
    assert evaluations * val <= plan.epochs * count or evaluations < 40
    if val <= count:
        assert plan.evaluate_every == 1


@pytest.mark.parametrize("steps", [1, 10, 1200, 40_000, 500_000])
def test_the_warm_up_is_short(steps):
    plan = plan_optim(OptimConfig(), steps)
    assert plan.warmup * steps <= 2000.0001
    assert plan.warmup == 0.05 or plan.warmup * steps == pytest.approx(2000)
    rates = [learning_rate_factor(plan, step, steps) for step in range(min(steps, 3000))]
    first = int(plan.warmup * steps)
    assert all(before < after for before, after in itertools.pairwise(rates[: first + 1]))
    assert rates[min(first, len(rates) - 1)] == pytest.approx(1)
    assert plan_optim(plan, steps) == plan


@pytest.mark.parametrize("steps", [1, 4, 100, 100_000])
def test_an_average_forgets_the_beginning(steps):
    """Whatever decay is given: after all steps the first weights have less than 1 %, and every later one has more."""
    decay = plan_optim(OptimConfig(ema=0.9999), steps).ema
    assert decay <= 0.9999
    assert decay**steps < 0.01


@pytest.mark.parametrize(
    ("count", "batch", "sizes"), [(40, 16, [16, 16, 8]), (33, 16, [16, 17]), (244, 128, [128, 116]), (5, 128, [5])]
)
def test_all_images_are_used_and_no_batch_is_tiny(count, batch, sizes):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)
    augmentation = Augmentation.resolve(AugmentConfig(), Preprocessing(8, 8), flip=True, seed=0)
    stream = BatchStream(PixelSet(pixels, [0] * count), augmentation, batch, seed=0)
    batches = list(stream.epoch(0, 0, CPU))
    assert [len(item.labels) for item in batches] == sizes
    assert sorted(torch.cat([item.indices for item in batches]).tolist()) == list(range(count))


def test_balanced_sampling_shows_each_class_as_often():
    labels = [0] * 90 + [1] * 9 + [2] * 3
    pixels = np.zeros((102, 3, 8, 8), np.uint8)
    augmentation = Augmentation.resolve(AugmentConfig(), Preprocessing(8, 8), flip=False, seed=0)
    stream = BatchStream(PixelSet(pixels, labels), augmentation, 16, seed=0, balanced=True)
    shown = [torch.cat([item.indices for item in stream.epoch(epoch, 0, CPU)]) for epoch in range(2)]
    for indices in shown:
        assert np.bincount(np.array(labels)[indices.numpy()]).tolist() == [34, 34, 34]
        repeats = np.bincount(indices.numpy(), minlength=102)
        assert repeats[:90].max() == 1  # nothing is repeated before all of a class were shown
        assert repeats[99:].min() >= 11
    assert set(shown[0].tolist()) != set(shown[1].tolist())
    resumed = next(iter(stream.epoch(1, 3, CPU)))
    assert resumed.indices.tolist() == shown[1][48:64].tolist()


def test_class_weights_are_those_of_scikit_learn():
    utils = pytest.importorskip("sklearn.utils.class_weight")
    labels = [0] * 50 + [1] * 8 + [2] * 2
    train = PixelSet(np.zeros((60, 1, 2, 2), np.uint8), labels)
    assert class_weights(train, LoopConfig()) is None
    made = class_weights(train, LoopConfig(balance="weights"))
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-6)


def test_weights_reach_the_loss():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.3]])

    class Fixed(torch.nn.Module):
        def answer(self, pixels, further):
            return logits

    batch = Batch(torch.zeros(2, 1, 1, 1), torch.tensor([0, 2]), torch.arange(2), view=0)
    weights = torch.tensor([0.5, 1.0, 4.0])
    found = Supervised(Fixed(), class_weights=weights)(batch)["loss"]
    each = -torch.log_softmax(logits, 1)[torch.arange(2), batch.labels]
    assert torch.allclose(found, (each * torch.tensor([0.5, 4.0])).sum() / 4.5)


def folder_of(path, counts, size=16):
    """Classes that differ in their mean color."""
    rng = np.random.default_rng(0)
    for split, share in (("train", 1), ("val", 4)):
        for number, (name, count) in enumerate(counts.items()):
            (path / split / name).mkdir(parents=True)
            for index in range(max(2, count // share)):
                pixels = np.clip(rng.normal(40 + 70 * number, 40, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{index}.png")
    return path


def config(data, out, **loop):
    return FitConfig(
        model="resnet8", out=out, data=DataConfig(data=str(data)), input=InputConfig(size=(16,)),
        loop=LoopConfig(**{"epochs": 4, "batch_size": 8, "device": "cpu", "precision": "fp32", **loop}),
    )  # fmt: skip


def test_the_plan_is_logged_and_recorded_and_what_was_asked_for_is_compared(tmp_path, caplog):
    data = folder_of(tmp_path / "data", {"cat": 16, "dog": 16})
    asked = replace(config(data, tmp_path / "run"), optim=OptimConfig(ema=0.99))
    with caplog.at_level(logging.INFO, "krl"):
        run = fit(asked)
    assert (
        "plan: 32 images, batches of 8: 4 steps in an epoch, 4 epochs, 16 steps in all; learning rate 0.00625 after 0 "
        "steps of warm-up; moving average 0.6875; evaluation every epoch, checkpoint every epoch" in caplog.text
    )
    assert "plan: views: flip on, shift 2, rotate 0, zoom 1, mixup 0" in caplog.text
    record = json.loads((run.path / "run.json").read_text())
    views = {"flip": True, "shift": 2, "rotate": 0.0, "zoom": 1.0, "mixup": 0.0}
    assert record["plan"] == {
        **{"images": 32, "batch_size": 8, "steps_per_epoch": 4, "epochs": 4, "steps": 16},
        **{
            "evaluate_every": 1,
            "checkpoint_every": 1,
            "lr": 0.00625,
            "warmup_steps": 0,
            "ema": 0.6875,
            "augmentation": views,
        },
    }
    assert record["configuration"]["optim"]["ema"] == 0.99
    assert record["configuration"]["optim"]["warmup"] is None
    assert record["configuration"]["loop"]["evaluate_every"] is None
    with pytest.raises(RunError, match=r"warmup was None, now 0\.05"):
        fit(replace(asked, optim=OptimConfig(ema=0.99, warmup=0.05), resume=True))


def test_a_batch_of_one_image_is_refused_where_the_network_needs_more(tmp_path):
    """With 32x32 pixels the last feature maps of this network have one value for each image."""
    data = folder_of(tmp_path / "data", {"cat": 5, "dog": 4}, size=32)
    loop = LoopConfig(epochs=1, batch_size=2, device="cpu", precision="fp32")
    asked = replace(config(data, tmp_path / "run"), model="mobilenet_v3_small", input=InputConfig(size=(32,)))
    with pytest.raises(UsageError, match=r"a step has one image, of 9 in batches of 2: .* --batch-size 3 or more"):
        fit(replace(asked, loop=loop))
    fit(replace(asked, loop=replace(loop, batch_size=3), overwrite=True))


def test_a_batch_of_more_than_all_images_is_warned_of(caplog):
    plan = plan_loop(LoopConfig(batch_size=64), 20)
    with caplog.at_level(logging.WARNING, "krl"):
        log_plan(Plan.of(plan_loop(LoopConfig(), 3), plan_optim(OptimConfig(), 300), 3, 1, 0.1, {}))
        assert not caplog.messages
        log_plan(Plan.of(plan, plan_optim(OptimConfig(), 300), 20, 1, 0.1, {}))
    assert "batches of 64 are more than all 20 images" in caplog.text


def test_rare_classes_are_named_with_the_option_that_helps(tmp_path, caplog):
    data = folder_of(tmp_path / "data", {"often": 24, "rare": 4, "seldom": 8})
    with caplog.at_level(logging.INFO, "krl"):
        fit(config(data, tmp_path / "run", epochs=1))
    assert (
        "classes have 4 to 24 training images (rare 4, seldom 8); --balance sampling or --balance weights"
        in caplog.text
    )
    assert "plan: 36 images, batches of 8: 5 steps in an epoch, 1 epochs, 5 steps in all" in caplog.text
    assert "5 steps are too few to train a network" in caplog.text
    caplog.clear()
    fit(config(data, tmp_path / "again", epochs=1, balance="sampling"))
    assert "--balance" not in caplog.text


def test_the_best_epoch_is_kept(tmp_path, monkeypatch):
    """The metrics are planted; the weights have to be those of the epoch that they praise."""
    data = folder_of(tmp_path / "data", {"a": 16, "b": 16})
    seen = []
    planted = iter([0.5, 0.9, 0.9, 0.7])

    def evaluate(task, worker):
        seen.append({name: value.clone() for name, value in task.state().items()})
        return {"count": 8, "top1": next(planted), "loss": 1.0}

    monkeypatch.setattr(ClassificationTask, "evaluate", evaluate)
    run = fit(config(data, tmp_path / "run"))
    assert (run.record.metrics["top1"], run.record.metrics["epoch"]) == (0.9, 2)
    kept = Run.open(run.path).state()
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())
    assert not all(torch.equal(kept[name], value) for name, value in seen[3].items())


@pytest.mark.parametrize("keep", ["best", "last"])
def test_early_stopping(tmp_path, monkeypatch, keep, caplog):
    data = folder_of(tmp_path / "data", {"a": 16, "b": 16})
    planted = iter([0.5, 0.9, 0.8, 0.7, 0.95, 0.95])
    monkeypatch.setattr(ClassificationTask, "evaluate", lambda task, worker: {"top1": next(planted), "loss": 1.0})
    with caplog.at_level(logging.INFO, "krl"):
        run = fit(config(data, tmp_path / "run", epochs=6, keep=keep, early_stopping=2))
    assert len(run.record.history) == 4
    assert run.record.metrics["top1"] == {"best": 0.9, "last": 0.7}[keep]
    assert "stopped after epoch 4: 2 evaluations were no better" in caplog.text


@pytest.mark.parametrize(("minutes", "saved"), [(0.0, list(range(1, 61))), (1e6, list(range(2, 61, 2)))])
def test_epochs_of_one_step_have_checkpoints_in_time(tmp_path, monkeypatch, minutes, saved):
    data = folder_of(tmp_path / "data", {"a": 4, "b": 4})
    monkeypatch.setattr(ClassificationTask, "evaluate", lambda task, worker: {"top1": 0.5, "loss": 1.0})
    clock = itertools.count()  # a second between any two looks at it
    monkeypatch.setattr("krl_train.loop.trainer.time", SimpleNamespace(monotonic=lambda: next(clock)))
    epochs = []
    monkeypatch.setattr(Trainer, "save", lambda trainer: epochs.append(trainer.state.epoch))
    fit(config(data, tmp_path / "run", epochs=60, checkpoint_minutes=minutes))
    assert epochs == saved


def test_the_best_epoch_survives_an_interruption(tmp_path, monkeypatch):
    data = folder_of(tmp_path / "data", {"a": 16, "b": 16})
    planted = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.7}
    weights = {}

    def evaluate(task, worker):
        epoch = 1 + max(weights, default=0)
        weights[epoch] = {name: value.clone() for name, value in task.state().items()}
        return {"top1": planted[epoch], "loss": 1.0}

    real = Trainer.save

    def save(trainer):
        real(trainer)
        if trainer.state.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ClassificationTask, "evaluate", evaluate)
    asked = config(data, tmp_path / "run")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(Trainer, "save", save)
        with pytest.raises(KeyboardInterrupt):
            fit(asked)
    run = fit(replace(asked, resume=True))
    assert (run.record.metrics["top1"], run.record.metrics["epoch"]) == (0.9, 2)
    kept = Run.open(run.path).state()
    assert all(torch.equal(kept[name], value) for name, value in weights[2].items())


def test_a_training_of_many_epochs_has_few_checkpoints_and_can_be_resumed(tmp_path, monkeypatch):
    data = folder_of(tmp_path / "data", {"a": 4, "b": 4}, size=8)
    asked = replace(config(data, tmp_path / "run", epochs=65), input=InputConfig(size=(8,)))
    whole = fit(replace(asked, out=tmp_path / "whole"))
    real, saved = Trainer.save, []

    def save(trainer):
        real(trainer)
        saved.append(trainer.state.epoch)
        if trainer.state.epoch == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save)
    with pytest.raises(KeyboardInterrupt):
        fit(asked)
    run = fit(replace(asked, resume=True))
    assert saved == [2, 4, 6, *range(8, 66, 2), 65]
    assert run.record.weights_sha256 == whole.record.weights_sha256
    assert [entry["epoch"] for entry in run.record.history] == list(range(1, 66))


def test_the_standard_error_covers_the_truth():
    """About 68 of 100 intervals of one standard error hold the true share; at shares near 1 they must not be empty."""
    rng = np.random.default_rng(0)
    for share, count in ((0.5, 50), (0.9, 100), (0.97, 60)):
        hits = rng.binomial(count, share, 4000)
        inside = [abs((hit + 1) / (count + 2) - share) <= standard_error(hit / count, count) for hit in hits]
        assert 0.6 <= np.mean(inside) <= 0.8
    assert standard_error(1.0, 10) > 0.05

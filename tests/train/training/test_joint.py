"""A training on two labelings at once: its loss, its batches, its start, and what its run is good for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from _helpers.labelings import PARITY, write_parity
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import ModelError, RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train import evaluate
from krl_train.cli import main
from krl_train.config import AugmentConfig, DataConfig, FitConfig, JointConfig, LoopConfig, OptimConfig, TransferConfig
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream
from krl_train.loop.joint import JointStream
from krl_train.models import TwoHeads, build_model
from krl_train.run import RECORD, Run
from krl_train.tasks.base import Batch
from krl_train.tasks.joint import JointBatch, JointSupervised
from krl_train.training.fit import fit
from krl_train.worker import Worker

LOOP = LoopConfig(epochs=2, batch_size=16, device="cpu", precision="fp32")
DIGITS = tuple(map(str, range(10)))


class Plain(nn.Module):
    """A network without normalization, so that weights that do not move answer as they did."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 48), nn.Linear(48, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(x.flatten(1)).relu())


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parity(tmp_path_factory.mktemp("labelings") / "parity")


def config(out: Path, data: Path, **changes) -> FitConfig:
    base = FitConfig(
        model="resnet8", out=out, data=DataConfig(data=str(data)), loop=LOOP, joint=JointConfig(source_data="digits")
    )
    return replace(base, **changes)


def test_both_heads_learn_and_the_run_says_so(tmp_path: Path, parity: Path) -> None:
    run = fit(config(tmp_path / "run", parity, loop=replace(LOOP, epochs=60)))
    record = Run.open(run.path).record
    assert (record.labels, record.source_labels) == (PARITY, DIGITS)
    assert record.metrics["top1"] > 0.8  # chance is 0.5
    assert record.metrics["source_top1"] > 0.6  # chance is 0.1
    assert len(record.metrics["source_recall"]) == 10
    assert record.data["train"]["count"] == 40
    assert record.data["joint"]["train"]["count"] == 1438  # all of the digits but the fifth that is held out
    best = max(entry["val_top1"] for entry in record.history if "val_top1" in entry)
    assert record.metrics["top1"] == best  # the target's head says which epoch is best
    logits = run.network()(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert logits.shape == (3, 2)  # whoever takes the run takes the target's head


def _softmax_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels].mean())


def test_the_loss_is_that_of_the_target_plus_the_weighted_one_of_the_source(tmp_path: Path) -> None:
    """Computed by numpy, with the statistics of both batches together in the normalization."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(9, 5))
    network = TwoHeads(backbone, Preprocessing(3, 3, channels=1, mean=(0.5,), std=(0.25,)), 2, 3)
    random = np.random.default_rng(0)
    target, source = (random.integers(0, 256, (count, 1, 3, 3)).astype(np.uint8) for count in (4, 6))
    source //= 3  # of another brightness
    labels, other = np.array([0, 1, 1, 0]), np.array([2, 0, 1, 2, 2, 1])
    batch = JointBatch(
        *(torch.from_numpy(array) for array in (target, labels, np.arange(4))),
        view=0,
        source=Batch(*(torch.from_numpy(array) for array in (source, other, np.arange(6))), view=0),
    )
    found = JointSupervised(network, 0.3)(batch)

    pixels = np.concatenate([target, source]) / 255
    pixels = (pixels - 0.5) / 0.25
    normal = (pixels - pixels.mean()) / np.sqrt(pixels.var() + 1e-5)
    logits = normal.reshape(10, 9) @ backbone[2].weight.detach().numpy().T + backbone[2].bias.detach().numpy()
    of_target, of_source = _softmax_loss(logits[:4, :2], labels), _softmax_loss(logits[4:, 2:], other)
    assert found["target_loss"].item() == pytest.approx(of_target, rel=1e-5)
    assert found["source_loss"].item() == pytest.approx(of_source, rel=1e-5)
    assert found["loss"].item() == pytest.approx(of_target + 0.3 * of_source, rel=1e-5)


def _pixels(count: int, first: int) -> PixelSet:
    """Return images that show their number in the data, from ``first`` on."""
    values = np.arange(first, first + count, dtype=np.uint8)
    return PixelSet(np.broadcast_to(values[:, None, None, None], (count, 1, 8, 8)).copy(), [0] * count)


def _stream(mixup: float = 0.0) -> JointStream:
    preprocessing = Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,))
    asked = AugmentConfig(crop_padding=0, flip="none", mixup=mixup)
    views = [Augmentation.resolve(asked, preprocessing, flip=False, seed=seed) for seed in (0, 5)]
    source = BatchStream(_pixels(12, 100), views[1], 4, seed=5)
    return JointStream(_pixels(20, 0), views[0], 4, seed=0, source=source)


def _shown(batch: Batch) -> list[int]:
    return batch.pixels[:, 0, 0, 0].tolist()


def test_the_source_goes_on_from_epoch_to_epoch_and_begins_anew_after_its_last_batch() -> None:
    stream, worker = _stream(), Worker(torch.device("cpu"))
    steps = [batch for epoch in range(3) for batch in stream.epoch(epoch, 0, worker)]
    assert len(steps) == 15  # five batches of the target in each epoch, three in one of the source
    source = [number for batch in steps for number in _shown(batch.source)]
    for round_ in range(5):
        assert sorted(source[12 * round_ : 12 * (round_ + 1)]) == list(range(100, 112))
    assert source[:12] != source[12:24]  # each time in another order
    assert all(sorted(n for b in steps[5 * e : 5 * e + 5] for n in _shown(b)) == list(range(20)) for e in range(3))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_from_the_middle_of_an_epoch_and_in_two_processes_the_batches_are_the_same(mixup: float) -> None:
    stream, worker = _stream(mixup), Worker(torch.device("cpu"))
    whole = list(stream.epoch(1, 0, worker))
    rest = list(stream.epoch(1, 3, worker))
    for mine, theirs in zip(rest, whole[3:], strict=True):
        assert _shown(mine) == _shown(theirs)
        assert _shown(mine.source) == _shown(theirs.source)
        assert (mine.share, mine.source.share) == (theirs.share, theirs.source.share)
    halves = [list(stream.epoch(1, 0, Worker(torch.device("cpu"), rank, 2))) for rank in range(2)]
    for first, second, one in zip(*halves, whole, strict=True):
        indices = [batch.source.indices.tolist() for batch in (first, second, one)]
        assert sorted(indices[0] + indices[1]) == sorted(indices[2])


def test_resumed_in_mid_epoch_is_as_if_never_stopped(tmp_path: Path, parity: Path) -> None:
    changes = {
        "optim": OptimConfig(ema=0.9, label_smoothing=0.1),
        "augment": AugmentConfig(mixup=0.3),
        "joint": JointConfig(source_data="digits", source_weight=0.5),
    }
    balanced = replace(LOOP, balance="sampling")
    whole = fit(config(tmp_path / "whole", parity, loop=balanced, **changes)).record
    stopped = config(tmp_path / "stopped", parity, loop=replace(balanced, checkpoint_minutes=0.0), **changes)
    with stopped_at_checkpoint(4) as saves, pytest.raises(KeyboardInterrupt):
        fit(stopped)
    assert saves[-1] != 0
    assert fit(replace(stopped, resume=True)).record.weights_sha256 == whole.weights_sha256
    other = replace(stopped, resume=True, joint=JointConfig(source_data="digits", source_weight=0.6))
    with pytest.raises(RunError, match=r"source_weight was 0\.5, now 0\.6"):
        fit(other)
    with pytest.raises(RunError, match="the train images are others: 1438 were, now 40"):
        fit(replace(other, joint=JointConfig(source_data=str(parity), source_weight=0.5)))


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path, parity: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "krl_train", "fit", "--data", str(parity), "--source-data", "digits", "--model", "resnet8"]
    command += ["--epochs", "2", "--batch-size", "16", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = Run.open(tmp_path / "run").record
    for head, data in (("", str(parity)), ("source_", "digits")):
        measured = evaluate(run=tmp_path / "run", data=data).metrics
        assert measured["top1"] == record.metrics[f"{head}top1"]


@pytest.mark.parametrize("given", ["the source's data", "the run alone"])
def test_the_head_of_the_run_that_it_starts_from_becomes_the_sources(tmp_path: Path, parity: Path, given: str) -> None:
    """With a learning rate of almost nothing the source's head answers as the run did, to images of its own size."""
    alone = FitConfig(
        model=Plain, out=tmp_path / "source", data=DataConfig(data="digits"), loop=replace(LOOP, epochs=3)
    )
    source = fit(alone).record
    assert source.metrics["top1"] > 0.5
    joint = JointConfig(source_data="digits") if given == "the source's data" else JointConfig(source_weight=1.0)
    asked = config(
        tmp_path / "run",
        parity,
        model=Plain,
        joint=joint,
        transfer=TransferConfig(str(tmp_path / "source")),
        optim=OptimConfig(lr=1e-12, weight_decay=0.0),
    )
    record = fit(asked).record
    assert record.metrics["source_recall"] == source.metrics["recall"]
    assert record.metrics["source_confusion"] == source.metrics["confusion"]
    assert record.parent["weights_sha256"] == source.weights_sha256
    assert record.preprocessing == source.preprocessing


def test_images_are_shown_to_the_network_at_the_targets_size_and_in_its_channels(tmp_path: Path, parity: Path) -> None:
    asked = replace(config(tmp_path / "run", parity), data=DataConfig(data="digits", limit=40, val_limit=20))
    asked = replace(asked, joint=JointConfig(source_data=str(parity)))
    colored = replace(asked, input=replace(asked.input, size=(12,), channels=3), loop=replace(LOOP, epochs=1))
    record = fit(colored).record
    assert record.preprocessing.shape == (3, 12, 12)
    assert record.labels == DIGITS
    assert record.metrics["source_count"] == 20  # --val-limit holds for both
    assert record.data["joint"]["train"]["count"] == 40  # --limit for the target alone: parity has 40
    assert record.data["train"]["count"] == 40


def test_a_run_is_measured_by_the_head_that_knows_the_datas_classes(
    tmp_path: Path, parity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(config(tmp_path / "run", parity))
    target, source = (evaluate(run=run.path, data=data).metrics for data in (str(parity), "digits"))
    assert (target["head"], source["head"]) == ("target", "source")
    assert target["top1"] == run.record.metrics["top1"]
    assert source["top1"] == run.record.metrics["source_top1"]
    assert (target["trained_images"], source["trained_images"]) == (0, 0)
    assert evaluate(run=run.path, data="digits", split="train").metrics["trained_images"] == 1438
    assert evaluate(run=run.path).metrics["head"] == "target"
    assert main(["evaluate", str(run.path), "--data", "digits"]) == 0
    assert "head: source" in capsys.readouterr().out


def test_a_later_training_starts_from_the_targets_head(tmp_path: Path, parity: Path) -> None:
    joint = fit(config(tmp_path / "joint", parity, model=Plain, loop=replace(LOOP, epochs=4)))
    still = OptimConfig(lr=1e-12, weight_decay=0.0)
    after = config(
        tmp_path / "after", parity, model=Plain, joint=JointConfig(), optim=still, transfer=TransferConfig(joint.path)
    )
    record = fit(after).record
    assert record.source_labels == ()
    assert record.metrics["confusion"] == joint.record.metrics["confusion"]


@pytest.mark.parametrize("name", ["lenet5", "wrn-16-1", "mobilenet_v3_small", "vgg11_bn", "squeezenet1_0"])
def test_any_network_has_two_heads(name: str) -> None:
    side, channels = {"lenet5": (32, 1), "wrn-16-1": (32, 3)}.get(name, (64, 3))
    preprocessing = Preprocessing(side, side, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    network = TwoHeads(build_model(name, 5, channels), preprocessing, 2, 3).eval()
    pixels = torch.randint(0, 256, (2, channels, side, side), dtype=torch.uint8)
    target, source = network.both(pixels)
    assert (target.shape, source.shape) == ((2, 2), (2, 3))
    assert torch.equal(network(pixels), target)
    assert torch.equal(network.source()(pixels), source)
    assert torch.equal(network.answering([1, 0])(pixels), target[:, [1, 0]])


def test_what_cannot_be_is_refused(tmp_path: Path, parity: Path) -> None:
    asked = config(tmp_path / "run", parity)
    with pytest.raises(UsageError, match=r"--source-weight is 0\.0; accepted: above 0"):
        JointConfig(source_data="digits", source_weight=0.0)
    with pytest.raises(UsageError, match="--source-weight needs a source: give --source-data, or a run with --from"):
        fit(replace(asked, joint=JointConfig(source_weight=1.0)))
    with pytest.raises(UsageError, match="--source-data is for classification; the task is vae"):
        fit(replace(asked, task="vae", model="dcgan-16"))
    with pytest.raises(ModelError, match="two heads it has the 2 outputs of the target's classes and then the 10"):
        fit(replace(asked, model=Plain(10)))
    fit(replace(asked, loop=replace(LOOP, epochs=1)))
    with pytest.raises(RunError, match="is a resnet8; its weights do not fit the network asked for"):
        fit(replace(asked, out=tmp_path / "other", model="resnet14", transfer=TransferConfig(str(tmp_path / "run"))))
    with pytest.raises(UsageError, match="--transfer is for one labeling; with --source-data all weights are trained"):
        fit(replace(asked, transfer=TransferConfig(str(tmp_path / "run"), transfer="linear")))
    with pytest.raises(UsageError, match="--accumulate is for one labeling"):
        fit(replace(asked, loop=replace(LOOP, accumulate=2)))


def test_the_record_of_a_run_without_a_second_head_is_read_as_before(tmp_path: Path, parity: Path) -> None:
    run = fit(config(tmp_path / "run", parity, joint=JointConfig(), loop=replace(LOOP, epochs=1)))
    values = json.loads((run.path / RECORD).read_bytes())
    del values["source_labels"]
    (run.path / RECORD).write_text(json.dumps(values))
    assert Run.open(run.path).record.source_labels == ()

"""Networks that are trained at the same time keep one epoch, and see classes as they are asked to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from krl_compress.config import MutualConfig
from krl_compress.distillation.together import mutual
from krl_compress.distillers import PeerTask
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig, LoopConfig, OptimConfig
from krl_train.data import PixelSet
from krl_train.models import Network, build_model
from krl_train.tasks import Batch

DIGITS = DataConfig(data="digits", limit=200, val_limit=100)
LOOP = LoopConfig(epochs=5, batch_size=40, device="cpu", precision="fp32")


def _config(out: Path, **changes) -> MutualConfig:
    peers = ("dscnn-0.25", "resnet8")
    # A rate at which the last epoch is seldom the best one.
    return MutualConfig(
        peer=peers, out=out, data=DIGITS, optim=OptimConfig(lr=0.5, schedule="constant"), loop=LOOP, **changes
    )


def test_all_networks_are_of_the_epoch_in_which_the_first_one_is_best(tmp_path: Path) -> None:
    first, second = mutual(_config(tmp_path / "best"))
    history = first.record.history
    best = max(history, key=lambda entry: (entry["val_top1"], -entry["val_loss"]))
    assert first.record.metrics["top1"] == best["val_top1"]
    assert second.record.metrics["top1"] == best["val_net1_top1"]
    last, other = mutual(replace(_config(tmp_path / "last"), loop=replace(LOOP, keep="last")))
    assert last.record.metrics["top1"] == history[-1]["val_top1"]
    assert other.record.metrics["top1"] == history[-1]["val_net1_top1"]


def test_early_stopping_ends_the_training(tmp_path: Path) -> None:
    loop = replace(LOOP, epochs=40, early_stopping=1)
    first, _ = mutual(replace(_config(tmp_path / "run"), loop=loop))
    tops = [(entry["val_top1"], -entry["val_loss"]) for entry in first.record.history]
    assert len(tops) < 40
    assert tops[-1] <= max(tops[:-1])
    assert all(later > max(tops[: index + 1]) for index, later in enumerate(tops[1:-1]))


def test_class_weights_count_in_the_labels_loss() -> None:
    torch.manual_seed(0)
    nets = [Network(build_model("resnet8", 4, 3), Preprocessing(16, 16)).eval() for _ in range(2)]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16)).astype(np.uint8)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3])
    weights = torch.tensor([0.4, 2.0, 1.0, 3.0])
    task = PeerTask(
        nets,
        [[], []],
        OptimConfig(),
        temperature=1.0,
        weight=1.0,
        steps=1,
        batch_size=8,
        val=PixelSet(pixels, labels.tolist()),
        labels=tuple("abcd"),
        class_weights=weights,
    )
    parts = task.step(Batch(torch.from_numpy(pixels), labels, torch.arange(8), 0), lambda name, loss: None)
    for index, net in enumerate(nets):
        with torch.no_grad():
            z = net(torch.from_numpy(pixels)).double().numpy()
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        w = weights.numpy()[labels.numpy()]
        expected = -(w * log_p[np.arange(8), labels.numpy()]).sum() / w.sum()
        assert parts[f"net{index}"].item() == pytest.approx(expected, rel=1e-5)

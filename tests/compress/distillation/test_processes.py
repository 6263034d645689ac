"""Trainings under torchrun, in two processes: what the run says is what its weights give."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krl_compress.config import DistillConfig, StudyConfig
from krl_compress.distillation.distill import distill
from krl_compress.studies import study
from krl_runtime.errors import UsageError
from krl_train.config import DataConfig, EvaluateConfig, FitConfig, LoopConfig
from krl_train.evaluation.evaluate import evaluate
from krl_train.run import Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=1, batch_size=32, device="cpu", precision="fp32")


def in_two(arguments: list[str], port: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), "-m"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_the_weights_that_are_kept(tmp_path: Path) -> None:
    """With batch normalization each process has statistics of its own; the run keeps one set of them."""
    options = ["--peer", "resnet8", "--peer", "dscnn-0.25", "--data", "digits", "--limit", "200", "--val-limit", "101"]
    options += ["--epochs", "2", "--batch-size", "50", "--mixup", "0.5", "--ema", "0.8", "--device", "cpu"]
    options += ["--cutmix", "1", "--random-resized-crop", "--auto-augment", "randaugment", "--erase", "0.3"]
    out = tmp_path / "run"
    in_two(["krl_compress", "mutual", *options, "--out", str(out)], 28100 + os.getpid() % 900)
    for path in (out, out / "net1"):
        metrics = Run.open(path).record.metrics
        again = evaluate(EvaluateConfig(run=path, data=DataConfig(val_limit=101), device="cpu"))
        assert metrics["count"] == again["images"] == 101
        assert metrics["confusion"] == again["confusion"]
        assert metrics["loss"] == pytest.approx(again["loss"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_against_a_discriminator(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("A", "B"):
        for split in ("train", "val"):
            (tmp_path / "pairs" / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pairs" / split / name / f"{index}.png")
    options = ["--task", "translation", "--model", "unet-8-2", "--data", str(tmp_path / "pairs"), "--size", "32"]
    options += ["--epochs", "2", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    in_two(["krl_train", "fit", *options], 27100 + os.getpid() % 900)
    metrics = Run.open(tmp_path / "run").record.metrics
    again = evaluate(EvaluateConfig(run=tmp_path / "run", device="cpu"))
    assert metrics["psnr"] == pytest.approx(again["psnr"], abs=1e-3)


def test_what_needs_a_single_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(data="digits", limit=64, val_limit=32)
    teacher = fit(FitConfig(task="gan", model="dcgan-8", data=data, loop=LOOP, out=tmp_path / "teacher"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = DistillConfig(teacher=(str(teacher.path),), student="dcgan-4", data=data, loop=LOOP, out=tmp_path / "run")
    for wanted in (asked, replace(asked, losses=replace(asked.losses, loss=("pixels",)))):
        with pytest.raises(UsageError, match="a generator's student trains in one process; start it without torchrun"):
            distill(wanted)
    with pytest.raises(UsageError, match="a study runs in one process"):
        study(StudyConfig(teacher=str(teacher.path), student=("resnet8",), out=tmp_path / "study"))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "study").exists()

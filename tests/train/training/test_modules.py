"""Synchronized batch normalization, and compiled networks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from _helpers.resuming import stopped_at_checkpoint
from krl_compress.config import DistillConfig, LossConfig
from krl_compress.distillation.distill import distill
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig, FitConfig, LoopConfig, OptimConfig, plan_optim
from krl_train.loop.modules import compile_network, compiling, convert_batch_norm, synchronize_batch_norm
from krl_train.models import Network
from krl_train.run import WEIGHTS, ModelSpec
from krl_train.tasks import Supervised, make_learner
from krl_train.tasks.learners import moving_average
from krl_train.tasks.optim import build_optimizer
from krl_train.training.fit import fit
from krl_train.worker import Worker

LOOP = LoopConfig(epochs=2, batch_size=32, device="cpu", precision="fp32", checkpoint_minutes=0)
DATA = DataConfig("digits", limit=64, val_limit=40)


def resnet() -> Network:
    torch.manual_seed(0)
    size = Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,))
    return ModelSpec("resnet8", 10, 1).build(size)


def learner_of(network: Network) -> Any:
    objective = Supervised(network)
    planned = plan_optim(OptimConfig(ema=0.5), 100)
    optimizer = build_optimizer(OptimConfig(lr=0.1), objective, 32)
    average = moving_average(network, planned.ema)
    return make_learner(objective, planned, optimizer, 100, average=average, average_of=network)


def test_synchronized_layers_hold_the_weights_under_their_names() -> None:
    network, plain = resnet(), resnet()
    names = {id(parameter) for parameter in network.parameters()}
    learner = learner_of(network)
    convert_batch_norm(learner.module)
    kinds = [type(layer) for layer in network.modules()]
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert {id(parameter) for parameter in network.parameters()} == names  # those that the optimizer moves
    plain.backbone.load_state_dict(network.backbone.state_dict())
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.running_mean.add_(0.25)
    learner.average.update_parameters(network)
    assert list(network.backbone.state_dict()) == list(plain.backbone.state_dict())
    plain.backbone.load_state_dict(learner.average.module.backbone.state_dict())
    pixels = torch.rand(3, 1, 8, 8) * 255
    torch.testing.assert_close(plain.eval()(pixels), network.eval()(pixels))


def test_synchronized_layers_need_several_gpus(caplog: pytest.LogCaptureFixture) -> None:
    learner = learner_of(resnet())
    with pytest.raises(UsageError, match="--sync-bn needs a GPU for each process"):
        synchronize_batch_norm(learner, Worker(torch.device("cpu"), 0, 2))
    with caplog.at_level("INFO", logger="krl"):
        synchronize_batch_norm(learner, Worker(torch.device("cpu"), 0, 1))
    assert "one process has the statistics of the whole batch anyway" in caplog.text
    assert not [layer for layer in learner.module.modules() if isinstance(layer, nn.SyncBatchNorm)]
    synchronize_batch_norm(learner, Worker(torch.device("cuda"), 1, 2))
    assert [layer for layer in learner.module.modules() if isinstance(layer, nn.SyncBatchNorm)]


class Activated(nn.BatchNorm2d):
    """Batch normalization with an activation inside, as some of timm's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_a_layer_that_does_more_than_normalize_is_not_replaced() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4))
    with pytest.raises(UsageError, match="Activated does more than batch normalization"):
        convert_batch_norm(module)
    assert isinstance(module[1], Activated)


def test_one_process_trains_the_same_with_synchronized_statistics(tmp_path: Path) -> None:
    base = FitConfig(model="resnet8", out=tmp_path / "plain", data=DATA, loop=LOOP)
    plain = fit(base).record
    other = fit(replace(base, out=tmp_path / "other", loop=replace(LOOP, sync_bn=True))).record
    assert other.weights_sha256 == plain.weights_sha256


def test_compilation_keeps_the_names_of_weights_and_the_average() -> None:
    network = resnet()
    learner = learner_of(network)
    names = list(network.state_dict())
    compile_network(learner)
    assert list(network.state_dict()) == names
    assert network._compiled_call_impl is not None
    assert learner.average.module._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compilation on a CPU needs a C++ compiler")
def test_a_compiled_training_resumes_and_is_the_other_to_rounding(tmp_path: Path) -> None:
    base = FitConfig(
        model="resnet8",
        out=tmp_path / "plain",
        data=DATA,
        loop=replace(LOOP, epochs=1),
        optim=OptimConfig(lr=0.01, ema=0.5),
    )
    plain = fit(base)
    asked = replace(base, out=tmp_path / "compiled", loop=replace(base.loop, compile=True))
    with stopped_at_checkpoint(1), pytest.raises(KeyboardInterrupt):
        fit(asked)
    compiled = fit(replace(asked, resume=True))
    weights = [load_file(run.path / WEIGHTS) for run in (plain, compiled)]
    assert list(weights[0]) == list(weights[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_missing_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch._dynamo.reset()
    base = FitConfig(model="resnet14", out=tmp_path / "run", data=DATA, loop=replace(LOOP, compile=True))
    with pytest.raises(UsageError, match=r"--compile: torch.compile failed .*C\+\+ compiler .*leave --compile out"):
        fit(base)


def test_other_errors_are_not_taken_for_the_compilers() -> None:
    from krl_train.config import PlannedLoop

    for wanted in (True, False):
        with pytest.raises(ValueError, match="something else"), compiling(PlannedLoop(compile=wanted)):
            raise ValueError("something else")


def test_losses_that_look_inside_are_refused_with_compilation(tmp_path: Path) -> None:
    teacher = fit(FitConfig(model="resnet8", out=tmp_path / "teacher", data=DATA, loop=LOOP))
    losses = LossConfig(loss=("ce", "fitnet"))
    asked = DistillConfig(teacher=(str(teacher.path),), student="resnet8", out=tmp_path / "run", losses=losses)
    with pytest.raises(UsageError, match="--compile hides the features that --loss fitnet compares"):
        distill(replace(asked, loop=replace(LOOP, compile=True)))
    with pytest.raises(UsageError, match="--compile is for classification"):
        fit(FitConfig(task="gan", model="dcgan-4", out=tmp_path / "run", data=DATA, loop=replace(LOOP, compile=True)))

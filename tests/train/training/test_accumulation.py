"""Steps that are computed in parts, and parameters without a decay of weights."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _helpers.resuming import stopped_at_checkpoint
from krl_compress.config import DistillConfig, JointConfig, LossConfig, MutualConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillers import Distiller, FrozenTeacher, parse_loss
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig, FitConfig, LoopConfig, OptimConfig, PlannedLoop
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream, Trainer
from krl_train.models import Network
from krl_train.tasks import ClassificationTask, Objective, Supervised
from krl_train.tasks.optim import build_optimizer
from krl_train.training.fit import fit

SIZE = Preprocessing(8, 8)
WEIGHTS = torch.tensor([0.25, 1.0, 4.0, 1.5])


class Net(nn.Sequential):
    """No normalization by batches, so that nothing but the loss depends on them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(nn.Conv2d(3, width, 3), nn.GroupNorm(2, width), nn.ReLU(), nn.Flatten())
        self.append(nn.Linear(36 * width, 4))


def images(count: int, *, unlabeled: int = 0) -> PixelSet:
    random = np.random.default_rng(0)
    labels = [-1] * unlabeled + random.integers(0, 4, count - unlabeled).tolist()
    return PixelSet(random.integers(0, 256, (count, 3, 8, 8)).astype(np.uint8), labels)


def trainer_of(
    objective: Objective, data: PixelSet, accumulate: int, *, mixup: float = 0.0, epochs: int = 2
) -> Trainer:
    augmentation = Augmentation.resolve(AugmentConfig(mixup=mixup), SIZE, flip=True, seed=0)
    loop = PlannedLoop(epochs=epochs, batch_size=16, accumulate=accumulate, precision="fp32", device="cpu", keep="last")
    stream = BatchStream(data, augmentation, 16, 0)
    steps = epochs * stream.steps
    val = images(8)
    optim = OptimConfig(lr=0.1, momentum=0.9, warmup=0.0, clip_norm=5.0)
    task = ClassificationTask(objective, optim, steps=steps, batch_size=16, val=val, labels=tuple("abcd"))
    return Trainer(loop, task, stream, None)


def trained(make: object, data: PixelSet, accumulate: int, **options: float) -> tuple[Tensor, float]:
    torch.manual_seed(0)
    objective = make()  # type: ignore[operator]
    trainer = trainer_of(objective, data, accumulate, **options)  # type: ignore[arg-type]
    trainer.fit()
    weights = torch.cat([parameter.detach().flatten() for parameter in objective.network.parameters()])
    return weights, trainer.state.history[-1]["loss"]


def supervised() -> Objective:
    return Supervised(Network(Net(), SIZE), 0.1)


def weighted() -> Objective:
    return Supervised(Network(Net(), SIZE), 0.1, WEIGHTS)


def distilled_on_logits() -> Objective:
    student, teacher = Network(Net(), SIZE), Network(Net(8), SIZE)
    return Distiller(student, FrozenTeacher(teacher), [parse_loss("ce"), parse_loss("kd")], class_weights=WEIGHTS)


@pytest.mark.parametrize(
    ("make", "unlabeled", "mixup"),
    [
        (supervised, 0, 0.0),
        (weighted, 0, 0.0),
        (weighted, 0, 0.5),
        (distilled_on_logits, 0, 0.5),
        (distilled_on_logits, 25, 0.0),
    ],
)
@pytest.mark.parametrize("parts", [2, 5, 16])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(make: object, unlabeled: int, mixup: float, parts: int) -> None:
    """39 images are batches of 16 and 23, neither of which 5 divides."""
    data = images(39, unlabeled=unlabeled)
    whole, loss = trained(make, data, 1, mixup=mixup)
    found, same = trained(make, data, parts, mixup=mixup)
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-5)
    assert same == pytest.approx(loss, abs=2e-5)


def test_the_weighted_gradient_is_that_of_torch() -> None:
    """Classes of a part that is all of one class would else count as much as those of any other part."""
    data = images(11)
    torch.manual_seed(0)
    objective = weighted()
    trainer = trainer_of(objective, data, 4)
    batch = next(iter(trainer.stream.epoch(0, 0, trainer.worker)))
    assert len(batch.labels) == 11
    before = [parameter.detach().clone() for parameter in objective.parameters()]
    reference = F.cross_entropy(objective.network(batch.pixels), batch.labels, WEIGHTS, label_smoothing=0.1)
    expected = torch.autograd.grad(reference, list(objective.parameters()))
    trainer._step(batch)
    for parameter, gradient, old in zip(objective.parameters(), expected, before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        assert not torch.equal(parameter, old)  # the optimizer took a step, and only one
    assert trainer.task.learners["model"].schedule.last_epoch == 1


def test_processes_are_synchronized_with_the_last_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(supervised(), images(16), 4, epochs=1)
    entered: list[nn.Module] = []
    monkeypatch.setattr(trainer.accelerator, "no_sync", lambda module: entered.append(module) or nullcontext())
    trainer.fit()
    assert len(entered) == 3


def test_less_memory_is_held_for_the_backward_pass() -> None:
    """What autograd saves, in numbers, not what the system gives."""
    most = []
    for parts in (1, 4):
        trainer = trainer_of(supervised(), images(16), parts, epochs=1)
        held = [0]

        def pack(tensor: Tensor, held: list[int] = held) -> Tensor:
            held[0] += tensor.numel()
            return tensor

        step, sizes = trainer.task.step, []

        def counted(batch: object, update: object, step=step, held=held, sizes=sizes) -> object:  # type: ignore[no-untyped-def]
            held[0] = 0
            found = step(batch, update)
            sizes.append(held[0])
            return found

        monkey = pytest.MonkeyPatch()
        monkey.setattr(trainer.task, "step", counted)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.fit()
        most.append(max(sizes))
        monkey.undo()
    assert most[1] < 0.5 * most[0]


def test_resumed_between_steps_in_parts_is_as_if_never_stopped(tmp_path: Path) -> None:
    loop = LoopConfig(epochs=2, batch_size=32, accumulate=3, device="cpu", precision="fp32", checkpoint_minutes=0)
    optim = OptimConfig(decay_norms=False, ema=0.5)
    base = FitConfig(
        model="resnet8", out=tmp_path / "whole", data=DataConfig("digits", limit=100), loop=loop, optim=optim
    )
    whole = fit(base).record
    stopped = replace(base, out=tmp_path / "stopped")
    with stopped_at_checkpoint(4), pytest.raises(KeyboardInterrupt):
        fit(stopped)
    resumed = fit(replace(stopped, resume=True)).record
    assert resumed.weights_sha256 == whole.weights_sha256
    assert whole.plan["lr"] == pytest.approx(0.1 * 32 / 128)
    assert whole.plan["batch_size"] == 32


def test_what_steps_in_parts_cannot_do_is_refused(tmp_path: Path) -> None:
    loop = LoopConfig(epochs=1, batch_size=16, accumulate=2, device="cpu", precision="fp32")
    data = DataConfig("digits", limit=64, val_limit=20)
    teacher = fit(FitConfig(model="resnet8", out=tmp_path / "teacher", data=data, loop=loop))
    for losses in (("ce", "rkd"), ("sp",), ("kd", "dist"), ("mlkd",), ("pkt",), ("cc",), ("crd",)):
        asked = DistillConfig(
            teacher=(str(teacher.path),),
            student="resnet8",
            loop=loop,
            out=tmp_path / "run",
            losses=LossConfig(loss=losses),
        )
        with pytest.raises(UsageError, match=f"--accumulate 2 .*--loss {losses[-1]} compares all images of a step"):
            distill(asked)
    for task, model in (("gan", "dcgan-8"), ("vae", "dcgan-8"), ("restoration", "espcn")):
        with pytest.raises(UsageError, match="--accumulate is for classification"):
            fit(FitConfig(task=task, model=model, out=tmp_path / "run", data=data, loop=loop))
    for make in (
        lambda: MutualConfig(peer=("resnet8", "resnet8"), out=tmp_path / "run", loop=loop),
        lambda: JointConfig(teacher="resnet8", student="resnet8", out=tmp_path / "run", loop=loop),
    ):
        with pytest.raises(UsageError, match="--accumulate is for krl-train fit and krl-compress distill"):
            make()
    with pytest.raises(UsageError, match=r"--accumulate 17 makes more parts than .* up to 16"):
        fit(FitConfig(model="resnet8", out=tmp_path / "run", data=data, loop=replace(loop, accumulate=17)))
    with pytest.raises(UsageError, match="--accumulate is 0; accepted: 1 or more"):
        LoopConfig(accumulate=0)


class Mixed(nn.Module):
    """Parameters of each kind: weights, biases, scales of one and of two dimensions, a bias of two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.layer = nn.LayerNorm((4, 6, 6))
        self.act = nn.PReLU(4)
        self.bias = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.attention = nn.MultiheadAttention(4, 1)
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_and_norms_are_left_out_of_the_decay(optimizer: str) -> None:
    module = Mixed()
    names = {parameter: name for name, parameter in module.named_parameters()}
    config = OptimConfig(optimizer=optimizer, decay_norms=False, weight_decay=0.05, lr=0.01)  # type: ignore[arg-type]
    groups = build_optimizer(config, module, 128).param_groups
    found = [({names[parameter] for parameter in group["params"]}, group["weight_decay"]) for group in groups]
    decayed = {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight"}
    assert found == [(decayed, 0.05), (set(names.values()) - decayed - {"frozen"}, 0.0)]
    assert [group["lr"] for group in groups] == [0.01, 0.01]
    (every,) = build_optimizer(replace(config, decay_norms=True), module, 128).param_groups
    assert len(every["params"]) == len(names) - 1


def test_decay_alone_moves_only_what_decays() -> None:
    """A step along a gradient of 0 is the decay: p * (1 - lr * decay)."""
    module = Mixed()
    optimizer = build_optimizer(OptimConfig(decay_norms=False, weight_decay=0.1, lr=0.5, momentum=0.0), module, 128)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 0.95 if name.endswith("weight") and parameter.ndim > 1 and "layer" not in name else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from accelerate import PartialState
import test_accumulation as here

weights, _ = here.trained(here.weighted, here.images(40), int(sys.argv[2]))
if PartialState().is_main_process:
    print(" ".join(map(repr, weights.tolist())))
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_in_parts_train_what_one_trains(tmp_path: Path) -> None:
    """With weights of classes, whose sum is that of all images of a step, wherever they are."""
    script = tmp_path / "parts.py"
    script.write_text(SCRIPT)
    found = []
    for processes, parts in ((1, 1), (2, 1), (2, 3)):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += [
            "--master-port",
            str(26100 + os.getpid() % 900),
            str(script),
            str(Path(__file__).parent),
            str(parts),
        ]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join([*sys.path, env.get("PYTHONPATH", "")])
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(np.array([float(value) for value in done.stdout.split()]))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-5)

"""What each method of transfer learning does to the weights, against sums by hand."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import OptimConfig, TransferConfig
from krl_train.data import PixelSet
from krl_train.models import Network
from krl_train.models.stages import split_stages
from krl_train.tasks import Batch, ClassificationTask, Supervised
from krl_train.tasks.transfer import TransferObjective, first_steps

RATE, DECAY = 0.1, 0.01
STEPS = 8
BELOW = ("low.0", "low.1", "high.0", "high.1")


class Tiny(nn.Module):
    """A classifier of two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.pool(self.high(self.low(images))).flatten(1))
        return logits


def make(config: TransferConfig, optim: OptimConfig | None = None) -> tuple[ClassificationTask, TransferObjective]:
    """Return a task of 8 steps whose network has weights of a start, but for its last layer."""
    torch.manual_seed(0)
    network = Network(Tiny(), Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.25,)))
    transferred = {name for name in network.backbone.state_dict() if not name.startswith("last")}
    objective = TransferObjective(Supervised(network), config, split_stages(network), transferred)
    val = PixelSet(np.zeros((2, 1, 8, 8), np.uint8), [0, 1])
    optim = optim or OptimConfig(lr=RATE, weight_decay=DECAY, momentum=0, schedule="constant", warmup=0)
    return ClassificationTask(objective, optim, steps=STEPS, batch_size=6, val=val, labels=("a", "b")), objective


def batch(seed: int = 0) -> Batch:
    drawn = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (6, 1, 8, 8), generator=drawn).to(torch.uint8)
    return Batch(pixels, torch.tensor([0, 1, 0, 1, 1, 0]), torch.arange(6), 0)


def train(task: ClassificationTask, steps: int) -> list[dict[str, Tensor]]:
    """Take steps as the loop does, and return the weights and statistics before and after each."""
    learner = task.learners["model"]
    task.begin_epoch(0)
    states = [copy.deepcopy(task.network.backbone.state_dict())]

    def update(_: str, loss: Tensor) -> None:
        learner.optimizer.zero_grad()
        loss.backward()
        learner.optimizer.step()
        learner.schedule.step()

    for index in range(steps):
        task.step(batch(index), update)
        states.append(copy.deepcopy(task.network.backbone.state_dict()))
    return states


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def names_in(task: ClassificationTask, *modules: str, statistics: bool = True) -> set[str]:
    """Return the names of the weights of modules, and of their statistics."""
    own = task.network.backbone.state_dict() if statistics else dict(task.network.backbone.named_parameters())
    return {name for name in own if name.startswith(modules)}


def test_a_linear_probe_moves_the_last_layer_alone() -> None:
    task, _ = make(TransferConfig("run", "linear"))
    states = train(task, 3)
    assert changed(states[0], states[-1]) == {"last.weight", "last.bias"}  # statistics are no exception
    assert sum(len(group["params"]) for group in task.learners["model"].optimizer.param_groups) == 2
    assert all(task.network.backbone.get_submodule(name).training is False for name in (*BELOW, "pool"))
    task.begin_epoch(1)
    assert not task.network.backbone.high(torch.ones(1, 2, 4, 4)).requires_grad  # no gradient is computed below


def test_statistics_that_are_frozen_stay_and_weights_move() -> None:
    free, _ = make(TransferConfig("run", layer_decay=0.9))
    states = train(free, 2)
    assert changed(states[0], states[-1]) == set(states[0])
    task, _ = make(TransferConfig("run", freeze_statistics=True))
    states = train(task, 2)
    weights = set(dict(task.network.backbone.named_parameters()))
    assert changed(states[0], states[-1]) == weights
    task.network.eval()
    task.begin_epoch(1)  # an evaluation in between changes nothing
    assert not task.network.backbone.low[1].training
    assert task.network.backbone.low[0].training


def test_stages_are_unfrozen_from_the_last_layer_down() -> None:
    # three stages, half of 8 steps: the upper one from step 2 on, the lower one from step 4
    assert first_steps(TransferConfig("run", "staged"), 3, STEPS) == [4, 2, 0]
    assert first_steps(TransferConfig("run", "staged", unfreeze_share=1.0), 5, 40) == [40, 30, 20, 10, 0]
    assert first_steps(TransferConfig("run", "linear"), 3, STEPS) == [None, None, 0]
    assert first_steps(TransferConfig("run"), 3, STEPS) == [0, 0, 0]
    task, objective = make(TransferConfig("run", "staged"))
    states = train(task, 6)
    high, low = names_in(task, "high"), names_in(task, "low")
    moved = [changed(before, after) for before, after in itertools.pairwise(states)]
    last = {"last.weight", "last.bias"}
    assert moved == [last, last, last | high, last | high, last | high | low, last | high | low]
    planned = objective.planned(STEPS, RATE)["transfer"]
    # weights by hand: 3 * 2 + 2, 3 * 2 * 9 + 6, 2 * 9 + 4
    assert planned == {
        "method": "staged",
        "stages": [
            {"name": "last", "parameters": 8, "lr": RATE, "first_step": 0},
            {"name": "high", "parameters": 60, "lr": RATE, "first_step": 2},
            {"name": "low", "parameters": 22, "lr": RATE, "first_step": 4},
        ],
    }


def test_lower_stages_learn_more_slowly() -> None:
    task, objective = make(TransferConfig("run", layer_decay=0.5))
    rates = {
        id(parameter): group["initial_lr"]
        for group in task.learners["model"].optimizer.param_groups
        for parameter in group["params"]
    }
    by_name = {name: rates[id(parameter)] for name, parameter in task.network.backbone.named_parameters()}
    expected = {"last": RATE, "high": RATE / 2, "low": RATE / 4}
    assert by_name == {name: pytest.approx(expected[name.partition(".")[0]]) for name in by_name}
    assert [stage["lr"] for stage in objective.planned(STEPS, RATE)["transfer"]["stages"]] == list(expected.values())
    assert task.learners["model"].optimizer.param_groups[0]["initial_lr"] == RATE  # the plan's peak


def test_weights_are_drawn_to_the_start_and_the_new_layer_to_zero() -> None:
    alpha = 0.3
    task, objective = make(TransferConfig("run", l2_sp=alpha))
    backbone = task.network.backbone
    start = {name: value.detach().clone() for name, value in backbone.named_parameters()}
    with torch.no_grad():
        for value in backbone.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    before = {name: value.detach().clone() for name, value in backbone.named_parameters()}
    reference = Supervised(copy.deepcopy(task.network)).train()
    reference(batch())["loss"].backward()
    plain = {name: value.grad for name, value in reference.network.backbone.named_parameters()}
    parts = objective.train()(batch())
    distance = sum(
        float(((before[name] - start[name]).numpy().astype(np.float64) ** 2).sum())
        for name in before
        if not name.startswith("last")
    )
    assert parts["l2_sp"].item() == pytest.approx(0.5 * alpha * distance, rel=1e-5)
    backbone.load_state_dict(reference.network.backbone.state_dict() | before)
    train(task, 1)
    for name, value in backbone.named_parameters():
        pull = DECAY * before[name] if name.startswith("last") else alpha * (before[name] - start[name])
        torch.testing.assert_close(value.detach(), before[name] - RATE * (plain[name] + pull), rtol=1e-4, atol=1e-6)


def test_features_and_relations_are_compared_with_those_of_the_start() -> None:
    task, objective = make(TransferConfig("run", feature_transfer=2.0, relation_transfer=3.0, freeze_statistics=True))
    source = copy.deepcopy(task.network.backbone).eval()
    with torch.no_grad():
        for value in task.network.backbone.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)))
    parts = objective.train()(batch())
    normalized = (batch().pixels.float() / 255 - 0.5) / 0.25
    taps = []
    for network in (task.network.backbone, source):
        with torch.no_grad():
            low = network.low(normalized)
            high = network.high(low)
        taps.append([item.numpy().astype(np.float64) for item in (low, high, high.mean((2, 3)))])
    mine, theirs = taps
    shares = [((a - b) ** 2).mean() / (b**2).mean() for a, b in zip(mine[:2], theirs[:2], strict=True)]
    assert parts["feature_transfer"].item() == pytest.approx(2 * np.mean(shares), rel=1e-4)
    relative = []
    for embedding in (mine[2], theirs[2]):
        distances = np.sqrt(((embedding[:, None] - embedding[None]) ** 2).sum(-1))
        relative.append(distances / distances[distances > 0].mean())
    error = np.abs(relative[0] - relative[1])
    smooth = np.where(error < 1, error**2 / 2, error - 0.5)
    assert parts["relation_transfer"].item() == pytest.approx(3 * smooth.mean(), rel=1e-3)
    total = parts["loss"].item()
    labels = Supervised(task.network)(batch())["loss"].item()
    assert total == pytest.approx(
        labels + parts["feature_transfer"].item() + parts["relation_transfer"].item(), rel=1e-4
    )
    assert not any("source" in name for name in objective.state_dict())  # no checkpoint has it


def test_nothing_is_compared_at_the_start() -> None:
    config = TransferConfig("run", feature_transfer=1.0, relation_transfer=1.0, l2_sp=1.0, freeze_statistics=True)
    _, objective = make(config)
    parts = objective.train()(batch())
    for name in ("feature_transfer", "relation_transfer", "l2_sp"):
        assert parts[name].item() == pytest.approx(0, abs=1e-6)

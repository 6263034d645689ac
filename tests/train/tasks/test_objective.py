"""How a module is trained, whatever the objective."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from krl_train.config import OptimConfig
from krl_train.tasks.objective import make_learner


@pytest.mark.parametrize(("steps", "decay"), [(10, 0.5), (100, 0.95), (50_000, 0.999), (1, 0.0)])
def test_the_moving_average_of_a_short_training_is_shorter(steps: int, decay: float) -> None:
    layer = nn.Linear(1, 1, bias=False)
    learner = make_learner(layer, OptimConfig(ema=0.999), steps=steps, batch_size=1, average_of=layer)
    assert learner.average is not None
    kept = learner.average.module
    for value in (8.0, 0.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        learner.average.update_parameters(layer)  # the first time it is a copy
    assert isinstance(kept, nn.Linear)
    assert kept.weight.item() == pytest.approx(8 * decay)


def test_without_something_to_average_there_is_no_average() -> None:
    layer = nn.Linear(1, 1)
    assert make_learner(layer, OptimConfig(ema=0.9), steps=9, batch_size=1).average is None
    assert make_learner(layer, OptimConfig(), steps=9, batch_size=1, average_of=layer).average is None

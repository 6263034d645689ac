"""The moving averages of a short training, and of a GAN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from krl_train.config import OptimConfig, plan_optim
from krl_train.tasks.learners import growing_average, moving_average


@pytest.mark.parametrize(("steps", "decay"), [(10, 0.5), (100, 0.95), (50_000, 0.999)])
def test_the_moving_average_of_a_short_training_is_shorter(steps: int, decay: float) -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = moving_average(layer, plan_optim(OptimConfig(ema=0.999), steps).ema)
    assert average is not None
    kept = average.module
    for value in (8.0, 0.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update_parameters(layer)  # the first time it is a copy
    assert isinstance(kept, nn.Linear)
    assert kept.weight.item() == pytest.approx(8 * decay)


def test_without_a_decay_there_is_no_average() -> None:
    assert moving_average(nn.Linear(1, 1), plan_optim(OptimConfig(), 9).ema) is None
    assert plan_optim(OptimConfig(ema=0.999), 5).ema == 0  # fewer steps than an average spans


def test_the_moving_average_of_a_gan_warms_up() -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = growing_average(layer, 0.5)
    expected = 0.0
    for number, value in enumerate((1.0, 2.0, 3.0, 4.0)):
        layer.weight.data.fill_(value)
        average.update_parameters(layer)
        decay = 0.0 if number == 0 else min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    assert float(average.module.weight.detach()) == pytest.approx(expected)

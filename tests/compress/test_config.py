"""Names that the command line knows without torch are those that exist."""

from __future__ import annotations

import pytest

from krl_compress.config import LOSSES, LossConfig, check_loss
from krl_compress.distillation.generation import GENERATION_LOSSES
from krl_compress.distillation.restoration import RESTORATION_LOSSES
from krl_compress.distillers.weighted_losses import REGISTRY
from krl_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("task", "kinds"),
    [("classification", REGISTRY), ("restoration", RESTORATION_LOSSES), ("generation", GENERATION_LOSSES)],
)
def test_losses_are_those_that_exist_and_the_help_lists_them(task: str, kinds: dict):
    import inspect

    assert sorted(LOSSES[task]) == sorted(kinds)
    shown = inspect.getsource(LossConfig).replace("\n", " ")
    assert all(f" {name}," in shown or f" {name}." in shown for name in kinds)


def test_a_misspelled_loss_gets_a_suggestion():
    check_loss("kd:weight=0.9", "classification")
    check_loss("mine.losses:soft:weight=2", "classification")
    with pytest.raises(UsageError, match=r"unknown loss 'kdd' \(did you mean 'kd'\?\); accepted: ce, kd"):
        check_loss("kdd", "classification")
    with pytest.raises(UsageError, match="unknown loss 'crd'; accepted: pixels, teacher"):
        check_loss("crd", "restoration")

"""Half precision, extreme and degenerate inputs: always finite, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from _helpers.losses import EMBEDDING_LOSSES, F64, LOGIT_LOSSES, MAP_LOSSES
from krl_compress import losses as L

HUGE = 1e4
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def signs(seed: int) -> Tensor:
    return torch.randint(0, 2, (6, 4), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, 4) * 2.0 - 1


MODERATE = torch.linspace(-3, 3, 24).view(6, 4).sin()
EXTREME_LOGITS: dict[str, tuple[Tensor, Tensor]] = {
    "both of any sign": (HUGE * signs(0), HUGE * signs(1)),
    "one-hot teacher": (MODERATE, HUGE * one_hot(LABELS)),
    "one-hot teacher that is wrong": (MODERATE, HUGE * one_hot(LABELS.flip(0))),
    "one-hot student that is wrong": (HUGE * one_hot(LABELS.flip(0)), MODERATE),
    "one-hot both, of other classes": (HUGE * one_hot(LABELS), HUGE * one_hot(LABELS.flip(0))),
    "equal one-hot": (HUGE * one_hot(LABELS), HUGE * one_hot(LABELS)),
    "all zero": (torch.zeros(6, 4), torch.zeros(6, 4)),
    "all equal": (torch.full((6, 4), HUGE), torch.full((6, 4), -HUGE)),
    "one class never rated": (MODERATE, MODERATE.clone().index_fill_(1, torch.tensor([3]), -HUGE)),
    "two scales": (1e-4 * MODERATE, HUGE * MODERATE),
}


def assert_finite(value: Tensor, student: Tensor, case: str) -> None:
    (gradient,) = torch.autograd.grad(value, student)
    assert value.dtype == torch.float32, case
    assert value.isfinite(), case
    assert gradient.isfinite().all(), case
    # Where a direction or a distance does not exist, 1 / 0 must not come back as a gradient of 1e12.
    assert gradient.abs().max() < 1e7 * max(1, value.item()), case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_extreme_logits_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    for case, logits in EXTREME_LOGITS.items():
        student, teacher = (z.to(dtype).clone() for z in logits)
        assert_finite(LOGIT_LOSSES[name](student.requires_grad_(), teacher, LABELS), student, case)


def test_dkd_of_saturated_logits_has_the_right_value_and_not_only_a_finite_one() -> None:
    """p_t,y = 1 in float32, log p_s,y = −2e4: TCKD is 2e4, and the other classes are alike."""
    tckd, nckd = L.dkd_parts(
        torch.tensor([[-HUGE, HUGE, -HUGE]]), torch.tensor([[HUGE, -HUGE, -HUGE]]), torch.tensor([0]), temperature=1
    )
    assert tckd.item() == pytest.approx(2 * HUGE)
    assert nckd.item() == pytest.approx(0.5 * (2 * HUGE) - torch.tensor(2.0).log().item(), rel=1e-6)


def test_equal_logits_standardize_to_zero_without_gradient() -> None:
    logits = torch.tensor([[3.0, 3.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    result = L.standardize_logits(logits)
    (gradient,) = torch.autograd.grad(result.square().sum() + result[:, 0].sum(), logits)
    torch.testing.assert_close(result, torch.tensor([[0.0, 0, 0], [-1, 0, 1]]))
    assert gradient[0].tolist() == [0, 0, 0]
    assert gradient[1].abs().min() > 0


SHAPE = (6, 4, 3, 3)
WAVES = torch.linspace(-9, 9, 216).sin().view(SHAPE), torch.linspace(-7, 7, 216).cos().view(SHAPE)
EXTREME_FEATURES: dict[str, tuple[Tensor, Tensor]] = {
    "large": (HUGE * WAVES[0], HUGE * WAVES[1]),
    "small": (1e-6 * WAVES[0], WAVES[1]),
    "dead student": (torch.zeros(SHAPE), WAVES[1]),
    "dead teacher": (WAVES[0], torch.zeros(SHAPE)),
    "dead both": (torch.zeros(SHAPE), torch.zeros(SHAPE)),
    "equal samples": (WAVES[0][:1].repeat(6, 1, 1, 1), WAVES[1]),
    "two samples alike": (WAVES[0][[0, 1, 2, 2, 4, 5]], WAVES[1][[0, 0, 2, 3, 4, 5]]),
    "one sample": (WAVES[0][:1], WAVES[1][:1]),
    "dead channel": (WAVES[0] * torch.tensor([0, 1.0, 1, 1]).view(4, 1, 1), WAVES[1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", {**MAP_LOSSES, **EMBEDDING_LOSSES})
def test_extreme_features_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    loss = {**MAP_LOSSES, **EMBEDDING_LOSSES}[name]
    for case, features in EXTREME_FEATURES.items():
        student, teacher = (f.to(dtype).clone() for f in features)
        if name in EMBEDDING_LOSSES:
            student, teacher = student[..., 0, 0], teacher[..., 0, 0]
        assert_finite(loss(student.requires_grad_(), teacher), student, case)


def test_contrast_is_finite_for_extreme_scores() -> None:
    scores = HUGE * torch.tensor([[-1.0, 1, 1], [1, -1, -1]])
    scores.requires_grad_()
    assert_finite(L.crd_contrast(scores, samples=100), scores, "scores")


ALL = {
    **{name: (lambda s, t, loss=loss: loss(s, t, LABELS), 2) for name, loss in LOGIT_LOSSES.items()},
    **{name: (loss, 4) for name, loss in MAP_LOSSES.items()},
    **{name: (loss, 2) for name, loss in EMBEDDING_LOSSES.items()},
}


@pytest.mark.parametrize("name", ALL)
def test_precision_never_falls_below_float32(name: str) -> None:
    loss, dimensions = ALL[name]
    student, teacher = WAVES if dimensions == 4 else [wave[..., 0, 0] for wave in WAVES]
    plain = loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student, teacher).item() == plain.item()
    for dtype in (torch.float16, torch.bfloat16):
        half = student.to(dtype), teacher.to(dtype)
        assert loss(*half).item() == loss(half[0].float(), half[1].float()).item()
    assert loss(student.bfloat16(), teacher).item() == loss(student.bfloat16().float(), teacher).item()
    assert loss(student.to(F64), teacher.to(F64)).dtype == F64
    assert loss(student, teacher.to(F64)).dtype == F64

"""What the losses promise: their minimum, how they scale, what leaves them alone, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from _helpers.losses import EMBEDDING_LOSSES, F64, LOGIT_LOSSES, MAP_LOSSES, wave_logits, wave_map
from krl_compress import losses as L

Z_S, Z_T, Y = wave_logits()
F_S, F_T = wave_map(6, 4, 1.1, 0.31, 0.0), wave_map(6, 4, 0.7, 0.19, 0.5)
PICKS = Z_T.argmax(dim=1)

# Every loss as a function of (student, teacher) alone, with inputs of its kind.
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    **{
        name: (lambda s, t, loss=loss: loss(s, t, Y.repeat(len(s) // 8)), Z_S, Z_T)
        for name, loss in LOGIT_LOSSES.items()
    },
    **{name: (loss, F_S, F_T) for name, loss in MAP_LOSSES.items()},
    **{name: (loss, F_S.mean((2, 3)), F_T.mean((2, 3))) for name, loss in EMBEDDING_LOSSES.items()},
}
NOT_ZERO_FOR_THE_TEACHER = {"soft_bce", "hard_label", "nkd", "wsld", "ttm", "wttm", "rld"}
TWICE_THE_BATCH = {"batch_correlation": 2.0, "class_correlation": 4.0, "sp": 0.5, "pkt": 0.5}


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - NOT_ZERO_FOR_THE_TEACHER))
def test_zero_and_stationary_where_the_student_equals_the_teacher(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(0, abs=2e-5 if "dist" in name else 1e-12)
    assert gradient.abs().max() < (1e-4 if "dist" in name else 1e-7)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(dim=1)


def test_minimum_of_the_losses_that_are_not_zero() -> None:
    p = Z_T.softmax(dim=1)
    binary = -(p * p.log() + (1 - p) * (1 - p).log())
    assert L.soft_bce(p.logit(), Z_T).item() == pytest.approx(binary.mean().item())
    assert L.wsld(Z_T, Z_T, Y).item() == pytest.approx(
        (16 * (1 - torch.exp(torch.tensor(-1.0))) * entropy((Z_T / 4).softmax(1)).mean()).item(), rel=1e-6
    )
    others = torch.stack([torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(Z_T, Y, strict=True)])
    target = p[torch.arange(8), Y]
    assert L.nkd(Z_T, Z_T, Y).item() == pytest.approx(
        (-(target * target.log()).mean() + 1.5 * entropy(others.softmax(1)).mean()).item()
    )
    assert L.ttm(0.1 * Z_T, Z_T).item() == pytest.approx(0, abs=1e-12)
    assert L.wttm(0.2 * Z_T, Z_T).item() == pytest.approx(0, abs=1e-12)
    assert L.rld(Z_T, Z_T, PICKS).item() == pytest.approx(0, abs=1e-12)
    assert L.hard_label(1e4 * Z_T, Z_T).item() == pytest.approx(0, abs=1e-12)


# mlkd is a sum of parts that scale differently.
@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"mlkd"}))
def test_scale_of_a_batch_that_is_there_twice(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    factor = TWICE_THE_BATCH.get(name, 1.0)
    once, twice = loss(student, teacher), loss(torch.cat([student, student]), torch.cat([teacher, teacher]))
    assert twice.item() == pytest.approx(factor * once.item(), rel=1e-4 if name == "pkt" else 1e-8)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize(
    ("loss", "power"),
    [(L.kd, 2), (L.logistic, 2), (L.dist, 2), (L.batch_correlation, 0), (L.class_correlation, 0)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_scale_with_the_temperature(loss: Callable[..., Tensor], power: int, temperature: float) -> None:
    """Logits that grow with T leave the probabilities, so that only the factor T² is seen."""
    scaled = loss(temperature * Z_S, temperature * Z_T, temperature=temperature)
    assert scaled.item() == pytest.approx(temperature**power * loss(Z_S, Z_T, temperature=1.0).item())


def test_scale_of_the_losses_with_labels_with_the_temperature() -> None:
    assert L.dkd(3 * Z_S, 3 * Z_T, Y, temperature=3).item() == pytest.approx(
        9 * L.dkd(Z_S, Z_T, Y, temperature=1).item()
    )
    both, one = {"temperature": 3, "confidence_temperature": 3}, {"temperature": 1, "confidence_temperature": 1}
    assert L.rld(3 * Z_S, 3 * Z_T, Y, **both).item() == pytest.approx(9 * L.rld(Z_S, Z_T, Y, **one).item())


def test_hot_kd_is_half_the_mean_square_of_centered_logits() -> None:
    """The limit T → ∞ of Hinton's paper: values and gradients stay, where KL without T² would vanish."""
    difference = Z_S - Z_T
    limit = (difference - difference.mean(1, keepdim=True)).square().sum(1).mean() / 20
    assert L.kd(Z_S, Z_T, temperature=1e4).item() == pytest.approx(limit.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "factor"), [(L.logistic, 2), (L.logit_mse, 1), (L.kd, 1)], ids=["logistic", "logit_mse", "kd"]
)
def test_scale_with_the_number_of_classes(loss: Callable[..., Tensor], factor: float) -> None:
    twice = loss(torch.cat([Z_S, Z_S], dim=1), torch.cat([Z_T, Z_T], dim=1))
    assert twice.item() == pytest.approx(factor * loss(Z_S, Z_T).item())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_identity_of_every_sample(temperature: float) -> None:
    tckd, nckd = L.dkd_parts(Z_S, Z_T, Y, temperature=temperature)
    target = (Z_T / temperature).softmax(dim=1)[torch.arange(8), Y]
    whole = torch.stack([L.kd(s[None], t[None], temperature=temperature) for s, t in zip(Z_S, Z_T, strict=True)])
    torch.testing.assert_close(whole / temperature**2, tckd + (1 - target) * nckd, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [L.kd, L.dist, L.logistic], ids=lambda loss: loss.__name__)
def test_standardized_losses_see_neither_scale_nor_offset_of_a_row(loss: Callable[..., Tensor]) -> None:
    scale, offset = torch.linspace(0.1, 9, 8, dtype=F64)[:, None], torch.linspace(-50, 70, 8, dtype=F64)[:, None]
    wrapped = L.standardize(loss)
    plain = wrapped(Z_S, Z_T, temperature=2.0).item()
    assert wrapped(scale * Z_S + offset, Z_T, temperature=2.0).item() == pytest.approx(plain, rel=1e-5)
    assert wrapped(Z_S, scale * Z_T + offset, temperature=2.0).item() == pytest.approx(plain, rel=1e-5)
    assert wrapped(-Z_S, Z_T, temperature=2.0).item() != pytest.approx(plain, rel=0.01)


def test_dist_sees_no_affine_change_of_probabilities() -> None:
    """a p + (1 − a) / C is a distribution; an a for each row leaves the rows alone, one a for all the columns too."""
    p = Z_S.softmax(dim=1)
    each = torch.linspace(0.2, 0.9, 8, dtype=F64)[:, None]
    mixed = [(a * p + (1 - a) / 10).log() for a in (each, 0.4)]
    rows = [L.dist(z, Z_T, gamma=0.0).item() for z in (Z_S, *mixed)]
    assert rows == pytest.approx([rows[0]] * 3, rel=1e-6)
    both = [L.dist(z, Z_T).item() for z in (Z_S, *mixed)]
    assert both[2] == pytest.approx(both[0], rel=1e-6)
    assert both[1] != pytest.approx(both[0], rel=1e-3)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(3), dtype=F64)).Q


@pytest.mark.parametrize(
    ("loss", "shift"),
    [(L.rkd_distance, 5.0), (L.rkd_angle, 5.0), (L.pkt, 0.0), (L.cc, 0.0), (L.sp, 0.0)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_relations_see_no_motion_of_the_embeddings(loss: Callable[..., Tensor], shift: float) -> None:
    student, teacher = F_S.mean((2, 3)), F_T.mean((2, 3))
    moved = 3 * student @ rotation(6) + shift
    assert loss(moved, teacher).item() == pytest.approx(loss(student, teacher).item(), rel=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_reaches_the_student_alone_and_points_downhill(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    value = loss(student, teacher)
    gradient, none = torch.autograd.grad(value, (student, teacher), allow_unused=True)
    assert none is None
    with torch.no_grad():
        assert loss(student - 1e-3 * gradient / gradient.norm(), teacher) < value
    assert not loss(student.detach(), teacher).requires_grad


# wsld's weights carry no gradient on purpose, so that finite differences see another function.
@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"wsld"}))
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    loss, student, teacher = LOSSES[name]
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.clone().requires_grad_(), fast_mode=True)


def kept_for_backward(loss: Callable[[], Tensor]) -> int:
    """Numbers that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    del value
    return sum(kept.values())


def test_angles_in_chunks_are_the_same_and_keep_less() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 12, generator=random, dtype=F64) for _ in range(2))
    results = []
    for chunk in (40, 7, 1, None):
        leaf = student.clone().requires_grad_()
        value = L.rkd_angle(leaf, teacher, chunk=chunk)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0], rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-12, atol=1e-17)
    student.requires_grad_()
    assert kept_for_backward(lambda: L.rkd_angle(student, teacher, chunk=40)) > 40**3
    assert kept_for_backward(lambda: L.rkd_angle(student, teacher, chunk=2)) < 40**2

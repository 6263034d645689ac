"""Cases small enough to compute with a pencil, and plain loops for what has no published value."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import e, log, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from krl_compress import losses as L


def t(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def logits_of(*rows: list[float]) -> Tensor:
    """Logits whose softmax is these rows."""
    return t(*rows).log()


def strip(*values: float) -> Tensor:
    """One sample, one channel, one row of values."""
    return t(list(values)).view(1, 1, 1, -1)


HALF_QUARTERS, OTHER = logits_of([0.5, 0.25, 0.25]), logits_of([0.25, 0.5, 0.25])
FIRST, SECOND = torch.tensor([0]), torch.tensor([1])
LINE, TRIANGLE = t([0.0], [1.0], [2.0]), t([0.0, 0.0], [1.0, 0.0], [0.5, sqrt(0.75)])
ORTHOGONAL, EQUAL = t([1.0, 0.0], [0.0, 1.0]), t([1.0, 0.0], [3.0, 0.0])

BY_HAND: dict[str, tuple[Callable[[], Tensor], float]] = {
    "kd": (lambda: L.kd(t([0, 0]), 2 * t([log(3), 0]), temperature=2), 4 * (0.75 * log(1.5) + 0.25 * log(0.5))),
    "kd, mean over samples": (
        lambda: L.kd(t([0, 0], [0, 0]), t([log(3), 0], [0, 0]), temperature=1),
        (0.75 * log(1.5) + 0.25 * log(0.5)) / 2,
    ),
    "logistic": (
        lambda: L.logistic(t([0, 0]), 2 * t([log(3), -log(3)]), temperature=2),
        4 * 2 * (0.75 * log(1.5) + 0.25 * log(0.5)),
    ),
    "soft_bce": (
        lambda: L.soft_bce(t([0, 0, log(3)]), logits_of([0.5, 0.25, 0.25])),
        log(2) + (log(4) - log(3) / 4 - log(2)) / 3,
    ),
    "hard_label": (lambda: L.hard_label(t([log(3), 0]), t([0, 1])), log(4)),
    "logit_mse": (lambda: L.logit_mse(t([1, 2]), t([3, 2])), 2),
    "dkd": (
        lambda: L.dkd(OTHER, HALF_QUARTERS, FIRST, alpha=2, beta=3, temperature=1),
        2 * 0.5 * log(4 / 3) + 3 * 0.5 * log(9 / 8),
    ),
    "nkd": (lambda: L.nkd(OTHER, HALF_QUARTERS, FIRST), 0.5 * log(4) + 1.5 * 0.5 * log(9 / 2)),
    "rld, teacher right": (
        lambda: L.rld(OTHER, HALF_QUARTERS, FIRST, alpha=2, beta=3, temperature=1, confidence_temperature=1),
        2 * 0.5 * log(4 / 3) + 3 * 0.5 * log(9 / 8),
    ),
    # The student is as sure of the label as the teacher of its own pick, and no class is rated below the label.
    "rld, teacher wrong": (
        lambda: L.rld(OTHER, HALF_QUARTERS, SECOND, temperature=1, confidence_temperature=1),
        0,
    ),
    "wsld": (lambda: L.wsld(OTHER, HALF_QUARTERS, FIRST, temperature=1), 1.75 * log(2) * (1 - e**-2)),
    "dist, reversed": (
        lambda: L.dist(logits_of([0.7, 0.3], [0.4, 0.6]), logits_of([0.2, 0.8], [0.9, 0.1]), beta=2, gamma=3),
        2 * 2 + 3 * 2,
    ),
    "ttm": (
        lambda: L.ttm(t([0, 0]), logits_of([0.8, 0.2]), power=0.5),
        2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3),
    ),
    "wttm": (
        lambda: L.wttm(t([0, 0]), logits_of([0.8, 0.2]), power=0.5),
        (sqrt(0.8) + sqrt(0.2)) * (2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3)),
    ),
    "batch_correlation": (
        lambda: L.batch_correlation(t([0, 0]), logits_of([0.75, 0.25]), temperature=1),
        (10 / 16 - 8 / 16) ** 2,
    ),
    "class_correlation": (
        lambda: L.class_correlation(t([0, 0]), logits_of([0.75, 0.25]), temperature=1),
        (25 + 1 + 1 + 9) / 256 / 2,
    ),
    "standardize": (lambda: L.standardize(L.logit_mse)(t([1, 2, 3]), t([60, 40, 20])), (4 + 0 + 4) / 3),
    "hint": (lambda: L.hint(t([1, 2]), t([3, 2])), 2),
    "at": (lambda: L.at(strip(sqrt(3), -2), strip(7, 0)), (0.16 + 0.64) / 2),
    "at, larger student": (lambda: L.at(strip(sqrt(3), sqrt(3), 2, 2), strip(7, 0)), (0.16 + 0.64) / 2),
    "nst": (lambda: L.nst(strip(3, 4), strip(7, 0)), 1 + 1 - 2 * 0.36),
    "hcl": (lambda: L.hcl(t([4, 0, 0, 0]).view(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)), (4 + 0.5 * 1) / 1.5),
    "wkd_f": (lambda: L.wkd_f(strip(0, 2), strip(0, 0)), 4 + (sqrt(2 + 1e-5) - sqrt(1e-5)) ** 2),
    # Of the four pairs of positions, two are alike for the student and opposite for the teacher.
    "spatial_affinity": (lambda: L.spatial_affinity(strip(3, 4), strip(7, -1)), (0 + 2 + 2 + 0) / 4),
    "sp": (lambda: L.sp(ORTHOGONAL, t([1, 0], [1, 0])), 1 - sqrt(0.5)),
    # Distances 1, 2, 3 of mean 2 against 1, 1, 2 of mean 4/3.
    "rkd_distance": (lambda: L.rkd_distance(t([0], [1], [3]), LINE), 2 * 2 * 0.25**2 / 2 / 9),
    # On a line the cosines at the three points are 1, -1, 1; in the triangle 0.5.
    "rkd_angle": (lambda: L.rkd_angle(LINE, TRIANGLE), 2 * (0.125 + 1.0 + 0.125) / 27),
    "pkt": (lambda: L.pkt(ORTHOGONAL, EQUAL), 0.25 * log(9 / 8)),
    "cc": (lambda: L.cc(ORTHOGONAL, EQUAL, gamma=0.5, order=1), e**-2 / 2),
    "cc, defaults": (
        lambda: L.cc(ORTHOGONAL, EQUAL),
        (e**-0.8 * (0.8 + 0.8**2 / 2)) ** 2 / 2,
    ),
    "crd_contrast": (lambda: L.crd_contrast(t([log(3), 0]), samples=1), log(4 / 3) + log(2)),
    "crd_contrast, no knowledge": (lambda: L.crd_contrast(t([-log(7)] * 3), samples=7), log(3) + 2 * log(1.5)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_computed_by_hand(name: str) -> None:
    loss, value = BY_HAND[name]
    assert loss().item() == pytest.approx(value, rel=1e-6, abs=1e-12)


def test_dkd_parts_by_hand() -> None:
    tckd, nckd = L.dkd_parts(OTHER.repeat(2, 1), HALF_QUARTERS.repeat(2, 1), torch.tensor([0, 2]), temperature=1)
    np.testing.assert_allclose(tckd, [0.5 * log(4 / 3), 0], atol=1e-15)
    np.testing.assert_allclose(nckd, [0.5 * log(9 / 8), 2 / 3 * log(2) - 1 / 3 * log(2)], atol=1e-15)


def test_standardized_logits_by_hand() -> None:
    np.testing.assert_allclose(L.standardize_logits(t([1, 2, 3])), [[-1, 0, 1]], rtol=1e-6)


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True)


def by_loops(name: str, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> float:
    """The textbook formula, sample by sample, in probabilities; with hyperparameters that are not the defaults."""
    total = 0.0
    for s, z, y in zip(student, teacher, labels, strict=True):
        others = [c for c in range(len(s)) if c != y]
        if name == "nkd":
            p_s, p_t = softmax(s[others] / 3), softmax(z[others] / 3)
            total += -softmax(z)[y] * log(softmax(s)[y])
            total += -0.7 * 9 * sum(p_t * np.log(p_s))
        elif name == "wsld":
            p_s, p_t = softmax(s / 3), softmax(z / 3)
            weight = 1 - math.exp(-log(softmax(s)[y]) / log(softmax(z)[y]))
            total += -9 * weight * sum(p_t * np.log(p_s))
        elif name == "rld":
            sure_s, sure_t = softmax(s / 2)[y], softmax(z / 2).max()
            total += 0.5 * 4 * (sure_t * log(sure_t / sure_s) + (1 - sure_t) * log((1 - sure_t) / (1 - sure_s)))
            below = [c for c in range(len(s)) if z[c] < z[y]]
            p_s, p_t = softmax(s[below] / 3), softmax(z[below] / 3)
            total += 0.7 * 9 * sum(p_t * np.log(p_t / p_s))
        elif name == "mlkd":
            for k in (1.5, 7.0):
                p_s, p_t = softmax(s / k), softmax(z / k)
                total += k * k * sum(p_t * np.log(p_t / p_s))
    total /= len(student)
    if name == "mlkd":
        for k in (1.5, 7.0):
            p_s, p_t = softmax(student / k), softmax(teacher / k)
            n, c = p_s.shape
            total += sum((p_s[i] @ p_s[j] - p_t[i] @ p_t[j]) ** 2 for i in range(n) for j in range(n)) / n
            total += sum((p_s[:, i] @ p_s[:, j] - p_t[:, i] @ p_t[:, j]) ** 2 for i in range(c) for j in range(c)) / c
    return total


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("nkd", lambda s, z, y: L.nkd(s, z, y, gamma=0.7, temperature=3)),
        ("wsld", lambda s, z, y: L.wsld(s, z, y, temperature=3)),
        ("rld", lambda s, z, y: L.rld(s, z, y, alpha=0.5, beta=0.7, temperature=3, confidence_temperature=2)),
        ("mlkd", lambda s, z, y: L.mlkd(s, z, temperatures=(1.5, 7))),
    ],
)
def test_other_hyperparameters_by_loops(name: str, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    random = np.random.default_rng(0)
    student, teacher, labels = random.normal(0, 2, (6, 5)), random.normal(0, 2, (6, 5)), random.integers(0, 5, 6)
    value = loss(*map(torch.from_numpy, (student, teacher, labels)))
    assert value.item() == pytest.approx(by_loops(name, student, teacher, labels), rel=1e-6)


def test_mlkd_sums_its_levels_at_2_to_6() -> None:
    student, teacher = t([1, 2, 0], [0, 1, -3]), t([3, -1, 0], [1, 1, 2])
    levels = (L.kd, L.batch_correlation, L.class_correlation)
    expected = sum(level(student, teacher, temperature=k).item() for level in levels for k in (2, 3, 4, 5, 6))
    assert L.mlkd(student, teacher).item() == pytest.approx(expected)


def test_attention_powers_by_loops() -> None:
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(2, 3, 2, 5)), random.normal(size=(2, 4, 2, 5))
    total = 0.0
    for s, z in zip(student, teacher, strict=True):
        a_s, a_t = ((abs(f) ** 3).sum(0).ravel() for f in (s, z))
        total += ((a_s / np.sqrt(a_s @ a_s) - a_t / np.sqrt(a_t @ a_t)) ** 2).sum() / 2 / 10
    value = L.at(torch.from_numpy(student), torch.from_numpy(teacher), power=3)
    assert value.item() == pytest.approx(total, rel=1e-12)


def test_hcl_pools_to_4_2_1_with_halving_weights() -> None:
    """On maps of 8 × 8 that are constant all parts are equal; a single corner pixel tells the parts apart."""
    corner = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    corner[..., 0, 0] = 64
    parts = [64**2 / 64, 16**2 / 16, 4**2 / 4, 1**2 / 1]
    value = L.hcl(corner, torch.zeros_like(corner))
    assert value.item() == pytest.approx(sum(p / 2**k for k, p in enumerate(parts)) / 1.875)
    assert L.hcl(torch.full_like(corner, 3), torch.zeros_like(corner)).item() == pytest.approx(9)


def test_cc_is_the_taylor_series_of_the_gaussian() -> None:
    random = np.random.default_rng(2)
    student, teacher = random.normal(size=(5, 4)), random.normal(size=(5, 7))
    kernels = []
    for rows in (student, teacher):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        kernels.append(np.array([[math.exp(-0.4 * ((a - b) ** 2).sum()) for a in rows] for b in rows]))
    expected = ((kernels[0] - kernels[1]) ** 2).mean()
    value = L.cc(torch.from_numpy(student), torch.from_numpy(teacher), order=20)
    assert value.item() == pytest.approx(expected, rel=1e-10)

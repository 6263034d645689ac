"""Values and gradients that the methods' reference code gives, in float64, to 1e-6."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from _helpers.losses import wave_logits, wave_map
from krl_compress import losses as L

Z_S, Z_T, Y = wave_logits()
F_S, F_T, F_T4 = wave_map(16, 8, 1.1, 0.31, 0.0), wave_map(16, 8, 0.7, 0.19, 0.5), wave_map(16, 4, 0.7, 0.19, 0.5)
E_S, E_T = F_S.mean((2, 3)), wave_map(24, 8, 0.7, 0.19, 0.5).mean((2, 3))

# name: (loss of the student's tensor, the student's tensor, value, L2 norm of the gradient)
GOLDEN: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, float, float]] = {
    "KD T1": (lambda z: L.kd(z, Z_T, temperature=1), Z_S, 2.31057559322, 0.2264777768),
    "KD T4": (lambda z: L.kd(z, Z_T), Z_S, 5.18254928879, 0.3589265731),
    "0.1 CE + 0.9 KD": (lambda z: 0.1 * F.cross_entropy(z, Y) + 0.9 * L.kd(z, Z_T), Z_S, 5.05257731217, 0.334102418),
    "DeiT soft T3": (lambda z: L.kd(z, Z_T, temperature=3) / 10, Z_S, 0.476479566039, 0.03430526981),
    "DKD": (lambda z: L.dkd(z, Z_T, Y), Z_S, 40.5891242904, 3.010559157),
    "TCKD": (lambda z: 16 * L.dkd_parts(z, Z_T, Y)[0].mean(), Z_S, 0.733880420943, 0.1341134247),
    "NCKD": (lambda z: 16 * L.dkd_parts(z, Z_T, Y)[1].mean(), Z_S, 4.98190548369, 0.3761479018),
    "DIST T1": (lambda z: L.dist(z, Z_T), Z_S, 1.93529638813, 0.1376108192),
    "DIST T4": (lambda z: L.dist(z, Z_T, temperature=4), Z_S, 31.0037032981, 1.36032094),
    "NKD": (lambda z: L.nkd(z, Z_T, Y), Z_S, 5.37010734512, 0.3820220347),
    "WSLD": (lambda z: 2.25 * L.wsld(z, Z_T, Y), Z_S, 51.7631692017, 0.5636676501),
    "LS-KD": (lambda z: L.standardize(L.kd)(z, Z_T, temperature=2), Z_S, 0.81321816682, 0.03690511985),
    "LS-DKD": (
        lambda z: L.standardize(L.dkd)(z, Z_T, Y, alpha=9, beta=72, temperature=2),
        Z_S,
        56.5462754373,
        3.326576237,
    ),
    "MLKD classes": (lambda z: L.class_correlation(z, Z_T), Z_S, 0.00367477394314, 0.0007963361697),
    "MLKD batch": (lambda z: L.batch_correlation(z, Z_T), Z_S, 0.00634147895679, 0.0004908019031),
    "RLD": (lambda z: L.rld(z, Z_T, Y), Z_S, 18.5633133262, 2.335120858),
    "TTM": (lambda z: L.ttm(z, Z_T), Z_S, 1.5599032087, 0.1537900499),
    "WTTM": (lambda z: L.wttm(z, Z_T), Z_S, 7.40769181179, 0.7293123489),
    "soft BCE": (lambda z: L.soft_bce(z, Z_T), Z_S, 1.1378757453, 0.06245269164),
    "binary KL": (lambda z: L.logistic(z, Z_T), Z_S, 8.2844691184, 0.5953774092),
    "binary KL T4": (lambda z: L.logistic(z, Z_T, temperature=4), Z_S, 14.4247617752, 0.9320158514),
    "hard label": (lambda z: L.hard_label(z, Z_T), Z_S, 3.44259427968, 0.364743641),
    "logit MSE": (lambda z: L.logit_mse(z, Z_T), Z_S, 12.3057200195, 0.7844016834),
    "AT": (lambda f: L.at(f, F_T), F_S, 6.44146137174e-05, 5.137813007e-05),
    "AT of a smaller teacher": (lambda f: L.at(f, F_T4), F_S, 2.14846070225e-04, 1.903430946e-04),
    "SP": (lambda f: L.sp(f, F_T), F_S, 0.094121087843, 0.002841106907),
    "NST": (lambda f: L.nst(f, F_T), F_S, 0.0554043788399, 0.006843554524),
    "FitNet": (lambda f: L.hint(f, F_T), F_S, 0.851887206455, 0.02039511093),
    "HCL": (lambda f: L.hcl(f, F_T), F_S, 0.802732968304, 0.01931500987),
    "WKD-F": (lambda f: L.wkd_f(f, F_T), F_S, 29.5223036843, 0.953780355),
    "FAKD": (lambda f: L.spatial_affinity(f, F_T), F_S, 0.144431650194, 0.0106774582),
    "RKD": (lambda e: 25 * L.rkd_distance(e, E_T) + 50 * L.rkd_angle(e, E_T), E_S, 8.90503601444, 2.039601306),
    "RKD distance": (lambda e: L.rkd_distance(e, E_T), E_S, 0.0928452224427, 0.02346177234),
    "RKD angle": (lambda e: L.rkd_angle(e, E_T), E_S, 0.131678109067, 0.03020601456),
    "PKT": (lambda e: L.pkt(e, E_T), E_S, 0.00404753421447, 0.001501886686),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_value_and_gradient(name: str) -> None:
    loss, student, value, norm = GOLDEN[name]
    student = student.clone().requires_grad_()
    result = loss(student)
    (gradient,) = torch.autograd.grad(result, student)
    assert result.shape == ()
    assert result.item() == pytest.approx(value, rel=1e-6)
    assert gradient.norm().item() == pytest.approx(norm, rel=1e-6)

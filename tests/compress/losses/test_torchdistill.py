"""Agreement with torchdistill, an independent implementation, where that follows the methods' own code.

Left out, because it differs from that code: its similarity preservation (rows of L1 norm 1, not L2), its correlation
congruence (the norm is not squared), its FSP (a sum of column norms), and its KDLoss without a hard part (no T²).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from _helpers.losses import wave_logits, wave_map
from krl_compress import losses as L

theirs = pytest.importorskip(
    "torchdistill.losses.mid_level", reason="torchdistill is not installed (pip install --no-deps torchdistill)"
)

Z_S, Z_T, Y = wave_logits()
F_S, F_T = wave_map(16, 8, 1.1, 0.31, 0.0), wave_map(16, 8, 0.7, 0.19, 0.5)
E_S, E_T = F_S.mean((2, 3)), wave_map(24, 8, 0.7, 0.19, 0.5).mean((2, 3))
PLACES = ("net", "output", "net", "output")


def run(loss: torch.nn.Module, student: Tensor, teacher: Tensor) -> float:
    value: Tensor = loss({"net": {"output": student.clone()}}, {"net": {"output": teacher.clone()}}, Y)
    return value.item()


def test_kd() -> None:
    expected = run(theirs.KDLoss(*PLACES, temperature=4.0, alpha=0.1), Z_S, Z_T)
    ours = 0.1 * torch.nn.functional.cross_entropy(Z_S, Y) + 0.9 * L.kd(Z_S, Z_T)
    assert ours.item() == pytest.approx(expected, rel=1e-10)


def test_standardized_kd() -> None:
    expected = run(theirs.LogitStdKDLoss(*PLACES, temperature=2.0, alpha=0.1, beta=9.0), Z_S, Z_T)
    ours = 0.1 * torch.nn.functional.cross_entropy(Z_S, Y) + 9 * L.standardize(L.kd)(Z_S, Z_T, temperature=2.0)
    assert ours.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist(temperature: float) -> None:
    expected = run(theirs.DISTLoss(*PLACES, beta=2.0, gamma=0.5, tau=temperature), Z_S, Z_T)
    ours = L.dist(Z_S, Z_T, beta=2.0, gamma=0.5, temperature=temperature)
    assert ours.item() == pytest.approx(expected, rel=1e-7)


def test_at() -> None:
    pair = {side: {"path": "net", "io": "output"} for side in ("student", "teacher")}
    expected = run(theirs.ATLoss({"pair": pair}, mode="code"), F_S, F_T)
    assert L.at(F_S, F_T).item() == pytest.approx(expected, rel=1e-10)


def test_pkt() -> None:
    assert L.pkt(E_S, E_T).item() == pytest.approx(run(theirs.PKTLoss(*PLACES), E_S, E_T), rel=1e-6)


def test_rkd() -> None:
    expected = run(theirs.RKDLoss("net", "net", 25.0, 50.0, "mean"), E_S, E_T)
    assert (25 * L.rkd_distance(E_S, E_T) + 50 * L.rkd_angle(E_S, E_T)).item() == pytest.approx(expected, rel=1e-10)


def test_crd() -> None:
    labels = torch.arange(30) % 3
    crd = L.CRD(16, 24, labels, dimensions=8, negatives=10).double()
    reference = theirs.CRDLoss("embedding", "empty", "embedding", 8, 30, 10, 30).double()
    reference.memory_v1, reference.memory_v2 = crd.student_bank.clone(), crd.teacher_bank.clone()
    index = torch.tensor([3, 7, 11, 0, 29, 14, 22, 5])
    with torch.no_grad():
        for _ in range(2):  # the second step sees the updated memory and the kept constants
            negatives = crd._draw(index)
            student = torch.nn.functional.normalize(crd.student_embedding(E_S))
            teacher = torch.nn.functional.normalize(crd.teacher_embedding(E_T))
            pairs = {"pos_idx": index, "contrast_idx": torch.cat([index[:, None], negatives], dim=1)}
            expected = reference(
                {"embedding": {"output": student}, "empty": {"input": pairs}}, {"embedding": {"output": teacher}}
            )
            assert crd(E_S, E_T, index).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(crd.teacher_bank, reference.memory_v2)

"""Input that is not accepted: the message names both shapes and what would do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from _helpers.losses import EMBEDDING_LOSSES, LOGIT_LOSSES, MAP_LOSSES
from krl_compress import losses as L
from krl_runtime.errors import UsageError

LABELS = torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 5), (4, 6)), ((4, 5), (3, 5)), ((4, 5, 1), (4, 5, 1)), ((5,), (5,)), ((0, 5), (0, 5))]
)
@pytest.mark.parametrize("name", sorted(k for k in LOGIT_LOSSES if "standardized" not in k))
def test_logits_of_wrong_shapes(name: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        LOGIT_LOSSES[name](torch.zeros(student), torch.zeros(teacher), LABELS)
    assert str(caught.value) == (
        f"student logits {student} and teacher logits {teacher}: accepted are two tensors (N, C) of the same N, C, "
        "no dimension 0"
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 5]), r"labels run from 0 to 5 for logits \(4, 5\): accepted are 0 to 4"),
        (torch.tensor([0, -1, 2, 3]), r"labels run from -1 to 3"),
        (torch.tensor([0, 1, 2]), r"labels \(3,\) of torch.int64 for logits \(4, 5\): accepted .* shape \(4,\)"),
        (torch.eye(4, 5), r"labels \(4, 5\) of torch.float32"),
        (torch.zeros(4), r"labels \(4,\) of torch.float32 .*: .* int64 or int32"),
    ],
)
@pytest.mark.parametrize("loss", [L.dkd, L.dkd_parts, L.nkd, L.rld, L.wsld], ids=lambda loss: loss.__name__)
def test_labels_that_do_not_fit(loss: Callable[..., Tensor], labels: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loss(torch.zeros(4, 5), torch.zeros(4, 5), labels)


def test_labels_of_int32_are_accepted() -> None:
    z = torch.eye(4)
    assert L.dkd(z, -z, LABELS.int()).item() == L.dkd(z, -z, LABELS).item()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z: L.dkd(z[:, :1], z[:, :1], LABELS), r"logits \(4, 1\): .* at least 2 classes"),
        (lambda z: L.standardize_logits(z[:, :1]), r"logits \(4, 1\): standardizing accepts \(N, C\), C at least 2"),
        (lambda z: L.standardize(L.kd)(z[0], z[0]), r"logits \(5,\): standardizing accepts"),
        (lambda z: L.kd(z.long(), z), "student logits are torch.int64 and teacher logits torch.float32"),
        (lambda z: L.kd(z, z, temperature=0.0), "temperature is 0.0: accepted are numbers greater than 0"),
        (lambda z: L.dist(z, z, temperature=-1.0), "temperature is -1.0"),
        (lambda z: L.kd(z, z, temperature=float("nan")), "temperature is nan"),
        (lambda z: L.nkd(z, z, LABELS, temperature=0.0), "temperature is 0.0"),
        (lambda z: L.rld(z, z, LABELS, confidence_temperature=0.0), "confidence_temperature is 0.0"),
        (lambda z: L.ttm(z, z, power=0.0), "power is 0.0"),
        (lambda z: L.wttm(z, z, power=-0.1), "power is -0.1"),
        (lambda z: L.mlkd(z, z, temperatures=()), "temperatures is empty"),
        (lambda z: L.rkd_angle(z, z, chunk=0), "chunk is 0"),
        (lambda z: L.cc(z, z, gamma=0.0), "gamma is 0.0"),
        (lambda z: L.crd_contrast(z[:, :1], samples=9), r"scores \(4, 1\): accepted is \(N, 1 \+ K\)"),
        (lambda z: L.at(z[..., None, None], z[..., None, None], power=0.0), "power is 0.0"),
    ],
)
def test_other_refusals(loss: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loss(torch.zeros(4, 5))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "message"),
    [
        *((name, (4, 3, 2, 2), (5, 3, 2, 2), "of the same N") for name in MAP_LOSSES),
        *((name, (4, 3), (4, 3), r"\(N, C, H, W\)") for name in ("at", "nst", "hcl", "wkd_f")),
        *((name, (4, 3), (5, 3), "of the same N") for name in EMBEDDING_LOSSES),
        *((name, (4, 3, 1), (4, 3, 1), r"\(N, D\)") for name in EMBEDDING_LOSSES),
        ("hint", (4, 3, 2, 2), (4, 6, 2, 2), r"accepted are equal shapes; krl_compress.losses.adapters.regressor"),
        ("hcl", (4, 3, 2, 2), (4, 3, 4, 4), "of the same N, C, H, W"),
        ("wkd_f", (4, 3, 2, 2), (4, 6, 2, 2), "of the same N, C"),
        ("wkd_f", (4, 3, 1, 1), (4, 3, 2, 2), "at least 2 positions"),
    ],
)
def test_features_of_wrong_shapes(name: str, student: tuple[int, ...], teacher: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        {**MAP_LOSSES, **EMBEDDING_LOSSES}[name](torch.zeros(student), torch.zeros(teacher))
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)

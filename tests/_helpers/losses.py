"""Inputs that the tests of the distillation losses share, and every loss in one of three uniform signatures."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from krl_compress import losses as L

F64 = torch.float64


def wave_logits() -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits (8, 10) and labels (8,) for which the golden values were computed."""
    i, j = torch.arange(8, dtype=F64)[:, None], torch.arange(10, dtype=F64)
    student = 3 * torch.sin(1.3 * i + 0.7 * j + 0.1)
    teacher = 4 * torch.cos(0.9 * i - 0.5 * j + 0.2)
    return student, teacher, (3 * torch.arange(8) + 1) % 10


def wave_map(channels: int, size: int, a: float, b: float, phase: float) -> Tensor:
    """A feature map (8, channels, size, size) for which the golden values were computed."""
    n, c, h, w = (torch.arange(k, dtype=F64) for k in (8, channels, size, size))
    angle = a * n[:, None, None, None] + 0.37 * c[:, None, None] + b * h[:, None] + 0.23 * w + phase
    return angle.sin() + 0.5


def without_labels(loss: Callable[..., Tensor], **options: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda student, teacher, labels: loss(student, teacher, **options)


LOGIT_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{
        loss.__name__: without_labels(loss)
        for loss in (
            L.kd,
            L.logistic,
            L.soft_bce,
            L.hard_label,
            L.logit_mse,
            L.dist,
            L.ttm,
            L.wttm,
            L.mlkd,
            L.batch_correlation,
            L.class_correlation,
        )
    },
    "kd at 1": without_labels(L.kd, temperature=1.0),
    "logistic at 4": without_labels(L.logistic, temperature=4.0),
    "dist at 4": without_labels(L.dist, temperature=4.0),
    "standardized kd": without_labels(L.standardize(L.kd), temperature=2.0),
    **{loss.__name__: loss for loss in (L.dkd, L.nkd, L.rld, L.wsld)},
    "dkd at 1": functools.partial(L.dkd, temperature=1.0),
    "standardized dkd": L.standardize(L.dkd),
}

MAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{loss.__name__: loss for loss in (L.hint, L.at, L.nst, L.hcl, L.wkd_f, L.sp, L.spatial_affinity)},
}

EMBEDDING_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{loss.__name__: loss for loss in (L.rkd_distance, L.rkd_angle, L.pkt, L.cc)},
    "rkd_angle in chunks": functools.partial(L.rkd_angle, chunk=3),
}

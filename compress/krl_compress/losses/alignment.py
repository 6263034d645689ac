"""Losses between the feature maps of two generators that are given the same latents."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check_pair, full_precision

__all__ = ["kernel_alignment"]


@full_precision
def kernel_alignment(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Align the similarities of samples: 1 − ⟨K_s, K_t⟩ / (‖K_s‖ ‖K_t‖), K = X Xᵀ with X (N, the rest flattened).

    `Teachers Do More Than Teach <https://arxiv.org/abs/2103.03467>`_ (not centered). No adapter is needed: channels and
    resolution may differ. Of a single sample it is 0, whatever the features.

    Args:
        student_features: (N, ...).
        teacher_features: (N, ...), of any other shape.

    Returns:
        Scalar, 0 to 2; 0 for features that differ by a rotation and a factor. Features that are all 0 give 1.
    """
    student, teacher = check_pair(student_features, teacher_features, what="features", form="N ...", same="N")
    student, teacher = student.flatten(1), teacher.flatten(1)
    first, second = student @ student.T, teacher @ teacher.T
    norms = torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second)
    alignment: Tensor = (first * second).sum() / norms.clamp(min=1e-12)
    return 1 - alignment

"""Labels of a batch in which some images have none (label -1)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["labels_or_answers"]


def labels_or_answers(labels: Tensor, teacher: Tensor) -> Tensor:
    """Return labels ``[N]`` with the teacher's most likely class in place of each -1.

    Args:
        labels: ``[N]`` of int64.
        teacher: Its logits, ``[N, classes]``.
    """
    return torch.where(labels < 0, teacher.argmax(1), labels)

"""Several teachers answer as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError
from krl_train.tasks import Batch

from .teacher import Teacher

__all__ = ["FusedTeacher", "Fusion"]

Fusion: TypeAlias = Literal["mean", "confidence", "class"]


class FusedTeacher:
    """Weighs several teachers' logits, which may come from different architectures and input sizes.

    - ``"mean"``: the mean of the logits, that is the geometric mean of the probabilities.
    - ``"confidence"``: w_k = (1 − softmax_k(CE_k)) / (K − 1), with each teacher's cross-entropy to the label: a teacher
      that is wrong on an image counts less there (Confidence-Aware Multi-Teacher KD, https://arxiv.org/abs/2201.00007).
    - ``"class"``: for each image, the teacher that was best on its class alone.

    For images without a label (-1) it is the mean in any case.

    Args:
        teachers: Two or more.
        fusion: How they are weighed.
        recall: For ``"class"``, each teacher's recall of each class, ``[K, classes]``, measured beforehand.

    Raises:
        UsageError: There are fewer than two teachers, or the recalls are missing.
    """

    def __init__(self, teachers: Sequence[Teacher], fusion: Fusion, recall: Tensor | None = None) -> None:
        if len(teachers) < 2:
            raise UsageError(f"{len(teachers)} teachers; fusion takes two or more")
        if fusion == "class" and recall is None:
            raise UsageError("fusion by class needs each teacher's recall of each class")
        self.teachers, self.fusion = list(teachers), fusion
        self.best = None if recall is None else recall.argmax(0)

    features = None
    """It has logits alone."""

    def fold(self) -> None:
        """Make ready for a training that asks for logits alone."""
        for teacher in self.teachers:
            teacher.fold()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return the fused logits ``[N, classes]`` of float32."""
        logits = torch.stack([teacher(batch) for teacher in self.teachers])
        return (self._weights(logits, batch.labels)[:, :, None] * logits).sum(0)

    def _weights(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return each teacher's weight for each image, ``[K, N]``; they add up to 1."""
        count = len(logits)
        mean = torch.full(logits.shape[:2], 1 / count, device=logits.device)
        if self.fusion == "mean":
            return mean
        weigh = self._by_confidence if self.fusion == "confidence" else self._by_class
        return torch.where(labels < 0, mean, weigh(logits, labels.clamp(min=0)))

    def _by_confidence(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels.repeat(len(logits))
        entropies = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(logits.shape[:2])
        return (1 - entropies.softmax(0)) / (len(logits) - 1)

    def _by_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        assert self.best is not None  # noqa: S101  for the type checker; checked when it was made
        return F.one_hot(self.best.to(labels.device)[labels], len(logits)).T.to(logits.dtype)
